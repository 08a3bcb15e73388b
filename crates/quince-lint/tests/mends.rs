//! Each mend on a function that has its fault: the fault is gone, and the numbers are what they were, or were meant to be.

use quince_lint::{Mending, mend};
use quince_mil::{
    Builder, DType, Flexibility, Function, Input, Opset, Program, Result, Tensor, Value, ValueType, Var, eval, verify,
};
use quince_mlpackage::Package;

fn package(build: impl FnOnce(&mut Builder, Var) -> Result<Var>) -> Package {
    let mut b = Builder::new(Function::new("main", Opset::CoreML8));
    let x = b.input("x", ValueType::tensor(DType::F32, &[2, 4]), Flexibility::Fixed);
    let y = build(&mut b, x).unwrap();
    Package::new(Program { functions: vec![b.finish(vec![y])], ..Program::default() })
}

fn values(package: &Package, x: [f32; 8]) -> Vec<f32> {
    let function = &package.program.functions[0];
    verify::function(function).unwrap();
    let inputs = [("x".to_string(), Tensor::from_vec([2, 4], x.to_vec()).unwrap())].into_iter().collect();
    let outputs = eval::run(function, &inputs, &mut Default::default()).unwrap();
    outputs.into_values().next().unwrap().to_f32().unwrap()
}

fn op(b: &mut Builder, name: &str, inputs: &[(&str, Input)]) -> Result<Var> {
    b.op(name, name, inputs)
}

/// What was mended, by id.
fn mended(package: &mut Package, mending: Mending) -> Vec<&'static str> {
    mend(package, mending).unwrap().into_iter().map(|mended| mended.mend.id).collect()
}

const X: [f32; 8] = [1.0, 2.0, -1.0, 0.5, 0.25, -3.0, 1.5, 2.5];

#[test]
fn a_mask_becomes_finite_and_a_row_that_is_all_masked_no_longer_nan() {
    let masked = |value: f32, all: bool| {
        package(|b, x| {
            let row = if all { vec![value; 4] } else { vec![0.0, value, 0.0, value] };
            let mask = b.constant("mask", Tensor::from_vec([1, 4], row)?.into());
            let scores = op(b, "add", &[("x", x.into()), ("y", mask.into())])?;
            op(b, "softmax", &[("x", scores.into()), ("axis", (-1).into())])
        })
    };
    for value in [f32::NEG_INFINITY, f32::MIN, -65504.0] {
        let mut some = masked(value, false);
        let before = values(&some, X);
        assert_eq!(mended(&mut some, Mending::Safe), ["masks"]);
        assert_eq!(values(&some, X), before);
        assert!(mended(&mut some, Mending::All).is_empty());
    }
    let mut all = masked(f32::NEG_INFINITY, true);
    assert!(values(&all, X).iter().all(|value| value.is_nan()));
    mended(&mut all, Mending::Safe);
    assert!(values(&all, X).iter().all(|value| value.is_finite()));
}

#[test]
fn a_large_negative_number_that_is_no_mask_stays() {
    let mut other = package(|b, x| {
        let least = op(b, "maximum", &[("x", x.into()), ("y", f32::MIN.into())])?;
        op(b, "silu", &[("x", least.into())])
    });
    assert!(mended(&mut other, Mending::All).is_empty());
}

#[test]
fn scales_go_into_lookup_tables() {
    let mut scaled = package(|b, x| {
        let data = Tensor::from_vec([4, 1, 2, 1], vec![1f32, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])?;
        let scale = Tensor::from_vec([4, 1, 1, 1], vec![1f32, 0.5, 2.0, 4.0])?;
        let table = op(b, "constexpr_blockwise_shift_scale", &[("data", data.into()), ("scale", scale.into())])?;
        let indices: Value =
            Tensor::from_codes(DType::U1, [4, 4], &[0, 1, 0, 1, 1, 1, 0, 0, 1, 0, 1, 0, 0, 0, 1, 1])?.into();
        let weight = op(b, "constexpr_lut_to_dense", &[("indices", indices.into()), ("lut", table.into())])?;
        op(b, "linear", &[("x", x.into()), ("weight", weight.into())])
    });
    let before = values(&scaled, X);
    assert_eq!(mended(&mut scaled, Mending::Safe), ["table-scale"]);
    assert_eq!(values(&scaled, X), before);
    let ops = &scaled.program.functions[0].block.operations;
    assert!(ops.iter().all(|op| op.op_name() != "constexpr_blockwise_shift_scale"));
    // It can be written, and says the same when it is read.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("mended.mlpackage");
    scaled.write(&path, &mut |_| Ok(())).unwrap();
    assert_eq!(values(&Package::read(&path).unwrap(), X), before);
}

#[test]
fn the_epsilon_of_a_norm_is_divided_as_its_values_are() {
    let epsilon = 0.005;
    let mut wrong = package(|b, x| {
        let magnitude = op(b, "abs", &[("x", x.into())])?;
        let max = op(b, "reduce_max", &[("x", magnitude.into()), ("axes", [-1].into()), ("keep_dims", true.into())])?;
        let scaled = op(b, "real_div", &[("x", x.into()), ("y", max.into())])?;
        let squares = op(b, "square", &[("x", scaled.into())])?;
        let mean = op(b, "reduce_mean", &[("x", squares.into()), ("axes", [-1].into()), ("keep_dims", true.into())])?;
        let sum = op(b, "add", &[("x", mean.into()), ("y", epsilon.into())])?;
        let root = op(b, "sqrt", &[("x", sum.into())])?;
        op(b, "real_div", &[("x", scaled.into()), ("y", root.into())])
    });
    let meant: Vec<f32> = X
        .chunks(4)
        .flat_map(|row| {
            let mean = row.iter().map(|x| x * x).sum::<f32>() / 4.0;
            row.iter().map(move |x| x / (mean + epsilon).sqrt()).collect::<Vec<f32>>()
        })
        .collect();
    let off = |found: &[f32]| found.iter().zip(&meant).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(off(&values(&wrong, X)) > 1e-3);
    assert!(mended(&mut wrong, Mending::Safe).is_empty());
    assert_eq!(mended(&mut wrong, Mending::All), ["norm-epsilon"]);
    assert!(off(&values(&wrong, X)) < 1e-6, "{:?}", values(&wrong, X));
    assert_eq!(values(&wrong, [0.0; 8]), [0.0; 8]);
    assert!(mended(&mut wrong, Mending::All).is_empty());
}

#[test]
fn an_inverse_is_one_and_a_default_is_written() {
    let mut inverse = package(|b, x| op(b, "inverse", &[("x", x.into()), ("epsilon", 1e-4f32.into())]));
    assert_ne!(values(&inverse, X)[4], 4.0);
    assert_eq!(mended(&mut inverse, Mending::All), ["inverse"]);
    assert_eq!(values(&inverse, X)[4], 4.0);
    let mut root = package(|b, x| {
        let x = op(b, "abs", &[("x", x.into())])?;
        op(b, "rsqrt", &[("x", x.into())])
    });
    let before = values(&root, X);
    assert_eq!(mended(&mut root, Mending::Safe), ["default-epsilon"]);
    assert_eq!(values(&root, X), before);
}
