//! A reserve as users see it: priorities in every registry, services that fail open, and named ports.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::agent::{Agent, SOON, command};
use crate::support::consul::Consul;
use crate::support::etcd::Etcd;
use crate::support::folder::Folder;
use crate::support::http;
use crate::support::until;

/// Bound for a failover.
const LATER: Duration = Duration::from_secs(30);

/// An agent with these instances in a file, and further lines of configuration.
struct WithFile {
    folder: Folder,
    agent: Agent,
}

impl WithFile {
    fn new(services: &str, config: &str) -> Self {
        let folder = Folder::new();
        let file = folder.write("services.toml", services);
        let text = format!("{config}\n[file]\npath = {:?}\n", file.to_str().unwrap());
        let config = folder.write("pickd.toml", &text);
        let agent = Agent::run(["--config", config.to_str().unwrap()]).ready();
        Self { folder, agent }
    }

    fn write(&self, services: &str) {
        self.folder.write("services.toml", services);
    }
}

/// Waits until picks return exactly these ids.
fn until_picked(agent: &Agent, service: &str, expected: &[&str]) {
    let path = format!("/pick/{service}");
    until(LATER, &format!("{service} is {expected:?}"), || {
        let picked: BTreeSet<String> = (0..24)
            .filter_map(|_| agent.get(&path).json()["id"].as_str().map(str::to_owned))
            .collect();
        picked.iter().eq(expected).then_some(())
    });
}

