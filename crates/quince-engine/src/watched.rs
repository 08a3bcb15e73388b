//! What is shown of a call, against the definition of each operation; and what rounding to fp16 finds.

use crate::tests::{call, f32s, floats, numbers, start};
use crate::{Engine, Observed, Observer, Options, Origin, Precision, RangeReport, Rounding, State};
use quince_mil::{
    Block, DType, Function, OpKind, Operation, Opset, Program, Result, Tensor, Value, ValueType, Var, eval,
};
use quince_tensor::f16;
use std::collections::BTreeMap;

/// Every value by name, with what there was to say of it.
#[derive(Default)]
struct Recorder {
    names: Vec<String>,
    values: BTreeMap<String, Tensor>,
    roundings: BTreeMap<String, Rounding>,
}

impl Observer for Recorder {
    fn value(&mut self, value: &Observed) -> Result<()> {
        let mut name = value.name.to_owned();
        match value.origin {
            Origin::StateBefore => name += ".before",
            Origin::StateAfter => name += ".after",
            _ => value.iterations.iter().for_each(|i| name += &format!("[{i}]")),
        }
        self.names.push(name.clone());
        self.roundings.extend(value.rounding.map(|rounding| (name.clone(), rounding)));
        self.values.insert(name, value.tensor()?);
        Ok(())
    }
}

impl eval::Observer for Recorder {
    fn value(&mut self, seen: &eval::Seen, value: Value) -> Result<Value> {
        let constant = seen.operation.is_some_and(|o| o.op_name() == "const" || o.op_name().starts_with("constexpr_"));
        if let (false, Ok(tensor)) = (constant, value.tensor()) {
            self.names.push(format!("{}", seen.var.0));
            self.values.insert(format!("{}", seen.var.0), tensor);
        }
        Ok(value)
    }
}

/// Every value that is shown is that of the definition, whatever the plan for the results alone would hide, and states
/// are shown before and after.
pub(crate) fn shows_what_is_defined(
    engine: &Engine,
    inputs: &eval::Tensors,
    (state, states): (&State, &eval::Tensors),
    tolerance: f32,
) {
    let function = &engine.program().functions[0];
    let (mut shown, mut defined) = (Recorder::default(), Recorder::default());
    engine.observe("main", inputs, &mut state.clone(), &mut shown).unwrap();
    let mut after = states.clone();
    eval::run_observed(function, inputs, &mut after, &Default::default(), &mut defined).unwrap();
    for number in &defined.names {
        let var = Var(number.parse().unwrap());
        let name = &function.var(var).name;
        let Some(found) = shown.values.get(name) else {
            assert!(!function.block.outputs.contains(&var), "{name} is not shown");
            continue;
        };
        near(name, found, &defined.values[number], tolerance);
    }
    assert!(defined.names.len() <= shown.names.len() + 1, "{:?}", shown.names);
    for (name, tensor) in &after {
        near(name, &shown.values[&format!("{name}.after")], tensor, tolerance);
        assert!(shown.values.contains_key(&format!("{name}.before")));
    }
}

fn near(name: &str, found: &Tensor, expected: &Tensor, tolerance: f32) {
    assert_eq!(found.shape(), expected.shape(), "{name}");
    for (i, (a, b)) in found.to_f64().unwrap().into_iter().zip(expected.to_f64().unwrap()).enumerate() {
        let near = a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= f64::from(tolerance);
        assert!(near, "{name}[{i}]: found {a}, expected {b}");
    }
}

fn engine(function: Function, precision: Precision) -> Engine {
    let program = Program { functions: vec![function], ..Program::default() };
    Engine::load(program, Options { threads: 2, precision, ..Options::default() }).unwrap()
}

/// The outputs of a call under fp16-strict, what was shown, and the report.
fn strict(function: &Function, inputs: &eval::Tensors) -> (eval::Tensors, Recorder, RangeReport) {
    let engine = engine(function.clone(), Precision::Strict);
    let (mut shown, mut report) = (Recorder::default(), RangeReport::default());
    report.begin("main");
    let outputs = engine.observe("main", inputs, &mut engine.new_state().unwrap(), &mut shown).unwrap();
    engine.observe("main", inputs, &mut engine.new_state().unwrap(), &mut report).unwrap();
    let same = engine.predict("main", inputs, &mut engine.new_state().unwrap()).unwrap();
    assert!(same.iter().all(|(name, tensor)| tensor.same(&outputs[name])), "what is watched is what is computed");
    (outputs, shown, report)
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.to_f32().unwrap()
}

