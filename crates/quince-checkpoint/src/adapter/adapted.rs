//! A checkpoint with a stack of adapters: merged into its weights, or kept apart from them.

use super::Weighted;
use super::fit::{Fitted, FittedProduct, Shapes};
use super::merge::{Change, Gains, Step, plus, towards};
use crate::checkpoint::Checkpoint;
use crate::config::Config;
use crate::suggest::shown;
use quince_tensor::{Error, Result, Weight, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What becomes of low-rank products.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// They are added to the weights.
    Merge,
    /// They stay beside the weights, which others can use too.
    Keep,
}

/// A checkpoint as one or more adapters, one after the other, make it. Nothing is computed before a weight is asked for,
/// and weights that no adapter touches are those of the checkpoint.
pub struct Adapted<'a> {
    base: &'a Checkpoint,
    config: Config,
    /// Weights that are not the checkpoint's, by their names there.
    own: BTreeMap<String, Weight>,
    /// Products that are kept apart, by the weight that they belong to.
    steps: BTreeMap<String, Vec<Step>>,
}

/// The weight of the head where it has one of its own.
const HEAD: &str = "lm_head.weight";
/// Ends of names of the table of token embeddings.
const EMBEDDINGS: &[&str] = &["embed_tokens.weight", "wte.weight", "word_embeddings.weight"];
const TIED: &str = "tie_word_embeddings";

impl<'a> Adapted<'a> {
    /// Applies adapters in order. Of adapters that are plain LoRA, the order does not matter.
    ///
    /// # Errors
    /// When an adapter does not fit the checkpoint, or something of it cannot be kept apart.
    pub fn new(base: &'a Checkpoint, stack: &[Weighted], mode: Mode) -> Result<Adapted<'a>> {
        let mut stacked = Stacked::new(base, mode);
        for weighted in stack {
            if !weighted.strength.is_finite() {
                bail!("{}: found the strength {}", weighted.adapter.path.display(), weighted.strength);
            }
            stacked.apply(weighted)?;
        }
        Ok(stacked.finish())
    }

    /// The configuration, which may differ in whether head and embedding are one weight.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The weight of this name and shape: the checkpoint's own where products are kept apart.
    ///
    /// # Errors
    /// As [`Checkpoint::weight_with_shape`].
    pub fn weight_with_shape(&self, name: &str, shape: &[usize]) -> Result<Weight> {
        match self.own.get(name) {
            Some(weight) if weight.shape() == shape => Ok(weight.clone()),
            Some(weight) => {
                let error = Error::new(format!("found the shape {:?}, expected {shape:?}", weight.shape()));
                Err(error.at(format!("tensor `{}`", shown(name))))
            }
            None => self.base.weight_with_shape(name, shape),
        }
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.own.contains_key(name) || self.base.has(name)
    }

    /// The weights that are not the checkpoint's, by their names there.
    pub fn own(&self) -> impl Iterator<Item = (&str, &Weight)> {
        self.own.iter().map(|(name, weight)| (name.as_str(), weight))
    }

    /// The products that are kept apart from the weight of this name, to be applied in order.
    pub fn steps(&self, name: &str) -> &[Step] {
        self.steps.get(name).map_or(&[], Vec::as_slice)
    }

    /// The weights that products are kept apart from.
    pub fn stepped(&self) -> impl Iterator<Item = &str> {
        self.steps.keys().map(String::as_str)
    }
}

/// An [`Adapted`] in the making.
struct Stacked<'a> {
    adapted: Adapted<'a>,
    mode: Mode,
    /// Every weight that was touched, with all changes in it: what the next adapter finds.
    merged: BTreeMap<String, Weight>,
    shapes: Shapes,
    /// The embedding, if the head is made of it.
    tied: Option<String>,
}

