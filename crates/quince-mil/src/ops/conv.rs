//! `conv` and `conv_transpose` over one, two or three spatial axes.

use super::blockwise::fixed_shape;
use super::layout::{count, filled, fixed, result, result_shape};
use super::matmul::product;
use super::shape_rules::{merge, show};
use super::window::{Padding, Placed, Rounding, Window, counts, placed, sizes, windows};
use crate::op::FLOAT;
use crate::{Args, Dim, Op, Param, Result, Tensor, ValueType, bail};

/// See [`Op::doc`].
pub struct Conv;

impl Op for Conv {
    fn name(&self) -> &'static str {
        "conv"
    }

    fn doc(&self) -> &'static str {
        "Convolution over one to three spatial axes, without turning the kernel. x: [N, C, D..], weight: [O, C / groups, \
         K..], bias: [O], the result is [N, O, D'..]. `pad_type`: `valid`, `custom` with `pad` before and after each \
         axis, `same` so that D' = ⌈D / stride⌉ with the odd element at the end, `same_lower` with it at the beginning."
    }

    fn params(&self) -> &'static [Param] {
        const {
            &[
                Param::new("x").types(FLOAT),
                Param::new("weight").types(FLOAT),
                Param::new("bias").constant().optional().types(FLOAT),
                Param::new("strides").constant().optional(),
                Param::new("pad_type").constant().or_str("valid"),
                Param::new("pad").constant().optional(),
                Param::new("dilations").constant().optional(),
                Param::new("groups").constant().or_int(1),
            ]
        }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let (x, weight) = (args.ty("x")?, args.shape("weight")?);
        let ([batch, channels, axes @ ..], [out, per_group, kernel @ ..]) = (&x.shape[..], weight) else {
            bail!(
                "found x {} and weight {}, expected [N, C, D..] and [O, C / groups, K..]",
                show(&x.shape),
                show(weight)
            );
        };
        spatial(axes, kernel)?;
        let groups = groups(args)?;
        let divides = |dim: &Dim| dim.fixed().is_none_or(|n| n % groups == 0);
        let each = channels.fixed().map_or(Dim::Unknown, |n| Dim::Fixed(n / groups));
        if !divides(channels) || !divides(out) || !per_group.fits(each) {
            bail!("x {} and weight {} do not go with {groups} groups", show(&x.shape), show(weight));
        }
        bias(args, *out)?;
        let shape = match kernel.iter().map(|dim| dim.fixed()).collect::<Option<Vec<usize>>>() {
            Some(kernel) => counts(axes, &windows(args, &kernel)?, Rounding::Down)?,
            None => vec![Dim::Unknown; axes.len()],
        };
        result(x.dtype, [&[*batch, *out], &shape[..]].concat())
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let shape = result_shape(self, args)?;
        let (x, weight) = (args.tensor("x")?, args.tensor("weight")?);
        let axes = placed(&x.shape()[2..], &windows(args, &weight.shape()[2..])?, Rounding::Down)?;
        let groups = groups(args)?;
        let (channels, per_group) = (x.shape()[1], weight.shape()[1]);
        let (plane, positions) = (count(&x.shape()[2..])?, count(&shape[2..])?);
        let taps = per_group * count(&weight.shape()[2..])?;
        let bias = args.opt_tensor("bias")?.map(|bias| bias.to_f64()).transpose()?;
        let (x_values, weights) = (x.to_f64()?, weight.to_f64()?);
        let mut out = filled(count(&shape)?, 0.0)?;
        let pointwise = axes.iter().all(|a| a.window.kernel == 1 && a.window.stride == 1 && a.count == a.size);
        for (i, out) in out.chunks_exact_mut(positions.max(1)).enumerate() {
            let (n, o) = (i / shape[1], i % shape[1]);
            let first = n * channels + o / (shape[1] / groups) * per_group;
            let x = &x_values[first * plane..][..per_group * plane];
            let weights = &weights[o * taps..][..taps];
            out.fill(bias.as_ref().map_or(0.0, |bias| bias[o]));
            if plane == 0 || taps == 0 {
                continue;
            }
            if pointwise {
                product(weights, x, per_group, plane, out);
                continue;
            }
            for (x, kernel) in x.chunks_exact(plane).zip(weights.chunks_exact(taps / per_group)) {
                slide(&axes, x, kernel, out);
            }
        }
        Ok(vec![Tensor::from_f64(x.dtype(), shape, out)?])
    }
}

