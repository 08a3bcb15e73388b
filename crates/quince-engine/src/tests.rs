//! Plans against the definition: the same function run by the engine and by `quince_mil::eval`, and which steps the plan
//! has. A fusion is right when its step is there and the values are those of the operations it stands for.

use crate::specialize::specialize;
use crate::{Engine, Options, planner, watched, weights::WeightCache};
use quince_mil::{Builder, DType, Flexibility, Function, Input, Opset, Program, Tensor, Value, ValueType, Var, eval};
use std::collections::BTreeMap;

/// Numbers that look random, the same each time.
pub(crate) fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

pub(crate) fn floats(seed: u64, shape: &[usize]) -> Tensor {
    Tensor::from_vec(shape, numbers(seed, shape.iter().product())).unwrap()
}

pub(crate) fn start(inputs: &[(&str, ValueType)]) -> (Builder, Vec<Var>) {
    let mut builder = Builder::new(Function::new("main", Opset::CoreML8));
    let vars = inputs.iter().map(|(name, ty)| builder.input(name, ty.clone(), Flexibility::Fixed)).collect();
    (builder, vars)
}

pub(crate) fn f32s(shape: &[usize]) -> ValueType {
    ValueType::tensor(DType::F32, shape)
}

/// Runs the calls one after the other both ways, compares every output, and gives the kinds of the plan's steps.
pub(crate) fn check(function: Function, calls: &[eval::Tensors], tolerance: f32) -> Vec<&'static str> {
    let shapes: Vec<Vec<usize>> =
        function.inputs.iter().map(|i| function.ty(i.var).as_tensor().unwrap().dims().unwrap()).collect();
    let specialized = specialize(&function, &shapes, &Default::default()).unwrap_or_else(|e| panic!("{e:?}"));
    let plan = planner::plan(&specialized, &WeightCache::default(), planner::Mode::default()).unwrap();
    let kinds = plan.steps.iter().map(|step| step.kind).collect();
    let program = Program { functions: vec![function.clone()], ..Program::default() };
    let engine = Engine::load(program, Options { threads: 2, ..Options::default() }).unwrap();
    let (mut state, mut states) = (engine.new_state().unwrap(), eval::Tensors::new());
    for inputs in calls {
        let before = states.clone();
        let expected = eval::run(&function, inputs, &mut states).unwrap();
        watched::shows_what_is_defined(&engine, inputs, (&state, &before), tolerance);
        let found = engine.predict("main", inputs, &mut state).unwrap();
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        for (name, expected) in &expected {
            assert_eq!((found[name].dtype(), found[name].shape()), (expected.dtype(), expected.shape()), "{name}");
            let pairs = found[name].to_f32().unwrap().into_iter().zip(expected.to_f32().unwrap());
            for (i, (a, b)) in pairs.enumerate() {
                assert!((a - b).abs() <= tolerance, "{name}[{i}]: found {a}, expected {b}");
            }
        }
    }
    kinds
}

pub(crate) fn call(inputs: &[(&str, Tensor)]) -> eval::Tensors {
    inputs.iter().map(|(name, tensor)| ((*name).to_owned(), tensor.clone())).collect::<BTreeMap<_, _>>()
}

#[test]
fn rms_norm_is_one_step_also_through_casts() {
    let (mut b, vars) = start(&[("x", ValueType::tensor(DType::F16, &[2, 5, 24]))]);
    let weight = b.constant("weight", floats(1, &[24]).cast(DType::F16).unwrap().into());
    let wide = b.op("cast", "wide", &[("x", vars[0].into()), ("dtype", "fp32".into())]).unwrap();
    let squares = b.op("square", "squares", &[("x", wide.into())]).unwrap();
    let inputs = [("x", squares.into()), ("axes", [-1].into()), ("keep_dims", true.into())];
    let mean = b.op("reduce_mean", "mean", &inputs).unwrap();
    let scale = b.op("rsqrt", "scale", &[("x", mean.into()), ("epsilon", 1e-3.into())]).unwrap();
    let normed = b.op("mul", "normed", &[("x", wide.into()), ("y", scale.into())]).unwrap();
    let narrow = b.op("cast", "narrow", &[("x", normed.into()), ("dtype", "fp16".into())]).unwrap();
    let y = b.op("mul", "y", &[("x", weight.into()), ("y", narrow.into())]).unwrap();
    let x = floats(2, &[2, 5, 24]).cast(DType::F16).unwrap();
    assert_eq!(check(b.finish(vec![y]), &[call(&[("x", x)])], 2e-3), ["rms_norm"]);
}

