//! `random_uniform`, `random_normal`, `random_bernoulli` and `random_categorical`: numbers that look random.
//!
//! They follow from the seed and from nothing else, so that a program gives the same results whenever it runs. They are
//! not the numbers that Core ML gives for the seed.

use super::elements::room;
use super::layout::{count, result};
use super::reshape::unknown;
use super::shape_rules::show;
use crate::op::FLOAT;
use crate::{Args, DType, Dim, Op, Param, Result, Tensor, ValueType, bail};

/// An operation of this file that takes a shape.
pub struct Random {
    name: &'static str,
    doc: &'static str,
    params: &'static [Param],
    /// The parameters of the distribution.
    parameters: [&'static str; 2],
    draw: fn(&mut Numbers, f64, f64) -> f64,
}

const SHAPE: Param = Param::new("shape");
const SEED: Param = Param::new("seed").constant().or_int(-1);

/// See [`Op::doc`].
pub const RANDOM_UNIFORM: Random = Random {
    name: "random_uniform",
    doc: "A tensor of this `shape` with numbers from `low` to `high`, each as likely as the other. They follow from \
          `seed`, and are not those that Core ML gives.",
    params: &[
        SHAPE,
        Param::new("low").constant().types(FLOAT).or_float(0.0),
        Param::new("high").constant().types(FLOAT).or_float(1.0),
        SEED,
    ],
    parameters: ["low", "high"],
    draw: |numbers, low, high| low + (high - low) * numbers.next(),
};

/// See [`Op::doc`].
pub const RANDOM_NORMAL: Random = Random {
    name: "random_normal",
    doc: "A tensor of this `shape` with numbers of a normal distribution. They follow from `seed`, and are not those \
          that Core ML gives.",
    params: &[
        SHAPE,
        Param::new("mean").constant().types(FLOAT).or_float(0.0),
        Param::new("stddev").constant().types(FLOAT).or_float(1.0),
        SEED,
    ],
    parameters: ["mean", "stddev"],
    // Box and Muller, 1958.
    draw: |numbers, mean, deviation| {
        let (radius, angle) = ((1.0 - numbers.next()).ln(), numbers.next());
        mean + deviation * (-2.0 * radius).sqrt() * (std::f64::consts::TAU * angle).cos()
    },
};

/// See [`Op::doc`].
pub const RANDOM_BERNOULLI: Random = Random {
    name: "random_bernoulli",
    doc: "A tensor of this `shape` with 1 where chance of probability `prob` has it, else 0. It follows from `seed`, and \
          is not what Core ML gives.",
    params: &[SHAPE, Param::new("prob").constant().types(FLOAT).or_float(0.5), SEED],
    parameters: ["prob", "prob"],
    draw: |numbers, probability, _| f64::from(numbers.next() < probability),
};

impl Op for Random {
    fn name(&self) -> &'static str {
        self.name
    }

    fn doc(&self) -> &'static str {
        self.doc
    }

    fn params(&self) -> &'static [Param] {
        self.params
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let shape = match (args.known("shape"), args.shape("shape")?) {
            (Some(shape), _) => sizes(&shape)?.into_iter().map(Dim::Fixed).collect(),
            (None, [Dim::Fixed(rank)]) => unknown(*rank)?,
            (None, other) => bail!("found a shape of shape {}, expected a vector of known length", show(other)),
        };
        result(self.dtype(args)?, shape)
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let shape = sizes(&args.tensor("shape")?)?;
        let [a, b] = [args.float(self.parameters[0])?, args.float(self.parameters[1])?];
        let mut numbers = Numbers::new(args)?;
        let n = count(&shape)?;
        let mut out = room(n)?;
        out.extend((0..n).map(|_| (self.draw)(&mut numbers, a, b)));
        Ok(vec![Tensor::from_f64(self.dtype(args)?, shape, out)?])
    }
}

impl Random {
    /// The element type of the result: that of the parameters of the distribution.
    fn dtype(&self, args: &Args) -> Result<DType> {
        let given = self.parameters.iter().find(|name| args.has(name));
        given.map_or(Ok(DType::F32), |name| args.dtype(name))
    }
}

fn sizes(shape: &Tensor) -> Result<Vec<usize>> {
    let sizes = shape.to_i64()?;
    if shape.rank() != 1 || sizes.iter().any(|&size| size < 0) {
        bail!("found the shape {sizes:?}, expected a vector of sizes");
    }
    Ok(sizes.into_iter().map(|size| size as usize).collect())
}

/// See [`Op::doc`].
pub struct RandomCategorical;

