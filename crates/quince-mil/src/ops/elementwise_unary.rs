//! Functions of one tensor, element by element: the arithmetic ones. Activations are in `activation.rs`.

use super::elements::{map, map_number, zip};
use super::special::erf;
use crate::op::{FLOAT, NUMBER};
use crate::{Args, DType, Op, Param, Result, Tensor, ValueType, bail};
use half::f16;

/// An operation whose result has the shape and type of its parameter `x`.
pub struct Unary {
    pub(super) name: &'static str,
    pub(super) doc: &'static str,
    pub(super) params: &'static [Param],
    pub(super) eval: fn(&Args) -> Result<Tensor>,
}

impl Op for Unary {
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
        Ok(vec![args.ty("x")?.clone().into()])
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        Ok(vec![(self.eval)(args)?])
    }
}

/// The only parameter of a function of real numbers.
pub(super) const X: &[Param] = &[Param::new("x").types(FLOAT)];
const X_NUMBER: &[Param] = &[Param::new("x").types(NUMBER)];
const X_BOOL: &[Param] = &[Param::new("x").types(&[DType::Bool])];

macro_rules! unary {
    ($($op:ident $name:literal $doc:literal $params:expr, $eval:expr;)*) => {$(
        #[doc = $doc]
        pub const $op: Unary = Unary { name: $name, doc: $doc, params: $params, eval: $eval };
    )*};
}

unary! {
    ABS "abs" "The absolute value `|x|`." X_NUMBER,
        |a| map_number(&a.tensor("x")?, f64::abs, i64::wrapping_abs);
    ACOS "acos" "The angle whose cosine is `x`, in radians from 0 to π; NaN outside of [-1, 1]." X,
        |a| map(&a.tensor("x")?, f64::acos);
    ASIN "asin" "The angle whose sine is `x`, in radians from -π/2 to π/2; NaN outside of [-1, 1]." X,
        |a| map(&a.tensor("x")?, f64::asin);
    ATAN "atan" "The angle whose tangent is `x`, in radians from -π/2 to π/2." X,
        |a| map(&a.tensor("x")?, f64::atan);
    ATANH "atanh" "The number whose hyperbolic tangent is `x`; NaN outside of [-1, 1]." X,
        |a| map(&a.tensor("x")?, f64::atanh);
    CEIL "ceil" "The smallest integer that is not less than `x`." X,
        |a| map(&a.tensor("x")?, f64::ceil);
    COS "cos" "The cosine of `x` radians." X,
        |a| map(&a.tensor("x")?, f64::cos);
    COSH "cosh" "The hyperbolic cosine of `x`." X,
        |a| map(&a.tensor("x")?, f64::cosh);
    ERF "erf" "The error function `2/√π · ∫₀ˣ exp(-t²) dt`." X,
        |a| map(&a.tensor("x")?, erf);
    EXP "exp" "e to the power `x`." X,
        |a| map(&a.tensor("x")?, f64::exp);
    EXP2 "exp2" "2 to the power `x`; of integers the integer part, which is 0 for negative ones." X_NUMBER,
        |a| map_number(&a.tensor("x")?, f64::exp2, |v| if (0..63).contains(&v) { 1 << v } else { 0 });
    FLOOR "floor" "The largest integer that is not more than `x`." X,
        |a| map(&a.tensor("x")?, f64::floor);
    LOGICAL_NOT "logical_not" "True where `x` is false." X_BOOL,
        |a| not(&a.tensor("x")?);
    ROUND "round" "The nearest integer; halves go to the even one." X,
        |a| map(&a.tensor("x")?, f64::round_ties_even);
    SIGN "sign" "-1, 0 or 1 as `x` is negative, zero or positive; NaN stays." X_NUMBER,
        |a| map_number(&a.tensor("x")?, |v| if v == 0.0 || v.is_nan() { v } else { v.signum() }, i64::signum);
    SIN "sin" "The sine of `x` radians." X,
        |a| map(&a.tensor("x")?, f64::sin);
    SINH "sinh" "The hyperbolic sine of `x`." X,
        |a| map(&a.tensor("x")?, f64::sinh);
    SQRT "sqrt" "The square root of `x`; NaN where it is negative." X,
        |a| map(&a.tensor("x")?, f64::sqrt);
    SQUARE "square" "`x · x`; integers wrap." X_NUMBER,
        |a| map_number(&a.tensor("x")?, |v| v * v, |v| v.wrapping_mul(v));
    TAN "tan" "The tangent of `x` radians." X,
        |a| map(&a.tensor("x")?, f64::tan);
    TANH "tanh" "The hyperbolic tangent of `x`." X,
        |a| map(&a.tensor("x")?, f64::tanh);
    CLIP "clip" "`min(max(x, alpha), beta)`." &[
            Param::new("x").types(NUMBER),
            Param::new("alpha").constant().types(NUMBER),
            Param::new("beta").constant().types(NUMBER),
        ],
        |a| least(&most(&a.tensor("x")?, &bound(a, "alpha")?)?, &bound(a, "beta")?);
    THRESHOLD "threshold" "`max(x, alpha)`." &[
            Param::new("x").types(NUMBER),
            Param::new("alpha").constant().types(NUMBER),
        ],
        |a| most(&a.tensor("x")?, &bound(a, "alpha")?);
    INVERSE "inverse" "`1 / (x + epsilon)`. The default of epsilon, 1e-4, is large: give it." &[
            Param::new("x").types(FLOAT),
            Param::new("epsilon").constant().types(FLOAT).or_float(1e-4),
        ],
        |a| with_epsilon(a, f64::recip);
    LOG "log" "The natural logarithm of `x + epsilon`. The default of epsilon, 1e-45, is 0 in fp16." &[
            Param::new("x").types(FLOAT),
            Param::new("epsilon").constant().types(FLOAT).or_float(1e-45),
        ],
        |a| with_epsilon(a, f64::ln);
    RSQRT "rsqrt" "`1 / √(x + epsilon)`. The default of epsilon, 1e-12, is 0 in fp16." &[
            Param::new("x").types(FLOAT),
            Param::new("epsilon").constant().types(FLOAT).or_float(1e-12),
        ],
        |a| with_epsilon(a, |v| v.sqrt().recip());
}

