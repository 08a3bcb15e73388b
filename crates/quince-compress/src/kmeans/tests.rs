//! The optimum, held against all partitions where they are few and against the plain dynamic programme elsewhere.

use super::*;
use quince_tensor::f16;

/// A small generator (SplitMix64), so that the cases are the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Sum of uniform numbers: nearly Gaussian, of variance 1.
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.unit()).sum::<f64>() - 6.0
    }
}

/// The cost of points `i..j` with the best centroid that `table` stores, straight from the definition.
fn run_cost(points: &Points, i: usize, j: usize, table: Float) -> f64 {
    let (values, weights) = (&points.values()[i..j], &points.weights()[i..j]);
    let mean = values.iter().zip(weights).map(|(v, w)| v * w).sum::<f64>() / weights.iter().sum::<f64>();
    let centroid = table.round(mean);
    values.iter().zip(weights).map(|(v, w)| w * (v - centroid) * (v - centroid)).sum()
}

/// The least cost of exactly `k` runs over all ways to place the splits.
fn brute_force(points: &Points, from: usize, k: usize, table: Float) -> f64 {
    let n = points.values().len();
    if k == 1 {
        return run_cost(points, from, n, table);
    }
    let splits = from + 1..=n - (k - 1);
    splits
        .map(|j| run_cost(points, from, j, table) + brute_force(points, j, k - 1, table))
        .fold(f64::INFINITY, f64::min)
}

/// The least cost of `k` runs by the dynamic programme in O(k n²).
fn dynamic_programme(points: &Points, k: usize, table: Float) -> f64 {
    let n = points.values().len();
    let cost: Vec<Vec<f64>> = (0..n).map(|i| (i + 1..=n).map(|j| run_cost(points, i, j, table)).collect()).collect();
    let mut best: Vec<f64> = std::iter::once(0.0).chain(std::iter::repeat_n(f64::INFINITY, n)).collect();
    for _ in 0..k {
        let reach = |j: usize| (0..j).map(|i| best[i] + cost[i][j - i - 1]).fold(f64::INFINITY, f64::min);
        best = (0..=n).map(reach).collect();
    }
    best[n]
}

/// Asserts that the table found costs `least`, but for rounding.
fn assert_optimal(points: &Points, k: usize, table: Float, least: f64, case: &str) {
    let centroids = cluster(points, k, table).unwrap();
    assert!(centroids.len() <= k && centroids.is_sorted(), "{case}: {centroids:?}");
    assert!(centroids.iter().all(|&c| table.round(c) == c), "{case}: not stored exactly");
    let found = points.sse(&centroids);
    assert!((found - least).abs() <= least * 1e-9 + 1e-20, "{case}: found {found}, least {least}");
}

fn random_values(random: &mut Random, n: usize, kind: usize) -> Vec<f32> {
    let value = |random: &mut Random| match kind {
        0 => random.normal() * 0.02,
        1 => (random.below(2 * n) as f64) - n as f64,
        2 => random.normal().powi(5) * 10.0,
        3 => 1.0 + random.normal() * 1e-3,
        4 => random.normal() * 1e-6,
        _ => random.normal() * 1e-3 + if random.below(20) == 0 { 500.0 } else { 0.0 },
    };
    (0..n).map(|_| f16::from_f64(value(random)).to_f32()).collect()
}

#[test]
fn no_partition_of_few_points_is_better() {
    let mut random = Random(1);
    for case in 0..600 {
        let n = 1 + random.below(12);
        let values = random_values(&mut random, n, case % 6);
        let importance: Vec<f64> = (0..n).map(|_| if case % 2 == 0 { 1.0 } else { random.unit() * 3.0 }).collect();
        let points = Points::with_importance(&values, &importance).unwrap();
        for k in 1..points.values().len() {
            for table in [Float::F16, Float::F32] {
                let least = brute_force(&points, 0, k, table);
                assert_optimal(&points, k, table, least, &format!("case {case}, k {k}, {values:?}"));
            }
        }
    }
}

#[test]
fn equals_the_plain_dynamic_programme() {
    let mut random = Random(2);
    for kind in 0..6 {
        for n in [40, 150, 450] {
            let values = random_values(&mut random, n, kind);
            let importance: Vec<f64> = (0..n).map(|_| random.unit() + 0.1).collect();
            let points = Points::with_importance(&values, &importance).unwrap();
            for k in [2, 3, 16, 64].into_iter().filter(|&k| k < points.values().len()) {
                let least = dynamic_programme(&points, k, Float::F16);
                assert_optimal(&points, k, Float::F16, least, &format!("kind {kind}, n {n}, k {k}"));
            }
        }
    }
}

#[test]
fn evenly_spaced_values_have_many_equal_optima() {
    // f(k) is linear between the divisors: no penalty has exactly k runs as its only answer.
    let values: Vec<f32> = (0..120).map(|i| i as f32 - 60.0).collect();
    let points = Points::new(&values).unwrap();
    for k in 2..120 {
        assert_optimal(&points, k, Float::F16, dynamic_programme(&points, k, Float::F16), &format!("k {k}"));
    }
}

#[test]
fn as_many_centroids_as_values_are_exact() {
    for values in [&[0.5; 9][..], &[-0.0, 0.0, 1.0, -1.0, 6e-8], &[3.0]] {
        let points = Points::new(values).unwrap();
        for k in [points.values().len(), 256] {
            let centroids = cluster(&points, k, Float::F16).unwrap();
            assert_eq!(centroids.len(), points.values().len());
            assert!(points.sse(&centroids) <= 1e-16, "{values:?}");
        }
    }
    let zeros = Points::new(&[-0.0, 0.0]).unwrap();
    assert_eq!((zeros.values(), zeros.weights()), (&[0.0][..], &[2.0][..]));
    assert!(zeros.values()[0].is_sign_positive());
}

#[test]
fn importance_counts_as_repetition_does() {
    let values = [0.1f32, 0.2, 0.35, 0.5, 0.9, 1.4];
    let counts = [3usize, 1, 0, 2, 1, 4];
    let repeated: Vec<f32> = values.iter().zip(counts).flat_map(|(&v, n)| std::iter::repeat_n(v, n)).collect();
    let importance: Vec<f64> = counts.iter().map(|&n| n as f64).collect();
    let weighted = Points::with_importance(&values, &importance).unwrap();
    assert_eq!(
        cluster(&weighted, 3, Float::F32).unwrap(),
        cluster(&Points::new(&repeated).unwrap(), 3, Float::F32).unwrap()
    );
    assert_eq!(Points::with_importance(&values, &[0.0; 6]).unwrap().values().len(), 6);
}

#[test]
fn what_has_no_optimum_is_refused() {
    for bad in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
        let error = Points::new(&[0.0, bad]).unwrap_err();
        assert!(error.to_string().starts_with("element 1 is "), "{error}");
    }
    assert!(Points::with_importance(&[1.0], &[-1.0]).is_err());
    assert!(Points::with_importance(&[1.0], &[f64::NAN]).is_err());
    assert!(Points::with_importance(&[1.0], &[]).is_err());
    assert!(cluster(&Points::new(&[1.0]).unwrap(), 0, Float::F16).is_err());
    let error = cluster(&Points::new(&[1e6, 2e6]).unwrap(), 2, Float::F16).unwrap_err();
    assert!(error.to_string().contains("beyond the range of fp16"), "{error}");
}
