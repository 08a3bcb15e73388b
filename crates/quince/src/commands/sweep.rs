//! `quince sweep`: a model compressed in many ways, each judged, in one table and one page.

mod plan;
mod workshop;

use self::plan::{Job, Plan};
use self::workshop::Workshop;
use crate::console::{Console, table};
use crate::failure::{Failure, Result, refused};
use crate::interrupt;
use crate::options::calibration::CalibrationArgs;
use crate::options::hub::HubArgs;
use crate::options::target::Units;
use crate::output;
use crate::units;
use quince_sweep::{Outcome, PartLoss, SweepReport, html};
use quince_tensor::Error;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs;
use std::io::Write;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Compress a model in many ways, judge each, and report which are best
///
/// Every combination of the given bits and group sizes becomes a package, beside one that is not compressed. Each package
/// is read back and its weights are run on a text that was not used for calibration: perplexity, KL divergence from the
/// uncompressed model, and the share of places with the same most likely token. The model is converted once, and the
/// uncompressed model is run once, for all variants.
///
/// DIR holds the packages, results/NAME.json for each, and at the end report.json and report.html, a page with plots that
/// needs no network. A sweep that was ended goes on where it was when the same command is given again. It can also be
/// split: --jobs-list prints its jobs, --job runs one of them, wherever DIR can be written, and --merge makes the report.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  quince sweep models/tiny-llama -o sweep --wbits 2,4,6 --group-sizes 8,16,32
  quince sweep MODEL -o sweep --wbits 3,4 --group-sizes 16,none --quantize int8 --calibrate --text heldout.txt
      with calibration on texts that come with quince; `none` is one table for a whole weight
  quince sweep MODEL -o sweep --wbits 2,4,6 --jobs-list
  quince sweep MODEL -o sweep --wbits 2,4,6 --job 3
  quince sweep MODEL -o sweep --wbits 2,4,6 --merge
      for a scheduler: an array of jobs, then the report")]
pub struct Args {
    /// A directory with config.json and safetensors, a GGUF file, or a model of the Hugging Face Hub
    model: PathBuf,
    /// The directory of the sweep
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
    /// Bits of palettes: 1, 2, 3, 4, 6, 8
    #[arg(long, value_name = "N,...", value_delimiter = ',')]
    wbits: Vec<usize>,
    /// Output channels that share a lookup table; none is one table for a weight
    #[arg(long, value_name = "G,...", value_delimiter = ',', default_value = "16")]
    group_sizes: Vec<String>,
    /// Integer types to quantize to, per channel: int8, int4, uint8, uint4
    #[arg(long, value_name = "TYPE,...", value_delimiter = ',')]
    quantize: Vec<String>,
    /// Tokens that there is room for. Default: what the model was made for, at most 2048
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// The processors that the packages are written for
    #[arg(long, value_name = "UNITS", default_value = "all")]
    compute_units: Units,
    #[command(flatten)]
    calibration: CalibrationArgs,
    /// A file with the text that variants are judged on. Default: a page of plain English
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Tokens of its windows
    #[arg(long, value_name = "N", default_value_t = 256)]
    length: usize,
    /// Tokens of it that are used, taken evenly
    #[arg(long, value_name = "N", default_value_t = 4096)]
    tokens: usize,
    /// Remove each package once it is judged
    #[arg(long)]
    discard_packages: bool,
    /// Forget what an earlier sweep left in the directory
    #[arg(long)]
    force: bool,
    /// Print the jobs of the sweep, one on a line with its number, and do nothing else
    #[arg(long, conflicts_with_all = ["job", "merge"])]
    jobs_list: bool,
    /// Run one job
    #[arg(long, value_name = "N", conflicts_with = "merge")]
    job: Option<usize>,
    /// Make the report of jobs that were run
    #[arg(long)]
    merge: bool,
    #[command(flatten)]
    hub: HubArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A job as it is listed.
#[derive(Serialize)]
struct Listed<'a> {
    job: usize,
    name: &'a str,
    done: bool,
}

/// Sweeps.
pub fn run(args: &Args, console: &Console) -> Result<ExitCode> {
    let model = args.hub.path(&args.model, console)?;
    let plan = Plan::of(args, &model)?;
    let jobs = plan.jobs();
    prepare(args, &plan)?;
    if args.jobs_list {
        return list(args, &jobs, console);
    }
    if let Some(number) = args.job
        && number >= jobs.len()
    {
        return Err(Failure::usage(format!("--job: found {number}, expected 0 to {}", jobs.len() - 1)));
    }
    let wanted = jobs.iter().enumerate().filter(|(i, _)| !args.merge && args.job.is_none_or(|job| job == *i));
    let open: Vec<&Job> = wanted.map(|(_, job)| job).filter(|job| !result_path(args, job.name()).is_file()).collect();
    if !open.is_empty() {
        let done = jobs.len() - open.len();
        console.detail(&format!("{} of {} jobs to do, {done} done before or left to others", open.len(), jobs.len()));
        let workshop = Workshop::open(args, &plan, &model, console)?;
        work(args, &plan, &workshop, &open, console)?;
    }
    if args.job.is_some() {
        return Ok(ExitCode::SUCCESS);
    }
    report(args, &plan, &jobs, console)
}

