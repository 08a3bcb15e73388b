//! Weights made of other weights: rows in another order, some rows, several on top of each other, axes exchanged. Nothing
//! is read before somebody asks, and only the rows that are needed.

use quince_tensor::{DType, Result, Tensor, Weight, WeightSource, bail};
use std::ops::Range;
use std::sync::Arc;

/// The side of a square that is exchanged at a time.
const TILE: usize = 32;

/// A weight whose rows come in another order: row `p · map.len() + j` is row `p · map.len() + map[j]` of `inner`.
///
/// # Errors
/// When the number of rows is no multiple of the map's length.
pub(crate) fn permuted(inner: &Weight, map: Vec<usize>) -> Result<Weight> {
    let rows = inner.shape().first().copied().unwrap_or(0);
    if map.is_empty() || !rows.is_multiple_of(map.len()) {
        bail!("found {rows} rows, expected a multiple of {}", map.len());
    }
    Ok(Weight::new(inner.name(), inner.dtype(), inner.shape(), Arc::new(Permuted { inner: inner.clone(), map })))
}

/// Weights of one type on top of each other, along the first axis.
///
/// # Errors
/// When there is none, or they do not go together.
pub(crate) fn stacked(parts: Vec<Weight>) -> Result<Weight> {
    let Some(first) = parts.first() else { bail!("found no weights to stack") };
    let inner = first.shape().get(1..).unwrap_or_default();
    if let Some(other) = parts.iter().find(|part| part.dtype() != first.dtype() || part.shape().get(1..) != Some(inner))
    {
        bail!("found {other:?} on top of {first:?}, expected the same type and the same shape but for the first axis");
    }
    let total = parts.iter().try_fold(0usize, |n, part| n.checked_add(part.shape().first().copied()?));
    let Some(total) = total else { bail!("found weights without rows, expected rows to stack") };
    let shape = [&[total], inner].concat();
    let (name, dtype) = (first.name().to_string(), first.dtype());
    Ok(Weight::new(&name, dtype, &shape, Arc::new(Stacked { parts })))
}

/// A weight with its last two axes exchanged.
///
/// # Errors
/// When it has fewer than two, or elements of less than a byte.
pub(crate) fn transposed(inner: &Weight) -> Result<Weight> {
    let [outer @ .., rows, columns] = inner.shape() else {
        bail!("found the shape {:?}, expected two axes to exchange", inner.shape());
    };
    if inner.dtype().is_sub_byte() {
        bail!("found elements of type {}, expected whole bytes", inner.dtype());
    }
    let shape = [outer, &[*columns, *rows]].concat();
    Ok(Weight::new(inner.name(), inner.dtype(), &shape, Arc::new(Transposed { inner: inner.clone() })))
}

/// A float32 weight with a number added to each element.
pub(crate) fn plus(inner: &Weight, addend: f32) -> Weight {
    let inner = inner.cast(DType::F32);
    Weight::new(inner.name(), DType::F32, inner.shape(), Arc::new(Plus { inner: inner.clone(), addend }))
}

/// Weights of one shape [E, R, ...] whose rows of the second axis take turns: [E, parts · R, ...].
///
/// # Errors
/// When the shapes differ, or have fewer than two axes.
pub(crate) fn in_turn(parts: Vec<Weight>) -> Result<Weight> {
    let Some(first) = parts.first() else { bail!("found no weights to put together") };
    let (dtype, shape) = (first.dtype(), first.shape().to_vec());
    if let Some(other) = parts.iter().find(|part| part.shape() != shape || part.dtype() != dtype) {
        bail!("found {other:?} beside {first:?}, expected the same type and shape");
    }
    let [outer, rows, inner @ ..] = shape.as_slice() else { bail!("found the shape {shape:?}, expected two axes") };
    let Some(rows) = rows.checked_mul(parts.len()).filter(|_| !dtype.is_sub_byte()) else {
        bail!("the shape {shape:?} of {dtype} cannot be put together {} times", parts.len());
    };
    let shape = [&[*outer, rows], inner].concat();
    let name = first.name().to_string();
    Ok(Weight::new(&name, dtype, &shape, Arc::new(InTurn { parts })))
}

/// Two weights [E, N] whose elements take turns: [E, 2 · N].
///
/// # Errors
/// As [`in_turn`].
pub(crate) fn elements_in_turn(first: &Weight, second: &Weight) -> Result<Weight> {
    let [outer, count] = *first.shape() else { bail!("found {first:?}, expected two axes") };
    let Some(both) = count.checked_mul(2) else { bail!("found {first:?}, which is too large to double") };
    let columns = |weight: &Weight| weight.reshape(&[weight.shape(), &[1]].concat());
    in_turn(vec![columns(first)?, columns(second)?])?.reshape(&[outer, both])
}

