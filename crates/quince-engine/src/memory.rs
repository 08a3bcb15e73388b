//! What steps work on while a function runs: buffers of `f32`, tensors of other types, states.

use crate::kernels::Kernels;
use crate::observe::Watcher;
use quince_mil::{DType, Error, Result, Tensor, bail};
use quince_tensor::{f16, zeroed};
use std::sync::Arc;

/// Everything that steps read and write.
pub(crate) struct Memory<'a> {
    /// Floating-point values, each in a buffer that later values reuse.
    pub buffers: Vec<Vec<f32>>,
    /// Integers and truth values, by variable.
    pub tensors: Vec<Option<Tensor>>,
    /// The states, in the order of the function's states.
    pub states: Vec<&'a mut StateTensor>,
    /// Threads and instruction set.
    pub kernels: &'a Kernels,
    /// How many tokens of the call matter; those after them are padding.
    pub tokens: usize,
    /// Who is shown the values.
    pub watcher: Watcher<'a>,
}

/// Where a step finds floating-point values.
#[derive(Clone, Debug)]
pub(crate) enum Operand {
    /// The first elements of a buffer.
    Buffer { id: usize, len: usize },
    /// Values known beforehand.
    Const(Arc<Vec<f32>>),
}

impl Operand {
    pub fn len(&self) -> usize {
        match self {
            Operand::Buffer { len, .. } => *len,
            Operand::Const(values) => values.len(),
        }
    }
}

impl Memory<'_> {
    /// The values of an operand.
    pub fn get<'b>(&'b self, operand: &'b Operand) -> &'b [f32] {
        match operand {
            Operand::Buffer { id, len } => &self.buffers[*id][..*len],
            Operand::Const(values) => values,
        }
    }

    /// How many of `rows` matter, of which the first is of that token if it is known.
    pub fn rows_of(&self, first: Option<usize>, rows: usize) -> usize {
        first.map_or(rows, |first| self.tokens.saturating_sub(first).min(rows))
    }

    /// Takes a buffer out, so that others can be read while it is written; [`Memory::put`] gives it back.
    pub fn take(&mut self, id: usize) -> Vec<f32> {
        std::mem::take(&mut self.buffers[id])
    }

    /// Gives a buffer back.
    pub fn put(&mut self, id: usize, buffer: Vec<f32>) {
        self.buffers[id] = buffer;
    }

    /// Writes the first `len` elements of a buffer with `f`, which may read everything else.
    pub fn write(&mut self, id: usize, len: usize, f: impl FnOnce(&Self, &mut [f32]) -> Result<()>) -> Result<()> {
        let mut buffer = self.take(id);
        let result = f(self, &mut buffer[..len]);
        self.put(id, buffer);
        result
    }

    /// A tensor that an earlier step computed.
    pub fn tensor(&self, var: usize) -> Result<&Tensor> {
        self.tensors[var].as_ref().ok_or_else(|| Error::new(format!("variable number {var} has no value yet")))
    }
}

/// The first `len` results, which matter; those after them, of padding, become 0.
pub(crate) fn without_padding(results: &mut [f32], len: usize) -> &mut [f32] {
    let (results, padding) = results.split_at_mut(len);
    padding.fill(0.0);
    results
}

/// A state: a tensor that outlives the call.
#[derive(Clone, Debug)]
pub struct StateTensor {
    /// Its name, by which functions share it.
    pub name: String,
    /// The size along each axis.
    pub shape: Vec<usize>,
    /// The elements.
    pub data: StateData,
}

/// The elements of a state, in the type that the program declares.
#[derive(Clone, Debug)]
pub enum StateData {
    /// Half precision.
    F16(Vec<f16>),
    /// Single precision.
    F32(Vec<f32>),
}

impl StateTensor {
    /// A state of zeros.
    pub(crate) fn zeros(name: &str, dtype: DType, shape: Vec<usize>) -> Result<StateTensor> {
        let Some(len) = shape.iter().try_fold(1usize, |n, &dim| n.checked_mul(dim)) else {
            bail!("state `{name}`: the shape {shape:?} is larger than memory can address");
        };
        let data = match dtype {
            DType::F16 => StateData::F16(zeroed(len).map_err(|e| e.at(format!("state `{name}`")))?),
            DType::F32 => StateData::F32(zeroed(len).map_err(|e| e.at(format!("state `{name}`")))?),
            other => bail!("state `{name}`: found elements of type {other}, expected fp16 or fp32"),
        };
        Ok(StateTensor { name: name.to_owned(), shape, data })
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        match self.data {
            StateData::F16(_) => DType::F16,
            StateData::F32(_) => DType::F32,
        }
    }

    /// A copy as a tensor.
    pub fn to_tensor(&self) -> Result<Tensor> {
        match &self.data {
            StateData::F16(values) => Tensor::from_vec(self.shape.clone(), values.clone()),
            StateData::F32(values) => Tensor::from_vec(self.shape.clone(), values.clone()),
        }
    }

    /// Takes over the values of a tensor of the same type and shape.
    pub fn set(&mut self, tensor: &Tensor) -> Result<()> {
        if tensor.shape() != self.shape || tensor.dtype() != self.dtype() {
            bail!("state `{}`: found {tensor:?}, expected {}{:?}", self.name, self.dtype(), self.shape);
        }
        let values = tensor.to_f32()?;
        self.data = match self.data {
            StateData::F16(_) => StateData::F16(values.into_iter().map(f16::from_f32).collect()),
            StateData::F32(_) => StateData::F32(values),
        };
        Ok(())
    }
}
