//! Stop strings: where an answer ends by what it says.

/// Looks for stop strings in text that comes in pieces, whose borders know nothing of them.
///
/// Text is held back while it may be the beginning of a stop string, so nothing of one is ever told.
#[derive(Debug)]
pub(crate) struct StopStrings<'a> {
    stops: &'a [String],
    held: String,
}

/// What a piece of text came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Told {
    /// The text that is certain to be before any stop string.
    pub text: String,
    /// The index of the stop string that was found.
    pub stop: Option<usize>,
}

impl<'a> StopStrings<'a> {
    /// Empty stop strings are never found.
    pub fn new(stops: &'a [String]) -> StopStrings<'a> {
        StopStrings { stops, held: String::new() }
    }

    /// Takes the next piece. Of several stop strings the one that begins first counts, then the one listed first.
    pub fn push(&mut self, piece: &str) -> Told {
        self.held.push_str(piece);
        let stops = || self.stops.iter().enumerate().filter(|(_, stop)| !stop.is_empty());
        let found = stops().filter_map(|(index, stop)| Some((self.held.find(stop.as_str())?, index))).min();
        if let Some((at, index)) = found {
            let mut text = std::mem::take(&mut self.held);
            text.truncate(at);
            return Told { text, stop: Some(index) };
        }
        let begins_stop = |&at: &usize| {
            let tail = &self.held.as_bytes()[at..];
            stops().any(|(_, stop)| stop.as_bytes().starts_with(tail))
        };
        let longest = stops().map(|(_, stop)| stop.len()).max().unwrap_or(0);
        let earliest = self.held.len().saturating_sub(longest);
        let certain = (earliest..self.held.len()).filter(|&at| self.held.is_char_boundary(at)).find(begins_stop);
        let held = self.held.split_off(certain.unwrap_or(self.held.len()));
        Told { text: std::mem::replace(&mut self.held, held), stop: None }
    }

    /// What is held back, at the end of the text.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However the text is cut, what is told is the text before the first stop string.
    #[test]
    fn every_cut_gives_the_same_text() {
        let stops = ["END".to_owned(), "\n\nUser:".to_owned(), "é!".to_owned(), String::new()];
        for (text, expected, stop) in [
            ("a EN b\n\nUse END tail", "a EN b\n\nUse ", Some(0)),
            ("x\n\n\nUser: END", "x\n", Some(1)),
            ("caféé!", "café", Some(2)),
            ("ENEND", "EN", Some(0)),
            ("no stop, but EN", "no stop, but EN", None),
        ] {
            let cuts: Vec<usize> = (0..=text.len()).filter(|&at| text.is_char_boundary(at)).collect();
            for &first in &cuts {
                for &second in cuts.iter().filter(|&&at| at >= first) {
                    let mut search = StopStrings::new(&stops);
                    let mut told = String::new();
                    let mut found = None;
                    for piece in [&text[..first], &text[first..second], &text[second..]] {
                        let step = search.push(piece);
                        told.push_str(&step.text);
                        found = step.stop;
                        if found.is_some() {
                            break;
                        }
                    }
                    if found.is_none() {
                        told.push_str(&search.finish());
                    }
                    assert_eq!((told.as_str(), found), (expected, stop), "cut at {first} and {second}");
                }
            }
        }
    }

    #[test]
    fn only_what_may_become_a_stop_string_is_held() {
        let stops = ["<end>".to_owned()];
        let mut search = StopStrings::new(&stops);
        assert_eq!(search.push("plain <en").text, "plain ");
        assert_eq!(search.push("try").text, "<entry");
    }
}
