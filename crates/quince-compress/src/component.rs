//! Which part of a transformer a weight belongs to, by its name, so that parts can be compressed differently.

use std::fmt;

/// A part of a transformer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Component {
    /// Adapters that are kept apart from the weights that they change, whatever those belong to.
    Adapter,
    /// The table of token embeddings, and learned positions. A tied embedding is this, not [`Component::LmHead`].
    Embed,
    /// Projections to query, key and value, and out of attention.
    Attention,
    /// Feed-forward blocks, experts and their routers.
    Mlp,
    /// The projection to logits.
    LmHead,
    /// Norms.
    Norm,
    /// Anything else.
    Other,
}

/// Parts with the words that stand for them in a name; the first row that matches a word of the name counts, so that
/// `self_attn.q_norm` is a norm and `q_proj.lora_A` an adapter.
const TABLE: &[(Component, &str, &[&str])] = &[
    (Component::Adapter, "adapter", &["lora_a", "lora_b", "lora_gain"]),
    (Component::Norm, "norm", &["norm", "ln_", "layernorm"]),
    (Component::LmHead, "lm_head", &["lm_head", "embed_out"]),
    (Component::Embed, "embed", &["embed", "wte", "wpe"]),
    (Component::Attention, "attention", &["attn", "attention", "q_proj", "k_proj", "v_proj", "o_proj", "qkv"]),
    (
        Component::Mlp,
        "mlp",
        &[
            "mlp",
            "feed_forward",
            "ffn",
            "fc1",
            "fc2",
            "gate_proj",
            "up_proj",
            "down_proj",
            "expert",
            "router",
            "intermediate",
            "output_dense",
        ],
    ),
];

impl Component {
    /// The part that the weight of this name belongs to; dots may have become underscores, as in packages.
    pub fn of(name: &str) -> Component {
        let name = name.to_ascii_lowercase().replace('.', "_");
        let row = TABLE.iter().find(|(_, _, words)| words.iter().any(|word| name.contains(word)));
        row.map_or(Component::Other, |row| row.0)
    }

    /// Every part.
    pub fn all() -> impl Iterator<Item = Component> {
        TABLE.iter().map(|row| row.0).chain([Component::Other])
    }

    /// The name on the command line: `attention`.
    pub fn name(self) -> &'static str {
        TABLE.iter().find(|row| row.0 == self).map_or("other", |row| row.1)
    }

    /// The part of this name.
    pub fn from_name(name: &str) -> Option<Component> {
        Component::all().find(|component| component.name() == name)
    }
}

/// The number of the layer that a name tells: that after `layers` or the like, else the first.
pub fn layer_of(name: &str) -> Option<usize> {
    let words = || name.split(['.', '_']);
    let after = words().skip_while(|word| !matches!(*word, "layers" | "layer" | "h" | "blocks")).nth(1);
    after.and_then(|word| word.parse().ok()).or_else(|| words().find_map(|word| word.parse().ok()))
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_many_architectures_are_told_apart() {
        use Component::*;
        for (name, expected) in [
            ("model.embed_tokens.weight", Embed),
            ("transformer.wte.weight", Embed),
            ("model.layers.3.self_attn.q_proj.weight", Attention),
            ("model.layers.3.self_attn.q_norm.weight", Norm),
            ("gpt_neox.layers.0.attention.query_key_value.weight", Attention),
            ("encoder.layer.0.attention.output.dense.weight", Attention),
            ("encoder.layer.0.output.dense.weight", Mlp),
            ("encoder.layer.0.output.LayerNorm.weight", Norm),
            ("model.layers.3.mlp.down_proj.weight", Mlp),
            ("model.layers.3.input_layernorm.weight", Norm),
            ("transformer.h.0.ln_1.weight", Norm),
            ("lm_head.weight", LmHead),
            ("pooler.dense.weight", Other),
            ("model_layers_3_self_attn_q_proj_weight", Attention),
            ("encoder_layer_0_output_dense_weight", Mlp),
        ] {
            assert_eq!(Component::of(name), expected, "{name}");
        }
    }

    #[test]
    fn layers_are_told_by_names() {
        assert_eq!(layer_of("model.layers.12.mlp.up_proj.weight"), Some(12));
        assert_eq!(layer_of("transformer_h_3_attn_c_attn_weight"), Some(3));
        assert_eq!(layer_of("m_model_layers_0_self_attn_q_proj_weight_to_fp16"), Some(0));
        assert_eq!(layer_of("0.auto_model.encoder.layer.5.output.dense.weight"), Some(5));
        assert_eq!(layer_of("model.embed_tokens.weight"), None);
    }

    #[test]
    fn names_come_back() {
        for component in Component::all() {
            assert_eq!(Component::from_name(component.name()), Some(component));
        }
    }
}
