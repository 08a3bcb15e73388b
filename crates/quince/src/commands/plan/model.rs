//! What there is to plan for: a model in each form that it can be shipped in, and what each reads for a token.

use crate::commands::inspect::checkpoint::schemes;
use crate::failure::Result;
use crate::stored;
use quince_checkpoint::Checkpoint;
use quince_compress::{OptimizationConfig, Scheme, compress, layer_of};
use quince_convert::parts::{EmbeddingPart, split};
use quince_convert::{Options, convert};
use quince_lint::{Demand, Processor};
use quince_mil::{Defs, Function, Program};
use quince_mlpackage::Package;
use quince_runtime::Bundle;
use std::collections::BTreeMap;
use std::path::Path;

/// A model, and the forms that it can be shipped in.
pub struct Planned {
    /// Where it is.
    pub path: String,
    /// What it is.
    pub architecture: String,
    /// Layers with attention.
    pub layers: u64,
    /// Tokens that there is room for.
    pub context: usize,
    /// Bytes of the cache for them.
    pub cache_bytes: u64,
    /// The forms, the largest first.
    pub forms: Vec<Form>,
}

/// A form that a model can be shipped in.
pub struct Form {
    /// How its weights are stored, in words.
    pub scheme: String,
    /// The options that ask for it.
    pub options: String,
    /// Bytes of its weights.
    pub bytes: u64,
    /// Bytes of them that are read for one token.
    pub read_bytes: u64,
    /// Weights that one token is multiplied with.
    pub parameters: u64,
    /// The packages that it takes for the Neural Engine.
    pub parts: u64,
}

/// The largest part that loads on the Neural Engine of every device, in bytes.
const PART_BYTES: u64 = 950_000_000;

impl Form {
    /// Whether a processor takes it: blocks with scales of their own are for the GPU.
    pub fn runs_on(&self, processor: Processor) -> bool {
        processor == Processor::Gpu || !self.options.contains("--quantize-block-size")
    }

    /// Whether weights have one or two bits: chosen without calibration, such models write nonsense.
    pub fn is_coarse(&self) -> bool {
        ["--wbits 1 ", "--wbits 2 "].iter().any(|bits| self.options.starts_with(bits))
    }

    fn of(scheme: &str, options: &str, program: &Program) -> Form {
        let weights = stored::weights(program);
        let (scheme, options) = (scheme.into(), options.into());
        let mut form = Form { scheme, options, bytes: 0, read_bytes: 0, parameters: 0, parts: 1 };
        let function = program.functions.iter().find(|f| f.name == "decode").or(program.functions.first());
        let gathered = function.map(gathered).unwrap_or_default();
        for weight in &weights {
            let read = gathered.get(weight.name.as_str()).copied().unwrap_or(f64::INFINITY);
            let share = (read / weight.parameters().max(1) as f64).min(1.0);
            form.bytes += weight.bytes;
            form.read_bytes += (weight.bytes as f64 * share) as u64;
            if weight.shape.len() > 1 {
                form.parameters += (weight.parameters() as f64 * share) as u64;
            }
        }
        let embedding = EmbeddingPart::for_neural_engine(program);
        if form.bytes > PART_BYTES || embedding == EmbeddingPart::Apart {
            // As a conversion cuts it; what cannot be cut so small is counted as if it could.
            let parts = split(program, PART_BYTES, embedding, &mut |part| Package::new(part.clone()).measure());
            form.parts = parts.map_or(form.bytes.div_ceil(PART_BYTES), |parts| parts.len() as u64);
        }
        form
    }
}

impl Planned {
    /// Looks at a checkpoint in every form, or at a package in the one that it has.
    ///
    /// # Errors
    /// When it is neither, or cannot be read or converted.
    pub fn of(path: &Path, context: usize) -> Result<Planned> {
        if Bundle::recognizes(path) { Planned::of_package(path) } else { Planned::of_checkpoint(path, context) }
    }

    /// What one form asks of a device.
    pub fn demand(&self, form: &Form) -> Demand {
        Demand {
            read_bytes: form.read_bytes,
            weight_bytes: form.bytes,
            cache_bytes: self.cache_bytes,
            parameters: form.parameters,
            layers: self.layers,
        }
    }

    fn of_checkpoint(path: &Path, context: usize) -> Result<Planned> {
        let checkpoint = Checkpoint::open(path)?;
        let converted = convert(&checkpoint, &Options::default())?;
        let geometry = converted.kv_geometry;
        let mut forms = vec![Form::of("float16", "", &converted.program)];
        for (options, scheme) in schemes()? {
            forms.extend(compressed(options, scheme, &converted.program));
        }
        forms.sort_by_key(|form| std::cmp::Reverse(form.bytes));
        let of_token = 2 * 2 * (geometry.layers * geometry.kv_heads * geometry.head_dim) as u64;
        let decodes = converted.semantic.vocab_size > 0;
        Ok(Planned {
            path: path.display().to_string(),
            architecture: converted.semantic.architecture.to_string(),
            layers: geometry.layers as u64,
            context,
            cache_bytes: if decodes { of_token * context as u64 } else { 0 },
            forms,
        })
    }

    fn of_package(path: &Path) -> Result<Planned> {
        let bundle = Bundle::open(path)?;
        let program = bundle.read_package()?.program;
        let weights = stored::weights(&program);
        let cache = stored::cache_types(&program);
        let layout = bundle.manifest().and_then(|manifest| manifest.cache.clone());
        // Of a package alone, layers are told by the number in the names of its weights.
        let counted =
            weights.iter().filter_map(|weight| layer_of(&weight.name)).max().map_or(0, |last| last as u64 + 1);
        Ok(Planned {
            path: path.display().to_string(),
            architecture: bundle.manifest().map_or("package".to_string(), |manifest| manifest.architecture.clone()),
            layers: layout.as_ref().map_or(counted, |layout| layout.layers as u64),
            context: layout.map_or(0, |layout| layout.context),
            cache_bytes: cache.iter().map(stored::byte_len).sum(),
            forms: vec![match bundle.chain() {
                Some(chain) => Form { parts: chain.parts.len() as u64, ..Form::of("as it is", "", &program) },
                None => Form::of("as it is", "", &program),
            }],
        })
    }
}

fn compressed(options: &str, scheme: Scheme, program: &Program) -> Option<Form> {
    let mut program = program.clone();
    // A scheme that no weight can take is not on offer.
    compress(&mut program, &OptimizationConfig::all(scheme)).ok()?;
    Some(Form::of(&scheme.to_string(), options, &program))
}

/// How many elements of each variable one token reads, by its name, where operations that `gather` rows are all that
/// uses it.
fn gathered(function: &Function) -> BTreeMap<&str, f64> {
    let defs = Defs::new(function);
    let mut found = BTreeMap::new();
    for var in function.block.operations.iter().flat_map(|operation| &operation.outputs) {
        let users = defs.users(*var).iter().filter_map(|&i| function.block.operations.get(i));
        let rows = users.map(|user| {
            let rows = function.ty(*user.outputs.first()?).as_tensor()?.dims()?;
            let gathers = user.op_name() == "gather" && user.var("x") == Some(*var);
            gathers.then(|| rows.iter().product::<usize>() as f64)
        });
        if let Some(read) = rows.sum::<Option<f64>>().filter(|read| *read > 0.0) {
            found.insert(function.var(*var).name.as_str(), read);
        }
    }
    found
}
