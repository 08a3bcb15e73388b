//! Which of its forms each weight gets, so that all together lose least within a number of bytes: the multiple-choice
//! knapsack, by dynamic programming over bytes (Kellerer, Pferschy and Pisinger 2004, Knapsack Problems, section 11.5).
//!
//! Bytes are counted in units, rounded up, so that the budget always holds. What rounding leaves over is spent
//! afterwards, byte for byte, where it saves most.

use quince_mil::{Result, bail};

/// One of the forms of a weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// What it takes.
    pub bytes: u64,
    /// What is lost by it, in any unit that adds up over weights. What is not a number is lost altogether.
    pub loss: f64,
}

/// Units that the spare bytes are divided into, at most and at least, and how many decisions are remembered in all.
const MOST_UNITS: usize = 1 << 16;
const LEAST_UNITS: usize = 1 << 10;
const REMEMBERED: usize = 1 << 26;

/// For each weight the number of its choice, such that all take at most `budget` bytes and lose least. Of equal losses
/// the smaller form counts, then the earlier.
///
/// # Errors
/// When a weight has no choice, or the smallest of all take more than the budget.
pub fn allocate(weights: &[Vec<Choice>], budget: u64) -> Result<Vec<usize>> {
    let mut picks = smallest(weights)?;
    let least: u64 = allocated_bytes(weights, &picks);
    let Some(spare) = budget.checked_sub(least) else {
        bail!("found a budget of {budget} bytes for weights that take at least {least}");
    };
    let units = (REMEMBERED / weights.len().max(1)).clamp(LEAST_UNITS, MOST_UNITS);
    let unit = spare.div_ceil(units as u64).max(1);
    let units = (spare / unit) as usize;
    let costs: Vec<Vec<usize>> = weights
        .iter()
        .zip(&picks)
        .map(|(choices, &pick)| {
            let cost = |choice: &Choice| (choice.bytes - choices[pick].bytes).div_ceil(unit);
            choices.iter().map(|choice| usize::try_from(cost(choice)).unwrap_or(usize::MAX)).collect()
        })
        .collect();
    // By units that may be spent: the least loss of the weights so far, and what the last of them chose for it.
    let mut losses = vec![0.0f64; units + 1];
    let mut chosen: Vec<Vec<u16>> = Vec::with_capacity(weights.len());
    for (choices, costs) in weights.iter().zip(&costs) {
        let (next, choice) = best(&losses, choices, costs);
        losses = next;
        chosen.push(choice);
    }
    let mut left = units;
    for (weight, choice) in chosen.iter().enumerate().rev() {
        picks[weight] = usize::from(choice[left]);
        left -= costs[weight][picks[weight]];
    }
    spend(weights, &mut picks, budget);
    Ok(picks)
}

/// The bytes of a choice for each weight.
pub fn allocated_bytes(weights: &[Vec<Choice>], picks: &[usize]) -> u64 {
    weights.iter().zip(picks).map(|(choices, &pick)| choices[pick].bytes).sum()
}

/// The smallest form of each weight; of equal ones that which loses least.
fn smallest(weights: &[Vec<Choice>]) -> Result<Vec<usize>> {
    let pick = |(i, choices): (usize, &Vec<Choice>)| {
        let order = |a: &Choice, b: &Choice| a.bytes.cmp(&b.bytes).then(lost(a).total_cmp(&lost(b)));
        let found = choices.iter().enumerate().min_by(|a, b| order(a.1, b.1));
        match found.filter(|_| choices.len() <= usize::from(u16::MAX)) {
            Some((pick, _)) => Ok(pick),
            None => bail!("weight {i}: found {} forms, expected 1 to {}", choices.len(), u16::MAX),
        }
    };
    weights.iter().enumerate().map(pick).collect()
}

fn lost(choice: &Choice) -> f64 {
    if choice.loss.is_nan() { f64::INFINITY } else { choice.loss }
}

