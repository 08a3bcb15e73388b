//! Products: with packed weights, and of two computed matrices.

use crate::kernels::{self, PackedWeight, Rhs};
use crate::memory::{Operand, without_padding};
use crate::planner::{Place, Planner};
use crate::strided::{View, broadcast, row_major};
use quince_mil::{Operation, Result, Var};

/// `linear`: products of the same x are one step, so that x is prepared once and threads meet once.
pub(super) fn linear(planner: &mut Planner, operation: &Operation) -> Result<bool> {
    let Some(x) = operation.var("x") else { return Ok(false) };
    let mut factors = Vec::new();
    for sibling in planner.take_products(x) {
        if let Some(factor) = Factor::of(planner, sibling)? {
            factors.push((factor, sibling.outputs[0]));
        }
    }
    // If this one is not among them, the others still are done here: they count as done.
    let done = factors.iter().any(|(_, out)| operation.outputs.first() == Some(out));
    if !factors.is_empty() {
        products(planner, operation, x, factors)?;
    }
    Ok(done)
}

/// `logits`.
pub(super) fn logits(planner: &mut Planner, operation: &Operation) -> Result<bool> {
    let (Some(x), [out]) = (operation.var("x"), &operation.outputs[..]) else { return Ok(false) };
    match Factor::of(planner, operation)? {
        Some(factor) => products(planner, operation, x, vec![(factor, *out)]),
        None => Ok(false),
    }
}

/// What x is multiplied with and what is added.
struct Factor {
    weight: PackedWeight,
    bias: Option<Operand>,
}

impl Factor {
    /// The weight and bias of a product, if kernels can read the weight packed.
    fn of(planner: &mut Planner, operation: &Operation) -> Result<Option<Factor>> {
        let (Some(x), Some(weight), [_]) = (operation.var("x"), operation.var("weight"), &operation.outputs[..]) else {
            return Ok(None);
        };
        let shape = planner.shape(x)?;
        let rows = shape.iter().rev().skip(1).product();
        let Some(weight) = planner.multiplied(weight, x, rows)? else { return Ok(None) };
        if weight.cols() == 0 || shape.last() != Some(&weight.cols()) {
            return Ok(None);
        }
        let bias = planner.parameter(operation, "bias")?;
        Ok(Some(Factor { weight, bias }))
    }
}

fn products(planner: &mut Planner, operation: &Operation, x: Var, factors: Vec<(Factor, Var)>) -> Result<bool> {
    let shape = planner.shape(x)?;
    let Some((&cols, outer)) = shape.split_last() else { return Ok(false) };
    let rows = outer.iter().product();
    let (accuracy, first) = (planner.accuracy(x), planner.token_of_first_row(x, rows)?);
    let x = planner.operand(x)?;
    let mut outputs = Vec::with_capacity(factors.len());
    for (_, out) in &factors {
        outputs.push(planner.output(*out)?);
    }
    planner.push("linear", &operation.name, move |memory| {
        let mut buffers: Vec<Vec<f32>> = outputs.iter().map(|(id, _)| memory.take(*id)).collect();
        let mut products = Vec::with_capacity(factors.len());
        let rows = memory.rows_of(first, rows);
        for ((buffer, (_, len)), (factor, _)) in buffers.iter_mut().zip(&outputs).zip(&factors) {
            let (weight, bias) = (&factor.weight, factor.bias.as_ref().map(|bias| memory.get(bias)));
            let y = without_padding(&mut buffer[..*len], rows * weight.rows());
            products.push(kernels::Linear { weight, bias, y });
        }
        kernels::linear_many(memory.kernels, accuracy, &memory.get(&x)[..rows * cols], &mut products);
        for ((id, _), buffer) in outputs.iter().zip(buffers) {
            memory.put(*id, buffer);
        }
        Ok(())
    });
    Ok(true)
}

/// A convolution that is a product: one output for each position, no neighbours, no groups.
pub(super) fn conv(planner: &mut Planner, operation: &Operation) -> Result<bool> {
    let (Some(x), Some(weight), [out]) = (operation.var("x"), operation.var("weight"), &operation.outputs[..]) else {
        return Ok(false);
    };
    let (x_shape, kernel) = (planner.shape(x)?, planner.shape(weight)?);
    let ones = |param: &str| planner.ints(operation, param).is_none_or(|v| v.iter().all(|&n| n == 1));
    let padded = planner.ints(operation, "pad").is_some_and(|pad| pad.iter().any(|&n| n != 0));
    let pointwise = kernel.len() == x_shape.len() && kernel.len() > 2 && kernel[2..].iter().all(|&n| n == 1);
    // Where there are no positions, padding may make some.
    let pointwise = pointwise && planner.shape(*out)?[2..] == x_shape[2..];
    if !pointwise || kernel[1] == 0 || x_shape[1] != kernel[1] || !ones("strides") || !ones("groups") || padded {
        return Ok(false);
    }
    let Some(packed) = planner.streamed(weight)? else { return Ok(false) };
    let bias = planner.parameter(operation, "bias")?;
    let (batch, channels, positions) = (x_shape[0], kernel[1], x_shape[2..].iter().product::<usize>());
    let accuracy = planner.accuracy(x);
    let source = planner.operand(x)?;
    let (id, len) = planner.output(*out)?;
    // [B, C, P] to [B, P, C], the product, and back.
    let rows = planner.scratch(batch * positions * channels);
    let results = planner.scratch(len);
    let outputs = kernel[0];
    let turn = |from: usize, to: usize| View {
        offset: 0,
        sizes: vec![batch, to, from],
        strides: vec![(from * to) as isize, 1, to as isize],
    };
    let (forth, back) = (turn(channels, positions), turn(positions, outputs));
    planner.push("conv", &operation.name, move |memory| {
        memory.write(rows, batch * positions * channels, |m, rows| {
            forth.gather(m.get(&source), rows);
            Ok(())
        })?;
        memory.write(results, len, |m, results| {
            let x = &m.buffers[rows][..batch * positions * channels];
            kernels::linear(m.kernels, accuracy, x, &packed, bias.as_ref().map(|b| m.get(b)), results);
            Ok(())
        })?;
        memory.write(id, len, |m, y| {
            back.gather(&m.buffers[results][..len], y);
            Ok(())
        })
    });
    Ok(true)
}

