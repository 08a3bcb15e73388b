//! The sum of squared errors of optimal palettization of the weight in a .npy file, for each number of bits and
//! granularity: `cargo run --release -p quince-compress --example sse FILE.npy`.
//! `tools/oracle/compress_vectors.py` sets them beside those of coremltools.
#![allow(clippy::print_stdout)]

use quince_compress::{Float, Nbits, PaletteGranularity, PaletteMode, PalettizeOptions, TableType, palettize};
use quince_tensor::{Bytes, DType, Tensor, Weight};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("usage: sse FILE.npy")?;
    let weight = Weight::from_tensor(&path, read_npy(&std::fs::read(&path)?).ok_or("not a .npy of fp16 or fp32")?);
    for group_size in [0, 8, 16] {
        let (name, granularity) = match group_size {
            0 => ("tensor".to_owned(), PaletteGranularity::PerTensor),
            _ => (group_size.to_string(), PaletteGranularity::PerGroupedChannel { axis: 0, group_size }),
        };
        if group_size > 0 && !weight.shape()[0].is_multiple_of(group_size) {
            continue;
        }
        for nbits in Nbits::ALL {
            let lut = Float::of_weight(weight.dtype())?;
            let options =
                PalettizeOptions { nbits, mode: PaletteMode::KMeans, granularity, lut, table: TableType::Float };
            println!("{}/{name} {:e}", nbits.get(), palettize(&weight, &options)?.sse);
        }
    }
    Ok(())
}

/// The array of a .npy file of version 1 in C order.
fn read_npy(file: &[u8]) -> Option<Tensor> {
    let length = usize::from(u16::from_le_bytes([*file.get(8)?, *file.get(9)?]));
    let header = std::str::from_utf8(file.get(10..10 + length)?).ok()?;
    let dtype = match () {
        () if header.contains("'<f2'") => DType::F16,
        () if header.contains("'<f4'") => DType::F32,
        () => return None,
    };
    let (_, shape) = header.split_once("'shape': (")?;
    let (shape, _) = shape.split_once(')')?;
    let shape = shape.split(',').map(str::trim).filter(|dim| !dim.is_empty());
    let shape: Vec<usize> = shape.map(|dim| dim.parse().ok()).collect::<Option<_>>()?;
    Tensor::new(dtype, shape, Bytes::from_vec(file.get(10 + length..)?.to_vec())).ok()
}
