//! Scaled programs compute what they computed, whatever is scaled and by how much.

use crate::support::{EMBEDDING, Odd, close, encoder, lowered, read, run_encode, run_full, settings};
use quince_convert::lower::{Grouping, KvCache, LogitsOf, Precision, TARGETS};
use quince_convert::rescale::{Peak, Rescale, Rescaled, rescaled};
use quince_convert::{MODELS, Model, Reading, Semantic};
use quince_mil::Program;

const TEXT: [i64; 13] = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9];

fn scaled(semantic: &Semantic, how: Rescale) -> Rescaled {
    rescaled(semantic, how).unwrap()
}

fn same(semantic: &Semantic, found: &Rescaled, what: &str) {
    let run = |program: &Program| match semantic.readings[0].1 {
        Reading::Logits => run_full(program, &TEXT),
        Reading::Embedding(_) => run_encode(program, &[&TEXT], TEXT.len()),
    };
    let expected = run(&semantic.program);
    close(&run(&found.semantic.program), &expected, 2e-5, what);
    for target in TARGETS {
        let program = match semantic.readings[0].1 {
            Reading::Logits => {
                let settings = settings(KvCache::State, Grouping::Grouped, Precision::Float32);
                lowered(&found.semantic, target, &settings, LogitsOf::Last)
            }
            Reading::Embedding(_) => encoder(&found.semantic, target, Grouping::Grouped),
        };
        close(&run(&program), &expected, 2e-5, &format!("{what} {}", target.name));
    }
}

fn every_model() -> impl Iterator<Item = (&'static str, Semantic)> {
    let odd = Box::leak(Box::new(Model::of::<Odd>("odd")));
    let models = MODELS.iter().chain([&*odd]);
    models.flat_map(|model| {
        let readings = [Reading::Logits, EMBEDDING];
        let readings = readings.into_iter().filter(|r| *r == Reading::Logits || !model.tiny.contains("experts"));
        readings.filter_map(|reading| Some((model.model_types[0], read(model, reading)?)))
    })
}

#[test]
fn a_smaller_residual_is_the_same_function() {
    for (name, semantic) in every_model() {
        for exponent in [5, -3] {
            let found = scaled(&semantic, Rescale::Residual(exponent));
            assert_eq!(found.scales[0].exponent, exponent, "{name}");
            assert!(found.copied.is_empty() && found.unscaled.is_empty(), "{name}: {:?}", found.copied);
            same(&semantic, &found, name);
        }
    }
}

/// Every value is said to overflow, each by another amount: whatever can be scaled is.
#[test]
fn whatever_is_scaled_the_function_is_the_same() {
    for (name, semantic) in every_model() {
        let operations = semantic.program.functions.iter().flat_map(|function| &function.block.operations);
        let named = operations.filter(|operation| operation.constant().is_none());
        let peaks = named.enumerate().flat_map(|(i, operation)| {
            let largest = 16384.0 * ((i * 7 % 5 + 2) as f32).exp2();
            let peak = |name: String| Peak { name, kind: operation.op_name().to_owned(), largest };
            let part = |part: &str| peak(format!("{}.{part}", operation.name));
            match operation.op_name() {
                "experts" => vec![part("gated"), peak(operation.name.clone())],
                _ => vec![peak(operation.name.clone())],
            }
        });
        let peaks: Vec<Peak> = peaks.collect();
        let found = scaled(&semantic, Rescale::Peaks(&peaks));
        assert!(found.scales.len() >= 3, "{name}: {:?}", found.scales);
        assert!(!found.unscaled.is_empty(), "{name}: an activation and the result cannot be scaled");
        same(&semantic, &found, name);
    }
}

#[test]
fn what_does_not_overflow_stays_as_it_is() {
    let semantic = read(&MODELS[0], Reading::Logits).unwrap();
    let quiet = Peak { name: "model.norm".to_owned(), kind: "rms_norm".to_owned(), largest: 32000.0 };
    let found = scaled(&semantic, Rescale::Peaks(&[quiet]));
    assert!(found.scales.is_empty() && found.unscaled.is_empty());
    let texts =
        [&semantic, &found.semantic].map(|semantic| quince_mil::text::print(&semantic.program, &Default::default()));
    assert_eq!(texts[0], texts[1]);
}

/// What cannot be scaled is said with its reason, by the name of the operation of the package.
#[test]
fn what_cannot_be_scaled_is_named() {
    let semantic = read(&MODELS[0], Reading::Logits).unwrap();
    let peak = |name: &str| Peak { name: name.to_owned(), kind: String::new(), largest: 1e6 };
    let peaks = [
        "model.layers.0.mlp.gate_proj",
        "model.layers.0.self_attn.attention.scores",
        "logits",
        "model.layers.1.input_layernorm.squares",
    ];
    let found = scaled(&semantic, Rescale::Peaks(&peaks.map(peak)));
    let left: Vec<(&str, &str)> = found.unscaled.iter().map(|u| (&u.name[..], &u.reason[..])).collect();
    let expected = [
        (peaks[0], "`silu` is not the same at another scale"),
        (peaks[1], "scores are the same at any scale of queries and keys"),
        (peaks[2], "it is what the model gives"),
    ];
    assert_eq!(left, expected);
    // The root of 10⁶ / 16384, as a power of two, of the residual.
    let scale = &found.scales[0];
    assert_eq!((scale.first.as_str(), scale.exponent, scale.factor()), ("model.embed_tokens", 3, 0.125));
}

/// Numbers that fall below the normal ones of float16 are counted.
#[test]
fn weights_that_become_subnormal_are_told() {
    let semantic = read(&MODELS[0], Reading::Logits).unwrap();
    let found = scaled(&semantic, Rescale::Residual(12));
    let embedding = found.subnormal.iter().find(|(name, _)| name == "model.embed_tokens.weight");
    // Elements are spread evenly over ± 0.6: of them, those below 2^-14 · 2^12 = 0.25 are lost.
    let share = embedding.map_or(0.0, |(_, share)| *share);
    assert!((0.3..0.55).contains(&share), "{:?}", found.subnormal);
    assert!(scaled(&semantic, Rescale::Residual(1)).subnormal.iter().all(|(_, share)| *share < 0.01));
}
