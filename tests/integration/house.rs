//! Rules of the code as a whole: dependencies of the core, direction of imports (`tools/imports`),
//! names of tests, and the list of fault scenarios.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The dependencies that the core may have.
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

/// A copy of the manifest and the sources of this crate, for planting a violation.
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

/// A test function: where it stands, its name, and the comment above it.
struct TestFunction {
    file: String,
    name: String,
    comment: String,
}

/// All test functions below these folders of a crate.
fn test_functions(root: &Path, folders: &[&str]) -> Vec<TestFunction> {
    let mut found = Vec::new();
    for file in folders.iter().flat_map(|folder| rust_files(&root.join(folder))) {
        let text = fs::read_to_string(&file).unwrap();
        let (mut comment, mut is_test) = (String::new(), false);
        for line in text.lines().map(str::trim) {
            if let Some(words) = line.strip_prefix("///") {
                comment.push_str(words);
            } else if line.starts_with("#[") {
                is_test |= line == "#[test]" || line.starts_with("#[tokio::test");
            } else {
                let function = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ");
                if let Some((name, _)) = function.filter(|_| is_test).and_then(|rest| rest.split_once('(')) {
                    found.push(TestFunction {
                        file: file.strip_prefix(root).unwrap().display().to_string(),
                        name: name.to_owned(),
                        comment: comment.clone(),
                    });
                }
                comment.clear();
                is_test = false;
            }
        }
    }
    assert!(!found.is_empty());
    found
}

/// The scenarios that a test names: `scenario_27_...` in its name, `Scenario 27` or `Scenarios 4
/// and 7` above it.
fn scenarios_of(test: &TestFunction) -> BTreeSet<u32> {
    let in_name = test
        .name
        .strip_prefix("scenario_")
        .and_then(|rest| rest.split_once('_'));
    let mut numbers: BTreeSet<u32> = in_name
        .and_then(|(number, _)| number.parse().ok())
        .into_iter()
        .collect();
    for (at, word) in test.comment.match_indices("Scenario") {
        let words = test.comment[at + word.len()..].split([' ', ',']).skip(1);
        for word in words.filter(|word| !word.is_empty() && *word != "and") {
            let digits: String = word.chars().take_while(char::is_ascii_digit).collect();
            let Ok(number) = digits.parse() else { break };
            numbers.insert(number);
            if digits != word {
                break;
            }
        }
    }
    numbers
}

/// The rows of a list of scenarios: number, and the tests in its last column.
fn scenario_rows(list: &str) -> Vec<(u32, Vec<String>)> {
    let rows = list.lines().filter_map(|line| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let number = cells.first()?.parse().ok()?;
        let names: Vec<String> = cells.last()?.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        assert!(!names.is_empty() || cells.last()?.contains("not covered"), "{line}");
        Some((number, names))
    });
    rows.collect()
}

/// What is wrong between a list of scenarios and the tests.
fn wrong_in_scenarios(list: &str, tests: &[TestFunction]) -> Vec<String> {
    let stands_for = |listed: &str, name: &str| match listed.strip_suffix("...") {
        Some(start) => name.starts_with(start),
        None => name == listed,
    };
    let rows = scenario_rows(list);
    let mut wrong = Vec::new();
    for (number, names) in &rows {
        for listed in names {
            if !tests.iter().any(|test| stands_for(listed, &test.name)) {
                wrong.push(format!("scenario {number}: no test is named {listed}"));
            }
        }
    }
    let by_number: BTreeMap<u32, Vec<String>> = rows.iter().cloned().collect();
    if by_number.len() != rows.len() {
        wrong.push("a number is listed twice".to_owned());
    }
    for test in tests {
        for number in scenarios_of(test) {
            let listed = by_number.get(&number).into_iter().flatten();
            if !listed.into_iter().any(|listed| stands_for(listed, &test.name)) {
                wrong.push(format!("scenario {number}: {} is not listed", test.name));
            }
        }
    }
    wrong
}

