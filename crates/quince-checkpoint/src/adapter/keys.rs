//! The names of an adapter's tensors: which module of the model they change, and which part of the change they are.

use crate::suggest::shown;
use quince_tensor::{Error, Result, Weight, bail};
use std::collections::BTreeMap;

/// The tensors of an adapter, sorted by what they change.
#[derive(Debug, Default)]
pub(super) struct Tensors {
    /// Low-rank products by module. Of several for one module, which belong to weights of experts, the innermost has the
    /// most `base_layer` in its name.
    pub products: BTreeMap<Place, Product>,
    /// Tensors that take the place of those of the model, by name: biases, `modules_to_save`, resized embeddings.
    pub whole: BTreeMap<String, Weight>,
}

/// Where a low-rank product belongs.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Place {
    /// The module, as the model calls it.
    pub module: String,
    /// How many other products of the module lie around this one.
    pub depth: usize,
}

/// The tensors of one low-rank product; what is absent was not in the file.
#[derive(Debug, Default)]
pub(super) struct Product {
    pub a: Option<Weight>,
    pub b: Option<Weight>,
    pub bias: Option<Weight>,
    pub embedding_a: Option<Weight>,
    pub embedding_b: Option<Weight>,
    pub magnitude: Option<Weight>,
}

impl Tensors {
    /// Sorts tensors; each goes somewhere or is an error.
    pub fn sort(weights: Vec<Weight>) -> Result<Tensors> {
        let mut sorted = Tensors::default();
        for weight in weights {
            let name = weight.name().to_owned();
            let at = |error: Error| error.at(format!("tensor `{}`", shown(&name)));
            if !weight.dtype().is_float() {
                let found = format!("found elements of type {}, expected fp32, fp16 or bf16", weight.dtype());
                return Err(at(Error::new(found)));
            }
            let key = Key::of(&name).map_err(at)?;
            let slot = match key {
                Key::Whole(name) => match sorted.whole.insert(name, weight) {
                    None => continue,
                    Some(_) => return Err(at(Error::new("found a second tensor for one weight, expected one"))),
                },
                Key::Part(place, part) => {
                    let product = sorted.products.entry(place).or_default();
                    match part {
                        Part::A => &mut product.a,
                        Part::B => &mut product.b,
                        Part::Bias => &mut product.bias,
                        Part::EmbeddingA => &mut product.embedding_a,
                        Part::EmbeddingB => &mut product.embedding_b,
                        Part::Magnitude => &mut product.magnitude,
                    }
                }
            };
            if slot.replace(weight).is_some() {
                let hint = "this file holds several adapters: save them one by one";
                return Err(at(Error::new("found a second tensor for one part of a module, expected one").hint(hint)));
            }
        }
        Ok(sorted)
    }
}

#[derive(PartialEq, Debug)]
enum Key {
    /// A tensor of the model by its name.
    Whole(String),
    Part(Place, Part),
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Part {
    A,
    B,
    Bias,
    EmbeddingA,
    EmbeddingB,
    Magnitude,
}

/// What stands before the model's own names.
const PREFIXES: &[&str] = &["base_model.model.", "base_model."];

impl Key {
    /// Reads a name such as `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`. Files that were not saved by
    /// PEFT itself may have the adapter's own name (`default`) after the part.
    fn of(name: &str) -> Result<Key> {
        let name = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name);
        let words: Vec<&str> = name.split('.').collect();
        let marked = words.iter().position(|word| word.starts_with("lora_"));
        let Some(marked) = marked else { return Key::whole(&words) };
        let (module, rest) = (&words[..marked], &words[marked + 1..]);
        let part = match (words[marked], rest) {
            ("lora_A", ["weight"] | [_, "weight"]) => Part::A,
            ("lora_B", ["weight"] | [_, "weight"]) => Part::B,
            ("lora_B", ["bias"] | [_, "bias"]) => Part::Bias,
            ("lora_embedding_A", [] | [_]) => Part::EmbeddingA,
            ("lora_embedding_B", [] | [_]) => Part::EmbeddingB,
            ("lora_magnitude_vector", [] | [_] | [_, "weight"]) => Part::Magnitude,
            _ => bail!(
                "found an unknown part of an adapter, expected lora_A, lora_B, lora_embedding_A, lora_embedding_B or \
                 lora_magnitude_vector";
                hint: "merge it in PEFT with `model.merge_and_unload()` and convert the result"
            ),
        };
        let depth = module.iter().filter(|word| **word == "base_layer").count();
        let module: Vec<&str> = module.iter().copied().filter(|word| *word != "base_layer").collect();
        if module.is_empty() {
            bail!("found no module before `{}`, expected its name", words[marked]);
        }
        Ok(Key::Part(Place { module: module.join("."), depth }, part))
    }

