//! A function for given input shapes: every size known, everything that can be computed beforehand computed.

use quince_mil::op::ArgInfo;
use quince_mil::{
    Arg, Dim, Error, Flexibility, Function, Limits, OpKind, Operation, Result, Tensor, Value, ValueType, Var, bail,
    verify,
};
use std::collections::BTreeMap;

/// A function whose variables all have fixed sizes, and the values of those that are known before it runs.
pub(crate) struct Specialized {
    /// The function; the types of its variables are fixed.
    pub function: Function,
    /// By variable: its value, if it is known. Weights stay lazy; results of `constexpr_*` are not here.
    pub constants: Vec<Option<Value>>,
    /// Elements of the results that were computed beforehand.
    folded: usize,
}

/// Why a function cannot be planned: its sizes depend on values, or it branches. It is then run operation by operation.
#[derive(Debug)]
pub(crate) enum Unplanned {
    /// An operation needs a value that is only known when it runs.
    Dynamic,
    /// The program is wrong.
    Wrong(Error),
}

impl From<Error> for Unplanned {
    fn from(error: Error) -> Unplanned {
        Unplanned::Wrong(error)
    }
}

/// Results of more elements than this are not computed beforehand: they would only take memory.
const FOLD_LIMIT: usize = 1 << 22;

/// Fixes the input shapes of `function`, in the order of its inputs; states keep theirs.
pub(crate) fn specialize(
    function: &Function,
    shapes: &[Vec<usize>],
    limits: &Limits,
) -> Result<Specialized, Unplanned> {
    let constants = vec![None; function.vars.len()];
    let mut out = Specialized { function: function.clone(), constants, folded: 0 };
    for (input, shape) in function.inputs.iter().zip(shapes) {
        if let ValueType::Tensor(ty) = &mut out.function.vars[input.var.0 as usize].ty {
            ty.shape = shape.iter().map(|&n| Dim::Fixed(n)).collect();
        }
    }
    for operation in &function.block.operations {
        out.operation(operation, limits).map_err(|unplanned| match unplanned {
            Unplanned::Wrong(error) => Unplanned::Wrong(error.at(operation.place())),
            Unplanned::Dynamic => Unplanned::Dynamic,
        })?;
    }
    Ok(out)
}

/// `function` for inputs of these shapes, in the order of its inputs: every size known, and constants in the place of what
/// can be computed beforehand. Nothing if sizes depend on values, or it branches.
///
/// # Errors
/// Shapes that it does not go with.
pub fn fixed(function: &Function, shapes: &[Vec<usize>], limits: &Limits) -> Result<Option<Function>> {
    let Specialized { mut function, constants, .. } = match specialize(function, shapes, limits) {
        Ok(specialized) => specialized,
        Err(Unplanned::Dynamic) => return Ok(None),
        Err(Unplanned::Wrong(error)) => return Err(error),
    };
    function.inputs.iter_mut().for_each(|input| input.flexibility = Flexibility::Fixed);
    for operation in &mut function.block.operations {
        let [var] = operation.outputs[..] else { continue };
        if let (None, Some(value)) = (operation.constant(), &constants[var.0 as usize]) {
            operation.kind = OpKind::from_name("const");
            operation.inputs.clear();
            operation.attributes = BTreeMap::from([("val".to_owned(), value.clone())]);
        }
    }
    Ok(Some(function))
}

impl Specialized {
    /// The size along each axis of a tensor.
    pub fn shape(&self, var: Var) -> Option<Vec<usize>> {
        self.function.ty(var).as_tensor().and_then(|ty| ty.dims())
    }

    /// The tensor of a parameter, if it is given and known beforehand.
    pub fn known(&self, operation: &Operation, param: &str) -> Option<Tensor> {
        match operation.arg(param)? {
            Arg::Value(value) => value.tensor().ok(),
            Arg::Var(var) => self.constant(*var)?.tensor().ok(),
        }
    }

