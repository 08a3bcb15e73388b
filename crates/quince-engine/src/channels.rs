//! Programs for the Neural Engine have channels before tokens, [B, C, 1, S], and products written as 1×1 convolutions.
//! Kernels want the elements of a token side by side, so such a function is rewritten: beside every value that has its
//! tokens last, a twin is computed that has them second, `conv` becomes `linear` on twins, and what is computed from
//! twins is computed on them. Values that nothing wants any more are not computed; what is left is the function that other
//! targets have, with the same steps.
//!
//! ```text
//! x [B, C, 1, S]   twin [B, S, C]           x [B, C, S]   twin [B, S, C]           x [B, P, Q, S]   twin [B, S, P, Q]
//! ```

use crate::specialize::Specialized;
use crate::weights::{self, WeightCache};
use quince_mil::{Arg, DType, Defs, Function, OpKind, Operation, Tensor, ValueType, Var};
use std::collections::{HashMap, HashSet};

/// Operations of one argument that treat each element alone.
const UNARY: &[&str] =
    &["cast", "clip", "exp", "gelu", "identity", "relu", "rsqrt", "sigmoid", "silu", "sqrt", "square", "tanh"];
/// Operations of two arguments that do, and broadcast.
const BINARY: &[&str] = &["add", "maximum", "minimum", "mul", "real_div", "sub"];

/// Rewrites a function that has convolutions which are products; leaves others as they are.
pub(crate) fn last(specialized: &mut Specialized, cache: &WeightCache) {
    let products = products(specialized, cache);
    if products.is_empty() {
        return;
    }
    let operations = std::mem::take(&mut specialized.function.block.operations);
    let mut rewrite = Rewrite { specialized, cache, operations: Vec::new(), twins: HashMap::new() };
    for (index, operation) in operations.into_iter().enumerate() {
        rewrite.operation(operation, products.contains(&index));
    }
    let operations = rewrite.operations;
    specialized.function.block.operations = operations;
    remove_unused(&mut specialized.function);
}

/// The indices of convolutions that are products with a weight that kernels read packed.
fn products(specialized: &Specialized, cache: &WeightCache) -> HashSet<usize> {
    let (function, defs) = (&specialized.function, Defs::new(&specialized.function));
    let is_product = |operation: &Operation| {
        let (Some(x), Some(weight), [out]) = (operation.var("x"), operation.var("weight"), &operation.outputs[..])
        else {
            return Some(false);
        };
        let (x, kernel, out) = (specialized.shape(x)?, specialized.shape(weight)?, specialized.shape(*out)?);
        let (&[_, channels, 1, _], &[_, columns, 1, 1]) = (&x[..], &kernel[..]) else { return Some(false) };
        let ones = |param: &str| specialized.ints(operation, param).is_none_or(|all| all.iter().all(|&n| n == 1));
        let padded = specialized.ints(operation, "pad").is_some_and(|all| all.iter().any(|&n| n != 0));
        let plain = channels == columns && columns > 0 && out[2..] == x[2..] && !padded;
        let producer = defs.producer(operation.var("weight")?)?;
        let packs = || weights::packed(cache, &defs, producer).is_ok_and(|packed| packed.is_some());
        Some(plain && ones("strides") && ones("groups") && packs())
    };
    let operations = function.block.operations.iter().enumerate();
    let convolutions = operations.filter(|(_, operation)| operation.op_name() == "conv");
    convolutions.filter(|(_, operation)| is_product(operation) == Some(true)).map(|(index, _)| index).collect()
}

struct Rewrite<'a> {
    specialized: &'a mut Specialized,
    cache: &'a WeightCache,
    /// What was written so far.
    operations: Vec<Operation>,
    twins: HashMap<Var, Var>,
}

