//! What a program may take when it runs: a file that somebody else made must not hold a machine for ever, or fill it.

use crate::{Error, Result, ValueType};

/// Bounds of a run. What goes beyond one of them is an error that names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// How often the `while_loop`s of a call may run, all together. 2^20 unless told otherwise.
    pub iterations: usize,
    /// Bytes of one value, in the type that the program declares: an input, a result of an operation, a state. Weights
    /// that stay in their file do not count. Computing a value may take a few times as much. 16 GiB unless told
    /// otherwise.
    pub value_bytes: usize,
    /// Bytes of all values that a call keeps at one time, as they are computed: float16 takes as much as float32. States
    /// and weights do not count. 64 GiB unless told otherwise.
    pub call_bytes: usize,
    /// Elements of all results that are computed once for all calls of one shape, because everything that goes into them
    /// is known. What is beyond is computed in each call: this is no error. 2^26 unless told otherwise.
    pub folded_elements: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { iterations: 1 << 20, value_bytes: 16 << 30, call_bytes: 64 << 30, folded_elements: 1 << 26 }
    }
}

impl Limits {
    /// Bytes of the values of a type; sizes that are not known count as one.
    pub fn bytes_of(ty: &ValueType) -> usize {
        let Some(ty) = ty.as_tensor() else { return 0 };
        let sizes = || ty.shape.iter().map(|dim| dim.fixed().unwrap_or(1));
        if sizes().any(|size| size == 0) {
            return 0;
        }
        sizes().fold(1, usize::saturating_mul).saturating_mul(ty.dtype.bits()).div_ceil(8)
    }

    /// Checks that a value of this type may be made, as far as its sizes are known.
    ///
    /// # Errors
    /// When it takes more than [`Limits::value_bytes`].
    pub fn check_value(&self, ty: &ValueType) -> Result<()> {
        let bytes = Limits::bytes_of(ty);
        if bytes <= self.value_bytes {
            return Ok(());
        }
        let message = format!("{ty} takes {} bytes, expected at most {}", count(bytes), self.value_bytes);
        Err(exceeded(message, "value-bytes"))
    }

    /// Checks that a call may keep so many bytes of values.
    ///
    /// # Errors
    /// When they are more than [`Limits::call_bytes`].
    pub fn check_call(&self, bytes: usize) -> Result<()> {
        if bytes <= self.call_bytes {
            return Ok(());
        }
        let message = format!("the values of a call take {} bytes, expected at most {}", count(bytes), self.call_bytes);
        Err(exceeded(message, "call-bytes"))
    }

    /// Checks that loops may run once more after `done` times.
    ///
    /// # Errors
    /// When that is more often than [`Limits::iterations`].
    pub fn check_iterations(&self, done: usize) -> Result<()> {
        if done < self.iterations {
            return Ok(());
        }
        Err(exceeded(format!("loops ran {done} times without an end"), "iterations"))
    }
}

/// A number of bytes; one that no computer has is told as such.
fn count(bytes: usize) -> String {
    if bytes >= usize::MAX / 8 { format!("{} or more", usize::MAX / 8) } else { bytes.to_string() }
}

fn exceeded(message: String, limit: &str) -> Error {
    Error::new(message)
        .hint(format!("this is the limit `{limit}`; if the program is right, `--limit {limit}=N` raises it"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;

    #[test]
    fn a_limit_names_itself_and_what_raises_it() {
        let limits = Limits { iterations: 3, value_bytes: 10, call_bytes: 20, folded_elements: 0 };
        let ty = |shape: &[usize]| ValueType::tensor(DType::F16, shape);
        assert!(limits.check_value(&ty(&[5])).is_ok() && limits.check_value(&ty(&[0, 99])).is_ok());
        let error = limits.check_value(&ty(&[2, 3])).unwrap_err();
        assert_eq!(error.headline(), "tensor<fp16, [2, 3]> takes 12 bytes, expected at most 10");
        assert!(error.hints()[0].contains("`--limit value-bytes=N` raises it"), "{error}");
        assert!(limits.check_value(&ty(&[usize::MAX, 3])).unwrap_err().headline().contains("or more bytes"));
        let nibbles = ValueType::tensor(DType::U4, &[19]);
        assert!(limits.check_value(&nibbles).is_ok());
        assert!(limits.check_call(20).is_ok() && limits.check_call(21).is_err());
        assert!(limits.check_iterations(2).is_ok());
        assert_eq!(limits.check_iterations(3).unwrap_err().headline(), "loops ran 3 times without an end");
    }
}
