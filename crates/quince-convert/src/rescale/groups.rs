//! Which values of a semantic program can only be scaled together, which not at all, and which weights set their scale.
//!
//! Values of one name are the same in all functions, because functions share weights. A value is scaled by a power of two
//! when the weights that make it are; what reads it is told by its own weights, its epsilon or its scale. An operation that
//! only moves or adds up values ties them: all that is added to the residual is scaled as the embedding is.

use quince_mil::{Arg, Defs, Function, Operation, Program, Value, Var};
use std::collections::HashMap;
use std::ops::Range;

/// A value, or values that are scaled alike.
pub(super) type Node = usize;

/// What is known of a program.
#[derive(Default)]
pub(super) struct Groups {
    parents: Vec<Node>,
    /// By node: an operation that it is the result of.
    names: Vec<String>,
    numbers: HashMap<String, Node>,
    /// By root: why it cannot be scaled.
    fixed: HashMap<Node, String>,
    /// Values that are the product of two others.
    products: Vec<[Node; 3]>,
    owners: HashMap<String, Owner>,
    /// Arguments that change with the scales of values.
    pub sites: Vec<Site>,
    /// The value that the embedding gives.
    pub embedding: Option<Node>,
}

/// The values of a semantic operation.
#[derive(Clone)]
struct Owner {
    op: String,
    result: Option<Node>,
    /// By parameter.
    values: Vec<(&'static str, Node)>,
}

/// Where a value of a lowered program belongs.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Place {
    /// It is scaled with a node; twice if it is made of squares.
    Scaled { node: Node, power: u32 },
    /// It keeps its size whatever the scales, for this reason.
    Kept(&'static str),
    /// It is seen elsewhere, or is no value of the model.
    Elsewhere,
}

/// An argument that changes with the scales of values.
pub(super) struct Site {
    /// The numbers of the function and of the operation.
    pub place: (usize, usize),
    pub param: &'static str,
    pub kind: Kind,
}

/// How an argument changes, e(..) being the exponents by which values become smaller.
pub(super) enum Kind {
    /// Row r of a weight becomes smaller by e(rows(r)) - e(input).
    Weight { rows: Rows, input: Option<Node> },
    /// An epsilon that is added to squares of this value: smaller by 2 · e(value).
    Epsilon(Node),
    /// What products of two values are multiplied by: larger by e(query) + e(key).
    Scale { query: Node, key: Node },
}

/// What the rows of a weight make.
#[derive(Clone)]
pub(super) enum Rows {
    /// Parts of no value that is scaled.
    Kept,
    /// One value.
    All(Node),
    /// Of each `period` rows, some make one value and some another.
    Parts { period: usize, parts: Vec<(Range<usize>, Node)> },
}

impl Groups {
    /// Looks through a program.
    pub fn of(program: &Program) -> Groups {
        let mut groups = Groups::default();
        for (number, function) in program.functions.iter().enumerate() {
            Reader { groups: &mut groups, function, defs: Defs::new(function), number }.read();
        }
        groups.settle_products();
        groups
    }

    /// The node that stands for all that are scaled alike.
    pub fn root(&self, mut node: Node) -> Node {
        while self.parents[node] != node {
            node = self.parents[node];
        }
        node
    }

    /// Why a value cannot be scaled, if it cannot.
    pub fn fixed(&self, node: Node) -> Option<&str> {
        self.fixed.get(&self.root(node)).map(String::as_str)
    }

    /// The operations whose results are scaled alike, in the order of the program.
    pub fn members(&self, node: Node) -> Vec<&str> {
        let root = self.root(node);
        (0..self.names.len())
            .filter(|&other| self.root(other) == root)
            .map(|other| self.names[other].as_str())
            .collect()
    }

    /// Where a value of a lowered program belongs, told by its name, which begins with that of the semantic operation.
    /// `kind` is the operation that gives it.
    pub fn place(&self, name: &str, kind: &str) -> Place {
        let mut owner = name;
        loop {
            if let Some(found) = self.owners.get(owner) {
                return found.place(name[owner.len()..].trim_start_matches('.'), kind);
            }
            match owner.rsplit_once('.') {
                Some((shorter, _)) => owner = shorter,
                None => return Place::Elsewhere,
            }
        }
    }