/// Adds one channel, seen through the windows and weighted by the kernel, to the result.
fn slide(axes: &[Placed; 3], x: &[f64], kernel: &[f64], out: &mut [f64]) {
    let [a, b, c] = axes;
    for (tap, weight) in kernel.iter().enumerate() {
        let (kc, rest) = (tap % c.window.kernel, tap / c.window.kernel);
        let (kb, ka) = (rest % b.window.kernel, rest / b.window.kernel);
        let range = c.covering(kc);
        if range.is_empty() {
            continue;
        }
        for i in a.covering(ka) {
            for j in b.covering(kb) {
                let from = (a.at(i, ka) * b.size + b.at(j, kb)) * c.size + c.at(range.start, kc);
                let to = (i * b.count + j) * c.count;
                let out = &mut out[to + range.start..to + range.end];
                for (out, x) in out.iter_mut().zip(x[from..].iter().step_by(c.window.stride)) {
                    *out += weight * x;
                }
            }
        }
    }
}

/// The number of spatial axes, one to three, of which the kernel has as many.
fn spatial(axes: &[Dim], kernel: &[Dim]) -> Result<()> {
    if !(1..=3).contains(&axes.len()) || axes.len() != kernel.len() {
        bail!("found spatial axes {} and a kernel {}, expected one to three of each", show(axes), show(kernel));
    }
    Ok(())
}

fn groups(args: &Args) -> Result<usize> {
    match usize::try_from(args.int("groups")?) {
        Ok(groups @ 1..) => Ok(groups),
        _ => bail!("found {} groups, expected 1 or more", args.int("groups")?),
    }
}

/// Refuses a bias that does not have one value for each channel of the result.
fn bias(args: &Args, channels: Dim) -> Result<()> {
    if args.has("bias") && !matches!(args.shape("bias")?, [n] if n.fits(channels)) {
        bail!("found a bias {}, expected [{channels}]", show(args.shape("bias")?));
    }
    Ok(())
}

/// See [`Op::doc`].
pub struct ConvTranspose;

impl Op for ConvTranspose {
    fn name(&self) -> &'static str {
        "conv_transpose"
    }

    fn doc(&self) -> &'static str {
        "The transpose of `conv`: each element of x adds the kernel, weighted, to a window of the result. x: [N, C, D..], \
         weight: [C, O / groups, K..], bias: [O]. The size is (D - 1) · stride + (K - 1) · dilation + 1, of which \
         `custom` padding cuts `pad` off before and after, and `same` what exceeds D · stride; `output_shape` says it \
         outright."
    }

    fn params(&self) -> &'static [Param] {
        const {
            &[
                Param::new("x").types(FLOAT),
                Param::new("weight").constant().types(FLOAT),
                Param::new("bias").constant().optional().types(FLOAT),
                Param::new("pad").constant().optional(),
                Param::new("output_shape").constant().optional(),
                Param::new("pad_type").constant().or_str("valid"),
                Param::new("strides").constant().optional(),
                Param::new("dilations").constant().optional(),
                Param::new("groups").constant().or_int(1),
            ]
        }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let (x, weight) = (args.ty("x")?, fixed_shape(args, "weight")?);
        let ([batch, channels, axes @ ..], [inputs, per_group, kernel @ ..]) = (&x.shape[..], &weight[..]) else {
            bail!("found x {} and weight {weight:?}, expected [N, C, D..] and [C, O / groups, K..]", show(&x.shape));
        };
        spatial(axes, &fixed(kernel))?;
        let groups = groups(args)?;
        if inputs % groups != 0 || merge(*channels, Dim::Fixed(*inputs)).is_err() {
            bail!("x {} and weight {weight:?} do not go with {groups} groups", show(&x.shape));
        }
        let out = Dim::Fixed(per_group.saturating_mul(groups));
        bias(args, out)?;
        let windows = windows(args, kernel)?;
        let mut shape = vec![*batch, out];
        if args.has("output_shape") {
            let given = fixed(&sizes(args, "output_shape", x.shape.len(), 0)?);
            if given[1] != out || !batch.fits(given[0]) {
                bail!("found output_shape {}, expected it to begin with {}", show(&given), show(&shape));
            }
            return result(x.dtype, given);
        }
        for (size, window) in axes.iter().zip(&windows) {
            shape.push(size.fixed().map(|size| spread(size, window)).transpose()?.map_or(Dim::Unknown, |s| s.0.into()));
        }
        result(x.dtype, shape)
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let shape = result_shape(self, args)?;
        let (x, weight) = (args.tensor("x")?, args.tensor("weight")?);
        let axes = scattered(args, x.shape(), weight.shape(), &shape)?;
        let (inputs, per_group) = (weight.shape()[0], weight.shape()[1]);
        let (plane, positions) = (count(&x.shape()[2..])?, count(&shape[2..])?);
        let taps = count(&weight.shape()[2..])?;
        let per_input_group = inputs / groups(args)?;
        let bias = args.opt_tensor("bias")?.map(|bias| bias.to_f64()).transpose()?;
        let (x_values, weights) = (x.to_f64()?, weight.to_f64()?);
        let mut out = filled(count(&shape)?, 0.0)?;
        for (i, out) in out.chunks_exact_mut(positions.max(1)).enumerate() {
            let (n, o) = (i / shape[1], i % shape[1]);
            out.fill(bias.as_ref().map_or(0.0, |bias| bias[o]));
            let first = o / per_group * per_input_group;
            for c in first..first + per_input_group {
                let kernel = &weights[(c * per_group + o % per_group) * taps..][..taps];
                scatter(&axes, &x_values[(n * inputs + c) * plane..][..plane], kernel, out);
            }
        }
        Ok(vec![Tensor::from_f64(x.dtype(), shape, out)?])
    }
}

