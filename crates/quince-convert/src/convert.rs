//! From a checkpoint to a lowered program: options in, defaults filled in, contradictions refused.

use crate::lower::{
    ComputeUnits, FunctionKind, FunctionSpec, Grouping, KvCache, KvGeometry, Length, LogitsOf, Precision, Settings,
    Target, kv_geometry, lower,
};
use crate::semantic::{Semantic, semantic};
use quince_checkpoint::Checkpoint;
use quince_mil::{Error, Program, Result, bail};
use std::fmt;
use std::str::FromStr;

/// The context if none is asked for and the model has no shorter one, in tokens.
pub const DEFAULT_CONTEXT: usize = 2048;
/// The tokens of a prefill call if none are asked for and the context is not shorter.
pub const DEFAULT_PREFILL_LENGTH: usize = 128;

/// What is asked for of a conversion.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Options {
    /// The functions, the default one first; empty for `init,decode`, or `full` without a cache.
    pub functions: Vec<FunctionName>,
    /// Tokens that there is room for.
    pub context: Option<usize>,
    /// Tokens of a call of `init`.
    pub prefill_length: Option<usize>,
    /// Tokens of a call of `full`, which takes any number if this is not given.
    pub length: Option<usize>,
    /// What carries the KV cache.
    pub kv_cache: KvCache,
    /// The floating-point type.
    pub precision: Precision,
    /// Which processors may be used.
    pub units: ComputeUnits,
    /// How heads share keys and values.
    pub grouping: Grouping,
    /// Which tokens of `init` have logits.
    pub logits: LogitsOf,
}

/// A function that can be asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FunctionName {
    /// Prefill: a chunk of a prompt.
    Init,
    /// One token more.
    Decode,
    /// A text without a cache.
    Full,
}

/// A converted model.
pub struct Converted {
    /// The program for the target.
    pub program: Program,
    /// What it was lowered from, and what it is validated against.
    pub semantic: Semantic,
    /// The sizes of the KV cache.
    pub kv_geometry: KvGeometry,
    /// The functions, in order.
    pub functions: Vec<FunctionSpec>,
    /// What they share.
    pub settings: Settings,
    /// What the user should know, a sentence each.
    pub warnings: Vec<String>,
}

/// Converts a checkpoint. Weights stay lazy: nothing is read but the configuration.
///
/// # Errors
/// When the model is not supported (see [`semantic`]), or options contradict each other or the model.
pub fn convert(checkpoint: &Checkpoint, options: &Options) -> Result<Converted> {
    let semantic = semantic(checkpoint)?;
    let target = Target::of_units(options.units)?;
    let names = options.names()?;
    let context = options.context_of(&names, &semantic);
    let settings =
        Settings { precision: options.precision, grouping: options.grouping, kv_cache: options.kv_cache, context };
    let functions: Vec<FunctionSpec> = names.iter().map(|&name| options.spec(name, &names, context)).collect();
    let program = lower(&semantic, target, &settings, &functions)?;
    let kv_geometry = kv_geometry(&semantic, context)?;
    let mut warnings = options.without_effect(&names);
    if context > semantic.max_positions {
        let trained = semantic.max_positions;
        warnings.push(format!("the context is {context} tokens, but the model was made for {trained}"));
    }
    Ok(Converted { program, semantic, kv_geometry, functions, settings, warnings })
}

impl Options {
    /// The functions that are asked for, each once.
    fn names(&self) -> Result<Vec<FunctionName>> {
        let names = match (&self.functions[..], self.kv_cache) {
            ([], KvCache::None) => vec![FunctionName::Full],
            ([], _) => vec![FunctionName::Init, FunctionName::Decode],
            (names, _) => names.to_vec(),
        };
        for (i, name) in names.iter().enumerate() {
            if names[..i].contains(name) {
                bail!("the function `{name}` is asked for twice");
            }
        }
        Ok(names)
    }

    /// Options for functions that are not asked for: no error, because scripts give them always.
    fn without_effect(&self, names: &[FunctionName]) -> Vec<String> {
        let options = [
            ("the length", self.length.is_some(), FunctionName::Full),
            ("the prefill length", self.prefill_length.is_some(), FunctionName::Init),
            ("asking for all logits", self.logits == LogitsOf::All, FunctionName::Init),
        ];
        let unused = options.into_iter().filter(|(_, given, name)| *given && !names.contains(name));
        unused.map(|(what, _, name)| format!("{what} has no effect: the package has no function `{name}`")).collect()
    }

    fn context_of(&self, names: &[FunctionName], semantic: &Semantic) -> usize {
        match (self.context, self.length) {
            (Some(context), _) => context,
            (None, Some(length)) if names == [FunctionName::Full] => length,
            (None, _) => semantic.max_positions.min(DEFAULT_CONTEXT),
        }
    }

    /// A function; the only one is stored as `main`, as Core ML requires.
    fn spec(&self, name: FunctionName, names: &[FunctionName], context: usize) -> FunctionSpec {
        let kind = match name {
            FunctionName::Full => FunctionKind::Full(self.length.map_or(Length::Flexible, Length::Fixed)),
            FunctionName::Decode => FunctionKind::Cached { tokens: 1, logits: LogitsOf::Last },
            FunctionName::Init => {
                let tokens = self.prefill_length.unwrap_or(context.min(DEFAULT_PREFILL_LENGTH));
                FunctionKind::Cached { tokens, logits: self.logits }
            }
        };
        let name = if names.len() == 1 { "main".to_owned() } else { name.to_string() };
        FunctionSpec { name, kind }
    }
}

impl FunctionName {
    const ALL: [FunctionName; 3] = [FunctionName::Init, FunctionName::Decode, FunctionName::Full];
}

impl fmt::Display for FunctionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FunctionName::Init => "init",
            FunctionName::Decode => "decode",
            FunctionName::Full => "full",
        })
    }
}

impl FromStr for FunctionName {
    type Err = Error;

    fn from_str(name: &str) -> Result<FunctionName> {
        let found = FunctionName::ALL.into_iter().find(|function| function.to_string() == name);
        found.ok_or_else(|| Error::new(format!("found the function `{name}`, expected init, decode or full")))
    }
}
