//! `quince embed`: one vector for each line of a text.

mod journal;
mod texts;

use crate::console::{Console, Counted};
use crate::failure::{Failure, Result, refused};
use crate::npz;
use crate::options::engine::EngineArgs;
use crate::output::{Existing, vacant};
use clap::ValueEnum;
use journal::{Begin, Journal};
use quince_engine::{Engine, Precision};
use quince_runtime::{Bundle, Embedder, Embeddings, Pooling, Prompts, SentenceModules, SpecialTokens, Tokenizer};
use quince_tensor::{Error, Tensor};
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Instant, UNIX_EPOCH};
use texts::{Kind, Texts};

/// Lines that are sorted by length and computed together; what of them was finished when a run ended is made anew.
const PART: usize = 1024;

/// Turn each line of a text into a vector
///
/// Lines are computed in batches of like length, within the shapes that the package takes; vectors come in the order of
/// the lines. A line that is longer than the package takes is cut, which is said. The input is plain lines, or lines of
/// JSON if its name ends in .jsonl: each a string, or an object with the text in the field that --field names; or a column
/// of a Parquet file. The output is a matrix of float32 for numpy.load, for each line an object with its text (or what it
/// had) and its embedding, or a Parquet file with both, by the ending of its name.
///
/// Vectors are kept as they are made: a run that ended early goes on with --resume, and gives the same bytes.
///
/// Where the package gives hidden states instead of embeddings, they are pooled as modules.json of sentence-transformers
/// beside the tokenizer says, else to their mean.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  quince embed minilm.bundle sentences.txt --output sentences.npy
  quince embed bert.mlpackage notes.jsonl --field body --tokenizer bert --pooling cls --normalize --output notes.jsonl
  quince embed qwen.bundle questions.txt --prompt-name query --output questions.npy --resume
  grep TODO notes.txt | quince embed minilm.mlpackage --tokenizer minilm --output todo.jsonl")]
pub struct Args {
    /// A bundle, or a package beside its tokenizer
    package: PathBuf,
    /// A file of UTF-8 lines; standard input if it is not given, or -
    text: Option<PathBuf>,
    /// Where vectors are written: a name that ends in .npy, .jsonl or .parquet
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// The kind of output, whatever the name ends in
    #[arg(long, value_name = "KIND")]
    format: Option<Format>,
    /// The kind of input, whatever the name ends in
    #[arg(long, value_name = "KIND")]
    input: Option<Kind>,
    /// The field of an object of JSON, or the column of Parquet, that has the text
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
    /// Put the prompt of this name in config_sentence_transformers.json before each text
    #[arg(long, value_name = "NAME")]
    prompt_name: Option<String>,
    /// Put this before each text
    #[arg(long, value_name = "TEXT", conflicts_with = "prompt_name")]
    prompt: Option<String>,
    /// Go on with an output that was not finished; the result is the same as without a break
    #[arg(long)]
    resume: bool,
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
    /// The columns `text` and `embedding`, a list of float32
    Parquet,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
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
    let (embedder, normalizes) = pooling(args, embedder.with_padding(tokenizer.padding()), files)?;
    let texts = Texts::read(args.text.as_deref(), args.input, &args.field)?;
    let own = Prompts::read(files)?;
    let prompt = match &args.prompt {
        Some(prompt) => prompt,
        None => own.prompt(args.prompt_name.as_deref()).map_err(|e| e.at("--prompt-name"))?,
    };
    let sentences = ids(&embedder, &tokenizer, (prompt, &texts), console)?;
    let begin = if args.resume { Begin::Resumed } else { Begin::Anew };
    let digest = digest(args, &bundle, &sentences)?;
    let mut journal = Journal::open(&args.output, &digest, begin)?;
    let bar = console.bar("embedding", texts.len() as u64, Counted::Things("lines"));
    let start = Instant::now();
    let kept = journal.keep_whole(PART)?.min(sentences.len());
    if kept > 0 {
        console.note(&format!("{kept} of {} lines were embedded already", texts.len()));
        bar.set_position(kept as u64);
        // What was done before is no rate of now.
        bar.reset_eta();
    }
    for (done, part) in sentences[kept..].chunks(PART).zip(0..).map(|(part, i)| (kept + i * PART, part)) {
        let mut found = embedder.embed(part, &mut |more| bar.set_position((done + more) as u64))?;
        if normalizes {
            found.normalize();
        }
        journal.add(found)?;
    }
    bar.finish_and_clear();
    let seconds = start.elapsed().as_secs_f64().max(1e-9);
    write(&args.output, format, &texts, journal.embeddings())?;
    journal.remove();
    let count = texts.len() - kept;
    console.note(&format!("{count} lines embedded in {seconds:.1} s, {:.0} lines/s", count as f64 / seconds));
    Ok(ExitCode::SUCCESS)
}

