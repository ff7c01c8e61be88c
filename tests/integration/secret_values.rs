//! Passwords that stand in a registry by mistake: no log line, no error, no metric and no answer
//! repeats them.

use std::process::Output;

use serde_json::json;

use crate::support::agent::{Agent, SOON, command};
use crate::support::consul::Consul;
use crate::support::etcd::Etcd;
use crate::support::folder::Folder;
use crate::support::pool::until_picked;
use crate::support::until;

const CANARY: &str = "S3cr3t";
/// A number that may be a PIN.
const PIN: &str = "90210777";

/// Values as they are found below a prefix by mistake, and values in which only one field is not
/// valid.
const VALUES: [&str; 25] = [
    "S3cr3t",
    "90210777",
    "S3cr3t:90210777",
    "postgres://app:S3cr3t@10.0.0.1:5432",
    "postgres://app:S3cr3t@10.0.0.1:5432/payments?password=S3cr3t",
    "user=S3cr3t&weight=S3cr3t",
    "\"S3cr3t\"",
    "[\"S3cr3t\"]",
    "{\"password\":\"S3cr3t\"}",
    "{\"password\":S3cr3t",
    "{\"host\":\"S3cr3t S3cr3t\",\"port\":80}",
    "{\"host\":\"db\",\"port\":\"S3cr3t\"}",
    "{\"host\":\"db\",\"port\":90210777}",
    "{\"host\":\"db\",\"port\":80,\"weight\":90210777}",
    "{\"host\":\"db\",\"port\":80,\"status\":\"S3cr3t\"}",
    "{\"host\":\"db\",\"port\":80,\"tags\":{\"a\":[\"S3cr3t\"]}}",
    "{\"host\":\"db\",\"port\":80,\"tags\":[\"S3cr3t\\u0007\"]}",
    "{\"host\":\"db\",\"port\":80,\"priority\":\"S3cr3t\"}",
    "{\"host\":[\"S3cr3t\"],\"port\":80}",
    "{\"Addr\":\"S3cr3t\",\"Op\":0}",
    "{\"Addr\":\"db:80\",\"Op\":\"S3cr3t\"}",
    "{\"network\":\"tcp\",\"address\":\"S3cr3t\"}",
    "{\"endpoints\":[\"http://app:S3cr3t@10.0.0.1:80\"]}",
    "{\"endpoints\":\"S3cr3t\"}",
    "{\"nodes\":[{\"id\":\"a\",\"address\":\"S3cr3t\",\"port\":90210777}]}",
];

fn repeats(text: &str) -> bool {
    text.contains(CANARY) || text.contains(PIN)
}

fn check_answers(agent: &Agent, services: &[&str]) {
    let mut targets = vec!["/metrics".to_owned(), "/readyz".to_owned(), "/services".to_owned()];
    for service in services {
        for path in ["/pick/", "/services/"] {
            targets.push(format!("{path}{service}"));
        }
    }
    for target in &targets {
        let answer = agent.get(target);
        assert!(!repeats(answer.text()), "{target}: {}", answer.text());
    }
    for line in agent.program.stderr.all().iter().chain(&agent.program.stdout.all()) {
        assert!(!repeats(line), "{line}");
    }
}

#[test]
fn values_of_etcd_are_not_repeated_whatever_they_are() {
    let etcd = Etcd::start();
    etcd.put("/services/web/a", "10.0.0.1:80");
    let prefix = |number: usize, format: &str| format!("{{ prefix = \"/services-{number}\", format = \"{format}\" }},");
    let formats = [
        "auto", "json", "plain", "grpc", "kratos", "go-zero", "go-micro", "kitex", "rpcx", "skydns",
    ];
    let prefixes: String = formats
        .iter()
        .enumerate()
        .map(|(number, format)| prefix(number, format))
        .collect();
    let mut pairs = vec![("/services/db/password".to_owned(), CANARY.to_owned())];
    for (number, _) in formats.iter().enumerate() {
        for (value_number, value) in VALUES.iter().enumerate() {
            // The first half is in the list, the second half comes through the watch.
            let id = if value_number % 2 == 0 { "tcp@S:1" } else { "key" };
            let key = format!("/services-{number}/db/{id}-{value_number}");
            pairs.push((key, (*value).to_owned()));
        }
        pairs.push((format!("/services-{number}/too/deep/key"), CANARY.to_owned()));
    }
    let (listed, later) = pairs.split_at(pairs.len() / 2);
    etcd.put_many(listed);
    let folder = Folder::new();
    let text = format!(
        "[etcd]\nendpoints = [\"{}\"]\nprefixes = [{{ prefix = \"/services\" }}, {prefixes}]",
        etcd.url(0)
    );
    let config = folder.write("pickd.toml", &text);
    let agent = Agent::run(["--config", config.to_str().unwrap(), "--log", "debug"]).ready();
    etcd.put_many(later);
    etcd.put("/services/web/b", "10.0.0.2:80");
    until_picked(&agent, "web", &["a", "b"], SOON);
    check_answers(&agent, &["web", "db", "too"]);
    // The key, the reason and the length are told.
    let lines = agent
        .program
        .logged("values not valid, keeping what their keys registered before");
    let first = lines[0]["first"].as_str().unwrap();
    assert!(first.starts_with("/services/db/password: host: expected"), "{first}");
    assert!(first.ends_with("(6 bytes)"), "{first}");
    let dump = etcd.ctl(["get", "--prefix", "/services", "-w", "json"]);
    let dump = folder.write("dump.json", &dump);
    let output = command(["check", "--etcd-dump", dump.to_str().unwrap(), config.to_str().unwrap()]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("/services/db/password"));
    check_output(&output);
}

