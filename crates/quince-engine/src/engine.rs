//! A program ready to run.

use crate::batch;
use crate::channels;
use crate::kernels::{self, Kernels};
use crate::memory::{Memory, StateTensor};
use crate::observe::{self, Observer, Plainly, Purpose, Watcher};
use crate::plan_cache::{PlanCache, Strategy};
use crate::planner::{self, Binding, Mode, Place, Plan};
use crate::repetition;
use crate::specialize::{Specialized, Unplanned, specialize};
use crate::strict::Marks;
use crate::weights::WeightCache;
use quince_mil::{DType, Error, Flexibility, Function, Limits, Program, Result, Tensor, ValueType, bail, eval};
use quince_tensor::f16;

/// Tensors by name.
pub use quince_mil::eval::Tensors;

/// How a program is run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// How many threads compute; 0 for as many as the machine has cores.
    pub threads: usize,
    /// How exact the arithmetic is.
    pub precision: Precision,
    /// What a program may take.
    pub limits: Limits,
}

/// How exact the arithmetic is; fp32 programs are computed in f32 unless everything is rounded.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Precision {
    /// Products with weights may be as inexact as fp16 arithmetic is.
    #[default]
    Default,
    /// What is fastest, in fp32 programs too: plain weights are rounded to bytes when they are first used, and products
    /// with weights may round activations to bytes, each relative to the largest of 128.
    Fast,
    /// Everything in f32.
    Exact,
    /// As fp16 hardware does it: every floating-point input, constant and result is rounded to fp16, those of fp32
    /// programs too; within an operation, sums are f32. Nothing is fused. [`Engine::observe`] tells what rounding did;
    /// see [`RangeReport`](crate::RangeReport).
    Strict,
}

/// A program ready to run (Core ML's `MLModel`). It may be used by several threads, each call with a state of its own.
pub struct Engine {
    program: Program,
    kernels: Kernels,
    options: Options,
    weights: WeightCache,
    plans: PlanCache,
}

/// What outlives a call (Core ML's `MLState`): the tensors of all states of a program, shared by its functions.
#[derive(Clone, Debug)]
pub struct State {
    /// In the order in which functions declare them.
    pub tensors: Vec<StateTensor>,
}

/// What is computed in a call.
#[derive(Clone, Copy)]
struct Asked {
    purpose: Purpose,
    /// How many tokens matter.
    tokens: usize,
}

impl Engine {
    /// Makes a program ready to run: checks it, and nothing else; plans are made when shapes are known.
    pub fn load(program: Program, options: Options) -> Result<Engine> {
        kernels::Isa::check()?;
        quince_mil::verify::program(&program)?;
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        let threads = if options.threads == 0 { cores } else { options.threads };
        let kernels = Kernels::new(threads);
        let weights = WeightCache::new(options.precision);
        let engine = Engine { program, kernels, options, weights, plans: PlanCache::default() };
        engine.new_state()?;
        Ok(engine)
    }

    /// The program.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// How many threads compute.
    pub fn threads(&self) -> usize {
        self.kernels.pool.threads()
    }

    /// The instruction set that kernels use.
    pub fn isa(&self) -> kernels::Isa {
        self.kernels.isa
    }

    /// States of zeros, for a new conversation.
    ///
    /// # Errors
    /// When functions disagree on a state, or there is no memory for it.
    pub fn new_state(&self) -> Result<State> {
        let mut tensors: Vec<StateTensor> = Vec::new();
        for function in &self.program.functions {
            for (info, ty) in function.states() {
                let Some(shape) = ty.dims() else { bail!("state `{}` has an unknown size", info.name) };
                match tensors.iter().find(|state| state.name == info.name) {
                    Some(state) if state.shape == shape && state.dtype() == ty.dtype => {}
                    Some(_) => bail!("functions disagree on the type of the state `{}`", info.name),
                    None => {
                        let place = |e: Error| e.at(format!("state `{}`", info.name));
                        self.options.limits.check_value(&ty.clone().into()).map_err(place)?;
                        tensors.push(StateTensor::zeros(&info.name, ty.dtype, shape)?);
                    }
                }
            }
        }
        Ok(State { tensors })
    }

