//! Budgets on the bundled model: they hold, they are filled, and what is lost is not more than by the same scheme for all.

use quince_checkpoint::Checkpoint;
use quince_compress::{Nbits, Palette, Scheme, compress_guided, graft};
use quince_convert::lower::KvCache;
use quince_convert::{FunctionName, Options as Conversion, convert};
use quince_engine::Options;
use quince_mil::Program;
use quince_mlpackage::Package;
use quince_runtime::{SpecialTokens, Tokenizer};
use quince_sweep::{Budget, Effort, Found, Judge, Search, Subject, search};
use std::path::Path;

fn model() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/tiny-llama"))
}

/// The program of a package, and one without a cache.
fn programs() -> [Program; 2] {
    let checkpoint = Checkpoint::open(model()).unwrap();
    let full = Conversion { functions: vec![FunctionName::Full], kv_cache: KvCache::None, ..Conversion::default() };
    [Conversion::default(), full].map(|options| convert(&checkpoint, &options).unwrap().program)
}

fn judge(full: &Program) -> Judge {
    let tokenizer = Tokenizer::from_dir(model()).unwrap();
    let text = std::fs::read_to_string(model().join("heldout_stories.txt")).unwrap();
    let tokens = tokenizer.encode(&text, SpecialTokens::Omit).unwrap();
    let windows = tokens.chunks(128).take(2).map(<[u32]>::to_vec).collect();
    Judge::new(full.clone(), windows, Options::default()).unwrap()
}

fn size(program: &Program) -> quince_tensor::Result<u64> {
    Package::new(program.clone()).measure()
}

fn found(budget: Budget, judge: Option<&Judge>) -> Found {
    let [program, full] = programs();
    let groups = [Some(16), None];
    let palette = |group, nbits| -> Scheme { Palette::kmeans(nbits, group).into() };
    let schemes = groups.iter().flat_map(|&group| Nbits::ALL[1..].iter().map(move |&nbits| palette(group, nbits)));
    let wanted = Search { schemes: schemes.collect(), rungs: (0..5).collect(), budget, effort: Effort { runs: 24 } };
    let subject = Subject { program: &program, judged: &full, guide: None, measure: &size };
    search(&subject, judge, &wanted, &mut |_, _, _| {}).unwrap()
}

#[test]
fn a_budget_is_filled_and_nothing_uniform_within_it_is_better() {
    let [program, full] = programs();
    let judge = judge(&full);
    for target in [750_000, 1_300_000] {
        let found = found(Budget::Package(target), Some(&judge));
        let mut compressed = program.clone();
        compress_guided(&mut compressed, &found.config, None).unwrap();
        let bytes = size(&compressed).unwrap();
        assert!(bytes <= target && bytes * 100 >= target * 99, "{bytes} of {target}");
        assert_eq!(bytes, found.package_bytes);
        let (own, uniform) = (found.measure.unwrap().loss(), found.uniform.unwrap().1.loss());
        assert!(own <= uniform, "{own} {uniform}");
    }
}

#[test]
fn without_running_the_model_a_budget_is_filled_too() {
    let found = found(Budget::BitsPerWeight(3.3), None);
    let elements: u64 = found.picks.iter().map(|pick| pick.elements).sum();
    let bits = found.weight_bytes as f64 * 8.0 / elements as f64;
    assert!(bits <= 3.3 && bits > 3.267, "{bits}");
    assert!(found.measure.is_none());
}

#[test]
fn weights_of_a_package_go_into_another_function() {
    let [program, full] = programs();
    let config = found(Budget::BitsPerWeight(4.0), None).config;
    let [mut shipped, mut other] = [program, full.clone()];
    compress_guided(&mut shipped, &config, None).unwrap();
    compress_guided(&mut other, &config, None).unwrap();
    let expected = judge(&full).judge(other.clone()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.mlpackage");
    let measured = size(&shipped).unwrap();
    let written = Package::new(shipped).write(&path, &mut |_| Ok(())).unwrap();
    let manifest = std::fs::metadata(path.join("Manifest.json")).unwrap().len();
    assert_eq!(measured, written.model_bytes + written.weight_bytes + manifest);
    graft(&mut other, &Package::read(&path).unwrap().program).unwrap();
    assert_eq!(judge(&full).judge(other).unwrap(), expected);
    assert!(graft(&mut full.clone(), &Program::default()).is_ok());
}
