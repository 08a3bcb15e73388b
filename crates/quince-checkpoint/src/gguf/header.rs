//! The beginning of a GGUF file: metadata, and what there is of tensors.
//!
//! Everything is checked before it is used: counts against the bytes that are left, lengths before memory is taken,
//! offsets against the file and against each other.

use super::metadata::{Kind, Metadata, Value};
use super::types::ElementType;
use crate::suggest::shown;
use quince_tensor::{Error, Result, bail};
use std::collections::BTreeSet;
use std::ops::Range;

/// Axes that a tensor may have in ggml.
const MAX_AXES: u32 = 4;
/// Where data begins if a file does not say otherwise: at a multiple of this.
const ALIGNMENT: u64 = 32;
/// The least bytes that an entry of metadata takes: the length of its key, one letter, its kind and one byte.
const LEAST_ENTRY: u64 = 8 + 1 + 4 + 1;
/// The least bytes that a tensor takes: the length of its name, one letter, number of axes, type, offset.
const LEAST_TENSOR: u64 = 8 + 1 + 4 + 4 + 8;

/// What a file says of itself, checked against its length.
#[derive(Debug)]
pub struct GgufHeader {
    pub(super) metadata: Metadata,
    pub(super) tensors: Vec<GgufTensor>,
}

/// What a file says of one tensor.
#[derive(Clone, Debug)]
pub(super) struct GgufTensor {
    pub name: String,
    pub element: ElementType,
    /// The size along each axis, the slowest first, as in every other format.
    pub shape: Vec<usize>,
    /// Where the bytes lie, counted from the beginning of the file.
    pub range: Range<usize>,
}

impl GgufHeader {
    /// Reads and checks the header of a whole file given as bytes.
    ///
    /// # Errors
    /// Names the key, the tensor or the offset at which the bytes are not what the format asks for.
    pub fn parse(file: &[u8]) -> Result<GgufHeader> {
        let mut cursor = Cursor { file, offset: 0 };
        check_version(&mut cursor)?;
        let (tensor_count, entry_count) = (cursor.u64()?, cursor.u64()?);
        cursor.check_count(entry_count, LEAST_ENTRY, "entries of metadata")?;
        cursor.check_count(tensor_count, LEAST_TENSOR, "tensors")?;
        let mut metadata = Metadata::default();
        for _ in 0..entry_count {
            let start = cursor.offset;
            let key = cursor.string().map_err(|error| error.at(format!("byte {start}")))?;
            let value = cursor.value().map_err(|error| error.at(format!("key `{}`", shown(&key))))?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(Error::new(format!("found the key `{}` twice", shown(&key))).at(format!("byte {start}")));
            }
        }
        let mut raw = Vec::new();
        for _ in 0..tensor_count {
            raw.push(cursor.tensor()?);
        }
        let start = data_start(&metadata, cursor.offset)?;
        let tensors: Vec<GgufTensor> =
            raw.into_iter().map(|tensor| tensor.placed(&start, file.len())).collect::<Result<_>>()?;
        check_layout(&tensors)?;
        Ok(GgufHeader { metadata, tensors })
    }

    /// The number of tensors.
    pub fn tensor_count(&self) -> usize {
        self.tensors.len()
    }
}

fn check_version(cursor: &mut Cursor) -> Result<()> {
    let magic = cursor.take(4)?;
    if magic != b"GGUF" {
        let hint = match magic {
            b"ggml" | b"lmgg" | b"fmgg" | b"tjgg" | b"ggjt" | b"ggmf" => {
                "this is a file from before GGUF; convert the original model again with llama.cpp"
            }
            b"vers" => "this is a Git LFS pointer, not the file; run `git lfs pull`",
            _ => "this is not a GGUF file; download it again",
        };
        let error = Error::new(format!("found the bytes {magic:02x?}, expected `GGUF`"));
        return Err(error.hint(hint).at("byte 0"));
    }
    match cursor.u32()? {
        2 | 3 => Ok(()),
        1 => bail!("byte 4: found version 1, expected 2 or 3"; hint: "convert the original model again with llama.cpp"),
        version if matches!(version.swap_bytes(), 2 | 3) => bail!(
            "byte 4: found a big-endian file, expected a little-endian one";
            hint: "llama.cpp's gguf_convert_endian.py turns it round"
        ),
        version => bail!("byte 4: found version {version}, expected 2 or 3"; hint: "the file is damaged or too new"),
    }
}

