//! Leases and reports over the wire: a client that leases, calls real backends and reports, and one that does all of it wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::api::refused;
use crate::support::agent::{Agent, SOON};
use crate::support::folder::Folder;
use crate::support::http::Connection;
use crate::support::until;

/// An HTTP server in this process, as slow or as broken as it is told to be.
struct Backend {
    address: String,
    state: Arc<BackendState>,
}

#[derive(Default)]
struct BackendState {
    milliseconds: AtomicU64,
    fails: AtomicBool,
    requests: AtomicU64,
}

impl Backend {
    fn start(milliseconds: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = Arc::new(BackendState::default());
        state.milliseconds.store(milliseconds, Ordering::Relaxed);
        let served = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let served = Arc::clone(&served);
                std::thread::spawn(move || served.answer(stream));
            }
        });
        Self { address, state }
    }

    fn requests(&self) -> u64 {
        self.state.requests.load(Ordering::Relaxed)
    }
}

impl BackendState {
    fn answer(&self, mut stream: TcpStream) -> Option<()> {
        let mut reader = BufReader::new(stream.try_clone().ok()?);
        let mut line = String::new();
        while reader.read_line(&mut line).ok()? > 2 {
            line.clear();
        }
        self.requests.fetch_add(1, Ordering::Relaxed);
        let fails = self.fails.load(Ordering::Relaxed);
        if !fails {
            std::thread::sleep(Duration::from_millis(self.milliseconds.load(Ordering::Relaxed)));
        }
        let status = if fails { "500 Internal Server Error" } else { "200 OK" };
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        stream.write_all(answer.as_bytes()).ok()
    }
}

/// Calls a backend; gives the outcome and how long it took.
fn call(address: &str) -> (&'static str, Duration) {
    let started = Instant::now();
    let answer = TcpStream::connect(address).and_then(|mut stream| {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: backend\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    });
    let outcome = match answer {
        Ok(answer) if answer.starts_with("HTTP/1.1 200") => "success",
        Ok(_) => "failure",
        Err(_) => "connect_error",
    };
    (outcome, started.elapsed())
}

/// An agent over a file registry with one service, `web`.
struct World {
    folder: Folder,
    agent: Agent,
}

impl World {
    fn new(settings: &str, addresses: &[&str]) -> Self {
        let folder = Folder::new();
        folder.registry("services.toml", "web", addresses);
        let config = folder.write("pickd.toml", &format!("[file]\npath = \"services.toml\"\n{settings}"));
        let agent = Agent::run(["--config", config.to_str().unwrap()]).ready();
        Self { folder, agent }
    }

    fn client(&self) -> Client {
        Client(Connection::open(self.agent.address).unwrap())
    }

    fn instance(&self, id: &str) -> Value {
        self.agent.get("/services/web").json()["instances"][id].clone()
    }

    fn in_flight(&self, id: &str) -> u64 {
        self.instance(id)["active_connections"].as_u64().unwrap()
    }

    fn reports(&self, service: &str, result: &str) -> f64 {
        let series = format!(r#"pickd_reports_total{{result="{result}",service="{service}"}}"#);
        self.agent.metric(&series).unwrap()
    }
}

/// One connection that leases and reports.
struct Client(Connection);

impl Client {
    fn lease(&mut self, query: &str) -> Value {
        let answer = self.0.post(&format!("/pick/web{query}"), "").unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    }

    fn report(&mut self, reports: &Value) -> Value {
        let answer = self.0.post("/report", &reports.to_string()).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.header("content-type"), Some("application/json"));
        answer.json()
    }

    /// Reports one thing, and gives the code if it was refused.
    fn report_one(&mut self, report: &Value) -> String {
        let judged = self.report(report);
        match judged["rejected"].as_array().unwrap().as_slice() {
            [] => {
                assert_eq!(judged["accepted"], 1);
                "accepted".to_owned()
            }
            [rejected] => {
                assert_eq!((&judged["accepted"], &rejected["index"]), (&json!(0), &json!(0)));
                rejected["code"].as_str().unwrap().to_owned()
            }
            _ => panic!("{judged}"),
        }
    }
}

