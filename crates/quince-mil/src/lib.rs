//! The program: what it is, what it means, how it reads
