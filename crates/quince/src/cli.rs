//! The command line: what all commands share. Each command's own options stand in its file.

use crate::commands::Command;
use crate::options::limits::{self, LimitArg};
use clap::{ArgAction, Args, Parser, ValueEnum};

/// quince turns a transformer checkpoint into a compressed Core ML package on any operating system, runs the package,
/// and proves that it is right.
#[derive(Parser)]
#[command(
    name = "quince",
    version,
    max_term_width = 100,
    propagate_version = true,
    subcommand_required = true,
    arg_required_else_help = true
)]
#[command(after_help = "\
Examples:
  quince inspect models/tiny-llama                 what a checkpoint holds, and what it would cost
  quince convert models/tiny-llama -o tiny.bundle  to a package with its tokenizer and manifest
  quince chat tiny.bundle                          talk to what was written

`quince help COMMAND` says more about a command. Nothing is sent anywhere.")]
pub struct Cli {
    /// What all commands take.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Args)]
pub struct GlobalArgs {
    /// Print results and errors only: no progress, no notes
    #[arg(long, short, global = true, conflicts_with = "verbose", help_heading = "Global options")]
    pub quiet: bool,
    /// Say more about what is done
    #[arg(long, short, global = true, action = ArgAction::SetTrue, help_heading = "Global options")]
    pub verbose: bool,
    /// When to use colours; `auto` does on a terminal, unless NO_COLOR is set
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto", help_heading = "Global options")]
    pub color: Color,
    /// How many threads compute; all processors if not given. Results do not depend on it
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024),
          help_heading = "Global options")]
    pub threads: Option<u16>,
    /// What a program may take when it runs; may be repeated
    ///
    /// iterations: how often the loops of a call run, all together [1048576]; value-bytes: the largest value [16GiB];
    /// call-bytes: all values that a call keeps at one time [64GiB]; folded-elements: what is computed once for all calls
    /// of one shape [67108864]
    #[arg(long = "limit", global = true, value_name = "NAME=VALUE", value_parser = limits::parse,
          help_heading = "Global options")]
    pub limits: Vec<LimitArg>,
}

/// When to use colours.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn no_two_options_have_one_name() {
        // clap checks names, shorts, aliases and references of every command.
        Cli::command().debug_assert();
    }

    /// `docs/commands.md` is the help of all commands; `cargo xtask bless` writes it.
    #[test]
    fn the_reference_of_commands_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/commands.md");
        let mut root = Cli::command().term_width(100);
        root.build();
        let mut text =
            String::from("# Commands\n\nWritten by `cargo xtask bless` from the definitions of the commands.\n");
        let top = root.render_long_help().to_string();
        let mut pages = vec![("quince".to_string(), top)];
        for command in root.get_subcommands_mut().filter(|command| command.get_name() != "help") {
            pages.push((format!("quince {}", command.get_name()), command.render_long_help().to_string()));
        }
        for (name, help) in pages {
            let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
            text += &format!("\n## {name}\n\n```text\n{}\n```\n", lines.join("\n").trim_end());
        }
        if std::env::var_os("QUINCE_BLESS").is_some() {
            std::fs::write(path, &text).unwrap();
        }
        let written = std::fs::read_to_string(path).unwrap_or_default();
        assert!(written == text, "docs/commands.md is stale: run `cargo xtask bless`");
    }
}