    /// The integers of such a parameter.
    pub fn ints(&self, operation: &Operation, param: &str) -> Option<Vec<i64>> {
        self.known(operation, param)?.to_i64().ok()
    }

    /// The truth values of such a parameter.
    pub fn bools(&self, operation: &Operation, param: &str) -> Option<Vec<bool>> {
        self.known(operation, param)?.to_bools().ok()
    }

    fn operation(&mut self, operation: &Operation, limits: &Limits) -> Result<(), Unplanned> {
        if let (Some(value), [var]) = (operation.constant(), &operation.outputs[..]) {
            self.constants[var.0 as usize] = Some(value.clone());
            return Ok(());
        }
        if !operation.blocks.is_empty() {
            return Err(Unplanned::Dynamic);
        }
        let types = verify::infer(&self.function, &|var| self.constant(var).cloned(), operation)?;
        if types.len() != operation.outputs.len() {
            return Err(
                Error::new(format!("found {} results, expected {}", operation.outputs.len(), types.len())).into()
            );
        }
        if types.iter().any(|ty| ty.as_tensor().is_none_or(|ty| ty.dims().is_none())) {
            return Err(Unplanned::Dynamic);
        }
        for (var, ty) in operation.outputs.iter().zip(types) {
            let declared = self.function.var(*var);
            if !declared.ty.fits(&ty) {
                let message = format!("its result `{}` is declared {}, found {ty}", declared.name, declared.ty);
                return Err(Error::new(message).into());
            }
            if !operation.op_name().starts_with("constexpr_") {
                limits.check_value(&ty)?;
            }
            self.function.vars[var.0 as usize].ty = ty;
        }
        if self.folds(operation, limits) {
            for (var, tensor) in operation.outputs.iter().zip(self.eval(operation)?) {
                self.folded += tensor.len();
                self.function.vars[var.0 as usize].ty = ValueType::tensor(tensor.dtype(), tensor.shape());
                self.constants[var.0 as usize] = Some(tensor.into());
            }
        }
        Ok(())
    }

    fn constant(&self, var: Var) -> Option<&Value> {
        self.constants.get(var.0 as usize)?.as_ref()
    }

    /// Whether all that goes in is known, and what comes out is small. Only types go into `shape`.
    fn folds(&self, operation: &Operation, limits: &Limits) -> bool {
        let name = operation.op_name();
        let room = limits.folded_elements.saturating_sub(self.folded).min(FOLD_LIMIT);
        let small = |var: &Var| elements(self.function.ty(*var)) <= room;
        let known = operation.used_vars().all(|var| self.constant(var).is_some());
        !name.starts_with("constexpr_")
            && !name.ends_with("_state")
            && (known || name == "shape")
            && operation.outputs.iter().all(small)
    }

    fn eval(&self, operation: &Operation) -> Result<Vec<Tensor>> {
        let op = operation.op()?;
        let args = verify::bind(op, operation, |arg| match arg {
            Arg::Value(value) => Ok(ArgInfo::known(value.clone())),
            Arg::Var(var) => match self.constant(*var) {
                Some(value) => Ok(ArgInfo::known(value.clone())),
                // Only `shape` is evaluated without values, and it looks at the type alone.
                None => Ok(ArgInfo::typed(self.function.ty(*var).clone())),
            },
        })?;
        let results = op.eval(&args)?;
        if results.len() != operation.outputs.len() {
            bail!("found {} results, expected {}", results.len(), operation.outputs.len());
        }
        Ok(results)
    }
}

/// The number of elements of a type whose sizes are fixed; the largest number for other types.
pub(crate) fn elements(ty: &ValueType) -> usize {
    let dims = ty.as_tensor().and_then(|ty| ty.dims());
    dims.and_then(|dims| dims.iter().try_fold(1usize, |n, &dim| n.checked_mul(dim))).unwrap_or(usize::MAX)
}
