//! Which operation comes next and what its arguments are: recipes for those whose arguments have to go together, and
//! the table of operations for all others.

use crate::constants::{dense, weight};
use crate::generate::{Generator, int, ints};
use quince_mil::op::{Default, FLOAT, NUMBER};
use quince_mil::{Arg, DType, Op, Param, Tensor, ValueType, Var, ops};

type Recipe = fn(&mut Generator) -> Option<()>;

const RECIPES: &[Recipe] = &[
    linear,
    linear,
    matmul,
    matmul,
    conv,
    attention,
    norm,
    gather,
    scatter,
    reshape,
    slice,
    split,
    concat,
    update_state,
    read_state,
    cond,
    repeat,
    cast,
];

/// Appends an operation, or a few that belong together; nothing if what was chosen does not go together.
pub fn operation(g: &mut Generator) {
    if g.choices.rarely(2) {
        from_table(g);
    } else {
        g.choices.pick(RECIPES)(g);
    }
}

/// What a constant's name in place is worth.
fn flag(g: &mut Generator) -> Arg {
    Arg::Value(g.choices.rarely(2).into())
}

fn linear(g: &mut Generator) -> Option<()> {
    let x = g.find_tensor(FLOAT)?;
    let (dtype, shape) = g.tensor(x)?;
    let (outputs, width) = (g.choices.size(), *shape.last()?);
    let weight = weight(g, dtype, &[outputs, width])?;
    let mut inputs = vec![("x", Arg::Var(x)), ("weight", weight)];
    if g.choices.rarely(2) {
        inputs.push(("bias", dense(g, dtype, &[outputs])?));
    }
    g.emit("linear", inputs).map(|_| ())
}

fn matmul(g: &mut Generator) -> Option<()> {
    let x = g.find_tensor(NUMBER)?;
    let (dtype, shape) = g.tensor(x)?;
    let (across, flipped) = (g.choices.rarely(3), g.choices.rarely(2));
    let inner = *shape.get(shape.len().checked_sub(if across { 2 } else { 1 })?)?;
    let outer = g.choices.size();
    let y = match g.choices.below(4) {
        0 => Arg::Var(g.find_tensor(&[dtype])?),
        kind => {
            let mut sizes = if flipped { vec![outer, inner] } else { vec![inner, outer] };
            if kind == 1 && shape.len() > 2 {
                let batch = shape[..shape.len() - 2].iter().map(|&n| if g.choices.rarely(3) { 1 } else { n });
                sizes = batch.chain(sizes).collect();
            }
            if dtype.is_float() { weight(g, dtype, &sizes)? } else { dense(g, dtype, &sizes)? }
        }
    };
    let flags = [("transpose_x", Arg::Value(across.into())), ("transpose_y", Arg::Value(flipped.into()))];
    g.emit("matmul", [vec![("x", Arg::Var(x)), ("y", y)], flags.to_vec()].concat()).map(|_| ())
}

fn conv(g: &mut Generator) -> Option<()> {
    let x = g.find_tensor(FLOAT)?;
    let (dtype, mut shape) = g.tensor(x)?;
    let mut x = Arg::Var(x);
    if !(3..=5).contains(&shape.len()) {
        // A value of another rank becomes an image.
        let (channels, height) = (g.choices.divisor(shape.iter().product()), g.choices.pick(&[1, 1, 2]));
        shape = vec![1, channels, height, shape.iter().product::<usize>() / (channels * height)];
        x = g.one("reshape", vec![("x", x), ("shape", ints(shape.iter().map(|&n| n as i64)))])?;
    }
    let rank = shape.len() - 2;
    let transposed = g.choices.rarely(4);
    let groups = if g.choices.rarely(3) { g.choices.divisor(shape[1]) } else { 1 };
    let out = groups * g.choices.pick(&[1, 2, 3, 8, 16]);
    let kernel: Vec<usize> = (0..rank).map(|_| g.choices.pick(&[1, 1, 3, 2])).collect();
    let sizes = if transposed { [shape[1], out / groups] } else { [out, shape[1] / groups] };
    let mut inputs = vec![("x", x), ("weight", weight(g, dtype, &[&sizes[..], &kernel].concat())?)];
    if g.choices.rarely(2) {
        inputs.push(("bias", dense(g, dtype, &[out])?));
    }
    inputs.push(("groups", int(groups)));
    for name in ["strides", "dilations"] {
        let values: Vec<i64> = (0..rank).map(|_| g.choices.pick(&[1, 1, 2])).collect();
        inputs.push((name, ints(values)));
    }
    let pad_type = g.choices.pick(&["valid", "same", "custom", "same_lower"]);
    inputs.push(("pad_type", Arg::Value(pad_type.into())));
    if pad_type == "custom" {
        let values: Vec<i64> = (0..2 * rank).map(|_| g.choices.within(0, 2)).collect();
        inputs.push(("pad", ints(values)));
    }
    g.emit(if transposed { "conv_transpose" } else { "conv" }, inputs).map(|_| ())
}

