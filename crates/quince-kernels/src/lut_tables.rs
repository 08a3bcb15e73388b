//! Lookup tables in the two forms that kernels read: f32, and 15-bit integers split into byte planes.

/// Largest magnitude of an integer table entry; with the largest activation it bounds the sum of a block.
const TABLE_MAX: f32 = 16383.0;

/// The tables of one palettized weight.
#[derive(Clone, Debug)]
pub(crate) struct LutTables {
    values: Vec<f32>,
    planes: Vec<Planes>,
    scales: Vec<f32>,
    pieces: usize,
}

/// Sixteen entries of a table as integers: entry `i` is `scale · (low[i] + 256 · high[i])`, `high` signed.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(32))]
pub(crate) struct Planes {
    pub(crate) low: [u8; 16],
    pub(crate) high: [u8; 16],
}

impl LutTables {
    /// `values` are `[groups, 2^nbits]`.
    pub(crate) fn new(values: Vec<f32>, nbits: usize) -> LutTables {
        let pieces = (1usize << nbits).div_ceil(16);
        let (mut planes, mut scales) = (Vec::new(), Vec::new());
        for table in values.chunks_exact(1 << nbits) {
            let largest = table.iter().fold(0.0f32, |max, value| max.max(value.abs()));
            // A table with an infinity or NaN keeps that property in its scale: the result is not finite either.
            let scale = if table.iter().all(|value| value.is_finite()) { largest / TABLE_MAX } else { f32::NAN };
            let inverse = if scale > 1e-34 { 1.0 / scale } else { 0.0 };
            scales.push(scale);
            planes.extend((0..pieces).map(|piece| Planes::new(table, 16 * piece, inverse)));
        }
        LutTables { values, planes, scales, pieces }
    }

    /// All entries, table after table.
    #[inline]
    pub(crate) fn values(&self) -> &[f32] {
        &self.values
    }

    /// Table `index` as integers, sixteen entries each, and its scale. A table with fewer entries repeats itself, so
    /// that stray upper index bits do no harm.
    #[inline]
    pub(crate) fn integers(&self, index: usize) -> (&[Planes], f32) {
        (&self.planes[index * self.pieces..(index + 1) * self.pieces], self.scales[index])
    }
}

impl Planes {
    fn new(table: &[f32], first: usize, inverse: f32) -> Planes {
        let mut planes = Planes { low: [0; 16], high: [0; 16] };
        for i in 0..16 {
            let value = table[(first + i) % table.len()] * inverse;
            let code = value.round().clamp(-TABLE_MAX, TABLE_MAX) as i16;
            [planes.low[i], planes.high[i]] = code.to_le_bytes();
        }
        planes
    }
}