/// The larger of two numbers, NaN if one of them is.
pub(super) fn larger(a: f64, b: f64) -> f64 {
    if a > b || a.is_nan() { a } else { b }
}

/// The smaller of two numbers, NaN if one of them is.
pub(super) fn smaller(a: f64, b: f64) -> f64 {
    if a < b || a.is_nan() { a } else { b }
}

fn most(x: &Tensor, bound: &Tensor) -> Result<Tensor> {
    zip(x, bound, larger, i64::max)
}

fn least(x: &Tensor, bound: &Tensor) -> Result<Tensor> {
    zip(x, bound, smaller, i64::min)
}

/// A bound as a scalar of the type of `x`: a number that fp16 stores is one in every wider type.
fn bound(args: &Args, name: &str) -> Result<Tensor> {
    let bound = args.tensor(name)?;
    if bound.len() != 1 {
        bail!("parameter `{name}` has {} values, expected one", bound.len());
    }
    bound.reshape([])?.cast(args.tensor("x")?.dtype())
}

fn not(x: &Tensor) -> Result<Tensor> {
    Tensor::from_bools(x.shape(), &x.to_bools()?.into_iter().map(|v| !v).collect::<Vec<bool>>())
}

/// `f(x + epsilon)`. An epsilon that is left out is the default as the type of `x` stores it.
fn with_epsilon(args: &Args, f: impl Fn(f64) -> f64) -> Result<Tensor> {
    let (x, epsilon) = (args.tensor("x")?, args.float("epsilon")?);
    let epsilon = match x.dtype() {
        DType::F16 if !args.has("epsilon") => f16::from_f64(epsilon).to_f64(),
        DType::F32 if !args.has("epsilon") => f64::from(epsilon as f32),
        _ => epsilon,
    };
    map(&x, |v| f(v + epsilon))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing;

    fn run(op: &'static Unary, args: Vec<(&'static str, Tensor)>) -> Tensor {
        testing::run(op, args.into_iter().map(|(name, tensor)| (name, tensor.into())).collect()).unwrap()
    }

    fn of(op: &'static Unary, x: &[f32]) -> Vec<f32> {
        run(op, vec![("x", Tensor::vector(x.to_vec()))]).to_f32().unwrap()
    }

    #[test]
    fn edges_are_numpys() {
        assert_eq!(of(&ROUND, &[0.5, 1.5, -0.5, 2.5]), [0.0, 2.0, -0.0, 2.0]);
        assert_eq!(of(&SIGN, &[-2.0, 0.0, 3.0]), [-1.0, 0.0, 1.0]);
        assert!(of(&SIGN, &[f32::NAN])[0].is_nan() && of(&SQRT, &[-1.0])[0].is_nan());
        assert_eq!(of(&CEIL, &[-1.5, 1.2]), [-1.0, 2.0]);
        let ints = |op, v: Vec<i32>| run(op, vec![("x", Tensor::vector(v))]).to_i64().unwrap();
        assert_eq!(ints(&SQUARE, vec![-3, 65536, 46341]), [9, 0, -2147479015]);
        assert_eq!(ints(&EXP2, vec![-1, 0, 5]), [0, 1, 32]);
        assert_eq!(ints(&ABS, vec![-7, i32::MIN]), [7, i64::from(i32::MIN)]);
    }

    #[test]
    fn transcendental_functions_are_those_of_the_tables() {
        // Abramowitz and Stegun, tables 4 and 7.
        let near = |a: Vec<f32>, b: f32| assert!((a[0] - b).abs() <= 1e-6, "{a:?} {b}");
        near(of(&ERF, &[0.5]), 0.520_499_9);
        near(of(&ERF, &[-1.0]), -0.842_700_8);
        near(of(&ERF, &[3.0]), 0.999_977_9);
        near(of(&TANH, &[0.5]), 0.462_117_16);
        near(of(&ATANH, &[0.5]), 0.549_306_15);
        near(of(&ACOS, &[0.5]), std::f32::consts::FRAC_PI_3);
    }

    #[test]
    fn clip_takes_integers_and_keeps_nan() {
        let args = |x, a, b| vec![("x", x), ("alpha", a), ("beta", b)];
        let x = run(&CLIP, args(Tensor::vector(vec![-5i32, 0, 9]), Tensor::scalar(-1i32), Tensor::scalar(4i32)));
        assert_eq!(x.to_i64().unwrap(), [-1, 0, 4]);
        // A program that declares fp16 may be run in fp32.
        let half = |v| Tensor::scalar(f16::from_f32(v));
        let x = run(&CLIP, args(Tensor::vector(vec![-5f32, f32::NAN, 9.0]), half(-1.0), half(4.0)));
        assert_eq!(x.dtype(), DType::F32);
        let x = x.to_f32().unwrap();
        assert!(x[0] == -1.0 && x[1].is_nan() && x[2] == 4.0);
    }

    #[test]
    fn epsilons_that_are_left_out_are_those_of_mil() {
        assert_eq!(of(&INVERSE, &[0.0]), [10_000.0]);
        assert!((of(&LOG, &[0.0])[0] + 103.278_93).abs() < 1e-4);
        let zero = || ("x", Tensor::vector(vec![f16::ZERO]));
        assert_eq!(run(&LOG, vec![zero()]).to_f32().unwrap(), [f32::NEG_INFINITY]);
        assert_eq!(of(&RSQRT, &[4.0, 0.0]), [0.5, 1e6]);
        let given = vec![("x", Tensor::vector(vec![4f32])), ("epsilon", Tensor::scalar(0f32))];
        assert_eq!(run(&INVERSE, given).to_f32().unwrap(), [0.25]);
    }
}
