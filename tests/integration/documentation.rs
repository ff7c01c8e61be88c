//! Checks the documentation against the code: keys, routes, series, codes, snippets, commands,
//! links and examples.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use pickd::api::{Admin, Api, Readiness};
use pickd::balancer::{
    BreakerConfig, Clock, Environment, Monotonic, Preset, ServiceConfigs, Source, SourceLimits, SourceStatus, Sources,
    Timestamp,
};
use pickd::config::{Config, ConfigError, ConfigSources};
use pickd::discovery::{Reason, file};
use pickd::metrics::Metrics;
use pickd::{Context, Directory, LoadBalancerConfig, Outcome, ServiceInstance};
use tower::ServiceExt;

use crate::support::agent::{Agent, pickd};
use crate::support::consul::Consul;
use crate::support::etcd::Etcd;
use crate::support::folder::Folder;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The pages by their path from the root.
fn pages() -> Vec<String> {
    let mut pages: Vec<String> = fs::read_dir(root().join("docs"))
        .unwrap()
        .map(|entry| format!("docs/{}", entry.unwrap().file_name().to_str().unwrap()))
        .filter(|name| name.ends_with(".md"))
        .collect();
    pages.extend(
        [
            "README.md",
            "CHANGELOG.md",
            "CONTRIBUTING.md",
            "SECURITY.md",
            "examples/README.md",
            "tests/integration/scenarios.md",
        ]
        .map(str::to_owned),
    );
    pages.sort();
    pages
}

/// A fenced block of code.
#[derive(Debug)]
struct Snippet {
    page: String,
    language: String,
    text: String,
}

fn snippets() -> Vec<Snippet> {
    let mut snippets = Vec::new();
    for page in pages() {
        let text = read(&page);
        let mut open: Option<Snippet> = None;
        for line in text.lines() {
            match (line.strip_prefix("```"), &mut open) {
                (Some(_), Some(_)) => snippets.extend(open.take()),
                (Some(language), None) => {
                    open = Some(Snippet {
                        page: page.clone(),
                        language: language.to_owned(),
                        text: String::new(),
                    });
                }
                (None, Some(snippet)) => snippet.text.push_str(&format!("{line}\n")),
                (None, None) => {}
            }
        }
        assert!(open.is_none(), "{page}: a block that is not closed");
    }
    snippets
}

/// The texts between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The rows of all tables between a heading and the next heading of any depth, each as its cells.
fn rows<'a>(page: &'a str, heading: &str) -> Vec<Vec<&'a str>> {
    let section = page
        .split_once(&format!("\n{heading}\n"))
        .unwrap_or_else(|| panic!("no heading {heading:?}"))
        .1;
    // A comment in a block of code is not a heading.
    let mut in_code = false;
    let rows = section
        .lines()
        .take_while(|line| {
            in_code ^= line.starts_with("```");
            in_code || !line.starts_with('#')
        })
        .filter(|line| line.starts_with('|'));
    // Head and rule of a table have no backticks, and are skipped.
    rows.filter(|row| row.contains('`'))
        .map(|row| row.trim_matches('|').split('|').map(str::trim).collect())
        .collect()
}

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(Path::new("pickd.toml"), text.as_bytes(), &ConfigSources::default())
}

/// The value of a key such as `etcd.refresh` or, in the first table of a list that has the key,
/// `etcd.prefixes[].format`.
fn value_at<'a>(file: &'a toml::Table, path: &str) -> Option<&'a toml::Value> {
    let Some((parent, rest)) = path.split_once('.') else {
        return file.get(path);
    };
    match parent.strip_suffix("[]") {
        Some(list) => {
            let mut tables = file.get(list)?.as_array()?.iter().filter_map(toml::Value::as_table);
            tables.find_map(|table| value_at(table, rest))
        }
        None => value_at(file.get(parent)?.as_table()?, rest),
    }
}

/// The keys of a table (of a list of tables: `etcd.prefixes[]`), from the error of the parser for
/// an unknown key.
fn known_keys(table: &str) -> BTreeSet<String> {
    let text = match (table, table.strip_suffix("[]")) {
        ("", _) => "no-such-key = 1".to_owned(),
        (_, Some(list)) => format!("[[{list}]]\nno-such-key = 1"),
        (table, None) => format!("[{table}]\nno-such-key = 1"),
    };
    let refusal = parse(&text).unwrap_err().to_string();
    let expected = refusal.split("expected").nth(1).unwrap_or_else(|| panic!("{refusal}"));
    // The line itself is quoted below the message.
    let expected = expected.lines().next().unwrap_or_default();
    quoted(expected).map(str::to_owned).collect()
}

/// Every table, including nested tables and lists of tables: `api`, `etcd`, `etcd.prefixes[]`.
fn known_tables() -> BTreeSet<String> {
    let mut found = known_keys("");
    for table in found.clone() {
        let name = if table == "services" {
            "services.user-service"
        } else {
            &table
        };
        for key in known_keys(name) {
            for (within, suffix) in [("{ no-such-key = 1 }", ""), ("[{ no-such-key = 1 }]", "[]")] {
                let refusal = parse(&format!("[{name}]\n{key} = {within}")).unwrap_err().to_string();
                if refusal.contains("unknown field `no-such-key`") {
                    found.insert(format!("{table}.{key}{suffix}"));
                }
            }
        }
    }
    found
}

fn text(output: &Output) -> String {
    let both = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    String::from_utf8(both).unwrap()
}

