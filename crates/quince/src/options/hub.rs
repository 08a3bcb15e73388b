//! Models by their id: the options of the Hugging Face Hub, and how a download is shown.

use crate::console::{Console, Counted};
use crate::failure::{Failure, Result};
use crate::units;
use indicatif::ProgressBar;
use quince_hub::{Event, ModelId, Network, Options, fetch};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Options of commands that take a model of the Hub.
#[derive(clap::Args)]
pub struct HubArgs {
    /// The branch, tag or commit of a model of the Hub [main]
    #[arg(long, value_name = "REVISION", help_heading = "Hugging Face Hub")]
    revision: Option<String>,
    /// Take a model of the Hub from the cache alone, as with HF_HUB_OFFLINE=1
    #[arg(long, help_heading = "Hugging Face Hub")]
    offline: bool,
}

impl HubArgs {
    /// Where the model is: the path itself, or where a model of the Hub is now, downloaded if it was not.
    ///
    /// # Errors
    /// As [`fetch`]; a revision of a path.
    pub fn path(&self, model: &Path, console: &Console) -> Result<PathBuf> {
        let Some(id) = ModelId::of_path(model) else {
            if self.revision.is_some() {
                let message = format!("--revision: found the path {}, expected a model of the Hub", model.display());
                return Err(Failure::usage_hint(message, "leave it out, or name organisation/name"));
            }
            return Ok(model.to_path_buf());
        };
        let mut options = Options::from_environment();
        if let Some(revision) = &self.revision {
            options.revision.clone_from(revision);
        }
        if self.offline {
            options.network = Network::Offline;
        }
        let bar = Mutex::new(ProgressBar::hidden());
        let path = fetch(&id, &options, &|event| {
            // The bar is only shown: a thread that died with it is no reason to end.
            let mut bar = bar.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            show(&id, event, &mut bar, console);
            Ok(())
        });
        bar.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).finish_and_clear();
        let path = path?;
        console.detail(&format!("{id} is {}", path.display()));
        Ok(path)
    }
}

fn show(id: &ModelId, event: Event, bar: &mut ProgressBar, console: &Console) {
    let note = |text: String| bar.suspend(|| console.note(&text));
    match event {
        Event::Asked => {}
        Event::Chosen { file } => note(format!("{id}: taking {file}; name another as {id}:Q8_0 or {id}/FILE.gguf")),
        Event::Begins { files, total } => {
            let files = if files == 1 { "1 file".to_string() } else { format!("{files} files") };
            note(format!("{id}: downloading {files}, {}", units::bytes(total)));
            bar.finish_and_clear();
            *bar = console.bar("downloading", total, Counted::Bytes);
        }
        Event::Bytes { file, done } => {
            bar.set_position(done);
            bar.set_message(file.to_string());
        }
        Event::Retry { reason, pause } => {
            note(format!("{}; trying again in {:.1} s", reason.headline(), pause.as_secs_f64()));
        }
        Event::Locked { lock } => {
            note(format!("{id}: another process downloads the same ({}); waiting", lock.display()));
        }
        Event::Cached { reason } => note(format!("{}; taking what the cache has", reason.headline())),
    }
}
