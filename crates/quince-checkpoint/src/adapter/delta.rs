//! What an adapter adds to a weight: a product of two thin matrices, computed for the rows that are asked for.

use super::keys::Product;
use crate::views::transposed;
use quince_tensor::{DType, Error, Result, Weight, bail};
use std::ops::Range;

/// `up · down`, of which the weight has the shape.
#[derive(Clone)]
pub(super) struct Delta {
    /// The weight's shape.
    shape: Vec<usize>,
    form: Form,
    /// [r, inputs], or a table [inputs, r] for tokens; of experts [E · r, inputs].
    pub down: Weight,
    /// [outputs, r]; of experts [outputs, r · E].
    pub up: Weight,
    /// r.
    pub rank: usize,
}

/// How the weight lies in relation to the product.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Form {
    /// [outputs, inputs].
    Linear,
    /// [inputs, outputs], as `Conv1D` has it.
    Transposed,
    /// [tokens, outputs], of which a row is taken for each token.
    Table,
    /// [E, inputs, outputs].
    Experts,
    /// [E, outputs, inputs].
    ExpertsTransposed,
}

/// Which axis of a matrix are its outputs, each of which has a magnitude in DoRA.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outputs {
    Rows,
    Columns,
}

/// Which of the forms that a square matrix can have is meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Square {
    Linear,
    Transposed,
}

impl Delta {
    /// The product of a module for a weight of this shape.
    ///
    /// # Errors
    /// When a part is absent, the rank is not `rank`, or the shapes do not go together.
    pub fn new(product: &Product, shape: &[usize], rank: usize, square: Square) -> Result<Delta> {
        let (down, up, table) = match product {
            Product { a: Some(a), b: Some(b), embedding_a: None, embedding_b: None, .. } => (a, b, false),
            Product { a: None, b: None, embedding_a: Some(a), embedding_b: Some(b), .. } => (a, b, true),
            other => bail!("found {}, expected lora_A and lora_B", other.parts()),
        };
        let (&[down_rows, inputs], &[outputs, up_columns]) = (down.shape(), up.shape()) else {
            bail!("found lora_A {:?} and lora_B {:?}, expected two matrices", down.shape(), up.shape());
        };
        let experts = if let [experts, _, _] = shape { *experts } else { 1 };
        if down_rows != up_columns {
            bail!(
                "found lora_A {:?} and lora_B {:?}, of ranks {down_rows} and {up_columns}, expected one rank",
                down.shape(),
                up.shape()
            );
        }
        if rank == 0 || Some(down_rows) != rank.checked_mul(experts) {
            bail!(
                "found lora_A {:?} and lora_B {:?}, of rank {}, expected the rank {rank} that adapter_config.json gives",
                down.shape(), up.shape(), down_rows / experts.max(1);
                hint: "do the two files belong together?"
            );
        }
        let Some(form) = form(shape, inputs, outputs, table, square) else {
            bail!(
                "found lora_A {:?} and lora_B {:?}, expected {} for the weight {shape:?}",
                down.shape(), up.shape(), expected(shape, down_rows, table);
                hint: "was the adapter made for this model?"
            );
        };
        let down = down.cast(DType::F32);
        let down = if form == Form::Table { transposed(&down)? } else { down };
        Ok(Delta { shape: shape.to_vec(), form, down, up: up.cast(DType::F32), rank })
    }

    /// How the weight lies.
    pub fn form(&self) -> Form {
        self.form
    }

    /// Which axis of the weight are outputs.
    pub fn outputs(&self) -> Outputs {
        if self.form == Form::Linear { Outputs::Rows } else { Outputs::Columns }
    }

    /// The elements of some rows of the product, in the order of the weight.
    pub fn rows(&self, rows: Range<usize>) -> Result<Vec<f32>> {
        let (left, right, columns) = match (self.form, &self.shape[..]) {
            (Form::Linear, &[_, columns]) => (self.up.rows(rows.clone())?, self.down.load()?, columns),
            (Form::Transposed, &[_, columns]) => {
                (transposed(&self.down)?.rows(rows.clone())?, transposed(&self.up)?.load()?, columns)
            }
            (Form::Table, &[_, columns]) => (self.down.rows(rows.clone())?, transposed(&self.up)?.load()?, columns),
            _ => return self.experts(rows),
        };
        let mut out = room(rows.len().checked_mul(columns))?;
        multiply(&left.to_f32()?, &right.to_f32()?, self.rank, columns, &mut out);
        Ok(out)
    }

