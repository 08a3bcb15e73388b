//! The little that is needed of addresses: who is asked, where a redirect leads, how a name is put into one.

/// The scheme, host and port of an address: `https://huggingface.co`. `None` if it is not of HTTP.
pub(crate) fn origin(url: &str) -> Option<&str> {
    let after = ["https://", "http://"].iter().find_map(|scheme| url.strip_prefix(scheme))?;
    let host = after.split(['/', '?', '#']).next()?;
    // What stands before an @ is a name and a password, which have no place here.
    (!host.is_empty() && !host.contains('@')).then(|| &url[..url.len() - after.len() + host.len()])
}

/// Where a redirect leads from `base`, by RFC 3986; `None` if that is not of HTTP.
pub(crate) fn join(base: &str, location: &str) -> Option<String> {
    let place = origin(base)?;
    let joined = if location.contains("://") {
        location.to_string()
    } else if let Some(rest) = location.strip_prefix("//") {
        format!("{}//{rest}", place.split("//").next()?)
    } else if location.starts_with('/') {
        format!("{place}{location}")
    } else {
        let path = base[place.len()..].split(['?', '#']).next()?;
        let directory = path.rfind('/').map_or("/", |slash| &path[..=slash]);
        format!("{place}{directory}{location}")
    };
    origin(&joined)?;
    Some(joined)
}

/// Text as it stands in an address; slashes stay where `slashes` says so.
pub(crate) fn escaped(text: &str, slashes: Slashes) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        let plain = byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        match byte {
            b'/' if slashes == Slashes::Kept => out.push('/'),
            _ if plain => out.push(byte.into()),
            _ => out += &format!("%{byte:02X}"),
        }
    }
    out
}

/// Whether a slash parts names or is part of one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Slashes {
    /// It parts names.
    Kept,
    /// It is part of a name, as in the revision `refs/pr/1`.
    Escaped,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_where_they_say() {
        let base = "https://hub.example:8443/a/b/c?x=/y";
        for (location, expected) in [
            ("https://cdn.example/d?s=1", Some("https://cdn.example/d?s=1")),
            ("//cdn.example/d", Some("https://cdn.example/d")),
            ("/d/e?f", Some("https://hub.example:8443/d/e?f")),
            ("d", Some("https://hub.example:8443/a/b/d")),
            ("ftp://cdn.example/d", None),
            ("http://user@cdn.example/", None),
            ("http:///d", None),
        ] {
            assert_eq!(join(base, location).as_deref(), expected, "{location}");
        }
        assert_eq!(origin("http://127.0.0.1:80?x"), Some("http://127.0.0.1:80"));
        assert_eq!(origin("file:///etc/passwd"), None);
    }

    #[test]
    fn names_are_escaped() {
        assert_eq!(escaped("refs/pr/1", Slashes::Escaped), "refs%2Fpr%2F1");
        assert_eq!(escaped("1_Pooling/a b?.json", Slashes::Kept), "1_Pooling/a%20b%3F.json");
    }
}
