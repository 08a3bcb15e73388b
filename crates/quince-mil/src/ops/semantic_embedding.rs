//! Semantic `embedding` and `logits`: from token ids to vectors, and from vectors to a number for each token.

use super::elements::room;
use super::gather::{integers, within};
use super::layout::{Cells, count, filled, from_cells, result, result_shape};
use super::shape_rules::{merge, show};
use crate::op::FLOAT;
use crate::{Args, Op, Opset, Param, Result, Tensor, ValueType, bail};

/// See [`Op::doc`].
pub struct Embedding;

impl Op for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn doc(&self) -> &'static str {
        "The row of `weight` for each token. ids: [B, S] int32, weight: [V, D], the result is [B, S, D]."
    }

    fn params(&self) -> &'static [Param] {
        const { &[Param::new("ids"), Param::new("weight").constant().types(FLOAT)] }
    }

    fn since(&self) -> Opset {
        Opset::Semantic
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let (ids, weight) = (integers(args, "ids")?, args.ty("weight")?);
        let ([batch, length], [_, width]) = (ids, &weight.shape[..]) else {
            bail!("found ids {} and weight {}, expected [B, S] and [V, D]", show(ids), show(&weight.shape));
        };
        result(weight.dtype, vec![*batch, *length, *width])
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let shape = result_shape(self, args)?;
        let weight = args.tensor("weight")?;
        let [rows, width] = *weight.shape() else { bail!("found a weight {weight:?}, expected [V, D]") };
        let cells = Cells::of(&weight)?;
        let mut out = room(count(&shape)?.saturating_mul(cells.width))?;
        for row in within(&args.ints("ids")?, rows)? {
            out.extend_from_slice(cells.run(row * width, width)?);
        }
        Ok(vec![from_cells(weight.dtype(), &shape, out)?])
    }
}

/// See [`Op::doc`].
pub struct Logits;

impl Op for Logits {
    fn name(&self) -> &'static str {
        "logits"
    }

    fn doc(&self) -> &'static str {
        "`x · weightᵀ + bias`: how likely each token of the vocabulary comes next. x: [B, S, D], weight: [V, D], bias: [V]; \
         the result is [B, S, V]. It is kept apart from `linear` so that a lowering may take the last position only or \
         split the vocabulary."
    }

    fn params(&self) -> &'static [Param] {
        const {
            &[
                Param::new("x").types(FLOAT),
                Param::new("weight").constant().types(FLOAT),
                Param::new("bias").constant().optional().types(FLOAT),
            ]
        }
    }

    fn since(&self) -> Opset {
        Opset::Semantic
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let (x, weight) = (args.ty("x")?, args.shape("weight")?);
        let ([batch, length, width], [rows, columns]) = (&x.shape[..], weight) else {
            bail!("found x {} and weight {}, expected [B, S, D] and [V, D]", show(&x.shape), show(weight));
        };
        merge(*width, *columns).map_err(|e| e.at("last axis of x and weight"))?;
        if args.has("bias") && !matches!(args.shape("bias")?, [n] if n.fits(*rows)) {
            bail!("found a bias {}, expected [{rows}]", show(args.shape("bias")?));
        }
        result(x.dtype, vec![*batch, *length, *rows])
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let shape = result_shape(self, args)?;
        let (x, weight) = (args.tensor("x")?, args.tensor("weight")?);
        let [rows, width] = *weight.shape() else { bail!("found a weight {weight:?}, expected [V, D]") };
        let bias = args.opt_tensor("bias")?.map(|bias| bias.to_f64()).transpose()?;
        let values = x.to_f64()?;
        let mut out = filled(count(&shape)?, 0.0)?;
        // A row of the weight is converted when it is used: the whole vocabulary as f64 would be large.
        for v in 0..rows {
            let row = weight.rows(v..v + 1)?.to_f64()?;
            for (i, out) in out.chunks_exact_mut(rows).enumerate() {
                out[v] = super::attention::dot(&values[i * width..][..width], &row);
                out[v] += bias.as_ref().map_or(0.0, |bias| bias[v]);
            }
        }
        Ok(vec![Tensor::from_f64(x.dtype(), shape, out)?])
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn tokens_become_rows() {
        let ids = Tensor::from_vec([1, 2], vec![2i32, 0]).unwrap();
        let y = run(&Embedding, vec![("ids", ids.into()), ("weight", iota(&[3, 2]))]).unwrap();
        assert_eq!((y.shape(), y.to_f32().unwrap()), (&[1, 2, 2][..], vec![4.0, 5.0, 0.0, 1.0]));
        let ids = Tensor::from_vec([1, 1], vec![3i32]).unwrap();
        assert!(run(&Embedding, vec![("ids", ids.into()), ("weight", iota(&[3, 2]))]).is_err());
    }

    #[test]
    fn vectors_become_logits() {
        let values = vec![("x", iota(&[1, 2, 2])), ("weight", iota(&[3, 2])), ("bias", f32s(&[3], &[0.0, 0.0, 0.5]))];
        let y = run(&Logits, values).unwrap();
        assert_eq!((y.shape(), y.to_f32().unwrap()), (&[1, 2, 3][..], vec![1.0, 3.0, 5.5, 3.0, 13.0, 23.5]));
    }
}
