//! k-means of short vectors: seeded by k-means++ with several candidates for each centroid, on a sample, several times;
//! the best seeds are refined by Lloyd's algorithm on all vectors.
//!
//! In more than one dimension the optimum is out of reach, so that care with the seeds is what there is. No step depends
//! on the number of threads: pseudo-random numbers have a fixed seed, sums are taken in the order of the vectors.

use crate::Float;
use quince_tensor::{Result, bail};
use rayon::prelude::*;

/// Vectors of `D` elements in blocks, each of which has the first elements of its vectors, then the second, ...
pub(crate) struct Vectors<const D: usize> {
    blocks: Vec<[[f32; BLOCK]; D]>,
    len: usize,
}

/// Vectors that are compared with a centroid at a time, in the lanes of a processor.
const BLOCK: usize = 32;
/// Blocks of a task.
const TASK: usize = 128;
/// Vectors of a sample for each centroid.
const SAMPLE: usize = 32;
/// How often seeds are chosen, and how many candidates there are for each.
const RESTARTS: u64 = 3;
const CANDIDATES: usize = 4;
/// The most rounds of Lloyd's algorithm on a sample and on everything, and the least gain that is worth another.
const SAMPLE_ROUNDS: usize = 5;
const ROUNDS: usize = 30;
const GAIN: f64 = 1e-4;

impl<const D: usize> Vectors<D> {
    pub(crate) fn new(vectors: impl IntoIterator<Item = [f32; D]>) -> Self {
        let (mut blocks, mut len) = (Vec::new(), 0);
        for vector in vectors {
            if len % BLOCK == 0 {
                blocks.push([[0.0; BLOCK]; D]);
            }
            if let Some(block) = blocks.last_mut() {
                (0..D).for_each(|d| block[d][len % BLOCK] = vector[d]);
            }
            len += 1;
        }
        Self { blocks, len }
    }

    fn get(&self, i: usize) -> [f32; D] {
        std::array::from_fn(|d| self.blocks[i / BLOCK][d][i % BLOCK])
    }

    fn sample(&self, count: usize) -> Self {
        Self::new((0..count).map(|i| self.get((i as u128 * self.len as u128 / count as u128) as usize)))
    }
}

/// At most `k` centroids with a small sum of squared distances, as they are when stored in `table`.
///
/// # Errors
/// When there are no vectors or no centroids, or one is beyond the range of `table`.
pub(crate) fn cluster<const D: usize>(vectors: &Vectors<D>, k: usize, table: Float) -> Result<Vec<[f32; D]>> {
    if k == 0 || vectors.len == 0 {
        bail!("found {} vectors for {k} clusters, expected at least 1 of both", vectors.len);
    }
    let sample = vectors.sample(vectors.len.min(k.saturating_mul(SAMPLE)));
    let seeds = (0..RESTARTS).into_par_iter().map(|restart| {
        let mut random = Random(restart);
        lloyd(&sample, seeds(&sample, k, &mut random), SAMPLE_ROUNDS)
    });
    let seeds: Vec<(Vec<[f32; D]>, f64)> = seeds.collect();
    let Some((best, _)) = seeds.into_iter().min_by(|a, b| a.1.total_cmp(&b.1)) else { bail!("no seeds") };
    let (centroids, _) = lloyd(vectors, best, ROUNDS);
    let stored = |centroid: [f32; D]| {
        let values = table.store(centroid.iter().map(|&v| f64::from(v)).collect())?;
        Ok(std::array::from_fn(|d| values[d] as f32))
    };
    centroids.into_iter().map(stored).collect()
}

/// The number of the nearest centroid for each vector, and the sum of squared distances. At most 256 centroids.
pub(crate) fn assign<const D: usize>(vectors: &Vectors<D>, centroids: &[[f32; D]]) -> (Vec<u8>, f64) {
    let tasks: Vec<(Vec<u8>, f64)> = vectors
        .blocks
        .par_chunks(TASK)
        .enumerate()
        .map(|(task, blocks)| {
            let (mut codes, mut cost) = (Vec::with_capacity(blocks.len() * BLOCK), 0.0);
            for (number, block) in blocks.iter().enumerate() {
                let near = nearest(block, centroids);
                let real = BLOCK.min(vectors.len - (task * TASK + number) * BLOCK);
                codes.extend(near.code[..real].iter().map(|&code| code as u8));
                cost += near.distance[..real].iter().map(|&d| f64::from(d)).sum::<f64>();
            }
            (codes, cost)
        })
        .collect();
    let cost = tasks.iter().map(|task| task.1).sum();
    (tasks.into_iter().flat_map(|task| task.0).collect(), cost)
}

