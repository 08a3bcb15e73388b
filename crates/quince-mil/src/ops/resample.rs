//! `resample` and `affine`: images seen through a grid of places.

use super::elements::room;
use super::layout::{count, result, result_shape};
use super::shape_rules::{merge, show};
use crate::op::FLOAT;
use crate::{Args, DType, Dim, Op, Param, Result, Tensor, ValueType, bail};

/// See [`Op::doc`].
pub struct Resample;

impl Op for Resample {
    fn name(&self) -> &'static str {
        "resample"
    }

    fn doc(&self) -> &'static str {
        "Images x, [B, C, H, W], at `coordinates`, [B, h, w, 2], each of them x and y: [B, C, h, w]. `coordinates_mode` \
         says whether they count pixels (`unnormalized`) or are -1 to 1 (`normalized_minus_one_to_one`) or 0 to 1 \
         (`normalized_zero_to_one`) over the image: with `align_corners` from the middle of the first pixel to the middle \
         of the last, else from edge to edge. `sampling_mode` is `bilinear` or `nearest` (halves to even). Outside of the \
         image, `padding_mode` is `constant` (`padding_value`), `border` (the nearest pixel), `reflection` (mirrored at \
         the middle of the last pixel) or `symmetric` (at its edge)."
    }

    fn params(&self) -> &'static [Param] {
        const {
            &[
                Param::new("x").types(FLOAT),
                Param::new("coordinates").types(&[
                    DType::I8,
                    DType::U8,
                    DType::I16,
                    DType::U16,
                    DType::I32,
                    DType::F16,
                    DType::F32,
                ]),
                Param::new("sampling_mode").constant(),
                Param::new("padding_mode").constant(),
                Param::new("padding_value").constant(),
                Param::new("coordinates_mode").constant(),
                Param::new("align_corners").constant(),
            ]
        }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        Grid::new(args)?;
        let (x, places) = (args.ty("x")?, args.shape("coordinates")?);
        let ([batch, channels, _, _], [of, height, width, two]) = (&x.shape[..], places) else {
            bail!("found x {} and coordinates {}, expected four axes each", show(&x.shape), show(places));
        };
        if !two.fits(Dim::Fixed(2)) {
            bail!("found coordinates {}, expected [B, h, w, 2]", show(places));
        }
        result(x.dtype, vec![merge(*batch, *of)?, *channels, *height, *width])
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let shape = result_shape(self, args)?;
        let grid = Grid::new(args)?;
        let places = args.tensor("coordinates")?.to_f64()?;
        let per_image = 2 * count(&shape[2..])?;
        grid.sampled(&args.tensor("x")?, &shape, |image, i| {
            let at = image * per_image + 2 * i;
            [places[at], places[at + 1]]
        })
    }
}

/// See [`Op::doc`].
pub struct Affine;

impl Op for Affine {
    fn name(&self) -> &'static str {
        "affine"
    }

    fn doc(&self) -> &'static str {
        "Images x, [B, C, H, W], seen through an affine map: the pixel at (x, y) of the result, [B, C, output_height, \
         output_width], is what x has at (a₀·x + a₁·y + a₂, b₀·x + b₁·y + b₂), blended of its neighbours, with \
         `transform_matrix` [a₀, a₁, a₂, b₀, b₁, b₂] for each image or, [1, 6], for all. The other parameters are as in \
         `resample`."
    }

    fn params(&self) -> &'static [Param] {
        const {
            &[
                Param::new("x").types(FLOAT),
                Param::new("transform_matrix").types(FLOAT),
                Param::new("output_height").constant(),
                Param::new("output_width").constant(),
                Param::new("sampling_mode").constant(),
                Param::new("padding_mode").constant(),
                Param::new("padding_value").constant(),
                Param::new("coordinates_mode").constant(),
                Param::new("align_corners").constant(),
            ]
        }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        Grid::new(args)?;
        let (x, matrix) = (args.ty("x")?, args.shape("transform_matrix")?);
        let ([batch, channels, _, _], [of, six]) = (&x.shape[..], matrix) else {
            bail!("found x {} and a matrix {}, expected [B, C, H, W] and [B, 6]", show(&x.shape), show(matrix));
        };
        if !six.fits(Dim::Fixed(6)) || !(of.fits(*batch) || of.fits(Dim::Fixed(1))) {
            bail!("found a transform_matrix {} for x {}, expected [B, 6] or [1, 6]", show(matrix), show(&x.shape));
        }
        let size = |name: &str| match usize::try_from(args.int(name)?) {
            Ok(size) => Ok(Dim::Fixed(size)),
            Err(_) => bail!("found {name} {}, expected a size", args.int(name)?),
        };
        result(x.dtype, vec![*batch, *channels, size("output_height")?, size("output_width")?])
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let shape = result_shape(self, args)?;
        let grid = Grid::new(args)?;
        let matrix = args.tensor("transform_matrix")?;
        let maps = matrix.to_f64()?;
        let (height, width) = (shape[2], shape[3]);
        let one = matrix.shape().first() == Some(&1);
        grid.sampled(&args.tensor("x")?, &shape, |image, i| {
            let map = &maps[if one { 0 } else { 6 * image }..][..6];
            let (x, y) = (grid.coordinate(i % width, width), grid.coordinate(i / width, height));
            [map[0] * x + map[1] * y + map[2], map[3] * x + map[4] * y + map[5]]
        })
    }
}

