//! Semantic `split_heads`, `rope` and `attention`: a layer's attention without layout, cache or precision.

use super::attention::{dot, softmax, weighted_sum};
use super::gather::integers;
use super::layout::{count, filled, result, result_shape};
use super::shape_rules::{merge, show};
use crate::op::FLOAT;
use crate::{Args, Dim, Op, Opset, Param, Result, Tensor, ValueType, bail};

/// See [`Op::doc`].
pub struct SplitHeads;

impl Op for SplitHeads {
    fn name(&self) -> &'static str {
        "split_heads"
    }

    fn doc(&self) -> &'static str {
        "The last axis as heads: x [B, S, H·D] becomes [B, S, H, D]."
    }

    fn params(&self) -> &'static [Param] {
        const { &[Param::new("x").types(FLOAT), Param::new("heads").constant()] }
    }

    fn since(&self) -> Opset {
        Opset::Semantic
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let x = args.ty("x")?;
        let [batch, length, width] = x.shape[..] else { bail!("found x {}, expected [B, S, H·D]", show(&x.shape)) };
        let heads = match (usize::try_from(args.int("heads")?), width) {
            (Ok(heads @ 1..), Dim::Unknown) => [Dim::Fixed(heads), Dim::Unknown],
            (Ok(heads @ 1..), Dim::Fixed(width)) if width % heads == 0 => [heads.into(), (width / heads).into()],
            _ => bail!("x {} does not split in {} heads", show(&x.shape), args.int("heads")?),
        };
        result(x.dtype, [&[batch, length], &heads[..]].concat())
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let shape = result_shape(self, args)?;
        Ok(vec![args.tensor("x")?.reshape(shape)?])
    }
}

/// See [`Op::doc`].
pub struct Rope;

impl Op for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn doc(&self) -> &'static str {
        "Rotary position embedding: pairs of each head are turned by an angle that grows with the position. x: [B, S, H, \
         D]; token i is at `position` + i. Pair j is turned by position · inverse_frequencies[j], cosine and sine times \
         `attention_scaling`. With R = 2 · the number of frequencies, the pairs are (j, j + R/2), or (2j, 2j + 1) if \
         `interleaved`; elements from R on pass through. Texts of more than `long_from` tokens turn by \
         `long_inverse_frequencies` where they are given. Source: Su et al., RoFormer, 2021."
    }

    fn params(&self) -> &'static [Param] {
        const {
            &[
                Param::new("x").types(FLOAT),
                Param::new("inverse_frequencies").constant().types(FLOAT),
                Param::new("attention_scaling").constant().or_float(1.0),
                Param::new("interleaved").constant().or_bool(false),
                Param::new("position").optional(),
                Param::new("long_inverse_frequencies").constant().optional().types(FLOAT),
                Param::new("long_from").constant().or_int(0),
            ]
        }
    }

    fn since(&self) -> Opset {
        Opset::Semantic
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let x = args.ty("x")?;
        let frequencies = args.shape("inverse_frequencies")?;
        let ([_, _, _, width], [pairs]) = (&x.shape[..], frequencies) else {
            let frequencies = show(frequencies);
            bail!("found x {} and inverse_frequencies {frequencies}, expected [B, S, H, D] and [R/2]", show(&x.shape));
        };
        if let (Dim::Fixed(width), Dim::Fixed(pairs)) = (*width, *pairs)
            && pairs > width / 2
        {
            bail!("{pairs} frequencies turn {pairs} pairs, but a head has {width} elements");
        }
        if args.has("position") {
            let position = args.ty("position")?;
            if !position.dtype.is_int() || position.shape.len() > 1 || !position.shape.iter().all(|n| n.fits(1.into()))
            {
                bail!("found a position of type {position}, expected one integer");
            }
        }
        if args.has("long_inverse_frequencies") && args.shape("long_inverse_frequencies")? != frequencies {
            let (long, short) = (show(args.shape("long_inverse_frequencies")?), show(frequencies));
            bail!("found long_inverse_frequencies {long}, expected {short} as inverse_frequencies");
        }
        args.int("long_from")?;
        args.float("attention_scaling")?;
        args.bool("interleaved")?;
        result(x.dtype, x.shape.clone())
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let shape = result_shape(self, args)?;
        let x = args.tensor("x")?;
        let long = args.has("long_inverse_frequencies") && shape[1] as i64 > args.int("long_from")?;
        let frequencies = if long { "long_inverse_frequencies" } else { "inverse_frequencies" };
        let frequencies = args.tensor(frequencies)?.to_f64()?;
        let (scaling, interleaved) = (args.float("attention_scaling")?, args.bool("interleaved")?);
        let first = if args.has("position") { args.int("position")? } else { 0 };
        let (length, width) = (shape[1], shape[3]);
        let mut values = x.to_f64()?;
        for (token, heads) in values.chunks_exact_mut((shape[2] * width).max(1)).enumerate() {
            let position = first as f64 + (token % length) as f64;
            for head in heads.chunks_exact_mut(width) {
                for (j, frequency) in frequencies.iter().enumerate() {
                    let (a, b) = if interleaved { (2 * j, 2 * j + 1) } else { (j, j + frequencies.len()) };
                    let (sin, cos) = (position * frequency).sin_cos();
                    let (x, y) = (head[a], head[b]);
                    head[a] = scaling * (x * cos - y * sin);
                    head[b] = scaling * (y * cos + x * sin);
                }
            }
        }
        Ok(vec![Tensor::from_f64(x.dtype(), shape, values)?])
    }
}

