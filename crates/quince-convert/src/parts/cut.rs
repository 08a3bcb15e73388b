//! Cuts a run of sections out of a program.

use super::caches::{Caches, Slice, moved};
use super::sections::{INPUT_IDS, Place, Sections};
use quince_mil::{Arg, Defs, Dim, Flexibility, Function, Operation, Program, Result, TensorType, ValueType, Var, bail};
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

/// Cuts parts out of a program, one after another.
pub(super) struct Cut<'a> {
    program: &'a Program,
    sections: &'a Sections,
    caches: Vec<Caches>,
    /// Where the parts so far end, by index of the section that follows.
    ends: Vec<usize>,
}

impl<'a> Cut<'a> {
    /// Nothing is cut yet.
    ///
    /// # Errors
    /// When a cache is used in a way that cannot be cut.
    pub fn new(program: &'a Program, sections: &'a Sections) -> Result<Cut<'a>> {
        let caches = program
            .functions
            .iter()
            .map(|function| Caches::of(function).map_err(|e| e.at(format!("function `{}`", function.name))))
            .collect::<Result<_>>()?;
        Ok(Cut { program, sections, caches, ends: Vec::new() })
    }

    /// The part up to this section is done.
    pub fn end_part(&mut self, end: usize) {
        self.ends.push(end);
    }

    /// A run of sections as a program; it begins where the last part ended.
    ///
    /// # Errors
    /// When a function has nothing in it, or passes on what cannot be an output.
    pub fn part(&self, run: Range<usize>) -> Result<Program> {
        let mut program = Program {
            functions: Vec::new(),
            default_function: self.program.default_function.clone(),
            attributes: self.program.attributes.clone(),
        };
        for (number, function) in self.program.functions.iter().enumerate() {
            let piece = Piece {
                cut: self,
                function,
                defs: Defs::new(function),
                places: &self.sections.places[number],
                caches: &self.caches[number],
                own: self.sections.numbers(&run),
                run: run.clone(),
            };
            program.functions.push(piece.function().map_err(|e| e.at(format!("function `{}`", function.name)))?);
        }
        Ok(program)
    }
}

/// What a function has of a part.
struct Piece<'a> {
    cut: &'a Cut<'a>,
    function: &'a Function,
    defs: Defs<'a>,
    places: &'a [Place],
    caches: &'a Caches,
    /// The sections by their place, and by their index.
    own: Range<usize>,
    run: Range<usize>,
}