#[test]
fn every_key_is_documented_and_every_documented_key_is_one() {
    let page = read("docs/configuration.md");
    let mut tables = BTreeSet::new();
    for (heading, names) in [
        ("### `[api]`", &["api"][..]),
        ("### `[consul]`", &["consul"]),
        ("### `[etcd]`", &["etcd"]),
        ("### `[[etcd.prefixes]]`", &["etcd.prefixes[]"]),
        ("### `[file]`", &["file"]),
        ("### `[metrics]`", &["metrics"]),
        ("### `[probe]`", &["probe"]),
        (
            "### `[defaults]` and `[services.<name>]`",
            &["defaults", "services.user-service"],
        ),
        ("### `breaker`", &["defaults.breaker", "services.user-service.breaker"]),
        ("### `health_check`", &["services.user-service.health_check"]),
    ] {
        let documented: BTreeSet<String> = rows(&page, heading)
            .iter()
            .filter_map(|cells| quoted(cells[0]).next())
            .map(str::to_owned)
            .collect();
        for name in names {
            let mut expected = known_keys(name);
            if *name == "defaults" {
                // The same heading has a second table: what only a service can say.
                expected.extend(["preset", "health_check"].map(str::to_owned));
            }
            assert_eq!(documented, expected, "{name}");
            tables.insert(name.replace(".user-service", ""));
        }
    }
    assert_eq!(tables, known_tables(), "the tables themselves");
}

#[test]
fn the_documented_defaults_are_the_defaults() {
    let page = snippets()
        .into_iter()
        .filter(|snippet| snippet.page == "docs/configuration.md");
    let whole = page
        .filter(|snippet| snippet.language == "toml")
        .find(|snippet| snippet.text.contains("[api]"))
        .unwrap();
    let written = whole.text.parse::<toml::Table>().unwrap();
    // Keys whose default cannot be written are commented out, and are valid once uncommented.
    let every = whole.text.replace("\n# ", "\n");
    parse(&every).unwrap();
    let every = every.parse::<toml::Table>().unwrap();
    for table in known_tables().iter().filter(|table| !table.starts_with("services")) {
        for key in known_keys(table) {
            let key = format!("{table}.{key}");
            assert!(
                value_at(&every, &key).is_some(),
                "every key stands in the whole file, but {key}"
            );
        }
    }
    let services = "[services.user-service]\nstrategy = \"least_response_time\"\npreset = \"critical\"\n\
                    health_check = { type = \"http\", path = \"/healthz\" }";
    let minimal = format!("[consul]\n[etcd]\n[file]\npath = \"services.toml\"\n{services}");
    assert_eq!(parse(&whole.text).unwrap(), parse(&minimal).unwrap());

    // The tables of the page and of the README have the defaults of the whole file.
    let mut compared = 0;
    for (page, heading, section) in [
        ("docs/configuration.md", "### `[api]`", "api"),
        ("docs/configuration.md", "### `[consul]`", "consul"),
        ("docs/configuration.md", "### `[etcd]`", "etcd"),
        ("docs/configuration.md", "### `[[etcd.prefixes]]`", "etcd.prefixes[]"),
        ("docs/configuration.md", "### `[metrics]`", "metrics"),
        ("docs/configuration.md", "### `[probe]`", "probe"),
        ("docs/configuration.md", "### `breaker`", "defaults.breaker"),
        (
            "docs/configuration.md",
            "### `[defaults]` and `[services.<name>]`",
            "defaults",
        ),
        ("README.md", "## Configuration", ""),
    ] {
        for cells in rows(&read(page), heading) {
            let (keys, told) = (quoted(cells[0]), quoted(cells[1]));
            for (key, told) in keys.zip(told) {
                let (section, key) = key.rsplit_once('.').unwrap_or((section, key));
                if let Some(value) = value_at(&written, &format!("{section}.{key}")) {
                    assert_eq!(value.to_string(), told, "{page}: {section}.{key}");
                    compared += 1;
                }
            }
        }
    }
    assert!(compared > 50, "{compared}");
}

/// A cell without the marks of links and of code.
fn plain(cell: &str) -> String {
    let mut shown = String::new();
    let mut rest = cell;
    while let Some((before, (text, after))) = rest.split_once('[').and_then(|(before, link)| {
        let (text, target) = link.split_once("](")?;
        Some((before, (text, target.split_once(')')?.1)))
    }) {
        shown.push_str(before);
        shown.push_str(text);
        rest = after;
    }
    format!("{shown}{rest}").replace('`', "")
}

#[test]
fn settings_are_documented_in_the_words_of_their_table() {
    let (page, readme) = (read("docs/configuration.md"), read("README.md"));
    for (heading, settings) in [
        (
            "### `[defaults]` and `[services.<name>]`",
            LoadBalancerConfig::settings(),
        ),
        ("### `breaker`", BreakerConfig::settings()),
    ] {
        let documented: Vec<String> = rows(&page, heading)
            .into_iter()
            // The second table below the heading has what only a service can say.
            .filter(|cells| !["`preset`", "`health_check`"].contains(&cells[0]))
            .map(|cells| plain(&cells.join(" | ")))
            .collect();
        let expected: Vec<String> = settings
            .iter()
            .map(|row| plain(&[row.key, &row.default, &row.range, row.meaning].join(" | ")))
            .collect();
        assert_eq!(documented, expected, "docs/configuration.md, {heading}");
    }

    // The README has the first clause of each meaning, and may go on.
    let documented = rows(&readme, "## Configuration");
    let documented: Vec<String> = documented
        .iter()
        .filter(|cells| cells[0].starts_with("`defaults."))
        .map(|cells| plain(&cells.join(" | ")))
        .collect();
    assert_eq!(documented.len(), LoadBalancerConfig::settings().len(), "README.md");
    for (documented, row) in documented.iter().zip(LoadBalancerConfig::settings()) {
        let default = if row.default.is_empty() {
            &row.range
        } else {
            &row.default
        };
        let end = [". ", "; "].iter().filter_map(|end| row.meaning.find(end)).min();
        let clause = row.meaning[..end.unwrap_or(row.meaning.len())].trim_end_matches('.');
        let (first, rest) = clause.split_at(1);
        let clause = first.to_lowercase() + rest;
        let expected = plain(&format!("defaults.{} | {default} | {clause}", row.key));
        assert!(documented.starts_with(&expected), "README.md: {documented}\n{expected}");
    }
}

