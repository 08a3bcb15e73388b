//! Which files of a repository make the model, and which are for other programs.

use crate::id::{ModelId, Wanted};
use quince_tensor::{Error, Result};
use std::collections::BTreeMap;

/// Files that are read if they are there.
pub(crate) const COMPANIONS: &[&str] = &[
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "chat_template.jinja",
    "chat_template.json",
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "adapter_config.json",
    "README.md",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
];
/// What says in which files the weights are.
pub(crate) const INDEX: &str = "model.safetensors.index.json";
/// The file of weights that are in one.
pub(crate) const SINGLE: &str = "model.safetensors";
/// The weights of a LoRA.
pub(crate) const ADAPTER: &str = "adapter_model.safetensors";
/// The quantizations that are taken where none is asked for, the first that is there: as llama.cpp does.
const USUAL: &[&str] = &["Q4_K_M", "Q8_0"];
/// In the names of GGUF files that are no language models of their own.
const BESIDE_MODELS: &[&str] = &["mmproj", "imatrix", "mtp-", "eagle3-", "dflash-"];

/// What is to be there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Needed {
    /// Names of files.
    pub files: Vec<String>,
    /// Whether the index names more of them.
    pub indexed: Weights,
    /// The file that is the model; none where that is the directory.
    pub model: Option<String>,
}

/// Where weights are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Weights {
    /// In the files that are named.
    Named,
    /// In files that [`INDEX`] names.
    Indexed,
}

/// The files of `all` that make the model.
pub(crate) fn needed(id: &ModelId, all: &[String]) -> Result<Needed> {
    match id.wanted() {
        Wanted::File(file) => match all.contains(file) {
            true => gguf(file, all),
            false => Err(absent(format!("found no `{file}`"), all).at(id.repository())),
        },
        Wanted::Quantization(tag) => match of_quantization(tag, all) {
            Some(file) => gguf(file, all),
            None => Err(absent(format!("found no GGUF file of `{tag}`"), all).at(id.repository())),
        },
        Wanted::Model => model(all).map_err(|e| e.at(id.repository())),
    }
}

fn model(all: &[String]) -> Result<Needed> {
    let has = |name: &str| all.iter().any(|file| file == name);
    let mut files: Vec<String> = all.iter().filter(|name| is_companion(name)).cloned().collect();
    let indexed = if has(INDEX) { Weights::Indexed } else { Weights::Named };
    let in_root = all.iter().filter(|name| name.ends_with(".safetensors") && !name.contains('/'));
    match in_root.collect::<Vec<_>>()[..] {
        _ if has(INDEX) => files.push(INDEX.to_string()),
        _ if has(SINGLE) => files.push(SINGLE.to_string()),
        // Parts of a model without an index, or a name of one's own.
        ref some if has("config.json") && !some.is_empty() => {
            files.extend(some.iter().filter(|name| **name != ADAPTER).map(|name| name.to_string()));
        }
        _ if has(ADAPTER) => {}
        _ => return without_safetensors(all),
    }
    if has(ADAPTER) {
        files.push(ADAPTER.to_string());
    }
    Ok(Needed { files, indexed, model: None })
}

/// A repository of GGUF files, or one that cannot be read.
fn without_safetensors(all: &[String]) -> Result<Needed> {
    let usual = USUAL.iter().find_map(|tag| of_quantization(tag, all));
    if let Some(file) = usual.or_else(|| all.iter().find(|name| is_model(name))) {
        return gguf(file, all);
    }
    let has = |end: &str| all.iter().any(|name| name.ends_with(end));
    let error = Error::new("found neither safetensors nor GGUF files, expected the weights of a model");
    Err(match has(".bin") || has(".pt") || has(".pth") {
        true => error
            .hint("it has pickles, which may run code: look for a safetensors branch, such as --revision refs/pr/1"),
        false => error,
    })
}

/// A GGUF file with all its parts.
fn gguf(file: &str, all: &[String]) -> Result<Needed> {
    let Some((stem, count)) = split(file) else {
        return Ok(Needed { files: vec![file.to_string()], indexed: Weights::Named, model: Some(file.to_string()) });
    };
    let files: Vec<String> = (1..=count).map(|part| format!("{stem}-{part:05}-of-{count:05}.gguf")).collect();
    if let Some(missing) = files.iter().find(|part| !all.contains(part)) {
        return Err(Error::new(format!("found no `{missing}`, expected {count} parts")));
    }
    Ok(Needed { model: files.first().cloned(), files, indexed: Weights::Named })
}

/// What stands before the number of a part, and how many parts there are.
fn split(file: &str) -> Option<(&str, usize)> {
    let (rest, count) = file.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (stem, part) = rest.rsplit_once('-')?;
    let number = |text: &str| (text.len() == 5).then(|| text.parse::<usize>().ok()).flatten();
    number(part)?;
    Some((stem, number(count).filter(|count| (1..=1000).contains(count))?))
}

