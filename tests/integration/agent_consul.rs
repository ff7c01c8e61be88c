//! An agent beside a real Consul: `/pick` returns the instances that are registered in Consul.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::agent::{Agent, SOON};
use crate::support::consul::Consul;
use crate::support::folder::Folder;
use crate::support::http::Connection;
use crate::support::load::{Oracle, Picker};
use crate::support::until;

/// Bound for events that wait for a timer of the watcher, or for a hold.
const LATER: Duration = Duration::from_secs(45);
/// Picks per second while Consul is away.
const RATE: u32 = 400;

fn beside(consul: &Consul, arguments: &[&str]) -> Agent {
    let address = consul.address();
    let consul = ["--consul", &address];
    Agent::run(consul.iter().chain(arguments).map(OsStr::new))
}

/// All instances of a service that can be picked, by id: one pick and all its alternates.
fn pool(agent: &Agent, service: &str) -> BTreeMap<String, Value> {
    let answer = agent.get(&format!("/pick/{service}?n=16"));
    if answer.status != 200 {
        return BTreeMap::new();
    }
    let mut pick = answer.json();
    let alternates = pick.as_object_mut().unwrap().remove("alternates").unwrap();
    let picks = alternates.as_array().unwrap().iter().cloned().chain([pick]);
    picks
        .map(|pick| (pick["id"].as_str().unwrap().to_owned(), pick))
        .collect()
}

fn ids(agent: &Agent, service: &str) -> Vec<String> {
    pool(agent, service).into_keys().collect()
}

/// Waits until exactly these ids can be picked, and returns the time that this took.
fn until_picked(agent: &Agent, service: &str, expected: &[&str]) -> Duration {
    let started = Instant::now();
    until(LATER, &format!("{service} is {expected:?}"), || {
        (ids(agent, service) == expected).then_some(())
    });
    started.elapsed()
}

/// Waits until an instance meets the condition, and returns the time that this took.
fn until_is(agent: &Agent, service: &str, id: &str, what: &str, condition: impl Fn(&Value) -> bool) -> Duration {
    let started = Instant::now();
    until(SOON, what, || {
        pool(agent, service).get(id).filter(|pick| condition(pick)).map(drop)
    });
    started.elapsed()
}

fn code(agent: &Agent, service: &str) -> (u16, String) {
    let answer = agent.get(&format!("/pick/{service}"));
    (
        answer.status,
        answer.json()["code"].as_str().unwrap_or_default().to_owned(),
    )
}

/// The state of the source Consul in `/readyz`.
fn source(agent: &Agent) -> Value {
    agent.get("/readyz").json()["sources"][0].clone()
}

