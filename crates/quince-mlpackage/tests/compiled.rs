//! Packages come through MIL text, and compiled models through packages.

#[path = "../examples/round_trip.rs"]
mod round_trip;

use std::fs;
use std::path::{Path, PathBuf};

use quince_mil::{Flexibility, Opset, Value};
use quince_mlpackage::blob::BlobWriter;
use quince_mlpackage::{Package, is_compiled};
use quince_tensor::DType;

/// As Apple's compiler writes a model for iOS 16: inputs sorted by name, parameters of `constexpr_*` as attributes.
const PROGRAM: &str = r#"program(1.0)
[buildInfo = dict<tensor<string, []>, tensor<string, []>>({{"coremlc-version", "3500.32.1"}})]
{
    func main<ios16>(tensor<fp32, [?, 2]> a, tensor<fp32, [2]> b) {
            tensor<fp32, [2, 2]> w = constexpr_lut_to_dense()[indices = tensor<uint8, [1]>(BLOBFILE(path = tensor<string, []>("@model_path/weights/weight.bin"), offset = tensor<uint64, []>(64))), lut = tensor<fp32, [4]>([0x0p+0, 0x1p+0, -0x1p-1, 0x1p+1]), name = tensor<string, []>("w"), shape = tensor<uint32, [2]>([2, 2])];
            tensor<fp32, [2]> bias = const()[name = tensor<string, []>("bias"), val = tensor<fp32, [2]>(BLOBFILE(path = tensor<string, []>("@model_path/weights/weight.bin"), offset = tensor<uint64, []>(192)))];
            tensor<fp32, [?, 2]> t = linear(bias = bias, weight = w, x = a)[name = tensor<string, []>("t")];
            tensor<fp32, [?, 2]> y = add(x = t, y = b)[name = tensor<string, []>("y")];
        } -> (y);
}"#;

const METADATA: &str = r#"[ { "metadataOutputVersion" : "3.0", "shortDescription" : "adds", "author" : "A", "license" : "MIT",
  "version" : "2", "specificationVersion" : 8, "isUpdatable" : "0",
  "userDefinedMetadata" : { "com.github.apple.coremltools.version" : "9.0" }, "stateSchema" : [ ],
  "outputSchema" : [ { "hasShapeFlexibility" : "0", "isOptional" : "0", "dataType" : "Float32", "shape" : "[]",
    "formattedType" : "MultiArray (Float32)", "shortDescription" : "the sum", "name" : "y", "type" : "MultiArray" } ],
  "inputSchema" : [
    { "hasShapeFlexibility" : "0", "isOptional" : "0", "dataType" : "Float32", "shape" : "[2]", "name" : "b",
      "formattedType" : "MultiArray (Float32 2)", "shortDescription" : "", "type" : "MultiArray" },
    { "hasShapeFlexibility" : "1", "isOptional" : "0", "dataType" : "Float32", "shape" : "[3, 2]", "name" : "a",
      "shapeFlexibility" : "1...8 × 2", "shapeRange" : "[[1, 8], [2, 2]]", "shortDescription" : "rows",
      "formattedType" : "MultiArray (Float32 3 × 2)", "type" : "MultiArray" } ] } ]"#;

/// A compiled model in a directory of its own.
fn compiled(directory: &Path, program: &str, metadata: &str) -> PathBuf {
    let model = directory.join("model.mlmodelc");
    fs::create_dir_all(model.join("weights")).unwrap();
    fs::write(model.join("model.mil"), program).unwrap();
    fs::write(model.join("metadata.json"), metadata).unwrap();
    let file = model.join("weights/weight.bin");
    if !file.exists() {
        let mut blobs = BlobWriter::create(&file).unwrap();
        let bias: Vec<u8> = [0.5f32, -1.0].into_iter().flat_map(f32::to_le_bytes).collect();
        for (dtype, elements, bytes) in [(DType::U8, 1, &[0b1110_0100][..]), (DType::F32, 2, &bias)] {
            blobs.begin(dtype, elements).unwrap();
            blobs.write(bytes).unwrap();
            blobs.finish_blob().unwrap();
        }
        blobs.finish().unwrap();
    }
    model
}

