//! `integrations/clients`: the shell function, and nginx and HAProxy that take their servers from
//! pickd, with real backends.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;

use crate::support::agent::{Agent, Program};
use crate::support::backend::Backend;
use crate::support::folder::Folder;
use crate::support::http::{self, Connection};
use crate::support::programs::{bash, both, commands, integration, read_integration, replaced, server, succeeds};
use crate::support::{free_ports, until};

const SERVICE: &str = "user-service";
/// For programs to start, and for slow start to let a new instance have its first requests.
const LATER: Duration = Duration::from_secs(45);

/// Backends, a file registry that lists some of them, and an agent that reads it. Ids are
/// `host:port`.
struct Site {
    // Ended before the folder that it watches is removed.
    agent: Agent,
    backends: Vec<Backend>,
    folder: Folder,
}

impl Site {
    fn new(listed: &[usize]) -> Self {
        let backends = vec![Backend::start(), Backend::start(), Backend::start()];
        let folder = Folder::new();
        let addresses: Vec<String> = listed.iter().map(|at| backends[*at].address.to_string()).collect();
        let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
        let registry = folder.registry("services.toml", SERVICE, &addresses);
        let agent = Agent::run(["--file", registry.to_str().unwrap()]).ready();
        Self {
            backends,
            folder,
            agent,
        }
    }

    fn address(&self, backend: usize) -> String {
        self.backends[backend].address.to_string()
    }

    fn list(&self, listed: &[usize]) {
        let addresses: Vec<String> = listed.iter().map(|at| self.address(*at)).collect();
        let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
        self.folder.registry("services.toml", SERVICE, &addresses);
    }

    fn path(&self, name: &str) -> String {
        self.folder.path(name).to_str().unwrap().to_owned()
    }

    fn drain(&self, method: &str, backend: usize) {
        let target = format!("/services/{SERVICE}/instances/{}/drain", self.address(backend));
        let answer = http::ask(self.agent.address, method, &target, &["Content-Length: 0"]);
        assert_eq!(answer.status, 200, "{method} {target}: {}", answer.text());
    }

    fn statistics(&self, backend: usize) -> Value {
        let service = self.agent.get(&format!("/services/{SERVICE}")).json();
        service["instances"][self.address(backend)].clone()
    }

    /// A script in the folder of the integration.
    fn script(&self, script: &str) -> Command {
        let mut command = bash(&integration("clients"), script);
        command.env("PICKD_AGENT", self.agent.url()).env("NO_PROXY", "*");
        command
    }

    /// Waits until a backend has had no request while others had a hundred.
    fn until_quiet(&self, backend: usize, traffic: &Traffic) {
        until(LATER, &format!("backend {backend} has no more requests"), || {
            let (before, requests) = (traffic.requests(), self.backends[backend].requests());
            until(LATER, "a hundred requests", || {
                (traffic.requests() >= before + 100).then_some(())
            });
            (self.backends[backend].requests() == requests).then_some(())
        });
    }

    fn until_used(&self, backend: usize) {
        let before = self.backends[backend].requests();
        until(LATER, &format!("backend {backend} has requests"), || {
            (self.backends[backend].requests() > before).then_some(())
        });
    }
}

