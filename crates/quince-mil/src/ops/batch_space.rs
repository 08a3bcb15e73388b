//! `space_to_batch`, `batch_to_space` and `reverse_sequence`: pieces of tensors moved along and between axes.

use super::layout::{View, count, filled, result, result_shape};
use super::shape_rules::{axis, show};
use super::window::sizes;
use crate::op::FLOAT;
use crate::{Args, DType, Dim, Op, Param, Result, Tensor, ValueType, bail};

/// See [`Op::doc`].
pub struct SpaceToBatch;

impl Op for SpaceToBatch {
    fn name(&self) -> &'static str {
        "space_to_batch"
    }

    fn doc(&self) -> &'static str {
        "Images x, [n, C, H, W], padded with zeros as `paddings`, [2, 2], says, and cut into as many smaller ones as \
         `block_shape` (a, b) has pixels: [a·b·n, C, H/a, W/b], the pixels of each lying a rows and b columns apart."
    }

    fn params(&self) -> &'static [Param] {
        const { &[Param::new("x").types(FLOAT), Param::new("block_shape").constant(), Param::new("paddings").constant()] }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let (x, [a, b], [top, bottom, left, right]) = parameters(args, "paddings")?;
        let [n, channels, height, width] = image(args)?;
        let divided = |size: Dim, before: usize, after: usize, by: usize| match size {
            Dim::Fixed(size) if (size + before + after).is_multiple_of(by) => {
                Ok(Dim::Fixed((size + before + after) / by))
            }
            Dim::Fixed(size) => bail!("found an axis of {size} + {before} + {after}, expected a multiple of {by}"),
            Dim::Unknown => Ok(Dim::Unknown),
        };
        let n = n.fixed().map_or(Dim::Unknown, |n| Dim::Fixed(n.saturating_mul(a).saturating_mul(b)));
        result(x, vec![n, channels, divided(height, top, bottom, a)?, divided(width, left, right, b)?])
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let shape = result_shape(self, args)?;
        let (_, [a, b], [top, bottom, left, right]) = parameters(args, "paddings")?;
        let x = args.tensor("x")?;
        let &[n, channels, height, width] = x.shape() else { bail!("found x {x:?}, expected [n, C, H, W]") };
        let (rows, columns) = (height + top + bottom, width + left + right);
        let wide = [n, channels, rows, columns];
        let mut middle = View::whole(&wide);
        middle.first = top * columns + left;
        (middle.axes[2].0, middle.axes[3].0) = (height, width);
        let zeros = Tensor::from_f64(x.dtype(), wide, filled(count(&wide)?, 0.0)?)?;
        let padded = middle.put(&zeros, &x)?;
        let [image, plane] = [channels * rows * columns, rows * columns].map(|step| step as isize);
        let axes = vec![
            (a, columns as isize),
            (b, 1),
            (n, image),
            (channels, plane),
            (rows / a, (a * columns) as isize),
            (columns / b, b as isize),
        ];
        Ok(vec![View { first: 0, axes }.take_as(&padded, &shape)?])
    }
}

/// See [`Op::doc`].
pub struct BatchToSpace;