/// The size of a transposed convolution along an axis, and how much of its beginning is cut off.
fn spread(size: usize, window: &Window) -> Result<(usize, usize)> {
    let full = size.saturating_sub(1).saturating_mul(window.stride).saturating_add(window.reach());
    let (wanted, cut) = match window.padding {
        Padding::Valid => (full, 0),
        Padding::Same | Padding::SameLower => {
            let wanted = size.saturating_mul(window.stride);
            (wanted, cut_before(full, wanted, window.padding))
        }
        Padding::Custom(before, after) => match full.checked_sub(before.saturating_add(after)) {
            Some(wanted) => (wanted, before),
            None => bail!("padding of {before} and {after} is more than the {full} elements of an axis"),
        },
    };
    Ok((wanted, cut))
}

fn cut_before(full: usize, wanted: usize, padding: Padding) -> usize {
    let excess = full.saturating_sub(wanted);
    match padding {
        Padding::Same => excess / 2,
        Padding::SameLower => excess - excess / 2,
        Padding::Custom(before, _) => before,
        Padding::Valid => 0,
    }
}

/// The windows of the result that the elements of x spread over, as [`placed`] has them for `conv`: `size` is that of
/// the result, `count` the number of elements of x.
fn scattered(args: &Args, x: &[usize], weight: &[usize], shape: &[usize]) -> Result<[Placed; 3]> {
    let windows = windows(args, &weight[2..])?;
    let one = Window { kernel: 1, stride: 1, dilation: 1, padding: Padding::Valid };
    let mut out = [Placed { size: 1, window: one, before: 0, after: 0, count: 1 }; 3];
    let first = 3 - windows.len();
    for (i, window) in windows.into_iter().enumerate() {
        let (count, size) = (x[2 + i], shape[2 + i]);
        let full = count.saturating_sub(1).saturating_mul(window.stride).saturating_add(window.reach());
        let before = cut_before(full, size, window.padding);
        out[first + i] = Placed { size, window, before, after: 0, count };
    }
    Ok(out)
}

