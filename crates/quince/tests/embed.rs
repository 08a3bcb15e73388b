//! A run of `quince embed` that is killed goes on where it was, and gives the same bytes as one that is not.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Enough that there is time to kill it.
const LINES: usize = 60_000;

fn embed(text: &Path, output: &Path) -> Command {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut command = Command::new(env!("CARGO_BIN_EXE_quince"));
    command.args(["embed", "tests/cli/data/sums.mlmodelc", "--tokenizer", "models/tiny-llama", "--resume"]);
    command.arg(text).arg("--output").arg(output).current_dir(root).stderr(Stdio::piped());
    command
}

#[test]
fn a_run_that_is_killed_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let lines: Vec<String> = (0..LINES).map(|i| format!("{i} {}", "a cat ".repeat(i % 3))).collect();
    fs::write(path("lines.txt"), lines.join("\n")).unwrap();
    assert!(embed(&path("lines.txt"), &path("whole.npy")).status().unwrap().success());
    let mut child = embed(&path("lines.txt"), &path("broken.npy")).spawn().unwrap();
    let start = Instant::now();
    let written = || fs::metadata(path("broken.npy.unfinished")).map_or(0, |found| found.len());
    while written() < 20_000 && start.elapsed() < Duration::from_secs(100) {
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!path("broken.npy").exists(), "it was over before it was killed");
    let resumed = embed(&path("lines.txt"), &path("broken.npy")).output().unwrap();
    let said = String::from_utf8_lossy(&resumed.stderr).into_owned();
    assert!(resumed.status.success() && said.contains(&format!("of {LINES} lines were embedded already")), "{said}");
    assert!(fs::read(path("whole.npy")).unwrap() == fs::read(path("broken.npy")).unwrap());
    assert!(!path("broken.npy.unfinished").exists());
}
