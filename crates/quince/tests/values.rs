//! The values within a program: traced, rounded to float16, compared between packages. Small programs whose values are
//! known, and the bundled model.

#[path = "../src/npz.rs"]
mod npz;

use quince_checkpoint::SafetensorsFile;
use quince_mil::{Builder, DType, Flexibility, Function, Opset, Program, Value, ValueType};
use quince_mlpackage::Package;
use quince_tensor::Tensor;
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.at(name).to_string_lossy().into_owned()
    }

    fn arrays(&self, name: &str, arrays: &[(&str, Tensor)]) -> String {
        let arrays: BTreeMap<String, Tensor> = arrays.iter().map(|(n, t)| (n.to_string(), t.clone())).collect();
        npz::write(File::create(self.at(name)).unwrap(), &arrays).unwrap();
        self.text(name)
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Runs the program; gives the exit status and what it printed.
fn quince(args: &[&str]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_quince")).args(args).current_dir(root()).output().unwrap();
    let (text, errors) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr).into_owned());
    let status = output.status.code().unwrap();
    assert!(status == 0 || errors.is_empty(), "{args:?}: {errors}");
    (status, text)
}

fn json(args: &[&str], status: i32) -> Json {
    let (found, text) = quince(args);
    assert_eq!(found, status, "{text}");
    serde_json::from_str(&text).unwrap()
}

fn read(path: &Path) -> BTreeMap<String, Tensor> {
    npz::read(File::open(path).unwrap()).unwrap()
}

/// h = x · wᵀ, squares = h · h, y = squares + b, in float16.
fn program(weight: [f32; 4], bias: f32) -> Program {
    let mut b = Builder::new(Function::new("main", Opset::CoreML8));
    let x = b.input("x", ValueType::tensor(DType::F16, &[1, 2]), Flexibility::Fixed);
    let half = |shape: &[usize], values: &[f32]| -> Value {
        Tensor::from_vec(shape, values.to_vec()).unwrap().cast(DType::F16).unwrap().into()
    };
    let weight = b.constant("w", half(&[2, 2], &weight));
    let zeros = b.constant("zeros", half(&[2], &[0.0; 2]));
    let h = b.op("linear", "h", &[("x", x.into()), ("weight", weight.into()), ("bias", zeros.into())]).unwrap();
    let squares = b.op("mul", "squares", &[("x", h.into()), ("y", h.into())]).unwrap();
    let bias = b.constant("b", half(&[2], &[bias; 2]));
    let y = b.op("add", "y", &[("x", squares.into()), ("y", bias.into())]).unwrap();
    Program { functions: vec![b.finish(vec![y])], ..Program::default() }
}

fn package(place: &Place, name: &str, program: Program) -> String {
    Package::new(program).write(&place.at(name), &mut |_| Ok(())).unwrap();
    place.text(name)
}

#[test]
fn a_trace_has_every_value_and_float16_says_which_operation_overflows() {
    let place = Place::new();
    let package = package(&place, "a.mlpackage", program([1.0, 2.0, 100.0, 200.0], 0.5));
    let inputs = place.arrays("in.npz", &[("x", Tensor::from_vec([1, 2], vec![1f32, 1.0]).unwrap())]);
    let call = format!("main:{inputs}");
    let (out, trace) = (place.text("out"), place.text("trace"));
    let (status, text) = quince(&["-q", "predict", &package, "--call", &call, "--outputs", &out, "--trace", &trace]);
    assert_eq!((status, text.as_str()), (0, ""));
    let values = read(&place.at("trace/0.npz"));
    let expected = [("x", [1.0, 1.0]), ("h", [3.0, 300.0]), ("squares", [9.0, 90000.0]), ("y", [9.5, 90000.5])];
    assert_eq!(values.len(), expected.len(), "{values:?}");
    for (name, expected) in expected {
        assert_eq!(values[name].to_f32().unwrap(), expected, "{name}");
    }
    // The output is of float16, which has no 90000.
    assert_eq!(read(&place.at("out/0.npz"))["y"].to_f32().unwrap(), [9.5, f32::INFINITY]);
    assert_eq!(std::fs::read_dir(place.at("trace")).unwrap().count(), 1, "nothing unfinished is left");

    let strict = ["-q", "predict", &package, "--call", &call, "--precision", "fp16-strict", "--outputs"];
    let found = json(&[&strict[..], &[&place.text("strict"), "--json"]].concat(), 0);
    let findings = found["fp16"]["findings"].as_array().unwrap();
    let names: Vec<&str> = findings.iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["squares"]);
    assert_eq!(
        (&findings[0]["type"], &findings[0]["overflowed"], &findings[0]["call"]),
        (&"mul".into(), &1.into(), &0.into())
    );
    let (_, text) = quince(&[&strict[..], &[&place.text("table")]].concat());
    assert!(text.contains("the first overflow is in `squares` (mul) of main, call 0"), "{text}");
}

