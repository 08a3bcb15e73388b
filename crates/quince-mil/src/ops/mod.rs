//! The table of operations, and the shape rules that several of them share.
//!
//! A new operation is one file here and one line in the table: text, packages, verifier, engine and `quince ops` need
//! nothing more.

use crate::Op;

pub mod elements;
pub mod shape_rules;

macro_rules! table {
    ($($file:ident: $($op:ident),+;)*) => {
        $(mod $file;)*

        /// Every operation, by file.
        pub const OPS: &[&dyn Op] = &[$($(&$file::$op),+),*];
    };
}

table! {
    constant: Const;
    linear: Linear;
}

/// The operation of this name.
pub fn find(name: &str) -> Option<&'static dyn Op> {
    use std::collections::HashMap;
    use std::sync::LazyLock;
    static BY_NAME: LazyLock<HashMap<&str, &'static dyn Op>> =
        LazyLock::new(|| OPS.iter().map(|op| (op.name(), *op)).collect());
    BY_NAME.get(name).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_parameters_are_unique() {
        for (i, op) in OPS.iter().enumerate() {
            assert!(OPS[..i].iter().all(|other| other.name() != op.name()), "{} is there twice", op.name());
            for (j, param) in op.params().iter().enumerate() {
                assert!(op.params()[..j].iter().all(|p| p.name != param.name), "{}: {}", op.name(), param.name);
            }
        }
    }
}
