//! An agent beside a real etcd, with values as registrars and people write them.

use serde_json::Value;

use crate::support::agent::{Agent, SOON};
use crate::support::etcd::Etcd;
use crate::support::pool::{ids, until_picked};
use crate::support::until;

fn beside(etcd: &Etcd, prefixes: &[&str]) -> Agent {
    let urls = etcd.urls();
    let mut arguments = vec!["--etcd", &urls, "--strategy", "weighted_round_robin"];
    for prefix in prefixes {
        arguments.extend(["--etcd-prefix", prefix]);
    }
    Agent::run(arguments).ready()
}

fn invalid(agent: &Agent) -> f64 {
    let series = r#"pickd_source_errors_total{reason="invalid_instance",source="etcd"}"#;
    agent.metric(series).unwrap()
}

/// The instance as the agent shows it, once it is there.
fn shown(agent: &Agent, service: &str, id: &str) -> Value {
    until(SOON, &format!("{id} of {service} is shown"), || {
        let answer = agent.get(&format!("/services/{service}")).json();
        answer["instances"].get(id).cloned()
    })
}

fn weight(agent: &Agent, service: &str, id: &str) -> u64 {
    shown(agent, service, id)["weight"].as_u64().unwrap()
}

/// How many of so many picks go to each id, in the order of the ids.
fn shares(agent: &Agent, service: &str, picks: usize, ids: &[&str]) -> Vec<usize> {
    let picked: Vec<String> = (0..picks)
        .map(|_| {
            agent.get(&format!("/pick/{service}")).json()["id"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    ids.iter()
        .map(|id| picked.iter().filter(|it| it == id).count())
        .collect()
}

#[test]
fn a_ttl_beside_a_status_changes_nothing() {
    let etcd = Etcd::start();
    etcd.put(
        "/services/w/1",
        r#"{"host":"127.0.0.1","port":80,"status":"maintenance","ttl":30}"#,
    );
    etcd.put("/services/w/2", r#"{"host":"127.0.0.1","port":81,"weight":0,"ttl":30}"#);
    etcd.put(
        "/services/w/3",
        r#"{"host":"127.0.0.1","port":82,"tags":["v1"],"network":"tcp","priority":0,"ttl":30}"#,
    );
    let agent = beside(&etcd, &["/services/"]);
    until_picked(&agent, "w", &["3"], SOON);
    let answer = agent.get("/pick/w?tag=v1").json();
    assert_eq!(answer["id"], "3", "{answer}");
    assert_eq!((weight(&agent, "w", "2"), weight(&agent, "w", "3")), (0, 1));
    assert_eq!(invalid(&agent), 0.0);
}

#[test]
fn an_instance_of_kratos_without_a_weight_has_a_hundred() {
    let etcd = Etcd::start();
    let value = |port: u16, metadata: &str| {
        format!(
            r#"{{"id":"{port}","name":"hello","version":"","metadata":{metadata},"endpoints":["http://127.0.0.1:{port}"]}}"#
        )
    };
    etcd.put("/microservices/hello/a", &value(81, "{}"));
    etcd.put("/microservices/hello/b", &value(82, r#"{"weight":"10"}"#));
    let agent = beside(&etcd, &["/microservices"]);
    until_picked(&agent, "hello", &["a", "b"], SOON);
    assert_eq!((weight(&agent, "hello", "a"), weight(&agent, "hello", "b")), (100, 10));
    assert_eq!(shares(&agent, "hello", 110, &["a", "b"]), [100, 10]);
}

#[test]
fn weights_up_to_65535_count_and_larger_ones_are_the_largest() {
    let etcd = Etcd::start();
    let value =
        |port: u16, weight: u32| format!(r#"{{"Op":0,"Addr":"127.0.0.1:{port}","Metadata":{{"weight":{weight}}}}}"#);
    etcd.put("/services/pay/a", &value(81, 20_000));
    etcd.put("/services/pay/b", &value(82, 5_000));
    let agent = beside(&etcd, &["/services/"]);
    until_picked(&agent, "pay", &["a", "b"], SOON);
    assert_eq!(invalid(&agent), 0.0);
    assert_eq!(shares(&agent, "pay", 50, &["a", "b"]), [40, 10]);
    etcd.put("/services/pay/c", &value(83, 70_000));
    until_picked(&agent, "pay", &["a", "b", "c"], SOON);
    assert_eq!(weight(&agent, "pay", "c"), 65_535);
    assert_eq!(invalid(&agent), 1.0);
}

#[test]
fn folders_and_empty_applications_register_nothing() {
    let etcd = Etcd::start();
    etcd.put("/rpcx/Arith", "Arith");
    etcd.put("/rpcx/Arith/tcp@127.0.0.1:8972", "weight=7");
    let endpoints = |endpoints: &str| format!(r#"{{"id":"a","name":"hello","metadata":{{}},"endpoints":{endpoints}}}"#);
    etcd.put("/microservices/hello/a", &endpoints(r#"["http://127.0.0.1:81"]"#));
    etcd.put("/microservices/hello/b", &endpoints(r#"["http://127.0.0.1:82"]"#));
    let agent = beside(&etcd, &["/rpcx", "/microservices"]);
    until_picked(&agent, "Arith", &["tcp@127.0.0.1:8972"], SOON);
    until_picked(&agent, "hello", &["a", "b"], SOON);
    etcd.put("/microservices/hello/a", &endpoints("[]"));
    until_picked(&agent, "hello", &["b"], SOON);
    assert_eq!(agent.get("/services/rpcx").status, 404);
    assert_eq!(invalid(&agent), 0.0);
}

#[test]
fn what_cannot_be_read_is_left_out_and_counted() {
    let etcd = Etcd::start();
    let agent = beside(&etcd, &["/services/", "/rpcx"]);
    let rest = |port: u16, rest: &str| format!(r#"{{"host":"127.0.0.1","port":{port},{rest}}}"#);
    etcd.put("/services/w/1", &rest(81, r#""status":"UP","tags":"a,b""#));
    until_picked(&agent, "w", &["1"], SOON);
    assert_eq!(agent.get("/pick/w?tag=b").json()["id"], "1");
    etcd.put("/services/w/2", &rest(82, r#""status":"OUT_OF_SERVICE""#));
    assert_eq!(shown(&agent, "w", "2")["layers"]["registry"]["state"], "maintenance");
    assert_eq!((ids(&agent, "w"), invalid(&agent)), (vec!["1".to_owned()], 0.0));
    etcd.put("/services/w/3", &rest(83, r#""weight":"","status":"decommissioned""#));
    until_picked(&agent, "w", &["1", "3"], SOON);
    assert_eq!((weight(&agent, "w", "3"), invalid(&agent)), (1, 2.0));
    etcd.put("/rpcx/Arith/tcp@127.0.0.1:8972", "weight=heavy");
    until_picked(&agent, "Arith", &["tcp@127.0.0.1:8972"], SOON);
    assert_eq!(invalid(&agent), 3.0);
    let ignored = "parts of values ignored, the instances count without them";
    let line = agent.program.wait_for_log(ignored, |line| {
        line.to_string().contains("/rpcx/Arith/tcp@127.0.0.1:8972")
    });
    let line = line.to_string();
    assert!(
        line.contains("weight is not a whole number") && !line.contains("heavy"),
        "{line}"
    );
}

#[test]
fn records_of_skydns_have_their_priority_as_metadata() {
    let etcd = Etcd::start();
    let record = |port: u16, rest: &str| format!(r#"{{"host":"127.0.0.1","port":{port},"weight":7{rest}}}"#);
    etcd.put("/skydns/local/web/x1", &record(81, r#","priority":20"#));
    etcd.put("/skydns/local/web/x2", &record(82, ""));
    let agent = beside(&etcd, &["/skydns/local"]);
    for (id, priority) in [("x1", "20"), ("x2", "10")] {
        let found = shown(&agent, "web", id);
        assert_eq!(found["metadata"]["priority"], priority, "{found}");
        assert_eq!(found["weight"], 7, "{found}");
    }
}

#[test]
fn a_secret_below_a_prefix_appears_nowhere() {
    let etcd = Etcd::start();
    etcd.put("/services/web/a", "127.0.0.1:80");
    for (key, value) in [
        ("/services/db/password", "S3cr3t"),
        ("/services/db/dsn", "postgres://app:S3cr3t@127.0.0.1:5432/app"),
        ("/services/db/config", r#"{"user":"app","password":"S3cr3t"}"#),
        ("/services/db/address", r#"{"host":"S3cr3t !","port":5432}"#),
        (
            "/services/db/weight",
            r#"{"host":"127.0.0.1","port":1,"weight":"S3cr3t","status":"S3cr3t"}"#,
        ),
    ] {
        etcd.put(key, value);
    }
    let agent = beside(&etcd, &["/services/"]);
    until_picked(&agent, "web", &["a"], SOON);
    until_picked(&agent, "db", &["weight"], SOON);
    assert_eq!(invalid(&agent), 6.0);
    // Alone in its message, so that this key is the one that is named.
    etcd.put("/services/db/token", "S3cr3t");
    let skipped = "values not valid, keeping what their keys registered before";
    let line = agent
        .program
        .wait_for_log(skipped, |line| line.to_string().contains("/services/db/token"));
    assert!(line.to_string().contains("6 bytes"), "{line}");
    let mut said = agent.program.stderr.all();
    said.extend(agent.program.stdout.all());
    for path in ["/metrics", "/services/db", "/services", "/sources", "/pick/db"] {
        said.push(String::from_utf8_lossy(&agent.get(path).body).into_owned());
    }
    for text in said {
        assert!(!text.contains("S3cr3t"), "{text}");
    }
}
