//! Element by element: functions of one number and of two.

use crate::kernels::{self, Binary, Unary};
use crate::memory::Operand;
use crate::planner::Planner;
use crate::strided::{View, broadcast};
use quince_mil::{Operation, Result, Var};

/// A function of one number.
enum Function {
    /// One that has a kernel.
    Kernel(Unary),
    /// A plain one, which the compiler vectorises where it can.
    Plain(fn(f32, [f32; 2]) -> f32, [f32; 2]),
}

/// Functions of one floating-point number.
pub(super) fn unary(planner: &mut Planner, operation: &Operation) -> Result<bool> {
    let (Some(x), [out]) = (operation.var("x"), &operation.outputs[..]) else { return Ok(false) };
    if !planner.dtype(x)?.is_float() {
        return Ok(false);
    }
    let none = [0.0; 2];
    let number = |param: &str, default: f64| planner.number(operation, param).unwrap_or(default) as f32;
    let function = match operation.op_name() {
        "exp" => Function::Kernel(Unary::Exp),
        "sigmoid" => Function::Kernel(Unary::Sigmoid),
        "silu" => Function::Kernel(Unary::Silu),
        "tanh" => Function::Kernel(Unary::Tanh),
        "gelu" => match operation.arg("mode") {
            None => Function::Kernel(Unary::Gelu),
            Some(mode) => match planner.string(mode) {
                Some("EXACT") => Function::Kernel(Unary::Gelu),
                Some("TANH_APPROXIMATION") => Function::Kernel(Unary::GeluTanh),
                _ => return Ok(false),
            },
        },
        "relu" => Function::Plain(|x, _| x.max(0.0), none),
        "sqrt" => Function::Plain(|x, _| x.sqrt(), none),
        "square" => Function::Plain(|x, _| x * x, none),
        "abs" => Function::Plain(|x, _| x.abs(), none),
        "cos" => Function::Plain(|x, _| x.cos(), none),
        "sin" => Function::Plain(|x, _| x.sin(), none),
        "rsqrt" => Function::Plain(|x, [epsilon, _]| 1.0 / (x + epsilon).sqrt(), [number("epsilon", 1e-12), 0.0]),
        "clip" => {
            let bounds = [number("alpha", f64::from(f32::MIN)), number("beta", f64::from(f32::MAX))];
            Function::Plain(|x, [low, high]| if x.is_nan() { x } else { x.max(low).min(high) }, bounds)
        }
        _ => return Ok(false),
    };
    let x = planner.operand(x)?;
    let (id, len) = planner.output(*out)?;
    planner.push("unary", &operation.name, move |memory| {
        memory.write(id, len, |m, y| {
            match &function {
                Function::Kernel(op) => kernels::unary(m.kernels, *op, m.get(&x), y),
                Function::Plain(f, parameters) => {
                    m.get(&x).iter().zip(y).for_each(|(x, y)| *y = f(*x, *parameters));
                }
            }
            Ok(())
        })
    });
    Ok(true)
}

