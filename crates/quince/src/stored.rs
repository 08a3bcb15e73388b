//! What a program stores: its weights with the form they are compressed to, and the interface of its functions.

use quince_compress::Component;
use quince_mil::{Arg, DType, Flexibility, Function, Operation, Program, TensorType, Value, ValueType, Weight};
use quince_runtime::{Feature, FunctionShape};
use std::collections::{BTreeMap, BTreeSet};

/// Constants of fewer elements are no weights: shapes, axes, epsilons.
const LEAST_WEIGHT: usize = 64;

/// A weight as it is stored, and what it stands for.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Its name.
    pub name: String,
    /// Its element type once it is uncompressed.
    pub dtype: DType,
    /// The size along each axis.
    pub shape: Vec<usize>,
    /// Bytes that it takes, tables and scales included.
    pub bytes: u64,
    /// Its form: `fp16`, `4-bit palette, groups of 16`, `int8 per channel`.
    pub form: String,
}

/// The weights of a part of the model.
#[derive(Clone, Debug, Default)]
pub struct Part {
    /// How many.
    pub weights: u64,
    /// Their elements.
    pub parameters: u64,
    /// Bytes that they take.
    pub bytes: u64,
    /// Their forms, those of single vectors aside where there are others.
    pub forms: BTreeSet<String>,
}

impl Stored {
    /// The number of elements.
    pub fn parameters(&self) -> u64 {
        self.shape.iter().map(|&n| n as u64).product()
    }
}

/// The tensors that hold the KV cache: states, or the inputs that stand for them; each once, as the largest that a function
/// takes.
pub fn cache_types(program: &Program) -> Vec<TensorType> {
    let mut found: BTreeMap<&str, TensorType> = BTreeMap::new();
    for function in &program.functions {
        for input in &function.inputs {
            let info = function.var(input.var);
            let is_cache = matches!(info.ty, ValueType::State(_)) || info.name.ends_with("_cache");
            if let (true, Some(ty)) = (is_cache, info.ty.as_tensor()) {
                let known = found.entry(&info.name).or_insert_with(|| ty.clone());
                if byte_len(ty) > byte_len(known) {
                    *known = ty.clone();
                }
            }
        }
    }
    found.into_values().collect()
}

/// Bytes of a tensor whose sizes are fixed.
pub fn byte_len(ty: &TensorType) -> u64 {
    let count = ty.dims().map_or(0, |dims| dims.iter().product());
    ty.dtype.byte_len(count).unwrap_or(0) as u64
}

