//! `quince completions`: scripts that teach a shell the commands and options.

use crate::cli::Cli;
use crate::console::Console;
use crate::failure::Result;
use clap::CommandFactory;
use clap_complete::Shell;
use std::process::ExitCode;

/// Print a script that completes commands and options in a shell
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  quince completions bash > ~/.local/share/bash-completion/completions/quince
  quince completions zsh  > ~/.zfunc/_quince
  quince completions fish > ~/.config/fish/completions/quince.fish")]
pub struct Args {
    /// The shell
    shell: Shell,
}

/// Prints the script.
pub fn run(args: &Args, console: &Console) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "quince", &mut script);
    console.print(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}
