//! Which weight gets which scheme.

use crate::{Component, Nbits, Scheme};
use quince_mil::{Result, bail};
use std::fmt;
use std::str::FromStr;

/// Which weight gets which scheme: the most particular rule that matches counts, the later one among equals.
#[derive(Clone, Debug)]
pub struct OptimizationConfig {
    /// The rules.
    pub rules: Vec<Rule>,
    /// Weights of fewer elements are left as they are, unless a rule names them (2048, as in coremltools).
    pub weight_threshold: usize,
}

/// A scheme for the weights that a selector matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Which weights.
    pub selector: Selector,
    /// What becomes of them; `None` leaves them as they are.
    pub scheme: Option<Scheme>,
}

/// Which weights a rule is about, from the least to the most particular.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Selector {
    /// Every weight.
    Default,
    /// The weights of a part of the model.
    Component(Component),
    /// Weights whose name matches a pattern, in which `*` stands for any characters; dots and underscores are equal.
    Name(String),
}

impl OptimizationConfig {
    /// The elements below which weights are left as they are, unless something else is said.
    pub const WEIGHT_THRESHOLD: usize = 2048;

    /// The same scheme for every weight.
    pub fn all(scheme: Scheme) -> OptimizationConfig {
        let rules = vec![Rule { selector: Selector::Default, scheme: Some(scheme) }];
        OptimizationConfig { rules, weight_threshold: OptimizationConfig::WEIGHT_THRESHOLD }
    }

    /// Adds rules written as `attention=6,mlp=4,*.0.mlp.*=8,lm_head=none`: a part of the model or a name pattern, and the
    /// bits of its palette, or `none`. `base` gives what a palette is besides its bits.
    pub fn add_mixed_precision(&mut self, text: &str, base: Scheme) -> Result<()> {
        for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            let Some((selector, bits)) = item.split_once('=') else {
                bail!("found `{item}`, expected NAME=BITS"; hint: "for example attention=6,mlp=4,lm_head=none");
            };
            let scheme = match bits.trim() {
                "none" | "16" => None,
                bits => Some(with_bits(base, bits)?),
            };
            self.rules.push(Rule { selector: selector.trim().parse()?, scheme });
        }
        Ok(())
    }

    /// The number of the rule for a weight.
    pub fn rule_for(&self, name: &str) -> Option<usize> {
        let matching = self.rules.iter().enumerate().filter(|(_, rule)| rule.selector.matches(name));
        matching.max_by_key(|(i, rule)| (rule.selector.rank(), *i)).map(|(i, _)| i)
    }
}

fn with_bits(base: Scheme, bits: &str) -> Result<Scheme> {
    let Ok(bits) = bits.parse::<usize>() else { bail!("found `{bits}` bits, expected 1, 2, 3, 4, 6, 8 or none") };
    let nbits = Nbits::new(bits)?;
    match base.with_nbits(nbits) {
        Some(scheme) => Ok(scheme),
        None => bail!("bits by component need a palette as the base, found {base}"),
    }
}

impl Selector {
    /// Whether the selector is about the weight of this name.
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Selector::Default => true,
            Selector::Component(component) => Component::of(name) == *component,
            Selector::Name(pattern) => glob(&pattern.replace('.', "_"), &name.replace('.', "_")),
        }
    }

    fn rank(&self) -> usize {
        match self {
            Selector::Default => 0,
            Selector::Component(_) => 1,
            Selector::Name(_) => 2,
        }
    }
}

/// Whether `name` matches `pattern`, in which `*` stands for any characters.
fn glob(pattern: &str, name: &str) -> bool {
    let parts: Vec<&str> = pattern.split('*').collect();
    let [first, middle @ .., last] = &parts[..] else { return pattern == name };
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

impl FromStr for Selector {
    type Err = quince_mil::Error;

    /// A component's name, or a name pattern with a `*`, `.` or `_`.
    fn from_str(text: &str) -> Result<Selector> {
        if let Some(component) = Component::from_name(text) {
            return Ok(Selector::Component(component));
        }
        if text.contains(['*', '.', '_']) {
            return Ok(Selector::Name(text.to_owned()));
        }
        let names: Vec<&str> = Component::all().map(Component::name).collect();
        bail!(
            "found `{text}`, expected one of {} or a pattern of names", names.join(", ");
            hint: "a pattern has a `*`, for example *.layers.0.*"
        )
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Selector::Default => f.write_str("all weights"),
            Selector::Component(component) => write!(f, "{component}"),
            Selector::Name(pattern) => f.write_str(pattern),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Palette;

    #[test]
    fn the_most_particular_rule_counts() {
        let base: Scheme = Palette::kmeans(Nbits::new(4).unwrap(), Some(16)).into();
        let mut config = OptimizationConfig::all(base);
        config.add_mixed_precision("attention=6, *.layers.0.*=8,lm_head=none", base).unwrap();
        let bits = |name: &str| config.rules[config.rule_for(name).unwrap()].scheme.map(Scheme::bits);
        assert_eq!(bits("model.layers.1.self_attn.q_proj.weight"), Some(6.0));
        assert_eq!(bits("model_layers_0_self_attn_q_proj_weight"), Some(8.0));
        assert_eq!(bits("model.layers.1.mlp.up_proj.weight"), Some(4.0));
        assert_eq!(bits("lm_head.weight"), None);
    }

    #[test]
    fn rules_that_cannot_be_read_are_refused() {
        let base: Scheme = Palette::kmeans(Nbits::new(4).unwrap(), None).into();
        let mut config = OptimizationConfig::all(base);
        for (text, expected) in [
            ("attention", "found `attention`, expected NAME=BITS"),
            ("attention=5", "5"),
            ("atention=4", "found `atention`, expected one of"),
        ] {
            let error = config.add_mixed_precision(text, base).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn patterns_match_as_a_shell_does() {
        for (pattern, name, expected) in [
            ("a*c", "abc", true),
            ("a*c", "abcd", false),
            ("*b*", "abc", true),
            ("abc", "abc", true),
            ("a*a", "a", false),
        ] {
            assert_eq!(glob(pattern, name), expected, "{pattern} {name}");
        }
    }
}
