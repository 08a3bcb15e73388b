//! Splitting sorted points into k runs of least total cost: a shortest path with exactly k edges.
//!
//! The cost w(i, j) of the run (i, j] is its weighted squared distance to the best centroid that can
//! be stored. It satisfies the quadrangle inequality w(a, c) + w(b, d) <= w(a, d) + w(b, c) for
//! a <= b <= c <= d, whatever set the centroids come from: of the centroids p of (a, d] and q of
//! (b, c], the lower serves (a, c] and the upper (b, d] no worse. Two things follow.
//!
//! - The least cost f(k) is convex in k, so that some penalty λ on each run makes the *unrestricted*
//!   shortest path have k runs (Aggarwal, Schieber, Tokuyama: "Finding a minimum-weight k-link path in
//!   graphs with the concave Monge property and applications", 1994). Where f is linear around k, two
//!   paths with fewer and more runs are spliced into one with exactly k.
//! - For one λ, a candidate that has overtaken an earlier one stays ahead, so that a queue of
//!   candidates with the points from which they lead finds the path in O(n log n), in practice O(n)
//!   (Galil, Park: "Dynamic programming with convexity, concavity and sparsity", 1992).
//!
//! A solution for one λ costs about as much as one of the k rows of the usual dynamic programme.

use super::Points;
use crate::Float;

/// The means of the `k` runs of least cost, ascending. There must be more than `k` points.
pub(super) fn means(points: &Points, k: usize, table: Float) -> Vec<f64> {
    let sums = Sums::new(points);
    let path = match table {
        Float::F16 => best_path::<RoundF16>(&sums, k),
        Float::F32 => best_path::<RoundNone>(&sums, k),
    };
    path.windows(2).map(|edge| sums.mean(edge[0], edge[1])).collect()
}

/// Split points from 0 to n; one more than there are runs.
type Path = Vec<usize>;

/// Sums over the points between the pivot and a split point; negative below the pivot.
#[derive(Clone, Copy, Default)]
struct Sum {
    weight: f64,
    first: f64,
    second: f64,
}

/// Sums of weight, weight·x and weight·x² at each split point, with x relative to the pivot.
///
/// They start at the median and run outwards: the sums of a run near the middle never contain the
/// squares of outliers, whose rounding would swamp them.
struct Sums {
    pivot: f64,
    at: Vec<Sum>,
}

impl Sums {
    fn new(points: &Points) -> Self {
        let (values, weights) = (points.values(), points.weights());
        let middle = values.len() / 2;
        let pivot = values[middle];
        let mut at = vec![Sum::default(); values.len() + 1];
        for i in middle..values.len() {
            at[i + 1] = at[i].plus(values[i] - pivot, weights[i]);
        }
        for i in (0..middle).rev() {
            at[i] = at[i + 1].plus(values[i] - pivot, -weights[i]);
        }
        Self { pivot, at }
    }

    /// The same points, split only at `count` + 1 places.
    fn coarse(&self, count: usize) -> Self {
        let last = self.at.len() - 1;
        let at = (0..=count).map(|i| self.at[i * last / count]).collect();
        Self { pivot: self.pivot, at }
    }

    fn mean(&self, i: usize, j: usize) -> f64 {
        let (a, b) = (self.at[i], self.at[j]);
        self.pivot + (b.first - a.first) / (b.weight - a.weight)
    }

    fn path_cost<R: Rounding>(&self, path: &Path) -> f64 {
        path.windows(2).map(|e| cost::<R>(self.pivot, self.at[e[0]], self.at[e[1]])).sum()
    }
}

impl Sum {
    fn plus(self, x: f64, weight: f64) -> Self {
        Self { weight: self.weight + weight, first: self.first + weight * x, second: self.second + weight * x * x }
    }
}

/// The cost of the run between two split points: its spread about the mean, and the mean's distance
/// to the nearest centroid that can be stored.
#[inline(always)]
fn cost<R: Rounding>(pivot: f64, a: Sum, b: Sum) -> f64 {
    let (weight, first) = (b.weight - a.weight, b.first - a.first);
    let mean = first / weight;
    (b.second - a.second) - first * mean + R::penalty(pivot + mean, weight)
}