fn of_quantization<'a>(tag: &str, all: &'a [String]) -> Option<&'a String> {
    let tag = tag.to_ascii_lowercase();
    let named = |name: &str| {
        let name = name.to_ascii_lowercase();
        // As a word: Q4_K is not in UD-Q4_K_M.gguf, but in Q4_K-00001-of-00002.gguf.
        name.match_indices(&tag).any(|(at, _)| {
            let after = name[at + tag.len()..].starts_with(['.', '-']);
            after && (at == 0 || name[..at].ends_with(['.', '-', '_', '/']))
        })
    };
    all.iter().find(|name| is_model(name) && named(name.rsplit('/').next().unwrap_or_default()))
}

fn is_model(name: &str) -> bool {
    let file = name.rsplit('/').next().unwrap_or_default();
    file.ends_with(".gguf") && !BESIDE_MODELS.iter().any(|word| file.contains(word))
}

fn is_companion(name: &str) -> bool {
    match name.split_once('/') {
        None => COMPANIONS.contains(&name),
        Some(("additional_chat_templates", file)) => file.ends_with(".jinja"),
        // A module of sentence-transformers, such as 2_Dense.
        Some((directory, file)) => {
            directory.starts_with(|c: char| c.is_ascii_digit()) && ["config.json", SINGLE].contains(&file)
        }
    }
}

fn absent(message: String, all: &[String]) -> Error {
    let error = Error::new(message);
    match all.iter().filter(|name| is_model(name)).map(String::as_str).take(40).collect::<Vec<_>>()[..] {
        [] => error.hint("it has no GGUF files: name the repository alone"),
        ref files => error.hint(format_args!("it has {}", files.join(", "))),
    }
}

/// The files that an index names.
pub(crate) fn indexed(text: &str) -> Result<Vec<String>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index = serde_json::from_str(text).map_err(|e| Error::new(e.to_string()).at(INDEX))?;
    let mut files: Vec<String> = index.weight_map.into_values().collect();
    files.sort();
    files.dedup();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(id: &str, all: &str) -> std::result::Result<(Vec<String>, Option<String>), String> {
        let all: Vec<String> = all.split(' ').map(str::to_string).collect();
        let found = needed(&ModelId::parse(id).unwrap(), &all).map_err(|e| e.to_string())?;
        Ok((found.files, found.model))
    }

    fn names(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_string).collect()
    }

    #[test]
    fn only_what_is_read_is_needed() {
        let all = "README.md config.json model.safetensors pytorch_model.bin onnx/model.onnx tokenizer.json 1_Pooling/config.json";
        let expected = names("README.md config.json tokenizer.json 1_Pooling/config.json model.safetensors");
        assert_eq!(files("o/n", all), Ok((expected, None)));
        let all = "config.json model-00001-of-00002.safetensors model.safetensors.index.json consolidated.safetensors original/model.safetensors";
        assert_eq!(files("o/n", all), Ok((names("config.json model.safetensors.index.json"), None)));
        let all = "adapter_config.json adapter_model.safetensors README.md";
        assert_eq!(files("o/n", all), Ok((names("adapter_config.json README.md adapter_model.safetensors"), None)));
        assert!(files("o/n", "config.json pytorch_model.bin").unwrap_err().contains("hint: it has pickles"));
    }

    #[test]
    fn gguf_files_are_chosen_as_llama_cpp_does() {
        let all = "README.md m-Q2_K.gguf m-Q4_K_M.gguf m-Q8_0.gguf mmproj-m-Q8_0.gguf";
        let one = |name: &str| Ok((names(name), Some(name.to_string())));
        assert_eq!(files("o/n", all), one("m-Q4_K_M.gguf"));
        assert_eq!(files("o/n:q8_0", all), one("m-Q8_0.gguf"));
        assert_eq!(files("o/n/m-Q2_K.gguf", all), one("m-Q2_K.gguf"));
        assert_eq!(files("o/n", "m-IQ1_S.gguf"), one("m-IQ1_S.gguf"));
        let error = files("o/n:Q6_K", all).unwrap_err();
        assert!(error.contains("no GGUF file of `Q6_K`") && error.contains("m-Q2_K.gguf, m-Q4_K_M.gguf"), "{error}");
    }

    #[test]
    fn all_parts_of_a_split_file_are_needed() {
        let all = "Q4_0/m-Q4_0-00001-of-00002.gguf Q4_0/m-Q4_0-00002-of-00002.gguf Q8_0/m-Q8_0-00001-of-00002.gguf";
        let parts = names("Q4_0/m-Q4_0-00001-of-00002.gguf Q4_0/m-Q4_0-00002-of-00002.gguf");
        assert_eq!(files("o/n:Q4_0", all), Ok((parts.clone(), parts.first().cloned())));
        assert!(files("o/n:Q8_0", all).unwrap_err().contains("no `Q8_0/m-Q8_0-00002-of-00002.gguf`"));
    }

    #[test]
    fn an_index_names_its_files_once() {
        let text = r#"{"metadata": {}, "weight_map": {"b": "2", "a": "1", "c": "2"}}"#;
        assert_eq!(indexed(text).unwrap(), ["1", "2"]);
        assert!(indexed("{}").unwrap_err().to_string().starts_with(INDEX));
    }
}
