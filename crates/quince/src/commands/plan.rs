//! `quince plan`: which devices run a model, in what form, and how fast.

mod model;

use crate::console::{Console, table};
use crate::failure::{Failure, Result};
use crate::options::hub::HubArgs;
use crate::options::target::Units;
use crate::units;
use model::{Form, Planned};
use quince_lint::{DEVICES, Device, Fit, Prediction, Processor, predict};
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;

/// Show which devices run a model, in what form, and how fast
///
/// For each way of compressing the model and each device: the size, the memory that the app needs, the parts that the
/// Neural Engine wants it in, and how many tokens per second of prompt and answer are to be expected. Nothing is computed
/// and no weight is read. Rates are predicted from the bandwidth of the device's memory; docs/predictions.md has the formula,
/// and how far it was from what people measured.
///
/// `*` after a rate: the app needs the entitlement increased-memory-limit. `-`: there is not the memory.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  quince plan models/tiny-llama
  quince plan Qwen/Qwen3-1.7B --target iphone15pro --context 4096
  quince plan tiny.bundle --target macm1max --json
  quince plan --devices                     what is known of each device")]
pub struct Args {
    /// A checkpoint, a model of the Hub, a package or a bundle
    #[arg(required_unless_present = "devices")]
    model: Option<PathBuf>,
    /// A device, or several: iphone15pro,macm1max. Alone, it is shown in full
    #[arg(long, value_name = "DEVICE,...", value_delimiter = ',', value_parser = super::lint::device)]
    target: Vec<&'static Device>,
    /// Tokens that there is room for; of a package, what it was made for
    #[arg(long, value_name = "N", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    context: u32,
    /// The processors that are to run it: the Neural Engine with cpuAndNeuralEngine, otherwise the GPU
    #[arg(long, value_name = "UNITS", default_value = "all")]
    compute_units: Units,
    /// Show the table of devices
    #[arg(long, conflicts_with_all = ["model", "target"])]
    devices: bool,
    #[command(flatten)]
    hub: HubArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What is shown if no device is named.
const USUAL: &[&str] = &["iphone13pro", "iphone15pro", "iphone16pro", "iphone17pro", "ipadprom4", "macm1", "macm4pro"];

/// Looks at the model, predicts, and prints.
pub fn run(args: &Args, console: &Console) -> Result<ExitCode> {
    let Some(path) = args.model.as_deref().filter(|_| !args.devices) else {
        devices(args, console)?;
        return Ok(ExitCode::SUCCESS);
    };
    let processor = match args.compute_units {
        Units::All | Units::CpuAndGpu => Processor::Gpu,
        Units::CpuAndNeuralEngine => Processor::NeuralEngine,
        Units::CpuOnly => {
            return Err(Failure::usage("--compute-units cpuOnly: there is no prediction for the processor alone"));
        }
    };
    let planned = Planned::of(&args.hub.path(path, console)?, args.context as usize)?;
    let usual = || USUAL.iter().filter_map(|id| Device::find(id)).collect();
    let targets: Vec<&Device> = if args.target.is_empty() { usual() } else { args.target.clone() };
    if args.json {
        console.json(&Json::of(&planned, if args.target.is_empty() { all() } else { targets }, processor))?;
    } else {
        console.print(&text(&planned, &targets, processor))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn all() -> Vec<&'static Device> {
    DEVICES.iter().collect()
}

fn text(planned: &Planned, targets: &[&Device], processor: Processor) -> String {
    let on = match processor {
        Processor::Gpu => "GPU",
        Processor::NeuralEngine => "Neural Engine",
    };
    let mut text = format!(
        "{}: {}, {} layers; cache for {} tokens {}; on the {on}\n\n",
        planned.path,
        planned.architecture,
        planned.layers,
        units::grouped(planned.context as u64),
        units::bytes(planned.cache_bytes),
    );
    text += &match targets {
        [only] => detailed(planned, only, processor),
        several => matrix(planned, several, processor),
    };
    text + "\nTokens per second are predicted for a cool, idle device: docs/predictions.md says how, and how well.\n"
}

/// One device in full.
fn detailed(planned: &Planned, device: &Device, processor: Processor) -> String {
    let head = format!(
        "{}: {}, {} GB of memory, {} for an app, {} with increased-memory-limit\n\n",
        device.name,
        device.chip,
        device.memory_bytes >> 30,
        units::bytes(device.app_bytes),
        units::bytes(device.entitled_bytes),
    );
    let row = |form: &Form| {
        let found = predict(&planned.demand(form), device, processor);
        let fits = found.fit != Fit::No && form.runs_on(processor);
        let rate = |value: f64| if fits { rounded(value) } else { "-".to_string() };
        vec![
            form.scheme.clone(),
            units::bytes(form.bytes),
            units::bytes(found.memory_bytes),
            parts(form, processor).to_string(),
            rate(found.prefill),
            rate(found.decode),
            verdict(form, &found, processor).to_string(),
        ]
    };
    let heading = ["package", "weights", "memory", "parts", "prompt/s", "answer/s", ""];
    head + &table(&heading, &[1, 2, 3, 4, 5], planned.forms.iter().map(row))
}

/// Tokens per second of answers on several devices.
fn matrix(planned: &Planned, devices: &[&Device], processor: Processor) -> String {
    let heading: Vec<&str> =
        ["package", "weights"].into_iter().chain(devices.iter().map(|device| device.name)).collect();
    let row = |form: &Form| {
        let cell = |device: &&Device| {
            let found = predict(&planned.demand(form), device, processor);
            match found.fit {
                _ if !form.runs_on(processor) => "-".to_string(),
                Fit::No => "-".to_string(),
                Fit::Entitled => format!("{}*", rounded(found.decode)),
                Fit::Yes => rounded(found.decode),
            }
        };
        [form.scheme.clone(), units::bytes(form.bytes)].into_iter().chain(devices.iter().map(cell)).collect()
    };
    let right: Vec<usize> = (1..heading.len()).collect();
    table(&heading, &right, planned.forms.iter().map(row))
}

fn parts(form: &Form, processor: Processor) -> u64 {
    match processor {
        Processor::Gpu => 1,
        Processor::NeuralEngine => form.parts,
    }
}

fn verdict(form: &Form, found: &Prediction, processor: Processor) -> &'static str {
    match found.fit {
        _ if !form.runs_on(processor) => "not for the Neural Engine",
        Fit::No => "does not fit",
        Fit::Entitled => "fits with increased-memory-limit",
        Fit::Yes if form.is_coarse() => "fits, but useless unless calibrated",
        Fit::Yes if found.decode < READING => "fits, slower than people read",
        Fit::Yes => "fits",
    }
}

/// Tokens per second that people read: 250 words a minute, 1.3 tokens to a word.
const READING: f64 = 5.4;

fn rounded(rate: f64) -> String {
    if rate < 9.95 { format!("{rate:.1}") } else { units::grouped(rate.round() as u64) }
}

/// What is planned, as JSON has it.
#[derive(Serialize)]
struct Json<'a> {
    model: &'a str,
    architecture: &'a str,
    layers: u64,
    context: usize,
    kv_cache_bytes: u64,
    processor: &'static str,
    packages: Vec<PackageJson<'a>>,
}

