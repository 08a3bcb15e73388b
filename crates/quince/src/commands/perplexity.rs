//! `quince perplexity`: how well a model predicts a text.

use crate::console::{Console, Counted};
use crate::failure::{Result, refused};
use crate::loading::{self, Purpose};
use crate::options::adapter::AdapterArg;
use crate::options::engine::EngineArgs;
use crate::options::hub::HubArgs;
use quince_engine::Precision;
use quince_runtime::{SpecialTokens, Windows, perplexity};
use quince_tensor::Error;
use std::path::PathBuf;
use std::process::ExitCode;

/// Measure how well a model predicts a text
///
/// The text is cut into windows that do not overlap, each beginning with the model's begin-of-text token if it has one.
/// Every token but a window's first is predicted from those before it in the window; the result is exp of the mean
/// negative natural logarithm of their probabilities. A rest that does not fill a window is not used.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  quince perplexity models/tiny-llama --text models/tiny-llama/heldout_stories.txt --length 256
  quince perplexity tiny.bundle --text models/tiny-llama/heldout_stories.txt --length 256 --json")]
pub struct Args {
    /// A bundle, a package beside its tokenizer, or a checkpoint or model of the Hub, which is run in float32
    model: PathBuf,
    /// A file with UTF-8 text
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Tokens of a window. Default: 512, or the context if that is less
    #[arg(long, value_name = "N")]
    length: Option<usize>,
    #[command(flatten)]
    adapter: AdapterArg,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    hub: HubArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Measures it.
pub fn run(args: &Args, console: &Console) -> Result<ExitCode> {
    let text = std::fs::read_to_string(&args.text).map_err(|e| refused("read the text", &args.text, &e))?;
    let path = args.hub.path(&args.model, console)?;
    let engine = args.engine.options(console, Precision::Default);
    let mut model = loading::load(&path, Purpose::Score, args.adapter.name(), engine)?;
    let Some(tokenizer) = &model.tokenizer else {
        return Err(Error::new("found no tokenizer.json, expected one beside the model").at(args.model.display()).into());
    };
    let tokens = tokenizer.encode(&text, SpecialTokens::Omit)?;
    let windows = Windows::new(&model.decoder, Some(tokenizer), args.length)?;
    let bar = console.bar("perplexity", 0, Counted::Things("windows"));
    let found = perplexity(&mut model.decoder, &tokens, windows, &mut |done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    let found = found.map_err(|e| e.at(args.text.display()))?;
    match args.json {
        true => console.json(&found)?,
        false => console.print(&format!(
            "perplexity {:.4} over {} tokens (windows of {}, {:.4} nats per token)\n",
            found.perplexity, found.tokens, windows.length, found.nll
        ))?,
    }
    Ok(ExitCode::SUCCESS)
}
