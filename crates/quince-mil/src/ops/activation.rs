//! Activation functions: of one number each, but for `softmax` and those with parameters for each channel.

use super::elements::{Groups, map, per_channel, values};
use super::elementwise_unary::{Unary, X, larger, smaller};
use super::shape_rules::{axis, show};
use super::special::{erfc, sigmoid, softplus};
use crate::op::FLOAT;
use crate::{Args, Op, Param, Result, Tensor, ValueType, bail};
use std::f64::consts::{FRAC_1_SQRT_2, PI};

const ALPHA: &[Param] = &[Param::new("x").types(FLOAT), Param::new("alpha").constant().types(FLOAT)];
const ALPHA_BETA: &[Param] = &[
    Param::new("x").types(FLOAT),
    Param::new("alpha").constant().types(FLOAT),
    Param::new("beta").constant().types(FLOAT),
];

macro_rules! activation {
    ($($op:ident $name:literal $doc:literal $params:expr, $eval:expr;)*) => {$(
        #[doc = $doc]
        pub const $op: Unary = Unary { name: $name, doc: $doc, params: $params, eval: $eval };
    )*};
}

activation! {
    RELU "relu" "`max(x, 0)`." X,
        |a| map(&a.tensor("x")?, |x| larger(x, 0.0));
    RELU6 "relu6" "`min(max(x, 0), 6)`." X,
        |a| map(&a.tensor("x")?, |x| smaller(larger(x, 0.0), 6.0));
    SIGMOID "sigmoid" "`1 / (1 + exp(-x))`." X,
        |a| map(&a.tensor("x")?, sigmoid);
    SILU "silu" "`x / (1 + exp(-x))`, also called swish." X,
        |a| map(&a.tensor("x")?, |x| x * sigmoid(x));
    SOFTPLUS "softplus" "`log(1 + exp(x))`." X,
        |a| map(&a.tensor("x")?, softplus);
    SOFTSIGN "softsign" "`x / (1 + |x|)`." X,
        |a| map(&a.tensor("x")?, |x| x / (1.0 + x.abs()));
    ELU "elu" "`x` where it is positive, otherwise `alpha · (exp(x) - 1)`." ALPHA,
        |a| with_alpha(a, |x, alpha| if x > 0.0 { x } else { alpha * x.exp_m1() });
    LEAKY_RELU "leaky_relu" "`x` where it is not negative, otherwise `alpha · x`." ALPHA,
        |a| with_alpha(a, |x, alpha| if x >= 0.0 { x } else { alpha * x });
    THRESHOLDED_RELU "thresholded_relu" "`x` where it is at least alpha, otherwise 0." ALPHA,
        |a| with_alpha(a, |x, alpha| if x < alpha { 0.0 } else { x });
    CLAMPED_RELU "clamped_relu" "`min(x, beta)` where x is not negative, otherwise `min(alpha · x, beta)`." ALPHA_BETA,
        |a| with_alpha_beta(a, |x, alpha, beta| smaller(if x >= 0.0 { x } else { alpha * x }, beta));
    LINEAR_ACTIVATION "linear_activation" "`alpha · x + beta`." ALPHA_BETA,
        |a| with_alpha_beta(a, |x, alpha, beta| alpha * x + beta);
    SCALED_TANH "scaled_tanh" "`alpha · tanh(beta · x)`." ALPHA_BETA,
        |a| with_alpha_beta(a, |x, alpha, beta| alpha * (beta * x).tanh());
    SIGMOID_HARD "sigmoid_hard" "`min(max(alpha · x + beta, 0), 1)`." ALPHA_BETA,
        |a| with_alpha_beta(a, |x, alpha, beta| smaller(larger(alpha * x + beta, 0.0), 1.0));
}

fn with_alpha(args: &Args, f: impl Fn(f64, f64) -> f64) -> Result<Tensor> {
    let alpha = args.float("alpha")?;
    map(&args.tensor("x")?, |x| f(x, alpha))
}

fn with_alpha_beta(args: &Args, f: impl Fn(f64, f64, f64) -> f64) -> Result<Tensor> {
    let (alpha, beta) = (args.float("alpha")?, args.float("beta")?);
    map(&args.tensor("x")?, |x| f(x, alpha, beta))
}

/// See [`Op::doc`].
pub struct Gelu;

const MODES: [&str; 3] = ["EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION"];

