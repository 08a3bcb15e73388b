//! Options that several commands share: as typed, and what they mean once checked.

pub mod activations;
pub mod adapter;
pub mod calibration;
pub mod calls;
pub mod compression;
pub mod engine;
pub mod hub;
pub mod limits;
pub mod pooling;
pub mod recipe;
pub mod sampling;
pub mod scheme;
pub mod target;
mod yaml;
