//! Mends faults that are known of other tools: each in its own file, found in a function and rewritten in place.

mod default_epsilon;
mod inverse;
mod masks;
mod norm_epsilon;
mod table_scale;

use quince_mil::{Function, Operation, Result, Var, verify};
use quince_mlpackage::Package;
use std::collections::HashSet;

/// A fault that can be mended: a file in `mend/`, and a line in the table.
#[derive(Debug)]
pub struct Mend {
    /// Its name.
    pub id: &'static str,
    /// What is wrong.
    pub fault: &'static str,
    /// What is done about it.
    pub remedy: &'static str,
    /// Where the fault is known from.
    pub source: &'static str,
    /// What becomes of the numbers that the package gives.
    pub effect: Effect,
    /// Mends a function, and gives the names of the operations that it changed.
    run: fn(&mut Function) -> Result<Vec<String>>,
}

/// What becomes of the numbers that a package gives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// They are the same, but where they were NaN.
    Kept,
    /// They become those that were meant.
    Corrected,
}

/// Which faults are mended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mending {
    /// Those whose mending keeps the numbers.
    Safe,
    /// All.
    All,
}

/// What was mended.
#[derive(Clone, Debug)]
pub struct Mended {
    /// How.
    pub mend: &'static Mend,
    /// In which function.
    pub function: String,
    /// The operations that were changed.
    pub operations: Vec<String>,
}

/// Every fault that can be mended.
pub static MENDS: &[&Mend] =
    &[&masks::MEND, &table_scale::MEND, &norm_epsilon::MEND, &inverse::MEND, &default_epsilon::MEND];

/// Mends a package in place. That equal constants are stored once is no matter of this: writing it does so.
///
/// # Errors
/// When a constant cannot be read, or a function that could be verified cannot any more: it is left half mended then, and
/// must not be written.
pub fn mend(package: &mut Package, mending: Mending) -> Result<Vec<Mended>> {
    let mut found = Vec::new();
    for function in &mut package.program.functions {
        let sound = verify::function(function).is_ok();
        for &mend in MENDS.iter().filter(|mend| mending == Mending::All || mend.effect == Effect::Kept) {
            let operations = (mend.run)(function).map_err(|e| e.at(format!("function `{}`", function.name)))?;
            if operations.is_empty() {
                continue;
            }
            if sound {
                verify::function(function).map_err(|e| e.at(format!("after mending `{}`", mend.id)))?;
            }
            found.push(Mended { mend, function: function.name.clone(), operations });
        }
    }
    Ok(found)
}

/// The name of an operation's first result, which is how people find it.
fn name(function: &Function, operation: &Operation) -> String {
    let var = operation.outputs.first().and_then(|var| function.vars.get(var.0 as usize));
    var.map_or_else(|| operation.name.clone(), |info| info.name.clone())
}

/// A name that no variable of the function has.
fn unused(function: &Function, wanted: &str) -> String {
    let taken: HashSet<&str> = function.vars.iter().map(|info| info.name.as_str()).collect();
    let numbered = (1..).map(|n| format!("{wanted}_{n}"));
    let free = std::iter::once(wanted.to_string()).chain(numbered).find(|name| !taken.contains(name.as_str()));
    free.unwrap_or_default()
}

/// The operation of the top block that makes a variable.
fn producer(function: &Function, var: Var) -> Option<&Operation> {
    function.block.operations.iter().find(|operation| operation.outputs.contains(&var))
}
