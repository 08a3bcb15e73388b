//! What the tests of kernels share: random numbers, comparison, a loop over instruction sets.

use half::f16;

use super::{CodeType, GroupAxis, Isa, Kernels, PackedWeight};

/// A small generator (xorshift64*): the same numbers on every machine.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A whole number below `limit`.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.bits() >> 33) as usize % limit
    }

    pub(crate) fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| (self.bits() >> 56) as u8).collect()
    }

    /// Roughly normal numbers: sums of four uniform ones, with variance 1.
    pub(crate) fn normal(&mut self, n: usize) -> Vec<f32> {
        (0..n)
            .map(|_| {
                let sum: f32 = (0..4).map(|_| (self.bits() >> 40) as f32 / (1u64 << 24) as f32).sum();
                (sum - 2.0) * 3f32.sqrt()
            })
            .collect()
    }
}

/// Asserts |found − expected| ≤ tolerance · max(1, |expected|).
#[track_caller]
pub(crate) fn assert_close(found: f32, expected: f64, tolerance: f64, place: &str) {
    let error = (f64::from(found) - expected).abs();
    assert!(error <= tolerance * expected.abs().max(1.0), "{place}: found {found}, expected {expected}");
}

/// Runs `f` for every instruction set of the machine, on two threads.
pub(crate) fn every_isa(f: impl Fn(&Kernels)) {
    for isa in Isa::available() {
        f(&Kernels::with_isa(isa, 2));
    }
}

/// A weight of every kind that goes with the shape: all encodings, widths and groupings, with their names.
pub(crate) fn weight_kinds(random: &mut Random, rows: usize, cols: usize) -> Vec<(String, PackedWeight)> {
    let n = rows * cols;
    let values = random.normal(n);
    let halves: Vec<f16> = values.iter().map(|&x| f16::from_f32(x)).collect();
    let plain = PackedWeight::dense(rows, cols, values.into()).unwrap();
    let mut kinds = vec![
        ("f32 in panels".to_string(), plain.laid_out().unwrap().unwrap()),
        ("f32".to_string(), plain),
        ("f16".to_string(), PackedWeight::dense(rows, cols, halves.into()).unwrap()),
    ];
    let divisors = |n: usize| [1, 2, 16, 32, n].into_iter().filter(move |d| n.is_multiple_of(*d) && *d <= n);
    for nbits in [1, 2, 3, 4, 6, 8] {
        for (axis, length) in [(GroupAxis::Rows, rows), (GroupAxis::Cols, cols)] {
            for group in divisors(length) {
                let tables = random.normal((length / group) << nbits);
                let indices = random.bytes((n * nbits).div_ceil(8));
                let weight = PackedWeight::lut(rows, cols, nbits, indices.into(), &tables.into(), axis).unwrap();
                kinds.push((format!("lut{nbits} {axis:?} {group}"), weight));
            }
        }
    }
    for codes in [CodeType::Int8, CodeType::Uint8, CodeType::Int4, CodeType::Uint4] {
        for (grid, with_offset) in divisors(cols)
            .flat_map(|block| [[rows, cols / block], [1, cols / block]])
            .zip([true, false].into_iter().cycle())
        {
            let scales = grid[0] * grid[1];
            let data = random.bytes((n * codes.nbits()).div_ceil(8));
            let scale: Vec<f16> = random.normal(scales).into_iter().map(f16::from_f32).collect();
            let offset = with_offset.then(|| random.bytes((scales * codes.nbits()).div_ceil(8)).into());
            let weight = PackedWeight::affine(rows, cols, codes, data.into(), scale.into(), offset, grid).unwrap();
            kinds.push((format!("{codes:?} {grid:?} offset {with_offset}"), weight));
        }
    }
    kinds
}
