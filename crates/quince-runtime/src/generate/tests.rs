//! Generation against models that say what they are told to: the transcripts of the bundled model among it.

use super::*;
use crate::testing::{golden, tiny_llama};

const VOCABULARY: usize = 2048;

/// Says the tokens of a script, each when the cache is as long as its place: a cache that lost or kept a token too
/// many makes it say something else.
struct Script {
    /// The prompt, then the answer.
    tokens: Vec<u32>,
    context: usize,
    cache: Vec<u32>,
    logits: Vec<f32>,
    prefilled: Vec<usize>,
    fail_at: Option<usize>,
    rewind_to: usize,
}

impl Script {
    fn new(prompt: &[u32], answer: &[u32]) -> Script {
        Script {
            tokens: [prompt, answer].concat(),
            context: 512,
            cache: Vec::new(),
            logits: vec![0.0; VOCABULARY],
            prefilled: Vec::new(),
            fail_at: None,
            rewind_to: usize::MAX,
        }
    }

    fn append(&mut self, tokens: &[u32]) -> Result<()> {
        if self.fail_at.is_some_and(|at| self.cache.len() + tokens.len() >= at) {
            return Err(Error::new("engine: out of memory"));
        }
        self.cache.extend_from_slice(tokens);
        assert!(self.cache.len() <= self.context, "the cache overflows");
        self.logits.fill(0.0);
        if self.tokens.starts_with(&self.cache) && self.cache.len() < self.tokens.len() {
            self.logits[self.tokens[self.cache.len()] as usize] = 1.0;
        }
        Ok(())
    }
}