/// Requests to a proxy, each on a connection of its own, until it is stopped. None of them may
/// fail.
struct Traffic {
    stop: Arc<AtomicBool>,
    requests: Arc<AtomicU64>,
    lost: Arc<Mutex<Vec<String>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Traffic {
    fn start(proxy: SocketAddr) -> Self {
        let (stop, requests) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let lost = Arc::<Mutex<Vec<String>>>::default();
        let threads = (0..3).map(|_| {
            let (stop, requests, lost) = (Arc::clone(&stop), Arc::clone(&requests), Arc::clone(&lost));
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let answer = Connection::open(proxy)
                        .and_then(|mut connection| connection.ask("GET", "/", &["Connection: close"]));
                    requests.fetch_add(1, Ordering::Relaxed);
                    match answer {
                        Ok(answer) if answer.status == 200 => {}
                        Ok(answer) => lost.lock().unwrap().push(answer.status.to_string()),
                        Err(error) => lost.lock().unwrap().push(error.to_string()),
                    }
                    std::thread::sleep(Duration::from_millis(3));
                }
            })
        });
        Self {
            threads: threads.collect(),
            stop,
            requests,
            lost,
        }
    }

    fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Stops, and fails the test if a request was lost.
    fn check(mut self, what: &str) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
        let (requests, lost) = (self.requests(), self.lost.lock().unwrap());
        eprintln!("{what}: {requests} requests, {} lost", lost.len());
        assert!(requests > 300, "{requests}");
        assert!(lost.is_empty(), "{what}: {lost:?}");
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_shell_call_succeeds_beside_a_dead_instance_and_is_reported() {
    let site = Site::new(&[0, 1, 2]);
    site.backends[1].stop();
    let lines = commands("clients/README.md", &[". ./", "pickd_call "]);
    let [source, call] = lines.as_slice() else {
        panic!("{lines:?}")
    };
    let printed = succeeds(&mut site.script(&format!(
        "set -euo pipefail\n{source}\nfor _ in {{1..12}}; do {call}; echo; done"
    )));
    assert_eq!(printed.lines().collect::<Vec<_>>(), ["ok"; 12]);
    let count = |backend: usize, key: &str| site.statistics(backend)[key].as_u64().unwrap();
    let failed = count(1, "failed_requests");
    assert!(failed >= 2, "{:?}", site.statistics(1));
    let reason = site.statistics(1)["reason"].as_str().unwrap().to_owned();
    assert!(reason.starts_with("breaker_"), "{reason}");
    assert_eq!(count(0, "failed_requests") + count(2, "failed_requests"), 0);
    for backend in 0..3 {
        assert_eq!(count(backend, "active_connections"), 0, "leases are reported");
    }
    let reported: u64 = (0..3).map(|backend| count(backend, "reported_requests")).sum();
    assert_eq!(reported, 12 + failed);
    let seconds = site.statistics(0)["average_response_time"].as_f64().unwrap();
    assert!(seconds > 0.0 && seconds < 1.0, "{seconds}");
}

/// What one call reports, its exit code and how many backends it asks, with all backends made to do
/// so.
fn one_call(arguments: &str, prepare: impl Fn(&Backend)) -> (String, bool, usize) {
    let site = Site::new(&[0, 1, 2]);
    for backend in &site.backends {
        prepare(backend);
    }
    let output = site
        .script(&format!(
            ". ./pickd_call.sh; PICKD_CALL_TIMEOUT=1 pickd_call user-service {arguments}"
        ))
        .output()
        .unwrap();
    let instances: Vec<Value> = (0..3).map(|backend| site.statistics(backend)).collect();
    let asked = instances.iter().filter(|it| it["reported_requests"] == 1).count();
    let failed = instances.iter().filter(|it| it["failed_requests"] == 1).count();
    assert!(failed == asked || failed == 0, "{instances:?}");
    (both(&output), output.status.success(), asked)
}

#[test]
fn a_call_is_repeated_only_where_that_is_safe() {
    let ok = || "ok".to_owned();
    let with_status = |status| move |backend: &Backend| backend.answers(status);
    assert_eq!(one_call("/", with_status(200)), (ok(), true, 1));
    assert_eq!(one_call("/", with_status(404)), (ok(), true, 1));
    assert_eq!(one_call("/", with_status(500)), (ok(), false, 3));
    assert_eq!(one_call("/ -X POST", with_status(500)), (ok(), false, 1));
    assert_eq!(one_call("/ -X POST", with_status(503)), (ok(), false, 3));
    assert_eq!(one_call("/ -X POST", Backend::hangs), (String::new(), false, 1));
    assert_eq!(one_call("/ -X POST", Backend::stop), (String::new(), false, 3));
}

#[test]
fn a_call_without_an_agent_fails() {
    let [port] = free_ports();
    let script = ". ./pickd_call.sh; pickd_call user-service /";
    let mut command = bash(&integration("clients"), script);
    let output = command
        .env("PICKD_AGENT", format!("http://127.0.0.1:{port}"))
        .output()
        .unwrap();
    assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
}

