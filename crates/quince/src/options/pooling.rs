//! How one vector is made of the hidden states of a text.

use clap::ValueEnum;
use quince_convert::Pooling;

/// As typed.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PoolingArg {
    Mean,
    Cls,
    Last,
    None,
}

impl PoolingArg {
    /// What the conversion calls it.
    pub fn checked(self) -> Pooling {
        match self {
            PoolingArg::Mean => Pooling::Mean,
            PoolingArg::Cls => Pooling::Cls,
            PoolingArg::Last => Pooling::Last,
            PoolingArg::None => Pooling::None,
        }
    }
}
