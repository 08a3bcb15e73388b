//! The perplexity of a model on a text.

use quince_tensor::{Result, bail};
use serde::Serialize;

use crate::metrics::Perplexity;
use crate::model::{Decoder, Route};
use crate::tokenizer::Tokenizer;

/// The longest window if none is asked for.
const DEFAULT_LENGTH: usize = 512;

/// How a text is cut into windows.
///
/// Windows do not overlap. Each is `length` tokens: the token `begin`, if there is one, and then as many of the text's
/// as are missing. Every token of a window but its first is predicted from those before it, so that a window predicts
/// `length - 1` tokens. What is left at the end of the text and does not fill a window is not used, unless it is all
/// there is. The perplexity is exp of the mean, over all predicted tokens of all windows, of their negative natural
/// log-likelihood.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Windows {
    /// Tokens of a window.
    pub length: usize,
    /// The token that every window begins with, for models that were trained to see one.
    pub begin: Option<u32>,
}

impl Windows {
    /// The windows for a model: of `length` tokens, or as many as it takes up to 512; they begin with the token that
    /// the tokenizer begins texts with.
    ///
    /// # Errors
    /// A length that the model does not take, or below two.
    pub fn new(decoder: &Decoder, tokenizer: Option<&Tokenizer>, length: Option<usize>) -> Result<Windows> {
        let longest = decoder.routes().first().map_or(0, |&route| decoder.longest(route));
        let length = length.unwrap_or(longest.min(DEFAULT_LENGTH));
        if length < 2 || length > longest {
            bail!("windows: found a length of {length} tokens, expected 2 to {longest}, the model's context");
        }
        let begin = match tokenizer {
            Some(tokenizer) => tokenizer.begin_of_text()?,
            None => None,
        };
        Ok(Windows { length, begin })
    }

    /// The tokens of each window.
    fn of(self, tokens: &[u32]) -> Vec<Vec<u32>> {
        let fresh = self.length.saturating_sub(self.begin.iter().len()).max(1);
        let window = |tokens: &[u32]| self.begin.iter().chain(tokens).copied().collect();
        match tokens.len() < fresh {
            true => vec![window(tokens)],
            false => tokens.chunks_exact(fresh).map(window).collect(),
        }
    }
}

/// The perplexity of a text, in JSON as the command gives it.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct TextPerplexity {
    /// exp of `nll`.
    pub perplexity: f64,
    /// Number of predicted tokens.
    pub tokens: usize,
    /// Mean negative log-likelihood of a predicted token in nats.
    pub nll: f64,
}

/// Measures the perplexity on the tokens of a text, encoded without special tokens: by the function without a cache if
/// there is one, else by the prefill function if it gives all logits, else token by token. The decoder's cache is empty
/// afterwards. `progress` hears how many of how many windows are done.
///
/// # Errors
/// A text in which nothing can be predicted; what the engine reports.
pub fn perplexity(
    decoder: &mut Decoder,
    tokens: &[u32],
    windows: Windows,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<TextPerplexity> {
    let route = decoder.routes().first().copied().unwrap_or(Route::Full);
    let windows = windows.of(tokens);
    let mut sum = Perplexity::default();
    for (done, window) in windows.iter().enumerate() {
        progress(done, windows.len());
        let Some((_, seen)) = window.split_last() else { continue };
        decoder.score(route, seen, &mut |i, logits| sum.add(logits, window[i + 1]))?;
    }
    progress(windows.len(), windows.len());
    if sum.tokens() == 0 {
        bail!("text: found {} tokens, expected enough to predict one from another", tokens.len());
    }
    Ok(TextPerplexity { perplexity: sum.perplexity(), tokens: sum.tokens(), nll: sum.mean_nll() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_full_unless_there_is_only_one() {
        let windows = |length, begin, tokens: &[u32]| Windows { length, begin }.of(tokens);
        assert_eq!(windows(3, None, &[1, 2, 3, 4, 5, 6, 7]), [[1, 2, 3], [4, 5, 6]]);
        assert_eq!(windows(3, Some(9), &[1, 2, 3, 4, 5]), [[9, 1, 2], [9, 3, 4]]);
        assert_eq!(windows(5, Some(9), &[1, 2]), [[9, 1, 2]]);
    }
}
