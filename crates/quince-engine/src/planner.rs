//! From a specialized function to steps: which operations are needed, which are done together, where values lie.
//!
//! Two walks. Backwards: what is needed is found from the outputs, and operations that a fusion covers ask for the
//! fusion's inputs instead of their own, so that what lies inside a fusion is never computed unless something else
//! wants it. Forwards: each operation that is left becomes a step by the table [`steps::STEPS`], or is evaluated by
//! its definition; buffers are given back as soon as nothing reads them any more.

use crate::Precision;
use crate::fuse::{self, Fused};
use crate::kernels::{Accuracy, FEW_ROWS, PackedWeight};
use crate::memory::{Memory, Operand};
use crate::observe::Purpose;
use crate::specialize::{Specialized, elements};
use crate::steps;
use crate::strict::Marks;
use crate::strict_weights;
use crate::tokens::{self, Tokens};
use crate::weights::{self, WeightCache};
use quince_mil::{Arg, DType, Defs, Error, Function, Operation, Result, Tensor, Value, ValueType, Var, bail};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// What is done when the function runs.
pub(crate) struct Plan {
    /// In order.
    pub steps: Vec<Step>,
    /// The number of elements of each buffer.
    pub buffers: Vec<usize>,
    /// By input of the function, states left out.
    pub inputs: Vec<Binding>,
    /// By output of the function.
    pub outputs: Vec<Binding>,
    /// The number of variables.
    pub vars: usize,
    /// By variable, what constants hold, where everything is rounded to fp16; empty elsewhere.
    pub marks: Vec<Marks>,
}

impl Plan {
    /// Bytes of the buffers.
    pub fn bytes(&self) -> usize {
        self.buffers.iter().fold(0, |n: usize, len| n.saturating_add(*len)).saturating_mul(size_of::<f32>())
    }
}

/// How a function is to be run.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct Mode {
    /// How exact the arithmetic is.
    pub precision: Precision,
    /// Whether only the results matter.
    pub purpose: Purpose,
}

/// One thing that is done.
pub(crate) struct Step {
    /// The operation's name, for errors and profiles.
    pub name: String,
    /// What kind of step it is.
    pub kind: &'static str,
    /// Does it.
    pub run: Run,
}

/// What a step does.
pub(crate) type Run = Box<dyn Fn(&mut Memory) -> Result<()> + Send + Sync>;

/// A value that comes from outside or goes there.
pub(crate) struct Binding {
    /// Its name.
    pub name: String,
    /// The type that the program declares.
    pub dtype: DType,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Where it lies.
    pub place: Place,
}

/// Where a value lies while the function runs.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// The first elements of a buffer.
    Buffer(usize),
    /// The tensor of a variable.
    Tensor(usize),
    /// Known beforehand.
    Const(Value),
    /// In a state, beginning with an element; row-major from there.
    State { state: usize, offset: usize },
    /// Nowhere: a weight that is used packed.
    Packed,
}

/// Makes a plan.
pub(crate) struct Planner<'a> {
    pub function: &'a Function,
    pub defs: Defs<'a>,
    constants: &'a [Option<Value>],
    cache: &'a WeightCache,
    places: Vec<Option<Place>>,
    /// Constants of several operations as steps read them, so that the steps share them.
    floats: HashMap<Var, Arc<Vec<f32>>>,
    last_use: Vec<usize>,
    buffers: Vec<Buffer>,
    steps: Vec<Step>,
    states: Vec<Var>,
    now: usize,
    mode: Mode,
    /// Constants that were looked at, and what those hold that were.
    seen: HashSet<Var>,
    marks: Vec<Marks>,
    /// By variable: which tokens its elements belong to.
    tokens: Vec<Option<Tokens>>,
    /// By x: the products `linear` of it that are still to be done, as indices of operations.
    products: HashMap<Var, Vec<usize>>,
}

struct Buffer {
    len: usize,
    last_use: usize,
    free: bool,
}

