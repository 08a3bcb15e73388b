//! Where the weights of a model come from, and the forms that they are brought into: lazily, a piece at a time.

use quince_checkpoint::Step;
use quince_mil::{DType, Error, Result, Tensor, Weight, bail};
use quince_tensor::{Bytes, WeightSource};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// Where the weights of a model come from.
pub trait Weights {
    /// The weight of this Hugging Face name, which must have this shape.
    ///
    /// # Errors
    /// When there is none, or it has another shape.
    fn weight(&self, name: &str, shape: &[usize]) -> Result<Weight>;

    /// Whether there is a weight of this name.
    fn has(&self, name: &str) -> bool;

    /// What adapters keep apart from the weight of this name, to be applied in order.
    fn steps(&self, _name: &str) -> Vec<Step> {
        Vec::new()
    }

    /// What adapters changed, all of which the model must use.
    fn changed(&self) -> Changed {
        Changed::default()
    }
}

/// The names of what adapters changed.
#[derive(Clone, Default, Debug)]
pub struct Changed {
    /// Weights that are others.
    pub weights: BTreeSet<String>,
    /// Weights that [`Weights::steps`] belong to.
    pub steps: BTreeSet<String>,
}

/// Weights, and which of them were asked for.
pub(crate) struct Watched<'a> {
    weights: &'a dyn Weights,
    asked: RefCell<Changed>,
}

impl<'a> Watched<'a> {
    pub fn new(weights: &'a dyn Weights) -> Watched<'a> {
        Watched { weights, asked: RefCell::default() }
    }

    /// What adapters changed and nobody asked for.
    pub fn unused(&self) -> Vec<String> {
        let (changed, asked) = (self.weights.changed(), self.asked.borrow());
        let weights = changed.weights.difference(&asked.weights);
        weights.chain(changed.steps.difference(&asked.steps)).cloned().collect()
    }
}

impl Weights for Watched<'_> {
    fn weight(&self, name: &str, shape: &[usize]) -> Result<Weight> {
        self.asked.borrow_mut().weights.insert(name.to_owned());
        self.weights.weight(name, shape)
    }

    fn has(&self, name: &str) -> bool {
        self.weights.has(name)
    }

    fn steps(&self, name: &str) -> Vec<Step> {
        self.asked.borrow_mut().steps.insert(name.to_owned());
        self.weights.steps(name)
    }

    fn changed(&self) -> Changed {
        self.weights.changed()
    }
}

impl Weights for quince_checkpoint::Adapted<'_> {
    fn weight(&self, name: &str, shape: &[usize]) -> Result<Weight> {
        self.weight_with_shape(name, shape)
    }

    fn has(&self, name: &str) -> bool {
        quince_checkpoint::Adapted::has(self, name)
    }

    fn steps(&self, name: &str) -> Vec<Step> {
        quince_checkpoint::Adapted::steps(self, name).to_vec()
    }

    fn changed(&self) -> Changed {
        Changed {
            weights: self.own().map(|(name, _)| name.to_owned()).collect(),
            steps: self.stepped().map(str::to_owned).collect(),
        }
    }
}

impl Weights for quince_checkpoint::Checkpoint {
    fn weight(&self, name: &str, shape: &[usize]) -> Result<Weight> {
        self.weight_with_shape(name, shape)
    }

    fn has(&self, name: &str) -> bool {
        quince_checkpoint::Checkpoint::has(self, name)
    }

    fn changed(&self) -> Changed {
        Changed {
            weights: quince_checkpoint::Checkpoint::changed(self).iter().cloned().collect(),
            ..Changed::default()
        }
    }
}

/// The last two axes in each other's place: [.., A, B] becomes [.., B, A].
///
/// # Errors
/// When there are fewer than two axes, or the elements are smaller than a byte.
pub(crate) fn transposed(weight: &Weight) -> Result<Weight> {
    let &[ref first @ .., rows, columns] = weight.shape() else {
        bail!("weight `{}`: found the shape {:?}, expected at least two axes", weight.name(), weight.shape());
    };
    let width = element_width(weight)?;
    let shape = [first, &[columns, rows]].concat();
    let slabs = move |tensor: &Tensor| {
        let mut out = Vec::with_capacity(tensor.bytes().len());
        for slab in tensor.bytes().chunks_exact((rows * columns * width).max(1)) {
            transpose_into(slab, rows, columns, width, &mut out);
        }
        out
    };
    Ok(mapped(weight, shape, !first.is_empty(), slabs))
}

