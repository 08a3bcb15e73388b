//! The crate against packages that coremltools wrote, and against damaged ones.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use prost::Message;
use quince_mil::{Arg, DType, Flexibility, Function, Operation, Opset, Program, Tensor, Value, ValueType, Weight, ops};
use quince_tensor::Error;
use sha2::{Digest, Sha256};

use crate::Package;
use crate::blob::BlobReader;
use crate::manifest::{MODEL_PATH, Manifest};
use crate::proto::mil::{self, argument::Bound, value::Value as Place};
use crate::proto::model::Model;
use crate::proto::{self};

const PACKAGES: [&str; 2] = ["llama_palvec.mlpackage", "bert_pal6_ios16.mlpackage"];

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn write(package: &Package, to: &Path) -> crate::Result<()> {
    package.write(to, &mut |_| Ok(())).map(drop)
}

fn model(package: &Path) -> Model {
    let file = package.join("Data").join(MODEL_PATH);
    proto::decode_model(&file, &fs::read(&file).unwrap()).unwrap()
}

/// The messages of a package with the content of blobs in place of their offsets.
fn content(package: &Path) -> Model {
    let mut model = model(package);
    let mut files = HashMap::new();
    let directory = package.join("Data").join(MODEL_PATH).parent().unwrap().to_owned();
    for function in model.ml_program.as_mut().unwrap().functions.values_mut() {
        for block in function.block_specializations.values_mut() {
            each_value(block, &mut |value| {
                let Some(Place::BlobFile(place)) = &mut value.value else { return };
                let path = directory.join(place.file_name.strip_prefix("@model_path/").unwrap());
                let reader = files.entry(path.clone()).or_insert_with(|| BlobReader::open(&path).unwrap());
                let blob = reader.blob(place.offset).unwrap();
                place.file_name = format!("{} {:x}", blob.dtype, Sha256::digest(&*blob.bytes));
                place.offset = 0;
            });
        }
    }
    model
}

fn each_value(block: &mut mil::Block, f: &mut impl FnMut(&mut mil::Value)) {
    for operation in &mut block.operations {
        operation.attributes.values_mut().for_each(&mut *f);
        for binding in operation.inputs.values_mut().flat_map(|a| &mut a.arguments) {
            if let Some(Bound::Value(value)) = &mut binding.binding {
                f(value);
            }
        }
        operation.blocks.iter_mut().for_each(|inner| each_value(inner, f));
    }
}

fn files(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push((path.clone(), fs::read(&path).unwrap())),
        }
    }
    found.sort();
    found
}

#[test]
fn a_package_is_measured_before_it_is_written() {
    let dir = tempfile::tempdir().unwrap();
    for name in PACKAGES {
        let package = Package::read(&data(name)).unwrap();
        write(&package, &dir.path().join(name)).unwrap();
        let on_disk: usize = files(&dir.path().join(name)).iter().map(|(_, bytes)| bytes.len()).sum();
        // Constants that turn out to be equal are written once, which is not known before.
        let measured = package.measure().unwrap();
        assert!(measured >= on_disk as u64 && measured * 98 <= on_disk as u64 * 100, "{measured} {on_disk}");
    }
}

#[test]
fn what_was_read_is_written_with_every_field() {
    let dir = tempfile::tempdir().unwrap();
    for name in PACKAGES {
        let package = Package::read(&data(name)).unwrap();
        let out = dir.path().join(name);
        write(&package, &out).unwrap();
        assert_eq!(content(&out), content(&data(name)), "{name}");
        let first = files(&out);
        write(&Package::read(&out).unwrap(), &out).unwrap();
        assert_eq!(files(&out), first, "{name}: same input, same bytes");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), PACKAGES.len(), "nothing else is left");
}

/// What coremltools says of inputs and outputs is what follows from the program.
#[test]
fn a_new_program_is_described_as_coremltools_does() {
    let dir = tempfile::tempdir().unwrap();
    for name in PACKAGES {
        let read = Package::read(&data(name)).unwrap();
        let mut new = Package::new(read.program);
        new.metadata = read.metadata;
        let out = dir.path().join(name);
        write(&new, &out).unwrap();
        assert_eq!(content(&out), content(&data(name)), "{name}");
    }
}

