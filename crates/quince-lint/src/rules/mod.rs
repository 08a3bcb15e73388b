//! The table of rules: a file for each, a line for each.

use crate::Rule;

macro_rules! table {
    ($($file:ident: $rule:ident;)*) => {
        $(mod $file;)*

        /// Every rule: first what is refused or wrong, then what leaves the Neural Engine, then what costs time or memory.
        pub static RULES: &[&Rule] = &[$(&$file::$rule),*];
    };
}

table! {
    opset: RULE;
    unknown_operation: RULE;
    element_type: RULE;
    interface_type: RULE;
    state_type: RULE;
    enumerated_shapes: RULE;
    non_finite: RULE;
    mask_range: RULE;
    square_overflow: RULE;
    epsilon_underflow: RULE;
    inverse_epsilon: RULE;
    default_epsilon: RULE;
    score_scaling: RULE;
    rotary_range: RULE;
    table_scale: RULE;
    fused_attention: RULE;
    rank: RULE;
    dimension: RULE;
    float32: RULE;
    float32_weights: RULE;
    dynamic_shape: RULE;
    flexible_batch: RULE;
    control_flow: RULE;
    unsupported_operation: RULE;
    block_weights: RULE;
    palette_groups: RULE;
    state_size: RULE;
    state_count: RULE;
    state_transpose: RULE;
    state_update: RULE;
    state_position: RULE;
    state_unused: RULE;
    cache_shift: RULE;
    raw_keys: RULE;
    embedding_rows: RULE;
    lm_head: RULE;
    linear_layer: RULE;
    last_axis: RULE;
    narrow_axis: RULE;
    repeated_heads: RULE;
    integer_compute: RULE;
    part_size: RULE;
    memory: RULE;
    context_size: RULE;
    unshared_weights: RULE;
    unshared_tables: RULE;
}

/// Operations that move elements or change their type.
const LAYOUT_OR_CAST: &[&str] = &[
    "cast",
    "reshape",
    "transpose",
    "expand_dims",
    "squeeze",
    "identity",
    "slice_by_index",
    "slice_by_size",
    "split",
    "flatten2d",
    "reshape_like",
];

/// Operations that move elements and change no value.
const LAYOUT: &[&str] = match LAYOUT_OR_CAST {
    [_cast, moves @ ..] => moves,
    [] => &[],
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_unique_and_texts_are_sentences() {
        for (i, rule) in RULES.iter().enumerate() {
            assert!(RULES[..i].iter().all(|other| other.id != rule.id), "{} is there twice", rule.id);
            assert!(rule.id.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'), "{}", rule.id);
            for text in [rule.what, rule.why, rule.fix, rule.source] {
                assert!(!text.is_empty() && !text.ends_with('.') && !text.contains("  "), "{}: {text}", rule.id);
            }
        }
    }
}
