//! Named arrays in files: `.npz` or `.safetensors`, told apart by their ending; and their conversion to what a function
//! takes.

use crate::failure::{Result, refused};
use crate::npz;
use quince_checkpoint::SafetensorsFile;
use quince_mil::{Function, ValueType};
use quince_tensor::{DType, Error, Tensor, bail};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::path::Path;

/// Arrays by name.
pub type Arrays = BTreeMap<String, Tensor>;

/// Reads all arrays of a file.
///
/// # Errors
/// When it cannot be read, or is damaged; the error names file and array.
pub fn read(path: &Path) -> Result<Arrays> {
    if path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("safetensors")) {
        let file = SafetensorsFile::open(path)?;
        let names: Vec<String> = file.tensors().iter().map(|info| info.name.clone()).collect();
        return names.into_iter().map(|name| Ok((name.clone(), file.tensor(&name)?))).collect();
    }
    let file = File::open(path).map_err(|e| refused("open the arrays", path, &e))?;
    Ok(npz::read(BufReader::new(file)).map_err(|e| e.at(path.display()))?)
}

/// Writes an `.npz` file, whole or not at all.
///
/// # Errors
/// When the system refuses, or an array is of a type that numpy has not.
pub fn write(path: &Path, arrays: &Arrays) -> Result<()> {
    let partial = path.with_extension("npz.unfinished");
    let file = File::create(&partial).map_err(|e| refused("write", &partial, &e))?;
    let written = npz::write(BufWriter::new(file), arrays).map_err(|e| e.at(path.display()));
    let written = written.and_then(|()| std::fs::rename(&partial, path).map_err(|e| refused("write", path, &e)));
    if written.is_err() {
        // The error that matters is the one at hand.
        drop(std::fs::remove_file(&partial));
    }
    Ok(written?)
}

/// The inputs that a function takes, from arrays by name, converted where nothing is lost that matters: integers that
/// fit the type, floating point to floating point. Also the names of arrays that it does not take.
///
/// # Errors
/// When an input is missing, or its array cannot become one; shapes are checked where the function runs.
pub fn inputs_of(function: &Function, arrays: Arrays) -> Result<(Arrays, Vec<String>)> {
    let there: Vec<String> = arrays.keys().cloned().collect();
    let (inputs, unused) = given_inputs_of(function, arrays)?;
    let missing = function
        .inputs
        .iter()
        .map(|input| function.var(input.var))
        .find(|info| matches!(info.ty, ValueType::Tensor(_)) && !inputs.contains_key(&info.name));
    if let Some(info) = missing {
        let error = Error::new(format!("found no array `{}`, which function `{}` takes", info.name, function.name));
        return Err(error.hint(format_args!("the file has: {}", there.join(", "))).into());
    }
    Ok((inputs, unused))
}

/// [`inputs_of`] for those inputs that there are arrays of.
///
/// # Errors
/// When an array cannot become its input.
pub fn given_inputs_of(function: &Function, mut arrays: Arrays) -> Result<(Arrays, Vec<String>)> {
    let mut inputs = Arrays::new();
    for input in &function.inputs {
        let info = function.var(input.var);
        let ValueType::Tensor(ty) = &info.ty else { continue };
        let Some(array) = arrays.remove(&info.name) else { continue };
        let array = converted(&array, ty.dtype).map_err(|e| e.at(format!("array `{}`", info.name)))?;
        inputs.insert(info.name.clone(), array);
    }
    Ok((inputs, arrays.into_keys().collect()))
}

fn converted(array: &Tensor, wanted: DType) -> quince_tensor::Result<Tensor> {
    let found = array.dtype();
    if found == wanted {
        return Ok(array.clone());
    }
    match wanted.int_range() {
        Some((low, high)) if found.is_int() => {
            let values = array.to_i64()?;
            if let Some(value) = values.iter().find(|value| !(low..=high).contains(*value)) {
                bail!("found the value {value}, expected {wanted}, which holds {low} to {high}");
            }
            Tensor::from_i64(wanted, array.shape().to_vec(), &values)
        }
        None if found.is_float() && wanted.is_float() => array.cast(wanted),
        _ => bail!("found {found}, expected {wanted}"; hint: "numpy's astype converts an array"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_converted_only_where_they_fit() {
        let ids = converted(&Tensor::vector(vec![1i64, 2047]), DType::I32).unwrap();
        assert_eq!((ids.dtype(), ids.to_i64().unwrap()), (DType::I32, vec![1, 2047]));
        let error = converted(&Tensor::vector(vec![1i64 << 40]), DType::I32).unwrap_err().to_string();
        assert!(error.starts_with("found the value 1099511627776, expected int32"), "{error}");
        assert!(converted(&Tensor::vector(vec![1.5f32]), DType::I32).is_err());
        assert_eq!(converted(&Tensor::vector(vec![1.5f64]), DType::F16).unwrap().to_f32().unwrap(), [1.5]);
    }
}
