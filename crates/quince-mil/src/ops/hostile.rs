//! No operation panics, whatever it is given: every entry of the table is called with random arguments, many of them
//! absurd, and must answer or refuse.

use super::OPS;
use crate::op::ArgInfo;
use crate::{Args, DType, Dim, Op, Tensor, TensorType, Value};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A small generator of numbers, the same in every run (Marsaglia's xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }

    fn one_of<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    fn shape(&mut self) -> Vec<usize> {
        let rank = self.one_of(&[0, 1, 1, 2, 2, 3, 4, 5]);
        (0..rank).map(|_| self.one_of(&[0, 1, 2, 2, 3, 4])).collect()
    }

    /// A tensor of a type that a parameter may have. Large integers are so large that a result of that size is refused
    /// rather than made.
    fn tensor(&mut self, types: &[DType]) -> Tensor {
        use DType::*;
        let common = [F16, F32, F32, I32, I32, I64, I64, Bool, U8, I8, U1, U3, I4];
        let dtype = if types.is_empty() || self.below(8) == 0 { self.one_of(&common) } else { self.one_of(types) };
        let shape = self.shape();
        let count = shape.iter().product();
        if dtype == Bool {
            let values: Vec<bool> = (0..count).map(|_| self.below(2) == 1).collect();
            return Tensor::from_bools(shape, &values).unwrap();
        }
        let absurd = self.below(4) == 0;
        let odd = [-1.0, f64::NAN, f64::INFINITY, 1e30, -1e30, 5e-324];
        if dtype.is_float() {
            let values =
                (0..count).map(|_| if absurd { self.one_of(&odd) } else { self.below(4) as f64 / 2.0 }).collect();
            return Tensor::from_f64(dtype, shape, values).unwrap();
        }
        let large = [-1, -2, -7, 1 << 41, -(1 << 41), i64::MAX, i64::MIN];
        let values: Vec<i64> =
            (0..count).map(|_| if absurd { self.one_of(&large) } else { self.below(4) as i64 }).collect();
        // Where the large numbers would wrap to middling ones, small ones stand in.
        let values = if dtype == I64 { values } else { values.into_iter().map(|v| v.clamp(-7, 7)).collect() };
        Tensor::from_i64(dtype, shape, &values).unwrap()
    }

    fn argument(&mut self, types: &[DType]) -> ArgInfo {
        let strings = [
            "valid",
            "same",
            "custom",
            "reflect",
            "update",
            "uint8",
            "fp16",
            "fp32",
            "forward",
            "tanh",
            "EXACT",
            "nchw,nwhu->nchu",
            "",
        ];
        if self.below(12) == 0 {
            return ArgInfo::known(Value::from(self.one_of(&strings)));
        }
        ArgInfo::known(self.tensor(types).into())
    }

    /// The same arguments with some sizes and values not known, as they are when types are inferred.
    fn forget(&mut self, info: &ArgInfo) -> ArgInfo {
        match info.ty.as_tensor() {
            Some(ty) if self.below(2) == 0 => {
                let shape = ty.shape.iter().map(|&dim| if self.below(2) == 0 { Dim::Unknown } else { dim });
                ArgInfo::typed(TensorType { dtype: ty.dtype, shape: shape.collect() }.into())
            }
            _ => info.clone(),
        }
    }
}

type Entries = Vec<(&'static str, Vec<ArgInfo>)>;

fn entries(random: &mut Random, op: &dyn Op) -> Entries {
    let mut out: Entries = Vec::new();
    let mut last: Option<ArgInfo> = None;
    for param in op.params() {
        if param.optional && random.below(2) == 0 {
            continue;
        }
        let count = if param.variadic { random.below(4) } else { 1 };
        let mut infos = Vec::new();
        for _ in 0..count {
            // Now and then arguments are the same, so that shapes go together.
            let info = match &last {
                Some(last) if random.below(3) == 0 => last.clone(),
                _ => match param.default {
                    Some(crate::op::Default::Str(value)) if random.below(2) == 0 => ArgInfo::known(value.into()),
                    Some(crate::op::Default::Bool(_)) => ArgInfo::known((random.below(2) == 0).into()),
                    Some(crate::op::Default::Int(_)) if random.below(2) == 0 => {
                        ArgInfo::known((random.below(4) as i32 - 1).into())
                    }
                    _ => random.argument(param.types),
                },
            };
            last = Some(info.clone());
            infos.push(info);
        }
        out.push((param.name, infos));
    }
    out
}

#[test]
fn no_argument_makes_an_operation_panic() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut answered = 0;
    for op in OPS {
        for case in 0..600 {
            let entries = entries(&mut random, *op);
            let open: Entries =
                entries.iter().map(|(n, infos)| (*n, infos.iter().map(|i| random.forget(i)).collect())).collect();
            let result = catch_unwind(AssertUnwindSafe(|| {
                let _ = op.infer(&Args::new(*op, open));
                let args = Args::new(*op, entries.clone());
                op.infer(&args).is_ok() && op.eval(&args).is_ok()
            }));
            match result {
                Ok(done) => answered += usize::from(done),
                Err(_) => panic!("{} panicked in case {case} on {entries:?}", op.name()),
            }
        }
    }
    assert!(answered > OPS.len() * 10, "only {answered} calls were answered, the arguments are too absurd");
}