impl Op for RandomCategorical {
    fn name(&self) -> &'static str {
        "random_categorical"
    }

    fn doc(&self) -> &'static str {
        "`size` draws for each row of x, [.., C]: indices of its classes, [.., size], as likely as softmax of the row says \
         (`mode` logits) or the row itself (probs). They follow from `seed`, and are not those that Core ML gives."
    }

    fn params(&self) -> &'static [Param] {
        const {
            &[
                Param::new("x").types(FLOAT),
                Param::new("mode").constant().or_str("logits"),
                Param::new("size").constant().or_int(1),
                SEED,
            ]
        }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let (x, size) = (args.ty("x")?, args.int("size")?);
        if !matches!(args.str("mode")?, "logits" | "probs") {
            bail!("found the mode {}, expected logits or probs", args.str("mode")?);
        }
        match (x.shape.split_last(), usize::try_from(size)) {
            (Some((_, rows)), Ok(size)) => result(x.dtype, [rows, &[Dim::Fixed(size)]].concat()),
            _ => bail!("found x {x} and size {size}, expected classes along an axis and draws"),
        }
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        let shape = super::layout::result_shape(self, args)?;
        let x = args.tensor("x")?;
        let (classes, draws) = (x.shape().last().copied().unwrap_or(0), shape.last().copied().unwrap_or(0));
        let logits = args.str("mode")? == "logits";
        if classes == 0 && count(&shape)? > 0 {
            bail!("found x {x:?}, expected classes");
        }
        let mut numbers = Numbers::new(args)?;
        let mut out = room(count(&shape)?)?;
        for row in x.to_f64()?.chunks_exact(classes.max(1)) {
            let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = row.iter().map(|&v| if logits { (v - most).exp() } else { v.max(0.0) }).collect();
            let total: f64 = weights.iter().sum();
            for _ in 0..draws {
                let mut left = numbers.next() * total;
                let drawn = weights.iter().position(|weight| {
                    left -= weight;
                    left < 0.0
                });
                out.push(drawn.unwrap_or(classes - 1) as f64);
            }
        }
        Ok(vec![Tensor::from_f64(x.dtype(), shape, out)?])
    }
}

/// Numbers from 0 to below 1: SplitMix64 (Steele, Lea and Flood, 2014).
struct Numbers {
    state: u64,
}

impl Numbers {
    fn new(args: &Args) -> Result<Numbers> {
        Ok(Numbers { state: args.int("seed")? as u64 })
    }

    fn next(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ z >> 31) >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::Value;

    fn draw(op: &dyn Op, rest: Vec<(&'static str, Value)>) -> Vec<f64> {
        run(op, [vec![("shape", [100, 100].into())], rest].concat()).unwrap().to_f64().unwrap()
    }

    fn moments(x: &[f64]) -> (f64, f64) {
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        (mean, x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / x.len() as f64)
    }

    #[test]
    fn numbers_have_their_distribution() {
        let uniform = draw(&RANDOM_UNIFORM, vec![("low", (-1f32).into()), ("high", 3f32.into())]);
        assert!(uniform.iter().all(|v| (-1.0..3.0).contains(v)));
        let near = |found: (f64, f64), mean: f64, variance: f64| {
            assert!((found.0 - mean).abs() < 0.05 && (found.1 - variance).abs() < 0.08, "{found:?}");
        };
        near(moments(&uniform), 1.0, 16.0 / 12.0);
        near(moments(&draw(&RANDOM_NORMAL, vec![("mean", 2f32.into())])), 2.0, 1.0);
        near(moments(&draw(&RANDOM_BERNOULLI, vec![("prob", 0.25f32.into())])), 0.25, 0.1875);
        let values = vec![("x", f32s(&[1, 3], &[1.0, 2.0, 1.0])), ("mode", "probs".into()), ("size", 8000.into())];
        let drawn = run(&RandomCategorical, values).unwrap();
        assert_eq!(drawn.shape(), [1, 8000]);
        near(moments(&drawn.to_f64().unwrap()), 1.0, 0.5);
    }

    #[test]
    fn a_seed_gives_the_same_numbers() {
        let seeded = |seed: i32| draw(&RANDOM_NORMAL, vec![("seed", seed.into())]);
        assert_eq!(seeded(5), seeded(5));
        assert_ne!(seeded(5), seeded(6));
        assert!(run(&RANDOM_UNIFORM, vec![("shape", [-1].into())]).is_err());
        let none = vec![("x", f32s(&[1, 0], &[]))];
        assert!(run(&RandomCategorical, none).is_err());
    }
}
