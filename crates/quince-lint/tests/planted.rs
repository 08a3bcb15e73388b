//! Every rule against a program that has its fault and no other, and all rules against one that has none.

mod support;

use quince_lint::{COMPUTE_UNITS_KEY, Device, Severity, Target, Units, lint};
use quince_mil::{
    Builder, DType, Dim, Flexibility, Function, Input, Opset, Program, Result, Tensor, TensorType, Value, ValueType,
    Var, Weight,
};
use quince_mlpackage::Package;
use support::{ENGINE, absent, conv, found, half, halves, one, only, op, package, reshape, rules, state, update};

/// A layer as the Neural Engine wants it: norm by the maximum, 1×1 convolutions, a packed state, attention in its parts, a
/// finite mask, a head in two parts.
fn good() -> Package {
    package(|b, x| {
        let magnitude = op(b, "abs", &[("x", x.into())])?;
        let most =
            op(b, "reduce_max", &[("x", magnitude.into()), ("axes", vec![1].into()), ("keep_dims", true.into())])?;
        let most = op(b, "maximum", &[("x", most.into()), ("y", half(1e-3))])?;
        let scaled = op(b, "real_div", &[("x", x.into()), ("y", most.into())])?;
        let squares = op(b, "mul", &[("x", scaled.into()), ("y", scaled.into())])?;
        let mean =
            op(b, "reduce_mean", &[("x", squares.into()), ("axes", vec![1].into()), ("keep_dims", true.into())])?;
        let root = op(b, "rsqrt", &[("x", mean.into()), ("epsilon", half(1e-5))])?;
        let normed = op(b, "mul", &[("x", scaled.into()), ("y", root.into())])?;
        let (q, k) = (conv(b, normed, 64, None)?, conv(b, normed, 32, None)?);
        let q = op(b, "mul", &[("x", q.into()), ("y", half(0.125))])?;
        let q = reshape(b, q, &[1, 2, 32, 64])?;
        let k = op(b, "transpose", &[("x", k.into()), ("perm", vec![0, 2, 3, 1].into())])?;
        let cache = state(b, "cache", &[1, 1, 128, 32]);
        let keys = update(b, cache, k)?;
        let scores = op(
            b,
            "matmul",
            &[("x", keys.into()), ("y", q.into()), ("transpose_x", false.into()), ("transpose_y", false.into())],
        )?;
        let mask = b.input("mask", ValueType::tensor(DType::F16, &[1, 1, 128, 64]), Flexibility::Fixed);
        let scores = op(b, "add", &[("x", scores.into()), ("y", mask.into())])?;
        let weights = op(b, "softmax", &[("x", scores.into()), ("axis", 2.into())])?;
        let out = op(
            b,
            "matmul",
            &[("x", keys.into()), ("y", weights.into()), ("transpose_x", true.into()), ("transpose_y", false.into())],
        )?;
        let out = reshape(b, out, &[1, 64, 1, 64])?;
        let parts = [0.02, 0.03].map(|value| b.constant("part", halves(&[16384, 64, 1, 1], value).into()));
        let heads = vec![conv(b, out, 16384, Some(parts[0]))?, conv(b, out, 16384, Some(parts[1]))?];
        op(b, "concat", &[("values", heads.into()), ("axis", 1.into()), ("interleave", false.into())])
    })
}

#[test]
fn a_good_package_is_clean() {
    let report = lint(&good(), &ENGINE);
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
    assert_eq!(report.skipped, 0);
}

#[test]
fn what_is_refused_everywhere() {
    let mut old = good();
    old.program.functions[0].opset = Opset::CoreML7;
    found(&["opset"], &old);
    // An opset of iOS 17 with one state only.
    let mut two = package(|b, x| op(b, "silu", &[("x", x.into())]));
    two.program.functions[0].opset = Opset::CoreML7;
    let mut second = two.program.functions[0].clone();
    second.name = "decode".into();
    two.program.functions.push(second);
    found(&["opset"], &two);
    only("element-type", |b, x| {
        b.constant("doubles", Tensor::from_vec([2], vec![1f64, 2.0])?.into());
        op(b, "silu", &[("x", x.into())])
    });
    only("interface-type", |b, x| {
        b.input("flags", ValueType::tensor(DType::Bool, &[4]), Flexibility::Fixed);
        op(b, "silu", &[("x", x.into())])
    });
}

