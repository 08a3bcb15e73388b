//! Integers that change least what a weight computes, for scales as they are.

use super::Factor;
use super::lanes::{Lanes, lanes_of};
use super::rows::Rows;
use crate::{LinearOptions, Quantized, quantize_linear};
use quince_tensor::{Result, Tensor, Weight, bail};
use rayon::prelude::*;

/// Quantizes a weight of rank 2, or whose other axes have one element: scales and offsets are those without calibration,
/// and the integers are chosen column by column so that tr((W - Q) H (W - Q)ᵀ) is small. The error reported is that of the
/// weight itself.
///
/// # Errors
/// As for [`quantize_linear`], and when the inputs of the factor are not those of the weight.
pub(crate) fn quantize_calibrated(
    weight: &Weight,
    options: &LinearOptions,
    [output, input]: [usize; 2],
    factor: &Factor,
) -> Result<Quantized> {
    let matrix = Rows::new(weight, [output, input], factor)?;
    let nearest = quantize_linear(weight, options)?;
    let grid = Grid::new(&nearest, options, &matrix, [output, input])?;
    let most = lanes_of(matrix.rows);
    let batches = (0..matrix.rows.div_ceil(most)).into_par_iter().map(|batch| {
        let range = batch * most..matrix.rows.min((batch + 1) * most);
        let rows = matrix.read(range.clone())?;
        let mut lanes = Lanes::new(factor, &rows, rows.len());
        lanes.round_to(|segment, column, values, codes, found| {
            let elements = values.iter().zip(codes).zip(found).enumerate();
            elements.for_each(|(lane, ((&value, code), found))| {
                (*code, *found) = grid.nearest(range.start + segment.first() + lane, column, value);
            });
        });
        lanes.keep(0);
        let codes: Vec<Vec<u8>> = (0..rows.len()).map(|row| lanes.row_codes(row)).collect();
        let error = |row: usize, column: usize| {
            f64::from(rows[row][column] - grid.value(range.start + row, column, codes[row][column])).powi(2)
        };
        let sse = (0..rows.len()).flat_map(|row| (0..matrix.columns).map(move |column| (row, column)));
        let sse = sse.map(|(row, column)| error(row, column)).sum::<f64>();
        Ok((codes, sse))
    });
    let batches: Vec<(Vec<Vec<u8>>, f64)> = batches.collect::<Result<_>>()?;
    let codes = matrix.arrange(batches.iter().flat_map(|(codes, _)| codes));
    let integers: Vec<i64> = codes.into_iter().map(|code| i64::from(code) + grid.low as i64).collect();
    let data = Tensor::from_i64(nearest.data.dtype(), weight.shape(), &integers)?;
    Ok(Quantized { data, sse: batches.iter().map(|(_, sse)| sse).sum(), ..nearest })
}

/// The values that elements may become.
struct Grid {
    scales: Vec<f32>,
    offsets: Vec<f32>,
    low: f32,
    high: f32,
    /// What the number of a scale grows by from row to row, and from block to block.
    strides: [usize; 2],
    /// Columns of a block.
    block: usize,
}

impl Grid {
    fn new(quantized: &Quantized, options: &LinearOptions, matrix: &Rows, [output, input]: [usize; 2]) -> Result<Grid> {
        let shape = quantized.scale.shape();
        let (&[rows, blocks], [low, high]) = (&[shape[output], shape[input]], options.limits());
        if blocks == 0 || !matrix.columns.is_multiple_of(blocks) || (rows != 1 && rows != matrix.rows) {
            bail!("found scales of shape {shape:?}, expected one for the weight, or for each row or its blocks");
        }
        let scales = quantized.scale.to_f32()?;
        let offsets = match &quantized.offset {
            Some(offset) => offset.to_f32()?,
            None => vec![0.0; scales.len()],
        };
        let (row, block) = if output < input { (blocks, 1) } else { (1, rows) };
        let strides = [if rows == 1 { 0 } else { row }, block];
        Ok(Grid { scales, offsets, low: low as f32, high: high as f32, strides, block: matrix.columns / blocks })
    }

    fn number(&self, row: usize, column: usize) -> usize {
        row * self.strides[0] + column / self.block * self.strides[1]
    }

