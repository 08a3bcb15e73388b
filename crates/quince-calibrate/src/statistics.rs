//! The file of statistics: safetensors, in which tensor `N.sums` is the lower triangle of the sum of x xᵀ over the inputs
//! of group N, row after row, and `N.count` how many inputs there were. The metadata say which weight is of which group.

use memmap2::Mmap;
use quince_compress::{Factor, Guide, Moments};
use quince_tensor::{Error, Result, bail};
use safetensors::SafeTensors;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// The key of the metadata, and what it must be.
const FORMAT: (&str, &str) = ("quince.statistics", "1");
/// The key of the metadata that says which weight is of which group.
const WEIGHTS: &str = "weights";

/// The name of a weight without regard to whether dots have become underscores.
pub(crate) fn key(weight: &str) -> String {
    weight.replace('.', "_")
}

/// What a file holds.
pub(crate) struct Layout {
    /// By group: elements of an input.
    pub sizes: Vec<usize>,
    /// By weight: its group.
    pub weights: BTreeMap<String, usize>,
}

/// A factor with its group and the bits of its damping.
type Last = ((usize, u32), Arc<Factor>);

/// Second moments of the inputs of weights, in a file; read when they are needed.
pub struct Statistics {
    map: Mmap,
    path: PathBuf,
    weights: BTreeMap<String, usize>,
    /// The factor that was needed last: weights that share inputs are written one after the other.
    last: Mutex<Option<Last>>,
}

impl Statistics {
    /// Opens a file.
    ///
    /// # Errors
    /// When it is no file of statistics.
    pub fn open(path: &Path) -> Result<Statistics> {
        let read = || -> Result<(Mmap, BTreeMap<String, usize>)> {
            let file = File::open(path).map_err(|e| Error::new(format!("cannot be read: {e}")))?;
            // SAFETY: the map is only read; a file that another process shortens meanwhile ends this one, as for every
            // mapped file of quince.
            let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::new(format!("cannot be mapped: {e}")))?;
            let (_, metadata) = SafeTensors::read_metadata(&map).map_err(|e| Error::new(e.to_string()))?;
            let metadata = metadata.metadata().clone().unwrap_or_default();
            if metadata.get(FORMAT.0).is_none_or(|version| version != FORMAT.1) {
                bail!("found no {} {} in the metadata, expected a file of `quince calibrate`", FORMAT.0, FORMAT.1);
            }
            let weights = metadata.get(WEIGHTS).map_or("{}", String::as_str);
            let weights =
                serde_json::from_str(weights).map_err(|e| Error::new(format!("metadata `{WEIGHTS}`: {e}")))?;
            Ok((map, weights))
        };
        let (map, weights) = read().map_err(|e| e.at(path.display()))?;
        Ok(Statistics { map, path: path.to_owned(), weights, last: Mutex::new(None) })
    }

    /// The number of weights that something is known of.
    pub fn weights(&self) -> usize {
        self.weights.len()
    }

    /// The second moments of the inputs of a weight.
    ///
    /// # Errors
    /// When the file does not have what it says.
    pub fn moments(&self, weight: &str) -> Result<Option<Moments>> {
        self.weights.get(&key(weight)).map(|group| self.group(*group)).transpose()
    }

    fn group(&self, group: usize) -> Result<Moments> {
        let read = || -> Result<Moments> {
            let tensors = SafeTensors::deserialize(&self.map).map_err(|e| Error::new(e.to_string()))?;
            let bytes = |name: String| match tensors.tensor(&name) {
                Ok(view) => Ok(view.data()),
                Err(e) => Err(Error::new(format!("`{name}`: {e}"))),
            };
            let sums: Vec<f32> = bytemuck::pod_collect_to_vec(bytes(format!("{group}.sums"))?);
            let count: Vec<u64> = bytemuck::pod_collect_to_vec(bytes(format!("{group}.count"))?);
            // n (n + 1) / 2 sums.
            let size = ((8.0 * sums.len() as f64 + 1.0).sqrt() / 2.0) as usize;
            Moments::from_sums(size, sums, count.first().copied().unwrap_or(0))
        };
        read().map_err(|e| e.at(self.path.display()))
    }
}

impl Guide for Statistics {
    fn factor(&self, weight: &str, damping: f32) -> Result<Option<Arc<Factor>>> {
        let Some(&group) = self.weights.get(&key(weight)) else { return Ok(None) };
        // Whoever waits needs the same factor, most likely; a panic elsewhere leaves nothing half-made here.
        let mut last = self.last.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some((known, factor)) = &*last
            && *known == (group, damping.to_bits())
        {
            return Ok(Some(factor.clone()));
        }
        // The old one goes first: there is room for one.
        *last = None;
        let factor = Arc::new(Factor::new(&self.group(group)?, damping).map_err(|e| e.at(weight))?);
        *last = Some(((group, damping.to_bits()), factor.clone()));
        Ok(Some(factor))
    }

    fn knows(&self, weight: &str) -> bool {
        self.weights.contains_key(&key(weight))
    }
}

/// Writes a file, group by group.
pub(crate) struct Writer {
    out: BufWriter<File>,
    path: PathBuf,
}

impl Writer {
    /// Writes the head of a file.
    pub fn create(path: &Path, layout: &Layout) -> Result<Writer> {
        if layout.weights.is_empty() {
            bail!("found no weight that is multiplied with a value, expected some"; hint: "weights that are compressed already cannot be calibrated");
        }
        let weights = serde_json::to_string(&layout.weights).map_err(|e| Error::new(e.to_string()))?;
        let mut header = Map::new();
        header.insert("__metadata__".into(), json!({ FORMAT.0: FORMAT.1, WEIGHTS: weights }));
        let mut at = 0;
        for (group, size) in layout.sizes.iter().enumerate() {
            let mut tensor = |name: &str, dtype: &str, count: usize, bytes: usize| {
                let entry = json!({ "dtype": dtype, "shape": [count], "data_offsets": [at, at + bytes] });
                header.insert(format!("{group}.{name}"), entry);
                at += bytes;
            };
            tensor("count", "U64", 1, size_of::<u64>());
            let sums = Moments::triangle(*size);
            tensor("sums", "F32", sums, sums * size_of::<f32>());
        }
        let mut header = Value::Object(header).to_string();
        // Data begin at a multiple of eight bytes.
        header += &" ".repeat(header.len().next_multiple_of(8) - header.len());
        let mut writer =
            Writer { out: BufWriter::new(File::create(path).map_err(|e| refused(path, &e))?), path: path.to_owned() };
        writer.write(&(header.len() as u64).to_le_bytes())?;
        writer.write(header.as_bytes())?;
        Ok(writer)
    }

    /// Writes the next group.
    pub fn append(&mut self, moments: &Moments) -> Result<()> {
        self.write(&moments.count().to_le_bytes())?;
        self.write(bytemuck::cast_slice(moments.sums()))
    }

    /// The file is whole.
    pub fn finish(mut self) -> Result<()> {
        self.out.flush().map_err(|e| refused(&self.path, &e))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(|e| refused(&self.path, &e))
    }
}

fn refused(path: &Path, error: &std::io::Error) -> Error {
    Error::new(format!("cannot be written: {error}")).at(path.display())
}
