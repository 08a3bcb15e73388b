//! Programs of every architecture, run by plain evaluation: against golden files of transformers, and against each other
//! by the laws that need no oracle.

mod rescale;
mod support;

use quince_checkpoint::{Checkpoint, SafetensorsFile};
use quince_convert::lower::{ComputeUnits, Grouping, KvCache, LogitsOf, Precision, Settings, TARGETS};
use quince_convert::{FunctionName, MODELS, Model, Options, Pooling, Reading, ShapesKind, convert, semantic};
use quince_mil::{DType, Opset, Program, Tensor, verify};
use std::path::{Path, PathBuf};
use support::{
    EMBEDDING, Odd, Session, close, encoder, lowered, psnr, read, row, run_encode, run_full, settings, tiny,
};

/// Models of `tests/golden/arch` whose golden files have logits, or hidden states.
fn fixtures(with: &str) -> Vec<String> {
    let directories =
        std::fs::read_dir(golden("")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = directories.filter(|name| answers(name).tensor(with).is_ok()).collect();
    names.sort();
    names
}

fn answers(name: &str) -> SafetensorsFile {
    SafetensorsFile::open(&golden(name).join("golden.safetensors")).unwrap()
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/arch").join(name)
}

fn full(units: ComputeUnits, precision: Precision) -> Options {
    // Longer texts than this turn otherwise in one of the models, whose golden texts are short.
    Options { functions: vec![FunctionName::Full], context: Some(32), precision, units, ..Options::default() }
}

/// Units that each target serves.
fn units() -> impl Iterator<Item = ComputeUnits> {
    TARGETS.iter().map(|target| target.units[0])
}

fn checked(program: &Program) {
    verify::program(program).unwrap();
    for function in &program.functions {
        assert_eq!(function.opset, Opset::CoreML8);
        assert!(function.block.operations.iter().all(|operation| operation.op().unwrap().since() <= Opset::CoreML8));
    }
}

#[test]
fn programs_give_the_golden_logits() {
    for name in &fixtures("logits_0") {
        let (checkpoint, file) = (Checkpoint::open(golden(name)).unwrap(), answers(name));
        let reference = semantic(&checkpoint).unwrap();
        let lowered = units().map(|units| {
            let program = |precision| convert(&checkpoint, &full(units, precision)).unwrap().program;
            let (exact, half) = (program(Precision::Float32), program(Precision::Float16));
            checked(&exact);
            checked(&half);
            (exact, half)
        });
        let lowered: Vec<_> = lowered.collect();
        for i in 0..2 {
            let ids = file.tensor(&format!("input_ids_{i}")).unwrap().to_i64().unwrap();
            let expected = file.tensor(&format!("logits_{i}")).unwrap();
            close(&run_full(&reference.program, &ids), &expected, 1e-4, name);
            for (exact, half) in &lowered {
                close(&run_full(exact, &ids), &expected, 1e-4, name);
                let found = psnr(&run_full(half, &ids), &expected);
                assert!(found >= 40.0, "{name}: {found} dB in float16");
            }
        }
    }
}

#[test]
fn cached_functions_continue_a_golden_text_greedily() {
    for name in &fixtures("greedy_0") {
        let (checkpoint, file) = (Checkpoint::open(golden(name)).unwrap(), answers(name));
        let expected = file.tensor("greedy_0").unwrap().to_i64().unwrap();
        let prompt = file.tensor("input_ids_0").unwrap().len();
        let context = Some(expected.len());
        for units in units() {
            let (prefill_length, precision) = (Some(5), Precision::Float32);
            let options = Options { context, prefill_length, precision, units, ..Options::default() };
            let converted = convert(&checkpoint, &options).unwrap();
            let mut session = Session::new(&converted.program, options.kv_cache);
            let mut logits = session.prefill(&expected[..prompt], 5);
            for (i, expected) in expected.iter().enumerate().skip(prompt) {
                let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as i64;
                assert_eq!(best, *expected, "{name} {units:?}: token {i}");
                logits = session.decode(best, i);
            }
        }
    }
}

#[test]
fn every_architecture_has_a_golden_file() {
    let names = [fixtures("logits_0"), fixtures("last_hidden_state_0")].concat();
    let open = |name: &String| Checkpoint::open(golden(name)).unwrap().config().model_type().unwrap();
    let there: Vec<String> = names.iter().map(open).collect();
    for model in MODELS {
        assert!(model.model_types.iter().any(|kind| there.iter().any(|name| name == kind)), "{:?}", model.model_types);
    }
}

fn encode(units: ComputeUnits, precision: Precision, pooling: Pooling, shapes: ShapesKind) -> Options {
    Options {
        functions: vec![FunctionName::Encode],
        pooling: Some(pooling),
        precision,
        units,
        shapes: Some(shapes),
        context: Some(16),
        ..Options::default()
    }
}

/// The mean, the first or the last of the rows of hidden states [1, S, D].
fn pooled(hidden: &Tensor, pooling: Pooling) -> Tensor {
    let length = hidden.shape()[1];
    let rows = match pooling {
        Pooling::Cls => 0..1,
        Pooling::Last => length - 1..length,
        _ => 0..length,
    };
    let count = rows.len() as f32;
    let rows: Vec<Vec<f32>> = rows.map(|i| row(hidden, i).to_f32().unwrap()).collect();
    Tensor::vector((0..rows[0].len()).map(|d| rows.iter().map(|row| row[d] / count).sum()).collect::<Vec<f32>>())
}

#[test]
fn encoders_give_the_golden_hidden_states_padded_or_not() {
    for name in &fixtures("last_hidden_state_0") {
        let (checkpoint, file) = (Checkpoint::open(golden(name)).unwrap(), answers(name));
        let ids = |i: usize| file.tensor(&format!("input_ids_{i}")).unwrap().to_i64().unwrap();
        let hidden = |i: usize| file.tensor(&format!("last_hidden_state_{i}")).unwrap();
        let (a, b) = (ids(0), ids(1));
        let program = |options: &Options| {
            let program = convert(&checkpoint, options).unwrap().program;
            checked(&program);
            program
        };
        for units in units() {
            let states = program(&encode(units, Precision::Float32, Pooling::None, ShapesKind::Range));
            close(&run_encode(&states, &[&a[..]], a.len()), &hidden(0), 1e-4, name);
            close(&run_encode(&states, &[&b[..]], b.len()), &hidden(1), 1e-4, name);
        }
        let poolings = [Pooling::Mean, Pooling::Cls, Pooling::Last];
        for (pooling, units) in poolings.into_iter().flat_map(|pooling| units().map(move |units| (pooling, units))) {
            let exact = program(&encode(units, Precision::Float32, pooling, ShapesKind::Range));
            let half = program(&encode(units, Precision::Float16, pooling, ShapesKind::Enumerated));
            let (exact, half) = (run_encode(&exact, &[&a[..], &b[..]], 16), run_encode(&half, &[&b[..]; 8], 16));
            close(&exact.rows(0..1).unwrap().reshape([32]).unwrap(), &pooled(&hidden(0), pooling), 1e-4, name);
            close(&exact.rows(1..2).unwrap().reshape([32]).unwrap(), &pooled(&hidden(1), pooling), 1e-4, name);
            let found = psnr(&half.rows(7..8).unwrap().reshape([32]).unwrap(), &pooled(&hidden(1), pooling));
            assert!(found >= 40.0, "{name}: {found} dB in float16");
            // One text of 16 or 32 tokens.
            let single = encode(units, Precision::Float32, pooling, ShapesKind::Lengths);
            let single = program(&Options { context: Some(32), ..single });
            for length in [16, 32] {
                let found = run_encode(&single, &[&b[..]], length).reshape([32]).unwrap();
                close(&found, &pooled(&hidden(1), pooling), 1e-4, name);
            }
        }
    }
}

#[test]
fn texts_of_a_batch_do_not_touch_each_other() {
    let (short, long) = (&TEXT[..5], &TEXT[2..]);
    for model in MODELS.iter().filter(|model| !model.tiny.contains("experts")) {
        let semantic = read(model, EMBEDDING).unwrap();
        let expected: Vec<Tensor> =
            [short, long].iter().map(|text| run_encode(&semantic.program, &[text], text.len())).collect();
        let (what, length) = (model.model_types[0], expected[0].to_f32().unwrap().iter().map(|x| x * x).sum::<f32>());
        assert!((length - 1.0).abs() < 1e-5, "{what}: found an embedding of length {length}");
        let reference = run_encode(&semantic.program, &[short, long], 16);
        for (target, grouping) in [(0, Grouping::Grouped), (0, Grouping::Repeated), (1, Grouping::Grouped)] {
            let program = encoder(&semantic, &TARGETS[target], grouping);
            checked(&program);
            let found = run_encode(&program, &[short, long], 16);
            close(&found, &reference, 1e-5, what);
            for (i, expected) in expected.iter().enumerate() {
                close(&found.rows(i..i + 1).unwrap(), expected, 1e-5, what);
            }
        }
    }
}

/// The text that the laws are tried on, longer than a window and than several chunks.
const TEXT: [i64; 13] = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9];

