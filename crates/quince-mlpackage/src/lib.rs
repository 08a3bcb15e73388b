//! The .mlpackage on disk: manifest, protobuf, weight.bin; and the .mlmodelc that Core ML's compiler makes of it.
//!
//! [`Package::read`] turns a directory into a [`quince_mil::Program`] whose weights stay in the mapped file, and
//! [`Package::write`] turns a program into a directory, one weight at a time. What was read is written again with every
//! field it had; what could not be is refused when it is read.

pub mod blob;
mod compiled;
mod error;
mod interface;
mod manifest;
mod names;
mod package;
mod proto;
mod read;
mod staged;
#[cfg(test)]
mod tests;
mod types;
mod value;
mod write;

pub use compiled::{from_bytes as from_compiled, is_compiled};
pub use error::{Error, Result};
pub use package::{Package, Written};
pub use proto::model::Metadata;
pub use staged::Staged;

/// What a package that is a part of a model says of itself in its metadata: `part 2 of 4`.
pub const PART_KEY: &str = "quince.part";
