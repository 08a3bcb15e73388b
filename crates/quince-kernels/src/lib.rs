//! Compute kernels: pure functions on slices, which know nothing of programs.
//!
//! [`Kernels`] carries what every kernel needs: the instruction set and the threads. Results never depend on the
//! number of threads; between instruction sets they differ by rounding, within the bounds that each function states.

mod attention;
mod convert;
mod dequantize;
mod gemm;
#[cfg(target_arch = "x86_64")]
mod gemm_x86;
mod gemv;
#[cfg(target_arch = "x86_64")]
mod gemv_avx512;
#[cfg(target_arch = "x86_64")]
mod gemv_x86;
mod isa;
mod lanes;
mod limits;
mod linear;
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only x86-64 has integer kernels"))]
mod lut_tables;
mod matmul;
mod narrow;
mod norm;
mod pointwise;
mod pool;
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only x86-64 has integer kernels"))]
mod quantize;
mod rope;
mod scratch;
mod simd;
mod weights;

pub use attention::{Added, Attention, Cache, Heads, HeadsMut, Mask, Strides, attention};
pub use convert::{f16_to_f32, f32_to_f16};
pub use dequantize::dequantize_row;
pub use gemv::FEW_ROWS;
pub use isa::Isa;
pub use lanes::{LANES, PanelSizes, Strided, multiply_panels, nearest};
pub use limits::{ArithmeticPeak, Limits, limits};
pub use linear::{Accuracy, Linear, linear, linear_many};
pub use matmul::{Rhs, matmul};
pub use norm::{layer_norm, rms_norm, softmax, sum_rows};
pub use pointwise::{Binary, Unary, binary, silu_mul, unary};
pub use pool::Pool;
pub use rope::{RopeStyle, Rotary, rope};
pub use weights::{Affine, CodeType, Encoding, Floats, GroupAxis, Lut, PackedWeight};

/// The instruction set and the threads that kernels run with.
pub struct Kernels {
    /// The instruction set.
    pub isa: Isa,
    /// The threads.
    pub pool: Pool,
}

impl Kernels {
    /// Kernels for this machine (see [`Isa::detect`]) on `threads` threads.
    pub fn new(threads: usize) -> Kernels {
        Kernels { isa: Isa::detect(), pool: Pool::new(threads) }
    }

    /// Kernels for a given instruction set; the portable one when the machine does not have it.
    pub fn with_isa(isa: Isa, threads: usize) -> Kernels {
        let isa = if Isa::available().contains(&isa) { isa } else { Isa::Portable };
        Kernels { isa, pool: Pool::new(threads) }
    }

    /// Calls `f(first row, rows)` for runs of whole rows of `data`, in parallel when there is enough to do.
    pub fn for_rows<T: Send>(&self, data: &mut [T], row_len: usize, f: impl Fn(usize, &mut [T]) + Sync) {
        /// Elements that one task should have at least: some microseconds of work.
        const GRAIN: usize = 8192;
        if row_len == 0 || data.is_empty() {
            return;
        }
        let rows = data.len() / row_len;
        let per_task = (GRAIN.div_ceil(row_len)).max(rows.div_ceil(4 * self.pool.threads())).max(1);
        let shared = SharedMut::new(data);
        self.pool.run(rows.div_ceil(per_task), |task| {
            let first = task * per_task;
            let count = per_task.min(rows - first);
            // SAFETY: the tasks' rows do not overlap.
            f(first, unsafe { shared.slice(first * row_len, count * row_len) });
        });
    }
}

/// A mutable slice that tasks write disjoint parts of.
pub(crate) struct SharedMut<T> {
    start: *mut T,
    len: usize,
}

// SAFETY: `slice` hands out parts of a `&mut [T]`, and its callers keep the parts disjoint.
unsafe impl<T: Send> Sync for SharedMut<T> {}

impl<T> SharedMut<T> {
    pub(crate) fn new(data: &mut [T]) -> SharedMut<T> {
        SharedMut { start: data.as_mut_ptr(), len: data.len() }
    }

    /// The elements `start..start + len`.
    ///
    /// # Safety
    /// No two living slices overlap, and none outlives the data.
    ///
    /// # Panics
    /// When the range is not inside.
    #[expect(clippy::mut_from_ref, reason = "this is what the type is for")]
    pub(crate) unsafe fn slice(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start <= self.len && len <= self.len - start, "{start} + {len} of {}", self.len);
        // SAFETY: inside the data, and disjoint from other slices by the contract.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }
}

#[cfg(test)]
pub(crate) mod testing;
