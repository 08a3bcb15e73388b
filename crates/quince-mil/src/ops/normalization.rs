//! Normalizations: elements shifted and scaled by the statistics of those around them.

use super::elements::{Groups, per_channel, values};
use super::shape_rules::{axes, show};
use crate::op::FLOAT;
use crate::{Args, DType, Dim, Op, Param, Result, Tensor, ValueType, bail};

const X: Param = Param::new("x").types(FLOAT);
const GAMMA: Param = Param::new("gamma").constant().optional().types(FLOAT);
const BETA: Param = Param::new("beta").constant().optional().types(FLOAT);

/// Checks the shape of a parameter, if it is given.
fn check(args: &Args, param: &str, expected: &[Dim]) -> Result<()> {
    if args.has(param) {
        let found = args.shape(param)?;
        if found.len() != expected.len() || !found.iter().zip(expected).all(|(a, b)| a.fits(*b)) {
            bail!("found {param} {}, expected {}", show(found), show(expected));
        }
    }
    Ok(())
}

/// The numbers of a parameter, or `count` times what it is when left out.
fn numbers(args: &Args, param: &str, count: usize, default: f64) -> Result<Vec<f64>> {
    let numbers = match args.opt_tensor(param)? {
        Some(tensor) => tensor.to_f64()?,
        None => vec![default; count],
    };
    if numbers.len() != count {
        bail!("parameter `{param}` has {} values, expected {count}", numbers.len());
    }
    Ok(numbers)
}

/// Mean and variance of some elements, in two passes so that nothing cancels.
fn moments(x: &[f64], elements: impl Iterator<Item = usize> + Clone, count: usize) -> (f64, f64) {
    let mean = elements.clone().map(|i| x[i]).sum::<f64>() / count as f64;
    let variance = elements.map(|i| (x[i] - mean).powi(2)).sum::<f64>() / count as f64;
    (mean, variance)
}

/// See [`Op::doc`].
pub struct LayerNorm;

impl Op for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn doc(&self) -> &'static str {
        "`(x - mean) / √(variance + epsilon) · gamma + beta`, mean and variance along `axes` (all, if not given). gamma \
         and beta have the shape of `x` along those axes."
    }

    fn params(&self) -> &'static [Param] {
        const {
            &[
                X,
                Param::new("axes").constant().optional().types(&[DType::I32]),
                GAMMA,
                BETA,
                Param::new("epsilon").constant().types(FLOAT).or_float(1e-5),
            ]
        }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let x = args.ty("x")?;
        let axes = normalized(args, x.shape.len())?;
        let shape: Vec<Dim> = axes.iter().map(|&axis| x.shape[axis]).collect();
        check(args, "gamma", &shape)?;
        check(args, "beta", &shape)?;
        Ok(vec![x.clone().into()])
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let (x, epsilon) = (args.tensor("x")?, args.float("epsilon")?);
        let groups = Groups::new(x.shape(), &normalized(args, x.rank())?)?;
        let count = groups.offsets.len();
        let (gamma, beta) = (numbers(args, "gamma", count, 1.0)?, numbers(args, "beta", count, 0.0)?);
        let mut y = x.to_f64()?;
        for group in groups.iter() {
            let (mean, variance) = moments(&y, group.clone(), count);
            let scale = (variance + epsilon).sqrt().recip();
            for ((i, gamma), beta) in group.zip(&gamma).zip(&beta) {
                y[i] = (y[i] - mean) * scale * gamma + beta;
            }
        }
        Ok(vec![values(&x, x.shape(), y)?])
    }
}

/// The axes that are normalized, ascending, as gamma and beta run over them.
fn normalized(args: &Args, rank: usize) -> Result<Vec<usize>> {
    let mut axes = match args.opt_ints("axes")? {
        Some(given) => axes(&given, rank)?,
        None => (0..rank).collect(),
    };
    axes.sort_unstable();
    Ok(axes)
}

/// See [`Op::doc`].
pub struct BatchNorm;

