//! A cache that rotates, driven as a conversation drives it: on and on, back a little, back too far.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use quince_checkpoint::Checkpoint;
use quince_convert::lower::{ComputeUnits, KvCache, Precision};
use quince_convert::{Options, convert};
use quince_engine::Engine;
use quince_runtime::{Decoder, LanguageModel};

fn decoder(fixture: &str, kv_cache: KvCache, units: ComputeUnits) -> Decoder {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/arch").join(fixture);
    let options = Options {
        kv_cache,
        units,
        context: Some(128),
        prefill_length: Some(8),
        precision: Precision::Float32,
        ..Options::default()
    };
    let program = convert(&Checkpoint::open(path).unwrap(), &options).unwrap().program;
    Decoder::new(Arc::new(Engine::load(program, quince_engine::Options::default()).unwrap())).unwrap()
}

fn append(decoder: &mut Decoder, tokens: &[u32]) {
    let flow = decoder.prefill(tokens, &mut |_| ControlFlow::Continue(())).unwrap();
    assert!(flow.is_continue());
}

fn close(found: &[f32], expected: &[f32], what: &str) {
    assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-4), "{what}");
}

#[test]
fn who_goes_back_finds_what_is_in_sight_or_begins_anew() {
    let text: Vec<u32> = (0..90).map(|i| (i * 7 + 3) % 50).collect();
    // A model of which some layers rotate, and one of which all do, whose context nothing but a constant tells.
    for (fixture, units) in [
        ("gemma3", ComputeUnits::CpuAndNeuralEngine),
        ("gpt-oss", ComputeUnits::CpuAndGpu),
        ("mistral", ComputeUnits::All),
    ] {
        let (mut rotating, mut whole) =
            (decoder(fixture, KvCache::Rotating, units), decoder(fixture, KvCache::State, units));
        assert_eq!(rotating.context(), 128);
        for decoder in [&mut rotating, &mut whole] {
            append(decoder, &text[..77]);
        }
        close(rotating.logits(), whole.logits(), fixture);
        // As many tokens as a call has.
        for decoder in [&mut rotating, &mut whole] {
            assert_eq!(decoder.truncate(69).unwrap(), 69);
            append(decoder, &text[80..90]);
        }
        close(rotating.logits(), whole.logits(), fixture);
        // More than that: what was in sight then is gone.
        assert_eq!((rotating.truncate(40).unwrap(), whole.truncate(40).unwrap()), (0, 40));
        append(&mut rotating, &text[..50]);
        append(&mut whole, &text[40..50]);
        close(rotating.logits(), whole.logits(), fixture);
    }
}
