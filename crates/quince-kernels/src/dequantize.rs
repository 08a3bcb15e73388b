//! Rows of packed weights as f32: what the embedding lookup gives and what the products without an integer path read.

use half::f16;

use super::simd::{Simd, for_isa};
use super::weights::{Affine, CodeType, Encoding, Floats, GroupAxis, Lut, PackedWeight, bits_at};
use super::{Isa, Kernels};

/// Writes elements `first_col..first_col + out.len()` of row `row`: exactly [`PackedWeight::get`] of each.
///
/// # Panics
/// When the elements are not inside the matrix.
pub fn dequantize_row(kernels: &Kernels, weight: &PackedWeight, row: usize, first_col: usize, out: &mut [f32]) {
    dequantize(kernels.isa, weight, row, first_col, out);
}

/// [`dequantize_row`] for a given instruction set.
pub(crate) fn dequantize(isa: Isa, weight: &PackedWeight, row: usize, col: usize, out: &mut [f32]) {
    for_isa!(isa, dequantize_generic(
        weight: &PackedWeight = weight, row: usize = row, col: usize = col, out: &mut [f32] = out));
}

/// [`dequantize_row`] as part of another kernel.
///
/// # Safety
/// The processor has the instructions of `S`.
#[inline(always)]
pub(crate) unsafe fn dequantize_generic<S: Simd>(weight: &PackedWeight, row: usize, col: usize, out: &mut [f32]) {
    let (rows, cols) = (weight.rows(), weight.cols());
    assert!(row < rows && col <= cols && out.len() <= cols - col, "{} of row {row} of [{rows}, {cols}]", out.len());
    // SAFETY: the elements are inside the matrix, and the parts of a weight have the lengths that go with its shape.
    unsafe {
        match weight.encoding() {
            Encoding::Dense(values) => load_floats::<S>(values, row * cols + col, out),
            Encoding::Lut(lut) => lut_row::<S>(lut, row, cols, col, out),
            Encoding::Affine(affine) => affine_row::<S>(affine, row, cols, col, out),
        }
    }
}

// SAFETY of the functions below: as `dequantize_generic` says; slicing checks every range again.

/// Numbers `start..` as f32.
#[inline(always)]
pub(crate) unsafe fn load_floats<S: Simd>(values: &Floats, start: usize, out: &mut [f32]) {
    match values {
        Floats::F32(bytes) => {
            let bytes = &bytes[4 * start..4 * (start + out.len())];
            for (out, bytes) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                *out = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            }
        }
        Floats::F16(bytes) => {
            let source = bytes[2 * start..2 * (start + out.len())].as_ptr().cast::<f16>();
            unsafe {
                map_vectors::<S>(
                    out,
                    #[inline(always)]
                    |i, count| S::load_partial_or_full_f16(source.add(i), count),
                )
            }
        }
    }
}

/// How many indices or codes are unpacked to bytes at a time.
const CHUNK: usize = 256;

#[inline(always)]
unsafe fn lut_row<S: Simd>(lut: &Lut, row: usize, cols: usize, col: usize, out: &mut [f32]) {
    unsafe {
        match lut.nbits {
            1 => lut_row_of::<S, 2>(lut, row, cols, col, out),
            2 => lut_row_of::<S, 4>(lut, row, cols, col, out),
            3 => lut_row_of::<S, 8>(lut, row, cols, col, out),
            4 => lut_row_of::<S, 16>(lut, row, cols, col, out),
            6 => lut_row_of::<S, 64>(lut, row, cols, col, out),
            _ => lut_row_of::<S, 256>(lut, row, cols, col, out),
        }
    }
}

#[inline(always)]
unsafe fn lut_row_of<S: Simd, const ENTRIES: usize>(lut: &Lut, row: usize, cols: usize, col: usize, out: &mut [f32]) {
    let data = &lut.indices[..];
    let mut indices = [0u8; CHUNK + 16];
    let mut done = 0;
    while done < out.len() {
        let at = col + done;
        let run = match lut.axis {
            GroupAxis::Rows => out.len() - done,
            GroupAxis::Cols => (lut.group - at % lut.group).min(out.len() - done),
        };
        let count = run.min(CHUNK);
        unpack::<S>(data, row * cols + at, lut.nbits, &mut indices[..count]);
        let table = lut.table_of(row, at) * ENTRIES;
        let table: &[f32] = &lut.tables.values()[table..table + ENTRIES];
        let (table, source) = (table.as_ptr(), indices.as_ptr());
        unsafe {
            map_vectors::<S>(
                &mut out[done..done + count],
                #[inline(always)]
                |i, _| S::lookup::<ENTRIES>(table, source.add(i)),
            )
        }
        done += count;
    }
}