fn up(agent: &Agent) -> bool {
    agent.metric(r#"pickd_source_up{source="consul"}"#) == Some(1.0)
}

fn denied(agent: &Agent) -> f64 {
    let errors = agent.metric(r#"pickd_source_errors_total{reason="denied",source="consul"}"#);
    errors.unwrap()
}

#[tokio::test]
async fn four_hundred_picks_at_one_two_one_are_exact_and_smooth_from_any_start() {
    let consul = Consul::start().await;
    for (number, weight) in [(1, 1), (2, 2), (3, 1)] {
        let fields =
            json!({ "Weights": { "Passing": weight, "Warning": 1 }, "Tags": ["v1"], "Meta": { "zone": "us-west" } });
        let (node, id) = (format!("node-{number}"), format!("user-{number}"));
        consul.register(&node, "user-service", &id, 8080 + number, fields).await;
    }
    let agent = beside(&consul, &["--strategy", "weighted_round_robin"]).ready();
    assert_eq!(
        ids(&agent, "user-service"),
        ["user-1@node-1", "user-2@node-2", "user-3@node-3"]
    );
    let one = pool(&agent, "user-service").remove("user-2@node-2").unwrap();
    assert_eq!(
        one,
        json!({
            "service": "user-service", "id": "user-2@node-2", "host": "10.0.0.1", "port": 8082, "address": "10.0.0.1:8082",
            "weight": 2, "status": "healthy", "tags": ["v1"], "metadata": { "zone": "us-west" }, "source": "consul",
        })
    );
    let mut connection = Connection::open(agent.address).unwrap();
    let mut pick = || {
        let answer = connection.ask("GET", "/pick/user-service", &[]).unwrap();
        assert_eq!(answer.status, 200);
        answer.json()["id"].as_str().unwrap().to_owned()
    };
    let mut sequence = Vec::new();
    for offset in [0, 1, 2, 3, 5, 7] {
        sequence.extend((0..offset).map(|_| pick()));
        let picks: Vec<String> = (0..400).map(|_| pick()).collect();
        let mut shares = BTreeMap::<&str, usize>::new();
        for id in &picks {
            *shares.entry(id).or_default() += 1;
        }
        let expected = [("user-1@node-1", 100), ("user-2@node-2", 200), ("user-3@node-3", 100)];
        assert_eq!(shares, expected.into(), "after {} picks", sequence.len());
        sequence.extend(picks);
    }
    for window in sequence.windows(4) {
        for id in window {
            assert!(window.iter().filter(|other| *other == id).count() <= 2, "{window:?}");
        }
    }
    let counted = agent.metric(r#"pickd_picks_total{service="user-service",result="ok"}"#);
    // The two calls of `pool` above count as picks, too.
    assert_eq!(counted, Some(sequence.len() as f64 + 2.0));
}

#[tokio::test]
async fn a_critical_check_takes_its_instance_out_and_in_again_in_under_a_second() {
    let consul = Consul::start().await;
    for number in 1..=3 {
        let check = json!({ "CheckID": format!("ttl-{number}"), "TTL": "10m", "Status": "passing" });
        let service = json!({ "Name": "web", "ID": format!("web-{number}"), "Port": 8000 + number,
                              "Address": "127.0.0.1", "Check": check });
        consul.put("/v1/agent/service/register", service).await;
    }
    let agent = beside(&consul, &[]);
    let all = ["web-1@server", "web-2@server", "web-3@server"];
    until_picked(&agent, "web", &all);
    let (mut out, mut back) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        // The time from the request to Consul until a pick shows the change.
        let started = Instant::now();
        consul.put("/v1/agent/check/fail/ttl-2", json!(null)).await;
        until_picked(&agent, "web", &["web-1@server", "web-3@server"]);
        out.push(started.elapsed());
        let instance = agent.get("/services/web").json()["instances"]["web-2@server"].clone();
        assert_eq!(
            (&instance["status"], &instance["reason"]),
            (&json!("unhealthy"), &json!("registry_critical"))
        );
        let started = Instant::now();
        consul.put("/v1/agent/check/pass/ttl-2", json!(null)).await;
        until_picked(&agent, "web", &all);
        back.push(started.elapsed());
    }
    eprintln!("a check turned critical: out after {out:.1?}, back after {back:.1?}");
    assert!(out.iter().chain(&back).all(|took| *took < Duration::from_secs(1)));

    // A pool of critical instances does not panic, since the registry reports them critical.
    for number in 1..=3 {
        consul
            .put(&format!("/v1/agent/check/fail/ttl-{number}"), json!(null))
            .await;
    }
    until(SOON, "none is left", || {
        (code(&agent, "web") == (503, "none_available".to_owned())).then_some(())
    });
    for number in 1..=3 {
        consul
            .put(&format!("/v1/agent/check/pass/ttl-{number}"), json!(null))
            .await;
    }
    until_picked(&agent, "web", &all);
    // Maintenance of an instance, then of the node.
    consul
        .put("/v1/agent/service/maintenance/web-1?enable=true", json!(null))
        .await;
    until_picked(&agent, "web", &all[1..]);
    let reason = agent.get("/services/web").json()["instances"]["web-1@server"]["reason"].clone();
    assert_eq!(reason, "registry_maintenance");
    consul.put("/v1/agent/maintenance?enable=true", json!(null)).await;
    until_picked(&agent, "web", &[]);
    consul.put("/v1/agent/maintenance?enable=false", json!(null)).await;
    consul
        .put("/v1/agent/service/maintenance/web-1?enable=false", json!(null))
        .await;
    until_picked(&agent, "web", &all);
}

#[tokio::test]
async fn every_change_of_a_registration_reaches_the_pick() {
    let consul = Consul::start().await;
    let agent = beside(&consul, &[]).ready();
    assert_eq!(code(&agent, "web"), (404, "unknown_service".to_owned()));
    let mut slowest = Duration::ZERO;
    let mut took = |time: Duration| slowest = slowest.max(time);

    consul.register("n1", "web", "w1", 8001, json!({})).await;
    took(until_picked(&agent, "web", &["w1@n1"]));
    let weights = |passing: u32, warning: u32| json!({ "Weights": { "Passing": passing, "Warning": warning } });
    consul.register("n2", "web", "w2", 8002, weights(3, 1)).await;
    took(until_picked(&agent, "web", &["w1@n1", "w2@n2"]));
    took(until_is(&agent, "web", "w2@n2", "a weight", |pick| pick["weight"] == 3));
    consul.register("n2", "web", "w2", 8002, weights(20_000, 1)).await;
    took(until_is(&agent, "web", "w2@n2", "a weight changed", |pick| {
        pick["weight"] == 20_000
    }));
    consul
        .register("n1", "web", "w1", 8001, json!({ "Tags": ["v2", "eu"] }))
        .await;
    took(until_is(&agent, "web", "w1@n1", "tags", |pick| {
        pick["tags"] == json!(["eu", "v2"])
    }));
    assert_eq!(agent.get("/pick/web?tag=v2&tag=eu&n=9").json()["alternates"], json!([]));
    consul
        .register("n1", "web", "w1", 9001, json!({ "Tags": ["v2"] }))
        .await;
    took(until_is(&agent, "web", "w1@n1", "a port changed", |pick| {
        pick["address"] == "10.0.0.1:9001"
    }));
    consul
        .register(
            "n1",
            "web",
            "w1",
            9001,
            json!({ "Meta": { "weight": "4", "zone": "a" } }),
        )
        .await;
    took(until_is(&agent, "web", "w1@n1", "a weight in Meta", |pick| {
        pick["weight"] == 4 && pick["metadata"]["zone"] == "a"
    }));
    consul
        .register("n1", "web", "w1", 9001, json!({ "Address": "2001:db8::7" }))
        .await;
    took(until_is(&agent, "web", "w1@n1", "another host", |pick| {
        pick["address"] == "[2001:db8::7]:9001"
    }));

    // Warning weights replace the factor of degraded instances, and 0 drains.
    consul.register("n2", "web", "w2", 8002, weights(10, 2)).await;
    consul.check("n2", "w2", "c", "warning", "").await;
    took(until_is(&agent, "web", "w2@n2", "a warning", |pick| {
        pick["status"] == "degraded" && pick["weight"] == 10
    }));
    // Under a strategy without weights the factor is warning weight / passing weight. Slow start is
    // another factor, since the instance has just joined.
    let explained = agent.get("/explain/web").json();
    assert_eq!(explained["instances"][1]["id"], "w2@n2");
    assert_eq!(explained["instances"][1]["factors"]["degraded"], 0.2);
    consul.register("n2", "web", "w2", 8002, weights(10, 0)).await;
    took(until_picked(&agent, "web", &["w1@n1"]));
    consul.check("n2", "w2", "c", "passing", "").await;
    took(until_picked(&agent, "web", &["w1@n1", "w2@n2"]));
    // A check of the node applies to all instances of the node.
    consul.check("n2", "", "node", "critical", "").await;
    took(until_picked(&agent, "web", &["w1@n1"]));
    consul.check("n2", "", "node", "passing", "").await;
    took(until_picked(&agent, "web", &["w1@n1", "w2@n2"]));
    // Consul treats a weight of 0 as absent; a weight of 0 in Meta drains.
    consul
        .register("n2", "web", "w2", 8002, json!({ "Meta": { "weight": "0" } }))
        .await;
    took(until_picked(&agent, "web", &["w1@n1"]));
    consul.register("n2", "web", "w2", 8002, weights(1, 1)).await;
    took(until_picked(&agent, "web", &["w1@n1", "w2@n2"]));

    // The same id on two nodes is two instances; a removed node removes its own instance.
    consul.register("n3", "web", "w1", 8003, json!({})).await;
    took(until_picked(&agent, "web", &["w1@n1", "w1@n3", "w2@n2"]));
    consul.deregister("n2", Some("w2")).await;
    took(until_picked(&agent, "web", &["w1@n1", "w1@n3"]));
    consul.deregister("n3", None).await;
    took(until_picked(&agent, "web", &["w1@n1"]));
    eprintln!("changes in Consul: the slowest was in the pick after {slowest:.1?}");
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");

    // An id that is registered for another service leaves the old service, whose long poll misses
    // the change.
    consul.register("n4", "web", "w4", 8004, json!({})).await;
    until_picked(&agent, "web", &["w1@n1", "w4@n4"]);
    consul.register("n4", "renamed", "w4", 8004, json!({})).await;
    until_picked(&agent, "renamed", &["w4@n4"]);
    until_picked(&agent, "web", &["w1@n1"]);
    // The service stays known after its last instance has left.
    consul.deregister("n1", Some("w1")).await;
    until(SOON, "nothing is left", || {
        (code(&agent, "web") == (503, "no_instances".to_owned())).then_some(())
    });
    // An invalid registration affects only itself, and is counted.
    let invalid = r#"pickd_source_errors_total{reason="invalid_instance",source="consul"}"#;
    let before = agent.metric(invalid).unwrap();
    consul.register("n5", "web", "bad", 70_000, json!({})).await;
    consul.register("n5", "web", "good", 8005, json!({})).await;
    until_picked(&agent, "web", &["good@n5"]);
    until(SOON, "it is counted", || {
        (agent.metric(invalid).unwrap() > before).then_some(())
    });
}

#[tokio::test]
async fn a_hundred_services_are_picked_by_glob() {
    let consul = Consul::start().await;
    let port = |number: i64| 8_000 + number;
    for number in 0..100 {
        consul
            .register(
                "n1",
                &format!("svc-{number:03}"),
                &format!("i{number}"),
                port(number),
                json!({}),
            )
            .await;
    }
    for other in ["other-1", "SVC"] {
        consul.register("n1", other, other, 80, json!({})).await;
    }
    let agent = beside(&consul, &["--consul-service", "svc-*"]).ready();
    let mut connection = Connection::open(agent.address).unwrap();
    for number in 0..100 {
        let answer = connection.ask("GET", &format!("/pick/svc-{number:03}"), &[]).unwrap();
        assert_eq!((answer.status, &answer.json()["port"]), (200, &json!(port(number))));
    }
    assert_eq!(code(&agent, "other-1"), (404, "unknown_service".to_owned()));
    assert_eq!(agent.get("/services").json()["services"].as_array().unwrap().len(), 100);
    // A service beyond the number of long polls is read in turn.
    let started = Instant::now();
    for number in 0..100 {
        consul
            .register(
                "n1",
                &format!("svc-{number:03}"),
                &format!("i{number}"),
                port(number) + 1_000,
                json!({}),
            )
            .await;
    }
    for number in 0..100 {
        until(LATER, &format!("svc-{number:03} has moved"), || {
            let answer = connection.ask("GET", &format!("/pick/svc-{number:03}"), &[]).unwrap();
            (answer.json()["port"] == port(number) + 1_000).then_some(())
        });
    }
    eprintln!(
        "100 services of which 64 have a long poll: all changed after {:.1?}",
        started.elapsed()
    );
    consul.register("n1", "svc-new", "new", 1, json!({})).await;
    until_picked(&agent, "svc-new", &["new@n1"]);
}

#[tokio::test]
async fn wrong_and_missing_rights_take_nothing_away() {
    let consul = Consul::start_with_acl().await;
    consul.register("n1", "web", "w1", 80, json!({})).await;
    let good = r#"service_prefix "" { policy = "read" } node_prefix "" { policy = "read" }"#;
    let good = consul.token("good", good).await;
    let nothing = consul.token("nothing", r#"key_prefix "" { policy = "read" }"#).await;
    let blind = consul.token("blind", r#"service_prefix "" { policy = "read" }"#).await;
    let folder = Folder::new();
    folder.write("token", &good);
    let text = format!("[consul]\naddress = \"{}\"\ntoken_file = \"token\"\n", consul.address());
    let config = folder.write("pickd.toml", &text);
    let run = || Agent::run(["--config", config.to_str().unwrap()]);
    let agent = run().ready();
    assert_eq!(ids(&agent, "web"), ["w1@n1"]);
    let oracle = Oracle::new(Duration::ZERO, ["10.0.0.1:80".to_owned(), "10.0.0.1:81".to_owned()]);
    let picker = Picker::start(agent.address, "/pick/web", 100, &oracle);

    // A token that does not exist is refused. A token without permissions gets 200 and an empty
    // catalog. A token without node permission gets the catalog, and no instances of its services.
    for (what, token, is_up) in [
        ("wrong", "11111111-2222-3333-4444-555555555555", false),
        ("without rights", nothing.as_str(), false),
        ("blind for nodes", blind.as_str(), true),
    ] {
        let before = denied(&agent);
        folder.write("token", token);
        agent.program.signal("HUP");
        // A registration wakes the long polls, so that the next polls use the new token.
        consul
            .register("n1", "web", "w1", 80, json!({ "Meta": { "token": what } }))
            .await;
        until(LATER, &format!("the token {what} is noticed"), || {
            (denied(&agent) > before && up(&agent) == is_up).then_some(())
        });
        assert_eq!(ids(&agent, "web"), ["w1@n1"], "{what}");
        assert_eq!(
            pool(&agent, "web")["w1@n1"].get("stale_seconds").is_some(),
            !is_up,
            "{what}"
        );
    }
    // An agent that never had more rights answers `not_synced`, not `unknown_service`.
    folder.write("token", &nothing);
    let other = run();
    until(SOON, "it is denied", || (denied(&other) >= 2.0).then_some(()));
    assert_eq!(code(&other, "web"), (503, "not_synced".to_owned()));
    assert_eq!(other.get("/readyz").status, 503);

    folder.write("token", &good);
    agent.program.signal("HUP");
    consul.register("n1", "web", "w2", 81, json!({})).await;
    until_picked(&agent, "web", &["w1@n1", "w2@n1"]);
    // The other agent gets no SIGHUP: it reads the file again when Consul refuses the token.
    until_picked(&other, "web", &["w1@n1", "w2@n1"]);
    until(SOON, "a hundred picks", || (picker.picks() >= 100).then_some(()));
    picker.check("rights lost and found", 100);
}

/// Instances that accept connections, since pickd tries the connections of held instances.
struct Backends(Vec<(String, TcpListener)>);

impl Backends {
    fn new(count: usize) -> Self {
        let listener = || TcpListener::bind("127.0.0.1:0").unwrap();
        Self((1..=count).map(|number| (format!("w{number}"), listener())).collect())
    }

    fn address(&self, index: usize) -> String {
        self.0[index].1.local_addr().unwrap().to_string()
    }

    fn addresses(&self) -> Vec<String> {
        (0..self.0.len()).map(|index| self.address(index)).collect()
    }

    async fn register(&self, consul: &Consul, index: usize) {
        let (id, listener) = &self.0[index];
        let address = listener.local_addr().unwrap();
        let fields = json!({ "Address": "127.0.0.1" });
        consul
            .register("n1", "web", id, i64::from(address.port()), fields)
            .await;
    }

    async fn register_all(&self, consul: &Consul) {
        for index in 0..self.0.len() {
            self.register(consul, index).await;
        }
    }
}

/// Kills Consul while picks run at a fixed rate, checks the state of the source meanwhile, starts
/// Consul again (without its data if `wiped`), and waits until a later change is picked.
async fn outage(what: &str, wiped: bool) {
    let mut consul = Consul::start().await;
    let backends = Backends::new(5);
    for index in 0..4 {
        backends.register(&consul, index).await;
    }
    let agent = beside(&consul, &[]).ready();
    until_picked(&agent, "web", &["w1@n1", "w2@n1", "w3@n1", "w4@n1"]);
    let oracle = Oracle::new(LATER, backends.addresses().into_iter().take(4));
    let picker = Picker::start(agent.address, "/pick/web", RATE, &oracle);
    until(SOON, "a few picks", || (picker.picks() >= 400).then_some(()));

    let killed = Instant::now();
    consul.kill();
    until(SOON, "the loss is noticed", || (!up(&agent)).then_some(()));
    let noticed = killed.elapsed();
    until(SOON, "picks say so", || {
        agent.get("/pick/web").json()["stale_seconds"]
            .as_u64()
            .filter(|seconds| *seconds >= 1)
    });
    let ready = agent.get("/readyz");
    assert_eq!((ready.status, &ready.json()["ready"]), (200, &json!(true)));
    for source in [source(&agent), agent.get("/services").json()["sources"][0].clone()] {
        assert_eq!(
            (&source["source"], &source["up"], &source["synced"]),
            (&json!("consul"), &json!(false), &json!(true))
        );
        let away = source["away_seconds"].as_f64().unwrap();
        assert!((1.0..=killed.elapsed().as_secs_f64()).contains(&away), "{source}");
        assert!(
            source["last_error"]
                .as_str()
                .is_some_and(|error| error.contains("unreachable")),
            "{source}"
        );
    }
    let service = agent.get("/services/web").json();
    assert_eq!(
        (&service["source_states"][0]["up"], &service["total_instances"]),
        (&json!(false), &json!(4))
    );
    let age = agent.metric(r#"pickd_source_age_seconds{source="consul"}"#).unwrap();
    assert!(age >= 1.0, "{age}");
    let errors = agent.metric(r#"pickd_source_errors_total{reason="unreachable",source="consul"}"#);
    assert!(errors.is_some_and(|errors| errors >= 1.0));
    assert_eq!(
        agent
            .program
            .logged("registry lost, serving the last known instances")
            .len(),
        1,
        "said once"
    );

    let held = || agent.metric(r#"pickd_source_held_removals{source="consul"}"#).unwrap();
    if wiped {
        consul.wipe();
    }
    consul.restart().await;
    if wiped {
        until(LATER, "the removals are held", || (held() == 4.0).then_some(()));
        assert_eq!(ids(&agent, "web").len(), 4);
        for index in 0..4 {
            backends.register(&consul, index).await;
        }
        until(LATER, "nothing is held any more", || (held() == 0.0).then_some(()));
    }
    until(LATER, "Consul is back", || up(&agent).then_some(()));
    let back = killed.elapsed();
    agent.program.wait_for_log("registry answers again", |_| true);
    assert!(agent.get("/pick/web").json().get("stale_seconds").is_none());
    assert_eq!(source(&agent)["away_seconds"], Value::Null);

    oracle.add(&backends.address(4));
    let changed = Instant::now();
    backends.register(&consul, 4).await;
    consul.deregister("n1", Some("w1")).await;
    until_picked(&agent, "web", &["w2@n1", "w3@n1", "w4@n1", "w5@n1"]);
    let converged = changed.elapsed();
    oracle.remove(&backends.address(0));
    until(LATER, "3,000 picks", || (picker.picks() >= 3_000).then_some(()));
    let tally = picker.stop();
    eprintln!(
        "{what}: the loss was noticed after {noticed:.1?}, Consul was back after {back:.1?}, a change was picked after {converged:.1?}"
    );
    assert!(tally.stale > 0 && tally.by_address.contains_key(&backends.address(4)));
    tally.check(what, 3_000);
}

#[tokio::test]
async fn no_pick_is_lost_while_consul_is_killed_and_started_again() {
    outage("Consul killed and started again", false).await;
}

#[tokio::test]
async fn no_pick_is_lost_while_consul_is_killed_and_comes_back_without_its_data() {
    outage("Consul killed, wiped and started again", true).await;
}

#[tokio::test]
async fn after_data_loss_refusing_instances_go_at_once_and_others_in_time() {
    let mut consul = Consul::start().await;
    let mut backends = Backends::new(4);
    backends.register_all(&consul).await;
    let folder = Folder::new();
    let text = format!("[consul]\naddress = \"{}\"\nhold = 0\n", consul.address());
    let config = folder.write("pickd.toml", &text);
    let agent = Agent::run(["--config", config.to_str().unwrap()]).ready();
    until_picked(&agent, "web", &["w1@n1", "w2@n1", "w3@n1", "w4@n1"]);
    consul.kill();
    consul.wipe();
    backends.0.drain(..2);
    consul.restart().await;
    until_picked(&agent, "web", &["w3@n1", "w4@n1"]);
    until(LATER, "the hold ends", || {
        (code(&agent, "web") == (503, "no_instances".to_owned())).then_some(())
    });
}

#[tokio::test]
async fn an_agent_that_starts_before_consul_serves_once_it_is_there() {
    let mut consul = Consul::not_started();
    let agent = beside(&consul, &[]);
    until(SOON, "it has tried", || {
        let source = source(&agent);
        source["last_error"].is_string().then_some(())
    });
    assert_eq!(code(&agent, "web"), (503, "not_synced".to_owned()));
    assert_eq!(agent.get("/readyz").status, 503);
    assert_eq!(agent.metric(r#"pickd_source_synced{source="consul"}"#), Some(0.0));
    consul.restart().await;
    let started = Instant::now();
    until(LATER, "it has synced", || {
        (agent.get("/readyz").status == 200).then_some(())
    });
    eprintln!(
        "an agent that waited for Consul was ready {:.1?} after it",
        started.elapsed()
    );
    assert_eq!(code(&agent, "web"), (404, "unknown_service".to_owned()));
    consul.register("n1", "web", "w1", 80, json!({})).await;
    until_picked(&agent, "web", &["w1@n1"]);
}

/// Queries Consul without pickd, and sends the time at which each new port appeared.
async fn bare_query(consul: String, seen: std::sync::mpsc::Sender<(u64, Instant)>) {
    let client = pickd::http_client::client(Duration::from_secs(5), &Default::default()).unwrap();
    let mut index = String::from("1");
    loop {
        let url = format!("{consul}/v1/health/service/web?stale&wait=20s&index={index}");
        let response = client.get(url).send().await.unwrap();
        index = response.headers()["x-consul-index"].to_str().unwrap().to_owned();
        let body = response.bytes().await.unwrap();
        let at = Instant::now();
        let body: Value = serde_json::from_slice(&body).unwrap();
        // The receiver is gone once the test is over.
        if seen.send((body[0]["Service"]["Port"].as_u64().unwrap(), at)).is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_picked_as_soon_as_a_bare_blocked_query_sees_it() {
    const CHANGES: usize = 12;
    let consul = Consul::start().await;
    consul.register("n1", "web", "w1", 8_000, json!({})).await;
    let agent = beside(&consul, &[]).ready();
    let (seen, bare) = std::sync::mpsc::channel();
    let query = tokio::spawn(bare_query(consul.address(), seen));
    let mut connection = Connection::open(agent.address).unwrap();
    let (mut visible, mut behind) = (Vec::new(), Vec::new());
    for port in 8_001..=8_000 + CHANGES as u64 {
        // Changes are slow: pickd makes at most four requests per second for a service, and a
        // change may need two requests.
        tokio::time::sleep(Duration::from_millis(600)).await;
        let started = Instant::now();
        consul.register("n1", "web", "w1", port as i64, json!({})).await;
        while connection.ask("GET", "/pick/web", &[]).unwrap().json()["port"] != port {
            assert!(started.elapsed() < SOON, "port {port} is not picked");
        }
        let picked = Instant::now();
        let at = loop {
            match bare.recv_timeout(SOON).unwrap() {
                (seen, at) if seen == port => break at,
                _ => {}
            }
        };
        visible.push(started.elapsed().as_secs_f64() * 1_000.0);
        let (late, early) = (
            picked.saturating_duration_since(at),
            at.saturating_duration_since(picked),
        );
        behind.push((late.as_secs_f64() - early.as_secs_f64()) * 1_000.0);
    }
    query.abort();
    let summary = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        (times[0], times[times.len() / 2], times[times.len() - 1])
    };
    let ((least, median, most), (_, told, latest)) = (summary(&mut behind), summary(&mut visible));
    eprintln!(
        "{CHANGES} changes: picked {median:.1} ms after a bare blocked query saw them (from {least:.1} to {most:.1}), \
         {told:.1} ms after they were sent (at most {latest:.1})"
    );
    assert!(median < 50.0 && most < 1_000.0, "{behind:?}");
}
