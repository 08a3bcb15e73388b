//! `Manifest.json`: which files a package has and which of them is the model.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Result, refused, wrong};

const VERSION: &str = "1.0.0";
const AUTHOR: &str = "com.apple.CoreML";

/// Where the model is, below `Data/`.
pub const MODEL_PATH: &str = "com.apple.CoreML/model.mlmodel";
/// Where the directory of weights is, below `Data/`.
pub const WEIGHTS_PATH: &str = "com.apple.CoreML/weights";

/// The content of `Manifest.json`; the order of keys is that of the alphabet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Manifest {
    file_format_version: String,
    item_info_entries: BTreeMap<String, Item>,
    root_model_identifier: String,
}

/// A file of a package that quince does not know, kept as it is.
#[derive(Clone, Debug)]
pub struct Extra {
    id: String,
    item: Item,
    content: Vec<u8>,
}

/// One file or directory of a package.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Item {
    author: String,
    #[serde(default)]
    description: String,
    name: String,
    path: String,
}

impl Manifest {
    /// The manifest of a model with this hash of its content, with or without weights; the identifiers follow from the
    /// hash, so equal packages have equal manifests.
    pub fn new(content: &[u8; 32], has_weights: bool) -> Self {
        let item = |description: &str, name: &str, path: &str| {
            let (author, description) = (AUTHOR.to_owned(), description.to_owned());
            (identifier(content, name), Item { author, description, name: name.to_owned(), path: path.to_owned() })
        };
        let model = item("CoreML Model Specification", "model.mlmodel", MODEL_PATH);
        let weights = has_weights.then(|| item("CoreML Model Weights", "weights", WEIGHTS_PATH));
        Manifest {
            file_format_version: VERSION.into(),
            root_model_identifier: model.0.clone(),
            item_info_entries: [model].into_iter().chain(weights).collect(),
        }
    }

    /// Reads the manifest of a package and checks every path in it.
    pub fn read(package: &Path) -> Result<Self> {
        let file = package.join("Manifest.json");
        if package.is_file() {
            return Err(wrong(package, "package", "it is a file, expected a directory")
                .hint("give the .mlpackage directory, not a file in it"));
        }
        let text = fs::read(&file).map_err(|e| refused("read", &file, &e))?;
        let manifest: Manifest = serde_json::from_slice(&text).map_err(|e| {
            wrong(&file, format!("line {}", e.line()), e.to_string())
                .hint("the file is cut or not a package's manifest")
        })?;
        if manifest.file_format_version != VERSION {
            return Err(wrong(
                &file,
                "fileFormatVersion",
                format!("found {:?}, expected {VERSION:?}", manifest.file_format_version),
            ));
        }
        for (id, item) in &manifest.item_info_entries {
            if !stays_inside(&item.path) {
                return Err(wrong(&file, format!("item {id}"), format!("the path {:?} leaves the package", item.path))
                    .hint("do not use this package: no tool writes such a path"));
            }
        }
        if !manifest.item_info_entries.contains_key(&manifest.root_model_identifier) {
            return Err(wrong(&file, "rootModelIdentifier", format!("no item {:?}", manifest.root_model_identifier)));
        }
        Ok(manifest)
    }

    /// Writes the manifest as coremltools does.
    pub fn write(&self, package: &Path) -> Result<()> {
        let file = package.join("Manifest.json");
        let text = self.text().map_err(|e| wrong(&file, "manifest", e.to_string()))?;
        fs::write(&file, text).map_err(|e| refused("write", &file, &e))
    }

    fn text(&self) -> serde_json::Result<Vec<u8>> {
        let mut text = Vec::new();
        let format = serde_json::ser::PrettyFormatter::with_indent(b"    ");
        self.serialize(&mut serde_json::Serializer::with_formatter(&mut text, format))?;
        text.push(b'\n');
        Ok(text)
    }

