//! What the Hub's refusals mean, and what to do about them.

use crate::environment::Options;
use crate::http::Answer;
use quince_tensor::Error;

/// What was asked for.
pub(crate) struct Asked<'a> {
    pub repository: &'a str,
    pub revision: &'a str,
    /// The file; none when the repository itself was asked about.
    pub file: Option<&'a str>,
}

/// The error that a status means. The Hub says more in `X-Error-Code` and `X-Error-Message`.
pub(crate) fn explained(answer: &Answer, asked: &Asked, options: &Options) -> Error {
    let (code, said) = (answer.header("x-error-code").unwrap_or(""), answer.header("x-error-message").unwrap_or(""));
    let page = format!("{}/{}", options.endpoint, asked.repository);
    let error = match (answer.status, code) {
        (_, "GatedRepo") => gated(&page, options),
        (401 | 403, _) if said.contains("Invalid credentials") => {
            Error::new("found a token that the Hub does not know")
                .hint("make a new one at huggingface.co/settings/tokens, and set HF_TOKEN")
        }
        (_, "RevisionNotFound") => {
            let message = format!("found no revision `{}`", asked.revision);
            Error::new(message).hint("branches, tags and commits are listed under Files and versions of its page")
        }
        (404, _) if code == "EntryNotFound" || asked.file.is_some() => {
            let message = format!("found no such file at revision `{}`", asked.revision);
            Error::new(message).hint(format_args!("its files are at {page}/tree/{}", asked.revision))
        }
        // The Hub does not tell strangers whether a repository exists.
        (401 | 404, _) => unknown(options),
        (403, _) => {
            let error = Error::new(format!("found that access is forbidden{}", quoted(said)));
            error.hint("the token of HF_TOKEN needs the right to read this repository")
        }
        (429, _) => Error::new("found that the Hub wants fewer requests")
            .hint("wait some minutes; it allows more with HF_TOKEN"),
        (status, _) => Error::new(format!("found status {status}{}, expected 200", quoted(said))),
    };
    match asked.file {
        Some(file) => error.at(file).at(asked.repository),
        None => error.at(asked.repository),
    }
}

fn gated(page: &str, options: &Options) -> Error {
    let error = Error::new("found that its owner grants access one by one, and has not granted it");
    match options.token {
        Some(_) => error.hint(format_args!("accept the licence at {page} with the account of HF_TOKEN")),
        None => error.hint(format_args!("accept the licence at {page}, and set HF_TOKEN to a token of that account")),
    }
}

fn unknown(options: &Options) -> Error {
    let error = Error::new("found no such repository on the Hub, and no such path here");
    match options.token {
        Some(_) => error.hint("check its spelling, and that the account of HF_TOKEN may read it"),
        None => error.hint("check its spelling; a private repository needs HF_TOKEN"),
    }
}

/// What a server said, short and on one line.
fn quoted(said: &str) -> String {
    let said: String = said.chars().filter(|c| !c.is_control()).take(200).collect();
    if said.is_empty() { String::new() } else { format!(" ({said})") }
}