/// What makes the vectors what they are: the package, the tokens, and how they are computed and pooled.
fn digest(args: &Args, bundle: &Bundle, sentences: &[Vec<u32>]) -> Result<String> {
    let mut digest = Sha256::new();
    let mut add = |bytes: &[u8]| {
        digest.update((bytes.len() as u64).to_le_bytes());
        digest.update(bytes);
    };
    let names = ["Manifest.json", "Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights/weight.bin"];
    let packages = bundle.packages();
    for (package, name) in packages.iter().flat_map(|package| names.map(|name| (package, name))) {
        let path = package.join(name);
        // Of large files only what changes with them: reading gigabytes again would cost what resuming saves.
        let Ok(metadata) = std::fs::metadata(&path) else { continue };
        let modified = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        add(format!("{name} {} {:?}", metadata.len(), modified).as_bytes());
    }
    add(format!("{} {:?} {:?}", args.normalize, args.pooling, args.engine).as_bytes());
    for sentence in sentences {
        add(&sentence.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>());
    }
    Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn format(args: &Args) -> Result<Format> {
    let ending = args.output.extension().and_then(|ending| ending.to_str()).map(str::to_ascii_lowercase);
    match (args.format, ending.as_deref()) {
        (Some(format), _) => Ok(format),
        (None, Some("npy")) => Ok(Format::Npy),
        (None, Some("jsonl")) => Ok(Format::Jsonl),
        (None, Some("parquet")) => Ok(Format::Parquet),
        _ => {
            let message = format!(
                "--output: found {}, expected a name that ends in .npy, .jsonl or .parquet",
                args.output.display()
            );
            Err(Failure::usage_hint(message, "--format says which, whatever the name is"))
        }
    }
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

/// The tokens of each line after the prompt, cut to what the package takes.
fn ids(
    embedder: &Embedder,
    tokenizer: &Tokenizer,
    (prompt, texts): (&str, &Texts),
    console: &Console,
) -> Result<Vec<Vec<u32>>> {
    let longest = embedder.shapes().longest();
    let mut sentences = Vec::with_capacity(texts.len());
    let mut cut = 0;
    for (number, text) in texts.iter() {
        let text = if prompt.is_empty() { Cow::Borrowed(text) } else { Cow::Owned(format!("{prompt}{text}")) };
        let text = text.as_ref();
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
fn write(path: &Path, format: Format, texts: &Texts, found: &Embeddings) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".whole");
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

fn contents(mut file: impl Write, format: Format, texts: &Texts, found: &Embeddings) -> quince_tensor::Result<()> {
    match format {
        Format::Npy => {
            npz::write_npy(&mut file, &Tensor::from_vec([texts.len(), found.dimension], found.values.clone())?)?;
        }
        Format::Parquet => {
            let texts = texts.iter().map(|(_, text)| text);
            crate::parquet::write_embeddings(&mut file, texts, found).map_err(|e| npz::unwritten(&e))?;
        }
        Format::Jsonl => {
            for (number, row) in found.rows().enumerate() {
                writeln!(file, "{}", texts.with_embedding(number, row)).map_err(|e| npz::unwritten(&e))?;
            }
        }
    }
    file.flush().map_err(|e| npz::unwritten(&e))
}
