//! `quince compress`: compresses the weights of a package that exists.

use super::convert::Compression;
use crate::allocating;
use crate::bundling::{self, Draft};
use crate::console::Console;
use crate::failure::{Failure, Result};
use crate::loading;
use crate::options::calibration::CalibrationArgs;
use crate::options::compression::{self, CompressionArgs};
use crate::options::recipe::{self, RECIPE};
use crate::options::target::Units;
use crate::output::{self, Existing, Output};
use quince_runtime::Bundle;
use std::path::PathBuf;
use std::process::ExitCode;

/// Compress the weights of a package, also of one that another tool wrote
///
/// Weights that are compressed already stay as they are. A bundle gives a bundle, a package or compiled model a package.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  quince compress bert.mlpackage -o bert4.mlpackage --wbits 4 --palett-group-size 16
  quince compress story.bundle -o story8.bundle --quantize int8")]
pub struct Args {
    /// A package, a compiled model (.mlmodelc), or a bundle
    package: PathBuf,
    /// The compressed package or bundle
    #[arg(long, short, value_name = "PACKAGE")]
    output: PathBuf,
    /// Replace the output if it exists
    #[arg(long)]
    force: bool,
    /// The processors that the package is to run on
    #[arg(long, value_name = "UNITS", default_value = "all")]
    compute_units: Units,
    #[command(flatten)]
    compression: CompressionArgs,
    #[command(flatten)]
    calibration: CalibrationArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Compresses, and prints what the rules touched.
pub fn run(args: &Args, console: &Console) -> Result<ExitCode> {
    let Some(asked) = args.compression.asked(args.compute_units.devices())? else {
        return Err(Failure::usage_hint(
            "found nothing to do, expected a way to compress",
            "add --wbits 4, --quantize int8, --sparsity 0.5, --target-size 900MB or --recipe FILE",
        ));
    };
    let existing = if args.force { Existing::Replace } else { Existing::Refuse };
    output::vacant(&args.output, existing)?;
    let bundle = Bundle::open(&args.package)?;
    let mut package = bundle.read_package()?;
    let tokenizer = || loading::tokenizer(bundle.directory());
    let beside = output::directory(&args.output);
    let guide = args.calibration.guide(&package.program, tokenizer, beside, console)?;
    let tokenizer = loading::tokenizer(bundle.directory())?;
    let target = allocating::Target { package: &mut package, judged: None, guide, tokenizer };
    let compressed = allocating::compress(target, asked, console)
        .map_err(|e| e.at(args.package.display()).hint("weights that are compressed already stay as they are"))?;
    compression::warnings(&compressed.config, &args.calibration)
        .iter()
        .for_each(|warning| console.note(&format!("warning: {warning}")));
    let report = compressed.report;
    if report.raised.is_some() {
        console.note("warning: the package now needs iOS 16 or macOS 13: systems before have no compressed weights");
    }
    match bundle.manifest() {
        None => drop(bundling::write_package(&package, &args.output, console)?),
        Some(manifest) => {
            let staged = Output::create(&args.output, existing)?;
            let mut draft = Draft::of_manifest(manifest, bundle.directory());
            draft.made.insert(RECIPE.to_string(), recipe::text(&compressed.config));
            bundling::write_bundle(&package, draft, &staged.path(), console)?;
            staged.finish()?;
        }
    }
    let report = Compression::of(&report, compressed.allocation);
    if args.json {
        console.json(&report)?
    } else {
        console.print(&report.text())?
    }
    Ok(ExitCode::SUCCESS)
}