/// Runs jobs, of a small model two at a time: what one computes alone and what it computes with all threads take turns.
fn work(args: &Args, plan: &Plan, workshop: &Workshop, open: &[&Job], console: &Console) -> Result<()> {
    let next = AtomicUsize::new(0);
    let work = || -> Result<()> {
        while let Some(job) = open.get(next.fetch_add(1, Ordering::Relaxed)) {
            let done = interrupt::check().map_err(Failure::from).and_then(|()| {
                console.note(&format!("{} ...", job.name()));
                match job {
                    Job::Variant(variant) => save(&result_path(args, job.name()), &workshop.variant(variant, console)?),
                    Job::Parts => save(&result_path(args, job.name()), &workshop.parts(plan, console)?),
                }
            });
            if let Err(error) = done {
                next.store(open.len(), Ordering::Relaxed);
                return Err(error);
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let others: Vec<_> = (1..workshop.workers()).map(|_| scope.spawn(work)).collect();
        let own = work();
        // A panic elsewhere is one here.
        others.into_iter().map(|other| other.join().unwrap_or_else(|panic| resume_unwind(panic))).fold(own, Result::and)
    })
}

/// The directory with the plan of the sweep in it; what an earlier one left must be of the same plan.
fn prepare(args: &Args, plan: &Plan) -> Result<()> {
    let results = args.output.join("results");
    let file = args.output.join("plan.json");
    if args.force && file.is_file() {
        fs::remove_dir_all(&results).or_else(ignore_missing).map_err(|e| refused("remove", &results, &e))?;
        fs::remove_file(&file).map_err(|e| refused("remove", &file, &e))?;
    }
    let text = plan.to_json()?;
    match fs::read_to_string(&file) {
        Ok(known) if known == text => {}
        Ok(_) => {
            let error = Error::new("found the plan of another sweep, expected the same options, model and text");
            let hint = "choose another directory, or forget the other sweep with --force";
            return Err(error.hint(hint).at(file.display()).into());
        }
        Err(_) => {
            fs::create_dir_all(&results).map_err(|e| refused("create", &results, &e))?;
            write_whole(&file, text.as_bytes())?;
        }
    }
    Ok(fs::create_dir_all(&results).map_err(|e| refused("create", &results, &e))?)
}

fn ignore_missing(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

fn list(args: &Args, jobs: &[Job], console: &Console) -> Result<ExitCode> {
    let listed = |(job, found): (usize, &Job)| {
        let name = match found {
            Job::Variant(variant) => variant.name.as_str(),
            Job::Parts => plan::PARTS,
        };
        (job, name.to_owned(), result_path(args, name).is_file())
    };
    let jobs: Vec<(usize, String, bool)> = jobs.iter().enumerate().map(listed).collect();
    let rows: Vec<Listed> = jobs.iter().map(|(job, name, done)| Listed { job: *job, name, done: *done }).collect();
    match args.json {
        true => console.json(&rows)?,
        false => rows.iter().try_for_each(|row| console.print(&format!("{}\t{}\n", row.job, row.name)))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes the report of what is there.
fn report(args: &Args, plan: &Plan, jobs: &[Job], console: &Console) -> Result<ExitCode> {
    let missing: Vec<String> = jobs
        .iter()
        .enumerate()
        .filter(|(_, job)| !result_path(args, job.name()).is_file())
        .map(|(i, job)| format!("{i} ({})", job.name()))
        .collect();
    if !missing.is_empty() {
        let error = Error::new(format!("found no results of the jobs {}", missing.join(", ")));
        return Err(error
            .hint("run them with --job, or leave --merge out to run all")
            .at(args.output.display())
            .into());
    }
    let (mut variants, mut parts): (Vec<Outcome>, Vec<PartLoss>) = (Vec::new(), Vec::new());
    for job in jobs {
        let file = result_path(args, job.name());
        match job {
            Job::Variant(_) => variants.push(load(&file)?),
            Job::Parts => parts = load(&file)?,
        }
    }
    let (model, text, calibration) = (plan.model.clone(), plan.text.clone(), plan.calibration.clone());
    let found = SweepReport { model, text, calibration, variants, front: Vec::new(), parts }.with_front();
    save(&args.output.join("report.json"), &found)?;
    let page = args.output.join("report.html");
    write_whole(&page, html(&found).as_bytes())?;
    match args.json {
        true => console.json(&found)?,
        false => console.print(&format!("{}{}\n", told(&found), page.display()))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn told(report: &SweepReport) -> String {
    let row = |outcome: &Outcome| {
        let (quality, star) = (&outcome.quality, if report.is_on_front(outcome) { " *" } else { "" });
        vec![
            format!("{}{star}", outcome.name),
            outcome.scheme.clone(),
            units::bytes(outcome.package_bytes),
            format!("{:.4}", quality.perplexity),
            format!("{:+.2} %", report.rise(outcome)),
            format!("{:.5}", quality.kl),
            format!("{:.1} %", quality.top1 * 100.0),
        ]
    };
    let heads = ["variant", "weights", "package", "perplexity", "rise", "KL", "same token"];
    let rows = table(&heads, &[2, 3, 4, 5, 6], report.variants.iter().map(row));
    format!("{rows}\n*: no other is both smaller and better\n")
}

fn result_path(args: &Args, name: &str) -> PathBuf {
    args.output.join("results").join(format!("{name}.json"))
}

fn save(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value);
    let text = text.map_err(|e| Error::new(format!("the result has no JSON form: {e}")).at(path.display()))?;
    write_whole(path, (text + "\n").as_bytes())
}

fn load<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read_to_string(path).map_err(|e| refused("read the result", path, &e))?;
    let hint = "remove the file to have the job run again";
    Ok(serde_json::from_str(&text).map_err(|e| Error::new(e.to_string()).hint(hint).at(path.display()))?)
}

/// Writes a file that is there whole or not at all.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = output::beside(path)?;
    file.write_all(bytes).map_err(|e| refused("write", path, &e))?;
    output::name(file, path)
}
