//! Where heads lie in what they were made from: transposes, reshapes and repetitions are followed backwards.

use super::{Matrix, scaled};
use crate::kernels::Strides;
use crate::planner::Planner;
use crate::steps::HeadsView;
use crate::strided::row_major;
use quince_mil::{DType, Var};

/// A variable seen as [batch, heads, rows, dim], times a number.
#[derive(Clone)]
pub(super) struct View {
    var: Var,
    factor: f64,
    axes: [Axis; 4],
}

/// The pieces that an axis is made of, from the outermost: how many, and how far apart in the variable. No piece has
/// size one.
type Axis = Vec<(usize, usize)>;

impl View {
    /// A variable of rank 3 or 4 itself; a missing axis of batches has size one.
    pub(super) fn of(planner: &Planner, matrix: Matrix) -> Option<View> {
        let shape = planner.shape(matrix.var).ok()?;
        if !(3..=4).contains(&shape.len()) || shape.contains(&0) {
            return None;
        }
        let mut axes: Vec<Axis> = shape.iter().zip(row_major(&shape)).map(|(&n, s)| piece(n, s as usize)).collect();
        if shape.len() == 3 {
            axes.insert(0, vec![]);
        }
        if matrix.transposed {
            axes.swap(2, 3);
        }
        Some(View { var: matrix.var, factor: 1.0, axes: axes.try_into().ok()? })
    }

    pub(super) fn sizes(&self) -> [usize; 4] {
        std::array::from_fn(|i| self.axes[i].iter().map(|(size, _)| size).product())
    }

    /// The view of the earliest variable that `accept` takes, with its factor.
    pub(super) fn deepest<T>(self, planner: &Planner, accept: impl Fn(&View) -> Option<T>) -> Option<(T, f64)> {
        let mut best = None;
        let mut view = Some(self);
        while let Some(now) = view {
            best = accept(&now).map(|found| (found, now.factor)).or(best);
            view = now.source(planner);
        }
        best
    }

    /// The same elements in the variable that this one was made from.
    fn source(&self, planner: &Planner) -> Option<View> {
        let operation = planner.defs.producer(self.var).filter(|_| planner.constant(self.var).is_none())?;
        let shape = planner.shape(self.var).ok()?;
        if operation.op_name() == "cast" {
            // A cast to fewer bits rounds, which is not left out here.
            let var = operation.var("x")?;
            let widens = planner.dtype(var).ok()? == DType::F16 && planner.dtype(self.var).ok()? == DType::F32;
            return widens.then(|| View { var, ..self.clone() });
        }
        if let "mul" | "real_div" = operation.op_name() {
            let (factor, var) = scaled(planner, operation)?;
            let same = planner.shape(var).ok()? == shape;
            return same.then(|| View { var, factor: self.factor * factor, axes: self.axes.clone() });
        }
        let x = operation.var("x")?;
        let source = planner.shape(x).ok()?;
        let own = row_major(&source);
        let strides: Vec<usize> = match operation.op_name() {
            "reshape" | "expand_dims" | "squeeze" | "reshape_like" => {
                return Some(View { var: x, ..self.clone() });
            }
            "transpose" => {
                let perm = planner.ints(operation, "perm")?;
                let rank = source.len() as i64;
                let axis = |axis: &i64| usize::try_from(if *axis < 0 { axis + rank } else { *axis }).ok();
                perm.iter().map(|from| Some(*own.get(axis(from)?)? as usize)).collect::<Option<_>>()?
            }
            // Along axes of size one, which is repetition.
            "tile" if source.len() == shape.len() => {
                let stride = |i: usize| match source[i] {
                    n if n == shape[i] => Some(own[i] as usize),
                    1 => Some(0),
                    _ => None,
                };
                (0..shape.len()).map(stride).collect::<Option<_>>()?
            }
            _ => return None,
        };
        let axes = self.axes.each_ref().map(|axis| moved(axis, &shape, &strides));
        let [b, h, r, d] = axes;
        Some(View { var: x, factor: self.factor, axes: [b?, h?, r?, d?] })
    }

    /// Itself, if nothing is multiplied.
    pub(super) fn unscaled(&self) -> Option<&View> {
        (self.factor == 1.0).then_some(self)
    }

