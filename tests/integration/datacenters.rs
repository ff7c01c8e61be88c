//! Several Consul datacenters with an order, against real servers that are joined over the WAN.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::agent::{Agent, SOON};
use crate::support::consul::Consul;
use crate::support::folder::Folder;
use crate::support::until;

/// Bound for what a remote datacenter answers.
const LATER: Duration = Duration::from_secs(60);

/// Two datacenters that know each other.
async fn two() -> (Consul, Consul) {
    let one = Consul::start_in("dc1", None).await;
    let two = Consul::start_in("dc2", Some(&one)).await;
    one.reaches("dc2").await;
    two.reaches("dc1").await;
    (one, two)
}

/// An agent that asks this server, with the datacenters in this order.
fn agent(consul: &Consul, datacenters: &str) -> (Folder, Agent) {
    let folder = Folder::new();
    let text = format!(
        "[consul]\naddress = \"{}\"\ndatacenters = {datacenters}\n",
        consul.address()
    );
    let config = folder.write("pickd.toml", &text);
    let agent = blocking(|| Agent::run(["--config", config.to_str().unwrap()]).ready());
    (folder, agent)
}

async fn register(consul: &Consul, id: &str, port: i64) {
    consul
        .register("n1", "web", id, port, json!({ "Address": "127.0.0.1" }))
        .await;
}

/// Waits until picks return exactly these ids.
fn until_picked(agent: &Agent, expected: &[&str]) {
    blocking(|| {
        until(LATER, &format!("picks are {expected:?}"), || {
            let picked: BTreeSet<String> = (0..24)
                .filter_map(|_| agent.get("/pick/web").json()["id"].as_str().map(str::to_owned))
                .collect();
            picked.iter().eq(expected).then_some(())
        });
    });
}

fn until_total(agent: &Agent, total: u64) {
    blocking(|| {
        until(LATER, &format!("{total} instances are known"), || {
            (agent.get("/services/web").json()["total_instances"] == total).then_some(())
        });
    });
}

/// The state of a source in `/readyz`, whatever the status.
fn source(agent: &Agent, name: &str) -> Value {
    let ready = agent.get("/readyz").json();
    let sources = ready["sources"].as_array().unwrap();
    sources.iter().find(|source| source["source"] == name).unwrap().clone()
}

