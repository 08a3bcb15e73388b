//! Products with columns that lie side by side in panels, for matrices that nothing is laid out for.
//!
//! A panel has [`LANES`] columns, row after row. The left side is read where it lies, one element for all lanes, so that many
//! products of a large matrix with few columns cost no more than their arithmetic: nothing is packed. Every element adds its
//! terms in their order, block by block.

use super::Isa;
use super::simd::{Simd, for_isa};

/// Columns of a panel.
pub const LANES: usize = 32;
/// Terms of a sum that are taken at a time: those of a panel stay in the first-level cache.
const TERMS: usize = 256;
/// Rows that pass by a panel before the next: what is taken of them stays in the second-level cache.
const ROWS: usize = 96;
/// The midpoints of a table up to which all are compared with; more are searched.
const COMPARED: usize = 63;

/// A matrix whose rows and terms lie at regular distances.
#[derive(Clone, Copy, Debug)]
pub struct Strided<'a> {
    /// Its elements.
    pub data: &'a [f32],
    /// From a row to the next.
    pub row: usize,
    /// From a term of a row to the next.
    pub term: usize,
}

/// Sizes of a product of a matrix with columns in panels, and how these lie.
#[derive(Clone, Copy, Debug)]
pub struct PanelSizes {
    /// Rows of the left side and of the result.
    pub rows: usize,
    /// Terms of each sum: rows of the panels on the right.
    pub terms: usize,
    /// Columns: the last panel may have fewer than [`LANES`] that count.
    pub columns: usize,
    /// From a panel of the right side to the next.
    pub right: usize,
    /// From a row of the result to the next.
    pub row: usize,
    /// From a panel of the result to the next.
    pub panel: usize,
}

/// `y += scale · a · x`: `y[p][i][l] += scale · Σ_t a[i][t] · x[p][t][l]` for all panels p, rows i and lanes l. Lanes of the
/// last panel that do not count are read, and not written.
///
/// # Panics
/// When a slice ends before what the sizes reach.
pub fn multiply_panels(isa: Isa, sizes: PanelSizes, scale: f32, a: Strided, x: &[f32], y: &mut [f32]) {
    let PanelSizes { rows, terms, columns, right, row, panel } = sizes;
    if rows == 0 || terms == 0 || columns == 0 {
        return;
    }
    let last = columns.div_ceil(LANES) - 1;
    let reach = [
        (a.data.len(), (rows - 1) * a.row + (terms - 1) * a.term + 1),
        (x.len(), last * right + terms * LANES),
        (y.len(), last * panel + (rows - 1) * row + columns - last * LANES),
        (y.len(), if last > 0 { (last - 1) * panel + (rows - 1) * row + LANES } else { 0 }),
    ];
    assert!(reach.iter().all(|(found, reach)| found >= reach), "{sizes:?}: found and reached elements {reach:?}");
    assert!(last == 0 || row >= LANES || panel >= (rows - 1) * row + LANES, "{sizes:?}: panels lie in each other");
    // SAFETY: `a`, `x` and `y` have all elements that the sizes and distances reach, as was just checked.
    for_isa!(isa, multiply_generic(sizes: PanelSizes = sizes, scale: f32 = scale, a: Strided<'_> = a, x: &[f32] = x,
        y: &mut [f32] = y));
}

#[inline(always)]
unsafe fn multiply_generic<S: Simd>(sizes: PanelSizes, scale: f32, a: Strided<'_>, x: &[f32], y: &mut [f32]) {
    for first in (0..sizes.terms).step_by(TERMS) {
        let terms = TERMS.min(sizes.terms - first);
        for block in (0..sizes.rows).step_by(ROWS) {
            let end = sizes.rows.min(block + ROWS);
            for panel in 0..sizes.columns.div_ceil(LANES) {
                let mut row = block;
                while row < end {
                    let tile = Tile { sizes, scale, a, first, terms, row, panel };
                    // SAFETY: as the caller vouches; a tile has no more rows than are left.
                    row += unsafe {
                        match S::TILE_ROWS.min(end - row) {
                            12.. => tile.run::<S, 12>(x, y),
                            8.. => tile.run::<S, 8>(x, y),
                            6.. => tile.run::<S, 6>(x, y),
                            4.. => tile.run::<S, 4>(x, y),
                            3 => tile.run::<S, 3>(x, y),
                            2 => tile.run::<S, 2>(x, y),
                            _ => tile.run::<S, 1>(x, y),
                        }
                    };
                }
            }
        }
    }
}

