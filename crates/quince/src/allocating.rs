//! Compression as commands do it: by rules, or by a search for what loses least within a budget.

use crate::console::{Console, Counted};
use crate::failure::Result;
use crate::options::calibration::Calibration;
use crate::options::compression::{Asked, Ways};
use crate::stored;
use crate::units;
use quince_calibrate::Texts;
use quince_compress::{OptimizationConfig, Report, compress_guided};
use quince_engine::{Engine, Options, Precision};
use quince_mil::Program;
use quince_mlpackage::Package;
use quince_runtime::{Decoder, Embedder, Tokenizer};
use quince_sweep::{Budget, Effort, Found, Judge, Measure, Search, Subject, search};
use serde::Serialize;
use std::sync::Arc;

/// Tokens that models are compared on, at least and at most, and the multiplications that a run should not be above.
const TOKENS: (u64, u64) = (512, 1024);
const RUN: u64 = 4_000_000_000;
/// Tokens of each kind of text that finalists are compared on, likewise.
const PROOF: (u64, u64) = (512, 4096);
/// One token of so many that a decoder is run on is of a text that it did not write.
const FOREIGN: usize = 8;
/// The most parameters of models whose weights are calibrated to see what they lose.
const CALIBRATED: u64 = 50_000_000;
/// Tokens of a text that a decoder writes.
const LENGTH: usize = 256;

/// What is compressed.
pub struct Target<'a> {
    /// The package; its program is compressed.
    pub package: &'a mut Package,
    /// A program with the same weights that is fast on whole texts, if there is one beside the package's.
    pub judged: Option<&'a Program>,
    /// How weights are compressed by what they are multiplied with, if that is asked for.
    pub calibration: Option<Calibration<'a>>,
    /// The tokenizer for texts.
    pub tokenizer: Option<Tokenizer>,
}

/// What was done.
pub struct Compressed {
    /// The rules, given or found.
    pub config: OptimizationConfig,
    /// What they touched.
    pub report: Report,
    /// What was found, if it was looked for.
    pub allocation: Option<Allocation>,
}

/// What a search found.
#[derive(Clone, Debug, Serialize)]
pub struct Allocation {
    /// Bytes of the package.
    package_bytes: u64,
    /// Bytes of the weights that could be compressed.
    weight_bytes: u64,
    /// Bits that each of them takes in the mean.
    bits_per_weight: f64,
    /// The uncompressed model on the texts of the search, and the compressed one; nothing if it could not be run.
    uncompressed: Option<Measure>,
    compressed: Option<Measure>,
    /// The same scheme for all weights within the budget, of those that which does best.
    uniform: Option<Uniform>,
}

/// The same scheme for all weights.
#[derive(Clone, Debug, Serialize)]
struct Uniform {
    scheme: String,
    measure: Measure,
}

/// Compresses the program of a package.
///
/// # Errors
/// When a rule touches nothing, nothing fits the budget, or the program cannot be run.
pub fn compress(target: Target, asked: Asked, console: &Console) -> Result<Compressed> {
    let (config, allocation) = match asked {
        Asked::Rules(config) => (config, None),
        Asked::Search(ways) => {
            let (found, uncompressed) = look(&target, ways, console)?;
            (found.config.clone(), Some(Allocation::of(&found, uncompressed)))
        }
    };
    let program = &mut target.package.program;
    let report = match &target.calibration {
        Some(calibration) => calibration.compress(program, target.judged, &config, console)?,
        None => compress_guided(program, &config, None)?,
    };
    Ok(Compressed { config, report, allocation })
}

