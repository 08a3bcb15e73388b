//! Held against coremltools 9.0 on the same weights: `golden/coremltools.json`, written by
//! `tools/oracle/compress_vectors.py --golden`.

use quince_compress::{
    Float, LinearDType, LinearGranularity, LinearMode, LinearOptions, Nbits, PaletteGranularity, PaletteMode,
    PalettizeOptions, TableType, palettize, quantize_linear,
};
use quince_tensor::{DType, Tensor, Weight, f16};
use serde_json::Value;

fn cases() -> Vec<(Weight, Value)> {
    let file: Value = serde_json::from_str(include_str!("golden/coremltools.json")).unwrap();
    file.as_array().unwrap().iter().map(|case| (weight(case), case.clone())).collect()
}

fn weight(case: &Value) -> Weight {
    let shape = integers(&case["shape"]).iter().map(|&dim| dim as usize).collect::<Vec<_>>();
    let bits = integers(&case["bits"]);
    let tensor = match case["dtype"].as_str() {
        Some("float16") => Tensor::from_vec(shape, bits.iter().map(|&b| f16::from_bits(b as u16)).collect()),
        _ => Tensor::from_vec(shape, bits.iter().map(|&b| f32::from_bits(b as u32)).collect()),
    };
    Weight::from_tensor("w", tensor.unwrap())
}

fn integers(value: &Value) -> Vec<i64> {
    value.as_array().unwrap().iter().map(|v| v.as_i64().unwrap()).collect()
}

#[test]
fn palettization_never_costs_more() {
    for (weight, case) in cases() {
        for theirs in case["palettized"].as_array().unwrap() {
            let granularity = match theirs["group"].as_u64().unwrap() as usize {
                0 => PaletteGranularity::PerTensor,
                group_size => PaletteGranularity::PerGroupedChannel { axis: 0, group_size },
            };
            let mode = if theirs["mode"] == "kmeans" { PaletteMode::KMeans } else { PaletteMode::Uniform };
            let nbits = Nbits::new(theirs["nbits"].as_u64().unwrap() as usize).unwrap();
            let lut = Float::of_weight(weight.dtype()).unwrap();
            let ours = palettize(&weight, &PalettizeOptions { nbits, mode, granularity, lut, table: TableType::Float })
                .unwrap()
                .sse;
            let most = theirs["sse"].as_f64().unwrap();
            assert!(ours <= most + 1e-12, "{} {theirs}: ours {ours}", case["name"]);
        }
    }
}

#[test]
fn linear_quantization_has_the_same_grid() {
    for (weight, case) in cases() {
        for theirs in case["linear"].as_array().unwrap() {
            let options = linear_options(&weight, theirs);
            let ours = quantize_linear(&weight, &options).unwrap();
            let most = theirs["sse"].as_f64().unwrap();
            // The grids differ by the rounding of f16, which favours either.
            assert!(ours.sse <= most * 1.01, "{} {theirs}: ours {}", case["name"], ours.sse);
            if theirs["scale"].is_null() {
                continue;
            }
            let scales = ours.scale.to_f64().unwrap();
            assert_eq!(scales.len(), integers(&theirs["scale"]).len());
            for (ours, bits) in scales.iter().zip(integers(&theirs["scale"])) {
                let theirs = f64::from(f32::from_bits(bits as u32));
                assert!((ours - theirs).abs() <= theirs * 1e-6, "scale {ours}, theirs {theirs}");
            }
            let offset =
                ours.offset.map(|offset| offset.codes().unwrap().iter().map(|&c| signed(c, offset.dtype())).collect());
            assert_eq!(offset, theirs["offset"].is_array().then(|| integers(&theirs["offset"])), "{theirs}");
        }
    }
}

/// The integer that a code of `dtype` stands for.
fn signed(code: u8, dtype: DType) -> i64 {
    match dtype {
        DType::I4 => i64::from((code << 4) as i8 >> 4),
        DType::I8 => i64::from(code as i8),
        _ => i64::from(code),
    }
}

fn linear_options(weight: &Weight, case: &Value) -> LinearOptions {
    LinearOptions {
        dtype: match case["dtype"].as_str().unwrap() {
            "int4" => LinearDType::Int4,
            "uint4" => LinearDType::UInt4,
            "int8" => LinearDType::Int8,
            _ => LinearDType::UInt8,
        },
        mode: if case["mode"] == "linear" { LinearMode::Asymmetric } else { LinearMode::Symmetric },
        granularity: match integers(&case["blocks"])[..] {
            [0, 0] => LinearGranularity::PerTensor,
            [1, 0] => LinearGranularity::PerChannel { axis: 0 },
            [0, 1] => LinearGranularity::PerChannel { axis: 1 },
            _ => LinearGranularity::PerBlock { output_axis: 0, input_axis: 1, block_size: 8 },
        },
        scale: Float::of_weight(weight.dtype()).unwrap(),
    }
}
