//! Writing bundles: the package with progress, the files beside it, the manifest.

mod parts;

use crate::console::{Console, Counted};
use crate::failure::{Result, refused};
use crate::interrupt;
use crate::output;
use crate::stored;
use crate::units;
use parts::Packages;
pub use parts::embedding_part;
use quince_checkpoint::{Checkpoint, sha256};
use quince_mlpackage::{Package, Written};
use quince_runtime::{
    AdapterEntry, Bundle, COMPANIONS, CacheLayout, FileEntry, MANIFEST, Manifest, Source, VALIDATION, Validation,
};
use quince_tensor::Error;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The oldest version of quince that runs the bundles of this one.
const OLDEST_RUNTIME: &str = "0.1.0";
/// Names of licence files, which go into the bundle too.
const LICENCES: &[&str] = &["LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "NOTICE"];

/// What a manifest says and a package does not know.
pub struct Draft {
    /// What the model is called.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its architecture.
    pub architecture: String,
    /// Its licence.
    pub licence: Option<String>,
    /// Where it came from.
    pub source: Source,
    /// The adapters in it.
    pub adapters: Vec<AdapterEntry>,
    /// The layout of its KV cache.
    pub cache: Option<CacheLayout>,
    /// Files that go into the bundle as they are.
    pub companions: Vec<PathBuf>,
    /// Files that go into the bundle and are not on disk, by name with their text.
    pub made: BTreeMap<String, String>,
    /// The most bytes that a package may have; a larger one becomes several.
    pub most_bytes: Option<u64>,
}

impl Draft {
    /// What a checkpoint says.
    ///
    /// # Errors
    /// When a file of it cannot be read.
    pub fn of_checkpoint(checkpoint: &Checkpoint, architecture: &str, cache: Option<CacheLayout>) -> Result<Draft> {
        let directory = checkpoint.directory();
        let source = Source { format: checkpoint.format().to_string(), files: sources(checkpoint.sources())? };
        Ok(Draft {
            name: checkpoint.name(),
            version: "1.0.0".to_string(),
            architecture: architecture.to_string(),
            licence: directory.and_then(licence),
            source,
            adapters: Vec::new(),
            cache,
            companions: directory.map(companions).unwrap_or_default(),
            made: checkpoint.made_files()?,
            most_bytes: None,
        })
    }

    /// What the manifest of another bundle says.
    pub fn of_manifest(manifest: &Manifest, directory: &Path) -> Draft {
        Draft {
            name: manifest.name.clone(),
            version: manifest.version.clone(),
            architecture: manifest.architecture.clone(),
            licence: manifest.licence.clone(),
            source: manifest.source.clone(),
            adapters: manifest.adapters.clone(),
            cache: manifest.cache.clone(),
            companions: companions(directory),
            made: BTreeMap::new(),
            most_bytes: None,
        }
    }
}

/// Writes a package with a progress bar; Ctrl-C ends it with an error, and nothing is left.
///
/// # Errors
/// As [`Package::write`].
pub fn write_package(package: &Package, destination: &Path, console: &Console) -> Result<Written> {
    let total = stored::weights(&package.program).iter().map(|weight| weight.bytes).sum();
    let _cooperating = interrupt::cooperate();
    let _guarded = output::guarded(destination);
    let bar = console.bar("writing weights", total, Counted::Bytes);
    let mut current = 0;
    let written = package.write(destination, &mut |weight| {
        interrupt::check()?;
        bar.inc(current);
        bar.set_message(weight.name().to_string());
        current = weight.byte_len() as u64;
        Ok(())
    });
    bar.finish_and_clear();
    let written = written?;
    console.detail(&format!(
        "wrote {} different weights, {}, and the program, {}",
        written.blobs,
        units::bytes(written.weight_bytes),
        units::bytes(written.model_bytes)
    ));
    Ok(written)
}

/// Writes all files of a bundle into a directory that is there; the package in parts, if it is larger than the draft
/// allows or the Neural Engine cannot index its embedding. The manifest is written last and again by [`write_manifest`] when
/// files are added.
///
/// # Errors
/// When the package cannot be written, or the system refuses.
pub fn write_bundle(
    package: &Package,
    draft: Draft,
    directory: &Path,
    console: &Console,
) -> Result<(Written, Manifest)> {
    let packages = Packages::of(package, &draft)?;
    let written = packages.write(directory, console)?;
    for file in &draft.companions {
        let Some(name) = file.file_name() else { continue };
        fs::copy(file, directory.join(name)).map_err(|e| refused("copy into the bundle", file, &e))?;
    }
    for (name, text) in &draft.made {
        let path = directory.join(name);
        fs::write(&path, text).map_err(|e| refused("write", &path, &e))?;
    }
    let parts = stored::parts(&stored::weights(&package.program));
    let form = |part: stored::Part| part.forms.into_iter().collect::<Vec<_>>().join("; ");
    let mut manifest = Manifest {
        format: Manifest::format_of(packages.chain().as_ref()),
        name: draft.name,
        version: draft.version,
        oldest_runtime: OLDEST_RUNTIME.to_string(),
        architecture: draft.architecture,
        licence: draft.licence,
        source: draft.source,
        functions: packages.functions()?,
        adapters: draft.adapters,
        cache: draft.cache,
        chain: packages.chain(),
        compression: parts.into_iter().map(|(name, part)| (name.to_string(), form(part))).collect(),
        files: Vec::new(),
    };
    write_manifest(&mut manifest, directory)?;
    Ok((written, manifest))
}

/// Puts the report of a validation into a bundle, without the times: equal inputs give equal bundles.
///
/// # Errors
/// When the system refuses.
pub fn write_validation(found: &Validation, manifest: &mut Manifest, directory: &Path) -> Result<()> {
    let mut found = found.clone();
    found.report.metrics.retain(|metric| metric.unit != "ms");
    let path = directory.join(VALIDATION);
    let mut text = serde_json::to_string_pretty(&found)
        .map_err(|e| Error::new(format!("the report has no JSON form: {e}")).at(path.display()))?;
    text.push('\n');
    fs::write(&path, text).map_err(|e| refused("write", &path, &e))?;
    write_manifest(manifest, directory)
}

/// Lists the files of the bundle in its manifest, and writes that.
///
/// # Errors
/// When the system refuses.
pub fn write_manifest(manifest: &mut Manifest, directory: &Path) -> Result<()> {
    let mut files = Vec::new();
    list(directory, "", &mut files)?;
    files.retain(|file| file.path != MANIFEST);
    files.sort();
    if let Some(chain) = &mut manifest.chain {
        chain.measure(directory, &files)?;
    }
    manifest.files = files;
    let path = directory.join(MANIFEST);
    Ok(fs::write(&path, manifest.to_json()).map_err(|e| refused("write", &path, &e))?)
}

/// Compares the contents of every file of a bundle with the digests of its manifest, if it has one.
///
/// # Errors
/// When one is another than it was.
pub fn verify(bundle: &Bundle, console: &Console) -> Result<()> {
    let Some(manifest) = bundle.manifest() else { return Ok(()) };
    let bar = console.bar("reading files", manifest.files.iter().map(|file| file.bytes).sum(), Counted::Bytes);
    for file in &manifest.files {
        interrupt::check()?;
        bar.set_message(file.path.clone());
        let path = bundle.directory().join(&file.path);
        let found = sha256(&path)?;
        if found != file.sha256 {
            let error = Error::new(format!("found the SHA-256 {found}, expected {} as the manifest says", file.sha256));
            return Err(error.hint("copy or convert the bundle again").at(path.display()).into());
        }
        bar.inc(file.bytes);
    }
    bar.finish_and_clear();
    Ok(())
}

/// Every file below a directory with its size and digest.
fn list(directory: &Path, prefix: &str, files: &mut Vec<FileEntry>) -> Result<()> {
    for found in fs::read_dir(directory).map_err(|e| refused("list", directory, &e))? {
        let found = found.map_err(|e| refused("list", directory, &e))?;
        let Ok(name) = found.file_name().into_string() else {
            return Err(Error::new("found a file name that is not text").at(found.path().display()).into());
        };
        let path = format!("{prefix}{name}");
        match found.path().is_dir() {
            true => list(&found.path(), &format!("{path}/"), files)?,
            false => files.push(entry(&found.path(), path)?),
        }
    }
    Ok(())
}

/// Files that something was made from, by their names alone.
///
/// # Errors
/// When one cannot be read.
pub fn sources(files: &[PathBuf]) -> Result<Vec<FileEntry>> {
    let source = |path: &PathBuf| {
        interrupt::check()?;
        entry(path, path.file_name().map_or(String::new(), |name| name.to_string_lossy().into_owned()))
    };
    files.iter().map(source).collect()
}

fn entry(file: &Path, path: String) -> Result<FileEntry> {
    let bytes = fs::metadata(file).map_err(|e| refused("look at", file, &e))?.len();
    Ok(FileEntry { path, bytes, sha256: sha256(file)? })
}

fn companions(directory: &Path) -> Vec<PathBuf> {
    let names = COMPANIONS.iter().chain(LICENCES);
    names.map(|name| directory.join(name)).filter(|path| path.is_file()).collect()
}

/// The licence that the front matter of the model card names (`license: apache-2.0`), or the licence file.
fn licence(directory: &Path) -> Option<String> {
    let card = fs::read_to_string(directory.join("README.md")).unwrap_or_default();
    let front = card.strip_prefix("---\n").and_then(|rest| rest.split("\n---").next()).unwrap_or_default();
    let named = front.lines().find_map(|line| line.strip_prefix("license:")).map(|name| name.trim().to_string());
    let file = || LICENCES.iter().find(|name| directory.join(name).is_file()).map(|name| format!("see {name}"));
    named.filter(|name| !name.is_empty()).or_else(file)
}
