//! The positions that each query row sees at all, found from the mask once.

use std::ops::Range;

use super::{Added, Attention, Mask, Strides};
use crate::{Kernels, SharedMut};

/// From the first to the last position that each row sees.
pub(super) struct Ranges {
    ranges: Vec<Range<usize>>,
    /// 0 along axes that share their ranges.
    strides: Strides,
    /// The end of the last range.
    pub(super) last: usize,
}

impl Ranges {
    pub(super) fn new(kernels: &Kernels, a: &Attention, mask: Mask) -> Ranges {
        let differ = match mask {
            Mask::Ranges(ranges) => {
                assert!(ranges.len() == 1 || ranges.len() == a.rows, "{} ranges for {} rows", ranges.len(), a.rows);
                [false, false, ranges.len() > 1]
            }
            Mask::Additive(masks) => masks.iter().fold([false; 3], |differ, mask| {
                let own = mask.strides.differ();
                std::array::from_fn(|axis| differ[axis] || own[axis])
            }),
            Mask::Bool { strides, .. } => strides.differ(),
        };
        let [batches, heads, rows] = std::array::from_fn(|axis| match differ[axis] {
            true => [a.batch, a.heads, a.rows][axis],
            false => 1,
        });
        let mut ranges = vec![0..0; batches * heads * rows];
        // A row of the mask is scanned, which is worth a thread for `positions` elements and not for one.
        let per_task = (8192 / a.positions.max(1)).max(1);
        let total = ranges.len();
        let shared = SharedMut::new(&mut ranges);
        kernels.pool.run(total.div_ceil(per_task), |task| {
            for at in task * per_task..total.min((task + 1) * per_task) {
                let range = mask.range([at / (heads * rows), at / rows % heads, at % rows], a.positions);
                // SAFETY: every task has entries of its own.
                unsafe { shared.slice(at, 1)[0] = range };
            }
        });
        let last = ranges.iter().filter(|range| !range.is_empty()).map(|range| range.end).max().unwrap_or(0);
        let stride = |axis: usize, stride: usize| if differ[axis] { stride } else { 0 };
        let strides = Strides { batch: stride(0, heads * rows), head: stride(1, rows), row: stride(2, 1) };
        Ranges { ranges, strides, last }
    }

    pub(super) fn of(&self, batch: usize, head: usize, row: usize) -> Range<usize> {
        self.ranges[self.strides.place(batch, head, row)].clone()
    }
}

impl Strides {
    /// Along which axes entries differ.
    fn differ(&self) -> [bool; 3] {
        [self.batch != 0, self.head != 0, self.row != 0]
    }
}

impl Mask<'_> {
    /// The positions from the first to the last that a row of a head of a batch sees.
    fn range(&self, [batch, head, row]: [usize; 3], positions: usize) -> Range<usize> {
        match *self {
            Mask::Ranges(ranges) => ranges[row].start..ranges[row].end.min(positions),
            Mask::Bool { data, strides } => ends(&data[strides.place(batch, head, row)..][..positions], |&seen| seen),
            Mask::Additive([]) => 0..positions,
            Mask::Additive([mask]) => seen(&mask.entries([batch, head, row])[..positions]),
            // What one mask hides may still be the best that another leaves: only sums tell.
            Mask::Additive(masks) => {
                let mut sums = vec![0.0; positions];
                for mask in masks {
                    let entries = &mask.entries([batch, head, row])[..positions];
                    sums.iter_mut().zip(entries).for_each(|(sum, entry)| *sum += entry);
                }
                seen(&sums)
            }
        }
    }
}

impl Added<'_> {
    /// The entries of a row.
    pub(super) fn entries(&self, [batch, head, row]: [usize; 3]) -> &[f32] {
        &self.data[self.strides.place(batch, head, row)..]
    }
}

/// The positions from the first to the last that added entries leave a weight.
fn seen(entries: &[f32]) -> Range<usize> {
    let largest = entries.iter().fold(f32::NEG_INFINITY, |max, &entry| if entry > max { entry } else { max });
    // NaN counts as seen, so that it shows in the result.
    ends(entries, |&entry| !(entry == f32::NEG_INFINITY || entry < largest - 9000.0))
}

/// From the first to the last entry that `is_seen`.
fn ends<T>(entries: &[T], is_seen: impl Fn(&T) -> bool) -> Range<usize> {
    let first = entries.iter().position(&is_seen).unwrap_or(0);
    let end = entries.iter().rposition(&is_seen).map_or(first, |last| last + 1);
    first..end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_each_mask_hides_is_seen_if_there_is_nothing_better() {
        let strides = Strides::default();
        let (a, b) = ([0.0, -3e4, -3e4, -6e4], [-3e4, 0.0, -3e4, 0.0]);
        let masks = [Added { data: &a, strides }, Added { data: &b, strides }];
        assert_eq!(Mask::Additive(&masks[..1]).range([0; 3], 4), 0..1);
        assert_eq!(Mask::Additive(&masks[1..]).range([0; 3], 4), 1..4);
        assert_eq!(Mask::Additive(&masks).range([0; 3], 4), 0..2);
        assert_eq!(Mask::Additive(&[]).range([0; 3], 4), 0..4);
    }
}
