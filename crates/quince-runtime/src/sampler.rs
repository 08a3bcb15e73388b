//! From logits to the next token.
//!
//! The steps run in the order of transformers' `generate`: logit bias, repetition penalty, frequency and presence
//! penalties, temperature, top-k, top-p, min-p, draw. (llama.cpp applies temperature last: with top-p or min-p the
//! same numbers mean different sets there.)
//!
//! The draw depends on the seed and the logits alone: the generator and the exponential are written out here, so no
//! platform's mathematical library has a say.

use std::collections::{BTreeMap, BTreeSet};

use quince_tensor::{Error, Result, bail};

/// How to choose a token. The default is greedy, without penalties.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplerOptions {
    /// What logits are divided by; 0 takes the most likely token, of equal ones that with the lowest id.
    pub temperature: f32,
    /// Keeps the `top_k` most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the most likely tokens until their probability reaches `top_p` (Holtzman et al. 2019); 1 keeps all.
    pub top_p: f32,
    /// Drops tokens less likely than `min_p` times the most likely one; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens in prompt and answer (Keskar et al. 2019); 1 is off.
    pub repetition_penalty: f32,
    /// Taken off a logit for each time the token is in the answer, as in OpenAI's interface; 0 is off.
    pub frequency_penalty: f32,
    /// Taken off a logit once when the token is in the answer; 0 is off.
    pub presence_penalty: f32,
    /// Added to the logits of these tokens; negative infinity forbids one.
    pub logit_bias: BTreeMap<u32, f32>,
    /// Where the random numbers begin.
    pub seed: u64,
}

impl Default for SamplerOptions {
    fn default() -> SamplerOptions {
        SamplerOptions {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: BTreeMap::new(),
            seed: 0,
        }
    }
}

impl SamplerOptions {
    /// Whether every option is in its range.
    ///
    /// # Errors
    /// When one is not; the message names it.
    pub fn check(&self) -> Result<()> {
        let rules = [
            ("temperature", self.temperature, self.temperature >= 0.0, "0 or more"),
            ("top_p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "more than 0 and at most 1"),
            ("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "0 to 1"),
            ("repetition_penalty", self.repetition_penalty, self.repetition_penalty > 0.0, "more than 0"),
            ("frequency_penalty", self.frequency_penalty, true, "a number"),
            ("presence_penalty", self.presence_penalty, true, "a number"),
        ];
        for (name, value, holds, expected) in rules {
            if !holds || !value.is_finite() {
                bail!("{name}: found {value}, expected {expected}");
            }
        }
        if let Some((token, bias)) = self.logit_bias.iter().find(|(_, bias)| bias.is_nan() || **bias == f32::INFINITY) {
            bail!("logit_bias of token {token}: found {bias}, expected a number");
        }
        Ok(())
    }

    fn changes_logits(&self) -> bool {
        let off = (self.repetition_penalty, self.frequency_penalty, self.presence_penalty) == (1.0, 0.0, 0.0);
        !off || !self.logit_bias.is_empty()
    }
}

/// Chooses tokens, one after another.
#[derive(Debug, Clone)]
pub struct Sampler {
    options: SamplerOptions,
    random: Xoshiro256,
    adjusted: Vec<f32>,
    candidates: Vec<Candidate>,
}

/// A token that may be drawn; `weight` is `exp((logit - max) / temperature)`, so the most likely has 1.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    logit: f32,
    token: u32,
    weight: f64,
}

impl Sampler {
    /// # Errors
    /// An option outside its range; the message names it.
    pub fn new(options: SamplerOptions) -> Result<Sampler> {
        options.check()?;
        let random = Xoshiro256::seeded(options.seed);
        Ok(Sampler { options, random, adjusted: Vec::new(), candidates: Vec::new() })
    }