impl Op for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn doc(&self) -> &'static str {
        "The Gaussian error linear unit. mode EXACT: `x/2 · (1 + erf(x/√2))`; TANH_APPROXIMATION: \
         `x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))`; SIGMOID_APPROXIMATION: `x · sigmoid(1.702 x)`."
    }

    fn params(&self) -> &'static [Param] {
        const { &[Param::new("x").types(FLOAT), Param::new("mode").constant().or_str("EXACT")] }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let mode = args.str("mode")?;
        if !MODES.contains(&mode) {
            bail!("found the mode `{mode}`, expected one of {}", MODES.join(", "));
        }
        Ok(vec![args.ty("x")?.clone().into()])
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let x = args.tensor("x")?;
        Ok(vec![match args.str("mode")? {
            "TANH_APPROXIMATION" => {
                let scale = (2.0 / PI).sqrt();
                map(&x, |x| 0.5 * x * (1.0 + (scale * (x + 0.044715 * x * x * x)).tanh()))?
            }
            "SIGMOID_APPROXIMATION" => map(&x, |x| x * sigmoid(1.702 * x))?,
            _ => map(&x, |x| 0.5 * x * erfc(-x * FRAC_1_SQRT_2))?,
        }])
    }
}

/// An activation whose parameters are one number for each channel, the axis 1 of `x`.
pub struct PerChannel {
    name: &'static str,
    doc: &'static str,
    params: &'static [Param],
    f: fn(f64, &[f64]) -> f64,
}

/// `prelu`.
pub const PRELU: PerChannel = PerChannel {
    name: "prelu",
    doc: "`x` where it is positive, otherwise `alpha · x`. x: [B, C, ...], alpha: [C].",
    params: ALPHA,
    f: |x, p| if x > 0.0 { x } else { p[0] * x },
};

/// `softplus_parametric`.
pub const SOFTPLUS_PARAMETRIC: PerChannel = PerChannel {
    name: "softplus_parametric",
    doc: "`alpha · log(1 + exp(beta · x))`. x: [B, C, ...], alpha and beta: [C].",
    params: ALPHA_BETA,
    f: |x, p| p[0] * softplus(p[1] * x),
};

impl Op for PerChannel {
    fn name(&self) -> &'static str {
        self.name
    }

    fn doc(&self) -> &'static str {
        self.doc
    }

    fn params(&self) -> &'static [Param] {
        self.params
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let x = args.ty("x")?;
        if x.shape.len() < 3 {
            bail!("found x {}, expected [B, C, ...] of rank 3 or more", show(&x.shape));
        }
        for param in &self.params[1..] {
            let found = args.shape(param.name)?;
            if !matches!(found, [n] if n.fits(x.shape[1])) {
                bail!("found {} {}, expected [{}]", param.name, show(found), x.shape[1]);
            }
        }
        Ok(vec![x.clone().into()])
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let params = self.params[1..].iter().map(|param| args.tensor(param.name)?.to_f64());
        let params = params.collect::<Result<Vec<_>>>()?;
        Ok(vec![per_channel(&args.tensor("x")?, &params, self.f)?])
    }
}

/// See [`Op::doc`].
pub struct Softmax;

