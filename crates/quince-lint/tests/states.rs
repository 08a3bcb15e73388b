//! The rules on states and caches, each against a program that has its fault and no other.

mod support;

use quince_mil::{Builder, DType, Flexibility, TensorType, ValueType, Var};
use support::{found, half, only, op, package, reshape, state, update};

#[test]
fn states_that_do_not_work() {
    let wide = |shape: &'static [usize]| {
        move |b: &mut Builder, x: Var| {
            let cache = state(b, "cache", shape);
            let size = vec![1, 1, 1, *shape.last().unwrap() as i32];
            let inputs = [("x", x.into()), ("begin", vec![0; 4].into()), ("size", size.into())];
            let new = op(b, "slice_by_size", &inputs)?;
            update(b, cache, new)
        }
    };
    only("state-size", wide(&[1, 1, 270, 64]));
    only("state-size", wide(&[1, 1, 1024, 20]));
    only("state-count", |b, x| {
        let mut out = x;
        for name in ["a", "b", "c"] {
            let cache = state(b, name, &[1, 1, 128, 64]);
            let new = reshape(b, x, &[1, 1, 64, 64])?;
            let position = b.input("at", ValueType::tensor(DType::I32, &[4]), Flexibility::Fixed);
            let old = op(b, "read_state", &[("input", cache.into())])?;
            let end = op(b, "add", &[("x", position.into()), ("y", [1, 1, 64, 64].into())])?;
            out = op(
                b,
                "slice_update",
                &[("x", old.into()), ("update", new.into()), ("begin", position.into()), ("end", end.into())],
            )?;
            b.ops("write_state", "write", &[("input", cache.into()), ("data", out.into())])?;
        }
        Ok(out)
    });
    only("state-transpose", |b, x| {
        let cache = state(b, "cache", &[1, 1, 128, 64]);
        let new = reshape(b, x, &[1, 1, 64, 64])?;
        let all = update(b, cache, new)?;
        let turned = op(b, "transpose", &[("x", all.into()), ("perm", vec![0, 1, 3, 2].into())])?;
        op(b, "silu", &[("x", turned.into())])
    });
    only("state-unused", |b, x| {
        let cache = state(b, "cache", &[1, 64, 32, 64]);
        let old = op(b, "read_state", &[("input", cache.into())])?;
        op(b, "add", &[("x", x.into()), ("y", old.into())])
    });
    only("state-type", |b, x| {
        let ty = ValueType::State(TensorType::fixed(DType::I8, &[1, 1, 64, 64]));
        let cache = b.input("cache", ty, Flexibility::Fixed);
        let new = op(b, "quantize", &[("input", x.into()), ("scale", half(0.1)), ("output_dtype", "int8".into())])?;
        let new = reshape(b, new, &[1, 1, 64, 64])?;
        update(b, cache, new)?;
        op(b, "silu", &[("x", x.into())])
    });
}

#[test]
fn caches_that_are_shifted_scattered_or_too_long() {
    only("cache-shift", |b, x| {
        let cache = state(b, "window", &[1, 64, 32, 64]);
        let old = op(b, "read_state", &[("input", cache.into())])?;
        let rest = op(
            b,
            "slice_by_index",
            &[("x", old.into()), ("begin", [0, 0, 1, 0].into()), ("end", [1, 64, 32, 64].into())],
        )?;
        let all =
            op(b, "concat", &[("values", vec![rest, x].into()), ("axis", 2.into()), ("interleave", false.into())])?;
        b.ops("write_state", "write", &[("input", cache.into()), ("data", all.into())])?;
        op(b, "silu", &[("x", all.into())])
    });
    only("context-size", |b, x| {
        let cache = state(b, "cache", &[1, 1, 4096, 64]);
        let new = reshape(b, x, &[1, 1, 64, 64])?;
        update(b, cache, new)
    });
    only("state-position", |b, x| {
        let cache = state(b, "cache", &[1, 1, 128, 64]);
        let new = reshape(b, x, &[1, 1, 64, 64])?;
        let old = op(b, "read_state", &[("input", cache.into())])?;
        let end = [1, 1, 64, 64];
        let all = op(
            b,
            "slice_update",
            &[("x", old.into()), ("update", new.into()), ("begin", [0, 0, 0, 0].into()), ("end", end.into())],
        )?;
        b.ops("write_state", "write", &[("input", cache.into()), ("data", all.into())])?;
        op(b, "silu", &[("x", all.into())])
    });
    found(
        &["state-update", "unsupported-operation"],
        &package(|b, x| {
            let cache = state(b, "cache", &[128, 4096]);
            let old = op(b, "read_state", &[("input", cache.into())])?;
            let at = b.input("at", ValueType::tensor(DType::I32, &[1]), Flexibility::Fixed);
            let row = reshape(b, x, &[1, 4096])?;
            let all = op(
                b,
                "scatter",
                &[
                    ("data", old.into()),
                    ("indices", at.into()),
                    ("updates", row.into()),
                    ("axis", 0.into()),
                    ("mode", "update".into()),
                ],
            )?;
            b.ops("write_state", "write", &[("input", cache.into()), ("data", all.into())])?;
            op(b, "silu", &[("x", all.into())])
        }),
    );
}

#[test]
fn slots_that_a_mask_chooses_are_no_place_that_never_changes() {
    found(
        &[],
        &package(|b, x| {
            let cache = state(b, "cache", &[1, 64, 32, 64]);
            let old = op(b, "read_state", &[("input", cache.into())])?;
            let kept = op(b, "mul", &[("x", old.into()), ("y", half(0.5))])?;
            let new = op(b, "add", &[("x", kept.into()), ("y", x.into())])?;
            let (begin, end) = (vec![0; 4], vec![1, 64, 32, 64]);
            let inputs = [("x", old.into()), ("update", new.into()), ("begin", begin.into()), ("end", end.into())];
            let all = op(b, "slice_update", &inputs)?;
            b.ops("write_state", "write", &[("input", cache.into()), ("data", all.into())])?;
            let all = op(b, "read_state", &[("input", cache.into())])?;
            op(b, "silu", &[("x", all.into())])
        }),
    );
}
