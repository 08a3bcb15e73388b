//! Blocks as integers and scales apart, the form in which Core ML can keep them.

use super::{BlockType, E2M1, MXFP4, Q4_0, Q8_0, half, scale_of_exponent};
use crate::format::Exact;
use quince_tensor::{Bytes, DType, Result, Tensor, Weight, WeightSource, bail};
use std::sync::Arc;

/// The integers and scales of a matrix [rows, columns] in blocks; none for a type that is not integers times a scale.
/// `order` gives for each row of a period the row of the file, as in [`views::permuted`](crate::views::permuted).
///
/// # Errors
/// When the shape is no matrix of whole blocks.
pub(crate) fn exact(
    block: &'static BlockType,
    name: &str,
    shape: &[usize],
    bytes: Bytes,
    order: Option<&[usize]>,
) -> Result<Option<Exact>> {
    let Some(form) = Form::of(block) else { return Ok(None) };
    let [rows, columns] = *shape else { bail!("found the shape {shape:?}, expected rows and columns") };
    let order = order.unwrap_or(&[0]).to_vec();
    if !columns.is_multiple_of(block.elements) || order.is_empty() || !rows.is_multiple_of(order.len()) {
        bail!("found the shape {shape:?}, expected rows of whole blocks in periods of {}", order.len());
    }
    let parts = |part| Arc::new(Parts { block, form, part, rows, columns, bytes: bytes.clone(), order: order.clone() });
    Ok(Some(Exact {
        data: Weight::new(name, form.dtype(), shape, parts(Part::Data)),
        scale: Weight::new(name, DType::F32, &[rows, columns / block.elements], parts(Part::Scale)),
        offset: None,
    }))
}

/// How a type becomes integers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Four bits less eight; the low halves of bytes come first.
    Nibbles,
    /// Signed bytes.
    Bytes,
    /// Floats of four bits, doubled, whose scale is a power of two.
    Floats,
}

impl Form {
    fn of(block: &'static BlockType) -> Option<Form> {
        let forms = [(Q4_0.name, Form::Nibbles), (Q8_0.name, Form::Bytes), (MXFP4.name, Form::Floats)];
        forms.into_iter().find(|(name, _)| *name == block.name).map(|(_, form)| form)
    }

    fn dtype(self) -> DType {
        if self == Form::Nibbles { DType::I4 } else { DType::I8 }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Data,
    Scale,
}

struct Parts {
    block: &'static BlockType,
    form: Form,
    part: Part,
    rows: usize,
    columns: usize,
    bytes: Bytes,
    order: Vec<usize>,
}

impl Parts {
    /// The blocks of the rows in their order.
    fn blocks<'a>(&'a self, bytes: &'a Bytes) -> impl Iterator<Item = &'a [u8]> {
        let (period, row) = (self.order.len(), self.columns / self.block.elements * self.block.bytes);
        (0..self.rows).flat_map(move |index| {
            let source = index / period * period + self.order.get(index % period).copied().unwrap_or(0);
            let bytes = bytes.get(source * row..(source + 1) * row).unwrap_or_default();
            bytes.chunks_exact(self.block.bytes)
        })
    }

    fn codes(&self) -> Result<Tensor> {
        let mut codes = Vec::with_capacity(self.rows * self.columns);
        for block in self.blocks(&self.bytes.lent()) {
            match self.form {
                Form::Bytes => codes.extend_from_slice(&block[2..]),
                Form::Nibbles => {
                    // Less eight, in four bits.
                    codes.extend(block[2..].iter().map(|byte| (byte & 15) ^ 8));
                    codes.extend(block[2..].iter().map(|byte| (byte >> 4) ^ 8));
                }
                Form::Floats => {
                    codes.extend(block[1..].iter().map(|byte| E2M1[usize::from(byte & 15)] as u8));
                    codes.extend(block[1..].iter().map(|byte| E2M1[usize::from(byte >> 4)] as u8));
                }
            }
        }
        Tensor::from_codes(self.form.dtype(), [self.rows, self.columns], &codes)
    }

    fn scales(&self) -> Result<Tensor> {
        let scale = |block: &[u8]| match self.form {
            Form::Floats => scale_of_exponent(block[0]),
            _ => half(block, 0),
        };
        let scales = self.blocks(&self.bytes.lent()).map(scale).collect();
        Tensor::from_vec([self.rows, self.columns / self.block.elements], scales)
    }
}

impl WeightSource for Parts {
    fn load(&self) -> Result<Tensor> {
        match self.part {
            Part::Data => self.codes(),
            Part::Scale => self.scales(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Integers times scales are what decoding gives, row by row, also in another order of rows.
    #[test]
    fn integers_and_scales_are_the_weight() {
        for (block, first) in [(&Q4_0, 0x34u8), (&Q8_0, 0x34), (&MXFP4, 120)] {
            let columns = 2 * block.elements;
            let mut bytes: Vec<u8> = (0..4 * 2 * block.bytes).map(|i| (i * 37 % 251) as u8).collect();
            for block_bytes in bytes.chunks_exact_mut(block.bytes) {
                block_bytes[usize::from(block.name != "MXFP4")] = first;
            }
            let bytes = Bytes::from_vec(bytes);
            let weight = block.weight("w", &[4, columns], bytes.clone()).unwrap().load().unwrap().to_f32().unwrap();
            let exact = exact(block, "w", &[4, columns], bytes, Some(&[1, 0])).unwrap().unwrap();
            let data = exact.data.load().unwrap().to_f32().unwrap();
            let scale = exact.scale.load().unwrap().to_f32().unwrap();
            for (i, value) in data.iter().enumerate() {
                let row = i / columns;
                let swapped = (row ^ 1) * columns + i % columns;
                assert_eq!(value * scale[i / block.elements], weight[swapped], "{} {i}", block.name);
            }
        }
    }
}
