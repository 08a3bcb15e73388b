//! Everything that is printed goes through here: results to stdout; notes, progress and errors to stderr.

use crate::cli::{Color, GlobalArgs};
use crate::failure::{Failure, Result, refused};
use crate::interrupt;
use crate::options::limits::limits;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use quince_engine::Limits;
use quince_tensor::Error;
use serde::Serialize;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

/// The most threads for each processor: more would only wait for each other, and results do not depend on them.
const MAX_OVERLOAD: usize = 4;

/// Where output goes, and in what manner.
pub struct Console {
    quiet: bool,
    verbose: bool,
    colored_errors: bool,
    threads: usize,
    limits: Limits,
}

/// What a progress bar counts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    /// Bytes, shown as MB.
    Bytes,
    /// Things, such as tokens.
    Things(&'static str),
}

impl Console {
    /// As the options of every command say it.
    pub fn new(global: &GlobalArgs) -> Console {
        let colored_errors = match global.color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
        };
        let threads = global.threads.map_or_else(processors, usize::from).min(MAX_OVERLOAD * processors());
        Console {
            quiet: global.quiet,
            verbose: global.verbose,
            colored_errors,
            threads,
            limits: limits(&global.limits),
        }
    }

    /// How many threads may compute.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// What a program may take when it runs.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Prints a result to stdout.
    pub fn print(&self, text: &str) -> Result<()> {
        let mut out = std::io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(Failure::ClosedPipe),
            Err(error) => Err(refused("write", Path::new("standard output"), &error).into()),
        }
    }

    /// Prints a result to stdout as JSON.
    pub fn json(&self, value: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string_pretty(value);
        let text = text.map_err(|e| Error::new(format!("the result has no JSON form: {e}")))?;
        self.print(&format!("{text}\n"))
    }

    /// Says what is done, to stderr; not with `--quiet`.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            // Nobody is left to tell if stderr is closed.
            drop(writeln!(std::io::stderr(), "{text}"));
        }
    }

    /// Says more, to stderr; only with `--verbose`.
    pub fn detail(&self, text: &str) {
        if self.verbose {
            self.note(text);
        }
    }

    /// A progress bar with rate and time left on stderr; none where that is no terminal, or with `--quiet`.
    pub fn bar(&self, what: &'static str, total: u64, counted: Counted) -> ProgressBar {
        if self.quiet || !std::io::stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let (amount, rate) = match counted {
            Counted::Bytes => ("{decimal_bytes} of {decimal_total_bytes}", "{decimal_bytes_per_sec}"),
            Counted::Things(_) => ("{pos} of {len} {prefix}", "{per_sec}"),
        };
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(10));
        let template = format!("{what} [{{bar:30}}] {amount}, {rate}, {{eta}} left {{wide_msg}}");
        // The template is one of two, both shown to be good by a test.
        if let Ok(style) = ProgressStyle::with_template(&template) {
            bar.set_style(style.progress_chars("=> "));
        }
        if let Counted::Things(things) = counted {
            bar.set_prefix(things);
        }
        bar
    }

    /// Says what went wrong and gives the exit status.
    pub fn fail(&self, failure: Failure) -> ExitCode {
        if interrupt::requested() {
            self.complain(&Error::new("interrupted; no output was left"));
            return ExitCode::from(interrupt::EXIT_STATUS);
        }
        match failure {
            Failure::ClosedPipe => ExitCode::SUCCESS,
            Failure::Error(error) => {
                self.complain(&error);
                ExitCode::from(1)
            }
            Failure::Usage(error) => {
                self.complain(&error);
                ExitCode::from(2)
            }
        }
    }

    /// `error: place: message`, then a line for each hint.
    fn complain(&self, error: &Error) {
        let (red, cyan, plain) = if self.colored_errors { ("\x1b[1;31m", "\x1b[36m", "\x1b[0m") } else { ("", "", "") };
        let mut lines = format!("{red}error:{plain} {}\n", error.headline());
        for hint in error.hints() {
            lines.push_str(&format!("{cyan}hint:{plain} {hint}\n"));
        }
        drop(std::io::stderr().write_all(lines.as_bytes()));
    }
}

/// A table for people: a heading, then rows; columns named in `right` are aligned to the right.
pub fn table(heading: &[&str], right: &[usize], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(heading.iter().copied());
    for row in rows {
        table.add_row(row);
    }
    for &column in right {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_columns_and_no_trailing_space() {
        let rows = vec![vec!["a".to_string(), "1".to_string()], vec!["longer".to_string(), "100".to_string()]];
        assert_eq!(table(&["name", "bytes"], &[1], rows), "name    bytes\na           1\nlonger    100\n");
    }

    #[test]
    fn templates_of_progress_bars_are_good() {
        for template in
            ["{decimal_bytes} of {decimal_total_bytes}, {decimal_bytes_per_sec}", "{pos} of {len} {prefix}, {per_sec}"]
        {
            assert!(
                ProgressStyle::with_template(&format!("x [{{bar:30}}] {template}, {{eta}} left {{wide_msg}}")).is_ok()
            );
        }
    }
}
