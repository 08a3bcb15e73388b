//! Weights with an adapter in them, computed when they are asked for: rows of a merged weight come from rows of the base
//! and the two thin matrices.
//!
//! An adapter of strength t moves a weight W by t times the way that it would go alone:
//!
//! ```text
//! LoRA      W + t · s · B · A
//! DoRA      (1 - t + t · g) · W + t · g · s · B · A,  g = magnitude / ‖W + s · B · A‖ for each output
//! whole     W + t · (V - W)
//! ```
//!
//! s is alpha / rank (Hu et al. 2021, arXiv:2106.09685); DoRA is Liu et al. 2024, arXiv:2402.09353.

use super::delta::{Delta, Form, Outputs};
use quince_tensor::{DType, Result, Tensor, Weight, WeightSource, bail};
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// A low-rank change of one weight.
#[derive(Clone)]
pub(super) struct Change {
    pub base: Weight,
    pub delta: Delta,
    /// s.
    pub scale: f64,
    /// t.
    pub strength: f64,
    /// The magnitudes of the outputs in DoRA.
    pub gains: Option<Arc<Gains>>,
}

/// What a change adds to the product of x with the weight, for who keeps it apart: `y · gain + up · (down · x)`.
#[derive(Clone, Debug)]
pub struct Step {
    /// [r, inputs]; a table [tokens, r] where the weight is one.
    pub down: Weight,
    /// [outputs, r].
    pub up: Weight,
    /// [outputs], what the product is multiplied by before; nothing of plain LoRA.
    pub gain: Option<Weight>,
}

impl Change {
    /// The weight with the change in it, in float32.
    pub fn merged(self) -> Weight {
        let (name, shape) = (self.base.name().to_owned(), self.base.shape().to_vec());
        Weight::new(&name, DType::F32, &shape, Arc::new(Merged(self)))
    }

    /// The change by itself; `None` for experts, whose products are not one by one.
    pub fn step(&self) -> Option<Step> {
        if matches!(self.delta.form(), Form::Experts | Form::ExpertsTransposed) {
            return None;
        }
        let name = self.base.name().strip_suffix(".weight").unwrap_or(self.base.name());
        let up = Up { up: self.delta.up.clone(), change: self.clone() };
        let gain = self.gains.as_ref().map(|gains| {
            let outputs = gains.magnitude.shape();
            Weight::new(&format!("{name}.lora_gain"), DType::F32, outputs, Arc::new(Kept(self.clone())))
        });
        Some(Step {
            down: self.delta.down.renamed(&format!("{name}.lora_A.weight")),
            up: Weight::new(&format!("{name}.lora_B.weight"), DType::F32, self.delta.up.shape(), Arc::new(up)),
            gain,
        })
    }

    /// What the weight, and what the product is multiplied by, for each output; one for all without DoRA.
    fn factors(&self) -> Result<Factors> {
        let t = self.strength;
        let Some(gains) = &self.gains else { return Ok(Factors::Same((t * self.scale) as f32)) };
        let both = |g: &f64| ((1.0 - t + t * g) as f32, (t * g * self.scale) as f32);
        Ok(Factors::Each(gains.get()?.iter().map(both).collect()))
    }
}

enum Factors {
    /// The weight counts whole, the product this much.
    Same(f32),
    /// For each output: how much the weight counts, and how much the product.
    Each(Vec<(f32, f32)>),
}

/// The magnitudes of DoRA over the lengths of the vectors that they belong to.
pub(super) struct Gains {
    magnitude: Weight,
    base: Weight,
    delta: Delta,
    scale: f64,
    /// What was computed, once it was asked for: it takes going through the whole weight.
    known: Mutex<Option<Arc<Vec<f64>>>>,
}

impl Gains {
    /// # Errors
    /// When there is not one magnitude for each output.
    pub fn new(magnitude: &Weight, base: &Weight, delta: &Delta, scale: f64) -> Result<Gains> {
        let axis = if delta.outputs() == Outputs::Rows { 0 } else { 1 };
        let expected = base.shape().get(axis).copied().unwrap_or(0);
        if magnitude.shape() != [expected] {
            bail!("found lora_magnitude_vector {:?}, expected [{expected}]", magnitude.shape());
        }
        let (magnitude, base, delta) = (magnitude.clone(), base.clone(), delta.clone());
        Ok(Gains { magnitude, base, delta, scale, known: Mutex::new(None) })
    }

    fn get(&self) -> Result<Arc<Vec<f64>>> {
        let mut known = self.known.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(gains) = known.as_ref() {
            return Ok(gains.clone());
        }
        let magnitude = self.magnitude.load()?.to_f64()?;
        let squares = self.squares(magnitude.len())?;
        let mut gains = Vec::with_capacity(magnitude.len());
        for (output, (magnitude, square)) in magnitude.iter().zip(&squares).enumerate() {
            if *square == 0.0 {
                bail!("found no direction for output {output}, because its weights are 0, expected one to scale");
            }
            gains.push(magnitude / square.sqrt());
        }
        let gains = Arc::new(gains);
        *known = Some(gains.clone());
        Ok(gains)
    }

