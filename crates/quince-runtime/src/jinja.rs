//! Jinja2 as transformers sets it up, out of minijinja: white space, filters, functions, and the methods and tests in
//! which minijinja differs from Python.

use std::fmt;
use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Enumerator, Kwargs, Object, ObjectRepr, Serde, Tuple, Value, ValueKind, from_args};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, UndefinedBehavior, escape_formatter};
use minijinja_contrib::globals::{cycler, joiner};
use minijinja_contrib::pycompat::unknown_method_callback;

use crate::jinja_source::{BOUND_METHOD, MARKUP_SUM, REVERSED};
use crate::python::{self, JsonStyle, is_space, json_dumps, split_lines};

/// The environment of `chat_template_utils._compile_jinja_template`, without the templates and `strftime_now`.
pub(crate) fn environment() -> quince_tensor::Result<Environment<'static>> {
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    let syntax = syntax.map_err(|error| quince_tensor::Error::new(format!("chat template syntax: {error}")))?;
    let mut environment = Environment::new();
    environment.set_syntax(syntax);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_unknown_method_callback(method);
    environment.set_formatter(|out, state, value| match value.kind() {
        ValueKind::Number | ValueKind::Seq | ValueKind::Map => out.write_str(&python::text(value)).map_err(Error::from),
        _ => escape_formatter(out, state, value),
    });
    environment.add_filter("tojson", tojson);
    environment.add_filter("string", |value: &Value| match value.is_safe() {
        true => value.clone(),
        false => python::text(value).into(),
    });
    environment.add_filter("join", join);
    environment.add_filter("indent", indent);
    environment.add_filter("trim", trim);
    environment.add_filter("replace", replace);
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    environment.add_filter(MARKUP_SUM, markup_sum);
    environment.add_filter("length", length);
    environment.add_filter("count", length);
    environment.add_test("sequence", |value: &Value| has_items(value) && value.kind() != ValueKind::Iterable);
    environment.add_test("iterable", has_items);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("cycler", cycler);
    environment.add_function("joiner", joiner);
    Ok(environment)
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

/// JSON as Python has it: lists and maps print as `repr` does, also where a template adds them to text.
pub(crate) fn from_json(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Array(items) => Value::from_object(List(items.iter().map(from_json).collect())),
        serde_json::Value::Object(fields) => dict(fields),
        plain => Value::from(Serde(plain)),
    }
}

/// A JSON object as Python has it.
pub(crate) fn dict(fields: &serde_json::Map<String, serde_json::Value>) -> Value {
    Value::from_object(Dict(fields.iter().map(|(key, value)| (key.clone(), from_json(value))).collect()))
}

#[derive(Debug)]
struct List(Vec<Value>);

impl Object for List {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.0.get(key.as_usize()?).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.0.len())
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&python::text(&Value::from_dyn_object(self.clone())))
    }
}

#[derive(Debug)]
struct Dict(Vec<(String, Value)>);

impl Object for Dict {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let key = key.as_str()?;
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone())
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.0.iter().map(|(name, _)| Value::from(name)).collect())
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&python::text(&Value::from_dyn_object(self.clone())))
    }
}

/// `join(value, d='', attribute=None)`.
fn join(value: &Value, separator: Option<&str>, options: Kwargs) -> Result<String, Error> {
    let separator = separator.or(options.get("d")?).unwrap_or_default();
    let attribute: Option<&str> = options.get("attribute")?;
    options.assert_all_used()?;
    let part = |item: Value| match attribute {
        None => Ok(python::text(&item)),
        Some(path) => {
            let found = path.split('.').try_fold(item, |item, name| item.get_attr(name))?;
            Ok::<_, Error>(python::text(&found))
        }
    };
    Ok(value.try_iter()?.map(part).collect::<Result<Vec<_>, _>>()?.join(separator))
}

/// `indent(s, width=4, first=False, blank=False)`: a newline at the end stays.
fn indent(
    text: &str,
    width: Option<Value>,
    first: Option<bool>,
    blank: Option<bool>,
    options: Kwargs,
) -> Result<String, Error> {
    let width = width.or(options.get("width")?).unwrap_or(Value::from(4));
    let first = first.or(options.get("first")?).unwrap_or(false);
    let blank = blank.or(options.get("blank")?).unwrap_or(false);
    options.assert_all_used()?;
    let indention = match width.as_str() {
        Some(text) => text.to_owned(),
        None => " ".repeat(usize::try_from(width)?.min(4096)),
    };
    let text = format!("{text}\n");
    let mut out = if first { indention.clone() } else { String::new() };
    for (index, line) in split_lines(&text, false).into_iter().enumerate() {
        if index > 0 {
            out.push('\n');
            out.push_str(if blank || !line.is_empty() { &indention } else { "" });
        }
        out.push_str(line);
    }
    Ok(out)
}

/// `trim(value, chars=None)`.
fn trim(value: &Value, chars: Option<&str>) -> String {
    strip(&python::text(value), chars, true, true).to_owned()
}

/// `replace(s, old, new, count=None)`.
fn replace(value: &Value, old: &str, new: &str, count: Option<usize>) -> String {
    let text = python::text(value);
    match count {
        Some(count) => text.replacen(old, new, count),
        None => text.replace(old, new),
    }
}

