//! Programs with one fault, as the tests of rules make them.

#![allow(dead_code)] // Each test uses some of it.

use quince_lint::{Report, Target, Units, lint};
use quince_mil::{
    Builder, DType, Flexibility, Function, Input, Opset, Program, Result, Tensor, TensorType, ValueType, Var, Weight,
};
use quince_mlpackage::Package;
use quince_tensor::WeightSource;
use std::collections::BTreeSet;
use std::sync::Arc;

/// A package with one function of `x`, fp16 of [1, 64, 1, 64], that `build` completes.
pub fn package(build: impl FnOnce(&mut Builder, Var) -> Result<Var>) -> Package {
    taking(DType::F16, &[1, 64, 1, 64], build)
}

/// The same with another x.
pub fn taking(dtype: DType, shape: &[usize], build: impl FnOnce(&mut Builder, Var) -> Result<Var>) -> Package {
    let mut b = Builder::new(Function::new("main", Opset::CoreML8));
    let x = b.input("x", ValueType::tensor(dtype, shape), Flexibility::Fixed);
    let y = build(&mut b, x).unwrap();
    one(b.finish(vec![y]))
}

pub fn one(function: Function) -> Package {
    Package::new(Program { functions: vec![function], ..Program::default() })
}

pub const ENGINE: Target = Target { units: Units::CpuAndNeuralEngine, device: None };

/// The rules that find something, each once.
pub fn rules(report: &Report) -> BTreeSet<&'static str> {
    report.findings.iter().map(|finding| finding.rule.id).collect()
}

/// Whether the rule, and no other, finds something for the Neural Engine.
#[track_caller]
pub fn only(rule: &str, build: impl FnOnce(&mut Builder, Var) -> Result<Var>) {
    found(&[rule], &package(build));
}

#[track_caller]
pub fn found(expected: &[&str], package: &Package) {
    let report = lint(package, &ENGINE);
    assert_eq!(rules(&report), expected.iter().copied().collect(), "{:#?}", report.findings);
}

pub fn halves(shape: &[usize], value: f32) -> Tensor {
    Tensor::from_f32(DType::F16, shape, vec![value; shape.iter().product()]).unwrap()
}

/// A weight that is never loaded: rules about sizes must not need its bytes.
pub struct Absent(DType);

impl WeightSource for Absent {
    fn load(&self) -> Result<Tensor> {
        Tensor::zeros(self.0, [1])
    }
}

pub fn absent(name: &str, dtype: DType, shape: &[usize]) -> Weight {
    Weight::new(name, dtype, shape, Arc::new(Absent(dtype)))
}

pub fn op(b: &mut Builder, name: &str, inputs: &[(&str, Input)]) -> Result<Var> {
    b.op(name, name, inputs)
}

pub fn half(value: f32) -> Input {
    halves(&[], value).into()
}

pub fn conv(b: &mut Builder, x: Var, outputs: usize, weight: Option<Var>) -> Result<Var> {
    let ValueType::Tensor(ty) = b.ty(x).clone() else { unreachable!() };
    let inputs = ty.dims().unwrap()[1];
    let weight = weight.unwrap_or_else(|| b.constant("w", halves(&[outputs, inputs, 1, 1], 0.01).into()));
    op(
        b,
        "conv",
        &[
            ("x", x.into()),
            ("weight", weight.into()),
            ("strides", [1, 1].into()),
            ("pad_type", "valid".into()),
            ("pad", [0, 0, 0, 0].into()),
            ("dilations", [1, 1].into()),
            ("groups", 1.into()),
        ],
    )
}

pub fn reshape(b: &mut Builder, x: Var, shape: &[i32]) -> Result<Var> {
    op(b, "reshape", &[("x", x.into()), ("shape", shape.to_vec().into())])
}

pub fn state(b: &mut Builder, name: &str, shape: &[usize]) -> Var {
    b.input(name, ValueType::State(TensorType::fixed(DType::F16, shape)), Flexibility::Fixed)
}

/// Writes `new` into a state at an int32 input, and gives all of the state.
pub fn update(b: &mut Builder, state: Var, new: Var) -> Result<Var> {
    let old = op(b, "read_state", &[("input", state.into())])?;
    let position = b.input("position", ValueType::tensor(DType::I32, &[1]), Flexibility::Fixed);
    let rank = b.ty(old).as_tensor().unwrap().shape.len();
    let tokens = b.ty(new).as_tensor().unwrap().shape[rank - 2].fixed().unwrap() as i32;
    let after = op(b, "add", &[("x", position.into()), ("y", vec![tokens].into())])?;
    let corner = |b: &mut Builder, at: Var, rest: Vec<i32>| {
        let (first, last) = (
            b.constant("first", rest[..rank - 2].to_vec().into()),
            b.constant("last", rest[rank - 1..].to_vec().into()),
        );
        op(b, "concat", &[("values", vec![first, at, last].into()), ("axis", 0.into()), ("interleave", false.into())])
    };
    let begin = corner(b, position, vec![0; rank])?;
    let ends: Vec<i32> = b.ty(new).as_tensor().unwrap().dims().unwrap().iter().map(|n| *n as i32).collect();
    let end = corner(b, after, ends)?;
    let all = op(
        b,
        "slice_update",
        &[("x", old.into()), ("update", new.into()), ("begin", begin.into()), ("end", end.into())],
    )?;
    b.ops("write_state", "write", &[("input", state.into()), ("data", all.into())])?;
    op(b, "read_state", &[("input", state.into())])
}
