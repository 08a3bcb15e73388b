//! The metadata of a GGUF file: typed values by key.

use crate::suggest::shown;
use quince_tensor::{Error, Result, bail};
use std::collections::BTreeMap;

/// Values by key.
#[derive(Debug, Default)]
pub(super) struct Metadata(BTreeMap<String, Value>);

/// A value.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// An integer without a sign.
    Unsigned(u64),
    /// An integer that is below zero.
    Negative(i64),
    /// A number with a fraction, which may be a float32 or a float64.
    Float(f64),
    /// Yes or no.
    Bool(bool),
    /// Text.
    String(String),
    /// Elements of one kind, as bytes: as many as the kind needs for the count.
    List { kind: Kind, count: usize, bytes: Box<[u8]> },
}

/// What a value is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)] // The names say it all.
pub(super) enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

/// Every kind by its number, with the bytes of a value where they are always the same.
const KINDS: &[(Kind, Option<usize>)] = &[
    (Kind::U8, Some(1)),
    (Kind::I8, Some(1)),
    (Kind::U16, Some(2)),
    (Kind::I16, Some(2)),
    (Kind::U32, Some(4)),
    (Kind::I32, Some(4)),
    (Kind::F32, Some(4)),
    (Kind::Bool, Some(1)),
    (Kind::String, None),
    (Kind::Array, None),
    (Kind::U64, Some(8)),
    (Kind::I64, Some(8)),
    (Kind::F64, Some(8)),
];

impl Kind {
    /// The largest number of a kind.
    pub const LAST: usize = KINDS.len() - 1;

    /// The kind with this number.
    pub fn of_code(code: u32) -> Option<Kind> {
        KINDS.get(usize::try_from(code).ok()?).map(|row| row.0)
    }

    /// The bytes of a value, where they are always the same.
    pub fn bytes(self) -> Option<usize> {
        KINDS.iter().find(|row| row.0 == self).and_then(|row| row.1)
    }
}

impl Value {
    /// A value of a kind that has a fixed number of bytes, from exactly those.
    pub fn scalar(kind: Kind, bytes: &[u8]) -> Value {
        let mut wide = [0u8; 8];
        wide.iter_mut().zip(bytes).for_each(|(wide, byte)| *wide = *byte);
        let unsigned = u64::from_le_bytes(wide);
        let signed = |bits: u32| match (unsigned << (64 - bits)) as i64 >> (64 - bits) {
            value @ 0.. => Value::Unsigned(value as u64),
            value => Value::Negative(value),
        };
        match kind {
            Kind::I8 => signed(8),
            Kind::I16 => signed(16),
            Kind::I32 => signed(32),
            Kind::I64 => signed(64),
            Kind::Bool => Value::Bool(unsigned != 0),
            // The shortest decimal that is the float32: 1e-5, not 0.000009999999747378752.
            Kind::F32 => Value::Float(shortest(f32::from_bits(unsigned as u32))),
            Kind::F64 => Value::Float(f64::from_bits(unsigned)),
            _ => Value::Unsigned(unsigned),
        }
    }

    /// The number, if it is one.
    pub fn number(&self) -> Option<f64> {
        match *self {
            Value::Unsigned(value) => Some(value as f64),
            Value::Negative(value) => Some(value as f64),
            Value::Float(value) => Some(value),
            _ => None,
        }
    }

    /// As JSON, where it is no list.
    pub fn json(&self) -> serde_json::Value {
        match self {
            Value::Unsigned(value) => (*value).into(),
            Value::Negative(value) => (*value).into(),
            Value::Float(value) => (*value).into(),
            Value::Bool(value) => (*value).into(),
            Value::String(text) => text.as_str().into(),
            Value::List { .. } => serde_json::Value::Null,
        }
    }

    /// What it is, for errors.
    fn described(&self) -> String {
        match self {
            Value::List { count, kind, .. } => format!("a list of {count} {kind:?}"),
            Value::String(text) => format!("`{}`", shown(text)),
            other => other.json().to_string(),
        }
    }
}

fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

impl Metadata {
    /// Adds a value; gives back the one that had the key.
    pub fn insert(&mut self, key: String, value: Value) -> Option<Value> {
        self.0.insert(key, value)
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    /// The keys that begin so, with what follows.
    pub fn with_prefix<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a Value)> {
        self.0.iter().filter_map(move |(key, value)| Some((key.strip_prefix(prefix)?, value)))
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match read(value) {
            Some(read) => Ok(Some(read)),
            None => bail!("key `{key}`: found {}, expected {expected}", value.described()),
        }
    }

    /// A text.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "text", |value| match value {
            Value::String(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// An integer that is not below zero. Some files have one for each layer: then all must be equal.
    pub fn unsigned(&self, key: &str) -> Result<Option<u64>> {
        self.typed(key, "an integer, the same for all layers", |value| match value {
            Value::Unsigned(value) => Some(*value),
            Value::List { .. } => {
                let mut values = numbers(value)?.into_iter();
                let first = values.next()?;
                let whole = first >= 0.0 && first.fract() == 0.0;
                (whole && values.all(|value| value == first)).then_some(first as u64)
            }
            _ => None,
        })
    }

    /// A number.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", Value::number)
    }

    /// Yes or no.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", |value| match value {
            Value::Bool(flag) => Some(*flag),
            _ => None,
        })
    }

    /// A list of numbers, or of truth values as 0 and 1.
    pub fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        self.typed(key, "a list of numbers", numbers)
    }

    /// A list of bytes.
    pub fn bytes(&self, key: &str) -> Result<Option<&[u8]>> {
        self.typed(key, "a list of bytes", |value| match value {
            Value::List { kind: Kind::U8 | Kind::I8, bytes, .. } => Some(&**bytes),
            _ => None,
        })
    }

    /// A list of texts.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&str>>> {
        let list = self.typed(key, "a list of texts", |value| match value {
            Value::List { kind: Kind::String, count, bytes } => Some(texts(*count, bytes)),
            _ => None,
        })?;
        list.transpose().map_err(|error| error.at(format!("key `{key}`")))
    }
}

fn numbers(value: &Value) -> Option<Vec<f64>> {
    let Value::List { kind, bytes, .. } = value else { return None };
    let values = bytes.chunks_exact(kind.bytes()?).map(|bytes| match Value::scalar(*kind, bytes) {
        Value::Bool(flag) => Some(f64::from(u8::from(flag))),
        value => value.number(),
    });
    values.collect()
}

/// The texts of a list: each is a length of eight bytes and the bytes.
fn texts(count: usize, mut bytes: &[u8]) -> Result<Vec<&str>> {
    let mut found = Vec::with_capacity(count.min(bytes.len() / 8));
    for index in 0..count {
        let at = |error: Error| error.at(format!("element {index}"));
        let text = bytes
            .split_first_chunk::<8>()
            .and_then(|(length, rest)| rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?));
        let Some((text, rest)) = text else { return Err(at(Error::new("found the end, expected a text"))) };
        match std::str::from_utf8(text) {
            Ok(text) => found.push(text),
            Err(_) => return Err(at(Error::new("found bytes that are not UTF-8, expected text"))),
        }
        bytes = rest;
    }
    Ok(found)
}