fn until_answers(proxy: SocketAddr, status: u16) {
    until(LATER, &format!("{proxy} answers {status}"), || {
        let mut connection = Connection::open(proxy).ok()?;
        (connection.ask("GET", "/", &[]).ok()?.status == status).then_some(())
    });
}

/// What nginx does to a site: its port, the file of servers, and the arguments that name its
/// configuration.
struct Nginx {
    program: Program,
    proxy: SocketAddr,
    commands: String,
}

impl Nginx {
    fn start(site: &Site) -> Self {
        let [port] = free_ports();
        let mut temporary = "http {\n".to_owned();
        for name in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
            temporary += &format!("    {name}_temp_path {};\n", site.path(name));
        }
        let config = replaced(
            &read_integration("clients/nginx/nginx.conf"),
            &[
                ("/run/nginx.pid", &site.path("nginx.pid")),
                ("/etc/nginx/pickd/user-service.conf", &site.path("user-service.conf")),
                ("127.0.0.1:8080", &format!("127.0.0.1:{port}")),
                ("http {\n", &temporary),
            ],
        );
        site.folder.write("nginx.conf", &config);
        let mut command = Command::new(server("PICKD_TEST_NGINX"));
        command.args(["-c", &site.path("nginx.conf"), "-g", "daemon off;"]);
        let nginx = format!("{} -c {}", server("PICKD_TEST_NGINX"), site.path("nginx.conf"));
        let proxy = SocketAddr::from(([127, 0, 0, 1], port));
        Self {
            program: Program::start(&mut command),
            proxy,
            commands: format!("--test '{nginx} -t' --reload '{nginx} -s reload'"),
        }
    }
}

/// The command of the README that keeps the file of servers.
fn follow_nginx(site: &Site, flags: &str) -> String {
    let lines = commands("clients/nginx/README.md", &["./pickd_follow.py user-service "]);
    let [line] = lines.as_slice() else { panic!("{lines:?}") };
    let line = replaced(
        line,
        &[("/etc/nginx/pickd/user-service.conf", &site.path("user-service.conf"))],
    );
    format!("exec {line} {flags}")
}

fn written(site: &Site) -> String {
    fs::read_to_string(site.path("user-service.conf")).unwrap()
}

#[test]
fn nginx_follows_pickd_and_loses_no_request() {
    let site = Site::new(&[0, 1]);
    let once = commands("clients/nginx/README.md", &["./pickd_follow.py --once "]);
    let once = replaced(
        &once.join("\n"),
        &[("/etc/nginx/pickd/user-service.conf", &site.path("user-service.conf"))],
    );
    succeeds(&mut site.script(&once));
    let [first, second, third] = [0, 1, 2].map(|backend| format!("server {} ", site.address(backend)));
    assert!(
        written(&site).contains(&first) && written(&site).contains(&second),
        "{}",
        written(&site)
    );

    let nginx = Nginx::start(&site);
    until_answers(nginx.proxy, 200);
    let follower = Program::start(&mut site.script(&follow_nginx(&site, &nginx.commands)));
    let reloads = || {
        follower
            .stderr
            .all()
            .iter()
            .filter(|line| line.contains(" reloaded "))
            .count()
    };
    until(LATER, "it reloads once at the start", || (reloads() == 1).then_some(()));
    let traffic = Traffic::start(nginx.proxy);
    site.until_used(0);
    site.until_used(1);

    site.drain("PUT", 0);
    site.until_quiet(0, &traffic);
    assert!(written(&site).contains(&format!("{first}down;")), "{}", written(&site));
    site.drain("DELETE", 0);
    site.until_used(0);

    // An instance that joins a service which has been picked starts slowly.
    assert_eq!(site.agent.get(&format!("/pick/{SERVICE}")).status, 200);
    site.list(&[0, 1, 2]);
    site.until_used(2);
    let listed = written(&site);
    assert!(
        listed.contains(&third) && !listed.contains(&format!("{first}weight=1;")),
        "{listed}"
    );

    // An instance dies before its registry knows: nginx asks another instance.
    site.backends[1].stop();
    site.list(&[0, 2]);
    until(LATER, "its line is gone", || {
        (!written(&site).contains(&second)).then_some(())
    });
    site.until_quiet(1, &traffic);

    // Without an agent all goes on as it was.
    let before = written(&site);
    let Site {
        backends,
        folder,
        agent,
    } = site;
    drop(agent);
    until(LATER, "it says so", || {
        follower
            .stderr
            .all()
            .iter()
            .any(|line| line.contains("pickd: "))
            .then_some(())
    });
    let requests = traffic.requests();
    until(LATER, "requests without an agent", || {
        (traffic.requests() > requests + 100).then_some(())
    });
    assert_eq!(fs::read_to_string(folder.path("user-service.conf")).unwrap(), before);
    assert!(backends[0].requests() > 0 && reloads() >= 4, "{}", reloads());
    traffic.check("nginx");
    assert!(nginx.program.stderr.all().iter().all(|line| !line.contains("[emerg]")));
}

