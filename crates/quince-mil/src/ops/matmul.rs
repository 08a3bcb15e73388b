//! `matmul` and `einsum`: matrix products over batches.

use super::elements::{Walk, strides_in};
use super::layout::{View, count, filled, result, result_shape};
use super::shape_rules::{broadcast, merge, show};
use crate::op::{FLOAT, NUMBER};
use crate::{Args, Dim, Op, Param, Result, Tensor, TensorType, ValueType, bail};

/// See [`Op::doc`].
pub struct Matmul;

impl Op for Matmul {
    fn name(&self) -> &'static str {
        "matmul"
    }

    fn doc(&self) -> &'static str {
        "The matrix product x · y of the last two axes, [.., M, K] and [.., K, N], of which each may be transposed first; \
         the axes before broadcast as in NumPy. A vector x counts as one row, a vector y as one column, and that axis is \
         dropped from the result."
    }

    fn params(&self) -> &'static [Param] {
        const {
            &[
                Param::new("x").types(NUMBER),
                Param::new("y").types(NUMBER),
                Param::new("transpose_x").constant().or_bool(false),
                Param::new("transpose_y").constant().or_bool(false),
            ]
        }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let (x, y) = (args.ty("x")?, args.ty("y")?);
        same_kind(x, y)?;
        let (a, b) = (matrix(&x.shape, args.bool("transpose_x")?, 0)?, matrix(&y.shape, args.bool("transpose_y")?, 1)?);
        let ([a_batch @ .., m, k], [b_batch @ .., inner, n]) = (&a[..], &b[..]) else {
            bail!("found x {} and y {}, expected matrices", show(&x.shape), show(&y.shape));
        };
        if merge(*k, *inner).is_err() {
            bail!("the matrices {} and {} do not multiply, expected [.., M, K] and [.., K, N]", show(&a), show(&b));
        }
        let mut shape = broadcast(a_batch, b_batch)?;
        shape.extend((x.shape.len() > 1).then_some(*m));
        shape.extend((y.shape.len() > 1).then_some(*n));
        result(x.dtype, shape)
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let shape = result_shape(self, args)?;
        let x = matrices(args.tensor("x")?, args.bool("transpose_x")?, 0)?;
        let y = matrices(args.tensor("y")?, args.bool("transpose_y")?, 1)?;
        Ok(vec![multiply(&x, &y)?.reshape(shape)?])
    }
}

/// Refuses factors of different element types, but for floats of another width in a program that runs in a wider one.
fn same_kind(x: &TensorType, y: &TensorType) -> Result<()> {
    if x.dtype != y.dtype && !(x.dtype.is_float() && y.dtype.is_float()) {
        bail!("x and y are of type {} and {}, expected one type", x.dtype, y.dtype);
    }
    Ok(())
}

/// The shape of an argument as a matrix: transposed if asked for; `vector_axis` says where a vector gets its 1.
fn matrix(shape: &[Dim], transposed: bool, vector_axis: usize) -> Result<Vec<Dim>> {
    let mut shape = shape.to_vec();
    match shape.len() {
        0 => bail!("found a scalar, expected a vector or matrix"),
        1 if transposed => bail!("found a vector that is to be transposed, expected a matrix"),
        1 => shape.insert(vector_axis, Dim::Fixed(1)),
        rank if transposed => shape.swap(rank - 2, rank - 1),
        _ => {}
    }
    Ok(shape)
}

/// An argument as matrices of row-major order.
fn matrices(x: Tensor, transposed: bool, vector_axis: usize) -> Result<Tensor> {
    let mut shape = x.shape().to_vec();
    if shape.len() == 1 {
        shape.insert(vector_axis, 1);
        return x.reshape(shape);
    }
    let mut view = View::whole(&shape);
    if transposed && shape.len() >= 2 {
        view.axes.swap(shape.len() - 2, shape.len() - 1);
    }
    if transposed { view.take(&x) } else { Ok(x) }
}

