//! Reductions along axes: many elements to one.

use super::elements::{Groups, values};
use super::elementwise_unary::{larger, smaller};
use super::shape_rules::{axes, axis};
use crate::op::NUMBER;
use crate::{Args, DType, Op, Param, Result, Tensor, TensorType, ValueType, bail};

/// A reduction along `axes`, all of them if they are not given.
pub struct Reduction {
    name: &'static str,
    doc: &'static str,
    /// Of the elements of one group; sums are exact to f64.
    float: fn(&[f64]) -> f64,
    /// The same of integers, which wrap to the width of their type afterwards.
    int: fn(&[i64]) -> i64,
}

macro_rules! reduction {
    ($($op:ident $name:literal $doc:literal $float:expr, $int:expr;)*) => {$(
        #[doc = $doc]
        pub const $op: Reduction = Reduction { name: $name, doc: $doc, float: $float, int: $int };
    )*};
}

reduction! {
    REDUCE_SUM "reduce_sum" "The sum along `axes`; integers wrap."
        |v| v.iter().sum(), sum;
    REDUCE_MEAN "reduce_mean" "The mean along `axes`; of integers its integer part."
        |v| v.iter().sum::<f64>() / v.len() as f64, |v| through_floats(v, |v| v.iter().sum::<f64>() / v.len() as f64);
    REDUCE_MAX "reduce_max" "The largest along `axes`, NaN if one is."
        |v| v.iter().copied().fold(f64::NEG_INFINITY, larger), |v| v.iter().copied().max().unwrap_or(i64::MIN);
    REDUCE_MIN "reduce_min" "The smallest along `axes`, NaN if one is."
        |v| v.iter().copied().fold(f64::INFINITY, smaller), |v| v.iter().copied().min().unwrap_or(i64::MAX);
    REDUCE_PROD "reduce_prod" "The product along `axes`; integers wrap."
        |v| v.iter().product(), |v| v.iter().copied().fold(1, i64::wrapping_mul);
    REDUCE_L1_NORM "reduce_l1_norm" "`Σ |x|` along `axes`."
        |v| v.iter().map(|x| x.abs()).sum(), |v| v.iter().map(|x| x.wrapping_abs()).fold(0, i64::wrapping_add);
    REDUCE_L2_NORM "reduce_l2_norm" "`√(Σ x²)` along `axes`; of integers its integer part."
        l2, |v| through_floats(v, l2);
    REDUCE_SUM_SQUARE "reduce_sum_square" "`Σ x²` along `axes`; integers wrap."
        |v| v.iter().map(|x| x * x).sum(), |v| v.iter().map(|x| x.wrapping_mul(*x)).fold(0, i64::wrapping_add);
    REDUCE_LOG_SUM "reduce_log_sum" "`log Σ x` along `axes`; of integers its integer part."
        |v| v.iter().sum::<f64>().ln(), |v| through_floats(v, |v| v.iter().sum::<f64>().ln());
    REDUCE_LOG_SUM_EXP "reduce_log_sum_exp" "`log Σ exp(x)` along `axes`; of integers its integer part."
        log_sum_exp, |v| through_floats(v, log_sum_exp);
}

fn sum(values: &[i64]) -> i64 {
    values.iter().copied().fold(0, i64::wrapping_add)
}

fn l2(values: &[f64]) -> f64 {
    values.iter().map(|x| x * x).sum::<f64>().sqrt()
}

fn log_sum_exp(values: &[f64]) -> f64 {
    let largest = values.iter().copied().fold(f64::NEG_INFINITY, larger);
    if largest.is_infinite() {
        return largest;
    }
    values.iter().map(|x| (x - largest).exp()).sum::<f64>().ln() + largest
}

/// A function of real numbers whose result is cut to an integer.
fn through_floats(values: &[i64], f: impl Fn(&[f64]) -> f64) -> i64 {
    f(&values.iter().map(|&v| v as f64).collect::<Vec<f64>>()) as i64
}

