//! Lookup tables in the two forms that kernels read: f32, and 15-bit integers split into byte planes.

/// Largest magnitude of an integer table entry; with [`super::quantize::ACTIVATION_MAX`] it bounds a block's sum.
pub(crate) const TABLE_MAX: f32 = 16383.0;

/// The tables of one palettized weight.
#[derive(Clone, Debug)]
pub(crate) struct LutTables {
    values: Vec<f32>,
    planes: Vec<Planes>,
}

/// One table of at most 16 entries as integers: entry `i` is `scale · (low[i] + 256 · high[i])`, `high` signed.
/// A table with fewer entries repeats itself, so that stray upper index bits do no harm.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(32))]
pub(crate) struct Planes {
    pub(crate) low: [u8; 16],
    pub(crate) high: [u8; 16],
    pub(crate) scale: f32,
}

impl LutTables {
    /// `values` are `[groups, 2^nbits]`.
    pub(crate) fn new(values: Vec<f32>, nbits: usize) -> LutTables {
        let planes = if nbits <= 4 { values.chunks_exact(1 << nbits).map(Planes::new).collect() } else { Vec::new() };
        LutTables { values, planes }
    }

    /// All entries, table after table.
    #[inline]
    pub(crate) fn values(&self) -> &[f32] {
        &self.values
    }

    /// The integer form; empty when tables have more than 16 entries.
    #[inline]
    pub(crate) fn planes(&self) -> &[Planes] {
        &self.planes
    }
}

impl Planes {
    fn new(table: &[f32]) -> Planes {
        let largest = table.iter().fold(0.0f32, |max, value| max.max(value.abs()));
        // A table with an infinity or NaN keeps that property in its scale: the result is not finite either.
        let scale = if table.iter().all(|value| value.is_finite()) { largest / TABLE_MAX } else { f32::NAN };
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        let mut planes = Planes { low: [0; 16], high: [0; 16], scale };
        for i in 0..16 {
            let code = (table[i % table.len()] * inverse).round().clamp(-TABLE_MAX, TABLE_MAX) as i16;
            [planes.low[i], planes.high[i]] = code.to_le_bytes();
        }
        planes
    }
}