#[test]
fn weights_stay_in_the_mapped_file() {
    let package = Package::read(&data(PACKAGES[0])).unwrap();
    let operations = &package.program.functions[0].block.operations;
    let values = operations.iter().flat_map(|op| op.inputs.iter().flat_map(|(_, args)| args));
    let weights: Vec<&Weight> = values
        .filter_map(|arg| match arg {
            Arg::Value(Value::Weight(weight)) => Some(weight),
            _ => None,
        })
        .collect();
    assert!(weights.len() > 10);
    assert!(weights.iter().all(|w| w.load().unwrap().bytes().is_mapped()));
}

fn add(function: &mut Function, op: &str, name: &str, ty: ValueType) -> usize {
    let output = function.add_var(name, ty);
    let mut operation = Operation::new(ops::find(op).unwrap(), name);
    operation.outputs.push(output);
    function.block.operations.push(operation);
    function.block.operations.len() - 1
}

/// `y = linear(x, weight)`, with the weight given in place.
fn linear(name: &str, weight: &Weight) -> Function {
    let mut f = Function::new(name, Opset::CoreML8);
    let x = f.add_input("x", ValueType::tensor(DType::F32, &[1, 4]), Flexibility::Fixed);
    for i in 0..2 {
        let at = add(&mut f, "linear", &format!("y.{i}"), ValueType::tensor(DType::F32, &[1, 4]));
        let inputs = vec![("x".into(), vec![Arg::Var(x)]), ("weight".into(), vec![Arg::Value(weight.clone().into())])];
        f.block.operations[at].inputs = inputs;
        f.block.outputs.push(f.block.operations[at].outputs[0]);
    }
    f
}

fn weight() -> Weight {
    let values: Vec<f32> = (0..16).map(|i| i as f32).collect();
    Weight::from_tensor("layers.0.weight", Tensor::from_vec([4, 4], values).unwrap())
}

#[test]
fn functions_share_what_is_equal() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("two.mlpackage");
    // The second weight is another object with equal bytes.
    let functions = vec![linear("init", &weight()), linear("decode", &weight())];
    let program = Program { functions, default_function: Some("decode".into()), ..Default::default() };
    let mut loaded = Vec::new();
    let mut note = |w: &Weight| {
        loaded.push(w.name().to_owned());
        Ok(())
    };
    let written = Package::new(program).write(&out, &mut note).unwrap();
    assert_eq!((written.blobs, loaded.len()), (1, 2));
    assert_eq!(written.weight_bytes, 64 + 64 + 16 * 4);

    let message = model(&out);
    let described = message.description.unwrap();
    assert_eq!(described.default_function_name, "decode");
    assert!(described.input.is_empty() && described.functions.len() == 2);
    let program = Package::read(&out).unwrap().program;
    let names: Vec<&str> = program.functions.iter().map(|f| f.name.as_str()).collect();
    assert_eq!(names, ["init", "decode"]);
    let operations = &program.functions[0].block.operations;
    let kinds: Vec<(&str, &str)> = operations.iter().map(|op| (op.op_name(), op.name.as_str())).collect();
    assert_eq!(kinds, [("const", "layers_0_weight"), ("linear", "y_0"), ("linear", "y_1")]);
}

#[test]
fn one_function_is_called_main() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("one.mlpackage");
    let program = Program { functions: vec![linear("full", &weight())], ..Default::default() };
    write(&Package::new(program), &out).unwrap();
    let message = model(&out);
    assert_eq!(message.specification_version, 9);
    assert!(message.ml_program.unwrap().functions.contains_key("main"));
    let described = message.description.unwrap();
    let names = |features: &[crate::proto::model::FeatureDescription]| -> Vec<String> {
        features.iter().map(|f| f.name.clone()).collect()
    };
    assert_eq!(
        (names(&described.input), names(&described.output)),
        (vec!["x".into()], vec!["y_0".into(), "y_1".into()])
    );
}

