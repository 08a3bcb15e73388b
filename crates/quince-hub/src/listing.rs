//! What a repository has: its list of files, and for each file its size and the name of its contents.

use crate::cache::inside;
use crate::fetch::Event;
use crate::http::{Answer, Client, Fault, Follow};
use crate::id::{ModelId, Wanted};
use crate::needed::{ADAPTER, COMPANIONS, INDEX, SINGLE};
use crate::refusal::Asked;
use crate::url::{Slashes, escaped};
use quince_tensor::{Error, Result};
use serde::Deserialize;
use ureq::http::Method;

/// The longest list of files, in bytes.
const MAX_LISTING: u64 = 64 << 20;

/// The files of a repository at a commit.
#[derive(Debug)]
pub(crate) struct Listing {
    /// The commit.
    pub commit: String,
    /// What to ask for its files with: the commit, so that they are of one even if the branch moves on meanwhile.
    pub revision: String,
    /// Names.
    pub files: Vec<String>,
}

/// A file of the Hub.
#[derive(Clone, Debug)]
pub(crate) struct Remote {
    /// Its name in the repository.
    pub name: String,
    /// Where to get it.
    pub url: String,
    /// The commit that it is of.
    pub commit: String,
    /// The name of its contents.
    pub etag: String,
    /// How many bytes it has, if that is known.
    pub size: Option<u64>,
    /// The SHA-256 of its contents, if that is known.
    pub sha256: Option<String>,
}

/// A repository at a revision, as it is asked about.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub repository: &'a str,
    pub revision: &'a str,
}

impl<'a> Place<'a> {
    pub(crate) fn asked(self, file: Option<&'a str>) -> Asked<'a> {
        Asked { repository: self.repository, revision: self.revision, file }
    }

    fn url(self, client: &Client, file: &str) -> String {
        let (revision, file) = (escaped(self.revision, Slashes::Escaped), escaped(file, Slashes::Kept));
        format!("{}/{}/resolve/{revision}/{file}", client.endpoint(), self.repository)
    }
}

/// The files of a repository. A mirror that has no list is asked for one file after the other.
pub(crate) fn listing(client: &Client, place: Place, id: &ModelId) -> Result<Listing, Fault> {
    #[derive(Deserialize)]
    struct Found {
        sha: String,
        siblings: Option<Vec<Sibling>>,
    }
    #[derive(Deserialize)]
    struct Sibling {
        rfilename: String,
    }
    let revision = escaped(place.revision, Slashes::Escaped);
    let url = format!("{}/api/models/{}/revision/{revision}", client.endpoint(), place.repository);
    let text = client.patiently(|| {
        let answer = client.send(&Method::GET, &url, &[], Follow::ToContent)?;
        // The Hub says why; what knows nothing of the question does not.
        if answer.status == 404 && answer.header("x-error-code").is_none() {
            return Ok(None);
        }
        let answer = client.hoped_for(answer, &place.asked(None))?;
        client.text(answer, MAX_LISTING).map(Some)
    })?;
    let Some(text) = text else { return probed(client, place, id) };
    let found: Found = serde_json::from_str(&text).map_err(|e| {
        let error = Error::new(format!("found no list of files: {e}"));
        error.hint("check HF_ENDPOINT: something else than the Hub may have answered").at(&url)
    })?;
    let Some(siblings) = found.siblings else { return probed(client, place, id) };
    let files: Vec<String> = siblings.into_iter().map(|sibling| sibling.rfilename).collect();
    files.iter().try_for_each(|file| inside(file).map(drop)).map_err(|e| e.at(&url))?;
    inside(&found.sha).map_err(|e| e.at(&url))?;
    Ok(Listing { revision: found.sha.clone(), commit: found.sha, files })
}

/// Those of the files that may be needed which are there.
fn probed(client: &Client, place: Place, id: &ModelId) -> Result<Listing, Fault> {
    let names: Vec<&str> = match id.wanted() {
        Wanted::File(file) => vec![file],
        Wanted::Quantization(_) => {
            let error = Error::new("found no list of files").at(place.repository);
            return Err(Fault::Final(error.hint("name the file: organisation/name/file.gguf")));
        }
        Wanted::Model => COMPANIONS.iter().copied().chain([INDEX, SINGLE, ADAPTER]).collect(),
    };
    let mut found: Option<Listing> = None;
    for name in names {
        let Some(remote) = described(client, place, name)? else { continue };
        let revision = place.revision.to_string();
        let listing = found.get_or_insert_with(|| Listing { commit: remote.commit, revision, files: Vec::new() });
        listing.files.push(remote.name);
    }
    found.ok_or_else(|| {
        let error = Error::new("found no such repository, or no file of a model in it");
        Fault::Final(error.hint("check its spelling and HF_ENDPOINT").at(place.repository))
    })
}

/// What a file is; `None` if there is none of that name.
pub(crate) fn described(client: &Client, place: Place, name: &str) -> Result<Option<Remote>, Fault> {
    let url = place.url(client, name);
    let asked = place.asked(Some(name));
    client.patiently(|| {
        client.tell(Event::Asked)?;
        let mut answer = client.send(&Method::HEAD, &url, &[], Follow::ToDescription)?;
        // Some proxies forward GET alone; what it would bring is left where it is.
        if matches!(answer.status, 400 | 403 | 405 | 501) && answer.header("x-error-code").is_none() {
            answer = client.send(&Method::GET, &url, &[], Follow::ToDescription)?;
        }
        if answer.status == 404
            && !["RepoNotFound", "RevisionNotFound"].contains(&answer.header("x-error-code").unwrap_or(""))
        {
            return Ok(None);
        }
        let answer = client.hoped_for(answer, &asked)?;
        Ok(Some(remote(&answer, name, &url)?))
    })
}

fn remote(answer: &Answer, name: &str, url: &str) -> Result<Remote> {
    let without = |what: &str| {
        let error = Error::new(format!("found an answer without {what}, expected one of the Hub"));
        error.hint("check HF_ENDPOINT and the proxy").at(url)
    };
    let commit = answer.header("x-repo-commit").ok_or_else(|| without("X-Repo-Commit"))?;
    inside(commit).map_err(|e| e.at(url))?;
    let etag = answer.header("x-linked-etag").or_else(|| answer.header("etag")).ok_or_else(|| without("ETag"))?;
    let etag = etag.trim().trim_start_matches("W/").trim_matches('"').to_string();
    let size = answer.header("x-linked-size").or_else(|| answer.header("content-length"));
    // The contents of large files are called by their SHA-256; those of small ones by what git calls them.
    let hash = etag.len() == 64 && etag.bytes().all(|byte| byte.is_ascii_hexdigit());
    Ok(Remote {
        name: name.to_string(),
        url: url.to_string(),
        commit: commit.to_string(),
        sha256: hash.then(|| etag.to_ascii_lowercase()),
        etag,
        size: size.and_then(|size| size.trim().parse().ok()),
    })
}
