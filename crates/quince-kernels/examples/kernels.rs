//! Speed of the kernels on this machine, beside what memory and arithmetic allow.
//!
//! `cargo run --release -p quince-kernels --example kernels [name part]`

#![allow(clippy::print_stdout, reason = "a benchmark prints")]

use std::time::Instant;

use half::f16;
use quince_kernels::{
    Accuracy, Attention, Cache, CodeType, Floats, GroupAxis, Heads, HeadsMut, Kernels, LANES, Mask, PackedWeight,
    PanelSizes, Strided, Strides, attention, linear, multiply_panels,
};
use quince_tensor::Bytes;

fn main() {
    let wanted = std::env::args().nth(1).unwrap_or_default();
    for threads in [1, 2] {
        let kernels = Kernels::new(threads);
        let bench = Bench { kernels, wanted: &wanted };
        println!("{} threads, {}", threads, bench.kernels.isa.name());
        bench.read();
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("fma") {
            bench.peak();
        }
        bench.region();
        for (rows, cols) in [(2048, 8192), (128_256, 2048)] {
            for (name, weight) in weights(rows, cols) {
                bench.decode(&name, &weight);
            }
        }
        for (name, weight) in weights(8192, 2048) {
            for m in [16, 64, 512] {
                bench.prefill(&name, &weight, m);
            }
        }
        for n in [2048, 8192] {
            bench.panels(n);
        }
        bench.attend(1, 2048);
        bench.attend(512, 512);
    }
}

struct Bench<'a> {
    kernels: Kernels,
    wanted: &'a str,
}

impl Bench<'_> {
    /// Runs `f` until half a second has passed and prints its best rate; `amount` is what one call handles.
    fn time(&self, name: &str, amount: f64, unit: &str, mut f: impl FnMut()) {
        if !name.contains(self.wanted) {
            return;
        }
        let (start, mut best) = (Instant::now(), f64::INFINITY);
        while start.elapsed().as_secs_f64() < 0.4 {
            let call = Instant::now();
            f();
            best = best.min(call.elapsed().as_secs_f64());
        }
        println!("  {name:<40} {:>8.2} {unit:<8} {:>10.1} us", amount / best * 1e-9, best * 1e6);
    }

    /// The machine's read bandwidth, from the same pages and threads as weights.
    fn read(&self) {
        let data: Vec<u64> = (0..32 << 20).collect();
        let chunk = data.len() / 64;
        let sums: Vec<std::sync::atomic::AtomicU64> = (0..64).map(|_| Default::default()).collect();
        self.time("read", 8.0 * data.len() as f64, "GB/s", || {
            self.kernels.pool.run(64, |i| {
                let sum = data[i * chunk..(i + 1) * chunk].iter().fold(0u64, |sum, x| sum ^ x);
                sums[i].store(sum, std::sync::atomic::Ordering::Relaxed);
            });
        });
    }

    /// The arithmetic peak of 256-bit vectors: independent multiply-adds in registers.
    #[cfg(target_arch = "x86_64")]
    fn peak(&self) {
        use std::arch::x86_64::{_mm256_fmadd_ps, _mm256_set1_ps, _mm256_storeu_ps};
        const ROUNDS: usize = 100_000;
        #[target_feature(enable = "avx,fma")]
        fn multiply_adds(out: &mut [f32; 8]) {
            let a = _mm256_set1_ps(std::hint::black_box(0.5));
            let mut sums = std::hint::black_box([a; 12]);
            for _ in 0..ROUNDS {
                sums.iter_mut().for_each(|sum| *sum = _mm256_fmadd_ps(*sum, a, a));
            }
            for sum in sums {
                // SAFETY: `out` has room for a vector.
                unsafe { _mm256_storeu_ps(out.as_mut_ptr(), sum) };
                std::hint::black_box(&mut *out);
            }
        }
        let tasks = 16 * self.kernels.pool.threads();
        self.time("peak f32", (tasks * ROUNDS * 12 * 16) as f64, "GFLOP/s", || {
            // SAFETY: the caller has asked for FMA.
            self.kernels.pool.run(tasks, |_| unsafe { multiply_adds(&mut [0.0; 8]) });
        });
    }

    fn region(&self) {
        self.time("empty region x 100", 100.0, "G/s", || (0..100).for_each(|_| self.kernels.pool.run(2, |_| {})));
    }

    fn decode(&self, name: &str, weight: &PackedWeight) {
        let x = numbers(weight.cols());
        let mut y = vec![0.0; weight.rows()];
        for accuracy in [Accuracy::Default, Accuracy::Exact] {
            let name = format!("decode {accuracy:?} {name} [{}, {}]", weight.rows(), weight.cols());
            self.time(&name, weight.byte_len() as f64, "GB/s", || {
                linear(&self.kernels, accuracy, &x, weight, None, &mut y);
            });
        }
    }

    fn prefill(&self, name: &str, weight: &PackedWeight, m: usize) {
        let (n, k) = (weight.rows(), weight.cols());
        let x = numbers(m * k);
        let mut y = vec![0.0; m * n];
        for accuracy in [Accuracy::Default, Accuracy::Exact] {
            self.time(
                &format!("prefill {accuracy:?} {m} x {name} [{n}, {k}]"),
                2.0 * (m * n * k) as f64,
                "GFLOP/s",
                || {
                    linear(&self.kernels, accuracy, &x, weight, None, &mut y);
                },
            );
        }
    }

    /// A square matrix by panels, each thread with its own, as compression does it: the matrix as it lies, and a product of
    /// inputs with themselves, of which both sides lie in panels.
    fn panels(&self, n: usize) {
        const COLUMNS: usize = 128;
        let (tasks, stride) = (self.kernels.pool.threads(), n + 16);
        let (a, x) = (numbers(n * stride), numbers(n * COLUMNS));
        let results: Vec<_> = (0..tasks).map(|_| std::sync::Mutex::new(vec![0.0; n * COLUMNS])).collect();
        let (plain, turned) = (Strided { data: &a, row: stride, term: 1 }, Strided { data: &a, row: 1, term: LANES });
        for (rows, terms, a) in [(n, n, plain), (n, 48, plain), (48, n, plain), (1, 24, plain), (LANES, n, turned)] {
            let sizes = PanelSizes { rows, terms, columns: COLUMNS, right: n * LANES, row: LANES, panel: n * LANES };
            let how = if a.term == 1 { "plain" } else { "turned" };
            let name = format!("panels {how} [{rows}, {terms} of {n}] x {COLUMNS}");
            self.time(&name, 2.0 * (tasks * rows * terms * COLUMNS) as f64, "GFLOP/s", || {
                self.kernels.pool.run(tasks, |task| {
                    let mut y = results[task].lock().unwrap();
                    multiply_panels(self.kernels.isa, sizes, 1.0, a, &x, &mut y);
                });
            });
        }
    }

    /// Grouped-query attention of the Llama-3.2-1B shape over a full cache.
    fn attend(&self, rows: usize, positions: usize) {
        let (heads, kv_heads, dim) = (32, 8, 64);
        let q = numbers(heads * rows * dim);
        let cache: Vec<f16> = numbers(kv_heads * positions * dim).into_iter().map(f16::from_f32).collect();
        let cache = Cache::F16 { data: &cache, strides: Strides { batch: 0, head: positions * dim, row: dim } };
        let mut out = vec![0.0; heads * rows * dim];
        let ranges: Vec<_> = (0..rows).map(|row| 0..positions - rows + row + 1).collect();
        let seen: usize = ranges.iter().map(|range| range.len()).sum();
        let shape = Attention {
            batch: 1,
            heads,
            kv_heads,
            rows,
            positions,
            dim,
            value_dim: dim,
            scale: 0.125,
            softcap: None,
            sinks: None,
            unseen: f32::NAN,
        };
        let (amount, unit) = match rows {
            1 => ((kv_heads * positions * dim * 4) as f64, "GB/s"),
            _ => ((4 * heads * seen * dim) as f64, "GFLOP/s"),
        };
        self.time(&format!("attention {rows} x {positions}"), amount, unit, || {
            let strides = Strides { batch: 0, head: dim, row: heads * dim };
            let (q, out) = (Heads { data: &q, strides }, HeadsMut { data: &mut out, strides });
            attention(&self.kernels, &shape, q, cache, cache, Mask::Ranges(&ranges), out);
        });
    }
}

