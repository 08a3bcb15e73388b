//! A package: a program and what is said about it, read from a directory and written to one.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use prost::Message;
use quince_mil::{Function, Program, Var};
use quince_tensor::{DType, Result, Weight, bail};
use sha2::{Digest, Sha256};

use crate::compiled;
use crate::error::{refused, wrong};
use crate::manifest::{MODEL_PATH, Manifest, WEIGHTS_PATH};
use crate::names::{self, Names};
use crate::proto::model::{FeatureDescription, FunctionDescription, Metadata, Model, ModelDescription};
use crate::proto::{self, mil};
use crate::staged::Staged;
use crate::write::Store;
use crate::{interface, read, value, write};

/// The longest `model.mlmodel` or `model.mil` that is read, in bytes: a protobuf message cannot be longer. Weights are
/// not in it.
pub(crate) const MAX_MODEL: u64 = (1 << 31) - 1;

/// An ML Program in memory, read from a package or a compiled model; its weights stay in their files until asked for.
#[derive(Clone, Debug)]
pub struct Package {
    /// The functions.
    pub program: Program,
    /// Texts for people, and what tools remember.
    pub metadata: Metadata,
    /// What was read and the program does not know: kept for writing.
    pub(crate) origin: Origin,
}

/// The fields of a model that was read, without program and metadata.
#[derive(Clone, Debug, Default)]
pub(crate) struct Origin {
    pub specification_version: i32,
    pub is_updatable: bool,
    pub doc_string: String,
    pub description: ModelDescription,
    pub extras: Vec<crate::manifest::Extra>,
}

/// What [`Package::write`] wrote.
#[derive(Clone, Copy, Debug)]
pub struct Written {
    /// Size of `model.mlmodel` in bytes.
    pub model_bytes: u64,
    /// Size of `weight.bin` in bytes; zero if there is none.
    pub weight_bytes: u64,
    /// How many different constants `weight.bin` holds.
    pub blobs: u32,
}

impl Package {
    /// A package of a new program.
    pub fn new(program: Program) -> Package {
        Package { program, metadata: Metadata::default(), origin: Origin::default() }
    }

    /// Reads a package or a compiled model, whichever the directory holds. Weights are mapped, not loaded; operations
    /// that are not known are kept.
    ///
    /// # Errors
    /// When a file is missing, cut or damaged, when the program is not well formed (undefined or repeated names, values
    /// that do not fit their types), and when something in it could not be written again.
    pub fn read(directory: &Path) -> Result<Package> {
        if compiled::is_compiled(directory) {
            return compiled::read(directory);
        }
        let manifest = Manifest::read(directory)?;
        let file = manifest.model(directory);
        let bytes = read_file(&file, "model", MAX_MODEL)?;
        let mut package = Package::from_bytes(&bytes, &file)?;
        package.origin.extras = manifest.extras(directory)?;
        Ok(package)
    }

    /// Reads the content of a `model.mlmodel`; `file` names it in errors, and weights are looked for beside it.
    ///
    /// # Errors
    /// As [`Package::read`].
    pub fn from_bytes(bytes: &[u8], file: &Path) -> Result<Package> {
        from_model(proto::decode_model(file, bytes)?, file).map_err(|e| e.at(file.display()))
    }

    /// The version of the specification that the package needs: that of its opset, or a newer one it was read with.
    pub fn specification_version(&self) -> i32 {
        let opsets = self.program.functions.iter().map(|f| f.opset.specification_version());
        opsets.max().unwrap_or(0).max(self.origin.specification_version)
    }

    /// Inputs, outputs and states of a function that the description that was read says another element type of, with that
    /// type; none where it is one that Core ML has no arrays of. Writing the package makes such descriptions anew.
    pub fn contradictions(&self, function: &Function) -> Vec<(Var, Option<DType>)> {
        interface::contradictions(function, &self.description_of(function))
    }

