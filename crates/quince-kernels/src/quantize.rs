//! Activations rounded to integers, block by block, in the order in which an integer kernel meets the weights.

use super::{Pool, SharedMut};

/// Largest magnitude of an activation in a block of 128.
///
/// A lane of 32 bits sums 2 · 8 products of one block, each at most `TABLE_MAX` · `ACTIVATION_MAX`:
/// 16 · 16383 · 8191 < 2^31.
const ACTIVATION_MAX: f32 = 8191.0;

/// In which order a kernel unpacks the elements of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// As they are.
    Natural,
    /// Groups of 16 bytes of two 4-bit codes: the low codes, then the high codes.
    Nibbles,
    /// Groups of 32 bytes of 1, 2, 4 or 8 indices, which AVX2 takes apart with byte shuffles and interleaves.
    Bytes {
        /// Indices in a byte.
        planes: usize,
    },
    /// The same groups as AVX-512 takes them apart: the first index of every byte, the second of every byte, ...
    Words {
        /// Indices in a byte.
        planes: usize,
    },
}

impl Order {
    /// Elements after which the order repeats.
    fn group(self) -> usize {
        match self {
            Order::Natural => 1,
            Order::Nibbles => 32,
            Order::Bytes { planes } | Order::Words { planes } => 32 * planes,
        }
    }

    /// Which element of a group comes at place `at`.
    fn element(self, at: usize) -> usize {
        match self {
            Order::Natural => at,
            Order::Nibbles => 2 * (at % 16) + at / 16,
            Order::Bytes { planes } => {
                let (plane, half, lane) = (at / 32, at / 16 % 2, at % 16);
                // An interleave takes bytes 0..8 and 16..24 (`half` 0) or 8..16 and 24..32.
                let byte = lane % 8 + lane / 8 * 16 + half * 8;
                byte * planes + plane
            }
            Order::Words { planes } => at % 32 * planes + at / 32,
        }
    }

    /// Elements that share a scale: a whole number of groups.
    pub(crate) fn block(self) -> usize {
        self.group().max(128)
    }
}

/// `[m, k]` activations: block `b` of row `r` is `scales[r · blocks + b]` times its integers.
pub(crate) struct Quantized {
    pub(crate) order: Order,
    /// Blocks of a row, the last one filled up with zeros.
    pub(crate) blocks: usize,
    pub(crate) values: Vec<i16>,
    pub(crate) scales: Vec<f32>,
}

impl Quantized {
    /// Rounds rows of `k` numbers. A block with an infinity or a NaN gets the scale NaN.
    pub(crate) fn new(pool: &Pool, order: Order, x: &[f32], k: usize) -> Quantized {
        let (block, rows) = (order.block(), x.len() / k);
        let blocks = k.div_ceil(block);
        let mut values = vec![0; rows * blocks * block];
        let mut scales = vec![0.0; rows * blocks];
        let places: Vec<u8> = (0..order.group()).map(|at| order.element(at) as u8).collect();
        let (all_values, all_scales) = (SharedMut::new(&mut values), SharedMut::new(&mut scales));
        pool.run(rows, |row| {
            // SAFETY: each task writes a row of its own.
            let values = unsafe { all_values.slice(row * blocks * block, blocks * block) };
            let scales = unsafe { all_scales.slice(row * blocks, blocks) };
            let parts = x[row * k..(row + 1) * k].chunks(block).zip(values.chunks_exact_mut(block));
            for ((x, values), scale) in parts.zip(scales) {
                *scale = round_block(x, &places, values);
            }
        });
        Quantized { order, blocks, values, scales }
    }

    /// The integers and the scales of a row.
    pub(crate) fn row(&self, row: usize) -> (&[i16], &[f32]) {
        let len = self.blocks * self.order.block();
        (&self.values[row * len..][..len], &self.scales[row * self.blocks..][..self.blocks])
    }
}

