//! A function in pieces, each of which goes on where the one before it ended.
//!
//! ```text
//! ids ─▶ [ embedding, norm ] ─ x₁ ─▶ [ q, k, v, attention ] ─ x₂ ─▶ [ o, add, norm ] ─ x₃ ─▶ ...
//!                  └────────────────── hidden state ───────────────────▲
//! ```
//! A piece ends with the value that it is cut at. What later pieces need besides is handed on. What depends on nothing
//! but constants is computed in each piece that uses it.

use quince_mil::{Block, Defs, Flexibility, Function, FunctionInput, Var};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// A piece.
pub(super) struct Segment {
    /// What it computes; nothing where the value is there already.
    pub function: Option<Function>,
    /// The values that no later piece needs.
    pub done: Vec<String>,
}

/// Cuts a function of fixed sizes at values in the order in which they are computed; values that are to be had at a cut
/// besides are `also`. Nothing if there is no such value.
pub(super) fn segments(function: &Function, cuts: &[&str], also: &[Vec<&str>]) -> Option<Vec<Segment>> {
    let defs = Defs::new(function);
    let vars: HashMap<&str, Var> =
        function.vars.iter().enumerate().map(|(i, v)| (v.name.as_str(), Var(i as u32))).collect();
    let computed =
        |var: Var| defs.producer_index(var).is_some() || function.inputs.iter().any(|input| input.var == var);
    let find = |name: &str| vars.get(name).copied().filter(|&var| computed(var));
    let cuts = cuts.iter().map(|name| find(name)).collect::<Option<Vec<Var>>>()?;
    // Index 0 is before all operations.
    let ends: Vec<usize> = cuts.iter().map(|&var| defs.producer_index(var).map_or(0, |i| i + 1)).collect();
    if ends.is_empty() || !ends.is_sorted() {
        return None;
    }
    let also = also.iter().map(|names| names.iter().map(|name| find(name)).collect::<Option<Vec<Var>>>());
    let also = also.collect::<Option<Vec<Vec<Var>>>>()?;
    let constant = constants(function);
    let needed = needed(function, &defs, cuts.iter().chain(also.iter().flatten()).copied(), ends[ends.len() - 1]);
    let segment_of = |operation: usize| ends.partition_point(|&end| end <= operation);
    // When each value is used last: 2 k in piece k, 2 k + 1 at the cut behind it.
    let mut last: HashMap<Var, usize> = HashMap::new();
    let mut used = |var: Var, when: usize| {
        let known = last.entry(var).or_default();
        *known = when.max(*known);
    };
    for &operation in &needed {
        let when = 2 * segment_of(operation);
        function.block.operations[operation].visit_uses(&mut |var| used(var, when));
    }
    for (number, (cut, also)) in cuts.iter().zip(&also).enumerate() {
        also.iter().chain([cut]).for_each(|&var| used(var, 2 * number + 1));
    }
    let piece = |number: usize| {
        let start = if number == 0 { 0 } else { ends[number - 1] };
        let own: Vec<usize> = needed.range(start..ends[number]).copied().filter(|i| !constant.contains(i)).collect();
        let operations = &function.block.operations;
        let made: HashSet<Var> = own.iter().flat_map(|&i| operations[i].outputs.iter().copied()).collect();
        let (mut inside, mut entering, mut todo) = (BTreeSet::new(), BTreeSet::new(), own);
        while let Some(i) = todo.pop() {
            if inside.insert(i) {
                operations[i].visit_uses(&mut |var| match defs.producer_index(var) {
                    Some(producer) if constant.contains(&producer) => todo.push(producer),
                    // Variables of nested blocks are neither computed at the top nor inputs.
                    _ if !made.contains(&var) && computed(var) => drop(entering.insert(var)),
                    _ => {}
                });
            }
        }
        let leaving = made.iter().copied().filter(|var| last.get(var).is_some_and(|&last| last > 2 * number));
        let leaving: BTreeSet<Var> = leaving.collect();
        let cut = (!leaving.is_empty()).then(|| Function {
            name: function.name.clone(),
            inputs: entering.iter().map(|&var| FunctionInput { var, flexibility: Flexibility::Fixed }).collect(),
            opset: function.opset,
            vars: function.vars.clone(),
            block: Block {
                inputs: Vec::new(),
                operations: inside.iter().map(|&i| operations[i].clone()).collect(),
                outputs: leaving.iter().copied().collect(),
            },
            attributes: BTreeMap::new(),
        });
        let done = last.iter().filter(|(_, last)| **last / 2 == number);
        Segment { function: cut, done: done.map(|(&var, _)| function.var(var).name.clone()).collect() }
    };
    Some((0..cuts.len()).map(piece).collect())
}

/// The operations that depend on nothing but constants.
fn constants(function: &Function) -> HashSet<usize> {
    let (mut found, mut vars) = (HashSet::new(), HashSet::new());
    for (i, operation) in function.block.operations.iter().enumerate() {
        let name = operation.op_name();
        let mut all = operation.blocks.is_empty() && !operation.outputs.is_empty() && !name.starts_with("random_");
        operation.visit_uses(&mut |var| all &= vars.contains(&var));
        if all {
            found.insert(i);
            vars.extend(operation.outputs.iter().copied());
        }
    }
    found
}

/// The operations before `end` that values depend on, and those that have effects.
fn needed(function: &Function, defs: &Defs, values: impl Iterator<Item = Var>, end: usize) -> BTreeSet<usize> {
    let operations = &function.block.operations[..end];
    let effects = operations.iter().enumerate().filter(|(_, operation)| operation.outputs.is_empty()).map(|(i, _)| i);
    let mut todo: Vec<usize> = values.filter_map(|var| defs.producer_index(var)).chain(effects).collect();
    let mut found = BTreeSet::new();
    while let Some(i) = todo.pop() {
        if found.insert(i) {
            operations[i].visit_uses(&mut |var| todo.extend(defs.producer_index(var)));
        }
    }
    found
}
