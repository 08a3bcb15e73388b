//! `tile` along axes of size one writes the same numbers many times, and what is computed from them computes the same
//! many times. Operations on single elements broadcast, so that nothing need be written out for them: a mask
//! [B, 1, L, L] of rows that are all alike becomes [B, 1, 1, L].

use crate::batch::ELEMENTWISE;
use crate::specialize::Specialized;
use quince_mil::{Arg, Defs, OpKind, Operation, Value, ValueType, Var, ops};
use std::collections::{HashMap, HashSet};

/// Takes repetitions out where only operations that broadcast use what is repeated.
pub(crate) fn take_out(specialized: &mut Specialized) {
    let Some(identity) = ops::find("identity") else { return };
    let small = small_shapes(specialized);
    if small.is_empty() {
        return;
    }
    let function = &mut specialized.function;
    for operation in &mut function.block.operations {
        let repeats = operation.op_name() == "tile" && operation.outputs.iter().any(|out| small.contains_key(out));
        if repeats {
            operation.kind = OpKind::Known(identity);
            operation.inputs.retain(|(name, _)| name == "x");
        }
    }
    for (var, shape) in small {
        let info = &mut function.vars[var.0 as usize];
        if let ValueType::Tensor(ty) = &info.ty {
            info.ty = ValueType::tensor(ty.dtype, &shape);
        }
    }
}

/// The variables that need not be written out, with the shapes that are enough for them.
fn small_shapes(specialized: &Specialized) -> HashMap<Var, Vec<usize>> {
    let defs = Defs::new(&specialized.function);
    let mut whole = HashSet::new();
    loop {
        let shapes = Shapes::new(specialized, &whole);
        let wanted_whole: Vec<Var> =
            shapes.small.keys().copied().filter(|&var| defs.is_output(var) || !shapes.is_enough(&defs, var)).collect();
        if wanted_whole.is_empty() {
            return shapes.small;
        }
        whole.extend(wanted_whole);
    }
}

struct Shapes<'a> {
    specialized: &'a Specialized,
    small: HashMap<Var, Vec<usize>>,
}

