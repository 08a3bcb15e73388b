//! How tokens are chosen, and when an answer ends.

use crate::failure::{Failure, Result};
use crate::interrupt;
use quince_runtime::{ContextFull, GenerateOptions, SamplerOptions, SpecialTokens};

/// As typed.
#[derive(clap::Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// The most tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_tokens: usize,
    /// How freely tokens are chosen; 0 always takes the most likely one
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f32,
    /// Choose among the K most likely tokens; 0 for all
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,
    /// Choose among the most likely tokens that together have this probability
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f32,
    /// Drop tokens less likely than this share of the most likely one
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    min_p: f32,
    /// Make tokens that were there less likely; 1 does nothing
    #[arg(long, value_name = "R", default_value_t = 1.0)]
    repetition_penalty: f32,
    /// Where random numbers begin: the same seed gives the same answer
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// End the answer before this text; may be repeated
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Go on past the model's end of text
    #[arg(long)]
    ignore_eos: bool,
}

impl SamplingArgs {
    /// What the generation is told; Ctrl-C cuts the answer.
    ///
    /// # Errors
    /// When an option is out of its range.
    pub fn options(&self) -> Result<GenerateOptions> {
        let options = GenerateOptions {
            max_tokens: self.max_tokens,
            sampling: SamplerOptions {
                temperature: self.temperature,
                top_k: self.top_k,
                top_p: self.top_p,
                min_p: self.min_p,
                repetition_penalty: self.repetition_penalty,
                seed: self.seed,
                ..SamplerOptions::default()
            },
            stop: self.stop.clone(),
            ignore_eos: self.ignore_eos,
            special_tokens: SpecialTokens::Omit,
            context_full: ContextFull::Stop,
            cancel: Some(interrupt::flag()),
        };
        options.sampling.check().map_err(Failure::Usage)?;
        Ok(options)
    }
}
