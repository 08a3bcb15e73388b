//! Packing of elements smaller than a byte: element `i` lies at bit `i * bits`, least significant bit first, as in
//! Core ML's `weight.bin` (FACTS: `MILBlob/Blob/StorageFormat.hpp`). Types of 3 and 6 bits straddle bytes.

use crate::{DType, Error, Result};

/// Packs codes of `bits` bits (1 to 8); higher bits of a code are dropped, padding bits are zero.
pub fn pack(codes: &[u8], bits: usize) -> Vec<u8> {
    debug_assert!((1..=8).contains(&bits));
    let mut out = vec![0u8; (codes.len() * bits).div_ceil(8)];
    let mask = (1u16 << bits) - 1;
    for (i, &code) in codes.iter().enumerate() {
        let (byte, shift) = (i * bits / 8, i * bits % 8);
        let wide = (u16::from(code) & mask) << shift;
        out[byte] |= wide as u8;
        if shift + bits > 8 {
            out[byte + 1] |= (wide >> 8) as u8;
        }
    }
    out
}

/// Unpacks `count` codes of `bits` bits (1 to 8), beginning with element `first`.
pub fn unpack(packed: &[u8], bits: usize, first: usize, count: usize) -> Result<Vec<u8>> {
    let end = first.checked_add(count).and_then(|n| n.checked_mul(bits)).map(|n| n.div_ceil(8));
    if !(1..=8).contains(&bits) || end.is_none_or(|end| end > packed.len()) {
        return Err(Error::new(format!(
            "{} packed bytes do not hold elements {first}..{first}+{count} of {bits} bits",
            packed.len()
        )));
    }
    let mask = (1u16 << bits) - 1;
    Ok((first..first + count)
        .map(|i| {
            let (byte, shift) = (i * bits / 8, i * bits % 8);
            let high = if shift + bits > 8 { u16::from(packed[byte + 1]) << 8 } else { 0 };
            (((u16::from(packed[byte]) | high) >> shift) & mask) as u8
        })
        .collect())
}

/// The values of codes of a type of less than a byte: signed types have their sign extended.
pub fn values(codes: &[u8], dtype: DType) -> Vec<i8> {
    // Unsigned types have nothing to extend.
    let shift = if dtype.is_unsigned() { 0 } else { 8 - dtype.bits().min(8) as u32 };
    codes.iter().map(|&code| ((code << shift) as i8) >> shift).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_bit_elements_straddle_bytes_least_significant_bit_first() {
        // 0b101, 0b011, 0b110 -> bits from the lowest: 101 110 011 -> byte 0 = 10_011_101, byte 1 = 1.
        assert_eq!(pack(&[0b101, 0b011, 0b110], 3), [0b1001_1101, 0b1]);
        assert_eq!(unpack(&[0b1001_1101, 0b1], 3, 0, 3).unwrap(), [0b101, 0b011, 0b110]);
        assert_eq!(unpack(&[0b1001_1101, 0b1], 3, 2, 1).unwrap(), [0b110]);
    }

    #[test]
    fn every_width_comes_back() {
        let codes: Vec<u8> = (0..=255).collect();
        for bits in 1..=8 {
            let expected: Vec<u8> = codes.iter().map(|c| c & ((1u16 << bits) - 1) as u8).collect();
            assert_eq!(unpack(&pack(&codes, bits), bits, 0, 256).unwrap(), expected);
        }
    }

    #[test]
    fn too_few_bytes_are_an_error() {
        assert!(unpack(&[0; 2], 6, 0, 3).is_err());
        assert!(unpack(&[0; 2], 4, usize::MAX, 3).is_err());
    }

    #[test]
    fn signed_codes_get_their_sign_and_unsigned_ones_none() {
        assert_eq!(values(&[0x0, 0x7, 0x8, 0xf], DType::I4), [0, 7, -8, -1]);
        assert_eq!(values(&[0x0, 0x7, 0x8, 0xf], DType::U4), [0, 7, 8, 15]);
        assert_eq!(values(&[63, 32], DType::U6), [63, 32]);
    }
}
