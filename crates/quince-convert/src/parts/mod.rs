//! Parts: a program that is too large for one package becomes a chain of programs that each run some of its layers.
//!
//! ```text
//! part 1   input_ids ─▶ embedding, layers 0 to 4 ─▶ hidden_5        kv_cache of 5 layers
//! part 2   hidden_5, position ─▶ layers 5 to 10 ─▶ hidden_11        kv_cache of 6 layers
//! part 3   hidden_11 ─▶ head ─▶ logits
//! ```
//!
//! It is a pass over a program that is lowered, and compressed if it is to be: what a layer takes on disk is known then,
//! and no byte of it is computed. All functions are cut at the same places, so that what they share stays stored once.
//!
//! - A *section* is what is never cut: the embedding, a layer, the head ([`sections`]). Parts are runs of sections, each as
//!   long as the limit lets it be. A value that crosses a border, usually one, is called `hidden_N` after the number of
//!   layers that are done.
//! - What depends on neither tokens nor layers (positions, masks, rotary tables) is computed in each part that needs it, of
//!   inputs that go to several parts: `position`, `attention_mask`, and `input_ids` where its length matters.
//! - A weight that is used in several parts is stored in each. That is the table of embeddings of a tied model, if the
//!   embedding and the head do not come to lie in one part. To store it once, one part would have to be run twice for each
//!   token, as the first and as the last; all of it would be mapped then for the few rows that the embedding reads, and
//!   what is stored twice costs space on disk and no memory.
//! - A table of embeddings that the Neural Engine has too few bits to index is a part of its own, which the CPU runs.
//! - Each part has the cache of its own layers: states and inputs of the same names, with fewer layers ([`caches`]).

mod caches;
mod cut;
mod sections;

use cut::Cut;
use quince_mil::{Error, Function, Operation, Program, Result};
use sections::Sections;
use std::ops::Range;

/// A part of a program.
pub struct Part {
    /// Functions of the names that the whole has. What comes from earlier parts are inputs, what later ones take are outputs,
    /// each of one name.
    pub program: Program,
    /// What it runs, in words: `embedding, layers 0 to 3`.
    pub holds: String,
}

/// Where the embedding goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EmbeddingPart {
    /// To the first layers, if they fit.
    WithLayers,
    /// Into a part of its own: the Neural Engine has indices of 16 bits, so that the CPU has to read a longer table.
    Apart,
}

impl EmbeddingPart {
    /// The rows that the Neural Engine can tell apart.
    const MOST_ROWS: usize = 65535;

    /// What a program needs whose layers run on the Neural Engine.
    pub fn for_neural_engine(program: &Program) -> EmbeddingPart {
        let is_long = |function: &Function, operation: &Operation| {
            let table = operation.var("x").and_then(|table| function.ty(table).as_tensor()?.shape.first()?.fixed());
            operation.op_name() == "gather" && table.is_some_and(|rows| rows > Self::MOST_ROWS)
        };
        let any = program.functions.iter().any(|f| f.block.operations.iter().any(|operation| is_long(f, operation)));
        if any { EmbeddingPart::Apart } else { EmbeddingPart::WithLayers }
    }
}

/// How large a program is once it is written, in bytes.
pub type Measure<'a> = dyn FnMut(&Program) -> Result<u64> + 'a;

/// Splits a program into parts of at most `limit` bytes by `measure`, as few as that makes possible from the first to the
/// last. One that is small enough comes back whole, unless its embedding is to be apart.
///
/// # Errors
/// When a section alone is larger than the limit: the error says which, and how small the limit may be. When the program
/// has no layers that could be told by the names of its operations.
pub fn split(program: &Program, limit: u64, embedding: EmbeddingPart, measure: &mut Measure) -> Result<Vec<Part>> {
    if embedding == EmbeddingPart::WithLayers && measure(program)? <= limit {
        return Ok(vec![Part { program: program.clone(), holds: "everything".to_owned() }]);
    }
    let sections = Sections::of(program)?;
    let mut cut = Cut::new(program, &sections)?;
    let (mut parts, mut first) = (Vec::new(), 0);
    while first < sections.len() {
        let mut end = first + 1;
        let mut found = cut.part(first..end)?;
        let bytes = measure(&found)?;
        if bytes > limit {
            return Err(too_large(&sections, &mut cut, first, (bytes, limit), measure));
        }
        let is_apart = embedding == EmbeddingPart::Apart && sections.numbers(&(first..end)).start == 0;
        while end < sections.len() && !is_apart {
            let longer = cut.part(first..end + 1)?;
            if measure(&longer)? > limit {
                break;
            }
            (found, end) = (longer, end + 1);
        }
        cut.end_part(end);
        parts.push(Part { program: found, holds: sections.describe(first..end) });
        first = end;
    }
    Ok(parts)
}

/// The error for a section that is too large, with the size of the largest of those to come.
fn too_large(
    sections: &Sections,
    cut: &mut Cut,
    section: usize,
    (bytes, limit): (u64, u64),
    measure: &mut Measure,
) -> Error {
    let alone = |section: usize| -> Range<usize> { section..section + 1 };
    let mut least = bytes;
    for other in section + 1..sections.len() {
        cut.end_part(other);
        match cut.part(alone(other)).and_then(|part| measure(&part)) {
            Ok(bytes) => least = least.max(bytes),
            Err(error) => return error,
        }
    }
    let name = sections.describe(alone(section));
    let error = Error::new(format!("{name}: found {bytes} bytes, expected at most {limit}, the size of a part"));
    error.hint(format!("parts are cut between layers: allow {least} bytes, or compress the weights further"))
}

#[cfg(test)]
mod tests;
