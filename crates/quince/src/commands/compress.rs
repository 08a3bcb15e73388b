//! `quince compress`: compresses the weights of a package that exists.

use super::convert::Compression;
use crate::allocating::{self, Compressed};
use crate::bundling::{self, Draft};
use crate::console::Console;
use crate::failure::{Failure, Result};
use crate::loading;
use crate::options::activations::ActivationArgs;
use crate::options::calibration::CalibrationArgs;
use crate::options::compression::{self, Asked, CompressionArgs};
use crate::options::recipe::{self, RECIPE};
use crate::options::target::Units;
use crate::output::{self, Existing, Output};
use quince_mlpackage::Package;
use quince_runtime::Bundle;
use std::path::PathBuf;
use std::process::ExitCode;

/// Compress the weights of a package, also of one that another tool wrote
///
/// Weights that are compressed already stay as they are. A bundle gives a bundle, a package or compiled model a package. A
/// model in parts is compressed when it is converted.
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
    #[command(flatten)]
    activations: ActivationArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Compresses, and prints what the rules touched.
pub fn run(args: &Args, console: &Console) -> Result<ExitCode> {
    let asked = args.compression.asked(args.compute_units.devices())?;
    if asked.is_none() && !args.activations.asked() {
        return Err(Failure::usage_hint(
            "found nothing to do, expected a way to compress",
            "add --wbits 4, --quantize int8, --sparsity 0.5, --target-size 900MB or --recipe FILE",
        ));
    }
    let existing = if args.force { Existing::Replace } else { Existing::Refuse };
    output::vacant(&args.output, existing)?;
    let bundle = Bundle::open(&args.package)?;
    bundle.only_package()?;
    let mut package = bundle.read_package()?;
    let before = package.program.clone();
    let compressed = asked.map(|asked| compressed(args, asked, &bundle, &mut package, console)).transpose()?;
    let tokenizer = || loading::tokenizer(bundle.directory());
    let activations =
        args.activations.quantize(&mut package.program, &before, &args.calibration, tokenizer, console)?;
    match bundle.manifest() {
        None => drop(bundling::write_package(&package, &args.output, console)?),
        Some(manifest) => {
            let staged = Output::create(&args.output, existing)?;
            let mut draft = Draft::of_manifest(manifest, bundle.directory());
            let recipe = compressed.as_ref().map(|compressed| recipe::text(&compressed.config));
            draft.made.extend(recipe.map(|text| (RECIPE.to_string(), text)));
            bundling::write_bundle(&package, draft, &staged.path(), console)?;
            staged.finish()?;
        }
    }
    let report = compressed.map(|compressed| Compression::of(&compressed.report, compressed.allocation));
    let report = Compression::with_activations(report, activations).unwrap_or_default();
    if args.json {
        console.json(&report)?
    } else {
        console.print(&report.text())?
    }
    Ok(ExitCode::SUCCESS)
}

/// Compresses the weights of a package.
fn compressed(
    args: &Args,
    asked: Asked,
    bundle: &Bundle,
    package: &mut Package,
    console: &Console,
) -> Result<Compressed> {
    let tokenizer = || loading::tokenizer(bundle.directory());
    let beside = output::directory(&args.output);
    let calibration = args.calibration.of(tokenizer, beside)?;
    let target = allocating::Target { package, judged: None, calibration, tokenizer: tokenizer()? };
    let compressed = allocating::compress(target, asked, console)
        .map_err(|e| e.at(args.package.display()).hint("weights that are compressed already stay as they are"))?;
    compression::warnings(&compressed.config, &args.calibration)
        .iter()
        .for_each(|warning| console.note(&format!("warning: {warning}")));
    if compressed.report.raised.is_some() {
        console.note("warning: the package now needs iOS 16 or macOS 13: systems before have no compressed weights");
    }
    Ok(compressed)
}
