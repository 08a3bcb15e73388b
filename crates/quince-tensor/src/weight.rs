//! A weight: a tensor that is computed when asked for, whole or some rows at a time.

use crate::tensor::count;
use crate::{DType, Result, Tensor, bail};
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// How to get the bytes of a weight.
pub trait WeightSource: Send + Sync {
    /// The whole tensor.
    fn load(&self) -> Result<Tensor>;

    /// Some rows along the first axis. Sources that can compute them alone should, so that huge weights stream.
    fn rows(&self, rows: Range<usize>) -> Result<Tensor> {
        self.load()?.rows(rows)
    }

    /// Whether [`WeightSource::rows`] computes only the rows asked for, so that going through them does no work twice.
    fn streams(&self) -> bool {
        false
    }
}

/// The bytes that [`Weight::pieces`] gives at a time, about.
const PIECE: usize = 8 << 20;

/// A named tensor of known type and shape whose bytes live only while asked for. Cloning shares the source;
/// [`Weight::id`] tells whether two weights share it.
#[derive(Clone)]
pub struct Weight {
    name: Arc<str>,
    dtype: DType,
    shape: Arc<[usize]>,
    source: Arc<dyn WeightSource>,
    id: usize,
}

impl Weight {
    /// A weight of which `source` gives the bytes; what it gives is checked against type and shape.
    pub fn new(name: &str, dtype: DType, shape: &[usize], source: Arc<dyn WeightSource>) -> Weight {
        // Numbers, not addresses: an address may come again when a weight is gone.
        static IDS: AtomicUsize = AtomicUsize::new(0);
        Weight { name: name.into(), dtype, shape: shape.into(), source, id: IDS.fetch_add(1, Ordering::Relaxed) }
    }

    /// A weight whose tensor exists already, for instance in a mapped file.
    pub fn from_tensor(name: &str, tensor: Tensor) -> Weight {
        let (dtype, shape) = (tensor.dtype(), tensor.shape().to_vec());
        Weight::new(name, dtype, &shape, Arc::new(Resident(tensor)))
    }

    /// The name in the checkpoint, or in the package it was read from.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same weight under another name.
    #[must_use]
    pub fn renamed(&self, name: &str) -> Weight {
        Weight { name: name.into(), ..self.clone() }
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The size along each axis.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        // A shape that overflows is refused when the weight is asked for; until then it is as large as can be said.
        count(&self.shape).unwrap_or(usize::MAX)
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number of bytes once loaded.
    pub fn byte_len(&self) -> usize {
        self.dtype.byte_len(self.len()).unwrap_or(usize::MAX)
    }

    /// Equal for a weight and its clones, which are sure to have equal bytes; never equal for others, even when the
    /// weight is gone.
    pub fn id(&self) -> usize {
        self.id
    }

    /// The whole tensor.
    pub fn load(&self) -> Result<Tensor> {
        let tensor = self.source.load().map_err(|e| e.at(format!("weight `{}`", self.name)))?;
        self.checked(tensor, &self.shape)
    }

    /// Rows along the first axis.
    pub fn rows(&self, rows: Range<usize>) -> Result<Tensor> {
        let shape = self.shape_of(&rows)?;
        let tensor = self.source.rows(rows).map_err(|e| e.at(format!("weight `{}`", self.name)))?;
        self.checked(tensor, &shape)
    }

    /// Whether rows are computed alone ([`WeightSource::streams`]).
    pub fn streams(&self) -> bool {
        self.source.streams()
    }

    /// Gives the tensor to `f` piece by piece, some rows at a time, where the source can compute rows alone; else whole.
    /// One after the other, the bytes of the pieces are those of the tensor.
    pub fn pieces(&self, mut f: impl FnMut(&Tensor) -> Result<()>) -> Result<()> {
        let total = self.shape.first().copied().unwrap_or(0);
        if total == 0 || self.dtype.is_sub_byte() || !self.streams() {
            return f(&self.load()?);
        }
        let rows = (PIECE / (self.byte_len() / total).max(1)).max(1);
        (0..total).step_by(rows).try_for_each(|first| f(&self.rows(first..total.min(first + rows))?))
    }

    /// The shape of some rows, which must be there.
    fn shape_of(&self, rows: &Range<usize>) -> Result<Vec<usize>> {
        let mut shape = self.shape.to_vec();
        match shape.first_mut() {
            Some(total) if rows.start <= rows.end && rows.end <= *total => *total = rows.len(),
            _ => bail!("weight `{}` of shape {:?} has no rows {rows:?}", self.name, self.shape),
        }
        Ok(shape)
    }

    fn checked(&self, tensor: Tensor, shape: &[usize]) -> Result<Tensor> {
        if tensor.dtype() != self.dtype || tensor.shape() != shape {
            bail!("weight `{}`: found {tensor:?}, expected {}{shape:?}", self.name, self.dtype);
        }
        Ok(tensor)
    }

    /// The weight with another element type, converted row by row when asked for.
    #[must_use]
    pub fn cast(&self, dtype: DType) -> Weight {
        if dtype == self.dtype {
            return self.clone();
        }
        let source = Cast { weight: self.clone(), dtype };
        Weight::new(&self.name, dtype, &self.shape, Arc::new(source))
    }

    /// Some rows along the first axis as a weight, under the same name.
    ///
    /// # Errors
    /// When they are not within it.
    pub fn slice(&self, rows: Range<usize>) -> Result<Weight> {
        let shape = self.shape_of(&rows)?;
        let source = Slice { weight: self.clone(), start: rows.start, count: rows.len() };
        Ok(Weight::new(&self.name, self.dtype, &shape, Arc::new(source)))
    }

    /// The same elements under another shape.
    pub fn reshape(&self, shape: &[usize]) -> Result<Weight> {
        if count(shape) != count(&self.shape) {
            bail!("weight `{}`: shape {:?} cannot become {shape:?}", self.name, self.shape);
        }
        let source = Reshaped { weight: self.clone(), shape: shape.into() };
        Ok(Weight::new(&self.name, self.dtype, shape, Arc::new(source)))
    }
}

impl fmt::Debug for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}{:?}", self.name, self.dtype, self.shape)
    }
}