impl Op for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn doc(&self) -> &'static str {
        "`exp(x) / Σ exp(x)`, the sum along `axis`. Computed relative to the largest element, so it does not overflow."
    }

    fn params(&self) -> &'static [Param] {
        const { &[Param::new("x").types(FLOAT), Param::new("axis").constant().or_int(-1)] }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let x = args.ty("x")?;
        axis(args.int("axis")?, x.shape.len())?;
        Ok(vec![x.clone().into()])
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let x = args.tensor("x")?;
        let groups = Groups::new(x.shape(), &[axis(args.int("axis")?, x.rank())?])?;
        let mut y = x.to_f64()?;
        for group in groups.iter() {
            let largest = group.clone().map(|i| y[i]).fold(f64::NEG_INFINITY, larger);
            let sum: f64 = group.clone().map(|i| (y[i] - largest).exp()).sum();
            group.for_each(|i| y[i] = (y[i] - largest).exp() / sum);
        }
        Ok(vec![values(&x, x.shape(), y)?])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::ArgInfo;
    use crate::ops::testing::elements_of;
    use half::f16;

    fn near(found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len());
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() <= 1e-6), "{found:?} {expected:?}");
    }

    #[test]
    fn activations_are_their_formulas() {
        let x = || ("x", Tensor::vector(vec![-2f32, 0.0, 1.0, 8.0]));
        let number = |name, v: f32| (name, Tensor::scalar(v));
        near(&elements_of(&RELU6, vec![x()]).unwrap(), &[0.0, 0.0, 1.0, 6.0]);
        near(&elements_of(&SIGMOID, vec![x()]).unwrap(), &[0.119_202_92, 0.5, 0.731_058_6, 0.999_664_66]);
        near(&elements_of(&SILU, vec![x()]).unwrap(), &[-0.238_405_84, 0.0, 0.731_058_6, 7.997_317]);
        near(&elements_of(&SOFTPLUS, vec![x()]).unwrap(), &[0.126_928, std::f32::consts::LN_2, 1.313_261_7, 8.000_335]);
        near(&elements_of(&SOFTSIGN, vec![x()]).unwrap(), &[-2.0 / 3.0, 0.0, 0.5, 8.0 / 9.0]);
        near(&elements_of(&ELU, vec![x(), number("alpha", 0.5)]).unwrap(), &[-0.432_332_36, 0.0, 1.0, 8.0]);
        near(&elements_of(&LEAKY_RELU, vec![x(), number("alpha", 0.1)]).unwrap(), &[-0.2, 0.0, 1.0, 8.0]);
        near(&elements_of(&THRESHOLDED_RELU, vec![x(), number("alpha", 1.0)]).unwrap(), &[0.0, 0.0, 1.0, 8.0]);
        let both = |a, b| vec![x(), number("alpha", a), number("beta", b)];
        near(&elements_of(&CLAMPED_RELU, both(0.5, 4.0)).unwrap(), &[-1.0, 0.0, 1.0, 4.0]);
        near(&elements_of(&CLAMPED_RELU, both(-4.0, 6.0)).unwrap(), &[6.0, 0.0, 1.0, 6.0]);
        near(&elements_of(&SIGMOID_HARD, both(0.2, 0.5)).unwrap(), &[0.1, 0.5, 0.7, 1.0]);
        near(&elements_of(&SCALED_TANH, both(2.0, 0.5)).unwrap(), &[-1.523_188_3, 0.0, 0.924_234_3, 1.998_658_6]);
    }

    #[test]
    fn gelu_has_three_modes() {
        let x = || ("x", Tensor::vector(vec![-3f32, -1.0, 0.0, 1.0, 3.0]));
        // torch.nn.functional.gelu in float64.
        near(&elements_of(&Gelu, vec![x()]).unwrap(), &[-0.004_049_694, -0.158_655_26, 0.0, 0.841_344_8, 2.995_950_3]);
        let mode = |mode: &str| {
            let given = |v: crate::Value| vec![ArgInfo::known(v)];
            let args = Args::new(&Gelu, vec![("x", given(x().1.into())), ("mode", given(mode.into()))]);
            Gelu.infer(&args)?;
            Gelu.eval(&args)?[0].to_f32()
        };
        let tanh = [-0.003_637_392, -0.158_808_01, 0.0, 0.841_192, 2.996_362_6];
        near(&mode("TANH_APPROXIMATION").unwrap(), &tanh);
        near(&mode("SIGMOID_APPROXIMATION").unwrap(), &[-0.018_071_31, -0.154_204_23, 0.0, 0.845_795_77, 2.981_928_7]);
        assert!(mode("TANH").unwrap_err().to_string().starts_with("found the mode `TANH`, expected one of EXACT"));
    }

    #[test]
    fn softmax_does_not_overflow_and_takes_any_axis() {
        let x = Tensor::from_vec([2, 2], [1000f32, 0.0, 1000.0, 0.0].map(f16::from_f32).to_vec()).unwrap();
        let axis = |axis: i32| vec![("x", x.clone()), ("axis", Tensor::scalar(axis))];
        near(&elements_of(&Softmax, axis(-1)).unwrap(), &[1.0, 0.0, 1.0, 0.0]);
        near(&elements_of(&Softmax, axis(0)).unwrap(), &[0.5, 0.5, 0.5, 0.5]);
        assert!(elements_of(&Softmax, axis(2)).is_err());
        let x = Tensor::vector(vec![1f32, 2.0, 3.0]);
        near(&elements_of(&Softmax, vec![("x", x)]).unwrap(), &[0.090_030_57, 0.244_728_48, 0.665_240_94]);
    }

    #[test]
    fn channels_have_their_own_parameters() {
        let x = || ("x", Tensor::from_vec([1, 2, 2], vec![-1f32, 1.0, -1.0, 1.0]).unwrap());
        let alpha = || ("alpha", Tensor::vector(vec![0.5f32, 2.0]));
        near(&elements_of(&PRELU, vec![x(), alpha()]).unwrap(), &[-0.5, 1.0, -2.0, 1.0]);
        let beta = ("beta", Tensor::vector(vec![1f32, -1.0]));
        let y = elements_of(&SOFTPLUS_PARAMETRIC, vec![x(), alpha(), beta]).unwrap();
        near(&y, &[0.156_630_85, 0.656_630_8, 2.626_523_4, 0.626_523_4]);
        let short = ("alpha", Tensor::vector(vec![1f32]));
        assert_eq!(elements_of(&PRELU, vec![x(), short]).unwrap_err().to_string(), "found alpha [1], expected [2]");
    }
}
