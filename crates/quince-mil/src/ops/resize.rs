//! `resize`, `resize_bilinear` and `resize_nearest_neighbor`: images of a given size. Where the pixels of the result lie
//! on the axes of x is here too, for the other operations that interpolate.

use super::elements::{room, values};
use super::layout::{count, result, result_shape};
use super::shape_rules::show;
use crate::op::FLOAT;
use crate::{Args, DType, Dim, Op, Opset, Param, Result, Tensor, ValueType, bail};

/// See [`Op::doc`].
pub struct Resize;

impl Op for Resize {
    fn name(&self) -> &'static str {
        "resize"
    }

    fn doc(&self) -> &'static str {
        "x with its last `resized_dims` axes, one or two, as long as the last numbers of `shape` say; 0 keeps the axis. \
         `interpolation_mode` LINEAR blends neighbours, NEAREST_NEIGHBOR takes one; `sampling_mode` says where pixel i of \
         o lies on an axis of n: STRICT_ALIGN_CORNERS i · (n - 1)/(o - 1), ALIGN_CORNERS the same and the middle if o = 1, \
         DEFAULT i · n/o, OFFSET_CORNERS (i + ½) · max(1, n - 1)/o, UNALIGN_CORNERS (i + ½) · n/o - ½, all held on the \
         axis. The nearest pixel under DEFAULT is the one at ⌊(i + ½) · n/o⌋."
    }

    fn params(&self) -> &'static [Param] {
        const {
            &[
                Param::new("x").types(&[DType::F16, DType::F32, DType::I32]),
                Param::new("shape"),
                Param::new("resized_dims").constant(),
                Param::new("interpolation_mode").constant().or_str("LINEAR"),
                Param::new("sampling_mode").constant().or_str("DEFAULT"),
            ]
        }
    }

    fn since(&self) -> Opset {
        Opset::CoreML7
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        interpolation(args)?;
        Sampling::of(args)?;
        let x = args.ty("x")?;
        let resized = resized_dims(args)?;
        let sizes = match args.known("shape") {
            Some(sizes) => sizes.to_i64()?.into_iter().map(Some).collect(),
            None => match args.shape("shape")? {
                [Dim::Fixed(n)] => vec![None; *n],
                [_] => vec![None; resized],
                other => bail!("found a shape of shape {}, expected a vector", show(other)),
            },
        };
        if resized > sizes.len() || sizes.len() > x.shape.len() {
            bail!("found {} sizes for x {}, expected {resized} to {}", sizes.len(), show(&x.shape), x.shape.len());
        }
        let mut shape = x.shape.clone();
        let first = shape.len() - resized;
        for (dim, size) in shape[first..].iter_mut().zip(&sizes[sizes.len() - resized..]) {
            *dim = match size.map(usize::try_from) {
                None => Dim::Unknown,
                Some(Ok(0)) => *dim,
                Some(Ok(size)) => Dim::Fixed(size),
                Some(Err(_)) => bail!("found a negative size in the shape {sizes:?}"),
            };
        }
        result(x.dtype, shape)
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let shape = result_shape(self, args)?;
        resized(args, shape, interpolation(args)?)
    }
}

/// See [`Op::doc`].
pub struct ResizeBilinear;

impl Op for ResizeBilinear {
    fn name(&self) -> &'static str {
        "resize_bilinear"
    }

    fn doc(&self) -> &'static str {
        "The last two axes of x, [.., H, W], as [.., target_size_height, target_size_width]: each pixel is interpolated \
         between its neighbours. `sampling_mode` is as in `resize`."
    }

    fn params(&self) -> &'static [Param] {
        const {
            &[
                Param::new("x").types(FLOAT),
                Param::new("target_size_height").constant().or_int(1),
                Param::new("target_size_width").constant().or_int(1),
                Param::new("sampling_mode").constant().or_str("DEFAULT"),
            ]
        }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        Sampling::of(args)?;
        targeted(args)
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        resized(args, result_shape(self, args)?, Interpolation::Linear)
    }
}