/// Functions of two floating-point numbers, broadcasting.
pub(super) fn binary(planner: &mut Planner, operation: &Operation) -> Result<bool> {
    let [out] = operation.outputs[..] else { return Ok(false) };
    let (Some(a), Some(b)) = (operation.arg("x"), operation.arg("y")) else { return Ok(false) };
    let (Some(a), Some(b)) = (planner.argument(a)?, planner.argument(b)?) else { return Ok(false) };
    let shape = planner.shape(out)?;
    let op = match operation.op_name() {
        "add" => Pair::Kernel(Binary::Add),
        "sub" => Pair::Kernel(Binary::Sub),
        "mul" => Pair::Kernel(Binary::Mul),
        "real_div" => Pair::Kernel(Binary::Div),
        "maximum" => Pair::Plain(|a, b| if a.is_nan() || a > b { a } else { b }),
        "minimum" => Pair::Plain(|a, b| if a.is_nan() || a < b { a } else { b }),
        _ => return Ok(false),
    };
    let views = [view(&a.1, &shape), view(&b.1, &shape)];
    let ([a, b], same) = ([a.0, b.0], a.1 == shape && b.1 == shape);
    let (id, len) = planner.output(out)?;
    planner.push("binary", &operation.name, move |memory| {
        memory.write(id, len, |m, y| {
            let (a, b) = (m.get(&a), m.get(&b));
            match op {
                Pair::Kernel(op) if same => kernels::binary(m.kernels, op, a, b, y),
                Pair::Kernel(Binary::Add) => apply(m.kernels, &views, a, b, y, |a, b| a + b),
                Pair::Kernel(Binary::Sub) => apply(m.kernels, &views, a, b, y, |a, b| a - b),
                Pair::Kernel(Binary::Mul) => apply(m.kernels, &views, a, b, y, |a, b| a * b),
                Pair::Kernel(Binary::Div) => apply(m.kernels, &views, a, b, y, |a, b| a / b),
                Pair::Plain(f) => apply(m.kernels, &views, a, b, y, f),
            }
            Ok(())
        })
    });
    Ok(true)
}

#[derive(Clone, Copy)]
enum Pair {
    Kernel(Binary),
    Plain(fn(f32, f32) -> f32),
}

fn view(shape: &[usize], out: &[usize]) -> View {
    View { offset: 0, sizes: out.to_vec(), strides: broadcast(shape, out) }
}

/// `y = f(a, b)` where the views say how `a` and `b` repeat: row by row of the last axis.
fn apply(
    kernels: &kernels::Kernels,
    views: &[View; 2],
    a: &[f32],
    b: &[f32],
    y: &mut [f32],
    f: impl Fn(f32, f32) -> f32 + Sync,
) {
    let rows = |view: &View| {
        let mut offsets = Vec::new();
        let (sizes, strides) = (&view.sizes, &view.strides);
        let outer = sizes.len().saturating_sub(1);
        let outer = View { offset: 0, sizes: sizes[..outer].to_vec(), strides: strides[..outer].to_vec() };
        outer.runs(|_, offset, len, stride| {
            offsets.extend((0..len as isize).map(|i| (offset + i * stride) as usize));
        });
        (offsets, strides.last().copied().unwrap_or(0))
    };
    let inner = views[0].sizes.last().copied().unwrap_or(1).max(1);
    let ((a_rows, a_step), (b_rows, b_step)) = (rows(&views[0]), rows(&views[1]));
    kernels.for_rows(y, inner, |first, y| {
        for ((y, &i), &j) in y.chunks_exact_mut(inner).zip(&a_rows[first..]).zip(&b_rows[first..]) {
            match (a_step, b_step) {
                (0, 0) => y.fill(f(a[i], b[j])),
                (0, _) => y.iter_mut().zip(&b[j..j + inner]).for_each(|(y, b)| *y = f(a[i], *b)),
                (_, 0) => y.iter_mut().zip(&a[i..i + inner]).for_each(|(y, a)| *y = f(*a, b[j])),
                _ => y.iter_mut().zip(&a[i..i + inner]).zip(&b[j..j + inner]).for_each(|((y, a), b)| *y = f(*a, *b)),
            }
        }
    });
}

/// `silu(gate) · up` as one step.
pub(crate) fn emit_gate(planner: &mut Planner, operation: &Operation, gate: Var, up: Var) -> Result<()> {
    let Some(out) = operation.outputs.first() else { return Ok(()) };
    let (gate, up): (Operand, Operand) = (planner.operand(gate)?, planner.operand(up)?);
    let (id, len) = planner.output(*out)?;
    planner.push("silu_mul", &operation.name, move |memory| {
        memory.write(id, len, |m, y| {
            kernels::silu_mul(m.kernels, m.get(&gate), m.get(&up), y);
            Ok(())
        })
    });
    Ok(())
}
