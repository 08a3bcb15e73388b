//! Int8 activations: the options of `convert` and `compress`, and how they are done.

use crate::console::Console;
use crate::failure::Result;
use crate::options::calibration::CalibrationArgs;
use clap::ValueEnum;
use quince_calibrate::RangeRule;
use quince_compress::{ActivationMode, quantize_activations};
use quince_mil::Program;
use quince_runtime::Tokenizer;
use serde::Serialize;

/// As typed.
#[derive(clap::Args)]
#[command(next_help_heading = "Compression")]
pub struct ActivationArgs {
    /// Also quantize what layers take to int8, with one scale for each value; with --quantize int8 that is W8A8. The ranges
    /// are measured by running the model on the text of --calibrate, or on that which it has without a file
    #[arg(long, value_name = "MODE", num_args = 0..=1, default_missing_value = "linear_symmetric")]
    quantize_activations: Option<ModeArg>,
    /// What of the measured values a range covers: all; all but one of ten thousand on either side; or as many as keep
    /// most of what their distribution tells
    #[arg(long, value_name = "RULE", default_value = "minmax", requires = "quantize_activations")]
    activation_range: RangeArg,
}

#[derive(Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
enum ModeArg {
    LinearSymmetric,
    Linear,
}

#[derive(Clone, Copy, ValueEnum)]
enum RangeArg {
    #[value(name = "minmax")]
    MinMax,
    Percentile,
    Entropy,
}

/// What became of activations.
#[derive(Clone, Serialize)]
pub struct Activations {
    /// How many values are quantized.
    quantized: usize,
    /// Those whose range is not known.
    left: Vec<String>,
}

impl ActivationArgs {
    /// Quantizes the activations of a program if that is asked for, by what they are in the program as it was before its
    /// weights were compressed.
    ///
    /// # Errors
    /// When that program cannot be run, or this one has a target without int8 activations.
    pub fn quantize(
        &self,
        program: &mut Program,
        before: &Program,
        calibration: &CalibrationArgs,
        tokenizer: impl FnOnce() -> Result<Option<Tokenizer>>,
        console: &Console,
    ) -> Result<Option<Activations>> {
        let Some(mode) = self.quantize_activations else { return Ok(None) };
        let mode = match mode {
            ModeArg::LinearSymmetric => ActivationMode::Symmetric,
            ModeArg::Linear => ActivationMode::Asymmetric,
        };
        let rule = match self.activation_range {
            RangeArg::MinMax => RangeRule::MinMax,
            RangeArg::Percentile => RangeRule::Percentile,
            RangeArg::Entropy => RangeRule::Entropy,
        };
        let ranges = calibration.ranges(before, tokenizer()?.as_ref(), rule, console)?;
        let report = quantize_activations(program, &ranges, mode).map_err(|e| e.at("--quantize-activations"))?;
        Ok(Some(Activations { quantized: report.quantized.len(), left: report.left }))
    }

    /// Whether it is asked for.
    pub fn asked(&self) -> bool {
        self.quantize_activations.is_some()
    }
}

impl Activations {
    /// For people.
    pub fn text(&self) -> String {
        let mut text = format!("activations: {} values in int8\n", self.quantized);
        if !self.left.is_empty() {
            text += &format!("left as they are, never seen: {}\n", self.left.join(", "));
        }
        text
    }
}
