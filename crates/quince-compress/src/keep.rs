//! The pass that keeps the quantization of a checkpoint: a weight whose integers and scales are known becomes
//! `constexpr_blockwise_shift_scale` over these, instead of what they decode to.
//!
//! Whether it is the same weight is not believed but computed: all elements are compared.

use quince_mil::{Arg, Function, OpKind, Operation, Program, Result, Value, Weight};
use rayon::prelude::*;
use std::collections::{BTreeMap, HashSet};

/// A weight as `scale · (data - offset)`. Each element of `scale` and `offset` is for a block of `data`, whose size along
/// an axis is the quotient of the sizes.
#[derive(Clone, Debug)]
pub struct Integers {
    /// int4, uint4, int8 or uint8 in the shape of the weight.
    pub data: Weight,
    /// Floats; they are rounded to the type of the weight that is replaced.
    pub scale: Weight,
    /// Floats in the shape of the scale, rounded likewise.
    pub offset: Option<Weight>,
}

/// What was kept.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    /// The weights that are in the program as they are in the checkpoint, to the last bit of the program's float type.
    pub exact: Vec<String>,
    /// The weights of which some elements are rounded in another way, with the largest difference in steps of their
    /// scale.
    pub rounded: Vec<(String, f64)>,
    /// The weights that stay decoded, with the reason.
    pub left: Vec<(String, String)>,
}

/// The most that a rounded offset may move an element, in steps of the scale.
const TOLERANCE: f64 = 0.05;
/// Elements that are compared at a time, about.
const TASK: usize = 1 << 20;

/// Puts integers in place of the constants that `find` knows by the name of the weight. Where the program has changed a
/// weight, so that it is not what the integers decode to, it stays.
///
/// # Errors
/// When a weight cannot be read.
pub fn keep(program: &mut Program, find: &dyn Fn(&str) -> Option<Integers>) -> Result<Kept> {
    let mut places: BTreeMap<String, (Weight, Vec<(usize, usize)>)> = BTreeMap::new();
    for (f, function) in program.functions.iter().enumerate() {
        for (o, operation) in function.block.operations.iter().enumerate() {
            if let Some(weight) = matrix(operation) {
                let key = format!("{} {}", weight.name(), weight.id());
                places.entry(key).or_insert_with(|| (weight, Vec::new())).1.push((f, o));
            }
        }
    }
    let mut kept = Kept::default();
    let mut told = HashSet::new();
    for (weight, places) in places.into_values() {
        let name = weight.name().to_string();
        let Some(integers) = find(&name) else { continue };
        match integers.of(&weight).and_then(|integers| Ok((integers.fit(&weight)?, integers))) {
            Ok((fit, integers)) => {
                match fit {
                    Fit::Another => {
                        kept.left.push((name, "the program has it in another form".to_string()));
                        continue;
                    }
                    // A weight may be there more than once, cast anew for each function.
                    _ if !told.insert(name.clone()) => {}
                    Fit::Exact => kept.exact.push(name),
                    Fit::Rounded(steps) => kept.rounded.push((name, steps)),
                }
                places.into_iter().for_each(|(f, o)| replace(&mut program.functions[f], o, &integers));
            }
            Err(error) => kept.left.push((name, error.to_string())),
        }
    }
    Ok(kept)
}

/// The weight of a constant that may be in integers.
fn matrix(operation: &Operation) -> Option<Weight> {
    match operation.constant()? {
        Value::Weight(weight) if weight.dtype().is_float() && weight.shape().len() >= 2 => Some(weight.clone()),
        _ => None,
    }
}

fn replace(function: &mut Function, operation: usize, integers: &Integers) {
    let old = &mut function.block.operations[operation];
    let (name, outputs) = (std::mem::take(&mut old.name), std::mem::take(&mut old.outputs));
    let arg = |name: &str, weight: &Weight| (name.to_owned(), vec![Arg::Value(Value::Weight(weight.clone()))]);
    let mut inputs = vec![arg("data", &integers.data), arg("scale", &integers.scale)];
    inputs.extend(integers.offset.iter().map(|offset| arg("offset", offset)));
    let kind = OpKind::from_name("constexpr_blockwise_shift_scale");
    *old = Operation { kind, name, inputs, outputs, blocks: Vec::new(), attributes: BTreeMap::new() };
}

/// How well integers stand for a weight.
enum Fit {
    /// Every element is equal.
    Exact,
    /// The largest difference, in steps of the scale.
    Rounded(f64),
    /// It is another weight.
    Another,
}

impl Integers {
    /// The integers in the shape and float type of a weight, which may have axes of one element after the others.
    fn of(self, weight: &Weight) -> Result<Integers> {
        let ones = vec![1; weight.shape().len().saturating_sub(self.data.shape().len())];
        let shaped = |part: &Weight| match ones.is_empty() {
            true => Ok(part.clone()),
            false => part.reshape(&[part.shape(), &ones].concat()),
        };
        let float = |part: &Weight| Ok::<Weight, quince_mil::Error>(shaped(part)?.cast(weight.dtype()));
        Ok(Integers {
            data: shaped(&self.data)?,
            scale: float(&self.scale)?,
            offset: self.offset.as_ref().map(float).transpose()?,
        })
    }

