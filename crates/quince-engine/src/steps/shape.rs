//! Operations that move elements or only name them anew.

use crate::kernels;
use crate::memory::Operand;
use crate::planner::{Place, Planner};
use crate::strided::{View, row_major};
use quince_mil::{DType, Operation, Result, Var};
use quince_tensor::f16;

/// Operations whose result has the same elements in the same order.
pub(super) fn alias(planner: &mut Planner, operation: &Operation) -> Result<bool> {
    let (Some(x), [out]) = (operation.var("x"), &operation.outputs[..]) else { return Ok(false) };
    match planner.place(x)? {
        Place::Tensor(_) | Place::Const(_) => return Ok(false),
        // What is computed from a weight needs its values.
        Place::Packed => {
            planner.operand(x)?;
            return Ok(false);
        }
        Place::Buffer(_) | Place::State { .. } => planner.alias(*out, x)?,
    }
    Ok(true)
}

/// `cast` between floating-point types. The engine keeps them all in `f32`, so widening only names the values anew;
/// narrowing to fp16 rounds, because programs split numbers by it.
pub(super) fn cast(planner: &mut Planner, operation: &Operation) -> Result<bool> {
    let (Some(x), [out]) = (operation.var("x"), &operation.outputs[..]) else { return Ok(false) };
    let (from, to) = (planner.dtype(x)?, planner.dtype(*out)?);
    if !from.is_float() || !to.is_float() {
        return Ok(false);
    }
    if from == DType::F32 && to == DType::F16 {
        return round(planner, operation, x, *out);
    }
    match planner.place(x)? {
        Place::Buffer(_) => planner.alias(*out, x)?,
        Place::State { .. } => {
            planner.operand(x)?;
            planner.alias(*out, x)?;
        }
        _ => return Ok(false),
    }
    Ok(true)
}

fn round(planner: &mut Planner, operation: &Operation, x: Var, out: Var) -> Result<bool> {
    let x = planner.operand(x)?;
    let (id, len) = planner.output(out)?;
    planner.push("round", &operation.name, move |memory| {
        memory.write(id, len, |m, y| {
            let mut half = [f16::ZERO; 1024];
            for (x, y) in m.get(&x).chunks(half.len()).zip(y.chunks_mut(half.len())) {
                let half = &mut half[..x.len()];
                kernels::f32_to_f16(m.kernels, x, half);
                kernels::f16_to_f32(m.kernels, half, y);
            }
            Ok(())
        })
    });
    Ok(true)
}

/// `transpose`; one that moves only axes of size one is an alias.
pub(super) fn transpose(planner: &mut Planner, operation: &Operation) -> Result<bool> {
    let (Some(x), [out]) = (operation.var("x"), &operation.outputs[..]) else { return Ok(false) };
    let Some(perm) = planner.ints(operation, "perm") else { return Ok(false) };
    if !planner.dtype(x)?.is_float() {
        return Ok(false);
    }
    let shape = planner.shape(x)?;
    let rank = shape.len() as i64;
    let perm: Vec<usize> = perm.iter().map(|&axis| (if axis < 0 { axis + rank } else { axis }) as usize).collect();
    let moved: Vec<usize> = perm.iter().copied().filter(|&axis| shape[axis] != 1).collect();
    if moved.is_sorted() && matches!(planner.place(x)?, Place::Buffer(_) | Place::State { .. }) {
        planner.alias(*out, x)?;
        return Ok(true);
    }
    let strides = row_major(&shape);
    let view = View {
        offset: 0,
        sizes: perm.iter().map(|&axis| shape[axis]).collect(),
        strides: perm.iter().map(|&axis| strides[axis]).collect(),
    };
    copy(planner, operation, x, *out, view)
}

