//! `metadata.json` of a compiled model: a list of one model, in which shapes and truth values are strings.
//!
//! Arrays, images and states are what ML Programs take and give. Where the form of the strings is from:
//! `mlmodel/src/Format.cpp` and `FeatureType.cpp` of apple/coremltools.

use std::collections::BTreeMap;

use quince_tensor::{Error, Result, bail};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::data::Defaults;

use crate::proto::feature::array_feature_type::{self as array, ShapeFlexibility};
use crate::proto::feature::dictionary_feature_type::KeyType;
use crate::proto::feature::image_feature_type::{self as image, SizeFlexibility};
use crate::proto::feature::{
    ArrayDataType, ArrayFeatureType, DictionaryFeatureType, EmptyFeatureType, FeatureType, ImageFeatureType, SizeRange,
    StateFeatureType, feature_type as kind, state_feature_type,
};
use crate::proto::model::{FeatureDescription, FunctionDescription, Metadata, ModelDescription};

/// What `metadata.json` says of a model.
#[derive(Debug, Default)]
pub struct Schema {
    /// Zero if there is no `metadata.json`.
    pub specification_version: i32,
    pub is_updatable: bool,
    pub description: ModelDescription,
    pub metadata: Metadata,
}

/// Element types by their names here.
const ARRAY_TYPES: &[(&str, ArrayDataType)] = &[
    ("Float32", ArrayDataType::Float32),
    ("Float16", ArrayDataType::Float16),
    ("Double", ArrayDataType::Double),
    ("Int32", ArrayDataType::Int32),
    ("Int8", ArrayDataType::Int8),
];

