//! Which schemes an opset can express, and what to say where it cannot.

use quince_mil::{Opset, Result, bail};

/// Refuses opsets without compressed weights, and those before CoreML8 when something is asked for that came with it.
pub(super) fn check(found: Opset, newer: Option<&str>) -> Result<()> {
    match newer {
        _ if found >= Opset::CoreML8 => Ok(()),
        _ if found < Opset::CoreML6 => bail!(
            "found opset {found}, which has no compressed weights, expected CoreML6 or later";
            hint: "target iOS 16 or macOS 13 for one table for each weight, int8 and sparse weights, iOS 18 or macOS 15 \
                   for all schemes"
        ),
        None => Ok(()),
        Some(what) => bail!(
            "found opset {found}, expected CoreML8 or later for {what}";
            hint: "target iOS 18 or macOS 15; before that: palettes of 1, 2, 4, 6 or 8 bits per tensor, int8 or uint8 per \
                   tensor or per channel, or sparse weights"
        ),
    }
}
