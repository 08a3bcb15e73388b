//! Which function of a program is an encoder, told by what it takes and gives.

use quince_mil::{Arg, DType, Defs, Function, FunctionInput, Program, ValueType, Var};
use quince_tensor::{Error, Result};

use super::shapes::BatchShapes;

/// A function that takes tokens and gives an embedding.
pub(super) struct Encoder {
    /// Its name.
    pub name: String,
    /// Its inputs, in order.
    pub inputs: Vec<EncoderInput>,
    /// The output.
    pub output: String,
    /// What it is.
    pub gives: Gives,
    /// What a call takes.
    pub shapes: BatchShapes,
    /// Rows of the table that ids are looked up in.
    pub vocab_size: Option<usize>,
}

/// What an encoder gives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Gives {
    /// A vector for each sentence: [B, D].
    Vectors,
    /// A vector for each token: [B, L, D].
    States,
}

/// An input [B, L].
pub(super) struct EncoderInput {
    pub name: String,
    pub what: TokenInput,
    pub dtype: DType,
}

/// What an input says of each token.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum TokenInput {
    /// Which token it is.
    Ids,
    /// 1 for a token, 0 for padding.
    Mask,
    /// Which part of a pair of texts it belongs to: 0 everywhere.
    Types,
}

/// The names of inputs.
const INPUTS: &[(&str, TokenInput)] =
    &[("input_ids", TokenInput::Ids), ("attention_mask", TokenInput::Mask), ("token_type_ids", TokenInput::Types)];

impl Encoder {
    /// Looks through a program.
    pub fn find(program: &Program) -> Result<Encoder> {
        program.functions.iter().find_map(encoder).ok_or_else(|| none_found(program))
    }
}

fn encoder(function: &Function) -> Option<Encoder> {
    let (mut inputs, mut shapes) = (Vec::new(), None::<BatchShapes>);
    for input in &function.inputs {
        let (input, own) = token_input(function, input)?;
        inputs.push(input);
        shapes = Some(match shapes {
            Some(shapes) => shapes.both(own)?,
            None => own,
        });
    }
    let has = |what: TokenInput| inputs.iter().any(|input| input.what == what);
    let complete = has(TokenInput::Ids) && has(TokenInput::Mask);
    let ids = function.inputs.iter().find(|input| function.var(input.var).name == "input_ids")?.var;
    let (output, gives) = complete.then(|| output(function))??;
    Some(Encoder {
        name: function.name.clone(),
        output,
        gives,
        inputs,
        shapes: shapes?,
        vocab_size: vocab_size(function, ids),
    })
}

fn token_input(function: &Function, input: &FunctionInput) -> Option<(EncoderInput, BatchShapes)> {
    let info = function.var(input.var);
    let ValueType::Tensor(ty) = &info.ty else { return None };
    let (_, what) = INPUTS.iter().find(|(name, _)| *name == info.name)?;
    let numbers = ty.dtype == DType::I32 || *what == TokenInput::Mask && ty.dtype.is_float();
    let shapes = numbers.then(|| BatchShapes::of(&input.flexibility, ty))??;
    Some((EncoderInput { name: info.name.clone(), what: *what, dtype: ty.dtype }, shapes))
}

/// The output [B, D] of floating point, or if there is none [B, L, D]: the only one, or the one that is called an
/// embedding, or a hidden state.
fn output(function: &Function) -> Option<(String, Gives)> {
    let of_rank = |rank: usize, part_of_name: &str| {
        let floats = |var: &&Var| {
            let ty = function.ty(**var).as_tensor();
            ty.is_some_and(|ty| ty.shape.len() == rank && ty.dtype.is_float())
        };
        let names = function.block.outputs.iter().filter(floats).map(|&var| function.var(var).name.as_str());
        // What BERT's pooler gives was trained to tell whether sentences follow each other.
        let candidates: Vec<&str> = names.filter(|name| !name.contains("pooler")).collect();
        match candidates[..] {
            [only] => Some(only.to_owned()),
            _ => candidates.iter().find(|name| name.contains(part_of_name)).map(|&name| name.to_owned()),
        }
    };
    let vectors = of_rank(2, "embedding").map(|name| (name, Gives::Vectors));
    vectors.or_else(|| of_rank(3, "hidden").map(|name| (name, Gives::States)))
}

/// The rows of the constant that is gathered from by ids, whatever integer arithmetic they went through first.
fn vocab_size(function: &Function, ids: Var) -> Option<usize> {
    let defs = Defs::new(function);
    let mut from_ids = vec![ids];
    for operation in &function.block.operations {
        let uses = |param: &str| operation.var(param).is_some_and(|var| from_ids.contains(&var));
        let table = match operation.op_name() {
            "gather" if uses("indices") => operation.var("x"),
            "embedding" if uses("ids") => operation.var("weight"),
            _ => None,
        };
        // A table is never computed from an input.
        if let Some(table) = table
            && defs.producer(table).is_some_and(|op| op.op_name() == "const" || op.op_name().starts_with("constexpr_"))
        {
            return function.ty(table).as_tensor()?.shape.first()?.fixed();
        }
        // The shape of the ids says where tokens stand, not which they are.
        let from = |arg: &Arg| matches!(arg, Arg::Var(var) if from_ids.contains(var));
        if operation.op_name() != "shape" && operation.inputs.iter().flat_map(|(_, args)| args).any(from) {
            let integers = |var: &&Var| function.ty(**var).as_tensor().is_some_and(|ty| !ty.dtype.is_float());
            from_ids.extend(operation.outputs.iter().filter(integers));
        }
    }
    None
}

fn none_found(program: &Program) -> Error {
    let named = |function: &Function, vars: &mut dyn Iterator<Item = Var>| {
        let texts: Vec<String> = vars.map(|var| format!("{}: {}", function.var(var).name, function.ty(var))).collect();
        texts.join(", ")
    };
    let signature = |function: &Function| {
        let inputs = named(function, &mut function.inputs.iter().map(|input| input.var));
        let outputs = named(function, &mut function.block.outputs.iter().copied());
        format!("{}({inputs}) to {outputs}", function.name)
    };
    let found: Vec<String> = program.functions.iter().map(signature).collect();
    Error::new(format!(
        "found the functions {}, expected one that takes `input_ids` and `attention_mask` int32 [B, L] and gives \
         embeddings [B, D] or hidden states [B, L, D]",
        found.join("; ")
    ))
}