    /// The next token after `prompt` and `answer`, given `logits[V]` of the last position.
    ///
    /// # Errors
    /// Logits that are not numbers or infinite (the model overflowed), or that forbid every token.
    pub fn sample(&mut self, logits: &[f32], prompt: &[u32], answer: &[u32]) -> Result<u32> {
        if !self.options.changes_logits() {
            return self.choose(logits);
        }
        let mut adjusted = std::mem::take(&mut self.adjusted);
        adjusted.clear();
        adjusted.extend_from_slice(logits);
        self.adjust(&mut adjusted, prompt, answer);
        let token = self.choose(&adjusted);
        self.adjusted = adjusted;
        token
    }

    fn adjust(&self, logits: &mut [f32], prompt: &[u32], answer: &[u32]) {
        let options = &self.options;
        let mut change = |token: u32, by: &dyn Fn(f32) -> f32| {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = by(*logit);
            }
        };
        for (&token, &bias) in &options.logit_bias {
            change(token, &|logit| logit + bias);
        }
        if options.repetition_penalty != 1.0 {
            let penalty = options.repetition_penalty;
            for token in prompt.iter().chain(answer).copied().collect::<BTreeSet<u32>>() {
                change(token, &|logit| if logit < 0.0 { logit * penalty } else { logit / penalty });
            }
        }
        if (options.frequency_penalty, options.presence_penalty) != (0.0, 0.0) {
            let mut counts: BTreeMap<u32, f32> = BTreeMap::new();
            for &token in answer {
                *counts.entry(token).or_default() += 1.0;
            }
            for (token, count) in counts {
                change(token, &|logit| logit - options.presence_penalty - options.frequency_penalty * count);
            }
        }
    }

    fn choose(&mut self, logits: &[f32]) -> Result<u32> {
        let best = most_likely(logits)?;
        if self.options.temperature == 0.0 || self.options.top_k == 1 {
            return Ok(best);
        }
        self.weigh(logits, logits[best as usize]);
        let total: f64 = self.candidates.iter().map(|candidate| candidate.weight).sum();
        let goal = self.random.unit() * total;
        let mut reached = 0.0;
        for candidate in &self.candidates {
            reached += candidate.weight;
            if goal < reached {
                return Ok(candidate.token);
            }
        }
        Ok(best)
    }

    /// Fills `candidates` with what top-k, top-p and min-p leave; none of them ever drops the most likely token.
    fn weigh(&mut self, logits: &[f32], max: f32) {
        let options = &self.options;
        let candidates = &mut self.candidates;
        candidates.clear();
        candidates.extend((0u32..).zip(logits).map(|(token, &logit)| Candidate { logit, token, weight: 0.0 }));
        if options.top_k > 0 && options.top_k < candidates.len() {
            candidates.select_nth_unstable_by(options.top_k - 1, by_likelihood);
            candidates.truncate(options.top_k);
            // The selection leaves an order of its own; sums must not depend on it.
            candidates.sort_unstable_by_key(|candidate| candidate.token);
        }
        let (max, temperature) = (f64::from(max), f64::from(options.temperature));
        for candidate in candidates.iter_mut() {
            candidate.weight = exp((f64::from(candidate.logit) - max) / temperature);
        }
        if options.top_p < 1.0 {
            keep_nucleus(candidates, f64::from(options.top_p));
        }
        candidates.retain(|candidate| candidate.weight > 0.0 && candidate.weight >= f64::from(options.min_p));
    }
}

/// Most likely first; equal ones by id.
fn by_likelihood(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token))
}

/// Keeps the tokens before which less than `top_p` of the probability lies, most likely first. Sorts a small part and
/// widens it until it holds the nucleus: vocabularies are large and nuclei small.
fn keep_nucleus(candidates: &mut Vec<Candidate>, top_p: f64) {
    let goal = top_p * candidates.iter().map(|candidate| candidate.weight).sum::<f64>();
    let mut sorted = 0;
    let mut reached = 0.0;
    while sorted < candidates.len() {
        let rest = &mut candidates[sorted..];
        let part = (sorted * 3).clamp(64, rest.len().max(64)).min(rest.len());
        if part < rest.len() {
            rest.select_nth_unstable_by(part, by_likelihood);
        }
        rest[..part].sort_unstable_by(by_likelihood);
        for candidate in &rest[..part] {
            if reached >= goal {
                candidates.truncate(sorted);
                return;
            }
            reached += candidate.weight;
            sorted += 1;
        }
    }
}

