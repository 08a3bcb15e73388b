//! `band_part` and `non_zero`: which elements are kept, and which there are.

use super::elements::room;
use super::layout::{Cells, from_cells, result};
use super::shape_rules::show;
use crate::{Args, DType, Dim, Op, Param, Result, Tensor, ValueType, bail};

/// See [`Op::doc`].
pub struct BandPart;

impl Op for BandPart {
    fn name(&self) -> &'static str {
        "band_part"
    }

    fn doc(&self) -> &'static str {
        "x with zeros outside of a band of its innermost matrices: element (m, n) is kept if m - n <= lower and n - m <= \
         upper; a negative bound keeps all on its side. `lower` -1 and `upper` 0 give a lower triangle."
    }

    fn params(&self) -> &'static [Param] {
        const { &[Param::new("x"), Param::new("lower").constant().or_int(-1), Param::new("upper").constant().or_int(-1)] }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let x = args.ty("x")?;
        if x.shape.len() < 2 {
            bail!("found x {}, expected two axes or more", show(&x.shape));
        }
        result(x.dtype, x.shape.clone())
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        self.infer(args)?;
        let x = args.tensor("x")?;
        let [.., rows, columns] = *x.shape() else { bail!("found x {x:?}, expected two axes or more") };
        let (lower, upper) = (args.int("lower")?, args.int("upper")?);
        let cells = Cells::of(&x)?;
        let mut out = room(cells.bytes.len())?;
        for (i, cell) in cells.bytes.chunks_exact(cells.width).enumerate() {
            let (m, n) = ((i / columns % rows) as i64, (i % columns) as i64);
            let kept = (lower < 0 || m - n <= lower) && (upper < 0 || n - m <= upper);
            // A zero of every element type is all bits zero.
            out.extend(cell.iter().map(|&byte| if kept { byte } else { 0 }));
        }
        Ok(vec![from_cells(x.dtype(), x.shape(), out)?])
    }
}

/// See [`Op::doc`].
pub struct NonZero;

impl Op for NonZero {
    fn name(&self) -> &'static str {
        "non_zero"
    }

    fn doc(&self) -> &'static str {
        "The places of the elements of x that are not zero, as rows [N, rank] of int32 in row-major order."
    }

    fn params(&self) -> &'static [Param] {
        const { &[Param::new("x")] }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        result(DType::I32, vec![Dim::Unknown, Dim::Fixed(args.shape("x")?.len())])
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let x = args.tensor("x")?;
        let mut places = Vec::new();
        let mut rows = 0;
        for (i, value) in x.to_f64()?.into_iter().enumerate() {
            if value == 0.0 {
                continue;
            }
            let (mut rest, start) = (i, places.len());
            for &size in x.shape().iter().rev() {
                places.push((rest % size) as i64);
                rest /= size;
            }
            places[start..].reverse();
            rows += 1;
        }
        Ok(vec![Tensor::from_i64(DType::I32, [rows, x.rank()], &places)?])
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn the_band_is_kept() {
        let band = |lower: i32, upper: i32| {
            let ones = f32s(&[1, 2, 3], &[1.0; 6]);
            let y = run(&BandPart, vec![("x", ones), ("lower", lower.into()), ("upper", upper.into())]).unwrap();
            y.to_f32().unwrap()
        };
        assert_eq!(band(-1, 0), [1.0, 0.0, 0.0, 1.0, 1.0, 0.0]);
        assert_eq!(band(0, -1), [1.0, 1.0, 1.0, 0.0, 1.0, 1.0]);
        assert_eq!(band(0, 1), [1.0, 1.0, 0.0, 0.0, 1.0, 1.0]);
        assert!(run(&BandPart, vec![("x", iota(&[3]))]).is_err());
    }

    #[test]
    fn places_that_are_not_zero_are_listed() {
        let y = run(&NonZero, vec![("x", f32s(&[2, 3], &[0.0, 1.0, -0.0, 2.0, 0.0, f32::NAN]))]).unwrap();
        assert_eq!((y.shape(), y.to_i64().unwrap()), (&[3, 2][..], vec![0, 1, 1, 0, 1, 2]));
        assert_eq!(run(&NonZero, vec![("x", 3.into())]).unwrap().shape(), [1, 0]);
    }
}