fn id(pick: &Value) -> String {
    pick["id"].as_str().unwrap().to_owned()
}

#[test]
fn a_lease_is_a_pick_in_flight_until_it_is_reported() {
    let world = World::new("", &["10.0.0.1:80"]);
    let mut client = world.client();
    let plain = world.agent.get("/pick/web").json();
    let mut leased = client.lease("");
    let lease = leased["lease"].take();
    let text = lease.as_str().unwrap();
    assert!(
        text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "{text}"
    );
    assert_eq!(leased["lease_ttl_ms"].take(), json!(30_000));
    let fields = leased.as_object_mut().unwrap();
    assert!(fields.remove("lease").is_some() && fields.remove("lease_ttl_ms").is_some());
    assert_eq!(leased, plain);
    assert_eq!(world.in_flight("10.0.0.1:80"), 1, "the plain pick is not in flight");
    assert_eq!(world.agent.metric("pickd_leases_active"), Some(1.0));
    assert_eq!(
        world
            .agent
            .metric(r#"pickd_instance_in_flight{instance="10.0.0.1:80",service="web"}"#),
        Some(1.0)
    );

    let report = json!({"lease": lease, "outcome": "success", "latency_ms": 12.5});
    assert_eq!(client.report_one(&report), "accepted");
    let instance = world.instance("10.0.0.1:80");
    assert_eq!(
        (&instance["active_connections"], &instance["reported_requests"]),
        (&json!(0), &json!(1))
    );
    assert_eq!(instance["average_response_time"], json!(0.0125));
    assert_eq!(client.report_one(&report), "unknown_lease", "once");
    assert_eq!(world.agent.metric("pickd_leases_active"), Some(0.0));

    // With all that a pick can be asked, at both addresses.
    let answer = client.0.post("/v1/pick/web?ttl=0.5&n=3&tag=&key=k", "").unwrap().json();
    assert_eq!(
        (&answer["lease_ttl_ms"], &answer["alternates"]),
        (&json!(500), &json!([]))
    );
    let answer = client.0.post("/pick/web?format=text", "").unwrap();
    assert_eq!(answer.text(), "10.0.0.1:80\n");
    let lease = answer.header("x-pickd-lease").unwrap();
    assert_eq!(
        client.report_one(&json!({"lease": lease, "outcome": "cancelled"})),
        "accepted"
    );
    assert_eq!(world.agent.get("/pick/web?format=text").header("x-pickd-lease"), None);
    for (target, status, code) in [
        ("/pick/web?ttl=0", 400, "invalid_request"),
        ("/pick/web?ttl=3601", 400, "invalid_request"),
        ("/pick/web?lease=1", 400, "unknown_parameter"),
        ("/pick/nobody", 404, "unknown_service"),
        ("/pick/web?exclude=10.0.0.1:80", 503, "none_available"),
    ] {
        refused(&client.0.post(target, "").unwrap(), status, code);
    }
    refused(&world.agent.get("/pick/web?ttl=3"), 400, "unknown_parameter");
}

#[test]
fn eight_leases_on_four_instances_are_two_each() {
    let backends: Vec<Backend> = (0..4).map(|_| Backend::start(0)).collect();
    let addresses: Vec<&str> = backends.iter().map(|backend| backend.address.as_str()).collect();
    // A busy machine may make one look slow, which is not what this is about.
    let world = World::new(
        "[defaults]\nstrategy = \"least_connections\"\ndegraded_factor = 1.0",
        &addresses,
    );
    let mut client = world.client();
    for _round in 0..5 {
        let leases: Vec<Value> = (0..8).map(|_| client.lease("")).collect();
        let mut counts: BTreeMap<String, u32> = BTreeMap::new();
        leases
            .iter()
            .for_each(|lease| *counts.entry(id(lease)).or_default() += 1);
        assert_eq!(counts.values().copied().collect::<Vec<_>>(), [2, 2, 2, 2], "{counts:?}");
        assert_eq!(world.agent.get("/services/web").json()["mode"], "normal");
        let reports: Vec<Value> = leases
            .iter()
            .map(|lease| {
                let (outcome, took) = call(lease["address"].as_str().unwrap());
                json!({"lease": lease["lease"], "outcome": outcome, "latency_ms": took.as_secs_f64() * 1e3})
            })
            .collect();
        assert_eq!(client.report(&json!(reports)), json!({"accepted": 8, "rejected": []}));
    }
    assert!(backends.iter().all(|backend| backend.requests() == 10));
    // The one that is busy is passed over.
    let busy = client.lease("");
    let others: BTreeSet<String> = (0..3).map(|_| id(&client.lease(""))).collect();
    assert!(others.len() == 3 && !others.contains(&id(&busy)));
}

/// Leases, calls and reports for a while, on several connections; gives how often each backend was called.
fn traffic(world: &World, backends: &[Backend], threads: usize, span: Duration) -> Vec<u64> {
    let before: Vec<u64> = backends.iter().map(Backend::requests).collect();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let (mut client, started) = (world.client(), Instant::now());
                while started.elapsed() < span {
                    let lease = client.lease("");
                    let (outcome, took) = call(lease["address"].as_str().unwrap());
                    let milliseconds = took.as_secs_f64() * 1e3;
                    let report = json!({"lease": lease["lease"], "outcome": outcome, "latency_ms": milliseconds});
                    assert_eq!(client.report_one(&report), "accepted");
                }
            });
        }
    });
    backends
        .iter()
        .zip(before)
        .map(|(backend, before)| backend.requests() - before)
        .collect()
}

