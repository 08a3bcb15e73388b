//! What a package must reach, by the bits of its weights.

use std::collections::BTreeMap;

use quince_mil::{Arg, DType, Program, Value};
use quince_tensor::{Result, bail};

use crate::metrics::{Metric, Threshold};

/// The numbers that metrics are held to, by the metric's name.
pub type Thresholds = BTreeMap<&'static str, f64>;

/// A metric that can be judged.
struct Judged {
    name: &'static str,
    unit: &'static str,
    /// Turns a number into what it means for this metric.
    threshold: fn(f64) -> Threshold,
    /// Numbers for weights of 16 bits and more, of 8, of 6, of 4, and of fewer; none if it is only told then.
    defaults: [Option<f64>; 5],
}

/// Every metric that can be judged, in the order of the report.
///
/// The defaults are meant to pass what is as good as its number of bits allows, and to fail what is broken. Half precision
/// may choose another token where two are all but equal, which happens in one place of a hundred; that it does so nowhere
/// else is what `lost_margin` holds it to. A very small model may lose more to 4 bits than the default allows (one of
/// 260 000 parameters loses a sixth to a third of its perplexity): that is a finding, not a false alarm.
const JUDGED: &[Judged] = &[
    Judged {
        name: "logits_psnr",
        unit: "dB",
        threshold: Threshold::Min,
        defaults: [Some(40.0), Some(30.0), Some(25.0), Some(15.0), None],
    },
    Judged {
        name: "kl_mean",
        unit: "nats",
        threshold: Threshold::Max,
        defaults: [Some(0.005), Some(0.02), Some(0.1), Some(0.5), None],
    },
    Judged { name: "kl_max", unit: "nats", threshold: Threshold::Max, defaults: [None; 5] },
    Judged {
        name: "top1_agreement",
        unit: "",
        threshold: Threshold::Min,
        defaults: [Some(0.97), Some(0.95), Some(0.9), Some(0.8), Some(0.5)],
    },
    Judged {
        name: "lost_margin",
        unit: "logits",
        threshold: Threshold::Max,
        defaults: [Some(0.25), Some(1.0), None, None, None],
    },
    Judged { name: "same_transcripts", unit: "", threshold: Threshold::Min, defaults: [None; 5] },
    Judged { name: "cached_full_psnr", unit: "dB", threshold: Threshold::Min, defaults: [Some(40.0); 5] },
    Judged {
        name: "perplexity_change",
        unit: "%",
        threshold: Threshold::Max,
        defaults: [Some(1.0), Some(2.0), Some(5.0), Some(10.0), Some(100.0)],
    },
    Judged { name: "cosine_min", unit: "", threshold: Threshold::Min, defaults: [Some(0.99); 5] },
    Judged { name: "cosine_mean", unit: "", threshold: Threshold::Min, defaults: [None; 5] },
    Judged { name: "batch_cosine_min", unit: "", threshold: Threshold::Min, defaults: [Some(0.99); 5] },
    Judged { name: "decode_median", unit: "ms", threshold: Threshold::Max, defaults: [None; 5] },
    Judged { name: "decode_p90", unit: "ms", threshold: Threshold::Max, defaults: [None; 5] },
    Judged { name: "decode_p99", unit: "ms", threshold: Threshold::Max, defaults: [None; 5] },
];

/// The defaults for weights stored in so many bits.
pub(super) fn defaults(bits: usize) -> Thresholds {
    let column = [16, 8, 6, 4].iter().position(|&least| bits >= least).unwrap_or(4);
    JUDGED.iter().filter_map(|judged| Some((judged.name, judged.defaults[column]?))).collect()
}

/// Thresholds by names that came from a file.
pub(super) fn named(values: BTreeMap<String, f64>) -> Result<Thresholds> {
    let mut thresholds = Thresholds::new();
    for (name, value) in values {
        let Some(judged) = JUDGED.iter().find(|judged| judged.name == name) else {
            let names: Vec<&str> = JUDGED.iter().map(|judged| judged.name).collect();
            bail!("thresholds: found a threshold for `{name}`, expected one of {}", names.join(", "));
        };
        if value.is_nan() {
            bail!("thresholds: `{name}`: found {value}, expected a number; inf or -inf switches it off");
        }
        thresholds.insert(judged.name, value);
    }
    Ok(thresholds)
}

/// A metric of the table, held to its threshold if there is one.
pub(super) fn metric(name: &'static str, value: f64, thresholds: &Thresholds) -> Metric {
    let judged = JUDGED.iter().find(|judged| judged.name == name);
    let metric = Metric::new(name, value, judged.map_or("", |judged| judged.unit));
    match (judged, thresholds.get(name)) {
        (Some(judged), Some(&limit)) => metric.judged((judged.threshold)(limit)),
        _ => metric,
    }
}

/// In how many bits the weights of a program are stored: the fewest that a tenth of their elements or more have.
/// Constants of fewer than 1024 elements are no weights.
pub(super) fn stored_bits(program: &Program) -> usize {
    let mut elements = BTreeMap::<usize, usize>::new();
    for operation in program.functions.iter().flat_map(|function| &function.block.operations) {
        let inline = operation.inputs.iter().flat_map(|(_, args)| args).filter_map(|arg| match arg {
            Arg::Value(value) => Some(value),
            Arg::Var(_) => None,
        });
        for (dtype, len) in operation.constant().into_iter().chain(inline).filter_map(size) {
            if len >= 1024 && dtype.bits() <= 32 && (dtype.is_float() || dtype.bits() <= 8) && dtype != DType::Bool {
                *elements.entry(dtype.bits()).or_default() += len;
            }
        }
    }
    let total: usize = elements.values().sum();
    elements.into_iter().find(|(_, count)| count * 10 >= total).map_or(32, |(bits, _)| bits)
}

fn size(value: &Value) -> Option<(DType, usize)> {
    match value {
        Value::Tensor(tensor) => Some((tensor.dtype(), tensor.len())),
        Value::Weight(weight) => Some((weight.dtype(), weight.len())),
        _ => None,
    }
}
