//! Runs the files of `tests/cli`: command lines with what they print.
//!
//! ```text
//! // A comment.
//! $ quince inspect models/tiny-llama
//! what it prints to stdout
//! ! what it prints to stderr
//! [exit 1]
//! ```
//!
//! Commands run in the root of the workspace; `$TMP` is an empty directory of the file's own. `> PATH` at the end of a
//! line takes stdout out of the comparison. Times and rates are printed as `_`. Besides `quince` there are the commands
//! of [`Session::own`]. `cargo xtask bless` rewrites what is expected.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

#[test]
fn command_lines_are_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap();
    let mut files: Vec<PathBuf> =
        fs::read_dir(root.join("tests/cli")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|ending| ending == "test"));
    files.sort();
    assert!(!files.is_empty());
    let only = std::env::var("QUINCE_TEST").unwrap_or_default();
    let mut failures = Vec::new();
    for path in files.iter().filter(|path| path.to_string_lossy().contains(&only)) {
        let expected = fs::read_to_string(path).unwrap();
        let found = Session::new(&root).run(&expected);
        if found != expected && std::env::var_os("QUINCE_BLESS").is_some() {
            fs::write(path, &found).unwrap();
        } else if found != expected {
            failures.push(format!("{}:\n{}", path.display(), difference(&expected, &found)));
        }
    }
    assert!(failures.is_empty(), "\n{}\nif that is right, run `cargo xtask bless`", failures.join("\n"));
}

/// One file being run.
struct Session {
    root: PathBuf,
    directory: tempfile::TempDir,
}

impl Session {
    fn new(root: &Path) -> Session {
        Session { root: root.to_path_buf(), directory: tempfile::tempdir().unwrap() }
    }

    /// The file with what its commands print now.
    fn run(&self, file: &str) -> String {
        let mut out = String::new();
        for line in file.lines() {
            if let Some(command) = line.strip_prefix("$ ") {
                out += &format!("{line}\n{}", self.line(command));
                out += "\n";
            } else if line.starts_with("//") {
                out += &format!("{line}\n");
            }
        }
        out.trim_end().to_string() + "\n"
    }

    fn line(&self, command: &str) -> String {
        let words: Vec<String> = words(command).into_iter().map(|word| word.replace("$TMP", &self.tmp())).collect();
        let (words, redirected) = match &words[..] {
            [words @ .., arrow, path] if arrow == ">" => (words, Some(self.root.join(path))),
            words => (words, None),
        };
        match words.first().map(String::as_str) {
            Some("quince") => self.quince(&words[1..], redirected),
            Some(name) => self.own(name, &words[1..]),
            None => String::new(),
        }
    }

    fn tmp(&self) -> String {
        self.directory.path().to_string_lossy().into_owned()
    }

    fn quince(&self, args: &[String], redirected: Option<PathBuf>) -> String {
        let output = Command::new(env!("CARGO_BIN_EXE_quince"))
            .args(args)
            .current_dir(&self.root)
            .env_remove("COLUMNS")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let mut text = String::new();
        match redirected {
            Some(path) => fs::write(path, &output.stdout).unwrap(),
            None => text += &self.shown(&output.stdout, ""),
        }
        text += &self.shown(&output.stderr, "! ");
        match output.status.code() {
            Some(0) => {}
            Some(code) => text += &format!("[exit {code}]\n"),
            None => text += "[killed]\n",
        }
        text
    }

    /// Output as it stands in a file: without the name of the directory, without times.
    fn shown(&self, bytes: &[u8], prefix: &str) -> String {
        let text = String::from_utf8_lossy(bytes).replace(&self.tmp(), "$TMP");
        text.lines().map(|line| format!("{prefix}{}", without_times(line)).trim_end().to_string() + "\n").collect()
    }

    /// What tests need besides `quince`, on every system.
    fn own(&self, name: &str, args: &[String]) -> String {
        let args: Vec<PathBuf> = args.iter().map(|arg| self.root.join(arg)).collect();
        match (name, &args[..]) {
            ("copy", [from, to]) => copy(from, to),
            ("cut", [file, length]) => {
                let length = length.file_name().unwrap().to_string_lossy().parse().unwrap();
                fs::OpenOptions::new().write(true).open(file).unwrap().set_len(length).unwrap();
            }
            ("replace", [file, from, to]) => {
                let word = |path: &PathBuf| path.strip_prefix(&self.root).unwrap().to_string_lossy().into_owned();
                let text = fs::read_to_string(file).unwrap();
                assert!(text.contains(&word(from)), "{} has no {}", file.display(), word(from));
                fs::write(file, text.replace(&word(from), &word(to))).unwrap();
            }
            ("remove", [path]) => match path.is_dir() {
                true => fs::remove_dir_all(path).unwrap(),
                false => fs::remove_file(path).unwrap(),
            },
            ("files", [directory]) => {
                return contents(directory).keys().map(|path| format!("{path}\n")).collect();
            }
            ("show", [file]) => return fs::read_to_string(file).unwrap(),
            ("same", [one, other]) => {
                let same = contents(one) == contents(other);
                return if same { "same\n" } else { "different\n" }.to_string();
            }
            _ => panic!("there is no command `{name}` with {} arguments", args.len()),
        }
        String::new()
    }
}

fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            copy(&entry.path(), &to.join(entry.file_name()));
        }
    } else {
        fs::copy(from, to).unwrap();
    }
}

/// The files below a directory with their bytes.
fn contents(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if entry.path().is_dir() {
            found.extend(contents(&entry.path()).into_iter().map(|(path, bytes)| (format!("{name}/{path}"), bytes)));
        } else {
            found.insert(name, fs::read(entry.path()).unwrap());
        }
    }
    found
}

/// Words of a line; double quotes keep spaces.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut quoted) = (vec![String::new()], false);
    for letter in line.chars() {
        match letter {
            '"' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            _ => words.last_mut().unwrap().push(letter),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// Numbers before a unit of time become `_`.
fn without_times(line: &str) -> String {
    let mut words: Vec<&str> = line.split(' ').collect();
    for i in 1..words.len() {
        let unit = words[i].trim_end_matches([',', ')', '\n']);
        if matches!(unit, "s" | "ms" | "tokens/s" | "lines/s") && words[i - 1].parse::<f64>().is_ok() {
            words[i - 1] = "_";
        }
    }
    words.join(" ")
}

/// The first lines that differ.
fn difference(expected: &str, found: &str) -> String {
    let (expected, found): (Vec<&str>, Vec<&str>) = (expected.lines().collect(), found.lines().collect());
    let same = expected.iter().zip(&found).take_while(|(a, b)| a == b).count();
    let part = |lines: &[&str], mark: &str| -> String {
        lines.iter().skip(same).take(12).map(|line| format!("{mark} {line}\n")).collect()
    };
    format!("from line {}\n{}{}", same + 1, part(&expected, "-"), part(&found, "+"))
}