/// The product of matrices in row-major order, whose batches broadcast, in the element type of `x`.
fn multiply(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let ([x_batch @ .., m, k], [y_batch @ .., inner, n]) = (x.shape(), y.shape()) else {
        bail!("found {x:?} and {y:?}, expected matrices");
    };
    if k != inner {
        bail!("{x:?} and {y:?} do not multiply");
    }
    let batch = super::elements::broadcast(x_batch, y_batch)?;
    let mut shape = batch.clone();
    shape.extend([*m, *n]);
    let (a, b) = (x.to_f64()?, y.to_f64()?);
    let mut out = filled(count(&shape)?, 0.0)?;
    let strides = [strides_in(x_batch, &batch), strides_in(y_batch, &batch)];
    for (i, [xi, yi]) in Walk::new(&batch, strides)?.enumerate() {
        let (a, b) = (&a[xi * m * k..][..m * k], &b[yi * k * n..][..k * n]);
        product(a, b, *k, *n, &mut out[i * m * n..][..m * n]);
    }
    super::elements::values(x, &shape, out)
}

/// Adds the product of row-major matrices [M, K] and [K, N] to `out` [M, N]. It runs along the rows of the second, so
/// that the sum for one element is in the order of K.
pub fn product(a: &[f64], b: &[f64], k: usize, n: usize, out: &mut [f64]) {
    if k == 0 || n == 0 {
        return;
    }
    for (row, out) in a.chunks_exact(k).zip(out.chunks_exact_mut(n)) {
        for (factor, b) in row.iter().zip(b.chunks_exact(n)) {
            for (out, b) in out.iter_mut().zip(b) {
                *out += factor * b;
            }
        }
    }
}

/// See [`Op::doc`].
pub struct Einsum;

impl Op for Einsum {
    fn name(&self) -> &'static str {
        "einsum"
    }

    fn doc(&self) -> &'static str {
        "The two products that Core ML has in Einstein's notation: `nchw,nwhu->nchu` and `chw,whr->chr`, in any letters. \
         Sizes of 1 of n and h broadcast."
    }

    fn params(&self) -> &'static [Param] {
        const { &[Param::new("values").variadic().types(FLOAT), Param::new("equation").constant()] }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let (x, y) = pair(args)?;
        same_kind(x, y)?;
        let rank = equation_rank(args.str("equation")?)?;
        if x.shape.len() != rank || y.shape.len() != rank {
            bail!("found values {} and {}, expected {rank} axes each", show(&x.shape), show(&y.shape));
        }
        let [c, h, w] = [x.shape[rank - 3], x.shape[rank - 2], x.shape[rank - 1]];
        let [inner, h2, u] = [y.shape[rank - 3], y.shape[rank - 2], y.shape[rank - 1]];
        merge(w, inner)?;
        let batch = broadcast(&x.shape[..rank - 3], &y.shape[..rank - 3])?;
        result(x.dtype, [&batch[..], &[c], &broadcast(&[h], &[h2])?, &[u]].concat())
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let shape = result_shape(self, args)?;
        let [x, y] = args.many("values") else { bail!("found another number of values, expected two") };
        // With h before the matrix axes, [.., h, c, w] · [.., h, w, u] is a batch of plain products.
        let product = multiply(&swapped(&x.tensor()?)?, &swapped(&y.tensor()?)?)?;
        Ok(vec![swapped(&product)?.reshape(shape)?])
    }
}

/// `x` with the last axis but one and the one before exchanged.
fn swapped(x: &Tensor) -> Result<Tensor> {
    let mut view = View::whole(x.shape());
    let rank = view.axes.len();
    if rank < 3 {
        bail!("found {x:?}, expected three axes or more");
    }
    view.axes.swap(rank - 3, rank - 2);
    view.take(x)
}

fn pair<'a>(args: &'a Args) -> Result<(&'a TensorType, &'a TensorType)> {
    match args.many("values") {
        [x, y] => Ok((x.tensor_type()?, y.tensor_type()?)),
        several => bail!("found {} values, expected two", several.len()),
    }
}

