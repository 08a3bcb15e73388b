//! How elements lie in memory: checked sizes, views by strides, and copies that never look at what they move.

use super::elements::room;
use crate::{Args, DType, Dim, Error, Op, Result, Tensor, TensorType, ValueType, bail};
use quince_tensor::Bytes;

/// Results with more elements than this are refused: no machine holds them, and products of sizes stay far from
/// overflow.
pub const MOST_ELEMENTS: usize = 1 << 40;

/// The number of elements of a shape, refused above [`MOST_ELEMENTS`].
pub fn count(shape: &[usize]) -> Result<usize> {
    // Sizes beside a 0 are bounded too, so that products of some of the sizes do not overflow either.
    let product = shape.iter().try_fold(1usize, |n, &dim| n.checked_mul(dim.max(1)));
    match product {
        Some(n) if n <= MOST_ELEMENTS => Ok(if shape.contains(&0) { 0 } else { n }),
        _ => bail!("a tensor of shape {shape:?} is too large, expected at most 2^40 elements"),
    }
}

/// The one result of an operation, refused when it is too large whatever its unknown sizes are.
pub fn result(dtype: DType, shape: Vec<Dim>) -> Result<Vec<ValueType>> {
    let fixed: Vec<usize> = shape.iter().filter_map(|dim| dim.fixed()).collect();
    count(&fixed)?;
    Ok(vec![TensorType { dtype, shape }.into()])
}

/// The shape of the one result for arguments whose values are known. An `eval` that begins with it computes only what
/// `infer` accepts, also where the types that were checked earlier had unknown sizes.
pub fn result_shape(op: &dyn Op, args: &Args) -> Result<Vec<usize>> {
    let types = op.infer(args)?;
    let shape = match &types[..] {
        [ValueType::Tensor(ty)] => ty.dims(),
        _ => None,
    };
    shape.ok_or_else(|| Error::new("the size of the result does not follow from the arguments"))
}

/// Sizes as they are known.
pub fn fixed(shape: &[usize]) -> Vec<Dim> {
    shape.iter().map(|&n| Dim::Fixed(n)).collect()
}

/// A vector of `len` times `value`, or an error where memory for it is not to be had.
pub fn filled<T: Clone>(len: usize, value: T) -> Result<Vec<T>> {
    let mut out = room(len)?;
    out.resize(len, value);
    Ok(out)
}

/// The elements of a tensor as cells of whole bytes; those of less than a byte get one each.
pub struct Cells {
    /// Bytes per cell: 1, 2, 4 or 8.
    pub width: usize,
    /// The cells in row-major order.
    pub bytes: Bytes,
}

impl Cells {
    /// The cells of a tensor, shared where elements take whole bytes.
    pub fn of(x: &Tensor) -> Result<Cells> {
        Ok(match x.dtype().is_sub_byte() {
            true => Cells { width: 1, bytes: Bytes::from_vec(x.codes()?) },
            false => Cells { width: x.dtype().bits() / 8, bytes: x.bytes().clone() },
        })
    }

    /// A run of cells; an error if it is not inside.
    pub fn run(&self, start: usize, len: usize) -> Result<&[u8]> {
        let range = start.checked_mul(self.width).zip(len.checked_mul(self.width));
        let run = range.and_then(|(start, len)| self.bytes.get(start..start.checked_add(len)?));
        run.ok_or_else(|| Error::new(format!("elements {start}..{start}+{len} lie outside of the tensor")))
    }
}

/// A tensor from cells in row-major order.
pub fn from_cells(dtype: DType, shape: &[usize], cells: Vec<u8>) -> Result<Tensor> {
    match dtype.is_sub_byte() {
        true => Tensor::from_codes(dtype, shape, &cells),
        false => Ok(Tensor::new(dtype, shape, Bytes::from_vec(cells))?.aligned()),
    }
}

/// Elements of a tensor in another order or number: where the first lies, and along each axis how many there are and
/// how far apart, in elements. A step of 0 repeats, a negative one goes backwards.
#[derive(Clone, Debug)]
pub struct View {
    /// The index of the first element.
    pub first: usize,
    /// Size and step along each axis.
    pub axes: Vec<(usize, isize)>,
}

/// The step along each axis of a row-major tensor; 0 where there is no element to step to.
pub fn steps(shape: &[usize]) -> Vec<isize> {
    if shape.contains(&0) {
        return vec![0; shape.len()];
    }
    let mut steps = vec![1isize; shape.len()];
    for axis in (1..shape.len()).rev() {
        steps[axis - 1] = steps[axis].saturating_mul(shape[axis] as isize);
    }
    steps
}

