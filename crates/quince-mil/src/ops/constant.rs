//! `const`: a value known before the program runs.

use crate::{Args, Op, Param, Result, Tensor, ValueType, bail};

/// See [`Op::doc`].
pub struct Const;

impl Op for Const {
    fn name(&self) -> &'static str {
        "const"
    }

    fn doc(&self) -> &'static str {
        "A value known before the program runs. It is the attribute `val`, not an argument: numbers of few elements are \
         stored in the program, others in `weight.bin`."
    }

    fn params(&self) -> &'static [Param] {
        &[]
    }

    fn infer(&self, _: &Args) -> Result<Vec<ValueType>> {
        bail!("the type of a constant is that of its attribute `val`")
    }

    fn eval(&self, _: &Args) -> Result<Vec<Tensor>> {
        bail!("the value of a constant is its attribute `val`")
    }
}
