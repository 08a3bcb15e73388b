//! Which adapter of a package is used.

/// As typed.
#[derive(clap::Args)]
pub struct AdapterArg {
    /// An adapter that the package keeps apart from its weights; without it, the model as it was before
    #[arg(long, value_name = "NAME")]
    pub adapter: Option<String>,
}

impl AdapterArg {
    /// The name.
    pub fn name(&self) -> Option<&str> {
        self.adapter.as_deref()
    }
}
