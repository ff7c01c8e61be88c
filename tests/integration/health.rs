//! Health against real HTTP, TCP and gRPC backends, registered in Consul and etcd, that answer 500,
//! hang, refuse, stop, return and flap. `judgement.rs` has the single rules, on a manual clock.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::block_in_place as blocking;
use tonic_health::ServingStatus;

use crate::support::agent::{Agent, SOON};
use crate::support::backend::Backend;
use crate::support::consul::Consul;
use crate::support::etcd::Etcd;
use crate::support::folder::Folder;
use crate::support::http::Connection;
use crate::support::until;

/// An agent with this configuration.
fn agent(folder: &Folder, text: &str) -> Agent {
    let config = folder.write("pickd.toml", text);
    Agent::run(["--config", config.to_str().unwrap()]).ready()
}

fn explained(agent: &Agent, id: &str) -> Value {
    let answer = agent.get("/explain/web").json();
    let instances = answer["instances"].as_array().cloned().unwrap_or_default();
    instances
        .into_iter()
        .find(|instance| instance["id"] == id)
        .unwrap_or_default()
}

fn why(agent: &Agent, id: &str) -> Value {
    explained(agent, id)["why"].clone()
}

/// Waits until `why` of an instance has exactly these words.
fn until_why(agent: &Agent, id: &str, expected: &[&str]) -> Duration {
    let started = Instant::now();
    until(SOON, &format!("{id}: {expected:?}, now {}", why(agent, id)), || {
        (why(agent, id) == json!(expected)).then_some(())
    });
    started.elapsed()
}

fn picks(agent: &Agent, count: usize) -> BTreeMap<String, usize> {
    let mut connection = Connection::open(agent.address).unwrap();
    let mut counts = BTreeMap::new();
    for _ in 0..count {
        let answer = connection.ask("GET", "/pick/web", &["Host: localhost"]).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        let id = answer.json()["id"].as_str().unwrap().to_owned();
        *counts.entry(id).or_default() += 1;
    }
    counts
}

fn picked(agent: &Agent) -> BTreeSet<String> {
    picks(agent, 60).into_keys().collect()
}

fn ids(ids: &[&str]) -> BTreeSet<String> {
    ids.iter().map(ToString::to_string).collect()
}

/// Picks this instance with a lease, and reports an outcome.
fn report(agent: &Agent, id: &str, others: &[&str], outcome: &str) {
    let mut connection = Connection::open(agent.address).unwrap();
    let answer = connection
        .post(&format!("/pick/web?exclude={}", others.join(",")), "")
        .unwrap();
    assert_eq!(
        (answer.status, &answer.json()["id"]),
        (200, &json!(id)),
        "{}",
        answer.text()
    );
    let lease = answer.json()["lease"].clone();
    let judged = connection
        .post(
            "/report",
            &json!({ "lease": lease, "outcome": outcome, "latency_ms": 5 }).to_string(),
        )
        .unwrap();
    assert_eq!(judged.json()["accepted"], 1, "{}", judged.text());
}

async fn register(consul: &Consul, id: &str, backend: &Backend) {
    let port = i64::from(backend.address.port());
    let fields = json!({ "Address": backend.address.ip().to_string() });
    consul.register("n1", "web", id, port, fields).await;
}

fn put(etcd: &Etcd, id: &str, backend: &Backend) {
    etcd.put(&format!("/services/web/{id}"), &backend.address.to_string());
}

const HTTP: &str = "health_check = { type = \"http\", path = \"/healthz\" }\n";

