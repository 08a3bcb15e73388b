//! From a compiled model back to a package.

use super::{Args, KvCacheArg, PrecisionArg, is_package};
use crate::bundling;
use crate::console::Console;
use crate::failure::{Failure, Result};
use crate::options::target::{DeploymentTarget, Units};
use crate::output::{self, Existing};
use crate::units;
use quince_mlpackage::Package;
use serde::Serialize;
use std::process::ExitCode;

/// What became of the compiled model.
#[derive(Serialize)]
struct Report {
    output: String,
    functions: Vec<String>,
    specification_version: i32,
    operations: usize,
    model_bytes: u64,
    weight_bytes: u64,
}

/// Reads the compiled model and writes the package.
pub fn run(args: &Args, console: &Console) -> Result<ExitCode> {
    if let Some(option) = args.for_checkpoints()? {
        return Err(Failure::usage_hint(
            format!("found {option} with a compiled model, expected it with a checkpoint only"),
            "a compiled model becomes a package as it is; `quince compress` compresses packages and compiled models",
        ));
    }
    if !is_package(&args.output) {
        return Err(Failure::usage(format!(
            "--output: found {}, expected a name that ends in .mlpackage: a compiled model becomes a package, not a bundle",
            args.output.display()
        )));
    }
    let existing = if args.force { Existing::Replace } else { Existing::Refuse };
    output::vacant(&args.output, existing)?;
    let package = Package::read(&args.model)?;
    let functions = &package.program.functions;
    let mut report = Report {
        output: args.output.display().to_string(),
        functions: functions.iter().map(|f| f.name.clone()).collect(),
        specification_version: package.specification_version(),
        operations: functions.iter().map(|f| f.block.operations.len()).sum(),
        model_bytes: 0,
        weight_bytes: 0,
    };
    let written = bundling::write_package(&package, &args.output, console)?;
    (report.model_bytes, report.weight_bytes) = (written.model_bytes, written.weight_bytes);
    if args.json {
        console.json(&report)?
    } else {
        console.print(&report.text())?
    }
    Ok(ExitCode::SUCCESS)
}

impl Report {
    fn text(&self) -> String {
        format!(
            "{}: {}, {} operations, {} of weights\n",
            self.output,
            self.functions.join(", "),
            self.operations,
            units::bytes(self.weight_bytes)
        )
    }
}

impl Args {
    /// An option that was given and says how a checkpoint is converted.
    fn for_checkpoints(&self) -> Result<Option<&'static str>> {
        let compressed = self.compression.is_asked(self.compute_units.devices())?;
        let given = [
            ("--functions", !self.functions.is_empty()),
            ("--context", !self.context.is_empty()),
            ("--prefill-length", self.prefill_length.is_some()),
            ("--length", self.length.is_some()),
            ("--all-logits", self.all_logits),
            ("--kv-cache", !matches!(self.kv_cache, KvCacheArg::State)),
            ("--compute-precision", !matches!(self.compute_precision, PrecisionArg::Float16)),
            ("--compute-units", self.compute_units != Units::All),
            ("--lm-head-parts", self.lm_head_parts.is_some()),
            ("--minimum-deployment-target", self.minimum_deployment_target != DeploymentTarget::Ios18),
            ("--validate", self.validate),
            ("an option of compression", compressed),
        ];
        Ok(given.into_iter().find(|(_, given)| *given).map(|(option, _)| option))
    }
}
