//! Goes through a semantic program and writes a function of the lowered one.

use super::cache::Cache;
use super::finite::finite;
use super::last::only_last;
use super::positions::Positions;
use super::{FunctionKind, FunctionSpec, Layout, Length, LogitsOf, Settings, Shapes, Target};
use crate::semantic::{Reading, Semantic, lengths};
use crate::weights::rows_of;
use quince_mil::op::ArgInfo;
use quince_mil::{
    Arg, Args, Builder, DType, Dim, Error, Flexibility, Function, Input, Operation, Opset, Result, Tensor, TensorType,
    Value, ValueType, Var, Weight, bail, verify,
};
use std::collections::{HashMap, HashSet};
use std::ops::Range;

/// What the functions of one program share, so that it is stored once: converted weights, tables, zeros.
#[derive(Default)]
pub(super) struct Shared {
    weights: HashMap<usize, Weight>,
    /// Weights of convolutions, by identity of the weight and its rows.
    kernels: HashMap<(usize, Range<usize>), Weight>,
    pub tables: Vec<super::positions::RotaryTable>,
    /// What is added to scores, by distance.
    pub distances: HashMap<super::positions::Sight, Weight>,
    zeros: HashMap<usize, Weight>,
    /// The most tokens of a call with a cache.
    pub longest_call: usize,
}

impl Shared {
    /// Nothing so far, for these functions.
    pub fn new(functions: &[FunctionSpec]) -> Shared {
        let tokens = functions.iter().map(|spec| match spec.kind {
            FunctionKind::Cached { tokens, .. } => tokens,
            FunctionKind::Full(_) | FunctionKind::Encode(_) => 0,
        });
        Shared { longest_call: tokens.max().unwrap_or(0), ..Shared::default() }
    }
}

/// Writes one function of a lowered program. Rules append operations with [`Writer::op`] and ask for the arguments of
/// the semantic operation with [`Writer::input`].
pub struct Writer<'a> {
    semantic: &'a Semantic,
    target: &'a Target,
    /// How values lie.
    pub(super) layout: Layout,
    /// Semantic variables that lie as in the semantic program, whatever the layout.
    pub(super) by_tokens: HashSet<Var>,
    /// The function of the semantic program that is lowered.
    pub(super) source: &'a Function,
    pub(super) settings: &'a Settings,
    pub(super) spec: &'a FunctionSpec,
    pub(super) shared: &'a mut Shared,
    builder: Builder,
    /// `input_ids`.
    pub(super) ids: Var,
    pub(super) positions: Positions,
    pub(super) cache: Cache,
    /// By semantic variable: the values of its constants, its lowered variable, and that of its last token.
    constants: HashMap<Var, &'a Value>,
    lowered: HashMap<Var, Var>,
    last: HashMap<Var, Var>,
    /// Semantic variables that are computed for the last token alone.
    only_last: HashSet<Var>,
    /// Whether the operation being lowered is one of those.
    at_last: bool,
}

