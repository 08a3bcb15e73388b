//! What a sweep consists of: known before anything is computed, and kept beside its results.

use super::Args;
use crate::failure::{Failure, Result, refused};
use crate::options::recipe;
use quince_checkpoint::Checkpoint;
use quince_compress::Scheme;
use quince_runtime::Suite;
use quince_tensor::Error;
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// The name of the job that finds out what parts of the model lose.
pub const PARTS: &str = "parts";
/// The name of the variant that is not compressed.
const BASELINE: &str = "baseline";

/// How weights are chosen.
const CALIBRATED: &str = "weights are chosen by what they are multiplied with";
const DATA_FREE: &str = "none, weights are chosen by their values alone";

/// What a sweep consists of.
#[derive(Serialize)]
pub struct Plan {
    version: u32,
    quince: &'static str,
    /// The model's name.
    pub model: String,
    /// Its files, with their sizes and the SHA-256 of their last bytes.
    files: Vec<(String, u64, String)>,
    /// What variants are judged on.
    pub text: String,
    text_sha256: String,
    tokens: usize,
    length: usize,
    context: Option<usize>,
    compute_units: String,
    /// How weights are chosen.
    pub calibration: String,
    /// On what they are calibrated.
    calibrated_on: Option<String>,
    variants: Vec<Variant>,
    /// The text itself.
    #[serde(skip)]
    pub content: String,
}

/// One way to store the weights.
#[derive(Clone, Serialize)]
pub struct Variant {
    /// What its files are called.
    pub name: String,
    /// What variants of one family share.
    pub family: String,
    /// The options of the command line that make it.
    options: Vec<String>,
    /// What they mean; nothing for the baseline.
    #[serde(skip)]
    pub scheme: Option<Scheme>,
}

/// What can be run alone.
pub enum Job {
    /// A variant.
    Variant(Variant),
    /// What parts of the model lose.
    Parts,
}

impl Job {
    /// What its result is called.
    pub fn name(&self) -> &str {
        match self {
            Job::Variant(variant) => &variant.name,
            Job::Parts => PARTS,
        }
    }
}

impl Plan {
    /// The plan that options mean.
    ///
    /// # Errors
    /// Ways to compress that there are not, none at all, and files that cannot be read.
    pub fn of(args: &Args, model: &Path) -> Result<Plan> {
        let checkpoint = Checkpoint::open(model)?;
        let mut files = Vec::new();
        for path in checkpoint.sources() {
            let (bytes, end) = size_and_end(path).map_err(|e| refused("read", path, &e))?;
            let name = path.file_name().map_or(String::new(), |n| n.to_string_lossy().into_owned());
            files.push((name, bytes, hex(&end)));
        }
        let (text, content) = match &args.text {
            Some(file) => {
                let content = fs::read_to_string(file).map_err(|e| refused("read the text", file, &e))?;
                (file.file_name().map_or(String::new(), |n| n.to_string_lossy().into_owned()), content)
            }
            None => ("a page of plain English".to_owned(), Suite::built_in()?.text.unwrap_or_default()),
        };
        Ok(Plan {
            version: 1,
            quince: env!("CARGO_PKG_VERSION"),
            model: checkpoint.name(),
            files,
            text,
            text_sha256: hex(content.as_bytes()),
            tokens: args.tokens,
            length: args.length,
            context: args.context,
            compute_units: format!("{:?}", args.compute_units),
            calibration: if args.calibration.asked() { CALIBRATED } else { DATA_FREE }.to_owned(),
            calibrated_on: args.calibration.told()?,
            variants: variants(args)?,
            content,
        })
    }

    /// Every job; their numbers are their places.
    pub fn jobs(&self) -> Vec<Job> {
        self.variants.iter().cloned().map(Job::Variant).chain([Job::Parts]).collect()
    }

    /// The way with the fewest bits: what parts lose is plainest there.
    pub fn smallest(&self) -> Option<Scheme> {
        self.variants.iter().filter_map(|variant| variant.scheme).min_by(|a, b| a.bits().total_cmp(&b.bits()))
    }

    /// As it is kept.
    ///
    /// # Errors
    /// None that is known of.
    pub fn to_json(&self) -> Result<String> {
        let text = serde_json::to_string_pretty(self);
        Ok(text.map_err(|e| Error::new(format!("the plan has no JSON form: {e}")))? + "\n")
    }
}

/// How many bytes a file has, and the last of them: weights that were trained further are told from those before, and a
/// large checkpoint is not read for it.
fn size_and_end(path: &Path) -> std::io::Result<(u64, Vec<u8>)> {
    const END: u64 = 1 << 16;
    let mut file = fs::File::open(path)?;
    let bytes = file.metadata()?.len();
    file.seek(SeekFrom::Start(bytes.saturating_sub(END)))?;
    let mut end = Vec::new();
    file.take(END).read_to_end(&mut end)?;
    Ok((bytes, end))
}

/// The SHA-256 of bytes in lower-case hexadecimal.
fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The baseline and every combination.
fn variants(args: &Args) -> Result<Vec<Variant>> {
    let baseline =
        Variant { name: BASELINE.to_owned(), family: "not compressed".to_owned(), options: Vec::new(), scheme: None };
    let mut found = vec![baseline];
    for size in &args.group_sizes {
        for bits in &args.wbits {
            let (name, family, option) = match size.as_str() {
                "none" => (format!("w{bits}"), "one table".to_owned(), "--palett-granularity=per_tensor".to_owned()),
                size => {
                    (format!("w{bits}-g{size}"), format!("groups of {size}"), format!("--palett-group-size={size}"))
                }
            };
            found.push(variant(name, family, vec![format!("--wbits={bits}"), option], args)?);
        }
    }
    for dtype in &args.quantize {
        let options = vec![format!("--quantize={dtype}")];
        found.push(variant(dtype.clone(), "integers".to_owned(), options, args)?);
    }
    if found.len() == 1 {
        return Err(Failure::usage_hint(
            "found no way to compress, expected some",
            "add --wbits 2,4,6 or --quantize int8",
        ));
    }
    for (i, variant) in found.iter().enumerate() {
        if found[..i].iter().any(|known| known.name == variant.name) {
            return Err(Failure::usage(format!("found {} twice, expected each way once", variant.name)));
        }
    }
    Ok(found)
}

fn variant(name: String, family: String, options: Vec<String>, args: &Args) -> Result<Variant> {
    let scheme = recipe::scheme(&options, args.compute_units.devices()).map_err(|e| Failure::Usage(e.at(&name)))?;
    Ok(Variant { name, family, options, scheme: Some(scheme) })
}