/// See [`Op::doc`].
pub struct ResizeNearestNeighbor;

impl Op for ResizeNearestNeighbor {
    fn name(&self) -> &'static str {
        "resize_nearest_neighbor"
    }

    fn doc(&self) -> &'static str {
        "The last two axes of x, [.., H, W], as [.., target_size_height, target_size_width]: pixel i of o is the one at \
         ⌊(i + ½) · n/o⌋ of n."
    }

    fn params(&self) -> &'static [Param] {
        const {
            &[
                Param::new("x").types(FLOAT),
                Param::new("target_size_height").constant(),
                Param::new("target_size_width").constant(),
            ]
        }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        targeted(args)
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        resized(args, result_shape(self, args)?, Interpolation::Nearest)
    }
}

/// How a pixel is made of those of x.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Interpolation {
    Linear,
    Nearest,
}

/// Where the pixels of a result lie on an axis; see the documentation of `resize`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sampling {
    /// i · n/o.
    Default,
    /// The first and last pixels fall together.
    StrictAlignCorners,
    /// The same, and the middle if there is one pixel only.
    AlignCorners,
    /// (i + ½) · max(1, n - 1)/o.
    OffsetCorners,
    /// The edges fall together.
    UnalignCorners,
}

impl Sampling {
    /// What `sampling_mode` says; the default if the operation has no such parameter.
    pub fn of(args: &Args) -> Result<Sampling> {
        Ok(match args.str("sampling_mode")? {
            "DEFAULT" => Sampling::Default,
            "STRICT_ALIGN_CORNERS" => Sampling::StrictAlignCorners,
            "ALIGN_CORNERS" => Sampling::AlignCorners,
            "OFFSET_CORNERS" => Sampling::OffsetCorners,
            "UNALIGN_CORNERS" => Sampling::UnalignCorners,
            other => bail!(
                "found the sampling_mode {other}, expected DEFAULT, STRICT_ALIGN_CORNERS, ALIGN_CORNERS, \
                 OFFSET_CORNERS or UNALIGN_CORNERS"
            ),
        })
    }

    /// Where pixel `i` of `out` lies on an axis that is `reach` from its first pixel to its last.
    pub fn place(self, i: usize, out: usize, reach: f64) -> f64 {
        let (i, o) = (i as f64, out as f64);
        match self {
            Sampling::StrictAlignCorners if out < 2 => 0.0,
            Sampling::AlignCorners if out < 2 => reach / 2.0,
            Sampling::StrictAlignCorners | Sampling::AlignCorners => i * reach / (o - 1.0),
            Sampling::Default => i * (reach + 1.0) / o,
            Sampling::OffsetCorners => (i + 0.5) * reach.max(1.0) / o,
            Sampling::UnalignCorners => (i + 0.5) * (reach + 1.0) / o - 0.5,
        }
    }
}

/// Between which two pixels of an axis something lies, and how far it is from the first, 0 to 1.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Between {
    /// The pixel before it.
    pub first: usize,
    /// The pixel after it.
    pub second: usize,
    /// The share of the second.
    pub share: f64,
}

impl Between {
    /// At a place on an axis of `size` pixels, at least one, or at its nearer end.
    pub fn at(place: f64, size: usize) -> Between {
        let at = place.clamp(0.0, (size - 1) as f64);
        Between { first: at as usize, second: (at as usize + 1).min(size - 1), share: at.fract() }
    }

    /// On a pixel.
    pub fn on(pixel: usize) -> Between {
        Between { first: pixel, second: pixel, share: 0.0 }
    }

    /// On the pixel ⌊i · n/o⌋ of n.
    pub fn scaled(i: usize, n: usize, o: usize) -> Between {
        Between::on(((i as u128 * n as u128 / o.max(1) as u128) as usize).min(n - 1))
    }
}

