//! What Consul, and proxies in front of it, do not bear: too many requests a second, too many
//! connections, long waits, and services that fail alone.
//!
//! "Scenario n" is a row of `scenarios.md`.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use pickd::discovery::{Reason, Trust, Update};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::consul_watcher::{LATER, SOON, Watched};
use crate::support::agent::Agent;
use crate::support::consul::Consul;
use crate::support::fake_consul::{FakeConsul, Fault, entry};
use crate::support::proxy::Proxy;
use crate::support::{eventually, until};

/// Long polls of other programs on this host: requests that block until Consul has an index that it
/// will not have. Consul counts their connections.
struct ForeignPolls(Vec<TcpStream>);

impl ForeignPolls {
    async fn open(consul: &Consul, polls: usize) -> Self {
        Self::open_each(consul, polls, Duration::ZERO).await
    }

    /// Opens them at half of a rate of 100 a second.
    async fn open_slowly(consul: &Consul, polls: usize) -> Self {
        Self::open_each(consul, polls, Duration::from_millis(20)).await
    }

    async fn open_each(consul: &Consul, polls: usize, pause: Duration) -> Self {
        let mut open = Vec::new();
        for _ in 0..polls {
            tokio::time::sleep(pause).await;
            let mut stream = TcpStream::connect(("127.0.0.1", consul.port())).await.unwrap();
            let request = "GET /v1/catalog/services?stale&index=99999999&wait=300s HTTP/1.1\r\nHost: consul\r\n\r\n";
            stream.write_all(request.as_bytes()).await.unwrap();
            open.push(stream);
        }
        // One that was refused by the limit of connections or of requests would be answered at once.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let polls = Self(open);
        assert_eq!(polls.ended(), 0, "Consul took all of them");
        polls
    }

    /// How many were answered or closed.
    fn ended(&self) -> usize {
        let ended = |stream: &&TcpStream| stream.try_read(&mut [0]).is_ok();
        self.0.iter().filter(ended).count()
    }
}

/// Writes a key to Consul over a new connection, as another program would. Returns whether Consul
/// took the write.
async fn write_key(port: u16, key: usize) -> bool {
    let written = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        let request = format!(
            "PUT /v1/kv/foreign/{key} HTTP/1.1\r\nHost: consul\r\nConnection: close\r\nContent-Length: 1\r\n\r\n1"
        );
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(answer.starts_with(b"HTTP/1.1 200"))
    };
    written.await.unwrap_or(false)
}

fn limited(rate: u32) -> serde_json::Value {
    json!({ "limits": { "rpc_rate": rate, "rpc_max_burst": rate } })
}

// ---- Too many requests ------------------------------------------------------------------------

/// Scenario 79.
#[tokio::test]
async fn a_rate_limit_of_the_agent_is_learned_and_all_services_are_read() {
    let server = Consul::start().await;
    server.register_many("s", 300).await;
    let client = server.start_client(limited(100)).await;
    let mut watched = Watched::at(client.address());
    let started = Instant::now();
    watched.synced().await;
    let took = started.elapsed();
    assert_eq!(watched.view.len(), 300);
    assert!(
        took < Duration::from_millis(4_500),
        "{took:?} for 300 services at 100 a second"
    );
    assert!(
        watched.errors.is_empty() && watched.status.is_up(),
        "{:?}",
        watched.errors
    );
    assert_eq!(watched.status.failing_services().len(), 0);
    let refused = watched.errors_of(Reason::Throttled);
    println!(
        "300 services at 100 a second: synced after {took:?}, {refused} refusals, {:?}",
        watched.status.limits()
    );
    assert!(refused >= 1, "the limit was met");
    assert!(refused <= 60, "{refused} refusals");
    // What is read in turn leaves room for others, and changes are still seen.
    watched.settled().await;
    let before = watched.errors_of(Reason::Throttled);
    server.register("many", "s0299", "s0299", 9_000, json!({})).await;
    let moved = |w: &Watched| w.instance("s0299", "s0299@many").unwrap().port() == 9_000;
    watched.until(LATER, "a change without a poll", moved).await;
    watched.run_for(Duration::from_secs(5)).await;
    let refused = watched.errors_of(Reason::Throttled) - before;
    println!("then {refused} refusals in more than 5 s");
    assert!(refused <= 30, "{refused} refusals");
    assert!(watched.errors.is_empty(), "{:?}", watched.errors);
}

