//! What is printed parses to the same program, and nothing that is parsed panics.

use super::*;
use crate::{
    Block, Builder, DType, Dim, Flexibility, Function, OpKind, Operation, Program, Result, Tensor, TensorType, Value,
    ValueType, Weight, compare,
};
use half::f16;

/// What MIL can say, in one program: flexible inputs, a state, weights, attributes, several results, nested blocks, an
/// unknown operation, values in place, names that are no identifiers.
fn sample() -> Program {
    let mut decode = Builder::new(Function::new("decode", crate::Opset::CoreML8));
    let ty = TensorType { dtype: DType::F16, shape: vec![Dim::Fixed(1), Dim::Unknown] };
    let range = Flexibility::Range { bounds: vec![(1, Some(1)), (8, None)], default: vec![1, 8] };
    let x = decode.input("x", ty.clone().into(), range);
    let state = ValueType::State(TensorType::fixed(DType::F16, &[1, 8]));
    let cache = decode.input("cache", state, Flexibility::Fixed);
    let weight = Tensor::from_vec([1, 8], vec![f16::from_f32(0.1); 8]).unwrap();
    let w = decode.weight(&Weight::from_tensor("model.layers.0.weight", weight));
    let y = decode.op("add", "model.layers.0", &[("x", x.into()), ("y", w.into())]).unwrap();
    let k = decode.constant("values", Tensor::from_vec([2, 0, 3], Vec::<i32>::new()).unwrap().into());
    let codes = Tensor::from_codes(DType::I4, [3], &[15, 8, 7]).unwrap();
    decode.constant("codes", codes.into());
    let odd = vec![0.1f32, f32::NEG_INFINITY, f32::NAN, -0.0, f32::MIN_POSITIVE / 4.0];
    decode.constant("odd", Tensor::from_vec([5, 1], odd).unwrap().into());
    let top = decode.ops("topk", "top", &[("x", y.into()), ("k", 2.into())]).unwrap();
    let mut function = decode.finish(vec![top[0], y]);
    let text = function.add_var("text", ValueType::String);
    let mut unknown = operation(OpKind::from_name("from_the_future"), "a \"quoted\"\n\\name", vec![text]);
    unknown.inputs.push(("values".into(), vec![crate::Arg::Var(x), crate::Arg::Value(true.into())]));
    unknown.inputs.push(("nothing".into(), vec![]));
    unknown.inputs.push(("state".into(), vec![crate::Arg::Var(cache)]));
    let pairs = vec![(Value::from("é"), Value::from(vec![1i32, 2]))];
    let dictionary = Value::Dictionary(ValueType::String, ValueType::tensor(DType::I32, &[2]), pairs);
    unknown.attributes.insert("odd.key".into(), Value::Tuple(vec![dictionary, Value::from(u64::MAX)]));
    let list = Value::List(ValueType::String, vec!["a".into(), "b".into()]);
    unknown.attributes.insert("list".into(), list);
    let inner = function.add_var("inner", ty.into());
    let mut nested = operation(OpKind::from_name("silu"), "inner", vec![inner]);
    nested.inputs.push(("x".into(), vec![crate::Arg::Var(x)]));
    unknown.blocks.push(Block { inputs: vec![], operations: vec![nested], outputs: vec![inner, k] });
    let i = function.add_var("i", ValueType::tensor(DType::I32, &[]));
    unknown.blocks.push(Block { inputs: vec![i], operations: vec![], outputs: vec![i] });
    function.block.operations.push(unknown);
    function.block.operations.push(operation(OpKind::from_name("effect"), "", vec![]));
    let mut encode = Function::new("encode.x", crate::Opset::CoreML7);
    let shapes = Flexibility::Enumerated(vec![vec![2], vec![1], vec![7]]);
    let ids = encode.add_input("ids", TensorType { dtype: DType::I32, shape: vec![Dim::Unknown] }.into(), shapes);
    encode.block.outputs.push(ids);
    encode.attributes.insert("pi".into(), 3.25f32.into());
    let mut program =
        Program { functions: vec![function, encode], default_function: Some("decode".into()), ..Program::default() };
    let info = vec![(Value::from("coremlc-version"), Value::from("3500.32.1"))];
    program.attributes.insert("buildInfo".into(), Value::Dictionary(ValueType::String, ValueType::String, info));
    program
}