/// Some rows and terms of a product, and a panel.
struct Tile<'a> {
    sizes: PanelSizes,
    scale: f32,
    a: Strided<'a>,
    /// The first term, and how many.
    first: usize,
    terms: usize,
    /// The first row.
    row: usize,
    panel: usize,
}

impl Tile<'_> {
    /// Adds `ROWS` rows to the panel of the result; says how many.
    #[inline(always)]
    unsafe fn run<S: Simd, const ROWS: usize>(&self, x: &[f32], y: &mut [f32]) -> usize {
        let PanelSizes { columns, right, row, panel, .. } = self.sizes;
        // SAFETY: all is within what `multiply_panels` has checked.
        unsafe {
            let a = self.a.data.as_ptr().add(self.row * self.a.row + self.first * self.a.term);
            let count = LANES.min(columns - self.panel * LANES);
            let x = x.as_ptr().add(self.panel * right + self.first * LANES);
            let y = y.as_mut_ptr().add(self.panel * panel + self.row * row);
            for lane in (0..count).step_by(2 * S::LANES) {
                // Either way of lying has code of its own.
                let sums = match self.a.term {
                    1 => sums::<S, ROWS>(self.terms, a, [self.a.row, 1], x.add(lane)),
                    term => sums::<S, ROWS>(self.terms, a, [self.a.row, term], x.add(lane)),
                };
                for (i, sums) in sums.iter().enumerate() {
                    for (half, sum) in sums.iter().enumerate() {
                        let lane = lane + half * S::LANES;
                        if lane < count {
                            let (y, count) = (y.add(i * row + lane), S::LANES.min(count - lane));
                            let before = S::load_partial_or_full(y, count);
                            sum.mul_add(S::splat(self.scale), before).store_partial_or_full(y, count);
                        }
                    }
                }
            }
        }
        ROWS
    }
}

/// Sums over terms of elements of the left side with two vectors of lanes.
#[inline(always)]
unsafe fn sums<S: Simd, const ROWS: usize>(
    terms: usize,
    a: *const f32,
    [row, term]: [usize; 2],
    mut x: *const f32,
) -> [[S; 2]; ROWS] {
    // SAFETY: the caller has checked that `terms` terms of all rows and lanes are there.
    unsafe {
        let mut sums = [[S::splat(0.0); 2]; ROWS];
        // Four rows have an address: one for each would not fit into the registers.
        let mut starts: [*const f32; 4] = std::array::from_fn(|i| a.wrapping_add(i * 4 * row));
        for _ in 0..terms {
            let (x0, x1) = (S::load(x), S::load(x.add(S::LANES)));
            for (i, sums) in sums.iter_mut().enumerate() {
                let a = S::splat(*starts[i / 4].add(i % 4 * row));
                sums[0] = a.mul_add(x0, sums[0]);
                sums[1] = a.mul_add(x1, sums[1]);
            }
            x = x.add(LANES);
            starts.iter_mut().for_each(|start| *start = start.wrapping_add(term));
        }
        sums
    }
}

/// For each value the number of midpoints below it, and the entry of that number.
///
/// # Panics
/// When there is not one midpoint less than entries, more than 256 entries, or not as many codes and results as values.
pub fn nearest(isa: Isa, midpoints: &[f32], entries: &[f32], values: &[f32], codes: &mut [u8], found: &mut [f32]) {
    assert!(midpoints.len() + 1 == entries.len() && entries.len() <= 256, "{} midpoints", midpoints.len());
    assert!(codes.len() == values.len() && found.len() == values.len(), "{} values", values.len());
    for_isa!(isa, nearest_generic(midpoints: &[f32] = midpoints, entries: &[f32] = entries, values: &[f32] = values,
        codes: &mut [u8] = codes, found: &mut [f32] = found));
}

