//! Sparse weights: `constexpr_sparse_to_dense`, `constexpr_lut_to_sparse`, `constexpr_sparse_blockwise_shift_scale`.
//! A mask says which elements there are, the others are zero.

use super::blockwise::{check_blocks, fixed_shape, scaled};
use super::layout::{Cells, count, filled, fixed, from_cells, result, result_shape};
use super::lut::{TABLE, Tables};
use crate::op::FLOAT;
use crate::{Args, DType, Op, Opset, Param, Result, Tensor, ValueType, bail};
use quince_tensor::packing::unpack;

/// See [`Op::doc`].
pub struct SparseToDense;

impl Op for SparseToDense {
    fn name(&self) -> &'static str {
        "constexpr_sparse_to_dense"
    }

    fn doc(&self) -> &'static str {
        "The elements of `nonzero_data` in order where the mask is 1, and zeros elsewhere. iOS 18: the mask is uint1 in the \
         shape of the result. iOS 16: it is packed bytes for a result of `shape`, least significant bit first."
    }

    fn params(&self) -> &'static [Param] {
        const {
            &[
                Param::new("nonzero_data").constant(),
                Param::new("mask").constant().types(&[DType::U1, DType::U8]),
                Param::new("shape").constant().optional(),
            ]
        }
    }

    fn since(&self) -> Opset {
        Opset::CoreML6
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        vector(args, "nonzero_data")?;
        if !args.has("shape") {
            return result(args.dtype("nonzero_data")?, fixed(&fixed_shape(args, "mask")?));
        }
        let sizes = args.ints("shape")?;
        let shape: Vec<usize> = sizes.iter().filter_map(|&n| usize::try_from(n).ok()).collect();
        let expected = count(&shape)?.div_ceil(8);
        let mask = args.ty("mask")?;
        if shape.len() != sizes.len() || mask.dtype != DType::U8 || fixed_shape(args, "mask")? != [expected] {
            bail!("found a mask of type {mask}, expected {expected} bytes for shape {sizes:?}");
        }
        result(args.dtype("nonzero_data")?, fixed(&shape))
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let shape = result_shape(self, args)?;
        let mask = args.tensor("mask")?;
        let bits = match args.has("shape") {
            true => unpack(mask.bytes(), 1, 0, count(&shape)?)?,
            false => mask.codes()?,
        };
        let data = args.tensor("nonzero_data")?;
        Ok(vec![from_cells(data.dtype(), &shape, spread(&data, &bits)?)?])
    }
}

/// See [`Op::doc`].
pub struct LutToSparse;

impl Op for LutToSparse {
    fn name(&self) -> &'static str {
        "constexpr_lut_to_sparse"
    }

    fn doc(&self) -> &'static str {
        "What `constexpr_lut_to_dense` gives for the indices that there are: a mask and the elements where it is 1. The \
         tables belong to places in the dense shape, which is that of `indices_mask`."
    }

    fn params(&self) -> &'static [Param] {
        const {
            &[
                Param::new("indices_mask").constant().types(&[DType::U1]),
                Param::new("indices_nonzero_data").constant(),
                Param::new("lut").constant().types(TABLE),
                Param::new("vector_axis").constant().optional(),
            ]
        }
    }

    fn since(&self) -> Opset {
        Opset::CoreML8
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let nonzero = vector(args, "indices_nonzero_data")?;
        let tables = tables(args)?;
        let per_index = fixed_shape(args, "lut")?.last().copied().unwrap_or(1);
        let mut types = result(DType::U1, fixed(&tables.dense_shape()?))?;
        types.append(&mut result(args.dtype("lut")?, fixed(&[nonzero.saturating_mul(per_index)]))?);
        Ok(types)
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        self.infer(args)?;
        let (mask, data) = (args.tensor("indices_mask")?, args.tensor("indices_nonzero_data")?);
        let bits = mask.codes()?;
        let tables = tables(args)?;
        let dense = tables.look_up(&spread(&data, &bits)?, &args.tensor("lut")?)?;
        let bits = tables.repeat(&bits)?;
        let out_mask = Tensor::from_codes(DType::U1, dense.shape(), &bits)?;
        Ok(vec![out_mask, kept(&dense, &bits)?])
    }
}

fn tables(args: &Args) -> Result<Tables> {
    Tables::new(args, "indices_nonzero_data", fixed_shape(args, "indices_mask")?)
}

/// See [`Op::doc`].
pub struct SparseBlockwiseShiftScale;

impl Op for SparseBlockwiseShiftScale {
    fn name(&self) -> &'static str {
        "constexpr_sparse_blockwise_shift_scale"
    }

    fn doc(&self) -> &'static str {
        "What `constexpr_blockwise_shift_scale` gives for the elements that there are: the mask, and the elements where it \
         is 1. Blocks belong to places in the dense shape, which is that of `data_mask`."
    }

    fn params(&self) -> &'static [Param] {
        const {
            &[
                Param::new("data_mask").constant().types(&[DType::U1]),
                Param::new("nonzero_data").constant(),
                Param::new("scale").constant().types(FLOAT),
                Param::new("offset").constant().optional(),
            ]
        }
    }

    fn since(&self) -> Opset {
        Opset::CoreML8
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let nonzero = vector(args, "nonzero_data")?;
        let mask = fixed_shape(args, "data_mask")?;
        check_blocks(args, &mask)?;
        let mut types = result(DType::U1, fixed(&mask))?;
        types.append(&mut result(args.dtype("scale")?, fixed(&[nonzero]))?);
        Ok(types)
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        self.infer(args)?;
        let (mask, data) = (args.tensor("data_mask")?, args.tensor("nonzero_data")?);
        let bits = mask.codes()?;
        let dense = from_cells(data.dtype(), mask.shape(), spread(&data, &bits)?)?;
        let dense = scaled(&dense, &args.tensor("scale")?, args.opt_tensor("offset")?.as_ref())?;
        Ok(vec![mask, kept(&dense, &bits)?])
    }
}

