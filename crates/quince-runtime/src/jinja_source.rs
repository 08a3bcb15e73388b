//! What templates say in a way that only Jinja2 understands, written so that minijinja means the same.
//!
//! - `{% generation %}` marks what the assistant said, for training. It prints nothing itself.
//! - `schema.items` of a map is Python's method even where the map has such a key, unless it is called.
//! - `'a'|safe + b` escapes `b`.
//! - `text[::-1]` of no text is no text, where minijinja 3.0.5 panics.

/// The method behind `.items` and the like where they are not called.
pub(crate) const BOUND_METHOD: &str = "quince_bound_method";

/// The filter that adds to text which may be marked as safe.
pub(crate) const MARKUP_SUM: &str = "quince_markup_sum";

/// The method behind `[::-1]`.
pub(crate) const REVERSED: &str = "quince_reversed";

/// The methods of a `dict`: attributes that Jinja2 finds before the keys.
const DICT_METHODS: &[&str] =
    &["clear", "copy", "fromkeys", "get", "items", "keys", "pop", "popitem", "setdefault", "update", "values"];

/// The template with those things written otherwise; all else, white space included, stays.
pub(crate) fn for_minijinja(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find('{').filter(|&start| start + 1 < rest.len()) {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let end = match &tag.as_bytes()[1] {
            b'#' => tag.find("#}").map(|end| end + 2),
            b'%' => {
                end_of_code(tag, '%').map(|end| if word_of(&tag[2..end]) == "raw" { end_of_raw(tag) } else { end + 2 })
            }
            b'{' => end_of_code(tag, '}').map(|end| end + 2),
            _ => Some(1),
        };
        let Some(end) = end else {
            // Not closed: the compiler says so.
            out.push_str(tag);
            return out;
        };
        match &tag.as_bytes()[1] {
            b'%' if word_of(&tag[2..end - 2]) != "raw" => out.push_str(&statement(&tag[..end])),
            b'{' if end > 1 => out.push_str(&output(&tag[..end])),
            _ => out.push_str(&tag[..end]),
        }
        rest = &tag[end..];
    }
    out.push_str(rest);
    out
}

/// The first word of a statement.
fn word_of(inside: &str) -> &str {
    let inside = inside.trim_start_matches(['-', '+']).trim_start();
    inside.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default()
}

/// Where the block of raw text that begins a text ends.
fn end_of_raw(text: &str) -> usize {
    let mut from = 0;
    while let Some(found) = text[from..].find("{%") {
        let start = from + found;
        let length = text[start..].find("%}").map_or(text.len() - start, |length| length + 2);
        if word_of(&text[start + 2..]) == "endraw" {
            return start + length;
        }
        from = start + length;
    }
    text.len()
}

/// Where the code of the tag that begins a text ends: the place of `%}` or `}}` outside strings and braces.
fn end_of_code(tag: &str, closing: char) -> Option<usize> {
    let mut depth = 0usize;
    for (at, piece) in pieces(tag).filter(|(at, piece)| *at >= 2 && !piece.starts_with(['\'', '"'])) {
        match piece.chars().next() {
            Some(c) if c == closing && depth == 0 && tag[at + 1..].starts_with('}') => return Some(at),
            Some('{') => depth += 1,
            Some('}') => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    None
}

/// Code cut into strings (with their quotes), words, and single characters, each with its place.
fn pieces(code: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = &code[at..];
        let first = rest.chars().next()?;
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let length = match first {
            '\'' | '"' => string_length(rest, first),
            c if is_word(c) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
            c => c.len_utf8(),
        };
        at += length;
        Some((at - length, &rest[..length]))
    })
}

