//! Whether a function treats each item of a batch by itself. Then a large batch is computed in parts whose values stay
//! in the caches, and the results are those of the whole.
//!
//! Every variable is followed from the inputs: it belongs to all items alike, or its elements lie item after item. An
//! operation that may mix items ends the search. Constants may depend on the number of items too: they are compared
//! with those of the function for one item.

use crate::specialize::Specialized;
use quince_mil::eval::Tensors;
use quince_mil::{Arg, Error, Operation, Result, Tensor, Value, Var};
use quince_tensor::Bytes;

/// Whether `many`, which is `one` for several items along the first axis of all inputs, gives the results of `one` for
/// each item.
pub(crate) fn is_itemwise(many: &Specialized, one: &Specialized, items: usize) -> bool {
    let function = &many.function;
    let mut batch = Batch { many, one, items, by_item: vec![false; function.vars.len()] };
    if items < 2 || function.states().next().is_some() {
        return false;
    }
    for input in &function.inputs {
        let alike = batch.shape(input.var).first() == Some(&items);
        let single = shape(one, input.var).first() == Some(&1);
        if !alike || !single {
            return false;
        }
        batch.by_item[input.var.0 as usize] = true;
    }
    for operation in &function.block.operations {
        if operation.outputs.iter().all(|&out| batch.is_constant(out)) || !batch.uses_items(operation) {
            continue;
        }
        if !batch.keeps_apart(operation) {
            return false;
        }
        for &out in &operation.outputs {
            batch.by_item[out.0 as usize] = true;
            let (several, single) = (batch.shape(out), shape(one, out));
            let scaled = [&[single.first().map_or(0, |n| n * items)], single.get(1..).unwrap_or_default()].concat();
            if several != scaled {
                return false;
            }
        }
    }
    function.block.outputs.iter().all(|&out| batch.holds_items(out))
}

/// Calls `run` with so many items at a time, and how many those are; joins the outputs.
pub(crate) fn in_parts(
    inputs: &Tensors,
    items: usize,
    mut run: impl FnMut((Tensors, usize)) -> Result<Tensors>,
) -> Result<Tensors> {
    let total = inputs.values().next().and_then(|tensor| tensor.shape().first().copied()).unwrap_or(0);
    let mut parts: Vec<Tensors> = Vec::with_capacity(total.div_ceil(items.max(1)));
    for first in (0..total).step_by(items.max(1)) {
        let count = items.min(total - first);
        let rows = |(name, tensor): (&String, &Tensor)| Ok((name.clone(), tensor.rows(first..first + count)?));
        parts.push(run((inputs.iter().map(rows).collect::<Result<Tensors>>()?, count))?);
    }
    let names: Vec<String> = parts.first().map(|part| part.keys().cloned().collect()).unwrap_or_default();
    names.into_iter().map(|name| Ok((name.clone(), joined(&parts, &name)?))).collect()
}

/// The tensors of a name, one after the other along the first axis.
fn joined(parts: &[Tensors], name: &str) -> Result<Tensor> {
    let missing = || Error::new(format!("a part of the batch has no output `{name}`"));
    let tensors = parts.iter().map(|part| part.get(name).ok_or_else(missing)).collect::<Result<Vec<_>>>()?;
    let first = *tensors.first().ok_or_else(missing)?;
    let rows = tensors.iter().filter_map(|tensor| tensor.shape().first()).sum();
    let shape = [&[rows], first.shape().get(1..).unwrap_or_default()].concat();
    let bytes: Vec<u8> = tensors.iter().flat_map(|tensor| tensor.bytes().iter().copied()).collect();
    Ok(Tensor::new(first.dtype(), shape, Bytes::from_vec(bytes))?.aligned())
}

struct Batch<'a> {
    many: &'a Specialized,
    one: &'a Specialized,
    items: usize,
    /// By variable: whether its elements lie item after item. Others are the same for all items.
    by_item: Vec<bool>,
}

