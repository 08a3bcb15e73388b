//! The vocabulary of a GGUF file as the files that Hugging Face has for it: `tokenizer.json`, `tokenizer_config.json` and
//! `generation_config.json`.
//!
//! What llama.cpp knows by name (how text is cut into words, which tokens begin and end a text) is written out.

mod bpe;
mod sentencepiece;
mod unigram;
mod wordpiece;

use super::metadata::Metadata;
use quince_tensor::{Result, bail};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// What kind a token is, by llama.cpp's number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum TokenKind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

/// The tokens of a file.
struct Vocabulary<'a> {
    metadata: &'a Metadata,
    tokens: Vec<&'a str>,
    kinds: Vec<TokenKind>,
}

/// What a kind of vocabulary makes of tokens.
struct Parts {
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    model: Value,
    /// The tokens that begin a text, and those that end it.
    around: (Option<u32>, Option<u32>),
}

/// Makes the parts of a tokenizer of a vocabulary.
type Make = fn(&Vocabulary) -> Result<Parts>;

/// The kinds of vocabularies, by `tokenizer.ggml.model`.
const MODELS: &[(&str, Make)] =
    &[("gpt2", bpe::parts), ("llama", sentencepiece::parts), ("bert", wordpiece::parts), ("t5", unigram::parts)];

/// Texts of tokens that end an answer, which llama.cpp looks for beside those that metadata name.
const ENDS: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eom_id|>",
    "<EOT>",
    "<|end▁of▁sentence|>",
    "<end_of_utterance>",
];

/// Special tokens at Hugging Face, with the key of their number in GGUF.
const SPECIAL: &[(&str, &str)] = &[
    ("bos_token", "bos_token_id"),
    ("eos_token", "eos_token_id"),
    ("unk_token", "unknown_token_id"),
    ("sep_token", "seperator_token_id"),
    ("pad_token", "padding_token_id"),
    ("cls_token", "cls_token_id"),
    ("mask_token", "mask_token_id"),
];

/// The files by name. None of the tokenizer's where the file has no vocabulary.
///
/// # Errors
/// When the vocabulary is of a kind that is not known, or contradicts itself.
pub(super) fn files(metadata: &Metadata) -> Result<BTreeMap<String, String>> {
    let mut files = BTreeMap::new();
    let ids: Map<String, Value> = generation_ids(metadata)?.into_iter().collect();
    let mut generation = ids;
    generation.extend(sampling(metadata)?);
    files.insert("generation_config.json".to_string(), Value::Object(generation).to_string());
    let Some(vocabulary) = Vocabulary::of(metadata)? else { return Ok(files) };
    let name = metadata.text("tokenizer.ggml.model")?.unwrap_or_default();
    let tokenizer = match (metadata.text("tokenizer.huggingface.json")?, MODELS.iter().find(|row| row.0 == name)) {
        (Some(original), _) => original.to_string(),
        (None, Some((_, parts))) => vocabulary.tokenizer(parts(&vocabulary)?).to_string(),
        (None, None) => {
            let known: Vec<&str> = MODELS.iter().map(|row| row.0).collect();
            bail!(
                "key `tokenizer.ggml.model`: found `{}`, expected one of {}", crate::suggest::shown(name), known.join(", ");
                hint: "put the tokenizer.json of the original model into the bundle"
            )
        }
    };
    files.insert("tokenizer.json".to_string(), tokenizer);
    files.insert("tokenizer_config.json".to_string(), vocabulary.config()?.to_string());
    Ok(files)
}

