//! `cond` and `while_loop`: blocks that run or not, and again.

use crate::{Args, DType, Op, Param, Result, Tensor, ValueType, bail};

/// See [`Op::doc`].
pub struct Cond;

impl Op for Cond {
    fn name(&self) -> &'static str {
        "cond"
    }

    fn doc(&self) -> &'static str {
        "The results of its first block if `pred` is true, else those of its second."
    }

    fn params(&self) -> &'static [Param] {
        const { &[Param::new("pred").types(&[DType::Bool])] }
    }

    fn infer(&self, _: &Args) -> Result<Vec<ValueType>> {
        bail!("found a cond without blocks, expected two")
    }

    fn eval(&self, _: &Args) -> Result<Vec<Tensor>> {
        bail!("the blocks of a cond are run by what runs the function")
    }
}

/// See [`Op::doc`].
pub struct WhileLoop;

impl Op for WhileLoop {
    fn name(&self) -> &'static str {
        "while_loop"
    }

    fn doc(&self) -> &'static str {
        "Both blocks take the values of the loop, at first `loop_vars`. As long as the first block gives true, the results \
         of the second are the next values; the last ones are the results."
    }

    fn params(&self) -> &'static [Param] {
        const { &[Param::new("loop_vars").variadic()] }
    }

    fn infer(&self, _: &Args) -> Result<Vec<ValueType>> {
        bail!("found a while_loop without blocks, expected two")
    }

    fn eval(&self, _: &Args) -> Result<Vec<Tensor>> {
        bail!("the blocks of a while_loop are run by what runs the function")
    }
}
