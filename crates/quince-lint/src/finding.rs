//! What was found: by which rule, where, and how grave it is.

use crate::Rule;
use std::collections::{BTreeMap, BTreeSet};

/// How grave a finding is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Severity {
    /// Worth knowing.
    Note,
    /// It runs, but slower, larger or less exactly than it could.
    Warning,
    /// It is refused, gives wrong numbers, or is killed.
    Error,
}

/// One thing that a rule found.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The rule.
    pub rule: &'static Rule,
    /// How grave it is here.
    pub severity: Severity,
    /// The function; none where it is the package as a whole.
    pub function: Option<String>,
    /// The operation, by the name of its first result, or the input, output or state; none where it is the function as
    /// a whole.
    pub place: Option<String>,
    /// The operation's name in MIL, or `input`, `output`, `state`.
    pub kind: Option<String>,
    /// What was found; equal for what is equal in kind, so that it can be counted.
    pub found: String,
    /// What is particular about this one: its type, its value.
    pub detail: String,
}

/// Everything that was found in a package.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The findings: by rule in the order of the table, then as they lie in the package.
    pub findings: Vec<Finding>,
    /// How many rules were asked.
    pub rules: usize,
    /// Rules that were not asked, because they are about processors that the package is not for.
    pub skipped: usize,
}

/// Findings of one rule that say the same.
#[derive(Clone, Debug)]
pub struct Group<'a> {
    /// The findings, at least one.
    pub findings: Vec<&'a Finding>,
}

impl Severity {
    /// The name: `error`, `warning`, `note`.
    pub fn name(self) -> &'static str {
        match self {
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Error => "error",
        }
    }
}

impl Report {
    /// The findings that say the same together: the gravest first, then in the order of the table of rules.
    pub fn groups(&self) -> Vec<Group<'_>> {
        let mut groups: Vec<Group> = Vec::new();
        let mut by_text: BTreeMap<(&str, Severity, &str), usize> = BTreeMap::new();
        for finding in &self.findings {
            let key = (finding.rule.id, finding.severity, finding.found.as_str());
            match by_text.get(&key).and_then(|&i| groups.get_mut(i)) {
                Some(group) => group.findings.push(finding),
                None => {
                    by_text.insert(key, groups.len());
                    groups.push(Group { findings: vec![finding] });
                }
            }
        }
        groups.sort_by_key(|group| std::cmp::Reverse(group.severity()));
        groups
    }

    /// How many findings there are of this severity.
    pub fn count(&self, severity: Severity) -> usize {
        self.findings.iter().filter(|finding| finding.severity == severity).count()
    }

    /// The gravest finding's severity; none if nothing was found.
    pub fn worst(&self) -> Option<Severity> {
        self.findings.iter().map(|finding| finding.severity).max()
    }
}

impl Group<'_> {
    /// How grave they are.
    pub fn severity(&self) -> Severity {
        self.findings.first().map_or(Severity::Note, |finding| finding.severity)
    }

    /// The functions that they are in, sorted.
    pub fn functions(&self) -> BTreeSet<&str> {
        self.findings.iter().filter_map(|finding| finding.function.as_deref()).collect()
    }
}