#[test]
fn cached_functions_are_the_full_function() {
    let odd = Model::of::<Odd>("odd");
    for model in MODELS.iter().chain([&odd]) {
        let Some(semantic) = read(model, Reading::Logits) else { continue };
        let expected = run_full(&semantic.program, &TEXT);
        let variants = [
            (KvCache::State, Grouping::Grouped, LogitsOf::Last),
            (KvCache::State, Grouping::Repeated, LogitsOf::All),
            (KvCache::Io, Grouping::Grouped, LogitsOf::All),
            (KvCache::Io, Grouping::Repeated, LogitsOf::Last),
        ];
        for (target, (kv_cache, grouping, logits)) in TARGETS.iter().flat_map(|t| variants.map(|variant| (t, variant)))
        {
            let what = format!("{} {} {kv_cache:?} {grouping:?} {logits:?}", model.model_types[0], target.name);
            let program = lowered(&semantic, target, &settings(kv_cache, grouping, Precision::Float32), logits);
            checked(&program);
            close(&run_full(&program, &TEXT), &expected, 1e-5, &what);
            // A prompt shorter than a chunk of four, as long, and longer.
            for prompt in [2, 4, 7] {
                let mut session = Session::new(&program, kv_cache);
                let mut found = session.prefill(&TEXT[..prompt], 4);
                for (i, token) in TEXT.iter().enumerate().skip(prompt) {
                    close(&Tensor::vector(found), &row(&expected, i - 1), 1e-5, &format!("{what}, token {i}"));
                    found = session.decode(*token, i);
                }
                close(&Tensor::vector(found), &row(&expected, TEXT.len() - 1), 1e-5, &what);
            }
        }
    }
}

