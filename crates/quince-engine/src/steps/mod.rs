//! From operations to steps. Each file here takes some operations; what none takes, or takes only in other forms, is
//! evaluated by its definition ([`fallback`]).

mod attention;
mod elementwise;
mod fallback;
mod lookup;
mod matmul;
mod norm;
mod rope;
mod shape;
mod state;

pub(crate) use attention::{Attending, HeadsView, emit_attention};
pub(crate) use elementwise::emit_gate;
pub(crate) use matmul::batches;
pub(crate) use norm::{emit_layer_norm, emit_rms_norm};
pub(crate) use rope::{Tables, emit_rope};
pub(crate) use state::load_state;

use crate::planner::Planner;
use quince_mil::{Operation, Result};

/// Appends the step for an operation; `false` if this form of it is left to its definition.
type Emit = fn(&mut Planner, &Operation) -> Result<bool>;

/// Which operations have steps of their own.
const STEPS: &[(&str, Emit)] = &[
    ("linear", matmul::linear),
    ("logits", matmul::logits),
    ("conv", matmul::conv),
    ("matmul", matmul::matmul),
    ("gather", lookup::gather),
    ("embedding", lookup::embedding),
    ("scaled_dot_product_attention", attention::scaled_dot_product),
    ("attention", attention::semantic),
    ("rms_norm", norm::rms_norm),
    ("layer_norm", norm::layer_norm),
    ("softmax", norm::softmax),
    ("reduce_mean", norm::reduce),
    ("reduce_sum", norm::reduce),
    ("rope", rope::rope),
    ("add", elementwise::binary),
    ("sub", elementwise::binary),
    ("mul", elementwise::binary),
    ("real_div", elementwise::binary),
    ("maximum", elementwise::binary),
    ("minimum", elementwise::binary),
    ("exp", elementwise::unary),
    ("sigmoid", elementwise::unary),
    ("silu", elementwise::unary),
    ("tanh", elementwise::unary),
    ("gelu", elementwise::unary),
    ("relu", elementwise::unary),
    ("sqrt", elementwise::unary),
    ("square", elementwise::unary),
    ("abs", elementwise::unary),
    ("cos", elementwise::unary),
    ("sin", elementwise::unary),
    ("rsqrt", elementwise::unary),
    ("clip", elementwise::unary),
    ("cast", shape::cast),
    ("identity", shape::alias),
    ("reshape", shape::alias),
    ("reshape_like", shape::alias),
    ("expand_dims", shape::alias),
    ("squeeze", shape::alias),
    ("split_heads", shape::alias),
    ("transpose", shape::transpose),
    ("slice_by_index", shape::slice_by_index),
    ("slice_by_size", shape::slice_by_size),
    ("split", shape::split),
    ("tile", shape::tile),
    ("concat", shape::concat),
    ("stack", shape::concat),
    ("read_state", state::read),
    ("slice_update", state::update),
    ("write_state", state::write),
];

/// Appends what does an operation.
pub(crate) fn emit(planner: &mut Planner, operation: &Operation) -> Result<()> {
    let name = operation.op_name();
    if name == "const" || name.starts_with("constexpr_") {
        return Ok(());
    }
    if let Some((_, emit)) = STEPS.iter().find(|(op, _)| *op == name)
        && emit(planner, operation)?
    {
        return Ok(());
    }
    fallback::emit(planner, operation)
}