/// y = x / sqrt(mean(x²) + epsilon), in operations.
fn norm(dtype: DType) -> Function {
    let (mut b, vars) = start(&[("x", ValueType::tensor(dtype, &[1, 4]))]);
    let squares = b.op("mul", "squares", &[("x", vars[0].into()), ("y", vars[0].into())]).unwrap();
    let inputs = [("x", squares.into()), ("axes", [-1].into()), ("keep_dims", true.into())];
    let mean = b.op("reduce_mean", "mean", &inputs).unwrap();
    let epsilon: Value = Tensor::scalar(1e-5f32).cast(dtype).unwrap().into();
    let scale = b.op("rsqrt", "scale", &[("x", mean.into()), ("epsilon", epsilon.into())]).unwrap();
    let y = b.op("mul", "y", &[("x", vars[0].into()), ("y", scale.into())]).unwrap();
    b.finish(vec![y])
}

#[test]
fn squares_that_fp16_cannot_hold_are_named() {
    for dtype in [DType::F32, DType::F16] {
        let x = Tensor::from_vec([1, 4], vec![300f32, 2.0, 1e-3, 1e-4]).unwrap().cast(dtype).unwrap();
        let (outputs, shown, report) = strict(&norm(dtype), &call(&[("x", x)]));
        // 300² = 90000 > 65504; (1e-3)² is between 2^-24 and 2^-14; (1e-4)² is less than half of 2^-24.
        assert_eq!(values(&shown.values["squares"])[..2], [f32::INFINITY, 4.0]);
        let found = shown.roundings["squares"];
        assert_eq!((found.overflowed, found.subnormal, found.underflowed, found.nan), (1, 1, 1, 0), "{dtype}");
        assert_eq!(found.largest.round(), 90000.0);
        // Infinity goes in: its mean is no overflow, and rsqrt makes it 0.
        assert_eq!(shown.roundings["mean"].overflowed, 0);
        assert_eq!(values(&outputs["y"]), [0.0; 4]);
        let names: Vec<(&str, &str, usize)> =
            report.findings().iter().map(|f| (f.name.as_str(), f.kind.as_str(), f.call)).collect();
        let input = if dtype == DType::F32 { ("x", "input", 0) } else { ("squares", "mul", 0) };
        assert!(names.starts_with(&[input]) || names.starts_with(&[("squares", "mul", 0)]), "{names:?}");
        assert_eq!(report.findings().iter().filter(|f| f.rounding.overflowed > 0).count(), 1, "{names:?}");
    }
}

/// In a program that declares fp16 everywhere, strict arithmetic is that of the definitions, which round each result.
#[test]
fn strict_values_are_those_of_the_definitions_in_fp16() {
    let (mut b, vars) = start(&[("x", ValueType::tensor(DType::F16, &[5, 24]))]);
    let half = |seed, shape: &[usize]| -> Value { floats(seed, shape).cast(DType::F16).unwrap().into() };
    let weight = b.constant("weight", half(1, &[24, 24]));
    let wide = b.op("linear", "wide", &[("x", vars[0].into()), ("weight", weight.into())]).unwrap();
    let gamma = b.constant("gamma", half(2, &[24]));
    let inputs = [("x", wide.into()), ("axes", [-1].into()), ("gamma", gamma.into())];
    let normed = b.op("layer_norm", "normed", &inputs).unwrap();
    let gelu = b.op("gelu", "gelu", &[("x", normed.into()), ("mode", "EXACT".into())]).unwrap();
    let inputs = [("x", gelu.into()), ("y", wide.into()), ("transpose_y", true.into())];
    let scores = b.op("matmul", "scores", &inputs).unwrap();
    let softmax = b.op("softmax", "softmax", &[("x", scores.into()), ("axis", (-1).into())]).unwrap();
    let y = b.op("matmul", "y", &[("x", softmax.into()), ("y", normed.into())]).unwrap();
    let function = b.finish(vec![y]);
    let inputs = call(&[("x", floats(3, &[5, 24]).cast(DType::F16).unwrap())]);
    let expected = eval::run(&function, &inputs, &mut eval::Tensors::new()).unwrap();
    let (found, shown, _) = strict(&function, &inputs);
    // Another order of summation moves a result to the next number of fp16 at most, and what follows likewise.
    near("y", &found["y"], &expected["y"], 4e-3);
    for (name, tensor) in shown.values.iter().filter(|(_, tensor)| tensor.dtype() == DType::F32) {
        let all = values(tensor);
        assert!(all.iter().all(|v| f16::from_f32(*v).to_f32() == *v), "{name} is not rounded");
    }
}

