//! Jinja2 as transformers sets it up, out of minijinja: white space, filters, functions, and the methods and tests in
//! which minijinja differs from Python.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Tuple, Value, ValueKind, from_args};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, UndefinedBehavior, escape_formatter};
use minijinja_contrib::pycompat::unknown_method_callback;

use crate::python::{JsonStyle, float_repr, json_dumps};

/// The environment of `chat_template_utils._compile_jinja_template`, without the templates and `strftime_now`.
pub(crate) fn environment() -> quince_tensor::Result<Environment<'static>> {
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    let syntax = syntax.map_err(|error| quince_tensor::Error::new(format!("chat template syntax: {error}")))?;
    let mut environment = Environment::new();
    environment.set_syntax(syntax);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_unknown_method_callback(method);
    environment.set_formatter(|out, state, value| match float(value) {
        Some(number) => out.write_str(&float_repr(number)).map_err(Error::from),
        None => escape_formatter(out, state, value),
    });
    environment.add_filter("tojson", tojson);
    environment.add_filter("length", length);
    environment.add_filter("count", length);
    environment.add_test("sequence", |value: &Value| has_items(value) && value.kind() != ValueKind::Iterable);
    environment.add_test("iterable", has_items);
    environment.add_function("raise_exception", raise_exception);
    Ok(environment)
}

/// The number, if it is a finite one that Python would call `float`.
fn float(value: &Value) -> Option<f64> {
    if value.kind() != ValueKind::Number || value.is_integer() {
        return None;
    }
    f64::try_from(value.clone()).ok().filter(|number| number.is_finite())
}

/// Whether Python can loop over the value: strings, maps and Jinja2's `Undefined` are among these.
fn has_items(value: &Value) -> bool {
    use ValueKind::{Bytes, Iterable, Map, Seq, String, Undefined};
    matches!(value.kind(), String | Bytes | Seq | Map | Iterable | Undefined)
}

fn length(value: &Value) -> Result<usize, Error> {
    match value.len() {
        _ if value.is_undefined() => Ok(0),
        Some(length) => Ok(length),
        None => Err(refused(format!("a value of kind {} has no length", value.kind()))),
    }
}

fn raise_exception(message: &str) -> Result<Value, Error> {
    Err(refused(format!("the template refuses this conversation: {message}")))
}

/// `tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
fn tojson(value: &Value, options: Kwargs) -> Result<String, Error> {
    let separators = match options.get::<Option<Vec<String>>>("separators")? {
        None => None,
        Some(pair) => match <[String; 2]>::try_from(pair) {
            Ok([item, key]) => Some((item, key)),
            Err(other) => return Err(refused(format!("separators: found {other:?}, expected two strings"))),
        },
    };
    let style = JsonStyle {
        indent: options.get("indent")?,
        separators,
        ensure_ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    json_dumps(value, &style)
}

/// The methods of `str` that `pycompat` has not, or not with Python's arguments; the others are left to it.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let Some(text) = value.as_str() else {
        return unknown_method_callback(state, value, name, args);
    };
    match name {
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Ok(text.strip_prefix(prefix).unwrap_or(text).into())
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Ok(text.strip_suffix(suffix).unwrap_or(text).into())
        }
        "partition" => {
            let (separator,): (&str,) = from_args(args)?;
            let (before, after) = text.split_once(separator).unwrap_or((text, ""));
            let found = if before.len() < text.len() { separator } else { "" };
            Ok(Tuple::from([before, found, after].map(Value::from)).into())
        }
        "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            let (before, after) = text.rsplit_once(separator).unwrap_or(("", text));
            let found = if after.len() < text.len() { separator } else { "" };
            Ok(Tuple::from([before, found, after].map(Value::from)).into())
        }
        "split" | "rsplit" => Ok(split(text, name, args)?.into_iter().map(Value::from).collect()),
        _ => unknown_method_callback(state, value, name, args),
    }
}

/// `str.split(sep=None, maxsplit=-1)` and `str.rsplit`.
fn split<'t>(text: &'t str, name: &str, args: &[Value]) -> Result<Vec<&'t str>, Error> {
    let (separator, limit, options): (Option<&str>, Option<i64>, Kwargs) = from_args(args)?;
    let separator = separator.or(options.get("sep")?);
    let limit = limit.or(options.get("maxsplit")?).unwrap_or(-1);
    options.assert_all_used()?;
    let parts = usize::try_from(limit).map_or(usize::MAX, |limit| limit.saturating_add(1));
    match separator {
        Some("") => Err(refused(format!("{name}: empty separator"))),
        Some(separator) if name == "split" => Ok(text.splitn(parts, separator).collect()),
        Some(separator) => {
            let mut found: Vec<&str> = text.rsplitn(parts, separator).collect();
            found.reverse();
            Ok(found)
        }
        None if parts == usize::MAX => Ok(text.split_whitespace().collect()),
        None => Err(refused(format!("{name}: maxsplit is supported only together with a separator"))),
    }
}

fn refused(message: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}
