//! The pass that compresses a program: constants that are weights become `constexpr_*` operations over lazy weights.
//!
//! ```text
//! %w = const(val = fp16[O, I])
//! %y = linear(x = %x, weight = %w)
//! ```
//! becomes
//! ```text
//! %w = constexpr_lut_to_dense(indices = uint4[O, I], lut = fp16[O/16, 1, 16, 1])
//! %y = linear(x = %x, weight = %w)
//! ```
//! Nothing is computed here: the new weights are when they are written, one at a time.

use crate::scheme::{Lowered, Target};
use crate::{Axes, Component, Guide, OptimizationConfig, Scheme, Selector};
use quince_mil::{Arg, Defs, Error, Function, Operation, Opset, Program, Result, Value, Var, Weight, bail};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

/// What the rules did.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// By rule of the configuration, in its order.
    pub rules: Vec<RuleReport>,
    /// Each weight that a rule touched, in the order of the program.
    pub weights: Vec<Touched>,
    /// The weights that were left as they are although a rule wanted them compressed, with the reason.
    pub left: Vec<(String, String)>,
    /// The opset of functions that had one without compressed weights.
    pub raised: Option<Opset>,
}

/// What a rule touched. Weights that functions share count once.
#[derive(Clone, Debug)]
pub struct RuleReport {
    /// Which weights it is about.
    pub selector: Selector,
    /// What became of them.
    pub scheme: Option<Scheme>,
    /// How many weights.
    pub weights: usize,
    /// How many of them were chosen by what they are multiplied with.
    pub calibrated: usize,
    /// Their elements.
    pub parameters: usize,
    /// Their bytes before.
    pub bytes_before: usize,
    /// Their bytes now, tables and scales included.
    pub bytes_after: usize,
}

/// A weight that a rule touched.
#[derive(Clone, Debug)]
pub struct Touched {
    /// The number of the rule.
    pub rule: usize,
    /// As it was.
    pub weight: Weight,
    /// How its channels lie.
    pub axes: Axes,
    /// The name of its constant, which rules go by.
    pub name: String,
    /// Its bytes now, tables and scales included.
    pub bytes_after: usize,
}

/// Compresses the weights of every function. Weights are what `linear`, `conv`, `matmul` and their like multiply with,
/// and tables of embeddings.
///
/// Functions of opset CoreML5, which has no compressed weights, are raised to CoreML6: it has all operations of the older
/// one. Newer opsets have some in other forms, so that nothing is raised to them.
///
/// # Errors
/// When a rule touches nothing, or a function's opset is older than the operations that schemes need.
pub fn compress(program: &mut Program, config: &OptimizationConfig) -> Result<Report> {
    compress_guided(program, config, None)
}

/// [`compress`], where schemes that can make use of what is known of a weight's inputs do.
///
/// # Errors
/// As [`compress`].
pub fn compress_guided(
    program: &mut Program,
    config: &OptimizationConfig,
    guide: Option<Arc<dyn Guide>>,
) -> Result<Report> {
    let mut pass = Pass {
        config,
        guide,
        report: Report::default(),
        done: HashMap::new(),
        kept: HashSet::new(),
        left: BTreeMap::new(),
    };
    for rule in &config.rules {
        pass.report.rules.push(RuleReport {
            selector: rule.selector.clone(),
            scheme: rule.scheme,
            weights: 0,
            calibrated: 0,
            parameters: 0,
            bytes_before: 0,
            bytes_after: 0,
        });
    }
    for function in &mut program.functions {
        if function.opset < Opset::CoreML6 {
            function.opset = Opset::CoreML6;
            write_defaults(&mut function.block.operations);
            pass.report.raised = Some(function.opset);
        }
        let schemes = config.rules.iter().filter_map(|rule| rule.scheme);
        let place = |scheme, e: Error| e.at(format!("function `{}`, {scheme}", function.name));
        schemes.into_iter().try_for_each(|s| s.check(function.opset).map_err(|e| place(s, e)))?;
        pass.function(function)?;
    }
    pass.finish()
}

