//! What is stored, read back by the definition of `constexpr_lut_to_dense`.

use super::*;
use crate::test_weights::{group_of, values_of, weight, with_threads};

const SHAPES: [(&[usize], PaletteGranularity); 8] = [
    (&[16, 6], PaletteGranularity::PerTensor),
    (&[700, 901], PaletteGranularity::PerTensor),
    (&[37], PaletteGranularity::PerGroupedChannel { axis: 0, group_size: 37 }),
    (&[12, 5, 3], PaletteGranularity::PerGroupedChannel { axis: 0, group_size: 1 }),
    (&[24, 7], PaletteGranularity::PerGroupedChannel { axis: 0, group_size: 3 }),
    (&[3, 8, 5], PaletteGranularity::PerGroupedChannel { axis: 1, group_size: 2 }),
    (&[400, 800], PaletteGranularity::PerGroupedChannel { axis: 1, group_size: 16 }),
    (&[2, 3, 6], PaletteGranularity::PerGroupedChannel { axis: 2, group_size: 3 }),
];

fn options(nbits: usize, mode: PaletteMode, granularity: PaletteGranularity) -> PalettizeOptions {
    PalettizeOptions { nbits: Nbits::new(nbits).unwrap(), mode, granularity, lut: Float::F16, table: TableType::Float }
}

/// Each element's table entry, and its group.
fn restored(palettized: &Palettized) -> Vec<(f64, usize)> {
    let shape = palettized.indices.shape();
    let (groups, entries) = palettized.lut.shape().split_at(shape.len());
    assert_eq!(entries[1], 1);
    let lut = palettized.lut.to_f64().unwrap();
    let codes = palettized.indices.codes().unwrap();
    let group = |element| group_of(element, shape, groups);
    codes.iter().enumerate().map(|(i, &c)| (lut[group(i) * entries[0] + usize::from(c)], group(i))).collect()
}

#[test]
fn each_element_gets_the_nearest_entry_of_the_best_table_of_its_group() {
    for (shape, granularity) in SHAPES {
        for dtype in [DType::F16, DType::BF16, DType::F32] {
            for nbits in [1, 3, 4, 8] {
                let case = format!("{shape:?} {granularity:?} {dtype} {nbits}");
                let weight = weight(shape, dtype, nbits as u64);
                let palettized = palettize(&weight, &options(nbits, PaletteMode::KMeans, granularity)).unwrap();
                let (values, restored) = (values_of(&weight), restored(&palettized));
                let sse: f64 = values.iter().zip(&restored).map(|(v, r)| (v - r.0).powi(2)).sum();
                assert!((sse - palettized.sse).abs() <= 1e-9 * sse, "{case}: {sse}, said {}", palettized.sse);
                let groups: usize = palettized.lut.len() >> nbits;
                let mut members = vec![Vec::new(); groups];
                values.iter().zip(&restored).for_each(|(&v, r)| members[r.1].push(v as f32));
                let best = |members: &Vec<f32>| {
                    let points = Points::new(members).unwrap();
                    points.sse(&kmeans::cluster(&points, 1 << nbits, Float::F16).unwrap())
                };
                let least: f64 = members.iter().map(best).sum();
                assert!((sse - least).abs() <= 1e-9 * least, "{case}: found {sse}, least {least}");
            }
        }
    }
}

#[test]
fn threads_change_nothing() {
    for (shape, granularity) in SHAPES {
        for dtype in [DType::F16, DType::F32] {
            let weight = weight(shape, dtype, 5);
            let run = || palettize(&weight, &options(3, PaletteMode::KMeans, granularity)).unwrap();
            let (one, three) = (with_threads(1, run), with_threads(3, run));
            assert!(one.indices.same(&three.indices) && one.lut.same(&three.lut) && one.sse == three.sse, "{shape:?}");
        }
    }
}

#[test]
fn uniform_entries_are_evenly_spaced_from_least_to_greatest() {
    let weight = Weight::from_tensor("w", Tensor::vector(vec![-1.0f32, 0.24, 0.26, 2.0, 1.6]));
    let palettized = palettize(&weight, &options(2, PaletteMode::Uniform, PaletteGranularity::PerTensor)).unwrap();
    assert_eq!(palettized.lut.to_f64().unwrap(), [-1.0, 0.0, 1.0, 2.0]);
    assert_eq!(palettized.indices.codes().unwrap(), [0, 1, 1, 3, 3]);
    let constant = Weight::from_tensor("w", Tensor::vector(vec![0.5f32; 3]));
    let palettized = palettize(&constant, &options(1, PaletteMode::Uniform, PaletteGranularity::PerTensor)).unwrap();
    assert_eq!((palettized.lut.to_f64().unwrap(), palettized.sse), (vec![0.5, 0.5], 0.0));
}

#[test]
fn unique_is_exact_or_an_error() {
    let weight = Weight::from_tensor("w", Tensor::vector(vec![3.0f32, -0.0, 1.0, 0.0, 3.0]));
    let palettized = palettize(&weight, &options(2, PaletteMode::Unique, PaletteGranularity::PerTensor)).unwrap();
    assert_eq!(palettized.lut.to_f64().unwrap(), [0.0, 1.0, 3.0, 3.0]);
    assert_eq!(palettized.indices.codes().unwrap(), [2, 0, 1, 0, 2]);
    let error = palettize(&weight, &options(1, PaletteMode::Unique, PaletteGranularity::PerTensor)).unwrap_err();
    assert!(error.to_string().starts_with("found 3 distinct values in one group, expected at most 2"), "{error}");
}

#[test]
fn errors_say_what_was_found_and_what_would_do() {
    let grouped = |axis, group_size| {
        let granularity = PaletteGranularity::PerGroupedChannel { axis, group_size };
        palettize(&weight(&[12, 4], DType::F16, 1), &options(4, PaletteMode::KMeans, granularity))
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        grouped(0, 8),
        "group size 8 does not divide dimension 12 of axis 0; hint: sizes that do: 1, 2, 3, 4, 6, 12"
    );
    assert!(grouped(1, 0).contains("hint: sizes that do: 1, 2, 4"));
    assert_eq!(grouped(2, 1), "axis 2 is not an axis of a weight of shape [12, 4]");
    for dtype in [DType::F16, DType::BF16, DType::F32] {
        for (_, granularity) in [SHAPES[0], SHAPES[4], SHAPES[5]] {
            let mut values = values_of(&weight(&[6, 8], DType::F32, 1));
            values[29] = f64::NAN;
            let weight = Weight::from_tensor("w", Tensor::from_f64(dtype, [6, 8], values).unwrap());
            let error = palettize(&weight, &options(4, PaletteMode::KMeans, granularity)).unwrap_err();
            assert_eq!(error.to_string(), "element 29 is NaN, expected a finite number");
        }
    }
    let empty = Weight::from_tensor("w", Tensor::from_vec([0, 4], Vec::<f32>::new()).unwrap());
    assert!(palettize(&empty, &options(4, PaletteMode::KMeans, PaletteGranularity::PerTensor)).is_err());
    let integers = Weight::from_tensor("w", Tensor::vector(vec![1i32, 2]));
    assert!(palettize(&integers, &options(4, PaletteMode::KMeans, PaletteGranularity::PerTensor)).is_err());
    assert!(Nbits::new(5).is_err());
}
