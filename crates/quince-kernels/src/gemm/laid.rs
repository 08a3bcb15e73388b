//! Panels of a weight that are laid out once, and not in every product.

use std::num::NonZero;
use std::sync::Arc;
use std::thread;

use super::super::Isa;
use super::super::simd::{Simd, for_isa};
use super::super::weights::{Encoding, Floats, PackedWeight};
use super::{Right, pack_panel, tile_cols};
use quince_tensor::Result;

/// The panels of a weight `[N, K]`: for each [`Laid::width`] of its rows, for each k, one element of every row, zeros for
/// missing ones.
#[derive(Debug)]
pub(crate) struct Laid {
    /// Rows of a panel: columns of the product.
    pub(super) width: usize,
    numbers: Vec<f32>,
}

impl Laid {
    /// The panel of the rows from `first`, a multiple of the width, from term `first_k` of `k` on.
    #[inline(always)]
    pub(super) fn panel(&self, first: usize, first_k: usize, k: usize) -> &[f32] {
        &self.numbers[first * k + first_k * self.width..]
    }
}

impl PackedWeight {
    /// Bytes that its panels take: many times its own where it has few rows.
    pub fn laid_len(&self) -> usize {
        let rows = self.rows().next_multiple_of(tile_cols(Isa::detect()));
        rows.saturating_mul(self.cols()).saturating_mul(size_of::<f32>())
    }

    /// The weight with panels beside it, if it is a matrix of plain float32 numbers.
    ///
    /// # Errors
    /// When there is no memory for the panels.
    pub fn laid_out(&self) -> Result<Option<PackedWeight>> {
        let (rows, k) = (self.rows(), self.cols());
        if k == 0 || !matches!(self.encoding(), Encoding::Dense(Floats::F32(_))) {
            return Ok(None);
        }
        let isa = Isa::detect();
        let width = tile_cols(isa);
        let mut numbers: Vec<f32> = quince_tensor::zeroed(rows.next_multiple_of(width) * k)?;
        let threads = thread::available_parallelism().map_or(1, NonZero::get);
        let part = rows.div_ceil(threads).next_multiple_of(width).max(width);
        thread::scope(|scope| {
            for (first, panels) in (0..rows).step_by(part).zip(numbers.chunks_mut(part * k)) {
                scope.spawn(move || {
                    for (first, panel) in (first..rows).step_by(width).zip(panels.chunks_exact_mut(width * k)) {
                        for_isa!(isa, lay(weight: &PackedWeight = self, first: usize = first, panel: &mut [f32] = panel));
                    }
                });
            }
        });
        Ok(Some(self.with_laid(Arc::new(Laid { width, numbers }))))
    }
}

/// Lays the panel of the rows from `first` out.
#[inline(always)]
unsafe fn lay<S: Simd>(weight: &PackedWeight, first: usize, panel: &mut [f32]) {
    let (width, k) = (2 * S::LANES, weight.cols());
    let cols = width.min(weight.rows() - first);
    let mut rows = vec![0.0; width * super::DEPTH];
    for first_k in (0..k).step_by(super::DEPTH) {
        let depth = super::DEPTH.min(k - first_k);
        let panel = &mut panel[first_k * width..][..depth * width];
        // SAFETY: the caller vouches for the instructions of `S`.
        unsafe { pack_panel::<S>(Right::Weight(weight), first, cols, first_k, depth, &mut rows, panel) };
    }
}