/// Writes the parameters that operations have from CoreML6 on, with the values that leave them what they were.
fn write_defaults(operations: &mut [Operation]) {
    for operation in operations {
        let defaults = match operation.op_name() {
            "gather" | "gather_nd" => vec![("batch_dims", Value::from(0))],
            "topk" => vec![("sort", true.into()), ("return_indices", true.into())],
            _ => Vec::new(),
        };
        for (param, value) in defaults {
            if operation.args(param).is_empty() {
                operation.inputs.push((param.to_owned(), vec![Arg::Value(value)]));
            }
        }
        operation.blocks.iter_mut().for_each(|block| write_defaults(&mut block.operations));
    }
}

struct Pass<'a> {
    config: &'a OptimizationConfig,
    guide: Option<Arc<dyn Guide>>,
    report: Report,
    /// By identity and opset: what became of a weight, which lives on in it.
    done: HashMap<(usize, Opset), Lowered>,
    /// The weights that a rule wants as they are, by rule and name.
    kept: HashSet<(usize, String)>,
    left: BTreeMap<String, String>,
}

impl Pass<'_> {
    fn function(&mut self, function: &mut Function) -> Result<()> {
        let defs = Defs::new(function);
        let mut changes = BTreeMap::new();
        for (index, operation) in function.block.operations.iter().enumerate() {
            let (Some(value), [var]) = (operation.constant(), &operation.outputs[..]) else { continue };
            let Some(weight) = value.weight(&function.var(*var).name) else { continue };
            // Integers are indices and the like, not weights.
            let Some(found) = find_use(function, &defs, *var).filter(|_| weight.dtype().is_float()) else { continue };
            if let Some(lowered) = self.weight(&weight, &function.var(*var).name, &found, function.opset)? {
                changes.insert(index, lowered);
            }
        }
        for (index, old) in std::mem::take(&mut function.block.operations).into_iter().enumerate() {
            match changes.remove(&index) {
                None => function.block.operations.push(old),
                Some(lowered) => {
                    let new = lowered.operations(old, function)?;
                    function.block.operations.extend(new);
                }
            }
        }
        Ok(())
    }

    fn weight(&mut self, weight: &Weight, name: &str, found: &Use, opset: Opset) -> Result<Option<Lowered>> {
        if let Some(done) = self.done.get(&(weight.id(), opset)) {
            return Ok(Some(done.clone()));
        }
        let Some(number) = self.config.rule_for(name) else { return Ok(None) };
        let rule = &self.config.rules[number];
        let Some(scheme) = rule.scheme else {
            if self.kept.insert((number, name.to_owned())) {
                self.count(number, weight, name, found.axes, weight.byte_len());
            }
            return Ok(None);
        };
        let named = matches!(rule.selector, Selector::Name(_));
        if rule.selector == Selector::Default && Component::of(name) == Component::Adapter {
            self.left
                .insert("adapters".into(), "small beside the weights; a rule for `adapter` compresses them".into());
            return Ok(None);
        }
        if weight.len() < self.config.weight_threshold && !named {
            let reason = format!("{} elements are fewer than {}", weight.len(), self.config.weight_threshold);
            self.left.insert(name.to_owned(), reason);
            return Ok(None);
        }
        // Rows of experts are gathered where one token chooses among them.
        if found.table && !matches!(Component::of(name), Component::Embed | Component::Mlp) && !named {
            self.left.insert(name.to_owned(), "a table that is neither an embedding nor of experts".into());
            return Ok(None);
        }
        let guide = self.guide.clone().filter(|guide| !found.table && guide.knows(weight.name()));
        let calibrated = usize::from(guide.is_some() && scheme.is_guided());
        let axes = [found.axes.output, found.axes.input];
        let aim = guide.as_ref().and_then(|guide| guide.aim(weight, axes));
        match scheme.lower(aim.as_ref().unwrap_or(weight), &Target { axes: found.axes, opset, guide, tied: found.tied })
        {
            Ok(lowered) => {
                self.report.rules[number].calibrated += calibrated;
                self.count(number, weight, name, found.axes, lowered.byte_len());
                self.done.insert((weight.id(), opset), lowered.clone());
                Ok(Some(lowered))
            }
            Err(error) => {
                self.left.insert(name.to_owned(), error.to_string());
                Ok(None)
            }
        }
    }

    fn count(&mut self, rule: usize, weight: &Weight, name: &str, axes: Axes, bytes_after: usize) {
        let (weight, name) = (weight.clone(), name.to_owned());
        let row = &mut self.report.rules[rule];
        row.weights += 1;
        row.parameters += weight.len();
        row.bytes_before += weight.byte_len();
        row.bytes_after += bytes_after;
        self.report.weights.push(Touched { rule, weight, axes, name, bytes_after });
    }

    fn finish(mut self) -> Result<Report> {
        self.report.left = std::mem::take(&mut self.left).into_iter().collect();
        if let Some(rule) = self.report.rules.iter().find(|rule| rule.weights == 0 && !self.shadowed(rule)) {
            let reasons: Vec<String> = self.report.left.iter().take(4).map(|(n, why)| format!("{n}: {why}")).collect();
            let hint = match reasons.is_empty() {
                true => "`quince inspect` lists the weights and their components".to_owned(),
                false => format!("left as they are: {}", reasons.join("; ")),
            };
            bail!("the rule for {} touched no weight", rule.selector; hint: "{hint}");
        }
        Ok(self.report)
    }

    /// The rule for everything else may find nothing left.
    fn shadowed(&self, rule: &RuleReport) -> bool {
        rule.selector == Selector::Default && self.report.rules.iter().any(|other| other.weights > 0)
    }
}

