//! How a program is run.

use crate::console::Console;
use clap::ValueEnum;
use quince_engine::{Options, Precision};

/// As typed.
#[derive(clap::Args)]
pub struct EngineArgs {
    /// How exact the arithmetic of a float16 program is
    #[arg(long, value_name = "HOW")]
    precision: Option<PrecisionArg>,
}

#[derive(Clone, Copy, ValueEnum)]
enum PrecisionArg {
    /// As fast as is within a float16's rounding
    Fast,
    /// Everything in float32
    Exact,
}

impl EngineArgs {
    /// What the engine is told; `otherwise` if nothing was typed.
    pub fn options(&self, console: &Console, otherwise: Precision) -> Options {
        let precision = match self.precision {
            Some(PrecisionArg::Fast) => Precision::Default,
            Some(PrecisionArg::Exact) => Precision::Exact,
            None => otherwise,
        };
        Options { threads: console.threads(), precision }
    }
}
