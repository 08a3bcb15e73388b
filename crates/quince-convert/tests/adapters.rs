//! Adapters of PEFT: merged ones give the golden logits, kept ones are merged ones, and what does not fit is refused.

#[expect(dead_code, reason = "other tests use the rest of it")]
mod support;

use quince_checkpoint::{Adapted, Adapter, Checkpoint, Mode, SafetensorsFile, Weighted, write_safetensors};
use quince_convert::lower::Precision;
use quince_convert::{Adapters, Embedding, FunctionName, Options, convert, convert_with, semantic};
use quince_mil::eval::{self, Tensors};
use quince_mil::{Program, Tensor};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use support::{close, run_full};

/// Adapters of `tests/golden/adapters`, with the models of `tests/golden/arch` that they belong to.
const FIXTURES: &[(&str, &str)] = &[
    ("gpt2-conv1d-embed-head", "gpt2"),
    ("llama-dora", "llama-gqa-untied"),
    ("llama-lora-bias", "qwen2-bias"),
    ("llama-modules-to-save", "llama-gqa-untied"),
    ("llama-rslora-all", "llama-gqa-untied"),
];

fn golden(kind: &str, name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(kind).join(name)
}

fn open(name: &str, base: &str) -> (Adapter, Checkpoint) {
    (Adapter::open(golden("adapters", name)).unwrap(), Checkpoint::open(golden("arch", base)).unwrap())
}

fn whole(adapter: &Adapter) -> Weighted<'_> {
    Weighted { adapter, strength: 1.0 }
}

fn options(functions: &[FunctionName]) -> Options {
    let precision = Precision::Float32;
    Options { functions: functions.to_vec(), context: Some(32), precision, ..Options::default() }
}

/// The logits of a function without a cache.
fn logits(program: &Program, function: &str, ids: &[i64]) -> Tensor {
    let ids = Tensor::from_i64(quince_mil::DType::I32, [1, ids.len()], ids).unwrap();
    let inputs = Tensors::from([("input_ids".to_owned(), ids)]);
    eval::run(program.function(function).unwrap(), &inputs, &mut Tensors::new()).unwrap().remove("logits").unwrap()
}

/// The identities of the weights of a function.
fn weights(program: &Program, function: &str) -> Vec<(usize, usize)> {
    let function = program.functions.iter().find(|found| found.name == function).unwrap();
    let operations = function.block.operations.iter();
    let weights = operations.filter_map(|operation| match operation.constant()? {
        quince_mil::Value::Weight(weight) => Some((weight.id(), weight.byte_len())),
        _ => None,
    });
    weights.collect()
}

#[test]
fn merged_adapters_give_the_golden_logits_and_kept_ones_too() {
    for (name, base) in FIXTURES {
        let (adapter, original) = open(name, base);
        let file = SafetensorsFile::open(&golden("adapters", name).join("golden.safetensors")).unwrap();
        let ids = file.tensor("input_ids").unwrap().to_i64().unwrap();
        let expected = file.tensor("logits").unwrap();
        let mut merged = original.clone();
        merged.merge(&[whole(&adapter)]).unwrap();
        close(&run_full(&semantic(&merged).unwrap().program, &ids), &expected, 1e-4, name);
        let program = convert(&merged, &options(&[FunctionName::Full])).unwrap().program;
        close(&run_full(&program, &ids), &expected, 1e-4, name);
        let kept = Adapted::new(&original, &[whole(&adapter)], Mode::Keep).unwrap();
        let adapters = Adapters { kept: vec![("a".to_owned(), kept)], ..Adapters::default() };
        let program = convert_with(&original, &adapters, &options(&[FunctionName::Full])).unwrap().program;
        close(&logits(&program, "full_a", &ids), &expected, 1e-4, name);
        let untouched = convert(&original, &options(&[FunctionName::Full])).unwrap().program;
        close(&logits(&program, "full", &ids), &run_full(&untouched, &ids), 0.0, name);
    }
}

/// Functions of adapters use the weights of the model and some of their own, which take no more than the adapter's file.
#[test]
fn kept_adapters_share_every_weight_that_they_do_not_change() {
    for (name, base) in FIXTURES {
        let (adapter, original) = open(name, base);
        let kept = Adapted::new(&original, &[whole(&adapter)], Mode::Keep).unwrap();
        let adapters = Adapters { kept: vec![("a".to_owned(), kept)], ..Adapters::default() };
        let functions = [FunctionName::Init, FunctionName::Decode];
        let program = convert_with(&original, &adapters, &options(&functions)).unwrap().program;
        let names: Vec<&str> = program.functions.iter().map(|function| function.name.as_str()).collect();
        assert_eq!(names, ["init", "decode", "init_a", "decode_a"]);
        let shared: HashSet<usize> = weights(&program, "decode").into_iter().map(|(id, _)| id).collect();
        let own: Vec<(usize, usize)> =
            weights(&program, "decode_a").into_iter().filter(|(id, _)| !shared.contains(id)).collect();
        let bytes: usize = own.iter().map(|(_, bytes)| bytes).sum();
        assert!(!own.is_empty() && bytes as u64 <= adapter.byte_len(), "{name}: {bytes} of {}", adapter.byte_len());
        let init: HashSet<usize> = weights(&program, "init_a").into_iter().map(|(id, _)| id).collect();
        assert!(own.iter().all(|(id, _)| init.contains(id)), "{name}");
    }
}

