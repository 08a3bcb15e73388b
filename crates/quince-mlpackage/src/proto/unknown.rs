//! Walks the wire format beside [`super::schema`] and refuses what decoding would drop in silence.
//!
//! prost skips fields that it does not know, keeps the last of a field that occurs twice and the last of a `oneof`; a
//! package read so and written again would be another package. The walk reads bytes only, allocates nothing but the
//! keys of maps, and stops at the nesting at which prost stops.

use std::collections::HashSet;
use std::path::Path;

use super::schema::{FieldSchema, Kind, Label, MessageSchema};
use crate::error::{Error, Result, wrong};

/// prost's own limit of nesting; deeper messages could not be decoded anyway.
const MAX_DEPTH: u32 = 100;

/// Checks that `bytes` is a message of `schema` and that a decoder of that schema keeps all of it.
pub fn check(file: &Path, bytes: &[u8], schema: &'static MessageSchema) -> Result<()> {
    let mut cursor = Cursor { bytes, at: 0 };
    walk(&mut cursor, bytes.len(), schema, MAX_DEPTH).map_err(|p| p.into_error(file, schema))
}

/// What is wrong, with the path to it collected on the way up (innermost first).
struct Problem {
    path: Vec<String>,
    offset: usize,
    what: String,
    hint: &'static str,
}

const DAMAGED: &str = "the file is cut or damaged; copy or convert it again";
const NEWER: &str = "this version of quince would lose it when writing; a newer one may know it";

impl Problem {
    fn new(offset: usize, what: impl Into<String>, hint: &'static str) -> Self {
        Problem { path: Vec::new(), offset, what: what.into(), hint }
    }

    fn within(mut self, step: String) -> Self {
        self.path.push(step);
        self
    }

    fn into_error(self, file: &Path, schema: &MessageSchema) -> Error {
        let steps = self.path.iter().rev().fold(schema.name.to_owned(), |path, step| path + "." + step);
        wrong(file, format!("{steps} at byte {}", self.offset), self.what).hint(self.hint)
    }
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

fn walk(cursor: &mut Cursor, end: usize, schema: &'static MessageSchema, depth: u32) -> Result<(), Problem> {
    if depth == 0 {
        return Err(Problem::new(cursor.at, format!("messages are nested more than {MAX_DEPTH} deep"), DAMAGED));
    }
    let mut seen = Seen::default();
    while cursor.at < end {
        let start = cursor.at;
        let key = cursor.varint(end)?;
        let (number, wire) = (key >> 3, key & 7);
        let Some((index, field)) = schema.fields.iter().enumerate().find(|(_, f)| u64::from(f.number) == number) else {
            return Err(Problem::new(
                start,
                format!("{} has a field number {number}, which is not known", schema.name),
                NEWER,
            ));
        };
        seen.note(index, field, start)?;
        walk_field(cursor, end, field, wire, depth, &mut seen).map_err(|p| match &seen.last_key {
            Some(name) if field.label == Label::Map => p.within(format!("{}[{name}]", field.name)),
            _ if field.label == Label::Many => p.within(format!("{}[{}]", field.name, seen.count(index) - 1)),
            _ => p.within(field.name.to_owned()),
        })?;
    }
    Ok(())
}

/// The fields of one message met so far.
#[derive(Default)]
struct Seen {
    counts: Vec<(usize, usize)>,
    one_ofs: Vec<(&'static str, &'static str)>,
    keys: HashSet<(usize, String)>,
    last_key: Option<String>,
}

impl Seen {
    fn count(&self, index: usize) -> usize {
        self.counts.iter().find(|(i, _)| *i == index).map_or(0, |(_, n)| *n)
    }