#[test]
fn a_rotating_cache_forgets_only_what_is_out_of_sight() {
    let odd = Model::of::<Odd>("odd");
    let windowed = MODELS.iter().filter(|model| model.tiny.contains("sliding_window")).chain([&odd]);
    let text: Vec<i64> =
        TEXT.iter().cycle().enumerate().map(|(i, token)| (token + i as i64 / 5) % 11).take(44).collect();
    let mut rotated = 0;
    for (model, target) in windowed.flat_map(|model| TARGETS.iter().map(move |target| (model, target))) {
        let Some(semantic) = read(model, Reading::Logits) else { continue };
        let what = format!("{} {}", model.model_types[0], target.name);
        let expected = run_full(&semantic.program, &text);
        let settings = Settings { context: 48, ..settings(KvCache::Rotating, Grouping::Grouped, Precision::Float32) };
        let program = lowered(&semantic, target, &settings, LogitsOf::All);
        checked(&program);
        rotated += usize::from(program.functions[0].inputs.iter().any(|input| {
            let info = program.functions[0].var(input.var);
            info.name == "kv_rotating" && info.ty.as_tensor().unwrap().dims().unwrap()[2] == 32
        }));
        let mut session = Session::new(&program, KvCache::Rotating);
        let mut next = 0;
        // Chunks and single tokens in turn; some chunks compute tokens again that are there, and one goes round the end.
        for (start, tokens) in
            [(0, 4), (4, 1), (5, 4), (9, 4), (11, 4), (15, 4), (19, 4), (23, 4), (27, 4), (29, 4), (33, 1)]
                .into_iter()
                .chain((34..40).map(|i| (i, 1)))
                .chain([(38, 4), (40, 4)])
        {
            let function = if tokens == 1 { "decode" } else { "init" };
            let logits = session.call(function, &text[start..start + tokens], start);
            for i in start..start + tokens {
                close(&row(&logits, i - start), &row(&expected, i), 3e-5, &format!("{what}, token {i}"));
            }
            next = next.max(start + tokens);
        }
        assert_eq!(next, text.len());
    }
    assert!(rotated >= 4, "found {rotated} programs with a rotating state");
}

#[test]
fn a_padded_chunk_leaves_no_trace() {
    let semantic = tiny(&MODELS[0]);
    let expected = run_full(&semantic.program, &TEXT);
    let settings = settings(KvCache::State, Grouping::Grouped, Precision::Float32);
    for target in TARGETS {
        let program = lowered(&semantic, target, &settings, LogitsOf::All);
        let mut session = Session::new(&program, KvCache::State);
        let logits = session.call("init", &[TEXT[0], TEXT[1], 0, 0], 0);
        close(&row(&logits, 1), &row(&expected, 1), 1e-5, "padded");
        let logits = session.decode(TEXT[2], 2);
        close(&Tensor::vector(logits), &row(&expected, 2), 1e-5, "after padding");
    }
}

