//! `quince generate`: continues one prompt.

use crate::console::Console;
use crate::failure::{Failure, Result};
use crate::interrupt;
use crate::loading::{self, Purpose};
use crate::options::adapter::AdapterArg;
use crate::options::engine::EngineArgs;
use crate::options::hub::HubArgs;
use crate::options::sampling::SamplingArgs;
use quince_engine::Precision;
use quince_runtime::{
    ChatRequest, Decoder, Event, FinishReason, GenerateOptions, Generation, LanguageModel, Message, Moment, Sampler,
    Session, SpecialTokens, Timings, Tokenizer,
};
use quince_tensor::Error;
use serde::Serialize;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// Continue a prompt
///
/// The prompt is put into the model's chat template, as a message of the user; --raw takes it as it is. The answer is
/// printed as it is made. Without sampling options the most likely token is taken each time, so that the same prompt
/// gives the same answer.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  quince generate tiny.bundle --prompt \"Tell me a tale about a fox.\"
  quince generate tiny.bundle --raw --prompt \"Once upon a time\" --max-tokens 100 --temperature 0.8 --seed 1
  quince generate models/tiny-llama --prompt \"Hello\"         the checkpoint itself, in float32
  quince generate tiny.bundle --token-ids 0,5,9 --ignore-eos --json")]
pub struct Args {
    /// A bundle, a package beside its tokenizer, or a checkpoint or model of the Hub, which is run in float32
    model: PathBuf,
    /// What the answer is to
    #[arg(long, value_name = "TEXT", required_unless_present = "token_ids", conflicts_with = "token_ids")]
    prompt: Option<String>,
    /// Take the prompt as it is, not as a message in the chat template
    #[arg(long, requires = "prompt")]
    raw: bool,
    /// A message that stands before the prompt and tells the model how to answer
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["raw", "token_ids"])]
    system: Option<String>,
    /// The prompt as tokens
    #[arg(long, value_name = "ID,...", value_delimiter = ',')]
    token_ids: Vec<u32>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    adapter: AdapterArg,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    hub: HubArgs,
    /// Print JSON when the answer is whole
    #[arg(long)]
    json: bool,
}

/// An answer as JSON has it.
#[derive(Serialize)]
struct Answer<'a> {
    text: &'a str,
    token_ids: &'a [u32],
    prompt_token_ids: &'a [u32],
    finish_reason: &'static str,
    prefill_tokens_per_second: Option<f64>,
    decode_tokens_per_second: Option<f64>,
    first_token_seconds: f64,
    total_seconds: f64,
}

/// Generates, and prints the answer as it is made.
pub fn run(args: &Args, console: &Console) -> Result<ExitCode> {
    let options = args.sampling.options()?;
    let path = args.hub.path(&args.model, console)?;
    let engine = args.engine.options(console, Precision::Default);
    let model = loading::load(&path, Purpose::Continue, args.adapter.name(), engine)?;
    let generation = match &model.tokenizer {
        Some(tokenizer) => answer(args, console, model.decoder, tokenizer, &options)?,
        None if args.prompt.is_some() => {
            let error = Error::new("found no tokenizer.json, expected one beside the model").at(args.model.display());
            return Err(error.hint("give the prompt as --token-ids").into());
        }
        None => continue_ids(model.decoder, &args.token_ids, &options)?,
    };
    if args.json {
        console.json(&Answer::of(&generation))?;
    } else if model.tokenizer.is_none() {
        let ids: Vec<String> = generation.token_ids.iter().map(u32::to_string).collect();
        console.print(&format!("{}\n", ids.join(",")))?;
    } else {
        console.print("\n")?;
    }
    if let Some(rate) = generation.timings.decode_tokens_per_second().filter(|_| !args.json) {
        console.note(&format!("{} tokens, {rate:.1} tokens/s", generation.token_ids.len()));
    }
    if let Some(rate) = generation.timings.prefill_tokens_per_second() {
        console.detail(&format!("{} tokens of prompt, {rate:.1} tokens/s", generation.prompt_token_ids.len()));
    }
    match generation.finish_reason {
        FinishReason::Cancelled => Ok(ExitCode::from(interrupt::EXIT_STATUS)),
        _ => Ok(ExitCode::SUCCESS),
    }
}