    /// Runs a function on inputs by name. On an error the state may have been changed in part.
    pub fn predict(&self, function: &str, inputs: &Tensors, state: &mut State) -> Result<Tensors> {
        self.predict_tokens(function, inputs, usize::MAX, state)
    }

    /// [`Engine::predict`] where only the first `tokens` matter of those along the second axis of the integer inputs
    /// [1, S]. The others are padding, on which nothing depends that matters, as it is at the end of a causal model's
    /// input: what is computed for them is some finite values, and products are left out.
    ///
    /// # Errors
    /// As [`Engine::predict`].
    pub fn predict_tokens(
        &self,
        function: &str,
        inputs: &Tensors,
        tokens: usize,
        state: &mut State,
    ) -> Result<Tensors> {
        let strict = self.options.precision == Precision::Strict;
        let purpose = if strict { Purpose::Values } else { Purpose::Results };
        self.call(function, inputs, state, Asked { purpose, tokens }, &mut observe::Nobody)
    }

    /// [`Engine::predict`], showing an observer every value: the states, the inputs, the results of all operations that
    /// the outputs depend on in the order in which they are computed, and the states again. Operations are done one by
    /// one, as they are in the program, so that there is a value for each; it is slower.
    ///
    /// # Errors
    /// As [`Engine::predict`], and those of the observer.
    pub fn observe(
        &self,
        function: &str,
        inputs: &Tensors,
        state: &mut State,
        observer: &mut dyn Observer,
    ) -> Result<Tensors> {
        let asked = Asked { purpose: Purpose::Values, tokens: usize::MAX };
        self.call(function, inputs, state, asked, observer)
    }

    fn call(
        &self,
        function: &str,
        inputs: &Tensors,
        state: &mut State,
        asked: Asked,
        observer: &mut dyn Observer,
    ) -> Result<Tensors> {
        let function = self.program.function(function)?;
        self.run(function, inputs, state, asked, observer).map_err(|e| e.at(format!("function `{}`", function.name)))
    }

    fn run(
        &self,
        function: &Function,
        inputs: &Tensors,
        state: &mut State,
        asked: Asked,
        observer: &mut dyn Observer,
    ) -> Result<Tensors> {
        let shapes = check_inputs(function, inputs)?;
        self.run_shapes(function, shapes, inputs, state, asked, observer)
    }

    /// Runs a function on inputs of shapes that need not be among those that it declares.
    fn run_shapes(
        &self,
        function: &Function,
        shapes: Vec<Vec<usize>>,
        inputs: &Tensors,
        state: &mut State,
        asked: Asked,
        observer: &mut dyn Observer,
    ) -> Result<Tensors> {
        let number = self.program.functions.iter().position(|f| f.name == function.name).unwrap_or(0);
        let strategy = self
            .plans
            .get((number, shapes.clone(), asked.purpose), || self.strategy(function, &shapes, asked.purpose))?;
        observe::show_states(function, state, observe::Moment::Before, observer)?;
        let outputs = match &*strategy {
            Strategy::Planned(plan) => self.planned(function, plan, inputs, asked.tokens, state, observer)?,
            Strategy::Interpreted => self.interpreted(function, inputs, state, observer)?,
            Strategy::Parts(items) => batch::in_parts(inputs, *items, |inputs| {
                let shapes = shapes.iter().map(|shape| [&[inputs.1], &shape[1..]].concat()).collect();
                self.run_shapes(function, shapes, &inputs.0, state, asked, observer)
            })?,
        };
        observe::show_states(function, state, observe::Moment::After, observer)?;
        Ok(outputs)
    }

    fn strategy(&self, function: &Function, shapes: &[Vec<usize>], purpose: Purpose) -> Result<Strategy> {
        let mut specialized = match specialize(function, shapes, &self.options.limits) {
            Ok(specialized) => specialized,
            Err(Unplanned::Dynamic) => return Ok(Strategy::Interpreted),
            Err(Unplanned::Wrong(error)) => return Err(error),
        };
        if purpose == Purpose::Results {
            repetition::take_out(&mut specialized);
            if self.options.precision != Precision::Strict {
                channels::last(&mut specialized, &self.weights);
            }
        }
        let mode = Mode { precision: self.options.precision, purpose };
        let plan = planner::plan(&specialized, &self.weights, mode)?;
        let parts = if purpose == Purpose::Results {
            self.items_at_a_time(&specialized, &plan, function, shapes)
        } else {
            None
        };
        if parts.is_none() {
            self.options.limits.check_call(kept(&specialized, &plan))?;
        }
        Ok(parts.map_or(Strategy::Planned(plan), Strategy::Parts))
    }