/// The token with the highest logit, the lowest id of equal ones.
///
/// # Errors
/// A logit that is no number or infinitely high, or none above negative infinity.
pub(crate) fn most_likely(logits: &[f32]) -> Result<u32> {
    let mut best = (f32::NEG_INFINITY, None);
    for (token, &logit) in (0u32..).zip(logits) {
        if logit.is_nan() || logit == f32::INFINITY {
            let wrong = logits.iter().filter(|logit| logit.is_nan() || **logit == f32::INFINITY).count();
            let found = format!("logit of token {token}: found {logit} ({wrong} of {} are not finite)", logits.len());
            return Err(Error::new(found)
                .hint("the model overflowed; try --precision exact, or convert it with --compute-precision float32"));
        }
        if logit > best.0 {
            best = (logit, Some(token));
        }
    }
    best.1.ok_or_else(|| {
        Error::new(format!("logits: found none of {} above -inf, expected a token to choose", logits.len()))
    })
}

/// e^x for x <= 0, from additions and multiplications only, so that it has the same bits everywhere: x = k ln 2 + r
/// with |r| <= ln 2 / 2, a Taylor polynomial of degree 13 for e^r (its remainder is below 1e-17), 2^k by exponent.
/// Below -60 it is 0: beside the most likely token, a whole vocabulary of such weights is less than one rounding error.
fn exp(x: f64) -> f64 {
    const LN_2_HIGH: f64 = 0.693_147_180_369_123_8;
    const LN_2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    if x < -60.0 {
        return 0.0;
    }
    // Adding and taking away 1.5 · 2^52 rounds to the nearest integer.
    const ROUND: f64 = 6_755_399_441_055_744.0;
    let k = (x * std::f64::consts::LOG2_E + ROUND) - ROUND;
    let r = (x - k * LN_2_HIGH) - k * LN_2_LOW;
    let sum = INVERSE_FACTORIALS.iter().rev().fold(0.0, |sum, coefficient| sum * r + coefficient);
    sum * f64::from_bits(((k as i64 + 1023) as u64) << 52)
}

/// 1 / n! for n from 0 to 13.
const INVERSE_FACTORIALS: [f64; 14] = {
    let mut inverse = [1.0; 14];
    let (mut n, mut factorial) = (1, 1.0);
    while n < 14 {
        factorial *= n as f64;
        inverse[n] = 1.0 / factorial;
        n += 1;
    }
    inverse
};

/// xoshiro256++ 1.0 by Blackman and Vigna (2019), seeded by SplitMix64 as its authors advise.
#[derive(Debug, Clone)]
struct Xoshiro256([u64; 4]);

impl Xoshiro256 {
    fn seeded(seed: u64) -> Xoshiro256 {
        let mut state = seed;
        Xoshiro256(std::array::from_fn(|_| split_mix(&mut state)))
    }

    fn next(&mut self) -> u64 {
        let s = &mut self.0;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// Uniform in [0, 1), a multiple of 2^-53.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(change: impl FnOnce(&mut SamplerOptions)) -> Sampler {
        let mut options = SamplerOptions { temperature: 1.0, ..SamplerOptions::default() };
        change(&mut options);
        Sampler::new(options).unwrap()
    }

    /// How often each token is drawn.
    fn frequencies(mut sampler: Sampler, logits: &[f32], draws: usize) -> Vec<f64> {
        let mut counts = vec![0.0; logits.len()];
        for _ in 0..draws {
            counts[sampler.sample(logits, &[], &[]).unwrap() as usize] += 1.0 / draws as f64;
        }
        counts
    }

