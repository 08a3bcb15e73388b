//! The KV cache of a function: as states, as inputs and outputs, or none.
//!
//! A layer hands over its new keys and values [1, kv heads, tokens, D] and gets those that it attends to. A state holds
//! the keys and values of several layers, because some systems fail with more than two states. It is read, a slice of it
//! is written over, written back and read again:
//!
//! ```text
//! new = concat(keys, values)                                                           [2, kv heads, tokens, D]
//! all = read_state(kv_cache)
//! all = slice_update(all, new, begin = [2 · layer, 0, position, 0], end = [2 · layer + 2, kv heads, position + tokens, D])
//! write_state(kv_cache, all);  all = read_state(kv_cache)
//! keys = slice_by_index(all, [2 · layer, 0, 0, 0], [2 · layer + 1, kv heads, context, D]);  values likewise
//! ```
//!
//! A rotating state has fewer slots than the context; the token at `position` is in slot `position % slots`. Since a call's
//! tokens may go round the end, they are put where they belong by a product with ones and zeros, and the layer is written
//! whole:
//!
//! ```text
//! put = slots = positions % slots                         [1, 1, slots, tokens];  keep = 1 - sum of put over tokens
//! rows = old · keep + matmul(put, new)
//! ```
//!
//! Slots are for the window and twice the longest call, so that who goes back by no more tokens than that finds all that
//! the window shows: nothing that is in sight was written over.
//!
//! States are float16. A float32 number x is kept as float16(x) and float16(x − float16(x)), whose sum is off by less
//! than 2⁻²² of x, or 2⁻²⁵ if that is more; keys and values must be below 65504 in either precision.

use super::positions::Slots;
use super::writer::{Writer, int_vector};
use super::{FunctionKind, FunctionSpec, KvCache, KvGeometry, Precision, Settings, kv_geometry, windows};
use crate::semantic::Semantic;
use quince_mil::{Builder, DType, Flexibility, Input, Result, TensorType, ValueType, Var, bail};
use std::collections::BTreeMap;

/// What a function has of the cache.
pub(super) struct Cache {
    geometry: KvGeometry,
    tokens: usize,
    carrier: Carrier,
    /// By layer: where it is kept, if a state carries the cache.
    places: Vec<Place>,
    /// Where a layer's new rows begin and end, shared by the states of a number's two parts.
    bounds: BTreeMap<usize, (Var, Var)>,
    /// Which slots a call's tokens go to, and which are kept.
    turn: Option<(Var, Var)>,
}

enum Carrier {
    Nothing,
    /// That of layers that see all tokens, and that of others.
    States([Option<State>; 2]),
    /// For keys and for values: the input, and the new rows of each layer so far.
    Io([(Var, Vec<Var>); 2]),
}

/// A state, and the state of what float16 leaves of float32.
#[derive(Clone, Copy)]
struct State {
    high: Var,
    low: Option<Var>,
}

/// Where a layer is kept.
#[derive(Clone, Copy)]
struct Place {
    slots: Slots,
    /// The number of the layer among those of its state.
    layer: usize,
}

/// Whether it is keys or values that come as inputs.
#[derive(Clone, Copy)]
enum Which {
    Keys,
    Values,
}

impl Which {
    /// The names: of operations, of the input, of the output.
    fn names(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Which::Keys => ("keys", "k_cache", "new_k"),
            Which::Values => ("values", "v_cache", "new_v"),
        }
    }
}