fn check_output(output: &Output) {
    for text in [&output.stdout, &output.stderr] {
        let text = String::from_utf8_lossy(text);
        // `host:port` of an instance is told; it is what the registry is for.
        assert!(!repeats(&text), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn values_of_consul_are_not_repeated() {
    let consul = Consul::start().await;
    consul
        .register("n1", "web", "good", 80, json!({ "Address": "10.0.0.1" }))
        .await;
    for (id, fields) in [
        ("host", json!({ "Address": "S3cr3t S3cr3t" })),
        ("dsn", json!({ "Address": "postgres://app:S3cr3t@10.0.0.1:5432/x" })),
        (
            "weight",
            json!({ "Address": "10.0.0.2", "Meta": { "weight": "S3cr3t" } }),
        ),
        ("tag", json!({ "Address": "10.0.0.3", "Tags": ["S3cr3t\u{7}"] })),
        (
            "weights",
            json!({ "Address": "10.0.0.4", "Weights": { "Passing": 90_210_777, "Warning": 1 } }),
        ),
    ] {
        consul.register("n1", "web", id, 80, fields).await;
    }
    consul
        .register("n1", "web", "port", 90_210_777, json!({ "Address": "10.0.0.5" }))
        .await;
    consul.check("n1", "good", "c", "passing", CANARY).await;
    tokio::task::block_in_place(|| {
        let agent = Agent::run(["--consul", &consul.address(), "--log", "debug"]).ready();
        agent.picks("web");
        let skipped = agent
            .metric(r#"pickd_source_errors_total{reason="invalid_instance",source="consul"}"#)
            .unwrap();
        assert!(skipped >= 3.0, "{skipped}");
        // `/services/web` shows the metadata of valid instances, which is what metadata is for.
        check_answers(&agent, &[]);
    });
}

#[test]
fn values_of_a_file_are_not_repeated() {
    let folder = Folder::new();
    let path = folder.registry("services.toml", "web", &["10.0.0.1:80"]);
    let agent = Agent::run(["--file", path.to_str().unwrap(), "--log", "debug"]).ready();
    let service = "[[service]]\nname = \"web\"\n[[service.instance]]\n";
    let mut errors = 0.0;
    for text in [
        format!("{service}host = \"S3cr3t S3cr3t\"\nport = 80\n"),
        format!("{service}host = \"db\"\nport = 90210777\n"),
        format!("{service}host = \"db\"\nport = \"S3cr3t\"\n"),
        format!("{service}host = 90210777\nport = 80\n"),
        format!("{service}host = \"db\"\nport = 80\nstatus = \"S3cr3t\"\n"),
        format!("{service}host = \"db\"\nport = 80\nmetadata = {{ password = 90210777 }}\n"),
        format!("{service}host = S3cr3t\n"),
        "service = \"S3cr3t\"\n".to_owned(),
    ] {
        folder.write("services.toml", &text);
        errors += 1.0;
        let series = r#"pickd_source_errors_total{reason="invalid_file",source="file"}"#;
        until(SOON, &text, || (agent.metric(series) >= Some(errors)).then_some(()));
        check_answers(&agent, &["web"]);
        if text.starts_with(service) {
            // Any other file is checked as a configuration, with its line repeated.
            check_output(&command(["check", path.to_str().unwrap()]));
        }
    }
    for (name, text) in [
        (
            "a.json",
            r#"{"service":[{"name":"web","instance":[{"host":"S3cr3t S3cr3t","port":80}]}]}"#,
        ),
        (
            "a.json",
            r#"{"service":[{"name":"web","instance":[{"host":"db","port":"S3cr3t"}]}]}"#,
        ),
        (
            "a.json",
            r#"{"service":[{"name":"web","instance":[{"host":90210777,"port":80}]}]}"#,
        ),
        ("a.json", r#"{"service":S3cr3t}"#),
        ("a.json", r#""S3cr3t""#),
        (
            "a.yaml",
            "service:\n- name: web\n  instance:\n  - host: S3cr3t S3cr3t\n    port: 80\n",
        ),
        (
            "a.yaml",
            "service:\n- name: web\n  instance:\n  - host: db\n    port: S3cr3t\n",
        ),
        ("a.yaml", "service: S3cr3t\n"),
        ("a.yaml", "S3cr3t\n"),
        ("a.yaml", "service: [S3cr3t\n"),
        ("a.yaml", "service: &a *S3cr3t\n"),
        ("a.yaml", "service: !S3cr3t 3\n"),
    ] {
        let path = folder.write(name, text);
        let output = command(["check", path.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1), "{text}");
        check_output(&output);
    }
}
