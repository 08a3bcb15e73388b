//! Evaluates an operation by its definition.

use crate::memory::{Memory, Operand};
use crate::planner::{Place, Planner};
use quince_mil::op::ArgInfo;
use quince_mil::{Arg, Args, DType, Error, Op, Operation, Result, Tensor, Value, bail};

/// Where an argument comes from.
enum Source {
    Known(Value),
    Floats(Operand, Vec<usize>),
    Tensor(usize),
}

/// Where a result goes.
enum Sink {
    Floats(usize, usize),
    Tensor(usize),
}

/// Appends a step that evaluates the operation. Floating-point values are `f32` there whatever the program declares,
/// and so is the type that a `cast` to fp16 is asked for: the engine rounds at the borders of a function only.
pub(crate) fn emit(planner: &mut Planner, operation: &Operation) -> Result<()> {
    let op = operation.op()?;
    let mut entries = Vec::new();
    for (name, args) in &operation.inputs {
        let sources = args.iter().map(|arg| source(planner, arg)).collect::<Result<Vec<_>>>()?;
        entries.push((name.clone(), sources));
    }
    let mut sinks = Vec::new();
    for var in &operation.outputs {
        sinks.push(match planner.new_place(*var)? {
            Place::Buffer(id) => Sink::Floats(id, planner.shape(*var)?.iter().product()),
            _ => Sink::Tensor(var.0 as usize),
        });
    }
    planner.push("eval", &operation.name, move |memory| {
        let results = evaluate(memory, op, &entries)?;
        if results.len() != sinks.len() {
            bail!("found {} results, expected {}", results.len(), sinks.len());
        }
        for (sink, tensor) in sinks.iter().zip(results) {
            store(memory, sink, tensor)?;
        }
        Ok(())
    });
    Ok(())
}

fn source(planner: &mut Planner, arg: &Arg) -> Result<Source> {
    let var = match arg {
        Arg::Value(value) => return Ok(Source::Known(widened(planner, value)?)),
        Arg::Var(var) => *var,
    };
    Ok(match planner.place(var)? {
        Place::Const(value) => Source::Known(widened(planner, &value)?),
        Place::Tensor(index) => Source::Tensor(index),
        _ => Source::Floats(planner.operand(var)?, planner.shape(var)?),
    })
}

/// A value as the engine keeps it, loaded.
fn widened(planner: &Planner, value: &Value) -> Result<Value> {
    Ok(match value {
        Value::Tensor(_) | Value::Weight(_) => {
            let tensor = planner.tensor(value)?;
            let half = matches!(tensor.dtype(), DType::F16 | DType::BF16);
            if half { tensor.cast(DType::F32)?.into() } else { tensor.into() }
        }
        Value::String(name) if name == "fp16" => Value::from("fp32"),
        other => other.clone(),
    })
}

fn evaluate(memory: &Memory, op: &dyn Op, entries: &[(String, Vec<Source>)]) -> Result<Vec<Tensor>> {
    let mut bound = Vec::with_capacity(entries.len());
    for (name, sources) in entries {
        let mut infos = Vec::with_capacity(sources.len());
        for source in sources {
            infos.push(ArgInfo::known(match source {
                Source::Known(value) => value.clone(),
                Source::Tensor(index) => memory.tensor(*index)?.clone().into(),
                Source::Floats(operand, shape) => Tensor::from_vec(shape.clone(), memory.get(operand).to_vec())?.into(),
            }));
        }
        bound.push((name.as_str(), infos));
    }
    op.eval(&Args::new(op, bound))
}

fn store(memory: &mut Memory, sink: &Sink, tensor: Tensor) -> Result<()> {
    match *sink {
        Sink::Tensor(index) => memory.tensors[index] = Some(tensor),
        Sink::Floats(id, len) => {
            let owned;
            let values = match tensor.as_slice::<f32>() {
                Some(values) => values,
                None => {
                    owned = tensor.to_f32()?;
                    &owned
                }
            };
            let target = memory.buffers[id].get_mut(..len).filter(|target| target.len() == values.len());
            target
                .ok_or_else(|| Error::new(format!("found {} elements, expected {len}", values.len())))?
                .copy_from_slice(values);
        }
    }
    Ok(())
}
