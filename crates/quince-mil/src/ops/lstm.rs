//! `lstm`: long short-term memory, step by step along the first axis.

use super::attention::dot;
use super::layout::{count, filled, fixed, result};
use super::recurrent::{activation, expect, hidden};
use super::shape_rules::show;
use crate::op::FLOAT;
use crate::{Args, Dim, Op, Param, Result, Tensor, ValueType, bail};

/// See [`Op::doc`].
pub struct Lstm;

impl Op for Lstm {
    fn name(&self) -> &'static str {
        "lstm"
    }

    fn doc(&self) -> &'static str {
        "Long short-term memory. x: [S, B, I], initial_h and initial_c: [B, D·H] with D = 2 if `direction` is \
         `bidirectional`, weight_ih: [4·H, I], weight_hh: [4·H, H], bias: [4·H], in the order of the gates input i, \
         forget f, output o, cell z; peephole: [3·H] for i, f, o. c = f · c + i · z, held within ±clip if given, and h = \
         o · activation(c). Results: h of all steps [S, B, D·H], or of the last one [1, B, D·H] unless \
         `output_sequence`, the last h and the last c, [B, D·H]. The steps are in the order of x, but where `direction` is \
         `reverse` in the order they are made. Source: Hochreiter and Schmidhuber, 1997."
    }

    fn params(&self) -> &'static [Param] {
        const {
            &[
                Param::new("x").types(FLOAT),
                Param::new("initial_h").types(FLOAT),
                Param::new("initial_c").types(FLOAT),
                Param::new("weight_ih").constant().types(FLOAT),
                Param::new("weight_hh").constant().types(FLOAT),
                Param::new("bias").constant().optional().types(FLOAT),
                Param::new("peephole").constant().optional().types(FLOAT),
                Param::new("weight_ih_back").constant().optional().types(FLOAT),
                Param::new("weight_hh_back").constant().optional().types(FLOAT),
                Param::new("bias_back").constant().optional().types(FLOAT),
                Param::new("peephole_back").constant().optional().types(FLOAT),
                Param::new("direction").constant().or_str("forward"),
                Param::new("output_sequence").constant().or_bool(false),
                Param::new("recurrent_activation").constant().or_str("sigmoid"),
                Param::new("cell_activation").constant().or_str("tanh"),
                Param::new("activation").constant().or_str("tanh"),
                Param::new("clip").constant().optional().types(FLOAT),
            ]
        }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let x = args.ty("x")?;
        let [steps, batch, inputs] = x.shape[..] else { bail!("found x {}, expected [S, B, I]", show(&x.shape)) };
        let directions = directions(args)?;
        let hidden = hidden(args, 4)?;
        for direction in directions {
            direction.check(args, hidden, inputs)?;
        }
        Functions::new(args)?;
        let state = vec![batch, Dim::Fixed(hidden.saturating_mul(directions.len()))];
        expect(args, "initial_h", &state)?;
        expect(args, "initial_c", &state)?;
        let steps = if args.bool("output_sequence")? { steps } else { Dim::Fixed(1) };
        let mut types = result(x.dtype, [&[steps], &state[..]].concat())?;
        for _ in 0..2 {
            types.append(&mut result(x.dtype, state.clone())?);
        }
        Ok(types)
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        self.infer(args)?;
        let x = args.tensor("x")?;
        let &[steps, batch, inputs] = x.shape() else { bail!("found x {x:?}, expected [S, B, I]") };
        let (directions, hidden, functions) = (directions(args)?, hidden(args, 4)?, Functions::new(args)?);
        let values = x.to_f64()?;
        let (mut h, mut c) = (args.tensor("initial_h")?.to_f64()?, args.tensor("initial_c")?.to_f64()?);
        let width = directions.len() * hidden;
        let mut all = filled(count(&[steps, batch, width])?, 0.0)?;
        for (d, direction) in directions.iter().enumerate() {
            let layer = Layer::new(args, direction, hidden)?;
            for i in 0..steps {
                let step = if direction.backwards { steps - 1 - i } else { i };
                // Both directions together are in the order of x, one alone in the order of its steps.
                let to = if directions.len() > 1 { step } else { i };
                for row in 0..batch {
                    let x = &values[(step * batch + row) * inputs..][..inputs];
                    let at = row * width + d * hidden;
                    layer.step(&functions, x, &mut h[at..at + hidden], &mut c[at..at + hidden])?;
                    all[to * batch * width + at..][..hidden].copy_from_slice(&h[at..at + hidden]);
                }
            }
        }
        let first = match args.bool("output_sequence")? {
            true => Tensor::from_f64(x.dtype(), [steps, batch, width], all)?,
            false => Tensor::from_f64(x.dtype(), [1, batch, width], h.clone())?,
        };
        let last = |values| Tensor::from_f64(x.dtype(), [batch, width], values);
        Ok(vec![first, last(h)?, last(c)?])
    }
}

