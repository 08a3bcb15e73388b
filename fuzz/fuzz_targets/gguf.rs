//! Any bytes as a GGUF file: an error, or a model whose tokenizer can be made and whose weights can be asked for.
#![no_main]

use libfuzzer_sys::fuzz_target;
use quince_checkpoint::{Checkpoint, GgufHeader, gguf_vocabulary};

/// Weights of more elements are not decoded: it would be slow, not wrong.
const MOST: usize = 1 << 16;

fuzz_target!(|data: &[u8]| {
    if GgufHeader::parse(data).is_err() {
        return;
    }
    let path = std::env::temp_dir().join(format!("quince-fuzz-{}.gguf", std::process::id()));
    std::fs::write(&path, data).expect("there is room for the file");
    let _ = gguf_vocabulary(&path);
    let Ok(checkpoint) = Checkpoint::open(&path) else { return };
    for entry in checkpoint.tensors().filter(|entry| entry.weight.len() <= MOST) {
        let _ = entry.weight.load();
        let _ = entry.weight.rows(0..1);
        if let Some(exact) = checkpoint.exact(entry.name()) {
            let _ = (exact.data.load(), exact.scale.load());
        }
    }
});
