//! Unigram of SentencePiece (T5, XLM-R): the most probable pieces.

use super::sentencepiece::SPACE;
use super::{Parts, TokenKind, Vocabulary};
use quince_tensor::Result;
use serde_json::{Value, json};

pub(super) fn parts(vocabulary: &Vocabulary) -> Result<Parts> {
    let scores = vocabulary.scores()?;
    let pieces: Vec<Value> = vocabulary.tokens.iter().zip(scores).map(|(token, score)| json!([token, score])).collect();
    let unknown = match vocabulary.id("unknown_token_id")? {
        Some(id) => Some(id as usize),
        None => vocabulary.kinds.iter().position(|kind| *kind == TokenKind::Unknown),
    };
    let prefixed = vocabulary.flag("add_space_prefix")?.unwrap_or(true);
    let scheme = if prefixed { "always" } else { "never" };
    let mut normalizers = Vec::new();
    if let Some(map) = vocabulary.metadata.bytes("tokenizer.ggml.precompiled_charsmap")? {
        normalizers.push(json!({"type": "Precompiled", "precompiled_charsmap": base64(map)}));
    }
    if vocabulary.flag("remove_extra_whitespaces")?.unwrap_or(false) {
        normalizers.push(json!({"type": "Strip", "strip_left": true, "strip_right": true}));
        normalizers.push(json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}));
    }
    let first = vocabulary.id("bos_token_id")?.or(vocabulary.id("cls_token_id")?);
    let last = vocabulary.id("eos_token_id")?.or(vocabulary.id("seperator_token_id")?);
    let begins = vocabulary.flag("add_bos_token")?.unwrap_or(false);
    let ends = vocabulary.flag("add_eos_token")?.unwrap_or(true);
    let metaspace = json!({"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": true});
    Ok(Parts {
        normalizer: json!({"type": "Sequence", "normalizers": normalizers}),
        pre_tokenizer: metaspace.clone(),
        decoder: metaspace,
        model: json!({"type": "Unigram", "unk_id": unknown, "vocab": pieces, "byte_fallback": false}),
        around: (first.filter(|_| begins), last.filter(|_| ends)),
    })
}

/// Base64 with padding, as tokenizer.json has binary data.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for i in 0..4 {
            let digit = char::from(DIGITS[(word >> (18 - 6 * i) & 63) as usize]);
            text.push(if i <= chunk.len() { digit } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Witness: the test vectors of RFC 4648.
    #[test]
    fn base64_is_that_of_the_standard() {
        let texts = [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")];
        assert!(texts.iter().all(|(plain, text)| base64(plain.as_bytes()) == *text));
    }
}