/// The plan of a function.
pub(crate) fn plan(specialized: &Specialized, cache: &WeightCache, mode: Mode) -> Result<Plan> {
    let function = &specialized.function;
    let marks = if mode.precision == Precision::Strict { function.vars.len() } else { 0 };
    let mut planner = Planner {
        function,
        defs: Defs::new(function),
        constants: &specialized.constants,
        cache,
        places: vec![None; function.vars.len()],
        floats: HashMap::new(),
        last_use: vec![0; function.vars.len()],
        buffers: Vec::new(),
        steps: Vec::new(),
        states: function.inputs.iter().map(|i| i.var).filter(|v| is_state(function, *v)).collect(),
        now: 0,
        mode,
        seen: HashSet::new(),
        marks: vec![Marks::default(); marks],
        tokens: tokens::follow(specialized),
        products: HashMap::new(),
    };
    let work = planner.needed();
    let inputs = planner.bind_inputs()?;
    for (index, _) in work.iter().filter(|(_, work)| matches!(work, Work::Plain)) {
        let operation = &function.block.operations[*index];
        let rounded = planner.rounds() && strict_weights::weight_of_linear(&planner, operation)?.is_some();
        if let ("linear", Some(x), false) = (operation.op_name(), operation.var("x"), rounded) {
            planner.products.entry(x).or_default().push(*index);
        }
    }
    for (index, work) in work {
        planner.now = index + 1;
        let operation = &function.block.operations[index];
        let emitted = match work {
            _ if operation.outputs.iter().any(|var| planner.is_placed(*var)) => Ok(()),
            Work::Fused(fused) => (fused.emit)(&mut planner, operation),
            Work::Plain if planner.rounds() && strict_weights::linear(&mut planner, operation)? => Ok(()),
            Work::Plain => steps::emit(&mut planner, operation),
            Work::Known => Ok(()),
        };
        emitted.and_then(|()| planner.watch(operation)).map_err(|e| e.at(operation.place()))?;
        planner.release();
    }
    let outputs = planner.bind_outputs()?;
    let buffers = planner.buffers.iter().map(|buffer| buffer.len).collect();
    let vars = function.vars.len();
    Ok(Plan { steps: planner.steps, buffers, inputs, outputs, vars, marks: planner.marks })
}

/// How an operation is done.
enum Work {
    /// As the last of several, with them.
    Fused(Fused),
    /// By itself.
    Plain,
    /// Its results were computed beforehand, and somebody wants to see them.
    Known,
}

fn is_state(function: &Function, var: Var) -> bool {
    matches!(function.ty(var), ValueType::State(_))
}

impl<'a> Planner<'a> {
    /// The operations that must be done, in order, with how; also fills `last_use`.
    fn needed(&mut self) -> Vec<(usize, Work)> {
        let operations = &self.function.block.operations;
        let mut wanted = vec![false; self.function.vars.len()];
        for var in &self.function.block.outputs {
            wanted[var.0 as usize] = true;
            self.last_use[var.0 as usize] = usize::MAX;
        }
        let mut work = Vec::new();
        for (index, operation) in operations.iter().enumerate().rev() {
            let effect = operation.op_name() == "write_state";
            let known = operation.outputs.iter().all(|var| self.constants[var.0 as usize].is_some());
            if !effect && known && self.watches() {
                work.push((index, Work::Known));
            }
            if !effect && (known || !operation.outputs.iter().any(|var| wanted[var.0 as usize])) {
                continue;
            }
            let fused = if self.watches() { None } else { fuse::find(self, operation) };
            let mut want = |var: Var| {
                wanted[var.0 as usize] = true;
                let last_use = &mut self.last_use[var.0 as usize];
                *last_use = (*last_use).max(index + 1);
            };
            match &fused {
                Some(fused) => fused.inputs.iter().copied().for_each(&mut want),
                None => operation.used_vars().for_each(&mut want),
            }
            work.push((index, fused.map_or(Work::Plain, Work::Fused)));
        }
        work.reverse();
        work
    }

    /// Whether every value is shown.
    pub fn watches(&self) -> bool {
        self.mode.purpose == Purpose::Values
    }

    /// Whether every value is rounded to fp16.
    pub fn rounds(&self) -> bool {
        self.mode.precision == Precision::Strict
    }

    /// Whether a buffer is that of one of these variables.
    pub fn shares_buffer(&self, id: usize, vars: &[Var]) -> bool {
        vars.iter().any(|var| matches!(self.places[var.0 as usize], Some(Place::Buffer(other)) if other == id))
    }

