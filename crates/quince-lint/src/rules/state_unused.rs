//! `state-unused`: states that no function writes, or that nothing reads.

use crate::rule::{Check, Sink};
use crate::view::PackageView;
use crate::{Rule, Scope, Severity};
use std::collections::BTreeMap;

pub(super) static RULE: Rule = Rule {
    id: "state-unused",
    severity: Severity::Warning,
    scope: Scope::Everywhere,
    what: "a state that no function writes, or that no function reads",
    why: "it takes memory and carries nothing: an update was lost on the way, usually because its result was not used",
    fix: "write the state after the update, or leave it out",
    source: "apple/coremltools ops/defs/iOS18/states.py (coreml_update_state is dropped when unused)",
    check: Check::Package(check),
};

fn check(whole: &PackageView, sink: &mut Sink) {
    // Name: function, whether it is read, whether it is written.
    let mut states: BTreeMap<&str, (&str, bool, bool)> = BTreeMap::new();
    for view in &whole.functions {
        for input in &view.function.inputs {
            if !matches!(view.function.ty(input.var), quince_mil::ValueType::State(_)) {
                continue;
            }
            let entry = states.entry(view.name(input.var)).or_insert((&view.function.name, false, false));
            for user in view.users(input.var) {
                entry.1 |= user.op_name() == "read_state";
                entry.2 |= user.op_name() == "write_state";
            }
        }
    }
    for (name, (function, read, written)) in states {
        let found = match (read, written) {
            (true, true) => continue,
            (true, false) => format!("the state `{name}` is never written"),
            (false, true) => format!("the state `{name}` is never read"),
            (false, false) => format!("the state `{name}` is never used"),
        };
        sink.function = Some(function.to_string());
        sink.whole(found);
    }
}