#[test]
fn what_a_check_leaves_out_is_as_documented() {
    let page = read("docs/configuration.md");
    let rows = rows(&page, "### `health_check`");
    let read = |keys: &[String]| {
        parse(&format!(
            "[consul]\n[services.a]\nhealth_check = {{ {} }}",
            keys.join(", ")
        ))
    };
    for kind in ["http", "grpc"] {
        let named = vec![format!("type = \"{kind}\"")];
        let mut written = named.clone();
        for cells in rows.iter().filter(|cells| cells[3].starts_with(&format!("`{kind}`:"))) {
            // "the instance's `host:port`" is not a value of the key.
            if let Some(default) = cells[1].strip_prefix('`') {
                let key = quoted(cells[0]).next().unwrap();
                written.push(format!("{key} = {}", default.trim_end_matches('`')));
            }
        }
        assert!(written.len() > 1, "{written:?}");
        assert_eq!(read(&written).unwrap(), read(&named).unwrap(), "{written:?}");
    }
}

#[test]
fn presets_are_as_documented() {
    let page = read("docs/health.md");
    let told = page
        .split_once("\nPresets set ")
        .unwrap()
        .1
        .split_once(". Keys")
        .unwrap()
        .0;
    for preset in Preset::ALL {
        let config = LoadBalancerConfig::default().with_preset(preset);
        let numbers = format!(
            "`{}` {} s, {} s, {}",
            preset.as_str(),
            config.health_check_interval().as_secs(),
            config.health_check_timeout().as_secs(),
            config.max_consecutive_failures()
        );
        assert!(told.contains(&numbers), "{numbers}");
    }
}

