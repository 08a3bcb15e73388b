//! What was found, for people: a paragraph for each rule, a line for each kind of finding.

use super::{Look, scope};
use quince_lint::{Device, Group, RULES, Rule, Severity};

/// How wide texts are.
const WIDTH: usize = 100;
/// How many places are named.
const NAMED: usize = 3;

/// What was found in a package.
pub fn report(look: &Look, target: Option<&Device>) -> String {
    let groups = look.report.groups();
    let mut text = format!("{}: for {}", look.path.display(), look.units.name());
    if let Some(device) = target {
        text += &format!(" on {} ({})", device.name, device.chip);
    }
    text += "\n";
    // A rule's kinds of findings stand together, where its gravest does.
    let mut said: Vec<&str> = Vec::new();
    for group in &groups {
        let Some(rule) = group.findings.first().map(|finding| finding.rule) else { continue };
        if said.contains(&rule.id) {
            continue;
        }
        said.push(rule.id);
        let of_rule: Vec<&Group> =
            groups.iter().filter(|group| group.findings.first().is_some_and(|f| f.rule.id == rule.id)).collect();
        text += &paragraph(rule, group.severity(), &of_rule, look.functions > 1);
    }
    text + "\n" + &summary(look)
}

/// Every rule.
pub fn rules() -> String {
    let mut text = String::new();
    for rule in RULES {
        text += &format!("{} ({}, {})\n", rule.id, rule.severity.name(), scope(rule.scope));
        text += &wrapped("finds   ", rule.what);
        text += &wrapped("why     ", rule.why);
        text += &wrapped("fix     ", rule.fix);
        text += &wrapped("source  ", rule.source);
        text += "\n";
    }
    text + &format!("{} rules\n", RULES.len())
}

fn paragraph(rule: &Rule, severity: Severity, groups: &[&Group], with_functions: bool) -> String {
    let mut text = format!("\n{}: {}\n", severity.name(), rule.id);
    for group in groups {
        let Some(first) = group.findings.first() else { continue };
        let count = group.findings.len();
        let times = if count > 1 { format!("{count} × ") } else { String::new() };
        text += &format!("  {times}{}{}\n", first.found, places(group, with_functions));
    }
    text + &wrapped("why  ", rule.why) + &wrapped("fix  ", rule.fix)
}

/// `: name (type), name and 3 more, in decode and init`.
fn places(group: &Group, with_functions: bool) -> String {
    let named: Vec<String> = group
        .findings
        .iter()
        .filter_map(|finding| {
            let name = finding.place.as_deref()?;
            Some(if finding.detail.is_empty() { name.to_string() } else { format!("{name} ({})", finding.detail) })
        })
        .collect();
    let mut text = String::new();
    if let Some(first) = named.first() {
        // Several details in a line would hide the names.
        let rest: Vec<&str> =
            group.findings.iter().skip(1).take(NAMED - 1).filter_map(|f| f.place.as_deref()).collect();
        text += &format!(": {}", [vec![first.as_str()], rest].concat().join(", "));
        if named.len() > NAMED {
            text += ", ...";
        }
    }
    if with_functions && !group.functions().is_empty() {
        let functions: Vec<&str> = group.functions().into_iter().collect();
        text += &format!(" (in {})", functions.join(", "));
    }
    text
}

fn summary(look: &Look) -> String {
    let report = &look.report;
    let counted = |severity: Severity| {
        let (count, name) = (report.count(severity), severity.name());
        (count > 0).then(|| format!("{count} {name}{}", if count == 1 { "" } else { "s" }))
    };
    let counts: Vec<String> =
        [Severity::Error, Severity::Warning, Severity::Note].into_iter().filter_map(counted).collect();
    let found = if counts.is_empty() { "nothing found".to_string() } else { counts.join(", ") };
    let functions =
        if look.functions == 1 { "1 function".to_string() } else { format!("{} functions", look.functions) };
    let mut text = format!("{found}: {} rules, {functions}\n", report.rules);
    if report.skipped > 0 {
        text += &format!(
            "{} rules are about the Neural Engine or GPU, which the package is not for; --compute-units all asks them\n",
            report.skipped
        );
    }
    text
}

/// A text after its name, in lines of their width.
fn wrapped(name: &str, text: &str) -> String {
    let indent = " ".repeat(4 + name.len());
    let mut out = String::new();
    let mut line = format!("    {name}");
    let mut length = line.chars().count();
    let mut first = true;
    for word in text.split_whitespace() {
        let letters = word.chars().count();
        if !first && length + 1 + letters > WIDTH {
            out += line.trim_end();
            out += "\n";
            line = indent.clone();
            length = indent.len();
            first = true;
        }
        if !first {
            line.push(' ');
            length += 1;
        }
        line += word;
        length += letters;
        first = false;
    }
    out += &line;
    out + "\n"
}