impl Op for BatchNorm {
    fn name(&self) -> &'static str {
        "batch_norm"
    }

    fn doc(&self) -> &'static str {
        "`(x - mean) / √(variance + epsilon) · gamma + beta` with a constant mean and variance for each channel. \
         x: [n, C, ...] of rank 3 to 5, the others [C]."
    }

    fn params(&self) -> &'static [Param] {
        const {
            &[
                X,
                Param::new("mean").constant().types(FLOAT),
                Param::new("variance").constant().types(FLOAT),
                GAMMA,
                BETA,
                Param::new("epsilon").constant().types(FLOAT).or_float(1e-5),
            ]
        }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let x = args.ty("x")?;
        if !(3..=5).contains(&x.shape.len()) {
            bail!("found x {}, expected [n, C, ...] of rank 3 to 5", show(&x.shape));
        }
        for param in ["mean", "variance", "gamma", "beta"] {
            check(args, param, &x.shape[1..2])?;
        }
        Ok(vec![x.clone().into()])
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let (x, epsilon) = (args.tensor("x")?, args.float("epsilon")?);
        let channels = x.shape().get(1).copied().unwrap_or(0);
        let get = |param, default| numbers(args, param, channels, default);
        let params = [get("mean", 0.0)?, get("variance", 1.0)?, get("gamma", 1.0)?, get("beta", 0.0)?];
        let y = per_channel(&x, &params, |x, p| (x - p[0]) / (p[1] + epsilon).sqrt() * p[2] + p[3])?;
        Ok(vec![y])
    }
}

/// See [`Op::doc`].
pub struct InstanceNorm;

impl Op for InstanceNorm {
    fn name(&self) -> &'static str {
        "instance_norm"
    }

    fn doc(&self) -> &'static str {
        "`(x - mean) / √(variance + epsilon) · gamma + beta`, mean and variance of each channel of each example. \
         x: [n, C, ...] of rank 3 or 4, gamma and beta [C]."
    }

    fn params(&self) -> &'static [Param] {
        const { &[X, GAMMA, BETA, Param::new("epsilon").constant().types(FLOAT).or_float(1e-5)] }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let x = args.ty("x")?;
        if !(3..=4).contains(&x.shape.len()) {
            bail!("found x {}, expected [n, C, ...] of rank 3 or 4", show(&x.shape));
        }
        check(args, "gamma", &x.shape[1..2])?;
        check(args, "beta", &x.shape[1..2])?;
        Ok(vec![x.clone().into()])
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let (x, epsilon) = (args.tensor("x")?, args.float("epsilon")?);
        let channels = x.shape().get(1).copied().unwrap_or(0);
        let (gamma, beta) = (numbers(args, "gamma", channels, 1.0)?, numbers(args, "beta", channels, 0.0)?);
        let groups = Groups::new(x.shape(), &(2..x.rank()).collect::<Vec<usize>>())?;
        let mut y = x.to_f64()?;
        for (g, group) in groups.iter().enumerate() {
            let (mean, variance) = moments(&y, group.clone(), groups.offsets.len());
            let scale = (variance + epsilon).sqrt().recip() * gamma[g % channels];
            group.for_each(|i| y[i] = (y[i] - mean) * scale + beta[g % channels]);
        }
        Ok(vec![values(&x, x.shape(), y)?])
    }
}

/// See [`Op::doc`].
pub struct L2Norm;

impl Op for L2Norm {
    fn name(&self) -> &'static str {
        "l2_norm"
    }

    fn doc(&self) -> &'static str {
        "`x / √(Σ x² + epsilon)`, the sum over the last three axes. x has rank 3 or more."
    }

    fn params(&self) -> &'static [Param] {
        const { &[X, Param::new("epsilon").constant().types(FLOAT).or_float(1e-6)] }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let x = args.ty("x")?;
        if x.shape.len() < 3 {
            bail!("found x {}, expected rank 3 or more", show(&x.shape));
        }
        Ok(vec![x.clone().into()])
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let (x, epsilon) = (args.tensor("x")?, args.float("epsilon")?);
        let axes: Vec<usize> = (x.rank().saturating_sub(3)..x.rank()).collect();
        let mut y = x.to_f64()?;
        for group in Groups::new(x.shape(), &axes)?.iter() {
            let norm = (group.clone().map(|i| y[i] * y[i]).sum::<f64>() + epsilon).sqrt();
            group.for_each(|i| y[i] /= norm);
        }
        Ok(vec![values(&x, x.shape(), y)?])
    }
}

/// See [`Op::doc`].
pub struct LocalResponseNorm;

