//! Every command a developer needs: `cargo xtask ci | tidy | bless`.

mod source;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const HELP: &str = "\
cargo xtask COMMAND

  ci      what must pass before a change goes in: format, lints, all tests, tidy
  tidy    the rules of ARCHITECTURE.md that a program can check
  bless   rewrites what tests expect (tests/cli, docs/commands.md); review the difference as code
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let passed = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["ci"] => ci(),
        ["tidy"] => tidy_up(),
        ["bless"] => cargo(&["test", "--package", "quince", "--", "current"], &[("QUINCE_BLESS", "1")]),
        [] | ["help" | "--help" | "-h"] => {
            print!("{HELP}");
            true
        }
        _ => {
            eprint!("{HELP}");
            return ExitCode::from(2);
        }
    };
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn ci() -> bool {
    // The quick ones first. A minimal Rust has neither rustfmt nor clippy; the tests need neither.
    tidy_up()
        && optional("fmt", &["fmt", "--all", "--check"])
        && optional("clippy", &["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"])
        && cargo(&["test", "--quiet", "--workspace", "--no-fail-fast"], &[])
}

fn tidy_up() -> bool {
    eprintln!("xtask: tidy");
    match tidy::check(&root()) {
        Ok(findings) => {
            findings.iter().for_each(|finding| eprintln!("{finding}"));
            findings.is_empty()
        }
        Err(error) => {
            eprintln!("error: {error}");
            false
        }
    }
}

/// Runs a cargo command that a component brings, or says that it was skipped.
fn optional(component: &str, args: &[&str]) -> bool {
    let found = Command::new(env!("CARGO")).args([component, "--version"]).output();
    if found.is_ok_and(|output| output.status.success()) {
        return cargo(args, &[]);
    }
    eprintln!("xtask: cargo {component}: SKIPPED, it is not installed (rustup component add rustfmt clippy)");
    true
}

fn cargo(args: &[&str], environment: &[(&str, &str)]) -> bool {
    eprintln!("xtask: cargo {}", args.join(" "));
    let status = Command::new(env!("CARGO")).args(args).envs(environment.iter().copied()).current_dir(root()).status();
    match status {
        Ok(status) => status.success(),
        Err(error) => {
            eprintln!("error: cannot run cargo: {error}");
            false
        }
    }
}

/// The root of the workspace.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}
