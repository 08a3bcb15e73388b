//! From constants and `constexpr_*` operations to weights that kernels read packed.

use crate::Precision;
use crate::kernels::{CodeType, Floats, GroupAxis, PackedWeight};
use crate::strict;
use quince_mil::{Arg, DType, Defs, Error, Operation, Result, Tensor, Value, Var, bail};
use quince_tensor::Bytes;
use std::collections::HashMap;
use std::sync::Mutex;

/// Tensors of weights that had to be computed, so that functions share them. Mapped ones cost nothing to ask for again.
#[derive(Default)]
pub(crate) struct WeightCache {
    computed: Mutex<HashMap<usize, Tensor>>,
    /// Mapped bytes by their address, which is theirs as long as they are kept, with their copies in huge pages.
    copied: Mutex<HashMap<usize, (Bytes, Bytes)>>,
    /// The same of plain numbers that were rounded to bytes.
    narrowed: Mutex<HashMap<usize, (Bytes, PackedWeight)>>,
    /// The same of plain numbers that were laid out in panels.
    laid: Mutex<HashMap<usize, (Bytes, PackedWeight)>>,
    /// Whether constants are rounded to fp16 where they are found.
    rounds: bool,
}

/// Bytes that panels of weights take at most: they are there besides the package.
const LAID_BYTES: usize = 96 << 20;

impl WeightCache {
    /// An empty cache for programs that are run so.
    pub fn new(precision: Precision) -> WeightCache {
        WeightCache { rounds: precision == Precision::Strict, ..WeightCache::default() }
    }

    /// The tensor of a constant.
    pub fn tensor(&self, value: &Value) -> Result<Tensor> {
        let Value::Weight(weight) = value else { return self.as_used(value.tensor()?) };
        let mut computed = self.computed.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(tensor) = computed.get(&weight.id()) {
            return Ok(tensor.clone());
        }
        let tensor = self.as_used(weight.load()?)?;
        if !tensor.bytes().is_mapped() {
            computed.insert(weight.id(), tensor.clone());
        }
        Ok(tensor)
    }

    /// The bytes where reading all of them again and again is fastest.
    pub fn streamed(&self, bytes: &Bytes) -> Bytes {
        let mut copied = self.copied.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let address = bytes.as_ptr() as usize;
        if let Some((source, copy)) = copied.get(&address)
            && source.len() == bytes.len()
        {
            return copy.clone();
        }
        let Some(copy) = bytes.in_huge_pages() else { return bytes.clone() };
        copied.insert(address, (bytes.clone(), copy.clone()));
        copy
    }

    /// [`PackedWeight::narrowed`], once for each weight.
    pub fn narrowed(&self, weight: &PackedWeight) -> Result<Option<PackedWeight>> {
        let mut narrowed = self.narrowed.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let (source, _) = weight.data();
        let address = source.as_ptr() as usize;
        if let Some((_, known)) = narrowed.get(&address)
            && (known.rows(), known.cols()) == (weight.rows(), weight.cols())
        {
            return Ok(Some(known.clone()));
        }
        let Some(made) = weight.narrowed()? else { return Ok(None) };
        source.give_back(0..source.len());
        narrowed.insert(address, (source.clone(), made.clone()));
        Ok(Some(made))
    }

    /// [`PackedWeight::laid_out`], once for each weight, until [`LAID_BYTES`] are taken.
    pub fn laid_out(&self, weight: &PackedWeight) -> Result<Option<PackedWeight>> {
        let mut laid = self.laid.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let (source, _) = weight.data();
        let address = source.as_ptr() as usize;
        if let Some((_, known)) = laid.get(&address)
            && (known.rows(), known.cols()) == (weight.rows(), weight.cols())
        {
            return Ok(Some(known.clone()));
        }
        let taken: usize = laid.values().map(|(_, known)| known.laid_len()).sum();
        if weight.laid_len().saturating_add(taken) > LAID_BYTES {
            return Ok(None);
        }
        let Some(made) = weight.laid_out()? else { return Ok(None) };
        source.give_back(0..source.len());
        laid.insert(address, (source.clone(), made.clone()));
        Ok(Some(made))
    }

    fn as_used(&self, tensor: Tensor) -> Result<Tensor> {
        if self.rounds { strict::rounded(tensor) } else { Ok(tensor) }
    }
}

