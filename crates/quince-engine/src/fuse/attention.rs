//! `softmax(scale · q kᵀ + mask) · v`, written out or as `scaled_dot_product_attention`, with the transposes and reshapes
//! around it: the kernel reads queries, keys and values where the projections left them, and writes rows of tokens.

mod views;

use super::Fused;
use crate::kernels::{Attention, Strides};
use crate::planner::Planner;
use crate::steps::{Attending, emit_attention};
use crate::strided::row_major;
use quince_mil::{Operation, Var};
use views::View;

pub(super) fn find(planner: &Planner, operation: &Operation) -> Option<Fused> {
    let attending = match operation.op_name() {
        "transpose" => {
            let product = operation.var("x")?;
            let core = Core::of(planner, planner.producer_of(product, CORES)?)?;
            // What else wants the result wants it untransposed.
            let only = planner.uncast(product) == product && planner.used_once(product);
            let perm = planner.ints(operation, "perm").filter(|_| only)?;
            core.attending(planner, Some((*operation.outputs.first()?, &perm)))?
        }
        name if CORES.contains(&name) => Core::of(planner, operation)?.attending(planner, None)?,
        _ => return None,
    };
    let mut inputs = vec![attending.query.var, attending.key.var, attending.value.var];
    inputs.extend(&attending.masks);
    Some(Fused { inputs, emit: Box::new(move |planner, operation| emit_attention(planner, operation, &attending)) })
}

/// The operations that end an attention.
const CORES: &[&str] = &["matmul", "scaled_dot_product_attention"];

/// Attention between variables of shapes [.., rows, dim].
struct Core {
    query: Matrix,
    key: Matrix,
    value: Matrix,
    scale: f64,
    masks: Vec<Var>,
}

/// A variable as a matrix of rows, and whether its last two axes are the other way round.
#[derive(Clone, Copy)]
struct Matrix {
    var: Var,
    transposed: bool,
}

impl Core {
    fn of(planner: &Planner, operation: &Operation) -> Option<Core> {
        if operation.op_name() == "matmul" {
            return Core::written_out(planner, operation);
        }
        let [query, key, value] =
            ["query", "key", "value"].map(|param| Some(Matrix { var: operation.var(param)?, transposed: false }));
        let (query, key, value) = (query?, key?, value?);
        let masks = match operation.arg("attn_mask") {
            Some(_) => vec![operation.var("attn_mask")?],
            None => vec![],
        };
        let dim = *planner.shape(query.var).ok()?.last()? as f64;
        Some(Core { query, key, value, scale: 1.0 / dim.sqrt(), masks })
    }

    fn written_out(planner: &Planner, operation: &Operation) -> Option<Core> {
        let (weights, value) = (operation.var("x")?, operation.var("y")?);
        let softmax = planner.producer_of(weights, &["softmax"])?;
        let rank = planner.shape(weights).ok()?.len() as f64;
        let last = planner.number(softmax, "axis").is_none_or(|axis| axis == -1.0 || axis == rank - 1.0);
        if !last || flag(planner, operation, "transpose_x") {
            return None;
        }
        let value = Matrix { var: value, transposed: flag(planner, operation, "transpose_y") };
        Core::scores(planner, softmax.var("x")?, value)
    }

    /// `scale · q kᵀ + mask + ...`.
    fn scores(planner: &Planner, var: Var, value: Matrix) -> Option<Core> {
        let operation = planner.producer_of(var, &["matmul", "mul", "real_div", "add"])?;
        match operation.op_name() {
            "matmul" => Some(Core {
                query: Matrix { var: operation.var("x")?, transposed: flag(planner, operation, "transpose_x") },
                key: Matrix { var: operation.var("y")?, transposed: !flag(planner, operation, "transpose_y") },
                value,
                scale: 1.0,
                masks: vec![],
            }),
            "add" => {
                let same = |var: Var| {
                    let scores = Core::scores(planner, var, value)?;
                    // What is added may be the larger one: then these are no scores with a mask.
                    let kept = planner.shape(var).ok()? == planner.shape(*operation.outputs.first()?).ok()?;
                    kept.then_some(scores)
                };
                let (mut core, mask) = planner.either(operation, same)?;
                core.masks.push(mask);
                Some(core)
            }
            _ => {
                let (factor, scores) = scaled(planner, operation)?;
                let core = Core::scores(planner, scores, value)?;
                // A mask inside would be scaled too.
                core.masks.is_empty().then_some(Core { scale: core.scale * factor, ..core })
            }
        }
    }

