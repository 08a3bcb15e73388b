//! Positions, rotary tables and masks of a function: each written once, where it is first asked for.
//!
//! Masks are made of the positions of tokens and keys, whatever carries the keys: slots of a cache that hold none so far
//! count as the position `context`, which is after every token. As truth values, for the fused operation, positions are
//! compared. As numbers that are added to scores, 0 or -30000 for who is not seen, they are computed for a known number of
//! tokens, with integers for each key only; else they are gathered from a constant table by distance:
//!
//! ```text
//! ahead = keys - start;  mask = clip(tokens - clip(ahead, -1, S), -1, 0) · 30000         tokens = 0, 1, .. S - 1
//! places = (queries + context) - keys;  mask = gather(table, places)
//! ```

use super::writer::{Writer, int_vector};
use super::{FunctionKind, KvCache, Layout, Length};
use quince_mil::{DType, Input, Result, Tensor, Var, Weight, bail};
use quince_tensor::WeightSource;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// What a function has written so far.
pub(super) struct Positions {
    /// The input `position`, of functions with a cache.
    start: Option<Var>,
    /// The input `attention_mask`, of functions that take several texts.
    padding: Option<Var>,
    /// The position after the call's last token.
    pub stop: Option<Var>,
    of_tokens: Option<Var>,
    /// The position of the call's last token.
    pub last: Option<Var>,
    of_keys: HashMap<Slots, Var>,
    masks: HashMap<MaskKind, Var>,
    scores: HashMap<Option<MaskKind>, Var>,
    seen: Option<Var>,
    input_shape: Option<Var>,
    shapes: HashMap<Vec<i64>, Var>,
    /// By index of the table: cosines and sines of the tokens.
    rotary: HashMap<usize, (Var, Var)>,
}

/// Which keys a token may attend to.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct MaskKind {
    /// Itself and those before it alone.
    pub causal: bool,
    /// So many of them in each direction, 0 for all.
    pub window: usize,
    /// How often the tokens are repeated: for the heads of a group.
    pub repeats: usize,
    /// Which keys there are.
    pub slots: Slots,
}

/// Where keys lie.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Slots {
    /// One for each token of the context, or only those of the call where there is no cache.
    All,
    /// So many, each used again and again.
    Rotating(usize),
}

/// How far a token sees.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Sight {
    causal: bool,
    window: usize,
}

/// Cosines and sines of every position, for one set of frequencies: [context, pairs] each. Both elements of a pair turn
/// by the same angle, so rows are stored once and doubled when used.
pub(super) struct RotaryTable {
    frequencies: Vec<f32>,
    scaling: f32,
    cos: Weight,
    sin: Weight,
}

impl Positions {
    pub fn new(start: Option<Var>, padding: Option<Var>) -> Positions {
        Positions {
            start,
            padding,
            stop: None,
            of_tokens: None,
            last: None,
            of_keys: HashMap::new(),
            masks: HashMap::new(),
            scores: HashMap::new(),
            seen: None,
            input_shape: None,
            shapes: HashMap::new(),
            rotary: HashMap::new(),
        }
    }
}

