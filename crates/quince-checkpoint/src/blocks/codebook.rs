//! Elements looked up: four or eight at a time in a table of rows (IQ2, IQ3), or one at a time (IQ4).

use super::codebook_grids::{IQ2_S_GRID, IQ2_XS_GRID, IQ2_XXS_GRID, IQ3_S_GRID, IQ3_XXS_GRID};
use super::{BlockType, half, word, word32};

/// Rows of eight of 256, signs of even parity.
pub(super) const IQ2_XXS: BlockType = BlockType { name: "IQ2_XXS", elements: 256, bytes: 66, decode: iq2_xxs };
/// Rows of eight of 512, signs of even parity.
pub(super) const IQ2_XS: BlockType = BlockType { name: "IQ2_XS", elements: 256, bytes: 74, decode: iq2_xs };
/// Rows of eight of 1024, any signs.
pub(super) const IQ2_S: BlockType = BlockType { name: "IQ2_S", elements: 256, bytes: 82, decode: iq2_s };
/// Rows of four of 256, signs of even parity.
pub(super) const IQ3_XXS: BlockType = BlockType { name: "IQ3_XXS", elements: 256, bytes: 98, decode: iq3_xxs };
/// Rows of four of 512, any signs.
pub(super) const IQ3_S: BlockType = BlockType { name: "IQ3_S", elements: 256, bytes: 110, decode: iq3_s };
/// One of sixteen values, a scale for 32.
pub(super) const IQ4_NL: BlockType = BlockType { name: "IQ4_NL", elements: 32, bytes: 18, decode: iq4_nl };
/// One of sixteen values, parts of 32 with a scale of six bits.
pub(super) const IQ4_XS: BlockType = BlockType { name: "IQ4_XS", elements: 256, bytes: 136, decode: iq4_xs };

/// What the two bits of an element of an IQ2 row stand for.
const IQ2_LEVELS: [f32; 3] = [8.0, 25.0, 43.0];
/// What the three bits of an element of an IQ3_XXS row stand for.
const IQ3_XXS_LEVELS: [f32; 8] = [4.0, 12.0, 20.0, 28.0, 36.0, 44.0, 52.0, 62.0];
/// The same of IQ3_S.
const IQ3_S_LEVELS: [f32; 8] = [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0];
/// The sixteen values of IQ4.
const IQ4_LEVELS: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// A float16, then for 32 elements four rows of a byte, and four times seven bits of signs below a scale.
fn iq2_xxs(block: &[u8], out: &mut [f32]) {
    let d = half(block, 0);
    for (part, out) in out.chunks_exact_mut(32).enumerate() {
        let signs = word32(block, 6 + 8 * part);
        let scale = d * (0.5 + (signs >> 28) as f32) * 0.25;
        for (i, out) in out.chunks_exact_mut(8).enumerate() {
            let packed = IQ2_XXS_GRID[usize::from(block[2 + 8 * part + i])];
            row_of_eight(packed, scale, even((signs >> (7 * i)) as u8 & 127), out);
        }
    }
}

/// A float16, 32 words of a row and seven signs, eight bytes of scales.
fn iq2_xs(block: &[u8], out: &mut [f32]) {
    let d = half(block, 0);
    for (i, out) in out.chunks_exact_mut(8).enumerate() {
        let code = word(block, 2 + 2 * i);
        let scale = d * (0.5 + four_bits(&block[66..74], i / 2)) * 0.25;
        row_of_eight(IQ2_XS_GRID[usize::from(code & 511)], scale, even((code >> 9) as u8), out);
    }
}

/// A float16, 32 bytes of rows, 32 of signs, eight of two more bits for four rows each, eight of scales.
fn iq2_s(block: &[u8], out: &mut [f32]) {
    let d = half(block, 0);
    for (i, out) in out.chunks_exact_mut(8).enumerate() {
        let high = usize::from(block[66 + i / 4] >> (2 * (i % 4)) & 3);
        let scale = d * (0.5 + four_bits(&block[74..82], i / 2)) * 0.25;
        row_of_eight(IQ2_S_GRID[usize::from(block[2 + i]) | high << 8], scale, block[34 + i], out);
    }
}

