//! Superblocks of 256 elements: a float16 scale for all, and small integer scales for parts of 16 or 32 elements.

use super::basic::signed_bytes;
use super::{BlockType, half};

/// Two bits, parts of 16 with scale and offset of four bits each.
pub(super) const Q2_K: BlockType = BlockType { name: "Q2_K", elements: 256, bytes: 84, decode: q2_k };
/// Three bits, parts of 16 with a scale of six bits.
pub(super) const Q3_K: BlockType = BlockType { name: "Q3_K", elements: 256, bytes: 110, decode: q3_k };
/// Four bits, parts of 32 with scale and offset of six bits each.
pub(super) const Q4_K: BlockType = BlockType { name: "Q4_K", elements: 256, bytes: 144, decode: q4_k };
/// Five bits, parts of 32 with scale and offset of six bits each.
pub(super) const Q5_K: BlockType = BlockType { name: "Q5_K", elements: 256, bytes: 176, decode: q5_k };
/// Six bits, parts of 16 with a scale of eight bits.
pub(super) const Q6_K: BlockType = BlockType { name: "Q6_K", elements: 256, bytes: 210, decode: q6_k };
/// Eight bits and a float32 scale, with sums that only products need.
pub(super) const Q8_K: BlockType = BlockType { name: "Q8_K", elements: 256, bytes: 292, decode: q8_k };

/// 16 scales and offsets, 64 bytes of codes, the two float16.
fn q2_k(block: &[u8], out: &mut [f32]) {
    let (scales, codes) = (&block[..16], &block[16..80]);
    let (d, dmin) = (half(block, 80), half(block, 82));
    for (part, out) in out.chunks_exact_mut(16).enumerate() {
        let (scale, offset) = (d * f32::from(scales[part] & 15), dmin * f32::from(scales[part] >> 4));
        for (out, code) in out.iter_mut().zip(two_bits(codes, part)) {
            *out = scale * f32::from(code) - offset;
        }
    }
}

/// 32 bytes of third bits, 64 of two bits, 12 of scales, a float16.
fn q3_k(block: &[u8], out: &mut [f32]) {
    let (third, codes, scales, d) = (&block[..32], &block[32..96], &block[96..108], half(block, 108));
    for (part, out) in out.chunks_exact_mut(16).enumerate() {
        let low = scales[part % 8] >> (4 * (part / 8)) & 15;
        let high = scales[8 + part % 4] >> (2 * (part / 4)) & 3;
        let scale = d * (f32::from(low | high << 4) - 32.0);
        let third = third[16 * (part % 2)..].iter().map(|byte| byte >> (part / 2) & 1);
        for ((out, code), third) in out.iter_mut().zip(two_bits(codes, part)).zip(third) {
            // The third bit says that nothing is to be taken away.
            *out = scale * (f32::from(code) - 4.0 * f32::from(1 - third));
        }
    }
}

/// The 16 codes of a part: 32 bytes hold eight parts, two bits of each byte for two of them.
fn two_bits(codes: &[u8], part: usize) -> impl Iterator<Item = u8> {
    let start = 32 * (part / 8) + 16 * (part % 2);
    codes[start..start + 16].iter().map(move |byte| byte >> (2 * (part / 2 % 4)) & 3)
}

/// The two float16, 12 bytes of scales and offsets, 128 bytes of codes.
fn q4_k(block: &[u8], out: &mut [f32]) {
    let codes = &block[16..144];
    for (part, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, offset) = scale_and_offset(block, part);
        for (out, code) in out.iter_mut().zip(four_bits(codes, part)) {
            *out = scale * f32::from(code) - offset;
        }
    }
}

/// As Q4_K, with 32 bytes of fifth bits before the codes.
fn q5_k(block: &[u8], out: &mut [f32]) {
    let (fifth, codes) = (&block[16..48], &block[48..176]);
    for (part, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, offset) = scale_and_offset(block, part);
        for ((out, code), fifth) in out.iter_mut().zip(four_bits(codes, part)).zip(fifth) {
            *out = scale * f32::from(code | (fifth >> part & 1) << 4) - offset;
        }
    }
}

/// The 32 codes of a part: 32 bytes hold two parts.
fn four_bits(codes: &[u8], part: usize) -> impl Iterator<Item = u8> {
    codes[32 * (part / 2)..].iter().take(32).map(move |byte| byte >> (4 * (part % 2)) & 15)
}

/// Scale and offset of one of eight parts, from six bits each: those of the first four lie in eight bytes, whose upper
/// bits and four more bytes hold those of the others.
fn scale_and_offset(block: &[u8], part: usize) -> (f32, f32) {
    let packed = &block[4..16];
    let (scale, offset) = match part.checked_sub(4) {
        None => (packed[part] & 63, packed[part + 4] & 63),
        Some(i) => {
            let (scale, offset, low) = (packed[i], packed[i + 4], packed[i + 8]);
            ((low & 15) | (scale >> 2 & 0x30), (low >> 4) | (offset >> 2 & 0x30))
        }
    };
    (half(block, 0) * f32::from(scale), half(block, 2) * f32::from(offset))
}

/// 128 bytes of four bits, 64 of two bits, 16 signed scales, a float16.
fn q6_k(block: &[u8], out: &mut [f32]) {
    let (low, high, scales, d) = (&block[..128], &block[128..192], &block[192..208], half(block, 208));
    for (part, out) in out.chunks_exact_mut(16).enumerate() {
        let scale = d * f32::from(scales[part] as i8);
        // 64 bytes of low bits and 32 of high bits hold eight parts.
        let (group, within) = (part / 8, part % 8);
        let low = &low[64 * group + 16 * (within % 4)..];
        let high = &high[32 * group + 16 * (within % 2)..];
        for ((out, low), high) in out.iter_mut().zip(low).zip(high) {
            let code = (low >> (4 * (within / 4)) & 15) | (high >> (2 * (within / 2)) & 3) << 4;
            *out = scale * (f32::from(code) - 32.0);
        }
    }
}

fn q8_k(block: &[u8], out: &mut [f32]) {
    let d = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
    signed_bytes(d, &block[4..260], out);
}
