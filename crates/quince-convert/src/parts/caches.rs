//! The caches of a function, cut by layers: states, and inputs with the outputs that extend them.
//!
//! A cache has the layers along its first axis. All that is done with it is to take or to write a slice of that axis, whose
//! place is known, so that a part can have the slices of its own layers and count them from 0. What an input `X_cache` is
//! extended by, `new_X`, is a `concat` of each layer's rows; a part has its own of them.

use quince_mil::{Arg, Defs, Function, Operation, Result, Tensor, TensorType, Value, ValueType, Var, bail};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;

/// What a function does with its caches.
#[derive(Default)]
pub(super) struct Caches {
    accesses: HashMap<usize, Access>,
    /// By input: the operations that take or write a slice of it.
    by_input: BTreeMap<Var, Vec<usize>>,
    /// By value: the state of which it is all.
    wholes: HashMap<Var, Var>,
}

/// An operation that takes or writes a slice of a cache.
struct Access {
    /// The slice along the first axis.
    planes: Range<usize>,
    /// The operations that compute where it begins and ends.
    corners: Vec<usize>,
}

/// A slice of a cache that is a cache of its own in a part.
pub(super) struct Slice {
    /// The input.
    pub input: Var,
    /// Which part of the first axis.
    pub planes: Range<usize>,
    /// Its type in the part.
    pub ty: ValueType,
}

impl Caches {
    /// The operations whose results are outputs that extend a cache.
    pub fn collecting(function: &Function) -> HashSet<usize> {
        let operations = function.block.operations.iter().enumerate();
        let extends = |operation: &Operation| {
            let Some(name) = operation.outputs.first().map(|var| function.var(*var).name.as_str()) else {
                return false;
            };
            let input = name.strip_prefix("new_").map(|stem| format!("{stem}_cache"));
            let is_output = operation.outputs.iter().all(|var| function.block.outputs.contains(var));
            let has_input = function.inputs.iter().any(|i| Some(&function.var(i.var).name) == input.as_ref());
            operation.op_name() == "concat" && is_output && has_input
        };
        operations.filter(|(_, operation)| extends(operation)).map(|(i, _)| i).collect()
    }

    /// Looks through a function.
    ///
    /// # Errors
    /// When a cache is used in another way than by slices of its first axis.
    pub fn of(function: &Function) -> Result<Caches> {
        let mut caches = Caches::default();
        let defs = Defs::new(function);
        for input in &function.inputs {
            let info = function.var(input.var);
            let whole: Vec<Var> = match &info.ty {
                ValueType::State(_) => {
                    let users = defs.users(input.var).iter().map(|&user| &function.block.operations[user]);
                    users.filter(|user| user.op_name() == "read_state").flat_map(|read| read.outputs.clone()).collect()
                }
                ValueType::Tensor(_) if info.name.ends_with("_cache") => vec![input.var],
                _ => continue,
            };
            let users: HashSet<usize> = whole.iter().flat_map(|&var| defs.users(var)).copied().collect();
            let is_state = matches!(info.ty, ValueType::State(_));
            caches.wholes.extend(whole.iter().filter(|_| is_state).map(|&var| (var, input.var)));
            for user in users {
                let operation = &function.block.operations[user];
                if operation.op_name() == "slice_update" {
                    caches.wholes.extend(operation.outputs.iter().map(|&var| (var, input.var)));
                }
                let access = access(function, &defs, operation).map_err(|e| e.at(format!("`{}`", info.name)))?;
                caches.accesses.insert(user, access);
                caches.by_input.entry(input.var).or_default().push(user);
            }
        }
        Ok(caches)
    }

    /// What a part has of a cache; none if it has none of its layers.
    ///
    /// # Errors
    /// When a layer's slice is used in other parts too.
    pub fn slice(&self, function: &Function, input: Var, inside: &dyn Fn(usize) -> bool) -> Result<Option<Slice>> {
        let planes = |access: &usize| self.accesses.get(access).map(|access| access.planes.clone());
        let all = self.by_input.get(&input).map_or(&[][..], Vec::as_slice);
        let own = || all.iter().filter(|user| inside(**user)).filter_map(planes);
        let (Some(start), Some(end)) = (own().map(|p| p.start).min(), own().map(|p| p.end).max()) else {
            return Ok(None);
        };
        let others = all.iter().filter(|user| !inside(**user)).filter_map(planes);
        if let Some(other) = others.into_iter().find(|other| other.start < end && start < other.end) {
            let name = &function.var(input).name;
            bail!("`{name}`: found {other:?} of its first axis used in two parts, expected each layer's in one");
        }
        let shrunk = |ty: &TensorType| {
            let shape = std::iter::once((end - start).into()).chain(ty.shape.iter().skip(1).copied()).collect();
            TensorType { dtype: ty.dtype, shape }
        };
        let ty = match function.ty(input) {
            ValueType::State(ty) => ValueType::State(shrunk(ty)),
            ValueType::Tensor(ty) => ValueType::Tensor(shrunk(ty)),
            other => other.clone(),
        };
        Ok(Some(Slice { input, planes: start..end, ty }))
    }

