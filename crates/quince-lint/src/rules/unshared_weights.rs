//! `unshared-weights`: functions that each have their own copy of the same weights.

use crate::rule::{Check, Sink};
use crate::view::PackageView;
use crate::{Rule, Scope, Severity};
use quince_mil::{DType, Weight};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};

pub(super) static RULE: Rule = Rule {
    id: "unshared-weights",
    severity: Severity::Warning,
    scope: Scope::Everywhere,
    what: "equal weights that are stored more than once in the package",
    why: "the package is larger than it need be, on disk and in memory",
    fix: "share them: `quince repair` writes equal constants once, as every package that quince writes has them",
    source: "docs-guides/source/multifunction-models.html (constants are shared by value)",
    check: Check::Package(check),
};

/// Smaller constants are not worth a word.
const LEAST_BYTES: usize = 1 << 16;

fn check(whole: &PackageView, sink: &mut Sink) {
    let mut weights: BTreeMap<usize, Weight> = BTreeMap::new();
    for view in &whole.functions {
        weights.extend(view.stored().filter(|w| w.byte_len() >= LEAST_BYTES).map(|weight| (weight.id(), weight.clone())));
    }
    // Only weights that look alike can be equal.
    let mut alike: HashMap<(DType, Vec<usize>), Vec<Weight>> = HashMap::new();
    for weight in weights.into_values() {
        alike.entry((weight.dtype(), weight.shape().to_vec())).or_default().push(weight);
    }
    let mut wasted = 0u64;
    for several in alike.into_values().filter(|several| several.len() > 1) {
        let mut seen = HashMap::new();
        for weight in several {
            let Ok(tensor) = weight.load() else { continue };
            let digest: [u8; 32] = Sha256::digest(&**tensor.bytes()).into();
            if seen.insert(digest, ()).is_some() {
                wasted += weight.byte_len() as u64;
            }
        }
    }
    if wasted > 0 {
        sink.whole(format!("{} kB of weights are stored again", wasted / 1000));
    }
}
