//! Functions for smaller contexts of one cache: a text goes on from one to the next, and nothing shows it but the cost.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use quince_checkpoint::Checkpoint;
use quince_convert::lower::{ComputeUnits, KvCache, LogitsOf, Precision};
use quince_convert::{Converted, Options, convert};
use quince_engine::{Engine, Observed, Observer};
use quince_mil::verify;
use quince_runtime::{Decoder, LanguageModel, Route, Watch, adapters};

const CACHES: [KvCache; 3] = [KvCache::State, KvCache::Rotating, KvCache::Io];
const UNITS: [ComputeUnits; 2] = [ComputeUnits::All, ComputeUnits::CpuAndNeuralEngine];

fn converted(fixture: &str, kv_cache: KvCache, units: ComputeUnits, buckets: &[usize], logits: LogitsOf) -> Converted {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/arch").join(fixture);
    let options = Options {
        kv_cache,
        units,
        context: Some(128),
        buckets: buckets.to_vec(),
        prefill_length: Some(8),
        precision: Precision::Float32,
        logits,
        ..Options::default()
    };
    convert(&Checkpoint::open(path).unwrap(), &options).unwrap()
}

fn decoder(converted: Converted) -> Decoder {
    verify::program(&converted.program).unwrap();
    Decoder::new(Arc::new(Engine::load(converted.program, quince_engine::Options::default()).unwrap())).unwrap()
}

fn append(decoder: &mut Decoder, tokens: &[u32]) {
    let flow = decoder.prefill(tokens, &mut |_| ControlFlow::Continue(())).unwrap();
    assert!(flow.is_continue());
}

fn close(found: &[f32], expected: &[f32], what: &str) {
    assert!(!found.is_empty() && found.len() == expected.len());
    assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-4), "{what}");
}

/// The functions that are called.
#[derive(Default)]
struct Called(Vec<String>);

impl Watch for Called {
    fn enter(&mut self, function: &str) {
        self.0.push(function.to_owned());
    }
}

impl Observer for Called {
    fn value(&mut self, _: &Observed) -> quince_tensor::Result<()> {
        Ok(())
    }
}

#[test]
fn a_text_goes_on_from_bucket_to_bucket_as_in_one() {
    let text: Vec<u32> = (0..120).map(|i| (i * 7 + i / 9 + 3) % 50).collect();
    for (fixture, units) in ["llama-gqa-untied", "gemma3"].into_iter().flat_map(|f| UNITS.map(|units| (f, units))) {
        for kv_cache in CACHES {
            let what = format!("{fixture} {units:?} {kv_cache:?}");
            let of = |buckets: &[usize]| decoder(converted(fixture, kv_cache, units, buckets, LogitsOf::Last));
            let (mut several, mut one) = (of(&[64, 32]), of(&[]));
            assert_eq!((several.context(), several.prefill_length()), (128, Some(8)));
            // Chunks within a bucket and over its border, single tokens over a border, all of a bucket, back a little, and
            // back to the beginning, where the cache is small again.
            for (from, to) in [(0, 27), (27, 29), (29, 36), (36, 61), (61, 66), (66, 117), (112, 119), (0, 5), (5, 40)]
            {
                for decoder in [&mut several, &mut one] {
                    assert_eq!(decoder.truncate(from).unwrap(), from);
                    append(decoder, &text[from..to]);
                }
                close(several.logits(), one.logits(), &format!("{what}: tokens {from} to {to}"));
            }
            for decoder in [&mut several, &mut one] {
                decoder.truncate(0).unwrap();
                append(decoder, &text[..60]);
            }
            // Greedily, over the border of 64.
            for _ in 0..12 {
                close(several.logits(), one.logits(), &what);
                let logits = one.logits();
                let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32;
                for decoder in [&mut several, &mut one] {
                    decoder.decode(best).unwrap();
                }
            }
        }
    }
}

#[test]
fn the_smallest_function_that_has_room_runs() {
    let text: Vec<u32> = (0..73).map(|i| (i * 5) % 40).collect();
    for kv_cache in CACHES {
        let mut decoder =
            decoder(converted("gemma3", kv_cache, ComputeUnits::CpuAndNeuralEngine, &[32, 64], LogitsOf::All));
        assert!(adapters(decoder.engine().program()).is_empty());
        let mut called = Called::default();
        decoder.observe(&text, &mut called).unwrap();
        let expected = [&["init_32"; 4][..], &["init_64"; 4], &["init"], &["decode"]].concat();
        assert_eq!(called.0, expected, "{kv_cache:?}");
        // Every row, whichever function gives it.
        let mut rows = Vec::new();
        decoder
            .score(Route::Cached, &text, &mut |i, _| {
                rows.push(i);
                Ok(())
            })
            .unwrap();
        assert_eq!(rows, (0..73).collect::<Vec<_>>());
    }
}

#[test]
fn functions_are_called_after_their_contexts() {
    let of = |buckets: &[usize]| converted("llama-gqa-untied", KvCache::State, UNITS[1], buckets, LogitsOf::Last);
    let converted = of(&[40, 64, 64, 128]);
    let names: Vec<&str> = converted.functions.iter().map(|function| function.name.as_str()).collect();
    // The Neural Engine has multiples of 32.
    assert_eq!(names, ["init", "decode", "init_64", "decode_64"]);
    assert_eq!((converted.buckets(), converted.program.default_function.as_deref()), (vec![64], Some("init")));
    // States are the same, whatever is seen of them.
    let states = |function: &quince_mil::Function| {
        function.states().map(|(info, ty)| format!("{} {ty}", info.name)).collect::<Vec<_>>()
    };
    assert!(converted.program.functions.iter().all(|f| states(f) == states(&converted.program.functions[0])));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/arch/llama-gqa-untied");
    let wrong = Options { context: Some(32), buckets: vec![64], ..Options::default() };
    let error = convert(&Checkpoint::open(path).unwrap(), &wrong).err().map(|e| e.to_string());
    assert_eq!(error.as_deref(), Some("found a smaller context of 64 tokens, expected 1 to 32"));
}