    fn planned(
        &self,
        function: &Function,
        plan: &Plan,
        inputs: &Tensors,
        tokens: usize,
        state: &mut State,
        observer: &mut dyn Observer,
    ) -> Result<Tensors> {
        let mut states = Vec::new();
        let mut rest: Vec<Option<&mut StateTensor>> = state.tensors.iter_mut().map(Some).collect();
        for (info, _) in function.states() {
            let found = rest.iter_mut().find(|slot| slot.as_ref().is_some_and(|state| state.name == info.name));
            states.push(found.and_then(Option::take).ok_or_else(|| {
                Error::new(format!("the state given has no `{}`", info.name)).hint("make one with `new_state`")
            })?);
        }
        let (buffers, tensors) = (self.plans.take(plan)?, vec![None; plan.vars]);
        let watcher = Watcher { observer, marks: plan.marks.clone() };
        let mut memory = Memory { buffers, tensors, states, kernels: &self.kernels, tokens, watcher };
        let result = self.steps(plan, inputs, &mut memory);
        self.plans.give_back(memory.buffers);
        result
    }

    fn steps(&self, plan: &Plan, inputs: &Tensors, memory: &mut Memory) -> Result<Tensors> {
        for binding in &plan.inputs {
            let tensor = inputs.get(&binding.name).ok_or_else(|| missing(&binding.name))?;
            enter(memory, binding, tensor)?;
        }
        for step in &plan.steps {
            (step.run)(memory).map_err(|e| e.at(format!("operation `{}` ({})", step.name, step.kind)))?;
        }
        plan.outputs.iter().map(|binding| Ok((binding.name.clone(), leave(memory, binding)?))).collect()
    }
}

impl Engine {
    /// Runs a function operation by operation, with the types that it declares.
    fn interpreted(
        &self,
        function: &Function,
        inputs: &Tensors,
        state: &mut State,
        observer: &mut dyn Observer,
    ) -> Result<Tensors> {
        let mut states = Tensors::new();
        for tensor in &state.tensors {
            states.insert(tensor.name.clone(), tensor.to_tensor()?);
        }
        let marks = if self.options.precision == Precision::Strict { function.vars.len() } else { 0 };
        let marks = vec![Marks::default(); marks];
        let mut plainly = Plainly { function, observer, kernels: &self.kernels, marks };
        let outputs = eval::run_observed(function, inputs, &mut states, &self.options.limits, &mut plainly)?;
        for tensor in &mut state.tensors {
            if let Some(new) = states.get(&tensor.name) {
                tensor.set(new)?;
            }
        }
        Ok(outputs)
    }

    /// How many items of a batch are computed at a time, if not all: as many as the caches hold the values of.
    fn items_at_a_time(
        &self,
        many: &Specialized,
        plan: &Plan,
        function: &Function,
        shapes: &[Vec<usize>],
    ) -> Option<usize> {
        /// Bytes of the values of a part. The second-level caches hold some of it, the third all, beside the weights.
        const BYTES: usize = 8 << 20;
        let items = *shapes.first()?.first()?;
        let parts = plan.bytes().div_ceil(BYTES).min(items);
        let singles: Vec<Vec<usize>> =
            shapes.iter().map(|shape| [&[1], shape.get(1..).unwrap_or_default()].concat()).collect();
        let mut one = if parts > 1 { specialize(function, &singles, &self.options.limits).ok()? } else { return None };
        repetition::take_out(&mut one);
        if self.options.precision != Precision::Strict {
            channels::last(&mut one, &self.weights);
        }
        batch::is_itemwise(many, &one, items).then(|| items.div_ceil(parts))
    }
}

/// Bytes of the values that a call keeps: those of buffers, and all that are no floats.
fn kept(specialized: &Specialized, plan: &Plan) -> usize {
    let function = &specialized.function;
    let computed = function.block.operations.iter().flat_map(|operation| &operation.outputs);
    let whole = computed.filter(|var| {
        let is_float = function.ty(**var).as_tensor().is_some_and(|ty| ty.dtype.is_float());
        !is_float && specialized.constants[var.0 as usize].is_none()
    });
    whole.map(|var| Limits::bytes_of(function.ty(*var))).fold(plan.bytes(), usize::saturating_add)
}

