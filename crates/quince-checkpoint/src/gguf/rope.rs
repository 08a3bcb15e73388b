//! Rotary positions: what GGUF says of them, in the words of `config.json`.

use super::facts::Facts;
use quince_tensor::Result;
use serde_json::{Map, Value, json};

/// Sets `partial_rotary_factor` where not the whole head is rotated, and `rope_scaling` where frequencies are changed.
///
/// # Errors
/// When a key is of another type than it must be.
pub(super) fn into_config(facts: &Facts, config: &mut Map<String, Value>) -> Result<()> {
    let heads = facts.required("attention.head_count")?.max(1);
    let head = match facts.unsigned("attention.key_length")? {
        Some(length) => length,
        None => facts.required("embedding_length")? / heads,
    };
    let rotated = facts.unsigned("rope.dimension_count")?.unwrap_or(head);
    if rotated < head {
        config.insert("partial_rotary_factor".into(), (rotated as f64 / head as f64).into());
    }
    if let Some(scaling) = scaling(facts, config, rotated)? {
        config.insert("rope_scaling".into(), scaling);
    }
    Ok(())
}

fn scaling(facts: &Facts, config: &Map<String, Value>, rotated: u64) -> Result<Option<Value>> {
    let number = |key: &str| facts.metadata.number(&facts.key(key));
    if let Some(long) = facts.values("rope_factors_long.weight")? {
        let short = facts.values("rope_factors_short.weight")?.unwrap_or_else(|| long.clone());
        let mut scaling = json!({"rope_type": "longrope", "long_factor": long, "short_factor": short});
        put(&mut scaling, "attention_factor", number("rope.scaling.attn_factor")?);
        put(&mut scaling, "original_max_position_embeddings", original_context(facts)?);
        return Ok(Some(scaling));
    }
    if let Some(factors) = facts.values("rope_freqs.weight")? {
        let theta = config.get("rope_theta").and_then(Value::as_f64).unwrap_or(10_000.0);
        return Ok(Some(llama3(&factors, theta, rotated).unwrap_or_else(|| free(&factors, config))));
    }
    let factor = number("rope.scaling.factor")?;
    Ok(match (facts.metadata.text(&facts.key("rope.scaling.type"))?, factor) {
        (Some("linear"), Some(factor)) => Some(json!({"rope_type": "linear", "factor": factor})),
        (Some("yarn"), Some(factor)) => {
            let mut scaling = json!({"rope_type": "yarn", "factor": factor});
            put(&mut scaling, "original_max_position_embeddings", original_context(facts)?);
            put(&mut scaling, "beta_fast", number("rope.scaling.yarn_beta_fast")?);
            put(&mut scaling, "beta_slow", number("rope.scaling.yarn_beta_slow")?);
            Some(scaling)
        }
        _ => None,
    })
}

fn original_context(facts: &Facts) -> Result<Option<u64>> {
    facts.unsigned("rope.scaling.original_context_length")
}

fn put(object: &mut Value, key: &str, value: Option<impl Into<Value>>) {
    if let (Some(object), Some(value)) = (object.as_object_mut(), value) {
        object.insert(key.to_string(), value.into());
    }
}

/// The parameters of Llama 3.1's scaling, from what frequencies are divided by: 1 for high ones, `factor` for low ones,
/// and between them a blend from which the original context follows. None if the factors are not of that kind with the
/// bounds that every published model has.
fn llama3(factors: &[f32], theta: f64, rotated: u64) -> Option<Value> {
    const LOW: f64 = 1.0;
    const HIGH: f64 = 4.0;
    let factor = f64::from(*factors.last()?);
    let wavelength = |i: usize| 2.0 * std::f64::consts::PI * theta.powf(2.0 * i as f64 / rotated.max(1) as f64);
    let blend = |divisor: f64| (1.0 / divisor - 1.0 / factor) / (1.0 - 1.0 / factor);
    let between = factors.iter().position(|&f| f > 1.0 && f64::from(f) < factor)?;
    let original = (wavelength(between) * (LOW + (HIGH - LOW) * blend(f64::from(factors[between])))).round();
    let expected = |i: usize| {
        let turns = original / wavelength(i);
        match turns {
            _ if turns > HIGH => 1.0,
            _ if turns < LOW => factor,
            _ => {
                let blend = (turns - LOW) / (HIGH - LOW);
                1.0 / ((1.0 - blend) / factor + blend)
            }
        }
    };
    let fits = factors.iter().enumerate().all(|(i, &f)| (f64::from(f) / expected(i) - 1.0).abs() < 1e-4);
    fits.then(|| {
        json!({"rope_type": "llama3", "factor": factor, "low_freq_factor": LOW, "high_freq_factor": HIGH,
            "original_max_position_embeddings": original as u64})
    })
}

/// Factors of no known kind, as they are: `longrope` takes any.
fn free(factors: &[f32], config: &Map<String, Value>) -> Value {
    let context = config.get("max_position_embeddings").cloned().unwrap_or_default();
    json!({"rope_type": "longrope", "long_factor": factors, "short_factor": factors, "attention_factor": 1.0,
        "original_max_position_embeddings": context})
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Witness: the formula of llama.cpp's conversion, with the parameters of Llama 3.2.
    #[test]
    fn the_parameters_of_llama_3_come_back() {
        let (theta, rotated, factor, original) = (500_000f64, 64u64, 32.0, 8192.0);
        let factors: Vec<f32> = (0..32)
            .map(|i| {
                let wavelength = 2.0 * std::f64::consts::PI / theta.powf(-2.0 * f64::from(i) / 64.0);
                if wavelength < original / 4.0 {
                    1.0
                } else if wavelength > original {
                    factor as f32
                } else {
                    let smooth = (original / wavelength - 1.0) / 3.0;
                    (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
                }
            })
            .collect();
        let scaling = llama3(&factors, theta, rotated).unwrap();
        assert_eq!((&scaling["factor"], &scaling["original_max_position_embeddings"]), (&json!(32.0), &json!(8192)));
        let mut other = factors.clone();
        other[3] = 1.5;
        assert_eq!(llama3(&other, theta, rotated), None);
        assert_eq!(llama3(&[], theta, rotated), None);
    }
}
