//! Modules of an adapter onto weights of a checkpoint. What is left over on the adapter's side is an error that shows both
//! sides.

use super::delta::{Delta, Form, Square};
use super::keys::Place;
use super::{Adapter, WEIGHTS};
use crate::suggest::{near, shown};
use quince_tensor::{Error, Result, Weight, bail};
use std::collections::BTreeMap;

/// What an adapter does to a checkpoint.
pub(super) struct Fitted {
    /// Weights whose place another takes, with it.
    pub whole: Vec<(String, Weight)>,
    /// Weights that a product is added to.
    pub products: Vec<FittedProduct>,
}

/// A product, for the weight `name`.
pub(super) struct FittedProduct {
    pub name: String,
    pub delta: Delta,
    pub scale: f64,
    pub magnitude: Option<Weight>,
    /// What is added to the module's bias, which is called so.
    pub bias: Option<(String, Weight)>,
}

/// The weights that an adapter is fitted to, by name with their shapes.
pub(super) type Shapes = BTreeMap<String, Vec<usize>>;

impl Adapter {
    /// Finds the weight of each module. Shapes of weights that the adapter replaces are its own from there on.
    ///
    /// # Errors
    /// When something of the adapter has no place in the checkpoint, or has another shape or rank.
    pub(super) fn fit(&self, shapes: &Shapes) -> Result<Fitted> {
        let naming = Naming::find(self, shapes);
        let mut missing = Vec::new();
        let mut whole = Vec::new();
        for (name, weight) in &self.tensors.whole {
            match naming.of(name, shapes) {
                Some(name) => whole.push((name, weight.clone())),
                None => missing.push(name.clone()),
            }
        }
        let mut targets = Vec::new();
        for place in self.tensors.products.keys() {
            match self.target(place, &naming, shapes)? {
                Some(name) => targets.push((place, name)),
                None => missing.push(place.module.clone()),
            }
        }
        if !missing.is_empty() {
            return Err(self.unmatched(&missing, shapes));
        }
        for (name, weight) in &whole {
            let expected = shapes.get(name).map_or(&[][..], Vec::as_slice);
            if weight.shape() != expected {
                return Err(self.other_shape(name, weight.shape(), expected));
            }
        }
        let square = self.square(&targets, shapes)?;
        let products = targets.iter().map(|(place, name)| {
            let shape = shapes.get(name).map_or(&[][..], Vec::as_slice);
            let fitted = self.product(place, name, shape, square, &naming, shapes);
            fitted.map_err(|error| self.at(error.at(format!("module `{}`", shown(&place.module)))))
        });
        Ok(Fitted { whole, products: products.collect::<Result<_>>()? })
    }

    fn product(
        &self,
        place: &Place,
        name: &str,
        shape: &[usize],
        square: Square,
        naming: &Naming,
        shapes: &Shapes,
    ) -> Result<FittedProduct> {
        let Some(product) = self.tensors.products.get(place) else { bail!("found no tensors, expected some") };
        let delta = Delta::new(product, shape, self.config.rank(&place.module)?, square)?;
        match (&product.magnitude, self.config.dora) {
            (Some(_), false) => bail!("found lora_magnitude_vector, but adapter_config.json does not say `use_dora`"),
            (None, true) => {
                bail!("found no lora_magnitude_vector, expected one because adapter_config.json says `use_dora`")
            }
            _ => {}
        }
        if product.magnitude.is_some() && matches!(delta.form(), Form::Experts | Form::ExpertsTransposed) {
            bail!("found lora_magnitude_vector for experts, expected none, as in PEFT");
        }
        let bias = match &product.bias {
            None => None,
            Some(bias) => match naming.of(&format!("{}.bias", place.module), shapes) {
                Some(name) if shapes.get(&name).is_some_and(|shape| shape == bias.shape()) => {
                    Some((name, bias.clone()))
                }
                _ => bail!(
                    "found a bias {:?} of lora_B (lora_bias), expected none, because the module has no bias of that shape",
                    bias.shape()
                ),
            },
        };
        let scale = self.config.scale(&place.module)?;
        Ok(FittedProduct { name: name.to_owned(), delta, scale, magnitude: product.magnitude.clone(), bias })
    }

    /// The weight that a product belongs to: that of the module, or one of its parameters (`target_parameters`).
    fn target(&self, place: &Place, naming: &Naming, shapes: &Shapes) -> Result<Option<String>> {
        if place.depth == 0
            && let Some(name) = naming.of(&format!("{}.weight", place.module), shapes)
        {
            return Ok(Some(name));
        }
        let Some(product) = self.tensors.products.get(place) else { return Ok(None) };
        let mut fitting = Vec::new();
        for target in &self.config.target_parameters {
            let parameter = target.rsplit('.').next().unwrap_or(target);
            let full = format!("{}.{parameter}", place.module);
            let asked = full == *target || full.ends_with(&format!(".{target}"));
            let Some(name) = naming.of(&full, shapes).filter(|name| asked && !fitting.contains(name)) else { continue };
            let shape = shapes.get(&name).map_or(&[][..], Vec::as_slice);
            if Delta::new(product, shape, self.config.rank(&place.module)?, Square::Linear).is_ok() {
                fitting.push(name);
            }
        }
        match &fitting[..] {
            [] => Ok(None),
            [one] => Ok(Some(one.clone())),
            // The wrapper of the parameter that the module defines last lies outermost; experts define theirs in the order
            // in which they are used, so that `down` is last.
            several => {
                let mut order: Vec<&String> = several.iter().collect();
                order.sort_by_key(|name| (name.contains("down"), name.as_str()));
                Ok(order.iter().rev().nth(place.depth).map(|name| (*name).clone()))
            }
        }
    }