    /// The products of some experts. Row `e · r + k` of the matrix down and column `k · E + e` of the matrix up are those
    /// of expert `e`, as PEFT's `ParamWrapper` has it.
    fn experts(&self, range: Range<usize>) -> Result<Vec<f32>> {
        let &[experts, rows, columns] = &self.shape[..] else {
            bail!("found the shape {:?}, expected that of experts", self.shape);
        };
        let (down, up) = (self.down.load()?.to_f32()?, self.up.load()?.to_f32()?);
        let (rank, inputs) = (self.rank, self.down.shape()[1]);
        let mut out = room(range.len().checked_mul(rows).and_then(|n| n.checked_mul(columns)))?;
        for (expert, out) in range.zip(out.chunks_exact_mut((rows * columns).max(1))) {
            let down = &down[expert * rank * inputs..(expert + 1) * rank * inputs];
            let of_output = |row: &[f32]| (0..rank).map(|k| row[k * experts + expert]).collect::<Vec<f32>>();
            let up: Vec<f32> = up.chunks_exact(rank * experts).flat_map(of_output).collect();
            match self.form {
                Form::Experts => {
                    let (left, right) = (turned(down, rank, inputs), turned(&up, rows_of(&up, rank), rank));
                    multiply(&left, &right, rank, columns, out);
                }
                _ => multiply(&up, down, rank, columns, out),
            }
        }
        Ok(out)
    }
}

impl Product {
    /// The parts that are there, for errors.
    fn parts(&self) -> String {
        let parts = [
            ("lora_A", &self.a),
            ("lora_B", &self.b),
            ("lora_embedding_A", &self.embedding_a),
            ("lora_embedding_B", &self.embedding_b),
            ("a bias of lora_B", &self.bias),
            ("lora_magnitude_vector", &self.magnitude),
        ];
        let there: Vec<&str> = parts.iter().filter(|(_, part)| part.is_some()).map(|(name, _)| *name).collect();
        format!("{} alone", there.join(" and "))
    }
}

/// How a product of these inputs and outputs fits a weight, if it does.
fn form(shape: &[usize], inputs: usize, outputs: usize, table: bool, square: Square) -> Option<Form> {
    let matches = |rows: usize, columns: usize, wanted: [usize; 2]| [rows, columns] == wanted;
    match *shape {
        [rows, columns] if table => matches(rows, columns, [inputs, outputs]).then_some(Form::Table),
        [rows, columns] => {
            let linear = matches(rows, columns, [outputs, inputs]);
            match matches(rows, columns, [inputs, outputs]) {
                true if !linear || square == Square::Transposed => Some(Form::Transposed),
                _ => linear.then_some(Form::Linear),
            }
        }
        // Checkpoints that keep experts in one tensor keep them as [E, inputs, outputs], so that it wins where both fit.
        [_, rows, columns] if !table => match matches(rows, columns, [inputs, outputs]) {
            true => Some(Form::Experts),
            false => matches(rows, columns, [outputs, inputs]).then_some(Form::ExpertsTransposed),
        },
        _ => None,
    }
}

/// The shapes that would fit.
fn expected(shape: &[usize], rank: usize, table: bool) -> String {
    match shape {
        [tokens, outputs] if table => format!("[{rank}, {tokens}] and [{outputs}, {rank}]"),
        [.., outputs, inputs] if !table => format!("[{rank}, {inputs}] and [{outputs}, {rank}]"),
        _ => "none, because only matrices are adapted".to_owned(),
    }
}

fn room(count: Option<usize>) -> Result<Vec<f32>> {
    let count = count.ok_or_else(|| Error::new("found a size of more than 64 bits, expected a smaller one"))?;
    quince_tensor::zeroed(count)
}

fn rows_of(matrix: &[f32], columns: usize) -> usize {
    matrix.len() / columns.max(1)
}

/// The transpose of a matrix.
fn turned(matrix: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|column| (0..rows).map(move |row| matrix[row * columns + column])).collect()
}

