//! Whole checkpoints: the bundled model, directories made by the reference writer, and directories that are wrong.

use quince_checkpoint::{Checkpoint, Config, SafetensorsFile, sha256, write_safetensors};
use quince_tensor::{DType, Tensor, Weight};
use safetensors::tensor::{Dtype, TensorView};
use std::path::{Path, PathBuf};

const CONFIG: &str = r#"{"model_type": "llama", "hidden_size": 4, "intermediate_size": 6}"#;

/// A file name, and the names and shapes of its tensors.
type File<'a> = (&'a str, &'a [(&'a str, &'a [usize])]);

/// A directory with `config.json` and files of f32 tensors, written by the reference writer; element `i` of every tensor
/// is `i`.
fn directory(files: &[File<'_>]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), CONFIG).unwrap();
    for (file, tensors) in files {
        let bytes: Vec<Vec<u8>> = tensors
            .iter()
            .map(|(_, shape)| (0..shape.iter().product()).flat_map(|i: usize| (i as f32).to_le_bytes()).collect())
            .collect();
        let views = tensors.iter().zip(&bytes).map(|((name, shape), bytes)| {
            (name.to_string(), TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap())
        });
        std::fs::write(dir.path().join(file), safetensors::serialize(views, None).unwrap()).unwrap();
    }
    dir
}

fn index(dir: &Path, map: &[(&str, &str)]) {
    let map: serde_json::Map<String, serde_json::Value> =
        map.iter().map(|(name, file)| (name.to_string(), (*file).into())).collect();
    let index = serde_json::json!({"metadata": {}, "weight_map": map}).to_string();
    std::fs::write(dir.join("model.safetensors.index.json"), index).unwrap();
}

/// The error of opening a directory, without the directory's own path.
fn refusal(dir: &Path) -> String {
    let error = Checkpoint::open(dir).err().expect("the directory is wrong").to_string();
    error.replace(&format!("{}/", dir.display()), "").replace(&dir.display().to_string(), "DIR")
}

#[test]
fn the_bundled_model_opens() {
    let root: PathBuf = [env!("CARGO_MANIFEST_DIR"), "..", "..", "models", "tiny-llama"].iter().collect();
    let checkpoint = Checkpoint::open(&root).unwrap();
    assert_eq!(checkpoint.config().model_type().unwrap(), "llama");
    let embedding = checkpoint.weight_with_shape("model.embed_tokens.weight", &[2048, 128]).unwrap();
    assert_eq!(embedding.dtype(), DType::BF16);
    assert!(embedding.load().unwrap().bytes().is_mapped());
    assert_eq!(embedding.id(), checkpoint.weight("model.embed_tokens.weight").unwrap().id());
    assert_eq!((checkpoint.tensors().count(), checkpoint.parameters()), (47, 1_492_352));
    assert!(checkpoint.directory().unwrap().join("tokenizer.json").is_file());
    // Golden outputs name the weights that they were made with.
    let golden: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(root.join("golden/golden.json")).unwrap()).unwrap();
    let weights = checkpoint.sources().iter().find(|path| path.ends_with("model.safetensors")).unwrap();
    assert_eq!(golden["model_sha256"].as_str(), Some(sha256(weights).unwrap().as_str()));
}

#[test]
fn shards_are_one_checkpoint_and_rows_are_not_copied() {
    let dir = directory(&[("a.safetensors", &[("x", &[3, 4])]), ("b.safetensors", &[("y", &[2]), ("z", &[1])])]);
    index(dir.path(), &[("x", "a.safetensors"), ("y", "b.safetensors"), ("z", "b.safetensors")]);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["x", "y", "z"]);
    let rows = checkpoint.weight("x").unwrap().rows(1..2).unwrap();
    assert_eq!((rows.to_f32().unwrap(), rows.bytes().is_mapped()), (vec![4.0, 5.0, 6.0, 7.0], true));
    let files: Vec<_> =
        checkpoint.tensors().map(|entry| entry.file().unwrap().file_name().unwrap().to_owned()).collect();
    assert_eq!(files, ["a.safetensors", "b.safetensors", "b.safetensors"]);
    assert_eq!(checkpoint.sources().len(), 4);
}

#[test]
fn bytes_that_are_not_aligned_are_read() {
    let dir = directory(&[]);
    let header = br#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    let mut bytes = (header.len() as u64 + 1).to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.push(b' ');
    bytes.extend([1f32, -2.0].iter().flat_map(|v| v.to_le_bytes()));
    std::fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
    let tensor = Checkpoint::open(dir.path()).unwrap().weight("w").unwrap().load().unwrap();
    assert!(tensor.as_slice::<f32>().is_none());
    assert_eq!(tensor.to_f32().unwrap(), [1.0, -2.0]);
}

#[test]
fn what_the_architecture_asks_for_in_vain_is_explained() {
    let dir = directory(&[("model.safetensors", &[("layers.0.up_proj.weight", &[5, 4])])]);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let strip = |error: quince_tensor::Error| error.to_string().replace(&dir.path().display().to_string(), "DIR");
    let error = checkpoint.weight_with_shape("layers.0.up_proj.weight", &[6, 4]).err().unwrap();
    assert_eq!(
        strip(error),
        "DIR/model.safetensors: tensor `layers.0.up_proj.weight`: found the shape [5, 4], expected [6, 4]; \
         hint: DIR/config.json says intermediate_size = 6: does it belong to these weights?"
    );
    let error = checkpoint.weight("model.layers.0.up_proj.weight").err().unwrap();
    assert_eq!(
        strip(error),
        "DIR: found no tensor `model.layers.0.up_proj.weight`; hint: there is `layers.0.up_proj.weight`"
    );
}

