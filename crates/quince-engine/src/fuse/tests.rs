//! Encoders written out as converters do, against the definition: the plan has the fused steps, the values are the same.

use crate::tests::{call, check, f32s, floats, start};
use quince_mil::{Builder, DType, Input, Tensor, ValueType, Var};

/// Sizes of an attention: batch, tokens, heads, key heads, dim.
#[derive(Clone, Copy)]
struct Sizes {
    b: usize,
    l: usize,
    h: usize,
    k: usize,
    d: usize,
}

fn ints<const N: usize>(values: [usize; N]) -> Input {
    values.map(|n| n as i32).into()
}

fn reshape<const N: usize>(b: &mut Builder, name: &str, x: Var, shape: [usize; N]) -> Var {
    b.op("reshape", name, &[("x", x.into()), ("shape", ints(shape))]).unwrap()
}

fn transpose<const N: usize>(b: &mut Builder, name: &str, x: Var, perm: [i32; N]) -> Var {
    b.op("transpose", name, &[("x", x.into()), ("perm", perm.into())]).unwrap()
}

fn matmul(b: &mut Builder, name: &str, x: Var, y: Var, transpose_y: bool) -> Var {
    b.op("matmul", name, &[("x", x.into()), ("y", y.into()), ("transpose_y", transpose_y.into())]).unwrap()
}

fn binary(b: &mut Builder, op: &str, name: &str, x: Var, y: impl Into<Input>) -> Var {
    b.op(op, name, &[("x", x.into()), ("y", y.into())]).unwrap()
}

fn softmax(b: &mut Builder, x: Var) -> Var {
    b.op("softmax", "softmax", &[("x", x.into()), ("axis", (-1).into())]).unwrap()
}

/// Queries, keys and values [B, L, heads · D] as inputs, with a mask [B, 1, 1, L].
fn projections(s: Sizes) -> (Builder, [Var; 4]) {
    let of = |heads: usize| f32s(&[s.b, s.l, heads * s.d]);
    let mask = f32s(&[s.b, 1, 1, s.l]);
    let (b, vars) = start(&[("q", of(s.h)), ("k", of(s.k)), ("v", of(s.k)), ("mask", mask)]);
    (b, vars.try_into().unwrap())
}

fn inputs(s: Sizes) -> Vec<(&'static str, Tensor)> {
    let of = |seed: u64, heads: usize| floats(seed, &[s.b, s.l, heads * s.d]);
    let mask: Vec<f32> = (0..s.b * s.l).map(|i| if i % s.l > i / s.l + 1 { -3e4 } else { 0.0 }).collect();
    let mask = Tensor::from_vec([s.b, 1, 1, s.l], mask).unwrap();
    vec![("q", of(1, s.h)), ("k", of(2, s.k)), ("v", of(3, s.k)), ("mask", mask)]
}

/// [B, L, heads · D] as [B, heads, L, D].
fn heads_first(b: &mut Builder, name: &str, x: Var, s: Sizes, heads: usize) -> Var {
    let split = reshape(b, &format!("{name}.split"), x, [s.b, s.l, heads, s.d]);
    transpose(b, &format!("{name}.heads"), split, [0, 2, 1, 3])
}

/// [B, H, L, D] as [B, L, H · D].
fn tokens_first(b: &mut Builder, x: Var, s: Sizes) -> Var {
    let tokens = transpose(b, "tokens", x, [0, 2, -3, -1]);
    reshape(b, "joined", tokens, [s.b, s.l, s.h * s.d])
}

const ODD: Sizes = Sizes { b: 3, l: 7, h: 2, k: 2, d: 6 };

#[test]
fn written_out_attention_is_one_step_that_transposes_nothing() {
    for (kind, s) in [("keys transposed", ODD), ("flag", ODD), ("scaled queries", Sizes { l: 70, b: 2, ..ODD })] {
        let (mut b, [q, k, v, mask]) = projections(s);
        let mut query = heads_first(&mut b, "q", q, s, s.h);
        let value = heads_first(&mut b, "v", v, s, s.k);
        if kind == "scaled queries" {
            query = binary(&mut b, "mul", "q.scaled", query, 0.4f32);
        }
        let mut scores = if kind == "keys transposed" {
            let split = reshape(&mut b, "k.split", k, [s.b, s.l, s.k, s.d]);
            let key = transpose(&mut b, "k.columns", split, [0, 2, 3, 1]);
            matmul(&mut b, "scores", query, key, false)
        } else {
            let key = heads_first(&mut b, "k", k, s, s.k);
            matmul(&mut b, "scores", query, key, true)
        };
        if kind != "scaled queries" {
            scores = binary(&mut b, "real_div", "divided", scores, 2.5f32);
        }
        let masked = binary(&mut b, "add", "masked", mask, scores);
        let weights = softmax(&mut b, masked);
        let sums = matmul(&mut b, "sums", weights, value, false);
        let y = tokens_first(&mut b, sums, s);
        assert_eq!(check(b.finish(vec![y]), &[call(&inputs(s))], 1e-5), ["attention"], "{kind}");
    }
}

