//! What a model is in float16: how large its values become on texts, which weights are scaled for it, and what is left of
//! the difference.

use crate::console::{Console, Counted, table};
use crate::failure::{Failure, Result};
use crate::options::calibration;
use quince_calibrate::{Extreme, Run, Texts, extremes};
use quince_convert::Converted;
use quince_convert::lower::{ComputeUnits, Precision as Type};
use quince_convert::rescale::{LARGEST, Peak, Rescale, Rescaled, rescaled};
use quince_engine::{Engine, Observed, Observer, Options, Precision, RangeReport};
use quince_mil::Program;
use quince_runtime::{Decoder, Embedder, LanguageModel, Tokenizer, Watch};
use quince_tensor::Error;
use serde::Serialize;
use std::collections::HashMap;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

/// The report in a bundle.
pub const REPORT: &str = "float16.json";

/// Tokens of a text.
const LENGTH: usize = 128;
/// Tokens of all texts.
const TOKENS: usize = 512;
/// Tokens that are compared one by one.
const COMPARED: usize = 48;

/// What is done about values that float16 cannot hold.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Fp16Rescale {
    /// Texts are run, and what overflows is scaled.
    Auto,
    /// Nothing.
    Off,
    /// The residual is scaled by 2 to the power of minus this, and what is left is looked at.
    Residual(i32),
}

impl FromStr for Fp16Rescale {
    type Err = String;

    fn from_str(text: &str) -> Result<Fp16Rescale, String> {
        match text {
            "auto" => return Ok(Fp16Rescale::Auto),
            "off" => return Ok(Fp16Rescale::Off),
            _ => {}
        }
        let ratio = |(a, b): (&str, &str)| Some(a.parse::<f32>().ok()? / b.parse::<f32>().ok()?);
        let factor = text.parse::<f32>().ok().or_else(|| text.split_once('/').and_then(ratio));
        let exponent = factor.map(|factor| (factor, -factor.log2()));
        match exponent {
            Some((factor, exponent)) if exponent.fract() == 0.0 && exponent.abs() <= 24.0 && factor > 0.0 => {
                Ok(Fp16Rescale::Residual(exponent as i32))
            }
            _ => Err("expected auto, off, or a power of two such as 0.25 or 1/64".to_owned()),
        }
    }
}

/// What was found, and done.
#[derive(Serialize)]
pub struct Check {
    tokens: usize,
    limit: f32,
    /// The values that were beyond half of what float16 holds, or the largest if none was.
    values: Vec<Row>,
    scaled: Vec<Scaled>,
    left: Vec<Left>,
    subnormal_weights: Vec<Subnormal>,
    copied_weights: Vec<String>,
    /// None where the functions alone do not read a text: `init` without `decode`.
    #[serde(skip_serializing_if = "Option::is_none")]
    strict: Option<Strict>,
}

#[derive(Serialize)]
struct Row {
    operation: String,
    #[serde(rename = "type")]
    kind: String,
    before: Size,
    after: Size,
}

#[derive(Serialize)]
struct Size {
    max_abs: f32,
    /// Of what float16 holds.
    fraction: f32,
}

#[derive(Serialize)]
struct Scaled {
    operation: String,
    operations: usize,
    factor: f32,
}

#[derive(Serialize)]
struct Left {
    operation: String,
    max_abs: f32,
    reason: String,
}

#[derive(Serialize)]
struct Subnormal {
    weight: String,
    share: f64,
}

/// The functions of the package with everything rounded to float16, on one of the texts.
#[derive(Serialize)]
struct Strict {
    overflowed: usize,
    nan: usize,
    /// Of logits or embeddings, against float32 without scales.
    psnr: Option<f64>,
}

impl Size {
    fn of(max_abs: f32) -> Size {
        Size { max_abs, fraction: max_abs / LARGEST }
    }

    fn text(&self) -> [String; 2] {
        [format!("{:.4e}", self.max_abs), format!("{:.3}", self.fraction)]
    }
}

/// What texts are made of.
pub struct Source<'a> {
    /// Of the checkpoint, if it has one.
    pub tokenizer: Option<&'a Tokenizer>,
    /// A file, instead of what comes with quince.
    pub text: Option<&'a Path>,
}

