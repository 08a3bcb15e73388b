//! Parquet as embeddings need it: a column of texts in, texts with their vectors out.
//!
//! The format is that of github.com/apache/parquet-format. The reader takes what pandas, Arrow and Spark write unless they
//! are told otherwise: plain and dictionary encodings, pages of version 1 and 2, without compression or with Snappy.
//! The `parquet` crate reads all there is, of which two columns are a small part.

mod column;
mod compact;
mod levels;
mod read;
mod snappy;
mod write;

pub use read::read_texts;
pub use write::write_embeddings;

/// What a file begins and ends with.
const MAGIC: &[u8; 4] = b"PAR1";
/// Physical types.
const FLOAT: i64 = 4;
/// Bytes of any number.
const BYTE_ARRAY: i64 = 6;
/// Whether a value may be absent or there several times.
const REQUIRED: i64 = 0;
const REPEATED: i64 = 2;
/// Values as they are.
const PLAIN: i64 = 0;
/// Runs and bit-packed groups.
const RLE: i64 = 3;

#[cfg(test)]
mod tests {
    use super::*;
    use quince_runtime::Embeddings;

    #[test]
    fn what_is_written_is_read() {
        let texts: Vec<String> = (0..20).map(|i| "é".repeat(i)).collect();
        let found = Embeddings { dimension: 3, values: (0..60).map(|i| i as f32).collect() };
        let mut file = Vec::new();
        write_embeddings(&mut file, texts.iter().map(String::as_str), &found).unwrap();
        assert_eq!(read_texts(&file, "text").unwrap(), texts);
        let error = read_texts(&file, "body").unwrap_err().to_string();
        assert!(error.contains("found the columns text, embedding, expected `body`"), "{error}");
        let error = read_texts(&file, "embedding").unwrap_err().to_string();
        assert!(error.contains("column `embedding`: found no texts"), "{error}");
    }

    /// Every shorter file, and every file with a byte turned, is read or refused, and nothing else.
    #[test]
    fn damaged_files_are_refused() {
        let texts: Vec<String> = (0..9).map(|i| format!("text {i}")).collect();
        let found = Embeddings { dimension: 2, values: vec![0.5; 18] };
        let mut file = Vec::new();
        write_embeddings(&mut file, texts.iter().map(String::as_str), &found).unwrap();
        for length in 0..file.len() {
            assert!(read_texts(&file[..length], "text").is_err(), "{length}");
        }
        for at in 0..file.len() {
            for turned in [0x01, 0x80, 0xff] {
                let mut damaged = file.clone();
                damaged[at] ^= turned;
                drop(read_texts(&damaged, "text"));
            }
        }
    }
}
