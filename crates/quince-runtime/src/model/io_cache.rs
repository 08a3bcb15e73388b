//! A KV cache that the host keeps: handed to each call as inputs, extended by the call's outputs.

use quince_engine::{StateData, StateTensor, Tensors};
use quince_mil::DType;
use quince_tensor::{Element, Error, Result, Tensor, bail, f16};

use super::functions::IoFeature;

/// The tensors of the cache, each with the names that it goes by.
pub(super) struct IoCache {
    parts: Vec<Part>,
}

struct Part {
    tensor: StateTensor,
    output: String,
}

impl IoCache {
    /// A cache of zeros; without features, one that costs nothing.
    pub fn new(features: &[IoFeature]) -> Result<IoCache> {
        Ok(IoCache { parts: features.iter().map(Part::new).collect::<Result<_>>()? })
    }

    /// Makes room for so many tokens; rows of more are forgotten.
    pub fn fit(&mut self, context: usize) -> Result<()> {
        self.parts.iter_mut().try_for_each(|part| part.fit(context))
    }

    /// Adds the inputs of a call.
    pub fn enter(&self, inputs: &mut Tensors) -> Result<()> {
        for part in &self.parts {
            inputs.insert(part.tensor.name.clone(), part.tensor.to_tensor()?);
        }
        Ok(())
    }

    /// Takes the new rows out of the outputs of a call, and writes them at `position`.
    pub fn extend(&mut self, outputs: &mut Tensors, position: usize) -> Result<()> {
        for part in &mut self.parts {
            let rows = outputs.remove(&part.output);
            let rows = rows.ok_or_else(|| Error::new(format!("the call gave no `{}`", part.output)))?;
            part.write(&rows, position).map_err(|error| error.at(format!("`{}`", part.output)))?;
        }
        Ok(())
    }
}

impl Part {
    fn new(feature: &IoFeature) -> Result<Part> {
        let data = match feature.dtype {
            DType::F16 => StateData::F16(zeros(&feature.shape)?),
            _ => StateData::F32(zeros(&feature.shape)?),
        };
        let tensor = StateTensor { name: feature.input.clone(), shape: feature.shape.to_vec(), data };
        Ok(Part { tensor, output: feature.output.clone() })
    }

    fn fit(&mut self, context: usize) -> Result<()> {
        let [layers, heads, rows, dim] = self.tensor.shape[..] else {
            bail!("found a cache of shape {:?}, expected four axes", self.tensor.shape);
        };
        if rows == context {
            return Ok(());
        }
        let shape = [layers, heads, context, dim];
        self.tensor.data = match &self.tensor.data {
            StateData::F16(cache) => StateData::F16(resized(cache, rows * dim, &shape)?),
            StateData::F32(cache) => StateData::F32(resized(cache, rows * dim, &shape)?),
        };
        self.tensor.shape = shape.to_vec();
        Ok(())
    }

    fn write(&mut self, rows: &Tensor, position: usize) -> Result<()> {
        let (Some(&context), Some(&count), Some(&dim)) =
            (self.tensor.shape.get(2), rows.shape().get(2), self.tensor.shape.get(3))
        else {
            bail!("found {rows:?}, expected [layers, kv heads, tokens, head dim]");
        };
        if position.checked_add(count).is_none_or(|end| end > context) {
            bail!("found {count} rows for position {position}, expected none beyond the context of {context}");
        }
        let place = Place { context, count, dim, position };
        match &mut self.tensor.data {
            StateData::F16(cache) => place.write::<f16>(cache, rows),
            StateData::F32(cache) => place.write::<f32>(cache, rows),
        }
    }
}

/// Where new rows go, the same for each head of each layer.
struct Place {
    context: usize,
    count: usize,
    dim: usize,
    position: usize,
}

impl Place {
    fn write<T: Element>(&self, cache: &mut [T], rows: &Tensor) -> Result<()> {
        let heads = cache.len() / (self.context * self.dim).max(1);
        let values = rows.as_slice::<T>().filter(|values| values.len() == heads * self.count * self.dim);
        let Some(values) = values else {
            bail!("found {rows:?}, expected {} for {heads} heads of {} rows of {}", T::DTYPE, self.count, self.dim);
        };
        if values.is_empty() {
            return Ok(());
        }
        let heads = cache.chunks_exact_mut(self.context * self.dim).zip(values.chunks_exact(self.count * self.dim));
        for (cache, new) in heads {
            cache[self.position * self.dim..][..new.len()].copy_from_slice(new);
        }
        Ok(())
    }
}

/// Heads of `head` elements as heads of another number of rows.
fn resized<T: Element>(cache: &[T], head: usize, shape: &[usize; 4]) -> Result<Vec<T>> {
    let mut values = zeros(shape)?;
    let own = shape[2] * shape[3];
    let kept = head.min(own);
    for (new, old) in values.chunks_exact_mut(own.max(1)).zip(cache.chunks_exact(head.max(1))) {
        new[..kept].copy_from_slice(&old[..kept]);
    }
    Ok(values)
}

fn zeros<T: Element>(shape: &[usize]) -> Result<Vec<T>> {
    let mut values = Vec::new();
    let len = shape.iter().try_fold(1usize, |n, &dim| n.checked_mul(dim));
    match len {
        Some(len) if values.try_reserve_exact(len).is_ok() => {
            values.resize(len, T::zeroed());
            Ok(values)
        }
        _ => bail!(
            "cache: found the shape {shape:?} of {}, expected one that memory has room for", T::DTYPE;
            hint: "convert the model with a smaller --context"
        ),
    }
}
