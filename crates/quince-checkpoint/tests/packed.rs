//! Weights in parts: MLX, MXFP4, float8.

use quince_checkpoint::{Checkpoint, SafetensorsFile, write_safetensors};
use quince_tensor::{Bytes, DType, Tensor, bf16, f16};
use std::path::Path;
use tempfile::TempDir;

fn vectors() -> SafetensorsFile {
    SafetensorsFile::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/mlx_vectors.safetensors")).unwrap()
}

fn directory(config: &str, tensors: &[(&str, &Tensor)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = Vec::new();
    write_safetensors(&mut bytes, tensors).unwrap();
    std::fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
    std::fs::write(dir.path().join("config.json"), config).unwrap();
    dir
}

fn refusal(config: &str, tensors: &[(&str, &Tensor)]) -> String {
    Checkpoint::open(directory(config, tensors).path()).err().unwrap().to_string()
}

/// A weight `a` of one of MLX's vectors.
fn mlx(vector: &str, config: &str) -> TempDir {
    let vectors = vectors();
    let part = |name: &str| vectors.tensor(&format!("{vector}.{name}")).ok();
    let parts = [("a.weight", part("q")), ("a.scales", part("scales")), ("a.biases", part("biases"))];
    let parts: Vec<(&str, Tensor)> = parts.into_iter().filter_map(|(name, part)| Some((name, part?))).collect();
    let parts: Vec<(&str, &Tensor)> = parts.iter().map(|(name, part)| (*name, part)).collect();
    directory(config, &parts)
}

/// Witness: what MLX itself decodes.
#[test]
fn values_are_those_of_mlx_to_the_last_bit() {
    let vectors = vectors();
    let mut checked = 0;
    for bits in [2, 3, 4, 5, 6, 8] {
        for group in [32, 64, 128] {
            let vector = format!("affine.f32.b{bits}.g{group}");
            // The object for the module wins over what is said for all.
            let config = format!(
                r#"{{"quantization": {{"bits": 4, "group_size": 16, "a": {{"bits": {bits}, "group_size": {group}}}}}}}"#
            );
            let dir = mlx(&vector, &config);
            let checkpoint = Checkpoint::open(dir.path()).unwrap();
            let weight = checkpoint.weight_with_shape("a.weight", &[8, 256]).unwrap();
            let (found, expected) = (weight.load().unwrap(), vectors.tensor(&format!("{vector}.dequant")).unwrap());
            assert_eq!(**found.bytes(), **expected.bytes(), "{vector}");
            assert!(weight.rows(2..5).unwrap().same(&found.rows(2..5).unwrap()), "{vector}");
            checked += 1;
        }
    }
    for mode in ["mxfp4", "mxfp8", "nvfp4"] {
        let dir = mlx(mode, &format!(r#"{{"quantization": {{"mode": "{mode}"}}}}"#));
        let found = Checkpoint::open(dir.path()).unwrap().weight("a.weight").unwrap().load().unwrap().to_f32().unwrap();
        assert_eq!(found, vectors.tensor(&format!("{mode}.dequant")).unwrap().to_f32().unwrap(), "{mode}");
        checked += 1;
    }
    assert_eq!(checked, 21);
}

/// MLX rounds to the type of the scales after each operation where it decodes; its products, and we, compute in float32.
/// Rounded as there, codes, scales and offsets give its values to the last bit.
#[test]
fn scales_of_sixteen_bits_are_computed_with_in_float32() {
    for (vector, dtype) in [("affine.f16.b4.g64", DType::F16), ("affine.bf16.b8.g64", DType::BF16)] {
        let bits = if vector.contains("b8") { 8 } else { 4 };
        let dir = mlx(vector, &format!(r#"{{"quantization": {{"bits": {bits}, "group_size": 64}}}}"#));
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let found = checkpoint.weight("a.weight").unwrap().load().unwrap().to_f32().unwrap();
        let data = checkpoint.exact("a.weight").unwrap().data.load().unwrap().to_f32().unwrap();
        let part = |name: &str| vectors().tensor(&format!("{vector}.{name}")).unwrap().to_f32().unwrap();
        let (scales, biases, expected) = (part("scales"), part("biases"), part("dequant"));
        let round = |value: f32| match dtype {
            DType::F16 => f16::from_f32(value).to_f32(),
            _ => bf16::from_f32(value).to_f32(),
        };
        for (i, code) in data.iter().enumerate() {
            assert_eq!(found[i], code * scales[i / 64] + biases[i / 64], "{vector}");
            assert_eq!(round(round(code * scales[i / 64]) + biases[i / 64]), expected[i], "{vector}");
        }
    }
}

#[test]
fn parts_that_do_not_go_together_are_named() {
    let dir = mlx("affine.f32.b4.g64", r#"{"quantization": {"bits": 4, "group_size": 32}}"#);
    let error = Checkpoint::open(dir.path()).err().unwrap().to_string();
    assert!(error.contains("expected floats [8, 8] for `a.weight`"), "{error}");
    let dir = mlx("affine.f32.b4.g64", r#"{"quantization": {"bits": 7, "group_size": 64}}"#);
    let error = Checkpoint::open(dir.path()).err().unwrap().to_string();
    assert!(error.contains("key `quantization`: found 7 bits in groups of 64 for `affine`"), "{error}");
    let dir = mlx("affine.f32.b4.g64", r#"{"quantization": {"mode": "fp3"}}"#);
    let error = Checkpoint::open(dir.path()).err().unwrap().to_string();
    assert!(error.contains("mode: found `fp3`, expected one of affine, mxfp4"), "{error}");
}

#[test]
fn experts_of_gpt_oss_are_decoded_in_the_shape_of_transformers() {
    // One expert, two rows of one block; codes 0 to 15 and again, low halves first.
    let block: Vec<u8> = (0..16u8).map(|i| (2 * i % 16) | ((2 * i + 1) % 16) << 4).collect();
    let blocks = Tensor::new(DType::U8, [1, 2, 1, 16], Bytes::from_vec([block.clone(), block].concat())).unwrap();
    let scales = Tensor::from_vec([1, 2, 1], vec![127u8, 128]).unwrap();
    let config = r#"{"quantization_config": {"quant_method": "mxfp4"}}"#;
    let parts = [("e.down_proj_blocks", &blocks), ("e.down_proj_scales", &scales)];
    let checkpoint = Checkpoint::open(directory(config, &parts).path()).unwrap();
    let weight = checkpoint.weight_with_shape("e.down_proj", &[1, 32, 2]).unwrap().load().unwrap().to_f32().unwrap();
    let levels = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    for (code, pair) in weight.chunks(2).enumerate() {
        let value = levels[code % 8] * if code % 16 < 8 { 1.0 } else { -1.0 };
        assert_eq!(pair, [value, 2.0 * value]);
    }
    let error = refusal(config, &parts[..1]);
    assert!(error.contains("tensor `e.down_proj_blocks`: found blocks without scales"), "{error}");
}

#[test]
fn floats_of_eight_bits_are_multiplied_by_their_scales() {
    // 1.0 is 0x38 in E4M3.
    let ones = Tensor::new(DType::F8E4M3FN, [3, 5], Bytes::from_vec(vec![0x38u8; 15])).unwrap();
    let fp8 = |more: &str| format!(r#"{{"quantization_config": {{"quant_method": "fp8"{more}}}}}"#);
    let load = |config: &str, name: &str, scales: &Tensor| {
        let dir = directory(config, &[("a.weight", &ones), (name, scales)]);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let weight = checkpoint.weight_with_shape("a.weight", &[3, 5]).unwrap();
        assert!(weight.rows(1..3).unwrap().same(&weight.load().unwrap().rows(1..3).unwrap()));
        weight.load().unwrap().to_f32().unwrap()
    };
    let blocks = Tensor::from_vec([2, 3], vec![1f32, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
    let found = load(&fp8(r#", "weight_block_size": [2, 2]"#), "a.weight_scale_inv", &blocks);
    assert_eq!(found, [1., 1., 2., 2., 3., 1., 1., 2., 2., 3., 4., 4., 5., 5., 6.]);
    let rows = Tensor::from_vec([3, 1], vec![1f32, 2.0, 3.0]).unwrap();
    assert_eq!(load(&fp8(""), "a.weight_scale", &rows)[4..6], [1.0, 2.0]);
    assert_eq!(load(&fp8(""), "a.weight_scale", &Tensor::vector(vec![7f32])), [7.0; 15]);
    let error = refusal(
        &fp8(r#", "weight_block_size": [2, 2]"#),
        &[("a.weight", &ones), ("a.weight_scale_inv", &Tensor::from_vec([2, 2], vec![1f32; 4]).unwrap())],
    );
    assert!(error.contains("expected scales in blocks of [2, 2] for 3 rows of 5"), "{error}");
}
