//! Values while a function runs: shown to whoever asks for them, and rounded to fp16 where everything is.
//!
//! A plan whose [`Purpose`] is every value has no fusions, and after each operation a step that shows its results.

use crate::State;
use crate::kernels::Kernels;
use crate::memory::{Memory, StateData, StateTensor};
use crate::planner::{Place, Planner};
use crate::strict::{self, Marks, Rounding};
use quince_mil::{Arg, DType, Error, Function, Operation, Result, Tensor, Value, Var, eval};
use quince_tensor::f16;

/// What a plan computes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) enum Purpose {
    /// What the results of the function need; what lies inside fusions does not exist.
    #[default]
    Results,
    /// Every value that they are computed from.
    Values,
}

/// Is shown the values of a call, in the order in which they are computed.
pub trait Observer {
    /// A value that was just computed.
    ///
    /// # Errors
    /// Whatever keeps the observer from going on; the call ends with it.
    fn value(&mut self, value: &Observed) -> Result<()>;
}

/// Looks at nothing.
pub(crate) struct Nobody;

impl Observer for Nobody {
    fn value(&mut self, _: &Observed) -> Result<()> {
        Ok(())
    }
}

/// A value that was just computed.
pub struct Observed<'a> {
    /// The name of its variable.
    pub name: &'a str,
    /// How often each loop around it ran before, the outermost first; empty outside of loops.
    pub iterations: &'a [usize],
    /// Where it comes from.
    pub origin: Origin<'a>,
    /// The element type that the program declares.
    pub dtype: DType,
    /// The size along each axis.
    pub shape: &'a [usize],
    /// What rounding to fp16 did to it, under [`Precision::Strict`](crate::Precision::Strict).
    pub rounding: Option<Rounding>,
    pub(crate) data: Data<'a>,
}

/// Where a value comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin<'a> {
    /// Given to the function.
    Input,
    /// A state before the call.
    StateBefore,
    /// A state after the call.
    StateAfter,
    /// A constant that rounding to fp16 changed for the worse; other constants are not shown.
    Constant,
    /// A state as an operation left it or read it.
    State(Source<'a>),
    /// Computed, also beforehand from constants.
    Operation(Source<'a>),
}

/// The operation that computed a value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Source<'a> {
    /// Its name.
    pub name: &'a str,
    /// What it does: `linear`.
    pub kind: &'a str,
}

/// The elements where they lie.
pub(crate) enum Data<'a> {
    Floats(&'a [f32]),
    Halves(&'a [f16]),
    Tensor(&'a Tensor),
}

impl Observed<'_> {
    /// A copy of the elements: floating point in float32, which holds whatever the engine computes, the rest as it is.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn tensor(&self) -> Result<Tensor> {
        match self.data {
            Data::Floats(values) => Tensor::from_vec(self.shape, values.to_vec()),
            Data::Halves(values) => Tensor::from_vec(self.shape, values.iter().map(|v| v.to_f32()).collect()),
            Data::Tensor(tensor) if tensor.dtype().is_float() => tensor.cast(DType::F32),
            Data::Tensor(tensor) => Ok(tensor.clone()),
        }
    }
}

/// Who is shown the values of a call, and what is known of them so far.
pub(crate) struct Watcher<'a> {
    pub observer: &'a mut dyn Observer,
    /// By variable, under [`Precision::Strict`](crate::Precision::Strict).
    pub marks: Vec<Marks>,
}

/// What is shown of a value besides its elements, made when the function is planned.
struct Label {
    name: String,
    operation: Option<(String, &'static str)>,
    dtype: DType,
    shape: Vec<usize>,
}

impl Label {
    /// None for what is no tensor of known size.
    fn of(planner: &Planner, var: Var, operation: Option<&Operation>) -> Result<Option<Label>> {
        let (Ok(dtype), Ok(shape)) = (planner.dtype(var), planner.shape(var)) else { return Ok(None) };
        let operation = operation.map(|o| Ok((o.name.clone(), o.op()?.name()))).transpose()?;
        Ok(Some(Label { name: planner.function.var(var).name.clone(), operation, dtype, shape }))
    }

