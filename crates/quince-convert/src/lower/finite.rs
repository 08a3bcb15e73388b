//! Weights that are looked at on their way into a package: what is not finite there spoils every answer, and it is told
//! only by the weight's name.

use quince_mil::{DType, Error, Result, Tensor, Weight};
use quince_tensor::WeightSource;
use std::ops::Range;
use std::sync::Arc;

/// The weight, with an error where an element is infinite or not a number once it has the type of the package.
pub(super) fn finite(weight: &Weight) -> Weight {
    Weight::new(weight.name(), weight.dtype(), weight.shape(), Arc::new(Finite(weight.clone())))
}

struct Finite(Weight);

impl WeightSource for Finite {
    fn load(&self) -> Result<Tensor> {
        checked(self.0.load()?, 0)
    }

    fn rows(&self, rows: Range<usize>) -> Result<Tensor> {
        let tensor = self.0.rows(rows.clone())?;
        let before = tensor.len() / rows.len().max(1) * rows.start;
        checked(tensor, before)
    }

    fn streams(&self) -> bool {
        self.0.streams()
    }
}

/// The tensor, whose first element is number `before` of the weight, if all of it is finite.
fn checked(tensor: Tensor, before: usize) -> Result<Tensor> {
    let dtype = tensor.dtype();
    let wrong = match dtype {
        DType::F16 => position(tensor.bytes(), |bits: [u8; 2]| u16::from_le_bytes(bits) & 0x7c00 == 0x7c00),
        DType::F32 => position(tensor.bytes(), |bits: [u8; 4]| u32::from_le_bytes(bits) & 0x7f80_0000 == 0x7f80_0000),
        _ => None,
    };
    let Some(index) = wrong else { return Ok(tensor) };
    let found = Error::new(format!(
        "element {} is infinite or not a number as {dtype}, expected a finite number",
        before + index
    ));
    Err(match dtype {
        DType::F16 => found.hint("float16 holds numbers up to 65504: --fp16-rescale auto scales weights so that it does, and float32 may hold more, if the checkpoint is sound"),
        _ => found.hint("the checkpoint is damaged, or its training failed"),
    })
}

/// The first element that is wrong. Whole blocks are asked without a branch for each element, which is as fast as
/// memory is.
fn position<const N: usize>(bytes: &[u8], wrong: impl Fn([u8; N]) -> bool) -> Option<usize> {
    const BLOCK: usize = 1 << 12;
    let (elements, _) = bytes.as_chunks::<N>();
    let mut blocks = elements.chunks(BLOCK).enumerate();
    let (number, block) = blocks.find(|(_, block)| block.iter().fold(false, |found, bits| found | wrong(*bits)))?;
    block.iter().position(|bits| wrong(*bits)).map(|index| number * BLOCK + index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_element_that_is_not_finite_is_named_whole_and_by_rows() {
        let mut values = vec![1.0f32; 3 * 2000];
        values[4100] = 70_000.0;
        let weight = Weight::from_tensor("w", Tensor::from_vec(vec![3, 2000], values).unwrap());
        assert!(finite(&weight).load().is_ok());
        let half = finite(&weight.cast(DType::F16));
        let expected = "weight `w`: element 4100 is infinite or not a number as fp16, expected a finite number; hint:";
        for error in [half.load().unwrap_err(), half.rows(1..3).unwrap_err()] {
            assert!(error.to_string().starts_with(expected), "{error}");
        }
        assert_eq!(half.rows(0..2).unwrap().shape(), [2, 2000]);
        let nan = Weight::from_tensor("w", Tensor::from_vec(vec![1], vec![f32::NAN]).unwrap());
        assert!(finite(&nan).load().is_err());
    }
}