fn operation(kind: OpKind, name: &str, outputs: Vec<crate::Var>) -> Operation {
    let (inputs, blocks, attributes) = Default::default();
    Operation { kind, name: name.into(), inputs, outputs, blocks, attributes }
}

impl From<u64> for Value {
    fn from(value: u64) -> Value {
        Value::Tensor(Tensor::scalar(value))
    }
}

fn no_weights(reference: &BlobRef) -> Result<Weight> {
    crate::bail!("found {:?}, expected no reference", reference.location)
}

#[test]
fn what_is_printed_parses_to_the_same_program() {
    let program = sample();
    for max_elements in [0, 4, usize::MAX] {
        let weights = Weights::of(&program, max_elements);
        let options = PrintOptions { locate: &|value| weights.locate(value), ..PrintOptions::default() };
        let text = print(&program, &options);
        let parsed = parse(&text, &|reference| weights.resolve(reference)).unwrap_or_else(|e| panic!("{e}\n{text}"));
        compare::same(&program, &parsed).unwrap_or_else(|e| panic!("{e}\n{text}"));
        assert_eq!(print(&parsed, &options).replace("WEIGHT", ""), text.replace("WEIGHT", ""));
    }
}

#[test]
fn names_become_identifiers_where_the_target_needs_them() {
    let options = PrintOptions { spelling: Spelling::Identifiers, ..PrintOptions::default() };
    let text = print(&sample(), &options);
    assert!(text.contains("tensor<fp16, [1, 8]> model_layers_0 = add(x = x, y = model_layers_0_weight)"), "{text}");
    assert!(
        text.starts_with("program(1.3)\n[buildInfo = dict<string, string>({{\"coremlc-version\", \"3500.32.1\"}})")
    );
}

/// As Apple's compiler writes it for iOS 16: scalars are tensors, a constexpr has its data in attributes.
const APPLES: &str = r#"program(1.0)
[buildInfo = dict<tensor<string, []>, tensor<string, []>>({{"coremlc-version", "3500.32.1"}})]
{
    func main<ios16>(tensor<fp32, [1, 2]> x) {
            tensor<string, []> dtype = const()[name = tensor<string, []>("dtype"), val = tensor<string, []>("fp16")];
            tensor<fp16, []> low = const()[name = tensor<string, []>("low_0"), val = tensor<fp16, []>(-inf)];
            tensor<fp16, []> high = const()[name = tensor<string, []>("high"), val = tensor<fp16, []>(0x1.388p+13)];
            tensor<fp16, [2, 2]> w = constexpr_lut_to_dense()[indices = tensor<uint8, [2]>(BLOBFILE(path = tensor<string, []>("@model_path/weights/weight.bin"), offset = tensor<uint64, []>(64))), lut = tensor<fp16, [4]>([0x0p+0, 0x1p+0, -0x1p-1, 0x1p-24]), name = tensor<string, []>("w"), shape = tensor<uint32, [2]>([2, 2])];
            tensor<fp16, [1, 2]> y_1 = cast(dtype = dtype, x = x)[name = tensor<string, []>("y_1")];
            tensor<fp16, [1, 2]> y = clip(alpha = low, beta = high, x = y_1)[name = tensor<string, []>("y")];
        } -> (y);
}
"#;