/// One more weight.
fn best(losses: &[f64], choices: &[Choice], costs: &[usize]) -> (Vec<f64>, Vec<u16>) {
    let mut next = vec![f64::INFINITY; losses.len()];
    let mut chosen = vec![0u16; losses.len()];
    let mut order: Vec<usize> = (0..choices.len()).collect();
    order.sort_by_key(|&i| choices[i].bytes);
    if let Some(&first) = order.first() {
        chosen.fill(first as u16);
    }
    for i in order {
        let (cost, loss) = (costs[i], lost(&choices[i]));
        if cost >= losses.len() {
            continue;
        }
        let places = next[cost..].iter_mut().zip(&mut chosen[cost..]).zip(losses);
        for ((next, chosen), before) in places {
            if before + loss < *next {
                (*next, *chosen) = (before + loss, i as u16);
            }
        }
    }
    (next, chosen)
}

/// Spends what is left where it saves most for its bytes, until nothing fits.
fn spend(weights: &[Vec<Choice>], picks: &mut [usize], budget: u64) {
    let mut left = budget.saturating_sub(allocated_bytes(weights, picks));
    loop {
        let mut found: Option<(f64, usize, usize)> = None;
        for (weight, choices) in weights.iter().enumerate() {
            let now = &choices[picks[weight]];
            for (i, choice) in choices.iter().enumerate() {
                let (more, saved) = (choice.bytes.saturating_sub(now.bytes), lost(now) - lost(choice));
                let rate = saved / more as f64;
                if more > 0 && more <= left && saved > 0.0 && found.is_none_or(|(best, ..)| rate > best) {
                    found = Some((rate, weight, i));
                }
            }
        }
        let Some((_, weight, choice)) = found else { return };
        left -= weights[weight][choice].bytes - weights[weight][picks[weight]].bytes;
        picks[weight] = choice;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers that look random (Knuth's multiplicative hash).
    fn weights(seed: u64, count: usize) -> Vec<Vec<Choice>> {
        let mut state = seed;
        let mut draw = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let choice = |draw: &mut dyn FnMut(u64) -> u64| Choice { bytes: 1 + draw(40), loss: draw(1000) as f64 };
        (0..count).map(|_| (0..1 + draw(4)).map(|_| choice(&mut draw)).collect()).collect()
    }

    /// The least loss by trying everything.
    fn exhaustive(weights: &[Vec<Choice>], budget: u64) -> Option<f64> {
        let Some((first, rest)) = weights.split_first() else { return Some(0.0) };
        let with = |choice: &Choice| Some(exhaustive(rest, budget.checked_sub(choice.bytes)?)? + choice.loss);
        first.iter().filter_map(with).min_by(f64::total_cmp)
    }

    #[test]
    fn nothing_loses_less_within_the_budget() {
        for seed in 0..40 {
            let weights = weights(seed, 6);
            for budget in [30, 60, 100, 240] {
                let expected = exhaustive(&weights, budget);
                let found = allocate(&weights, budget).ok().map(|picks| {
                    assert!(allocated_bytes(&weights, &picks) <= budget);
                    weights.iter().zip(picks).map(|(choices, pick)| choices[pick].loss).sum::<f64>()
                });
                assert_eq!(found, expected, "seed {seed}, budget {budget}");
            }
        }
    }

    #[test]
    fn sizes_far_beyond_the_units_fill_the_budget() {
        let gigabytes =
            |choice: &Choice| Choice { bytes: choice.bytes * 12_345_677, loss: 1000.0 / choice.bytes as f64 };
        let weights: Vec<Vec<Choice>> =
            weights(7, 200).iter().map(|choices| choices.iter().map(gigabytes).collect()).collect();
        let budget = 40_000_000_000;
        let picks = allocate(&weights, budget).unwrap();
        let found = allocated_bytes(&weights, &picks);
        assert!(found <= budget && found * 1000 > budget * 999, "{found}");
    }

    #[test]
    fn what_cannot_fit_is_refused() {
        let choices = vec![vec![Choice { bytes: 10, loss: f64::NAN }]; 3];
        assert_eq!(allocate(&choices, 30).unwrap(), [0, 0, 0]);
        assert!(allocate(&choices, 29).unwrap_err().to_string().contains("at least 30"));
        assert!(allocate(&[Vec::new()], 1).is_err());
    }
}
