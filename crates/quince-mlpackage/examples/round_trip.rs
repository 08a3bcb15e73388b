//! Takes a package through everything that reads and writes programs: `round_trip FROM TO` reads the package FROM,
//! prints it as the text of a compiled model, reads that, checks that it is the same program, and writes it as the
//! package TO. Exit status 1 and an error if it does not come through.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use quince_mil::text::{Location, PrintOptions, Spelling, print};
use quince_mil::{Value, compare};
use quince_mlpackage::Package;
use quince_mlpackage::blob::BlobReader;
use quince_tensor::{DType, Error, Result};

/// Where compiled models and packages look for their weights.
const WEIGHTS: &str = "@model_path/weights/weight.bin";

#[allow(dead_code, reason = "a test runs `round_trip` only")]
fn main() -> Result<(), String> {
    let args: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    match &args[..] {
        [from, to] => round_trip(from, to).map_err(|e| e.to_string()),
        _ => Err(format!("found {} arguments, expected FROM and TO", args.len())),
    }
}

/// Through text to a package; a compiled model of the same name is left beside it.
pub fn round_trip(from: &Path, to: &Path) -> Result<()> {
    let package = Package::read(from)?;
    let compiled = to.with_extension("mlmodelc");
    let failed = |e: std::io::Error| Error::new(e.to_string()).at(compiled.display());
    fs::create_dir_all(compiled.join("weights")).map_err(failed)?;
    let candidates = ["Data/com.apple.CoreML/weights/weight.bin", "weights/weight.bin"];
    let weights = candidates.iter().map(|path| from.join(path)).find(|path| path.is_file());
    let mut offsets = HashMap::new();
    if let Some(weights) = &weights {
        fs::copy(weights, compiled.join("weights/weight.bin")).map_err(failed)?;
        for blob in BlobReader::open(weights)?.walk() {
            let (offset, blob) = blob?;
            offsets.entry((blob.dtype, blob.bytes.to_vec())).or_insert(offset);
        }
    }
    let locate = |value: &Value| locate(value, &offsets);
    let options = PrintOptions { spelling: Spelling::Exact, locate: &locate };
    fs::write(compiled.join("model.mil"), print(&package.program, &options)).map_err(failed)?;
    let read = Package::read(&compiled)?;
    compare::same(&package.program, &read.program)?;
    read.write(to, &mut |_| Ok(())).map(drop)
}

/// The place of a weight in the file, found by its content.
fn locate(value: &Value, offsets: &HashMap<(DType, Vec<u8>), u64>) -> Option<Location> {
    let Value::Weight(weight) = value else { return None };
    let content = weight.load().ok()?.bytes().to_vec();
    let offset = *offsets.get(&(weight.dtype(), content))?;
    Some(Location::File { path: WEIGHTS.to_owned(), offset })
}