struct Resident(Tensor);

impl WeightSource for Resident {
    fn load(&self) -> Result<Tensor> {
        Tensor::new(self.0.dtype(), self.0.shape(), self.0.bytes().lent())
    }
    fn rows(&self, rows: Range<usize>) -> Result<Tensor> {
        let rows = self.0.rows(rows)?;
        Tensor::new(rows.dtype(), rows.shape(), rows.bytes().lent())
    }
    fn streams(&self) -> bool {
        true
    }
}

struct Cast {
    weight: Weight,
    dtype: DType,
}

impl WeightSource for Cast {
    fn load(&self) -> Result<Tensor> {
        self.weight.load()?.cast(self.dtype)
    }
    fn rows(&self, rows: Range<usize>) -> Result<Tensor> {
        self.weight.rows(rows)?.cast(self.dtype)
    }
    fn streams(&self) -> bool {
        self.weight.streams()
    }
}

struct Slice {
    weight: Weight,
    start: usize,
    count: usize,
}

impl WeightSource for Slice {
    fn load(&self) -> Result<Tensor> {
        self.rows(0..self.count)
    }
    fn rows(&self, rows: Range<usize>) -> Result<Tensor> {
        self.weight.rows(self.start + rows.start..self.start + rows.end)
    }
    fn streams(&self) -> bool {
        self.weight.streams()
    }
}

struct Reshaped {
    weight: Weight,
    shape: Box<[usize]>,
}

impl WeightSource for Reshaped {
    fn load(&self) -> Result<Tensor> {
        self.weight.load()?.reshape(&*self.shape)
    }
    fn rows(&self, rows: Range<usize>) -> Result<Tensor> {
        if self.keeps_rows() {
            let shape: Vec<usize> = std::iter::once(rows.len()).chain(self.shape[1..].iter().copied()).collect();
            return self.weight.rows(rows)?.reshape(shape);
        }
        self.load()?.rows(rows)
    }
    fn streams(&self) -> bool {
        self.keeps_rows() && self.weight.streams()
    }
}

impl Reshaped {
    /// Whether rows stay rows, as when axes of size one are put in or taken out after the first.
    fn keeps_rows(&self) -> bool {
        self.shape.first() == self.weight.shape().first()
    }
}

/// Computes several tensors at once, such as the indices and the lookup table of a palettized weight.
type Compute = dyn Fn() -> Result<Vec<Tensor>> + Send + Sync;

struct Shared {
    compute: Box<Compute>,
    /// What was computed and not yet asked for.
    waiting: Mutex<Vec<Option<Tensor>>>,
}

struct Part {
    shared: Arc<Shared>,
    index: usize,
}

/// Weights that are computed together: the first that is asked for computes them all, the others are handed out as
/// they are asked for, and nothing is kept after that. Asking again computes again.
pub fn parts(
    types: Vec<(String, DType, Vec<usize>)>,
    compute: impl Fn() -> Result<Vec<Tensor>> + Send + Sync + 'static,
) -> Vec<Weight> {
    let shared = Arc::new(Shared { compute: Box::new(compute), waiting: Mutex::new(Vec::new()) });
    let part = |(index, (name, dtype, shape)): (usize, (String, DType, Vec<usize>))| {
        Weight::new(&name, dtype, &shape, Arc::new(Part { shared: shared.clone(), index }))
    };
    types.into_iter().enumerate().map(part).collect()
}

