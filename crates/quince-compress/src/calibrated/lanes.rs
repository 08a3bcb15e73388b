//! Some rows of a weight while their indices are chosen: they are the lanes of panels, in which columns follow each other.

use super::Factor;
use super::matrix::{Step, column, turned};
use quince_kernels::{Isa, LANES, nearest};
use std::ops::Range;

/// How many rows of a weight with so many are worked on together: enough that H is read seldom, and few enough that there is
/// work for all threads.
pub(super) fn lanes_of(rows: usize) -> usize {
    (rows / 16).clamp(LANES, 4 * LANES).next_power_of_two()
}

/// Rows of a weight, its columns in the order of a [`Factor`]. Rows that follow each other share a table; rows of as many
/// tables as there are lanes for are worked on together.
pub(super) struct Lanes<'a> {
    factor: &'a Factor,
    /// The lanes of panels that share a table, in the order of rows.
    segments: Vec<Segment>,
    /// W.
    weight: Vec<f32>,
    /// The index of each element.
    codes: Vec<u8>,
    /// The indices that cost least so far.
    best: Vec<u8>,
    /// W - Q; zero in lanes that are no rows.
    errors: Vec<f32>,
    /// H (W - Q)ᵀ, half of the gradient of the cost.
    gradient: Vec<f32>,
}

/// Lanes of a panel whose rows share a table.
pub(super) struct Segment {
    panel: usize,
    lanes: Range<usize>,
    table: usize,
}

impl Segment {
    /// Of `count` rows, of which every `shared` have a table.
    fn all(count: usize, shared: usize) -> Vec<Segment> {
        let mut segments = Vec::new();
        let mut row = 0;
        while row < count {
            let (panel, table) = (row / LANES, row / shared);
            let end = count.min((panel + 1) * LANES).min((table + 1) * shared);
            segments.push(Segment { panel, lanes: row - panel * LANES..end - panel * LANES, table });
            row = end;
        }
        segments
    }

    /// The first of its rows.
    pub fn first(&self) -> usize {
        self.panel * LANES + self.lanes.start
    }

    /// Where its elements of a column are, in panels of so many columns.
    fn of(&self, column: usize, columns: usize) -> Range<usize> {
        let at = (self.panel * columns + column) * LANES;
        at + self.lanes.start..at + self.lanes.end
    }
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

    fn nearest(&self, values: &[f32], codes: &mut [u8], found: &mut [f32]) {
        nearest(Isa::detect(), &self.midpoints, &self.entries, values, codes, found);
    }
}

