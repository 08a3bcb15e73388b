//! Core ML's protobuf messages, as far as an ML Program package uses them, and the guard that no field is lost.
//!
//! The structs are written by hand from `Model.proto`, `FeatureTypes.proto` and `MIL.proto` of apple/coremltools
//! (folder `mlmodel/format`): every map is a `BTreeMap`, so one message has one encoding. Messages of other model kinds
//! are left out; [`schema`] names them when it refuses them.

pub mod feature;
pub mod mil;
pub mod model;
pub mod schema;
pub mod unknown;

use std::path::Path;

use prost::Message;

use crate::error::{Result, wrong};

/// Parses `model.mlmodel`, refusing whatever these messages could not write again.
pub fn decode_model(file: &Path, bytes: &[u8]) -> Result<model::Model> {
    unknown::check(file, bytes, &schema::MODEL)?;
    model::Model::decode(bytes).map_err(|e| {
        wrong(file, "protobuf", e.to_string())
            .hint("the file is damaged or not a Core ML model; fetch or convert it again")
    })
}
