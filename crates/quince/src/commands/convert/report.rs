//! What became of a model: a table for people, JSON for machines.

use super::adapters::Reported;
use super::float16::Check;
use super::keep::Kept;
use crate::allocating::Allocation;
use crate::console::table;
use crate::failure::Result;
use crate::options::activations::Activations;
use crate::stored;
use crate::units;
use crate::validating;
use quince_checkpoint::Checkpoint;
use quince_compress::{Report as Compressed, RuleReport, Selector};
use quince_convert::Converted;
use quince_convert::lower::{FunctionKind, KvCache, Length};
use quince_mlpackage::Written;
use quince_runtime::{Chain, PartEntry, Validation};
use serde::Serialize;
use std::path::Path;
use std::time::Duration;

/// What became of a model.
#[derive(Serialize)]
pub struct Report {
    output: String,
    architecture: &'static str,
    parameters: u64,
    functions: Vec<Function>,
    context: usize,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    buckets: Vec<usize>,
    kv_cache: &'static str,
    kv_cache_bytes: u64,
    checkpoint_bytes: u64,
    model_bytes: u64,
    weight_bytes: u64,
    components: Vec<Component>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    parts: Vec<Part>,
    #[serde(flatten)]
    compression: Option<Compression>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kept: Option<Kept>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    adapters: Vec<Reported>,
    #[serde(skip_serializing_if = "Option::is_none")]
    float16: Option<Check>,
    warnings: Vec<String>,
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    validation: Option<Validation>,
}

#[derive(Serialize)]
struct Function {
    name: String,
    tokens: Option<usize>,
}

#[derive(Serialize)]
struct Component {
    name: &'static str,
    parameters: u64,
    bytes: u64,
    form: String,
}

/// A package of several.
#[derive(Serialize)]
struct Part {
    package: String,
    holds: String,
    bytes: u64,
}

/// What the rules of compression did.
#[derive(Default, Serialize)]
pub struct Compression {
    rules: Vec<Rule>,
    left: Vec<Left>,
    #[serde(skip_serializing_if = "Option::is_none")]
    allocation: Option<Allocation>,
    #[serde(skip_serializing_if = "Option::is_none")]
    activations: Option<Activations>,
}

#[derive(Clone, Serialize)]
struct Rule {
    selector: String,
    /// Whether it is about one name.
    #[serde(skip)]
    single: bool,
    scheme: String,
    weights: usize,
    calibrated: usize,
    parameters: usize,
    bytes_before: usize,
    bytes_after: usize,
}

#[derive(Serialize)]
struct Left {
    weight: String,
    reason: String,
}

/// What carries the KV cache, if a function has one.
pub fn cache_kind(converted: &Converted) -> Option<&'static str> {
    let cached = converted.functions.iter().any(|function| matches!(function.kind, FunctionKind::Cached { .. }));
    match converted.settings.kv_cache {
        KvCache::State if cached => Some("state"),
        KvCache::Rotating if cached => Some("rotating"),
        KvCache::Io if cached => Some("io"),
        _ => None,
    }
}

impl Report {
    /// What is known before the package is written.
    pub fn new(
        output: &Path,
        checkpoint: &Checkpoint,
        converted: &Converted,
        compression: Option<Compression>,
        warnings: Vec<String>,
    ) -> Report {
        let functions = converted.functions.iter().map(|function| Function {
            name: function.name.clone(),
            tokens: match &function.kind {
                FunctionKind::Full(Length::Flexible) => None,
                FunctionKind::Full(Length::Fixed(length)) => Some(*length),
                FunctionKind::Cached { tokens, .. } => Some(*tokens),
                FunctionKind::Encode(shapes) => shapes.fixed().map(|[_, tokens]| tokens),
            },
        });
        let kv_cache = cache_kind(converted);
        let g = converted.kv_geometry;
        let components =
            stored::parts(&stored::weights(&converted.program)).into_iter().map(|(name, part)| Component {
                name,
                parameters: part.parameters,
                bytes: part.bytes,
                form: part.forms.into_iter().collect::<Vec<_>>().join("; "),
            });
        Report {
            output: output.display().to_string(),
            architecture: converted.semantic.architecture,
            parameters: checkpoint.parameters(),
            functions: functions.collect(),
            context: g.context,
            buckets: converted.buckets(),
            kv_cache: kv_cache.unwrap_or("none"),
            kv_cache_bytes: stored::cache_types(&converted.program).iter().map(stored::byte_len).sum(),
            checkpoint_bytes: checkpoint.byte_len(),
            model_bytes: 0,
            weight_bytes: 0,
            components: components.collect(),
            parts: Vec::new(),
            compression,
            kept: None,
            adapters: Vec::new(),
            float16: None,
            warnings,
            seconds: 0.0,
            validation: None,
        }
    }

    /// What quantized weights were kept.
    pub fn kept(&mut self, kept: Option<Kept>) {
        self.kept = kept;
    }

    /// What became of adapters.
    pub fn adapted(&mut self, adapters: Vec<Reported>) {
        self.adapters = adapters;
    }

    /// What the model is in float16; the same for the bundle.
    ///
    /// # Errors
    /// When a number cannot be written.
    pub fn looked_at(&mut self, float16: Option<Check>) -> Result<Option<String>> {
        self.float16 = float16;
        self.float16.as_ref().map(Check::json).transpose()
    }

