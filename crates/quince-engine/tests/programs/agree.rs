//! Whether the engine does with a program what the definitions of its operations say, whatever the number of threads.

use crate::choices::{MOST_ELEMENTS, Noise};
use crate::generate::Case;
use quince_engine::{Engine, Options, Precision};
use quince_mil::eval::{self, Observer, Seen, Tensors};
use quince_mil::{DType, Error, Limits, Program, Result, Tensor, Value, bail, text};

/// How often a program is run with shaken values before a difference is held against the engine.
const SHAKES: u64 = 6;
/// How many times as far as those runs a result may be from the definition's.
const SLACK: f64 = 32.0;

/// Runs a program by its definition and by the engine.
///
/// # Panics
/// When they differ: in whether there is a result, in its type, or in its values by more than rounding explains; or
/// when two threads do not give the bits that one gives.
pub fn check(case: &Case) {
    let mut watch = Watch { shake: None, wild: false, large: false };
    let expected = definition(case, &mut watch);
    if watch.large {
        return;
    }
    let options = |threads, precision| Options { threads, precision, ..Options::default() };
    let one = engine(case, options(1, Precision::Default));
    let two = engine(case, options(2, Precision::Default));
    let exact = engine(case, options(1, Precision::Exact));
    for (one, two) in one.iter().zip(&two) {
        match (one, two) {
            (Ok(one), Ok(two)) => {
                for (name, one) in one {
                    assert!(one.same(&two[name]), "`{name}` depends on the number of threads{}", show(&case.program));
                }
            }
            (Err(one), Err(two)) if one.to_string() == two.to_string() => {}
            _ => panic!("one thread: {one:?}, two threads: {two:?}{}", show(&case.program)),
        }
    }
    // What overflows in fp16 does not in the engine, which computes in f32.
    if !watch.wild {
        compare(case, &expected, &one);
        compare(case, &expected, &exact);
    }
    // These have errors of their own, but end, and have a result where there is one.
    for precision in [Precision::Strict, Precision::Fast] {
        let runs = engine(case, options(1, precision));
        assert!(
            runs.iter().zip(&one).all(|(run, one)| run.is_ok() == one.is_ok()),
            "{precision:?}{}",
            show(&case.program)
        );
    }
}

fn show(program: &Program) -> String {
    format!(", in\n{}", text::print(program, &text::PrintOptions::default()))
}

/// The results of the calls, up to the first error.
type Runs = Vec<Result<Tensors>>;

fn definition(case: &Case, watch: &mut Watch) -> Runs {
    let mut states = Tensors::new();
    until_error(case, |inputs| {
        eval::run_observed(&case.program.functions[0], inputs, &mut states, &Limits::default(), watch)
    })
}

fn engine(case: &Case, options: Options) -> Runs {
    let engine = Engine::load(case.program.clone(), options).expect("the program verifies");
    let mut state = engine.new_state().expect("there is memory");
    until_error(case, |inputs| engine.predict("main", inputs, &mut state))
}

fn until_error(case: &Case, mut run: impl FnMut(&Tensors) -> Result<Tensors>) -> Runs {
    let mut runs = Vec::new();
    for inputs in &case.calls {
        runs.push(run(inputs));
        if runs.last().is_some_and(Result::is_err) {
            break;
        }
    }
    runs
}

fn compare(case: &Case, expected: &Runs, found: &Runs) {
    let mut shaken = None;
    for (i, (expected, found)) in expected.iter().zip(found).enumerate() {
        let (expected, found) = match (expected, found) {
            (Ok(expected), Ok(found)) => (expected, found),
            (Err(_), Err(_)) => return,
            // The engine holds every value to its declared type, the definition only results.
            (Ok(_), Err(error)) if error.to_string().contains("is declared") => return,
            // What only `shape` looks at is not computed, so that nothing can be wrong with it.
            (Err(_), Ok(_)) if has(&case.program, "shape") => return,
            (expected, found) => {
                let shaken = shaken.get_or_insert_with(|| shake(case));
                let sure = shaken.iter().all(|runs| runs.get(i).is_some_and(|run| run.is_ok() == expected.is_ok()));
                let short = |run: &Result<Tensors>| run.as_ref().map(|_| "results").map_err(Error::to_string);
                let (expected, found) = (short(expected), short(found));
                assert!(!sure, "call {i}: found {found:?}, expected {expected:?}{}", show(&case.program));
                return;
            }
        };
        for (name, expected) in expected {
            let found = &found[name];
            if close(expected, found, |_| 0.0) {
                continue;
            }
            let shaken = shaken.get_or_insert_with(|| shake(case));
            let others: Option<Vec<&Tensor>> =
                shaken.iter().map(|runs| runs.get(i)?.as_ref().ok().map(|outputs| &outputs[name])).collect();
            let Some(others) = others else { return };
            let agrees = match spread(expected, &others) {
                Some(spread) => close(expected, found, |_| SLACK * spread),
                None => true,
            };
            let values = |t: &Tensor| format!("{t:?} {:?}", t.to_f64().unwrap_or_default().get(..16).unwrap_or(&[]));
            assert!(
                agrees,
                "call {i}, `{name}`: found {}, expected {}{}",
                values(found),
                values(expected),
                show(&case.program)
            );
        }
    }
}

