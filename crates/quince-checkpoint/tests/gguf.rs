//! GGUF files: what llama.cpp's conversion did is undone, several files are one model, hostile files are errors.

use quince_checkpoint::{Checkpoint, GgufHeader};
use quince_tensor::{DType, Tensor};
use std::path::{Path, PathBuf};

/// A value of metadata, by what it takes in the file.
enum Meta<'a> {
    U32(u32),
    F32(f32),
    Text(&'a str),
    Texts(&'a [&'a str]),
    F32s(&'a [f32]),
}

/// A file of float32 tensors, with shapes as everywhere but in GGUF.
fn file(version: u32, metadata: &[(&str, Meta)], tensors: &[(&str, &[usize], Vec<f32>)]) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    let text = |out: &mut Vec<u8>, text: &str| {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
    };
    out.extend(version.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        text(&mut out, key);
        match value {
            Meta::U32(value) => [4u32.to_le_bytes(), value.to_le_bytes()].iter().for_each(|bytes| out.extend(bytes)),
            Meta::F32(value) => [6u32.to_le_bytes(), value.to_le_bytes()].iter().for_each(|bytes| out.extend(bytes)),
            Meta::Text(value) => {
                out.extend(8u32.to_le_bytes());
                text(&mut out, value);
            }
            Meta::Texts(values) => {
                out.extend([9u32.to_le_bytes(), 8u32.to_le_bytes()].concat());
                out.extend((values.len() as u64).to_le_bytes());
                values.iter().for_each(|value| text(&mut out, value));
            }
            Meta::F32s(values) => {
                out.extend([9u32.to_le_bytes(), 6u32.to_le_bytes()].concat());
                out.extend((values.len() as u64).to_le_bytes());
                values.iter().for_each(|value| out.extend(value.to_le_bytes()));
            }
        }
    }
    let mut offset = 0u64;
    for (name, shape, values) in tensors {
        text(&mut out, name);
        out.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|size| out.extend((*size as u64).to_le_bytes()));
        out.extend(0u32.to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += (values.len() as u64 * 4).next_multiple_of(32);
    }
    for (_, _, values) in tensors {
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }
    out.resize(out.len().next_multiple_of(32), 0);
    out
}

fn counted(shape: &[usize]) -> Vec<f32> {
    (0..shape.iter().product::<usize>()).map(|i| i as f32).collect()
}

/// Metadata that every decoder has: two heads of four elements.
fn decoder<'a>(name: &'a str, keys: &'a [String; 6]) -> Vec<(&'a str, Meta<'a>)> {
    let values = [32, 8, 1, 16, 2, 2].map(Meta::U32);
    let keys = keys.iter().map(String::as_str).zip(values);
    std::iter::once(("general.architecture", Meta::Text(name))).chain(keys).collect()
}

fn keys(name: &str) -> [String; 6] {
    let short = [
        "context_length",
        "embedding_length",
        "block_count",
        "feed_forward_length",
        "attention.head_count",
        "attention.head_count_kv",
    ];
    short.map(|short| format!("{name}.{short}"))
}

/// Opens a file of one architecture with these tensors, and more metadata.
fn opened(name: &str, more: Vec<(&str, Meta)>, tensors: &[(&str, &[usize], Vec<f32>)]) -> Checkpoint {
    let (dir, keys) = (tempfile::tempdir().unwrap(), keys(name));
    let mut metadata = decoder(name, &keys);
    metadata.extend(more);
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, file(3, &metadata, tensors)).unwrap();
    Checkpoint::open(&path).unwrap()
}

fn values(checkpoint: &Checkpoint, name: &str, shape: &[usize]) -> Vec<f32> {
    checkpoint.weight_with_shape(name, shape).unwrap().load().unwrap().to_f32().unwrap()
}

fn error(bytes: &[u8]) -> String {
    GgufHeader::parse(bytes).unwrap_err().to_string()
}

