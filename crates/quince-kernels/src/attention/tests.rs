//! Attention against its definition in f64.

use super::super::testing::{Random, assert_close, every_isa};
use super::*;

/// The definition, in the order of the formula: all weights of one row of one head.
fn weights(
    a: &Attention,
    q: &[f32],
    key: impl Fn(usize, usize) -> f32,
    entry: impl Fn(usize) -> f64,
    head: usize,
) -> Vec<f64> {
    let mut weights: Vec<f64> = (0..a.positions)
        .map(|p| {
            let dot: f64 = q.iter().enumerate().map(|(i, &x)| f64::from(x) * f64::from(key(p, i))).sum();
            let score = dot * f64::from(a.scale);
            a.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh()) + entry(p)
        })
        .collect();
    let sink = a.sinks.map_or(f64::NEG_INFINITY, |sinks| f64::from(sinks[head]));
    let max = weights.iter().fold(sink, |max, &w| max.max(w));
    let max = if max == f64::NEG_INFINITY { 0.0 } else { max };
    weights.iter_mut().for_each(|w| *w = (*w - max).exp());
    let total: f64 = weights.iter().sum::<f64>() + (sink - max).exp();
    let nothing = total == 0.0 && a.unseen.is_nan();
    weights.iter_mut().for_each(|w| *w = if nothing { f64::NAN } else { *w / total.max(f64::MIN_POSITIVE) });
    weights
}

/// Masks of the kind asked for, as the entry of every (head, row, position) and as what the kernel takes.
struct Masks {
    ranges: Vec<Range<usize>>,
    additive: Vec<f32>,
    /// Without entries that hide.
    bias: Vec<f32>,
    seen: Vec<bool>,
}

impl Masks {
    fn new(random: &mut Random, batch: usize, heads: usize, rows: usize, positions: usize) -> Masks {
        let ranges: Vec<_> = (0..rows)
            .map(|row| {
                let end = (positions + row + 1).saturating_sub(rows).min(positions);
                random.below(end + 1) * (row % 2)..end
            })
            .collect();
        let additive = (0..batch * heads * rows * positions)
            .map(|_| match random.below(4) {
                0 => f32::NEG_INFINITY,
                1 => -3e4,
                _ => random.normal(1)[0],
            })
            .collect();
        let seen = (0..batch * heads * rows * positions).map(|_| random.below(3) == 0).collect();
        Masks { ranges, additive, bias: random.normal(heads * rows * positions), seen }
    }
}

fn check(a: &Attention, seed: u64) {
    let mut random = Random::new(seed);
    let Attention { batch, heads, kv_heads, rows, positions, dim, value_dim, .. } = *a;
    let q = random.normal(batch * heads * rows * dim);
    let halves = |x: Vec<f32>| x.into_iter().map(f16::from_f32).collect::<Vec<_>>();
    // Positions that no row may see hold NaN, which would show in a result if they were read.
    let mut k = halves(random.normal(batch * kv_heads * (positions + 3) * dim));
    let v32 = random.normal(batch * kv_heads * positions * value_dim);
    for head in 0..batch * kv_heads {
        k[(head * (positions + 3) + positions) * dim..(head + 1) * (positions + 3) * dim].fill(f16::NAN);
    }
    let masks = Masks::new(&mut random, batch, heads, rows, positions);
    let added = |batch, head, row| Added { data: &masks.additive, strides: Strides { batch, head, row } };
    let bias = Added { data: &masks.bias, strides: Strides { batch: 0, head: rows * positions, row: positions } };
    let every = added(heads * rows * positions, rows * positions, positions);
    let kinds = [
        Mask::Ranges(&masks.ranges),
        Mask::Additive(&[every]),
        Mask::Additive(&[added(0, 0, positions)]),
        Mask::Additive(&[added(positions, 0, 0), bias]),
        Mask::Bool { data: &masks.seen, strides: Strides { batch: positions, ..Strides::default() } },
    ];
    for (kind, mask) in kinds.into_iter().enumerate() {
        every_isa(|kernels| {
            let mut out = vec![f32::NAN; batch * rows * heads * value_dim];
            let tokens_first = |rows: usize, heads: usize, dim: usize| Strides {
                batch: rows * heads * dim,
                head: dim,
                row: heads * dim,
            };
            let q_heads = Heads { data: &q, strides: tokens_first(rows, heads, dim) };
            let heads_first =
                Strides { batch: kv_heads * (positions + 3) * dim, head: (positions + 3) * dim, row: dim };
            let k_cache = Cache::F16 { data: &k, strides: heads_first };
            let v_cache = Cache::F32 { data: &v32, strides: tokens_first(positions, kv_heads, value_dim) };
            let to = HeadsMut { data: &mut out, strides: tokens_first(rows, heads, value_dim) };
            attention(kernels, a, q_heads, k_cache, v_cache, mask, to);
            let places = (0..batch).flat_map(|b| (0..heads).map(move |head| (b, head)));
            for (b, head, row) in places.flat_map(|(b, head)| (0..rows).map(move |row| (b, head, row))) {
                let kv = head / (heads / kv_heads);
                let entry = |p: usize| match mask {
                    Mask::Ranges(ranges) if ranges[row].contains(&p) => 0.0,
                    Mask::Additive(masks) => masks
                        .iter()
                        .map(|Added { data, strides: s }| {
                            f64::from(data[b * s.batch + head * s.head + row * s.row + p])
                        })
                        .sum(),
                    Mask::Bool { data, strides } if data[b * strides.batch + p] => 0.0,
                    _ => f64::NEG_INFINITY,
                };
                let query = &q[(b * rows + row) * heads * dim + head * dim..][..dim];
                let key = |p: usize, i: usize| k[((b * kv_heads + kv) * (positions + 3) + p) * dim + i].to_f32();
                let weights = weights(a, query, key, entry, head);
                for i in 0..value_dim {
                    let value = |p: usize| v32[((b * positions + p) * kv_heads + kv) * value_dim + i];
                    let expected: f64 = (0..positions).map(|p| weights[p] * f64::from(value(p))).sum();
                    let found = out[((b * rows + row) * heads + head) * value_dim + i];
                    let place = format!("{:?} mask {kind} {a:?} {b} {head} {row} {i}", kernels.isa);
                    if expected.is_nan() {
                        assert!(found.is_nan(), "{place}: found {found}, expected NaN");
                        continue;
                    }
                    assert_close(found, expected, 2e-5, &place);
                }
            }
        });
    }
}

