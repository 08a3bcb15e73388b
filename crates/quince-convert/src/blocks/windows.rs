//! Which layers attend only to a window of tokens, as `config.json` says it.

use quince_checkpoint::Config;
use quince_mil::{Result, bail};

/// The windows of a model's layers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Windows {
    /// Tokens that a sliding layer sees, the last one included; `None` when no layer slides.
    size: Option<usize>,
    slides: Vec<bool>,
}

impl Windows {
    /// Reads `sliding_window` and `layer_types`, which says of each of `layers` layers whether it slides; `usually` says
    /// it where the configuration does not. Without `sliding_window` none does.
    ///
    /// # Errors
    /// When a key is of a wrong type, or a layer of a type that is not known.
    pub fn from_config(config: &Config, layers: usize, usually: impl Fn(usize) -> bool) -> Result<Windows> {
        Windows::of_size(config, config.optional("sliding_window")?, layers, usually)
    }

    /// No layer slides.
    pub fn none() -> Windows {
        Windows { size: None, slides: Vec::new() }
    }

    /// As [`Windows::from_config`] where `use_sliding_window` must be true for any layer to slide, and those from
    /// `max_window_layers` on usually do; the size is 4096 if the configuration has none.
    ///
    /// # Errors
    /// As [`Windows::from_config`].
    pub fn if_used(config: &Config, layers: usize) -> Result<Windows> {
        let used = config.optional::<bool>("use_sliding_window")?.unwrap_or(false);
        let size = config.optional::<usize>("sliding_window")?.unwrap_or(4096);
        let first = config.optional::<usize>("max_window_layers")?.unwrap_or(28);
        Windows::of_size(config, used.then_some(size), layers, |layer| layer >= first)
    }

    /// As [`Windows::from_config`] with a size that the configuration gives otherwise.
    ///
    /// # Errors
    /// As [`Windows::from_config`].
    pub fn of_size(
        config: &Config,
        size: Option<usize>,
        layers: usize,
        usually: impl Fn(usize) -> bool,
    ) -> Result<Windows> {
        let slides = match config.optional::<Vec<String>>("layer_types")? {
            // No model has as many layers as a wrong configuration can ask for.
            None => (0..layers.min(1 << 16)).map(usually).collect(),
            Some(types) => types.iter().map(|kind| slides(config, kind)).collect::<Result<_>>()?,
        };
        Ok(Windows { size: size.filter(|&size| size > 0), slides })
    }

    /// How many tokens this layer sees, `None` for all.
    pub fn of_layer(&self, layer: usize) -> Option<usize> {
        self.size.filter(|_| self.slides.get(layer).copied().unwrap_or(false))
    }
}

fn slides(config: &Config, kind: &str) -> Result<bool> {
    match kind {
        "sliding_attention" | "local" => Ok(true),
        "full_attention" | "global" => Ok(false),
        other => bail!(
            "{}: key `layer_types`: found `{other}`, expected full_attention or sliding_attention",
            config.path().display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn windows(text: &str) -> Vec<Option<usize>> {
        let windows = Windows::if_used(&Config::from_text("c", text).unwrap(), 3).unwrap();
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
    fn layers_slide_as_is_usual_where_the_configuration_is_silent() {
        let windows = |text: &str| {
            let config = Config::from_text("c", text).unwrap();
            let windows = Windows::from_config(&config, 3, |layer| layer % 2 == 0).unwrap();
            (0..3).map(|layer| windows.of_layer(layer)).collect::<Vec<_>>()
        };
        assert_eq!(windows(r#"{"sliding_window": 8}"#), [Some(8), None, Some(8)]);
        assert_eq!(windows(r#"{"sliding_window": null}"#), [None; 3]);
    }

    #[test]
    fn an_unknown_layer_type_is_refused() {
        let config = Config::from_text("c", r#"{"layer_types": ["linear_attention"]}"#).unwrap();
        let error = Windows::from_config(&config, 1, |_| false).unwrap_err().to_string();
        assert!(error.starts_with("c: key `layer_types`: found `linear_attention`"), "{error}");
    }
}
