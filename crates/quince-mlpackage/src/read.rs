//! From messages to a program: names become variables, values become tensors or mapped weights.
//!
//! Everything is checked on the way: each name is defined before it is used and only once, each value has the size its
//! type needs. Operations that the table does not know are kept as they are.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use quince_mil::{Arg, Block, Function, OpKind, Operation, Opset, Value, ValueType, Var};
use quince_tensor::{Result, Tensor, Weight, bail};

use crate::blob::BlobReader;
use crate::proto::mil::{self, argument::Bound, value::Value as Place};
use crate::proto::model::FeatureDescription;
use crate::{interface, manifest, types, value};

/// What blob files are named relative to.
pub const MODEL_PATH: &str = "@model_path/";

/// The blob files of a package, mapped when the first value refers to them.
pub struct Blobs {
    directory: PathBuf,
    files: HashMap<String, BlobReader>,
    /// Constants at one place are one weight, so that it is seen that they are equal.
    weights: HashMap<(String, u64, ValueType), Weight>,
}

impl Blobs {
    /// The blob files beside the model file.
    pub fn beside(model: &Path) -> Blobs {
        let directory = model.parent().unwrap_or(Path::new("")).to_owned();
        Blobs { directory, files: HashMap::new(), weights: HashMap::new() }
    }

    /// A value, called `name` if it turns out to be a weight.
    pub fn value(&mut self, name: &str, message: &mil::Value) -> Result<Value> {
        if !message.doc_string.is_empty() {
            bail!("the value has a documentation text {:?}, which would be lost", message.doc_string);
        }
        let ty = types::from_proto(message.r#type.as_ref())?;
        match &message.value {
            Some(Place::Immediate(immediate)) => value::from_immediate(&ty, immediate, &mut |v| self.value(name, v)),
            Some(Place::BlobFile(blob)) => Ok(Value::Weight(self.weight(name, ty, &blob.file_name, blob.offset)?)),
            None => bail!("found no value, expected a {ty}"),
        }
    }

    /// The blob at `offset` of `file` as a weight of this name and type.
    pub fn weight(&mut self, name: &str, ty: ValueType, file: &str, offset: u64) -> Result<Weight> {
        let key = (file.to_owned(), offset, ty);
        if let Some(weight) = self.weights.get(&key) {
            return Ok(weight.renamed(name));
        }
        let ty = &key.2;
        let ValueType::Tensor(tensor) = ty else { bail!("found a {ty} in a blob file, expected a tensor") };
        let Some(shape) = tensor.dims() else { bail!("found a constant of unknown size {ty}, expected fixed sizes") };
        let blob = self.file(file)?.blob(offset)?;
        if blob.dtype != tensor.dtype {
            bail!("the blob at {offset} of {file} holds {}, expected {}", blob.dtype, tensor.dtype);
        }
        let (bits, padding) = (blob.bytes.len() as u64 * 8, blob.padding_bits);
        let tensor = Tensor::new(tensor.dtype, shape, blob.bytes).map_err(|e| e.at(format!("{file} at {offset}")))?;
        let expected = bits - tensor.len() as u64 * tensor.dtype().bits() as u64;
        if padding != expected {
            bail!("the blob at {offset} of {file} has {padding} unused bits, expected {expected} for {ty}");
        }
        let weight = Weight::from_tensor(name, tensor);
        self.weights.insert(key, weight.clone());
        Ok(weight)
    }

    fn file(&mut self, name: &str) -> Result<&BlobReader> {
        if !self.files.contains_key(name) {
            let Some(path) = name.strip_prefix(MODEL_PATH).filter(|path| manifest::stays_inside(path)) else {
                bail!("found the blob file {name:?}, expected one below {MODEL_PATH}");
            };
            let reader = BlobReader::open(&self.directory.join(path))?;
            self.files.insert(name.to_owned(), reader);
        }
        match self.files.get(name) {
            Some(reader) => Ok(reader),
            None => bail!("the blob file {name:?} is not open"),
        }
    }
}

/// Reads one function; `inputs` are the descriptions of its inputs.
pub fn function(
    name: &str,
    message: &mil::Function,
    inputs: &[FeatureDescription],
    blobs: &mut Blobs,
) -> Result<Function> {
    let Some(opset) = Opset::from_name(&message.opset).filter(|opset| *opset != Opset::Semantic) else {
        bail!("opset {:?} is not known, expected CoreML5 to CoreML9", message.opset;
              hint: "a newer version of quince may know it");
    };
    let mut blocks = message.block_specializations.iter();
    let (Some((key, block)), None) = (blocks.next(), blocks.next()) else {
        bail!("found {} blocks, expected one, for {opset}", message.block_specializations.len());
    };
    if *key != message.opset {
        bail!("found a block for {key:?}, expected one for {opset}");
    }
    let mut reader =
        Reader { blobs, function: Function::new(name, opset), scope: HashMap::new(), trail: Vec::new(), message };
    for input in &message.inputs {
        let description = inputs.iter().find(|d| d.name == input.name);
        let place = |e: quince_tensor::Error| e.at(format!("input `{}`", input.name));
        let flexibility = interface::flexibility(description).map_err(place)?;
        let ty = types::from_proto(input.r#type.as_ref()).map_err(place)?;
        let var = reader.define(&input.name, ty)?;
        reader.function.inputs.push(quince_mil::FunctionInput { var, flexibility });
    }
    for (name, value) in &message.attributes {
        let value = reader.blobs.value(name, value).map_err(|e| e.at(format!("attribute `{name}`")))?;
        reader.function.attributes.insert(name.clone(), value);
    }
    reader.function.block = reader.block(block)?;
    Ok(reader.function)
}

struct Reader<'a> {
    blobs: &'a mut Blobs,
    function: Function,
    /// The names that can be seen where the reader is.
    scope: HashMap<String, Var>,
    /// Those names in the order they came, to forget them at the end of a block.
    trail: Vec<String>,
    /// To tell a name that comes too late from one that never comes.
    message: &'a mil::Function,
}

impl Reader<'_> {
    fn define(&mut self, name: &str, ty: ValueType) -> Result<Var> {
        if self.scope.contains_key(name) {
            bail!("variable `{name}` is defined twice");
        }
        let var = self.function.add_var(name, ty);
        self.scope.insert(name.to_owned(), var);
        self.trail.push(name.to_owned());
        Ok(var)
    }