/// The weights of all functions, each once, sorted by name.
pub fn weights(program: &Program) -> Vec<Stored> {
    let (mut seen, mut found) = (BTreeSet::new(), Vec::new());
    for function in &program.functions {
        for operation in &function.block.operations {
            let stored: Vec<Weight> = constants(operation).collect();
            let Some(first) = stored.first() else { continue };
            let Some(ty) = dense_type(function, operation) else { continue };
            let Some(shape) = ty.dims() else { continue };
            if shape.iter().product::<usize>() < LEAST_WEIGHT || !seen.insert(first.id()) {
                continue;
            }
            let name = operation.outputs.first().map_or("", |var| &function.var(*var).name).to_string();
            let bytes = stored.iter().map(|weight| weight.byte_len() as u64).sum();
            let form = form(operation, ty.dtype, &shape);
            found.push(Stored { name, dtype: ty.dtype, shape, bytes, form });
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

/// The parts of the model with what is stored of them.
pub fn parts(weights: &[Stored]) -> BTreeMap<&'static str, Part> {
    let mut parts: BTreeMap<&'static str, Part> = BTreeMap::new();
    for weight in weights {
        let part = parts.entry(Component::of(&weight.name).name()).or_default();
        part.weights += 1;
        part.parameters += weight.parameters();
        part.bytes += weight.bytes;
    }
    for (name, part) in &mut parts {
        let own: Vec<&Stored> = weights.iter().filter(|weight| Component::of(&weight.name).name() == *name).collect();
        let matrices = own.iter().any(|weight| weight.shape.len() > 1);
        let counted = own.iter().filter(|weight| weight.shape.len() > 1 || !matrices);
        part.forms = counted.map(|weight| weight.form.clone()).collect();
    }
    parts
}

/// The interface of a function.
pub fn interface(function: &Function) -> FunctionShape {
    let feature = |name: &str, ty: &TensorType, flexibility: Option<&Flexibility>| {
        let mut shape: Vec<Option<usize>> = ty.shape.iter().map(|dim| dim.fixed()).collect();
        if let Some(Flexibility::Range { bounds, .. }) = flexibility {
            for (size, bound) in shape.iter_mut().zip(bounds) {
                *size = (bound.1 == Some(bound.0)).then_some(bound.0);
            }
        }
        Feature { name: name.to_string(), dtype: ty.dtype.name().to_string(), shape }
    };
    let mut shape = FunctionShape { inputs: Vec::new(), outputs: Vec::new(), states: Vec::new() };
    for input in &function.inputs {
        let info = function.var(input.var);
        match &info.ty {
            ValueType::State(ty) => shape.states.push(feature(&info.name, ty, None)),
            ty => shape.inputs.extend(ty.as_tensor().map(|ty| feature(&info.name, ty, Some(&input.flexibility)))),
        }
    }
    for var in &function.block.outputs {
        let info = function.var(*var);
        shape.outputs.extend(info.ty.as_tensor().map(|ty| feature(&info.name, ty, None)));
    }
    shape
}

/// The tensors that an operation has stored: the value of a `const`, the parameters of a `constexpr_*`.
fn constants(operation: &Operation) -> impl Iterator<Item = Weight> {
    let stands = |value: &Value| match value {
        Value::Weight(weight) => Some(weight.clone()),
        // Small tables may be held in memory.
        Value::Tensor(tensor) if tensor.rank() > 0 => Some(Weight::from_tensor("", tensor.clone())),
        _ => None,
    };
    let is_constexpr = operation.op_name().starts_with("constexpr_");
    let args = operation.inputs.iter().flat_map(|(_, args)| args).filter_map(|arg| match arg {
        Arg::Value(value) => Some(value),
        Arg::Var(_) => None,
    });
    // Packages for systems before iOS 18 have the parameters among the attributes.
    let attributes = operation.attributes.values();
    let compressed: Vec<Weight> =
        if is_constexpr { args.chain(attributes).filter_map(stands).collect() } else { Vec::new() };
    operation.constant().and_then(stands).into_iter().chain(compressed)
}

fn dense_type<'a>(function: &'a Function, operation: &Operation) -> Option<&'a TensorType> {
    function.ty(*operation.outputs.first()?).as_tensor()
}

fn form(operation: &Operation, dtype: DType, shape: &[usize]) -> String {
    let size = |param: &str| -> Option<TensorType> {
        match operation.arg(param) {
            Some(Arg::Value(value)) => value.tensor_type(),
            _ => None,
        }
    };
    match operation.op_name() {
        "constexpr_lut_to_dense" => match (size("indices"), size("lut").and_then(|lut| lut.dims())) {
            (Some(indices), Some(lut)) => {
                let bits = indices.dtype.bits();
                format!("{bits}-bit palette, {}", shared(shape, &lut, "per tensor", "groups of"))
            }
            _ => "palette".to_string(),
        },
        "constexpr_blockwise_shift_scale" => match (size("data"), size("scale").and_then(|scale| scale.dims())) {
            (Some(data), Some(scale)) => format!("{}, {}", data.dtype, scaled(shape, &scale)),
            _ => "quantized".to_string(),
        },
        "const" => dtype.to_string(),
        other => other.trim_start_matches("constexpr_").replace('_', " "),
    }
}

/// How much of the axis that is divided shares a table.
fn shared(shape: &[usize], groups: &[usize], undivided: &str, divided: &str) -> String {
    let axis = shape.iter().zip(groups).find(|(_, groups)| **groups > 1);
    axis.map_or(undivided.to_string(), |(size, groups)| format!("{divided} {}", size / groups))
}

/// What shares a scale: the axis that is divided last tells blocks from channels.
fn scaled(shape: &[usize], blocks: &[usize]) -> String {
    let mut divided = shape.iter().zip(blocks).filter(|(_, blocks)| **blocks > 1).map(|(size, blocks)| size / blocks);
    match (divided.next(), divided.find(|size| *size > 1)) {
        (None, _) => "per tensor".to_string(),
        (Some(1), None) => "per channel".to_string(),
        (Some(size), None) | (_, Some(size)) => format!("blocks of {size}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_told_from_shapes() {
        assert_eq!(shared(&[128, 64], &[8, 1, 16, 1], "per tensor", "groups of"), "groups of 16");
        assert_eq!(shared(&[128, 64], &[1, 1, 16, 1], "per tensor", "groups of"), "per tensor");
        assert_eq!(scaled(&[128, 64], &[128, 1]), "per channel");
        assert_eq!(scaled(&[128, 64], &[1, 1]), "per tensor");
        assert_eq!(scaled(&[128, 64], &[128, 2]), "blocks of 32");
    }
}