/// `matmul`: with a constant right side as a packed weight, else of two computed matrices.
pub(super) fn matmul(planner: &mut Planner, operation: &Operation) -> Result<bool> {
    let (Some(x), Some(y), [out]) = (operation.var("x"), operation.var("y"), &operation.outputs[..]) else {
        return Ok(false);
    };
    let flag =
        |param: &str| planner.known(operation, param).and_then(|t| t.to_bools().ok()).is_some_and(|b| b == [true]);
    let (transpose_x, transpose_y) = (flag("transpose_x"), flag("transpose_y"));
    let (a, b, c) = (planner.shape(x)?, planner.shape(y)?, planner.shape(*out)?);
    if !planner.dtype(x)?.is_float() || a.len() < 2 || b.len() < 2 {
        return Ok(false);
    }
    let inner = if transpose_x { a[a.len() - 2] } else { a[a.len() - 1] };
    if inner == 0 {
        return Ok(false);
    }
    if b.len() == 2 && !transpose_x {
        if let (true, Some(packed)) = (transpose_y, planner.streamed(y)?) {
            return weighted(planner, operation, x, packed, *out);
        }
        if let (false, Some(packed)) = (transpose_y, transposed(planner, y)?) {
            return weighted(planner, operation, x, packed, *out);
        }
    }
    let (rows, cols) = (c[c.len() - 2], c[c.len() - 1]);
    let outer = &c[..c.len() - 2];
    let (left, right) = (planner.operand(x)?, planner.operand(y)?);
    let (id, len) = planner.output(*out)?;
    let offsets: Vec<(usize, usize)> = batches(&a, outer).into_iter().zip(batches(&b, outer)).collect();
    let turned = transpose_x.then(|| (planner.scratch(left.len()), turn(&a)));
    let rhs = if transpose_y { Rhs::Transposed } else { Rhs::Plain };
    planner.push("matmul", &operation.name, move |memory| {
        if let Some((scratch, view)) = &turned {
            memory.write(*scratch, left.len(), |m, out| {
                view.gather(m.get(&left), out);
                Ok(())
            })?;
        }
        memory.write(id, len, |m, y| {
            let a = match &turned {
                Some((scratch, _)) => &m.buffers[*scratch][..left.len()],
                None => m.get(&left),
            };
            let b = m.get(&right);
            for (c, (i, j)) in y.chunks_exact_mut((rows * cols).max(1)).zip(&offsets) {
                let (a, b) = (&a[i * rows * inner..][..rows * inner], &b[j * cols * inner..][..cols * inner]);
                kernels::matmul(m.kernels, rhs, 1, [rows, cols, inner], a, b, c);
            }
            Ok(())
        })
    });
    Ok(true)
}

fn weighted(planner: &mut Planner, operation: &Operation, x: Var, weight: PackedWeight, out: Var) -> Result<bool> {
    let rows = planner.shape(x)?.iter().rev().skip(1).product();
    let (accuracy, first) = (planner.accuracy(x), planner.token_of_first_row(x, rows)?);
    let x = planner.operand(x)?;
    let (id, len) = planner.output(out)?;
    planner.push("linear", &operation.name, move |memory| {
        memory.write(id, len, |m, y| {
            let x = m.get(&x);
            let rows = m.rows_of(first, rows);
            let y = without_padding(y, rows * weight.rows());
            kernels::linear(m.kernels, accuracy, &x[..rows * weight.cols()], &weight, None, y);
            Ok(())
        })
    });
    Ok(true)
}

/// The transpose of a constant matrix `[K, N]`, computed once.
fn transposed(planner: &mut Planner, var: Var) -> Result<Option<PackedWeight>> {
    let is_constant = matches!(planner.place(var)?, Place::Const(_) | Place::Packed);
    let shape = planner.shape(var)?;
    let (true, &[rows, cols]) = (is_constant, &shape[..]) else { return Ok(None) };
    let Operand::Const(values) = planner.operand(var)? else { return Ok(None) };
    let mut turned = vec![0f32; values.len()];
    turn(&[rows, cols]).gather(&values, &mut turned);
    PackedWeight::dense(cols, rows, turned.into()).map(Some)
}

/// A view that swaps the last two axes of a row-major tensor.
fn turn(shape: &[usize]) -> View {
    let (mut sizes, mut strides) = (shape.to_vec(), row_major(shape));
    let rank = shape.len();
    sizes.swap(rank - 2, rank - 1);
    strides.swap(rank - 2, rank - 1);
    View { offset: 0, sizes, strides }
}

/// For each matrix of the result, the number of the matrix of a factor, whose outer axes broadcast to `outer`.
pub(crate) fn batches(shape: &[usize], outer: &[usize]) -> Vec<usize> {
    let strides = broadcast(&shape[..shape.len() - 2], outer);
    let numbers: Vec<usize> = (0..shape[..shape.len() - 2].iter().product::<usize>().max(1)).collect();
    let mut out = vec![0; outer.iter().product()];
    View { offset: 0, sizes: outer.to_vec(), strides }.gather(&numbers, &mut out);
    out
}
