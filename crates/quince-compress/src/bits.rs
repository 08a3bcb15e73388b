//! Writing codes of 1 to 8 bits one after the other, least significant bit first.

use quince_tensor::{Result, bail};

/// The bits of an index that Core ML stores: 1, 2, 3, 4, 6 or 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Nbits(u8);

impl Nbits {
    /// Every width, ascending.
    pub const ALL: [Nbits; 6] = [Nbits(1), Nbits(2), Nbits(3), Nbits(4), Nbits(6), Nbits(8)];

    /// The width of `bits` bits.
    ///
    /// # Errors
    /// When Core ML has no index of that width.
    pub fn new(bits: usize) -> Result<Self> {
        match Self::ALL.into_iter().find(|n| n.get() == bits) {
            Some(nbits) => Ok(nbits),
            None => bail!("found {bits} bits for an index, expected one of 1, 2, 3, 4, 6, 8"),
        }
    }

    /// The number of bits.
    pub fn get(self) -> usize {
        usize::from(self.0)
    }

    /// The number of entries of a table, 2^nbits.
    pub fn entries(self) -> usize {
        1 << self.0
    }
}

/// Packs codes into bytes that are zero at first; element `i` goes to bit `i * bits`.
pub(crate) struct BitWriter<'a> {
    out: &'a mut [u8],
    bits: usize,
    written: usize,
}

impl<'a> BitWriter<'a> {
    pub(crate) fn new(out: &'a mut [u8], bits: usize) -> Self {
        Self { out, bits, written: 0 }
    }

    /// Appends the code of each value. There must be room for them.
    #[inline]
    pub(crate) fn extend<T: Copy>(&mut self, values: &[T], mut code: impl FnMut(T) -> u8) {
        let mut values = values;
        if self.written.is_multiple_of(8) {
            let (eights, rest) = values.as_chunks::<8>();
            let start = self.written / 8;
            let bytes = self.out[start..][..eights.len() * self.bits].chunks_exact_mut(self.bits);
            for (out, eight) in bytes.zip(eights) {
                let join = |word, (i, &value): (usize, &T)| word | u64::from(code(value)) << (i * self.bits);
                let word = eight.iter().enumerate().fold(0u64, join);
                out.copy_from_slice(&word.to_le_bytes()[..self.bits]);
            }
            self.written += eights.len() * 8 * self.bits;
            values = rest;
        }
        for &value in values {
            let (byte, shift) = (self.written / 8, self.written % 8);
            let wide = u16::from(code(value)) << shift;
            self.out[byte] |= wide as u8;
            if shift + self.bits > 8 {
                self.out[byte + 1] |= (wide >> 8) as u8;
            }
            self.written += self.bits;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quince_tensor::packing;

    #[test]
    fn pieces_of_any_length_join_as_one() {
        let codes: Vec<u8> = (0..173u32).map(|i| (i * 37 % 251) as u8).collect();
        for bits in 1..=8 {
            let expected = packing::pack(&codes, bits);
            for piece in [1, 3, 8, 13, 173] {
                let mut out = vec![0; expected.len()];
                let mut writer = BitWriter::new(&mut out, bits);
                for codes in codes.chunks(piece) {
                    writer.extend(codes, |code| code & ((1u16 << bits) - 1) as u8);
                }
                assert_eq!(out, expected, "{bits} bits in pieces of {piece}");
            }
        }
    }
}