#[test]
fn an_attention_whose_weights_are_wanted_gives_them_too() {
    let s = ODD;
    let (mut b, [q, k, v, mask]) = projections(s);
    let [query, key, value] = [("q", q), ("k", k), ("v", v)].map(|(name, x)| heads_first(&mut b, name, x, s, s.h));
    let scores = matmul(&mut b, "scores", query, key, true);
    let masked = binary(&mut b, "add", "masked", scores, mask);
    let weights = softmax(&mut b, masked);
    let sums = matmul(&mut b, "sums", weights, value, false);
    let y = tokens_first(&mut b, sums, s);
    let kinds = check(b.finish(vec![y, weights, sums]), &[call(&inputs(s))], 1e-5);
    assert_eq!(kinds.iter().filter(|kind| **kind == "attention").count(), 1, "{kinds:?}");
    assert!(kinds.contains(&"softmax"), "{kinds:?}");
}

#[test]
fn a_bias_of_positions_and_a_mask_are_both_added() {
    let s = ODD;
    let (mut b, [q, k, v, mask]) = projections(s);
    let bias = b.constant("bias", floats(9, &[1, s.h, s.l, s.l]).into());
    let [query, key, value] = [("q", q), ("k", k), ("v", v)].map(|(name, x)| heads_first(&mut b, name, x, s, s.h));
    let scores = matmul(&mut b, "scores", query, key, true);
    let scaled = binary(&mut b, "mul", "scaled", scores, 0.5f32);
    let biased = binary(&mut b, "add", "biased", scaled, bias);
    let masked = binary(&mut b, "add", "masked", biased, mask);
    let weights = softmax(&mut b, masked);
    let y = matmul(&mut b, "sums", weights, value, false);
    assert_eq!(check(b.finish(vec![y]), &[call(&inputs(s))], 1e-5), ["attention"]);
}

#[test]
fn fused_attention_reads_where_projections_left_their_results() {
    let s = Sizes { b: 2, l: 9, h: 6, k: 2, d: 5 };
    let (mut b, [q, k, v, mask]) = projections(s);
    let query = heads_first(&mut b, "q", q, s, s.h);
    // Keys and values are repeated for the heads of their group, as `repeat_kv` of transformers does.
    let [key, value] = [("k", k), ("v", v)].map(|(name, x)| {
        let heads = heads_first(&mut b, name, x, s, s.k);
        let inputs = [("x", heads.into()), ("axes", [2].into())];
        let apart = b.op("expand_dims", &format!("{name}.apart"), &inputs).unwrap();
        let inputs = [("x", apart.into()), ("reps", [1, 1, 3, 1, 1].into())];
        let repeated = b.op("tile", &format!("{name}.repeated"), &inputs).unwrap();
        reshape(&mut b, &format!("{name}.all"), repeated, [s.b, s.h, s.l, s.d])
    });
    let arguments = [("query", query.into()), ("key", key.into()), ("value", value.into()), ("attn_mask", mask.into())];
    let sums = b.op("scaled_dot_product_attention", "attention", &arguments).unwrap();
    let y = tokens_first(&mut b, sums, s);
    assert_eq!(check(b.finish(vec![y]), &[call(&inputs(s))], 1e-5), ["attention"]);
}

#[test]
fn attention_of_rank_three_and_masks_of_every_shape() {
    let (n, l, d) = (4, 5, 3);
    for mask in [vec![n, l, l], vec![1, 1, l], vec![l, 1], vec![n, l, 1], vec![1]] {
        let (mut b, vars) = start(&[("x", f32s(&[n, l, d])), ("mask", f32s(&mask))]);
        let scores = matmul(&mut b, "scores", vars[0], vars[0], true);
        let masked = binary(&mut b, "add", "masked", scores, vars[1]);
        let weights = softmax(&mut b, masked);
        let y = matmul(&mut b, "sums", weights, vars[0], false);
        let inputs = [("x", floats(1, &[n, l, d])), ("mask", floats(2, &mask))];
        assert_eq!(check(b.finish(vec![y]), &[call(&inputs)], 1e-5), ["attention"], "{mask:?}");
    }
}

#[test]
fn what_is_larger_than_the_scores_is_no_mask() {
    let (l, d) = (4, 3);
    let (mut b, vars) = start(&[("x", f32s(&[1, l, d])), ("mask", f32s(&[2, l, l])), ("v", f32s(&[2, l, d]))]);
    let scores = matmul(&mut b, "scores", vars[0], vars[0], true);
    let masked = binary(&mut b, "add", "masked", scores, vars[1]);
    let weights = softmax(&mut b, masked);
    let y = matmul(&mut b, "sums", weights, vars[2], false);
    let inputs = [("x", floats(1, &[1, l, d])), ("mask", floats(2, &[2, l, l])), ("v", floats(3, &[2, l, d]))];
    let kinds = check(b.finish(vec![y]), &[call(&inputs)], 1e-5);
    assert!(!kinds.contains(&"attention"), "{kinds:?}");
}

