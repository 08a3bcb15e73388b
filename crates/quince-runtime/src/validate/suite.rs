//! What a package is tried on: prompts, a text, and what must be reached, from a TOML file or built in.

use std::collections::BTreeMap;

use quince_tensor::{Error, Result, bail};
use serde::Deserialize;

use super::thresholds::{self, Thresholds};
use crate::chat_template::{ChatRequest, Message};
use crate::python::Moment;
use crate::tokenizer::{SpecialTokens, Tokenizer};

const BUILT_IN: &str = include_str!("built_in.toml");
/// Of tokens after each prompt if the file does not say how many.
const DEFAULT_MAX_TOKENS: usize = 24;

/// Prompts, a text, and thresholds.
///
/// ```toml
/// max_tokens = 24                 # tokens compared after each prompt
/// text = "..."                    # the text of the perplexity; none if it is absent
/// length = 256                    # tokens of its windows
///
/// [[prompts]]
/// chat = "What is a fruit?"       # a message of the user, put into the chat template
/// [[prompts]]
/// text = "Once upon a time"       # a text to continue
/// [[prompts]]
/// token_ids = [1, 2, 3]           # tokens to continue
///
/// sentences = ["..."]             # what encoders embed
///
/// [thresholds]                    # those that are absent depend on the bits of the weights
/// logits_psnr = 40.0
/// perplexity_change = inf         # never falls
/// ```
#[derive(Clone, PartialEq, Debug)]
pub struct Suite {
    /// What models are asked.
    pub prompts: Vec<Prompt>,
    /// Tokens that are compared after each prompt.
    pub max_tokens: usize,
    /// The text of the perplexity.
    pub text: Option<String>,
    /// Tokens of its windows; those that the models take if that is fewer.
    pub length: usize,
    /// What encoders embed.
    pub sentences: Vec<String>,
    /// What must be reached, where it is not the default.
    pub thresholds: Thresholds,
}

/// A prompt.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Prompt {
    /// A message of the user, put into the chat template; plain text for a model that has none.
    Chat(String),
    /// A text to continue.
    Text(String),
    /// Tokens to continue.
    TokenIds(Vec<u32>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SuiteFile {
    #[serde(default)]
    prompts: Vec<PromptTable>,
    max_tokens: Option<usize>,
    text: Option<String>,
    length: Option<usize>,
    #[serde(default)]
    sentences: Vec<String>,
    #[serde(default)]
    thresholds: BTreeMap<String, f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PromptTable {
    chat: Option<String>,
    text: Option<String>,
    token_ids: Option<Vec<u32>>,
}

impl Suite {
    /// Reads the text of a TOML file.
    ///
    /// # Errors
    /// What is not TOML, keys and thresholds that do not exist, prompts that are none or two things at once; a suite
    /// with neither prompt nor text.
    pub fn parse(toml: &str) -> Result<Suite> {
        let file: SuiteFile = toml::from_str(toml).map_err(|e| Error::new(e.to_string().trim_end().to_owned()))?;
        let prompts = file.prompts.into_iter().enumerate();
        let prompts: Vec<Prompt> =
            prompts.map(|(i, p)| p.check().map_err(|e| e.at(format!("prompt {}", i + 1)))).collect::<Result<_>>()?;
        let (max_tokens, length) = (file.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS), file.length.unwrap_or(256));
        if max_tokens == 0 || length < 2 {
            bail!("found max_tokens = {max_tokens} and length = {length}, expected at least 1 and 2");
        }
        if file.sentences.iter().any(String::is_empty) {
            bail!("sentences: found one without text, expected something to embed");
        }
        if prompts.is_empty() && file.text.is_none() && file.sentences.is_empty() {
            bail!("found neither a prompt nor a text nor sentences, expected something to try a model on");
        }
        let thresholds = thresholds::named(file.thresholds)?;
        Ok(Suite { prompts, max_tokens, text: file.text, length, sentences: file.sentences, thresholds })
    }

    /// Chats, beginnings of tales and a page of plain English, short enough for small models.
    pub fn built_in() -> Result<Suite> {
        Suite::parse(BUILT_IN)
    }
}

impl PromptTable {
    fn check(self) -> Result<Prompt> {
        match (self.chat, self.text, self.token_ids) {
            (Some(message), None, None) => Ok(Prompt::Chat(message)),
            (None, Some(text), None) if !text.is_empty() => Ok(Prompt::Text(text)),
            (None, None, Some(ids)) if !ids.is_empty() => Ok(Prompt::TokenIds(ids)),
            _ => bail!("expected one of chat, text and token_ids, which is not empty"),
        }
    }
}

impl Prompt {
    /// The tokens. Without a tokenizer the bytes of a text stand for its tokens: what models say then has no meaning,
    /// but they must still say the same.
    pub(super) fn tokens(&self, tokenizer: Option<&Tokenizer>, vocab_size: usize) -> Result<Vec<u32>> {
        match (self, tokenizer) {
            (Prompt::TokenIds(ids), _) => Ok(ids.clone()),
            (Prompt::Chat(text), Some(tokenizer)) if tokenizer.chat_template().is_some() => {
                // A fixed day: templates that print it give the same tokens tomorrow.
                let now = Moment { unix_seconds: 0, utc_offset_seconds: 0 };
                let messages = [Message::new("user", text.as_str())];
                Ok(tokenizer.apply_chat_template(None, &ChatRequest::new(&messages, now))?.1)
            }
            (Prompt::Chat(text) | Prompt::Text(text), Some(tokenizer)) => {
                tokenizer.encode(text, SpecialTokens::Include)
            }
            (Prompt::Chat(text) | Prompt::Text(text), None) => Ok(bytes_as_tokens(text, vocab_size)),
        }
    }

    /// What people read of it.
    pub(super) fn shown(&self) -> String {
        match self {
            Prompt::Chat(text) | Prompt::Text(text) => text.clone(),
            Prompt::TokenIds(ids) => format!("{ids:?}"),
        }
    }
}

/// The bytes of a text as ids of any vocabulary.
pub(super) fn bytes_as_tokens(text: &str, vocab_size: usize) -> Vec<u32> {
    text.bytes().map(|byte| (usize::from(byte) % vocab_size.max(1)) as u32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suite_says_what_is_wrong_with_it() {
        assert_eq!(Suite::built_in().unwrap().max_tokens, DEFAULT_MAX_TOKENS);
        for (toml, expected) in [
            ("", "found neither a prompt nor a text"),
            ("text = 'a'\nprompt = 'b'", "unknown field `prompt`"),
            ("[[prompts]]\nchat = 'a'\ntext = 'b'", "prompt 1: expected one of chat, text and token_ids"),
            ("text = 'a'\n[thresholds]\nppl = 1", "found a threshold for `ppl`, expected one of logits_psnr, "),
            ("text = 'a'\n[thresholds]\nkl_mean = nan", "`kl_mean`: found NaN"),
        ] {
            let error = Suite::parse(toml).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
