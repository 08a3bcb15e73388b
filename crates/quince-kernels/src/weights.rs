//! Weight matrices as a package stores them: bytes borrowed from a mapped file, never expanded.
//!
//! Every matrix is `[rows, cols]` = `[N (out), K (in)]`, row-major, in Core ML's bit order: element `i` of a sub-byte
//! type lies at bit `i · nbits`, least significant bits first.

use half::f16;
use quince_tensor::{Bytes, Error, Result, bail};
use std::ops::Range;
use std::sync::Arc;

use super::gemm::Laid;
use super::lut_tables::LutTables;

/// Little-endian floating-point numbers in bytes of any alignment.
#[derive(Clone, Debug)]
pub enum Floats {
    /// IEEE binary16.
    F16(Bytes),
    /// IEEE binary32.
    F32(Bytes),
}

impl Floats {
    /// How many numbers there are.
    pub fn len(&self) -> usize {
        self.bytes().len() / self.width()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number `index`.
    ///
    /// # Panics
    /// When there is no such number.
    #[inline]
    pub fn get(&self, index: usize) -> f32 {
        match self {
            Floats::F16(bytes) => f16_at(bytes, index),
            Floats::F32(bytes) => f32_at(bytes, index),
        }
    }

    /// All numbers.
    pub fn to_vec(&self) -> Vec<f32> {
        (0..self.len()).map(|index| self.get(index)).collect()
    }

    /// Some of the numbers.
    fn part(&self, range: Range<usize>) -> Option<Floats> {
        let bytes = self.bytes().slice(range.start * self.width()..range.end * self.width())?;
        Some(match self {
            Floats::F16(_) => Floats::F16(bytes),
            Floats::F32(_) => Floats::F32(bytes),
        })
    }

    fn bytes(&self) -> &Bytes {
        match self {
            Floats::F16(bytes) | Floats::F32(bytes) => bytes,
        }
    }

    fn width(&self) -> usize {
        match self {
            Floats::F16(_) => 2,
            Floats::F32(_) => 4,
        }
    }

    fn check(&self, part: &'static str, count: usize) -> Result<()> {
        check_length(part, self.bytes(), count.checked_mul(self.width()))
    }
}

impl From<Vec<f32>> for Floats {
    fn from(values: Vec<f32>) -> Floats {
        Floats::F32(values.into())
    }
}

impl From<Vec<f16>> for Floats {
    fn from(values: Vec<f16>) -> Floats {
        Floats::F16(values.into())
    }
}

/// Along which axis of `[rows, cols]` the groups that have their own lookup table follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupAxis {
    /// Some consecutive rows share a table (Core ML's grouped channel, axis 0); one group is per tensor.
    Rows,
    /// Some consecutive columns share a table (axis 1).
    Cols,
}

/// Element type of linearly quantized data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeType {
    /// One signed byte.
    Int8,
    /// One byte.
    Uint8,
    /// Four bits, two's complement.
    Int4,
    /// Four bits.
    Uint4,
}

impl CodeType {
    /// Width of an element in bits.
    pub fn nbits(self) -> usize {
        match self {
            CodeType::Int8 | CodeType::Uint8 => 8,
            CodeType::Int4 | CodeType::Uint4 => 4,
        }
    }

    /// Element `index` of packed `data`.
    #[inline]
    pub(crate) fn get(self, data: &[u8], index: usize) -> i32 {
        match self {
            CodeType::Int8 => i32::from(data[index] as i8),
            CodeType::Uint8 => i32::from(data[index]),
            CodeType::Uint4 => i32::from(data[index / 2] >> (4 * (index % 2)) & 15),
            CodeType::Int4 => i32::from(((data[index / 2] >> (4 * (index % 2))) << 4) as i8 >> 4),
        }
    }
}

/// Indices of 1, 2, 3, 4, 6 or 8 bits into tables of `2^nbits` values, one table for each group.
#[derive(Clone, Debug)]
pub struct Lut {
    pub(crate) nbits: usize,
    pub(crate) indices: Bytes,
    pub(crate) tables: LutTables,
    pub(crate) axis: GroupAxis,
    /// Rows or columns of one group.
    pub(crate) group: usize,
}

