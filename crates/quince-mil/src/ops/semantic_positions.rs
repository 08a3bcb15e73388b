//! Semantic `add_positions` and `relative_bias`: where a token stands, as a vector that is learned.

use super::layout::{count, filled, result, result_shape};
use super::shape_rules::{merge, show};
use crate::op::FLOAT;
use crate::{Args, Dim, Op, Opset, Param, Result, Tensor, ValueType, bail};

/// See [`Op::doc`].
pub struct AddPositions;

impl Op for AddPositions {
    fn name(&self) -> &'static str {
        "add_positions"
    }

    fn doc(&self) -> &'static str {
        "x plus a row of `weight` for each token's position: token i of x [B, S, D] gets row i + `offset` of weight [P, D], \
         in a function with a cache that many tokens further."
    }

    fn params(&self) -> &'static [Param] {
        const {
            &[
                Param::new("x").types(FLOAT),
                Param::new("weight").constant().types(FLOAT),
                Param::new("offset").constant().or_int(0),
            ]
        }
    }

    fn since(&self) -> Opset {
        Opset::Semantic
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let (x, weight) = (args.ty("x")?, args.shape("weight")?);
        let ([batch, length, width], [_, columns]) = (&x.shape[..], weight) else {
            bail!("found x {} and weight {}, expected [B, S, D] and [P, D]", show(&x.shape), show(weight));
        };
        let width = merge(*width, *columns).map_err(|e| e.at("last axis of x and weight"))?;
        if args.int("offset")? < 0 {
            bail!("found the offset {}, expected 0 or more", args.int("offset")?);
        }
        result(x.dtype, vec![*batch, *length, width])
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let shape = result_shape(self, args)?;
        let (x, weight) = (args.tensor("x")?, args.tensor("weight")?);
        let [rows, width] = *weight.shape() else { bail!("found a weight {weight:?}, expected [P, D]") };
        let first = args.int("offset")? as usize;
        let length = shape[1];
        if first.checked_add(length).is_none_or(|end| end > rows) {
            bail!("found {length} tokens from position {first} on, expected at most {rows} positions");
        }
        let table = weight.rows(first..first + length)?.to_f64()?;
        let mut values = x.to_f64()?;
        for text in values.chunks_exact_mut((length * width).max(1)) {
            text.iter_mut().zip(&table).for_each(|(x, y)| *x += y);
        }
        Ok(vec![Tensor::from_f64(x.dtype(), shape, values)?])
    }
}

/// See [`Op::doc`].
pub struct RelativeBias;

impl Op for RelativeBias {
    fn name(&self) -> &'static str {
        "relative_bias"
    }

    fn doc(&self) -> &'static str {
        "What is added to scores for how far a key is from a query: [1, heads, S, S], for a text x [B, S, ..]. The row of \
         `weight` [buckets, heads] is that of the distance: half of the buckets are for keys after the query; of each \
         half, the first half are distances of their own, and the others grow with the logarithm up to `max_distance`. \
         Source: Raffel et al., T5, 2020, bidirectional."
    }

    fn params(&self) -> &'static [Param] {
        const {
            &[
                Param::new("x").types(FLOAT),
                Param::new("weight").constant().types(FLOAT),
                Param::new("max_distance").constant().or_int(128),
            ]
        }
    }

    fn since(&self) -> Opset {
        Opset::Semantic
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let (x, weight) = (args.shape("x")?, args.ty("weight")?);
        let ([_, length, ..], [buckets, heads]) = (x, &weight.shape[..]) else {
            bail!("found x {} and weight {}, expected [B, S, ..] and [buckets, heads]", show(x), show(&weight.shape));
        };
        if let Dim::Fixed(buckets) = *buckets {
            Buckets::new(buckets, args.int("max_distance")?)?;
        }
        result(weight.dtype, vec![1.into(), *heads, *length, *length])
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let shape = result_shape(self, args)?;
        let weight = args.tensor("weight")?;
        let [buckets, heads] = *weight.shape() else { bail!("found a weight {weight:?}, expected two axes") };
        let buckets = Buckets::new(buckets, args.int("max_distance")?)?;
        let (table, length) = (weight.to_f64()?, shape[2]);
        let mut out = filled(count(&shape)?, 0.0)?;
        for (i, value) in out.iter_mut().enumerate() {
            let (head, query, key) = (i / (length * length), i / length % length, i % length);
            *value = table[buckets.of(key as i64 - query as i64) * heads + head];
        }
        Ok(vec![Tensor::from_f64(weight.dtype(), shape, out)?])
    }
}

