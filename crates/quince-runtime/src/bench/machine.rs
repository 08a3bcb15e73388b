//! The machine that a benchmark ran on, and how near a rate comes to what it can do.

use quince_engine::kernels::{Limits, limits};
use quince_tensor::Result;
use serde::Serialize;

use super::Named;

/// What the machine can do at most, measured beside the benchmark with the same threads and instructions.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Machine {
    /// Bytes that all threads together read in a second from memory that no cache holds.
    pub read_bytes_per_second: f64,
    /// Multiplications and additions per second in registers, by element type, float32 first.
    pub operations_per_second: Named<f64>,
}

/// How much of a limit is used.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Share {
    /// What was done in a second: bytes or operations.
    pub per_second: f64,
    /// The part of what the machine can do; more than 1 where caches help.
    pub fraction: f64,
}

/// How much of the arithmetic is used, by element type.
pub type Peak = Named<Share>;

impl Machine {
    /// Measures, in about a second.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn measure(threads: usize) -> Result<Machine> {
        let Limits { read_bytes_per_second, arithmetic } = limits(threads)?;
        let peaks = arithmetic.into_iter().map(|peak| (peak.kind.to_owned(), peak.operations_per_second)).collect();
        Ok(Machine { read_bytes_per_second, operations_per_second: Named(peaks) })
    }

    /// The share of the read bandwidth.
    pub(super) fn reading(&self, bytes_per_second: f64) -> Share {
        Share { per_second: bytes_per_second, fraction: bytes_per_second / self.read_bytes_per_second }
    }

    /// The share of each kind of arithmetic.
    pub(super) fn computing(&self, operations_per_second: f64) -> Peak {
        let share = |peak: &f64| Share { per_second: operations_per_second, fraction: operations_per_second / peak };
        Named(self.operations_per_second.0.iter().map(|(kind, peak)| (kind.clone(), share(peak))).collect())
    }
}

/// The most memory that this process ever had in use, in bytes: `VmHWM` of Linux.
#[cfg(target_os = "linux")]
pub fn peak_resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// The most memory that this process ever had in use; this system does not tell without foreign code.
#[cfg(not(target_os = "linux"))]
pub fn peak_resident_bytes() -> Option<u64> {
    None
}
