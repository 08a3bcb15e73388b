//! Recipes: which weight gets what, as a YAML file that quince writes and people edit.
//!
//! ```yaml
//! version: 1
//! weight_threshold: 2048                # weights of fewer elements stay, unless a rule names them; this is the default
//! rules:
//!   - weights: all                      # all, a part of the model, a pattern of names, or a list of these
//!     wbits: 3
//!     palett_group_size: 16
//!   - weights: [model.embed_tokens.weight, "*.layers.0.*"]
//!     wbits: 6
//!     palett_granularity: per_tensor
//!   - weights: lm_head
//!     keep: true                        # as it is
//! ```
//!
//! The keys of a rule are the options of the command line with underscores. As there, the most particular rule counts,
//! the later one among equals.

use super::scheme::{Devices, SchemeArgs};
use super::yaml::{self, Node, Value};
use crate::failure::{Failure, Result, refused};
use clap::{CommandFactory, FromArgMatches, Parser};
use quince_compress::{
    Granularity, Linear, LinearDType, LinearMode, OptimizationConfig, Palette, PaletteMode, Pruning, Rule, Scheme,
    Selector, TableType,
};
use quince_tensor::Error;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The name of the file in bundles.
pub const RECIPE: &str = "recipe.yaml";
/// The version of the form.
const VERSION: &str = "1";
/// The weights of a rule for all that no other rule is about.
const ALL: &str = "all";
const HEAD: &str = "\
# Which weight gets which scheme; `quince convert --recipe FILE` and `quince compress --recipe FILE` take it back.
# The most particular rule counts, the later one among equals. Keys are options of the command line.
";

/// Reads a file.
///
/// # Errors
/// When it cannot be read or is no recipe; the place is the line.
pub fn read(file: &Path, devices: Devices) -> Result<OptimizationConfig> {
    let text = fs::read_to_string(file).map_err(|e| refused("read the recipe", file, &e))?;
    Ok(parse(&text, devices).map_err(|e| e.at(file.display()))?)
}

/// Reads the text of a recipe.
///
/// # Errors
/// As [`read`].
pub fn parse(text: &str, devices: Devices) -> Result<OptimizationConfig, Error> {
    let node = yaml::parse(text)?;
    let mut config = OptimizationConfig { rules: Vec::new(), weight_threshold: OptimizationConfig::WEIGHT_THRESHOLD };
    let (mut version, mut rules) = (None, None);
    for (key, node) in map(&node)? {
        match key.as_str() {
            "version" => version = Some(scalar(node)?),
            "weight_threshold" => {
                let found = scalar(node)?;
                let wrong =
                    |_| wrong(node, format!("weight_threshold: found `{found}`, expected a number of elements"));
                config.weight_threshold = found.parse().map_err(wrong)?;
            }
            "rules" => rules = Some(list(node)?),
            _ => return Err(unknown(node, key, &["version", "weight_threshold", "rules"])),
        }
    }
    match version {
        Some(VERSION) => {}
        Some(found) => return Err(wrong(&node, format!("version: found `{found}`, expected {VERSION}"))),
        None => {
            return Err(wrong(&node, "found no version").hint(format!("begin the recipe with `version: {VERSION}`")));
        }
    }
    for node in rules.unwrap_or_default() {
        rule(node, devices, &mut config.rules)?;
    }
    match config.rules.is_empty() {
        true => Err(wrong(&node, "found no rule, expected some").hint("rules: [{weights: all, wbits: 4}]")),
        false => Ok(config),
    }
}

/// A rule for each of its weights.
fn rule(node: &Node, devices: Devices, rules: &mut Vec<Rule>) -> Result<(), Error> {
    let (mut selectors, mut keep, mut words): (Vec<Selector>, bool, Vec<String>) = (Vec::new(), false, Vec::new());
    let command = Line::command();
    let known: Vec<&str> = command.get_arguments().map(|arg| arg.get_id().as_str()).collect();
    for (key, node) in map(node)? {
        match key.as_str() {
            "weights" => selectors = weights(node)?,
            "keep" => keep = truth(node, key)?,
            key if known.contains(&key) => {
                let option = key.replace('_', "-");
                let takes_value =
                    command.get_arguments().any(|arg| arg.get_id() == key && arg.get_action().takes_values());
                match takes_value {
                    true => words.push(format!("--{option}={}", scalar(node)?)),
                    false if truth(node, key)? => words.push(format!("--{option}")),
                    false => {}
                }
            }
            _ => return Err(unknown(node, key, &[&["weights", "keep"], &known[..]].concat())),
        }
    }
    if selectors.is_empty() {
        return Err(wrong(node, "found a rule without weights").hint(format!("weights: {ALL}, or a name, or a list")));
    }
    let scheme = match (keep, words.len()) {
        (true, 0) => None,
        (true, _) => return Err(wrong(node, "found `keep` beside a way to compress, expected one of them")),
        (false, _) => Some(scheme(&words, devices).map_err(|e| e.at(format!("line {}", node.line)))?),
    };
    rules.extend(selectors.into_iter().map(|selector| Rule { selector, scheme }));
    Ok(())
}

