//! `slice_by_index`, `slice_by_size` and `slice_update`: a part of a tensor, read or written.

use super::layout::{View, result, result_shape};
use super::shape_rules::show;
use crate::{Args, Dim, Op, Opset, Param, Result, Tensor, ValueType, bail};

/// See [`Op::doc`].
pub struct SliceByIndex;

impl Op for SliceByIndex {
    fn name(&self) -> &'static str {
        "slice_by_index"
    }

    fn doc(&self) -> &'static str {
        "x[begin:end:stride] along each axis, as NumPy slices: negative indices count from the back, those outside are \
         held inside, a negative stride goes backwards. `begin_mask` and `end_mask` stand for a bound left out; \
         `squeeze_mask` takes the element at `begin` and drops the axis."
    }

    fn params(&self) -> &'static [Param] {
        const {
            &[
                Param::new("x"),
                Param::new("begin"),
                Param::new("end"),
                Param::new("stride").constant().optional(),
                Param::new("begin_mask").constant().optional(),
                Param::new("end_mask").constant().optional(),
                Param::new("squeeze_mask").constant().optional(),
            ]
        }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let x = args.ty("x")?;
        result(x.dtype, sliced(args, &x.shape)?)
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let shape = result_shape(self, args)?;
        let x = args.tensor("x")?;
        Ok(vec![view(args, x.shape())?.take_as(&x, &shape)?])
    }
}

/// See [`Op::doc`].
pub struct SliceUpdate;

impl Op for SliceUpdate {
    fn name(&self) -> &'static str {
        "slice_update"
    }

    fn doc(&self) -> &'static str {
        "x with the part that `slice_by_index` would read replaced by `update`, which has the shape of that part."
    }

    fn params(&self) -> &'static [Param] {
        const {
            &[
                Param::new("x"),
                Param::new("update"),
                Param::new("begin"),
                Param::new("end"),
                Param::new("stride").constant().optional(),
                Param::new("begin_mask").constant().optional(),
                Param::new("end_mask").constant().optional(),
                Param::new("squeeze_mask").constant().optional(),
            ]
        }
    }

    fn since(&self) -> Opset {
        Opset::CoreML8
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let (x, update) = (args.ty("x")?, args.ty("update")?);
        let part = sliced(args, &x.shape)?;
        let fits = part.len() == update.shape.len() && part.iter().zip(&update.shape).all(|(a, b)| a.fits(*b));
        if !fits || part.is_empty() {
            bail!("found an update {}, expected the shape {} of the slice", show(&update.shape), show(&part));
        }
        Ok(vec![x.clone().into()])
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        self.infer(args)?;
        let x = args.tensor("x")?;
        Ok(vec![view(args, x.shape())?.put(&x, &args.tensor("update")?)?])
    }
}

/// How one axis is sliced: bounds as far as they are given (`None`: left out) and known.
struct Along {
    begin: Bound,
    end: Bound,
    stride: i64,
    squeeze: bool,
}

#[derive(Clone, Copy)]
enum Bound {
    At(i64),
    LeftOut,
    NotKnown,
}

/// The slice along each axis of a tensor of this rank.
fn slices(args: &Args, rank: usize) -> Result<Vec<Along>> {
    let masks = |name: &str| -> Result<Vec<bool>> { sized(name, args.opt_bools(name)?, rank, false) };
    let (begin_mask, end_mask, squeeze) = (masks("begin_mask")?, masks("end_mask")?, masks("squeeze_mask")?);
    let stride = sized("stride", args.opt_ints("stride")?, rank, 1)?;
    let bounds = |name: &str, mask: &[bool]| -> Result<Vec<Bound>> {
        if !matches!(args.shape(name)?, [n] if n.fits(Dim::Fixed(rank))) {
            bail!("found `{name}` of type {}, expected one for each of {rank} axes", args.ty(name)?);
        }
        let given: Vec<Bound> = match args.known(name) {
            Some(values) => sized(name, Some(values.to_i64()?), rank, 0)?.into_iter().map(Bound::At).collect(),
            None => vec![Bound::NotKnown; rank],
        };
        Ok(given.into_iter().zip(mask).map(|(at, &mask)| if mask { Bound::LeftOut } else { at }).collect())
    };
    let (begin, end) = (bounds("begin", &begin_mask)?, bounds("end", &end_mask)?);
    let mut out = Vec::with_capacity(rank);
    for i in 0..rank {
        if stride[i] == 0 {
            bail!("the stride of axis {i} is 0, expected another number");
        }
        out.push(Along { begin: begin[i], end: end[i], stride: stride[i], squeeze: squeeze[i] });
    }
    Ok(out)
}