/// Every second row of each matrix, from the first or the second on, as one matrix: [E, 2 · R, C] becomes [E · R, C], and
/// [E, 2 · R] becomes [E · R].
///
/// # Errors
/// When the second axis is not even, or the elements are smaller than a byte.
pub(crate) fn every_second(weight: &Weight, first: usize) -> Result<Weight> {
    let (width, shape) = (element_width(weight)?, weight.shape());
    let &[_, rows, ref rest @ ..] = shape else {
        bail!("weight `{}`: found the shape {shape:?}, expected at least two axes", weight.name());
    };
    if !rows.is_multiple_of(2) {
        bail!("weight `{}`: found {rows} rows, expected an even number", weight.name());
    }
    let row = rest.iter().product::<usize>() * width;
    let pick = move |tensor: &Tensor| {
        let mut out = Vec::with_capacity(tensor.bytes().len() / 2);
        let rows = tensor.bytes().chunks_exact(row.max(1));
        rows.skip(first).step_by(2).for_each(|row| out.extend_from_slice(row));
        out
    };
    let shape = [&[shape[0], rows / 2], rest].concat();
    one_after_the_other(&mapped(weight, shape, true, pick))
}

/// Matrices as one with all their rows: [E, R, ..] becomes [E · R, ..].
///
/// # Errors
/// When there are fewer than two axes.
pub(crate) fn one_after_the_other(weight: &Weight) -> Result<Weight> {
    let &[parts, rows, ref rest @ ..] = weight.shape() else {
        bail!("weight `{}`: found the shape {:?}, expected at least two axes", weight.name(), weight.shape());
    };
    let shape = [&[parts.saturating_mul(rows)], rest].concat();
    let source = weight.clone();
    let part = move |i: usize| source.rows(i..i + 1)?.reshape([&[rows], &source.shape()[2..]].concat());
    let source = Parts { rows, shape: shape.clone(), part: Box::new(part), recent: Mutex::default() };
    Ok(Weight::new(weight.name(), weight.dtype(), &shape, Arc::new(source)))
}

/// Some rows of a weight as a weight of its own, called after the first.
///
/// # Errors
/// When it has no such rows.
pub(crate) fn rows_of(weight: &Weight, rows: Range<usize>) -> Result<Weight> {
    let name = format!("{}.{}", weight.name(), rows.start);
    Ok(weight.slice(rows)?.renamed(&name))
}

/// The weight plus one, in float32, because the sum does not fit a smaller type where the weight does.
pub(crate) fn plus_one(weight: &Weight) -> Weight {
    let plus_one = |tensor: &Tensor| {
        let (elements, _) = tensor.bytes().as_chunks();
        elements.iter().flat_map(|bits| (f32::from_le_bytes(*bits) + 1.0).to_le_bytes()).collect()
    };
    mapped(&weight.cast(DType::F32), weight.shape().to_vec(), true, plus_one)
}

/// The weight in float32, row r divided by 2 to the power of `by[r % by.len()]`, of which there is at least one.
pub(crate) fn scaled(weight: &Weight, by: &[i32]) -> Weight {
    let source =
        Scaled { weight: weight.cast(DType::F32), factors: by.iter().map(|by| (-*by as f32).exp2()).collect() };
    Weight::new(weight.name(), DType::F32, weight.shape(), Arc::new(source))
}

/// Rows times a factor each, in turn.
struct Scaled {
    weight: Weight,
    factors: Vec<f32>,
}

impl WeightSource for Scaled {
    fn load(&self) -> Result<Tensor> {
        self.rows(0..self.weight.shape().first().copied().unwrap_or(0))
    }

    fn rows(&self, rows: Range<usize>) -> Result<Tensor> {
        let tensor = self.weight.rows(rows.clone())?;
        let shape = tensor.shape().to_vec();
        let mut values = tensor.to_f32()?;
        let width = (values.len() / rows.len().max(1)).max(1);
        for (row, values) in rows.zip(values.chunks_exact_mut(width)) {
            let factor = self.factors[row % self.factors.len()];
            values.iter_mut().for_each(|x| *x *= factor);
        }
        Tensor::from_vec(shape, values)
    }

    fn streams(&self) -> bool {
        self.weight.streams()
    }
}

/// Matrices of one shape as one with all their rows; in float32 if they are of several types, as where an adapter is in
/// some of them.
///
/// # Errors
/// When there is none, or they differ in shape.
pub(crate) fn stacked(name: &str, mut weights: Vec<Weight>) -> Result<Weight> {
    let Some(dtype) = weights.first().map(Weight::dtype) else {
        bail!("weight `{name}`: found no part, expected at least one")
    };
    if weights.iter().any(|weight| weight.dtype() != dtype) {
        weights = weights.iter().map(|weight| weight.cast(DType::F32)).collect();
    }
    let first = weights[0].clone();
    if let Some(other) = weights.iter().find(|weight| weight.shape() != first.shape()) {
        bail!("weight `{}`: found {other:?}, expected {:?} as `{}`", other.name(), first.shape(), first.name());
    }
    let &[rows, ref rest @ ..] = first.shape() else { bail!("weight `{name}`: found numbers, expected matrices") };
    let shape = [&[weights.len().saturating_mul(rows)], rest].concat();
    let source =
        Parts { rows, shape: shape.clone(), part: Box::new(move |i| weights[i].load()), recent: Mutex::default() };
    Ok(Weight::new(name, first.dtype(), &shape, Arc::new(source)))
}

