//! `quince validate`: is a package right?

use crate::bundling;
use crate::console::Console;
use crate::failure::{Result, refused};
use crate::options::hub::HubArgs;
use crate::options::pooling::PoolingArg;
use crate::validating::{self, Against};
use quince_checkpoint::Checkpoint;
use quince_runtime::{Bundle, Suite};
use std::path::PathBuf;
use std::process::ExitCode;

/// Prove that a package is right: run it against the checkpoint it was made from
///
/// The package is run as it was shipped, with its cache and its compression; the reference is the checkpoint in float32
/// without either. Compared are the answers to prompts, the logits along the reference's answers, and the perplexity on
/// a text; of encoders the cosine between embeddings of sentences, which is at least 0.99 for every one. Which thresholds hold depends on the bits of the weights; a TOML file says otherwise. Before that the files of a bundle, of each
/// part of a model too, are compared with the digests of its manifest. The exit status is 1
/// when one of them falls.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  quince validate tiny.bundle --against models/tiny-llama
  quince validate tiny.bundle --against models/tiny-llama --prompts prompts.toml --json

A file for --prompts:
  max_tokens = 24
  text = \"A page of text for the perplexity.\"
  [[prompts]]
  chat = \"What is a fruit?\"
  sentences = [\"What encoders embed.\"]
  [[prompts]]
  text = \"Once upon a time\"
  [thresholds]
  logits_psnr = 40.0
  top1_agreement = 0.95")]
pub struct Args {
    /// A bundle, or a package
    package: PathBuf,
    /// The checkpoint that it was made from, or its name on the Hub
    #[arg(long, value_name = "MODEL")]
    against: PathBuf,
    /// Prompts, text and thresholds; built-in ones if not given
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// How the package pools, where it is not as modules.json of sentence-transformers says
    #[arg(long, value_name = "WHAT")]
    pooling: Option<PoolingArg>,
    #[command(flatten)]
    hub: HubArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Validates, and prints the report.
pub fn run(args: &Args, console: &Console) -> Result<ExitCode> {
    let suite = match &args.prompts {
        None => Suite::built_in()?,
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|e| refused("read the prompts", path, &e))?;
            Suite::parse(&text).map_err(|e| e.at(path.display()))?
        }
    };
    let bundle = Bundle::open(&args.package)?;
    bundling::verify(&bundle, console)?;
    let checkpoint = Checkpoint::open(args.hub.path(&args.against, console)?)?;
    let against = Against { checkpoint: &checkpoint, pooling: args.pooling.map(PoolingArg::checked), suite: &suite };
    let found = validating::against_checkpoint(&bundle, &against, console)?;
    if args.json {
        console.json(&found)?
    } else {
        console.print(&validating::text(&found))?
    }
    Ok(ExitCode::from(found.report.exit_status()))
}
