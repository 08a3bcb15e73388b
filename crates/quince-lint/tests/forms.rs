//! Faults in other forms than the plainest, as models that were written for other machines have them; and what looks like a
//! fault and is none.

mod support;

use quince_mil::{Builder, DType, Flexibility, OpKind, Result, Tensor, ValueType, Var};
use support::{conv, found, half, only, op, package, reshape, state, taking, update};

fn concat(b: &mut Builder, values: Vec<Var>, axis: i32) -> Result<Var> {
    op(b, "concat", &[("values", values.into()), ("axis", axis.into()), ("interleave", false.into())])
}

fn slice(b: &mut Builder, x: Var, begin: [i32; 4], end: [i32; 4]) -> Result<Var> {
    op(b, "slice_by_index", &[("x", x.into()), ("begin", begin.into()), ("end", end.into())])
}

/// Writes a state of [1, 64, 32, 64] with what is made of its old value and of x, [1, 64, 1, 64].
fn window(rule: &str, next: impl FnOnce(&mut Builder, Var, Var) -> Result<Var>) {
    only(rule, |b, x| {
        let cache = state(b, "window", &[1, 64, 32, 64]);
        let old = op(b, "read_state", &[("input", cache.into())])?;
        let next = next(b, old, x)?;
        b.ops("write_state", "write", &[("input", cache.into()), ("data", next.into())])?;
        op(b, "add", &[("x", next.into()), ("y", old.into())])
    });
}

#[test]
fn windows_that_move() {
    window("cache-shift", |b, old, x| {
        let all = concat(b, vec![old, x], 2)?;
        slice(b, all, [0, 0, 1, 0], [1, 64, 33, 64])
    });
    window("cache-shift", |b, old, x| {
        let places: Vec<i32> = (1..32).collect();
        let rest = op(b, "gather", &[("x", old.into()), ("indices", places.into()), ("axis", 2.into())])?;
        concat(b, vec![rest, x], 2)
    });
    window("state-update", |b, old, x| {
        let pad = |b: &mut Builder, x: Var, pad: [i32; 8]| {
            op(
                b,
                "pad",
                &[("x", x.into()), ("pad", pad.into()), ("mode", "constant".into()), ("constant_val", half(0.0))],
            )
        };
        let rest = slice(b, old, [0, 0, 1, 0], [1, 64, 32, 64])?;
        let (rest, new) = (pad(b, rest, [0, 0, 0, 0, 0, 1, 0, 0])?, pad(b, x, [0, 0, 0, 0, 31, 0, 0, 0])?);
        op(b, "add", &[("x", rest.into()), ("y", new.into())])
    });
    window("state-update", |b, _, x| op(b, "tile", &[("x", x.into()), ("reps", [1, 1, 32, 1].into())]));
}

#[test]
fn keys_whose_halves_are_rotated() {
    only("raw-keys", |b, x| {
        let cache = state(b, "cache", &[1, 1, 64, 64]);
        let new = reshape(b, x, &[1, 1, 64, 64])?;
        let keys = update(b, cache, new)?;
        let (low, high) = (slice(b, keys, [0; 4], [1, 1, 64, 32])?, slice(b, keys, [0, 0, 0, 32], [1, 1, 64, 64])?);
        let cos = b.input("cos", ValueType::tensor(DType::F16, &[1, 1, 64, 32]), Flexibility::Fixed);
        let sin = b.input("sin", ValueType::tensor(DType::F16, &[1, 1, 64, 32]), Flexibility::Fixed);
        let mut times = |x: Var, y: Var| op(b, "mul", &[("x", x.into()), ("y", y.into())]);
        let products = [times(low, cos)?, times(high, sin)?, times(high, cos)?, times(low, sin)?];
        let first = op(b, "sub", &[("x", products[0].into()), ("y", products[1].into())])?;
        let second = op(b, "add", &[("x", products[2].into()), ("y", products[3].into())])?;
        let rotated = concat(b, vec![first, second], 3)?;
        op(b, "matmul", &[("x", new.into()), ("y", rotated.into()), ("transpose_y", true.into())])
    });
}

