//! The KV cache of a function: as states, as inputs and outputs, or none.
//!
//! A layer hands over its new keys and values [1, kv heads, tokens, D] and gets those that it attends to. States are
//! read, a slice of them is written over, written back and read again:
//!
//! ```text
//! k = read_state(k_cache)
//! k = slice_update(k, new, begin = [layer, 0, position, 0], end = [layer + 1, kv heads, position + tokens, D])
//! write_state(k_cache, k)
//! k = read_state(k_cache)
//! keys = slice_by_index(k, [layer, 0, 0, 0], [layer + 1, kv heads, context, D])
//! ```
//!
//! States are float16. A float32 number x is kept as float16(x) and float16(x − float16(x)), whose sum is off by less
//! than 2⁻²² of x, or 2⁻²⁵ if that is more; keys and values must be below 65504 in either precision.

use super::writer::{Writer, int_vector};
use super::{FunctionKind, FunctionSpec, KvCache, KvGeometry, Precision, Settings, kv_geometry};
use crate::semantic::Semantic;
use quince_mil::{Builder, DType, Flexibility, Input, Result, TensorType, ValueType, Var, bail};
use std::collections::BTreeMap;

/// What a function has of the cache.
pub(super) struct Cache {
    geometry: KvGeometry,
    tokens: usize,
    carrier: Carrier,
    /// Where a layer's new rows begin and end, shared by its keys and values.
    bounds: BTreeMap<usize, (Var, Var)>,
}

enum Carrier {
    Nothing,
    /// For keys and for values: the state, and the state of what float16 leaves of float32.
    States([(Var, Option<Var>); 2]),
    /// For keys and for values: the input, and the new rows of each layer so far.
    Io([(Var, Vec<Var>); 2]),
}

/// Whether it is keys or values that are cached.
#[derive(Clone, Copy)]
enum Which {
    Keys,
    Values,
}

impl Which {
    /// The names: of operations, of the state or input, of the output.
    fn names(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Which::Keys => ("keys", "k_cache", "new_k"),
            Which::Values => ("values", "v_cache", "new_v"),
        }
    }
}

impl Cache {
    /// Adds states or inputs to the function, if it has a cache.
    pub fn new(semantic: &Semantic, settings: &Settings, spec: &FunctionSpec, builder: &mut Builder) -> Result<Cache> {
        let geometry = kv_geometry(semantic, settings.context)?;
        let shape = [geometry.layers, geometry.kv_heads, geometry.context, geometry.head_dim];
        let tokens = match spec.kind {
            FunctionKind::Full(_) | FunctionKind::Encode(_) => 0,
            FunctionKind::Cached { tokens, .. } => tokens,
        };
        let mut state = |name: &str| {
            builder.input(name, ValueType::State(TensorType::fixed(DType::F16, &shape)), Flexibility::Fixed)
        };
        let carrier = match (settings.kv_cache, settings.precision) {
            _ if tokens == 0 => Carrier::Nothing,
            (KvCache::None, _) => Carrier::Nothing,
            (KvCache::State, Precision::Float16) => {
                Carrier::States([(state("k_cache"), None), (state("v_cache"), None)])
            }
            (KvCache::State, Precision::Float32) => {
                let (k, v) = (state("k_cache"), state("v_cache"));
                Carrier::States([(k, Some(state("k_cache_low"))), (v, Some(state("v_cache_low")))])
            }
            (KvCache::Io, precision) => {
                let ty = ValueType::tensor(precision.dtype(), &shape);
                let mut input = |name: &str| (builder.input(name, ty.clone(), Flexibility::Fixed), Vec::new());
                Carrier::Io([input("k_cache"), input("v_cache")])
            }
        };
        Ok(Cache { geometry, tokens, carrier, bounds: BTreeMap::new() })
    }
}