fn look(target: &Target, ways: Ways, console: &Console) -> Result<(Found, Option<Measure>)> {
    let judged = target.judged.unwrap_or(&target.package.program);
    let options = Options { threads: console.threads(), precision: Precision::Default, limits: console.limits() };
    let parameters: u64 = stored::weights(judged).iter().map(|weight| weight.parameters()).sum();
    let within = |(least, most): (u64, u64)| (RUN / parameters.max(1)).clamp(least, most) as usize;
    let tokens = within(TOKENS);
    let judge = match texts(target, judged, [tokens, within(PROOF)], &options, console)? {
        Some((windows, proofs)) => Some(Judge::new(judged.clone(), windows, options)?.with_proofs(proofs)),
        None => {
            console.note("note: the program takes no text: squared errors of weights stand for what is lost");
            None
        }
    };
    let measure = |program: &Program| {
        let mut package = target.package.clone();
        package.program = program.clone();
        package.measure()
    };
    // A large model would be calibrated a dozen times over: what its weights lose by their values alone tells enough.
    let calibration = target.calibration.as_ref().filter(|_| parameters <= CALIBRATED);
    let guide = calibration
        .map(|calibration| calibration.guide(&target.package.program, target.judged, console))
        .transpose()?;
    let subject = Subject { program: &target.package.program, judged, guide, measure: &measure };
    let effort = Effort::of(parameters, tokens);
    let wanted = Search { schemes: ways.schemes, rungs: ways.rungs, budget: ways.budget, effort };
    let bar = console.bar("measuring", 0, Counted::Things("runs"));
    let found = search(&subject, judge.as_ref(), &wanted, &mut |what, done, total| {
        bar.set_prefix(what);
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    let option = match ways.budget {
        Budget::Package(_) => "--target-size",
        Budget::BitsPerWeight(_) => "--bits-per-weight",
    };
    Ok((found.map_err(|e| e.at(option))?, judge.map(|judge| judge.own())))
}

type Windows = Vec<Vec<u32>>;

/// The texts that a program is run on, and others by kind for a proof; nothing if it takes none.
fn texts(
    target: &Target,
    judged: &Program,
    [tokens, proof]: [usize; 2],
    options: &Options,
    console: &Console,
) -> Result<Option<(Windows, Vec<Windows>)>> {
    let engine = Arc::new(Engine::load(judged.clone(), options.clone())?);
    let tokenizer = target.tokenizer.as_ref();
    if let Ok(mut decoder) = Decoder::new(engine.clone()) {
        let mut windows = written(&mut decoder, tokenizer, tokens + proof, console)?.windows;
        let (mut seen, length) = (0, windows.iter().map(Vec::len).max().unwrap_or(2));
        let enough = windows.iter().take_while(|window| {
            seen += window.len();
            seen <= tokens
        });
        let own = windows.split_off(enough.count().max(1).min(windows.len()));
        let Some(tokenizer) = tokenizer else { return Ok(Some((windows, vec![own]))) };
        // What the model is used to, and a little that it is not, where more is lost for each token: a choice that is
        // good for one only is not good.
        let mut foreign = Texts::of_text(Texts::BUILT_IN, tokenizer, length, usize::MAX)?.windows;
        let known = foreign.len().min((tokens / FOREIGN).div_ceil(length));
        windows.extend(foreign.drain(..known));
        foreign.truncate(proof.div_ceil(length));
        return Ok(Some((windows, vec![own, foreign])));
    }
    let (Ok(encoder), Some(tokenizer)) = (Embedder::new(engine), tokenizer) else { return Ok(None) };
    let length = encoder.shapes().longest().min(LENGTH);
    Ok(Some((Texts::of_lines(Texts::BUILT_IN, tokenizer, length, tokens)?.windows, Vec::new())))
}

/// What a decoder writes itself.
fn written(decoder: &mut Decoder, tokenizer: Option<&Tokenizer>, tokens: usize, console: &Console) -> Result<Texts> {
    let longest = decoder.routes().first().map_or(0, |&route| decoder.longest(route));
    let begin = tokenizer.map(|tokenizer| tokenizer.begin_of_text()).transpose()?.flatten();
    let ends = tokenizer.map_or(&[][..], |tokenizer| tokenizer.eos());
    let bar = console.bar("writing texts", tokens as u64, Counted::Things("tokens"));
    let texts = Texts::written_by(decoder, begin, ends, [LENGTH.min(longest), tokens], &mut |done| {
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    Ok(texts?)
}

impl Allocation {
    fn of(found: &Found, uncompressed: Option<Measure>) -> Allocation {
        let elements: u64 = found.picks.iter().map(|pick| pick.elements).sum();
        Allocation {
            package_bytes: found.package_bytes,
            weight_bytes: found.weight_bytes,
            bits_per_weight: found.weight_bytes as f64 * 8.0 / elements.max(1) as f64,
            uncompressed,
            compressed: found.measure,
            uniform: found.uniform.map(|(scheme, measure)| Uniform { scheme: scheme.to_string(), measure }),
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let (package, bits) = (units::bytes(self.package_bytes), self.bits_per_weight);
        let mut text =
            format!("allocated: package of {package} ({} bytes), {bits:.3} bits per weight", self.package_bytes);
        text += &self.compressed.map_or("\n".to_owned(), |measure| format!("; {measure}\n"));
        if let Some(uniform) = &self.uniform {
            text += &format!("the best uniform scheme within it, {}: {}\n", uniform.scheme, uniform.measure);
        }
        text
    }
}
