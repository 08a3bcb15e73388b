//! Asks every rule.

use crate::rule::{Check, Sink};
use crate::view::PackageView;
use crate::{RULES, Report, Target};
use quince_mlpackage::Package;

/// Looks at a package with every rule that matters for the target. Constants that rules ask about are read; nothing is
/// run.
pub fn lint(package: &Package, target: &Target) -> Report {
    let whole = PackageView::new(package, target);
    let mut report = Report::default();
    for &rule in RULES {
        if !target.units.concerns(rule.scope) {
            report.skipped += 1;
            continue;
        }
        report.rules += 1;
        let mut sink = Sink { rule, function: None, findings: Vec::new() };
        match rule.check {
            Check::Package(check) => check(&whole, &mut sink),
            Check::Function(check) => {
                for view in &whole.functions {
                    sink.function = Some(view.function.name.clone());
                    check(view, &mut sink);
                }
            }
        }
        report.findings.append(&mut sink.findings);
    }
    report
}