impl<'a> Writer<'a> {
    pub(super) fn new(
        semantic: &'a Semantic,
        target: &'a Target,
        settings: &'a Settings,
        spec: &'a FunctionSpec,
        shared: &'a mut Shared,
    ) -> Result<Writer<'a>> {
        let mut builder = Builder::new(Function::new(&spec.name, Opset::CoreML8));
        let (texts, tokens, flexibility) = match &spec.kind {
            FunctionKind::Full(Length::Flexible) => (Dim::Fixed(1), Dim::Unknown, lengths(settings.context)),
            FunctionKind::Full(Length::Fixed(n)) => (Dim::Fixed(1), Dim::Fixed(*n), Flexibility::Fixed),
            FunctionKind::Cached { tokens, .. } => (Dim::Fixed(1), Dim::Fixed(*tokens), Flexibility::Fixed),
            FunctionKind::Encode(shapes) => flexible(shapes),
        };
        let ty = TensorType { dtype: DType::I32, shape: vec![texts, tokens] };
        let ids = builder.input("input_ids", ty.clone().into(), flexibility.clone());
        let encodes = matches!(spec.kind, FunctionKind::Encode(_));
        let mask = encodes.then(|| builder.input("attention_mask", ty.into(), flexibility));
        let position = match spec.kind {
            FunctionKind::Full(_) | FunctionKind::Encode(_) => None,
            FunctionKind::Cached { .. } => {
                Some(builder.input("position", ValueType::tensor(DType::I32, &[1]), Flexibility::Fixed))
            }
        };
        let cache = Cache::new(semantic, settings, spec, shared.longest_call, &mut builder)?;
        let main = semantic.function_with(spec.voice, |reading| matches!(reading, Reading::Embedding(_)) == encodes)?;
        let operations = &main.block.operations;
        let constants =
            operations.iter().filter_map(|o| Some((*o.outputs.first()?, o.constant()?))).collect::<HashMap<_, _>>();
        let only_last = match spec.kind {
            FunctionKind::Cached { tokens, logits: LogitsOf::Last } if tokens > 1 => only_last(main, &constants),
            _ => HashSet::new(),
        };
        let inputs = main.inputs.iter().map(|input| input.var).zip([Some(ids), mask]);
        Ok(Writer {
            semantic,
            target,
            layout: target.layout,
            by_tokens: HashSet::new(),
            source: main,
            settings,
            spec,
            shared,
            builder,
            ids,
            positions: Positions::new(position, mask),
            cache,
            constants,
            lowered: inputs.filter_map(|(input, lowered)| Some((input, lowered?))).collect(),
            last: HashMap::new(),
            only_last,
            at_last: false,
        })
    }

    /// Lowers every operation: by its rule, or by copying it.
    pub(super) fn write(mut self) -> Result<Function> {
        let (main, rules) = (self.source, self.target.rules);
        for operation in &main.block.operations {
            let &[output] = &operation.outputs[..] else {
                bail!("operation `{}` has {} results, expected one", operation.name, operation.outputs.len());
            };
            if operation.constant().is_some() {
                continue;
            }
            self.at_last = self.only_last.contains(&output);
            let lowered = match rules.iter().find(|(name, _)| *name == operation.op_name()) {
                Some((_, rule)) => {
                    let args = self.args(operation)?;
                    rule(&mut self, operation, &args)
                }
                None => self.copy(operation),
            };
            let place = || format!("operation `{}` ({})", operation.name, operation.op_name());
            self.lowered.insert(output, lowered.map_err(|e| e.at(place()))?);
        }
        let mut outputs = Vec::new();
        for output in &main.block.outputs {
            if self.layout == Layout::ChannelsFirst
                && self.semantic_rank(*output) > 2
                && !self.by_tokens.contains(output)
            {
                bail!("found the output `{}` with its channels first, expected tokens first", main.var(*output).name);
            }
            outputs.push(self.of(*output)?);
        }
        outputs.extend(self.new_rows()?);
        Ok(self.builder.finish(outputs))
    }

    /// The floating-point type of the program.
    pub fn dtype(&self) -> DType {
        self.settings.precision.dtype()
    }

    /// Appends an operation with one result.
    pub fn op(&mut self, op: &str, name: &str, inputs: &[(&str, Input)]) -> Result<Var> {
        self.builder.op(op, name, inputs)
    }

    /// Appends an operation with several results.
    pub(super) fn ops(&mut self, op: &str, name: &str, inputs: &[(&str, Input)]) -> Result<Vec<Var>> {
        self.builder.ops(op, name, inputs)
    }

    /// Appends an operation without a result.
    pub(super) fn statement(&mut self, op: &str, name: &str, inputs: &[(&str, Input)]) -> Result<()> {
        self.builder.ops(op, name, inputs).map(|_| ())
    }

    /// Adds a constant.
    pub(super) fn constant(&mut self, name: &str, value: impl Into<Value>) -> Var {
        self.builder.constant(name, value.into())
    }

    /// Adds a weight, or finds it if the function has it.
    pub(super) fn weight(&mut self, weight: &Weight) -> Var {
        self.builder.weight(weight)
    }

    /// A constant of zeros [n], in the floating-point type of the program.
    pub(super) fn zeros(&mut self, n: usize) -> Result<Var> {
        if !self.shared.zeros.contains_key(&n) {
            let zeros = Tensor::zeros(self.dtype(), [n])?;
            self.shared.zeros.insert(n, Weight::from_tensor(&format!("zeros_{n}"), zeros));
        }
        Ok(self.builder.weight(&self.shared.zeros[&n]))
    }

    /// A number in the floating-point type of the program.
    pub fn number(&self, value: f32) -> Result<Input> {
        Ok(Tensor::scalar(value).cast(self.dtype())?.into())
    }

    /// x with as many texts and the other sizes as given, of which -1 stands for what is left.
    pub(super) fn reshaped(&mut self, name: &str, x: Var, rest: &[i64]) -> Result<Var> {
        let texts = match &self.spec.kind {
            FunctionKind::Encode(shapes) => shapes.texts().map(|texts| texts as i64),
            FunctionKind::Full(_) | FunctionKind::Cached { .. } => Some(1),
        };
        if let Some(texts) = texts {
            let sizes = shape(&[&[texts], rest].concat())?;
            return self.op("reshape", name, &[("x", x.into()), ("shape", sizes)]);
        }
        let sizes = self.shape_of_texts(rest)?;
        let y = self.op("reshape", name, &[("x", x.into()), ("shape", sizes.into())])?;
        let size = |&size: &i64| usize::try_from(size).map_or(Dim::Unknown, Dim::Fixed);
        let shape = std::iter::once(Dim::Unknown).chain(rest.iter().map(size)).collect();
        self.builder.declare(y, TensorType { dtype: self.dtype(), shape }.into())?;
        Ok(y)
    }

    /// The size of the last axis of a lowered value, if it is known.
    pub(super) fn last_size(&self, x: Var) -> Option<usize> {
        self.builder.ty(x).as_tensor()?.shape.last()?.fixed()
    }

    /// Whether the operation that is lowered has a single token.
    pub(super) fn single_token(&self) -> bool {
        self.at_last || matches!(self.spec.kind, FunctionKind::Cached { tokens: 1, .. })
    }

    /// The lowered variable of an argument of a semantic operation; of its last token where no other is needed.
    pub fn input(&mut self, operation: &Operation, param: &str) -> Result<Var> {
        match operation.arg(param) {
            Some(Arg::Var(var)) => self.of(*var),
            _ => bail!("found no variable for the parameter `{param}`, expected one"),
        }
    }

    /// The lowered variable of an argument that may be left out.
    pub fn optional_input(&mut self, operation: &Operation, param: &str) -> Result<Option<Var>> {
        operation.arg(param).is_some().then(|| self.input(operation, param)).transpose()
    }

    fn of(&mut self, var: Var) -> Result<Var> {
        if let Some(value) = self.constants.get(&var).copied() {
            return self.converted(&self.source.var(var).name, value);
        }
        let lowered = self.lowered.get(&var).copied();
        let lowered = lowered.ok_or_else(|| Error::new(format!("variable number {} is not lowered yet", var.0)))?;
        if self.at_last && !self.only_last.contains(&var) { self.last_token(var, lowered) } else { Ok(lowered) }
    }

    /// The last of the tokens.
    fn last_token(&mut self, var: Var, lowered: Var) -> Result<Var> {
        if let Some(last) = self.last.get(&var) {
            return Ok(*last);
        }
        let name = format!("{}.last", self.source.var(var).name);
        let Some(shape) = self.builder.ty(lowered).as_tensor().and_then(TensorType::dims) else {
            bail!("found the type {}, expected known sizes", self.builder.ty(lowered));
        };
        let layout = if self.by_tokens.contains(&var) { Layout::TokensFirst } else { self.layout };
        let tokens = layout.token_axis(self.semantic_rank(var));
        let before_last = |(axis, size): (usize, &usize)| if axis == tokens { size.saturating_sub(1) } else { 0 };
        let begin: Vec<usize> = shape.iter().enumerate().map(before_last).collect();
        let last = self.slice(&name, lowered, &begin, &shape)?;
        self.last.insert(var, last);
        Ok(last)
    }

    /// The part of x from `begin` to before `end` along each axis.
    pub(super) fn slice(&mut self, name: &str, x: Var, begin: &[usize], end: &[usize]) -> Result<Var> {
        let ints = |sizes: &[usize]| -> Result<Input> { Ok(int_vector(sizes)?.into()) };
        self.op("slice_by_index", name, &[("x", x.into()), ("begin", ints(begin)?), ("end", ints(end)?)])
    }

    /// A constant of the semantic program as one of the lowered: weights are converted when they are asked for.
    fn converted(&mut self, name: &str, value: &Value) -> Result<Var> {
        let dtype = self.dtype();
        match value {
            Value::Weight(weight) if weight.dtype().is_float() => {
                let stored = self.semantic.stored(weight);
                let converted = self.shared.weights.entry(weight.id()).or_insert_with(|| finite(&stored.cast(dtype)));
                Ok(self.builder.weight(converted))
            }
            value => {
                let value = self.in_precision(value)?;
                Ok(self.builder.constant(name, value))
            }
        }
    }

    /// The rows from `first` on of a weight [O, I] as the kernels of a convolution with its neighbours at no distance: [rows,
    /// I, 1, 1]; or a vector [D] as the channels [1, D, 1, 1]. `called` is its name, if it is not that of the weight.
    pub(super) fn kernel(&mut self, var: Var, rows: Range<usize>, called: Option<&str>) -> Result<Var> {
        let (dtype, name) = (self.dtype(), self.source.var(var).name.clone());
        let Some(Value::Weight(weight)) = self.constants.get(&var).copied() else {
            bail!("found `{name}`, which is computed, expected a weight");
        };
        let key = (weight.id(), rows.clone());
        if !self.shared.kernels.contains_key(&key) {
            let mut stored = self.semantic.stored(weight).cast(dtype);
            if let Some(called) = called {
                stored = stored.renamed(called);
            }
            let shape = match stored.shape() {
                &[channels] => [1, channels, 1, 1],
                &[_, columns] => [rows.len(), columns, 1, 1],
                other => bail!("weight `{name}`: found the shape {other:?}, expected a matrix or a vector"),
            };
            let whole = stored.shape().first() == Some(&rows.len());
            let part = if whole { stored } else { rows_of(&stored, rows)? };
            self.shared.kernels.insert(key.clone(), finite(&part).reshape(&shape)?);
        }
        Ok(self.builder.weight(&self.shared.kernels[&key]))
    }

    /// Some elements of a constant vector.
    pub(super) fn vector_part(&mut self, var: Var, part: Range<usize>) -> Result<Var> {
        let whole = self.of(var)?;
        let Some(Value::Weight(weight)) = self.constants.get(&var).copied() else { return Ok(whole) };
        if weight.shape() == [part.len()] {
            return Ok(whole);
        }
        let key = (weight.id(), part.clone());
        if !self.shared.kernels.contains_key(&key) {
            let stored = self.semantic.stored(weight).cast(self.dtype());
            self.shared.kernels.insert(key.clone(), finite(&rows_of(&stored, part)?));
        }
        Ok(self.builder.weight(&self.shared.kernels[&key]))
    }

    pub(super) fn in_precision(&self, value: &Value) -> Result<Value> {
        Ok(match value {
            Value::Tensor(tensor) if tensor.dtype().is_float() => tensor.cast(self.dtype())?.into(),
            value => value.clone(),
        })
    }

    /// Whether a semantic variable is a constant.
    pub(super) fn is_constant(&self, var: Var) -> bool {
        self.constants.contains_key(&var)
    }

    /// The same operation on lowered arguments.
    pub(super) fn copy(&mut self, operation: &Operation) -> Result<Var> {
        if operation.op()?.since() == Opset::Semantic {
            bail!("the target has no rule for `{}`", operation.op_name());
        }
        if operation.used_vars().any(|var| self.by_tokens.contains(&var)) {
            self.stays_by_token(operation);
        }
        let mut inputs: Vec<(&str, Input)> = Vec::new();
        for (param, args) in &operation.inputs {
            let mut lowered = Vec::new();
            for arg in args {
                lowered.push(match arg {
                    Arg::Var(var) => Arg::Var(self.of(*var)?),
                    Arg::Value(value) => Arg::Value(self.in_precision(value)?),
                });
            }
            inputs.push((param, Input::Many(lowered)));
        }
        self.builder.op(operation.op_name(), &operation.name, &inputs)
    }

    /// The arguments of a semantic operation: types, and values of constants.
    fn args<'o>(&self, operation: &'o Operation) -> Result<Args<'o>> {
        let main = self.source;
        verify::bind(operation.op()?, operation, |arg| match arg {
            Arg::Value(value) => Ok(ArgInfo::known(value.clone())),
            Arg::Var(var) => {
                Ok(ArgInfo { ty: main.ty(*var).clone(), value: self.constants.get(var).map(|&value| value.clone()) })
            }
        })
    }
}

