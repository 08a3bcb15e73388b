//! Weights for float16: what overflows there is made smaller by a power of two, and what reads it is told.
//!
//! ```text
//! embedding · a ─▶ + ─▶ norm(x, epsilon · a²) ─▶ q, k, v ─▶ attention ─▶ o_proj · a ─▶ + ...     the residual, by a
//! q_proj · 1/s, k_proj · s            queries and keys, so that scores are the same; or the scale of scores is s larger
//! up_proj · 1/s, down_proj · s        what is between the projections of a feed-forward block
//! ```
//!
//! Only constants change, so that every architecture, layout and cache gets it: the semantic program computes the same
//! function with the same operations. Powers of two lose nothing in floating point as long as no number becomes
//! subnormal. What can be scaled is found in the program ([`groups`]): all that is added to the residual is scaled with it,
//! and norms after it give what they gave. What an activation reads, scores and logits keep their size; where one of those
//! overflows, it is named with the reason instead.

mod apply;
mod groups;

use crate::semantic::Semantic;
use groups::{Groups, Kind, Node, Place, Rows, Site};
use quince_mil::{Result, Tensor, Value, Weight, bail};
use std::collections::{BTreeMap, HashMap};

/// The largest number of float16.
pub const LARGEST: f32 = 65504.0;

/// A value that was larger than this is made smaller: a text that was not tried may have one twice as large.
const ALARM: f32 = LARGEST / 2.0;

/// To this or less.
const AIM: f32 = 16384.0;

/// The largest magnitude of a value of a lowered program, by the name of the operation that gives it.
#[derive(Clone, PartialEq, Debug)]
pub struct Peak {
    /// The operation's name; it begins with the name of the semantic operation that it was made of.
    pub name: String,
    /// The operation: `linear`.
    pub kind: String,
    /// The largest magnitude before rounding.
    pub largest: f32,
}

/// What is to be scaled.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Rescale<'a> {
    /// What overflows, by these peaks.
    Peaks(&'a [Peak]),
    /// The residual, by 2 to the power of minus this.
    Residual(i32),
}

/// Values that are scaled alike.
#[derive(Clone, PartialEq, Debug)]
pub struct Scale {
    /// The first operation that gives one.
    pub first: String,
    /// How many operations do.
    pub operations: usize,
    /// They become smaller by 2 to the power of this.
    pub exponent: i32,
}

impl Scale {
    /// What values are multiplied by.
    pub fn factor(&self) -> f32 {
        (-self.exponent as f32).exp2()
    }
}

/// What overflows and was left as it is.
#[derive(Clone, PartialEq, Debug)]
pub struct Unscaled {
    /// The operation, or the weight.
    pub name: String,
    /// The largest magnitude.
    pub largest: f32,
    /// Why it cannot be made smaller.
    pub reason: String,
}

/// A program whose values are scaled.
pub struct Rescaled {
    /// The same function.
    pub semantic: Semantic,
    /// What was scaled, in the order of the program; empty if nothing was, and the program is the one that went in.
    pub scales: Vec<Scale>,
    /// What overflows all the same.
    pub unscaled: Vec<Unscaled>,
    /// Scaled weights of which elements become subnormal in float16 that were not: their names, and the share.
    pub subnormal: Vec<(String, f64)>,
    /// Weights that are stored twice because they are needed at two scales.
    pub copied: Vec<String>,
}

/// Scales what is asked for. Weights stay lazy, but those that could overflow themselves are looked through, and those that
/// are scaled.
///
/// # Errors
/// When the residual is asked for and cannot be scaled, or a weight cannot be read.
pub fn rescaled(semantic: &Semantic, how: Rescale) -> Result<Rescaled> {
    let groups = Groups::of(&semantic.program);
    let mut plan = Plan { groups: &groups, exponents: BTreeMap::new(), peaks: HashMap::new(), unscaled: Vec::new() };
    let mut large = HashMap::new();
    match how {
        Rescale::Peaks(peaks) => {
            plan.aim(peaks);
            large = plan.fit_weights(semantic)?;
        }
        Rescale::Residual(exponent) => plan.residual(exponent)?,
    }
    plan.balance_scores();
    plan.keep_tied_heads(semantic);
    plan.check_weights(semantic, &large);
    let scales = plan.scales();
    let exponents = |node: Node| plan.exponent(node);
    let applied = apply::apply(semantic, &groups, &exponents)?;
    let unscaled = plan.unscaled;
    Ok(Rescaled { semantic: applied.semantic, scales, unscaled, subnormal: applied.subnormal, copied: applied.copied })
}