impl Op for LocalResponseNorm {
    fn name(&self) -> &'static str {
        "local_response_norm"
    }

    fn doc(&self) -> &'static str {
        "`x / (k + alpha/size · Σ x²)^beta`, the sum over `size` neighbouring channels, the element's own in the middle \
         and one more before it than after it if size is even. x: [n, C, ...] of rank 3 to 5."
    }

    fn params(&self) -> &'static [Param] {
        const {
            &[
                X,
                Param::new("size").constant().types(&[DType::I32]),
                Param::new("alpha").constant().types(FLOAT).or_float(1e-4),
                Param::new("beta").constant().types(FLOAT).or_float(0.75),
                Param::new("k").constant().types(FLOAT).or_float(1.0),
            ]
        }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let (x, size) = (args.ty("x")?, args.int("size")?);
        if !(3..=5).contains(&x.shape.len()) || size < 1 {
            bail!("found x {} and size {size}, expected [n, C, ...] of rank 3 to 5 and 1 or more", show(&x.shape));
        }
        Ok(vec![x.clone().into()])
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let (x, size) = (args.tensor("x")?, args.int("size")?.max(1) as usize);
        let (alpha, beta, k) = (args.float("alpha")?, args.float("beta")?, args.float("k")?);
        if x.rank() < 2 {
            bail!("found x {x:?}, expected [n, C, ...]");
        }
        let (mut y, elements) = (x.to_f64()?, x.to_f64()?);
        for group in Groups::new(x.shape(), &[1])?.iter() {
            let channels: Vec<usize> = group.collect();
            for (c, &i) in channels.iter().enumerate() {
                let end = channels.len().min(c + (size - 1) / 2 + 1);
                let around = &channels[c.saturating_sub(size / 2)..end];
                let sum: f64 = around.iter().map(|&j| elements[j] * elements[j]).sum();
                y[i] = elements[i] / (k + alpha / size as f64 * sum).powf(beta);
            }
        }
        Ok(vec![values(&x, x.shape(), y)?])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::elements_of;

    fn near(found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len());
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() <= 1e-6), "{found:?} {expected:?}");
    }

    #[test]
    fn layer_norm_by_hand() {
        // Mean 2, variance 2/3; with epsilon 1/3 the divisor is 1.
        let x = || ("x", Tensor::from_vec([1, 3], vec![1f32, 2.0, 3.0]).unwrap());
        let epsilon = || ("epsilon", Tensor::scalar(1f32 / 3.0));
        near(&elements_of(&LayerNorm, vec![x(), epsilon()]).unwrap(), &[-1.0, 0.0, 1.0]);
        let axes = ("axes", Tensor::vector(vec![-1i32]));
        let gamma = ("gamma", Tensor::vector(vec![1f32, 2.0, 3.0]));
        let beta = ("beta", Tensor::vector(vec![10f32, 20.0, 30.0]));
        near(&elements_of(&LayerNorm, vec![x(), axes, gamma.clone(), beta, epsilon()]).unwrap(), &[9.0, 20.0, 33.0]);
        let error = elements_of(&LayerNorm, vec![x(), gamma]).unwrap_err().to_string();
        assert_eq!(error, "found gamma [3], expected [1, 3]");
    }

    #[test]
    fn norms_of_channels_by_hand() {
        let x = || ("x", Tensor::from_vec([1, 2, 2], vec![1f32, 3.0, 2.0, 6.0]).unwrap());
        let vector = |name, v: [f32; 2]| (name, Tensor::vector(v.to_vec()));
        let epsilon = || ("epsilon", Tensor::scalar(0f32));
        let given = vec![x(), vector("mean", [1.0, 2.0]), vector("variance", [4.0, 1.0]), epsilon()];
        near(&elements_of(&BatchNorm, given).unwrap(), &[0.0, 1.0, 0.0, 4.0]);
        let given = vec![x(), vector("gamma", [1.0, 5.0]), vector("beta", [0.0, 1.0]), epsilon()];
        near(&elements_of(&InstanceNorm, given).unwrap(), &[-1.0, 1.0, -4.0, 6.0]);
        let norm = 50f32.sqrt();
        near(&elements_of(&L2Norm, vec![x(), epsilon()]).unwrap(), &[1.0 / norm, 3.0 / norm, 2.0 / norm, 6.0 / norm]);
    }

    #[test]
    fn local_response_norm_looks_at_neighbours() {
        let x = ("x", Tensor::from_vec([1, 3, 1], vec![1f32, 2.0, 3.0]).unwrap());
        let scalar = |name, v: f32| (name, Tensor::scalar(v));
        let given = vec![x, ("size", Tensor::scalar(2i32)), scalar("alpha", 2.0), scalar("beta", 1.0)];
        // torch.nn.functional.local_response_norm(x, 2, 2.0, 1.0, 1.0)
        near(&elements_of(&LocalResponseNorm, given).unwrap(), &[0.5, 2.0 / 6.0, 3.0 / 14.0]);
    }
}
