//! Writes scales into the constants of a program.

use super::groups::{Groups, Kind, Node, Rows, Site};
use super::number;
use crate::semantic::Semantic;
use crate::weights::scaled;
use quince_mil::{Arg, DType, Function, OpKind, Operation, Program, Result, Tensor, Value, Var, Weight};
use quince_tensor::f16;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A program with its scales.
pub(super) struct Applied {
    pub semantic: Semantic,
    pub subnormal: Vec<(String, f64)>,
    pub copied: Vec<String>,
}

/// By what power of two rows become smaller: of each as many rows as there are numbers, or one number for all.
type Exponents = Vec<i32>;

/// The operation that an argument is of.
pub(super) fn operation_at(program: &Program, (function, operation): (usize, usize)) -> &Operation {
    &program.functions[function].block.operations[operation]
}

/// The weight that an argument is, if it is one.
pub(super) fn weight_at(program: &Program, site: &Site) -> Option<Weight> {
    let function = &program.functions[site.place.0];
    let var = operation_at(program, site.place).var(site.param)?;
    constant(function, var).and_then(|value| value.weight(&function.var(var).name))
}

fn constant(function: &Function, var: Var) -> Option<&Value> {
    let assigns = |operation: &&Operation| operation.outputs.first() == Some(&var);
    function.block.operations.iter().find(assigns).and_then(Operation::constant)
}

/// The program with arguments that follow the scales of values.
pub(super) fn apply(semantic: &Semantic, groups: &Groups, exponent: &dyn Fn(Node) -> i32) -> Result<Applied> {
    let mut work = Work { semantic: semantic.clone(), exponent, made: HashMap::new(), forms: BTreeMap::new() };
    // By function: the constants to be added.
    let mut added: BTreeMap<usize, Vec<Operation>> = BTreeMap::new();
    for site in &groups.sites {
        let (number, index) = site.place;
        let Some(argument) = work.argument(semantic, site, added.entry(number).or_default()) else { continue };
        let inputs = &mut work.semantic.program.functions[number].block.operations[index].inputs;
        for (_, args) in inputs.iter_mut().filter(|(param, _)| param == site.param) {
            *args = vec![argument.clone()];
        }
    }
    for (number, operations) in added {
        let function = &mut work.semantic.program.functions[number];
        function.block.operations.splice(0..0, operations);
        drop_unused(function);
    }
    work.told()
}

/// A program while its scales are written.
struct Work<'a> {
    semantic: Semantic,
    exponent: &'a dyn Fn(Node) -> i32,
    /// By identity of the weight, and by how much it becomes smaller.
    made: HashMap<(usize, Exponents), Weight>,
    /// By identity of a weight: at which scales it is needed.
    forms: BTreeMap<usize, BTreeSet<Exponents>>,
}

impl Work<'_> {
    /// What an argument becomes, if it does not stay.
    fn argument(&mut self, before: &Semantic, site: &Site, added: &mut Vec<Operation>) -> Option<Arg> {
        let of = self.exponent;
        match &site.kind {
            Kind::Weight { rows, input } => {
                let weight = weight_at(&before.program, site)?;
                let by = exponents(rows, *input, weight.shape().first().copied().unwrap_or(1), of);
                self.forms.entry(weight.id()).or_default().insert(by.clone());
                if by.iter().all(|by| *by == 0) {
                    return None;
                }
                let made = self.made.entry((weight.id(), by.clone()));
                let made = made.or_insert_with(|| scaled(&before.stored(&weight), &by));
                Some(Arg::Var(constant_of(&mut self.semantic.program.functions[site.place.0], added, made)))
            }
            Kind::Epsilon(value) => changed(&before.program, site, -2 * of(*value)).map(Arg::Value),
            Kind::Scale { query, key } => changed(&before.program, site, of(*query) + of(*key)).map(Arg::Value),
        }
    }

    /// What is to be told of scaled weights.
    fn told(self) -> Result<Applied> {
        let mut applied = Applied { semantic: self.semantic, subnormal: Vec::new(), copied: Vec::new() };
        for ((id, by), weight) in &self.made {
            let several = self.forms.get(id).is_some_and(|forms| forms.len() > 1);
            if several && weight.shape().len() > 1 && !applied.copied.iter().any(|name| name == weight.name()) {
                applied.copied.push(weight.name().to_owned());
            }
            let smaller = by.iter().any(|by| *by > 0);
            let share = if smaller { newly_subnormal(weight, by)? } else { 0.0 };
            if share > 0.0 {
                applied.subnormal.push((weight.name().to_owned(), share));
            }
        }
        applied.copied.sort();
        applied.subnormal.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(applied)
    }
}

/// By how much the rows of a weight become smaller.
pub(super) fn exponents(rows: &Rows, input: Option<Node>, count: usize, exponent: &dyn Fn(Node) -> i32) -> Exponents {
    let falls = input.map_or(0, exponent);
    match rows {
        Rows::Kept => vec![-falls],
        Rows::All(node) => vec![exponent(*node) - falls],
        Rows::Parts { period, parts } => {
            let of = |row: usize| parts.iter().find(|(part, _)| part.contains(&(row % (*period).max(1))));
            (0..count).map(|row| of(row).map_or(0, |(_, node)| exponent(*node)) - falls).collect()
        }
    }
}

/// A number in place, times 2 to the power of `by`; none if it stays.
fn changed(program: &Program, site: &Site, by: i32) -> Option<Value> {
    let Some(Arg::Value(value)) = operation_at(program, site.place).arg(site.param) else { return None };
    (by != 0).then(|| Some(Value::from(number(value)? * (by as f32).exp2())))?
}

/// The variable of a constant that is to be added.
fn constant_of(function: &mut Function, operations: &mut Vec<Operation>, weight: &Weight) -> Var {
    let same = |operation: &&Operation| matches!(operation.constant(), Some(Value::Weight(w)) if w.id() == weight.id());
    if let Some(known) = operations.iter().find(same).and_then(|operation| operation.outputs.first().copied()) {
        return known;
    }
    let value = Value::Weight(weight.clone());
    let name = format!("{}.scaled", weight.name());
    let var = function.add_var(&name, value.value_type());
    operations.push(Operation {
        kind: OpKind::from_name("const"),
        name,
        inputs: Vec::new(),
        outputs: vec![var],
        blocks: Vec::new(),
        attributes: [("val".to_owned(), value)].into(),
    });
    var
}

/// Drops constants that nothing uses.
fn drop_unused(function: &mut Function) {
    let used: BTreeSet<Var> = function
        .block
        .operations
        .iter()
        .flat_map(Operation::used_vars)
        .chain(function.block.outputs.iter().copied())
        .collect();
    function.block.operations.retain(|o| o.constant().is_none() || o.outputs.iter().any(|var| used.contains(var)));
}

/// The share of elements that are subnormal in float16 and were not before they became smaller.
fn newly_subnormal(weight: &Weight, by: &[i32]) -> Result<f64> {
    let least = f16::MIN_POSITIVE.to_f32();
    let (mut row, mut found) = (0, 0u64);
    weight.pieces(|piece: &Tensor| {
        let rows = piece.shape().first().copied().unwrap_or(1).max(1);
        let values = piece.cast(DType::F32)?.to_f32()?;
        for values in values.chunks_exact((values.len() / rows).max(1)) {
            let before = (by[row % by.len()] as f32).exp2();
            let new = |x: &&f32| **x != 0.0 && x.abs() < least && x.abs() * before >= least;
            found += values.iter().filter(new).count() as u64;
            row += 1;
        }
        Ok(())
    })?;
    Ok(found as f64 / weight.len().max(1) as f64)
}