impl Writer<'_> {
    /// The keys and values that layer number `layer` attends to, [1, kv heads, K, D], after `key` and `value`, [1, kv
    /// heads, S, D], were added. `name` begins the names of the operations.
    pub(super) fn extend_cache(&mut self, name: &str, layer: usize, key: Var, value: Var) -> Result<(Var, Var)> {
        if layer >= self.cache.geometry.layers {
            bail!("found layer {layer}, expected one of {}", self.cache.geometry.layers);
        }
        let keys = self.extend(name, layer, Which::Keys, key)?;
        let values = self.extend(name, layer, Which::Values, value)?;
        Ok((keys, values))
    }

    /// The outputs `new_k` and `new_v`, if the cache comes as inputs.
    pub(super) fn new_rows(&mut self) -> Result<Vec<Var>> {
        let Carrier::Io(parts) = &self.cache.carrier else { return Ok(Vec::new()) };
        let rows = [(Which::Keys, parts[0].1.clone()), (Which::Values, parts[1].1.clone())];
        rows.into_iter().map(|(which, rows)| self.concat(which.names().2, rows, 0)).collect()
    }

    fn extend(&mut self, name: &str, layer: usize, which: Which, new: Var) -> Result<Var> {
        let (kind, ..) = which.names();
        let name = format!("{name}.{kind}");
        match &mut self.cache.carrier {
            Carrier::Nothing => Ok(new),
            Carrier::States(states) => {
                let (state, low) = states[which as usize];
                match low {
                    None => self.extend_state(&name, layer, state, new),
                    Some(low) => self.extend_split_state(&name, layer, state, low, new),
                }
            }
            Carrier::Io(parts) => {
                let (input, rows) = &mut parts[which as usize];
                rows.push(new);
                let input = *input;
                let cached = self.layer_of(&format!("{name}.cached"), input, layer)?;
                self.concat(&name, vec![cached, new], 2)
            }
        }
    }

    /// Writes new rows to a state and gives the layer's part of it.
    fn extend_state(&mut self, name: &str, layer: usize, state: Var, new: Var) -> Result<Var> {
        let (begin, end) = self.bounds(layer)?;
        let old = self.op("read_state", &format!("{name}.old"), &[("input", state.into())])?;
        let inputs = [("x", old.into()), ("update", new.into()), ("begin", begin.into()), ("end", end.into())];
        let updated = self.op("slice_update", &format!("{name}.updated"), &inputs)?;
        self.statement("write_state", &format!("{name}.write"), &[("input", state.into()), ("data", updated.into())])?;
        let all = self.op("read_state", &format!("{name}.all"), &[("input", state.into())])?;
        self.layer_of(name, all, layer)
    }

    /// The same for float32 rows, in two states that sum to them.
    fn extend_split_state(&mut self, name: &str, layer: usize, high: Var, low: Var, new: Var) -> Result<Var> {
        let high_new = self.cast(&format!("{name}.high_new"), new, DType::F16)?;
        let rounded = self.cast(&format!("{name}.rounded"), high_new, DType::F32)?;
        let rest = self.op("sub", &format!("{name}.rest"), &[("x", new.into()), ("y", rounded.into())])?;
        let low_new = self.cast(&format!("{name}.low_new"), rest, DType::F16)?;
        let high = self.extend_state(&format!("{name}.high"), layer, high, high_new)?;
        let low = self.extend_state(&format!("{name}.low"), layer, low, low_new)?;
        let high = self.cast(&format!("{name}.high_part"), high, DType::F32)?;
        let low = self.cast(&format!("{name}.low_part"), low, DType::F32)?;
        self.op("add", name, &[("x", high.into()), ("y", low.into())])
    }

    /// x in another element type.
    pub(super) fn cast(&mut self, name: &str, x: Var, dtype: DType) -> Result<Var> {
        self.op("cast", name, &[("x", x.into()), ("dtype", dtype.name().into())])
    }

    /// One layer of a whole cache: [1, kv heads, context, D].
    fn layer_of(&mut self, name: &str, cache: Var, layer: usize) -> Result<Var> {
        let KvGeometry { kv_heads, context, head_dim, .. } = self.cache.geometry;
        self.slice(name, cache, &[layer, 0, 0, 0], &[layer + 1, kv_heads, context, head_dim])
    }

    /// Where a layer's new rows begin and end: int32 [4] each.
    fn bounds(&mut self, layer: usize) -> Result<(Var, Var)> {
        if let Some(bounds) = self.cache.bounds.get(&layer) {
            return Ok(*bounds);
        }
        let KvGeometry { kv_heads, head_dim, .. } = self.cache.geometry;
        let Some(start) = self.start() else { bail!("the function has no `position`, expected one with a cache") };
        let stop = self.stop(start)?;
        let begin = self.corner(&format!("begin_{layer}"), &[layer, 0], start, 0)?;
        let end = self.corner(&format!("end_{layer}"), &[layer + 1, kv_heads], stop, head_dim)?;
        self.cache.bounds.insert(layer, (begin, end));
        Ok((begin, end))
    }

    /// The position after the last of the call's tokens.
    fn stop(&mut self, start: Var) -> Result<Var> {
        if let Some(stop) = self.positions.stop {
            return Ok(stop);
        }
        let tokens: Input = int_vector(&[self.cache.tokens])?.into();
        let stop = self.op("add", "position_end", &[("x", start.into()), ("y", tokens)])?;
        self.positions.stop = Some(stop);
        Ok(stop)
    }

    fn corner(&mut self, name: &str, first: &[usize], position: Var, last: usize) -> Result<Var> {
        let first = self.constant(&format!("{name}.first"), int_vector(first)?);
        let last = self.constant(&format!("{name}.last"), int_vector(&[last])?);
        self.concat(name, vec![first, position, last], 0)
    }
}
