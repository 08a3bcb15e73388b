//! The semantic program: the model as its file in `models/` says it, in float32, without cache, compression or target.
//!
//! It is what lowerings start from, and it is the reference that they, and the packages made of them, are compared with.

use crate::graph::{Graph, Weights};
use crate::models::Model;
use quince_checkpoint::{Checkpoint, Config};
use quince_mil::{Builder, DType, Dim, Flexibility, Function, Opset, Program, Result, TensorType, Weight, bail};
use std::collections::HashMap;

/// A model as a program of semantic operations, and what a lowering must know beside it.
#[derive(Clone)]
pub struct Semantic {
    /// One function `main`: `input_ids` int32 [1, S] to `logits` float32 [1, S, V], S from 1 to `max_positions`.
    pub program: Program,
    /// The architecture: an entry of `model_type`'s table.
    pub architecture: &'static str,
    /// The longest text that the model was made for, in tokens.
    pub max_positions: usize,
    /// V, the number of tokens.
    pub vocab_size: usize,
    /// By identity of a float32 weight of the program: the weight as the checkpoint has it.
    stored: HashMap<usize, Weight>,
}

/// The semantic program of a checkpoint.
///
/// # Errors
/// When the architecture is not known, a key of the configuration is absent or asks for what is not supported, or a
/// weight is absent or of another shape.
pub fn semantic(checkpoint: &Checkpoint) -> Result<Semantic> {
    let config = checkpoint.config();
    semantic_with(Model::of_config(config)?, config, checkpoint)
}

/// The semantic program of an architecture, which need not be in the table, with weights from anywhere.
///
/// # Errors
/// As for [`semantic`].
pub fn semantic_with(model: &Model, config: &Config, weights: &dyn Weights) -> Result<Semantic> {
    let mut builder = Builder::new(Function::new("main", Opset::Semantic));
    let ty = TensorType { dtype: DType::I32, shape: vec![Dim::Fixed(1), Dim::Unknown] };
    let ids = builder.input("input_ids", ty.into(), Flexibility::Fixed);
    let mut g = Graph::new(config, weights, builder, ids);
    let built = model.build(config, &mut g)?;
    if built.max_positions == 0 || i32::try_from(built.max_positions).is_err() {
        bail!("{}: found a context of {} tokens, expected 1 to 2^31 - 1", config.path().display(), built.max_positions);
    }
    let logits = g.logits(built.head.module, built.hidden, built.head.vocab_size, built.head.bias)?;
    let (mut function, stored) = g.finish(vec![logits]);
    function.inputs[0].flexibility = lengths(built.max_positions);
    Ok(Semantic {
        program: Program { functions: vec![function], ..Program::default() },
        architecture: model.model_types[0],
        max_positions: built.max_positions,
        vocab_size: built.head.vocab_size,
        stored,
    })
}

/// The shapes [1, S] for S from one to `longest`; 64 if none is asked for.
pub(crate) fn lengths(longest: usize) -> Flexibility {
    Flexibility::Range { bounds: vec![(1, Some(1)), (1, Some(longest))], default: vec![1, longest.min(64)] }
}

impl Semantic {
    /// The only function.
    pub fn main(&self) -> &Function {
        &self.program.functions[0]
    }

    /// The weight as the checkpoint has it, of which `weight` is the float32 form: to be converted once, not twice.
    pub fn stored(&self, weight: &Weight) -> Weight {
        self.stored.get(&weight.id()).unwrap_or(weight).clone()
    }
}
