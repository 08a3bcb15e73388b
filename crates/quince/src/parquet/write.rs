//! Writing texts with their vectors: a column of strings and one of lists of float32.

use super::compact::{Fields, Value, write_fields};
use super::levels::write_run;
use super::{BYTE_ARRAY, FLOAT, MAGIC, PLAIN, REPEATED, REQUIRED, RLE};
use quince_runtime::Embeddings;
use std::io::{Result, Write};

/// The numbers of a page, so that readers need little memory.
const PAGE_NUMBERS: usize = 1 << 20;
/// The most rows of a row group.
const GROUP_ROWS: usize = 1 << 16;
/// Says that bytes are text, and that a group is a list.
const UTF8: i32 = 0;
const LIST: i32 = 3;

/// Writes a file with the columns `text` and `embedding`. The same input gives the same bytes.
///
/// # Errors
/// When the system refuses.
pub fn write_embeddings<'a>(
    file: &mut impl Write,
    texts: impl Iterator<Item = &'a str>,
    found: &Embeddings,
) -> Result<()> {
    let (mut at, mut groups, mut rows) = (MAGIC.len(), Vec::new(), 0);
    file.write_all(MAGIC)?;
    let per_group = (PAGE_NUMBERS / found.dimension.max(1)).clamp(1, GROUP_ROWS);
    let (mut texts, mut vectors) = (texts.peekable(), found.rows());
    while texts.peek().is_some() {
        let some: Vec<&str> = texts.by_ref().take(per_group).collect();
        let some_vectors: Vec<&[f32]> = vectors.by_ref().take(some.len()).collect();
        let columns = [text_page(&some), vector_page(&some_vectors, found.dimension)];
        let paths = [&["text"][..], &["embedding", "list", "element"]];
        let mut chunks = Vec::new();
        let mut bytes = 0;
        for ((values, kind, page), path) in columns.into_iter().zip(paths) {
            file.write_all(&page)?;
            chunks.push(chunk(kind, path, values, at, page.len()));
            (at, bytes) = (at + page.len(), bytes + page.len());
        }
        let group = [(1, Value::List(chunks)), (2, size(bytes)), (3, size(some.len()))];
        groups.push(structure(group));
        rows += some.len();
    }
    let mut footer = Vec::new();
    let created_by = concat!("quince version ", env!("CARGO_PKG_VERSION"));
    write_fields(
        &mut footer,
        &[(1, Value::Small(1)), (2, schema()), (3, size(rows)), (4, Value::List(groups)), (6, text(created_by))],
    );
    file.write_all(&footer)?;
    file.write_all(&(footer.len() as u32).to_le_bytes())?;
    file.write_all(MAGIC)
}

/// The number of values, their type, and the page of them.
type Page = (usize, i64, Vec<u8>);

fn text_page(texts: &[&str]) -> Page {
    let mut values = Vec::new();
    for text in texts {
        values.extend((text.len() as u32).to_le_bytes());
        values.extend(text.bytes());
    }
    (texts.len(), BYTE_ARRAY, page(texts.len(), &values))
}

fn vector_page(vectors: &[&[f32]], dimension: usize) -> Page {
    let (mut repetition, mut definition) = (Vec::new(), Vec::new());
    for _ in vectors {
        // The first number of a vector begins a list, the others go on with it.
        write_run(&mut repetition, 1, 0);
        write_run(&mut repetition, dimension.saturating_sub(1), 1);
    }
    let count = vectors.len() * dimension;
    write_run(&mut definition, count, 1);
    let mut values = Vec::new();
    for levels in [repetition, definition] {
        values.extend((levels.len() as u32).to_le_bytes());
        values.extend(levels);
    }
    values.extend(vectors.iter().flat_map(|vector| vector.iter()).flat_map(|number| number.to_le_bytes()));
    (count, FLOAT, page(count, &values))
}

/// A page of version 1 with its header.
fn page(count: usize, contents: &[u8]) -> Vec<u8> {
    let numbers = [(1, small(count as i64)), (2, small(PLAIN)), (3, small(RLE)), (4, small(RLE))];
    let length = Value::Small(contents.len() as i32);
    let mut page = Vec::new();
    write_fields(&mut page, &[(1, small(0)), (2, length.clone()), (3, length), (5, structure(numbers))]);
    page.extend(contents);
    page
}

fn chunk(kind: i64, path: &[&str], values: usize, at: usize, length: usize) -> Value {
    let metadata = [
        (1, small(kind)),
        (2, Value::List(vec![small(PLAIN), small(RLE)])),
        (3, Value::List(path.iter().map(|name| text(name)).collect())),
        (4, small(0)),
        (5, size(values)),
        (6, size(length)),
        (7, size(length)),
        (9, size(at)),
    ];
    structure([(2, size(at)), (3, structure(metadata))])
}

/// ```text
/// message schema {
///   required binary text (UTF8);
///   required group embedding (LIST) { repeated group list { required float element; } }
/// }
/// ```
fn schema() -> Value {
    // 10 is the logical type, which newer readers go by: field 1 of it is a string, field 3 a list.
    let logical = |field: i16| (10, structure([(field, structure([]))]));
    Value::List(vec![
        structure([(4, text("schema")), (5, small(2))]),
        structure([
            (1, small(BYTE_ARRAY)),
            (3, small(REQUIRED)),
            (4, text("text")),
            (6, Value::Small(UTF8)),
            logical(1),
        ]),
        structure([(3, small(REQUIRED)), (4, text("embedding")), (5, small(1)), (6, Value::Small(LIST)), logical(3)]),
        structure([(3, small(REPEATED)), (4, text("list")), (5, small(1))]),
        structure([(1, small(FLOAT)), (3, small(REQUIRED)), (4, text("element"))]),
    ])
}

fn structure<const N: usize>(fields: [(i16, Value); N]) -> Value {
    Value::Struct(Fields::from(fields))
}

fn small(number: i64) -> Value {
    Value::Small(number as i32)
}

fn size(number: usize) -> Value {
    Value::Int(number as i64)
}

fn text(text: &str) -> Value {
    Value::Bytes(text.as_bytes().to_vec())
}