/// The length of an argument that must be a vector.
fn vector(args: &Args, name: &str) -> Result<usize> {
    match fixed_shape(args, name)?[..] {
        [len] => Ok(len),
        _ => bail!("found {name} of type {}, expected a vector", args.ty(name)?),
    }
}

/// The elements where the mask is 1 and zeros elsewhere, as cells; an error if their numbers differ.
fn spread(data: &Tensor, mask: &[u8]) -> Result<Vec<u8>> {
    let ones = mask.iter().filter(|&&bit| bit != 0).count();
    if ones != data.len() {
        bail!("found {} elements for a mask with {ones} ones, expected as many", data.len());
    }
    let cells = Cells::of(data)?;
    let width = cells.width;
    let mut out = filled(mask.len() * width, 0u8)?;
    let places = out.chunks_exact_mut(width).zip(mask).filter(|(_, bit)| **bit != 0);
    for ((place, _), cell) in places.zip(cells.bytes.chunks_exact(width)) {
        place.copy_from_slice(cell);
    }
    Ok(out)
}

/// The elements where the mask is 1, as a vector.
fn kept(dense: &Tensor, mask: &[u8]) -> Result<Tensor> {
    let cells = Cells::of(dense)?;
    let chosen = cells.bytes.chunks_exact(cells.width).zip(mask).filter(|(_, bit)| **bit != 0);
    let out: Vec<u8> = chosen.flat_map(|(cell, _)| cell).copied().collect();
    from_cells(dense.dtype(), &[out.len() / cells.width], out)
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::Value;

    fn bits(shape: &[usize], bits: &[u8]) -> Value {
        Tensor::from_codes(DType::U1, shape, bits).unwrap().into()
    }

    #[test]
    fn elements_go_where_the_mask_is_one() {
        let sparse =
            |data: Value| run(&SparseToDense, vec![("nonzero_data", data), ("mask", bits(&[2, 2], &[0, 1, 1, 0]))]);
        assert_eq!(sparse(f32s(&[2], &[5.0, 6.0])).unwrap().to_f32().unwrap(), [0.0, 5.0, 6.0, 0.0]);
        let error = sparse(f32s(&[3], &[5.0, 6.0, 7.0])).unwrap_err().to_string();
        assert_eq!(error, "found 3 elements for a mask with 2 ones, expected as many");
        let packed = |mask: Vec<u8>| {
            let shape = Tensor::vector(vec![5u32]);
            run(
                &SparseToDense,
                vec![("nonzero_data", vec![7i8, 8].into()), ("mask", mask.into()), ("shape", shape.into())],
            )
        };
        assert_eq!(packed(vec![0b0_1100]).unwrap().to_i64().unwrap(), [0, 0, 7, 8, 0]);
        assert!(packed(vec![0b0_1100, 0]).is_err());
    }

    #[test]
    fn tables_belong_to_places() {
        let values = args(
            &LutToSparse,
            vec![
                ("indices_mask", bits(&[2, 2], &[1, 0, 1, 1])),
                ("indices_nonzero_data", Tensor::from_codes(DType::U1, [3], &[1, 0, 1]).unwrap().into()),
                ("lut", iota(&[2, 1, 2, 2])),
                ("vector_axis", 0.into()),
            ],
        );
        let y = run_all(&LutToSparse, &values).unwrap();
        // Dense: rows 0 and 1 are the vector of index [0, 0] (table 0, entry 1: 2 3), rows 2 and 3 those of table 1.
        assert_eq!((y[0].shape(), y[0].codes().unwrap()), (&[4, 2][..], vec![1, 0, 1, 0, 1, 1, 1, 1]));
        assert_eq!(y[1].to_f32().unwrap(), [2.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    }

    #[test]
    fn blocks_belong_to_places() {
        let values = args(
            &SparseBlockwiseShiftScale,
            vec![
                ("data_mask", bits(&[4, 4], &[1, 1, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1, 1, 0, 0])),
                ("nonzero_data", vec![10i8, 11, 3, 4, 5, 6, 7, 8, 9].into()),
                ("scale", f32s(&[1, 4], &[0.1, 0.2, 0.3, 0.4])),
                ("offset", Tensor::from_vec([1, 4], vec![1i8, 2, 3, 4]).unwrap().into()),
            ],
        );
        let y = run_all(&SparseBlockwiseShiftScale, &values).unwrap();
        near(&y[1], &[0.9, 1.8, 0.2, 0.4, 0.6, 0.9, 1.2, 0.7, 1.4], 1e-6);
    }
}
