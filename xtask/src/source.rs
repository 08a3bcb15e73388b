//! What tidy looks at: source files, their functions, and which of them are reached by `mod`.
//!
//! The code is formatted by rustfmt, so a function ends at the first `}` that is indented as its first line is.

use std::collections::BTreeSet;
use std::fs;
use std::io::Result;
use std::path::{Path, PathBuf};

/// A source file.
pub struct Source {
    /// Relative to the workspace, with `/` between parts.
    pub path: String,
    /// Its text.
    pub text: String,
}

/// A function and how long it is.
pub struct Function<'a> {
    /// Its name.
    pub name: &'a str,
    /// The line that it begins on, from 1.
    pub line: usize,
    /// From its signature to its closing brace.
    pub lines: usize,
}

/// All Rust files of the workspace, sorted.
pub fn all(root: &Path) -> Result<Vec<Source>> {
    let mut paths = Vec::new();
    for directory in ["crates", "xtask", "fuzz"] {
        walk(&root.join(directory), &mut paths)?;
    }
    paths.sort();
    let read = |path: PathBuf| {
        let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().replace('\\', "/");
        Ok(Source { path: name, text: fs::read_to_string(&path)? })
    };
    paths.into_iter().map(read).collect()
}

fn walk(directory: &Path, paths: &mut Vec<PathBuf>) -> Result<()> {
    if !directory.is_dir() || directory.file_name().is_some_and(|name| name == "target") {
        return Ok(());
    }
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            walk(&path, paths)?;
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            paths.push(path);
        }
    }
    Ok(())
}

impl Source {
    /// The lines that are not comments, with their numbers from 1.
    pub fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.text.lines().enumerate().map(|(index, line)| (index + 1, line));
        lines.filter(|(_, line)| !line.trim_start().starts_with("//"))
    }

    /// The functions, nested ones too.
    pub fn functions(&self) -> Vec<Function<'_>> {
        let lines: Vec<&str> = self.text.lines().collect();
        let mut found = Vec::new();
        for (index, line) in lines.iter().enumerate() {
            let Some(name) = function_name(line) else { continue };
            let indent = &line[..line.len() - line.trim_start().len()];
            let rest = &lines[index..];
            let ends = |line: &str| line.strip_prefix(indent).is_some_and(|rest| rest == "}" || rest == "},");
            let is_short = line.ends_with('}') || line.ends_with(';');
            let lines = if is_short { 1 } else { rest.iter().position(|line| ends(line)).map_or(1, |end| end + 1) };
            found.push(Function { name, line: index + 1, lines });
        }
        found
    }

    /// The names that stand where a module may be declared: `mod name;`, or a line `name: ...` of a table.
    fn declares(&self, name: &str) -> bool {
        self.code().map(|(_, line)| line.trim()).any(|line| {
            let module = line.rsplit(' ').next().and_then(|last| last.strip_suffix(';')) == Some(name);
            module && line.split(' ').any(|word| word == "mod") || line.split(':').next() == Some(name)
        })
    }
}

fn function_name(line: &str) -> Option<&str> {
    let mut words = line.trim_start();
    loop {
        match words.split_once(' ')? {
            ("fn", rest) => return rest.split(['(', '<']).next().filter(|name| !name.is_empty()),
            ("pub" | "pub(crate)" | "pub(super)" | "const" | "unsafe" | "async" | "extern" | "\"C\"", rest) => {
                words = rest
            }
            _ => return None,
        }
    }
}

/// The files that no `mod` reaches.
pub fn unreached(sources: &[Source]) -> Vec<&str> {
    let paths: BTreeSet<&str> = sources.iter().map(|source| source.path.as_str()).collect();
    let declared = |path: &str| {
        let (parents, name) = (parents(path), module_name(path));
        // Besides the usual places, a file that Cargo finds by itself declares modules beside it.
        let may = |parent: &Source| {
            parents.contains(&parent.path) || is_root(&parent.path, &paths) && beside(&parent.path, path)
        };
        sources.iter().any(|parent| may(parent) && parent.declares(name))
    };
    let reached = |source: &&Source| is_root(&source.path, &paths) || declared(&source.path);
    sources.iter().filter(|source| !reached(source)).map(|source| source.path.as_str()).collect()
}

/// Files that Cargo finds by itself.
fn is_root(path: &str, paths: &BTreeSet<&str>) -> bool {
    let parts: Vec<&str> = path.split('/').collect();
    match parts[..] {
        [.., "src", "lib.rs" | "main.rs"] => true,
        [.., "tests" | "examples" | "benches" | "fuzz_targets" | "bin", _] => {
            // `src/tests.rs` may be a module with files in `src/tests/`.
            let directory = &path[..path.rfind('/').unwrap_or(0)];
            !paths.contains(format!("{directory}.rs").as_str())
                && !paths.contains(format!("{directory}/mod.rs").as_str())
        }
        [.., "tests" | "examples", _, "main.rs"] => true,
        _ => false,
    }
}

/// The name of the module that a file is.
fn module_name(path: &str) -> &str {
    let path = path.strip_suffix("/mod.rs").or(path.strip_suffix(".rs")).unwrap_or(path);
    path.rsplit('/').next().unwrap_or(path)
}

/// Whether a module's file, or its directory, lies in the directory of another file.
fn beside(file: &str, module: &str) -> bool {
    let module = module.strip_suffix("/mod.rs").unwrap_or(module);
    file.rsplit_once('/').map(|parts| parts.0) == module.rsplit_once('/').map(|parts| parts.0)
}

/// The files that may declare a file as their module.
fn parents(path: &str) -> Vec<String> {
    let module = path.strip_suffix("/mod.rs").unwrap_or(path);
    let Some((directory, _)) = module.rsplit_once('/') else { return Vec::new() };
    // A file in the directory of roots may declare modules beside it.
    let siblings = ["lib.rs", "main.rs", "mod.rs"].map(|file| format!("{directory}/{file}"));
    siblings.into_iter().chain([format!("{directory}.rs")]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source { path: path.to_string(), text: text.to_string() }
    }

    #[test]
    fn functions_end_where_their_indentation_does() {
        let text = "pub fn a() {\n    if x {\n    }\n}\n\nimpl T {\n    fn b(&self) -> u8 {\n        1\n    }\n    fn c();\n}\n";
        let source = source("x.rs", text);
        let found: Vec<_> = source.functions().iter().map(|f| (f.name, f.line, f.lines)).collect();
        assert_eq!(found, [("a", 1, 4), ("b", 7, 3), ("c", 10, 1)]);
    }

    #[test]
    fn files_are_reached_by_mod_or_by_a_table() {
        let sources = [
            source("crates/a/src/lib.rs", "mod one;\npub(crate) mod ops;\n"),
            source("crates/a/src/one.rs", ""),
            source("crates/a/src/ops/mod.rs", "table! {\n    linear: Linear;\n}\n"),
            source("crates/a/src/ops/linear.rs", ""),
            source("crates/a/src/ops/dead.rs", ""),
            source("crates/a/tests/t.rs", "mod helper;\n"),
            source("crates/a/tests/helper/mod.rs", ""),
        ];
        assert_eq!(unreached(&sources), ["crates/a/src/ops/dead.rs"]);
    }
}
