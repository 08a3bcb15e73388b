//! `read_state` and `write_state`: tensors that outlive a call, such as a KV cache.

use super::shape_rules::show;
use crate::{Args, Op, Opset, Param, Result, Tensor, TensorType, ValueType, bail};

/// See [`Op::doc`].
pub struct ReadState;

impl Op for ReadState {
    fn name(&self) -> &'static str {
        "read_state"
    }

    fn doc(&self) -> &'static str {
        "The value that a state has now."
    }

    fn params(&self) -> &'static [Param] {
        const { &[Param::new("input")] }
    }

    fn since(&self) -> Opset {
        Opset::CoreML8
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        Ok(vec![state(args)?.clone().into()])
    }

    fn eval(&self, _: &Args) -> Result<Vec<Tensor>> {
        bail!("a state is read by what runs the function, it is not a value of its own")
    }
}

/// See [`Op::doc`].
pub struct WriteState;

impl Op for WriteState {
    fn name(&self) -> &'static str {
        "write_state"
    }

    fn doc(&self) -> &'static str {
        "Makes `data` the value of a state. It has no result: what goes on with the new value reads the state again."
    }

    fn params(&self) -> &'static [Param] {
        const { &[Param::new("input"), Param::new("data")] }
    }

    fn since(&self) -> Opset {
        Opset::CoreML8
    }

    fn infer(&self, args: &Args) -> Result<Vec<ValueType>> {
        let (state, data) = (state(args)?, args.ty("data")?);
        if !state.fits(data) {
            bail!(
                "found data {} of {}, expected {} of {}",
                show(&data.shape),
                data.dtype,
                show(&state.shape),
                state.dtype
            );
        }
        Ok(Vec::new())
    }

    fn eval(&self, _: &Args) -> Result<Vec<Tensor>> {
        bail!("a state is written by what runs the function, it is not a value of its own")
    }
}

/// The type of the tensor in the state.
fn state<'a>(args: &'a Args) -> Result<&'a TensorType> {
    match args.get("input").map(|info| &info.ty) {
        Some(ValueType::State(ty)) => Ok(ty),
        Some(other) => bail!("found input of type {other}, expected a state"),
        None => bail!("the parameter `input` is missing"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::DType;
    use crate::op::ArgInfo;

    #[test]
    fn a_state_holds_one_type() {
        let state = || vec![ArgInfo::typed(ValueType::State(TensorType::fixed(DType::F16, &[2, 3])))];
        assert_eq!(inferred(&ReadState, vec![("input", state())]).unwrap(), [2, 3]);
        assert!(inferred(&ReadState, vec![("input", typed(DType::F16, &[2, 3]))]).is_err());
        let write = |dtype, shape: &[i64]| {
            let args = Args::new(&WriteState, vec![("input", state()), ("data", typed(dtype, shape))]);
            WriteState.infer(&args).map(|types| types.len())
        };
        assert_eq!(write(DType::F16, &[2, -1]).unwrap(), 0);
        assert!(write(DType::F32, &[2, 3]).is_err() && write(DType::F16, &[3, 2]).is_err());
    }
}