#[test]
fn numbers_that_fp16_does_not_have() {
    only("non-finite", |b, x| op(b, "add", &[("x", x.into()), ("y", half(f32::NEG_INFINITY))]));
    only("non-finite", |b, x| {
        let mask = b.constant("mask", Tensor::from_vec([64], vec![f32::MIN; 64])?.into());
        let mask = op(b, "cast", &[("x", mask.into()), ("dtype", "fp16".into())])?;
        op(b, "add", &[("x", x.into()), ("y", mask.into())])
    });
    only("mask-range", |b, x| op(b, "add", &[("x", x.into()), ("y", half(-65504.0))]));
    only("epsilon-underflow", |b, x| {
        let mean = op(b, "reduce_mean", &[("x", x.into()), ("axes", vec![1].into()), ("keep_dims", true.into())])?;
        op(b, "rsqrt", &[("x", mean.into()), ("epsilon", 1e-12f32.into())])
    });
    only("epsilon-underflow", |b, x| {
        op(b, "layer_norm", &[("x", x.into()), ("axes", vec![1].into()), ("epsilon", half(1e-12))])
    });
    only("inverse-epsilon", |b, x| op(b, "inverse", &[("x", x.into()), ("epsilon", half(1e-4))]));
    only("default-epsilon", |b, x| op(b, "rsqrt", &[("x", x.into())]));
    for square in ["square", "mul", "pow", "reduce_l2_norm"] {
        only("square-overflow", |b, x| {
            let axes: Input = vec![1].into();
            let squares = match square {
                "square" => op(b, "square", &[("x", x.into())])?,
                "mul" => op(b, "mul", &[("x", x.into()), ("y", x.into())])?,
                "pow" => op(b, "pow", &[("x", x.into()), ("y", half(2.0))])?,
                norm => return op(b, norm, &[("x", x.into()), ("axes", axes), ("keep_dims", true.into())]),
            };
            op(b, "reduce_mean", &[("x", squares.into()), ("axes", axes), ("keep_dims", true.into())])
        });
    }
    only("score-scaling", |b, x| {
        let other = b.input("k", ValueType::tensor(DType::F16, &[1, 64, 64, 64]), Flexibility::Fixed);
        let scores = op(b, "matmul", &[("x", x.into()), ("y", other.into())])?;
        let scaled = op(b, "mul", &[("x", scores.into()), ("y", half(0.125))])?;
        op(b, "softmax", &[("x", scaled.into()), ("axis", (-1).into())])
    });
    only("rotary-range", |b, x| op(b, "cos", &[("x", x.into())]));
}

#[test]
fn what_leaves_the_neural_engine() {
    only("fused-attention", |b, x| {
        op(b, "scaled_dot_product_attention", &[("query", x.into()), ("key", x.into()), ("value", x.into())])
    });
    only("rank", |b, x| reshape(b, x, &[1, 2, 2, 16, 2, 32]));
    only("dimension", |b, x| {
        let y = reshape(b, x, &[2, 2048])?;
        let y = op(b, "tile", &[("x", y.into()), ("reps", vec![1, 16].into())])?;
        op(b, "silu", &[("x", y.into())])
    });
    only("float32", |b, x| {
        let y = op(b, "cast", &[("x", x.into()), ("dtype", "fp32".into())])?;
        let y = op(b, "silu", &[("x", y.into())])?;
        op(b, "cast", &[("x", y.into()), ("dtype", "fp16".into())])
    });
    only("control-flow", |b, x| {
        let list = op(
            b,
            "make_list",
            &[
                ("init_length", 1.into()),
                ("dynamic_length", true.into()),
                ("elem_shape", vec![64].into()),
                ("dtype", "fp16".into()),
            ],
        );
        list.and_then(|_| op(b, "silu", &[("x", x.into())]))
    });
    for name in ["cumsum", "topk", "band_part"] {
        only("unsupported-operation", |b, x| match name {
            "cumsum" => op(b, name, &[("x", x.into()), ("axis", 3.into())]),
            "band_part" => {
                let x = reshape(b, x, &[64, 64])?;
                op(b, name, &[("x", x.into()), ("lower", (-1).into()), ("upper", 0.into())])
            }
            _ => {
                let x = reshape(b, x, &[1, 4096])?;
                Ok(b.ops(name, name, &[("x", x.into()), ("k", 5.into()), ("axis", 1.into())])?[0])
            }
        });
    }
}

