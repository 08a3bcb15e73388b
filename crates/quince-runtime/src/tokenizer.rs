//! The tokenizer of a model directory: text to ids and back, special tokens, chat template.
//!
//! `tokenizer.json` is run by the `tokenizers` crate, which no type of this module shows. Truncation and padding that
//! the file may ask for are switched off: they are habits of training, and would cut prompts without a word.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use quince_tensor::{Error, Result, bail};
use serde_json::{Map, Value};
use tokenizers::processors::template::TemplateProcessing;

use crate::chat_template::{ChatRequest, ChatTemplate};
use crate::detokenize::TextStream;
use crate::tokenizer_files::{Configs, Files};

/// What becomes of special tokens such as `<s>` and `<|im_end|>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecialTokens {
    /// Encoding adds those that begin and end a text; decoding writes them.
    Include,
    /// Encoding adds none (those written out in the text are still recognised); decoding leaves them out.
    Omit,
}

/// Text to token ids and back, as the model was trained.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    special_ids: BTreeSet<u32>,
    byte_fallback: bool,
    bos: Option<u32>,
    eos: Vec<u32>,
    special_tokens: Map<String, Value>,
    chat_template: Option<ChatTemplate>,
}

impl Tokenizer {
    /// Reads `tokenizer.json` and, where they are there, `tokenizer_config.json`, `special_tokens_map.json`,
    /// `generation_config.json`, `config.json` and the chat template files of a model directory.
    ///
    /// # Errors
    /// A missing `tokenizer.json`, or a file that is not what its name says; the message names the file.
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Tokenizer> {
        Tokenizer::from_files(&Files::Directory(dir.as_ref()))
    }

    /// The same from texts by file name, for models that keep them in a file of their own; errors name `place`.
    ///
    /// # Errors
    /// As [`Tokenizer::from_dir`].
    pub fn from_texts(place: &Path, texts: &BTreeMap<String, String>) -> Result<Tokenizer> {
        Tokenizer::from_files(&Files::Texts { place, texts })
    }

    fn from_files(files: &Files) -> Result<Tokenizer> {
        let path = files.path("tokenizer.json");
        let Some(bytes) = files.read("tokenizer.json")? else {
            let hint = "save the tokenizer with transformers' `save_pretrained`, or fetch tokenizer.json from the model's page";
            return Err(Error::new("found no such file, expected the tokenizer").at(path.display()).hint(hint));
        };
        let mut inner = load(&bytes).map_err(|error| error.at(path.display()))?;
        let config = Configs::read(files)?;
        if let Some((bos, eos)) = config.begin_and_end()? {
            let processor = surround(&inner, bos.as_deref(), eos.as_deref())?;
            inner.with_post_processor(Some(processor));
        }
        let special_tokens = config.special_tokens();
        let id_of =
            |name: &str| special_tokens.get(name).and_then(Value::as_str).and_then(|text| inner.token_to_id(text));
        let mut eos = config.ids("eos_token_id")?;
        eos.extend(id_of("eos_token"));
        let mut seen = BTreeSet::new();
        eos.retain(|id| seen.insert(*id));
        let bos = id_of("bos_token").or(config.ids("bos_token_id")?.first().copied());
        let sources = config.chat_templates(files)?;
        let chat_template = match sources.is_empty() {
            true => None,
            false => {
                let template = ChatTemplate::new(&sources, special_tokens.clone());
                Some(template.map_err(|error| error.at(files.place().display()))?)
            }
        };
        let special_ids = inner.get_added_tokens_decoder().into_iter().filter(|(_, token)| token.special);
        Ok(Tokenizer {
            special_ids: special_ids.map(|(id, _)| id).collect(),
            byte_fallback: has_byte_fallback(&bytes),
            inner,
            bos,
            eos,
            special_tokens,
            chat_template,
        })
    }

