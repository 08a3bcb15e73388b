//! Models of the Hub by their id, from the command to the file: a server of the test stands for the Hub.

#[path = "../../quince-hub/tests/server/mod.rs"]
mod server;

use server::{COMMIT, Hub, Reply, Server};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn quince(args: &[&str], hub: &Server, home: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_quince"))
        .args(args)
        .env_clear()
        .env("HF_ENDPOINT", &hub.address)
        .env("HF_HOME", home)
        .current_dir(home)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn tiny_llama() -> Hub {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny-llama");
    let read = |name: &str| fs::read(directory.join(name)).unwrap();
    let weights = read("model.safetensors");
    let sha256: String = Sha256::digest(&weights).iter().map(|byte| format!("{byte:02x}")).collect();
    let small = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"];
    let hub = small.iter().fold(Hub::default(), |hub, name| hub.small(name, &read(name)));
    hub.large("model.safetensors", &weights, &sha256)
}

#[test]
fn a_model_of_the_hub_converts_and_answers() {
    let model = tiny_llama();
    let stored = model.clone();
    let store = Server::start(move |request| stored.store(request));
    let model = Hub { store: store.address, ..model };
    let hub = Server::start(move |request| model.answer(request));
    let home = tempfile::tempdir().unwrap();
    let converted = quince(&["convert", "tests/model", "-o", "out.bundle", "--json"], &hub, home.path());
    assert!(converted.status.success(), "{}", text(&converted.stderr));
    assert!(text(&converted.stderr).contains("tests/model: downloading 5 files"), "{}", text(&converted.stderr));
    let manifest = fs::read_to_string(home.path().join("out.bundle/manifest.json")).unwrap();
    assert!(manifest.contains("\"name\": \"model\""), "{manifest}");
    assert!(home.path().join("hub/models--tests--model/snapshots").join(COMMIT).join("model.safetensors").exists());
    // Now without a question: the same model, and the same text from the bundle made of it.
    hub.forget();
    let words = ["--raw", "--prompt", "Once upon a time", "--max-tokens", "8"];
    let say = |model: &[&str]| {
        let output = quince(&[&["generate"], model, &words[..]].concat(), &hub, home.path());
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    assert_eq!(say(&["tests/model", "--offline"]), say(&["out.bundle"]));
    assert!(hub.seen("GET", "").is_empty() && hub.seen("HEAD", "").is_empty());
}

#[test]
fn what_the_hub_refuses_is_said_once() {
    let hub = Server::start(|request| match request.path.contains("gated") {
        true => Reply::status(403).with("X-Error-Code", "GatedRepo"),
        false => Reply::status(401),
    });
    let home = tempfile::tempdir().unwrap();
    let output = quince(&["inspect", "tests/gated"], &hub, home.path());
    assert_eq!(output.status.code(), Some(1));
    let expected = format!(
        "error: tests/gated: found that its owner grants access one by one, and has not granted it\n\
         hint: accept the licence at {}/tests/gated, and set HF_TOKEN to a token of that account\n",
        hub.address
    );
    assert_eq!(text(&output.stderr), expected);
    let output = quince(&["inspect", "tests/none"], &hub, home.path());
    assert!(text(&output.stderr).contains("found no such repository on the Hub, and no such path here"));
    let output = quince(&["inspect", "hub", "--revision", "v1"], &hub, home.path());
    assert_eq!(output.status.code(), Some(2));
}
