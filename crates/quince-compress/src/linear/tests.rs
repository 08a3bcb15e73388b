//! What is stored, read back by the definition of `constexpr_blockwise_shift_scale`.

use super::*;
use crate::test_weights::{group_of, values_of, weight, with_threads};

const SHAPES: [(&[usize], LinearGranularity); 8] = [
    (&[5, 6], LinearGranularity::PerTensor),
    (&[700, 901], LinearGranularity::PerTensor),
    (&[700, 901], LinearGranularity::PerChannel { axis: 0 }),
    (&[400, 700], LinearGranularity::PerChannel { axis: 1 }),
    (&[3, 5, 2], LinearGranularity::PerChannel { axis: 1 }),
    (&[7, 12, 3], LinearGranularity::PerBlock { output_axis: 0, input_axis: 1, block_size: 4 }),
    (&[12, 7], LinearGranularity::PerBlock { output_axis: 1, input_axis: 0, block_size: 3 }),
    (&[600, 512], LinearGranularity::PerBlock { output_axis: 0, input_axis: 1, block_size: 32 }),
];
const DTYPES: [LinearDType; 4] = [LinearDType::Int4, LinearDType::UInt4, LinearDType::Int8, LinearDType::UInt8];
const MODES: [LinearMode; 2] = [LinearMode::Symmetric, LinearMode::Asymmetric];

/// The integers of a tensor, from their codes.
fn integers(tensor: &Tensor) -> Vec<f64> {
    let codes = tensor.codes().unwrap().into_iter();
    match tensor.dtype() {
        DType::I4 => codes.map(|code| f64::from((code << 4) as i8 >> 4)).collect(),
        DType::I8 => codes.map(|code| f64::from(code as i8)).collect(),
        _ => codes.map(f64::from).collect(),
    }
}

#[test]
fn each_element_is_within_half_a_step() {
    for (shape, granularity) in SHAPES {
        for (dtype, mode) in DTYPES.into_iter().flat_map(|dtype| MODES.map(|mode| (dtype, mode))) {
            for float in [Float::F16, Float::F32] {
                let case = format!("{shape:?} {granularity:?} {dtype:?} {mode:?} {float:?}");
                let weight = weight(shape, DType::F32, 3);
                let options = LinearOptions { dtype, mode, granularity, scale: float };
                let quantized = quantize_linear(&weight, &options).unwrap();
                let scale = quantized.scale.to_f64().unwrap();
                let offset = quantized.offset.as_ref().map(integers);
                let mut sse = 0.0;
                for (i, (value, data)) in values_of(&weight).iter().zip(integers(&quantized.data)).enumerate() {
                    let block = group_of(i, shape, quantized.scale.shape());
                    let restored = scale[block] * (data - offset.as_ref().map_or(0.0, |offset| offset[block]));
                    // An offset rounds as well, which can push the extreme element half a step further out.
                    let steps = if mode == LinearMode::Asymmetric { 1.02 } else { 0.51 };
                    let error = (value - restored).abs();
                    assert!(error <= steps * scale[block], "{case}: element {i}: {value} became {restored}");
                    sse += error * error;
                }
                assert!((sse - quantized.sse).abs() <= 1e-9 * sse, "{case}: {sse}, said {}", quantized.sse);
            }
        }
    }
}

#[test]
fn threads_change_nothing() {
    for (shape, granularity) in SHAPES {
        let weight = weight(shape, DType::F16, 5);
        let (dtype, mode) = (LinearDType::Int4, LinearMode::Asymmetric);
        let run = || quantize_linear(&weight, &LinearOptions { dtype, mode, granularity, scale: Float::F16 }).unwrap();
        let (one, three) = (with_threads(1, run), with_threads(3, run));
        assert!(one.data.same(&three.data) && one.scale.same(&three.scale) && one.sse == three.sse, "{shape:?}");
        assert!(one.offset.unwrap().same(&three.offset.unwrap()));
    }
}

#[test]
fn a_block_of_zeros_is_zero_again() {
    let weight = Weight::from_tensor("w", Tensor::from_vec([2, 2], vec![0.0f32, -0.0, 1.0, 2.0]).unwrap());
    for (dtype, mode) in DTYPES.into_iter().flat_map(|dtype| MODES.map(|mode| (dtype, mode))) {
        let granularity = LinearGranularity::PerChannel { axis: 0 };
        let quantized =
            quantize_linear(&weight, &LinearOptions { dtype, mode, granularity, scale: Float::F16 }).unwrap();
        let data = integers(&quantized.data);
        let offset = quantized.offset.map_or(0.0, |offset| integers(&offset)[0]);
        assert_eq!((data[0], data[1]), (offset, offset), "{dtype:?} {mode:?}");
    }
}

#[test]
fn a_scale_where_f16_is_coarse_still_covers_the_range() {
    // 1.3e-5 / 127 is 1.7 times the least f16; 1e-7 / 127 is far below it.
    for greatest in [1.3e-5f32, 1.9e-5, 1e-7] {
        let weight = Weight::from_tensor("w", Tensor::vector(vec![greatest, -greatest / 2.0]));
        let (dtype, mode, granularity) = (LinearDType::Int8, LinearMode::Symmetric, LinearGranularity::PerTensor);
        let quantized =
            quantize_linear(&weight, &LinearOptions { dtype, mode, granularity, scale: Float::F16 }).unwrap();
        let scale = quantized.scale.to_f64().unwrap()[0];
        let restored = integers(&quantized.data)[0] * scale;
        assert!((restored - f64::from(greatest)).abs() <= scale / 2.0, "{greatest} became {restored}");
    }
}

#[test]
fn errors_say_what_was_found_and_what_would_do() {
    let quantize = |granularity, values: Vec<f32>| {
        let weight = Weight::from_tensor("w", Tensor::from_vec([2, 6], values).unwrap());
        let (dtype, mode) = (LinearDType::Int8, LinearMode::Symmetric);
        let options = LinearOptions { dtype, mode, granularity, scale: Float::F16 };
        quantize_linear(&weight, &options).unwrap_err().to_string()
    };
    let block = |block_size| LinearGranularity::PerBlock { output_axis: 0, input_axis: 1, block_size };
    assert_eq!(
        quantize(block(4), vec![1.0; 12]),
        "block size 4 does not divide dimension 6 of axis 1; hint: sizes that do: 1, 2, 3, 6"
    );
    assert!(quantize(block(0), vec![1.0; 12]).starts_with("block size 0"));
    assert!(quantize(LinearGranularity::PerChannel { axis: 2 }, vec![1.0; 12]).starts_with("axis 2 is not"));
    let mut values = vec![1.0; 12];
    values[8] = f32::NEG_INFINITY;
    assert_eq!(quantize(block(3), values.clone()), "element 8 is -inf, expected a finite number");
    values[8] = 3e38;
    assert!(quantize(block(3), values).contains("beyond the range of fp16"));
}