#[test]
fn rms_norm_whose_inside_is_wanted_is_not_hidden() {
    let (mut b, vars) = start(&[("x", f32s(&[3, 8]))]);
    let weight = b.constant("weight", floats(1, &[8]).into());
    let squares = b.op("mul", "squares", &[("x", vars[0].into()), ("y", vars[0].into())]).unwrap();
    let inputs = [("x", squares.into()), ("axes", [1].into()), ("keep_dims", true.into())];
    let mean = b.op("reduce_mean", "mean", &inputs).unwrap();
    let added = b.op("add", "added", &[("x", mean.into()), ("y", 1e-5.into())]).unwrap();
    let root = b.op("sqrt", "root", &[("x", added.into())]).unwrap();
    let normed = b.op("real_div", "normed", &[("x", vars[0].into()), ("y", root.into())]).unwrap();
    let y = b.op("mul", "y", &[("x", normed.into()), ("y", weight.into())]).unwrap();
    let kinds = check(b.finish(vec![y, mean]), &[call(&[("x", floats(2, &[3, 8]))])], 1e-5);
    assert_eq!(kinds, ["binary", "reduce", "rms_norm"]);
}

/// `x · cos + rotate_half(x) · sin` on [1, tokens, heads, dim], tables gathered at positions.
fn rotary(tokens: usize, heads: usize, dim: usize) -> (Function, eval::Tensors) {
    let shape = [1, tokens, heads, dim];
    let (mut b, vars) = start(&[("x", f32s(&shape)), ("at", ValueType::tensor(DType::I32, &[tokens]))]);
    let x = vars[0];
    let mut tables = Vec::new();
    for (name, seed) in [("cos", 3), ("sin", 4)] {
        let table = b.constant(name, floats(seed, &[16, dim / 2]).into());
        let inputs = [("x", table.into()), ("indices", vars[1].into()), ("axis", 0.into()), ("batch_dims", 0.into())];
        let half = b.op("gather", &format!("{name}.half"), &inputs).unwrap();
        let inputs = [("values", vec![half, half].into()), ("axis", (-1).into()), ("interleave", false.into())];
        let rows = b.op("concat", &format!("{name}.rows"), &inputs).unwrap();
        let inputs: [(&str, Input); 2] = [("x", rows.into()), ("axes", [0, 2].into())];
        tables.push(b.op("expand_dims", &format!("{name}.heads"), &inputs).unwrap());
    }
    let mut half = |name: &str, begin: i32, mask: bool| {
        let inputs = [
            ("x", x.into()),
            ("begin", [0, 0, 0, begin].into()),
            ("end", [0, 0, 0, dim as i32 / 2].into()),
            ("end_mask", [true, true, true, mask].into()),
        ];
        b.op("slice_by_index", name, &inputs).unwrap()
    };
    let (low, high) = (half("low", 0, false), half("high", dim as i32 / 2, true));
    let minus = b.op("mul", "minus", &[("x", high.into()), ("y", (-1.0).into())]).unwrap();
    let inputs = [("values", vec![minus, low].into()), ("axis", (-1).into()), ("interleave", false.into())];
    let turned = b.op("concat", "turned", &inputs).unwrap();
    let straight = b.op("mul", "straight", &[("x", x.into()), ("y", tables[0].into())]).unwrap();
    let across = b.op("mul", "across", &[("x", turned.into()), ("y", tables[1].into())]).unwrap();
    let y = b.op("add", "y", &[("x", straight.into()), ("y", across.into())]).unwrap();
    let at = Tensor::vector((0..tokens as i32).map(|t| (t * 5 + 3) % 16).collect());
    (b.finish(vec![y]), call(&[("x", floats(5, &shape)), ("at", at)]))
}

#[test]
fn rotary_embedding_is_one_step() {
    for (tokens, heads, dim) in [(6, 3, 8), (1, 4, 16), (5, 1, 4), (1, 1, 2), (2, 2, 4)] {
        let (function, inputs) = rotary(tokens, heads, dim);
        let kinds = check(function, &[inputs], 1e-6);
        assert!(kinds.contains(&"rope") && !kinds.contains(&"binary"), "{tokens} {heads} {dim}: {kinds:?}");
    }
}

