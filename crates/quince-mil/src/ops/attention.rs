//! `scaled_dot_product_attention`, and the softmax over keys that it shares with the semantic `attention`.

use super::elements::{Walk, strides_in};
use super::layout::{count, filled, result, result_shape};
use super::shape_rules::{broadcast, merge, show};
use crate::op::FLOAT;
use crate::{Args, DType, Dim, Op, Opset, Param, Result, Tensor, ValueType, bail};

/// See [`Op::doc`].
pub struct ScaledDotProductAttention;

impl Op for ScaledDotProductAttention {
    fn name(&self) -> &'static str {
        "scaled_dot_product_attention"
    }

    fn doc(&self) -> &'static str {
        "softmax(query · keyᵀ / √E + attn_mask) · value. query: [B, .., L, E], key: [B, .., S, E], value: [B, .., S, V], \
         the result is [B, .., L, V]. The axes before the last two are equal in all three: nothing but the mask \
         broadcasts, to [B, .., L, S]. A mask of truth values says which keys take part; one of numbers is added. A \
         query that sees no key gives NaN. Source: PyTorch's function of this name, without dropout."
    }

    fn params(&self) -> &'static [Param] {
        const {
            &[
                Param::new("query").types(FLOAT),
                Param::new("key").types(FLOAT),
                Param::new("value").types(FLOAT),
                Param::new("attn_mask").optional().types(&[DType::Bool, DType::F16, DType::F32]),
            ]
        }
    }

    fn since(&self) -> Opset {
        Opset::CoreML8
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let (query, key, value) = (args.shape("query")?, args.shape("key")?, args.shape("value")?);
        let rank = query.len();
        if rank < 3 || key.len() != rank || value.len() != rank {
            let (q, k, v) = (show(query), show(key), show(value));
            bail!("found query {q}, key {k}, value {v}, expected one rank of three or more");
        }
        let mut shape = Vec::with_capacity(rank);
        for axis in 0..rank - 2 {
            let dim = merge(query[axis], key[axis]).and_then(|dim| merge(dim, value[axis]));
            shape.push(dim.map_err(|e| e.at(format!("batch axis {axis} of query, key and value")))?);
        }
        merge(query[rank - 1], key[rank - 1]).map_err(|e| e.at("last axis of query and key"))?;
        let keys = merge(key[rank - 2], value[rank - 2]).map_err(|e| e.at("length of key and value"))?;
        shape.push(query[rank - 2]);
        if args.has("attn_mask") {
            let mask = args.shape("attn_mask")?;
            let scores = [&shape[..], &[keys]].concat();
            let fits = mask.len() <= rank && broadcast(mask, &scores).is_ok_and(|both| both.len() == rank);
            let grows = mask.iter().rev().zip(scores.iter().rev()).any(|(m, s)| *m != Dim::Fixed(1) && !m.fits(*s));
            if !fits || grows || mask.last().is_none_or(|last| !last.fits(keys)) {
                bail!("found a mask {}, expected one that broadcasts to the scores {}", show(mask), show(&scores));
            }
        }
        shape.push(value[rank - 1]);
        result(args.dtype("query")?, shape)
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let shape = result_shape(self, args)?;
        let query = args.tensor("query")?;
        let (key, value) = (args.tensor("key")?, args.tensor("value")?);
        let ([batch @ .., rows, width], [.., keys, depth]) = (query.shape(), value.shape()) else {
            bail!("found {query:?}, expected three axes or more");
        };
        let (rows, keys, depth) = (*rows, *keys, *depth);
        let mask = mask(args, &[batch, &[rows, keys]].concat())?;
        let (q, k, v) = (query.to_f64()?, key.to_f64()?, value.to_f64()?);
        let scale = 1.0 / (*width as f64).sqrt();
        let mut out = filled(count(&shape)?, 0.0)?;
        let mut scores = filled(keys, 0.0)?;
        for (row, out) in out.chunks_exact_mut(depth.max(1)).enumerate() {
            let at = row / rows * keys;
            for (i, score) in scores.iter_mut().enumerate() {
                *score = scale * dot(&q[row * width..][..*width], &k[(at + i) * width..][..*width]);
                *score += mask.as_ref().map_or(0.0, |mask| mask[row * keys + i]);
            }
            softmax(&mut scores, None);
            weighted_sum(&scores, |i| &v[(at + i) * depth..][..depth], out);
        }
        Ok(vec![Tensor::from_f64(query.dtype(), shape, out)?])
    }
}

/// What is added to each score, with -∞ where a mask of truth values is false.
fn mask(args: &Args, scores: &[usize]) -> Result<Option<Vec<f64>>> {
    let Some(mask) = args.opt_tensor("attn_mask")? else { return Ok(None) };
    let values = match mask.dtype() {
        DType::Bool => mask.to_bools()?.iter().map(|&seen| if seen { 0.0 } else { f64::NEG_INFINITY }).collect(),
        _ => mask.to_f64()?,
    };
    let mut out = super::elements::room(count(scores)?)?;
    out.extend(Walk::new(scores, [strides_in(mask.shape(), scores)])?.map(|[i]| values[i]));
    Ok(Some(out))
}

