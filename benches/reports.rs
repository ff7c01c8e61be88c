//! What a lease and its report cost: CPU time of the agent for `POST /pick` and `POST /report`,
//! against one `GET /pick`.
//!
//!     cargo bench --bench reports
//!
//! Starts the real binary with ten instances from a file, and asks it over 32 keep-alive
//! connections, one request at a time each: plain picks and as many pairs in turn, in many short
//! rounds, so that whatever else the machine does falls on both. CPU time is user and system time
//! of the agent's process, from `/proc`: Linux only. The load generator's own time does not count.
//! Target: a pair costs at most 2.3 picks. `benches/reports_over_http` measures the same under wrk.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a benchmark that fails has nothing better to do, and prints what it measured"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};

/// Enough to keep every worker busy: what it costs to wake one depends on the machine, and on what
/// else it does.
const CONNECTIONS: usize = 32;
const ROUNDS: usize = 60;
/// Of each kind, in each round.
const REQUESTS: usize = 4_992;
const TARGET: f64 = 2.3;

struct Agent {
    process: Child,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Agent {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("services.toml");
        let mut services = "[[service]]\nname = \"web\"\n".to_owned();
        for number in 10..20 {
            services.push_str(&format!(
                "[[service.instance]]\nhost = \"10.0.0.{number}\"\nport = 80\n"
            ));
        }
        std::fs::write(&path, services).unwrap();
        let mut process = Command::new(env!("CARGO_BIN_EXE_pickd"))
            .args(["run", "--listen", "127.0.0.1:0", "--file", path.to_str().unwrap()])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(process.stderr.take().unwrap())
            .lines()
            .map_while(Result::ok);
        let address = log
            .find_map(|line| {
                let (_, rest) = line.split_once("\"address\":\"")?;
                rest.split('"').next()?.parse().ok()
            })
            .expect("it listens");
        // The registry is read by now or in a moment; the rest of the log goes nowhere.
        log.find(|line| line.contains("pool changed"))
            .expect("it has instances");
        std::thread::spawn(move || log.for_each(drop));
        Self {
            process,
            address,
            _folder: folder,
        }
    }

    /// User and system time so far, in seconds.
    fn cpu(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id())).expect("Linux");
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
        // A tick is 10 ms on every Linux there is.
        ticks / 100.0
    }

    /// CPU time of each of `REQUESTS` requests, in microseconds.
    fn measure(&self, request: impl Fn(&mut Client) + Sync) -> f64 {
        let before = self.cpu();
        std::thread::scope(|scope| {
            for _ in 0..CONNECTIONS {
                scope.spawn(|| {
                    let mut client = Client::connect(self.address);
                    (0..REQUESTS / CONNECTIONS).for_each(|_| request(&mut client));
                });
            }
        });
        (self.cpu() - before) * 1e6 / REQUESTS as f64
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            buffer: vec![0; 16 << 10],
        }
    }

    /// The answer's body; every answer here fits one read, or ends with its brace.
    fn ask(&mut self, request: &str) -> &str {
        self.stream.write_all(request.as_bytes()).unwrap();
        let mut length = 0;
        while length == 0 || self.buffer[length - 1] != b'}' {
            let read = self.stream.read(&mut self.buffer[length..]).unwrap();
            assert!(read > 0, "the agent hung up");
            length += read;
        }
        let answer = std::str::from_utf8(&self.buffer[..length]).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        answer.split_once("\r\n\r\n").unwrap().1
    }

    fn lease(&mut self) -> String {
        let body = self.ask("POST /pick/web HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
        let (_, lease) = body.split_once("\"lease\":\"").unwrap();
        lease[..32].to_owned()
    }

    fn report(&mut self, reports: &str) -> &str {
        let length = reports.len();
        self.ask(&format!(
            "POST /report HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{reports}"
        ))
    }
}

fn get(client: &mut Client) {
    client.ask("GET /pick/web HTTP/1.1\r\nHost: localhost\r\n\r\n");
}

fn pair(client: &mut Client) {
    let lease = client.lease();
    let judged = client.report(&format!(
        r#"{{"lease":"{lease}","outcome":"success","latency_ms":12.5}}"#
    ));
    assert_eq!(judged, r#"{"accepted":1,"rejected":[]}"#);
}

fn main() {
    let agent = Agent::start();
    agent.measure(get);
    agent.measure(pair);
    let (mut gets, mut pairs) = (0.0, 0.0);
    for _ in 0..ROUNDS {
        gets += agent.measure(get) / ROUNDS as f64;
        pairs += agent.measure(pair) / ROUNDS as f64;
    }
    let ratio = pairs / gets;
    let verdict = if ratio <= TARGET { "met" } else { "missed" };
    println!(
        "{} of each: GET {gets:.1} us, POST + report {pairs:.1} us of CPU; ratio {ratio:.2}, target {TARGET}: {verdict}",
        ROUNDS * REQUESTS
    );
}