    fn note(&mut self, index: usize, field: &'static FieldSchema, offset: usize) -> Result<(), Problem> {
        self.last_key = None;
        match self.counts.iter_mut().find(|(i, _)| *i == index) {
            Some((_, n)) => *n += 1,
            None => self.counts.push((index, 1)),
        }
        if matches!(field.label, Label::One | Label::OneOf(_)) && self.count(index) > 1 {
            return Err(Problem::new(offset, format!("field {} occurs twice, expected once", field.name), DAMAGED));
        }
        if let Label::OneOf(group) = field.label {
            if let Some((_, other)) = self.one_ofs.iter().find(|(g, _)| *g == group) {
                return Err(Problem::new(
                    offset,
                    format!("has both {other} and {}, expected one of them", field.name),
                    DAMAGED,
                ));
            }
            self.one_ofs.push((group, field.name));
        }
        Ok(())
    }
}

fn walk_field(
    cursor: &mut Cursor,
    end: usize,
    field: &'static FieldSchema,
    wire: u64,
    depth: u32,
    seen: &mut Seen,
) -> Result<(), Problem> {
    let start = cursor.at;
    let packed = field.label == Label::Many;
    match (field.kind, wire) {
        (Kind::OtherModel, _) => Err(Problem::new(
            start,
            format!("the model is of kind {}, expected mlProgram", field.name),
            "quince works with ML Programs; convert the original model to one (iOS 15 or newer)",
        )),
        (Kind::Varint, 0) => cursor.varint(end).map(drop),
        (Kind::Fixed64, 1) => cursor.skip(8, end).map(drop),
        (Kind::Fixed32, 5) => cursor.skip(4, end).map(drop),
        (Kind::Text | Kind::Bytes, 2) => cursor.delimited(end).map(drop),
        (Kind::Varint | Kind::Fixed32 | Kind::Fixed64, 2) if packed => cursor.delimited(end).map(drop),
        (Kind::Message(schema), 2) => {
            let stop = cursor.delimited(end)?;
            cursor.at = stop.0;
            if field.label == Label::Map {
                let key = map_key(&cursor.bytes[stop.0..stop.1]);
                seen.last_key = Some(key.clone());
                if !seen.keys.insert((field.number as usize, key.clone())) {
                    return Err(Problem::new(start, format!("the key {key:?} occurs twice"), DAMAGED));
                }
            }
            walk(cursor, stop.1, schema, depth - 1)
        }
        _ => Err(Problem::new(start, format!("wire type {wire} does not fit the field"), DAMAGED)),
    }
}

/// The key of a map entry; empty where it is missing, which is how protobuf reads it too.
fn map_key(entry: &[u8]) -> String {
    let mut cursor = Cursor { bytes: entry, at: 0 };
    while cursor.at < entry.len() {
        let Ok(key) = cursor.varint(entry.len()) else { break };
        let skipped = match key & 7 {
            2 => cursor.delimited(entry.len()),
            _ => break,
        };
        match skipped {
            Ok((from, to)) if key >> 3 == 1 => return String::from_utf8_lossy(&entry[from..to]).into_owned(),
            Ok(_) => {}
            Err(_) => break,
        }
    }
    String::new()
}

impl Cursor<'_> {
    fn varint(&mut self, end: usize) -> Result<u64, Problem> {
        let start = self.at;
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let Some(&byte) = self.bytes.get(self.at).filter(|_| self.at < end) else {
                return Err(Problem::new(start, "the message ends inside a number", DAMAGED));
            };
            self.at += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Problem::new(start, "a number takes more than 10 bytes", DAMAGED))
    }

    /// Start and end of length-delimited content; the cursor is left at its end.
    fn delimited(&mut self, end: usize) -> Result<(usize, usize), Problem> {
        let length = self.varint(end)?;
        let from = self.at;
        self.skip(length, end)?;
        Ok((from, self.at))
    }

    fn skip(&mut self, length: u64, end: usize) -> Result<(), Problem> {
        let left = (end - self.at) as u64;
        if length > left {
            return Err(Problem::new(self.at, format!("{length} bytes are announced, {left} are there"), DAMAGED));
        }
        self.at += length as usize;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{decode_model, model::Model, schema::MODEL};
    use super::*;
    use prost::Message;

    fn varint(mut n: u64, out: &mut Vec<u8>) {
        while n >= 0x80 {
            out.push(n as u8 | 0x80);
            n >>= 7;
        }
        out.push(n as u8);
    }

    fn tagged(number: u32, wire: u64, content: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        varint(u64::from(number) << 3 | wire, &mut out);
        if wire == 2 {
            varint(content.len() as u64, &mut out);
        }
        out.extend_from_slice(content);
        out
    }

    /// One encoding for each field that can be reached from `schema`, each message type entered once.
    fn samples(schema: &'static MessageSchema, entered: &mut HashSet<&'static str>) -> Vec<Vec<u8>> {
        let mut all = vec![Vec::new()];
        if !entered.insert(schema.name) {
            return all;
        }
        for field in schema.fields {
            match field.kind {
                Kind::Varint if field.label == Label::Many => all.push(tagged(field.number, 2, &[1])),
                Kind::Fixed32 if field.label == Label::Many => all.push(tagged(field.number, 2, &[1; 4])),
                Kind::Fixed64 if field.label == Label::Many => all.push(tagged(field.number, 2, &[1; 8])),
                Kind::Varint => all.push(tagged(field.number, 0, &[1])),
                Kind::Fixed32 => all.push(tagged(field.number, 5, &[1; 4])),
                Kind::Fixed64 => all.push(tagged(field.number, 1, &[1; 8])),
                Kind::Text | Kind::Bytes => all.push(tagged(field.number, 2, b"k")),
                Kind::Message(inner) if field.label == Label::Map => {
                    let value = inner.fields.iter().find(|f| f.number == 2).expect("a map entry has a value");
                    let key = tagged(1, 2, b"k");
                    let values = match value.kind {
                        Kind::Message(message) => samples(message, entered),
                        _ => vec![b"v".to_vec()],
                    };
                    let filled = values.into_iter().filter(|v| !v.is_empty());
                    all.extend(filled.map(|v| tagged(field.number, 2, &[key.clone(), tagged(2, 2, &v)].concat())));
                }
                Kind::Message(inner) => {
                    all.extend(samples(inner, entered).iter().map(|content| tagged(field.number, 2, content)))
                }
                Kind::OtherModel => {}
            }
        }
        all
    }

    #[test]
    fn what_the_table_allows_the_structs_keep() {
        let all = samples(&MODEL, &mut HashSet::new());
        assert!(all.len() > 120, "{} samples", all.len());
        for bytes in all {
            check(Path::new("m"), &bytes, &MODEL).unwrap();
            let decoded = Model::decode(&bytes[..]).unwrap();
            assert_eq!(decoded.encode_to_vec(), bytes, "{decoded:?}");
        }
    }

    fn refused(bytes: &[u8]) -> String {
        decode_model(Path::new("model.mlmodel"), bytes).unwrap_err().to_string()
    }

    #[test]
    fn unknown_and_repeated_fields_are_refused_with_their_path() {
        let function = tagged(2, 2, &[tagged(1, 2, b"main"), tagged(2, 2, &tagged(9, 0, &[1]))].concat());
        let message = refused(&tagged(502, 2, &function));
        assert!(message.contains("Model.mlProgram.functions[main]") && message.contains("field number 9"), "{message}");
        let twice = [tagged(1, 0, &[9]), tagged(1, 0, &[8])].concat();
        assert!(refused(&twice).contains("specificationVersion occurs twice"));
        let entry = tagged(2, 2, &tagged(1, 2, b"main"));
        assert!(refused(&tagged(502, 2, &[entry.clone(), entry].concat())).contains("\"main\" occurs twice"));
    }

    #[test]
    fn other_model_kinds_are_named() {
        assert!(refused(&tagged(500, 2, &[])).contains("neuralNetwork"));
    }

    #[test]
    fn deep_nesting_is_refused_before_the_stack_ends() {
        let mut value_type = Vec::new();
        for _ in 0..1000 {
            value_type = tagged(5, 2, &tagged(1, 2, &value_type));
        }
        let input = tagged(1, 2, &tagged(2, 2, &value_type));
        let function = tagged(2, 2, &[tagged(1, 2, b"main"), tagged(2, 2, &input)].concat());
        assert!(refused(&tagged(502, 2, &function)).contains("nested more than 100"));
    }
}
