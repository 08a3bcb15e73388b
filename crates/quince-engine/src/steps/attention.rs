//! Attention: MIL's `scaled_dot_product_attention` and the semantic `attention`. Keys and values are read where they
//! lie, in a state as fp16; which positions a query sees is found from the mask once, not for each layer.

use crate::kernels::{self, Attention, Cache, Heads, HeadsMut, Mask};
use crate::memory::{Memory, Operand, StateData};
use crate::planner::{Place, Planner};
use crate::strided::{View, broadcast};
use quince_mil::{Operation, Result, Var, bail};
use std::ops::Range;

/// Where keys or values come from.
enum Source {
    Buffer(Operand),
    State { state: usize, offset: usize, len: usize },
}

/// What says which positions are seen.
enum Seen {
    All,
    Causal { window: usize },
    Bool(usize, View),
    Added(Operand, View),
}

/// `scaled_dot_product_attention`: query [B, ..., L, E], key [B, ..., S, E], value [B, ..., S, V].
pub(super) fn scaled_dot_product(planner: &mut Planner, operation: &Operation) -> Result<bool> {
    let vars = (operation.var("query"), operation.var("key"), operation.var("value"), &operation.outputs[..]);
    let (Some(query), Some(key), Some(value), [out]) = vars else { return Ok(false) };
    let (q, k, v) = (planner.shape(query)?, planner.shape(key)?, planner.shape(value)?);
    let rank = q.len();
    if rank < 3 || k[..rank - 2] != q[..rank - 2] || v[..rank - 2] != q[..rank - 2] {
        return Ok(false);
    }
    let heads: usize = q[..rank - 2].iter().product();
    let (rows, dim, positions, value_dim) = (q[rank - 2], q[rank - 1], k[rank - 2], v[rank - 1]);
    let mut scores = q[..rank - 1].to_vec();
    scores.push(positions);
    let seen = match operation.var("attn_mask") {
        None if operation.arg("attn_mask").is_none() => Seen::All,
        None => return Ok(false),
        Some(mask) => mask_source(planner, mask, &scores)?,
    };
    let (query, key, value) = (planner.operand(query)?, source(planner, key)?, source(planner, value)?);
    let (id, len) = planner.output(*out)?;
    let scale = 1.0 / (dim as f32).sqrt();
    planner.push("attention", &operation.name, move |memory| {
        memory.write(id, len, |m, y| {
            let shape = Attention {
                heads,
                kv_heads: heads,
                rows,
                positions,
                dim,
                value_dim,
                scale,
                softcap: None,
                sinks: None,
            };
            let q = Heads { data: m.get(&query), head_stride: rows * dim, row_stride: dim };
            let k = key.cache(m, positions * dim, dim);
            let v = value.cache(m, positions * value_dim, value_dim);
            let out = HeadsMut { data: y, head_stride: rows * value_dim, row_stride: value_dim };
            run(m, &seen, &shape, q, k, v, out)
        })
    });
    Ok(true)
}

