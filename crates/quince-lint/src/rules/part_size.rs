//! `part-size`: packages that are too large to load in one piece.

use crate::rule::{Check, Sink};
use crate::view::PackageView;
use crate::{Family, Rule, Scope, Severity};

pub(super) static RULE: Rule = Rule {
    id: "part-size",
    severity: Severity::Error,
    scope: Scope::NeuralEngine,
    what: "more than 950 MB of weights in one package",
    why: "above about 1 GB a model loads on the Neural Engine of some devices only; above 1.4 GB an iPhone falls back to the GPU \
          or kills the app",
    fix: "split it (--max-part-size 950MB), or compress the weights further",
    source: "Anemll (chunks of about 950 MB) and Anemll#28; apple/coremltools#2758",
    check: Check::Package(check),
};

/// What loads everywhere.
const GOOD: u64 = 950_000_000;
/// What an iPhone refuses.
const MOST: u64 = 1_400_000_000;

fn check(whole: &PackageView, sink: &mut Sink) {
    let bytes = whole.weight_bytes();
    let said = format!("{} MB of weights in one package", bytes / 1_000_000);
    // Macs have the memory, and the same Neural Engine.
    let is_mac = whole.target.device.is_some_and(|device| device.family == Family::Mac);
    if bytes > MOST && !is_mac {
        sink.whole(said);
    } else if bytes > GOOD {
        sink.whole_as(Severity::Warning, said);
    }
}