impl View {
    /// All elements in their order.
    pub fn whole(shape: &[usize]) -> View {
        View { first: 0, axes: shape.iter().copied().zip(steps(shape)).collect() }
    }

    /// The size along each axis.
    pub fn shape(&self) -> Vec<usize> {
        self.axes.iter().map(|axis| axis.0).collect()
    }

    /// The elements of `x`, as a tensor of the view's shape.
    pub fn take(&self, x: &Tensor) -> Result<Tensor> {
        self.take_as(x, &self.shape())
    }

    /// The elements of `x`, as a tensor of a shape with as many elements.
    pub fn take_as(&self, x: &Tensor, shape: &[usize]) -> Result<Tensor> {
        let len = count(&self.shape())?;
        if count(shape)? != len {
            bail!("{len} elements do not make a tensor of shape {shape:?}");
        }
        self.check(x.len())?;
        let cells = Cells::of(x)?;
        let out = match cells.width {
            1 => self.copy::<1>(&cells.bytes, len)?,
            2 => self.copy::<2>(&cells.bytes, len)?,
            4 => self.copy::<4>(&cells.bytes, len)?,
            _ => self.copy::<8>(&cells.bytes, len)?,
        };
        from_cells(x.dtype(), shape, out)
    }

    /// `x` with these elements replaced by those of `update`, which has as many; floats take the type of `x`.
    pub fn put(&self, x: &Tensor, update: &Tensor) -> Result<Tensor> {
        let len = count(&self.shape())?;
        if update.len() != len {
            bail!("found an update of {} elements, expected {len}", update.len());
        }
        self.check(x.len())?;
        let (target, source) = (Cells::of(x)?, Cells::of(&update.cast(x.dtype())?)?);
        let mut bytes = room(target.bytes.len())?;
        bytes.extend_from_slice(&target.bytes);
        match target.width {
            1 => self.paste::<1>(&source.bytes, &mut bytes),
            2 => self.paste::<2>(&source.bytes, &mut bytes),
            4 => self.paste::<4>(&source.bytes, &mut bytes),
            _ => self.paste::<8>(&source.bytes, &mut bytes),
        }
        from_cells(x.dtype(), x.shape(), bytes)
    }

    fn copy<const W: usize>(&self, from: &[u8], len: usize) -> Result<Vec<u8>> {
        let (cells, _) = from.as_chunks::<W>();
        let mut out: Vec<[u8; W]> = room(len)?;
        self.runs(|start, len, step| match step {
            1 => out.extend_from_slice(&cells[start..start + len]),
            _ => out.extend((0..len).map(|i| cells[at(start, i, step)])),
        });
        Ok(out.into_flattened())
    }

    fn paste<const W: usize>(&self, from: &[u8], to: &mut [u8]) {
        let ((mut source, _), (target, _)) = (from.as_chunks::<W>(), to.as_chunks_mut::<W>());
        self.runs(|start, len, step| {
            let (run, rest) = source.split_at(len);
            source = rest;
            match step {
                1 => target[start..start + len].copy_from_slice(run),
                _ => run.iter().enumerate().for_each(|(i, cell)| target[at(start, i, step)] = *cell),
            }
        });
    }

    /// Refuses a view that leaves a tensor of `len` elements.
    fn check(&self, len: usize) -> Result<()> {
        if self.axes.iter().any(|axis| axis.0 == 0) {
            return Ok(());
        }
        let (mut low, mut high) = (self.first as i128, self.first as i128);
        for &(size, step) in &self.axes {
            let reach = (size as i128 - 1) * step as i128;
            if reach < 0 { low += reach } else { high += reach }
        }
        if low < 0 || high >= len as i128 {
            bail!("a view of elements {low} to {high} leaves a tensor of {len}");
        }
        Ok(())
    }

    /// Calls `f` with start, length and step of each run along the last axis, in order.
    fn runs(&self, mut f: impl FnMut(usize, usize, isize)) {
        if self.axes.iter().any(|axis| axis.0 == 0) {
            return;
        }
        let mut outer = self.merged();
        let (len, step) = outer.pop().unwrap_or((1, 1));
        let mut index = vec![0usize; outer.len()];
        let mut start = self.first as isize;
        loop {
            f(start as usize, len, step);
            let mut axis = outer.len();
            loop {
                if axis == 0 {
                    return;
                }
                axis -= 1;
                let (size, step) = outer[axis];
                index[axis] += 1;
                start += step;
                if index[axis] < size {
                    break;
                }
                start -= step * size as isize;
                index[axis] = 0;
            }
        }
    }

