//! The bundled model from checkpoint to text: generation with every kind of cache, perplexity, validation and benchmark,
//! against what transformers computed from the same weights.

use std::path::Path;
use std::sync::Arc;

use quince_checkpoint::Checkpoint;
use quince_compress::{Nbits, OptimizationConfig, Palette, compress};
use quince_convert::lower::{KvCache, LogitsOf, Precision};
use quince_convert::{FunctionName, Options, convert, semantic};
use quince_engine::Engine;
use quince_mil::{DType, Program, Tensor, Value};
use quince_runtime::{
    BenchOptions, Decoder, GenerateOptions, LanguageModel, Reference, Route, Session, SpecialTokens, Suite, Tokenizer,
    Validation, Windows, bench, perplexity, validate,
};

fn model() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/tiny-llama"))
}

fn golden() -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(model().join("golden/golden.json")).unwrap()).unwrap()
}

fn ids(value: &serde_json::Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn program(options: &Options) -> Program {
    convert(&Checkpoint::open(model()).unwrap(), options).unwrap().program
}

fn engine(program: Program) -> Engine {
    Engine::load(program, quince_engine::Options::default()).unwrap()
}

fn decoder(options: &Options) -> Decoder {
    Decoder::new(Arc::new(engine(program(options)))).unwrap()
}

fn exact() -> Options {
    Options { precision: Precision::Float32, ..Options::default() }
}

fn full() -> Options {
    Options { functions: vec![FunctionName::Full], ..exact() }
}

fn chunks(prefill_length: usize) -> Options {
    Options { context: Some(160), prefill_length: Some(prefill_length), ..exact() }
}

/// Each transcript, by a session that goes from one to the next as a server's would.
fn says_what_transformers_says(options: &Options, transcripts: usize, max_tokens: usize) {
    let tokenizer = Tokenizer::from_dir(model()).unwrap();
    let mut session = Session::new(decoder(options));
    let wanted = GenerateOptions { max_tokens, ignore_eos: true, ..GenerateOptions::default() };
    for transcript in golden()["transcripts"].as_array().unwrap().iter().take(transcripts) {
        let (prompt, expected) = (ids(&transcript["prompt_ids"]), ids(&transcript["output_ids"]));
        let answer = session.generate(&tokenizer, &prompt, &wanted, &mut |_| std::ops::ControlFlow::Continue(()));
        assert_eq!(answer.unwrap().token_ids, expected[..max_tokens], "{options:?}: {}", transcript["prompt"]);
    }
}

#[test]
fn a_state_cache_says_what_transformers_says() {
    // Prompts have 15 to 46 tokens: shorter than a chunk, longer than several, and longer than all but the last.
    for prefill_length in [64, 7, 40] {
        says_what_transformers_says(&chunks(prefill_length), 8, 64);
    }
    let decode_alone = Options { functions: vec![FunctionName::Decode], prefill_length: None, ..chunks(1) };
    says_what_transformers_says(&decode_alone, 2, 8);
}

#[test]
fn a_cache_that_the_host_keeps_says_what_transformers_says() {
    for logits in [LogitsOf::Last, LogitsOf::All] {
        says_what_transformers_says(&Options { kv_cache: KvCache::Io, logits, ..chunks(32) }, 3, 40);
    }
}

#[test]
fn no_cache_says_what_transformers_says() {
    says_what_transformers_says(&full(), 2, 12);
    says_what_transformers_says(&Options { length: Some(80), ..full() }, 1, 12);
}

#[test]
fn perplexity_is_what_transformers_computes() {
    let tokenizer = Tokenizer::from_dir(model()).unwrap();
    let text = std::fs::read_to_string(model().join("heldout_stories.txt")).unwrap();
    let tokens = tokenizer.encode(&text, SpecialTokens::Omit).unwrap();
    let golden = &golden()["perplexity"];
    let mut model = decoder(&full());
    let windows = Windows::new(&model, Some(&tokenizer), Some(256)).unwrap();
    let found = perplexity(&mut model, &tokens, windows, &mut |_, _| ()).unwrap();
    assert_eq!(found.tokens as u64, golden["tokens"].as_u64().unwrap());
    let expected = golden["nll"].as_f64().unwrap();
    assert!((found.nll - expected).abs() < 1e-5, "found {}, expected {expected}", found.nll);
    // The other ways to the same number: all logits of a chunk, a token at a time.
    let some = &tokens[..400];
    let windows = Windows { length: 100, ..windows };
    let expected = perplexity(&mut model, some, windows, &mut |_, _| ()).unwrap();
    for logits in [LogitsOf::All, LogitsOf::Last] {
        let found = perplexity(&mut decoder(&Options { logits, ..chunks(48) }), some, windows, &mut |_, _| ()).unwrap();
        assert_eq!(found.tokens, expected.tokens);
        assert!((found.nll - expected.nll).abs() < 1e-5, "{logits:?}: {found:?}, expected {expected:?}");
    }
}

fn validated(program: Program) -> Validation {
    let checkpoint = Checkpoint::open(model()).unwrap();
    let mut reference = Reference::new(semantic(&checkpoint).unwrap().program, Default::default()).unwrap();
    let tokenizer = Tokenizer::from_dir(model()).unwrap();
    let mut candidate = Decoder::new(Arc::new(engine(program))).unwrap();
    validate(&mut candidate, &mut reference, Some(&tokenizer), &Suite::built_in().unwrap(), &mut |_| ()).unwrap()
}

fn half_precision() -> Program {
    program(&Options {
        functions: vec![FunctionName::Init, FunctionName::Decode, FunctionName::Full],
        prefill_length: Some(32),
        ..Options::default()
    })
}

#[test]
fn half_precision_is_valid() {
    let validation = validated(half_precision());
    assert!(validation.passed(), "{:#?}", validation.rows());
    // Nothing is measured that could not fail: the two are near each other, not the same.
    let psnr = validation.report.get("logits_psnr").unwrap().value;
    assert!(psnr > 50.0 && psnr.is_finite(), "{psnr}");
    assert!(validation.report.get("cached_full_psnr").is_some());
}

/// What the README's first command makes; with 2 bits it would be unusable, and the report must say so.
#[test]
fn four_bits_in_groups_are_valid_and_two_are_not() {
    for (bits, valid) in [(4, true), (2, false)] {
        let nbits = Nbits::new(bits).unwrap();
        let scheme = Palette::kmeans(nbits, Some(16)).into();
        let mut program = program(&Options { prefill_length: Some(32), ..Options::default() });
        compress(&mut program, &OptimizationConfig::all(scheme)).unwrap();
        let validation = validated(program);
        assert_eq!(validation.passed(), valid, "{:#?}", validation.rows());
    }
}

#[test]
fn a_package_with_a_weight_of_zeros_is_not() {
    let mut program = half_precision();
    let mut zeroed = 0;
    for operation in program.functions.iter_mut().flat_map(|function| &mut function.block.operations) {
        for value in operation.attributes.values_mut() {
            let Value::Weight(weight) = value else { continue };
            if weight.name() == "model.layers.2.mlp.down_proj.weight" {
                *value = Tensor::zeros(DType::F16, weight.shape()).unwrap().into();
                zeroed += 1;
            }
        }
    }
    assert_eq!(zeroed, 3, "each function has the weight once");
    let validation = validated(program);
    let failed: Vec<&str> = validation.report.failures().map(|metric| metric.name.as_str()).collect();
    for metric in ["logits_psnr", "top1_agreement", "perplexity_change"] {
        assert!(failed.contains(&metric), "{failed:?}");
    }
    assert!(validation.transcripts.iter().any(|t| t.divergence.is_some_and(|divergence| divergence.margin > 0.5)));
}

/// Guesses save the reference work; wrong ones must not change what it says.
#[test]
fn the_reference_says_the_same_whatever_is_guessed() {
    let checkpoint = Checkpoint::open(model()).unwrap();
    let mut reference = Reference::new(semantic(&checkpoint).unwrap().program, Default::default()).unwrap();
    let golden = golden();
    let (prompt, expected) =
        (ids(&golden["transcripts"][0]["prompt_ids"]), ids(&golden["transcripts"][0]["output_ids"]));
    let right = |text: &[u32], count: usize| expected[text.len() - prompt.len()..][..count].to_vec();
    for wrong_from in [0, 5, usize::MAX] {
        let mut calls = 0;
        let continuation = reference.continuation(&prompt, 12, &mut |text, count| {
            calls += 1;
            let guess = right(text, count).into_iter().enumerate();
            Ok(guess.map(|(i, token)| if text.len() - prompt.len() + i >= wrong_from { 7 } else { token }).collect())
        });
        let continuation = continuation.unwrap();
        assert_eq!(continuation.tokens, expected[..12]);
        assert_eq!(continuation.logits.len(), 12);
        assert_eq!(calls == 1, wrong_from == usize::MAX, "{calls} calls");
    }
}

#[test]
fn a_benchmark_measures_what_is_asked_for() {
    let options = BenchOptions { prefill: vec![20, 7], decode: 3, depth: vec![10, 0], repeat: 2 };
    let mut loads = 0;
    let result = bench(
        &mut || {
            loads += 1;
            Ok(engine(program(&chunks(16))))
        },
        &options,
        &mut |_, _| (),
    );
    let json = serde_json::to_value(result.unwrap()).unwrap();
    assert_eq!(loads, 2);
    for field in ["prefill_tokens_per_second", "decode_tokens_per_second", "load_seconds", "first_token_seconds"] {
        let spread = ["min", "median", "max"].map(|name| json[field][name].as_f64().unwrap());
        assert!(spread[0] > 0.0 && spread.is_sorted(), "{field}: {spread:?}");
    }
    let too_deep = BenchOptions { depth: vec![0, 158], ..options };
    let error = bench(&mut || Ok(engine(program(&chunks(16)))), &too_deep, &mut |_, _| ()).unwrap_err();
    assert!(error.to_string().contains("found 161 tokens to compute, expected at most 160"), "{error}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut model = decoder(&chunks(16));
    assert_eq!((model.context(), model.vocab_size(), model.prefill_length()), (160, 2048, Some(16)));
    assert_eq!(model.routes(), [Route::Cached]);
    let error = model.prefill(&[1; 161], &mut |_| std::ops::ControlFlow::Continue(())).unwrap_err().to_string();
    assert!(error.starts_with("found 161 tokens, expected at most 160"), "{error}");
    let error = model.decode(2048).unwrap_err().to_string();
    assert!(error.starts_with("found token 2048, expected ids below 2048"), "{error}");
    assert_eq!(model.position(), 0);
    // A full context, whose last chunk begins before the end of the one before.
    let _ = model.prefill(&[1; 153], &mut |_| std::ops::ControlFlow::Continue(())).unwrap();
    let _ = model.prefill(&[1; 7], &mut |_| std::ops::ControlFlow::Continue(())).unwrap();
    assert_eq!(model.position(), 160);
    assert!(model.decode(1).is_err());
}
