//! Blocks of 32 elements with one scale, and some with an offset: the first types that ggml had.

use super::{BlockType, half, word32};

/// Four bits, from -8 to 7.
pub(crate) const Q4_0: BlockType = BlockType { name: "Q4_0", elements: 32, bytes: 18, decode: q4_0 };
/// Four bits and an offset.
pub(super) const Q4_1: BlockType = BlockType { name: "Q4_1", elements: 32, bytes: 20, decode: q4_1 };
/// Five bits, from -16 to 15.
pub(super) const Q5_0: BlockType = BlockType { name: "Q5_0", elements: 32, bytes: 22, decode: q5_0 };
/// Five bits and an offset.
pub(super) const Q5_1: BlockType = BlockType { name: "Q5_1", elements: 32, bytes: 24, decode: q5_1 };
/// Eight bits, from -128 to 127.
pub(crate) const Q8_0: BlockType = BlockType { name: "Q8_0", elements: 32, bytes: 34, decode: q8_0 };
/// As Q8_0, with a sum that only products need.
pub(super) const Q8_1: BlockType = BlockType { name: "Q8_1", elements: 32, bytes: 36, decode: q8_1 };

fn q4_0(block: &[u8], out: &mut [f32]) {
    let d = half(block, 0);
    for (i, &byte) in block[2..18].iter().enumerate() {
        out[i] = d * (f32::from(byte & 15) - 8.0);
        out[i + 16] = d * (f32::from(byte >> 4) - 8.0);
    }
}

fn q4_1(block: &[u8], out: &mut [f32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    for (i, &byte) in block[4..20].iter().enumerate() {
        out[i] = d * f32::from(byte & 15) + m;
        out[i + 16] = d * f32::from(byte >> 4) + m;
    }
}

fn q5_0(block: &[u8], out: &mut [f32]) {
    let d = half(block, 0);
    for (i, (low, high)) in five_bits(word32(block, 2), &block[6..22]).enumerate() {
        out[i] = d * (f32::from(low) - 16.0);
        out[i + 16] = d * (f32::from(high) - 16.0);
    }
}

fn q5_1(block: &[u8], out: &mut [f32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    for (i, (low, high)) in five_bits(word32(block, 4), &block[8..24]).enumerate() {
        out[i] = d * f32::from(low) + m;
        out[i + 16] = d * f32::from(high) + m;
    }
}

/// Elements i and i + 16: four bits in byte i, the fifth in bits i and i + 16 of a word.
fn five_bits(high: u32, low: &[u8]) -> impl Iterator<Item = (u8, u8)> {
    let fifth = move |bit: usize| ((high >> bit) as u8 & 1) << 4;
    low.iter().enumerate().map(move |(i, &byte)| ((byte & 15) | fifth(i), (byte >> 4) | fifth(i + 16)))
}

fn q8_0(block: &[u8], out: &mut [f32]) {
    signed_bytes(half(block, 0), &block[2..], out);
}

fn q8_1(block: &[u8], out: &mut [f32]) {
    signed_bytes(half(block, 0), &block[4..], out);
}

/// Signed bytes times a scale.
pub(super) fn signed_bytes(d: f32, codes: &[u8], out: &mut [f32]) {
    out.iter_mut().zip(codes).for_each(|(out, &code)| *out = d * f32::from(code as i8));
}
