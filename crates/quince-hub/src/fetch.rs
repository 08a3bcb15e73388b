//! A model, wherever it is: in the cache, on the Hub, or half here and half there.

use crate::cache::{Repository, inside, is_commit};
use crate::download::download;
use crate::environment::{Network, Options};
use crate::http::{Client, Fault};
use crate::id::{ModelId, Wanted};
use crate::listing::{Place, Remote, described, listing};
use crate::needed::{INDEX, Needed, Weights, indexed, needed};
use quince_tensor::{Error, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// How many files are downloaded at a time.
const WORKERS: usize = 2;

/// What happens during [`fetch`].
#[derive(Debug)]
pub enum Event<'a> {
    /// A question was sent.
    Asked,
    /// Files of a repository of GGUF files: this one was taken, since none was named.
    Chosen {
        /// Its name.
        file: &'a str,
    },
    /// The download begins.
    Begins {
        /// How many files.
        files: usize,
        /// How many bytes all of them have.
        total: u64,
    },
    /// Bytes came.
    Bytes {
        /// The file that they are of.
        file: &'a str,
        /// How many there are now, of all files.
        done: u64,
    },
    /// Something failed, and is tried again after a pause.
    Retry {
        /// What failed.
        reason: &'a Error,
        /// How long nothing is done.
        pause: Duration,
    },
    /// Another process downloads the same; it is waited for.
    Locked {
        /// The file that it holds.
        lock: &'a Path,
    },
    /// The Hub cannot be reached, and what the cache has is taken.
    Cached {
        /// Why it cannot be reached.
        reason: &'a Error,
    },
}

/// Hears of what happens, on any thread; an error from it ends the download. What came is kept.
pub(crate) type Watch<'a> = &'a (dyn Fn(Event) -> Result<()> + Sync);

/// Brings a model into the cache, and gives the directory that it is in, or the path of its GGUF file.
///
/// Files that are in the cache are not asked for again, and what came of one is kept when a download ends early. Two
/// processes may do this at once.
///
/// # Errors
/// When the Hub has no such model or does not give it to us, when it cannot be reached and the cache does not have the
/// model, when what comes is not what was announced, and when the system refuses.
pub fn fetch(id: &ModelId, options: &Options, watch: Watch) -> Result<PathBuf> {
    let repository = Repository::new(&options.cache, id.repository());
    let cached = || cached(id, options, &repository);
    inside(&options.revision).map_err(|e| e.at("--revision"))?;
    if options.network == Network::Offline {
        return cached().map_err(|e| e.hint("leave out --offline and HF_HUB_OFFLINE to download it"));
    }
    // A commit never changes: if it is all here there is nothing to ask.
    if is_commit(&options.revision)
        && let Ok(path) = cached()
    {
        return Ok(path);
    }
    match online(id, options, &repository, watch) {
        Ok(path) => Ok(path),
        Err(Fault::Final(error) | Fault::Again { error, .. }) => Err(error),
        Err(Fault::Unreachable(error)) => match cached() {
            Ok(path) => {
                watch(Event::Cached { reason: &error })?;
                Ok(path)
            }
            Err(_) => Err(error.at(id)),
        },
    }
}

/// The model, as the cache has it.
fn cached(id: &ModelId, options: &Options, repository: &Repository) -> Result<PathBuf> {
    let absent = |what: String| {
        let error = Error::new(format!("found {what} in the cache, expected the model"));
        error.at(options.cache.display()).at(id)
    };
    let commit = repository.commit(&options.revision);
    let commit = commit.ok_or_else(|| absent(format!("no revision `{}`", options.revision)))?;
    let files = repository.files(&commit);
    let needed = needed(id, &files).map_err(|_| absent(format!("{} files that are no whole model", files.len())))?;
    let snapshot = repository.snapshot(&commit);
    if needed.indexed == Weights::Indexed {
        let missing = shards(&snapshot)?.into_iter().find(|shard| !files.contains(shard));
        if let Some(missing) = missing {
            return Err(absent(format!("no `{missing}`")));
        }
    }
    Ok(path_of(&snapshot, &needed))
}