/// A float16, 64 bytes of rows, for 32 elements four times seven bits of signs below a scale.
fn iq3_xxs(block: &[u8], out: &mut [f32]) {
    let d = half(block, 0);
    for (i, out) in out.chunks_exact_mut(8).enumerate() {
        let signs = word32(block, 66 + 4 * (i / 4));
        let scale = d * (0.5 + (signs >> 28) as f32) * 0.5;
        let rows = [0, 1].map(|j| IQ3_XXS_GRID[usize::from(block[2 + 2 * i + j])]);
        rows_of_four(rows, &IQ3_XXS_LEVELS, scale, even((signs >> (7 * (i % 4))) as u8 & 127), out);
    }
}

/// A float16, 64 bytes of rows, eight of one more bit for eight rows each, 32 of signs, four of scales.
fn iq3_s(block: &[u8], out: &mut [f32]) {
    let d = half(block, 0);
    for (i, out) in out.chunks_exact_mut(8).enumerate() {
        let scale = d * (1.0 + 2.0 * four_bits(&block[106..110], i / 4));
        let rows = [2 * i, 2 * i + 1].map(|j| {
            let high = usize::from(block[66 + j / 8] >> (j % 8) & 1);
            IQ3_S_GRID[usize::from(block[2 + j]) | high << 8]
        });
        rows_of_four(rows, &IQ3_S_LEVELS, scale, block[74 + i], out);
    }
}

/// Seven signs, and an eighth that makes their number even.
fn even(signs: u8) -> u8 {
    signs | ((signs.count_ones() as u8 & 1) << 7)
}

/// The scale of four bits with this index.
fn four_bits(packed: &[u8], index: usize) -> f32 {
    f32::from(packed[index / 2] >> (4 * (index % 2)) & 15)
}

fn row_of_eight(packed: u16, scale: f32, signs: u8, out: &mut [f32]) {
    for (i, out) in out.iter_mut().enumerate() {
        let value = scale * IQ2_LEVELS[usize::from(packed >> (2 * i) & 3)];
        *out = if signs >> i & 1 == 1 { -value } else { value };
    }
}

fn rows_of_four(packed: [u16; 2], levels: &[f32; 8], scale: f32, signs: u8, out: &mut [f32]) {
    for (i, out) in out.iter_mut().enumerate() {
        let value = scale * levels[usize::from(packed[i / 4] >> (3 * (i % 4)) & 7)];
        *out = if signs >> i & 1 == 1 { -value } else { value };
    }
}

fn iq4_nl(block: &[u8], out: &mut [f32]) {
    sixteen_values(half(block, 0), &block[2..18], out);
}

/// A float16, a word of eight times two bits of scales, four bytes of eight times four more, 128 bytes of codes.
fn iq4_xs(block: &[u8], out: &mut [f32]) {
    let (d, high) = (half(block, 0), word(block, 2));
    for (part, out) in out.chunks_exact_mut(32).enumerate() {
        let scale = four_bits(&block[4..8], part) + f32::from(high >> (2 * part) & 3) * 16.0 - 32.0;
        sixteen_values(d * scale, &block[8 + 16 * part..24 + 16 * part], out);
    }
}

/// The low halves of bytes come before the high halves.
fn sixteen_values(scale: f32, bytes: &[u8], out: &mut [f32]) {
    for (i, &byte) in bytes.iter().enumerate() {
        out[i] = scale * f32::from(IQ4_LEVELS[usize::from(byte & 15)]);
        out[i + 16] = scale * f32::from(IQ4_LEVELS[usize::from(byte >> 4)]);
    }
}
