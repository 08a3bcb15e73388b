//! `gather`, `gather_along_axis` and `gather_nd`: elements at computed places.

use super::elements::room;
use super::layout::{Cells, count, from_cells, result, result_shape, steps};
use super::shape_rules::{axis, merge, show};
use crate::{Args, Dim, Op, Param, Result, Tensor, ValueType, bail};

/// See [`Op::doc`].
pub struct Gather;

impl Op for Gather {
    fn name(&self) -> &'static str {
        "gather"
    }

    fn doc(&self) -> &'static str {
        "The slices of x at `indices` along an axis. x: D, indices: N, the result is D[..axis] + N[batch_dims..] + \
         D[axis+1..]; the first `batch_dims` axes of x and indices are the same. Negative indices count from the back; \
         one outside is an error, whatever `validate_indices` says."
    }

    fn params(&self) -> &'static [Param] {
        const {
            &[
                Param::new("x"),
                Param::new("indices"),
                Param::new("axis").constant().or_int(0),
                Param::new("batch_dims").constant().or_int(0),
                Param::new("validate_indices").constant().or_bool(false),
            ]
        }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let (x, indices) = (args.ty("x")?, integers(args, "indices")?);
        let along = axis(args.int("axis")?, x.shape.len())?;
        let batch = batch_dims(args, along.min(indices.len()))?;
        same_batch(&x.shape, indices, batch)?;
        result(x.dtype, [&x.shape[..along], &indices[batch..], &x.shape[along + 1..]].concat())
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let shape = result_shape(self, args)?;
        let (x, indices) = (args.tensor("x")?, args.tensor("indices")?);
        let along = axis(args.int("axis")?, x.rank())?;
        let batch = batch_dims(args, along)?;
        let (size, inner) = (x.shape()[along], count(&x.shape()[along + 1..])?);
        let (rows, middle) = (count(&x.shape()[..along])?, count(&x.shape()[batch..along])?);
        let per_batch = count(&indices.shape()[batch..])?;
        let places = within(&indices.to_i64()?, size)?;
        let cells = Cells::of(&x)?;
        let mut out = room(count(&shape)?.saturating_mul(cells.width))?;
        for i in 0..if inner > 0 { rows } else { 0 } {
            let places = &places[i / middle * per_batch..][..per_batch];
            for place in places {
                out.extend_from_slice(cells.run((i * size + place) * inner, inner)?);
            }
        }
        Ok(vec![from_cells(x.dtype(), &shape, out)?])
    }
}

/// The shape of an argument of integers.
pub fn integers<'a>(args: &'a Args, name: &str) -> Result<&'a [Dim]> {
    let ty = args.ty(name)?;
    if !ty.dtype.is_int() {
        bail!("found {name} of type {ty}, expected integers");
    }
    Ok(&ty.shape)
}

/// The number of batch axes, at most as many as both have before the axis.
fn batch_dims(args: &Args, most: usize) -> Result<usize> {
    match usize::try_from(args.int("batch_dims")?) {
        Ok(batch) if batch <= most => Ok(batch),
        _ => bail!("found batch_dims {}, expected 0 to {most}", args.int("batch_dims")?),
    }
}

/// Refuses batch axes that differ.
fn same_batch(x: &[Dim], indices: &[Dim], batch: usize) -> Result<()> {
    for (i, (a, b)) in x.iter().zip(indices).take(batch).enumerate() {
        merge(*a, *b).map_err(|e| e.at(format!("batch axis {i}")))?;
    }
    Ok(())
}

/// Indices counted from the front; an error if one is outside of an axis of this size.
pub fn within(indices: &[i64], size: usize) -> Result<Vec<usize>> {
    let mut out = room(indices.len())?;
    for &index in indices {
        out.push(place(index, size)?);
    }
    Ok(out)
}

fn place(index: i64, size: usize) -> Result<usize> {
    let from_front = if index < 0 { index.saturating_add(size as i64) } else { index };
    match usize::try_from(from_front) {
        Ok(place) if place < size => Ok(place),
        _ => bail!("found the index {index}, expected one of an axis of {size}"),
    }
}

/// See [`Op::doc`].
pub struct GatherAlongAxis;

