//! The files of a model: one, or several named `NAME-00001-of-00003.gguf`.

use super::header::GgufHeader;
use super::metadata::Metadata;
use super::model::{FileTensor, Tensors};
use crate::files;
use crate::suggest::shown;
use quince_tensor::{Error, Result};
use std::path::{Path, PathBuf};

/// The most files of one model.
const MOST: u64 = 10_000;

/// All files of a model.
pub(super) struct Model {
    /// The file whose metadata count.
    pub first: PathBuf,
    pub metadata: Metadata,
    pub tensors: Tensors,
    pub sources: Vec<PathBuf>,
}

/// Whether a path is a file that ends as GGUF files do.
pub(super) fn is_gguf(path: &Path) -> bool {
    path.is_file() && path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf"))
}

/// The GGUF files of a directory, sorted.
pub(super) fn files_of(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| is_gguf(path)).collect();
    found.sort();
    found
}

/// The model of a directory that has one.
///
/// # Errors
/// When there are several; the error lists them.
pub(super) fn only_model(directory: &Path) -> Result<PathBuf> {
    let files = files_of(directory);
    let firsts: Vec<&PathBuf> = files.iter().filter(|file| numbered(file).is_none_or(|n| n.number == 1)).collect();
    match firsts.as_slice() {
        [only] => Ok((*only).clone()),
        several => {
            let names = several.iter().filter_map(|path| path.file_name()).map(|name| shown(&name.to_string_lossy()));
            let error = Error::new(format!("found {} models, expected one", several.len()));
            let error = error.hint(format_args!("give one of {}", names.take(8).collect::<Vec<_>>().join(", ")));
            Err(error.at(directory.display()))
        }
    }
}

/// Reads the headers of all files of the model that a file belongs to, and maps them.
///
/// # Errors
/// When a file is missing, is not of this model, or is no GGUF file.
pub(super) fn read(path: &Path) -> Result<Model> {
    let place = |error: Error| error.at(path.display());
    let mut model = Model {
        first: path.to_path_buf(),
        metadata: Metadata::default(),
        tensors: Tensors::new(),
        sources: Vec::new(),
    };
    let (header, count) = model.add(path, None)?;
    model.metadata = header.metadata;
    if count <= 1 {
        return Ok(model);
    }
    let Some(name) = numbered(path).filter(|name| name.count == count) else {
        let error =
            Error::new(format!("found one of {count} files, expected a name like NAME-00001-of-{count:05}.gguf"));
        return Err(place(error.hint("give the files the names that they were published under")));
    };
    // Metadata of the model are in the first file only.
    let mut all = Model {
        first: name.path(path, 1),
        metadata: Metadata::default(),
        tensors: Tensors::new(),
        sources: Vec::new(),
    };
    for number in 1..=count {
        let (header, _) = all.add(&name.path(path, number), Some((number, count)))?;
        if number == 1 {
            all.metadata = header.metadata;
        }
    }
    let said = all.metadata.unsigned("split.tensors.count").map_err(place)?;
    if let Some(said) = said.filter(|&said| said != all.tensors.len() as u64) {
        let error = Error::new(format!("found {} tensors in {count} files, expected {said}", all.tensors.len()));
        return Err(place(error.hint("the files are not of one model; download them again")));
    }
    Ok(all)
}

impl Model {
    /// Reads a file, which must be the one with this number; gives its header, without tensors, and of how many it is.
    fn add(&mut self, path: &Path, expected: Option<(u64, u64)>) -> Result<(GgufHeader, u64)> {
        let at = |error: Error| error.at(path.display());
        let bytes = files::map(path).map_err(|error| {
            if expected.is_some() { error.hint("a part is missing; download it again") } else { error }
        })?;
        let mut header = GgufHeader::parse(&bytes).map_err(at)?;
        let number = header.metadata.unsigned("split.no").map_err(at)?.unwrap_or(0);
        let count = header.metadata.unsigned("split.count").map_err(at)?.unwrap_or(1);
        if count > MOST {
            return Err(at(Error::new(format!("key `split.count`: found {count}, expected at most {MOST}"))));
        }
        if let Some((wanted, of)) = expected.filter(|&expected| expected != (number + 1, count)) {
            let error = Error::new(format!("found part {} of {count}, expected part {wanted} of {of}", number + 1));
            return Err(at(error.hint("the files are not of one model; download them again")));
        }
        for info in std::mem::take(&mut header.tensors) {
            let Some(bytes) = bytes.slice(info.range.clone()) else {
                return Err(at(Error::new(format!("tensor `{}` lies outside the file", shown(&info.name)))));
            };
            let name = info.name.clone();
            let tensor = FileTensor { info, bytes, file: path.to_path_buf() };
            if let Some(other) = self.tensors.insert(name.clone(), tensor) {
                let message = format!("found tensor `{}` here and in {}", shown(&name), other.file.display());
                return Err(at(Error::new(message)));
            }
        }
        self.sources.push(path.to_path_buf());
        Ok((header, count))
    }
}

/// The parts of a name like `NAME-00002-of-00003.gguf`.
struct Numbered {
    stem: String,
    number: u64,
    count: u64,
}

impl Numbered {
    /// The file with another number beside this one.
    fn path(&self, beside: &Path, number: u64) -> PathBuf {
        beside.with_file_name(format!("{}-{number:05}-of-{:05}.gguf", self.stem, self.count))
    }
}

fn numbered(path: &Path) -> Option<Numbered> {
    let stem = path.file_stem()?.to_str()?;
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    Some(Numbered { stem: stem.to_string(), number: number.parse().ok()?, count: count.parse().ok()? })
}