/// Differences of neighbours in a row of a weight of scales and integers: exact in f32, so that nothing but the rounding
/// of the elements makes them what they are.
#[test]
fn elements_of_quantized_weights_are_rounded() {
    let (mut b, vars) = start(&[("x", ValueType::tensor(DType::F16, &[15, 16]))]);
    let data: Vec<i8> = (0..64).map(|i| (i * 37 % 255) as i8).collect();
    let scale = Tensor::from_vec([4, 2], numbers(1, 8)).unwrap().cast(DType::F16).unwrap();
    let inputs = [("data", Tensor::from_vec([4, 16], data).unwrap().into()), ("scale", scale.into())];
    let weight = b.op("constexpr_blockwise_shift_scale", "weight", &inputs).unwrap();
    let linear = b.op("linear", "linear", &[("x", vars[0].into()), ("weight", weight.into())]).unwrap();
    let inputs = [("x", vars[0].into()), ("y", weight.into()), ("transpose_y", true.into())];
    let matmul = b.op("matmul", "matmul", &inputs).unwrap();
    let function = b.finish(vec![linear, matmul]);
    let mut x = vec![0f32; 15 * 16];
    (0..15).for_each(|i| (x[17 * i], x[17 * i + 1]) = (1.0, -1.0));
    let inputs = call(&[("x", Tensor::from_vec([15, 16], x).unwrap().cast(DType::F16).unwrap())]);
    let expected = eval::run(&function, &inputs, &mut eval::Tensors::new()).unwrap();
    let (found, _, _) = strict(&function, &inputs);
    let exact = engine(function, Precision::Exact);
    let unrounded = exact.predict("main", &inputs, &mut exact.new_state().unwrap()).unwrap();
    for (name, expected) in expected {
        assert_eq!(values(&found[&name]), values(&expected), "{name}");
        assert_ne!(values(&unrounded[&name]), values(&expected), "{name}: the elements are not those of fp16 anyhow");
    }
}

#[test]
fn constants_that_fp16_cannot_hold_are_told_and_so_is_where_nan_comes_from() {
    let (mut b, vars) = start(&[("x", f32s(&[2, 2]))]);
    // A mask that hides the second row: finite in fp32, -inf in fp16; no number is left of the row.
    let mask: Value = Tensor::from_vec([2, 1], vec![0.0f32, f32::MIN]).unwrap().into();
    let mask = b.constant("mask", mask);
    let masked = b.op("add", "masked", &[("x", vars[0].into()), ("y", mask.into())]).unwrap();
    let softmax = b.op("softmax", "softmax", &[("x", masked.into()), ("axis", (-1).into())]).unwrap();
    let y = b.op("mul", "y", &[("x", softmax.into()), ("y", 2.0f32.into())]).unwrap();
    let function = b.finish(vec![y]);
    let (outputs, _, report) = strict(&function, &call(&[("x", Tensor::from_vec([2, 2], vec![0f32; 4]).unwrap())]));
    assert_eq!(values(&outputs["y"])[..2], [1.0, 1.0]);
    assert!(values(&outputs["y"])[2..].iter().all(|v| v.is_nan()));
    let found: Vec<(&str, &str, usize, usize, bool)> = report
        .findings()
        .iter()
        .map(|f| (&f.name[..], &f.kind[..], f.rounding.overflowed, f.rounding.nan, f.rounding.carried))
        .collect();
    // `carried` means something only where there are NaN.
    assert_eq!((found[0].0, found[0].1, found[0].2), ("mask", "constant", 1));
    assert_eq!(found[1..], [("softmax", "softmax", 0, 2, false), ("y", "mul", 0, 2, true)]);
}

