//! Rotary position embedding, applied in place.

use super::Kernels;
use super::SharedMut;
use super::simd::{Simd, for_isa};

/// Which elements of a head form a pair that is rotated together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// `i` and `i + rotary / 2` (Hugging Face's Llama).
    HalfSplit,
    /// `2 i` and `2 i + 1` (the original paper, GGUF's Llama).
    Interleaved,
}

/// Where the heads lie and what they are rotated by. Head `h` of token `t` starts at
/// `t · token_stride + h · head_stride`; its first `rotary` elements turn, the others stay.
#[derive(Clone, Copy, Debug)]
pub struct Rotary<'a> {
    /// How elements are paired.
    pub style: RopeStyle,
    /// Number of tokens.
    pub tokens: usize,
    /// Number of heads.
    pub heads: usize,
    /// Elements from one token to the next.
    pub token_stride: usize,
    /// Elements from one head to the next.
    pub head_stride: usize,
    /// Elements of a head that are rotated; even.
    pub rotary: usize,
    /// Cosines: row `t` starts at `t · table_stride`, its first `rotary / 2` elements are used.
    pub cos: &'a [f32],
    /// Sines, laid out likewise.
    pub sin: &'a [f32],
    /// Elements from one row of the tables to the next.
    pub table_stride: usize,
}

/// Rotates each pair (a, b) of `x` to (a cos − b sin, b cos + a sin).
///
/// # Panics
/// When a head or a row of a table is not inside its slice, or heads overlap.
pub fn rope(kernels: &Kernels, rotary: &Rotary, x: &mut [f32]) {
    let Rotary { tokens, heads, token_stride, head_stride, rotary: dim, table_stride, .. } = *rotary;
    assert!(dim.is_multiple_of(2), "rotary dimension {dim} is odd");
    assert!(heads < 2 || head_stride >= dim, "heads overlap: stride {head_stride} for {dim} elements");
    let disjoint = token_stride >= heads.saturating_sub(1) * head_stride + dim || head_stride >= tokens * token_stride;
    assert!(tokens < 2 || disjoint, "tokens overlap: strides {token_stride} and {head_stride}");
    let isa = kernels.isa;
    let shared = SharedMut::new(x);
    let grain = (4096 / (heads * dim).max(1)).max(1);
    kernels.pool.run(tokens.div_ceil(grain), |task| {
        for token in task * grain..tokens.min((task + 1) * grain) {
            let table = token * table_stride..token * table_stride + dim / 2;
            let (cos, sin) = (&rotary.cos[table.clone()], &rotary.sin[table]);
            for head in 0..heads {
                // SAFETY: heads of different tokens and numbers do not overlap, as asserted above.
                let x = unsafe { shared.slice(token * token_stride + head * head_stride, dim) };
                match rotary.style {
                    RopeStyle::HalfSplit => {
                        for_isa!(isa, half_split(x: &mut [f32] = x, cos: &[f32] = cos, sin: &[f32] = sin));
                    }
                    RopeStyle::Interleaved => interleaved(x, cos, sin),
                }
            }
        }
    });
}

/// # Safety
/// The processor has the instructions of `S`.
#[inline(always)]
unsafe fn half_split<S: Simd>(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    let half = cos.len();
    let (first, second) = x.split_at_mut(half);
    let mut i = 0;
    // SAFETY: all four slices have `half` elements and every access is below that.
    unsafe {
        while i < half {
            let count = S::LANES.min(half - i);
            let (c, s) = (
                S::load_partial_or_full(cos.as_ptr().add(i), count),
                S::load_partial_or_full(sin.as_ptr().add(i), count),
            );
            let a = S::load_partial_or_full(first.as_ptr().add(i), count);
            let b = S::load_partial_or_full(second.as_ptr().add(i), count);
            a.mul(c).sub(b.mul(s)).store_partial_or_full(first.as_mut_ptr().add(i), count);
            b.mul(c).add(a.mul(s)).store_partial_or_full(second.as_mut_ptr().add(i), count);
            i += count;
        }
    }
}

fn interleaved(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    for ((pair, c), s) in x.chunks_exact_mut(2).zip(cos).zip(sin) {
        let (a, b) = (pair[0], pair[1]);
        pair[0] = a * c - b * s;
        pair[1] = b * c + a * s;
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Random, assert_close, every_isa};
    use super::*;

    /// A rotation by an angle is multiplication of a complex number: the witness works on pairs, in f64.
    #[test]
    fn pairs_turn_and_the_rest_stays() {
        every_isa(|kernels| {
            let mut random = Random::new(2);
            for (tokens, heads, dim, rotary) in [(1, 1, 2, 2), (3, 2, 10, 6), (5, 3, 64, 64), (300, 4, 24, 20)] {
                let x = random.normal(tokens * heads * dim);
                let angles = random.normal(tokens * rotary / 2);
                let cos: Vec<f32> = angles.iter().map(|a| a.cos()).collect();
                let sin: Vec<f32> = angles.iter().map(|a| a.sin()).collect();
                for style in [RopeStyle::HalfSplit, RopeStyle::Interleaved] {
                    let mut y = x.clone();
                    let plan = Rotary {
                        style,
                        tokens,
                        heads,
                        token_stride: heads * dim,
                        head_stride: dim,
                        rotary,
                        cos: &cos,
                        sin: &sin,
                        table_stride: rotary / 2,
                    };
                    rope(kernels, &plan, &mut y);
                    for (at, head) in y.chunks_exact(dim).enumerate() {
                        let before = &x[at * dim..(at + 1) * dim];
                        assert_eq!(head[rotary..], before[rotary..]);
                        for i in 0..rotary / 2 {
                            let (a, b) = match style {
                                RopeStyle::HalfSplit => (i, i + rotary / 2),
                                RopeStyle::Interleaved => (2 * i, 2 * i + 1),
                            };
                            let angle = f64::from(angles[at / heads * rotary / 2 + i]);
                            let (re, im) = (f64::from(before[a]), f64::from(before[b]));
                            let place = format!("{:?} {style:?} dim {dim}", kernels.isa);
                            assert_close(head[a], re * angle.cos() - im * angle.sin(), 1e-5, &place);
                            assert_close(head[b], re * angle.sin() + im * angle.cos(), 1e-5, &place);
                        }
                    }
                }
            }
        });
    }
}