#[test]
fn products_of_the_same_x_are_one_step() {
    let (mut b, vars) = start(&[("x", f32s(&[3, 8]))]);
    let mut results = Vec::new();
    for (seed, outputs) in [(1, 5), (2, 16), (3, 1)] {
        let weight = b.constant("weight", floats(seed, &[outputs, 8]).into());
        let bias = b.constant("bias", floats(seed + 9, &[outputs]).into());
        let inputs = [("x", vars[0].into()), ("weight", weight.into()), ("bias", bias.into())];
        results.push(b.op("linear", "product", &inputs).unwrap());
    }
    // One that depends on another cannot be among them.
    let weight = b.constant("weight", floats(7, &[2, 16]).into());
    results.push(b.op("linear", "next", &[("x", results[1].into()), ("weight", weight.into())]).unwrap());
    assert_eq!(check(b.finish(results), &[call(&[("x", floats(4, &[3, 8]))])], 1e-5), ["linear", "linear"]);
}

#[test]
fn a_gate_is_one_step() {
    let (mut b, vars) = start(&[("a", f32s(&[4, 33])), ("b", f32s(&[4, 33]))]);
    let silu = b.op("silu", "silu", &[("x", vars[0].into())]).unwrap();
    let y = b.op("mul", "y", &[("x", vars[1].into()), ("y", silu.into())]).unwrap();
    let inputs = call(&[("a", floats(1, &[4, 33])), ("b", floats(2, &[4, 33]))]);
    assert_eq!(check(b.finish(vec![y]), &[inputs], 1e-6), ["silu_mul"]);
}

#[test]
fn narrowing_rounds_so_that_a_number_can_be_split_in_two() {
    let (mut b, vars) = start(&[("x", f32s(&[50]))]);
    let high = b.op("cast", "high", &[("x", vars[0].into()), ("dtype", "fp16".into())]).unwrap();
    let wide = b.op("cast", "wide", &[("x", high.into()), ("dtype", "fp32".into())]).unwrap();
    let rest = b.op("sub", "rest", &[("x", vars[0].into()), ("y", wide.into())]).unwrap();
    assert_eq!(check(b.finish(vec![rest]), &[call(&[("x", floats(1, &[50]))])], 0.0), ["round", "binary"]);
}

/// A cache of two layers: each call writes a row at `position` and gives what the second layer holds, twice updated.
fn cache(old_value_wanted: bool) -> Vec<&'static str> {
    let state = ValueType::State(quince_mil::TensorType::fixed(DType::F16, &[2, 3, 4]));
    let (mut b, vars) =
        start(&[("new", f32s(&[1, 1, 4])), ("position", ValueType::tensor(DType::I32, &[1])), ("cache", state)]);
    let narrow = b.op("cast", "narrow", &[("x", vars[0].into()), ("dtype", "fp16".into())]).unwrap();
    let (mut layers, mut old) = (Vec::new(), None);
    for layer in 0..2 {
        let read = b.op("read_state", "read", &[("input", vars[2].into())]).unwrap();
        old = old.or(Some(read));
        let corner = |b: &mut Builder, add: i32| {
            let bound = b.op("add", "bound", &[("x", vars[1].into()), ("y", add.into())]).unwrap();
            let first = b.constant("first", vec![layer + add].into());
            let last = b.constant("last", vec![4 * add].into());
            let inputs =
                [("values", vec![first, bound, last].into()), ("axis", 0.into()), ("interleave", false.into())];
            b.op("concat", "corner", &inputs).unwrap()
        };
        let (begin, end) = (corner(&mut b, 0), corner(&mut b, 1));
        let inputs = [("x", read.into()), ("update", narrow.into()), ("begin", begin.into()), ("end", end.into())];
        let updated = b.op("slice_update", "updated", &inputs).unwrap();
        b.ops("write_state", "write", &[("input", vars[2].into()), ("data", updated.into())]).unwrap();
        let all = b.op("read_state", "all", &[("input", vars[2].into())]).unwrap();
        let inputs = [("x", all.into()), ("begin", [layer, 0, 0].into()), ("end", [layer + 1, 3, 4].into())];
        layers.push(b.op("slice_by_index", "layer", &inputs).unwrap());
    }
    let y = b.op("add", "y", &[("x", layers[0].into()), ("y", layers[1].into())]).unwrap();
    let mut outputs = vec![y];
    if old_value_wanted {
        let inputs = [("x", old.unwrap().into()), ("axes", [1, 2].into()), ("keep_dims", false.into())];
        outputs.push(b.op("reduce_sum", "before", &inputs).unwrap());
    }
    let row = |i: i32| call(&[("new", floats(i as u64, &[1, 1, 4])), ("position", Tensor::vector(vec![i % 3]))]);
    check(b.finish(outputs), &[row(0), row(1), row(2), row(4)], 2e-3)
}