/// A way through the steps, and the parameters that belong to it.
struct Direction {
    backwards: bool,
    weight_ih: &'static str,
    weight_hh: &'static str,
    bias: &'static str,
    peephole: &'static str,
}

const FORWARD: Direction =
    Direction { backwards: false, weight_ih: "weight_ih", weight_hh: "weight_hh", bias: "bias", peephole: "peephole" };
const REVERSE: Direction = Direction { backwards: true, ..FORWARD };
const BACK: Direction = Direction {
    backwards: true,
    weight_ih: "weight_ih_back",
    weight_hh: "weight_hh_back",
    bias: "bias_back",
    peephole: "peephole_back",
};

fn directions(args: &Args) -> Result<&'static [Direction]> {
    Ok(match args.str("direction")? {
        "forward" => const { &[FORWARD] },
        "reverse" => const { &[REVERSE] },
        "bidirectional" => const { &[FORWARD, BACK] },
        other => bail!("found the direction {other}, expected forward, reverse or bidirectional"),
    })
}

impl Direction {
    fn check(&self, args: &Args, hidden: usize, inputs: Dim) -> Result<()> {
        let gates = Dim::Fixed(4 * hidden);
        expect(args, self.weight_ih, &[gates, inputs])?;
        expect(args, self.weight_hh, &fixed(&[4 * hidden, hidden]))?;
        if args.has(self.bias) {
            expect(args, self.bias, &[gates])?;
        }
        if args.has(self.peephole) {
            expect(args, self.peephole, &fixed(&[3 * hidden]))?;
        }
        Ok(())
    }
}

/// What is applied to sums and to the memory.
struct Functions {
    gate: fn(f64) -> f64,
    cell: fn(f64) -> f64,
    out: fn(f64) -> f64,
    clip: f64,
}

impl Functions {
    fn new(args: &Args) -> Result<Functions> {
        let clip = if args.has("clip") { args.float("clip")? } else { f64::INFINITY };
        if clip.is_nan() || clip < 0.0 {
            bail!("found clip {clip}, expected 0 or more");
        }
        let (gate, cell) = (activation(args, "recurrent_activation")?, activation(args, "cell_activation")?);
        Ok(Functions { gate, cell, out: activation(args, "activation")?, clip })
    }
}

/// The parameters of one direction.
struct Layer {
    hidden: usize,
    weight_ih: Vec<f64>,
    weight_hh: Vec<f64>,
    bias: Vec<f64>,
    peephole: Vec<f64>,
}

impl Layer {
    fn new(args: &Args, names: &Direction, hidden: usize) -> Result<Layer> {
        let optional = |name: &str, len: usize| match args.opt_tensor(name)? {
            Some(values) => values.to_f64(),
            None => filled(len, 0.0),
        };
        Ok(Layer {
            hidden,
            weight_ih: args.tensor(names.weight_ih)?.to_f64()?,
            weight_hh: args.tensor(names.weight_hh)?.to_f64()?,
            bias: optional(names.bias, 4 * hidden)?,
            peephole: optional(names.peephole, 3 * hidden)?,
        })
    }

