//! NumPy's `.npz`: a zip archive with an `.npy` file for each array.
//!
//! The format is that of NumPy's document NEP 1: a magic string, a version, a header that is a Python dictionary, and
//! the elements. The header is parsed strictly: only what numpy writes is taken.

use quince_tensor::{Bytes, DType, Error, Result, Tensor, bail};
use std::collections::BTreeMap;
use std::io::{self, Read, Seek, Write};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

const MAGIC: &[u8] = b"\x93NUMPY";
/// The longest header that is read; numpy's have about a hundred bytes.
const MAX_HEADER: usize = 1 << 16;
/// The most axes; numpy's own limit.
const MAX_RANK: usize = 64;

/// Element types with their codes in a header, without the letter of the byte order.
const CODES: &[(DType, &str)] = &[
    (DType::F16, "f2"),
    (DType::F32, "f4"),
    (DType::F64, "f8"),
    (DType::I8, "i1"),
    (DType::I16, "i2"),
    (DType::I32, "i4"),
    (DType::I64, "i8"),
    (DType::U8, "u1"),
    (DType::U16, "u2"),
    (DType::U32, "u4"),
    (DType::U64, "u8"),
    (DType::Bool, "b1"),
];

/// Reads all arrays of an archive.
///
/// # Errors
/// When it is no zip archive, or an array in it is damaged or of a type that is not taken; the error names the array.
pub fn read(file: impl Read + Seek) -> Result<BTreeMap<String, Tensor>> {
    let mut archive = ZipArchive::new(file)
        .map_err(|e| Error::new(format!("found no .npz archive: {e}, expected one that numpy.savez wrote")))?;
    let mut arrays = BTreeMap::new();
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).map_err(|e| Error::new(format!("entry {index}: {e}")))?;
        let name = entry.name().strip_suffix(".npy").unwrap_or(entry.name()).to_string();
        let tensor = read_npy(&mut entry).map_err(|e| e.at(format!("array `{name}`")))?;
        if arrays.insert(name.clone(), tensor).is_some() {
            bail!("array `{name}`: found two of this name, expected one");
        }
    }
    Ok(arrays)
}

/// Writes an archive that numpy.load takes. The same arrays give the same bytes.
///
/// # Errors
/// When a tensor is of a type that numpy has not, or the file cannot be written.
pub fn write(mut file: impl Write, arrays: &BTreeMap<String, Tensor>) -> Result<()> {
    let failed =
        |name: &str, e: &dyn std::fmt::Display| Error::new(format!("cannot write: {e}")).at(format!("array `{name}`"));
    // Made in memory: an archive that cannot be ended says so on stderr, and hides what the system said.
    let mut archive = ZipWriter::new(io::Cursor::new(Vec::new()));
    for (name, tensor) in arrays {
        let header = header(tensor).map_err(|e| e.at(format!("array `{name}`")))?;
        // zip's `DateTime` is 1980 unless told otherwise, so bytes do not depend on the time.
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .last_modified_time(zip::DateTime::default())
            .large_file(tensor.bytes().len() > 1 << 31);
        archive.start_file(format!("{name}.npy"), options).map_err(|e| failed(name, &e))?;
        archive.write_all(&header).and_then(|()| archive.write_all(tensor.bytes())).map_err(|e| failed(name, &e))?;
    }
    let bytes = archive.finish().map_err(|e| Error::new(format!("cannot finish the archive: {e}")))?.into_inner();
    file.write_all(&bytes).and_then(|()| file.flush()).map_err(|e| unwritten(&e))
}

/// Writes one array as an `.npy` file that numpy.load takes.
///
/// # Errors
/// When the tensor is of a type that numpy has not, or the file cannot be written.
pub fn write_npy(file: &mut impl Write, tensor: &Tensor) -> Result<()> {
    let header = header(tensor)?;
    file.write_all(&header).and_then(|()| file.write_all(tensor.bytes())).map_err(|e| unwritten(&e))
}

/// What the system said when it refused to write.
pub fn unwritten(error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::StorageFull => {
            Error::new("cannot write: the disk is full").hint("free some space, or write to another disk")
        }
        _ => Error::new(format!("cannot write: {error}")),
    }
}