impl Op for Reduction {
    fn name(&self) -> &'static str {
        self.name
    }

    fn doc(&self) -> &'static str {
        self.doc
    }

    fn params(&self) -> &'static [Param] {
        const {
            &[
                Param::new("x").types(NUMBER),
                Param::new("axes").constant().optional().types(&[DType::I32]),
                Param::new("keep_dims").constant().types(&[DType::Bool]).or_bool(false),
            ]
        }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let x = args.ty("x")?;
        let axes = reduced(args, x.shape.len())?;
        Ok(vec![TensorType { dtype: x.dtype, shape: without(&x.shape, &axes, args.bool("keep_dims")?) }.into()])
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let x = args.tensor("x")?;
        let axes = reduced(args, x.rank())?;
        let shape = without(x.shape(), &axes, args.bool("keep_dims")?);
        let groups = Groups::new(x.shape(), &axes)?;
        Ok(vec![match x.dtype().is_int() {
            true => Tensor::from_i64(x.dtype(), shape, &reduce(&groups, &x.to_i64()?, self.int))?,
            false => values(&x, &shape, reduce(&groups, &x.to_f64()?, self.float))?,
        }])
    }
}

fn reduce<T: Copy>(groups: &Groups, x: &[T], f: fn(&[T]) -> T) -> Vec<T> {
    let mut group = Vec::with_capacity(groups.offsets.len());
    let one = |elements| {
        group.clear();
        group.extend(Iterator::map(elements, |i: usize| x[i]));
        f(&group)
    };
    groups.iter().map(one).collect()
}

/// The axes that are reduced.
fn reduced(args: &Args, rank: usize) -> Result<Vec<usize>> {
    match args.opt_ints("axes")? {
        Some(given) => axes(&given, rank),
        None => Ok((0..rank).collect()),
    }
}

/// A shape without some of its axes, or with size one there.
fn without<T: Copy + From<usize>>(shape: &[T], axes: &[usize], keep_dims: bool) -> Vec<T> {
    let kept = shape.iter().enumerate().filter(|(axis, _)| keep_dims || !axes.contains(axis));
    kept.map(|(axis, &dim)| if axes.contains(&axis) { T::from(1) } else { dim }).collect()
}

/// The position of the largest or smallest element along an axis.
pub struct Arg {
    name: &'static str,
    doc: &'static str,
    /// Whether the second is to be taken in place of the first.
    better: fn(f64, f64) -> bool,
}

/// `reduce_argmax`.
pub const REDUCE_ARGMAX: Arg = Arg {
    name: "reduce_argmax",
    doc: "The position of the largest element along `axis`: the first of several, and the first NaN if there is one.",
    better: |best, x| x > best,
};

/// `reduce_argmin`.
pub const REDUCE_ARGMIN: Arg = Arg {
    name: "reduce_argmin",
    doc: "The position of the smallest element along `axis`: the first of several, and the first NaN if there is one.",
    better: |best, x| x < best,
};

impl Op for Arg {
    fn name(&self) -> &'static str {
        self.name
    }

    fn doc(&self) -> &'static str {
        self.doc
    }

    fn params(&self) -> &'static [Param] {
        const {
            &[
                Param::new("x").types(NUMBER),
                Param::new("axis").constant().or_int(-1),
                Param::new("keep_dims").constant().types(&[DType::Bool]).or_bool(false),
                Param::new("output_dtype").constant().or_str("int32"),
            ]
        }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let x = args.shape("x")?;
        let shape = without(x, &[axis(args.int("axis")?, x.len())?], args.bool("keep_dims")?);
        Ok(vec![TensorType { dtype: index_type(args.str("output_dtype")?)?, shape }.into()])
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let x = args.tensor("x")?;
        let axis = axis(args.int("axis")?, x.rank())?;
        let shape = without(x.shape(), &[axis], args.bool("keep_dims")?);
        let elements = x.to_f64()?;
        let position = |group: &mut dyn Iterator<Item = usize>| {
            let mut best: Option<(i64, f64)> = None;
            for (i, at) in group.enumerate() {
                let x = elements[at];
                if best.is_none_or(|(_, best)| !best.is_nan() && (x.is_nan() || (self.better)(best, x))) {
                    best = Some((i as i64, x));
                }
            }
            best.map_or(0, |(i, _)| i)
        };
        let positions: Vec<i64> = Groups::new(x.shape(), &[axis])?.iter().map(|mut g| position(&mut g)).collect();
        Ok(vec![Tensor::from_i64(index_type(args.str("output_dtype")?)?, shape, &positions)?])
    }
}