fn until_up(agent: &Agent, name: &str, up: bool) {
    blocking(|| {
        until(LATER, &format!("{name} is up: {up}"), || {
            (source(agent, name)["up"] == up).then_some(())
        });
    });
    let series = format!(r#"pickd_source_up{{source="{name}"}}"#);
    assert_eq!(agent.metric(&series), Some(f64::from(u8::from(up))));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_datacenter_serves_only_while_the_first_has_nothing() {
    let (one, two) = two().await;
    // The same id on a node of the same name.
    register(&one, "a", 8001).await;
    register(&two, "a", 8002).await;
    let (_near_folder, near) = agent(&one, r#"["dc1", "dc2"]"#);
    let (_far_folder, far) = agent(&two, r#"["dc2", "dc1"]"#);
    until_total(&near, 2);
    until_total(&far, 2);
    until_picked(&near, &["a@n1.dc1"]);
    until_picked(&far, &["a@n1.dc2"]);
    let answer = near.get("/pick/web?n=2").json();
    assert_eq!(
        (&answer["port"], &answer["source"]),
        (&json!(8001), &json!("consul-dc1"))
    );
    let alternate = &answer["alternates"][0];
    assert_eq!(
        (&alternate["id"], &alternate["source"]),
        (&json!("a@n1.dc2"), &json!("consul-dc2"))
    );
    let explained = near.get("/explain/web").json();
    let tiers = |field: &str| [0, 1].map(|tier| explained["tiers"][tier][field].clone());
    assert_eq!(tiers("rank"), [json!(0), json!(1)]);
    assert_eq!(tiers("in_turn"), [json!(true), json!(false)]);

    // A failed check, and back.
    one.check("n1", "a", "health", "critical", "").await;
    until_picked(&near, &["a@n1.dc2"]);
    until_picked(&far, &["a@n1.dc2"]);
    assert_eq!(near.metric(r#"pickd_pool_tier{service="web"}"#), Some(1.0));
    one.check("n1", "a", "health", "passing", "").await;
    until_picked(&near, &["a@n1.dc1"]);
    // A removal, and back.
    one.deregister("n1", None).await;
    until_picked(&near, &["a@n1.dc2"]);
    register(&one, "a", 8001).await;
    until_picked(&near, &["a@n1.dc1"]);
    // The other way round.
    two.check("n1", "a", "health", "critical", "").await;
    until_picked(&far, &["a@n1.dc1"]);
    until_picked(&near, &["a@n1.dc1"]);
    // A priority counts within its datacenter alone.
    two.check("n1", "a", "health", "passing", "").await;
    let meta = json!({ "Address": "127.0.0.1", "Meta": { "priority": "50" } });
    two.register("n1", "web", "a", 8002, meta).await;
    until_picked(&far, &["a@n1.dc2"]);
    blocking(|| drop((near, far)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_datacenter_that_cannot_be_reached_changes_nothing_about_the_first() {
    let (one, mut two) = two().await;
    register(&one, "a", 8001).await;
    register(&two, "b", 8002).await;
    let (_folder, agent) = agent(&one, r#"["dc1", "dc2"]"#);
    until_total(&agent, 2);
    until_up(&agent, "consul-dc2", true);

    two.kill();
    until_up(&agent, "consul-dc2", false);
    let ready = agent.get("/readyz");
    assert_eq!(ready.status, 200);
    let state = source(&agent, "consul-dc2");
    assert_eq!((&state["synced"], &state["required"]), (&json!(true), &json!(false)));
    let states = agent.get("/services").json()["sources"].clone();
    let error = states[1]["last_error"].as_str().unwrap().to_owned();
    assert!(error.starts_with("unavailable: ") && error.contains("500"), "{error}");
    assert!(agent.metric(r#"pickd_source_errors_total{reason="unavailable",source="consul-dc2"}"#) > Some(0.0));
    blocking(|| {
        let message = "registry lost, serving the last known instances";
        agent
            .program
            .wait_for_log(message, |line| line["source"] == "consul-dc2");
    });

    // dc1 is fresh and followed.
    assert_eq!(source(&agent, "consul-dc1")["up"], true);
    let answer = agent.get("/pick/web").json();
    assert_eq!(
        (&answer["id"], &answer["stale_seconds"]),
        (&json!("a@n1.dc1"), &Value::Null)
    );
    register(&one, "c", 8003).await;
    until_picked(&agent, &["a@n1.dc1", "c@n1.dc1"]);

    // The last known instances of dc2 are a reserve all the same, and marked as stale.
    for id in ["a", "c"] {
        one.check("n1", id, &format!("health-{id}"), "critical", "").await;
    }
    until_picked(&agent, &["b@n1.dc2"]);
    assert!(agent.get("/pick/web").json()["stale_seconds"].is_u64());

    two.restart().await;
    until_up(&agent, "consul-dc2", true);
    two.check("n1", "b", "health", "critical", "").await;
    blocking(|| {
        until(LATER, "dc2 is followed again", || {
            (agent.get("/pick/web").json()["code"] == "none_available").then_some(())
        });
    });
    blocking(|| drop(agent));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_starts_without_a_path_to_the_second_datacenter() {
    let one = Consul::start_in("dc1", None).await;
    register(&one, "a", 8001).await;
    // Ready although dc2 has never answered.
    let (_folder, agent) = agent(&one, r#"["dc1", "dc2"]"#);
    until_picked(&agent, &["a@n1.dc1"]);
    let error = agent.get("/services").json()["sources"][1]["last_error"].clone();
    let error = error.as_str().unwrap();
    assert!(error.contains("No path to datacenter"), "{error}");
    assert_eq!(source(&agent, "consul-dc2")["synced"], false);
    // dc2 could list the name.
    let answer = agent.get("/pick/unknown");
    assert_eq!((answer.status, &answer.json()["code"]), (503, &json!("not_synced")));
    assert!(answer.json()["detail"].as_str().unwrap().contains("consul-dc2"));

    let two = Consul::start_in("dc2", Some(&one)).await;
    register(&two, "b", 8002).await;
    one.reaches("dc2").await;
    until_up(&agent, "consul-dc2", true);
    until_total(&agent, 2);
    until_picked(&agent, &["a@n1.dc1"]);
    blocking(|| {
        until(SOON, "dc2 has synced", || {
            (agent.get("/pick/unknown").status == 404).then_some(())
        });
        drop(agent);
    });
}

/// Runs blocking code in a test with a runtime.
fn blocking<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(work)
}
