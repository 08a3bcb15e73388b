//! Requests: redirects that keep the token at home, attempts with pauses between them, what is worth another attempt.

use crate::environment::Options;
use crate::fetch::{Event, Watch};
use crate::refusal::{self, Asked};
use crate::url::{join, origin};
use quince_tensor::{Error, Result};
use std::env;
use std::fs;
use std::io::{self, Read};
use std::time::Duration;
use ureq::http::{HeaderMap, Method, Request, Response};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

/// How often a request is sent that brings nothing.
const ATTEMPTS: u32 = 5;
/// How often a request is sent on.
const MAX_REDIRECTS: usize = 10;
/// The longest pause that a server may ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(120);
/// Variables that name certificates to trust, for networks that put their own in between.
const CERTIFICATES: &[&str] = &["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"];

/// Who asks the Hub.
pub(crate) struct Client<'a> {
    agent: Agent,
    options: &'a Options,
    watch: Watch<'a>,
}

/// Why a request failed, and whether to send it again.
pub(crate) enum Fault {
    /// Another attempt may do.
    Again {
        /// What is said if no other attempt is made.
        error: Error,
        /// The pause that the server asks for.
        pause: Option<Duration>,
        /// Whether something came, so that attempts are counted anew.
        progress: Progress,
    },
    /// Nobody answers at all.
    Unreachable(Error),
    /// It will not become better.
    Final(Error),
}

/// Whether a request brought something.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    Made,
    None,
}

/// Which redirects are followed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Follow {
    /// All.
    ToContent,
    /// Those before the answer that says what the file is, which is itself a redirect for large files.
    ToDescription,
}

/// What was answered.
pub(crate) struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Body,
}

impl Answer {
    /// The text of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        Fault::Final(error)
    }
}

impl Fault {
    /// That it may be tried again, after the usual pause.
    pub fn again(error: Error, progress: Progress) -> Fault {
        Fault::Again { error, pause: None, progress }
    }

    fn place(self, place: &str) -> Fault {
        match self {
            Fault::Again { error, pause, progress } => Fault::Again { error: error.at(place), pause, progress },
            Fault::Unreachable(error) => Fault::Unreachable(error.at(place)),
            Fault::Final(error) => Fault::Final(error.at(place)),
        }
    }
}

impl<'a> Client<'a> {
    pub fn new(options: &'a Options, watch: Watch<'a>) -> Result<Client<'a>> {
        if origin(&options.endpoint).is_none() {
            let message =
                format!("found `{}`, expected an address that begins with http:// or https://", options.endpoint);
            return Err(Error::new(message).at("HF_ENDPOINT"));
        }
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("quince/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(options.timeout))
            .timeout_connect(Some(options.timeout))
            .timeout_recv_response(Some(options.timeout))
            .timeout_per_read(Some(options.timeout))
            .tls_config(TlsConfig::builder().root_certs(certificates(options)?).build());
        Ok(Client { agent: config.build().into(), options, watch })
    }

    /// The address that everything is asked of.
    pub fn endpoint(&self) -> &str {
        &self.options.endpoint
    }

    /// Says what happens.
    ///
    /// # Errors
    /// When it is to end.
    pub fn tell(&self, event: Event) -> Result<()> {
        (self.watch)(event)
    }

    /// Sends one request, and follows where it is sent.
    pub fn send(
        &self,
        method: &Method,
        url: &str,
        headers: &[(&str, String)],
        follow: Follow,
    ) -> Result<Answer, Fault> {
        let mut url = url.to_string();
        for _ in 0..=MAX_REDIRECTS {
            let answer = self.one(method, &url, headers).map_err(|fault| fault.place(&url))?;
            let described = ["x-linked-etag", "x-repo-commit"].iter().all(|name| answer.headers.contains_key(*name));
            let is_redirect = matches!(answer.status, 301 | 302 | 303 | 307 | 308);
            if !is_redirect || (described && follow == Follow::ToDescription) {
                return Ok(answer);
            }
            let location = answer.header("location").unwrap_or_default();
            let next = join(&url, location).filter(|next| next.starts_with("https:") || !url.starts_with("https:"));
            let Some(next) = next else {
                let message = format!("found a redirect to `{location}`, expected one to an address as safe as this");
                return Err(Fault::Final(Error::new(message).at(url)));
            };
            url = next;
        }
        let message = format!("found more than {MAX_REDIRECTS} redirects, expected an answer");
        Err(Fault::Final(Error::new(message).hint("check HF_ENDPOINT and the proxy").at(url)))
    }