/// The matrix `[rows, cols]` behind an operation that makes a constant: rows are the first axis, columns all others.
/// `None` if its form is not one that kernels read packed: then the operation is evaluated.
pub(crate) fn packed(cache: &WeightCache, defs: &Defs, operation: &Operation) -> Result<Option<PackedWeight>> {
    let source = Source { cache, defs, operation };
    match operation.op_name() {
        "const" => source.dense(),
        "constexpr_lut_to_dense" => source.lut(),
        "constexpr_blockwise_shift_scale" => source.blockwise(),
        "constexpr_affine_dequantize" => source.affine(),
        _ => Ok(None),
    }
}

struct Source<'a> {
    cache: &'a WeightCache,
    defs: &'a Defs<'a>,
    operation: &'a Operation,
}

impl Source<'_> {
    /// The constant tensor of a parameter, or `None` if it is absent or the result of another operation.
    fn constant(&self, param: &str) -> Result<Option<Tensor>> {
        let Some(arg) = self.operation.arg(param) else { return Ok(None) };
        let value = match arg {
            Arg::Value(value) => Some(value),
            Arg::Var(_) => self.defs.constant(arg),
        };
        value.map(|value| self.cache.tensor(value)).transpose()
    }

    fn dense(&self) -> Result<Option<PackedWeight>> {
        let Some(value) = self.operation.constant() else { return Ok(None) };
        let Some(ty) = value.tensor_type() else { return Ok(None) };
        let Some((rows, cols)) = matrix(&ty.dims().unwrap_or_default()) else { return Ok(None) };
        let tensor = self.cache.tensor(value)?;
        Ok(match floats(&tensor) {
            Some(values) => Some(PackedWeight::dense(rows, cols, values)?),
            None => None,
        })
    }

    /// `lut` is `[groups..., entries, 1]` in the form of iOS 18, and `[entries]` with packed indices in that of iOS 16.
    fn lut(&self) -> Result<Option<PackedWeight>> {
        let (Some(indices), Some(tables)) = (self.constant("indices")?, self.table()?) else { return Ok(None) };
        let shape = match self.constant("shape")? {
            Some(shape) => shape.to_i64()?.into_iter().map(|n| n as usize).collect(),
            None => indices.shape().to_vec(),
        };
        let Some((rows, cols)) = matrix(&shape) else { return Ok(None) };
        let (entries, groups) = match tables.shape() {
            [entries] => (*entries, vec![1; shape.len()]),
            [groups @ .., entries, 1] if groups.len() == shape.len() => (*entries, groups.to_vec()),
            _ => return Ok(None),
        };
        let (axis, count) = match groups[..] {
            [rows, ref rest @ ..] if rest.iter().all(|&n| n == 1) => (GroupAxis::Rows, rows),
            [1, cols, ref rest @ ..] if rest.iter().all(|&n| n == 1) && shape[2..].iter().all(|&n| n == 1) => {
                (GroupAxis::Cols, cols)
            }
            _ => return Ok(None),
        };
        let even = if axis == GroupAxis::Rows { rows } else { cols };
        if count == 0 || !even.is_multiple_of(count) || !entries.is_power_of_two() {
            return Ok(None);
        }
        let Some(values) = floats(&tables) else { return Ok(None) };
        let nbits = entries.trailing_zeros() as usize;
        let weight = PackedWeight::lut(rows, cols, nbits, indices.bytes().clone(), &values, axis)?;
        Ok(Some(weight))
    }

    /// The lookup tables: a constant, or tables that are themselves quantized, which are small and dequantized here.
    fn table(&self) -> Result<Option<Tensor>> {
        if let Some(tables) = self.constant("lut")? {
            return Ok(Some(tables));
        }
        match self.operation.var("lut") {
            Some(var) if self.defs.producer(var).is_some() => Ok(Some(dense(self.cache, self.defs, var)?)),
            _ => Ok(None),
        }
    }

    fn blockwise(&self) -> Result<Option<PackedWeight>> {
        let (Some(data), Some(scale)) = (self.constant("data")?, self.constant("scale")?) else { return Ok(None) };
        let (Some((rows, cols)), Some(codes)) = (matrix(data.shape()), code_type(data.dtype())) else {
            return Ok(None);
        };
        let Some(grid) = matrix(scale.shape()) else { return Ok(None) };
        // Blocks along a third axis do not lie one after the other along the columns.
        if scale.rank() != data.rank() || (data.rank() > 2 && data.shape()[2..].iter().any(|&n| n != 1)) {
            return Ok(None);
        }
        let offset = self.constant("offset")?;
        if offset.as_ref().is_some_and(|offset| offset.dtype() != data.dtype() || offset.shape() != scale.shape()) {
            return Ok(None);
        }
        let Some(scale) = floats(&scale) else { return Ok(None) };
        let offset = offset.map(|offset| offset.bytes().clone());
        let grid = [grid.0, grid.1];
        let weight = PackedWeight::affine(rows, cols, codes, data.bytes().clone(), scale, offset, grid)?;
        Ok(Some(weight))
    }

    /// The form of iOS 16: one scale, or one for each row.
    fn affine(&self) -> Result<Option<PackedWeight>> {
        let (Some(data), Some(scale)) = (self.constant("quantized_data")?, self.constant("scale")?) else {
            return Ok(None);
        };
        let (Some((rows, cols)), Some(codes)) = (matrix(data.shape()), code_type(data.dtype())) else {
            return Ok(None);
        };
        let axis = self.constant("axis")?.map(|axis| axis.to_i64()).transpose()?;
        let by_row = scale.len() == 1 || (axis.is_some_and(|axis| axis == [0]) && scale.len() == rows);
        let zero_point = self.constant("zero_point")?;
        let offset = match zero_point {
            Some(zero) if zero.dtype() != data.dtype() => return Ok(None),
            Some(zero) if zero.len() == scale.len() => Some(zero.bytes().clone()),
            Some(zero) if zero.len() == 1 => Some(zero.bytes().repeat(scale.len()).into()),
            Some(_) => return Ok(None),
            None => None,
        };
        let (true, Some(values)) = (by_row, floats(&scale)) else { return Ok(None) };
        let grid = [scale.len(), 1];
        let weight = PackedWeight::affine(rows, cols, codes, data.bytes().clone(), values, offset, grid)?;
        Ok(Some(weight))
    }
}