#[test]
fn least_response_time_learns_from_reports_over_http() {
    let backends: Vec<Backend> = [5, 5, 50, 5].map(Backend::start).into();
    let addresses: Vec<&str> = backends.iter().map(|backend| backend.address.as_str()).collect();
    let world = World::new("[defaults]\nstrategy = \"least_response_time\"", &addresses);
    let mode = || world.agent.get("/services/web").json()["mode"].clone();
    assert_eq!(mode(), "weighted_schedule_no_reports");
    traffic(&world, &backends, 2, Duration::from_secs(1));
    assert_eq!(mode(), "normal");
    let calls = traffic(&world, &backends, 2, Duration::from_secs(4));
    let total: u64 = calls.iter().sum();
    eprintln!("calls with one ten times as slow: {calls:?}");
    assert!(calls[2] * 20 < total && calls[2] > 0, "the slow one: {calls:?}");
    // Failing fast is not being fast.
    backends[0].state.fails.store(true, Ordering::Relaxed);
    let calls = traffic(&world, &backends, 2, Duration::from_secs(4));
    let total: u64 = calls.iter().sum();
    eprintln!("calls with one that fails at once: {calls:?}");
    assert!(calls[0] * 4 <= total, "no more than its share: {calls:?}");
}

#[test]
fn every_code_of_a_report() {
    let world = World::new("", &["10.0.0.1:80", "10.0.0.2:80"]);
    let mut client = world.client();
    let leases: Vec<Value> = (0..3)
        .map(|_| client.lease("?exclude=10.0.0.2:80")["lease"].take())
        .collect();
    let without = |instance: &str, outcome: &str| json!({"service": "web", "instance": instance, "outcome": outcome});
    let reports = json!([
        {"lease": leases[0], "outcome": "success", "latency_ms": 20},
        {"lease": leases[0], "outcome": "success", "latency_ms": 20},
        {"lease": "00000000000000010000000000000000", "outcome": "success"},
        {"lease": "hello", "outcome": "open"},
        {"service": "nobody", "instance": "10.0.0.1:80", "outcome": "success"},
        without("10.0.0.9:80", "success"),
        without("10.0.0.2:80", "success"),
        {"lease": leases[1], "outcome": "success", "latency_ms": -1},
        {"lease": leases[1], "outcome": "success", "latencyms": 1},
        "report",
        without("10.0.0.1:80", "failure"),
        {"lease": leases[1], "outcome": "open"},
        {"lease": leases[1], "outcome": "timeout", "latency_ms": 40},
        {"lease": leases[2], "outcome": "cancelled"},
    ]);
    let codes = [
        (1, "unknown_lease"),
        (2, "unknown_lease"),
        (3, "unknown_lease"),
        (4, "unknown_service"),
        (5, "unknown_instance"),
        (6, "no_credit"),
        (7, "invalid"),
        (8, "invalid"),
        (9, "invalid"),
    ];
    let rejected: Vec<Value> = codes.map(|(index, code)| json!({"index": index, "code": code})).into();
    assert_eq!(client.report(&reports), json!({"accepted": 5, "rejected": rejected}));
    let instance = world.instance("10.0.0.1:80");
    assert_eq!(
        [
            &instance["total_requests"],
            &instance["reported_requests"],
            &instance["failed_requests"],
            &instance["consecutive_failures"],
            &instance["active_connections"]
        ],
        [3, 3, 2, 2, 0].map(|count| json!(count)).each_ref()
    );
    assert_eq!(
        instance["average_response_time"],
        json!(0.03),
        "of the two that told a latency"
    );
    for (service, result, count) in [
        ("web", "accepted", 5.0),
        ("web", "unknown_instance", 1.0),
        ("web", "no_credit", 1.0),
        ("(unknown)", "unknown_lease", 3.0),
        ("(unknown)", "unknown_service", 1.0),
        ("(unknown)", "invalid", 3.0),
    ] {
        assert_eq!(world.reports(service, result), count, "{service} {result}");
    }
    // A latency too large to be written as a number spoils its own report alone; what is no JSON spoils all.
    let lease = client.lease("")["lease"].take();
    let body = format!(
        r#"[{{"lease":{lease},"outcome":"success","latency_ms":1e999}},{{"lease":{lease},"outcome":"success"}}]"#
    );
    let judged = client.0.post("/report", &body).unwrap().json();
    assert_eq!(
        judged,
        json!({"accepted": 1, "rejected": [{"index": 0, "code": "invalid"}]})
    );
    for broken in [
        "",
        "{",
        "[1,]",
        "NaN",
        "\"report\"",
        r#"{"outcome":"success","latency_ms":NaN}"#,
        "{}{}",
    ] {
        refused(&client.0.post("/report", broken).unwrap(), 400, "invalid_request");
    }
    assert_eq!(client.report(&json!([])), json!({"accepted": 0, "rejected": []}));
    refused(&client.0.post("/report?dry=1", "{}").unwrap(), 400, "unknown_parameter");
}