impl Cache {
    /// Adds states or inputs to the function, if it has a cache; `longest_call` is the most tokens of a call of any function
    /// that shares the cache.
    pub fn new(
        semantic: &Semantic,
        settings: &Settings,
        spec: &FunctionSpec,
        longest_call: usize,
        builder: &mut Builder,
    ) -> Result<Cache> {
        let geometry = kv_geometry(semantic, spec.context(settings))?;
        let tokens = match spec.kind {
            FunctionKind::Full(_) | FunctionKind::Encode(_) => 0,
            FunctionKind::Cached { tokens, .. } => tokens,
        };
        let places = places(semantic, settings, longest_call);
        let carrier = match settings.kv_cache {
            _ if tokens == 0 => Carrier::Nothing,
            KvCache::None => Carrier::Nothing,
            KvCache::State | KvCache::Rotating => {
                // The same state for all functions, of which some see the first slots alone.
                let whole = KvGeometry { context: settings.context, ..geometry };
                Carrier::States(states(&whole, settings.precision, &places, builder))
            }
            KvCache::Io => {
                let shape = [geometry.layers, geometry.kv_heads, geometry.context, geometry.head_dim];
                let ty = ValueType::tensor(settings.precision.dtype(), &shape);
                let mut input = |name: &str| (builder.input(name, ty.clone(), Flexibility::Fixed), Vec::new());
                Carrier::Io([input("k_cache"), input("v_cache")])
            }
        };
        Ok(Cache { geometry, tokens, carrier, places, bounds: BTreeMap::new(), turn: None })
    }
}

/// Where each layer is kept.
fn places(semantic: &Semantic, settings: &Settings, longest_call: usize) -> Vec<Place> {
    let windows = windows(semantic);
    // Sizes that the Neural Engine likes.
    let room = |window: usize| (window.saturating_add(2 * longest_call)).next_multiple_of(32);
    let rotates =
        |window: usize| settings.kv_cache == KvCache::Rotating && window > 0 && room(window) < settings.context;
    let widest = windows.iter().copied().filter(|&window| rotates(window)).max().unwrap_or(0);
    let mut counts = [0, 0];
    let mut place = |window: usize| {
        let slots = if rotates(window) { Slots::Rotating(room(widest)) } else { Slots::All };
        let count = &mut counts[number(slots)];
        *count += 1;
        Place { slots, layer: *count - 1 }
    };
    windows.into_iter().map(&mut place).collect()
}

/// The number of the state of layers that are kept so.
fn number(slots: Slots) -> usize {
    usize::from(slots != Slots::All)
}

fn states(geometry: &KvGeometry, precision: Precision, places: &[Place], builder: &mut Builder) -> [Option<State>; 2] {
    let mut state = |slots: Slots, name: &str| {
        let layers = places.iter().filter(|place| place.slots == slots).count();
        let rows = match slots {
            Slots::All => geometry.context,
            Slots::Rotating(count) => count,
        };
        let shape = [2 * layers, geometry.kv_heads, rows, geometry.head_dim];
        let mut input = |name: &str| {
            builder.input(name, ValueType::State(TensorType::fixed(DType::F16, &shape)), Flexibility::Fixed)
        };
        let high = input(name);
        let low = (precision == Precision::Float32).then(|| input(&format!("{name}_low")));
        State { high, low }
    };
    let mut of = |is: fn(&Slots) -> bool, name: &str| {
        let slots = places.iter().map(|place| place.slots).find(is)?;
        Some(state(slots, name))
    };
    [of(|slots| *slots == Slots::All, "kv_cache"), of(|slots| *slots != Slots::All, "kv_rotating")]
}