impl Op for BatchToSpace {
    fn name(&self) -> &'static str {
        "batch_to_space"
    }

    fn doc(&self) -> &'static str {
        "What `space_to_batch` undoes: images x, [a·b·n, C, H, W], put together to [n, C, H·a, W·b], `block_shape` (a, b), \
         without the first and last rows and columns that `crops`, [2, 2], counts."
    }

    fn params(&self) -> &'static [Param] {
        const { &[Param::new("x").types(FLOAT), Param::new("block_shape").constant(), Param::new("crops").constant()] }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let (x, [a, b], [top, bottom, left, right]) = parameters(args, "crops")?;
        let [n, channels, height, width] = image(args)?;
        let n = match n {
            Dim::Fixed(n) if n.is_multiple_of(a * b) => Dim::Fixed(n / (a * b)),
            Dim::Fixed(n) => bail!("found {n} images, expected a multiple of {a} · {b}"),
            Dim::Unknown => Dim::Unknown,
        };
        let cropped = |size: Dim, by: usize, before: usize, after: usize| match size {
            Dim::Fixed(size) => match size.saturating_mul(by).checked_sub(before + after) {
                Some(left) => Ok(Dim::Fixed(left)),
                None => bail!("found crops of {before} and {after} on an axis of {size} · {by}"),
            },
            Dim::Unknown => Ok(Dim::Unknown),
        };
        result(x, vec![n, channels, cropped(height, a, top, bottom)?, cropped(width, b, left, right)?])
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let shape = result_shape(self, args)?;
        let (_, [a, b], [top, _, left, _]) = parameters(args, "crops")?;
        let x = args.tensor("x")?;
        let &[images, channels, height, width] = x.shape() else { bail!("found x {x:?}, expected [n, C, H, W]") };
        let n = images / (a * b);
        let wide = [n, channels, height * a, width * b];
        let [image, plane] = [channels * height * width, height * width].map(|step| step as isize);
        let axes = vec![
            (n, image),
            (channels, plane),
            (height, width as isize),
            (a, (b * n) as isize * image),
            (width, 1),
            (b, n as isize * image),
        ];
        let whole = View { first: 0, axes }.take_as(&x, &wide)?;
        let mut view = View::whole(&wide);
        view.first = if count(&shape)? == 0 { 0 } else { top * width * b + left };
        (view.axes[2].0, view.axes[3].0) = (shape[2], shape[3]);
        Ok(vec![view.take(&whole)?])
    }
}

/// The element type of x, the block, and the numbers of paddings or crops.
fn parameters(args: &Args, name: &str) -> Result<(DType, [usize; 2], [usize; 4])> {
    let block = sizes(args, "block_shape", 2, 1)?;
    let borders = sizes(args, name, 4, 0)?;
    match (&block[..], &borders[..]) {
        (&[a, b], &[top, bottom, left, right]) if a > 0 && b > 0 && a.checked_mul(b).is_some() => {
            Ok((args.dtype("x")?, [a, b], [top, bottom, left, right]))
        }
        _ => bail!("found block_shape {block:?}, expected two numbers above 0"),
    }
}

fn image(args: &Args) -> Result<[Dim; 4]> {
    match *args.shape("x")? {
        [n, channels, height, width] => Ok([n, channels, height, width]),
        ref other => bail!("found x {}, expected [n, C, H, W]", show(other)),
    }
}

/// See [`Op::doc`].
pub struct ReverseSequence;

impl Op for ReverseSequence {
    fn name(&self) -> &'static str {
        "reverse_sequence"
    }

    fn doc(&self) -> &'static str {
        "x with the first `lengths[i]` elements along `seq_axis` in reverse order, i the place along `batch_axis`; \
         lengths: [x.shape[batch_axis]]."
    }

    fn params(&self) -> &'static [Param] {
        const {
            &[
                Param::new("x"),
                Param::new("lengths"),
                Param::new("seq_axis").constant().or_int(0),
                Param::new("batch_axis").constant().or_int(0),
            ]
        }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let (x, lengths) = (args.ty("x")?, args.shape("lengths")?);
        let [_, batch] = sequence_axes(args, x.shape.len())?;
        if !args.dtype("lengths")?.is_int() || !matches!(lengths, [n] if n.fits(x.shape[batch])) {
            bail!("found lengths {} for x {}, expected one for each place", args.ty("lengths")?, show(&x.shape));
        }
        Ok(vec![x.clone().into()])
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        self.infer(args)?;
        let x = args.tensor("x")?;
        let [sequence, batch] = sequence_axes(args, x.rank())?;
        let mut y = x.clone();
        for (i, length) in args.ints("lengths")?.into_iter().enumerate() {
            let size = x.shape()[sequence];
            let Some(length) = usize::try_from(length).ok().filter(|&length| length <= size) else {
                bail!("found the length {length}, expected 0 to {size}");
            };
            if length == 0 || x.is_empty() {
                continue;
            }
            let mut to = View::whole(x.shape());
            to.first = i * to.axes[batch].1.unsigned_abs();
            to.axes[batch].0 = 1;
            to.axes[sequence].0 = length;
            let mut from = to.clone();
            from.first += (length - 1) * from.axes[sequence].1.unsigned_abs();
            from.axes[sequence].1 = -from.axes[sequence].1;
            y = to.put(&y, &from.take(&x)?)?;
        }
        Ok(vec![y])
    }
}

