//! `quince embed`: one vector for each line of a text.

mod texts;

use crate::console::{Console, Counted};
use crate::failure::{Failure, Result, refused};
use crate::npz;
use crate::options::engine::EngineArgs;
use crate::output::{Existing, vacant};
use clap::ValueEnum;
use quince_engine::{Engine, Precision};
use quince_runtime::{Bundle, Embedder, Embeddings, Pooling, SentenceModules, SpecialTokens, Tokenizer};
use quince_tensor::{Error, Tensor};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;
use texts::{Kind, Texts};

/// Turn each line of a text into a vector
///
/// Lines are computed in batches of like length, within the shapes that the package takes; vectors come in the order of
/// the lines. A line that is longer than the package takes is cut, which is said. The input is plain lines, or lines of
/// JSON if its name ends in .jsonl: each a string, or an object with the text in the field that --field names. The
/// output is a matrix of float32 for numpy.load, or for each line an object with its text (or what it had) and its
/// embedding, by the ending of its name.
///
/// Where the package gives hidden states instead of embeddings, they are pooled as modules.json of sentence-transformers
/// beside the tokenizer says, else to their mean.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  quince embed minilm.bundle sentences.txt --output sentences.npy
  quince embed bert.mlpackage notes.jsonl --field body --tokenizer bert --pooling cls --normalize --output notes.jsonl
  grep TODO notes.txt | quince embed minilm.mlpackage --tokenizer minilm --output todo.jsonl")]
pub struct Args {
    /// A bundle, or a package beside its tokenizer
    package: PathBuf,
    /// A file of UTF-8 lines; standard input if it is not given, or -
    text: Option<PathBuf>,
    /// Where vectors are written: a name that ends in .npy or .jsonl
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// The kind of output, whatever the name ends in
    #[arg(long, value_name = "KIND")]
    format: Option<Format>,
    /// The kind of input, whatever the name ends in
    #[arg(long, value_name = "KIND")]
    input: Option<Kind>,
    /// The field of an object of JSON that has the text
    #[arg(long, value_name = "NAME", default_value = "text")]
    field: String,
    /// The directory of the tokenizer, where it does not lie beside the package
    #[arg(long, value_name = "DIR")]
    tokenizer: Option<PathBuf>,
    /// What one vector is made of, in a package that gives hidden states
    #[arg(long, value_name = "TOKENS")]
    pooling: Option<PoolingArg>,
    /// Give every vector the length one
    #[arg(long)]
    normalize: bool,
    /// Replace an output that exists
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    engine: EngineArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A matrix [lines, dimension] of float32
    Npy,
    /// An object for each line, with its text and its embedding
    Jsonl,
}

#[derive(Clone, Copy, ValueEnum)]
enum PoolingArg {
    /// The mean of all tokens
    Mean,
    /// The first token
    Cls,
    /// The last token
    Last,
}

/// Embeds.
pub fn run(args: &Args, console: &Console) -> Result<ExitCode> {
    let format = format(args)?;
    vacant(&args.output, if args.force { Existing::Replace } else { Existing::Refuse })?;
    let bundle = Bundle::open(&args.package)?;
    let files = args.tokenizer.as_deref().unwrap_or(bundle.directory());
    let tokenizer = Tokenizer::from_dir(files)?;
    let engine = Engine::load(bundle.read_package()?.program, args.engine.options(console, Precision::Default))?;
    let embedder = Embedder::new(Arc::new(engine)).map_err(|e| e.at(args.package.display()))?;
    let (embedder, normalizes) = pooling(args, embedder.with_padding(padding(&tokenizer)), files)?;
    let texts = Texts::read(args.text.as_deref(), args.input, &args.field)?;
    let sentences = ids(&embedder, &tokenizer, &texts, console)?;
    let bar = console.bar("embedding", texts.len() as u64, Counted::Things("lines"));
    let start = Instant::now();
    let found = embedder.embed(&sentences, &mut |done| bar.set_position(done as u64));
    bar.finish_and_clear();
    let mut found = found?;
    if normalizes {
        found.normalize();
    }
    let seconds = start.elapsed().as_secs_f64().max(1e-9);
    write(&args.output, format, &texts, found)?;
    console.note(&format!(
        "{} lines embedded in {seconds:.1} s, {:.0} lines/s",
        texts.len(),
        texts.len() as f64 / seconds
    ));
    Ok(ExitCode::SUCCESS)
}

