//! gpt-oss: experts in floats of four bits, `_blocks` [E, rows, columns / 32, 16] of two codes to a byte and `_scales`
//! [E, rows, columns / 32] of powers of two. Transformers gives them as [E, columns, rows].

use super::{Part, Tensors, config_of, wrong};
use crate::blocks::{E2M1, scale_of_exponent};
use crate::format::{Contents, Format, Found};
use crate::huggingface;
use crate::suggest::shown;
use crate::views;
use quince_tensor::{DType, Error, Result, Tensor, Weight, WeightSource};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

pub(crate) const GPT_OSS: Format = Format {
    name: "MXFP4 safetensors",
    looks_like: "a directory whose config.json has the quant_method `mxfp4`",
    recognizes: |path| {
        let method =
            |config: crate::Config| config.get("quantization_config.quant_method").is_some_and(|m| m == "mxfp4");
        config_of(path).is_some_and(method)
    },
    open,
};

/// Bytes of a block, with two codes each.
const BLOCK: usize = 16;

fn open(path: &Path) -> Result<Contents> {
    let mut contents = huggingface::read(path)?;
    let mut tensors = Tensors::of(std::mem::take(&mut contents.weights));
    for stem in tensors.stems("_blocks") {
        let blocks = format!("{stem}_blocks");
        let (Some(codes), Some(scales)) = (tensors.take(&blocks), tensors.take(&format!("{stem}_scales"))) else {
            let error = Error::new("found blocks without scales").at(format!("tensor `{}`", shown(&blocks)));
            return Err(error.hint("a shard is missing; download it again").at(path.display()));
        };
        let (&[experts, rows, count, BLOCK], DType::U8) = (codes.weight.shape(), codes.weight.dtype()) else {
            return Err(wrong(&blocks, &codes, "uint8 [experts, rows, blocks, 16]"));
        };
        if scales.weight.shape() != [experts, rows, count] || scales.weight.dtype() != DType::U8 {
            return Err(wrong(scales.weight.name(), &scales, format!("uint8 {:?}", [experts, rows, count])));
        }
        let shape = [experts, rows, count * BLOCK * 2];
        let source = Microscaled { shape, codes: Part::of(&codes), scales: Part::of(&scales) };
        let weight = Weight::new(&stem, DType::F32, &shape, Arc::new(source));
        let bytes = codes.bytes + scales.bytes;
        let weight = views::transposed(&weight)?;
        tensors.put(Found { weight, file: codes.file, form: "mxfp4".into(), bytes, exact: None });
    }
    Ok(Contents { weights: tensors.into_found(), ..contents })
}

/// [E, rows, columns], decoded an expert at a time.
struct Microscaled {
    shape: [usize; 3],
    codes: Part,
    scales: Part,
}

impl WeightSource for Microscaled {
    fn load(&self) -> Result<Tensor> {
        self.rows(0..self.shape[0])
    }

    fn rows(&self, experts: Range<usize>) -> Result<Tensor> {
        let (codes, scales) = (self.codes.rows(experts.clone())?, self.scales.rows(experts.clone())?);
        let mut out = Vec::with_capacity(codes.bytes().len() * 2);
        for (block, &exponent) in codes.bytes().chunks_exact(BLOCK).zip(scales.bytes().iter()) {
            let scale = scale_of_exponent(exponent);
            let value = |code: u8| scale * f32::from(E2M1[usize::from(code & 15)]);
            out.extend(block.iter().flat_map(|&byte| [value(byte), value(byte >> 4)]));
        }
        Tensor::from_vec([experts.len(), self.shape[1], self.shape[2]], out)
    }

    fn streams(&self) -> bool {
        true
    }
}
