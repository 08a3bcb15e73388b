//! Compression of one weight after the other, on the bundled model.

use quince_calibrate::{CollectOptions, Run, SequentialOptions, Statistics, Texts, collect, compress_sequentially};
use quince_checkpoint::Checkpoint;
use quince_compress::{Guide, Nbits, OptimizationConfig, Palette, Report, compress_guided};
use quince_convert::{FunctionName, Options, convert};
use quince_engine::Engine;
use quince_mil::{Builder, DType, Flexibility, Function, Opset, Program, Tensor, Value, ValueType, Weight};
use quince_runtime::{Decoder, SpecialTokens, Tokenizer, Windows, perplexity};
use std::path::Path;
use std::sync::Arc;

fn model() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/tiny-llama"))
}

fn program(functions: &[FunctionName]) -> Program {
    let options = Options { functions: functions.to_vec(), ..Options::default() };
    convert(&Checkpoint::open(model()).unwrap(), &options).unwrap().program
}

fn decoder(program: Program) -> Decoder {
    Decoder::new(Arc::new(Engine::load(program, quince_engine::Options::default()).unwrap())).unwrap()
}

/// Stories that the model is calibrated on, and others.
fn stories() -> [String; 2] {
    let mut text = std::fs::read_to_string(model().join("heldout_stories.txt")).unwrap();
    let others = text.split_off(12000);
    [others, text]
}

fn texts(tokenizer: &Tokenizer, length: usize) -> Texts {
    Texts::of_text(&stories()[0], tokenizer, length, 8192).unwrap()
}

fn measured(program: Program, tokenizer: &Tokenizer, text: &str) -> f64 {
    let tokens = tokenizer.encode(text, SpecialTokens::Omit).unwrap();
    let mut decoder = decoder(program);
    let windows = Windows::new(&decoder, Some(tokenizer), Some(256)).unwrap();
    perplexity(&mut decoder, &tokens, windows, &mut |_, _| ()).unwrap().perplexity
}

fn config(bits: usize) -> OptimizationConfig {
    OptimizationConfig::all(Palette::kmeans(Nbits::new(bits).unwrap(), Some(16)).into())
}

fn sequentially(
    program: &mut Program,
    run_on: Option<&Program>,
    texts: Texts,
    config: &OptimizationConfig,
) -> Option<Report> {
    let mut decoder = decoder(run_on.unwrap_or(program).clone());
    let mut runs = [Run { runner: &mut decoder, texts }];
    let directory = tempfile::tempdir().unwrap();
    let options = SequentialOptions { directory: directory.path(), engine: quince_engine::Options::default() };
    let report = compress_sequentially(program, run_on, &mut runs, config, &options, &mut |_, _| ()).unwrap();
    // The file of weights has no name.
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    report
}

#[test]
fn weights_that_make_up_for_those_before_them_lose_less() {
    let tokenizer = Tokenizer::from_dir(model()).unwrap();
    let full = program(&[FunctionName::Full]);
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut runs = [Run { runner: &mut decoder(full.clone()), texts: texts(&tokenizer, 256) }];
    collect(&full, &mut runs, file.path(), CollectOptions::default(), &mut |_, _| ()).unwrap();
    let guide: Arc<dyn Guide> = Arc::new(Statistics::open(file.path()).unwrap());
    // Bits so few that chance has little part in what is lost.
    let config = config(2);
    let mut alone = full.clone();
    compress_guided(&mut alone, &config, Some(guide)).unwrap();
    let mut together = full.clone();
    let report = sequentially(&mut together, None, texts(&tokenizer, 256), &config).unwrap();
    assert!(report.rules[0].calibrated == report.rules[0].weights, "{report:?}");
    let [_, others] = &stories();
    let [original, alone, together] = [full, alone, together].map(|program| measured(program, &tokenizer, others));
    assert!(together - original < 0.7 * (alone - original), "{original}: {alone}, {together}");
}

#[test]
fn functions_with_a_cache_are_run_in_pieces_or_as_another_program() {
    let tokenizer = Tokenizer::from_dir(model()).unwrap();
    let package = program(&[FunctionName::Init, FunctionName::Decode]);
    let full = program(&[FunctionName::Full]);
    let [_, text] = &stories();
    let original = measured(package.clone(), &tokenizer, text);
    let mut plain = package.clone();
    compress_guided(&mut plain, &config(3), None).unwrap();
    let plain = measured(plain, &tokenizer, text) - original;
    for (run_on, length) in [(None, 100), (Some(&full), 256)] {
        let mut compressed = package.clone();
        sequentially(&mut compressed, run_on, texts(&tokenizer, length), &config(3)).unwrap();
        let found = measured(compressed.clone(), &tokenizer, text) - original;
        assert!(found < 0.35 * plain, "{original} + {plain}, {found}");
        // Both functions have the same weights, which are computed once.
        let ids = |function: &Function| -> Vec<usize> {
            let values = function.block.operations.iter().filter(|o| o.op_name().starts_with("constexpr_"));
            let weights = values.flat_map(|o| o.inputs.iter().flat_map(|(_, args)| args)).filter_map(|arg| match arg {
                quince_mil::Arg::Value(value) => value.weight("").map(|weight| weight.id()),
                quince_mil::Arg::Var(_) => None,
            });
            weights.collect()
        };
        assert_eq!(ids(&compressed.functions[0]), ids(&compressed.functions[1]));
    }
    // Another program that lacks a weight.
    let mut other = full.clone();
    other.functions[0].block.operations.iter_mut().filter(|o| o.constant().is_some()).for_each(|o| o.name += "_other");
    assert!(sequentially(&mut package.clone(), Some(&other), texts(&tokenizer, 256), &config(3)).is_none());
    // Texts that are longer than a call cannot be run at once.
    assert!(sequentially(&mut package.clone(), None, texts(&tokenizer, 200), &config(3)).is_none());
}

#[test]
fn a_weight_without_a_turn_of_its_own_is_left_to_others() {
    // Two layers that share a weight.
    let mut b = Builder::new(Function::new("main", Opset::CoreML8));
    let ids = b.input("input_ids", ValueType::tensor(DType::I32, &[1, 4]), Flexibility::Fixed);
    let weight = |b: &mut Builder, name: &str, shape: [usize; 2]| {
        let values = (0..shape[0] * shape[1]).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
        b.weight(&Weight::from_tensor(name, Tensor::from_vec(shape, values).unwrap()))
    };
    let table = weight(&mut b, "embed.weight", [32, 64]);
    let shared = weight(&mut b, "layers.0.mlp.weight", [64, 64]);
    let head = weight(&mut b, "lm_head.weight", [32, 64]);
    let axis = Value::from(Tensor::scalar(0i32));
    let mut x = b.op("gather", "x", &[("x", table.into()), ("indices", ids.into()), ("axis", axis.into())]).unwrap();
    for name in ["one", "two"] {
        x = b.op("linear", name, &[("x", x.into()), ("weight", shared.into())]).unwrap();
    }
    let y = b.op("linear", "logits", &[("x", x.into()), ("weight", head.into())]).unwrap();
    let mut program = Program { functions: vec![b.finish(vec![y])], ..Program::default() };
    let texts = Texts { windows: vec![vec![1, 2, 3, 4], vec![7, 30, 2, 9]] };
    assert!(sequentially(&mut program, None, texts, &config(4)).is_none());
    assert!(program.functions[0].block.operations.iter().all(|o| !o.op_name().starts_with("constexpr_")));
}