#[inline(always)]
unsafe fn nearest_generic<S: Simd>(
    midpoints: &[f32],
    entries: &[f32],
    values: &[f32],
    codes: &mut [u8],
    found: &mut [f32],
) {
    const AT_ONCE: usize = 8;
    let mut chunks = values.chunks_exact(AT_ONCE);
    let whole = values.len() / AT_ONCE * AT_ONCE;
    if midpoints.len() <= COMPARED {
        for (at, values) in (0..whole).step_by(AT_ONCE).zip(&mut chunks) {
            let mut below = [0u32; AT_ONCE];
            for &midpoint in midpoints {
                below.iter_mut().zip(values).for_each(|(below, &value)| *below += u32::from(midpoint < value));
            }
            for (i, &below) in below.iter().enumerate() {
                codes[at + i] = below as u8;
                found[at + i] = entries[below as usize];
            }
        }
    }
    let done = if midpoints.len() <= COMPARED { whole } else { 0 };
    for i in done..values.len() {
        let below = midpoints.partition_point(|&midpoint| midpoint < values[i]);
        codes[i] = below as u8;
        found[i] = entries[below];
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Random, every_isa};
    use super::*;

    /// Both ways in which the left side may lie, tiles and panels that are not whole, results in panels and row by row.
    #[test]
    fn products_agree_with_the_sum() {
        let mut random = Random::new(31);
        for (rows, terms, columns) in
            [(1usize, 1usize, 1usize), (12, 7, 32), (29, 300, 70), (8, 513, 96), (31, 40, 33), (5, 2, 128)]
        {
            let panels = columns.div_ceil(LANES);
            let (a, x) = (random.normal(rows * terms), random.normal(panels * terms * LANES));
            let turned: Vec<f32> = (0..rows * terms).map(|i| a[i % rows * terms + i / rows]).collect();
            let before = random.normal(panels * rows * LANES);
            let lefts = [Strided { data: &a, row: terms, term: 1 }, Strided { data: &turned, row: 1, term: rows }];
            every_isa(|kernels| {
                for left in lefts {
                    for [row, panel] in [[LANES, rows * LANES], [panels * LANES, LANES]] {
                        let mut y = before.clone();
                        let sizes = PanelSizes { rows, terms, columns, right: terms * LANES, row, panel };
                        multiply_panels(kernels.isa, sizes, -0.5, left, &x, &mut y);
                        for i in 0..rows {
                            for column in 0..panels * LANES {
                                let (number, lane) = (column / LANES, column % LANES);
                                let at = number * panel + i * row + lane;
                                let term = |t: usize| {
                                    f64::from(a[i * terms + t]) * f64::from(x[(number * terms + t) * LANES + lane])
                                };
                                let added = if column < columns { (0..terms).map(term).sum() } else { 0.0 };
                                let expected = f64::from(before[at]) - 0.5 * added;
                                let error = (f64::from(y[at]) - expected).abs();
                                assert!(
                                    error <= 1e-5 * (terms as f64).sqrt() && (column < columns || error == 0.0),
                                    "{:?} {sizes:?}, row {i}, column {column}: {}, not {expected}",
                                    kernels.isa,
                                    y[at]
                                );
                            }
                        }
                    }
                }
            });
        }
    }

    #[test]
    #[should_panic(expected = "found and reached elements")]
    fn a_product_that_reaches_too_far_is_refused() {
        let (a, x, mut y) = ([1.0; 6], [1.0; 3 * LANES], [0.0; 2 * LANES - 1]);
        let sizes = PanelSizes { rows: 2, terms: 3, columns: LANES, right: 0, row: LANES, panel: 0 };
        multiply_panels(Isa::Portable, sizes, 1.0, Strided { data: &a, row: 3, term: 1 }, &x, &mut y);
    }

    #[test]
    fn the_nearest_entry_is_found_in_tables_of_all_sizes() {
        let mut random = Random::new(5);
        for size in [1, 2, 4, 16, 64, 256] {
            let mut entries = random.normal(size);
            entries.sort_by(f32::total_cmp);
            let midpoints: Vec<f32> = entries.windows(2).map(|pair| 0.5 * pair[0] + 0.5 * pair[1]).collect();
            let values = random.normal(37);
            every_isa(|kernels| {
                let (mut codes, mut found) = ([0; 37], [0.0; 37]);
                nearest(kernels.isa, &midpoints, &entries, &values, &mut codes, &mut found);
                for ((value, code), found) in values.iter().zip(codes).zip(found) {
                    let least = entries.iter().map(|entry| (entry - value).abs()).fold(f32::INFINITY, f32::min);
                    assert_eq!(found, entries[usize::from(code)]);
                    assert!((found - value).abs() <= least * (1.0 + 1e-6) + 1e-7, "{value}: {found} of {entries:?}");
                }
            });
        }
    }
}