impl WeightSource for Part {
    fn load(&self) -> Result<Tensor> {
        let mut waiting = self.shared.waiting.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(tensor) = waiting.get_mut(self.index).and_then(Option::take) {
            return Ok(tensor);
        }
        *waiting = (self.shared.compute)()?.into_iter().map(Some).collect();
        match waiting.get_mut(self.index).and_then(Option::take) {
            Some(tensor) => Ok(tensor),
            None => bail!("part {} was not computed", self.index),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_that_is_not_what_it_says_is_refused() {
        let lie = Weight::new("w", DType::F16, &[2], Arc::new(Resident(Tensor::vector(vec![1f32, 2.0]))));
        assert_eq!(lie.load().unwrap_err().to_string(), "weight `w`: found fp32[2], expected fp16[2]");
        assert!(lie.rows(1..3).is_err());
    }

    #[test]
    fn clones_have_one_id_and_a_weight_that_is_gone_leaves_its_own_to_nobody() {
        let ids: Vec<usize> =
            (0..100).map(|_| Weight::from_tensor("w", Tensor::vector(vec![1f32])).renamed("v").id()).collect();
        assert!(ids.windows(2).all(|pair| pair[0] < pair[1]));
        let weight = Weight::from_tensor("w", Tensor::vector(vec![1f32]));
        assert_eq!(weight.renamed("v").id(), weight.id());
    }

    /// Witness: what the kernel says the process has of the file in memory.
    #[cfg(target_os = "linux")]
    #[test]
    fn going_through_a_mapped_file_leaves_none_of_it_in_memory() {
        let (rows, columns) = (100, 40_000);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![7u8; rows * columns]).unwrap();
        // SAFETY: nothing else knows the file.
        let map = unsafe { memmap2::Mmap::map(file.as_file()) }.unwrap();
        let bytes = crate::Bytes::from_mmap(map);
        let weight = Weight::from_tensor("w", Tensor::new(DType::U8, [rows, columns], bytes.clone()).unwrap());
        let resident_kib = || -> usize {
            let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let ours = maps.split(file.path().to_str().unwrap()).nth(1).unwrap();
            let line = ours.lines().find(|line| line.starts_with("Rss:")).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        let kept = weight.load().unwrap();
        assert!(kept.bytes().is_mapped() && kept.bytes().iter().all(|&byte| byte == 7));
        assert!(resident_kib() > 3500);
        drop(kept);
        for row in 0..rows {
            let row = weight.rows(row..row + 1).unwrap();
            assert!(row.bytes().is_mapped() && row.bytes().iter().all(|&byte| byte == 7));
        }
        assert!(resident_kib() < 200, "{} KiB", resident_kib());
        assert!(bytes.iter().all(|&byte| byte == 7));
    }

    #[test]
    fn rows_are_cast_alone() {
        let weight = Weight::from_tensor("w", Tensor::from_vec([2, 2], vec![1f32, 2.0, 3.0, 4.0]).unwrap());
        let rows = weight.cast(DType::F16).rows(1..2).unwrap();
        assert_eq!((rows.dtype(), rows.to_f32().unwrap()), (DType::F16, vec![3.0, 4.0]));
    }

    #[test]
    fn pieces_are_the_tensor_and_a_source_that_cannot_stream_is_asked_once() {
        // Three pieces and a half of 4000 bytes a row.
        let rows = 7 * PIECE / 2 / 4000;
        let values: Vec<f32> = (0..rows * 1000).map(|i| i as f32).collect();
        let tensor = Tensor::from_vec([rows, 1000], values).unwrap();
        let pieces = |weight: &Weight| {
            let (mut count, mut bytes) = (0, Vec::new());
            weight
                .pieces(|piece| {
                    count += 1;
                    bytes.extend_from_slice(piece.bytes());
                    Ok(())
                })
                .unwrap();
            assert!(bytes == **weight.load().unwrap().bytes());
            count
        };
        let weight = Weight::from_tensor("w", tensor.clone());
        assert_eq!(pieces(&weight), 4);
        assert_eq!(pieces(&weight.cast(DType::F16)), 2);
        assert_eq!(pieces(&weight.reshape(&[rows * 1000]).unwrap()), 1);
        let types = vec![("w".to_owned(), DType::F32, vec![rows, 1000])];
        assert_eq!(pieces(&parts(types, move || Ok(vec![tensor.clone()]))[0]), 1);
    }

    #[test]
    fn parts_are_computed_once_for_each_round() {
        static CALLS: AtomicUsize = AtomicUsize::new(0);
        let types = vec![("a".into(), DType::I32, vec![1]), ("b".into(), DType::I32, vec![1])];
        let weights = parts(types, || {
            CALLS.fetch_add(1, Ordering::Relaxed);
            Ok(vec![Tensor::vector(vec![1i32]), Tensor::vector(vec![2i32])])
        });
        assert_eq!(weights[1].load().unwrap().to_i64().unwrap(), [2]);
        assert_eq!(weights[0].load().unwrap().to_i64().unwrap(), [1]);
        assert_eq!(CALLS.load(Ordering::Relaxed), 1);
        assert_eq!(weights[0].load().unwrap().to_i64().unwrap(), [1]);
        assert_eq!(CALLS.load(Ordering::Relaxed), 2);
        assert_ne!(weights[0].id(), weights[1].id());
    }
}