#[test]
fn a_body_too_large_or_of_another_type_is_not_read() {
    let world = World::new("", &["10.0.0.1:80"]);
    let mut client = world.client();
    let thousand = vec![json!({"outcome": "success"}); 1_000];
    let judged = client.report(&json!(thousand));
    assert_eq!(judged["rejected"].as_array().unwrap().len(), 1_000);
    let more = json!(vec![json!({}); 1_001]).to_string();
    refused(&client.0.post("/report", &more).unwrap(), 413, "too_large");
    let ask = |headers: &str, body: &str| {
        let mut connection = Connection::open(world.agent.address).unwrap();
        connection
            .send(format!("POST /report HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n\r\n{body}").as_bytes())
            .unwrap();
        connection.response("POST").unwrap()
    };
    // Told by its length, and told by what comes.
    refused(
        &ask("Content-Type: application/json\r\nContent-Length: 1048577", ""),
        413,
        "too_large",
    );
    let chunk = format!("100001\r\n[{}\r\n0\r\n\r\n", " ".repeat(1 << 20));
    refused(
        &ask("Content-Type: application/json\r\nTransfer-Encoding: chunked", &chunk),
        413,
        "too_large",
    );
    for wrong in [
        "Content-Type: text/plain",
        "Content-Type: application/x-www-form-urlencoded",
        "Accept: */*",
    ] {
        let answer = ask(&format!("{wrong}\r\nContent-Length: 2"), "[]");
        refused(&answer, 415, "unsupported_media_type");
    }
    for right in ["application/json; charset=utf-8", "application/problem+json"] {
        assert_eq!(
            ask(&format!("Content-Type: {right}\r\nContent-Length: 2"), "[]").status,
            200,
            "{right}"
        );
    }
}

