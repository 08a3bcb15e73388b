//! What the tests of this crate share: two tokenizers and the golden transcripts of the bundled model.

use std::path::Path;
use std::sync::OnceLock;

use serde_json::{Value, json};

use crate::tokenizer::Tokenizer;

/// The directory of the bundled model.
pub(crate) const TINY_LLAMA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/tiny-llama");

/// The byte-level tokenizer of the bundled model.
pub(crate) fn tiny_llama() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| Tokenizer::from_dir(TINY_LLAMA).unwrap())
}

/// What transformers generated with the bundled model: `prompt`, `prompt_ids`, `output_ids`, `text`, `text_all`, ...
pub(crate) fn golden() -> Vec<Value> {
    let bytes = std::fs::read(Path::new(TINY_LLAMA).join("golden/golden.json")).unwrap();
    let mut json: Value = serde_json::from_slice(&bytes).unwrap();
    json["transcripts"].take().as_array().unwrap().clone()
}

/// A vocabulary as SentencePiece makes them: spaces are `▁`, a text begins with one, unknown characters are bytes.
pub(crate) fn sentence_piece() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| {
        let bytes = (0..256).map(|byte| format!("<0x{byte:02X}>"));
        let pieces = ["▁", "h", "e", "l", "o", "a", "n", "d", "w", "he", "ll", "▁w", "▁▁", "▁a"].map(String::from);
        let vocab: serde_json::Map<String, Value> = (["<unk>", "<s>", "</s>"].map(String::from).into_iter())
            .chain(bytes)
            .chain(pieces)
            .enumerate()
            .map(|(id, token)| (token, id.into()))
            .collect();
        let special = |id: u32, content: &str| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        };
        let tokenizer = json!({
            "version": "1.0",
            "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"}, {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
            "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true, "vocab": vocab,
                "merges": [["h", "e"], ["l", "l"], ["▁", "w"], ["▁", "▁"], ["▁", "a"]]},
        });
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
        Tokenizer::from_dir(dir.path()).unwrap()
    })
}