/// Reads one `.npy` file.
fn read_npy(file: &mut impl Read) -> Result<Tensor> {
    let cut = |e: std::io::Error| Error::new(format!("the .npy file is cut: {e}"));
    let mut start = [0u8; 8];
    file.read_exact(&mut start).map_err(cut)?;
    let [.., major, minor] = start;
    if !start.starts_with(MAGIC) {
        bail!("found no .npy file, expected one that begins with \\x93NUMPY");
    }
    let length = match (major, minor) {
        (1, 0) => {
            let mut length = [0u8; 2];
            file.read_exact(&mut length).map_err(cut)?;
            usize::from(u16::from_le_bytes(length))
        }
        (2 | 3, 0) => {
            let mut length = [0u8; 4];
            file.read_exact(&mut length).map_err(cut)?;
            u32::from_le_bytes(length) as usize
        }
        _ => bail!("found version {major}.{minor} of .npy, expected 1.0, 2.0 or 3.0"),
    };
    if length > MAX_HEADER {
        bail!("found a header of {length} bytes, expected at most {MAX_HEADER}");
    }
    let mut text = vec![0u8; length];
    file.read_exact(&mut text).map_err(cut)?;
    let Ok(text) = std::str::from_utf8(&text) else { bail!("found a header that is not text") };
    let header = Header::parse(text)?;
    let expected = header.byte_len()?;
    // The vector grows with what is really there, whatever the header promises.
    let mut bytes = Vec::new();
    file.take(expected as u64 + 1).read_to_end(&mut bytes).map_err(|e| Error::new(format!("cannot read: {e}")))?;
    if bytes.len() != expected {
        let (dtype, shape) = (header.dtype, &header.shape);
        bail!("found {} bytes or more, expected {expected} for {dtype} of shape {shape:?}", bytes.len());
    }
    if header.dtype == DType::Bool && bytes.iter().any(|&byte| byte > 1) {
        bail!("found a truth value that is neither 0 nor 1");
    }
    let stored = if header.column_major { header.shape.iter().rev().copied().collect() } else { header.shape.clone() };
    // Small vectors of bytes need not be aligned for their elements.
    let tensor = Tensor::new(header.dtype, stored, Bytes::from_vec(bytes))?.aligned();
    if header.column_major { reverse_axes(&tensor) } else { Ok(tensor) }
}

/// What a header says.
struct Header {
    dtype: DType,
    shape: Vec<usize>,
    column_major: bool,
}

impl Header {
    fn parse(text: &str) -> Result<Header> {
        let mut cursor = Cursor { rest: text };
        let (mut dtype, mut column_major, mut shape) = (None, None, None);
        cursor.expect("{")?;
        while !cursor.take("}") {
            let key = cursor.string()?;
            cursor.expect(":")?;
            match key {
                "descr" if dtype.is_none() => dtype = Some(element_type(cursor.string()?)?),
                "fortran_order" if column_major.is_none() => column_major = Some(cursor.truth()?),
                "shape" if shape.is_none() => shape = Some(cursor.shape()?),
                _ => bail!("found the key `{key}` in the header, expected descr, fortran_order and shape, once each"),
            }
            if !cursor.take(",") {
                cursor.expect("}")?;
                break;
            }
        }
        if !cursor.rest.trim().is_empty() {
            bail!("found text after the header's dictionary");
        }
        match (dtype, column_major, shape) {
            (Some(dtype), Some(column_major), Some(shape)) => Ok(Header { dtype, shape, column_major }),
            _ => bail!("found a header without one of descr, fortran_order and shape"),
        }
    }

    fn byte_len(&self) -> Result<usize> {
        let count = self.shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size));
        let length = count.and_then(|n| self.dtype.byte_len(n)).filter(|&n| n < isize::MAX as usize);
        length.ok_or_else(|| Error::new(format!("found the shape {:?}, which is larger than memory", self.shape)))
    }
}

