//! Between one and two bits for an element: eight elements at a time are a row of a table, or are signs alone.

use super::codebook_grids::IQ1_GRID;
use super::{BlockType, half, word};
use quince_tensor::f16;

/// Parts of 32 with a scale of three bits and a shift.
pub(super) const IQ1_S: BlockType = BlockType { name: "IQ1_S", elements: 256, bytes: 50, decode: iq1_s };
/// Parts of 16 with a scale of three bits, and a shift for every eight elements.
pub(super) const IQ1_M: BlockType = BlockType { name: "IQ1_M", elements: 256, bytes: 56, decode: iq1_m };
/// Signs, and a scale for 128 of them.
pub(super) const Q1_0: BlockType = BlockType { name: "Q1_0", elements: 128, bytes: 18, decode: q1_0 };

/// How far elements lie from -1, 0 and 1, one way or the other.
const DELTA: f32 = 0.125;

/// A float16, 32 bytes of rows, eight words: three more bits for four rows each, scale, and the sign of the shift.
fn iq1_s(block: &[u8], out: &mut [f32]) {
    let d = half(block, 0);
    for (group, out) in out.chunks_exact_mut(8).enumerate() {
        let part = word(block, 34 + 2 * (group / 4));
        let scale = d * f32::from(2 * (part >> 12 & 7) + 1);
        let delta = if part & 0x8000 == 0 { DELTA } else { -DELTA };
        row(usize::from(block[2 + group]) | usize::from(part >> (3 * (group % 4)) & 7) << 8, scale, delta, out);
    }
}

/// 32 bytes of rows, 16 of their upper bits and the signs of shifts, four words of scales in whose upper bits the
/// float16 is.
fn iq1_m(block: &[u8], out: &mut [f32]) {
    let scales = |i: usize| word(block, 48 + 2 * i);
    let bits = (0..4).fold(0, |bits, i| bits | (scales(i) >> 12) << (4 * i));
    let d = f16::from_bits(bits).to_f32();
    for (group, out) in out.chunks_exact_mut(8).enumerate() {
        let part = group / 2;
        let scale = d * f32::from(2 * (scales(part / 4) >> (3 * (part % 4)) & 7) + 1);
        let high = block[32 + part] >> (4 * (group % 2));
        let delta = if high & 8 == 0 { DELTA } else { -DELTA };
        row(usize::from(block[group]) | usize::from(high & 7) << 8, scale, delta, out);
    }
}

/// The eight elements of a row of the table.
fn row(index: usize, scale: f32, delta: f32, out: &mut [f32]) {
    let packed = IQ1_GRID[index];
    for (i, out) in out.iter_mut().enumerate() {
        *out = scale * (f32::from(packed >> (2 * i) & 3) - 1.0 + delta);
    }
}

fn q1_0(block: &[u8], out: &mut [f32]) {
    let d = half(block, 0);
    for (i, out) in out.iter_mut().enumerate() {
        *out = if block[2 + i / 8] >> (i % 8) & 1 == 1 { d } else { -d };
    }
}
