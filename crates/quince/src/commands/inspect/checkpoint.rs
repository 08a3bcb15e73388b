//! What a checkpoint holds, and what it would cost to convert and to run.

use crate::console::table;
use crate::failure::Result;
use crate::stored;
use crate::units;
use quince_checkpoint::Checkpoint;
use quince_compress::{
    Component, Granularity, Linear, LinearDType, LinearMode, Nbits, OptimizationConfig, Palette, Scheme, compress,
};
use quince_convert::lower::Precision;
use quince_convert::{Converted, Options, convert};
use quince_tensor::Error;
use serde::Serialize;
use std::collections::BTreeMap;

/// What there is to show.
#[derive(Serialize)]
pub struct Summary {
    kind: &'static str,
    path: String,
    format: &'static str,
    model_type: Option<String>,
    parameters: u64,
    bytes: u64,
    components: BTreeMap<&'static str, PartSummary>,
    #[serde(flatten)]
    conversion: Option<Conversion>,
    /// Why it cannot be converted.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_supported: Option<String>,
    tensors: Vec<TensorSummary>,
}

#[derive(Serialize, Default)]
struct PartSummary {
    tensors: u64,
    parameters: u64,
    bytes: u64,
    /// The element types in the files, with the number of tensors of each.
    types: BTreeMap<String, u64>,
}

#[derive(Serialize)]
struct TensorSummary {
    name: String,
    dtype: String,
    shape: Vec<usize>,
    bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
}

/// Bytes that a conversion has under way besides: some rows of a weight in two types, and the buffer of the file.
const STREAMED: u64 = 64 << 20;

/// What only a model of a known architecture tells.
#[derive(Serialize)]
struct Conversion {
    architecture: &'static str,
    max_positions: usize,
    /// Bytes of a float16 KV cache by tokens of context; an encoder has none.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    kv_cache_bytes: BTreeMap<usize, u64>,
    /// What bounds the memory of a conversion: the indices of the largest weight, a byte each, and what is streamed.
    conversion_bytes: u64,
    /// Bytes of the weights of the package by scheme, in the order of their sizes.
    package_bytes: Vec<SchemeSize>,
}

#[derive(Serialize)]
struct SchemeSize {
    scheme: String,
    options: String,
    bytes: u64,
    /// Weights that cannot take the scheme.
    #[serde(skip_serializing_if = "is_zero")]
    left: usize,
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

impl Summary {
    /// Looks at it.
    ///
    /// # Errors
    /// None but those of a program that cannot be compressed at all.
    pub fn of(checkpoint: &Checkpoint) -> Result<Summary> {
        let mut components: BTreeMap<&'static str, PartSummary> = BTreeMap::new();
        for tensor in checkpoint.tensors() {
            let part = components.entry(Component::of(tensor.name()).name()).or_default();
            part.tensors += 1;
            part.parameters += tensor.weight.len() as u64;
            part.bytes += tensor.byte_len();
            *part.types.entry(tensor.form().to_string()).or_default() += 1;
        }
        let (conversion, not_supported) = match Conversion::of(checkpoint) {
            Ok(conversion) => (Some(conversion), None),
            Err(error) => (None, Some(error.to_string())),
        };
        Ok(Summary {
            kind: "checkpoint",
            path: checkpoint.directory().unwrap_or(checkpoint.config().path()).display().to_string(),
            format: checkpoint.format(),
            model_type: checkpoint.config().model_type().ok(),
            parameters: checkpoint.parameters(),
            bytes: checkpoint.byte_len(),
            components,
            conversion,
            not_supported,
            tensors: checkpoint.tensors().map(|entry| TensorSummary::of(&entry)).collect(),
        })
    }

