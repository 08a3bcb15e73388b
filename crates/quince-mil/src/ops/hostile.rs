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

/// An argument of an example.
enum Of {
    Float(&'static [usize]),
    Code(DType, &'static [usize]),
    Int(i64),
    Ints(&'static [i64]),
    Word(&'static str),
}

/// Arguments that go together, of operations that random ones seldom reach.
const EXAMPLES: &[(&str, &[(&str, Of)])] = {
    use Of::*;
    &[
        (
            "conv",
            &[
                ("x", Float(&[1, 4, 3, 5])),
                ("weight", Float(&[2, 2, 2, 1])),
                ("groups", Int(2)),
                ("strides", Ints(&[1, 2])),
                ("dilations", Ints(&[2, 1])),
                ("pad_type", Word("custom")),
                ("pad", Ints(&[1, 0, 2, 1])),
            ],
        ),
        (
            "conv_transpose",
            &[
                ("x", Float(&[1, 2, 3])),
                ("weight", Float(&[2, 2, 2])),
                ("strides", Ints(&[2])),
                ("pad_type", Word("custom")),
                ("pad", Ints(&[1, 0])),
                ("output_shape", Ints(&[1, 2, 7])),
            ],
        ),
        (
            "avg_pool",
            &[
                ("x", Float(&[1, 2, 3, 4])),
                ("kernel_sizes", Ints(&[2, 3])),
                ("strides", Ints(&[1, 2])),
                ("pad_type", Word("custom")),
                ("pad", Ints(&[1, 1, 0, 0])),
            ],
        ),
        (
            "scaled_dot_product_attention",
            &[
                ("query", Float(&[2, 3, 4])),
                ("key", Float(&[2, 5, 4])),
                ("value", Float(&[2, 5, 3])),
                ("attn_mask", Float(&[3, 5])),
            ],
        ),
        (
            "attention",
            &[
                ("query", Float(&[1, 3, 4, 2])),
                ("key", Float(&[1, 3, 2, 2])),
                ("value", Float(&[1, 3, 2, 3])),
                ("scale", Float(&[])),
                ("window", Int(2)),
                ("softcap", Float(&[])),
                ("sinks", Float(&[4])),
            ],
        ),
        ("rope", &[("x", Float(&[1, 2, 3, 4])), ("inverse_frequencies", Float(&[2])), ("position", Ints(&[3]))]),
        (
            "slice_by_index",
            &[("x", Float(&[3, 4])), ("begin", Ints(&[0, -1])), ("end", Ints(&[2, 0])), ("stride", Ints(&[1, -2]))],
        ),
        (
            "slice_update",
            &[
                ("x", Float(&[3, 4])),
                ("update", Float(&[2, 2])),
                ("begin", Ints(&[0, 1])),
                ("end", Ints(&[2, 3])),
                ("stride", Ints(&[1, 1])),
            ],
        ),
        ("slice_by_size", &[("x", Float(&[3, 4])), ("begin", Ints(&[0, -1])), ("size", Ints(&[-1, 1]))]),
        ("split", &[("x", Float(&[3, 4])), ("split_sizes", Ints(&[1, 3])), ("axis", Int(1))]),
        ("sliding_windows", &[("x", Float(&[3, 4])), ("axis", Int(0)), ("size", Int(2)), ("stride", Int(1))]),
        ("gather", &[("x", Float(&[2, 3, 4])), ("indices", Ints(&[1, 0])), ("axis", Int(2)), ("batch_dims", Int(1))]),
        ("scatter_nd", &[("data", Float(&[3])), ("indices", Code(DType::I32, &[2, 1])), ("updates", Float(&[2]))]),
        ("pad", &[("x", Float(&[3, 4])), ("pad", Ints(&[1, 2])), ("mode", Word("reflect"))]),
        ("pixel_shuffle", &[("x", Float(&[1, 8, 2, 3])), ("upscale_factor", Int(2))]),
        ("space_to_depth", &[("x", Float(&[1, 2, 2, 4])), ("block_size", Int(2))]),
        (
            "constexpr_lut_to_dense",
            &[("indices", Code(DType::U2, &[4, 6])), ("lut", Float(&[2, 1, 4, 3])), ("vector_axis", Int(-1))],
        ),
        (
            "constexpr_lut_to_dense",
            &[("indices", Code(DType::U8, &[2])), ("lut", Float(&[4])), ("shape", Ints(&[2, 3]))],
        ),
        (
            "constexpr_lut_to_sparse",
            &[
                ("indices_mask", Code(DType::U1, &[2, 2])),
                ("indices_nonzero_data", Code(DType::U1, &[2])),
                ("lut", Float(&[1, 1, 2, 1])),
            ],
        ),
        (
            "constexpr_blockwise_shift_scale",
            &[("data", Code(DType::I4, &[4, 6])), ("scale", Float(&[2, 3])), ("offset", Code(DType::I4, &[2, 3]))],
        ),
        (
            "constexpr_affine_dequantize",
            &[
                ("quantized_data", Code(DType::U8, &[2, 3])),
                ("zero_point", Code(DType::U8, &[3])),
                ("scale", Float(&[3])),
                ("axis", Int(1)),
            ],
        ),
        (
            "quantize",
            &[("input", Float(&[2, 3])), ("scale", Float(&[2])), ("axis", Int(0)), ("output_dtype", Word("int8"))],
        ),
        (
            "lstm",
            &[
                ("x", Float(&[2, 1, 3])),
                ("initial_h", Float(&[1, 2])),
                ("initial_c", Float(&[1, 2])),
                ("weight_ih", Float(&[8, 3])),
                ("weight_hh", Float(&[8, 2])),
                ("direction", Word("reverse")),
            ],
        ),
    ]
};

/// An example with one of its arguments replaced by something else, now and then none or two.
fn altered(random: &mut Random, example: &[(&'static str, Of)]) -> Entries {
    let large = [-1, 0, 1, 2, 5, -7, 1 << 41, i64::MAX, i64::MIN];
    let (one, two) = (random.below(example.len() + 1), random.below(3 * example.len()));
    let mut out: Entries = Vec::new();
    for (i, (name, of)) in example.iter().enumerate() {
        let alter = i == one || i == two;
        let info: Value = match of {
            Of::Ints(values) => {
                let at = random.below(values.len());
                let mut values = values.to_vec();
                values[at] = if alter { random.one_of(&large) } else { values[at] };
                Value::from(values)
            }
            Of::Int(_) if alter => Tensor::scalar(random.one_of(&large)).into(),
            Of::Int(value) => Tensor::scalar(*value).into(),
            Of::Word(_) if alter => random.one_of(&["valid", "same", "same_lower", "replicate", "uint8", ""]).into(),
            Of::Word(word) => (*word).into(),
            Of::Float(_) | Of::Code(..) if alter => random.tensor(&[]).into(),
            Of::Float(shape) => Tensor::from_f64(DType::F32, *shape, vec![0.5; shape.iter().product()]).unwrap().into(),
            Of::Code(dtype, shape) => {
                let values: Vec<i64> = (0..shape.iter().product::<usize>() as i64).map(|i| i % 2).collect();
                Tensor::from_i64(*dtype, *shape, &values).unwrap().into()
            }
        };
        out.push((name, vec![ArgInfo::known(info)]));
    }
    out
}

/// Whether the operation answers; a panic is reported with the arguments.
fn answers(random: &mut Random, op: &dyn Op, entries: Entries) -> bool {
    let open: Entries =
        entries.iter().map(|(n, infos)| (*n, infos.iter().map(|i| random.forget(i)).collect())).collect();
    let result = catch_unwind(AssertUnwindSafe(|| {
        let _ = op.infer(&Args::new(op, open));
        let args = Args::new(op, entries.clone());
        op.infer(&args).is_ok() && op.eval(&args).is_ok()
    }));
    result.unwrap_or_else(|_| panic!("{} panicked on {entries:?}", op.name()))
}

#[test]
fn no_argument_makes_an_operation_panic() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut answered = 0;
    for op in OPS {
        for _ in 0..600 {
            let entries = entries(&mut random, *op);
            answered += usize::from(answers(&mut random, *op, entries));
        }
    }
    assert!(answered > OPS.len() * 10, "only {answered} calls were answered, the arguments are too absurd");
}

#[test]
fn no_argument_out_of_place_makes_an_operation_panic() {
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    for (name, example) in EXAMPLES {
        let op = super::find(name).unwrap();
        let cases = 400;
        let answered = (0..cases).filter(|_| {
            let entries = altered(&mut random, example);
            answers(&mut random, op, entries)
        });
        let answered = answered.count();
        assert!((1..cases).contains(&answered), "{name} answered {answered} of {cases}, expected some and not all");
    }
}