fn has(program: &Program, op: &str) -> bool {
    let mut blocks = vec![&program.functions[0].block];
    while let Some(block) = blocks.pop() {
        if block.operations.iter().any(|operation| operation.op_name() == op) {
            return true;
        }
        blocks.extend(block.operations.iter().flat_map(|operation| &operation.blocks));
    }
    false
}

/// How far the values of shaken runs are from the expected ones; none if they do not tell what is right.
fn spread(expected: &Tensor, others: &[&Tensor]) -> Option<f64> {
    let mut spread = 0.0f64;
    let values = expected.to_f64().ok()?;
    for other in others {
        if other.shape() != expected.shape() {
            return None;
        }
        for (a, b) in values.iter().zip(other.to_f64().ok()?) {
            let distance = (a - b).abs();
            let whole = !expected.dtype().is_float();
            if !distance.is_finite() || whole && distance > 0.0 {
                return None;
            }
            spread = spread.max(distance);
        }
    }
    Some(spread)
}

/// Whether two results are of one type and, but for rounding and a distance, equal.
fn close(expected: &Tensor, found: &Tensor, more: impl Fn(usize) -> f64) -> bool {
    if (expected.dtype(), expected.shape()) != (found.dtype(), found.shape()) {
        return false;
    }
    let (Ok(a), Ok(b)) = (expected.to_f64(), found.to_f64()) else { return expected.same(found) };
    let largest = a.iter().fold(0.0f64, |most, v| most.max(v.abs()));
    let tolerance = match expected.dtype() {
        DType::F16 => 2e-3 * largest + 1e-6,
        dtype if dtype.is_float() => 1e-5 * largest + 1e-9,
        _ => 0.0,
    };
    a.iter().zip(&b).enumerate().all(|(i, (a, b))| (a - b).abs() <= tolerance + more(i))
}

fn shake(case: &Case) -> Vec<Runs> {
    (0..SHAKES)
        .map(|seed| definition(case, &mut Watch { shake: Some(Noise::new(seed)), wild: false, large: false }))
        .collect()
}

/// Looks at every value: notes what is not finite, stops at what is too large and, if asked to, moves each number by as
/// much as rounding may.
struct Watch {
    shake: Option<Noise>,
    wild: bool,
    large: bool,
}

impl Observer for Watch {
    fn value(&mut self, _: &Seen, value: Value) -> Result<Value> {
        let Value::Tensor(tensor) = &value else { return Ok(value) };
        if tensor.len() > 2 * MOST_ELEMENTS {
            self.large = true;
            bail!("found {tensor:?}, which is larger than tests take");
        }
        if !tensor.dtype().is_float() {
            return Ok(value);
        }
        let mut values = tensor.to_f64()?;
        let largest = values.iter().fold(0.0f64, |most, v| most.max(v.abs()));
        self.wild |= values.iter().any(|v| !v.is_finite()) || largest > 3e4;
        let Some(noise) = &mut self.shake else { return Ok(value) };
        let step = if tensor.dtype() == DType::F16 { 2f64.powi(-10) } else { 2f64.powi(-21) };
        for v in &mut values {
            let mut unit = || (noise.bits() >> 40) as f64 / (1u64 << 23) as f64 - 1.0;
            *v += step * (*v * unit() + 0.25 * largest * unit());
        }
        Ok(Tensor::from_f64(tensor.dtype(), tensor.shape(), values)?.into())
    }
}
