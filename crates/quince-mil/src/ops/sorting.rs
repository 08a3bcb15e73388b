//! `argsort` and `topk`: elements along an axis in order. Equal elements keep their order, and NaN comes last.

use super::elements::{Groups, take};
use super::layout::count;
use super::reduction::index_type;
use super::shape_rules::axis;
use crate::{Args, DType, Dim, Op, Param, Result, Tensor, TensorType, ValueType, bail};
use std::cmp::Ordering;

const TYPES: &[DType] = {
    use DType::*;
    &[F16, F32, I8, I16, I32, U8, U16]
};

/// See [`Op::doc`].
pub struct Argsort;

impl Op for Argsort {
    fn name(&self) -> &'static str {
        "argsort"
    }

    fn doc(&self) -> &'static str {
        "The positions of the elements along `axis`, the largest first, or the smallest first if `ascending`."
    }

    fn params(&self) -> &'static [Param] {
        const {
            &[
                Param::new("x").types(TYPES),
                Param::new("axis").constant().or_int(-1),
                Param::new("ascending").constant().types(&[DType::Bool]).or_bool(false),
            ]
        }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let shape = args.shape("x")?.to_vec();
        axis(args.int("axis")?, shape.len())?;
        Ok(vec![TensorType { dtype: DType::I32, shape }.into()])
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let x = args.tensor("x")?;
        let axis = axis(args.int("axis")?, x.rank())?;
        let sorted = Sorted::new(&x, axis, x.shape()[axis], args.bool("ascending")?)?;
        Ok(vec![Tensor::from_i64(DType::I32, x.shape(), &sorted.positions)?])
    }
}

/// See [`Op::doc`].
pub struct Topk;

impl Op for Topk {
    fn name(&self) -> &'static str {
        "topk"
    }

    fn doc(&self) -> &'static str {
        "The `k` largest elements along `axis`, the largest first (the smallest, if `ascending`), and their positions \
         unless `return_indices` is false. They are in order whatever `sort` says. Positions are int32, or uint16 if \
         `output_indices_dtype` says so."
    }

    fn params(&self) -> &'static [Param] {
        const {
            &[
                Param::new("x").types(TYPES),
                Param::new("k").constant().or_int(1),
                Param::new("axis").constant().or_int(-1),
                Param::new("ascending").constant().types(&[DType::Bool]).or_bool(false),
                Param::new("sort").constant().types(&[DType::Bool]).or_bool(true),
                Param::new("return_indices").constant().types(&[DType::Bool]).or_bool(true),
                Param::new("output_indices_dtype").constant().or_str("int32"),
            ]
        }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let x = args.ty("x")?;
        let (axis, k) = (axis(args.int("axis")?, x.shape.len())?, args.int("k")?);
        let mut shape = x.shape.clone();
        match (usize::try_from(k), shape[axis]) {
            (Ok(k), Dim::Unknown) => shape[axis] = k.into(),
            (Ok(k), Dim::Fixed(size)) if k <= size => shape[axis] = k.into(),
            (_, size) => bail!("found k {k}, expected 0 to the size {size} of axis {axis}"),
        }
        let mut types = vec![TensorType { dtype: x.dtype, shape: shape.clone() }.into()];
        if args.bool("return_indices")? {
            types.push(TensorType { dtype: index_type(args.str("output_indices_dtype")?)?, shape }.into());
        }
        Ok(types)
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let (x, k) = (args.tensor("x")?, args.int("k")?);
        let axis = axis(args.int("axis")?, x.rank())?;
        let size = x.shape()[axis];
        let Some(k) = usize::try_from(k).ok().filter(|&k| k <= size) else {
            bail!("found k {k}, expected 0 to the size {size} of axis {axis}");
        };
        let sorted = Sorted::new(&x, axis, k, args.bool("ascending")?)?;
        let mut shape = x.shape().to_vec();
        shape[axis] = k;
        let mut results = vec![take(&x, &shape, sorted.elements.into_iter())?];
        if args.bool("return_indices")? {
            let dtype = index_type(args.str("output_indices_dtype")?)?;
            results.push(Tensor::from_i64(dtype, shape, &sorted.positions)?);
        }
        Ok(results)
    }
}

