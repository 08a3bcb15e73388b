//! Semantic `experts`: a feed-forward block of which each token uses a few of many.

use super::attention::{dot, softmax};
use super::layout::{count, filled, result, result_shape};
use super::shape_rules::{merge, show};
use crate::op::FLOAT;
use crate::{Args, Dim, Op, Opset, Param, Result, Tensor, ValueType, bail};

/// See [`Op::doc`].
pub struct Experts;

impl Op for Experts {
    fn name(&self) -> &'static str {
        "experts"
    }

    fn doc(&self) -> &'static str {
        "Each token's mean of what its `chosen` best experts make of it. x: [B, S, D], scores: [B, S, E]; the weights of \
         the mean are the softmax over all scores, or over those of the chosen if `normalize`. An expert is `down · \
         ((up · x + up_offset) · g · sigmoid(alpha · g))` with g = `gate · x`; with a `limit` l, g is at most l and `up · \
         x` within ± l. gate and up: [E · I, D], down: [E · D, I], the rows of one expert after those of the other; biases, \
         which are added to the products: [E · I], [E · I] and [E · D]. Of equal scores the first is the better. Source: \
         Shazeer et al., Outrageously large neural networks, 2017."
    }

    fn params(&self) -> &'static [Param] {
        const {
            &[
                Param::new("x").types(FLOAT),
                Param::new("scores").types(FLOAT),
                Param::new("gate").constant().types(FLOAT),
                Param::new("gate_bias").constant().optional().types(FLOAT),
                Param::new("up").constant().types(FLOAT),
                Param::new("up_bias").constant().optional().types(FLOAT),
                Param::new("down").constant().types(FLOAT),
                Param::new("down_bias").constant().optional().types(FLOAT),
                Param::new("chosen").constant(),
                Param::new("normalize").constant().or_bool(true),
                Param::new("alpha").constant().or_float(1.0),
                Param::new("limit").constant().or_float(0.0),
                Param::new("up_offset").constant().or_float(0.0),
            ]
        }
    }

    fn since(&self) -> Opset {
        Opset::Semantic
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let (x, scores) = (args.ty("x")?, args.shape("scores")?);
        let ([batch, length, width], [_, _, experts]) = (&x.shape[..], scores) else {
            bail!("found x {} and scores {}, expected [B, S, D] and [B, S, E]", show(&x.shape), show(scores));
        };
        let &[.., inner] = args.shape("down")? else { bail!("found down of one number, expected [E · D, I]") };
        let rows = |of: Dim| match (*experts, of) {
            (Dim::Fixed(experts), Dim::Fixed(of)) => Dim::Fixed(experts.saturating_mul(of)),
            _ => Dim::Unknown,
        };
        let expect = |name: &str, shape: &[Dim]| match args.has(name) {
            true if !fits(args.shape(name)?, shape) => {
                bail!("found {name} {}, expected {}", show(args.shape(name)?), show(shape))
            }
            _ => Ok(()),
        };
        expect("gate", &[rows(inner), *width])?;
        expect("up", &[rows(inner), *width])?;
        expect("down", &[rows(*width), inner])?;
        expect("gate_bias", &[rows(inner)])?;
        expect("up_bias", &[rows(inner)])?;
        expect("down_bias", &[rows(*width)])?;
        let chosen = args.int("chosen")?;
        if chosen < 1 || experts.fixed().is_some_and(|experts| chosen > experts as i64) {
            bail!("found {chosen} chosen experts, expected 1 to {experts}");
        }
        for name in ["alpha", "limit", "up_offset"] {
            args.float(name)?;
        }
        args.bool("normalize")?;
        result(x.dtype, vec![*batch, *length, *width])
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let shape = result_shape(self, args)?;
        let (x, scores) = (args.tensor("x")?, args.tensor("scores")?);
        let (&[.., width], &[.., experts]) = (x.shape(), scores.shape()) else {
            bail!("found {x:?} and {scores:?}, expected three axes each");
        };
        let chosen = args.int("chosen")? as usize;
        let normalize = args.bool("normalize")?;
        // By expert: the tokens that it is for, with their weights.
        let mut tokens: Vec<Vec<(usize, f64)>> = vec![Vec::new(); experts];
        for (token, row) in scores.to_f64()?.chunks_exact(experts.max(1)).enumerate() {
            for (expert, weight) in best(row, chosen, normalize) {
                tokens[expert].push((token, weight));
            }
        }
        let x = x.to_f64()?;
        if x.len() != count(&shape)? || scores.len() / experts.max(1) != x.len() / width.max(1) {
            bail!("found scores {scores:?}, expected a row for each token");
        }
        let mut out = filled(x.len(), 0.0)?;
        // Weights of an expert are converted when they are used: all of them at once would be large.
        for (number, tokens) in tokens.into_iter().enumerate().filter(|(_, tokens)| !tokens.is_empty()) {
            let expert = Expert::new(args, number, experts)?;
            for (token, weight) in tokens {
                expert.add(&x[token * width..][..width], weight, &mut out[token * width..][..width]);
            }
        }
        Ok(vec![Tensor::from_f64(args.dtype("x")?, shape, out)?])
    }
}

fn fits(found: &[Dim], expected: &[Dim]) -> bool {
    found.len() == expected.len() && found.iter().zip(expected).all(|(a, b)| merge(*a, *b).is_ok())
}