/// Where the data begins: after the header, at a multiple of the alignment.
fn data_start(metadata: &Metadata, header_end: usize) -> Result<DataStart> {
    let alignment = metadata.unsigned("general.alignment")?.unwrap_or(ALIGNMENT);
    match usize::try_from(alignment) {
        Ok(alignment) if alignment.is_power_of_two() && alignment <= 1 << 20 => {
            Ok(DataStart { offset: header_end.next_multiple_of(alignment), alignment })
        }
        _ => bail!("key `general.alignment`: found {alignment}, expected a power of two up to {}", 1 << 20),
    }
}

/// Where the bytes of tensors begin, and what their offsets are multiples of.
struct DataStart {
    offset: usize,
    alignment: usize,
}

/// What the header says of a tensor before it is known where data begins.
struct RawTensor {
    name: String,
    element: ElementType,
    shape: Vec<usize>,
    bytes: usize,
    offset: u64,
}

impl RawTensor {
    /// The tensor with its place in a file of this length.
    fn placed(self, data: &DataStart, file_len: usize) -> Result<GgufTensor> {
        let range = self.range(data, file_len).map_err(|error| error.at(format!("tensor `{}`", shown(&self.name))))?;
        Ok(GgufTensor { name: self.name, element: self.element, shape: self.shape, range })
    }

    fn range(&self, data: &DataStart, file_len: usize) -> Result<Range<usize>> {
        let offset = usize::try_from(self.offset).ok();
        if !offset.is_some_and(|offset| offset.is_multiple_of(data.alignment)) {
            bail!("found the offset {}, expected a multiple of {}", self.offset, data.alignment);
        }
        let start = offset.and_then(|offset| data.offset.checked_add(offset));
        match start.and_then(|start| Some(start..start.checked_add(self.bytes)?)) {
            Some(range) if range.end <= file_len => Ok(range),
            _ => bail!(
                "found a file of {file_len} bytes, expected {} more from offset {} of the data, which begins at byte {}",
                self.bytes, self.offset, data.offset;
                hint: "the file is cut short; download it again"
            ),
        }
    }
}

/// Checks that names differ and that no two tensors share bytes.
fn check_layout(tensors: &[GgufTensor]) -> Result<()> {
    let mut names = BTreeSet::new();
    if let Some(twice) = tensors.iter().find(|tensor| !names.insert(&tensor.name)) {
        bail!("found the tensor `{}` twice", shown(&twice.name));
    }
    let mut sorted: Vec<&GgufTensor> = tensors.iter().filter(|tensor| !tensor.range.is_empty()).collect();
    sorted.sort_by_key(|tensor| tensor.range.start);
    match sorted.windows(2).find(|pair| pair[0].range.end > pair[1].range.start) {
        Some(pair) => bail!(
            "tensor `{}`: found overlap with `{}`, expected bytes from {} on, not {}",
            shown(&pair[1].name),
            shown(&pair[0].name),
            pair[0].range.end,
            pair[1].range.start
        ),
        None => Ok(()),
    }
}