#[test]
fn a_failure_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("x.mlpackage");
    let package = Package::new(Program { functions: vec![linear("main", &weight())], ..Default::default() });
    let error = package.write(&out, &mut |_| Err(Error::new("interrupted"))).unwrap_err();
    assert!(error.to_string().contains("interrupted"));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);

    fs::create_dir(&out).unwrap();
    fs::write(out.join("letter.txt"), "not a package").unwrap();
    assert!(write(&package, &out).unwrap_err().to_string().contains("neither a package nor"));
    assert!(out.join("letter.txt").exists());
}

#[test]
fn what_core_ml_cannot_hold_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |function: Function| {
        let program = Program { functions: vec![function], ..Default::default() };
        write(&Package::new(program), &dir.path().join("x.mlpackage")).unwrap_err().to_string()
    };
    let mut early = linear("main", &weight());
    early.opset = Opset::CoreML7;
    early.add_input("cache", ValueType::State(quince_mil::TensorType::fixed(DType::F16, &[4])), Flexibility::Fixed);
    assert!(refused(early).contains("states need specification version 9"));
    let mut flag = linear("main", &weight());
    flag.add_input("flag", ValueType::tensor(DType::Bool, &[1]), Flexibility::Fixed);
    assert!(refused(flag).contains("no inputs and outputs of bool"));
    let mut open = linear("main", &weight());
    let unknown = quince_mil::TensorType { dtype: DType::F32, shape: vec![quince_mil::Dim::Unknown] };
    open.add_input("open", unknown.into(), Flexibility::Fixed);
    assert!(refused(open).contains("input `open`: tensor<fp32, [?]> has an unknown size"));
    let mut wide = linear("main", &weight());
    wide.add_input("cache", ValueType::State(quince_mil::TensorType::fixed(DType::F32, &[4])), Flexibility::Fixed);
    assert!(refused(wide).contains("expected fp16"));
    let mut circle = linear("main", &weight());
    circle.block.operations.swap(0, 1);
    let y = circle.block.operations[0].outputs[0];
    circle.block.operations[1].inputs[0].1 = vec![Arg::Var(y)];
    circle.block.operations[0].inputs[0].1 = vec![Arg::Var(circle.block.operations[1].outputs[0])];
    assert!(refused(circle).contains("before it is defined"));
}

/// A copy of a package in which one file can be replaced.
struct Copy {
    dir: tempfile::TempDir,
}

impl Copy {
    fn of(name: &str) -> Copy {
        let dir = tempfile::tempdir().unwrap();
        let from = data(name);
        for (path, bytes) in files(&from) {
            let to = dir.path().join(path.strip_prefix(&from).unwrap());
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::write(to, bytes).unwrap();
        }
        Copy { dir }
    }

    fn with(&self, file: &str, bytes: &[u8]) -> crate::Result<Package> {
        fs::write(self.dir.path().join(file), bytes).unwrap();
        Package::read(self.dir.path())
    }

    /// Reads the package with its messages changed.
    fn changed(&self, change: impl FnOnce(&mut mil::Block)) -> String {
        let mut model = model(self.dir.path());
        let function = model.ml_program.as_mut().unwrap().functions.values_mut().next().unwrap();
        change(function.block_specializations.values_mut().next().unwrap());
        self.with(MODEL, &model.encode_to_vec()).unwrap_err().to_string()
    }
}

const MODEL: &str = "Data/com.apple.CoreML/model.mlmodel";
const WEIGHTS: &str = "Data/com.apple.CoreML/weights/weight.bin";

#[test]
fn cut_files_are_refused() {
    for name in PACKAGES {
        for file in [MODEL, WEIGHTS, "Manifest.json"] {
            let copy = Copy::of(name);
            let whole = fs::read(copy.dir.path().join(file)).unwrap();
            for part in 0..50 {
                let error = copy.with(file, &whole[..whole.len() * part / 50]).unwrap_err().to_string();
                assert!(error.contains(Path::new(file).file_name().unwrap().to_str().unwrap()), "{error}");
            }
            assert!(copy.with(file, &whole).is_ok());
        }
    }
}