    /// The ids of a text.
    ///
    /// # Errors
    /// Text that the vocabulary cannot write (only vocabularies without bytes and without an unknown token).
    pub fn encode(&self, text: &str, special: SpecialTokens) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, special == SpecialTokens::Include);
        Ok(encoding.map_err(|error| Error::new(format!("tokenizer: {error}")))?.get_ids().to_vec())
    }

    /// The token that encoding puts before a text, if it puts one.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn begin_of_text(&self) -> Result<Option<u32>> {
        let with = self.encode("a", SpecialTokens::Include)?;
        let without = self.encode("a", SpecialTokens::Omit)?;
        Ok(with.first().copied().filter(|first| with.len() > without.len() && without.first() != Some(first)))
    }

    /// The ids of a text with the special tokens around it, cut to at most `longest` ids from the end of the text: the
    /// special tokens stay, as transformers' `truncation=True` has it.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`]; more special tokens than `longest`.
    pub fn encode_within(&self, text: &str, longest: usize) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, true);
        let encoding = encoding.map_err(|error| Error::new(format!("tokenizer: {error}")))?;
        let (ids, special) = (encoding.get_ids(), encoding.get_special_tokens_mask());
        let excess = ids.len().saturating_sub(longest);
        // What follows the text, wherever special tokens are written inside it.
        let after = special.iter().rev().take_while(|&&flag| flag == 1).count();
        let before = special.iter().take_while(|&&flag| flag == 1).count();
        let Some(end) = ids.len().checked_sub(after + excess).filter(|&end| end >= before || excess == 0) else {
            bail!("found {} special tokens around a text, expected at most {longest}", before + after);
        };
        Ok([&ids[..end], &ids[ids.len() - after..]].concat())
    }

    /// The text of ids. Ids beyond the vocabulary (models pad theirs) have no text. Spaces before punctuation stay as
    /// they are: `clean_up_tokenization_spaces` would make decoding lossy.
    ///
    /// # Errors
    /// Ids that the decoder of tokenizer.json refuses.
    pub fn decode(&self, ids: &[u32], special: SpecialTokens) -> Result<String> {
        let text = self.inner.decode(ids, special == SpecialTokens::Omit);
        text.map_err(|error| Error::new(format!("tokenizer: {error}")))
    }

    /// A decoder that takes one token at a time.
    pub fn stream(&self, special: SpecialTokens) -> TextStream<'_> {
        TextStream::new(self, special)
    }

    /// The prompt of a conversation, and its ids. The template writes the special tokens, none are added.
    ///
    /// # Errors
    /// A model without chat template; a conversation that the template refuses.
    pub fn apply_chat_template(&self, name: Option<&str>, request: &ChatRequest) -> Result<(String, Vec<u32>)> {
        let Some(template) = &self.chat_template else {
            bail!("chat template: found none in this model"; hint: "it is a base model: give it plain text to continue (--raw)");
        };
        let prompt = template.render(name, request)?;
        let ids = self.encode(&prompt, SpecialTokens::Omit)?;
        Ok((prompt, ids))
    }

    /// The chat template, if the model has one.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.chat_template.as_ref()
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The tokens that end an answer: those of `generation_config.json` (else `config.json`), then the tokenizer's own.
    pub fn eos(&self) -> &[u32] {
        &self.eos
    }

    /// `bos_token`, `eos_token`, ... and their texts, as templates see them.
    pub fn special_tokens(&self) -> &Map<String, Value> {
        &self.special_tokens
    }

    /// The token that fills what is left of a row: `pad_token`, or 0.
    pub fn padding(&self) -> u32 {
        let token = self.special_tokens.get("pad_token").and_then(|token| token.as_str());
        token.and_then(|token| self.token_to_id(token)).unwrap_or(0)
    }

    /// Number of tokens, added ones included. The model's logits may be more: rows are often padded.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The id of a token written as in the vocabulary.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token as the vocabulary writes it (`Ġthe`, `▁the`, `<0x0A>`): for tables, not for text.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Whether decoding passes over the token: special ones when they are omitted, and ids that are no token.
    pub(crate) fn is_silent(&self, id: u32, special: SpecialTokens) -> bool {
        let omitted = special == SpecialTokens::Omit && self.special_ids.contains(&id);
        omitted || self.inner.id_to_token(id).is_none()
    }

    /// Whether the token stands for one byte, and its text depends on the byte tokens beside it.
    pub(crate) fn is_byte(&self, id: u32) -> bool {
        let is_hex = |token: String| token.len() == 6 && token.starts_with("<0x") && token.ends_with('>');
        self.byte_fallback && self.inner.id_to_token(id).is_some_and(is_hex)
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = ("vocab_size", self.vocab_size());
        f.debug_struct("Tokenizer").field(shown.0, &shown.1).field("bos", &self.bos).field("eos", &self.eos).finish()
    }
}

fn load(bytes: &[u8]) -> Result<tokenizers::Tokenizer> {
    let mut inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(|error| {
        Error::new(format!("found {error}, expected a tokenizer"))
            .hint("the file is damaged or too new; fetch it again")
    })?;
    inner.with_padding(None);
    inner.with_truncation(None).map_err(|error| Error::new(error.to_string()))?;
    Ok(inner)
}