    /// What a square matrix is: [inputs, outputs] if the configuration says so or other matrices of the adapter are.
    /// PEFT changes the flag in what it saves when the last module that it meets is of another kind.
    fn square(&self, targets: &[(&Place, String)], shapes: &Shapes) -> Result<Square> {
        if self.config.fan_in_fan_out {
            return Ok(Square::Transposed);
        }
        for (place, name) in targets {
            let (Some(product), Some(shape)) = (self.tensors.products.get(place), shapes.get(name)) else { continue };
            let rank = self.config.rank(&place.module)?;
            let delta = Delta::new(product, shape, rank, Square::Linear);
            if delta.is_ok_and(|delta| delta.form() == Form::Transposed) {
                return Ok(Square::Transposed);
            }
        }
        Ok(Square::Linear)
    }

    /// The error for modules that the checkpoint does not have: it lists both sides.
    fn unmatched(&self, missing: &[String], shapes: &Shapes) -> Error {
        let all = self.tensors.products.len() + self.tensors.whole.len();
        let first = missing.first().map_or("", String::as_str);
        let mut likely: Vec<&str> = near(&format!("{first}.weight"), shapes.keys().map(String::as_str));
        if likely.is_empty() {
            let matrices = shapes.iter().filter(|(_, shape)| shape.len() > 1);
            likely = matrices.map(|(name, _)| name.as_str()).take(3).collect();
        }
        let message = format!(
            "found {} of {all} parts of the adapter for {} that the checkpoint does not have: {}; expected modules of the \
             checkpoint, which has {}",
            missing.len(),
            if missing.len() == 1 { "a module" } else { "modules" },
            listed(missing),
            listed(&likely),
        );
        let error = Error::new(message);
        self.at(match &self.config.base_model {
            Some(base) => error.hint(format_args!("adapter_config.json says that it was made for `{}`", shown(base))),
            None => error.hint("the adapter was made for another model"),
        })
    }

    fn other_shape(&self, name: &str, found: &[usize], expected: &[usize]) -> Error {
        let message = format!("found the shape {found:?}, expected {expected:?} as in the checkpoint");
        let error = Error::new(message).at(format!("tensor `{}`", shown(name)));
        self.at(match found.len() == 2 && found.get(1) == expected.get(1) {
            true => error.hint(
                "the vocabulary was resized for the adapter: merge it in PEFT with `model.merge_and_unload()`, and convert \
                 the result with its tokenizer",
            ),
            false => error.hint("was the adapter made for this model?"),
        })
    }

    fn at(&self, error: Error) -> Error {
        error.at(self.path.join(WEIGHTS).display())
    }
}

/// Some names, as errors show them.
fn listed<T: AsRef<str>>(names: &[T]) -> String {
    const SHOWN: usize = 4;
    let mut text: Vec<String> = names.iter().take(SHOWN).map(|name| format!("`{}`", shown(name.as_ref()))).collect();
    if names.len() > SHOWN {
        text.push(format!("{} more", names.len() - SHOWN));
    }
    text.join(", ")
}

/// How names of the adapter become names of the checkpoint: a model that was saved without its head lacks the first part
/// of its names, and so do adapters of such a model.
enum Naming {
    Same,
    Without(String),
    With(String),
}

impl Naming {
    /// Told from the first name that fits in any way.
    fn find(adapter: &Adapter, shapes: &Shapes) -> Naming {
        let whole = adapter.tensors.whole.keys().cloned();
        let names = adapter.tensors.products.keys().map(|place| format!("{}.weight", place.module)).chain(whole);
        for name in names {
            if shapes.contains_key(&name) {
                return Naming::Same;
            }
            for known in shapes.keys() {
                if let Some(prefix) = name.strip_suffix(known.as_str()).filter(|prefix| prefix.ends_with('.')) {
                    return Naming::Without(prefix.to_owned());
                }
                if let Some(prefix) = known.strip_suffix(name.as_str()).filter(|prefix| prefix.ends_with('.')) {
                    return Naming::With(prefix.to_owned());
                }
            }
        }
        Naming::Same
    }

    /// The name in the checkpoint, if it has one.
    fn of(&self, name: &str, shapes: &Shapes) -> Option<String> {
        let other = match self {
            Naming::Same => None,
            Naming::Without(prefix) => name.strip_prefix(prefix.as_str()).map(str::to_owned),
            Naming::With(prefix) => Some(format!("{prefix}{name}")),
        };
        let names = [Some(name.to_owned()), other];
        names.into_iter().flatten().find(|name| shapes.contains_key(name))
    }
}
