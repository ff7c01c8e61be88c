//! The house: what the core may depend on, and that every import points down.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// All that the core may depend on.
const CORE: [&str; 5] = ["arc-swap", "fastrand", "siphasher", "thiserror", "xxhash-rust"];

/// The rooms, each above those it may import from. Rooms on one line do not import each other.
const FLOORS: [&[&str]; 7] = [
    &["cli"],
    &["agent"],
    &["config"],
    &["api", "discovery", "probe"],
    &["duration", "http_client", "telemetry"],
    &["metrics"],
    &["balancer"],
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The direct dependencies of the core, as cargo sees them.
fn core_dependencies(manifest: &Path) -> Vec<String> {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--no-default-features",
            "-e",
            "normal",
            "--depth",
            "1",
            "--prefix",
            "none",
            "--offline",
        ])
        .args(["--format", "{lib}", "--manifest-path"])
        .arg(manifest)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let mut crates: Vec<String> = text
        .lines()
        .skip(1)
        .filter(|line| !line.is_empty())
        .map(|line| line.replace('_', "-"))
        .collect();
    crates.sort();
    crates
}

/// Every `crate::<room>` path that does not point down, as `file: room -> room`.
fn imports_that_point_up(source: &Path) -> Vec<String> {
    let floor = |room: &str| FLOORS.iter().position(|rooms| rooms.contains(&room));
    let mut wrong = Vec::new();
    for file in rust_files(source) {
        let relative = file.strip_prefix(source).unwrap();
        let own = relative
            .components()
            .next()
            .unwrap()
            .as_os_str()
            .to_str()
            .unwrap()
            .trim_end_matches(".rs")
            .to_owned();
        if own == "lib" || own == "main" {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        for room in rooms_named(&text) {
            let points_down = match (floor(&own), floor(&room)) {
                (Some(here), Some(there)) => room == own || there > here,
                _ => false,
            };
            if !points_down {
                wrong.push(format!("{}: {own} -> {room}", relative.display()));
            }
        }
    }
    wrong
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

/// The first segments of all `crate::...` paths outside comments, `crate::{a, b}` included.
fn rooms_named(text: &str) -> Vec<String> {
    let word = |text: &str| {
        text.chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect::<String>()
    };
    let code: String = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .map(|line| format!("{line}\n"))
        .collect();
    let mut rooms = Vec::new();
    for (at, matched) in code.match_indices("crate::") {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = &code[at + matched.len()..];
        match rest.strip_prefix('{') {
            Some(group) => {
                let mut depth = 0;
                let mut start = true;
                for (index, c) in group.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => start = true,
                        c if start && depth == 0 && !c.is_whitespace() => {
                            rooms.push(word(&group[index..]));
                            start = false;
                        }
                        _ => {}
                    }
                }
            }
            None => rooms.push(word(rest)),
        }
    }
    rooms.retain(|room| !room.is_empty());
    rooms
}

/// A copy of this crate's manifest and sources, to plant a violation in.
fn copy() -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for file in ["Cargo.toml", "Cargo.lock"] {
        fs::copy(root().join(file), copy.path().join(file)).unwrap();
    }
    for file in rust_files(&root().join("src"))
        .into_iter()
        .chain(rust_files(&root().join("benches")))
        .chain(rust_files(&root().join("tests")))
    {
        let target = copy.path().join(file.strip_prefix(root()).unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(&file, target).unwrap();
    }
    copy
}

fn plant(file: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(file).unwrap();
    let planted = text.replacen(from, to, 1);
    assert_ne!(text, planted, "{from:?} stands in {}", file.display());
    fs::write(file, planted).unwrap();
}

#[test]
fn the_core_depends_on_its_list_alone() {
    assert_eq!(core_dependencies(&root().join("Cargo.toml")), CORE);
}

#[test]
fn a_planted_dependency_of_the_core_is_found() {
    let copy = copy();
    let manifest = copy.path().join("Cargo.toml");
    plant(
        &manifest,
        r#"serde = { version = "1.0", optional = true"#,
        r#"serde = { version = "1.0", optional = false"#,
    );
    plant(&manifest, "    \"dep:serde\",\n", "");
    let found = core_dependencies(&manifest);
    assert!(found != CORE && found.contains(&"serde".to_owned()), "{found:?}");
}

#[test]
fn every_import_points_down() {
    assert_eq!(imports_that_point_up(&root().join("src")), Vec::<String>::new());
}

#[test]
fn a_planted_import_that_points_up_is_found() {
    let copy = copy();
    let file = copy.path().join("src/balancer/diff.rs");
    let mut text = fs::read_to_string(&file).unwrap();
    text.push_str(
        "\nuse crate::discovery::Watcher;\nuse crate::{\n    api::wire,\n    balancer::pool::{Live, Load},\n};\n",
    );
    fs::write(&file, text).unwrap();
    let found = imports_that_point_up(&copy.path().join("src"));
    assert_eq!(
        found,
        [
            "balancer/diff.rs: balancer -> discovery",
            "balancer/diff.rs: balancer -> api"
        ]
    );
}
