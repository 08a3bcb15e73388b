//! The way to compress each weight that loses least within a budget.

use crate::finals::{self, Kind, Run};
use crate::sensitivity::{Candidate, Effort, Sensitivities, candidates};
use crate::{Judge, Measure, Proof};
use quince_compress::{
    Choice, Guide, OptimizationConfig, Rule, Scheme, Selector, allocate, allocated_bytes, compress, compress_guided,
};
use quince_mil::{Program, Result, bail};
use std::collections::BTreeMap;
use std::sync::Arc;

/// How near the budget a result is, from below: at least this share of it.
pub const FULL: f64 = 0.99;
/// How often an allocation is corrected for what a package has beside its weights.
const CORRECTIONS: usize = 8;

/// How many uniform schemes are run.
const UNIFORM: usize = 3;

/// What all weights may take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// The files of the package together, in bytes.
    Package(u64),
    /// Bits of all weights that may be compressed, tables and scales included, by their number.
    BitsPerWeight(f64),
}

/// What is looked for.
#[derive(Clone, Debug)]
pub struct Search {
    /// The ways to compress a weight; not at all is one more.
    pub schemes: Vec<Scheme>,
    /// Numbers of those that the model is run with, from few bits to many.
    pub rungs: Vec<usize>,
    /// What must hold.
    pub budget: Budget,
    /// How often the model may be run.
    pub effort: Effort,
}

/// What is compressed.
pub struct Subject<'a> {
    /// What is to be packaged.
    pub program: &'a Program,
    /// A program with the same weights that the judge takes, best one with a function without a cache.
    pub judged: &'a Program,
    /// What the weights are multiplied with.
    pub guide: Option<Arc<dyn Guide>>,
    /// The bytes of the files of a package of a program.
    pub measure: &'a dyn Fn(&Program) -> Result<u64>,
}

/// What was found.
#[derive(Clone, Debug)]
pub struct Found {
    /// Rules that make it so.
    pub config: OptimizationConfig,
    /// By weight.
    pub picks: Vec<Pick>,
    /// How the model does with it, if it was run.
    pub measure: Option<Measure>,
    /// How it does where all weights have the same scheme, of those within the budget that which does best.
    pub uniform: Option<(Scheme, Measure)>,
    /// The bytes of the weights.
    pub weight_bytes: u64,
    /// The bytes of the package.
    pub package_bytes: u64,
}

/// What becomes of a weight.
#[derive(Clone, Debug)]
pub struct Pick {
    /// Its name.
    pub name: String,
    /// How it is compressed, if it is.
    pub scheme: Option<Scheme>,
    /// Its elements.
    pub elements: u64,
    /// Its bytes.
    pub bytes: u64,
}

/// Finds it: sensitivities, then the allocation that loses least by them, which is run beside the best uniform schemes,
/// also with what they leave of the budget spent. One that is not uniform has to do better on all kinds of text of the
/// judge's proofs, by more than chance explains. Without a judge the squared errors of the weights
/// stand for what is lost.
///
/// # Errors
/// A budget that the smallest forms exceed; what the engine reports.
pub fn search(
    subject: &Subject,
    judge: Option<&Judge>,
    search: &Search,
    progress: &mut dyn FnMut(&'static str, usize, usize),
) -> Result<Found> {
    let candidates = candidates(subject.program, &search.schemes)?;
    if candidates.is_empty() {
        bail!("found no weight that could be compressed, expected some"; hint: "weights that are compressed already stay as they are");
    }
    let mut fitting = Fitting { subject, search, candidates: &candidates, overhead: 0 };
    fitting.check()?;
    let Some(judge) = judge else {
        let choices = fitting.choices(&Sensitivities::of_weights(&candidates, &search.schemes)?);
        let picks = fitting.fit(&choices)?;
        return fitting.found(&picks, None, None);
    };
    let sensitivities = Sensitivities::measure(
        (subject.judged, judge, subject.guide.as_ref()),
        &candidates,
        (&search.schemes, &search.rungs, fitting.mean_bits()),
        search.effort,
        &mut |done, total| progress("sensitivities", done, total),
    )?;
    let choices = fitting.choices(&sensitivities);
    let uniform = fitting.uniform(&choices);
    let mut finalists = Vec::new();
    for (scheme, picks) in uniform {
        let fills = fitting.fills(&picks)?;
        // What a uniform scheme leaves may be too little for anything.
        match fitting.fit(&above(&choices, &picks)) {
            Ok(more) => finalists.push((if fills { Kind::Other } else { Kind::Base }, more)),
            Err(_) if fitting.fits(&picks)? && !fills => finalists.push((Kind::Base, picks.clone())),
            Err(_) => {}
        }
        finalists.push((Kind::Uniform { scheme, fills }, picks));
    }
    finalists.push((Kind::Other, fitting.fit(&choices)?));
    let mut runs = Vec::with_capacity(finalists.len());
    for (done, (kind, picks)) in finalists.iter().enumerate() {
        progress("allocations", done, finalists.len());
        let (measure, proof) = fitting.prove(judge, picks)?;
        runs.push(Run { kind: *kind, measure, proof });
    }
    progress("allocations", finalists.len(), finalists.len());
    let Some(best) = finals::winner(&runs) else { bail!("found no allocation") };
    fitting.found(&finalists[best].1, Some(runs[best].measure), finals::best_uniform(&runs))
}

/// An allocation on its way.
struct Fitting<'a> {
    subject: &'a Subject<'a>,
    search: &'a Search,
    candidates: &'a [Candidate],
    /// Bytes of the package beside the weights, as far as is known.
    overhead: u64,
}