impl LanguageModel for Script {
    fn context(&self) -> usize {
        self.context
    }
    fn vocab_size(&self) -> usize {
        VOCABULARY
    }
    fn position(&self) -> usize {
        self.cache.len()
    }
    fn truncate(&mut self, position: usize) -> Result<usize> {
        self.cache.truncate(position.min(self.rewind_to));
        Ok(self.cache.len())
    }
    fn prefill(
        &mut self,
        tokens: &[u32],
        progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        self.prefilled.push(tokens.len());
        let mut done = 0;
        for chunk in tokens.chunks(8) {
            self.append(chunk)?;
            done += chunk.len();
            if progress(done).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
    fn decode(&mut self, token: u32) -> Result<()> {
        self.append(&[token])
    }
    fn logits(&self) -> &[f32] {
        &self.logits
    }
}

fn ids(value: &serde_json::Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

/// Runs and collects the texts of the events beside the answer.
fn run(session: &mut Session<Script>, prompt: &[u32], options: &GenerateOptions) -> Result<(Generation, String)> {
    let mut told = String::new();
    let answer = session.generate(tiny_llama(), prompt, options, &mut |event| {
        if let Event::Token { text, .. } | Event::Rest { text } = event {
            told.push_str(text);
        }
        ControlFlow::Continue(())
    })?;
    Ok((answer, told))
}

/// Witness: texts that transformers decoded, up to the end-of-text token and beyond it.
#[test]
fn transcripts_end_where_the_model_ends_them() {
    for transcript in golden() {
        let (prompt, output) = (ids(&transcript["prompt_ids"]), ids(&transcript["output_ids"]));
        let stop_at = transcript["stop_at"].as_u64().map_or(output.len(), |at| at as usize);
        let mut options = GenerateOptions { max_tokens: output.len(), ..GenerateOptions::default() };
        let mut session = Session::new(Script::new(&prompt, &output));
        let (answer, told) = run(&mut session, &prompt, &options).unwrap();
        assert_eq!(
            (answer.text.as_str(), &answer.token_ids[..]),
            (transcript["text"].as_str().unwrap(), &output[..stop_at])
        );
        let expected = output.get(stop_at).map_or(FinishReason::MaxTokens, |&token| FinishReason::EndOfText(token));
        assert_eq!((answer.finish_reason, told), (expected, answer.text));
        assert_eq!(answer.timings.decode.len(), stop_at - 1);

        (options.ignore_eos, options.special_tokens) = (true, SpecialTokens::Include);
        let (answer, told) = run(&mut session, &prompt, &options).unwrap();
        assert_eq!((answer.text.as_str(), answer.token_ids), (transcript["text_all"].as_str().unwrap(), output));
        assert_eq!((answer.finish_reason, told), (FinishReason::MaxTokens, answer.text));
    }
}

/// Answers "The fox is here. The end." one token after another.
fn fox() -> (Vec<u32>, Vec<u32>, Script) {
    let tokenizer = tiny_llama();
    let prompt = tokenizer.encode("Tell me a story about a fox and a hen, please.", SpecialTokens::Include).unwrap();
    let answer = tokenizer.encode("The fox is here. The end.", SpecialTokens::Omit).unwrap();
    let script = Script::new(&prompt, &answer);
    (prompt, answer, script)
}

#[test]
fn stop_strings_cross_tokens_and_are_never_told() {
    let (prompt, output, script) = fox();
    let options = GenerateOptions { stop: vec!["x is h".into(), "end".into()], ..GenerateOptions::default() };
    let (answer, told) = run(&mut Session::new(script), &prompt, &options).unwrap();
    assert_eq!((answer.text.as_str(), told.as_str()), ("The fo", "The fo"));
    assert_eq!(answer.finish_reason, FinishReason::StopString(0));
    assert!(answer.token_ids.len() < output.len());
    // The beginning of a stop string at the end of the answer is text.
    let (prompt, output, script) = fox();
    let options = GenerateOptions { stop: vec!["end. And".into()], max_tokens: output.len(), ..options };
    let (answer, told) = run(&mut Session::new(script), &prompt, &options).unwrap();
    assert_eq!((answer.text.as_str(), told.as_str()), ("The fox is here. The end.", "The fox is here. The end."));
}

#[test]
fn a_common_prefix_is_not_computed_again() {
    let (prompt, output, script) = fox();
    let options = GenerateOptions { max_tokens: output.len(), ..GenerateOptions::default() };
    let mut session = Session::new(script);
    run(&mut session, &prompt, &options).unwrap();
    // The last token was chosen but never went in.
    assert_eq!(session.cached(), [&prompt[..], &output[..output.len() - 1]].concat());

    let longer = [&prompt[..], &output[..4], &[99, 98]].concat();
    session.model.tokens = [&longer[..], &[50, 51]].concat();
    let short = GenerateOptions { max_tokens: 2, ..options.clone() };
    let (answer, _) = run(&mut session, &longer, &short).unwrap();
    assert_eq!((answer.token_ids, answer.timings.reused_tokens), (vec![50, 51], prompt.len() + 4));
    // The same prompt once more: its last token gives the logits.
    let (answer, _) = run(&mut session, &longer, &short).unwrap();
    assert_eq!((answer.token_ids, answer.timings.reused_tokens), (vec![50, 51], longer.len() - 1));
    assert_eq!(session.model.prefilled, [prompt.len(), 2, 1]);
    // A cache that cannot go back begins anew.
    session.model.rewind_to = 0;
    let (answer, _) = run(&mut session, &longer, &short).unwrap();
    assert_eq!((answer.token_ids, answer.timings.reused_tokens), (vec![50, 51], 0));
}

#[test]
fn nothing_is_reused_after_a_failure() {
    let (prompt, output, mut script) = fox();
    script.fail_at = Some(prompt.len() + 3);
    let options = GenerateOptions { max_tokens: output.len(), ..GenerateOptions::default() };
    let mut session = Session::new(script);
    assert_eq!(run(&mut session, &prompt, &options).unwrap_err().to_string(), "engine: out of memory");
    assert!(session.cached().is_empty());
    session.model.fail_at = None;
    let (answer, _) = run(&mut session, &prompt, &options).unwrap();
    assert_eq!((answer.token_ids, answer.timings.reused_tokens), (output, 0));
}

#[test]
fn a_full_context_stops_or_fails() {
    let (prompt, output, mut script) = fox();
    script.context = prompt.len() + 2;
    let mut session = Session::new(script);
    let mut options = GenerateOptions { max_tokens: output.len(), ..GenerateOptions::default() };
    // Two more tokens fit, and the logits of the last one give a third.
    let (answer, _) = run(&mut session, &prompt, &options).unwrap();
    assert_eq!((&answer.token_ids[..], answer.finish_reason), (&output[..3], FinishReason::ContextFull));
    options.context_full = ContextFull::Fail;
    let error = run(&mut session, &prompt, &options).unwrap_err().to_string();
    assert!(error.starts_with("context: found it full at "), "{error}");
    options.max_tokens = 3;
    assert_eq!(run(&mut session, &prompt, &options).unwrap().0.finish_reason, FinishReason::MaxTokens);
    session.model.context = prompt.len() - 1;
    let error = run(&mut session, &prompt, &options).unwrap_err().to_string();
    assert!(error.starts_with("prompt: found ") && error.contains("hint: "), "{error}");
}

#[test]
fn cancelling_ends_prefill_and_answer() {
    let (prompt, output, script) = fox();
    let cancel = Arc::new(AtomicBool::new(false));
    let options = GenerateOptions { cancel: Some(cancel.clone()), ..GenerateOptions::default() };
    let mut session = Session::new(script);
    let mut progress = Vec::new();
    let mut on_event = |event: Event<'_>| {
        if let Event::Prefill { done, total } = event {
            progress.push((done, total));
            cancel.store(done >= 8, Ordering::Relaxed);
        }
        ControlFlow::Continue(())
    };
    let answer = session.generate(tiny_llama(), &prompt, &options, &mut on_event).unwrap();
    assert_eq!((answer.finish_reason, answer.token_ids.len()), (FinishReason::Cancelled, 0));
    assert_eq!(progress, [(0, prompt.len()), (8, prompt.len())]);
    assert_eq!(session.cached(), &prompt[..8]);

    cancel.store(false, Ordering::Relaxed);
    let mut tokens = 0;
    let mut on_event = |event: Event<'_>| {
        tokens += usize::from(matches!(event, Event::Token { .. }));
        if tokens == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let answer = session.generate(tiny_llama(), &prompt, &options, &mut on_event).unwrap();
    assert_eq!((answer.finish_reason, &answer.token_ids[..]), (FinishReason::Cancelled, &output[..2]));
    assert_eq!(answer.timings.reused_tokens, 8);
}

#[test]
fn prompts_that_cannot_be_run_are_named() {
    let (prompt, _, script) = fox();
    let mut session = Session::new(script);
    let error = |session: &mut Session<Script>, prompt: &[u32]| {
        run(session, prompt, &GenerateOptions::default()).unwrap_err().to_string()
    };
    assert!(error(&mut session, &[]).starts_with("prompt: found no token"));
    assert!(error(&mut session, &[1, 2048]).starts_with("prompt: found token 2048, expected ids below 2048"));
    let none = GenerateOptions { max_tokens: 0, ..GenerateOptions::default() };
    assert!(run(&mut session, &prompt, &none).unwrap().0.token_ids.is_empty());
}