fn online(id: &ModelId, options: &Options, repository: &Repository, watch: Watch) -> Result<PathBuf, Fault> {
    let client = Client::new(options, watch)?;
    let asked = Place { repository: id.repository(), revision: &options.revision };
    let listing = listing(&client, asked, id)?;
    let needed = needed(id, &listing.files)?;
    if let Some(file) = needed.model.as_ref().filter(|_| *id.wanted() == Wanted::Model) {
        watch(Event::Chosen { file })?;
    }
    repository.set_commit(&options.revision, &listing.commit)?;
    let place = Place { revision: &listing.revision, ..asked };
    let bring = |files: &[String]| fetch_files(&client, place, repository, &listing.commit, files);
    let mut files = needed.files.clone();
    if needed.indexed == Weights::Indexed {
        bring(&[INDEX.to_string()])?;
        files.extend(shards(&repository.snapshot(&listing.commit))?);
    }
    bring(&files)?;
    Ok(path_of(&repository.snapshot(&listing.commit), &needed))
}

/// The files that the index of a snapshot names.
fn shards(snapshot: &Path) -> Result<Vec<String>> {
    let path = snapshot.join(INDEX);
    let text = fs::read_to_string(&path).map_err(|e| Error::new(format!("cannot read it: {e}")).at(path.display()))?;
    let shards = indexed(&text)?;
    shards.iter().try_for_each(|shard| inside(shard).map(drop)).map_err(|e| e.at(path.display()))?;
    Ok(shards)
}

fn path_of(snapshot: &Path, needed: &Needed) -> PathBuf {
    needed.model.as_ref().map_or(snapshot.to_path_buf(), |file| snapshot.join(file))
}

/// Brings those files into the snapshot that are not there.
fn fetch_files(
    client: &Client,
    place: Place,
    repository: &Repository,
    commit: &str,
    files: &[String],
) -> Result<(), Fault> {
    let here = repository.files(commit);
    let mut remotes = Vec::new();
    for name in files.iter().filter(|name| !here.contains(name)) {
        let remote = described(client, place, name)?;
        remotes.push(remote.ok_or_else(|| {
            Error::new(format!("found no `{name}`, expected it since the repository names it")).at(place.repository)
        })?);
    }
    if remotes.is_empty() {
        return Ok(());
    }
    let total = remotes.iter().filter_map(|remote| remote.size).sum();
    client.tell(Event::Begins { files: remotes.len(), total })?;
    let (next, done, ended) = (AtomicUsize::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let failure = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..WORKERS.min(remotes.len()) {
            scope.spawn(|| {
                while let Some(remote) = remotes.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let brought = one(client, place, repository, remote, (&done, &ended));
                    let linked = brought.and_then(|blob| Ok(repository.link(commit, &remote.name, &blob)?));
                    let Err(fault) = linked else { continue };
                    // The first failure is the one that matters: it ends the others.
                    if !ended.swap(true, Ordering::SeqCst)
                        && let Ok(mut failure) = failure.lock()
                    {
                        *failure = Some(fault);
                    }
                    return;
                }
            });
        }
    });
    match failure.into_inner() {
        Ok(Some(fault)) => Err(fault),
        _ => Ok(()),
    }
}

/// Brings the contents of one file into the cache, and gives their path.
fn one(
    client: &Client,
    place: Place,
    repository: &Repository,
    remote: &Remote,
    (done, ended): (&AtomicU64, &AtomicBool),
) -> Result<PathBuf, Fault> {
    let blob = repository.blob(&remote.etag).map_err(|e| e.at(&remote.url))?;
    // Held until this returns.
    let _lock = repository.lock(&remote.etag, &|event| client.tell(event))?;
    let counted = AtomicU64::new(0);
    let progressed = |length: u64| {
        if ended.load(Ordering::SeqCst) {
            return Err(Error::new("ended, since another file failed"));
        }
        // What is begun anew counts backwards.
        let more = length.wrapping_sub(counted.swap(length, Ordering::Relaxed));
        let all = done.fetch_add(more, Ordering::Relaxed).wrapping_add(more);
        client.tell(Event::Bytes { file: &remote.name, done: all })
    };
    if blob.is_file() {
        progressed(remote.size.unwrap_or(0))?;
    } else {
        download(client, place, remote, &blob, &progressed)?;
    }
    Ok(blob)
}
