//! The texts of `quince embed`: plain lines, lines of JSON, or a column of Parquet.

use crate::failure::{Result, refused};
use crate::parquet::read_texts;
use clap::ValueEnum;
use quince_tensor::{Error, bail};
use serde_json::{Map, Value, json};
use std::io::Read;
use std::path::Path;

/// How texts are written down.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Each line is a text
    Lines,
    /// A Parquet file with a column of strings; --field names it
    Parquet,
    /// Each line is a string of JSON, or an object that has the text in a field; empty lines are skipped
    Jsonl,
}

/// Texts in order.
pub struct Texts {
    texts: Vec<Text>,
}

struct Text {
    /// Of the line or row, from 1.
    number: usize,
    text: String,
    /// What else there was on the line.
    object: Map<String, Value>,
}

impl Texts {
    /// Reads a file, or standard input for none and for `-`.
    ///
    /// # Errors
    /// When it cannot be read; a line that is not UTF-8, or not the JSON that is expected.
    pub fn read(path: Option<&Path>, kind: Option<Kind>, field: &str) -> Result<Texts> {
        let path = path.filter(|path| *path != Path::new("-"));
        let place = path.unwrap_or(Path::new("standard input"));
        let bytes = match path {
            Some(path) => std::fs::read(path),
            None => {
                let mut bytes = Vec::new();
                std::io::stdin().lock().read_to_end(&mut bytes).map(|_| bytes)
            }
        };
        let bytes = bytes.map_err(|e| refused("read the text", place, &e))?;
        let ends = |ending: &str| {
            path.and_then(|path| path.extension()).is_some_and(|found| found.eq_ignore_ascii_case(ending))
        };
        let kind = kind.unwrap_or(match () {
            () if ends("jsonl") => Kind::Jsonl,
            () if ends("parquet") => Kind::Parquet,
            () => Kind::Lines,
        });
        Ok(Texts::parse(&bytes, kind, field).map_err(|e| e.at(place.display()))?)
    }

    fn parse(bytes: &[u8], kind: Kind, field: &str) -> quince_tensor::Result<Texts> {
        if kind == Kind::Parquet {
            let texts = read_texts(bytes, field)?.into_iter().zip(1..);
            let text = |(text, number)| Text { number, text, object: Map::new() };
            return Ok(Texts { texts: texts.map(text).collect() });
        }
        let mut texts = Vec::new();
        // What follows the last end of a line is a line if there is anything.
        let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        let lines = if bytes.is_empty() { None } else { Some(bytes.split(|&byte| byte == b'\n')) };
        for (line, number) in lines.into_iter().flatten().zip(1..) {
            let parsed = std::str::from_utf8(line.strip_suffix(b"\r").unwrap_or(line))
                .map_err(|e| {
                    Error::new(format!("found a byte that is not UTF-8 after {} of the line", e.valid_up_to()))
                })
                .and_then(|line| match kind {
                    Kind::Lines | Kind::Parquet => Ok(Some((line.to_owned(), Map::new()))),
                    Kind::Jsonl if line.trim().is_empty() => Ok(None),
                    Kind::Jsonl => object(line, field).map(Some),
                });
            if let Some((text, object)) = parsed.map_err(|e| e.at(format!("line {number}")))? {
                texts.push(Text { number, text, object });
            }
        }
        Ok(Texts { texts })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.texts.len()
    }

    /// Each with the number of its line, from 1.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &str)> {
        self.texts.iter().map(|text| (text.number, text.text.as_str()))
    }

    /// What is written for the text with an index, from 0: what its line had, and its embedding.
    pub fn with_embedding(&self, index: usize, embedding: &[f32]) -> Value {
        let Some(Text { text, object, .. }) = self.texts.get(index) else { return Value::Null };
        let mut object = object.clone();
        if object.is_empty() {
            object.insert("text".to_owned(), json!(text));
        }
        object.insert("embedding".to_owned(), json!(embedding));
        Value::Object(object)
    }
}

/// The text of a line of JSON, and the object that it stands in.
fn object(line: &str, field: &str) -> quince_tensor::Result<(String, Map<String, Value>)> {
    let value: Value = serde_json::from_str(line).map_err(|e| Error::new(format!("found no JSON: {e}")))?;
    match value {
        Value::String(text) => Ok((text, Map::new())),
        Value::Object(object) => match object.get(field) {
            Some(Value::String(text)) => Ok((text.clone(), object)),
            Some(_) => bail!("field `{field}`: found no string, expected the text"),
            None => {
                let names: Vec<&str> = object.keys().map(String::as_str).collect();
                bail!("found the fields {}, expected `{field}`", names.join(", "); hint: "--field names the one with the text")
            }
        },
        _ => bail!("found neither a string nor an object, expected a text"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &[u8], kind: Kind) -> std::result::Result<Vec<(usize, String)>, String> {
        let texts = Texts::parse(text, kind, "text").map_err(|e| e.to_string())?;
        Ok(texts.iter().map(|(number, text)| (number, text.to_owned())).collect())
    }

    #[test]
    fn lines_end_as_on_any_system() {
        assert_eq!(parsed(b"a\r\n\nb", Kind::Lines).unwrap(), [(1, "a".into()), (2, "".into()), (3, "b".into())]);
        assert_eq!(parsed(b"", Kind::Lines).unwrap(), []);
        let error = parsed(b"a\nb\xff\n", Kind::Lines).unwrap_err();
        assert!(error.starts_with("line 2: found a byte that is not UTF-8 after 1 of the line"), "{error}");
    }

    #[test]
    fn json_keeps_what_it_had() {
        let text = b"\"a\"\n\n{\"id\": 7, \"text\": \"b\"}\n";
        assert_eq!(parsed(text, Kind::Jsonl).unwrap(), [(1, "a".into()), (3, "b".into())]);
        let texts = Texts::parse(text, Kind::Jsonl, "text").unwrap();
        assert_eq!(texts.with_embedding(0, &[0.5]), json!({"text": "a", "embedding": [0.5]}));
        assert_eq!(texts.with_embedding(1, &[0.5]), json!({"id": 7, "text": "b", "embedding": [0.5]}));
        for (line, problem) in [
            ("{\"a\": 1}", "line 1: found the fields a, expected `text`"),
            ("{\"text\": 1}", "line 1: field `text`: found no string"),
            ("3", "line 1: found neither a string nor an object"),
            ("{", "line 1: found no JSON"),
        ] {
            let error = parsed(line.as_bytes(), Kind::Jsonl).unwrap_err();
            assert!(error.starts_with(problem), "{error}");
        }
    }
}
