//! Cuts MIL text into tokens that know their line and column.

use crate::{Error, Result};

/// A piece of the text.
#[derive(Clone, PartialEq, Debug)]
pub enum Token<'a> {
    /// A name or keyword.
    Identifier(&'a str),
    /// A number as written, sign included; `-inf` and `-nan` too.
    Number(&'a str),
    /// A string without its quotes, escapes resolved.
    String(String),
    /// One character: a bracket, `,` `;` `=` `?`.
    Mark(char),
    /// `->`.
    Arrow,
    /// The end of the text.
    End,
}

/// A line and column, from one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The column, counted in bytes.
    pub column: usize,
}

impl std::fmt::Display for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

impl std::fmt::Display for Token<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Token::Identifier(text) | Token::Number(text) => write!(f, "`{text}`"),
            Token::String(text) => write!(f, "{text:?}"),
            Token::Mark(c) => write!(f, "`{c}`"),
            Token::Arrow => f.write_str("`->`"),
            Token::End => f.write_str("the end of the text"),
        }
    }
}

/// The text that is left, and where it begins.
#[derive(Clone)]
pub struct Lexer<'a> {
    rest: &'a str,
    position: Position,
}

impl<'a> Lexer<'a> {
    /// The tokens of a text.
    pub fn new(text: &'a str) -> Lexer<'a> {
        Lexer { rest: text, position: Position { line: 1, column: 1 } }
    }

    /// The next token and where it begins; again and again [`Token::End`] at the end.
    pub fn next(&mut self) -> Result<(Token<'a>, Position)> {
        self.skip();
        let at = self.position;
        let token = match self.rest.bytes().next() {
            None => Token::End,
            Some(b'"') => self.string().map_err(|e| e.at(at))?,
            Some(b'-') if self.rest[1..].starts_with('>') => {
                self.take(2);
                Token::Arrow
            }
            Some(c) if c.is_ascii_alphabetic() || c == b'_' => {
                Token::Identifier(self.run(|c| c.is_ascii_alphanumeric() || c == b'_' || c == b'@'))
            }
            Some(c) if c.is_ascii_digit() || c == b'-' => Token::Number(self.number()),
            Some(c) if b"()[]{}<>,;=?".contains(&c) => {
                self.take(1);
                Token::Mark(c as char)
            }
            Some(_) => {
                let found = self.rest.chars().next().unwrap_or(' ');
                return Err(Error::new(format!("found the character {found:?}, expected MIL text")).at(at));
            }
        };
        Ok((token, at))
    }

    /// Goes on by some bytes, none of them a line end.
    fn take(&mut self, bytes: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(bytes);
        self.rest = rest;
        self.position.column += bytes;
        taken
    }

    fn run(&mut self, belongs: impl Fn(u8) -> bool) -> &'a str {
        let length = self.rest.bytes().position(|c| !belongs(c)).unwrap_or(self.rest.len());
        self.take(length)
    }

    /// White space and comments.
    fn skip(&mut self) {
        loop {
            match self.rest.as_bytes() {
                [b'\n', ..] => {
                    self.take(1);
                    self.position = Position { line: self.position.line + 1, column: 1 };
                }
                [b' ' | b'\t' | b'\r', ..] => {
                    self.take(1);
                }
                [b'/', b'/', ..] => {
                    self.run(|c| c != b'\n');
                }
                _ => return,
            }
        }
    }

    /// A sign, then letters, digits and points; a sign in the middle only behind an exponent's letter.
    fn number(&mut self) -> &'a str {
        let bytes = self.rest.as_bytes();
        let hexadecimal = bytes.starts_with(b"0x") || bytes.starts_with(b"-0x");
        let mut end = 1;
        while let Some(&c) = bytes.get(end) {
            let exponent = if hexadecimal { b'p' } else { b'e' };
            let signed = (c == b'+' || c == b'-') && bytes[end - 1] == exponent;
            if !(c.is_ascii_alphanumeric() || c == b'.' || signed) {
                break;
            }
            end += 1;
        }
        self.take(end)
    }

    fn string(&mut self) -> Result<Token<'a>> {
        self.take(1);
        let mut text = String::new();
        loop {
            text.push_str(self.run(|c| c != b'"' && c != b'\\' && c != b'\n'));
            match self.rest.as_bytes() {
                [b'"', ..] => {
                    self.take(1);
                    return Ok(Token::String(text));
                }
                [b'\\', b'x', ..] => {
                    let code = self.rest.get(2..4).and_then(|digits| u8::from_str_radix(digits, 16).ok());
                    match code {
                        Some(code) if code < 128 => text.push(code as char),
                        _ => return Err(Error::new("found an escape `\\x` without two digits of an ASCII character")),
                    }
                    self.take(4);
                }
                [b'\\', c @ (b'n' | b'r' | b't' | b'"' | b'\\'), ..] => {
                    text.push(match c {
                        b'n' => '\n',
                        b'r' => '\r',
                        b't' => '\t',
                        c => *c as char,
                    });
                    self.take(2);
                }
                [b'\\', ..] => {
                    return Err(Error::new("found an unknown escape in a string, expected \\n \\r \\t \\\" \\\\"));
                }
                _ => return Err(Error::new("found a string without an end, expected `\"`")),
            }
        }
    }
}