/// A shape, or repetitions, as the int32 vector that parameters are.
pub(super) fn shape(sizes: &[i64]) -> Result<Input> {
    let sizes = sizes.iter().map(|&size| i32::try_from(size)).collect::<Result<Vec<i32>, _>>();
    Ok(sizes.map_err(|_| Error::new("found a size of more than 31 bits, expected a smaller one"))?.into())
}

/// The sizes of an input, and what it declares of them.
fn flexible(shapes: &Shapes) -> (Dim, Dim, Flexibility) {
    if let Some([texts, tokens]) = shapes.fixed() {
        return (Dim::Fixed(texts), Dim::Fixed(tokens), Flexibility::Fixed);
    }
    let texts = shapes.texts().map_or(Dim::Unknown, Dim::Fixed);
    let flexibility = match shapes {
        Shapes::Range { texts, tokens } => Flexibility::Range {
            bounds: vec![(texts.0, Some(texts.1)), (tokens.0, Some(tokens.1))],
            default: vec![texts.0, tokens.1.min(tokens.0.max(64))],
        },
        Shapes::Listed(shapes) => Flexibility::Enumerated(shapes.iter().map(|shape| shape.to_vec()).collect()),
    };
    (texts, Dim::Unknown, flexibility)
}

/// Sizes as the int32 vector that parameters are.
pub(super) fn int_vector(sizes: &[usize]) -> Result<Vec<i32>> {
    let int = |&size: &usize| i32::try_from(size);
    sizes
        .iter()
        .map(int)
        .collect::<Result<_, _>>()
        .map_err(|_| Error::new(format!("found the sizes {sizes:?}, expected less than 2^31")))
}