    /// Writes the package to `directory`, one weight at a time; `on_weight` is called before each is loaded and stops
    /// the writing by an error. Everything is written under another name beside it and renamed when whole, and removed
    /// if that fails. A package that was there is replaced; anything else there is an error.
    ///
    /// # Errors
    /// When the program cannot be a package (the place says where), when a weight cannot be loaded, and when the system
    /// refuses to write.
    pub fn write(&self, directory: &Path, on_weight: &mut dyn FnMut(&Weight) -> Result<()>) -> Result<Written> {
        let staged = Staged::create(directory, is_package)?;
        let data = staged.path().join("Data");
        let weights = data.join(WEIGHTS_PATH);
        fs::create_dir_all(&weights).map_err(|e| refused("create", &weights, &e))?;
        let weight_file = weights.join("weight.bin");

        let mut store = Store::create(&weight_file, on_weight)?;
        let model = self.to_model(&mut store)?;
        let stored = store.finish()?;

        let bytes = model.encode_to_vec();
        let model_file = data.join(MODEL_PATH);
        fs::write(&model_file, &bytes).map_err(|e| refused("write", &model_file, &e))?;
        if stored.blobs == 0 {
            fs::remove_dir_all(&weights).map_err(|e| refused("remove", &weights, &e))?;
        }
        let content = Sha256::new().chain_update(&bytes).chain_update(stored.hash).finalize().into();
        let manifest = Manifest::new(&content, stored.blobs > 0);
        manifest.with_extras(&self.origin.extras, &staged.path())?.write(&staged.path())?;
        staged.finish()?;
        let weight_bytes = if stored.blobs == 0 { 0 } else { stored.bytes };
        Ok(Written { model_bytes: bytes.len() as u64, weight_bytes, blobs: stored.blobs })
    }

    /// The bytes of all files that [`Package::write`] would write, without loading a weight. Weights whose bytes turn out
    /// to be equal when they are written are stored once, so that less may be written; never more.
    ///
    /// # Errors
    /// When the program cannot be a package.
    pub fn measure(&self) -> Result<u64> {
        let mut nobody = |_: &Weight| Ok(());
        let mut store = Store::measuring(&mut nobody);
        let model = self.to_model(&mut store)?;
        let stored = store.finish()?;
        let manifest = Manifest::new(&[0; 32], stored.blobs > 0).measure(&self.origin.extras);
        let manifest = manifest.map_err(|e| quince_tensor::Error::new(format!("manifest: {e}")))?;
        Ok(model.encoded_len() as u64 + manifest + if stored.blobs > 0 { stored.bytes } else { 0 })
    }

    fn to_model(&self, store: &mut Store) -> Result<Model> {
        let specification_version = self.specification_version();
        let mut message = mil::Program { version: 1, doc_string: self.origin.doc_string.clone(), ..Default::default() };
        for (name, value) in &self.program.attributes {
            message.attributes.insert(name.clone(), value::to_proto(value)?);
        }
        let mut described = Vec::new();
        for function in &self.program.functions {
            let place = |e: quince_tensor::Error| e.at(format!("function `{}`", function.name));
            if names::identifier(&function.name) != function.name {
                bail!("function `{}`: its name has letters that Core ML does not take", function.name;
                      hint: "use letters, digits and underscores");
            }
            let mut names = Names::new(function);
            let written = write::function(function, &mut names, store).map_err(place)?;
            let name = |var| names.var(var).unwrap_or_default().to_owned();
            let read = self.description_of(function);
            described.push(interface::describe(function, name, &read, specification_version).map_err(place)?);
            if message.functions.insert(function.name.clone(), written).is_some() {
                bail!("function `{}` is there twice", function.name);
            }
        }
        let mut description = ModelDescription {
            training_input: self.origin.description.training_input.clone(),
            metadata: (self.metadata != Metadata::default() || self.origin.description.metadata.is_some())
                .then(|| self.metadata.clone()),
            ..Default::default()
        };
        self.describe(described, &mut message, &mut description)?;
        Ok(Model {
            specification_version,
            description: Some(description),
            is_updatable: self.origin.is_updatable,
            ml_program: Some(message),
        })
    }

    /// What was read about a function: at the top for the only one, else in the list.
    fn description_of(&self, function: &Function) -> FunctionDescription {
        let read = &self.origin.description;
        if let Some(found) = read.functions.iter().find(|d| d.name == function.name) {
            return found.clone();
        }
        FunctionDescription {
            name: function.name.clone(),
            input: read.input.clone(),
            output: read.output.clone(),
            state: read.state.clone(),
            predicted_feature_name: read.predicted_feature_name.clone(),
            predicted_probabilities_name: read.predicted_probabilities_name.clone(),
        }
    }