    fn node(&mut self, name: &str) -> Node {
        if let Some(known) = self.numbers.get(name) {
            return *known;
        }
        let node = self.names.len();
        self.names.push(name.to_owned());
        self.parents.push(node);
        self.numbers.insert(name.to_owned(), node);
        node
    }

    fn tie(&mut self, a: Node, b: Node) {
        let (a, b) = (self.root(a), self.root(b));
        let (first, other) = (a.min(b), a.max(b));
        self.parents[other] = first;
        if let (true, Some(reason)) = (first != other, self.fixed.remove(&other)) {
            self.fixed.entry(first).or_insert(reason);
        }
    }

    fn fix(&mut self, node: Node, reason: &str) {
        let root = self.root(node);
        self.fixed.entry(root).or_insert_with(|| reason.to_owned());
    }

    /// A product is scaled as one of its factors is, the other being kept.
    fn settle_products(&mut self) {
        let products = std::mem::take(&mut self.products);
        // Fixing one may settle another.
        for _ in 0..2 {
            for &[product, a, b] in &products {
                match (self.fixed(a).is_some(), self.fixed(b).is_some()) {
                    (true, false) => self.tie(product, b),
                    (false, true) => self.tie(product, a),
                    (true, true) => self.fix(product, "both factors of it keep their size"),
                    (false, false) => {
                        self.fix(a, "it is a factor of a product");
                        self.tie(product, b);
                    }
                }
            }
        }
    }
}

impl Owner {
    fn value(&self, param: &str) -> Option<Node> {
        self.values.iter().find(|(name, _)| *name == param).map(|(_, node)| *node)
    }

    fn place(&self, part: &str, kind: &str) -> Place {
        let scaled = |node: Option<Node>, power| node.map_or(Place::Elsewhere, |node| Place::Scaled { node, power });
        let part = part.strip_prefix("by_token.").unwrap_or(part);
        let first = part.split('.').next().unwrap_or(part);
        match (self.op.as_str(), first) {
            ("rms_norm", "squares" | "mean") => scaled(self.value("x"), 2),
            ("rms_norm", "float32" | "negative" | "twice" | "last") => scaled(self.value("x"), 1),
            ("rms_norm", "scale" | "normed" | "scaled" | "float16") => Place::Elsewhere,
            ("attention", "query" | "groups" | "scaled") => scaled(self.value("query"), 1),
            ("attention", "key" | "keys") => scaled(self.value("key"), 1),
            ("attention", "value" | "values") => scaled(self.value("value"), 1),
            ("attention", "scores" | "capped" | "masked_scores" | "scores_and_sinks" | "biased") => {
                Place::Kept("scores are the same at any scale of queries and keys")
            }
            ("attention", "weights" | "sink_column" | "first_column" | "empty_column" | "sinks") => Place::Elsewhere,
            ("experts", "gate") => Place::Kept("an activation is not the same at another scale"),
            ("experts", "by_token") if kind == "reduce_sum" => scaled(self.result, 1),
            ("experts", "up" | "gated" | "by_token" | "by_expert") => scaled(self.value("inner"), 1),
            ("experts", "" | "down" | "shared") => scaled(self.result, 1),
            ("experts", _) => Place::Elsewhere,
            _ => scaled(self.result, 1),
        }
    }
}

/// Reads a function.
struct Reader<'a> {
    groups: &'a mut Groups,
    function: &'a Function,
    defs: Defs<'a>,
    number: usize,
}