    /// The code, counted from the lowest integer, and its value.
    fn nearest(&self, row: usize, column: usize, value: f32) -> (u8, f32) {
        let number = self.number(row, column);
        let integer = ((value / self.scales[number]).round() + self.offsets[number]).clamp(self.low, self.high);
        ((integer - self.low) as u8, self.scales[number] * (integer - self.offsets[number]))
    }

    fn value(&self, row: usize, column: usize, code: u8) -> f32 {
        let number = self.number(row, column);
        self.scales[number] * (f32::from(code) + self.low - self.offsets[number])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrated::{DAMPING, Moments};
    use crate::test_weights::{values, with_threads};
    use crate::{Float, LinearDType, LinearGranularity, LinearMode};

    /// The mean squared error of the results over inputs, by the definition.
    fn output_error(weight: &[f32], quantized: &Quantized, inputs: &[f32], size: usize) -> f64 {
        let (data, scale) = (quantized.data.to_f64().unwrap(), quantized.scale.to_f64().unwrap());
        let offset = quantized.offset.as_ref().map_or(vec![0.0; scale.len()], |offset| offset.to_f64().unwrap());
        let block = data.len() / scale.len();
        let decoded: Vec<f64> = (0..data.len()).map(|i| scale[i / block] * (data[i] - offset[i / block])).collect();
        let mut sum = 0.0;
        for x in inputs.chunks_exact(size) {
            for (w, q) in weight.chunks_exact(size).zip(decoded.chunks_exact(size)) {
                let error = |((w, q), x): ((&f32, &f64), &f32)| (f64::from(*w) - q) * f64::from(*x);
                sum += w.iter().zip(q).zip(x).map(error).sum::<f64>().powi(2);
            }
        }
        sum
    }

    #[test]
    fn results_change_far_less_than_with_the_nearest_integers() {
        let (rows, size) = (40, 96);
        let (noise, common) = (values(300 * size, 5), values(300, 6));
        let x: Vec<f32> = (0..300 * size).map(|i| noise[i] + 2.0 * common[i / size]).collect();
        let w = values(rows * size, 9);
        let weight = Weight::from_tensor("w", Tensor::from_vec([rows, size], w.clone()).unwrap());
        let lying: Vec<f32> = (0..rows * size).map(|i| w[i % rows * size + i / rows]).collect();
        let lying = Weight::from_tensor("w", Tensor::from_vec([size, rows], lying).unwrap());
        let mut moments = Moments::new(size);
        moments.add(&x).unwrap();
        let factor = Factor::new(&moments, DAMPING).unwrap();
        let block = |output_axis, input_axis| LinearGranularity::PerBlock { output_axis, input_axis, block_size: 32 };
        let channel = |axis| LinearGranularity::PerChannel { axis };
        for (dtype, mode, granularity, other) in [
            (LinearDType::Int4, LinearMode::Symmetric, block(0, 1), block(1, 0)),
            (LinearDType::UInt4, LinearMode::Asymmetric, channel(0), channel(1)),
            (LinearDType::Int8, LinearMode::SymmetricClipped, channel(0), channel(1)),
            (LinearDType::Int4, LinearMode::Symmetric, LinearGranularity::PerTensor, LinearGranularity::PerTensor),
        ] {
            let options = LinearOptions { dtype, mode, granularity, scale: Float::F16 };
            let nearest = quantize_linear(&weight, &options).unwrap();
            let run = || quantize_calibrated(&weight, &options, [0, 1], &factor).unwrap();
            let (chosen, again) = (with_threads(1, run), with_threads(3, run));
            assert_eq!(chosen.data.to_f64().unwrap(), again.data.to_f64().unwrap());
            assert!(chosen.sse >= nearest.sse, "{options:?}: {} {}", chosen.sse, nearest.sse);
            let error = |quantized: &Quantized| output_error(&w, quantized, &x, size);
            let (chosen, nearest) = (error(&chosen), error(&nearest));
            assert!(chosen < 0.6 * nearest, "{options:?}: {chosen} of {nearest}");
            let options = LinearOptions { granularity: other, ..options };
            let turned = quantize_calibrated(&lying, &options, [1, 0], &factor).unwrap().data.to_f64().unwrap();
            let upright = again.data.to_f64().unwrap();
            assert!((0..rows * size).all(|i| turned[i] == upright[i % rows * size + i / rows]), "{options:?}");
        }
    }
}
