//! One column of texts: its pages, and the values in them.

use super::compact::{Fields, Lookup, Reader};
use super::{PLAIN, levels, snappy};
use quince_tensor::{Error, Result, bail};

const DATA_PAGE: i64 = 0;
const DICTIONARY_PAGE: i64 = 2;
const DATA_PAGE_V2: i64 = 3;
const PLAIN_DICTIONARY: i64 = 2;
const RLE_DICTIONARY: i64 = 8;
/// The names of the compressions, by number.
const CODECS: &[&str] = &["none", "snappy", "gzip", "lzo", "brotli", "lz4", "zstd", "lz4_raw"];
/// The longest page, in bytes.
const MAX_PAGE: usize = 1 << 30;
/// The most values of a chunk: a run of any length takes three bytes in a file.
const MAX_VALUES: usize = 1 << 26;

/// Whether values may be absent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    Required,
    Optional,
}

/// The texts of a chunk of a column, which begins at the front of `bytes`.
pub fn texts(bytes: &[u8], chunk: &Fields, presence: Presence) -> Result<Vec<String>> {
    let count = chunk.size(5).filter(|count| *count <= MAX_VALUES);
    let count =
        count.ok_or_else(|| Error::new(format!("found a chunk without a number of values up to {MAX_VALUES}")))?;
    let codec = chunk.int(4).unwrap_or(0);
    let (mut reader, mut dictionary, mut found) = (Reader::new(bytes), Vec::new(), Vec::new());
    while found.len() < count {
        let header = reader.fields()?;
        let packed = reader.take(header.size(3).ok_or_else(|| Error::new("found a page without a size"))?)?;
        let unpacked = header.size(2).filter(|size| *size <= MAX_PAGE);
        let size = unpacked.ok_or_else(|| Error::new(format!("found a page of more than {MAX_PAGE} bytes")))?;
        match header.int(1) {
            Some(DICTIONARY_PAGE) => {
                let values = header.inner(7).and_then(|header| header.size(1)).unwrap_or(0);
                dictionary = plain(&decompressed(packed, size, codec)?, values)?;
            }
            Some(DATA_PAGE) => {
                let page = decompressed(packed, size, codec)?;
                let header = header.inner(5).ok_or_else(|| Error::new("found a page without a header"))?;
                let values_here = values_of(header, count - found.len())?;
                let mut rest = Reader::new(&page);
                if presence == Presence::Optional {
                    let length = rest.u32()?;
                    present(rest.take(length)?, values_here, found.len())?;
                }
                found.extend(values(rest.rest(), values_here, header.int(2), &dictionary)?);
            }
            Some(DATA_PAGE_V2) => {
                let header = header.inner(8).ok_or_else(|| Error::new("found a page without a header"))?;
                let values_here = values_of(header, count - found.len())?;
                let mut rest = Reader::new(packed);
                let sizes = (header.size(6).unwrap_or(0), header.size(5).unwrap_or(0));
                rest.take(sizes.0)?;
                let levels = rest.take(sizes.1)?;
                if presence == Presence::Optional {
                    present(levels, values_here, found.len())?;
                }
                let codec = if header.int(7) == Some(0) { 0 } else { codec };
                let page = decompressed(rest.rest(), size.saturating_sub(sizes.0 + sizes.1), codec)?;
                found.extend(values(&page, values_here, header.int(4), &dictionary)?);
            }
            // Pages of an index are in nobody's way.
            _ => {}
        }
    }
    Ok(found)
}

/// How many values a page has, of those that are to come.
fn values_of(header: &Fields, left: usize) -> Result<usize> {
    match header.size(1).filter(|count| *count <= left) {
        Some(count) => Ok(count),
        None => bail!("found a page of {} values, expected at most {left}", header.int(1).unwrap_or(-1)),
    }
}

/// An error if a value is absent.
fn present(levels: &[u8], count: usize, before: usize) -> Result<()> {
    let levels = levels::unpacked(levels, 1, count)?;
    match levels.iter().position(|level| *level == 0) {
        Some(row) => bail!("row {}: found no value, expected a text", before + row + 1; hint: "leave such rows out"),
        None => Ok(()),
    }
}

fn decompressed(packed: &[u8], size: usize, codec: i64) -> Result<Vec<u8>> {
    match codec {
        0 if packed.len() == size => Ok(packed.to_vec()),
        0 => bail!("found a page of {} bytes, expected {size}", packed.len()),
        1 if size == 0 => Ok(Vec::new()),
        1 => snappy::unpacked(packed, size),
        other => {
            let name = usize::try_from(other).ok().and_then(|codec| CODECS.get(codec)).unwrap_or(&"unknown");
            bail!("found the compression {name}, expected snappy or none"; hint: "in pandas: to_parquet(..., compression=\"snappy\")")
        }
    }
}

/// The values of a page.
fn values(page: &[u8], count: usize, encoding: Option<i64>, dictionary: &[String]) -> Result<Vec<String>> {
    match encoding {
        Some(PLAIN) => plain(page, count),
        Some(PLAIN_DICTIONARY | RLE_DICTIONARY) => {
            let mut reader = Reader::new(page);
            // A page without values has no width either.
            if count == 0 {
                return Ok(Vec::new());
            }
            let width = u32::from(reader.byte()?);
            let text = |index: u32| match dictionary.get(index as usize) {
                Some(text) => Ok(text.clone()),
                None => bail!("found the index {index}, expected one of {} in the dictionary", dictionary.len()),
            };
            levels::unpacked(reader.rest(), width, count)?.into_iter().map(text).collect()
        }
        other => {
            bail!("found the encoding {}, expected plain or dictionary", other.unwrap_or(-1); hint: "write it without an encoding of its own for this column")
        }
    }
}

/// Texts as they are, each after its length.
fn plain(bytes: &[u8], count: usize) -> Result<Vec<String>> {
    let mut reader = Reader::new(bytes);
    let mut texts = Vec::new();
    for i in 0..count {
        let length = reader.u32()?;
        let text = std::str::from_utf8(reader.take(length)?);
        texts.push(
            text.map_err(|_| Error::new(format!("value {}: found bytes that are not UTF-8", i + 1)))?.to_string(),
        );
    }
    Ok(texts)
}