/// How distances are sorted into buckets.
#[derive(Clone, Copy, Debug)]
pub struct Buckets {
    /// Buckets for one direction.
    half: i64,
    max_distance: i64,
}

impl Buckets {
    /// `count` buckets, the last of each direction for `max_distance` and more.
    ///
    /// # Errors
    /// When there are fewer than four, or none is left for distances that share one.
    pub fn new(count: usize, max_distance: i64) -> Result<Buckets> {
        let half = i64::try_from(count / 2).unwrap_or(i64::MAX);
        if half < 2 || max_distance <= half / 2 || max_distance > i64::from(i32::MAX) {
            bail!(
                "found {count} buckets up to distance {max_distance}, expected at least 4, and distances beyond a fourth"
            );
        }
        Ok(Buckets { half, max_distance })
    }

    /// The bucket of a key that stands `distance` after the query. Logarithms are in float32, as where the weights were
    /// trained: which bucket a distance falls in depends on it.
    pub fn of(self, distance: i64) -> usize {
        let after = if distance > 0 { self.half } else { 0 };
        let far = distance.saturating_abs();
        let exact = self.half / 2;
        let bucket = match far < exact {
            true => far,
            false => {
                let share = (far as f32 / exact as f32).ln() / (self.max_distance as f32 / exact as f32).ln();
                exact + (share * (self.half - exact) as f32) as i64
            }
        };
        (after + bucket.min(self.half - 1)) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn each_token_gets_the_row_of_its_position() {
        let values = |offset: i32| {
            vec![("x", iota(&[2, 2, 1])), ("weight", f32s(&[3, 1], &[10.0, 20.0, 40.0])), ("offset", offset.into())]
        };
        assert_eq!(run(&AddPositions, values(1)).unwrap().to_f32().unwrap(), [20.0, 41.0, 22.0, 43.0]);
        assert!(run(&AddPositions, values(2)).is_err() && run(&AddPositions, values(-1)).is_err());
    }

    /// Expected values: transformers 5.23's `MPNetEncoder.relative_position_bucket` with 32 buckets.
    #[test]
    fn distances_fall_into_the_buckets_of_the_original() {
        let buckets = Buckets::new(32, 128).unwrap();
        let found: Vec<usize> = DISTANCES.iter().map(|&(distance, _)| buckets.of(distance)).collect();
        let expected: Vec<usize> = DISTANCES.iter().map(|&(_, bucket)| bucket).collect();
        assert_eq!(found, expected);
        assert!(Buckets::new(3, 128).is_err() && Buckets::new(32, 8).is_err());
    }

    const DISTANCES: &[(i64, usize)] = &[
        (-600, 15),
        (-128, 15),
        (-127, 15),
        (-91, 15),
        (-90, 14),
        (-64, 14),
        (-63, 13),
        (-46, 13),
        (-45, 12),
        (-33, 12),
        (-32, 12),
        (-31, 11),
        (-23, 11),
        (-22, 10),
        (-17, 10),
        (-16, 10),
        (-15, 9),
        (-12, 9),
        (-11, 8),
        (-9, 8),
        (-8, 8),
        (-7, 7),
        (-1, 1),
        (0, 0),
        (1, 17),
        (7, 23),
        (8, 24),
        (16, 26),
        (32, 28),
        (64, 30),
        (127, 31),
        (128, 31),
        (511, 31),
    ];

    #[test]
    fn the_bias_is_by_head_query_and_key() {
        let values = vec![("x", iota(&[1, 2, 3])), ("weight", iota(&[4, 2])), ("max_distance", 8.into())];
        let y = run(&RelativeBias, values).unwrap();
        // Distances 0, 1, -1, 0 are buckets 0, 3, 1, 0.
        assert_eq!((y.shape(), y.to_f32().unwrap()), (&[1, 2, 2, 2][..], vec![0.0, 6.0, 2.0, 0.0, 1.0, 7.0, 3.0, 1.0]));
    }
}
