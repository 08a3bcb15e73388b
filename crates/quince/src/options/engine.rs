//! How a program is run.

use crate::console::Console;
use clap::ValueEnum;
use quince_engine::{Options, Precision};

/// As typed.
#[derive(Debug, clap::Args)]
pub struct EngineArgs {
    /// How exact the arithmetic is
    #[arg(long, value_name = "HOW")]
    precision: Option<PrecisionArg>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PrecisionArg {
    /// As fast as is within the rounding of float16, in a float16 program; float32 programs are exact
    Default,
    /// As fast as can be, in float32 programs too: weights that are not compressed are rounded to int8 when they are
    /// first used, and what they are multiplied with may be
    Fast,
    /// Everything in float32
    Exact,
    /// Every input, constant and result is rounded to float16, as hardware for float16 does it, in float32 programs
    /// too; sums within an operation are float32. Slower: nothing is fused
    #[value(name = "fp16-strict")]
    Fp16Strict,
}

impl EngineArgs {
    /// What the engine is told; `otherwise` if nothing was typed.
    pub fn options(&self, console: &Console, otherwise: Precision) -> Options {
        let precision = match self.precision {
            Some(PrecisionArg::Default) => Precision::Default,
            Some(PrecisionArg::Fast) => Precision::Fast,
            Some(PrecisionArg::Exact) => Precision::Exact,
            Some(PrecisionArg::Fp16Strict) => Precision::Strict,
            None => otherwise,
        };
        Options { threads: console.threads(), precision, limits: console.limits() }
    }
}
