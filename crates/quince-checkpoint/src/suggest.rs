//! Names in errors: short, printable, and near to what was asked for.

/// How many characters of a stranger's name an error shows.
const SHOWN: usize = 120;

/// Text from a file as an error shows it: what cannot be printed is escaped, and long text is cut.
pub(crate) fn shown(text: &str) -> String {
    let mut printable = text.chars().flat_map(|c| {
        let plain = matches!(c, '"' | '\'' | '\\');
        plain.then_some(c).into_iter().chain((!plain).then(|| c.escape_debug()).into_iter().flatten())
    });
    let mut shown: String = printable.by_ref().take(SHOWN).collect();
    if printable.next().is_some() {
        shown.push_str("...");
    }
    shown
}

/// The names most like `name`, best first, at most three: those that begin and end alike over the longest stretch.
pub(crate) fn near<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut scored: Vec<(usize, &str)> = names.map(|other| (alike(name, other), other)).collect();
    scored.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
    let enough = name.len() / 2;
    scored.into_iter().take(3).filter(|(score, _)| *score > enough).map(|(_, other)| other).collect()
}

/// The number of bytes that two names share at their beginnings and ends, not counting any byte twice.
fn alike(a: &str, b: &str) -> usize {
    let shorter = a.len().min(b.len());
    let start = a.bytes().zip(b.bytes()).take_while(|(x, y)| x == y).count();
    let end = a.bytes().rev().zip(b.bytes().rev()).take_while(|(x, y)| x == y).count();
    start + end.min(shorter - start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_left_out_or_a_word_mistaken_is_near() {
        let names = ["lm_head.weight", "layers.0.attn.q_proj.weight", "model.layers.0.attn.k_proj.weight"];
        let found = near("model.layers.0.attn.q_proj.weight", names.into_iter());
        assert_eq!(found, ["model.layers.0.attn.k_proj.weight", "layers.0.attn.q_proj.weight"]);
        assert!(near("conv1.bias", names.into_iter()).is_empty());
    }

    #[test]
    fn a_hostile_name_is_shown_short_and_printable() {
        assert_eq!(shown("\"a\"\n\u{1b}[31m"), "\"a\"\\n\\u{1b}[31m");
        assert_eq!(shown(&"x".repeat(1000)).len(), SHOWN + 3);
    }
}
