//! Converts the bundled model and calls the package, against what transformers computes from the same weights.

#[path = "../src/npz.rs"]
mod npz;

use quince_checkpoint::SafetensorsFile;
use quince_tensor::Tensor;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn quince(args: &[&str]) {
    let output = Command::new(env!("CARGO_BIN_EXE_quince")).args(args).current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn write(path: &Path, arrays: &[(&str, Tensor)]) {
    let arrays: BTreeMap<String, Tensor> = arrays.iter().map(|(name, t)| (name.to_string(), t.clone())).collect();
    npz::write(File::create(path).unwrap(), &arrays).unwrap();
}

fn logits(directory: &Path, call: usize) -> Vec<f32> {
    let arrays = npz::read(File::open(directory.join(format!("{call}.npz"))).unwrap()).unwrap();
    arrays["logits"].to_f32().unwrap()
}

fn farthest(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// A whole prompt without cache; then a chunk of it and two single tokens that share a state; all in float32.
#[test]
fn logits_are_those_of_transformers_with_and_without_cache() {
    let golden = SafetensorsFile::open(&root().join("models/tiny-llama/golden/logits.safetensors")).unwrap();
    let ids = golden.tensor("input_ids_0").unwrap().to_i64().unwrap();
    let expected = golden.tensor("logits_0").unwrap().to_f32().unwrap();
    let vocab = expected.len() / ids.len();
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let text = |name: &str| at(name).to_string_lossy().into_owned();
    let convert = |output: &str, options: &[&str]| {
        let base = ["--quiet", "convert", "models/tiny-llama", "--compute-precision", "float32", "-o"];
        quince(&[&base[..], &[&text(output)], options].concat());
    };

    convert("full.mlpackage", &["--functions", "full"]);
    // int64, as numpy makes them: they become int32.
    write(&at("full.npz"), &[("input_ids", Tensor::from_vec([1, ids.len()], ids.clone()).unwrap())]);
    let call = format!("full:{}", text("full.npz"));
    quince(&["predict", &text("full.mlpackage"), "--call", &call, "--outputs", &text("full")]);
    assert!(farthest(&logits(&at("full"), 0), &expected) <= 1e-4);

    convert("cached.mlpackage", &["--context", "64", "--prefill-length", "8"]);
    let mut calls = Vec::new();
    for (number, (function, start, count)) in [("init", 0, 8), ("decode", 8, 1), ("decode", 9, 1)].iter().enumerate() {
        let part = Tensor::from_vec([1, *count], ids[*start..start + count].to_vec()).unwrap();
        let file = at(&format!("{number}.npz"));
        write(&file, &[("input_ids", part), ("position", Tensor::vector(vec![*start as i64]))]);
        calls.extend(["--call".to_string(), format!("{function}:{}", file.display())]);
    }
    let calls: Vec<&str> = calls.iter().map(String::as_str).collect();
    quince(&[&["predict", &text("cached.mlpackage"), "--outputs", &text("cached")], &calls[..]].concat());
    for (call, token) in [(0, 7), (1, 8), (2, 9)] {
        let row = &expected[token * vocab..(token + 1) * vocab];
        assert!(farthest(&logits(&at("cached"), call), row) <= 1e-4, "token {token}");
    }
}
