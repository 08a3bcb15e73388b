//! What metadata and tensors of a model say, asked by the short names of keys.

use super::metadata::Metadata;
use super::model::Tensors;
use quince_tensor::{Error, Result};

/// A model's metadata and tensors.
pub(super) struct Facts<'a> {
    pub metadata: &'a Metadata,
    pub tensors: &'a Tensors,
    /// `general.architecture`, with which most keys begin.
    pub architecture: &'a str,
}

impl Facts<'_> {
    /// The full key.
    pub fn key(&self, short: &str) -> String {
        format!("{}.{short}", self.architecture)
    }

    /// A size or a count.
    pub fn unsigned(&self, short: &str) -> Result<Option<u64>> {
        self.metadata.unsigned(&self.key(short))
    }

    /// A size or a count that the model needs.
    pub fn required(&self, short: &str) -> Result<u64> {
        self.unsigned(short)?.ok_or_else(|| {
            let error = Error::new(format!("found no key `{}`, which the model needs", self.key(short)));
            error.hint("convert the original model again with a newer llama.cpp")
        })
    }

    /// Whether there is a tensor of this name in the file.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.get(name).is_some()
    }

    /// The shape of a tensor of the file.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|tensor| tensor.info.shape.as_slice())
    }

    /// The elements of a small tensor; none if it is not there.
    pub fn values(&self, name: &str) -> Result<Option<Vec<f32>>> {
        /// Factors of rotary positions are at most as many as half a head has elements.
        const MOST: usize = 1 << 16;
        let Some(tensor) = self.tensors.get(name) else { return Ok(None) };
        let weight = tensor.weight(name)?;
        if weight.len() > MOST {
            return Err(Error::new(format!(
                "tensor `{name}`: found {} elements, expected at most {MOST}",
                weight.len()
            )));
        }
        weight.load()?.to_f32().map(Some)
    }
}
