//! Where two programs part: both are run on the same inputs, and the values that they compute on the way are compared
//! one by one, in the order in which they are computed.
//!
//! The values of the first are kept on disk while the second runs; they are never all in memory.

mod blame;
mod inputs;
mod pairs;
mod spool;

use std::collections::HashMap;
use std::fs::File;

use quince_engine::{Engine, Observed, Observer, Origin, State, Tensors};
use quince_mil::{Block, DType, Function};
use quince_tensor::{Result, Tensor, bail};

use crate::model::HostCache;
use pairs::Pairs;
use spool::Spool;

pub use blame::{Blame, Input};

/// How far values may be apart, relative to the largest of them, where nothing else is asked for: in programs that
/// compute in fp32 alone, and in those that do not.
const TOLERANCES: [f64; 2] = [1e-4, 1e-2];

/// Two programs that are compared call by call. Each keeps its states, or its cache of inputs and outputs, from call to
/// call.
pub struct Diff<'a> {
    first: Side<'a>,
    second: Side<'a>,
    tolerance: Option<f64>,
}

/// What one call showed.
#[derive(Clone, PartialEq, Debug)]
pub struct CallDiff {
    /// The function of the first program.
    pub function: String,
    /// Values that both have, in the order in which the second program computes them.
    pub values: Vec<Compared>,
    /// How many values only the first has, or has of another shape.
    pub only_first: usize,
    /// How many values only the second has, or has of another shape.
    pub only_second: usize,
    /// The largest [`Compared::relative`] that is not a divergence.
    pub tolerance: f64,
    /// The first value that diverges, and why.
    pub divergence: Option<Blame>,
}

/// A value of both programs.
#[derive(Clone, PartialEq, Debug)]
pub struct Compared {
    /// Its name in the first program; `[3]` behind it is the fourth iteration of a loop.
    pub first: String,
    /// Its name in the second program.
    pub second: String,
    /// The operation of the second program that computes it; `input` and `state` have none.
    pub operation: String,
    /// What that operation does.
    pub kind: String,
    /// The size along each axis.
    pub shape: Vec<usize>,
    /// The largest difference of two elements; infinite where only one of them is a number.
    pub max_abs: f64,
    /// `max_abs` by the largest magnitude in the first program.
    pub relative: f64,
    /// 10 log10(peak² / mean squared difference) in dB, the peak that of the first program; infinite for equal values.
    pub psnr: f64,
}

struct Side<'a> {
    engine: &'a Engine,
    state: State,
    cache: Option<HostCache>,
}

impl<'a> Diff<'a> {
    /// Compares programs from empty states on. `tolerance` is for [`Compared::relative`]; without it, 10⁻⁴ where both
    /// functions compute in fp32, and 10⁻² where one does not.
    ///
    /// # Errors
    /// When memory has no room for the states.
    pub fn new(first: &'a Engine, second: &'a Engine, tolerance: Option<f64>) -> Result<Diff<'a>> {
        Ok(Diff { first: Side::new(first)?, second: Side::new(second)?, tolerance })
    }

    /// Calls a function of both programs. Inputs that are not given for one of them are made up, the same in every run;
    /// a cache that is an input is what the calls before gave. `scratch` is a file for the values, its contents are lost.
    ///
    /// # Errors
    /// When one of the programs cannot be run so, when they have no value in common, and when the disk is full.
    pub fn call(&mut self, function: &str, given: [&Tensors; 2], scratch: File) -> Result<CallDiff> {
        let (a, b) =
            (self.first.engine.program().function(function)?, self.second.engine.program().function(function)?);
        let pairs = Pairs::of(a, b);
        let mut spool = Spool::new(scratch)?;
        let shapes = inputs::shapes([a, b]);
        self.first.run(a, given[0], &shapes, &mut spool).map_err(|e| e.at("the first program"))?;
        let count = spool.len();
        let mut comparison = Comparison { pairs: &pairs, spool, values: Vec::new(), only_second: 0 };
        self.second.run(b, given[1], &shapes, &mut comparison).map_err(|e| e.at("the second program"))?;
        let Comparison { values, only_second, .. } = comparison;
        if values.is_empty() {
            bail!("function `{function}`: found no value that both programs have");
        }
        let tolerance = self.tolerance.unwrap_or(TOLERANCES[usize::from(has_halves(a) || has_halves(b))]);
        let divergence = values.iter().position(|value| value.diverges(tolerance));
        let divergence = divergence.map(|index| Blame::of([a, b], &pairs, &values, index));
        let only_first = count.saturating_sub(values.len());
        Ok(CallDiff { function: a.name.clone(), values, only_first, only_second, tolerance, divergence })
    }
}

