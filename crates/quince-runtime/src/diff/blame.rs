//! The first value that diverges: what goes into the operation that computes it, and whether that is the same.

use std::collections::HashMap;

use quince_mil::compare::same_values;
use quince_mil::{Arg, Block, Function, Operation, Value, Var};

use super::pairs::{Pairs, is_constant};
use super::{Compared, by_second};

/// A value that diverges, and what it was computed from.
#[derive(Clone, PartialEq, Debug)]
pub struct Blame {
    /// The value, as an index into [`CallDiff::values`](super::CallDiff::values).
    pub value: usize,
    /// The values that its operation was computed from; where one of them was not compared, the nearest ones before it
    /// that were.
    pub inputs: Vec<Input>,
    /// Constants of its operation that are not the same: `weight (w): ...`.
    pub constants: Vec<String>,
}

/// A value that went into an operation.
#[derive(Clone, PartialEq, Debug)]
pub struct Input {
    /// Its name in the second program.
    pub name: String,
    /// How far it is apart, see [`Compared::relative`].
    pub relative: f64,
}

/// How many operations are looked through for values that were compared.
const MAX_STEPS: usize = 1000;

impl Blame {
    pub(super) fn of([a, b]: [&Function; 2], pairs: &Pairs, values: &[Compared], value: usize) -> Blame {
        let (second, iterations) = split(&values[value].second);
        let mut blame = Blame { value, inputs: Vec::new(), constants: Vec::new() };
        let producers = Producers::of(b);
        let Some(operation) = producers.by_name.get(second) else { return blame };
        blame.inputs = inputs(b, &producers, operation, &by_second(values), iterations);
        let first = Producers::of(a);
        let Some(other) = pairs.first(second).and_then(|name| first.by_name.get(name)) else { return blame };
        for (param, args) in &operation.inputs {
            if let ([arg], Some(other)) = (&args[..], other.arg(param))
                && let Some(found) = constants([&first, &producers], [other, arg])
            {
                let name = match arg {
                    Arg::Var(var) => format!("{param} (`{}`)", b.var(*var).name),
                    Arg::Value(_) => param.clone(),
                };
                blame.constants.push(format!("{name}: {found}"));
            }
        }
        blame
    }
}

/// The name of a variable, and the iterations behind it.
fn split(key: &str) -> (&str, &str) {
    key.find('[').map_or((key, ""), |at| key.split_at(at))
}

/// The operations of a function, nested ones too, by what they compute.
struct Producers<'a> {
    by_var: HashMap<Var, &'a Operation>,
    by_name: HashMap<&'a str, &'a Operation>,
}

impl<'a> Producers<'a> {
    fn of(function: &'a Function) -> Producers<'a> {
        fn collect<'a>(function: &'a Function, block: &'a Block, found: &mut Producers<'a>) {
            for operation in &block.operations {
                for var in &operation.outputs {
                    found.by_var.insert(*var, operation);
                    found.by_name.insert(&function.var(*var).name, operation);
                }
                operation.blocks.iter().for_each(|block| collect(function, block, found));
            }
        }
        let mut found = Producers { by_var: HashMap::new(), by_name: HashMap::new() };
        collect(function, &function.block, &mut found);
        found
    }
}

/// The compared values that an operation is computed from, the nearest on each way.
fn inputs(
    function: &Function,
    producers: &Producers,
    operation: &Operation,
    compared: &HashMap<&str, &Compared>,
    iterations: &str,
) -> Vec<Input> {
    let (mut found, mut seen) = (Vec::new(), Vec::new());
    let mut open: Vec<Var> = operation.used_vars().collect();
    open.reverse();
    while let Some(var) = open.pop() {
        if seen.contains(&var) || seen.len() > MAX_STEPS {
            continue;
        }
        seen.push(var);
        let name = &function.var(var).name;
        let inside = format!("{name}{iterations}");
        if let Some(value) = compared.get(inside.as_str()).or(compared.get(name.as_str())) {
            found.push(Input { name: value.second.clone(), relative: value.relative });
        } else if let Some(producer) = producers.by_var.get(&var).filter(|producer| !is_constant(producer)) {
            let mut sources: Vec<Var> = producer.used_vars().collect();
            sources.reverse();
            open.extend(sources);
        }
    }
    found
}

/// How two constant arguments differ, if they do and are constant.
fn constants([first, second]: [&Producers; 2], [a, b]: [&Arg; 2]) -> Option<String> {
    fn of<'a>(producers: &Producers<'a>, arg: &Arg) -> Option<&'a Operation> {
        match arg {
            Arg::Var(var) => producers.by_var.get(var).copied().filter(|operation| is_constant(operation)),
            Arg::Value(_) => None,
        }
    }
    match (a, b, of(first, a), of(second, b)) {
        (Arg::Value(a), Arg::Value(b), ..) => different(a, b),
        (Arg::Value(a), _, _, Some(b)) => different(a, b.constant()?),
        (_, Arg::Value(b), Some(a), _) => different(a.constant()?, b),
        (_, _, Some(a), Some(b)) if a.op_name() != b.op_name() => {
            Some(format!("found a {}, and a {} in the first program", b.op_name(), a.op_name()))
        }
        (_, _, Some(a), Some(b)) => match (a.constant(), b.constant()) {
            (Some(a), Some(b)) => different(a, b),
            _ => b.inputs.iter().find_map(|(param, args)| {
                let found = constants([first, second], [a.arg(param)?, args.first()?])?;
                Some(format!("its {param}: {found}"))
            }),
        },
        _ => None,
    }
}

fn different(a: &Value, b: &Value) -> Option<String> {
    let error = same_values(a, b).err()?;
    let (Ok(x), Ok(y)) = (a.tensor(), b.tensor()) else { return Some(error.message().to_owned()) };
    let (Ok(left), Ok(right)) = (x.to_f64(), y.to_f64()) else { return Some(error.message().to_owned()) };
    if x.shape() != y.shape() {
        return Some(format!("found {}, and {} in the first program", b.value_type(), a.value_type()));
    }
    let pairs = || left.iter().zip(&right).filter(|(a, b)| a != b);
    // Another type alone changes nothing.
    pairs().next()?;
    let farthest = pairs().map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    let types = match x.dtype() == y.dtype() {
        true => String::new(),
        false => format!("{}, and {} in the first program; ", y.dtype(), x.dtype()),
    };
    Some(format!("{types}{} of {} elements differ, by up to {farthest:.6}", pairs().count(), left.len()))
}
