//! A chain of programs as one: what the parts of a model compute, one after another.
//!
//! ```text
//! part 1: input_ids ─▶ hidden_5          one function: input_ids, position ─▶ logits
//! part 2: hidden_5, position ─▶ logits                 states kv_cache, kv_cache_2
//! ```
//!
//! The operations are those of the parts, in order and unchanged, so that whatever a part would do wrong the chain does
//! wrong too. An input of a part is an output of an earlier part of that name, else an input of the chain, which several
//! parts may share. A part's cache is its own: its states, and its inputs `X_cache` with the outputs `new_X`, get the number
//! of the part. Sessions, commands and the engine see one program, however many packages it is in.

use std::collections::HashMap;

use quince_mil::names::Names;
use quince_mil::{Function, FunctionInput, Operation, Opset, Program, ValueType, Var};
use quince_tensor::{Error, Result, bail};

/// Joins parts, which must have the same functions.
///
/// # Errors
/// When a part lacks a function of the first, or has one that the first lacks, or what a part passes on has another type
/// than a later one takes; the place says which part.
pub fn join(parts: &[Program]) -> Result<Program> {
    let Some(first) = parts.first() else { bail!("found no part, expected at least one") };
    for (number, part) in parts.iter().enumerate() {
        let names = |program: &Program| program.functions.iter().map(|f| f.name.clone()).collect::<Vec<_>>();
        let (found, expected) = (names(part), names(first));
        if found != expected {
            let error = format!("found the functions {}, expected {}", found.join(", "), expected.join(", "));
            return Err(Error::new(error).at(part_place(number, parts.len())));
        }
    }
    let mut program = Program {
        functions: Vec::new(),
        default_function: first.default_function.clone(),
        attributes: first.attributes.clone(),
    };
    for (index, function) in first.functions.iter().enumerate() {
        let functions: Vec<&Function> = parts.iter().filter_map(|part| part.functions.get(index)).collect();
        let mut joint = Joint::of(&functions);
        for (number, part) in functions.iter().enumerate() {
            let place = |e: Error| e.at(format!("function `{}`", function.name)).at(part_place(number, parts.len()));
            joint.append(part, number).map_err(place)?;
        }
        program.functions.push(joint.finish());
    }
    Ok(program)
}

/// How errors name a part.
pub(crate) fn part_place(number: usize, count: usize) -> String {
    format!("part {} of {count}", number + 1)
}

/// A function that is being put together.
struct Joint {
    made: Function,
    names: Names,
    operations: Names,
    /// What parts gave so far, by the name that others ask for it by.
    given: HashMap<String, Given>,
    /// In the order in which they came.
    outputs: Vec<String>,
}

struct Given {
    var: Var,
    /// Whether a later part took it.
    taken: bool,
}

impl Joint {
    /// Nothing yet of these functions, of which each part has one.
    fn of(parts: &[&Function]) -> Joint {
        let (name, opset) = parts.first().map_or(("main", Opset::CoreML8), |first| (&first.name, first.opset));
        let mut names = Names::new();
        // What is seen from outside keeps its name, whatever else has it.
        for (number, part) in parts.iter().enumerate() {
            let seen = part.inputs.iter().map(|input| input.var).chain(part.block.outputs.iter().copied());
            seen.for_each(|var| drop(names.unique(&seen_name(part, var, number))));
        }
        let mut made = Function::new(name, opset);
        made.attributes = parts.first().map(|first| first.attributes.clone()).unwrap_or_default();
        Joint { made, names, operations: Names::new(), given: HashMap::new(), outputs: Vec::new() }
    }

    fn append(&mut self, part: &Function, number: usize) -> Result<()> {
        let mut vars: HashMap<Var, Var> = HashMap::new();
        for input in &part.inputs {
            vars.insert(input.var, self.input(part, input, number)?);
        }
        for operation in &part.block.operations {
            self.operation(part, operation.clone(), number, &mut vars);
        }
        for output in &part.block.outputs {
            let name = seen_name(part, *output, number);
            let Some(&var) = vars.get(output) else { bail!("found the output `{name}` computed by nothing") };
            if self.given.insert(name.clone(), Given { var, taken: false }).is_some() {
                bail!("found the output `{name}`, which an earlier part has too");
            }
            self.outputs.push(name);
        }
        Ok(())
    }

    /// What an input of a part is in the whole.
    fn input(&mut self, part: &Function, input: &FunctionInput, number: usize) -> Result<Var> {
        let info = part.var(input.var);
        let new = |made: &mut Function| {
            made.add_input(&seen_name(part, input.var, number), info.ty.clone(), input.flexibility.clone())
        };
        if is_own(part, input.var) {
            return Ok(new(&mut self.made));
        }
        if let Some(given) = self.given.get_mut(&info.name) {
            given.taken = true;
            let found = self.made.ty(given.var);
            // What is computed may be known less exactly than what is declared.
            if !found.fits(&info.ty) {
                bail!("input `{}`: found {found} from an earlier part, expected {}", info.name, info.ty);
            }
            return Ok(given.var);
        }
        let same = self.made.inputs.iter().find(|other| self.made.var(other.var).name == info.name);
        match same {
            Some(same) if *self.made.ty(same.var) == info.ty && same.flexibility == input.flexibility => Ok(same.var),
            Some(same) => {
                let found = self.made.ty(same.var);
                bail!("input `{}`: found it declared as {found} by an earlier part, expected {}", info.name, info.ty)
            }
            None => Ok(new(&mut self.made)),
        }
    }

    fn operation(&mut self, part: &Function, mut operation: Operation, number: usize, vars: &mut HashMap<Var, Var>) {
        operation.name = self.operations.unique(&operation.name);
        let (made, names) = (&mut self.made, &mut self.names);
        operation.map_vars(&mut |var| {
            *vars.entry(var).or_insert_with(|| {
                let info = part.var(var);
                let name = match part.block.outputs.contains(&var) {
                    true => seen_name(part, var, number),
                    false => names.unique(&info.name),
                };
                made.add_var(&name, info.ty.clone())
            })
        });
        self.made.block.operations.push(operation);
    }

    /// Results are what no later part took.
    fn finish(mut self) -> Function {
        let given = |name: &String| self.given.get(name).filter(|given| !given.taken).map(|given| given.var);
        self.made.block.outputs = self.outputs.iter().filter_map(given).collect();
        self.made
    }
}

/// What an input or output of a part is called in the whole: `kv_cache_2`, `k_2_cache` and `new_k_2` are of the cache of the
/// second part.
fn seen_name(part: &Function, var: Var, number: usize) -> String {
    let name = &part.var(var).name;
    match (number, name.strip_suffix("_cache")) {
        (0, _) => name.clone(),
        _ if !is_own(part, var) => name.clone(),
        (_, Some(stem)) if matches!(part.ty(var), ValueType::Tensor(_)) => format!("{stem}_{}_cache", number + 1),
        _ => format!("{name}_{}", number + 1),
    }
}

/// Whether an input or output is of a part's own cache: a state, an input `X_cache` that an output `new_X` extends, or that
/// output.
fn is_own(part: &Function, var: Var) -> bool {
    let name = &part.var(var).name;
    let is_input = |name: String| part.inputs.iter().any(|input| part.var(input.var).name == name);
    let is_output = |name: String| part.block.outputs.iter().any(|&output| part.var(output).name == name);
    match (part.ty(var), name.strip_suffix("_cache"), name.strip_prefix("new_")) {
        (ValueType::State(_), ..) => true,
        (_, Some(stem), _) => is_output(format!("new_{stem}")),
        (_, _, Some(stem)) => is_input(format!("{stem}_cache")),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
