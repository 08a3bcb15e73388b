//! The semantic program: the model as its file in `models/` says it, in float32, without cache, compression or target.
//!
//! It is what lowerings start from, and it is the reference that they, and the packages made of them, are compared with.

use crate::graph::{Changed, Graph, UsedWeights, Weights};
use crate::models::{Described, Model};
use crate::pooling::{Embedding, Instruction};
use crate::weights::Watched;
use quince_checkpoint::{Checkpoint, Config};
use quince_mil::{
    Arg, Builder, DType, Dim, Error, Flexibility, Function, Opset, Program, Result, TensorType, Value, Weight, bail,
};
use std::collections::HashMap;

/// What is read from a text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reading {
    /// How likely each token comes next: `input_ids` int32 [1, S] to `logits` float32 [1, S, V].
    Logits,
    /// What several texts mean: `input_ids` and `attention_mask` int32 [B, S] to `embedding` float32 [B, D], or without
    /// pooling to `last_hidden_state` float32 [B, S, D]. The mask is 1 for a token and 0 for padding; where instructions
    /// are set apart, it is 2 for a token of one.
    Embedding(Embedding),
}

/// Weights, and what is read with them: those of the checkpoint itself, or those that an adapter makes of them.
pub struct Voice<'a> {
    /// What the functions are called after; nothing of the checkpoint itself.
    pub name: Option<String>,
    /// The configuration, which an adapter may change in whether head and embedding are one weight.
    pub config: &'a Config,
    /// The weights.
    pub weights: &'a dyn Weights,
    /// What is read.
    pub readings: Vec<Reading>,
}

/// A model as a program of semantic operations, and what a lowering must know beside it.
#[derive(Clone)]
pub struct Semantic {
    /// A function for each reading of each voice, S from 1 to `max_positions`. A single one is called `main`; of two, the
    /// embedding is called `encode`. The voice's name comes after it: `main_french`.
    pub program: Program,
    /// The architecture: an entry of `model_type`'s table.
    pub architecture: &'static str,
    /// The longest text that the model was made for, in tokens.
    pub max_positions: usize,
    /// V, the number of tokens; 0 without logits.
    pub vocab_size: usize,
    /// The number of the voice and what is read, in the order of the functions.
    pub readings: Vec<(usize, Reading)>,
    /// What adapters changed and no function uses, such as a head where only embeddings are read.
    pub unused: Vec<String>,
    /// By identity of a float32 weight of the program: the weight as the checkpoint has it.
    stored: HashMap<usize, Weight>,
}

/// The semantic program of a checkpoint, for what it was made for: logits, or an embedding.
///
/// # Errors
/// When the architecture is not known, a key of the configuration is absent or asks for what is not supported, or a
/// weight is absent or of another shape.
pub fn semantic(checkpoint: &Checkpoint) -> Result<Semantic> {
    let config = checkpoint.config();
    let model = Model::of_config(config)?;
    let reading = match has_head(model.read(config)?.as_ref(), config, checkpoint) {
        true => Reading::Logits,
        false => Reading::Embedding(Embedding::of_checkpoint(checkpoint)?),
    };
    semantic_with(model, config, checkpoint, &[reading])
}

/// The semantic program of an architecture, which need not be in the table, with weights from anywhere.
///
/// # Errors
/// As for [`semantic`], and when logits are asked of a model without a head.
pub fn semantic_with(model: &Model, config: &Config, weights: &dyn Weights, readings: &[Reading]) -> Result<Semantic> {
    semantic_of(model, &[Voice { name: None, config, weights, readings: readings.to_vec() }])
}

/// The semantic program of several voices, which share the weights that are the same.
///
/// # Errors
/// As for [`semantic_with`], and when the model does not use something that an adapter changed.
pub fn semantic_of(model: &Model, voices: &[Voice]) -> Result<Semantic> {
    let Some(first) = voices.first() else { bail!("found no weights to read, expected some") };
    let described = model.read(first.config)?;
    let mut semantic = Semantic {
        program: Program::default(),
        architecture: model.model_types[0],
        max_positions: checked_positions(described.as_ref(), first.config)?,
        vocab_size: described.head().map_or(0, |head| head.vocab_size),
        readings: Vec::new(),
        unused: Vec::new(),
        stored: HashMap::new(),
    };
    let mut shared = UsedWeights::default();
    for (number, voice) in voices.iter().enumerate() {
        let place = |error: Error| match &voice.name {
            Some(name) => error.at(format!("adapter `{name}`")),
            None => error,
        };
        let used = semantic.add(model, number, voice, &shared).map_err(place)?;
        if number == 0 {
            shared = used;
        }
    }
    Ok(semantic)
}

fn checked_positions(described: &dyn Described, config: &Config) -> Result<usize> {
    let max_positions = described.max_positions();
    if max_positions == 0 || i32::try_from(max_positions).is_err() {
        bail!("{}: found a context of {max_positions} tokens, expected 1 to 2^31 - 1", config.path().display());
    }
    Ok(max_positions)
}

