//! Random weights, an architecture that is unlike the others, and a host that calls cached functions as a runtime does.

use quince_checkpoint::Config;
use quince_convert::blocks::{Activation, Heads, PreNorm, gated_mlp, pre_norm};
use quince_convert::graph::{Attention, Bias, Graph, Norm, Weights};
use quince_convert::lower::{
    FunctionKind, FunctionSpec, Grouping, KvCache, Length, LogitsOf, Precision, Settings, Shapes, Target, lower,
};
use quince_convert::models::LmHead;
use quince_convert::{Architecture, Embedding, Model, Reading, Rope, Semantic, VectorLength, semantic_with};
use quince_mil::eval::{self, Tensors};
use quince_mil::{Program, Result, Tensor, ValueType, Var, Weight};
use serde::Deserialize;

/// Weights of any name and shape: the same for the same name.
pub struct RandomWeights;

impl Weights for RandomWeights {
    fn weight(&self, name: &str, shape: &[usize]) -> Result<Weight> {
        let mut state =
            name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        let (middle, spread) = if name.contains("norm") { (1.0, 0.3) } else { (0.0, 0.6) };
        let values = (0..shape.iter().product()).map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            middle + spread * ((state >> 40) as f32 / (1 << 23) as f32 - 1.0)
        });
        Ok(Weight::from_tensor(name, Tensor::from_vec(shape, values.collect())?))
    }

    fn has(&self, _: &str) -> bool {
        true
    }
}

/// What no architecture of the table has together: a scale of its own, soft caps, sinks, heads rotated in part, windows in
/// every layer, another activation.
#[derive(Deserialize)]
pub struct Odd {
    vocab_size: usize,
}

impl Architecture for Odd {
    const MODEL_TYPES: &'static [&'static str] = &["odd"];
    const TINY: &'static str = r#"{ "model_type": "odd", "vocab_size": 19 }"#;

    fn build(&self, g: &mut Graph) -> Result<Var> {
        let rope = Rope::from_config(g.config(), 4)?;
        let (heads, norm) = (Heads { heads: 4, kv_heads: 2, dim: 6 }, Norm::Rms { epsilon: 1e-5 });
        let mut x = g.embedding("embed", self.vocab_size, 8)?;
        for i in 0..2 {
            let attention = |g: &mut Graph, x| {
                let qkv = heads.project(g, x, ["q_proj", "k_proj", "v_proj"], Bias::Present)?.rotated(g, &rope)?;
                let sinks = if i == 1 { Some(g.vector("sinks", 4)?) } else { None };
                let softcap = (i == 1).then_some(2.0);
                let how = Attention { window: Some(3), scale: Some(0.3), softcap, sinks, ..Attention::default() };
                let out = qkv.attend(g, how)?;
                g.linear("o_proj", out, 8, Bias::Absent)
            };
            let mlp = |g: &mut Graph, x| gated_mlp(g, x, 12, Activation::GeluTanh, Bias::Absent);
            x = g.scope(&format!("layers.{i}"), |g| pre_norm(g, x, PreNorm::USUAL, norm, attention, mlp))?;
        }
        g.norm("norm", x, norm)
    }

    fn head(&self) -> Option<LmHead> {
        Some(LmHead { bias: Bias::Present, ..LmHead::of("head", self.vocab_size) })
    }

    fn max_positions(&self) -> usize {
        32
    }
}

/// Normalized means, to have something of every part.
pub const EMBEDDING: Reading = Reading::Embedding(Embedding { length: VectorLength::One, ..Embedding::MEAN });

/// The semantic program of an architecture's tiny configuration; none if it has no such reading.
pub fn read(model: &Model, reading: Reading) -> Option<Semantic> {
    let config = Config::from_text("tiny", model.tiny).unwrap();
    match semantic_with(model, &config, &RandomWeights, &[reading]) {
        Ok(semantic) => Some(semantic),
        Err(error) => {
            assert!(error.to_string().contains("found an encoder, expected a model with logits"), "{error}");
            None
        }
    }
}