/// One value for each axis: as given, or the default.
fn sized<T: Clone>(name: &str, given: Option<Vec<T>>, rank: usize, default: T) -> Result<Vec<T>> {
    let values = given.unwrap_or_else(|| vec![default; rank]);
    if values.len() != rank {
        bail!("`{name}` has {} values, expected one for each of {rank} axes", values.len());
    }
    Ok(values)
}

impl Along {
    /// First index and number of elements along an axis of this size, or `None` if a bound is not known.
    fn resolve(&self, size: usize) -> Result<Option<(usize, usize)>> {
        let n = size as i64;
        let from_front = |at: i64| if at < 0 { at.saturating_add(n) } else { at };
        if self.squeeze {
            return match self.begin {
                Bound::NotKnown => Ok(None),
                Bound::LeftOut if size > 0 => Ok(Some((0, 1))),
                Bound::At(at) if (0..n).contains(&from_front(at)) => Ok(Some((from_front(at) as usize, 1))),
                Bound::At(at) => bail!("index {at} is not one of an axis of {size}"),
                Bound::LeftOut => bail!("an axis of 0 has no first element"),
            };
        }
        // Going backwards, the bounds lie one lower: the first element may be the last, and the end is before the first.
        let (low, high) = if self.stride > 0 { (0, n) } else { (-1, n - 1) };
        let resolved = |bound, left_out: i64| match bound {
            Bound::At(at) => Some(from_front(at).clamp(low, high)),
            Bound::LeftOut => Some(left_out),
            Bound::NotKnown => None,
        };
        let (first, last) = if self.stride > 0 { (low, high) } else { (high, low) };
        let (Some(begin), Some(end)) = (resolved(self.begin, first), resolved(self.end, last)) else {
            return Ok(None);
        };
        let distance = if self.stride > 0 { end - begin } else { begin - end };
        let len = if distance <= 0 { 0 } else { (distance as u64).div_ceil(self.stride.unsigned_abs()) as usize };
        Ok(Some((begin.max(0) as usize, len)))
    }

    /// The number of elements along an axis whose size is not known, where the bounds say it all the same: they are
    /// taken to lie inside, as coremltools takes them. Where they do not the result is shorter than declared, which is
    /// an error of the call.
    fn of_unknown(&self) -> Dim {
        match (self.begin, self.end) {
            (Bound::At(begin), Bound::At(end)) if (begin < 0) == (end < 0) => {
                match end.saturating_sub(begin).checked_mul(self.stride.signum()) {
                    Some(distance) if distance <= 0 => Dim::Fixed(0),
                    Some(distance) if distance <= self.stride.saturating_abs() => Dim::Fixed(1),
                    _ => Dim::Unknown,
                }
            }
            (Bound::At(-1), Bound::LeftOut) if self.stride > 0 => Dim::Fixed(1),
            (Bound::At(0), Bound::LeftOut) if self.stride < 0 => Dim::Fixed(1),
            _ => Dim::Unknown,
        }
    }
}

/// The shape of the slice.
fn sliced(args: &Args, shape: &[Dim]) -> Result<Vec<Dim>> {
    let mut out = Vec::with_capacity(shape.len());
    for (i, along) in slices(args, shape.len())?.iter().enumerate() {
        let len = match shape[i] {
            Dim::Fixed(n) => {
                along.resolve(n).map_err(|e| e.at(format!("axis {i}")))?.map_or(Dim::Unknown, |s| s.1.into())
            }
            Dim::Unknown => along.of_unknown(),
        };
        if !along.squeeze {
            out.push(len);
        }
    }
    Ok(out)
}