#[test]
fn nginx_is_given_a_good_configuration_in_any_case() {
    let site = Site::new(&[0]);
    succeeds(&mut site.script(&follow_nginx(&site, "--test true --reload true").replace(" user", " --once user")));
    let nginx = Nginx::start(&site);
    until_answers(nginx.proxy, 200);
    let follower = Program::start(&mut site.script(&follow_nginx(&site, &nginx.commands)));
    // While nothing can be picked, requests are answered with 502.
    site.drain("PUT", 0);
    until_answers(nginx.proxy, 502);
    site.drain("DELETE", 0);
    until_answers(nginx.proxy, 200);
    site.list(&[]);
    until_answers(nginx.proxy, 502);
    site.list(&[0]);
    until_answers(nginx.proxy, 200);
    drop(follower);

    // A configuration that nginx refuses is taken back, and nothing is reloaded.
    let before = written(&site);
    site.list(&[0, 1]);
    until(LATER, "both are known", || {
        (site.statistics(1) != Value::Null).then_some(())
    });
    let refused = "--test 'sh -c \"echo no >&2; exit 1\"' --reload 'touch reloaded'";
    let line = follow_nginx(&site, refused).replace(" user", " --once user");
    let line = line.replace(
        "./pickd_follow.py",
        integration("clients/pickd_follow.py").to_str().unwrap(),
    );
    let output = site.script(&line).current_dir(site.path("")).output().unwrap();
    assert!(
        !output.status.success() && both(&output).contains(": no"),
        "{}",
        both(&output)
    );
    assert_eq!(written(&site), before);
    assert!(!Path::new(&site.path("reloaded")).exists());
}

fn haproxy(site: &Site) -> (Program, SocketAddr) {
    let [port] = free_ports();
    let config = replaced(
        &read_integration("clients/haproxy/haproxy.cfg"),
        &[
            ("/run/haproxy/admin.sock", &site.path("admin.sock")),
            ("bind 127.0.0.1:8080", &format!("bind 127.0.0.1:{port}")),
        ],
    );
    site.folder.write("haproxy.cfg", &config);
    let mut command = Command::new(server("PICKD_TEST_HAPROXY"));
    command.args(["-db", "-f", &site.path("haproxy.cfg")]);
    let program = Program::start(&mut command);
    (program, SocketAddr::from(([127, 0, 0, 1], port)))
}

/// The command of the README that keeps the slots.
fn follow_haproxy(site: &Site) -> Program {
    let lines = commands("clients/haproxy/README.md", &["./pickd_follow.py "]);
    let [line] = lines.as_slice() else { panic!("{lines:?}") };
    let line = replaced(line, &[("/run/haproxy/admin.sock", &site.path("admin.sock"))]);
    Program::start(&mut site.script(&format!("exec {line}")))
}

