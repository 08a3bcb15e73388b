//! What Python prints, for chat templates: `json.dumps`, `repr` of a float, `datetime.strftime`.
//!
//! Templates are written against Python and their output is what the model was trained on, so every byte counts:
//! separators, escapes, exponents.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind};

/// The keyword arguments of `json.dumps` that transformers' `tojson` filter passes on.
#[derive(Debug, Clone, Default)]
pub(crate) struct JsonStyle {
    /// Spaces for each level; `None` writes one line.
    pub indent: Option<usize>,
    /// Between items and after keys; Python's defaults when absent.
    pub separators: Option<(String, String)>,
    /// Writes everything outside ASCII as `\uXXXX`.
    pub ensure_ascii: bool,
    /// Orders the keys of every map.
    pub sort_keys: bool,
}

/// A namespace can hold itself, so the depth has a limit; Python's own is of the same order.
const MAX_DEPTH: usize = 200;

/// The text of `json.dumps(value, ...)`.
///
/// # Errors
/// Undefined values, objects that are not JSON and structures that never end, as in Python.
pub(crate) fn json_dumps(value: &Value, style: &JsonStyle) -> Result<String, Error> {
    let default_item = if style.indent.is_some() { "," } else { ", " };
    let (item, key) = match &style.separators {
        Some((item, key)) => (item.as_str(), key.as_str()),
        None => (default_item, ": "),
    };
    let mut writer = JsonWriter { out: String::new(), style, item, key };
    writer.value(value, 0)?;
    Ok(writer.out)
}

struct JsonWriter<'a> {
    out: String,
    style: &'a JsonStyle,
    item: &'a str,
    key: &'a str,
}

impl JsonWriter<'_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(not_json("a value nested deeper than 200 levels"));
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.number(value)?,
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.container('[', ']', items, depth, |writer, item| writer.value(&item, depth + 1))?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.style.sort_keys {
                    keys.sort();
                }
                self.container('{', '}', keys, depth, |writer, key| {
                    writer.string(&key_text(&key)?);
                    writer.out.push_str(writer.key);
                    writer.value(&value.get_item(&key)?, depth + 1)
                })?;
            }
            other => return Err(not_json(&format!("a value of kind {other}"))),
        }
        Ok(())
    }

    fn container(
        &mut self,
        open: char,
        close: char,
        items: Vec<Value>,
        depth: usize,
        mut write: impl FnMut(&mut Self, Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        let empty = items.is_empty();
        for (index, item) in items.into_iter().enumerate() {
            if index > 0 {
                self.out.push_str(self.item);
            }
            self.new_line(depth + 1);
            write(self, item)?;
        }
        if !empty {
            self.new_line(depth);
        }
        self.out.push(close);
        Ok(())
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = self.style.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', indent.saturating_mul(depth).min(4096)));
        }
    }

    fn number(&mut self, value: &Value) -> Result<(), Error> {
        if value.is_integer() {
            self.out.push_str(&value.to_string());
            return Ok(());
        }
        let number = f64::try_from(value.clone())?;
        if number.is_nan() {
            self.out.push_str("NaN");
        } else if number.is_infinite() {
            self.out.push_str(if number > 0.0 { "Infinity" } else { "-Infinity" });
        } else {
            self.out.push_str(&float_repr(number));
        }
        Ok(())
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if c < ' ' || (self.style.ensure_ascii && !(' '..='~').contains(&c) && c != '\u{7f}') => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

/// `str(value)`: strings as they are, what is in lists and maps as [`repr`].
pub(crate) fn text(value: &Value) -> String {
    match value.as_str() {
        Some(text) => text.to_owned(),
        None if value.is_undefined() => String::new(),
        None => {
            let mut out = String::new();
            repr(value, &mut out, 0);
            out
        }
    }
}

/// `repr(value)`.
fn repr(value: &Value, out: &mut String, depth: usize) {
    let number = (value.kind() == ValueKind::Number && !value.is_integer()).then(|| f64::try_from(value.clone()));
    match value.kind() {
        _ if depth > MAX_DEPTH => out.push_str("..."),
        ValueKind::String => string_repr(value.as_str().unwrap_or_default(), out),
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::Number => match number {
            Some(Ok(number)) if number.is_finite() => out.push_str(&float_repr(number)),
            _ => out.push_str(&value.to_string().to_lowercase()),
        },
        ValueKind::Seq | ValueKind::Map => {
            let is_map = value.kind() == ValueKind::Map;
            let items: Vec<Value> = value.try_iter().map(Iterator::collect).unwrap_or_default();
            let (open, close) = match is_map {
                true => ('{', '}'),
                false if value.is_tuple() => ('(', ')'),
                false => ('[', ']'),
            };
            out.push(open);
            for (index, item) in items.iter().enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                repr(item, out, depth + 1);
                if is_map {
                    out.push_str(": ");
                    repr(&value.get_item(item).unwrap_or_default(), out, depth + 1);
                }
            }
            out.push_str(if open == '(' && items.len() == 1 { "," } else { "" });
            out.push(close);
        }
        _ => out.push_str(&value.to_string()),
    }
}

