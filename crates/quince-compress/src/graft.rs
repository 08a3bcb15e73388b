//! Compressed weights of one program in another: those of a package as it was shipped, in a function that runs whole
//! texts at once and was not shipped with it.

use quince_mil::{Arg, Operation, Program, Result, Value, bail};
use std::collections::HashMap;

/// Puts the weights of `from` in place of those of `into`, which has the same weights compressed in the same way.
/// Operations belong together by their names, whose letters may have been replaced where Core ML does not take them.
///
/// # Errors
/// When a compressed weight is not in `from`, or has another type there.
pub fn graft(into: &mut Program, from: &Program) -> Result<()> {
    let mut known: HashMap<(String, &str), &Value> = HashMap::new();
    for operation in from.functions.iter().flat_map(|function| &function.block.operations) {
        for (param, value) in values(operation) {
            known.entry((plain(&operation.name), param)).or_insert(value);
        }
    }
    for operation in into.functions.iter_mut().flat_map(|function| &mut function.block.operations) {
        if !operation.op_name().starts_with("constexpr_") {
            continue;
        }
        let name = plain(&operation.name);
        for (param, args) in &mut operation.inputs {
            for arg in args {
                let Arg::Value(value) = arg else { continue };
                match known.get(&(name.clone(), param.as_str())) {
                    Some(found) if found.value_type() == value.value_type() => *value = (*found).clone(),
                    Some(_) => bail!("`{name}`: found another type of `{param}` in the package"),
                    None => bail!("`{name}`: found no `{param}` in the package, expected it as it was compressed"),
                }
            }
        }
    }
    Ok(())
}

fn values(operation: &Operation) -> impl Iterator<Item = (&str, &Value)> {
    let compressed = operation.op_name().starts_with("constexpr_");
    operation.inputs.iter().filter(move |_| compressed).flat_map(|(param, args)| {
        args.iter().filter_map(move |arg| match arg {
            Arg::Value(value) => Some((param.as_str(), value)),
            Arg::Var(_) => None,
        })
    })
}

fn plain(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}