/// How much smaller each value becomes.
struct Plan<'a> {
    groups: &'a Groups,
    /// By root.
    exponents: BTreeMap<Node, i32>,
    /// By root: the largest magnitude.
    peaks: HashMap<Node, f32>,
    unscaled: Vec<Unscaled>,
}

impl Plan<'_> {
    fn exponent(&self, node: Node) -> i32 {
        self.exponents.get(&self.groups.root(node)).copied().unwrap_or(0)
    }

    fn aim(&mut self, peaks: &[Peak]) {
        for peak in peaks {
            let place = self.groups.place(&peak.name, &peak.kind);
            if let Place::Scaled { node, power: 1 } = place {
                let largest = self.peaks.entry(self.groups.root(node)).or_default();
                *largest = largest.max(peak.largest);
            }
            if peak.largest <= ALARM {
                continue;
            }
            match place {
                Place::Scaled { node, power } => {
                    let wanted = (halvings(peak.largest) as u32).div_ceil(power) as i32;
                    self.raise(node, wanted, &peak.name, peak.largest);
                }
                Place::Kept(reason) => self.left(&peak.name, peak.largest, reason),
                Place::Elsewhere => {}
            }
        }
    }

    fn left(&mut self, name: &str, largest: f32, reason: &str) {
        let (name, reason) = (name.to_owned(), reason.to_owned());
        self.unscaled.push(Unscaled { name, largest, reason });
    }

    /// Makes a value smaller by at least 2 to the power of `wanted`.
    fn raise(&mut self, node: Node, wanted: i32, name: &str, largest: f32) {
        let groups = self.groups;
        match groups.fixed(node) {
            Some(reason) => self.left(name, largest, reason),
            None => {
                let exponent = self.exponents.entry(groups.root(node)).or_default();
                *exponent = (*exponent).max(wanted);
            }
        }
    }

    fn residual(&mut self, exponent: i32) -> Result<()> {
        let Some(node) = self.groups.embedding else { bail!("found no embedding, expected one to be scaled") };
        if let Some(reason) = self.groups.fixed(node) {
            bail!("the residual cannot be scaled: {reason}");
        }
        self.exponents.insert(self.groups.root(node), exponent);
        Ok(())
    }

    /// Makes values smaller whose weights are beyond float16 themselves; those weights, by identity, with their largest
    /// magnitudes.
    fn fit_weights(&mut self, semantic: &Semantic) -> Result<HashMap<usize, f32>> {
        let mut known: HashMap<usize, f32> = HashMap::new();
        let groups = self.groups;
        for (site, rows, input) in weight_sites(groups) {
            let Some(weight) = apply::weight_at(&semantic.program, site) else { continue };
            let largest = match known.get(&weight.id()) {
                Some(largest) => *largest,
                None => largest_of(&semantic.stored(&weight))?,
            };
            known.insert(weight.id(), largest);
            if largest <= LARGEST {
                continue;
            }
            let wanted = halvings(largest) + input.map_or(0, |input| self.exponent(input));
            let nodes = match rows {
                Rows::Kept => Vec::new(),
                Rows::All(node) => vec![*node],
                Rows::Parts { parts, .. } => parts.iter().map(|(_, node)| *node).collect(),
            };
            // Of a weight with two uses, the other may make room for this.
            nodes.into_iter().filter(|node| groups.fixed(*node).is_none()).for_each(|node| {
                self.raise(node, wanted, weight.name(), largest);
            });
        }
        known.retain(|_, largest| *largest > LARGEST);
        Ok(known)
    }

    /// Names weights that are beyond float16 after all.
    fn check_weights(&mut self, semantic: &Semantic, large: &HashMap<usize, f32>) {
        let groups = self.groups;
        for (site, rows, input) in weight_sites(groups).filter(|_| !large.is_empty()) {
            let Some(weight) = apply::weight_at(&semantic.program, site) else { continue };
            let Some(largest) = large.get(&weight.id()) else { continue };
            let by = apply::exponents(rows, input, weight.shape().first().copied().unwrap_or(1), &|n| self.exponent(n));
            let least = by.into_iter().min().unwrap_or(0);
            let reason = match rows {
                Rows::All(node) => groups.fixed(*node).unwrap_or("what it is multiplied with is small"),
                _ => "an activation is not the same at another scale",
            };
            if largest * (-least as f32).exp2() > LARGEST {
                self.left(weight.name(), *largest, reason);
            }
        }
    }

    /// Makes keys larger as queries become smaller, or the other way round, where there is room: scores need no scale then.
    fn balance_scores(&mut self) {
        for site in &self.groups.sites {
            let Kind::Scale { query, key } = site.kind else { continue };
            let (q, k) = (self.exponent(query), self.exponent(key));
            let (other, by) = match (q, k) {
                (1.., 0) => (key, q),
                (0, 1..) => (query, k),
                _ => continue,
            };
            let root = self.groups.root(other);
            let largest = self.peaks.get(&root).map(|largest| largest * (by as f32).exp2());
            if self.groups.fixed(other).is_none() && largest.is_some_and(|largest| largest <= AIM) {
                self.exponents.insert(root, -by);
            }
        }
    }

    /// Where the head is the table of embeddings, the norm before it takes the scale back, so that the two stay one weight.
    fn keep_tied_heads(&mut self, semantic: &Semantic) {
        let groups = self.groups;
        let sites = |op: &'static str| {
            groups.sites.iter().filter(move |site| {
                site.param == "weight" && apply::operation_at(&semantic.program, site.place).op_name() == op
            })
        };
        for head in sites("logits") {
            let Kind::Weight { input: Some(hidden), .. } = head.kind else { continue };
            let weight = apply::weight_at(&semantic.program, head).map(|weight| weight.id());
            let tied = sites("embedding")
                .find(|table| weight.is_some() && apply::weight_at(&semantic.program, table).map(|w| w.id()) == weight);
            let Some(Kind::Weight { rows: Rows::All(table), .. }) = tied.map(|table| &table.kind) else { continue };
            let (by, root) = (self.exponent(*table), groups.root(hidden));
            let fits = self.peaks.get(&root).is_none_or(|largest| largest * (by as f32).exp2() <= ALARM);
            if by != 0 && groups.fixed(hidden).is_none() && !self.exponents.contains_key(&root) && fits {
                self.exponents.insert(root, -by);
            }
        }
    }

    fn scales(&self) -> Vec<Scale> {
        let scaled = self.exponents.iter().filter(|(_, exponent)| **exponent != 0);
        let scale = |(node, exponent): (&Node, &i32)| {
            let members = self.groups.members(*node);
            let first = members.first().map_or(String::new(), |first| (*first).to_owned());
            Scale { first, operations: members.len(), exponent: *exponent }
        };
        scaled.map(scale).collect()
    }
}