/// Whether a checkpoint can give logits: the model has a head, and its weight is there.
pub(crate) fn has_head(described: &dyn Described, config: &Config, weights: &dyn Weights) -> bool {
    let Some(head) = described.head() else { return false };
    let architectures = config.optional::<Vec<String>>("architectures").ok().flatten().unwrap_or_default();
    let bare = |name: &String| name.ends_with("Model") && !name.ends_with("LMHeadModel");
    // A model saved without its head says so; where its head is tied, no weight is missing.
    !architectures.iter().any(bare) && weights.has(&format!("{}.weight", head.module))
}

fn function(
    name: &str,
    reading: Reading,
    described: &dyn Described,
    config: &Config,
    weights: &dyn Weights,
    used: UsedWeights,
) -> Result<(Function, UsedWeights)> {
    let mut builder = Builder::new(Function::new(name, Opset::Semantic));
    let batch = if reading == Reading::Logits { Dim::Fixed(1) } else { Dim::Unknown };
    let ty = TensorType { dtype: DType::I32, shape: vec![batch, Dim::Unknown] };
    let ids = builder.input("input_ids", ty.clone().into(), Flexibility::Fixed);
    let mask = match reading {
        Reading::Logits => None,
        Reading::Embedding(_) => Some(builder.input("attention_mask", ty.into(), Flexibility::Fixed)),
    };
    let mut g = Graph::new(config, weights, used, builder, ids, mask);
    if let Reading::Embedding(Embedding { instruction: Instruction::SetApart, .. }) = reading {
        g.look_both_ways();
    }
    let hidden = described.build(&mut g)?;
    let output = match (reading, described.head()) {
        (Reading::Logits, Some(head)) => g.logits(&head, hidden)?,
        (Reading::Logits, None) => bail!(
            "{}: found an encoder, expected a model with logits", config.path().display();
            hint: "ask for the function `encode`"
        ),
        (Reading::Embedding(embedding), _) => embedding.write(&mut g, hidden)?,
    };
    let (mut function, used) = g.finish(vec![output]);
    let max_positions = described.max_positions();
    for input in &mut function.inputs {
        input.flexibility = match reading {
            Reading::Logits => lengths(max_positions),
            Reading::Embedding(_) => Flexibility::Range {
                bounds: vec![(1, None), (1, Some(max_positions))],
                default: vec![1, max_positions.min(64)],
            },
        };
    }
    Ok((function, used))
}

/// The shapes [1, S] for S from one to `longest`; 64 if none is asked for.
pub(crate) fn lengths(longest: usize) -> Flexibility {
    Flexibility::Range { bounds: vec![(1, Some(1)), (1, Some(longest))], default: vec![1, longest.min(64)] }
}

impl Semantic {
    /// Adds the functions of a voice. Weights that are `shared` with another are the same weights.
    fn add(&mut self, model: &Model, number: usize, voice: &Voice, shared: &UsedWeights) -> Result<UsedWeights> {
        let described = model.read(voice.config)?;
        let Changed { weights: changed, .. } = voice.weights.changed();
        let (watched, mut used) = (Watched::new(voice.weights), shared.without(&changed));
        for &reading in &voice.readings {
            let name = match reading {
                Reading::Embedding(_) if voice.readings.len() > 1 || voice.name.is_some() => "encode",
                _ => "main",
            };
            let name = voice.name.as_ref().map_or(name.to_owned(), |voice| format!("{name}_{voice}"));
            let (function, now) = function(&name, reading, described.as_ref(), voice.config, &watched, used)?;
            self.program.functions.push(function);
            self.readings.push((number, reading));
            used = now;
        }
        let unused = watched.unused();
        if let (Some(first), true) = (unused.first(), voice.readings.contains(&Reading::Logits)) {
            bail!(
                "found a change of `{first}`{}, which the model does not use in that way, expected changes of what it uses",
                if unused.len() > 1 { format!(" and {} more weights", unused.len() - 1) } else { String::new() };
                hint: "adapters of experts, and of heads that are always tied, go into the weights with --adapters merge"
            );
        }
        self.unused.extend(unused);
        self.stored.extend(used.stored.iter().map(|(id, weight)| (*id, weight.clone())));
        Ok(used)
    }

    /// The first function.
    pub fn main(&self) -> &Function {
        &self.program.functions[0]
    }

    /// The function of a voice that gives logits, or that which gives embeddings.
    pub(crate) fn function_with(&self, voice: usize, is: impl Fn(&Reading) -> bool) -> Result<&Function> {
        let place = self.readings.iter().position(|(number, reading)| *number == voice && is(reading));
        let found = place.and_then(|place| self.program.functions.get(place));
        found.ok_or_else(|| {
            Error::new("the semantic program has no such function, expected one for each that is lowered")
        })
    }

    /// From how many tokens on positions turn otherwise, if they do.
    pub(crate) fn long_from(&self) -> Option<usize> {
        let operations = self.program.functions.iter().flat_map(|function| &function.block.operations);
        let mut rotations = operations.filter(|operation| operation.arg("long_inverse_frequencies").is_some());
        match rotations.find_map(|operation| operation.arg("long_from"))? {
            Arg::Value(Value::Tensor(from)) => usize::try_from(*from.to_i64().ok()?.first()?).ok(),
            _ => None,
        }
    }

    /// The weight as the checkpoint has it, of which `weight` is the float32 form: to be converted once, not twice.
    pub fn stored(&self, weight: &Weight) -> Weight {
        self.stored.get(&weight.id()).unwrap_or(weight).clone()
    }
}
