//! Attention: MIL's `scaled_dot_product_attention`, the semantic `attention`, and what fusions find written out. Keys
//! and values are read where they lie, in a state as fp16, transposed or not; which positions a query sees is found from
//! the mask once.

use crate::kernels::{self, Added, Attention, Cache, Heads, HeadsMut, Mask, Strides};
use crate::memory::{Memory, Operand, StateData};
use crate::planner::{Place, Planner};
use crate::strided::{View, broadcast};
use quince_mil::{Operation, Result, Var, bail};
use std::ops::Range;

/// Rows of heads of batches inside a variable that is row-major.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct HeadsView {
    /// The variable.
    pub var: Var,
    /// Where each row begins.
    pub strides: Strides,
}

/// Attention between views of variables.
pub(crate) struct Attending {
    pub query: HeadsView,
    pub key: HeadsView,
    pub value: HeadsView,
    /// What is added to scores or says which are seen: views of [batch, heads, rows, positions] or what broadcasts to
    /// that.
    pub masks: Vec<Var>,
    /// Where the rows of the result begin.
    pub out: Strides,
    /// Sizes.
    pub shape: Attention<'static>,
}

/// Where keys or values come from.
enum Source {
    Buffer(Operand),
    State { state: usize, offset: usize, len: usize },
}

/// What says which positions are seen.
enum Seen {
    All,
    Causal {
        window: usize,
    },
    /// The tensor of a variable.
    Bool(usize, Broadcast),
    Added(Vec<(Operand, Broadcast)>),
}

/// A mask whose last axis is that of positions.
struct Broadcast {
    strides: Strides,
    /// How a mask that does not lie in rows of positions is written out.
    written_out: Option<View>,
}

/// `scaled_dot_product_attention`: query [B, ..., L, E], key [B, ..., S, E], value [B, ..., S, V].
pub(super) fn scaled_dot_product(planner: &mut Planner, operation: &Operation) -> Result<bool> {
    let vars = (operation.var("query"), operation.var("key"), operation.var("value"), &operation.outputs[..]);
    let (Some(query), Some(key), Some(value), [_]) = vars else { return Ok(false) };
    let (q, k, v) = (planner.shape(query)?, planner.shape(key)?, planner.shape(value)?);
    let rank = q.len();
    if rank < 3 || k[..rank - 2] != q[..rank - 2] || v[..rank - 2] != q[..rank - 2] {
        return Ok(false);
    }
    let masks = match operation.var("attn_mask") {
        None if operation.arg("attn_mask").is_none() => vec![],
        None => return Ok(false),
        Some(mask) => vec![mask],
    };
    let (batch, heads) = if rank == 4 { (q[0], q[1]) } else { (1, q[..rank - 2].iter().product()) };
    let (rows, dim, positions, value_dim) = (q[rank - 2], q[rank - 1], k[rank - 2], v[rank - 1]);
    let view = |var: Var, rows: usize, dim: usize| HeadsView { var, strides: heads_first(heads, rows, dim) };
    let attending = Attending {
        query: view(query, rows, dim),
        key: view(key, positions, dim),
        value: view(value, positions, value_dim),
        masks,
        out: heads_first(heads, rows, value_dim),
        shape: Attention {
            batch,
            heads,
            kv_heads: heads,
            rows,
            positions,
            dim,
            value_dim,
            scale: 1.0 / (dim as f32).sqrt(),
            softcap: None,
            sinks: None,
            unseen: f32::NAN,
        },
    };
    if rank != 4 && attending.masks.iter().any(|&mask| planner.shape(mask).is_ok_and(|shape| shape.len() > 3)) {
        return Ok(false);
    }
    emit_attention(planner, operation, &attending)?;
    Ok(true)
}

/// [B, heads, rows, dim], row-major.
fn heads_first(heads: usize, rows: usize, dim: usize) -> Strides {
    Strides { batch: heads * rows * dim, head: rows * dim, row: dim }
}

/// Appends attention as one step, which writes the output of `operation`.
pub(crate) fn emit_attention(planner: &mut Planner, operation: &Operation, attending: &Attending) -> Result<()> {
    let Some(out) = operation.outputs.first() else { return Ok(()) };
    let Attending { query, key, value, ref masks, out: out_strides, shape } = *attending;
    let seen = mask_source(planner, masks, [shape.batch, shape.heads, shape.rows, shape.positions])?;
    let (keys, values) = (source(planner, key.var)?, source(planner, value.var)?);
    let queries = planner.operand(query.var)?;
    let (id, len) = planner.output(*out)?;
    planner.push("attention", &operation.name, move |memory| {
        memory.write(id, len, |m, y| {
            let q = Heads { data: m.get(&queries), strides: query.strides };
            let (k, v) = (keys.cache(m, key.strides), values.cache(m, value.strides));
            run(m, &seen, &shape, q, k, v, HeadsMut { data: y, strides: out_strides })
        })
    });
    Ok(())
}

