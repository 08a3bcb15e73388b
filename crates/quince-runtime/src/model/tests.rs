//! Chunks and padding.

use std::path::Path;

use quince_checkpoint::Checkpoint;
use quince_convert::lower::{ComputeUnits, KvCache, LogitsOf, Precision};
use quince_convert::{Options, convert};

use super::*;

#[test]
fn chunks_end_where_the_tokens_do() {
    let next = |position, rest, rows| next_step(position, rest, Some(Chunks { length: 128, context: 300, rows }));
    for rows in [Rows::Last, Rows::All] {
        assert_eq!(next(0, 300, rows), Step::Chunk { start: 0, end: 128 });
        assert_eq!(next(20, 128, rows), Step::Chunk { start: 20, end: 148 });
        assert_eq!(next(256, 4, rows), Step::Decode);
        assert_eq!(next(172, 128, rows), Step::Chunk { start: 172, end: 300 });
    }
    assert_eq!(next(10, 40, Rows::All), Step::Chunk { start: 10, end: 50 });
    assert_eq!(next(10, 40, Rows::Last), Step::Chunk { start: 10, end: 49 });
    assert_eq!(next(10, 126, Rows::All), Step::Chunk { start: 10, end: 136 });
    assert_eq!(next(10, 126, Rows::Last), Step::Chunk { start: 8, end: 136 });
    // There is no room for padding: tokens that are there are computed again.
    assert_eq!(next(256, 40, Rows::All), Step::Chunk { start: 172, end: 296 });
    assert_eq!(next(256, 40, Rows::Last), Step::Chunk { start: 172, end: 295 });
    assert_eq!(next(256, 44, Rows::Last), Step::Chunk { start: 172, end: 300 });
    assert_eq!(next_step(0, 300, None), Step::Decode);
}

/// The converted models leave out all products with padding, on both layouts and with all caches, and say the same of
/// the other tokens.
#[test]
fn padding_is_left_out() {
    let fixtures = [
        "gemma",
        "gemma2",
        "gemma3",
        "gpt-neo",
        "gpt-neox",
        "gpt-oss",
        "gpt2",
        "llama-gqa-untied",
        "mistral",
        "mixtral",
        "phi",
        "phi3",
        "qwen2-bias",
        "qwen3-moe",
        "qwen3-qknorm",
        "stablelm",
    ];
    let (length, used) = (32, 13);
    for (i, fixture) in fixtures.into_iter().enumerate() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/arch").join(fixture);
        let checkpoint = Checkpoint::open(path).unwrap();
        for units in [ComputeUnits::CpuAndGpu, ComputeUnits::CpuAndNeuralEngine] {
            let options = Options {
                kv_cache: [KvCache::State, KvCache::Io, KvCache::Rotating][i % 3],
                precision: Precision::Float32,
                logits: LogitsOf::All,
                context: Some(64),
                prefill_length: Some(length),
                units,
                ..Options::default()
            };
            let program = convert(&checkpoint, &options).unwrap().program;
            let engine = Arc::new(Engine::load(program, quince_engine::Options::default()).unwrap());
            let functions = Functions::find(engine.program(), None).unwrap();
            let prefill = functions.cached.as_ref().unwrap().largest().prefill.clone().unwrap();
            let logits = |tokens: usize| {
                let cache = IoCache::new(&prefill.io).unwrap();
                let text: Vec<u32> = (0..used).map(|i| i as u32 * 7 % 31 + 1).collect();
                let mut inputs = Tensors::new();
                inputs.insert(INPUT_IDS.to_owned(), ids(&text, length).unwrap());
                inputs.insert(POSITION.to_owned(), Tensor::vector(vec![0]));
                cache.enter(&mut inputs).unwrap();
                let mut state = engine.new_state().unwrap();
                let outputs = engine.predict_tokens(&prefill.name, &inputs, tokens, &mut state).unwrap();
                outputs[&prefill.logits].to_f32().unwrap()
            };
            let (found, expected) = (logits(used), logits(length));
            let (found, padding) = found.split_at(used * functions.vocab_size);
            for (found, expected) in found.iter().zip(&expected) {
                assert!((found - expected).abs() <= 1e-4 * expected.abs().max(1.0), "{fixture} {units:?}");
            }
            // Experts on the Neural Engine's layout come together in a product with a diagonal matrix, which hides whose
            // they are.
            if units == ComputeUnits::CpuAndGpu || !["gpt-oss", "mixtral", "qwen3-moe"].contains(&fixture) {
                assert!(padding.iter().all(|&logit| logit == 0.0), "{fixture} {units:?}: padding is computed");
            }
            assert!(expected[found.len()..].iter().any(|&logit| logit != 0.0));
        }
    }
}