/// The elements of the slice, dropped axes as axes of size 1.
fn view(args: &Args, shape: &[usize]) -> Result<View> {
    let mut view = View::whole(shape);
    for (i, along) in slices(args, shape.len())?.iter().enumerate() {
        let Some((first, len)) = along.resolve(shape[i])? else { bail!("the bounds of axis {i} are not known") };
        let step = view.axes[i].1;
        // A stride that leaves the axis at once is not used again, and must not overflow.
        let stride = if len > 1 { along.stride as isize } else { 1 };
        view.first += first.min(shape[i]) * step.unsigned_abs();
        view.axes[i] = (len, step * stride);
    }
    Ok(view)
}

/// See [`Op::doc`].
pub struct SliceBySize;

impl Op for SliceBySize {
    fn name(&self) -> &'static str {
        "slice_by_size"
    }

    fn doc(&self) -> &'static str {
        "The part of x that begins at `begin` and has `size` elements along each axis; a size of -1 takes the rest."
    }

    fn params(&self) -> &'static [Param] {
        const { &[Param::new("x"), Param::new("begin"), Param::new("size")] }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let x = args.ty("x")?;
        let rank = x.shape.len();
        for name in ["begin", "size"] {
            if !matches!(args.shape(name)?, [n] if n.fits(Dim::Fixed(rank))) {
                bail!("found `{name}` of type {}, expected one for each of {rank} axes", args.ty(name)?);
            }
        }
        let begin = args.known("begin").map(|t| sized("begin", Some(t.to_i64()?), rank, 0)).transpose()?;
        let Some(size) = args.known("size") else { return result(x.dtype, vec![Dim::Unknown; rank]) };
        let size = sized("size", Some(size.to_i64()?), rank, 0)?;
        let mut shape = Vec::with_capacity(rank);
        for i in 0..rank {
            let begin = begin.as_ref().map(|begin| begin[i]);
            shape.push(part(x.shape[i], begin, size[i]).map_err(|e| e.at(format!("axis {i}")))?);
        }
        result(x.dtype, shape)
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let shape = result_shape(self, args)?;
        let (x, begin) = (args.tensor("x")?, args.ints("begin")?);
        let mut view = View::whole(x.shape());
        for (i, &len) in shape.iter().enumerate() {
            let first = if begin[i] < 0 { begin[i] + x.shape()[i] as i64 } else { begin[i] };
            view.first += first as usize * view.axes[i].1.unsigned_abs();
            view.axes[i].0 = len;
        }
        Ok(vec![view.take(&x)?])
    }
}