#[test]
fn scenarios_and_their_tests_are_listed_as_they_are() {
    let list = fs::read_to_string(root().join("tests/integration/scenarios.md")).unwrap();
    let tests = test_functions(&root(), &["src", "tests"]);
    assert_eq!(wrong_in_scenarios(&list, &tests), Vec::<String>::new());
    let numbers: Vec<u32> = scenario_rows(&list).iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, (1..=46).collect::<Vec<_>>());
    assert!(tests.iter().any(|test| scenarios_of(test) == BTreeSet::from([21, 22])));
}

#[test]
fn a_scenario_that_is_missing_from_the_list_is_found() {
    let test = |name: &str, comment: &str| TestFunction {
        file: String::new(),
        name: name.to_owned(),
        comment: comment.to_owned(),
    };
    let tests = [
        test("scenario_7_a", ""),
        test("b", " Scenarios 4, 5 and 7."),
        test("c", " Scenario 5: something else in 9 steps."),
    ];
    let list = "| 4 | f | e | `b` |\n| 5 | f | e | `b`, `gone` |\n| 7 | f | e | `scenario_7_...` |\n";
    assert_eq!(
        wrong_in_scenarios(list, &tests),
        [
            "scenario 5: no test is named gone",
            "scenario 7: b is not listed",
            "scenario 5: c is not listed"
        ]
    );
}

/// The longest name of a test.
const LONGEST_NAME: usize = 70;

fn names_too_long(tests: &[TestFunction]) -> Vec<String> {
    let long = tests.iter().filter(|test| test.name.len() > LONGEST_NAME);
    long.map(|test| format!("{}: {}", test.file, test.name)).collect()
}

#[test]
fn names_of_tests_have_at_most_70_characters() {
    assert_eq!(
        names_too_long(&test_functions(&root(), &["src", "tests"])),
        Vec::<String>::new()
    );
}

#[test]
fn a_test_name_of_71_characters_is_found() {
    let copy = copy();
    let (long, longest) = ("n".repeat(LONGEST_NAME + 1), "n".repeat(LONGEST_NAME));
    let planted =
        format!("#[tokio::test(start_paused = true)]\nasync fn {long}() {{}}\n\n#[test]\nfn {longest}() {{}}\n");
    fs::write(copy.path().join("src/planted.rs"), planted).unwrap();
    let found = names_too_long(&test_functions(copy.path(), &["src"]));
    let planted: Vec<&String> = found
        .iter()
        .filter(|line| line.starts_with("src/planted.rs: "))
        .collect();
    assert_eq!(planted, [&format!("src/planted.rs: {long}")]);
}

/// The names that more than one public type of the crate has.
fn names_of_several_public_types(source: &Path) -> Vec<String> {
    let mut names: BTreeMap<String, usize> = BTreeMap::new();
    for file in rust_files(source) {
        let text = fs::read_to_string(&file).unwrap();
        for line in text.lines() {
            let kinds = ["pub struct ", "pub enum ", "pub trait "];
            let Some(rest) = kinds.iter().find_map(|kind| line.strip_prefix(kind)) else {
                continue;
            };
            let name: String = rest.chars().take_while(|c| c.is_alphanumeric()).collect();
            *names.entry(name).or_default() += 1;
        }
    }
    assert!(names.contains_key("LoadBalancer"));
    let several = names.into_iter().filter(|(_, types)| *types > 1);
    several.map(|(name, _)| name).collect()
}

#[test]
fn no_two_public_types_have_one_name() {
    assert_eq!(names_of_several_public_types(&root().join("src")), Vec::<String>::new());
}

#[test]
fn a_second_public_type_of_one_name_is_found() {
    let copy = copy();
    fs::write(
        copy.path().join("src/planted.rs"),
        "pub struct Address {}\npub(crate) struct Pick {}\n",
    )
    .unwrap();
    assert_eq!(names_of_several_public_types(&copy.path().join("src")), ["Address"]);
}