/// The semantic `attention`: query [B, S, H, D], key and value [B, S, K, D].
pub(super) fn semantic(planner: &mut Planner, operation: &Operation) -> Result<bool> {
    let vars = (operation.var("query"), operation.var("key"), operation.var("value"), &operation.outputs[..]);
    let (Some(query), Some(key), Some(value), [out]) = vars else { return Ok(false) };
    let (q, k, v) = (planner.shape(query)?, planner.shape(key)?, planner.shape(value)?);
    let (&[batch, rows, heads, dim], &[_, positions, kv_heads, _], &[.., value_dim]) = (&q[..], &k[..], &v[..]) else {
        return Ok(false);
    };
    let Some(scale) = planner.number(operation, "scale") else { return Ok(false) };
    let causal = planner.known(operation, "causal").and_then(|t| t.to_bools().ok()).is_none_or(|b| b == [true]);
    let window = planner.number(operation, "window").unwrap_or(0.0) as usize;
    // What hides padding, and a bias for each pair of tokens, are left to the definition.
    let more = ["padding", "bias"].iter().any(|param| operation.arg(param).is_some());
    if more || (!causal && window > 0) {
        return Ok(false);
    }
    let softcap = planner.number(operation, "softcap").filter(|&cap| cap > 0.0).map(|cap| cap as f32);
    let sinks = planner.parameter(operation, "sinks")?;
    let seen = if causal { Seen::Causal { window } } else { Seen::All };
    let (query, key, value) = (planner.operand(query)?, planner.operand(key)?, planner.operand(value)?);
    let (id, len) = planner.output(*out)?;
    let tokens_first =
        |rows: usize, heads: usize, dim: usize| Strides { batch: rows * heads * dim, head: dim, row: heads * dim };
    planner.push("attention", &operation.name, move |memory| {
        memory.write(id, len, |m, y| {
            let (sinks, scale) = (sinks.as_ref().map(|sinks| m.get(sinks)), scale as f32);
            let shape = Attention {
                batch,
                heads,
                kv_heads,
                rows,
                positions,
                dim,
                value_dim,
                scale,
                softcap,
                sinks,
                unseen: 0.0,
            };
            let q = Heads { data: m.get(&query), strides: tokens_first(rows, heads, dim) };
            let k = Cache::F32 { data: m.get(&key), strides: tokens_first(positions, kv_heads, dim) };
            let v = Cache::F32 { data: m.get(&value), strides: tokens_first(positions, kv_heads, value_dim) };
            run(m, &seen, &shape, q, k, v, HeadsMut { data: y, strides: tokens_first(rows, heads, value_dim) })
        })
    });
    Ok(true)
}

fn source(planner: &mut Planner, var: Var) -> Result<Source> {
    Ok(match planner.place(var)? {
        Place::State { state, offset } => Source::State { state, offset, len: planner.shape(var)?.iter().product() },
        _ => Source::Buffer(planner.operand(var)?),
    })
}

impl Source {
    fn cache<'a>(&'a self, memory: &'a Memory, strides: Strides) -> Cache<'a> {
        match self {
            Source::Buffer(operand) => Cache::F32 { data: memory.get(operand), strides },
            Source::State { state, offset, len } => match &memory.states[*state].data {
                StateData::F16(data) => Cache::F16 { data: &data[*offset..offset + len], strides },
                StateData::F32(data) => Cache::F32 { data: &data[*offset..offset + len], strides },
            },
        }
    }
}

/// The masks as views of the scores' shape [batch, heads, rows, positions], so that broadcasting is strides.
fn mask_source(planner: &mut Planner, masks: &[Var], scores: [usize; 4]) -> Result<Seen> {
    let mut added = Vec::with_capacity(masks.len());
    for &mask in masks {
        let shape = planner.shape(mask)?;
        let Some(view) = Broadcast::of(&shape, scores) else {
            bail!("found a mask {shape:?}, expected one that broadcasts to {scores:?}");
        };
        if planner.dtype(mask)?.is_float() {
            added.push((planner.operand(mask)?, view));
            continue;
        }
        match planner.place(mask)? {
            Place::Tensor(index) if masks.len() == 1 => return Ok(Seen::Bool(index, view)),
            Place::Const(value) => {
                let values = value.tensor()?.to_bools()?.into_iter().map(|b| if b { 0.0 } else { f32::NEG_INFINITY });
                added.push((Operand::Const(std::sync::Arc::new(values.collect())), view));
            }
            _ => bail!("found a mask that is neither of truth values nor of numbers"),
        }
    }
    Ok(if added.is_empty() { Seen::All } else { Seen::Added(added) })
}