/// How a constant is used.
pub(crate) struct Use {
    pub axes: Axes,
    /// Rows are looked up in it.
    pub table: bool,
    /// It is also multiplied with, if rows are looked up in it.
    pub tied: bool,
}

/// How a constant is used, if all that use it use it as a weight along the same axes.
pub(crate) fn find_use(function: &Function, defs: &Defs, var: Var) -> Option<Use> {
    let rank = function.ty(var).as_tensor()?.shape.len();
    if rank < 2 || defs.is_output(var) {
        return None;
    }
    let rows = Axes { output: 0, input: 1 };
    let mut found: Option<Use> = None;
    for &user in defs.users(var) {
        let operation = &function.block.operations[user];
        let is = |param: &str| operation.var(param) == Some(var);
        let flag = |param: &str| is_set(operation, defs, param);
        let (axes, table) = match operation.op_name() {
            "linear" | "logits" | "conv" if is("weight") => (rows, false),
            "conv_transpose" if is("weight") => (Axes { output: 1, input: 0 }, false),
            "embedding" if is("weight") => (rows, true),
            "gather" if is("x") => (rows, true),
            "matmul" if is("y") && rank == 2 && !flag("transpose_y") => (Axes { output: 1, input: 0 }, false),
            "matmul" if is("y") && rank == 2 => (rows, false),
            "matmul" if is("x") && rank == 2 && !flag("transpose_x") => (rows, false),
            "reshape" if is("x") && rank == 2 && multiplies_by_rows(function, defs, operation) => (rows, false),
            _ => return None,
        };
        found = match found {
            // A table that is also multiplied with is a tied embedding.
            Some(Use { axes: other, .. }) if other != axes => return None,
            Some(other) => Some(Use { axes, table: other.table && table, tied: other.tied || other.table != table }),
            None => Some(Use { axes, table, tied: false }),
        };
    }
    found
}

/// Whether a parameter is the constant `true`.
fn is_set(operation: &Operation, defs: &Defs, param: &str) -> bool {
    let value = operation.arg(param).and_then(|arg| defs.constant(arg)).and_then(|value| value.tensor().ok());
    value.and_then(|tensor| tensor.to_bools().ok()).is_some_and(|bools| bools == [true])
}

