//! The table of compression schemes: what a weight becomes, and the operations that make it a weight again.
//!
//! A scheme is one file in `scheme/` and one line of the table below.

mod linear;
mod lowered;
mod opset;
mod palette;
mod sparse;
mod sparse_linear;
mod sparse_palette;
mod vector_palette;

pub use linear::{Granularity, Linear};
pub(crate) use lowered::{Input, Lowered, Step, results};
pub use palette::Palette;
pub use sparse::Sparse;
pub use sparse_linear::SparseLinear;
pub use sparse_palette::SparsePalette;
pub use vector_palette::VectorPalette;

use crate::{Guide, Nbits};
use quince_mil::{Opset, Result, Weight};
use std::fmt;
use std::sync::Arc;

/// What the table has of each scheme.
trait Method: fmt::Display {
    /// Bits that an element takes, tables and scales not counted.
    fn bits(&self) -> f64;

    /// The same scheme with indices of another width, of schemes that have a palette.
    fn with_nbits(&self, nbits: Nbits) -> Option<Scheme>;

    /// Refuses opsets that cannot express the scheme, whatever the weight.
    fn check(&self, opset: Opset) -> Result<()>;

    /// Whether what is known of a weight's inputs changes what it becomes.
    fn is_guided(&self) -> bool {
        false
    }

    /// The operations that give the weight back. Their arguments are computed when they are asked for; that the weight's
    /// shape goes with the scheme is found out here.
    fn lower(&self, weight: &Weight, target: &Target) -> Result<Lowered>;
}

macro_rules! table {
    ($($name:ident: $doc:literal,)*) => {
        /// What a weight becomes. Axes are those of the operation that uses it, so they are not said here.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Scheme {
            $(#[doc = $doc] $name($name),)*
        }

        impl Scheme {
            fn method(&self) -> &dyn Method {
                match self {
                    $(Scheme::$name(method) => method,)*
                }
            }
        }

        $(impl From<$name> for Scheme {
            fn from(method: $name) -> Scheme {
                Scheme::$name(method)
            }
        })*
    };
}

table! {
    Palette: "Indices into lookup tables.",
    VectorPalette: "Indices into lookup tables of short vectors.",
    Linear: "Integers with scales.",
    Sparse: "The elements that are not zero.",
    SparsePalette: "Indices into lookup tables, of the elements that are not zero.",
    SparseLinear: "Integers with scales, of the elements that are not zero.",
}

/// Along which axes of a weight its channels lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Axes {
    /// The axis of output channels.
    pub output: usize,
    /// The axis of input channels.
    pub input: usize,
}

/// What a weight is compressed for.
#[derive(Clone)]
pub(crate) struct Target {
    /// How its channels lie.
    pub axes: Axes,
    /// The operations that there are.
    pub opset: Opset,
    /// Who knows what the weight is multiplied with.
    pub guide: Option<Arc<dyn Guide>>,
    /// Whether rows are also looked up in it.
    pub tied: bool,
}

impl Scheme {
    /// Bits that an element takes, tables and scales not counted.
    pub fn bits(self) -> f64 {
        self.method().bits()
    }

    /// The same scheme with indices of another width; `None` for schemes without a palette.
    pub fn with_nbits(self, nbits: Nbits) -> Option<Scheme> {
        self.method().with_nbits(nbits)
    }

    /// Whether what is known of a weight's inputs changes what it becomes.
    pub(crate) fn is_guided(self) -> bool {
        self.method().is_guided()
    }

    /// Refuses opsets that cannot express the scheme, whatever the weight.
    pub(crate) fn check(self, opset: Opset) -> Result<()> {
        self.method().check(opset)
    }

    /// The operations that give the weight back; nothing is computed before it is written.
    pub(crate) fn lower(self, weight: &Weight, target: &Target) -> Result<Lowered> {
        self.method().lower(weight, target)
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.method().fmt(f)
    }
}

#[cfg(test)]
mod tests;
