//! What the machine can do at most: how fast it reads memory, and how fast it multiplies and adds.
//!
//! A benchmark is worth little without them: a decoder cannot be faster than its weights are read, a prompt not faster
//! than its products are computed. Both are measured with the threads of the engine and the instructions of its kernels.

use super::simd::{Simd, for_isa};
use super::{Isa, Kernels};
use quince_tensor::{Result, zeroed};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// What was measured.
#[derive(Clone, PartialEq, Debug)]
pub struct Limits {
    /// Bytes that all threads together read in a second from memory that no cache holds.
    pub read_bytes_per_second: f64,
    /// Peaks of arithmetic, float32 first.
    pub arithmetic: Vec<ArithmeticPeak>,
}

/// The rate of one kind of arithmetic when nothing but registers is used.
#[derive(Clone, PartialEq, Debug)]
pub struct ArithmeticPeak {
    /// What is multiplied: `float32`, `int16`, `int8`.
    pub kind: &'static str,
    /// Multiplications and additions, counted separately, that all threads together do in a second.
    pub operations_per_second: f64,
}

/// Bytes that are read: several times the largest caches.
const BUFFER: usize = 256 << 20;
/// How long each measurement takes, not counting the first run.
const TIME: Duration = Duration::from_millis(150);
/// Rounds of a task's loop of multiplications: some tens of microseconds.
const ROUNDS: usize = 20_000;

/// Measures, in about a second.
///
/// # Errors
/// When there is no memory for the buffer that is read.
pub fn limits(threads: usize) -> Result<Limits> {
    let kernels = Kernels::new(threads);
    let float32 = rate(&kernels, |isa| for_isa!(isa, multiply_floats() -> f64));
    let mut arithmetic = vec![ArithmeticPeak { kind: "float32", operations_per_second: float32 }];
    arithmetic.extend(integer_peak(&kernels));
    Ok(Limits { read_bytes_per_second: read_rate(&kernels)?, arithmetic })
}

fn read_rate(kernels: &Kernels) -> Result<f64> {
    let mut data: Vec<f32> = zeroed(BUFFER / size_of::<f32>())?;
    // Pages that nothing was written to are all the same one.
    data.fill(1.0);
    let pieces: Vec<&[f32]> = data.chunks(1 << 18).collect();
    let best = shortest(|| {
        kernels.pool.run(pieces.len(), |i| {
            black_box(for_isa!(kernels.isa, read(x: &[f32] = pieces[i]) -> f32));
        });
    });
    Ok(BUFFER as f64 / best)
}

/// Operations per second, if each call of `work` does as many as it says.
fn rate(kernels: &Kernels, work: impl Fn(Isa) -> f64 + Sync) -> f64 {
    let tasks = 16 * kernels.pool.threads();
    let per_task = work(kernels.isa);
    let best = shortest(|| {
        kernels.pool.run(tasks, |_| {
            black_box(work(kernels.isa));
        });
    });
    per_task * tasks as f64 / best
}

/// Seconds of the shortest run of several.
fn shortest(mut run: impl FnMut()) -> f64 {
    run();
    let (start, mut best) = (Instant::now(), f64::INFINITY);
    while start.elapsed() < TIME {
        let call = Instant::now();
        run();
        best = best.min(call.elapsed().as_secs_f64());
    }
    best
}

/// The largest number, so that every number has to be read.
#[inline(always)]
unsafe fn read<S: Simd>(x: &[f32]) -> f32 {
    // SAFETY: the caller vouches for the instructions, and chunks have room for four vectors.
    unsafe {
        let mut largest = [S::splat(0.0); 4];
        for chunk in x.chunks_exact(4 * S::LANES) {
            for (i, largest) in largest.iter_mut().enumerate() {
                *largest = S::load(chunk.as_ptr().add(i * S::LANES)).max(*largest);
            }
        }
        largest[0].max(largest[1]).max(largest[2].max(largest[3])).reduce_max()
    }
}

