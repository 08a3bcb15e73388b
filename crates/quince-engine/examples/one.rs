use quince_engine::kernels::*;
use std::time::Instant;
fn main() {
    let kernels = Kernels::new(std::env::args().nth(1).map_or(1, |t| t.parse().unwrap()));
    let m: usize = std::env::args().nth(2).map_or(64, |t| t.parse().unwrap());
    let n: usize = std::env::args().nth(4).map_or(768, |t| t.parse().unwrap());
    let k: usize = std::env::args().nth(5).map_or(2048, |t| t.parse().unwrap());
    let mut seed = 1u64;
    let mut next = || {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1);
        (seed >> 33) as f32 / 2f32.powi(31) - 0.5
    };
    let x: Vec<f32> = (0..m * k).map(|_| next()).collect();
    let f16s: Vec<half::f16> = (0..n * k).map(|_| half::f16::from_f32(next())).collect();
    let tables: Vec<f32> = (0..n / 16 * 16).map(|_| next()).collect();
    let ix = |bits: usize| -> Vec<u8> { (0..n * k * bits / 8).map(|i| (i * 7919 >> 3) as u8).collect() };
    let sc =
        |c: usize| -> Floats { (0..c).map(|i| half::f16::from_f32(0.01 + i as f32 * 1e-6)).collect::<Vec<_>>().into() };
    let ws = vec![
        ("lut4", PackedWeight::lut(n, k, 4, ix(4).into(), &tables.clone().into(), GroupAxis::Rows).unwrap()),
        ("f16", PackedWeight::dense(n, k, f16s.into()).unwrap()),
        ("int8", PackedWeight::affine(n, k, CodeType::Int8, ix(8).into(), sc(n), None, [n, 1]).unwrap()),
        (
            "int4b32",
            PackedWeight::affine(n, k, CodeType::Int4, ix(4).into(), sc(n * k / 32), None, [n, k / 32]).unwrap(),
        ),
    ];
    let only = std::env::args().nth(3).unwrap_or_default();
    for acc in [Accuracy::Default, Accuracy::Exact] {
        for (name, w) in &ws {
            if !format!("{name}{acc:?}").contains(&only) {
                continue;
            }
            let mut y = vec![0.0; m * n];
            let mut best = f64::INFINITY;
            let start = Instant::now();
            while start.elapsed().as_secs_f64() < 1.0 {
                let t = Instant::now();
                linear(&kernels, acc, &x, w, None, &mut y);
                best = best.min(t.elapsed().as_secs_f64());
            }
            println!(
                "{name} {acc:?} m {m}: {:.1} GFLOP/s {:.1} GB/s  {:.0} us",
                2.0 * (m * n * k) as f64 / best * 1e-9,
                w.byte_len() as f64 / best * 1e-9,
                best * 1e6
            );
        }
    }
}
