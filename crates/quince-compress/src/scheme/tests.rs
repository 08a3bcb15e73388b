//! Every scheme, in programs of one and of several functions: the program is valid, and computes what it computes with the
//! decompressed weights, which are near the weights.

use super::*;
use crate::test_weights::{values_of, weight};
use crate::{ClusterDim, LinearDType, LinearMode, OptimizationConfig, PaletteMode, Pruning, TableType, compress};
use quince_mil::{Builder, DType, Flexibility, Function, Program, Tensor, ValueType, eval, verify};

/// Schemes with the greatest relative error of the weights that they are good for.
fn schemes() -> Vec<(Scheme, f64)> {
    let palette = |bits: usize, group_size| Palette::kmeans(Nbits::new(bits).unwrap(), group_size);
    let int8 = |palette: Palette| Palette { table: TableType::Int8, ..palette };
    let linear = |dtype, mode, granularity| Linear { dtype, mode, granularity };
    let (half, two_four) = (Pruning::magnitude(0.5).unwrap(), Pruning::ratio(2, 4).unwrap());
    let channel = linear(LinearDType::Int8, LinearMode::Symmetric, Granularity::PerChannel);
    let mut schemes: Vec<(Scheme, f64)> = vec![
        (Palette { mode: PaletteMode::Uniform, ..palette(8, None) }.into(), 0.02),
        (palette(4, Some(8)).into(), 0.1),
        (palette(4, Some(1)).into(), 0.1),
        (int8(palette(4, Some(8))).into(), 0.1),
        (int8(palette(6, None)).into(), 0.1),
        (VectorPalette { palette: palette(4, Some(8)), dim: ClusterDim::Two }.into(), 0.4),
        (VectorPalette { palette: palette(4, None), dim: ClusterDim::Four }.into(), 0.9),
        (VectorPalette { palette: int8(palette(6, Some(8))), dim: ClusterDim::Two }.into(), 0.3),
        (Sparse { pruning: half }.into(), 0.2),
        (Sparse { pruning: Pruning::threshold(0.01).unwrap() }.into(), 0.2),
        (Sparse { pruning: two_four }.into(), 0.4),
        (SparsePalette { palette: palette(4, Some(8)), pruning: half }.into(), 0.2),
        (SparsePalette { palette: int8(palette(6, None)), pruning: two_four }.into(), 0.4),
        (SparseLinear { linear: channel, pruning: half }.into(), 0.2),
    ];
    schemes.extend(Nbits::ALL.map(|nbits| (Palette::kmeans(nbits, None).into(), 1.2 / nbits.entries() as f64 + 0.01)));
    for dtype in [LinearDType::Int8, LinearDType::UInt8, LinearDType::Int4, LinearDType::UInt4] {
        for mode in [LinearMode::Symmetric, LinearMode::SymmetricClipped, LinearMode::Asymmetric] {
            for granularity in [Granularity::PerTensor, Granularity::PerChannel, Granularity::PerBlock(8)] {
                let most = if dtype.dtype().bits() == 4 { 0.35 } else { 0.02 };
                schemes.push((linear(dtype, mode, granularity).into(), most));
                let sparse = SparseLinear { linear: linear(dtype, mode, granularity), pruning: two_four };
                schemes.push((sparse.into(), 0.5));
            }
        }
    }
    schemes
}

/// Functions that multiply with the same weights, of rank 2 by its rows and by its columns, and of rank 4.
fn program(functions: usize, opset: Opset, dtype: DType) -> Program {
    let weights = [weight(&[32, 16], dtype, 1), weight(&[32, 8], dtype, 2), weight(&[24, 8, 1, 1], dtype, 3)];
    let weights: Vec<Weight> = ["rows", "columns", "conv"].iter().zip(weights).map(|(n, w)| w.renamed(n)).collect();
    let function = |name: &str| {
        let mut b = Builder::new(Function::new(name, opset));
        let x = b.input("x", ValueType::tensor(dtype, &[2, 16]), Flexibility::Fixed);
        let [rows, columns, conv] = [0, 1, 2].map(|i| b.weight(&weights[i]));
        let x = b.op("linear", "a", &[("x", x.into()), ("weight", rows.into())]).unwrap();
        let x = b.op("matmul", "b", &[("x", x.into()), ("y", columns.into())]).unwrap();
        let shape = ("shape", vec![2i32, 8, 1, 1].into());
        let x = b.op("reshape", "r", &[("x", x.into()), shape]).unwrap();
        let parameters = [
            ("strides", vec![1i32, 1].into()),
            ("pad_type", "valid".into()),
            ("pad", vec![0i32; 4].into()),
            ("dilations", vec![1i32, 1].into()),
            ("groups", 1.into()),
        ];
        let inputs = [&[("x", x.into()), ("weight", conv.into())][..], &parameters].concat();
        let y = b.op("conv", "c", &inputs).unwrap();
        b.finish(vec![y])
    };
    let functions: Vec<Function> = ["init", "decode", "encode"].iter().take(functions).map(|n| function(n)).collect();
    Program { default_function: Some("init".to_owned()), functions, ..Program::default() }
}