/// The semantic program of a decoder's tiny configuration.
pub fn tiny(model: &Model) -> Semantic {
    read(model, Reading::Logits).unwrap()
}

/// For a context of 16, with logits in three parts where the target has parts.
pub fn settings(kv_cache: KvCache, grouping: Grouping, precision: Precision) -> Settings {
    Settings { precision, grouping, kv_cache, context: 16, head_parts: Some(3) }
}

/// The functions `init` of four tokens, `decode` and `full`.
pub fn lowered(semantic: &Semantic, target: &Target, settings: &Settings, logits: LogitsOf) -> Program {
    let spec = |name: &str, kind| FunctionSpec { name: name.to_owned(), kind, voice: 0, context: None };
    let functions = [
        spec("init", FunctionKind::Cached { tokens: 4, logits }),
        spec("decode", FunctionKind::Cached { tokens: 1, logits: LogitsOf::Last }),
        spec("full", FunctionKind::Full(Length::Flexible)),
    ];
    lower(semantic, target, settings, &functions).unwrap()
}

/// A function that takes any number of texts of up to 16 tokens.
pub fn encoder(semantic: &Semantic, target: &Target, grouping: Grouping) -> Program {
    let kind = FunctionKind::Encode(Shapes::Range { texts: (1, 64), tokens: (1, 16) });
    let settings = settings(KvCache::None, grouping, Precision::Float32);
    let spec = FunctionSpec { name: "main".to_owned(), kind, voice: 0, context: None };
    lower(semantic, target, &settings, &[spec]).unwrap()
}

/// What the only function makes of texts that are padded to `length` tokens.
pub fn run_encode(program: &Program, texts: &[&[i64]], length: usize) -> Tensor {
    let (mut ids, mut mask) = (Vec::new(), Vec::new());
    for text in texts {
        // Padding is a token like others: it is the mask that hides it.
        ids.extend((0..length).map(|i| text.get(i).copied().unwrap_or(7) as i32));
        mask.extend((0..length).map(|i| i32::from(i < text.len())));
    }
    let tensor = |values| Tensor::from_vec([texts.len(), length], values).unwrap();
    let inputs = Tensors::from([("input_ids".to_owned(), tensor(ids)), ("attention_mask".to_owned(), tensor(mask))]);
    let outputs = eval::run(&program.functions[0], &inputs, &mut Tensors::new()).unwrap();
    assert_eq!(outputs.len(), 1);
    outputs.into_values().next().unwrap()
}

/// The logits of the function `full`, or of the only function.
pub fn run_full(program: &Program, ids: &[i64]) -> Tensor {
    let inputs = Tensors::from([("input_ids".to_owned(), tokens(ids))]);
    let mut outputs = eval::run(program.function("full").unwrap(), &inputs, &mut Tensors::new()).unwrap();
    outputs.remove("logits").unwrap()
}

fn tokens(ids: &[i64]) -> Tensor {
    Tensor::from_vec([1, ids.len()], ids.iter().map(|&id| id as i32).collect()).unwrap()
}

/// A text that goes on: states, or the caches that the host keeps.
pub struct Session<'a> {
    program: &'a Program,
    states: Tensors,
    caches: Tensors,
}

