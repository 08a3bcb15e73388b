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
            let bytes = &bytes.as_slice()[4 * start..4 * (start + out.len())];
            for (out, bytes) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                *out = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            }
        }
        Floats::F16(bytes) => {
            let source = bytes.as_slice()[2 * start..2 * (start + out.len())].as_ptr().cast::<f16>();
            unsafe { map_vectors::<S>(out, |i, count| S::load_partial_or_full_f16(source.add(i), count)) }
        }
    }
}

/// How many indices are unpacked to bytes at a time.
const CHUNK: usize = 256;

#[inline(always)]
unsafe fn lut_row<S: Simd>(lut: &Lut, row: usize, cols: usize, col: usize, out: &mut [f32]) {
    let mut indices = [0u8; CHUNK + 16];
    let mut done = 0;
    while done < out.len() {
        let at = col + done;
        let run = match lut.axis {
            GroupAxis::Rows => out.len() - done,
            GroupAxis::Cols => (lut.group - at % lut.group).min(out.len() - done),
        };
        let count = run.min(CHUNK);
        unpack::<S>(lut.indices.as_slice(), row * cols + at, lut.nbits, &mut indices[..count]);
        let entries = 1 << lut.nbits;
        let table = lut.table_of(row, at) * entries;
        let table = lut.tables.values()[table..table + entries].as_ptr();
        let source = indices.as_ptr();
        unsafe { map_vectors::<S>(&mut out[done..done + count], |i, _| S::lookup(table, entries, source.add(i))) }
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
    let mut done = 0;
    while done + 8 <= count {
        let bit = (first + done) * nbits;
        // Eight indices of at most six bits lie in 55 bits; near the end of the data they are taken one by one.
        let Some(Ok(word)) = data.get(bit / 8..bit / 8 + 8).map(<[u8; 8]>::try_from) else { break };
        let word = u64::from_le_bytes(word) >> (bit % 8);
        out[done..done + 8].copy_from_slice(&S::deposit_bits(word, mask).to_le_bytes());
        done += 8;
    }
    for (i, out) in out.iter_mut().enumerate().skip(done) {
        *out = bits_at(data, first + i, nbits) as u8;
    }
}

#[inline(always)]
unsafe fn affine_row<S: Simd>(affine: &Affine, row: usize, cols: usize, col: usize, out: &mut [f32]) {
    let mut codes = [0u8; CHUNK + 16];
    let mut done = 0;
    while done < out.len() {
        let at = col + done;
        let run = (affine.block[1] - at % affine.block[1]).min(out.len() - done);
        let count = run.min(CHUNK);
        let block = affine.block_of(row, at);
        let (scale, offset) = (affine.scale.get(block), affine.offset_at(block));
        unpack::<S>(affine.data.as_slice(), row * cols + at, affine.codes.nbits(), &mut codes[..count]);
        if affine.codes == CodeType::Int4 {
            codes[..count].iter_mut().for_each(|code| *code = (*code ^ 8).wrapping_sub(8));
        }
        let signed = matches!(affine.codes, CodeType::Int8 | CodeType::Int4);
        let source = codes.as_ptr();
        unsafe {
            let (scale, offset) = (S::splat(scale), S::splat(offset as f32));
            map_vectors::<S>(&mut out[done..done + count], |i, _| {
                let code = if signed { S::load_i8(source.add(i).cast()) } else { S::load_u8(source.add(i)) };
                code.sub(offset).mul(scale)
            });
        }
        done += count;
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
