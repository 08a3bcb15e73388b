//! The header of a safetensors file: eight bytes of length, JSON, and a promise about the bytes behind it.
//!
//! The reference reader (crate `safetensors`) accepts a tensor named twice and says of a bad file hardly more than
//! that it is bad, so this one is our own: it refuses whatever the format forbids and says what and where.

use quince_tensor::{DType, Error, Result, bail};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use crate::suggest::shown;

/// The longest header that the format allows, in bytes.
const MAX_HEADER: u64 = 100_000_000;

/// The element types of the format that are read here, by the names that they have in the header.
const DTYPES: &[(&str, DType)] = &[
    ("BOOL", DType::Bool),
    ("U8", DType::U8),
    ("U16", DType::U16),
    ("U32", DType::U32),
    ("U64", DType::U64),
    ("I8", DType::I8),
    ("I16", DType::I16),
    ("I32", DType::I32),
    ("I64", DType::I64),
    ("F8_E4M3", DType::F8E4M3FN),
    ("F8_E5M2", DType::F8E5M2),
    ("BF16", DType::BF16),
    ("F16", DType::F16),
    ("F32", DType::F32),
    ("F64", DType::F64),
];

/// The name of an element type in a header, or `None` if the format has no such type.
pub(crate) fn dtype_name(dtype: DType) -> Option<&'static str> {
    DTYPES.iter().find(|row| row.1 == dtype).map(|row| row.0)
}

/// What a header says of one tensor, checked against the length of the file.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// The name, as written.
    pub name: String,
    /// The element type.
    pub dtype: DType,
    /// The size along each axis.
    pub shape: Vec<usize>,
    /// Where the bytes lie, counted from the beginning of the file.
    pub range: Range<usize>,
}

/// A checked header: the tensors lie one after the other, without gap or overlap, and end where the file ends.
#[derive(Clone, Debug, PartialEq)]
pub struct SafetensorsHeader {
    metadata: BTreeMap<String, String>,
    tensors: Vec<TensorInfo>,
}

impl SafetensorsHeader {
    /// Reads and checks the header of a whole file given as bytes.
    ///
    /// # Errors
    /// Names the tensor, or the offset in the file, at which the bytes are not what the format asks for.
    pub fn parse(file: &[u8]) -> Result<SafetensorsHeader> {
        let (text, data_start) = header_text(file)?;
        let raw: RawHeader = serde_json::from_str(text).map_err(|error| bad_json(text, &error))?;
        let mut tensors = Vec::with_capacity(raw.tensors.len());
        for (name, tensor) in raw.tensors {
            let place = format!("tensor `{}`", shown(&name));
            tensors.push(checked(name, tensor, data_start).map_err(|error| error.at(place))?);
        }
        tensors.sort_by(|a, b| (a.range.start, a.range.end, &a.name).cmp(&(b.range.start, b.range.end, &b.name)));
        check_layout(&tensors, data_start, file.len())?;
        Ok(SafetensorsHeader { metadata: raw.metadata, tensors })
    }

    /// The tensors in the order of their bytes.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The free text under `__metadata__`.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The tensors, given away.
    pub(crate) fn into_tensors(self) -> Vec<TensorInfo> {
        self.tensors
    }
}

/// The JSON of the header, and the offset of the byte behind it.
fn header_text(file: &[u8]) -> Result<(&str, usize)> {
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        let error = Error::new(format!("found {} bytes, expected at least 8 for the header length", file.len()));
        return Err(error.hint("the file is empty or cut short; download it again"));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        let error = Error::new(format!("found a header length of {length} bytes, expected at most {MAX_HEADER}"));
        return Err(error.hint(not_safetensors(file)).at("byte 0"));
    }
    let header = usize::try_from(length).ok().and_then(|length| rest.get(..length));
    let Some(header) = header else {
        let error = Error::new(format!("found {} bytes after the header length, expected {length}", rest.len()));
        return Err(error.hint("the file is cut short, or not a safetensors file; download it again").at("byte 0"));
    };
    if header.first() != Some(&b'{') {
        let error = match header.first() {
            Some(byte) => Error::new(format!("found byte {byte:#04x}, expected `{{` at the beginning of the header")),
            None => Error::new("found an empty header, expected a JSON object"),
        };
        return Err(error.hint(not_safetensors(file)).at("byte 8"));
    }
    match std::str::from_utf8(header) {
        Ok(text) => Ok((text, 8 + header.len())),
        Err(error) => {
            let offset = 8 + error.valid_up_to();
            Err(Error::new("found bytes that are not UTF-8 in the header").at(format!("byte {offset}")))
        }
    }
}

/// An error of the JSON parser, with the offset in the file in place of line and column of the header.
fn bad_json(text: &str, error: &serde_json::Error) -> Error {
    let lines_before = text.split_inclusive('\n').take(error.line().saturating_sub(1));
    let offset = 8 + lines_before.map(str::len).sum::<usize>() + error.column();
    let message = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    let message = message.strip_suffix(&place).unwrap_or(&message);
    Error::new(format!("found a bad header: {message}")).at(format!("byte {offset}"))
}

