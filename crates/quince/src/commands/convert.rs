//! `quince convert`: from a checkpoint to a bundle.

mod adapters;
mod compiled;
mod float16;
mod keep;
mod report;

use self::adapters::AdapterArgs;
use self::float16::{Fp16Rescale, Source};
use crate::allocating::{self, Compressed};
use crate::bundling::{self, Draft};
use crate::console::Console;
use crate::failure::{Failure, Result};
use crate::loading;
use crate::options::activations::ActivationArgs;
use crate::options::calibration::CalibrationArgs;
use crate::options::compression::{self, Asked, CompressionArgs};
use crate::options::hub::HubArgs;
use crate::options::pooling::PoolingArg;
use crate::options::recipe::{self, RECIPE};
use crate::options::target::{DeploymentTarget, Units};
use crate::output::{self, Existing, Output};
use crate::stored;
use crate::validating::{self, Against};
use clap::ValueEnum;
use clap::builder::RangedU64ValueParser;
use quince_checkpoint::Checkpoint;
use quince_convert::lower::{FunctionKind, KvCache, LogitsOf, Precision, Target};
use quince_convert::parts::EmbeddingPart;
use quince_convert::{Adapters, Converted, FunctionName, Options, ShapesKind, convert_with};
use quince_lint::COMPUTE_UNITS_KEY;
use quince_mil::Program;
use quince_mlpackage::{Package, is_compiled};
use quince_runtime::{Bundle, CacheLayout, Suite, Validation};
pub use report::Compression;
use report::Report;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// Convert a checkpoint to a Core ML package, with its tokenizer and a manifest
///
/// The output is a bundle: a directory with model.mlpackage, the tokenizer, and manifest.json. An output whose name ends
/// in .mlpackage is the package alone. The same input gives the same bytes. One weight at a time is in memory, so that
/// a model of any size converts on any machine. Nothing is left if the conversion fails or is interrupted.
///
/// A name like organisation/name that is no path here is a model of the Hugging Face Hub. HF_HOME or HF_HUB_CACHE say where
/// it is kept, HF_ENDPOINT whom to ask; private and gated models need a token in HF_TOKEN, or that of `hf auth login`.
/// A download that was cut goes on where it ended.
///
/// A compiled model (.mlmodelc), as apps contain them, becomes the package that it was made of.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  quince convert models/tiny-llama -o tiny.bundle
      float16, functions init and decode, KV cache as state
  quince convert Qwen/Qwen3-0.6B -o qwen.bundle
      a model of the Hub: it is downloaded into the cache of huggingface_hub, and found there
      the next time; org/name-GGUF:Q8_0 is a GGUF file by its quantization
  quince convert MODEL -o out.bundle --wbits 4 --palett-group-size 16 --context 1024 --validate
      4-bit weights, a lookup table for every 16 output channels, room for 1024 tokens; then
      the package is run against the checkpoint
  quince convert MODEL -o out.bundle --context 512,1024,4096
      room for 4096 tokens, and functions that cost less as long as a text has 512 or 1024
  quince convert MODEL -o out.bundle --wbits 3 --palett-group-size 16 --calibrate
      3-bit weights, chosen by what they are multiplied with in texts of many kinds
  quince convert MODEL -o out.bundle --wbits 4 --max-part-size 950MB
      as many packages as it takes, none larger than that: layers in order, each with its cache
  quince convert MODEL -o out.bundle --mixed-precision attention=6,mlp=4,embed=8
      6, 4 and 8 bits for parts of the model
  quince convert MODEL -o encoder.bundle --pooling cls --shapes enumerated
      an encoder: embeddings of the first token, of some shapes only
  quince convert MODEL -o out.bundle --lora-checkpoint french --lora-checkpoint poems=0.5
      with an adapter and half of another in the weights
  quince convert MODEL -o out.bundle --lora-checkpoint french --lora-checkpoint poems --adapters keep
      functions init and decode, init_french and decode_french, init_poems and decode_poems, and
      one set of weights: `quince chat out.bundle --adapter french`
  quince convert MODEL -o out.bundle --llm2vec-checkpoint mntp --llm2vec-checkpoint supervised
      a decoder that makes embeddings too, by LLM2Vec
  quince convert MODEL -o out.mlpackage --functions full --compute-precision float32
      one function without a cache, exact
  quince convert App.app/model.mlmodelc -o model.mlpackage
      back from a compiled model")]