    /// Compares all elements, computed in the float type of the weight as Core ML does.
    fn fit(&self, weight: &Weight) -> Result<Fit> {
        if self.data.shape() != weight.shape() || weight.shape().contains(&0) {
            return Ok(Fit::Another);
        }
        // Tasks ask for rows of it, which must not cost a weight each.
        let weight =
            &if weight.streams() { weight.clone() } else { Weight::from_tensor(weight.name(), weight.load()?) };
        let (data, scale) = (self.data.load()?, self.scale.load()?.to_f32()?);
        let offset = self.offset.as_ref().map(|offset| offset.load()?.to_f32()).transpose()?;
        let blocks = Blocks { shape: weight.shape(), scales: self.scale.shape() };
        let (total, row) = (weight.shape()[0], weight.len() / weight.shape()[0]);
        let rows = (TASK / row.max(1)).max(1);
        let worst = (0..total.div_ceil(rows)).into_par_iter().map(|task| -> Result<f64> {
            let range = task * rows..total.min((task + 1) * rows);
            let (expected, codes) = (weight.rows(range.clone())?.to_f32()?, data.rows(range.clone())?.to_f32()?);
            let mut worst = 0f64;
            for (i, (expected, code)) in expected.iter().zip(&codes).enumerate() {
                let block = blocks.of(range.start * row + i);
                let step = scale.get(block).copied().unwrap_or(0.0);
                let offset = offset.as_ref().and_then(|offset| offset.get(block)).copied().unwrap_or(0.0);
                let value = rounded(step * rounded(code - offset, weight), weight);
                if value != *expected {
                    // What is no number is as far away as can be.
                    let steps = f64::from((value - expected).abs()) / f64::from(step.abs()).max(f64::MIN_POSITIVE);
                    worst = if steps >= 0.0 { worst.max(steps) } else { f64::INFINITY };
                }
            }
            Ok(worst)
        });
        Ok(match worst.try_reduce(|| 0.0, |a: f64, b| Ok(a.max(b)))? {
            0.0 => Fit::Exact,
            worst if worst <= TOLERANCE => Fit::Rounded(worst),
            _ => Fit::Another,
        })
    }
}

/// A number in the float type of a weight.
fn rounded(value: f32, weight: &Weight) -> f32 {
    match weight.dtype() {
        quince_mil::DType::F16 => quince_tensor::f16::from_f32(value).to_f32(),
        _ => value,
    }
}

/// Which scale an element has.
struct Blocks<'a> {
    shape: &'a [usize],
    scales: &'a [usize],
}

impl Blocks<'_> {
    fn of(&self, element: usize) -> usize {
        let (mut rest, mut block, mut stride) = (element, 0, 1);
        for (size, scales) in self.shape.iter().zip(self.scales).rev() {
            let index = rest % size;
            rest /= size;
            block += index / (size / scales).max(1) * stride;
            stride *= scales;
        }
        block
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quince_mil::{Builder, DType, Flexibility, Opset, Tensor, ValueType, eval, verify};

    fn weight(name: &str, tensor: Tensor) -> Weight {
        Weight::from_tensor(name, tensor)
    }

    /// Two rows of two blocks of two.
    fn integers(scale: f32) -> Integers {
        let data = Tensor::from_codes(DType::I4, [2, 4], &[1, 15, 7, 8, 0, 2, 3, 4]).unwrap();
        let scales = vec![scale, 0.5, 0.25, 2.0];
        Integers {
            data: weight("w", data),
            scale: weight("w", Tensor::from_vec([2, 2], scales).unwrap()),
            offset: None,
        }
    }

    fn program(values: Vec<f32>) -> Program {
        let mut b = Builder::new(Function::new("main", Opset::CoreML8));
        let x = b.input("x", ValueType::tensor(DType::F16, &[1, 4]), Flexibility::Fixed);
        let w = b.weight(&weight("w", Tensor::from_f32(DType::F16, [2, 4], values).unwrap()));
        let y = b.op("linear", "y", &[("x", x.into()), ("weight", w.into())]).unwrap();
        Program { functions: vec![b.finish(vec![y])], ..Program::default() }
    }

    const VALUES: [f32; 8] = [1.0, -1.0, 3.5, -4.0, 0.0, 0.5, 6.0, 8.0];

    fn run(program: &Program) -> Vec<f32> {
        let x = Tensor::from_f32(DType::F16, [1, 4], vec![1.0, 2.0, 3.0, 4.0]).unwrap();
        let inputs = [("x".to_owned(), x)].into();
        let outputs = eval::run(&program.functions[0], &inputs, &mut eval::Tensors::new()).unwrap();
        outputs.values().flat_map(|tensor| tensor.to_f32().unwrap()).collect()
    }

    #[test]
    fn integers_take_the_place_of_what_they_decode_to() {
        let mut program = program(VALUES.to_vec());
        let before = run(&program);
        let kept = keep(&mut program, &|name| (name == "w").then(|| integers(1.0))).unwrap();
        assert_eq!((kept.exact, kept.rounded.len(), kept.left.len()), (vec!["w".to_string()], 0, 0));
        verify::program(&program).unwrap();
        assert!(program.functions[0].block.operations.iter().any(|o| o.op_name() == "constexpr_blockwise_shift_scale"));
        assert_eq!(run(&program), before);
    }

    #[test]
    fn what_is_rounded_is_told_and_another_weight_stays() {
        let mut near = program(VALUES.to_vec());
        let kept = keep(&mut near, &|_| Some(integers(1.001))).unwrap();
        assert!(kept.rounded[0].1 > 0.0 && kept.rounded[0].1 < 0.01, "{kept:?}");
        let mut other = program(VALUES.map(|v| v + 1.0).to_vec());
        let kept = keep(&mut other, &|_| Some(integers(1.0))).unwrap();
        assert_eq!(kept.left, [("w".to_string(), "the program has it in another form".to_string())]);
        assert!(other.functions[0].block.operations.iter().any(|operation| operation.op_name() == "const"));
    }
}
