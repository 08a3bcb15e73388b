//! YAML as recipes need it: scalars, lists and mappings, each with its line. Anchors, aliases and tags are refused, so
//! that a small file cannot become a large one.

use quince_tensor::{Error, Result, bail};
use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span, StrInput};

/// Bytes of the longest text.
const LONGEST: usize = 4 << 20;
/// How deep lists and mappings may lie in each other.
const DEEPEST: usize = 16;

/// A value and where it begins.
#[derive(Debug, PartialEq)]
pub struct Node {
    /// The line, from 1.
    pub line: usize,
    /// What it is.
    pub value: Value,
}

/// What a node is.
#[derive(Debug, PartialEq)]
pub enum Value {
    /// A text, which may stand for a number or a truth; nothing is told apart here.
    Scalar(String),
    /// Values in order.
    List(Vec<Node>),
    /// Values by key, in the order of the text; no key is there twice.
    Map(Vec<(String, Node)>),
}

/// Reads a text of one document.
///
/// # Errors
/// What is not YAML, and what recipes do not need of it; the place is the line.
pub fn parse(text: &str) -> Result<Node> {
    if text.len() > LONGEST {
        bail!("found {} bytes, expected at most {LONGEST}", text.len());
    }
    let mut events = Events { parser: Parser::new_from_str(text) };
    loop {
        let (event, span) = events.next()?;
        match event {
            Event::StreamStart | Event::DocumentStart(_) => {}
            Event::StreamEnd => bail!("found no value, expected a mapping"),
            event => {
                let node = events.node(event, span, 0)?;
                return match events.next()? {
                    (Event::DocumentEnd, _) => match events.next()? {
                        (Event::StreamEnd, _) => Ok(node),
                        (_, span) => Err(at(&span, Error::new("found a second document, expected one"))),
                    },
                    (_, span) => Err(at(&span, Error::new("found more than one value, expected one"))),
                };
            }
        }
    }
}

struct Events<'a> {
    parser: Parser<'a, StrInput<'a>>,
}

impl<'a> Events<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Span)> {
        match self.parser.next_event() {
            Some(found) => found.map_err(|e| scan_error(&e)),
            None => bail!("found the end, expected a value"),
        }
    }

    fn node(&mut self, event: Event<'a>, span: Span, depth: usize) -> Result<Node> {
        let line = span.start.line();
        let wrong = |text: &str| Err(at(&span, Error::new(text)));
        if depth > DEEPEST {
            return wrong("found values within values, too deep for a recipe");
        }
        let (anchor, tag) = match &event {
            Event::Scalar(_, _, anchor, tag) => (*anchor, tag.is_some()),
            Event::SequenceStart(anchor, tag) | Event::MappingStart(anchor, tag) => (*anchor, tag.is_some()),
            _ => (0, false),
        };
        if anchor != 0 || tag || matches!(event, Event::Alias(_)) {
            return wrong("found an anchor, alias or tag, expected plain values");
        }
        let value = match event {
            Event::Scalar(text, style, ..) => {
                if style == ScalarStyle::Plain && matches!(&*text, "" | "~" | "null") {
                    return wrong("found no value, expected one");
                }
                Value::Scalar(text.into_owned())
            }
            Event::SequenceStart(..) => Value::List(self.list(depth)?),
            Event::MappingStart(..) => Value::Map(self.map(depth)?),
            _ => return wrong("found no value, expected one"),
        };
        Ok(Node { line, value })
    }

    fn list(&mut self, depth: usize) -> Result<Vec<Node>> {
        let mut nodes = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(nodes),
                (event, span) => nodes.push(self.node(event, span, depth + 1)?),
            }
        }
    }

    fn map(&mut self, depth: usize) -> Result<Vec<(String, Node)>> {
        let mut entries: Vec<(String, Node)> = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if event == Event::MappingEnd {
                return Ok(entries);
            }
            let Node { value: Value::Scalar(key), .. } = self.node(event, span, depth + 1)? else {
                return Err(at(&span, Error::new("found a list or mapping as a key, expected a word")));
            };
            if entries.iter().any(|(known, _)| *known == key) {
                return Err(at(&span, Error::new(format!("found the key `{}` twice", key.escape_debug()))));
            }
            let (event, span) = self.next()?;
            entries.push((key, self.node(event, span, depth + 1)?));
        }
    }
}

fn at(span: &Span, error: Error) -> Error {
    error.at(format!("line {}", span.start.line()))
}

fn scan_error(error: &ScanError) -> Error {
    let place = format!("line {}, column {}", error.marker().line(), error.marker().col() + 1);
    Error::new(error.info().to_owned())
        .hint("indent with spaces; put texts with `*` or `:` in quotation marks")
        .at(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_with_their_lines() {
        let node = parse("# a comment\na: 1\nb:\n  - \"*.x\"\n  - {c: d}\n").unwrap();
        let scalar = |line, text: &str| Node { line, value: Value::Scalar(text.to_owned()) };
        let inner = Node { line: 5, value: Value::Map(vec![("c".into(), scalar(5, "d"))]) };
        let list = Node { line: 4, value: Value::List(vec![scalar(4, "*.x"), inner]) };
        assert_eq!(node, Node { line: 2, value: Value::Map(vec![("a".into(), scalar(2, "1")), ("b".into(), list)]) });
    }

    #[test]
    fn what_is_not_needed_or_not_yaml_is_refused() {
        let deep = format!("{}{}", "[".repeat(100), "]".repeat(100));
        let deeper = "[".repeat(100_000);
        for (text, expected) in [
            ("", "found no value"),
            ("a:", "found no value"),
            ("a: 1\na: 2", "line 2: found the key `a` twice"),
            ("a: &x 1\nb: *x", "line 1: found an anchor"),
            ("a: !!str 1", "line 1: found an anchor"),
            ("a: 1\n---\nb: 2", "found a second document"),
            ("- a\n- [b: c", "line"),
            ("? [a]\n: b", "expected a word"),
            ("a: *.x", "line 1"),
            (&deep, "too deep"),
            (&deeper, "line 1"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{:.20}: {error}", text);
        }
    }
}