impl Lut {
    /// The number of the table that element (row, col) looks into.
    #[inline]
    pub(crate) fn table_of(&self, row: usize, col: usize) -> usize {
        match self.axis {
            GroupAxis::Rows => row / self.group,
            GroupAxis::Cols => col / self.group,
        }
    }
}

/// `scale · (code − offset)`, one scale (and offset) for each block of `block[0]` rows and `block[1]` columns.
#[derive(Clone, Debug)]
pub struct Affine {
    pub(crate) codes: CodeType,
    pub(crate) data: Bytes,
    pub(crate) scale: Floats,
    pub(crate) offset: Option<Bytes>,
    pub(crate) block: [usize; 2],
    pub(crate) blocks_per_row: usize,
}

impl Affine {
    /// The number of the scale of element (row, col).
    #[inline]
    pub(crate) fn block_of(&self, row: usize, col: usize) -> usize {
        row / self.block[0] * self.blocks_per_row + col / self.block[1]
    }

    /// The offset of block `index`, 0 when there are no offsets.
    #[inline]
    pub(crate) fn offset_at(&self, index: usize) -> i32 {
        self.offset.as_ref().map_or(0, |offset| self.codes.get(offset, index))
    }
}

/// How the elements of a [`PackedWeight`] are stored.
#[derive(Clone, Debug)]
pub enum Encoding {
    /// As numbers.
    Dense(Floats),
    /// As indices into lookup tables (palettized).
    Lut(Lut),
    /// As integers with scales (linearly quantized).
    Affine(Affine),
}

/// A weight matrix `[rows, cols]` in the form in which it lies in its file. Cloning shares the bytes.
#[derive(Clone, Debug)]
pub struct PackedWeight {
    rows: usize,
    cols: usize,
    encoding: Encoding,
    /// The same as panels.
    laid: Option<Arc<Laid>>,
}

impl PackedWeight {
    /// A matrix of plain numbers.
    ///
    /// # Errors
    /// When `values` are not `rows · cols`.
    pub fn dense(rows: usize, cols: usize, values: Floats) -> Result<PackedWeight> {
        values.check("weight", elements(rows, cols)?)?;
        Ok(PackedWeight { rows, cols, encoding: Encoding::Dense(values), laid: None })
    }

    /// A palettized matrix: `indices` are packed `[rows, cols]`, `tables` are `[groups, 2^nbits]`, and the groups
    /// divide the rows or the columns evenly.
    ///
    /// # Errors
    /// When `nbits` is none of 1, 2, 3, 4, 6, 8, a length does not fit, or the groups do not divide their axis.
    pub fn lut(
        rows: usize,
        cols: usize,
        nbits: usize,
        indices: Bytes,
        tables: &Floats,
        axis: GroupAxis,
    ) -> Result<PackedWeight> {
        if ![1, 2, 3, 4, 6, 8].contains(&nbits) {
            bail!("lookup tables: found indices of {nbits} bits, expected 1, 2, 3, 4, 6 or 8");
        }
        let bits = elements(rows, cols)?.checked_mul(nbits);
        check_length("packed indices", &indices, bits.map(|bits| bits.div_ceil(8)))?;
        let entries = 1 << nbits;
        let groups = tables.len() / entries;
        tables.check("lookup tables", groups.max(1) * entries)?;
        let length = if axis == GroupAxis::Rows { rows } else { cols };
        if !length.is_multiple_of(groups) {
            bail!("lookup tables: found {groups}, expected a divisor of {length}");
        }
        let tables = LutTables::new(tables.to_vec(), nbits);
        let lut = Lut { nbits, indices, tables, axis, group: (length / groups).max(1) };
        Ok(PackedWeight { rows, cols, encoding: Encoding::Lut(lut), laid: None })
    }

