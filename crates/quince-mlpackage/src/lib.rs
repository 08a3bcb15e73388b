//! The .mlpackage on disk: manifest, protobuf, weight.bin.

pub mod blob;
mod error;
mod manifest;
mod proto;

pub use error::{Error, Result};
