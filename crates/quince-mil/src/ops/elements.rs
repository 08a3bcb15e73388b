//! Walking over the elements of tensors, for the definitions of operations: strides, broadcasting, groups of elements
//! along axes, and elementwise functions that round once.

use super::layout::count;
use crate::{DType, Error, Result, Tensor, bail};
use half::f16;
use quince_tensor::{Bytes, Element};

/// Row-major strides, counted in elements.
pub fn strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1usize; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i].saturating_mul(shape[i].max(1));
    }
    strides
}

/// The strides of a tensor of `shape` seen under the larger shape `out`: zero along the axes where it is repeated.
/// `shape` must broadcast to `out`.
pub fn strides_in(shape: &[usize], out: &[usize]) -> Vec<usize> {
    let missing = out.len().saturating_sub(shape.len());
    let mut strides_out = vec![0; out.len()];
    for (i, stride) in strides(shape).into_iter().enumerate() {
        if shape[i] != 1 {
            strides_out[missing + i] = stride;
        }
    }
    strides_out
}

/// The shape after broadcasting as NumPy does, or an error if the shapes do not go together.
pub fn broadcast(a: &[usize], b: &[usize]) -> Result<Vec<usize>> {
    let rank = a.len().max(b.len());
    let at = |shape: &[usize], i: usize| (i + shape.len()).checked_sub(rank).map_or(1, |i| shape[i]);
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (1, n) | (n, 1) => Ok(n),
            (n, m) if n == m => Ok(n),
            _ => bail!("shapes {a:?} and {b:?} do not broadcast"),
        })
        .collect()
}

/// An empty vector with room for `count` elements; an error if there is no memory for them.
pub fn room<T>(count: usize) -> Result<Vec<T>> {
    let mut values = Vec::new();
    match values.try_reserve_exact(count) {
        Ok(()) => Ok(values),
        Err(_) => bail!("there is no memory for {count} elements of {} bytes", size_of::<T>()),
    }
}

/// Visits the positions of a shape in row-major order and gives for each the offsets in `N` tensors.
pub struct Walk<const N: usize> {
    shape: Vec<usize>,
    strides: [Vec<usize>; N],
    index: Vec<usize>,
    offsets: [usize; N],
    left: usize,
}

impl<const N: usize> Walk<N> {
    /// A walk over `shape`; each set of strides has one per axis of it.
    pub fn new(shape: &[usize], strides: [Vec<usize>; N]) -> Result<Walk<N>> {
        if let Some(wrong) = strides.iter().find(|s| s.len() != shape.len()) {
            bail!("found {} strides, expected one for each axis of {shape:?}", wrong.len());
        }
        let left = count(shape)?;
        Ok(Walk { index: vec![0; shape.len()], shape: shape.to_vec(), strides, offsets: [0; N], left })
    }
}

impl<const N: usize> Iterator for Walk<N> {
    type Item = [usize; N];

