//! The bundle: a directory that holds a package and everything that is needed to use it.
//!
//! ```text
//! story.bundle/
//!   manifest.json          what is here, where it came from, how it is compressed: [`Manifest`]
//!   model.mlpackage/       the package, as Core ML takes it; or model-00001-of-00004.mlpackage and so on, in parts
//!   tokenizer.json ...     the files of the checkpoint that turn text into tokens and back
//!   validation.json        the report, if the package was validated when it was made
//! ```
//!
//! A package or compiled model alone is taken where a bundle is; files that lie beside it are then used as if it were in
//! a bundle.

mod parts;

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use quince_mlpackage::{Package, is_compiled};
use quince_tensor::{Error, Result, bail};
use serde::{Deserialize, Serialize};

use crate::Tokenizer;
pub use parts::{CHAIN_KEY, Chain, PartEntry, part_of};

/// The name of the manifest in a bundle.
pub const MANIFEST: &str = "manifest.json";
/// The name of the package in a bundle.
pub const PACKAGE: &str = "model.mlpackage";
/// The name of the validation report in a bundle.
pub const VALIDATION: &str = "validation.json";
/// Files of a checkpoint that a bundle takes along when they are there.
pub const COMPANIONS: &[&str] = &[
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "config_sentence_transformers.json",
];
/// The longest manifest that is read, in bytes.
const MAX_MANIFEST: u64 = 16 << 20;

/// A bundle, or a package or compiled model without one.
#[derive(Clone, Debug)]
pub struct Bundle {
    directory: PathBuf,
    package: PathBuf,
    manifest: Option<Manifest>,
}

/// What `manifest.json` says. Equal inputs give equal bytes: there is no time and no machine in it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of this layout: [`Manifest::format_of`].
    pub format: u32,
    /// What the model is called.
    pub name: String,
    /// The version of the model, `major.minor.patch`.
    pub version: String,
    /// The oldest version of quince that can run it.
    pub oldest_runtime: String,
    /// The architecture: the first `model_type` of its row in the table of architectures.
    pub architecture: String,
    /// The licence, as the checkpoint names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub licence: Option<String>,
    /// Where it came from.
    pub source: Source,
    /// The adapters in it, in the order in which they were applied.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub adapters: Vec<AdapterEntry>,
    /// The functions of the package by name.
    pub functions: BTreeMap<String, FunctionShape>,
    /// What carries keys and values from call to call; none if nothing does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheLayout>,
    /// The packages, if there are several: each is a part of the model. [`Manifest::functions`] are those of the whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain: Option<Chain>,
    /// By component of the model: how its weights are stored, such as `palettized, 4 bits, groups of 16`.
    pub compression: BTreeMap<String, String>,
    /// Every file of the bundle but the manifest, sorted by path.
    pub files: Vec<FileEntry>,
}

/// The checkpoint that a package was made from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Source {
    /// The format of the checkpoint.
    pub format: String,
    /// The files that configuration and weights were read from; the path is the file's name.
    pub files: Vec<FileEntry>,
}

/// An adapter in a package.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct AdapterEntry {
    /// Its name, by which `--adapter` chooses one that is kept.
    pub name: String,
    /// Whether it is in the weights or beside them.
    pub how: AdapterUse,
    /// How much of it: 1 for all.
    pub weight: f64,
    /// The functions that it changes.
    pub functions: Vec<String>,
    /// The files that it was read from; the path is the file's name.
    pub files: Vec<FileEntry>,
}

/// Where an adapter is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AdapterUse {
    /// In the weights.
    Merged,
    /// Beside the weights, in functions of its own.
    Kept,
}

/// A file with its size and digest.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct FileEntry {
    /// Relative to the bundle, with `/` between parts.
    pub path: String,
    /// The size in bytes.
    pub bytes: u64,
    /// The SHA-256 in lower-case hexadecimal.
    pub sha256: String,
}

/// Inputs, outputs and states of a function, in order.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FunctionShape {
    /// What a call takes.
    pub inputs: Vec<Feature>,
    /// What a call gives.
    pub outputs: Vec<Feature>,
    /// What outlives a call.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub states: Vec<Feature>,
}

