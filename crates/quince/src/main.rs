//! The `quince` command: parses what was typed, runs one command, and turns what went wrong into one paragraph.
//!
//! All printing is here; everything that is computed is computed in the libraries.

mod allocating;
mod arrays;
mod bundling;
mod cli;
mod commands;
mod console;
mod failure;
mod interrupt;
mod loading;
mod npz;
mod options;
mod output;
mod parquet;
mod stored;
mod trace;
mod units;
mod validating;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let console = console::Console::new(&cli.global);
    interrupt::install();
    // Compression computes on rayon's threads. It fails only if there are such threads already.
    drop(rayon::ThreadPoolBuilder::new().num_threads(console.threads()).build_global());
    match cli.command.run(&console) {
        Ok(code) => code,
        Err(failure) => console.fail(failure),
    }
}
