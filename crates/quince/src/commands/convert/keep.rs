//! `--keep-quantization`: weights stay in the integers that the checkpoint has, where Core ML can express them.

use crate::failure::Result;
use quince_checkpoint::Checkpoint;
use quince_compress::{Integers, keep as keep_in_program};
use quince_mil::Program;
use quince_tensor::{DType, Error};
use serde::Serialize;
use std::collections::BTreeMap;

/// What became of the quantized weights of a checkpoint.
#[derive(Serialize)]
pub struct Kept {
    /// Weights whose values are those of the checkpoint, rounded to the float type of the package as any other.
    exact: usize,
    /// Weights of which some elements are rounded in another way.
    rounded: usize,
    /// The most that an element of those is moved, in steps of its scale.
    largest_rounding: f64,
    /// Weights that stay floats though they could be kept, with the reason.
    left: Vec<(String, String)>,
    /// Weights that Core ML has no form for, by their type in the checkpoint; they are decoded.
    decoded: BTreeMap<String, usize>,
}

/// Puts the integers of a checkpoint into a program.
///
/// # Errors
/// When there is nothing that can be kept.
pub fn keep(checkpoint: &Checkpoint, program: &mut Program) -> Result<Kept> {
    let find = |name: &str| {
        let exact = checkpoint.exact(name)?.clone();
        Some(Integers { data: exact.data, scale: exact.scale, offset: exact.offset })
    };
    let kept = keep_in_program(program, &find)?;
    let mut decoded = BTreeMap::new();
    for entry in checkpoint.tensors() {
        let quantized = entry.weight.dtype() == DType::F32 && entry.byte_len() < entry.weight.len() as u64 * 2;
        if quantized && checkpoint.exact(entry.name()).is_none() {
            *decoded.entry(entry.form().to_string()).or_default() += 1;
        }
    }
    if kept.exact.is_empty() && kept.rounded.is_empty() {
        let error = Error::new("--keep-quantization: found no weight whose quantization Core ML can express");
        let hint = match kept.left.first() {
            Some((name, reason)) => format!("`{name}`: {reason}"),
            None => "it keeps Q4_0, Q8_0 and MXFP4 of GGUF, and the affine and mxfp4 weights of MLX".to_string(),
        };
        return Err(error.hint(hint).at(checkpoint.config().path().display()).into());
    }
    Ok(Kept {
        exact: kept.exact.len(),
        rounded: kept.rounded.len(),
        largest_rounding: kept.rounded.iter().fold(0.0, |most, (_, steps)| most.max(*steps)),
        left: kept.left,
        decoded,
    })
}

impl Kept {
    /// For people.
    pub fn text(&self) -> String {
        let mut text = format!("kept as quantized: {} weights exactly", self.exact);
        if self.rounded > 0 {
            text += &format!(", {} with elements moved by up to {:.4} steps", self.rounded, self.largest_rounding);
        }
        text += "\n";
        for (form, count) in &self.decoded {
            text += &format!("decoded: {count} weights of {form}, which Core ML has no form for\n");
        }
        for (name, reason) in self.left.iter().take(8) {
            text += &format!("decoded: {name}: {reason}\n");
        }
        text
    }
}