/// `int(value, default=0, base=10)`: the default where the value is no number.
fn int(value: &Value, default: Option<Value>, base: Option<u32>, options: Kwargs) -> Result<Value, Error> {
    let default = default.or(options.get("default")?).unwrap_or(Value::from(0));
    let base = base.or(options.get("base")?).unwrap_or(10);
    options.assert_all_used()?;
    if value.is_integer() {
        return Ok(value.clone());
    }
    if let Some(text) = value.as_str().map(|text| text.trim_matches(is_space).replace('_', "").to_lowercase()) {
        let (sign, digits) = text.strip_prefix('-').map_or(("", text.as_str()), |digits| ("-", digits));
        let prefix = match base {
            2 => "0b",
            8 => "0o",
            16 => "0x",
            _ => "",
        };
        let digits = digits.strip_prefix(prefix).unwrap_or(digits);
        if let Some(Ok(number)) =
            (2..=36).contains(&base).then(|| i64::from_str_radix(&format!("{sign}{digits}"), base))
        {
            return Ok(number.into());
        }
    }
    Ok(number(value).filter(|number| number.is_finite()).map_or(default, |number| Value::from(number as i64)))
}

/// `float(value, default=0.0)`.
fn float(value: &Value, default: Option<Value>, options: Kwargs) -> Result<Value, Error> {
    let default = default.or(options.get("default")?).unwrap_or(Value::from(0.0));
    options.assert_all_used()?;
    Ok(number(value).map_or(default, Value::from))
}

/// What `float(value)` makes of a number, a truth value or a text.
fn number(value: &Value) -> Option<f64> {
    match value.kind() {
        ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        ValueKind::String => value.as_str()?.trim_matches(is_space).replace('_', "").parse().ok(),
        _ => f64::try_from(value.clone()).ok(),
    }
}

/// `str.strip(chars)`, `lstrip` or `rstrip`.
fn strip<'t>(text: &'t str, chars: Option<&str>, left: bool, right: bool) -> &'t str {
    let goes = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    let text = if left { text.trim_start_matches(goes) } else { text };
    if right { text.trim_end_matches(goes) } else { text }
}

/// The sum of two values of which one may be marked as safe: what is not is then escaped.
fn markup_sum(left: &Value, right: &Value) -> Result<Value, Error> {
    let (Some(first), Some(second)) = (left.as_str(), right.as_str()) else {
        return Err(refused(format!("tried to add values of kind {} and {}", left.kind(), right.kind())));
    };
    if !left.is_safe() && !right.is_safe() {
        return Ok(Value::from(format!("{first}{second}")));
    }
    let marked = |value: &Value, text: &str| if value.is_safe() { text.to_owned() } else { escaped(text) };
    Ok(Value::from_safe_string(marked(left, first) + &marked(right, second)))
}

/// `markupsafe.escape`.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&#34;"),
            c => out.push(c),
        }
    }
    out
}

/// A method that is named and not called: it is there, and has no attributes that templates ask for.
#[derive(Debug)]
struct BoundMethod(String);

impl Object for BoundMethod {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<built-in method {} of dict object>", self.0)
    }
}

/// `value[::-1]`.
fn reversed(value: &Value) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        return Ok(text.chars().rev().collect::<String>().into());
    }
    if value.kind() != ValueKind::Seq {
        return Err(refused(format!("a value of kind {} cannot be sliced", value.kind())));
    }
    let mut items: Vec<Value> = value.try_iter()?.collect();
    items.reverse();
    Ok(if value.is_tuple() { Tuple::from(items).into() } else { items.into() })
}

/// The methods of `str` that `pycompat` has not, or not with Python's arguments; the others are left to it.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if name == BOUND_METHOD {
        let (name,): (&str,) = from_args(args)?;
        return match value.kind() {
            ValueKind::Map => Ok(Value::from_object(BoundMethod(name.to_owned()))),
            _ => value.get_attr(name),
        };
    }
    if name == REVERSED {
        return reversed(value);
    }
    let Some(text) = value.as_str() else {
        return unknown_method_callback(state, value, name, args);
    };
    match name {
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<&str>,) = from_args(args)?;
            Ok(strip(text, chars, name != "rstrip", name != "lstrip").into())
        }
        "splitlines" => {
            let (keep_ends, options): (Option<bool>, Kwargs) = from_args(args)?;
            let keep_ends = keep_ends.or(options.get("keepends")?).unwrap_or(false);
            options.assert_all_used()?;
            Ok(split_lines(text, keep_ends).into_iter().map(Value::from).collect())
        }
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
        None if name == "split" => Ok(words(text, parts)),
        None => {
            let mut rest = strip(text, None, true, true);
            let mut found = Vec::new();
            while let Some(last) = rest.rfind(is_space).filter(|_| found.len() + 1 < parts) {
                found.push(rest[last..].trim_start_matches(is_space));
                rest = rest[..last].trim_end_matches(is_space);
            }
            found.extend((!rest.is_empty()).then_some(rest));
            found.reverse();
            Ok(found)
        }
    }
}

/// The words of a text, of which the last of so many parts has the rest.
fn words(text: &str, parts: usize) -> Vec<&str> {
    let mut rest = text.trim_start_matches(is_space);
    let mut found = Vec::new();
    while let Some(end) = rest.find(is_space).filter(|_| found.len() + 1 < parts) {
        found.push(&rest[..end]);
        rest = rest[end..].trim_start_matches(is_space);
    }
    found.extend((!rest.is_empty()).then_some(rest));
    found
}

fn refused(message: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}
