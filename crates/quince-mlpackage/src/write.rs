//! From a program to messages, with every large constant streamed to `weight.bin` on the way.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use prost::Message;
use quince_mil::{Arg, Block, Function, Operation, Opset, Value, Var};
use quince_tensor::{DType, Error, Result, Tensor, Weight, bail};

use crate::blob::{self, BlobPlaces, BlobWriter, Stored};
use crate::names::Names;
use crate::proto::mil::{self, argument, value::BlobFileValue, value::Value as Place};
use crate::read::{MODEL_PATH, check_constant, is_constexpr};
use crate::{types, value};

/// Constants with fewer elements are stored in place, as coremltools does.
const MIN_BLOB_ELEMENTS: usize = 10;

/// The name of the weights file as constants refer to it.
const WEIGHT_FILE: &str = "weights/weight.bin";

/// Called before a weight is loaded and written; an error from it stops the writing.
pub type OnWeight<'a> = dyn FnMut(&Weight) -> Result<()> + 'a;

/// Where large constants go: each is loaded, where its source allows some rows at a time, written and forgotten before
/// the next one.
pub struct Store<'a> {
    blobs: Blobs,
    /// Weights of one source are not even loaded twice; equal bytes of other sources are found by the blob writer.
    sources: HashMap<usize, u64>,
    on_weight: &'a mut OnWeight<'a>,
}

/// What becomes of constants.
enum Blobs {
    /// They are written.
    File(Box<BlobWriter>),
    /// Only their places are found.
    Places(BlobPlaces),
}

impl<'a> Store<'a> {
    /// Creates the weights file.
    pub fn create(path: &Path, on_weight: &'a mut OnWeight<'a>) -> Result<Self> {
        Ok(Store { blobs: Blobs::File(Box::new(BlobWriter::create(path)?)), sources: HashMap::new(), on_weight })
    }

    /// Finds out what the weights file would be, without loading a weight.
    pub fn measuring(on_weight: &'a mut OnWeight<'a>) -> Self {
        Store { blobs: Blobs::Places(BlobPlaces::default()), sources: HashMap::new(), on_weight }
    }

    /// Completes the weights file.
    pub fn finish(self) -> Result<Stored> {
        match self.blobs {
            Blobs::File(blobs) => blobs.finish(),
            Blobs::Places(places) => Ok(places.stored()),
        }
    }

    /// The message of a value: a reference to the weights file where the format wants one, else the value itself.
    fn value(&mut self, value: &Value, opset: Opset) -> Result<mil::Value> {
        let offset = match value {
            Value::Weight(w) if goes_to_file(w.dtype(), w.len(), opset) => self.weight(w)?,
            Value::Tensor(t) if goes_to_file(t.dtype(), t.len(), opset) => self.tensor(t)?,
            Value::Tensor(_) | Value::Weight(_) => {
                let ty = value.tensor_type().map(|t| t.dtype);
                if let Some(dtype) = ty.filter(|dtype| opset < Opset::CoreML8 && dtype.is_sub_byte()) {
                    bail!("constants of {dtype} need opset CoreML8, the function has {opset}";
                          hint: "target iOS 18 or newer, or another compression");
                }
                return value::to_proto(value);
            }
            other => return value::to_proto(other),
        };
        let place = Place::BlobFile(BlobFileValue { file_name: format!("{MODEL_PATH}{WEIGHT_FILE}"), offset });
        Ok(mil::Value {
            doc_string: String::new(),
            r#type: Some(types::to_proto(&value.value_type())),
            value: Some(place),
        })
    }

    fn weight(&mut self, weight: &Weight) -> Result<u64> {
        if let Some(&offset) = self.sources.get(&weight.id()) {
            return Ok(offset);
        }
        (self.on_weight)(weight)?;
        let offset = match &mut self.blobs {
            Blobs::File(blobs) => {
                blobs.begin(weight.dtype(), weight.len())?;
                weight.pieces(|piece| blobs.write(piece.bytes()))?;
                blobs.finish_blob()?
            }
            Blobs::Places(places) => places.place(weight.byte_len() as u64),
        };
        self.sources.insert(weight.id(), offset);
        Ok(offset)
    }

