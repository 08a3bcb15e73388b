//! Formats that are recognised but not yet read, so that the error says what the path is and what to do instead.

use crate::config::Config;
use crate::format::{Contents, Format};
use crate::suggest::shown;
use quince_tensor::{Error, Result};
use std::path::Path;

pub(crate) const QUANTIZED: Format = Format {
    name: "quantized safetensors",
    looks_like: "a directory whose config.json has `quantization_config`",
    recognizes: |path| config(path).is_some_and(|config| config.get("quantization_config.quant_method").is_some()),
    open: |path| {
        let config = Config::read(&path.join("config.json"))?;
        let method = config.get("quantization_config.quant_method").and_then(|method| method.as_str());
        let what = format!("weights quantized with `{}`", shown(method.unwrap_or("an unnamed method")));
        refuse(path, &what, "use the model that they were quantized from, in f32, f16 or bf16")
    },
};

pub(crate) const ADAPTER: Format = Format {
    name: "PEFT adapter",
    looks_like: "a directory with adapter_config.json",
    recognizes: |path| path.join("adapter_config.json").is_file() && !path.join("config.json").is_file(),
    open: |path| refuse(path, "an adapter without its base model", "give the base model's directory"),
};

pub(crate) const PICKLE: Format = Format {
    name: "PyTorch pickle",
    looks_like: "a directory with pytorch_model.bin",
    recognizes: |path| {
        has_ending(path, &["bin", "pt", "pth"])
            || (config(path).is_some() && directory_has(path, &["bin", "pt", "pth"]))
    },
    open: |path| {
        let hint = "save it again with `model.save_pretrained(DIR, safe_serialization=True)` in transformers, or take \
                    the safetensors files that the Hub has for most models";
        refuse(path, "weights pickled by PyTorch", hint)
    },
};

/// The error for a format that is known and not read.
fn refuse(path: &Path, what: &str, hint: &str) -> Result<Contents> {
    let error = Error::new(format!("found {what}, which is not yet read, expected safetensors in f32, f16 or bf16"));
    Err(error.hint(hint).at(path.display()))
}

/// The configuration of a directory that has one; whatever is wrong with it is reported by the format that reads it.
fn config(path: &Path) -> Option<Config> {
    Config::read(&path.join("config.json")).ok()
}

fn has_ending(path: &Path, endings: &[&str]) -> bool {
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    path.is_file() && endings.iter().any(|known| ending.eq_ignore_ascii_case(known))
}

fn directory_has(path: &Path, endings: &[&str]) -> bool {
    let Ok(entries) = std::fs::read_dir(path) else { return false };
    entries.flatten().any(|entry| has_ending(&entry.path(), endings))
}
