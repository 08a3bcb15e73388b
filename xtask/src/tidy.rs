//! The rules of ARCHITECTURE.md that a program can check. A finding names the file, the line and the rule.

use crate::source::{self, Source};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Result;
use std::path::Path;

/// The longest function, from its signature to its closing brace.
const MAX_FUNCTION: usize = 70;
/// The longest file.
const MAX_FILE: usize = 600;
/// Where exceptions are listed: `PATH LINES` for a file, `PATH NAME LINES` for a function. They only shrink.
const EXCEPTIONS: &str = "xtask/tidy.exceptions";

/// Which crate may import which, as ARCHITECTURE.md has it; what those rest on may be imported too.
const ARROWS: &[(&str, &[&str])] = &[
    ("quince-tensor", &[]),
    ("quince-kernels", &["quince-tensor"]),
    ("quince-mil", &["quince-tensor"]),
    ("quince-mlpackage", &["quince-mil"]),
    ("quince-lint", &["quince-mlpackage"]),
    ("quince-hub", &["quince-tensor"]),
    ("quince-checkpoint", &["quince-tensor"]),
    ("quince-compress", &["quince-kernels", "quince-mil"]),
    ("quince-convert", &["quince-mil", "quince-checkpoint"]),
    ("quince-engine", &["quince-kernels", "quince-mil"]),
    ("quince-runtime", &["quince-engine", "quince-mlpackage"]),
    ("quince-calibrate", &["quince-runtime", "quince-compress"]),
    ("quince-sweep", &["quince-runtime", "quince-compress"]),
    ("quince", &["quince-calibrate", "quince-convert", "quince-hub", "quince-lint", "quince-sweep"]),
];

/// What breaks a rule.
///
/// # Errors
/// When a file cannot be read.
pub fn check(root: &Path) -> Result<Vec<String>> {
    let sources = source::all(root)?;
    let exceptions = fs::read_to_string(root.join(EXCEPTIONS)).unwrap_or_default();
    let mut findings = lengths(&sources, &exceptions);
    for source in &sources {
        findings.extend(head(source));
        findings.extend(words(source));
    }
    findings.extend(source::unreached(&sources).iter().map(|path| format!("{path}: no `mod` reaches this file")));
    findings.extend(arrows(root)?);
    Ok(findings)
}

/// Every file says what it is.
fn head(source: &Source) -> Option<String> {
    let missing = !source.text.starts_with("//! ") && !source.text.starts_with("#![no_main]");
    missing.then(|| format!("{}: the file does not begin with `//!` and what it is", source.path))
}

/// Lengths of functions and files, but for listed exceptions; and exceptions that are no longer needed.
fn lengths(sources: &[Source], exceptions: &str) -> Vec<String> {
    let mut allowed: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for line in exceptions.lines().filter(|line| !line.starts_with('#')) {
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            [path, lines] => allowed.insert((path, ""), lines.parse().unwrap_or(0)),
            [path, name, lines] => allowed.insert((path, name), lines.parse().unwrap_or(0)),
            _ => None,
        };
    }
    let (mut findings, mut used) = (Vec::new(), BTreeSet::new());
    for source in sources {
        let functions = source.functions();
        let whole = ("", 1, source.text.lines().count(), MAX_FILE);
        let parts = functions.iter().map(|f| (f.name, f.line, f.lines, MAX_FUNCTION));
        for (name, line, lines, most) in parts.chain([whole]).filter(|(_, _, lines, most)| lines > most) {
            let what = if name.is_empty() { "the file".to_string() } else { format!("the function `{name}`") };
            let place = format!("{}:{line}", source.path);
            match allowed.get(&(source.path.as_str(), name)) {
                None => findings.push(format!("{place}: {what} has {lines} lines, expected at most {most}")),
                Some(&listed) => {
                    used.insert((source.path.as_str(), name));
                    if listed != lines {
                        findings.push(format!(
                            "{place}: {what} has {lines} lines, {EXCEPTIONS} says {listed}: it may only shrink, and the list with it"
                        ));
                    }
                }
            }
        }
    }
    let stale = allowed.keys().filter(|key| !used.contains(*key));
    findings.extend(stale.map(|(path, name)| format!("{EXCEPTIONS}: `{path} {name}` needs no exception any more")));
    findings
}

