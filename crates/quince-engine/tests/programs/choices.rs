//! Decisions made of bytes: those of a fuzzer, which changes them one at a time, or of a small random generator.

use quince_mil::{DType, Result, Tensor};

/// Bytes that are used up from the front; when there are none left every choice is the first one.
pub struct Choices<'a> {
    bytes: &'a [u8],
}

impl<'a> Choices<'a> {
    /// Choices of these bytes.
    pub fn new(bytes: &'a [u8]) -> Choices<'a> {
        Choices { bytes }
    }

    /// Whether there are no bytes left.
    pub fn done(&self) -> bool {
        self.bytes.is_empty()
    }

    /// A whole number below `limit`, which is at most 256.
    pub fn below(&mut self, limit: usize) -> usize {
        let Some((&first, rest)) = self.bytes.split_first() else { return 0 };
        self.bytes = rest;
        usize::from(first) % limit.max(1)
    }

    /// A whole number from `first` to `last`.
    pub fn within(&mut self, first: i64, last: i64) -> i64 {
        first + self.below((last - first + 1).max(1) as usize) as i64
    }

    /// True about once in `n` times.
    pub fn rarely(&mut self, n: usize) -> bool {
        self.below(n) == n - 1
    }

    /// One of several.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// A size along an axis: small, and such that kernels meet whole vectors, what is left over, and nothing.
    pub fn size(&mut self) -> usize {
        self.pick(&[1, 2, 3, 4, 2, 5, 8, 3, 7, 16, 17, 32, 33, 64, 6, 0])
    }

    /// A shape of a rank from `ranks.0` to `ranks.1`, of at most [`MOST_ELEMENTS`].
    pub fn shape(&mut self, ranks: (i64, i64)) -> Vec<usize> {
        let rank = self.within(ranks.0, ranks.1);
        let mut shape = Vec::new();
        for _ in 0..rank {
            let size = self.size();
            let fits = shape.iter().product::<usize>() * size <= MOST_ELEMENTS;
            shape.push(if fits { size } else { 1 });
        }
        shape
    }

    /// A number that divides `n`.
    pub fn divisor(&mut self, n: usize) -> usize {
        let divisors: Vec<usize> = (1..=n.max(1)).filter(|d| n.is_multiple_of(*d)).collect();
        self.pick(&divisors)
    }

    /// A tensor of values that two bytes decide: of what kind, and which.
    pub fn tensor(&mut self, dtype: DType, shape: &[usize]) -> Result<Tensor> {
        let (kind, seed) = (self.below(8), self.below(256) as u64);
        values(dtype, shape, kind, seed)
    }
}

/// No value of a program has more elements.
pub const MOST_ELEMENTS: usize = 1 << 13;

/// A tensor of numbers of a kind: for floats whole numbers, positive ones, large ones and others; for integers small
/// ones, those that are good indices, and any.
pub fn values(dtype: DType, shape: &[usize], kind: usize, seed: u64) -> Result<Tensor> {
    let (count, mut noise) = (shape.iter().product(), Noise::new(seed));
    let mut unit = move || (noise.bits() >> 40) as f64 / (1u64 << 24) as f64;
    if dtype == DType::Bool {
        let share = [0.5, 0.5, 0.9, 0.1, 0.5, 1.1, 0.0, 0.5][kind % 8];
        return Tensor::from_bools(shape, &(0..count).map(|_| unit() < share).collect::<Vec<bool>>());
    }
    if dtype.is_sub_byte() {
        let codes: Vec<u8> = (0..count).map(|_| (unit() * (1 << dtype.bits()) as f64) as u8).collect();
        return Tensor::from_codes(dtype, shape, &codes);
    }
    let mut number = || match kind % 8 {
        0..=2 => 4.0 * unit() - 2.0,
        3 => (7.0 * unit()).floor() - 3.0,
        4 => 0.1 + unit(),
        5 => 200.0 * unit() - 100.0,
        6 => 0.01 * unit(),
        _ => (2.0 * unit()).floor(),
    };
    if dtype.is_float() {
        return Tensor::from_f64(dtype, shape, (0..count).map(|_| number()).collect());
    }
    let (low, high) = dtype.int_range().unwrap_or((0, 255));
    let mut whole = || match kind % 8 {
        0..=3 => (3.0 * unit()) as i64,
        4 => (9.0 * unit()) as i64 - 4,
        5 => low.max(-100) + (unit() * 200.0) as i64,
        6 => 0,
        _ => low + (unit() * (high - low) as f64) as i64,
    };
    Tensor::from_i64(dtype, shape, &(0..count).map(|_| whole().clamp(low, high)).collect::<Vec<i64>>())
}

/// A small random generator (xorshift64*): the same numbers on every machine.
pub struct Noise(u64);

impl Noise {
    /// Numbers of this seed.
    pub fn new(seed: u64) -> Noise {
        Noise((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}