#[test]
fn every_variable_and_flag_is_documented_and_every_documented_one_is_one() {
    let variables = |text: &str| -> BTreeSet<String> {
        let words = text.split(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'));
        words
            .filter(|word| {
                let starts = |prefix: &&str| word.starts_with(prefix) && word.len() > prefix.len();
                ["PICKD_", "CONSUL_", "ETCDCTL_"].iter().any(starts)
            })
            .map(str::to_owned)
            .collect()
    };
    let mut known = BTreeSet::new();
    for command in [
        "run",
        "demo",
        "pick",
        "services",
        "explain",
        "drain",
        "undrain",
        "weight",
        "check",
        "healthcheck",
        "completions",
        "man",
    ] {
        known.extend(variables(&help(command)));
    }
    assert_eq!(variables(&read("docs/configuration.md")), known);

    let flags: BTreeSet<String> = rows(&read("docs/configuration.md"), "## Flags and variables of `pickd run`")
        .iter()
        .filter_map(|cells| quoted(cells[0]).next()?.split(' ').next())
        .filter(|word| word.starts_with("--"))
        .map(str::to_owned)
        .collect();
    let known: BTreeSet<String> = help("run")
        .split_whitespace()
        .filter(|word| word.starts_with("--"))
        .map(|word| word.trim_end_matches(',').to_owned())
        .filter(|flag| flag != "--help")
        .collect();
    assert_eq!(flags, known);
}

fn help(command: &str) -> String {
    let output = pickd().args([command, "--help"]).output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

/// The parts of an agent without its tasks: one service, from a source that has synced.
fn api() -> Api {
    let status = SourceStatus::new(Source::new("consul"), true, Box::new(|_| true));
    status.mark_synced();
    status.count_relist("start");
    status.count_holds_ended("listed", 1);
    status.service_fails(&"api".parse().unwrap(), "denied", "403", Timestamp::default());
    status.set_limits(SourceLimits::new(16, Some(Duration::from_secs(12)), Some(95.0)));
    let clock = Arc::new(Monotonic::start());
    let tools = Environment {
        clock: clock.clone(),
        ..Environment::default()
    };
    let configs = ServiceConfigs {
        defaults: LoadBalancerConfig::default().with_sticky_sessions(true),
        ..ServiceConfigs::default()
    };
    let directory = Directory::new(configs, Sources::new(vec![Arc::new(status)]), tools);
    let instance = ServiceInstance::new("web-1", "10.0.0.1", 80).unwrap();
    directory.apply(&"web".parse().unwrap(), [Arc::new(instance)]);
    let balancer = directory.get("web").unwrap();
    // Some series exist only with this setting.
    balancer.configure(balancer.config().with_adaptive_weights(true));
    let request = balancer.acquire(&Context::new()).unwrap();
    request.finish(Outcome::Success, Duration::from_millis(3));
    Api {
        directory: Arc::new(directory),
        readiness: Arc::new(Readiness::new(clock.now(), Duration::ZERO)),
        clock,
        metrics: Arc::new(Metrics::new(Reason::ALL.map(Reason::as_str)).unwrap()),
        admin: Admin::default(),
    }
}

#[tokio::test]
async fn every_documented_route_is_one_and_every_route_is_documented() {
    // axum has no list of routes, so this reads the source that makes the routes.
    let made: BTreeSet<String> = read("src/api/mod.rs")
        .split(".route(\"")
        .skip(1)
        .filter_map(|rest| Some(rest.split_once('"')?.0.to_owned()))
        .filter(|path| path != "/")
        .collect();
    for (page, heading) in [("README.md", "## Routes"), ("docs/api.md", "# HTTP API")] {
        let text = format!("\n{}", read(page));
        let mut documented = BTreeSet::new();
        for cells in rows(&text, heading) {
            let route = quoted(cells[0]).next().unwrap();
            let (method, path) = route.split_once(' ').unwrap();
            documented.insert(path.to_owned());
            for prefix in ["", "/v1"] {
                let path = format!(
                    "{prefix}{}",
                    path.replace("{service}", "web")
                        .replace("{id}", "web-1")
                        .replace("{source}", "file")
                );
                let request = Request::builder()
                    .method(method)
                    .uri(&path)
                    .header("content-type", "application/json")
                    .body(Body::from(if method == "POST" { "[]" } else { "" }))
                    .unwrap();
                let response = api().router().oneshot(request).await.unwrap();
                // Without a listener the peer is unknown, and unknown peers are not authorized.
                let is_for_operators = method == "PUT" || path.ends_with("/accept");
                let expected = if is_for_operators { 403 } else { 200 };
                assert_eq!(response.status(), expected, "{page}: {method} {path}");
            }
        }
        assert_eq!(documented, made, "{page}");
    }
    let stranger = Request::get("/no-such-route").body(Body::empty()).unwrap();
    assert_eq!(api().router().oneshot(stranger).await.unwrap().status(), 404);
}

#[test]
fn every_error_is_documented_with_its_status() {
    // `(StatusCode::NOT_FOUND, "unknown_service")`, in the only file that names a failing status.
    let named: BTreeMap<String, String> = read("src/api/error.rs")
        .split("(StatusCode::")
        .skip(1)
        .filter_map(|rest| {
            let (status, rest) = rest.split_once(", \"")?;
            Some((rest.split_once('"')?.0.to_owned(), status.to_owned()))
        })
        .collect();
    let status = |name: &str| match name {
        "BAD_REQUEST" => "400",
        "FORBIDDEN" => "403",
        "NOT_FOUND" => "404",
        "METHOD_NOT_ALLOWED" => "405",
        "REQUEST_TIMEOUT" => "408",
        "PAYLOAD_TOO_LARGE" => "413",
        "UNSUPPORTED_MEDIA_TYPE" => "415",
        "MISDIRECTED_REQUEST" => "421",
        "INTERNAL_SERVER_ERROR" => "500",
        "SERVICE_UNAVAILABLE" => "503",
        other => panic!("{other}: which number is that?"),
    };
    let made: BTreeSet<(String, String)> = named
        .iter()
        .map(|(code, name)| (status(name).to_owned(), code.clone()))
        .collect();
    let documented: BTreeSet<(String, String)> = rows(&read("docs/api.md"), "## Errors")
        .iter()
        .map(|cells| (cells[0].to_owned(), cells[1].trim_matches('`').to_owned()))
        .collect();
    assert_eq!(documented, made);
}

#[test]
fn every_series_is_documented_with_its_type_and_labels() {
    let api = api();
    let scrape = api.metrics.encode(&api.directory, true, api.clock.now()).unwrap();
    let scrape = String::from_utf8(scrape).unwrap();
    let mut found: BTreeMap<String, (String, BTreeSet<String>)> = BTreeMap::new();
    for line in scrape.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            found.insert(name.to_owned(), (kind.to_owned(), BTreeSet::new()));
        } else if let Some((name, labels)) = line.split_once('{')
            && let Some((_, own)) = found.get_mut(name.strip_suffix("_sum").unwrap_or(name))
        {
            let labels = labels.split_once('}').unwrap().0;
            own.extend(
                labels
                    .split(',')
                    .map(|label| label.split_once('=').unwrap().0.to_owned()),
            );
        }
    }
    let (mut documented, mut of_process) = (BTreeMap::new(), BTreeSet::new());
    for cells in rows(&read("docs/operations.md"), "## Metrics") {
        for name in quoted(cells[0]) {
            if name.starts_with("process_") {
                of_process.insert(name.to_owned());
            } else if name.starts_with("pickd_") {
                let labels = quoted(cells[2]).map(str::to_owned).collect();
                documented.insert(name.to_owned(), (cells[1].to_owned(), labels));
            }
        }
    }
    let processes: BTreeSet<String> = found
        .keys()
        .filter(|name| name.starts_with("process_"))
        .cloned()
        .collect();
    assert_eq!(of_process, processes);
    found.retain(|name, _| !name.starts_with("process_"));
    assert_eq!(documented, found);

    // All other names of series in the pages, such as in alerts, are names of existing series.
    for page in pages() {
        let text = read(&page);
        for word in text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')) {
            let part = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|part| word.strip_suffix(part));
            let name = part.unwrap_or(word);
            if word.starts_with("pickd_") {
                assert!(found.contains_key(name), "{page}: {word}");
            }
        }
    }
    let reasons: BTreeSet<String> = Reason::ALL.iter().map(ToString::to_string).collect();
    let told: BTreeSet<String> = rows(&read("docs/operations.md"), "## Metrics")
        .iter()
        .filter(|cells| cells.len() == 2)
        .filter_map(|cells| quoted(cells[0]).next())
        .map(str::to_owned)
        .collect();
    assert_eq!(told, reasons);

    // Only the watcher of etcd has the reasons of relists, so this reads its source.
    let made: BTreeSet<String> = read("src/discovery/etcd/mod.rs")
        .split_once("impl Relist {")
        .and_then(|(_, rest)| rest.split_once("\n    }\n"))
        .map(|(names, _)| names.split('"').skip(1).step_by(2).map(str::to_owned).collect())
        .unwrap();
    let operations = read("docs/operations.md");
    let series = rows(&operations, "## Metrics");
    let row = series
        .iter()
        .find(|cells| cells[0] == "`pickd_source_relists_total`")
        .unwrap();
    assert_eq!(quoted(row[3]).map(str::to_owned).collect::<BTreeSet<_>>(), made);
}

