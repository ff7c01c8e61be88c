//! What a service manager hears from the agent, over a socket of its own as systemd has one.

use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::agent::{Agent, SOON, pickd};
use crate::support::folder::Folder;
use crate::support::{free_ports, until};

/// Stands in for systemd: binds the socket that the agent writes to.
struct ServiceManager {
    socket: UnixDatagram,
    folder: Folder,
}

impl ServiceManager {
    fn new() -> Self {
        let folder = Folder::new();
        let socket = UnixDatagram::bind(folder.path("notify")).unwrap();
        Self { socket, folder }
    }

    /// `pickd run --config pickd.toml` with this configuration, as a service.
    fn command(&self, config: &str) -> Command {
        let config = self.folder.write("pickd.toml", config);
        let mut command = pickd();
        command
            .args(["run", "--listen", "127.0.0.1:0", "--config", config.to_str().unwrap()])
            .env("NOTIFY_SOCKET", self.folder.path("notify"));
        command
    }

    /// The next message, each of its assignments in a line.
    fn hear(&self) -> Option<String> {
        let mut bytes = [0; 4096];
        self.socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let length = self.socket.recv(&mut bytes).ok()?;
        Some(String::from_utf8(bytes[..length].to_vec()).unwrap())
    }

    /// Every message up to the first that begins so, that one included.
    fn hear_until(&self, start: &str) -> Vec<String> {
        let mut heard = Vec::new();
        let started = Instant::now();
        while !heard.last().is_some_and(|message: &String| message.starts_with(start)) {
            assert!(started.elapsed() < SOON, "no {start:?}, only {heard:?}");
            heard.extend(self.hear());
        }
        heard
    }
}

/// The time that a message about a reload carries.
fn monotonic(message: &str) -> Duration {
    let micros = message
        .strip_prefix("RELOADING=1\nMONOTONIC_USEC=")
        .and_then(|rest| rest.trim_end().parse().ok());
    Duration::from_micros(micros.unwrap_or_else(|| panic!("{message}")))
}

const SERVICES: &str = "[file]\npath = \"services.toml\"\n";

#[test]
fn readiness_the_main_loop_reloads_and_the_end_are_told() {
    let manager = ServiceManager::new();
    manager.folder.registry("services.toml", "web", &["10.0.0.1:80"]);
    let mut agent = Agent::start(manager.command(SERVICES).env("WATCHDOG_USEC", "1000000"));
    assert_eq!(manager.hear_until("READY=1")[..], ["READY=1\n"], "the first message");
    manager.hear_until("STATUS=file: synced\n");
    for _ in 0..3 {
        manager.hear_until("WATCHDOG=1\n");
    }

    let mut reloaded_at = Vec::new();
    let started = Instant::now();
    for _ in 0..2 {
        agent.program.signal("HUP");
        reloaded_at.push(monotonic(manager.hear_until("RELOADING=1\n").last().unwrap()));
        let after = manager.hear_until("READY=1\n");
        assert!(
            !after.iter().any(|message| message.starts_with("RELOADING")),
            "{after:?}"
        );
    }
    let between = reloaded_at[1] - reloaded_at[0];
    assert!(between > Duration::ZERO && between <= started.elapsed(), "{between:?}");

    // A configuration that is refused: the reload is over, and the status says how it went.
    manager.folder.write("pickd.toml", "[file\n");
    agent.program.signal("HUP");
    manager.hear_until("RELOADING=1\n");
    manager.hear_until("READY=1\n");
    manager.hear_until("STATUS=file: synced; the changed configuration was refused\n");

    agent.program.signal("TERM");
    manager.hear_until("STOPPING=1\n");
    assert_eq!(agent.program.exit_code(SOON), Some(0));
    assert_eq!(manager.hear(), None, "nothing after the end");
    assert!(agent.program.logged("the service manager cannot be told").is_empty());
}

#[test]
fn readiness_does_not_wait_for_a_registry() {
    let manager = ServiceManager::new();
    let [port] = free_ports();
    let agent = Agent::start(&mut manager.command(&format!("[consul]\naddress = \"127.0.0.1:{port}\"\n")));
    manager.hear_until("READY=1\n");
    manager.hear_until("STATUS=consul: not synced yet\n");
    assert_eq!(agent.get("/readyz").status, 503);
}

#[test]
fn without_a_watchdog_of_its_own_the_agent_sends_no_sign_of_life() {
    for watchdog in [None, Some("1")] {
        let manager = ServiceManager::new();
        manager.folder.registry("services.toml", "web", &["10.0.0.1:80"]);
        let mut command = manager.command(SERVICES);
        // A watchdog for another process: for the one that started this one, say.
        if let Some(process) = watchdog {
            command.env("WATCHDOG_USEC", "100000").env("WATCHDOG_PID", process);
        }
        let mut agent = Agent::start(&mut command);
        // The first sign of life would come as soon as the loop turns, so before the status.
        let mut heard = manager.hear_until("STATUS=file: synced\n");
        agent.program.signal("TERM");
        heard.extend(manager.hear_until("STOPPING=1\n"));
        assert_eq!(agent.program.exit_code(SOON), Some(0));
        assert!(!heard.iter().any(|message| message.contains("WATCHDOG")), "{heard:?}");
    }
}

#[test]
fn a_service_manager_that_is_away_is_logged_once_and_changes_nothing() {
    let manager = ServiceManager::new();
    manager.folder.registry("services.toml", "web", &["10.0.0.1:80"]);
    let mut command = manager.command(SERVICES);
    command
        .env("NOTIFY_SOCKET", manager.folder.path("nowhere"))
        .env("WATCHDOG_USEC", "20000");
    let mut agent = Agent::start(&mut command).ready();
    agent.program.signal("HUP");
    until(SOON, "the reload", || {
        (!agent.program.logged("configuration reloaded").is_empty()).then_some(())
    });
    assert_eq!(agent.picks("web")["address"], "10.0.0.1:80");
    agent.program.signal("TERM");
    assert_eq!(agent.program.exit_code(SOON), Some(0));
    assert_eq!(agent.program.logged("the service manager cannot be told").len(), 1);
}