fn attention(g: &mut Generator) -> Option<()> {
    let fits = |ty: &ValueType| matches!(ty, ValueType::Tensor(ty) if FLOAT.contains(&ty.dtype) && ty.shape.len() > 2);
    let query = g.find(fits)?;
    let (dtype, shape) = g.tensor(query)?;
    let [batch @ .., rows, width] = &shape[..] else { return None };
    let (keys, depth) = (g.choices.pick(&[*rows, 1, 5, 17, 33]), g.choices.pick(&[*width, *width, 3]));
    let own = (keys, depth) == (*rows, *width) && g.choices.rarely(2);
    let key = if own { Arg::Var(query) } else { dense(g, dtype, &[batch, &[keys, *width]].concat())? };
    let value = dense(g, dtype, &[batch, &[keys, depth]].concat())?;
    let mut inputs = vec![("query", Arg::Var(query)), ("key", key), ("value", value)];
    if g.choices.rarely(2) {
        let ty = if g.choices.rarely(2) { DType::Bool } else { dtype };
        let scores = [batch, &[*rows, keys]].concat();
        let from = g.choices.below(scores.len() - 1);
        inputs.push(("attn_mask", dense(g, ty, &scores[from..])?));
    }
    g.emit("scaled_dot_product_attention", inputs).map(|_| ())
}

fn norm(g: &mut Generator) -> Option<()> {
    let x = g.find_tensor(FLOAT)?;
    let (dtype, shape) = g.tensor(x)?;
    let mut inputs = vec![("x", Arg::Var(x))];
    let op = g.choices.pick(&["layer_norm", "softmax", "layer_norm", "batch_norm", "instance_norm", "rms_norm"]);
    let width: &[usize] = match op {
        "layer_norm" => &shape[shape.len().checked_sub(1)?..],
        "rms_norm" => &shape[shape.len().checked_sub(1)?..],
        _ => shape.get(1..2).unwrap_or(&[]),
    };
    let names: &[&str] = match op {
        "batch_norm" => &["mean", "variance", "gamma", "beta"],
        "rms_norm" => &["weight"],
        "softmax" => &[],
        _ => &["gamma", "beta"],
    };
    for name in names {
        inputs.push((name, dense(g, dtype, width)?));
    }
    match op {
        "softmax" => inputs.push(("axis", int(g.choices.below(shape.len())))),
        "layer_norm" => inputs.push(("axes", ints([-1]))),
        _ => {}
    }
    if op != "softmax" {
        let epsilon = g.choices.pick(&[1e-5f32, 1e-2, 1e-6]);
        inputs.push(("epsilon", Arg::Value(Tensor::scalar(epsilon).cast(dtype).ok()?.into())));
    }
    g.emit(op, inputs).map(|_| ())
}

/// Indices for an axis of this size: good ones, or a tensor of whole numbers that may not be.
fn indices(g: &mut Generator, size: usize, shape: &[usize]) -> Option<Arg> {
    if g.choices.rarely(6) {
        return Some(Arg::Var(g.find_tensor(&[DType::I32])?));
    }
    let (first, step) = (g.choices.below(16), g.choices.pick(&[1, 0, 2, 3, 7]));
    let count: usize = shape.iter().product();
    let values: Vec<i32> = (0..count).map(|i| ((first + i * step) % size.max(1)) as i32).collect();
    Some(g.constant(Tensor::from_vec(shape, values).ok()?.into()))
}

