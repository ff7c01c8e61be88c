//! `integrations/etcd`: both registrars and the script for users, with a real etcd.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::agent::{Agent, Program};
use crate::support::etcd::Etcd;
use crate::support::folder::Folder;
use crate::support::pool::{pool, until_picked};
use crate::support::programs::{bash, commands, integration, read_integration, replaced, succeeds};
use crate::support::until;

const KEY: &str = "/services/web/w1";
const ADDRESS: &str = "10.0.1.10:8080";
/// Short, with room for keep-alives that a busy machine holds up.
const TTL: Duration = Duration::from_secs(5);
/// For programs to start, and for what comes after a lease has ended or a member has restarted.
const LATER: Duration = Duration::from_secs(45);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Shell,
    Python,
}

impl Kind {
    /// The registrar of this kind, with a lease of so many seconds.
    fn command(self, endpoints: &str, ttl: Duration) -> Command {
        let ttl = ttl.as_secs();
        let folder = integration("etcd");
        match self {
            Self::Shell => {
                let mut command = bash(&folder, &format!("exec ./register.sh {KEY} {ADDRESS}"));
                command.env("ETCDCTL_ENDPOINTS", endpoints).env("TTL", ttl.to_string());
                command
            }
            Self::Python => bash(
                &folder,
                &format!("exec ./register.py --endpoints {endpoints} --ttl {ttl} {KEY} {ADDRESS}"),
            ),
        }
    }

    fn start(self, endpoints: &str, ttl: Duration) -> Program {
        Program::start(&mut self.command(endpoints, ttl))
    }
}

fn beside(etcd: &Etcd) -> Agent {
    Agent::run(["--etcd", &etcd.urls()]).ready()
}

/// The lease of the key, if the key is there.
fn lease(etcd: &Etcd) -> Option<u64> {
    let printed = etcd.ctl(["get", KEY, "--write-out", "json"]);
    let answer: serde_json::Value = serde_json::from_str(&printed).unwrap();
    answer["kvs"][0]["lease"].as_u64()
}

fn registered_anew(etcd: &Etcd, but_not: Option<u64>) -> u64 {
    until(LATER, "it is registered", || {
        lease(etcd).filter(|lease| Some(*lease) != but_not)
    })
}

/// Watches the key for longer than its lease would last without keep-alives.
fn stays(etcd: &Etcd, what: &str) {
    let started = Instant::now();
    until(LATER, what, || {
        assert!(lease(etcd).is_some(), "{what}: gone after {:?}", started.elapsed());
        (started.elapsed() > TTL + TTL / 2).then_some(())
    });
}

fn leases(etcd: &Etcd) -> usize {
    // "found 1 leases", and one of them a line.
    etcd.ctl(["lease", "list"]).lines().count() - 1
}

fn renews_and_leaves_at_once(kind: Kind) {
    let etcd = Etcd::start();
    let agent = beside(&etcd);
    let mut registrar = kind.start(&etcd.url(0), TTL);
    until_picked(&agent, "web", &["w1"], LATER);
    assert_eq!(pool(&agent, "web")["w1"], ADDRESS);
    stays(&etcd, "a registration that is renewed");
    registrar.signal("TERM");
    assert_eq!(registrar.exit_code(LATER), Some(0));

    // With a lease that would last for long, SIGTERM and SIGINT make the difference.
    for signal in ["TERM", "INT"] {
        let mut registrar = kind.start(&etcd.url(0), Duration::from_secs(600));
        until_picked(&agent, "web", &["w1"], LATER);
        registrar.signal(signal);
        let left = until_picked(&agent, "web", &[], LATER);
        assert_eq!(registrar.exit_code(LATER), Some(0), "{signal}");
        assert_eq!(leases(&etcd), 0, "{signal}");
        eprintln!("{kind:?}, {signal}: left {left:.1?} after it");
    }
}

fn leaves_with_its_lease_when_killed(kind: Kind) {
    let etcd = Etcd::start();
    let agent = beside(&etcd);
    let mut registrar = kind.start(&etcd.url(0), TTL);
    until_picked(&agent, "web", &["w1"], LATER);
    // Whatever keeps the lease alive is at work by now, and must not outlive the registrar.
    stays(&etcd, "a registration before the registrar is killed");
    registrar.signal("KILL");
    registrar.exit_code(LATER);
    let left = until_picked(&agent, "web", &[], LATER);
    eprintln!("{kind:?} killed: left {left:.1?} after it");
    // Since the last keep-alive; etcd looks for leases that have ended every half second.
    assert!(left > TTL / 4 && left < 3 * TTL, "{left:?}");
    assert_eq!(leases(&etcd), 0);
}