/// The nearest centroid of each vector of a block, and its squared distance.
struct Near {
    code: [u32; BLOCK],
    distance: [f32; BLOCK],
}

#[inline(always)]
fn nearest<const D: usize>(block: &[[f32; BLOCK]; D], centroids: &[[f32; D]]) -> Near {
    let mut near = Near { code: [0; BLOCK], distance: [f32::INFINITY; BLOCK] };
    for (number, centroid) in centroids.iter().enumerate() {
        for (i, (least, code)) in near.distance.iter_mut().zip(&mut near.code).enumerate() {
            let mut distance = 0.0;
            for (values, center) in block.iter().zip(centroid) {
                let difference = values[i] - center;
                distance += difference * difference;
            }
            // Written so that it becomes a comparison and two blends for many lanes.
            let closer = distance < *least;
            *least = if closer { distance } else { *least };
            *code = if closer { number as u32 } else { *code };
        }
    }
    near
}

/// What the vectors nearest to a centroid sum up to.
#[derive(Clone, Copy)]
struct Cell<const D: usize> {
    sum: [f64; D],
    count: u64,
    cost: f64,
}

/// Centroids and their cost after some rounds of moving each to the mean of its vectors.
fn lloyd<const D: usize>(vectors: &Vectors<D>, mut centroids: Vec<[f32; D]>, rounds: usize) -> (Vec<[f32; D]>, f64) {
    let mut before = f64::INFINITY;
    for _ in 0..rounds {
        let mut cells = cells(vectors, &centroids);
        let cost: f64 = cells.iter().map(|cell| cell.cost).sum();
        if cost >= before * (1.0 - GAIN) {
            return (centroids, cost.min(before));
        }
        before = cost;
        for (centroid, cell) in centroids.iter_mut().zip(&cells) {
            if cell.count > 0 {
                *centroid = std::array::from_fn(|d| (cell.sum[d] / cell.count as f64) as f32);
            }
        }
        split_worst(&mut centroids, &mut cells);
    }
    (centroids, before)
}

/// Gives each centroid without vectors half of the cell that costs most.
fn split_worst<const D: usize>(centroids: &mut [[f32; D]], cells: &mut [Cell<D>]) {
    for empty in 0..cells.len() {
        if cells[empty].count > 0 {
            continue;
        }
        let worst = (0..cells.len()).fold(0, |worst, i| if cells[i].cost > cells[worst].cost { i } else { worst });
        let (count, cost) = (cells[worst].count, cells[worst].cost);
        if count < 2 || cost == 0.0 {
            return;
        }
        let spread = (cost / count as f64 / D as f64).sqrt() as f32 * 0.5;
        centroids[empty] = centroids[worst].map(|v| v + spread);
        centroids[worst] = centroids[worst].map(|v| v - spread);
        cells[worst].cost = cost / 2.0;
        cells[worst].count = count / 2;
        cells[empty] = cells[worst];
    }
}

fn cells<const D: usize>(vectors: &Vectors<D>, centroids: &[[f32; D]]) -> Vec<Cell<D>> {
    let none = Cell { sum: [0.0; D], count: 0, cost: 0.0 };
    let tasks: Vec<Vec<Cell<D>>> = vectors
        .blocks
        .par_chunks(TASK)
        .enumerate()
        .map(|(task, blocks)| {
            let mut cells = vec![none; centroids.len()];
            for (number, block) in blocks.iter().enumerate() {
                let near = nearest(block, centroids);
                for i in 0..BLOCK.min(vectors.len - (task * TASK + number) * BLOCK) {
                    let cell = &mut cells[near.code[i] as usize];
                    (0..D).for_each(|d| cell.sum[d] += f64::from(block[d][i]));
                    cell.count += 1;
                    cell.cost += f64::from(near.distance[i]);
                }
            }
            cells
        })
        .collect();
    tasks.into_iter().fold(vec![none; centroids.len()], |mut all, task| {
        for (sum, cell) in all.iter_mut().zip(task) {
            (0..D).for_each(|d| sum.sum[d] += cell.sum[d]);
            sum.count += cell.count;
            sum.cost += cell.cost;
        }
        all
    })
}