struct Permuted {
    inner: Weight,
    map: Vec<usize>,
}

impl WeightSource for Permuted {
    fn load(&self) -> Result<Tensor> {
        self.rows(0..self.inner.shape().first().copied().unwrap_or(0))
    }

    fn rows(&self, rows: Range<usize>) -> Result<Tensor> {
        let period = self.map.len();
        // Whole periods hold every row that can be meant.
        let start = rows.start / period * period;
        let whole = self.inner.rows(start..rows.end.next_multiple_of(period))?;
        if whole.dtype().is_sub_byte() {
            bail!("found elements of type {}, expected whole bytes", whole.dtype());
        }
        let size = whole.bytes().len() / whole.shape().first().copied().unwrap_or(1).max(1);
        let mut bytes = Vec::new();
        for row in rows.clone() {
            let row = row / period * period + self.map.get(row % period).copied().unwrap_or(0) - start;
            bytes.extend_from_slice(whole.bytes().get(row * size..(row + 1) * size).unwrap_or_default());
        }
        tensor(&whole, &[&[rows.len()], whole.shape().get(1..).unwrap_or_default()].concat(), bytes)
    }

    fn streams(&self) -> bool {
        self.inner.streams()
    }
}

struct Stacked {
    parts: Vec<Weight>,
}

impl WeightSource for Stacked {
    fn load(&self) -> Result<Tensor> {
        self.rows(0..self.parts.iter().filter_map(|part| part.shape().first()).sum())
    }

    fn rows(&self, rows: Range<usize>) -> Result<Tensor> {
        let mut found: Option<Tensor> = None;
        let (mut bytes, mut first) = (Vec::new(), 0);
        for part in &self.parts {
            let end = first + part.shape().first().copied().unwrap_or(0);
            let (from, to) = (rows.start.clamp(first, end), rows.end.clamp(first, end));
            if from < to || found.is_none() {
                let piece = part.rows(from - first..to.max(from) - first)?;
                bytes.extend_from_slice(piece.bytes());
                found = Some(piece);
            }
            first = end;
        }
        let Some(like) = found else { bail!("found no weights to stack") };
        tensor(&like, &[&[rows.len()], like.shape().get(1..).unwrap_or_default()].concat(), bytes)
    }

    fn streams(&self) -> bool {
        self.parts.iter().all(Weight::streams)
    }
}

struct Transposed {
    inner: Weight,
}

impl WeightSource for Transposed {
    fn load(&self) -> Result<Tensor> {
        exchange(&self.inner.load()?)
    }

    fn rows(&self, rows: Range<usize>) -> Result<Tensor> {
        match self.streams() {
            true => exchange(&self.inner.rows(rows)?),
            false => self.load()?.rows(rows),
        }
    }

    /// Of a matrix all rows are needed for one row; of a list of matrices, only one matrix.
    fn streams(&self) -> bool {
        self.inner.shape().len() > 2 && self.inner.streams()
    }
}

fn exchange(tensor: &Tensor) -> Result<Tensor> {
    let [outer @ .., rows, columns] = tensor.shape() else { bail!("found {tensor:?}, expected two axes") };
    let (rows, columns, size) = (*rows, *columns, tensor.dtype().bits() / 8);
    let mut bytes: Vec<u8> = quince_tensor::zeroed(tensor.bytes().len())?;
    let matrix = (rows * columns * size).max(1);
    for (from, to) in tensor.bytes().chunks_exact(matrix).zip(bytes.chunks_exact_mut(matrix)) {
        match size {
            1 => exchange_elements::<1>(from, to, rows, columns),
            2 => exchange_elements::<2>(from, to, rows, columns),
            4 => exchange_elements::<4>(from, to, rows, columns),
            _ => exchange_elements::<8>(from, to, rows, columns),
        }
    }
    self::tensor(tensor, &[outer, &[columns, rows]].concat(), bytes)
}

/// Exchanges the axes of a matrix of elements of `SIZE` bytes, a square at a time, so that the lines that are written to
/// stay near.
fn exchange_elements<const SIZE: usize>(from: &[u8], to: &mut [u8], rows: usize, columns: usize) {
    let ((from, _), (to, _)) = (from.as_chunks::<SIZE>(), to.as_chunks_mut::<SIZE>());
    for top in (0..rows).step_by(TILE) {
        for left in (0..columns).step_by(TILE) {
            for row in top..rows.min(top + TILE) {
                for column in left..columns.min(left + TILE) {
                    to[column * rows + row] = from[row * columns + column];
                }
            }
        }
    }
}

