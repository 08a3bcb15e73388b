//! What calibration is worth on the bundled model, in perplexity on text that it was not calibrated on.

use quince_calibrate::{CollectOptions, RangeRule, Run, Statistics, Texts, activation_ranges, collect};
use quince_checkpoint::Checkpoint;
use quince_compress::{
    ActivationMode, Guide, Nbits, OptimizationConfig, Palette, activation_inputs, compress_guided, quantize_activations,
};
use quince_convert::{Options, convert};
use quince_engine::Engine;
use quince_mil::Program;
use quince_runtime::{Decoder, SpecialTokens, Tokenizer, Windows, perplexity};
use std::path::Path;
use std::sync::Arc;

fn model() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/tiny-llama"))
}

fn program() -> Program {
    let options = Options { functions: vec![quince_convert::FunctionName::Full], ..Options::default() };
    convert(&Checkpoint::open(model()).unwrap(), &options).unwrap().program
}

fn decoder(program: Program) -> Decoder {
    Decoder::new(Arc::new(Engine::load(program, quince_engine::Options::default()).unwrap())).unwrap()
}

fn measured(program: Program, tokenizer: &Tokenizer) -> f64 {
    let text = std::fs::read_to_string(model().join("heldout_stories.txt")).unwrap();
    let tokens = tokenizer.encode(&text[..12000], SpecialTokens::Omit).unwrap();
    let mut decoder = decoder(program);
    let windows = Windows::new(&decoder, Some(tokenizer), Some(256)).unwrap();
    perplexity(&mut decoder, &tokens, windows, &mut |_, _| ()).unwrap().perplexity
}

#[test]
fn calibration_saves_much_of_what_low_bits_cost() {
    let tokenizer = Tokenizer::from_dir(model()).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    // Other text than that which is measured. What the model writes itself depends on how a machine rounds, and tables of
    // few bits on what it wrote, by more than is asked for here.
    let text = std::fs::read_to_string(model().join("heldout_stories.txt")).unwrap();
    let texts = Texts::of_text(&text[12000..], &tokenizer, 256, 8192).unwrap();
    let mut runs = [Run { runner: &mut decoder(program()), texts }];
    collect(&program(), &mut runs, file.path(), CollectOptions::default(), &mut |_, _| ()).unwrap();
    let guide: Arc<dyn Guide> = Arc::new(Statistics::open(file.path()).unwrap());
    let original = measured(program(), &tokenizer);
    for (bits, most) in [(4, 0.3), (3, 0.35), (2, 0.35)] {
        let config = OptimizationConfig::all(Palette::kmeans(Nbits::new(bits).unwrap(), Some(16)).into());
        let [plain, calibrated] = [None, Some(guide.clone())].map(|guide| {
            let mut program = program();
            compress_guided(&mut program, &config, guide).unwrap();
            measured(program, &tokenizer)
        });
        assert!(calibrated - original < most * (plain - original), "{bits} bits: {original} {plain} {calibrated}");
    }
}

#[test]
fn activations_in_int8_cost_little() {
    let tokenizer = Tokenizer::from_dir(model()).unwrap();
    // Other text than that which is measured.
    let text = std::fs::read_to_string(model().join("heldout_stories.txt")).unwrap();
    let texts = Texts::of_text(&text[12000..20000], &tokenizer, 256, 2048).unwrap();
    let original = measured(program(), &tokenizer);
    let inputs: Vec<String> = activation_inputs(&program().functions[0]).map(|(_, name)| name).collect();
    for (rule, most) in [(RangeRule::MinMax, 1.01), (RangeRule::Percentile, 1.005), (RangeRule::Entropy, 1.01)] {
        let mut runs = [Run { runner: &mut decoder(program()), texts: texts.clone() }];
        let ranges = activation_ranges(&program(), &mut runs, rule, &mut |_, _| ()).unwrap();
        let mut program = program();
        let report = quantize_activations(&mut program, &ranges, ActivationMode::Symmetric).unwrap();
        assert!(report.left.is_empty() && inputs.iter().all(|name| report.quantized.contains(name)));
        let found = measured(program, &tokenizer);
        assert!(found != original && found < most * original, "{rule:?}: {original} {found}");
    }
}

#[test]
fn transcripts_go_through_the_template() {
    let tokenizer = Tokenizer::from_dir(model()).unwrap();
    let lines = "{\"messages\": [{\"role\": \"user\", \"content\": \"Who are you?\"}, \
                 {\"role\": \"assistant\", \"content\": \"A model.\"}]}\n\n{\"text\": \"One day a\\nfox.\"}\n";
    let texts = Texts::of_json_lines(lines, &tokenizer, 256, 1000).unwrap();
    let text = |window: &Vec<u32>| tokenizer.decode(window, SpecialTokens::Include).unwrap();
    let [conversation, plain] = &texts.windows.iter().map(text).collect::<Vec<_>>()[..] else { panic!("{texts:?}") };
    for part in ["user", "Who are you?", "assistant", "A model."] {
        assert!(conversation.contains(part), "{conversation}");
    }
    // The answer is there already: no header of another follows it.
    assert_eq!(conversation.matches("assistant").count(), 1, "{conversation}");
    assert!(plain.ends_with("One day a\nfox."), "{plain}");
    let pieces = Texts::of_json_lines(lines, &tokenizer, 4, 1000).unwrap();
    assert!(pieces.windows.len() > 4 && pieces.windows.iter().all(|piece| piece.len() <= 4));
    assert_eq!(pieces.tokens(), texts.tokens());
    assert_eq!(Texts::lines_of_json("{\"text\": \"One day a\\nfox.\"}").unwrap(), "One day a fox.\n");
    for (lines, expected) in [
        ("{\"text\": \"a\"}\n{\"prompt\": \"b\"}", "line 2: found neither `messages` nor `text`"),
        ("{\"text\": 7}", "line 1: `text`: found 7, expected a string"),
        ("{\"messages\": [{\"content\": \"b\"}]}", "found no `role`"),
        ("plain", "line 1: "),
    ] {
        let error = Texts::of_json_lines(lines, &tokenizer, 256, 1000).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}