/// k-means++ (Arthur, Vassilvitskii 2007), of several candidates each time the one that helps most.
fn seeds<const D: usize>(vectors: &Vectors<D>, k: usize, random: &mut Random) -> Vec<[f32; D]> {
    let mut seeds = vec![vectors.get((random.unit() * vectors.len as f64) as usize)];
    let mut distances: Vec<[f32; BLOCK]> = closer(vectors, seeds[0], None);
    while seeds.len() < k {
        let total = sum(&distances, vectors.len);
        if total <= 0.0 {
            break;
        }
        let tried = (0..CANDIDATES).map(|_| {
            let seed = vectors.get(pick(&distances, vectors.len, random.unit() * total));
            let after = closer(vectors, seed, Some(&distances));
            (seed, sum(&after, vectors.len), after)
        });
        let Some((seed, _, after)) = tried.min_by(|a, b| a.1.total_cmp(&b.1)) else { break };
        seeds.push(seed);
        distances = after;
    }
    seeds
}

/// The squared distance of each vector to `seed`, or to a seed before if that is nearer.
fn closer<const D: usize>(vectors: &Vectors<D>, seed: [f32; D], before: Option<&[[f32; BLOCK]]>) -> Vec<[f32; BLOCK]> {
    let mut distances: Vec<[f32; BLOCK]> =
        vectors.blocks.iter().map(|block| nearest(block, &[seed]).distance).collect();
    for (now, before) in distances.iter_mut().zip(before.unwrap_or_default()) {
        (0..BLOCK).for_each(|i| now[i] = now[i].min(before[i]));
    }
    distances
}

fn sum(distances: &[[f32; BLOCK]], len: usize) -> f64 {
    distances.as_flattened().iter().take(len).map(|&d| f64::from(d)).sum()
}

/// The vector at which the running sum of distances reaches `at`.
fn pick(distances: &[[f32; BLOCK]], len: usize, at: f64) -> usize {
    let mut running = 0.0;
    let reached = |&d: &f32| {
        running += f64::from(d);
        running > at
    };
    distances.as_flattened().iter().take(len).position(reached).unwrap_or(len.saturating_sub(1))
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    /// A number from 0 to below 1.
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_weights::{values_of, weight, with_threads};
    use quince_tensor::DType;

    fn vectors(count: usize) -> Vectors<2> {
        let values = values_of(&weight(&[count, 2], DType::F32, 5));
        Vectors::new(values.chunks(2).map(|v| [v[0] as f32, v[1] as f32]))
    }

    #[test]
    fn clusters_that_are_apart_are_found() {
        let corner = |i: usize| [[-5.0, -5.0], [5.0, -5.0], [-5.0, 5.0], [5.0, 5.0]][i % 4];
        let noise = values_of(&weight(&[4000, 2], DType::F32, 9));
        let points: Vec<[f32; 2]> =
            (0..4000).map(|i| [corner(i)[0] + noise[2 * i] as f32, corner(i)[1] + noise[2 * i + 1] as f32]).collect();
        let vectors = Vectors::new(points.iter().copied());
        let centroids = cluster(&vectors, 4, Float::F32).unwrap();
        let (codes, cost) = assign(&vectors, &centroids);
        assert!((0..4000).all(|i| codes[i] == codes[i % 4]));
        let own: f64 = points.iter().zip(&codes).map(|(p, &c)| distance(p, &centroids[usize::from(c)])).sum();
        assert!((own - cost).abs() < 1e-6 * own);
    }

    fn distance(a: &[f32; 2], b: &[f32; 2]) -> f64 {
        (0..2).map(|d| f64::from(a[d] - b[d]).powi(2)).sum()
    }

    #[test]
    fn each_vector_has_its_nearest_centroid_whatever_the_threads() {
        let vectors = vectors(5003);
        let run = |threads| with_threads(threads, || cluster(&vectors, 16, Float::F16).unwrap());
        let centroids = run(1);
        assert_eq!(centroids, run(3));
        let (codes, _) = assign(&vectors, &centroids);
        for (i, &code) in codes.iter().enumerate() {
            let own = distance(&vectors.get(i), &centroids[usize::from(code)]);
            assert!(centroids.iter().all(|other| own <= distance(&vectors.get(i), other) * (1.0 + 1e-5)));
        }
    }

    #[test]
    fn few_vectors_are_kept_as_they_are() {
        let vectors = Vectors::new([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]]);
        let centroids = cluster(&vectors, 16, Float::F16).unwrap();
        assert_eq!(assign(&vectors, &centroids).1, 0.0);
        assert!(cluster(&Vectors::<2>::new([]), 4, Float::F16).is_err());
    }
}
