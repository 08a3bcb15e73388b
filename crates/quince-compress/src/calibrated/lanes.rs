//! Some rows of a weight while their indices are chosen: columns lie one after the other, so that the rows are lanes.

use super::Factor;
use super::matrix::{View, multiply};

/// Columns that are gone through one by one, between products with all of them.
const BLOCK: usize = 64;

/// How many rows of a weight with so many are worked on together: enough that arranging H for products with them costs little
/// beside the products, and few enough that there is work for all threads.
pub(super) fn lanes_of(rows: usize) -> usize {
    (rows / 16).clamp(32, 128).next_power_of_two()
}

/// Rows of a weight, its columns in the order of a [`Factor`]. Rows that follow each other share a table; rows of as many
/// tables as there are lanes for are worked on together.
pub(super) struct Lanes<'a> {
    factor: &'a Factor,
    /// How many rows.
    count: usize,
    /// How many of them share a table; the last ones may be fewer.
    shared: usize,
    /// n x count.
    weight: Vec<f32>,
    /// n x count: the index of each element.
    codes: Vec<u8>,
    /// n x count: the indices that cost least so far.
    best: Vec<u8>,
    /// n x count: W - Q.
    errors: Vec<f32>,
    /// n x count: H (W - Q)ᵀ, half of the gradient of the cost.
    gradient: Vec<f32>,
}

/// A table with what finds the nearest entry.
pub(super) struct Table {
    pub entries: Vec<f32>,
    midpoints: Vec<f32>,
}

impl Table {
    /// Of entries that ascend.
    pub fn new(entries: Vec<f32>) -> Table {
        let midpoints = entries.windows(2).map(|pair| 0.5 * pair[0] + 0.5 * pair[1]).collect();
        Table { entries, midpoints }
    }

    fn nearest(&self, value: f32) -> u8 {
        match self.midpoints.len() < 16 {
            true => self.midpoints.iter().map(|&m| u8::from(m < value)).sum(),
            false => self.midpoints.partition_point(|&m| m < value) as u8,
        }
    }
}

