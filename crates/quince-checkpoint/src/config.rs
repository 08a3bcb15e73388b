//! `config.json`: the whole of it as JSON, and typed questions whose errors name the key.

use crate::files;
use crate::suggest::{near, shown};
use quince_tensor::{Error, Result};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The longest configuration that is read, in bytes; real ones have a few thousand.
const MAX_CONFIG: u64 = 16 << 20;

/// The configuration of a model, and the file that it came from.
#[derive(Clone, Debug)]
pub struct Config {
    path: PathBuf,
    value: Value,
}

impl Config {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// When the file is not there, is not JSON, or is not an object.
    pub fn read(path: &Path) -> Result<Config> {
        Config::from_text(path, files::read_text(path, MAX_CONFIG)?)
    }

    /// A configuration given as text; errors name `path`.
    ///
    /// # Errors
    /// When the text is not a JSON object.
    pub fn from_text(path: impl Into<PathBuf>, text: impl Into<String>) -> Result<Config> {
        let path = path.into();
        let value: Value = serde_json::from_str(&text.into())
            .map_err(|error| Error::new(format!("found bad JSON: {error}")).at(path.display()))?;
        if !value.is_object() {
            return Err(Error::new("found JSON that is not an object, expected `{...}`").at(path.display()));
        }
        Ok(Config { path, value })
    }

    /// The file that it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The whole of it.
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// The same with another value of a key.
    #[must_use]
    pub fn with(&self, key: &str, value: Value) -> Config {
        let mut changed = self.clone();
        if let Value::Object(entries) = &mut changed.value {
            entries.insert(key.to_owned(), value);
        }
        changed
    }

    /// The value of a key, or of `outer.inner` in a nested object; `None` if it is absent or null.
    pub fn get(&self, key: &str) -> Option<&Value> {
        let value = key.split('.').try_fold(&self.value, |value, part| value.get(part))?;
        (!value.is_null()).then_some(value)
    }

    /// The value of a key that the model needs.
    ///
    /// # Errors
    /// When the key is absent, or its value is of another type.
    pub fn field<T: DeserializeOwned>(&self, key: &str) -> Result<T> {
        match self.optional(key)? {
            Some(value) => Ok(value),
            None => {
                let error = Error::new(format!("found no key `{key}`"));
                let keys = self.value.as_object().into_iter().flatten().map(|(key, _)| key.as_str());
                let near: Vec<String> = near(key, keys).into_iter().map(|key| format!("`{}`", shown(key))).collect();
                let error = match near.is_empty() {
                    true => error.hint("is this the config of a language model, as its authors published it?"),
                    false => error.hint(format_args!("the file has {}", near.join(", "))),
                };
                Err(error.at(self.path.display()))
            }
        }
    }

    /// The value of a key that may be absent or null.
    ///
    /// # Errors
    /// When the value is of another type.
    pub fn optional<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match T::deserialize(value) {
            Ok(value) => Ok(Some(value)),
            Err(error) => Err(Error::new(error.to_string()).at(format!("key `{key}`")).at(self.path.display())),
        }
    }

    /// `model_type`, which names the architecture.
    ///
    /// # Errors
    /// When the key is absent or no string.
    pub fn model_type(&self) -> Result<String> {
        self.field("model_type")
    }

    /// All of it as a typed value: the fields of one architecture.
    ///
    /// # Errors
    /// Names the key that is missing, or whose value is of another type.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T> {
        T::deserialize(&self.value).map_err(|error| {
            let message = error.to_string();
            let error = match message.strip_prefix("missing field ") {
                Some(key) => Error::new(format!("found no key {key}")),
                None => match self.culprit::<T>(&message) {
                    Some(key) => Error::new(message.as_str()).at(format!("key `{}`", shown(key))),
                    None => Error::new(message.as_str()),
                },
            };
            error.at(self.path.display())
        })
    }

    /// The key without which `T` complains of something else; serde does not tell it.
    fn culprit<T: DeserializeOwned>(&self, message: &str) -> Option<&str> {
        let entries = self.value.as_object()?;
        let found = entries.keys().find(|key| {
            let mut others = entries.clone();
            others.remove(*key);
            T::deserialize(Value::Object(others)).map_or_else(|error| error.to_string() != message, |_| true)
        });
        found.map(String::as_str)
    }

    /// The keys whose value is the integer `size`, to say where an expected shape came from.
    pub(crate) fn keys_with(&self, size: usize) -> Vec<&str> {
        let entries = self.value.as_object().into_iter().flatten();
        let with = entries.filter(|(_, value)| value.as_u64() == u64::try_from(size).ok());
        with.map(|(key, _)| key.as_str()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Deserialize, Debug)]
    #[allow(dead_code)] // Only its errors are looked at.
    struct Small {
        hidden_size: usize,
    }

    fn config(text: &str) -> Config {
        Config::from_text("m/config.json", text).unwrap()
    }

    #[test]
    fn typed_questions_name_the_key() {
        let c = config(r#"{"hidden_size": 64, "norm_eps": 1e-6, "head_dim": null, "rope": {"theta": 10000}}"#);
        assert_eq!(c.field::<usize>("hidden_size").unwrap(), 64);
        assert_eq!(c.field::<f64>("rope.theta").unwrap(), 10000.0);
        assert_eq!(c.optional::<usize>("head_dim").unwrap(), None);
        let missing = c.field::<f64>("rms_norm_eps").unwrap_err().to_string();
        assert_eq!(missing, "m/config.json: found no key `rms_norm_eps`; hint: the file has `norm_eps`");
        let wrong = c.field::<usize>("norm_eps").unwrap_err().to_string();
        assert_eq!(wrong, "m/config.json: key `norm_eps`: invalid type: floating point `1e-6`, expected usize");
    }

    #[test]
    fn a_typed_config_names_the_key_that_is_wrong() {
        let error = config(r#"{"a": 1, "hidden_size": "64", "z": "64"}"#).parse::<Small>().unwrap_err().to_string();
        let expected = "m/config.json: key `hidden_size`: invalid type: string \"64\", expected usize";
        assert_eq!(error, expected);
        let error = config("{}").parse::<Small>().unwrap_err().to_string();
        assert_eq!(error, "m/config.json: found no key `hidden_size`");
    }

    #[test]
    fn what_is_not_an_object_is_refused() {
        for text in ["", "[]", "3", "{\"a\":", &"[".repeat(100_000)] {
            let error = Config::from_text("c", text).unwrap_err().to_string();
            assert!(error.starts_with("c: found"), "{error}");
        }
    }
}