/// `slice_by_index` with constant bounds. A part of a state that lies in one piece is not copied.
pub(super) fn slice_by_index(planner: &mut Planner, operation: &Operation) -> Result<bool> {
    let (Some(x), [out]) = (operation.var("x"), &operation.outputs[..]) else { return Ok(false) };
    let shape = planner.shape(x)?;
    let Some(bounds) = Bounds::of(planner, operation, &shape) else { return Ok(false) };
    // The sizes of the result, before squeezing, are known from the result: those of sliced axes follow from bounds.
    let mut sizes = Vec::with_capacity(shape.len());
    for axis in 0..shape.len() {
        sizes.push(bounds.len(axis));
    }
    if sizes.iter().product::<usize>() != planner.shape(*out)?.iter().product::<usize>() {
        return Ok(false);
    }
    let own = row_major(&shape);
    let offset = (0..shape.len()).map(|axis| bounds.begin[axis] * own[axis]).sum();
    // The stride of an axis with one element is never taken, and may be larger than any step.
    let strides =
        (0..shape.len()).map(|axis| if sizes[axis] > 1 { bounds.stride[axis] * own[axis] } else { 0 }).collect();
    part(planner, operation, x, *out, View { offset, sizes, strides })
}

/// `slice_by_size` with constant bounds.
pub(super) fn slice_by_size(planner: &mut Planner, operation: &Operation) -> Result<bool> {
    let (Some(x), [out]) = (operation.var("x"), &operation.outputs[..]) else { return Ok(false) };
    let Some(begin) = planner.ints(operation, "begin") else { return Ok(false) };
    let (shape, sizes) = (planner.shape(x)?, planner.shape(*out)?);
    let inside = begin.len() == shape.len()
        && (0..shape.len()).all(|i| begin[i] >= 0 && begin[i] as usize + sizes[i] <= shape[i]);
    if !inside {
        return Ok(false);
    }
    let strides = row_major(&shape);
    let offset = begin.iter().zip(&strides).map(|(&b, s)| b as isize * s).sum();
    part(planner, operation, x, *out, View { offset, sizes, strides })
}

/// Bounds of a slice, normalised: begin inside, stride not zero.
struct Bounds {
    begin: Vec<isize>,
    end: Vec<isize>,
    stride: Vec<isize>,
    single: Vec<bool>,
}

impl Bounds {
    /// The constant bounds of a `slice_by_index` (semantics of NumPy slices with masks), `None` if they are computed.
    fn of(planner: &Planner, operation: &Operation, shape: &[usize]) -> Option<Bounds> {
        let rank = shape.len();
        let ints = |param: &str, default: i64| match operation.arg(param) {
            Some(_) => planner.ints(operation, param).filter(|v| v.len() == rank),
            None => Some(vec![default; rank]),
        };
        let mask = |param: &str| match operation.arg(param) {
            Some(_) => planner.known(operation, param)?.to_bools().ok().filter(|v| v.len() == rank),
            None => Some(vec![false; rank]),
        };
        let (begin, end, stride) = (ints("begin", 0)?, ints("end", 0)?, ints("stride", 1)?);
        let (begin_mask, end_mask, single) = (mask("begin_mask")?, mask("end_mask")?, mask("squeeze_mask")?);
        let mut out = Bounds { begin: vec![], end: vec![], stride: vec![], single };
        for axis in 0..rank {
            let (n, s) = (shape[axis] as i64, stride[axis]);
            let (low, high) = if s > 0 { (0, n) } else { (-1, n - 1) };
            let inside = |v: i64| (if v < 0 { v + n } else { v }).clamp(low, high);
            let first = if s > 0 { 0 } else { n - 1 };
            let last = if s > 0 { n } else { -1 };
            out.begin.push(if begin_mask[axis] { first } else { inside(begin[axis]) } as isize);
            out.end.push(if end_mask[axis] { last } else { inside(end[axis]) } as isize);
            out.stride.push(s as isize);
            if s == 0 || n == 0 {
                return None;
            }
        }
        Some(out)
    }

    fn len(&self, axis: usize) -> usize {
        if self.single[axis] {
            return 1;
        }
        let (distance, stride) = (self.end[axis] - self.begin[axis], self.stride[axis]);
        if distance.signum() != stride.signum() {
            return 0;
        }
        distance.unsigned_abs().div_ceil(stride.unsigned_abs())
    }
}

