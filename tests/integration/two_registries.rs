//! One service in two registries: what the pool is while they agree, while they do not, and while one moves to the other.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::agent::{Agent, SOON};
use crate::support::consul::Consul;
use crate::support::etcd::Etcd;
use crate::support::load::{Oracle, Picker};
use crate::support::pool::until_picked;
use crate::support::until;

/// Consul's word that a service is gone altogether is held for a while.
const LATER: Duration = Duration::from_secs(45);

fn beside(consul: &Consul, etcd: &Etcd) -> Agent {
    let consul = consul.address();
    Agent::run(["--consul", &consul, "--etcd", &etcd.urls()]).ready()
}

fn instances(agent: &Agent, service: &str) -> serde_json::Map<String, Value> {
    agent.get(&format!("/services/{service}")).json()["instances"]
        .as_object()
        .cloned()
        .unwrap_or_default()
}

/// Address and sources of each instance.
fn provenance(agent: &Agent) -> BTreeMap<String, Vec<String>> {
    let sources = |it: &Value| {
        let sources = it["sources"].as_array().unwrap();
        sources
            .iter()
            .map(|source| source.as_str().unwrap().to_owned())
            .collect()
    };
    instances(agent, "web")
        .iter()
        .map(|(_, it)| (it["address"].as_str().unwrap().to_owned(), sources(it)))
        .collect()
}

fn until_provenance(agent: &Agent, expected: &[(&str, &[&str])]) {
    let expected: BTreeMap<String, Vec<String>> = expected
        .iter()
        .map(|(address, sources)| ((*address).to_owned(), sources.iter().map(ToString::to_string).collect()))
        .collect();
    until(LATER, &format!("{expected:?}"), || {
        (provenance(agent) == expected).then_some(())
    });
}