/// The places of the `o` pixels of a result on an axis of `n`, none if that has no pixels: `source(i, n, o)`.
pub fn places(n: usize, o: usize, source: impl Fn(usize, usize, usize) -> Between) -> Result<Vec<Between>> {
    let o = if n == 0 { 0 } else { o };
    let mut places = room(o)?;
    places.extend((0..o).map(|i| source(i, n, o)));
    Ok(places)
}

/// An image of `shape` from x: `down` has a place for each row of the result, `across` one for each column.
pub fn blend(x: &Tensor, shape: &[usize], down: &[Between], across: &[Between]) -> Result<Tensor> {
    let [outer @ .., height, width] = x.shape() else { bail!("found x {x:?}, expected two axes or more") };
    let pixels = x.to_f64()?;
    let mut out = room(count(shape)?)?;
    for image in 0..count(outer)? {
        let image = &pixels[image * height * width..][..height * width];
        for y in down {
            let (top, bottom) = (&image[y.first * width..][..*width], &image[y.second * width..][..*width]);
            out.extend(across.iter().map(|x| {
                let above = top[x.first] * (1.0 - x.share) + top[x.second] * x.share;
                let below = bottom[x.first] * (1.0 - x.share) + bottom[x.second] * x.share;
                above * (1.0 - y.share) + below * y.share
            }));
        }
    }
    values(x, shape, out)
}

fn interpolation(args: &Args) -> Result<Interpolation> {
    Ok(match args.str("interpolation_mode")? {
        "LINEAR" => Interpolation::Linear,
        "NEAREST_NEIGHBOR" => Interpolation::Nearest,
        other => bail!("found the interpolation_mode {other}, expected LINEAR or NEAREST_NEIGHBOR"),
    })
}

fn resized_dims(args: &Args) -> Result<usize> {
    match args.int("resized_dims")? {
        n @ 1..=2 => Ok(n as usize),
        n => bail!("found {n} resized_dims, expected one or two"),
    }
}

/// The type of x with the sizes that the parameters say.
fn targeted(args: &Args) -> Result<Vec<ValueType>> {
    let x = args.ty("x")?;
    let mut shape = x.shape.clone();
    let Some([height, width]) =
        shape.len().checked_sub(2).map(|first| &mut shape[first..]).filter(|_| x.shape.len() > 2)
    else {
        bail!("found x {}, expected three axes or more", show(&x.shape));
    };
    for (dim, name) in [(height, "target_size_height"), (width, "target_size_width")] {
        match usize::try_from(args.int(name)?) {
            Ok(size) if size > 0 => *dim = Dim::Fixed(size),
            _ => bail!("found {name} {}, expected one pixel or more", args.int(name)?),
        }
    }
    result(x.dtype, shape)
}