/// Witness: the checkpoint that the file was made from; blocks of four bits are within half a step of it.
#[test]
fn a_quantized_model_has_the_names_the_order_and_the_configuration_of_its_original() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let found = Checkpoint::open(root.join("tests/data/tiny-q4_0.gguf")).unwrap();
    let original = Checkpoint::open(root.join("../../models/tiny-llama")).unwrap();
    assert!(found.names().eq(original.names()));
    for entry in found.tensors() {
        let expected = original.weight_with_shape(entry.name(), entry.shape()).unwrap().load().unwrap();
        let (found, expected) = (entry.weight.load().unwrap().to_f32().unwrap(), expected.to_f32().unwrap());
        let largest = expected.iter().fold(0f32, |most, value| most.max(value.abs()));
        let worst = found.iter().zip(&expected).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
        // A step of a block is an eighth of its largest element.
        assert!(worst <= largest / 8.0, "{}: {worst} of {largest}", entry.name());
    }
    for key in ["model_type", "hidden_size", "num_key_value_heads", "rms_norm_eps", "rope_theta", "tie_word_embeddings"]
    {
        assert_eq!(found.config().get(key), original.config().get(key), "{key}");
    }
    let query = found.tensors().find(|entry| entry.name().ends_with("0.self_attn.q_proj.weight")).unwrap();
    assert_eq!((query.form(), query.byte_len()), ("Q4_0", 128 * 128 / 32 * 18));
    let exact = found.exact(query.name()).unwrap();
    let [data, scale] = [&exact.data, &exact.scale].map(|part| part.load().unwrap().to_f32().unwrap());
    let decoded = query.weight.load().unwrap().to_f32().unwrap();
    assert!(decoded.iter().enumerate().all(|(i, value)| *value == data[i] * scale[i / 32]));
}

#[test]
fn what_conversion_changed_is_put_back() {
    let gemma = opened("gemma", vec![], &[("blk.0.attn_norm.weight", &[2], vec![1.0, 3.0])]);
    assert_eq!(values(&gemma, "model.layers.0.input_layernorm.weight", &[2]), [0.0, 2.0]);

    let gpt2 = opened("gpt2", vec![], &[("blk.0.ffn_up.weight", &[3, 2], counted(&[3, 2]))]);
    assert_eq!(values(&gpt2, "transformer.h.0.mlp.c_fc.weight", &[2, 3]), [0.0, 2.0, 4.0, 1.0, 3.0, 5.0]);
    assert_eq!(gpt2.config().field::<usize>("n_embd").unwrap(), 8);

    // Queries, keys and values of two heads of two elements: by head again.
    let neox = opened("gptneox", vec![], &[("blk.0.attn_qkv.bias", &[12], counted(&[12]))]);
    let name = "gpt_neox.layers.0.attention.query_key_value.bias";
    assert_eq!(values(&neox, name, &[12]), [0., 1., 4., 5., 8., 9., 2., 3., 6., 7., 10., 11.]);

    // Pairs that lie side by side go to the two halves of a head.
    let llama = opened(
        "llama",
        vec![],
        &[("blk.0.attn_q.weight", &[8, 1], counted(&[8])), ("output.weight", &[5, 8], counted(&[5, 8]))],
    );
    let name = "model.layers.0.self_attn.q_proj.weight";
    assert_eq!(values(&llama, name, &[8, 1]), [0., 2., 1., 3., 4., 6., 5., 7.]);
    assert_eq!(llama.weight(name).unwrap().rows(5..7).unwrap().to_f32().unwrap(), [6., 5.]);
    assert_eq!(llama.config().get("tie_word_embeddings"), Some(&false.into()));
}

#[test]
fn experts_come_one_by_one_or_in_turn() {
    let more = ["expert_count", "expert_used_count", "expert_feed_forward_length"].map(|key| format!("qwen3moe.{key}"));
    let more = more.iter().map(|key| (key.as_str(), Meta::U32(2))).collect();
    let tensors: &[(&str, &[usize], Vec<f32>)] = &[("blk.3.ffn_down_exps.weight", &[2, 2, 3], counted(&[2, 2, 3]))];
    let moe = opened("qwen3moe", more, tensors);
    assert_eq!(values(&moe, "model.layers.3.mlp.experts.1.down_proj.weight", &[2, 3]), [6., 7., 8., 9., 10., 11.]);

    let more = ["expert_count", "expert_used_count", "attention.sliding_window"].map(|key| format!("gpt-oss.{key}"));
    let more = more.iter().map(|key| (key.as_str(), Meta::U32(1))).collect();
    let up = counted(&[1, 2, 2]).into_iter().map(|value| value + 10.0).collect();
    let oss = opened(
        "gpt-oss",
        more,
        &[
            ("blk.0.ffn_gate_exps.weight", &[1, 2, 2], counted(&[1, 2, 2])),
            ("blk.0.ffn_up_exps.weight", &[1, 2, 2], up),
            ("blk.0.ffn_gate_exps.bias", &[1, 2], vec![1.0, 2.0]),
            ("blk.0.ffn_up_exps.bias", &[1, 2], vec![3.0, 4.0]),
            ("blk.0.attn_sinks.weight", &[2], vec![5.0, 6.0]),
        ],
    );
    let both = values(&oss, "model.layers.0.mlp.experts.gate_up_proj", &[1, 2, 4]);
    assert_eq!(both, [0., 10., 2., 12., 1., 11., 3., 13.]);
    assert_eq!(values(&oss, "model.layers.0.mlp.experts.gate_up_proj_bias", &[1, 4]), [1., 3., 2., 4.]);
    assert_eq!(values(&oss, "model.layers.0.self_attn.sinks", &[2]), [5., 6.]);
}

