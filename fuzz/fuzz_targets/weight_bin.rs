//! Any bytes as `weight.bin`: an error, or blobs inside the file.
#![no_main]

use libfuzzer_sys::fuzz_target;
use quince_mlpackage::blob::BlobReader;

fuzz_target!(|data: &[u8]| {
    // The reader maps files, so each input becomes one, in memory where the system has such a place.
    let directory = if std::path::Path::new("/dev/shm").is_dir() { "/dev/shm".into() } else { std::env::temp_dir() };
    let path = directory.join(format!("quince-fuzz-{}.bin", std::process::id()));
    if std::fs::write(&path, data).is_err() {
        return;
    }
    if let Ok(reader) = BlobReader::open(&path) {
        let mut total = 0usize;
        for blob in reader.walk() {
            let Ok((offset, blob)) = blob else { break };
            assert!(offset as usize + blob.bytes.len() <= data.len());
            total += blob.bytes.len();
        }
        assert!(total <= data.len());
        for offset in [0, 64, 128, u64::MAX, data.len() as u64] {
            let _ = reader.blob(offset);
        }
    }
});