impl Writer<'_> {
    /// The input `position`: how many tokens are in the cache.
    pub(super) fn start(&self) -> Option<Var> {
        self.positions.start
    }

    /// The position of each token: int32 [S].
    pub(super) fn token_positions(&mut self) -> Result<Var> {
        if let Some(var) = self.positions.of_tokens {
            return Ok(var);
        }
        let var = match (&self.spec.kind, self.start()) {
            (FunctionKind::Cached { tokens: 1, .. }, Some(start)) => start,
            (FunctionKind::Cached { tokens, .. }, Some(start)) => {
                self.op("add", "positions", &[("x", start.into()), ("y", count(*tokens).into())])?
            }
            (FunctionKind::Full(Length::Fixed(length)), _) => self.constant("positions", count(*length)),
            (FunctionKind::Encode(shapes), _) if shapes.fixed().is_some() => {
                self.constant("positions", count(shapes.longest()))
            }
            _ => {
                let shape = self.input_shape()?;
                let inputs = [("x", shape.into()), ("begin", [1].into()), ("end", [2].into())];
                let squeeze = ("squeeze_mask", [true].into());
                let length = self.op("slice_by_index", "length", &[&inputs[..], &[squeeze]].concat())?;
                let inputs = [("start", 0.into()), ("end", length.into()), ("step", 1.into())];
                self.op("range_1d", "positions", &inputs)?
            }
        };
        self.positions.of_tokens = Some(var);
        Ok(var)
    }

    /// Texts and tokens: int32 [2].
    fn input_shape(&mut self) -> Result<Var> {
        if let Some(shape) = self.positions.input_shape {
            return Ok(shape);
        }
        let shape = self.op("shape", "input_shape", &[("x", self.ids.into())])?;
        self.positions.input_shape = Some(shape);
        Ok(shape)
    }

    /// A shape of as many texts as there are, and these sizes.
    pub(super) fn shape_of_texts(&mut self, rest: &[i64]) -> Result<Var> {
        if let Some(shape) = self.positions.shapes.get(rest) {
            return Ok(*shape);
        }
        let input = self.input_shape()?;
        let texts = [("x", input.into()), ("begin", [0].into()), ("end", [1].into())];
        let texts = self.op("slice_by_index", "texts", &texts)?;
        let sizes = rest.iter().map(|&size| size as i32).collect::<Vec<_>>();
        let sizes = self.constant("sizes", sizes);
        let shape = self.concat("shape_of_texts", vec![texts, sizes], 0)?;
        self.positions.shapes.insert(rest.to_vec(), shape);
        Ok(shape)
    }

    /// The position of each key: int32 [K]. Slots of a cache that hold no key so far are put after every token.
    fn key_positions(&mut self, slots: Slots) -> Result<Var> {
        if let Some(var) = self.positions.of_keys.get(&slots) {
            return Ok(*var);
        }
        let context = self.spec.context(self.settings);
        let var = match (self.start(), self.settings.kv_cache, slots) {
            (None, ..) | (_, KvCache::None, _) => self.token_positions()?,
            (Some(start), _, Slots::Rotating(count)) => self.rotating_positions(start, count)?,
            (Some(_), KvCache::State | KvCache::Rotating, Slots::All) => self.constant("key_positions", count(context)),
            (Some(start), KvCache::Io, Slots::All) => {
                let slots = self.constant("slots", count(context));
                let filled = self.op("less", "slots_filled", &[("x", slots.into()), ("y", start.into())])?;
                let slots = self.filled(filled, slots)?;
                let tokens = self.token_positions()?;
                self.concat("key_positions", vec![slots, tokens], 0)?
            }
        };
        self.positions.of_keys.insert(slots, var);
        Ok(var)
    }

    /// The position that each slot of a rotating cache holds after the call's tokens were written: the last one that falls
    /// on it.
    fn rotating_positions(&mut self, start: Var, slots: usize) -> Result<Var> {
        let last = self.last_position(start)?;
        let size = int_vector(&[slots])?[0];
        // How long ago a slot was written; one round is added because remainders of negative numbers differ by system.
        let rounds = (0..slots as i32).map(|slot| size - slot).collect::<Vec<_>>();
        let ahead = self.op("add", "slots_ahead", &[("x", last.into()), ("y", rounds.into())])?;
        let ages = self.op("mod", "slot_ages", &[("x", ahead.into()), ("y", size.into())])?;
        let positions = self.op("sub", "slot_positions", &[("x", last.into()), ("y", ages.into())])?;
        let filled = self.op("greater_equal", "slots_used", &[("x", positions.into()), ("y", 0.into())])?;
        self.filled(filled, positions)
    }

    /// Positions of slots, the context for those that are not filled.
    fn filled(&mut self, filled: Var, positions: Var) -> Result<Var> {
        let context = int_vector(&[self.settings.context])?[0];
        let context = self.constant("context", context);
        let inputs = [("cond", filled.into()), ("a", positions.into()), ("b", context.into())];
        self.op("select", "filled_slots", &inputs)
    }

    /// The position of the call's last token: int32 [1].
    fn last_position(&mut self, start: Var) -> Result<Var> {
        if let Some(last) = self.positions.last {
            return Ok(last);
        }
        let last = match self.spec.kind {
            FunctionKind::Cached { tokens, .. } if tokens > 1 => {
                let more = int_vector(&[tokens - 1])?[0];
                self.op("add", "last_position", &[("x", start.into()), ("y", more.into())])?
            }
            _ => start,
        };
        self.positions.last = Some(last);
        Ok(last)
    }

    /// Which keys a token may attend to: bool [1, 1, repeats · S, K], the tokens repeated for the heads of a group.
    /// Padding is not in it.
    pub(super) fn mask(&mut self, kind: MaskKind) -> Result<Var> {
        if let Some(mask) = self.positions.masks.get(&kind) {
            return Ok(*mask);
        }
        let MaskKind { causal, window, .. } = kind;
        let (tokens, keys) = self.rows_and_columns(kind)?;
        let mut parts = Vec::new();
        if causal {
            parts.push(self.op("greater_equal", "causal_mask", &[("x", tokens.into()), ("y", keys.into())])?);
        }
        if window > 0 {
            let size = int_vector(&[window])?[0];
            let first = self.op("sub", "window_start", &[("x", tokens.into()), ("y", size.into())])?;
            parts.push(self.op("greater", "within_window", &[("x", keys.into()), ("y", first.into())])?);
            if !causal {
                let end = self.op("add", "window_end", &[("x", tokens.into()), ("y", size.into())])?;
                parts.push(self.op("less", "before_window_end", &[("x", keys.into()), ("y", end.into())])?);
            }
        }
        let Some((&first, rest)) = parts.split_first() else {
            bail!("found a mask that hides nothing, expected one that is causal or has a window");
        };
        let mut mask = first;
        for part in rest {
            mask = self.op("logical_and", "window_mask", &[("x", mask.into()), ("y", (*part).into())])?;
        }
        self.positions.masks.insert(kind, mask);
        Ok(mask)
    }

    /// How many tokens a call has, where that is known and no text is padded.
    pub(super) fn known_tokens(&self) -> Option<usize> {
        match self.spec.kind {
            FunctionKind::Cached { tokens, .. } | FunctionKind::Full(Length::Fixed(tokens)) => Some(tokens),
            _ => None,
        }
    }

    /// Whether texts may be padded.
    pub(super) fn has_padding(&self) -> bool {
        self.positions.padding.is_some()
    }

    /// The positions of tokens [1, 1, repeats · S, 1] and of keys [1, 1, 1, K].
    fn rows_and_columns(&mut self, kind: MaskKind) -> Result<(Var, Var)> {
        let (mut tokens, keys) = (self.token_positions()?, self.key_positions(kind.slots)?);
        if kind.repeats > 1 {
            tokens = self.concat("query_positions", vec![tokens; kind.repeats], 0)?;
        }
        let tokens = self.op("expand_dims", "query_rows", &[("x", tokens.into()), ("axes", [0, 1, 3].into())])?;
        let keys = self.op("expand_dims", "key_columns", &[("x", keys.into()), ("axes", [0, 1, 2].into())])?;
        Ok((tokens, keys))
    }

    /// What is added to scores so that padding is not seen, nor what `kind` hides if it is given: 0 or -30000, [B, 1, 1 or
    /// repeats · S, K]. That is in float16 and far below any score, and a token that sees nothing still gets a finite
    /// result. None where nothing is hidden.
    pub(super) fn mask_scores(&mut self, kind: Option<MaskKind>) -> Result<Option<Var>> {
        if let Some(scores) = self.positions.scores.get(&kind) {
            return Ok(Some(*scores));
        }
        let scores = match (self.has_padding(), kind) {
            (false, None) => return Ok(None),
            (false, Some(kind)) => self.scores_by_distance(kind)?,
            (true, None) => self.scores_of_padding()?,
            (true, Some(kind)) => {
                let mask = self.scores_by_distance(kind)?;
                let Some(padding) = self.mask_scores(None)? else { bail!("found no mask of padding, expected one") };
                self.op("minimum", "mask_scores", &[("x", mask.into()), ("y", padding.into())])?
            }
        };
        self.positions.scores.insert(kind, scores);
        Ok(Some(scores))
    }

    /// 0 for keys that are seen and -30000 for others, [1, 1, repeats · S, K]: computed, or from a table that is gathered
    /// from.
    fn scores_by_distance(&mut self, kind: MaskKind) -> Result<Var> {
        if kind.repeats > 1 {
            let once = MaskKind { repeats: 1, ..kind };
            let scores = match self.positions.scores.get(&Some(once)) {
                Some(scores) => *scores,
                None => self.scores_by_distance(once)?,
            };
            self.positions.scores.insert(Some(once), scores);
            return self.concat("mask_by_group", vec![scores; kind.repeats], 2);
        }
        if let Some(tokens) = self.known_tokens().filter(|tokens| kind.causal && (2..=MOST_EXACT).contains(tokens)) {
            return self.scores_of_chunk(kind, tokens);
        }
        let (tokens, keys) = self.rows_and_columns(kind)?;
        let table = self.distance_table(Sight { causal: kind.causal, window: kind.window })?;
        let context = int_vector(&[self.settings.context])?[0];
        let tokens = self.op("add", "query_places", &[("x", tokens.into()), ("y", context.into())])?;
        let places = self.op("sub", "mask_places", &[("x", tokens.into()), ("y", keys.into())])?;
        self.gather("mask", table, places)
    }

    /// The same for a known number of tokens, of which each sees what is before it: key k, so far ahead of the first token,
    /// is seen by token s if ahead ≤ s and, in a window W, ahead + W > s. Whole numbers from -1 to S are exact in float16,
    /// however long the context is: only what is told for each key is computed in integers.
    fn scores_of_chunk(&mut self, kind: MaskKind, tokens: usize) -> Result<Var> {
        let keys = self.key_positions(kind.slots)?;
        let ahead = match self.start() {
            Some(start) => self.op("sub", "keys_ahead", &[("x", keys.into()), ("y", start.into())])?,
            None => keys,
        };
        let causal = self.rows_less_columns("causal", ahead, tokens, 0)?;
        if kind.window == 0 {
            return self.op("mul", "mask", &[("x", causal.into()), ("y", self.number(-UNSEEN)?)]);
        }
        let size = int_vector(&[kind.window])?[0];
        let ahead = self.op("add", "keys_ahead_of_window", &[("x", ahead.into()), ("y", size.into())])?;
        let within = self.rows_less_columns("window", ahead, tokens, 1)?;
        let both = self.op("minimum", "mask_seen", &[("x", causal.into()), ("y", within.into())])?;
        self.op("mul", "mask", &[("x", both.into()), ("y", self.number(-UNSEEN)?)])
    }

    /// 0 or -1, [1, 1, S, K]: 0 where a key's number is at most that of the row, or, if `more` is 1, above it.
    fn rows_less_columns(&mut self, name: &str, keys: Var, tokens: usize, more: i32) -> Result<Var> {
        let part = |part: &str| format!("mask_{name}_{part}");
        let (least, most) = (Input::from(-1), Input::from(int_vector(&[tokens])?[0]));
        let keys = self.op("maximum", &part("above"), &[("x", keys.into()), ("y", least)])?;
        let keys = self.op("minimum", &part("near"), &[("x", keys.into()), ("y", most)])?;
        let dtype = self.dtype();
        let keys = self.cast(&part("keys"), keys, dtype)?;
        let keys = self.op("expand_dims", &part("columns"), &[("x", keys.into()), ("axes", [0, 1, 2].into())])?;
        let rows: Vec<f32> = (0..tokens).map(|row| row as f32 + more as f32).collect();
        let rows = Tensor::from_f32(dtype, [1, 1, tokens, 1], rows)?;
        let rows = self.constant(&part("rows"), rows);
        let (x, y) = if more == 0 { (rows, keys) } else { (keys, rows) };
        let distance = self.op("sub", &part("distance"), &[("x", x.into()), ("y", y.into())])?;
        let (low, high) = (self.number(-1.0)?, self.number(0.0)?);
        self.op("clip", name, &[("x", distance.into()), ("alpha", low), ("beta", high)])
    }

    /// What is added to scores, by distance from the token back to the key: from minus the context on.
    fn distance_table(&mut self, sight: Sight) -> Result<Var> {
        if !self.shared.distances.contains_key(&sight) {
            let context = self.settings.context as i64;
            let seen = |distance: i64| {
                (!sight.causal || distance >= 0) && (sight.window == 0 || distance.unsigned_abs() < sight.window as u64)
            };
            let scores: Vec<f32> = (-context..context).map(|far| if seen(far) { 0.0 } else { UNSEEN }).collect();
            let table = Tensor::from_f32(self.dtype(), [scores.len()], scores)?;
            let name = format!("mask_by_distance_{}", self.shared.distances.len());
            self.shared.distances.insert(sight, Weight::from_tensor(&name, table));
        }
        let table = self.shared.distances[&sight].clone();
        Ok(self.weight(&table))
    }

    /// 0 for tokens and -30000 for padding: [B, 1, 1, S].
    fn scores_of_padding(&mut self) -> Result<Var> {
        let Some(seen) = self.tokens_seen()? else { bail!("found no mask of tokens, expected one") };
        let dtype = self.dtype();
        let (one, far) = (self.number(1.0)?, self.number(-UNSEEN)?);
        let seen = self.cast("mask_number", seen, dtype)?;
        let hidden = self.op("sub", "mask_hidden", &[("x", seen.into()), ("y", one)])?;
        self.op("mul", "padding_scores", &[("x", hidden.into()), ("y", far)])
    }

    /// Which tokens are not padding: bool [B, 1, 1, S].
    fn tokens_seen(&mut self) -> Result<Option<Var>> {
        let Some(padding) = self.positions.padding else { return Ok(None) };
        if self.positions.seen.is_none() {
            let seen = self.op("not_equal", "token_seen", &[("x", padding.into()), ("y", 0.into())])?;
            let seen = self.op("expand_dims", "token_columns", &[("x", seen.into()), ("axes", [1, 2].into())])?;
            self.positions.seen = Some(seen);
        }
        Ok(self.positions.seen)
    }

    /// Cosines and sines of the tokens' positions: [1, S, 1, 2 · pairs] each, or [1, 1, S, 2 · pairs] with channels first.
    pub(super) fn rotary(&mut self, frequencies: &[f32], scaling: f32) -> Result<(Var, Var)> {
        let known =
            self.shared.tables.iter().position(|table| table.frequencies == frequencies && table.scaling == scaling);
        let index = known.unwrap_or(self.shared.tables.len());
        if known.is_none() {
            let table = RotaryTable::new(frequencies, scaling, self.settings.context, self.dtype(), index);
            self.shared.tables.push(table);
        }
        if let Some(vars) = self.positions.rotary.get(&index) {
            return Ok(*vars);
        }
        let (cos, sin) = (self.shared.tables[index].cos.clone(), self.shared.tables[index].sin.clone());
        let vars = (self.table_rows(&cos)?, self.table_rows(&sin)?);
        self.positions.rotary.insert(index, vars);
        Ok(vars)
    }

    fn table_rows(&mut self, table: &Weight) -> Result<Var> {
        let positions = self.token_positions()?;
        let name = format!("{}.rows", table.name());
        let table = self.weight(table);
        let half = self.gather(&format!("{name}.half"), table, positions)?;
        let rows = self.concat(&name, vec![half, half], -1)?;
        let axes = match self.layout {
            Layout::TokensFirst => [0, 2],
            Layout::ChannelsFirst => [0, 1],
        };
        self.op("expand_dims", &format!("{name}.heads"), &[("x", rows.into()), ("axes", axes.into())])
    }

    /// The rows of `table` at `indices`.
    pub(super) fn gather(&mut self, name: &str, table: Var, indices: Var) -> Result<Var> {
        let inputs = [
            ("x", table.into()),
            ("indices", indices.into()),
            ("axis", 0.into()),
            ("batch_dims", 0.into()),
            ("validate_indices", false.into()),
        ];
        self.op("gather", name, &inputs)
    }

    /// Values one after the other along an axis.
    pub(super) fn concat(&mut self, name: &str, values: Vec<Var>, axis: i32) -> Result<Var> {
        self.op("concat", name, &[("values", values.into()), ("axis", axis.into()), ("interleave", false.into())])
    }
}

