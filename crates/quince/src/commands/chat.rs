//! `quince chat`: a conversation in the terminal.

use crate::console::Console;
use crate::failure::Result;
use crate::interrupt;
use crate::loading::{self, Model, Purpose};
use crate::options::adapter::AdapterArg;
use crate::options::engine::EngineArgs;
use crate::options::hub::HubArgs;
use crate::options::sampling::SamplingArgs;
use quince_engine::Precision;
use quince_runtime::{
    ChatRequest, Decoder, Event, FinishReason, GenerateOptions, Message, Moment, Session, SpecialTokens, Tokenizer,
};
use quince_tensor::Error;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use std::io::{BufRead, IsTerminal};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;

const HELP: &str = "/reset forgets the conversation, /adapter NAME goes on with an adapter of the package and /adapter \
                    without it, /quit or Ctrl-D ends it, Ctrl-C cuts an answer";

/// Talk to a model in the terminal
///
/// Answers appear as they are made. Lines are read from the terminal, or from a pipe, one message a line.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  quince chat tiny.bundle
  quince chat tiny.bundle --system \"You are kind.\" --temperature 0.7 --top-p 0.95
  echo \"What is my name?\" | quince chat tiny.bundle")]
pub struct Args {
    /// A bundle, a package beside its tokenizer, or a checkpoint or model of the Hub, which is run in float32
    model: PathBuf,
    /// A message that stands before the conversation and tells the model how to answer
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    adapter: AdapterArg,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    hub: HubArgs,
}

/// Talks until there is nothing more to read.
pub fn run(args: &Args, console: &Console) -> Result<ExitCode> {
    let options = args.engine.options(console, Precision::Default);
    let path = args.hub.path(&args.model, console)?;
    let Model { decoder, tokenizer } = loading::load(&path, Purpose::Continue, args.adapter.name(), options)?;
    let Some(tokenizer) = tokenizer else {
        return Err(Error::new("found no tokenizer.json, expected one beside the model")
            .at(args.model.display())
            .into());
    };
    if tokenizer.chat_template().is_none() {
        console.note("this model has no chat template: each message is continued as plain text");
    }
    let mut lines = Lines::open()?;
    if lines.are_typed() {
        console.note(HELP);
    }
    let options = args.sampling.options()?;
    let mut conversation = Conversation::new(args, &tokenizer, decoder, options);
    while let Some(line) = lines.next()? {
        match line.trim() {
            "" => {}
            "/quit" | "/exit" => break,
            "/help" => console.note(HELP),
            "/reset" => conversation.reset(),
            command if command == "/adapter" || command.starts_with("/adapter ") => {
                let name = command.trim_start_matches("/adapter").trim();
                conversation.adapt(Some(name).filter(|name| !name.is_empty()), console);
            }
            command if command.starts_with('/') => console.note(&format!("found {command}: {HELP}")),
            message => conversation.answer(message, console)?,
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What was said, and the model with it in its cache.
struct Conversation<'a> {
    tokenizer: &'a Tokenizer,
    session: Session<Decoder>,
    options: GenerateOptions,
    beginning: Vec<Message>,
    messages: Vec<Message>,
}

impl<'a> Conversation<'a> {
    fn new(args: &Args, tokenizer: &'a Tokenizer, decoder: Decoder, options: GenerateOptions) -> Conversation<'a> {
        let beginning: Vec<Message> = args.system.iter().map(|text| Message::new("system", text.as_str())).collect();
        let messages = beginning.clone();
        Conversation { tokenizer, session: Session::new(decoder), options, beginning, messages }
    }

    fn reset(&mut self) {
        self.messages = self.beginning.clone();
    }

    /// Goes on with another adapter. What was said is read again by it; the weights stay loaded.
    fn adapt(&mut self, adapter: Option<&str>, console: &Console) {
        match Decoder::with_adapter(self.session.model().engine().clone(), adapter) {
            Ok(decoder) => self.session = Session::new(decoder),
            Err(error) => console.note(&error.to_string()),
        }
    }

    fn prompt(&self) -> Result<Vec<u32>> {
        if self.tokenizer.chat_template().is_some() {
            let request = ChatRequest::new(&self.messages, Moment::now_utc());
            return Ok(self.tokenizer.apply_chat_template(None, &request)?.1);
        }
        let last = self.messages.last().and_then(|message| message.fields().get("content"));
        let text = last.and_then(|content| content.as_str()).unwrap_or_default();
        Ok(self.tokenizer.encode(text, SpecialTokens::Include)?)
    }

    /// Prints the answer to a message as it is made, and remembers both.
    fn answer(&mut self, message: &str, console: &Console) -> Result<()> {
        let _cooperating = interrupt::cooperate();
        self.messages.push(Message::new("user", message));
        let prompt = self.prompt()?;
        let context = quince_runtime::LanguageModel::context(self.session.model());
        if prompt.len() >= context {
            self.messages.pop();
            console.note(&format!(
                "the conversation has {} tokens and the context room for {context}: /reset begins a new one",
                prompt.len()
            ));
            return Ok(());
        }
        let mut printed = Ok(());
        let generation = self.session.generate(self.tokenizer, &prompt, &self.options, &mut |event| {
            if let Event::Token { text, .. } | Event::Rest { text } = event {
                printed = console.print(text);
            }
            if printed.is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        printed?;
        console.print("\n")?;
        if let Some(rate) = generation.timings.decode_tokens_per_second() {
            console.note(&format!("({} tokens, {rate:.1} tokens/s)", generation.token_ids.len()));
        }
        match generation.finish_reason {
            FinishReason::ContextFull => console.note("the context is full: /reset begins a new conversation"),
            FinishReason::Cancelled => console.note("cut"),
            _ => {}
        }
        interrupt::clear();
        self.messages.push(Message::new("assistant", generation.text.as_str()));
        Ok(())
    }
}

/// Where messages come from.
enum Lines {
    Typed(Box<DefaultEditor>),
    Piped(std::io::Lines<std::io::StdinLock<'static>>),
}

impl Lines {
    fn open() -> Result<Lines> {
        if !std::io::stdin().is_terminal() {
            return Ok(Lines::Piped(std::io::stdin().lock().lines()));
        }
        let editor = DefaultEditor::new().map_err(|e| Error::new(format!("cannot read from the terminal: {e}")))?;
        Ok(Lines::Typed(Box::new(editor)))
    }

    fn are_typed(&self) -> bool {
        matches!(self, Lines::Typed(_))
    }

    /// The next line; `None` at the end, and when Ctrl-C is pressed where there is no answer to cut.
    fn next(&mut self) -> Result<Option<String>> {
        let failed = |e: &dyn std::fmt::Display| Error::new(format!("cannot read a message: {e}"));
        match self {
            Lines::Piped(lines) => Ok(lines.next().transpose().map_err(|e| failed(&e))?),
            Lines::Typed(editor) => match editor.readline("> ") {
                Ok(line) => {
                    // Without a history, the arrow keys do nothing: no reason to stop.
                    drop(editor.add_history_entry(&line));
                    Ok(Some(line))
                }
                Err(ReadlineError::Eof | ReadlineError::Interrupted) => Ok(None),
                Err(error) => Err(failed(&error).into()),
            },
        }
    }
}
