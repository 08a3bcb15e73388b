//! The pass that quantizes activations: what `linear` and `conv` take passes through `quantize` and `dequantize` first.
//!
//! ```text
//! %y = linear(x = %x, weight = %w)
//! ```
//! becomes
//! ```text
//! %x_quantized = quantize(input = %x, scale = s, zero_point = z, output_dtype = "int8")
//! %x_dequantized = dequantize(input = %x_quantized, scale = s, zero_point = z)
//! %y = linear(x = %x_dequantized, weight = %w)
//! ```
//! Systems whose processors multiply bytes fuse the pair with the weight's own scale; all others compute the same numbers.
//! Where ranges come from is not known here: see [`ActivationRanges`].

use crate::Float;
use crate::scheme::results;
use quince_mil::{Arg, DType, Function, OpKind, Operation, Opset, Program, Result, Tensor, Value, Var, bail};
use std::collections::{BTreeMap, HashMap};

/// The least and the greatest value of activations, by the name of their variable. Functions that share names share
/// ranges, so that a token is rounded alike whichever function it comes through.
#[derive(Clone, Debug, Default)]
pub struct ActivationRanges(BTreeMap<String, (f64, f64)>);

impl ActivationRanges {
    /// Widens the range of a variable.
    ///
    /// # Errors
    /// When a bound is not finite, or the lower is above the upper.
    pub fn widen(&mut self, name: &str, low: f64, high: f64) -> Result<()> {
        if !(low.is_finite() && high.is_finite() && low <= high) {
            bail!("`{name}`: found the range {low} to {high}, expected finite numbers that ascend");
        }
        let range = self.0.entry(name.to_owned()).or_insert((low, high));
        *range = (range.0.min(low), range.1.max(high));
        Ok(())
    }

    /// The same, also for variables that were never seen: what meets the same weight in several functions has one range,
    /// under whatever names, because a prefill computes less of its last layer than a decode does.
    fn shared(&self, program: &Program) -> Result<ActivationRanges> {
        let mut met: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for function in &program.functions {
            for operation in &function.block.operations {
                if let (Some((x, _)), Some(weight)) = (activation(function, operation), operation.var("weight")) {
                    let names = met.entry(&function.var(weight).name).or_default();
                    names.push(function.var(x).name.clone());
                }
            }
        }
        let mut shared = self.clone();
        for names in met.values() {
            let known: Vec<(f64, f64)> = names.iter().filter_map(|name| self.get(name)).collect();
            for (name, (low, high)) in names.iter().flat_map(|name| known.iter().map(move |range| (name, *range))) {
                shared.widen(name, low, high)?;
            }
        }
        Ok(shared)
    }

    /// The range of a variable.
    pub fn get(&self, name: &str) -> Option<(f64, f64)> {
        self.0.get(name).copied()
    }
}

/// Where the int8 range of an activation lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActivationMode {
    /// Symmetric about zero, as coremltools has it.
    Symmetric,
    /// From the least to the greatest value or zero.
    Asymmetric,
}

/// What became of activations.
#[derive(Clone, Debug, Default)]
pub struct ActivationReport {
    /// The variables that are quantized, functions that share a name counted once.
    pub quantized: Vec<String>,
    /// The variables whose range is not known, which stay as they are.
    pub left: Vec<String>,
}

/// The floating-point values that `linear` and `conv` take: variable and name, once for each operation that takes them.
pub fn activation_inputs(function: &Function) -> impl Iterator<Item = (Var, String)> + '_ {
    let inputs = function.block.operations.iter().filter_map(|operation| activation(function, operation));
    inputs.map(|(var, _)| (var, function.var(var).name.clone()))
}

/// What an operation takes that is to be quantized, and its type.
fn activation(function: &Function, operation: &Operation) -> Option<(Var, DType)> {
    let var = operation.var("x").filter(|_| matches!(operation.op_name(), "linear" | "conv"))?;
    let dtype = function.ty(var).as_tensor()?.dtype;
    dtype.is_float().then_some((var, dtype))
}

/// Quantizes what `linear` and `conv` take to int8.
///
/// # Errors
/// When a function's opset is older than `quantize`, a scale is beyond the range of its type, or nothing is quantized.
pub fn quantize_activations(
    program: &mut Program,
    ranges: &ActivationRanges,
    mode: ActivationMode,
) -> Result<ActivationReport> {
    let mut report = ActivationReport::default();
    let ranges = &ranges.shared(program)?;
    for function in &mut program.functions {
        if function.opset < Opset::CoreML7 {
            bail!(
                "function `{}` has opset {}, expected CoreML7 or later for int8 activations",
                function.name, function.opset; hint: "target iOS 17 or macOS 14"
            );
        }
        quantize(function, ranges, mode, &mut report).map_err(|e| e.at(format!("function `{}`", function.name)))?;
    }
    for names in [&mut report.quantized, &mut report.left] {
        names.sort();
        names.dedup();
    }
    if report.quantized.is_empty() {
        bail!("found no range of anything that `linear` or `conv` take"; hint: "calibrate this program");
    }
    Ok(report)
}