/// `out += left · right`, left being [.., rank] and right [rank, columns]. Some columns at a time, so that their part of
/// `right` stays near.
fn multiply(left: &[f32], right: &[f32], rank: usize, columns: usize, out: &mut [f32]) {
    const WIDTH: usize = 512;
    for first in (0..columns).step_by(WIDTH) {
        let last = columns.min(first + WIDTH);
        for (left, out) in left.chunks_exact(rank.max(1)).zip(out.chunks_exact_mut(columns)) {
            let out = &mut out[first..last];
            for (factor, right) in left.iter().zip(right.chunks_exact(columns)) {
                for (sum, value) in out.iter_mut().zip(&right[first..last]) {
                    *sum += factor * value;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quince_tensor::Tensor;

    fn weight(shape: &[usize], values: impl Fn(usize) -> f32) -> Weight {
        let count = shape.iter().product();
        Weight::from_tensor("w", Tensor::from_vec(shape, (0..count).map(values).collect()).unwrap())
    }

    fn product(a: Weight, b: Weight) -> Product {
        Product { a: Some(a), b: Some(b), ..Product::default() }
    }

    fn message(result: Result<Delta>) -> String {
        result.err().map(|error| error.to_string()).unwrap_or_default()
    }

    /// A = [[1, 2, 3]], B = [[1], [10]]: the product is [[1, 2, 3], [10, 20, 30]].
    fn small() -> Product {
        product(weight(&[1, 3], |i| i as f32 + 1.0), weight(&[2, 1], |i| [1.0, 10.0][i]))
    }

    #[test]
    fn the_product_has_the_orientation_of_the_weight() {
        let linear = Delta::new(&small(), &[2, 3], 1, Square::Linear).unwrap();
        assert_eq!((linear.form(), linear.rows(1..2).unwrap()), (Form::Linear, vec![10.0, 20.0, 30.0]));
        let transposed = Delta::new(&small(), &[3, 2], 1, Square::Linear).unwrap();
        assert_eq!((transposed.form(), transposed.rows(1..3).unwrap()), (Form::Transposed, vec![2.0, 20.0, 3.0, 30.0]));
        let Product { a, b, .. } = small();
        let table = Product { embedding_a: a, embedding_b: b, ..Product::default() };
        let table = Delta::new(&table, &[3, 2], 1, Square::Linear).unwrap();
        assert_eq!((table.form(), table.rows(2..3).unwrap()), (Form::Table, vec![3.0, 30.0]));
        let square = || product(weight(&[1, 2], |i| i as f32 + 1.0), weight(&[2, 1], |i| [1.0, 10.0][i]));
        let rows = |of| Delta::new(&square(), &[2, 2], 1, of).unwrap().rows(0..2).unwrap();
        assert_eq!(rows(Square::Linear), [1.0, 2.0, 10.0, 20.0]);
        assert_eq!(rows(Square::Transposed), [1.0, 10.0, 2.0, 20.0]);
    }

    /// By the formulas of PEFT's `ParamWrapper.get_delta_weight`: einsum("o r e, e r i -> e i o") and "-> e o i".
    #[test]
    fn experts_have_the_products_that_peft_gives_them() {
        let (experts, rank, inputs, outputs) = (3, 2, 4, 5);
        let a = weight(&[experts * rank, inputs], |i| (i as f32 * 0.7).sin());
        let b = weight(&[outputs, rank * experts], |i| (i as f32 * 1.3).cos());
        let (va, vb) = (a.load().unwrap().to_f32().unwrap(), b.load().unwrap().to_f32().unwrap());
        let of = |e: usize, i: usize, o: usize| -> f32 {
            (0..rank).map(|k| va[(e * rank + k) * inputs + i] * vb[(o * rank + k) * experts + e]).sum()
        };
        let product = product(a, b);
        let straight = Delta::new(&product, &[experts, inputs, outputs], rank, Square::Linear).unwrap();
        let turned = Delta::new(&product, &[experts, outputs, inputs], rank, Square::Linear).unwrap();
        let (straight, turned) = (straight.rows(1..3).unwrap(), turned.rows(1..3).unwrap());
        for (e, i, o) in [(1, 0, 0), (1, 3, 4), (2, 2, 1), (2, 0, 4)] {
            let want = of(e, i, o);
            assert!((straight[((e - 1) * inputs + i) * outputs + o] - want).abs() < 1e-6);
            assert!((turned[((e - 1) * outputs + o) * inputs + i] - want).abs() < 1e-6);
        }
    }

    #[test]
    fn ranks_and_shapes_that_do_not_fit_are_named_on_both_sides() {
        let error = message(Delta::new(&small(), &[2, 3], 4, Square::Linear));
        let expected = "found lora_A [1, 3] and lora_B [2, 1], of rank 1, expected the rank 4 that adapter_config.json";
        assert!(error.starts_with(expected), "{error}");
        let error = message(Delta::new(&small(), &[2, 4], 1, Square::Linear));
        let expected = "found lora_A [1, 3] and lora_B [2, 1], expected [1, 4] and [2, 1] for the weight [2, 4]";
        assert!(error.starts_with(expected), "{error}");
        let uneven = product(weight(&[1, 3], |_| 1.0), weight(&[2, 2], |_| 1.0));
        let error = message(Delta::new(&uneven, &[2, 3], 1, Square::Linear));
        assert_eq!(error, "found lora_A [1, 3] and lora_B [2, 2], of ranks 1 and 2, expected one rank");
        let half = Product { a: Some(weight(&[1, 3], |_| 1.0)), ..Product::default() };
        let error = message(Delta::new(&half, &[2, 3], 1, Square::Linear));
        assert_eq!(error, "found lora_A alone, expected lora_A and lora_B");
        assert!(message(Delta::new(&small(), &[3], 1, Square::Linear)).contains("only matrices are adapted"));
    }
}