#[test]
fn what_the_neural_engine_does_badly() {
    only("integer-compute", |b, x| {
        let many = b.input("many", ValueType::tensor(DType::I32, &[512, 512]), Flexibility::Fixed);
        op(b, "add", &[("x", many.into()), ("y", 1.into())])?;
        op(b, "silu", &[("x", x.into())])
    });
    only("linear-layer", |b, x| {
        let x = reshape(b, x, &[1, 64, 64])?;
        op(b, "linear", &[("x", x.into()), ("weight", halves(&[64, 64], 0.1).into())])
    });
    only("last-axis", |b, x| reshape(b, x, &[1, 64, 64, 1]));
    only("last-axis", |b, x| reshape(b, x, &[1, 4096, 1, 1]));
    // The channels of one token have nothing else to lie beside.
    found(
        &[],
        &package(|b, x| {
            b.input("position", ValueType::tensor(DType::I32, &[1]), Flexibility::Fixed);
            reshape(b, x, &[1, 4096, 1, 1])
        }),
    );
    only("narrow-axis", |b, x| {
        let y = op(b, "tile", &[("x", x.into()), ("reps", vec![1, 1, 64, 1].into())])?;
        reshape(b, y, &[1, 64, 1024, 4])
    });
    for how in ["tile", "scaled", "concat", "gather"] {
        only("repeated-heads", |b, x| {
            let keys = match how {
                "tile" => op(b, "tile", &[("x", x.into()), ("reps", vec![1, 1, 4, 1].into())])?,
                "scaled" => {
                    let keys = op(b, "tile", &[("x", x.into()), ("reps", vec![1, 1, 4, 1].into())])?;
                    op(b, "mul", &[("x", keys.into()), ("y", half(0.125))])?
                }
                "concat" => op(
                    b,
                    "concat",
                    &[("values", vec![x, x, x, x].into()), ("axis", 2.into()), ("interleave", false.into())],
                )?,
                _ => op(b, "gather", &[("x", x.into()), ("indices", vec![0, 0, 0, 0].into()), ("axis", 2.into())])?,
            };
            let keys = reshape(b, keys, &[1, 4, 64, 64])?;
            let query = reshape(b, x, &[1, 1, 64, 64])?;
            op(b, "matmul", &[("x", query.into()), ("y", keys.into()), ("transpose_y", true.into())])
        });
    }
}

#[test]
fn tables_heads_and_caches_that_are_used_the_wrong_way() {
    only("embedding-rows", |b, x| {
        let ids = b.input("ids", ValueType::tensor(DType::I32, &[64]), Flexibility::Fixed);
        let table = b.weight(&absent("table", DType::F16, &[70_000, 64]));
        let rows = op(b, "gather", &[("x", table.into()), ("indices", ids.into()), ("axis", 0.into())])?;
        let rows = reshape(b, rows, &[1, 64, 1, 64])?;
        let y = op(b, "add", &[("x", x.into()), ("y", rows.into())])?;
        conv(b, y, 64, None)
    });
    only("lm-head", |b, x| conv(b, x, 20_000, None));
    only("raw-keys", |b, x| {
        let cache = state(b, "cache", &[1, 1, 64, 64]);
        let new = reshape(b, x, &[1, 1, 64, 64])?;
        let keys = update(b, cache, new)?;
        let part = |b: &mut Builder, from: i32, to: i32| {
            op(
                b,
                "slice_by_index",
                &[("x", keys.into()), ("begin", [0, 0, 0, from].into()), ("end", [1, 1, 64, to].into())],
            )
        };
        let (low, high) = (part(b, 0, 32)?, part(b, 32, 64)?);
        let turned =
            op(b, "concat", &[("values", vec![high, low].into()), ("axis", 3.into()), ("interleave", false.into())])?;
        let cos = b.input("cos", ValueType::tensor(DType::F16, &[1, 1, 64, 64]), Flexibility::Fixed);
        let sin = b.input("sin", ValueType::tensor(DType::F16, &[1, 1, 64, 64]), Flexibility::Fixed);
        let (a, c) = (
            op(b, "mul", &[("x", keys.into()), ("y", cos.into())])?,
            op(b, "mul", &[("x", turned.into()), ("y", sin.into())])?,
        );
        let rotated = op(b, "add", &[("x", a.into()), ("y", c.into())])?;
        op(b, "matmul", &[("x", new.into()), ("y", rotated.into()), ("transpose_y", true.into())])
    });
}