/// Two adapters one after the other, each in part: the order in which DoRA meets other changes matters, and is the same.
#[test]
fn stacks_in_part_are_the_same_kept_and_merged() {
    let (dora, original) = open("llama-dora", "llama-gqa-untied");
    let rslora = open("llama-rslora-all", "llama-gqa-untied").0;
    let saved = open("llama-modules-to-save", "llama-gqa-untied").0;
    let stack = [
        Weighted { adapter: &rslora, strength: 0.5 },
        Weighted { adapter: &dora, strength: 0.75 },
        Weighted { adapter: &saved, strength: 0.25 },
    ];
    let ids = [1, 17, 300, 42, 5];
    let mut merged = original.clone();
    merged.merge(&stack).unwrap();
    let program = convert(&merged, &options(&[FunctionName::Full])).unwrap().program;
    let expected = run_full(&program, &ids);
    let kept = Adapted::new(&original, &stack, Mode::Keep).unwrap();
    let adapters = Adapters { kept: vec![("a".to_owned(), kept)], ..Adapters::default() };
    let program = convert_with(&original, &adapters, &options(&[FunctionName::Full])).unwrap().program;
    close(&logits(&program, "full_a", &ids), &expected, 1e-4, "stack");
}

/// Without tokens of an instruction, LLM2Vec is the mean of hidden states that see each other; with them, the text sees
/// them and they are left out.
#[test]
fn llm2vec_sees_all_and_pools_the_text_alone() {
    let (adapter, original) = open("llama-rslora-all", "llama-gqa-untied");
    let encoder = |mode| {
        let adapted = Adapted::new(&original, &[whole(&adapter)], mode).unwrap();
        let embedding = Embedding::of_llm2vec(Path::new("nowhere")).unwrap();
        let adapters = Adapters { encoder: Some((adapted, embedding)), ..Adapters::default() };
        let functions = [FunctionName::Init, FunctionName::Decode, FunctionName::Encode];
        convert_with(&original, &adapters, &options(&functions)).unwrap().program
    };
    let (merged, kept) = (encoder(Mode::Merge), encoder(Mode::Keep));
    let embed = |program: &Program, ids: &[i64], mask: &[i64]| {
        let tensor = |values: &[i64]| Tensor::from_i64(quince_mil::DType::I32, [1, values.len()], values).unwrap();
        let inputs =
            Tensors::from([("input_ids".to_owned(), tensor(ids)), ("attention_mask".to_owned(), tensor(mask))]);
        eval::run(program.function("encode").unwrap(), &inputs, &mut Tensors::new())
            .unwrap()
            .remove("embedding")
            .unwrap()
    };
    let ids = [1, 17, 300, 42, 5];
    let masks: [&[i64]; 3] = [&[1, 1, 1, 1, 1], &[2, 2, 1, 1, 1], &[0, 0, 1, 1, 1]];
    for mask in masks {
        close(&embed(&kept, &ids, mask), &embed(&merged, &ids, mask), 1e-4, "kept");
    }
    let means = masks.map(|mask| embed(&merged, &ids, mask).to_f32().unwrap());
    let apart = |a: &[f32], b: &[f32]| a.iter().zip(b).any(|(a, b)| (a - b).abs() > 1e-2);
    assert!(apart(&means[0], &means[1]) && apart(&means[1], &means[2]) && apart(&means[0], &means[2]));
    // Positions turn by their distance alone, so that padding in front changes nothing.
    close(&embed(&merged, &ids, masks[2]), &embed(&merged, &ids[2..], &[1, 1, 1]), 1e-4, "padding");
    // Not causal: the last token changes what the first gives.
    let first = |last: i64| embed(&merged, &[1, 17, last], &[1, 2, 2]).to_f32().unwrap();
    assert!(apart(&first(300), &first(42)));
    // Kept, the encoder has the weights of the decoder and the adapter's; merged, it has its own.
    let decoder: HashSet<usize> = weights(&kept, "decode").into_iter().map(|(id, _)| id).collect();
    let own = |program: &Program, shared: &HashSet<usize>| -> usize {
        weights(program, "encode").into_iter().filter(|(id, _)| !shared.contains(id)).map(|(_, bytes)| bytes).sum()
    };
    assert!(own(&kept, &decoder) as u64 <= adapter.byte_len());
}