/// Writes elements `first..` of packed unsigned integers as bytes.
#[inline(always)]
pub(crate) fn unpack<S: Simd>(data: &[u8], first: usize, nbits: usize, out: &mut [u8]) {
    let count = out.len();
    if nbits == 8 {
        return out.copy_from_slice(&data[first..first + count]);
    }
    let mask = ((1u64 << nbits) - 1) * 0x0101_0101_0101_0101;
    // Eight elements are whole bytes, so that all eights begin at the same bit; they lie in at most 55 bits. Near the
    // end of the data, elements are taken one by one.
    let (shift, mut byte) = (first * nbits % 8, first * nbits / 8);
    let mut done = 0;
    while done + 8 <= count {
        let Some(word) = data.get(byte..).and_then(<[u8]>::first_chunk::<8>) else { break };
        let word = u64::from_le_bytes(*word) >> shift;
        out[done..done + 8].copy_from_slice(&S::deposit_bits(word, mask).to_le_bytes());
        done += 8;
        byte += nbits;
    }
    for (i, out) in out.iter_mut().enumerate().skip(done) {
        *out = bits_at(data, first + i, nbits) as u8;
    }
}

#[inline(always)]
unsafe fn affine_row<S: Simd>(affine: &Affine, row: usize, cols: usize, col: usize, out: &mut [f32]) {
    let data = &affine.data[..];
    let mut codes = [0u8; CHUNK + 16];
    let mut scales = [0.0f32; CHUNK];
    for (chunk, out) in out.chunks_mut(CHUNK).enumerate() {
        let first = col + chunk * CHUNK;
        unpack::<S>(data, row * cols + first, affine.codes.nbits(), &mut codes[..out.len()]);
        if affine.codes == CodeType::Int4 {
            codes[..out.len()].iter_mut().for_each(|code| *code = (*code ^ 8).wrapping_sub(8));
        }
        let signed = matches!(affine.codes, CodeType::Int8 | CodeType::Int4);
        let first_block = affine.block_of(row, first);
        let blocks = affine.block_of(row, first + out.len() - 1) - first_block + 1;
        unsafe { load_floats::<S>(&affine.scale, first_block, &mut scales[..blocks]) };
        let (mut done, mut end) = (0, affine.block[1] - first % affine.block[1]);
        for (i, &scale) in scales[..blocks].iter().enumerate() {
            let offset = if affine.offset.is_some() { affine.offset_at(first_block + i) } else { 0 };
            end = end.min(out.len());
            let source = codes[done..].as_ptr();
            unsafe {
                let (scale, offset) = (S::splat(scale), S::splat(offset as f32));
                map_vectors::<S>(
                    &mut out[done..end],
                    #[inline(always)]
                    |i, _| {
                        let code = if signed { S::load_i8(source.add(i).cast()) } else { S::load_u8(source.add(i)) };
                        code.sub(offset).mul(scale)
                    },
                );
            }
            (done, end) = (end, end + affine.block[1]);
        }
    }
}

/// Fills `out` with vectors made by `f(place, count)`.
#[inline(always)]
unsafe fn map_vectors<S: Simd>(out: &mut [f32], f: impl Fn(usize, usize) -> S) {
    let (n, mut i) = (out.len(), 0);
    while i < n {
        let count = S::LANES.min(n - i);
        unsafe { f(i, count).store_partial_or_full(out.as_mut_ptr().add(i), count) };
        i += count;
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Random, every_isa, weight_kinds};
    use super::*;

    #[test]
    fn rows_are_exactly_the_elements() {
        let mut random = Random::new(4);
        for (rows, cols) in [(1, 1), (4, 7), (6, 96), (32, 320), (3, 1030)] {
            for (name, weight) in weight_kinds(&mut random, rows, cols) {
                every_isa(|kernels| {
                    for (row, start) in [(0, 0), (rows - 1, cols / 3), (rows / 2, cols - 1)] {
                        let mut out = vec![0.0; cols - start];
                        dequantize_row(kernels, &weight, row, start, &mut out);
                        for (i, &value) in out.iter().enumerate() {
                            let expected = weight.get(row, start + i);
                            assert_eq!(
                                value, expected,
                                "{:?} {name} [{rows}, {cols}] row {row} from {start} at {i}",
                                kernels.isa
                            );
                        }
                    }
                });
            }
        }
    }
}