/// Looks at a conversion in float16, and scales what overflows.
///
/// # Errors
/// When the model cannot be run, or scaled as asked.
pub fn check(
    converted: Converted,
    units: ComputeUnits,
    how: Fp16Rescale,
    source: &Source,
    console: &Console,
) -> Result<(Converted, Option<Check>)> {
    if how == Fp16Rescale::Off || converted.settings.precision != Type::Float16 {
        return Ok((converted, None));
    }
    let exact = converted.exact(units)?;
    let before = measured(&exact, source, console)?;
    let peaks: Vec<Peak> = before.iter().map(peak).collect();
    let found = rescaled(
        &converted.semantic,
        match how {
            Fp16Rescale::Residual(exponent) => Rescale::Residual(exponent),
            _ => Rescale::Peaks(&peaks),
        },
    )?;
    let Rescaled { semantic, scales, unscaled, subnormal, copied } = found;
    let (converted, after) = match scales.is_empty() {
        true => (converted, before.clone()),
        false => {
            let converted = converted.with_semantic(semantic, units)?;
            let after = measured(&converted.exact(units)?, source, console)?;
            (converted, after)
        }
    };
    let mut left: Vec<Left> =
        unscaled.into_iter().map(|u| Left { operation: u.name, max_abs: u.largest, reason: u.reason }).collect();
    for extreme in after.iter().filter(|extreme| extreme.largest > LARGEST) {
        if !left.iter().any(|left| left.operation == extreme.name) {
            let reason = "it is beyond float16 also at the scale that was chosen".to_owned();
            left.push(Left { operation: extreme.name.clone(), max_abs: extreme.largest, reason });
        }
    }
    let strict = strict(&converted.program, exact.into_iter().next(), source, console)?;
    let check = Check {
        tokens: TOKENS,
        limit: LARGEST,
        values: rows(&before, &after),
        scaled: scales
            .iter()
            .map(|s| Scaled { operation: s.first.clone(), operations: s.operations, factor: s.factor() })
            .collect(),
        left,
        subnormal_weights: subnormal.into_iter().map(|(weight, share)| Subnormal { weight, share }).collect(),
        copied_weights: copied,
        strict,
    };
    Ok((converted, Some(check)))
}

fn peak(extreme: &Extreme) -> Peak {
    Peak { name: extreme.name.clone(), kind: extreme.kind.clone(), largest: extreme.largest }
}

/// How large values become, of the model and of each adapter.
fn measured(programs: &[Program], source: &Source, console: &Console) -> Result<Vec<Extreme>> {
    let bar = console.bar("looking at values", 0, Counted::Things("texts"));
    let mut all: Vec<Extreme> = Vec::new();
    let mut numbers: HashMap<String, usize> = HashMap::new();
    for program in programs {
        let mut runner = Model::new(program.clone(), Precision::Exact, console)?;
        let texts = runner.texts(source)?;
        let mut runs = [Run { runner: runner.runner(), texts }];
        for found in extremes(&mut runs, &mut |done, total| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        })? {
            match numbers.get(&found.name) {
                Some(&number) => all[number].largest = all[number].largest.max(found.largest),
                None => {
                    numbers.insert(found.name.clone(), all.len());
                    all.push(found);
                }
            }
        }
    }
    bar.finish_and_clear();
    Ok(all)
}

/// What was beyond half of the limit before, or the largest value.
fn rows(before: &[Extreme], after: &[Extreme]) -> Vec<Row> {
    let later: HashMap<&str, f32> = after.iter().map(|extreme| (extreme.name.as_str(), extreme.largest)).collect();
    let row = |extreme: &Extreme| Row {
        operation: extreme.name.clone(),
        kind: extreme.kind.clone(),
        before: Size::of(extreme.largest),
        after: Size::of(later.get(extreme.name.as_str()).copied().unwrap_or(0.0)),
    };
    let large: Vec<Row> = before.iter().filter(|extreme| extreme.largest > LARGEST / 2.0).map(row).collect();
    match large.is_empty() {
        true => before.iter().max_by(|a, b| a.largest.total_cmp(&b.largest)).map(row).into_iter().collect(),
        false => large,
    }
}