/// Words that have no place in finished code.
fn words(source: &Source) -> Vec<String> {
    // Put together here, so that this file does not find itself.
    let never = ["to_do!(", "unimple_mented!(", "d_bg!(", "#[ig_nore"].map(|word| word.replacen('_', "", 1));
    let printing = ["print_ln!(", "eprint_ln!(", "pri_nt!(", "epri_nt!("].map(|word| word.replacen('_', "", 1));
    let prints = source.path.starts_with("crates/quince/") || source.path.starts_with("xtask/");
    let is_library = source.path.contains("/src/") && !prints;
    let mut findings = Vec::new();
    for (number, line) in source.code() {
        let place = format!("{}:{number}", source.path);
        findings
            .extend(never.iter().filter(|word| line.contains(*word)).map(|word| format!("{place}: found `{word}`")));
        if is_library && printing.iter().any(|word| line.contains(word)) {
            findings.push(format!("{place}: found printing, which is for crates/quince alone"));
        }
    }
    findings
}

/// Imports between crates, read from their manifests.
fn arrows(root: &Path) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for entry in fs::read_dir(root.join("crates"))? {
        let directory = entry?.path();
        let name = directory.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let Ok(manifest) = fs::read_to_string(directory.join("Cargo.toml")) else { continue };
        let Some((crate_name, _)) = ARROWS.iter().find(|(known, _)| *known == name) else {
            findings.push(format!("crates/{name}: the crate is not in the table of crates of ARCHITECTURE.md"));
            continue;
        };
        let allowed = below(crate_name);
        let imported = imports(&manifest).filter(|import| !allowed.contains(import));
        findings.extend(imported.map(|import| format!("crates/{name}/Cargo.toml: {name} may not import {import}")));
    }
    findings.sort();
    Ok(findings)
}

/// The crates that one rests on.
fn below(name: &str) -> BTreeSet<&'static str> {
    let direct = ARROWS.iter().find(|(known, _)| *known == name).map_or(&[][..], |(_, direct)| direct);
    direct.iter().flat_map(|name| below(name).into_iter().chain([*name])).collect()
}

/// Our own crates among the dependencies; those of tests alone do not count.
fn imports(manifest: &str) -> impl Iterator<Item = &str> {
    let mut counts = false;
    manifest.lines().filter_map(move |line| {
        if line.starts_with('[') {
            counts = line.ends_with("dependencies]") && !line.contains("dev-dependencies");
        }
        let name = line.split(['.', ' ', '=']).next().unwrap_or_default();
        (counts && name.starts_with("quince")).then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_is_tidy() {
        let findings = check(&crate::root()).unwrap();
        assert!(findings.is_empty(), "\n{}", findings.join("\n"));
    }

    fn source(text: String) -> Source {
        Source { path: "crates/quince-x/src/lib.rs".into(), text }
    }

    #[test]
    fn lengths_have_a_limit_and_exceptions_only_shrink() {
        let long = |lines: usize| [source(format!("//! X.\nfn long() {{\n{}}}\n", "    x();\n".repeat(lines - 2)))];
        assert!(lengths(&long(MAX_FUNCTION), "").is_empty());
        assert_eq!(lengths(&long(MAX_FUNCTION + 1), "").len(), 1);
        let listed = "crates/quince-x/src/lib.rs long 80\n";
        assert!(lengths(&long(80), listed).is_empty());
        assert!(lengths(&long(79), listed)[0].contains("says 80"));
        assert!(lengths(&long(9), listed)[0].contains("needs no exception"));
    }

    #[test]
    fn unfinished_code_and_printing_are_found() {
        let found = |line: &str| words(&source(format!("//! X.\n{line}\n"))).len();
        assert_eq!(found(&["to", "do!()"].concat()), 1);
        assert_eq!(found(&["print", "ln!(\"x\")"].concat()), 1);
        assert_eq!(found(&["// print", "ln!(\"x\")"].concat()), 0);
        assert!(head(&source("fn x() {}".into())).is_some());
    }

    #[test]
    fn imports_are_those_of_the_crate_not_of_its_tests() {
        let manifest = "[dependencies]\nquince-mil.workspace = true\nserde = \"1\"\n[dev-dependencies]\nquince-engine.workspace = true\n";
        assert_eq!(imports(manifest).collect::<Vec<_>>(), ["quince-mil"]);
        assert!(!below("quince-compress").contains("quince-engine"));
        assert!(below("quince-runtime").contains("quince-tensor"));
    }
}
