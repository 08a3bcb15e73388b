//! Where MLX names or arranges weights in another way than Hugging Face: experts, which it puts into one tensor.

use super::Tensors;
use crate::config::Config;
use crate::format::Found;
use crate::views;
use quince_tensor::Result;

/// Projections of experts in MLX, and what they are called in a Mixtral.
const PROJECTIONS: &[(&str, &str)] = &[("gate_proj", "w1"), ("down_proj", "w2"), ("up_proj", "w3")];

/// Gives experts the names and shapes that Hugging Face has for them.
///
/// # Errors
/// When gate and up of experts do not go together.
pub(super) fn to_hugging_face(tensors: &mut Tensors, config: &Config) -> Result<()> {
    let mixtral = config.get("model_type").is_some_and(|model_type| model_type == "mixtral");
    for (projection, mixtral_name) in PROJECTIONS {
        for stem in tensors.stems(&format!(".switch_mlp.{projection}.weight")) {
            let name = if mixtral { mixtral_name } else { projection };
            let Some(found) = tensors.take(&format!("{stem}.switch_mlp.{projection}.weight")) else { continue };
            let [experts, ..] = *found.weight.shape() else { continue };
            for expert in 0..experts {
                let weight = found.weight.slice(expert..expert + 1)?;
                let weight = weight.reshape(found.weight.shape().get(1..).unwrap_or_default())?;
                let weight = weight.renamed(&format!("{stem}.experts.{expert}.{name}.weight"));
                let bytes = found.bytes / experts as u64;
                tensors.put(Found { weight, file: found.file.clone(), form: found.form.clone(), bytes, exact: None });
            }
        }
    }
    gpt_oss(tensors)
}

/// gpt-oss: gate and up in turn in one weight, matrices with their axes exchanged.
fn gpt_oss(tensors: &mut Tensors) -> Result<()> {
    for stem in tensors.stems(".experts.gate_proj.weight") {
        let mut take = |name: &str| tensors.take(&format!("{stem}.experts.{name}"));
        let (gate, up, down) = (take("gate_proj.weight"), take("up_proj.weight"), take("down_proj.weight"));
        let (gate_bias, up_bias) = (take("gate_proj.bias"), take("up_proj.bias"));
        let down_bias = take("down_proj.bias");
        let of = |found: &Found, weight, bytes| Found {
            weight,
            bytes,
            exact: None,
            file: found.file.clone(),
            form: found.form.clone(),
        };
        if let (Some(gate), Some(up)) = (gate, up) {
            let both = views::transposed(&views::in_turn(vec![gate.weight.clone(), up.weight])?)?;
            let name = format!("{stem}.experts.gate_up_proj");
            tensors.put(of(&gate, both.renamed(&name), gate.bytes + up.bytes));
        }
        if let (Some(gate), Some(up)) = (gate_bias, up_bias) {
            let both = views::elements_in_turn(&gate.weight, &up.weight)?;
            tensors.put(of(&gate, both.renamed(&format!("{stem}.experts.gate_up_proj_bias")), gate.bytes + up.bytes));
        }
        if let Some(down) = down {
            let weight = views::transposed(&down.weight)?.renamed(&format!("{stem}.experts.down_proj"));
            tensors.put(of(&down, weight, down.bytes));
        }
        if let Some(bias) = down_bias {
            let weight = bias.weight.renamed(&format!("{stem}.experts.down_proj_bias"));
            tensors.put(of(&bias, weight, bias.bytes));
        }
    }
    Ok(())
}