/// Scenario 79: whatever Consul answers with 429, nothing is lost, and the reader waits.
#[tokio::test]
async fn refusals_of_everything_slow_the_reader_and_retry_after_is_heeded() {
    let fake = FakeConsul::start(&[("web", 3), ("api", 2)]).await;
    let mut watched = Watched::at(fake.address());
    watched.settled().await;
    fake.change(|state| state.fault = Some(Fault::RetryAfter(3)));
    watched
        .until(SOON, "a refusal", |w| w.errors_of(Reason::Throttled) >= 1)
        .await;
    let (asked, updates) = (fake.asked().len(), watched.updates.len());
    watched.run_for(Duration::from_millis(2_500)).await;
    assert!(
        fake.asked().len() <= asked + 4,
        "{} requests",
        fake.asked().len() - asked
    );
    fake.change(|state| state.fault = Some(Fault::Status(429)));
    watched
        .until(LATER, "Consul counts as away", |w| !w.status.is_up())
        .await;
    assert!(watched.status.last_error().unwrap().contains("429"));
    assert_eq!(watched.updates.len(), updates, "nothing is removed or read anew");
    assert!(watched.errors.is_empty());
    fake.change(|state| {
        (state.fault, state.index) = (None, 101);
        let web = vec![entry("web", "web-9", 8009)];
        state.services.insert(String::from("web"), web);
    });
    let seen = |w: &Watched| w.status.is_up() && w.ids("web") == ["web-9@n1"];
    watched.until(LATER, "the change", seen).await;
    assert_eq!(
        watched.last_trust("web"),
        Some(Trust::Steady),
        "the watch was not broken"
    );
}

// ---- One service ------------------------------------------------------------------------------

/// Scenario 80.
#[tokio::test]
async fn a_service_that_fails_alone_keeps_its_answer_and_delays_no_other() {
    let names: Vec<String> = (0..20).map(|i| format!("s{i:02}")).collect();
    let services: Vec<(&str, u16)> = names.iter().map(|name| (name.as_str(), 1)).collect();
    for (status, reason) in [
        (500, Reason::Unavailable),
        (403, Reason::Denied),
        (429, Reason::Throttled),
        (404, Reason::Protocol),
        (503, Reason::Unavailable),
    ] {
        let fake = FakeConsul::start(&services).await;
        fake.change(|state| (state.fault, state.fault_at) = (Some(Fault::Status(status)), "/s07"));
        let mut watched = Watched::at(fake.address());
        watched.synced().await;
        assert!(
            watched.errors.is_empty() && watched.status.is_up(),
            "{status}: {:?}",
            watched.errors
        );
        let known = watched.view.values().filter(|instances| instances.len() == 1).count();
        assert_eq!(known, 19, "{status}");
        let web = "s07".parse().unwrap();
        let failure = watched.status.failing_service(&web).expect("it is named");
        assert_eq!(failure.reason, reason.as_str(), "{status}");
        assert!(failure.detail.contains(&status.to_string()), "{failure:?}");
        assert_eq!(watched.status.failing_services().len(), 1, "{status}");

        // A service that sorts after it changes.
        watched.settled_but(&["s07"]).await;
        fake.change(|state| {
            state.index = 101;
            let changed = vec![entry("s19", "s19-2", 8_002)];
            state.services.insert(String::from("s19"), changed);
        });
        let took = watched.until(SOON, "a change", |w| w.ids("s19") == ["s19-2@n1"]).await;
        assert!(took < Duration::from_secs(1), "{status}: {took:?}");
        // The failing service is asked at growing intervals.
        let asked = |fake: &FakeConsul| fake.asked().iter().filter(|asked| asked.path.ends_with("/s07")).count();
        let before = asked(&fake);
        watched.run_for(Duration::from_secs(3)).await;
        let more = asked(&fake) - before;
        assert!(more <= 2, "{status}: {more} requests in 3 s");

        fake.change(|state| (state.index, state.fault) = (102, None));
        watched
            .until(LATER, "its return", |w| w.ids("s07") == ["s07-1@n1"])
            .await;
        assert!(watched.status.failing_services().is_empty(), "{status}");

        // It fails again: its last answer stays.
        fake.change(|state| (state.index, state.fault) = (103, Some(Fault::Status(status))));
        let fails = |w: &Watched| w.status.failing_service(&web).is_some();
        watched.until(LATER, "trouble again", fails).await;
        assert_eq!(watched.ids("s07"), ["s07-1@n1"], "{status}");
        assert!(watched.errors.is_empty(), "{status}: {:?}", watched.errors);
    }
}

