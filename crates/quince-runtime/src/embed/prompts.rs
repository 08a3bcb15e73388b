//! What some models want before a text: the prompts of sentence-transformers.

use std::collections::BTreeMap;
use std::path::Path;

use quince_tensor::{Result, bail};
use serde::Deserialize;

/// The prompts of a model, by name: `query` to `Represent this sentence for searching relevant passages: `.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
pub struct Prompts {
    #[serde(default)]
    prompts: BTreeMap<String, String>,
    #[serde(default)]
    default_prompt_name: Option<String>,
}

impl Prompts {
    /// Reads `config_sentence_transformers.json` of a directory; none without it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(directory: &Path) -> Result<Prompts> {
        let path = directory.join("config_sentence_transformers.json");
        if path.is_file() { super::pooling::json(&path) } else { Ok(Prompts::default()) }
    }

    /// What stands before every text: the prompt of a name, or what the model wants if nothing is said.
    ///
    /// # Errors
    /// When there is no such prompt.
    pub fn prompt(&self, name: Option<&str>) -> Result<&str> {
        let Some(name) = name.or(self.default_prompt_name.as_deref()) else { return Ok("") };
        match self.prompts.get(name) {
            Some(prompt) => Ok(prompt),
            None if self.prompts.is_empty() => {
                bail!("found no prompts beside the tokenizer, expected `{name}` in config_sentence_transformers.json")
            }
            None => {
                let names: Vec<&str> = self.prompts.keys().map(String::as_str).collect();
                bail!("found the prompts {}, expected `{name}` among them", names.join(", "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_is_taken_by_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let read = |text: &str| {
            std::fs::write(directory.path().join("config_sentence_transformers.json"), text).unwrap();
            Prompts::read(directory.path()).unwrap()
        };
        let prompts = read(r#"{"prompts": {"query": "Q: ", "document": ""}, "default_prompt_name": null}"#);
        assert_eq!((prompts.prompt(None).unwrap(), prompts.prompt(Some("query")).unwrap()), ("", "Q: "));
        let error = prompts.prompt(Some("passage")).unwrap_err().to_string();
        assert_eq!(error, "found the prompts document, query, expected `passage` among them");
        let prompts = read(r#"{"prompts": {"query": "Q: "}, "default_prompt_name": "query", "__version__": {}}"#);
        assert_eq!(prompts.prompt(None).unwrap(), "Q: ");
        assert!(read("{}").prompt(Some("query")).is_err());
    }
}
