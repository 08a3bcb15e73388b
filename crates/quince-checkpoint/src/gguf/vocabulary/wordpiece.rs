//! WordPiece, as BERT has it. llama.cpp marks the pieces that begin a word; BERT marks those that do not.

use super::sentencepiece::SPACE;
use super::{Parts, TokenKind, Vocabulary};
use quince_tensor::Result;
use serde_json::{Map, json};

pub(super) fn parts(vocabulary: &Vocabulary) -> Result<Parts> {
    let mut ids = Map::new();
    let mut lowercase = true;
    for (id, (token, kind)) in vocabulary.tokens.iter().zip(&vocabulary.kinds).enumerate() {
        let piece = match (kind, token.strip_prefix(SPACE)) {
            (TokenKind::Control | TokenKind::Unknown, _) => (*token).to_string(),
            (_, Some(word)) => word.to_string(),
            (_, None) if is_marker(token) => (*token).to_string(),
            (_, None) => format!("##{token}"),
        };
        // A vocabulary with capitals is of a model that tells them apart.
        let plain = *kind == TokenKind::Normal && !is_marker(&piece);
        lowercase &= !(plain && piece.bytes().any(|byte| byte.is_ascii_uppercase()));
        ids.entry(piece).or_insert(id.into());
    }
    let unknown = vocabulary.id("unknown_token_id")?.and_then(|id| vocabulary.text(id)).unwrap_or("[UNK]");
    let first = vocabulary.id("cls_token_id")?.or(vocabulary.id("bos_token_id")?);
    let last = vocabulary.id("seperator_token_id")?.or(vocabulary.id("eos_token_id")?);
    Ok(Parts {
        normalizer: json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": null, "lowercase": lowercase}),
        pre_tokenizer: json!({"type": "BertPreTokenizer"}),
        decoder: json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
        model: json!({"type": "WordPiece", "unk_token": unknown.trim_start_matches(SPACE),
            "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": ids}),
        around: (first, last),
    })
}

/// Whether a token is one like `[CLS]` or `[unused17]`.
fn is_marker(token: &str) -> bool {
    token.len() > 2 && token.starts_with('[') && token.ends_with(']')
}