fn shape(
    heads: usize,
    kv_heads: usize,
    rows: usize,
    positions: usize,
    dim: usize,
    value_dim: usize,
) -> Attention<'static> {
    let scale = 1.0 / (dim as f32).sqrt();
    Attention {
        batch: 1,
        heads,
        kv_heads,
        rows,
        positions,
        dim,
        value_dim,
        scale,
        softcap: None,
        sinks: None,
        unseen: f32::NAN,
    }
}

#[test]
fn decode_over_short_and_split_caches() {
    check(&shape(4, 2, 1, 1, 8, 8), 30);
    check(&shape(6, 2, 1, 700, 64, 64), 31);
    check(&shape(1, 1, 2, 1100, 20, 12), 32);
    check(&shape(2, 1, 3, 0, 8, 8), 42);
}

#[test]
fn rows_that_see_nothing_may_be_zero() {
    check(&Attention { unseen: 0.0, ..shape(4, 2, 1, 1, 8, 8) }, 30);
    check(&Attention { unseen: 0.0, ..shape(1, 1, 2, 1100, 20, 12) }, 32);
}

#[test]
fn prefill_in_blocks_of_rows() {
    check(&shape(4, 4, 70, 70, 16, 40), 33);
    check(&shape(8, 1, 13, 200, 80, 72), 34);
    check(&shape(9, 3, 200, 64, 24, 8), 35);
}

#[test]
fn batches_do_not_see_each_other() {
    check(&Attention { batch: 3, ..shape(4, 2, 17, 17, 32, 32) }, 39);
    check(&Attention { batch: 2, ..shape(2, 2, 1, 600, 12, 36) }, 40);
    check(&Attention { batch: 5, ..shape(12, 12, 7, 9, 8, 24) }, 41);
}

#[test]
#[should_panic(expected = "rows overlap")]
fn rows_of_the_result_that_overlap_are_refused() {
    let (x, mut out) = ([0.0; 64], [0.0; 64]);
    let strides = Strides { batch: 0, head: 4, row: 8 };
    let (q, kv) = (Heads { data: &x, strides }, Cache::F32 { data: &x, strides });
    let to = HeadsMut { data: &mut out, strides };
    attention(&Kernels::new(1), &shape(2, 2, 3, 3, 4, 8), q, kv, kv, Mask::Additive(&[]), to);
}

#[test]
fn softcap_and_sinks() {
    let sinks = [0.5, -1.0, 2.0, 0.0];
    check(&Attention { softcap: Some(1.5), sinks: Some(&sinks), ..shape(4, 2, 5, 100, 32, 32) }, 36);
    check(&Attention { sinks: Some(&sinks), ..shape(4, 1, 1, 600, 8, 8) }, 37);
}

#[test]
fn threads_change_nothing() {
    let mut random = Random::new(38);
    let a = shape(4, 2, 3, 1500, 32, 32);
    let (q, cache) = (random.normal(4 * 3 * 32), random.normal(2 * 1500 * 32));
    let run = |threads| {
        let mut out = vec![0.0; 4 * 3 * 32];
        let cache = Cache::F32 { data: &cache, strides: Strides { batch: 0, head: 1500 * 32, row: 32 } };
        let strides = Strides { batch: 0, head: 32, row: 128 };
        let (q, to) = (Heads { data: &q, strides }, HeadsMut { data: &mut out, strides });
        attention(&Kernels::new(threads), &a, q, cache, cache, Mask::Ranges(std::slice::from_ref(&(0..1500))), to);
        out
    };
    assert_eq!(run(1), run(3));
}
