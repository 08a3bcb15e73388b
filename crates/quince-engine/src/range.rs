//! What rounding to fp16 did in all calls, by operation: the report of [`Precision::Strict`](crate::Precision::Strict).

use crate::observe::{Observed, Observer, Origin};
use crate::strict::Rounding;
use quince_mil::Result;
use std::collections::HashMap;

/// Gathers what rounding did, operation by operation, while calls are observed.
#[derive(Debug, Default)]
pub struct RangeReport {
    /// The functions called, in the order in which they were first.
    functions: Vec<String>,
    findings: HashMap<(usize, String), Finding>,
    function: usize,
    /// Calls that have begun.
    calls: usize,
    /// Values of the current call so far.
    values: usize,
    /// Values of all calls that were rounded.
    rounded: usize,
}

/// What rounding did to the results of an operation, to an input or to a constant, in all calls together.
#[derive(Clone, PartialEq, Debug)]
pub struct Finding {
    /// The function.
    pub function: String,
    /// The operation's name, or that of the input or constant.
    pub name: String,
    /// The operation, `input` or `constant`.
    pub kind: String,
    /// The first call, counted from 0, in which there was something.
    pub call: usize,
    /// Numbers of elements, added up; the largest magnitude of all calls; `carried` if it always was.
    pub rounding: Rounding,
    /// Its place in the program.
    order: usize,
}

impl RangeReport {
    /// Says that the calls to come are of a function; each call begins with this.
    pub fn begin(&mut self, function: &str) {
        self.function = match self.functions.iter().position(|name| name == function) {
            Some(index) => index,
            None => {
                self.functions.push(function.to_owned());
                self.functions.len() - 1
            }
        };
        self.calls += 1;
        self.values = 0;
    }

    /// What was found, in the order of the program, of the functions in the order in which they were called.
    pub fn findings(&self) -> Vec<&Finding> {
        let mut found: Vec<_> = self.findings.iter().collect();
        found.sort_by(|((a, _), x), ((b, _), y)| (a, x.order, &x.name).cmp(&(b, y.order, &y.name)));
        found.into_iter().map(|(_, finding)| finding).collect()
    }

    /// How many values were rounded, those in which nothing was found included.
    pub fn rounded(&self) -> usize {
        self.rounded
    }
}

impl Observer for RangeReport {
    fn value(&mut self, value: &Observed) -> Result<()> {
        self.values += 1;
        let Some(rounding) = value.rounding else { return Ok(()) };
        self.rounded += 1;
        if rounding.is_clean() {
            return Ok(());
        }
        let (name, kind) = match value.origin {
            Origin::Operation(source) | Origin::State(source) => (source.name, source.kind),
            Origin::Constant => (value.name, "constant"),
            Origin::Input | Origin::StateBefore | Origin::StateAfter => (value.name, "input"),
        };
        let function = self.functions.get(self.function).cloned().unwrap_or_default();
        let finding = self.findings.entry((self.function, name.to_owned())).or_insert_with(|| Finding {
            function,
            name: name.to_owned(),
            kind: kind.to_owned(),
            call: self.calls.saturating_sub(1),
            rounding: Rounding { carried: true, ..Rounding::default() },
            order: self.values,
        });
        finding.rounding.add(&rounding);
        Ok(())
    }
}
