//! `element-type`: values of types that no processor of a device computes in.

use crate::rule::{Check, Sink};
use crate::view::View;
use crate::{Rule, Scope, Severity};
use quince_mil::{DType, ValueType};

pub(super) static RULE: Rule = Rule {
    id: "element-type",
    severity: Severity::Error,
    scope: Scope::Everywhere,
    what: "a value of type int64, uint64, uint32, fp64, bf16 or fp8",
    why: "MIL on devices computes in fp16, fp32, int8, uint8, int16, uint16, int32 and bool; other types are refused when the \
          model is compiled, and wide integers are cut to 32 bits by some converters without a word",
    fix: "cast to int32 or fp16 before the operation; bf16 weights become fp16 when they are converted",
    source: "apple/coremltools mlmodel/format/MIL.proto and mil/types; \
             apple/coremltools ops/defs/iOS17/elementwise_unary.py, cast",
    check: Check::Function(check),
};

const NONE: &[DType] =
    &[DType::I64, DType::U64, DType::U32, DType::F64, DType::BF16, DType::F8E4M3FN, DType::F8E5M2];

fn check(view: &View, sink: &mut Sink) {
    for operation in view.computing() {
        for var in &operation.outputs {
            match &view.function.ty(*var) {
                ValueType::Tensor(ty) if NONE.contains(&ty.dtype) => {
                    sink.operation(view, operation, format!("a value of type {}", ty.dtype), ty.to_string());
                }
                _ => {}
            }
        }
    }
    for operation in view.named("const") {
        // Shapes of packed weights are uint32, and never computed with.
        let kept = |dtype: DType| NONE.contains(&dtype) && dtype != DType::U32;
        if let Some(ty) = view.result(operation).filter(|ty| kept(ty.dtype)) {
            sink.operation(view, operation, format!("a constant of type {}", ty.dtype), ty.to_string());
        }
    }
}
