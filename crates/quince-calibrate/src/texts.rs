//! The texts that a model is run on.

use quince_runtime::{Decoder, LanguageModel, Sampler, SamplerOptions, SpecialTokens, Tokenizer};
use quince_tensor::{Result, bail};
use std::ops::ControlFlow;

/// Texts as tokens, each of which the model takes at once.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Texts {
    /// The tokens of each text.
    pub windows: Vec<Vec<u32>>,
}

impl Texts {
    /// A long text, cut into windows of `length` tokens of which each begins with the tokenizer's begin-of-text token, if
    /// it has one; at most `tokens` in all, taken evenly from the whole text.
    ///
    /// # Errors
    /// A text without tokens, or a length that leaves no room for one.
    pub fn of_text(text: &str, tokenizer: &Tokenizer, length: usize, tokens: usize) -> Result<Texts> {
        let begin = tokenizer.begin_of_text()?;
        let fresh = length.saturating_sub(begin.iter().len());
        let all = tokenizer.encode(text, SpecialTokens::Omit)?;
        if all.is_empty() || fresh == 0 {
            bail!("found {} tokens and windows of {length}, expected some tokens and room for them", all.len());
        }
        let windows: Vec<&[u32]> = all.chunks(fresh).collect();
        let wanted = tokens.div_ceil(length).clamp(1, windows.len());
        let chosen = (0..wanted).map(|i| windows[i * windows.len() / wanted]);
        let windows = chosen.map(|window| begin.iter().chain(window).copied().collect()).collect();
        Ok(Texts { windows })
    }

    /// Texts that the model writes itself, drawn from its own probabilities until there are `tokens` tokens; no text is
    /// longer than `length`. Each begins with `begin`, or with a token drawn at random, and ends where the model ends it.
    /// `progress` hears how many tokens there are.
    ///
    /// # Errors
    /// What the model reports.
    pub fn written_by(
        decoder: &mut Decoder,
        begin: Option<u32>,
        ends: &[u32],
        [length, tokens]: [usize; 2],
        progress: &mut dyn FnMut(usize),
    ) -> Result<Texts> {
        let length = length.min(decoder.context());
        let vocabulary = decoder.vocab_size() as u64;
        if length < 2 || vocabulary == 0 {
            bail!("found texts of {length} tokens, expected a context of at least 2");
        }
        let mut sampler = Sampler::new(SamplerOptions { temperature: 1.0, ..SamplerOptions::default() })?;
        let (mut windows, mut count) = (Vec::new(), 0);
        while count < tokens {
            // A sequence that visits every token (Weyl, with the golden ratio) stands for chance.
            let first = (windows.len() as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) % vocabulary;
            let mut text = vec![begin.unwrap_or(first as u32)];
            decoder.truncate(0)?;
            // What is never stopped never breaks.
            let _ = decoder.prefill(&text, &mut |_| ControlFlow::Continue(()))?;
            while text.len() < length {
                let token = sampler.sample(decoder.logits(), &[], &text)?;
                text.push(token);
                if ends.contains(&token) || text.len() == length {
                    break;
                }
                decoder.decode(token)?;
                progress((count + text.len()).min(tokens));
            }
            count += text.len();
            windows.push(text);
        }
        decoder.truncate(0)?;
        Ok(Texts { windows })
    }

    /// The number of tokens.
    pub fn tokens(&self) -> usize {
        self.windows.iter().map(Vec::len).sum()
    }
}