/// See [`Op::doc`].
pub struct Attention;

impl Op for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn doc(&self) -> &'static str {
        "Each query's mean of the values, weighted by the softmax of `scale` · query · key. query: [B, S, Hq, D], key: [B, \
         S, Hk, D], value: [B, S, Hk, V]; Hq is a multiple of Hk and query head h uses key head h / (Hq / Hk). If \
         `causal`, query i sees keys j <= i. With a `window` it sees only keys less than `window` away. With a `softcap` \
         c, scores s become c · tanh(s / c). `bias` [1, Hq, S, S] is added to scores. `sinks` [Hq] are further scores, one \
         per head, that take their share of the softmax and give nothing. `padding` [B, S] is 0 for keys that nobody sees, \
         1 for others; a query that sees none gives zeros. `layer` is the number of the cache layer that a lowering with a cache uses. The \
         result is [B, S, Hq·V]."
    }

    fn params(&self) -> &'static [Param] {
        const {
            &[
                Param::new("query").types(FLOAT),
                Param::new("key").types(FLOAT),
                Param::new("value").types(FLOAT),
                Param::new("scale").constant().types(FLOAT),
                Param::new("causal").constant().or_bool(true),
                Param::new("window").constant().or_int(0),
                Param::new("softcap").constant().or_float(0.0),
                Param::new("sinks").constant().optional().types(FLOAT),
                Param::new("bias").optional().types(FLOAT),
                Param::new("padding").optional(),
                Param::new("layer").constant().or_int(0),
            ]
        }
    }

    fn since(&self) -> Opset {
        Opset::Semantic
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let (query, key, value) = (args.shape("query")?, args.shape("key")?, args.shape("value")?);
        let ([b, s, heads, d], [bk, sk, key_heads, dk], [bv, sv, value_heads, depth]) = (query, key, value) else {
            let (q, k, v) = (show(query), show(key), show(value));
            bail!("found query {q}, key {k}, value {v}, expected four axes each: batch, length, heads, size");
        };
        let shared = |axis: &str, dims: &[Dim]| -> Result<Dim> {
            let merged = dims.iter().try_fold(Dim::Unknown, |all, dim| merge(all, *dim));
            merged.map_err(|e| e.at(format!("{axis} of query, key and value")))
        };
        let (batch, length) = (shared("batch", &[*b, *bk, *bv])?, shared("length", &[*s, *sk, *sv])?);
        shared("size of query and key heads", &[*d, *dk])?;
        let key_heads = shared("number of key and value heads", &[*key_heads, *value_heads])?;
        if let (Dim::Fixed(heads), Dim::Fixed(key_heads)) = (*heads, key_heads)
            && (key_heads == 0 || heads % key_heads != 0)
        {
            bail!("{heads} query heads are not a multiple of {key_heads} key heads");
        }
        if args.has("sinks") && !matches!(args.shape("sinks")?, [n] if n.fits(*heads)) {
            bail!("found sinks {}, expected [{heads}]", show(args.shape("sinks")?));
        }
        if args.has("bias") && !matches!(args.shape("bias")?, [one, n, ..] if one.fits(1.into()) && n.fits(*heads)) {
            bail!("found a bias {}, expected [1, {heads}, S, S]", show(args.shape("bias")?));
        }
        if args.has("padding") && integers(args, "padding")?.len() != 2 {
            bail!("found padding {}, expected [B, S]", show(args.shape("padding")?));
        }
        Scores::new(args)?;
        args.int("layer")?;
        let width = match (*heads, *depth) {
            (Dim::Fixed(heads), Dim::Fixed(depth)) => Dim::Fixed(heads.saturating_mul(depth)),
            _ => Dim::Unknown,
        };
        result(args.dtype("query")?, vec![batch, length, width])
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let shape = result_shape(self, args)?;
        let (query, key, value) = (args.tensor("query")?, args.tensor("key")?, args.tensor("value")?);
        let (&[_, length, heads, width], &[_, _, key_heads, depth]) = (query.shape(), value.shape()) else {
            bail!("found {query:?} and {value:?}, expected four axes each");
        };
        let scores = Scores::new(args)?;
        let sinks = args.opt_tensor("sinks")?.map(|sinks| sinks.to_f64()).transpose()?;
        let bias = Bias::new(args, heads, length)?;
        let padding = args.opt_ints("padding")?.unwrap_or_else(|| vec![1; query.shape()[0] * length]);
        if padding.len() != query.shape()[0] * length {
            bail!("found padding of {} numbers, expected one for each token", padding.len());
        }
        let (q, k, v) = (query.to_f64()?, key.to_f64()?, value.to_f64()?);
        let mut out = filled(count(&shape)?, 0.0)?;
        for (row, out) in out.chunks_exact_mut(depth.max(1)).enumerate() {
            let (token, head) = (row / heads, row % heads);
            let (batch, i) = (token / length, token % length);
            let key_row = |j: usize| (batch * length + j) * key_heads + head / (heads / key_heads);
            let seen: Vec<usize> = scores.seen(i, length).filter(|j| padding[batch * length + j] != 0).collect();
            let q = &q[row * width..][..width];
            let score = |&j: &usize| scores.score(dot(q, &k[key_row(j) * width..][..width])) + bias.of(head, i, j);
            let mut weights: Vec<f64> = seen.iter().map(score).collect();
            softmax(&mut weights, sinks.as_ref().map(|sinks| sinks[head]));
            weighted_sum(&weights, |i| &v[key_row(seen[i]) * depth..][..depth], out);
        }
        Ok(vec![Tensor::from_f64(query.dtype(), shape, out)?])
    }
}