pub struct Args {
    /// A directory with config.json and safetensors, a GGUF file, a model of the Hugging Face Hub, or a compiled model
    model: PathBuf,
    /// The bundle, or the package if the name ends in .mlpackage
    #[arg(long, short, value_name = "BUNDLE")]
    output: PathBuf,
    /// Replace the output if it exists
    #[arg(long)]
    force: bool,
    /// Functions of the package: init (prefill, a chunk of tokens), decode (one token), full (no cache), encode (an
    /// embedding). Default: init,decode; full with --kv-cache none; encode for encoders and models without a head
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    functions: Vec<FunctionName>,
    /// Tokens that there is room for. Of several, each smaller one N has functions of its own, init_N and decode_N, over the
    /// same weights and the same cache: they cost less, and run as long as a text fits. Default: what the model was made for,
    /// at most 2048
    #[arg(long, alias = "seq-len", value_name = "N,...", value_delimiter = ',', value_parser = tokens())]
    context: Vec<usize>,
    /// Tokens of a call of init. Default: 128, or the context if that is less
    #[arg(long, value_name = "P", value_parser = tokens())]
    prefill_length: Option<usize>,
    /// Tokens of a call of full, which takes any number up to the context if this is not given
    #[arg(long, value_name = "S", value_parser = tokens())]
    length: Option<usize>,
    /// How encode makes one vector of a text. Default: as modules.json of sentence-transformers says, else the mean; none
    /// gives the hidden states
    #[arg(long, value_name = "WHAT")]
    pooling: Option<PoolingArg>,
    /// Which texts encode takes: 1 to 64 of 8 to 512 tokens (range), some numbers of each (enumerated), one text of some
    /// lengths, or one of --length tokens (fixed). Default: range, on the Neural Engine lengths
    #[arg(long, value_name = "WHICH")]
    shapes: Option<ShapesArg>,
    /// Have init give the logits of all its tokens, not only of the last
    #[arg(long)]
    all_logits: bool,
    /// What carries the KV cache: a state that Core ML keeps; the same, but layers with a window keep no more tokens than
    /// they see (rotating); inputs and outputs; or nothing
    #[arg(long, value_name = "WHAT", default_value = "state")]
    kv_cache: KvCacheArg,
    /// The floating-point type that the package computes in
    #[arg(long, value_name = "TYPE", default_value = "float16")]
    compute_precision: PrecisionArg,
    /// What is done about values that float16 cannot hold: auto runs some hundred tokens and scales weights by powers of
    /// two so that nothing overflows, and the function is the same; off does nothing; a power of two such as 1/16 scales the
    /// residual by it. Default: auto with --validate, else off
    #[arg(long, value_name = "auto|off|FACTOR")]
    fp16_rescale: Option<Fp16Rescale>,
    /// The processors that the package is written for. cpuAndNeuralEngine has a layout of its own: channels before tokens,
    /// convolutions, attention written out, norms that cannot overflow float16
    #[arg(long, value_name = "UNITS", default_value = "all")]
    compute_units: Units,
    /// In how many products the Neural Engine computes logits. Default: as few as have at most 16384 each
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..=4096))]
    lm_head_parts: Option<usize>,
    /// Split the model at layers into packages of at most SIZE each, which the bundle lists in order: above about 950MB an
    /// iPhone falls back to the GPU or ends the app. With --compute-units cpuAndNeuralEngine an embedding of more than 65535
    /// rows, which the Neural Engine cannot index, is a part for the CPU whatever the size
    #[arg(long, value_name = "SIZE", value_parser = compression::size)]
    max_part_size: Option<u64>,
    /// The oldest system that is to run the package
    #[arg(long, value_name = "SYSTEM", default_value = "iOS18")]
    minimum_deployment_target: DeploymentTarget,
    #[command(flatten)]
    adapters: AdapterArgs,
    #[command(flatten)]
    compression: CompressionArgs,
    #[command(flatten)]
    calibration: CalibrationArgs,
    #[command(flatten)]
    activations: ActivationArgs,
    /// Keep the integers of a quantized checkpoint (GGUF, MLX) where Core ML can express them: in blocks, for GPU and CPU
    #[arg(long, help_heading = "Compression")]
    keep_quantization: bool,
    /// Run the package against the checkpoint; the report goes into the bundle, and the exit status is 1 if it falls
    #[arg(long, alias = "profile-validate")]
    validate: bool,
    #[command(flatten)]
    hub: HubArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum KvCacheArg {
    State,
    Rotating,
    Io,
    None,
}