fn resized(args: &Args, shape: Vec<usize>, interpolation: Interpolation) -> Result<Vec<Tensor>> {
    let x = args.tensor("x")?;
    // An image of one row where only the last axis is resized.
    let rows = |shape: &[usize]| if shape.len() == 1 { vec![1, shape[0]] } else { shape.to_vec() };
    let (from, to) = (rows(x.shape()), rows(&shape));
    let (Some(from_size), Some(to_size)) = (from.last_chunk::<2>(), to.last_chunk::<2>()) else {
        bail!("found x {x:?}, expected an axis or more");
    };
    let mode = match args.str("sampling_mode") {
        Ok(_) => Sampling::of(args)?,
        Err(_) => Sampling::Default,
    };
    if count(&shape)? > 0 && from_size.contains(&0) {
        bail!("found x {x:?}, expected pixels");
    }
    let source = |i: usize, n: usize, o: usize| match (interpolation, mode) {
        // A size that is kept is kept to the pixel, whatever the mode.
        _ if n == o => Between::on(i),
        (Interpolation::Linear, mode) => Between::at(mode.place(i, o, (n - 1) as f64), n),
        (Interpolation::Nearest, Sampling::Default) => Between::scaled(2 * i + 1, n, 2 * o),
        (Interpolation::Nearest, mode) => {
            Between::on(((mode.place(i, o, (n - 1) as f64) + 0.5).max(0.0) as usize).min(n - 1))
        }
    };
    let (down, across) = (places(from_size[0], to_size[0], source)?, places(from_size[1], to_size[1], source)?);
    let image = match x.rank() {
        1 => Tensor::new(x.dtype(), from, x.bytes().clone())?,
        _ => x,
    };
    let out = blend(&image, &to, &down, &across)?;
    Ok(vec![Tensor::new(out.dtype(), shape, out.bytes().clone())?])
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::Value;

    fn linear(mode: &str, size: i32) -> Vec<f32> {
        let values = vec![("x", iota(&[1, 1, 2])), ("target_size_width", size.into()), ("sampling_mode", mode.into())];
        run(&ResizeBilinear, values).unwrap().to_f32().unwrap()
    }

    /// The grids of the documentation of coremltools' `resize_bilinear`.
    #[test]
    fn pixels_lie_where_the_mode_says() {
        let near = |found: Vec<f32>, expected: &[f32]| {
            assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 0.004), "{found:?}, expected {expected:?}");
        };
        near(linear("UNALIGN_CORNERS", 5), &[0.0, 0.1, 0.5, 0.9, 1.0]);
        near(linear("STRICT_ALIGN_CORNERS", 5), &[0.0, 0.25, 0.5, 0.75, 1.0]);
        near(linear("DEFAULT", 5), &[0.0, 0.4, 0.8, 1.0, 1.0]);
        near(linear("OFFSET_CORNERS", 5), &[0.1, 0.3, 0.5, 0.7, 0.9]);
        near(linear("OFFSET_CORNERS", 6), &[0.08, 0.25, 0.42, 0.58, 0.75, 0.92]);
        near(linear("ALIGN_CORNERS", 1), &[0.5]);
        near(linear("STRICT_ALIGN_CORNERS", 1), &[0.0]);
    }

    fn resize(shape: Value, rest: Vec<(&'static str, Value)>) -> Result<Tensor> {
        let values = vec![("x", f32s(&[1, 1, 2, 1], &[-6.0, 9.0])), ("shape", shape), ("resized_dims", 2.into())];
        run(&Resize, [values, rest].concat())
    }

    /// Values of coremltools' test of `resize`, which Core ML gives.
    #[test]
    fn sizes_may_be_computed() {
        let nearest = vec![("interpolation_mode", "NEAREST_NEIGHBOR".into())];
        let y = resize([1, 3, 2].into(), nearest.clone()).unwrap();
        assert_eq!((y.shape(), y.to_f32().unwrap()), (&[1, 1, 3, 2][..], vec![-6.0, -6.0, 9.0, 9.0, 9.0, 9.0]));
        assert_eq!(resize([0, 0].into(), nearest).unwrap().to_f32().unwrap(), [-6.0, 9.0]);
        let entries = vec![
            ("x", typed(DType::F16, &[1, -1, 4])),
            ("shape", typed(DType::I32, &[3])),
            ("resized_dims", vec![crate::op::ArgInfo::known(1.into())]),
        ];
        assert_eq!(inferred(&Resize, entries).unwrap(), [1, -1, -1]);
    }

    #[test]
    fn sizes_that_are_none_are_refused() {
        for shape in [vec![-1, 2], vec![2], vec![1, 1, 1, 1, 1], vec![i32::MAX, i32::MAX]] {
            assert!(resize(shape.into(), vec![]).is_err());
        }
        assert!(resize([2, 2].into(), vec![("sampling_mode", "SIDEWAYS".into())]).is_err());
        let none = vec![("x", iota(&[1, 0, 2])), ("target_size_height", 2.into()), ("target_size_width", 2.into())];
        assert!(run(&ResizeNearestNeighbor, none).is_err());
    }
}