fn sequence_axes(args: &Args, rank: usize) -> Result<[usize; 2]> {
    let axes = [axis(args.int("seq_axis")?, rank)?, axis(args.int("batch_axis")?, rank)?];
    if axes[0] == axes[1] {
        bail!("found {} as seq_axis and batch_axis, expected two axes", axes[0]);
    }
    Ok(axes)
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::Value;

    fn moved(op: &dyn Op, x: Value, borders: (&'static str, [i32; 4])) -> Result<Tensor> {
        let borders = (borders.0, Tensor::from_vec([2, 2], borders.1.to_vec()).unwrap().into());
        run(op, vec![("x", x), ("block_shape", [2, 2].into()), borders])
    }

    /// The first values are those of TensorFlow's documentation of `space_to_batch`.
    #[test]
    fn images_are_cut_and_put_together() {
        let x = || f32s(&[1, 1, 4, 4], &(1..17).map(|i| i as f32).collect::<Vec<_>>());
        let cut = moved(&SpaceToBatch, x(), ("paddings", [0; 4])).unwrap();
        assert_eq!(cut.shape(), [4, 1, 2, 2]);
        let expected = [1, 3, 9, 11, 2, 4, 10, 12, 5, 7, 13, 15, 6, 8, 14, 16].map(|i| i as f32);
        assert_eq!(cut.to_f32().unwrap(), expected);
        let padded = moved(&SpaceToBatch, iota(&[2, 3, 3, 2]), ("paddings", [1, 2, 2, 0])).unwrap();
        assert_eq!(padded.shape(), [8, 3, 3, 2]);
        let back = moved(&BatchToSpace, padded.into(), ("crops", [1, 2, 2, 0])).unwrap();
        assert_eq!((back.shape(), back.to_f32().unwrap()), (&[2, 3, 3, 2][..], (0..36).map(|i| i as f32).collect()));
        assert!(moved(&SpaceToBatch, x(), ("paddings", [1, 0, 0, 0])).is_err());
        assert!(moved(&BatchToSpace, x(), ("crops", [0; 4])).is_err());
        assert!(moved(&BatchToSpace, iota(&[4, 1, 1, 1]), ("crops", [2, 1, 0, 0])).is_err());
    }

    #[test]
    fn beginnings_are_reversed() {
        let reverse = |lengths: [i32; 2], sequence: i32, batch: i32| {
            let axes = [("seq_axis", sequence.into()), ("batch_axis", batch.into())];
            run(&ReverseSequence, [vec![("x", iota(&[2, 3])), ("lengths", lengths.into())], axes.to_vec()].concat())
        };
        assert_eq!(reverse([2, 3], 1, 0).unwrap().to_f32().unwrap(), [1.0, 0.0, 2.0, 5.0, 4.0, 3.0]);
        assert_eq!(reverse([0, 1], 1, -2).unwrap().to_f32().unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert!(reverse([2, 4], 1, 0).is_err() && reverse([-1, 0], 1, 0).is_err());
        assert!(reverse([2, 2], 0, 1).is_err() && reverse([2, 2], 1, 1).is_err());
    }
}