/// A program that reads texts, of one kind or the other.
enum Model {
    Decoder(Box<Decoder>),
    Embedder(Box<Embedder>),
}

impl Model {
    fn new(program: Program, precision: Precision, console: &Console) -> Result<Model> {
        let options = Options { threads: console.threads(), precision, limits: console.limits() };
        let engine = Arc::new(Engine::load(program, options)?);
        Ok(match Decoder::new(engine.clone()) {
            Ok(decoder) => Model::Decoder(Box::new(decoder)),
            Err(error) => Model::Embedder(Box::new(Embedder::new(engine).map_err(|_| error)?)),
        })
    }

    fn runner(&mut self) -> &mut dyn quince_calibrate::Runner {
        match self {
            Model::Decoder(decoder) => &mut **decoder,
            Model::Embedder(embedder) => &mut **embedder,
        }
    }

    /// A text of the language that models are made for, and one of any tokens.
    fn texts(&self, source: &Source) -> Result<Texts> {
        let (longest, vocabulary) = match self {
            Model::Decoder(decoder) => (decoder.context(), decoder.vocab_size()),
            Model::Embedder(embedder) => (embedder.shapes().longest(), embedder.vocab_size().unwrap_or(1)),
        };
        let sizes @ [length, _] = [LENGTH.min(longest), TOKENS];
        let mut texts = match (source.tokenizer, self, source.text) {
            (Some(tokenizer), Model::Decoder(_), Some(path)) => calibration::windows(path, tokenizer, sizes)?,
            (Some(tokenizer), Model::Embedder(_), Some(path)) => calibration::sentences(path, tokenizer, sizes)?,
            (Some(tokenizer), Model::Decoder(_), None) => Texts::of_text(Texts::BUILT_IN, tokenizer, length, TOKENS)?,
            (Some(tokenizer), Model::Embedder(_), None) => Texts::of_lines(Texts::BUILT_IN, tokenizer, length, TOKENS)?,
            (None, ..) => Texts::default(),
        };
        texts.windows.extend(Texts::of_vocabulary(vocabulary, length).windows);
        texts.windows.iter_mut().for_each(|text| text.retain(|token| (*token as usize) < vocabulary));
        texts.windows.retain(|text| !text.is_empty());
        Ok(texts)
    }

    /// What it makes of a text, number by number.
    fn answer(&mut self, text: &[u32]) -> Result<Vec<f32>> {
        let mut values = Vec::new();
        match self {
            Model::Decoder(decoder) => {
                let Some(&route) = decoder.routes().first() else {
                    return Err(Failure::usage("found no function that reads a text"));
                };
                decoder.score(route, text, &mut |_, row| {
                    values.extend_from_slice(row);
                    Ok(())
                })?;
            }
            Model::Embedder(embedder) => values = embedder.embed(&[text], &mut |_| ())?.values,
        }
        Ok(values)
    }
}

/// What is left of the package's functions when everything is rounded.
fn strict(program: &Program, exact: Option<Program>, source: &Source, console: &Console) -> Result<Option<Strict>> {
    let Ok(mut package) = Model::new(program.clone(), Precision::Strict, console) else { return Ok(None) };
    let Some(text) = package.texts(source)?.windows.into_iter().next() else { return Ok(None) };
    let mut seen = Seen(RangeReport::default());
    package.runner().observe(&text, &mut seen)?;
    let findings = seen.0.findings();
    let overflowed = findings.iter().map(|finding| finding.rounding.overflowed).sum();
    let nan = findings.iter().filter(|finding| !finding.rounding.carried).map(|finding| finding.rounding.nan).sum();
    let text = &text[..text.len().min(COMPARED)];
    let found = package.answer(text)?;
    let expected = match exact {
        Some(exact) => Model::new(exact, Precision::Exact, console)?.answer(text)?,
        None => Vec::new(),
    };
    Ok(Some(Strict { overflowed, nan, psnr: psnr(&found, &expected) }))
}

