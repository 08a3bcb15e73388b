//! Plans by function and input shapes, and the memory they run in.

use crate::observe::Purpose;
use crate::planner::Plan;
use quince_mil::Result;
use quince_tensor::zeroed;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// How a function is run for some input shapes.
pub(crate) enum Strategy {
    /// By a plan.
    Planned(Plan),
    /// Operation by operation, because sizes or branches depend on values.
    Interpreted,
    /// So many items of the batch at a time, each part by its own plan.
    Parts(usize),
}

/// Memory for a call: a vector for each buffer of a plan, at least as long as the plan wants it.
pub(crate) type Buffers = Vec<Vec<f32>>;

/// A function, the shapes of its inputs, and what is computed.
type Key = (usize, Vec<Vec<usize>>, Purpose);

/// The plans made so far.
#[derive(Default)]
pub(crate) struct PlanCache {
    plans: Mutex<HashMap<Key, Arc<Strategy>>>,
    /// Memory of calls that have ended, so that the next ones do not have to ask for it. All plans share it: there is as
    /// much as the largest needs, once for each call that ran at the same time.
    spare: Mutex<Vec<Buffers>>,
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

    /// Buffers for a call; what they hold is left over from others. An error where there is no memory for them.
    pub fn take(&self, plan: &Plan) -> Result<Buffers> {
        let spare = self.spare.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).pop();
        let mut buffers = spare.unwrap_or_default();
        buffers.resize_with(buffers.len().max(plan.buffers.len()), Vec::new);
        for (buffer, &len) in buffers.iter_mut().zip(&plan.buffers) {
            if buffer.len() < len {
                // What it held is not worth keeping while the new one is made.
                *buffer = Vec::new();
                *buffer = zeroed(len)?;
            }
        }
        Ok(buffers)
    }

    /// Gives them back.
    pub fn give_back(&self, buffers: Buffers) {
        self.spare.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(buffers);
    }
}