#[test]
fn numbers_that_overflow_behind_a_reshape() {
    for masked in [false, true] {
        only("score-scaling", |b, x| {
            let keys = b.input("k", ValueType::tensor(DType::F16, &[1, 64, 64, 64]), Flexibility::Fixed);
            let scores = op(b, "matmul", &[("x", x.into()), ("y", keys.into())])?;
            let mask = b.input("mask", ValueType::tensor(DType::F16, &[1, 64, 1, 64]), Flexibility::Fixed);
            let scores = match masked {
                true => op(b, "add", &[("x", scores.into()), ("y", mask.into())])?,
                false => reshape(b, scores, &[1, 32, 2, 64])?,
            };
            let scaled = op(b, "real_div", &[("x", scores.into()), ("y", half(8.0))])?;
            op(b, "softmax", &[("x", scaled.into()), ("axis", (-1).into())])
        });
    }
    only("square-overflow", |b, x| {
        let squares = op(b, "mul", &[("x", x.into()), ("y", x.into())])?;
        let squares = op(b, "transpose", &[("x", squares.into()), ("perm", vec![0, 2, 3, 1].into())])?;
        op(b, "reduce_mean", &[("x", squares.into()), ("axes", vec![3].into()), ("keep_dims", true.into())])
    });
    only("mask-range", |b, x| {
        let less = op(b, "sub", &[("x", x.into()), ("y", half(1.0))])?;
        let mask = op(b, "mul", &[("x", less.into()), ("y", half(65504.0))])?;
        let mask = op(b, "clip", &[("x", mask.into()), ("alpha", half(-65504.0)), ("beta", half(0.0))])?;
        op(b, "add", &[("x", x.into()), ("y", mask.into())])
    });
}

#[test]
fn an_operation_that_no_opset_has() {
    let mut package = package(|b, x| op(b, "silu", &[("x", x.into())]));
    let operation = package.program.functions[0].block.operations.last_mut().unwrap();
    operation.kind = OpKind::Unknown("flash_attention_3".into());
    found(&["unknown-operation"], &package);
}

/// A package with one function of x, the channels of a token, that `build` completes.
fn step(build: impl FnOnce(&mut Builder, Var) -> Result<Var>) -> quince_mlpackage::Package {
    taking(DType::F16, &[1, 512, 1, 1], build)
}

#[test]
fn single_elements_that_nobody_can_avoid() {
    // The token of a step beside a cache, split into heads.
    found(
        &[],
        &step(|b, hidden| {
            let cache = b.input("k_cache", ValueType::tensor(DType::F16, &[1, 8, 128, 64]), Flexibility::Fixed);
            let heads = reshape(b, hidden, &[1, 8, 64, 1])?;
            op(b, "matmul", &[("x", cache.into()), ("y", heads.into())])
        }),
    );
    // The token of a later part of a model; by itself it could as well be a text.
    let mut head = step(|b, hidden| op(b, "silu", &[("x", hidden.into())]));
    found(&["last-axis"], &head);
    head.metadata.user_defined.insert(quince_mlpackage::PART_KEY.into(), "part 2 of 2".into());
    found(&[], &head);
    // What pooling leaves, and what is computed from it.
    found(
        &[],
        &package(|b, x| {
            let wide = conv(b, x, 512, None)?;
            let pooled =
                op(b, "reduce_mean", &[("x", wide.into()), ("axes", vec![2, 3].into()), ("keep_dims", true.into())])?;
            conv(b, pooled, 1000, None)
        }),
    );
}

#[test]
fn experts_are_no_layer() {
    let product = |experts: i32| {
        package(|b, x| {
            let stored = b.constant("experts", support::halves(&[4096, 64], 0.01).into());
            let matrices = reshape(b, stored, &[experts, 4096 / experts, 64])?;
            let tokens = reshape(b, x, &[1, 64, 64])?;
            op(b, "matmul", &[("x", tokens.into()), ("y", matrices.into()), ("transpose_y", true.into())])
        })
    };
    found(&["linear-layer"], &product(1));
    found(&[], &product(4));
}

#[test]
fn what_is_less_than_an_error() {
    // Pixels are scaled before they become float16.
    let package = taking(DType::F32, &[1, 64, 1, 64], |b, pixels| {
        let number = |value: f32| Tensor::from_f32(DType::F32, [], vec![value]).unwrap();
        let scaled = op(b, "mul", &[("x", pixels.into()), ("y", number(1.0 / 127.5).into())])?;
        let moved = op(b, "add", &[("x", scaled.into()), ("y", number(-1.0).into())])?;
        op(b, "cast", &[("x", moved.into()), ("dtype", "fp16".into())])
    });
    let report = quince_lint::lint(&package, &support::ENGINE);
    let found: Vec<_> = report.findings.iter().map(|finding| (finding.rule.id, finding.severity)).collect();
    assert_eq!(found, [("float32", quince_lint::Severity::Warning); 2]);
    // A state of [B, C, 1, S].
    only("state-position", |b, x| {
        let cache = state(b, "cache", &[1, 64, 1, 128]);
        let old = op(b, "read_state", &[("input", cache.into())])?;
        let (begin, end) = ([0, 0, 0, 0], [1, 64, 1, 64]);
        let all = op(
            b,
            "slice_update",
            &[("x", old.into()), ("update", x.into()), ("begin", begin.into()), ("end", end.into())],
        )?;
        b.ops("write_state", "write", &[("input", cache.into()), ("data", all.into())])?;
        op(b, "silu", &[("x", all.into())])
    });
}
