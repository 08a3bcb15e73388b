//! `x · cos + rotate_half(x) · sin`, where `rotate_half` swaps the halves of the last axis and negates the first: rotary
//! position embedding (Su et al. 2021, section 3.4.2) as Hugging Face writes it.

use super::Fused;
use crate::planner::Planner;
use crate::steps::{Tables, emit_rope};
use quince_mil::{Operation, Var};

pub(super) fn find(planner: &Planner, operation: &Operation) -> Option<Fused> {
    if operation.op_name() != "add" {
        return None;
    }
    let rotated = |var: Var| {
        let product = planner.producer_of(var, &["mul"])?;
        planner.either(product, |var| rotate_half(planner, var))
    };
    let ((x, sin), straight) = planner.either(operation, rotated)?;
    let straight = planner.producer_of(straight, &["mul"])?;
    let base = planner.uncast(x);
    let (_, cos) = planner.either(straight, |var| (planner.uncast(var) == base).then_some(()))?;
    let shape = planner.shape(x).ok()?;
    if planner.shape(*operation.outputs.first()?).ok()? != shape || planner.constant(base).is_some() {
        return None;
    }
    let (cos_axis, sin_axis) = (token_axis(planner, cos, &shape)?, token_axis(planner, sin, &shape)?);
    let halves_repeat = repeats(planner, cos) && repeats(planner, sin);
    if cos_axis != sin_axis || !halves_repeat {
        return None;
    }
    let tables = Tables { cos, sin, rotary: *shape.last()?, token_axis: cos_axis };
    Some(Fused {
        inputs: vec![x, cos, sin],
        emit: Box::new(move |planner, operation| emit_rope(planner, operation, x, &tables)),
    })
}

/// The x of `concat(-x[half..], x[..half])` along the last axis.
fn rotate_half(planner: &Planner, var: Var) -> Option<Var> {
    let concat = planner.producer_of(var, &["concat"])?;
    let [first, second] = concat.args("values") else { return None };
    let (quince_mil::Arg::Var(first), quince_mil::Arg::Var(second)) = (first, second) else { return None };
    let shape = planner.shape(var).ok()?;
    let (rank, dim) = (shape.len(), *shape.last()?);
    let axis = planner.number(concat, "axis")?;
    (axis == -1.0 || axis == rank as f64 - 1.0).then_some(())?;
    let negated = planner.producer_of(*first, &["mul"])?;
    let (number, high) = planner.number_and_other(negated)?;
    let (x, high_begin) = half(planner, high, dim)?;
    let (y, low_begin) = half(planner, *second, dim)?;
    let same = planner.uncast(x) == planner.uncast(y);
    (number == -1.0 && same && high_begin == dim / 2 && low_begin == 0).then_some(x)
}

/// What a variable is a half of along the last axis, and where that half begins.
fn half(planner: &Planner, var: Var, dim: usize) -> Option<(Var, usize)> {
    let producer = planner.producer_of(var, &["slice_by_index", "slice_by_size", "split"])?;
    let x = producer.var("x")?;
    let (whole, part) = (planner.shape(x).ok()?, planner.shape(var).ok()?);
    let rank = whole.len();
    let last_only = whole.len() == part.len() && whole[..rank - 1] == part[..rank - 1];
    if !last_only || whole[rank - 1] != dim || part[rank - 1] * 2 != dim {
        return None;
    }
    if producer.op_name() == "split" {
        let index = producer.outputs.iter().position(|out| *out == planner.uncast(var))?;
        return Some((x, index * dim / 2));
    }
    if planner.ints(producer, "stride").is_some_and(|s| s.iter().any(|&s| s != 1)) {
        return None;
    }
    let masked = planner.known(producer, "begin_mask").and_then(|t| t.to_bools().ok());
    if masked.is_some_and(|mask| mask.last() == Some(&true)) {
        return Some((x, 0));
    }
    let begin = *planner.ints(producer, "begin")?.last()?;
    let begin = if begin < 0 { begin + dim as i64 } else { begin };
    Some((x, usize::try_from(begin).ok()?))
}

/// The axis of x that the rows of a table [.., tokens, .., D] belong to: the only one besides the last that is not
/// broadcast.
fn token_axis(planner: &Planner, table: Var, x: &[usize]) -> Option<usize> {
    let shape = planner.shape(table).ok()?;
    let missing = x.len().checked_sub(shape.len())?;
    if shape.last() != x.last() || x.len() < 3 {
        return None;
    }
    let long: Vec<usize> = (0..shape.len() - 1).filter(|&i| shape[i] != 1).collect();
    match long[..] {
        [axis] if shape[axis] == x[axis + missing] => Some(axis + missing),
        // One token: take an axis of size one, so that every other counts heads.
        [] => (0..x.len() - 1).rev().find(|&axis| x[axis] == 1),
        _ => None,
    }
}

/// Whether both halves of each row of a table are equal, as tables made for half-split rotation are: the result of
/// `concat(t, t)`, or rows of a constant table with equal halves.
fn repeats(planner: &Planner, table: Var) -> bool {
    let mut var = planner.uncast(table);
    loop {
        if let Some(constant) = planner.constant(var) {
            let Ok(tensor) = planner.tensor(constant) else { return false };
            let (Some(&width), Ok(values)) = (tensor.shape().last(), tensor.to_f32()) else { return false };
            return width > 0 && width % 2 == 0 && values.chunks_exact(width).all(|r| r[..width / 2] == r[width / 2..]);
        }
        let Some(producer) = planner.defs.producer(var) else { return false };
        let next = match producer.op_name() {
            "gather" if planner.number(producer, "axis").unwrap_or(0.0) == 0.0 => producer.var("x"),
            "expand_dims" | "squeeze" | "reshape" | "cast" | "cos" | "sin" | "identity" => producer.var("x"),
            "slice_by_index" | "slice_by_size" => {
                let Some(x) = producer.var("x") else { return false };
                let last = |var| planner.shape(var).ok().and_then(|shape| shape.last().copied());
                (last(x) == last(var)).then_some(x)
            }
            "concat" => match producer.args("values") {
                [quince_mil::Arg::Var(a), quince_mil::Arg::Var(b)] => return a == b,
                _ => None,
            },
            _ => None,
        };
        let same_rows = |x: Var| {
            planner.shape(x).ok().and_then(|s| s.last().copied())
                == planner.shape(var).ok().and_then(|s| s.last().copied())
        };
        match next {
            Some(x) if same_rows(x) => var = planner.uncast(x),
            _ => return false,
        }
    }
}
