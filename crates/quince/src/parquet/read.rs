//! Reading a column of texts.

use super::column::{Presence, texts};
use super::compact::{Fields, Lookup, Reader, Value};
use super::{BYTE_ARRAY, MAGIC, REPEATED, REQUIRED};
use quince_tensor::{Error, Result, bail};

/// The texts of a column of a file.
///
/// # Errors
/// When it is no Parquet file or a damaged one, has no such column or not one of texts, lacks a text, or is compressed or
/// encoded in another way than [`super`] says.
pub fn read_texts(file: &[u8], name: &str) -> Result<Vec<String>> {
    let footer = footer(file)?;
    let columns = columns(footer.list(2))?;
    let Some(at) = columns.iter().position(|column| column.path == name) else {
        let names: Vec<&str> = columns.iter().map(|column| column.root).collect();
        let mut names: Vec<&str> = names.into_iter().filter(|root| !root.is_empty()).collect();
        names.dedup();
        if names.contains(&name) {
            bail!("column `{name}`: found no texts, expected a column of strings");
        }
        bail!("found the columns {}, expected `{name}`", names.join(", "); hint: "--field names the one with the text");
    };
    let column = &columns[at];
    let place = |e: Error| e.at(format!("column `{name}`"));
    if column.kind != Some(BYTE_ARRAY) || column.repeated {
        return Err(place(Error::new("found no texts, expected a column of strings")));
    }
    let mut found = Vec::new();
    for group in footer.list(4).iter().filter_map(Value::fields) {
        let chunk = group.list(1).get(at).and_then(Value::fields).and_then(|chunk| chunk.inner(3));
        let chunk = chunk.ok_or_else(|| place(Error::new("found a row group without this column")))?;
        // A dictionary stands before the first page of values.
        let starts = [chunk.size(9), chunk.size(11).filter(|start| *start > 0)];
        let start = starts.into_iter().flatten().min().unwrap_or(usize::MAX);
        let Some(bytes) = file.get(start..) else {
            return Err(place(Error::new(format!("found pages at {start} of {} bytes", file.len()))));
        };
        found.extend(texts(bytes, chunk, column.presence).map_err(place)?);
    }
    let rows = footer.size(3).unwrap_or(0);
    if found.len() != rows {
        return Err(place(Error::new(format!("found {} values, expected {rows}", found.len()))));
    }
    Ok(found)
}

/// What the end of a file says about the rest.
fn footer(file: &[u8]) -> Result<Fields> {
    let ends = file.starts_with(MAGIC) && file.ends_with(MAGIC) && file.len() >= 12;
    let Some(length) = file.len().checked_sub(8).filter(|_| ends).and_then(|at| file.get(at..)) else {
        bail!("found no Parquet file, expected one that begins and ends with PAR1"; hint: "--input says which kind it is");
    };
    let length = Reader::new(length).u32()?;
    let footer = (file.len() - 8).checked_sub(length).and_then(|at| file.get(at..file.len() - 8));
    let footer = footer.ok_or_else(|| Error::new(format!("found a footer of {length} bytes in {}", file.len())))?;
    Reader::new(footer).fields().map_err(|e| e.at("the footer"))
}

/// A column as the schema has it.
struct Column<'a> {
    /// Its name, with those of the groups around it.
    path: String,
    /// The outermost name.
    root: &'a str,
    kind: Option<i64>,
    presence: Presence,
    repeated: bool,
}

/// The columns in the order of the schema, which is a tree written down from its root.
fn columns(schema: &[Value]) -> Result<Vec<Column<'_>>> {
    let mut columns = Vec::new();
    // Of each group that is open: how many of its children are to come, and its name.
    let mut open: Vec<(usize, &str)> = Vec::new();
    for (i, element) in schema.iter().filter_map(Value::fields).enumerate() {
        let name = element.text(4).unwrap_or("");
        while open.last().is_some_and(|(left, _)| *left == 0) {
            open.pop();
        }
        if let Some((left, _)) = open.last_mut() {
            *left -= 1;
        }
        let children = element.size(5).unwrap_or(0);
        if children > schema.len() {
            bail!("found a group of {children} columns in a schema of {}", schema.len());
        }
        if children > 0 || i == 0 {
            // The root has a name that nobody uses.
            open.push((children, if i == 0 { "" } else { name }));
            continue;
        }
        let mut names: Vec<&str> = open.iter().map(|(_, name)| *name).filter(|name| !name.is_empty()).collect();
        let nested = !names.is_empty();
        names.push(name);
        let repetition = element.int(3).unwrap_or(REQUIRED);
        columns.push(Column {
            root: names.first().copied().unwrap_or(""),
            path: names.join("."),
            kind: element.int(1),
            presence: if repetition == REQUIRED { Presence::Required } else { Presence::Optional },
            repeated: nested || repetition == REPEATED,
        });
    }
    Ok(columns)
}