/// The options of a rule, as the command line reads them.
#[derive(Parser)]
#[command(no_binary_name = false, disable_help_flag = true)]
struct Line {
    #[command(flatten)]
    scheme: SchemeArgs,
}

/// What options of the command line make of a weight.
///
/// # Errors
/// When they are none, or contradict each other.
pub fn scheme(options: &[String], devices: Devices) -> Result<Scheme, Error> {
    let words = ["recipe"].into_iter().chain(options.iter().map(String::as_str));
    let matches = Line::command().try_get_matches_from(words);
    let line = matches.and_then(|matches| Line::from_arg_matches(&matches)).map_err(|e| {
        let text = e.to_string();
        let lines: Vec<&str> = text.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
        Error::new(lines.join("; ").trim_start_matches("error: ").to_owned())
    })?;
    match line.scheme.scheme(devices) {
        Ok(Some(scheme)) => Ok(scheme),
        Ok(None) => {
            Err(Error::new("found a rule that does nothing").hint("add wbits, quantize or sparsity, or keep: true"))
        }
        Err(Failure::Usage(error) | Failure::Error(error)) => Err(error),
        Err(Failure::ClosedPipe) => Err(Error::new("closed")),
    }
}

fn weights(node: &Node) -> Result<Vec<Selector>, Error> {
    let nodes = match &node.value {
        Value::List(nodes) => nodes.iter().collect(),
        _ => vec![node],
    };
    let selector = |node: &&Node| -> Result<Selector, Error> {
        let name = scalar(node)?;
        match name {
            ALL => Ok(Selector::Default),
            name => name.parse().map_err(|e: Error| e.at(format!("line {}", node.line))),
        }
    };
    nodes.iter().map(selector).collect()
}

fn map(node: &Node) -> Result<&[(String, Node)], Error> {
    match &node.value {
        Value::Map(entries) => Ok(entries),
        _ => Err(wrong(node, "expected a mapping of keys to values")),
    }
}

fn list(node: &Node) -> Result<&[Node], Error> {
    match &node.value {
        Value::List(nodes) => Ok(nodes),
        _ => Err(wrong(node, "expected a list").hint("begin each entry with `- `")),
    }
}

fn scalar(node: &Node) -> Result<&str, Error> {
    match &node.value {
        Value::Scalar(text) => Ok(text),
        _ => Err(wrong(node, "expected a word or a number")),
    }
}

fn truth(node: &Node, key: &str) -> Result<bool, Error> {
    match scalar(node)? {
        "true" => Ok(true),
        "false" => Ok(false),
        found => Err(wrong(node, format!("{key}: found `{found}`, expected true or false"))),
    }
}

fn wrong(node: &Node, message: impl Into<String>) -> Error {
    Error::new(message).at(format!("line {}", node.line))
}

fn unknown(node: &Node, key: &str, known: &[&str]) -> Error {
    let near = known.iter().min_by_key(|name| distance(key, name)).copied().unwrap_or_default();
    let error = wrong(node, format!("found the key `{}`, expected one of {}", key.escape_debug(), known.join(", ")));
    if distance(key, near) * 2 < near.len() { error.hint(format!("did you mean `{near}`?")) } else { error }
}

/// Letters to be changed, added or left out to make one word of the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().take(64).enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let changed = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

/// The text of a recipe: rules for single weights that have one scheme are written as one.
pub fn text(config: &OptimizationConfig) -> String {
    let mut text = format!("{HEAD}version: {VERSION}\n");
    if config.weight_threshold != OptimizationConfig::WEIGHT_THRESHOLD {
        text += &format!("weight_threshold: {}\n", config.weight_threshold);
    }
    text += "rules:\n";
    let mut written: Vec<Option<Scheme>> = Vec::new();
    // The later of two rules for a name counts: rules change places only where each is about another name.
    let names: BTreeSet<&Selector> = config.rules.iter().map(|rule| &rule.selector).collect();
    let distinct = names.len() == config.rules.len() && !names.iter().any(|s| is_pattern(s));
    for rule in &config.rules {
        let grouped = distinct && matches!(rule.selector, Selector::Name(_));
        if grouped && written.contains(&rule.scheme) {
            continue;
        }
        let same = |other: &&Rule| matches!(other.selector, Selector::Name(_)) && other.scheme == rule.scheme;
        let rules: Vec<&Rule> = if grouped { config.rules.iter().filter(same).collect() } else { vec![rule] };
        if grouped {
            written.push(rule.scheme);
        }
        text += &match &rules[..] {
            [only] => format!("  - weights: {}\n", quoted(&only.selector)),
            many => {
                let lines = many.iter().map(|rule| format!("      - {}\n", quoted(&rule.selector)));
                format!("  - weights:\n{}", lines.collect::<String>())
            }
        };
        let keys = rule.scheme.map_or(vec![("keep", "true".to_owned())], keys);
        text.extend(keys.into_iter().map(|(key, value)| format!("    {key}: {value}\n")));
    }
    text
}