struct Plus {
    inner: Weight,
    addend: f32,
}

impl Plus {
    fn add(&self, tensor: &Tensor) -> Result<Tensor> {
        Tensor::from_vec(tensor.shape(), tensor.to_f32()?.into_iter().map(|value| value + self.addend).collect())
    }
}

impl WeightSource for Plus {
    fn load(&self) -> Result<Tensor> {
        self.add(&self.inner.load()?)
    }

    fn rows(&self, rows: Range<usize>) -> Result<Tensor> {
        self.add(&self.inner.rows(rows)?)
    }

    fn streams(&self) -> bool {
        self.inner.streams()
    }
}

struct InTurn {
    parts: Vec<Weight>,
}

impl InTurn {
    fn merge(parts: &[Tensor]) -> Result<Tensor> {
        let Some(first) = parts.first() else { bail!("found no weights to put together") };
        let [outer, rows, inner @ ..] = first.shape() else { bail!("found {first:?}, expected two axes") };
        let size = first.bytes().len() / (outer * rows).max(1);
        let mut bytes = Vec::with_capacity(first.bytes().len() * parts.len());
        for row in 0..outer * rows {
            for part in parts {
                bytes.extend_from_slice(part.bytes().get(row * size..(row + 1) * size).unwrap_or_default());
            }
        }
        tensor(first, &[&[*outer, rows * parts.len()], inner].concat(), bytes)
    }
}

impl WeightSource for InTurn {
    fn load(&self) -> Result<Tensor> {
        InTurn::merge(&self.parts.iter().map(Weight::load).collect::<Result<Vec<_>>>()?)
    }

    fn rows(&self, rows: Range<usize>) -> Result<Tensor> {
        InTurn::merge(&self.parts.iter().map(|part| part.rows(rows.clone())).collect::<Result<Vec<_>>>()?)
    }

    fn streams(&self) -> bool {
        self.parts.iter().all(Weight::streams)
    }
}

/// A tensor of the type of another.
fn tensor(like: &Tensor, shape: &[usize], bytes: Vec<u8>) -> Result<Tensor> {
    Tensor::new(like.dtype(), shape, bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(shape: &[usize]) -> Weight {
        let values = (0..shape.iter().product::<usize>()).map(|i| i as f32).collect();
        Weight::from_tensor("w", Tensor::from_vec(shape, values).unwrap())
    }

    /// The whole weight is what its rows are, however they are asked for.
    fn values(weight: &Weight) -> Vec<f32> {
        let whole = weight.load().unwrap();
        let total = weight.shape()[0];
        for (start, end) in [(0, total), (1, total), (total / 2, total), (0, 1), (1, 1)] {
            assert!(weight.rows(start..end).unwrap().same(&whole.rows(start..end).unwrap()), "{start}..{end}");
        }
        whole.to_f32().unwrap()
    }

    #[test]
    fn rows_come_in_the_order_of_the_map() {
        let weight = permuted(&counted(&[6, 2]), vec![2, 0, 1]).unwrap();
        assert_eq!(values(&weight), [4., 5., 0., 1., 2., 3., 10., 11., 6., 7., 8., 9.]);
        assert!(permuted(&counted(&[5, 2]), vec![1, 0]).is_err());
    }

    #[test]
    fn slices_and_stacks_are_rows() {
        assert_eq!(values(&counted(&[4, 2]).slice(1..3).unwrap()), [2., 3., 4., 5.]);
        assert!(counted(&[4, 2]).slice(3..5).is_err());
        let stack = stacked(vec![counted(&[1, 2]), counted(&[2, 2])]).unwrap();
        assert_eq!(values(&stack), [0., 1., 0., 1., 2., 3.]);
        assert!(stacked(vec![counted(&[1, 2]), counted(&[1, 3])]).is_err());
    }

    #[test]
    fn axes_are_exchanged_and_rows_take_turns() {
        assert_eq!(values(&transposed(&counted(&[2, 3])).unwrap()), [0., 3., 1., 4., 2., 5.]);
        let list = transposed(&counted(&[2, 1, 2])).unwrap();
        assert_eq!((list.shape(), values(&list)), (&[2, 2, 1][..], vec![0., 1., 2., 3.]));
        assert!(list.streams());
        let turns = in_turn(vec![counted(&[2, 2]), plus(&counted(&[2, 2]), 10.0)]).unwrap();
        assert_eq!((turns.shape(), values(&turns)), (&[2, 4][..], vec![0., 10., 1., 11., 2., 12., 3., 13.]));
    }
}