/// The length of the string that begins a text, quotes included.
fn string_length(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

fn statement(tag: &str) -> String {
    let code = with_methods(tag);
    let bare = tag[2..tag.len() - 2].trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
    match bare {
        // Blocks with the same scope and the same handling of white space.
        "generation" => code.replacen("generation", "with", 1),
        "endgeneration" => code.replacen("endgeneration", "endwith", 1),
        _ => code,
    }
}

fn output(tag: &str) -> String {
    let code = with_methods(tag);
    with_markup_sums(&code).unwrap_or(code)
}

/// `{{ a|safe + b + c }}` as `{{ a|safe|sum(b)|sum(c) }}`; none where no operand is marked as safe, or there is more than
/// a sum.
fn with_markup_sums(code: &str) -> Option<String> {
    let (mut depth, mut signs, mut is_safe) = (0usize, Vec::new(), false);
    let mut previous = "";
    for (at, piece) in pieces(code).filter(|(_, piece)| !piece.trim().is_empty()) {
        match piece {
            "(" | "[" => depth += 1,
            ")" | "]" => depth = depth.saturating_sub(1),
            "+" if depth == 0 && at > 2 => signs.push(at),
            "safe" if depth == 0 && previous == "|" => is_safe = true,
            "~" | "if" | "or" | "and" | "not" | "in" | "is" | "=" | "<" | ">" | "!" if depth == 0 => return None,
            _ => {}
        }
        previous = piece;
    }
    let first = *signs.first().filter(|_| is_safe)?;
    let end = code.trim_end_matches('}').trim_end_matches(['-', '+']).len();
    signs.push(end);
    let mut out = code[..first].trim_end().to_owned();
    for signs in signs.windows(2) {
        out.push_str(&format!("|{MARKUP_SUM}({})", code.get(signs[0] + 1..signs[1])?.trim()));
    }
    Some(out + " " + &code[end..])
}

/// `.items` as `.quince_bound_method('items')`, where no call follows, and `[::-1]` as `.quince_reversed()`.
fn with_methods(tag: &str) -> String {
    let mut out = String::with_capacity(tag.len());
    let (mut previous, mut written) = ("", 0);
    for (at, piece) in pieces(tag) {
        if at < written {
            continue;
        }
        if tag[at..].starts_with("[::-1]") && at > 2 {
            out.push_str(&format!(".{REVERSED}()"));
            written = at + "[::-1]".len();
            previous = "]";
            continue;
        }
        let called = || tag[at + piece.len()..].trim_start().starts_with('(');
        match previous == "." && DICT_METHODS.contains(&piece) && !called() {
            true => out.push_str(&format!("{BOUND_METHOD}('{piece}')")),
            false => out.push_str(piece),
        }
        previous = piece;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_written_otherwise() {
        let same = [
            "plain { text } {",
            "{# a.items {% generation %} #}{{ 'a.items' }}{{ a.items() }}{{ a.items ( ) }}{{ items }}",
            "{% raw %}{{ a.items }}{% generation %}{% endraw %}",
            "{{ {'a': {}} }}{{ '}}' }}{% if '%}' %}{% endif %}",
            "{{ a|safe }}{{ a|safe ~ b }}{{ (a|safe + b) }}{{ a + b }}",
            "{{ unclosed.items",
            "{% unclosed.items",
        ];
        for source in same {
            assert_eq!(for_minijinja(source), source);
        }
        assert_eq!(for_minijinja("{%- generation -%} x {% endgeneration %}"), "{%- with -%} x {% endwith %}");
        assert_eq!(
            for_minijinja("{%- set a = b.items[0].keys %}{{ x.items }}"),
            "{%- set a = b.quince_bound_method('items')[0].quince_bound_method('keys') %}{{ x.quince_bound_method('items') }}"
        );
        assert_eq!(for_minijinja("{% for m in messages[::-1] %}"), "{% for m in messages.quince_reversed() %}");
        assert_eq!(
            for_minijinja("{{- 'a'|safe + b['c'] + 'd' | e(1 + 2) -}}"),
            "{{- 'a'|safe|quince_markup_sum(b['c'])|quince_markup_sum('d' | e(1 + 2)) -}}"
        );
    }
}