async fn register(consul: &Consul, id: &str, address: &str, extra: Value) {
    let (host, port) = address.split_once(':').unwrap();
    let mut fields = json!({ "Address": host });
    fields
        .as_object_mut()
        .unwrap()
        .extend(extra.as_object().unwrap().clone());
    consul.register("n1", "web", id, port.parse().unwrap(), fields).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_instance_says_where_it_is_registered() {
    let (consul, etcd) = (Consul::start().await, blocking(Etcd::start));
    register(&consul, "c1", "10.0.0.1:80", json!({})).await;
    register(&consul, "c2", "10.0.0.2:80", json!({})).await;
    blocking(|| {
        etcd.put("/services/web/e2", "10.0.0.2:80");
        etcd.put("/services/web/e3", "10.0.0.3:80");
        let agent = beside(&consul, &etcd);
        until_provenance(
            &agent,
            &[
                ("10.0.0.1:80", &["consul"]),
                ("10.0.0.2:80", &["consul", "etcd"]),
                ("10.0.0.3:80", &["etcd"]),
            ],
        );
        let listed = instances(&agent, "web");
        assert_eq!(listed.keys().collect::<Vec<_>>(), ["c1@n1", "c2@n1", "e3"]);
        assert_eq!(listed["c2@n1"]["source"], "consul");
        etcd.put("/services/web/e1", "10.0.0.1:80");
        etcd.delete("/services/web/e2");
        until_provenance(
            &agent,
            &[
                ("10.0.0.1:80", &["consul", "etcd"]),
                ("10.0.0.2:80", &["consul"]),
                ("10.0.0.3:80", &["etcd"]),
            ],
        );
        drop(agent);
        drop(etcd);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_registry_gives_the_weight_and_status_is_what_either_knows() {
    let (consul, etcd) = (Consul::start().await, blocking(Etcd::start));
    register(
        &consul,
        "c1",
        "10.0.0.1:80",
        json!({ "Weights": { "Passing": 5, "Warning": 1 } }),
    )
    .await;
    blocking(|| {
        etcd.put(
            "/services/web/e1",
            r#"{"address":"10.0.0.1:80","weight":2,"status":"critical"}"#,
        );
        let folder = crate::support::folder::Folder::new();
        let consul_table = format!("[consul]\naddress = \"{}\"\n", consul.address());
        let etcd_table = format!("[etcd]\nendpoints = [\"{}\"]\n", etcd.url(0));
        for (text, id, weight) in [
            (format!("{consul_table}{etcd_table}"), "c1@n1", 5),
            (format!("{etcd_table}{consul_table}"), "e1", 2),
        ] {
            let config = folder.write("pickd.toml", &text);
            let agent = Agent::run(["--config", config.to_str().unwrap()]).ready();
            until(SOON, "both are heard", || {
                (provenance(&agent).get("10.0.0.1:80")?.len() == 2).then_some(())
            });
            let listed = instances(&agent, "web");
            assert_eq!(listed[id]["weight"], weight);
            // Consul passes it, etcd calls it critical: the first opinion by priority.
            let expected = if id == "e1" { "critical" } else { "passing" };
            assert_eq!(listed[id]["layers"]["registry"]["state"], expected);
            // Maintenance anywhere wins.
            etcd.put(
                "/services/web/e1",
                r#"{"address":"10.0.0.1:80","weight":2,"status":"maintenance"}"#,
            );
            until(SOON, "maintenance", || {
                (instances(&agent, "web")[id]["layers"]["registry"]["state"] == "maintenance").then_some(())
            });
            etcd.put(
                "/services/web/e1",
                r#"{"address":"10.0.0.1:80","weight":2,"status":"critical"}"#,
            );
        }
        drop(etcd);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn scenario_39_a_registry_that_is_down_keeps_its_listings() {
    let (mut consul, mut etcd) = (Consul::start().await, blocking(Etcd::start));
    register(&consul, "c1", "10.0.0.1:80", json!({})).await;
    blocking(|| etcd.put("/services/web/e2", "10.0.0.2:80"));
    let agent = blocking(|| beside(&consul, &etcd));
    let oracle = Oracle::new(
        Duration::from_secs(1),
        ["10.0.0.1:80", "10.0.0.2:80"].map(str::to_owned),
    );
    blocking(|| until_picked(&agent, "web", &["c1@n1", "e2"], SOON));
    let picker = Picker::start(agent.address, "/pick/web", 300, &oracle);

    etcd.kill(0);
    blocking(|| until(SOON, "etcd is away", || (!up(&agent, "etcd")).then_some(())));
    oracle.add("10.0.0.3:80");
    register(&consul, "c3", "10.0.0.3:80", json!({})).await;
    blocking(|| until_picked(&agent, "web", &["c1@n1", "c3@n1", "e2"], SOON));
    blocking(|| etcd.restart(0));
    blocking(|| {
        until(Duration::from_secs(40), "etcd is back", || {
            up(&agent, "etcd").then_some(())
        })
    });

    consul.kill();
    blocking(|| until(SOON, "Consul is away", || (!up(&agent, "consul")).then_some(())));
    oracle.add("10.0.0.4:80");
    blocking(|| {
        etcd.put("/services/web/e4", "10.0.0.4:80");
        etcd.delete("/services/web/e2");
        until_picked(&agent, "web", &["c1@n1", "c3@n1", "e4"], SOON);
    });
    oracle.remove("10.0.0.2:80");
    std::thread::sleep(Duration::from_secs(1));
    picker.check("one of two registries down", 600);
    blocking(move || drop((agent, etcd)));
}

fn up(agent: &Agent, source: &str) -> bool {
    agent.metric(&format!("pickd_source_up{{source=\"{source}\"}}")) == Some(1.0)
}

#[tokio::test(flavor = "multi_thread")]
async fn moving_from_consul_to_etcd_loses_no_pick_and_moves_no_counter() {
    let (consul, etcd) = (Consul::start().await, blocking(Etcd::start));
    let addresses: Vec<String> = (1..=4).map(|number| format!("10.0.0.{number}:80")).collect();
    for (number, address) in addresses.iter().enumerate() {
        register(&consul, &format!("web-{number}"), address, json!({})).await;
    }
    let agent = blocking(|| beside(&consul, &etcd));
    blocking(|| until_picked(&agent, "web", &["web-0@n1", "web-1@n1", "web-2@n1", "web-3@n1"], SOON));
    let oracle = Oracle::new(Duration::ZERO, addresses.iter().cloned());
    let picker = Picker::start(agent.address, "/pick/web", 500, &oracle);
    std::thread::sleep(Duration::from_millis(500));

    // Registered in both ...
    blocking(|| {
        for (number, address) in addresses.iter().enumerate() {
            etcd.put(&format!("/services/web/web-{number}"), address);
        }
        let both: Vec<(&str, &[&str])> = addresses
            .iter()
            .map(|it| (it.as_str(), &["consul", "etcd"][..]))
            .collect();
        until_provenance(&agent, &both);
    });
    let picked = |agent: &Agent| -> BTreeMap<String, u64> {
        let listed = instances(agent, "web");
        let of = |it: &Value| {
            (
                it["address"].as_str().unwrap().to_owned(),
                it["total_requests"].as_u64().unwrap(),
            )
        };
        listed.values().map(of).collect()
    };
    let before = blocking(|| picked(&agent));
    assert!(before.values().all(|picks| *picks > 20), "{before:?}");

    // ... and out of the first, one by one and then all that is left.
    for number in 0..4 {
        consul.deregister("n1", Some(&format!("web-{number}"))).await;
        if number == 0 {
            blocking(|| until_provenance_of(&agent, &addresses[0], &["etcd"]));
        }
    }
    blocking(|| {
        let only: Vec<(&str, &[&str])> = addresses.iter().map(|it| (it.as_str(), &["etcd"][..])).collect();
        until_provenance(&agent, &only);
        assert_eq!(
            instances(&agent, "web").keys().collect::<Vec<_>>(),
            ["web-0", "web-1", "web-2", "web-3"]
        );
    });
    std::thread::sleep(Duration::from_millis(500));
    let after = blocking(|| picked(&agent));
    let tally = picker.stop();
    eprintln!("picks by address when it was in both {before:?}, and at the end {after:?}");
    for (address, picks) in &after {
        assert!(
            picks > &before[address],
            "{address} was counted anew: {before:?} {after:?}"
        );
        // Every pick of the address since the start, and those of the looks at the pool.
        assert!(
            *picks <= tally.by_address[address] + 10 && *picks + 60 >= tally.by_address[address],
            "{address}"
        );
    }
    tally.check("from Consul to etcd", 500);
    blocking(move || drop((agent, etcd)));
}

fn until_provenance_of(agent: &Agent, address: &str, expected: &[&str]) {
    until(SOON, &format!("{address} is in {expected:?}"), || {
        (provenance(agent).get(address)? == expected).then_some(())
    });
}

/// What waits without a runtime of its own must not keep one waiting.
fn blocking<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(work)
}