#[derive(Clone, Copy, ValueEnum)]
enum ShapesArg {
    Range,
    Enumerated,
    Lengths,
    Fixed,
}

#[derive(Clone, Copy, ValueEnum)]
enum PrecisionArg {
    Float16,
    Float32,
}

impl Args {
    fn options(&self) -> Options {
        let largest = self.context.iter().copied().max();
        Options {
            functions: self.functions(),
            context: largest,
            buckets: self.context.iter().copied().filter(|&context| Some(context) != largest).collect(),
            prefill_length: self.prefill_length,
            length: self.length,
            pooling: self.pooling.map(PoolingArg::checked),
            shapes: self.shapes.map(|shapes| match shapes {
                ShapesArg::Range => ShapesKind::Range,
                ShapesArg::Enumerated => ShapesKind::Enumerated,
                ShapesArg::Lengths => ShapesKind::Lengths,
                ShapesArg::Fixed => ShapesKind::Fixed,
            }),
            kv_cache: match self.kv_cache {
                KvCacheArg::State => KvCache::State,
                KvCacheArg::Rotating => KvCache::Rotating,
                KvCacheArg::Io => KvCache::Io,
                KvCacheArg::None => KvCache::None,
            },
            precision: match self.compute_precision {
                PrecisionArg::Float16 => Precision::Float16,
                PrecisionArg::Float32 => Precision::Float32,
            },
            units: self.compute_units.into(),
            logits: if self.all_logits { LogitsOf::All } else { LogitsOf::Last },
            head_parts: self.lm_head_parts,
            ..Options::default()
        }
    }
}

impl Args {
    /// The functions that are asked for; none where the model decides.
    fn functions(&self) -> Vec<FunctionName> {
        if self.functions.is_empty() { self.adapters.default_functions() } else { self.functions.clone() }
    }
}

/// Numbers of tokens: a conversion takes no more.
fn tokens() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=1 << 24)
}

/// Converts, and prints what became of the model.
pub fn run(args: &Args, console: &Console) -> Result<ExitCode> {
    if is_compiled(&args.model) {
        return compiled::run(args, console);
    }
    let start = Instant::now();
    let existing = if args.force { Existing::Replace } else { Existing::Refuse };
    output::vacant(&args.output, existing)?;
    let asked = args.asked()?;
    let model = args.hub.path(&args.model, console)?;
    let original = Checkpoint::open(&model)?;
    let opened = args.adapters.open(&args.functions())?;
    let mut checkpoint = original.clone();
    let adapters = opened.apply(&original, &mut checkpoint)?;
    let (tensors, format) = (checkpoint.tensors().count(), checkpoint.format());
    console.detail(&format!("{}: {format}, {tensors} tensors", model.display()));
    let mut converted = convert_with(&checkpoint, &adapters, &args.options())?;
    let mut warnings = std::mem::take(&mut converted.warnings);
    let (mut converted, float16) = in_float16(args, &checkpoint, converted, console)?;
    warnings.extend(float16.iter().flat_map(float16::Check::warnings));
    // A tokenizer that cannot be read is found now, not by who runs the bundle.
    if !is_package(&args.output) && loading::tokenizer_of(&checkpoint)?.is_none() {
        warnings.push("found no tokenizer.json: the bundle takes tokens, not text".to_string());
    }
    let kept = match args.keep_quantization {
        true => Some(keep::keep(&checkpoint, &mut converted.program)?),
        false => None,
    };
    let mut package = Package::new(std::mem::take(&mut converted.program));
    describe(&mut package, &converted, args.compute_units);
    let (compression, recipe) =
        compress(args, asked, (&checkpoint, &adapters, &converted), &mut package, &mut warnings, console)?;
    converted.program = package.program.clone();
    warnings.extend(unindexed_embedding(args, &package));
    warnings.iter().for_each(|warning| console.note(&format!("warning: {warning}")));
    let mut report = Report::new(&args.output, &checkpoint, &converted, compression, warnings);
    report.kept(kept);
    report.adapted(opened.reported(&converted.functions));
    let float16 = report.looked_at(float16)?;
    let validation = match is_package(&args.output) {
        true => {
            report.wrote(bundling::write_package(&package, &args.output, console)?, None);
            validation(args, &checkpoint, &args.output, console)?
        }
        false => {
            let staged = Output::create(&args.output, existing)?;
            let cache = cache_layout(&converted, &package.program);
            let mut draft = Draft::of_checkpoint(&checkpoint, converted.semantic.architecture, cache)?;
            draft.adapters = opened.entries(&converted.functions)?;
            draft.made.extend(recipe.map(|text| (RECIPE.to_string(), text)));
            draft.made.extend(float16.map(|text| (float16::REPORT.to_string(), text)));
            draft.most_bytes = args.max_part_size;
            let (written, mut manifest) = bundling::write_bundle(&package, draft, &staged.path(), console)?;
            report.wrote(written, manifest.chain.as_ref());
            let validation = validation(args, &checkpoint, &staged.path(), console)?;
            if let Some(found) = &validation {
                bundling::write_validation(found, &mut manifest, &staged.path())?;
            }
            staged.finish()?;
            validation
        }
    };
    report.took(start.elapsed());
    report.validated(validation);
    if args.json {
        console.json(&report)?
    } else {
        console.print(&report.text())?
    }
    Ok(ExitCode::from(report.exit_status()))
}