#[test]
fn shapes_that_are_not_fixed() {
    let flexible = |shape: Vec<Dim>, flexibility: Flexibility| {
        let mut b = Builder::new(Function::new("main", Opset::CoreML8));
        let x = b.input("x", ValueType::Tensor(TensorType { dtype: DType::F16, shape }), flexibility);
        let y = op(&mut b, "silu", &[("x", x.into())]).unwrap();
        one(b.finish(vec![y]))
    };
    let open = |at: usize| (0..4).map(|i| if i == at { Dim::Unknown } else { Dim::Fixed(64) }).collect::<Vec<_>>();
    let range = |at: usize| Flexibility::Range {
        bounds: (0..4).map(|i| if i == at { (1, Some(64)) } else { (64, Some(64)) }).collect(),
        default: vec![64; 4],
    };
    found(&["dynamic-shape"], &flexible(open(3), range(3)));
    found(&["flexible-batch"], &flexible(open(0), range(0)));
    let many = (1..=129).map(|n| vec![64, 64, 64, n]).collect();
    found(&["enumerated-shapes"], &flexible(open(3), Flexibility::Enumerated(many)));
    found(&[], &flexible(open(3), Flexibility::Enumerated(vec![vec![64; 4], vec![64, 64, 64, 128]])));
    only("dynamic-shape", |b, x| {
        let size = b.input("size", ValueType::tensor(DType::I32, &[4]), Flexibility::Fixed);
        op(b, "reshape", &[("x", x.into()), ("shape", size.into())])
    });
}

#[test]
fn weights_that_the_neural_engine_does_not_take() {
    let packed = |weight: fn(&mut Builder) -> Result<Var>| {
        move |b: &mut Builder, x: Var| {
            let weight = weight(b)?;
            conv(b, x, 64, Some(weight))
        }
    };
    let codes = |dtype, shape: &[usize]| {
        Value::from(Tensor::from_codes(dtype, shape, &vec![1; shape.iter().product()]).unwrap())
    };
    only(
        "block-weights",
        packed(|b| {
            let data = Tensor::from_codes(DType::I4, [64, 64, 1, 1], &[1; 4096])?;
            op(
                b,
                "constexpr_blockwise_shift_scale",
                &[("data", data.into()), ("scale", halves(&[64, 2, 1, 1], 0.1).into())],
            )
        }),
    );
    // A scale for each channel is none.
    let per_channel = package(packed(|b| {
        let data = Tensor::from_codes(DType::I8, [64, 64, 1, 1], &[1; 4096])?;
        op(
            b,
            "constexpr_blockwise_shift_scale",
            &[("data", data.into()), ("scale", halves(&[64, 1, 1, 1], 0.1).into())],
        )
    }));
    found(&[], &per_channel);
    for (groups, expected) in [(1, &[][..]), (4, &[]), (8, &[]), (16, &["palette-groups"]), (64, &["palette-groups"])] {
        let palettized = package(|b, x| {
            let table = halves(&[groups, 1, 1, 1, 16, 1], 0.1);
            let weight = op(
                b,
                "constexpr_lut_to_dense",
                &[("indices", codes(DType::U4, &[64, 64, 1, 1]).into()), ("lut", table.into())],
            )?;
            conv(b, x, 64, Some(weight))
        });
        found(expected, &palettized);
    }
    only("table-scale", |b, x| {
        let table = op(
            b,
            "constexpr_blockwise_shift_scale",
            &[("data", halves(&[64, 1, 1, 1, 16, 1], 0.1).into()), ("scale", halves(&[64, 1, 1, 1, 1, 1], 2.0).into())],
        )?;
        let weight = op(
            b,
            "constexpr_lut_to_dense",
            &[("indices", codes(DType::U4, &[64, 64, 1, 1]).into()), ("lut", table.into())],
        )?;
        conv(b, x, 64, Some(weight))
    });
    only("float32-weights", |b, x| {
        let table = b.weight(&absent("table", DType::F32, &[1024, 1024]));
        let half = op(b, "cast", &[("x", table.into()), ("dtype", "fp16".into())])?;
        let part =
            op(b, "slice_by_size", &[("x", half.into()), ("begin", vec![0, 0].into()), ("size", vec![1, 64].into())])?;
        let part = reshape(b, part, &[1, 1, 1, 64])?;
        op(b, "add", &[("x", x.into()), ("y", part.into())])
    });
}