/// Whether a selector may be about several names, among them those that others of its kind are about.
fn is_pattern(selector: &Selector) -> bool {
    match selector {
        Selector::Name(name) => name.contains('*'),
        Selector::Layers { .. } => true,
        Selector::Default | Selector::Component(_) => false,
    }
}

fn quoted(selector: &Selector) -> String {
    match selector {
        Selector::Default => ALL.to_owned(),
        Selector::Component(_) | Selector::Layers { .. } => selector.to_string(),
        Selector::Name(name) => format!("\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\"")),
    }
}

/// The keys of a scheme: what the command line would say.
fn keys(scheme: Scheme) -> Vec<(&'static str, String)> {
    match scheme {
        Scheme::Palette(palette) => of_palette(palette),
        Scheme::VectorPalette(vectors) => {
            let dim = ("palett_cluster_dim", vectors.dim.get().to_string());
            of_palette(vectors.palette).into_iter().chain([dim]).collect()
        }
        Scheme::Linear(linear) => of_linear(linear),
        Scheme::Sparse(sparse) => vec![of_pruning(sparse.pruning)],
        Scheme::SparsePalette(sparse) => {
            of_palette(sparse.palette).into_iter().chain([of_pruning(sparse.pruning)]).collect()
        }
        Scheme::SparseLinear(sparse) => {
            of_linear(sparse.linear).into_iter().chain([of_pruning(sparse.pruning)]).collect()
        }
    }
}

fn of_palette(palette: Palette) -> Vec<(&'static str, String)> {
    let mut keys = vec![("wbits", palette.nbits.get().to_string())];
    match palette.mode {
        PaletteMode::KMeans => {}
        PaletteMode::Uniform => keys.push(("palett_mode", "uniform".into())),
        PaletteMode::Unique => keys.push(("palett_mode", "unique".into())),
    }
    match palette.group_size {
        None => keys.push(("palett_granularity", "per_tensor".into())),
        Some(1) => keys.push(("palett_per_channel_scale", "true".into())),
        Some(size) => keys.push(("palett_group_size", size.to_string())),
    }
    if palette.table == TableType::Int8 {
        keys.push(("palett_lut_dtype", "int8".into()));
    }
    keys
}

fn of_linear(linear: Linear) -> Vec<(&'static str, String)> {
    let dtype = match linear.dtype {
        LinearDType::Int8 => "int8",
        LinearDType::UInt8 => "uint8",
        LinearDType::Int4 => "int4",
        LinearDType::UInt4 => "uint4",
    };
    let mode = match linear.mode {
        LinearMode::Symmetric => "linear_symmetric",
        LinearMode::Asymmetric => "linear",
        LinearMode::SymmetricClipped => "symmetric_with_clipping",
    };
    let granularity = match linear.granularity {
        Granularity::PerTensor => ("quantize_granularity", "per_tensor".to_owned()),
        Granularity::PerChannel => ("quantize_granularity", "per_channel".to_owned()),
        Granularity::PerBlock(size) => ("quantize_block_size", size.to_string()),
    };
    vec![("quantize", dtype.to_owned()), ("quantize_mode", mode.to_owned()), granularity]
}

