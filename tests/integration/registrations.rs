//! Several registrations of one address, and one id at several addresses: which registration counts,
//! and with which machine an override stays.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::agent::{Agent, SOON, pickd};
use crate::support::consul::Consul;
use crate::support::etcd::Etcd;
use crate::support::folder::Folder;
use crate::support::http;
use crate::support::until;

/// The instances of `web`, by address.
fn explained(agent: &Agent) -> BTreeMap<String, Value> {
    let answer = agent.get("/explain/web");
    if answer.status != 200 {
        return BTreeMap::new();
    }
    let instances = answer.json()["instances"].as_array().cloned().unwrap_or_default();
    let address = |it: &Value| it["address"].as_str().unwrap().to_owned();
    instances.into_iter().map(|it| (address(&it), it)).collect()
}

/// Every instance of `web` as `id at address`, with a `-` before an instance that is not picked.
fn shown(agent: &Agent) -> Vec<String> {
    let one = |(address, it): (String, Value)| {
        let sign = if it["available"] == true { "" } else { "-" };
        format!("{sign}{} at {}", it["id"].as_str().unwrap(), address)
    };
    explained(agent).into_iter().map(one).collect()
}

fn until_shown(agent: &Agent, expected: &[&str]) {
    let mut last = Vec::new();
    until(SOON, &format!("{expected:?}"), || {
        last = shown(agent);
        (last == expected).then_some(())
    });
}

/// The registrations of the address in `/explain`, as `id source status`.
fn registrations(agent: &Agent, address: &str) -> Vec<String> {
    let instance = explained(agent).remove(address).unwrap_or_default();
    let word = |it: &Value, key: &str| it[key].as_str().unwrap().to_owned();
    let one = |it: &Value| format!("{} {} {}", word(it, "id"), word(it, "source"), word(it, "status"));
    instance["registrations"]
        .as_array()
        .into_iter()
        .flatten()
        .map(one)
        .collect()
}

fn until_registered(agent: &Agent, address: &str, expected: &[&str]) {
    until(SOON, &format!("{address} is registered as {expected:?}"), || {
        (registrations(agent, address) == expected).then_some(())
    });
}

/// The addresses that picks get, with the number of picks.
fn picked(agent: &Agent, target: &str) -> BTreeMap<String, usize> {
    let mut picked = BTreeMap::new();
    for _ in 0..20 {
        let answer = agent.get(target);
        let address = match answer.status {
            200 => answer.json()["address"].as_str().unwrap().to_owned(),
            status => status.to_string(),
        };
        *picked.entry(address).or_default() += 1;
    }
    picked
}

/// Drains an instance, or lifts its drain. Returns the status and the id of the answer.
fn drain(agent: &Agent, method: &str, id: &str) -> (u16, Value) {
    let id = id.replace('/', "%2F").replace('@', "%40");
    let answer = http::ask(
        agent.address,
        method,
        &format!("/services/web/instances/{id}/drain"),
        &[],
    );
    (answer.status, answer.json()["id"].clone())
}

/// Waits on another thread, so that the wait does not block the runtime of the test.
fn blocking<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(work)
}

const ADDRESS: &str = "127.2.0.9:9000";

/// Registers `api` at [`ADDRESS`] on a node, with this status of the node.
async fn register(consul: &Consul, node: &str, id: &str, status: &str, fields: Value) {
    let mut all = json!({ "Address": "127.2.0.9" });
    all.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    consul.register(node, "web", id, 9000, all).await;
    consul.check(node, "", "serfHealth", status, "").await;
}