/// The tensor of a variable that a `const` or `constexpr_*` operation assigns, computed.
pub(crate) fn dense(cache: &WeightCache, defs: &Defs, var: Var) -> Result<Tensor> {
    let Some(operation) = defs.producer(var) else { bail!("a weight without an operation") };
    if let Some(value) = operation.constant() {
        return cache.tensor(value);
    }
    let op = operation.op()?;
    let args = quince_mil::verify::bind(op, operation, |arg| {
        let value = match arg {
            Arg::Value(value @ (Value::Tensor(_) | Value::Weight(_))) => value.tensor()?.into(),
            Arg::Value(value) => value.clone(),
            Arg::Var(var) if defs.producer(*var).is_some() => dense(cache, defs, *var)?.into(),
            Arg::Var(_) => bail!("a weight is computed from `{}`, which is not constant", operation.name),
        };
        Ok(quince_mil::op::ArgInfo::known(value))
    })?;
    let number = operation.outputs.iter().position(|output| *output == var).unwrap_or(0);
    let result = op.eval(&args)?.into_iter().nth(number);
    result.ok_or_else(|| Error::new(format!("an operation without result {number} makes no weight")))
}

/// Rows and columns of a weight of any rank from 1: the first axis, and all others.
fn matrix(shape: &[usize]) -> Option<(usize, usize)> {
    let (rows, rest) = shape.split_first()?;
    Some((*rows, rest.iter().try_fold(1usize, |n, &dim| n.checked_mul(dim))?))
}

fn code_type(dtype: DType) -> Option<CodeType> {
    Some(match dtype {
        DType::I8 => CodeType::Int8,
        DType::U8 => CodeType::Uint8,
        DType::I4 => CodeType::Int4,
        DType::U4 => CodeType::Uint4,
        _ => return None,
    })
}

fn floats(tensor: &Tensor) -> Option<Floats> {
    match tensor.dtype() {
        DType::F16 => Some(Floats::F16(tensor.bytes().clone())),
        DType::F32 => Some(Floats::F32(tensor.bytes().clone())),
        _ => None,
    }
}
