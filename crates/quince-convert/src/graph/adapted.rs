//! Adapters that are kept apart from the weights that they change, as operations of their own.
//!
//! ```text
//! y = linear(x, weight, bias) + linear(linear(x, down), up)                  LoRA
//! y = linear(x, weight) · gain + linear(linear(x, down), up) + bias          DoRA
//! y = embedding(ids, weight) + linear(embedding(ids, down), up)              LoRA of an embedding
//! ```
//!
//! A second adapter of the same module follows the first. The weight is shared with functions that have no adapter.

use super::Graph;
use quince_checkpoint::Step;
use quince_mil::{Result, Var};

impl Graph<'_> {
    /// What adapters keep apart from the weight of a module.
    pub(super) fn steps(&self, module: &str) -> Vec<Step> {
        self.weights.steps(&self.spelled(&format!("{}.weight", self.full_name(module))))
    }

    /// The product of x and a weight, `[x, weight]`, with adapters. The result is called `name`.
    pub(super) fn product_with(
        &mut self,
        op: &str,
        name: &str,
        [x, weight]: [Var; 2],
        bias: Option<Var>,
        steps: &[Step],
    ) -> Result<Var> {
        // Gains are of the product alone, so that a bias waits for them.
        let waits = steps.iter().any(|step| step.gain.is_some());
        let (now, later) = if waits { (None, bias) } else { (bias, None) };
        let mut y = self.product(op, &format!("{name}.base"), x, weight, now)?;
        for (i, step) in steps.iter().enumerate() {
            let down = self.builder.weight(&step.down);
            let down = self.product("linear", &format!("{name}.down_{i}"), x, down, None)?;
            let result = if later.is_none() && i + 1 == steps.len() { name } else { &format!("{name}.adapted_{i}") };
            y = self.add_step(name, result, i, [y, down], step)?;
        }
        match later {
            Some(bias) => self.op("add", name, &[("x", y.into()), ("y", bias.into())]),
            None => Ok(y),
        }
    }

    /// The rows of a table for the token ids, with adapters. The result is called `name`.
    pub(super) fn embedding_with(&mut self, name: &str, weight: Var, steps: &[Step]) -> Result<Var> {
        let ids = self.ids;
        let rows = |g: &mut Self, name: &str, weight: Var| {
            g.op("embedding", name, &[("ids", ids.into()), ("weight", weight.into())])
        };
        let mut y = rows(self, &format!("{name}.base"), weight)?;
        for (i, step) in steps.iter().enumerate() {
            let down = self.builder.weight(&step.down);
            let down = rows(self, &format!("{name}.down_{i}"), down)?;
            let result = if i + 1 == steps.len() { name } else { &format!("{name}.adapted_{i}") };
            y = self.add_step(name, result, i, [y, down], step)?;
        }
        Ok(y)
    }

    /// `y · gain + up · down`, `[y, down]` being given.
    fn add_step(&mut self, name: &str, result: &str, i: usize, [y, down]: [Var; 2], step: &Step) -> Result<Var> {
        let y = match &step.gain {
            None => y,
            Some(gain) => {
                let gain = self.builder.weight(gain);
                self.op("mul", &format!("{name}.gained_{i}"), &[("x", y.into()), ("y", gain.into())])?
            }
        };
        let up = self.builder.weight(&step.up);
        let up = self.product("linear", &format!("{name}.up_{i}"), down, up, None)?;
        self.op("add", result, &[("x", y.into()), ("y", up.into())])
    }
}