/// Rounds a block (its end may be missing) into `out`, each group in the order of `places`; returns its scale.
fn round_block(x: &[f32], places: &[u8], out: &mut [i16]) -> f32 {
    let most = ACTIVATION_MAX / (out.len() / 128) as f32;
    if places.len() == 1 {
        return round_fast(x, most, out);
    }
    let mut rounded = [0i16; 2 * 256];
    let scale = round_fast(x, most, &mut rounded[..out.len()]);
    for (out, rounded) in out.chunks_exact_mut(places.len()).zip(rounded.windows(256).step_by(places.len())) {
        // A byte is always inside 256 elements: no index is checked in this loop.
        let Ok(rounded) = <&[i16; 256]>::try_from(rounded) else { continue };
        out.iter_mut().zip(places).for_each(|(out, &place)| *out = rounded[usize::from(place)]);
    }
    scale
}

/// [`round`] with the instructions that every integer kernel needs.
pub(crate) fn round_fast(x: &[f32], most: f32, out: &mut [i16]) -> f32 {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma")]
        fn avx2(x: &[f32], most: f32, out: &mut [i16]) -> f32 {
            round(x, most, out)
        }
        if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
            // SAFETY: the processor has the instructions.
            return unsafe { avx2(x, most, out) };
        }
    }
    round(x, most, out)
}

/// Rounds numbers to integers up to `most`, zeros beyond the end of `x`; returns the scale, NaN if a number is infinite
/// or NaN. `out` has a multiple of 16 elements, 256 at most.
#[inline(always)]
pub(crate) fn round(x: &[f32], most: f32, out: &mut [i16]) -> f32 {
    if x.len() == out.len() {
        return round_whole(x, most, out);
    }
    let mut padded = [0.0f32; 256];
    padded[..x.len()].copy_from_slice(x);
    round_whole(&padded[..out.len()], most, out)
}

#[inline(always)]
fn round_whole(x: &[f32], most: f32, out: &mut [i16]) -> f32 {
    // Magnitudes are in the order of their bits, with infinities and NaNs above all numbers. Sixteen running results:
    // this loop becomes vector code.
    let mut largest = [0u32; 16];
    for x in x.chunks_exact(16) {
        for (largest, x) in largest.iter_mut().zip(x) {
            *largest = (*largest).max(x.to_bits() & !SIGN);
        }
    }
    let largest = f32::from_bits(largest.into_iter().fold(0, u32::max));
    let inverse = if largest > 1e-30 { most / largest } else { 0.0 };
    for (out, x) in out.iter_mut().zip(x) {
        // Adding 1.5 · 2^23 leaves the rounded integer in the low bits.
        *out = (x * inverse + 12_582_912.0).to_bits() as i16;
    }
    if largest.is_finite() { largest / most } else { f32::NAN }
}

/// The bit of a float32 that is its sign.
const SIGN: u32 = 1 << 31;

#[cfg(test)]
mod tests {
    use super::super::testing::Random;
    use super::*;

    #[test]
    fn every_order_is_a_permutation_that_keeps_values() {
        let bytes = [1, 2, 4, 8].map(|planes| Order::Bytes { planes });
        let words = [2, 4, 8].map(|planes| Order::Words { planes });
        let orders = [Order::Natural, Order::Nibbles].into_iter().chain(bytes).chain(words);
        let x = Random::new(20).normal(2 * 600);
        for order in orders {
            let quantized = Quantized::new(&Pool::new(2), order, &x, 600);
            for row in 0..2 {
                let (values, scales) = quantized.row(row);
                let mut seen = vec![false; 600];
                for (at, &value) in values.iter().enumerate() {
                    let element = at / order.group() * order.group() + order.element(at % order.group());
                    let expected = x[row * 600..(row + 1) * 600].get(element).copied().unwrap_or(0.0);
                    let found = f32::from(value) * scales[at / order.block()];
                    assert!((found - expected).abs() < 3e-4 * (order.block() / 128) as f32, "{order:?} {at}");
                    if let Some(seen) = seen.get_mut(element) {
                        *seen = true;
                    }
                }
                assert!(seen.iter().all(|&seen| seen), "{order:?}");
            }
        }
    }
}