impl CallDiff {
    /// The first value that is not the same to the last bit.
    pub fn first_difference(&self) -> Option<&Compared> {
        self.values.iter().find(|value| value.max_abs > 0.0)
    }
}

impl Compared {
    /// Whether it is beyond a tolerance.
    pub fn diverges(&self, tolerance: f64) -> bool {
        self.relative > tolerance
    }

    fn of(names: [String; 2], value: &Observed, a: &Tensor) -> Result<Compared> {
        let distance = Distance::of(&a.to_f64()?, &value.tensor()?.to_f64()?);
        let (operation, kind) = match value.origin {
            Origin::Operation(source) | Origin::State(source) => (source.name, source.kind),
            Origin::StateBefore | Origin::StateAfter => ("", "state"),
            Origin::Input | Origin::Constant => ("", "input"),
        };
        let [first, second] = names;
        Ok(Compared {
            first,
            second,
            operation: operation.to_owned(),
            kind: kind.to_owned(),
            shape: value.shape.to_vec(),
            max_abs: distance.max_abs,
            relative: if distance.max_abs > 0.0 { distance.max_abs / distance.peak } else { 0.0 },
            psnr: match distance.max_abs > 0.0 {
                true => 10.0 * (distance.peak * distance.peak / distance.mean_square).log10(),
                false => f64::INFINITY,
            },
        })
    }
}

/// How far two lists of numbers are apart.
struct Distance {
    max_abs: f64,
    mean_square: f64,
    peak: f64,
}

impl Distance {
    fn of(a: &[f64], b: &[f64]) -> Distance {
        let mut found = Distance { max_abs: 0.0, mean_square: 0.0, peak: 0.0 };
        for (&a, &b) in a.iter().zip(b) {
            // Two of the same infinity are equal, and so are two that are not numbers.
            if a == b || (a.is_nan() && b.is_nan()) {
                found.peak = found.peak.max(if a.is_finite() { a.abs() } else { 0.0 });
                continue;
            }
            let distance = if a.is_finite() && b.is_finite() { (a - b).abs() } else { f64::INFINITY };
            found.max_abs = found.max_abs.max(distance);
            found.mean_square += distance * distance;
            found.peak = found.peak.max(if a.is_finite() { a.abs() } else { 0.0 });
        }
        found.mean_square /= a.len().max(1) as f64;
        found
    }
}

impl<'a> Side<'a> {
    fn new(engine: &'a Engine) -> Result<Side<'a>> {
        Ok(Side { engine, state: engine.new_state()?, cache: HostCache::of(engine.program())? })
    }

    fn run(
        &mut self,
        function: &Function,
        given: &Tensors,
        shapes: &HashMap<String, Vec<usize>>,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let mut inputs = match &mut self.cache {
            Some(cache) => cache.inputs(function)?,
            None => Tensors::new(),
        };
        let takes = |name: &String| function.inputs.iter().any(|input| &function.var(input.var).name == name);
        inputs
            .extend(given.iter().filter(|(name, _)| takes(name)).map(|(name, tensor)| (name.clone(), tensor.clone())));
        inputs.extend(inputs::made_up(function, &inputs, shapes)?);
        let outputs = self.engine.observe(&function.name, &inputs, &mut self.state, observer)?;
        match &mut self.cache {
            Some(cache) => cache.extend(&inputs, &outputs),
            None => Ok(()),
        }
    }
}

/// Compares the values of the second program with those of the first as they come.
struct Comparison<'a> {
    pairs: &'a Pairs,
    spool: Spool,
    values: Vec<Compared>,
    only_second: usize,
}

