//! Bounds of a listener on slow clients, idle clients, and many clients. The bounds are shorter
//! than the defaults, so these tests run a listener in this process; `lifecycle.rs` tests the end
//! of an agent.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pickd::api::server::{Limits, Listen, Listener};
use pickd::api::{Admin, AllowedHosts, Api, JsonBodies, Readiness};
use pickd::balancer::{Clock, Environment, Monotonic, ServiceConfigs, Sources};
use pickd::metrics::Metrics;
use pickd::{Directory, ServiceInstance};
use tokio_util::sync::CancellationToken;

use crate::support::agent::SOON;
use crate::support::http::{Connection, Response};
use crate::support::until;

/// A bound that a test waits for.
const SHORT: Duration = Duration::from_millis(300);
/// Bounds that no test reaches, even on a busy machine.
const LONG: Limits = Limits {
    head: Duration::from_secs(60),
    body: Duration::from_secs(60),
    answer: Duration::from_secs(60),
    connections: 100,
};

const HALF_A_HEAD: &str = "GET /pick/web HTTP/1.1\r\nHost: local";
const HALF_A_REPORT: &str = "POST /report HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                             Content-Length: 100\r\n\r\n[";

/// A listener that serves `web` with one instance.
struct Served {
    address: SocketAddr,
    stop: CancellationToken,
    server: Option<JoinHandle<()>>,
}

impl Served {
    fn with(limits: Limits) -> Self {
        Self::serving(limits, ServiceInstance::new("web-1", "10.0.0.1", 80).unwrap())
    }

    fn serving(limits: Limits, instance: ServiceInstance) -> Self {
        let clock = Arc::new(Monotonic::start());
        let tools = Environment {
            clock: Arc::clone(&clock) as Arc<dyn Clock>,
            render: Arc::new(JsonBodies),
            ..Environment::default()
        };
        let directory = Directory::new(ServiceConfigs::default(), Sources::default(), tools);
        directory.apply(&"web".parse().unwrap(), [Arc::new(instance)]);
        let api = Api {
            directory: Arc::new(directory),
            readiness: Arc::new(Readiness::new(clock.now(), Duration::ZERO)),
            clock,
            metrics: Arc::new(Metrics::new([]).unwrap()),
            admin: Admin::default(),
        };
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let (told, address) = std::sync::mpsc::channel();
        let server = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let listener = Listener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
                let listener = listener.with_limits(limits);
                told.send(listener.address()).unwrap();
                listener.serve(api.router(), AllowedHosts::new([]), stopped).await;
            });
        });
        let Listen::Tcp(address) = address.recv().unwrap() else {
            panic!("not over TCP")
        };
        Self {
            address,
            stop,
            server: Some(server),
        }
    }

    fn connect(&self) -> Connection {
        Connection::open(self.address).unwrap()
    }

    fn connect_and_send(&self, bytes: &str) -> Connection {
        let mut connection = self.connect();
        connection.send(bytes.as_bytes()).unwrap();
        connection
    }

    /// Stops the listener, and waits until it has ended.
    fn ends(mut self) {
        self.stop.cancel();
        let server = self.server.take().unwrap();
        until(SOON, "the listener has ended", || server.is_finished().then_some(()));
        server.join().unwrap();
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // A failed test has its own message, and its threads end with the process.
        self.stop.cancel();
    }
}

fn pick(connection: &mut Connection) -> io::Result<Response> {
    connection.ask("GET", "/pick/web", &[])
}

/// Waits until the peer closes the connection without sending, and returns the time that this took.
fn closed(connection: &mut Connection, since: Instant) -> Duration {
    match connection.response("GET") {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
            ) =>
        {
            since.elapsed()
        }
        other => panic!("still open, or answered: {other:?}"),
    }
}

