//! `--limit NAME=VALUE`: what a program may take when it runs.

use quince_engine::Limits;

/// One limit, as typed.
#[derive(Clone, Copy)]
pub struct LimitArg {
    place: fn(&mut Limits) -> &mut usize,
    value: usize,
}

/// Names of limits, and what each of them bounds.
type Place = fn(&mut Limits) -> &mut usize;
const LIMITS: [(&str, Place); 4] = [
    ("iterations", |limits| &mut limits.iterations),
    ("value-bytes", |limits| &mut limits.value_bytes),
    ("call-bytes", |limits| &mut limits.call_bytes),
    ("folded-elements", |limits| &mut limits.folded_elements),
];

/// What a number may be followed by.
const UNITS: [(&str, usize); 6] =
    [("kB", 1000), ("MB", 1_000_000), ("GB", 1_000_000_000), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];

/// Reads `NAME=VALUE`.
pub fn parse(text: &str) -> Result<LimitArg, String> {
    let names = || LIMITS.map(|(name, _)| name).join(", ");
    let Some((name, value)) = text.split_once('=') else {
        return Err(format!("expected NAME=VALUE, where NAME is one of {}", names()));
    };
    let Some((_, place)) = LIMITS.into_iter().find(|(known, _)| *known == name) else {
        return Err(format!("there is no limit `{name}`, expected one of {}", names()));
    };
    let (digits, unit) = UNITS
        .into_iter()
        .find_map(|(suffix, unit)| Some((value.strip_suffix(suffix)?.trim_end(), unit)))
        .unwrap_or((value, 1));
    let value = digits.parse::<usize>().ok().and_then(|number| number.checked_mul(unit));
    let value = value.ok_or("expected a whole number, which may end in kB, MB, GB, KiB, MiB or GiB")?;
    Ok(LimitArg { place, value })
}

/// The limits of the engine, but for those that were typed.
pub fn limits(typed: &[LimitArg]) -> Limits {
    let mut limits = Limits::default();
    for limit in typed {
        *(limit.place)(&mut limits) = limit.value;
    }
    limits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_numbers_with_names() {
        let read = |text: &str| parse(text).map(|limit| limits(&[limit]));
        assert_eq!(read("iterations=5").unwrap(), Limits { iterations: 5, ..Limits::default() });
        assert_eq!(read("value-bytes=2 GiB").unwrap(), Limits { value_bytes: 2 << 30, ..Limits::default() });
        assert_eq!(read("call-bytes=3MB").unwrap(), Limits { call_bytes: 3_000_000, ..Limits::default() });
        assert_eq!(read("folded-elements=0").unwrap(), Limits { folded_elements: 0, ..Limits::default() });
        assert!(read("loops=5").unwrap_err().contains("expected one of iterations, value-bytes"));
        for wrong in ["iterations", "iterations=", "iterations=-1", "iterations=2.5", "call-bytes=99999999999GB"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
