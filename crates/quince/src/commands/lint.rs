//! `quince lint`: what a device will make of a package.

mod text;

use super::repair::rewritten;
use crate::console::Console;
use crate::failure::{Failure, Result};
use crate::options::target::Units as UnitsArg;
use crate::output::Existing;
use clap::ValueEnum;
use quince_lint::{DEVICES, Device, Group, Mending, RULES, Report, Rule, Scope, Severity, Target, Units, lint};
use quince_mlpackage::Package;
use quince_runtime::Bundle;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Say what a device will make of a package: what leaves the Neural Engine, overflows, or is refused
///
/// Every rule is asked about every function: ranks, types, shapes, weights, states, attention, norms, masks, sizes. What it
/// finds is shown with the operation, why it is bad, and what to do. Packages and compiled models of other tools are looked
/// at as those of quince. Nothing is run.
///
/// A package that says for which processors it was written is looked at for those; others, and those for all processors, for
/// the Neural Engine too. The exit status is 1 if there are warnings or errors (--fail-on says otherwise).
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  quince lint model.mlpackage                          a package, also of another tool
  quince lint tiny.bundle --target iphone15pro         and whether that device has the memory
  quince lint model.mlpackage --compute-units cpuAndGPU
  quince lint model.mlpackage --json                   every finding, for a machine
  quince lint --list-rules                             every rule, with its source")]
pub struct Args {
    /// A bundle, a package, or a compiled model (.mlmodelc)
    #[arg(required_unless_present = "list_rules")]
    package: Option<PathBuf>,
    /// The device that it is for: iphone15pro, ipadprom4, macm1max, ...
    #[arg(long, value_name = "DEVICE", value_parser = device)]
    target: Option<&'static Device>,
    /// The processors that it is for, if not those that the package says
    #[arg(long, value_name = "UNITS")]
    compute_units: Option<UnitsArg>,
    /// Leave out a rule; may be repeated
    #[arg(long, value_name = "RULE", value_parser = rule)]
    skip: Vec<&'static Rule>,
    /// The least severity that the exit status tells
    #[arg(long, value_name = "SEVERITY", default_value = "warning")]
    fail_on: FailOn,
    /// Write a package in which what can be mended without changing its numbers is: masks that are infinite, tables with
    /// scales of their own, epsilons that are not written, equal weights
    #[arg(long, requires = "output")]
    fix: bool,
    /// Where the mended package goes; what is reported is what is left in it
    #[arg(long, short, value_name = "PACKAGE", requires = "fix")]
    output: Option<PathBuf>,
    /// Replace the output if it exists
    #[arg(long, requires = "fix")]
    force: bool,
    /// List the rules, with why they are and where that is known from
    #[arg(long, conflicts_with_all = ["package", "target", "compute_units", "skip"])]
    list_rules: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What makes the exit status 1.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FailOn {
    /// Anything at all.
    Note,
    /// Warnings and errors.
    Warning,
    /// Errors alone.
    Error,
    /// Nothing.
    Never,
}

/// A device by its name on the command line.
pub fn device(text: &str) -> std::result::Result<&'static Device, String> {
    let ids: Vec<&str> = DEVICES.iter().map(|device| device.id).collect();
    Device::find(text).ok_or_else(|| format!("there is no such device, expected one of {}", ids.join(", ")))
}

fn rule(text: &str) -> std::result::Result<&'static Rule, String> {
    let found = RULES.iter().copied().find(|rule| rule.id == text);
    found.ok_or_else(|| "there is no such rule; `quince lint --list-rules` lists them".to_string())
}

/// Looks at every package, and prints what was found.
pub fn run(args: &Args, console: &Console) -> Result<ExitCode> {
    let Some(path) = args.package.as_deref().filter(|_| !args.list_rules) else { return list(args, console) };
    let mut worst = None;
    let mut looked_at = Vec::new();
    if args.fix {
        Bundle::open(path)?.only_package()?;
    }
    for package_path in packages(path)? {
        let package_path = fixed(args, package_path, console)?;
        let package = Package::read(&package_path)?;
        let units = match args.compute_units {
            Some(units) => units.into(),
            None => Units::of(&package.metadata).unwrap_or_default(),
        };
        let mut report = lint(&package, &Target { units, device: args.target });
        report.findings.retain(|finding| !args.skip.iter().any(|skipped| skipped.id == finding.rule.id));
        worst = worst.max(report.worst());
        looked_at.push(Look { path: package_path, functions: package.program.functions.len(), units, report });
    }
    if args.json {
        let found: Vec<LookJson> = looked_at.iter().map(|look| LookJson::of(look, args.target)).collect();
        match &found[..] {
            [only] => console.json(only)?,
            several => console.json(&several)?,
        }
    } else {
        looked_at.iter().try_for_each(|look| console.print(&text::report(look, args.target)))?;
    }
    let fails = match args.fail_on {
        FailOn::Never => false,
        FailOn::Note => worst.is_some(),
        FailOn::Warning => worst >= Some(Severity::Warning),
        FailOn::Error => worst >= Some(Severity::Error),
    };
    Ok(ExitCode::from(u8::from(fails)))
}