impl Fitting<'_> {
    /// Refuses budgets that nothing fits into.
    fn check(&mut self) -> Result<()> {
        let smallest: u64 = self.candidates.iter().map(|c| c.bytes.iter().flatten().copied().min().unwrap_or(0)).sum();
        match self.search.budget {
            Budget::BitsPerWeight(bits) => {
                let least = smallest as f64 * 8.0 / self.elements() as f64;
                if bits < least {
                    bail!(
                        "found {bits} bits for a weight, expected at least {least:.3}, which the smallest forms take"
                    );
                }
            }
            Budget::Package(bytes) => {
                let picks: Vec<usize> = self.candidates.iter().map(smallest_form).collect();
                let least = self.package(&picks)?;
                self.overhead = least.saturating_sub(smallest);
                if bytes < least {
                    bail!("found {bytes} bytes for the package, expected at least {least}, which the smallest forms take"; hint: "a package is its weights, the program, and a manifest");
                }
            }
        }
        Ok(())
    }

    fn elements(&self) -> u64 {
        self.candidates.iter().map(Candidate::elements).sum()
    }

    /// The bytes that weights may take.
    fn weight_budget(&self) -> u64 {
        match self.search.budget {
            Budget::BitsPerWeight(bits) => (bits * self.elements() as f64 / 8.0) as u64,
            Budget::Package(bytes) => bytes.saturating_sub(self.overhead),
        }
    }

    fn mean_bits(&self) -> f64 {
        self.weight_budget() as f64 * 8.0 / self.elements().max(1) as f64
    }

    /// The forms of each weight; the last is not to compress it.
    fn choices(&self, sensitivities: &Sensitivities) -> Vec<Vec<Choice>> {
        let of = |(candidate, losses): (&Candidate, &Vec<Option<f64>>)| {
            let compressed = candidate.bytes.iter().zip(losses).map(|(bytes, loss)| match (bytes, loss) {
                (Some(bytes), Some(loss)) => Choice { bytes: *bytes, loss: *loss },
                // What a weight cannot take is never chosen: it is dearer than to leave it, and worse.
                _ => Choice { bytes: candidate.dense_bytes() + 1, loss: f64::INFINITY },
            });
            compressed.chain([Choice { bytes: candidate.dense_bytes(), loss: 0.0 }]).collect()
        };
        self.candidates.iter().zip(&sensitivities.losses).map(of).collect()
    }

    /// The allocation that fills the budget.
    fn fit(&mut self, choices: &[Vec<Choice>]) -> Result<Vec<usize>> {
        let Budget::Package(target) = self.search.budget else { return allocate(choices, self.weight_budget()) };
        let mut fits: Option<(u64, Vec<usize>)> = None;
        for _ in 0..CORRECTIONS {
            let picks = allocate(choices, self.weight_budget())?;
            let bytes = self.package(&picks)?;
            let weights = allocated_bytes(choices, &picks);
            if bytes <= target && fits.as_ref().is_none_or(|(best, _)| bytes > *best) {
                fits = Some((bytes, picks));
            }
            if bytes <= target && bytes as f64 >= FULL * target as f64 {
                break;
            }
            let overhead = bytes.saturating_sub(weights);
            // Forms with more parts have more overhead; half the way back keeps from going to and fro.
            self.overhead =
                if bytes > target { overhead.max(self.overhead + 1) } else { (overhead + self.overhead) / 2 };
        }
        match fits {
            Some((_, picks)) => Ok(picks),
            None => bail!("found no allocation of {target} bytes or less"; hint: "ask for a little more"),
        }
    }

    /// Whether an allocation fills the budget.
    fn fills(&self, picks: &[usize]) -> Result<bool> {
        let (bytes, budget) = match self.search.budget {
            Budget::Package(target) => (self.package(picks)?, target),
            Budget::BitsPerWeight(_) => {
                let bytes = |(candidate, &pick): (&Candidate, &usize)| candidate.bytes_of(pick);
                (self.candidates.iter().zip(picks).map(bytes).sum(), self.weight_budget())
            }
        };
        Ok(bytes <= budget && bytes as f64 >= FULL * budget as f64)
    }

    /// Whether an allocation keeps to the budget.
    fn fits(&self, picks: &[usize]) -> Result<bool> {
        Ok(match self.search.budget {
            Budget::Package(target) => self.package(picks)? <= target,
            Budget::BitsPerWeight(_) => true,
        })
    }

    /// Of each family of schemes that differ in bits only: the one with the most bits that fits, for all weights. Those
    /// that should lose least come first, and few are run.
    fn uniform(&self, choices: &[Vec<Choice>]) -> Vec<(Scheme, Vec<usize>)> {
        let budget = self.weight_budget();
        let mut families: BTreeMap<String, (f64, Scheme, Vec<usize>)> = BTreeMap::new();
        for (number, &scheme) in self.search.schemes.iter().enumerate() {
            let dense = self.search.schemes.len();
            let pick = |candidate: &Candidate| if candidate.bytes[number].is_some() { number } else { dense };
            let picks: Vec<usize> = self.candidates.iter().map(pick).collect();
            if allocated_bytes(choices, &picks) > budget {
                continue;
            }
            // What a scheme says after its bits.
            let family = scheme.to_string().split_once("-bit").map_or(String::new(), |(_, rest)| rest.to_owned());
            let known = families.get(&family).map_or(0.0, |(bits, ..)| *bits);
            if scheme.bits() > known {
                families.insert(family, (scheme.bits(), scheme, picks));
            }
        }
        let loss = |picks: &[usize]| choices.iter().zip(picks).map(|(choices, &pick)| choices[pick].loss).sum::<f64>();
        let mut found: Vec<(Scheme, Vec<usize>)> =
            families.into_values().map(|(_, scheme, picks)| (scheme, picks)).collect();
        found.sort_by(|a, b| loss(&a.1).total_cmp(&loss(&b.1)));
        found.truncate(UNIFORM);
        found
    }

    fn package(&self, picks: &[usize]) -> Result<u64> {
        let mut program = self.subject.program.clone();
        compress(&mut program, &self.config(picks))?;
        (self.subject.measure)(&program)
    }

    fn prove(&self, judge: &Judge, picks: &[usize]) -> Result<(Measure, Proof)> {
        let mut program = self.subject.judged.clone();
        compress_guided(&mut program, &self.config(picks), self.subject.guide.clone())?;
        judge.prove(program)
    }

    /// The scheme of most elements for all weights, and others by name.
    fn config(&self, picks: &[usize]) -> OptimizationConfig {
        let scheme = |pick: usize| self.search.schemes.get(pick).copied();
        let mut elements: BTreeMap<usize, u64> = BTreeMap::new();
        for (candidate, &pick) in self.candidates.iter().zip(picks) {
            *elements.entry(pick).or_default() += candidate.elements();
        }
        let most = elements.into_iter().max_by_key(|(_, count)| *count).map_or(0, |(pick, _)| pick);
        let default = Rule { selector: Selector::Default, scheme: scheme(most) };
        let named = self.candidates.iter().zip(picks).filter(|(_, pick)| **pick != most);
        let named = named.map(|(c, &pick)| Rule { selector: Selector::Name(c.name.clone()), scheme: scheme(pick) });
        let rules = [default].into_iter().chain(named).collect();
        OptimizationConfig { rules, weight_threshold: OptimizationConfig::WEIGHT_THRESHOLD }
    }

    fn found(&self, picks: &[usize], measure: Option<Measure>, uniform: Option<(Scheme, Measure)>) -> Result<Found> {
        let pick = |(candidate, &pick): (&Candidate, &usize)| Pick {
            name: candidate.name.clone(),
            scheme: self.search.schemes.get(pick).copied(),
            elements: candidate.elements(),
            bytes: candidate.bytes_of(pick),
        };
        let list: Vec<Pick> = self.candidates.iter().zip(picks).map(pick).collect();
        Ok(Found {
            config: self.config(picks),
            measure,
            uniform,
            weight_bytes: list.iter().map(|pick| pick.bytes).sum(),
            package_bytes: self.package(picks)?,
            picks: list,
        })
    }
}

/// The number of the form that takes the fewest bytes.
fn smallest_form(candidate: &Candidate) -> usize {
    let forms = candidate.bytes.iter().enumerate().filter_map(|(i, bytes)| Some((i, (*bytes)?)));
    let least = forms.min_by_key(|(_, bytes)| *bytes);
    least.filter(|(_, bytes)| *bytes <= candidate.dense_bytes()).map_or(candidate.bytes.len(), |(i, _)| i)
}

/// The choices that lose no more than those picked.
fn above(choices: &[Vec<Choice>], picks: &[usize]) -> Vec<Vec<Choice>> {
    let restrict = |(choices, &pick): (&Vec<Choice>, &usize)| {
        let worst = choices[pick];
        let keep = |choice: &Choice| match choice.loss <= worst.loss || *choice == worst {
            true => *choice,
            false => Choice { loss: f64::INFINITY, bytes: u64::MAX / 1024 },
        };
        choices.iter().map(keep).collect()
    };
    choices.iter().zip(picks).map(restrict).collect()
}