    /// What the package takes, or all packages of a chain.
    pub fn wrote(&mut self, written: Written, chain: Option<&Chain>) {
        (self.model_bytes, self.weight_bytes) = (written.model_bytes, written.weight_bytes);
        let part =
            |part: &PartEntry| Part { package: part.package.clone(), holds: part.holds.clone(), bytes: part.bytes };
        self.parts = chain.map_or(Vec::new(), |chain| chain.parts.iter().map(part).collect());
    }

    /// How long it took.
    pub fn took(&mut self, time: Duration) {
        self.seconds = time.as_secs_f64();
    }

    /// What the validation found.
    pub fn validated(&mut self, validation: Option<Validation>) {
        self.validation = validation;
    }

    /// 1 if the package is not what it should be.
    pub fn exit_status(&self) -> u8 {
        self.validation.as_ref().map_or(0, |found| found.report.exit_status())
    }

    /// For people.
    pub fn text(&self) -> String {
        let component = |c: &Component| {
            vec![c.name.to_string(), units::grouped(c.parameters), units::bytes(c.bytes), c.form.clone()]
        };
        let mut text =
            table(&["component", "parameters", "bytes", "stored as"], &[1, 2], self.components.iter().map(component));
        if !self.parts.is_empty() {
            let part = |part: &Part| vec![part.package.clone(), part.holds.clone(), units::bytes(part.bytes)];
            text += "\n";
            text += &table(&["part", "holds", "bytes"], &[2], self.parts.iter().map(part));
        }
        if let Some(compression) = &self.compression {
            text += "\n";
            text += &compression.text();
        }
        text += &self.kept.as_ref().map_or(String::new(), |kept| format!("\n{}", kept.text()));
        let tokens = |f: &Function| match f.tokens {
            Some(1) => format!("{} (1 token)", f.name),
            Some(tokens) => format!("{} ({tokens} tokens)", f.name),
            None => format!("{} (any number of tokens)", f.name),
        };
        let functions: Vec<String> = self.functions.iter().map(tokens).collect();
        let (output, functions, context) = (&self.output, functions.join(", "), self.context);
        text += &format!("\n{output}: {functions}, context {context}");
        text += &match self.kv_cache_bytes {
            0 => ", no KV cache\n".to_string(),
            bytes => format!(", KV cache {} ({})\n", self.kv_cache, units::bytes(bytes)),
        };
        text += &format!(
            "{} of checkpoint became {} of weights in {:.1} s\n",
            units::bytes(self.checkpoint_bytes),
            units::bytes(self.weight_bytes),
            self.seconds
        );
        text.extend(self.adapters.iter().map(Reported::text));
        if let Some(found) = &self.float16 {
            text += "\n";
            text += &found.text();
        }
        if let Some(found) = &self.validation {
            text += "\n";
            text += &validating::text(found);
        }
        text
    }
}

impl Compression {
    /// As the pass reports it, with what was found if its rules were looked for.
    pub fn of(report: &Compressed, allocation: Option<Allocation>) -> Compression {
        let rule = |rule: &RuleReport| Rule {
            selector: rule.selector.to_string(),
            single: matches!(&rule.selector, Selector::Name(name) if !name.contains('*')),
            scheme: rule.scheme.map_or("not compressed".to_string(), |scheme| scheme.to_string()),
            weights: rule.weights,
            calibrated: rule.calibrated,
            parameters: rule.parameters,
            bytes_before: rule.bytes_before,
            bytes_after: rule.bytes_after,
        };
        let left = |(weight, reason): &(String, String)| Left { weight: weight.clone(), reason: reason.clone() };
        let rules = report.rules.iter().map(rule).collect();
        Compression { rules, left: report.left.iter().map(left).collect(), allocation, activations: None }
    }

    /// The same with what became of activations, if anything did.
    pub fn with_activations(compression: Option<Compression>, activations: Option<Activations>) -> Option<Compression> {
        if compression.is_none() && activations.is_none() {
            return None;
        }
        Some(Compression { activations, ..compression.unwrap_or_default() })
    }

    /// For people.
    pub fn text(&self) -> String {
        let row = |rule: &Rule| {
            let (before, after) = (units::bytes(rule.bytes_before as u64), units::bytes(rule.bytes_after as u64));
            let weights = match rule.calibrated {
                0 => rule.weights.to_string(),
                calibrated => format!("{} ({calibrated} calibrated)", rule.weights),
            };
            vec![rule.selector.clone(), rule.scheme.clone(), weights, before, after]
        };
        let mut text = match self.rules[..] {
            [] => String::new(),
            _ => table(&["rule", "scheme", "weights", "before", "after"], &[2, 3, 4], shown(&self.rules).iter().map(row)),
        };
        for left in &self.left {
            text += &format!("left as it is: {}: {}\n", left.weight, left.reason);
        }
        text += &self.allocation.as_ref().map_or(String::new(), Allocation::text);
        text += &self.activations.as_ref().map_or(String::new(), Activations::text);
        text
    }
}

/// Rules as a table has them: those for a single weight each are one for each scheme.
fn shown(rules: &[Rule]) -> Vec<Rule> {
    let mut shown: Vec<Rule> = Vec::new();
    for rule in rules {
        let known = shown.iter_mut().find(|known| rule.single && known.single && known.scheme == rule.scheme);
        match known {
            None => shown.push(rule.clone()),
            Some(known) => {
                known.selector = format!("{} by name", known.weights + rule.weights);
                known.weights += rule.weights;
                known.calibrated += rule.calibrated;
                known.parameters += rule.parameters;
                known.bytes_before += rule.bytes_before;
                known.bytes_after += rule.bytes_after;
            }
        }
    }
    shown
}