impl Args {
    /// How to compress, once all that is asked for was found to go together.
    fn asked(&self) -> Result<Option<Asked>> {
        let asked = self.compression.asked(self.compute_units.devices())?;
        // Asked here only to name the option: the conversion would refuse it too.
        Target::of_units(self.compute_units.into()).map_err(|e| Failure::Usage(e.at("--compute-units")))?;
        self.check(asked.as_ref())?;
        Ok(asked)
    }

    /// What does not go together, whatever the model.
    fn check(&self, asked: Option<&Asked>) -> Result<()> {
        if !self.activations.asked() && self.fp16_rescale.is_none() {
            self.calibration.check(asked.map(Asked::config).as_ref())?;
        }
        if self.keep_quantization && self.fp16_rescale.is_some_and(|how| how != Fp16Rescale::Off) {
            let message = "found --fp16-rescale with --keep-quantization, whose integers stay as they are";
            return Err(Failure::usage_hint(message, "leave one of them out"));
        }
        let (smallest, largest) = (self.context.iter().min(), self.context.iter().max());
        let most = [("--prefill-length", self.prefill_length, smallest), ("--length", self.length, largest)];
        for (option, tokens, context) in most {
            if let (Some(tokens), Some(&context)) = (tokens, context)
                && tokens > context
            {
                return Err(Failure::usage(format!("{option}: found {tokens}, expected at most --context, {context}")));
            }
        }
        if self.max_part_size.is_some() && is_package(&self.output) {
            let message = format!("--max-part-size: found the output {}, a package", self.output.display());
            return Err(Failure::usage_hint(message, "parts are in a bundle: name an output without .mlpackage"));
        }
        Ok(())
    }
}

/// A warning where a package has an embedding that in a bundle would be a part of its own.
fn unindexed_embedding(args: &Args, package: &Package) -> Option<String> {
    let apart = is_package(&args.output) && bundling::embedding_part(package) == EmbeddingPart::Apart;
    let message = "the Neural Engine cannot index the embedding, of more than 65535 rows: name an output without .mlpackage, \
                   a bundle, and it becomes a part that the CPU runs";
    apart.then(|| message.to_string())
}

/// The conversion with weights that float16 holds the values of, and how that was found, if it is asked for.
fn in_float16(
    args: &Args,
    checkpoint: &Checkpoint,
    converted: Converted,
    console: &Console,
) -> Result<(Converted, Option<float16::Check>)> {
    let usual = if args.validate && !args.keep_quantization { Fp16Rescale::Auto } else { Fp16Rescale::Off };
    let how = args.fp16_rescale.unwrap_or(usual);
    if how == Fp16Rescale::Off {
        return Ok((converted, None));
    }
    let tokenizer = loading::tokenizer_of(checkpoint)?;
    let source = Source { tokenizer: tokenizer.as_ref(), text: args.calibration.text() };
    float16::check(converted, args.compute_units.into(), how, &source, console)
}

