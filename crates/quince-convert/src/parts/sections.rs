//! The sections of a program: the embedding, each layer, the head, by the names of operations and by what depends on what.
//!
//! Operations of a layer have its number in their name (`model.layers.3.mlp.up_proj`). Of the others, those that layers
//! depend on and that depend on the tokens are the embedding; those that depend on layers are the head; those that depend
//! on neither belong to no section, and neither do constants.

use super::caches::Caches;
use quince_mil::{Defs, Error, Function, Operation, Program, Result, Var, bail};
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

/// The input whose values make up the embedding.
pub(super) const INPUT_IDS: &str = "input_ids";

/// The sections of all functions of a program.
pub(super) struct Sections {
    /// By function.
    pub places: Vec<Vec<Place>>,
    /// The numbers that places have, those without operations left out.
    numbers: Vec<usize>,
    layers: usize,
}

/// Where an operation belongs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// Wherever it is needed.
    Anywhere,
    /// In a section: 0 is the embedding, layers follow, the head is the last.
    In(usize),
    /// It collects rows of all layers, and becomes one in each part.
    Everywhere,
}

impl Sections {
    /// The sections of a program.
    ///
    /// # Errors
    /// When no operation has the number of a layer, or a layer depends on a later one.
    pub fn of(program: &Program) -> Result<Sections> {
        let operations = program.functions.iter().flat_map(|function| &function.block.operations);
        let Some(last) = operations.filter_map(layer).max() else {
            let error = Error::new("found no layers, expected operations with names such as `model.layers.0.mlp`");
            return Err(error.hint("only models that were converted just now can be split into parts"));
        };
        let layers = last + 1;
        let mut places = Vec::new();
        for function in &program.functions {
            places.push(of_function(function, layers).map_err(|e| e.at(format!("function `{}`", function.name)))?);
        }
        let numbers: BTreeSet<usize> = places.iter().flatten().filter_map(Place::section).collect();
        Ok(Sections { places, numbers: numbers.into_iter().collect(), layers })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.numbers.len()
    }

    /// The places of a run of sections.
    pub fn numbers(&self, run: &Range<usize>) -> Range<usize> {
        let at = |index: usize| self.numbers.get(index).copied().unwrap_or(self.layers + 2);
        at(run.start)..at(run.end)
    }

    /// The number of layers that are done before a section begins.
    pub fn layers_before(&self, index: usize) -> usize {
        self.numbers.get(index).map_or(self.layers, |number| number.saturating_sub(1))
    }

    /// What a run of sections is, in words.
    pub fn describe(&self, run: Range<usize>) -> String {
        let numbers = self.numbers.get(run).unwrap_or_default();
        let layers: Vec<usize> =
            numbers.iter().filter(|&&n| 0 < n && n <= self.layers).map(|number| number - 1).collect();
        let mut words = Vec::new();
        if numbers.first() == Some(&0) {
            words.push("embedding".to_owned());
        }
        match layers[..] {
            [] => {}
            [only] => words.push(format!("layer {only}")),
            [first, .., last] => words.push(format!("layers {first} to {last}")),
        }
        if numbers.last() == Some(&(self.layers + 1)) {
            words.push("head".to_owned());
        }
        words.join(", ")
    }
}

impl Place {
    /// The number of the section.
    pub fn section(&self) -> Option<usize> {
        match self {
            Place::In(section) => Some(*section),
            Place::Anywhere | Place::Everywhere => None,
        }
    }
}

/// The number of the layer that an operation belongs to, as its name has it.
fn layer(operation: &Operation) -> Option<usize> {
    if is_constant(operation) {
        return None;
    }
    operation.name.split('.').find_map(|word| {
        // No model has a billion layers, and no name of one is written with a sign.
        let is_number = (1..=9).contains(&word.len()) && word.bytes().all(|b| b.is_ascii_digit());
        is_number.then(|| word.parse().ok())?
    })
}

fn is_constant(operation: &Operation) -> bool {
    operation.op_name() == "const" || operation.op_name().starts_with("constexpr_")
}

/// What is known of a value while walking forward.
#[derive(Clone, Copy, Default)]
struct Origin {
    /// Whether the tokens matter, and not only how many there are.
    tokens: bool,
    /// The last layer that it depends on.
    layer: Option<usize>,
}

fn of_function(function: &Function, layers: usize) -> Result<Vec<Place>> {
    let operations = &function.block.operations;
    let collects = Caches::collecting(function);
    let mut origins: HashMap<Var, Origin> = HashMap::new();
    for input in &function.inputs {
        origins.insert(input.var, Origin { tokens: function.var(input.var).name == INPUT_IDS, layer: None });
    }
    // Without a number, and after some layer: which section it is shows once what depends on it is known.
    let mut open: HashMap<usize, usize> = HashMap::new();
    let mut places = Vec::with_capacity(operations.len());
    for (i, operation) in operations.iter().enumerate() {
        let mut origin = Origin::default();
        operation.visit_uses(&mut |var| {
            let used = origins.get(&var).copied().unwrap_or_default();
            origin.tokens |= used.tokens && operation.op_name() != "shape";
            origin.layer = origin.layer.max(used.layer);
        });
        let place = match (layer(operation), origin.layer) {
            _ if is_constant(operation) => Place::Anywhere,
            _ if collects.contains(&i) => Place::Everywhere,
            (Some(own), Some(other)) if other > own => {
                bail!("{}: found it depends on layer {other}, expected none after layer {own}", operation.place())
            }
            (Some(own), _) => {
                origin.layer = Some(own);
                Place::In(own + 1)
            }
            (None, Some(other)) => {
                open.insert(i, other);
                Place::In(layers + 1)
            }
            (None, None) if origin.tokens => Place::In(0),
            (None, None) => Place::Anywhere,
        };
        places.push(place);
        origins.extend(operation.outputs.iter().map(|&var| (var, origin)));
    }
    let defs = Defs::new(function);
    inside(&defs, &open, layers, operations, &mut places);
    later(&defs, function, &mut places);
    Ok(places)
}

/// What a layer depends on and comes after another layer belongs to that one.
fn inside(defs: &Defs, open: &HashMap<usize, usize>, layers: usize, operations: &[Operation], places: &mut [Place]) {
    for (i, operation) in operations.iter().enumerate().rev() {
        let Some(after) = open.get(&i) else { continue };
        let users = operation.outputs.iter().flat_map(|&var| defs.users(var));
        if users.filter_map(|&user| places.get(user)?.section()).any(|section| section <= layers) {
            places[i] = Place::In(after + 1);
        }
    }
}

/// What only later sections use, and is made of what they use too, is theirs: one value less crosses the border.
fn later(defs: &Defs, function: &Function, places: &mut [Place]) {
    for (i, operation) in function.block.operations.iter().enumerate().rev() {
        let (Place::In(own), [output]) = (places[i], &operation.outputs[..]) else { continue };
        let section = |user: &usize| places.get(*user).and_then(Place::section);
        let users = || defs.users(*output).iter();
        let all_placed = users().all(|user| section(user).is_some()) && !defs.is_output(*output);
        let Some(first) = users().filter_map(section).min().filter(|&first| all_placed && first > own) else {
            continue;
        };
        let computed =
            || operation.used_vars().filter(|var| defs.producer_index(*var).is_some_and(|p| section(&p).is_some()));
        let crosses = |var: Var| defs.users(var).iter().any(|&user| user != i && section(&user) >= Some(first));
        if computed().next().is_some() && computed().all(crosses) && operation.op_name() != "read_state" {
            places[i] = Place::In(first);
        }
    }
}