fn is_registered_again_after_a_restart_of_etcd(kind: Kind) {
    let mut etcd = Etcd::start();
    let agent = beside(&etcd);
    let mut registrar = kind.start(&etcd.url(0), TTL);
    until_picked(&agent, "web", &["w1"], LATER);
    let first = lease(&etcd);

    // Away for longer than the lease lasts; back with its data.
    etcd.kill(0);
    std::thread::sleep(TTL + TTL / 4);
    etcd.restart(0);
    registered_anew(&etcd, None);
    stays(&etcd, "a registration after a restart");

    // Back without its data: the lease is unknown.
    etcd.kill(0);
    etcd.wipe(0);
    etcd.restart(0);
    registered_anew(&etcd, first);
    stays(&etcd, "a registration after a loss of all data");
    until_picked(&agent, "web", &["w1"], LATER);

    // The lease alone is lost.
    let before = lease(&etcd).unwrap();
    etcd.ctl(["lease", "revoke", &format!("{before:x}")]);
    registered_anew(&etcd, Some(before));
    registrar.signal("TERM");
    assert_eq!(registrar.exit_code(LATER), Some(0));
    until(LATER, "it has left", || lease(&etcd).is_none().then_some(()));
}

/// Endpoints of a cluster: the first member is away at the start, the second later.
fn stays_while_a_member_is_away(kind: Kind) {
    let mut etcd = Etcd::cluster();
    etcd.kill(0);
    let registrar = kind.start(&etcd.urls(), TTL);
    registered_anew(&etcd, None);
    stays(&etcd, "a registration without the first member");
    etcd.restart(0);
    etcd.kill(1);
    stays(&etcd, "a registration without the second member");
    drop(registrar);
    until(LATER, "it has left", || lease(&etcd).is_none().then_some(()));
}

fn waits_for_etcd(kind: Kind) {
    let mut etcd = Etcd::not_started();
    let registrar = kind.start(&etcd.url(0), TTL);
    until(LATER, "it says why it waits", || {
        (!registrar.stderr.all().is_empty()).then_some(())
    });
    etcd.restart(0);
    registered_anew(&etcd, None);
}

#[test]
fn the_shell_registrar_renews_and_leaves_at_once() {
    renews_and_leaves_at_once(Kind::Shell);
}

#[test]
fn the_python_registrar_renews_and_leaves_at_once() {
    renews_and_leaves_at_once(Kind::Python);
}

#[test]
fn a_shell_registrar_that_is_killed_leaves_with_its_lease() {
    leaves_with_its_lease_when_killed(Kind::Shell);
}

#[test]
fn a_python_registrar_that_is_killed_leaves_with_its_lease() {
    leaves_with_its_lease_when_killed(Kind::Python);
}

#[test]
fn the_shell_registrar_registers_again_after_a_restart_of_etcd() {
    is_registered_again_after_a_restart_of_etcd(Kind::Shell);
}

#[test]
fn the_python_registrar_registers_again_after_a_restart_of_etcd() {
    is_registered_again_after_a_restart_of_etcd(Kind::Python);
}

#[test]
fn the_shell_registrar_needs_no_certain_member() {
    waits_for_etcd(Kind::Shell);
    stays_while_a_member_is_away(Kind::Shell);
}

#[test]
fn the_python_registrar_needs_no_certain_member() {
    waits_for_etcd(Kind::Python);
    stays_while_a_member_is_away(Kind::Python);
}

#[test]
fn the_commands_of_the_readme_register_what_they_say() {
    let etcd = Etcd::start();
    let agent = beside(&etcd);
    let lines = commands("etcd/README.md", &["ETCDCTL_ENDPOINTS=", "./register.py --endpoints "]);
    assert_eq!(lines.len(), 2, "{lines:?}");
    let registrars: Vec<Program> = lines
        .iter()
        .map(|line| {
            let line = replaced(line, &[("http://127.0.0.1:2379", &etcd.url(0))]);
            Program::start(&mut bash(&integration("etcd"), &format!("exec env {line}")))
        })
        .collect();
    until_picked(&agent, "user-service", &["user-1", "user-2"], LATER);
    let instances = agent.get("/services/user-service").json()["instances"].clone();
    assert_eq!(
        (&instances["user-1"]["weight"], &instances["user-2"]["weight"]),
        (&1.into(), &2.into())
    );
    drop(registrars);
    until_picked(&agent, "user-service", &[], LATER);
}