/// The ratio of the largest value to the error, in decibels; none where a value is not finite or nothing can be compared.
fn psnr(found: &[f32], expected: &[f32]) -> Option<f64> {
    if found.len() != expected.len() || found.is_empty() || found.iter().any(|x| !x.is_finite()) {
        return None;
    }
    let peak = expected.iter().fold(0f64, |peak, x| peak.max(f64::from(x.abs())));
    let error: f64 = found.iter().zip(expected).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    // Equal values are as near as can be said.
    Some((20.0 * (peak / (error / found.len() as f64).sqrt()).log10()).min(999.0))
}

struct Seen(RangeReport);

impl Watch for Seen {
    fn enter(&mut self, function: &str) {
        self.0.begin(function);
    }
}

impl Observer for Seen {
    fn value(&mut self, value: &Observed) -> quince_tensor::Result<()> {
        self.0.value(value)
    }
}

impl Check {
    /// What the user should know, a sentence each.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Some(left) = self.left.first() {
            let more = match self.left.len() {
                1 => String::new(),
                several => format!(" and {} more", several - 1),
            };
            warnings.push(format!(
                "`{}`{more} reaches {:.4e}, beyond float16, and cannot be scaled: {}; --compute-precision float32 holds it",
                left.operation, left.max_abs, left.reason
            ));
        }
        if let Some(worst) = self.subnormal_weights.iter().max_by(|a, b| a.share.total_cmp(&b.share))
            && worst.share > 0.01
        {
            let share = 100.0 * worst.share;
            warnings
                .push(format!("scaled, {share:.1} % of `{}` lose digits: they are subnormal in float16", worst.weight));
        }
        if let Some(copied) = self.copied_weights.first() {
            warnings.push(format!("`{copied}` is stored twice, because it is needed at two scales"));
        }
        warnings
    }

    /// For machines, in the bundle.
    ///
    /// # Errors
    /// When a number cannot be written.
    pub fn json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self).map_err(|e| Error::new(e.to_string()))? + "\n")
    }

    /// For people.
    pub fn text(&self) -> String {
        const SHOWN: usize = 12;
        let row = |row: &Row| {
            let names = [row.operation.clone(), row.kind.clone()];
            names.into_iter().chain(row.before.text()).chain(row.after.text()).collect()
        };
        let heading = ["operation", "type", "max |x|", "of 65504", "scaled", "of 65504"];
        let mut text = table(&heading, &[2, 3, 4, 5], self.values.iter().take(SHOWN).map(row));
        if self.values.len() > SHOWN {
            text += &format!("and {} more operations\n", self.values.len() - SHOWN);
        }
        for scaled in &self.scaled {
            let (operations, factor) = (scaled.operations, scaled.factor);
            text += &format!("`{}` and all {operations} values of its scale: times {factor}\n", scaled.operation);
        }
        for left in &self.left {
            text += &format!("left: `{}` reaches {:.4e}: {}\n", left.operation, left.max_abs, left.reason);
        }
        let Some(strict) = &self.strict else { return text };
        let against = match strict.psnr {
            Some(psnr) => format!("{psnr:.1} dB against float32"),
            None => "no finite answer".to_owned(),
        };
        text += &match (strict.overflowed, strict.nan) {
            (0, 0) => format!("float16: no overflow, {against}\n"),
            (overflowed, nan) => format!("float16: {overflowed} overflows, {nan} NaN, {against}\n"),
        };
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_are_powers_of_two() {
        let parsed = |text: &str| text.parse::<Fp16Rescale>().ok();
        assert_eq!(parsed("auto"), Some(Fp16Rescale::Auto));
        assert_eq!(parsed("0.25"), Some(Fp16Rescale::Residual(2)));
        assert_eq!(parsed("1/64"), Some(Fp16Rescale::Residual(6)));
        assert_eq!(parsed("8"), Some(Fp16Rescale::Residual(-3)));
        for wrong in ["0.3", "0", "-1", "nan", "inf", "1/0", "some", "1e-30"] {
            assert_eq!(parsed(wrong), None, "{wrong}");
        }
    }
}
