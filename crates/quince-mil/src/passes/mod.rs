//! Passes over a function: each in its own file, changes the function in place and says whether it did.