/// A named tensor.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Feature {
    /// The name.
    pub name: String,
    /// The element type as MIL names it.
    pub dtype: String,
    /// The size along each axis; null where it is known only when the function runs.
    pub shape: Vec<Option<usize>>,
}

/// The layout of the KV cache.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CacheLayout {
    /// `state` or `io`, as `--kv-cache` says it.
    pub kind: String,
    /// The element type.
    pub dtype: String,
    /// Layers with attention.
    pub layers: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Tokens that it has room for.
    pub context: usize,
    /// Smaller contexts, for which there are functions that cost less: `init_512`, `decode_512`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub buckets: Vec<usize>,
    /// Tokens of one call of `init`, if there is that function.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefill_length: Option<usize>,
}

impl Bundle {
    /// Opens a bundle, or a package or compiled model alone. Of a bundle, the manifest is read, and each file that it lists must be there
    /// with its size; [`Manifest::files`] has the digests for who wants to compare contents too.
    ///
    /// # Errors
    /// When there is neither, when the manifest cannot be read or asks for a newer quince, or when a file is absent or
    /// of another size.
    pub fn open(path: impl AsRef<Path>) -> Result<Bundle> {
        let path = path.as_ref();
        if let Err(error) = std::fs::metadata(path) {
            bail!("{}: cannot open the bundle: {error}", path.display(); hint: "check the path; `quince convert MODEL -o BUNDLE` makes a bundle");
        }
        if path.join(PACKAGE).is_dir() || has_manifest(path) && !is_package(path) {
            let manifest = Manifest::read(&path.join(MANIFEST))?;
            let package = match &manifest.chain {
                Some(chain) => {
                    chain.check(path, &manifest).map_err(|e| e.at(path.display()))?;
                    path.to_path_buf()
                }
                None => path.join(PACKAGE),
            };
            manifest.check_sizes(path, &|_| true).map_err(|e| e.at(path.display()))?;
            return Ok(Bundle { directory: path.into(), package, manifest: Some(manifest) });
        }
        if is_package(path) {
            let directory = match path.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
                _ => PathBuf::from("."),
            };
            return Ok(Bundle { directory, package: path.into(), manifest: None });
        }
        let error = Error::new(
            "found neither a bundle nor a package, expected a directory with model.mlpackage, Manifest.json or model.mil",
        );
        let error = match path.join("config.json").is_file() {
            true => error
                .hint(format_args!("this is a checkpoint: `quince convert {} -o BUNDLE` converts it", path.display())),
            false => error,
        };
        Err(error.at(path.display()))
    }

    /// Whether a path looks like a bundle, a package or a compiled model, judged by file names alone.
    pub fn recognizes(path: &Path) -> bool {
        path.join(PACKAGE).is_dir() || has_manifest(path) || is_package(path)
    }

    /// Where tokenizer and manifest lie: the bundle, or the directory around a package alone.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The package's directory; the bundle's if there are several.
    pub fn package_path(&self) -> &Path {
        &self.package
    }

    /// The directories of all packages, in order.
    pub fn packages(&self) -> Vec<PathBuf> {
        match self.chain() {
            Some(chain) => chain.parts.iter().map(|part| self.directory.join(&part.package)).collect(),
            None => vec![self.package.clone()],
        }
    }

    /// The package, for who writes it again as one.
    ///
    /// # Errors
    /// When there are several: what one has, the others rest on.
    pub fn only_package(&self) -> Result<&Path> {
        match self.chain() {
            None => Ok(&self.package),
            Some(chain) => {
                let error = Error::new(format!("found a model in {} parts, expected one package", chain.parts.len()));
                Err(error
                    .hint("convert it again with what is to be changed; --max-part-size splits it then")
                    .at(self.directory.display()))
            }
        }
    }

    /// The parts, if there are several packages.
    pub fn chain(&self) -> Option<&Chain> {
        self.manifest.as_ref()?.chain.as_ref()
    }

    /// The manifest; none for a package alone.
    pub fn manifest(&self) -> Option<&Manifest> {
        self.manifest.as_ref()
    }

    /// Reads the package; of several, all as one. Weights are mapped, not loaded.
    ///
    /// # Errors
    /// As [`Package::read`]; and when parts do not go together.
    pub fn read_package(&self) -> Result<Package> {
        match self.chain() {
            Some(chain) => chain.read(&self.directory).map_err(|e| e.at(self.directory.display())),
            None => Package::read(&self.package),
        }
    }

    /// Reads the tokenizer.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        Tokenizer::from_dir(&self.directory)
    }
}

