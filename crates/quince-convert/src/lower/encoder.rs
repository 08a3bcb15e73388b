//! What encoders have and other models mostly lack: learned positions, a bias for distances, one vector for a text.
//!
//! ```text
//! add_positions   x + gather(weight, positions)
//! relative_bias   buckets = gather(bucket of each distance, keys - queries);  transpose(gather(weight, buckets))
//! pool            matmul(weights [B, 1, S], x [B, S, D]), the weights 1 / number of tokens, or 1 for one of them
//! ```

use super::Writer;
use super::writer::int_vector;
use quince_mil::ops::Buckets;
use quince_mil::{Args, Dim, Input, Operation, Result, Var, bail};

pub(super) fn add_positions(w: &mut Writer, operation: &Operation, args: &Args) -> Result<Var> {
    let x = w.input(operation, "x")?;
    let rows = position_rows(w, operation, args)?;
    w.op("add", &operation.name, &[("x", x.into()), ("y", rows.into())])
}

/// The rows of the table for the tokens' positions: [S, D].
pub(super) fn position_rows(w: &mut Writer, operation: &Operation, args: &Args) -> Result<Var> {
    let (name, context) = (&operation.name, w.settings.context);
    let (rows, offset) = (args.shape("weight")?.first().copied(), args.int("offset")?);
    if let Some(Dim::Fixed(rows)) = rows
        && context as i64 + offset > rows as i64
    {
        bail!(
            "found a context of {context} tokens, expected at most {}", rows as i64 - offset;
            hint: "positions are learned, and there are no more of them"
        );
    }
    let weight = w.input(operation, "weight")?;
    let mut positions = w.token_positions()?;
    if offset > 0 {
        let offset: Input = int_vector(&[offset as usize])?[0].into();
        positions = w.op("add", &format!("{name}.places"), &[("x", positions.into()), ("y", offset)])?;
    }
    w.gather(&format!("{name}.rows"), weight, positions)
}

pub(super) fn relative_bias(w: &mut Writer, operation: &Operation, args: &Args) -> Result<Var> {
    let name = &operation.name;
    let &[Dim::Fixed(buckets), _] = args.shape("weight")? else {
        bail!("found weight {:?}, expected known sizes", args.shape("weight")?);
    };
    if w.start().is_some() {
        bail!("found a bias for distances in a function with a cache, expected one that sees a text as a whole");
    }
    let (weight, positions) = (w.input(operation, "weight")?, w.token_positions()?);
    let buckets = Buckets::new(buckets, args.int("max_distance")?)?;
    let longest = w.settings.context as i64 - 1;
    let table: Vec<usize> = (-longest..=longest).map(|distance| buckets.of(distance)).collect();
    let table = w.constant(&format!("{name}.bucket_of_distance"), int_vector(&table)?);
    let part = |part: &str| format!("{name}.{part}");
    let keys = w.op("expand_dims", &part("keys"), &[("x", positions.into()), ("axes", [0].into())])?;
    let queries = w.op("expand_dims", &part("queries"), &[("x", positions.into()), ("axes", [1].into())])?;
    let distances = w.op("sub", &part("distances"), &[("x", keys.into()), ("y", queries.into())])?;
    let first = int_vector(&[longest as usize])?[0];
    let places = w.op("add", &part("places"), &[("x", distances.into()), ("y", first.into())])?;
    let buckets = w.gather(&part("buckets"), table, places)?;
    let rows = w.gather(&part("rows"), weight, buckets)?;
    let by_head = w.op("transpose", &part("by_head"), &[("x", rows.into()), ("perm", [2, 0, 1].into())])?;
    w.op("expand_dims", name, &[("x", by_head.into()), ("axes", [0].into())])
}

pub(super) fn pool(w: &mut Writer, operation: &Operation, args: &Args) -> Result<Var> {
    let (name, dtype) = (&operation.name, w.dtype());
    let part = |part: &str| format!("{name}.{part}");
    let (x, mask) = (w.tokens_first(operation, "x")?, w.input(operation, "mask")?);
    let weights = match args.str("mode")? {
        "first" => {
            let inputs = [
                ("x", x.into()),
                ("begin", [0, 0, 0].into()),
                ("end", [0, 1, 0].into()),
                ("end_mask", [true, false, true].into()),
                ("squeeze_mask", [false, true, false].into()),
            ];
            return w.op("slice_by_index", name, &inputs);
        }
        "last" => {
            // The greatest position of a token, counted from one so that padding is less than each.
            let positions = w.token_positions()?;
            let counted = w.op("add", &part("counted"), &[("x", positions.into()), ("y", 1.into())])?;
            let tokens = w.op("mul", &part("token_positions"), &[("x", mask.into()), ("y", counted.into())])?;
            let inputs = [("x", tokens.into()), ("axes", [-1].into()), ("keep_dims", true.into())];
            let last = w.op("reduce_max", &part("last"), &inputs)?;
            let chosen = w.op("equal", &part("chosen"), &[("x", counted.into()), ("y", last.into())])?;
            w.cast(&part("weights"), chosen, dtype)?
        }
        _ => {
            let tokens = w.cast(&part("tokens"), mask, dtype)?;
            let inputs = [("x", tokens.into()), ("axes", [-1].into()), ("keep_dims", true.into())];
            let count = w.op("reduce_sum", &part("count"), &inputs)?;
            let one = w.number(1.0)?;
            let count = w.op("maximum", &part("divisor"), &[("x", count.into()), ("y", one)])?;
            w.op("real_div", &part("weights"), &[("x", tokens.into()), ("y", count.into())])?
        }
    };
    let row = w.op("expand_dims", &part("row"), &[("x", weights.into()), ("axes", [1].into())])?;
    let inputs = [("x", row.into()), ("y", x.into()), ("transpose_x", false.into()), ("transpose_y", false.into())];
    let pooled = w.op("matmul", &part("sum"), &inputs)?;
    w.op("squeeze", name, &[("x", pooled.into()), ("axes", [1].into())])
}
