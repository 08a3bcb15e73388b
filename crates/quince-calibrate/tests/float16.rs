//! Models that overflow in float16, made of ones that do not, and what scaling makes of them.

use quince_calibrate::{Run, Texts, extremes};
use quince_checkpoint::{Checkpoint, Config};
use quince_convert::graph::Weights;
use quince_convert::lower::{ComputeUnits, Precision as Type};
use quince_convert::rescale::{Peak, Rescale, Rescaled, rescaled};
use quince_convert::{Converted, FunctionName, Model, Options, Reading, Semantic, convert, semantic_with};
use quince_engine::{Engine, Options as Run_, Precision};
use quince_mil::{Program, Result, Tensor, Weight};
use quince_runtime::{Decoder, LanguageModel};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What the elements of a weight are multiplied by, and what is added then.
type Change = fn(&str) -> [f32; 2];

/// The weights of a checkpoint, some of them changed.
struct Larger<'a> {
    checkpoint: &'a Checkpoint,
    change: Change,
}

impl Weights for Larger<'_> {
    fn weight(&self, name: &str, shape: &[usize]) -> Result<Weight> {
        let weight = self.checkpoint.weight_with_shape(name, shape)?;
        let [factor, more] = (self.change)(name);
        let values = weight.load()?.to_f32()?.into_iter().map(|x| x * factor + more).collect();
        Ok(Weight::from_tensor(name, Tensor::from_vec(shape, values)?))
    }

    fn has(&self, name: &str) -> bool {
        self.checkpoint.has(name)
    }
}

/// By how much the residual is larger.
const LARGER: f32 = 262144.0;

/// What is added to the residual.
fn of_residual(name: &str) -> bool {
    let modules = ["embed_tokens", "o_proj", "down_proj", "wte", "wpe", "dense", "fc2", "c_proj"];
    let module = |module: &&str| ["weight", "bias"].iter().any(|part| name.ends_with(&format!("{module}.{part}")));
    modules.iter().any(module) || name.ends_with("experts.down_proj") || name.ends_with("experts.down_proj_bias")
}

fn residual(name: &str) -> [f32; 2] {
    if of_residual(name) { [LARGER, 0.0] } else { [1.0, 0.0] }
}

/// Where the head is the embedding, the last norm takes back what that has more.
fn tied(name: &str) -> [f32; 2] {
    let last = name == "model.norm.weight" || name.contains("ln_f.");
    if last { [1.0 / LARGER, 0.0] } else { residual(name) }
}

/// Norms multiply by one more than their weights, and those after blocks set what is added to the residual.
fn sandwich(name: &str) -> [f32; 2] {
    match name {
        "model.embed_tokens.weight" => [LARGER, 0.0],
        "model.norm.weight" => [1.0 / LARGER, 1.0 / LARGER - 1.0],
        _ if name.contains("post_attention_layernorm") || name.contains("post_feedforward_layernorm") => {
            [LARGER, LARGER - 1.0]
        }
        _ => [1.0, 0.0],
    }
}

/// Queries, and what is between the projections of feed-forward blocks, so much larger that what follows must not be told.
fn inner(name: &str) -> [f32; 2] {
    match name {
        _ if name.ends_with("up_proj.weight") || name.ends_with("q_proj.weight") => [1e5, 0.0],
        _ if name.ends_with("down_proj.weight") || name.ends_with("k_proj.weight") => [1e-5, 0.0],
        _ => [1.0, 0.0],
    }
}

fn checkpoint(fixture: &str) -> Checkpoint {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let path: PathBuf = if fixture == "tiny-llama" { "models".into() } else { "tests/golden/arch".into() };
    Checkpoint::open(root.join(path).join(fixture)).unwrap()
}

/// The checkpoint with larger weights; epsilons grow with the residual.
fn larger(checkpoint: &Checkpoint, change: Change) -> Semantic {
    let mut config = checkpoint.config().value().clone();
    for key in ["rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon"] {
        if let Some(epsilon) = config.get_mut(key) {
            let grown = epsilon.as_f64().unwrap() * f64::from(change("model.embed_tokens.weight")[0]).powi(2);
            *epsilon = grown.into();
        }
    }
    let config = Config::from_text("config.json", config.to_string()).unwrap();
    let model = Model::of_config(&config).unwrap();
    semantic_with(model, &config, &Larger { checkpoint, change }, &[Reading::Logits]).unwrap()
}