    /// The tokens that can be drawn at all.
    fn drawn(sampler: Sampler, logits: &[f32]) -> Vec<usize> {
        let seen = frequencies(sampler, logits, 2000);
        (0..logits.len()).filter(|&token| seen[token] > 0.0).collect()
    }

    /// Reference numbers: the authors' C code (as in the tests of rand_xoshiro).
    #[test]
    fn random_numbers_are_those_of_the_published_generators() {
        let mut state = 1_477_776_061_723_855_037;
        let split: Vec<u64> = (0..3).map(|_| split_mix(&mut state)).collect();
        assert_eq!(split, [1_985_237_415_132_408_290, 2_979_275_885_539_914_483, 13_511_426_838_097_143_398]);
        let mut xoshiro = Xoshiro256([1, 2, 3, 4]);
        let numbers: Vec<u64> = (0..4).map(|_| xoshiro.next()).collect();
        assert_eq!(numbers, [41_943_041, 58_720_359, 3_588_806_011_781_223, 3_591_011_842_654_386]);
    }

    #[test]
    fn the_exponential_is_the_libraries_within_rounding() {
        for i in 0..6000 {
            let x = -0.01 * f64::from(i);
            let relative = (exp(x) - x.exp()).abs() / x.exp();
            assert!(relative < 5e-16, "exp({x}) is off by {relative}");
        }
        assert_eq!((exp(0.0), exp(-1e9), exp(f64::NEG_INFINITY)), (1.0, 0.0, 0.0));
    }

    #[test]
    fn greedy_takes_the_highest_logit_and_the_lowest_id_of_equal_ones() {
        let mut greedy = Sampler::new(SamplerOptions::default()).unwrap();
        assert_eq!(greedy.sample(&[0.5, 2.0, -1.0, 2.0], &[], &[]).unwrap(), 1);
        assert_eq!(greedy.sample(&[f32::NEG_INFINITY, -3.0], &[], &[]).unwrap(), 1);
    }

    #[test]
    fn draws_follow_the_softmax_at_the_temperature() {
        let logits = [1.0f32, 0.0, -1.0, 2.0];
        for temperature in [0.7f32, 1.0, 2.0] {
            let weights: Vec<f64> = logits.iter().map(|l| (f64::from(*l) / f64::from(temperature)).exp()).collect();
            let total: f64 = weights.iter().sum();
            let seen = frequencies(sampler(|o| o.temperature = temperature), &logits, 40_000);
            for (weight, seen) in weights.iter().zip(seen) {
                // Four standard deviations of 40,000 draws are below 0.01.
                assert!((weight / total - seen).abs() < 0.01, "{} against {seen}", weight / total);
            }
        }
    }

    /// Probabilities .4 .3 .2 .1: which tokens stay is written out by hand, from the definitions of transformers'
    /// warpers (top-p drops, from the least likely on, what adds up to at most 1 - p).
    #[test]
    fn filters_keep_what_their_definitions_keep() {
        let logits = [0.1f32.ln(), 0.4f32.ln(), 0.2f32.ln(), 0.3f32.ln()];
        assert_eq!(drawn(sampler(|o| o.top_k = 2), &logits), [1, 3]);
        assert_eq!(drawn(sampler(|o| o.top_p = 0.39), &logits), [1]);
        assert_eq!(drawn(sampler(|o| o.top_p = 0.65), &logits), [1, 3]);
        assert_eq!(drawn(sampler(|o| o.top_p = 0.75), &logits), [1, 2, 3]);
        assert_eq!(drawn(sampler(|o| o.min_p = 0.45), &logits), [1, 2, 3]);
        assert_eq!(drawn(sampler(|o| o.min_p = 1.0), &logits), [1]);
        // Of the two kept by top-k, the first has 4/7 of the probability.
        assert_eq!(drawn(sampler(|o| (o.top_k, o.top_p) = (2, 0.5)), &logits), [1]);
        assert_eq!(drawn(sampler(|o| o.top_k = 2), &[1.0; 5]), [0, 1]);
    }