impl Observer for Comparison<'_> {
    fn value(&mut self, value: &Observed) -> Result<()> {
        let Some(second) = key(value) else { return Ok(()) };
        let Some(first) = self.pairs.first(value.name).map(|name| key_of(name, value)) else {
            self.only_second += 1;
            return Ok(());
        };
        match self.spool.read(&first)? {
            Some(tensor) if tensor.shape() == value.shape => {
                self.values.push(Compared::of([first, second], value, &tensor)?);
            }
            _ => self.only_second += 1,
        }
        Ok(())
    }
}

/// What a value is called here; none for what is not compared: constants, and a state as a whole each time that it is
/// read or updated. A state before the call goes by its name, as the same cache does that is an input.
fn key(value: &Observed) -> Option<String> {
    match value.origin {
        Origin::Constant => None,
        Origin::State(source) if matches!(source.kind, "read_state" | "slice_update") => None,
        _ => Some(key_of(value.name, value)),
    }
}

fn key_of(name: &str, value: &Observed) -> String {
    if value.origin == Origin::StateAfter {
        return format!("{name} (after)");
    }
    value.iterations.iter().fold(name.to_owned(), |key, iteration| format!("{key}[{iteration}]"))
}

/// Whether a function computes in fp16 anywhere.
fn has_halves(function: &Function) -> bool {
    fn any(function: &Function, block: &Block) -> bool {
        block.operations.iter().filter(|operation| !pairs::is_constant(operation)).any(|operation| {
            let half = |var: &quince_mil::Var| function.ty(*var).as_tensor().is_some_and(|ty| ty.dtype == DType::F16);
            operation.outputs.iter().any(half) || operation.blocks.iter().any(|block| any(function, block))
        })
    }
    any(function, &function.block)
}