fn shape(of: &Specialized, var: Var) -> Vec<usize> {
    of.shape(var).unwrap_or_default()
}

/// Operations on single elements, which broadcast.
pub(crate) const ELEMENTWISE: &[&str] = &[
    "abs",
    "add",
    "cast",
    "ceil",
    "clip",
    "cos",
    "elu",
    "equal",
    "erf",
    "exp",
    "exp2",
    "fill_like",
    "floor",
    "floor_div",
    "gelu",
    "greater",
    "greater_equal",
    "hard_swish",
    "identity",
    "inverse",
    "leaky_relu",
    "less",
    "less_equal",
    "log",
    "logical_and",
    "logical_not",
    "logical_or",
    "logical_xor",
    "maximum",
    "minimum",
    "mod",
    "mul",
    "not_equal",
    "pow",
    "quantize",
    "dequantize",
    "real_div",
    "relu",
    "relu6",
    "round",
    "rsqrt",
    "select",
    "sigmoid",
    "sign",
    "silu",
    "sin",
    "softplus",
    "softsign",
    "sqrt",
    "square",
    "sub",
    "tanh",
];

impl Batch<'_> {
    fn shape(&self, var: Var) -> Vec<usize> {
        shape(self.many, var)
    }

    fn is_constant(&self, var: Var) -> bool {
        self.many.constants[var.0 as usize].is_some()
    }

    fn is_by_item(&self, arg: &Arg) -> bool {
        matches!(arg, Arg::Var(var) if self.by_item[var.0 as usize])
    }

    fn uses_items(&self, operation: &Operation) -> bool {
        operation.inputs.iter().flat_map(|(_, args)| args).any(|arg| self.is_by_item(arg))
    }

    /// Whether a variable's first axis is of items, one or several for each.
    fn holds_items(&self, var: Var) -> bool {
        let first = self.shape(var).first().copied().unwrap_or(0);
        self.by_item[var.0 as usize] && first > 0 && first.is_multiple_of(self.items)
    }

    /// Whether the results of an operation lie item after item if what it uses does.
    fn keeps_apart(&self, operation: &Operation) -> bool {
        let [out] = operation.outputs[..] else {
            // Of operations with several results only those that cut other axes are followed.
            return matches!(operation.op_name(), "split" | "topk") && self.is_along_other_axes(operation, "axis");
        };
        let first = self.shape(out).first().copied().unwrap_or(0);
        if first == 0 || !first.is_multiple_of(self.items) || !self.others_are_alike(operation) {
            return false;
        }
        let x = || operation.var("x").map(|x| (self.by_item[x.0 as usize], self.shape(x)));
        let first_is_kept = || x().is_some_and(|(by_item, shape)| by_item && shape.first() == Some(&first));
        match operation.op_name() {
            name if ELEMENTWISE.contains(&name) => self.is_aligned(operation, &self.shape(out)),
            "linear" => x().is_some_and(|(_, shape)| shape.len() > 1) && self.only(operation, &["x"]),
            "conv" => self.only(operation, &["x"]),
            "matmul" => self.is_matmul_apart(operation, &self.shape(out)),
            "scaled_dot_product_attention" => self.is_aligned(operation, &self.shape(out)) && self.shape(out).len() > 2,
            "layer_norm" | "reduce_mean" | "reduce_sum" | "reduce_max" | "reduce_min" | "reduce_l2_norm" => {
                self.is_along_other_axes(operation, "axes") && self.only(operation, &["x"])
            }
            "softmax" | "cumsum" | "reduce_argmax" => self.is_along_other_axes(operation, "axis"),
            "reshape" | "reshape_like" | "squeeze" | "expand_dims" => self.only(operation, &["x", "ref_tensor"]),
            "transpose" => {
                let perm = self.integers(operation, "perm");
                perm.is_some_and(|perm| perm.first() == Some(&0) || perm.first() == Some(&-(perm.len() as i64)))
            }
            "slice_by_index" | "slice_by_size" => {
                first_is_kept() && self.only(operation, &["x"]) && self.is_forward(operation)
            }
            "tile" => first_is_kept() && self.only(operation, &["x"]),
            "concat" => self.is_along_other_axes(operation, "axis") && self.is_aligned(operation, &self.shape(out)),
            "gather" => self.is_gather_apart(operation),
            _ => false,
        }
    }

    /// Whether only these parameters are by item.
    fn only(&self, operation: &Operation, params: &[&str]) -> bool {
        let others = operation.inputs.iter().filter(|(name, _)| !params.contains(&name.as_str()));
        !others.flat_map(|(_, args)| args).any(|arg| self.is_by_item(arg))
    }

    /// Whether everything that is by item has all axes of the result, the first of the same size.
    fn is_aligned(&self, operation: &Operation, out: &[usize]) -> bool {
        let aligned = |arg: &Arg| match arg {
            Arg::Var(var) if self.by_item[var.0 as usize] => {
                let shape = self.shape(*var);
                shape.len() == out.len() && shape.first() == out.first()
            }
            _ => true,
        };
        operation.inputs.iter().flat_map(|(_, args)| args).all(aligned)
    }

    fn is_matmul_apart(&self, operation: &Operation, out: &[usize]) -> bool {
        let (Some(x), Some(y)) = (operation.var("x"), operation.var("y")) else { return false };
        let rows_are_items = !self.by_item[y.0 as usize]
            && self.shape(x).len() == 2
            && self.shape(y).len() == 2
            && self.truth(operation, "transpose_x") == Some(false);
        rows_are_items || out.len() > 2 && self.is_aligned(operation, out)
    }

    /// A table that is the same for all items, looked up by their indices.
    fn is_gather_apart(&self, operation: &Operation) -> bool {
        let zero = |param: &str| match operation.arg(param) {
            Some(_) => self.integers(operation, param).is_some_and(|v| v == [0]),
            None => true,
        };
        zero("axis") && zero("batch_dims") && self.only(operation, &["indices"])
    }

    /// Whether axes are known, and the first is not among them.
    fn is_along_other_axes(&self, operation: &Operation, param: &str) -> bool {
        let rank = operation.var("x").map(|x| self.shape(x).len());
        // The values of a `concat` have the rank of its result.
        let rank = rank.or_else(|| Some(self.shape(*operation.outputs.first()?).len())).unwrap_or(0) as i64;
        let axes = self.integers(operation, param);
        axes.is_some_and(|axes| !axes.is_empty() && axes.iter().all(|&axis| axis != 0 && axis != -rank))
    }

    /// Whether a slice takes items in their order: the caller has seen that it takes all.
    fn is_forward(&self, operation: &Operation) -> bool {
        let steps = |param: &str, good: fn(i64) -> bool| match operation.arg(param) {
            Some(_) => self.integers(operation, param).is_some_and(|v| v.first().is_some_and(|&first| good(first))),
            None => true,
        };
        steps("stride", |stride| stride == 1)
    }

    /// Whether constants of the operation say the same of every item and of any number of items. Those that are shapes
    /// and places may differ: what they make is compared by its shape.
    fn others_are_alike(&self, operation: &Operation) -> bool {
        const PLACES: &[&str] = &["shape", "reps", "begin", "end", "size", "begin_mask", "end_mask"];
        let of = |arg: &Arg| match arg {
            Arg::Var(var) if self.is_constant(*var) => self.is_alike(*var),
            Arg::Var(var) => self.by_item[var.0 as usize] || self.shape(*var) == shape(self.one, *var),
            Arg::Value(_) => true,
        };
        operation.inputs.iter().filter(|(name, _)| !PLACES.contains(&name.as_str())).flat_map(|(_, args)| args).all(of)
    }

    fn is_alike(&self, var: Var) -> bool {
        let index = var.0 as usize;
        let (Some(many), Some(one)) = (&self.many.constants[index], &self.one.constants[index]) else { return false };
        match (many, one) {
            // The same weight, which need not be read.
            (Value::Weight(a), Value::Weight(b)) => a.id() == b.id(),
            (Value::Tensor(a), Value::Tensor(b)) => a.same(b) || repeats(a, b, self.items),
            (a, b) => a.as_str().is_some() && a.as_str() == b.as_str(),
        }
    }

    fn integers(&self, operation: &Operation, param: &str) -> Option<Vec<i64>> {
        self.many.ints(operation, param)
    }

    /// A truth value that is false if it is not given.
    fn truth(&self, operation: &Operation, param: &str) -> Option<bool> {
        match operation.arg(param) {
            Some(_) => self.many.bools(operation, param)?.first().copied(),
            None => Some(false),
        }
    }
}

