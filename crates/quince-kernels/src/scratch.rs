//! Scratch memory that a thread keeps from call to call.

use std::cell::RefCell;
use std::thread::LocalKey;

/// Numbers aligned to a cache line; the field is read through the cast in [`with_scratch`].
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(crate) struct Line {
    _numbers: [f32; 16],
}

/// The memory of one use on one thread. Uses that are nested need a store each.
pub(crate) type Scratch = RefCell<Vec<Line>>;

/// Calls `f` with `len` numbers of unspecified value, aligned to a cache line.
pub(crate) fn with_scratch<R>(store: &'static LocalKey<Scratch>, len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut lines = store.take();
    lines.resize(lines.len().max(len.div_ceil(16)), Line { _numbers: [0.0; 16] });
    // SAFETY: a `Line` is 16 f32 without padding, and `lines` holds at least `len` of them.
    let numbers = unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast::<f32>(), len) };
    let result = f(numbers);
    store.set(lines);
    result
}
