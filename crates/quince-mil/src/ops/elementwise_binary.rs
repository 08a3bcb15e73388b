//! Functions of two tensors, element by element, that broadcast as NumPy does.

use super::elements::{broadcast, pairs, zip};
use super::elementwise_unary::{larger, smaller};
use super::shape_rules;
use crate::op::NUMBER;
use crate::{Args, DType, Op, Param, Result, Tensor, TensorType, ValueType, bail};

/// An operation on `x` and `y` of one element type.
pub struct Binary {
    name: &'static str,
    doc: &'static str,
    params: &'static [Param],
    /// Whether the result is numbers like the arguments, or truth values.
    gives: Gives,
    eval: fn(&Tensor, &Tensor) -> Result<Tensor>,
}

enum Gives {
    Numbers,
    Truth,
}

impl Op for Binary {
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
        let (x, y) = (args.ty("x")?, args.ty("y")?);
        if x.dtype != y.dtype {
            bail!("x is {x} and y is {y}, expected the same element type");
        }
        let dtype = match self.gives {
            Gives::Numbers => x.dtype,
            Gives::Truth => DType::Bool,
        };
        Ok(vec![TensorType { dtype, shape: shape_rules::broadcast(&x.shape, &y.shape)? }.into()])
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        Ok(vec![(self.eval)(&args.tensor("x")?, &args.tensor("y")?)?])
    }
}

const NUMBERS: &[Param] = &[Param::new("x").types(NUMBER), Param::new("y").types(NUMBER)];
const TRUTHS: &[Param] = &[Param::new("x").types(&[DType::Bool]), Param::new("y").types(&[DType::Bool])];

macro_rules! binary {
    ($($op:ident $name:literal $gives:ident of $params:ident $doc:literal, $eval:expr;)*) => {$(
        #[doc = $doc]
        pub const $op: Binary =
            Binary { name: $name, doc: $doc, params: $params, gives: Gives::$gives, eval: $eval };
    )*};
}

binary! {
    ADD "add" Numbers of NUMBERS "`x + y`; integers wrap.",
        |x, y| zip(x, y, |a, b| a + b, i64::wrapping_add);
    SUB "sub" Numbers of NUMBERS "`x - y`; integers wrap.",
        |x, y| zip(x, y, |a, b| a - b, i64::wrapping_sub);
    MUL "mul" Numbers of NUMBERS "`x · y`; integers wrap.",
        |x, y| zip(x, y, |a, b| a * b, i64::wrapping_mul);
    REAL_DIV "real_div" Numbers of NUMBERS "`x / y`; of integers the integer part, and 0 where y is 0.",
        |x, y| zip(x, y, |a, b| a / b, |a, b| if b == 0 { 0 } else { a.wrapping_div(b) });
    FLOOR_DIV "floor_div" Numbers of NUMBERS
        "The largest integer not above `x / y`, as Python's `//`; of integers 0 where y is 0.",
        |x, y| zip(x, y, floor_div, floor_div_int);
    MOD "mod" Numbers of NUMBERS
        "What is left of `x` after division by `y`, with the sign of y, as Python's `%`; of integers 0 where y is 0.",
        |x, y| zip(x, y, modulo, modulo_int);
    MAXIMUM "maximum" Numbers of NUMBERS "The larger of `x` and `y`, NaN if one of them is.",
        |x, y| zip(x, y, larger, i64::max);
    MINIMUM "minimum" Numbers of NUMBERS "The smaller of `x` and `y`, NaN if one of them is.",
        |x, y| zip(x, y, smaller, i64::min);
    POW "pow" Numbers of NUMBERS "`x` to the power `y`; of integers the integer part, wrapped.",
        |x, y| zip(x, y, f64::powf, pow_int);
    EQUAL "equal" Truth of NUMBERS "Whether `x = y`.",
        |x, y| compare(x, y, |a, b| a == b);
    NOT_EQUAL "not_equal" Truth of NUMBERS "Whether `x ≠ y`.",
        |x, y| compare(x, y, |a, b| a != b);
    GREATER "greater" Truth of NUMBERS "Whether `x > y`.",
        |x, y| compare(x, y, |a, b| a > b);
    GREATER_EQUAL "greater_equal" Truth of NUMBERS "Whether `x ≥ y`.",
        |x, y| compare(x, y, |a, b| a >= b);
    LESS "less" Truth of NUMBERS "Whether `x < y`.",
        |x, y| compare(x, y, |a, b| a < b);
    LESS_EQUAL "less_equal" Truth of NUMBERS "Whether `x ≤ y`.",
        |x, y| compare(x, y, |a, b| a <= b);
    LOGICAL_AND "logical_and" Truth of TRUTHS "Whether both are true.",
        |x, y| combine(x, y, |a, b| a && b);
    LOGICAL_OR "logical_or" Truth of TRUTHS "Whether one or both are true.",
        |x, y| combine(x, y, |a, b| a || b);
    LOGICAL_XOR "logical_xor" Truth of TRUTHS "Whether exactly one is true.",
        |x, y| combine(x, y, |a, b| a != b);
}

/// Every number that operations compare is exact in `f64`.
fn compare(x: &Tensor, y: &Tensor, f: impl Fn(f64, f64) -> bool) -> Result<Tensor> {
    let values = pairs((&x.to_f64()?, x.shape()), (&y.to_f64()?, y.shape()), f)?;
    Tensor::from_bools(broadcast(x.shape(), y.shape())?, &values)
}