#[test]
fn a_cache_is_updated_in_place() {
    let kinds = cache(false);
    assert_eq!(kinds.iter().filter(|kind| **kind == "update_state").count(), 2, "{kinds:?}");
    assert!(!kinds.contains(&"write_state"), "{kinds:?}");
}

#[test]
fn a_value_read_before_an_update_stays_what_it_was() {
    cache(true);
}

#[test]
fn a_state_read_between_an_update_and_its_writing_is_the_old_one() {
    let state = ValueType::State(quince_mil::TensorType::fixed(DType::F16, &[4]));
    let (mut b, vars) = start(&[("new", ValueType::tensor(DType::F16, &[1])), ("cache", state)]);
    let read = b.op("read_state", "read", &[("input", vars[1].into())]).unwrap();
    let inputs = [("x", read.into()), ("update", vars[0].into()), ("begin", [2].into()), ("end", [3].into())];
    let updated = b.op("slice_update", "updated", &inputs).unwrap();
    let between = b.op("read_state", "between", &[("input", vars[1].into())]).unwrap();
    let y = b.op("add", "y", &[("x", between.into()), ("y", updated.into())]).unwrap();
    b.ops("write_state", "write", &[("input", vars[1].into()), ("data", updated.into())]).unwrap();
    let new = |seed| call(&[("new", floats(seed, &[1]).cast(DType::F16).unwrap())]);
    check(b.finish(vec![y]), &[new(1), new(2)], 2e-3);
}

#[test]
fn a_bias_that_stands_in_place_is_added() {
    let (mut b, vars) = start(&[("x", f32s(&[2, 3]))]);
    let weight = b.constant("weight", floats(1, &[4, 3]).into());
    let bias: Value = floats(2, &[4]).into();
    let inputs = [("x", vars[0].into()), ("weight", weight.into()), ("bias", bias.clone().into())];
    let linear = b.op("linear", "linear", &inputs).unwrap();
    let inputs = [("x", linear.into()), ("axes", [-1].into()), ("gamma", bias.clone().into()), ("beta", bias.into())];
    let y = b.op("layer_norm", "y", &inputs).unwrap();
    let kinds = check(b.finish(vec![y]), &[call(&[("x", floats(3, &[2, 3]))])], 1e-5);
    assert_eq!(kinds, ["linear", "layer_norm"]);
}

/// Calls of one engine share their memory, whatever their shapes.
#[test]
fn calls_of_different_lengths_do_not_disturb_each_other() {
    let mut b = Builder::new(Function::new("main", Opset::CoreML8));
    let ty = quince_mil::TensorType { dtype: DType::F32, shape: vec![quince_mil::Dim::Unknown, 3.into()] };
    let x = b.input("x", ty.into(), Flexibility::Range { bounds: vec![(1, None), (3, Some(3))], default: vec![1, 3] });
    let weight = b.constant("weight", floats(1, &[5, 3]).into());
    let wide = b.op("linear", "wide", &[("x", x.into()), ("weight", weight.into())]).unwrap();
    let narrow = b.op("reduce_sum", "narrow", &[("x", wide.into()), ("axes", [-1].into())]).unwrap();
    let y = b.op("exp", "y", &[("x", narrow.into())]).unwrap();
    let function = b.finish(vec![y, wide]);
    let program = Program { functions: vec![function.clone()], ..Program::default() };
    let engine = Engine::load(program, Options { threads: 1, ..Options::default() }).unwrap();
    for rows in [2, 7, 1, 7, 3] {
        let inputs = call(&[("x", floats(rows as u64, &[rows, 3]))]);
        let expected = eval::run(&function, &inputs, &mut eval::Tensors::new()).unwrap();
        let found = engine.predict("main", &inputs, &mut engine.new_state().unwrap()).unwrap();
        for (name, expected) in expected {
            assert_eq!(found[&name].shape(), expected.shape(), "{name}");
            for (a, b) in found[&name].to_f32().unwrap().into_iter().zip(expected.to_f32().unwrap()) {
                assert!((a - b).abs() < 1e-4, "{name} of {rows} rows: found {a}, expected {b}");
            }
        }
    }
}

