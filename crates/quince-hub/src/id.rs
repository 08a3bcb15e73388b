//! What people type for a model of the Hub: `Qwen/Qwen3-0.6B`, `org/name-GGUF:Q8_0`, `org/name-GGUF/file.gguf`.

use std::fmt;
use std::path::{Component, Path};

/// A model of the Hub.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ModelId {
    repository: String,
    wanted: Wanted,
}

/// Which of the models of a repository is meant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Wanted {
    /// The one of its `config.json`; in a repository of GGUF files the one that llama.cpp takes too.
    Model,
    /// The GGUF file with this in its name, such as `Q4_K_M`.
    Quantization(String),
    /// This GGUF file.
    File(String),
}

/// What the names of files end in that quince reads or writes: a path with such an end is no repository.
const ENDINGS: &[&str] =
    &[".gguf", ".safetensors", ".json", ".bundle", ".mlpackage", ".mlmodelc", ".mlmodel", ".bin", ".npz", ".git"];
/// The longest name that the Hub gives.
const MAX_NAME: usize = 96;
/// What says that a name is one of the Hub, whatever there is on this machine.
const PREFIXES: &[&str] = &["hf:", "https://huggingface.co/", "https://hf.co/"];

impl ModelId {
    /// Reads an id. With `hf:` or the address of the Hub before it, a name without an organisation is one too (`hf:gpt2`).
    /// `None` if it is no id.
    pub fn parse(text: &str) -> Option<ModelId> {
        let bare = PREFIXES.iter().find_map(|prefix| text.strip_prefix(prefix));
        let (path, tag) = match bare.unwrap_or(text).split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (bare.unwrap_or(text), None),
        };
        let parts: Vec<&str> = path.trim_end_matches('/').split('/').collect();
        let named = |parts: &[&str]| parts.iter().all(|part| is_name(part)).then(|| parts.join("/"));
        let (repository, wanted) = match (&parts[..], tag) {
            ([organisation, name], None) => (named(&[organisation, name])?, Wanted::Model),
            ([organisation, name], Some(tag)) if is_name(tag) => {
                (named(&[organisation, name])?, Wanted::Quantization(tag.to_string()))
            }
            ([name], None) if bare.is_some() => (named(&[name])?, Wanted::Model),
            ([organisation, name, file @ ..], None) if file.last().is_some_and(|file| file.ends_with(".gguf")) => {
                let plain = file.iter().all(|part| !part.is_empty() && !part.starts_with('.'));
                (named(&[organisation, name])?, Wanted::File(plain.then(|| file.join("/"))?))
            }
            _ => return None,
        };
        (!ENDINGS.iter().any(|ending| repository.ends_with(ending))).then_some(ModelId { repository, wanted })
    }

    /// The id that a path means which is not on this machine. A path whose first directory is there is a path with a
    /// mistake, and none of the Hub.
    pub fn of_path(path: &Path) -> Option<ModelId> {
        let text = path.to_str()?;
        let explicit = PREFIXES.iter().any(|prefix| text.starts_with(prefix));
        let begins_here = match path.components().next() {
            Some(Component::Normal(first)) => Path::new(first).exists(),
            _ => true,
        };
        if !explicit && (begins_here || path.symlink_metadata().is_ok()) { None } else { ModelId::parse(text) }
    }

    /// `organisation/name`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Which of its models.
    pub fn wanted(&self) -> &Wanted {
        &self.wanted
    }
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.wanted {
            Wanted::Model => f.write_str(&self.repository),
            Wanted::Quantization(tag) => write!(f, "{}:{tag}", self.repository),
            Wanted::File(file) => write!(f, "{}/{file}", self.repository),
        }
    }
}

/// Whether the Hub gives such names.
fn is_name(part: &str) -> bool {
    let letters = part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    let edges = !part.starts_with(['-', '.']) && !part.ends_with(['-', '.']);
    letters && edges && (1..=MAX_NAME).contains(&part.len()) && !part.contains("..") && !part.contains("--")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_told_from_paths() {
        let wanted = |text: &str| ModelId::parse(text).map(|id| (id.repository.clone(), id.wanted.clone()));
        let model = |name: &str| Some((name.to_string(), Wanted::Model));
        assert_eq!(wanted("Qwen/Qwen3-0.6B"), model("Qwen/Qwen3-0.6B"));
        assert_eq!(wanted("https://huggingface.co/Qwen/Qwen3-0.6B/"), model("Qwen/Qwen3-0.6B"));
        assert_eq!(wanted("hf:gpt2"), model("gpt2"));
        let tagged = Some(("o/n-GGUF".to_string(), Wanted::Quantization("Q8_0".to_string())));
        assert_eq!(wanted("o/n-GGUF:Q8_0"), tagged);
        let file = Some(("o/n".to_string(), Wanted::File("Q8/n-00001-of-00002.gguf".to_string())));
        assert_eq!(wanted("o/n/Q8/n-00001-of-00002.gguf"), file);
        for path in [
            "gpt2",
            "",
            "/",
            "a/b/c",
            "./a/b",
            "../a",
            "/a/b",
            "~/a",
            "a//b",
            "a/model.gguf",
            "a/x.bundle",
            "a/b:",
            "a/b:c/d",
            "o/n/../x.gguf",
            "o/n/.x.gguf",
            "a/b c",
            "a--b/c",
            "C:\\a\\b",
            "hf:",
        ] {
            assert_eq!(wanted(path), None, "{path}");
        }
    }

    #[test]
    fn what_begins_on_this_machine_is_a_path() {
        // Tests run in the directory of the crate, which has `src`.
        assert_eq!(ModelId::of_path(Path::new("src/missing")), None);
        assert_eq!(ModelId::of_path(Path::new("./missing/model")), None);
        assert!(ModelId::of_path(Path::new("missing/model")).is_some());
        assert!(ModelId::of_path(Path::new("hf:src/lib")).is_some());
    }
}