/// What storing a centroid costs.
trait Rounding {
    /// `weight` times the squared distance from `mean` to the nearest value that can be stored.
    fn penalty(mean: f64, weight: f64) -> f64;
}

/// Centroids as they are; for f32 tables, whose rounding is 2^-48 of the square.
struct RoundNone;

impl Rounding for RoundNone {
    #[inline(always)]
    fn penalty(_: f64, _: f64) -> f64 {
        0.0
    }
}

/// Centroids of 11 significant bits, or multiples of 2^-24 below 2^-14.
struct RoundF16;

impl Rounding for RoundF16 {
    #[inline(always)]
    fn penalty(mean: f64, weight: f64) -> f64 {
        // Veltkamp's splitting keeps the upper 53 - 42 bits; adding 1.5·2^28 keeps multiples of 2^-24.
        const SPLIT: f64 = (1u64 << 42) as f64 + 1.0;
        const GRID: f64 = 1.5 * (1u64 << 28) as f64;
        const NORMAL: f64 = 1.0 / (1u64 << 14) as f64;
        let scaled = mean * SPLIT;
        let normal = scaled - (scaled - mean);
        let subnormal = (mean + GRID) - GRID;
        let stored = if mean.abs() < NORMAL { subnormal } else { normal };
        weight * (mean - stored) * (mean - stored)
    }
}

/// Two known solutions, one with fewer runs than wanted and one with more.
struct Bracket {
    few: Solution,
    many: Solution,
}

struct Solution {
    path: Path,
    cost: f64,
    /// The penalty for which it is best, if it was found so.
    lambda: Option<f64>,
}

impl Solution {
    fn runs(&self) -> usize {
        self.path.len() - 1
    }
}

/// The path of `k` edges and least cost.
fn best_path<R: Rounding>(sums: &Sums, k: usize) -> Path {
    // A coarse problem of the same shape tells λ nearly; the exact one then takes one or two solutions.
    let count = (COARSE_PER_RUN * k).max(COARSE_MINIMUM);
    let lambda =
        if count * 2 < sums.at.len() { search::<RoundNone>(&sums.coarse(count), k, None).lambda } else { None };
    search::<R>(sums, k, lambda).path
}

/// Split points of the coarse problem for each run, and at least.
const COARSE_PER_RUN: usize = 16;
const COARSE_MINIMUM: usize = 384;

/// The solution with `k` runs, given a first guess of its penalty.
fn search<R: Rounding>(sums: &Sums, k: usize, guess: Option<f64>) -> Solution {
    let last = sums.at.len() - 1;
    let solution = |path: Path, lambda| Solution { cost: sums.path_cost::<R>(&path), path, lambda };
    let mut bracket = Bracket { few: solution(vec![0, last], None), many: solution((0..=last).collect(), None) };
    if k == 1 {
        return bracket.few;
    }
    if k == last {
        return bracket.many;
    }
    // 2.72·σ²/k² is the error of the best quantizer of Gaussian values (Panter, Dite 1951).
    let power = 5.44 * bracket.few.cost / (k as f64).powi(3);
    let mut lambda = guess.unwrap_or(power);
    let mut solver = Solver::new(last);
    for step in 1.. {
        let chord = bracket.chord();
        if step % 3 == 0 || !(lambda > 0.0) {
            lambda = chord;
        }
        let found = solution(solver.solve::<R>(sums, lambda), Some(lambda));
        if found.runs() == k {
            return found;
        }
        // At the chord's slope nothing lies below the chord: f is linear between its ends.
        let level = bracket.few.cost + chord * bracket.few.runs() as f64;
        let below = level - (found.cost + chord * found.runs() as f64);
        if lambda == chord && below <= level * 1e-13 {
            return solution(bracket.splice(k), Some(lambda));
        }
        bracket.narrow(found, k);
        lambda = bracket.guess(k);
    }
    unreachable!("every third step narrows the bracket or ends the search")
}

impl Bracket {
    /// The slope of the line between the two solutions in the plane of runs and cost.
    fn chord(&self) -> f64 {
        (self.few.cost - self.many.cost) / (self.many.runs() - self.few.runs()) as f64
    }

    fn narrow(&mut self, found: Solution, k: usize) {
        if found.runs() < k { self.few = found } else { self.many = found }
    }

