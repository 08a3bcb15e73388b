//! `gru` and `rnn`: recurrent layers, step by step along the first axis; and what they share with `lstm`.

use super::attention::dot;
use super::blockwise::fixed_shape;
use super::layout::{count, filled, fixed, result};
use super::shape_rules::show;
use crate::op::FLOAT;
use crate::{Args, Dim, Op, Param, Result, Tensor, ValueType, bail};

/// See [`Op::doc`].
pub struct Gru;

impl Op for Gru {
    fn name(&self) -> &'static str {
        "gru"
    }

    fn doc(&self) -> &'static str {
        "Gated recurrent unit. x: [S, B, I], initial_h: [B, H], weight_ih: [3·H, I], weight_hh: [3·H, H], bias and \
         input_bias: [3·H], in the order of the gates reset r, output o, update z. r and z are \
         recurrent_activation(Wᵢ·x + input_bias + Wₕ·h + bias), o = activation(Wᵢ·x + input_bias + Wₕ·(r · h) + bias), \
         with `reset_after` activation(Wᵢ·x + input_bias + r · (Wₕ·h + bias)); h becomes (1 - z) · o + z · h. Results: h of \
         all steps in the order they are made (`direction` reverse begins with the last of x) [S, B, H], or of the last \
         one [1, B, H] unless `output_sequence`; the last h, [B, H]. Source: Cho et al., 2014."
    }

    fn params(&self) -> &'static [Param] {
        const {
            &[
                Param::new("x").types(FLOAT),
                Param::new("initial_h").types(FLOAT),
                Param::new("weight_ih").constant().types(FLOAT),
                Param::new("weight_hh").constant().types(FLOAT),
                Param::new("bias").constant().optional().types(FLOAT),
                Param::new("direction").constant().or_str("forward"),
                Param::new("output_sequence").constant().or_bool(false),
                Param::new("recurrent_activation").constant().or_str("sigmoid"),
                Param::new("activation").constant().or_str("tanh"),
                Param::new("reset_after").constant().or_bool(false),
                Param::new("input_bias").constant().optional().types(FLOAT),
            ]
        }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        activation(args, "recurrent_activation")?;
        args.bool("reset_after")?;
        types(args, 3)
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        self.infer(args)?;
        let layer = Layer::new(args, 3)?;
        let (gate, out) = (activation(args, "recurrent_activation")?, activation(args, "activation")?);
        let reset_after = args.bool("reset_after")?;
        let n = layer.hidden;
        run(args, n, |x, h| {
            let row = |weights: &[f64], row: usize, values: &[f64]| dot(&weights[row * values.len()..], values);
            let from_x = |i: usize| layer.input_bias[i] + row(&layer.weight_ih, i, x);
            let from_h = |i: usize, h: &[f64]| layer.bias[i] + row(&layer.weight_hh, i, h);
            let r: Vec<f64> = (0..n).map(|j| gate(from_x(j) + from_h(j, h))).collect();
            let reset: Vec<f64> = h.iter().zip(&r).map(|(h, r)| h * r).collect();
            let next = |j: usize| {
                let o = match reset_after {
                    true => out(from_x(n + j) + r[j] * from_h(n + j, h)),
                    false => out(from_x(n + j) + from_h(n + j, &reset)),
                };
                let z = gate(from_x(2 * n + j) + from_h(2 * n + j, h));
                (1.0 - z) * o + z * h[j]
            };
            let next: Vec<f64> = (0..n).map(next).collect();
            h.copy_from_slice(&next);
        })
    }
}

/// See [`Op::doc`].
pub struct Rnn;

impl Op for Rnn {
    fn name(&self) -> &'static str {
        "rnn"
    }

    fn doc(&self) -> &'static str {
        "A recurrent layer: h becomes activation(weight_ih·x + weight_hh·h + bias). x: [S, B, I], initial_h: [B, H], \
         weight_ih: [H, I], weight_hh: [H, H], bias: [H]. Results: h of all steps in the order they are made (`direction` \
         reverse begins with the last of x) [S, B, H], or of the last one [1, B, H] unless `output_sequence`; the last h, \
         [B, H]."
    }

    fn params(&self) -> &'static [Param] {
        const {
            &[
                Param::new("x").types(FLOAT),
                Param::new("initial_h").types(FLOAT),
                Param::new("weight_ih").constant().types(FLOAT),
                Param::new("weight_hh").constant().types(FLOAT),
                Param::new("bias").constant().optional().types(FLOAT),
                Param::new("direction").constant().or_str("forward"),
                Param::new("output_sequence").constant().or_bool(false),
                Param::new("activation").constant().or_str("tanh"),
            ]
        }
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        types(args, 1)
    }

    fn eval(&self, args: &Args) -> Result<Vec<Tensor>> {
        self.infer(args)?;
        let layer = Layer::new(args, 1)?;
        let out = activation(args, "activation")?;
        run(args, layer.hidden, |x, h| {
            let next = |j: usize| {
                let from_x = dot(&layer.weight_ih[j * x.len()..], x);
                out(layer.bias[j] + from_x + dot(&layer.weight_hh[j * h.len()..], h))
            };
            let next: Vec<f64> = (0..h.len()).map(next).collect();
            h.copy_from_slice(&next);
        })
    }
}