fn gather(g: &mut Generator) -> Option<()> {
    let x = g.find_tensor(&[])?;
    let (dtype, mut shape) = g.tensor(x)?;
    let axis = g.choices.below(shape.len());
    let size = *shape.get(axis)?;
    // A table of embeddings is a constant.
    let table = dtype.is_float() && g.choices.rarely(3);
    let x = if table { weight(g, dtype, &shape)? } else { Arg::Var(x) };
    let (op, places) = match g.choices.below(3) {
        0 => ("gather", g.choices.shape((0, 2))),
        1 => {
            shape[axis] = g.choices.pick(&[1, 2, 5]);
            ("gather_along_axis", shape.clone())
        }
        _ => ("gather_nd", vec![g.choices.pick(&[2, 1, 4]), 1]),
    };
    let indices = indices(g, if op == "gather_nd" { *shape.first()? } else { size }, &places)?;
    let mut inputs = vec![("x", x), ("indices", indices)];
    if op != "gather_nd" {
        inputs.push(("axis", int(axis)));
    }
    g.emit(op, inputs).map(|_| ())
}

fn scatter(g: &mut Generator) -> Option<()> {
    let data = g.find_tensor(NUMBER)?;
    let (dtype, shape) = g.tensor(data)?;
    let axis = g.choices.below(shape.len());
    let (size, count) = (*shape.get(axis)?, g.choices.pick(&[1, 2, 3]));
    let mut along = shape.clone();
    along[axis] = count;
    let op = g.choices.pick(&["scatter", "scatter_along_axis", "scatter_nd"]);
    let (places, updates, size) = match op {
        "scatter" => (vec![count], along, size),
        "scatter_along_axis" => (along.clone(), along, size),
        _ => (vec![count, 1], [&[count], &shape[1..]].concat(), shape[0]),
    };
    let mode = g.choices.pick(&["update", "add", "sub", "mul", "max", "min", "div"]);
    let (indices, updates) = (indices(g, size, &places)?, dense(g, dtype, &updates)?);
    let mut inputs = vec![("data", Arg::Var(data)), ("indices", indices), ("updates", updates)];
    inputs.push(("mode", Arg::Value(mode.into())));
    if op != "scatter_nd" {
        inputs.push(("axis", int(axis)));
    }
    g.emit(op, inputs).map(|_| ())
}

fn reshape(g: &mut Generator) -> Option<()> {
    let x = g.find_tensor(&[])?;
    let (_, shape) = g.tensor(x)?;
    if g.choices.rarely(2) {
        let mut perm: Vec<i64> = (0..shape.len() as i64).collect();
        for i in (1..perm.len()).rev() {
            perm.swap(i, g.choices.below(i + 1));
        }
        return g.emit("transpose", vec![("x", Arg::Var(x)), ("perm", ints(perm))]).map(|_| ());
    }
    let mut rest: usize = shape.iter().product();
    let mut sizes = Vec::new();
    for _ in 0..g.choices.within(0, 3) {
        let size = g.choices.divisor(rest);
        rest /= size;
        sizes.push(size as i64);
    }
    sizes.push(if g.choices.rarely(3) { -1 } else { rest as i64 });
    g.emit("reshape", vec![("x", Arg::Var(x)), ("shape", ints(sizes))]).map(|_| ())
}

/// Bounds of a slice of a shape, with steps now and then.
fn bounds(g: &mut Generator, shape: &[usize]) -> Vec<(&'static str, Arg)> {
    let (mut begin, mut end, mut stride) = (Vec::new(), Vec::new(), Vec::new());
    for &size in shape {
        let size = size as i64;
        let step = g.choices.pick(&[1, 1, 2, 1, -1, 3]);
        let (first, last) = (g.choices.within(0, size.min(64)), g.choices.within(0, size.min(64)));
        let whole = g.choices.rarely(2);
        let (low, high) = if whole { (0, size) } else { (first.min(last), first.max(last)) };
        begin.push(if step > 0 { low } else { high - 1 });
        end.push(if step > 0 { high } else { low - 1 - if low == 0 { size } else { 0 } });
        stride.push(step);
    }
    vec![("begin", ints(begin)), ("end", ints(end)), ("stride", ints(stride))]
}

