//! A package that is too large, written as several that are a chain.

use super::{Draft, write_package};
use crate::console::Console;
use crate::failure::Result;
use crate::stored;
use crate::units;
use quince_convert::parts::{EmbeddingPart, split};
use quince_lint::{COMPUTE_UNITS_KEY, Units};
use quince_mil::text::{PrintOptions, Spelling, Weights, print};
use quince_mlpackage::{Metadata, PART_KEY, Package, Written};
use quince_runtime::{CHAIN_KEY, Chain, PACKAGE, PartEntry, join};
use quince_tensor::Error;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;

/// The packages of a model.
pub struct Packages {
    /// In the order in which they run.
    packages: Vec<Package>,
    /// What the manifest says of them, if there are several.
    chain: Option<Chain>,
}

impl Packages {
    /// Splits a package if it is larger than its draft allows, or if the Neural Engine cannot index its embedding.
    ///
    /// # Errors
    /// When it cannot be split so small.
    pub fn of(package: &Package, draft: &Draft) -> Result<Packages> {
        let embedding = embedding_part(package);
        let limit = match (draft.most_bytes, embedding) {
            (Some(limit), _) => limit,
            (None, EmbeddingPart::Apart) => u64::MAX,
            (None, EmbeddingPart::WithLayers) => return Ok(Packages::whole(package)),
        };
        let id = chain_id(package, draft);
        // Numbers of as many digits as there can be.
        let mut measure = |program: &quince_mil::Program| {
            let mut part = Package::new(program.clone());
            part.metadata = metadata(package, &id, Chain::part_value(99_998, 99_999));
            part.measure()
        };
        let place = |e: Error| e.at(format!("--max-part-size {}", units::bytes(limit)));
        let parts = split(&package.program, limit, embedding, &mut measure).map_err(place)?;
        if parts.len() == 1 {
            return Ok(Packages::whole(package));
        }
        let count = parts.len();
        let (mut packages, mut entries) = (Vec::new(), Vec::new());
        for (number, part) in parts.into_iter().enumerate() {
            let functions = part.program.functions.iter().map(|f| (f.name.clone(), stored::interface(f)));
            let on_cpu = embedding == EmbeddingPart::Apart && number == 0;
            let compute_units = on_cpu.then(|| Units::CpuOnly.name().to_string());
            entries.push(PartEntry {
                package: Chain::package_name(number, count),
                holds: part.holds,
                compute_units: compute_units.clone(),
                bytes: 0,
                sha256: String::new(),
                sample: String::new(),
                functions: functions.collect(),
            });
            let mut made = Package::new(part.program);
            made.metadata = metadata(package, &id, Chain::part_value(number, count));
            made.metadata.user_defined.extend(compute_units.map(|units| (COMPUTE_UNITS_KEY.to_string(), units)));
            packages.push(made);
        }
        Ok(Packages { packages, chain: Some(Chain { id, parts: entries }) })
    }

    fn whole(package: &Package) -> Packages {
        Packages { packages: vec![package.clone()], chain: None }
    }

    /// What the manifest says of them, if there are several.
    pub fn chain(&self) -> Option<Chain> {
        self.chain.clone()
    }

    /// What goes in and out of the whole, by function.
    ///
    /// # Errors
    /// When parts do not go together.
    pub fn functions(&self) -> Result<BTreeMap<String, quince_runtime::FunctionShape>> {
        let programs: Vec<_> = self.packages.iter().map(|package| package.program.clone()).collect();
        let whole = join(&programs)?;
        Ok(whole.functions.iter().map(|f| (f.name.clone(), stored::interface(f))).collect())
    }

    /// Writes them, and says what all of them take.
    ///
    /// # Errors
    /// As [`Package::write`].
    pub fn write(&self, directory: &Path, console: &Console) -> Result<Written> {
        let mut total = Written { model_bytes: 0, weight_bytes: 0, blobs: 0 };
        for (number, package) in self.packages.iter().enumerate() {
            let name = self.chain.as_ref().and_then(|chain| chain.parts.get(number)).map(|part| part.package.as_str());
            let written = write_package(package, &directory.join(name.unwrap_or(PACKAGE)), console)?;
            total.model_bytes += written.model_bytes;
            total.weight_bytes += written.weight_bytes;
            total.blobs += written.blobs;
        }
        Ok(total)
    }
}

/// Where the embedding of a package goes, by the processors it is written for.
pub fn embedding_part(package: &Package) -> EmbeddingPart {
    match Units::of(&package.metadata) {
        Some(Units::CpuAndNeuralEngine) => EmbeddingPart::for_neural_engine(&package.program),
        _ => EmbeddingPart::WithLayers,
    }
}

/// What a part says of itself: what the whole does, and which part it is.
fn metadata(package: &Package, id: &str, part: String) -> Metadata {
    let mut metadata = package.metadata.clone();
    let own = [(PART_KEY, part), (CHAIN_KEY, id.to_string())];
    metadata.user_defined.extend(own.map(|(key, value)| (key.to_string(), value)));
    metadata
}

/// A digest of what a package is made of, without its weights, which are not computed yet: the program, the files that it
/// comes from, and how it was compressed.
fn chain_id(package: &Package, draft: &Draft) -> String {
    let weights = Weights::of(&package.program, 64);
    let program = PrintOptions { spelling: Spelling::Exact, locate: &|value| weights.locate(value) };
    let adapters = draft.adapters.iter().flat_map(|adapter| &adapter.files);
    let files = draft.source.files.iter().chain(adapters).map(|file| file.sha256.clone());
    let made = draft.made.values().cloned();
    let mut digest = Sha256::new();
    for text in files.chain(made).chain([print(&package.program, &program)]) {
        digest.update((text.len() as u64).to_le_bytes());
        digest.update(text);
    }
    digest.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}