fn quantize(
    function: &mut Function,
    ranges: &ActivationRanges,
    mode: ActivationMode,
    report: &mut ActivationReport,
) -> Result<()> {
    let mut done: HashMap<Var, Var> = HashMap::new();
    for mut operation in std::mem::take(&mut function.block.operations) {
        if let Some((var, dtype)) = activation(function, &operation) {
            let name = function.var(var).name.clone();
            let quantized = match (done.get(&var), ranges.get(&name)) {
                (Some(quantized), _) => Some(*quantized),
                (None, Some(range)) => Some(Grid::new(range, dtype, mode)?.apply(var, &name, function)?),
                (None, None) => None,
            };
            match quantized {
                Some(quantized) => {
                    done.insert(var, quantized);
                    report.quantized.push(name);
                    let x = operation.inputs.iter_mut().filter(|(param, _)| param == "x");
                    x.for_each(|(_, args)| *args = vec![Arg::Var(quantized)]);
                }
                None => report.left.push(name),
            }
        }
        function.block.operations.push(operation);
    }
    Ok(())
}

/// The steps of int8 for one range.
struct Grid {
    scale: Value,
    zero_point: Value,
}

impl Grid {
    fn new((low, high): (f64, f64), dtype: DType, mode: ActivationMode) -> Result<Grid> {
        let float = Float::of_weight(dtype)?;
        let (low, high) = (low.min(0.0), high.max(0.0));
        let (scale, zero_point) = match mode {
            ActivationMode::Symmetric => (float.cover(high.max(-low) / 127.0, 127.0)?, 0),
            ActivationMode::Asymmetric => {
                let scale = float.cover((high - low) / 255.0, 255.0)?;
                (scale, (-128.0 - low / scale).round_ties_even().clamp(-128.0, 127.0) as i8)
            }
        };
        let scale = float.tensor(Vec::new(), vec![scale])?;
        Ok(Grid { scale: scale.into(), zero_point: Tensor::scalar(zero_point).into() })
    }

    /// Puts the pair of operations at the end of the function's block, and gives what comes out.
    fn apply(&self, var: Var, name: &str, function: &mut Function) -> Result<Var> {
        let dtype = ("output_dtype", Value::from("int8"));
        let quantized = self.operation("quantize", var, format!("{name}_quantized"), Some(dtype), function)?;
        self.operation("dequantize", quantized, format!("{name}_dequantized"), None, function)
    }

