//! Inputs for a function whose meaning is not known: the same in every run, and within what the program can take.

use quince_engine::Tensors;
use quince_mil::{Arg, DType, Flexibility, Function, Operation, Tensor, TensorType, ValueType, Var};
use quince_tensor::{Error, Result, bail, f16};
use std::collections::HashMap;

/// The most elements that are made up.
const MAX_ELEMENTS: usize = 1 << 28;

/// Axes of any length get this one, if their bounds allow it.
const LENGTH: usize = 8;

/// The shapes of inputs that both functions have: as the first would have them, or as the second would, whichever both
/// take.
pub(super) fn shapes([first, second]: [&Function; 2]) -> HashMap<String, Vec<usize>> {
    let mut shapes = HashMap::new();
    for a in &first.inputs {
        let info = first.var(a.var);
        let Some(b) = second.inputs.iter().find(|b| second.var(b.var).name == info.name) else { continue };
        let (Some(ty), Some(other)) = (info.ty.as_tensor(), second.ty(b.var).as_tensor()) else { continue };
        let wanted = [shape(ty, &a.flexibility).ok(), shape(other, &b.flexibility).ok()];
        let both = |shape: &Vec<usize>| takes(ty, &a.flexibility, shape) && takes(other, &b.flexibility, shape);
        shapes.extend(wanted.into_iter().flatten().find(both).map(|shape| (info.name.clone(), shape)));
    }
    shapes
}

/// Inputs that are not given, made up: indices of a table below its length, other integers 1 (0 if there is only one),
/// floating point from a normal distribution. They depend on name and shape alone.
///
/// # Errors
/// When a size is not known, or beyond memory.
pub(super) fn made_up(function: &Function, given: &Tensors, shapes: &HashMap<String, Vec<usize>>) -> Result<Tensors> {
    let mut inputs = Tensors::new();
    for input in &function.inputs {
        let info = function.var(input.var);
        let ValueType::Tensor(ty) = &info.ty else { continue };
        if given.contains_key(&info.name) {
            continue;
        }
        let tensor = match shapes.get(&info.name) {
            Some(shape) => Ok(shape.clone()),
            None => shape(ty, &input.flexibility),
        };
        let tensor = tensor.and_then(|shape| fill(function, input.var, &info.name, ty.dtype, shape));
        inputs.insert(info.name.clone(), tensor.map_err(|e| e.at(format!("input `{}`", info.name)))?);
    }
    Ok(inputs)
}

fn shape(ty: &TensorType, flexibility: &Flexibility) -> Result<Vec<usize>> {
    match flexibility {
        Flexibility::Fixed => {
            ty.dims().ok_or_else(|| Error::new(format!("found {ty}, whose sizes are not known; give it in a file")))
        }
        Flexibility::Enumerated(shapes) => {
            shapes.first().cloned().ok_or_else(|| Error::new("found no shape that is allowed"))
        }
        Flexibility::Range { bounds, default } => {
            let length = |(i, &(low, high)): (usize, &(usize, Option<usize>))| {
                let wanted = default.get(i).copied().unwrap_or(low);
                let wanted = if i > 0 && high != Some(low) { wanted.max(LENGTH) } else { wanted };
                wanted.clamp(low, high.unwrap_or(usize::MAX).max(low))
            };
            Ok(bounds.iter().enumerate().map(length).collect())
        }
    }
}

fn takes(ty: &TensorType, flexibility: &Flexibility, shape: &[usize]) -> bool {
    let fits = ty.shape.len() == shape.len() && ty.shape.iter().zip(shape).all(|(dim, &n)| dim.fits(n.into()));
    fits && match flexibility {
        Flexibility::Fixed => true,
        Flexibility::Enumerated(shapes) => shapes.iter().any(|allowed| allowed == shape),
        Flexibility::Range { bounds, .. } => {
            bounds.iter().zip(shape).all(|(&(low, high), &n)| n >= low && high.is_none_or(|high| n <= high))
        }
    }
}

fn fill(function: &Function, var: Var, name: &str, dtype: DType, shape: Vec<usize>) -> Result<Tensor> {
    let len = shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size)).filter(|&n| n <= MAX_ELEMENTS);
    let Some(len) = len else { bail!("found the shape {shape:?}, too large to make up; give it in a file") };
    let mut random = Random::of(name);
    if dtype.is_float() {
        // Numbers that fp16 holds, so that programs of both precisions get the same.
        let values = (0..len).map(|_| f16::from_f32(random.normal()).to_f32()).collect();
        return Tensor::from_f32(dtype, shape, values);
    }
    if dtype == DType::Bool {
        return Tensor::from_bools(shape, &vec![true; len]);
    }
    let (_, high) = dtype.int_range().unwrap_or((0, 1));
    let values: Vec<i64> = match rows_of_table(function, var) {
        Some(rows) => (0..len).map(|_| (random.next() % rows.max(1)) as i64).map(|id| id.min(high)).collect(),
        None if len == 1 => vec![0],
        None => vec![1; len],
    };
    Tensor::from_i64(dtype, shape, &values)
}

/// The length of the shortest constant table that the integers of a variable are indices of.
fn rows_of_table(function: &Function, var: Var) -> Option<u64> {
    /// Operations that hand indices on, possibly after making negative ones positive.
    const PASS: &[&str] = &[
        "cast",
        "identity",
        "reshape",
        "expand_dims",
        "squeeze",
        "select",
        "add",
        "slice_by_index",
        "concat",
        "split",
    ];
    let (mut reached, mut rows) = (vec![var], None::<u64>);
    for operation in &function.block.operations {
        let uses = |param: &str| operation.var(param).is_some_and(|var| reached.contains(&var));
        let table = match operation.op_name() {
            "gather" if uses("indices") => table_rows(function, operation, "x"),
            "embedding" if uses("ids") => table_rows(function, operation, "weight"),
            _ => None,
        };
        rows = match (rows, table) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let is_int = |var: &Var| function.ty(*var).as_tensor().is_some_and(|ty| ty.dtype.is_int());
        if PASS.contains(&operation.op_name()) && operation.used_vars().any(|var| reached.contains(&var)) {
            reached.extend(operation.outputs.iter().copied().filter(is_int));
        }
    }
    rows
}

/// The size of a floating-point parameter along the first axis, or along the parameter `axis`.
fn table_rows(function: &Function, operation: &Operation, param: &str) -> Option<u64> {
    let ty = function.ty(operation.var(param)?).as_tensor()?;
    let axis = match operation.arg("axis") {
        Some(Arg::Value(value)) => value.tensor().ok()?.to_i64().ok()?.first().copied()?,
        Some(Arg::Var(var)) => {
            let constant = function.block.operations.iter().find(|o| o.outputs.contains(var))?.constant()?;
            constant.tensor().ok()?.to_i64().ok()?.first().copied()?
        }
        None => 0,
    };
    let axis = if axis < 0 { axis + ty.shape.len() as i64 } else { axis };
    let rows = ty.shape.get(usize::try_from(axis).ok()?)?.fixed()?;
    (ty.dtype.is_float() && rows > 0).then_some(rows as u64)
}

/// SplitMix64, seeded by a name (FNV-1a).
struct Random(u64);

impl Random {
    fn of(name: &str) -> Random {
        Random(name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Nearly normal: the sum of twelve uniform numbers has variance 1.
    fn normal(&mut self) -> f32 {
        (0..12).map(|_| (self.next() >> 40) as f32 / (1u64 << 24) as f32).sum::<f32>() - 6.0
    }
}
