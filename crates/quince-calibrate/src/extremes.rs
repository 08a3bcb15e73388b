//! Runs texts and notes how large the results of each operation become.

use crate::Run;
use crate::collect::observe_all;
use quince_engine::{Observed, Observer, Origin};
use quince_runtime::Watch;
use quince_tensor::Result;
use std::collections::HashMap;

/// How large the results of an operation became.
#[derive(Clone, PartialEq, Debug)]
pub struct Extreme {
    /// The operation's name.
    pub name: String,
    /// The operation: `linear`.
    pub kind: String,
    /// The largest magnitude of those that are finite.
    pub largest: f32,
}

/// The extremes of all operations with floating-point results, in the order in which they ran first. `progress` hears how
/// many texts of how many were run.
///
/// # Errors
/// What the engine reports.
pub fn extremes(runs: &mut [Run], progress: &mut dyn FnMut(usize, usize)) -> Result<Vec<Extreme>> {
    let mut found = Extremes::default();
    observe_all(runs, &mut found, progress)?;
    Ok(found.all)
}

#[derive(Default)]
struct Extremes {
    all: Vec<Extreme>,
    numbers: HashMap<String, usize>,
}

impl Watch for Extremes {
    fn enter(&mut self, _: &str) {}
}

impl Observer for Extremes {
    fn value(&mut self, value: &Observed) -> Result<()> {
        let Origin::Operation(source) = value.origin else { return Ok(()) };
        if !value.dtype.is_float() {
            return Ok(());
        }
        let elements = value.tensor()?.to_f32()?;
        let largest = elements.into_iter().filter(|x| x.is_finite()).fold(0f32, |most, x| most.max(x.abs()));
        match self.numbers.get(source.name) {
            Some(&number) => self.all[number].largest = self.all[number].largest.max(largest),
            None => {
                self.numbers.insert(source.name.to_owned(), self.all.len());
                let (name, kind) = (source.name.to_owned(), source.kind.to_owned());
                self.all.push(Extreme { name, kind, largest });
            }
        }
        Ok(())
    }
}
