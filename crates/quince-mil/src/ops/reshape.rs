//! `reshape` and its kin: the same elements in the same order under another shape.

use super::layout::{result, result_shape};
use super::shape_rules::{axes, axis, show};
use crate::{Args, Dim, Error, Op, Opset, Param, Result, Tensor, ValueType, bail};

/// See [`Op::doc`].
pub struct Reshape;

impl Op for Reshape {
    fn name(&self) -> &'static str {
        "reshape"
    }

    fn doc(&self) -> &'static str {
        "The elements of x in the same order under another shape. In `shape`, -1 (once) stands for what is left, and 0 \
         for the size that x has there, both counted from the last axis, or 1 where x has no axis."
    }

    fn params(&self) -> &'static [Param] {
        const { &[Param::new("x"), Param::new("shape")] }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let x = args.ty("x")?;
        let [rank] = *args.shape("shape")? else {
            bail!("found a shape of type {}, expected a vector", args.ty("shape")?);
        };
        let shape = match (args.known("shape"), rank) {
            (Some(shape), _) => reshaped(&x.shape, &shape.to_i64()?)?,
            (None, Dim::Fixed(rank)) => unknown(rank)?,
            (None, Dim::Unknown) => bail!("the number of axes of the result is not known, expected a fixed number"),
        };
        result(x.dtype, shape)
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let shape = result_shape(self, args)?;
        Ok(vec![args.tensor("x")?.reshape(shape)?])
    }
}

/// As many unknown sizes as a shape that is not known has; more axes than any tensor has are refused.
pub fn unknown(rank: usize) -> Result<Vec<Dim>> {
    if rank > MOST_AXES {
        bail!("found a shape of {rank} axes, expected at most {MOST_AXES}");
    }
    Ok(vec![Dim::Unknown; rank])
}

const MOST_AXES: usize = 64;

/// The shape that `wanted` makes of `from`, with its 0 and -1 replaced by what is known.
fn reshaped(from: &[Dim], wanted: &[i64]) -> Result<Vec<Dim>> {
    // Shapes are aligned at the last axis; before iOS 17 they are as long as each other where there is a 0.
    let same = |i: usize| (i + from.len()).checked_sub(wanted.len()).map_or(Dim::Fixed(1), |i| from[i]);
    let mut out = Vec::with_capacity(wanted.len());
    let mut rest = None;
    for (i, &size) in wanted.iter().enumerate() {
        out.push(match size {
            0 => same(i),
            -1 if rest.replace(i).is_some() => bail!("the shape {wanted:?} has -1 more than once"),
            -1 => Dim::Unknown,
            size => match usize::try_from(size) {
                Ok(size) => Dim::Fixed(size),
                Err(_) => bail!("the shape {wanted:?} has the size {size}, expected -1, 0 or more"),
            },
        });
    }
    // Sizes that are not known and were kept stand on both sides and say nothing about the others.
    let kept = |i: usize| (i + wanted.len()).checked_sub(from.len()).and_then(|i| wanted.get(i)) == Some(&0);
    let open = (0..from.len()).any(|i| from[i] == Dim::Unknown && !kept(i));
    let mismatch = || Error::new(format!("x {} does not have as many elements as the shape {wanted:?}", show(from)));
    let total = product(from).ok_or_else(mismatch)?;
    let given = product(&out).ok_or_else(mismatch)?;
    match rest {
        _ if open => {}
        None if total == given => {}
        Some(i) if given > 0 && total % given == 0 => out[i] = Dim::Fixed(total / given),
        Some(i) if given == 0 && total == 0 => out[i] = Dim::Fixed(0),
        _ => return Err(mismatch()),
    }
    Ok(out)
}

/// The product of the fixed sizes.
fn product(shape: &[Dim]) -> Option<usize> {
    shape.iter().filter_map(|dim| dim.fixed()).try_fold(1usize, usize::checked_mul)
}

/// See [`Op::doc`].
pub struct ReshapeLike;