#[test]
fn packages_of_coremltools_come_through_text() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["llama_palvec.mlpackage", "bert_pal6_ios16.mlpackage"] {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
        let to = dir.path().join(name);
        round_trip::round_trip(&from, &to).unwrap();
        let (before, after) = (Package::read(&from).unwrap(), Package::read(&to).unwrap());
        quince_mil::compare::same(&before.program, &after.program).unwrap();
        assert!(is_compiled(&to.with_extension("mlmodelc")) && !is_compiled(&to));
    }
}

#[test]
fn a_compiled_model_becomes_the_package_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let package = Package::read(&compiled(dir.path(), PROGRAM, METADATA)).unwrap();
    let function = &package.program.functions[0];
    assert_eq!((function.opset, package.specification_version()), (Opset::CoreML6, 8));
    // The text has no attribute for the shapes of `a`: metadata.json says them.
    let range = Flexibility::Range { bounds: vec![(1, Some(8)), (2, Some(2))], default: vec![3, 2] };
    assert_eq!(function.inputs[0].flexibility, range);
    let Some(Value::Weight(bias)) = function.block.operations[1].constant() else { panic!("no weight") };
    assert!(bias.name() == "bias" && bias.load().unwrap().bytes().is_mapped());

    let run = |package: &Package| {
        let (a, b) = (quince_mil::Tensor::from_vec([1, 2], vec![1.0f32, 10.0]), vec![100.0f32, 200.0]);
        let inputs = [("a".to_owned(), a.unwrap()), ("b".to_owned(), quince_mil::Tensor::vector(b))].into();
        let function = &package.program.functions[0];
        quince_mil::eval::run(function, &inputs, &mut Default::default()).unwrap()["y"].to_f32().unwrap()
    };
    // The table's entries 0, 1, 2, 3: weight [[0, 1], [-0.5, 2]], bias [0.5, -1].
    assert_eq!(run(&package), [110.5, 218.5]);

    let out = dir.path().join("out.mlpackage");
    package.write(&out, &mut |_| Ok(())).unwrap();
    let again = Package::read(&out).unwrap();
    assert_eq!(run(&again), [110.5, 218.5]);
    assert_eq!(again.metadata, package.metadata);
    assert_eq!((again.metadata.short_description.as_str(), again.metadata.license.as_str()), ("adds", "MIT"));
    let message = fs::read(out.join("Data/com.apple.CoreML/model.mlmodel")).unwrap();
    let at = |text: &str| message.windows(text.len()).position(|bytes| bytes == text.as_bytes());
    // Inputs are described in the order that metadata.json has, which is that of the package.
    assert!(at("\x0a\x01b").unwrap() < at("\x0a\x01a").unwrap() && at("rows").is_some() && at("the sum").is_some());
}

