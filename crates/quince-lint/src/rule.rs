//! What a rule is, and what it reports to.

use crate::view::{PackageView, View};
use crate::{Finding, Severity};
use quince_mil::{Operation, Var};

/// A rule: a file in `rules/`, and a line in its table.
#[derive(Debug)]
pub struct Rule {
    /// Its name: `fused-attention`.
    pub id: &'static str,
    /// How grave what it finds is, unless it says otherwise.
    pub severity: Severity,
    /// For which processors it matters.
    pub scope: Scope,
    /// What it looks for.
    pub what: &'static str,
    /// Why that is bad.
    pub why: &'static str,
    /// What to do about it.
    pub fix: &'static str,
    /// Where that is known from.
    pub source: &'static str,
    /// Looks for it.
    pub(crate) check: Check,
}

/// For which processors a rule matters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// For all: the model is refused, or its numbers are wrong.
    Everywhere,
    /// Where computing is in float16: the GPU and the Neural Engine.
    Accelerators,
    /// Only for the Neural Engine.
    NeuralEngine,
}

/// What a rule looks at.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Check {
    /// One function at a time.
    Function(fn(&View, &mut Sink)),
    /// The package as a whole.
    Package(fn(&PackageView, &mut Sink)),
}

/// Where a rule puts what it finds.
pub(crate) struct Sink {
    pub(crate) rule: &'static Rule,
    pub(crate) function: Option<String>,
    pub(crate) findings: Vec<Finding>,
}

impl Sink {
    /// An operation is at fault.
    pub fn operation(
        &mut self,
        view: &View,
        operation: &Operation,
        found: impl Into<String>,
        detail: impl Into<String>,
    ) {
        self.operation_as(self.rule.severity, view, operation, found, detail);
    }

    /// An operation is at fault, as grave as this.
    pub fn operation_as(
        &mut self,
        severity: Severity,
        view: &View,
        operation: &Operation,
        found: impl Into<String>,
        detail: impl Into<String>,
    ) {
        let place = match operation.outputs.first() {
            Some(var) => view.name(*var).to_string(),
            None => operation.name.clone(),
        };
        self.push(severity, Some(place), Some(operation.op_name().to_string()), found.into(), detail.into());
    }

    /// An input, output or state is at fault; `kind` says which of them it is.
    pub fn feature(&mut self, view: &View, var: Var, kind: &str, found: impl Into<String>, detail: impl Into<String>) {
        let place = Some(view.name(var).to_string());
        self.push(self.rule.severity, place, Some(kind.to_string()), found.into(), detail.into());
    }

    /// The function, or the package, is at fault as a whole.
    pub fn whole(&mut self, found: impl Into<String>) {
        self.whole_as(self.rule.severity, found);
    }

    /// The function, or the package, is at fault as a whole, as grave as this.
    pub fn whole_as(&mut self, severity: Severity, found: impl Into<String>) {
        self.push(severity, None, None, found.into(), String::new());
    }

    fn push(&mut self, severity: Severity, place: Option<String>, kind: Option<String>, found: String, detail: String) {
        let function = self.function.clone();
        self.findings.push(Finding { rule: self.rule, severity, function, place, kind, found, detail });
    }
}