impl Shapes<'_> {
    /// The smallest shapes of variables if those in `whole` are written out.
    fn new<'a>(specialized: &'a Specialized, whole: &HashSet<Var>) -> Shapes<'a> {
        let mut shapes = Shapes { specialized, small: HashMap::new() };
        for operation in &specialized.function.block.operations {
            let [out] = operation.outputs[..] else { continue };
            if whole.contains(&out) || specialized.constants[out.0 as usize].is_some() {
                continue;
            }
            let shape = match operation.op_name() {
                "tile" => shapes.repeated(operation, out),
                name if ELEMENTWISE.contains(&name) => shapes.broadcast(operation),
                _ => None,
            };
            if let Some(shape) = shape.filter(|shape| *shape != shapes.declared(out)) {
                shapes.small.insert(out, shape);
            }
        }
        shapes
    }

    fn declared(&self, var: Var) -> Vec<usize> {
        self.specialized.function.ty(var).as_tensor().and_then(|ty| ty.dims()).unwrap_or_default()
    }

    fn of(&self, var: Var) -> Vec<usize> {
        self.small.get(&var).cloned().unwrap_or_else(|| self.declared(var))
    }

    /// The shape before a repetition along axes of size one.
    fn repeated(&self, operation: &Operation, out: Var) -> Option<Vec<usize>> {
        let (shape, whole) = (self.of(operation.var("x")?), self.declared(out));
        let repeats = shape.len() == whole.len() && shape.iter().zip(&whole).all(|(&n, &size)| n == size || n == 1);
        repeats.then_some(shape)
    }

    /// The shape to which the arguments of an operation broadcast.
    fn broadcast(&self, operation: &Operation) -> Option<Vec<usize>> {
        let mut shape = Vec::new();
        for arg in operation.inputs.iter().flat_map(|(_, args)| args) {
            let own = match arg {
                Arg::Var(var) => self.of(*var),
                Arg::Value(Value::String(_)) => continue,
                Arg::Value(value) => value.tensor_type()?.dims()?,
            };
            let missing = own.len().saturating_sub(shape.len());
            shape.splice(0..0, std::iter::repeat_n(1, missing));
            let first = shape.len() - own.len();
            shape[first..].iter_mut().zip(own).for_each(|(size, n)| *size = if *size == 1 { n } else { *size });
        }
        Some(shape)
    }

    /// Whether all users of a small variable do with it.
    fn is_enough(&self, defs: &Defs, var: Var) -> bool {
        defs.users(var).iter().all(|&index| {
            let operation = &self.specialized.function.block.operations[index];
            let Some(&out) = operation.outputs.first() else { return false };
            let used_by = |param: &str| operation.args(param).iter().any(|arg| matches!(arg, Arg::Var(v) if *v == var));
            match operation.op_name() {
                _ if self.specialized.constants[out.0 as usize].is_some() => true,
                "tile" => self.small.contains_key(&out),
                "scaled_dot_product_attention" => !["query", "key", "value"].into_iter().any(used_by),
                name if ELEMENTWISE.contains(&name) => {
                    self.broadcast(operation).is_some_and(|shape| shape == self.of(out))
                }
                _ => false,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::{call, check, f32s, floats, start};
    use quince_mil::{DType, Input, Tensor, ValueType};

    #[test]
    fn a_mask_is_computed_once_for_rows_that_are_alike() {
        let (batch, l, d) = (2, 5, 4);
        let mask = ValueType::tensor(DType::I32, &[batch, 1, 1, l]);
        let (mut b, vars) = start(&[("mask", mask), ("q", f32s(&[batch, 2, l, d]))]);
        let reps: Input = [1, 1, l as i32, 1].into();
        let rows = b.op("tile", "rows", &[("x", vars[0].into()), ("reps", reps)]).unwrap();
        let number = b.op("cast", "number", &[("x", rows.into()), ("dtype", "fp32".into())]).unwrap();
        let hidden = b.op("sub", "hidden", &[("x", 1f32.into()), ("y", number.into())]).unwrap();
        let flag = b.op("cast", "flag", &[("x", hidden.into()), ("dtype", "bool".into())]).unwrap();
        let inputs = [("cond", flag.into()), ("a", (-1e30f32).into()), ("b", hidden.into())];
        let added = b.op("select", "added", &inputs).unwrap();
        let q = vars[1];
        let inputs = [("query", q.into()), ("key", q.into()), ("value", q.into()), ("attn_mask", added.into())];
        let y = b.op("scaled_dot_product_attention", "y", &inputs).unwrap();
        let seen = Tensor::from_vec([batch, 1, 1, l], vec![1, 1, 1, 0, 0, 1, 1, 1, 1, 0]).unwrap();
        let inputs = call(&[("mask", seen), ("q", floats(1, &[batch, 2, l, d]))]);
        let function = b.finish(vec![y]);
        let mut specialized = crate::specialize::specialize(
            &function,
            &[vec![batch, 1, 1, l], vec![batch, 2, l, d]],
            &Default::default(),
        )
        .unwrap();
        super::take_out(&mut specialized);
        for name in ["rows", "number", "hidden", "flag", "added"] {
            let var = specialized.function.vars.iter().find(|var| var.name == name).unwrap();
            assert_eq!(var.ty.as_tensor().unwrap().dims().unwrap(), [batch, 1, 1, l], "{name}");
        }
        check(function, &[inputs], 1e-5);
    }

    #[test]
    fn what_is_wanted_whole_stays_whole() {
        let (mut b, vars) = start(&[("x", f32s(&[1, 3]))]);
        let reps: Input = [4, 1].into();
        let rows = b.op("tile", "rows", &[("x", vars[0].into()), ("reps", reps)]).unwrap();
        let doubled = b.op("mul", "doubled", &[("x", rows.into()), ("y", 2f32.into())]).unwrap();
        let inputs = [("x", doubled.into()), ("axes", [0].into()), ("keep_dims", false.into())];
        let sum = b.op("reduce_sum", "sum", &inputs).unwrap();
        let shifted = b.op("add", "shifted", &[("x", rows.into()), ("y", 1f32.into())]).unwrap();
        check(b.finish(vec![sum, shifted]), &[call(&[("x", floats(1, &[1, 3]))])], 1e-5);
    }
}