impl Op for ReshapeLike {
    fn name(&self) -> &'static str {
        "reshape_like"
    }

    fn doc(&self) -> &'static str {
        "The elements of x under a shape made of pieces of other shapes: of each tensor in `ref_tensors` the sizes from \
         `begins` to `ends`, or to the last where `end_masks` is true."
    }

    fn params(&self) -> &'static [Param] {
        const {
            &[
                Param::new("x"),
                Param::new("ref_tensors").variadic(),
                Param::new("begins").constant().variadic(),
                Param::new("ends").constant().variadic(),
                Param::new("end_masks").constant().variadic(),
            ]
        }
    }

    fn since(&self) -> Opset {
        Opset::CoreML6
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let references = args.many("ref_tensors");
        let [begins, ends] = [scalars(args, "begins")?, scalars(args, "ends")?];
        let masks = scalars(args, "end_masks")?;
        if [begins.len(), ends.len(), masks.len()] != [references.len(); 3] {
            bail!("ref_tensors, begins, ends and end_masks differ in number");
        }
        let mut shape = Vec::new();
        for (i, reference) in references.iter().enumerate() {
            let from = &reference.tensor_type()?.shape;
            let bound = |at: i64| (if at < 0 { at.saturating_add(from.len() as i64) } else { at }).max(0) as usize;
            let end = if masks[i] != 0 { from.len() } else { bound(ends[i]).min(from.len()) };
            shape.extend_from_slice(from.get(bound(begins[i])..end).unwrap_or(&[]));
        }
        let x = args.ty("x")?;
        let open = |shape: &[Dim]| shape.contains(&Dim::Unknown);
        if !open(&x.shape) && !open(&shape) && product(&x.shape) != product(&shape) {
            bail!("x {} does not have as many elements as the shape {}", show(&x.shape), show(&shape));
        }
        result(x.dtype, shape)
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let shape = result_shape(self, args)?;
        Ok(vec![args.tensor("x")?.reshape(shape)?])
    }
}

/// The values of a variadic parameter of integers or truth values.
fn scalars(args: &Args, name: &str) -> Result<Vec<i64>> {
    let mut out = Vec::new();
    for arg in args.many(name) {
        out.extend(arg.tensor().and_then(|t| t.to_i64()).map_err(|e| e.at(format!("parameter `{name}`")))?);
    }
    Ok(out)
}

/// See [`Op::doc`].
pub struct ExpandDims;

impl Op for ExpandDims {
    fn name(&self) -> &'static str {
        "expand_dims"
    }

    fn doc(&self) -> &'static str {
        "x with axes of size 1 put in, at these places of the result; negative ones count from its back."
    }

    fn params(&self) -> &'static [Param] {
        const { &[Param::new("x"), Param::new("axes").constant()] }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let (x, given) = (args.ty("x")?, args.ints("axes")?);
        let places = axes(&given, x.shape.len() + given.len())?;
        let mut sizes = x.shape.iter();
        let shape = (0..x.shape.len() + given.len()).map(|i| match places.contains(&i) {
            true => Dim::Fixed(1),
            false => sizes.next().copied().unwrap_or(Dim::Fixed(1)),
        });
        result(x.dtype, shape.collect())
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let shape = result_shape(self, args)?;
        Ok(vec![args.tensor("x")?.reshape(shape)?])
    }
}

/// See [`Op::doc`].
pub struct Squeeze;

impl Op for Squeeze {
    fn name(&self) -> &'static str {
        "squeeze"
    }

    fn doc(&self) -> &'static str {
        "x without these axes, or without all if none are named, as far as they are known to have size 1; others stay."
    }

    fn params(&self) -> &'static [Param] {
        const { &[Param::new("x"), Param::new("axes").constant().optional()] }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let x = args.ty("x")?;
        let named = match args.opt_ints("axes")? {
            Some(given) => axes(&given, x.shape.len())?,
            None => (0..x.shape.len()).collect(),
        };
        let gone = |i: &usize| named.contains(i) && x.shape[*i] == Dim::Fixed(1);
        let kept = (0..x.shape.len()).filter(|i| !gone(i)).map(|i| x.shape[i]);
        result(x.dtype, kept.collect())
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let shape = result_shape(self, args)?;
        Ok(vec![args.tensor("x")?.reshape(shape)?])
    }
}

/// See [`Op::doc`].
pub struct Flatten2d;

impl Op for Flatten2d {
    fn name(&self) -> &'static str {
        "flatten2d"
    }

    fn doc(&self) -> &'static str {
        "x as a matrix: the axes before `axis` make its rows, the others its columns."
    }

    fn params(&self) -> &'static [Param] {
        const { &[Param::new("x"), Param::new("axis").constant().or_int(1)] }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let x = args.ty("x")?;
        // The axis may also lie behind the last one.
        let at = match args.int("axis")? {
            end if end == x.shape.len() as i64 => x.shape.len(),
            at => axis(at, x.shape.len())?,
        };
        let side = |sizes: &[Dim]| match sizes.contains(&Dim::Unknown) {
            true => Ok(Dim::Unknown),
            false => product(sizes).map(Dim::Fixed).ok_or_else(|| Error::new("x is too large")),
        };
        result(x.dtype, vec![side(&x.shape[..at])?, side(&x.shape[at..])?])
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let shape = result_shape(self, args)?;
        Ok(vec![args.tensor("x")?.reshape(shape)?])
    }
}

