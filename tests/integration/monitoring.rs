//! Alert rules and dashboard against a real Prometheus that scrapes running agents. Prometheus
//! evaluates every expression. Alerts fire because the test brings their condition about, and end
//! because it cures it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::block_in_place as blocking;

use crate::support::agent::{Agent, SOON, pickd};
use crate::support::consul::Consul;
use crate::support::etcd::Etcd;
use crate::support::folder::Folder;
use crate::support::http::Connection;
use crate::support::metrics::{Series, samples};
use crate::support::prometheus::{self, Prometheus, promtool, sixty_times_faster};
use crate::support::promql::selectors;
use crate::support::{free_ports, until};

/// For conditions that take several windows and pauses of a few seconds.
const LATER: Duration = Duration::from_secs(60);
/// Where the links of the rules lead until they are replaced.
const RUNBOOK: &str = "https://pickd.example/docs/operations.md#";
/// Labels that Prometheus gives every series of a target.
const OF_THE_TARGET: [&str; 2] = ["job", "instance"];

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn yaml(text: &str) -> Value {
    yaml_serde::from_str(text).unwrap()
}

fn text(value: &Value) -> String {
    value
        .as_str()
        .unwrap_or_else(|| panic!("{value} is no text"))
        .to_owned()
}

fn list(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

/// The unit tests of the rules, by their path from integrations/prometheus.
fn test_files() -> Vec<String> {
    let files = fs::read_dir(prometheus::folder().join("tests")).unwrap();
    files
        .map(|file| format!("tests/{}", file.unwrap().file_name().to_str().unwrap()))
        .collect()
}

/// Every unit test of the rules.
fn unit_tests() -> Vec<Value> {
    let files = test_files().into_iter();
    files
        .flat_map(|file| list(&yaml(&read(&format!("integrations/prometheus/{file}")))["tests"]))
        .collect()
}

/// Every rule, recording ones included.
fn rules(text: &str) -> Vec<Value> {
    let groups = list(&yaml(text)["groups"]);
    groups.iter().flat_map(|group| list(&group["rules"])).collect()
}

fn alerts(text: &str) -> BTreeMap<String, Value> {
    let alerts = rules(text).into_iter().filter(|rule| rule["alert"].is_string());
    alerts
        .map(|rule| (rule["alert"].as_str().unwrap().to_owned(), rule))
        .collect()
}

fn dashboard() -> Value {
    serde_json::from_str(&read("integrations/grafana/dashboards/pickd.json")).unwrap()
}

/// All panels but rows.
fn panels(dashboard: &Value) -> Vec<Value> {
    let panels = list(&dashboard["panels"]).into_iter();
    panels.filter(|panel| panel["type"] != "row").collect()
}

/// An expression of the dashboard as Grafana would send it, everything chosen.
fn substituted(expression: &str) -> String {
    let mut expression = expression.to_owned();
    for (variable, value) in [
        ("$__rate_interval", "10s"),
        ("$job", "pickd"),
        ("$instance", ".*"),
        ("$service", ".*"),
    ] {
        expression = expression.replace(variable, value);
    }
    assert!(!expression.contains('$'), "{expression}");
    expression
}

/// Every expression of the dashboard, with what the legend says, by where it stands.
fn dashboard_expressions(dashboard: &Value) -> Vec<(String, String, String)> {
    let mut found = Vec::new();
    for panel in panels(dashboard) {
        let targets = list(&panel["targets"]);
        assert!(!targets.is_empty(), "{panel}");
        for target in targets {
            let expression = substituted(target["expr"].as_str().unwrap());
            found.push((text(&panel["title"]), expression, text(&target["legendFormat"])));
        }
    }
    found
}

/// What a running agent exposes: the values of each label of each series, by name.
type Exposed = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;

fn exposed(metrics: &str) -> Exposed {
    let mut exposed = Exposed::new();
    for (Series { name, labels }, _) in samples(metrics) {
        let known = exposed.entry(name).or_default();
        for (label, value) in labels {
            known.entry(label).or_default().insert(value);
        }
    }
    exposed
}

/// The names, labels and values of labels in an expression that no agent exposes.
fn unknown(expression: &str, exposed: &Exposed, besides: &BTreeSet<String>) -> Vec<String> {
    let mut unknown = Vec::new();
    for selector in selectors(expression) {
        if besides.contains(&selector.name) {
            continue;
        }
        let Some(labels) = exposed.get(&selector.name) else {
            unknown.push(selector.name);
            continue;
        };
        for (label, _, value) in &selector.matchers {
            match labels.get(label) {
                _ if OF_THE_TARGET.contains(&label.as_str()) || value == ".*" => {}
                None => unknown.push(format!("{}{{{label}}}", selector.name)),
                Some(values) => {
                    let strangers = value.split('|').filter(|value| !values.contains(*value));
                    unknown.extend(strangers.map(|value| format!("{}{{{label}={value}}}", selector.name)));
                }
            }
        }
    }
    unknown
}

/// The series that rules and dashboard may name although no agent exposes them.
fn of_prometheus(rules_text: &str) -> BTreeSet<String> {
    let recorded = rules(rules_text)
        .into_iter()
        .filter_map(|rule| Some(rule["record"].as_str()?.to_owned()));
    recorded.chain(["up", "ALERTS"].map(str::to_owned)).collect()
}

/// An agent beside etcd and a file registry, with an active check, so that every series exists.
struct Exercised {
    agent: Agent,
    _etcd: Etcd,
    _folder: Folder,
}

impl Exercised {
    fn new() -> Self {
        let etcd = Etcd::start();
        etcd.put("/services/orders/o-1", "10.0.0.1:80");
        let backend = TcpListener::bind("127.0.0.1:0").unwrap();
        let folder = Folder::new();
        folder.registry(
            "services.toml",
            "web",
            &[&backend.local_addr().unwrap().to_string(), "10.0.0.2:80"],
        );
        let config = format!(
            "[file]\npath = \"services.toml\"\n[etcd]\nendpoints = [\"{}\"]\nrefresh = \"1s\"\n\
             [services.web]\nhealth_check = {{ type = \"tcp\" }}\nhealth_check_timeout = \"100ms\"\n",
            etcd.url(0)
        );
        let config = folder.write("pickd.toml", &config);
        let agent = Agent::run(["--config", config.to_str().unwrap()]).ready();
        agent.picks("web");
        agent.picks("orders");
        Self {
            agent,
            _etcd: etcd,
            _folder: folder,
        }
    }

    /// A pick under a lease and its report, for both services, and a name that no registry lists.
    fn use_it(&self) {
        let mut connection = Connection::open(self.agent.address).unwrap();
        for (service, outcome) in [("web", "success"), ("orders", "failure")] {
            lease_and_report(&mut connection, service, |_| (outcome, 3.0));
        }
        assert_eq!(self.agent.get("/pick/no-such-service").status, 404);
    }
}

/// Picks under a lease, and reports what `decide` says of the instance. Returns the pick's status.
fn lease_and_report(
    connection: &mut Connection,
    service: &str,
    decide: impl FnOnce(&str) -> (&'static str, f64),
) -> u16 {
    let answer = connection.post(&format!("/pick/{service}"), "").unwrap();
    if answer.status == 200 {
        let pick = answer.json();
        let (outcome, latency) = decide(pick["id"].as_str().unwrap());
        let report = json!({ "lease": pick["lease"], "outcome": outcome, "latency_ms": latency });
        let answer = connection.post("/report", &report.to_string()).unwrap();
        assert_eq!(answer.json()["accepted"], 1, "{}", answer.text());
    }
    answer.status
}

#[test]
fn promtool_accepts_the_rules_their_tests_and_the_configuration() {
    let folder = prometheus::folder();
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let printed = promtool(&["check", "rules", &path("rules/pickd.yml")], b"").unwrap();
    let count = rules(&prometheus::rules()).len();
    assert!(printed.contains(&format!("{count} rules found")), "{printed}");
    promtool(&["check", "config", &path("prometheus.yml")], b"").unwrap();
    for tests in test_files() {
        promtool(&["test", "rules", &path(&tests)], b"").unwrap_or_else(|printed| panic!("{printed}"));
    }
}

#[test]
fn a_planted_fault_of_a_rule_is_found_by_its_tests() {
    let scratch = Folder::new();
    for name in ["rules", "tests"] {
        fs::create_dir(scratch.path(name)).unwrap();
    }
    scratch.write(
        "tests/pickd_test.yml",
        &read("integrations/prometheus/tests/pickd_test.yml"),
    );
    // Open leases are never above eight times their limit: this alert cannot fire.
    let planted = prometheus::rules().replacen("pickd_leases_limit > 0.8", "pickd_leases_limit > 8", 1);
    assert_ne!(planted, prometheus::rules());
    scratch.write("rules/pickd.yml", &planted);
    let tests = scratch.path("tests/pickd_test.yml");
    let printed = promtool(&["test", "rules", tests.to_str().unwrap()], b"").unwrap_err();
    assert!(
        printed.contains("PickdLeasesNearLimit") && printed.contains("FAILED"),
        "{printed}"
    );
}

#[test]
fn every_alert_is_tested_where_it_fires_and_where_it_does_not() {
    let tests = unit_tests();
    let (mut fires, mut stays_silent) = (BTreeSet::new(), BTreeSet::new());
    for case in tests.iter().flat_map(|test| list(&test["alert_rule_test"])) {
        let expected = list(&case["exp_alerts"]);
        let cases = if expected.is_empty() {
            &mut stays_silent
        } else {
            &mut fires
        };
        cases.insert(text(&case["alertname"]));
    }
    let known: BTreeSet<String> = alerts(&prometheus::rules()).into_keys().collect();
    assert!(known.len() > 20, "{known:?}");
    assert_eq!(fires, known);
    assert_eq!(stays_silent, known);
}

#[test]
fn every_alert_has_a_runbook_section_and_every_section_has_an_alert() {
    let page = read("docs/operations.md");
    let section = page
        .split_once("\n## Alerts\n")
        .unwrap()
        .1
        .split("\n## ")
        .next()
        .unwrap();
    let headings: BTreeSet<&str> = section.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    let alerts = alerts(&prometheus::rules());
    assert_eq!(headings, alerts.keys().map(String::as_str).collect());
    for (name, rule) in &alerts {
        let annotations = &rule["annotations"];
        assert_eq!(annotations["runbook_url"], format!("{RUNBOOK}{}", name.to_lowercase()));
        for key in ["summary", "description"] {
            assert!(text(&annotations[key]).ends_with('.'), "{name}: {key}");
        }
        let severity = text(&rule["labels"]["severity"]);
        assert!(section.contains(&format!("\n| {severity} | ")), "{name}: {severity}");
        let told = section.split(&format!("### {name}\n")).nth(1).unwrap();
        let told = told.split("\n### ").next().unwrap();
        assert!(told.contains("- *Look at:* ") && told.contains("- *Do:* "), "{name}");
    }
}

#[test]
fn the_dashboard_has_the_fields_that_grafana_needs() {
    let dashboard = dashboard();
    assert_eq!((&dashboard["uid"], &dashboard["id"]), (&json!("pickd"), &Value::Null));
    assert_eq!(dashboard["schemaVersion"], 39);
    let variables: Vec<String> = list(&dashboard["templating"]["list"])
        .iter()
        .map(|variable| text(&variable["name"]))
        .collect();
    assert_eq!(variables, ["datasource", "job", "instance", "service"]);
    let source = json!({ "type": "prometheus", "uid": "${datasource}" });
    for variable in &list(&dashboard["templating"]["list"])[1..] {
        assert_eq!(variable["datasource"], source, "{variable}");
    }
    let mut ids = BTreeSet::new();
    let mut taken = BTreeSet::new();
    for panel in list(&dashboard["panels"]) {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "twice: {panel}");
        let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(at("x") + at("w") <= 24, "{panel}");
        for (x, y) in (at("x")..at("x") + at("w")).flat_map(|x| (at("y")..at("y") + at("h")).map(move |y| (x, y))) {
            assert!(taken.insert((x, y)), "{} lies over another panel", panel["title"]);
        }
    }
    let mut titles = BTreeSet::new();
    for panel in panels(&dashboard) {
        assert!(titles.insert(text(&panel["title"])), "twice: {}", panel["title"]);
        assert!(text(&panel["description"]).ends_with('.'), "{}", panel["title"]);
        assert!(
            panel["fieldConfig"]["defaults"]["unit"].is_string(),
            "{}",
            panel["title"]
        );
        assert_eq!(panel["datasource"], source);
        for target in list(&panel["targets"]) {
            assert_eq!(target["datasource"], source);
            let expression = text(&target["expr"]);
            assert!(
                expression.contains("job=~\"$job\", instance=~\"$instance\""),
                "{expression}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_expression_names_exposed_metrics_and_prometheus_evaluates_it() {
    blocking(|| {
        let exercised = Exercised::new();
        let server = Prometheus::start(&[exercised.agent.address], &sixty_times_faster(&prometheus::rules()));
        exercised.use_it();
        let metrics = exercised.agent.get("/metrics").text().to_owned();
        let (rules_text, dashboard) = (prometheus::rules(), dashboard());
        let (exposed, besides) = (exposed(&metrics), of_prometheus(&rules_text));
        let in_dashboard = dashboard_expressions(&dashboard);
        let in_rules = rules(&rules_text).into_iter().map(|rule| {
            let name = if rule["alert"].is_string() {
                &rule["alert"]
            } else {
                &rule["record"]
            };
            (text(name), text(&rule["expr"]))
        });
        let annotations = list(&dashboard["annotations"]["list"]);
        let expressions: Vec<(String, String)> = in_dashboard
            .iter()
            .map(|(title, expression, _)| (title.clone(), expression.clone()))
            .chain(in_rules)
            .chain(annotations.iter().map(|one| (text(&one["name"]), text(&one["expr"]))))
            .collect();

        // What is named is exposed.
        for (place, expression) in &expressions {
            let unknown = unknown(expression, &exposed, &besides);
            assert!(unknown.is_empty(), "{place}: no agent exposes {unknown:?}");
        }
        // What the tests of the rules start from is exposed with exactly those labels.
        for test in unit_tests() {
            for input in list(&test["input_series"]) {
                for selector in selectors(&text(&input["series"])) {
                    if besides.contains(&selector.name) {
                        continue;
                    }
                    let known = exposed
                        .get(&selector.name)
                        .unwrap_or_else(|| panic!("{input}: not exposed"));
                    let labels: BTreeSet<&str> = selector.matchers.iter().map(|(label, ..)| label.as_str()).collect();
                    let known = known.keys().map(String::as_str).chain(OF_THE_TARGET).collect();
                    assert_eq!(labels, known, "{input}");
                }
            }
        }
        // What is exposed is looked at by a rule or a panel.
        let named: BTreeSet<String> = expressions
            .iter()
            .flat_map(|(_, expression)| selectors(expression))
            .map(|selector| selector.name)
            .collect();
        let families = metrics.lines().filter_map(|line| line.strip_prefix("# TYPE pickd_"));
        let unseen: Vec<&str> = families
            .map(|line| line.split(' ').next().unwrap())
            .filter(|family| {
                let of_family = |name: &String| {
                    let name = name.strip_prefix("pickd_")?;
                    ["", "_bucket", "_sum", "_count"]
                        .iter()
                        .find(|part| name == format!("{family}{part}"))
                };
                !named.iter().any(|name| of_family(name).is_some())
            })
            .collect();
        assert!(unseen.is_empty(), "neither a rule nor a panel has {unseen:?}");

        // Every panel shows something, and its series have the labels that the legend names.
        for (title, expression, legend) in &in_dashboard {
            until(LATER, &format!("{title}: {expression}: {legend}"), || {
                exercised.use_it();
                std::thread::sleep(Duration::from_millis(50));
                let found = server
                    .query(expression)
                    .unwrap_or_else(|error| panic!("{title}: {expression}: {error}"));
                let named = |label: &str| found.iter().all(|sample| sample.labels.contains_key(label));
                let mut labels = legend.split("{{").skip(1).filter_map(|part| part.split("}}").next());
                (!found.is_empty() && labels.all(named)).then_some(())
            });
        }
        for (place, expression) in &expressions {
            server
                .query(expression)
                .unwrap_or_else(|error| panic!("{place}: {expression}: {error}"));
        }
        // No label of the agent collides with one that Prometheus sets.
        let all = server.query("{__name__=~\"pickd_.+\"}").unwrap();
        assert!(all.len() > 50, "{}", all.len());
        for sample in all {
            let renamed = sample.labels.keys().find(|label| label.starts_with("exported_"));
            assert_eq!(renamed, None, "{:?}", sample.labels);
        }
        drop(exercised);
    });
}

#[test]
fn outcomes_response_times_and_breakers_are_counted_for_each_service() {
    let folder = Folder::new();
    folder.registry("services.toml", "web", &["127.0.0.2:1", "127.0.0.2:2", "127.0.0.2:3"]);
    let config = "[file]\npath = \"services.toml\"\n[metrics]\ninstance_series = 0\n\
                  [services.web]\nmax_consecutive_failures = 1\nbreaker = { open_min = \"1h\", open_max = \"1h\" }\n";
    let config = folder.write("pickd.toml", config);
    let agent = Agent::run(["--config", config.to_str().unwrap()]).ready();
    let mut connection = Connection::open(agent.address).unwrap();
    for outcome in [("failure", 250.0), ("success", 500.0)] {
        assert_eq!(lease_and_report(&mut connection, "web", |_| outcome), 200);
    }
    let holds = |series: &str, value: f64| assert_eq!(agent.metric(series), Some(value), "{series}");
    let outcomes = || {
        holds(r#"pickd_outcomes_total{result="success",service="web"}"#, 1.0);
        holds(r#"pickd_outcomes_total{result="failure",service="web"}"#, 1.0);
        holds(r#"pickd_response_seconds_count{service="web"}"#, 2.0);
        holds(r#"pickd_response_seconds_sum{service="web"}"#, 0.75);
    };
    outcomes();
    holds("pickd_ready", 1.0);
    holds("pickd_leases_limit", 100_000.0);
    holds(r#"pickd_pool_available_instances{service="web"}"#, 2.0);
    for (state, count) in [("open", 1.0), ("half_open", 0.0), ("closed", 1.0)] {
        holds(
            &format!(r#"pickd_pool_breakers{{service="web",state="{state}"}}"#),
            count,
        );
    }
    // Counters do not go back when the instances leave.
    folder.registry("services.toml", "web", &["127.0.0.2:4"]);
    until(SOON, "the others have left", || {
        (agent.metric(r#"pickd_pool_available_instances{service="web"}"#) == Some(1.0)).then_some(())
    });
    outcomes();
}

#[test]
fn an_unknown_series_label_or_value_is_found() {
    let exposed = exposed("pickd_a_total{result=\"ok\",service=\"web\"} 1\npickd_b 2\n");
    let besides = of_prometheus("groups: [{ rules: [{ record: \"a:b:c\", expr: \"1\" }] }]");
    let found = |expression: &str| unknown(expression, &exposed, &besides);
    assert_eq!(
        found("rate(pickd_a_total{result=\"ok\", job=\"x\"}[5m]) / a:b:c > up"),
        [""; 0]
    );
    assert_eq!(found("pickd_b and rate(pickd_c_total[5m])"), ["pickd_c_total"]);
    assert_eq!(found("pickd_a_total{outcome=\"ok\"}"), ["pickd_a_total{outcome}"]);
    assert_eq!(
        found("pickd_a_total{result=~\"ok|nok\"}"),
        ["pickd_a_total{result=nok}"]
    );
}

#[test]
fn shortened_rules_are_shortened_everywhere() {
    let fast = sixty_times_faster(&prometheus::rules());
    let scratch = Folder::new();
    let path = scratch.write("pickd.yml", &fast);
    promtool(&["check", "rules", path.to_str().unwrap()], b"").unwrap();
    let (slow, fast) = (rules(&prometheus::rules()), rules(&fast));
    assert_eq!(slow.len(), fast.len());
    for (slow, fast) in slow.iter().zip(&fast) {
        let expression = text(&fast["expr"]);
        assert!(!expression.contains("m]") && !expression.contains("h]"), "{expression}");
        assert_eq!(slow["for"].is_string(), fast["for"].is_string());
        assert!(
            fast["for"].as_str().is_none_or(|duration| duration.ends_with('s')),
            "{fast}"
        );
    }
}

/// Callers that pick and report until this is dropped.
struct Callers {
    state: Arc<CallersState>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct CallersState {
    broken: AtomicBool,
    stopped: AtomicBool,
    rounds: AtomicU64,
}

impl Callers {
    fn start(address: SocketAddr) -> Self {
        let state = Arc::<CallersState>::default();
        let theirs = Arc::clone(&state);
        let thread = std::thread::spawn(move || {
            let mut connection = Connection::open(address).unwrap();
            while !theirs.stopped.load(Ordering::Relaxed) {
                let broken = theirs.broken.load(Ordering::Relaxed);
                let round = theirs.rounds.fetch_add(1, Ordering::Relaxed);
                for service in ["calm", "empties", "shrinks", "fails", "slow", "breaks"] {
                    let decide = |id: &str| match (service, broken) {
                        ("fails", true) if round.is_multiple_of(2) => ("failure", 5.0),
                        ("slow", true) => ("success", 3_000.0),
                        ("breaks", true) if id == "127.0.0.9:1" => ("failure", 5.0),
                        _ => ("success", 5.0),
                    };
                    lease_and_report(&mut connection, service, decide);
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Self {
            state,
            thread: Some(thread),
        }
    }

    fn broken(&self, broken: bool) {
        self.state.broken.store(broken, Ordering::Relaxed);
    }
}

impl Drop for Callers {
    fn drop(&mut self) {
        self.state.stopped.store(true, Ordering::Relaxed);
        let ended = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            ended.unwrap();
        }
    }
}

/// The services of the file, well or not.
fn services(broken: bool) -> String {
    let instances = |service: &str, count: u8, host: u8| {
        let mut text = format!("[[service]]\nname = \"{service}\"\n");
        for port in 1..=count {
            text.push_str(&format!(
                "[[service.instance]]\nhost = \"127.0.0.{host}\"\nport = {port}\n"
            ));
        }
        text
    };
    [
        instances("calm", 2, 2),
        instances("empties", if broken { 0 } else { 2 }, 3),
        instances("shrinks", if broken { 1 } else { 4 }, 4),
        instances("fails", 2, 5),
        instances("slow", 2, 6),
        instances("breaks", 2, 9),
    ]
    .concat()
}

const CONFIG: &str = "[file]\npath = \"services.toml\"\n\
    [services.fails]\nmax_consecutive_failures = 1000\nbreaker = { min_outcomes = 100000 }\n\
    [services.breaks]\nmax_consecutive_failures = 1\nbreaker = { open_min = \"2s\", open_max = \"2s\" }\n";

fn file_agent(folder: &Folder, address: SocketAddr) -> Agent {
    let registry = folder.path("services.toml");
    Agent::start(
        pickd()
            .args(["run", "--listen", &address.to_string()])
            .args(["--file", registry.to_str().unwrap()]),
    )
    .ready()
}

/// Waits until all these alerts fire, and says after how long each did.
fn until_all_fire(server: &Prometheus, expected: &[(&str, &str, &str)], since: Instant) {
    let mut waiting: BTreeSet<_> = expected.iter().collect();
    let (mut seen, mut count) = (Vec::new(), waiting.len());
    until(LATER, "all alerts fire", || {
        for (name, labels) in server.alerts("firing") {
            waiting.retain(|(alert, label, value)| {
                let is_it = name == *alert && labels.get(*label).is_some_and(|found| found == value);
                if is_it {
                    seen.push(format!("{alert} {value} {:.1?}", since.elapsed()));
                }
                !is_it
            });
        }
        if waiting.len() != count {
            count = waiting.len();
            eprintln!("{:.1?}: waiting for {waiting:?}", since.elapsed());
        }
        std::thread::sleep(Duration::from_millis(100));
        waiting.is_empty().then_some(())
    });
    eprintln!("fired: {}", seen.join(", "));
}

/// Waits until no alert fires or is about to.
fn until_silence(server: &Prometheus, why: &str) {
    let since = Instant::now();
    let mut last = BTreeSet::new();
    let silent = || {
        let now = server.alerts("firing").into_iter().chain(server.alerts("pending"));
        let names: BTreeSet<String> = now.map(|(name, labels)| format!("{name} {labels:?}")).collect();
        if names != last {
            eprintln!("{why}, {:.1?}: {names:?}", since.elapsed());
            last.clone_from(&names);
        }
        std::thread::sleep(Duration::from_millis(100));
        names.is_empty().then_some(())
    };
    until(LATER, why, silent);
}

#[tokio::test(flavor = "multi_thread")]
async fn alerts_fire_under_their_condition_and_resolve_without_it() {
    let mut consul = Consul::start().await;
    let backends: Vec<TcpListener> = (0..4).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let register_all = async |consul: &Consul| {
        for (number, backend) in backends.iter().enumerate() {
            let port = i64::from(backend.local_addr().unwrap().port());
            let fields = json!({ "Address": "127.0.0.1" });
            consul
                .register("n1", "orders", &format!("o-{number}"), port, fields)
                .await;
        }
    };
    register_all(&consul).await;
    let address = consul.address();
    let beside_consul = Agent::run(["--consul", &address]).ready();
    let folder = Folder::new();
    folder.write("services.toml", &services(false));
    let config = folder.write("pickd.toml", CONFIG);
    let beside_file = Agent::run(["--config", config.to_str().unwrap()]).ready();
    let [port] = free_ports();
    let mut mortal = file_agent(&folder, SocketAddr::from(([127, 0, 0, 1], port)));
    let (in_consul, in_file, mortal_address) = (beside_consul.address, beside_file.address, mortal.address);

    let fast = sixty_times_faster(&prometheus::rules());
    let server = Prometheus::start(&[in_consul, in_file, mortal_address], &fast);
    let callers = Callers::start(in_file);
    until(SOON, "all agents are scraped", || {
        let up = server.query("sum(up{job=\"pickd\"})").unwrap();
        up.first().is_some_and(|sample| sample.value == 3.0).then_some(())
    });
    until_silence(&server, "nothing is wrong");

    // All conditions at once, each at a service, a source or an agent of its own.
    let since = Instant::now();
    callers.broken(true);
    folder.write("services.toml", &services(true));
    folder.write("pickd.toml", "[file]\npath = \"services.toml\"\nno-such-key = 1\n");
    beside_file.program.signal("HUP");
    mortal.program.signal("KILL");
    mortal.program.exit_code(SOON);
    consul.kill();
    let (file, killed, by_consul) = (in_file.to_string(), mortal_address.to_string(), in_consul.to_string());
    let expected = [
        ("PickdDown", "instance", killed.as_str()),
        ("PickdReloadFailed", "instance", &file),
        ("PickdSourceAway", "instance", &by_consul),
        ("PickdPoolEmpty", "service", "empties"),
        ("PickdPicksRefused", "service", "empties"),
        ("PickdPoolShrunk", "service", "shrinks"),
        ("PickdFailureRate", "service", "fails"),
        ("PickdResponseTime", "service", "slow"),
        ("PickdBreakersOpen", "service", "breaks"),
    ];
    until_all_fire(&server, &expected, since);
    for (name, labels) in server.alerts("firing") {
        assert!(
            labels.get("service").is_none_or(|service| service != "calm"),
            "{name} {labels:?}"
        );
    }

    // Everything is cured. Consul comes back without its data, so that removals are held.
    let cured = Instant::now();
    callers.broken(false);
    folder.write("services.toml", &services(false));
    folder.write("pickd.toml", CONFIG);
    beside_file.program.signal("HUP");
    mortal = file_agent(&folder, mortal_address);
    consul.wipe();
    consul.restart().await;
    until_all_fire(&server, &[("PickdRemovalsHeld", "source", "consul")], cured);
    register_all(&consul).await;
    until_silence(&server, "all is well again");
    eprintln!("it all took {:.1?}", since.elapsed());
    let rounds = callers.state.rounds.load(Ordering::Relaxed);
    assert!(rounds > 100, "{rounds}");
    drop((callers, server, mortal));
}