    /// A nucleus that the first sorted part does not hold, against a plain full sort.
    #[test]
    fn wide_nuclei_are_found_by_parts() {
        let logits: Vec<f32> = (0..5000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / 8e6).collect();
        for top_p in [0.01, 0.5, 0.9, 0.999] {
            let weigh = |logit: f32| f64::from(logit).exp();
            let mut order: Vec<usize> = (0..logits.len()).collect();
            order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
            let total: f64 = logits.iter().map(|&logit| weigh(logit)).sum();
            let mut before = 0.0;
            let mut expected: Vec<u32> = Vec::new();
            for token in order {
                if before < f64::from(top_p) * total {
                    expected.push(token as u32);
                }
                before += weigh(logits[token]);
            }
            let mut sampler = sampler(|o| o.top_p = top_p);
            sampler.weigh(&logits, logits.iter().copied().fold(f32::MIN, f32::max));
            let found: Vec<u32> = sampler.candidates.iter().map(|candidate| candidate.token).collect();
            assert_eq!(found, expected, "top_p {top_p}");
        }
    }

    #[test]
    fn penalties_and_bias_change_the_logits_they_name() {
        let after = |options: SamplerOptions, prompt: &[u32], answer: &[u32]| {
            let mut logits = vec![2.0f32, -2.0, 1.0, 0.5];
            Sampler::new(options).unwrap().adjust(&mut logits, prompt, answer);
            logits
        };
        let base = SamplerOptions::default;
        let repetition = SamplerOptions { repetition_penalty: 2.0, ..base() };
        assert_eq!(after(repetition, &[0, 1, 1, 99], &[2]), [1.0, -4.0, 0.5, 0.5]);
        let counted = SamplerOptions { frequency_penalty: 0.5, presence_penalty: 0.25, ..base() };
        assert_eq!(after(counted, &[0, 1], &[2, 2, 3]), [2.0, -2.0, -0.25, -0.25]);
        let biased = SamplerOptions { logit_bias: [(0, f32::NEG_INFINITY), (3, 1.0)].into(), ..base() };
        assert_eq!(after(biased, &[], &[]), [f32::NEG_INFINITY, -2.0, 1.0, 1.5]);
    }

    #[test]
    fn the_seed_decides_the_draws() {
        let logits: Vec<f32> = (0..100u8).map(|i| f32::from(i % 7)).collect();
        let run = |seed: u64| -> Vec<u32> {
            let mut sampler = sampler(|o| o.seed = seed);
            (0..8).map(|_| sampler.sample(&logits, &[], &[]).unwrap()).collect()
        };
        assert_eq!(run(7), run(7));
        assert_ne!(run(7), run(8));
    }

    #[test]
    fn what_cannot_be_sampled_is_named() {
        let error = |options: SamplerOptions, logits: &[f32]| {
            Sampler::new(options).and_then(|mut sampler| sampler.sample(logits, &[], &[])).unwrap_err().to_string()
        };
        let base = SamplerOptions::default;
        assert!(error(base(), &[0.0, f32::NAN, 1.0, f32::NAN]).starts_with("logit of token 1: found NaN (2 of 4"));
        assert!(error(base(), &[f32::INFINITY]).contains("found inf"));
        assert!(error(base(), &[f32::NEG_INFINITY; 3]).contains("none of 3 above -inf"));
        assert!(error(base(), &[]).contains("none of 0"));
        assert!(error(SamplerOptions { top_p: 0.0, ..base() }, &[0.0]).starts_with("top_p: found 0"));
        assert!(
            error(SamplerOptions { temperature: f32::NAN, ..base() }, &[0.0]).starts_with("temperature: found NaN")
        );
    }
}