impl Piece<'_> {
    fn function(&self) -> Result<Function> {
        let needed = self.needed();
        if !needed.iter().any(|&i| self.places[i] != Place::Anywhere) {
            bail!("found nothing of it in {}, expected something of each function", self.describe());
        }
        let (crossing, slices) = (self.crossing_in(&needed), self.slices()?);
        let mut made = Function::new(&self.function.name, self.function.opset);
        made.attributes = self.function.attributes.clone();
        let mut vars: HashMap<Var, Var> = HashMap::new();
        self.inputs(&needed, &slices, &mut made, &mut vars)?;
        for (var, name) in &crossing {
            let ty = self.function.ty(*var).clone();
            let flexibility = self.flexibility(&ty);
            vars.insert(*var, made.add_input(name, ty, flexibility));
        }
        let passed: HashMap<Var, String> = self.crossing_out().into_iter().collect();
        let moves = self.caches.moves(&slices, &|i| self.is_own(i));
        let constant = |arg: &Arg| self.defs.constant(arg).cloned();
        for &i in &needed {
            let mut operation = self.function.block.operations[i].clone();
            if let Some(&by) = moves.get(&i) {
                moved(&mut operation, by, &constant)?;
            }
            if self.places[i] == Place::Everywhere {
                self.collect(&mut operation);
            }
            let rows = (self.places[i] == Place::Everywhere).then(|| operation.args("values").len());
            operation.map_vars(&mut |var| {
                *vars.entry(var).or_insert_with(|| {
                    let info = self.function.var(var);
                    let whole = self.caches.whole_type(var, &slices).unwrap_or_else(|| info.ty.clone());
                    let ty = rows.map_or_else(|| whole.clone(), |rows| with_rows(&whole, rows));
                    made.add_var(passed.get(&var).unwrap_or(&info.name), ty)
                })
            });
            made.block.operations.push(operation);
        }
        let own_outputs = self.function.block.outputs.iter().filter(|var| self.makes(**var, &needed));
        let outputs: Vec<Var> =
            self.crossing_out().into_iter().map(|(var, _)| var).chain(own_outputs.copied()).collect();
        let mut seen = BTreeSet::new();
        made.block.outputs =
            outputs.iter().filter(|var| seen.insert(**var)).filter_map(|var| vars.get(var)).copied().collect();
        Ok(made)
    }

    fn describe(&self) -> String {
        self.cut.sections.describe(self.run.clone())
    }

    /// Whether an operation is one of these sections, or collects rows of theirs.
    fn is_own(&self, i: usize) -> bool {
        match self.places[i] {
            Place::In(section) => self.own.contains(&section),
            Place::Everywhere => {
                let args = self.function.block.operations[i].args("values");
                args.iter().any(|arg| self.is_own_row(arg))
            }
            Place::Anywhere => false,
        }
    }

    fn is_own_row(&self, arg: &Arg) -> bool {
        let Arg::Var(var) = arg else { return false };
        self.defs.producer_index(*var).is_some_and(|i| matches!(self.places[i], Place::In(s) if self.own.contains(&s)))
    }

    /// The operations of these sections, and those outside of any that they need, in order.
    fn needed(&self) -> BTreeSet<usize> {
        let mut needed: BTreeSet<usize> = (0..self.places.len()).filter(|&i| self.is_own(i)).collect();
        let mut open: Vec<usize> = needed.iter().copied().collect();
        while let Some(i) = open.pop() {
            self.function.block.operations[i].visit_uses(&mut |var| {
                let free = self.defs.producer_index(var).filter(|&p| self.places[p] == Place::Anywhere);
                open.extend(free.filter(|&p| needed.insert(p)));
            });
        }
        needed
    }

    /// The inputs of the whole function that are needed, caches with their own layers only.
    fn inputs(
        &self,
        needed: &BTreeSet<usize>,
        slices: &[Slice],
        made: &mut Function,
        vars: &mut HashMap<Var, Var>,
    ) -> Result<()> {
        for input in &self.function.inputs {
            if !self.defs.users(input.var).iter().any(|user| needed.contains(user)) {
                continue;
            }
            let info = self.function.var(input.var);
            let slice = slices.iter().find(|slice| slice.input == input.var);
            let ty = slice.map_or_else(|| info.ty.clone(), |slice| slice.ty.clone());
            vars.insert(input.var, made.add_input(&info.name, ty, input.flexibility.clone()));
        }
        Ok(())
    }

    fn slices(&self) -> Result<Vec<Slice>> {
        let slice = |var: Var| self.caches.slice(self.function, var, &|i| self.is_own(i)).transpose();
        self.function.inputs.iter().filter_map(|input| slice(input.var)).collect()
    }

    /// The values of earlier parts that these sections use, with their names.
    fn crossing_in(&self, needed: &BTreeSet<usize>) -> Vec<(Var, String)> {
        let (mut begin, mut found) = (0, Vec::new());
        for &end in &self.cut.ends {
            let crossing = self.crossing(begin..end);
            found.extend(
                crossing.into_iter().filter(|(var, _)| self.defs.users(*var).iter().any(|i| self.uses(*i, needed))),
            );
            begin = end;
        }
        found
    }

    /// Whether an operation is there; those that collect rows take none of earlier parts.
    fn uses(&self, i: usize, needed: &BTreeSet<usize>) -> bool {
        self.places[i] != Place::Everywhere && needed.contains(&i)
    }

    /// The values that later parts use, with their names.
    fn crossing_out(&self) -> Vec<(Var, String)> {
        self.crossing(self.run.clone())
    }

    /// The values that a run of sections makes and later ones use, in order, with their names.
    fn crossing(&self, run: Range<usize>) -> Vec<(Var, String)> {
        let sections = self.cut.sections;
        let (own, layers) = (sections.numbers(&run), sections.layers_before(run.end));
        let makes = |i: &usize| matches!(self.places[*i], Place::In(section) if own.contains(&section));
        let outputs = (0..self.places.len()).filter(makes).flat_map(|i| &self.function.block.operations[i].outputs);
        let later = |user: &usize| matches!(self.places[*user], Place::In(section) if section >= own.end);
        let crossing = outputs.filter(|var| self.defs.users(**var).iter().any(later));
        let name = |(n, var): (usize, &Var)| match (self.defs.is_output(*var), n) {
            (true, _) => (*var, self.function.var(*var).name.clone()),
            (false, 0) => (*var, format!("hidden_{layers}")),
            (false, n) => (*var, format!("hidden_{layers}_{n}")),
        };
        crossing.enumerate().map(name).collect()
    }

    /// Whether a result of the function is made by what is needed.
    fn makes(&self, var: Var, needed: &BTreeSet<usize>) -> bool {
        self.defs.producer_index(var).is_some_and(|i| self.is_own(i) && needed.contains(&i))
    }

    /// Leaves only the rows of these sections.
    fn collect(&self, operation: &mut Operation) {
        for (_, args) in operation.inputs.iter_mut().filter(|(param, _)| param == "values") {
            args.retain(|arg| self.is_own_row(arg));
        }
    }

    /// Which shapes a value of another part may have: those that the tokens have.
    fn flexibility(&self, ty: &ValueType) -> Flexibility {
        let ids = self.function.inputs.iter().find(|input| self.function.var(input.var).name == INPUT_IDS);
        let (Some(ids), Some(ty)) = (ids, ty.as_tensor()) else { return Flexibility::Fixed };
        let Some(of_ids) = self.function.ty(ids.var).as_tensor() else { return Flexibility::Fixed };
        if ty.shape.iter().all(|dim| dim.fixed().is_some()) {
            return Flexibility::Fixed;
        }
        match &ids.flexibility {
            Flexibility::Fixed => Flexibility::Fixed,
            Flexibility::Range { bounds, default } => Flexibility::Range {
                bounds: spread(ty, of_ids, bounds, &|size| (size, Some(size))),
                default: spread(ty, of_ids, default, &|size| size),
            },
            Flexibility::Enumerated(shapes) => {
                Flexibility::Enumerated(shapes.iter().map(|shape| spread(ty, of_ids, shape, &|size| size)).collect())
            }
        }
    }
}

/// By axis of a type: what is said of its size, or, where that is open, what `said` says of the axis of the tokens that it
/// has the size of. Open axes are in the same order in both.
fn spread<T: Clone>(ty: &TensorType, tokens: &TensorType, said: &[T], of_size: &dyn Fn(usize) -> T) -> Vec<T> {
    let open = tokens.shape.iter().zip(said).filter(|(dim, _)| **dim == Dim::Unknown).map(|(_, said)| said.clone());
    let mut open = open.collect::<Vec<T>>().into_iter();
    let of_axis = |dim: &Dim| match dim.fixed() {
        Some(size) => of_size(size),
        None => open.next().unwrap_or_else(|| of_size(1)),
    };
    ty.shape.iter().map(of_axis).collect()
}

/// The type of as many rows.
fn with_rows(ty: &ValueType, rows: usize) -> ValueType {
    match ty {
        ValueType::Tensor(ty) => {
            let shape = std::iter::once(rows.into()).chain(ty.shape.iter().skip(1).copied()).collect();
            TensorType { dtype: ty.dtype, shape }.into()
        }
        other => other.clone(),
    }
}
