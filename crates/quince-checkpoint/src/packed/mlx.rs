//! MLX: codes of 2 to 8 bits packed into words, with scales and offsets for groups of elements of a row; and the same in
//! microscaling formats. Which weights are quantized how, `quantization` of config.json says.

use super::mlx_layout::to_hugging_face;
use super::{Part, Tensors, config_of, is_scale, wrong};
use crate::blocks::{E2M1, scale_of_exponent};
use crate::config::Config;
use crate::format::{Contents, Exact, Format, Found};
use crate::huggingface;
use crate::suggest::shown;
use quince_tensor::{DType, Error, Result, Tensor, Weight, WeightSource, bail};
use serde_json::Value;
use std::ops::Range;
use std::sync::Arc;

pub(crate) const MLX: Format = Format {
    name: "MLX",
    looks_like: "a directory whose config.json has `quantization`",
    recognizes: |path| config_of(path).is_some_and(|config| quantization(&config).is_some()),
    open: |path| {
        let mut contents = huggingface::read(path)?;
        let mut tensors = Tensors::of(std::mem::take(&mut contents.weights));
        let how = Quantization::of(&contents.config)?;
        for stem in tensors.stems(".scales") {
            let scheme = how.scheme(&stem, &contents.config)?;
            join(&mut tensors, &stem, scheme)?;
        }
        to_hugging_face(&mut tensors, &contents.config)?;
        Ok(Contents { weights: tensors.into_found(), ..contents })
    },
};

/// How a weight is quantized.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Scheme {
    mode: Mode,
    bits: usize,
    group: usize,
}

/// What codes stand for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    /// Integers, `scale · code + bias`.
    Affine,
    /// Floats of four bits times a power of two.
    Mxfp4,
    /// Floats of eight bits times a power of two.
    Mxfp8,
    /// Floats of four bits times a float of eight bits.
    Nvfp4,
}

/// Bits of a code and codes of a group.
type BitsAndGroup = (usize, usize);

/// Every mode by its name, with bits and group of those that have only one of each.
const MODES: &[(&str, Mode, Option<BitsAndGroup>)] = &[
    ("affine", Mode::Affine, None),
    ("mxfp4", Mode::Mxfp4, Some((4, 32))),
    ("mxfp8", Mode::Mxfp8, Some((8, 32))),
    ("nvfp4", Mode::Nvfp4, Some((4, 16))),
];

/// `quantization` of config.json: bits, group and mode for all, and objects by module for those that differ.
struct Quantization<'a>(&'a Value);