#[test]
fn attention_reads_its_cache_in_the_state_and_finds_ranges_in_the_mask() {
    let cache = ValueType::State(quince_mil::TensorType::fixed(DType::F16, &[1, 2, 7, 4]));
    let (mut b, vars) = start(&[
        ("q", f32s(&[1, 2, 3, 4])),
        ("first", ValueType::tensor(DType::I32, &[1, 1, 3, 1])),
        ("fill", ValueType::tensor(DType::F16, &[1, 2, 7, 4])),
        ("cache", cache),
    ]);
    b.ops("write_state", "write", &[("input", vars[3].into()), ("data", vars[2].into())]).unwrap();
    let keys = b.op("read_state", "keys", &[("input", vars[3].into())]).unwrap();
    let q = b.op("cast", "q16", &[("x", vars[0].into()), ("dtype", "fp16".into())]).unwrap();
    let columns: Value = Tensor::from_vec([1, 1, 1, 7], (0..7).collect::<Vec<i32>>()).unwrap().into();
    let mask = b.op("greater_equal", "mask", &[("x", vars[1].into()), ("y", columns.into())]).unwrap();
    let inputs = [("query", q.into()), ("key", keys.into()), ("value", keys.into()), ("attn_mask", mask.into())];
    let y = b.op("scaled_dot_product_attention", "y", &inputs).unwrap();
    let inputs = call(&[
        ("q", floats(1, &[1, 2, 3, 4])),
        ("first", Tensor::from_vec([1, 1, 3, 1], vec![0i32, 4, 6]).unwrap()),
        ("fill", floats(3, &[1, 2, 7, 4]).cast(DType::F16).unwrap()),
    ]);
    let kinds = check(b.finish(vec![y]), &[inputs], 2e-3);
    assert_eq!(kinds, ["write_state", "round", "eval", "attention"]);
}

#[test]
fn shapes_that_are_not_allowed_are_named() {
    let mut b = Builder::new(Function::new("main", Opset::CoreML8));
    let ty = quince_mil::TensorType { dtype: DType::F32, shape: vec![1.into(), quince_mil::Dim::Unknown] };
    let range = Flexibility::Range { bounds: vec![(1, Some(1)), (2, Some(8))], default: vec![1, 4] };
    let x = b.input("x", ty.into(), range);
    let y = b.op("relu", "y", &[("x", x.into())]).unwrap();
    let program = Program { functions: vec![b.finish(vec![y])], ..Program::default() };
    let engine = Engine::load(program, Options::default()).unwrap();
    let mut state = engine.new_state().unwrap();
    let mut run = |shape: &[usize]| engine.predict("main", &call(&[("x", floats(1, shape))]), &mut state);
    assert_eq!(run(&[1, 8]).unwrap()["y"].shape(), [1, 8]);
    assert_eq!(run(&[1, 2]).unwrap()["y"].shape(), [1, 2]);
    let error = run(&[1, 9]).unwrap_err().to_string();
    assert_eq!(error, "function `main`: input `x`: found fp32[1, 9], expected fp32 with sizes [1..=1, 2..=8]");
    let missing = engine.predict("main", &call(&[]), &mut engine.new_state().unwrap()).unwrap_err();
    assert_eq!(missing.to_string(), "function `main`: the input `x` is missing");
}

/// What stands for a text in a batch must not depend on how far it is filled up.
#[test]
fn semantic_attention_sees_neither_padding_nor_less_than_its_bias() {
    let shape = [2, 3, 2, 4];
    for extra in ["padding", "bias"] {
        let mut b = Builder::new(Function::new("main", Opset::Semantic));
        let mut input = |name: &str, ty: ValueType| b.input(name, ty, Flexibility::Fixed);
        let [query, key, value] = ["q", "k", "v"].map(|name| input(name, f32s(&shape)));
        let padding = input("padding", ValueType::tensor(DType::I32, &[2, 3]));
        let bias = input("bias", f32s(&[1, 2, 3, 3]));
        let more = if extra == "padding" { padding } else { bias };
        let inputs = [
            ("query", query.into()),
            ("key", key.into()),
            ("value", value.into()),
            ("scale", 0.5f32.into()),
            ("causal", false.into()),
            (extra, more.into()),
        ];
        let y = b.op("attention", "y", &inputs).unwrap();
        let inputs = call(&[
            ("q", floats(1, &shape)),
            ("k", floats(2, &shape)),
            ("v", floats(3, &shape)),
            ("padding", Tensor::from_vec([2, 3], vec![1i32, 1, 0, 1, 0, 0]).unwrap()),
            ("bias", floats(4, &[1, 2, 3, 3])),
        ]);
        check(b.finish(vec![y]), &[inputs], 1e-5);
    }
}