    /// Puts the descriptions where Core ML looks for them: one function is `main` and described at the top, several
    /// are listed.
    fn describe(
        &self,
        mut described: Vec<FunctionDescription>,
        program: &mut mil::Program,
        description: &mut ModelDescription,
    ) -> Result<()> {
        let was_listed = !self.origin.description.functions.is_empty();
        if described.len() == 1 && !was_listed {
            let only = described.remove(0);
            if let Some(function) = program.functions.remove(&only.name) {
                program.functions.insert("main".to_owned(), function);
            }
            description.input = only.input;
            description.output = only.output;
            description.state = only.state;
            description.predicted_feature_name = only.predicted_feature_name;
            description.predicted_probabilities_name = only.predicted_probabilities_name;
            return Ok(());
        }
        let Some(first) = described.first() else { bail!("the program has no function, expected at least one") };
        if self.specification_version() < 9 {
            bail!("found {} functions, expected one up to opset CoreML7", described.len();
                  hint: "target iOS 18 or newer");
        }
        let default = self.program.default_function.as_ref().unwrap_or(&first.name);
        if !described.iter().any(|d| d.name == *default) {
            bail!("found no function `{default}`, which is to be the default one");
        }
        description.default_function_name = default.clone();
        description.functions = described;
        Ok(())
    }
}

/// The bytes of a file, if it is one and not longer than `limit`.
pub(crate) fn read_file(file: &Path, place: &str, limit: u64) -> Result<Vec<u8>> {
    let found = fs::metadata(file).map_err(|e| refused("read", file, &e))?;
    if !found.is_file() {
        return Err(wrong(file, place, "found a directory, pipe or device, expected a file"));
    }
    if found.len() > limit {
        return Err(wrong(file, place, format!("found {} bytes, expected at most {limit}", found.len())));
    }
    fs::read(file).map_err(|e| refused("read", file, &e))
}

fn from_model(model: Model, file: &Path) -> Result<Package> {
    let Some(message) = model.ml_program else { bail!("found no program, expected an ML Program") };
    if message.version != 1 {
        bail!("found program version {}, expected 1", message.version);
    }
    let mut description = model.description.unwrap_or_default();
    let metadata = description.metadata.clone().unwrap_or_default();
    let mut blobs = read::Blobs::beside(file);
    let mut program = Program::default();
    for (name, value) in &message.attributes {
        let value = blobs.value(name, value).map_err(|e| e.at(format!("attribute `{name}`")))?;
        program.attributes.insert(name.clone(), value);
    }
    for (name, inputs) in interfaces(&message, &description)? {
        let place = |e: quince_tensor::Error| e.at(format!("function `{name}`"));
        let Some(function) = message.functions.get(name) else { bail!("function `{name}` is described and not there") };
        program.functions.push(read::function(name, function, inputs, &mut blobs).map_err(place)?);
    }
    if !description.functions.is_empty() {
        program.default_function = Some(std::mem::take(&mut description.default_function_name));
    }
    let origin = Origin {
        specification_version: model.specification_version,
        is_updatable: model.is_updatable,
        doc_string: message.doc_string,
        description,
        extras: Vec::new(),
    };
    Ok(Package { program, metadata, origin })
}

/// The functions in the order of their description, with what it says of their inputs.
fn interfaces<'a>(
    program: &'a mil::Program,
    description: &'a ModelDescription,
) -> Result<Vec<(&'a str, &'a [FeatureDescription])>> {
    let mut described: Vec<(&str, &[FeatureDescription])> =
        description.functions.iter().map(|d| (d.name.as_str(), &d.input[..])).collect();
    if described.is_empty() {
        described.extend(program.functions.keys().take(1).map(|name| (name.as_str(), &description.input[..])));
    }
    let names: BTreeSet<&str> = described.iter().map(|(name, _)| *name).collect();
    if names.len() != described.len() {
        bail!("a function is described twice");
    }
    if names.is_empty() {
        bail!("the program has no function, expected at least one");
    }
    match program.functions.keys().find(|name| !names.contains(name.as_str())) {
        Some(name) => bail!("function `{name}` is not described"),
        None => Ok(described),
    }
}

/// Whether a path is a package, as far as file names tell.
fn is_package(path: &Path) -> bool {
    path.join("Manifest.json").is_file()
}
