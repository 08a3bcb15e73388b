//! Any bytes as the start of a safetensors file: an error or a header whose ranges lie inside the file.
#![no_main]

use libfuzzer_sys::fuzz_target;
use quince_checkpoint::SafetensorsHeader;

fuzz_target!(|data: &[u8]| {
    if let Ok(header) = SafetensorsHeader::parse(data) {
        for tensor in header.tensors() {
            assert!(tensor.range.start <= tensor.range.end && tensor.range.end <= data.len());
        }
    }
});