    /// The bytes of the manifest and of other files that it lists.
    pub fn measure(mut self, extras: &[Extra]) -> serde_json::Result<u64> {
        self.item_info_entries.extend(extras.iter().map(|extra| (extra.id.clone(), extra.item.clone())));
        let beside: usize = extras.iter().map(|extra| extra.content.len()).sum();
        Ok((self.text()?.len() + beside) as u64)
    }

    /// The model's file in `package`.
    pub fn model(&self, package: &Path) -> PathBuf {
        let root = self.item_info_entries.get(&self.root_model_identifier);
        package.join("Data").join(root.map_or(MODEL_PATH, |item| &item.path))
    }

    /// The files that are neither the model nor its weights, such as texts that Xcode keeps beside them.
    pub fn extras(&self, package: &Path) -> Result<Vec<Extra>> {
        let model = self.model(package);
        let beside = model.with_file_name("weights");
        let mut extras = Vec::new();
        for (id, item) in &self.item_info_entries {
            let file = package.join("Data").join(&item.path);
            if *id == self.root_model_identifier || file == beside {
                continue;
            }
            let content = fs::read(&file).map_err(|e| refused("read", &file, &e))?;
            extras.push(Extra { id: id.clone(), item: item.clone(), content });
        }
        Ok(extras)
    }

    /// Writes other files into a package and lists them.
    pub fn with_extras(mut self, extras: &[Extra], package: &Path) -> Result<Self> {
        for extra in extras {
            let file = package.join("Data").join(&extra.item.path);
            if file.exists() {
                return Err(wrong(&file, "manifest", "two items have this path"));
            }
            let made = file.parent().map_or(Ok(()), fs::create_dir_all);
            made.and_then(|()| fs::write(&file, &extra.content)).map_err(|e| refused("write", &file, &e))?;
            self.item_info_entries.insert(extra.id.clone(), extra.item.clone());
        }
        Ok(self)
    }
}

/// A UUID (version 8: of our own making) from the content's hash and the item's name.
fn identifier(content: &[u8; 32], name: &str) -> String {
    let hash = Sha256::new().chain_update(content).chain_update(name).finalize();
    let mut id = [0u8; 16];
    id.copy_from_slice(&hash[..16]);
    id[6] = id[6] & 0x0f | 0x80;
    id[8] = id[8] & 0x3f | 0x80;
    let hex: String = id.iter().map(|b| format!("{b:02X}")).collect();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

/// Whether a relative path names something below the directory it starts from.
pub(crate) fn stays_inside(path: &str) -> bool {
    !path.is_empty() && !path.contains('\\') && Path::new(path).components().all(|c| matches!(c, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_and_read_it_is_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let manifest = Manifest::new(&[7; 32], true);
        manifest.write(dir.path()).unwrap();
        assert_eq!(Manifest::read(dir.path()).unwrap(), manifest);
        assert_eq!(manifest, Manifest::new(&[7; 32], true));
        assert_ne!(manifest, Manifest::new(&[8; 32], true));
        assert_eq!(Manifest::new(&[7; 32], false).item_info_entries.len(), 1);
        assert_eq!(manifest.model(Path::new("p")), Path::new("p/Data/com.apple.CoreML/model.mlmodel"));
    }

    #[test]
    fn paths_that_leave_the_package_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        Manifest::new(&[0; 32], false).write(dir.path()).unwrap();
        let text = fs::read_to_string(dir.path().join("Manifest.json")).unwrap();
        for path in ["../x", "/etc/passwd", "a/../../x", "", "a\\\\..\\\\x"] {
            fs::write(dir.path().join("Manifest.json"), text.replace(MODEL_PATH, path)).unwrap();
            let error = Manifest::read(dir.path()).unwrap_err().to_string();
            assert!(error.contains("leaves the package"), "{path}: {error}");
        }
        fs::write(dir.path().join("Manifest.json"), &text[..text.len() / 2]).unwrap();
        assert!(Manifest::read(dir.path()).is_err());
    }
}