/// The function of a parameter that names one. The parameters of `scaled_tanh` are one, of `hard_sigmoid` 0.2 and 0.5,
/// as Core ML has them where it gives no others.
pub fn activation(args: &Args, name: &str) -> Result<fn(f64) -> f64> {
    Ok(match args.str(name)? {
        "sigmoid" => |x| 1.0 / (1.0 + (-x).exp()),
        "tanh" | "scaled_tanh" => f64::tanh,
        "linear" => |x| x,
        "relu" => |x| x.max(0.0),
        "hard_sigmoid" | "sigmoid_hard" => |x| (0.2 * x + 0.5).clamp(0.0, 1.0),
        other => bail!("found the {name} {other}, expected sigmoid, tanh, linear, relu, hard_sigmoid, scaled_tanh"),
    })
}

/// The number of hidden values of a layer with this many gates.
pub fn hidden(args: &Args, gates: usize) -> Result<usize> {
    match fixed_shape(args, "weight_hh")?[..] {
        [rows, hidden] if hidden > 0 && hidden.checked_mul(gates) == Some(rows) => Ok(hidden),
        _ => bail!("found weight_hh of type {}, expected [{gates}·H, H]", args.ty("weight_hh")?),
    }
}

/// An error unless a parameter has this shape.
pub fn expect(args: &Args, name: &str, expected: &[Dim]) -> Result<()> {
    let found = args.shape(name)?;
    if found.len() != expected.len() || !found.iter().zip(expected).all(|(a, b)| a.fits(*b)) {
        bail!("found {name} {}, expected {}", show(found), show(expected));
    }
    Ok(())
}

/// The types of the results of a layer of one direction.
fn types(args: &Args, gates: usize) -> Result<Vec<ValueType>> {
    let x = args.ty("x")?;
    let [steps, batch, inputs] = x.shape[..] else { bail!("found x {}, expected [S, B, I]", show(&x.shape)) };
    let hidden = hidden(args, gates)?;
    let rows = Dim::Fixed(gates * hidden);
    expect(args, "weight_ih", &[rows, inputs])?;
    expect(args, "weight_hh", &fixed(&[gates * hidden, hidden]))?;
    for name in ["bias", "input_bias"].into_iter().filter(|name| args.has(name)) {
        expect(args, name, &[rows])?;
    }
    let state = [batch, Dim::Fixed(hidden)];
    expect(args, "initial_h", &state)?;
    backwards(args)?;
    activation(args, "activation")?;
    let steps = if args.bool("output_sequence")? { steps } else { Dim::Fixed(1) };
    let mut types = result(x.dtype, [&[steps], &state[..]].concat())?;
    types.append(&mut result(x.dtype, state.to_vec())?);
    Ok(types)
}

fn backwards(args: &Args) -> Result<bool> {
    match args.str("direction")? {
        "forward" => Ok(false),
        "reverse" => Ok(true),
        other => bail!("found the direction {other}, expected forward or reverse"),
    }
}

/// Takes `step(x, h)` through all steps of all rows; h becomes what it is after it.
fn run(args: &Args, hidden: usize, step: impl Fn(&[f64], &mut [f64])) -> Result<Vec<Tensor>> {
    let x = args.tensor("x")?;
    let &[steps, batch, inputs] = x.shape() else { bail!("found x {x:?}, expected [S, B, I]") };
    let (values, mut h) = (x.to_f64()?, args.tensor("initial_h")?.to_f64()?);
    let mut all = filled(count(&[steps, batch, hidden])?, 0.0)?;
    let backwards = backwards(args)?;
    for i in 0..steps {
        let from = if backwards { steps - 1 - i } else { i };
        for row in 0..batch {
            let h = &mut h[row * hidden..][..hidden];
            step(&values[(from * batch + row) * inputs..][..inputs], h);
            all[(i * batch + row) * hidden..][..hidden].copy_from_slice(h);
        }
    }
    let first = match args.bool("output_sequence")? {
        true => Tensor::from_f64(x.dtype(), [steps, batch, hidden], all)?,
        false => Tensor::from_f64(x.dtype(), [1, batch, hidden], h.clone())?,
    };
    Ok(vec![first, Tensor::from_f64(x.dtype(), [batch, hidden], h)?])
}

