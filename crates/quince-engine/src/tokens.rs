//! Which elements of a value belong to which token of a call, so that products with padding are left out.
//!
//! Tokens come in by integer inputs [1, S], and variables are followed from there. An operation that is not known to
//! keep tokens in their order ends the search: what comes after it is computed for all.

use crate::batch::ELEMENTWISE;
use crate::specialize::Specialized;
use quince_mil::{Operation, Var};

/// Element `e` of a value belongs to token `first + e / stride % count`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Tokens {
    first: usize,
    count: usize,
    stride: usize,
}

impl Tokens {
    /// The token of the first row, if rows of `cols` elements belong to one token each, in order.
    pub fn of_rows(self, rows: usize, cols: usize) -> Option<usize> {
        (self.count == rows && (self.stride == cols || rows == 1)).then_some(self.first)
    }
}

/// What is known of the elements of a variable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Origin {
    /// They are the same whatever the tokens are.
    Elsewhere,
    /// Each is of a token.
    Of(Tokens),
    /// Tokens decide about them, in some way.
    Mixed,
}

/// By variable: which tokens its elements belong to, if that is known.
pub(crate) fn follow(specialized: &Specialized) -> Vec<Option<Tokens>> {
    let function = &specialized.function;
    let mut search = Search { specialized, origins: vec![Origin::Elsewhere; function.vars.len()] };
    let ids = |var: Var| match search.shape(var)[..] {
        [1, length] if length > 1 && !is_float(specialized, var) => Some(length),
        _ => None,
    };
    let found: Vec<(Var, usize)> =
        function.inputs.iter().filter_map(|input| Some((input.var, ids(input.var)?))).collect();
    // Inputs of different lengths do not count the same things.
    if !found.is_empty() && found.iter().all(|(_, length)| *length == found[0].1) {
        for (var, count) in found {
            search.origins[var.0 as usize] = Origin::Of(Tokens { first: 0, count, stride: 1 });
        }
        function.block.operations.iter().for_each(|operation| search.operation(operation));
    }
    let known = |origin: Origin| match origin {
        Origin::Of(tokens) => Some(tokens),
        Origin::Elsewhere | Origin::Mixed => None,
    };
    search.origins.into_iter().map(known).collect()
}

fn is_float(specialized: &Specialized, var: Var) -> bool {
    specialized.function.ty(var).as_tensor().is_none_or(|ty| ty.dtype.is_float())
}

struct Search<'a> {
    specialized: &'a Specialized,
    origins: Vec<Origin>,
}

