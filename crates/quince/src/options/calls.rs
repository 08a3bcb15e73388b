//! Calls of functions, as typed.

use std::path::PathBuf;
use std::str::FromStr;

/// A function and the file with its inputs.
#[derive(Clone, Debug)]
pub struct Call {
    /// The function's name.
    pub function: String,
    /// The file.
    pub file: PathBuf,
}

impl FromStr for Call {
    type Err = String;

    fn from_str(text: &str) -> Result<Call, String> {
        match text.split_once(':') {
            Some((function, file)) if !function.is_empty() && !file.is_empty() => {
                Ok(Call { function: function.to_string(), file: file.into() })
            }
            _ => Err("expected FUNCTION:FILE, such as decode:token.npz".to_string()),
        }
    }
}