/// What is added to the score of a head, a query and a key.
struct Bias {
    values: Option<Vec<f64>>,
    length: usize,
}

impl Bias {
    fn new(args: &Args, heads: usize, length: usize) -> Result<Bias> {
        let Some(bias) = args.opt_tensor("bias")? else { return Ok(Bias { values: None, length }) };
        if *bias.shape() != [1, heads, length, length] {
            bail!("found a bias {bias:?}, expected [1, {heads}, {length}, {length}]");
        }
        Ok(Bias { values: Some(bias.to_f64()?), length })
    }

    fn of(&self, head: usize, query: usize, key: usize) -> f64 {
        self.values.as_ref().map_or(0.0, |values| values[(head * self.length + query) * self.length + key])
    }
}

/// Which keys a query sees, and what the products with them become before the softmax.
struct Scores {
    scale: f64,
    causal: bool,
    window: usize,
    softcap: f64,
}

impl Scores {
    fn new(args: &Args) -> Result<Scores> {
        let Ok(window) = usize::try_from(args.int("window")?) else {
            bail!("found a window of {}, expected 0 or more", args.int("window")?);
        };
        let softcap = args.float("softcap")?;
        if softcap < 0.0 || !softcap.is_finite() {
            bail!("found a softcap of {softcap}, expected 0 or more");
        }
        Ok(Scores { scale: args.float("scale")?, causal: args.bool("causal")?, window, softcap })
    }

    /// The keys that query `i` of `length` sees.
    fn seen(&self, i: usize, length: usize) -> std::ops::Range<usize> {
        let end = if self.causal { i + 1 } else { length };
        match self.window {
            0 => 0..end,
            window => (i + 1).saturating_sub(window)..end.min(i.saturating_add(window)),
        }
    }