    /// The value of a constant when it is asked for the first time.
    pub fn unseen_constant(&mut self, var: Var) -> Option<&'a Value> {
        let value = self.constants[var.0 as usize].as_ref()?;
        self.seen.insert(var).then_some(value)
    }

    /// Notes what a constant holds.
    pub fn mark_constant(&mut self, var: Var, marks: Marks) {
        self.marks[var.0 as usize] = marks;
    }

    fn bind_inputs(&mut self) -> Result<Vec<Binding>> {
        let mut bindings = Vec::new();
        for (i, var) in self.states.clone().into_iter().enumerate() {
            self.places[var.0 as usize] = Some(Place::State { state: i, offset: 0 });
        }
        for input in &self.function.inputs {
            if is_state(self.function, input.var) {
                continue;
            }
            let place = self.new_place(input.var)?;
            bindings.push(self.binding(input.var, place)?);
            self.watch_input(input.var)?;
        }
        Ok(bindings)
    }

    fn bind_outputs(&mut self) -> Result<Vec<Binding>> {
        let outputs = self.function.block.outputs.clone();
        outputs
            .into_iter()
            .map(|var| {
                let place = match self.place(var)? {
                    Place::State { .. } | Place::Packed => match self.operand(var)? {
                        Operand::Buffer { id, .. } => Place::Buffer(id),
                        Operand::Const(values) => {
                            Place::Const(Tensor::from_vec(self.shape(var)?, values.to_vec())?.into())
                        }
                    },
                    Place::Const(value) => Place::Const(self.tensor(&value)?.into()),
                    place => place,
                };
                self.binding(var, place)
            })
            .collect()
    }

    fn binding(&self, var: Var, place: Place) -> Result<Binding> {
        Ok(Binding {
            name: self.function.var(var).name.clone(),
            dtype: self.dtype(var)?,
            shape: self.shape(var)?,
            place,
        })
    }

    /// Gives back the buffers that nothing reads after the current operation.
    fn release(&mut self) {
        for buffer in &mut self.buffers {
            buffer.free |= buffer.last_use <= self.now;
        }
    }

    /// The type of a variable whose sizes are fixed.
    pub fn shape(&self, var: Var) -> Result<Vec<usize>> {
        let dims = self.function.ty(var).as_tensor().and_then(|ty| ty.dims());
        dims.ok_or_else(|| Error::new(format!("the shape of `{}` is not known", self.function.var(var).name)))
    }

    /// The element type that the program declares.
    pub fn dtype(&self, var: Var) -> Result<DType> {
        let ty = self.function.ty(var).as_tensor();
        ty.map(|ty| ty.dtype).ok_or_else(|| Error::new(format!("`{}` is no tensor", self.function.var(var).name)))
    }

    /// The token of the first of so many rows of a variable, if each row is of one token, in order, and so are those that
    /// follow.
    pub fn token_of_first_row(&self, var: Var, rows: usize) -> Result<Option<usize>> {
        let cols = self.shape(var)?.last().copied().unwrap_or(0);
        Ok(self.tokens[var.0 as usize].and_then(|tokens| tokens.of_rows(rows, cols)))
    }

    /// How exact products of this variable have to be.
    pub fn accuracy(&self, var: Var) -> Accuracy {
        match (self.mode.precision, self.dtype(var)) {
            (Precision::Fast, _) => Accuracy::Fast,
            (Precision::Default, Ok(DType::F16)) => Accuracy::Default,
            _ => Accuracy::Exact,
        }
    }

    /// The value of a variable, if it is known beforehand.
    pub fn constant(&self, var: Var) -> Option<&'a Value> {
        self.constants[var.0 as usize].as_ref()
    }

    /// The constant tensor of a parameter, if it is given and known.
    pub fn known(&self, operation: &Operation, param: &str) -> Option<Tensor> {
        match operation.arg(param)? {
            Arg::Value(value) => self.cache.tensor(value).ok(),
            Arg::Var(var) => self.cache.tensor(self.constant(*var)?).ok(),
        }
    }

    /// The single number of a constant parameter.
    pub fn number(&self, operation: &Operation, param: &str) -> Option<f64> {
        match self.known(operation, param)?.to_f64().ok()?[..] {
            [number] => Some(number),
            _ => None,
        }
    }

    /// The integers of a constant parameter.
    pub fn ints(&self, operation: &Operation, param: &str) -> Option<Vec<i64>> {
        self.known(operation, param)?.to_i64().ok()
    }

    /// The string of a constant argument.
    pub fn string<'b>(&'b self, arg: &'b Arg) -> Option<&'b str> {
        match arg {
            Arg::Value(value) => value.as_str(),
            Arg::Var(var) => self.constant(*var)?.as_str(),
        }
    }

    /// The floating-point values of an argument and their shape; `None` if they are integers or truth values.
    pub fn argument(&mut self, arg: &Arg) -> Result<Option<(Operand, Vec<usize>)>> {
        match arg {
            Arg::Var(var) if self.dtype(*var)?.is_float() => Ok(Some((self.operand(*var)?, self.shape(*var)?))),
            Arg::Value(value) if value.tensor_type().is_some_and(|ty| ty.dtype.is_float()) => {
                let tensor = self.cache.tensor(value)?;
                Ok(Some((Operand::Const(Arc::new(tensor.to_f32()?)), tensor.shape().to_vec())))
            }
            _ => Ok(None),
        }
    }

    /// The floating-point values of a parameter that may be left out, whether they are a variable or stand in place.
    pub fn parameter(&mut self, operation: &Operation, param: &str) -> Result<Option<Operand>> {
        let Some(arg) = operation.arg(param) else { return Ok(None) };
        match self.argument(arg)? {
            Some((operand, _)) => Ok(Some(operand)),
            None => bail!("parameter `{param}` is {}, expected floating point", self.function.arg_type(arg)),
        }
    }

    /// The tensor of a value that is known beforehand; a weight that has to be computed is computed once.
    pub fn tensor(&self, value: &Value) -> Result<Tensor> {
        self.cache.tensor(value)
    }

    /// The weight matrix behind a variable, if kernels can read it packed; its elements rounded where everything is.
    pub fn packed(&self, var: Var) -> Result<Option<PackedWeight>> {
        match self.packed_as_stored(var)? {
            Some(weight) if self.rounds() => strict_weights::rounded(weight).map(Some),
            weight => Ok(weight),
        }
    }

    /// [`Planner::packed`] for who rounds what it reads.
    pub fn packed_as_stored(&self, var: Var) -> Result<Option<PackedWeight>> {
        match self.defs.producer(var) {
            Some(operation) => weights::packed(self.cache, &self.defs, operation),
            None => Ok(None),
        }
    }

    /// [`Planner::packed`] for a weight of which every byte is read in every call: where reading is fastest.
    pub fn streamed(&self, var: Var) -> Result<Option<PackedWeight>> {
        let Some(weight) = self.packed(var)? else { return Ok(None) };
        if self.mode.precision == Precision::Fast
            && let Some(narrowed) = self.cache.narrowed(&weight)?
        {
            return Ok(Some(narrowed));
        }
        Ok(Some(weight.with_data(|bytes| self.cache.streamed(bytes))))
    }

    /// [`Planner::packed`] for a weight that is multiplied with `rows` rows of `x`: as it is read fastest.
    pub fn multiplied(&self, var: Var, x: Var, rows: usize) -> Result<Option<PackedWeight>> {
        if rows > FEW_ROWS
            && self.accuracy(x) == Accuracy::Exact
            && let Some(weight) = self.packed(var)?
            && let Some(laid) = self.cache.laid_out(&weight)?
        {
            return Ok(Some(laid));
        }
        self.streamed(var)
    }

    /// Where a variable lies; weights are found when first asked for.
    pub fn place(&mut self, var: Var) -> Result<Place> {
        if let Some(place) = &self.places[var.0 as usize] {
            return Ok(place.clone());
        }
        let place = match self.constant(var) {
            Some(value) => Place::Const(value.clone()),
            None => match self.defs.producer(var) {
                Some(producer) if producer.op_name().starts_with("constexpr_") => match self.dtype(var)?.is_float() {
                    true => Place::Packed,
                    // No kernel reads masks, or integers that tables hold.
                    false => Place::Const(weights::dense(self.cache, &self.defs, var)?.into()),
                },
                _ => bail!("`{}` is used before it is computed", self.function.var(var).name),
            },
        };
        self.places[var.0 as usize] = Some(place.clone());
        Ok(place)
    }

    /// The floating-point values of a variable as a step reads them. Values in a state are copied to a buffer here.
    pub fn operand(&mut self, var: Var) -> Result<Operand> {
        let len = elements(self.function.ty(var));
        match self.place(var)? {
            Place::Buffer(id) => Ok(Operand::Buffer { id, len }),
            Place::Const(value) => {
                if let Some(known) = self.floats.get(&var) {
                    return Ok(Operand::Const(known.clone()));
                }
                let values = Arc::new(self.cache.tensor(&value)?.to_f32()?);
                if self.defs.users(var).len() > 1 {
                    self.floats.insert(var, values.clone());
                }
                Ok(Operand::Const(values))
            }
            Place::Packed => {
                let tensor = weights::dense(self.cache, &self.defs, var)?;
                self.places[var.0 as usize] = Some(Place::Const(tensor.into()));
                self.operand(var)
            }
            Place::State { state, offset } => {
                let id = self.load_state(var, state, offset)?;
                Ok(Operand::Buffer { id, len })
            }
            Place::Tensor(_) => bail!("`{}` is of integers, expected floating point", self.function.var(var).name),
        }
    }

    /// Copies a part of a state to a buffer, which stands for the variable from now on.
    fn load_state(&mut self, var: Var, state: usize, offset: usize) -> Result<usize> {
        let len = elements(self.function.ty(var));
        let id = self.allocate(len, self.last_use[var.0 as usize]);
        self.places[var.0 as usize] = Some(Place::Buffer(id));
        self.push("load_state", "load_state", move |memory| steps::load_state(memory, state, offset, id, len));
        Ok(id)
    }

    /// Before a state changes: copies what earlier readers of it still want, apart from `except`.
    pub fn protect_state(&mut self, state: usize, except: &[Var]) -> Result<()> {
        for index in 0..self.places.len() {
            let var = Var(index as u32);
            if let Some(Place::State { state: s, offset }) = self.places[index]
                && s == state
                && !self.states.contains(&var)
                && !except.contains(&var)
                && self.last_use[index] > self.now
            {
                self.load_state(var, state, offset)?;
            }
        }
        Ok(())
    }

    /// The number of a state, if the variable is one.
    pub fn state(&self, var: Var) -> Option<usize> {
        self.states.iter().position(|state| *state == var)
    }

    /// The place of the current operation in time, which [`Planner::last_use`] counts in.
    pub fn now(&self) -> usize {
        self.now
    }

    /// When the variable is read last.
    pub fn last_use(&self, var: Var) -> usize {
        self.last_use[var.0 as usize]
    }

    /// A buffer for a floating-point result, a slot for another.
    pub fn new_place(&mut self, var: Var) -> Result<Place> {
        let place = if self.dtype(var)?.is_float() {
            Place::Buffer(self.output(var)?.0)
        } else {
            Place::Tensor(var.0 as usize)
        };
        self.places[var.0 as usize] = Some(place.clone());
        Ok(place)
    }

    /// A buffer for a floating-point result: its number and how many elements are written.
    pub fn output(&mut self, var: Var) -> Result<(usize, usize)> {
        let len = elements(self.function.ty(var));
        if len > 1 << 40 {
            bail!("`{}` has {len} elements, more than any machine holds", self.function.var(var).name);
        }
        let id = self.allocate(len, self.last_use[var.0 as usize]);
        self.places[var.0 as usize] = Some(Place::Buffer(id));
        Ok((id, len))
    }

    /// Room for values that only the current step needs.
    pub fn scratch(&mut self, len: usize) -> usize {
        self.allocate(len, self.now)
    }

    fn allocate(&mut self, len: usize, last_use: usize) -> usize {
        let last_use = last_use.max(self.now);
        let free = self.buffers.iter().enumerate().filter(|(_, buffer)| buffer.free);
        // The smallest that is large enough, else the largest, which grows.
        let best = free.min_by_key(|(_, b)| if b.len >= len { (0, b.len) } else { (1, usize::MAX - b.len) });
        match best.map(|(id, _)| id) {
            Some(id) => {
                let buffer = &mut self.buffers[id];
                *buffer = Buffer { len: buffer.len.max(len), last_use, free: false };
                id
            }
            None => {
                self.buffers.push(Buffer { len, last_use, free: false });
                self.buffers.len() - 1
            }
        }
    }

    /// Lets `var` be the same elements as `source`, as after `reshape`.
    pub fn alias(&mut self, var: Var, source: Var) -> Result<()> {
        let place = self.place(source)?;
        self.alias_at(var, place);
        Ok(())
    }

    /// Lets `var` lie at a place that another variable has.
    pub fn alias_at(&mut self, var: Var, place: Place) {
        if let Place::Buffer(id) = place {
            let last_use = self.last_use[var.0 as usize];
            let buffer = &mut self.buffers[id];
            buffer.last_use = buffer.last_use.max(last_use);
        }
        self.places[var.0 as usize] = Some(place);
    }

    /// Whether a result lies somewhere already, because it was computed with an earlier one.
    fn is_placed(&self, var: Var) -> bool {
        self.places[var.0 as usize].is_some() && self.constant(var).is_none()
    }

    /// The operations `linear` of this x that are still to be done, this one included; they count as done from now on.
    pub fn take_products(&mut self, x: Var) -> Vec<&'a Operation> {
        let operations = &self.function.block.operations;
        self.products.remove(&x).unwrap_or_default().into_iter().map(|index| &operations[index]).collect()
    }

    /// Appends a step.
    pub fn push(
        &mut self,
        kind: &'static str,
        name: &str,
        run: impl Fn(&mut Memory) -> Result<()> + Send + Sync + 'static,
    ) {
        self.steps.push(Step { name: name.to_owned(), kind, run: Box::new(run) });
    }
}
