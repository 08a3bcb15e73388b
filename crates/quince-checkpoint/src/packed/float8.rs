//! Weights in floats of eight bits with scales in a tensor beside them: one for all, for each row, or for each block.
//!
//! `weight_scale_inv` (DeepSeek, Qwen: blocks) and `weight_scale` (compressed-tensors, FBGEMM, ModelOpt) are both what
//! elements are multiplied by, whatever the name says.

use super::{Tensors, config_of, is_scale, wrong};
use crate::format::{Contents, Format, Found};
use crate::huggingface;
use crate::suggest::shown;
use quince_tensor::{DType, Error, Result, Tensor, Weight, WeightSource, bail};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// Methods whose weights may be floats of eight bits.
const METHODS: &[&str] = &["fp8", "fbgemm_fp8", "compressed-tensors", "modelopt"];
/// What the tensor of scales is called, after the weight's module.
const SCALES: &[&str] = &["weight_scale_inv", "weight_scale"];
/// Scales of activations and of caches, which weights do not need.
const IGNORED: &[&str] = &[".input_scale", ".activation_scale", ".k_scale", ".v_scale", ".input_scale_ub"];

pub(crate) const FLOAT8: Format = Format {
    name: "float8 safetensors",
    looks_like: "a directory whose config.json has the quant_method `fp8`",
    recognizes: |path| {
        let config = config_of(path);
        let method = config.as_ref().and_then(|config| config.get("quantization_config.quant_method"));
        method.and_then(|method| method.as_str()).is_some_and(|method| METHODS.contains(&method))
    },
    open,
};

fn open(path: &Path) -> Result<Contents> {
    let mut contents = huggingface::read(path)?;
    let mut tensors = Tensors::of(std::mem::take(&mut contents.weights));
    for ending in IGNORED {
        tensors.stems(ending).iter().for_each(|stem| drop(tensors.take(&format!("{stem}{ending}"))));
    }
    for kind in SCALES {
        for stem in tensors.stems(&format!(".{kind}")) {
            let Some(scales) = tensors.take(&format!("{stem}.{kind}")) else { continue };
            let name = format!("{stem}.weight");
            let Some(weight) = tensors.take(&name) else {
                let error = Error::new(format!("found scales without the tensor `{}`", shown(&name)));
                return Err(error.at(format!("tensor `{}.{kind}`", shown(&stem))).at(scales.file.display()));
            };
            tensors.put(scaled(&name, weight, &scales, contents.config.get("quantization_config.weight_block_size"))?);
        }
    }
    // Scales that no weight has taken would be lost without a word; integers are of another method.
    let odd = |found: &&Found| found.weight.name().ends_with("_packed") || found.weight.dtype() == DType::I8;
    if let Some(found) = tensors.0.values().find(odd) {
        let error = wrong(found.weight.name(), found, "weights in float8, float16, bfloat16 or float32");
        return Err(error.hint("use the model that it was quantized from, in f32, f16 or bf16"));
    }
    Ok(Contents { weights: tensors.into_found(), ..contents })
}

/// A weight times its scales.
fn scaled(name: &str, weight: Found, scales: &Found, block: Option<&serde_json::Value>) -> Result<Found> {
    let dtype = weight.weight.dtype();
    if !matches!(dtype, DType::F8E4M3FN | DType::F8E5M2) {
        return Err(wrong(name, &weight, "floats of eight bits, which its scales are for"));
    }
    let [rows, columns] = *weight.weight.shape() else { return Err(wrong(name, &weight, "rows and columns")) };
    if !is_scale(scales.weight.dtype()) {
        return Err(wrong(scales.weight.name(), scales, "float scales"));
    }
    let sizes = block.and_then(|block| {
        let size = |axis: usize| block.get(axis)?.as_u64().and_then(|size| usize::try_from(size).ok());
        Some([size(0)?, size(1)?])
    });
    let grid = match scales.weight.shape() {
        [] | [1] | [1, 1] => [1, 1],
        [n] | [n, 1] if *n == rows => [rows, 1],
        [a, b] => [*a, *b],
        _ => return Err(wrong(scales.weight.name(), scales, format!("scales for {rows} rows of {columns}"))),
    };
    let size = match sizes {
        Some(size) if grid != [1, 1] && grid != [rows, 1] => size,
        _ => [rows.div_ceil(grid[0].max(1)), columns.div_ceil(grid[1].max(1))],
    };
    let fits = |axis: usize, total: usize| size[axis] > 0 && total.div_ceil(size[axis]) == grid[axis];
    if !(fits(0, rows) && fits(1, columns)) {
        let message = format!("scales in blocks of {size:?} for {rows} rows of {columns}");
        return Err(wrong(scales.weight.name(), scales, message));
    }
    let form = if dtype == DType::F8E5M2 { "float8 e5m2, scaled" } else { "float8 e4m3, scaled" };
    let bytes = weight.bytes + scales.bytes;
    let scale = scales.weight.reshape(&grid)?;
    let source = Scaled { weight: weight.weight.clone(), scale, size, columns };
    let joined = Weight::new(name, DType::F32, &[rows, columns], Arc::new(source));
    Ok(Found { weight: joined, file: weight.file, form: form.into(), bytes, exact: None })
}

struct Scaled {
    weight: Weight,
    /// [blocks of rows, blocks of columns].
    scale: Weight,
    /// Rows and columns of a block.
    size: [usize; 2],
    columns: usize,
}

impl WeightSource for Scaled {
    fn load(&self) -> Result<Tensor> {
        self.rows(0..self.weight.shape().first().copied().unwrap_or(0))
    }

    fn rows(&self, rows: Range<usize>) -> Result<Tensor> {
        let mut values = self.weight.rows(rows.clone())?.to_f32()?;
        let first = rows.start / self.size[0];
        let scales = self.scale.rows(first..rows.end.div_ceil(self.size[0]).max(first))?.to_f32()?;
        let across = self.columns.div_ceil(self.size[1]);
        for (row, values) in rows.zip(values.chunks_exact_mut(self.columns.max(1))) {
            let start = (row / self.size[0] - first) * across;
            let Some(scales) = scales.get(start..start + across) else { bail!("found no scales for row {row}") };
            for (values, scale) in values.chunks_mut(self.size[1]).zip(scales) {
                values.iter_mut().for_each(|value| *value *= scale);
            }
        }
        Tensor::from_vec([values.len() / self.columns.max(1), self.columns], values)
    }

    fn streams(&self) -> bool {
        true
    }
}