impl Search<'_> {
    fn shape(&self, var: Var) -> Vec<usize> {
        self.specialized.shape(var).unwrap_or_default()
    }

    fn origin(&self, var: Var) -> Origin {
        self.origins[var.0 as usize]
    }

    fn of(&self, var: Var) -> Option<Tokens> {
        match self.origin(var) {
            Origin::Of(tokens) => Some(tokens),
            Origin::Elsewhere | Origin::Mixed => None,
        }
    }

    fn operation(&mut self, operation: &Operation) {
        // What a state holds came from tokens, of this call or of others.
        let depends = operation.op_name() == "read_state"
            || operation.used_vars().any(|var| self.origin(var) != Origin::Elsewhere);
        for &out in &operation.outputs {
            if depends && self.specialized.constants[out.0 as usize].is_none() {
                self.origins[out.0 as usize] = self.result(operation, out).map_or(Origin::Mixed, Origin::Of);
            }
        }
    }

    fn result(&self, operation: &Operation, out: Var) -> Option<Tokens> {
        let rank = |var| self.shape(var).len();
        // Elements along the last axis may be mixed; those of a token are.
        let last = |var| self.shape(var).last().copied().unwrap_or(1);
        let from = |param: &str| {
            let var = operation.var(param).filter(|&var| rank(var) == rank(out))?;
            let is_mixed = self.of(var)?.count > 1 && !self.of(var)?.stride.is_multiple_of(last(var));
            (!is_mixed).then(|| self.carried(var, out))?
        };
        match operation.op_name() {
            "reshape" | "reshape_like" | "expand_dims" | "squeeze" | "split_heads" => self.of(operation.var("x")?),
            "transpose" => self.transposed(operation, out),
            "gather" if self.is_of_rows(operation) => self.rows(operation.var("indices")?, out),
            "one_hot" if self.integer(operation, "axis") == Some(-1) => self.rows(operation.var("indices")?, out),
            "embedding" => self.rows(operation.var("ids")?, out),
            "slice_by_index" => self.sliced(operation, out),
            "linear" | "logits" | "rms_norm" | "layer_norm" | "softmax" | "rope" | "split" => from("x"),
            "topk" if self.integer(operation, "axis") == Some(-1) => from("x"),
            "reduce_mean" | "reduce_sum" | "reduce_max" => self.reduced(operation),
            "matmul" if self.specialized.bools(operation, "transpose_x") != Some(vec![true]) => from("x"),
            "scaled_dot_product_attention" | "attention" => from("query"),
            name if name == "concat" || ELEMENTWISE.contains(&name) => self.common(operation, out),
            _ => None,
        }
    }

    /// Of operations on elements: what all operands say that have to do with tokens.
    fn common(&self, operation: &Operation, out: Var) -> Option<Tokens> {
        let vars = operation.used_vars().filter(|&var| self.origin(var) != Origin::Elsewhere);
        let mut all = vars.map(|var| self.carried(var, out));
        let first = all.next()??;
        all.all(|other| other == Some(first)).then_some(first)
    }

    /// What becomes of tokens along an axis that `out` has too, counted from the last.
    fn carried(&self, var: Var, out: Var) -> Option<Tokens> {
        let tokens = self.of(var)?;
        let (shape, result) = (self.shape(var), self.shape(out));
        if tokens.count == 1 {
            return Some(tokens);
        }
        let (axis, inner) = axis_of(tokens, &shape)?;
        let axis_out = (axis + result.len()).checked_sub(shape.len())?;
        let kept = result.get(axis_out) == shape.get(axis);
        kept.then(|| Tokens { stride: inner * suffix(&result, axis_out), ..tokens })
    }

    /// What becomes of tokens along an axis that is not among those that a reduction takes.
    fn reduced(&self, operation: &Operation) -> Option<Tokens> {
        let x = operation.var("x")?;
        let (tokens, mut shape) = (self.of(x)?, self.shape(x));
        let (axis, inner) = axis_of(tokens, &shape)?;
        let rank = shape.len() as i64;
        for reduced in self.specialized.ints(operation, "axes")? {
            shape[usize::try_from(reduced.rem_euclid(rank)).ok()?] = 1;
        }
        (shape[axis] >= tokens.count).then(|| Tokens { stride: inner * suffix(&shape, axis), ..tokens })
    }

    fn transposed(&self, operation: &Operation, out: Var) -> Option<Tokens> {
        let x = operation.var("x")?;
        let (tokens, shape) = (self.of(x)?, self.shape(x));
        if tokens.count == 1 {
            return Some(tokens);
        }
        let (axis, inner) = axis_of(tokens, &shape)?;
        let rank = shape.len() as i64;
        let perm = self.specialized.ints(operation, "perm")?;
        let axis = perm.iter().position(|&from| from.rem_euclid(rank) == axis as i64)?;
        Some(Tokens { stride: inner * suffix(&self.shape(out), axis), ..tokens })
    }

    /// Rows of a table by indices that have tokens.
    fn rows(&self, indices: Var, out: Var) -> Option<Tokens> {
        let tokens = self.of(indices)?;
        let width = elements(&self.shape(out)) / elements(&self.shape(indices)).max(1);
        Some(Tokens { stride: tokens.stride * width, ..tokens })
    }

    fn is_of_rows(&self, operation: &Operation) -> bool {
        let zero = |param: &str| operation.arg(param).is_none() || self.integer(operation, param) == Some(0);
        let constant = operation.var("x").is_some_and(|x| self.origin(x) == Origin::Elsewhere);
        constant && zero("axis") && zero("batch_dims")
    }

    /// A slice along other axes, or a single token.
    fn sliced(&self, operation: &Operation, out: Var) -> Option<Tokens> {
        let x = operation.var("x")?;
        let (tokens, shape, result) = (self.of(x)?, self.shape(x), self.shape(out));
        let forward = operation.arg("stride").is_none()
            || self.specialized.ints(operation, "stride")?.iter().all(|&step| step == 1);
        if !forward || shape.len() != result.len() {
            return None;
        }
        let (axis, inner) = axis_of(tokens, &shape)?;
        if result[axis] != 1 || inner != 1 || shape[axis] != tokens.count || tokens.count == 1 {
            return self.carried(x, out);
        }
        let masked =
            operation.arg("begin_mask").is_some() && *self.specialized.bools(operation, "begin_mask")?.get(axis)?;
        let begin = if masked { 0 } else { *self.specialized.ints(operation, "begin")?.get(axis)? };
        let begin = if begin < 0 { begin + tokens.count as i64 } else { begin };
        Some(Tokens { first: tokens.first + usize::try_from(begin).ok()?, count: 1, stride: 1 })
    }

    fn integer(&self, operation: &Operation, param: &str) -> Option<i64> {
        self.specialized.ints(operation, param)?.first().copied()
    }
}

/// The axis that tokens lie along, and how many elements of it each token has one after the other.
fn axis_of(tokens: Tokens, shape: &[usize]) -> Option<(usize, usize)> {
    (0..shape.len()).find_map(|axis| {
        let after = suffix(shape, axis);
        let inner = tokens.stride / after.max(1);
        let fits = after > 0 && tokens.stride.is_multiple_of(after) && inner > 0 && shape[axis] >= tokens.count * inner;
        (fits && shape[axis].is_multiple_of(tokens.count * inner)).then_some((axis, inner))
    })
}

/// Elements of one step along an axis.
fn suffix(shape: &[usize], axis: usize) -> usize {
    elements(shape.get(axis + 1..).unwrap_or_default())
}

fn elements(shape: &[usize]) -> usize {
    shape.iter().product()
}
