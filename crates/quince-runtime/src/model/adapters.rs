//! Adapters that a program keeps apart: functions that are called as others are, with the adapter's name behind.

use quince_mil::names::identifier;
use quince_mil::{Function, Program, ValueType};
use quince_tensor::{Error, Result};
use std::collections::BTreeSet;

/// The names of the adapters of a program: `french` where there are `decode` and `decode_french`.
pub fn adapters(program: &Program) -> Vec<String> {
    let names: BTreeSet<&str> = program.functions.iter().filter_map(|function| adapter_of(function, program)).collect();
    names.into_iter().map(str::to_owned).collect()
}

/// The functions of an adapter, or those without any. The adapter may be called as its directory was, although functions
/// are identifiers. A function may also be called as the adapter alone, as in packages of other tools.
///
/// # Errors
/// When there is no such adapter; the error lists those that there are.
pub(super) fn functions<'a>(program: &'a Program, adapter: Option<&str>) -> Result<Vec<&'a Function>> {
    let names = adapter.map(|adapter| [adapter.to_owned(), identifier(adapter)]);
    let own = |function: &&Function| match &names {
        None => adapter_of(function, program).is_none(),
        Some(names) => {
            names.contains(&function.name)
                || adapter_of(function, program).is_some_and(|own| names.iter().any(|name| name == own))
        }
    };
    let found: Vec<&Function> = program.functions.iter().filter(own).collect();
    match (adapter, found.is_empty()) {
        (Some(adapter), true) => {
            let known = adapters(program);
            let error = Error::new(match known.is_empty() {
                true => format!("found no adapter in the package, expected `{adapter}`"),
                false => format!("found the adapters {}, expected `{adapter}` among them", known.join(", ")),
            });
            Err(error
                .hint("`quince convert MODEL --lora-checkpoint DIR --adapters keep` makes a package with adapters"))
        }
        _ => Ok(found),
    }
}

/// What stands behind the name of another function in the name of this one, a smaller context not counted.
fn adapter_of<'a>(function: &'a Function, program: &Program) -> Option<&'a str> {
    let own = bucket_of(function, program).map_or(function.name.as_str(), |(name, _)| name);
    let behind = |other: &Function| own.strip_prefix(other.name.as_str())?.strip_prefix('_');
    program.functions.iter().filter_map(behind).max_by_key(|name| name.len()).filter(|name| !name.is_empty())
}

/// Of a function for a smaller context than another, the name of that and the context: `decode_512` beside `decode`, if it
/// computes with as many of anything.
pub(super) fn bucket_of<'a>(function: &'a Function, program: &Program) -> Option<(&'a str, usize)> {
    let (name, context) = function.name.rsplit_once('_')?;
    let context = context.parse().ok().filter(|_| context.bytes().all(|c| c.is_ascii_digit()))?;
    let has = |ty: &quince_mil::TensorType| ty.shape.iter().any(|dim| dim.fixed() == Some(context));
    let there = program.functions.iter().any(|other| other.name == name);
    let sized = || function.vars.iter().any(|info| matches!(&info.ty, ValueType::Tensor(ty) if has(ty)));
    (there && sized()).then_some((name, context))
}

#[cfg(test)]
mod tests {
    use super::*;
    use quince_mil::Opset;

    #[test]
    fn adapters_are_told_by_the_names_of_functions() {
        let function = |name: &&str| Function::new(name, Opset::CoreML8);
        let names = ["decode", "decode_a", "decode_a_b", "init", "init_a", "init_a_b", "other"];
        let program = Program { functions: names.iter().map(function).collect(), ..Program::default() };
        assert_eq!(adapters(&program), ["a", "a_b"]);
        let of = |adapter| functions(&program, adapter).unwrap().iter().map(|f| f.name.as_str()).collect::<Vec<_>>();
        assert_eq!(of(None), ["decode", "init", "other"]);
        assert_eq!(of(Some("a")), ["decode_a", "init_a"]);
        assert_eq!(of(Some("a_b")), ["decode_a_b", "init_a_b"]);
        assert_eq!(of(Some("a-b")), ["decode_a_b", "init_a_b"]);
        assert_eq!(of(Some("other")), ["other"]);
        let error = functions(&program, Some("c")).unwrap_err().to_string();
        assert!(error.starts_with("found the adapters a, a_b, expected `c` among them; hint: "), "{error}");
    }
}
