//! Blocks that several architectures share. What only one has stays in its model file.

mod decoder;
mod encoder;
mod heads;
mod layers;
mod mlp;
mod residual;
mod windows;

pub use decoder::Decoder;
pub use encoder::Encoder;
pub use heads::{Heads, Qkv};
pub use layers::{Layer, Layers};
pub use mlp::{Activation, fused_gated_mlp, gated_mlp, plain_mlp};
pub use residual::{PreNorm, parallel, post_norm, pre_norm, sandwich};
pub use windows::Windows;