#[test]
fn encoders_are_told_apart_by_their_vocabulary() {
    let tokens: &[&str] = &["<s>", "<pad>", "</s>"];
    let tensors: &[(&str, &[usize], Vec<f32>)] = &[("position_embd.weight", &[2, 1], vec![1.0, 2.0])];
    let more =
        || vec![("tokenizer.ggml.tokens", Meta::Texts(tokens)), ("bert.attention.layer_norm_epsilon", Meta::F32(1e-5))];
    let with = |model| more().into_iter().chain([("tokenizer.ggml.model", Meta::Text(model))]).collect();
    let bert = opened("bert", with("bert"), tensors);
    assert_eq!(values(&bert, "embeddings.position_embeddings.weight", &[2, 1]), [1., 2.]);
    let roberta = opened("bert", with("t5"), tensors);
    assert_eq!(values(&roberta, "embeddings.position_embeddings.weight", &[4, 1]), [0., 0., 1., 2.]);
    assert_eq!(roberta.config().model_type().unwrap(), "xlm-roberta");
    assert_eq!(roberta.config().field::<f64>("layer_norm_eps").unwrap(), 1e-5);
}

#[test]
fn special_tokens_of_phi_3_take_the_space_after_them() {
    let added = |architecture| {
        let tokens = Meta::Texts(&["<unk>", "<s>", "</s>", "<|user|>", "a"]);
        let metadata = [
            ("general.architecture", Meta::Text(architecture)),
            ("tokenizer.ggml.model", Meta::Text("llama")),
            ("tokenizer.ggml.tokens", tokens),
            ("tokenizer.ggml.scores", Meta::F32s(&[0.0; 5])),
            ("tokenizer.ggml.token_type", Meta::F32s(&[2.0, 3.0, 4.0, 3.0, 1.0])),
        ];
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vocabulary.gguf");
        std::fs::write(&path, file(3, &metadata, &[])).unwrap();
        let files = quince_checkpoint::gguf_vocabulary(&path).unwrap();
        let tokenizer: serde_json::Value = serde_json::from_str(&files["tokenizer.json"]).unwrap();
        let tokens = tokenizer["added_tokens"].as_array().unwrap().iter();
        tokens.map(|token| token["rstrip"].as_bool().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(added("phi3"), [false, false, true, true]);
    assert_eq!(added("llama"), [false; 4]);
}

/// The parts of a model in a directory; `counts` says what each claims of how many there are.
fn parts(counts: [u32; 2]) -> (tempfile::TempDir, [PathBuf; 2]) {
    let (dir, keys) = (tempfile::tempdir().unwrap(), keys("llama"));
    let paths = [1, 2].map(|n| dir.path().join(format!("m-0000{n}-of-00002.gguf")));
    let tensors = ["output_norm.weight", "output_norm.bias"];
    for (n, path) in paths.iter().enumerate() {
        let mut metadata = if n == 0 { decoder("llama", &keys) } else { Vec::new() };
        metadata.extend([("split.no", Meta::U32(n as u32)), ("split.count", Meta::U32(counts[n]))]);
        std::fs::write(path, file(2, &metadata, &[(tensors[n], &[1], vec![n as f32])])).unwrap();
    }
    (dir, paths)
}

#[test]
fn several_files_are_one_model() {
    let (dir, paths) = parts([2, 2]);
    for path in [dir.path(), &paths[0], &paths[1]] {
        let checkpoint = Checkpoint::open(path).unwrap();
        assert_eq!(values(&checkpoint, "model.norm.bias", &[1]), [1.0]);
        assert_eq!((checkpoint.tensors().count(), checkpoint.sources().len()), (2, 2));
    }
    std::fs::remove_file(&paths[1]).unwrap();
    let error = Checkpoint::open(&paths[0]).err().unwrap().to_string();
    assert!(error.contains("m-00002-of-00002.gguf: cannot open the file"), "{error}");
    assert!(error.ends_with("hint: a part is missing; download it again"), "{error}");
    let (_dir, paths) = parts([2, 3]);
    let error = Checkpoint::open(&paths[0]).err().unwrap().to_string();
    assert!(error.contains("found part 2 of 3, expected part 2 of 2"), "{error}");
}

#[test]
fn headers_that_lie_are_errors() {
    let good = file(
        3,
        &[("general.architecture", Meta::Text("llama"))],
        &[("a", &[4], counted(&[4])), ("b", &[2], counted(&[2]))],
    );
    assert_eq!(GgufHeader::parse(&good).unwrap().tensor_count(), 2);
    // Cut anywhere, it is an error and never a panic.
    for length in 0..good.len() - 31 {
        assert!(GgufHeader::parse(&good[..length]).is_err(), "{length}");
    }
    let with = |offset: usize, bytes: &[u8]| {
        let mut file = good.clone();
        file[offset..offset + bytes.len()].copy_from_slice(bytes);
        error(&file)
    };
    assert!(with(0, b"ggml").contains("expected `GGUF`; hint: this is a file from before GGUF"));
    assert!(with(4, &[1]).contains("found version 1, expected 2 or 3"));
    assert!(with(4, &[0, 0, 0, 3]).contains("found a big-endian file"));
    assert!(with(8, &[255; 8]).contains("tensors, expected at most"));
    assert!(with(16, &[255; 8]).contains("entries of metadata, expected at most"));
    let a = good.iter().rposition(|&byte| byte == b'a').unwrap();
    // After the name: axes, size, type, offset.
    assert!(with(a + 1, &[9]).contains("tensor `a`: found 9 axes, expected at most 4"));
    assert!(with(a + 5, &[255; 8]).contains("larger than memory can address"));
    assert!(with(a + 13, &[31]).contains("found the type Q4_0_4_4, which ggml has withdrawn"));
    assert!(with(a + 13, &[99]).contains("found the type 99, expected one of ggml's"));
    assert!(with(a + 13, &[2]).contains("found rows of 4 elements, expected a multiple of 32 for Q4_0"));
    assert!(with(a + 17, &[1]).contains("tensor `a`: found the offset 1, expected a multiple of 32"));
    assert!(with(a + 17, &[32]).contains("found overlap with"));
    assert!(with(a + 17, &[0, 1]).contains("hint: the file is cut short"));
    assert!(with(good.iter().rposition(|&byte| byte == b'b').unwrap(), b"a").contains("found the tensor `a` twice"));
}

#[test]
fn what_is_no_model_of_ours_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let refused = |metadata: &[(&str, Meta)], tensors: &[(&str, &[usize], Vec<f32>)]| {
        std::fs::write(&path, file(3, metadata, tensors)).unwrap();
        Checkpoint::open(&path).err().unwrap().to_string()
    };
    let mamba = refused(&[("general.architecture", Meta::Text("mamba"))], &[]);
    assert!(mamba.contains("key `general.architecture`: found `mamba`, expected one of llama, qwen2"), "{mamba}");
    let lora = refused(&[("general.architecture", Meta::Text("llama")), ("general.type", Meta::Text("adapter"))], &[]);
    assert!(lora.contains("found a file of type `adapter`, expected a model"), "{lora}");
    let keys = keys("llama");
    let odd = refused(&decoder("llama", &keys), &[("blk.0.ssm_a", &[1], vec![0.0])]);
    assert!(odd.contains("tensor `blk.0.ssm_a`: found a tensor that `llama` does not have"), "{odd}");
    let empty = refused(&decoder("llama", &keys), &[]);
    assert!(empty.contains("found a checkpoint without tensors"), "{empty}");
}

/// The file's own type is kept where nothing has to be decoded.
#[test]
fn plain_tensors_are_not_copied() {
    let norm =
        opened("llama", vec![], &[("output_norm.weight", &[2], vec![1.0, 2.0])]).weight("model.norm.weight").unwrap();
    let tensor: Tensor = norm.load().unwrap();
    assert!(tensor.dtype() == DType::F32 && tensor.bytes().is_mapped());
}