    fn next(&mut self) -> Option<[usize; N]> {
        self.left = self.left.checked_sub(1)?;
        let current = self.offsets;
        for axis in (0..self.shape.len()).rev() {
            self.index[axis] += 1;
            let wraps = self.index[axis] == self.shape[axis];
            for (offset, strides) in self.offsets.iter_mut().zip(&self.strides) {
                *offset += strides[axis];
                if wraps {
                    *offset -= strides[axis] * self.shape[axis];
                }
            }
            if !wraps {
                break;
            }
            self.index[axis] = 0;
        }
        Some(current)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

/// The elements of a shape in groups that differ only along some axes: group `g` is `starts[g] + offsets[..]`, both in
/// row-major order of the axes they run over.
pub struct Groups {
    /// The first element of each group.
    pub starts: Vec<usize>,
    /// The elements of a group, counted from its first.
    pub offsets: Vec<usize>,
}

impl Groups {
    /// Groups along `axes`, which are counted from the front.
    pub fn new(shape: &[usize], axes: &[usize]) -> Result<Groups> {
        let strides = strides(shape);
        let walk = |inside: bool| {
            let axes: Vec<usize> = (0..shape.len()).filter(|axis| axes.contains(axis) == inside).collect();
            let sizes: Vec<usize> = axes.iter().map(|&axis| shape[axis]).collect();
            let strides: Vec<usize> = axes.iter().map(|&axis| strides[axis]).collect();
            let mut offsets = room(count(&sizes)?)?;
            offsets.extend(Walk::new(&sizes, [strides])?.map(|[offset]| offset));
            Ok::<_, Error>(offsets)
        };
        Ok(Groups { starts: walk(false)?, offsets: walk(true)? })
    }

    /// The elements of each group as indices.
    pub fn iter(&self) -> impl Iterator<Item = impl Iterator<Item = usize> + Clone + '_> + '_ {
        self.starts.iter().map(|start| self.offsets.iter().map(move |offset| start + offset))
    }
}

/// A tensor of the elements of `x` at `offsets`, in that order; an offset outside of `x` is an error.
pub fn take(x: &Tensor, shape: &[usize], offsets: impl Iterator<Item = usize>) -> Result<Tensor> {
    fn pick<T: Copy>(values: &[T], count: usize, offsets: impl Iterator<Item = usize>) -> Result<Vec<T>> {
        let mut out = room(count)?;
        for offset in offsets {
            match values.get(offset) {
                Some(&value) => out.push(value),
                None => bail!("element {offset} is not one of the {} there are", values.len()),
            }
        }
        Ok(out)
    }
    fn words<T: Element>(x: &Tensor, count: usize, offsets: impl Iterator<Item = usize>) -> Result<Bytes> {
        let words = Tensor::new(T::DTYPE, [x.len()], x.bytes().clone())?;
        match words.as_slice::<T>() {
            Some(values) => Ok(Bytes::from_vec(pick(values, count, offsets)?)),
            None => bail!("the bytes of {x:?} are not aligned"),
        }
    }
    let (x, n) = (x.aligned(), count(shape)?);
    let bytes = match x.dtype().bits() {
        64 => words::<u64>(&x, n, offsets)?,
        32 => words::<u32>(&x, n, offsets)?,
        16 => words::<u16>(&x, n, offsets)?,
        8 => words::<u8>(&x, n, offsets)?,
        _ => return Tensor::from_codes(x.dtype(), shape, &pick(&x.codes()?, n, offsets)?),
    };
    Tensor::new(x.dtype(), shape, bytes)
}

/// Applies a function of real numbers to each element of a floating-point tensor and rounds once to its type.
pub fn map(x: &Tensor, f: impl Fn(f64) -> f64) -> Result<Tensor> {
    match x.dtype() {
        DType::F32 => {
            Tensor::from_vec(x.shape(), x.to_f32()?.into_iter().map(|v| f(f64::from(v)) as f32).collect::<Vec<f32>>())
        }
        DType::F16 => {
            let values = x.to_f32()?.into_iter().map(|v| f16::from_f64(f(f64::from(v))));
            Tensor::from_vec(x.shape(), values.collect::<Vec<f16>>())
        }
        dtype => Tensor::from_f64(dtype, x.shape(), x.to_f64()?.into_iter().map(f).collect()),
    }
}

/// [`map`] for numbers that may be integers, which have a function of their own; it wraps to the width of the type.
pub fn map_number(x: &Tensor, f: impl Fn(f64) -> f64, g: impl Fn(i64) -> i64) -> Result<Tensor> {
    match x.dtype().is_int() {
        true => Tensor::from_i64(x.dtype(), x.shape(), &x.to_i64()?.into_iter().map(g).collect::<Vec<i64>>()),
        false => map(x, f),
    }
}

/// A tensor of the element type of `like` from numbers, each rounded once; integers truncate and saturate.
pub fn values(like: &Tensor, shape: &[usize], values: Vec<f64>) -> Result<Tensor> {
    match like.dtype() {
        dtype if dtype.is_float() => Tensor::from_f64(dtype, shape, values),
        dtype => Tensor::from_f64(DType::F64, shape, values)?.cast(dtype),
    }
}

/// Applies `f` to each element of a floating-point tensor [B, C, ...] and the parameters of its channel, each of them C
/// numbers.
pub fn per_channel(x: &Tensor, params: &[Vec<f64>], f: impl Fn(f64, &[f64]) -> f64) -> Result<Tensor> {
    let channels = x.shape().get(1).copied().unwrap_or(0);
    if let Some(wrong) = params.iter().find(|p| p.len() != channels) {
        bail!("found {} parameters, expected one for each of {channels} channels", wrong.len());
    }
    let inner = count(x.shape().get(2..).unwrap_or(&[]))?;
    let mut y = x.to_f64()?;
    for (i, plane) in y.chunks_exact_mut(inner.max(1)).enumerate() {
        let params: Vec<f64> = params.iter().map(|p| p[i % channels]).collect();
        plane.iter_mut().for_each(|v| *v = f(*v, &params));
    }
    values(x, x.shape(), y)
}

/// The element type of a computation on two: their own if they agree, the wider float if a program that declares one
/// is run in the other.
pub fn common(a: DType, b: DType) -> Result<DType> {
    match (a, b) {
        _ if a == b => Ok(a),
        _ if a.is_float() && b.is_float() => Ok(a.max(b)),
        _ => bail!("element types {a} and {b} differ"),
    }
}

/// Applies a function to the pairs of elements that broadcasting puts together: `f` for floats, which is rounded once,
/// `g` for integers, which wraps to their width.
pub fn zip(x: &Tensor, y: &Tensor, f: impl Fn(f64, f64) -> f64, g: impl Fn(i64, i64) -> i64) -> Result<Tensor> {
    let dtype = common(x.dtype(), y.dtype())?;
    let shape = broadcast(x.shape(), y.shape())?;
    let (xs, ys) = (x.shape(), y.shape());
    match dtype {
        DType::F32 => {
            let f = |a, b| f(f64::from(a), f64::from(b)) as f32;
            Tensor::from_vec(shape, pairs((&x.to_f32()?, xs), (&y.to_f32()?, ys), f)?)
        }
        DType::F16 => {
            let f = |a, b| f16::from_f64(f(f64::from(a), f64::from(b)));
            Tensor::from_vec(shape, pairs((&x.to_f32()?, xs), (&y.to_f32()?, ys), f)?)
        }
        _ if dtype.is_float() => Tensor::from_f64(dtype, shape, pairs((&x.to_f64()?, xs), (&y.to_f64()?, ys), f)?),
        _ => Tensor::from_i64(dtype, shape, &pairs((&x.to_i64()?, xs), (&y.to_i64()?, ys), g)?),
    }
}

/// What a function gives for each pair of elements that broadcasting puts together, in row-major order. Each side is
/// its elements and its shape, which must agree.
pub fn pairs<A: Copy, B: Copy, C>(x: (&[A], &[usize]), y: (&[B], &[usize]), f: impl Fn(A, B) -> C) -> Result<Vec<C>> {
    let shape = broadcast(x.1, y.1)?;
    let mut out = room(count(&shape)?)?;
    if x.1 == y.1 {
        out.extend(x.0.iter().zip(y.0).map(|(&a, &b)| f(a, b)));
        return Ok(out);
    }
    if out.capacity() == 0 {
        return Ok(out);
    }
    // Row by row along the last axis, where each side either runs along or stands still.
    let (mut x_strides, mut y_strides) = (strides_in(x.1, &shape), strides_in(y.1, &shape));
    let (last, dx, dy) = match (shape.split_last(), x_strides.pop(), y_strides.pop()) {
        (Some((&last, _)), Some(dx), Some(dy)) => (last, dx, dy),
        _ => (1, 0, 0),
    };
    for [x_at, y_at] in Walk::new(&shape[..shape.len().saturating_sub(1)], [x_strides, y_strides])? {
        match (dx, dy) {
            (0, 0) => out.extend((0..last).map(|_| f(x.0[x_at], y.0[y_at]))),
            (0, _) => out.extend(y.0[y_at..y_at + last].iter().map(|&b| f(x.0[x_at], b))),
            (_, 0) => out.extend(x.0[x_at..x_at + last].iter().map(|&a| f(a, y.0[y_at]))),
            _ => out.extend(x.0[x_at..x_at + last].iter().zip(&y.0[y_at..y_at + last]).map(|(&a, &b)| f(a, b))),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcasting_repeats_on_either_side() {
        let x = Tensor::from_vec([2, 1, 2], vec![1f32, 2.0, 3.0, 4.0]).unwrap();
        let y = Tensor::from_vec([3, 1], vec![10f32, 20.0, 30.0]).unwrap();
        let sum = zip(&x, &y, |a, b| a + b, i64::wrapping_add).unwrap();
        assert_eq!(sum.shape(), [2, 3, 2]);
        let expected = [11.0, 12.0, 21.0, 22.0, 31.0, 32.0, 13.0, 14.0, 23.0, 24.0, 33.0, 34.0];
        assert_eq!(sum.to_f32().unwrap(), expected);
        let scalar = zip(&Tensor::scalar(1f32), &x, |a, b| a - b, i64::wrapping_sub).unwrap();
        assert_eq!(scalar.to_f32().unwrap(), [0.0, -1.0, -2.0, -3.0]);
        let empty = Tensor::zeros(DType::F32, [0, 2]).unwrap();
        assert_eq!(zip(&empty, &Tensor::scalar(1f32), |a, b| a + b, |a, _| a).unwrap().shape(), [0, 2]);
        assert!(zip(&x, &Tensor::vector(vec![0f32; 3]), |a, _| a, |a, _| a).is_err());
    }

    #[test]
    fn groups_run_over_their_axes() {
        let groups = Groups::new(&[2, 3, 2], &[0, 2]).unwrap();
        let all: Vec<Vec<usize>> = groups.iter().map(Iterator::collect).collect();
        assert_eq!(all, [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]);
        let empty = Groups::new(&[2, 0], &[1]).unwrap();
        assert_eq!((empty.starts.len(), empty.offsets.len()), (2, 0));
    }

    #[test]
    fn elements_are_taken_whatever_their_width() {
        let x = Tensor::from_codes(DType::U3, [4], &[1, 2, 3, 7]).unwrap();
        assert_eq!(take(&x, &[2], [3, 0].into_iter()).unwrap().codes().unwrap(), [7, 1]);
        let x = Tensor::vector(vec![1f32, 2.0]);
        assert_eq!(take(&x, &[3], [1, 1, 0].into_iter()).unwrap().to_f32().unwrap(), [2.0, 2.0, 1.0]);
        assert!(take(&x, &[1], [2].into_iter()).is_err());
        assert!(count(&[usize::MAX, 2]).is_err());
    }

    #[test]
    fn sums_in_fp16_are_rounded_once() {
        let x = Tensor::scalar(f16::from_f32(2048.0));
        let y = Tensor::scalar(f16::from_f32(1.0));
        let sum = zip(&x, &y, |a, b| (a + b) * 1.5, |a, _| a).unwrap();
        // 3073.5 is between 3072 and 3074 and rounds up; with the sum rounded first it would be 3072.
        assert_eq!(sum.to_f32().unwrap(), [3074.0]);
    }
}
