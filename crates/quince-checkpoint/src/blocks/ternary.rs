//! Elements of -1, 0 and 1 times one scale, as BitNet has them.

use super::{BlockType, half};

/// Five elements to a byte.
pub(super) const TQ1_0: BlockType = BlockType { name: "TQ1_0", elements: 256, bytes: 54, decode: tq1_0 };
/// Four elements to a byte.
pub(super) const TQ2_0: BlockType = BlockType { name: "TQ2_0", elements: 256, bytes: 66, decode: tq2_0 };

/// Bytes are fixed-point fractions whose digits to base three are the elements: multiplying by a power of three moves a
/// digit to the front, where it is read.
fn tq1_0(block: &[u8], out: &mut [f32]) {
    const POWERS: [u8; 5] = [1, 3, 9, 27, 81];
    let d = half(block, 52);
    // Bytes of each run, and the digits that are used of them.
    let runs = [(0..32, 5), (32..48, 5), (48..52, 4)];
    let digits = runs.into_iter().flat_map(|(range, digits)| {
        POWERS[..digits].iter().flat_map(move |power| block[range.clone()].iter().map(move |byte| (byte, power)))
    });
    for (out, (byte, power)) in out.iter_mut().zip(digits) {
        let digit = (u16::from(byte.wrapping_mul(*power)) * 3) >> 8;
        *out = d * (f32::from(digit) - 1.0);
    }
}

fn tq2_0(block: &[u8], out: &mut [f32]) {
    let d = half(block, 64);
    for (i, out) in out.iter_mut().enumerate() {
        let byte = block[32 * (i / 128) + i % 32];
        *out = d * (f32::from(byte >> (2 * (i % 128 / 32)) & 3) - 1.0);
    }
}
