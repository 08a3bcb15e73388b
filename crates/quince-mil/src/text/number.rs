//! Numbers as MIL text writes them: hexadecimal floating point, which is exact.

/// A number in C's `%a` form, with `inf` and `nan` and their signs.
pub fn print(value: f64) -> String {
    let sign = if value.is_sign_negative() { "-" } else { "" };
    if value.is_nan() {
        return format!("{sign}nan");
    }
    if value.is_infinite() {
        return format!("{sign}inf");
    }
    if value == 0.0 {
        return format!("{sign}0x0p+0");
    }
    let bits = value.to_bits();
    let (mut exponent, mut fraction) = ((bits >> 52 & 0x7ff) as i32 - 1023, bits & ((1 << 52) - 1));
    if exponent == -1023 {
        // Subnormal numbers get a leading one like all others.
        let shift = fraction.leading_zeros() - 11;
        fraction = fraction << shift & ((1 << 52) - 1);
        exponent = -1022 - shift as i32;
    }
    let digits = format!("{fraction:013x}");
    let digits = digits.trim_end_matches('0');
    let point = if digits.is_empty() { "" } else { "." };
    format!("{sign}0x1{point}{digits}p{exponent:+}")
}

/// The number that is written, hexadecimal or decimal; `None` if none is.
pub fn parse(text: &str) -> Option<f64> {
    let (negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let value = match text {
        "inf" => f64::INFINITY,
        // The sign of a NaN made here must not depend on the machine.
        "nan" => f64::from_bits(0x7ff8_0000_0000_0000),
        _ => match text.strip_prefix("0x") {
            Some(digits) => hexadecimal(digits)?,
            None if text.starts_with(|c: char| c.is_ascii_digit()) => text.parse().ok()?,
            None => return None,
        },
    };
    Some(if negative { -value } else { value })
}

/// `1.8p+3`, without sign and `0x`. Digits that a double cannot hold are cut.
fn hexadecimal(text: &str) -> Option<f64> {
    let (digits, exponent) = match text.split_once('p') {
        Some((digits, exponent)) => (digits, exponent.parse::<i32>().ok()?.clamp(-100_000, 100_000)),
        None => (text, 0),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let (mut mantissa, mut exponent) = (0u64, i64::from(exponent));
    for (i, c) in whole.chars().chain(fraction.chars()).enumerate() {
        let digit = u64::from(c.to_digit(16)?);
        if i >= whole.len() {
            exponent -= 4;
        }
        // 49 bits leave room for one more digit below the 53 of a double.
        match mantissa >> 49 {
            0 => mantissa = mantissa << 4 | digit,
            _ => exponent += 4,
        }
    }
    let mut value = mantissa as f64;
    while exponent != 0 && value != 0.0 && value.is_finite() {
        let step = exponent.clamp(-1000, 1000);
        value *= 2f64.powi(step as i32);
        exponent -= step;
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_as_they_were_written() {
        // C's printf("%a").
        let table = [(1.0, "0x1p+0"), (-2.5, "-0x1.4p+1"), (10_000.0, "0x1.388p+13"), (2f64.powi(-24), "0x1p-24")];
        for (value, text) in table {
            assert_eq!(print(value), text);
        }
        for value in [
            0.0,
            -0.0,
            f64::MIN_POSITIVE / 8.0,
            f64::MAX,
            0.1,
            1e-310,
            f64::INFINITY,
            f64::NEG_INFINITY,
            f64::from_bits(1),
        ] {
            assert_eq!(parse(&print(value)).unwrap().to_bits(), value.to_bits(), "{}", print(value));
        }
        assert!(parse("nan").unwrap().is_nan() && parse("-nan").unwrap().is_sign_negative());
        assert_eq!((parse("1.5e3"), parse("-7"), parse("0x1.8p1")), (Some(1500.0), Some(-7.0), Some(3.0)));
        for wrong in ["", "-", "0x", "0xp+1", "0x1pz", "1.2.3", "infinity", "NaN", "+1"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
