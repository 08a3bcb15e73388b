//! MIL text: the form that Apple's compiler writes into `model.mil`, printed and parsed.
//!
//! ```text
//! program(1.3)
//! [buildInfo = dict<string, string>({{"coremlc-version", "3500.32.1"}})]
//! {
//!     func main<ios18>(tensor<fp16, [1, ?]> x, state<tensor<fp16, [1, 8]>> cache) {
//!             fp16 one = const()[name = string("one"), val = fp16(0x1p+0)];
//!             tensor<fp16, [8, 8]> w = const()[name = string("w"), val = tensor<fp16, [8, 8]>(BLOBFILE(path =
//!                 string("@model_path/weights/weight.bin"), offset = uint64(64)))];
//!             tensor<fp16, [1, ?]> y = add(x = x, y = one)[name = string("y")];
//!         } -> (y);
//! }
//! ```
//!
//! Up to iOS 17 the version is 1.0 and a scalar or string has the type `tensor<fp16, []>`, `tensor<string, []>`; both
//! forms are parsed anywhere. There the parameters of `constexpr_*` operations are attributes. Flexible shapes are the
//! function attribute `FlexibleShapeInformation`, -1 standing for no upper bound. Floating-point numbers are hexadecimal
//! and exact; decimal ones are parsed too. A comment runs from `//` to the end of the line.
//!
//! What follows is not in the `model.mil` files that were at hand:
//! - A name that is no identifier stands in quotes: `tensor<fp16, [8]> "model.norm" = ...` ([`Spelling::Exact`]).
//! - A weight that is in no file is `WEIGHT("name")`; who parses says what it is ([`Weights`]).
//! - The blocks of an operation follow its attributes: `cond(pred = p)[...] block(fp16 i) { ... } -> (y) block ...;`.
//! - Enumerated shapes are the entry `EnumeratedShapes` of that attribute, one dictionary from input to shape for each.
//! - The default function is the program attribute `defaultFunctionName`; compiled models have it in `metadata.json`.

mod flexible;
mod lexer;
mod number;
mod parse;
mod parse_value;
mod print;
mod weights;

pub use flexible::ATTRIBUTE as FLEXIBLE_SHAPES;
pub use parse::parse;
pub use print::{PrintOptions, Spelling, print};
pub use weights::{BlobRef, Location, Weights};

use crate::Opset;

/// The program attribute that names the default function.
const DEFAULT_FUNCTION: &str = "defaultFunctionName";

/// Every opset with its name in text: the one table. Of several names the first is written.
const OPSETS: &[(Opset, &str)] = &[
    (Opset::CoreML5, "ios15"),
    (Opset::CoreML6, "ios16"),
    (Opset::CoreML7, "ios17"),
    (Opset::CoreML8, "ios18"),
    (Opset::CoreML9, "ios26"),
    // Its name until Apple counted years.
    (Opset::CoreML9, "ios19"),
    (Opset::Semantic, "semantic"),
];

#[cfg(test)]
mod tests;