fn slice(g: &mut Generator) -> Option<()> {
    let x = g.find_tensor(&[])?;
    let (dtype, shape) = g.tensor(x)?;
    let mut inputs = bounds(g, &shape);
    if g.choices.rarely(3) {
        let truths: Vec<bool> = shape.iter().map(|_| g.choices.rarely(3)).collect();
        let name = g.choices.pick(&["squeeze_mask", "begin_mask", "end_mask"]);
        inputs.push((name, Arg::Value(Tensor::from_bools([truths.len()], &truths).ok()?.into())));
    }
    let of = [vec![("x", Arg::Var(x))], inputs.clone()].concat();
    let part = g.emit("slice_by_index", of)?;
    let (_, sizes) = g.tensor(*part.first()?)?;
    if g.choices.rarely(3) && sizes.len() == shape.len() {
        let update = if g.choices.rarely(2) { Arg::Var(part[0]) } else { dense(g, dtype, &sizes)? };
        inputs.extend([("x", Arg::Var(x)), ("update", update)]);
        g.emit("slice_update", inputs)?;
    }
    Some(())
}

fn split(g: &mut Generator) -> Option<()> {
    let x = g.find_tensor(&[])?;
    let (_, shape) = g.tensor(x)?;
    let axis = g.choices.below(shape.len());
    let size = *shape.get(axis)?;
    let mut inputs = vec![("x", Arg::Var(x)), ("axis", int(axis))];
    if g.choices.rarely(2) {
        let first = g.choices.below(size + 1);
        inputs.push(("split_sizes", ints([first as i64, (size - first) as i64])));
    } else {
        inputs.push(("num_splits", int(g.choices.divisor(size).min(8))));
    }
    g.emit("split", inputs).map(|_| ())
}

fn concat(g: &mut Generator) -> Option<()> {
    let x = g.find_tensor(&[])?;
    let (dtype, mut shape) = g.tensor(x)?;
    let axis = g.choices.below(shape.len());
    let mut values = vec![Arg::Var(x)];
    for _ in 0..g.choices.within(1, 2) {
        values.push(match g.choices.below(3) {
            0 => Arg::Var(x),
            1 => Arg::Var(g.find_tensor(&[dtype])?),
            _ => {
                *shape.get_mut(axis)? = g.choices.size();
                dense(g, dtype, &shape)?
            }
        });
    }
    let (op, interleave) = (g.choices.pick(&["concat", "concat", "stack"]), g.choices.rarely(4));
    let mut inputs = vec![("values", values), ("axis", vec![int(axis)])];
    if op == "concat" {
        inputs.push(("interleave", vec![Arg::Value(interleave.into())]));
    }
    g.emit_all(op, inputs, Vec::new()).map(|_| ())
}

fn a_state(g: &mut Generator) -> Option<Var> {
    let last = g.states.len().checked_sub(1)?;
    Some(g.states[g.choices.below(2).min(last)])
}

fn read_state(g: &mut Generator) -> Option<()> {
    let state = a_state(g)?;
    g.emit("read_state", vec![("input", Arg::Var(state))]).map(|_| ())
}

/// Reads a state, changes a part of it as a cache is changed or all of it, and writes it.
fn update_state(g: &mut Generator) -> Option<()> {
    let state = a_state(g)?;
    let ValueType::State(ty) = g.ty(state).clone() else { return None };
    let read = g.one("read_state", vec![("input", Arg::Var(state))])?;
    let shape = ty.dims()?;
    if g.choices.rarely(2) {
        let mut inputs = bounds(g, &shape);
        let part = g.emit("slice_by_index", [vec![("x", read.clone())], inputs.clone()].concat())?;
        let (_, sizes) = g.tensor(*part.first()?)?;
        let update = dense(g, ty.dtype, &sizes)?;
        inputs.extend([("x", read), ("update", update)]);
        g.emit("slice_update", inputs)?;
    } else {
        operation(g);
    }
    let data = g.newest(&ty.into())?;
    g.emit("write_state", vec![("input", Arg::Var(state)), ("data", Arg::Var(data))])?;
    if g.choices.rarely(2) { read_state(g) } else { Some(()) }
}

/// Operations of a block, and the newest value of this type after them.
fn body(g: &mut Generator, ty: &ValueType) -> Option<Var> {
    for _ in 0..g.choices.within(1, 3) {
        operation(g);
    }
    g.newest(ty)
}

