//! Names that MIL accepts. Hugging Face names have dots, an identifier of MIL is `[A-Za-z_][A-Za-z0-9_@]*`: what
//! writes a program gives each variable an [`identifier`], and [`Names`] keeps those of one function apart.

use std::collections::HashSet;

/// The identifier nearest to a name: what may not be in one becomes `_`. Different names may become equal.
pub fn identifier(name: &str) -> String {
    let mut identifier = String::with_capacity(name.len() + 1);
    if !name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
        identifier.push('_');
    }
    identifier.extend(name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '@' { c } else { '_' }));
    identifier
}

/// Whether a name is an identifier already.
pub fn is_identifier(name: &str) -> bool {
    !name.is_empty() && identifier(name) == name
}

/// Names given out so far; the names of one function, or of the functions of one program.
#[derive(Clone, Debug, Default)]
pub struct Names {
    taken: HashSet<String>,
}

impl Names {
    /// No names yet.
    pub fn new() -> Names {
        Names::default()
    }

    /// The identifier for a name: no other call gives the same. Names that are identifiers should be asked for first,
    /// or all in one fixed order, so that the result does not depend on chance.
    pub fn identifier(&mut self, name: &str) -> String {
        self.unique(&identifier(name))
    }

    /// The name itself, or with `_1` and so on behind it if it is taken.
    pub fn unique(&mut self, name: &str) -> String {
        let mut candidate = name.to_owned();
        let mut n = 0;
        while !self.taken.insert(candidate.clone()) {
            n += 1;
            candidate = format!("{name}_{n}");
        }
        candidate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_becomes_an_identifier_of_its_own() {
        let mut names = Names::new();
        let given = ["model.layers.0", "model_layers.0", "model_layers_0", "0", "", "é", "a@b", "_0"];
        let found: Vec<String> = given.iter().map(|name| names.identifier(name)).collect();
        assert_eq!(found, ["model_layers_0", "model_layers_0_1", "model_layers_0_2", "_0", "_", "__", "a@b", "_0_1"]);
        assert!(found.iter().all(|name| is_identifier(name)));
        assert!(!is_identifier("a.b") && !is_identifier("") && !is_identifier("1"));
    }
}
