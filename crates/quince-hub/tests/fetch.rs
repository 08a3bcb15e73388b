//! Downloads from a server that does what servers do: well, or badly in every way that we know.

mod server;

use quince_hub::{Event, ModelId, Network, Options, fetch};
use server::{COMMIT, Hub, Reply, Request, Server, contents};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tempfile::TempDir;

const CONFIG: &[u8] = br#"{"model_type": "llama"}"#;

fn weights() -> Vec<u8> {
    (0..300_000u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn model() -> Hub {
    let weights = weights();
    Hub::default()
        .small("config.json", CONFIG)
        .small("tokenizer.json", b"{}")
        .small("1_Pooling/config.json", b"{\"a\": 1}")
        .small("training_args.bin", b"pickle")
        .large("model.safetensors", &weights, &sha256(&weights))
}

/// A Hub and its store of large files; what is asked of each is seen.
struct World {
    hub: Server,
    store: Server,
    cache: TempDir,
}

impl World {
    /// Answers that a test makes; `None` leaves it to the Hub.
    fn new(hub: Hub, other: impl Fn(&Request, &Hub) -> Option<Reply> + Send + Sync + 'static) -> World {
        let other = Arc::new(other);
        let (stored, others) = (hub.clone(), other.clone());
        let store = Server::start(move |request| others(request, &stored).unwrap_or_else(|| stored.store(request)));
        let hub = Hub { store: store.address.clone(), ..hub };
        let hub = Server::start(move |request| other(request, &hub).unwrap_or_else(|| hub.answer(request)));
        World { hub, store, cache: tempfile::tempdir().unwrap() }
    }

    fn good() -> World {
        World::new(model(), |_, _| None)
    }

    /// One in which the download of the weights is answered by the test, by the number of the attempt.
    fn weights_answered(reply: impl Fn(usize, &Request) -> Option<Reply> + Send + Sync + 'static) -> World {
        let attempts = AtomicUsize::new(0);
        World::new(model(), move |request, _| {
            if request.method != "GET" || !request.path.starts_with("/store/") {
                return None;
            }
            reply(attempts.fetch_add(1, Ordering::SeqCst), request)
        })
    }

    fn options(&self) -> Options {
        Options {
            endpoint: self.hub.address.clone(),
            cache: self.cache.path().to_path_buf(),
            token: Some("hf_secret".to_string()),
            revision: "main".to_string(),
            network: Network::Online,
            timeout: Duration::from_secs(5),
            backoff: Duration::from_millis(5),
        }
    }

    fn fetch(&self) -> Result<PathBuf, String> {
        self.fetch_with("tests/model", &self.options())
    }

    fn fetch_with(&self, id: &str, options: &Options) -> Result<PathBuf, String> {
        fetch(&ModelId::parse(id).unwrap(), options, &|_| Ok(())).map_err(|e| e.to_string())
    }

    fn repository(&self) -> PathBuf {
        self.cache.path().join("models--tests--model")
    }

    fn blob(&self) -> PathBuf {
        self.repository().join("blobs").join(sha256(&weights()))
    }

    /// The ranges that were asked of the store.
    fn ranges(&self) -> Vec<Option<String>> {
        self.store.seen("GET", "/store/").iter().map(|request| request.headers.get("range").cloned()).collect()
    }

    /// That the model comes whole, whatever the server does first.
    fn comes_whole(&self) {
        let path = self.fetch().unwrap();
        assert!(fs::read(path.join("model.safetensors")).unwrap() == weights());
        assert_eq!(self.unfinished(), Vec::<PathBuf>::new());
    }

    /// What is left of downloads that were not finished.
    fn unfinished(&self) -> Vec<PathBuf> {
        let blobs = fs::read_dir(self.repository().join("blobs")).unwrap().map(|entry| entry.unwrap().path());
        blobs.filter(|path| path.extension().is_some_and(|ending| ending == "incomplete")).collect()
    }

    /// That it fails, and with what; nothing has the name of a whole file.
    fn fails(&self) -> String {
        let error = self.fetch().unwrap_err();
        assert!(!self.blob().exists());
        error
    }
}

#[test]
fn a_model_comes_into_the_layout_of_huggingface_hub() {
    let world = World::good();
    let path = world.fetch().unwrap();
    assert_eq!(path, world.repository().join("snapshots").join(COMMIT));
    assert_eq!(fs::read_to_string(world.repository().join("refs/main")).unwrap(), COMMIT);
    assert_eq!(fs::read(path.join("config.json")).unwrap(), CONFIG);
    assert!(fs::read(world.blob()).unwrap() == weights());
    #[cfg(unix)]
    {
        let link = fs::read_link(path.join("model.safetensors")).unwrap();
        assert_eq!(link, Path::new("../../blobs").join(sha256(&weights())));
    }
    assert!(path.join("1_Pooling/config.json").exists() && !path.join("training_args.bin").exists());
    // The token is for the Hub, not for where it sends us.
    let asked = world.hub.seen("GET", "/");
    assert!(!asked.is_empty() && asked.iter().all(|request| request.headers["authorization"] == "Bearer hf_secret"));
    let sent_on = world.store.seen("GET", "/");
    assert!(!sent_on.is_empty() && sent_on.iter().all(|request| !request.headers.contains_key("authorization")));
    // What is here is not asked for again.
    world.hub.forget();
    world.store.forget();
    assert_eq!(world.fetch().unwrap(), path);
    assert_eq!((world.hub.seen("", "").len(), world.hub.seen("GET", "/").len()), (0, 1));
    let commit = Options { revision: COMMIT.to_string(), ..world.options() };
    world.hub.forget();
    world.fetch_with("tests/model", &commit).unwrap();
    assert_eq!(world.hub.seen("GET", "").len(), 0);
}

#[test]
fn what_came_before_the_connection_ended_is_kept() {
    let world = World::weights_answered(|attempt, request| {
        (attempt < 3).then(|| Reply { cut: Some(100_000), ..contents(&weights(), request) })
    });
    world.comes_whole();
    let ranges = [None, Some("bytes=100000-"), Some("bytes=200000-"), Some("bytes=300000-")];
    assert_eq!(world.ranges(), ranges.map(|range| range.map(str::to_string)));
}

#[test]
fn a_download_of_an_earlier_process_goes_on() {
    let world = World::good();
    fs::create_dir_all(world.repository().join("blobs")).unwrap();
    fs::write(world.blob().with_extension("incomplete"), &weights()[..1_000_000]).unwrap();
    world.comes_whole();
    assert_eq!(world.ranges(), [Some("bytes=1000000-".to_string())]);
    // A small file is asked for by its etag, and begins anew if it has become another.
    let world = World::good();
    let etag = &model().files["config.json"].etag;
    let partial = world.repository().join("blobs").join(format!("{etag}.incomplete"));
    fs::create_dir_all(partial.parent().unwrap()).unwrap();
    fs::write(&partial, &CONFIG[..5]).unwrap();
    assert_eq!(fs::read(world.fetch().unwrap().join("config.json")).unwrap(), CONFIG);
    let asked = world.hub.seen("GET", &format!("/{COMMIT}/config.json"));
    let headers: Vec<&str> =
        asked.iter().flat_map(|r| [&r.headers["range"], &r.headers["if-range"]]).map(String::as_str).collect();
    assert_eq!(headers, ["bytes=5-", &format!("\"{etag}\"")]);
}

#[test]
fn a_server_that_does_not_do_as_asked_is_asked_for_all() {
    let partial = |world: &World, bytes: &[u8]| {
        fs::create_dir_all(world.repository().join("blobs")).unwrap();
        fs::write(world.blob().with_extension("incomplete"), bytes).unwrap();
    };
    // It ignores the range.
    let world = World::weights_answered(|_, _| Some(Reply { body: weights(), ..Reply::status(200) }));
    partial(&world, &weights()[..1000]);
    world.comes_whole();
    // It gives another part.
    let world = World::weights_answered(|attempt, request| {
        let other = contents(&weights(), request).with("Content-Range", "bytes 7-8/9");
        (attempt == 0).then_some(other)
    });
    partial(&world, &weights()[..1000]);
    world.comes_whole();
    assert_eq!(world.ranges(), [Some("bytes=1000-".to_string()), None]);
    // It has no such range.
    let world = World::weights_answered(|attempt, _| (attempt == 0).then(|| Reply::status(416)));
    partial(&world, &weights()[..1000]);
    world.comes_whole();
    // What was kept is too long, or not of this file.
    let world = World::good();
    partial(&world, &[weights(), weights()].concat());
    world.comes_whole();
    let world = World::good();
    partial(&world, &[7; 1000]);
    world.comes_whole();
    assert_eq!(world.ranges(), [Some("bytes=1000-".to_string()), None]);
}

#[test]
fn contents_are_what_was_announced_or_nothing() {
    let other = || {
        let mut bytes = weights();
        bytes[1000] ^= 1;
        bytes
    };
    // A bit is another once, and then always.
    let once = World::weights_answered(move |attempt, request| (attempt == 0).then(|| contents(&other(), request)));
    once.comes_whole();
    let always = World::weights_answered(move |_, request| Some(contents(&other(), request)));
    let error = always.fails();
    assert!(error.contains("tests/model: model.safetensors: found a file with the SHA-256"), "{error}");
    // Another length, more than was said, less than was said.
    let longer = World::weights_answered(|_, request| Some(contents(&[weights(), weights()].concat(), request)));
    assert!(longer.fails().contains("found an answer of 2400000 bytes, expected the file of 1200000"));
    let page = World::weights_answered(|_, _| Some(Reply { body: b"<html>".to_vec(), ..Reply::status(200) }));
    assert!(page.fails().contains("something else than the Hub may have answered"));
    let chunked = World::weights_answered(|_, _| {
        let mut body = format!("{:x}\r\n", 2 * weights().len()).into_bytes();
        body.extend([weights(), weights()].concat());
        body.extend(b"\r\n0\r\n\r\n");
        Some(Reply { body, ..Reply::status(200) }.with("Transfer-Encoding", "chunked"))
    });
    assert!(chunked.fails().contains("found more than the 1200000 bytes"));
    let empty = World::weights_answered(|_, _| Some(Reply::status(200).with("Content-Length", 1_200_000)));
    let error = empty.fails();
    assert!(error.contains("this was attempt 5"), "{error}");
}

#[test]
fn trouble_that_passes_is_waited_for() {
    for status in [500, 502, 503, 504, 408] {
        World::weights_answered(move |attempt, _| (attempt < 2).then(|| Reply::status(status))).comes_whole();
    }
    World::weights_answered(|attempt, _| (attempt < 4).then(|| Reply::status(429).with("Retry-After", 0)))
        .comes_whole();
    let error = World::weights_answered(|_, _| Some(Reply::status(429).with("Retry-After", 3600))).fails();
    assert!(error.contains("wants fewer requests") && error.contains("try again in 3600 s"), "{error}");
    let error = World::weights_answered(|_, _| Some(Reply::status(503))).fails();
    assert!(error.contains("found status 503") && error.contains("this was attempt 5"), "{error}");
    // The list and the description of a file are asked for as patiently.
    for path in ["/api/", "/config.json"] {
        let attempts = AtomicUsize::new(0);
        World::new(model(), move |request, _| {
            let fails = request.path.contains(path) && attempts.fetch_add(1, Ordering::SeqCst) < 2;
            fails.then(|| Reply::status(502))
        })
        .comes_whole();
    }
}

#[test]
fn a_server_that_is_silent_is_left() {
    let world = World::weights_answered(|attempt, _| {
        (attempt == 0).then(|| Reply { delay: Duration::from_secs(3), ..Reply::status(200) })
    });
    let options = Options { timeout: Duration::from_millis(300), ..world.options() };
    let path = world.fetch_with("tests/model", &options).unwrap();
    assert!(fs::read(path.join("model.safetensors")).unwrap() == weights());
    assert_eq!(world.ranges().len(), 2);
}

#[test]
fn redirects_are_followed_but_not_forever() {
    // A repository that was renamed.
    let renamed = World::new(model(), |request, hub| match request.path.strip_prefix("/tests/model/resolve/") {
        Some(rest) => Some(Reply::status(307).with("Location", format!("/new/name/resolve/{rest}"))),
        None if request.path.starts_with("/new/name/") => {
            let path = request.path.replace("/new/name/", "/tests/model/");
            Some(hub.answer(&Request { path, ..request.clone() }))
        }
        None => None,
    });
    renamed.comes_whole();
    assert!(!renamed.hub.seen("HEAD", "/new/name/").is_empty());
    let relative = World::weights_answered(|attempt, request| {
        let name = request.path.trim_start_matches("/store/");
        (attempt == 0).then(|| Reply::status(302).with("Location", name))
    });
    relative.comes_whole();
    let forever = World::weights_answered(|_, request| Some(Reply::status(302).with("Location", &request.path)));
    assert!(forever.fails().contains("found more than 10 redirects"));
    let elsewhere = World::weights_answered(|_, _| Some(Reply::status(302).with("Location", "file:///etc/passwd")));
    assert!(elsewhere.fails().contains("found a redirect to `file:///etc/passwd`"));
}

#[test]
fn refusals_say_what_to_do() {
    let refused = |status: u16, code: &'static str, path: &'static str| {
        World::new(model(), move |request, _| {
            request.path.contains(path).then(|| Reply::status(status).with("X-Error-Code", code))
        })
    };
    let gated = refused(403, "GatedRepo", "/model.safetensors");
    let error = gated.fails();
    assert!(error.contains("grants access one by one") && error.contains("with the account of HF_TOKEN"), "{error}");
    let anonymous = Options { token: None, ..gated.options() };
    let error = gated.fetch_with("tests/model", &anonymous).unwrap_err();
    assert!(
        error.contains(&format!("accept the licence at {}/tests/model, and set HF_TOKEN", gated.hub.address)),
        "{error}"
    );
    assert!(gated.hub.seen("HEAD", "").iter().any(|request| !request.headers.contains_key("authorization")));
    let error = refused(404, "RevisionNotFound", "/api/").fails();
    assert!(error.contains("tests/model: found no revision `main`"), "{error}");
    for (status, code) in [(401, ""), (401, "RepoNotFound"), (404, "RepoNotFound")] {
        let error = refused(status, code, "/api/").fails();
        assert!(error.contains("tests/model: found no such repository"), "{status} {code}: {error}");
    }
    let world = World::good();
    let error = world.fetch_with("tests/model/none.gguf", &world.options()).unwrap_err();
    assert!(error.contains("found no `none.gguf`"), "{error}");
    let error = world.fetch_with("tests/other", &world.options()).unwrap_err();
    assert!(error.contains("tests/other: found no such repository"), "{error}");
}

#[test]
fn a_server_that_refuses_head_is_asked_with_get() {
    for status in [403, 405, 501] {
        World::new(model(), move |request, _| (request.method == "HEAD").then(|| Reply::status(status))).comes_whole();
    }
}

#[test]
fn a_mirror_without_lists_is_asked_for_each_file() {
    let world = World::new(model(), |request, _| request.path.contains("/api/").then(|| Reply::status(404)));
    let path = world.fetch().unwrap();
    assert!(path.join("config.json").exists() && path.join("model.safetensors").exists());
    assert_eq!(fs::read_to_string(world.repository().join("refs/main")).unwrap(), COMMIT);
}

#[test]
fn without_a_network_the_cache_is_used() {
    let world = World::good();
    let path = world.fetch().unwrap();
    // Nobody listens there.
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let alone = Options { endpoint: format!("http://{dead}"), ..world.options() };
    let told = std::sync::Mutex::new(Vec::new());
    let watch = |event: Event| {
        told.lock().unwrap().push(format!("{event:?}"));
        Ok(())
    };
    let id = ModelId::parse("tests/model").unwrap();
    assert_eq!(fetch(&id, &alone, &watch).unwrap(), path);
    assert!(told.lock().unwrap().iter().any(|event| event.starts_with("Cached")));
    let empty = tempfile::tempdir().unwrap();
    let error = world.fetch_with("tests/model", &Options { cache: empty.path().into(), ..alone }).unwrap_err();
    assert!(error.contains("cannot reach it") && error.contains("check the network"), "{error}");
}

#[test]
fn offline_nothing_is_asked() {
    let world = World::good();
    let offline = Options { network: Network::Offline, ..world.options() };
    let error = world.fetch_with("tests/model", &offline).unwrap_err();
    assert!(error.contains("found no revision `main` in the cache") && error.contains("--offline"), "{error}");
    assert!(world.hub.seen("GET", "").is_empty());
    let path = world.fetch().unwrap();
    world.hub.forget();
    assert_eq!(world.fetch_with("tests/model", &offline).unwrap(), path);
    assert!(world.hub.seen("GET", "").is_empty() && world.hub.seen("HEAD", "").is_empty());
    fs::remove_file(world.blob()).unwrap();
    assert!(world.fetch_with("tests/model", &offline).unwrap_err().contains("that are no whole model"));
    world.comes_whole();
}

#[test]
fn the_index_says_which_weights_there_are() {
    let (one, two) = (b"one".to_vec(), b"two".to_vec());
    let index =
        br#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;
    let hub = Hub::default()
        .small("config.json", CONFIG)
        .small("model.safetensors.index.json", index)
        .large("model-00001-of-00002.safetensors", &one, &sha256(&one))
        .small("consolidated.safetensors", b"the same again");
    let whole = hub.clone().large("model-00002-of-00002.safetensors", &two, &sha256(&two));
    let world = World::new(whole, |_, _| None);
    let path = world.fetch().unwrap();
    assert!(path.join("model-00002-of-00002.safetensors").exists() && !path.join("consolidated.safetensors").exists());
    let error = World::new(hub, |_, _| None).fetch().unwrap_err();
    assert!(error.contains("found no `model-00002-of-00002.safetensors`"), "{error}");
    let hostile = Hub::default()
        .small("config.json", CONFIG)
        .small("model.safetensors.index.json", br#"{"weight_map": {"a": "../../../x.safetensors"}}"#);
    let error = World::new(hostile, |_, _| None).fetch().unwrap_err();
    assert!(error.contains("expected one inside the repository"), "{error}");
}

#[test]
fn gguf_files_are_taken_by_their_quantization() {
    let bytes = b"GGUF".to_vec();
    let hub = Hub::default().small("m-Q4_K_M.gguf", b"small").large("m-Q8_0.gguf", &bytes, &sha256(&bytes));
    let world = World::new(hub, |_, _| None);
    let path = world.fetch_with("tests/model:Q8_0", &world.options()).unwrap();
    assert_eq!((fs::read(&path).unwrap(), path.file_name().unwrap()), (bytes, "m-Q8_0.gguf".as_ref()));
    assert!(world.fetch().unwrap().ends_with("m-Q4_K_M.gguf"));
}

#[test]
fn names_of_strangers_lead_nowhere_else() {
    let hostile = World::new(model(), |request, _| {
        let body = format!("{{\"sha\": \"{COMMIT}\", \"siblings\": [{{\"rfilename\": \"../../config.json\"}}]}}");
        request.path.contains("/api/").then(|| Reply { body: body.into_bytes(), ..Reply::status(200) })
    });
    assert!(hostile.fails().contains("found the name `../../config.json`"));
    let hostile = World::new(model(), |request, hub| {
        request.path.ends_with("/config.json").then(|| hub.answer(request).with("ETag", "\"../../x\""))
    });
    assert!(hostile.fails().contains("found the etag `../../x`"));
}

#[test]
fn two_at_once_download_once() {
    let world = World::weights_answered(|_, request| {
        Some(Reply { delay: Duration::from_millis(300), ..contents(&weights(), request) })
    });
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| world.comes_whole());
        }
    });
    assert_eq!(world.ranges().len(), 1);
}

#[test]
fn whoever_watches_can_end_it() {
    let world = World::good();
    let id = ModelId::parse("tests/model").unwrap();
    let stop = |event: Event| match event {
        Event::Bytes { done, .. } if done > 500_000 => Err(quince_tensor::Error::new("interrupted")),
        _ => Ok(()),
    };
    assert_eq!(fetch(&id, &world.options(), &stop).unwrap_err().to_string(), "interrupted");
    let [partial] = &world.unfinished()[..] else { panic!("{:?}", world.unfinished()) };
    assert!(fs::metadata(partial).unwrap().len() > 500_000);
    world.comes_whole();
    assert!(world.ranges()[1].is_some());
}