/// The dot product.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Turns scores into weights that add up to one; `sink` is a further score that takes its share and gives nothing.
pub fn softmax(scores: &mut [f64], sink: Option<f64>) {
    let highest = scores.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
    scores.iter_mut().for_each(|score| *score = (*score - highest).exp());
    let total = scores.iter().sum::<f64>() + sink.map_or(0.0, |sink| (sink - highest).exp());
    scores.iter_mut().for_each(|score| *score /= total);
}

/// Adds the rows, each by its weight, to `out`.
pub fn weighted_sum<'a>(weights: &[f64], row: impl Fn(usize) -> &'a [f64], out: &mut [f64]) {
    for (i, weight) in weights.iter().enumerate() {
        for (out, value) in out.iter_mut().zip(row(i)) {
            *out += weight * value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::Value;

    fn attend(query: Value, key: Value, value: Value, mask: Option<Value>) -> Result<Tensor> {
        let mut values = vec![("query", query), ("key", key), ("value", value)];
        values.extend(mask.map(|mask| ("attn_mask", mask)));
        run(&ScaledDotProductAttention, values)
    }

    /// Expected values: NumPy, `w = exp(q @ k.T / 2**.5 + mask); w / w.sum(-1, keepdims=True) @ v` in float64.
    #[test]
    fn weights_are_a_softmax_over_keys() {
        let (q, k) = (f32s(&[1, 2, 2], &[1.0, 0.0, 0.5, -1.0]), f32s(&[1, 3, 2], &[1.0, 2.0, 0.0, 1.0, -1.0, 0.5]));
        let v = f32s(&[1, 3, 1], &[1.0, 10.0, 100.0]);
        let y = attend(q.clone(), k.clone(), v.clone(), None).unwrap();
        near(&y, &EXPECTED_PLAIN, 1e-5);
        let mask = f32s(&[2, 3], &[0.0, -1.0, 0.5, 0.0, 0.0, -2.0]);
        near(&attend(q.clone(), k.clone(), v.clone(), Some(mask)).unwrap(), &EXPECTED_MASKED, 1e-5);
        let seen: Value = Tensor::from_bools([1, 3], &[true, true, false]).unwrap().into();
        near(&attend(q.clone(), k.clone(), v.clone(), Some(seen)).unwrap(), &EXPECTED_SEEN, 1e-6);
        let none: Value = Tensor::from_bools([3], &[false; 3]).unwrap().into();
        assert!(attend(q, k, v, Some(none)).unwrap().to_f32().unwrap().iter().all(|y| y.is_nan()));
    }

    const EXPECTED_PLAIN: [f64; 2] = [17.41885394696577, 40.967604016885055];
    const EXPECTED_MASKED: [f64; 2] = [27.111924398882177, 13.189335032607099];
    const EXPECTED_SEEN: [f64; 2] = [3.972146056060088, 6.287311007556489];

    #[test]
    fn batches_that_differ_are_refused_also_where_one_is_unknown() {
        let shapes = |q: &[i64], k: &[i64], v: &[i64]| {
            let t = |shape| typed(DType::F16, shape);
            inferred(&ScaledDotProductAttention, vec![("query", t(q)), ("key", t(k)), ("value", t(v))])
        };
        assert_eq!(shapes(&[-1, 8, 3, 4], &[2, 8, 5, 4], &[2, 8, -1, 6]).unwrap(), [2, 8, 3, 6]);
        let error = shapes(&[-1, 3, 4], &[5, 3, 4], &[2, 3, 4]).unwrap_err().to_string();
        assert_eq!(error, "batch axis 0 of query, key and value: sizes 5 and 2 of one axis differ");
        assert!(shapes(&[1, 8, 3, 4], &[1, 2, 3, 4], &[1, 2, 3, 4]).is_err());
        assert!(shapes(&[3, 4], &[3, 4], &[3, 4]).is_err());
    }

    #[test]
    fn a_mask_does_not_grow_the_scores() {
        let masked = |mask: &[i64]| {
            let t = |shape: &[i64]| typed(DType::F16, shape);
            let qkv = vec![
                ("query", t(&[1, 2, 4])),
                ("key", t(&[1, 3, 4])),
                ("value", t(&[1, 3, 4])),
                ("attn_mask", t(mask)),
            ];
            inferred(&ScaledDotProductAttention, qkv)
        };
        assert!(masked(&[3]).is_ok() && masked(&[1, 1, 3]).is_ok() && masked(&[-1, -1]).is_ok());
        assert!(masked(&[2, 2, 3]).is_err() && masked(&[1]).is_err() && masked(&[1, 1, 1, 3]).is_err());
    }
}
