//! Bundles whose model is a chain of packages: what the manifest says of the parts, and whether they are what it says.
//!
//! ```text
//! model-00001-of-00003.mlpackage   embedding, layers 0 to 4    input_ids, position ─▶ hidden_5
//! model-00002-of-00003.mlpackage   layers 5 to 10              hidden_5, position ─▶ hidden_11
//! model-00003-of-00003.mlpackage   layers 11 to 15, head       hidden_11, position ─▶ logits
//! ```
//!
//! Each package says itself which part of which chain it is ([`PART_KEY`], [`CHAIN_KEY`]). When a bundle is opened no part
//! is read whole: a digest of the ends of its files tells whether it is the one that the manifest lists.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use quince_mlpackage::{Metadata, PART_KEY, Package};
use quince_tensor::{Error, Result, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{FileEntry, FunctionShape, Manifest};
use crate::chain::{join, part_place};

/// What all parts of a chain say, and no other package: a digest of what they were made of.
pub const CHAIN_KEY: &str = "quince.chain";

/// Bytes at the beginning, in the middle and at the end of a file that are looked at.
const SAMPLE: u64 = 1 << 16;

/// A model in parts.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Chain {
    /// What each part has as [`CHAIN_KEY`].
    pub id: String,
    /// In the order in which they run.
    pub parts: Vec<PartEntry>,
}

/// A part of a model.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct PartEntry {
    /// The name of its package in the bundle.
    pub package: String,
    /// What it runs: `layers 5 to 10`.
    pub holds: String,
    /// The processors to load it for, as `MLComputeUnits` has them, if not for those of the other parts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute_units: Option<String>,
    /// The size of its files in bytes.
    pub bytes: u64,
    /// The SHA-256 of a line for each of its files, in the order of [`Manifest::files`]: digest, two spaces, path.
    pub sha256: String,
    /// The SHA-256 of, for each of its files in that order, the size in 8 bytes, the least first, and the first, middle and
    /// last 65536 bytes; all bytes of a file that has no more than those.
    pub sample: String,
    /// What goes in and out, by function. An input that is an output of an earlier part is that; others are those of the
    /// whole, and `X_cache` and states the part's own.
    pub functions: BTreeMap<String, FunctionShape>,
}

impl Chain {
    /// What the `number`th of `count` parts is called, counted from 0.
    pub fn package_name(number: usize, count: usize) -> String {
        format!("model-{:05}-of-{count:05}.mlpackage", number + 1)
    }

    /// What that part says of itself.
    pub fn part_value(number: usize, count: usize) -> String {
        part_place(number, count)
    }

