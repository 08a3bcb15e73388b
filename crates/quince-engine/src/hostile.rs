//! Programs that verify and are unlike any that a converter writes: they run as their definitions say, or are refused.
//! Most were found by the fuzz targets.

use crate::{Engine, Options, State};
use quince_mil::eval::{self, Tensors};
use quince_mil::{Limits, Program, Result, Tensor, Weight, bail, text};

/// The program of one function with these parameters, operations and results.
fn program(parameters: &str, operations: &str, results: &str) -> Program {
    let source = format!("program(1.3) {{ func main<ios18>({parameters}) {{ {operations} }} -> ({results}); }}");
    let none = |_: &text::BlobRef| -> Result<Weight> { bail!("there is no weight file") };
    text::parse(&source, &none).unwrap()
}

fn load(program: &Program) -> Result<Engine> {
    Engine::load(program.clone(), Options { threads: 1, ..Options::default() })
}

/// Numbers from 1 for each input, states left out.
fn inputs(program: &Program) -> Tensors {
    let function = &program.functions[0];
    let tensors = function.inputs.iter().filter_map(|input| {
        let info = function.var(input.var);
        let quince_mil::ValueType::Tensor(ty) = &info.ty else { return None };
        let shape = ty.dims().unwrap();
        let numbers = (0..shape.iter().product()).map(|i: usize| (i % 7 + 1) as f32).collect();
        Some((info.name.clone(), Tensor::from_vec(shape, numbers).unwrap().cast(ty.dtype).unwrap()))
    });
    tensors.collect()
}

/// Runs a program by the engine and by the definitions of its operations, twice, and compares the results.
#[track_caller]
fn same(program: &Program) {
    let engine = load(program).unwrap();
    let (inputs, mut state, mut states) = (inputs(program), engine.new_state().unwrap(), Tensors::new());
    for _ in 0..2 {
        let expected = eval::run(&program.functions[0], &inputs, &mut states).unwrap();
        let found = engine.predict("main", &inputs, &mut state).unwrap();
        for (name, expected) in &expected {
            let found = &found[name];
            assert_eq!((found.dtype(), found.shape()), (expected.dtype(), expected.shape()), "{name}");
            for (a, b) in found.to_f32().unwrap().into_iter().zip(expected.to_f32().unwrap()) {
                assert!((a - b).abs() <= 1e-4 || (a.is_nan() && b.is_nan()), "{name}: found {a}, expected {b}");
            }
        }
    }
}

#[test]
fn products_over_nothing_are_zero() {
    let weight = "tensor<fp32, [4, 0]> w = const()[val = tensor<fp32, [4, 0]>([[], [], [], []])];";
    let y = "tensor<fp32, [2, 4]> y = matmul(x = x, y = w, transpose_y = bool(true))[name = string(\"y\")];";
    let z = "tensor<fp32, [2, 4]> z = linear(x = x, weight = w)[name = string(\"z\")];";
    same(&program("tensor<fp32, [2, 0]> x", &format!("{weight} {y} {z}"), "y, z"));
    let weight = "tensor<fp32, [0, 4]> w = const()[val = tensor<fp32, [0, 4]>([])];";
    let y = "tensor<fp32, [2, 4]> y = matmul(x = x, y = w)[name = string(\"y\")];";
    same(&program("tensor<fp32, [2, 0]> x", &format!("{weight} {y}"), "y"));
    let weight = "tensor<fp32, [2, 0, 1]> w = const()[val = tensor<fp32, [2, 0, 1]>([[], []])];";
    let y = "tensor<fp32, [1, 2, 3]> y = conv(x = x, weight = w)[name = string(\"y\")];";
    same(&program("tensor<fp32, [1, 0, 3]> x", &format!("{weight} {y}"), "y"));
}

