//! `crop` and `crop_resize`: pieces of images.

use super::elements::room;
use super::layout::{View, count, result, result_shape};
use super::resize::Sampling;
use super::shape_rules::show;
use super::window::sizes;
use crate::op::FLOAT;
use crate::{Args, DType, Dim, Op, Param, Result, Tensor, ValueType, bail};

/// See [`Op::doc`].
pub struct Crop;

impl Op for Crop {
    fn name(&self) -> &'static str {
        "crop"
    }

    fn doc(&self) -> &'static str {
        "The last two axes of x, [.., H, W], without the first and last rows and columns that `crop_height` and \
         `crop_width` count."
    }

    fn params(&self) -> &'static [Param] {
        const { &[Param::new("x").types(FLOAT), Param::new("crop_height").constant(), Param::new("crop_width").constant()] }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let x = args.ty("x")?;
        let mut shape = x.shape.clone();
        if shape.len() < 3 {
            bail!("found x {}, expected three axes or more", show(&shape));
        }
        let first = shape.len() - 2;
        for (dim, name) in shape[first..].iter_mut().zip(["crop_height", "crop_width"]) {
            let (before, after) = cropped(args, name)?;
            if let Dim::Fixed(size) = *dim {
                let Some(left) = size.checked_sub(before + after) else {
                    bail!("found {name} [{before}, {after}] on an axis of {size}, expected no more than it has");
                };
                *dim = Dim::Fixed(left);
            }
        }
        result(x.dtype, shape)
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let shape = result_shape(self, args)?;
        let x = args.tensor("x")?;
        let mut view = View::whole(x.shape());
        let first = shape.len() - 2;
        for (axis, name) in [(first, "crop_height"), (first + 1, "crop_width")] {
            view.first += cropped(args, name)?.0 * view.axes[axis].1.unsigned_abs();
            view.axes[axis].0 = shape[axis];
        }
        Ok(vec![view.take(&x)?])
    }
}

/// How much is left away before and after.
fn cropped(args: &Args, name: &str) -> Result<(usize, usize)> {
    match sizes(args, name, 2, 0)?[..] {
        [before, after] => Ok((before, after)),
        ref other => bail!("found {} numbers for {name}, expected two", other.len()),
    }
}

/// See [`Op::doc`].
pub struct CropResize;

impl Op for CropResize {
    fn name(&self) -> &'static str {
        "crop_resize"
    }

    fn doc(&self) -> &'static str {
        "Boxes of images x, [B, C, H, W], each resized to `target_height` and `target_width`. Up to iOS 16 `roi` has the \
         boxes: [N, 1, 4, 1, 1] cuts each out of every image, the result is [N, B, C, h, w]; with the index of an image \
         before each box, [N, 1, 5, 1, 1], it is [N, 1, C, h, w]. From iOS 17 `boxes` has them, [N, 4], and `box_indices` \
         the images, [N], 0, 1, 2 .. if left out; the result is [N, C, h, w]. `box_coordinate_mode` says what the four \
         numbers are; `normalized_coordinates` are from 0 to 1 for the first pixel to the last; all are multiplied by \
         `spatial_scale`. `sampling_mode` is as in `resize`, on the box. A place outside of the image is `pad_value`."
    }

    fn params(&self) -> &'static [Param] {
        const {
            &[
                Param::new("x").types(FLOAT),
                Param::new("roi").optional().types(FLOAT),
                Param::new("boxes").optional().types(&[DType::F16, DType::F32, DType::U16]),
                Param::new("box_indices").optional().types(&[DType::U16, DType::I32]),
                Param::new("target_height").constant().or_int(1),
                Param::new("target_width").constant().or_int(1),
                Param::new("normalized_coordinates").constant().or_bool(false),
                Param::new("spatial_scale").constant().or_float(1.0),
                Param::new("box_coordinate_mode").constant().or_str("CORNERS_HEIGHT_FIRST"),
                Param::new("sampling_mode").constant().or_str("DEFAULT"),
                Param::new("pad_value").constant().or_float(0.0),
            ]
        }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let x = args.ty("x")?;
        let [batch, channels, ..] = x.shape[..] else { bail!("found x {}, expected [B, C, H, W]", show(&x.shape)) };
        if x.shape.len() != 4 {
            bail!("found x {}, expected [B, C, H, W]", show(&x.shape));
        }
        Sampling::of(args)?;
        corners(args, [0.0; 4])?;
        let [height, width] = target(args)?;
        let mut shape = match (args.has("roi"), args.has("boxes")) {
            (true, false) => match args.shape("roi")? {
                [n, Dim::Fixed(1), Dim::Fixed(4), Dim::Fixed(1), Dim::Fixed(1)] => vec![*n, batch],
                [n, Dim::Fixed(1), Dim::Fixed(5), Dim::Fixed(1), Dim::Fixed(1)] => vec![*n, Dim::Fixed(1)],
                other => bail!("found roi {}, expected [N, 1, 4, 1, 1] or [N, 1, 5, 1, 1]", show(other)),
            },
            (false, true) => match args.shape("boxes")? {
                [n, four] if four.fits(Dim::Fixed(4)) => vec![*n],
                other => bail!("found boxes {}, expected [N, 4]", show(other)),
            },
            _ => bail!("found both or none of roi and boxes, expected one of them"),
        };
        if args.has("box_indices") && !matches!(args.shape("box_indices")?, [n] if n.fits(shape[0])) {
            bail!("found box_indices {}, expected one for each box", show(args.shape("box_indices")?));
        }
        shape.extend([channels, Dim::Fixed(height), Dim::Fixed(width)]);
        result(x.dtype, shape)
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let shape = result_shape(self, args)?;
        let x = args.tensor("x")?;
        let &[batch, _, height, width] = x.shape() else { bail!("found x {x:?}, expected [B, C, H, W]") };
        let (mode, [rows, columns]) = (Sampling::of(args)?, target(args)?);
        let (pixels, pad) = (x.to_f64()?, args.float("pad_value")?);
        let image = count(&x.shape()[1..])?;
        let mut out = room(count(&shape)?)?;
        for (box_, images) in boxes(args, batch)? {
            let [top, left, bottom, right] = scaled(args, box_, height, width)?;
            let place = |i, o, from: f64, to: f64| from + mode.place(i, o, (to - from).abs()).copysign(to - from);
            for plane in pixels[images.start * image..images.end * image].chunks_exact((height * width).max(1)) {
                for row in 0..rows {
                    let y = place(row, rows, top, bottom);
                    out.extend((0..columns).map(|column| {
                        let x = place(column, columns, left, right);
                        inside(plane, [height, width], y, x).unwrap_or(pad)
                    }));
                }
            }
        }
        // Images without pixels have nothing but padding around them.
        out.resize(count(&shape)?, pad);
        Ok(vec![super::elements::values(&x, &shape, out)?])
    }
}