    fn whole(words: &[&str]) -> Result<Key> {
        if words.contains(&"token_adapter") {
            bail!(
                "found single rows of an embedding (trainable_token_indices), which are not read, expected low-rank parts";
                hint: "merge it in PEFT with `model.merge_and_unload()` and convert the result"
            );
        }
        let mut kept: Vec<&str> = words.iter().copied().filter(|word| *word != "base_layer").collect();
        if let Some(at) = kept.iter().position(|word| *word == "modules_to_save") {
            // The word and the adapter's name after it.
            kept.drain(at..kept.len().min(at + 2));
        }
        if kept.len() < 2 {
            bail!("found a name without a module, expected one of a weight of the model");
        }
        Ok(Key::Whole(kept.join(".")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quince_tensor::Tensor;

    #[test]
    fn names_of_every_kind_are_read() {
        let part = |module: &str, depth, part| Key::Part(Place { module: module.to_owned(), depth }, part);
        let q = "model.layers.0.self_attn.q_proj";
        for (name, key) in [
            ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", part(q, 0, Part::A)),
            ("base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight", part(q, 0, Part::B)),
            ("base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias", part(q, 0, Part::Bias)),
            ("base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector", part(q, 0, Part::Magnitude)),
            ("model.layers.0.self_attn.q_proj.lora_magnitude_vector.weight", part(q, 0, Part::Magnitude)),
            ("base_model.model.model.embed_tokens.lora_embedding_A", part("model.embed_tokens", 0, Part::EmbeddingA)),
            ("base_model.model.wte.lora_embedding_B.default", part("wte", 0, Part::EmbeddingB)),
            ("base_model.model.mlp.experts.base_layer.lora_A.weight", part("mlp.experts", 1, Part::A)),
            ("base_model.model.lm_head.weight", Key::Whole("lm_head.weight".to_owned())),
            ("base_model.model.lm_head.modules_to_save.default.weight", Key::Whole("lm_head.weight".to_owned())),
            ("base_model.model.a.q_proj.base_layer.bias", Key::Whole("a.q_proj.bias".to_owned())),
        ] {
            assert_eq!(Key::of(name).unwrap(), key, "{name}");
        }
        for name in ["base_model.model.q.lora_E", "lora_A.weight", "weight", "e.token_adapter.trainable_tokens_delta"] {
            assert!(Key::of(name).is_err(), "{name}");
        }
    }

    #[test]
    fn two_adapters_in_one_file_and_integers_are_refused() {
        let weight = |name: &str| Weight::from_tensor(name, Tensor::vector(vec![1f32]));
        let error = Tensors::sort(vec![weight("q.lora_A.x.weight"), weight("q.lora_A.y.weight")]).unwrap_err();
        assert!(error.to_string().contains("`q.lora_A.y.weight`: found a second tensor for one part"), "{error}");
        let error =
            Tensors::sort(vec![Weight::from_tensor("q.lora_A.weight", Tensor::vector(vec![1i32]))]).unwrap_err();
        assert!(error.to_string().contains("found elements of type int32, expected fp32"), "{error}");
    }
}