    /// Where everything lies; `transposed` is the variable and the order of axes that the result is wanted in.
    fn attending(self, planner: &Planner, transposed: Option<(Var, &[i64])>) -> Option<Attending> {
        let [query, key, value] = [self.query, self.key, self.value].map(|matrix| View::of(planner, matrix));
        let (query, key, value) = (query?, key?, value?);
        let [batch, heads, rows, dim] = query.sizes();
        let [_, _, positions, value_dim] = value.sizes();
        if key.sizes() != [batch, heads, positions, dim] || value.sizes() != [batch, heads, positions, value_dim] {
            return None;
        }
        let (query, q_factor) = query.deepest(planner, |view| view.heads_view(1))?;
        // Keys and values may be repeated for the heads of a group, and have to be in the same way.
        let groups = (1..=heads).filter(|group| heads.is_multiple_of(*group)).rev();
        let (group, (key, k_factor), (value, _)) = groups.into_iter().find_map(|group| {
            let key = key.clone().deepest(planner, |view| view.heads_view(group))?;
            let value = value.clone().deepest(planner, |view| view.unscaled()?.heads_view(group))?;
            Some((group, key, value))
        })?;
        let natural = [batch, heads, rows, value_dim];
        let out = match transposed {
            None => row_major(&natural),
            Some((var, perm)) => transposed_strides(&planner.shape(var).ok()?, perm)?,
        };
        let &[b, h, r, d] = &out[..] else { return None };
        if d != 1 && value_dim > 1 {
            return None;
        }
        let out = Strides { batch: b as usize, head: h as usize, row: r as usize };
        let scores = [batch, heads, rows, positions];
        let fits = |mask: &Var| planner.shape(*mask).is_ok_and(|shape| is_mask(&shape, &scores));
        let scale = (self.scale * q_factor * k_factor) as f32;
        let kv_heads = heads / group;
        let shape = Attention {
            batch,
            heads,
            kv_heads,
            rows,
            positions,
            dim,
            value_dim,
            scale,
            softcap: None,
            sinks: None,
            unseen: f32::NAN,
        };
        let floats = |mask: &Var| planner.dtype(*mask).is_ok_and(|t| t.is_float());
        let good = self.masks.iter().all(fits) && (self.masks.len() == 1 || self.masks.iter().all(floats));
        good.then_some(Attending { query, key, value, masks: self.masks, out, shape })
    }
}

fn flag(planner: &Planner, operation: &Operation, param: &str) -> bool {
    planner.known(operation, param).and_then(|t| t.to_bools().ok()).is_some_and(|b| b == [true])
}

/// The factor and the other side of a product or quotient with a number.
fn scaled(planner: &Planner, operation: &Operation) -> Option<(f64, Var)> {
    match operation.op_name() {
        "mul" => planner.number_and_other(operation),
        "real_div" => Some((1.0 / planner.number(operation, "y")?, operation.var("x")?)),
        _ => None,
    }
}

/// For each axis before a transpose of rank 3 or 4, its stride in the result, with an axis of batches in front.
fn transposed_strides(shape: &[usize], perm: &[i64]) -> Option<Vec<isize>> {
    let rank = shape.len();
    let own = row_major(shape);
    let mut strides = vec![0; rank];
    for (axis, &from) in perm.iter().enumerate() {
        let from = if from < 0 { from + rank as i64 } else { from };
        *strides.get_mut(usize::try_from(from).ok()?)? = *own.get(axis)?;
    }
    strides.splice(0..0, std::iter::repeat_n(0, 4usize.checked_sub(rank)?));
    Some(strides)
}

/// Whether a mask broadcasts to the scores [batch, heads, rows, positions].
fn is_mask(shape: &[usize], scores: &[usize; 4]) -> bool {
    shape.len() <= 4 && shape.iter().zip(&scores[4 - shape.len()..]).all(|(&n, &size)| n == size || n == 1)
}