#[test]
fn without_a_lease_a_report_counts_as_often_as_there_were_picks() {
    let world = World::new("", &["10.0.0.1:80", "10.0.0.2:80"]);
    let mut client = world.client();
    for _ in 0..4 {
        world.agent.get("/pick/web?exclude=10.0.0.2:80");
    }
    // Failed, and not in a row: that would take it out.
    let report = json!({"service": "web", "instance": "10.0.0.1:80", "outcome": "rejected", "latency_ms": 3});
    let judged = client.report(&json!(vec![report; 10]));
    assert_eq!(judged["accepted"], 4);
    let open = json!({"service": "web", "instance": "10.0.0.1:80", "outcome": "open"});
    assert_eq!(client.report_one(&open), "invalid", "there is nothing to renew");

    // An instance that has left is still heard of, with a lease and without.
    let lease = client.lease("?exclude=10.0.0.2:80");
    world.agent.get("/pick/web?exclude=10.0.0.2:80");
    world.folder.registry("services.toml", "web", &["10.0.0.2:80"]);
    until(SOON, "the instance has left", || {
        world.instance("10.0.0.1:80").is_null().then_some(())
    });
    assert_eq!(
        client.report_one(&json!({"lease": lease["lease"], "outcome": "success", "latency_ms": 3})),
        "accepted"
    );
    let report = json!({"service": "web", "instance": "10.0.0.1:80", "outcome": "success", "latency_ms": 3});
    // The lease's own pick and the plain one: each pick earns credit, whichever report spends it.
    let codes = [(); 3].map(|()| client.report_one(&report));
    assert_eq!(codes, ["accepted", "accepted", "no_credit"]);
    world
        .folder
        .registry("services.toml", "web", &["10.0.0.2:80", "10.0.0.1:80"]);
    until(SOON, "it is back, and knows what was said of it", || {
        (world.instance("10.0.0.1:80")["reported_requests"] == 7).then_some(())
    });
}