    /// The squared lengths of the outputs' vectors, some rows at a time.
    fn squares(&self, outputs: usize) -> Result<Vec<f64>> {
        let (mut squares, mut first) = (vec![0f64; outputs], 0);
        self.base.pieces(|piece| {
            let rows = piece.shape().first().copied().unwrap_or(0);
            let columns = piece.len() / rows.max(1);
            let (base, delta) = (piece.to_f32()?, self.delta.rows(first..first + rows)?);
            for (i, (base, delta)) in base.iter().zip(&delta).enumerate() {
                let output = if self.delta.outputs() == Outputs::Rows { first + i / columns } else { i % columns };
                let value = f64::from(*base) + self.scale * f64::from(*delta);
                squares[output] += value * value;
            }
            first += rows;
            Ok(())
        })?;
        Ok(squares)
    }
}

struct Merged(Change);

impl WeightSource for Merged {
    fn load(&self) -> Result<Tensor> {
        self.rows(0..self.0.base.shape().first().copied().unwrap_or(0))
    }

    fn rows(&self, rows: Range<usize>) -> Result<Tensor> {
        let base = self.0.base.rows(rows.clone())?;
        let (shape, mut values) = (base.shape().to_vec(), base.to_f32()?);
        let delta = self.0.delta.rows(rows.clone())?;
        let columns = (values.len() / rows.len().max(1)).max(1);
        match (self.0.factors()?, self.0.delta.outputs()) {
            (Factors::Same(factor), _) => {
                values.iter_mut().zip(&delta).for_each(|(value, delta)| *value += factor * delta);
            }
            (Factors::Each(factors), outputs) => {
                for (i, (value, delta)) in values.iter_mut().zip(&delta).enumerate() {
                    let output = if outputs == Outputs::Rows { rows.start + i / columns } else { i % columns };
                    let (own, added) = factors[output];
                    *value = own * *value + added * delta;
                }
            }
        }
        Tensor::from_vec(shape, values)
    }

    fn streams(&self) -> bool {
        self.0.base.streams()
    }
}

/// The matrix up with everything that it is multiplied by.
struct Up {
    up: Weight,
    change: Change,
}

impl WeightSource for Up {
    fn load(&self) -> Result<Tensor> {
        let up = self.up.load()?;
        let (shape, mut values) = (up.shape().to_vec(), up.to_f32()?);
        let rank = self.change.delta.rank.max(1);
        let factors = self.change.factors()?;
        for (output, row) in values.chunks_exact_mut(rank).enumerate() {
            let factor = match &factors {
                Factors::Same(factor) => *factor,
                Factors::Each(factors) => factors[output].1,
            };
            row.iter_mut().for_each(|value| *value *= factor);
        }
        Tensor::from_vec(shape, values)
    }
}

/// How much of the weight's own product is kept, for each output.
struct Kept(Change);

impl WeightSource for Kept {
    fn load(&self) -> Result<Tensor> {
        Ok(Tensor::vector(match self.0.factors()? {
            Factors::Same(_) => Vec::new(),
            Factors::Each(factors) => factors.iter().map(|(own, _)| *own).collect(),
        }))
    }
}

/// A weight that goes `strength` of the way from `base` to `target`; the target itself where that is all of it.
pub(super) fn towards(base: &Weight, target: &Weight, strength: f64) -> Weight {
    if strength == 1.0 {
        return target.renamed(base.name());
    }
    mixed(base, target, 1.0 - strength, strength)
}

/// `base + factor · added`, in float32.
pub(super) fn plus(base: &Weight, added: &Weight, factor: f64) -> Weight {
    mixed(base, added, 1.0, factor)
}

fn mixed(a: &Weight, b: &Weight, share_a: f64, share_b: f64) -> Weight {
    let source = Mixed { parts: [(a.clone(), share_a), (b.clone(), share_b)] };
    Weight::new(a.name(), DType::F32, a.shape(), Arc::new(source))
}

/// A sum of two weights of one shape, each with its share.
struct Mixed {
    parts: [(Weight, f64); 2],
}

impl Mixed {
    fn mix(&self, load: impl Fn(&Weight) -> Result<Tensor>) -> Result<Tensor> {
        let [(a, share_a), (b, share_b)] = &self.parts;
        let (a, b) = (load(a)?, load(b)?);
        let sum = |(a, b): (&f32, &f32)| (share_a * f64::from(*a) + share_b * f64::from(*b)) as f32;
        let values = a.to_f32()?.iter().zip(&b.to_f32()?).map(sum).collect();
        Tensor::from_vec(a.shape().to_vec(), values)
    }
}

impl WeightSource for Mixed {
    fn load(&self) -> Result<Tensor> {
        self.mix(Weight::load)
    }

    fn rows(&self, rows: Range<usize>) -> Result<Tensor> {
        self.mix(|weight| weight.rows(rows.clone()))
    }

    fn streams(&self) -> bool {
        self.parts.iter().all(|(weight, _)| weight.streams())
    }
}
