//! Any text as `config.json`: an error, or a model's configuration.
#![no_main]

use libfuzzer_sys::fuzz_target;
use quince_checkpoint::{Checkpoint, Config};

fuzz_target!(|text: &str| {
    let Ok(config) = Config::from_text("config.json", text) else { return };
    let Ok(checkpoint) = Checkpoint::from_weights(config, Vec::new()) else { return };
    let _ = quince_convert::semantic(&checkpoint);
});
