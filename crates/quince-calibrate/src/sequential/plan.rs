//! What is run, and in which order weights are compressed.

use super::segments::{Segment, segments};
use crate::Run;
use crate::collect::channels_last;
use crate::statistics::key;
use quince_compress::{WeightInput, weight_inputs};
use quince_engine::{Options, Tensors, fixed};
use quince_mil::{Defs, Function, Program, ValueType, Var};
use quince_runtime::Call;
use quince_tensor::{Result, Tensor, Weight, bail};
use std::collections::HashMap;

/// A call of a text, and how much its values count.
pub(super) struct Text {
    /// Which of the functions for fixed sizes.
    pub variant: usize,
    pub tokens: Vec<u32>,
    /// Tokens of the call.
    pub length: usize,
    pub inputs: Tensors,
    pub scale: f32,
}

impl Text {
    /// The channels of each of its positions in a value, one after the other; padding is left out.
    pub fn rows(&self, value: &Tensor, axis: usize, channels: usize) -> Result<Vec<f32>> {
        let shape = value.shape();
        if shape.get(axis) != Some(&channels) {
            bail!("found a value of shape {shape:?}, expected {channels} channels along axis {axis}");
        }
        let inner = shape[axis + 1..].iter().product();
        let mut rows = channels_last(value.to_f32()?, channels, inner, self.scale);
        if rows.len() == self.length * channels {
            rows.truncate(self.tokens.len() * channels);
        }
        Ok(rows)
    }
}

/// Weights that are multiplied with the same value.
pub(super) struct Group {
    pub value: String,
    /// The operation that computes it.
    pub at: Option<usize>,
    pub axis: usize,
    pub channels: usize,
    pub members: Vec<Member>,
}

/// A weight, and what its product is added to.
pub(super) struct Member {
    pub weight: Weight,
    pub axes: [usize; 2],
    pub residual: Option<Residual>,
}

/// A value that a product is added to.
pub(super) struct Residual {
    pub value: String,
    /// Output channels.
    pub rows: usize,
}

/// What is run, and in which order weights are used.
pub(super) struct Plan {
    /// The function and the shapes of its inputs.
    pub variants: Vec<(String, Vec<Vec<usize>>)>,
    pub texts: Vec<Text>,
    pub groups: Vec<Group>,
    /// The same of weights that rows are also looked up in: they change what all others get, so that they come first.
    pub tied: Vec<Group>,
}

impl Plan {
    pub fn of(program: &Program, run: &Run, engine: &Options) -> Result<Option<Plan>> {
        let mut plan = Plan { variants: Vec::new(), texts: Vec::new(), groups: Vec::new(), tied: Vec::new() };
        for tokens in &run.texts.windows {
            let Some(Call { function, inputs, length }) = run.runner.call_for(tokens)? else { continue };
            let shapes = shapes(program.function(&function)?, &inputs)?;
            let wanted = (function, shapes);
            let known = plan.variants.iter().position(|known| *known == wanted);
            let variant = known.unwrap_or_else(|| {
                plan.variants.push(wanted);
                plan.variants.len() - 1
            });
            let scale = run.runner.weight(tokens.len()).sqrt();
            plan.texts.push(Text { variant, tokens: tokens.clone(), length, inputs, scale });
        }
        let Some((name, shapes)) = plan.variants.first() else { return Ok(None) };
        // What is left out should be an exception.
        let taken: usize = plan.texts.iter().map(|text| text.tokens.len()).sum();
        if 2 * taken < run.texts.tokens() {
            return Ok(None);
        }
        let Some(function) = fixed(program.function(name)?, shapes, &engine.limits)? else { return Ok(None) };
        let defs = Defs::new(&function);
        let constants = function
            .block
            .operations
            .iter()
            .filter_map(|o| o.constant()?.weight(&function.var(*o.outputs.first()?).name));
        let constants: HashMap<String, Weight> = constants.map(|weight| (weight.name().to_owned(), weight)).collect();
        for input in weight_inputs(&function) {
            let Some(weight) = constants.get(&input.weight) else { return Ok(None) };
            if plan.weights().any(|known| known == input.weight) {
                return Ok(None);
            }
            let groups = if input.tied { &mut plan.tied } else { &mut plan.groups };
            let (residual, axes) = (residual(&function, &defs, &input), [input.axes.output, input.axes.input]);
            let member = Member { weight: weight.clone(), axes, residual };
            match groups.iter_mut().find(|group| group.value == input.value) {
                Some(group) if (group.axis, group.channels) == (input.axis, input.channels) => {
                    group.members.push(member)
                }
                Some(_) => return Ok(None),
                None => {
                    let is_it = |var: &Var| function.var(*var).name == input.value;
                    let at = function.block.operations.iter().position(|operation| operation.outputs.iter().any(is_it));
                    let (value, axis, channels) = (input.value, input.axis, input.channels);
                    groups.push(Group { value, at, axis, channels, members: vec![member] });
                }
            }
        }
        for groups in [&mut plan.groups, &mut plan.tied] {
            groups.sort_by_key(|group| group.at);
        }
        Ok(Some(plan))
    }

