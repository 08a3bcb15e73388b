//! One file: what came is kept under `.incomplete`, what is missing is asked for, and nothing gets its name before its
//! size and its hash are right.

use crate::cache::{make_directory_of, refused};
use crate::http::{Client, Fault, Follow, Progress, broken};
use crate::listing::{Place, Remote};
use quince_tensor::{Error, Result};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use ureq::http::Method;

/// How much is read at a time.
const CHUNK: usize = 256 << 10;

/// Says how many bytes of the file there are; an error ends the download.
pub(crate) type Progressed<'a> = &'a dyn Fn(u64) -> Result<()>;

/// Downloads a file to the path of its blob.
pub(crate) fn download(
    client: &Client,
    place: Place,
    remote: &Remote,
    blob: &Path,
    progressed: Progressed,
) -> Result<(), Fault> {
    let mut partial = Partial::open(blob)?;
    let mut corrupt = false;
    client.patiently(|| {
        let whole = match remote.size {
            Some(size) if partial.length == size => ControlFlow::Break(()),
            Some(size) if partial.length > size => partial.restart().map(ControlFlow::Continue)?,
            _ => ControlFlow::Continue(()),
        };
        if whole.is_continue() {
            receive(client, place, remote, &mut partial, progressed)?;
        }
        progressed(partial.length)?;
        let Some(expected) = &remote.sha256 else { return Ok(()) };
        let found = partial.digest();
        if found == *expected {
            return Ok(());
        }
        partial.restart()?;
        let error = Error::new(format!("found a file with the SHA-256 {found}, expected {expected}"));
        let error = error.hint("something on the way changes what is downloaded").at(&remote.name).at(place.repository);
        // What was resumed may have been damaged before: it is worth one download from the start.
        let first = !std::mem::replace(&mut corrupt, true);
        Err(if first { Fault::again(error, Progress::None) } else { Fault::Final(error) })
    })?;
    Ok(partial.finish(blob)?)
}

/// Asks for what is missing, and appends it.
fn receive(
    client: &Client,
    place: Place,
    remote: &Remote,
    partial: &mut Partial,
    progressed: Progressed,
) -> Result<(), Fault> {
    let asked = place.asked(Some(&remote.name));
    let mut headers = Vec::new();
    if partial.length > 0 {
        headers.push(("range", format!("bytes={}-", partial.length)));
        // Large files are kept elsewhere, under other etags; their hash shows whether the parts belong together.
        if remote.sha256.is_none() {
            headers.push(("if-range", format!("\"{}\"", remote.etag)));
        }
    }
    let answer = client.send(&Method::GET, &remote.url, &headers, Follow::ToContent)?;
    if answer.status == 416 {
        partial.restart()?;
        return Err(Fault::again(
            Error::new("found that the server has no such range").at(&remote.name),
            Progress::None,
        ));
    }
    let answer = client.hoped_for(answer, &asked)?;
    let range = answer.header("content-range").and_then(content_range);
    let total = match answer.status {
        206 if range.is_some_and(|(start, _)| start == partial.length) => range.and_then(|(_, total)| total),
        206 => {
            partial.restart()?;
            let error = Error::new("found another part of the file than was asked for").at(&remote.name);
            return Err(Fault::again(error, Progress::None));
        }
        // The whole file, although a part was asked for.
        _ => {
            partial.restart()?;
            answer.header("content-length").and_then(|length| length.parse().ok())
        }
    };
    if let (Some(total), Some(size)) = (total, remote.size)
        && total != size
    {
        let error = Error::new(format!("found an answer of {total} bytes, expected the file of {size}"));
        let error = error.hint("something else than the Hub may have answered: check the proxy");
        return Err(Fault::Final(error.at(&remote.name).at(place.repository)));
    }
    append(answer.body.into_reader(), remote, partial, progressed)
}

/// Appends what comes.
fn append(mut body: impl Read, remote: &Remote, partial: &mut Partial, progressed: Progressed) -> Result<(), Fault> {
    let before = partial.length;
    let made = |partial: &Partial| if partial.length > before { Progress::Made } else { Progress::None };
    let mut chunk = vec![0; CHUNK];
    loop {
        let count = match body.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => {
                return Err(match broken(&error) {
                    Fault::Again { error, pause, .. } => {
                        Fault::Again { error: error.at(&remote.name), pause, progress: made(partial) }
                    }
                    other => other,
                });
            }
        };
        partial.append(&chunk[..count])?;
        progressed(partial.length)?;
        if let Some(size) = remote.size.filter(|size| partial.length > *size) {
            partial.restart()?;
            let error = Error::new(format!("found more than the {size} bytes that were announced"));
            return Err(Fault::Final(error.at(&remote.name)));
        }
    }
    match remote.size {
        Some(size) if partial.length < size => {
            let error = Error::new(format!("the connection ended after {} of {size} bytes", partial.length));
            Err(Fault::again(error.at(&remote.name), made(partial)))
        }
        _ => Ok(()),
    }
}

/// The first byte and the number of all bytes, of `bytes 5-9/10`; the number may be unknown.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.trim().parse().ok()?, total.trim().parse().ok()))
}

/// What came of a file.
struct Partial {
    path: PathBuf,
    file: File,
    hasher: Sha256,
    length: u64,
}

impl Partial {
    /// Opens what an earlier download left, or begins.
    fn open(blob: &Path) -> Result<Partial> {
        let mut name = blob.file_name().unwrap_or_default().to_owned();
        name.push(".incomplete");
        let path = blob.with_file_name(name);
        make_directory_of(&path)?;
        let file = File::options().create(true).truncate(false).read(true).write(true).open(&path);
        let mut file = file.map_err(|e| refused("write", &path, &e))?;
        let (mut hasher, mut length, mut chunk) = (Sha256::new(), 0, vec![0; CHUNK]);
        loop {
            let count = file.read(&mut chunk).map_err(|e| refused("read", &path, &e))?;
            if count == 0 {
                return Ok(Partial { path, file, hasher, length });
            }
            hasher.update(&chunk[..count]);
            length += count as u64;
        }
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| refused("write", &self.path, &e))?;
        self.hasher.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    fn restart(&mut self) -> Result<()> {
        let cut = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        cut.map_err(|e| refused("write", &self.path, &e))?;
        (self.hasher, self.length) = (Sha256::new(), 0);
        Ok(())
    }

    fn digest(&self) -> String {
        self.hasher.clone().finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Gives it its name.
    fn finish(self, blob: &Path) -> Result<()> {
        self.file.sync_all().map_err(|e| refused("write", &self.path, &e))?;
        fs::rename(&self.path, blob).map_err(|e| refused("rename", &self.path, &e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_servers_write_them() {
        assert_eq!(content_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(content_range("bytes 0-0/*"), Some((0, None)));
        assert_eq!(content_range("bytes */10"), None);
        assert_eq!(content_range("items 5-9/10"), None);
    }
}