fn answer(
    args: &Args,
    console: &Console,
    decoder: Decoder,
    tokenizer: &Tokenizer,
    options: &GenerateOptions,
) -> Result<Generation> {
    let prompt = match (&args.prompt, tokenizer.chat_template()) {
        (None, _) => args.token_ids.clone(),
        (Some(prompt), Some(_)) if !args.raw => {
            let system = args.system.iter().map(|text| Message::new("system", text.as_str()));
            let messages: Vec<Message> = system.chain([Message::new("user", prompt.as_str())]).collect();
            tokenizer.apply_chat_template(None, &ChatRequest::new(&messages, Moment::now_utc()))?.1
        }
        (Some(_), None) if args.system.is_some() => {
            return Err(Failure::usage("found --system, but the model has no chat template to put it into"));
        }
        (Some(prompt), _) => tokenizer.encode(prompt, SpecialTokens::Include)?,
    };
    // A closed pipe ends the generation; it is reported when that has returned.
    let mut printed = Ok(());
    // Until the answer begins, Ctrl-C ends the program at once: a prompt may take long, and is not cut in the middle.
    let mut cooperating = None;
    let generation = Session::new(decoder).generate(tokenizer, &prompt, options, &mut |event| {
        cooperating.get_or_insert_with(interrupt::cooperate);
        if let (Event::Token { text, .. } | Event::Rest { text }, false) = (event, args.json) {
            printed = console.print(text);
        }
        if printed.is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    printed?;
    Ok(generation)
}

/// Continues tokens of a model without a tokenizer, whose end of text is not known.
fn continue_ids(mut decoder: Decoder, prompt: &[u32], options: &GenerateOptions) -> Result<Generation> {
    let start = Instant::now();
    let mut timings = Timings { prefill_tokens: prompt.len(), ..Timings::default() };
    let mut sampler = Sampler::new(options.sampling.clone())?;
    let mut token_ids: Vec<u32> = Vec::new();
    let cancelled = || if interrupt::requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
    if prompt.is_empty() || prompt.len() > decoder.context() {
        let context = decoder.context();
        return Err(Failure::usage(format!("--token-ids: found {} tokens, expected 1 to {context}", prompt.len())));
    }
    let mut flow = decoder.prefill(prompt, &mut |_| cancelled())?;
    timings.prefill = start.elapsed();
    let _cooperating = interrupt::cooperate();
    let mut last = Instant::now();
    let mut finish_reason = FinishReason::MaxTokens;
    while flow.is_continue() && token_ids.len() < options.max_tokens {
        if let Some(&token) = token_ids.last() {
            if decoder.position() >= decoder.context() {
                finish_reason = FinishReason::ContextFull;
                break;
            }
            decoder.decode(token)?;
            timings.decode.push(last.elapsed());
            last = Instant::now();
        }
        token_ids.push(sampler.sample(decoder.logits(), prompt, &token_ids)?);
        if token_ids.len() == 1 {
            timings.first_token = start.elapsed();
        }
        flow = cancelled();
    }
    if flow.is_break() {
        finish_reason = FinishReason::Cancelled;
    }
    timings.total = start.elapsed();
    Ok(Generation { prompt_token_ids: prompt.to_vec(), token_ids, text: String::new(), finish_reason, timings })
}

impl<'a> Answer<'a> {
    fn of(generation: &'a Generation) -> Answer<'a> {
        let timings = &generation.timings;
        Answer {
            text: &generation.text,
            token_ids: &generation.token_ids,
            prompt_token_ids: &generation.prompt_token_ids,
            finish_reason: generation.finish_reason.as_str(),
            prefill_tokens_per_second: timings.prefill_tokens_per_second(),
            decode_tokens_per_second: timings.decode_tokens_per_second(),
            first_token_seconds: timings.first_token.as_secs_f64(),
            total_seconds: timings.total.as_secs_f64(),
        }
    }
}