/// Adds one channel, each element spread over its window by the kernel, to the result.
fn scatter(axes: &[Placed; 3], x: &[f64], kernel: &[f64], out: &mut [f64]) {
    let [a, b, c] = axes;
    for (tap, weight) in kernel.iter().enumerate() {
        let (kc, rest) = (tap % c.window.kernel, tap / c.window.kernel);
        let (kb, ka) = (rest % b.window.kernel, rest / b.window.kernel);
        for i in a.covering(ka) {
            for j in b.covering(kb) {
                let to = (a.at(i, ka) * b.size + b.at(j, kb)) * c.size;
                for l in c.covering(kc) {
                    out[to + c.at(l, kc)] += weight * x[(i * b.count + j) * c.count + l];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::{DType, Value};

    /// The weights 1, 2, 3, ... in this shape.
    fn ones_up(shape: &[usize]) -> Value {
        let n = shape.iter().product::<usize>();
        f32s(shape, &(1..=n).map(|i| i as f32).collect::<Vec<_>>())
    }

    fn conv(x: Value, weight: Value, rest: Vec<(&str, Value)>) -> Result<Tensor> {
        let mut values = vec![("x", x), ("weight", weight)];
        values.extend(rest);
        run(&Conv, values)
    }

    #[test]
    fn windows_slide_over_one_axis() {
        let y = conv(iota(&[1, 1, 5]), ones_up(&[1, 1, 2]), vec![]).unwrap();
        assert_eq!(y.to_f32().unwrap(), [2., 5., 8., 11.]);
        let rest = vec![("pad_type", "custom".into()), ("pad", vec![1, 0].into()), ("strides", vec![2].into())];
        assert_eq!(conv(iota(&[1, 1, 5]), ones_up(&[1, 1, 2]), rest).unwrap().to_f32().unwrap(), [0., 5., 11.]);
        let same = |pad_type: &str| {
            let rest = vec![("pad_type", pad_type.into()), ("dilations", vec![3].into())];
            conv(ones_up(&[1, 1, 4]), ones_up(&[1, 1, 2]), rest).unwrap().to_f32().unwrap()
        };
        assert_eq!((same("same"), same("same_lower")), (vec![6., 9., 2., 3.], vec![4., 6., 9., 2.]));
    }

    /// Expected values: a direct sum in NumPy over `np.arange(36).reshape(1, 4, 3, 3)` and weights 1 to 32 in
    /// [4, 2, 2, 2], two groups, stride 2 and 1, padding 1 0 0 1, bias 0 to 3.
    #[test]
    fn groups_see_their_own_channels() {
        let rest = vec![
            ("bias", iota(&[4])),
            ("groups", 2.into()),
            ("strides", vec![2, 1].into()),
            ("pad_type", "custom".into()),
            ("pad", vec![1, 0, 0, 1].into()),
        ];
        let y = conv(iota(&[1, 4, 3, 3]), ones_up(&[4, 2, 2, 2]), rest).unwrap();
        assert_eq!((y.shape(), y.to_f32().unwrap()), (&[1, 4, 2, 3][..], EXPECTED_GROUPS.to_vec()));
    }

    const EXPECTED_GROUPS: [f32; 24] = [
        147., 169., 83., 428., 464., 218., 308., 362., 188., 1037., 1137., 571., 2017., 2103., 1049., 4598., 4762.,
        2364., 2754., 2872., 1442., 6359., 6587., 3293.,
    ];

    #[test]
    fn a_kernel_of_one_is_a_matrix_product() {
        let y = conv(iota(&[1, 2, 1, 3]), ones_up(&[2, 2, 1, 1]), vec![]).unwrap();
        assert_eq!(y.to_f32().unwrap(), [6., 9., 12., 12., 19., 26.]);
        let entries = vec![("x", typed(DType::F16, &[1, 2, 1, -1])), ("weight", typed(DType::F16, &[5, 2, 1, 1]))];
        assert_eq!(inferred(&Conv, entries).unwrap(), [1, 5, 1, -1]);
    }

    #[test]
    fn parameters_that_do_not_go_together_are_refused() {
        let no = |rest| conv(iota(&[1, 4, 3]), iota(&[2, 2, 1]), rest).is_err();
        assert!(!no(vec![("groups", 2.into())]));
        assert!(no(vec![]) && no(vec![("groups", 0.into())]) && no(vec![("groups", 3.into())]));
        for rest in [("strides", vec![0].into()), ("dilations", vec![-1].into()), ("strides", vec![1, 1].into())] {
            assert!(no(vec![("groups", 2.into()), rest]));
        }
        assert!(no(vec![("groups", 2.into()), ("pad_type", "other".into())]));
        assert!(no(vec![("groups", 2.into()), ("bias", iota(&[4]))]));
    }

    /// Expected values: the transpose of the matrix that `conv` is, by hand.
    #[test]
    fn the_transpose_spreads_elements_over_windows() {
        let transposed = |rest: Vec<(&'static str, Value)>| {
            let mut values = vec![("x", f32s(&[1, 1, 2], &[1.0, 10.0])), ("weight", ones_up(&[1, 1, 3]))];
            values.extend(rest);
            run(&ConvTranspose, values).unwrap().to_f32().unwrap()
        };
        assert_eq!(transposed(vec![]), [1., 12., 23., 30.]);
        assert_eq!(transposed(vec![("strides", vec![2].into())]), [1., 2., 13., 20., 30.]);
        let same = vec![("strides", vec![2].into()), ("pad_type", "same".into())];
        assert_eq!(transposed(same), [1., 2., 13., 20.]);
        let custom = vec![("pad_type", "custom".into()), ("pad", vec![1, 1].into())];
        assert_eq!(transposed(custom), [12., 23.]);
        let more = vec![("strides", vec![2].into()), ("output_shape", vec![1, 1, 6].into())];
        assert_eq!(transposed(more), [1., 2., 13., 20., 30., 0.]);
        let values = vec![("x", iota(&[1, 2, 1])), ("weight", ones_up(&[2, 1, 1])), ("groups", 2.into())];
        assert_eq!(run(&ConvTranspose, values).unwrap().to_f32().unwrap(), [0., 2.]);
    }
}