#[test]
fn numbers_inside_operations_are_counted_and_change_nothing() {
    let (mut b, vars) = start(&[("x", ValueType::tensor(DType::F16, &[1, 1, 4, 64]))]);
    let x = vars[0];
    let normed = b.op("layer_norm", "normed", &[("x", x.into()), ("axes", [-1].into())]).unwrap();
    let mean = b.op("reduce_mean", "mean", &[("x", x.into()), ("axes", [-1].into())]).unwrap();
    let length = b.op("reduce_l2_norm", "length", &[("x", x.into()), ("axes", [-1].into())]).unwrap();
    let inputs = [("query", x.into()), ("key", x.into()), ("value", x.into())];
    let attended = b.op("scaled_dot_product_attention", "attended", &inputs).unwrap();
    let function = b.finish(vec![normed, mean, length, attended]);
    // Rows of ±2, of ±300, of 300 and of 2000.
    let row = |i: usize| (0..64).map(move |j| if i < 2 && j % 2 == 1 { -1.0 } else { 1.0 });
    let size = [2f32, 300.0, 300.0, 2000.0];
    let x: Vec<f32> = (0..4).flat_map(|i| row(i).map(move |sign: f32| sign * size[i])).collect();
    let x = Tensor::from_vec([1, 1, 4, 64], x).unwrap().cast(DType::F16).unwrap();
    let (outputs, shown, _) = strict(&function, &call(&[("x", x)]));
    // Distances from the mean are 300 in the second row alone; the last row sums up to 128000; every length but that of
    // the first row, 16, is beyond 256; of the scores, those of rows 3 and 4 with each other: 300² · 64 / 8 = 720000.
    let inside = |name: &str| shown.roundings[name].inside;
    assert_eq!((inside("normed"), inside("mean"), inside("length"), inside("attended")), (64, 1, 3, 5));
    assert_eq!(values(&outputs["mean"]), [0.0, 0.0, 300.0, 2000.0]);
    assert_eq!(values(&outputs["length"])[1..3], [2400.0, 2400.0]);
    assert!((values(&outputs["normed"])[64] - 1.0).abs() < 1e-3);
}

/// n = 0; while n < 3 { n = n + 1; y = y · 2 }
#[test]
fn iterations_of_a_loop_are_told_apart() {
    let mut function = Function::new("main", Opset::CoreML7);
    let (int, float) = (ValueType::tensor(DType::I32, &[]), f32s(&[1]));
    let y = function.add_input("y", float.clone(), Default::default());
    let add = |f: &mut Function, name: &str, ty: &ValueType| f.add_var(name, ty.clone());
    let [m0, y0, m1, y1, next, twice] =
        [("m0", &int), ("y0", &float), ("m1", &int), ("y1", &float), ("next", &int), ("twice", &float)]
            .map(|(name, ty)| add(&mut function, name, ty));
    let go = function.add_var("go", ValueType::tensor(DType::Bool, &[]));
    let (count, last) = (add(&mut function, "count", &int), add(&mut function, "last", &float));
    let op = |kind: &str, inputs: Vec<(&str, quince_mil::Arg)>, out: Var| {
        let inputs = inputs.into_iter().map(|(param, arg)| (param.to_owned(), vec![arg])).collect();
        let (outputs, blocks, attributes) = (vec![out], Vec::new(), Default::default());
        Operation { kind: OpKind::from_name(kind), name: kind.to_owned(), inputs, outputs, blocks, attributes }
    };
    use quince_mil::Arg::{Value as Known, Var as Computed};
    let less = op("less", vec![("x", Computed(m0)), ("y", Known(Value::from(3)))], go);
    let step = op("add", vec![("x", Computed(m1)), ("y", Known(Value::from(1)))], next);
    let double = op("mul", vec![("x", Computed(y1)), ("y", Known(Value::from(2.0f32)))], twice);
    let mut repeat = op("while_loop", Vec::new(), count);
    repeat.inputs = vec![("loop_vars".to_owned(), vec![Known(Value::from(0)), Computed(y)])];
    repeat.outputs = vec![count, last];
    repeat.blocks = vec![
        Block { inputs: vec![m0, y0], operations: vec![less], outputs: vec![go] },
        Block { inputs: vec![m1, y1], operations: vec![step, double], outputs: vec![next, twice] },
    ];
    function.block = Block { inputs: Vec::new(), operations: vec![repeat], outputs: vec![last] };
    let inputs = call(&[("y", Tensor::vector(vec![30000f32]))]);

    let exact = engine(function.clone(), Precision::Exact);
    let mut shown = Recorder::default();
    exact.observe("main", &inputs, &mut exact.new_state().unwrap(), &mut shown).unwrap();
    let twice: Vec<f32> = (0..3).map(|i| values(&shown.values[&format!("twice[{i}]")])[0]).collect();
    assert_eq!(twice, [60000.0, 120000.0, 240000.0]);
    assert_eq!(shown.values["go[3]"].to_bools().unwrap(), [false]);
    assert_eq!(values(&shown.values["last"]), [240000.0]);

    let (outputs, shown, report) = strict(&function, &inputs);
    assert_eq!(values(&outputs["last"]), [f32::INFINITY]);
    assert_eq!(shown.roundings["twice[1]"].overflowed, 1);
    let overflowed: Vec<&str> =
        report.findings().iter().filter(|f| f.rounding.overflowed > 0).map(|f| &f.name[..]).collect();
    assert_eq!(overflowed, ["mul"]);
}