/// One flipped bit at a time: an error, or a program that can be written.
#[test]
fn flipped_bits_do_no_harm() {
    let copy = Copy::of(PACKAGES[0]);
    let whole = fs::read(copy.dir.path().join(MODEL)).unwrap();
    let out = copy.dir.path().join("out.mlpackage");
    let (mut refused, mut random) = (0, 1u64);
    for _ in 0..400 {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let mut bytes = whole.clone();
        bytes[(random >> 33) as usize % whole.len()] ^= 1 << (random >> 30 & 7);
        match copy.with(MODEL, &bytes) {
            Ok(package) => drop(write(&package, &out)),
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 50, "{refused}");
}

#[test]
fn programs_that_are_not_well_formed_are_refused() {
    let first_use = |block: &mut mil::Block, name: &str| {
        let bindings = block.operations.iter_mut().flat_map(|op| op.inputs.values_mut());
        let mut names = bindings.flat_map(|a| &mut a.arguments).filter_map(|b| b.binding.as_mut());
        *names.find(|b| matches!(b, Bound::Name(_))).unwrap() = Bound::Name(name.to_owned());
    };
    let fresh = || Copy::of(PACKAGES[0]);
    assert!(fresh().changed(|b| first_use(b, "nobody")).contains("uses `nobody`, which is not defined"));
    let circle = fresh().changed(|b| {
        let last = b.outputs[0].clone();
        first_use(b, &last);
    });
    assert!(circle.contains("before it is defined") && circle.contains("hint"), "{circle}");
    let twice = fresh().changed(|b| b.operations[1].outputs = b.operations[0].outputs.clone());
    assert!(twice.contains("is defined twice"), "{twice}");
    let far = fresh().changed(|b| {
        each_value(b, &mut |v| {
            if let Some(Place::BlobFile(place)) = &mut v.value {
                place.offset = 1 << 40;
            }
        })
    });
    assert!(far.contains("weight.bin") && far.contains("the file has"), "{far}");
    let escape = fresh().changed(|b| {
        each_value(b, &mut |v| {
            if let Some(Place::BlobFile(place)) = &mut v.value {
                place.file_name = "@model_path/../../../secret".into();
            }
        })
    });
    assert!(escape.contains("expected one below @model_path/"), "{escape}");
}

#[test]
fn unknown_operations_are_kept() {
    let copy = Copy::of(PACKAGES[0]);
    let mut message = model(copy.dir.path());
    let program = message.ml_program.as_mut().unwrap();
    for block in program.functions.values_mut().flat_map(|f| f.block_specializations.values_mut()) {
        block.operations.iter_mut().filter(|op| op.r#type == "linear").for_each(|op| op.r#type = "novelty".into());
    }
    let package = copy.with(MODEL, &message.encode_to_vec()).unwrap();
    let operation = package.program.functions[0].block.operations.iter().find(|op| op.op_name() == "novelty").unwrap();
    assert!(operation.op().is_err());
    let out = copy.dir.path().join("out.mlpackage");
    write(&package, &out).unwrap();
    assert_eq!(content(&out), content(copy.dir.path()));
}

#[test]
fn files_beside_the_model_are_kept() {
    let copy = Copy::of(PACKAGES[0]);
    let package = copy.dir.path();
    fs::write(package.join("Data/com.apple.CoreML/Metadata.json"), "{}").unwrap();
    let manifest = fs::read_to_string(package.join("Manifest.json")).unwrap();
    let item = r#""itemInfoEntries": {
        "0A8B": {
            "author": "com.apple.CoreML",
            "description": "CoreML Model Metadata",
            "name": "Metadata.json",
            "path": "com.apple.CoreML/Metadata.json"
        },"#;
    fs::write(package.join("Manifest.json"), manifest.replace("\"itemInfoEntries\": {", item)).unwrap();
    let out = package.join("out.mlpackage");
    write(&Package::read(package).unwrap(), &out).unwrap();
    assert_eq!(fs::read(out.join("Data/com.apple.CoreML/Metadata.json")).unwrap(), b"{}");
    assert_eq!(Manifest::read(&out).unwrap().extras(&out).unwrap().len(), 1);
}
