//! A real Prometheus of its own for each test, on 127.0.0.1, and the real promtool.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tempfile::TempDir;

use super::{free_ports, http, until};

/// The folder that users of Prometheus copy.
pub(crate) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("integrations/prometheus")
}

/// The alert rules, as they are.
pub(crate) fn rules() -> String {
    fs::read_to_string(folder().join("rules/pickd.yml")).unwrap()
}

/// Runs promtool with this input. Gives what it printed, as an error when it ended with one.
pub(crate) fn promtool(arguments: &[&str], input: &[u8]) -> Result<String, String> {
    let program = std::env::var("PICKD_TEST_PROMTOOL")
        .expect("PICKD_TEST_PROMTOOL is not set: run tests/run, which finds or fetches the servers");
    let mut process = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("PICKD_TEST_PROMTOOL cannot be started");
    process.stdin.take().unwrap().write_all(input).unwrap();
    let output = process.wait_with_output().unwrap();
    let printed = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    if output.status.success() {
        Ok(printed)
    } else {
        Err(printed)
    }
}

/// Makes all durations of the rules sixty times shorter: those after `for:`, and those of windows.
pub(crate) fn sixty_times_faster(rules: &str) -> String {
    let shorter = |duration: &str| {
        let number = duration.trim_end_matches(char::is_alphabetic);
        let seconds = match &duration[number.len()..] {
            "m" => 1,
            "h" => 60,
            unit => panic!("{duration}: {unit:?} is neither minutes nor hours"),
        };
        format!("{}s", number.parse::<u32>().unwrap() * seconds)
    };
    let mut made = String::new();
    for line in rules.lines() {
        let mut line = line.to_owned();
        if let Some((before, duration)) = line.split_once(" for: ").map(|(a, b)| (a.to_owned(), b.to_owned())) {
            line = format!("{before} for: {}", shorter(&duration));
        } else {
            let mut parts = line.split('[').map(str::to_owned);
            let first = parts.next().unwrap_or_default();
            line = parts.fold(first, |made, part| match part.split_once(']') {
                Some((duration, rest)) => format!("{made}[{}]{rest}", shorter(duration)),
                None => format!("{made}[{part}"),
            });
        }
        made.push_str(&line);
        made.push('\n');
    }
    made
}

/// Killed when dropped.
pub(crate) struct Prometheus {
    process: Child,
    directory: TempDir,
    address: SocketAddr,
}

/// One element of an instant vector.
#[derive(Debug)]
pub(crate) struct Sample {
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) value: f64,
}

impl Prometheus {
    /// A server with the example configuration, scraping these agents every second by these rules.
    pub(crate) fn start(agents: &[SocketAddr], rules: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let example = fs::read_to_string(folder().join("prometheus.yml")).unwrap();
        let targets: Vec<String> = agents.iter().map(ToString::to_string).collect();
        let config = example
            .replace("15s", "1s")
            .replace("[\"pickd:7425\"]", &format!("{targets:?}"));
        assert_eq!(config.matches("_interval: 1s").count(), 2, "{config}");
        assert!(config.contains(&targets[0]), "{config}");
        fs::write(directory.path().join("prometheus.yml"), config).unwrap();
        fs::create_dir(directory.path().join("rules")).unwrap();
        fs::write(directory.path().join("rules/pickd.yml"), rules).unwrap();

        let program = std::env::var("PICKD_TEST_PROMETHEUS")
            .expect("PICKD_TEST_PROMETHEUS is not set: run tests/run, which finds or fetches the servers");
        let [port] = free_ports();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let log = File::create(directory.path().join("log")).unwrap();
        let process = Command::new(program)
            .arg(format!("--web.listen-address={address}"))
            .arg(format!(
                "--config.file={}",
                directory.path().join("prometheus.yml").display()
            ))
            .arg(format!(
                "--storage.tsdb.path={}",
                directory.path().join("data").display()
            ))
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("PICKD_TEST_PROMETHEUS cannot be started");
        let mut server = Self {
            process,
            directory,
            address,
        };
        until(Duration::from_secs(30), "Prometheus is ready", || {
            let ended = server.process.try_wait().unwrap();
            assert!(ended.is_none(), "it ended: {ended:?}\n{}", server.log());
            let mut connection = http::Connection::open(address).ok()?;
            let answer = connection.ask("GET", "/-/ready", &[]).ok()?;
            (answer.status == 200).then_some(())
        });
        server
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    fn api(&self, target: &str) -> Result<Value, String> {
        let answer = http::get(self.address, target).json();
        match answer["status"].as_str() {
            Some("success") => Ok(answer["data"].clone()),
            _ => Err(answer["error"].to_string()),
        }
    }

    /// Evaluates an expression now.
    pub(crate) fn query(&self, expression: &str) -> Result<Vec<Sample>, String> {
        let encoded = utf8_percent_encode(expression, NON_ALPHANUMERIC);
        let data = self.api(&format!("/api/v1/query?query={encoded}"))?;
        let vector = data["result"].as_array().cloned().unwrap_or_default();
        let samples = vector.iter().map(|sample| Sample {
            labels: labels(&sample["metric"]),
            value: sample["value"][1].as_str().unwrap().parse().unwrap(),
        });
        Ok(samples.collect())
    }

    /// Alerts that fire or wait for their time to be over, by name, each with its labels.
    pub(crate) fn alerts(&self, state: &str) -> BTreeSet<(String, BTreeMap<String, String>)> {
        let data = self.api("/api/v1/alerts").unwrap();
        let alerts = data["alerts"].as_array().unwrap().iter();
        alerts
            .filter(|alert| alert["state"] == state)
            .map(|alert| {
                let mut labels = labels(&alert["labels"]);
                (labels.remove("alertname").unwrap(), labels)
            })
            .collect()
    }
}

fn labels(object: &Value) -> BTreeMap<String, String> {
    let pairs = object.as_object().unwrap().iter();
    pairs
        .map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned()))
        .collect()
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("Prometheus's log:\n{}", self.log());
        }
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}