    fn show(&self, memory: &mut Memory, place: &Place, rounding: Option<Rounding>) -> Result<()> {
        let source = self.operation.as_ref().map(|(name, kind)| Source { name, kind });
        let in_state = matches!(place, Place::State { .. });
        let origin = match source {
            Some(source) if in_state => Origin::State(source),
            Some(source) => Origin::Operation(source),
            None => Origin::Input,
        };
        let constant;
        let data = match place {
            Place::Buffer(id) => Data::Floats(&memory.buffers[*id]),
            Place::Tensor(index) => match &memory.tensors[*index] {
                Some(tensor) => Data::Tensor(tensor),
                None => return Ok(()),
            },
            Place::State { state, offset } => Data::of_state(memory.states[*state], *offset),
            Place::Const(value) => {
                constant = value.tensor()?;
                Data::Tensor(&constant)
            }
            Place::Packed => return Ok(()),
        };
        let data = data.first(self.shape.iter().product())?;
        let (dtype, shape) = (self.dtype, &self.shape[..]);
        let value = Observed { name: &self.name, iterations: &[], origin, dtype, shape, rounding, data };
        memory.watcher.observer.value(&value)
    }
}

impl<'a> Data<'a> {
    fn of_state(state: &'a StateTensor, offset: usize) -> Data<'a> {
        match &state.data {
            StateData::F16(values) => Data::Halves(values.get(offset..).unwrap_or_default()),
            StateData::F32(values) => Data::Floats(values.get(offset..).unwrap_or_default()),
        }
    }

    /// The first `len` elements of what may be more.
    fn first(self, len: usize) -> Result<Data<'a>> {
        let cut = match self {
            Data::Floats(values) => values.get(..len).map(Data::Floats),
            Data::Halves(values) => values.get(..len).map(Data::Halves),
            Data::Tensor(tensor) => Some(Data::Tensor(tensor)),
        };
        cut.ok_or_else(|| Error::new(format!("a value of {len} elements lies where there are fewer")))
    }
}

impl Planner<'_> {
    /// Appends what shows an input of the function, rounded first where everything is.
    pub(crate) fn watch_input(&mut self, var: Var) -> Result<()> {
        match self.watches() {
            true => self.watch_var(var, None),
            false => Ok(()),
        }
    }

    /// Appends what shows the results of an operation that was just appended, rounded first where everything is.
    pub(crate) fn watch(&mut self, operation: &Operation) -> Result<()> {
        if !self.watches() || is_weight(operation) {
            return Ok(());
        }
        if self.rounds() {
            self.watch_constants(operation)?;
            self.watch_written_state(operation);
        }
        operation.outputs.iter().try_for_each(|var| self.watch_var(*var, Some(operation)))
    }

    fn watch_var(&mut self, var: Var, operation: Option<&Operation>) -> Result<()> {
        let Some(label) = Label::of(self, var, operation)? else { return Ok(()) };
        let sources: Vec<Var> = operation.into_iter().flat_map(Operation::used_vars).collect();
        let place = match self.place(var)? {
            // As steps read it: rounded where everything is.
            Place::Const(value) => Place::Const(self.tensor(&value)?.into()),
            place => place,
        };
        let rounded = match &place {
            // What lies where a source lies is that source, which is rounded already.
            Place::Buffer(id) if self.rounds() && !self.shares_buffer(*id, &sources) => Some(*id),
            _ => None,
        };
        let moves = operation.is_some_and(|operation| strict::moves(operation.op_name()));
        let inside = match (operation, rounded) {
            (Some(operation), Some(_)) => strict::Inside::of(self, operation)?,
            _ => None,
        };
        let (index, len, is_float) = (var.0 as usize, label.shape.iter().product(), label.dtype.is_float());
        let is_input = operation.is_none();
        self.push("watch", &label.name.clone(), move |memory| {
            // What an input holds is nobody's fault here, only what rounding makes of it.
            let before = if is_input { Marks::ALL } else { memory.watcher.marks_of(&sources) };
            let rounding = match rounded {
                Some(id) => {
                    let inside = inside.as_ref().map_or(Ok(0), |inside| inside.count(memory, id, len))?;
                    let mut rounding = strict::round(memory.kernels, &mut memory.buffers[id][..len]);
                    memory.watcher.mark(index, rounding.marks());
                    rounding.judge(before, inside, moves);
                    Some(rounding)
                }
                None => {
                    memory.watcher.mark(index, if is_float { before } else { Marks::default() });
                    None
                }
            };
            label.show(memory, &place, rounding)
        });
        Ok(())
    }

    /// Appends what passes on whether a state holds infinities.
    fn watch_written_state(&mut self, operation: &Operation) {
        if let ("write_state", Some(state), Some(data)) =
            (operation.op_name(), operation.var("input"), operation.var("data"))
        {
            self.push("watch", &operation.name, move |memory| {
                let marks = memory.watcher.marks_of(&[state, data]);
                memory.watcher.mark(state.0 as usize, marks);
                Ok(())
            });
        }
    }

