//! The tensors of one or several files, and the weights that Hugging Face has for them.

use super::architectures::{Architecture, Name, Undo};
use super::facts::Facts;
use super::header::GgufTensor;
use super::types::ElementType;
use crate::blocks;
use crate::format::{Exact, Found};
use crate::suggest::shown;
use crate::views;
use quince_tensor::{Bytes, Error, Result, Tensor, Weight, bail};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A tensor with the file that holds it.
pub(super) struct FileTensor {
    pub info: GgufTensor,
    pub bytes: Bytes,
    pub file: PathBuf,
}

/// The tensors of all files by name.
pub(super) type Tensors = BTreeMap<String, FileTensor>;

impl FileTensor {
    /// The tensor as a weight of this name, as it is in the file.
    pub fn weight(&self, name: &str) -> Result<Weight> {
        self.shaped(name, &self.info.shape)
    }

    /// The same under another shape with as many elements.
    fn shaped(&self, name: &str, shape: &[usize]) -> Result<Weight> {
        self.info.element.weight(name, shape, self.bytes.clone())
    }

    /// What it is in the file, for who lists tensors.
    fn found(&self, weight: Weight, bytes: u64) -> Found {
        let form = Cow::Borrowed(self.info.element.name());
        Found { weight, file: self.file.clone(), form, bytes, exact: None }
    }
}

/// The weights of a model by Hugging Face name.
///
/// # Errors
/// Names the tensor that has no name at Hugging Face, or cannot be what the metadata says.
pub(super) fn weights(facts: &Facts, architecture: &Architecture) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    let mut gates: BTreeMap<String, Halves> = BTreeMap::new();
    for (name, tensor) in facts.tensors {
        let at = |error: Error| error.at(format!("tensor `{}`", shown(name))).at(tensor.file.display());
        let Some((target, rule)) = renamed(architecture, name) else {
            let error = Error::new(format!("found a tensor that `{}` does not have", architecture.name));
            return Err(at(error.hint("the file may be of a newer model of the same name")));
        };
        let bytes = tensor.bytes.len() as u64;
        match rule.undo {
            Undo::InConfig => {}
            Undo::Experts => found.extend(experts(tensor, &target).map_err(at)?),
            Undo::Gate => gates.entry(bare(&target)).or_default().gate = Some(tensor),
            Undo::Up => gates.entry(bare(&target)).or_default().up = Some(tensor),
            undo => {
                let target = if matches!(undo, Undo::Bare | Undo::ExpertMatrices) { bare(&target) } else { target };
                let weight = undone(facts, tensor, &target, undo).map_err(at)?;
                let exact = match undo {
                    Undo::Nothing => exact(tensor, &target, None),
                    Undo::QueryHeads | Undo::KeyHeads => exact(tensor, &target, Some(&unrotated(facts, undo)?)),
                    _ => Ok(None),
                };
                found.push(Found { exact: exact.map_err(at)?, ..tensor.found(weight, bytes) });
            }
        }
    }
    for (name, halves) in gates {
        found.push(halves.together(&name)?);
    }
    Ok(found)
}

/// The name at Hugging Face, with `{e}` where experts are numbered.
fn renamed(architecture: &Architecture, name: &str) -> Option<(String, &'static Name)> {
    let suffix = [".weight", ".bias"].into_iter().find(|suffix| name.ends_with(suffix)).unwrap_or_default();
    let stem = name.strip_suffix(suffix)?;
    // The number of the layer, if there is one.
    let layer = stem.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
    let layer = layer.filter(|(layer, _)| !layer.is_empty() && layer.bytes().all(|byte| byte.is_ascii_digit()));
    let pattern = match layer {
        Some((_, rest)) => format!("blk.{{i}}.{rest}"),
        None => stem.to_string(),
    };
    let names = architecture.names.iter().copied().flatten();
    let rule = { names }.find(|rule| rule.gguf == pattern)?;
    let stem = rule.hugging_face.replace("{i}", layer.map_or("", |(layer, _)| layer));
    Some((stem + suffix, rule))
}

/// A name without `.weight`; `.bias` becomes `_bias`, as gpt-oss has it.
fn bare(name: &str) -> String {
    match name.strip_suffix(".bias") {
        Some(stem) => format!("{stem}_bias"),
        None => name.strip_suffix(".weight").unwrap_or(name).to_string(),
    }
}