/// `layer_norm` with weight and bias.
fn layer_norm(b: &mut Builder, name: &str, x: Var, width: usize) -> Var {
    let [gamma, beta] = [("gamma", 20), ("beta", 21)]
        .map(|(kind, seed)| b.constant(&format!("{name}.{kind}"), floats(seed, &[width]).into()));
    let inputs = [
        ("x", x.into()),
        ("axes", [-1].into()),
        ("gamma", gamma.into()),
        ("beta", beta.into()),
        ("epsilon", 1e-5.into()),
    ];
    b.op("layer_norm", name, &inputs).unwrap()
}

#[test]
fn embeddings_and_residuals_are_added_where_they_are_normalised() {
    let (batch, l, d) = (3, 5, 7);
    let ids = ValueType::tensor(DType::I32, &[batch, l]);
    let (mut b, vars) = start(&[("ids", ids), ("x", f32s(&[batch, l, d]))]);
    let table = b.constant("table", floats(1, &[11, d]).into());
    let positions = b.constant("positions", floats(2, &[1, l, d]).into());
    let kind = b.constant("type", floats(3, &[d]).into());
    let lookup = [("x", table.into()), ("indices", vars[0].into()), ("axis", 0.into()), ("batch_dims", 0.into())];
    let words = b.op("gather", "words", &lookup).unwrap();
    let typed = binary(&mut b, "add", "typed", kind, words);
    let placed = binary(&mut b, "add", "placed", typed, positions);
    let first = layer_norm(&mut b, "first", placed, d);
    let residual = binary(&mut b, "add", "residual", first, vars[1]);
    let second = layer_norm(&mut b, "second", residual, d);
    // The sum is wanted by itself as well: then it is written down.
    let more = binary(&mut b, "add", "more", second, vars[1]);
    let third = layer_norm(&mut b, "third", more, d);
    let ids: Vec<i32> = (0..batch * l).map(|i| (i * 5 % 11) as i32).collect();
    let inputs = [("ids", Tensor::from_vec([batch, l], ids).unwrap()), ("x", floats(4, &[batch, l, d]))];
    let kinds = check(b.finish(vec![third, more]), &[call(&inputs)], 1e-5);
    assert_eq!(kinds, ["gather", "layer_norm", "layer_norm", "binary", "layer_norm"]);
}

#[test]
fn tokens_are_averaged_in_one_step() {
    let (mut b, vars) = start(&[("x", f32s(&[3, 5, 70])), ("mask", f32s(&[3, 5, 1]))]);
    let seen = binary(&mut b, "mul", "seen", vars[0], vars[1]);
    let mut sum = |op: &str, x: Var, axes: &[i32]| {
        let inputs = [("x", x.into()), ("axes", axes.to_vec().into()), ("keep_dims", false.into())];
        b.op(op, &format!("{op}{axes:?}"), &inputs).unwrap()
    };
    let (total, mean, middle) =
        (sum("reduce_sum", seen, &[1]), sum("reduce_mean", seen, &[-1, 0, 1]), sum("reduce_sum", seen, &[0, 1]));
    let inputs = [("x", floats(1, &[3, 5, 70])), ("mask", floats(2, &[3, 5, 1]))];
    let kinds = check(b.finish(vec![total, mean, middle]), &[call(&inputs)], 1e-5);
    assert_eq!(kinds, ["binary", "reduce", "reduce", "reduce"]);
}

#[test]
fn matrices_of_experts_are_read_packed_and_by_expert() {
    let (experts, rows, columns, tokens) = (3, 4, 8, 5);
    for (name, outer) in [("one x for all", 1), ("an x for each", experts)] {
        let (mut b, vars) = start(&[("x", f32s(&[1, outer, tokens, columns]))]);
        let codes: Vec<i8> = (0..experts * rows * columns).map(|i| (i * 37 % 255) as u8 as i8).collect();
        let data = Tensor::from_vec([experts * rows, columns], codes).unwrap();
        let scale = floats(3, &[experts * rows, 1]);
        let inputs = [("data", data.into()), ("scale", scale.into())];
        let weight = b.op("constexpr_blockwise_shift_scale", "weight", &inputs).unwrap();
        let matrices = reshape(&mut b, "matrices", weight, [1, experts, rows, columns]);
        let y = matmul(&mut b, "y", vars[0], matrices, true);
        let inputs = [("x", floats(4, &[1, outer, tokens, columns]))];
        assert_eq!(check(b.finish(vec![y]), &[call(&inputs)], 2e-3), ["matrices"], "{name}");
    }
}