#[tokio::test(flavor = "multi_thread")]
async fn failing_hanging_and_refusing_backends_are_found_in_time() {
    let consul = Consul::start().await;
    let backends = [Backend::start(), Backend::start(), Backend::start(), Backend::start()];
    for (backend, id) in backends.iter().zip(["a", "b", "c", "d"]) {
        register(&consul, id, backend).await;
    }
    blocking(|| {
        let folder = Folder::new();
        let settings = format!(
            "[consul]\naddress = \"{}\"\n[services.web]\npreset = \"critical\"\nhealth_check_interval = \"2s\"\n\
             health_check_timeout = \"1s\"\nrise = 1\nslow_start = \"0s\"\n{HTTP}",
            consul.address()
        );
        let agent = agent(&folder, &settings);
        for id in ["a@n1", "b@n1", "c@n1", "d@n1"] {
            until_why(&agent, id, &["registry_passing"]);
            until(SOON, "the first check", || {
                (explained(&agent, id)["layers"]["active"]["state"] == "up").then_some(())
            });
        }
        assert_eq!(picked(&agent), ids(&["a@n1", "b@n1", "c@n1", "d@n1"]));
        backends[0].answers(500);
        backends[1].hangs();
        backends[2].stop();
        let mut found = BTreeMap::new();
        for (id, reason) in [
            ("a@n1", "status_500"),
            ("b@n1", "timeout"),
            ("c@n1", "connection_refused"),
        ] {
            found.insert(reason, until_why(&agent, id, &["check_failed"]));
            assert_eq!(explained(&agent, id)["layers"]["active"]["reason"], reason);
            assert_eq!(
                explained(&agent, id)["layers"]["registry"]["state"],
                "passing",
                "none overwrites another"
            );
        }
        eprintln!("out after {found:?}; interval 2 s, timeout 1 s");
        assert!(found["status_500"] <= Duration::from_secs(3), "{found:?}");
        assert!(found["timeout"] <= Duration::from_secs(3), "{found:?}");
        assert_eq!(picked(&agent), ids(&["d@n1"]));
        let state = |id: &str| agent.get("/services/web").json()["instances"][id].clone();
        assert_eq!(
            (&state("a@n1")["status"], &state("a@n1")["reason"]),
            (&json!("unhealthy"), &json!("check_failed"))
        );
        assert!(
            agent
                .metric(r#"pickd_health_checks_total{result="fail",service="web"}"#)
                .unwrap()
                >= 3.0
        );
        assert!(
            agent
                .metric(r#"pickd_health_checks_total{result="pass",service="web"}"#)
                .unwrap()
                >= 4.0
        );
        assert_eq!(
            agent.metric(r#"pickd_pool_instances{service="web",status="unhealthy"}"#),
            Some(3.0)
        );

        backends[0].answers(204);
        backends[1].answers(200);
        backends[2].restart();
        for id in ["a@n1", "b@n1", "c@n1"] {
            until_why(&agent, id, &["registry_passing"]);
        }
        until(SOON, "all are picked again", || {
            (picked(&agent) == ids(&["a@n1", "b@n1", "c@n1", "d@n1"])).then_some(())
        });
        let down = agent
            .program
            .wait_for_log("checks fail, taken out", |line| line["instance"] == "b@n1");
        assert_eq!((&down["reason"], &down["service"]), (&json!("timeout"), &json!("web")));
        agent
            .program
            .wait_for_log("checks pass again, slow start", |line| line["instance"] == "b@n1");
        drop(agent);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_alone_eject_an_instance_and_checks_do_not_bring_it_back() {
    let etcd = blocking(Etcd::start);
    blocking(|| {
        let backends = [Backend::start(), Backend::start(), Backend::start()];
        for (backend, id) in backends.iter().zip(["a", "b", "c"]) {
            put(&etcd, id, backend);
        }
        let folder = Folder::new();
        let settings = format!(
            "[etcd]\nendpoints = [\"{}\"]\n[services.web]\nmax_consecutive_failures = 4\nhealth_check_interval = \"200ms\"\n\
             slow_start = \"0s\"\nbreaker = {{ open_min = \"3s\", open_max = \"3s\" }}\n{HTTP}",
            etcd.url(0)
        );
        let agent = agent(&folder, &settings);
        until_why(&agent, "a", &["checks_passing"]);
        for _ in 0..3 {
            report(&agent, "a", &["b", "c"], "failure");
        }
        assert_eq!(why(&agent, "a"), json!(["checks_passing"]));
        report(&agent, "a", &["b", "c"], "failure");
        assert_eq!(
            why(&agent, "a"),
            json!(["breaker_open"]),
            "with the fourth, and at once"
        );
        assert_eq!(picked(&agent), ids(&["b", "c"]));
        let explained = explained(&agent, "a");
        assert_eq!(explained["layers"]["breaker"]["reason"], "4 failures in a row");
        assert_eq!(explained["layers"]["active"]["state"], "up");
        assert_eq!(
            agent.metric(r#"pickd_breaker_state{endpoint="a",service="web"}"#),
            Some(2.0)
        );
        // Checks keep passing, and do not close the breaker: only time makes it half open.
        let before = backends[0].requests();
        until(SOON, "checks pass meanwhile", || {
            (backends[0].requests() >= before + 5).then_some(())
        });
        assert_eq!(why(&agent, "a"), json!(["breaker_open"]));
        until_why(&agent, "a", &["breaker_half_open"]);
        report(&agent, "a", &["b", "c"], "success");
        assert_eq!(why(&agent, "a"), json!(["checks_passing"]), "the trial has decided");
        agent.program.wait_for_log("breaker opened, taken out", |line| {
            line["instance"] == "a" && line["reason"] == "4 failures in a row"
        });
        agent.program.wait_for_log("breaker closed, slow start", |line| {
            line["reason"] == "the trial succeeded"
        });
        drop(agent);
    });
    blocking(move || drop(etcd));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trial_whose_client_died_does_not_block_recovery() {
    let etcd = blocking(Etcd::start);
    blocking(|| {
        let backends = [Backend::start(), Backend::start()];
        put(&etcd, "a", &backends[0]);
        put(&etcd, "b", &backends[1]);
        let folder = Folder::new();
        let settings = format!(
            "[etcd]\nendpoints = [\"{}\"]\n[services.web]\nbreaker = {{ open_min = \"200ms\", open_max = \"200ms\" }}\n",
            etcd.url(0)
        );
        let agent = agent(&folder, &settings);
        for _ in 0..3 {
            report(&agent, "a", &["b"], "failure");
        }
        until_why(&agent, "a", &["breaker_half_open"]);
        // Callers that pick and never report: each pick takes the trial for a while.
        let started = Instant::now();
        let mut trials = 0;
        until(Duration::from_secs(40), "the breaker closes", || {
            trials += picks(&agent, 20).get("a").copied().unwrap_or_default();
            (explained(&agent, "a")["layers"]["breaker"]["state"] == "closed").then_some(())
        });
        eprintln!("closed after {:?}, {trials} picks of it", started.elapsed());
        assert!(trials >= 3);
        agent.program.wait_for_log("breaker closed, slow start", |line| {
            line["reason"] == "three trials ended without an outcome"
        });
        drop(agent);
    });
    blocking(move || drop(etcd));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recovered_backend_rises_from_a_tenth_to_its_share() {
    let consul = Consul::start().await;
    let backends = [Backend::start(), Backend::start()];
    register(&consul, "a", &backends[0]).await;
    register(&consul, "b", &backends[1]).await;
    blocking(|| {
        let folder = Folder::new();
        // With the default slow start, the first second has a factor of 1/16.
        let settings = format!(
            "[consul]\naddress = \"{}\"\n[services.web]\nhealth_check_interval = \"200ms\"\nmax_consecutive_failures = 1\n\
             rise = 1\nslow_start = \"16s\"\n{HTTP}",
            consul.address()
        );
        let agent = agent(&folder, &settings);
        until_why(&agent, "a@n1", &["registry_passing"]);
        backends[0].stop();
        until_why(&agent, "a@n1", &["check_failed"]);
        backends[0].restart();
        until_why(&agent, "a@n1", &["registry_passing", "slow_start"]);
        let recovered = Instant::now();
        let (mut a, mut b) = (0, 0);
        while recovered.elapsed() < Duration::from_millis(900) {
            let counts = picks(&agent, 17);
            a += counts.get("a@n1").copied().unwrap_or_default();
            b += counts["b@n1"];
        }
        eprintln!("first second: {a} against {b}");
        assert!(a * 10 <= b, "{a} of {b}");
        let mut factors = Vec::new();
        until(Duration::from_secs(30), "the ramp ends", || {
            let factor = explained(&agent, "a@n1")["factors"]["slow_start"].as_f64()?;
            factors.push(factor);
            (factor == 1.0).then_some(())
        });
        assert!(factors.is_sorted() && factors.contains(&0.5), "{factors:?}");
        until(SOON, "it has its share", || {
            (picks(&agent, 40)["a@n1"] == 20).then_some(())
        });
        drop(agent);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn when_all_instances_fail_the_service_panics_and_stays_pickable() {
    let consul = Consul::start().await;
    let backends: Vec<Backend> = (0..5).map(|_| Backend::start()).collect();
    for (backend, id) in backends.iter().zip(["a", "b", "c", "critical", "drained"]) {
        register(&consul, id, backend).await;
    }
    consul.check("n1", "critical", "disk", "critical", "full").await;
    blocking(|| {
        let folder = Folder::new();
        let settings = |panic: bool| {
            format!(
                "[consul]\naddress = \"{}\"\n[services.web]\nhealth_check_interval = \"200ms\"\nmax_consecutive_failures = 1\n\
                 rise = 1\npanic = {panic}\nslow_start = \"0s\"\n{HTTP}",
                consul.address()
            )
        };
        let agent = agent(&folder, &settings(true));
        until_why(&agent, "critical@n1", &["registry_critical"]);
        let drain = crate::support::http::ask(
            agent.address,
            "PUT",
            "/services/web/instances/drained@n1/drain",
            &["Host: localhost"],
        );
        assert_eq!(drain.status, 200, "{}", drain.text());
        assert!(agent.get("/pick/web").json()["panic"].is_null());
        backends.iter().for_each(|backend| backend.answers(503));
        for id in ["a@n1", "b@n1", "c@n1"] {
            until_why(&agent, id, &["check_failed", "panic"]);
        }
        until_why(&agent, "critical@n1", &["registry_critical", "check_failed"]);
        until_why(&agent, "drained@n1", &["drained", "check_failed"]);
        assert_eq!(picked(&agent), ids(&["a@n1", "b@n1", "c@n1"]));
        let answer = agent.get("/pick/web").json();
        assert_eq!(
            (&answer["panic"], &answer["status"]),
            (&json!(true), &json!("unhealthy"))
        );
        let explained = agent.get("/explain/web").json();
        assert_eq!(
            (&explained["panic"], &explained["available_instances"]),
            (&json!(true), &json!(0))
        );
        assert_eq!(explained["eligible_instances"], 3);
        assert!(
            agent
                .metric(r#"pickd_picks_total{result="panic",service="web"}"#)
                .unwrap()
                >= 61.0
        );
        assert_eq!(agent.metric(r#"pickd_pool_panic{service="web"}"#), Some(1.0));
        agent
            .program
            .wait_for_log("too few instances are usable, picking from all of them", |line| {
                line["eligible"] == 3
            });

        // With panic mode off, no instance is left; with panic mode on, all instances are.
        folder.write("pickd.toml", &settings(false));
        until(SOON, "the reload", || {
            (agent.get("/pick/web").status == 503).then_some(())
        });
        assert_eq!(agent.get("/pick/web").json()["code"], "none_available");
        folder.write("pickd.toml", &settings(true));
        until(SOON, "the reload", || {
            (agent.get("/pick/web").status == 200).then_some(())
        });

        backends[1].answers(200);
        until_why(&agent, "b@n1", &["registry_passing"]);
        assert_eq!(picked(&agent), ids(&["b@n1"]));
        assert!(agent.get("/pick/web").json()["panic"].is_null());
        agent
            .program
            .wait_for_log("enough instances are usable again", |_| true);
        drop(agent);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn tcp_and_grpc_backends_are_checked_as_what_they_are() {
    let etcd = blocking(Etcd::start);
    let (reporter, service) = tonic_health::server::health_reporter();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let grpc = listener.local_addr().unwrap();
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    let server = tonic::transport::Server::builder()
        .add_service(service)
        .serve_with_incoming(incoming);
    let server = tokio::spawn(server);
    reporter.set_service_status("shop.Cart", ServingStatus::Serving).await;
    let plain = blocking(Backend::start);
    blocking(|| {
        etcd.put("/services/web/grpc", &grpc.to_string());
        put(&etcd, "plain", &plain);
        etcd.put("/services/tcp/plain", &plain.address.to_string());
    });
    let folder = Folder::new();
    let settings = |service: &str| {
        format!(
            "[etcd]\nendpoints = [\"{}\"]\n[defaults]\nhealth_check_interval = \"200ms\"\nmax_consecutive_failures = 1\nrise = 1\n\
             [services.web]\nhealth_check = {{ type = \"grpc\", service = \"{service}\" }}\n\
             [services.tcp]\nhealth_check = {{ type = \"tcp\" }}\n",
            etcd.url(0)
        )
    };
    let agent = blocking(|| agent(&folder, &settings("shop.Cart")));
    blocking(|| {
        until_why(&agent, "grpc", &["checks_passing"]);
        // The backend speaks HTTP/1, not gRPC.
        until_why(&agent, "plain", &["check_failed"]);
    });
    reporter
        .set_service_status("shop.Cart", ServingStatus::NotServing)
        .await;
    blocking(|| {
        until(SOON, "it does not serve", || {
            (explained(&agent, "grpc")["layers"]["active"]["reason"] == "not_serving").then_some(())
        });
        let tcp = || agent.get("/explain/tcp").json()["instances"][0]["layers"]["active"].clone();
        until(SOON, "tcp", || (tcp()["state"] == "up").then_some(()));
        plain.stop();
        until(SOON, "tcp", || (tcp()["reason"] == "connection_refused").then_some(()));
    });
    reporter.set_service_status("shop.Cart", ServingStatus::Serving).await;
    blocking(|| {
        until(SOON, "it serves again", || {
            (explained(&agent, "grpc")["layers"]["active"]["state"] == "up").then_some(())
        });
        drop((agent, etcd));
    });
    server.abort();
}

/// A frozen server: etcd after SIGSTOP, while the kernel still accepts connections.
#[test]
fn a_process_that_is_stopped_in_its_tracks_is_found_and_found_again() {
    let sleeper = Etcd::start();
    let awake = Backend::start();
    let folder = Folder::new();
    let sleeper_address = format!("127.0.0.1:{}", sleeper.port());
    folder.registry("services.toml", "web", &[&sleeper_address, &awake.address.to_string()]);
    let settings = "[file]\npath = \"services.toml\"\n[services.web]\nhealth_check_interval = \"500ms\"\n\
                    health_check_timeout = \"300ms\"\nmax_consecutive_failures = 2\nrise = 2\nslow_start = \"0s\"\n\
                    health_check = { type = \"http\", path = \"/health\" }\n";
    let agent = agent(&folder, settings);
    until_why(&agent, &sleeper_address, &["checks_passing"]);
    for _ in 0..2 {
        sleeper.signal(0, "STOP");
        until_why(&agent, &sleeper_address, &["check_failed"]);
        assert_eq!(
            explained(&agent, &sleeper_address)["layers"]["active"]["reason"],
            "timeout"
        );
        assert_eq!(picked(&agent).len(), 1);
        sleeper.signal(0, "CONT");
        until_why(&agent, &sleeper_address, &["checks_passing"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denied_address_is_listed_and_neither_checked_nor_picked() {
    let consul = Consul::start().await;
    // A backend in place of a metadata service, which counts connections.
    let canary = Backend::start_at("127.0.0.66:0");
    let good = Backend::start();
    register(&consul, "good", &good).await;
    let port = i64::from(canary.address.port());
    for (id, address) in [
        ("canary", "127.0.0.66"),
        ("mapped", "::ffff:127.0.0.66"),
        ("metadata", "169.254.169.254"),
        ("multicast", "224.0.0.1"),
    ] {
        consul
            .register("n1", "web", id, port, json!({ "Address": address }))
            .await;
    }
    blocking(|| {
        let folder = Folder::new();
        let settings = |deny: &str| {
            format!(
                "[consul]\naddress = \"{}\"\n[probe]\ndeny = [{deny}]\n[services.web]\nhealth_check_interval = \"200ms\"\n{HTTP}",
                consul.address()
            )
        };
        let agent = agent(&folder, &settings("\"127.0.0.64/30\""));
        until_why(&agent, "good@n1", &["registry_passing"]);
        for id in ["canary", "mapped", "metadata", "multicast"] {
            let id = format!("{id}@n1");
            // All registered instances are listed, except those without a valid address.
            let expected = json!(["address_refused"]);
            until(SOON, &id, || (why(&agent, &id) == expected).then_some(()));
            assert!(explained(&agent, &id)["layers"]["active"].is_null());
        }
        let checked = good.requests();
        until(SOON, "several rounds of checks", || {
            (good.requests() >= checked + 5).then_some(())
        });
        assert_eq!(picked(&agent), ids(&["good@n1"]));
        // Not even in panic.
        good.stop();
        until_why(&agent, "good@n1", &["check_failed", "panic"]);
        assert_eq!(picked(&agent), ids(&["good@n1"]));
        assert_eq!(canary.connections(), 0, "no client has connected");

        folder.write("pickd.toml", &settings(""));
        until_why(&agent, "canary@n1", &["registry_passing"]);
        until(SOON, "it is checked now", || (canary.connections() > 0).then_some(()));
        assert_eq!(
            why(&agent, "metadata@n1"),
            json!(["address_refused"]),
            "this one needs no setting"
        );
        drop(agent);
    });
}

#[test]
fn checks_run_only_where_a_kind_is_named_and_end_with_it() {
    let backend = Backend::start();
    let other = Backend::start();
    let folder = Folder::new();
    let address = backend.address.to_string();
    folder.registry("services.toml", "web", &[&address, &other.address.to_string()]);
    let source = "[file]\npath = \"services.toml\"\n[defaults]\nhealth_check_interval = \"100ms\"\nmax_consecutive_failures = 1\n";
    let agent = agent(&folder, source);
    assert_eq!(why(&agent, &address), json!(["nobody_objects"]));
    assert_eq!(explained(&agent, &address)["status"], "unknown");
    assert_eq!(backend.connections(), 0);
    folder.write("pickd.toml", &format!("{source}[services.web]\n{HTTP}"));
    until_why(&agent, &address, &["checks_passing"]);
    assert_eq!(explained(&agent, &address)["status"], "healthy");
    backend.answers(500);
    until_why(&agent, &address, &["check_failed"]);
    let connections = backend.connections();
    // With checks turned off, earlier results of checks do not count.
    folder.write(
        "pickd.toml",
        &format!("{source}[services.web]\nhealth_check_enabled = false\n{HTTP}"),
    );
    until(SOON, "no instance is out by a check", || {
        (explained(&agent, &address)["layers"]["active"].is_null() && explained(&agent, &address)["available"] == true)
            .then_some(())
    });
    let requests = backend.requests();
    folder.write("pickd.toml", &format!("{source}[services.web]\n{HTTP}"));
    until_why(&agent, &address, &["check_failed"]);
    assert!(
        backend.requests() > requests && connections <= 2,
        "one connection for all checks: {connections}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_flaps_and_one_that_is_registered_again_lose_no_pick() {
    let consul = Consul::start().await;
    let backends: Vec<Backend> = (0..3).map(|_| Backend::start()).collect();
    for (backend, id) in backends.iter().zip(["a", "b", "c"]) {
        register(&consul, id, backend).await;
    }
    let folder = Folder::new();
    let settings = format!(
        "[consul]\naddress = \"{}\"\n[services.web]\nhealth_check_interval = \"100ms\"\nmax_consecutive_failures = 1\nrise = 1\n{HTTP}",
        consul.address()
    );
    let agent = blocking(|| agent(&folder, &settings));
    blocking(|| until_why(&agent, "c@n1", &["registry_passing"]));
    for round in 0..6 {
        blocking(|| {
            backends[0].stop();
            until(SOON, "out", || {
                (explained(&agent, "a@n1")["available"] == false).then_some(())
            });
            picks(&agent, 100);
            backends[0].restart();
            until(SOON, "in", || {
                (explained(&agent, "a@n1")["available"] == true).then_some(())
            });
            picks(&agent, 100);
        });
        if round == 3 {
            consul.deregister("n1", Some("b")).await;
            register(&consul, "b", &backends[1]).await;
        }
    }
    blocking(|| {
        let ups = agent.program.logged("checks pass again, slow start");
        let downs = agent.program.logged("checks fail, taken out");
        assert!(downs.len() >= 6 && ups.len() >= 6, "{} {}", downs.len(), ups.len());
        drop(agent);
    });
}
