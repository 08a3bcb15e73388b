//! The files that a tokenizer is made of, in a directory or in memory, and what those beside tokenizer.json say.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use quince_tensor::{Error, Result, bail};
use serde_json::{Map, Value};

/// Where the files are.
pub(crate) enum Files<'a> {
    /// In a directory.
    Directory(&'a Path),
    /// In a model's own file, from which their texts were made.
    Texts {
        /// The file, for errors.
        place: &'a Path,
        /// Their texts by name.
        texts: &'a BTreeMap<String, String>,
    },
}

impl Files<'_> {
    /// The directory or file that holds them.
    pub fn place(&self) -> &Path {
        match self {
            Files::Directory(path) | Files::Texts { place: path, .. } => path,
        }
    }

    /// What errors call a file.
    pub fn path(&self, name: &str) -> PathBuf {
        self.place().join(name)
    }

    /// The bytes of a file; none if it is not there.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        match self {
            Files::Texts { texts, .. } => Ok(texts.get(name).map(|text| text.clone().into_bytes())),
            Files::Directory(_) => {
                let path = self.path(name);
                match fs::read(&path) {
                    Ok(bytes) => Ok(Some(bytes)),
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(Error::new(error.to_string()).at(path.display())),
                }
            }
        }
    }

    /// A file as JSON; null if it is not there.
    pub fn json(&self, name: &str) -> Result<Value> {
        let Some(bytes) = self.read(name)? else { return Ok(Value::Null) };
        serde_json::from_slice(&bytes).map_err(|error| {
            let error = Error::new(format!("found {error}, expected JSON")).at(self.path(name).display());
            error.hint("fetch the file again")
        })
    }
}

/// The files beside tokenizer.json; a missing one is `null`.
pub(crate) struct Configs {
    tokenizer_path: PathBuf,
    tokenizer: Value,
    special_tokens_map: Value,
    generation: Value,
    model: Value,
}

impl Configs {
    pub fn read(files: &Files) -> Result<Configs> {
        Ok(Configs {
            tokenizer_path: files.path("tokenizer_config.json"),
            tokenizer: files.json("tokenizer_config.json")?,
            special_tokens_map: files.json("special_tokens_map.json")?,
            generation: files.json("generation_config.json")?,
            model: files.json("config.json")?,
        })
    }

    /// `NAME_token` entries, as strings (some files have objects with a `content`), tokenizer_config.json first.
    pub fn special_tokens(&self) -> Map<String, Value> {
        const NAMES: [&str; 7] =
            ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
        let text = |value: &Value| value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned);
        let mut found = Map::new();
        for name in NAMES {
            let in_config = self.tokenizer.get(name).and_then(text);
            if let Some(token) = in_config.or_else(|| self.special_tokens_map.get(name).and_then(text)) {
                found.insert(name.to_owned(), token.into());
            }
        }
        found
    }

    /// One id or a list, from generation_config.json, else from config.json.
    pub fn ids(&self, name: &str) -> Result<Vec<u32>> {
        for (file, json) in [("generation_config.json", &self.generation), ("config.json", &self.model)] {
            let one = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
            let ids = match json.get(name) {
                None | Some(Value::Null) => continue,
                Some(Value::Array(list)) => list.iter().map(one).collect(),
                Some(value) => one(value).map(|id| vec![id]),
            };
            return ids.ok_or_else(|| {
                let path = self.tokenizer_path.with_file_name(file);
                Error::new(format!("{name}: found {}, expected a token id or a list of them", json[name]))
                    .at(path.display())
            });
        }
        Ok(Vec::new())
    }

    /// The tokens to put before and after a text, where tokenizer.json is not to decide it: for the tokenizers derived
    /// from SentencePiece, transformers takes `add_bos_token` and `add_eos_token` of tokenizer_config.json.
    pub fn begin_and_end(&self) -> Result<Option<(Option<String>, Option<String>)>> {
        const CLASSES: [&str; 4] = ["LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "CohereTokenizer"];
        let class = self.tokenizer.get("tokenizer_class").and_then(Value::as_str).unwrap_or_default();
        let flags = ["add_bos_token", "add_eos_token"].map(|name| self.tokenizer.get(name).and_then(Value::as_bool));
        if !CLASSES.contains(&class.trim_end_matches("Fast")) || flags == [None, None] {
            return Ok(None);
        }
        let special_tokens = self.special_tokens();
        let wanted = |flag: bool, name: &str| -> Result<Option<String>> {
            match special_tokens.get(name).and_then(Value::as_str) {
                Some(token) if flag => Ok(Some(token.to_owned())),
                None if flag => bail!("{}: found no {name}, expected one to add", self.tokenizer_path.display()),
                _ => Ok(None),
            }
        };
        Ok(Some((wanted(flags[0].unwrap_or(true), "bos_token")?, wanted(flags[1].unwrap_or(false), "eos_token")?)))
    }

    /// The templates by name. `chat_template.jinja` wins over tokenizer_config.json, which holds one template or a
    /// list of named ones; `chat_template.json` and `additional_chat_templates/` are what processors and newer
    /// checkpoints have.
    pub fn chat_templates(&self, files: &Files) -> Result<Vec<(String, String)>> {
        let mut found: Vec<(String, String)> = Vec::new();
        let legacy = files.path("chat_template.json");
        let in_legacy = files.json("chat_template.json")?;
        for (path, json) in [(&self.tokenizer_path, &self.tokenizer), (&legacy, &in_legacy)] {
            match json.get("chat_template") {
                Some(Value::String(source)) => found.push(("default".to_owned(), source.clone())),
                Some(Value::Array(list)) => {
                    for (index, entry) in list.iter().enumerate() {
                        found.push(
                            named_template(entry)
                                .map_err(|e| e.at(format!("{}: chat_template[{index}]", path.display())))?,
                        );
                    }
                }
                None | Some(Value::Null) => {}
                Some(other) => bail!("{}: chat_template: found {other}, expected a string or a list", path.display()),
            }
        }
        if let Files::Directory(dir) = files {
            found.extend(template_files(dir)?);
        }
        // The last of a name wins; the order of first appearance stays.
        let mut merged: Vec<(String, String)> = Vec::new();
        for (name, source) in found {
            match merged.iter_mut().find(|(known, _)| *known == name) {
                Some(entry) => entry.1 = source,
                None => merged.push((name, source)),
            }
        }
        Ok(merged)
    }
}

fn named_template(entry: &Value) -> Result<(String, String)> {
    match (entry.get("name").and_then(Value::as_str), entry.get("template").and_then(Value::as_str)) {
        (Some(name), Some(template)) => Ok((name.to_owned(), template.to_owned())),
        _ => bail!("found {entry}, expected {{\"name\": ..., \"template\": ...}}"),
    }
}

/// `chat_template.jinja` (named `default`) and `additional_chat_templates/NAME.jinja`.
fn template_files(dir: &Path) -> Result<Vec<(String, String)>> {
    let read = |path: &Path| fs::read_to_string(path).map_err(|error| Error::new(error.to_string()).at(path.display()));
    let mut found = Vec::new();
    let single = dir.join("chat_template.jinja");
    if single.is_file() {
        found.push(("default".to_owned(), read(&single)?));
    }
    if let Ok(entries) = fs::read_dir(dir.join("additional_chat_templates")) {
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths.iter().filter(|path| path.extension().is_some_and(|extension| extension == "jinja")) {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            found.push((name, read(path)?));
        }
    }
    Ok(found)
}