/// The rank of the values of one of the two equations, whatever its letters.
fn equation_rank(equation: &str) -> Result<usize> {
    let letters: String = equation.chars().filter(|c| !c.is_whitespace()).collect();
    let canonical = |sample: &str| {
        let (mut seen, mut out) = (Vec::new(), String::new());
        for c in sample.chars() {
            let at = seen.iter().position(|&s| s == c).unwrap_or_else(|| {
                seen.push(c);
                seen.len() - 1
            });
            out.push(if c.is_alphabetic() { (b'a' + (at % 26) as u8) as char } else { c });
        }
        out
    };
    for (known, rank) in [("nchw,nwhu->nchu", 4), ("chw,whr->chr", 3)] {
        if canonical(&letters) == canonical(known) {
            return Ok(rank);
        }
    }
    bail!("found the equation `{equation}`, expected the form of nchw,nwhu->nchu or chw,whr->chr")
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::op::ArgInfo;
    use crate::{DType, Value};

    fn matmul(x: Value, y: Value, transposed: [bool; 2]) -> Result<Tensor> {
        let [tx, ty] = transposed;
        run(&Matmul, vec![("x", x), ("y", y), ("transpose_x", tx.into()), ("transpose_y", ty.into())])
    }

    #[test]
    fn either_side_may_be_transposed() {
        let expected = [10.0, 13.0, 28.0, 40.0];
        let (x, y) = (f32s(&[2, 3], &[0., 1., 2., 3., 4., 5.]), f32s(&[3, 2], &[0., 1., 2., 3., 4., 5.]));
        let (xt, yt) = (f32s(&[3, 2], &[0., 3., 1., 4., 2., 5.]), f32s(&[2, 3], &[0., 2., 4., 1., 3., 5.]));
        assert_eq!(matmul(x.clone(), y.clone(), [false, false]).unwrap().to_f32().unwrap(), expected);
        assert_eq!(matmul(xt.clone(), yt.clone(), [true, true]).unwrap().to_f32().unwrap(), expected);
        assert_eq!(matmul(x.clone(), yt, [false, true]).unwrap().to_f32().unwrap(), expected);
        assert!(matmul(x, xt, [true, false]).is_err());
        let (row, column): (Value, Value) = (vec![1, 2, 3].into(), vec![4, 5, 6].into());
        let dot = matmul(row, column, [false, false]).unwrap();
        assert_eq!((dot.rank(), dot.to_i64().unwrap()), (0, vec![32]));
    }

    #[test]
    fn batches_broadcast() {
        let y = matmul(iota(&[2, 1, 1, 2]), iota(&[3, 2, 1]), [false, false]).unwrap();
        assert_eq!((y.shape(), y.to_f32().unwrap()), (&[2, 3, 1, 1][..], vec![1., 3., 5., 3., 13., 23.]));
        let y = matmul(iota(&[2]), iota(&[3, 2, 1]), [false, false]).unwrap();
        assert_eq!((y.shape(), y.to_f32().unwrap()), (&[3, 1][..], vec![1., 3., 5.]));
        let entries = vec![("x", typed(DType::F16, &[-1, 4, 8])), ("y", typed(DType::F16, &[8, -1]))];
        assert_eq!(inferred(&Matmul, entries).unwrap(), [-1, 4, -1]);
    }

    fn einsum(equation: &str, x: Value, y: Value) -> Result<Tensor> {
        let known = ArgInfo::known;
        let entries = vec![("values", vec![known(x), known(y)]), ("equation", vec![known(equation.into())])];
        Ok(run_all(&Einsum, &Args::new(&Einsum, entries))?.remove(0))
    }

    /// Expected values: `np.einsum("chw,whr->chr", np.arange(8.).reshape(2, 2, 2), np.arange(12.).reshape(2, 2, 3))`.
    #[test]
    fn einsum_multiplies_the_axes_around_h() {
        let y = einsum("abc,cbd->abd", iota(&[2, 2, 2]), iota(&[2, 2, 3])).unwrap();
        assert_eq!(y.to_f32().unwrap(), [6., 7., 8., 33., 38., 43., 30., 39., 48., 81., 94., 107.]);
        let y = einsum("nchw,nwhu->nchu", iota(&[1, 1, 1, 2]), iota(&[2, 2, 1, 1])).unwrap();
        assert_eq!((y.shape(), y.to_f32().unwrap()), (&[2, 1, 1, 1][..], vec![1.0, 3.0]));
        assert!(einsum("chw,hwr->chr", iota(&[2, 2, 2]), iota(&[2, 2, 3])).is_err());
        assert!(einsum("chw,whr->chr", iota(&[2, 2]), iota(&[2, 2])).is_err());
    }
}