    /// One step of one row: `h` and `c` become what they are after it.
    fn step(&self, functions: &Functions, x: &[f64], h: &mut [f64], c: &mut [f64]) -> Result<()> {
        let Functions { gate, cell, out, clip } = functions;
        let n = self.hidden;
        let mut sums = filled(4 * n, 0.0)?;
        for (row, sum) in sums.iter_mut().enumerate() {
            let from_x = dot(&self.weight_ih[row * x.len()..][..x.len()], x);
            *sum = self.bias[row] + from_x + dot(&self.weight_hh[row * n..][..n], h);
        }
        for j in 0..n {
            let i = gate(sums[j] + self.peephole[j] * c[j]);
            let f = gate(sums[n + j] + self.peephole[n + j] * c[j]);
            c[j] = (f * c[j] + i * cell(sums[3 * n + j])).clamp(-clip, *clip);
            h[j] = gate(sums[2 * n + j] + self.peephole[2 * n + j] * c[j]) * out(c[j]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::Value;

    /// Two steps of one row, one input, two hidden values; weights are multiples of 0.1.
    fn lstm(direction: &str, directions: usize, rest: Vec<(&'static str, Value)>) -> Result<Vec<Tensor>> {
        let tenths = |shape: &[usize], from: i32| {
            let n = shape.iter().product::<usize>() as i32;
            f32s(shape, &(from..from + n).map(|i| i as f32 * 0.1).collect::<Vec<_>>())
        };
        let values = vec![
            ("x", f32s(&[2, 1, 1], &[1.0, -2.0])),
            ("initial_h", tenths(&[1, 2 * directions], 1)),
            ("initial_c", tenths(&[1, 2 * directions], -1)),
            ("weight_ih", tenths(&[8, 1], -4)),
            ("weight_hh", tenths(&[8, 2], -8)),
            ("bias", tenths(&[8], -3)),
            ("direction", direction.into()),
            ("output_sequence", true.into()),
        ];
        run_all(&Lstm, &args(&Lstm, [values, rest].concat()))
    }

    /// Expected values: the formulas in NumPy, float64.
    #[test]
    fn steps_follow_each_other() {
        let y = lstm("forward", 1, vec![]).unwrap();
        assert_eq!((y[0].shape(), y[1].shape(), y[2].shape()), (&[2, 1, 2][..], &[1, 2][..], &[1, 2][..]));
        near(&y[0], &EXPECTED_H, 1e-6);
        near(&y[1], &EXPECTED_H[2..], 1e-6);
        near(&y[2], &EXPECTED_C, 1e-6);
        near(&lstm("reverse", 1, vec![]).unwrap()[0], &EXPECTED_REVERSE, 1e-6);
    }

    const EXPECTED_H: [f64; 4] = [0.0637316584598589, 0.14213600324046424, 0.0345040996785511, 0.04968063212807445];
    const EXPECTED_C: [f64; 2] = [0.06537706682204314, 0.09698737796239598];
    const EXPECTED_REVERSE: [f64; 4] =
        [-0.01706619438031287, -4.3369104528728105e-09, 0.07259445620513204, 0.12809653782751312];

    #[test]
    fn both_directions_need_both_weights() {
        assert!(lstm("bidirectional", 2, vec![]).is_err() && lstm("sideways", 1, vec![]).is_err());
        let back = vec![("weight_ih_back", iota(&[8, 1])), ("weight_hh_back", iota(&[8, 2]))];
        let y = lstm("bidirectional", 2, back).unwrap();
        let both = y[0].to_f32().unwrap();
        // The forward half is that of one direction alone.
        assert_eq!(both[..2], lstm("forward", 1, vec![]).unwrap()[0].to_f32().unwrap()[..2]);
        assert!(lstm("forward", 1, vec![("peephole", iota(&[5]))]).is_err());
    }
}