/// The checkpoint, what is beside it, and what became of them.
type Model<'a> = (&'a Checkpoint, &'a Adapters<'a>, &'a Converted);

/// Compresses the program of a package: what was done, for the report, and the recipe, for the bundle.
fn compress(
    args: &Args,
    asked: Option<Asked>,
    model: Model,
    package: &mut Package,
    warnings: &mut Vec<String>,
    console: &Console,
) -> Result<(Option<Compression>, Option<String>)> {
    let before = package.program.clone();
    let compressed = asked.map(|asked| compressed(args, asked, model, package, console)).transpose()?;
    let tokenizer = || loading::tokenizer_of(model.0);
    let activations =
        args.activations.quantize(&mut package.program, &before, &args.calibration, tokenizer, console)?;
    let recipe = compressed.as_ref().map(|compressed| {
        warnings.extend(compression::warnings(&compressed.config, &args.calibration));
        recipe::text(&compressed.config)
    });
    let compression = compressed.map(|compressed| Compression::of(&compressed.report, compressed.allocation));
    Ok((Compression::with_activations(compression, activations), recipe))
}

/// Compresses its weights, by what they are multiplied with if that is asked for.
fn compressed(
    args: &Args,
    asked: Asked,
    (checkpoint, adapters, converted): Model,
    package: &mut Package,
    console: &Console,
) -> Result<Compressed> {
    let tokenizer = || loading::tokenizer_of(checkpoint);
    let calibration = args.calibration.of(tokenizer, output::directory(&args.output))?;
    let (mut judged, mut tokenizer) = (None, None);
    if matches!(asked, Asked::Search(_)) {
        tokenizer = loading::tokenizer_of(checkpoint)?;
    }
    if matches!(asked, Asked::Search(_)) || calibration.is_some() {
        // Whole texts are run at once by a function without a cache.
        let options = Options { functions: vec![FunctionName::Full], kv_cache: KvCache::None, ..args.options() };
        let judge = convert_with(checkpoint, adapters, &options).ok();
        // Of the same weights, whatever was scaled.
        let judge = judge.and_then(|judge| judge.with_semantic(converted.semantic.clone(), options.units).ok());
        judged = judge.map(|judge| judge.program);
    }
    allocating::compress(allocating::Target { package, judged: judged.as_ref(), calibration, tokenizer }, asked, console)
}

/// The validation of what was written, if it was asked for.
fn validation(args: &Args, checkpoint: &Checkpoint, written: &Path, console: &Console) -> Result<Option<Validation>> {
    if !args.validate {
        return Ok(None);
    }
    let suite = Suite::built_in()?;
    let against = Against { checkpoint, pooling: args.pooling.map(PoolingArg::checked), suite: &suite };
    Ok(Some(validating::against_checkpoint(&Bundle::open(written)?, &against, console)?))
}

fn is_package(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("mlpackage"))
}

/// What a package says of itself to people and to other tools.
fn describe(package: &mut Package, converted: &Converted, units: Units) {
    let architecture = converted.semantic.architecture;
    package.metadata.short_description = format!("{architecture}, {} tokens of context", converted.settings.context);
    let own = [("quince.version", env!("CARGO_PKG_VERSION")), ("quince.architecture", architecture)];
    package.metadata.user_defined.extend(own.map(|(key, value)| (key.to_string(), value.to_string())));
    if units != Units::All {
        let name = quince_lint::Units::from(units).name();
        package.metadata.user_defined.insert(COMPUTE_UNITS_KEY.to_string(), name.to_string());
    }
}

fn cache_layout(converted: &Converted, program: &Program) -> Option<CacheLayout> {
    let kind = report::cache_kind(converted)?;
    let prefill_length = converted.functions.iter().find_map(|function| match function.kind {
        FunctionKind::Cached { tokens, .. } if tokens > 1 => Some(tokens),
        _ => None,
    });
    let geometry = converted.kv_geometry;
    let dtype = stored::cache_types(program).first()?.dtype;
    Some(CacheLayout {
        kind: kind.to_string(),
        dtype: dtype.name().to_string(),
        layers: geometry.layers,
        kv_heads: geometry.kv_heads,
        head_dim: geometry.head_dim,
        context: geometry.context,
        buckets: converted.buckets(),
        prefill_length,
    })
}