/// `bos_token_id`, `eos_token_id` (all tokens that end an answer) and `pad_token_id`, where the file has them.
///
/// # Errors
/// When a key is no number.
pub(super) fn generation_ids(metadata: &Metadata) -> Result<Vec<(String, Value)>> {
    let Some(vocabulary) = Vocabulary::of(metadata)? else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for (name, key) in [("bos_token_id", "bos_token_id"), ("pad_token_id", "padding_token_id")] {
        found.extend(vocabulary.id(key)?.map(|id| (name.to_string(), id.into())));
    }
    let mut ends = Vec::new();
    for key in ["eos_token_id", "eot_token_id", "eom_token_id"] {
        ends.extend(vocabulary.id(key)?);
    }
    let known = vocabulary.tokens.iter().zip(&vocabulary.kinds).enumerate();
    let marked = |kind: &TokenKind| matches!(kind, TokenKind::Control | TokenKind::UserDefined);
    ends.extend(known.filter(|(_, (text, kind))| marked(kind) && ENDS.contains(text)).map(|(id, _)| id as u32));
    // With tokens for the end of an answer and for a call, `<|end|>` ends only a message (gpt-oss).
    let has = |text: &str| vocabulary.tokens.contains(&text);
    if has("<|return|>") && has("<|call|>") {
        ends.retain(|&id| vocabulary.text(id) != Some("<|end|>"));
    }
    let mut seen = BTreeSet::new();
    ends.retain(|id| seen.insert(*id));
    match ends.as_slice() {
        [] => {}
        [only] => found.push(("eos_token_id".to_string(), (*only).into())),
        several => found.push(("eos_token_id".to_string(), several.into())),
    }
    Ok(found)
}

/// What the model's authors recommend for sampling.
fn sampling(metadata: &Metadata) -> Result<Map<String, Value>> {
    const KEYS: &[(&str, &str)] = &[
        ("temp", "temperature"),
        ("top_k", "top_k"),
        ("top_p", "top_p"),
        ("min_p", "min_p"),
        ("penalty_repeat", "repetition_penalty"),
    ];
    let mut found = Map::new();
    for (gguf, name) in KEYS {
        let value = metadata.get(&format!("general.sampling.{gguf}"));
        found.extend(value.filter(|value| value.number().is_some()).map(|value| (name.to_string(), value.json())));
    }
    Ok(found)
}

impl<'a> Vocabulary<'a> {
    fn of(metadata: &'a Metadata) -> Result<Option<Vocabulary<'a>>> {
        let Some(tokens) = metadata.texts("tokenizer.ggml.tokens")? else { return Ok(None) };
        let kinds = match metadata.numbers("tokenizer.ggml.token_type")? {
            Some(kinds) if kinds.len() == tokens.len() => kinds.into_iter().map(TokenKind::of_number).collect(),
            Some(kinds) => bail!(
                "key `tokenizer.ggml.token_type`: found {} numbers, expected one for each of {} tokens",
                kinds.len(),
                tokens.len()
            ),
            None => vec![TokenKind::Normal; tokens.len()],
        };
        Ok(Some(Vocabulary { metadata, tokens, kinds }))
    }

    /// The token that a key names, if there is that key and that token.
    fn id(&self, key: &str) -> Result<Option<u32>> {
        let id = self.metadata.unsigned(&format!("tokenizer.ggml.{key}"))?;
        Ok(id.and_then(|id| u32::try_from(id).ok()).filter(|&id| self.text(id).is_some()))
    }

    fn text(&self, id: u32) -> Option<&'a str> {
        self.tokens.get(id as usize).copied()
    }

    fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.metadata.flag(&format!("tokenizer.ggml.{key}"))
    }

    /// The scores, one for each token.
    fn scores(&self) -> Result<Vec<f64>> {
        match self.metadata.numbers("tokenizer.ggml.scores")? {
            Some(scores) if scores.len() == self.tokens.len() => Ok(scores),
            found => bail!(
                "key `tokenizer.ggml.scores`: found {} numbers, expected one for each of {} tokens",
                found.map_or(0, |scores| scores.len()),
                self.tokens.len()
            ),
        }
    }

    /// Tokens with their numbers; of two with one text, the first.
    fn ids(&self) -> Map<String, Value> {
        let mut ids = Map::new();
        for (id, token) in self.tokens.iter().enumerate() {
            ids.entry(*token).or_insert(id.into());
        }
        ids
    }

    /// `tokenizer.json`.
    fn tokenizer(&self, parts: Parts) -> Value {
        let added: Vec<Value> = self.added().collect();
        json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
            "normalizer": parts.normalizer, "pre_tokenizer": parts.pre_tokenizer,
            "post_processor": self.surrounding(parts.around.0, parts.around.1), "decoder": parts.decoder,
            "model": parts.model
        })
    }

    /// The tokens that are found in text before it is cut into words.
    fn added(&self) -> impl Iterator<Item = Value> {
        let all = self.tokens.iter().zip(&self.kinds).enumerate();
        let swallows = self.swallows_space();
        all.filter_map(move |(id, (token, kind))| {
            let special = match kind {
                TokenKind::Control | TokenKind::Unknown => true,
                TokenKind::UserDefined => false,
                _ => return None,
            };
            let mask = *token == "<mask>";
            let strips =
                swallows && (special || *token == "</s>") && !matches!(*token, "<unk>" | "<s>" | "<|endoftext|>");
            (!token.is_empty()).then(|| {
                json!({"id": id, "content": token, "single_word": false, "lstrip": mask, "rstrip": strips,
                    "normalized": false, "special": special})
            })
        })
    }

    /// Whether special tokens take the white space after them, as those of Phi-3 do. GGUF has no key for that.
    fn swallows_space(&self) -> bool {
        let text = |key| self.metadata.text(key).ok().flatten().unwrap_or_default();
        text("tokenizer.ggml.model") == "llama" && text("general.architecture") == "phi3"
    }

    /// The tokens before and after a text, and between two.
    fn surrounding(&self, first: Option<u32>, last: Option<u32>) -> Value {
        let of = |id: Option<u32>| id.and_then(|id| Some((id, self.text(id)?)));
        let (first, last) = (of(first), of(last));
        if first.is_none() && last.is_none() {
            return Value::Null;
        }
        let token = |token: Option<(u32, &str)>, kind: u8| {
            token.map(|(_, text)| json!({"SpecialToken": {"id": text, "type_id": kind}}))
        };
        let sequence = |name: &str, kind: u8| Some(json!({"Sequence": {"id": name, "type_id": kind}}));
        let single: Vec<Value> = [token(first, 0), sequence("A", 0), token(last, 0)].into_iter().flatten().collect();
        let second: Vec<Value> = [sequence("B", 1), token(last, 1)].into_iter().flatten().collect();
        let special: Map<String, Value> = [first, last]
            .into_iter()
            .flatten()
            .map(|(id, text)| (text.to_string(), json!({"id": text, "ids": [id], "tokens": [text]})))
            .collect();
        let pair = [single.clone(), second].concat();
        json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special})
    }

    /// `tokenizer_config.json`: special tokens and chat templates.
    fn config(&self) -> Result<Value> {
        let mut config = Map::new();
        for (name, key) in SPECIAL {
            if let Some(text) = self.id(key)?.and_then(|id| self.text(id)) {
                config.insert((*name).to_string(), text.into());
            }
        }
        config.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
        config.insert("clean_up_tokenization_spaces".into(), false.into());
        let default = self.metadata.text("tokenizer.chat_template")?;
        let named: Vec<(&str, &str)> = self
            .metadata
            .with_prefix("tokenizer.chat_template.")
            .filter_map(|(name, value)| match value {
                super::metadata::Value::String(text) => Some((name, text.as_str())),
                _ => None,
            })
            .collect();
        let entry = |(name, template): (&str, &str)| json!({"name": name, "template": template});
        match (default, named.is_empty()) {
            (Some(template), true) => drop(config.insert("chat_template".into(), template.into())),
            (None, true) => {}
            (default, false) => {
                let all = default.map(|template| ("default", template)).into_iter().chain(named);
                config.insert("chat_template".into(), all.map(entry).collect());
            }
        }
        Ok(Value::Object(config))
    }
}

impl TokenKind {
    fn of_number(number: f64) -> TokenKind {
        match number as i64 {
            2 => TokenKind::Unknown,
            3 => TokenKind::Control,
            4 => TokenKind::UserDefined,
            5 => TokenKind::Unused,
            6 => TokenKind::Byte,
            _ => TokenKind::Normal,
        }
    }
}