/// Matrices with as many rows each, one after the other.
struct Parts {
    /// Rows of one.
    rows: usize,
    shape: Vec<usize>,
    part: Box<dyn Fn(usize) -> Result<Tensor> + Send + Sync>,
    /// The matrices that were asked for last. Rows are mostly asked for in order, fewer at a time than a matrix has, and by
    /// several threads that each have begun elsewhere.
    recent: Mutex<Vec<Recent>>,
}

/// A matrix of which not all rows have been asked for.
struct Recent {
    number: usize,
    /// Rows that have not been asked for.
    left: usize,
    tensor: Arc<Mutex<Option<Tensor>>>,
}

impl Parts {
    /// The matrix of this number, of which so many rows are needed now. It is forgotten once each row was needed.
    fn part(&self, number: usize, rows: usize) -> Result<Tensor> {
        let place = self.place(number, rows);
        let mut place = place.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(tensor) = &*place {
            return Ok(tensor.clone());
        }
        let tensor = (self.part)(number)?;
        *place = Some(tensor.clone());
        Ok(tensor)
    }

    /// Where the matrix is or will be. Only who needs the same one waits while it is computed.
    fn place(&self, number: usize, rows: usize) -> Arc<Mutex<Option<Tensor>>> {
        let most = std::thread::available_parallelism().map_or(1, usize::from).clamp(2, 16);
        let mut recent = self.recent.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let found = recent.iter().position(|recent| recent.number == number).map(|index| recent.remove(index));
        let mut found = found.unwrap_or_else(|| Recent { number, left: self.rows, tensor: Arc::default() });
        found.left = found.left.saturating_sub(rows);
        let tensor = found.tensor.clone();
        if found.left > 0 {
            recent.truncate(most - 1);
            recent.insert(0, found);
        }
        tensor
    }
}

impl WeightSource for Parts {
    fn load(&self) -> Result<Tensor> {
        self.rows(0..self.shape[0])
    }

    fn rows(&self, rows: Range<usize>) -> Result<Tensor> {
        let (mut bytes, mut dtype) = (Vec::new(), None);
        let mut next = rows.start;
        while next < rows.end {
            let (number, first) = (next / self.rows, next % self.rows);
            let count = (self.rows - first).min(rows.end - next);
            let part = self.part(number, count)?.rows(first..first + count)?;
            dtype = Some(part.dtype());
            bytes.extend_from_slice(part.bytes());
            next += count;
        }
        let Some(dtype) = dtype else { bail!("found no rows, expected at least one") };
        Tensor::new(dtype, [&[rows.len()], &self.shape[1..]].concat(), Bytes::from_vec(bytes))
    }

    fn streams(&self) -> bool {
        true
    }
}

/// A weight whose bytes are computed from those of another, row by row of the first axis if `by_row`.
fn mapped(
    weight: &Weight,
    shape: Vec<usize>,
    by_row: bool,
    bytes: impl Fn(&Tensor) -> Vec<u8> + Send + Sync + 'static,
) -> Weight {
    let source = Mapped { weight: weight.clone(), shape: shape.clone(), by_row, bytes: Box::new(bytes) };
    Weight::new(weight.name(), weight.dtype(), &shape, Arc::new(source))
}

/// The bytes of some rows made of a tensor of these rows.
type MapBytes = dyn Fn(&Tensor) -> Vec<u8> + Send + Sync;

struct Mapped {
    weight: Weight,
    shape: Vec<usize>,
    by_row: bool,
    bytes: Box<MapBytes>,
}

impl Mapped {
    fn map(&self, tensor: &Tensor, rows: usize) -> Result<Tensor> {
        let mut shape = self.shape.clone();
        shape[0] = rows;
        Tensor::new(tensor.dtype(), shape, Bytes::from_vec((self.bytes)(tensor)))
    }
}

impl WeightSource for Mapped {
    fn load(&self) -> Result<Tensor> {
        self.map(&self.weight.load()?, self.shape[0])
    }

    fn rows(&self, rows: Range<usize>) -> Result<Tensor> {
        match self.by_row {
            true => self.map(&self.weight.rows(rows.clone())?, rows.len()),
            false => self.load()?.rows(rows),
        }
    }

    fn streams(&self) -> bool {
        self.by_row && self.weight.streams()
    }
}

