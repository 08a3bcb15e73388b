//! Byte-level byte pair encoding, as GPT-2 has it; what differs is how text is cut into words before.

use super::{Parts, Vocabulary};
use quince_tensor::{Result, bail};
use serde_json::{Map, Value, json};

/// How text is cut into words: what `tokenizer.ggml.pre` names.
struct Pre {
    names: &'static [&'static str],
    /// Each cuts what the one before has left; what none finds is a word too.
    patterns: &'static [&'static str],
    /// Whether characters are composed before.
    composed: bool,
    /// Whether a word that is a token is taken as such, whatever the merges say.
    whole_words: bool,
    /// Whether a text begins with the first token unless the file says otherwise.
    begins: bool,
}

const PLAIN: Pre = Pre { names: &[], patterns: &[], composed: false, whole_words: false, begins: false };

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;

/// The letters that had a case when the vocabulary was made, which are fewer than `\p{Lu}\p{Ll}\p{Lt}` are by now.
const DEEPSEEK_LETTERS: &str = r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+";

/// Every way that is known. The first is for files that name none, and for the name `default`.
const PRE: &[Pre] = &[
    Pre { names: &["default"], patterns: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"], ..PLAIN },
    Pre {
        names: &[
            "gpt-2",
            "phi-2",
            "jina-es",
            "jina-de",
            "jina-v2-es",
            "jina-v2-de",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "jais",
            "jina-v1-en",
            "jina-v2-code",
            "roberta-bpe",
            "trillion",
            "exaone4",
            "granite-docling",
        ],
        patterns: &[GPT2],
        ..PLAIN
    },
    Pre { names: &["mpt", "olmo", "modern-bert", "gpt-neox"], patterns: &[GPT2], composed: true, ..PLAIN },
    Pre {
        names: &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ],
        patterns: &[LLAMA3],
        whole_words: true,
        begins: true,
        ..PLAIN
    },
    Pre { names: &["dbrx", "smaug-bpe", "chatglm-bpe"], patterns: &[LLAMA3], ..PLAIN },
    Pre { names: &["glm4"], patterns: &[LLAMA3], whole_words: true, ..PLAIN },
    Pre {
        names: &["qwen2", "deepseek-r1-qwen", "stablelm2", "megrez", "kormo", "f2llmv2", "hunyuan", "solar-open"],
        patterns: &[QWEN2],
        composed: true,
        ..PLAIN
    },
    Pre { names: &["grok-2"], patterns: &[QWEN2], ..PLAIN },
    Pre { names: &["qwen35"], patterns: &[QWEN35], ..PLAIN },
    Pre { names: &["gpt-4o", "llama4", "kanana2", "minimax-m2"], patterns: &[GPT4O], ..PLAIN },
    Pre { names: &["tekken"], patterns: &[TEKKEN], whole_words: true, begins: true, ..PLAIN },
    Pre {
        names: &["starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2"],
        patterns: &[r"\p{N}", GPT2],
        ..PLAIN
    },
    Pre { names: &["falcon"], patterns: &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"], ..PLAIN },
    Pre {
        names: &["deepseek-v3", "hunyuan-dense", "joyai-llm"],
        patterns: &[r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK3],
        ..PLAIN
    },
    Pre {
        names: &["deepseek-coder"],
        patterns: &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\u{d7ff}]+", r"\p{N}"],
        ..PLAIN
    },
    Pre {
        names: &["deepseek-llm"],
        patterns: &[
            r"[\r\n]",
            DEEPSEEK_LETTERS,
            r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
            r"\s+$",
            "[一-龥ࠀ-一가-\u{d7ff}]+",
            r"\p{N}+",
        ],
        ..PLAIN
    },
    Pre { names: &["bloom", "poro-chat", "gpt3-finnish"], patterns: &[r" ?[^(\s|.,!?…。，、।۔،)]+"], ..PLAIN },
    Pre { names: &["viking"], patterns: &[r" ?[^(\s|.,!?…。，、।۔،)]+", r"\p{N}"], ..PLAIN },
];

pub(super) fn parts(vocabulary: &Vocabulary) -> Result<Parts> {
    let pre = pre(vocabulary.metadata.text("tokenizer.ggml.pre")?)?;
    let split = |pattern: &&str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    let cuts: Vec<Value> = pre.patterns.iter().map(split).chain([bytes]).collect();
    let ids = vocabulary.ids();
    let merges = merges(vocabulary, &ids)?;
    Ok(Parts {
        normalizer: if pre.composed { json!({"type": "NFC"}) } else { Value::Null },
        pre_tokenizer: json!({"type": "Sequence", "pretokenizers": cuts}),
        decoder: json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}),
        model: json!({
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": pre.whole_words,
            "vocab": ids, "merges": merges
        }),
        around: around(vocabulary, pre)?,
    })
}

fn pre(name: Option<&str>) -> Result<&'static Pre> {
    let name = name.unwrap_or("default");
    match PRE.iter().find(|pre| pre.names.contains(&name)) {
        Some(pre) => Ok(pre),
        None => {
            let known: Vec<&str> = PRE.iter().flat_map(|pre| pre.names).copied().collect();
            bail!(
                "key `tokenizer.ggml.pre`: found `{}`, expected one of {}", crate::suggest::shown(name), known.join(", ");
                hint: "put the tokenizer.json of the original model into the bundle"
            )
        }
    }
}

/// Pairs of tokens in the order in which they are merged. What is no token, or makes none, is left out.
fn merges(vocabulary: &Vocabulary, ids: &Map<String, Value>) -> Result<Vec<[String; 2]>> {
    let Some(merges) = vocabulary.metadata.texts("tokenizer.ggml.merges")? else {
        bail!("found no key `tokenizer.ggml.merges`, which a vocabulary of byte pairs needs");
    };
    let pair = |merge: &str| {
        // A token may begin with a space, but not end with one.
        let space = merge.char_indices().skip(1).find(|(_, c)| *c == ' ')?.0;
        let (left, right) = (merge.get(..space)?, merge.get(space + 1..)?);
        let known = ids.contains_key(left) && ids.contains_key(right) && ids.contains_key(&[left, right].concat());
        known.then(|| [left.to_string(), right.to_string()])
    };
    Ok(merges.into_iter().filter_map(pair).collect())
}

/// What begins and ends a text: for RoBERTa and ModernBERT, what they call classifier and separator.
fn around(vocabulary: &Vocabulary, pre: &Pre) -> Result<(Option<u32>, Option<u32>)> {
    let named = vocabulary.metadata.text("tokenizer.ggml.pre")?.unwrap_or_default();
    let separated = matches!(named, "jina-v1-en" | "jina-v2-code" | "roberta-bpe" | "modern-bert");
    let first = match vocabulary.flag("add_bos_token")?.unwrap_or(pre.begins || separated) {
        true => vocabulary.id("bos_token_id")?.or(vocabulary.id("cls_token_id")?),
        false => None,
    };
    let last = match (vocabulary.flag("add_sep_token")?.unwrap_or(separated), vocabulary.flag("add_eos_token")?) {
        (true, _) => vocabulary.id("seperator_token_id")?.or(vocabulary.id("eos_token_id")?),
        (false, Some(true)) => vocabulary.id("eos_token_id")?,
        _ => None,
    };
    Ok((first, last))
}