fn cond(g: &mut Generator) -> Option<()> {
    if g.depth > 1 {
        return None;
    }
    let x = g.find_tensor(&[])?;
    let ty = g.ty(x).clone();
    let scalar = ValueType::tensor(DType::Bool, &[]);
    let pred = match g.newest(&scalar) {
        Some(var) => Arg::Var(var),
        None => flag(g),
    };
    let mut blocks = Vec::new();
    for _ in 0..2 {
        blocks.push(g.block(&[], |g, _| Some(vec![body(g, &ty)?]))?);
    }
    g.emit_all("cond", vec![("pred", vec![pred])], blocks).map(|_| ())
}

/// A loop that counts to a small number and carries a value along.
fn repeat(g: &mut Generator) -> Option<()> {
    if g.depth > 1 {
        return None;
    }
    let x = g.find_tensor(&[])?;
    let types = [ValueType::tensor(DType::I32, &[]), g.ty(x).clone()];
    let times = g.choices.within(0, 4) as i32;
    let condition =
        g.block(&types, |g, vars| g.emit("less", vec![("x", Arg::Var(vars[0])), ("y", Arg::Value(times.into()))]))?;
    let again = g.block(&types, |g, vars| {
        let next = g.emit("add", vec![("x", Arg::Var(vars[0])), ("y", int(1))])?;
        Some(vec![next[0], body(g, &types[1])?])
    })?;
    g.emit_all("while_loop", vec![("loop_vars", vec![int(0), Arg::Var(x)])], vec![condition, again]).map(|_| ())
}

fn cast(g: &mut Generator) -> Option<()> {
    let x = g.find_tensor(&[])?;
    let dtype = g.choices.pick(&["fp32", "fp16", "int32", "bool", "fp32", "fp16", "int8", "uint8", "int16"]);
    g.emit("cast", vec![("x", Arg::Var(x)), ("dtype", Arg::Value(dtype.into()))]).map(|_| ())
}

/// An operation of the table with arguments that its parameters' names and types suggest.
fn from_table(g: &mut Generator) -> Option<()> {
    let op = ops::OPS[(g.choices.below(256) + g.choices.below(2)) % ops::OPS.len()];
    let special = ["const", "cond", "while_loop", "read_state", "write_state"];
    if special.contains(&op.name()) || op.name().starts_with("random_") || op.name().starts_with("constexpr_") {
        return None;
    }
    let mut first = None;
    let mut inputs = Vec::new();
    for param in op.params() {
        if param.optional && !g.choices.rarely(2) {
            continue;
        }
        if param.variadic {
            let x = g.find_tensor(param.types)?;
            first = first.or(Some(x));
            inputs.push((param.name, vec![Arg::Var(x); g.choices.within(1, 3) as usize]));
            continue;
        }
        let arg = argument(g, op, param, first)?;
        if let (None, Arg::Var(var)) = (first, &arg) {
            first = Some(*var);
        }
        inputs.push((param.name, vec![arg]));
    }
    g.emit_all(op.name(), inputs, Vec::new()).map(|_| ())
}

/// An argument for a parameter; `first` is the first variable that the operation has got.
fn argument(g: &mut Generator, op: &dyn Op, param: &Param, first: Option<Var>) -> Option<Arg> {
    let Some((dtype, shape)) = first.and_then(|var| g.tensor(var)) else {
        return match param.name {
            "ls" => g.find(|ty| matches!(ty, ValueType::List(..))).map(Arg::Var),
            "start" | "end" | "step" => Some(int(g.choices.below(6))),
            _ if param.constant => setting(g, op, param, DType::F32, &[]),
            _ => g.find_tensor(param.types).map(Arg::Var),
        };
    };
    if param.constant {
        return setting(g, op, param, dtype, &shape);
    }
    let rank = shape.len();
    let whole = |g: &mut Generator, count: usize| {
        let values: Vec<i64> = (0..count).map(|_| g.choices.within(0, 3)).collect();
        Some(ints(values))
    };
    match param.name {
        "indices" | "index" | "one_hot_vector_size" => indices(g, 2, &[]),
        "shape" | "begin" | "end" | "size" | "reps" | "output_shape" => whole(g, rank),
        "pad" => {
            let axes = g.choices.within(0, 2) as usize;
            whole(g, 2 * axes)
        }
        "boxes" | "scores" | "coordinates" | "initial_h" | "initial_c" => {
            let shape = g.choices.shape((2, 4));
            dense(g, dtype, &shape)
        }
        _ => beside(g, param, dtype, &shape),
    }
}