    /// A linearly quantized matrix: `data` are packed `[rows, cols]`, `scale` and `offset` are `grid` = [row blocks,
    /// column blocks]; an element is `scale · (code − offset)`. `[1, 1]` is per tensor, `[rows, 1]` per channel.
    ///
    /// # Errors
    /// When a length does not fit or the grid does not divide the matrix.
    pub fn affine(
        rows: usize,
        cols: usize,
        codes: CodeType,
        data: Bytes,
        scale: Floats,
        offset: Option<Bytes>,
        grid: [usize; 2],
    ) -> Result<PackedWeight> {
        let bits = elements(rows, cols)?.checked_mul(codes.nbits());
        check_length("quantized data", &data, bits.map(|bits| bits.div_ceil(8)))?;
        for (what, blocks, length) in [("row blocks", grid[0], rows), ("column blocks", grid[1], cols)] {
            if blocks == 0 || !length.is_multiple_of(blocks) {
                bail!("{what} of a scale: found {blocks}, expected a divisor of {length}");
            }
        }
        let scales = elements(grid[0], grid[1])?;
        scale.check("scale", scales)?;
        if let Some(offset) = &offset {
            let bits = scales.checked_mul(codes.nbits());
            check_length("offset", offset, bits.map(|bits| bits.div_ceil(8)))?;
        }
        let block = [(rows / grid[0]).max(1), (cols / grid[1]).max(1)];
        let affine = Affine { codes, data, scale, offset, block, blocks_per_row: grid[1] };
        Ok(PackedWeight { rows, cols, encoding: Encoding::Affine(affine), laid: None })
    }

    /// Some rows as a matrix of their own, which shares the bytes. `None` where they do not begin with a byte, or are not
    /// whole blocks or groups and not within one.
    pub fn part(&self, rows: Range<usize>) -> Option<PackedWeight> {
        let count = rows.len();
        (rows.start <= rows.end && rows.end <= self.rows).then_some(())?;
        let (first, len) = (rows.start.checked_mul(self.cols)?, count.checked_mul(self.cols)?);
        // What is told for each group of so many rows: for which groups, if they are whole.
        let groups = |size: usize| match rows.start.is_multiple_of(size) && count.is_multiple_of(size) {
            true => Some(rows.start / size..rows.end / size),
            false => {
                (rows.start / size + 1 == rows.end.div_ceil(size)).then_some(rows.start / size..rows.end.div_ceil(size))
            }
        };
        let encoding = match &self.encoding {
            Encoding::Dense(values) => Encoding::Dense(values.part(first..first + len)?),
            Encoding::Lut(lut) => {
                let (tables, group) = match lut.axis {
                    GroupAxis::Cols => (lut.tables.clone(), lut.group),
                    GroupAxis::Rows => {
                        let tables = groups(lut.group)?;
                        let values = lut.tables.values().get(tables.start << lut.nbits..tables.end << lut.nbits)?;
                        (LutTables::new(values.to_vec(), lut.nbits), lut.group.min(count.max(1)))
                    }
                };
                let indices = bits(&lut.indices, first..first + len, lut.nbits)?;
                Encoding::Lut(Lut { nbits: lut.nbits, indices, tables, axis: lut.axis, group })
            }
            Encoding::Affine(affine) => {
                let blocks = groups(affine.block[0])?;
                let scales = blocks.start * affine.blocks_per_row..blocks.end * affine.blocks_per_row;
                let nbits = affine.codes.nbits();
                let offset = match &affine.offset {
                    Some(offset) => Some(bits(offset, scales.clone(), nbits)?),
                    None => None,
                };
                Encoding::Affine(Affine {
                    codes: affine.codes,
                    data: bits(&affine.data, first..first + len, nbits)?,
                    scale: affine.scale.part(scales)?,
                    offset,
                    block: [affine.block[0].min(count.max(1)), affine.block[1]],
                    blocks_per_row: affine.blocks_per_row,
                })
            }
        };
        Some(PackedWeight { rows: count, cols: self.cols, encoding, laid: None })
    }

