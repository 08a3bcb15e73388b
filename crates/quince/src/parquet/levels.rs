//! Small numbers as runs and bit-packed groups: levels, and indices into a dictionary.

use super::compact::{Reader, write_varint};
use quince_tensor::{Result, bail};

/// `count` numbers of `width` bits.
pub fn unpacked(bytes: &[u8], width: u32, count: usize) -> Result<Vec<u32>> {
    if width > 32 {
        bail!("found numbers of {width} bits, expected at most 32");
    }
    let mut reader = Reader::new(bytes);
    let mut numbers = Vec::new();
    while numbers.len() < count {
        let head = reader.varint()?;
        let run = usize::try_from(head >> 1).unwrap_or(usize::MAX);
        if head & 1 == 0 {
            let value = reader.take(width.div_ceil(8) as usize)?;
            let value = value.iter().rev().fold(0, |number, byte| number << 8 | u32::from(*byte));
            if run == 0 {
                bail!("found a run of no numbers, expected {} more", count - numbers.len());
            }
            // The end of the last run may stand for nothing.
            numbers.resize(numbers.len() + run.min(count - numbers.len()), value);
        } else {
            let Some(length) = run.checked_mul(width as usize) else { bail!("found a group of {run} times 8 numbers") };
            let packed = reader.take(length)?;
            if run == 0 {
                bail!("found a group of no numbers, expected {} more", count - numbers.len());
            }
            let bit = |at: usize| u32::from(packed.get(at / 8).copied().unwrap_or(0) >> (at % 8) & 1);
            let number = |i: usize| (0..width as usize).map(|j| bit(i * width as usize + j) << j).sum::<u32>();
            let more = run.saturating_mul(8).min(count - numbers.len());
            numbers.extend((0..more).map(number));
        }
    }
    Ok(numbers)
}

/// Appends a run of one number of one bit.
pub fn write_run(out: &mut Vec<u8>, count: usize, bit: u8) {
    if count > 0 {
        write_varint(out, (count as u64) << 1);
        out.push(bit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of Encodings.md of parquet-format: 0 to 7 in three bits are 0x88 0xC6 0xFA.
    #[test]
    fn runs_and_groups_are_read() {
        assert_eq!(unpacked(&[3, 0x88, 0xc6, 0xfa], 3, 8).unwrap(), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(unpacked(&[3, 0x88, 0xc6, 0xfa, 4, 5], 3, 9).unwrap().last(), Some(&5));
        assert_eq!(unpacked(&[20, 1, 2, 0], 1, 11).unwrap(), [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0]);
        assert_eq!(unpacked(&[9], 0, 3).unwrap(), [0, 0, 0]);
        for bytes in [&[][..], &[3, 0x88], &[0, 1], &[0xff; 12]] {
            assert!(unpacked(bytes, 3, 8).is_err(), "{bytes:?}");
        }
        let mut out = Vec::new();
        write_run(&mut out, 300, 1);
        write_run(&mut out, 0, 0);
        assert_eq!(unpacked(&out, 1, 300).unwrap(), [1; 300]);
    }
}