fn why(agent: &Agent, id: &str) -> Vec<String> {
    let explained = agent.get("/explain/web").json();
    let instances = explained["instances"].as_array().unwrap();
    let instance = instances.iter().find(|instance| instance["id"] == id).unwrap();
    let words = instance["why"].as_array().unwrap().iter();
    words.map(|word| word.as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lower_priority_number_in_consul_is_picked_alone() {
    let consul = Consul::start().await;
    let with = |priority: &str| json!({ "Address": "127.0.0.1", "Meta": { "priority": priority, "port-grpc": format!("90{priority}") } });
    consul.register("n1", "web", "first", 8001, with("10")).await;
    consul.register("n1", "web", "second", 8002, with("20")).await;
    let agent = blocking(|| Agent::run(["--consul", &consul.address()]).ready());
    blocking(|| until_picked(&agent, "web", &["first@n1"]));
    assert_eq!(why(&agent, "second@n1"), ["registry_passing", "not_in_turn"]);
    assert_eq!(agent.metric(r#"pickd_pool_tier{service="web"}"#), Some(0.0));
    assert_eq!(agent.get("/pick/web?port=grpc").json()["address"], "127.0.0.1:9010");

    consul.check("n1", "first", "health", "critical", "down").await;
    blocking(|| until_picked(&agent, "web", &["second@n1"]));
    assert_eq!(agent.get("/services").json()["services"][0]["tier_in_turn"], 1);
    assert_eq!(agent.metric(r#"pickd_pool_tier{service="web"}"#), Some(1.0));
    let message = "no instance of the tier can be picked, the next tier is in turn";
    let logged = blocking(|| agent.program.wait_for_log(message, |_| true));
    assert_eq!((&logged["priority"], &logged["service"]), (&json!(20), &json!("web")));
    let answer = agent.get("/pick/web?exclude=second@n1");
    assert_eq!((answer.status, &answer.json()["code"]), (503, &json!("none_available")));

    consul.check("n1", "first", "health", "passing", "").await;
    blocking(|| until_picked(&agent, "web", &["first@n1"]));
    blocking(|| {
        agent
            .program
            .wait_for_log("an earlier tier can be picked again", |line| line["priority"] == 10)
    });
    // A retry that excludes the first tier.
    assert_eq!(agent.get("/pick/web?exclude=first@n1").json()["id"], "second@n1");
    let alternates = agent.get("/pick/web?n=3").json()["alternates"].clone();
    assert_eq!(alternates.as_array().unwrap().len(), 1);
    assert_eq!(alternates[0]["id"], "second@n1");
    blocking(|| drop(agent));
}

#[test]
fn records_of_skydns_are_picked_by_priority_and_10_is_the_default() {
    let etcd = Etcd::start();
    let record = |port: u16, priority: &str| format!(r#"{{"host":"127.0.0.1","port":{port}{priority},"ttl":60}}"#);
    etcd.put("/skydns/local/web/x10", &record(8010, r#","priority":10"#));
    etcd.put("/skydns/local/web/x20", &record(8020, r#","priority":20"#));
    etcd.put("/skydns/local/web/without", &record(8030, ""));
    let folder = Folder::new();
    let text = format!(
        "[etcd]\nendpoints = [\"{}\"]\n[[etcd.prefixes]]\nprefix = \"/skydns/local/\"\nformat = \"skydns\"\n",
        etcd.url(0)
    );
    let config = folder.write("pickd.toml", &text);
    let agent = Agent::run(["--config", config.to_str().unwrap()]).ready();
    until_picked(&agent, "web", &["without", "x10"]);
    etcd.delete("/skydns/local/web/x10");
    until_picked(&agent, "web", &["without"]);
    etcd.delete("/skydns/local/web/without");
    until_picked(&agent, "web", &["x20"]);
    etcd.put("/skydns/local/web/x5", &record(8040, r#","priority":5"#));
    until_picked(&agent, "web", &["x5"]);
}

#[test]
fn priorities_of_a_file_are_heeded_and_one_that_is_no_number_is_told() {
    let services = r#"
        [[service]]
        name = "web"
        instance = [
            { id = "a", host = "127.0.0.1", port = 8001, metadata = { priority = "1" } },
            { id = "b", host = "127.0.0.1", port = 8002, metadata = { priority = "soon" } },
            { id = "c", host = "127.0.0.1", port = 8003, metadata = { priority = "0" } },
        ]
    "#;
    let with = WithFile::new(services, "");
    until_picked(&with.agent, "web", &["b", "c"]);
    assert_eq!(why(&with.agent, "b"), ["nobody_objects", "priority_ignored"]);
    assert_eq!(why(&with.agent, "a"), ["nobody_objects", "not_in_turn"]);
    let explained = with.agent.get("/explain/web").json();
    assert_eq!(
        explained["tiers"],
        json!([
            { "rank": 0, "priority": 0, "in_turn": true, "available_instances": 2, "total_instances": 2 },
            { "rank": 0, "priority": 1, "in_turn": false, "available_instances": 1, "total_instances": 1 },
        ])
    );
    let detail = with.agent.get("/services/web").json();
    let a = &detail["instances"]["a"];
    assert_eq!(
        (&a["priority"], &a["in_turn"], &a["available"], &a["effective_weight"]),
        (&json!(1), &json!(false), &json!(true), &json!(0.0))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_is_critical_as_a_whole_fails_open_if_told_so() {
    let consul = Consul::start().await;
    for (id, port) in [("a", 8001), ("b", 8002)] {
        consul
            .register("n1", "web", id, port, json!({ "Address": "127.0.0.1" }))
            .await;
        consul.check("n1", id, &format!("health-{id}"), "critical", "").await;
    }
    let folder = Folder::new();
    let text = |more: &str| format!("[consul]\naddress = \"{}\"\n{more}", consul.address());
    let config = folder.write("pickd.toml", &text(""));
    let agent = blocking(|| Agent::run(["--config", config.to_str().unwrap()]).ready());
    blocking(|| {
        until(SOON, "the service is known, and closed", || {
            let answer = agent.get("/pick/web");
            (answer.json()["code"] == "none_available").then_some(())
        });
    });
    folder.write("pickd.toml", &text("[services.web]\nfail_open = true\n"));
    agent.program.signal("HUP");
    blocking(|| until_picked(&agent, "web", &["a@n1", "b@n1"]));
    let answer = agent.get("/pick/web?n=2").json();
    assert_eq!((&answer["fail_open"], &answer["panic"]), (&json!(true), &Value::Null));
    assert_eq!(answer["status"], "unhealthy");
    assert_eq!(why(&agent, "a@n1"), ["registry_critical", "fail_open"]);
    let summary = agent.get("/services/web").json();
    assert_eq!(
        (
            &summary["fail_open"],
            &summary["panic"],
            &summary["available_instances"]
        ),
        (&json!(true), &json!(false), &json!(0))
    );
    assert_eq!(agent.metric(r#"pickd_pool_fail_open{service="web"}"#), Some(1.0));
    assert!(agent.metric(r#"pickd_picks_total{result="fail_open",service="web"}"#) > Some(0.0));
    assert_eq!(
        agent.metric(r#"pickd_picks_total{result="ok",service="web"}"#),
        Some(0.0)
    );
    let message = "every instance is critical, picking from critical ones: fail_open";
    blocking(|| agent.program.wait_for_log(message, |line| line["instances"] == 2));
    let table = command(["explain", "web", "--agent", &agent.url()]);
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.contains("FAIL OPEN"), "{table}");

    consul.check("n1", "b", "health-b", "passing", "").await;
    blocking(|| until_picked(&agent, "web", &["b@n1"]));
    assert_eq!(agent.get("/pick/web").json()["fail_open"], Value::Null);
    assert_eq!(agent.metric(r#"pickd_pool_fail_open{service="web"}"#), Some(0.0));
    blocking(|| {
        agent
            .program
            .wait_for_log("no longer picking from critical instances", |_| true)
    });
    blocking(|| drop(agent));
}

#[test]
fn a_pick_may_ask_for_a_named_port() {
    let services = r#"
        [[service]]
        name = "web"
        instance = [
            { id = "a", host = "127.0.0.1", port = 8001, metadata = { port-grpc = "9001", port-admin = "7001" } },
            { id = "b", host = "::1", port = 8002, metadata = { port-grpc = "9002" } },
            { id = "c", host = "127.0.0.1", port = 8003, metadata = { port-grpc = "many" } },
            { id = "d", host = "127.0.0.1", port = 8004 },
            { id = "e", host = "127.0.0.1", port = 8005, weight = 0, metadata = { port-idle = "1" } },
        ]
    "#;
    let with = WithFile::new(services, "");
    let agent = &with.agent;
    let picked = |target: &str| -> Vec<(String, String, u64)> {
        let mut found: Vec<_> = (0..40)
            .map(|_| {
                let answer = agent.get(target).json();
                let text = |key: &str| answer[key].as_str().unwrap_or_default().to_owned();
                (text("id"), text("address"), answer["port"].as_u64().unwrap_or_default())
            })
            .collect();
        found.sort();
        found.dedup();
        found
    };
    let row = |id: &str, address: &str, port| (id.to_owned(), address.to_owned(), port);
    assert_eq!(
        picked("/pick/web?port=grpc"),
        [row("a", "127.0.0.1:9001", 9001), row("b", "[::1]:9002", 9002)]
    );
    assert_eq!(picked("/pick/web?port=admin"), [row("a", "127.0.0.1:7001", 7001)]);
    assert_eq!(picked("/pick/web?port=").len(), 4, "an empty value counts as not given");
    assert_eq!(
        agent.get("/pick/web?port=grpc&format=text&exclude=b").text(),
        "127.0.0.1:9001\n"
    );
    assert_eq!(
        agent.get("/pick/web?port=grpc&format=text&n=5&exclude=b").text(),
        "127.0.0.1:9001\n"
    );
    let mut lines: Vec<String> = agent
        .get("/pick/web?port=grpc&format=text&n=5")
        .text()
        .lines()
        .map(str::to_owned)
        .collect();
    lines.sort();
    assert_eq!(lines, ["127.0.0.1:9001", "[::1]:9002"]);
    let alternate = &agent.get("/pick/web?port=grpc&n=2").json()["alternates"][0];
    assert!(
        [9001, 9002].contains(&alternate["port"].as_u64().unwrap()),
        "{alternate}"
    );

    // A lease is for the registered address, whatever the port.
    let leased = http::ask(agent.address, "POST", "/pick/web?port=admin&ttl=30", &[]).json();
    assert_eq!((&leased["id"], &leased["port"]), (&json!("a"), &json!(7001)));
    assert!(leased["lease"].is_string());
    assert_eq!(
        agent.get("/services/web").json()["instances"]["a"]["active_connections"],
        1
    );
    assert_eq!(
        agent.get("/pick/web?exclude=b,c,d").json()["port"],
        8001,
        "as registered without the parameter"
    );

    let refused = |target: &str| {
        let answer = agent.get(target);
        (answer.status, answer.json()["code"].as_str().unwrap().to_owned())
    };
    assert_eq!(refused("/pick/web?port=http"), (404, "unknown_port".to_owned()));
    assert_eq!(refused("/pick/web?port=idle"), (503, "none_available".to_owned()));
    assert_eq!(
        refused("/pick/web?port=admin&exclude=a"),
        (503, "none_available".to_owned())
    );
    assert_eq!(refused("/pick/web?port=a%20b"), (400, "invalid_request".to_owned()));
    assert_eq!(refused("/pick/none?port=http"), (404, "unknown_service".to_owned()));
    assert_eq!(
        agent.metric(r#"pickd_picks_total{result="unknown_port",service="web"}"#),
        Some(1.0)
    );
    let run = |port: &str| command(["pick", "web", "--port", port, "--agent", &agent.url()]);
    assert_eq!(String::from_utf8(run("admin").stdout).unwrap(), "127.0.0.1:7001\n");
    assert_eq!(run("http").status.code(), Some(3));

    // A port that changes is answered with the next view.
    with.write(&services.replace("7001", "7002"));
    until(SOON, "the new port", || {
        (agent.get("/pick/web?port=admin").json()["port"] == 7002).then_some(())
    });
}

/// Runs blocking code in a test with a runtime.
fn blocking<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(work)
}