fn weights(rows: usize, cols: usize) -> Vec<(String, PackedWeight)> {
    let n = rows * cols;
    let halves = |n| -> Floats { numbers(n).into_iter().map(f16::from_f32).collect::<Vec<_>>().into() };
    let mut weights = Vec::new();
    for nbits in [4, 3, 2, 1, 6, 8] {
        let lut =
            PackedWeight::lut(rows, cols, nbits, bytes(n * nbits / 8), &halves((rows / 16) << nbits), GroupAxis::Rows);
        weights.push((format!("lut{nbits} group 16"), lut));
    }
    weights.push(("f16".to_string(), PackedWeight::dense(rows, cols, halves(n))));
    let int8 = PackedWeight::affine(rows, cols, CodeType::Int8, bytes(n), halves(rows), None, [rows, 1]);
    weights.push(("int8 channel".to_string(), int8));
    let grid = [rows, cols / 32];
    let int4 = PackedWeight::affine(rows, cols, CodeType::Int4, bytes(n / 2), halves(grid[0] * grid[1]), None, grid);
    weights.push(("int4 block 32".to_string(), int4));
    weights.into_iter().map(|(name, weight)| (name, weight.expect("parts of the right length"))).collect()
}

fn numbers(n: usize) -> Vec<f32> {
    let mut state = 1u32;
    (0..n).map(|_| random(&mut state) as i32 as f32 / 2f32.powi(31)).collect()
}

fn bytes(n: usize) -> Bytes {
    let mut state = 2u32;
    (0..n).map(|_| (random(&mut state) >> 24) as u8).collect::<Vec<u8>>().into()
}

fn random(state: &mut u32) -> u32 {
    *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
    *state
}
