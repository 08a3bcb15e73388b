//! Which of several allocations is shipped.
//!
//! Sensitivities are measured on few tokens, and an allocation is made for exactly these: on other texts it may lose more
//! than the same scheme for all weights. So a uniform scheme, or what fills the budget above it, is the base, and another
//! allocation has to do better on each kind of text, by more than [`DOUBT`] standard errors of the difference.

use crate::{Measure, Proof};
use quince_compress::Scheme;

/// Standard errors by which a difference may be chance.
const DOUBT: f64 = 2.0;

/// Where an allocation comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    /// The same scheme for all weights, and whether that fills the budget.
    Uniform { scheme: Scheme, fills: bool },
    /// The same, and more where something was left of the budget.
    Base,
    /// Any other.
    Other,
}

/// How an allocation does.
pub(crate) struct Run {
    pub kind: Kind,
    pub measure: Measure,
    pub proof: Proof,
}

impl Run {
    /// What is lost, such that runs can be compared: over all proofs, or as it was measured where there are none.
    fn loss(&self) -> f64 {
        match self.proof.iter().all(Vec::is_empty) {
            true => self.measure.loss(),
            false => self.proof.iter().filter(|nll| !nll.is_empty()).map(|nll| mean(nll.iter().copied())).sum(),
        }
    }

    /// Whether this is better than another on each kind of text, beyond chance.
    fn beats(&self, other: &Run) -> bool {
        let better = |(own, other): (&Vec<f32>, &Vec<f32>)| {
            let difference = || own.iter().zip(other).map(|(own, other)| own - other);
            let mean = mean(difference());
            let variance = difference().map(|d| (f64::from(d) - mean).powi(2)).sum::<f64>() / own.len().max(1) as f64;
            own.is_empty() || mean + DOUBT * (variance / own.len() as f64).sqrt() < 0.0
        };
        let proven = self.proof.iter().zip(&other.proof).all(better);
        proven && self.loss() < other.loss()
    }

    /// Whether it may be shipped.
    fn fills(&self) -> bool {
        !matches!(self.kind, Kind::Uniform { fills: false, .. })
    }
}

fn mean(values: impl Iterator<Item = f32>) -> f64 {
    let (sum, count) = values.fold((0.0, 0usize), |(sum, count), value| (sum + f64::from(value), count + 1));
    sum / count.max(1) as f64
}

/// The number of the run that wins.
pub(crate) fn winner(runs: &[Run]) -> Option<usize> {
    let best = |wanted: &dyn Fn(&Run) -> bool| {
        let candidates = runs.iter().enumerate().filter(|(_, run)| wanted(run));
        candidates.min_by(|a, b| a.1.loss().total_cmp(&b.1.loss())).map(|(i, _)| i)
    };
    let base = best(&|run| run.fills() && run.kind != Kind::Other);
    let Some(base) = base else { return best(&Run::fills) };
    best(&|run| run.fills() && run.beats(&runs[base])).or(Some(base))
}

/// The scheme that does best for all weights.
pub(crate) fn best_uniform(runs: &[Run]) -> Option<(Scheme, Measure)> {
    let uniform = runs.iter().filter_map(|run| match run.kind {
        Kind::Uniform { scheme, .. } => Some((run, scheme)),
        _ => None,
    });
    uniform.min_by(|a, b| a.0.loss().total_cmp(&b.0.loss())).map(|(run, scheme)| (scheme, run.measure))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Quality;
    use quince_compress::{Nbits, Palette};

    fn run(kind: Kind, kl: f64, proof: &[[f32; 4]]) -> Run {
        let measure = Measure::Text(Quality { kl, top1: 1.0, perplexity: 1.0, tokens: 4 });
        Run { kind, measure, proof: proof.iter().map(|nll| nll.to_vec()).collect() }
    }

    fn uniform(fills: bool) -> Kind {
        Kind::Uniform { scheme: Palette::kmeans(Nbits::new(4).unwrap(), None).into(), fills }
    }

    #[test]
    fn an_allocation_has_to_win_on_every_kind_of_text_beyond_chance() {
        let base = || run(uniform(true), 0.2, &[[2.0; 4], [3.0; 4]]);
        let other = |proof| run(Kind::Other, 0.1, proof);
        let won = |other: Run| winner(&[base(), other]) == Some(1);
        assert!(won(other(&[[1.9; 4], [2.9; 4]])));
        assert!(!won(other(&[[1.5; 4], [3.01; 4]])));
        // Better in the mean, and no more than chance: -0.2, 0.3, -0.2, 0.
        assert!(!won(other(&[[1.9; 4], [2.8, 3.3, 2.8, 3.0]])));
        assert_eq!(best_uniform(&[other(&[]), base()]).unwrap().1.loss(), 0.2);
    }

    #[test]
    fn what_leaves_much_of_the_budget_is_only_compared_with() {
        let runs = [run(uniform(false), 0.1, &[]), run(Kind::Base, 0.3, &[]), run(Kind::Other, 0.2, &[])];
        assert_eq!(winner(&runs), Some(2));
        assert_eq!(winner(&runs[..2]), Some(1));
        assert_eq!(winner(&runs[..1]), None);
    }
}