fn assert_is_408(answer: &Response) {
    assert_eq!(
        (
            answer.status,
            answer.header("content-type"),
            answer.header("connection")
        ),
        (408, Some("application/problem+json"), Some("close"))
    );
    assert_eq!(answer.json()["code"], "request_timeout");
}

#[test]
fn a_head_that_does_not_come_is_waited_for_so_long_and_no_longer() {
    let served = Served::with(Limits { head: SHORT, ..LONG });
    let started = Instant::now();
    let mut silent = served.connect();
    let mut half = served.connect_and_send(HALF_A_HEAD);
    let mut second = served.connect();
    assert_eq!(pick(&mut second).unwrap().status, 200);
    let second_started = Instant::now();
    second.send(HALF_A_HEAD.as_bytes()).unwrap();
    for (what, connection, since) in [
        ("nothing", &mut silent, started),
        ("half a head", &mut half, started),
        ("a request and half a head", &mut second, second_started),
    ] {
        let took = closed(connection, since);
        assert!(took >= SHORT, "{what}: {took:?}");
    }
    served.ends();
}

#[test]
fn a_head_that_comes_byte_by_byte_gets_no_more_time_for_that() {
    let served = Served::with(Limits { head: SHORT, ..LONG });
    let mut connection = served.connect_and_send("GET /pick/web HTTP/1.1\r\nX-Slow: ");
    let started = Instant::now();
    until(SOON, "the connection is closed", || {
        connection.send(b"x").is_err().then_some(())
    });
    assert!(started.elapsed() >= SHORT);
}

#[test]
fn an_idle_connection_stays() {
    let served = Served::with(Limits {
        head: SHORT,
        body: SHORT,
        answer: SHORT,
        ..LONG
    });
    let mut idle = served.connect();
    assert_eq!(pick(&mut idle).unwrap().status, 200);
    // Meanwhile the bound of another connection passes twice.
    for _ in 0..2 {
        let started = Instant::now();
        closed(&mut served.connect(), started);
    }
    assert_eq!(pick(&mut idle).unwrap().status, 200);
    // A request with a body leaves no timer behind.
    assert_eq!(idle.post("/report", "[]").unwrap().status, 200);
    let started = Instant::now();
    closed(&mut served.connect(), started);
    assert_eq!(idle.post("/report", "[]").unwrap().status, 200);
    served.ends();
}

#[test]
fn a_body_that_does_not_come_is_answered_with_408() {
    let served = Served::with(Limits { body: SHORT, ..LONG });
    let started = Instant::now();
    let mut half = served.connect_and_send(HALF_A_REPORT);
    let mut none = served.connect_and_send(&HALF_A_REPORT.replace("\r\n\r\n[", "\r\n\r\n"));
    let mut chunked = served.connect_and_send(&HALF_A_REPORT.replace(
        "Content-Length: 100\r\n\r\n[",
        "Transfer-Encoding: chunked\r\n\r\n1\r\n[\r\n",
    ));
    for connection in [&mut half, &mut none, &mut chunked] {
        assert_is_408(&connection.response("POST").unwrap());
        assert!(started.elapsed() >= SHORT);
        closed(connection, started);
    }
    served.ends();
}

#[test]
fn a_body_that_comes_byte_by_byte_gets_no_more_time_for_that() {
    let served = Served::with(Limits { body: SHORT, ..LONG });
    // More bytes than a client sends within the bound.
    let mut slow = served.connect_and_send(&HALF_A_REPORT.replace("100", "100000"));
    slow.set_timeout(Duration::from_millis(10)).unwrap();
    let answer = until(SOON, "an answer", || {
        // After the answer, the agent does not read the rest of the body.
        let _sent = slow.send(b" ");
        slow.response("POST").ok()
    });
    assert_is_408(&answer);
}