    /// The penalty at which the number of runs should be `k`: a straight line through what is known,
    /// in logarithms; with one point only, λ goes as k^-3.
    fn guess(&self, k: usize) -> f64 {
        let ratio = |runs: usize| (k as f64 / runs as f64).ln();
        match (self.few.lambda, self.many.lambda) {
            (Some(upper), Some(lower)) => {
                let (a, b) = (ratio(self.few.runs()), ratio(self.many.runs()));
                let share = a / (a - b);
                (upper.ln() * (1.0 - share) + lower.ln() * share).exp()
            }
            (Some(upper), None) => upper * (-3.0 * ratio(self.few.runs())).exp(),
            (None, Some(lower)) => lower * (-3.0 * ratio(self.many.runs())).exp(),
            (None, None) => self.chord(),
        }
    }

    /// A path of `k` edges from one of fewer and one of more, both best for the same penalty: it starts
    /// as the first and ends as the second. Where an edge of the first covers the edge of the second
    /// that is `more - k` further on, the paths can change places without loss.
    fn splice(&self, k: usize) -> Path {
        let (few, many) = (&self.few.path, &self.many.path);
        let shift = self.many.runs() - k;
        let covers = |i: &usize| few[*i] <= many[*i + shift] && many[*i + shift + 1] <= few[*i + 1];
        let i = (0..self.few.runs()).find(covers).unwrap_or(0);
        few[..=i].iter().chain(&many[i + shift + 1..]).copied().collect()
    }
}

/// The shortest path for one penalty, with the memory that one search needs.
struct Solver {
    /// The least cost to reach each split point, penalties included.
    reach: Vec<f64>,
    /// The split point before it on the best path.
    parent: Vec<u32>,
    /// Candidates for the last edge: a split point and the first target for which it is best.
    queue: Vec<(u32, u32)>,
}

impl Solver {
    fn new(last: usize) -> Self {
        Self { reach: vec![0.0; last + 1], parent: vec![0; last + 1], queue: Vec::new() }
    }

    fn solve<R: Rounding>(&mut self, sums: &Sums, lambda: f64) -> Path {
        let last = sums.at.len() - 1;
        self.queue.clear();
        self.queue.push((0, 1));
        let mut head = 0;
        for j in 1..=last {
            while self.queue.get(head + 1).is_some_and(|c| c.1 as usize <= j) {
                head += 1;
            }
            let parent = self.queue[head].0;
            self.parent[j] = parent;
            self.reach[j] = lambda + self.through::<R>(sums, parent as usize, j);
            if j < last {
                self.insert::<R>(sums, j, head);
            }
        }
        let mut path = vec![last];
        let mut at = last;
        while at > 0 {
            at = self.parent[at] as usize;
            path.push(at);
        }
        path.reverse();
        path
    }

    /// The cost of reaching `j` by an edge from `i`, without its penalty.
    #[inline(always)]
    fn through<R: Rounding>(&self, sums: &Sums, i: usize, j: usize) -> f64 {
        self.reach[i] + cost::<R>(sums.pivot, sums.at[i], sums.at[j])
    }

    /// Makes `j` a candidate from the first target on at which it is ahead of those in the queue.
    fn insert<R: Rounding>(&mut self, sums: &Sums, j: usize, head: usize) {
        let last = sums.at.len() - 1;
        while let Some(&(back, start)) = self.queue.get(head..).and_then(<[_]>::last) {
            let ahead = |t: usize| self.through::<R>(sums, j, t) < self.through::<R>(sums, back as usize, t);
            let start = (start as usize).max(j + 1);
            if ahead(start) {
                self.queue.pop();
                continue;
            }
            // Most candidates overtake soon after the one before: steps that double find it quickly.
            let (mut behind, mut step) = (start, 1);
            let found = loop {
                let t = (behind + step).min(last);
                if t == behind {
                    return;
                }
                if ahead(t) {
                    break t;
                }
                (behind, step) = (t, step * 2);
            };
            let mut ahead_at = found;
            while ahead_at - behind > 1 {
                let middle = behind + (ahead_at - behind) / 2;
                if ahead(middle) { ahead_at = middle } else { behind = middle }
            }
            self.queue.push((j as u32, ahead_at as u32));
            return;
        }
        self.queue.push((j as u32, j as u32 + 1));
    }
}