    pub fn weights(&self) -> impl Iterator<Item = &str> {
        self.groups.iter().chain(&self.tied).flat_map(|group| group.members.iter().map(|member| member.weight.name()))
    }

    /// Leaves weights out that are not compressed.
    pub fn retain(&mut self, kept: &HashMap<String, Vec<Weight>>) {
        for groups in [&mut self.groups, &mut self.tied] {
            for group in &mut *groups {
                group.members.retain(|member| kept.contains_key(&key(member.weight.name())));
            }
            groups.retain(|group| !group.members.is_empty());
        }
    }

    /// The function for each of its sizes, cut at the values of groups.
    pub fn pieces(&self, groups: &[&Group], program: &Program, engine: &Options) -> Result<Option<Vec<Vec<Segment>>>> {
        let cuts: Vec<&str> = groups.iter().map(|group| group.value.as_str()).collect();
        let residuals =
            groups.iter().map(|group| group.members.iter().filter_map(|m| Some(m.residual.as_ref()?.value.as_str())));
        let residuals: Vec<Vec<&str>> = residuals.map(Iterator::collect).collect();
        let pieces = self.variants.iter().map(|(name, shapes)| {
            let function = fixed(program.function(name)?, shapes, &engine.limits)?;
            Ok(function.and_then(|function| segments(&function, &cuts, &residuals)))
        });
        pieces.collect()
    }
}

/// The shapes of inputs in the order of a function, of states those that they have.
fn shapes(function: &Function, inputs: &Tensors) -> Result<Vec<Vec<usize>>> {
    let shape = |name: &str, ty: &ValueType| match (ty, inputs.get(name)) {
        (ValueType::Tensor(_), Some(tensor)) => Ok(tensor.shape().to_vec()),
        (ValueType::Tensor(_), None) => bail!("the call has no input `{name}`"),
        _ => Ok(ty.as_tensor().and_then(|ty| ty.dims()).unwrap_or_default()),
    };
    function.inputs.iter().map(|input| shape(&function.var(input.var).name, function.ty(input.var))).collect()
}

/// What the product with a weight is added to, if that is all that becomes of it.
fn residual(function: &Function, defs: &Defs, input: &WeightInput) -> Option<Residual> {
    let result = input.result.as_ref()?;
    let producer =
        function.block.operations.iter().find(|o| o.outputs.iter().any(|v| function.var(*v).name == *result))?;
    let [result] = producer.outputs[..] else { return None };
    let [user] = defs.users(result) else { return None };
    let add = &function.block.operations[*user];
    let [x, y] = [add.var("x")?, add.var("y")?];
    let other = if x == result { y } else { x };
    let dims = |var| function.ty(var).as_tensor().and_then(|ty| ty.dims());
    let fits = add.op_name() == "add" && x != y && !defs.is_output(result) && dims(other) == dims(result);
    let rows = *dims(result)?.get(input.axis)?;
    // It has to be there when the weight's input is.
    let order = |var| defs.producer_index(var).map_or(0, |i| i + 1);
    let value = function.vars.iter().position(|var| var.name == input.value)?;
    let before = order(other) <= order(Var(value as u32));
    (fits && before).then(|| Residual { value: function.var(other).name.clone(), rows })
}
