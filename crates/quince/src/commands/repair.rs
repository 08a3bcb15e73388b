//! `quince repair`: the known faults of other tools, mended where that is possible.

use crate::console::{Console, table};
use crate::failure::{Failure, Result};
use crate::output::{self, Existing};
use quince_lint::{Mended, Mending, Report, Severity, Target, Units, lint, mend};
use quince_mlpackage::Package;
use quince_runtime::Bundle;
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;

/// Mend the known faults of packages that other tools wrote
///
/// Mended are masks that are infinite in fp16, lookup tables with scales of their own (which crash the GPU on macOS 26),
/// RMSNorm with an epsilon of the wrong size, `inverse` with MIL's large epsilon, epsilons that are left to the system, and
/// equal weights that are stored more than once. What cannot be mended is named, with what to do about it. The package that
/// comes out is checked, and whole; the one that goes in is not touched.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  quince repair bert.mlpackage -o mended.mlpackage
  quince diff bert.mlpackage mended.mlpackage           what it changed")]
pub struct Args {
    /// A package, a compiled model (.mlmodelc), or a bundle
    package: PathBuf,
    /// Where the mended package goes
    #[arg(long, short, value_name = "PACKAGE")]
    output: PathBuf,
    /// Replace the output if it exists
    #[arg(long)]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Mends it, writes it, and prints what was done.
pub fn run(args: &Args, console: &Console) -> Result<ExitCode> {
    let bundle = Bundle::open(&args.package)?;
    bundle.only_package()?;
    let mut package = bundle.read_package()?;
    let target = Target { units: Units::CpuAndGpu, device: None };
    let before = lint(&package, &target);
    let done = write(&mut package, Mending::All, args, console)?;
    let read = Package::read(&args.output)?;
    let left = lint(&read, &target);
    let found = Found::of(&done, &before, &left);
    if args.json {
        console.json(&found)?
    } else {
        console.print(&found.text(args))?
    }
    Ok(ExitCode::SUCCESS)
}

fn write(package: &mut Package, mending: Mending, args: &Args, console: &Console) -> Result<Vec<Mended>> {
    let existing = if args.force { Existing::Replace } else { Existing::Refuse };
    rewritten(package, mending, &args.output, existing, console)
}

/// Mends a package and writes it.
///
/// # Errors
/// When the output exists and is not to be replaced, a weight cannot be read, or the system refuses.
pub fn rewritten(
    package: &mut Package,
    mending: Mending,
    output: &std::path::Path,
    existing: Existing,
    console: &Console,
) -> Result<Vec<Mended>> {
    output::vacant(output, existing)?;
    let done = mend(package, mending)?;
    let guarded = output::guarded(output);
    let written = package.write(output, &mut |weight| {
        console.detail(&format!("writing {}", weight.name()));
        match crate::interrupt::requested() {
            true => Err(quince_tensor::Error::new("interrupted")),
            false => Ok(()),
        }
    });
    drop(guarded);
    written.map_err(Failure::from)?;
    Ok(done)
}

/// What was mended, and what was not.
#[derive(Serialize)]
struct Found {
    mended: Vec<MendedJson>,
    left: Vec<LeftJson>,
}

#[derive(Serialize)]
struct MendedJson {
    id: &'static str,
    fault: &'static str,
    remedy: &'static str,
    source: &'static str,
    function: String,
    operations: Vec<String>,
}

/// A fault that stays.
#[derive(Serialize)]
struct LeftJson {
    rule: &'static str,
    severity: &'static str,
    found: String,
    count: usize,
    fix: &'static str,
}

impl Found {
    fn of(done: &[Mended], before: &Report, left: &Report) -> Found {
        let mut mended: Vec<MendedJson> = done
            .iter()
            .map(|done| MendedJson {
                id: done.mend.id,
                fault: done.mend.fault,
                remedy: done.mend.remedy,
                source: done.mend.source,
                function: done.function.clone(),
                operations: done.operations.clone(),
            })
            .collect();
        // Writing shares equal constants; that is no mend of a function.
        let shares = |report: &Report| report.findings.iter().any(|finding| finding.rule.id == "unshared-weights");
        if shares(before) && !shares(left) {
            mended.push(MendedJson {
                id: "unshared-weights",
                fault: "equal weights that were stored more than once",
                remedy: "stored once",
                source: "docs-guides/source/multifunction-models.html",
                function: String::new(),
                operations: Vec::new(),
            });
        }
        let grave = left.groups().into_iter().filter(|group| group.severity() > Severity::Note);
        let left = grave.filter_map(|group| {
            let first = *group.findings.first()?;
            Some(LeftJson {
                rule: first.rule.id,
                severity: first.severity.name(),
                found: first.found.clone(),
                count: group.findings.len(),
                fix: first.rule.fix,
            })
        });
        Found { mended, left: left.collect() }
    }

    fn text(&self, args: &Args) -> String {
        let mut text = match self.mended.len() {
            0 => format!("{}: none of the faults that can be mended was found\n", args.package.display()),
            _ => format!("{}: mended\n\n", args.package.display()),
        };
        let row = |mended: &MendedJson| {
            let count = mended.operations.len();
            let times = if count > 0 { count.to_string() } else { String::new() };
            vec![mended.id.to_string(), mended.function.clone(), times, mended.fault.to_string()]
        };
        if !self.mended.is_empty() {
            text += &table(&["mended", "function", "times", "what was wrong"], &[2], self.mended.iter().map(row));
        }
        if !self.left.is_empty() {
            text += "\nleft, because it takes another conversion:\n\n";
            let row = |left: &LeftJson| vec![left.rule.to_string(), left.count.to_string(), left.found.clone()];
            text += &table(&["rule", "times", "found"], &[1], self.left.iter().map(row));
            text += &format!("\n`quince lint {}` says why, and what to do\n", args.output.display());
        }
        text + &format!("\nwritten to {}\n", args.output.display())
    }
}