impl<'a> Quantization<'a> {
    fn of(config: &'a Config) -> Result<Quantization<'a>> {
        match quantization(config) {
            Some(value) if value.is_object() => Ok(Quantization(value)),
            _ => Err(Error::new("key `quantization`: found no object").at(config.path().display())),
        }
    }

    /// How a module's weight is quantized.
    fn scheme(&self, module: &str, config: &Config) -> Result<Scheme> {
        let own = self.0.get(module).filter(|own| own.is_object());
        let read = || -> Result<Scheme> {
            let get = |key: &str| own.and_then(|own| own.get(key)).or_else(|| self.0.get(key));
            let name = get("mode").and_then(Value::as_str).unwrap_or("affine");
            let Some(&(_, mode, only)) = MODES.iter().find(|row| row.0 == name) else {
                let known: Vec<&str> = MODES.iter().map(|row| row.0).collect();
                bail!("mode: found `{}`, expected one of {}", shown(name), known.join(", "));
            };
            let number = |key: &str, usual| match get(key) {
                None => Ok(usual),
                Some(value) => value.as_u64().and_then(|n| usize::try_from(n).ok()).ok_or_else(|| {
                    Error::new(format!("{key}: found {}, expected a number", shown(&value.to_string())))
                }),
            };
            let (bits, group) = only.unwrap_or((4, 64));
            let scheme = Scheme { mode, bits: number("bits", bits)?, group: number("group_size", group)? };
            let allowed = match only {
                Some(only) => (scheme.bits, scheme.group) == only,
                None => matches!(scheme.bits, 2 | 3 | 4 | 5 | 6 | 8) && scheme.group > 0,
            };
            match allowed {
                true => Ok(scheme),
                false => bail!("found {} bits in groups of {} for `{name}`", scheme.bits, scheme.group),
            }
        };
        let place =
            if own.is_some() { format!("key `quantization.{}`", shown(module)) } else { "key `quantization`".into() };
        read().map_err(|error| error.at(place).at(config.path().display()))
    }
}

/// What the configuration says; newer files say it twice, some only under the second key, without a method's name.
fn quantization(config: &Config) -> Option<&Value> {
    let second = || {
        let value = config.get("quantization_config")?;
        (value.get("quant_method").is_none() && value.get("group_size").is_some()).then_some(value)
    };
    config.get("quantization").or_else(second)
}

/// Puts the parts of a weight together.
fn join(tensors: &mut Tensors, stem: &str, scheme: Scheme) -> Result<()> {
    let name = format!("{stem}.weight");
    let (Some(codes), Some(scales)) = (tensors.take(&name), tensors.take(&format!("{stem}.scales"))) else {
        let error = Error::new(format!("found scales without the tensor `{}`", shown(&name)));
        return Err(error.at(format!("tensor `{}.scales`", shown(stem))));
    };
    let biases = tensors.take(&format!("{stem}.biases"));
    let packed = Packed::of(&name, scheme, &codes, &scales, biases.as_ref())?;
    let bytes = codes.bytes + scales.bytes + biases.map_or(0, |biases| biases.bytes);
    let form = match scheme.mode {
        Mode::Affine => format!("affine {} bits, groups of {}", scheme.bits, scheme.group).into(),
        mode => MODES.iter().find(|row| row.1 == mode).map_or("", |row| row.0).into(),
    };
    let exact = packed.exact(&name);
    let shape = packed.shape.clone();
    let weight = Weight::new(&name, DType::F32, &shape, Arc::new(packed));
    tensors.put(Found { weight, file: codes.file, form, bytes, exact });
    Ok(())
}

/// A weight whose last axis is packed into words, its rows one below the other.
#[derive(Clone)]
struct Packed {
    scheme: Scheme,
    shape: Vec<usize>,
    codes: Part,
    scales: Part,
    biases: Option<Part>,
}

impl Packed {
    fn of(name: &str, scheme: Scheme, codes: &Found, scales: &Found, biases: Option<&Found>) -> Result<Packed> {
        let shape = codes.weight.shape();
        let [outer @ .., words] = shape else { return Err(wrong(name, codes, "rows of packed words")) };
        let bits = words.checked_mul(32).filter(|bits| bits.is_multiple_of(scheme.bits));
        let columns = bits.map(|bits| bits / scheme.bits).filter(|columns| columns.is_multiple_of(scheme.group));
        let Some(columns) = columns.filter(|_| codes.weight.dtype() == DType::U32 && !outer.is_empty()) else {
            let what = format!("uint32 rows of {} bits in groups of {}", scheme.bits, scheme.group);
            return Err(wrong(name, codes, what));
        };
        let groups = [outer, &[columns / scheme.group]].concat();
        let floats = scheme.mode == Mode::Affine;
        let fits = |part: &Found| {
            let dtype = part.weight.dtype();
            part.weight.shape() == groups && if floats { is_scale(dtype) } else { dtype == DType::U8 }
        };
        let kind = if floats { "floats" } else { "uint8" };
        if let Some(part) = [Some(scales), biases].into_iter().flatten().find(|part| !fits(part)) {
            return Err(wrong(part.weight.name(), part, format!("{kind} {groups:?} for `{}`", shown(name))));
        }
        if floats != biases.is_some() {
            bail!("tensor `{}`: found {} biases, expected {}", shown(name), !floats, floats);
        }
        Ok(Packed {
            scheme,
            shape: [outer, &[columns]].concat(),
            codes: Part::of(codes).flat()?,
            scales: Part::of(scales).flat()?,
            biases: biases.map(|biases| Part::of(biases).flat()).transpose()?,
        })
    }

    /// The number of rows of the last axis within one of the first.
    fn inner_rows(&self) -> usize {
        self.shape.get(1..self.shape.len() - 1).unwrap_or_default().iter().product()
    }

    /// The elements of rows of the last axis.
    fn decoded(&self, rows: Range<usize>) -> Result<Vec<f32>> {
        let columns = self.shape.last().copied().unwrap_or(0);
        let (codes, scales) = (self.codes.rows(rows.clone())?, self.scales.rows(rows.clone())?);
        let codes = unpacked(codes.bytes(), self.scheme.bits, rows.len() * columns);
        let scales = self.scheme.mode.scales(&scales)?;
        let biases = self.biases.as_ref().map(|part| part.rows(rows)?.to_f32()).transpose()?;
        let mut out = Vec::with_capacity(codes.len());
        for (group, codes) in codes.chunks(self.scheme.group.max(1)).enumerate() {
            let scale = scales.get(group).copied().unwrap_or(0.0);
            match &biases {
                Some(biases) => {
                    let bias = biases.get(group).copied().unwrap_or(0.0);
                    out.extend(codes.iter().map(|&code| f32::from(code) * scale + bias));
                }
                None if self.scheme.mode == Mode::Mxfp8 => out.extend(codes.iter().map(|&code| scale * e4m3(code))),
                None => out.extend(codes.iter().map(|&code| scale * f32::from(E2M1[usize::from(code & 15)]))),
            }
        }
        Ok(out)
    }