/// The size of a part of an axis; `begin` may be counted from the back.
fn part(axis: Dim, begin: Option<i64>, size: i64) -> Result<Dim> {
    let first = match (axis, begin) {
        (Dim::Fixed(n), Some(begin)) => {
            let first = if begin < 0 { begin.saturating_add(n as i64) } else { begin };
            match usize::try_from(first) {
                Ok(first) if first <= n => Some((first, n)),
                _ => bail!("it begins at {begin}, which is not within {n}"),
            }
        }
        _ => None,
    };
    match (usize::try_from(size), first) {
        (Err(_), Some((first, n))) if size == -1 => Ok(Dim::Fixed(n - first)),
        (Err(_), None) if size == -1 => Ok(Dim::Unknown),
        (Ok(size), Some((first, n))) if size > n - first => bail!("elements {first} to {first}+{size} leave {n}"),
        (Ok(size), _) => Ok(Dim::Fixed(size)),
        _ => bail!("found a size of {size}, expected -1 or more"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::op::ArgInfo;
    use crate::{DType, Value};

    fn slice(n: usize, begin: i32, end: i32, stride: i32, masks: [bool; 3]) -> Result<Tensor> {
        let [begin_mask, end_mask, squeeze] = masks.map(|mask| bools(&[mask]));
        let values: Vec<(&str, Value)> = vec![
            ("x", iota(&[n])),
            ("begin", vec![begin].into()),
            ("end", vec![end].into()),
            ("stride", vec![stride].into()),
            ("begin_mask", begin_mask),
            ("end_mask", end_mask),
            ("squeeze_mask", squeeze),
        ];
        run(&SliceByIndex, values)
    }

    /// Expected values are those of NumPy's `np.arange(5)[begin:end:stride]`.
    #[test]
    fn slices_are_numpys() {
        let no = [false; 3];
        let is = |begin, end, stride, masks, expected: &[f32]| {
            let y = slice(5, begin, end, stride, masks).unwrap();
            assert_eq!(y.to_f32().unwrap(), expected, "{begin}:{end}:{stride} {masks:?}");
        };
        is(1, 4, 1, no, &[1.0, 2.0, 3.0]);
        is(-3, -1, 1, no, &[2.0, 3.0]);
        is(-9, 9, 2, no, &[0.0, 2.0, 4.0]);
        is(4, 0, -2, no, &[4.0, 2.0]);
        is(9, -9, -2, no, &[4.0, 2.0, 0.0]);
        is(3, 1, 1, no, &[]);
        is(7, 9, 1, no, &[]);
        is(0, 5, i32::MAX, no, &[0.0]);
        is(0, 5, i32::MIN, no, &[]);
        is(3, 0, -1, [true, false, false], &[4.0, 3.0, 2.0, 1.0]);
        is(3, 0, -1, [false, true, false], &[3.0, 2.0, 1.0, 0.0]);
        is(3, 1, -3, [true, true, false], &[4.0, 1.0]);
        is(-2, 0, 7, [false, true, true], &[3.0]);
        is(3, 0, 1, [true, false, true], &[0.0]);
    }

    #[test]
    fn impossible_slices_are_refused() {
        assert!(slice(5, 0, 5, 0, [false; 3]).is_err());
        assert!(slice(5, 5, 0, 1, [false, false, true]).is_err());
        assert!(slice(0, 0, 0, 1, [true, false, true]).is_err());
        assert!(slice(0, 3, -3, -1, [false; 3]).unwrap().is_empty());
    }

    #[test]
    fn an_index_that_is_computed_leaves_its_size_open() {
        let known = |v: Vec<i32>| vec![ArgInfo::known(v.into())];
        let shape =
            |x: &[i64], begin, end| inferred(&SliceByIndex, vec![("x", x_of(x)), ("begin", begin), ("end", end)]);
        let x_of_none: Vec<ArgInfo> = typed(DType::I32, &[2]);
        assert_eq!(shape(&[4, 8], x_of_none, known(vec![2, 8])).unwrap(), [-1, -1]);
        assert_eq!(shape(&[-1, 8], known(vec![0, 0]), known(vec![1, -1])).unwrap(), [1, 7]);
        assert_eq!(shape(&[-1, -1], known(vec![-1, 0]), known(vec![-3, 3])).unwrap(), [0, -1]);
        fn x_of(shape: &[i64]) -> Vec<ArgInfo> {
            typed(DType::F16, shape)
        }
    }

    #[test]
    fn an_update_goes_where_the_slice_reads() {
        let update = |shape: &[usize], end: i32| {
            let values: Vec<(&str, Value)> = vec![
                ("x", iota(&[2, 4])),
                ("update", f32s(shape, &vec![9.0; shape.iter().product()])),
                ("begin", vec![0, 1].into()),
                ("end", vec![0, end].into()),
                ("stride", vec![1, 2].into()),
                ("end_mask", bools(&[true, false])),
            ];
            run(&SliceUpdate, values)
        };
        assert_eq!(update(&[2, 2], 4).unwrap().to_f32().unwrap(), [0.0, 9.0, 2.0, 9.0, 4.0, 9.0, 6.0, 9.0]);
        // A cache that is full: the slice is cut at the end, so that the update does not fit.
        let error = update(&[2, 3], 6).unwrap_err().to_string();
        assert_eq!(error, "found an update [2, 3], expected the shape [2, 2] of the slice");
    }

    #[test]
    fn a_part_by_size_may_take_the_rest() {
        let part = |begin: Vec<i32>, size: Vec<i32>| {
            run(&SliceBySize, vec![("x", iota(&[2, 3])), ("begin", begin.into()), ("size", size.into())])
        };
        assert_eq!(part(vec![0, 1], vec![2, -1]).unwrap().to_f32().unwrap(), [1.0, 2.0, 4.0, 5.0]);
        assert_eq!(part(vec![-1, -2], vec![1, 1]).unwrap().to_f32().unwrap(), [4.0]);
        assert!(part(vec![0, 1], vec![2, 3]).is_err() && part(vec![3, 0], vec![0, 0]).is_err());
        assert!(part(vec![0, i32::MIN], vec![2, 1]).is_err() && part(vec![0, 0], vec![2, -2]).is_err());
    }
}