/// Colour spaces of images with their codes in a description.
const COLOR_SPACES: &[(&str, i32)] = &[("Grayscale", 10), ("RGB", 20), ("BGR", 30), ("GrayscaleFloat16", 40)];

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ModelJson {
    specification_version: i32,
    is_updatable: String,
    short_description: String,
    version: String,
    author: String,
    license: String,
    user_defined_metadata: BTreeMap<String, String>,
    #[serde(flatten)]
    interface: FunctionJson,
    functions: Vec<FunctionJson>,
    default_function_name: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct FunctionJson {
    name: String,
    input_schema: Vec<FeatureJson>,
    output_schema: Vec<FeatureJson>,
    state_schema: Vec<FeatureJson>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct FeatureJson {
    name: String,
    r#type: String,
    is_optional: String,
    short_description: String,
    data_type: String,
    shape: String,
    shape_range: String,
    enumerated_shapes: String,
    width: String,
    height: String,
    colorspace: String,
    size_range: String,
    enumerated_sizes: String,
    key_type: String,
}

impl Schema {
    /// Parses the content of the file.
    ///
    /// # Errors
    /// When it is no JSON of this form; they begin with the line, or with the name of what is wrong.
    pub fn parse(json: &[u8]) -> Result<Schema> {
        let models: Vec<ModelJson> = serde_json::from_slice(json).map_err(|e| {
            let error = Error::new(format!("found no metadata of a compiled model: {e}"));
            error.hint("the file is cut, or of another kind")
        })?;
        let count = models.len();
        let Some(model) = models.into_iter().next().filter(|_| count == 1) else {
            bail!("found the metadata of {count} models, expected one");
        };
        let top = model.interface.describe()?;
        let functions = model.functions.into_iter().map(|f| {
            let place = format!("function `{}`", f.name);
            f.describe().map_err(|e| e.at(place))
        });
        let description = ModelDescription {
            input: top.input,
            output: top.output,
            state: top.state,
            functions: functions.collect::<Result<_>>()?,
            default_function_name: model.default_function_name,
            ..Default::default()
        };
        let metadata = Metadata {
            short_description: model.short_description,
            version_string: model.version,
            author: model.author,
            license: model.license,
            user_defined: model.user_defined_metadata,
        };
        let is_updatable = model.is_updatable == "1";
        Ok(Schema { specification_version: model.specification_version, is_updatable, description, metadata })
    }
}

impl Schema {
    /// Whether a caller may leave out an input.
    pub fn has_optional_inputs(&self) -> bool {
        let functions = self.description.functions.iter().flat_map(|f| &f.input);
        self.description.input.iter().chain(functions).any(is_optional)
    }

    /// Gives optional inputs their default values.
    pub fn set_defaults(&mut self, defaults: &Defaults) {
        fn set(inputs: &mut [FeatureDescription], function: Option<&str>, defaults: &Defaults) {
            for input in inputs.iter_mut().filter(|input| is_optional(input)) {
                let value = defaults.of(function, &input.name);
                if let Some(kind::Type::MultiArray(array)) = input.r#type.as_mut().and_then(|t| t.r#type.as_mut()) {
                    array.default_optional_value = value;
                }
            }
        }
        set(&mut self.description.input, None, defaults);
        for function in &mut self.description.functions {
            set(&mut function.input, Some(&function.name), defaults);
        }
    }
}

fn is_optional(feature: &FeatureDescription) -> bool {
    feature.r#type.as_ref().is_some_and(|ty| ty.is_optional)
}

impl FunctionJson {
    fn describe(self) -> Result<FunctionDescription> {
        let all = |features: &[FeatureJson]| -> Result<Vec<FeatureDescription>> {
            features.iter().map(|f| f.describe().map_err(|e| e.at(format!("`{}`", f.name)))).collect()
        };
        Ok(FunctionDescription {
            input: all(&self.input_schema)?,
            output: all(&self.output_schema)?,
            state: all(&self.state_schema)?,
            name: self.name,
            ..Default::default()
        })
    }
}

impl FeatureJson {
    fn describe(&self) -> Result<FeatureDescription> {
        let kind = match self.r#type.as_str() {
            "MultiArray" => kind::Type::MultiArray(self.array()?),
            "State" => {
                kind::Type::State(StateFeatureType { r#type: Some(state_feature_type::Type::Array(self.array()?)) })
            }
            "Image" => kind::Type::Image(self.image()?),
            "Int64" => kind::Type::Int64(EmptyFeatureType {}),
            "Double" => kind::Type::Double(EmptyFeatureType {}),
            "String" => kind::Type::String(EmptyFeatureType {}),
            "Dictionary" => kind::Type::Dictionary(DictionaryFeatureType {
                key_type: match self.key_type.as_str() {
                    "Int64" => Some(KeyType::Int64(EmptyFeatureType {})),
                    "String" => Some(KeyType::String(EmptyFeatureType {})),
                    other => bail!("keyType: found {other:?}, expected Int64 or String"),
                },
            }),
            other => {
                bail!("type: found {other:?}, expected MultiArray, State, Image, Int64, Double, String or Dictionary")
            }
        };
        Ok(FeatureDescription {
            name: self.name.clone(),
            short_description: self.short_description.clone(),
            r#type: Some(FeatureType { r#type: Some(kind), is_optional: self.is_optional == "1" }),
        })
    }

    fn array(&self) -> Result<ArrayFeatureType> {
        let Some((_, code)) = ARRAY_TYPES.iter().find(|(name, _)| *name == self.data_type) else {
            let names: Vec<&str> = ARRAY_TYPES.iter().map(|(name, _)| *name).collect();
            bail!("dataType: found {:?}, expected one of {}", self.data_type, names.join(", "));
        };
        let shapes: Option<Vec<Vec<i64>>> = list("enumeratedShapes", &self.enumerated_shapes)?;
        let ranges: Option<Vec<[i64; 2]>> = list("shapeRange", &self.shape_range)?;
        let flexible = match (shapes, ranges) {
            (None, None) => None,
            (Some(shapes), None) => {
                let shapes = shapes.into_iter().map(|shape| array::Shape { shape }).collect();
                Some(ShapeFlexibility::EnumeratedShapes(array::EnumeratedShapes { shapes }))
            }
            (None, Some(ranges)) => {
                let size_ranges = ranges.into_iter().map(range).collect::<Result<_>>()?;
                Some(ShapeFlexibility::ShapeRange(array::ShapeRange { size_ranges }))
            }
            (Some(_), Some(_)) => bail!("found enumeratedShapes and shapeRange, expected one of them"),
        };
        Ok(ArrayFeatureType {
            shape: list("shape", &self.shape)?.unwrap_or_default(),
            data_type: *code as i32,
            shape_flexibility: flexible,
            default_optional_value: None,
        })
    }

    fn image(&self) -> Result<ImageFeatureType> {
        let Some((_, color_space)) = COLOR_SPACES.iter().find(|(name, _)| *name == self.colorspace) else {
            let names: Vec<&str> = COLOR_SPACES.iter().map(|(name, _)| *name).collect();
            bail!("colorspace: found {:?}, expected one of {}", self.colorspace, names.join(", "));
        };
        let sizes: Option<Vec<[u64; 2]>> = list("enumeratedSizes", &self.enumerated_sizes)?;
        let ranges: Option<[[i64; 2]; 2]> = list("sizeRange", &self.size_range)?;
        let flexible = match (sizes, ranges) {
            (Some(sizes), _) => {
                let sizes = sizes.into_iter().map(|[width, height]| image::ImageSize { width, height }).collect();
                Some(SizeFlexibility::EnumeratedSizes(image::EnumeratedImageSizes { sizes }))
            }
            (None, Some([width, height])) => Some(SizeFlexibility::ImageSizeRange(image::ImageSizeRange {
                width_range: Some(range(width)?),
                height_range: Some(range(height)?),
            })),
            (None, None) => None,
        };
        let pixels = |name: &str, text: &str| match text.parse() {
            Ok(pixels) => Ok(pixels),
            Err(_) => bail!("{name}: found {text:?}, expected a number of pixels"),
        };
        Ok(ImageFeatureType {
            width: pixels("width", &self.width)?,
            height: pixels("height", &self.height)?,
            color_space: *color_space,
            size_flexibility: flexible,
        })
    }
}

/// The numbers that a string lists, as JSON does; none if the field is not there.
fn list<T: DeserializeOwned>(name: &str, text: &str) -> Result<Option<T>> {
    match text {
        "" => Ok(None),
        text => match serde_json::from_str(text) {
            Ok(numbers) => Ok(Some(numbers)),
            Err(e) => bail!("{name}: found {text:?}, expected a list of numbers: {e}"),
        },
    }
}

/// A lower and an upper bound; an upper one below zero stands for none.
fn range([lower, upper]: [i64; 2]) -> Result<SizeRange> {
    match u64::try_from(lower) {
        Ok(lower_bound) => Ok(SizeRange { lower_bound, upper_bound: upper }),
        Err(_) => bail!("found the lower bound {lower} of a range, expected none below zero"),
    }
}