#[test]
fn a_lease_nobody_reports_expires_on_time_and_counts_as_unknown() {
    let world = World::new("", &["10.0.0.1:80"]);
    let mut client = world.client();
    let (short, long) = (client.lease("?ttl=0.3"), client.lease("?ttl=60"));
    let renewed = client.lease("?ttl=0.6");
    let taken = Instant::now();
    let active = || world.agent.metric("pickd_leases_active").unwrap();
    assert_eq!(active(), 3.0);
    std::thread::sleep(Duration::from_millis(250).saturating_sub(taken.elapsed()));
    until(SOON, "the short one expires", || (active() == 2.0).then_some(()));
    eprintln!("a lease of 300 ms ended after {:?}", taken.elapsed());
    assert_eq!(
        client.report_one(&json!({"lease": renewed["lease"], "outcome": "open"})),
        "accepted"
    );
    let instance = world.instance("10.0.0.1:80");
    assert_eq!(
        (
            &instance["active_connections"],
            &instance["reported_requests"],
            &instance["failed_requests"]
        ),
        (&json!(2), &json!(0), &json!(0))
    );
    assert_eq!(
        world.agent.metric(r#"pickd_leases_expired_total{service="web"}"#),
        Some(1.0)
    );
    // It is still known whose it was: one late report counts, as one without a lease.
    let late = json!({"lease": short["lease"], "outcome": "success", "latency_ms": 400});
    assert_eq!(
        client.report_one(&json!({"lease": short["lease"], "outcome": "open"})),
        "unknown_lease"
    );
    assert_eq!(client.report_one(&late), "accepted");
    assert_eq!(client.report_one(&late), "unknown_lease");
    assert_eq!(world.instance("10.0.0.1:80")["reported_requests"], 1);
    assert_eq!(active(), 2.0);
    assert_eq!(
        client.report_one(&json!({"lease": long["lease"], "outcome": "success"})),
        "accepted"
    );
    until(SOON, "nothing is open", || (active() == 0.0).then_some(()));
    assert_eq!(world.in_flight("10.0.0.1:80"), 0);
}

#[test]
fn at_the_limit_a_pick_is_answered_without_a_lease() {
    let world = World::new(
        "[defaults]\nmax_leases = 3\n[services.web]\nmax_leases = 2",
        &["10.0.0.1:80"],
    );
    let mut client = world.client();
    let leases: Vec<Value> = (0..2).map(|_| client.lease("")).collect();
    let denied = client.lease("?n=2");
    assert_eq!(
        (&denied["lease_denied"], denied.get("lease"), denied.get("lease_ttl_ms")),
        (&json!(true), None, None)
    );
    assert_eq!(id(&denied), "10.0.0.1:80");
    let text = client.0.post("/pick/web?format=text", "").unwrap();
    assert_eq!(
        (text.status, text.header("x-pickd-lease"), text.text()),
        (200, None, "10.0.0.1:80\n")
    );
    assert_eq!(world.in_flight("10.0.0.1:80"), 2);
    assert_eq!(
        world.agent.metric(r#"pickd_leases_denied_total{service="web"}"#),
        Some(2.0)
    );
    assert_eq!(
        world.agent.metric(r#"pickd_picks_total{result="ok",service="web"}"#),
        Some(4.0)
    );
    client.report_one(&json!({"lease": leases[0]["lease"], "outcome": "success"}));
    assert!(client.lease("").get("lease").is_some());
}

#[test]
fn the_documented_commands_answer_as_documented() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/leases.md")).unwrap();
    let folder = Folder::new();
    let registry = folder.write(
        "services.toml",
        "[[service]]\nname = \"user-service\"\n[[service.instance]]\nid = \"user-1\"\nhost = \"10.0.1.10\"\n\
         port = 8080\nstatus = \"passing\"\n",
    );
    let agent = Agent::run(["--file", registry.to_str().unwrap()]).ready();
    // The page's lease stands for the one that is given here.
    let mut leases: Option<(String, String)> = None;
    let mut compared = 0;
    let blocks = page.split("```console\n").skip(1);
    for example in blocks.flat_map(|block| block.split("```").next().unwrap().split("$ ").skip(1)) {
        let (command, documented) = example.split_once("\n{").unwrap();
        let mut command = command.replace("localhost:7425", &agent.address.to_string());
        let mut documented: Value = serde_json::from_str(&format!("{{{documented}")).unwrap();
        if let Some((told, given)) = &leases {
            command = command.replace(told, given);
        }
        let output = Command::new("sh")
            .args(["-c", &command])
            .env("NO_PROXY", "*")
            .output()
            .unwrap();
        let mut answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
            panic!("{command}: {error}: {}", String::from_utf8_lossy(&output.stderr));
        });
        if let (Some(told), Some(given)) = (documented.get_mut("lease"), answer.get_mut("lease")) {
            let text = |lease: &mut Value| lease.take().as_str().unwrap().to_owned();
            leases = Some((text(told), text(given)));
        }
        assert_eq!(answer, documented, "{command}");
        compared += 1;
    }
    assert_eq!(compared, 3);
}