    /// Integers, scales and offsets apart. What affine quantization adds, Core ML takes away before it multiplies, so
    /// the offset is a quotient, which is rounded.
    fn exact(&self, name: &str) -> Option<Exact> {
        let [rows, columns] = *self.shape else { return None };
        let dtype = match (self.scheme.mode, self.scheme.bits) {
            (Mode::Affine, 2..=4) => DType::U4,
            (Mode::Affine, _) => DType::U8,
            (Mode::Mxfp4, _) => DType::I8,
            _ => return None,
        };
        let part = |what| Arc::new(Kept { packed: self.clone(), what });
        let groups = [rows, columns / self.scheme.group];
        let affine = self.scheme.mode == Mode::Affine;
        Some(Exact {
            data: Weight::new(name, dtype, &[rows, columns], part(What::Data)),
            scale: Weight::new(name, DType::F32, &groups, part(What::Scale)),
            offset: affine.then(|| Weight::new(name, DType::F32, &groups, part(What::Offset))),
        })
    }
}

impl WeightSource for Packed {
    fn load(&self) -> Result<Tensor> {
        self.rows(0..self.shape.first().copied().unwrap_or(0))
    }

    fn rows(&self, rows: Range<usize>) -> Result<Tensor> {
        let inner = if self.shape.len() > 2 { self.inner_rows() } else { 1 };
        let shape = [&[rows.len()], self.shape.get(1..).unwrap_or_default()].concat();
        Tensor::from_vec(shape, self.decoded(rows.start * inner..rows.end * inner)?)
    }

    fn streams(&self) -> bool {
        true
    }
}

impl Mode {
    /// The scales of groups; those of floats of four bits are halved, because the values are doubled.
    fn scales(self, scales: &Tensor) -> Result<Vec<f32>> {
        Ok(match self {
            Mode::Affine => scales.to_f32()?,
            Mode::Mxfp4 => scales.bytes().iter().map(|&byte| scale_of_exponent(byte)).collect(),
            Mode::Mxfp8 => scales.bytes().iter().map(|&byte| scale_of_exponent(byte) * 2.0).collect(),
            Mode::Nvfp4 => scales.bytes().iter().map(|&byte| e4m3(byte) * 0.5).collect(),
        })
    }
}

/// A float of eight bits, without infinities.
fn e4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
    let size = match exponent {
        _ if byte & 127 == 127 => f32::NAN,
        0 => mantissa * 2f32.powi(-9),
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    if byte < 128 { size } else { -size }
}

/// Codes that lie one after the other from the lowest bit of the first byte, `count` of them.
fn unpacked(bytes: &[u8], bits: usize, count: usize) -> Vec<u8> {
    let mask = ((1u16 << bits) - 1) as u8;
    let code = |i: usize| {
        let (byte, shift) = (i * bits / 8, i * bits % 8);
        let at = |byte: usize| u16::from(bytes.get(byte).copied().unwrap_or(0));
        ((at(byte) | at(byte + 1) << 8) >> shift) as u8 & mask
    };
    (0..count).map(code).collect()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Data,
    Scale,
    Offset,
}

/// A part in the form in which Core ML keeps it.
struct Kept {
    packed: Packed,
    what: What,
}

impl WeightSource for Kept {
    fn load(&self) -> Result<Tensor> {
        let [rows, columns] = *self.packed.shape else { bail!("found more than two axes") };
        let scheme = self.packed.scheme;
        let groups = [rows, columns / scheme.group];
        if self.what == What::Data {
            let bytes = self.packed.codes.rows(0..rows)?;
            let mut codes = unpacked(bytes.bytes(), scheme.bits, rows * columns);
            if scheme.mode == Mode::Mxfp4 {
                codes.iter_mut().for_each(|code| *code = E2M1[usize::from(*code & 15)] as u8);
                return Tensor::from_codes(DType::I8, [rows, columns], &codes);
            }
            return Tensor::from_codes(if scheme.bits <= 4 { DType::U4 } else { DType::U8 }, [rows, columns], &codes);
        }
        let scales = scheme.mode.scales(&self.packed.scales.rows(0..rows)?)?;
        let values = match (&self.packed.biases, self.what) {
            (Some(biases), What::Offset) => {
                let biases = biases.rows(0..rows)?.to_f32()?;
                biases
                    .iter()
                    .zip(&scales)
                    .map(|(bias, scale)| if *scale == 0.0 { 0.0 } else { -bias / scale })
                    .collect()
            }
            _ => scales,
        };
        Tensor::from_vec(groups, values)
    }
}