impl Writer<'_> {
    /// Where the keys of layer number `layer` lie.
    pub(super) fn slots_of(&self, layer: usize) -> Slots {
        match (&self.cache.carrier, self.cache.places.get(layer)) {
            (Carrier::States(_), Some(place)) => place.slots,
            _ => Slots::All,
        }
    }

    /// The keys and values that layer number `layer` attends to, [1, kv heads, K, D], after `key` and `value`, [1, kv
    /// heads, S, D], were added. `name` begins the names of the operations.
    pub(super) fn extend_cache(&mut self, name: &str, layer: usize, key: Var, value: Var) -> Result<(Var, Var)> {
        let Some(place) = self.cache.places.get(layer).copied() else {
            bail!("found layer {layer}, expected one of {}", self.cache.geometry.layers);
        };
        match &self.cache.carrier {
            Carrier::Nothing => Ok((key, value)),
            Carrier::Io(_) => {
                let keys = self.extend_input(name, layer, Which::Keys, key)?;
                Ok((keys, self.extend_input(name, layer, Which::Values, value)?))
            }
            Carrier::States(states) => {
                let Some(state) = states[number(place.slots)] else { bail!("found no state for layer {layer}") };
                let new = self.concat(&format!("{name}.new"), vec![key, value], 0)?;
                match state.low {
                    None => self.extend_state(name, place, state.high, new),
                    Some(low) => self.extend_split_state(name, place, [state.high, low], new),
                }
            }
        }
    }

    /// The outputs `new_k` and `new_v`, if the cache comes as inputs.
    pub(super) fn new_rows(&mut self) -> Result<Vec<Var>> {
        let Carrier::Io(parts) = &self.cache.carrier else { return Ok(Vec::new()) };
        let rows = [(Which::Keys, parts[0].1.clone()), (Which::Values, parts[1].1.clone())];
        rows.into_iter().map(|(which, rows)| self.concat(which.names().2, rows, 0)).collect()
    }

    /// The rows of a layer that are an input, and the new ones after them.
    fn extend_input(&mut self, name: &str, layer: usize, which: Which, new: Var) -> Result<Var> {
        let name = format!("{name}.{}", which.names().0);
        let Carrier::Io(parts) = &mut self.cache.carrier else { bail!("found no cache among the inputs") };
        let (input, rows) = &mut parts[which as usize];
        rows.push(new);
        let input = *input;
        let KvGeometry { kv_heads, context, head_dim, .. } = self.cache.geometry;
        let end = [layer + 1, kv_heads, context, head_dim];
        let cached = self.slice(&format!("{name}.cached"), input, &[layer, 0, 0, 0], &end)?;
        self.concat(&name, vec![cached, new], 2)
    }

    /// Writes new rows [2, kv heads, S, D] to a state, and gives the layer's keys and values.
    fn extend_state(&mut self, name: &str, place: Place, state: Var, new: Var) -> Result<(Var, Var)> {
        let old = self.op("read_state", &format!("{name}.old"), &[("input", state.into())])?;
        let (new, begin, end) = match place.slots {
            Slots::All => {
                let (begin, end) = self.bounds(place.layer)?;
                (new, Input::from(begin), Input::from(end))
            }
            Slots::Rotating(slots) => {
                let (begin, end) = self.planes(place, slots);
                let old = self.slice(&format!("{name}.before"), old, &begin, &end)?;
                (self.turned(name, slots, old, new)?, int_vector(&begin)?.into(), int_vector(&end)?.into())
            }
        };
        let inputs = [("x", old.into()), ("update", new.into()), ("begin", begin), ("end", end)];
        let updated = self.op("slice_update", &format!("{name}.updated"), &inputs)?;
        self.statement("write_state", &format!("{name}.write"), &[("input", state.into()), ("data", updated.into())])?;
        let all = self.op("read_state", &format!("{name}.all"), &[("input", state.into())])?;
        let slots = match place.slots {
            Slots::All => self.cache.geometry.context,
            Slots::Rotating(slots) => slots,
        };
        let (begin, end) = self.planes(place, slots);
        let middle = (begin[0] + 1, [begin[0] + 1, end[1], end[2], end[3]]);
        let keys = self.slice(&format!("{name}.keys"), all, &begin, &middle.1)?;
        let values = self.slice(&format!("{name}.values"), all, &[middle.0, 0, 0, 0], &end)?;
        Ok((keys, values))
    }

    /// The same for float32 rows, in two states that sum to them.
    fn extend_split_state(&mut self, name: &str, place: Place, states: [Var; 2], new: Var) -> Result<(Var, Var)> {
        let high_new = self.cast(&format!("{name}.high_new"), new, DType::F16)?;
        let rounded = self.cast(&format!("{name}.rounded"), high_new, DType::F32)?;
        let rest = self.op("sub", &format!("{name}.rest"), &[("x", new.into()), ("y", rounded.into())])?;
        let low_new = self.cast(&format!("{name}.low_new"), rest, DType::F16)?;
        let high = self.extend_state(&format!("{name}.high"), place, states[0], high_new)?;
        let low = self.extend_state(&format!("{name}.low"), place, states[1], low_new)?;
        let mut sum = |part: &str, high: Var, low: Var| {
            let high = self.cast(&format!("{name}.{part}.high_part"), high, DType::F32)?;
            let low = self.cast(&format!("{name}.{part}.low_part"), low, DType::F32)?;
            self.op("add", &format!("{name}.{part}"), &[("x", high.into()), ("y", low.into())])
        };
        Ok((sum("keys", high.0, low.0)?, sum("values", high.1, low.1)?))
    }

    /// Old rows [2, kv heads, slots, D] with the call's tokens in their slots.
    fn turned(&mut self, name: &str, slots: usize, old: Var, new: Var) -> Result<Var> {
        let (put, keep) = self.turn(slots)?;
        let old = self.op("mul", &format!("{name}.kept"), &[("x", old.into()), ("y", keep.into())])?;
        let placed = match self.cache.tokens {
            1 => self.op("mul", &format!("{name}.placed"), &[("x", put.into()), ("y", new.into())])?,
            _ => {
                let inputs = [
                    ("x", put.into()),
                    ("y", new.into()),
                    ("transpose_x", false.into()),
                    ("transpose_y", false.into()),
                ];
                self.op("matmul", &format!("{name}.placed"), &inputs)?
            }
        };
        self.op("add", &format!("{name}.turned"), &[("x", old.into()), ("y", placed.into())])
    }

    /// Which slots the call's tokens go to, [1, 1, slots, S], and which are kept, [1, 1, slots, 1]: ones and zeros.
    fn turn(&mut self, slots: usize) -> Result<(Var, Var)> {
        if let Some(turn) = self.cache.turn {
            return Ok(turn);
        }
        let size = int_vector(&[slots])?[0];
        let tokens = self.token_positions()?;
        let tokens = self.op("mod", "slots_of_tokens", &[("x", tokens.into()), ("y", size.into())])?;
        let tokens = self.op("expand_dims", "slot_columns", &[("x", tokens.into()), ("axes", [0, 1, 2].into())])?;
        let numbers = self.constant("slot_numbers", (0..size).collect::<Vec<i32>>());
        let numbers = self.op("expand_dims", "slot_rows", &[("x", numbers.into()), ("axes", [0, 1, 3].into())])?;
        let hit = self.op("equal", "slots_hit", &[("x", numbers.into()), ("y", tokens.into())])?;
        let put = self.cast("slots_put", hit, DType::F16)?;
        let inputs = [("x", put.into()), ("axes", [-1].into()), ("keep_dims", true.into())];
        let written = self.op("reduce_sum", "slots_written", &inputs)?;
        let one: Input = quince_mil::Tensor::scalar(1f32).cast(DType::F16)?.into();
        let keep = self.op("sub", "slots_kept", &[("x", one), ("y", written.into())])?;
        self.cache.turn = Some((put, keep));
        Ok((put, keep))
    }

    /// x in another element type.
    pub(super) fn cast(&mut self, name: &str, x: Var, dtype: DType) -> Result<Var> {
        self.op("cast", name, &[("x", x.into()), ("dtype", dtype.name().into())])
    }

    /// Where a layer's keys begin and its values end, in a state of so many slots.
    fn planes(&self, place: Place, slots: usize) -> ([usize; 4], [usize; 4]) {
        let KvGeometry { kv_heads, head_dim, .. } = self.cache.geometry;
        let first = 2 * place.layer;
        ([first, 0, 0, 0], [first + 2, kv_heads, slots, head_dim])
    }

    /// Where a layer's new rows begin and end: int32 [4] each.
    fn bounds(&mut self, layer: usize) -> Result<(Var, Var)> {
        if let Some(bounds) = self.cache.bounds.get(&layer) {
            return Ok(*bounds);
        }
        let KvGeometry { kv_heads, head_dim, .. } = self.cache.geometry;
        let Some(start) = self.start() else { bail!("the function has no `position`, expected one with a cache") };
        let stop = self.stop(start)?;
        let begin = self.corner(&format!("begin_{layer}"), &[2 * layer, 0], start, 0)?;
        let end = self.corner(&format!("end_{layer}"), &[2 * layer + 2, kv_heads], stop, head_dim)?;
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