/// `split` into parts.
pub(super) fn split(planner: &mut Planner, operation: &Operation) -> Result<bool> {
    let Some(x) = operation.var("x") else { return Ok(false) };
    let Some(axis) = planner.number(operation, "axis") else { return Ok(false) };
    if !planner.dtype(x)?.is_float() {
        return Ok(false);
    }
    let shape = planner.shape(x)?;
    let axis = (if axis < 0.0 { axis + shape.len() as f64 } else { axis }) as usize;
    let strides = row_major(&shape);
    let mut begin = 0;
    for out in &operation.outputs {
        let sizes = planner.shape(*out)?;
        let view = View { offset: begin * strides[axis], strides: strides.clone(), sizes };
        begin += view.sizes[axis] as isize;
        part(planner, operation, x, *out, view)?;
    }
    Ok(true)
}

/// `tile` along axes of size one, which is broadcasting; other forms are left to the definition.
pub(super) fn tile(planner: &mut Planner, operation: &Operation) -> Result<bool> {
    let (Some(x), [out]) = (operation.var("x"), &operation.outputs[..]) else { return Ok(false) };
    let (shape, sizes) = (planner.shape(x)?, planner.shape(*out)?);
    if !planner.dtype(x)?.is_float() || (0..shape.len()).any(|i| shape[i] != 1 && shape[i] != sizes[i]) {
        return Ok(false);
    }
    let strides = crate::strided::broadcast(&shape, &sizes);
    copy(planner, operation, x, *out, View { offset: 0, sizes, strides })
}

/// A part of a tensor: of a state without copying if it lies in one piece, else copied.
fn part(planner: &mut Planner, operation: &Operation, x: Var, out: Var, view: View) -> Result<bool> {
    if let Place::State { state, offset } = planner.place(x)? {
        let mut pieces = 0;
        view.runs(|_, _, _, stride| pieces += if stride == 1 { 1 } else { 2 });
        if pieces == 1 {
            let place = Place::State { state, offset: offset + view.offset as usize };
            planner.alias_at(out, place);
            return Ok(true);
        }
    }
    copy(planner, operation, x, out, view)
}

fn copy(planner: &mut Planner, operation: &Operation, x: Var, out: Var, view: View) -> Result<bool> {
    if !planner.dtype(x)?.is_float() {
        return Ok(false);
    }
    let x = planner.operand(x)?;
    let (id, len) = planner.output(out)?;
    planner.push("copy", &operation.name, move |memory| {
        memory.write(id, len, |m, y| {
            view.gather(m.get(&x), y);
            Ok(())
        })
    });
    Ok(true)
}

/// `concat` and `stack`.
pub(super) fn concat(planner: &mut Planner, operation: &Operation) -> Result<bool> {
    let [out] = operation.outputs[..] else { return Ok(false) };
    let shape = planner.shape(out)?;
    let interleave = planner.known(operation, "interleave").and_then(|t| t.to_bools().ok());
    let Some(axis) = planner.number(operation, "axis") else { return Ok(false) };
    if !planner.dtype(out)?.is_float() || interleave.is_some_and(|b| b == [true]) {
        return Ok(false);
    }
    let axis = (if axis < 0.0 { axis + shape.len() as f64 } else { axis }) as usize;
    let mut parts: Vec<(Operand, usize)> = Vec::new();
    let inner: usize = shape[axis + 1..].iter().product();
    let outer: usize = shape[..axis].iter().product();
    for arg in operation.args("values") {
        let Some((operand, _)) = planner.argument(arg)? else { return Ok(false) };
        let width = operand.len() / outer.max(1);
        parts.push((operand, width));
    }
    let row = shape[axis] * inner;
    if parts.iter().map(|part| part.1).sum::<usize>() != row {
        return Ok(false);
    }
    let (id, len) = planner.output(out)?;
    planner.push("concat", &operation.name, move |memory| {
        memory.write(id, len, |m, y| {
            let mut begin = 0;
            for (operand, width) in &parts {
                let source = m.get(operand);
                for i in 0..outer {
                    y[i * row + begin..][..*width].copy_from_slice(&source[i * width..][..*width]);
                }
                begin += width;
            }
            Ok(())
        })
    });
    Ok(true)
}
