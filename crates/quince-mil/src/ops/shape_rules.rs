//! Shape rules that several operations share.

use crate::{Dim, Result, bail};

/// The size of an axis that two arguments share: what is known of it, or an error if they differ.
pub fn merge(a: Dim, b: Dim) -> Result<Dim> {
    match (a, b) {
        (Dim::Unknown, dim) | (dim, Dim::Unknown) => Ok(dim),
        (a, b) if a == b => Ok(a),
        (a, b) => bail!("sizes {a} and {b} of one axis differ"),
    }
}

/// The shape after broadcasting as NumPy does: aligned at the last axis, sizes equal or one.
pub fn broadcast(a: &[Dim], b: &[Dim]) -> Result<Vec<Dim>> {
    let rank = a.len().max(b.len());
    let at = |shape: &[Dim], i: usize| (i + shape.len()).checked_sub(rank).map_or(Dim::Fixed(1), |i| shape[i]);
    let mut out = Vec::with_capacity(rank);
    for i in 0..rank {
        out.push(match (at(a, i), at(b, i)) {
            (Dim::Fixed(1), dim) | (dim, Dim::Fixed(1)) => dim,
            (x, y) => match merge(x, y) {
                Ok(dim) => dim,
                Err(_) => bail!("shapes {} and {} do not broadcast", show(a), show(b)),
            },
        });
    }
    Ok(out)
}

/// An axis counted from the front; negative ones count from the back.
pub fn axis(axis: i64, rank: usize) -> Result<usize> {
    let from_front = if axis < 0 { axis + rank as i64 } else { axis };
    match usize::try_from(from_front) {
        Ok(axis) if axis < rank => Ok(axis),
        _ => bail!("axis {axis} is not one of a tensor of rank {rank}"),
    }
}

/// Axes counted from the front, each once.
pub fn axes(given: &[i64], rank: usize) -> Result<Vec<usize>> {
    let mut out = Vec::with_capacity(given.len());
    for &a in given {
        let a = axis(a, rank)?;
        if out.contains(&a) {
            bail!("axis {a} is named twice in {given:?}");
        }
        out.push(a);
    }
    Ok(out)
}

/// A shape as MIL text writes it.
pub fn show(shape: &[Dim]) -> String {
    let dims: Vec<String> = shape.iter().map(Dim::to_string).collect();
    format!("[{}]", dims.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcasting_is_numpys() {
        let f = Dim::Fixed;
        assert_eq!(broadcast(&[f(2), f(1), f(3)], &[f(4), f(1)]).unwrap(), [f(2), f(4), f(3)]);
        assert_eq!(broadcast(&[Dim::Unknown], &[f(5)]).unwrap(), [f(5)]);
        assert_eq!(broadcast(&[Dim::Unknown], &[f(1)]).unwrap(), [Dim::Unknown]);
        let error = broadcast(&[f(2)], &[f(3)]).unwrap_err();
        assert_eq!(error.to_string(), "shapes [2] and [3] do not broadcast");
    }

    #[test]
    fn axes_outside_the_rank_are_refused() {
        assert_eq!(axis(-1, 3).unwrap(), 2);
        assert!(axis(3, 3).is_err() && axis(-4, 3).is_err() && axes(&[0, -3], 3).is_err());
    }
}
