//! Which layers attend only to a window of tokens, as `config.json` says it.

use quince_checkpoint::Config;
use quince_mil::{Result, bail};

/// The windows of a model's layers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Windows {
    /// Tokens that a sliding layer sees, the last one included; `None` when no layer slides.
    size: Option<usize>,
    /// Layers from this one on slide, where the configuration does not name each.
    first: usize,
    /// Whether each layer slides, where the configuration says it of each.
    slides: Option<Vec<bool>>,
}

impl Windows {
    /// Reads `use_sliding_window`, `sliding_window`, `layer_types` and `max_window_layers`, with the defaults of
    /// transformers' Qwen2 and Qwen3 (4096 tokens, from layer 28 on, unused).
    ///
    /// # Errors
    /// When a key is of a wrong type, or a layer of a type that is not known.
    pub fn from_config(config: &Config) -> Result<Windows> {
        let used = config.optional::<bool>("use_sliding_window")?.unwrap_or(false);
        let size = config.optional::<usize>("sliding_window")?.unwrap_or(4096);
        let types = config.optional::<Vec<String>>("layer_types")?;
        let mut slides = None;
        for kind in types.iter().flatten() {
            slides.get_or_insert_with(Vec::new).push(match kind.as_str() {
                "sliding_attention" => true,
                "full_attention" => false,
                other => bail!(
                    "{}: key `layer_types`: found `{other}`, expected full_attention or sliding_attention",
                    config.path().display()
                ),
            });
        }
        let first = config.optional::<usize>("max_window_layers")?.unwrap_or(28);
        Ok(Windows { size: used.then_some(size), first, slides })
    }

    /// How many tokens this layer sees, `None` for all.
    pub fn of_layer(&self, layer: usize) -> Option<usize> {
        let slides = match &self.slides {
            Some(slides) => slides.get(layer).copied().unwrap_or(false),
            None => layer >= self.first,
        };
        self.size.filter(|_| slides)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn windows(text: &str) -> Vec<Option<usize>> {
        let windows = Windows::from_config(&Config::from_text("c", text).unwrap()).unwrap();
        (0..3).map(|layer| windows.of_layer(layer)).collect()
    }

    #[test]
    fn a_window_is_used_only_where_the_configuration_says_so() {
        assert_eq!(windows(r#"{"sliding_window": 8, "max_window_layers": 0}"#), [None; 3]);
        let later = r#"{"use_sliding_window": true, "sliding_window": 8, "max_window_layers": 2}"#;
        assert_eq!(windows(later), [None, None, Some(8)]);
        let named = r#"{"use_sliding_window": true, "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention", "full_attention"]}"#;
        assert_eq!(windows(named), [Some(8), None, None]);
    }

    #[test]
    fn an_unknown_layer_type_is_refused() {
        let config = Config::from_text("c", r#"{"layer_types": ["linear_attention"]}"#).unwrap();
        let error = Windows::from_config(&config).unwrap_err().to_string();
        assert!(error.starts_with("c: key `layer_types`: found `linear_attention`"), "{error}");
    }
}
