//! States: read in place, updated in place.

use crate::memory::{Memory, Operand, StateData};
use crate::planner::{Place, Planner};
use crate::strided::{View, row_major};
use quince_mil::{Operation, Result, Tensor, Value, Var, bail};
use quince_tensor::f16;

/// `read_state`: names the state's memory; it is copied only where a step cannot read it there.
pub(super) fn read(planner: &mut Planner, operation: &Operation) -> Result<bool> {
    let (Some(input), [out]) = (operation.var("input"), &operation.outputs[..]) else { return Ok(false) };
    let Some(state) = planner.state(input) else { bail!("the parameter `input` is no state of this function") };
    planner.alias_at(*out, Place::State { state, offset: 0 });
    Ok(true)
}

/// `slice_update`: in place where it changes a state and is written back to it, which is how a KV cache grows.
pub(super) fn update(planner: &mut Planner, operation: &Operation) -> Result<bool> {
    let (Some(x), Some(update), [out]) = (operation.var("x"), operation.var("update"), &operation.outputs[..]) else {
        return Ok(false);
    };
    let Place::State { state, offset: 0 } = planner.place(x)? else { return Ok(false) };
    let written_back = is_next_value(planner, *out, state);
    let whole = planner.shape(x)?;
    let sizes = planner.shape(update)?;
    let plain = |param: &str| {
        planner.known(operation, param).and_then(|t| t.to_bools().ok()).is_none_or(|mask| mask.iter().all(|&b| !b))
    };
    let unit = planner.ints(operation, "stride").is_none_or(|stride| stride.iter().all(|&s| s == 1));
    if !written_back || sizes.len() != whole.len() || !plain("squeeze_mask") || !unit {
        return Ok(false);
    }
    let masks =
        (mask(planner, operation, "begin_mask", whole.len()), mask(planner, operation, "end_mask", whole.len()));
    let (Some(begin), Some(end)) = (bound(planner, operation, "begin")?, bound(planner, operation, "end")?) else {
        return Ok(false);
    };
    planner.protect_state(state, &[x])?;
    // `x` itself must not be read again: it would show what is written now.
    if planner.last_use(x) > planner.now() {
        return Ok(false);
    }
    let update = planner.operand(update)?;
    planner.push("update_state", &operation.name, move |memory| {
        let (mut begin, end) = (begin.get(memory)?, end.get(memory)?);
        for axis in 0..whole.len() {
            let n = whole[axis] as i64;
            let from_front = |v: i64| if v < 0 { v + n } else { v };
            begin[axis] = if masks.0[axis] { 0 } else { from_front(begin[axis]) };
            let end = if masks.1[axis] { n } else { from_front(end[axis]) };
            if begin[axis] < 0 || end > n || end.checked_sub(begin[axis]) != Some(sizes[axis] as i64) {
                bail!(
                    "found the range {}..{end} of axis {axis}, expected {} elements within 0..{n}",
                    begin[axis], sizes[axis];
                    hint: "the position may be past the context that the state has room for"
                );
            }
        }
        let strides = row_major(&whole);
        let offset = begin.iter().zip(&strides).map(|(&b, s)| b as isize * s).sum();
        store(memory, state, &View { offset, sizes: sizes.clone(), strides }, &update)
    });
    planner.alias_at(*out, Place::State { state, offset: 0 });
    Ok(true)
}

/// Whether a variable is written to a state before anything else is done with that state.
fn is_next_value(planner: &Planner, var: Var, state: usize) -> bool {
    let later = &planner.function.block.operations[planner.now()..];
    let next = later.iter().find(|operation| operation.var("input").and_then(|var| planner.state(var)) == Some(state));
    next.is_some_and(|next| next.op_name() == "write_state" && next.var("data") == Some(var))
}

/// `write_state`: nothing if the value is the state already, else a copy.
pub(super) fn write(planner: &mut Planner, operation: &Operation) -> Result<bool> {
    let (Some(input), Some(data)) = (operation.var("input"), operation.var("data")) else { return Ok(false) };
    let Some(state) = planner.state(input) else { bail!("the parameter `input` is no state of this function") };
    if matches!(planner.place(data)?, Place::State { state: s, offset: 0 } if s == state) {
        return Ok(true);
    }
    planner.protect_state(state, &[])?;
    let shape = planner.shape(data)?;
    let data = planner.operand(data)?;
    planner.push("write_state", &operation.name, move |memory| {
        let view = View { offset: 0, sizes: shape.clone(), strides: row_major(&shape) };
        store(memory, state, &view, &data)
    });
    Ok(true)
}

fn store(memory: &mut Memory, state: usize, view: &View, values: &Operand) -> Result<()> {
    // The values are taken out of the memory for a moment, so that the state can be written.
    let taken = match values {
        Operand::Buffer { id, .. } => Some((*id, memory.take(*id))),
        Operand::Const(_) => None,
    };
    let source: &[f32] = match (&taken, values) {
        (Some((_, buffer)), _) => &buffer[..values.len()],
        (None, Operand::Const(constant)) => constant,
        (None, Operand::Buffer { .. }) => &[],
    };
    match &mut memory.states[state].data {
        StateData::F16(data) => view.scatter(source, data, f16::from_f32),
        StateData::F32(data) => view.scatter(source, data, |v| v),
    }
    if let Some((id, buffer)) = taken {
        memory.put(id, buffer);
    }
    Ok(())
}

/// Copies a part of a state to a buffer.
pub(crate) fn load_state(memory: &mut Memory, state: usize, offset: usize, id: usize, len: usize) -> Result<()> {
    memory.write(id, len, |m, y| {
        match &m.states[state].data {
            StateData::F16(data) => crate::kernels::f16_to_f32(m.kernels, &data[offset..offset + len], y),
            StateData::F32(data) => y.copy_from_slice(&data[offset..offset + len]),
        }
        Ok(())
    })
}

/// Where a bound of a slice comes from.
enum Bound {
    Known(Vec<i64>),
    Computed(usize),
}

impl Bound {
    fn get(&self, memory: &Memory) -> Result<Vec<i64>> {
        match self {
            Bound::Known(values) => Ok(values.clone()),
            Bound::Computed(var) => memory.tensor(*var)?.to_i64(),
        }
    }
}

fn bound(planner: &mut Planner, operation: &Operation, param: &str) -> Result<Option<Bound>> {
    if let Some(values) = planner.ints(operation, param) {
        return Ok(Some(Bound::Known(values)));
    }
    let Some(var) = operation.var(param) else { return Ok(None) };
    Ok(match planner.place(var)? {
        Place::Tensor(index) => Some(Bound::Computed(index)),
        Place::Const(Value::Tensor(tensor)) => Some(Bound::Known(Tensor::to_i64(&tensor)?)),
        _ => None,
    })
}

fn mask(planner: &Planner, operation: &Operation, param: &str, rank: usize) -> Vec<bool> {
    let known = planner.known(operation, param).and_then(|t| t.to_bools().ok());
    known.filter(|mask| mask.len() == rank).unwrap_or_else(|| vec![false; rank])
}
