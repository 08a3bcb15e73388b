//! Which schemes an opset can express, and what to say where it cannot.

use quince_mil::{Opset, Result, bail};

/// Refuses opsets before CoreML8 when something is asked for that came with it. Those before CoreML6, without compressed
/// weights, are raised before anybody asks.
pub(super) fn check(found: Opset, newer: Option<&str>) -> Result<()> {
    match newer {
        _ if found >= Opset::CoreML8 => Ok(()),
        None => Ok(()),
        Some(what) => bail!(
            "found opset {found}, expected CoreML8 or later for {what}";
            hint: "target iOS 18 or macOS 15; before that: palettes of 1, 2, 4, 6 or 8 bits per tensor, int8 or uint8 per \
                   tensor or per channel, or sparse weights"
        ),
    }
}