fn target(args: &Args) -> Result<[usize; 2]> {
    let size = |name: &str| match usize::try_from(args.int(name)?) {
        Ok(size) if size > 0 => Ok(size),
        _ => bail!("found {name} {}, expected one pixel or more", args.int(name)?),
    };
    Ok([size("target_height")?, size("target_width")?])
}

type Boxes = Vec<([f64; 4], std::ops::Range<usize>)>;

/// The boxes, each with the images that it is cut out of.
fn boxes(args: &Args, batch: usize) -> Result<Boxes> {
    let index = |i: f64| match i {
        i if i >= 0.0 && i < batch as f64 => Ok(i as usize..i as usize + 1),
        i => bail!("found the image {i} for a box, expected one of {batch}"),
    };
    let four = |n: &[f64]| [n[0], n[1], n[2], n[3]];
    if args.has("roi") {
        let roi = args.tensor("roi")?;
        let numbers = roi.to_f64()?;
        return match roi.shape() {
            [_, _, 5, ..] => numbers.as_chunks::<5>().0.iter().map(|n| Ok((four(&n[1..]), index(n[0])?))).collect(),
            _ => Ok(numbers.as_chunks::<4>().0.iter().map(|n| (four(n), 0..batch)).collect()),
        };
    }
    let boxes = args.tensor("boxes")?.to_f64()?;
    let indices = match args.opt_tensor("box_indices")? {
        Some(indices) => indices.to_f64()?,
        None => (0..boxes.len() / 4).map(|i| i as f64).collect(),
    };
    boxes.as_chunks::<4>().0.iter().zip(indices).map(|(n, i)| Ok((four(n), index(i)?))).collect()
}

/// A box as its first row, first column, last row, last column.
fn corners(args: &Args, [a, b, c, d]: [f64; 4]) -> Result<[f64; 4]> {
    Ok(match args.str("box_coordinate_mode")? {
        "CORNERS_HEIGHT_FIRST" => [a, b, c, d],
        "CORNERS_WIDTH_FIRST" => [b, a, d, c],
        "CENTER_SIZE_HEIGHT_FIRST" => [a - c / 2.0, b - d / 2.0, a + c / 2.0, b + d / 2.0],
        "CENTER_SIZE_WIDTH_FIRST" => [b - d / 2.0, a - c / 2.0, b + d / 2.0, a + c / 2.0],
        other => bail!(
            "found the box_coordinate_mode {other}, expected CORNERS_ or CENTER_SIZE_ with HEIGHT_FIRST or WIDTH_FIRST"
        ),
    })
}

