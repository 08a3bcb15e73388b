//! Thrift's compact protocol, which the metadata of Parquet is in: structs of numbered fields.

use quince_tensor::{Error, Result, bail};
use std::collections::BTreeMap;

/// A value.
#[derive(Clone, PartialEq, Debug)]
pub enum Value {
    /// A bool, or an integer of any size; of 64 bits when it is written.
    Int(i64),
    /// An integer of 32 bits, to write: readers look for one of just this size.
    Small(i32),
    /// A string or bytes.
    Bytes(Vec<u8>),
    /// Values of one type.
    List(Vec<Value>),
    /// Values by the numbers of their fields.
    Struct(Fields),
    /// What nobody here asks for: floating-point numbers and maps.
    Other,
}

/// The fields of a struct.
pub type Fields = BTreeMap<i16, Value>;

/// The deepest nesting.
const MAX_DEPTH: usize = 32;
const STOP: u8 = 0;
const TRUE: u8 = 1;
const FALSE: u8 = 2;
const BYTE: u8 = 3;
const I32: u8 = 5;
const I64: u8 = 6;
const DOUBLE: u8 = 7;
const BINARY: u8 = 8;
const LIST: u8 = 9;
const SET: u8 = 10;
const MAP: u8 = 11;
const STRUCT: u8 = 12;

/// Reads from the front of bytes.
pub struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes }
    }

    /// What is left.
    pub fn rest(&self) -> &'a [u8] {
        self.bytes
    }

    /// The next `count` bytes.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let Some((taken, rest)) = self.bytes.split_at_checked(count) else {
            bail!("found {} bytes, expected {count} more", self.bytes.len());
        };
        self.bytes = rest;
        Ok(taken)
    }

    pub fn byte(&mut self) -> Result<u8> {
        Ok(self.take(1)?.first().copied().unwrap_or_default())
    }

    /// Four bytes, the least significant first.
    pub fn u32(&mut self) -> Result<usize> {
        let bytes: [u8; 4] = self.take(4)?.try_into().unwrap_or_default();
        Ok(u32::from_le_bytes(bytes) as usize)
    }

    /// Seven bits of each byte, the least significant first.
    pub fn varint(&mut self) -> Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        bail!("found a number of more than 64 bits")
    }

    /// A count of things that take a byte or more each, so that no list is longer than the file.
    fn count(&mut self) -> Result<usize> {
        let count = self.varint()?;
        match usize::try_from(count).ok().filter(|count| *count <= self.bytes.len()) {
            Some(count) => Ok(count),
            None => bail!("found a length of {count}, but only {} bytes", self.bytes.len()),
        }
    }

    fn int(&mut self) -> Result<i64> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// A struct.
    pub fn fields(&mut self) -> Result<Fields> {
        self.nested_fields(0)
    }

    fn nested_fields(&mut self, depth: usize) -> Result<Fields> {
        if depth == MAX_DEPTH {
            bail!("found more than {MAX_DEPTH} structs in each other");
        }
        let (mut fields, mut last) = (Fields::new(), 0i16);
        loop {
            let head = self.byte()?;
            if head == STOP {
                return Ok(fields);
            }
            let id = match head >> 4 {
                0 => i16::try_from(self.int()?).ok(),
                more => last.checked_add(i16::from(more)),
            };
            last = id.ok_or_else(|| Error::new("found a field number of more than 16 bits"))?;
            let value = match head & 0xf {
                TRUE => Value::Int(1),
                FALSE => Value::Int(0),
                kind => self.value(kind, depth)?,
            };
            fields.insert(last, value);
        }
    }

    fn value(&mut self, kind: u8, depth: usize) -> Result<Value> {
        match kind {
            // Bools of a list, and bytes, stand for themselves.
            TRUE | FALSE | BYTE => Ok(Value::Int(i64::from(self.byte()? as i8))),
            4..=I64 => self.int().map(Value::Int),
            DOUBLE => self.take(8).map(|_| Value::Other),
            BINARY => {
                let count = self.count()?;
                Ok(Value::Bytes(self.take(count)?.to_vec()))
            }
            LIST | SET => {
                let head = self.byte()?;
                let count = if head >> 4 == 15 { self.count()? } else { usize::from(head >> 4) };
                let deeper = if depth + 1 < MAX_DEPTH { depth + 1 } else { bail!("found lists in lists in lists") };
                (0..count).map(|_| self.value(head & 0xf, deeper)).collect::<Result<_>>().map(Value::List)
            }
            MAP => {
                let count = self.count()?;
                let kinds = if count > 0 { self.byte()? } else { 0 };
                let deeper = if depth + 1 < MAX_DEPTH { depth + 1 } else { bail!("found maps in maps in maps") };
                for _ in 0..count {
                    self.value(kinds >> 4, deeper)?;
                    self.value(kinds & 0xf, deeper)?;
                }
                Ok(Value::Other)
            }
            STRUCT => self.nested_fields(depth + 1).map(Value::Struct),
            other => bail!("found the type {other}, expected one of Thrift's compact protocol"),
        }
    }
}

