//! Rotary position embedding.

use crate::kernels::{self, RopeStyle, Rotary};
use crate::memory::Operand;
use crate::planner::{Place, Planner};
use quince_mil::{Operation, Result, Var};

/// The semantic `rope`: x [B, S, H, D]; sines and cosines are computed for the positions of the call.
pub(super) fn rope(planner: &mut Planner, operation: &Operation) -> Result<bool> {
    let (Some(x), [out]) = (operation.var("x"), &operation.outputs[..]) else { return Ok(false) };
    let Some(frequencies) = planner.known(operation, "inverse_frequencies") else { return Ok(false) };
    let frequencies = frequencies.to_f32()?;
    let scaling = planner.number(operation, "attention_scaling").unwrap_or(1.0) as f32;
    let interleaved = planner.known(operation, "interleaved").and_then(|t| t.to_bools().ok());
    let style = if interleaved.is_some_and(|b| b == [true]) { RopeStyle::Interleaved } else { RopeStyle::HalfSplit };
    let position = match operation.var("position") {
        Some(var) => match planner.place(var)? {
            Place::Tensor(index) => Some(index),
            _ => return Ok(false),
        },
        None if operation.arg("position").is_none() => None,
        None => return Ok(false),
    };
    let [batch, tokens, heads, dim] = planner.shape(x)?[..] else { return Ok(false) };
    let x = planner.operand(x)?;
    let (id, len) = planner.output(*out)?;
    planner.push("rope", &operation.name, move |memory| {
        let first = match position {
            Some(index) => memory.tensor(index)?.to_i64()?.first().copied().unwrap_or(0),
            None => 0,
        };
        // In f32, as transformers computes them.
        let position = |i: usize| first.saturating_add((i / frequencies.len()) as i64) as f32;
        let angle = |i: usize| position(i) * frequencies[i % frequencies.len()];
        let (sin, cos): (Vec<f32>, Vec<f32>) = (0..tokens * frequencies.len())
            .map(|i| angle(i).sin_cos())
            .map(|(s, c)| (s * scaling, c * scaling))
            .unzip();
        memory.write(id, len, |m, y| {
            y.copy_from_slice(m.get(&x));
            let rotary = Rotary {
                style,
                tokens,
                heads,
                token_stride: heads * dim,
                head_stride: dim,
                rotary: 2 * frequencies.len(),
                cos: &cos,
                sin: &sin,
                table_stride: frequencies.len(),
            };
            for y in y.chunks_exact_mut((tokens * heads * dim).max(1)).take(batch) {
                kernels::rope(m.kernels, &rotary, y);
            }
            Ok(())
        })
    });
    Ok(true)
}

/// How a fused rotary embedding finds its tables.
pub(crate) struct Tables {
    /// Cosines, one row for each token; the first half of a row is used.
    pub cos: Var,
    /// Sines, likewise.
    pub sin: Var,
    /// The elements that are rotated.
    pub rotary: usize,
    /// The axis of x that counts tokens.
    pub token_axis: usize,
}

/// Half-split rotary embedding by tables, as one step: x is [..., tokens, ..., D] with `token_axis`, and every other
/// axis before the last counts heads.
pub(crate) fn emit_rope(planner: &mut Planner, operation: &Operation, x: Var, tables: &Tables) -> Result<()> {
    let Some(out) = operation.outputs.first() else { return Ok(()) };
    let shape = planner.shape(x)?;
    let rank = shape.len();
    let (dim, tokens) = (shape[rank - 1], shape[tables.token_axis]);
    let outer: usize = shape[..tables.token_axis].iter().product();
    let heads: usize = shape[tables.token_axis + 1..rank - 1].iter().product();
    let (cos, sin): (Operand, Operand) = (planner.operand(tables.cos)?, planner.operand(tables.sin)?);
    let (rotary, table_stride) = (tables.rotary, cos.len() / tokens.max(1));
    let x = planner.operand(x)?;
    let (id, len) = planner.output(*out)?;
    planner.push("rope", &operation.name, move |memory| {
        memory.write(id, len, |m, y| {
            y.copy_from_slice(m.get(&x));
            // Axes before the tokens' count heads that lie further apart than tokens do.
            let (token_stride, head_stride, heads, whole) = match heads {
                1 => (dim, tokens * dim, outer, len),
                _ => (heads * dim, dim, heads, tokens * heads * dim),
            };
            let rotary = Rotary {
                style: RopeStyle::HalfSplit,
                tokens,
                heads,
                token_stride,
                head_stride,
                rotary,
                cos: m.get(&cos),
                sin: m.get(&sin),
                table_stride,
            };
            for y in y.chunks_exact_mut(whole.max(1)) {
                kernels::rope(m.kernels, &rotary, y);
            }
            Ok(())
        })
    });
    Ok(())
}