    /// Fills in sizes and digests, from the files that a manifest lists.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn measure(&mut self, directory: &Path, files: &[FileEntry]) -> Result<()> {
        for part in &mut self.parts {
            let own: Vec<FileEntry> = files_of(part, files).cloned().collect();
            part.bytes = own.iter().map(|file| file.bytes).sum();
            let lines: String = own.iter().map(|file| format!("{}  {}\n", file.sha256, file.path)).collect();
            part.sha256 = hexadecimal(&Sha256::digest(lines.as_bytes()));
            part.sample = sample(directory, own.iter().map(|file| file.path.clone()))?;
        }
        Ok(())
    }

    /// Whether names are such as a bundle may have.
    pub(super) fn check_names(&self) -> Result<()> {
        if self.parts.is_empty() {
            bail!("found a chain without parts, expected at least one");
        }
        match self.parts.iter().find(|part| !super::is_inside(&part.package) || part.package.contains(['/', '\\'])) {
            Some(part) => bail!("found the part `{}`, expected a name in the bundle", super::shown(&part.package)),
            None => Ok(()),
        }
    }

    /// Whether each part lies where the manifest says, by the ends of its files.
    ///
    /// # Errors
    /// For the first that does not: the error names it, and says what is there instead.
    pub(super) fn check(&self, directory: &Path, manifest: &Manifest) -> Result<()> {
        for (number, part) in self.parts.iter().enumerate() {
            if self.is_at(part, part, directory, manifest) {
                continue;
            }
            return Err(self.diagnosis(number, directory, manifest));
        }
        Ok(())
    }

    /// Whether what lies in the place of one part is another.
    fn is_at(&self, place: &PartEntry, part: &PartEntry, directory: &Path, manifest: &Manifest) -> bool {
        let path = |file: &FileEntry| match file.path.strip_prefix(&part.package) {
            Some(rest) => format!("{}{rest}", place.package),
            None => file.path.clone(),
        };
        sample(directory, files_of(part, &manifest.files).map(path)).is_ok_and(|found| found == part.sample)
    }

    /// What is in the place of a part that is not there.
    fn diagnosis(&self, number: usize, directory: &Path, manifest: &Manifest) -> Error {
        let own = &self.parts[number];
        let found = match self.stranger(number, directory, manifest) {
            Some(found) => found,
            None => match manifest.check_sizes(directory, &|file| is_of(own, file)) {
                Err(error) => return error,
                Ok(()) => "other contents than the manifest says".to_owned(),
            },
        };
        let (part, holds) = (part_place(number, self.parts.len()), &own.holds);
        let error = Error::new(format!("found {found}, expected {part}: {holds}")).at(&own.package);
        error.hint("copy or convert the bundle again")
    }

    /// What there is instead of a part, if it is nothing, another part, or another package.
    fn stranger(&self, number: usize, directory: &Path, manifest: &Manifest) -> Option<String> {
        let (own, count) = (&self.parts[number], self.parts.len());
        let package = directory.join(&own.package);
        if !package.is_dir() {
            return Some("no such package".to_owned());
        }
        if let Some(other) = self.parts.iter().position(|other| self.is_at(own, other, directory, manifest)) {
            return Some(part_place(other, count));
        }
        let found = Package::read(&package).ok()?;
        match part_of(&found.metadata) {
            None => Some("a package that is no part of a model".to_owned()),
            Some((part, chain)) if chain != self.id => Some(format!("{part} of another model or conversion")),
            Some((part, _)) if part != Chain::part_value(number, count) => Some(part),
            Some(_) => None,
        }
    }

    /// Reads all parts, as one program.
    ///
    /// # Errors
    /// When a part cannot be read, or does not go with those before it.
    pub(super) fn read(&self, directory: &Path) -> Result<Package> {
        let (mut programs, mut metadata) = (Vec::new(), Metadata::default());
        for (number, part) in self.parts.iter().enumerate() {
            let place = |e: Error| e.at(part_place(number, self.parts.len()));
            let mut read = Package::read(&directory.join(&part.package)).map_err(place)?;
            read.metadata.user_defined.retain(|key, _| key != PART_KEY && key != CHAIN_KEY);
            programs.push(read.program);
            metadata = read.metadata;
        }
        let mut package = Package::new(join(&programs)?);
        package.metadata = metadata;
        Ok(package)
    }
}

/// The part that a package says it is, and of which chain.
pub fn part_of(metadata: &Metadata) -> Option<(String, String)> {
    let value = |key: &str| metadata.user_defined.get(key).cloned();
    Some((value(PART_KEY)?, value(CHAIN_KEY)?))
}

fn files_of<'a>(part: &'a PartEntry, files: &'a [FileEntry]) -> impl Iterator<Item = &'a FileEntry> {
    files.iter().filter(|file| is_of(part, file))
}

fn is_of(part: &PartEntry, file: &FileEntry) -> bool {
    file.path.strip_prefix(&part.package).is_some_and(|rest| rest.starts_with('/'))
}

fn sample(directory: &Path, files: impl Iterator<Item = String>) -> Result<String> {
    let mut hash = Sha256::new();
    for path in files {
        let path = directory.join(path);
        add_sample(&path, &mut hash).map_err(|e| Error::new(format!("cannot read it: {e}")).at(path.display()))?;
    }
    Ok(hexadecimal(&hash.finalize()))
}

fn add_sample(path: &Path, hash: &mut Sha256) -> std::io::Result<()> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    hash.update(length.to_le_bytes());
    let mut piece = Vec::new();
    let mut add = |from: u64, bytes: u64| {
        file.seek(SeekFrom::Start(from))?;
        piece.clear();
        file.by_ref().take(bytes).read_to_end(&mut piece)?;
        hash.update(&piece);
        std::io::Result::Ok(())
    };
    if length <= 3 * SAMPLE {
        return add(0, length);
    }
    [0, (length - SAMPLE) / 2, length - SAMPLE].into_iter().try_for_each(|from| add(from, SAMPLE))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
