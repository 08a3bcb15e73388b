//! Floats of four bits, E2M1, with a scale for each block (OCP Microscaling Formats 1.0).

use super::BlockType;

/// Blocks of 32 with a power of two.
pub(crate) const MXFP4: BlockType = BlockType { name: "MXFP4", elements: 32, bytes: 17, decode: mxfp4 };
/// Four times 16 elements, each with an unsigned float8 scale.
pub(super) const NVFP4: BlockType = BlockType { name: "NVFP4", elements: 64, bytes: 36, decode: nvfp4 };

/// The values of the sixteen codes, doubled so that they are integers.
pub(crate) const E2M1: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// Half of 2^(exponent - 127), to go with doubled values. The smallest two are subnormal.
pub(crate) fn scale_of_exponent(exponent: u8) -> f32 {
    match exponent {
        0 | 1 => f32::from_bits(0x0020_0000 << exponent),
        _ => f32::from_bits(u32::from(exponent - 1) << 23),
    }
}

fn mxfp4(block: &[u8], out: &mut [f32]) {
    let d = scale_of_exponent(block[0]);
    codes(d, &block[1..17], out);
}

fn nvfp4(block: &[u8], out: &mut [f32]) {
    for (part, out) in out.chunks_exact_mut(16).enumerate() {
        codes(unsigned_e4m3(block[part]), &block[4 + 8 * part..12 + 8 * part], out);
    }
}

/// The low halves of bytes come before the high halves.
fn codes(d: f32, bytes: &[u8], out: &mut [f32]) {
    let (low, high) = out.split_at_mut(bytes.len());
    for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
        *low = d * f32::from(E2M1[usize::from(byte & 15)]);
        *high = d * f32::from(E2M1[usize::from(byte >> 4)]);
    }
}

/// Half the value of an E4M3 whose sign is not looked at; what would be NaN is zero.
fn unsigned_e4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
    match (byte, exponent) {
        (0x7f, _) => 0.0,
        (_, 0) => mantissa * 2f32.powi(-10),
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 8),
    }
}