impl<'a> Session<'a> {
    pub fn new(program: &'a Program, kv_cache: KvCache) -> Session<'a> {
        let mut caches = Tensors::new();
        let decode = program.function("decode").unwrap();
        for input in decode.inputs.iter().filter(|_| kv_cache == KvCache::Io) {
            let info = decode.var(input.var);
            if let (true, ValueType::Tensor(ty)) = (info.name.ends_with("_cache"), &info.ty) {
                caches.insert(info.name.clone(), Tensor::zeros(ty.dtype, ty.dims().unwrap()).unwrap());
            }
        }
        assert_eq!(caches.len(), if kv_cache == KvCache::Io { 2 } else { 0 });
        Session { program, states: Tensors::new(), caches }
    }

    /// The logits after a prompt: whole chunks by `init`, the rest token by token.
    pub fn prefill(&mut self, prompt: &[i64], chunk: usize) -> Vec<f32> {
        let mut logits = Vec::new();
        let whole = prompt.len() / chunk * chunk;
        for start in (0..whole).step_by(chunk) {
            let all = self.call("init", &prompt[start..start + chunk], start);
            logits = row(&all, all.shape()[1] - 1).to_f32().unwrap();
        }
        for (i, token) in prompt.iter().enumerate().skip(whole) {
            logits = self.decode(*token, i);
        }
        logits
    }

    pub fn decode(&mut self, token: i64, position: usize) -> Vec<f32> {
        self.call("decode", &[token], position).to_f32().unwrap()
    }

    /// Calls a function, and writes what it gives for the caches there.
    pub fn call(&mut self, function: &str, ids: &[i64], position: usize) -> Tensor {
        let mut inputs = self.caches.clone();
        inputs.insert("input_ids".to_owned(), tokens(ids));
        inputs.insert("position".to_owned(), Tensor::vector(vec![position as i32]));
        let function = self.program.function(function).unwrap();
        let mut outputs = eval::run(function, &inputs, &mut self.states).unwrap();
        for (cache, new) in [("k_cache", "new_k"), ("v_cache", "new_v")] {
            if let Some(cache) = self.caches.get_mut(cache) {
                *cache = with_rows(cache, &outputs[new], position);
            }
        }
        outputs.remove("logits").unwrap()
    }
}

/// A cache [layers, heads, context, D] with new rows [layers, heads, tokens, D] at a position.
fn with_rows(cache: &Tensor, new: &Tensor, position: usize) -> Tensor {
    let [layers, heads, context, dim] = cache.shape() else { panic!("found {cache:?}, expected four axes") };
    let (layers, heads, context, dim, tokens) = (*layers, *heads, *context, *dim, new.shape()[2]);
    let (mut all, rows) = (cache.to_f32().unwrap(), new.to_f32().unwrap());
    for head in 0..layers * heads {
        let to = (head * context + position) * dim;
        all[to..to + tokens * dim].copy_from_slice(&rows[head * tokens * dim..][..tokens * dim]);
    }
    Tensor::from_f32(cache.dtype(), cache.shape(), all).unwrap()
}

/// Row `i` of logits [1, S, V].
pub fn row(logits: &Tensor, i: usize) -> Tensor {
    let shape = logits.shape().to_vec();
    logits.reshape([shape[1], shape[2]]).unwrap().rows(i..i + 1).unwrap().reshape([shape[2]]).unwrap()
}

/// Fails unless two tensors of one shape differ by at most `tolerance` everywhere.
pub fn close(found: &Tensor, expected: &Tensor, tolerance: f32, what: &str) {
    assert_eq!(found.shape(), expected.shape(), "{what}");
    let (found, expected) = (found.to_f32().unwrap(), expected.to_f32().unwrap());
    for (i, (f, e)) in found.iter().zip(&expected).enumerate() {
        assert!((f - e).abs() <= tolerance, "{what}: element {i} is {f}, expected {e}");
    }
}

/// The ratio of the largest value to the error, in decibels.
pub fn psnr(found: &Tensor, expected: &Tensor) -> f64 {
    let (found, expected) = (found.to_f64().unwrap(), expected.to_f64().unwrap());
    let peak = expected.iter().fold(0.0f64, |peak, v| peak.max(v.abs()));
    let error: f64 = found.iter().zip(&expected).map(|(f, e)| (f - e).powi(2)).sum::<f64>() / expected.len() as f64;
    20.0 * (peak / error.sqrt()).log10()
}
