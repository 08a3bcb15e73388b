//! A mapped safetensors file, and a writer.

use crate::files;
use crate::header::{SafetensorsHeader, TensorInfo, dtype_name};
use crate::suggest::{near, shown};
use quince_tensor::{Bytes, Error, Result, Tensor, Weight, bail};
use std::io::Write;
use std::path::{Path, PathBuf};

/// A safetensors file that is mapped into memory; its tensors are slices of the map.
pub struct SafetensorsFile {
    path: PathBuf,
    bytes: Bytes,
    tensors: Vec<TensorInfo>,
}

impl SafetensorsFile {
    /// Maps a file and checks its header.
    ///
    /// # Errors
    /// As [`SafetensorsHeader::parse`], with the file's name; and when the file cannot be opened.
    pub fn open(path: &Path) -> Result<SafetensorsFile> {
        let bytes = files::map(path)?;
        let header = SafetensorsHeader::parse(&bytes).map_err(|error| error.at(path.display()))?;
        Ok(SafetensorsFile { path: path.to_path_buf(), bytes, tensors: header.into_tensors() })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tensors in the order of their bytes.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor with this name, without copying.
    ///
    /// # Errors
    /// When the file has no such tensor.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        match self.tensors.iter().find(|tensor| tensor.name == name) {
            Some(info) => self.slice(info),
            None => {
                let near = near(name, self.tensors.iter().map(|tensor| tensor.name.as_str()));
                Err(not_found(name, &near).at(self.path.display()))
            }
        }
    }

    /// Every tensor as a weight, in the order of the bytes.
    pub(crate) fn weights(&self) -> Result<Vec<Weight>> {
        self.tensors.iter().map(|info| Ok(Weight::from_tensor(&info.name, self.slice(info)?))).collect()
    }

    fn slice(&self, info: &TensorInfo) -> Result<Tensor> {
        match self.bytes.slice(info.range.clone()) {
            Some(bytes) => Tensor::new(info.dtype, info.shape.as_slice(), bytes),
            None => bail!("tensor `{}` lies outside the file", shown(&info.name)),
        }
    }
}

/// The error for a tensor that is not there, with the names that are like it.
pub(crate) fn not_found(name: &str, near: &[&str]) -> Error {
    let error = Error::new(format!("found no tensor `{}`", shown(name)));
    if near.is_empty() {
        return error;
    }
    let near: Vec<String> = near.iter().map(|name| format!("`{}`", shown(name))).collect();
    error.hint(format_args!("there is {}", near.join(", ")))
}

/// Writes tensors in the given order. The same tensors give the same bytes.
///
/// # Errors
/// When two tensors have one name, the format has no name for an element type, or writing fails.
pub fn write_safetensors(out: &mut impl Write, tensors: &[(&str, &Tensor)]) -> Result<()> {
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, tensor) in tensors {
        let Some(dtype) = dtype_name(tensor.dtype()) else {
            bail!("tensor `{name}`: found elements of type {}, which safetensors does not have", tensor.dtype());
        };
        let begin = end;
        end += tensor.bytes().len();
        let entry = serde_json::json!({"dtype": dtype, "shape": tensor.shape(), "data_offsets": [begin, end]});
        if header.insert((*name).to_string(), entry).is_some() {
            bail!("found two tensors named `{name}`, expected different names");
        }
    }
    let mut text = serde_json::Value::Object(header).to_string();
    // Spaces keep the data aligned, as the format asks of writers.
    text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(8) - text.len()));
    let parts = [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()];
    let data = tensors.iter().map(|(_, tensor)| &**tensor.bytes());
    for part in parts.into_iter().chain(data) {
        out.write_all(part).map_err(|error| Error::new(format!("cannot write safetensors: {error}")))?;
    }
    Ok(())
}