/// The corners of a box in pixels.
fn scaled(args: &Args, numbers: [f64; 4], height: usize, width: usize) -> Result<[f64; 4]> {
    let [top, left, bottom, right] = corners(args, numbers)?;
    let scale = args.float("spatial_scale")?;
    let (down, across) = match args.bool("normalized_coordinates")? {
        true => (height.saturating_sub(1) as f64 * scale, width.saturating_sub(1) as f64 * scale),
        false => (scale, scale),
    };
    Ok([top * down, left * across, bottom * down, right * across])
}

/// What an image has at a place, blended of its four neighbours; none outside of it.
fn inside(plane: &[f64], [height, width]: [usize; 2], y: f64, x: f64) -> Option<f64> {
    let on =
        |at: f64, size: usize| (at >= 0.0 && at <= size as f64 - 1.0).then(|| super::resize::Between::at(at, size));
    let (y, x) = (on(y, height)?, on(x, width)?);
    let at = |row: usize, column: usize| plane[row * width + column];
    let above = at(y.first, x.first) * (1.0 - x.share) + at(y.first, x.second) * x.share;
    let below = at(y.second, x.first) * (1.0 - x.share) + at(y.second, x.second) * x.share;
    Some(above * (1.0 - y.share) + below * y.share)
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::Value;

    #[test]
    fn rows_and_columns_are_left_away() {
        let crop = |height: [i32; 2], width: [i32; 2]| {
            run(&Crop, vec![("x", iota(&[1, 4, 4])), ("crop_height", height.into()), ("crop_width", width.into())])
        };
        let y = crop([0, 1], [1, 1]).unwrap();
        assert_eq!((y.shape(), y.to_f32().unwrap()), (&[1, 3, 2][..], vec![1.0, 2.0, 5.0, 6.0, 9.0, 10.0]));
        assert_eq!(crop([2, 2], [0, 0]).unwrap().shape(), [1, 0, 4]);
        assert!(crop([3, 2], [0, 0]).is_err() && crop([-1, 0], [0, 0]).is_err());
    }

    fn cut(boxes: (&'static str, Value), size: i32, rest: Vec<(&'static str, Value)>) -> Result<Tensor> {
        let image = f32s(&[1, 1, 4, 4], &(1..17).map(|i| i as f32).collect::<Vec<_>>());
        let sizes = [("target_height", size.into()), ("target_width", size.into())];
        let values = vec![("x", image), boxes, ("sampling_mode", "ALIGN_CORNERS".into())];
        run(&CropResize, [values, sizes.to_vec(), rest].concat())
    }

    /// Boxes and values of coremltools' tests of `crop_resize`, which Core ML gives.
    #[test]
    fn boxes_are_cut_out() {
        let roi = |n: &[f32]| ("roi", f32s(&[1, 1, n.len(), 1, 1], n));
        assert_eq!(cut(roi(&[1.0, 1.0, 2.0, 2.0]), 2, vec![]).unwrap().to_f32().unwrap(), [6.0, 7.0, 10.0, 11.0]);
        assert_eq!(cut(roi(&[2.0, 2.0, 1.0, 1.0]), 2, vec![]).unwrap().to_f32().unwrap(), [11.0, 10.0, 7.0, 6.0]);
        assert_eq!(cut(roi(&[1.0, 1.0, 2.0, 2.0]), 1, vec![]).unwrap().to_f32().unwrap(), [8.5]);
        let numbers = [0.1, 0.3, 1.3, 1.0, 0.5, 1.8, 1.0, 0.3, 0.0, 0.4, 0.6, 0.7];
        let rest = vec![
            ("box_indices", vec![0i32; 3].into()),
            ("normalized_coordinates", true.into()),
            ("pad_value", 10f32.into()),
        ];
        let y = cut(("boxes", f32s(&[3, 4], &numbers)), 2, rest).unwrap();
        assert_eq!(y.shape(), [3, 1, 2, 2]);
        near(&y, &[3.1, 5.2, 10.0, 10.0, 10.0, 7.9, 10.0, 13.9, 2.2, 3.1, 9.4, 10.3], 1e-5);
    }

    #[test]
    fn boxes_of_no_image_are_refused() {
        let five = |image: f32| ("roi", f32s(&[1, 1, 5, 1, 1], &[image, 0.0, 0.0, 1.0, 1.0]));
        assert!(cut(five(0.0), 2, vec![]).is_ok());
        assert!(cut(five(1.0), 2, vec![]).is_err() && cut(five(f32::NAN), 2, vec![]).is_err());
        let two = ("boxes", f32s(&[2, 4], &[0.0; 8]));
        assert!(cut(two.clone(), 2, vec![]).is_err() && cut(two, 0, vec![]).is_err());
    }
}
