//! Copies between row-major memory and views with strides: what transposing, slicing and broadcasting are.

/// A view: the offset of its first element and, for each axis, how far the next element lies. Sizes are those of the
/// result.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub offset: isize,
    pub sizes: Vec<usize>,
    pub strides: Vec<isize>,
}

/// The strides of a row-major tensor.
pub(crate) fn row_major(shape: &[usize]) -> Vec<isize> {
    let mut strides = vec![1isize; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * shape[i] as isize;
    }
    strides
}

/// The strides with which a tensor of `shape` is read as `out`, broadcasting as NumPy does.
pub(crate) fn broadcast(shape: &[usize], out: &[usize]) -> Vec<isize> {
    let own = row_major(shape);
    let missing = out.len() - shape.len();
    (0..out.len()).map(|i| if i < missing || shape[i - missing] == 1 { 0 } else { own[i - missing] }).collect()
}

impl View {
    /// The view with axes of size one dropped and neighbouring axes joined where they lie one after the other.
    fn joined(&self) -> View {
        let (mut sizes, mut strides) = (Vec::<usize>::new(), Vec::<isize>::new());
        for (&size, &stride) in self.sizes.iter().zip(&self.strides) {
            if size == 1 {
                continue;
            }
            match (sizes.last_mut(), strides.last_mut()) {
                (Some(n), Some(s)) if *s == stride * size as isize => {
                    *n *= size;
                    *s = stride;
                }
                _ => {
                    sizes.push(size);
                    strides.push(stride);
                }
            }
        }
        View { offset: self.offset, sizes, strides }
    }

    /// Calls `f(place in the result, offset in the source, length, stride)` for each run along the last axis.
    pub fn runs(&self, mut f: impl FnMut(usize, isize, usize, isize)) {
        let view = self.joined();
        if self.sizes.contains(&0) {
            return;
        }
        let (inner, stride) = match (view.sizes.last(), view.strides.last()) {
            (Some(&n), Some(&s)) => (n, s),
            _ => (1, 1),
        };
        let outer = view.sizes.len().saturating_sub(1);
        let mut index = vec![0usize; outer];
        let (mut place, mut offset) = (0, view.offset);
        loop {
            f(place, offset, inner, stride);
            place += inner;
            let mut axis = outer;
            loop {
                if axis == 0 {
                    return;
                }
                axis -= 1;
                index[axis] += 1;
                offset += view.strides[axis];
                if index[axis] < view.sizes[axis] {
                    break;
                }
                offset -= view.strides[axis] * view.sizes[axis] as isize;
                index[axis] = 0;
            }
        }
    }

    /// Copies the view of `source` to row-major `out`. The caller has checked that the view lies inside.
    pub fn gather<T: Copy>(&self, source: &[T], out: &mut [T]) {
        self.runs(|place, offset, len, stride| {
            let run = &mut out[place..place + len];
            match stride {
                1 => run.copy_from_slice(&source[offset as usize..offset as usize + len]),
                0 => run.fill(source[offset as usize]),
                _ => {
                    for (i, value) in run.iter_mut().enumerate() {
                        *value = source[(offset + i as isize * stride) as usize];
                    }
                }
            }
        });
    }

    /// Copies row-major `source` to the view of `out`, converting each element.
    pub fn scatter<T: Copy, U>(&self, source: &[T], out: &mut [U], convert: impl Fn(T) -> U) {
        self.runs(|place, offset, len, stride| {
            for (i, &value) in source[place..place + len].iter().enumerate() {
                out[(offset + i as isize * stride) as usize] = convert(value);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transpose_is_a_view() {
        let x: Vec<i32> = (0..6).collect();
        let view = View { offset: 0, sizes: vec![3, 2], strides: vec![1, 3] };
        let mut y = vec![0; 6];
        view.gather(&x, &mut y);
        assert_eq!(y, [0, 3, 1, 4, 2, 5]);
        let mut back = vec![0; 6];
        view.scatter(&y, &mut back, |v| v);
        assert_eq!(back, x);
    }

    #[test]
    fn axes_that_lie_together_are_one_run() {
        let view = View { offset: 4, sizes: vec![2, 1, 3, 2], strides: vec![12, 7, 2, 1] };
        let mut runs = Vec::new();
        view.runs(|place, offset, len, stride| runs.push((place, offset, len, stride)));
        assert_eq!(runs, [(0, 4, 6, 1), (6, 16, 6, 1)]);
    }

    #[test]
    fn broadcasting_repeats_and_reversing_steps_back() {
        let mut y = vec![0; 6];
        View { offset: 0, sizes: vec![3, 2], strides: broadcast(&[1, 2], &[3, 2]) }.gather(&[1, 2], &mut y);
        assert_eq!(y, [1, 2, 1, 2, 1, 2]);
        View { offset: 2, sizes: vec![3], strides: vec![-1] }.gather(&[1, 2, 3], &mut y[..3]);
        assert_eq!(y[..3], [3, 2, 1]);
    }
}
