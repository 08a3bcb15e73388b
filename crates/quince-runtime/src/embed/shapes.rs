//! How many sentences of which length a function takes in one call.

use std::fmt;

use quince_mil::{Flexibility, TensorType};

/// The shapes [sentences, tokens] that an input may have.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BatchShapes {
    /// From one number to another along each axis, both included.
    Range {
        /// Sentences of a call.
        batch: (usize, usize),
        /// Tokens of a sentence, padding included.
        length: (usize, usize),
    },
    /// One of these, ascending; never none.
    Listed(Vec<[usize; 2]>),
}

/// Lengths of ranges are rounded up to a multiple of this where that is allowed: every other shape would be planned
/// anew.
const LENGTH_STEP: usize = 8;

impl BatchShapes {
    /// What a declared input takes; `None` if it has not two axes, or takes nothing.
    pub(super) fn of(flexibility: &Flexibility, ty: &TensorType) -> Option<BatchShapes> {
        let [batch, length] = &ty.shape[..] else { return None };
        let shapes = match flexibility {
            Flexibility::Fixed => BatchShapes::Listed(vec![[batch.fixed()?, length.fixed()?]]),
            Flexibility::Range { bounds, .. } => {
                let &[batch, length] = &bounds[..] else { return None };
                let range = |(low, high): (usize, Option<usize>)| (low.max(1), high.unwrap_or(i32::MAX as usize));
                BatchShapes::Range { batch: range(batch), length: range(length) }
            }
            Flexibility::Enumerated(shapes) => {
                let mut pairs = Vec::with_capacity(shapes.len());
                for shape in shapes {
                    pairs.push(<[usize; 2]>::try_from(&shape[..]).ok()?);
                }
                pairs.sort_unstable();
                pairs.dedup();
                BatchShapes::Listed(pairs)
            }
        };
        shapes.not_empty()
    }

    /// What two inputs both take.
    pub(super) fn both(self, other: BatchShapes) -> Option<BatchShapes> {
        use BatchShapes::{Listed, Range};
        let common = |a: (usize, usize), b: (usize, usize)| (a.0.max(b.0), a.1.min(b.1));
        let shapes = match (self, other) {
            (Range { batch, length }, Range { batch: b, length: l }) => {
                Range { batch: common(batch, b), length: common(length, l) }
            }
            (Listed(shapes), other) | (other, Listed(shapes)) => {
                Listed(shapes.into_iter().filter(|&[batch, length]| other.takes(batch, length)).collect())
            }
        };
        shapes.not_empty()
    }

    fn not_empty(self) -> Option<BatchShapes> {
        let some = match &self {
            BatchShapes::Range { batch, length } => batch.0 <= batch.1 && length.0 <= length.1,
            BatchShapes::Listed(shapes) => !shapes.is_empty() && shapes.iter().all(|[b, l]| *b > 0 && *l > 0),
        };
        some.then_some(self)
    }

    /// Whether a call may have exactly this shape.
    pub fn takes(&self, batch: usize, length: usize) -> bool {
        match self {
            BatchShapes::Range { batch: (low, high), length: (short, long) } => {
                (*low..=*high).contains(&batch) && (*short..=*long).contains(&length)
            }
            BatchShapes::Listed(shapes) => shapes.contains(&[batch, length]),
        }
    }

    /// The shape with the fewest tokens that has room for `batch` sentences of `length` tokens.
    pub fn holding(&self, batch: usize, length: usize) -> Option<[usize; 2]> {
        match self {
            BatchShapes::Range { batch: (low, high), length: (short, long) } => {
                let rounded = length.next_multiple_of(LENGTH_STEP).clamp(*short, *long);
                (batch <= *high && length <= *long).then_some([batch.max(*low), rounded])
            }
            BatchShapes::Listed(shapes) => {
                let holds = |[b, l]: &&[usize; 2]| *b >= batch && *l >= length;
                shapes.iter().filter(holds).min_by_key(|[b, l]| b * l).copied()
            }
        }
    }

    /// The most tokens of a sentence.
    pub fn longest(&self) -> usize {
        match self {
            BatchShapes::Range { length, .. } => length.1,
            BatchShapes::Listed(shapes) => shapes.iter().map(|[_, length]| *length).max().unwrap_or(0),
        }
    }

    /// The most sentences of a call.
    pub(super) fn largest_batch(&self) -> usize {
        match self {
            BatchShapes::Range { batch, .. } => batch.1,
            BatchShapes::Listed(shapes) => shapes.iter().map(|[batch, _]| *batch).max().unwrap_or(0),
        }
    }
}

impl fmt::Display for BatchShapes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BatchShapes::Range { batch, length } => {
                write!(f, "{}..={} sentences of {}..={} tokens", batch.0, batch.1, length.0, length.1)
            }
            BatchShapes::Listed(shapes) => {
                let texts: Vec<String> = shapes.iter().map(|[batch, length]| format!("{batch} x {length}")).collect();
                write!(f, "sentences x tokens of {}", texts.join(", "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_shape_that_holds_is_taken() {
        let range = BatchShapes::Range { batch: (1, 64), length: (8, 512) };
        assert_eq!(range.holding(3, 5), Some([3, 8]));
        assert_eq!(range.holding(3, 17), Some([3, 24]));
        assert_eq!(range.holding(64, 509), Some([64, 512]));
        assert_eq!((range.holding(65, 8), range.holding(1, 513)), (None, None));
        let listed = BatchShapes::Listed(vec![[1, 128], [4, 16], [8, 64]]);
        assert_eq!(listed.holding(1, 16), Some([4, 16]));
        assert_eq!(listed.holding(1, 65), Some([1, 128]));
        assert_eq!(listed.holding(2, 17), Some([8, 64]));
        assert_eq!((listed.holding(2, 65), listed.longest(), listed.largest_batch()), (None, 128, 8));
    }

    #[test]
    fn inputs_that_share_no_shape_take_none() {
        let range = BatchShapes::Range { batch: (1, 4), length: (8, 32) };
        let listed = BatchShapes::Listed(vec![[1, 8], [8, 8]]);
        assert_eq!(range.clone().both(listed), Some(BatchShapes::Listed(vec![[1, 8]])));
        assert_eq!(range.clone().both(BatchShapes::Listed(vec![[8, 8]])), None);
        assert_eq!(range.both(BatchShapes::Range { batch: (5, 6), length: (8, 32) }), None);
    }
}