impl<'a> Stacked<'a> {
    fn new(base: &'a Checkpoint, mode: Mode) -> Stacked<'a> {
        let shape = |entry: crate::Entry| (entry.name().to_owned(), entry.shape().to_vec());
        let mut shapes: Shapes = base.tensors().map(shape).collect();
        let said = base.config().get(TIED).and_then(serde_json::Value::as_bool);
        let is_tied = said.unwrap_or(!base.has(HEAD));
        let tied = EMBEDDINGS.iter().find_map(|end| base.names().find(|name| is_tied && name.ends_with(end)));
        let tied = tied.map(str::to_owned);
        // A tied head is a weight that an adapter can change by itself.
        if let Some(shape) = tied.as_ref().and_then(|name| shapes.get(name)).cloned() {
            shapes.insert(HEAD.to_owned(), shape);
        }
        let config = base.config().clone();
        let adapted = Adapted { base, config, own: BTreeMap::new(), steps: BTreeMap::new() };
        Stacked { adapted, mode, merged: BTreeMap::new(), shapes, tied }
    }

    fn apply(&mut self, weighted: &Weighted) -> Result<()> {
        let Weighted { adapter, strength } = *weighted;
        let Fitted { mut whole, products } = adapter.fit(&self.shapes)?;
        let together = self.saved_alike(&mut whole)? || adapter.config.ensure_weight_tying;
        let touched = whole.iter().map(|(name, _)| name).chain(products.iter().map(|product| &product.name));
        self.untie(&touched.map(String::as_str).collect(), together)?;
        for (name, weight) in whole {
            let now = towards(&self.now(&name)?, &weight, strength);
            self.adapted.steps.remove(&name);
            self.replace(&name, now);
        }
        for product in products {
            let place = |error: Error| error.at(adapter.path.display());
            self.add(product, strength).map_err(place)?;
        }
        Ok(())
    }

    /// Whether an adapter brings head and embedding anew and the same, as PEFT saves a tied pair; then only the embedding
    /// is left of them.
    fn saved_alike(&self, whole: &mut Vec<(String, Weight)>) -> Result<bool> {
        let Some(embedding) = &self.tied else { return Ok(false) };
        let find = |name: &str| whole.iter().position(|(other, _)| other == name);
        let (Some(embedding), Some(head)) = (find(embedding), find(HEAD)) else { return Ok(false) };
        let alike = whole[embedding].1.load()?.same(&whole[head].1.load()?);
        if alike {
            whole.remove(head);
        }
        Ok(alike)
    }

    /// Makes a weight of the head where an adapter changes it or the embedding, but not both `together`.
    fn untie(&mut self, touched: &BTreeSet<&str>, together: bool) -> Result<()> {
        let Some(embedding) = self.tied.clone() else { return Ok(()) };
        let head = touched.contains(HEAD);
        if !head && (!touched.contains(embedding.as_str()) || together) {
            return Ok(());
        }
        let weight = self.now(&embedding)?.renamed(HEAD);
        self.adapted.own.insert(HEAD.to_owned(), weight.clone());
        self.merged.insert(HEAD.to_owned(), weight);
        self.adapted.config = self.adapted.config.with(TIED, false.into());
        self.tied = None;
        Ok(())
    }

    fn add(&mut self, product: FittedProduct, strength: f64) -> Result<()> {
        let FittedProduct { name, delta, scale, magnitude, bias } = product;
        let base = self.now(&name)?;
        let gains = match &magnitude {
            Some(magnitude) => Some(Arc::new(
                Gains::new(magnitude, &base, &delta, scale).map_err(|e| e.at(format!("weight `{}`", shown(&name))))?,
            )),
            None => None,
        };
        let change = Change { base, delta, scale, strength, gains };
        if let Some((name, added)) = bias {
            let now = plus(&self.now(&name)?, &added, scale * strength);
            self.replace(&name, now);
        }
        match self.mode {
            Mode::Merge => self.replace(&name, change.merged()),
            Mode::Keep => {
                let Some(step) = change.step() else {
                    bail!(
                        "weight `{}`: found an adapter of all experts at once, which cannot be kept apart from them",
                        shown(&name); hint: "merge it: --adapters merge"
                    );
                };
                self.adapted.steps.entry(name.clone()).or_default().push(step);
                self.merged.insert(name, change.merged());
            }
        }
        Ok(())
    }

    /// A weight as the adapters so far left it.
    fn now(&self, name: &str) -> Result<Weight> {
        self.merged.get(name).map_or_else(|| self.adapted.base.weight(name), |weight| Ok(weight.clone()))
    }

    fn replace(&mut self, name: &str, weight: Weight) {
        self.merged.insert(name.to_owned(), weight.clone());
        self.adapted.own.insert(name.to_owned(), weight);
    }

    fn finish(self) -> Adapted<'a> {
        self.adapted
    }
}