fn element_width(weight: &Weight) -> Result<usize> {
    let dtype = weight.dtype();
    match dtype.byte_len(1) {
        Some(width) if !dtype.is_sub_byte() => Ok(width),
        _ => Err(Error::new(format!("weight `{}`: found elements of {dtype}, expected whole bytes", weight.name()))),
    }
}

/// Appends the transpose of a matrix.
fn transpose_into(matrix: &[u8], rows: usize, columns: usize, width: usize, out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + matrix.len(), 0);
    let out = &mut out[start..];
    match width {
        1 => transpose_elements::<1>(matrix, rows, columns, out),
        2 => transpose_elements::<2>(matrix, rows, columns, out),
        4 => transpose_elements::<4>(matrix, rows, columns, out),
        _ => transpose_elements::<8>(matrix, rows, columns, out),
    }
}

/// Squares of the matrix are read at a time, so that each line of memory is fetched once.
fn transpose_elements<const WIDTH: usize>(matrix: &[u8], rows: usize, columns: usize, out: &mut [u8]) {
    const SIDE: usize = 32;
    let (matrix, _) = matrix.as_chunks::<WIDTH>();
    let (out, _) = out.as_chunks_mut::<WIDTH>();
    for top in (0..rows).step_by(SIDE) {
        for left in (0..columns).step_by(SIDE) {
            for row in top..rows.min(top + SIDE) {
                for column in left..columns.min(left + SIDE) {
                    out[column * rows + row] = matrix[row * columns + column];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn iota(shape: &[usize]) -> Weight {
        let values = (0..shape.iter().product::<usize>()).map(|i| i as f32).collect();
        Weight::from_tensor("w", Tensor::from_vec(shape, values).unwrap())
    }

    fn values(weight: &Weight) -> Vec<f32> {
        weight.load().unwrap().to_f32().unwrap()
    }

    #[test]
    fn matrices_are_transposed_alone_and_in_stacks() {
        let w = transposed(&iota(&[2, 3]).cast(DType::F16)).unwrap();
        assert_eq!((w.shape(), values(&w)), (&[3, 2][..], vec![0.0, 3.0, 1.0, 4.0, 2.0, 5.0]));
        let large = iota(&[67, 41]);
        assert_eq!(values(&transposed(&transposed(&large).unwrap()).unwrap()), values(&large));
        let stack = transposed(&iota(&[2, 2, 3])).unwrap();
        assert_eq!(stack.rows(1..2).unwrap().to_f32().unwrap(), [6.0, 9.0, 7.0, 10.0, 8.0, 11.0]);
        assert!(stack.streams() && !w.streams() && transposed(&iota(&[3])).is_err());
    }

    #[test]
    fn rows_are_picked_and_stacked() {
        let w = every_second(&iota(&[2, 4, 1]), 1).unwrap();
        assert_eq!((w.shape(), values(&w)), (&[4, 1][..], vec![1.0, 3.0, 5.0, 7.0]));
        assert_eq!(w.rows(1..3).unwrap().to_f32().unwrap(), [3.0, 5.0]);
        assert!(every_second(&iota(&[2, 3]), 0).is_err());
        assert_eq!(values(&every_second(&iota(&[2, 2]), 0).unwrap()), [0.0, 2.0]);
        let s = stacked("s", vec![iota(&[2, 2]), iota(&[2, 2])]).unwrap();
        assert_eq!((s.shape(), values(&s)), (&[4, 2][..], vec![0.0, 1.0, 2.0, 3.0, 0.0, 1.0, 2.0, 3.0]));
        assert_eq!(s.rows(1..3).unwrap().to_f32().unwrap(), [2.0, 3.0, 0.0, 1.0]);
        for _ in 0..2 {
            // Whatever was kept of the rows before.
            let by_row: Vec<f32> =
                [3, 0, 2, 1].iter().map(|&i| s.rows(i..i + 1).unwrap().to_f32().unwrap()[1]).collect();
            assert_eq!(by_row, [3.0, 1.0, 1.0, 3.0]);
        }
        assert!(stacked("s", vec![iota(&[1, 2]), iota(&[2, 1])]).is_err() && stacked("s", Vec::new()).is_err());
        assert_eq!(values(&one_after_the_other(&iota(&[2, 2, 1])).unwrap()), [0.0, 1.0, 2.0, 3.0]);
        let small = Weight::from_tensor("w", Tensor::from_f32(DType::F16, [2], vec![1e-4, -1.0]).unwrap());
        let plus = plus_one(&small);
        assert_eq!(plus.dtype(), DType::F32);
        assert!((values(&plus)[0] - 1.0001).abs() < 1e-6 && values(&plus)[1] == 0.0);
    }
}