/// Arguments that are weights, with what their rows make and what they are multiplied with.
fn weight_sites(groups: &Groups) -> impl Iterator<Item = (&Site, &Rows, Option<Node>)> {
    groups.sites.iter().filter_map(|site| match &site.kind {
        Kind::Weight { rows, input } => Some((site, rows, *input)),
        Kind::Epsilon(_) | Kind::Scale { .. } => None,
    })
}

/// How often a magnitude is halved until it is no more than what is aimed at.
fn halvings(largest: f32) -> i32 {
    match largest.is_finite() {
        true => (largest / AIM).log2().ceil().max(0.0) as i32,
        false => 0,
    }
}

/// The largest magnitude of a weight; 0 for types whose numbers all are in float16.
fn largest_of(stored: &Weight) -> Result<f32> {
    let mut largest = 0f32;
    if stored.dtype() == quince_mil::DType::F16 {
        return Ok(largest);
    }
    stored.pieces(|piece: &Tensor| {
        largest = piece.to_f32()?.iter().filter(|x| x.is_finite()).fold(largest, |most, x| most.max(x.abs()));
        Ok(())
    })?;
    Ok(largest)
}

/// A number in place.
fn number(value: &Value) -> Option<f32> {
    value.tensor().ok()?.to_f32().ok()?.first().copied()
}
