//! Second moments of a program whose values are known: rows of a table.

use quince_calibrate::{CollectOptions, Run, Statistics, Texts, collect};
use quince_compress::Guide;
use quince_engine::{Engine, Options};
use quince_mil::{Builder, DType, Dim, Flexibility, Function, Opset, Program, Tensor, TensorType, Value, Weight};
use quince_runtime::{Decoder, SpecialTokens, Tokenizer};
use std::path::Path;
use std::sync::Arc;

const VOCABULARY: usize = 7;
const WIDTH: usize = 3;

fn table() -> Vec<f32> {
    (0..VOCABULARY * WIDTH).map(|i| ((i * 5 % 11) as f32 - 4.0) / 4.0).collect()
}

fn collected(texts: &Texts, file: &Path) {
    let mut decoder = decoder();
    let program = decoder.engine().program().clone();
    let mut runs = [Run { runner: &mut decoder, texts: texts.clone() }];
    collect(&program, &mut runs, file, CollectOptions::default(), &mut |_, _| ()).unwrap();
}

/// `input_ids` [1, S] to `logits` [1, S, V]: rows of a table, and a product.
fn decoder() -> Decoder {
    let mut b = Builder::new(Function::new("main", Opset::CoreML8));
    let ty = TensorType { dtype: DType::I32, shape: vec![Dim::Fixed(1), Dim::Unknown] };
    let lengths = Flexibility::Range { bounds: vec![(1, Some(1)), (1, Some(16))], default: vec![1, 4] };
    let ids = b.input("input_ids", ty.into(), lengths);
    let weight = |b: &mut Builder, name: &str, shape: [usize; 2], values: Vec<f32>| {
        b.weight(&Weight::from_tensor(name, Tensor::from_vec(shape, values).unwrap()))
    };
    let rows = weight(&mut b, "embed.weight", [VOCABULARY, WIDTH], table());
    let head = weight(&mut b, "lm_head.weight", [VOCABULARY, WIDTH], vec![0.5; VOCABULARY * WIDTH]);
    let axis = Value::from(Tensor::scalar(0i32));
    let x = b.op("gather", "x", &[("x", rows.into()), ("indices", ids.into()), ("axis", axis.into())]).unwrap();
    let y = b.op("linear", "logits", &[("x", x.into()), ("weight", head.into())]).unwrap();
    let program = Program { functions: vec![b.finish(vec![y])], ..Program::default() };
    Decoder::new(Arc::new(Engine::load(program, Options::default()).unwrap())).unwrap()
}

#[test]
fn moments_are_those_of_the_rows_that_were_looked_up() {
    let texts = Texts { windows: vec![vec![1, 2, 2, 6], vec![0, 5]] };
    let file = tempfile::NamedTempFile::new().unwrap();
    collected(&texts, file.path());
    let statistics = Statistics::open(file.path()).unwrap();
    // The table is not multiplied with anything.
    assert_eq!((statistics.weights(), statistics.knows("embed.weight")), (1, false));
    let moments = statistics.moments("lm_head_weight").unwrap().unwrap();
    assert_eq!((moments.size(), moments.count()), (WIDTH, 6));
    let table = table();
    let mut sums = moments.sums().iter();
    for i in 0..WIDTH {
        for j in 0..=i {
            let rows = texts.windows.iter().flatten().map(|&id| &table[id as usize * WIDTH..][..WIDTH]);
            let expected: f32 = rows.map(|row| row[i] * row[j]).sum();
            assert!((sums.next().unwrap() - expected).abs() < 1e-5);
        }
    }
    assert_eq!(statistics.factor("lm_head.weight", 0.01).unwrap().unwrap().size(), WIDTH);
}

#[test]
fn files_that_are_not_statistics_are_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let whole = {
        let texts = Texts { windows: vec![vec![1, 2]] };
        collected(&texts, file.path());
        std::fs::read(file.path()).unwrap()
    };
    for end in [0, 7, 40, whole.len() - 1] {
        std::fs::write(file.path(), &whole[..end]).unwrap();
        let opened = Statistics::open(file.path()).and_then(|statistics| statistics.moments("lm_head.weight"));
        let error = opened.map(drop).unwrap_err().to_string();
        assert!(error.contains(&file.path().display().to_string()), "{error}");
    }
}