    fn one(&self, method: &Method, url: &str, headers: &[(&str, String)]) -> Result<Answer, Fault> {
        let mut request = Request::builder().method(method).uri(url).header("accept-encoding", "identity");
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        // Wherever else a redirect leads, the token is not for them.
        let at_home = origin(url) == origin(&self.options.endpoint);
        if let Some(token) = self.options.token.as_ref().filter(|_| at_home) {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request = request.body(()).map_err(|e| Error::new(format!("cannot ask for it: {e}")))?;
        let (parts, body) = self.agent.run(request).map(Response::into_parts).map_err(fault)?;
        Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, body })
    }

    /// The answer, if it is one that was hoped for.
    pub fn hoped_for(&self, answer: Answer, asked: &Asked) -> Result<Answer, Fault> {
        if matches!(answer.status, 200..=399) {
            return Ok(answer);
        }
        let error = refusal::explained(&answer, asked, self.options);
        match answer.status {
            408 | 425 | 429 | 500..=599 => {
                let seconds = answer.header("retry-after").and_then(|value| value.trim().parse().ok());
                Err(Fault::Again { error, pause: seconds.map(Duration::from_secs), progress: Progress::None })
            }
            _ => Err(Fault::Final(error)),
        }
    }

    /// The text of an answer of at most `limit` bytes.
    pub fn text(&self, answer: Answer, limit: u64) -> Result<String, Fault> {
        let mut text = String::new();
        let read = answer.body.into_reader().take(limit).read_to_string(&mut text).map_err(|e| broken(&e))?;
        if read as u64 == limit {
            return Err(Fault::Final(Error::new(format!("found {limit} bytes or more, expected a list of files"))));
        }
        Ok(text)
    }

    /// Attempts something until it succeeds, with pauses that grow; gives up when nothing comes of it.
    ///
    /// # Errors
    /// The fault of the last attempt.
    pub fn patiently<T>(&self, mut attempt: impl FnMut() -> Result<T, Fault>) -> Result<T, Fault> {
        let mut in_vain = 0;
        loop {
            let (error, pause, progress) = match attempt() {
                Err(Fault::Again { error, pause, progress }) => (error, pause, progress),
                other => return other,
            };
            in_vain = if progress == Progress::Made { 1 } else { in_vain + 1 };
            let pause = pause.unwrap_or(self.options.backoff * (1 << (in_vain - 1)));
            if in_vain == ATTEMPTS {
                return Err(Fault::Final(
                    error.hint(format_args!("this was attempt {ATTEMPTS}; what came is kept for the next")),
                ));
            }
            if pause > LONGEST_PAUSE {
                return Err(Fault::Final(error.hint(format_args!("try again in {} s", pause.as_secs()))));
            }
            self.tell(Event::Retry { reason: &error, pause })?;
            std::thread::sleep(pause);
        }
    }
}

/// A connection that ended while something was read.
pub(crate) fn broken(error: &io::Error) -> Fault {
    Fault::again(Error::new(format!("the connection ended: {error}")), Progress::None)
}

/// What failed before there was an answer.
fn fault(error: ureq::Error) -> Fault {
    let refused = match &error {
        ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => true,
        ureq::Error::Io(error) => matches!(
            error.kind(),
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable
        ),
        _ => false,
    };
    let found = Error::new(format!("cannot reach it: {error}"));
    match error {
        _ if refused => Fault::Unreachable(found.hint("check the network, HF_ENDPOINT and the proxy")),
        ureq::Error::Io(_) | ureq::Error::Timeout(_) | ureq::Error::Protocol(_) => Fault::again(found, Progress::None),
        ureq::Error::Rustls(_) | ureq::Error::Tls(_) => {
            Fault::Final(found.hint("behind a proxy with its own certificates, name their file in SSL_CERT_FILE"))
        }
        _ => Fault::Final(found),
    }
}

/// The certificates that are trusted: Mozilla's, or those of a file that the environment names.
fn certificates(options: &Options) -> Result<RootCerts> {
    // A Hub of one's own without TLS needs none.
    let safe = options.endpoint.starts_with("https:");
    let named = CERTIFICATES
        .iter()
        .filter(|_| safe)
        .find_map(|name| Some((name, env::var_os(name).filter(|path| !path.is_empty())?)));
    let Some((name, path)) = named else { return Ok(RootCerts::WebPki) };
    // REQUESTS_CA_BUNDLE may be a directory, which only OpenSSL understands.
    let pem = match fs::read(&path) {
        Ok(pem) => pem,
        Err(_) if fs::metadata(&path).is_ok_and(|found| found.is_dir()) => return Ok(RootCerts::WebPki),
        Err(error) => {
            let place = path.to_string_lossy();
            return Err(Error::new(format!("cannot read the certificates: {error}")).at(place).at(name));
        }
    };
    let found: Vec<_> = parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    Ok(RootCerts::new_with_certs(&found))
}
