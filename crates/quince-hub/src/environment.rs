//! Where the Hub and its cache are, and who asks: the variables that huggingface_hub goes by.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How to ask the Hub, and where to keep what it gives.
#[derive(Clone, Debug)]
pub struct Options {
    /// The address of the Hub, without a slash at its end.
    pub endpoint: String,
    /// The directory that has `models--organisation--name` in it.
    pub cache: PathBuf,
    /// What shows who asks; it is sent to the endpoint and to nobody else.
    pub token: Option<String>,
    /// A branch, a tag or a commit.
    pub revision: String,
    /// Whether the network may be used.
    pub network: Network,
    /// How long nothing may come before a request is given up.
    pub timeout: Duration,
    /// How long to wait before the second attempt; twice as long before the third, and so on.
    pub backoff: Duration,
}

/// Whether the network may be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Network {
    /// It is asked.
    Online,
    /// Only what the cache has is used.
    Offline,
}

impl Options {
    /// As the environment says: `HF_ENDPOINT`, `HF_HUB_CACHE`, `HF_HOME`, `HF_TOKEN`, `HF_TOKEN_PATH`,
    /// `HF_HUB_OFFLINE` and `HF_HUB_DOWNLOAD_TIMEOUT`, and their older names.
    pub fn from_environment() -> Options {
        Options::from(&|name| env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn from(variable: &dyn Fn(&str) -> Option<String>) -> Options {
        let user = variable("HOME").or_else(|| variable("USERPROFILE")).map(PathBuf::from).unwrap_or_default();
        let path = |name: &str| variable(name).map(|value| expanded(&value, &user));
        let caches = path("XDG_CACHE_HOME").unwrap_or_else(|| user.join(".cache"));
        let home = path("HF_HOME").unwrap_or_else(|| caches.join("huggingface"));
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE")).unwrap_or_else(|| home.join("hub"));
        let token_file = path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
        let token = variable("HF_TOKEN").or_else(|| variable("HUGGING_FACE_HUB_TOKEN"));
        let token = token.or_else(|| fs::read_to_string(token_file).ok());
        // A token with anything else in it could not stand in a header.
        let token = token.map(|token| token.trim().to_string()).filter(|token| !token.is_empty());
        let offline = ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"].iter().any(|name| is_true(variable(name)));
        let seconds = variable("HF_HUB_DOWNLOAD_TIMEOUT").and_then(|value| value.parse().ok()).filter(|s| *s > 0);
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_string());
        Options {
            endpoint: endpoint.trim_end_matches('/').to_string(),
            cache,
            token: token.filter(|token| token.bytes().all(|byte| byte.is_ascii_graphic())),
            revision: "main".to_string(),
            network: if offline { Network::Offline } else { Network::Online },
            timeout: Duration::from_secs(seconds.unwrap_or(30)),
            backoff: Duration::from_millis(500),
        }
    }
}

/// A path that begins with `~`, which a shell leaves in `A=~/b` only between quotes.
fn expanded(value: &str, user: &Path) -> PathBuf {
    match value.strip_prefix("~/") {
        Some(rest) => user.join(rest),
        None => PathBuf::from(value),
    }
}

fn is_true(value: Option<String>) -> bool {
    value.is_some_and(|value| ["1", "ON", "YES", "TRUE"].contains(&value.to_ascii_uppercase().as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(variables: &[(&str, &str)]) -> Options {
        Options::from(&|name| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| value.to_string()))
    }

    /// The order is that of `huggingface_hub/constants.py`.
    #[test]
    fn the_cache_is_where_huggingface_hub_has_it() {
        let cache = |variables: &[(&str, &str)]| {
            let all = [&[("HOME", "/h")], variables].concat();
            with(&all).cache.to_string_lossy().into_owned()
        };
        assert_eq!(cache(&[]), "/h/.cache/huggingface/hub");
        assert_eq!(cache(&[("XDG_CACHE_HOME", "/x")]), "/x/huggingface/hub");
        assert_eq!(cache(&[("XDG_CACHE_HOME", "/x"), ("HF_HOME", "~/y")]), "/h/y/hub");
        assert_eq!(cache(&[("HF_HOME", "/y"), ("HUGGINGFACE_HUB_CACHE", "/old")]), "/old");
        assert_eq!(cache(&[("HF_HUB_CACHE", "/z"), ("HUGGINGFACE_HUB_CACHE", "/old")]), "/z");
    }

    #[test]
    fn a_token_comes_from_a_variable_or_a_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        let path = path.to_str().unwrap();
        assert_eq!(with(&[("HF_TOKEN_PATH", path)]).token, None);
        fs::write(path, "hf_file\n").unwrap();
        assert_eq!(with(&[("HF_TOKEN_PATH", path)]).token.as_deref(), Some("hf_file"));
        assert_eq!(with(&[("HF_HOME", directory.path().to_str().unwrap())]).token.as_deref(), Some("hf_file"));
        assert_eq!(with(&[("HF_TOKEN_PATH", path), ("HF_TOKEN", "hf_env")]).token.as_deref(), Some("hf_env"));
        assert_eq!(with(&[("HF_TOKEN", "a\nInjected: b")]).token, None);
    }

    #[test]
    fn only_words_of_yes_are_offline() {
        for (value, network) in [("1", Network::Offline), ("true", Network::Offline), ("0", Network::Online)] {
            assert_eq!(with(&[("HF_HUB_OFFLINE", value)]).network, network);
        }
        assert_eq!(with(&[("HF_ENDPOINT", "http://127.0.0.1:1/")]).endpoint, "http://127.0.0.1:1");
    }
}
