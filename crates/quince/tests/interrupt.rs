//! Ctrl-C while a model is converted: the exit status says so, and nothing is left.
#![cfg(unix)]

use quince_checkpoint::write_safetensors;
use quince_tensor::Tensor;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const CONFIG: &str = r#"{ "model_type": "llama", "vocab_size": 65536, "hidden_size": 128, "intermediate_size": 128,
    "num_hidden_layers": 1, "num_attention_heads": 4, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": true }"#;

/// A model whose 8-bit tables take seconds to find: all its values are different.
fn write_model(directory: &Path) {
    let mut state = 1u64;
    let mut value = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    let mut tensors = vec![("model.embed_tokens.weight".to_string(), vec![65536, 128])];
    for name in ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"] {
        tensors.push((format!("model.layers.0.{name}.weight"), vec![128, 128]));
    }
    for name in ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"] {
        tensors.push((format!("model.layers.0.{name}.weight"), vec![128, 128]));
    }
    for name in ["layers.0.input_layernorm", "layers.0.post_attention_layernorm", "norm"] {
        tensors.push((format!("model.{name}.weight"), vec![128]));
    }
    let tensors: Vec<(String, Tensor)> = tensors
        .into_iter()
        .map(|(name, shape)| {
            let values: Vec<f32> = (0..shape.iter().product()).map(|_| value()).collect();
            (name, Tensor::from_vec(shape, values).unwrap())
        })
        .collect();
    let tensors: Vec<(&str, &Tensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    fs::write(directory.join("config.json"), CONFIG).unwrap();
    write_safetensors(&mut File::create(directory.join("model.safetensors")).unwrap(), &tensors).unwrap();
}

fn names(directory: &Path) -> Vec<String> {
    fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn a_conversion_that_is_interrupted_leaves_nothing() {
    let (model, output) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write_model(model.path());
    let mut child = Command::new(env!("CARGO_BIN_EXE_quince"))
        .args(["convert", "--wbits", "8", "--palett-group-size", "8"])
        .arg(model.path())
        .arg("-o")
        .arg(output.path().join("out.bundle"))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while names(output.path()).is_empty() && start.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(names(output.path()), [".out.bundle.unfinished"], "the conversion did not begin, or is over already");
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(names(output.path()), Vec::<String>::new());
}