#[test]
fn apples_text_is_read_and_written_letter_by_letter() {
    let here = Location::File { path: "@model_path/weights/weight.bin".into(), offset: 64 };
    let resolve = |reference: &BlobRef| {
        assert_eq!(reference.location, here);
        Ok(Weight::from_tensor("blob", Tensor::vector(vec![1u8, 2])))
    };
    let program = parse(APPLES, &resolve).unwrap();
    let function = &program.functions[0];
    assert_eq!((function.opset, function.block.operations.len()), (crate::Opset::CoreML6, 6));
    assert_eq!(function.block.operations[1].name, "low_0");
    let low = function.block.operations[1].constant().unwrap().tensor().unwrap();
    assert_eq!((low.dtype(), low.to_f32().unwrap()), (DType::F16, vec![f32::NEG_INFINITY]));
    let locate = |value: &Value| matches!(value, Value::Weight(_)).then(|| here.clone());
    assert_eq!(print(&program, &PrintOptions { spelling: Spelling::Identifiers, locate: &locate }), APPLES.trim_end());
}

#[test]
fn errors_name_line_and_column() {
    let blob = |_: &BlobRef| Ok(Weight::from_tensor("blob", Tensor::vector(vec![1u8, 2])));
    let of = |from: &str, to: &str| parse(&APPLES.replace(from, to), &blob).unwrap_err().to_string();
    assert_eq!(
        of("ios16", "ios99"),
        "4:15: found `ios99`, expected one of ios15, ios16, ios17, ios18, ios26, ios19, semantic"
    );
    assert_eq!(of("-inf", "-info"), "6:103: found `-info`, expected a value of type fp16");
    assert_eq!(of("\"fp16\"", "\"fp16"), "5:109: found a string without an end, expected `\"`");
    let many = "[0x0p+0, 0x0p+0]), ";
    assert_eq!(of("-inf)", many), "6:103: found `[`, expected a number");
    assert_eq!(of("x = x)", "x = z)"), "9:64: variable `z` is used before it is assigned");
    let cut = &APPLES[..APPLES.find("x = x)").unwrap() + 5];
    let error = parse(&cut.replace("x = x", "x = y"), &blob).unwrap_err().to_string();
    assert!(error.contains("found the end of the text"), "{error}");
    assert_eq!(
        of("uint8, [2]>(B", "uint8, [3]>(B"),
        "8:92: found a weight of type tensor<uint8, [2]>, expected tensor<uint8, [3]>"
    );
    assert!(parse(APPLES, &no_weights).unwrap_err().to_string().starts_with("8:92: found File"));
    let deep = format!("program(1.0)[x = {}", "list<".repeat(100_000));
    assert!(parse(&deep, &no_weights).unwrap_err().to_string().ends_with("nested more than 64 deep"));
    let brackets = format!("program(1.0)[x = tensor<fp16, [{}]>({}", vec!["1"; 1000].join(", "), "[".repeat(100_000));
    assert!(parse(&brackets, &no_weights).unwrap_err().to_string().ends_with("nested more than 64 deep"));
}

/// Every text that differs from a good one in a few places is read or refused.
#[test]
fn no_text_panics() {
    let program = sample();
    let weights = Weights::of(&program, usize::MAX);
    let good = print(&program, &PrintOptions::default()).into_bytes();
    let spare = b"<>()[]{},;=?-\"\\ \n0123456789abcdefxp.+-_@\xc3\xa9";
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let mut refused = 0;
    for _ in 0..3000 {
        let mut text = good.clone();
        for _ in 0..1 + random(4) {
            let at = random(text.len());
            match random(4) {
                0 => text[at] = spare[random(spare.len())],
                1 => text.insert(at, spare[random(spare.len())]),
                2 => drop(text.drain(at..(at + 1 + random(30)).min(text.len()))),
                _ => {
                    let piece = text[at..(at + 1 + random(60)).min(text.len())].to_vec();
                    let to = random(text.len());
                    text.splice(to..to, piece);
                }
            }
        }
        text.truncate(if random(8) == 0 { random(text.len()) } else { text.len() });
        refused += usize::from(parse(&String::from_utf8_lossy(&text), &|r| weights.resolve(r)).is_err());
    }
    assert!(refused > 1000, "{refused}");
}