/// Whether there is the manifest of a bundle. `Manifest.json` of a package has the same name where case is not told
/// apart.
fn has_manifest(path: &Path) -> bool {
    path.join(MANIFEST).is_file() && !path.join("Data").is_dir()
}

/// Whether there is a package, or the compiled model of one.
fn is_package(path: &Path) -> bool {
    path.join("Manifest.json").is_file() && path.join("Data").is_dir() || is_compiled(path)
}

impl Manifest {
    /// The newest version of the layout that this library reads.
    pub const FORMAT: u32 = 2;

    /// The oldest version of the layout that says what there is to say: 2 for a model in parts, which a runtime that knows
    /// only 1 would look for in vain.
    pub fn format_of(chain: Option<&Chain>) -> u32 {
        if chain.is_some() { 2 } else { 1 }
    }

    /// Reads a manifest.
    ///
    /// # Errors
    /// When the file cannot be read, is no manifest, or asks for a newer quince than this one.
    pub fn read(file: &Path) -> Result<Manifest> {
        let at = |error: Error| error.at(file.display());
        let length =
            std::fs::metadata(file).map_err(|e| at(Error::new(format!("cannot read the manifest: {e}"))))?.len();
        if length > MAX_MANIFEST {
            return Err(at(Error::new(format!("found {length} bytes, expected at most {MAX_MANIFEST}"))));
        }
        let text =
            std::fs::read_to_string(file).map_err(|e| at(Error::new(format!("cannot read the manifest: {e}"))))?;
        Manifest::parse(&text).map_err(at)
    }

    fn parse(text: &str) -> Result<Manifest> {
        /// What every version of the layout has, read first so that a newer one is reported as such.
        #[derive(Deserialize)]
        struct Versions {
            format: u32,
            oldest_runtime: String,
        }
        let bad = |e: serde_json::Error| Error::new(format!("found no manifest of a bundle: {e}"));
        let versions: Versions = serde_json::from_str(text).map_err(bad)?;
        let own = env!("CARGO_PKG_VERSION");
        if versions.format > Manifest::FORMAT {
            bail!(
                "found layout {} of a bundle, expected at most {}", versions.format, Manifest::FORMAT;
                hint: "update quince, or convert the model again with this version"
            );
        }
        if version_numbers(&versions.oldest_runtime) > version_numbers(own) {
            bail!(
                "found a bundle for quince {} or newer, expected one for {own}", shown(&versions.oldest_runtime);
                hint: "update quince, or convert the model again with this version"
            );
        }
        let manifest: Manifest = serde_json::from_str(text).map_err(bad)?;
        if let Some(chain) = &manifest.chain {
            chain.check_names()?;
        }
        match manifest.files.iter().find(|file| !is_inside(&file.path)) {
            Some(file) => bail!("found the file path `{}`, expected one inside the bundle", shown(&file.path)),
            None => Ok(manifest),
        }
    }

    /// The JSON text, as it is written.
    pub fn to_json(&self) -> String {
        // Strings, numbers and maps with string keys always have a JSON form.
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }

    /// Whether the files that `asked` says yes to are there with their sizes.
    fn check_sizes(&self, directory: &Path, asked: &dyn Fn(&FileEntry) -> bool) -> Result<()> {
        for file in self.files.iter().filter(|file| asked(file)) {
            match std::fs::metadata(directory.join(&file.path)) {
                Ok(found) if found.len() == file.bytes => {}
                Ok(found) => bail!(
                    "{}: found {} bytes, expected {} as the manifest says", file.path, found.len(), file.bytes;
                    hint: "copy or convert the bundle again"
                ),
                Err(error) => {
                    bail!("{}: cannot read a file of the bundle: {error}", file.path; hint: "copy or convert the bundle again")
                }
            }
        }
        Ok(())
    }
}

