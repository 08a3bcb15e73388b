//! Compression that knows what a weight is multiplied with.
//!
//! A weight W is chosen so that what it computes changes least, not the weight itself: with the second moments
//! H = E[x xᵀ] of its inputs ([`Moments`]), the squared error that a substitute Q makes in the results is
//! tr((W - Q) H (W - Q)ᵀ). [`palettize_calibrated`] makes that small for tables and indices together: columns are rounded
//! one after the other, each making up for the errors of those before it (GPTQ, Frantar et al. 2023, in the form of LDLQ,
//! Chee et al. 2023, section 3), then indices (Behdin et al. 2023, QuantEase, section 3) and tables are improved in turn.
//!
//! Where weights before W are compressed already, its inputs are not what they were: [`aimed`] moves W first so that what it
//! computes of them is what it was, as well as that can be.
//!
//! [`Guide`] is how the pass asks for what is known of a weight.

mod aim;
mod factor;
mod grid;
mod lanes;
mod matrix;
mod moments;
mod palette;
mod rows;

pub use aim::{Cross, Lost, Multiplier, aimed};
pub use factor::Factor;
pub(crate) use factor::{DAMPING, TIED_DAMPING};
pub(crate) use grid::quantize_calibrated;
pub use moments::{Guide, Moments};
pub(crate) use palette::palettize_calibrated;
