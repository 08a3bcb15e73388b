//! Parts of converted models, joined: they say what the whole says.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use quince_checkpoint::Checkpoint;
use quince_convert::lower::{ComputeUnits, KvCache, LogitsOf, Precision};
use quince_convert::{FunctionName, Options, convert, parts};
use quince_engine::Engine;
use quince_mil::verify;
use quince_mlpackage::Package;

use super::*;
use crate::{Decoder, Embedder, LanguageModel, Route};

fn converted(fixture: &str, options: &Options) -> Program {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/arch").join(fixture);
    convert(&Checkpoint::open(path).unwrap(), options).unwrap().program
}

/// Bytes of the package.
fn size(program: &Program) -> Result<u64> {
    Package::new(program.clone()).measure()
}

/// As many parts as there can be: the smallest limit, within a tenth, that works.
fn parts_of(program: &Program) -> Vec<Program> {
    let mut limit = 256;
    loop {
        match parts::split(program, limit, parts::EmbeddingPart::WithLayers, &mut size) {
            Ok(parts) => return parts.into_iter().map(|part| part.program).collect(),
            Err(error) => assert!(error.message().contains("the size of a part"), "{error}"),
        }
        limit += limit / 10;
    }
}

fn engine(program: Program) -> Arc<Engine> {
    Arc::new(Engine::load(program, quince_engine::Options { threads: 1, ..Default::default() }).unwrap())
}

/// Logits along a text longer than a chunk of prefill, and than a window.
fn logits(program: Program, text: &[u32]) -> Vec<Vec<f32>> {
    let mut decoder = Decoder::new(engine(program)).unwrap();
    let mut found = Vec::new();
    let flow = decoder.prefill(&text[..29], &mut |_| ControlFlow::Continue(())).unwrap();
    assert!(flow.is_continue());
    for token in &text[29..] {
        found.push(decoder.logits().to_vec());
        decoder.decode(*token).unwrap();
    }
    found.push(decoder.logits().to_vec());
    found
}

const TEXT: [u32; 34] = {
    let (mut text, mut i) = ([0; 34], 0);
    while i < 34 {
        text[i] = (i as u32 * 7 + 3) % 50;
        i += 1;
    }
    text
};

#[test]
fn parts_continue_texts_as_the_whole_does() {
    // Windows in some layers, in all, in none; layers whose halves are parallel; experts; a tied and an untied head.
    let fixtures = ["gemma3", "mistral", "llama-gqa-untied", "phi", "qwen3-moe"];
    let units = [ComputeUnits::CpuAndGpu, ComputeUnits::CpuAndNeuralEngine];
    let caches = [KvCache::State, KvCache::Rotating, KvCache::Io];
    for (i, (fixture, kv_cache)) in fixtures.iter().flat_map(|f| caches.map(|cache| (f, cache))).enumerate() {
        for units in units {
            // The state of what float16 leaves of float32 is one more to cut.
            let precision = if i % 2 == 0 { Precision::Float32 } else { Precision::Float16 };
            let options = Options {
                kv_cache,
                units,
                precision,
                context: Some(128),
                prefill_length: Some(8),
                logits: if i % 2 == 0 { LogitsOf::All } else { LogitsOf::Last },
                ..Options::default()
            };
            let whole = converted(fixture, &options);
            let parts = parts_of(&whole);
            let what = format!("{fixture} {kv_cache:?} {units:?}");
            assert!(parts.len() >= 2, "{what}: {} parts", parts.len());
            parts.iter().for_each(|part| verify::program(part).unwrap());
            let joined = join(&parts).unwrap();
            assert_eq!(logits(joined, &TEXT), logits(whole, &TEXT), "{what}");
        }
    }
}

#[test]
fn each_part_has_the_layers_of_its_cache_and_only_one_value_crosses() {
    let options = Options { context: Some(64), prefill_length: Some(8), ..Options::default() };
    let parts = parts_of(&converted("llama-gqa-untied", &options));
    let told = |function: &Function| {
        let inputs: Vec<String> = function.inputs.iter().map(|i| function.var(i.var).name.clone()).collect();
        let outputs: Vec<&str> = function.block.outputs.iter().map(|v| function.var(*v).name.as_str()).collect();
        let states: Vec<_> = function.states().map(|(_, ty)| ty.dims().unwrap()).collect();
        format!("{} -> {} {states:?}", inputs.join(" "), outputs.join(" "))
    };
    let told: Vec<String> = parts.iter().map(|part| told(part.function("decode").unwrap())).collect();
    assert_eq!(
        told,
        [
            "input_ids -> hidden_0 []",
            "position kv_cache hidden_0 -> hidden_1 [[2, 2, 64, 16]]",
            "position kv_cache hidden_1 -> hidden_2 [[2, 2, 64, 16]]",
            "hidden_2 -> logits []",
        ]
    );
}

#[test]
fn texts_of_any_length_and_embeddings_go_through_parts() {
    for units in [ComputeUnits::CpuAndGpu, ComputeUnits::CpuAndNeuralEngine] {
        let full = Options {
            functions: vec![FunctionName::Full],
            precision: Precision::Float32,
            kv_cache: KvCache::None,
            units,
            ..Options::default()
        };
        for fixture in ["gemma3", "gpt-neo"] {
            let whole = converted(fixture, &full);
            let joined = join(&parts_of(&whole)).unwrap();
            let score = |program: Program| {
                let (mut decoder, mut rows) = (Decoder::new(engine(program)).unwrap(), Vec::new());
                let mut keep = |_: usize, row: &[f32]| {
                    rows.push(row.to_vec());
                    Ok(())
                };
                decoder.score(Route::Full, &TEXT, &mut keep).unwrap();
                rows
            };
            assert_eq!(score(joined), score(whole), "{fixture} {units:?}");
        }
        let encode = Options { precision: Precision::Float32, units, ..Options::default() };
        for fixture in ["bert", "mpnet", "modernbert", "qwen3-embedding"] {
            let whole = converted(fixture, &encode);
            let parts = parts_of(&whole);
            assert!(parts.len() >= 2, "{fixture}");
            let embed = |program: Program| {
                let embedder = Embedder::new(engine(program)).unwrap();
                embedder.embed(&[TEXT[..12].to_vec(), TEXT[5..14].to_vec()], &mut |_| ()).unwrap()
            };
            assert_eq!(embed(join(&parts).unwrap()), embed(whole), "{fixture} {units:?}");
        }
    }
}

#[test]
fn what_does_not_go_together_is_named() {
    let options = Options { context: Some(64), prefill_length: Some(8), ..Options::default() };
    let parts = parts_of(&converted("llama-gqa-untied", &options));
    let wide = parts_of(&converted("gemma3", &options));
    let error = join(&[parts[0].clone(), parts[1].clone(), wide[1].clone()]).err().unwrap().to_string();
    assert!(error.starts_with("part 3 of 3: function `init`: input `hidden_1`: found "), "{error}");
    let one = Options { functions: vec![FunctionName::Decode], ..options };
    let other = parts_of(&converted("llama-gqa-untied", &one));
    let error = join(&[parts[0].clone(), other[1].clone()]).err().unwrap().to_string();
    assert_eq!(error, "part 2 of 2: found the functions main, expected init, decode");
    let names: BTreeSet<_> = parts.iter().flat_map(|part| part.functions.iter().map(|f| &f.name)).collect();
    assert_eq!(names.len(), 2);
}
