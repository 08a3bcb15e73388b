//! Checkpoints: one way to ask for a weight by its Hugging Face name.
//!
//! [`Checkpoint::open`] recognises a format of the table [`FORMATS`], reads its configuration, and maps its files; the
//! bytes of a [`Weight`](quince_tensor::Weight) are then slices of the map. Everything read here comes from strangers:
//! every length is checked before it is used, and an error names file, tensor, what was found and what was expected.
//!
//! This crate knows no architecture: which tensors a model needs, and of which shape, is asked from outside.

mod adapter;
mod blocks;
mod checkpoint;
mod config;
mod digest;
mod files;
mod format;
mod gguf;
mod header;
mod huggingface;
mod packed;
mod refused;
mod safetensors;
mod suggest;
mod views;

pub use adapter::{Adapted, Adapter, Mode, Step, Weighted};
pub use checkpoint::{Checkpoint, Entry};
pub use config::Config;
pub use digest::sha256;
pub use format::{Exact, FORMATS, Format};
pub use gguf::{GgufHeader, gguf_vocabulary};
pub use header::{SafetensorsHeader, TensorInfo};
pub use safetensors::{SafetensorsFile, write_safetensors};