impl Broadcast {
    /// `None` if the shape does not broadcast to that of the scores.
    fn of(shape: &[usize], scores: [usize; 4]) -> Option<Broadcast> {
        // A mask of one row is read by all: the scores of rank 3 have no axis of batches, which is one of size one here.
        let missing = scores.len().checked_sub(shape.len())?;
        if !shape.iter().zip(&scores[missing..]).all(|(&n, &size)| n == size || n == 1) {
            return None;
        }
        let steps = broadcast(shape, &scores);
        let rows =
            |steps: &[isize]| Strides { batch: steps[0] as usize, head: steps[1] as usize, row: steps[2] as usize };
        if steps[3] == 1 || scores[3] == 1 {
            return Some(Broadcast { strides: rows(&steps), written_out: None });
        }
        // The mask is one entry for all positions of a row.
        let sizes: Vec<usize> =
            (0..4).map(|axis| if axis == 3 || steps[axis] != 0 { scores[axis] } else { 1 }).collect();
        let own = broadcast(&sizes, &scores);
        Some(Broadcast { strides: rows(&own), written_out: Some(View { offset: 0, strides: steps, sizes }) })
    }

    /// The mask as rows of positions, written out to `room` if it is not.
    fn rows<'a, T: Copy>(&self, mask: &'a [T], room: &'a mut Vec<T>) -> &'a [T] {
        match (&self.written_out, mask.first()) {
            (Some(view), Some(&first)) => {
                room.resize(view.sizes.iter().product(), first);
                view.gather(mask, room);
                room
            }
            _ => mask,
        }
    }
}

fn run(m: &Memory, seen: &Seen, shape: &Attention, q: Heads, k: Cache, v: Cache, out: HeadsMut) -> Result<()> {
    let attend = |mask: Mask| kernels::attention(m.kernels, shape, q, k, v, mask, out);
    match seen {
        Seen::All => attend(Mask::Ranges(std::slice::from_ref(&(0..shape.positions)))),
        Seen::Causal { window } => {
            let past = shape.positions - shape.rows.min(shape.positions);
            let range = |row: usize| {
                let end = past + row + 1;
                (if *window > 0 { end.saturating_sub(*window) } else { 0 })..end
            };
            attend(Mask::Ranges(&(0..shape.rows).map(range).collect::<Vec<_>>()));
        }
        Seen::Added(masks) => {
            if let [(values, view)] = &masks[..]
                && let Some(ranges) = added_ranges(m.get(values), view, shape)
            {
                attend(Mask::Ranges(&ranges));
                return Ok(());
            }
            let mut rooms = vec![Vec::new(); masks.len()];
            let masks = masks.iter().zip(&mut rooms);
            let added = masks
                .map(|((values, view), room)| Added { data: view.rows(m.get(values), room), strides: view.strides });
            attend(Mask::Additive(&added.collect::<Vec<_>>()));
        }
        Seen::Bool(tensor, view) => {
            let mask = m.tensor(*tensor)?;
            let mut room = Vec::new();
            let entries: Vec<bool> = view.rows(mask.bytes(), &mut room).iter().map(|&b| b != 0).collect();
            match ranges(|at| Some(entries[at]), view.strides, shape) {
                Some(ranges) => attend(Mask::Ranges(&ranges)),
                None => attend(Mask::Bool { data: &entries, strides: view.strides }),
            }
        }
    }
    Ok(())
}

/// The range of each row of a mask of numbers that are 0 or so small that nothing is left of what they are added to: no
/// score is as large, and the softmax of what is so far below others is 0. A row without a 0 has no such range.
fn added_ranges(mask: &[f32], view: &Broadcast, shape: &Attention) -> Option<Vec<Range<usize>>> {
    const FAR: f32 = -1e4;
    if view.written_out.is_some() {
        return None;
    }
    let seen = |at: usize| match mask[at] {
        0.0 => Some(true),
        far if far <= FAR => Some(false),
        _ => None,
    };
    ranges(seen, view.strides, shape).filter(|ranges| ranges.iter().all(|range| !range.is_empty()))
}

/// The range of each row, if the mask is one run of truth in each row and the same for every head and batch.
fn ranges(seen: impl Fn(usize) -> Option<bool>, strides: Strides, shape: &Attention) -> Option<Vec<Range<usize>>> {
    let same = (strides.head == 0 || shape.heads == 1) && (strides.batch == 0 || shape.batch == 1);
    if !same {
        return None;
    }
    let of_row = |row: usize| {
        let first = row * strides.row;
        let mut range = 0..0;
        for at in 0..shape.positions {
            match (seen(first + at)?, range.is_empty()) {
                (true, true) => range = at..at + 1,
                (true, false) if range.end == at => range.end = at + 1,
                (true, false) => return None,
                (false, _) => {}
            }
        }
        Some(range)
    };
    if strides.row == 0 {
        return Some(vec![of_row(0)?; shape.rows]);
    }
    (0..shape.rows).map(of_row).collect()
}