/// Values by the name of the second program.
fn by_second(values: &[Compared]) -> HashMap<&str, &Compared> {
    values.iter().map(|value| (value.second.as_str(), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use quince_engine::Options;
    use quince_mil::{Builder, Dim, Flexibility, Opset, Program, TensorType, Value};

    fn constant(shape: &[usize], value: f32) -> Value {
        Tensor::from_vec(shape, (0..shape.iter().product()).map(|i| value + i as f32).collect()).unwrap().into()
    }

    /// ids, a table [5, 4], h = rows, a = h · 2 + `bias`, y = exp(−a); names end with `ending`.
    fn program(bias: f32, ending: &str, longest: Option<usize>, default: usize) -> Engine {
        let named = |name: &str| format!("{name}{ending}");
        let mut b = Builder::new(Function::new("main", Opset::CoreML8));
        let ty = TensorType { dtype: DType::I32, shape: vec![Dim::Unknown] };
        let range = Flexibility::Range { bounds: vec![(1, longest)], default: vec![default] };
        let ids = b.input("ids", ty.into(), range);
        let table = b.constant(&named("table"), constant(&[5, 4], 0.0));
        let inputs = [("x", table.into()), ("indices", ids.into()), ("axis", 0.into())];
        let rows = b.op("gather", &named("rows"), &inputs).unwrap();
        let twice = b.op("mul", &named("twice"), &[("x", rows.into()), ("y", 2.0f32.into())]).unwrap();
        let bias = b.constant(&named("bias"), constant(&[4], bias));
        let mut a = b.op("add", &named("a"), &[("x", twice.into()), ("y", bias.into())]).unwrap();
        if ending.is_empty() {
            // What the other spelling does not have.
            a = b.op("identity", "again", &[("x", a.into())]).unwrap();
        }
        let minus = b.op("mul", &named("minus"), &[("x", a.into()), ("y", (-1.0f32).into())]).unwrap();
        let y = b.op("exp", &named("y"), &[("x", minus.into())]).unwrap();
        let program = Program { functions: vec![b.finish(vec![y])], ..Program::default() };
        Engine::load(program, Options { threads: 1, ..Options::default() }).unwrap()
    }

    fn diff(a: &Engine, b: &Engine) -> CallDiff {
        let none = Tensors::new();
        let mut diff = Diff::new(a, b, None).unwrap();
        diff.call("main", [&none, &none], tempfile::tempfile().unwrap()).unwrap()
    }

    #[test]
    fn the_first_divergence_is_at_the_constant_that_changed() {
        let (a, b) = (program(1.0, "", None, 3), program(1.5, "", None, 3));
        let same = diff(&a, &a);
        assert!(same.divergence.is_none() && same.first_difference().is_none());
        assert!(same.values.iter().all(|value| value.psnr == f64::INFINITY));
        assert_eq!((same.values.len(), same.only_first, same.only_second), (7, 0, 0));

        let found = diff(&a, &b);
        let blame = found.divergence.as_ref().unwrap();
        let value = &found.values[blame.value];
        assert_eq!((value.first.as_str(), value.kind.as_str(), value.max_abs), ("a", "add", 0.5));
        assert_eq!(blame.inputs, [Input { name: "twice".into(), relative: 0.0 }]);
        assert_eq!(blame.constants, ["y (`bias`): 4 of 4 elements differ, by up to 0.500000"]);
    }

    #[test]
    fn other_names_and_an_operation_more_are_aligned() {
        // The second takes at most four ids: both get what it takes.
        let (a, b) = (program(1.0, "", None, 6), program(1.0, "_op", Some(4), 4));
        for (a, b, extra) in [(&a, &b, (1, 0)), (&b, &a, (0, 1))] {
            let found = diff(a, b);
            let pairs: Vec<(&str, &str)> = found
                .values
                .iter()
                .map(|v| (v.first.trim_end_matches("_op"), v.second.trim_end_matches("_op")))
                .collect();
            let names = ["ids", "rows", "twice", "a", "minus", "y"];
            assert_eq!(pairs, names.map(|name| (name, name)));
            assert_eq!((found.only_first, found.only_second), extra);
            assert!(found.divergence.is_none());
            assert_eq!(found.values[0].shape, [4]);
        }
    }

    #[test]
    fn what_is_no_number_in_one_program_only_is_infinitely_far() {
        let numbers = [1.0, f64::INFINITY, f64::NAN];
        assert_eq!(Distance::of(&numbers, &numbers).max_abs, 0.0);
        let found = Distance::of(&numbers, &[1.5, f64::INFINITY, 0.0]);
        assert_eq!((found.max_abs, found.peak), (f64::INFINITY, 1.0));
    }

    #[test]
    fn values_on_disk_come_back_by_name() {
        let engine = program(1.0, "", None, 2);
        let mut spool = Spool::new(tempfile::tempfile().unwrap()).unwrap();
        let inputs = Tensors::from([("ids".to_owned(), Tensor::vector(vec![4i32, 0]))]);
        engine.observe("main", &inputs, &mut engine.new_state().unwrap(), &mut spool).unwrap();
        let twice = spool.read("twice").unwrap().unwrap();
        assert_eq!((twice.shape(), twice.to_f32().unwrap()), (&[2, 4][..], vec![32., 34., 36., 38., 0., 2., 4., 6.]));
        assert_eq!(spool.read("ids").unwrap().unwrap().to_i64().unwrap(), [4, 0]);
        assert!(spool.read("table").unwrap().is_none());
    }
}