#[test]
fn a_request_in_pieces_is_one() {
    let served = Served::with(LONG);
    let report =
        "POST /report HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n[]";
    let mut connection = served.connect();
    for cut in [1, 30, report.len() - 2, report.len() - 1] {
        let (first, rest) = report.split_at(cut);
        connection.send(first.as_bytes()).unwrap();
        // Another connection is answered meanwhile, so that the first piece is read alone.
        assert_eq!(pick(&mut served.connect()).unwrap().status, 200);
        connection.send(rest.as_bytes()).unwrap();
        assert_eq!(connection.response("POST").unwrap().status, 200, "{cut}");
    }
    // Several requests in one piece are several requests.
    connection.send(report.repeat(40).as_bytes()).unwrap();
    for _ in 0..40 {
        let answer = connection.response("POST").unwrap();
        assert_eq!(answer.json(), serde_json::json!({"accepted": 0, "rejected": []}));
    }
}

#[test]
fn a_client_that_takes_none_of_its_answer_does_not_hold_up_the_end() {
    // More bytes than the buffers of both sockets hold.
    let note = "x".repeat(32 << 20);
    let instance = ServiceInstance::new("web-1", "10.0.0.1", 80).unwrap();
    let served = Served::serving(
        Limits { answer: SHORT, ..LONG },
        instance.with_metadata([("note", note.as_str())]),
    );
    let mut deaf = served.connect_and_send("GET /services/web HTTP/1.1\r\nHost: localhost\r\n\r\n");
    // The agent is sending the answer.
    deaf.wait_for_some().unwrap();
    served.ends();
    let error = deaf.response("GET").unwrap_err();
    assert!(
        matches!(
            error.kind(),
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
        ),
        "{error}"
    );
}

#[test]
fn what_was_begun_when_the_listener_stops_does_not_hold_it_up_for_ever() {
    let served = Served::with(Limits {
        head: SHORT,
        body: SHORT,
        ..LONG
    });
    let mut late = served.connect_and_send(HALF_A_HEAD);
    let half = served.connect_and_send(HALF_A_HEAD);
    let mut report = served.connect_and_send(HALF_A_REPORT);
    let mut idle = served.connect();
    assert_eq!(pick(&mut idle).unwrap().status, 200);
    served.stop.cancel();
    let started = Instant::now();
    closed(&mut idle, started);
    // A request within the bound is answered.
    late.send(b"host\r\n\r\n").unwrap();
    let answer = late.response("GET").unwrap();
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    assert_is_408(&report.response("POST").unwrap());
    served.ends();
    drop(half);
}

#[test]
fn connections_beyond_the_most_wait_for_their_turn() {
    let served = Served::with(Limits { connections: 2, ..LONG });
    let mut connections = [served.connect(), served.connect()];
    for connection in &mut connections {
        assert_eq!(pick(connection).unwrap().status, 200);
    }
    let mut third = served.connect_and_send("GET /pick/web HTTP/1.1\r\nHost: localhost\r\n\r\n");
    third.set_timeout(Duration::from_millis(100)).unwrap();
    let error = third.response("GET").unwrap_err();
    assert!(
        matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
        "{error}"
    );
    // Other connections are unaffected.
    for connection in &mut connections {
        assert_eq!(pick(connection).unwrap().status, 200);
    }
    let [first, mut second] = connections;
    drop(first);
    third.set_timeout(SOON).unwrap();
    assert_eq!(third.response("GET").unwrap().status, 200);
    assert_eq!(pick(&mut second).unwrap().status, 200);
    served.ends();
}

#[test]
fn a_head_much_larger_than_any_we_understand_is_refused() {
    let served = Served::with(LONG);
    let with = |bytes: usize| {
        let header = format!("X-Pickd-Key: {}", "x".repeat(bytes));
        served.connect().ask("GET", "/pick/web", &[&header])
    };
    assert_eq!(with(90 << 10).unwrap().status, 200);
    // Unread bytes of the body may reset the connection before the answer is read.
    let refusal = with(200 << 10).map(|answer| answer.status);
    assert!(matches!(refusal, Ok(431) | Err(_)), "{refusal:?}");
}