/// `repr` of a string: in single quotes unless only those are in it; what cannot be printed is escaped.
fn string_repr(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == '\\' || c == quote => out.extend(['\\', c]),
            c if is_printable(c) => out.push(c),
            c => {
                let code = u32::from(c);
                out.push_str(&match code {
                    0..=0xff => format!("\\x{code:02x}"),
                    0x100..=0xffff => format!("\\u{code:04x}"),
                    _ => format!("\\U{code:08x}"),
                });
            }
        }
    }
    out.push(quote);
}

/// `str.isprintable`: no separators but the space, no controls, formats, surrogates, private or unassigned characters.
/// The standard library escapes the same, after another character (a mark alone would join the quote).
fn is_printable(c: char) -> bool {
    matches!(c, '"' | '\'' | '\\') || String::from_iter(['a', c]).escape_debug().nth(2).is_none()
}

/// `str.isspace` of a character: some controls are, other than by Unicode's property.
pub(crate) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// `str.splitlines(keepends)`.
pub(crate) fn split_lines(text: &str, keep_ends: bool) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = text;
    let is_end = |c: char| matches!(c, '\n'..='\r' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}');
    while let Some(end) = rest.find(is_end) {
        let length =
            if rest[end..].starts_with("\r\n") { 2 } else { rest[end..].chars().next().map_or(1, char::len_utf8) };
        lines.push(&rest[..if keep_ends { end + length } else { end }]);
        rest = &rest[end + length..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}

/// JSON keys are strings; Python writes numbers, booleans and None as their JSON text.
fn key_text(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.as_str().unwrap_or_default().to_owned()),
        ValueKind::None | ValueKind::Bool | ValueKind::Number => json_dumps(key, &JsonStyle::default()),
        other => Err(not_json(&format!("a key of kind {other}"))),
    }
}

fn not_json(what: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("{what} is not JSON serializable"))
}

/// `repr` of a finite float: the shortest digits that read back equal, with an exponent below 1e-4 and from 1e16 on.
pub(crate) fn float_repr(number: f64) -> String {
    let scientific = format!("{number:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>().unwrap_or(0) {
        -4..16 => {
            let plain = number.to_string();
            if plain.contains('.') { plain } else { plain + ".0" }
        }
        exponent => format!("{mantissa}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs()),
    }
}

/// A moment on the clock of a place: what `datetime.now()` is to a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Seconds since 1970-01-01 00:00:00 UTC.
    pub unix_seconds: i64,
    /// What the place's clock is ahead of UTC, in seconds.
    pub utc_offset_seconds: i32,
}

impl Moment {
    /// The system's clock, read as UTC (the standard library does not know the time zone).
    pub fn now_utc() -> Moment {
        let seconds = match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            Err(before) => i64::try_from(before.duration().as_secs()).map_or(i64::MIN, |s| -s),
        };
        Moment { unix_seconds: seconds, utc_offset_seconds: 0 }
    }

    /// `datetime.strftime(format)` in the C locale, of a time without zone.
    ///
    /// # Errors
    /// A directive that is not one of `aAbBdeFHIjmMpSTyYzZ%`, or a `-` before one that has no padding.
    pub(crate) fn strftime(self, format: &str) -> Result<String, Error> {
        let clock = Clock::of(self);
        let mut out = String::new();
        let mut chars = format.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let mut directive = chars.next();
            let padded = directive != Some('-');
            if !padded {
                directive = chars.next();
            }
            out.push_str(&clock.field(directive, padded).ok_or_else(|| {
                let shown = directive.map(String::from).unwrap_or_default();
                Error::new(
                    ErrorKind::InvalidOperation,
                    format!(
                        "strftime_now: found %{}{shown}, expected one of aAbBdeFHIjmMpSTyYzZ%",
                        if padded { "" } else { "-" }
                    ),
                )
            })?);
        }
        Ok(out)
    }
}

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// A moment split into what a calendar shows.
struct Clock {
    year: i64,
    month: usize,
    day: i64,
    day_of_year: i64,
    weekday: usize,
    hour: i64,
    minute: i64,
    second: i64,
}

