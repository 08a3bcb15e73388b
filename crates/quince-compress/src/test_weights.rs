//! Weights for tests, and where their elements belong.

use quince_tensor::{DType, Tensor, Weight};

/// Reproducible values, many near zero and a few far out.
pub(crate) fn weight(shape: &[usize], dtype: DType, seed: u64) -> Weight {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let unit = (state >> 11) as f64 / (1u64 << 53) as f64 - 0.45;
        unit * unit * unit
    };
    let values = (0..shape.iter().product()).map(|_| next()).collect();
    Weight::from_tensor("w", Tensor::from_f64(dtype, shape, values).unwrap())
}

pub(crate) fn values_of(weight: &Weight) -> Vec<f64> {
    weight.load().unwrap().to_f64().unwrap()
}

/// The group of an element, by the definition of `constexpr_*`: along each axis, `shape / groups` neighbours share one.
pub(crate) fn group_of(element: usize, shape: &[usize], groups: &[usize]) -> usize {
    let (mut rest, mut group, mut stride) = (element, 0, 1);
    for axis in (0..shape.len()).rev() {
        group += rest % shape[axis] / (shape[axis] / groups[axis]) * stride;
        rest /= shape[axis];
        stride *= groups[axis];
    }
    group
}

pub(crate) fn with_threads<T: Send>(threads: usize, run: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(run)
}

/// Reproducible float32 values like those of [`weight`].
pub(crate) fn values(len: usize, seed: u64) -> Vec<f32> {
    weight(&[len], DType::F32, seed).load().unwrap().to_f32().unwrap()
}