/// Whether `many` is `one` for each of `items` along the first axis.
fn repeats(many: &Tensor, one: &Tensor, items: usize) -> bool {
    let same_rows = many.rank() == one.rank()
        && many.rank() > 0
        && many.shape()[1..] == one.shape()[1..]
        && many.shape()[0] == one.shape()[0] * items;
    let bytes = one.bytes();
    same_rows
        && many.dtype() == one.dtype()
        && many.bytes().len() == bytes.len() * items
        && (bytes.is_empty() || many.bytes().chunks_exact(bytes.len()).all(|part| *part == bytes[..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::specialize::specialize;
    use crate::tests::floats;
    use quince_mil::{Builder, DType, Dim, Flexibility, Function, Opset, TensorType, ValueType};

    /// Whether a function of x [items, 4, 6] is itemwise for five items.
    fn check(build: impl Fn(&mut Builder, Var) -> Var) -> bool {
        let mut b = Builder::new(Function::new("main", Opset::CoreML8));
        let shape = vec![Dim::Unknown, Dim::Fixed(4), Dim::Fixed(6)];
        let bounds = vec![(1, Some(64)), (4, Some(4)), (6, Some(6))];
        let flexibility = Flexibility::Range { bounds, default: vec![1, 4, 6] };
        let x = b.input("x", ValueType::Tensor(TensorType { dtype: DType::F32, shape }), flexibility);
        let y = build(&mut b, x);
        let function = b.finish(vec![y]);
        let of = |items: usize| {
            specialize(&function, &[vec![items, 4, 6]], &Default::default()).unwrap_or_else(|e| panic!("{e:?}"))
        };
        is_itemwise(&of(5), &of(1), 5)
    }

    fn ints(axes: &[i32]) -> quince_mil::Input {
        axes.to_vec().into()
    }

    #[test]
    fn what_stays_within_an_item_is_itemwise() {
        assert!(check(|b, x| {
            let weight = b.constant("weight", floats(1, &[3, 6]).into());
            let linear = b.op("linear", "linear", &[("x", x.into()), ("weight", weight.into())]).unwrap();
            let heads = b.op("transpose", "heads", &[("x", linear.into()), ("perm", ints(&[0, 2, 1]))]).unwrap();
            let scores = b.op("matmul", "scores", &[("x", linear.into()), ("y", heads.into())]).unwrap();
            let weights = b.op("softmax", "weights", &[("x", scores.into()), ("axis", (-1).into())]).unwrap();
            let flat = b.op("reshape", "flat", &[("x", weights.into()), ("shape", ints(&[-1, 4]))]).unwrap();
            let doubled = b.op("mul", "doubled", &[("x", flat.into()), ("y", 2f32.into())]).unwrap();
            b.op("reduce_sum", "y", &[("x", doubled.into()), ("axes", ints(&[1])), ("keep_dims", false.into())])
                .unwrap()
        }));
    }

    #[test]
    fn what_mixes_items_is_not() {
        let sum = |b: &mut Builder, x: Var, axes: &[i32]| {
            b.op("reduce_sum", "sum", &[("x", x.into()), ("axes", ints(axes)), ("keep_dims", true.into())]).unwrap()
        };
        assert!(!check(|b, x| sum(b, x, &[0])));
        assert!(!check(|b, x| sum(b, x, &[-3, 1])));
        assert!(!check(|b, x| b.op("softmax", "y", &[("x", x.into()), ("axis", 0.into())]).unwrap()));
        assert!(!check(|b, x| b.op("transpose", "y", &[("x", x.into()), ("perm", ints(&[1, 0, 2]))]).unwrap()));
        assert!(!check(|b, x| b.op("cumsum", "y", &[("x", x.into()), ("axis", (-3).into())]).unwrap()));
        assert!(!check(|b, x| b.op("reverse", "y", &[("x", x.into()), ("axes", ints(&[0]))]).unwrap()));
    }

    #[test]
    fn parts_are_joined_in_order() {
        let inputs = Tensors::from([("x".to_owned(), floats(1, &[7, 2, 3]))]);
        let mut counts = Vec::new();
        let joined = in_parts(&inputs, 3, |(part, count)| {
            counts.push(count);
            assert_eq!(part["x"].shape(), [count, 2, 3]);
            Ok(part)
        });
        assert!(joined.unwrap()["x"].same(&inputs["x"]));
        assert_eq!(counts, [3, 3, 1]);
    }

    #[test]
    fn a_large_batch_gives_what_its_items_give() {
        let (items, width) = (9, 300_000);
        let mut b = Builder::new(Function::new("main", Opset::CoreML8));
        let ty = TensorType { dtype: DType::F32, shape: vec![Dim::Unknown, Dim::Fixed(width)] };
        let flexibility =
            Flexibility::Range { bounds: vec![(1, Some(64)), (width, Some(width))], default: vec![1, width] };
        let x = b.input("x", ValueType::Tensor(ty), flexibility);
        let square = b.op("square", "square", &[("x", x.into())]).unwrap();
        let y = b.op("add", "y", &[("x", square.into()), ("y", x.into())]).unwrap();
        let program = quince_mil::Program { functions: vec![b.finish(vec![y])], ..Default::default() };
        let engine = crate::Engine::load(program, crate::Options { threads: 2, ..Default::default() }).unwrap();
        let predict = |x: Tensor| {
            let mut outputs =
                engine.predict("main", &Tensors::from([("x".to_owned(), x)]), &mut engine.new_state().unwrap());
            outputs.as_mut().unwrap().remove("y").unwrap()
        };
        let x = floats(2, &[items, width]);
        let all = predict(x.clone());
        for i in 0..items {
            assert!(predict(x.rows(i..i + 1).unwrap()).same(&all.rows(i..i + 1).unwrap()), "item {i}");
        }
    }

    /// The number of items of a batch, as a tensor [1].
    fn count(b: &mut Builder, x: Var) -> Var {
        let shape = b.op("shape", "shape", &[("x", x.into())]).unwrap();
        let inputs = [("x", shape.into()), ("begin", ints(&[0])), ("end", ints(&[1]))];
        b.op("slice_by_index", "count", &inputs).unwrap()
    }

    #[test]
    fn constants_that_depend_on_the_number_of_items_are_seen() {
        // A table repeated for every item is the same for each; the number of items is not.
        assert!(check(|b, x| {
            let count = count(b, x);
            let inputs = [("values", vec![count].into()), ("axis", 0.into()), ("interleave", false.into())];
            let shape = b.op("concat", "rows", &inputs).unwrap();
            let ones = b.op("fill", "ones", &[("shape", shape.into()), ("value", 3f32.into())]).unwrap();
            let column = b.op("expand_dims", "column", &[("x", ones.into()), ("axes", ints(&[1, 2]))]).unwrap();
            b.op("add", "y", &[("x", x.into()), ("y", column.into())]).unwrap()
        }));
        assert!(!check(|b, x| {
            let count = count(b, x);
            let count = b.op("cast", "float", &[("x", count.into()), ("dtype", "fp32".into())]).unwrap();
            b.op("real_div", "y", &[("x", x.into()), ("y", count.into())]).unwrap()
        }));
    }
}