fn decoder(program: Program, precision: Precision) -> Result<Decoder> {
    Decoder::new(Arc::new(Engine::load(program, Run_ { threads: 2, precision, ..Run_::default() })?))
}

fn text(vocabulary: usize) -> Vec<u32> {
    Texts::of_vocabulary(vocabulary, 24).windows.remove(0)
}

fn logits(program: &Program, precision: Precision) -> Result<Vec<f32>> {
    let mut decoder = decoder(program.clone(), precision)?;
    let (route, mut all) = (decoder.routes()[0], Vec::new());
    let text = text(decoder.vocab_size());
    decoder.score(route, &text, &mut |_, row| {
        all.extend_from_slice(row);
        Ok(())
    })?;
    Ok(all)
}

/// Decibels; none if the answer is not finite.
fn psnr(found: &[f32], expected: &[f32]) -> Option<f64> {
    let peak = expected.iter().fold(0f64, |peak, x| peak.max(f64::from(x.abs())));
    let error: f64 = found.iter().zip(expected).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    let error = (error / found.len() as f64).sqrt();
    error.is_finite().then(|| 20.0 * (peak / error).log10())
}

fn peaks(converted: &Converted, units: ComputeUnits) -> Vec<Peak> {
    let program = converted.exact(units).unwrap().remove(0);
    let mut decoder = decoder(program, Precision::Exact).unwrap();
    let texts = Texts { windows: vec![text(decoder.vocab_size())] };
    let found = extremes(&mut [Run { runner: &mut decoder, texts }], &mut |_, _| ()).unwrap();
    found.into_iter().map(|e| Peak { name: e.name, kind: e.kind, largest: e.largest }).collect()
}

/// The functions that are asked for, of larger weights: as they are, and scaled.
fn both(fixture: &str, change: Change, units: ComputeUnits) -> (Converted, Rescaled) {
    let checkpoint = checkpoint(fixture);
    let functions = vec![FunctionName::Full];
    let options = Options { functions, context: Some(32), units, precision: Type::Float16, ..Options::default() };
    let before = convert(&checkpoint, &options).unwrap().with_semantic(larger(&checkpoint, change), units).unwrap();
    let found = rescaled(&before.semantic, Rescale::Peaks(&peaks(&before, units))).unwrap();
    (before, found)
}

const UNITS: [ComputeUnits; 2] = [ComputeUnits::All, ComputeUnits::CpuAndNeuralEngine];

#[test]
fn what_overflows_in_float16_does_not_once_it_is_scaled() {
    let fixtures = [
        ("tiny-llama", tied as Change),
        ("llama-gqa-untied", inner),
        ("gpt2", tied),
        ("gemma2", sandwich),
        ("gemma3", sandwich),
        ("phi", residual),
        ("gpt-oss", residual),
    ];
    for ((fixture, change), units) in fixtures.into_iter().flat_map(|fixture| UNITS.map(|units| (fixture, units))) {
        let (before, found) = both(fixture, change, units);
        let reference = logits(&before.semantic.program, Precision::Exact).unwrap();
        let wrong = logits(&before.program, Precision::Strict).ok().and_then(|found| psnr(&found, &reference));
        assert!(wrong.is_none_or(|db| db < 30.0), "{fixture} {units:?}: found {wrong:?} dB before it is scaled");
        assert!(!found.scales.is_empty() && found.unscaled.is_empty(), "{fixture} {units:?}: {:?}", found.unscaled);
        assert!(found.copied.is_empty(), "{fixture}: {:?}", found.copied);
        let after = before.with_semantic(found.semantic, units).unwrap();
        let db = psnr(&logits(&after.program, Precision::Strict).unwrap(), &reference);
        assert!(db.is_some_and(|db| db >= 60.0), "{fixture} {units:?}: found {db:?} dB");
    }
}

#[test]
fn models_that_do_not_overflow_stay_as_they_are() {
    for units in UNITS {
        let (_, found) = both("tiny-llama", |_| [1.0, 0.0], units);
        assert!(found.scales.is_empty() && found.unscaled.is_empty(), "{:?} {:?}", found.scales, found.unscaled);
    }
}