    /// The axes without those of size 1, and with neighbours that lie end to end made one.
    fn merged(&self) -> Vec<(usize, isize)> {
        let mut out: Vec<(usize, isize)> = Vec::with_capacity(self.axes.len());
        for &(size, step) in self.axes.iter().filter(|axis| axis.0 != 1) {
            match out.last_mut() {
                Some(last) if last.1 == step * size as isize => *last = (last.0 * size, step),
                _ => out.push((size, step)),
            }
        }
        out
    }
}

fn at(start: usize, i: usize, step: isize) -> usize {
    (start as isize + i as isize * step) as usize
}

/// Calls `f` with first element, length and group of each run of elements of a row-major tensor that share a group.
/// Along each axis there are `groups` of equal size; groups are numbered in row-major order.
pub fn group_runs(shape: &[usize], groups: &[usize], mut f: impl FnMut(usize, usize, usize)) -> Result<()> {
    let divides = |(&size, &groups): (&usize, &usize)| groups > 0 && size % groups == 0;
    if shape.len() != groups.len() || !shape.iter().zip(groups).all(divides) {
        bail!("groups {groups:?} do not divide a shape {shape:?}");
    }
    let total = count(shape)?;
    if total == 0 {
        return Ok(());
    }
    let Some(axis) = groups.iter().rposition(|&groups| groups > 1) else {
        f(0, total, 0);
        return Ok(());
    };
    let run = shape[axis] / groups[axis] * shape[axis + 1..].iter().product::<usize>();
    let blocks: Vec<usize> = shape.iter().zip(groups).map(|(size, groups)| size / groups).collect();
    let mut index = vec![0usize; axis];
    for row in 0..shape[..axis].iter().product() {
        let outer = index.iter().zip(&blocks).zip(groups).fold(0, |n, ((i, block), groups)| n * groups + i / block);
        for group in 0..groups[axis] {
            f((row * groups[axis] + group) * run, run, outer * groups[axis] + group);
        }
        for i in (0..axis).rev() {
            index[i] += 1;
            if index[i] < shape[i] {
                break;
            }
            index[i] = 0;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_reorder_repeat_and_reverse() {
        let x = Tensor::from_vec([2, 3], vec![0i32, 1, 2, 3, 4, 5]).unwrap();
        let take = |first, axes: &[(usize, isize)]| View { first, axes: axes.to_vec() }.take(&x).unwrap();
        assert_eq!(take(0, &[(3, 1), (2, 3)]).to_i64().unwrap(), [0, 3, 1, 4, 2, 5]);
        assert_eq!(take(5, &[(6, -1)]).to_i64().unwrap(), [5, 4, 3, 2, 1, 0]);
        assert_eq!(take(1, &[(2, 0), (2, 3)]).to_i64().unwrap(), [1, 4, 1, 4]);
        assert_eq!(take(0, &[(2, 3), (0, 1)]).shape(), [2, 0]);
        assert!(View { first: 4, axes: vec![(3, 1)] }.take(&x).is_err());
        assert!(View { first: 1, axes: vec![(3, -1)] }.take(&x).is_err());
    }

    #[test]
    fn packed_elements_move_too() {
        let x = Tensor::from_codes(DType::U3, [2, 3], &[0, 1, 2, 5, 6, 7]).unwrap();
        let t = View { first: 0, axes: vec![(3, 1), (2, 3)] }.take(&x).unwrap();
        assert_eq!(t.codes().unwrap(), [0, 5, 1, 6, 2, 7]);
        let put = View { first: 2, axes: vec![(2, 3)] }.put(&x, &Tensor::vector(vec![3u8, 4])).unwrap();
        assert_eq!(put.codes().unwrap(), [0, 1, 3, 5, 6, 4]);
    }

    #[test]
    fn runs_of_groups_cover_every_element_once() {
        let mut groups = vec![None; 24];
        let mark = |first: usize, len, group| {
            (first..first + len).for_each(|i| assert_eq!(groups[i].replace(group), None));
        };
        group_runs(&[4, 2, 3], &[2, 1, 3], mark).unwrap();
        let expected = (0..24).map(|i| Some(i / 12 * 3 + i % 3));
        assert!(groups.iter().copied().eq(expected));
        assert!(group_runs(&[4], &[3], |_, _, _| ()).is_err() && group_runs(&[4], &[0], |_, _, _| ()).is_err());
    }

    #[test]
    fn sizes_beyond_memory_are_refused() {
        assert!(count(&[1 << 20, 1 << 21]).is_err() && count(&[usize::MAX, 2]).is_err());
        assert!(result(DType::F16, vec![Dim::Fixed(1 << 41), Dim::Unknown]).is_err());
    }
}
