//! What a package is written for: processors and systems.

use super::compression::Devices;
use clap::ValueEnum;
use quince_convert::lower::ComputeUnits;

/// Processors, by the names that Core ML has for them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Units {
    /// All of them: as for processor and GPU, which is what every processor runs.
    #[value(name = "all")]
    All,
    /// Processor and GPU.
    #[value(name = "cpuAndGPU")]
    CpuAndGpu,
    /// Processor and Neural Engine.
    #[value(name = "cpuAndNeuralEngine")]
    CpuAndNeuralEngine,
    /// The processor alone.
    #[value(name = "cpuOnly")]
    CpuOnly,
}

/// The oldest system that is to run a package.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum DeploymentTarget {
    /// iOS 18.
    #[value(name = "iOS18")]
    Ios18,
    /// macOS 15, which has the same operations.
    #[value(name = "macOS15")]
    Macos15,
}

impl Units {
    /// What they allow of compression.
    pub fn devices(self) -> Devices {
        Devices { accelerators: self != Units::CpuOnly, only_neural_engine: self == Units::CpuAndNeuralEngine }
    }
}

impl From<Units> for ComputeUnits {
    fn from(units: Units) -> ComputeUnits {
        match units {
            Units::All => ComputeUnits::All,
            Units::CpuAndGpu => ComputeUnits::CpuAndGpu,
            Units::CpuAndNeuralEngine => ComputeUnits::CpuAndNeuralEngine,
            Units::CpuOnly => ComputeUnits::CpuOnly,
        }
    }
}

impl From<Units> for quince_lint::Units {
    fn from(units: Units) -> quince_lint::Units {
        match units {
            Units::All => quince_lint::Units::All,
            Units::CpuAndGpu => quince_lint::Units::CpuAndGpu,
            Units::CpuAndNeuralEngine => quince_lint::Units::CpuAndNeuralEngine,
            Units::CpuOnly => quince_lint::Units::CpuOnly,
        }
    }
}