fn format(args: &Args) -> Result<Format> {
    let ending = args.output.extension().and_then(|ending| ending.to_str()).map(str::to_ascii_lowercase);
    match (args.format, ending.as_deref()) {
        (Some(format), _) => Ok(format),
        (None, Some("npy")) => Ok(Format::Npy),
        (None, Some("jsonl")) => Ok(Format::Jsonl),
        _ => {
            let message =
                format!("--output: found {}, expected a name that ends in .npy or .jsonl", args.output.display());
            Err(Failure::usage_hint(message, "--format says which, whatever the name is"))
        }
    }
}

/// The token that fills what is left of a row.
fn padding(tokenizer: &Tokenizer) -> u32 {
    let token = tokenizer.special_tokens().get("pad_token").and_then(|token| token.as_str());
    token.and_then(|token| tokenizer.token_to_id(token)).unwrap_or(0)
}

/// The embedder with how it pools, and whether vectors are normalized.
fn pooling(args: &Args, embedder: Embedder, files: &Path) -> Result<(Embedder, bool)> {
    if !embedder.pools() {
        if args.pooling.is_some() {
            let message = "--pooling: found a package that gives embeddings, expected one that gives hidden states";
            return Err(Failure::usage_hint(message, "leave it out").at(args.package.display()));
        }
        return Ok((embedder, args.normalize));
    }
    let modules = match args.pooling {
        Some(_) => SentenceModules::default(),
        None => SentenceModules::read(files)?,
    };
    let asked = args.pooling.map(|pooling| match pooling {
        PoolingArg::Mean => Pooling::Mean,
        PoolingArg::Cls => Pooling::First,
        PoolingArg::Last => Pooling::Last,
    });
    let pooling = asked.or(modules.pooling).unwrap_or_default();
    Ok((embedder.with_pooling(pooling), args.normalize || modules.normalizes))
}

/// The tokens of each line, cut to what the package takes.
fn ids(embedder: &Embedder, tokenizer: &Tokenizer, texts: &Texts, console: &Console) -> Result<Vec<Vec<u32>>> {
    let longest = embedder.shapes().longest();
    let mut sentences = Vec::with_capacity(texts.len());
    let mut cut = 0;
    for (number, text) in texts.iter() {
        let at_line = |e: Error| e.at(format!("line {number}"));
        let mut ids = tokenizer.encode(text, SpecialTokens::Include).map_err(at_line)?;
        if ids.len() > longest {
            cut += 1;
            ids = tokenizer.encode_within(text, longest).map_err(at_line)?;
        }
        if ids.is_empty() {
            return Err(at_line(Error::new("found no tokens, expected a text").hint("leave empty lines out")).into());
        }
        sentences.push(ids);
    }
    if cut > 0 {
        console.note(&format!("{cut} of {} lines are longer than {longest} tokens and were cut", texts.len()));
    }
    Ok(sentences)
}

/// Writes the output, whole or not at all.
fn write(path: &Path, format: Format, texts: &Texts, found: Embeddings) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".unfinished");
    let partial = path.with_file_name(name);
    let file = File::create(&partial).map_err(|e| refused("write", &partial, &e))?;
    let written = contents(BufWriter::new(file), format, texts, found).map_err(|e| e.at(path.display()));
    let written = written.and_then(|()| std::fs::rename(&partial, path).map_err(|e| refused("write", path, &e)));
    if written.is_err() {
        // The error that matters is the one at hand.
        drop(std::fs::remove_file(&partial));
    }
    Ok(written?)
}

fn contents(mut file: impl Write, format: Format, texts: &Texts, found: Embeddings) -> quince_tensor::Result<()> {
    match format {
        Format::Npy => {
            npz::write_npy(&mut file, &Tensor::from_vec([texts.len(), found.dimension], found.values)?)?;
        }
        Format::Jsonl => {
            for (number, row) in found.rows().enumerate() {
                writeln!(file, "{}", texts.with_embedding(number, row)).map_err(|e| npz::unwritten(&e))?;
            }
        }
    }
    file.flush().map_err(|e| npz::unwritten(&e))
}