    /// Appends what shows constants that fp16 cannot hold.
    fn watch_constants(&mut self, operation: &Operation) -> Result<()> {
        for (param, args) in &operation.inputs {
            for arg in args {
                let (name, value) = match arg {
                    Arg::Value(value) => (format!("{} ({param})", operation.name), value.clone()),
                    Arg::Var(var) => match self.unseen_constant(*var) {
                        Some(value) => (self.function.var(*var).name.clone(), value.clone()),
                        None => continue,
                    },
                };
                let Some((rounding, tensor)) = strict::constant(&value)? else { continue };
                if let Arg::Var(var) = arg {
                    self.mark_constant(*var, rounding.marks());
                }
                if rounding.spoils(tensor.len()) {
                    self.push("watch", &name.clone(), move |memory| {
                        memory.watcher.observer.value(&Observed {
                            name: &name,
                            iterations: &[],
                            origin: Origin::Constant,
                            dtype: tensor.dtype(),
                            shape: tensor.shape(),
                            rounding: Some(rounding),
                            data: Data::Tensor(&tensor),
                        })
                    });
                }
            }
        }
        Ok(())
    }
}

/// Whether a call is still to be made.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    Before,
    After,
}

/// Shows the states of a function.
pub(crate) fn show_states(
    function: &Function,
    state: &State,
    moment: Moment,
    observer: &mut dyn Observer,
) -> Result<()> {
    for (info, ty) in function.states() {
        let Some(tensor) = state.tensors.iter().find(|tensor| tensor.name == info.name) else { continue };
        observer.value(&Observed {
            name: &info.name,
            iterations: &[],
            origin: if moment == Moment::Before { Origin::StateBefore } else { Origin::StateAfter },
            dtype: ty.dtype,
            shape: &tensor.shape,
            rounding: None,
            data: Data::of_state(tensor, 0),
        })?;
    }
    Ok(())
}

/// Shows an observer what the plain evaluator computes, where a function cannot be planned.
pub(crate) struct Plainly<'a> {
    pub function: &'a Function,
    pub observer: &'a mut dyn Observer,
    pub kernels: &'a Kernels,
    /// By variable, where everything is rounded; empty elsewhere.
    pub marks: Vec<Marks>,
}

impl eval::Observer for Plainly<'_> {
    fn value(&mut self, seen: &eval::Seen, value: Value) -> Result<Value> {
        let quiet = seen.operation.is_some_and(is_weight);
        if !matches!(value, Value::Tensor(_) | Value::Weight(_)) || (quiet && self.marks.is_empty()) {
            return Ok(value);
        }
        let mut tensor = value.tensor()?;
        let rounding = match tensor.dtype().is_float() && !self.marks.is_empty() {
            true => Some(self.round(seen, &mut tensor)?),
            false => None,
        };
        if !quiet {
            let info = self.function.var(seen.var);
            let source = seen.operation.map(|o| Ok(Source { name: &o.name, kind: o.op()?.name() })).transpose()?;
            let origin = match source {
                Some(source) if source.kind == "read_state" => Origin::State(source),
                Some(source) => Origin::Operation(source),
                None => Origin::Input,
            };
            self.observer.value(&Observed {
                name: &info.name,
                iterations: seen.iterations,
                origin,
                dtype: tensor.dtype(),
                shape: tensor.shape(),
                rounding,
                data: Data::Tensor(&tensor),
            })?;
        }
        Ok(tensor.into())
    }
}

impl Plainly<'_> {
    fn round(&mut self, seen: &eval::Seen, tensor: &mut Tensor) -> Result<Rounding> {
        let mut values = tensor.to_f32()?;
        let mut rounding = strict::round(self.kernels, &mut values);
        let (marks, mut before) = (rounding.marks(), Marks::default());
        match seen.operation {
            // What leaves a block, or is handed to one, was looked at where it was computed.
            Some(operation) if !operation.blocks.is_empty() => rounding.judge(Marks::ALL, 0, true),
            Some(operation) => {
                let sources = operation.used_vars().filter_map(|var| self.marks.get(var.0 as usize));
                before = sources.fold(before, |a, b| a.or(*b));
                rounding.judge(before, 0, strict::moves(operation.op_name()));
            }
            None => rounding.judge(Marks::ALL, 0, false),
        }
        if let Some(slot) = self.marks.get_mut(seen.var.0 as usize) {
            *slot = marks;
        }
        *tensor = Tensor::from_f32(tensor.dtype(), tensor.shape(), values)?;
        Ok(rounding)
    }
}

fn is_weight(operation: &Operation) -> bool {
    operation.op_name() == "const" || operation.op_name().starts_with("constexpr_")
}

impl Watcher<'_> {
    fn marks_of(&self, vars: &[Var]) -> Marks {
        vars.iter().filter_map(|var| self.marks.get(var.0 as usize)).fold(Marks::default(), |a, b| a.or(*b))
    }

    fn mark(&mut self, var: usize, marks: Marks) {
        if let Some(slot) = self.marks.get_mut(var) {
            *slot = marks;
        }
    }
}