impl<'a> Lanes<'a> {
    /// Of rows, each with its columns in the order of the weight, of which every `shared` have a table.
    pub fn new(factor: &'a Factor, rows: &[Vec<f32>], shared: usize) -> Lanes<'a> {
        let sorted = rows.iter().map(|row| factor.order().iter().map(|&column| row[column as usize]));
        let weight = turned(sorted, factor.size());
        let codes = vec![0; weight.len()];
        let (errors, gradient, segments) = (weight.clone(), weight.clone(), Segment::all(rows.len(), shared));
        Lanes { factor, segments, weight, best: codes.clone(), codes, errors, gradient }
    }

    /// The number of tables.
    pub fn tables(&self) -> usize {
        self.segments.last().map_or(0, |segment| segment.table + 1)
    }

    /// The number of columns.
    pub fn columns(&self) -> usize {
        self.factor.size()
    }

    fn of_table(&self, table: usize) -> impl Iterator<Item = &Segment> {
        self.segments.iter().filter(move |segment| segment.table == table)
    }

    /// The elements of the rows of a table in every so many columns, and the importance of each.
    pub fn elements(&self, table: usize, every: usize) -> impl Iterator<Item = (f32, f64)> {
        let n = self.factor.size();
        self.of_table(table).flat_map(move |segment| {
            (0..n).step_by(every).flat_map(move |column| {
                let importance = f64::from(self.factor.diagonal(column));
                self.weight[segment.of(column, n)].iter().map(move |&value| (value, importance))
            })
        })
    }

    /// The best indices of a row, its columns in the order of the weight.
    pub fn row_codes(&self, row: usize) -> Vec<u8> {
        let n = self.factor.size();
        let mut codes = vec![0; n];
        let best = column(&self.best, row, n);
        self.factor.order().iter().zip(best).for_each(|(column, code)| codes[*column as usize] = code);
        codes
    }

    /// Keeps the indices of a table as the best.
    pub fn keep(&mut self, table: usize) {
        let n = self.factor.size();
        for segment in self.segments.iter().filter(|segment| segment.table == table) {
            for column in 0..n {
                let at = segment.of(column, n);
                self.best[at.clone()].copy_from_slice(&self.codes[at]);
            }
        }
    }

    /// Gives the entries of a table other indices.
    pub fn renumber(&mut self, table: usize, new: &[u8]) {
        let n = self.factor.size();
        for segment in self.segments.iter().filter(|segment| segment.table == table) {
            for column in 0..n {
                self.codes[segment.of(column, n)].iter_mut().for_each(|code| *code = new[usize::from(*code)]);
            }
        }
    }

    /// Chooses indices column by column, from the last to the first: each is the nearest to what would make up for the
    /// errors so far, w_j + Σ_{i > j} (w_i - q_i) L_ij.
    pub fn round(&mut self, tables: &[Table]) {
        self.round_to(|segment, _, values, codes, found| tables[segment.table].nearest(values, codes, found));
    }

    /// The same where `nearest` gives, for lanes, a column in the order of the weight and values, the indices and the values
    /// that elements may become.
    pub fn round_to(&mut self, nearest: impl Fn(&Segment, usize, &[f32], &mut [u8], &mut [f32])) {
        let n = self.factor.size();
        let mut wanted = self.weight.clone();
        for step in Step::backwards(n) {
            let j = match step {
                Step::Add { rows, terms } => {
                    self.factor.triangles().multiply(1.0, &rows, &terms, &self.errors, &mut wanted);
                    continue;
                }
                Step::Row(j) => j,
            };
            let column = self.factor.order()[j] as usize;
            for segment in &self.segments {
                let (at, mut found) = (segment.of(j, n), [0.0; LANES]);
                let found = &mut found[..at.len()];
                nearest(segment, column, &wanted[at.clone()], &mut self.codes[at.clone()], found);
                let errors = self.errors[at.clone()].iter_mut().zip(&self.weight[at]);
                errors.zip(found).for_each(|((error, weight), found)| *error = weight - *found);
            }
        }
    }

    /// Takes errors and gradient anew.
    pub fn measure(&mut self, tables: &[Table]) {
        self.take_errors(tables);
        self.gradient.fill(0.0);
        let all = 0..self.factor.size();
        self.factor.moments().multiply(1.0, &all, &all, &self.errors, &mut self.gradient);
    }

    /// Takes errors anew: W - Q.
    pub fn take_errors(&mut self, tables: &[Table]) {
        let n = self.factor.size();
        for segment in &self.segments {
            let entries = &tables[segment.table].entries;
            for column in 0..n {
                let at = segment.of(column, n);
                let elements = self.errors[at.clone()].iter_mut().zip(&self.weight[at.clone()]).zip(&self.codes[at]);
                elements.for_each(|((error, weight), &code)| *error = weight - entries[usize::from(code)]);
            }
        }
    }

    /// What the errors of each table cost: tr((W - Q) H (W - Q)ᵀ), from errors and gradient as they are.
    pub fn costs(&self) -> Vec<f64> {
        let n = self.factor.size();
        let mut costs = vec![0.0; self.tables()];
        for segment in &self.segments {
            for column in 0..n {
                let at = segment.of(column, n);
                let products = self.errors[at.clone()].iter().zip(&self.gradient[at]);
                costs[segment.table] +=
                    products.map(|(error, gradient)| f64::from(*error) * f64::from(*gradient)).sum::<f64>();
            }
        }
        costs
    }

    /// Gives each element in turn the index that costs least while all others stay. The gradient must be that of the
    /// tables, and is so afterwards.
    pub fn descend(&mut self, tables: &[Table]) {
        let (n, moments) = (self.factor.size(), self.factor.moments());
        let mut steps = vec![0.0; self.codes.len()];
        for step in Step::backwards(n) {
            let j = match step {
                Step::Add { rows, terms } => {
                    moments.multiply(-1.0, &rows, &terms, &steps, &mut self.gradient);
                    continue;
                }
                Step::Row(j) => j,
            };
            let scale = 1.0 / self.factor.diagonal(j);
            for segment in &self.segments {
                let (at, table) = (segment.of(j, n), &tables[segment.table]);
                let (mut values, mut found) = ([0.0; LANES], [0.0; LANES]);
                let (values, found) = (&mut values[..at.len()], &mut found[..at.len()]);
                let (codes, steps) = (&mut self.codes[at.clone()], &mut steps[at.clone()]);
                steps.iter_mut().zip(&*codes).for_each(|(step, code)| *step = table.entries[usize::from(*code)]);
                let elements = values.iter_mut().zip(&*steps).zip(&self.gradient[at]);
                elements.for_each(|((value, old), gradient)| *value = old + gradient * scale);
                table.nearest(values, codes, found);
                steps.iter_mut().zip(found).for_each(|(step, found)| *step = *found - *step);
            }
        }
        // What steps changed for columns after their own, and for these.
        for step in Step::forwards(n) {
            match step {
                Step::Add { rows, terms } => moments.multiply(-1.0, &rows, &terms, &steps, &mut self.gradient),
                Step::Row(j) => moments.multiply(-1.0, &(j..j + 1), &(j..j + 1), &steps, &mut self.gradient),
            }
        }
        self.take_errors(tables);
    }

    /// Sᵀ (H (W - Q)ᵀ): by table and entry, the sum of the gradient over the elements that have its index.
    pub fn slopes(&self, entries: usize) -> Vec<f64> {
        self.gathered(&self.gradient, entries)
    }

    /// H S d, and Sᵀ H S d: how gradient and slopes change when the entries of the tables move by -d.
    pub fn curvature(&self, direction: &[f64], entries: usize) -> (Vec<f32>, Vec<f64>) {
        let n = self.factor.size();
        let mut moved = vec![0.0; self.codes.len()];
        for segment in &self.segments {
            let direction = &direction[segment.table * entries..][..entries];
            for column in 0..n {
                let at = segment.of(column, n);
                let moved = moved[at.clone()].iter_mut().zip(&self.codes[at]);
                moved.for_each(|(moved, code)| *moved = direction[usize::from(*code)] as f32);
            }
        }
        let mut product = vec![0.0; moved.len()];
        self.factor.moments().multiply(1.0, &(0..n), &(0..n), &moved, &mut product);
        let slopes = self.gathered(&product, entries);
        (product, slopes)
    }

    /// Takes from the gradient `lengths` of each table times a product of [`Lanes::curvature`].
    pub fn move_gradient(&mut self, lengths: &[f64], product: &[f32]) {
        let n = self.factor.size();
        for segment in &self.segments {
            let length = lengths[segment.table] as f32;
            for column in 0..n {
                let at = segment.of(column, n);
                let gradient = self.gradient[at.clone()].iter_mut().zip(&product[at]);
                gradient.for_each(|(gradient, product)| *gradient -= length * product);
            }
        }
    }

    /// The diagonal of H summed over the elements that have each index, by table and entry.
    pub fn masses(&self, entries: usize) -> Vec<f64> {
        let n = self.factor.size();
        let mut masses = vec![0.0; self.tables() * entries];
        for segment in &self.segments {
            let masses = &mut masses[segment.table * entries..][..entries];
            for column in 0..n {
                let mass = f64::from(self.factor.diagonal(column));
                self.codes[segment.of(column, n)].iter().for_each(|&code| masses[usize::from(code)] += mass);
            }
        }
        masses
    }

    /// Sums of values over the elements that have each index, by table and entry.
    fn gathered(&self, values: &[f32], entries: usize) -> Vec<f64> {
        let n = self.factor.size();
        let mut sums = vec![0.0; self.tables() * entries];
        for segment in &self.segments {
            let sums = &mut sums[segment.table * entries..][..entries];
            for column in 0..n {
                let at = segment.of(column, n);
                let elements = self.codes[at.clone()].iter().zip(&values[at]);
                elements.for_each(|(&code, &value)| sums[usize::from(code)] += f64::from(value));
            }
        }
        sums
    }
}