impl Reader<'_> {
    fn read(mut self) {
        let function = self.function;
        for (index, operation) in function.block.operations.iter().enumerate() {
            let [output] = operation.outputs[..] else { continue };
            let float = function.ty(output).as_tensor().is_some_and(|ty| ty.dtype.is_float());
            if operation.constant().is_none() && float {
                self.operation(index, operation, output);
            }
        }
        for output in &function.block.outputs {
            if let Some(node) = self.value(*output) {
                self.groups.fix(node, "it is what the model gives");
            }
        }
    }

    /// The node of a variable; none of constants and inputs.
    fn value(&mut self, var: Var) -> Option<Node> {
        let producer = self.defs.producer(var)?;
        producer.constant().is_none().then(|| self.groups.node(&producer.name))
    }

    fn argument(&mut self, operation: &Operation, param: &str) -> Option<Node> {
        operation.var(param).and_then(|var| self.value(var))
    }

    fn site(&mut self, index: usize, param: &'static str, kind: Kind) {
        self.groups.sites.push(Site { place: (self.number, index), param, kind });
    }

    fn weight(&mut self, index: usize, param: &'static str, rows: Rows, input: Option<Node>) {
        let function = self.function;
        if function.block.operations[index].arg(param).is_some() {
            self.site(index, param, Kind::Weight { rows, input });
        }
    }

    fn operation(&mut self, index: usize, operation: &Operation, output: Var) {
        let parts = self.parts_of(operation, output);
        // What is only taken apart has no scale of its own.
        let result = if parts.is_some() { None } else { Some(self.groups.node(&operation.name)) };
        let mut owner = Owner { op: operation.op_name().to_owned(), result, values: Vec::new() };
        for param in ["x", "query", "key", "value"] {
            owner.values.extend(self.argument(operation, param).map(|node| (param, node)));
        }
        match result {
            Some(node) => self.tied(index, operation, node, &mut owner),
            None => self.taken_apart(index, operation, parts.unwrap_or(Rows::Kept)),
        }
        self.groups.owners.entry(operation.name.clone()).or_insert(owner);
    }

    /// A product whose result is only taken apart, or the heads of such a one.
    fn taken_apart(&mut self, index: usize, operation: &Operation, parts: Rows) {
        if operation.op_name() == "linear" {
            let input = self.argument(operation, "x");
            self.weight(index, "weight", parts.clone(), input);
            self.weight(index, "bias", parts, None);
        }
    }

    fn tied(&mut self, index: usize, operation: &Operation, node: Node, owner: &mut Owner) {
        let (x, all) = (owner.value("x"), Rows::All(node));
        match operation.op_name() {
            "embedding" => {
                self.weight(index, "weight", all, None);
                self.groups.embedding.get_or_insert(node);
            }
            "linear" | "logits" => {
                self.weight(index, "weight", all.clone(), x);
                self.weight(index, "bias", all, None);
            }
            "add_positions" => {
                self.tie_all(node, [x]);
                self.weight(index, "weight", all, None);
            }
            "add" => {
                let y = self.argument(operation, "y");
                self.tie_all(node, [x, y]);
                for (param, value) in [("x", x), ("y", y)] {
                    match operation.arg(param) {
                        Some(Arg::Var(_)) if value.is_none() => self.weight(index, param, all.clone(), None),
                        Some(Arg::Value(_)) => self.groups.fix(node, "a number is added to it"),
                        _ => {}
                    }
                }
            }
            "mul" => match (x, self.argument(operation, "y")) {
                (Some(x), Some(y)) => self.groups.products.push([node, x, y]),
                (x, y) => self.tie_all(node, [x, y]),
            },
            "rms_norm" | "layer_norm" => self.norm(index, operation, node, x),
            // Of what it is told it only sees the shape.
            "relative_bias" => self.groups.fix(node, "it is added to scores"),
            "relu" | "rope" | "split_heads" | "identity" | "pool" => self.tie_all(node, [x]),
            "slice_by_index" => {
                // Of what has a scale of its own, a part has the same.
                let whole = operation.var("x").and_then(|x| self.defs.producer(x));
                let of_whole = whole.is_none_or(|whole| self.parts_of(whole, whole.outputs[0]).is_none());
                self.tie_all(node, [x.filter(|_| of_whole)]);
            }
            "attention" => self.attention(index, operation, node, owner),
            "experts" => self.experts(index, operation, node, owner),
            other => {
                let reason = format!("`{other}` is not the same at another scale");
                for value in [Some(node)].into_iter().chain(["x", "y"].map(|param| self.argument(operation, param))) {
                    value.into_iter().for_each(|value| self.groups.fix(value, &reason));
                }
            }
        }
    }

    fn tie_all<const N: usize>(&mut self, node: Node, others: [Option<Node>; N]) {
        others.into_iter().flatten().for_each(|other| self.groups.tie(node, other));
    }

    fn norm(&mut self, index: usize, operation: &Operation, node: Node, x: Option<Node>) {
        for param in ["weight", "gamma", "beta"] {
            self.weight(index, param, Rows::All(node), None);
        }
        if operation.op_name() == "layer_norm" && operation.arg("gamma").is_none() {
            self.groups.fix(node, "the norm has no weight");
        }
        if let Some(x) = x {
            self.site(index, "epsilon", Kind::Epsilon(x));
        }
    }

    fn attention(&mut self, index: usize, operation: &Operation, node: Node, owner: &Owner) {
        self.tie_all(node, [owner.value("value")]);
        if let (Some(query), Some(key)) = (owner.value("query"), owner.value("key")) {
            self.site(index, "scale", Kind::Scale { query, key });
        }
        if let Some(bias) = self.argument(operation, "bias") {
            self.groups.fix(bias, "it is added to scores");
        }
    }

    fn experts(&mut self, index: usize, operation: &Operation, node: Node, owner: &mut Owner) {
        let inner = self.groups.node(&format!("{}.inner", operation.name));
        let number = |param: &str| match operation.arg(param) {
            Some(Arg::Value(Value::Tensor(number))) => number.to_f64().ok().and_then(|n| n.first().copied()),
            _ => None,
        };
        if number("limit").unwrap_or(0.0) != 0.0 || number("up_offset").unwrap_or(0.0) != 0.0 {
            self.groups.fix(inner, "experts limit it, or add to it");
        }
        if let Some(scores) = self.argument(operation, "scores") {
            self.groups.fix(scores, "experts are chosen by it");
        }
        let x = owner.value("x");
        self.weight(index, "gate", Rows::Kept, x);
        self.weight(index, "up", Rows::All(inner), x);
        self.weight(index, "up_bias", Rows::All(inner), None);
        self.weight(index, "down", Rows::All(node), Some(inner));
        self.weight(index, "down_bias", Rows::All(node), None);
        owner.values.push(("inner", inner));
    }

    /// The parts that the rows of a product make, if its result is only taken apart, at once or after it was split in heads.
    fn parts_of(&mut self, operation: &Operation, output: Var) -> Option<Rows> {
        let heads = match operation.op_name() {
            "linear" => match self.users(output)[..] {
                [only] if only.op_name() == "split_heads" => only.outputs.first().copied(),
                _ => None,
            },
            "split_heads" => {
                let source = operation.var("x").and_then(|x| self.defs.producer(x))?;
                let only = source.op_name() == "linear" && self.users(source.outputs[0]).len() == 1;
                only.then_some(output)
            }
            _ => return None,
        };
        let whole = heads.unwrap_or(output);
        let period = self.function.ty(whole).as_tensor()?.shape.last()?.fixed()?;
        let ranges: Option<Vec<_>> = self
            .users(whole)
            .into_iter()
            .map(|user| {
                let part = user.op_name() == "slice_by_index";
                let range = if part { last(user, "begin")?..last(user, "end")? } else { return None };
                Some((range, user.name.clone()))
            })
            .collect();
        let ranges = ranges.filter(|ranges| !ranges.is_empty())?;
        let parts = ranges.into_iter().map(|(range, name)| (range, self.groups.node(&name))).collect();
        Some(Rows::Parts { period, parts })
    }

    /// The operations that use a variable; none if the function gives it.
    fn users(&self, var: Var) -> Vec<&'_ Operation> {
        if self.defs.is_output(var) {
            return Vec::new();
        }
        self.defs.users(var).iter().map(|&index| &self.function.block.operations[index]).collect()
    }
}

/// The last element of a constant vector in place.
fn last(operation: &Operation, param: &str) -> Option<usize> {
    let Some(Arg::Value(Value::Tensor(corner))) = operation.arg(param) else { return None };
    usize::try_from(*corner.to_i64().ok()?.last()?).ok()
}