#[test]
fn nothing_has_as_many_heads_rows_and_positions_as_one_likes() {
    let weight = "tensor<fp32, [0, 4]> w = const()[val = tensor<fp32, [0, 4]>([])];";
    let y = "tensor<fp32, [9, 0]> y = matmul(x = x, y = w, transpose_y = bool(true))[name = string(\"y\")];";
    same(&program("tensor<fp32, [9, 4]> x", &format!("{weight} {y}"), "y"));
    let y = "tensor<fp32, [0, 5]> y = layer_norm(x = x, axes = tensor<int32, [1]>([-1]))[name = string(\"y\")];";
    same(&program("tensor<fp32, [0, 5]> x", y, "y"));
    let y = "tensor<fp32, [8, 0, 3, 7]> y = scaled_dot_product_attention(query = x, key = x, value = x)[];";
    same(&program("tensor<fp32, [8, 0, 3, 7]> x", y, "y"));
    let y =
        "tensor<fp32, [0, 2, 3, 7]> y = scaled_dot_product_attention(query = x, key = x, value = x, attn_mask = m)[];";
    same(&program("tensor<fp32, [0, 2, 3, 7]> x, tensor<fp32, [0, 2, 3, 3]> m", y, "y"));
    let weight =
        "tensor<fp32, [3, 2, 1]> w = const()[val = tensor<fp32, [3, 2, 1]>([[[1], [2]], [[3], [4]], [[5], [6]]])];";
    let y =
        "tensor<fp32, [2, 3, ?]> y = conv(x = x, weight = w, pad_type = string(\"same_lower\"))[name = string(\"y\")];";
    same(&program("tensor<fp32, [2, 2, 0]> x", &format!("{weight} {y}"), "y"));
}

/// coremltools' definition is a softmax, and that of nothing but −∞ is no number.
#[test]
fn a_query_that_sees_nothing_gives_no_number() {
    let mask =
        "tensor<bool, [2, 3]> m = const()[val = tensor<bool, [2, 3]>([[true, false, true], [false, false, false]])];";
    let y =
        "tensor<fp32, [1, 1, 2, 4]> y = scaled_dot_product_attention(query = q, key = k, value = k, attn_mask = m)[];";
    let attention = program("tensor<fp32, [1, 1, 2, 4]> q, tensor<fp32, [1, 1, 3, 4]> k", &format!("{mask} {y}"), "y");
    same(&attention);
    let found = load(&attention).unwrap().predict("main", &inputs(&attention), &mut State { tensors: Vec::new() });
    let found = found.unwrap()["y"].to_f32().unwrap();
    assert!(found[..4].iter().all(|x| x.is_finite()) && found[4..].iter().all(|x| x.is_nan()), "{found:?}");
    let y = "tensor<fp32, [1, 1, 2, 4]> y = scaled_dot_product_attention(query = q, key = k, value = k)[];";
    same(&program("tensor<fp32, [1, 1, 2, 4]> q, tensor<fp32, [1, 1, 0, 4]> k", y, "y"));
}

