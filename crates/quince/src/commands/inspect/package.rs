//! What a package, a compiled model or a bundle holds.

use crate::console::table;
use crate::failure::{Result, refused};
use crate::stored::{self, Stored};
use crate::units;
use quince_mil::{Function, Opset};
use quince_mlpackage::is_compiled;
use quince_runtime::{Bundle, Feature, FunctionShape, Manifest, PartEntry};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// What there is to show.
#[derive(Serialize)]
pub struct Summary {
    kind: &'static str,
    path: String,
    specification_version: i32,
    minimum_deployment_target: &'static str,
    bytes: u64,
    parameters: u64,
    /// Bytes of the states, or of the inputs and outputs, that carry the KV cache for the package's context.
    #[serde(skip_serializing_if = "Option::is_none")]
    kv_cache_bytes: Option<u64>,
    functions: BTreeMap<String, FunctionSummary>,
    components: BTreeMap<&'static str, PartSummary>,
    tensors: Vec<TensorSummary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    manifest: Option<Manifest>,
}

#[derive(Serialize)]
struct FunctionSummary {
    #[serde(flatten)]
    interface: FunctionShape,
    operations: BTreeMap<String, usize>,
}

#[derive(Serialize)]
struct PartSummary {
    parameters: u64,
    bytes: u64,
    forms: Vec<String>,
}

#[derive(Serialize)]
struct TensorSummary {
    name: String,
    dtype: &'static str,
    shape: Vec<usize>,
    bytes: u64,
    form: String,
}

impl Summary {
    /// Looks at it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn of(bundle: &Bundle) -> Result<Summary> {
        let package = bundle.read_package()?;
        let weights = stored::weights(&package.program);
        let opset = package.program.functions.iter().map(|f| f.opset).max().unwrap_or(Opset::CoreML5);
        let part = |part: stored::Part| PartSummary {
            parameters: part.parameters,
            bytes: part.bytes,
            forms: part.forms.into_iter().collect(),
        };
        Ok(Summary {
            kind: match bundle.manifest() {
                Some(_) => "bundle",
                None if is_compiled(bundle.package_path()) => "compiled model",
                None => "package",
            },
            path: bundle.package_path().display().to_string(),
            specification_version: package.specification_version(),
            minimum_deployment_target: systems(opset),
            bytes: bundle.packages().iter().map(|package| size_of(package)).sum::<Result<u64>>()?,
            parameters: weights.iter().map(Stored::parameters).sum(),
            kv_cache_bytes: Some(stored::cache_types(&package.program).iter().map(stored::byte_len).sum())
                .filter(|n| *n > 0),
            functions: package.program.functions.iter().map(|f| (f.name.clone(), FunctionSummary::of(f))).collect(),
            components: stored::parts(&weights).into_iter().map(|(name, found)| (name, part(found))).collect(),
            tensors: weights.into_iter().map(TensorSummary::of).collect(),
            manifest: bundle.manifest().cloned(),
        })
    }

    /// For people.
    pub fn text(&self, with_tensors: bool) -> String {
        let mut text = format!(
            "{}: {}, {} parameters, {} ({} and later)\n",
            self.path,
            self.kind,
            units::grouped(self.parameters),
            units::bytes(self.bytes),
            self.minimum_deployment_target,
        );
        if let Some(manifest) = &self.manifest {
            let source = &manifest.source;
            text += &format!(
                "{} {}, from {} ({})\n",
                manifest.name, manifest.version, source.format, manifest.architecture
            );
        }
        if let Some(chain) = self.manifest.as_ref().and_then(|manifest| manifest.chain.as_ref()) {
            let row = |part: &PartEntry| vec![part.package.clone(), part.holds.clone(), units::bytes(part.bytes)];
            text += &format!("\n{}\n", table(&["part", "holds", "bytes"], &[2], chain.parts.iter().map(row)));
        }
        if let Some(bytes) = self.kv_cache_bytes {
            text += &format!("KV cache {}\n", units::bytes(bytes));
        }
        for (name, function) in &self.functions {
            text += &format!("\nfunction {name}: {} operations\n", function.operations.values().sum::<usize>());
            let of = |kind: &'static str, features: &[Feature]| -> Vec<Vec<String>> {
                let row = |f: &Feature| {
                    vec![kind.to_string(), f.name.clone(), f.dtype.clone(), units::shape(f.shape.clone())]
                };
                features.iter().map(row).collect()
            };
            let i = &function.interface;
            let rows = [of("input", &i.inputs), of("state", &i.states), of("output", &i.outputs)].concat();
            text += &table(&["", "name", "type", "shape"], &[], rows);
        }
        text += "\n";
        text += &table(
            &["component", "parameters", "bytes", "stored as"],
            &[1, 2],
            self.components.iter().map(|(name, part)| {
                let size = units::bytes(part.bytes);
                vec![name.to_string(), units::grouped(part.parameters), size, part.forms.join("; ")]
            }),
        );
        if with_tensors {
            text += "\n";
            let shape = |t: &TensorSummary| units::shape(t.shape.iter().copied().map(Some));
            let row = |t: &TensorSummary| vec![t.name.clone(), shape(t), units::bytes(t.bytes), t.form.clone()];
            text += &table(&["tensor", "shape", "bytes", "stored as"], &[2], self.tensors.iter().map(row));
        }
        text
    }
}

impl FunctionSummary {
    fn of(function: &Function) -> FunctionSummary {
        let mut operations = BTreeMap::new();
        for operation in &function.block.operations {
            *operations.entry(operation.op_name().to_string()).or_insert(0) += 1;
        }
        FunctionSummary { interface: stored::interface(function), operations }
    }
}

impl TensorSummary {
    fn of(weight: Stored) -> TensorSummary {
        let Stored { name, dtype, shape, bytes, form } = weight;
        TensorSummary { name, dtype: dtype.name(), shape, bytes, form }
    }
}

/// The bytes of all files in a directory.
fn size_of(directory: &Path) -> Result<u64> {
    let mut total = 0;
    for entry in std::fs::read_dir(directory).map_err(|e| refused("list", directory, &e))? {
        let entry = entry.map_err(|e| refused("list", directory, &e))?;
        let data = entry.metadata().map_err(|e| refused("look at", &entry.path(), &e))?;
        total += if data.is_dir() { size_of(&entry.path())? } else { data.len() };
    }
    Ok(total)
}

fn systems(opset: Opset) -> &'static str {
    match opset {
        Opset::CoreML5 => "iOS 15, macOS 12",
        Opset::CoreML6 => "iOS 16, macOS 13",
        Opset::CoreML7 => "iOS 17, macOS 14",
        Opset::CoreML8 => "iOS 18, macOS 15",
        Opset::CoreML9 | Opset::Semantic => "iOS 26, macOS 26",
    }
}