#[test]
fn shards_that_do_not_fit_their_index_are_refused() {
    let dir = directory(&[("a.safetensors", &[("x", &[1])]), ("b.safetensors", &[("y", &[1])])]);
    index(dir.path(), &[("x", "a.safetensors"), ("yy", "b.safetensors")]);
    assert_eq!(
        refusal(dir.path()),
        "b.safetensors: found no tensor `yy`; hint: model.safetensors.index.json says it is here"
    );

    index(dir.path(), &[("x", "b.safetensors"), ("y", "a.safetensors")]);
    assert!(refusal(dir.path()).starts_with(
        "model.safetensors.index.json: found tensor `x` in a.safetensors, expected it in b.safetensors; hint: "
    ));

    index(dir.path(), &[("x", "a.safetensors"), ("y", "c.safetensors")]);
    assert!(refusal(dir.path()).starts_with(
        "model.safetensors.index.json: tensor `y`: found no file `c.safetensors`, which the index names; hint: "
    ));

    index(dir.path(), &[("x", "../../etc/passwd")]);
    assert!(refusal(dir.path()).contains("tensor `x`: found the file name `../../etc/passwd`, expected one inside"));

    let dir = directory(&[("a.safetensors", &[("x", &[1])]), ("b.safetensors", &[("x", &[1]), ("y", &[1])])]);
    index(dir.path(), &[("x", "a.safetensors"), ("y", "b.safetensors")]);
    assert_eq!(refusal(dir.path()), "b.safetensors: found tensor `x` here and in a.safetensors, expected it once");
}

#[test]
fn a_truncated_shard_is_named() {
    let dir = directory(&[("model.safetensors", &[("w", &[4])])]);
    let path = dir.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 3]).unwrap();
    assert!(refusal(dir.path()).starts_with("model.safetensors: tensor `w`: found a file of "));
    std::fs::write(&path, b"").unwrap();
    assert!(refusal(dir.path()).starts_with("model.safetensors: found 0 bytes, expected at least 8"));
}

#[test]
fn what_is_not_read_is_named() {
    let put = |name: &str, text: &str| {
        let dir = directory(&[]);
        std::fs::write(dir.path().join(name), text).unwrap();
        (refusal(dir.path()), dir)
    };
    let yet =
        |what: &str| format!("DIR: found {what}, which is not yet read, expected safetensors in f32, f16 or bf16");
    let awq = r#"{"quantization_config": {"quant_method": "awq"}}"#;
    assert!(put("config.json", awq).0.starts_with(&yet("weights quantized with `awq`")));
    assert!(put("pytorch_model.bin", "PK").0.starts_with(&yet("weights pickled by PyTorch")));
    let (_, dir) = put("model.gguf", "GGUF");
    let error = Checkpoint::open(dir.path().join("model.gguf")).err().unwrap().to_string();
    assert!(error.contains("model.gguf: byte 4: found 0 bytes to the end of the file, expected 4"), "{error}");
    assert!(put("other.safetensors", "").0.contains("hint: rename a single file to model.safetensors"));
    assert!(put("notes.txt", "").0.starts_with("DIR: found no checkpoint, expected one of: a .gguf file; "));
    let error = Checkpoint::open(dir.path().join("nothing")).err().unwrap().to_string();
    assert!(error.contains("nothing: cannot open the checkpoint: "), "{error}");
    let error = Checkpoint::open(dir.path().join("config.json")).err().unwrap().to_string();
    assert!(error.ends_with(&format!("hint: did you mean {}?", dir.path().display())), "{error}");
}

#[test]
fn weights_from_memory_are_a_checkpoint() {
    let config = Config::from_text("memory", CONFIG).unwrap();
    let weight = || Weight::from_tensor("w", Tensor::vector(vec![1f32]));
    let checkpoint = Checkpoint::from_weights(config.clone(), vec![weight()]).unwrap();
    assert_eq!((checkpoint.parameters(), checkpoint.byte_len()), (1, 4));
    assert!(Checkpoint::from_weights(config, vec![weight(), weight()]).is_err());
}

#[test]
fn what_is_written_is_read_back_here_and_by_the_reference() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.safetensors");
    let (a, b) =
        (Tensor::from_vec([2, 1], vec![1f32, 2.0]).unwrap(), Tensor::from_bools([3], &[true, false, true]).unwrap());
    let mut bytes = Vec::new();
    write_safetensors(&mut bytes, &[("b", &b), ("a", &a)]).unwrap();
    std::fs::write(&path, &bytes).unwrap();
    let file = SafetensorsFile::open(&path).unwrap();
    assert!(file.tensor("a").unwrap().same(&a) && file.tensor("b").unwrap().same(&b));
    assert!(file.tensor("c").is_err());
    let reference = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(reference.tensor("a").unwrap().data(), &**a.bytes());
    assert!(write_safetensors(&mut Vec::new(), &[("a", &a), ("a", &b)]).is_err());
}

#[test]
fn the_golden_models_open() {
    let root: PathBuf = [env!("CARGO_MANIFEST_DIR"), "..", "..", "tests", "golden", "arch"].iter().collect();
    let directories: Vec<PathBuf> = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(directories.len() >= 4);
    for directory in directories {
        let checkpoint = Checkpoint::open(&directory).unwrap();
        assert!(checkpoint.config().model_type().is_ok() && checkpoint.parameters() > 1000, "{}", directory.display());
        let golden = SafetensorsFile::open(&directory.join("golden.safetensors")).unwrap();
        assert_eq!(golden.tensor("input_ids_0").unwrap().dtype(), DType::I32);
    }
}
