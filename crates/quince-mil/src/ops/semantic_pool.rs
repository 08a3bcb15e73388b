//! Semantic `pool`: one vector for a text.

use super::gather::integers;
use super::layout::{count, filled, result, result_shape};
use super::shape_rules::show;
use crate::op::FLOAT;
use crate::{Args, Op, Opset, Param, Result, Tensor, ValueType, bail};

/// See [`Op::doc`].
pub struct Pool;

impl Op for Pool {
    fn name(&self) -> &'static str {
        "pool"
    }

    fn doc(&self) -> &'static str {
        "One vector [B, D] for each text x [B, S, D], of the tokens whose `mask` [B, S] is not 0: their mean if `mode` is \
         `mean`, the last of them if it is `last`; if it is `first`, the first token whatever the mask. A text without \
         tokens gives zeros."
    }

    fn params(&self) -> &'static [Param] {
        const { &[Param::new("x").types(FLOAT), Param::new("mask"), Param::new("mode").constant()] }
    }

    fn since(&self) -> Opset {
        Opset::Semantic
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let (x, mask) = (args.ty("x")?, integers(args, "mask")?);
        let ([batch, _, width], [_, _]) = (&x.shape[..], mask) else {
            bail!("found x {} and mask {}, expected [B, S, D] and [B, S]", show(&x.shape), show(mask));
        };
        match args.str("mode")? {
            "mean" | "first" | "last" => result(x.dtype, vec![*batch, *width]),
            other => bail!("found the mode `{other}`, expected mean, first or last"),
        }
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let shape = result_shape(self, args)?;
        let (x, mask, mode) = (args.tensor("x")?, args.ints("mask")?, args.str("mode")?);
        let [batch, length, width] = *x.shape() else { bail!("found x {x:?}, expected [B, S, D]") };
        if mask.len() != batch * length {
            bail!("found a mask of {} numbers, expected one for each token", mask.len());
        }
        let values = x.to_f64()?;
        let mut out = filled(count(&shape)?, 0.0)?;
        for (text, out) in out.chunks_exact_mut(width.max(1)).enumerate() {
            let mut tokens = (0..length).filter(|i| mask[text * length + i] != 0);
            let chosen: Vec<usize> = match mode {
                "mean" => tokens.collect(),
                "last" => tokens.next_back().into_iter().collect(),
                _ => (0..length.min(1)).collect(),
            };
            for token in &chosen {
                let row = &values[(text * length + token) * width..][..width];
                out.iter_mut().zip(row).for_each(|(out, x)| *out += x / chosen.len() as f64);
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
    fn only_what_is_not_padding_is_pooled() {
        let pooled = |mode: &str| {
            let mask = Tensor::from_vec([2, 3], vec![1i32, 1, 0, 0, 1, 1]).unwrap();
            run(&Pool, vec![("x", iota(&[2, 3, 1])), ("mask", mask.into()), ("mode", mode.into())])
        };
        let values = |mode: &str| pooled(mode).unwrap().to_f32().unwrap();
        assert_eq!((values("mean"), values("last")), (vec![0.5, 4.5], vec![1.0, 5.0]));
        assert_eq!(values("first"), [0.0, 3.0]);
        assert!(pooled("max").is_err());
        let none = Tensor::from_vec([1, 2], vec![0i32, 0]).unwrap();
        let y = run(&Pool, vec![("x", iota(&[1, 2, 1])), ("mask", none.into()), ("mode", "mean".into())]).unwrap();
        assert_eq!(y.to_f32().unwrap(), [0.0]);
    }
}
