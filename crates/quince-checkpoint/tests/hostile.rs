//! Safetensors files made to mislead: each must give an error that says where and what, and none may panic.

use quince_checkpoint::SafetensorsHeader;

/// A file with this header and `data` bytes behind it.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 7);
    bytes
}

fn error(bytes: &[u8]) -> String {
    SafetensorsHeader::parse(bytes).unwrap_err().to_string()
}

/// Header, number of data bytes, and the error.
const LIES: &[(&str, usize, &str)] = &[
    (
        r#"{"w":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}"#,
        15,
        "tensor `w`: found a file of 80 bytes, expected 81 as the header says; \
         hint: the file is cut short; download it again",
    ),
    (
        r#"{"w":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}"#,
        17,
        "found 1 bytes after the last tensor, expected the file to end at byte 81",
    ),
    (
        r#"{"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,16]}}"#,
        16,
        "tensor `w`: found 16 bytes at data_offsets [0, 16], expected 24 for F32 of shape [2, 3]",
    ),
    (
        r#"{"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[8],"data_offsets":[4,12]}}"#,
        12,
        "tensor `b`: found overlap with a, expected bytes from 122 on, not 118",
    ),
    (
        r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[8,12]}}"#,
        12,
        "tensor `b`: found a gap after a, expected bytes from 118 on, not 122",
    ),
    (
        r#"{"w":{"dtype":"U8","shape":[4],"data_offsets":[8,4]}}"#,
        8,
        "tensor `w`: data_offsets [8, 4] end before they begin",
    ),
    (
        r#"{"w":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"w":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}"#,
        8,
        "byte 113: found a bad header: found the tensor `w` twice",
    ),
    (
        r#"{"w":{"dtype":"F128","shape":[1],"data_offsets":[0,16]}}"#,
        16,
        "tensor `w`: found the dtype `F128`, expected one of BOOL, U8, U16, U32, U64, I8, I16, I32, I64, F8_E4M3, \
         F8_E5M2, BF16, F16, F32, F64",
    ),
    (r#"{"w":{"dtype":"F32","data_offsets":[0,16]}}"#, 16, "byte 50: found a bad header: `w`: missing field `shape`"),
    (
        r#"{"w":{"dtype":"U8","shape":[-4],"data_offsets":[0,4]}}"#,
        4,
        "byte 38: found a bad header: `w`: invalid value: integer `-4`, expected usize",
    ),
    (
        r#"{"w":{"dtype":"U8","shape":[0,9223372036854775807,9223372036854775807],"data_offsets":[0,0]}}"#,
        0,
        "tensor `w`: the shape [0, 9223372036854775807, 9223372036854775807] is larger than memory can address",
    ),
    (
        r#"{"w":{"dtype":"U8","shape":[1],"data_offsets":[18446744073709551614,18446744073709551615]}}"#,
        1,
        "tensor `w`: data_offsets [18446744073709551614, 18446744073709551615] lie beyond what memory can address",
    ),
    (
        r#"["w"]"#,
        0,
        "byte 8: found byte 0x5b, expected `{` at the beginning of the header; hint: this is not a safetensors file",
    ),
    ("", 0, "byte 8: found an empty header, expected a JSON object; hint: this is not a safetensors file"),
    (
        r#"{"w":3}"#,
        0,
        "byte 14: found a bad header: `w`: invalid type: integer `3`, expected dtype, shape and data_offsets",
    ),
    ("{", 0, "byte 9: found a bad header: EOF while parsing an object"),
];

#[test]
fn a_header_that_lies_is_caught() {
    for (header, data, expected) in LIES {
        assert_eq!(error(&file(header, *data)), *expected);
    }
}

#[test]
fn a_length_that_lies_is_caught_before_anything_is_allocated() {
    let mut bytes = file("{}", 0);
    bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(error(&bytes).starts_with("byte 0: found a header length of 18446744073709551615 bytes"));
    bytes[..8].copy_from_slice(&99_999_999u64.to_le_bytes());
    assert!(error(&bytes).starts_with("byte 0: found 2 bytes after the header length, expected 99999999; hint: "));
    assert!(error(&bytes[..7]).starts_with("found 7 bytes, expected at least 8"));
    assert!(error(&[]).starts_with("found 0 bytes, expected at least 8"));
}

#[test]
fn other_kinds_of_files_are_told_by_name() {
    assert!(error(b"version https://git-lfs.github.com/spec/v1\noid").contains("run `git lfs pull`"));
    assert!(error(b"PK\x03\x04aaaaaaaaaaaaaaaaaaaaaaaaaaa").contains("save it as safetensors"));
    assert!(error(b"<!DOCTYPE html><html></html>").contains("a web page"));
}

#[test]
fn bytes_that_are_no_text_are_placed() {
    let mut bytes = file(r#"{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, 1);
    bytes[10] = 0xff;
    assert_eq!(error(&bytes), "byte 10: found bytes that are not UTF-8 in the header");
}

#[test]
fn every_cut_of_a_good_file_is_an_error() {
    let good = file(r#"{"__metadata__":{"format":"pt"},"w":{"dtype":"F16","shape":[3],"data_offsets":[0,6]}}"#, 6);
    let header = SafetensorsHeader::parse(&good).unwrap();
    assert_eq!(header.metadata().get("format").map(String::as_str), Some("pt"));
    assert_eq!(header.tensors()[0].range, good.len() - 6..good.len());
    for length in 0..good.len() {
        assert!(SafetensorsHeader::parse(&good[..length]).is_err(), "cut to {length} bytes");
    }
}

/// Changes a good file in a few places, a hundred thousand times. Whatever is still accepted must keep the promises
/// that the rest of the program builds on, and the reference reader must accept it too.
#[test]
fn mutated_files_neither_panic_nor_break_the_promise() {
    let good = file(
        r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[4,2],"data_offsets":[0,16]},"b":{"dtype":"I64","shape":[1],"data_offsets":[16,24]}}"#,
        24,
    );
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 33) as usize % below
    };
    let mut accepted = 0;
    for _ in 0..100_000 {
        let mut bytes = good.clone();
        for _ in 0..=random(3) {
            let at = random(bytes.len());
            match random(4) {
                0 => bytes[at] = random(256) as u8,
                1 => bytes[at] ^= 1 << random(8),
                2 => bytes[at] = b"0123456789[]{},:\""[random(17)],
                _ => bytes.truncate(at.max(1)),
            }
        }
        let Ok(header) = SafetensorsHeader::parse(&bytes) else { continue };
        accepted += 1;
        for tensor in header.tensors() {
            let count: usize = tensor.shape.iter().product();
            assert_eq!(tensor.dtype.byte_len(count), bytes.get(tensor.range.clone()).map(<[u8]>::len));
        }
        assert!(safetensors::SafeTensors::deserialize(&bytes).is_ok());
    }
    assert!(accepted > 1000, "only {accepted} mutations were accepted: the test has lost its point");
}
