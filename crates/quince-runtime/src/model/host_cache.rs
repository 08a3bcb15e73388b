//! The cache of a program that keeps it as inputs and outputs, between calls that are made by name.

use quince_engine::Tensors;
use quince_mil::{Function, Program};
use quince_tensor::{Result, Tensor};

use super::functions::{Functions, INPUT_IDS, IoFeature, POSITION};
use super::io_cache::IoCache;

/// What carries tokens from call to call of a program that continues texts: how many there are, and the cache, if the
/// program does not keep it as a state.
pub(crate) struct HostCache {
    cache: IoCache,
    features: Vec<IoFeature>,
    context: usize,
    tokens: usize,
}

impl HostCache {
    /// An empty cache; none for programs that do not continue texts with one.
    ///
    /// # Errors
    /// When memory has no room for it.
    pub fn of(program: &Program) -> Result<Option<HostCache>> {
        let Some(cached) = Functions::find(program, None).ok().and_then(|functions| functions.cached) else {
            return Ok(None);
        };
        let (context, features) = (cached.context(), cached.largest().decode.io.clone());
        Ok(Some(HostCache { cache: IoCache::new(&features)?, features, context, tokens: 0 }))
    }

    /// The inputs of a call that the cache stands for, as long as the function has it, and the position, if there is room
    /// for the call's tokens.
    ///
    /// # Errors
    /// When memory has no room for them.
    pub fn inputs(&mut self, function: &Function) -> Result<Tensors> {
        let rows = |input: &quince_mil::FunctionInput| {
            let known = self.features.iter().any(|feature| feature.input == function.var(input.var).name);
            known.then(|| function.ty(input.var).as_tensor()?.dims()?.get(2).copied())?
        };
        let own = function.inputs.iter().find_map(rows);
        if let Some(rows) = own {
            self.cache.fit(rows)?;
        }
        let takes = |name: &str| function.inputs.iter().any(|input| function.var(input.var).name == name);
        let mut inputs = Tensors::new();
        self.cache.enter(&mut inputs)?;
        if takes(POSITION) {
            let ids = function.inputs.iter().find(|input| function.var(input.var).name == INPUT_IDS);
            let shape = ids.and_then(|input| function.ty(input.var).as_tensor()?.dims()).unwrap_or_default();
            let fits = self.tokens + shape.last().copied().unwrap_or(1) <= own.unwrap_or(self.context);
            let position = if fits { self.tokens as i32 } else { 0 };
            inputs.insert(POSITION.to_owned(), Tensor::vector(vec![position]));
        }
        inputs.retain(|name, _| takes(name));
        Ok(inputs)
    }

    /// Takes over what a call gave.
    ///
    /// # Errors
    /// When it does not fit the cache.
    pub fn extend(&mut self, inputs: &Tensors, outputs: &Tensors) -> Result<()> {
        let (Some(ids), Some(position)) = (inputs.get(INPUT_IDS), inputs.get(POSITION)) else { return Ok(()) };
        let position = position.to_i64()?.first().and_then(|&n| usize::try_from(n).ok()).unwrap_or(0);
        self.tokens = position.saturating_add(ids.shape().last().copied().unwrap_or(0));
        if self.features.iter().all(|feature| outputs.contains_key(&feature.output)) {
            self.cache.extend(&mut outputs.clone(), position)?;
        }
        Ok(())
    }
}