/// What is added to the score of a key that is not seen: in float16, and far below any score.
pub(super) const UNSEEN: f32 = -30_000.0;
/// The whole numbers up to this, and their differences, are exact in float16.
const MOST_EXACT: usize = 2048;

/// 0, 1, ... before `n`. Callers have checked that sizes fit 31 bits.
fn count(n: usize) -> Vec<i32> {
    (0..n as i32).collect()
}

impl RotaryTable {
    fn new(frequencies: &[f32], scaling: f32, context: usize, dtype: DType, index: usize) -> RotaryTable {
        let table = |name: &str, function: fn(f64) -> f64| {
            let name = if index == 0 { name.to_owned() } else { format!("{name}_{index}") };
            let source = Angles { frequencies: frequencies.to_vec(), scaling, context, dtype, function };
            Weight::new(&name, dtype, &[context, frequencies.len()], Arc::new(source))
        };
        let (cos, sin) = (table("rope_cos", f64::cos), table("rope_sin", f64::sin));
        RotaryTable { frequencies: frequencies.to_vec(), scaling, cos, sin }
    }
}

/// Computes rows of a rotary table when they are asked for, as a long context makes a large table.
struct Angles {
    frequencies: Vec<f32>,
    scaling: f32,
    context: usize,
    dtype: DType,
    function: fn(f64) -> f64,
}

impl WeightSource for Angles {
    fn load(&self) -> Result<Tensor> {
        self.rows(0..self.context)
    }

    fn rows(&self, rows: Range<usize>) -> Result<Tensor> {
        let shape = [rows.len(), self.frequencies.len()];
        let angles = rows.flat_map(|p| self.frequencies.iter().map(move |f| p as f64 * f64::from(*f)));
        let values = angles.map(|angle| ((self.function)(angle) * f64::from(self.scaling)) as f32);
        Tensor::from_f32(self.dtype, shape, values.collect())
    }

    fn streams(&self) -> bool {
        true
    }
}