#[test]
fn two_hundred_thousand_leases_taken_and_dropped_leave_nothing() {
    const CONNECTIONS: usize = 4;
    /// Requests on their way at a time, on each connection.
    const PIPELINED: usize = 50;
    const REQUEST: &str = "POST /pick/web?ttl=0.2&format=text HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n";
    /// Far more than can be taken within a time to live, and far fewer than are taken in all.
    const MOST_OPEN: usize = 20_000;
    /// Leases that have expired and are still known, at most: `docs/leases.md`.
    const REMEMBERED: usize = 10_000;
    // Names of one length, so that all answers are of one length.
    let addresses: Vec<String> = (10..20).map(|number| format!("10.0.0.{number}:80")).collect();
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let world = World::new(
        &format!("[defaults]\nstrategy = \"least_connections\"\nmax_leases = {MOST_OPEN}"),
        &addresses,
    );
    // Of each batch one answer is looked at, the others counted, so that 200,000 fit in a test's time.
    let take = |leases: usize| {
        std::thread::scope(|scope| {
            for _ in 0..CONNECTIONS {
                scope.spawn(|| {
                    let mut stream = TcpStream::connect(world.agent.address).unwrap();
                    let mut first = vec![0; 4096];
                    stream.write_all(REQUEST.as_bytes()).unwrap();
                    let length = stream.read(&mut first).unwrap();
                    let requests = REQUEST.repeat(PIPELINED);
                    let mut answers = vec![0; length * PIPELINED];
                    let mut left = leases / CONNECTIONS - 1;
                    while left > 0 {
                        let batch = left.min(PIPELINED);
                        stream.write_all(&requests.as_bytes()[..REQUEST.len() * batch]).unwrap();
                        stream.read_exact(&mut answers[..length * batch]).unwrap();
                        let last = std::str::from_utf8(&answers[length * (batch - 1)..length * batch]).unwrap();
                        assert!(last.starts_with("HTTP/1.1 200 "), "{last}");
                        assert!(last.contains("x-pickd-lease: ") && last.ends_with(":80\n"), "{last}");
                        left -= batch;
                    }
                });
            }
        });
    };
    let metric = |name: &str| world.agent.metric(name).unwrap();
    // Two times to live later: (places that memory is held for, resident MiB).
    let drained = || {
        std::thread::sleep(Duration::from_millis(400));
        assert_eq!(
            metric("pickd_leases_active"),
            0.0,
            "two times to live later none is open"
        );
        let resident = world.agent.resident_bytes() as f64 / f64::from(1 << 20);
        (metric("pickd_leases_capacity"), resident)
    };
    // What the first leases need stays: threads' buffers, and places for as many as are open at a time.
    take(20_000);
    let (places_before, before) = drained();
    let started = Instant::now();
    take(200_000);
    let (took, open) = (started.elapsed(), metric("pickd_leases_active"));
    let (places, after) = drained();
    let expired = metric(r#"pickd_leases_expired_total{service="web"}"#);
    eprintln!(
        "200,000 leases of 200 ms in {took:.1?}, {open} open at the end; two times to live before and after: \
         {places_before} and {places} places, {before:.1} and {after:.1} MiB resident; expired {expired}"
    );
    assert_eq!(expired, 220_000.0, "each was a lease, and each expired");
    assert!(after < before + 2.0, "{before} MiB, then {after} MiB");
    // A new place is made only when none is free: when each is taken by an open lease or by one that is remembered. So there
    // are never more than may be open and be remembered, however many leases there were.
    assert!(places_before >= REMEMBERED as f64, "{places_before} places");
    assert!(places <= (MOST_OPEN + REMEMBERED) as f64, "{places} places");
    for address in addresses {
        assert_eq!(world.in_flight(address), 0);
    }
}
