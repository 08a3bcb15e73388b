//! The program: what it is ([`Program`]), what its operations mean ([`Op`], [`ops::OPS`]), how it is built
//! ([`Builder`]), checked ([`verify`]), run plainly ([`eval`]), and read and written as text ([`text`]).
//!
//! The words are those of Core ML's `MIL.proto` and of coremltools. This crate never opens a file and knows neither
//! protobuf nor models.

pub mod builder;
pub mod compare;
pub mod eval;
mod limits;
pub mod names;
pub mod op;
pub mod ops;
pub mod passes;
pub mod program;
pub mod text;
pub mod types;
pub mod value;
pub mod verify;

pub use builder::{Builder, Input};
pub use limits::Limits;
pub use op::{Args, Op, Opset, Param};
pub use program::{Arg, Block, Defs, Flexibility, Function, FunctionInput, OpKind, Operation, Program, Var, VarInfo};
pub use quince_tensor::{DType, Error, Result, Tensor, Weight, bail};
pub use types::{Dim, TensorType, ValueType};
pub use value::Value;
