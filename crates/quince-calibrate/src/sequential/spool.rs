//! Weights that are computed once and then lie in a file without a name.

use quince_tensor::{Error, Result, Tensor, Weight, WeightSource};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};

/// The file.
pub(super) struct Spool {
    file: Mutex<File>,
}

impl Spool {
    /// An empty file in a directory; it is gone when nobody has it open.
    pub fn create(directory: &Path) -> Result<Arc<Spool>> {
        let file = tempfile::tempfile_in(directory).map_err(|e| refused("be made", &e).at(directory.display()))?;
        Ok(Arc::new(Spool { file: Mutex::new(file) }))
    }

    /// The same weight, computed when it is first asked for and read from the file from then on.
    pub fn keep(self: &Arc<Spool>, weight: &Weight) -> Weight {
        let kept = Kept { weight: weight.clone(), spool: self.clone(), at: OnceLock::new() };
        Weight::new(weight.name(), weight.dtype(), weight.shape(), Arc::new(kept))
    }

    fn append(&self, bytes: &[u8]) -> std::io::Result<u64> {
        let mut file = self.file.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let at = file.seek(SeekFrom::End(0))?;
        file.write_all(bytes)?;
        Ok(at)
    }

    fn read(&self, at: u64, length: usize) -> std::io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        let mut file = self.file.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

/// A weight, and where it is in the file once it was computed.
struct Kept {
    weight: Weight,
    spool: Arc<Spool>,
    at: OnceLock<u64>,
}

impl WeightSource for Kept {
    fn load(&self) -> Result<Tensor> {
        let Some(&at) = self.at.get() else {
            let tensor = self.weight.load()?;
            let at = self.spool.append(tensor.bytes()).map_err(|e| refused("be written", &e))?;
            // Whoever was first has the same bytes.
            self.at.get_or_init(|| at);
            return Ok(tensor);
        };
        let bytes = self.spool.read(at, self.weight.byte_len()).map_err(|e| refused("be read", &e))?;
        Tensor::new(self.weight.dtype(), self.weight.shape(), bytes.into())
    }
}

fn refused(what: &str, error: &std::io::Error) -> Error {
    Error::new(format!("the file for compressed weights cannot {what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use quince_tensor::DType;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Says how often it was asked.
    struct Counting(AtomicUsize);

    impl WeightSource for Counting {
        fn load(&self) -> Result<Tensor> {
            let times = self.0.fetch_add(1, Ordering::Relaxed);
            Tensor::from_codes(DType::U4, [3, 2], &[1, 2, 3, 4, 5, times as u8])
        }
    }

    #[test]
    fn weights_are_computed_once() {
        let directory = tempfile::tempdir().unwrap();
        let spool = Spool::create(directory.path()).unwrap();
        let counting = |name| Weight::new(name, DType::U4, &[3, 2], Arc::new(Counting(AtomicUsize::new(7))));
        let kept = [counting("a"), counting("b")].map(|weight| spool.keep(&weight));
        let all = || kept.each_ref().map(|weight| weight.load().unwrap().to_i64().unwrap());
        let first = all();
        assert_eq!(first[0], [1, 2, 3, 4, 5, 7]);
        assert_eq!((all(), all()), (first.clone(), first));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        assert!(Spool::create(&directory.path().join("nowhere")).is_err());
    }
}