/// Scenario 80: explain, readyz and the metrics name the service; it is picked as before.
#[tokio::test(flavor = "multi_thread")]
async fn a_failing_service_is_named_by_explain_readyz_and_metrics() {
    let fake = FakeConsul::start(&[("web", 1), ("api", 1)]).await;
    let agent = Agent::run(["--consul", &fake.address()]).ready();
    agent.picks("web");
    assert!(agent.get("/explain/web").json().get("failing_sources").is_none());
    fake.change(|state| {
        (state.index, state.fault, state.fault_at) = (101, Some(Fault::Status(403)), "/web");
        let changed = vec![entry("api", "api-2", 8_002)];
        state.services.insert(String::from("api"), changed);
    });
    let explained = until(SOON, "explain names the source", || {
        let explained = agent.get("/explain/web").json();
        explained.get("failing_sources").is_some().then_some(explained)
    });
    let failure = &explained["failing_sources"][0];
    assert_eq!(
        (&failure["source"], &failure["service"], &failure["reason"]),
        (&json!("consul"), &json!("web"), &json!("denied"))
    );
    assert!(failure["error"].as_str().unwrap().contains("403"), "{failure}");
    assert!(failure["since_seconds"].as_f64().unwrap() >= 0.0, "{failure}");
    assert_eq!(explained["available_instances"], 1);
    assert_eq!(agent.get("/pick/web").status, 200);
    until(SOON, "a change of the other", || {
        (agent.get("/pick/api").json()["id"] == "api-2@n1").then_some(())
    });
    assert!(agent.get("/explain/api").json().get("failing_sources").is_none());
    let source = agent.get("/readyz").json()["sources"][0].clone();
    assert_eq!((&source["up"], &source["failing_services"]), (&json!(true), &json!(1)));
    assert_eq!(source["failing"][0]["service"], "web");
    for (series, value) in [
        (r#"pickd_source_failing_services{source="consul"}"#, Some(1.0)),
        (
            r#"pickd_source_service_failing{source="consul",service="web",reason="denied"}"#,
            Some(1.0),
        ),
        (r#"pickd_source_long_polls_limit{source="consul"}"#, Some(16.0)),
        (r#"pickd_source_request_rate_limit{source="consul"}"#, None),
        (r#"pickd_source_wait_limit_seconds{source="consul"}"#, None),
    ] {
        assert_eq!(agent.metric(series), value, "{series}");
    }
    fake.change(|state| (state.index, state.fault) = (102, None));
    until(SOON, "its return", || {
        agent
            .get("/explain/web")
            .json()
            .get("failing_sources")
            .is_none()
            .then_some(())
    });
    assert_eq!(
        agent.metric(r#"pickd_source_failing_services{source="consul"}"#),
        Some(0.0)
    );
}

/// Scenario 80: a service whose answers never end is no failure of Consul.
#[tokio::test]
async fn a_service_that_never_answers_is_retried_alone() {
    let fake = FakeConsul::start(&[("web", 1), ("api", 1)]).await;
    fake.change(|state| (state.fault, state.fault_at) = (Some(Fault::Stall), "/web"));
    let mut watched = Watched::at(fake.address());
    let web = "web".parse().unwrap();
    let failing = |w: &Watched| w.status.failing_service(&web).is_some();
    watched.until(LATER, "a timeout", failing).await;
    assert_eq!(watched.status.failing_service(&web).unwrap().reason, "timeout");
    assert_eq!(watched.ids("api"), ["api-1@n1"]);
    assert!(watched.errors.len() <= 1, "{:?}", watched.errors);
}

// ---- Too many connections ---------------------------------------------------------------------

/// Scenario 18: the limit is shared with 150 long polls of other programs, and none of their writes
/// is refused.
#[tokio::test]
async fn beside_150_foreign_polls_everything_is_read_and_no_write_refused() {
    let consul = Consul::start().await;
    consul.register_many("s", 100).await;
    let foreign = ForeignPolls::open(&consul, 150).await;
    let port = consul.port();
    let writes = tokio::spawn(async move {
        let mut refused = 0;
        for i in 0..200 {
            refused += usize::from(!write_key(port, i).await);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        refused
    });
    let mut watched = Watched::at(consul.address());
    let started = Instant::now();
    watched.synced().await;
    let took = started.elapsed();
    assert_eq!(watched.view.len(), 100);
    watched.settled().await;
    for i in [0, 99] {
        let name = format!("s{i:04}");
        consul.register("many", &name, &name, 9_000 + i, json!({})).await;
    }
    let moved = |w: &Watched| {
        let ports = ["s0000", "s0099"].map(|name| w.instance(name, &format!("{name}@many")).unwrap().port());
        ports == [9_000, 9_099]
    };
    let seen = watched.until(Duration::from_secs(15), "changes", moved).await;
    watched.until(LATER, "all writes", |_| writes.is_finished()).await;
    let refused = writes.await.unwrap();
    println!(
        "100 services beside 150 polls: synced after {took:?}, changes after {seen:?}, {refused} of 200 writes refused, {:?}",
        watched.status.limits()
    );
    assert_eq!(refused, 0);
    assert_eq!(watched.status.limits().long_polls, Some(16), "no room for more");
    assert!(watched.errors.is_empty(), "{:?}", watched.errors);
    assert_eq!(foreign.ended(), 0);
}

/// Scenario 18: connections are refused from the start on, and later there is room again.
#[tokio::test]
async fn refused_connections_halve_the_polls_and_lose_nothing() {
    let consul = Consul::start().await;
    consul.register_many("s", 60).await;
    let mut foreign = ForeignPolls::open(&consul, 190).await;
    let mut watched = Watched::at(consul.address());
    watched.synced().await;
    assert_eq!(watched.view.len(), 60);
    watched
        .until(LATER, "fewer polls", |w| w.status.limits().long_polls == Some(4))
        .await;
    assert!(watched.errors_of(Reason::Throttled) >= 1);
    watched.settled().await;
    assert!(
        watched.errors.is_empty() && watched.status.is_up(),
        "{:?}",
        watched.errors
    );
    assert!(watched.status.failing_services().is_empty());
    let gone = watched
        .updates
        .iter()
        .filter(|update| matches!(update, Update::Gone { .. }));
    assert_eq!(gone.count(), 0);
    // Consul still counts what the others abandon, until their wait is over.
    foreign.0.truncate(100);
    consul.register("many", "s0059", "s0059", 9_000, json!({})).await;
    let moved = |w: &Watched| w.instance("s0059", "s0059@many").unwrap().port() == 9_000;
    watched.until(LATER, "a change in turn", moved).await;
}

/// Scenario 18: later versions of Consul answer 429 in place of a reset.
#[tokio::test]
async fn an_answer_about_too_many_connections_halves_the_polls() {
    let names: Vec<String> = (0..40).map(|i| format!("s{i:02}")).collect();
    let services: Vec<(&str, u16)> = names.iter().map(|name| (name.as_str(), 1)).collect();
    let fake = FakeConsul::start(&services).await;
    let mut watched = Watched::at(fake.address());
    watched.settled().await;
    watched
        .until(SOON, "polls", |w| w.status.limits().long_polls == Some(64))
        .await;
    fake.change(|state| state.fault = Some(Fault::TooManyConnections));
    watched
        .until(LATER, "fewer polls", |w| w.status.limits().long_polls <= Some(16))
        .await;
    fake.change(|state| (state.index, state.fault) = (101, None));
    watched.until(LATER, "answers", |w| w.status.is_up()).await;
    assert_eq!(watched.status.limits().requests_per_second, None, "not the rate");
    assert!(
        watched.errors.is_empty() && watched.emptied().is_none(),
        "{:?}",
        watched.errors
    );
}

// ---- Proxies ----------------------------------------------------------------------------------

/// Scenario 81: a proxy answers 504, or closes the connection, after some seconds.
#[tokio::test]
async fn polls_that_a_proxy_cuts_wait_for_less_and_are_no_outage() {
    for fault in [
        Fault::CutAfter(Duration::from_secs(4)),
        Fault::CloseAfter(Duration::from_secs(4)),
    ] {
        let fake = FakeConsul::start(&[("web", 1), ("api", 1), ("db", 1)]).await;
        fake.change(|state| state.fault = Some(fault));
        let mut watched = Watched::at(fake.address());
        watched.settled().await;
        let updates = watched.updates.len();
        watched
            .until(LATER, "a shorter wait", |w| w.status.limits().wait.is_some())
            .await;
        let wait = watched.status.limits().wait.unwrap();
        assert!((2.5..3.5).contains(&wait.as_secs_f64()), "{fault:?}: {wait:?}");
        let asked = fake.asked().len();
        watched.run_for(Duration::from_secs(10)).await;
        let waits: BTreeSet<u64> = fake.asked()[asked..]
            .iter()
            .filter_map(|asked| asked.query.split_once("wait=")?.1.trim_end_matches("ms").parse().ok())
            .collect();
        assert!(waits.last().is_some_and(|wait| *wait <= 3_500), "{fault:?}: {waits:?}");
        assert_eq!(watched.updates.len(), updates, "{fault:?}: not read anew");
        assert!(
            watched.errors.is_empty() && watched.status.is_up(),
            "{:?}",
            watched.errors
        );
        assert!(watched.status.failing_services().is_empty());
        fake.change(|state| {
            state.index = 101;
            let changed = vec![entry("web", "web-2", 8_002)];
            state.services.insert(String::from("web"), changed);
        });
        let took = watched.until(SOON, "a change", |w| w.ids("web") == ["web-2@n1"]).await;
        assert!(took < Duration::from_secs(1), "{fault:?}: {took:?}");
    }
}

/// Scenario 81: the proxy and Consul are real.
#[tokio::test]
async fn polls_through_an_nginx_with_a_short_timeout_are_no_outage() {
    let consul = Consul::start().await;
    consul.register_many("s", 20).await;
    let nginx = Nginx::before(consul.port(), 6).await;
    let mut watched = Watched::at(format!("http://127.0.0.1:{}", nginx.port));
    watched.settled().await;
    let updates = watched.updates.len();
    watched
        .until(LATER, "a shorter wait", |w| w.status.limits().wait.is_some())
        .await;
    watched.run_for(Duration::from_secs(15)).await;
    assert_eq!(watched.updates.len(), updates);
    assert!(
        watched.errors.is_empty() && watched.status.is_up(),
        "{:?}",
        watched.errors
    );
    consul.register("many", "s0000", "s0000", 9_000, json!({})).await;
    let moved = |w: &Watched| w.instance("s0000", "s0000@many").unwrap().port() == 9_000;
    let took = watched.until(SOON, "a change", moved).await;
    println!("through nginx: {:?}, a change after {took:?}", watched.status.limits());
    assert!(took < Duration::from_secs(1), "{took:?}");
}

/// An nginx in front of a port, which waits for answers for some seconds only.
struct Nginx {
    process: std::process::Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Nginx {
    async fn before(port: u16, seconds: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let [own] = crate::support::free_ports();
        let path = folder.path().display();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("{name}_temp_path {path}/{name};\n"))
            .concat();
        let config = format!(
            "daemon off; pid {path}/pid; error_log {path}/error.log; events {{}}\n\
             http {{ access_log off;\n{temporary}server {{ listen 127.0.0.1:{own};\n\
             location / {{ proxy_pass http://127.0.0.1:{port}; proxy_read_timeout {seconds}s; }} }} }}"
        );
        std::fs::write(folder.path().join("nginx.conf"), config).unwrap();
        let process = std::process::Command::new(crate::support::programs::server("PICKD_TEST_NGINX"))
            .arg("-e")
            .arg(folder.path().join("error.log"))
            .arg("-c")
            .arg(folder.path().join("nginx.conf"))
            .stdin(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let nginx = Self {
            process,
            port: own,
            _folder: folder,
        };
        eventually(SOON, "nginx listens", || async {
            TcpStream::connect(("127.0.0.1", own)).await.ok()
        })
        .await;
        nginx
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // The master process ends its workers.
        crate::support::signal(&self.process, "TERM");
        self.process.wait().unwrap();
    }
}

// ---- Polls that do not block ------------------------------------------------------------------

/// Scenario 82.
#[tokio::test]
async fn polls_that_return_at_once_for_ever_cost_few_requests() {
    let names: Vec<String> = (0..60).map(|i| format!("s{i:02}")).collect();
    let services: Vec<(&str, u16)> = names.iter().map(|name| (name.as_str(), 1)).collect();
    for growing in [false, true] {
        let fake = FakeConsul::start(&services).await;
        fake.change(|state| state.never_blocks = Some(growing));
        let mut watched = Watched::at(fake.address());
        watched.settled().await;
        let updates = watched.updates.len();
        watched.run_for(Duration::from_secs(20)).await;
        let (before, started) = (fake.asked().len(), Instant::now());
        watched.run_for(Duration::from_secs(10)).await;
        let rate = (fake.asked().len() - before) as f64 / started.elapsed().as_secs_f64();
        println!("60 services that never block, growing {growing}: {rate:.1} requests a second");
        // One per 15 s for each service, and the catalog. A growing index of the catalog means
        // that some service changed.
        assert!(rate < if growing { 15.0 } else { 8.0 }, "{growing}: {rate}");
        assert_eq!(watched.updates.len(), updates);
        assert!(watched.errors.is_empty(), "{:?}", watched.errors);
        fake.change(|state| {
            (state.index, state.never_blocks) = (1_000_000, None);
            let changed = vec![entry("s30", "s30-2", 8_002)];
            state.services.insert(String::from("s30"), changed);
        });
        let seen = |w: &Watched| w.ids("s30") == ["s30-2@n1"];
        let took = watched.until(LATER, "a change", seen).await;
        assert!(took < Duration::from_secs(16), "{growing}: {took:?}");
        // A query that blocks again is as fast as ever, after one poll that waited.
        watched.run_for(Duration::from_secs(22)).await;
        for (index, port) in [(1_000_001, 8_003), (1_000_002, 8_004), (1_000_003, 8_005)] {
            fake.change(|state| {
                state.index = index;
                let changed = vec![entry("s30", "s30-2", port)];
                state.services.insert(String::from("s30"), changed);
            });
            let seen = |w: &Watched| w.instance("s30", "s30-2@n1").unwrap().port() == port;
            let took = watched.until(SOON, "a change", seen).await;
            assert!(took < Duration::from_secs(1), "{growing}: {took:?}");
        }
    }
}

// ---- All of it --------------------------------------------------------------------------------

/// Scenarios 18, 79 and 80 in one: a client agent that allows 100 requests a second, with 120 long
/// polls of other programs, 1,000 services, and one of them forbidden.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_services_at_100_a_second_beside_foreign_polls() {
    const SERVICES: usize = 1_000;
    let server = Consul::start().await;
    server.register_many("s", SERVICES).await;
    let client = server.start_client(limited(100)).await;
    let foreign = ForeignPolls::open_slowly(&client, 120).await;
    let proxy = Proxy::to(client.port()).await;
    proxy.forbid("/v1/health/service/s0500");
    let started = Instant::now();
    let agent = Agent::run(["--consul", &proxy.address()]);
    eventually(Duration::from_secs(60), "the agent is ready", || async {
        (agent.get("/readyz").status == 200).then_some(())
    })
    .await;
    let took = started.elapsed();
    let mut wrong = Vec::new();
    for i in 0..SERVICES {
        let answer = agent.get(&format!("/pick/s{i:04}"));
        let address = answer.json()["address"].as_str().map(str::to_owned);
        let right = match i {
            // Consul never said which instances it has.
            500 => answer.status == 503,
            _ => answer.status == 200 && address == Some(format!("10.1.0.1:{}", 1000 + i)),
        };
        if !right {
            wrong.push(format!("s{i:04}: {} {address:?}", answer.status));
        }
    }
    let metric = |name: &str| agent.metric(&format!("{name}{{source=\"consul\"}}"));
    let refused = agent.metric(r#"pickd_source_errors_total{source="consul",reason="throttled"}"#);
    println!(
        "1,000 services: synced after {took:?}, {refused:?} refusals, rate {:?}, {:?} polls, {} connections at most, {} of 999 picks wrong",
        metric("pickd_source_request_rate_limit"),
        metric("pickd_source_long_polls_limit"),
        proxy.most_connections(),
        wrong.len()
    );
    assert!(wrong.is_empty(), "{wrong:?}");
    assert!(
        took < Duration::from_secs(15),
        "{took:?}: more than 1.5 x 1,000 / 100 s"
    );
    assert!(proxy.refused() >= 1, "the forbidden service was asked for");
    assert_eq!(metric("pickd_source_up"), Some(1.0));
    assert_eq!(metric("pickd_source_failing_services"), Some(1.0));
    let source = agent.get("/readyz").json()["sources"][0].clone();
    let failing = &source["failing"][0];
    assert_eq!(
        (&failing["service"], &failing["reason"]),
        (&json!("s0500"), &json!("denied"))
    );
    assert_eq!(foreign.ended(), 0, "no poll of another program was closed");
}