/// The parameters of a layer.
struct Layer {
    hidden: usize,
    weight_ih: Vec<f64>,
    weight_hh: Vec<f64>,
    bias: Vec<f64>,
    input_bias: Vec<f64>,
}

impl Layer {
    fn new(args: &Args, gates: usize) -> Result<Layer> {
        let hidden = hidden(args, gates)?;
        let bias = |name: &str| match args.opt_tensor(name)? {
            Some(values) => values.to_f64(),
            None => filled(gates * hidden, 0.0),
        };
        Ok(Layer {
            hidden,
            weight_ih: args.tensor("weight_ih")?.to_f64()?,
            weight_hh: args.tensor("weight_hh")?.to_f64()?,
            bias: bias("bias")?,
            input_bias: bias("input_bias")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::Value;

    /// Two steps of one row, one input, two hidden values; weights are multiples of 0.1.
    fn layer(op: &'static dyn Op, gates: usize, rest: Vec<(&'static str, Value)>) -> Result<Vec<Tensor>> {
        let tenths = |shape: &[usize], from: i32| {
            let n = shape.iter().product::<usize>() as i32;
            f32s(shape, &(from..from + n).map(|i| i as f32 * 0.1).collect::<Vec<_>>())
        };
        let values = vec![
            ("x", f32s(&[2, 1, 1], &[1.0, -2.0])),
            ("initial_h", tenths(&[1, 2], 1)),
            ("weight_ih", tenths(&[2 * gates, 1], -3)),
            ("weight_hh", tenths(&[2 * gates, 2], -6)),
            ("bias", tenths(&[2 * gates], -2)),
            ("output_sequence", true.into()),
        ];
        run_all(op, &args(op, [rest, values].concat()))
    }

    /// Expected values: the formulas in NumPy, float64.
    #[test]
    fn steps_follow_each_other() {
        let y = layer(&Gru, 3, vec![]).unwrap();
        assert_eq!((y[0].shape(), y[1].shape()), (&[2, 1, 2][..], &[1, 2][..]));
        near(&y[0], &GRU, 1e-6);
        near(&y[1], &GRU[2..], 1e-6);
        near(&layer(&Gru, 3, vec![("direction", "reverse".into())]).unwrap()[0], &GRU_REVERSE, 1e-6);
        let after = vec![("reset_after", true.into()), ("input_bias", iota(&[6]))];
        near(&layer(&Gru, 3, after).unwrap()[0], &GRU_AFTER, 1e-6);
        near(&layer(&Rnn, 1, vec![]).unwrap()[0], &RNN, 1e-6);
        near(&layer(&Rnn, 1, vec![("output_sequence", false.into())]).unwrap()[0], &RNN[2..], 1e-6);
    }

    const GRU: [f64; 4] = [0.012951236956980298, 0.1681019807751914, 0.09760013037940539, 0.1383880550254126];
    const GRU_REVERSE: [f64; 4] = [0.1364609259014406, 0.15616599210151763, 0.03396008806296574, 0.13871579222746716];
    const GRU_AFTER: [f64; 4] = [0.11057739002473449, 0.20281723535554166, 0.12490089438557149, 0.20788984165557006];
    const RNN: [f64; 4] = [-0.5783634261344963, -0.37994896990523175, 0.7338374391046117, 0.5685178101452256];

    #[test]
    fn shapes_that_do_not_go_together_are_refused() {
        assert!(layer(&Gru, 1, vec![]).is_err() && layer(&Rnn, 3, vec![]).is_err());
        assert!(layer(&Gru, 3, vec![("direction", "bidirectional".into())]).is_err());
        assert!(layer(&Gru, 3, vec![("input_bias", iota(&[5]))]).is_err());
        assert!(layer(&Rnn, 1, vec![("activation", "sideways".into())]).is_err());
    }
}
