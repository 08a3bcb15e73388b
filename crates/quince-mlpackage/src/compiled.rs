//! Compiled models: `.mlmodelc`, the directory that Core ML's compiler makes of a package and apps ship.
//!
//! ```text
//! model.mlmodelc/
//!   model.mil            the program as MIL text; large values are references into weights
//!   weights/weight.bin   as in a package
//!   metadata.json        the interface, the metadata and the specification version: [`schema`]
//!   coremldata.bin       the interface and the metadata again, as a message: [`data`]
//!   analytics/           names and hashes for Apple's tools
//! ```
//!
//! What a model is comes from the two texts, which are what Apple's own tools show; `coremldata.bin` is asked only for
//! the default values of optional inputs, which nothing else has.

mod data;
mod schema;

use std::cell::RefCell;
use std::path::Path;

use quince_mil::text::{self, BlobRef, Location};
use quince_mil::{Arg, Block, Flexibility, Function, Operation, Program, Value, ValueType};
use quince_tensor::{Error, Result, Weight, bail};

use crate::error::wrong;
use crate::interface;
use crate::package::{MAX_MODEL, Origin, Package, read_file};
use crate::proto::model::{FeatureDescription, ModelDescription};
use crate::read::Blobs;
use data::{Defaults, MAX_DATA};
use schema::Schema;

/// The program of a compiled model.
const PROGRAM: &str = "model.mil";
/// Its interface and metadata; models that a device compiled may not have it.
const METADATA: &str = "metadata.json";
/// What every compiled model has, also those that are no ML Programs.
const DATA: &str = "coremldata.bin";

/// The longest `metadata.json` that is read, in bytes.
const MAX_METADATA: u64 = 16 << 20;

/// Whether a directory is a compiled model, as far as file names tell.
pub fn is_compiled(directory: &Path) -> bool {
    directory.join(PROGRAM).is_file() || directory.join(DATA).is_file()
}

/// Reads a compiled model. Weights are mapped, not loaded.
pub fn read(directory: &Path) -> Result<Package> {
    let file = directory.join(PROGRAM);
    if !file.is_file() {
        let problem = format!("found a compiled model without {PROGRAM}, expected an ML Program");
        return Err(wrong(directory, "compiled model", problem)
            .hint("neural networks, trees and pipelines have other files; only ML Programs can be run"));
    }
    let bytes = read_file(&file, "program", MAX_MODEL)?;
    let text = std::str::from_utf8(&bytes)
        .map_err(|e| wrong(&file, format!("byte {}", e.valid_up_to()), "found bytes that are no UTF-8 text"))?;
    let metadata = directory.join(METADATA);
    let mut schema = match metadata.is_file() {
        true => {
            let json = read_file(&metadata, "metadata", MAX_METADATA)?;
            Schema::parse(&json).map_err(|e| e.at(metadata.display()))?
        }
        false => Schema::default(),
    };
    let data = directory.join(DATA);
    if schema.has_optional_inputs() && data.is_file() {
        schema.set_defaults(&Defaults::parse(&read_file(&data, "data", MAX_DATA)?));
    }
    from_texts(text, schema, &file).map_err(|e| e.at(file.display()))
}

/// Reads the two texts of a compiled model; `file` is the program's, beside which weights are looked for.
///
/// # Errors
/// As [`Package::read`].
pub fn from_bytes(program: &str, metadata: &[u8], file: &Path) -> Result<Package> {
    from_texts(program, Schema::parse(metadata)?, file)
}

fn from_texts(text: &str, schema: Schema, file: &Path) -> Result<Package> {
    let blobs = RefCell::new(Blobs::beside(file));
    let mut program = text::parse(text, &|reference| weight(&blobs, reference))?;
    for function in &mut program.functions {
        if let Some(semantic) = (function.opset == quince_mil::Opset::Semantic).then_some(&function.name) {
            bail!("function `{semantic}`: found semantic operations, expected those of a Core ML opset");
        }
        name_weights(function);
    }
    let Schema { specification_version, is_updatable, description, metadata } = schema;
    describe(&mut program, &description)?;
    let origin = Origin { specification_version, is_updatable, description, ..Origin::default() };
    Ok(Package { program, metadata, origin })
}

fn weight(blobs: &RefCell<Blobs>, reference: &BlobRef) -> Result<Weight> {
    match &reference.location {
        Location::File { path, offset } => {
            blobs.borrow_mut().weight("", ValueType::Tensor(reference.ty.clone()), path, *offset)
        }
        Location::Name(name) => bail!("found a reference to the weight {name:?}, expected one to a file";
                                      hint: "texts that `quince print` wrote have no weights"),
    }
}

/// Names the weights of a function as in a package: a constant by its variable, a parameter by operation and parameter.
fn name_weights(function: &mut Function) {
    fn name(value: &mut Value, name: impl FnOnce() -> String) {
        if let Value::Weight(weight) = value {
            *weight = weight.renamed(&name());
        }
    }
    fn operation(op: &mut Operation, vars: &[quince_mil::VarInfo]) {
        let own = op.outputs.first().and_then(|var| vars.get(var.0 as usize));
        let own = own.map_or(op.op_name(), |var| &var.name).to_owned();
        for (key, value) in &mut op.attributes {
            name(value, || if key == "val" { own.clone() } else { format!("{own}_{key}") });
        }
        for (param, args) in &mut op.inputs {
            for arg in args {
                if let Arg::Value(value) = arg {
                    name(value, || format!("{own}_{param}"));
                }
            }
        }
        op.blocks.iter_mut().for_each(|inner| block(inner, vars));
    }
    fn block(block: &mut Block, vars: &[quince_mil::VarInfo]) {
        block.operations.iter_mut().for_each(|op| operation(op, vars));
    }
    block(&mut function.block, &function.vars);
}

/// Gives the program what only the description says: the default function, and the shapes that inputs may have where
/// the text has no attribute for them.
fn describe(program: &mut Program, description: &ModelDescription) -> Result<()> {
    if program.functions.is_empty() {
        bail!("the program has no function, expected at least one");
    }
    if !description.functions.is_empty() {
        program.default_function = Some(description.default_function_name.clone());
    }
    for described in &description.functions {
        if !program.functions.iter().any(|f| f.name == described.name) {
            bail!("{METADATA} describes a function `{}`, which the program does not have", described.name;
                  hint: "the files do not belong together");
        }
    }
    for function in &mut program.functions {
        // Known or not, it is said by the inputs from here on.
        function.attributes.remove(text::FLEXIBLE_SHAPES);
        let listed = description.functions.iter().find(|d| d.name == function.name);
        let inputs = listed.map_or(&description.input, |d| &d.input);
        flexible(function, inputs).map_err(|e: Error| e.at(format!("function `{}`", function.name)))?;
    }
    Ok(())
}

fn flexible(function: &mut Function, described: &[FeatureDescription]) -> Result<()> {
    for i in 0..function.inputs.len() {
        let info = function.var(function.inputs[i].var);
        let unknown = info.ty.as_tensor().is_some_and(|ty| ty.dims().is_none());
        if function.inputs[i].flexibility == Flexibility::Fixed && unknown {
            let description = described.iter().find(|d| d.name == info.name);
            let found = interface::flexibility(description).map_err(|e| e.at(format!("input `{}`", info.name)))?;
            function.inputs[i].flexibility = found;
        }
    }
    Ok(())
}