    fn score(&self, product: f64) -> f64 {
        let score = self.scale * product;
        if self.softcap > 0.0 { self.softcap * (score / self.softcap).tanh() } else { score }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::{DType, Value};

    #[test]
    fn the_last_axis_splits_in_heads() {
        let y = run(&SplitHeads, vec![("x", iota(&[1, 2, 6])), ("heads", 3.into())]).unwrap();
        assert_eq!(y.shape(), [1, 2, 3, 2]);
        assert!(run(&SplitHeads, vec![("x", iota(&[1, 2, 6])), ("heads", 4.into())]).is_err());
        assert!(run(&SplitHeads, vec![("x", iota(&[1, 2, 6])), ("heads", 0.into())]).is_err());
    }

    fn rope(x: Value, interleaved: bool, position: i32) -> Vec<f32> {
        let quarter = std::f32::consts::FRAC_PI_2;
        let values = vec![
            ("x", x),
            ("inverse_frequencies", f32s(&[2], &[quarter, 0.0])),
            ("attention_scaling", 2.0.into()),
            ("interleaved", interleaved.into()),
            ("position", vec![position].into()),
        ];
        run(&Rope, values).unwrap().to_f32().unwrap().into_iter().map(|x| (x * 1e4).round() / 1e4).collect()
    }

    /// The first pair turns by a quarter per position, the second does not turn, the fifth element is outside.
    #[test]
    fn pairs_turn_with_the_position() {
        let x = || f32s(&[1, 2, 1, 5], &[1., 2., 3., 4., 5., 1., 2., 3., 4., 5.]);
        assert_eq!(rope(x(), false, 0), [2., 4., 6., 8., 5., -6., 4., 2., 8., 5.]);
        assert_eq!(rope(x(), true, 0), [2., 4., 6., 8., 5., -4., 2., 6., 8., 5.]);
        assert_eq!(rope(x(), false, 1), [-6., 4., 2., 8., 5., -2., 4., -6., 8., 5.]);
    }

    #[test]
    fn more_frequencies_than_pairs_are_refused() {
        let entries = vec![("x", typed(DType::F16, &[1, -1, 1, 4])), ("inverse_frequencies", typed(DType::F32, &[3]))];
        assert!(inferred(&Rope, entries).is_err());
    }

    /// One head of size 1 whose keys are all 0: every key that is seen has the same weight, so that the result counts
    /// them. Values are 1, 10, 100, 1000.
    fn counted(rest: Vec<(&'static str, Value)>) -> Vec<f32> {
        let v = f32s(&[1, 4, 1, 1], &[1.0, 10.0, 100.0, 1000.0]);
        let zero = || f32s(&[1, 4, 1, 1], &[0.0; 4]);
        let mut values = vec![("query", zero()), ("key", zero()), ("value", v), ("scale", 1.0.into())];
        values.extend(rest);
        run(&Attention, values).unwrap().to_f32().unwrap()
    }

    #[test]
    fn windows_and_sinks_decide_what_is_seen() {
        assert_eq!(counted(vec![]), [1.0, 5.5, 37.0, 277.75]);
        assert_eq!(counted(vec![("window", 2.into())]), [1.0, 5.5, 55.0, 550.0]);
        assert_eq!(counted(vec![("causal", false.into())]), [277.75; 4]);
        assert_eq!(counted(vec![("causal", false.into()), ("window", 2.into())]), [5.5, 37.0, 370.0, 550.0]);
        // A sink of score 0 counts as one more key whose value is 0.
        assert_eq!(counted(vec![("sinks", f32s(&[1], &[0.0]))]), [0.5, 11.0 / 3.0, 27.75, 222.2]);
        assert_eq!(counted(vec![("sinks", f32s(&[1], &[1e30])), ("window", 1.into())]), [0.0; 4]);
    }

    #[test]
    fn padding_is_not_seen_and_a_bias_is_added() {
        let padding: Value = Tensor::from_vec([1, 4], vec![0i32, 1, 1, 0]).unwrap().into();
        assert_eq!(counted(vec![("padding", padding)]), [0.0, 10.0, 55.0, 55.0]);
        // The second key counts three times for the last query.
        let mut bias = [0.0f32; 16];
        bias[13] = 3.0f32.ln();
        let found = counted(vec![("bias", f32s(&[1, 1, 4, 4], &bias))]);
        assert!((found[3] - 1131.0 / 6.0).abs() < 1e-3 && found[..3] == [1.0, 5.5, 37.0], "{found:?}");
        assert!(run(&Attention, vec![("bias", f32s(&[1, 1, 4, 3], &bias[..12]))]).is_err());
    }

    #[test]
    fn long_texts_turn_by_frequencies_of_their_own() {
        let turned = |tokens: usize| {
            let x = f32s(&[1, tokens, 1, 2], &[1.0, 0.0].repeat(tokens));
            let (short, long) = (f32s(&[1], &[0.0]), f32s(&[1], &[std::f32::consts::PI]));
            let values = vec![("x", x), ("inverse_frequencies", short), ("long_inverse_frequencies", long)];
            let values = [values, vec![("long_from", 2.into())]].concat();
            run(&Rope, values).unwrap().to_f32().unwrap()[2].round()
        };
        assert_eq!((turned(2), turned(3)), (1.0, -1.0));
    }

    /// Expected values: NumPy in float64, two query heads on one key head, softcap 2, scale 0.5.
    #[test]
    fn scores_are_capped_and_heads_shared() {
        let values = vec![
            ("query", f32s(&[1, 2, 2, 1], &[1.0, -2.0, 3.0, 4.0])),
            ("key", f32s(&[1, 2, 1, 1], &[1.5, -0.5])),
            ("value", f32s(&[1, 2, 1, 2], &[1.0, 2.0, 3.0, 5.0])),
            ("scale", 0.5.into()),
            ("softcap", 2.0.into()),
        ];
        near(&run(&Attention, values).unwrap(), &EXPECTED_CAPPED, 1e-6);
    }

    const EXPECTED_CAPPED: [f64; 8] =
        [1.0, 2.0, 1.0, 2.0, 1.176479917212691, 2.2647198758190363, 1.1219325191069722, 2.1828987786604586];
}
