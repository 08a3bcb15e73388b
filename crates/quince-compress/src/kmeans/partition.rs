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
        let at = (0..=count).map(|i| self.at[i * self.last() / count]).collect();
        Self { pivot: self.pivot, at }
    }

    /// The last split point, which is the number of points.
    fn last(&self) -> usize {
        self.at.len() - 1
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
    /// Until it is asked for, the solution in which each point is a run.
    many: Option<Solution>,
}

struct Solution {
    path: Path,
    cost: f64,
    /// The penalty for which it is best, if it was found so.
    lambda: Option<f64>,
}

impl Solution {
    fn new<R: Rounding>(sums: &Sums, path: Path, lambda: Option<f64>) -> Self {
        Self { cost: sums.path_cost::<R>(&path), path, lambda }
    }

    fn runs(&self) -> usize {
        self.path.len() - 1
    }
}

/// The path of `k` edges and least cost.
fn best_path<R: Rounding>(sums: &Sums, k: usize) -> Path {
    // A coarse problem of the same shape tells λ nearly; the exact one then takes one solution, seldom two.
    let count = (COARSE_PER_RUN * k).max(COARSE_MINIMUM);
    let lambda = if k > 1 && count * 2 < sums.last() { middle_slope(&sums.coarse(count), k) } else { None };
    search::<R>(sums, k, lambda).path
}

/// The middle of the penalties for which `k` runs are best, which lie between f(k) - f(k + 1) and f(k - 1) - f(k): the
/// one that is most likely to be best for `k` runs of a problem that differs a little.
fn middle_slope(sums: &Sums, k: usize) -> Option<f64> {
    let lambda = search::<RoundNone>(sums, k, None).lambda?;
    // As λ goes with k^-3.
    let cost = |runs: usize| search::<RoundNone>(sums, runs, Some(lambda * (k as f64 / runs as f64).powi(3))).cost;
    Some((cost(k - 1) - cost(k + 1)) / 2.0)
}

/// Split points of the coarse problem for each run, and at least.
const COARSE_PER_RUN: usize = 16;
const COARSE_MINIMUM: usize = 384;

/// The solution with `k` runs, of more than `k` points, given a first guess of its penalty.
fn search<R: Rounding>(sums: &Sums, k: usize, guess: Option<f64>) -> Solution {
    let last = sums.last();
    let mut bracket = Bracket { few: Solution::new::<R>(sums, vec![0, last], None), many: None };
    if k == 1 {
        return bracket.few;
    }
    // 2.72·σ²/k² is the error of the best quantizer of Gaussian values (Panter, Dite 1951).
    let mut lambda = guess.unwrap_or(5.44 * bracket.few.cost / (k as f64).powi(3));
    let mut solver = Solver::new(last);
    let mut step = 1;
    loop {
        let chord = (step % 3 == 0 || lambda.is_nan() || lambda <= 0.0).then(|| bracket.chord::<R>(sums));
        lambda = chord.unwrap_or(lambda);
        let found = Solution::new::<R>(sums, solver.solve::<R>(sums, lambda), Some(lambda));
        if found.runs() == k {
            return found;
        }
        if chord.is_some() && !bracket.is_above(&found, lambda) {
            return Solution::new::<R>(sums, bracket.splice(k), Some(lambda));
        }
        bracket.narrow(found, k);
        lambda = bracket.guess(k);
        step += 1;
    }
}

impl Bracket {
    /// The slope of the line between the two solutions in the plane of runs and cost.
    fn chord<R: Rounding>(&mut self, sums: &Sums) -> f64 {
        let each = || Solution::new::<R>(sums, (0..=sums.last()).collect(), None);
        let many = self.many.get_or_insert_with(each);
        (self.few.cost - many.cost) / (many.runs() - self.few.runs()) as f64
    }

    /// Whether `found`, the best solution for the slope of the chord, lies between the two and below the chord. If not,
    /// f is linear between them.
    fn is_above(&self, found: &Solution, chord: f64) -> bool {
        let level = self.few.cost + chord * self.few.runs() as f64;
        let below = level - (found.cost + chord * found.runs() as f64);
        let within = found.runs() > self.few.runs() && self.many.as_ref().is_none_or(|many| found.runs() < many.runs());
        within && below > level * 1e-13
    }

    fn narrow(&mut self, found: Solution, k: usize) {
        if found.runs() < k { self.few = found } else { self.many = Some(found) }
    }

    /// The penalty at which the number of runs should be `k`: a straight line through what is known,
    /// in logarithms; with one point only, λ goes as k^-3. Not positive when nothing is known.
    fn guess(&self, k: usize) -> f64 {
        let known = |s: &Solution| s.lambda.map(|lambda| (lambda, (k as f64 / s.runs() as f64).ln()));
        match (known(&self.few), self.many.as_ref().and_then(known)) {
            (Some((upper, a)), Some((lower, b))) => {
                let share = a / (a - b);
                (upper.ln() * (1.0 - share) + lower.ln() * share).exp()
            }
            (Some((lambda, ratio)), None) | (None, Some((lambda, ratio))) => lambda * (-3.0 * ratio).exp(),
            (None, None) => 0.0,
        }
    }

    /// A path of `k` edges from one of fewer and one of more, both best for the same penalty: it starts
    /// as the first and ends as the second. Where an edge of the first covers the edge of the second
    /// that is `more - k` further on, the paths can change places without loss.
    fn splice(&self, k: usize) -> Path {
        let few = &self.few.path;
        let Some(Solution { path: many, .. }) = &self.many else { return few.clone() };
        let shift = many.len() - 1 - k;
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
        let last = sums.last();
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
        while let Some(&(back, start)) = self.queue.get(head..).and_then(<[_]>::last) {
            let (back, start) = (back as usize, (start as usize).max(j + 1));
            if self.ahead::<R>(sums, j, back, start) {
                self.queue.pop();
                continue;
            }
            if let Some(target) = self.overtakes::<R>(sums, j, back, start) {
                self.queue.push((j as u32, target as u32));
            }
            return;
        }
        self.queue.push((j as u32, j as u32 + 1));
    }

    /// The first target after `behind` at which `j` is ahead of `back`. Most candidates overtake soon after the one
    /// before: steps that double find the place quickly, halves find it exactly.
    fn overtakes<R: Rounding>(&self, sums: &Sums, j: usize, back: usize, mut behind: usize) -> Option<usize> {
        let mut step = 1;
        let mut ahead_at = loop {
            let target = (behind + step).min(sums.last());
            if target == behind {
                return None;
            }
            if self.ahead::<R>(sums, j, back, target) {
                break target;
            }
            (behind, step) = (target, step * 2);
        };
        while ahead_at - behind > 1 {
            let middle = behind + (ahead_at - behind) / 2;
            if self.ahead::<R>(sums, j, back, middle) { ahead_at = middle } else { behind = middle }
        }
        Some(ahead_at)
    }

    #[inline(always)]
    fn ahead<R: Rounding>(&self, sums: &Sums, j: usize, back: usize, target: usize) -> bool {
        self.through::<R>(sums, j, target) < self.through::<R>(sums, back, target)
    }
}
