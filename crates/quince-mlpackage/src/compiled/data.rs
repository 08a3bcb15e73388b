//! `coremldata.bin` of a compiled model: the description as a message, in a container that Apple has not documented.
//!
//! It is read for the one thing that is there alone, the values of optional inputs that a caller leaves out, and is
//! believed in nothing else: who calls asks for the value of an input that `metadata.json` has as optional.

use prost::Message;

use crate::proto::feature::array_feature_type::DefaultOptionalValue;
use crate::proto::feature::feature_type::Type;
use crate::proto::model::{FeatureDescription, ModelDescription};

/// The longest `coremldata.bin` that is read, in bytes.
pub const MAX_DATA: u64 = 64 << 20;

/// Where the length of the processor's name is, and where the name begins.
const NAME_LENGTH: usize = 28;
const NAME: usize = 36;
/// From the end of the name to the length of the description.
const BETWEEN: usize = 32;

/// The default values of a model; empty if the file is not of the form that is known.
pub struct Defaults {
    description: ModelDescription,
}

impl Defaults {
    /// Finds the description in the content of the file.
    pub fn parse(bytes: &[u8]) -> Defaults {
        Defaults { description: message(bytes).unwrap_or_default() }
    }

    /// The default value of an input of a function, or of the only function.
    pub fn of(&self, function: Option<&str>, input: &str) -> Option<DefaultOptionalValue> {
        let inputs = match function {
            Some(name) => &self.description.functions.iter().find(|f| f.name == name)?.input,
            None => &self.description.input,
        };
        let found: &FeatureDescription = inputs.iter().find(|feature| feature.name == input)?;
        match found.r#type.as_ref()?.r#type.as_ref()? {
            Type::MultiArray(array) => array.default_optional_value,
            _ => None,
        }
    }
}

fn message(bytes: &[u8]) -> Option<ModelDescription> {
    let length = |at: usize| {
        let field = bytes.get(at..at.checked_add(8)?)?;
        usize::try_from(u64::from_le_bytes(field.try_into().ok()?)).ok()
    };
    let at = NAME.checked_add(length(NAME_LENGTH)?)?.checked_add(BETWEEN)?;
    let begin = at.checked_add(8)?;
    ModelDescription::decode(bytes.get(begin..begin.checked_add(length(at)?)?)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::feature::{ArrayFeatureType, FeatureType};

    /// As the compiler of Xcode 16 and 26 writes it: what is not named here was zero or had no known meaning.
    fn file(description: &ModelDescription) -> Vec<u8> {
        let message = description.encode_to_vec();
        let mut bytes = vec![0; NAME_LENGTH];
        bytes[0..2].copy_from_slice(&502u16.to_le_bytes());
        bytes.extend(7u64.to_le_bytes());
        bytes.extend(b"generic");
        bytes.extend([0; BETWEEN]);
        bytes.extend((message.len() as u64).to_le_bytes());
        bytes.extend(message);
        bytes.extend([0; 16]);
        bytes
    }

    #[test]
    fn defaults_are_found_and_nothing_else_is_believed() {
        let array =
            ArrayFeatureType { default_optional_value: Some(DefaultOptionalValue::Float(0.5)), ..Default::default() };
        let ty = FeatureType { r#type: Some(Type::MultiArray(array)), is_optional: true };
        let feature = FeatureDescription { name: "x".into(), short_description: String::new(), r#type: Some(ty) };
        let bytes = file(&ModelDescription { input: vec![feature], ..Default::default() });
        let defaults = Defaults::parse(&bytes);
        assert_eq!(defaults.of(None, "x"), Some(DefaultOptionalValue::Float(0.5)));
        assert_eq!((defaults.of(None, "y"), defaults.of(Some("main"), "x")), (None, None));
        for end in 0..bytes.len() - 16 {
            assert_eq!(Defaults::parse(&bytes[..end]).of(None, "x"), None);
        }
        let mut wrong = bytes.clone();
        wrong[NAME_LENGTH..NAME].fill(0xff);
        assert_eq!(Defaults::parse(&wrong).of(None, "x"), None);
    }
}
