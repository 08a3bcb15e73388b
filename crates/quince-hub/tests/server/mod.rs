//! A server for tests that answers as the Hub and its store of large files do, or as badly as a test wants.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The commit that `main` means.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What was asked.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub headers: BTreeMap<String, String>,
}

/// What is answered.
#[derive(Clone, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// How many bytes of the body are sent before the connection is closed; all if none.
    pub cut: Option<usize>,
    /// How long it takes before anything is sent.
    pub delay: Duration,
}

impl Reply {
    pub fn status(status: u16) -> Reply {
        Reply { status, ..Reply::default() }
    }

    pub fn with(mut self, name: &str, value: impl ToString) -> Reply {
        self.headers.retain(|(other, _)| other != name);
        self.headers.push((name.to_string(), value.to_string()));
        self
    }
}

type Answer = dyn Fn(&Request) -> Reply + Send + Sync;

/// A server that runs as long as the process.
#[derive(Clone)]
pub struct Server {
    pub address: String,
    seen: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    pub fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (seen, answer): (Arc<Mutex<Vec<Request>>>, Arc<Answer>) = (Arc::default(), Arc::new(answer));
        let log = seen.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (log, answer) = (log.clone(), answer.clone());
                std::thread::spawn(move || drop(serve(stream, &log, &*answer)));
            }
        });
        Server { address, seen }
    }

    /// The requests with a method and this in their path.
    pub fn seen(&self, method: &str, path: &str) -> Vec<Request> {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|request| request.method == method && request.path.contains(path)).cloned().collect()
    }

    pub fn forget(&self) {
        self.seen.lock().unwrap().clear();
    }
}

fn serve(stream: TcpStream, log: &Mutex<Vec<Request>>, answer: &Answer) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace().map(str::to_string);
    let (Some(method), Some(path)) = (words.next(), words.next()) else { return Ok(()) };
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_string());
    }
    let request = Request { method, path, headers };
    log.lock().unwrap().push(request.clone());
    let reply = answer(&request);
    std::thread::sleep(reply.delay);
    let mut stream = stream;
    let mut head = format!("HTTP/1.1 {} Status\r\nConnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    if !reply.headers.iter().any(|(name, _)| name == "Content-Length" || name == "Transfer-Encoding") {
        head += &format!("Content-Length: {}\r\n", reply.body.len());
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    if request.method != "HEAD" {
        stream.write_all(&reply.body[..reply.cut.unwrap_or(reply.body.len())])?;
    }
    stream.flush()?;
    stream.shutdown(std::net::Shutdown::Write)?;
    // Until the other side has read everything.
    drop(reader.read(&mut [0]));
    Ok(())
}

/// A file of the Hub.
#[derive(Clone)]
pub struct Stored {
    pub bytes: Vec<u8>,
    /// The name of its contents: a SHA-256 for what lies in the store of large files.
    pub etag: String,
}

/// A repository `tests/model` as the Hub serves it.
#[derive(Clone, Default)]
pub struct Hub {
    pub files: BTreeMap<String, Stored>,
    /// The address of the store of large files.
    pub store: String,
}

impl Hub {
    /// Adds a small file.
    pub fn small(mut self, name: &str, bytes: &[u8]) -> Hub {
        let etag = format!("{:040x}", bytes.iter().fold(7u64, |sum, &b| sum.wrapping_mul(31).wrapping_add(b.into())));
        self.files.insert(name.to_string(), Stored { bytes: bytes.to_vec(), etag });
        self
    }

    /// Adds a large file by its hash.
    pub fn large(mut self, name: &str, bytes: &[u8], sha256: &str) -> Hub {
        self.files.insert(name.to_string(), Stored { bytes: bytes.to_vec(), etag: sha256.to_string() });
        self
    }

    /// As the Hub answers.
    pub fn answer(&self, request: &Request) -> Reply {
        if request.path == "/api/models/tests/model/revision/main" {
            let names: Vec<String> = self.files.keys().map(|name| format!("{{\"rfilename\": \"{name}\"}}")).collect();
            let body = format!("{{\"sha\": \"{COMMIT}\", \"siblings\": [{}]}}", names.join(","));
            return Reply { body: body.into_bytes(), ..Reply::status(200) };
        }
        let of = |revision: &str| request.path.strip_prefix(&format!("/tests/model/resolve/{revision}/"));
        let Some(name) = of("main").or_else(|| of(COMMIT)) else {
            return Reply::status(401).with("X-Error-Message", "Invalid username or password.");
        };
        let Some(file) = self.files.get(name) else {
            return Reply::status(404).with("X-Error-Code", "EntryNotFound").with("X-Repo-Commit", COMMIT);
        };
        if file.etag.len() < 64 {
            let reply = contents(&file.bytes, request).with("ETag", format!("\"{}\"", file.etag));
            return reply.with("X-Repo-Commit", COMMIT);
        }
        Reply::status(302)
            .with("Location", format!("{}/store/{}?signature=1", self.store, file.etag))
            .with("X-Linked-Etag", format!("\"{}\"", file.etag))
            .with("X-Linked-Size", file.bytes.len())
            .with("X-Repo-Commit", COMMIT)
    }

    /// As the store of large files answers.
    pub fn store(&self, request: &Request) -> Reply {
        let name = request.path.trim_start_matches("/store/").trim_end_matches("?signature=1");
        match self.files.values().find(|file| file.etag == name) {
            Some(file) => contents(&file.bytes, request).with("ETag", "\"another\""),
            None => Reply::status(404),
        }
    }
}

/// Contents, or the part that is asked for.
pub fn contents(bytes: &[u8], request: &Request) -> Reply {
    let range = request.headers.get("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'));
    let Some(start) = range.and_then(|start| start.parse::<usize>().ok()) else {
        return Reply { body: bytes.to_vec(), ..Reply::status(200) }.with("Content-Length", bytes.len());
    };
    if start >= bytes.len() {
        return Reply::status(416).with("Content-Range", format!("bytes */{}", bytes.len()));
    }
    Reply { body: bytes[start..].to_vec(), ..Reply::status(206) }
        .with("Content-Range", format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len()))
        .with("Content-Length", bytes.len() - start)
}
