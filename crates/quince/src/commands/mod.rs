//! The table of commands: a file for each, a line for each.

use crate::console::Console;
use crate::failure::Result;
use clap::Subcommand;
use std::process::ExitCode;

macro_rules! table {
    ($($file:ident: $name:ident;)*) => {
        $(mod $file;)*

        /// What can be done. The description of each command is that of its arguments, in its file.
        #[derive(Subcommand)]
        pub enum Command {
            $(#[allow(missing_docs)] $name(Box<$file::Args>),)*
        }

        impl Command {
            /// Does it; the exit status is 0, or 1 where a check did not pass.
            ///
            /// # Errors
            /// Whatever ends the command early.
            pub fn run(self, console: &Console) -> Result<ExitCode> {
                match self {
                    $(Command::$name(args) => $file::run(&args, console),)*
                }
            }
        }
    };
}

table! {
    convert: Convert;
    inspect: Inspect;
    validate: Validate;
    generate: Generate;
    chat: Chat;
    embed: Embed;
    perplexity: Perplexity;
    bench: Bench;
    predict: Predict;
    diff: Diff;
    lint: Lint;
    repair: Repair;
    plan: Plan;
    compress: Compress;
    calibrate: Calibrate;
    sweep: Sweep;
    print: Print;
    ops: Ops;
    completions: Completions;
}
