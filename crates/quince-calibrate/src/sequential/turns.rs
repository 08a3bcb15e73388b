//! The guide that knows of one group of weights at a time.

use crate::statistics::key;
use quince_compress::{Cross, Factor, Guide, Lost, Moments, aimed};
use quince_tensor::{Error, Result, Tensor, Weight, WeightSource};
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

/// The damping of what weights aim for, without chance and for as many inputs as there are channels: it is chance that aims
/// follow if there are few inputs for each channel.
const DAMPING: (f32, f32) = (0.1, 1.5);

/// Tells what weights are multiplied with when it is their turn.
#[derive(Clone)]
pub(super) struct Turns(Arc<Shared>);

struct Shared {
    /// The weights that have a turn.
    known: HashSet<String>,
    turn: Mutex<Option<Arc<Turn>>>,
}

/// What is known of some weights.
pub(super) struct Turn {
    /// What was lost of their results, where that is known.
    weights: HashMap<String, Option<Cross>>,
    moments: Moments,
    /// What was lost of their inputs, where they do not know better.
    inputs: Option<Cross>,
    /// The factor that was asked for last, and its damping: there is room for one.
    factor: Mutex<Option<(f32, Arc<Factor>)>>,
    /// What the weights aim for, as far as it was asked for.
    aims: Mutex<HashMap<String, Tensor>>,
}

impl Turns {
    /// For weights of these names.
    pub fn new(known: HashSet<String>) -> Turns {
        Turns(Arc::new(Shared { known, turn: Mutex::new(None) }))
    }

    /// Whose turn it is from now on.
    pub fn set(&self, turn: Option<Turn>) {
        *locked(&self.0.turn) = turn.map(Arc::new);
    }

    /// What is known of a weight that has a turn.
    fn turn(&self, weight: &str) -> Result<Arc<Turn>> {
        let turn = locked(&self.0.turn).clone();
        turn.filter(|turn| turn.weights.contains_key(&key(weight)))
            .ok_or_else(|| Error::new(format!("`{weight}` was asked for before its turn")))
    }
}

impl Turn {
    /// Of some weights, with what was lost of their results where that is known, and of their inputs for those of which it
    /// is not.
    pub fn new(weights: HashMap<String, Option<Cross>>, moments: Moments, inputs: Option<Cross>) -> Turn {
        Turn { weights, moments, inputs, factor: Mutex::default(), aims: Mutex::default() }
    }

    fn factor(&self, damping: f32) -> Result<Arc<Factor>> {
        let mut last = locked(&self.factor);
        if let Some((known, factor)) = &*last
            && *known == damping
        {
            return Ok(factor.clone());
        }
        *last = None;
        let factor = Arc::new(Factor::new(&self.moments, damping)?);
        *last = Some((damping, factor.clone()));
        Ok(factor)
    }

    /// What was lost before a weight; nothing if nothing was compressed before it.
    fn lost(&self, weight: &str) -> Option<Lost<'_>> {
        let results = self.weights.get(weight).and_then(Option::as_ref).map(Lost::Results);
        results.or(self.inputs.as_ref().map(Lost::Inputs))
    }

    /// The damping of what weights aim for.
    fn damping(&self) -> f32 {
        let (always, for_each) = DAMPING;
        always + for_each * self.moments.size() as f32 / self.moments.count().max(1) as f32
    }
}

impl Guide for Turns {
    fn factor(&self, weight: &str, damping: f32) -> Result<Option<Arc<Factor>>> {
        match self.knows(weight) {
            true => self.turn(weight)?.factor(damping).map_err(|e| e.at(weight)).map(Some),
            false => Ok(None),
        }
    }

    fn knows(&self, weight: &str) -> bool {
        self.0.known.contains(&key(weight))
    }

    fn aim(&self, weight: &Weight, axes: [usize; 2]) -> Option<Weight> {
        self.knows(weight.name()).then(|| {
            let aim = Aim { weight: weight.clone(), axes, turns: self.clone() };
            Weight::new(weight.name(), weight.dtype(), weight.shape(), Arc::new(aim))
        })
    }
}

/// A weight as it should be instead.
struct Aim {
    weight: Weight,
    axes: [usize; 2],
    turns: Turns,
}

impl WeightSource for Aim {
    fn load(&self) -> Result<Tensor> {
        let (turn, name) = (self.turns.turn(self.weight.name())?, key(self.weight.name()));
        let Some(lost) = turn.lost(&name) else { return self.weight.load() };
        let mut aims = locked(&turn.aims);
        if let Some(aim) = aims.get(&name) {
            return Ok(aim.clone());
        }
        let aim = aimed(&self.weight, self.axes, &*turn.factor(turn.damping())?, lost)?;
        aims.insert(name, aim.clone());
        Ok(aim)
    }

    fn rows(&self, rows: Range<usize>) -> Result<Tensor> {
        match self.turns.turn(self.weight.name())?.lost(&key(self.weight.name())) {
            Some(_) => self.load()?.rows(rows),
            None => self.weight.rows(rows),
        }
    }

    fn streams(&self) -> bool {
        true
    }
}

/// Whoever panicked left nothing half-made.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