/// What fields are asked for.
pub trait Lookup {
    /// An integer.
    fn int(&self, id: i16) -> Option<i64>;
    /// A length, an offset or a count.
    fn size(&self, id: i16) -> Option<usize>;
    /// A string.
    fn text(&self, id: i16) -> Option<&str>;
    /// A list.
    fn list(&self, id: i16) -> &[Value];
    /// A struct.
    fn inner(&self, id: i16) -> Option<&Fields>;
}

impl Lookup for Fields {
    fn int(&self, id: i16) -> Option<i64> {
        if let Some(Value::Int(value)) = self.get(&id) { Some(*value) } else { None }
    }

    fn size(&self, id: i16) -> Option<usize> {
        self.int(id).and_then(|value| usize::try_from(value).ok())
    }

    fn text(&self, id: i16) -> Option<&str> {
        if let Some(Value::Bytes(bytes)) = self.get(&id) { std::str::from_utf8(bytes).ok() } else { None }
    }

    fn list(&self, id: i16) -> &[Value] {
        if let Some(Value::List(values)) = self.get(&id) { values } else { &[] }
    }

    fn inner(&self, id: i16) -> Option<&Fields> {
        if let Some(Value::Struct(fields)) = self.get(&id) { Some(fields) } else { None }
    }
}

impl Value {
    /// The fields of a struct.
    pub fn fields(&self) -> Option<&Fields> {
        if let Value::Struct(fields) = self { Some(fields) } else { None }
    }
}

/// Appends a struct.
pub fn write_fields(out: &mut Vec<u8>, fields: &[(i16, Value)]) {
    let mut last = 0;
    for (id, value) in fields {
        let kind = kind(value);
        match u8::try_from(id - last) {
            Ok(more @ 1..=15) => out.push(more << 4 | kind),
            _ => {
                out.push(kind);
                write_int(out, i64::from(*id));
            }
        }
        write_value(out, value);
        last = *id;
    }
    out.push(STOP);
}

fn kind(value: &Value) -> u8 {
    match value {
        Value::Int(_) => I64,
        Value::Small(_) => I32,
        Value::Bytes(_) => BINARY,
        Value::List(_) => LIST,
        Value::Struct(_) | Value::Other => STRUCT,
    }
}

fn write_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Int(value) => write_int(out, *value),
        Value::Small(value) => write_int(out, i64::from(*value)),
        Value::Bytes(bytes) => {
            write_varint(out, bytes.len() as u64);
            out.extend(bytes);
        }
        Value::List(values) => {
            let kind = values.first().map_or(I32, kind);
            if values.len() < 15 {
                out.push((values.len() as u8) << 4 | kind);
            } else {
                out.push(0xf0 | kind);
                write_varint(out, values.len() as u64);
            }
            values.iter().for_each(|value| write_value(out, value));
        }
        Value::Struct(fields) => {
            write_fields(out, &fields.iter().map(|(id, value)| (*id, value.clone())).collect::<Vec<_>>());
        }
        Value::Other => out.push(STOP),
    }
}

fn write_int(out: &mut Vec<u8>, value: i64) {
    write_varint(out, (value << 1 ^ value >> 63) as u64);
}

/// Appends a number, seven bits in each byte.
pub fn write_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