/// What coordinates mean, and what is outside of an image.
#[derive(Clone, Copy, Debug)]
struct Grid {
    coordinates: Coordinates,
    align_corners: bool,
    padding: Padding,
    nearest: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Coordinates {
    Pixels,
    MinusOneToOne,
    ZeroToOne,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Padding {
    Constant(f64),
    Border,
    Reflection,
    Symmetric,
}

impl Grid {
    fn new(args: &Args) -> Result<Grid> {
        Ok(Grid {
            coordinates: match args.str("coordinates_mode")? {
                "unnormalized" => Coordinates::Pixels,
                "normalized_minus_one_to_one" => Coordinates::MinusOneToOne,
                "normalized_zero_to_one" => Coordinates::ZeroToOne,
                other => bail!(
                    "found the coordinates_mode {other}, expected unnormalized, normalized_minus_one_to_one or \
                     normalized_zero_to_one"
                ),
            },
            align_corners: args.bool("align_corners")?,
            padding: match args.str("padding_mode")? {
                "constant" => Padding::Constant(args.float("padding_value")?),
                "border" => Padding::Border,
                "reflection" => Padding::Reflection,
                "symmetric" => Padding::Symmetric,
                other => {
                    bail!("found the padding_mode {other}, expected constant, border, reflection or symmetric")
                }
            },
            nearest: match args.str("sampling_mode")? {
                "bilinear" => false,
                "nearest" => true,
                other => bail!("found the sampling_mode {other}, expected bilinear or nearest"),
            },
        })
    }

    /// The coordinate of a pixel of an axis: the inverse of [`Grid::pixel`].
    fn coordinate(&self, pixel: usize, size: usize) -> f64 {
        let share = match self.align_corners {
            true => pixel as f64 / (size as f64 - 1.0).max(1.0),
            false => (pixel as f64 + 0.5) / size as f64,
        };
        match self.coordinates {
            Coordinates::Pixels => pixel as f64,
            Coordinates::MinusOneToOne => 2.0 * share - 1.0,
            Coordinates::ZeroToOne => share,
        }
    }

    /// The place of a coordinate on an axis, in pixels, brought into the image where the padding does so.
    fn pixel(&self, coordinate: f64, size: usize) -> f64 {
        let (n, last) = (size as f64, size as f64 - 1.0);
        let share = match self.coordinates {
            Coordinates::Pixels => f64::NAN,
            Coordinates::MinusOneToOne => (coordinate + 1.0) / 2.0,
            Coordinates::ZeroToOne => coordinate,
        };
        let at = match (self.coordinates, self.align_corners) {
            (Coordinates::Pixels, _) => coordinate,
            (_, true) => share * last,
            (_, false) => share * n - 0.5,
        };
        match self.padding {
            Padding::Constant(_) => at,
            Padding::Border => at.clamp(0.0, last),
            Padding::Reflection => mirrored(at, 0.0, last),
            Padding::Symmetric => mirrored(at, -0.5, n - 0.5).clamp(0.0, last),
        }
    }

    /// Images of `shape`: `place(image, i)` gives the coordinates of pixel i of each plane.
    fn sampled(&self, x: &Tensor, shape: &[usize], place: impl Fn(usize, usize) -> [f64; 2]) -> Result<Vec<Tensor>> {
        let &[batch, channels, height, width] = x.shape() else { bail!("found x {x:?}, expected [B, C, H, W]") };
        let (pixels, out_plane) = (x.to_f64()?, count(&shape[2..])?);
        if height * width == 0 && out_plane > 0 {
            bail!("found x {x:?}, expected pixels");
        }
        let mut out = room(count(shape)?)?;
        for image in 0..batch {
            for channel in 0..channels {
                let plane = &pixels[(image * channels + channel) * height * width..][..height * width];
                let at = |row: i64, column: i64| match (usize::try_from(row), usize::try_from(column)) {
                    (Ok(row), Ok(column)) if row < height && column < width => plane[row * width + column],
                    _ => {
                        if let Padding::Constant(value) = self.padding {
                            value
                        } else {
                            0.0
                        }
                    }
                };
                out.extend((0..out_plane).map(|i| {
                    let [across, down] = place(image, i);
                    self.blended(self.pixel(down, height), self.pixel(across, width), at)
                }));
            }
        }
        Ok(vec![super::elements::values(x, shape, out)?])
    }

    fn blended(&self, y: f64, x: f64, at: impl Fn(i64, i64) -> f64) -> f64 {
        if self.nearest {
            return at(y.round_ties_even() as i64, x.round_ties_even() as i64);
        }
        let ((row, column), (down, across)) = ((y.floor(), x.floor()), (y - y.floor(), x - x.floor()));
        let (row, column) = (row as i64, column as i64);
        // A neighbour that does not count may be an infinity.
        let part = |share: f64, row: i64, column: i64| if share > 0.0 { share * at(row, column) } else { 0.0 };
        part((1.0 - down) * (1.0 - across), row, column)
            + part((1.0 - down) * across, row, column.saturating_add(1))
            + part(down * (1.0 - across), row.saturating_add(1), column)
            + part(down * across, row.saturating_add(1), column.saturating_add(1))
    }
}

/// A place brought between two mirrors.
fn mirrored(at: f64, low: f64, high: f64) -> f64 {
    let span = high - low;
    if span <= 0.0 || !at.is_finite() {
        return low.max(0.0);
    }
    let folded = (at - low).rem_euclid(2.0 * span);
    low + if folded > span { 2.0 * span - folded } else { folded }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::Value;

    fn resample(sampling: &str, padding: &str, value: f32, coordinates: &str, align: bool) -> Result<Tensor> {
        let values: Vec<(&str, Value)> = vec![
            ("x", f32s(&[1, 1, 2, 2], &[11.0, 22.0, 33.0, 44.0])),
            ("coordinates", f32s(&[1, 2, 2, 2], &[-1.0, -2.0, -3.7, -1.0, 0.0, 0.0, 3.5, 1.2])),
            ("sampling_mode", sampling.into()),
            ("padding_mode", padding.into()),
            ("padding_value", value.into()),
            ("coordinates_mode", coordinates.into()),
            ("align_corners", align.into()),
        ];
        run(&Resample, values)
    }

    /// Values of coremltools' test of `resample`, which Core ML gives.
    #[test]
    fn places_outside_are_what_the_padding_says() {
        let minus_one = "normalized_minus_one_to_one";
        near(&resample("bilinear", "constant", 6.17, minus_one, true).unwrap(), &[8.585, 6.17, 27.5, 6.17], 1e-5);
        let border = resample("nearest", "border", -1.0, "unnormalized", false).unwrap();
        near(&border, &[11.0, 11.0, 11.0, 44.0], 0.0);
        let zero = "normalized_zero_to_one";
        near(&resample("bilinear", "reflection", -1.0, zero, true).unwrap(), &[22.0, 36.3, 11.0, 34.1], 1e-4);
        near(&resample("nearest", "symmetric", -1.0, zero, false).unwrap(), &[22.0, 33.0, 11.0, 33.0], 0.0);
        assert!(resample("nearest", "vanish", 0.0, zero, true).is_err());
    }

    #[test]
    fn affine_maps_move_images() {
        let affine = |map: [f32; 6]| {
            let values: Vec<(&str, Value)> = vec![
                ("x", iota(&[1, 1, 3, 3])),
                ("transform_matrix", f32s(&[1, 6], &map)),
                ("output_height", 3.into()),
                ("output_width", 3.into()),
                ("sampling_mode", "bilinear".into()),
                ("padding_mode", "constant".into()),
                ("padding_value", 0f32.into()),
                ("coordinates_mode", "normalized_minus_one_to_one".into()),
                ("align_corners", true.into()),
            ];
            run(&Affine, values).unwrap().to_f32().unwrap()
        };
        let all: Vec<f32> = (0..9).map(|i| i as f32).collect();
        assert_eq!(affine([1.0, 0.0, 0.0, 0.0, 1.0, 0.0]), all);
        // A quarter turn, then one pixel to the right: half of two.
        assert_eq!(affine([0.0, 1.0, 0.0, 1.0, 0.0, 0.0]), [0.0, 3.0, 6.0, 1.0, 4.0, 7.0, 2.0, 5.0, 8.0]);
        assert_eq!(affine([1.0, 0.0, 1.0, 0.0, 1.0, 0.0]), [1.0, 2.0, 0.0, 4.0, 5.0, 0.0, 7.0, 8.0, 0.0]);
    }
}