/// Whether the decoder turns runs of `<0xNN>` tokens into UTF-8, as vocabularies from SentencePiece need.
fn has_byte_fallback(tokenizer_json: &[u8]) -> bool {
    fn mentions(decoder: &Value) -> bool {
        decoder.get("type").is_some_and(|kind| kind == "ByteFallback")
            || decoder.get("decoders").and_then(Value::as_array).is_some_and(|list| list.iter().any(mentions))
    }
    serde_json::from_slice::<Value>(tokenizer_json).is_ok_and(|json| json.get("decoder").is_some_and(mentions))
}

/// A post-processor that puts tokens before and after each text.
fn surround(tokenizer: &tokenizers::Tokenizer, bos: Option<&str>, eos: Option<&str>) -> Result<TemplateProcessing> {
    let mut ids = Vec::new();
    for token in [bos, eos].into_iter().flatten() {
        let id = tokenizer.token_to_id(token);
        let id =
            id.ok_or_else(|| Error::new(format!("tokenizer.json: found no token {token:?}, expected one to add")))?;
        ids.push((token.to_owned(), id));
    }
    let part = |token: Option<&str>, kind: u8| token.map(|token| format!("{token}:{kind}"));
    let sequence = |name: &str, kind: u8| -> Vec<String> {
        [part(bos, kind), Some(format!("${name}:{kind}")), part(eos, kind)].into_iter().flatten().collect()
    };
    let single = sequence("A", 0);
    let pair = [sequence("A", 0), sequence("B", 1)].concat();
    let build = || -> std::result::Result<TemplateProcessing, String> {
        let mut builder = TemplateProcessing::builder();
        builder.try_single(single)?.try_pair(pair)?.special_tokens(ids);
        builder.build().map_err(|error| error.to_string())
    };
    build().map_err(|error| Error::new(format!("tokenizer: add_bos_token and add_eos_token: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::python::Moment;
    use crate::testing::{TINY_LLAMA, golden, sentence_piece, tiny_llama};
    use crate::{ChatRequest, Message};
    use std::fs;

    const NOON: Moment = Moment { unix_seconds: 43_200, utc_offset_seconds: 0 };

    /// Witness: prompts, ids and texts that transformers wrote for the trained model.
    #[test]
    fn prompts_and_answers_are_those_of_transformers() {
        let tokenizer = tiny_llama();
        let golden = golden();
        assert!(golden.len() >= 8);
        for transcript in golden {
            let prompt = transcript["prompt"].as_str().unwrap();
            let ids: Vec<u32> = serde_json::from_value(transcript["prompt_ids"].clone()).unwrap();
            if transcript["kind"] == "chat" {
                let messages: Vec<Message> = serde_json::from_value(transcript["messages"].clone()).unwrap();
                let (text, encoded) = tokenizer.apply_chat_template(None, &ChatRequest::new(&messages, NOON)).unwrap();
                assert_eq!((text.as_str(), &encoded), (prompt, &ids));
            } else {
                assert_eq!(tokenizer.encode(prompt, SpecialTokens::Include).unwrap(), ids);
                assert_eq!(tokenizer.encode(prompt, SpecialTokens::Omit).unwrap(), ids[1..]);
            }
            let answer: Vec<u32> = serde_json::from_value(transcript["output_ids"].clone()).unwrap();
            let text = transcript["text_all"].as_str().unwrap();
            assert_eq!(tokenizer.decode(&answer, SpecialTokens::Include).unwrap(), text);
        }
    }

    #[test]
    fn special_tokens_come_from_the_files_beside() {
        let tokenizer = tiny_llama();
        assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(0), &[1, 4][..]));
        assert_eq!(tokenizer.special_tokens()["pad_token"], "<|pad|>");
        assert_eq!(tokenizer.vocab_size(), 2048);
        assert_eq!(tokenizer.decode(&[3, 37, 4], SpecialTokens::Omit).unwrap(), "A");
    }

    /// A directory with the tokenizer of the trained model and other files beside it.
    fn variant(files: &[(&str, &str)]) -> (tempfile::TempDir, Result<Tokenizer>) {
        let dir = tempfile::tempdir().unwrap();
        fs::copy(Path::new(TINY_LLAMA).join("tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let tokenizer = Tokenizer::from_dir(dir.path());
        (dir, tokenizer)
    }

    #[test]
    fn padding_and_truncation_of_the_file_are_off() {
        let mut json: Value =
            serde_json::from_slice(&fs::read(Path::new(TINY_LLAMA).join("tokenizer.json")).unwrap()).unwrap();
        json["padding"] = serde_json::json!({"strategy": {"Fixed": 128}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 2, "pad_type_id": 0, "pad_token": "<|pad|>"});
        json["truncation"] =
            serde_json::json!({"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0});
        let (_dir, tokenizer) = variant(&[("tokenizer.json", &json.to_string())]);
        let text = "one two three four five six";
        let ids = tokenizer.unwrap().encode(text, SpecialTokens::Include).unwrap();
        assert_eq!(ids, tiny_llama().encode(text, SpecialTokens::Include).unwrap());
    }

    #[test]
    fn templates_are_found_wherever_they_are_kept() {
        let config = r#"{"bos_token": {"content": "<|begin_of_text|>"}, "chat_template":
            [{"name": "default", "template": "config"}, {"name": "tool_use", "template": "tools {{ bos_token }}"}]}"#;
        let other = ("additional_chat_templates/rag.jinja", "rag");
        let file = ("chat_template.jinja", "file");
        let (_dir, tokenizer) = variant(&[("tokenizer_config.json", config), other, file]);
        let tokenizer = tokenizer.unwrap();
        let template = tokenizer.chat_template().unwrap();
        assert_eq!(template.names(), ["default", "tool_use", "rag"]);
        let messages = [Message::new("user", "Hi")];
        let mut request = ChatRequest::new(&messages, NOON);
        assert_eq!(template.render(None, &request).unwrap(), "file");
        assert_eq!(template.render(Some("rag"), &request).unwrap(), "rag");
        let tools = [serde_json::json!({"name": "f"})];
        request.tools = &tools;
        assert_eq!(template.render(None, &request).unwrap(), "tools <|begin_of_text|>");
        let error = template.render(Some("nope"), &request).unwrap_err().to_string();
        assert!(error.contains("found default, tool_use, rag, expected `nope`"), "{error}");
    }

    #[test]
    fn llama_tokenizers_obey_add_bos_and_add_eos() {
        let config = |class: &str, bos: bool| {
            format!(
                r#"{{"tokenizer_class": "{class}", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "add_bos_token": {bos}, "add_eos_token": true}}"#
            )
        };
        let ids = |config: String| {
            let (_dir, tokenizer) = variant(&[("tokenizer_config.json", &config)]);
            tokenizer.unwrap().encode("A", SpecialTokens::Include).unwrap()
        };
        assert_eq!(ids(config("LlamaTokenizerFast", true)), [3, 37, 4]);
        assert_eq!(ids(config("LlamaTokenizer", false)), [37, 4]);
        assert_eq!(ids(config("PreTrainedTokenizerFast", false)), [0, 37]);
    }

    #[test]
    fn sentence_piece_text_keeps_its_spaces() {
        let tokenizer = sentence_piece();
        for text in ["hello world", " hello", "  two  spaces ", "é🦙", ""] {
            let ids = tokenizer.encode(text, SpecialTokens::Omit).unwrap();
            assert_eq!(tokenizer.decode(&ids, SpecialTokens::Omit).unwrap(), text);
        }
    }

    #[test]
    fn broken_files_are_named() {
        let error = |files: &[(&str, &str)]| variant(files).1.unwrap_err().to_string();
        assert!(error(&[("tokenizer.json", "{")]).contains("tokenizer.json: found "));
        assert!(error(&[("tokenizer_config.json", "{\"a\":")]).contains("tokenizer_config.json: found EOF"));
        let eos = error(&[("generation_config.json", r#"{"eos_token_id": "</s>"}"#)]);
        assert!(eos.contains("generation_config.json: eos_token_id: found \"</s>\""), "{eos}");
        let template = error(&[("chat_template.jinja", "line\n{% for %}")]);
        assert!(template.contains("chat template `default` line 2"), "{template}");
        let list = error(&[("tokenizer_config.json", r#"{"chat_template": [{"name": "x"}]}"#)]);
        assert!(list.contains("chat_template[0]: found"), "{list}");
        let missing = Tokenizer::from_dir("/nowhere").unwrap_err().to_string();
        assert!(missing.contains("tokenizer.json") && missing.contains("hint: "), "{missing}");
        let (_dir, base) = variant(&[]);
        let no_template =
            base.unwrap().apply_chat_template(None, &ChatRequest::new(&[], NOON)).unwrap_err().to_string();
        assert!(no_template.contains("found none"), "{no_template}");
    }
}
