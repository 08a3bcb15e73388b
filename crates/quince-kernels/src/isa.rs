//! Which instruction set the kernels use: asked once from the processor, or forced by `QUINCE_ISA`.

use quince_tensor::{Result, bail};
use std::sync::OnceLock;

/// The environment variable that forces a set.
const VARIABLE: &str = "QUINCE_ISA";

/// A family of vector instructions that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// Plain Rust; exists everywhere.
    Portable,
    /// x86-64 with AVX2, FMA, F16C and BMI2.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL besides everything of [`Isa::Avx2`].
    Avx512,
    /// 64-bit Arm.
    Neon,
}

impl Isa {
    const ALL: [Isa; 4] = [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Neon];

    /// The set that this process uses: the value of `QUINCE_ISA` if the machine has it, else the best there is.
    pub fn detect() -> Isa {
        static CHOSEN: OnceLock<Isa> = OnceLock::new();
        *CHOSEN.get_or_init(|| {
            let wish = std::env::var(VARIABLE).ok().and_then(|name| Isa::from_name(&name));
            wish.filter(|isa| isa.is_available()).unwrap_or_else(Isa::best)
        })
    }

    /// Refuses a wish that [`Isa::detect`] cannot fulfil.
    ///
    /// # Errors
    /// When `QUINCE_ISA` names no set that this machine can run.
    pub fn check() -> Result<()> {
        let Some(wish) = std::env::var_os(VARIABLE) else { return Ok(()) };
        let available = Isa::available();
        if available.iter().any(|isa| wish == isa.name()) {
            return Ok(());
        }
        let names: Vec<&str> = available.into_iter().map(Isa::name).collect();
        bail!("{VARIABLE}: found `{}`, expected one of {}, which this machine has", wish.display(), names.join(", "))
    }

    /// Every set that this machine can run, [`Isa::Portable`] first and the best last.
    pub fn available() -> Vec<Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.is_available()).collect()
    }

    /// The name used by `QUINCE_ISA`.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Neon => "neon",
        }
    }

    fn from_name(name: &str) -> Option<Isa> {
        Isa::ALL.into_iter().find(|isa| isa.name() == name)
    }

    fn best() -> Isa {
        Isa::ALL.into_iter().rev().find(|isa| isa.is_available()).unwrap_or(Isa::Portable)
    }

    #[cfg(target_arch = "x86_64")]
    fn is_available(self) -> bool {
        let avx2 = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
            && is_x86_feature_detected!("bmi2");
        let avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        match self {
            Isa::Portable => true,
            Isa::Avx2 => avx2,
            Isa::Avx512 => avx2 && avx512,
            Isa::Neon => false,
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn is_available(self) -> bool {
        match self {
            Isa::Portable => true,
            Isa::Neon => cfg!(target_arch = "aarch64"),
            Isa::Avx2 | Isa::Avx512 => false,
        }
    }
}
