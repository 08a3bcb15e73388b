//! Which values the weights of a function are multiplied with.

use crate::Axes;
use crate::pass::find_use;
use quince_mil::{Defs, Function, Operation, Var};

/// A weight and a value that it is multiplied with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WeightInput {
    /// The name of the weight.
    pub weight: String,
    /// How its channels lie.
    pub axes: Axes,
    /// The name of the value's variable.
    pub value: String,
    /// The axis of the value along which the input channels lie.
    pub axis: usize,
    /// How many input channels there are.
    pub channels: usize,
    /// The name of the variable with the products.
    pub result: Option<String>,
    /// Whether rows are also looked up in the weight.
    pub tied: bool,
}

/// The inputs of all weights that [`compress`](crate::compress()) would compress, in the order of the program. Weights
/// whose columns do not each meet one channel of a value, such as those of convolutions wider than 1, are left out, and
/// so are those that rows are looked up in.
pub fn weight_inputs(function: &Function) -> Vec<WeightInput> {
    let defs = Defs::new(function);
    let mut found = Vec::new();
    for operation in &function.block.operations {
        let (Some(constant), [var]) = (operation.constant(), &operation.outputs[..]) else { continue };
        let Some(weight) = constant.weight(&function.var(*var).name) else { continue };
        let Some(how) = find_use(function, &defs, *var).filter(|_| weight.dtype().is_float()) else { continue };
        let channels = weight.shape()[how.axes.input];
        if weight.len() != channels * weight.shape()[how.axes.output] {
            continue;
        }
        for &user in defs.users(*var) {
            let user = &function.block.operations[user];
            if let Some((value, axis)) = channels_of(function, &defs, user, *var) {
                let name = |var: Var| function.var(var).name.clone();
                let (value, result) = (name(value), user.outputs.first().copied().map(name));
                let (weight, tied) = (weight.name().to_owned(), how.tied);
                found.push(WeightInput { weight, axes: how.axes, value, axis, channels, result, tied });
            }
        }
    }
    found
}

/// The value that an operation multiplies a weight with, and the axis of its channels.
fn channels_of(function: &Function, defs: &Defs, operation: &Operation, weight: Var) -> Option<(Var, usize)> {
    let (param, from_end) = match operation.op_name() {
        "linear" | "logits" => ("x", 1),
        "conv" if grouped(operation, defs) => return None,
        "conv" => ("x", 0),
        "matmul" if operation.var("y") == Some(weight) => ("x", 1),
        "matmul" => ("y", 2),
        _ => return None,
    };
    let value = operation.var(param)?;
    let rank = function.ty(value).as_tensor()?.shape.len();
    match from_end {
        0 => (rank >= 2).then_some((value, 1)),
        from_end => Some((value, rank.checked_sub(from_end)?)),
    }
}

/// Whether a convolution has groups, so that a channel meets only some of the columns.
fn grouped(operation: &Operation, defs: &Defs) -> bool {
    let groups = operation.arg("groups").and_then(|arg| defs.constant(arg)).and_then(|value| value.tensor().ok());
    groups.and_then(|tensor| tensor.to_i64().ok()).is_some_and(|groups| groups != [1])
}