/// A tensor as it was before llama.cpp's conversion.
fn undone(facts: &Facts, tensor: &FileTensor, name: &str, undo: Undo) -> Result<Weight> {
    let weight = tensor.weight(name)?;
    match undo {
        Undo::QueryHeads | Undo::KeyHeads => views::permuted(&weight, unrotated(facts, undo)?),
        Undo::PlusOne => Ok(views::plus(&weight, -1.0)),
        Undo::Transposed if weight.shape().len() == 2 => views::transposed(&weight),
        Undo::ExpertMatrices if weight.shape().len() == 3 => views::transposed(&weight),
        Undo::ByHead => by_head(facts, &weight),
        Undo::FirstPositions if super::architectures::is_roberta(facts) => {
            let [_, width] = *weight.shape() else { bail!("found {weight:?}, expected rows of positions") };
            let unused = Tensor::zeros(weight.dtype(), [super::architectures::ROBERTA_FIRST_POSITION, width])?;
            Ok(views::stacked(vec![Weight::from_tensor(name, unused), weight])?.renamed(name))
        }
        _ => Ok(weight),
    }
}

/// The order of the rows of a head: element i of either half lies at 2 i or 2 i + 1 in the file.
fn unrotated(facts: &Facts, undo: Undo) -> Result<Vec<usize>> {
    let heads = facts.required("attention.head_count")?;
    let heads = match undo {
        Undo::KeyHeads => facts.unsigned("attention.head_count_kv")?.unwrap_or(heads),
        _ => heads,
    };
    let name = if undo == Undo::KeyHeads { "blk.0.attn_k.weight" } else { "blk.0.attn_q.weight" };
    let rows = facts.shape(name).and_then(<[usize]>::first).copied().unwrap_or(0);
    let dim = usize::try_from(heads).ok().filter(|&heads| heads > 0 && rows.is_multiple_of(heads)).map(|h| rows / h);
    match dim {
        Some(dim) if dim > 0 && dim.is_multiple_of(2) => {
            Ok((0..dim).map(|j| 2 * (j % (dim / 2)) + j / (dim / 2)).collect())
        }
        _ => bail!("found {rows} rows for {heads} heads, expected an even number for each"),
    }
}

/// Rows of queries, keys and values, each by head, put back by head.
fn by_head(facts: &Facts, weight: &Weight) -> Result<Weight> {
    let heads = usize::try_from(facts.required("attention.head_count")?).unwrap_or(usize::MAX);
    let rows = weight.shape().first().copied().unwrap_or(0);
    if heads == 0 || rows / 3 < heads || !(rows / 3).is_multiple_of(heads) || !rows.is_multiple_of(3) {
        bail!("found {rows} rows for {heads} heads, expected three times as many for each");
    }
    let dim = rows / 3 / heads;
    let source = |row: usize| {
        let (head, part, i) = (row / (3 * dim), row / dim % 3, row % dim);
        (part * heads + head) * dim + i
    };
    views::permuted(weight, (0..rows).map(source).collect())
}

/// One weight for each expert.
fn experts(tensor: &FileTensor, target: &str) -> Result<Vec<Found>> {
    let (count, inner) = match tensor.info.shape.as_slice() {
        [count, inner @ ..] if *count > 0 && !inner.is_empty() => (*count, inner),
        shape => bail!("found the shape {shape:?}, expected experts, rows and columns"),
    };
    let (bytes, rows) = (tensor.bytes.len() as u64 / count as u64, inner[0]);
    // All rows of all experts below each other, of which each has its own.
    let all = tensor.shaped(target, &[&[count * rows], &inner[1..]].concat())?;
    let expert = |e: usize| {
        let name = target.replace("{e}", &e.to_string());
        let weight = all.slice(e * rows..(e + 1) * rows)?.renamed(&name);
        Ok(tensor.found(weight, bytes))
    };
    (0..count).map(expert).collect()
}

/// The two tensors whose rows take turns in one weight.
#[derive(Default)]
struct Halves<'a> {
    gate: Option<&'a FileTensor>,
    up: Option<&'a FileTensor>,
}

impl Halves<'_> {
    fn together(self, name: &str) -> Result<Found> {
        let (Some(gate), Some(up)) = (self.gate, self.up) else {
            bail!("tensor `{name}`: found gate or up of the experts, expected both");
        };
        let at = |error: Error| error.at(format!("tensor `{}`", shown(&gate.info.name))).at(gate.file.display());
        let together = || -> Result<Weight> {
            let (gate, up) = (gate.weight(name)?, up.weight(name)?);
            match gate.shape().len() {
                // Biases.
                2 => views::elements_in_turn(&gate, &up),
                _ => views::transposed(&views::in_turn(vec![gate, up])?),
            }
        };
        let weight = together().map_err(at)?;
        Ok(gate.found(weight, (gate.bytes.len() + up.bytes.len()) as u64))
    }
}

/// The codes and scales of a tensor whose type Core ML has: blocks of 32 integers with a scale. `order` is that of rows.
fn exact(tensor: &FileTensor, name: &str, order: Option<&[usize]>) -> Result<Option<Exact>> {
    let ElementType::Blocks(block) = tensor.info.element else { return Ok(None) };
    match tensor.info.shape.len() {
        2 => blocks::exact(block, name, &tensor.info.shape, tensor.bytes.clone(), order),
        _ => Ok(None),
    }
}
