//! `upsample_nearest_neighbor` and `upsample_bilinear`: larger images.

use super::layout::{result, result_shape};
use super::resize::{Between, Sampling, blend, places};
use super::shape_rules::show;
use crate::op::FLOAT;
use crate::{Args, Dim, Op, Param, Result, Tensor, ValueType, bail};

/// See [`Op::doc`].
pub struct UpsampleNearestNeighbor;

impl Op for UpsampleNearestNeighbor {
    fn name(&self) -> &'static str {
        "upsample_nearest_neighbor"
    }

    fn doc(&self) -> &'static str {
        "The last two axes of x, [.., H, W], as [.., ⌊H · scale⌋, ⌊W · scale⌋]: pixel i of o is the one at ⌊i · n/o⌋ of n."
    }

    fn params(&self) -> &'static [Param] {
        const {
            &[
                Param::new("x").types(FLOAT),
                Param::new("scale_factor_height").constant().or_float(1.0),
                Param::new("scale_factor_width").constant().or_float(1.0),
            ]
        }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        scaled(args)
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        upsampled(args, result_shape(self, args)?, Between::scaled)
    }
}

/// See [`Op::doc`].
pub struct UpsampleBilinear;

impl Op for UpsampleBilinear {
    fn name(&self) -> &'static str {
        "upsample_bilinear"
    }

    fn doc(&self) -> &'static str {
        "The last two axes of x, [.., H, W], as [.., ⌊H · scale⌋, ⌊W · scale⌋]: each pixel is interpolated between its \
         neighbours. With `align_corners` the corners of both images fall together; else with `half_pixel_centers` \
         their edges do, else the first pixels. `half_pixel_centers` is the opposite of `align_corners` if left out. \
         Where a scale does not divide, that of the sizes counts."
    }

    fn params(&self) -> &'static [Param] {
        const {
            &[
                Param::new("x").types(FLOAT),
                Param::new("scale_factor_height").constant().or_float(1.0),
                Param::new("scale_factor_width").constant().or_float(1.0),
                Param::new("align_corners").constant().or_bool(true),
                Param::new("half_pixel_centers").constant().optional(),
            ]
        }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        args.bool("align_corners")?;
        args.opt_bools("half_pixel_centers")?;
        scaled(args)
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let shape = result_shape(self, args)?;
        let corners = args.bool("align_corners")?;
        let half = if args.has("half_pixel_centers") { args.bool("half_pixel_centers")? } else { !corners };
        let mode = match (corners, half) {
            (true, _) => Sampling::StrictAlignCorners,
            (false, true) => Sampling::UnalignCorners,
            (false, false) => Sampling::Default,
        };
        upsampled(args, shape, |i, n, o| Between::at(mode.place(i, o, (n - 1) as f64), n))
    }
}

/// The type of x with its last two axes scaled.
fn scaled(args: &Args) -> Result<Vec<ValueType>> {
    let x = args.ty("x")?;
    let mut shape = x.shape.clone();
    let rank = shape.len();
    if rank < 3 {
        bail!("found x {}, expected three axes or more", show(&shape));
    }
    for (dim, name) in shape[rank - 2..].iter_mut().zip(FACTORS) {
        let scale = args.float(name)?;
        if !scale.is_finite() || scale <= 0.0 {
            bail!("found {name} {scale}, expected a number above 0");
        }
        *dim = match *dim {
            Dim::Fixed(size) if size > 0 => Dim::Fixed((size as f64 * scale) as usize),
            Dim::Fixed(_) => bail!("found x {}, expected pixels", show(&x.shape)),
            Dim::Unknown => Dim::Unknown,
        };
    }
    result(x.dtype, shape)
}

const FACTORS: [&str; 2] = ["scale_factor_height", "scale_factor_width"];

/// An image of `shape` from x: `source` says where pixel i of o lies on an axis of n.
fn upsampled(args: &Args, shape: Vec<usize>, source: impl Fn(usize, usize, usize) -> Between) -> Result<Vec<Tensor>> {
    let x = args.tensor("x")?;
    let (&[.., height, width], &[.., rows, columns]) = (x.shape(), &shape[..]) else {
        bail!("found x {x:?}, expected three axes or more");
    };
    let (down, across) = (places(height, rows, &source)?, places(width, columns, &source)?);
    Ok(vec![blend(&x, &shape, &down, &across)?])
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::Value;

    fn upsampled(op: &dyn Op, rest: Vec<(&str, Value)>) -> Vec<f32> {
        let values = vec![("x", f32s(&[1, 1, 2], &[0.0, 4.0])), ("scale_factor_width", 2.into())];
        run(op, [values, rest].concat()).unwrap().to_f32().unwrap()
    }

    #[test]
    fn pixels_repeat_or_blend() {
        assert_eq!(upsampled(&UpsampleNearestNeighbor, vec![]), [0.0, 0.0, 4.0, 4.0]);
        let half = vec![("align_corners", false.into())];
        assert_eq!(upsampled(&UpsampleBilinear, half), [0.0, 1.0, 3.0, 4.0]);
        let first = vec![("align_corners", false.into()), ("half_pixel_centers", false.into())];
        assert_eq!(upsampled(&UpsampleBilinear, first), [0.0, 2.0, 4.0, 4.0]);
        let corners = upsampled(&UpsampleBilinear, vec![]);
        assert!(corners.iter().zip([0.0, 4.0 / 3.0, 8.0 / 3.0, 4.0]).all(|(a, b)| (a - b).abs() < 1e-6));
    }

    #[test]
    fn scales_that_leave_nothing_to_see_are_refused() {
        for scale in [0.0, -1.0, f32::NAN, f32::INFINITY, f32::MAX] {
            let values = vec![("x", iota(&[1, 2, 2])), ("scale_factor_height", scale.into())];
            assert!(run(&UpsampleNearestNeighbor, values).is_err());
        }
    }
}
