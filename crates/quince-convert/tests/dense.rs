//! The layers that sentence-transformers puts after the pooling.

#[expect(dead_code, reason = "other tests use the rest of it")]
mod support;

use quince_checkpoint::{Checkpoint, write_safetensors};
use quince_convert::graph::{Bias, Weights};
use quince_convert::lower::{Grouping, TARGETS};
use quince_convert::{Dense, DenseActivation, Embedding, MODELS, MOST_DENSE, Pooling, Reading, VectorLength};
use quince_mil::Tensor;
use std::fs::{self, File};
use std::path::Path;
use support::{RandomWeights, encoder, read, run_encode};

const PLAIN: Embedding = Embedding::MEAN;

fn embeddings(embedding: Embedding) -> Vec<Vec<f32>> {
    let model = MODELS.iter().find(|model| model.model_types.contains(&"bert")).unwrap();
    let program = encoder(&read(model, Reading::Embedding(embedding)).unwrap(), &TARGETS[0], Grouping::default());
    let found = run_encode(&program, &[&[1, 2, 3], &[4, 5]], 4);
    found.to_f32().unwrap().chunks_exact(found.shape()[1]).map(<[f32]>::to_vec).collect()
}

#[test]
fn a_dense_layer_comes_between_pooling_and_length() {
    let layer = Dense { module: 2, outputs: 5, bias: Bias::Present, activation: DenseActivation::Tanh };
    let last = Dense { module: 3, outputs: 3, bias: Bias::Absent, activation: DenseActivation::Identity };
    let mut dense = [None; MOST_DENSE];
    (dense[0], dense[1]) = (Some(layer), Some(last));
    let found = embeddings(Embedding { dense, ..PLAIN });
    let normalized = embeddings(Embedding { dense, length: VectorLength::One, ..PLAIN });
    for ((pooled, found), normalized) in embeddings(PLAIN).iter().zip(&found).zip(&normalized) {
        let weights =
            |name: &str, shape: &[usize]| RandomWeights.weight(name, shape).unwrap().load().unwrap().to_f32().unwrap();
        let (first, bias) =
            (weights("2_Dense.linear.weight", &[5, pooled.len()]), weights("2_Dense.linear.bias", &[5]));
        let product = |weight: &[f32], x: &[f32]| -> Vec<f32> {
            weight.chunks_exact(x.len()).map(|row| row.iter().zip(x).map(|(a, b)| a * b).sum()).collect()
        };
        let middle: Vec<f32> = product(&first, pooled).iter().zip(&bias).map(|(x, b)| (x + b).tanh()).collect();
        let expected = product(&weights("3_Dense.linear.weight", &[3, 5]), &middle);
        let length = expected.iter().map(|x| x * x).sum::<f32>().sqrt();
        for ((expected, found), normalized) in expected.iter().zip(found).zip(normalized) {
            assert!((expected - found).abs() < 1e-5, "{expected} {found}");
            assert!((expected / length - normalized).abs() < 1e-5, "{expected} {normalized}");
        }
    }
}

fn write(directory: &Path, config: &str, tensors: &[(&str, Tensor)]) {
    fs::create_dir_all(directory).unwrap();
    fs::write(directory.join("config.json"), config).unwrap();
    let tensors: Vec<(&str, &Tensor)> = tensors.iter().map(|(name, tensor)| (*name, tensor)).collect();
    write_safetensors(&mut File::create(directory.join("model.safetensors")).unwrap(), &tensors).unwrap();
}

#[test]
fn modules_are_read_with_their_weights() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let tensor = |shape: &[usize]| Tensor::from_vec(shape, vec![0.5f32; shape.iter().product()]).unwrap();
    write(path, r#"{"model_type": "bert"}"#, &[("embeddings.weight", tensor(&[2, 4]))]);
    write(&path.join("1_Pooling"), r#"{"pooling_mode_cls_token": true}"#, &[]);
    let config = r#"{"in_features": 4, "out_features": 3, "bias": true,
        "activation_function": "torch.nn.modules.activation.Tanh"}"#;
    write(&path.join("2_Dense"), config, &[("linear.weight", tensor(&[3, 4])), ("linear.bias", tensor(&[3]))]);
    let modules = |kinds: &[(&str, &str)]| {
        let module = |(kind, path): &(&str, &str)| {
            format!(r#"{{"path": "{path}", "type": "sentence_transformers.models.{kind}"}}"#)
        };
        let text = format!("[{}]", kinds.iter().map(module).collect::<Vec<_>>().join(","));
        fs::write(path.join("modules.json"), text).unwrap();
        Embedding::of_checkpoint(&Checkpoint::open(path).unwrap())
    };
    let found = modules(&[("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense"), ("Normalize", "3_")]);
    let layer = Dense { module: 2, outputs: 3, bias: Bias::Present, activation: DenseActivation::Tanh };
    let mut dense = [None; MOST_DENSE];
    dense[0] = Some(layer);
    assert_eq!(
        found.unwrap(),
        Embedding { pooling: Pooling::Cls, dense, length: VectorLength::One, ..Embedding::MEAN }
    );
    let checkpoint = Checkpoint::open(path).unwrap();
    assert_eq!(checkpoint.weight_with_shape("2_Dense.linear.weight", &[3, 4]).unwrap().shape(), [3, 4]);
    let error = modules(&[("Normalize", ""), ("Dense", "2_Dense")]).unwrap_err().to_string();
    assert!(
        error.contains("found the module `Dense`, expected Transformer, Pooling, Dense and, last, Normalize"),
        "{error}"
    );
}
