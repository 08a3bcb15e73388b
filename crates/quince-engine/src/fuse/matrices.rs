//! Products with several constant matrices that are stored as one weight, as experts are: none of them is ever expanded.
//!
//! ```text
//! matrices = reshape(weight [E · N, K], [.., E, N, K])
//! y [.., E, M, N] = matmul(x [.., E or 1, M, K], matrices, transpose_y)
//! ```

use super::Fused;
use crate::kernels::{self, Linear, PackedWeight};
use crate::memory::without_padding;
use crate::planner::Planner;
use crate::steps::batches;
use quince_mil::{Operation, Result, Var, bail};

struct Matrices {
    x: Var,
    weight: Var,
    /// The weight, of which parts can be taken.
    stored: PackedWeight,
    /// Of each matrix.
    rows: usize,
    /// For each matrix of the result, the numbers of those it is the product of.
    pairs: Vec<(usize, usize)>,
}

pub(super) fn find(planner: &Planner, operation: &Operation) -> Option<Fused> {
    if operation.op_name() != "matmul" || planner.rounds() {
        return None;
    }
    let flag = |param: &str| planner.known(operation, param).and_then(|t| t.to_bools().ok()) == Some(vec![true]);
    let (x, y) = (operation.var("x")?, operation.var("y")?);
    let reshape = planner.producer_of(y, &["reshape"])?;
    let weight = reshape.var("x")?;
    let (a, b) = (planner.shape(x).ok()?, planner.shape(y).ok()?);
    let c = planner.shape(*operation.outputs.first()?).ok()?;
    let &[.., rows, columns] = &b[..] else { return None };
    let plain = flag("transpose_y") && !flag("transpose_x") && planner.dtype(x).is_ok_and(|dtype| dtype.is_float());
    // A weight of two axes is a matrix already, and one that is known has its values.
    (plain && b.len() > 2 && a.len() >= 2 && rows * columns > 0 && planner.constant(y).is_none()).then_some(())?;
    let stored = planner.packed_as_stored(weight).ok()??;
    (stored.cols() == columns && stored.rows() % rows == 0).then_some(())?;
    let outer = &c[..c.len() - 2];
    let pairs: Vec<(usize, usize)> = batches(&a, outer).into_iter().zip(batches(&b, outer)).collect();
    let found = Matrices { x, weight, stored, rows, pairs };
    found.parts(&found.stored)?;
    Some(Fused { inputs: vec![x], emit: Box::new(move |planner, operation| found.emit(planner, operation)) })
}

impl Matrices {
    /// The matrix of each pair.
    fn parts(&self, whole: &PackedWeight) -> Option<Vec<PackedWeight>> {
        self.pairs.iter().map(|(_, matrix)| whole.part(matrix * self.rows..(matrix + 1) * self.rows)).collect()
    }

    fn emit(self, planner: &mut Planner, operation: &Operation) -> Result<()> {
        let streamed = planner.streamed(self.weight)?.and_then(|whole| self.parts(&whole));
        let Some(parts) = streamed.or_else(|| self.parts(&self.stored)) else {
            bail!("found a weight that is in no parts, expected {} matrices", self.pairs.len());
        };
        let Matrices { x, pairs, .. } = self;
        let accuracy = planner.accuracy(x);
        let shape = planner.shape(x)?;
        let (rows, columns) = (shape[shape.len() - 2], shape[shape.len() - 1]);
        let token = planner.token_of_first_row(x, rows)?;
        let x = planner.operand(x)?;
        let (id, len) = planner.output(operation.outputs[0])?;
        let size = len / pairs.len().max(1);
        planner.push("matrices", &operation.name, move |memory| {
            memory.write(id, len, |m, y| {
                let (x, rows, source) = (m.get(&x), m.rows_of(token, rows), rows * columns);
                let mut results = y.chunks_exact_mut(size.max(1));
                // Products of the same x are one step, so that it is prepared once.
                let mut done = 0;
                for same in pairs.chunk_by(|a, b| a.0 == b.0) {
                    let weights = parts[done..done + same.len()].iter();
                    let mut products: Vec<Linear> = weights
                        .zip(results.by_ref())
                        .map(|(weight, y)| Linear { weight, bias: None, y: without_padding(y, rows * weight.rows()) })
                        .collect();
                    let x = &x[same[0].0 * source..][..rows * columns];
                    kernels::linear_many(m.kernels, accuracy, x, &mut products);
                    done += same.len();
                }
                Ok(())
            })
        });
        Ok(())
    }
}