    fn operation(
        &self,
        op: &str,
        input: Var,
        name: String,
        more: Option<(&str, Value)>,
        function: &mut Function,
    ) -> Result<Var> {
        let values = [("scale", self.scale.clone()), ("zero_point", self.zero_point.clone())].into_iter().chain(more);
        let values = values.map(|(param, value)| (param.to_owned(), vec![Arg::Value(value)]));
        let mut operation = Operation {
            kind: OpKind::from_name(op),
            name,
            inputs: std::iter::once(("input".to_owned(), vec![Arg::Var(input)])).chain(values).collect(),
            outputs: Vec::new(),
            blocks: Vec::new(),
            attributes: BTreeMap::new(),
        };
        operation.outputs = results(&operation, function)?;
        let Some(&output) = operation.outputs.first() else { bail!("`{op}` has no result") };
        function.block.operations.push(operation);
        Ok(output)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_weights::weight;
    use quince_mil::{Builder, Flexibility, ValueType, eval, verify};

    /// Two functions in which two layers take `x` and one takes their sum.
    fn program(opset: Opset) -> Program {
        let weights = [weight(&[8, 6], DType::F32, 1), weight(&[8, 6], DType::F32, 2), weight(&[3, 8], DType::F32, 3)];
        let function = |name: &str| {
            let mut b = Builder::new(Function::new(name, opset));
            let x = b.input("x", ValueType::tensor(DType::F32, &[2, 6]), Flexibility::Fixed);
            let [one, two, three] = [0, 1, 2].map(|i| b.weight(&weights[i].renamed(&format!("w{i}"))));
            let a = b.op("linear", "a", &[("x", x.into()), ("weight", one.into())]).unwrap();
            let c = b.op("linear", "c", &[("x", x.into()), ("weight", two.into())]).unwrap();
            let sum = b.op("add", "sum", &[("x", a.into()), ("y", c.into())]).unwrap();
            let y = b.op("linear", "y", &[("x", sum.into()), ("weight", three.into())]).unwrap();
            b.finish(vec![y])
        };
        Program { functions: vec![function("init"), function("decode")], ..Program::default() }
    }

    fn x() -> Tensor {
        weight(&[2, 6], DType::F32, 4).load().unwrap()
    }

    fn run(function: &Function, outputs: &[&str]) -> Vec<f32> {
        let mut function = function.clone();
        let var = |name: &&str| Var(function.vars.iter().position(|var| &var.name == name).unwrap() as u32);
        function.block.outputs = outputs.iter().map(var).collect();
        let results = eval::run(&function, &[("x".to_owned(), x())].into(), &mut eval::Tensors::new()).unwrap();
        results.values().flat_map(|tensor: &Tensor| tensor.to_f32().unwrap()).collect()
    }

    fn ranges(program: &Program) -> ActivationRanges {
        let mut ranges = ActivationRanges::default();
        for (name, values) in [("x", x().to_f32().unwrap()), ("sum", run(&program.functions[0], &["sum"]))] {
            values.iter().for_each(|&v| ranges.widen(name, f64::from(v), f64::from(v)).unwrap());
        }
        ranges
    }

    #[test]
    fn what_meets_the_same_weight_has_the_same_range() {
        let mut program = program(Opset::CoreML7);
        let mut ranges = ranges(&program);
        ranges.widen("total", -90.0, 1.0).unwrap();
        let vars = &mut program.functions[1].vars;
        vars.iter_mut().filter(|var| var.name == "sum").for_each(|var| var.name = "total".to_owned());
        let report = quantize_activations(&mut program, &ranges, ActivationMode::Symmetric).unwrap();
        assert_eq!((report.quantized.len(), report.left.len()), (3, 0));
        let scale = |function: &Function| {
            let last = function.block.operations.iter().rfind(|operation| operation.op_name() == "quantize").unwrap();
            let Some(Arg::Value(scale)) = last.arg("scale") else { panic!("{last:?}") };
            scale.tensor().unwrap().to_f32().unwrap()
        };
        let [one, two] = [0, 1].map(|i| scale(&program.functions[i]));
        assert_eq!(one, two);
        assert!((one[0] - 90.0 / 127.0).abs() < 1e-3, "{one:?}");
        // Nothing is known of what no function has seen.
        let report =
            quantize_activations(&mut self::program(Opset::CoreML7), &Default::default(), ActivationMode::Asymmetric);
        assert!(report.is_err());
    }

    #[test]
    fn each_activation_is_rounded_once_to_steps_of_its_range() {
        for (mode, steps) in [(ActivationMode::Symmetric, 127.0), (ActivationMode::Asymmetric, 255.0)] {
            let before = program(Opset::CoreML7);
            let (mut program, ranges) = (before.clone(), ranges(&before));
            let report = quantize_activations(&mut program, &ranges, mode).unwrap();
            assert_eq!((report.quantized, report.left), (vec!["sum".to_owned(), "x".to_owned()], Vec::new()));
            verify::program(&program).unwrap();
            let names = |function: &Function| -> Vec<String> {
                function.block.operations.iter().map(|o| o.op_name().to_owned()).filter(|n| n != "const").collect()
            };
            let expected = ["quantize", "dequantize", "linear", "linear", "add", "quantize", "dequantize", "linear"];
            assert_eq!(names(&program.functions[0]), expected);
            assert_eq!(names(&program.functions[1]), expected);
            let (low, high) = ranges.get("x").unwrap();
            let span = if mode == ActivationMode::Symmetric { high.max(-low) } else { high.max(0.0) - low.min(0.0) };
            let rounded = run(&program.functions[0], &["x_dequantized"]);
            for (rounded, exact) in rounded.iter().zip(x().to_f32().unwrap()) {
                assert!(f64::from((rounded - exact).abs()) <= 0.51 * span / steps, "{exact} became {rounded}");
            }
            let (after, exact) = (run(&program.functions[1], &["y"]), run(&before.functions[1], &["y"]));
            let error: f32 = after.iter().zip(&exact).map(|(a, b)| (a - b).powi(2)).sum();
            assert!(error > 0.0 && error < 1e-3 * exact.iter().map(|v| v * v).sum::<f32>(), "{error}");
        }
    }

    #[test]
    fn what_is_not_known_is_left_and_nothing_known_is_an_error() {
        let mut some = ActivationRanges::default();
        some.widen("sum", -1.0, 1.0).unwrap();
        let report = quantize_activations(&mut program(Opset::CoreML8), &some, ActivationMode::Symmetric).unwrap();
        assert_eq!((report.quantized, report.left), (vec!["sum".to_owned()], vec!["x".to_owned()]));
        let none = ActivationRanges::default();
        assert!(quantize_activations(&mut program(Opset::CoreML8), &none, ActivationMode::Symmetric).is_err());
        let error = quantize_activations(&mut program(Opset::CoreML6), &some, ActivationMode::Symmetric).unwrap_err();
        assert!(error.to_string().contains("expected CoreML7 or later"), "{error}");
        assert!(some.widen("x", 1.0, -1.0).is_err() && some.widen("x", f64::NAN, 1.0).is_err());
    }
}