    /// The same matrix with the bytes of its elements (not its tables and scales) somewhere else.
    #[must_use]
    pub fn with_data(mut self, move_to: impl Fn(&Bytes) -> Bytes) -> PackedWeight {
        let data = match &mut self.encoding {
            Encoding::Dense(Floats::F16(bytes) | Floats::F32(bytes)) => bytes,
            Encoding::Lut(lut) => &mut lut.indices,
            Encoding::Affine(affine) => &mut affine.data,
        };
        *data = move_to(data);
        self
    }

    /// The same weight with panels of its numbers.
    pub(crate) fn with_laid(&self, laid: Arc<Laid>) -> PackedWeight {
        PackedWeight { laid: Some(laid), ..self.clone() }
    }

    /// The panels, if there are any.
    pub(crate) fn laid(&self) -> Option<&Laid> {
        self.laid.as_deref()
    }

    /// The bytes of the elements, row after row, and how many bits one has.
    pub fn data(&self) -> (&Bytes, usize) {
        match &self.encoding {
            Encoding::Dense(values) => (values.bytes(), 8 * values.width()),
            Encoding::Lut(lut) => (&lut.indices, lut.nbits),
            Encoding::Affine(affine) => (&affine.data, affine.codes.nbits()),
        }
    }

    /// Number of rows: N, the output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns: K, the input features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// How the elements are stored.
    pub fn encoding(&self) -> &Encoding {
        &self.encoding
    }

    /// The bytes that a pass over the whole matrix reads.
    pub fn byte_len(&self) -> usize {
        match &self.encoding {
            Encoding::Dense(values) => values.bytes().len(),
            Encoding::Lut(lut) => lut.indices.len() + lut.tables.values().len() * 2,
            Encoding::Affine(affine) => {
                affine.data.len() + affine.scale.bytes().len() + affine.offset.as_ref().map_or(0, |offset| offset.len())
            }
        }
    }

    /// Element (row, col): the meaning of the packed form, which every fast kernel is tested against.
    ///
    /// # Panics
    /// When the element is outside the matrix.
    pub fn get(&self, row: usize, col: usize) -> f32 {
        assert!(row < self.rows && col < self.cols, "element ({row}, {col}) of [{}, {}]", self.rows, self.cols);
        let index = row * self.cols + col;
        match &self.encoding {
            Encoding::Dense(values) => values.get(index),
            Encoding::Lut(lut) => {
                let entry = bits_at(&lut.indices, index, lut.nbits);
                lut.tables.values()[(lut.table_of(row, col) << lut.nbits) + entry]
            }
            Encoding::Affine(affine) => {
                let block = affine.block_of(row, col);
                let code = affine.codes.get(&affine.data, index);
                affine.scale.get(block) * (code - affine.offset_at(block)) as f32
            }
        }
    }
}

/// Some elements of packed integers, if they begin with a byte.
fn bits(data: &Bytes, elements: Range<usize>, nbits: usize) -> Option<Bytes> {
    let (start, end) = (elements.start.checked_mul(nbits)?, elements.end.checked_mul(nbits)?);
    start.is_multiple_of(8).then(|| data.slice(start / 8..end.div_ceil(8)))?
}

/// Element `index` of packed unsigned integers of `nbits` ≤ 8.
#[inline]
pub(crate) fn bits_at(data: &[u8], index: usize, nbits: usize) -> usize {
    let bit = index * nbits;
    let low = usize::from(data[bit / 8]);
    let high = data.get(bit / 8 + 1).map_or(0, |&byte| usize::from(byte));
    (low | high << 8) >> (bit % 8) & ((1 << nbits) - 1)
}

#[inline]
pub(crate) fn f16_at(data: &[u8], index: usize) -> f32 {
    f16::from_le_bytes([data[2 * index], data[2 * index + 1]]).to_f32()
}

