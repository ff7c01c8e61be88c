//! The real binary, as a process of its own.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;

use super::http::{self, Response};
use super::metrics::{Series, samples};
use super::{signal, until};

/// Bound for events that should happen at once, on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// The binary, without the environment variables that it reads.
pub(crate) fn pickd() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pickd"));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("PICKD_")
            || text.starts_with("CONSUL_")
            || text.starts_with("ETCDCTL_")
            || matches!(&*text, "NOTIFY_SOCKET" | "WATCHDOG_USEC" | "WATCHDOG_PID")
            || text.to_lowercase().ends_with("_proxy")
        {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// Runs a command that ends by itself.
pub(crate) fn command<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Output {
    pickd().args(arguments).output().unwrap()
}

/// The lines that a process has written so far.
#[derive(Clone, Default)]
pub(crate) struct Lines(Arc<Mutex<Vec<String>>>);

impl Lines {
    /// Reads while the process writes, so that the process never waits for the test.
    fn of(stream: impl Read + Send + 'static) -> Self {
        let lines = Self::default();
        let read = lines.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                read.0.lock().unwrap().push(line);
            }
        });
        lines
    }

    pub(crate) fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

/// A process that is killed when dropped.
pub(crate) struct Program {
    process: Child,
    pub(crate) stdout: Lines,
    pub(crate) stderr: Lines,
}

impl Program {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut process = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let stdout = Lines::of(process.stdout.take().unwrap());
        let stderr = Lines::of(process.stderr.take().unwrap());
        Self {
            process,
            stdout,
            stderr,
        }
    }

    /// Sends a signal by name.
    pub(crate) fn signal(&self, name: &str) {
        signal(&self.process, name);
    }

    /// The exit status, if the process has ended.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.process.try_wait().unwrap()
    }

    /// Waits until the process has ended, and returns the exit code.
    pub(crate) fn exit_code(&mut self, bound: Duration) -> Option<i32> {
        until(bound, "the process ends", || self.ended()).code()
    }

    /// Log lines with this message, as JSON.
    pub(crate) fn logged(&self, message: &str) -> Vec<Value> {
        let lines = self.stderr.all();
        let parsed = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        parsed.filter(|line| line["message"] == message).collect()
    }

    /// Waits for a log line with this message that meets the condition.
    pub(crate) fn wait_for_log(&self, message: &str, condition: impl Fn(&Value) -> bool) -> Value {
        until(SOON, &format!("log line {message:?}"), || {
            self.logged(message).into_iter().find(|line| condition(line))
        })
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if self.ended().is_none() {
            self.signal("TERM");
            let mut tries = 0;
            while self.ended().is_none() && tries < 600 {
                tries += 1;
                std::thread::sleep(Duration::from_millis(10));
            }
            if self.ended().is_none() {
                self.process.kill().unwrap();
                self.process.wait().unwrap();
            }
        }
        if std::thread::panicking() {
            eprintln!("what it printed:\n{}", self.stdout.all().join("\n"));
            eprintln!("its log:\n{}", self.stderr.all().join("\n"));
        }
    }
}

/// An agent on a free port of 127.0.0.1.
pub(crate) struct Agent {
    pub(crate) program: Program,
    pub(crate) address: SocketAddr,
}

impl Agent {
    /// Starts `pickd run` with these arguments, and waits until the agent listens.
    pub(crate) fn run<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Self {
        Self::start(pickd().args(["run", "--listen", "127.0.0.1:0"]).args(arguments))
    }

    /// Starts an agent with this command, and waits until the agent listens.
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut program = Program::start(command);
        let address = until(SOON, "the agent listens", || {
            let ended = program.ended();
            let listening = program.logged("listening").into_iter().next();
            assert!(
                ended.is_none() || listening.is_some(),
                "it ended: {ended:?}\n{}",
                program.stderr.all().join("\n")
            );
            listening
        });
        let address = address["address"].as_str().unwrap().parse().unwrap();
        Self { program, address }
    }

    pub(crate) fn get(&self, target: &str) -> Response {
        http::get(self.address, target)
    }

    /// Waits until the agent is ready.
    pub(crate) fn ready(self) -> Self {
        until(SOON, "the agent is ready", || {
            (self.get("/readyz").status == 200).then_some(())
        });
        self
    }

    /// Waits until a pick of the service succeeds, and returns the answer.
    pub(crate) fn picks(&self, service: &str) -> Value {
        until(SOON, &format!("a pick of {service}"), || {
            let answer = self.get(&format!("/pick/{service}"));
            (answer.status == 200).then(|| answer.json())
        })
    }

    /// The value of one series, if it exists: `name{label="value"}`.
    pub(crate) fn metric(&self, series: &str) -> Option<f64> {
        let (wanted, text) = (Series::parse(series), self.get("/metrics"));
        let found = samples(text.text()).into_iter().find(|(series, _)| *series == wanted);
        found.map(|(_, value)| value)
    }

    /// `host:port` as a URL.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Resident memory of the agent.
    pub(crate) fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.program.process.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse().unwrap();
        kilobytes * 1024
    }
}
