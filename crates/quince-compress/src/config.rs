//! Which weight gets which scheme.

use crate::{Component, Nbits, Scheme, layer_of};
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
    /// The weights of some layers, or those of a part of the model in them.
    Layers {
        /// The number of the first layer.
        first: usize,
        /// That of the last.
        last: usize,
        /// The part, if not all of them.
        component: Option<Component>,
    },
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

    /// Adds rules written as `attention=6,layers.0-1=8,*.mlp.up_proj.*=3,lm_head=none`: a part of the model, layers or a name
    /// pattern, and the bits of its palette, or `none`. `base` gives what a palette is besides its bits.
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
            Selector::Layers { first, last, component } => {
                layer_of(name).is_some_and(|layer| (*first..=*last).contains(&layer))
                    && component.is_none_or(|component| Component::of(name) == component)
            }
            Selector::Name(pattern) => glob(&pattern.replace('.', "_"), &name.replace('.', "_")),
        }
    }

    fn rank(&self) -> usize {
        match self {
            Selector::Default => 0,
            Selector::Component(_) => 1,
            Selector::Layers { .. } => 2,
            Selector::Name(_) => 3,
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

    /// A component's name, layers (`layers.3`, `layers.0-3`, `layers.0-3.mlp`), or a name pattern with a `*`, `.` or `_`.
    fn from_str(text: &str) -> Result<Selector> {
        if let Some(component) = Component::from_name(text) {
            return Ok(Selector::Component(component));
        }
        if let Some(layers) = text.strip_prefix("layers.").and_then(layers) {
            return Ok(layers);
        }
        if text.contains(['*', '.', '_']) {
            return Ok(Selector::Name(text.to_owned()));
        }
        let names: Vec<&str> = Component::all().map(Component::name).collect();
        bail!(
            "found `{text}`, expected one of {}, layers or a pattern of names", names.join(", ");
            hint: "layers are written layers.0-3 or layers.0-3.mlp; a pattern has a `*`, for example *.q_proj.*"
        )
    }
}

/// `3`, `0-3` or `0-3.mlp`.
fn layers(text: &str) -> Option<Selector> {
    let (numbers, component) = match text.split_once('.') {
        Some((numbers, component)) => (numbers, Some(Component::from_name(component)?)),
        None => (text, None),
    };
    let (first, last) = numbers.split_once('-').unwrap_or((numbers, numbers));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some(Selector::Layers { first, last, component })
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Selector::Default => f.write_str("all weights"),
            Selector::Component(component) => write!(f, "{component}"),
            Selector::Layers { first, last, component } => {
                write!(f, "layers.{first}")?;
                if last > first {
                    write!(f, "-{last}")?;
                }
                component.map_or(Ok(()), |component| write!(f, ".{component}"))
            }
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
        config
            .add_mixed_precision("attention=6, *.layers.0.*=8,lm_head=none,layers.2-3=2,layers.3.mlp=1", base)
            .unwrap();
        let bits = |name: &str| config.rules[config.rule_for(name).unwrap()].scheme.map(Scheme::bits);
        assert_eq!(bits("model.layers.1.self_attn.q_proj.weight"), Some(6.0));
        assert_eq!(bits("model_layers_0_self_attn_q_proj_weight"), Some(8.0));
        assert_eq!(bits("model.layers.1.mlp.up_proj.weight"), Some(4.0));
        assert_eq!(bits("lm_head.weight"), None);
        assert_eq!(bits("transformer_h_2_attn_c_attn_weight"), Some(2.0));
        assert_eq!(bits("model.layers.3.mlp.up_proj.weight"), Some(1.0));
        let written: Vec<String> = config.rules[4..].iter().map(|rule| rule.selector.to_string()).collect();
        assert_eq!(written, ["layers.2-3", "layers.3.mlp"]);
        // What is no range of layers is a pattern of names.
        for text in ["layers.0.attention.wq.weight", "layers.3-1", "layers.x"] {
            assert_eq!(text.parse::<Selector>().unwrap(), Selector::Name(text.to_owned()));
        }
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