/// A package whose one weight has this many bytes; nothing of it is ever in memory.
fn large(bytes: usize) -> Package {
    package(|b, x| {
        let weight = b.weight(&absent("w", DType::U8, &[64, 64, bytes / 4096]));
        let weight = op(
            b,
            "constexpr_cast",
            &[("source_val", halves(&[64, 64, 1, 1], 0.1).into()), ("output_dtype", "fp16".into())],
        )
        .unwrap_or(weight);
        conv(b, x, 64, Some(weight).filter(|w| *w != x)).or_else(|_| conv(b, x, 64, None))
    })
}

#[test]
fn packages_that_are_too_large() {
    let severity = |bytes: usize, target: &Target| {
        let report = lint(&large(bytes), target);
        report.findings.iter().find(|f| f.rule.id == "part-size").map(|f| f.severity)
    };
    assert_eq!(severity(900_000_000, &ENGINE), None);
    assert_eq!(severity(1_000_000_000, &ENGINE), Some(Severity::Warning));
    assert_eq!(severity(1_500_000_000, &ENGINE), Some(Severity::Error));
    let mac = Target { device: Device::find("macm1"), ..ENGINE };
    assert_eq!(severity(1_500_000_000, &mac), Some(Severity::Warning));
    let phone = Target { device: Device::find("iphone12"), ..Target::default() };
    let rules = rules(&lint(&large(2_500_000_000), &phone));
    assert!(rules.contains("memory") && rules.contains("part-size"), "{rules:?}");
}

#[test]
fn functions_that_do_not_share() {
    let function = |name: &str, weight: Value| {
        let mut b = Builder::new(Function::new(name, Opset::CoreML8));
        let x = b.input("x", ValueType::tensor(DType::F16, &[1, 64, 1, 64]), Flexibility::Fixed);
        let weight = b.constant("w", weight);
        let y = conv(&mut b, x, 512, Some(weight)).unwrap();
        b.finish(vec![y])
    };
    let two = |a: Value, b: Value| {
        let functions = vec![function("init", a), function("decode", b)];
        Package::new(Program { functions, default_function: Some("init".into()), ..Program::default() })
    };
    let weight = || Value::Weight(Weight::from_tensor("w", halves(&[512, 64, 1, 1], 0.1)));
    let shared = weight();
    found(&[], &two(shared.clone(), shared));
    found(&["unshared-weights"], &two(weight(), weight()));
    let palettized = |name: &str, indices: &Weight, lut: f32| {
        let mut b = Builder::new(Function::new(name, Opset::CoreML8));
        let x = b.input("x", ValueType::tensor(DType::F16, &[1, 64, 1, 64]), Flexibility::Fixed);
        let lut: Value = Weight::from_tensor("lut", halves(&[1, 1, 1, 1, 16, 1], lut)).into();
        let inputs = [("indices", Value::from(indices.clone()).into()), ("lut", lut.into())];
        let weight = op(&mut b, "constexpr_lut_to_dense", &inputs).unwrap();
        let y = conv(&mut b, x, 64, Some(weight)).unwrap();
        b.finish(vec![y])
    };
    let indices = Weight::from_tensor("i", Tensor::from_codes(DType::U4, [64, 64, 1, 1], &[1; 4096]).unwrap());
    let functions = vec![palettized("init", &indices, 0.1), palettized("decode", &indices, 0.2)];
    found(
        &["unshared-tables"],
        &Package::new(Program { functions, default_function: Some("init".into()), ..Program::default() }),
    );
}

#[test]
fn rules_of_the_neural_engine_are_not_asked_about_packages_for_the_gpu() {
    let fused = package(|b, x| {
        op(b, "scaled_dot_product_attention", &[("query", x.into()), ("key", x.into()), ("value", x.into())])
    });
    let report = lint(&fused, &Target { units: Units::CpuAndGpu, device: None });
    assert!(report.findings.is_empty() && report.skipped > 20, "{}", report.skipped);
    let mut said = fused.metadata.clone();
    assert_eq!(Units::of(&said), None);
    said.user_defined.insert(COMPUTE_UNITS_KEY.into(), "cpuAndGPU".into());
    assert_eq!(Units::of(&said), Some(Units::CpuAndGpu));
}
