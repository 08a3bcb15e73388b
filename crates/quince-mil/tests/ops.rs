//! Operations give what coremltools infers for the same constants: `ops.mil`, written by `tools/oracle/mil_ops.py`.

use quince_mil::{eval, text, verify};

#[test]
fn operations_agree_with_coremltools() {
    let text = include_str!("ops.mil");
    let program = text::parse(text, &|r| panic!("found a reference {r:?}")).unwrap();
    verify::program(&program).unwrap();
    let outputs = eval::run(&program.functions[0], &Default::default(), &mut Default::default()).unwrap();
    let computed: Vec<_> = outputs.iter().filter(|(name, _)| name.starts_with('v')).collect();
    assert!(computed.len() > 100, "found {} results", computed.len());
    for (name, found) in computed {
        let expected = &outputs[&name.replacen('v', "e", 1)];
        assert_eq!((found.dtype(), found.shape()), (expected.dtype(), expected.shape()), "{name}");
        for (a, b) in found.to_f64().unwrap().iter().zip(expected.to_f64().unwrap()) {
            assert!((a - b).abs() <= 1e-6 * b.abs().max(1.0), "{name}: found {a}, expected {b}");
        }
    }
}