fn of_pruning(pruning: Pruning) -> (&'static str, String) {
    match pruning {
        Pruning::Magnitude(share) => ("sparsity", share.get().to_string()),
        Pruning::Ratio { zeros, of } => ("sparsity_n_m", format!("{zeros}:{of}")),
        Pruning::Threshold(least) => ("sparsity_threshold", least.get().to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quince_compress::{ClusterDim, Component, Nbits, Sparse, SparseLinear, SparsePalette, VectorPalette};

    const ANYWHERE: Devices = Devices { accelerators: true, only_neural_engine: false };

    #[test]
    fn every_scheme_comes_back_from_its_text() {
        let palette = |bits, group_size| Palette { group_size, ..Palette::kmeans(Nbits::new(bits).unwrap(), None) };
        let linear = |dtype, mode, granularity| Linear { dtype, mode, granularity };
        let block = linear(LinearDType::Int4, LinearMode::SymmetricClipped, Granularity::PerBlock(64));
        let channel = linear(LinearDType::UInt8, LinearMode::Asymmetric, Granularity::PerChannel);
        let int8 = Palette { table: TableType::Int8, mode: PaletteMode::Uniform, ..palette(6, Some(16)) };
        let schemes: Vec<Scheme> = vec![
            palette(3, Some(16)).into(),
            palette(8, None).into(),
            palette(4, Some(1)).into(),
            int8.into(),
            VectorPalette { palette: palette(6, Some(8)), dim: ClusterDim::Two }.into(),
            block.into(),
            channel.into(),
            Sparse { pruning: Pruning::magnitude(0.3).unwrap() }.into(),
            SparsePalette { palette: palette(2, None), pruning: Pruning::ratio(2, 4).unwrap() }.into(),
            SparseLinear { linear: channel, pruning: Pruning::threshold(0.015).unwrap() }.into(),
        ];
        let name = |i: usize| Selector::Name(format!("model.layers.{i}.up_proj.weight"));
        let mut rules: Vec<Rule> =
            schemes.into_iter().enumerate().map(|(i, s)| Rule { selector: name(i), scheme: Some(s) }).collect();
        rules.insert(0, Rule { selector: Selector::Default, scheme: Some(palette(3, Some(16)).into()) });
        rules.insert(1, Rule { selector: Selector::Component(Component::Embed), scheme: None });
        rules.insert(2, Rule { selector: Selector::Name("*.layers.\"0\".*".into()), scheme: None });
        let config = OptimizationConfig { rules, weight_threshold: 100 };
        let found = parse(&text(&config), ANYWHERE).unwrap();
        assert_eq!((found.rules, found.weight_threshold), (config.rules, 100));
    }

    #[test]
    fn names_of_one_scheme_are_written_together() {
        let scheme: Option<Scheme> = Some(Palette::kmeans(Nbits::new(6).unwrap(), None).into());
        let rule = |name: &str, scheme| Rule { selector: Selector::Name(name.into()), scheme };
        let rules = vec![rule("a.0", scheme), rule("b.0", None), rule("c.0", scheme)];
        let text = text(&OptimizationConfig { rules, weight_threshold: 2048 });
        let expected = "rules:\n  - weights:\n      - \"a.0\"\n      - \"c.0\"\n    wbits: 6\n    palett_granularity: per_tensor\n  \
                        - weights: \"b.0\"\n    keep: true\n";
        assert!(text.ends_with(expected), "{text}");
        assert_eq!(parse(&text, ANYWHERE).unwrap().rules.len(), 3);
    }

    #[test]
    fn mistakes_are_told_with_their_line() {
        for (text, expected) in [
            ("rules: []", "line 1: found no version; hint: begin the recipe with `version: 1`"),
            ("version: 2\nrules: []", "version: found `2`, expected 1"),
            ("version: 1\nrules: []", "found no rule"),
            ("version: 1\nrule: []", "line 2: found the key `rule`"),
            (
                "version: 1\nrules:\n  - weights: all\n    wbit: 4",
                "line 4: found the key `wbit`, expected one of weights",
            ),
            ("version: 1\nrules:\n  - weights: all\n    wbit: 4", "did you mean `wbits`?"),
            ("version: 1\nrules:\n  - weights: all\n    wbits: 5", "line 3: --wbits: found 5 bits"),
            ("version: 1\nrules:\n  - weights: all\n    wbits: four", "line 3: invalid value 'four' for '--wbits"),
            ("version: 1\nrules:\n  - weights: atention\n    wbits: 4", "line 3: found `atention`, expected one of"),
            ("version: 1\nrules:\n  - wbits: 4", "found a rule without weights"),
            ("version: 1\nrules:\n  - weights: all", "line 3: found a rule that does nothing"),
            ("version: 1\nrules:\n  - {weights: all, keep: true, wbits: 4}", "found `keep` beside"),
            ("version: 1\nrules:\n  - {weights: all, keep: yes}", "keep: found `yes`, expected true or false"),
            ("version: 1\nrules:\n  - {weights: all, wbits: 4, palett_group_size: 12}", "expected 8, 16, 32 or 64"),
            ("version: 1\nweight_threshold: many\nrules: []", "weight_threshold: found `many`"),
        ] {
            let error = parse(text, ANYWHERE).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}\n{error}");
        }
    }
}