    /// As the kernel takes it, if every axis has one stride and elements of a row follow each other: heads in groups of
    /// `group` share theirs.
    pub(super) fn heads_view(&self, group: usize) -> Option<HeadsView> {
        let [batch, heads, rows, dim] = &self.axes;
        let mut heads = heads.clone();
        if group > 1 {
            let total: usize = heads.iter().map(|(size, _)| size).product();
            let (size, stride) = heads.pop()?;
            // The innermost piece repeats a head, for all heads or for a group of them.
            if stride != 0 || size != group || !total.is_multiple_of(group) {
                return None;
            }
        }
        let elements = single(dim).filter(|&stride| stride <= 1)?;
        // A row of several equal elements is none.
        if elements == 0 && !dim.is_empty() {
            return None;
        }
        let strides = Strides { batch: single(batch)?, head: single(&heads)?, row: single(rows)? };
        Some(HeadsView { var: self.var, strides })
    }
}

fn piece(size: usize, stride: usize) -> Axis {
    if size == 1 { vec![] } else { vec![(size, stride)] }
}

/// The stride of an axis of one piece; 0 for an axis of size one.
fn single(axis: &Axis) -> Option<usize> {
    match axis[..] {
        [] => Some(0),
        [(_, stride)] => Some(stride),
        _ => None,
    }
}

/// The pieces of an axis of a row-major variable of `shape`, in a variable where its axes have other strides.
fn moved(axis: &Axis, shape: &[usize], strides: &[usize]) -> Option<Axis> {
    let own = row_major(shape);
    let mut out = Axis::new();
    for &(size, stride) in axis {
        if stride == 0 {
            out.push((size, 0));
            continue;
        }
        // From the axis in which a step is taken outwards: what does not fit in an axis goes on in the one before.
        let (mut left, mut step, mut pieces) = (size, stride, Axis::new());
        for i in (0..shape.len()).rev() {
            let (inner, outer) = (own[i] as usize, own[i] as usize * shape[i]);
            if left == 1 || shape[i] == 1 || step >= outer {
                continue;
            }
            if !step.is_multiple_of(inner) || !outer.is_multiple_of(step) {
                return None;
            }
            let count = left.min(outer / step);
            if !left.is_multiple_of(count) {
                return None;
            }
            pieces.push((count, step / inner * strides[i]));
            (left, step) = (left / count, outer);
        }
        if left != 1 {
            return None;
        }
        out.extend(pieces.into_iter().rev());
    }
    // Pieces that follow each other without a gap are one.
    let mut joined = Axis::new();
    for (size, stride) in out {
        match joined.last_mut() {
            Some((outer, step)) if *step == stride * size && (stride != 0 || *step == 0) => {
                (*outer, *step) = (*outer * size, stride);
            }
            _ => joined.push((size, stride)),
        }
    }
    Some(joined)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The elements of an axis, one by one.
    fn offsets(axis: &Axis) -> Vec<usize> {
        axis.iter().fold(vec![0], |all, &(size, stride)| {
            all.iter().flat_map(|offset| (0..size).map(move |i| offset + i * stride)).collect()
        })
    }

    #[test]
    fn pieces_follow_a_transpose_and_a_repetition() {
        // [2, 6, 5] is a transpose of [6, 2, 5]: the middle axis lies outermost.
        let moved_axis = moved(&vec![(6, 5)], &[2, 6, 5], &[5, 10, 1]).unwrap();
        assert_eq!(moved_axis, [(6, 10)]);
        // Six heads that are three, each twice, seen as one axis of [3, 2, 4].
        let repeated = moved(&vec![(6, 4)], &[3, 2, 4], &[4, 0, 1]).unwrap();
        assert_eq!((repeated.clone(), offsets(&repeated)), (vec![(3, 4), (2, 0)], vec![0, 0, 4, 4, 8, 8]));
        // The last four of each group of eight are no whole number of groups of three.
        assert_eq!(moved(&vec![(4, 2)], &[2, 3], &[3, 1]), None);
    }

    #[test]
    fn any_axis_of_a_transpose_has_the_same_elements() {
        let (shape, strides) = ([3, 4, 2, 5], [5, 30, 15, 1]);
        for (first, last) in [(0, 0), (1, 1), (0, 2), (1, 3), (2, 3)] {
            let size: usize = shape[first..=last].iter().product();
            let inner = row_major(&shape)[last] as usize;
            let found = offsets(&moved(&vec![(size, inner)], &shape, &strides).unwrap());
            let place = |flat: usize| {
                let own = row_major(&shape);
                (0..4).map(|i| flat / own[i] as usize % shape[i] * strides[i]).sum::<usize>()
            };
            let expected: Vec<usize> = (0..size).map(|i| place(i * inner)).collect();
            assert_eq!(found, expected, "axes {first} to {last}");
        }
    }
}