/// An agent of Consul restarts under a new node name, and the failed node stays listed
/// for 72 hours.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_node_takes_no_machine_out_that_another_node_lists() {
    for (failed, live) in [("host-a", "host-b"), ("host-b", "host-a")] {
        for failed_is_last in [false, true] {
            let consul = Consul::start().await;
            let weights = |weight: u16| json!({ "Weights": { "Passing": weight, "Warning": 1 }, "Meta": { "node": weight.to_string() } });
            for node in if failed_is_last { [live, failed] } else { [failed, live] } {
                let (status, weight) = if node == live { ("passing", 5) } else { ("critical", 3) };
                register(&consul, node, "api", status, weights(weight)).await;
            }
            blocking(|| {
                let agent = Agent::run(["--consul", &consul.address()]).ready();
                until_shown(&agent, &[&format!("api@{live} at {ADDRESS}")]);
                let pick = agent.picks("web");
                let expected = json!([format!("api@{live}"), 5, "5"]);
                assert_eq!(json!([pick["id"], pick["weight"], pick["metadata"]["node"]]), expected);
                let all = [
                    format!("api@{live} consul passing"),
                    format!("api@{failed} consul critical"),
                ];
                assert_eq!(registrations(&agent, ADDRESS), all);
            });
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_is_unusable_with_its_last_usable_registration() {
    let consul = Consul::start().await;
    register(&consul, "host-a", "api", "passing", json!({})).await;
    register(&consul, "host-b", "api", "passing", json!({})).await;
    let agent = blocking(|| Agent::run(["--consul", &consul.address()]).ready());
    blocking(|| {
        until_registered(
            &agent,
            ADDRESS,
            &["api@host-b consul passing", "api@host-a consul passing"],
        )
    });
    consul.check("host-b", "", "serfHealth", "critical", "").await;
    blocking(|| {
        until_shown(&agent, &["api@host-a at 127.2.0.9:9000"]);
        let explain = pickd()
            .args(["explain", "web", "--agent", &agent.url()])
            .output()
            .unwrap();
        let text = String::from_utf8(explain.stdout).unwrap();
        for line in ["api@host-a     consul  passing", "api@host-b     consul  critical"] {
            assert!(text.contains(&format!("{ADDRESS}  {line}")), "{text}");
        }
    });
    consul.check("host-a", "", "_node_maintenance", "critical", "").await;
    blocking(|| {
        until_shown(&agent, &["-api@host-a at 127.2.0.9:9000"]);
        let why = explained(&agent).remove(ADDRESS).unwrap_or_default()["why"].clone();
        assert_eq!(why, json!(["registry_maintenance"]));
    });
    consul.deregister("host-a", None).await;
    blocking(|| until_shown(&agent, &["-api@host-b at 127.2.0.9:9000"]));
    consul.deregister("host-b", None).await;
    blocking(|| until_shown(&agent, &[]));
}

/// A registrar lists a port once for each of its tags.
#[tokio::test(flavor = "multi_thread")]
async fn tags_of_all_usable_registrations_of_an_address_are_asked_for() {
    let consul = Consul::start().await;
    register(&consul, "n1", "api-v1", "passing", json!({ "Tags": ["v1"] })).await;
    register(&consul, "n1", "api-v2", "passing", json!({ "Tags": ["v2", "canary"] })).await;
    let agent = blocking(|| Agent::run(["--consul", &consul.address()]).ready());
    blocking(|| {
        until_shown(&agent, &["api-v2@n1 at 127.2.0.9:9000"]);
        for (tag, answer) in [("v1", ADDRESS), ("v2", ADDRESS), ("canary", ADDRESS), ("v3", "503")] {
            let target = format!("/pick/web?tag={tag}");
            assert_eq!(
                picked(&agent, &target),
                BTreeMap::from([(answer.to_owned(), 20)]),
                "{tag}"
            );
        }
    });
    consul.check("n1", "api-v1", "service:api-v1", "critical", "").await;
    blocking(|| {
        until_registered(
            &agent,
            ADDRESS,
            &["api-v2@n1 consul passing", "api-v1@n1 consul critical"],
        );
        assert_eq!(
            picked(&agent, "/pick/web?tag=v1"),
            BTreeMap::from([("503".to_owned(), 20)])
        );
        assert_eq!(
            picked(&agent, "/pick/web?tag=v2"),
            BTreeMap::from([(ADDRESS.to_owned(), 20)])
        );
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_registration_in_consul_gives_the_attributes() {
    let consul = Consul::start().await;
    let weight = |weight: u16| json!({ "Weights": { "Passing": weight, "Warning": 1 } });
    register(&consul, "n1", "a", "passing", weight(2)).await;
    register(&consul, "n1", "z", "passing", weight(3)).await;
    let agent = blocking(|| Agent::run(["--consul", &consul.address()]).ready());
    blocking(|| until_shown(&agent, &["z@n1 at 127.2.0.9:9000"]));
    register(&consul, "n1", "a", "passing", weight(4)).await;
    blocking(|| {
        until_shown(&agent, &["a@n1 at 127.2.0.9:9000"]);
        assert_eq!(agent.picks("web")["weight"], 4);
    });
}

/// A process registers again under a new key, and its former key has not expired yet.
#[test]
fn the_newest_key_of_an_address_gives_the_attributes() {
    let etcd = Etcd::start();
    let value =
        |weight: u16, status: &str| format!(r#"{{"address":"{ADDRESS}","weight":{weight},"status":"{status}"}}"#);
    etcd.put("/services/web/a", &value(2, "passing"));
    etcd.put("/services/web/z", &value(3, "passing"));
    let agent = Agent::run(["--etcd", &etcd.url(0)]).ready();
    until_shown(&agent, &["z at 127.2.0.9:9000"]);
    assert_eq!(agent.picks("web")["weight"], 3);
    // Seen by the watch, with another value and with the same value.
    etcd.put("/services/web/a", &value(4, "passing"));
    until_shown(&agent, &["a at 127.2.0.9:9000"]);
    assert_eq!(agent.picks("web")["weight"], 4);
    etcd.put("/services/web/z", &value(3, "passing"));
    until_shown(&agent, &["z at 127.2.0.9:9000"]);
    // A usable key before a newer one that is not.
    etcd.put("/services/web/b", &value(9, "critical"));
    until_registered(
        &agent,
        ADDRESS,
        &["z etcd passing", "a etcd passing", "b etcd critical"],
    );
    assert_eq!(agent.picks("web")["weight"], 3);
    // An agent that starts now sees the same.
    let started_later = Agent::run(["--etcd", &etcd.url(0)]).ready();
    until_registered(
        &started_later,
        ADDRESS,
        &["z etcd passing", "a etcd passing", "b etcd critical"],
    );
    etcd.delete("/services/web/z");
    until_shown(&agent, &["a at 127.2.0.9:9000"]);
    etcd.delete("/services/web/a");
    until_shown(&agent, &["-b at 127.2.0.9:9000"]);
}

#[test]
fn the_last_usable_entry_of_a_file_for_an_address_counts() {
    let folder = Folder::new();
    let entry = |id: &str, status: &str, tag: &str| {
        format!(
            "[[service.instance]]\nid = \"{id}\"\nhost = \"127.2.0.9\"\nport = 9000\nstatus = \"{status}\"\ntags = [\"{tag}\"]\n"
        )
    };
    let file = |entries: [String; 3]| format!("[[service]]\nname = \"web\"\n{}", entries.concat());
    let write = |entries| folder.write("services.toml", &file(entries));
    let path = write([
        entry("z", "unknown", "v1"),
        entry("b", "passing", "v2"),
        entry("a", "critical", "v3"),
    ]);
    let agent = Agent::run(["--file", path.to_str().unwrap()]).ready();
    until_registered(
        &agent,
        ADDRESS,
        &["b file passing", "z file unknown", "a file critical"],
    );
    assert_eq!(agent.picks("web")["tags"], json!(["v1", "v2"]));
    write([
        entry("b", "passing", "v2"),
        entry("a", "critical", "v3"),
        entry("z", "unknown", "v1"),
    ]);
    until_registered(
        &agent,
        ADDRESS,
        &["z file unknown", "b file passing", "a file critical"],
    );
}

const EU: &str = "127.2.0.20:80";
const US: &str = "127.2.0.10:80";

/// The prefix of etcd in which folders stand before the services.
const FOLDERS: &str = "[[etcd.prefixes]]\nprefix = \"/services/\"\npath = \"*/{service}/{instance}\"\n";

/// The same instance name in two folders, whichever is registered first.
#[test]
fn an_override_stays_with_its_machine_when_its_name_is_registered_again() {
    for (first, then) in [
        (("eu", EU), ("us", US)),
        (("us", US), ("eu", EU)),
        (("eu", US), ("us", EU)),
    ] {
        let etcd = Etcd::start();
        let put = |(folder, address): (&str, &str)| etcd.put(&format!("/services/{folder}/web/web-0"), address);
        let folder = Folder::new();
        let config = format!("[etcd]\nendpoints = [\"{}\"]\n{FOLDERS}", etcd.url(0));
        let config = folder.write("pickd.toml", &config);
        let run = || Agent::run(["--config", config.to_str().unwrap()]).ready();
        put(first);
        let agent = run();
        let id = |(folder, _): (&str, &str)| format!("{folder}/web-0");
        until_shown(&agent, &[&format!("{} at {}", id(first), first.1)]);
        assert_eq!(drain(&agent, "PUT", &id(first)), (200, json!(id(first))));
        put(then);
        let mut expected = [
            (first.1, format!("-{} at {}", id(first), first.1)),
            (then.1, format!("{} at {}", id(then), then.1)),
        ];
        expected.sort();
        until_shown(&agent, &expected.each_ref().map(|(_, text)| text.as_str()));
        assert_eq!(picked(&agent, "/pick/web"), BTreeMap::from([(then.1.to_owned(), 20)]));
        // Another agent sees both at once, and has the same ids.
        let other = run();
        until_shown(
            &other,
            &expected.each_ref().map(|(_, text)| text.trim_start_matches('-')),
        );
    }
}

/// Two prefixes list the same name.
#[test]
fn a_name_below_two_prefixes_belongs_to_neither_and_an_override_stays() {
    let etcd = Etcd::start();
    let run = || Agent::run(["--etcd", &etcd.url(0), "--etcd-prefix", "/eu/", "--etcd-prefix", "/us/"]).ready();
    let agent = run();
    etcd.put("/us/web/web-0", US);
    until_shown(&agent, &["web-0 at 127.2.0.10:80"]);
    assert_eq!(drain(&agent, "PUT", "web-0"), (200, json!("web-0")));
    etcd.put("/eu/web/web-0", EU);
    let both = [
        "web-0~127.2.0.10:80 at 127.2.0.10:80",
        "web-0~127.2.0.20:80 at 127.2.0.20:80",
    ];
    until_shown(&agent, &[&format!("-{}", both[0]), both[1]]);
    assert_eq!(registrations(&agent, US), ["web-0 etcd unknown"]);
    until_shown(&run(), &both);
    // The name alone means two machines now.
    assert_eq!(drain(&agent, "DELETE", "web-0").0, 404);
    assert_eq!(drain(&agent, "DELETE", "web-0~127.2.0.10:80").0, 200);
    until_shown(&agent, &both);
    assert_eq!(drain(&agent, "PUT", "web-0~127.2.0.20:80").0, 200);
    etcd.delete("/us/web/web-0");
    until_shown(&agent, &["-web-0 at 127.2.0.20:80"]);
}

/// Etcd and a file list the same name.
#[test]
fn a_name_in_etcd_and_in_a_file_is_two_instances_whichever_comes_first() {
    for file_is_first in [false, true] {
        let (etcd, folder) = (Etcd::start(), Folder::new());
        let file = |text: &str| folder.write("services.toml", &format!("[[service]]\nname = \"web\"\n{text}"));
        let listed = "[[service.instance]]\nid = \"web-0\"\nhost = \"127.2.0.10\"\nport = 80\n";
        let path = file(if file_is_first { listed } else { "" });
        let agent = Agent::run(["--etcd", &etcd.url(0), "--file", path.to_str().unwrap()]).ready();
        let (in_file, in_etcd) = ("web-0~file at 127.2.0.10:80", "web-0 at 127.2.0.20:80");
        if file_is_first {
            until_shown(&agent, &[in_file]);
            // The name means one machine: an operator need not know the suffix.
            assert_eq!(drain(&agent, "PUT", "web-0"), (200, json!("web-0~file")));
            etcd.put("/services/web/web-0", EU);
            until_shown(&agent, &[&format!("-{in_file}"), in_etcd]);
        } else {
            etcd.put("/services/web/web-0", EU);
            until_shown(&agent, &[in_etcd]);
            assert_eq!(drain(&agent, "PUT", "web-0"), (200, json!("web-0")));
            file(listed);
            until_shown(&agent, &[in_file, &format!("-{in_etcd}")]);
        }
    }
}

/// The registration whose id an override names goes, and the machine stays.
#[tokio::test(flavor = "multi_thread")]
async fn an_override_stays_while_registrations_of_its_machine_come_and_go() {
    let (consul, etcd) = (Consul::start().await, blocking(Etcd::start));
    register(&consul, "host-a", "api", "passing", json!({})).await;
    let agent = blocking(|| Agent::run(["--consul", &consul.address(), "--etcd", &etcd.url(0)]).ready());
    blocking(|| {
        until_shown(&agent, &["api@host-a at 127.2.0.9:9000"]);
        assert_eq!(drain(&agent, "PUT", "api@host-a").0, 200);
    });
    register(&consul, "host-b", "api", "passing", json!({})).await;
    blocking(|| {
        until_shown(&agent, &["-api@host-b at 127.2.0.9:9000"]);
        // Each id of the machine means it.
        assert_eq!(drain(&agent, "PUT", "api@host-a"), (200, json!("api@host-b")));
    });
    consul.deregister("host-a", None).await;
    blocking(|| {
        until_registered(&agent, ADDRESS, &["api@host-b consul passing"]);
        assert_eq!(shown(&agent), ["-api@host-b at 127.2.0.9:9000"]);
        etcd.put("/services/web/api", ADDRESS);
        until_registered(&agent, ADDRESS, &["api@host-b consul passing", "api etcd unknown"]);
    });
    consul.deregister("host-b", Some("api")).await;
    blocking(|| {
        until(Duration::from_secs(45), "etcd alone lists the machine", || {
            (registrations(&agent, ADDRESS) == ["api etcd unknown"]).then_some(())
        });
        assert_eq!(shown(&agent), ["-api at 127.2.0.9:9000"]);
        assert_eq!(drain(&agent, "DELETE", "api"), (200, json!("api")));
        until_shown(&agent, &["api at 127.2.0.9:9000"]);
        drop((agent, etcd));
    });
}