fn missing(name: &str) -> Error {
    Error::new(format!("the input `{name}` is missing"))
}

/// Checks the inputs against the function's declarations; gives the shape of each input in order, states included.
fn check_inputs(function: &Function, inputs: &Tensors) -> Result<Vec<Vec<usize>>> {
    let mut shapes = Vec::with_capacity(function.inputs.len());
    for input in &function.inputs {
        let info = function.var(input.var);
        let ValueType::Tensor(ty) = &info.ty else {
            shapes.push(info.ty.as_tensor().and_then(|ty| ty.dims()).unwrap_or_default());
            continue;
        };
        let tensor = inputs.get(&info.name).ok_or_else(|| missing(&info.name))?;
        let shape = tensor.shape();
        let fits = ty.shape.len() == shape.len() && ty.shape.iter().zip(shape).all(|(dim, &n)| dim.fits(n.into()));
        let (allowed, inside) = match &input.flexibility {
            Flexibility::Fixed => (ty.to_string(), fits),
            Flexibility::Range { bounds, .. } => {
                let within = |(&(low, high), &n): (&(usize, Option<usize>), &usize)| {
                    n >= low && high.is_none_or(|high| n <= high)
                };
                let text: Vec<String> = bounds
                    .iter()
                    .map(|(low, high)| high.map_or(format!("{low}.."), |high| format!("{low}..={high}")))
                    .collect();
                let inside = bounds.len() == shape.len() && bounds.iter().zip(shape).all(within);
                (format!("{} with sizes [{}]", ty.dtype, text.join(", ")), fits && inside)
            }
            Flexibility::Enumerated(shapes) => {
                (format!("{} with a shape of {shapes:?}", ty.dtype), fits && shapes.iter().any(|s| s == shape))
            }
        };
        if !inside || tensor.dtype() != ty.dtype {
            bail!("input `{}`: found {tensor:?}, expected {allowed}", info.name);
        }
        shapes.push(shape.to_vec());
    }
    if let Some(unknown) =
        inputs.keys().find(|name| !function.inputs.iter().any(|i| &function.var(i.var).name == *name))
    {
        let names: Vec<&str> = function.inputs.iter().map(|i| function.var(i.var).name.as_str()).collect();
        bail!("found an input `{unknown}`, expected only {}", names.join(", "));
    }
    Ok(shapes)
}

/// Puts an input where the plan wants it.
fn enter(memory: &mut Memory, binding: &Binding, tensor: &Tensor) -> Result<()> {
    match &binding.place {
        Place::Buffer(id) => {
            let len = tensor.len();
            match (tensor.as_slice::<f16>(), tensor.as_slice::<f32>()) {
                (Some(values), _) => memory.write(*id, len, |m, y| {
                    kernels::f16_to_f32(m.kernels, values, y);
                    Ok(())
                }),
                (_, Some(values)) => {
                    memory.buffers[*id][..len].copy_from_slice(values);
                    Ok(())
                }
                _ => {
                    memory.buffers[*id][..len].copy_from_slice(&tensor.to_f32()?);
                    Ok(())
                }
            }
        }
        Place::Tensor(index) => {
            memory.tensors[*index] = Some(tensor.clone());
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Takes an output from where the plan left it, in the type that the program declares.
fn leave(memory: &Memory, binding: &Binding) -> Result<Tensor> {
    let tensor = match &binding.place {
        Place::Buffer(id) => {
            let len: usize = binding.shape.iter().product();
            let values = &memory.buffers[*id][..len];
            if binding.dtype == DType::F16 {
                let mut half = vec![f16::ZERO; len];
                kernels::f32_to_f16(memory.kernels, values, &mut half);
                return Tensor::from_vec(binding.shape.clone(), half);
            }
            Tensor::from_vec(binding.shape.clone(), values.to_vec())?
        }
        Place::Tensor(index) => memory.tensor(*index)?.clone(),
        Place::Const(value) => value.tensor()?,
        Place::State { .. } | Place::Packed => bail!("output `{}` was not computed", binding.name),
    };
    tensor.cast(binding.dtype)
}
