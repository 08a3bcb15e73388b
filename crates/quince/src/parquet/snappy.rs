//! Snappy's raw format: literals, and copies of what came before.

use super::compact::Reader;
use quince_tensor::{Result, bail};

/// The bytes that `packed` stands for, which are `length`.
pub fn unpacked(packed: &[u8], length: usize) -> Result<Vec<u8>> {
    let mut reader = Reader::new(packed);
    let announced = reader.varint()?;
    if announced != length as u64 {
        bail!("found a page of {announced} bytes, expected {length}");
    }
    // A byte of input stands for 64 of output at most.
    if length / 64 > packed.len() {
        bail!("found {} bytes that stand for {length}, which Snappy cannot do", packed.len());
    }
    let mut out = Vec::with_capacity(length);
    while !reader.rest().is_empty() {
        let tag = reader.byte()?;
        let (offset, count) = match tag & 3 {
            0 => {
                let count = literal(&mut reader, tag)?;
                if count > length - out.len() {
                    bail!("found more than {length} bytes, expected just those");
                }
                out.extend(reader.take(count)?);
                continue;
            }
            1 => (usize::from(tag >> 5) << 8 | number(&mut reader, 1)?, 4 + usize::from(tag >> 2 & 7)),
            2 => (number(&mut reader, 2)?, 1 + usize::from(tag >> 2)),
            _ => (number(&mut reader, 4)?, 1 + usize::from(tag >> 2)),
        };
        if offset == 0 || offset > out.len() || count > length - out.len() {
            bail!("found a copy of {count} bytes from {offset} back, after {} of {length}", out.len());
        }
        // What is copied may reach into what it makes.
        for at in out.len() - offset..out.len() - offset + count {
            out.push(out[at]);
        }
    }
    if out.len() != length {
        bail!("found {} bytes, expected {length}", out.len());
    }
    Ok(out)
}

fn literal(reader: &mut Reader, tag: u8) -> Result<usize> {
    match tag >> 2 {
        short @ 0..60 => Ok(usize::from(short) + 1),
        long => Ok(number(reader, usize::from(long) - 59)? + 1),
    }
}

/// A number of so many bytes, the least significant first.
fn number(reader: &mut Reader, bytes: usize) -> Result<usize> {
    Ok(reader.take(bytes)?.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By format_description.txt of github.com/google/snappy.
    #[test]
    fn copies_repeat_what_came_before() {
        let packed = [&[11, 2 << 2], &b"abc"[..], &[2 << 2 | 1, 3], &[0], b"x", &[2 << 2 | 2, 1, 0]].concat();
        assert_eq!(unpacked(&[&[13], &packed[1..]].concat(), 13).unwrap(), b"abcabcabcxxxx");
        assert!(unpacked(&packed, 13).is_err());
        for (packed, length) in [(&[4, 1, 9][..], 4), (&[200, 1, 0, 0], 200), (&[5, 4 << 2, 1], 5), (&[], 0)] {
            assert!(unpacked(packed, length).is_err(), "{packed:?}");
        }
    }
}