/// Whether a path stays inside the directory that it is joined to.
fn is_inside(path: &str) -> bool {
    let mut parts = Path::new(path).components();
    !path.is_empty() && parts.all(|part| matches!(part, Component::Normal(_)))
}

/// The numbers of a version, for comparing; what is no number counts as zero.
fn version_numbers(version: &str) -> [u64; 3] {
    let mut numbers = version.split(['.', '-', '+']).map(|part| part.parse().unwrap_or(0));
    std::array::from_fn(|_| numbers.next().unwrap_or(0))
}

/// A string of a stranger's, short enough for an error.
fn shown(text: &str) -> String {
    text.chars().take(80).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        Manifest {
            format: 1,
            name: "tiny".into(),
            version: "1.0.0".into(),
            oldest_runtime: "0.1.0".into(),
            architecture: "llama".into(),
            licence: None,
            source: Source { format: "safetensors".into(), files: Vec::new() },
            adapters: Vec::new(),
            functions: BTreeMap::new(),
            cache: None,
            chain: None,
            compression: BTreeMap::new(),
            files: vec![FileEntry { path: "model.mlpackage/Manifest.json".into(), bytes: 3, sha256: "00".into() }],
        }
    }

    #[test]
    fn a_manifest_comes_back_as_it_was_written() {
        assert_eq!(Manifest::parse(&manifest().to_json()).unwrap(), manifest());
    }

    #[test]
    fn a_newer_bundle_and_a_path_that_leads_out_are_refused() {
        let newer = Manifest { oldest_runtime: "99.0.0".into(), ..manifest() };
        let error = Manifest::parse(&newer.to_json()).unwrap_err().to_string();
        assert!(error.starts_with("found a bundle for quince 99.0.0 or newer"), "{error}");
        // A newer layout is told by its version even when it has none of today's fields.
        let error = Manifest::parse(r#"{"format": 3, "oldest_runtime": "0.9.0"}"#).unwrap_err().to_string();
        assert!(error.starts_with("found layout 3 of a bundle, expected at most 2"), "{error}");
        for path in ["../x", "/etc/passwd", "a/../../b", ""] {
            let mut out = manifest();
            out.files[0].path = path.into();
            assert!(Manifest::parse(&out.to_json()).is_err(), "{path}");
        }
    }

    #[test]
    fn a_file_of_another_size_is_named() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join(PACKAGE)).unwrap();
        std::fs::write(directory.path().join(MANIFEST), manifest().to_json()).unwrap();
        std::fs::write(directory.path().join(PACKAGE).join("Manifest.json"), "four").unwrap();
        let error = Bundle::open(directory.path()).unwrap_err().to_string();
        assert!(error.contains("model.mlpackage/Manifest.json: found 4 bytes, expected 3"), "{error}");
        std::fs::write(directory.path().join(PACKAGE).join("Manifest.json"), "3by").unwrap();
        assert_eq!(Bundle::open(directory.path()).unwrap().manifest(), Some(&manifest()));
    }

    #[test]
    fn a_bundle_without_its_package_is_no_checkpoint() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("config.json"), "{}").unwrap();
        std::fs::write(directory.path().join(MANIFEST), manifest().to_json()).unwrap();
        assert!(Bundle::recognizes(directory.path()));
        let error = Bundle::open(directory.path()).unwrap_err().to_string();
        assert!(error.contains("model.mlpackage/Manifest.json: cannot read a file of the bundle"), "{error}");
    }

    #[test]
    fn a_checkpoint_is_told_from_a_bundle() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("config.json"), "{}").unwrap();
        let error = Bundle::open(directory.path()).unwrap_err().to_string();
        assert!(error.contains("hint: this is a checkpoint"), "{error}");
    }
}