/// The semantic `attention`: query [B, S, H, D], key and value [B, S, K, D].
pub(super) fn semantic(planner: &mut Planner, operation: &Operation) -> Result<bool> {
    let vars = (operation.var("query"), operation.var("key"), operation.var("value"), &operation.outputs[..]);
    let (Some(query), Some(key), Some(value), [out]) = vars else { return Ok(false) };
    let (q, k, v) = (planner.shape(query)?, planner.shape(key)?, planner.shape(value)?);
    let ([batch, rows, heads, dim], [_, positions, kv_heads, _], [_, _, _, value_dim]) = (&q[..], &k[..], &v[..])
    else {
        return Ok(false);
    };
    let (batch, rows, heads, dim, positions) = (*batch, *rows, *heads, *dim, *positions);
    let (kv_heads, value_dim) = (*kv_heads, *value_dim);
    let Some(scale) = planner.number(operation, "scale") else { return Ok(false) };
    let causal = planner.known(operation, "causal").and_then(|t| t.to_bools().ok()).is_none_or(|b| b == [true]);
    let window = planner.number(operation, "window").unwrap_or(0.0) as usize;
    if !causal && window > 0 {
        return Ok(false);
    }
    let softcap = planner.number(operation, "softcap").filter(|&cap| cap > 0.0).map(|cap| cap as f32);
    let sinks = planner.parameter(operation, "sinks")?;
    let seen = if causal { Seen::Causal { window } } else { Seen::All };
    let (query, key, value) = (planner.operand(query)?, planner.operand(key)?, planner.operand(value)?);
    let (id, len) = planner.output(*out)?;
    planner.push("attention", &operation.name, move |memory| {
        memory.write(id, len, |m, y| {
            let sinks = sinks.as_ref().map(|sinks| m.get(sinks));
            let scale = scale as f32;
            let shape = Attention { heads, kv_heads, rows, positions, dim, value_dim, scale, softcap, sinks };
            for (i, y) in y.chunks_exact_mut((rows * heads * value_dim).max(1)).enumerate().take(batch) {
                let q = &m.get(&query)[i * rows * heads * dim..];
                let k = &m.get(&key)[i * positions * kv_heads * dim..];
                let v = &m.get(&value)[i * positions * kv_heads * value_dim..];
                let q = Heads { data: q, head_stride: dim, row_stride: heads * dim };
                let k = Cache::F32 { data: k, head_stride: dim, position_stride: kv_heads * dim };
                let v = Cache::F32 { data: v, head_stride: value_dim, position_stride: kv_heads * value_dim };
                let out = HeadsMut { data: y, head_stride: value_dim, row_stride: heads * value_dim };
                run(m, &seen, &shape, q, k, v, out)?;
            }
            Ok(())
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
    fn cache<'a>(&'a self, memory: &'a Memory, head_stride: usize, position_stride: usize) -> Cache<'a> {
        match self {
            Source::Buffer(operand) => Cache::F32 { data: memory.get(operand), head_stride, position_stride },
            Source::State { state, offset, len } => match &memory.states[*state].data {
                StateData::F16(data) => Cache::F16 { data: &data[*offset..offset + len], head_stride, position_stride },
                StateData::F32(data) => Cache::F32 { data: &data[*offset..offset + len], head_stride, position_stride },
            },
        }
    }
}

/// The mask as a view of the scores' shape [..., L, S], so that broadcasting is strides.
fn mask_source(planner: &mut Planner, mask: Var, scores: &[usize]) -> Result<Seen> {
    let shape = planner.shape(mask)?;
    if shape.len() > scores.len() {
        bail!("found a mask {shape:?}, expected one that broadcasts to {scores:?}");
    }
    let view = View { offset: 0, sizes: scores.to_vec(), strides: broadcast(&shape, scores) };
    if planner.dtype(mask)?.is_float() {
        return Ok(Seen::Added(planner.operand(mask)?, view));
    }
    match planner.place(mask)? {
        Place::Tensor(index) => Ok(Seen::Bool(index, view)),
        Place::Const(value) => {
            let added = value.tensor()?.to_bools()?.into_iter().map(|b| if b { 0.0 } else { f32::NEG_INFINITY });
            Ok(Seen::Added(Operand::Const(std::sync::Arc::new(added.collect())), view))
        }
        _ => bail!("found a mask that is neither of truth values nor of numbers"),
    }
}

fn run(m: &Memory, seen: &Seen, shape: &Attention, q: Heads, k: Cache, v: Cache, out: HeadsMut) -> Result<()> {
    let attend = |mask: Mask, out: HeadsMut| kernels::attention(m.kernels, shape, q, k, v, mask, out);
    match seen {
        Seen::All => attend(Mask::Ranges(std::slice::from_ref(&(0..shape.positions))), out),
        Seen::Causal { window } => {
            let past = shape.positions - shape.rows.min(shape.positions);
            let range = |row: usize| {
                let end = past + row + 1;
                (if *window > 0 { end.saturating_sub(*window) } else { 0 })..end
            };
            attend(Mask::Ranges(&(0..shape.rows).map(range).collect::<Vec<_>>()), out);
        }
        Seen::Added(values, view) => with_strides(m.get(values), view, shape, f32::clone, |data, head, row| {
            attend(Mask::Additive { data, head_stride: head, row_stride: row }, out);
        }),
        Seen::Bool(tensor, view) => {
            let bytes = m.tensor(*tensor)?.bytes();
            match ranges(bytes, view, shape.rows) {
                Some(ranges) => attend(Mask::Ranges(&ranges), out),
                None => with_strides(
                    bytes,
                    view,
                    shape,
                    |&b| b != 0,
                    |data, head, row| {
                        attend(Mask::Bool { data, head_stride: head, row_stride: row }, out);
                    },
                ),
            }
        }
    }
    Ok(())
}

/// The range of each row, if the mask is one run of truth in each row and the same for every head.
fn ranges(mask: &[u8], view: &View, rows: usize) -> Option<Vec<Range<usize>>> {
    let rank = view.sizes.len();
    let (positions, step) = (view.sizes[rank - 1], view.strides[rank - 1]);
    let same = (0..rank - 2).all(|axis| view.strides[axis] == 0 || view.sizes[axis] == 1);
    if !same || (step != 1 && positions != 1) {
        return None;
    }
    (0..rows)
        .map(|row| {
            let row = &mask[row * view.strides[rank - 2] as usize..][..positions];
            let start = row.iter().position(|&b| b != 0).unwrap_or(0);
            let len = row[start..].iter().position(|&b| b == 0).unwrap_or(positions - start);
            row[start + len..].iter().all(|&b| b == 0).then_some(start..start + len)
        })
        .collect()
}

/// Gives `f` the mask with one stride for heads and one for rows, written out where it broadcasts.
fn with_strides<T: Copy, U: Copy>(
    mask: &[T],
    view: &View,
    shape: &Attention,
    convert: impl Fn(&T) -> U,
    f: impl FnOnce(&[U], usize, usize),
) {
    let rank = view.sizes.len();
    let same = (0..rank - 2).all(|axis| view.strides[axis] == 0 || view.sizes[axis] == 1);
    let from = if same { rank - 2 } else { 0 };
    let (sizes, strides) = (view.sizes[from..].to_vec(), view.strides[from..].to_vec());
    let view = View { offset: 0, strides, sizes };
    let total: usize = view.sizes.iter().product();
    let Some(&first) = mask.first() else { return };
    let mut flat = vec![first; total];
    view.gather(mask, &mut flat);
    let data: Vec<U> = flat.iter().map(convert).collect();
    f(&data, if same { 0 } else { shape.rows * shape.positions }, shape.positions);
}
