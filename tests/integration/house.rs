//! The house: what the core may depend on, and that every import points down (`tools/imports`).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// All that the core may depend on.
const CORE: [&str; 5] = ["arc-swap", "fastrand", "siphasher", "thiserror", "xxhash-rust"];

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

/// What `tools/imports` says of the sources in `folder/src`, and whether it finds them in order.
fn imports(folder: &Path) -> (bool, String) {
    let output = Command::new("python3")
        .arg(root().join("tools/imports"))
        .arg(folder)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text.into_owned())
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
fn every_import_points_down_and_none_makes_a_circle() {
    let (in_order, text) = imports(&root());
    assert!(in_order, "{text}");
}

#[test]
fn a_planted_import_between_rooms_that_points_up_is_found() {
    let copy = copy();
    let file = copy.path().join("src/balancer/diff.rs");
    let mut text = fs::read_to_string(&file).unwrap();
    text.push_str(
        "\nuse crate::discovery::Watcher;\nuse crate::{\n    api::wire,\n    balancer::clock::Timestamp,\n};\n",
    );
    fs::write(&file, text).unwrap();
    let (in_order, found) = imports(copy.path());
    assert!(!in_order);
    assert_eq!(
        found,
        "balancer/diff -> api/wire points up\nbalancer/diff -> discovery points up\n"
    );
}

#[test]
fn a_planted_import_inside_the_core_that_points_up_is_found() {
    for (file, planted, fault) in [
        (
            "clock.rs",
            "use super::live::Live;",
            "balancer/clock -> balancer/live points up",
        ),
        (
            "health/layers.rs",
            "use super::address::Step;",
            "balancer/health/layers -> balancer/health/address points up",
        ),
        (
            "view.rs",
            "fn f() -> Option<crate::balancer::lease::Lease> { None }",
            "balancer/view -> balancer/lease points up",
        ),
        (
            "config.rs",
            "use crate::balancer::PickError;",
            "balancer/config -> balancer goes around the floors: name the file",
        ),
        (
            "statistics.rs",
            "use super::live::Live;",
            "circle: balancer/live, balancer/statistics",
        ),
    ] {
        let copy = copy();
        let path = copy.path().join("src/balancer").join(file);
        let text = fs::read_to_string(&path).unwrap();
        // In front of the tests, which may import from anywhere.
        let at = text.find("#[cfg(test)]").unwrap_or(text.len());
        fs::write(&path, format!("{}{planted}\n{}", &text[..at], &text[at..])).unwrap();
        let (in_order, found) = imports(copy.path());
        assert!(!in_order && found.contains(fault), "{planted}: {found}");
    }
}