/// The best experts of a token and their weights.
fn best(scores: &[f64], chosen: usize, normalize: bool) -> Vec<(usize, f64)> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    order.truncate(chosen);
    let mut weights: Vec<f64> = match normalize {
        true => order.iter().map(|&i| scores[i]).collect(),
        false => scores.to_vec(),
    };
    softmax(&mut weights, None);
    order.iter().enumerate().map(|(place, &i)| (i, weights[if normalize { place } else { i }])).collect()
}

/// One expert's weights.
struct Expert {
    gate: [Vec<f64>; 2],
    up: [Vec<f64>; 2],
    down: [Vec<f64>; 2],
    alpha: f64,
    limit: f64,
    up_offset: f64,
}

impl Expert {
    fn new(args: &Args, number: usize, experts: usize) -> Result<Expert> {
        let row = |tensor: Tensor| {
            let rows = tensor.shape().first().copied().unwrap_or(0) / experts.max(1);
            tensor.rows(number * rows..(number + 1) * rows)?.to_f64()
        };
        let pair = |weight: &str, bias: &str| -> Result<[Vec<f64>; 2]> {
            let bias = args.opt_tensor(bias)?.map(row).transpose()?;
            Ok([row(args.tensor(weight)?)?, bias.unwrap_or_default()])
        };
        Ok(Expert {
            gate: pair("gate", "gate_bias")?,
            up: pair("up", "up_bias")?,
            down: pair("down", "down_bias")?,
            alpha: args.float("alpha")?,
            limit: args.float("limit")?,
            up_offset: args.float("up_offset")?,
        })
    }

    /// Adds what the expert makes of `x`, times `weight`, to `out`.
    fn add(&self, x: &[f64], weight: f64, out: &mut [f64]) {
        let limit = if self.limit > 0.0 { self.limit } else { f64::INFINITY };
        let gate = product(&self.gate, x).into_iter().map(|g| g.min(limit));
        let up = product(&self.up, x).into_iter().map(|u| u.clamp(-limit, limit) + self.up_offset);
        let inner: Vec<f64> = gate.zip(up).map(|(g, u)| u * g / (1.0 + (-self.alpha * g).exp())).collect();
        out.iter_mut().zip(product(&self.down, &inner)).for_each(|(out, y)| *out += weight * y);
    }
}

/// A matrix times a vector, and a bias unless that is empty.
fn product([matrix, bias]: &[Vec<f64>; 2], x: &[f64]) -> Vec<f64> {
    let rows = matrix.chunks_exact(x.len().max(1)).enumerate();
    rows.map(|(i, row)| dot(row, x) + bias.get(i).copied().unwrap_or(0.0)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::Value;

    /// One token x = [1, 2], three experts of inner size 1; the scores choose experts 2 and 0.
    fn values() -> Vec<(&'static str, Value)> {
        vec![
            ("x", f32s(&[1, 1, 2], &[1.0, 2.0])),
            ("scores", f32s(&[1, 1, 3], &[1.0, -1.0, 2.0])),
            ("gate", f32s(&[3, 2], &[1.0, 0.5, 9.0, 9.0, -1.0, 1.0])),
            ("up", f32s(&[3, 2], &[1.0, 1.0, 9.0, 9.0, 0.5, 2.0])),
            ("down", f32s(&[6, 1], &[1.0, -1.0, 9.0, 9.0, 0.5, 0.25])),
            ("chosen", 2.into()),
        ]
    }

    /// Expected values: NumPy in float64.
    #[test]
    fn the_best_experts_are_mixed_by_their_scores() {
        let silu = |x: f64| x / (1.0 + (-x).exp());
        let (first, third) = (silu(2.0) * 3.0, silu(1.0) * 4.5);
        let share = 1.0 / (1.0 + 1f64.exp());
        let mixed = |a: f64, b: f64| [a * first + b * 0.5 * third, -a * first + b * 0.25 * third];
        near(&run(&Experts, values()).unwrap(), &mixed(share, 1.0 - share), 1e-6);
        let total = 1f64.exp() + (-1f64).exp() + 2f64.exp();
        let all = [values(), vec![("normalize", false.into())]].concat();
        near(&run(&Experts, all).unwrap(), &mixed(1f64.exp() / total, 2f64.exp() / total), 1e-6);
    }

    #[test]
    fn biases_limits_and_offsets_are_applied() {
        let more = vec![
            ("gate_bias", f32s(&[3], &[8.0, 0.0, -3.0])),
            ("up_bias", f32s(&[3], &[9.0, 0.0, -20.0])),
            ("down_bias", f32s(&[6], &[0.5, 1.0, 0.0, 0.0, 2.0, 4.0])),
            ("alpha", 1.5.into()),
            ("limit", 7.0.into()),
            ("up_offset", 1.0.into()),
        ];
        let glu = |gate: f64, up: f64| (up + 1.0) * gate / (1.0 + (-1.5 * gate).exp());
        let (first, third) = (glu(7.0, 7.0), glu(-2.0, -7.0));
        let share = 1.0 / (1.0 + 1f64.exp());
        let expected = [
            share * (first + 0.5) + (1.0 - share) * (0.5 * third + 2.0),
            share * (1.0 - first) + (1.0 - share) * (0.25 * third + 4.0),
        ];
        near(&run(&Experts, [values(), more].concat()).unwrap(), &expected, 1e-5);
    }

    #[test]
    fn weights_of_another_shape_are_refused_by_name() {
        let mut wrong = values();
        wrong[4].1 = iota(&[5, 1]);
        let error = run(&Experts, wrong).unwrap_err().to_string();
        assert!(error.starts_with("found down [5, 1], expected [6, 1]"), "{error}");
        let mut wrong = values();
        wrong[5].1 = 4.into();
        assert!(run(&Experts, wrong).is_err());
    }
}