impl Op for GatherAlongAxis {
    fn name(&self) -> &'static str {
        "gather_along_axis"
    }

    fn doc(&self) -> &'static str {
        "At each place of the result, which has the shape of `indices`, the element of x whose place differs only along \
         the axis, where it is the index. Negative indices count from the back; one outside is an error."
    }

    fn params(&self) -> &'static [Param] {
        const {
            &[
                Param::new("x"),
                Param::new("indices"),
                Param::new("axis").constant().or_int(0),
                Param::new("validate_indices").constant().or_bool(false),
            ]
        }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let (x, indices) = (args.ty("x")?, integers(args, "indices")?);
        same_but(&x.shape, indices, axis(args.int("axis")?, x.shape.len())?)?;
        result(x.dtype, indices.to_vec())
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let shape = result_shape(self, args)?;
        let x = args.tensor("x")?;
        let offsets = offsets_along(x.shape(), &args.tensor("indices")?, axis(args.int("axis")?, x.rank())?)?;
        let cells = Cells::of(&x)?;
        let mut out = room(offsets.len().saturating_mul(cells.width))?;
        for offset in offsets {
            out.extend_from_slice(cells.run(offset, 1)?);
        }
        Ok(vec![from_cells(x.dtype(), &shape, out)?])
    }
}

/// Refuses shapes that differ on another axis than this.
pub fn same_but(x: &[Dim], indices: &[Dim], along: usize) -> Result<()> {
    let fits = |i: usize| i == along || x[i].fits(indices[i]);
    if x.len() != indices.len() || !(0..x.len()).all(fits) {
        bail!("{} and indices {} differ on another axis than {along}", show(x), show(indices));
    }
    Ok(())
}

/// For each of `indices`, the offset of the element of a tensor of `shape` that it names along an axis.
pub fn offsets_along(shape: &[usize], indices: &Tensor, along: usize) -> Result<Vec<usize>> {
    let inner = count(&shape[along + 1..])?;
    let (size, row) = (shape[along], indices.shape()[along] * inner);
    let mut out = room(indices.len())?;
    for (i, place) in within(&indices.to_i64()?, size)?.into_iter().enumerate() {
        out.push((i / row * size + place) * inner + i % inner);
    }
    Ok(out)
}

/// See [`Op::doc`].
pub struct GatherNd;

impl Op for GatherNd {
    fn name(&self) -> &'static str {
        "gather_nd"
    }

    fn doc(&self) -> &'static str {
        "The slices of x at places that are the rows of `indices`. x: D, indices: N, the result is N[..-1] + \
         D[batch_dims + N[-1]..]; the first `batch_dims` axes of x and indices are the same. Negative indices count \
         from the back; one outside is an error."
    }

    fn params(&self) -> &'static [Param] {
        const {
            &[
                Param::new("x"),
                Param::new("indices"),
                Param::new("batch_dims").constant().or_int(0),
                Param::new("validate_indices").constant().or_bool(false),
            ]
        }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let (x, indices) = (args.ty("x")?, integers(args, "indices")?);
        let depth = depth(indices)?;
        let batch = batch_dims(args, x.shape.len().min(indices.len() - 1))?;
        same_batch(&x.shape, indices, batch)?;
        let Some(rest) = x.shape.get(batch..).and_then(|rest| rest.get(depth..)) else {
            bail!("indices {} name more axes than x {} has", show(indices), show(&x.shape));
        };
        result(x.dtype, [&indices[..indices.len() - 1], rest].concat())
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let shape = result_shape(self, args)?;
        let (x, indices) = (args.tensor("x")?, args.tensor("indices")?);
        let batch = batch_dims(args, x.rank())?;
        let (offsets, len) = offsets_nd(x.shape(), &indices, batch)?;
        let cells = Cells::of(&x)?;
        let mut out = room(count(&shape)?.saturating_mul(cells.width))?;
        for offset in offsets {
            out.extend_from_slice(cells.run(offset, len)?);
        }
        Ok(vec![from_cells(x.dtype(), &shape, out)?])
    }
}

/// How many axes a row of indices names.
pub fn depth(indices: &[Dim]) -> Result<usize> {
    match indices.last() {
        Some(Dim::Fixed(depth)) => Ok(*depth),
        _ => bail!("found indices {}, expected a last axis of known size", show(indices)),
    }
}