    /// The type that a value has in a part with these slices, if it is all of a cache.
    pub fn whole_type(&self, var: Var, slices: &[Slice]) -> Option<ValueType> {
        let input = self.wholes.get(&var)?;
        let slice = slices.iter().find(|slice| slice.input == *input)?;
        Some(slice.ty.as_tensor()?.clone().into())
    }

    /// By operation: how far the slices that it takes, or the corners that it computes, are moved in a part that has these
    /// slices.
    pub fn moves(&self, slices: &[Slice], inside: &dyn Fn(usize) -> bool) -> HashMap<usize, usize> {
        let mut moves = HashMap::new();
        for slice in slices {
            for user in self.by_input.get(&slice.input).into_iter().flatten().filter(|user| inside(**user)) {
                let corners = self.accesses.get(user).map_or(&[][..], |access| &access.corners);
                moves.extend(std::iter::once(user).chain(corners).map(|&i| (i, slice.planes.start)));
            }
        }
        moves
    }
}

/// Counts the planes of an operation from `by` on: of one that takes or writes a slice, or computes a corner of it.
///
/// # Errors
/// When a constant cannot be read.
pub(super) fn moved(operation: &mut Operation, by: usize, constant: &dyn Fn(&Arg) -> Option<Value>) -> Result<()> {
    let place = operation.place();
    for (param, args) in &mut operation.inputs {
        let corner = match param.as_str() {
            "begin" | "end" => args.first_mut(),
            // The first of what a corner is put together of.
            "values" => args.first_mut(),
            _ => None,
        };
        let Some(corner) = corner else { continue };
        // What is computed is moved where it is computed.
        let Some(value) = constant(corner) else { continue };
        let tensor = value.tensor()?;
        let mut numbers: Vec<i32> = tensor.as_slice::<i32>().map(<[i32]>::to_vec).unwrap_or_default();
        let moved = numbers.first().zip(i32::try_from(by).ok()).and_then(|(first, by)| first.checked_sub(by));
        match (moved.filter(|&moved| moved >= 0), numbers.first_mut()) {
            (Some(moved), Some(first)) => *first = moved,
            _ => bail!("{place}: found {tensor:?}, expected int32 numbers from {by} on"),
        }
        *corner = Arg::Value(Tensor::from_vec(tensor.shape(), numbers)?.into());
    }
    Ok(())
}

fn access(function: &Function, defs: &Defs, operation: &Operation) -> Result<Access> {
    if !matches!(operation.op_name(), "slice_by_index" | "slice_update") {
        bail!("{}: found it uses a cache, expected slices of it", operation.place());
    }
    let mut corners = Vec::new();
    let mut corner = |param: &str| -> Result<usize> {
        let first = operation.arg(param).and_then(|arg| match defs.constant(arg) {
            Some(value) => first_number(value),
            None => {
                let Arg::Var(var) = arg else { return None };
                let index = defs.producer_index(*var)?;
                let parts = function.block.operations.get(index).filter(|made| made.op_name() == "concat")?;
                corners.push(index);
                first_number(defs.constant(parts.args("values").first()?)?)
            }
        });
        match first {
            Some(first) => Ok(first),
            None => bail!("{}: found `{param}` computed, expected the layers to be known", operation.place()),
        }
    };
    let planes = corner("begin")?..corner("end")?;
    // A mask would say that a corner does not count.
    let masked = ["begin_mask", "end_mask"].iter().any(|mask| operation.arg(mask).is_some());
    if planes.is_empty() || masked {
        bail!(
            "{}: found the slice {planes:?} of the first axis, expected one that begins before it ends",
            operation.place()
        );
    }
    Ok(Access { planes, corners })
}

fn first_number(value: &Value) -> Option<usize> {
    usize::try_from(*value.tensor().ok()?.to_i64().ok()?.first()?).ok()
}
