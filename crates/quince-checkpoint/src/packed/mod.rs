//! Hugging Face directories whose safetensors hold weights in parts: codes in one tensor, scales in another. One file for
//! each way to do so.

mod float8;
mod mlx;
mod mlx_layout;
mod mxfp4;

use crate::config::Config;
use crate::format::Found;
use crate::suggest::shown;
use quince_tensor::{DType, Error, Result, Tensor, Weight};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

pub(crate) use float8::FLOAT8;
pub(crate) use mlx::MLX;
pub(crate) use mxfp4::GPT_OSS;

/// The tensors of a checkpoint while parts are put together.
struct Tensors(BTreeMap<String, Found>);

impl Tensors {
    fn of(found: Vec<Found>) -> Tensors {
        Tensors(found.into_iter().map(|found| (found.weight.name().to_string(), found)).collect())
    }

    /// The names that end so, without the ending.
    fn stems(&self, ending: &str) -> Vec<String> {
        self.0.keys().filter_map(|name| name.strip_suffix(ending)).map(str::to_string).collect()
    }

    fn take(&mut self, name: &str) -> Option<Found> {
        self.0.remove(name)
    }

    fn put(&mut self, found: Found) {
        self.0.insert(found.weight.name().to_string(), found);
    }

    fn into_found(self) -> Vec<Found> {
        self.0.into_values().collect()
    }
}

/// A part of a weight: a tensor of a mapped file.
#[derive(Clone)]
struct Part {
    weight: Weight,
    shape: Vec<usize>,
}

impl Part {
    fn of(found: &Found) -> Part {
        Part { weight: found.weight.clone(), shape: found.weight.shape().to_vec() }
    }

    /// The same elements as rows of the last axis.
    fn flat(&self) -> Result<Part> {
        let columns = self.shape.last().copied().unwrap_or(1);
        let rows = self.weight.len().checked_div(columns).unwrap_or(0);
        let shape = vec![rows, columns];
        Ok(Part { weight: self.weight.reshape(&shape)?, shape })
    }

    fn rows(&self, rows: Range<usize>) -> Result<Tensor> {
        self.weight.rows(rows)
    }
}

/// The configuration of a directory that has one; whatever is wrong with it is reported by who reads it.
fn config_of(path: &Path) -> Option<Config> {
    Config::read(&path.join("config.json")).ok()
}

/// The error for a tensor that is not as its parts must be.
fn wrong(name: &str, found: &Found, expected: impl std::fmt::Display) -> Error {
    let message = format!("found {}{:?}, expected {expected}", found.weight.dtype(), found.weight.shape());
    Error::new(message).at(format!("tensor `{}`", shown(name))).at(found.file.display())
}

/// Whether elements are floats that scales are stored in.
fn is_scale(dtype: DType) -> bool {
    matches!(dtype, DType::F16 | DType::BF16 | DType::F32)
}