/// The first `k` elements along an axis in order, laid out like the result.
struct Sorted {
    /// Their positions along the axis.
    positions: Vec<i64>,
    /// Where they are in the whole tensor.
    elements: Vec<usize>,
}

impl Sorted {
    fn new(x: &Tensor, axis: usize, k: usize, ascending: bool) -> Result<Sorted> {
        let values = x.to_f64()?;
        let order = |a: f64, b: f64| match a.is_nan().cmp(&b.is_nan()) {
            Ordering::Equal if ascending => a.partial_cmp(&b).unwrap_or(Ordering::Equal),
            Ordering::Equal => b.partial_cmp(&a).unwrap_or(Ordering::Equal),
            nan_last => nan_last,
        };
        let inner = count(&x.shape()[axis + 1..])?;
        let mut shape = x.shape().to_vec();
        shape[axis] = k;
        let count = count(&shape)?;
        let mut sorted = Sorted { positions: vec![0; count], elements: vec![0; count] };
        for (g, group) in Groups::new(x.shape(), &[axis])?.iter().enumerate() {
            let mut group: Vec<(usize, usize)> = group.enumerate().collect();
            group.sort_by(|a, b| order(values[a.1], values[b.1]));
            for (j, &(position, element)) in group[..k].iter().enumerate() {
                let to = (g / inner * k + j) * inner + g % inner;
                sorted.positions[to] = position as i64;
                sorted.elements[to] = element;
            }
        }
        Ok(sorted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing;

    fn run(op: &'static dyn Op, args: &[(&'static str, crate::Value)]) -> Result<Vec<Tensor>> {
        testing::run_all(op, &testing::args(op, args.to_vec()))
    }

    #[test]
    fn the_largest_come_first() {
        let x = Tensor::from_vec([2, 3], vec![1f32, 3.0, 2.0, 5.0, 4.0, 5.0]).unwrap();
        let out = run(&Topk, &[("x", x.clone().into()), ("k", 2.into())]).unwrap();
        assert_eq!((out[0].shape(), out[0].to_f32().unwrap()), (&[2, 2][..], vec![3.0, 2.0, 5.0, 5.0]));
        assert_eq!(out[1].to_i64().unwrap(), [1, 2, 0, 2]);
        let given = [("x", x.clone().into()), ("axis", 0.into()), ("ascending", true.into())];
        let out = run(&Topk, &given).unwrap();
        assert_eq!((out[0].to_f32().unwrap(), out[1].to_i64().unwrap()), (vec![1.0, 3.0, 2.0], vec![0, 0, 0]));
        let given = [("x", x.clone().into()), ("output_indices_dtype", "uint16".into())];
        assert_eq!(run(&Topk, &given).unwrap()[1].dtype(), DType::U16);
        assert_eq!(run(&Topk, &[("x", x.clone().into()), ("return_indices", false.into())]).unwrap().len(), 1);
        let error = run(&Topk, &[("x", x.into()), ("k", 4.into())]).unwrap_err().to_string();
        assert_eq!(error, "found k 4, expected 0 to the size 3 of axis 1");
    }

    #[test]
    fn nan_is_last_and_equal_elements_keep_their_order() {
        let x = Tensor::vector(vec![f32::NAN, 1.0, 2.0, 1.0]);
        let out = run(&Argsort, &[("x", x.clone().into())]).unwrap();
        assert_eq!(out[0].to_i64().unwrap(), [2, 1, 3, 0]);
        let out = run(&Argsort, &[("x", x.into()), ("ascending", true.into())]).unwrap();
        assert_eq!(out[0].to_i64().unwrap(), [1, 3, 2, 0]);
    }
}
