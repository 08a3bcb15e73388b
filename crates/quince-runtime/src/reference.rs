//! The reference that a package is measured against: the model itself, in float32, without cache and compression.

use std::sync::Arc;

use quince_engine::{Engine, Options, Precision};
use quince_mil::Program;
use quince_tensor::{Result, bail};

use crate::model::{Decoder, Route};
use crate::sampler::most_likely;

/// A program that computes the logits of a whole text at once.
pub struct Reference {
    decoder: Decoder,
}

/// What the reference says after a prompt, greedily.
#[derive(Clone, PartialEq, Debug)]
pub struct Continuation {
    /// The tokens.
    pub tokens: Vec<u32>,
    /// For each of them the logits that it was chosen from.
    pub logits: Vec<Vec<f32>>,
}

/// Continues a text by so many tokens, or fewer.
pub type Propose<'a> = dyn FnMut(&[u32], usize) -> Result<Vec<u32>> + 'a;

impl Reference {
    /// A reference from a program with a function of `input_ids` [1, S] to `logits` [1, S, V]: the semantic program of a
    /// checkpoint, or any other. It is computed in f32, whatever the options say.
    ///
    /// # Errors
    /// When there is no such function, or the program is not well formed.
    pub fn new(program: Program, options: Options) -> Result<Reference> {
        let engine = Engine::load(program, Options { precision: Precision::Exact, ..options })?;
        let decoder = Decoder::new(Arc::new(engine)).map_err(|error| error.at("reference"))?;
        if !decoder.routes().contains(&Route::Full) {
            bail!("reference: found no function without a cache, expected `input_ids` [1, S] to `logits` [1, S, V]");
        }
        Ok(Reference { decoder })
    }

    /// The model.
    pub fn decoder(&mut self) -> &mut Decoder {
        &mut self.decoder
    }

    /// The most tokens that it takes.
    pub fn context(&self) -> usize {
        self.decoder.longest(Route::Full)
    }

    /// The `count` tokens that follow `prompt` greedily, exactly as if each were computed after the other.
    ///
    /// Each call computes a whole text, so guesses save calls: `propose` continues a text by so many tokens; those that
    /// the reference would have chosen itself are kept, and the first that it would not is replaced by its own. After a
    /// wrong guess fewer are asked for, after right ones more. Guesses change the cost, never the result.
    ///
    /// # Errors
    /// An empty prompt, or more tokens than the reference takes; what the engine or `propose` reports.
    pub fn continuation(&mut self, prompt: &[u32], count: usize, propose: &mut Propose<'_>) -> Result<Continuation> {
        if prompt.is_empty() {
            bail!("prompt: found no token, expected at least one");
        }
        let mut text = prompt.to_vec();
        let mut logits = Vec::new();
        let mut guesses = count;
        while logits.len() < count {
            let missing = count - logits.len();
            // The last token of all is chosen, but nothing follows it.
            let proposed = propose(&text, guesses.min(missing - 1))?;
            let known = text.len();
            let mut tried = text.clone();
            tried.extend(proposed.iter().take(missing - 1));
            let mut agrees = true;
            self.decoder.score(Route::Full, &tried, &mut |i, row| {
                if agrees && i + 1 >= known {
                    let best = most_likely(row)?;
                    agrees = tried.get(i + 1) == Some(&best);
                    text.push(best);
                    logits.push(row.to_vec());
                }
                Ok(())
            })?;
            guesses = (text.len() - known) * 2 - 1;
        }
        Ok(Continuation { tokens: text.split_off(prompt.len()), logits })
    }
}
