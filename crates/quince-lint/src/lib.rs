//! What a device will make of a package, said beforehand.
//!
//! [`lint`] goes through a package with the table of [`RULES`]: what keeps operations off the Neural Engine, what
//! overflows in float16, what the system refuses or kills for its size. Each rule is a file that says what it looks for,
//! why, where that is known from, and what to do. [`DEVICES`] is the table of Apple devices.
//!
//! Nothing is run and nothing is known of models: a package of another tool is looked at as one of ours.

mod device;
mod finding;
mod lint;
mod mend;
mod predict;
mod rule;
mod rules;
mod target;
mod view;

pub use device::{DEVICES, Device, Family};
pub use finding::{Finding, Group, Report, Severity};
pub use lint::lint;
pub use mend::{Effect, MENDS, Mend, Mended, Mending, mend};
pub use predict::{Demand, Fit, Prediction, Processor, predict};
pub use rule::{Rule, Scope};
pub use rules::RULES;
pub use target::{COMPUTE_UNITS_KEY, Target, Units};
