//! The error of the library crates: a message that says what was found and what was expected, where, and what to do.

use std::fmt;

/// What went wrong, where, and what can be done about it.
///
/// It prints as one paragraph: `place: message (hint: ...)`. Places nest from the outside in: `at` on the way up puts
/// the wider place before the narrower one.
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    places: Vec<String>,
    message: String,
    hints: Vec<String>,
}

/// A result whose error is [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error that says what was found and what was expected.
    pub fn new(message: impl Into<String>) -> Error {
        Error(Box::new(Inner { places: Vec::new(), message: message.into(), hints: Vec::new() }))
    }

    /// Adds the place (file and offset, weight, operation) around those that the error already has.
    #[must_use]
    pub fn at(mut self, place: impl fmt::Display) -> Error {
        self.0.places.insert(0, place.to_string());
        self
    }

    /// Adds what the reader can do.
    #[must_use]
    pub fn hint(mut self, hint: impl fmt::Display) -> Error {
        self.0.hints.push(hint.to_string());
        self
    }

    /// What went wrong, without places and hints.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// What the reader can do, in the order in which it was added.
    pub fn hints(&self) -> &[String] {
        &self.0.hints
    }

    /// The error without its hints, on one line: `place: message`.
    pub fn headline(&self) -> String {
        let places = self.0.places.iter().map(|place| format!("{place}: "));
        places.chain([self.0.message.clone()]).collect()
    }

    /// The places, widest first.
    pub fn places(&self) -> &[String] {
        &self.0.places
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.headline())?;
        for hint in &self.0.hints {
            write!(f, "; hint: {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// Leaves the function with an [`Error`]: `bail!("expected {a}, found {b}")`, or `bail!(...; hint: "...")`.
#[macro_export]
macro_rules! bail {
    ($fmt:literal $(, $arg:expr)* ; hint: $hint:literal $(, $harg:expr)* $(,)?) => {
        return Err($crate::Error::new(format!($fmt $(, $arg)*)).hint(format!($hint $(, $harg)*)).into())
    };
    ($fmt:literal $(, $arg:expr)* $(,)?) => {
        return Err($crate::Error::new(format!($fmt $(, $arg)*)).into())
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_from_the_wide_place_to_the_narrow_one_and_ends_with_the_hint() {
        let error = Error::new("found 3, expected 4").hint("use 4").at("tensor `w`").at("model.safetensors");
        assert_eq!(error.to_string(), "model.safetensors: tensor `w`: found 3, expected 4; hint: use 4");
        assert_eq!(error.headline(), "model.safetensors: tensor `w`: found 3, expected 4");
        assert_eq!(error.hints(), ["use 4"]);
    }
}
