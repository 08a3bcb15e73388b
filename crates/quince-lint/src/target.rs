//! What a package is to run on: processors, and a device if one is named.

use crate::{Device, Scope};
use quince_mlpackage::Metadata;

/// The key under which a package says for which processors it was written, by Core ML's names for them.
pub const COMPUTE_UNITS_KEY: &str = "quince.compute_units";

/// Which processors Core ML may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Units {
    /// All of them.
    #[default]
    All,
    /// No Neural Engine.
    CpuAndGpu,
    /// No GPU.
    CpuAndNeuralEngine,
    /// The CPU alone.
    CpuOnly,
}

/// What a package is looked at for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Target {
    /// The processors.
    pub units: Units,
    /// The device; without one, any iPhone.
    pub device: Option<&'static Device>,
}

impl Units {
    /// Every choice.
    pub const ALL: &[Units] = &[Units::All, Units::CpuAndGpu, Units::CpuAndNeuralEngine, Units::CpuOnly];

    /// Core ML's name for the choice.
    pub fn name(self) -> &'static str {
        match self {
            Units::All => "all",
            Units::CpuAndGpu => "cpuAndGPU",
            Units::CpuAndNeuralEngine => "cpuAndNeuralEngine",
            Units::CpuOnly => "cpuOnly",
        }
    }

    /// What a package says that it was written for; none if it says nothing, as those of other tools.
    pub fn of(metadata: &Metadata) -> Option<Units> {
        let said = metadata.user_defined.get(COMPUTE_UNITS_KEY)?;
        Units::ALL.iter().copied().find(|units| units.name() == said)
    }

    /// Whether a rule matters for these processors.
    pub fn concerns(self, scope: Scope) -> bool {
        match scope {
            Scope::Everywhere => true,
            Scope::Accelerators => self != Units::CpuOnly,
            Scope::NeuralEngine => matches!(self, Units::All | Units::CpuAndNeuralEngine),
        }
    }
}