fn element_type(code: &str) -> Result<DType> {
    let known: Vec<&str> = CODES.iter().map(|(_, code)| *code).collect();
    let Some(order @ ('<' | '>' | '|' | '=')) = code.chars().next() else {
        bail!("found the element type `{code}`, expected one of {}", known.join(", "));
    };
    let Some((dtype, _)) = CODES.iter().find(|(_, known)| code.get(1..) == Some(known)) else {
        bail!("found the element type `{code}`, expected one of {}", known.join(", ");
              hint: "numpy's astype converts an array");
    };
    if order == '>' && dtype.bits() > 8 {
        bail!("found the big-endian element type `{code}`, expected little-endian"; hint: "save it after .astype('<{}')", &code[1..]);
    }
    Ok(*dtype)
}

/// What is left of a header.
struct Cursor<'a> {
    rest: &'a str,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, token: &str) -> bool {
        match self.rest.trim_start().strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, token: &str) -> Result<()> {
        if !self.take(token) {
            let found: String = self.rest.trim_start().chars().take(20).filter(|c| !c.is_control()).collect();
            bail!("header: found `{found}`, expected `{token}`");
        }
        Ok(())
    }

    fn string(&mut self) -> Result<&'a str> {
        self.expect("'")?;
        match self.rest.split_once('\'') {
            Some((string, rest)) => {
                self.rest = rest;
                Ok(string)
            }
            None => bail!("header: found a string without end"),
        }
    }

    fn truth(&mut self) -> Result<bool> {
        if self.take("True") {
            return Ok(true);
        }
        self.expect("False")?;
        Ok(false)
    }

    fn shape(&mut self) -> Result<Vec<usize>> {
        self.expect("(")?;
        let mut shape = Vec::new();
        while !self.take(")") {
            let rest = self.rest.trim_start();
            let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let Ok(size) = rest[..digits].parse::<usize>() else {
                bail!("header: found a shape that is not of numbers")
            };
            shape.push(size);
            self.rest = &rest[digits..];
            if !self.take(",") {
                self.expect(")")?;
                break;
            }
            if shape.len() > MAX_RANK {
                bail!("header: found more than {MAX_RANK} axes");
            }
        }
        Ok(shape)
    }
}

