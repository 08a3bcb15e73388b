//! Where a model is cut, and what is said of a limit that is too small. That parts compute what the whole does is tested
//! where they are run: `quince-runtime/src/chain/tests.rs`.

use super::*;
use crate::lower::KvCache;
use crate::{Options, convert};
use quince_checkpoint::Checkpoint;
use quince_mil::{Builder, DType, Flexibility, Opset, Tensor, Value, ValueType};
use std::collections::BTreeMap;
use std::path::Path;

fn converted(fixture: &str, kv_cache: KvCache) -> Program {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/arch").join(fixture);
    let options = Options { kv_cache, context: Some(64), prefill_length: Some(8), ..Options::default() };
    convert(&Checkpoint::open(path).unwrap(), &options).unwrap().program
}

fn weight_bytes(program: &Program) -> Result<u64> {
    let operations = program.functions.iter().flat_map(|function| &function.block.operations);
    let weights = operations.filter_map(|operation| match operation.constant()? {
        Value::Weight(weight) => Some((weight.id(), weight.byte_len() as u64)),
        _ => None,
    });
    Ok(weights.collect::<BTreeMap<_, _>>().into_values().sum())
}

fn holds(parts: &[Part]) -> Vec<&str> {
    parts.iter().map(|part| part.holds.as_str()).collect()
}

#[test]
fn no_part_is_larger_than_the_limit_and_the_smallest_one_that_works_is_told() {
    let program = converted("llama-gqa-untied", KvCache::State);
    let whole = weight_bytes(&program).unwrap();
    assert_eq!(holds(&split(&program, whole, EmbeddingPart::WithLayers, &mut weight_bytes).unwrap()), ["everything"]);
    let parts = split(&program, whole - 1, EmbeddingPart::WithLayers, &mut weight_bytes).unwrap();
    assert_eq!(holds(&parts), ["embedding, layers 0 to 1", "head"]);

    let error = split(&program, 1000, EmbeddingPart::WithLayers, &mut weight_bytes).err().unwrap();
    assert!(error.message().starts_with("embedding: found 40960 bytes, expected at most 1000"), "{error}");
    let least: u64 = error.hints()[0].split(' ').find_map(|word| word.parse().ok()).unwrap();
    assert!(split(&program, least - 1, EmbeddingPart::WithLayers, &mut weight_bytes).is_err());
    let parts = split(&program, least, EmbeddingPart::WithLayers, &mut weight_bytes).unwrap();
    assert_eq!(holds(&parts), ["embedding", "layer 0", "layer 1", "head"]);
    for part in &parts {
        let bytes = weight_bytes(&part.program).unwrap();
        assert!(bytes <= least, "{}: {bytes}", part.holds);
    }
    // Nothing but tables that are used in several parts is stored more than once.
    let sum: u64 = parts.iter().map(|part| weight_bytes(&part.program).unwrap()).sum();
    assert!(sum - whole < 10_000, "{sum} and {whole}");
}

#[test]
fn a_table_that_is_the_head_too_is_in_the_first_and_the_last_part() {
    let program = converted("gemma3", KvCache::Io);
    let table = 64 * 32 * 2;
    let whole = weight_bytes(&program).unwrap();
    let parts = split(&program, whole - 1, EmbeddingPart::WithLayers, &mut weight_bytes).unwrap();
    let has = |part: &Part| {
        let mut operations = part.program.functions.iter().flat_map(|function| &function.block.operations);
        operations.any(|operation| operation.name.starts_with("model.embed_tokens.weight"))
    };
    assert!(has(&parts[0]) && has(&parts[1]), "{:?}", holds(&parts));
    let sum: u64 = parts.iter().map(|part| weight_bytes(&part.program).unwrap()).sum();
    assert!(sum >= whole + table);
}

#[test]
fn an_embedding_that_the_neural_engine_cannot_index_is_a_part_of_its_own() {
    let program = converted("llama-gqa-untied", KvCache::State);
    assert_eq!(EmbeddingPart::for_neural_engine(&program), EmbeddingPart::WithLayers);
    // However small the whole is.
    let parts = split(&program, u64::MAX, EmbeddingPart::Apart, &mut weight_bytes).unwrap();
    assert_eq!(holds(&parts), ["embedding", "layers 0 to 1, head"]);
}

#[test]
fn sixteen_bits_tell_65535_rows_apart() {
    for (rows, expected) in [(65535, EmbeddingPart::WithLayers), (65536, EmbeddingPart::Apart)] {
        let mut b = Builder::new(Function::new("main", Opset::CoreML8));
        let ids = b.input("ids", ValueType::tensor(DType::I32, &[4]), Flexibility::Fixed);
        let table = b.constant("table", Tensor::zeros(DType::F16, [rows, 1]).unwrap().into());
        let found =
            b.op("gather", "rows", &[("x", table.into()), ("indices", ids.into()), ("axis", 0.into())]).unwrap();
        let program = Program { functions: vec![b.finish(vec![found])], ..Program::default() };
        assert_eq!(EmbeddingPart::for_neural_engine(&program), expected, "{rows} rows");
    }
}

#[test]
fn a_program_without_layers_is_refused() {
    let mut program = converted("llama-gqa-untied", KvCache::State);
    for operation in program.functions.iter_mut().flat_map(|function| &mut function.block.operations) {
        operation.name = operation.name.replace('.', "_");
    }
    let error = split(&program, 1000, EmbeddingPart::WithLayers, &mut weight_bytes).err().unwrap().to_string();
    assert!(error.starts_with("found no layers, expected operations with names such as"), "{error}");
}
