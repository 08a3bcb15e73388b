//! Models of the Hugging Face Hub by their id.
//!
//! [`fetch`] brings the files of a model that quince reads into the cache that huggingface_hub keeps, and says where
//! they are. Nothing is asked of the network unless somebody names a model that is no path of this machine.
//!
//! ```no_run
//! # fn main() -> quince_tensor::Result<()> {
//! use quince_hub::{ModelId, Options, fetch};
//! let id = ModelId::parse("Qwen/Qwen3-0.6B").unwrap();
//! let directory = fetch(&id, &Options::from_environment(), &|_| Ok(()))?;
//! # Ok(()) }
//! ```

mod cache;
mod download;
mod environment;
mod fetch;
mod http;
mod id;
mod listing;
mod needed;
mod refusal;
mod url;

pub use environment::{Network, Options};
pub use fetch::{Event, fetch};
pub use id::{ModelId, Wanted};
