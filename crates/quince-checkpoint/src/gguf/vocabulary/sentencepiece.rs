//! Byte pair encoding of SentencePiece (Llama 2, Gemma): pairs are merged by the score of what they make.

use super::{Parts, TokenKind, Vocabulary};
use quince_tensor::Result;
use serde_json::{Map, Value, json};

/// The longest token, in bytes, that is looked at for its parts: real ones have some tens.
const LONGEST: usize = 1 << 10;
/// What stands for a space.
pub(super) const SPACE: &str = "\u{2581}";

pub(super) fn parts(vocabulary: &Vocabulary) -> Result<Parts> {
    let prefixed = vocabulary.flag("add_space_prefix")?.unwrap_or(true);
    let prepend = prefixed.then(|| json!({"type": "Prepend", "prepend": SPACE}));
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
    let normalizers: Vec<Value> = prepend.into_iter().chain([replace]).collect();
    let back = json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "});
    let strip = prefixed.then(|| json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    let mut decoders = vec![back, json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
    decoders.extend(strip);
    let ids = vocabulary.ids();
    let unknown = vocabulary.id("unknown_token_id")?.or(Some(0)).and_then(|id| vocabulary.text(id));
    let merges = merges(vocabulary, &ids)?;
    let first = vocabulary.id("bos_token_id")?.or(vocabulary.text(1).map(|_| 1));
    let last = vocabulary.id("eos_token_id")?.or(vocabulary.text(2).map(|_| 2));
    Ok(Parts {
        normalizer: json!({"type": "Sequence", "normalizers": normalizers}),
        pre_tokenizer: Value::Null,
        decoder: json!({"type": "Sequence", "decoders": decoders}),
        model: json!({
            "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false, "vocab": ids,
            "merges": merges
        }),
        around: (
            first.filter(|_| vocabulary.flag("add_bos_token").ok().flatten().unwrap_or(true)),
            last.filter(|_| vocabulary.flag("add_eos_token").ok().flatten().unwrap_or(false)),
        ),
    })
}

/// Every way to make a token of two others, the highest score first; of one token in the order of the others' numbers.
fn merges(vocabulary: &Vocabulary, ids: &Map<String, Value>) -> Result<Vec<[String; 2]>> {
    let scores = vocabulary.scores()?;
    let number = |text: &str| ids.get(text).and_then(Value::as_u64);
    let mut merges: Vec<(f64, [String; 2])> = Vec::new();
    for ((token, kind), score) in vocabulary.tokens.iter().zip(&vocabulary.kinds).zip(scores) {
        if *kind != TokenKind::Normal || token.len() > LONGEST {
            continue;
        }
        let cuts = token.char_indices().skip(1).map(|(cut, _)| token.split_at(cut));
        let mut ways: Vec<_> =
            cuts.filter_map(|(l, r)| Some(((number(l)?, number(r)?), [l.into(), r.into()]))).collect();
        ways.sort_by_key(|(numbers, _)| *numbers);
        merges.extend(ways.into_iter().map(|(_, pair)| (score, pair)));
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0));
    Ok(merges.into_iter().map(|(_, pair)| pair).collect())
}