/// Multiplies and adds in as many registers as a product of matrices does; gives how many operations that were.
#[inline(always)]
unsafe fn multiply_floats<S: Simd>() -> f64 {
    // SAFETY: the caller vouches for the instructions.
    unsafe {
        match S::TILE_ROWS {
            12 => multiply_floats_in::<S, 24>(),
            6 => multiply_floats_in::<S, 12>(),
            _ => multiply_floats_in::<S, 6>(),
        }
    }
}

#[inline(always)]
unsafe fn multiply_floats_in<S: Simd, const SUMS: usize>() -> f64 {
    // SAFETY: the caller vouches for the instructions.
    unsafe {
        let a = S::splat(black_box(0.5));
        let mut sums = [a; SUMS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = sum.mul_add(a, a);
            }
        }
        let mut total = a;
        for sum in sums {
            total = total.add(sum);
        }
        black_box(total.reduce_add());
    }
    (2 * ROUNDS * SUMS * S::LANES) as f64
}

/// The rate of the widest integer dot product that kernels use.
#[cfg(target_arch = "x86_64")]
fn integer_peak(kernels: &Kernels) -> Option<ArithmeticPeak> {
    if kernels.isa == Isa::Avx512 && is_x86_feature_detected!("avx512vnni") {
        // SAFETY: the processor has the instructions.
        let operations_per_second = rate(kernels, |_| unsafe { multiply_bytes() });
        return Some(ArithmeticPeak { kind: "int8", operations_per_second });
    }
    if matches!(kernels.isa, Isa::Avx2 | Isa::Avx512) {
        // SAFETY: the processor has the instructions.
        let operations_per_second = rate(kernels, |_| unsafe { multiply_words() });
        return Some(ArithmeticPeak { kind: "int16", operations_per_second });
    }
    None
}

#[cfg(not(target_arch = "x86_64"))]
fn integer_peak(_: &Kernels) -> Option<ArithmeticPeak> {
    None
}

/// Dot products of pairs of 16-bit integers, added to 32 bits.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn multiply_words() -> f64 {
    use std::arch::x86_64::{__m256i, _mm256_add_epi32, _mm256_extract_epi32, _mm256_madd_epi16, _mm256_set1_epi16};
    const SUMS: usize = 12;
    let b = _mm256_set1_epi16(black_box(3));
    let mut sums: [__m256i; SUMS] = [b; SUMS];
    for _ in 0..ROUNDS {
        for sum in &mut sums {
            // The product depends on the sum, so that it is computed each time.
            *sum = _mm256_add_epi32(_mm256_madd_epi16(*sum, b), b);
        }
    }
    for sum in sums {
        black_box(_mm256_extract_epi32::<0>(sum));
    }
    (2 * ROUNDS * SUMS * 16) as f64
}

/// Dot products of four 8-bit integers, added to 32 bits.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
fn multiply_bytes() -> f64 {
    use std::arch::x86_64::{__m512i, _mm512_castsi512_si128, _mm512_dpbusd_epi32, _mm512_set1_epi8};
    const SUMS: usize = 24;
    let mut b = _mm512_set1_epi8(black_box(3));
    let mut sums: [__m512i; SUMS] = [b; SUMS];
    for _ in 0..ROUNDS / 4 {
        for _ in 0..4 {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, b, b);
            }
        }
        // Without this the sum of equal products would be one multiplication. It is not of the sums: these stay in registers.
        b = black_box(b);
    }
    for sum in sums {
        black_box(_mm512_castsi512_si128(sum));
    }
    (2 * ROUNDS * SUMS * 64) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_those_of_a_machine() {
        let found = limits(1).unwrap();
        assert!((1e8..1e13).contains(&found.read_bytes_per_second), "{found:?}");
        assert_eq!(found.arithmetic[0].kind, "float32");
        assert!(found.arithmetic.iter().all(|peak| (1e8..1e14).contains(&peak.operations_per_second)), "{found:?}");
    }
}
