//! `memory`: packages that a device has no memory for.

use crate::rule::{Check, Sink};
use crate::view::PackageView;
use crate::{Rule, Scope, Severity};

pub(super) static RULE: Rule = Rule {
    id: "memory",
    severity: Severity::Error,
    scope: Scope::Everywhere,
    what: "weights and states that are more than an app may use on the device that was named",
    why: "iOS ends the app when it crosses its limit, without a word to it",
    fix: "compress further, shorten the context, or ask for the increased-memory-limit entitlement; `quince plan` shows what fits",
    source: "the table of devices, `quince plan --devices`",
    check: Check::Package(check),
};

fn check(whole: &PackageView, sink: &mut Sink) {
    let Some(device) = whole.target.device else { return };
    let bytes = whole.weight_bytes() + whole.state_bytes();
    if bytes > device.app_bytes {
        let (needed, there) = (bytes / 1_000_000, device.app_bytes / 1_000_000);
        sink.whole(format!("{needed} MB of weights and states, an app may use {there} MB of an {}", device.name));
    }
}