#[test]
fn a_changed_constant_is_found_at_the_operation_that_uses_it() {
    let place = Place::new();
    let weight = [1.0, 2.0, 3.0, 4.0];
    let same = package(&place, "same.mlpackage", program(weight, 0.5));
    let bias = package(&place, "bias.mlpackage", program(weight, 0.75));
    let other = package(&place, "other.mlpackage", program([1.0, 2.0, 3.0, 5.0], 0.5));

    let found = json(&["diff", &same, &same, "--json"], 0);
    assert_eq!((&found["calls"][0]["equal"], &found["calls"][0]["divergence"]), (&true.into(), &Json::Null));
    let inputs = place.arrays("in.npz", &[("x", Tensor::from_vec([1, 2], vec![1f32, 1.0]).unwrap())]);
    let call = format!("main:{inputs}");

    let found = json(&["diff", &same, &bias, "--call", &call, "--tolerance", "0.001", "--json"], 1);
    let divergence = &found["calls"][0]["divergence"];
    assert_eq!((&divergence["name"], &divergence["type"]), (&"y".into(), &"add".into()));
    assert_eq!(
        (&divergence["inputs"][0]["name"], &divergence["inputs"][0]["relative"]),
        (&"squares".into(), &0.0.into())
    );
    assert_eq!(divergence["constants"][0], "y (`b`): 2 of 2 elements differ, by up to 0.250000");

    let (status, text) = quince(&["diff", &same, &other, "--call", &call, "--summary"]);
    // x = [1, 1]: h = [3, 7] and [3, 8].
    let expected = "operations: 6 in A, 6 in B; functions of both: main\n\ncall 0, main:\n\
        4 values compared; 0 only in A, 0 only in B\nfirst difference: `h` (linear), relative 1.43e-1\n\
        FIRST DIVERGENCE: `h` (linear), relative 1.43e-1, more than 0.01\n\
        \x20 its input `x` agrees: relative 0\n\
        \x20 its constant weight (`w`): 1 of 4 elements differ, by up to 1.000000\n";
    assert_eq!((status, text.as_str()), (1, expected));
}

/// The bundled model: what is traced is what the checkpoint and the outputs say; float16 suits it; packages with the
/// cache as state and as inputs agree value by value, and 4-bit weights part where the first of them is used.
#[test]
fn the_bundled_model_is_traced_rounded_and_compared() {
    let place = Place::new();
    let convert = |name: &str, options: &[&str]| {
        let base = ["--quiet", "convert", "models/tiny-llama", "--context", "32", "--prefill-length", "8", "-o"];
        quince(&[&base[..], &[&place.text(name)], options].concat());
        place.text(name)
    };
    let state = convert("state.mlpackage", &[]);
    let io = convert("io.mlpackage", &["--kv-cache", "io"]);
    let ids: Vec<i32> = (0..8).map(|i| 7 * i + 1).collect();
    let prompt =
        [("input_ids", Tensor::from_vec([1, 8], ids.clone()).unwrap()), ("position", Tensor::vector(vec![0i32]))];
    let token =
        [("input_ids", Tensor::from_vec([1, 1], vec![9i32]).unwrap()), ("position", Tensor::vector(vec![8i32]))];
    let calls =
        [format!("init:{}", place.arrays("p.npz", &prompt)), format!("decode:{}", place.arrays("t.npz", &token))];

    let base = ["-q", "predict", &state, "--call", &calls[0], "--call", &calls[1], "--outputs"];
    quince(&[&base[..], &[&place.text("out"), "--trace", &place.text("trace")]].concat());
    let (values, outputs) = (read(&place.at("trace/0.npz")), read(&place.at("out/0.npz")));
    let table = SafetensorsFile::open(&root().join("models/tiny-llama/model.safetensors")).unwrap();
    let table = table.tensor("model.embed_tokens.weight").unwrap().cast(DType::F16).unwrap().to_f32().unwrap();
    let rows: Vec<f32> = ids.iter().flat_map(|&id| table[id as usize * 128..][..128].to_vec()).collect();
    assert_eq!(values["model_embed_tokens"].to_f32().unwrap(), rows);
    assert!(values["logits"].cast(DType::F16).unwrap().same(&outputs["logits"]));
    assert!(values["kv_cache.before"].to_f32().unwrap().iter().all(|v| *v == 0.0));
    let after = &values["kv_cache.after"];
    assert!(after.same(&read(&place.at("trace/1.npz"))["kv_cache.before"]));
    assert!(after.to_f32().unwrap().iter().any(|v| *v != 0.0));

    let found = json(&[&base[..], &[&place.text("strict"), "--precision", "fp16-strict", "--json"]].concat(), 0);
    let (overflowed, nan) = (&found["fp16"]["overflowed"], &found["fp16"]["nan"]);
    assert_eq!((overflowed, nan), (&0.into(), &0.into()), "{found}");

    for given in [&[][..], &["--call", &calls[0], "--call", &calls[1]]] {
        let found = json(&[&["diff", &state, &io, "--json"][..], given].concat(), 0);
        for call in found["calls"].as_array().unwrap() {
            assert!(call["values"].as_array().unwrap().iter().any(|value| value["name"] == "logits"));
        }
    }
    let palettized = convert("pal.mlpackage", &["--wbits", "4"]);
    let found = json(&["diff", &state, &palettized, "--json"], 1);
    let divergence = &found["calls"][0]["divergence"];
    assert_eq!(divergence["name"], "model_embed_tokens", "{divergence}");
    let expected = "x (`model_embed_tokens_weight`): found a constexpr_lut_to_dense, and a const in the first program";
    assert_eq!(divergence["constants"][0], expected);
}
