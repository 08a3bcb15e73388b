//! What the tests of operations share: calling `infer` and `eval` with values by parameter name.

use crate::op::ArgInfo;
use crate::{Args, DType, Op, Result, Tensor, TensorType, Value, ValueType};

/// Arguments whose values are known.
pub fn args<'a>(op: &'a dyn Op, values: Vec<(&'a str, Value)>) -> Args<'a> {
    Args::new(op, values.into_iter().map(|(name, value)| (name, vec![ArgInfo::known(value)])).collect())
}

/// Infers and evaluates, and checks that both agree.
pub fn run_all(op: &dyn Op, args: &Args) -> Result<Vec<Tensor>> {
    let types = op.infer(args)?;
    let results = op.eval(args)?;
    assert_eq!(types.len(), results.len());
    for (ty, tensor) in types.iter().zip(&results) {
        assert!(ty.fits(&ValueType::tensor(tensor.dtype(), tensor.shape())), "inferred {ty}, evaluated {tensor:?}");
    }
    Ok(results)
}

/// The only result of an operation on known values.
pub fn run(op: &dyn Op, values: Vec<(&str, Value)>) -> Result<Tensor> {
    let mut results = run_all(op, &args(op, values))?;
    assert_eq!(results.len(), 1);
    Ok(results.remove(0))
}

/// The elements of the only result of an operation on these tensors.
pub fn elements_of(op: &dyn Op, values: Vec<(&str, Tensor)>) -> Result<Vec<f32>> {
    run(op, values.into_iter().map(|(name, tensor)| (name, tensor.into())).collect())?.to_f32()
}

/// A tensor of floats.
pub fn f32s(shape: &[usize], values: &[f32]) -> Value {
    Tensor::from_vec(shape, values.to_vec()).unwrap().into()
}

/// The floats 0, 1, 2, ... in this shape.
pub fn iota(shape: &[usize]) -> Value {
    let values: Vec<f32> = (0..shape.iter().product::<usize>()).map(|i| i as f32).collect();
    f32s(shape, &values)
}

/// A vector of truth values.
pub fn bools(values: &[bool]) -> Value {
    Tensor::from_bools([values.len()], values).unwrap().into()
}

/// An argument of which only the type is known; a size of -1 is unknown.
pub fn typed(dtype: DType, shape: &[i64]) -> Vec<ArgInfo> {
    let shape = shape.iter().map(|&n| usize::try_from(n).map_or(crate::Dim::Unknown, crate::Dim::Fixed)).collect();
    vec![ArgInfo::typed(TensorType { dtype, shape }.into())]
}

/// The shape that is inferred, with -1 for unknown sizes.
pub fn inferred(op: &dyn Op, entries: Vec<(&str, Vec<ArgInfo>)>) -> Result<Vec<i64>> {
    let types = op.infer(&Args::new(op, entries))?;
    let ty = types[0].as_tensor().unwrap();
    Ok(ty.shape.iter().map(|dim| dim.fixed().map_or(-1, |n| n as i64)).collect())
}

/// Asserts that values are near the expected ones.
pub fn near(found: &Tensor, expected: &[f64], tolerance: f64) {
    let found = found.to_f64().unwrap();
    assert_eq!(found.len(), expected.len());
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= tolerance, "element {i}: found {a}, expected {b}");
    }
}