impl Clock {
    /// The proleptic Gregorian date, by Howard Hinnant's `civil_from_days` (eras of 400 years that begin in March).
    fn of(moment: Moment) -> Clock {
        let local = moment.unix_seconds.saturating_add(i64::from(moment.utc_offset_seconds));
        let (days, second_of_day) = (local.div_euclid(86_400), local.rem_euclid(86_400));
        let shifted = days + 719_468;
        let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let from_march = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * from_march + 2) / 153;
        let day = from_march - (153 * march_month + 2) / 5 + 1;
        let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        let leap = i64::from(year % 4 == 0 && (year % 100 != 0 || year % 400 == 0));
        let day_of_year = if month <= 2 { from_march - 305 } else { from_march + 60 + leap };
        Clock {
            year,
            month: usize::try_from(month - 1).unwrap_or(0),
            day,
            day_of_year,
            weekday: usize::try_from((days + 4).rem_euclid(7)).unwrap_or(0),
            hour: second_of_day / 3600,
            minute: second_of_day / 60 % 60,
            second: second_of_day % 60,
        }
    }

    fn field(&self, directive: Option<char>, padded: bool) -> Option<String> {
        let number = |value: i64, width: usize| if padded { format!("{value:0width$}") } else { value.to_string() };
        let hour12 = (self.hour + 11) % 12 + 1;
        let (day, month) = (DAYS[self.weekday], MONTHS[self.month]);
        let month_number = self.month as i64 + 1;
        Some(match directive? {
            'd' => number(self.day, 2),
            'm' => number(month_number, 2),
            'y' => number(self.year.rem_euclid(100), 2),
            'Y' => number(self.year, 4),
            'H' => number(self.hour, 2),
            'I' => number(hour12, 2),
            'M' => number(self.minute, 2),
            'S' => number(self.second, 2),
            'j' => number(self.day_of_year, 3),
            _ if !padded => return None,
            'a' => day[..3].to_owned(),
            'A' => day.to_owned(),
            'b' => month[..3].to_owned(),
            'B' => month.to_owned(),
            'e' => format!("{:2}", self.day),
            'F' => format!("{:04}-{month_number:02}-{:02}", self.year, self.day),
            'T' => format!("{:02}:{:02}:{:02}", self.hour, self.minute, self.second),
            'p' => if self.hour < 12 { "AM" } else { "PM" }.to_owned(),
            'z' | 'Z' => String::new(),
            '%' => "%".to_owned(),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use minijinja::value::Serde;

    /// Expected texts are what CPython 3.11 prints for `json.dumps(value, ensure_ascii=False)` and its variants.
    #[test]
    fn json_is_what_python_writes() {
        let json: serde_json::Value = serde_json::from_str(
            r#"{"b": [1, -2.5, 1e-5, 1e16, 123456789012345680.0, 0.0001, 3.0], "a": {"ä\u0007\"\\\n": null, "x": true}, "e": [], "o": {}, "h": "<&'>\u007f😀"}"#,
        )
        .unwrap();
        let value = Value::from(Serde(&json));
        assert_eq!(
            json_dumps(&value, &JsonStyle::default()).unwrap(),
            "{\"b\": [1, -2.5, 1e-05, 1e+16, 1.2345678901234568e+17, 0.0001, 3.0], \"a\": {\"ä\\u0007\\\"\\\\\\n\": null, \"x\": true}, \"e\": [], \"o\": {}, \"h\": \"<&'>\u{7f}😀\"}"
        );
        let small = Value::from(Serde(&serde_json::json!({"b": [1, {}], "a": "é😀"})));
        let pretty = JsonStyle { indent: Some(2), sort_keys: true, ..JsonStyle::default() };
        assert_eq!(json_dumps(&small, &pretty).unwrap(), "{\n  \"a\": \"é😀\",\n  \"b\": [\n    1,\n    {}\n  ]\n}");
        let compact =
            JsonStyle { separators: Some((",".into(), ":".into())), ensure_ascii: true, ..JsonStyle::default() };
        assert_eq!(json_dumps(&small, &compact).unwrap(), "{\"b\":[1,{}],\"a\":\"\\u00e9\\ud83d\\ude00\"}");
    }

    /// Expected texts are what `date -u -d @SECONDS` prints.
    #[test]
    fn dates_are_those_of_the_calendar() {
        let show =
            |seconds, format: &str| Moment { unix_seconds: seconds, utc_offset_seconds: 0 }.strftime(format).unwrap();
        let all = "%a %A %b %B %d %-d %e %m %-m %y %Y %H %I %p %M %S %j %F %T %%";
        assert_eq!(
            show(951_782_400, all),
            "Tue Tuesday Feb February 29 29 29 02 2 00 2000 00 12 AM 00 00 060 2000-02-29 00:00:00 %"
        );
        assert_eq!(
            show(1_735_689_599, all),
            "Tue Tuesday Dec December 31 31 31 12 12 24 2024 23 11 PM 59 59 366 2024-12-31 23:59:59 %"
        );
        assert_eq!(show(-1, "%F %T %j"), "1969-12-31 23:59:59 365");
        assert_eq!(show(1_709_251_200, "%-d %B, %j"), "1 March, 061");
        let tokyo = Moment { unix_seconds: 1_735_689_599, utc_offset_seconds: 9 * 3600 };
        assert_eq!(tokyo.strftime("%d %b %Y %H:%M").unwrap(), "01 Jan 2025 08:59");
        assert!(tokyo.strftime("%Q").unwrap_err().to_string().contains("found %Q"));
    }
}