/// The text of all source files below a folder.
fn sources(folder: &Path) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            text.push_str(&sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
    text
}

/// Each path of a table is in the program of the page, which is compiled as documentation; each
/// route is one of docs/api.md, whose routes another test asks for.
#[test]
fn every_name_of_the_python_api_has_its_counterpart() {
    let page = read("docs/from-the-seed.md");
    let (tables, program) = page.split_once("```rust\n").unwrap();
    let routes = read("docs/api.md");
    let mut names = 0;
    for row in tables
        .lines()
        .filter(|line| line.starts_with("| `") || line.starts_with("| counters"))
    {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let paths: Vec<&str> = quoted(cells[2]).collect();
        assert!(!paths.is_empty(), "{row}");
        for path in paths {
            let is_whole = |rest: &str| !rest.starts_with(|next: char| next.is_alphanumeric() || next == '_');
            let compiled = program
                .match_indices(&path)
                .any(|(at, _)| is_whole(&program[at + path.len()..]));
            assert!(compiled, "{path} is not in the program");
            names += 1;
        }
        for asked in quoted(cells[3]).filter(|asked| asked.contains(" /")) {
            let route = asked.split('?').next().unwrap();
            assert!(routes.contains(&format!("`{route}`")), "{route}");
        }
    }
    assert!(names > 50, "{names}");
}

#[test]
fn every_documented_log_message_is_logged() {
    let sources = sources(&root().join("src"));
    let page = read("docs/operations.md");
    let rows = rows(&page, "## Logs");
    assert!(rows.len() > 30, "{}", rows.len());
    for message in rows.iter().flat_map(|cells| quoted(cells[0])) {
        assert!(sources.contains(&format!("\"{message}\"")), "{message:?} is not logged");
    }
}

#[test]
fn every_snippet_is_what_it_says_it_is() {
    let mut checked = BTreeMap::<String, usize>::new();
    for Snippet { page, language, text } in snippets() {
        let registry = |extension: &str| {
            let path = format!("{page}.{extension}");
            let services = file::parse(Path::new(&path), text.as_bytes(), None).unwrap();
            assert!(!services.is_empty(), "{page}");
        };
        match language.as_str() {
            "toml" if text.contains("[[service]]") => registry("toml"),
            "toml" if text.contains("[dependencies]") => drop(text.parse::<toml::Table>().unwrap()),
            "toml" => drop(parse(&text).unwrap_or_else(|error| panic!("{page}: {error}"))),
            "json" if text.contains("{\"service\": [") => registry("json"),
            "json" => {
                let value: serde_json::Value =
                    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{page}: {error}\n{text}"));
                assert!(value.is_object());
            }
            "yaml" if text.starts_with("service:") || text.starts_with("- targets:") => registry("yaml"),
            // `rust` is tested as documentation; other tests check `sh` and `console`.
            "rust" | "sh" | "console" | "hcl" | "ini" | "text" => {}
            other => panic!("{page}: no check for {other:?}"),
        }
        *checked.entry(language).or_default() += 1;
    }
    for language in ["toml", "json", "yaml", "sh", "console"] {
        assert!(checked.get(language).is_some_and(|&count| count > 0), "{language}");
    }
}

/// The arguments of all lines of shell blocks that run pickd, with their page.
fn command_lines() -> Vec<(String, Vec<String>)> {
    let mut lines = Vec::new();
    for Snippet { page, language, text } in snippets() {
        if !matches!(language.as_str(), "sh" | "console") {
            continue;
        }
        // In a console block, input follows a prompt, and other lines are output.
        let prompt = if language == "console" { "$ " } else { "" };
        for line in text.lines().filter_map(|line| line.strip_prefix(prompt)) {
            let line = line.split(" #").next().unwrap_or_default().trim();
            let arguments = line
                .strip_prefix("pickd ")
                .or_else(|| line.strip_prefix("cargo run --release -- "));
            if let Some(arguments) = arguments {
                lines.push((page.clone(), arguments.split_whitespace().map(str::to_owned).collect()));
            }
        }
    }
    lines
}

#[test]
fn every_command_is_one_with_flags_that_exist() {
    let lines = command_lines();
    assert!(lines.len() > 8, "{lines:?}");
    for (page, arguments) in lines {
        let command = &arguments[0];
        if command.starts_with("--") {
            assert!(
                pickd().arg(command).output().unwrap().status.success(),
                "{page}: {command}"
            );
            continue;
        }
        let help = help(command);
        for flag in arguments.iter().filter(|word| word.starts_with("--")) {
            assert!(help.contains(&format!("{flag} ")), "{page}: {command} {flag}");
        }
    }
}

#[test]
fn the_readmes_files_are_right_and_its_commands_run() {
    let folder = tempfile::tempdir().unwrap();
    let mut written = 0;
    for snippet in snippets().iter().filter(|snippet| snippet.page == "README.md") {
        let first = snippet.text.lines().next().unwrap_or_default();
        if let Some(name) = first.strip_prefix("# ").filter(|_| snippet.language == "toml") {
            fs::write(folder.path().join(name), &snippet.text).unwrap();
            written += 1;
        }
    }
    assert_eq!(written, 2);
    let mut run = BTreeSet::new();
    for (page, arguments) in command_lines() {
        if page == "README.md" && matches!(arguments[0].as_str(), "--help" | "check") {
            let output = pickd().args(&arguments).current_dir(folder.path()).output().unwrap();
            assert!(output.status.success(), "{arguments:?}: {}", text(&output));
            run.insert(arguments[0].clone());
        }
    }
    assert_eq!(run, BTreeSet::from(["--help".to_owned(), "check".to_owned()]));
}