#[test]
fn functions_and_the_default_one_are_as_described() {
    let dir = tempfile::tempdir().unwrap();
    let program = r#"program(1.3)
{
    func first<ios18>(tensor<fp32, [?]> input) [FlexibleShapeInformation = tuple<tuple<string, dict<string, tensor<int32, [?]>>>, tuple<string, dict<string, list<tensor<int32, [2]>, ?>>>>((("DefaultShapes", {{"input", [4]}}), ("RangeDims", {{"input", [[0, 4]]}})))] {
            tensor<fp32, [?]> output = relu(x = input);
        } -> (output);
    func second<ios18>(state<tensor<fp16, [2]>> cache) {
            tensor<fp16, [2]> output = read_state(input = cache);
        } -> (output);
}"#;
    let array = |name: &str, kind: &str, dtype: &str, rest: &str| {
        format!(r#"{{ "name": "{name}", "type": "{kind}", "dataType": "{dtype}", "isOptional": "0", {rest} }}"#)
    };
    let flexible = array("input", "MultiArray", "Float32", r#""shape": "[4]", "shapeRange": "[[0, 4]]""#);
    let output = |dtype: &str| array("output", "MultiArray", dtype, r#""shape": "[]""#);
    let state = array("cache", "State", "Float16", r#""shape": "[2]""#);
    let metadata = format!(
        r#"[{{ "specificationVersion": 9, "defaultFunctionName": "second", "functions": [
            {{ "name": "first", "inputSchema": [{flexible}], "outputSchema": [{}], "stateSchema": [] }},
            {{ "name": "second", "inputSchema": [], "outputSchema": [{}], "stateSchema": [{state}] }} ] }}]"#,
        output("Float32"),
        output("Float16")
    );
    let package = Package::read(&compiled(dir.path(), program, &metadata)).unwrap();
    assert_eq!(package.program.default_function.as_deref(), Some("second"));
    let range = Flexibility::Range { bounds: vec![(0, Some(4))], default: vec![4] };
    assert_eq!(package.program.functions[0].inputs[0].flexibility, range);
    let out = dir.path().join("out.mlpackage");
    package.write(&out, &mut |_| Ok(())).unwrap();
    let again = Package::read(&out).unwrap();
    quince_mil::compare::same(&package.program, &again.program).unwrap();
}

#[test]
fn what_is_wrong_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |program: &str, metadata: &str| {
        let error = Package::read(&compiled(dir.path(), program, metadata)).unwrap_err().to_string();
        error.replace(&dir.path().join("model.mlmodelc").display().to_string(), "M")
    };
    let in_program = [
        ("(192)", "(193)", "M/model.mil: 6:105: M/weights/weight.bin: blob at 193: found 0x"),
        ("(192)", "(256)", "M/weights/weight.bin: blob at 256: it needs bytes up to 320, the file has 264"),
        (
            "bias = const()[name = tensor<string, []>(\"bias\"), val = tensor<fp32, [2]>",
            "bias = const()[val = \
            tensor<fp32, [3]>",
            "weight.bin at 192: found 8 bytes, expected 12",
        ),
        ("@model_path/weights", "@model_path/..", "expected one below @model_path/"),
        ("x = a", "x = c", "M/model.mil: 7:74: variable `c` is used before it is assigned"),
        ("constexpr_lut_to_dense()", "constexpr_lut_to_dense(shape = w)", "M/model.mil: 5:"),
    ];
    for (from, to, expected) in in_program {
        let found = refused(&PROGRAM.replace(from, to), METADATA);
        assert!(found.contains(expected), "{from}: {found}");
    }
    let in_metadata = [
        ("\"[2]\"", "\"2,\"", "M/metadata.json: `b`: shape: found \"2,\", expected a list of numbers"),
        ("Float32\"", "Float9\"", "M/metadata.json: `b`: dataType: found \"Float9\", expected one of Float32, Float16"),
        ("\"MultiArray\"", "\"Sound\"", "`b`: type: found \"Sound\", expected MultiArray"),
        ("[[1, 8]", "[[-1, 8]", "`a`: found the lower bound -1 of a range"),
        ("[[1, 8]", "[[4, 3]", "M/model.mil: function `main`: input `a`: found the range 4 to 3"),
        ("} ] } ]", "} ] }, {} ]", "M/metadata.json: found the metadata of 2 models, expected one"),
        ("[ {", "{ {", "M/metadata.json: found no metadata of a compiled model: "),
    ];
    for (from, to, expected) in in_metadata {
        let found = refused(PROGRAM, &METADATA.replace(from, to));
        assert!(found.contains(expected), "{from}: {found}");
    }
    // A model without optional inputs is not asked for their values.
    fs::write(compiled(dir.path(), PROGRAM, METADATA).join("coremldata.bin"), "damaged").unwrap();
    assert!(Package::read(&dir.path().join("model.mlmodelc")).is_ok());
    let data = dir.path().join("net.mlmodelc");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("coremldata.bin"), "x").unwrap();
    let error = Package::read(&data).unwrap_err().to_string();
    assert!(error.contains("found a compiled model without model.mil, expected an ML Program"), "{error}");
}
