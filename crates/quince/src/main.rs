//! The quince command
fn main() {}