/// What a file may be whose first bytes are no safetensors header.
fn not_safetensors(file: &[u8]) -> &'static str {
    const KNOWN: &[(&[u8], &str)] = &[
        (b"version https://git-lfs", "this is a Git LFS pointer, not the file; run `git lfs pull`"),
        (b"<!DOCTYPE", "this is a web page, not the file; download it again"),
        (b"<html", "this is a web page, not the file; download it again"),
        (b"PK\x03\x04", "this is a zip archive, probably a PyTorch checkpoint; save it as safetensors"),
        (b"\x80\x02", "this is a Python pickle; save it as safetensors"),
        (b"GGUF", "this is a GGUF file; give it the ending .gguf"),
    ];
    let known = KNOWN.iter().find(|(magic, _)| file.starts_with(magic));
    known.map_or("this is not a safetensors file", |(_, hint)| hint)
}

/// Checks what one tensor says of itself; the file's length comes later, so that a short file is reported as one.
fn checked(name: String, raw: RawTensor, data_start: usize) -> Result<TensorInfo> {
    let Some(&(_, dtype)) = DTYPES.iter().find(|row| row.0 == raw.dtype) else {
        let known: Vec<&str> = DTYPES.iter().map(|row| row.0).collect();
        bail!("found the dtype `{}`, expected one of {}", shown(&raw.dtype), known.join(", "));
    };
    // The product of the sizes that are not zero: the number of elements of any part must fit in memory too.
    let nonzero = raw.shape.iter().filter(|&&dim| dim != 0);
    let count = nonzero.clone().try_fold(1usize, |count, &dim| count.checked_mul(dim));
    let expected = count.and_then(|count| dtype.byte_len(count));
    let Some(expected) = expected else {
        bail!("the shape {} is larger than memory can address", brief(&raw.shape));
    };
    let expected = if nonzero.count() == raw.shape.len() { expected } else { 0 };
    let [begin, end] = raw.data_offsets;
    let Some(length) = end.checked_sub(begin) else {
        bail!("data_offsets [{begin}, {end}] end before they begin");
    };
    if length != expected {
        bail!(
            "found {length} bytes at data_offsets [{begin}, {end}], expected {expected} for {} of shape {}",
            raw.dtype,
            brief(&raw.shape)
        );
    }
    match (data_start.checked_add(begin), data_start.checked_add(end)) {
        (Some(start), Some(end)) => Ok(TensorInfo { name, dtype, shape: raw.shape, range: start..end }),
        _ => bail!("data_offsets [{begin}, {end}] lie beyond what memory can address"),
    }
}

/// Checks that the tensors, sorted by offset, fill the file from the header to its end.
fn check_layout(tensors: &[TensorInfo], data_start: usize, file_len: usize) -> Result<()> {
    let mut previous = "the header";
    let mut end = data_start;
    for tensor in tensors {
        let (name, start) = (shown(&tensor.name), tensor.range.start);
        if start != end {
            let what = if start < end { "overlap with" } else { "a gap after" };
            bail!("tensor `{name}`: found {what} {}, expected bytes from {end} on, not {start}", shown(previous));
        }
        end = tensor.range.end;
        previous = &tensor.name;
    }
    if end > file_len {
        let mut beyond = tensors.iter().filter(|tensor| tensor.range.end > file_len);
        let name = beyond.next().map_or(String::new(), |tensor| shown(&tensor.name));
        bail!("tensor `{name}`: found a file of {file_len} bytes, expected {end} as the header says";
              hint: "the file is cut short; download it again");
    }
    if end < file_len {
        bail!("found {} bytes after the last tensor, expected the file to end at byte {end}", file_len - end);
    }
    Ok(())
}

/// A shape for an error, short however many axes it has.
fn brief(shape: &[usize]) -> String {
    match shape.get(..8) {
        Some(first) if shape.len() > 8 => format!("{first:?} and {} more axes", shape.len() - 8),
        _ => format!("{shape:?}"),
    }
}

/// What the JSON says of a tensor.
#[derive(Deserialize)]
#[serde(expecting = "dtype, shape and data_offsets")]
struct RawTensor {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [usize; 2],
}

/// The JSON object of the header.
struct RawHeader {
    metadata: BTreeMap<String, String>,
    tensors: BTreeMap<String, RawTensor>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<RawHeader, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object that names the tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        let mut header = RawHeader { metadata: BTreeMap::new(), tensors: BTreeMap::new() };
        while let Some(name) = map.next_key::<String>()? {
            let at = |error: A::Error| A::Error::custom(format_args!("`{}`: {error}", shown(&name)));
            if name == "__metadata__" {
                header.metadata = map.next_value::<Option<_>>().map_err(at)?.unwrap_or_default();
                continue;
            }
            let tensor = map.next_value::<RawTensor>().map_err(at)?;
            if header.tensors.contains_key(&name) {
                return Err(A::Error::custom(format_args!("found the tensor `{}` twice", shown(&name))));
            }
            header.tensors.insert(name, tensor);
        }
        Ok(header)
    }
}