#[inline]
pub(crate) fn f32_at(data: &[u8], index: usize) -> f32 {
    let at = 4 * index;
    f32::from_le_bytes([data[at], data[at + 1], data[at + 2], data[at + 3]])
}

fn elements(rows: usize, cols: usize) -> Result<usize> {
    rows.checked_mul(cols)
        .ok_or_else(|| Error::new(format!("{rows} rows of {cols} columns are more than memory can address")))
}

fn check_length(part: &'static str, bytes: &Bytes, expected: Option<usize>) -> Result<()> {
    let found = bytes.len();
    if Some(found) == expected {
        return Ok(());
    }
    match expected {
        Some(expected) => bail!("{part}: found {found} bytes, expected {expected}"),
        None => bail!("{part}: found {found} bytes, expected more than memory can address"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Random, weight_kinds};

    #[test]
    fn elements_follow_core_mls_bit_order() {
        // Three-bit indices 1, 2, 3, 4, 5, 6 straddle bytes: 0b001 | 0b010 << 3 | 0b011 << 6 | ...
        let packed = (0..6u32).fold(0u32, |bits, i| bits | (i + 1) << (3 * i));
        let indices = packed.to_le_bytes()[..3].to_vec();
        let tables: Vec<f32> = (0..16).map(|i| i as f32).collect();
        let lut = PackedWeight::lut(2, 3, 3, indices.into(), &tables.into(), GroupAxis::Rows).unwrap();
        let values: Vec<f32> = (0..6).map(|i| lut.get(i / 3, i % 3)).collect();
        assert_eq!(values, [1.0, 2.0, 3.0, 12.0, 13.0, 14.0]);

        let scale = Floats::from(vec![2.0f32, 0.5]);
        let data = vec![0x8fu8, 0x71];
        let affine = PackedWeight::affine(2, 2, CodeType::Int4, data.into(), scale, Some(vec![0x10u8].into()), [2, 1]);
        let affine = affine.unwrap();
        let values: Vec<f32> = (0..4).map(|i| affine.get(i / 2, i % 2)).collect();
        assert_eq!(values, [-2.0, -16.0, 0.0, 3.0]);
    }

    #[test]
    fn parts_have_the_elements_of_the_whole() {
        let (rows, cols) = (96, 12);
        let mut taken = 0;
        for (kind, whole) in weight_kinds(&mut Random::new(7), rows, cols) {
            for range in [0..rows, 0..32, 64..96, 40..48, 17..18, 5..5] {
                // Rows of 12 elements begin with a byte where their number is even, whatever the width.
                let Some(part) = whole.part(range.clone()) else {
                    assert!(range.start % 2 == 1 || range.len() % 16 != 0, "{kind}: {range:?}");
                    continue;
                };
                taken += 1;
                assert_eq!((part.rows(), part.cols()), (range.len(), cols));
                for (row, col) in range.clone().flat_map(|row| (0..cols).map(move |col| (row, col))) {
                    let found = part.get(row - range.start, col);
                    assert_eq!(found.to_bits(), whole.get(row, col).to_bits(), "{kind}: {range:?} ({row}, {col})");
                }
            }
            assert!(whole.part(90..97).is_none());
        }
        assert!(taken > 200, "{taken}");
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        let tables = Floats::from(vec![0.0f32; 16]);
        let lut = |len: usize, nbits, tables: &Floats| {
            PackedWeight::lut(4, 4, nbits, vec![0u8; len].into(), tables, GroupAxis::Rows).map(|_| ()).unwrap_err()
        };
        assert_eq!(lut(7, 4, &tables).to_string(), "packed indices: found 7 bytes, expected 8");
        assert_eq!(
            lut(10, 5, &tables).to_string(),
            "lookup tables: found indices of 5 bits, expected 1, 2, 3, 4, 6 or 8"
        );
        let three = Floats::from(vec![0.0f32; 48]);
        assert_eq!(lut(8, 4, &three).to_string(), "lookup tables: found 3, expected a divisor of 4");
        assert!(PackedWeight::dense(usize::MAX, 2, tables).is_err());
    }
}