#[test]
fn masks_of_weights_are_values_too() {
    let operations = "
        tensor<uint1, [2, 2]> bits = const()[val = tensor<uint1, [2, 2]>([[1, 0], [1, 1]])];
        tensor<uint1, [2, 2]> mask, tensor<fp32, [3]> data = constexpr_sparse_blockwise_shift_scale(data_mask = bits,
            nonzero_data = tensor<int8, [3]>([1, 2, 3]), scale = tensor<fp32, [1, 1]>([[0.5]]))[];
        tensor<fp32, [2, 2]> w = constexpr_sparse_to_dense(nonzero_data = data, mask = mask)[];
        tensor<fp32, [1, 2]> y = linear(x = x, weight = w)[name = string(\"y\")];
        tensor<uint1, [2, 4]> z = concat(values = (mask, bits), axis = int32(1))[name = string(\"z\")];";
    same(&program("tensor<fp32, [1, 2]> x", operations, "y, z"));
}

#[test]
fn strides_longer_than_memory_take_one_element() {
    for (begin, end, stride) in [(0, 3, i64::MAX), (2, i64::MIN, i64::MIN), (0, 3, i64::from(i32::MAX))] {
        let vector = |first: i64, second: i64| format!("tensor<int64, [2]>([{first}, {second}])");
        let bounds = format!("begin = {}, end = {}, stride = {}", vector(begin, 0), vector(end, 4), vector(stride, 1));
        let y = format!("tensor<fp32, [1, 4]> y = slice_by_index(x = x, {bounds})[name = string(\"y\")];");
        same(&program("tensor<fp32, [3, 4]> x", &y, "y"));
    }
}

#[test]
fn a_norm_without_its_axis_goes_with_columns() {
    let operations = "
        tensor<fp32, [3, 3]> squares = square(x = x)[name = string(\"squares\")];
        tensor<fp32, [3]> mean = reduce_mean(x = squares, axes = tensor<int32, [1]>([-1]), keep_dims = bool(false))[];
        tensor<fp32, [3]> scale = rsqrt(x = mean, epsilon = fp32(0.001))[name = string(\"scale\")];
        tensor<fp32, [3, 3]> normed = mul(x = x, y = scale)[name = string(\"normed\")];
        tensor<fp32, [3]> weight = const()[val = tensor<fp32, [3]>([1, 2, 3])];
        tensor<fp32, [3, 3]> y = mul(x = normed, y = weight)[name = string(\"y\")];";
    same(&program("tensor<fp32, [3, 3]> x", operations, "y"));
}

/// Sizes that are declared unknown in between can hide that a later declaration is wrong.
#[test]
fn results_that_are_not_as_declared_are_refused() {
    let operations = "
        tensor<fp32, [2, ?]> y = abs(x = x)[name = string(\"y\")];
        tensor<fp32, [8, 2]> z = transpose(x = y, perm = tensor<int32, [2]>([1, 0]))[name = string(\"z\")];";
    let program = program("tensor<fp32, [2, 3]> x", operations, "z");
    let engine = load(&program).unwrap();
    let error = engine.predict("main", &inputs(&program), &mut engine.new_state().unwrap()).unwrap_err().to_string();
    assert!(error.contains("`z` is declared tensor<fp32, [8, 2]>, found tensor<fp32, [3, 2]>"), "{error}");
    let error = eval::run(&program.functions[0], &inputs(&program), &mut Tensors::new()).unwrap_err().to_string();
    assert!(error.contains("output `z`"), "{error}");
}

/// The inner loop ends each time, and so does none of the outer one.
#[test]
fn loops_in_loops_end_too() {
    let inner = "int32 d = while_loop(loop_vars = (c))[]
        block(int32 e) { bool f = less(x = e, y = int32(99))[]; } -> (f)
        block(int32 g) { int32 h = add(x = g, y = int32(1))[]; } -> (h);";
    let operations = format!(
        "int32 n = const()[val = int32(0)];
        int32 y = while_loop(loop_vars = (n))[]
        block(int32 a) {{ bool b = const()[val = bool(true)]; }} -> (b)
        block(int32 c) {{ {inner} }} -> (n);"
    );
    let program = program("tensor<fp32, [1]> x", &operations, "y");
    let engine = load(&program).unwrap();
    let error = engine.predict("main", &inputs(&program), &mut engine.new_state().unwrap()).unwrap_err().to_string();
    assert!(error.contains("loops ran 1048576 times") && error.contains("--limit iterations=N"), "{error}");
}

#[test]
fn limits_hold_planned_and_interpreted() {
    let limits = Limits { iterations: 9, value_bytes: 64, call_bytes: 100, folded_elements: 0 };
    let error = |operations: &str| {
        let program = program("tensor<fp32, [4]> x, int32 n", operations, "y");
        let engine = Engine::load(program.clone(), Options { threads: 1, limits, ..Options::default() }).unwrap();
        engine.predict("main", &inputs(&program), &mut engine.new_state().unwrap()).unwrap_err().to_string()
    };
    // One size is known before the function runs, the other is computed.
    let known = "tensor<fp32, [20]> y = tile(x = x, reps = tensor<int32, [1]>([5]))[name = string(\"y\")];";
    let found = error(known);
    assert!(found.contains("`y`") && found.contains("80 bytes, expected at most 64"), "{found}");
    let shaped = "tensor<int32, [1]> one = expand_dims(x = n, axes = tensor<int32, [1]>([0]))[];
        tensor<int32, [1]> twenty = add(x = one, y = tensor<int32, [1]>([19]))[];
        tensor<fp32, [?]> y = fill(shape = twenty, value = fp32(1))[name = string(\"y\")];";
    let found = error(shaped);
    assert!(found.contains("`y`") && found.contains("80 bytes") && found.contains("value-bytes=N"), "{found}");
    let many: Vec<String> =
        (0..9).map(|i| format!("tensor<fp32, [16]> t{i} = tile(x = x, reps = tensor<int32, [1]>([4]))[];")).collect();
    let sum = "tensor<fp32, [144]> y = concat(values = (t0, t1, t2, t3, t4, t5, t6, t7, t8), axis = int32(0))[];";
    let found = error(&format!("{} {}", many.concat(), sum.replace("144", "?")));
    assert!(found.contains("bytes, expected at most"), "{found}");
    let two = "tensor<fp32, [16]> a = tile(x = x, reps = tensor<int32, [1]>([4]))[];
        tensor<fp32, [16]> b = exp(x = a)[];
        tensor<fp32, [16]> c = sin(x = b)[];
        tensor<fp32, [16]> d = mul(x = a, y = b)[];
        tensor<fp32, [16]> y = add(x = c, y = d)[];";
    let found = error(two);
    assert!(found.contains("the values of a call take") && found.contains("call-bytes=N"), "{found}");
    let forever = "int32 y = while_loop(loop_vars = (n))[]
        block(int32 a) { bool b = const()[val = bool(true)]; } -> (b)
        block(int32 c) { int32 d = add(x = c, y = int32(1))[]; } -> (d);";
    assert!(error(forever).contains("loops ran 9 times"));
}

/// What is not computed beforehand is computed all the same.
#[test]
fn folding_less_changes_nothing() {
    let operations = "
        tensor<int32, [4]> r = range_1d(start = int32(0), end = int32(4), step = int32(1))[];
        tensor<fp32, [4]> f = cast(x = r, dtype = string(\"fp32\"))[];
        tensor<fp32, [4]> g = exp(x = f)[];
        tensor<fp32, [4]> y = add(x = x, y = g)[name = string(\"y\")];";
    let program = program("tensor<fp32, [4]> x", operations, "y");
    let run = |folded_elements: usize| {
        let limits = Limits { folded_elements, ..Limits::default() };
        let engine = Engine::load(program.clone(), Options { threads: 1, limits, ..Options::default() }).unwrap();
        engine.predict("main", &inputs(&program), &mut engine.new_state().unwrap()).unwrap()["y"].to_f32().unwrap()
    };
    let expected = run(1 << 20);
    assert!((expected[3] - 24.085_537).abs() < 1e-5, "{expected:?}");
    for folded_elements in [0, 5, 9] {
        let close = run(folded_elements).iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5);
        assert!(close, "{folded_elements}");
    }
}

#[test]
fn what_no_memory_holds_is_refused() {
    let limits = Limits { value_bytes: usize::MAX, call_bytes: usize::MAX, ..Limits::default() };
    let refused = |program: &Program, limits: Limits| {
        let engine = Engine::load(program.clone(), Options { threads: 1, limits, ..Options::default() });
        let found = engine.and_then(|engine| engine.predict("main", &inputs(program), &mut engine.new_state()?));
        found.unwrap_err().to_string()
    };
    let state = program("state<tensor<fp16, [1099511627776, 4]>> s, tensor<fp32, [1]> x", "", "x");
    let error = refused(&state, limits);
    assert!(error.contains("state `s`: there is no memory for"), "{error}");
    let error = refused(&state, Limits::default());
    assert!(error.contains("state `s`: tensor<fp16, [1099511627776, 4]> takes 8796093022208 bytes"), "{error}");
    let operations = "
        tensor<fp32, [1099511627776]> y = tile(x = x, reps = tensor<int64, [1]>([1099511627776]))[];
        tensor<fp32, [1]> z = reduce_sum(x = y, axes = tensor<int32, [1]>([0]), keep_dims = bool(true))[];";
    let large = program("tensor<fp32, [1]> x", operations, "z");
    let error = refused(&large, limits);
    assert!(error.contains("there is no memory for"), "{error}");
    let error = refused(&large, Limits::default());
    assert!(error.contains("operation `y` (tile)") && error.contains("--limit value-bytes=N"), "{error}");
}