#[derive(Serialize)]
struct PackageJson<'a> {
    scheme: &'a str,
    options: &'a str,
    weight_bytes: u64,
    read_bytes_per_token: u64,
    parts: u64,
    devices: Vec<DeviceJson>,
}

#[derive(Serialize)]
struct DeviceJson {
    device: &'static str,
    memory_bytes: u64,
    app_bytes: u64,
    fits: bool,
    needs_increased_memory_limit: bool,
    prefill_tokens_per_second: f64,
    decode_tokens_per_second: f64,
    verdict: &'static str,
}

impl<'a> Json<'a> {
    fn of(planned: &'a Planned, targets: Vec<&'static Device>, processor: Processor) -> Json<'a> {
        let device = |form: &Form, device: &'static Device| {
            let found = predict(&planned.demand(form), device, processor);
            DeviceJson {
                device: device.id,
                memory_bytes: found.memory_bytes,
                app_bytes: device.app_bytes,
                fits: found.fit != Fit::No && form.runs_on(processor),
                needs_increased_memory_limit: found.fit == Fit::Entitled,
                prefill_tokens_per_second: found.prefill,
                decode_tokens_per_second: found.decode,
                verdict: verdict(form, &found, processor),
            }
        };
        let package = |form: &'a Form| PackageJson {
            scheme: &form.scheme,
            options: &form.options,
            weight_bytes: form.bytes,
            read_bytes_per_token: form.read_bytes,
            parts: parts(form, processor),
            devices: targets.iter().map(|target| device(form, target)).collect(),
        };
        Json {
            model: &planned.path,
            architecture: &planned.architecture,
            layers: planned.layers,
            context: planned.context,
            kv_cache_bytes: planned.cache_bytes,
            processor: match processor {
                Processor::Gpu => "gpu",
                Processor::NeuralEngine => "neural_engine",
            },
            packages: planned.forms.iter().map(package).collect(),
        }
    }
}

/// A device, as JSON has it.
#[derive(Serialize)]
struct KnownDevice {
    id: &'static str,
    name: &'static str,
    chip: &'static str,
    memory_bytes: u64,
    app_bytes: u64,
    entitled_bytes: u64,
    bandwidth_bytes_per_second: f64,
    neural_engine_bytes_per_second: f64,
    gpu_flops: f64,
    neural_engine_flops: f64,
}

fn devices(args: &Args, console: &Console) -> Result<()> {
    if args.json {
        let known = |device: &Device| KnownDevice {
            id: device.id,
            name: device.name,
            chip: device.chip,
            memory_bytes: device.memory_bytes,
            app_bytes: device.app_bytes,
            entitled_bytes: device.entitled_bytes,
            bandwidth_bytes_per_second: device.bandwidth,
            neural_engine_bytes_per_second: device.engine_bandwidth,
            gpu_flops: device.gpu_flops,
            neural_engine_flops: device.engine_flops,
        };
        return console.json(&DEVICES.iter().map(known).collect::<Vec<_>>());
    }
    let row = |device: &Device| {
        let tera = |value: f64| format!("{:.1}", value / 1e12);
        vec![
            device.id.to_string(),
            device.name.to_string(),
            device.chip.to_string(),
            format!("{} GB", device.memory_bytes >> 30),
            units::bytes(device.app_bytes),
            units::bytes(device.entitled_bytes),
            format!("{:.0} GB/s", device.bandwidth / 1e9),
            tera(device.gpu_flops),
            tera(device.engine_flops),
        ]
    };
    let heading =
        ["id", "device", "chip", "memory", "app", "entitled", "bandwidth", "GPU Tflop/s", "Neural Engine Tflop/s"];
    console.print(&table(&heading, &[3, 4, 5, 6, 7, 8], DEVICES.iter().map(row)))?;
    console.print("\nSources: crates/quince-lint/src/device.rs and docs/predictions.md.\n")
}
