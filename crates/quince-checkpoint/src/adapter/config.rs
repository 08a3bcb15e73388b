//! `adapter_config.json`: how strong each low-rank product is, and what cannot be done with it.

use crate::config::Config;
use crate::suggest::shown;
use fancy_regex::Regex;
use quince_tensor::{Error, Result, bail};
use serde_json::Value;
use std::path::Path;

/// What `adapter_config.json` says, as far as it matters once the adapter is trained.
#[derive(Debug)]
pub(super) struct AdapterConfig {
    rank: usize,
    alpha: f64,
    rank_pattern: Vec<(Regex, usize)>,
    alpha_pattern: Vec<(Regex, f64)>,
    rank_stabilized: bool,
    /// Whether magnitudes are learned apart from directions (DoRA).
    pub dora: bool,
    /// Whether square matrices are [inputs, outputs], as those of `Conv1D`.
    pub fan_in_fan_out: bool,
    /// Whether embedding and head stay one weight where the model ties them.
    pub ensure_weight_tying: bool,
    /// The weights that are no modules, such as those of all experts, by the end of their names.
    pub target_parameters: Vec<String>,
    /// What it was trained on, as its author called it.
    pub base_model: Option<String>,
}

/// Keys that change what an adapter computes in ways that are not known here, and what they mean.
const REFUSED: &[(&str, &str)] = &[
    ("alora_invocation_tokens", "an activated LoRA, which changes only the tokens after an invocation"),
    ("arrow_config", "a mixture of adapters that chooses for each token"),
    ("kasa_config", "KaSA, which changes the weights below the adapter"),
    ("layer_replication", "layers that stand in the model several times"),
    ("monteclora_config", "MonteCLoRA"),
    ("use_bdlora", "LoRA in blocks"),
    ("use_qalora", "QA-LoRA, which pools its input"),
    ("velora_config", "VeLoRA"),
];

/// Beginnings of adapters that take something away from the weights that they are added to. Files of such an adapter do
/// not say what.
const RESIDUAL: &[&str] = &["corda", "loftq", "lora_ga", "olora", "pissa"];

impl AdapterConfig {
    pub fn read(path: &Path) -> Result<AdapterConfig> {
        let config = Config::read(path)?;
        let kind: String = config.field("peft_type")?;
        if !kind.eq_ignore_ascii_case("lora") {
            let error = Error::new(format!("found an adapter of type `{}`, expected `LORA`", shown(&kind)));
            return Err(error.hint(MERGE).at("key `peft_type`").at(path.display()));
        }
        refuse(&config)?;
        let rank: usize = config.field("r")?;
        Ok(AdapterConfig {
            rank,
            alpha: config.optional("lora_alpha")?.unwrap_or(8.0),
            rank_pattern: pattern(&config, "rank_pattern")?,
            alpha_pattern: pattern(&config, "alpha_pattern")?,
            rank_stabilized: config.optional("use_rslora")?.unwrap_or(false),
            dora: config.optional("use_dora")?.unwrap_or(false),
            fan_in_fan_out: config.optional("fan_in_fan_out")?.unwrap_or(false),
            ensure_weight_tying: config.optional("ensure_weight_tying")?.unwrap_or(false),
            target_parameters: config.optional("target_parameters")?.unwrap_or_default(),
            base_model: config.optional("base_model_name_or_path")?,
        })
    }

    /// The rank of the products of a module: the first pattern that fits its name counts.
    pub fn rank(&self, module: &str) -> Result<usize> {
        Ok(first_match(&self.rank_pattern, module)?.unwrap_or(self.rank))
    }

    /// What the products of a module are multiplied by: alpha / rank, or alpha / √rank if rank-stabilized
    /// (Kalajdzievski 2023, arXiv:2312.03732).
    pub fn scale(&self, module: &str) -> Result<f64> {
        let alpha = first_match(&self.alpha_pattern, module)?.unwrap_or(self.alpha);
        let rank = self.rank(module)? as f64;
        Ok(alpha / if self.rank_stabilized { rank.sqrt() } else { rank })
    }
}

const MERGE: &str = "merge it in PEFT with `model.merge_and_unload().save_pretrained(DIR)` and convert DIR";

