//! Which values of two functions are to be the same.
//!
//! The operations of both are laid side by side in their order, so that as many as possible that do the same stand
//! opposite each other: the same operation with results of the same sizes, better still of the same name. An operation
//! that only one of them has is passed over. Constants are not compared; what is computed from them is.

use quince_mil::{Block, Dim, Function, Operation, Var};
use std::collections::{HashMap, HashSet};
use std::hash::{Hash, Hasher};

/// The largest table of the alignment: operations of one times operations of the other. Beyond it only names count.
const MAX_CELLS: usize = 1 << 26;

/// What a pair is worth, by how much is the same.
const SAME_NAME: u32 = 6;
const SAME_OPERATION: u32 = 4;
/// The same name and sizes, computed by another operation: `conv` for `linear`.
const OTHER_OPERATION: u32 = 5;
/// That of a name which ends with a number.
const OTHER_OPERATION_NUMBERED: u32 = 3;

/// Which values of two functions are to be the same, by name.
#[derive(Debug, Default)]
pub(super) struct Pairs {
    to_first: HashMap<String, String>,
}

/// A result of an operation, or what a loop hands to its block.
struct Entry<'a> {
    name: &'a str,
    kind: &'a str,
    dims: &'a [Dim],
    /// Equal for names that are equal but for what a conversion to another type appends.
    alias: u64,
    /// Whether the other function has this name too, and it does not end with a number: converters number what they
    /// find, so that those names say less.
    is_shared: bool,
}

impl Pairs {
    pub fn of(first: &Function, second: &Function) -> Pairs {
        let (mut a, mut b) = (entries(first), entries(second));
        share(&mut a, &b);
        share(&mut b, &a);
        let mut pairs = Pairs::default();
        let alike = |a: &Entry, b: &Entry| a.name == b.name && a.kind == b.kind && fit(a, b);
        let head = a.iter().zip(&b).take_while(|(a, b)| alike(a, b)).count();
        let tails = a[head..].iter().rev().zip(b[head..].iter().rev());
        let tail = tails.take_while(|(a, b)| alike(a, b)).count();
        let (middle_a, middle_b) = (&a[head..a.len() - tail], &b[head..b.len() - tail]);
        let same = a[..head].iter().chain(&a[a.len() - tail..]).map(|entry| (entry.name, entry.name));
        let aligned = match middle_a.len().saturating_mul(middle_b.len()) {
            cells if cells <= MAX_CELLS => align(middle_a, middle_b),
            _ => Vec::new(),
        };
        let aligned = aligned.into_iter().map(|(i, j)| (middle_a[i].name, middle_b[j].name));
        for (a, b) in same.chain(aligned) {
            pairs.to_first.insert(b.to_owned(), a.to_owned());
        }
        pairs.add_names(middle_a, middle_b);
        pairs.add_inputs(first, second);
        pairs
    }

    /// The value of the first function for one of the second.
    pub fn first(&self, second: &str) -> Option<&str> {
        self.to_first.get(second).map(String::as_str)
    }

    /// Pairs of equal names that stand in another order.
    fn add_names(&mut self, a: &[Entry], b: &[Entry]) {
        let mut free: HashMap<&str, &Entry> = a.iter().map(|entry| (entry.name, entry)).collect();
        for name in self.to_first.values() {
            free.remove(name.as_str());
        }
        for entry in b {
            let alike = free.get(entry.name).is_some_and(|a| a.kind == entry.kind && fit(a, entry));
            if alike && !self.to_first.contains_key(entry.name) {
                self.to_first.insert(entry.name.to_owned(), entry.name.to_owned());
            }
        }
    }

    /// Inputs and states are paired by name alone.
    fn add_inputs(&mut self, first: &Function, second: &Function) {
        for input in &second.inputs {
            let name = &second.var(input.var).name;
            if first.inputs.iter().any(|input| &first.var(input.var).name == name) {
                self.to_first.insert(name.clone(), name.clone());
            }
        }
    }
}

fn entries(function: &Function) -> Vec<Entry<'_>> {
    let mut entries = Vec::new();
    collect(function, &function.block, &mut entries);
    entries
}

