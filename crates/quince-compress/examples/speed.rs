//! Seconds and µs/weight of palettization, for a 4096 × 4096 weight whose values are arbitrary f16 or come from bf16:
//! `cargo run --release -p quince-compress --example speed [ROWS COLUMNS]`.
#![allow(clippy::print_stdout)]

use quince_compress::{Float, Nbits, PaletteGranularity, PaletteMode, PalettizeOptions, TableType, palettize};
use quince_tensor::{Tensor, Weight, bf16, f16};
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let sizes: Vec<usize> = std::env::args().skip(1).map(|a| a.parse()).collect::<Result<_, _>>()?;
    let (rows, columns) = (sizes.first().copied().unwrap_or(4096), sizes.get(1).copied().unwrap_or(4096));
    let values = gaussian(rows * columns);
    let arbitrary: Vec<f16> = values.iter().map(|&v| f16::from_f32(v)).collect();
    let from_bf16: Vec<f16> = values.iter().map(|&v| f16::from_f32(bf16::from_f32(v).to_f32())).collect();
    println!("{rows} x {columns}, seconds (µs/weight)");
    println!("{:<14} {:<12} bits {:>20} {:>20}", "values", "table", "1 thread", "2 threads");
    for (name, values) in [("f16", arbitrary), ("bf16 as f16", from_bf16)] {
        let weight = Weight::from_tensor(name, Tensor::from_vec([rows, columns], values)?);
        let grouped = PaletteGranularity::PerGroupedChannel { axis: 0, group_size: 16 };
        for (table, granularity) in [("per tensor", PaletteGranularity::PerTensor), ("group of 16", grouped)] {
            for nbits in [2, 3, 4, 6, 8] {
                let nbits = Nbits::new(nbits)?;
                let options = PalettizeOptions {
                    nbits,
                    mode: PaletteMode::KMeans,
                    granularity,
                    lut: Float::F16,
                    table: TableType::Float,
                };
                print!("{name:<14} {table:<12} {:>4}", nbits.get());
                for threads in [1, 2] {
                    let seconds = time(&weight, &options, threads)?;
                    print!(" {seconds:>9.3} ({:>8.5})", seconds * 1e6 / weight.len() as f64);
                }
                println!();
            }
        }
    }
    Ok(())
}

fn time(weight: &Weight, options: &PalettizeOptions, threads: usize) -> Result<f64, Box<dyn std::error::Error>> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    let start = Instant::now();
    pool.install(|| palettize(weight, options))?;
    Ok(start.elapsed().as_secs_f64())
}

/// Numbers of standard deviation 0.02, nearly Gaussian, from a linear congruential generator.
fn gaussian(count: usize) -> Vec<f32> {
    let mut state = 1u64;
    let mut unit = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 24) as f32
    };
    (0..count).map(|_| 0.02 * ((0..12).map(|_| unit()).sum::<f32>() - 6.0)).collect()
}