impl<'a> Lanes<'a> {
    /// Of rows, each with its columns in the order of the weight, of which every `shared` have a table.
    pub fn new(factor: &'a Factor, rows: &[Vec<f32>], shared: usize) -> Lanes<'a> {
        let (n, count) = (factor.size(), rows.len());
        let mut weight = vec![0.0; n * count];
        for (column, out) in factor.order().iter().zip(weight.chunks_exact_mut(count.max(1))) {
            out.iter_mut().zip(rows).for_each(|(out, row)| *out = row[*column as usize]);
        }
        let codes = vec![0; weight.len()];
        let (errors, gradient) = (weight.clone(), weight.clone());
        Lanes { factor, count, shared, weight, best: codes.clone(), codes, errors, gradient }
    }

    /// The number of tables.
    pub fn tables(&self) -> usize {
        self.count.div_ceil(self.shared)
    }

    /// The elements of the rows of a table, and the importance of each.
    pub fn elements(&self, table: usize) -> impl Iterator<Item = (f32, f64)> {
        let lanes = self.lanes(table);
        let columns = self.weight.chunks_exact(self.count).enumerate();
        columns.flat_map(move |(column, values)| {
            let importance = f64::from(self.factor.diagonal(column));
            values[lanes.clone()].iter().map(move |&value| (value, importance))
        })
    }

    fn lanes(&self, table: usize) -> std::ops::Range<usize> {
        table * self.shared..self.count.min((table + 1) * self.shared)
    }

    /// The best indices of a row, its columns in the order of the weight.
    pub fn row_codes(&self, row: usize) -> Vec<u8> {
        let mut codes = vec![0; self.factor.size()];
        for (column, lane) in self.factor.order().iter().zip(self.best.chunks_exact(self.count)) {
            codes[*column as usize] = lane[row];
        }
        codes
    }

    /// Keeps the indices of a table as the best.
    pub fn keep(&mut self, table: usize) {
        let lanes = self.lanes(table);
        for (best, codes) in self.best.chunks_exact_mut(self.count).zip(self.codes.chunks_exact(self.count)) {
            best[lanes.clone()].copy_from_slice(&codes[lanes.clone()]);
        }
    }

    /// Gives the entries of a table other indices.
    pub fn renumber(&mut self, table: usize, new: &[u8]) {
        let lanes = self.lanes(table);
        for codes in self.codes.chunks_exact_mut(self.count) {
            codes[lanes.clone()].iter_mut().for_each(|code| *code = new[usize::from(*code)]);
        }
    }

    /// Chooses indices column by column, from the last to the first: each is the nearest to what would make up for the
    /// errors so far, w_j + Σ_{i > j} (w_i - q_i) L_ij.
    pub fn round(&mut self, tables: &[Table]) {
        let shared = self.shared;
        self.round_to(|lane, _, value| {
            let table = &tables[lane / shared];
            let code = table.nearest(value);
            (code, table.entries[usize::from(code)])
        });
    }

    /// The same where `nearest` gives, for a row, a column in the order of the weight and a value, the index and the value
    /// that an element may become.
    pub fn round_to(&mut self, nearest: impl Fn(usize, usize, f32) -> (u8, f32)) {
        let (n, count) = (self.factor.size(), self.count);
        let lower = self.factor.lower();
        let mut wanted = vec![0.0; BLOCK * count];
        for first in (0..n).step_by(BLOCK).rev() {
            let end = n.min(first + BLOCK);
            let wanted = &mut wanted[..(end - first) * count];
            wanted.copy_from_slice(&self.weight[first * count..end * count]);
            // Errors of the columns after the block.
            let left = View::new(&lower[(end * n + first).min(lower.len())..], n - end, end - first, n).transposed();
            let right = View::new(&self.errors[end * count..], n - end, count, count);
            multiply(1.0, left, right, 1.0, wanted, count);
            for j in (first..end).rev() {
                let (before, now) = wanted.split_at_mut((j - first) * count);
                let (at, column) = (j * count, self.factor.order()[j] as usize);
                for (lane, &value) in now[..count].iter().enumerate() {
                    let (code, entry) = nearest(lane, column, value);
                    self.codes[at + lane] = code;
                    self.errors[at + lane] = self.weight[at + lane] - entry;
                }
                let errors = &self.errors[at..at + count];
                for (wanted, &l) in before.chunks_exact_mut(count).zip(&lower[j * n + first..]) {
                    wanted.iter_mut().zip(errors).for_each(|(wanted, error)| *wanted += l * error);
                }
            }
        }
    }

    /// Takes errors and gradient anew, and says what they cost for each table: tr((W - Q) H (W - Q)ᵀ).
    pub fn costs(&mut self, tables: &[Table]) -> Vec<f64> {
        let (n, count, shared) = (self.factor.size(), self.count, self.shared);
        for (i, ((error, weight), &code)) in self.errors.iter_mut().zip(&self.weight).zip(&self.codes).enumerate() {
            *error = weight - tables[i % count / shared].entries[usize::from(code)];
        }
        let (moments, errors) = (View::new(self.factor.moments(), n, n, n), View::new(&self.errors, n, count, count));
        multiply(1.0, moments, errors, 0.0, &mut self.gradient, count);
        let mut costs = vec![0.0; self.tables()];
        for (i, (&error, &gradient)) in self.errors.iter().zip(&self.gradient).enumerate() {
            costs[i % count / shared] += f64::from(error) * f64::from(gradient);
        }
        costs
    }

    /// Gives each element in turn the index that costs least while all others stay. The gradient must be that of the
    /// tables, and is so afterwards.
    pub fn descend(&mut self, tables: &[Table]) {
        let (n, count, shared) = (self.factor.size(), self.count, self.shared);
        let moments = self.factor.moments();
        let mut steps = vec![0.0; BLOCK * count];
        for first in (0..n).step_by(BLOCK).rev() {
            let end = n.min(first + BLOCK);
            let steps = &mut steps[..(end - first) * count];
            steps.fill(0.0);
            let mut local = self.gradient[first * count..end * count].to_vec();
            for j in (first..end).rev() {
                let row = &moments[j * n..(j + 1) * n];
                let (at, inside) = (j * count, (j - first) * count);
                for lane in 0..count {
                    let table = &tables[lane / shared];
                    let old = table.entries[usize::from(self.codes[at + lane])];
                    let code = table.nearest(old + local[inside + lane] / row[j]);
                    self.codes[at + lane] = code;
                    steps[inside + lane] = table.entries[usize::from(code)] - old;
                }
                let step = &steps[inside..inside + count];
                if step.iter().any(|&step| step != 0.0) {
                    for (local, &h) in local.chunks_exact_mut(count).zip(&row[first..end]) {
                        local.iter_mut().zip(step).for_each(|(local, step)| *local -= h * step);
                    }
                }
            }
            if steps.iter().any(|&step| step != 0.0) {
                let left = View::new(&moments[first..], n, end - first, n);
                multiply(-1.0, left, View::new(steps, end - first, count, count), 1.0, &mut self.gradient, count);
            }
        }
    }

    /// Sᵀ (H (W - Q)ᵀ): by table and entry, the sum of the gradient over the elements that have its index.
    pub fn slopes(&self, entries: usize) -> Vec<f64> {
        self.gathered(&self.gradient, entries)
    }

    /// Sᵀ H S d: how the slopes change when the entries of the tables move by d.
    pub fn curvature(&self, direction: &[f64], entries: usize) -> Vec<f64> {
        let (n, count) = (self.factor.size(), self.count);
        let moved = |(i, &code): (usize, &u8)| direction[self.entry(i, code, entries)] as f32;
        let moved: Vec<f32> = self.codes.iter().enumerate().map(moved).collect();
        let mut product = vec![0.0; n * count];
        let moments = View::new(self.factor.moments(), n, n, n);
        multiply(1.0, moments, View::new(&moved, n, count, count), 0.0, &mut product, count);
        self.gathered(&product, entries)
    }

    /// The diagonal of H summed over the elements that have each index, by table and entry.
    pub fn masses(&self, entries: usize) -> Vec<f64> {
        let mut masses = vec![0.0; self.tables() * entries];
        for (i, &code) in self.codes.iter().enumerate() {
            masses[self.entry(i, code, entries)] += f64::from(self.factor.diagonal(i / self.count));
        }
        masses
    }

    /// Sums of values over the elements that have each index, by table and entry.
    fn gathered(&self, values: &[f32], entries: usize) -> Vec<f64> {
        let mut sums = vec![0.0; self.tables() * entries];
        for (i, (&code, &value)) in self.codes.iter().zip(values).enumerate() {
            sums[self.entry(i, code, entries)] += f64::from(value);
        }
        sums
    }

    /// Where the entry of an element is among those of all tables.
    fn entry(&self, element: usize, code: u8, entries: usize) -> usize {
        element % self.count / self.shared * entries + usize::from(code)
    }
}
