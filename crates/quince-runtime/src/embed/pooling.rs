//! From the hidden states of a sentence to one vector, for packages that do not do it themselves.

use std::fs;
use std::path::Path;

use quince_tensor::{Error, Result, bail};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Which tokens a vector is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Pooling {
    /// The mean of all.
    #[default]
    Mean,
    /// The first.
    First,
    /// The last.
    Last,
}

/// What a model of sentence-transformers does after its transformer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SentenceModules {
    /// Which tokens it takes; `None` if it does not say.
    pub pooling: Option<Pooling>,
    /// Whether vectors get the length one.
    pub normalizes: bool,
}

impl Pooling {
    /// The vector of a sentence from the states `[tokens, out.len()]` of its tokens, of which there is at least one.
    pub(super) fn pool(self, states: &[f32], out: &mut [f32]) {
        let tokens = states.chunks_exact(out.len().max(1));
        match self {
            Pooling::First => tokens.take(1).for_each(|token| out.copy_from_slice(token)),
            Pooling::Last => tokens.last().into_iter().for_each(|token| out.copy_from_slice(token)),
            Pooling::Mean => {
                let count = tokens.len() as f32;
                out.fill(0.0);
                tokens.for_each(|token| out.iter_mut().zip(token).for_each(|(out, x)| *out += x));
                out.iter_mut().for_each(|out| *out /= count);
            }
        }
    }
}

impl SentenceModules {
    /// Reads `modules.json` of a directory and what it names; without it nothing is said.
    ///
    /// # Errors
    /// When a file cannot be read, or asks for what is not supported.
    pub fn read(directory: &Path) -> Result<SentenceModules> {
        let path = directory.join("modules.json");
        let mut found = SentenceModules::default();
        if !path.is_file() {
            return Ok(found);
        }
        for module in json::<Vec<Module>>(&path)? {
            match module.kind.rsplit('.').next().unwrap_or_default() {
                "Transformer" => {}
                "Pooling" => found.pooling = Some(pooling(&directory.join(&module.path).join("config.json"))?),
                "Normalize" => found.normalizes = true,
                other => bail!(
                    "{}: found the module `{other}`, expected Transformer, Pooling or Normalize", path.display();
                    hint: "say what to do with --pooling"
                ),
            }
        }
        Ok(found)
    }
}

/// An entry of `modules.json`.
#[derive(Deserialize)]
struct Module {
    #[serde(rename = "type")]
    kind: String,
    path: String,
}

fn pooling(path: &Path) -> Result<Pooling> {
    let config: Map<String, Value> = json(path)?;
    let asked = config.iter().filter(|(key, value)| key.starts_with("pooling_mode_") && **value == true);
    let asked: Vec<&str> = asked.map(|(key, _)| key.as_str()).collect();
    match asked[..] {
        ["pooling_mode_mean_tokens"] => Ok(Pooling::Mean),
        ["pooling_mode_cls_token"] => Ok(Pooling::First),
        ["pooling_mode_lasttoken"] => Ok(Pooling::Last),
        _ => bail!(
            "{}: found the modes [{}], expected one of mean, cls and last tokens", path.display(), asked.join(", ");
            hint: "say what to do with --pooling"
        ),
    }
}

pub(super) fn json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read_to_string(path).map_err(|e| Error::new(format!("cannot read: {e}")).at(path.display()))?;
    serde_json::from_str(&text).map_err(|e| Error::new(e.to_string()).at(path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_taken_as_they_are_asked_for() {
        let states = [1.0, 2.0, 3.0, 4.0, 8.0, 9.0];
        for (pooling, expected) in
            [(Pooling::Mean, [4.0, 5.0]), (Pooling::First, [1.0, 2.0]), (Pooling::Last, [8.0, 9.0])]
        {
            let mut out = [7.0; 2];
            pooling.pool(&states, &mut out);
            assert_eq!(out, expected, "{pooling:?}");
        }
    }

    #[test]
    fn modules_say_what_is_pooled() {
        let directory = tempfile::tempdir().unwrap();
        let read = || SentenceModules::read(directory.path());
        assert_eq!(read().unwrap(), SentenceModules::default());
        let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
        let modules = ["Transformer", "Pooling", "Normalize"].map(|kind| {
            let path = if kind == "Pooling" { "1_Pooling" } else { "" };
            format!(r#"{{"idx": 0, "name": "0", "path": "{path}", "type": "sentence_transformers.models.{kind}"}}"#)
        });
        write("modules.json", &format!("[{}]", modules.join(",")));
        assert!(read().unwrap_err().to_string().contains("1_Pooling"));
        fs::create_dir(directory.path().join("1_Pooling")).unwrap();
        write("1_Pooling/config.json", r#"{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}"#);
        assert_eq!(read().unwrap(), SentenceModules { pooling: Some(Pooling::First), normalizes: true });
        write("1_Pooling/config.json", r#"{"pooling_mode_max_tokens": true}"#);
        assert!(read().unwrap_err().to_string().contains("found the modes [pooling_mode_max_tokens]"));
    }
}