#[test]
fn a_model_writes_texts_until_there_are_enough() {
    let written = |begin| Texts::written_by(&mut decoder(), begin, &[3], [8, 50], &mut |_| ()).unwrap();
    let texts = written(Some(1));
    assert_eq!(texts, written(Some(1)));
    assert!((50..58).contains(&texts.tokens()), "{}", texts.tokens());
    for text in &texts.windows {
        let (last, before) = text.split_last().unwrap();
        assert!(text[0] == 1 && !before.contains(&3) && (text.len() == 8 || *last == 3), "{text:?}");
    }
    assert!(written(None).windows.iter().map(|text| text[0]).collect::<std::collections::BTreeSet<_>>().len() > 2);
}

#[test]
fn passages_of_foreign_languages_are_left_out() {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/tiny-llama");
    let tokenizer = Tokenizer::from_dir(model).unwrap();
    let texts = Texts::prose(&tokenizer, 256, usize::MAX).unwrap();
    let text: String =
        texts.windows.iter().map(|window| tokenizer.decode(window, SpecialTokens::Omit).unwrap()).collect();
    assert!(text.len() > 30_000, "{}", text.len());
    // The tokenizer was trained on English: other alphabets are bytes to it.
    let of_alphabet = |range: std::ops::RangeInclusive<char>| text.chars().filter(|c| range.contains(c)).count();
    let (latin, cyrillic, han) = (of_alphabet('a'..='z'), of_alphabet('а'..='я'), of_alphabet('一'..='鿿'));
    assert!(latin > 20_000 && cyrillic == 0 && han == 0, "{latin} {cyrillic} {han}");
    // Each window begins as texts do, and none is longer than asked for.
    let begin = tokenizer.begin_of_text().unwrap();
    assert!(texts.windows.iter().all(|window| window.first().copied() == begin && window.len() <= 256));
    // Fewer are taken from the whole.
    let some = Texts::prose(&tokenizer, 256, texts.tokens() / 4).unwrap();
    assert!(some.tokens().abs_diff(texts.tokens() / 4) <= 256);
    assert!(some.windows.iter().all(|window| texts.windows.contains(window)));
}

#[test]
fn lines_are_taken_from_the_whole_text_until_there_are_enough() {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/tiny-llama");
    let tokenizer = Tokenizer::from_dir(model).unwrap();
    let all: Vec<Vec<u32>> = Texts::BUILT_IN.lines().map(|line| tokenizer.encode_within(line, 256).unwrap()).collect();
    let count: usize = all.iter().map(Vec::len).sum();
    let some = Texts::of_lines(Texts::BUILT_IN, &tokenizer, 256, count / 4).unwrap();
    assert!(some.tokens().abs_diff(count / 4) < 256, "{} of {count}", some.tokens());
    // From the first tenth to the last.
    let place = |text: &Vec<u32>| all.iter().position(|other| other == text).unwrap();
    let tenth = all.len() / 10;
    assert!(place(&some.windows[0]) < tenth && place(some.windows.last().unwrap()) > 9 * tenth);
    // All lines first, then pieces of them, which are other texts.
    let more = Texts::of_lines(Texts::BUILT_IN, &tokenizer, 256, 2 * count).unwrap();
    assert_eq!(more.windows[..all.len()], all);
    assert!((2 * count..2 * count + 256).contains(&more.tokens()), "{} of {count}", more.tokens());
    let new = more.windows[all.len()..].iter().filter(|text| !all.contains(text)).count();
    assert!(2 * new > more.windows.len() - all.len(), "{new} of {}", more.windows.len() - all.len());
    assert!(Texts::of_lines("\n \n", &tokenizer, 256, 10).is_err());
}
