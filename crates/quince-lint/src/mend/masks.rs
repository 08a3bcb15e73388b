//! Masks that are infinite in fp16.

use super::{Effect, Mend, name};
use quince_mil::{Arg, DType, Function, Operation, Result, Tensor, Value, Var, Weight};
use std::collections::{BTreeSet, HashMap, HashSet};

pub(super) static MEND: Mend = Mend {
    id: "masks",
    fault: "masks of -inf, finfo(float32).min or finfo(float16).min, which are -inf in fp16",
    remedy: "-30000 in their place: softmax gives the same, and no NaN where a row is masked altogether",
    source: "the attention mask of Hugging Face's BERT in packages of coremltools 9.0, measured",
    effect: Effect::Kept,
    run,
};

/// What masks as well as -inf: exp(-30000) is 0.
const MASKED: f32 = -3.0e4;
/// What is taken for a mask.
const LEAST: f32 = -6.0e4;
/// Larger constants are no masks.
const MAX_ELEMENTS: usize = 1 << 26;

fn run(function: &mut Function) -> Result<Vec<String>> {
    let users = users(function);
    let mut changed = Vec::new();
    for i in 0..function.block.operations.len() {
        let operation = &function.block.operations[i];
        let Some(out) = operation.outputs.first().copied() else { continue };
        let mut mended: Vec<(Option<(usize, usize)>, Value)> = Vec::new();
        if let Some(value) = operation.constant().filter(|_| masks(function, &users, out)) {
            mended.extend(finite(value)?.map(|value| (None, value)));
        }
        let is_sum = passes(operation.op_name()) && masks(function, &users, out);
        for (p, (_, args)) in operation.inputs.iter().enumerate().filter(|_| is_sum) {
            for (a, arg) in args.iter().enumerate() {
                if let Arg::Value(value) = arg {
                    mended.extend(finite(value)?.map(|value| (Some((p, a)), value)));
                }
            }
        }
        if mended.is_empty() {
            continue;
        }
        changed.push(name(function, operation));
        let operation = &mut function.block.operations[i];
        for (place, value) in mended {
            match place {
                None => drop(operation.attributes.insert("val".into(), value)),
                Some((p, a)) => operation.inputs[p].1[a] = Arg::Value(value),
            }
        }
    }
    Ok(changed)
}

/// The value with what is below every number of fp16, or nearly, as -30000; none if there is no such element.
fn finite(value: &Value) -> Result<Option<Value>> {
    let Some(ty) = value.tensor_type().filter(|ty| matches!(ty.dtype, DType::F16 | DType::F32)) else {
        return Ok(None);
    };
    let elements = crate::view::elements(&ty).unwrap_or(usize::MAX);
    if elements > MAX_ELEMENTS {
        return Ok(None);
    }
    let tensor = value.tensor()?;
    let mut values = tensor.to_f32()?;
    if !values.iter().any(|value| *value < LEAST) {
        return Ok(None);
    }
    values.iter_mut().filter(|value| **value < LEAST).for_each(|value| *value = MASKED);
    let mended = Tensor::from_f32(ty.dtype, tensor.shape(), values)?;
    Ok(Some(match value {
        Value::Weight(weight) => Weight::from_tensor(weight.name(), mended).into(),
        _ => mended.into(),
    }))
}

/// By variable, the operations of the top block that use it.
fn users(function: &Function) -> HashMap<Var, BTreeSet<usize>> {
    let mut users: HashMap<Var, BTreeSet<usize>> = HashMap::new();
    for (i, operation) in function.block.operations.iter().enumerate() {
        for var in operation.used_vars() {
            users.entry(var).or_default().insert(i);
        }
    }
    users
}

/// Whether all that becomes of a variable is the argument of a softmax.
fn masks(function: &Function, users: &HashMap<Var, BTreeSet<usize>>, var: Var) -> bool {
    let (mut open, mut seen, mut reached) = (vec![var], HashSet::new(), false);
    while let Some(var) = open.pop() {
        if function.block.outputs.contains(&var) {
            return false;
        }
        if !seen.insert(var) {
            continue;
        }
        for operation in users.get(&var).into_iter().flatten().filter_map(|&i| function.block.operations.get(i)) {
            match operation.op_name() {
                "softmax" => reached = true,
                "scaled_dot_product_attention" if is_mask(operation, var) => reached = true,
                name if passes(name) => open.extend(&operation.outputs),
                _ => return false,
            }
        }
    }
    reached
}

fn is_mask(operation: &Operation, var: Var) -> bool {
    operation.var("attn_mask") == Some(var) && operation.var("query") != Some(var)
}

/// Operations that a mask goes through on its way to the scores.
fn passes(name: &str) -> bool {
    let moves =
        ["reshape", "transpose", "expand_dims", "squeeze", "cast", "identity", "slice_by_index", "slice_by_size"];
    let computes = ["add", "mul", "select", "maximum", "minimum", "tile", "concat", "gather", "fill_like", "band_part"];
    moves.contains(&name) || computes.contains(&name)
}