/// Refuses what would come out wrong.
fn refuse(config: &Config) -> Result<()> {
    let asked = |key: &str| config.get(key).is_some_and(|value| *value != Value::Bool(false));
    if let Some((key, what)) = REFUSED.iter().find(|(key, _)| asked(key)) {
        let error = Error::new(format!("found {what}, expected plain LoRA, rsLoRA or DoRA"));
        return Err(error.hint(MERGE).at(format!("key `{key}`")).at(config.path().display()));
    }
    let init = config.get("init_lora_weights").and_then(Value::as_str).unwrap_or_default().to_ascii_lowercase();
    if RESIDUAL.iter().any(|residual| init.starts_with(residual)) {
        let message = format!(
            "found an adapter begun with `{}`, which belongs to weights that were changed in training, expected one for \
             the weights as published",
            shown(&init)
        );
        let hint = "save it with `path_initial_model_for_weight_conversion`, which makes it an ordinary LoRA, or merge \
                    it in PEFT";
        return Err(Error::new(message).hint(hint).at("key `init_lora_weights`").at(config.path().display()));
    }
    Ok(())
}

/// A map from patterns to numbers, in the order of the file. PEFT takes the keys for regular expressions of the whole end
/// of a module's name.
fn pattern<T: serde::de::DeserializeOwned>(config: &Config, key: &str) -> Result<Vec<(Regex, T)>> {
    let at = |error: Error| error.at(format!("key `{key}`")).at(config.path().display());
    let Some(value) = config.get(key) else { return Ok(Vec::new()) };
    let Some(entries) = value.as_object() else {
        return Err(at(Error::new("found a value that is no object, expected patterns with numbers")));
    };
    let mut patterns = Vec::new();
    for (pattern, value) in entries {
        let regex = Regex::new(&format!(r"^(?:(?:.*\.)?(?:{pattern}))$")).map_err(|error| {
            at(Error::new(format!("found the pattern `{}`, expected a regular expression: {error}", shown(pattern))))
        })?;
        let number = T::deserialize(value)
            .map_err(|error| at(Error::new(error.to_string()).at(format!("pattern `{}`", shown(pattern)))))?;
        patterns.push((regex, number));
    }
    Ok(patterns)
}

fn first_match<T: Copy>(patterns: &[(Regex, T)], module: &str) -> Result<Option<T>> {
    for (regex, value) in patterns {
        match regex.is_match(module) {
            Ok(true) => return Ok(Some(*value)),
            Ok(false) => {}
            Err(error) => bail!("pattern `{}`: cannot match it: {error}", shown(regex.as_str())),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<AdapterConfig> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("adapter_config.json");
        std::fs::write(&path, text).unwrap();
        AdapterConfig::read(&path)
    }

    #[test]
    fn patterns_are_regular_expressions_of_the_end_of_a_name_and_the_first_counts() {
        let config = read(
            r#"{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_rslora": true,
                "rank_pattern": {"layers.0.self_attn.q_proj": 2, "down_proj": 6, "layers\\.[13]\\..*proj": 9},
                "alpha_pattern": {"^model.layers.0.mlp.down_proj": 3}}"#,
        )
        .unwrap();
        let rank = |module: &str| config.rank(module).unwrap();
        assert_eq!(rank("model.layers.0.self_attn.q_proj"), 2);
        assert_eq!(rank("model.layers.10.self_attn.q_proj"), 4);
        assert_eq!((rank("model.layers.1.mlp.down_proj"), rank("model.layers.1.mlp.up_proj")), (6, 9));
        assert_eq!(rank("model.layers.1.mlp.my_down_proj_b"), 4);
        assert_eq!(config.scale("model.layers.0.mlp.down_proj").unwrap(), 3.0 / 6f64.sqrt());
        assert_eq!(config.scale("lm_head").unwrap(), 8.0 / 4f64.sqrt());
    }

    #[test]
    fn what_would_come_out_wrong_is_refused() {
        let refused = |rest: &str| read(&format!(r#"{{"r": 4, {rest}}}"#)).unwrap_err().to_string();
        let error = refused(r#""peft_type": "LOHA""#);
        assert!(error.contains("key `peft_type`: found an adapter of type `LOHA`, expected `LORA`; hint: "), "{error}");
        let error = refused(r#""peft_type": "LORA", "alora_invocation_tokens": [1, 2]"#);
        assert!(error.contains("key `alora_invocation_tokens`: found an activated LoRA"), "{error}");
        let error = refused(r#""peft_type": "LORA", "init_lora_weights": "pissa_niter_4""#);
        assert!(error.contains("found an adapter begun with `pissa_niter_4`"), "{error}");
        let error = refused(r#""peft_type": "LORA", "rank_pattern": {"(": 3}"#);
        assert!(error.contains("key `rank_pattern`: found the pattern `(`, expected a regular expression"), "{error}");
        assert!(read(r#"{"peft_type": "LORA", "r": 4, "use_qalora": false, "init_lora_weights": "eva"}"#).is_ok());
    }
}