#[test]
fn a_window_hides_what_is_further_back() {
    let semantic = tiny(&Model::of::<Odd>("odd"));
    for target in TARGETS {
        let settings = settings(KvCache::State, Grouping::Grouped, Precision::Float32);
        let program = lowered(&semantic, target, &settings, LogitsOf::Last);
        let last = |text: &[i64]| row(&run_full(&program, text), text.len() - 1);
        // Two layers that see three tokens each reach four tokens back.
        let (mut far, mut near) = (TEXT, TEXT);
        far[TEXT.len() - 6] += 1;
        near[TEXT.len() - 5] += 1;
        assert!(last(&far).same(&last(&TEXT)));
        assert!(!last(&near).same(&last(&TEXT)));
    }
}

#[test]
fn functions_share_their_weights() {
    for target in TARGETS {
        let settings = settings(KvCache::State, Grouping::Grouped, Precision::Float16);
        let program = lowered(&tiny(&MODELS[0]), target, &settings, LogitsOf::Last);
        let ids = |i: usize| {
            let operations = &program.functions[i].block.operations;
            let weights = operations.iter().filter_map(|operation| match operation.constant() {
                Some(quince_mil::Value::Weight(weight)) => Some((weight.name().to_owned(), weight.id())),
                _ => None,
            });
            // A prefill computes its mask; the others look theirs up.
            let mut weights: Vec<_> = weights.filter(|(name, _)| !name.starts_with("mask_by_distance")).collect();
            weights.sort();
            weights
        };
        assert!(ids(0).len() > 20 && ids(0) == ids(1) && ids(0) == ids(2));
    }
}

/// What the Neural Engine takes: at most four axes, no float32 in a program of float16, at most so many channels.
#[test]
fn the_neural_engine_gets_what_it_takes() {
    let settings = settings(KvCache::State, Grouping::Grouped, Precision::Float16);
    for model in MODELS {
        let Some(semantic) = read(model, Reading::Logits) else { continue };
        let program = lowered(&semantic, &TARGETS[1], &settings, LogitsOf::Last);
        for function in &program.functions {
            for operation in &function.block.operations {
                assert_ne!(operation.op_name(), "linear", "{}", operation.name);
                for ty in operation.outputs.iter().filter_map(|var| function.ty(*var).as_tensor()) {
                    assert!(ty.shape.len() <= 4 && ty.dtype != DType::F32, "{}: {ty}", operation.name);
                }
            }
        }
    }
}

#[test]
fn options_that_contradict_each_other_are_refused() {
    let checkpoint = Checkpoint::open(golden("llama-gqa-untied")).unwrap();
    let error = |options: Options| convert(&checkpoint, &options).err().map(|e| e.to_string()).unwrap_or_default();
    let found = error(Options { functions: vec![FunctionName::Decode], kv_cache: KvCache::None, ..Options::default() });
    assert!(found.starts_with("function `main` continues a text, but there is no KV cache"), "{found}");
    let found = error(Options { context: Some(16), prefill_length: Some(32), ..Options::default() });
    assert_eq!(found, "function `init`: found 32 tokens a call, expected 1 to the context, 16");
    let without_effect = convert(&checkpoint, &Options { length: Some(8), ..Options::default() }).unwrap();
    assert!(without_effect.warnings.iter().any(|w| w.contains("length")), "{:?}", without_effect.warnings);
    assert!(error(Options { context: Some(0), ..Options::default() }).starts_with("found a context of 0 tokens"));
    let twice = vec![FunctionName::Full, FunctionName::Full];
    assert_eq!(error(Options { functions: twice, ..Options::default() }), "the function `full` is asked for twice");
}

#[test]
fn a_checkpoint_that_is_not_what_its_configuration_says_is_refused() {
    let config = |text: &str| quince_checkpoint::Config::from_text("m/config.json", text).unwrap();
    let error = |text: &str| {
        let config = config(text);
        let result = quince_convert::semantic_with(&MODELS[0], &config, &support::RandomWeights, &[Reading::Logits]);
        result.err().map(|e| e.to_string()).unwrap_or_default()
    };
    let tiny = MODELS[0].tiny;
    let found = error(&tiny.replace("500.0", "500.0, \"hidden_act\": \"mish\""));
    assert!(found.contains("unknown variant `mish`"), "{found}");
    let found = error(&tiny.replace("\"hidden_size\": 8", "\"hidden_size\": 99999999999"));
    assert!(found.starts_with("m/config.json: key `hidden_size`: found 99999999999, expected at most"), "{found}");
    assert!(!error(&tiny.replace("\"num_attention_heads\": 4", "\"num_attention_heads\": 0")).is_empty());
    assert!(!error(&tiny.replace("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3")).is_empty());
}
