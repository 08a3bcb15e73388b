//! Blocks that several architectures share. What only one has stays in its model file.

mod gated_mlp;
mod pre_norm;
mod windows;

pub use gated_mlp::{Activation, gated_mlp};
pub use pre_norm::pre_norm;
pub use windows::Windows;