/// State and weight of each slot that has an address: `srv_admin_state` and `srv_uweight` by
/// address.
fn slots(site: &Site) -> Vec<(String, u8, u16)> {
    use std::io::{Read, Write};
    let mut stream = std::os::unix::net::UnixStream::connect(site.path("admin.sock")).unwrap();
    stream.write_all(b"show servers state user-service\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let mut lines = text.lines().skip(1);
    let names: Vec<&str> = lines.next().unwrap().trim_start_matches("# ").split(' ').collect();
    let rows = lines.filter(|line| !line.is_empty()).map(|line| {
        let cells: Vec<&str> = line.split(' ').collect();
        let cell = |name: &str| cells[names.iter().position(|it| *it == name).unwrap()];
        let address = format!("{}:{}", cell("srv_addr"), cell("srv_port"));
        (
            address,
            cell("srv_admin_state").parse().unwrap(),
            cell("srv_uweight").parse().unwrap(),
        )
    });
    rows.filter(|(address, ..)| address != "127.0.0.1:9").collect()
}

fn slot(site: &Site, backend: usize) -> Option<(u8, u16)> {
    let address = site.address(backend);
    let found = slots(site).into_iter().find(|(it, ..)| *it == address)?;
    Some((found.1, found.2))
}

const MAINT: u8 = 1;
const DRAIN: u8 = 8;

#[test]
fn haproxy_follows_pickd_and_loses_no_request() {
    let site = Site::new(&[0, 1]);
    let (_haproxy, proxy) = haproxy(&site);
    until_answers(proxy, 503);
    let follower = follow_haproxy(&site);
    until_answers(proxy, 200);
    let traffic = Traffic::start(proxy);
    site.until_used(0);
    site.until_used(1);
    let (state, weight) = slot(&site, 0).unwrap();
    assert_eq!((state & (MAINT | DRAIN), weight), (0, 16));

    site.drain("PUT", 0);
    site.until_quiet(0, &traffic);
    assert_eq!(slot(&site, 0).unwrap().0 & DRAIN, DRAIN);
    site.drain("DELETE", 0);
    site.until_used(0);

    // An instance that joins a service which has been picked starts slowly.
    assert_eq!(site.agent.get(&format!("/pick/{SERVICE}")).status, 200);
    site.list(&[0, 1, 2]);
    site.until_used(2);
    let slow = slot(&site, 2).unwrap().1;
    assert!((1..16).contains(&slow), "{slow}");

    // An instance dies before its registry knows: HAProxy asks another instance.
    site.backends[1].stop();
    site.list(&[0, 2]);
    until(LATER, "its slot is free", || {
        (slot(&site, 1).unwrap().0 & MAINT == MAINT).then_some(())
    });
    site.until_quiet(1, &traffic);

    // Started again, the script finds everything as it was, and its slots are those of before.
    let before: Vec<String> = slots(&site).into_iter().map(|slot| slot.0).collect();
    drop(follower);
    let follower = follow_haproxy(&site);
    site.drain("PUT", 0);
    site.until_quiet(0, &traffic);
    let after: Vec<String> = slots(&site).into_iter().map(|slot| slot.0).collect();
    assert_eq!(before, after);
    let log = follower.stderr.all().join("\n");
    assert!(!log.contains("addr"), "{log}");
    traffic.check("HAProxy");
}

#[test]
fn haproxy_gives_a_slot_to_another_instance() {
    let site = Site::new(&[0]);
    let (_haproxy, proxy) = haproxy(&site);
    let follower = follow_haproxy(&site);
    until_answers(proxy, 200);
    // Slots are used again, those that were free for long before those that have just become free.
    let other = |number: u16| format!("127.0.0.1:{}", 20_000 + number);
    let has_slot = |address: &str| {
        let slots = slots(&site);
        slots.iter().any(|(it, state, _)| it == address && state & MAINT == 0)
    };
    for number in 0..3 {
        site.folder
            .registry("services.toml", SERVICE, &[&site.address(0), &other(number)]);
        until(LATER, &format!("{} has a slot", other(number)), || {
            has_slot(&other(number)).then_some(())
        });
    }
    assert!(!has_slot(&other(1)));
    // One instance more than there are slots.
    let all: Vec<String> = (0..16).map(other).chain([site.address(0)]).collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    site.folder.registry("services.toml", SERVICE, &all);
    until(LATER, "it says that one is left out", || {
        let log = follower.stderr.all().join("\n");
        log.contains("1 instances have no slot").then_some(())
    });
    assert_eq!(all.iter().filter(|address| has_slot(address)).count(), 16);
    assert!(has_slot(&site.address(0)));
}