    fn resolve(&self, name: &str) -> Result<Var> {
        if let Some(var) = self.scope.get(name) {
            return Ok(*var);
        }
        let later = self.message.block_specializations.values().any(|block| defines(block, name));
        match later {
            true => bail!("uses `{name}` before it is defined";
                          hint: "the operations are out of order, in a circle, or in another block"),
            false => bail!("uses `{name}`, which is not defined"),
        }
    }

    fn block(&mut self, message: &mil::Block) -> Result<Block> {
        if let Some(name) = message.attributes.keys().next() {
            bail!("a block has an attribute `{name}`, which would be lost");
        }
        let mut block = Block::default();
        for input in &message.inputs {
            let ty = types::from_proto(input.r#type.as_ref()).map_err(|e| e.at(format!("input `{}`", input.name)))?;
            block.inputs.push(self.define(&input.name, ty)?);
        }
        for operation in &message.operations {
            let operation = self.operation(operation).map_err(|e| e.at(place(operation)))?;
            block.operations.push(operation);
        }
        let outputs = message.outputs.iter().map(|name| self.resolve(name));
        block.outputs = outputs.collect::<Result<_>>().map_err(|e| e.at("outputs of the block"))?;
        Ok(block)
    }

    fn operation(&mut self, message: &mil::Operation) -> Result<Operation> {
        let kind = OpKind::from_name(&message.r#type);
        let mut operation = Operation {
            kind,
            name: String::new(),
            inputs: Vec::with_capacity(message.inputs.len()),
            outputs: Vec::with_capacity(message.outputs.len()),
            blocks: Vec::with_capacity(message.blocks.len()),
            attributes: Default::default(),
        };
        let own = message.outputs.first().map_or(message.r#type.as_str(), |output| &output.name);
        for (param, argument) in &message.inputs {
            let args = argument.arguments.iter().map(|binding| match &binding.binding {
                Some(Bound::Name(name)) => self.resolve(name).map(Arg::Var),
                Some(Bound::Value(value)) => self.blobs.value(&format!("{own}_{param}"), value).map(Arg::Value),
                None => bail!("found an empty argument, expected a name or a value"),
            });
            let args = args.collect::<Result<_>>().map_err(|e| e.at(format!("parameter `{param}`")))?;
            operation.inputs.push((param.clone(), args));
        }
        self.attributes(message, own, &mut operation)?;
        if let OpKind::Known(op) = operation.kind {
            // Maps have no order; that of the definition reads best.
            let position = |name: &str| op.params().iter().position(|p| p.name == name).unwrap_or(usize::MAX);
            operation.inputs.sort_by_key(|(name, _)| position(name));
        }
        for block in &message.blocks {
            let outside = self.trail.len();
            operation.blocks.push(self.block(block)?);
            for name in self.trail.drain(outside..) {
                self.scope.remove(&name);
            }
        }
        for output in &message.outputs {
            let ty =
                types::from_proto(output.r#type.as_ref()).map_err(|e| e.at(format!("output `{}`", output.name)))?;
            operation.outputs.push(self.define(&output.name, ty)?);
        }
        check_constant(&self.function, &operation)?;
        Ok(operation)
    }

    fn attributes(&mut self, message: &mil::Operation, own: &str, operation: &mut Operation) -> Result<()> {
        for (name, value) in &message.attributes {
            let weight = if name == "val" { own.to_owned() } else { format!("{own}_{name}") };
            let value = self.blobs.value(&weight, value).map_err(|e| e.at(format!("attribute `{name}`")))?;
            match value {
                Value::String(text) if name == "name" => operation.name = text,
                // Up to iOS 17 the parameters of these operations are attributes; the program knows only one form.
                value if is_constexpr(&message.r#type) && name != "name" => {
                    if operation.inputs.iter().any(|(param, _)| param == name) {
                        bail!("`{name}` is given as an attribute and as an input");
                    }
                    operation.inputs.push((name.clone(), vec![Arg::Value(value)]));
                }
                value => drop(operation.attributes.insert(name.clone(), value)),
            }
        }
        Ok(())
    }
}

/// Refuses a `const` operation without a value, or with one of another type than its variable has.
pub fn check_constant(function: &Function, operation: &Operation) -> Result<()> {
    if operation.op_name() != "const" {
        return Ok(());
    }
    let (Some(value), [output]) = (operation.constant(), &operation.outputs[..]) else {
        bail!("found no value or no output, expected one attribute `val` and one output");
    };
    let (found, expected) = (value.value_type(), function.ty(*output));
    if found != *expected {
        bail!("found a value of type {found}, expected the declared {expected}");
    }
    Ok(())
}

/// Whether an operation computes a constant when the model is loaded.
pub fn is_constexpr(name: &str) -> bool {
    name.starts_with("constexpr_")
}

fn place(operation: &mil::Operation) -> String {
    match operation.outputs.first() {
        Some(output) => format!("operation `{}` ({})", output.name, operation.r#type),
        None => format!("operation {}", operation.r#type),
    }
}

fn defines(block: &mil::Block, name: &str) -> bool {
    block
        .operations
        .iter()
        .any(|op| op.outputs.iter().any(|o| o.name == name) || op.blocks.iter().any(|b| defines(b, name)))
}
