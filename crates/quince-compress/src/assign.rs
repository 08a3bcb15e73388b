//! From elements to indices of the nearest table entry.

use crate::bits::BitWriter;
use crate::kmeans::{Nearest, Points};
use crate::values::{Half, Values};
use quince_tensor::{Result, bail};

const PATTERNS: usize = 1 << 16;
const SIGN: u16 = 0x8000;

/// The bit patterns that occur among 16-bit floats, and the index of each.
pub(crate) struct Distinct {
    half: Half,
    /// How often each bit pattern was counted since the last [`Distinct::points`].
    counts: Box<[u32; PATTERNS]>,
    total: u64,
    /// The greatest pattern counted, without its sign.
    greatest: u16,
    /// The patterns that occur, by value.
    patterns: Vec<u16>,
    /// The index of each pattern that occurs.
    codes: Box<[u8; PATTERNS]>,
}

impl Default for Distinct {
    fn default() -> Self {
        let (counts, codes) = (Box::new([0; PATTERNS]), Box::new([0; PATTERNS]));
        Self { half: Half::F16, counts, total: 0, greatest: 0, patterns: Vec::new(), codes }
    }
}

impl Distinct {
    /// Counts 16-bit elements, of which the first is element `first` of the weight; others not at all.
    ///
    /// # Errors
    /// When an element is not finite, or 2^32 elements would share a table.
    pub(crate) fn count(&mut self, values: Values<'_>, first: usize) -> Result<()> {
        let Values::Half(bits, half) = values else { return Ok(()) };
        let greatest = bits.iter().fold(0, |max, b| (b & !SIGN).max(max));
        if greatest >= half.infinity() {
            let i = bits.iter().position(|b| b & !SIGN == greatest).unwrap_or(0);
            bail!("element {} is {}, expected a finite number", first + i, half.value(bits[i]));
        }
        self.total += bits.len() as u64;
        if self.total > u64::from(u32::MAX) {
            bail!("{} elements share one table, expected fewer than 2^32", self.total);
        }
        for &bits in bits {
            self.counts[usize::from(bits)] += 1;
        }
        self.half = half;
        self.greatest = self.greatest.max(greatest);
        Ok(())
    }

    /// Adds what another has counted; the totals together must stay below 2^32.
    pub(crate) fn merge(&mut self, other: &Self) -> Result<()> {
        self.total += other.total;
        if self.total > u64::from(u32::MAX) {
            bail!("{} elements share one table, expected fewer than 2^32", self.total);
        }
        if other.total > 0 {
            self.half = other.half;
        }
        self.counts.iter_mut().zip(other.counts.iter()).for_each(|(a, b)| *a += b);
        self.greatest = self.greatest.max(other.greatest);
        Ok(())
    }

    /// The values counted, each with its number; the next count begins anew.
    pub(crate) fn points(&mut self) -> Points {
        let end = usize::from(self.greatest) + 1;
        self.patterns.clear();
        let mut points = Points::default();
        // Without their signs, patterns are ordered as the magnitudes are.
        for range in [usize::from(SIGN)..usize::from(SIGN) + end, 0..end] {
            let first = self.patterns.len();
            for (eight, counts) in self.counts[range.clone()].chunks(8).enumerate() {
                if counts.iter().any(|&count| count > 0) {
                    let base = range.start + eight * 8;
                    let occurring = (0..counts.len()).filter(|&i| counts[i] > 0);
                    self.patterns.extend(occurring.map(|i| (base + i) as u16));
                }
            }
            if range.start > 0 {
                self.patterns[first..].reverse();
            }
        }
        for &pattern in &self.patterns {
            let count = std::mem::take(&mut self.counts[usize::from(pattern)]);
            points.push(f64::from(self.half.value(pattern)), f64::from(count));
        }
        (self.total, self.greatest) = (0, 0);
        points
    }

    /// Gives each pattern that occurs the index of the nearest of `entries`, which ascend.
    pub(crate) fn assign(&mut self, entries: &[f64]) {
        let mut nearest = Nearest::new(entries);
        for &pattern in &self.patterns {
            self.codes[usize::from(pattern)] = nearest.advance(f64::from(self.half.value(pattern))) as u8;
        }
    }

    /// Writes the indices of elements whose patterns were counted.
    pub(crate) fn encode(&self, values: Values<'_>, out: &mut BitWriter<'_>) {
        if let Values::Half(bits, _) = values {
            out.extend(bits, |bits| self.codes[usize::from(bits)]);
        }
    }
}

/// The midpoints between table entries: an element's index is the number of midpoints below it.
pub(crate) struct Thresholds {
    /// One less than a power of two of them; infinity after the last.
    midpoints: Vec<f64>,
}

impl Thresholds {
    /// For at most 256 `entries`, which ascend.
    pub(crate) fn new(entries: &[f64]) -> Self {
        let mut midpoints: Vec<f64> = entries.windows(2).map(|pair| 0.5 * pair[0] + 0.5 * pair[1]).collect();
        midpoints.resize((midpoints.len() + 1).next_power_of_two() - 1, f64::INFINITY);
        Self { midpoints }
    }

    /// Writes the indices of the nearest entries; of two at the same distance the lower.
    pub(crate) fn encode(&self, values: Values<'_>, out: &mut BitWriter<'_>) {
        match values {
            Values::Half(bits, half) => out.extend(bits, |bits| self.index(half.value(bits))),
            Values::Single(values) => out.extend(values, |value| self.index(value)),
        }
    }

    /// Binary search whose steps do not depend on the data, so that none is mispredicted.
    fn index(&self, value: f32) -> u8 {
        let (value, mut below, mut step) = (f64::from(value), 0, self.midpoints.len().div_ceil(2));
        while step > 0 {
            below += step * usize::from(self.midpoints[below + step - 1] < value);
            step /= 2;
        }
        below as u8
    }
}