/// Writes an adapter of rank 1 with these tensors.
fn written(directory: &Path, tensors: &[(&str, &[usize])]) {
    let config = r#"{"peft_type": "LORA", "r": 1, "lora_alpha": 1, "base_model_name_or_path": "acme/other-7b"}"#;
    std::fs::write(directory.join("adapter_config.json"), config).unwrap();
    let made: Vec<(String, Tensor)> = tensors
        .iter()
        .map(|(name, shape)| {
            let count = shape.iter().product();
            (format!("base_model.model.{name}"), Tensor::from_vec(*shape, vec![1f32; count]).unwrap())
        })
        .collect();
    let named: Vec<(&str, &Tensor)> = made.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let mut bytes = Vec::new();
    write_safetensors(&mut bytes, &named).unwrap();
    std::fs::write(directory.join("adapter_model.safetensors"), bytes).unwrap();
}

fn refused(tensors: &[(&str, &[usize])], mode: Mode) -> String {
    let directory = tempfile::tempdir().unwrap();
    written(directory.path(), tensors);
    let checkpoint = Checkpoint::open(golden("arch", "llama-gqa-untied")).unwrap();
    let result = Adapter::open(directory.path()).and_then(|adapter| {
        Adapted::new(&checkpoint, &[Weighted { adapter: &adapter, strength: 1.0 }], mode).map(|_| ())
    });
    result.unwrap_err().to_string()
}

#[test]
fn what_does_not_fit_is_refused_with_both_sides() {
    let error = refused(
        &[("layers.0.attn.query.lora_A.weight", &[1, 64]), ("layers.0.attn.query.lora_B.weight", &[64, 1])],
        Mode::Merge,
    );
    assert!(
        error.contains("found 1 of 1 parts of the adapter for a module that the checkpoint does not have"),
        "{error}"
    );
    assert!(error.contains("`layers.0.attn.query`; expected modules of the checkpoint, which has `"), "{error}");
    assert!(error.ends_with("hint: adapter_config.json says that it was made for `acme/other-7b`"), "{error}");
    let q = ["model.layers.0.self_attn.q_proj.lora_A.weight", "model.layers.0.self_attn.q_proj.lora_B.weight"];
    let error =
        refused(&[(q[0], &[1, 64]), (q[1], &[64, 1]), ("model.layers.7.self_attn.q_proj.bias", &[64])], Mode::Keep);
    assert!(error.contains("found 1 of 2 parts"), "{error}");
    let error = refused(&[(q[0], &[2, 64]), (q[1], &[64, 2])], Mode::Merge);
    assert!(error.contains("of rank 2, expected the rank 1 that adapter_config.json gives"), "{error}");
    let error = refused(&[(q[0], &[1, 48]), (q[1], &[64, 1])], Mode::Merge);
    assert!(error.contains("found lora_A [1, 48] and lora_B [64, 1], expected [1, 64] and [64, 1]"), "{error}");
    let error = refused(&[(q[0], &[1, 64])], Mode::Merge);
    assert!(error.contains("found lora_A alone, expected lora_A and lora_B"), "{error}");
    let error = refused(&[("lm_head.weight", &[321, 64])], Mode::Merge);
    assert!(error.contains("found the shape [321, 64], expected [320, 64] as in the checkpoint"), "{error}");
}

#[test]
fn what_a_model_does_not_use_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(golden("arch", "mixtral")).unwrap();
    let name = "model.layers.0.block_sparse_moe.experts.1.w1.weight";
    let shape = checkpoint.weight(name).unwrap().shape().to_vec();
    let stem = name.trim_end_matches(".weight");
    let (a, b) = (format!("{stem}.lora_A.weight"), format!("{stem}.lora_B.weight"));
    written(directory.path(), &[(&a, &[1, shape[1]]), (&b, &[shape[0], 1])]);
    let adapter = Adapter::open(directory.path()).unwrap();
    let kept = Adapted::new(&checkpoint, &[whole(&adapter)], Mode::Keep).unwrap();
    let adapters = Adapters { kept: vec![("a".to_owned(), kept)], ..Adapters::default() };
    let error = convert_with(&checkpoint, &adapters, &options(&[FunctionName::Full])).err().unwrap().to_string();
    assert!(error.starts_with(&format!("adapter `a`: found a change of `{name}`")), "{error}");
    let mut merged = checkpoint.clone();
    merged.merge(&[whole(&adapter)]).unwrap();
    assert!(convert(&merged, &options(&[FunctionName::Full])).is_ok());
}

#[test]
fn directories_that_are_no_adapters_say_what_they_are() {
    let directory = tempfile::tempdir().unwrap();
    let error = || Adapter::open(directory.path()).err().unwrap().to_string();
    assert!(error().contains("found no adapter_config.json, expected the directory of a PEFT adapter"), "{}", error());
    std::fs::write(directory.path().join("adapter_model.bin"), "").unwrap();
    assert!(error().contains("found adapter_model.bin, pickled by PyTorch"), "{}", error());
    std::fs::remove_file(directory.path().join("adapter_model.bin")).unwrap();
    std::fs::write(directory.path().join("adapters.safetensors"), "").unwrap();
    assert!(error().contains("found an adapter of MLX"), "{}", error());
}