impl Rewrite<'_> {
    /// Writes an operation: on twins where it can be, else as it is.
    fn operation(&mut self, operation: Operation, is_product: bool) {
        let done = match operation.op_name() {
            "conv" if is_product => self.product(&operation),
            "concat" => self.concat(&operation),
            "layer_norm" => self.over_channels(&operation),
            "reduce_mean" | "reduce_sum" | "reduce_max" => self.over_channels(&operation),
            "slice_by_index" => self.slice(&operation),
            "reshape" | "expand_dims" | "squeeze" => self.reshape(&operation),
            "transpose" => self.transpose(&operation),
            name if UNARY.contains(&name) => self.unary(&operation),
            name if BINARY.contains(&name) => self.binary(&operation),
            _ => None,
        };
        if done.is_none() {
            self.operations.push(operation);
        }
    }

    /// `conv` as `linear`, which takes a weight of any rank: it reads it as a matrix.
    fn product(&mut self, operation: &Operation) -> Option<()> {
        let x = self.twin_or_made(operation.var("x")?)?;
        let mut inputs = vec![("x", Arg::Var(x)), ("weight", Arg::Var(operation.var("weight")?))];
        inputs.extend(operation.arg("bias").map(|bias| ("bias", bias.clone())));
        self.computed(operation, "linear", inputs)
    }

    fn unary(&mut self, operation: &Operation) -> Option<()> {
        let x = *self.twins.get(&operation.var("x")?)?;
        let out = *operation.outputs.first()?;
        let float = |var: Var| self.dtype(var).is_some_and(DType::is_float);
        (float(x) && float(out)).then_some(())?;
        let mut inputs = others(operation, &["x"]);
        inputs.insert(0, ("x", Arg::Var(x)));
        self.computed(operation, operation.op_name(), inputs)
    }

    fn binary(&mut self, operation: &Operation) -> Option<()> {
        let whole = self.shape(*operation.outputs.first()?)?;
        let has_twin = |param: &str| operation.var(param).is_some_and(|var| self.twins.contains_key(&var));
        (whole.len() == 4 && whole[2] == 1 && (has_twin("x") || has_twin("y"))).then_some(())?;
        let mut inputs = Vec::new();
        for param in ["x", "y"] {
            let arg = operation.arg(param)?.clone();
            inputs.push((
                param,
                match &arg {
                    Arg::Value(value) => value.tensor_type().filter(|ty| ty.shape.is_empty()).map(|_| arg)?,
                    Arg::Var(var) => Arg::Var(self.side(*var)?),
                },
            ));
        }
        self.computed(operation, operation.op_name(), inputs)
    }

    /// A side of a binary operation: a number, a vector of channels, or a twin.
    fn side(&mut self, var: Var) -> Option<Var> {
        let shape = self.shape(var)?;
        if shape.is_empty() {
            return Some(var);
        }
        match (self.specialized.constants[var.0 as usize].clone(), &shape[..]) {
            (Some(value), &[.., channels, 1, 1]) if shape.iter().product::<usize>() == channels => {
                if let Some(twin) = self.twins.get(&var) {
                    return Some(*twin);
                }
                let vector = self.cache.tensor(&value).ok()?.reshape([channels]).ok()?;
                let twin = self.constant(var, vector);
                self.twins.insert(var, twin);
                Some(twin)
            }
            (None, &[_, _, 1, _]) => self.twin_or_made(var),
            _ => None,
        }
    }

    fn concat(&mut self, operation: &Operation) -> Option<()> {
        let axis = self.specialized.ints(operation, "axis")?;
        let interleaved = self.specialized.known(operation, "interleave");
        let plain = interleaved.is_none_or(|tensor| tensor.to_bools().is_ok_and(|all| all == [false]));
        let mut twins = Vec::new();
        for arg in operation.args("values") {
            let Arg::Var(var) = arg else { return None };
            let shape = self.shape(*var)?;
            (shape.len() == 4 && shape[2] == 1).then_some(())?;
            twins.push(Arg::Var(*self.twins.get(var)?));
        }
        (plain && (axis == [1] || axis == [-3])).then_some(())?;
        let out = *operation.outputs.first()?;
        let (shape, dtype) = (twin_shape(&self.shape(out)?)?, self.dtype(out)?);
        let name = format!("{}.by_token", operation.name);
        let inputs = vec![("values".to_owned(), twins), ("axis".to_owned(), vec![Arg::Value((-1).into())])];
        let twin = self.emit("concat", &name, inputs, &shape, dtype)?;
        self.twins.insert(out, twin);
        self.turned_back(operation, out, twin)
    }

    /// Norms and sums over the channels.
    fn over_channels(&mut self, operation: &Operation) -> Option<()> {
        let x = operation.var("x")?;
        let (twin, shape) = (*self.twins.get(&x)?, self.shape(x)?);
        let axes = self.specialized.ints(operation, "axes")?;
        let kept = self.shape(*operation.outputs.first()?)?.len() == shape.len();
        (kept && shape.len() == 4 && shape[2] == 1 && (axes == [1] || axes == [-3])).then_some(())?;
        let mut inputs = others(operation, &["x", "axes"]);
        inputs.splice(0..0, [("x", Arg::Var(twin)), ("axes", Arg::Value(vec![-1i32].into()))]);
        self.computed(operation, operation.op_name(), inputs)
    }

    /// A part of the channels.
    fn slice(&mut self, operation: &Operation) -> Option<()> {
        let (x, out) = (operation.var("x")?, *operation.outputs.first()?);
        let twin = *self.twins.get(&x)?;
        let (whole, part) = (self.shape(x)?, self.shape(out)?);
        let (&[b, channels, 1, s], &[pb, count, 1, ps]) = (&whole[..], &part[..]) else { return None };
        let ones = self.specialized.ints(operation, "stride").is_none_or(|strides| strides.iter().all(|&n| n == 1));
        let squeezes = self.specialized.bools(operation, "squeeze_mask");
        let plain = ones && squeezes.is_none_or(|mask| mask.iter().all(|&squeezed| !squeezed));
        let begin = *self.specialized.ints(operation, "begin")?.get(1)?;
        let masked = self.specialized.bools(operation, "begin_mask");
        let begin = match masked {
            Some(mask) if *mask.get(1)? => 0,
            _ => usize::try_from(begin).ok()?,
        };
        (plain && (b, s) == (pb, ps) && begin + count <= channels).then_some(())?;
        let ints = |sizes: [usize; 3]| Arg::Value(sizes.map(|size| size as i32).to_vec().into());
        let inputs = vec![("x", Arg::Var(twin)), ("begin", ints([0, 0, begin])), ("end", ints([b, s, begin + count]))];
        self.computed(operation, "slice_by_index", inputs)
    }

    /// A reshape that leaves texts and tokens where they are.
    fn reshape(&mut self, operation: &Operation) -> Option<()> {
        let (x, out) = (operation.var("x")?, *operation.outputs.first()?);
        let twin = *self.twins.get(&x)?;
        let (from, to) = (self.shape(x)?, self.shape(out)?);
        let same = from.first() == to.first() && from.last() == to.last();
        let shape = twin_shape(&to).filter(|_| same)?;
        let twin = self.reshaped(twin, &format!("{}.by_token", operation.name), &shape)?;
        self.twins.insert(out, twin);
        self.turned_back(operation, out, twin)
    }

    /// A transpose of a twin, or one that makes a value of which the twin is wanted.
    fn transpose(&mut self, operation: &Operation) -> Option<()> {
        let (x, out) = (operation.var("x")?, *operation.outputs.first()?);
        let perm = self.specialized.ints(operation, "perm")?;
        let (from, to) = (self.shape(x)?, self.shape(out)?);
        let rank = from.len() as i64;
        let perm: Vec<usize> = perm
            .iter()
            .map(|&axis| usize::try_from(if axis < 0 { axis + rank } else { axis }))
            .collect::<Result<_, _>>()
            .ok()?;
        let name = format!("{}.by_token", operation.name);
        if let Some(&twin) = self.twins.get(&x) {
            // The axes of the twin, in which those of tokens come second, in the order that is asked for.
            let order = tokens_second(from.len())?;
            let sizes: Vec<usize> = order.iter().map(|&axis| from[axis]).collect();
            let twin = self.reshaped(twin, &name, &sizes)?;
            let place = |axis: &usize| order.iter().position(|other| other == axis);
            let perm: Vec<usize> = perm.iter().map(place).collect::<Option<_>>()?;
            return self.transposed(twin, &perm, out, &operation.name);
        }
        if perm == [0, 2, 1] || perm == [0, 1, 3, 2] {
            let shape = twin_shape(&to)?;
            let perm: Vec<usize> = tokens_second(to.len())?.into_iter().map(|axis| perm[axis]).collect();
            let sizes: Vec<usize> = perm.iter().map(|&axis| from[axis]).collect();
            let turned = self.variable(&format!("{name}.turned"), &sizes, self.dtype(out)?);
            self.transposed(x, &perm, turned, &name)?;
            let twin = self.reshaped(turned, &name, &shape)?;
            self.twins.insert(out, twin);
        }
        None
    }

    /// Writes the operation on twins, and how its result comes of that.
    fn computed(&mut self, operation: &Operation, op: &str, inputs: Vec<(&str, Arg)>) -> Option<()> {
        let out = *operation.outputs.first()?;
        let (shape, dtype) = (twin_shape(&self.shape(out)?)?, self.dtype(out)?);
        let inputs = inputs.into_iter().map(|(param, arg)| (param.to_owned(), vec![arg])).collect();
        let twin = self.emit(op, &operation.name, inputs, &shape, dtype)?;
        self.twins.insert(out, twin);
        self.turned_back(operation, out, twin)
    }

    /// A value of its twin, for who wants it as it was.
    fn turned_back(&mut self, operation: &Operation, out: Var, twin: Var) -> Option<()> {
        let shape = self.shape(out)?;
        let order = tokens_second(shape.len())?;
        let sizes: Vec<usize> = order.iter().map(|&axis| shape[axis]).collect();
        let twin = self.reshaped(twin, &format!("{}.by_token", operation.name), &sizes)?;
        let perm: Vec<usize> =
            (0..shape.len()).map(|axis| order.iter().position(|&other| other == axis)).collect::<Option<_>>()?;
        self.transposed(twin, &perm, out, &format!("{}.by_channel", operation.name))
    }

    /// The twin of a value; one is made if it has none.
    fn twin_or_made(&mut self, var: Var) -> Option<Var> {
        if let Some(twin) = self.twins.get(&var) {
            return Some(*twin);
        }
        let shape = self.shape(var)?;
        let (order, wanted) = (tokens_second(shape.len())?, twin_shape(&shape)?);
        let name = format!("{}.by_token", self.specialized.function.var(var).name);
        let sizes: Vec<usize> = order.iter().map(|&axis| shape[axis]).collect();
        let turned = self.variable(&format!("{name}.turned"), &sizes, self.dtype(var)?);
        self.transposed(var, &order, turned, &name)?;
        let twin = self.reshaped(turned, &name, &wanted)?;
        self.twins.insert(var, twin);
        Some(twin)
    }

    /// x with its axes in another order, as a variable that is there; only named anew where nothing moves.
    fn transposed(&mut self, x: Var, perm: &[usize], out: Var, name: &str) -> Option<()> {
        let shape = self.shape(x)?;
        let moved: Vec<usize> = perm.iter().copied().filter(|&axis| shape[axis] != 1).collect();
        let (op, param, value) = match moved.is_sorted() {
            true => ("reshape", "shape", sizes(&self.shape(out)?)),
            false => ("transpose", "perm", sizes(perm)),
        };
        let inputs = vec![("x".to_owned(), vec![Arg::Var(x)]), (param.to_owned(), vec![value])];
        self.push(op, name, inputs, out);
        Some(())
    }

    fn reshaped(&mut self, x: Var, name: &str, shape: &[usize]) -> Option<Var> {
        if self.shape(x)? == shape {
            return Some(x);
        }
        let inputs = vec![("x".to_owned(), vec![Arg::Var(x)]), ("shape".to_owned(), vec![sizes(shape)])];
        let dtype = self.dtype(x)?;
        self.emit("reshape", name, inputs, shape, dtype)
    }

    fn emit(
        &mut self,
        op: &str,
        name: &str,
        inputs: Vec<(String, Vec<Arg>)>,
        shape: &[usize],
        dtype: DType,
    ) -> Option<Var> {
        let out = self.variable(&format!("{name}.by_token"), shape, dtype);
        self.push(op, name, inputs, out);
        Some(out)
    }

    fn push(&mut self, op: &str, name: &str, inputs: Vec<(String, Vec<Arg>)>, out: Var) {
        let (kind, blocks, attributes) = (OpKind::from_name(op), Vec::new(), Default::default());
        self.operations.push(Operation { kind, name: name.to_owned(), inputs, outputs: vec![out], blocks, attributes });
    }

    fn variable(&mut self, name: &str, shape: &[usize], dtype: DType) -> Var {
        self.specialized.constants.push(None);
        self.specialized.function.add_var(name, ValueType::tensor(dtype, shape))
    }

    /// A constant made of another.
    fn constant(&mut self, of: Var, tensor: Tensor) -> Var {
        let name = format!("{}.by_token", self.specialized.function.var(of).name);
        let var = self.variable(&name, tensor.shape(), tensor.dtype());
        self.specialized.constants[var.0 as usize] = Some(tensor.clone().into());
        self.push("const", &name, Vec::new(), var);
        if let Some(operation) = self.operations.last_mut() {
            operation.attributes.insert("val".to_owned(), tensor.into());
        }
        var
    }

    fn shape(&self, var: Var) -> Option<Vec<usize>> {
        self.specialized.shape(var)
    }

    fn dtype(&self, var: Var) -> Option<DType> {
        self.specialized.function.ty(var).as_tensor().map(|ty| ty.dtype)
    }
}