/// The values of the constants that the operations compute, by the names of their variables.
fn decompressed(function: &Function) -> Vec<(String, Tensor)> {
    let mut observed = function.clone();
    let wanted = |name: &str| ["rows", "columns", "conv"].contains(&name);
    let vars = observed.block.operations.iter().flat_map(|operation| operation.outputs.clone());
    observed.block.outputs = vars.filter(|var| wanted(&observed.var(*var).name)).collect();
    let mut found: Vec<(String, Tensor)> = run(&observed).into_iter().collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

fn run(function: &Function) -> eval::Tensors {
    let dtype = function.ty(function.inputs[0].var).as_tensor().unwrap().dtype;
    let x = weight(&[2, 16], dtype, 9).load().unwrap();
    eval::run(function, &[("x".to_owned(), x)].into(), &mut eval::Tensors::new()).unwrap()
}

/// The program with the decompressed weights as constants.
fn dense(program: &Program) -> Program {
    let mut dense = self::program(1, program.functions[0].opset, DType::F16);
    let weights = decompressed(&program.functions[0]);
    let function = &mut dense.functions[0];
    for i in 0..function.block.operations.len() {
        let name = function.block.operations[i].outputs.first().map(|&var| function.var(var).name.clone());
        if let Some((_, tensor)) = weights.iter().find(|(weight, _)| Some(weight) == name.as_ref()) {
            function.block.operations[i].attributes.insert("val".to_owned(), tensor.clone().into());
        }
    }
    dense
}

fn outputs(function: &Function) -> Vec<f32> {
    run(function).values().flat_map(|tensor| tensor.to_f32().unwrap()).collect()
}

fn config(scheme: Scheme) -> OptimizationConfig {
    OptimizationConfig { weight_threshold: 0, ..OptimizationConfig::all(scheme) }
}

/// The relative distance of the decompressed weights from those of the program before.
fn error(program: &Program, before: &Program) -> f64 {
    let values = |program: &Program| -> Vec<f64> {
        decompressed(&program.functions[0]).iter().flat_map(|(_, tensor)| tensor.to_f64().unwrap()).collect()
    };
    let (after, before) = (values(program), values(before));
    assert_eq!(after.len(), before.len());
    let distance: f64 = after.iter().zip(&before).map(|(a, b)| (a - b) * (a - b)).sum();
    (distance / before.iter().map(|b| b * b).sum::<f64>()).sqrt()
}

#[test]
fn every_scheme_computes_what_its_decompressed_weights_do() {
    for (scheme, most) in schemes() {
        for functions in [1, 3] {
            let before = program(functions, Opset::CoreML8, DType::F16);
            let mut program = before.clone();
            let report = compress(&mut program, &config(scheme)).unwrap();
            assert_eq!((report.rules[0].weights, report.left), (3, Vec::new()), "{scheme}");
            verify::program(&program).unwrap_or_else(|e| panic!("{scheme}: {e}"));
            let error = error(&program, &before);
            assert!(error > 0.0 && error <= most, "{scheme}: {error}, expected at most {most}");
            let expected = outputs(&dense(&program).functions[0]);
            for function in &program.functions {
                assert_eq!(outputs(function), expected, "{scheme}, {}", function.name);
            }
        }
    }
}

#[test]
fn older_systems_get_their_form_or_the_names_of_what_they_have() {
    let before = program(2, Opset::CoreML7, DType::F16);
    for (scheme, most) in schemes() {
        let mut old = before.clone();
        let mut new = program(1, Opset::CoreML8, DType::F16);
        match compress(&mut old, &config(scheme)) {
            Ok(_) => {
                verify::program(&old).unwrap_or_else(|e| panic!("{scheme}: {e}"));
                let error = error(&old, &before);
                assert!(error > 0.0 && error <= most, "{scheme}: {error}, expected at most {most}");
                compress(&mut new, &config(scheme)).unwrap();
                assert_eq!(outputs(&old.functions[1]), outputs(&new.functions[0]), "{scheme}");
                let attributes = |operation: &quince_mil::Operation| {
                    operation.inputs.iter().all(|(_, args)| matches!(args[..], [quince_mil::Arg::Value(_)]))
                };
                let compressed =
                    old.functions[0].block.operations.iter().filter(|o| o.op_name().starts_with("constexpr"));
                assert_eq!(compressed.filter(|operation| attributes(operation)).count(), 3);
            }
            Err(error) => {
                let error = error.to_string();
                assert!(error.contains("CoreML7, expected CoreML8 or later for"), "{error}");
                assert!(
                    error.contains("target iOS 18 or macOS 15; before that: palettes of 1, 2, 4, 6 or 8"),
                    "{error}"
                );
            }
        }
    }
    let supported = schemes().into_iter().filter(|(scheme, _)| scheme.check(Opset::CoreML6).is_ok()).count();
    // A palette of uniform entries and five of k-means, three ways to be sparse, 8 bits in three modes, two types and two
    // granularities.
    assert_eq!(supported, 1 + 5 + 3 + 12);
}

#[test]
fn what_has_no_compressed_weights_is_raised_to_what_has() {
    let mut b = Builder::new(Function::new("main", Opset::CoreML5));
    let ids = b.input("ids", ValueType::tensor(DType::I32, &[3]), Flexibility::Fixed);
    let table = b.weight(&weight(&[64, 48], DType::F32, 1).renamed("embed_tokens"));
    let x = b.op("gather", "g", &[("x", table.into()), ("indices", ids.into()), ("axis", 0.into())]).unwrap();
    let mut program = Program { functions: vec![b.finish(vec![x])], ..Program::default() };
    let report = compress(&mut program, &config(Palette::kmeans(Nbits::new(4).unwrap(), None).into())).unwrap();
    let function = &program.functions[0];
    assert_eq!((report.raised, function.opset), (Some(Opset::CoreML6), Opset::CoreML6));
    // What the older form of the operation does not have is written as coremltools writes it.
    assert!(function.block.operations.iter().any(|operation| operation.args("batch_dims").len() == 1));
    verify::program(&program).unwrap();
}

#[test]
fn clipping_never_costs_more() {
    use crate::{LinearGranularity, LinearOptions, quantize_linear};
    let weight = weight(&[64, 96], DType::F32, 4);
    for granularity in [
        LinearGranularity::PerTensor,
        LinearGranularity::PerChannel { axis: 0 },
        LinearGranularity::PerChannel { axis: 1 },
        LinearGranularity::PerBlock { output_axis: 0, input_axis: 1, block_size: 32 },
    ] {
        let sse = |mode| {
            let options = LinearOptions { dtype: LinearDType::Int4, mode, granularity, scale: crate::Float::F16 };
            quantize_linear(&weight, &options).unwrap().sse
        };
        let (whole, clipped) = (sse(LinearMode::Symmetric), sse(LinearMode::SymmetricClipped));
        assert!(clipped < whole, "{granularity:?}: {clipped}, {whole}");
    }
}

#[test]
fn zeros_are_where_they_were_asked_for() {
    let mut program = program(1, Opset::CoreML8, DType::F16);
    let scheme = Sparse { pruning: Pruning::ratio(2, 4).unwrap() };
    compress(&mut program, &config(scheme.into())).unwrap();
    let weights = decompressed(&program.functions[0]);
    let rows = weights.iter().find(|(name, _)| name == "rows").unwrap().1.to_f64().unwrap();
    let original = values_of(&weight(&[32, 16], DType::F16, 1));
    for (four, before) in rows.chunks(4).zip(original.chunks(4)) {
        assert_eq!(four.iter().filter(|v| **v == 0.0).count(), 2);
        let least = four.iter().filter(|v| **v != 0.0).fold(f64::INFINITY, |min, v| min.min(v.abs()));
        let lost = four.iter().zip(before).filter(|(v, _)| **v == 0.0).fold(0.0, |max: f64, (_, b)| max.max(b.abs()));
        assert!(lost <= least, "{before:?} became {four:?}");
    }
}