/// See [`Op::doc`].
pub struct Identity;

impl Op for Identity {
    fn name(&self) -> &'static str {
        "identity"
    }

    fn doc(&self) -> &'static str {
        "x itself."
    }

    fn params(&self) -> &'static [Param] {
        const { &[Param::new("x")] }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        Ok(vec![args.ty("x")?.clone().into()])
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        Ok(vec![args.tensor("x")?])
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::op::ArgInfo;
    use crate::{DType, Value};

    fn to(x: &[i64], shape: Vec<i32>) -> Result<Vec<i64>> {
        inferred(&Reshape, vec![("x", typed(DType::F16, x)), ("shape", vec![ArgInfo::known(shape.into())])])
    }

    #[test]
    fn zero_keeps_and_minus_one_takes_the_rest() {
        assert_eq!(to(&[2, 3, 4], vec![0, -1, 2]).unwrap(), [2, 6, 2]);
        assert_eq!(to(&[2, 3, 4], vec![-1]).unwrap(), [24]);
        assert_eq!(to(&[-1, 3, 4], vec![0, 6, -1]).unwrap(), [-1, 6, 2]);
        assert_eq!(to(&[-1, 3, 4], vec![-1, 12]).unwrap(), [-1, 12]);
        assert_eq!(to(&[-1, 8], vec![1, 5, 8]).unwrap(), [1, 5, 8]);
        assert_eq!(to(&[], vec![1, 1]).unwrap(), [1, 1]);
        // From iOS 17, aligned at the last axis: the example of coremltools' documentation.
        assert_eq!(to(&[2, 50], vec![1, 0, -1, 0]).unwrap(), [1, 1, 2, 50]);
        assert_eq!(to(&[5, -1, 3], vec![-1, 0]).unwrap(), [-1, 3]);
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let no = |x: &[i64], shape: Vec<i32>| to(x, shape).unwrap_err().to_string();
        assert_eq!(no(&[2, 3], vec![4, -1]), "x [2, 3] does not have as many elements as the shape [4, -1]");
        assert!(no(&[2, 3], vec![-1, -1]).contains("more than once"));
        assert!(no(&[2, 3], vec![-2, -3]).contains("-2"));
        assert!(to(&[2, 3], vec![i32::MAX, i32::MAX, i32::MAX, -1]).is_err());
    }

    #[test]
    fn a_shape_that_is_computed_gives_the_rank() {
        let shape = inferred(&Reshape, vec![("x", typed(DType::F16, &[2, -1])), ("shape", typed(DType::I32, &[3]))]);
        assert_eq!(shape.unwrap(), [-1, -1, -1]);
    }

    #[test]
    fn axes_of_size_one_come_and_go() {
        let x = run(&ExpandDims, vec![("x", iota(&[2, 3])), ("axes", vec![0, -1].into())]).unwrap();
        assert_eq!(x.shape(), [1, 2, 3, 1]);
        assert_eq!(run(&Squeeze, vec![("x", x.clone().into())]).unwrap().shape(), [2, 3]);
        assert_eq!(run(&Squeeze, vec![("x", x.clone().into()), ("axes", vec![-1].into())]).unwrap().shape(), [1, 2, 3]);
        // As PyTorch has it, an axis of another size stays.
        let others = run(&Squeeze, vec![("x", x.clone().into()), ("axes", vec![0, 1].into())]).unwrap();
        assert_eq!(others.shape(), [2, 3, 1]);
        assert_eq!(run(&Flatten2d, vec![("x", x.into()), ("axis", 2.into())]).unwrap().shape(), [2, 3]);
    }

    #[test]
    fn reshape_like_joins_pieces_of_shapes() {
        let info = |v: Value| ArgInfo::known(v);
        let args = Args::new(
            &ReshapeLike,
            vec![
                ("x", vec![info(iota(&[180]))]),
                ("ref_tensors", vec![info(iota(&[2, 3, 4])), info(iota(&[1, 5, 6]))]),
                ("begins", vec![info(0.into()), info(1.into())]),
                ("ends", vec![info(2.into()), info(0.into())]),
                ("end_masks", vec![info(false.into()), info(true.into())]),
            ],
        );
        assert_eq!(run_all(&ReshapeLike, &args).unwrap()[0].shape(), [2, 3, 5, 6]);
    }
}