/// Notes which names the other function has too.
fn share(entries: &mut [Entry], others: &[Entry]) {
    let names: HashSet<u64> = others.iter().map(|entry| entry.alias).collect();
    for entry in entries {
        entry.is_shared = !is_numbered(plain(entry.name)) && names.contains(&entry.alias);
    }
}

fn collect<'a>(function: &'a Function, block: &'a Block, entries: &mut Vec<Entry<'a>>) {
    let entry = |var: &Var, kind: &'a str| {
        let info = function.var(*var);
        let dims = &info.ty.as_tensor()?.shape;
        Some(Entry { name: &info.name, kind, dims, alias: hash(plain(&info.name)), is_shared: false })
    };
    for operation in block.operations.iter().filter(|operation| !is_constant(operation)) {
        for block in &operation.blocks {
            entries.extend(block.inputs.iter().filter_map(|var| entry(var, operation.op_name())));
            collect(function, block, entries);
        }
        entries.extend(operation.outputs.iter().filter_map(|var| entry(var, operation.op_name())));
    }
}

/// Whether an operation makes a constant.
pub(super) fn is_constant(operation: &Operation) -> bool {
    operation.op_name() == "const" || operation.op_name().starts_with("constexpr_")
}

fn fit(a: &Entry, b: &Entry) -> bool {
    a.dims.len() == b.dims.len() && a.dims.iter().zip(b.dims).all(|(a, b)| a.fits(*b))
}

/// What it is worth to have two results opposite each other; 0 if they cannot be.
fn worth(a: &Entry, b: &Entry) -> u32 {
    let worth = match (a.kind == b.kind, a.alias == b.alias) {
        (true, true) => SAME_NAME,
        // A name that both have is nobody else's.
        (true, false) if !a.is_shared && !b.is_shared => SAME_OPERATION,
        (false, true) if a.is_shared => OTHER_OPERATION,
        (false, true) => OTHER_OPERATION_NUMBERED,
        _ => return 0,
    };
    if fit(a, b) { worth } else { 0 }
}

/// Whether a name ends with a number: `var_30`.
fn is_numbered(name: &str) -> bool {
    name.rsplit_once('_').is_some_and(|(_, end)| !end.is_empty() && end.bytes().all(|byte| byte.is_ascii_digit()))
}

fn hash(text: &str) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// A name without what coremltools appends when it converts a value to another type.
fn plain(name: &str) -> &str {
    let mut name = name;
    for ending in ["_cast_uint16", "_cast_int16", "_cast_fp16", "_to_fp16", "_cast_fp32"] {
        name = name.strip_suffix(ending).unwrap_or(name);
    }
    name
}

/// The pairs of indices, both ascending, that are worth most together (Needleman and Wunsch's algorithm without a
/// penalty for gaps).
fn align(a: &[Entry], b: &[Entry]) -> Vec<(usize, usize)> {
    #[derive(Clone, Copy, PartialEq)]
    enum Step {
        Pair,
        SkipFirst,
        SkipSecond,
    }
    let mut steps = vec![Step::SkipFirst; a.len() * b.len()];
    // What the entries from here to the end are worth, for the row of `a` after the current one and for the current.
    let (mut below, mut row) = (vec![0u32; b.len() + 1], vec![0u32; b.len() + 1]);
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            let pair = match worth(&a[i], &b[j]) {
                0 => 0,
                worth => worth + below[j + 1],
            };
            let (best, step) = match below[j] >= row[j + 1] {
                true => (below[j], Step::SkipFirst),
                false => (row[j + 1], Step::SkipSecond),
            };
            // Of equal worth the pair: the first ones that fit are those that belong together.
            (row[j], steps[i * b.len() + j]) = if pair > 0 && pair >= best { (pair, Step::Pair) } else { (best, step) };
        }
        std::mem::swap(&mut below, &mut row);
    }
    let (mut pairs, mut i, mut j) = (Vec::new(), 0, 0);
    while i < a.len() && j < b.len() {
        match steps[i * b.len() + j] {
            Step::Pair => {
                pairs.push((i, j));
                (i, j) = (i + 1, j + 1);
            }
            Step::SkipFirst => i += 1,
            Step::SkipSecond => j += 1,
        }
    }
    pairs
}
