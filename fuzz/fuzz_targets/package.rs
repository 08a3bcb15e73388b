//! Any bytes as `model.mlmodel`: an error, or a package that can be checked, printed and, if it is right, run.
#![no_main]

use libfuzzer_sys::fuzz_target;
use quince_mil::{Flexibility, Tensor, text, verify};
use quince_mlpackage::Package;
use std::path::Path;

fuzz_target!(|data: &[u8]| {
    let Ok(package) = Package::from_bytes(data, Path::new("/nonexistent/model.mlmodel")) else { return };
    let _ = text::print(&package.program, &text::PrintOptions::default());
    if verify::program(&package.program).is_err() {
        return;
    }
    // Small programs are run on zeros of their declared shapes.
    let Ok(engine) = quince_engine::Engine::load(package.program, quince_engine::Options { threads: 1, ..Default::default() })
    else {
        return;
    };
    for function in &engine.program().functions {
        let mut inputs = quince_engine::Tensors::new();
        for input in &function.inputs {
            let info = function.var(input.var);
            let quince_mil::ValueType::Tensor(ty) = &info.ty else { continue };
            let shape = match &input.flexibility {
                Flexibility::Fixed => ty.dims(),
                Flexibility::Range { default, .. } => Some(default.clone()),
                Flexibility::Enumerated(shapes) => shapes.first().cloned(),
            };
            let Some(shape) = shape.filter(|s| s.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).is_some_and(|n| n < 1 << 16))
            else {
                return;
            };
            let Ok(tensor) = Tensor::zeros(ty.dtype, shape) else { return };
            inputs.insert(info.name.clone(), tensor);
        }
        if let Ok(mut state) = engine.new_state() {
            let _ = engine.predict(&function.name, &inputs, &mut state);
        }
    }
});
