//! Numbers as people read them.

/// Bytes with three digits: `3.0 MB`, powers of 1000 as disks are sold.
pub fn bytes(count: u64) -> String {
    const UNITS: &[&str] = &["kB", "MB", "GB", "TB", "PB", "EB"];
    if count < 1000 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1000.0;
    for unit in UNITS {
        // What would be rounded to 1000 belongs to the next unit.
        if value < 999.5 || unit == &"EB" {
            let digits = if value < 9.95 { 1 } else { 0 };
            return format!("{value:.digits$} {unit}");
        }
        value /= 1000.0;
    }
    format!("{count} B")
}

/// A number with a space between thousands: `1 490 000`.
pub fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// A shape: `2048 x 128`; `?` for a size that is not known.
pub fn shape(sizes: impl IntoIterator<Item = Option<usize>>) -> String {
    let sizes: Vec<String> = sizes.into_iter().map(|n| n.map_or("?".to_string(), |n| n.to_string())).collect();
    if sizes.is_empty() { "scalar".to_string() } else { sizes.join(" x ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_round_to_their_unit() {
        for (count, expected) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (9_949, "9.9 kB"),
            (9_950, "10 kB"),
            (999_499, "999 kB"),
            (999_500, "1.0 MB"),
            (2_981_376, "3.0 MB"),
            (u64::MAX, "18 EB"),
        ] {
            assert_eq!(bytes(count), expected);
        }
    }

    #[test]
    fn thousands_are_apart() {
        assert_eq!((grouped(7), grouped(1000), grouped(1_490_432)), ("7".into(), "1 000".into(), "1 490 432".into()));
    }
}