/// The output of each line of a shell block, with this agent in place of the default address.
fn printed(block: &str, agent: &Agent) -> Vec<String> {
    let program = pickd().get_program().to_owned();
    let print = |line: &str| {
        let line = line.replace("localhost:7425", &agent.address.to_string());
        let output = Command::new("sh")
            .args(["-c", &format!("pickd() {{ \"$PROGRAM\" \"$@\"; }}\n{line}")])
            .env("PROGRAM", &program)
            .env("PICKD_AGENT", format!("http://{}", agent.address))
            .env("NO_PROXY", "*")
            .output()
            .unwrap();
        assert!(output.status.success(), "{line}: {}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    block.lines().map(print).collect()
}

/// The shell block of the README that begins with this text.
fn block_of_the_readme(start: &str) -> String {
    let found = snippets()
        .into_iter()
        .find(|snippet| snippet.page == "README.md" && snippet.language == "sh" && snippet.text.starts_with(start));
    found
        .unwrap_or_else(|| panic!("no block that begins with {start:?}"))
        .text
}

#[test]
fn the_readmes_commands_report_retry_and_drain() {
    let folder = Folder::new();
    let services = "[[service]]\nname = \"user-service\"\n\
                    [[service.instance]]\nid = \"user-1\"\nhost = \"10.0.1.10\"\nport = 8080\n\
                    [[service.instance]]\nid = \"user-2\"\nhost = \"10.0.1.11\"\nport = 8080\n";
    let registry = folder.write("services.toml", services);
    let agent = Agent::run(["--file", registry.to_str().unwrap()]).ready();
    // A report without a lease needs an earlier pick: one of the two picks is user-1.
    for _ in 0..2 {
        agent.get("/pick/user-service");
    }
    let answers = printed(&block_of_the_readme("curl localhost:7425/report "), &agent);
    let [reported, retried] = answers.as_slice() else {
        panic!("{answers:?}")
    };
    assert_eq!(reported, r#"{"accepted":1,"rejected":[]}"#);
    assert!(retried.contains(r#""id":"user-2""#), "{retried}");

    let answers = printed(&block_of_the_readme("pickd drain "), &agent);
    assert!(answers[1].contains("drained"), "{answers:?}");
    for _ in 0..3 {
        assert_eq!(agent.get("/pick/user-service").json()["id"], "user-2");
    }
}

#[test]
fn the_dependencies_of_the_core_are_named() {
    let house = read("tests/integration/house.rs");
    let list = house.split_once("const CORE: ").unwrap().1;
    let list = list.split_once(';').unwrap().1.split_once(';').unwrap().0;
    let core: BTreeSet<&str> = list.split('"').skip(1).step_by(2).collect();
    assert!(core.contains("arc-swap"), "{core:?}");
    for (page, before, after) in [
        ("docs/library.md", "its dependencies are ", ". A pick"),
        ("src/lib.rs", "//! depends on ", "\n\n"),
    ] {
        let text = read(page);
        let named = text.split_once(before).unwrap().1.split_once(after).unwrap().0;
        assert_eq!(quoted(named).collect::<BTreeSet<_>>(), core, "{page}");
    }
}

#[test]
fn every_link_leads_somewhere() {
    let mut folders = vec!["integrations".to_owned()];
    let mut pages = pages();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root().join(&folder)).unwrap() {
            let entry = entry.unwrap();
            let path = format!("{folder}/{}", entry.file_name().to_str().unwrap());
            match entry.file_type().unwrap().is_dir() {
                true => folders.push(path),
                false if path.ends_with(".md") => pages.push(path),
                false => {}
            }
        }
    }
    assert!(pages.contains(&"integrations/README.md".to_owned()), "{pages:?}");
    for page in pages {
        let source = read(&page);
        let folder = root().join(&page).parent().unwrap().to_owned();
        for link in source.split("](").skip(1) {
            let link = link.split(')').next().unwrap();
            if link.starts_with("https://") {
                continue;
            }
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match path {
                "" => root().join(&page),
                path => folder.join(path),
            };
            assert!(target.exists(), "{page}: {link}");
            if !anchor.is_empty() {
                let text = fs::read_to_string(&target).unwrap();
                let anchors: BTreeSet<String> = text
                    .lines()
                    .filter(|line| line.starts_with('#'))
                    .map(|line| anchor_of(line.trim_start_matches('#').trim()))
                    .collect();
                assert!(anchors.contains(anchor), "{page}: {link}, there are {anchors:?}");
            }
        }
    }
}

/// The anchor of a heading: lower case, blanks as hyphens, only letters, digits, `-` and `_`.
fn anchor_of(heading: &str) -> String {
    heading
        .to_lowercase()
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

/// An example of `examples/`, and what its output must be.
struct Example {
    name: &'static str,
    arguments: Vec<String>,
    /// Whether the example needs none of the features.
    on_the_core_alone: bool,
    /// Lines of the output, word for word.
    lines: &'static [&'static str],
    /// What else the output must say.
    holds: fn(&str) -> Result<(), String>,
    /// Texts of the output with a wrong text in their place, which must be noticed.
    spoilt: &'static [(&'static str, &'static str)],
}

impl Example {
    fn new(name: &'static str) -> Self {
        Self {
            name,
            arguments: Vec::new(),
            on_the_core_alone: false,
            lines: &[],
            holds: |_| Ok(()),
            spoilt: &[],
        }
    }

    /// Runs the example, checks its output, and shows that the check finds a wrong output.
    fn verify(&self) {
        let mut cargo = Command::new(env!("CARGO"));
        // With what cargo told this test of its package, build scripts such as that of ring run again.
        let told = ["CARGO_PKG_", "CARGO_MANIFEST_"];
        for (name, _) in std::env::vars().filter(|(name, _)| told.iter().any(|start| name.starts_with(start))) {
            cargo.env_remove(name);
        }
        cargo.args(["run", "--quiet", "--locked", "--offline"]);
        if self.on_the_core_alone {
            cargo.arg("--no-default-features");
        }
        cargo.args(["--example", self.name, "--manifest-path"]);
        let output = cargo
            .arg(root().join("Cargo.toml"))
            .arg("--")
            .args(&self.arguments)
            .output()
            .unwrap();
        let printed = text(&output);
        assert!(output.status.success(), "{}: {printed}", self.name);
        if let Err(wrong) = self.check(&printed) {
            panic!("{}: {wrong} in\n{printed}", self.name);
        }
        assert!(!self.spoilt.is_empty(), "{}", self.name);
        for (right, wrong) in self.spoilt {
            assert!(printed.contains(right), "{}: {right:?} in\n{printed}", self.name);
            let spoilt = printed.replacen(right, wrong, 1);
            assert!(self.check(&spoilt).is_err(), "{}: {wrong:?} is not noticed", self.name);
        }
    }

    fn check(&self, printed: &str) -> Result<(), String> {
        let missing = self
            .lines
            .iter()
            .find(|line| !printed.lines().any(|found| found == **line));
        match missing {
            Some(line) => Err(format!("no line {line:?}")),
            None => (self.holds)(printed),
        }
    }
}

/// The lines of the part below `=== heading ===`, up to an empty line.
fn part<'a>(printed: &'a str, heading: &str) -> Result<Vec<&'a str>, String> {
    let heading = format!("=== {heading} ===\n");
    let (_, after) = printed.split_once(&heading).ok_or(format!("no {heading:?}"))?;
    Ok(after.lines().take_while(|line| !line.is_empty()).collect())
}

/// The numbers of a line, such as 1, 120 and 40 of `server-1: 120 requests (40%)`.
fn numbers(line: &str) -> Vec<u64> {
    let parts = line.split(|c: char| !c.is_ascii_digit());
    parts.filter_map(|digits| digits.parse().ok()).collect()
}

fn require(is_so: bool, what: impl Into<String>) -> Result<(), String> {
    if is_so { Ok(()) } else { Err(what.into()) }
}

/// Ten answers of which one needed a second attempt, and statistics that say what the backends saw.
fn basic_holds(printed: &str) -> Result<(), String> {
    let handled = |line: &&str| line.starts_with("Request ") && line.contains(": handled by user-");
    require(printed.lines().filter(handled).count() == 10, "not ten answers")?;
    let count = |line: &&str| numbers(line).get(1).copied();
    let counted: Vec<Option<u64>> = part(printed, "Per instance")?.iter().map(count).collect();
    let received: Vec<Option<u64>> = part(printed, "Received by the backends")?.iter().map(count).collect();
    require(
        counted == received,
        format!("counted {counted:?}, received {received:?}"),
    )?;
    let total: u64 = counted.iter().flatten().sum();
    require(counted.len() == 3 && total == 11, format!("{counted:?} of 11"))?;
    let shares = counted.iter().flatten().all(|count| (3..=5).contains(count));
    require(shares, format!("not in turn: {counted:?}"))
}

/// The shares of 300 requests under each strategy.
fn strategies_hold(printed: &str) -> Result<(), String> {
    let shares = |strategy: &str| -> Result<[u64; 3], String> {
        let lines = part(printed, strategy)?;
        let counts: Vec<u64> = lines.iter().filter_map(|line| numbers(line).get(1).copied()).collect();
        let counts: [u64; 3] = counts.try_into().map_err(|counts| format!("{strategy}: {counts:?}"))?;
        require(
            counts.iter().sum::<u64>() == 300,
            format!("{strategy}: {counts:?} of 300"),
        )?;
        Ok(counts)
    };
    let near = |strategy: &str, expected: [u64; 3], by: u64| {
        let counts = shares(strategy)?;
        let all = counts
            .iter()
            .zip(expected)
            .all(|(count, expected)| count.abs_diff(expected) <= by);
        require(all, format!("{strategy}: {counts:?}, not {expected:?}"))
    };
    near("ROUND_ROBIN", [100, 100, 100], 1)?;
    // Nine standard deviations of a fair draw.
    near("RANDOM", [100, 100, 100], 74)?;
    near("WEIGHTED_ROUND_ROBIN", [50, 150, 100], 2)?;
    // 100 sessions of three requests: a session that changed its server would leave another number.
    let sessions = shares("CONSISTENT_HASH")?;
    let whole = sessions.iter().all(|count| count % 3 == 0);
    require(whole, format!("sessions moved: {sessions:?}"))?;
    for strategy in ["LEAST_CONNECTIONS", "LEAST_RESPONSE_TIME"] {
        // The slowest server has a third of all weight, and gets far less.
        let counts = shares(strategy)?;
        require(counts[2] < 60, format!("{strategy}: {counts:?}"))?;
    }
    Ok(())
}

/// Every order was paid or cancelled, and no payment was made twice.
fn microservices_hold(printed: &str) -> Result<(), String> {
    let paid = printed.lines().filter(|line| *line == "  paid: 100.0").count();
    require(paid == 8, format!("{paid} of 8 paid"))?;
    let orders = part(printed, "Orders")?;
    let in_state = |state: &str| orders.iter().filter(|line| line.ends_with(state)).count();
    require(
        in_state(": created") == 8 && in_state(": cancelled") == 2,
        format!("{orders:?}"),
    )?;
    let cancelled = orders
        .iter()
        .filter(|line| line.ends_with("cancelled"))
        .map(|line| numbers(line)[0]);
    for order in cancelled {
        let told = part(printed, &format!("Order {order}"))?;
        let line = format!("  cancelled: order {order}");
        require(told.iter().any(|found| *found == line), format!("no {line:?}"))?;
    }
    Ok(())
}

fn monitoring_holds(printed: &str) -> Result<(), String> {
    let alerts = part(printed, "In trouble")?;
    let starts = [
        "Alerts: 3",
        "critical availability: 75.00% ",
        "warning failure_rate: order-service fails in ",
        "warning response_time: user-1 of user-service answers in ",
    ];
    let all = alerts.iter().zip(starts).all(|(line, start)| line.starts_with(start));
    require(all && alerts.len() == starts.len(), format!("{alerts:?}"))
}

#[test]
fn the_examples_print_what_they_promise() {
    let examples = [
        Example {
            lines: &[
                "Total requests: 11",
                "Failed requests: 1",
                "Failure rate: 9.09%",
                "Available instances: 3/3",
            ],
            holds: basic_holds,
            spoilt: &[
                ("Failed requests: 1", "Failed requests: 2"),
                ("Request 4: handled by", "Request 4: failed"),
                ("user-2: healthy - ", "user-2: healthy - 1"),
            ],
            ..Example::new("basic")
        },
        Example {
            holds: strategies_hold,
            spoilt: &[("server-1: 100 requests", "server-1: 95 requests")],
            ..Example::new("strategies")
        },
        Example {
            on_the_core_alone: true,
            lines: &[
                "user3: cache-2 -> cache-1 (moved)",
                "Moved users: 2/5 (40.0%)",
                "Moved users: 0/5 (0.0%)",
                "Users of cache-1: 3352",
                "Users that moved when cache-1 was removed: 3352/10000 (33.5%)",
                "Users elsewhere than before, after cache-1 returned: 0/10000 (0.0%)",
                "user-42: shard-3, then shard-1, then shard-2",
                "user-42 without shard-3: shard-1",
            ],
            spoilt: &[
                ("removed: 3352/10000", "removed: 3353/10000"),
                ("without shard-3: shard-1", "without shard-3: shard-2"),
            ],
            ..Example::new("consistent_hashing")
        },
        Example {
            lines: &[
                "  payment failed: status 402, attempts 1",
                "  payment failed: status 500, attempts 1",
                "  cancelled: order 4",
                "Overall health: 100.00%",
                "Total instances: 7",
                "Total requests: 32",
                "Total failures: 1",
                "  Strategy: least_response_time",
                "service \"mail-service\" is unknown",
            ],
            holds: microservices_hold,
            spoilt: &[
                ("order 4: cancelled", "order 4: created"),
                ("status 500, attempts 1", "status 500, attempts 2"),
            ],
            ..Example::new("microservices")
        },
        Example {
            on_the_core_alone: true,
            lines: &[
                "compute_intensive: weighted_round_robin - the weight says how large the machine is",
                "general: consistent_hash - equal keys go to the same instance, on every node",
                "general: random - a random pick shares nothing with other picks",
                "general: round_robin - every instance gets the same number of requests",
                "Picked with least_response_time: gateway-1 at 10.0.1.10:8080",
            ],
            spoilt: &[("general: random", "general: round_robin")],
            ..Example::new("strategy_guide")
        },
        Example {
            lines: &[
                "database: a check every 15s, timeout 2s, out after failures: 2",
                "database: taken out after failed checks: 2",
                "external_api: a check every 60s, timeout 10s, out after failures: 5",
                "external_api: taken out after failed checks: 5",
                "critical: a check every 10s, timeout 3s, out after failures: 1",
                "critical: taken out after failed checks: 1",
                "critical: taken back",
            ],
            spoilt: &[("failed checks: 5", "failed checks: 4")],
            ..Example::new("health_presets")
        },
        Example {
            lines: &["Alerts: 0"],
            holds: monitoring_holds,
            spoilt: &[
                ("availability: 75.00%", "availability: 74.00%"),
                ("Alerts: 0", "Alerts: 1"),
            ],
            ..Example::new("monitoring")
        },
    ];
    examples.iter().for_each(Example::verify);
}

#[test]
fn the_discovery_example_runs_on_a_real_consul_and_a_real_etcd() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let consul = runtime.block_on(Consul::start());
    let etcd = Etcd::start();
    for arguments in [
        ["consul".to_owned(), consul.address()],
        ["etcd".to_owned(), etcd.url(0)],
    ] {
        let example = Example {
            arguments: arguments.to_vec(),
            lines: &[
                "Discovered: 2 instances",
                "user-1 received 5, user-2 received 5",
                "After user-2 left the registry: 1 instance",
                "user-1 received 10, user-2 received 0",
                "After the stop of discovery: 1 instance",
            ],
            spoilt: &[("received 10, user-2 received 0", "received 9, user-2 received 1")],
            ..Example::new("discovery")
        };
        example.verify();
    }
    assert_eq!(
        etcd.ctl(["get", "--prefix", "--keys-only", "/services/"]).trim(),
        "",
        "nothing stays"
    );
}

#[test]
fn every_example_is_listed_and_tested() {
    let examples = fs::read_dir(root().join("examples"))
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let rust = examples.filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    let this = read("tests/integration/documentation.rs");
    let listed = read("examples/README.md");
    let mut found = 0;
    for path in rust {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        assert!(
            listed.contains(&format!("| [`{name}`]({name}.rs) |")),
            "examples/README.md: {name}"
        );
        assert!(this.contains(&format!("Example::new(\"{name}\")")), "{name} is not run");
        found += 1;
    }
    assert!(found >= 8, "{found}");
}