/// The tensor with its axes in the opposite order: what was stored by columns becomes rows.
fn reverse_axes(tensor: &Tensor) -> Result<Tensor> {
    let width = tensor.dtype().bits() / 8;
    let stored = tensor.shape();
    let shape: Vec<usize> = stored.iter().rev().copied().collect();
    let mut bytes = Vec::with_capacity(tensor.bytes().len());
    let mut index = vec![0usize; shape.len()];
    // The first axis of the result is the fastest of what is stored.
    let mut strides = vec![1usize; shape.len()];
    for axis in 1..shape.len() {
        strides[axis] = strides[axis - 1] * shape[axis - 1];
    }
    for _ in 0..tensor.len() {
        let at: usize = index.iter().zip(&strides).map(|(i, stride)| i * stride).sum();
        bytes.extend_from_slice(&tensor.bytes()[at * width..(at + 1) * width]);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            if index[axis] < shape[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
    Ok(Tensor::new(tensor.dtype(), shape, Bytes::from_vec(bytes))?.aligned())
}

/// The magic string, version and header of a tensor, padded so that the elements begin at a multiple of 64.
///
/// # Errors
/// When it is of a type that numpy has not.
pub fn header(tensor: &Tensor) -> Result<Vec<u8>> {
    let dtype = tensor.dtype();
    let Some((_, code)) = CODES.iter().find(|(known, _)| *known == dtype) else {
        bail!("found {dtype}, which numpy has not"; hint: "write safetensors, or convert with --compute-precision float32");
    };
    let order = if dtype.bits() == 8 { '|' } else { '<' };
    let sizes: Vec<String> = tensor.shape().iter().map(usize::to_string).collect();
    let shape = if sizes.len() == 1 { format!("({},)", sizes[0]) } else { format!("({})", sizes.join(", ")) };
    let mut text = format!("{{'descr': '{order}{code}', 'fortran_order': False, 'shape': {shape}, }}");
    let unpadded = MAGIC.len() + 4 + text.len() + 1;
    text.push_str(&" ".repeat(unpadded.next_multiple_of(64) - unpadded));
    text.push('\n');
    // With at most 64 axes the text is far below 65536 bytes.
    let length = u16::try_from(text.len()).map_err(|_| Error::new("the header is too long for .npy"))?;
    let mut bytes = MAGIC.to_vec();
    bytes.extend([1, 0]);
    bytes.extend(length.to_le_bytes());
    bytes.extend(text.as_bytes());
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_what_the_error_says() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let arrays = BTreeMap::from([("a".to_string(), Tensor::vector(vec![1i32; 100]))]);
        let error = write(Full, &arrays).unwrap_err().to_string();
        assert!(error.starts_with("cannot write: the disk is full; hint: free some space"), "{error}");
    }
    use std::io::Cursor as Memory;

    fn arrays() -> BTreeMap<String, Tensor> {
        [
            ("a".to_string(), Tensor::from_vec([2, 3], vec![1f32, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap()),
            ("b".to_string(), Tensor::vector(vec![1i64, -1])),
            ("c".to_string(), Tensor::scalar(quince_tensor::f16::from_f32(0.5))),
            ("d".to_string(), Tensor::from_bools([3], &[true, false, true]).unwrap()),
        ]
        .into()
    }

    #[test]
    fn arrays_come_back_and_bytes_do_not_change() {
        let (mut first, mut second) = (Memory::new(Vec::new()), Memory::new(Vec::new()));
        write(&mut first, &arrays()).unwrap();
        write(&mut second, &arrays()).unwrap();
        assert_eq!(first.get_ref(), second.get_ref());
        let back = read(first).unwrap();
        assert_eq!(back.len(), 4);
        assert!(back.iter().all(|(name, tensor)| tensor.same(&arrays()[name])));
    }

    fn npy(header: &str, bytes: &[u8]) -> Result<Tensor> {
        let mut file = MAGIC.to_vec();
        file.extend([1, 0]);
        file.extend((header.len() as u16).to_le_bytes());
        file.extend(header.as_bytes());
        file.extend(bytes);
        read_npy(&mut &file[..])
    }

    #[test]
    fn one_array_comes_back() {
        let mut file = Vec::new();
        write_npy(&mut file, &arrays()["a"]).unwrap();
        assert!(read_npy(&mut &file[..]).unwrap().same(&arrays()["a"]));
    }

    #[test]
    fn columns_become_rows() {
        // numpy.asfortranarray([[1, 2, 3], [4, 5, 6]]).astype('u1') is stored 1 4 2 5 3 6.
        let tensor = npy("{'descr': '|u1', 'fortran_order': True, 'shape': (2, 3), }\n", &[1, 4, 2, 5, 3, 6]).unwrap();
        assert_eq!((tensor.shape(), &tensor.bytes()[..]), (&[2, 3][..], &[1, 2, 3, 4, 5, 6][..]));
    }

    #[test]
    fn damaged_files_are_named() {
        let good = "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }";
        assert!(npy(good, &[0; 4]).is_ok());
        for (header, bytes, expected) in [
            (good, 3, "found 3 bytes or more, expected 4 for fp32 of shape [1]"),
            (good, 5, "found 5 bytes or more, expected 4 for fp32 of shape [1]"),
            ("{'descr': '>f4', 'fortran_order': False, 'shape': (1,), }", 4, "found the big-endian"),
            ("{'descr': '<c8', 'fortran_order': False, 'shape': (1,), }", 8, "found the element type `<c8`"),
            (
                "{'descr': '<f4', 'fortran_order': 1, 'shape': (1,), }",
                4,
                "header: found `1, 'shape': (1,), }`, expected `False`",
            ),
            ("{'descr': '<f4', 'shape': (1,), }", 4, "found a header without one of"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }", 4, "header: found a shape"),
            ("{'descr': '<f8', 'fortran_order': False, 'shape': (9223372036854775807, 4), }", 4, "found the shape"),
            ("", 0, "header: found ``, expected `{`"),
        ] {
            let error = npy(header, &vec![0; bytes]).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        assert!(read(Memory::new(b"PK".to_vec())).unwrap_err().to_string().starts_with("found no .npz archive"));
    }
}
