//! The messages of `FeatureTypes.proto`: what goes in and out of a model.

/// Int64, double and string features have no fields of their own.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct EmptyFeatureType {}

/// Bounds of one dimension; an upper bound below zero means unbounded.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct SizeRange {
    #[prost(uint64, tag = "1")]
    pub lower_bound: u64,
    #[prost(int64, tag = "2")]
    pub upper_bound: i64,
}

/// An image.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ImageFeatureType {
    #[prost(int64, tag = "1")]
    pub width: i64,
    #[prost(int64, tag = "2")]
    pub height: i64,
    #[prost(int32, tag = "3")]
    pub color_space: i32,
    #[prost(oneof = "image_feature_type::SizeFlexibility", tags = "21, 31")]
    pub size_flexibility: Option<image_feature_type::SizeFlexibility>,
}

/// Inside [`ImageFeatureType`].
pub mod image_feature_type {
    use super::SizeRange;

    /// The sizes that an image may have.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum SizeFlexibility {
        #[prost(message, tag = "21")]
        EnumeratedSizes(EnumeratedImageSizes),
        #[prost(message, tag = "31")]
        ImageSizeRange(ImageSizeRange),
    }

    /// One size in pixels.
    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub struct ImageSize {
        #[prost(uint64, tag = "1")]
        pub width: u64,
        #[prost(uint64, tag = "2")]
        pub height: u64,
    }

    /// A list of sizes.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct EnumeratedImageSizes {
        #[prost(message, repeated, tag = "1")]
        pub sizes: Vec<ImageSize>,
    }

    /// Independent ranges of width and height.
    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub struct ImageSizeRange {
        #[prost(message, optional, tag = "1")]
        pub width_range: Option<SizeRange>,
        #[prost(message, optional, tag = "2")]
        pub height_range: Option<SizeRange>,
    }
}

/// Codes of element types in `ArrayFeatureType::data_type`: a kind in the upper half, the width in bits in the lower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum ArrayDataType {
    Invalid = 0,
    Float16 = 65552,
    Float32 = 65568,
    Double = 65600,
    Int8 = 131080,
    Int32 = 131104,
}

/// A multi-dimensional array, of one shape or of several.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ArrayFeatureType {
    #[prost(int64, repeated, tag = "1")]
    pub shape: Vec<i64>,
    #[prost(enumeration = "ArrayDataType", tag = "2")]
    pub data_type: i32,
    #[prost(oneof = "array_feature_type::ShapeFlexibility", tags = "21, 31")]
    pub shape_flexibility: Option<array_feature_type::ShapeFlexibility>,
    #[prost(oneof = "array_feature_type::DefaultOptionalValue", tags = "41, 51, 61")]
    pub default_optional_value: Option<array_feature_type::DefaultOptionalValue>,
}

/// Inside [`ArrayFeatureType`].
pub mod array_feature_type {
    use super::SizeRange;

    /// The shapes that an array may have.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum ShapeFlexibility {
        #[prost(message, tag = "21")]
        EnumeratedShapes(EnumeratedShapes),
        #[prost(message, tag = "31")]
        ShapeRange(ShapeRange),
    }

    /// The value of an optional array that the caller left out.
    #[derive(Clone, Copy, PartialEq, prost::Oneof)]
    pub enum DefaultOptionalValue {
        #[prost(int32, tag = "41")]
        Int(i32),
        #[prost(float, tag = "51")]
        Float(f32),
        #[prost(double, tag = "61")]
        Double(f64),
    }

    /// One shape.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Shape {
        #[prost(int64, repeated, tag = "1")]
        pub shape: Vec<i64>,
    }

    /// A list of shapes.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct EnumeratedShapes {
        #[prost(message, repeated, tag = "1")]
        pub shapes: Vec<Shape>,
    }

    /// One range for each dimension.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct ShapeRange {
        #[prost(message, repeated, tag = "1")]
        pub size_ranges: Vec<SizeRange>,
    }
}

/// A dictionary from keys of one type to doubles.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DictionaryFeatureType {
    #[prost(oneof = "dictionary_feature_type::KeyType", tags = "1, 2")]
    pub key_type: Option<dictionary_feature_type::KeyType>,
}

/// Inside [`DictionaryFeatureType`].
pub mod dictionary_feature_type {
    use super::EmptyFeatureType;

    /// Type of the keys.
    #[derive(Clone, Copy, PartialEq, prost::Oneof)]
    pub enum KeyType {
        #[prost(message, tag = "1")]
        Int64(EmptyFeatureType),
        #[prost(message, tag = "2")]
        String(EmptyFeatureType),
    }
}

/// A sequence of integers or strings.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SequenceFeatureType {
    #[prost(oneof = "sequence_feature_type::Type", tags = "1, 3")]
    pub r#type: Option<sequence_feature_type::Type>,
    #[prost(message, optional, tag = "101")]
    pub size_range: Option<SizeRange>,
}

/// Inside [`SequenceFeatureType`].
pub mod sequence_feature_type {
    use super::EmptyFeatureType;

    /// Type of the elements.
    #[derive(Clone, Copy, PartialEq, prost::Oneof)]
    pub enum Type {
        #[prost(message, tag = "1")]
        Int64(EmptyFeatureType),
        #[prost(message, tag = "3")]
        String(EmptyFeatureType),
    }
}

/// A state.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StateFeatureType {
    #[prost(oneof = "state_feature_type::Type", tags = "1")]
    pub r#type: Option<state_feature_type::Type>,
}

/// Inside [`StateFeatureType`].
pub mod state_feature_type {
    /// What the state holds.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Type {
        #[prost(message, tag = "1")]
        Array(super::ArrayFeatureType),
    }
}

/// The type of one input, output or state.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FeatureType {
    #[prost(oneof = "feature_type::Type", tags = "1, 2, 3, 4, 5, 6, 7, 8")]
    pub r#type: Option<feature_type::Type>,
    #[prost(bool, tag = "1000")]
    pub is_optional: bool,
}

/// Inside [`FeatureType`].
pub mod feature_type {
    use super::*;

    /// The kinds of [`super::FeatureType`].
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Type {
        #[prost(message, tag = "1")]
        Int64(EmptyFeatureType),
        #[prost(message, tag = "2")]
        Double(EmptyFeatureType),
        #[prost(message, tag = "3")]
        String(EmptyFeatureType),
        #[prost(message, tag = "4")]
        Image(ImageFeatureType),
        #[prost(message, tag = "5")]
        MultiArray(ArrayFeatureType),
        #[prost(message, tag = "6")]
        Dictionary(DictionaryFeatureType),
        #[prost(message, tag = "7")]
        Sequence(SequenceFeatureType),
        #[prost(message, tag = "8")]
        State(StateFeatureType),
    }
}
