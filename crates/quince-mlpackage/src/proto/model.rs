//! The messages of `Model.proto` that an ML Program needs: the model, its description and its metadata.

use std::collections::BTreeMap;

use super::feature::FeatureType;
use super::mil;

/// The content of `model.mlmodel`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Model {
    #[prost(int32, tag = "1")]
    pub specification_version: i32,
    #[prost(message, optional, tag = "2")]
    pub description: Option<ModelDescription>,
    #[prost(bool, tag = "10")]
    pub is_updatable: bool,
    /// The one member of Apple's `Type` that is kept; the others are refused by name.
    #[prost(message, optional, tag = "502")]
    pub ml_program: Option<mil::Program>,
}

/// Interface of the model: of its one function at the top, of several in `functions`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ModelDescription {
    #[prost(message, repeated, tag = "1")]
    pub input: Vec<FeatureDescription>,
    #[prost(message, repeated, tag = "10")]
    pub output: Vec<FeatureDescription>,
    #[prost(string, tag = "11")]
    pub predicted_feature_name: String,
    #[prost(string, tag = "12")]
    pub predicted_probabilities_name: String,
    #[prost(message, repeated, tag = "13")]
    pub state: Vec<FeatureDescription>,
    #[prost(message, repeated, tag = "20")]
    pub functions: Vec<FunctionDescription>,
    #[prost(string, tag = "21")]
    pub default_function_name: String,
    #[prost(message, repeated, tag = "50")]
    pub training_input: Vec<FeatureDescription>,
    #[prost(message, optional, tag = "100")]
    pub metadata: Option<Metadata>,
}

/// Interface of one function.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FunctionDescription {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, repeated, tag = "2")]
    pub input: Vec<FeatureDescription>,
    #[prost(message, repeated, tag = "3")]
    pub output: Vec<FeatureDescription>,
    #[prost(string, tag = "4")]
    pub predicted_feature_name: String,
    #[prost(string, tag = "5")]
    pub predicted_probabilities_name: String,
    #[prost(message, repeated, tag = "6")]
    pub state: Vec<FeatureDescription>,
}

/// One input, output or state.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FeatureDescription {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub short_description: String,
    #[prost(message, optional, tag = "3")]
    pub r#type: Option<FeatureType>,
}

/// Texts for people, and whatever tools want to remember.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Metadata {
    /// What the model does.
    #[prost(string, tag = "1")]
    pub short_description: String,
    /// Version of the model.
    #[prost(string, tag = "2")]
    pub version_string: String,
    /// Who made it.
    #[prost(string, tag = "3")]
    pub author: String,
    /// Under which licence.
    #[prost(string, tag = "4")]
    pub license: String,
    /// What tools put there, by keys such as `com.github.apple.coremltools.version`.
    #[prost(btree_map = "string, string", tag = "100")]
    pub user_defined: BTreeMap<String, String>,
}