/// The element type of positions: int32, and from iOS 17 uint16.
pub(super) fn index_type(name: &str) -> Result<DType> {
    match name {
        "int32" => Ok(DType::I32),
        "uint16" => Ok(DType::U16),
        _ => bail!("found the type `{name}` for indices, expected int32 or uint16"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Dim;
    use crate::op::ArgInfo;
    use crate::ops::testing;
    use half::f16;

    fn run(op: &'static dyn Op, x: &Tensor, more: &[(&'static str, Tensor)]) -> Tensor {
        let more = more.iter().map(|(name, tensor)| (*name, tensor.clone().into()));
        testing::run(op, std::iter::once(("x", x.clone().into())).chain(more).collect()).unwrap()
    }

    fn axes(axes: &[i32]) -> (&'static str, Tensor) {
        ("axes", Tensor::vector(axes.to_vec()))
    }

    #[test]
    fn axes_may_be_negative_kept_or_left_out() {
        let x = Tensor::from_vec([2, 3, 2], (0..12).map(|v| v as f32).collect()).unwrap();
        let y = run(&REDUCE_SUM, &x, &[axes(&[0, -1])]);
        assert_eq!((y.shape(), y.to_f32().unwrap()), (&[3][..], vec![14.0, 22.0, 30.0]));
        let y = run(&REDUCE_MEAN, &x, &[axes(&[1]), ("keep_dims", Tensor::scalar_bool(true))]);
        assert_eq!((y.shape(), y.to_f32().unwrap()), (&[2, 1, 2][..], vec![2.0, 3.0, 8.0, 9.0]));
        let y = run(&REDUCE_MAX, &x, &[]);
        assert_eq!((y.shape(), y.to_f32().unwrap()), (&[][..], vec![11.0]));
    }

    #[test]
    fn each_reduction_is_its_formula() {
        let x = Tensor::vector(vec![3f32, -4.0, 0.5]);
        let of = |op| run(op, &x, &[]).to_f32().unwrap()[0];
        assert_eq!([of(&REDUCE_MIN), of(&REDUCE_PROD), of(&REDUCE_L1_NORM)], [-4.0, -6.0, 7.5]);
        assert_eq!([of(&REDUCE_SUM_SQUARE), of(&REDUCE_L2_NORM)], [25.25, 25.25f32.sqrt()]);
        assert!(of(&REDUCE_LOG_SUM).is_nan() && (of(&REDUCE_LOG_SUM_EXP) - 3.079732).abs() < 1e-6);
        let big = Tensor::vector(vec![1000f32, 1000.0]);
        assert!((run(&REDUCE_LOG_SUM_EXP, &big, &[]).to_f32().unwrap()[0] - 1_000.693_1).abs() < 1e-4);
        let nan = Tensor::vector(vec![1f32, f32::NAN, 2.0]);
        assert!(run(&REDUCE_MAX, &nan, &[]).to_f32().unwrap()[0].is_nan());
    }

    #[test]
    fn fp16_is_summed_wide_and_integers_wrap() {
        let x = Tensor::vector(vec![f16::ONE; 4099]);
        // One by one in fp16 the sum would stay at 2048.
        assert_eq!(run(&REDUCE_SUM, &x, &[]).to_f32().unwrap(), [4100.0]);
        let x = Tensor::vector(vec![i32::MAX, 1, -7]);
        assert_eq!(run(&REDUCE_SUM, &x, &[]).to_i64().unwrap(), [2_147_483_641]);
        assert_eq!(run(&REDUCE_MEAN, &Tensor::vector(vec![-3i32, -4]), &[]).to_i64().unwrap(), [-3]);
        assert_eq!(run(&REDUCE_PROD, &x, &[]).to_i64().unwrap(), [-2_147_483_641]);
    }

    #[test]
    fn the_first_of_equal_elements_is_found() {
        let x = Tensor::from_vec([2, 3], vec![1f32, 5.0, 5.0, -1.0, -1.0, f32::NAN]).unwrap();
        assert_eq!(run(&REDUCE_ARGMAX, &x, &[]).to_i64().unwrap(), [1, 2]);
        let y = run(&REDUCE_ARGMIN, &x, &[("axis", Tensor::scalar(0i32)), ("keep_dims", Tensor::scalar_bool(true))]);
        assert_eq!((y.shape(), y.to_i64().unwrap()), (&[1, 3][..], vec![1, 1, 1]));
    }

    #[test]
    fn an_axis_outside_is_refused() {
        let args = Args::new(
            &REDUCE_SUM,
            vec![
                ("x", vec![ArgInfo::typed(TensorType { dtype: DType::F32, shape: vec![Dim::Unknown] }.into())]),
                ("axes", vec![ArgInfo::known(vec![1i32].into())]),
            ],
        );
        let error = REDUCE_SUM.infer(&args).unwrap_err().to_string();
        assert_eq!(error, "axis 1 is not one of a tensor of rank 1");
    }
}