    fn tensor(&mut self, tensor: &Tensor) -> Result<u64> {
        match &mut self.blobs {
            Blobs::File(blobs) => {
                blobs.begin(tensor.dtype(), tensor.len())?;
                blobs.write(tensor.bytes())?;
                blobs.finish_blob()
            }
            Blobs::Places(places) => Ok(places.place_of(tensor.dtype(), tensor.bytes())),
        }
    }
}

fn goes_to_file(dtype: DType, elements: usize, opset: Opset) -> bool {
    let always = matches!(dtype, DType::F16 | DType::F32 | DType::U8 | DType::I8);
    elements >= MIN_BLOB_ELEMENTS && (always || (opset >= Opset::CoreML8 && blob::code(dtype).is_some()))
}

/// The message of a function; its variables are called by `names`.
pub fn function(function: &Function, names: &mut Names, store: &mut Store) -> Result<mil::Function> {
    if function.opset == Opset::Semantic {
        bail!("the function has semantic operations, expected MIL operations"; hint: "lower it to a target first");
    }
    let mut writer = Writer {
        function,
        names,
        store,
        constants: Constants::of(function),
        defined: HashSet::new(),
        trail: Vec::new(),
        shared: Vec::new(),
    };
    let mut inputs = Vec::new();
    for input in &function.inputs {
        inputs.push(writer.define(input.var)?);
    }
    let opset = function.opset.name().to_owned();
    let block = writer.block(&function.block)?;
    let mut attributes = std::collections::BTreeMap::new();
    for (name, value) in &function.attributes {
        attributes.insert(name.clone(), writer.store.value(value, function.opset)?);
    }
    Ok(mil::Function { inputs, block_specializations: [(opset.clone(), block)].into(), opset, attributes })
}

/// The `const` operations of a function and where they are used.
struct Constants<'a> {
    values: HashMap<Var, &'a Value>,
    by_constexpr: HashSet<Var>,
    by_others: HashSet<Var>,
}

impl<'a> Constants<'a> {
    fn of(function: &'a Function) -> Self {
        let mut found = Constants { values: HashMap::new(), by_constexpr: HashSet::new(), by_others: HashSet::new() };
        found.block(&function.block);
        found
    }

    fn block(&mut self, block: &'a Block) {
        for operation in &block.operations {
            if let (Some(value), [output]) = (operation.constant(), &operation.outputs[..]) {
                self.values.insert(*output, value);
            }
            match is_constexpr(operation.op_name()) {
                true => self.by_constexpr.extend(operation.used_vars()),
                false => self.by_others.extend(operation.used_vars()),
            }
            operation.blocks.iter().for_each(|inner| self.block(inner));
        }
        self.by_others.extend(&block.outputs);
    }

    /// Whether a constant is written only inside the operations that decompress it.
    fn only_inside(&self, var: Var) -> bool {
        self.by_constexpr.contains(&var) && !self.by_others.contains(&var)
    }
}

struct Writer<'a, 's> {
    function: &'a Function,
    names: &'a mut Names,
    store: &'a mut Store<'s>,
    constants: Constants<'a>,
    defined: HashSet<Var>,
    /// What was defined, in order, to forget it at the end of a block.
    trail: Vec<Var>,
    /// For each block around: constants made of values in place, by their encoding.
    shared: Vec<HashMap<Vec<u8>, String>>,
}

