//! A weight row by row, whichever way it lies.

use super::Factor;
use crate::values::check_finite;
use quince_tensor::{Result, Weight, bail};

/// A weight as output channels by input channels.
pub(super) struct Rows<'a> {
    weight: &'a Weight,
    /// Output channels.
    pub rows: usize,
    /// Input channels.
    pub columns: usize,
    /// Where the output channels do not come first, the weight is read whole.
    transposed: Option<Vec<f32>>,
}

impl<'a> Rows<'a> {
    /// Of a weight with these axes, whose inputs are those of a factor.
    ///
    /// # Errors
    /// When they are not, or another axis has more than one element.
    pub fn new(weight: &'a Weight, axes: [usize; 2], factor: &Factor) -> Result<Self> {
        let rows = Rows::of(weight, axes)?;
        match rows.columns == factor.size() {
            true => Ok(rows),
            false => {
                bail!("found statistics of {} inputs, expected {}, those of the weight", factor.size(), rows.columns)
            }
        }
    }

    /// Of a weight with these axes.
    ///
    /// # Errors
    /// When another axis has more than one element, or the weight cannot be read.
    pub fn of(weight: &'a Weight, [output, input]: [usize; 2]) -> Result<Self> {
        let shape = weight.shape();
        let (Some(&rows), Some(&columns)) = (shape.get(output), shape.get(input)) else {
            bail!("found a weight of shape {shape:?}, expected one with axes {output} and {input}");
        };
        if rows * columns != weight.len() || output == input {
            bail!("found a weight of shape {shape:?}, expected no axes but those of its channels to be longer than 1");
        }
        let transposed = if output > input { Some(weight.load()?.to_f32()?) } else { None };
        Ok(Rows { weight, rows, columns, transposed })
    }

    /// Some rows.
    ///
    /// # Errors
    /// When they cannot be read, or are not finite.
    pub fn read(&self, rows: std::ops::Range<usize>) -> Result<Vec<Vec<f32>>> {
        if let Some(all) = &self.transposed {
            let row = |row: usize| (0..self.columns).map(|column| all[column * self.rows + row]).collect();
            let rows: Vec<Vec<f32>> = rows.map(row).collect();
            rows.iter().try_for_each(|row| check_finite(row, 0))?;
            return Ok(rows);
        }
        // Axes before the output channels have one element, so that rows are those of the reshaped weight.
        let weight = self.weight.reshape(&[self.rows, self.columns])?;
        let values = weight.rows(rows.clone())?.to_f32()?;
        check_finite(&values, rows.start * self.columns)?;
        Ok(values.chunks_exact(self.columns.max(1)).map(<[f32]>::to_vec).collect())
    }

    /// Codes by output channel in the order of the weight.
    pub fn arrange<'b>(&self, rows: impl Iterator<Item = &'b Vec<u8>>) -> Vec<u8> {
        if self.transposed.is_none() {
            return rows.flatten().copied().collect();
        }
        let mut codes = vec![0; self.rows * self.columns];
        for (number, row) in rows.enumerate() {
            row.iter().enumerate().for_each(|(column, code)| codes[column * self.rows + number] = *code);
        }
        codes
    }

    /// Rows one after the other as the weight has them.
    pub fn lie(&self, rows: Vec<f32>) -> Vec<f32> {
        match self.transposed {
            None => rows,
            Some(_) => {
                let (height, width) = (self.rows, self.columns);
                (0..width)
                    .flat_map(|column| rows[column..].iter().step_by(width.max(1)).take(height).copied())
                    .collect()
            }
        }
    }
}