/// `etcdctl` as this user.
fn as_user(etcd: &Etcd, user: &str, arguments: &str) -> bool {
    let mut command = bash(Path::new("/"), &format!("etcdctl --user {user} {arguments}"));
    command.env("ETCDCTL_API", "3").env("ETCDCTL_ENDPOINTS", etcd.url(0));
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() || text.contains("permission denied"), "{text}");
    output.status.success()
}

#[test]
fn its_users_may_do_what_is_needed_and_no_more() {
    let mut etcd = Etcd::start();
    etcd.ctl(["user", "add", "root:rootpw"]);
    etcd.ctl(["user", "grant-role", "root", "root"]);
    etcd.ctl(["auth", "enable"]);
    etcd.credentials = vec!["--user".to_owned(), "root:rootpw".to_owned()];
    let folder = Folder::new();
    folder.write("pickd-password", "of-pickd\n");
    folder.write("user-service-password", "of-service\n");
    let script = integration("etcd/create-user.sh");
    let create = commands("etcd/README.md", &["./create-user.sh "]);
    assert_eq!(create.len(), 2, "{create:?}");
    // A second time changes nothing.
    for line in create.iter().chain(&create) {
        let line = replaced(line, &[("./create-user.sh", script.to_str().unwrap())]);
        let mut command = bash(&folder.path(""), &line);
        command
            .env("ETCDCTL_ENDPOINTS", etcd.url(0))
            .env("ETCDCTL_USER", "root:rootpw");
        succeeds(&mut command);
    }

    let readme = read_integration("etcd/README.md");
    let config = readme.split_once("```toml\n").unwrap().1.split_once("```").unwrap().0;
    let config = replaced(config, &[("http://127.0.0.1:2379", &etcd.url(0))]);
    let config = folder.write("pickd.toml", &config);
    let agent = Agent::run(["--config", config.to_str().unwrap()]).ready();
    let lines = commands("etcd/README.md", &["ETCDCTL_USER=", "./register.py --user "]);
    assert_eq!(lines.len(), 2, "{lines:?}");
    let registrars: Vec<Program> = lines
        .iter()
        .map(|line| {
            let line = line.replace("PASSWORD=...", "PASSWORD=of-service").replace(
                "--password-file ",
                &format!(
                    "--endpoints {} --password-file {}/",
                    etcd.url(0),
                    folder.path("").display()
                ),
            );
            let mut command = bash(&integration("etcd"), &format!("exec env {line}"));
            Program::start(command.env("ETCDCTL_ENDPOINTS", etcd.url(0)))
        })
        .collect();
    until_picked(&agent, "user-service", &["user-1", "user-2"], LATER);

    let (pickd, service) = ("pickd:of-pickd", "user-service:of-service");
    assert!(as_user(&etcd, pickd, "get --prefix /services/"));
    assert!(!as_user(&etcd, pickd, "get --prefix /service"));
    assert!(!as_user(
        &etcd,
        pickd,
        "put /services/user-service/user-3 10.0.1.12:8080"
    ));
    assert!(!as_user(&etcd, service, "put /services/orders/orders-1 10.0.1.12:8080"));
    assert!(!as_user(&etcd, service, "get /services/user-service/user-1"));
    drop(registrars);
    until_picked(&agent, "user-service", &[], LATER);

    // No right of the two can be left out.
    etcd.ctl(["role", "revoke-permission", "pickd", "/services/", "--prefix=true"]);
    let agent = Agent::run(["--config", config.to_str().unwrap()]);
    until(LATER, "pickd is denied", || {
        agent
            .metric(r#"pickd_source_errors_total{reason="denied",source="etcd"}"#)
            .filter(|denied| *denied >= 1.0)
    });
    assert_eq!(agent.get("/readyz").status, 503);
    etcd.ctl([
        "role",
        "revoke-permission",
        "user-service",
        "/services/user-service/",
        "--prefix=true",
    ]);
    assert!(!as_user(
        &etcd,
        service,
        "put /services/user-service/user-1 10.0.1.10:8080"
    ));
}

#[test]
fn its_files_can_be_run() {
    use std::os::unix::fs::PermissionsExt;
    for file in ["register.sh", "register.py", "create-user.sh"] {
        let mode = fs::metadata(integration("etcd").join(file))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o111, 0o111, "{file}");
    }
}
