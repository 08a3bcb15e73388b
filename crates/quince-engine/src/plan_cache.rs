//! Plans by function and input shapes, with the memory they ran in last.

use crate::planner::Plan;
use quince_mil::Result;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// How a function is run for some input shapes.
pub(crate) enum Strategy {
    /// By a plan.
    Planned(Planned),
    /// Operation by operation, because sizes or branches depend on values.
    Interpreted,
}

/// A plan and buffers for it, so that a call does not have to ask for memory.
pub(crate) struct Planned {
    pub plan: Plan,
    pub buffers: Mutex<Vec<Vec<Vec<f32>>>>,
}

/// A function and the shapes of its inputs.
type Key = (usize, Vec<Vec<usize>>);

/// The plans made so far.
#[derive(Default)]
pub(crate) struct PlanCache {
    plans: Mutex<HashMap<Key, Arc<Strategy>>>,
}

/// How many plans are kept: a server that sees every length would otherwise keep them all.
const LIMIT: usize = 64;

impl PlanCache {
    /// The plan for a key, made if it is not there.
    pub fn get(&self, key: Key, make: impl FnOnce() -> Result<Strategy>) -> Result<Arc<Strategy>> {
        let lock = || self.plans.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(found) = lock().get(&key) {
            return Ok(found.clone());
        }
        let made = Arc::new(make()?);
        let mut plans = lock();
        if plans.len() >= LIMIT {
            plans.clear();
        }
        plans.insert(key, made.clone());
        Ok(made)
    }
}

impl Planned {
    /// Buffers for a call.
    pub fn take(&self) -> Vec<Vec<f32>> {
        let free = self.buffers.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).pop();
        free.unwrap_or_else(|| self.plan.buffers.iter().map(|&len| vec![0.0; len]).collect())
    }

    /// Gives them back.
    pub fn give_back(&self, buffers: Vec<Vec<f32>>) {
        self.buffers.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(buffers);
    }
}