/// A value that goes with the first one: another variable, or a constant that broadcasts to it.
fn beside(g: &mut Generator, param: &Param, dtype: DType, shape: &[usize]) -> Option<Arg> {
    let dtype = match param.types {
        [] => dtype,
        types if types.contains(&dtype) => dtype,
        types => types[0],
    };
    match g.choices.below(5) {
        0 | 1 => {
            let same: Vec<usize> = shape.to_vec();
            let fits = |ty: &ValueType| {
                let ValueType::Tensor(ty) = ty else { return false };
                let sizes: Vec<usize> = ty.shape.iter().map(|dim| dim.fixed().unwrap_or(1)).collect();
                ty.dtype == dtype
                    && same.iter().rev().zip(sizes.iter().rev()).all(|(a, b)| a == b || *a == 1 || *b == 1)
            };
            g.find(fits).map(Arg::Var)
        }
        2 => dense(g, dtype, shape),
        3 => dense(g, dtype, &[]),
        _ => {
            let from = g.choices.below(shape.len() + 1);
            let sizes: Vec<usize> = shape[from..].iter().map(|&n| if g.choices.rarely(3) { 1 } else { n }).collect();
            dense(g, dtype, &sizes)
        }
    }
}

/// The constant of a parameter that says how, for an operation on a tensor of this type.
fn setting(g: &mut Generator, op: &dyn Op, param: &Param, dtype: DType, shape: &[usize]) -> Option<Arg> {
    let rank = shape.len();
    let spatial = rank.saturating_sub(2);
    let several = |g: &mut Generator, count: usize, most: i64| {
        let values: Vec<i64> = (0..count).map(|_| g.choices.within(1, most)).collect();
        Some(ints(values))
    };
    match (param.name, param.default) {
        ("axes", _) => {
            let mut axes = vec![g.choices.below(rank) as i64 - if g.choices.rarely(2) { rank as i64 } else { 0 }];
            if g.choices.rarely(3) {
                axes.push(g.choices.below(rank) as i64);
            }
            Some(ints(axes))
        }
        ("axis" | "seq_axis" | "batch_axis", _) => {
            Some(Arg::Value((g.choices.within(-(rank as i64), rank as i64 - 1) as i32).into()))
        }
        ("kernel_sizes", _) => several(g, spatial, 3),
        ("strides" | "dilations", _) => several(g, spatial, 2),
        ("pad", _) => several(g, 2 * spatial, 2),
        ("pad_type", _) => Some(Arg::Value(g.choices.pick(&["valid", "same", "custom", "same_lower"]).into())),
        ("dtype" | "output_dtype", _) => {
            let names = ["fp32", "fp16", "int32", "int8", "uint8"];
            Some(Arg::Value(g.choices.pick(&names).into()))
        }
        ("mode", _) => {
            let modes = ["EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION", "constant", "reflect", "replicate"];
            Some(Arg::Value(g.choices.pick(&modes).into()))
        }
        ("gamma" | "mean" | "variance" | "weight", _) => dense(g, dtype, shape.get(1..2).unwrap_or(&[])),
        ("alpha" | "beta", _) if op.name().contains("prelu") || op.name().contains("parametric") => {
            dense(g, dtype, shape.get(1..2).unwrap_or(&[]))
        }
        ("epsilon", _) => Some(Arg::Value(Tensor::scalar(1e-3f32).cast(dtype).ok()?.into())),
        (_, Some(Default::Bool(_))) => Some(flag(g)),
        (_, Some(Default::Int(_))) => Some(int(g.choices.below(4))),
        (_, Some(Default::Str(name))) => Some(Arg::Value(name.into())),
        _ => {
            let dtype = if param.types.is_empty() || param.types.contains(&dtype) { dtype } else { param.types[0] };
            dense(g, dtype, &[])
        }
    }
}