fn combine(x: &Tensor, y: &Tensor, f: impl Fn(bool, bool) -> bool) -> Result<Tensor> {
    let values = pairs((&x.to_bools()?, x.shape()), (&y.to_bools()?, y.shape()), f)?;
    Tensor::from_bools(broadcast(x.shape(), y.shape())?, &values)
}

/// Python's `%`.
fn modulo(a: f64, b: f64) -> f64 {
    let rest = a % b;
    if rest != 0.0 && (rest < 0.0) != (b < 0.0) { rest + b } else { rest }
}

/// Python's `//`: exact where `a / b` would round up to an integer.
fn floor_div(a: f64, b: f64) -> f64 {
    if b == 0.0 {
        return a / b;
    }
    ((a - modulo(a, b)) / b).round()
}

fn modulo_int(a: i64, b: i64) -> i64 {
    if b == 0 {
        return 0;
    }
    let rest = a.wrapping_rem(b);
    if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest }
}

fn floor_div_int(a: i64, b: i64) -> i64 {
    if b == 0 { 0 } else { (a - modulo_int(a, b)).wrapping_div(b) }
}

fn pow_int(a: i64, b: i64) -> i64 {
    match u32::try_from(b) {
        Ok(b) => a.wrapping_pow(b),
        // Below one for every base but these.
        Err(_) if a == 1 || (a == -1 && b % 2 == 0) => 1,
        Err(_) if a == -1 => -1,
        Err(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::ArgInfo;
    use crate::ops::testing;
    use half::f16;

    fn run(op: &'static Binary, x: Tensor, y: Tensor) -> Tensor {
        testing::run(op, vec![("x", x.into()), ("y", y.into())]).unwrap()
    }

    #[test]
    fn division_and_remainder_are_pythons() {
        let (x, y) = (Tensor::vector(vec![7i32, -7, 7, -7, 5]), Tensor::vector(vec![3i32, 3, -3, -3, 0]));
        assert_eq!(run(&FLOOR_DIV, x.clone(), y.clone()).to_i64().unwrap(), [2, -3, -3, 2, 0]);
        assert_eq!(run(&MOD, x.clone(), y.clone()).to_i64().unwrap(), [1, 2, -2, -1, 0]);
        assert_eq!(run(&REAL_DIV, x, y).to_i64().unwrap(), [2, -2, -2, 2, 0]);
        let (x, y) = (Tensor::vector(vec![5.5f32, -5.5, 5.5, 1.0]), Tensor::vector(vec![2f32, 2.0, -2.0, 0.0]));
        let quotients = run(&FLOOR_DIV, x.clone(), y.clone()).to_f32().unwrap();
        assert_eq!(quotients, [2.0, -3.0, -3.0, f32::INFINITY]);
        let rests = run(&MOD, x, y).to_f32().unwrap();
        assert!(rests[..3] == [1.5, 0.5, -0.5] && rests[3].is_nan());
        // 1.0 // 0.1 is 9 in Python, although 1.0 / 0.1 is 10.
        assert_eq!((floor_div(1.0, 0.1), modulo(1.0, 0.1) > 0.0999), (9.0, true));
    }

    #[test]
    fn integers_wrap() {
        let max = || Tensor::vector(vec![i32::MAX]);
        assert_eq!(run(&ADD, max(), Tensor::scalar(1i32)).to_i64().unwrap(), [i64::from(i32::MIN)]);
        assert_eq!(run(&MUL, max(), Tensor::scalar(2i32)).to_i64().unwrap(), [-2]);
        let bases = Tensor::vector(vec![2i32, -1, 1, 3, 10]);
        let powers = Tensor::vector(vec![-1i32, -3, -2, 4, 10]);
        assert_eq!(run(&POW, bases, powers).to_i64().unwrap(), [0, -1, 1, 81, 1_410_065_408]);
    }

    #[test]
    fn nan_wins_and_compares_false() {
        let (x, y) = (Tensor::vector(vec![f32::NAN, 1.0]), Tensor::vector(vec![0f32, f32::NAN]));
        assert!(run(&MAXIMUM, x.clone(), y.clone()).to_f32().unwrap().iter().all(|v| v.is_nan()));
        assert!(run(&MINIMUM, x.clone(), y.clone()).to_f32().unwrap().iter().all(|v| v.is_nan()));
        assert_eq!(run(&LESS_EQUAL, x.clone(), y.clone()).to_bools().unwrap(), [false, false]);
        assert_eq!(run(&NOT_EQUAL, x, y).to_bools().unwrap(), [true, true]);
    }

    #[test]
    fn truth_values_broadcast() {
        let x = Tensor::from_bools([2, 1], &[true, false]).unwrap();
        let y = Tensor::from_bools([2], &[true, false]).unwrap();
        assert_eq!(run(&LOGICAL_AND, x.clone(), y.clone()).to_bools().unwrap(), [true, false, false, false]);
        assert_eq!(run(&LOGICAL_XOR, x, y).to_bools().unwrap(), [false, true, true, false]);
    }

    #[test]
    fn element_types_must_agree_in_a_program_and_may_differ_when_run() {
        let (x, y) = (Tensor::vector(vec![1f32]), Tensor::scalar(f16::ONE));
        let args = vec![("x", vec![ArgInfo::known(x.into())]), ("y", vec![ArgInfo::known(y.into())])];
        let args = Args::new(&ADD, args);
        let error = ADD.infer(&args).unwrap_err().to_string();
        assert_eq!(error, "x is tensor<fp32, [1]> and y is tensor<fp16, []>, expected the same element type");
        assert_eq!(ADD.eval(&args).unwrap()[0].to_f32().unwrap(), [2.0]);
    }
}