/// Reads from front to back; whatever is not there is an error that names the offset.
struct Cursor<'a> {
    file: &'a [u8],
    offset: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let end = self.offset.checked_add(count);
        match end.and_then(|end| self.file.get(self.offset..end)) {
            Some(bytes) => {
                self.offset += count;
                Ok(bytes)
            }
            None => bail!(
                "byte {}: found {} bytes to the end of the file, expected {count}",
                self.offset, self.file.len() - self.offset;
                hint: "the file is cut short or damaged; download it again"
            ),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N)?);
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// Checks that as many things as a count says can be in the rest of the file.
    fn check_count(&self, count: u64, least: u64, what: &str) -> Result<()> {
        let left = (self.file.len() - self.offset) as u64;
        if count > left / least {
            bail!(
                "byte {}: found {count} {what}, expected at most {}, for which there are bytes", self.offset, left / least;
                hint: "the file is cut short or damaged; download it again"
            );
        }
        Ok(())
    }

    fn bytes(&mut self) -> Result<&'a [u8]> {
        let start = self.offset;
        let length = self.u64()?;
        match usize::try_from(length) {
            Ok(length) => self.take(length),
            Err(_) => bail!("byte {start}: found text of {length} bytes, expected less than the file"),
        }
    }

    fn string(&mut self) -> Result<String> {
        let start = self.offset;
        match std::str::from_utf8(self.bytes()?) {
            Ok(text) => Ok(text.to_string()),
            Err(_) => bail!("byte {start}: found bytes that are not UTF-8, expected text"),
        }
    }

    fn kind(&mut self) -> Result<Kind> {
        let start = self.offset;
        let code = self.u32()?;
        match Kind::of_code(code) {
            Some(kind) => Ok(kind),
            None => bail!("byte {start}: found a value of kind {code}, expected 0 to {}", Kind::LAST),
        }
    }

    fn value(&mut self) -> Result<Value> {
        let kind = self.kind()?;
        match kind {
            Kind::Array => self.list(),
            Kind::String => Ok(Value::String(self.string()?)),
            _ => Ok(Value::scalar(kind, self.take(kind.bytes().unwrap_or(0))?)),
        }
    }

    /// A list: its elements stay in the file's bytes until somebody asks, but are known to be there.
    fn list(&mut self) -> Result<Value> {
        let start = self.offset;
        let (kind, count) = (self.kind()?, self.u64()?);
        let least = match kind {
            Kind::Array => bail!("byte {start}: found a list of lists, expected a list of numbers or texts"),
            kind => kind.bytes().unwrap_or(8) as u64,
        };
        self.check_count(count, least, "elements")?;
        let first = self.offset;
        match kind.bytes() {
            // The count was checked, so the product is less than the file.
            Some(bytes) => drop(self.take(count as usize * bytes)?),
            None => {
                for _ in 0..count {
                    self.bytes()?;
                }
            }
        }
        let bytes = self.file.get(first..self.offset).unwrap_or_default();
        Ok(Value::List { kind, count: count as usize, bytes: bytes.into() })
    }

    fn tensor(&mut self) -> Result<RawTensor> {
        let start = self.offset;
        let name = self.string().map_err(|error| error.at(format!("byte {start}")))?;
        let place = format!("tensor `{}`", shown(&name));
        self.tensor_after(name).map_err(|error| error.at(place))
    }

    fn tensor_after(&mut self, name: String) -> Result<RawTensor> {
        let axes = self.u32()?;
        if axes > MAX_AXES {
            bail!("found {axes} axes, expected at most {MAX_AXES}");
        }
        let mut shape = Vec::new();
        for _ in 0..axes {
            let size = self.u64()?;
            match usize::try_from(size) {
                Ok(size) => shape.insert(0, size),
                Err(_) => bail!("found an axis of {size}, which is larger than memory can address"),
            }
        }
        if shape.contains(&0) {
            bail!("found the shape {shape:?}, expected at least one element along each axis");
        }
        let element = ElementType::of_code(self.u32()?)?;
        let bytes = element.byte_len(&shape)?;
        Ok(RawTensor { name, element, shape, bytes, offset: self.u64()? })
    }
}