impl Writer<'_, '_> {
    fn define(&mut self, var: Var) -> Result<mil::NamedValueType> {
        let (Some(info), Some(name)) = (self.function.vars.get(var.0 as usize), self.names.var(var)) else {
            bail!("variable number {} is not in the table of the function", var.0);
        };
        if !self.defined.insert(var) {
            bail!("variable `{}` is assigned twice", info.name);
        }
        self.trail.push(var);
        Ok(mil::NamedValueType { name: name.to_owned(), r#type: Some(types::to_proto(&info.ty)) })
    }

    fn name_of(&self, var: Var) -> Result<String> {
        match self.names.var(var) {
            Some(name) if self.defined.contains(&var) => Ok(name.to_owned()),
            Some(name) => bail!("uses `{name}` before it is defined"),
            None => bail!("uses variable number {}, which is not defined", var.0),
        }
    }

    fn block(&mut self, block: &Block) -> Result<mil::Block> {
        let outside = self.trail.len();
        self.shared.push(HashMap::new());
        let mut message = mil::Block::default();
        for &input in &block.inputs {
            message.inputs.push(self.define(input)?);
        }
        for operation in &block.operations {
            self.operation(operation, &mut message.operations).map_err(|e| e.at(operation.place()))?;
        }
        let outputs = block.outputs.iter().map(|&var| self.name_of(var));
        message.outputs = outputs.collect::<Result<_>>().map_err(|e| e.at("outputs of the block"))?;
        self.shared.pop();
        for var in self.trail.drain(outside..) {
            self.defined.remove(&var);
        }
        Ok(message)
    }

    fn operation(&mut self, operation: &Operation, out: &mut Vec<mil::Operation>) -> Result<()> {
        let opset = self.function.opset;
        if let ("const", [output]) = (operation.op_name(), &operation.outputs[..])
            && self.constants.only_inside(*output)
        {
            return self.define(*output).map(drop);
        }
        let mut message = mil::Operation { r#type: operation.op_name().to_owned(), ..Default::default() };
        let name = Value::String(self.names.operation(operation));
        message.attributes.insert("name".to_owned(), value::to_proto(&name)?);
        for (name, value) in &operation.attributes {
            let value = self.store.value(value, opset).map_err(|e| e.at(format!("attribute `{name}`")))?;
            message.attributes.insert(name.clone(), value);
        }
        for (param, args) in &operation.inputs {
            let place = |e: Error| e.at(format!("parameter `{param}`"));
            if is_constexpr(operation.op_name()) && opset < Opset::CoreML8 {
                message.attributes.insert(param.clone(), self.attribute(args).map_err(place)?);
                continue;
            }
            let arguments = args.iter().map(|arg| {
                let binding = Some(self.binding(operation, param, arg, out)?);
                Ok(argument::Binding { binding })
            });
            let arguments = arguments.collect::<Result<_>>().map_err(place)?;
            message.inputs.insert(param.clone(), mil::Argument { arguments });
        }
        for block in &operation.blocks {
            message.blocks.push(self.block(block)?);
        }
        for &output in &operation.outputs {
            message.outputs.push(self.define(output)?);
        }
        check_constant(self.function, operation)?;
        out.push(message);
        Ok(())
    }

    /// A parameter of a decompressing operation as iOS 16 and 17 want it.
    fn attribute(&mut self, args: &[Arg]) -> Result<mil::Value> {
        let value = match args {
            [Arg::Value(value)] => Some(value),
            [Arg::Var(var)] => self.constants.values.get(var).copied(),
            _ => None,
        };
        match value {
            Some(value) => self.store.value(value, self.function.opset),
            None => bail!("found no single constant, expected one up to opset CoreML7"; hint: "target iOS 18 or newer"),
        }
    }

    /// What a parameter is bound to. Only decompressing operations take values in place; for the others a `const`
    /// operation is put before them, one for equal values.
    fn binding(
        &mut self,
        operation: &Operation,
        param: &str,
        arg: &Arg,
        out: &mut Vec<mil::Operation>,
    ) -> Result<argument::Bound> {
        let opset = self.function.opset;
        let inside = is_constexpr(operation.op_name());
        let value = match arg {
            Arg::Var(var) => match self.constants.values.get(var) {
                Some(value) if inside => *value,
                _ => return self.name_of(*var).map(argument::Bound::Name),
            },
            Arg::Value(value) => value,
        };
        let message = self.store.value(value, opset)?;
        if inside {
            return Ok(argument::Bound::Value(message));
        }
        let key = message.encode_to_vec();
        if let Some(name) = self.shared.iter().find_map(|block| block.get(&key)) {
            return Ok(argument::Bound::Name(name.clone()));
        }
        let name = self.constant_name(operation, param, value);
        out.push(mil::Operation {
            r#type: "const".to_owned(),
            outputs: vec![mil::NamedValueType { name: name.clone(), r#type: message.r#type.clone() }],
            attributes: [
                ("name".to_owned(), value::to_proto(&Value::String(name.clone()))?),
                ("val".to_owned(), message),
            ]
            .into(),
            ..Default::default()
        });
        if let Some(block) = self.shared.last_mut() {
            block.insert(key, name.clone());
        }
        Ok(argument::Bound::Name(name))
    }

    fn constant_name(&mut self, operation: &Operation, param: &str, value: &Value) -> String {
        match value {
            Value::Weight(weight) if !weight.name().is_empty() => self.names.free(weight.name()),
            _ => self.names.invent(&format!("{}_{param}", operation.name)),
        }
    }
}
