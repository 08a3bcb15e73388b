//! From checkpoint to program: shared blocks, one file for each architecture, one lowering for each target