/// The package that is looked at: with `--fix` the one that was mended.
fn fixed(args: &Args, path: PathBuf, console: &Console) -> Result<PathBuf> {
    let Some(output) = args.output.as_deref().filter(|_| args.fix) else { return Ok(path) };
    let existing = if args.force { Existing::Replace } else { Existing::Refuse };
    let done = rewritten(&mut Package::read(&path)?, Mending::Safe, output, existing, console)?;
    for mended in done {
        let (count, function) = (mended.operations.len(), &mended.function);
        console.note(&format!("mended {count} × {} in {function}: {}", mended.mend.id, mended.mend.remedy));
    }
    Ok(output.to_path_buf())
}

/// A package with what was found in it.
struct Look {
    path: PathBuf,
    functions: usize,
    units: Units,
    report: Report,
}

/// The packages of a bundle, which may be in parts, or the one that the path is.
fn packages(path: &Path) -> Result<Vec<PathBuf>> {
    let bundle = Bundle::open(path)?;
    if bundle.manifest().is_none() || bundle.chain().is_some() {
        return Ok(bundle.packages());
    }
    let listed = std::fs::read_dir(path).map_err(|e| crate::failure::refused("list", path, &e))?;
    let is_part = |path: &PathBuf| path.extension().is_some_and(|ending| ending == "mlpackage") && path.is_dir();
    let mut parts: Vec<PathBuf> = listed.filter_map(|entry| Some(entry.ok()?.path())).filter(is_part).collect();
    parts.sort();
    if parts.is_empty() {
        return Err(Failure::Error(
            quince_tensor::Error::new("found no package in the bundle, expected model.mlpackage").at(path.display()),
        ));
    }
    Ok(parts)
}

fn list(args: &Args, console: &Console) -> Result<ExitCode> {
    if args.json {
        let rules: Vec<RuleJson> = RULES.iter().map(|rule| RuleJson::of(rule)).collect();
        console.json(&rules)?;
    } else {
        console.print(&text::rules())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A package as JSON has it.
#[derive(Serialize)]
struct LookJson<'a> {
    package: String,
    compute_units: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<&'static str>,
    rules_asked: usize,
    errors: usize,
    warnings: usize,
    notes: usize,
    findings: Vec<FindingJson<'a>>,
}

/// Findings that say the same.
#[derive(Serialize)]
struct FindingJson<'a> {
    rule: &'static str,
    severity: &'static str,
    found: &'a str,
    count: usize,
    why: &'static str,
    fix: &'static str,
    source: &'static str,
    operations: Vec<PlaceJson<'a>>,
}

#[derive(Serialize)]
struct PlaceJson<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    function: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    op: Option<&'a str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    detail: &'a str,
}

impl<'a> LookJson<'a> {
    fn of(look: &'a Look, target: Option<&'static Device>) -> LookJson<'a> {
        let report = &look.report;
        LookJson {
            package: look.path.display().to_string(),
            compute_units: look.units.name(),
            target: target.map(|device| device.id),
            rules_asked: report.rules,
            errors: report.count(Severity::Error),
            warnings: report.count(Severity::Warning),
            notes: report.count(Severity::Note),
            findings: report.groups().iter().filter_map(FindingJson::of).collect(),
        }
    }
}

impl<'a> FindingJson<'a> {
    fn of(group: &Group<'a>) -> Option<FindingJson<'a>> {
        let first = group.findings.first()?;
        let place = |finding: &&'a quince_lint::Finding| PlaceJson {
            function: finding.function.as_deref(),
            name: finding.place.as_deref(),
            op: finding.kind.as_deref(),
            detail: &finding.detail,
        };
        Some(FindingJson {
            rule: first.rule.id,
            severity: first.severity.name(),
            found: &first.found,
            count: group.findings.len(),
            why: first.rule.why,
            fix: first.rule.fix,
            source: first.rule.source,
            operations: group.findings.iter().map(place).collect(),
        })
    }
}

/// A rule as JSON has it.
#[derive(Serialize)]
struct RuleJson {
    rule: &'static str,
    severity: &'static str,
    scope: &'static str,
    what: &'static str,
    why: &'static str,
    fix: &'static str,
    source: &'static str,
}

impl RuleJson {
    fn of(rule: &Rule) -> RuleJson {
        RuleJson {
            rule: rule.id,
            severity: rule.severity.name(),
            scope: scope(rule.scope),
            what: rule.what,
            why: rule.why,
            fix: rule.fix,
            source: rule.source,
        }
    }
}

/// For which processors a rule matters, in words.
fn scope(scope: Scope) -> &'static str {
    match scope {
        Scope::Everywhere => "everywhere",
        Scope::Accelerators => "GPU and Neural Engine",
        Scope::NeuralEngine => "Neural Engine",
    }
}