/// The shape of the twin of a value whose last axis is that of tokens.
fn twin_shape(shape: &[usize]) -> Option<Vec<usize>> {
    match *shape {
        [b, c, s] | [b, c, 1, s] => Some(vec![b, s, c]),
        [b, p, q, s] => Some(vec![b, s, p, q]),
        _ => None,
    }
}

/// The axes with the last as the second.
fn tokens_second(rank: usize) -> Option<Vec<usize>> {
    match rank {
        3 => Some(vec![0, 2, 1]),
        4 => Some(vec![0, 3, 1, 2]),
        _ => None,
    }
}

fn sizes(sizes: &[usize]) -> Arg {
    Arg::Value(sizes.iter().map(|&size| size as i32).collect::<Vec<_>>().into())
}

/// Single arguments, but for these parameters.
fn others<'a>(operation: &'a Operation, without: &[&str]) -> Vec<(&'a str, Arg)> {
    let single = |(param, args): &'a (String, Vec<Arg>)| Some((param.as_str(), args.first()?.clone()));
    operation.inputs.iter().filter(|(param, _)| !without.contains(&param.as_str())).filter_map(single).collect()
}

/// Removes operations whose results nothing wants.
fn remove_unused(function: &mut Function) {
    let mut wanted: HashSet<Var> = function.block.outputs.iter().copied().collect();
    let mut kept = Vec::with_capacity(function.block.operations.len());
    for operation in std::mem::take(&mut function.block.operations).into_iter().rev() {
        let effect = operation.outputs.is_empty() || !operation.blocks.is_empty();
        if effect || operation.outputs.iter().any(|var| wanted.contains(var)) {
            wanted.extend(operation.used_vars());
            kept.push(operation);
        }
    }
    kept.reverse();
    function.block.operations = kept;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planner;
    use crate::specialize::specialize;
    use crate::tests::{call, check, f32s, floats, start};
    use quince_mil::{Builder, Input};

    fn conv(b: &mut Builder, name: &str, x: Var, shape: [usize; 2]) -> Var {
        let weight = b.constant(&format!("{name}.weight"), floats(3, &[shape[0], shape[1], 1, 1]).into());
        let bias = b.constant(&format!("{name}.bias"), floats(4, &[shape[0]]).into());
        let inputs: [(&str, Input); 8] = [
            ("x", x.into()),
            ("weight", weight.into()),
            ("bias", bias.into()),
            ("strides", [1, 1].into()),
            ("pad_type", "valid".into()),
            ("pad", [0, 0, 0, 0].into()),
            ("dilations", [1, 1].into()),
            ("groups", 1.into()),
        ];
        b.op("conv", name, &inputs).unwrap()
    }

    /// A feed-forward block with its norm, as the Neural Engine has it: the steps are those of the other layout.
    #[test]
    fn a_block_of_convolutions_is_a_block_of_products() {
        let shape = [2, 5, 8];
        let (mut b, vars) = start(&[("tokens", f32s(&shape))]);
        let turn = ("perm", Input::from([0, 2, 1]));
        let turned = b.op("transpose", "turned", &[("x", vars[0].into()), turn.clone()]).unwrap();
        let x = b.op("expand_dims", "x", &[("x", turned.into()), ("axes", [2].into())]).unwrap();
        let weight = b.constant("norm.weight", floats(1, &[1, 8, 1, 1]).into());
        let negative = b.op("mul", "negative", &[("x", x.into()), ("y", (-1f32).into())]).unwrap();
        let values = Input::from(vec![x, negative]);
        let inputs = [("values", values), ("axis", 1.into()), ("interleave", false.into())];
        let twice = b.op("concat", "twice", &inputs).unwrap();
        let inputs = [("x", twice.into()), ("axes", [1].into()), ("epsilon", 1e-5.into())];
        let scaled = b.op("layer_norm", "scaled", &inputs).unwrap();
        let inputs = [("x", scaled.into()), ("begin", [0, 0, 0, 0].into()), ("end", [2, 8, 1, 5].into())];
        let half = b.op("slice_by_index", "half", &inputs).unwrap();
        let normed = b.op("mul", "normed", &[("x", half.into()), ("y", weight.into())]).unwrap();
        let (gate, up) = (conv(&mut b, "gate", normed, [12, 8]), conv(&mut b, "up", normed, [12, 8]));
        let open = b.op("silu", "open", &[("x", gate.into())]).unwrap();
        let gated = b.op("mul", "gated", &[("x", open.into()), ("y", up.into())]).unwrap();
        let down = conv(&mut b, "down", gated, [8, 12]);
        let sum = b.op("add", "sum", &[("x", down.into()), ("y", x.into())]).unwrap();
        let rows = b.op("squeeze", "rows", &[("x", sum.into()), ("axes", [2].into())]).unwrap();
        let y = b.op("transpose", "y", &[("x", rows.into()), turn]).unwrap();
        let function = b.finish(vec![y]);
        check(function.clone(), &[call(&[("tokens", floats(2, &shape))])], 1e-5);

        let cache = WeightCache::default();
        let mut specialized =
            specialize(&function, &[shape.to_vec()], &Default::default()).unwrap_or_else(|e| panic!("{e:?}"));
        last(&mut specialized, &cache);
        let plan = planner::plan(&specialized, &cache, planner::Mode::default()).unwrap();
        let kinds: Vec<&str> = plan.steps.iter().map(|step| step.kind).collect();
        assert_eq!(kinds, ["rms_norm", "linear", "silu_mul", "linear", "binary"]);
    }
}
