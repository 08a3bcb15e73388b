//! Runs a program: plan, memory, fast kernels

pub mod kernels;