/// For each row of `indices`, where the slice of a tensor of `shape` begins that it names, and the length of a slice.
pub fn offsets_nd(shape: &[usize], indices: &Tensor, batch: usize) -> Result<(Vec<usize>, usize)> {
    let depth = indices.shape().last().copied().unwrap_or(0);
    let len = count(shape.get(batch + depth..).unwrap_or(&[]))?;
    let rows = count(&indices.shape()[..indices.rank().saturating_sub(1)])?;
    let rows_per_batch = rows / count(&shape[..batch])?.max(1);
    let per_batch = count(&shape[batch..])?;
    let (steps, values) = (steps(shape), indices.to_i64()?);
    let mut out = room(rows)?;
    for row in 0..rows {
        let mut offset = row / rows_per_batch.max(1) * per_batch;
        for (i, &index) in values[row * depth..][..depth].iter().enumerate() {
            offset += place(index, shape[batch + i])? * steps[batch + i].unsigned_abs();
        }
        out.push(offset);
    }
    Ok((out, len))
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::{DType, Value};

    fn ints(shape: &[usize], values: &[i32]) -> Value {
        Tensor::from_vec(shape, values.to_vec()).unwrap().into()
    }

    #[test]
    fn slices_come_along_the_axis() {
        let gather = |indices: Value, axis: i32| {
            run(&Gather, vec![("x", iota(&[2, 3])), ("indices", indices), ("axis", axis.into())])
        };
        let y = gather(ints(&[2, 2], &[0, -1, 1, 1]), 1).unwrap();
        assert_eq!((y.shape(), y.to_f32().unwrap()), (&[2, 2, 2][..], vec![0., 2., 1., 1., 3., 5., 4., 4.]));
        let y = gather(1.into(), -1).unwrap();
        assert_eq!((y.shape(), y.to_f32().unwrap()), (&[2][..], vec![1.0, 4.0]));
        assert_eq!(
            gather(ints(&[1], &[3]), 1).unwrap_err().to_string(),
            "found the index 3, expected one of an axis of 3"
        );
        assert!(gather(ints(&[1], &[-4]), 1).is_err() && gather(f32s(&[1], &[0.0]), 1).is_err());
    }

    /// Expected values: `tf.gather(tf.reshape(tf.range(12.), [2, 2, 3]), [[2, 0], [1, 1]], axis=2, batch_dims=1)`,
    /// which for each batch b is x[b][:, indices[b]].
    #[test]
    fn each_batch_has_its_indices() {
        let y = run(
            &Gather,
            vec![
                ("x", iota(&[2, 2, 3])),
                ("indices", Tensor::from_vec([2, 2], vec![2u16, 0, 1, 1]).unwrap().into()),
                ("axis", 2.into()),
                ("batch_dims", 1.into()),
            ],
        )
        .unwrap();
        assert_eq!((y.shape(), y.to_f32().unwrap()), (&[2, 2, 2][..], vec![2., 0., 5., 3., 7., 7., 10., 10.]));
        let entries = vec![("x", typed(DType::F16, &[2, 5])), ("indices", typed(DType::I32, &[-1, 3]))];
        assert_eq!(inferred(&Gather, entries).unwrap(), [-1, 3, 5]);
    }

    #[test]
    fn elements_come_from_their_own_row() {
        let y = run(
            &GatherAlongAxis,
            vec![("x", iota(&[2, 3])), ("indices", ints(&[2, 2], &[2, 0, -1, 1])), ("axis", 1.into())],
        )
        .unwrap();
        assert_eq!(y.to_f32().unwrap(), [2.0, 0.0, 5.0, 4.0]);
        let y = run(&GatherAlongAxis, vec![("x", iota(&[2, 3])), ("indices", ints(&[1, 3], &[1, 0, 1]))]).unwrap();
        assert_eq!(y.to_f32().unwrap(), [3.0, 1.0, 5.0]);
        assert!(run(&GatherAlongAxis, vec![("x", iota(&[2, 3])), ("indices", ints(&[1, 2], &[1, 0]))]).is_err());
    }

    #[test]
    fn rows_of_indices_name_places() {
        let nd = |indices: Value, batch: i32| {
            run(&GatherNd, vec![("x", iota(&[2, 2, 3])), ("indices", indices), ("batch_dims", batch.into())])
        };
        assert_eq!(nd(ints(&[2, 2], &[1, 0, 0, 1]), 0).unwrap().to_f32().unwrap(), [6., 7., 8., 3., 4., 5.]);
        assert_eq!(nd(ints(&[2, 3], &[1, 1, 2, 0, 0, 1]), 0).unwrap().to_f32().unwrap(), [11.0, 1.0]);
        assert_eq!(nd(ints(&[2, 1], &[1, 0]), 1).unwrap().to_f32().unwrap(), [3., 4., 5., 6., 7., 8.]);
        assert!(nd(ints(&[1, 4], &[0; 4]), 0).is_err() && nd(ints(&[1, 2], &[0, 2]), 0).is_err());
    }
}
