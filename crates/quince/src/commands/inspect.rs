//! `quince inspect`: what a checkpoint, a package or a bundle holds.

pub(super) mod checkpoint;
mod package;

use crate::console::Console;
use crate::failure::Result;
use crate::options::hub::HubArgs;
use quince_checkpoint::Checkpoint;
use quince_runtime::Bundle;
use std::path::PathBuf;
use std::process::ExitCode;

/// Show what a checkpoint, a package or a bundle holds
///
/// Of a checkpoint: its tensors, the parameters of each part of the model, the size of the KV cache for each length of
/// context, the memory that a conversion takes, and the size of the package for each way of compressing it. Of a
/// package or bundle: its functions, and its weights in the form that they are stored in. Nothing is computed and no
/// weight is read, so it takes no time however large the model is.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  quince inspect models/tiny-llama             a checkpoint, before converting it
  quince inspect tiny.bundle                   what became of it
  quince inspect model.mlpackage --json        for a machine")]
pub struct Args {
    /// A directory with config.json and safetensors, a GGUF file, a model of the Hub, an .mlpackage, an .mlmodelc, or a bundle
    path: PathBuf,
    #[command(flatten)]
    hub: HubArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Also list every tensor (JSON always does)
    #[arg(long)]
    tensors: bool,
}

/// Shows it.
pub fn run(args: &Args, console: &Console) -> Result<ExitCode> {
    let path = args.hub.path(&args.path, console)?;
    if Bundle::recognizes(&path) {
        let found = package::Summary::of(&Bundle::open(&path)?)?;
        if args.json { console.json(&found)? } else { console.print(&found.text(args.tensors))? }
    } else {
        let found = checkpoint::Summary::of(&Checkpoint::open(&path)?)?;
        if args.json { console.json(&found)? } else { console.print(&found.text(args.tensors))? }
    }
    Ok(ExitCode::SUCCESS)
}