    /// For people.
    pub fn text(&self, with_tensors: bool) -> String {
        let model_type = self.model_type.as_deref().unwrap_or("no model_type");
        let (parameters, bytes) = (units::grouped(self.parameters), units::bytes(self.bytes));
        let mut text =
            format!("{}: {} checkpoint, {model_type}, {parameters} parameters, {bytes}\n\n", self.path, self.format);
        text += &table(
            &["component", "tensors", "parameters", "bytes", "types"],
            &[1, 2, 3],
            self.components.iter().map(|(name, part)| {
                let (count, size) = (part.tensors.to_string(), units::bytes(part.bytes));
                let types = part.types.keys().cloned().collect::<Vec<_>>().join(", ");
                vec![name.to_string(), count, units::grouped(part.parameters), size, types]
            }),
        );
        match (&self.conversion, &self.not_supported) {
            (Some(conversion), _) => text += &conversion.text(),
            (None, reason) => text += &format!("\nit cannot be converted: {}\n", reason.as_deref().unwrap_or_default()),
        }
        if with_tensors {
            let shape = |t: &TensorSummary| units::shape(t.shape.iter().copied().map(Some));
            let row = |t: &TensorSummary| vec![t.name.clone(), t.dtype.clone(), shape(t), units::bytes(t.bytes)];
            text += "\n";
            text += &table(&["tensor", "type", "shape", "bytes"], &[3], self.tensors.iter().map(row));
        }
        text
    }
}

impl TensorSummary {
    fn of(entry: &quince_checkpoint::Entry) -> TensorSummary {
        let file = entry.file().and_then(|path| path.file_name()).map(|name| name.to_string_lossy().into_owned());
        TensorSummary {
            name: entry.name().to_string(),
            dtype: entry.form().to_string(),
            shape: entry.shape().to_vec(),
            bytes: entry.byte_len(),
            file,
        }
    }
}

impl Conversion {
    fn of(checkpoint: &Checkpoint) -> Result<Conversion, Error> {
        let converted = convert(checkpoint, &Options::default())?;
        let semantic = &converted.semantic;
        let largest = checkpoint.tensors().map(|entry| entry.weight.len() as u64).max();
        let mut package_bytes = vec![
            SchemeSize::plain("float32", "--compute-precision float32", &single(checkpoint)?),
            SchemeSize::plain("float16", "", &converted),
        ];
        for (options, scheme) in schemes()? {
            // A scheme that no weight can take is not on offer.
            package_bytes.extend(SchemeSize::compressed(options, scheme, &converted));
        }
        package_bytes.sort_by_key(|size| std::cmp::Reverse(size.bytes));
        Ok(Conversion {
            architecture: semantic.architecture,
            max_positions: semantic.max_positions,
            kv_cache_bytes: contexts(semantic.max_positions)
                .filter(|_| semantic.vocab_size > 0)
                .map(|context| {
                    let g = converted.kv_geometry;
                    // Keys and values, two bytes for an element.
                    (context, 2 * 2 * (g.layers * g.kv_heads * g.head_dim) as u64 * context as u64)
                })
                .collect(),
            conversion_bytes: largest.unwrap_or(0) + STREAMED,
            package_bytes,
        })
    }

    fn text(&self) -> String {
        let mut text = format!(
            "\narchitecture {}, made for {} tokens; conversion has at most {} of weights in memory\n\n",
            self.architecture,
            units::grouped(self.max_positions as u64),
            units::bytes(self.conversion_bytes),
        );
        if !self.kv_cache_bytes.is_empty() {
            let cache = self.kv_cache_bytes.iter();
            let row = |(context, bytes): (&usize, &u64)| vec![units::grouped(*context as u64), units::bytes(*bytes)];
            text += &table(&["--context", "KV cache"], &[0, 1], cache.map(row));
            text += "\n";
        }
        let row = |size: &SchemeSize| {
            let left = if size.left > 0 { format!("{} weights stay float16", size.left) } else { String::new() };
            vec![size.scheme.clone(), units::bytes(size.bytes), size.options.clone(), left]
        };
        text += &table(&["package", "weights", "options", ""], &[1], self.package_bytes.iter().map(row));
        text
    }
}

/// The same model in float32.
fn single(checkpoint: &Checkpoint) -> Result<Converted, Error> {
    convert(checkpoint, &Options { precision: Precision::Float32, ..Options::default() })
}

impl SchemeSize {
    fn plain(scheme: &str, options: &str, converted: &Converted) -> SchemeSize {
        let bytes = stored::weights(&converted.program).iter().map(|weight| weight.bytes).sum();
        SchemeSize { scheme: scheme.to_string(), options: options.to_string(), bytes, left: 0 }
    }

    fn compressed(options: &str, scheme: Scheme, converted: &Converted) -> Option<SchemeSize> {
        let mut program = converted.program.clone();
        let report = compress(&mut program, &OptimizationConfig::all(scheme)).ok()?;
        let bytes = stored::weights(&program).iter().map(|weight| weight.bytes).sum();
        // Tables of positions are computed, not learned: nobody expects them compressed.
        let left = report.left.iter().filter(|(name, _)| Component::of(name) != Component::Other).count();
        Some(SchemeSize { scheme: scheme.to_string(), options: options.to_string(), bytes, left })
    }
}

/// The schemes that people choose between, with the options that ask for them.
///
/// # Errors
/// None: every number in them is one that is allowed.
pub fn schemes() -> Result<Vec<(&'static str, Scheme)>, Error> {
    let palette = |bits: usize| -> Result<Scheme, Error> { Ok(Palette::kmeans(Nbits::new(bits)?, Some(16)).into()) };
    let linear = |dtype, granularity| Linear { dtype, mode: LinearMode::Symmetric, granularity }.into();
    Ok(vec![
        ("--wbits 8 --palett-group-size 16", palette(8)?),
        ("--wbits 6 --palett-group-size 16", palette(6)?),
        ("--wbits 4 --palett-group-size 16", palette(4)?),
        ("--wbits 3 --palett-group-size 16", palette(3)?),
        ("--wbits 2 --palett-group-size 16", palette(2)?),
        ("--wbits 1 --palett-group-size 16", palette(1)?),
        ("--quantize int8", linear(LinearDType::Int8, Granularity::PerChannel)),
        ("--quantize int4 --quantize-block-size 32", linear(LinearDType::Int4, Granularity::PerBlock(32))),
    ])
}

/// Powers of two from 512 to below the longest context, and that.
fn contexts(longest: usize) -> impl Iterator<Item = usize> {
    (9..usize::BITS).map(|power| 1usize << power).take_while(move |&context| context < longest).chain([longest])
}
