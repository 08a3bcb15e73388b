//! Element types, shapes, bit packing, and bytes that are owned or mapped.
//!
//! A [`Tensor`] is an element type, a shape and bytes whose length was checked against both. A [`Weight`] is a tensor
//! that does not exist yet: it knows its type and how to get its bytes, and may be asked for a few rows at a time, so
//! that a model of any size can be converted with one weight in memory.
//!
//! This crate knows no file format, no operation and no model.

mod bytes;
mod cast;
mod dtype;
mod error;
mod huge_pages;
pub mod packing;
mod tensor;
mod weight;

pub use bytes::{Bytes, zeroed};
pub use dtype::{DType, Element};
pub use error::{Error, Result};
pub use half::{bf16, f16};
pub use tensor::Tensor;
pub use weight::{Weight, WeightSource, parts};
