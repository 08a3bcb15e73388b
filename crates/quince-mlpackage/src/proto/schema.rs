//! Which fields each message has: what [`super::unknown`] walks by.
//!
//! One constant for each message of [`super::mil`], [`super::feature`] and [`super::model`]; a test proves that what
//! this table allows, the structs keep.

/// A message: its name in Apple's files and its fields.
pub struct MessageSchema {
    pub name: &'static str,
    pub fields: &'static [FieldSchema],
}

/// A field of a message.
pub struct FieldSchema {
    pub number: u32,
    pub name: &'static str,
    pub label: Label,
    pub kind: Kind,
}

/// How often a field may occur.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Label {
    /// At most once.
    One,
    /// Any number of times; scalars may also come packed.
    Many,
    /// Any number of times, each with another key: the entries of a map.
    Map,
    /// At most one of the fields with this label's name.
    OneOf(&'static str),
}

/// What a field holds.
#[derive(Clone, Copy)]
pub enum Kind {
    /// int32, int64, uint64, bool or enum.
    Varint,
    /// float.
    Fixed32,
    /// double.
    Fixed64,
    /// UTF-8.
    Text,
    /// Any bytes.
    Bytes,
    /// Another message.
    Message(&'static MessageSchema),
    /// A model kind that is no ML Program.
    OtherModel,
}

use Kind::{Bytes, Fixed32, Fixed64, Message as Msg, OtherModel, Text, Varint};
use Label::{Many, Map, One, OneOf};

const fn field(number: u32, name: &'static str, label: Label, kind: Kind) -> FieldSchema {
    FieldSchema { number, name, label, kind }
}

/// Gives each message a constant; `map` messages are the entries of a map, whose key is a string.
macro_rules! messages {
    ($($id:ident $name:literal { $($number:literal $field:literal $label:expr, $kind:expr;)* })*) => {
        $(pub static $id: MessageSchema =
            MessageSchema { name: $name, fields: &[$(field($number, $field, $label, $kind)),*] };)*
    };
}

messages! {
    MODEL "Model" {
        1 "specificationVersion" One, Varint;
        2 "description" One, Msg(&MODEL_DESCRIPTION);
        10 "isUpdatable" One, Varint;
        200 "pipelineClassifier" TYPE, OtherModel;
        201 "pipelineRegressor" TYPE, OtherModel;
        202 "pipeline" TYPE, OtherModel;
        300 "glmRegressor" TYPE, OtherModel;
        301 "supportVectorRegressor" TYPE, OtherModel;
        302 "treeEnsembleRegressor" TYPE, OtherModel;
        303 "neuralNetworkRegressor" TYPE, OtherModel;
        304 "bayesianProbitRegressor" TYPE, OtherModel;
        400 "glmClassifier" TYPE, OtherModel;
        401 "supportVectorClassifier" TYPE, OtherModel;
        402 "treeEnsembleClassifier" TYPE, OtherModel;
        403 "neuralNetworkClassifier" TYPE, OtherModel;
        404 "kNearestNeighborsClassifier" TYPE, OtherModel;
        500 "neuralNetwork" TYPE, OtherModel;
        501 "itemSimilarityRecommender" TYPE, OtherModel;
        502 "mlProgram" TYPE, Msg(&PROGRAM);
        555 "customModel" TYPE, OtherModel;
        556 "linkedModel" TYPE, OtherModel;
        560 "classConfidenceThresholding" TYPE, OtherModel;
        600 "oneHotEncoder" TYPE, OtherModel;
        601 "imputer" TYPE, OtherModel;
        602 "featureVectorizer" TYPE, OtherModel;
        603 "dictVectorizer" TYPE, OtherModel;
        604 "scaler" TYPE, OtherModel;
        606 "categoricalMapping" TYPE, OtherModel;
        607 "normalizer" TYPE, OtherModel;
        609 "arrayFeatureExtractor" TYPE, OtherModel;
        610 "nonMaximumSuppression" TYPE, OtherModel;
        900 "identity" TYPE, OtherModel;
        2000 "textClassifier" TYPE, OtherModel;
        2001 "wordTagger" TYPE, OtherModel;
        2002 "visionFeaturePrint" TYPE, OtherModel;
        2003 "soundAnalysisPreprocessing" TYPE, OtherModel;
        2004 "gazetteer" TYPE, OtherModel;
        2005 "wordEmbedding" TYPE, OtherModel;
        2006 "audioFeaturePrint" TYPE, OtherModel;
        3000 "serializedModel" TYPE, OtherModel;
    }
    MODEL_DESCRIPTION "ModelDescription" {
        1 "input" Many, Msg(&FEATURE_DESCRIPTION);
        10 "output" Many, Msg(&FEATURE_DESCRIPTION);
        11 "predictedFeatureName" One, Text;
        12 "predictedProbabilitiesName" One, Text;
        13 "state" Many, Msg(&FEATURE_DESCRIPTION);
        20 "functions" Many, Msg(&FUNCTION_DESCRIPTION);
        21 "defaultFunctionName" One, Text;
        50 "trainingInput" Many, Msg(&FEATURE_DESCRIPTION);
        100 "metadata" One, Msg(&METADATA);
    }
    FUNCTION_DESCRIPTION "FunctionDescription" {
        1 "name" One, Text;
        2 "input" Many, Msg(&FEATURE_DESCRIPTION);
        3 "output" Many, Msg(&FEATURE_DESCRIPTION);
        4 "predictedFeatureName" One, Text;
        5 "predictedProbabilitiesName" One, Text;
        6 "state" Many, Msg(&FEATURE_DESCRIPTION);
    }
    FEATURE_DESCRIPTION "FeatureDescription" {
        1 "name" One, Text;
        2 "shortDescription" One, Text;
        3 "type" One, Msg(&FEATURE_TYPE);
    }
    METADATA "Metadata" {
        1 "shortDescription" One, Text;
        2 "versionString" One, Text;
        3 "author" One, Text;
        4 "license" One, Text;
        100 "userDefined" Map, Msg(&USER_DEFINED_ENTRY);
    }
    USER_DEFINED_ENTRY "UserDefinedEntry" {
        1 "key" One, Text;
        2 "value" One, Text;
    }
    FEATURE_TYPE "FeatureType" {
        1 "int64Type" TYPE, Msg(&EMPTY);
        2 "doubleType" TYPE, Msg(&EMPTY);
        3 "stringType" TYPE, Msg(&EMPTY);
        4 "imageType" TYPE, Msg(&IMAGE_FEATURE_TYPE);
        5 "multiArrayType" TYPE, Msg(&ARRAY_FEATURE_TYPE);
        6 "dictionaryType" TYPE, Msg(&DICTIONARY_FEATURE_TYPE);
        7 "sequenceType" TYPE, Msg(&SEQUENCE_FEATURE_TYPE);
        8 "stateType" TYPE, Msg(&STATE_FEATURE_TYPE);
        1000 "isOptional" One, Varint;
    }
    EMPTY "Empty" {}
    SIZE_RANGE "SizeRange" {
        1 "lowerBound" One, Varint;
        2 "upperBound" One, Varint;
    }
    IMAGE_FEATURE_TYPE "ImageFeatureType" {
        1 "width" One, Varint;
        2 "height" One, Varint;
        3 "colorSpace" One, Varint;
        21 "enumeratedSizes" FLEXIBILITY, Msg(&ENUMERATED_IMAGE_SIZES);
        31 "imageSizeRange" FLEXIBILITY, Msg(&IMAGE_SIZE_RANGE);
    }
    ENUMERATED_IMAGE_SIZES "EnumeratedImageSizes" {
        1 "sizes" Many, Msg(&IMAGE_SIZE);
    }
    IMAGE_SIZE "ImageSize" {
        1 "width" One, Varint;
        2 "height" One, Varint;
    }
    IMAGE_SIZE_RANGE "ImageSizeRange" {
        1 "widthRange" One, Msg(&SIZE_RANGE);
        2 "heightRange" One, Msg(&SIZE_RANGE);
    }
    ARRAY_FEATURE_TYPE "ArrayFeatureType" {
        1 "shape" Many, Varint;
        2 "dataType" One, Varint;
        21 "enumeratedShapes" FLEXIBILITY, Msg(&ENUMERATED_SHAPES);
        31 "shapeRange" FLEXIBILITY, Msg(&SHAPE_RANGE);
        41 "intDefaultValue" DEFAULT, Varint;
        51 "floatDefaultValue" DEFAULT, Fixed32;
        61 "doubleDefaultValue" DEFAULT, Fixed64;
    }
    ENUMERATED_SHAPES "EnumeratedShapes" {
        1 "shapes" Many, Msg(&SHAPE);
    }
    SHAPE "Shape" {
        1 "shape" Many, Varint;
    }
    SHAPE_RANGE "ShapeRange" {
        1 "sizeRanges" Many, Msg(&SIZE_RANGE);
    }
    DICTIONARY_FEATURE_TYPE "DictionaryFeatureType" {
        1 "int64KeyType" TYPE, Msg(&EMPTY);
        2 "stringKeyType" TYPE, Msg(&EMPTY);
    }
    SEQUENCE_FEATURE_TYPE "SequenceFeatureType" {
        1 "int64Type" TYPE, Msg(&EMPTY);
        3 "stringType" TYPE, Msg(&EMPTY);
        101 "sizeRange" One, Msg(&SIZE_RANGE);
    }
    STATE_FEATURE_TYPE "StateFeatureType" {
        1 "arrayType" TYPE, Msg(&ARRAY_FEATURE_TYPE);
    }
    PROGRAM "Program" {
        1 "version" One, Varint;
        2 "functions" Map, Msg(&FUNCTIONS_ENTRY);
        3 "docString" One, Text;
        4 "attributes" Map, Msg(&ATTRIBUTES_ENTRY);
    }
    FUNCTIONS_ENTRY "FunctionsEntry" {
        1 "key" One, Text;
        2 "value" One, Msg(&FUNCTION);
    }
    ATTRIBUTES_ENTRY "AttributesEntry" {
        1 "key" One, Text;
        2 "value" One, Msg(&VALUE);
    }
    FUNCTION "Function" {
        1 "inputs" Many, Msg(&NAMED_VALUE_TYPE);
        2 "opset" One, Text;
        3 "block_specializations" Map, Msg(&BLOCKS_ENTRY);
        4 "attributes" Map, Msg(&ATTRIBUTES_ENTRY);
    }
    BLOCKS_ENTRY "BlockSpecializationsEntry" {
        1 "key" One, Text;
        2 "value" One, Msg(&BLOCK);
    }
    BLOCK "Block" {
        1 "inputs" Many, Msg(&NAMED_VALUE_TYPE);
        2 "outputs" Many, Text;
        3 "operations" Many, Msg(&OPERATION);
        4 "attributes" Map, Msg(&ATTRIBUTES_ENTRY);
    }
    OPERATION "Operation" {
        1 "type" One, Text;
        2 "inputs" Map, Msg(&INPUTS_ENTRY);
        3 "outputs" Many, Msg(&NAMED_VALUE_TYPE);
        4 "blocks" Many, Msg(&BLOCK);
        5 "attributes" Map, Msg(&ATTRIBUTES_ENTRY);
    }
    INPUTS_ENTRY "InputsEntry" {
        1 "key" One, Text;
        2 "value" One, Msg(&ARGUMENT);
    }
    ARGUMENT "Argument" {
        1 "arguments" Many, Msg(&BINDING);
    }
    BINDING "Binding" {
        1 "name" VALUE_OF, Text;
        2 "value" VALUE_OF, Msg(&VALUE);
    }
    NAMED_VALUE_TYPE "NamedValueType" {
        1 "name" One, Text;
        2 "type" One, Msg(&VALUE_TYPE);
    }
    VALUE_TYPE "ValueType" {
        1 "tensorType" TYPE, Msg(&TENSOR_TYPE);
        2 "listType" TYPE, Msg(&LIST_TYPE);
        3 "tupleType" TYPE, Msg(&TUPLE_TYPE);
        4 "dictionaryType" TYPE, Msg(&DICTIONARY_TYPE);
        5 "stateType" TYPE, Msg(&STATE_TYPE);
    }
    TENSOR_TYPE "TensorType" {
        1 "dataType" One, Varint;
        2 "rank" One, Varint;
        3 "dimensions" Many, Msg(&DIMENSION);
        4 "attributes" Map, Msg(&ATTRIBUTES_ENTRY);
    }
    LIST_TYPE "ListType" {
        1 "type" One, Msg(&VALUE_TYPE);
        2 "length" One, Msg(&DIMENSION);
    }
    TUPLE_TYPE "TupleType" {
        1 "types" Many, Msg(&VALUE_TYPE);
    }
    DICTIONARY_TYPE "DictionaryType" {
        1 "keyType" One, Msg(&VALUE_TYPE);
        2 "valueType" One, Msg(&VALUE_TYPE);
    }
    STATE_TYPE "StateType" {
        1 "wrappedType" One, Msg(&VALUE_TYPE);
    }
    DIMENSION "Dimension" {
        1 "constant" VALUE_OF, Msg(&CONSTANT_DIMENSION);
        2 "unknown" VALUE_OF, Msg(&UNKNOWN_DIMENSION);
    }
    CONSTANT_DIMENSION "ConstantDimension" {
        1 "size" One, Varint;
    }
    UNKNOWN_DIMENSION "UnknownDimension" {
        1 "variadic" One, Varint;
    }
    VALUE "Value" {
        1 "docString" One, Text;
        2 "type" One, Msg(&VALUE_TYPE);
        3 "immediateValue" VALUE_OF, Msg(&IMMEDIATE_VALUE);
        5 "blobFileValue" VALUE_OF, Msg(&BLOB_FILE_VALUE);
    }
    IMMEDIATE_VALUE "ImmediateValue" {
        1 "tensor" VALUE_OF, Msg(&TENSOR_VALUE);
        2 "tuple" VALUE_OF, Msg(&VALUES);
        3 "list" VALUE_OF, Msg(&VALUES);
        4 "dictionary" VALUE_OF, Msg(&DICTIONARY_VALUE);
    }
    BLOB_FILE_VALUE "BlobFileValue" {
        1 "fileName" One, Text;
        2 "offset" One, Varint;
    }
    TENSOR_VALUE "TensorValue" {
        1 "floats" VALUE_OF, Msg(&REPEATED_FLOATS);
        2 "ints" VALUE_OF, Msg(&REPEATED_INTEGERS);
        3 "bools" VALUE_OF, Msg(&REPEATED_INTEGERS);
        4 "strings" VALUE_OF, Msg(&REPEATED_STRINGS);
        5 "longInts" VALUE_OF, Msg(&REPEATED_INTEGERS);
        6 "doubles" VALUE_OF, Msg(&REPEATED_DOUBLES);
        7 "bytes" VALUE_OF, Msg(&REPEATED_BYTES);
    }
    REPEATED_FLOATS "RepeatedFloats" { 1 "values" Many, Fixed32; }
    REPEATED_DOUBLES "RepeatedDoubles" { 1 "values" Many, Fixed64; }
    REPEATED_INTEGERS "RepeatedInts" { 1 "values" Many, Varint; }
    REPEATED_STRINGS "RepeatedStrings" { 1 "values" Many, Text; }
    REPEATED_BYTES "RepeatedBytes" { 1 "values" One, Bytes; }
    VALUES "TupleValue or ListValue" { 1 "values" Many, Msg(&VALUE); }
    DICTIONARY_VALUE "DictionaryValue" { 1 "values" Many, Msg(&KEY_VALUE_PAIR); }
    KEY_VALUE_PAIR "KeyValuePair" {
        1 "key" One, Msg(&VALUE);
        2 "value" One, Msg(&VALUE);
    }
}

const TYPE: Label = OneOf("type");
const FLEXIBILITY: Label = OneOf("flexibility");
const DEFAULT: Label = OneOf("default value");
const VALUE_OF: Label = OneOf("value");