/// Whether what an operation makes of a matrix still has its rows, and is only multiplied with, row by row: the matrices
/// of experts are stored as one.
fn multiplies_by_rows(function: &Function, defs: &Defs, reshape: &Operation) -> bool {
    let last = |var: Var| function.ty(var).as_tensor().and_then(|ty| ty.shape.last().cloned());
    let (Some(from), [to]) = (reshape.var("x"), &reshape.outputs[..]) else { return false };
    let by_rows = |user: &usize| {
        let operation = &function.block.operations[*user];
        operation.op_name() == "matmul"
            && operation.var("y") == Some(*to)
            && operation.var("x") != Some(*to)
            && is_set(operation, defs, "transpose_y")
    };
    let users = defs.users(*to);
    last(from) == last(*to) && !defs.is_output(*to) && !users.is_empty() && users.iter().all(by_rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_weights::weight;
    use crate::{Nbits, Palette};
    use quince_mil::{Builder, DType, Flexibility, Tensor, ValueType, eval, verify};

    /// Two functions that multiply with the same two weights, one of which has 64 rows and one 3.
    fn program() -> Program {
        let weights = [weight(&[64, 48], DType::F16, 1), weight(&[3, 64], DType::F16, 2)];
        let names = ["mlp.up_proj.weight", "lm_head.weight"];
        let function = |name: &str| {
            let mut b = Builder::new(Function::new(name, Opset::CoreML8));
            let mut x = b.input("x", ValueType::tensor(DType::F16, &[2, 48]), Flexibility::Fixed);
            for (weight, name) in weights.iter().zip(names) {
                let weight = b.weight(&weight.renamed(name));
                x = b.op("linear", &format!("{name}.y"), &[("x", x.into()), ("weight", weight.into())]).unwrap();
            }
            b.finish(vec![x])
        };
        Program { functions: vec![function("init"), function("decode")], ..Program::default() }
    }

    fn run(function: &Function) -> Vec<f32> {
        let x = weight(&[2, 48], DType::F16, 3).load().unwrap();
        let outputs = eval::run(function, &[("x".to_owned(), x)].into(), &mut eval::Tensors::new()).unwrap();
        outputs.values().flat_map(|tensor: &Tensor| tensor.to_f32().unwrap()).collect()
    }

    fn palette(bits: usize) -> Scheme {
        Palette::kmeans(Nbits::new(bits).unwrap(), None).into()
    }

    #[test]
    fn weights_become_palettes_once_for_all_functions_and_keep_their_values() {
        let mut program = program();
        let before = run(&program.functions[0]);
        let mut config = OptimizationConfig::all(palette(8));
        config.add_mixed_precision("lm_head=none", palette(8)).unwrap();
        let report = compress(&mut program, &config).unwrap();
        verify::program(&program).unwrap();
        let ids = |function: &Function| -> Vec<(String, Vec<usize>)> {
            let weights = |operation: &Operation| {
                let values = operation.inputs.iter().flat_map(|(_, args)| args).filter_map(|arg| match arg {
                    Arg::Value(value) => value.weight("").map(|weight| weight.id()),
                    Arg::Var(_) => None,
                });
                (operation.op_name().to_owned(), values.collect())
            };
            function.block.operations.iter().map(weights).collect()
        };
        let found = ids(&program.functions[0]);
        let ops: Vec<&str> = found.iter().map(|(op, _)| op.as_str()).collect();
        assert_eq!(ops, ["constexpr_lut_to_dense", "linear", "const", "linear"]);
        assert_eq!(found, ids(&program.functions[1]));
        let counts: Vec<(usize, usize)> = report.rules.iter().map(|rule| (rule.weights, rule.parameters)).collect();
        assert_eq!(counts, [(1, 64 * 48), (1, 3 * 64)]);
        assert_eq!((report.rules[0].bytes_before, report.rules[0].bytes_after), (2 * 64 * 48, 64 * 48 + 2 * 256));
        for (a, b) in run(&program.functions[1]).iter().zip(&before) {
            assert!((a - b).abs() < 1e-3, "found {a}, expected {b}");
        }
    }

    #[test]
    fn what_is_left_is_told_and_a_rule_for_nothing_is_an_error() {
        let mut config = OptimizationConfig::all(palette(4));
        let report = compress(&mut program(), &config).unwrap();
        assert_eq!(report.left, [("lm_head.weight".to_owned(), "192 elements are fewer than 2048".to_owned())]);
        config.add_mixed_precision("attention=6", palette(4)).unwrap();
        let error = compress(&mut program(), &config).unwrap_err().to_string();
        assert!(
            error.starts_with("the rule for attention touched no weight; hint: left as they are: lm_head"),
            "{error}"
        );
    }
}
