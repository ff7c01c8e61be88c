//! The life of an agent: the start and its errors, reloads while the agent serves, and the end.

use std::io::{Read, Seek, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::agent::{Agent, SOON, command, pickd};
use crate::support::consul::Consul;
use crate::support::folder::Folder;
use crate::support::http::{self, Connection};
use crate::support::load::{Oracle, Picker};
use crate::support::{free_ports, until};

/// The promised bound for the end.
const END: Duration = Duration::from_secs(5);

/// An agent with a configuration file, over a file registry that lists `web` at these addresses.
struct Configured {
    agent: Agent,
    config: PathBuf,
    folder: Folder,
}

fn configured(text: &str, addresses: &[&str]) -> Configured {
    let folder = Folder::new();
    folder.registry("services.toml", "web", addresses);
    let config = folder.write("pickd.toml", text);
    let agent = Agent::run(["--config", config.to_str().unwrap()]).ready();
    Configured { agent, config, folder }
}

const FILE: &str = "[file]\npath = \"services.toml\"\n";

fn addresses(count: u8) -> Vec<String> {
    (1..=count).map(|number| format!("10.0.0.{number}:80")).collect()
}

fn as_strs(strings: &[String]) -> Vec<&str> {
    strings.iter().map(String::as_str).collect()
}

#[test]
fn without_clients_the_end_is_at_once() {
    for signal in ["TERM", "INT"] {
        let Configured {
            mut agent,
            folder: _folder,
            ..
        } = configured(FILE, &["10.0.0.1:80"]);
        agent.program.signal(signal);
        let started = Instant::now();
        assert_eq!(agent.program.exit_code(END), Some(0), "SIG{signal}");
        assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
        assert!(TcpStream::connect(agent.address).is_err(), "the listener is closed");
    }
}

#[test]
fn stuck_clients_hold_the_end_up_for_less_than_five_seconds() {
    let Configured { folder, mut agent, .. } = configured(FILE, &["10.0.0.1:80"]);
    // More bytes than the buffers of the sockets hold.
    let note = "x".repeat(100_000);
    let mut large = String::from("[[service]]\nname = \"web\"\n");
    for number in 1..=200 {
        large.push_str(&format!(
            "[[service.instance]]\nhost = \"10.9.0.{number}\"\nport = 80\nmetadata = {{ note = \"{note}\" }}\n"
        ));
    }
    folder.write("services.toml", &large);
    until(Duration::from_secs(30), "the large registry", || {
        let list = agent.get("/services").json();
        (list["services"][0]["total_instances"] == 200).then_some(())
    });

    let silent = TcpStream::connect(agent.address).unwrap();
    let mut half = Connection::open(agent.address).unwrap();
    half.send(b"GET /pick/web HTTP/1.1\r\nHost: local").unwrap();
    let mut idle = Connection::open(agent.address).unwrap();
    assert_eq!(idle.ask("GET", "/pick/web", &[]).unwrap().status, 200);
    let mut slow = Connection::open(agent.address).unwrap();
    slow.send(b"GET /services/web HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    let mut unfinished = Connection::open(agent.address).unwrap();
    unfinished
        .send(b"POST /pick/web HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        .unwrap();
    // All connections are accepted: a later connection has been answered.
    assert_eq!(agent.get("/healthz").status, 200);

    agent.program.signal("TERM");
    let started = Instant::now();
    // From here on the agent accepts no connection.
    until(END, "the listener is closed", || {
        TcpStream::connect(agent.address).is_err().then_some(())
    });
    assert_eq!(agent.program.exit_code(END), Some(0));
    let took = started.elapsed();
    eprintln!("with five stuck clients the end took {took:.1?}");
    assert!(took < END, "{took:?}");
    assert_eq!(agent.program.logged("some clients did not finish in time").len(), 1);
    drop((silent, half, idle, slow, unfinished));
}

#[test]
fn what_is_being_answered_is_answered_before_the_end() {
    let Configured {
        mut agent,
        folder: _folder,
        ..
    } = configured(FILE, &["10.0.0.1:80"]);
    let mut late = Connection::open(agent.address).unwrap();
    late.send(b"GET /pick/web HTTP/1.1\r\n").unwrap();
    assert_eq!(agent.get("/healthz").status, 200);
    agent.program.signal("TERM");
    agent.program.wait_for_log("shutting down", |_| true);
    late.send(b"Host: localhost\r\n\r\n").unwrap();
    let answer = late.response("GET").unwrap();
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    assert_eq!(agent.program.exit_code(END), Some(0));
}

#[test]
fn a_second_signal_while_it_ends_changes_nothing() {
    let Configured {
        mut agent,
        folder: _folder,
        ..
    } = configured(FILE, &["10.0.0.1:80"]);
    let mut half = Connection::open(agent.address).unwrap();
    half.send(b"GET /pick/web HTTP/1.1\r\n").unwrap();
    assert_eq!(agent.get("/healthz").status, 200);
    for signal in ["TERM", "INT", "HUP", "TERM"] {
        agent.program.signal(signal);
    }
    assert_eq!(agent.program.exit_code(END), Some(0));
}

/// The strategy of `web` and the state of the source, which shows whether the watcher was replaced.
fn strategy(agent: &Agent) -> Value {
    agent.get("/services/web").json()["strategy"].clone()
}

fn reloaded(agent: &Agent, times: usize) {
    until(SOON, "the configuration is reloaded", || {
        (agent.program.logged("configuration reloaded").len() >= times).then_some(())
    });
}

#[test]
fn a_changed_file_acts_by_itself_and_sighup_at_once() {
    let Configured { folder, agent, .. } = configured(FILE, &["10.0.0.1:80", "10.0.0.2:80"]);
    let updates = || agent.metric(r#"pickd_source_updates_total{source="file"}"#).unwrap();
    let before = updates();
    agent.get("/pick/web");
    assert_eq!(strategy(&agent), "round_robin");
    folder.write("pickd.toml", &format!("{FILE}[services.web]\nstrategy = \"random\"\n"));
    reloaded(&agent, 1);
    assert_eq!(strategy(&agent), "random");
    assert_eq!(agent.program.logged("configuration reloaded")[0]["why"], "file changed");
    let configuration = format!("{FILE}[defaults]\nstrategy = \"consistent_hash\"\n");
    folder.write("pickd.toml", &configuration);
    agent.program.signal("HUP");
    until(SOON, "the strategy acts", || {
        (strategy(&agent) == "consistent_hash").then_some(())
    });
    let picked = |key: &str| agent.get(&format!("/pick/web?key={key}")).json()["id"].clone();
    for key in ["a", "b", "c", "d"] {
        assert_eq!(picked(key), picked(key));
    }
    // A SIGHUP without a change also reloads.
    let heard = agent.program.logged("configuration reloaded").len();
    agent.program.signal("HUP");
    reloaded(&agent, heard + 1);
    // The watcher was not replaced, so there are no new updates, and counters keep their values.
    assert_eq!(updates(), before);
    assert_eq!(
        agent.metric(r#"pickd_picks_total{service="web",result="ok"}"#),
        Some(9.0)
    );
    assert_eq!(agent.metric("pickd_config_last_reload_successful"), Some(1.0));
    assert!(
        agent
            .program
            .logged("registry lost, serving the last known instances")
            .is_empty()
    );
}

#[test]
fn a_wrong_configuration_is_refused_with_its_place_and_everything_goes_on() {
    let Configured { folder, config, agent } = configured(FILE, &["10.0.0.1:80"]);
    let refusal = "configuration rejected, keeping the previous one";
    folder.write("pickd.toml", &format!("{FILE}[services.web]\nstrategy = \"fastest\"\n"));
    agent.program.signal("HUP");
    let line = agent.program.wait_for_log(refusal, |_| true);
    let place = format!("{}:4:12: ", config.display());
    assert!(
        line["error"].as_str().is_some_and(|error| error.starts_with(&place)),
        "{line}"
    );
    assert_eq!(line["level"], "ERROR");
    assert_eq!(agent.metric("pickd_config_last_reload_successful"), Some(0.0));
    assert_eq!(agent.get("/pick/web").status, 200);
    assert_eq!(strategy(&agent), "round_robin");
    // A refused configuration has no effect, even in its valid parts.
    let [taken] = free_ports();
    let _taken = TcpListener::bind(("127.0.0.1", taken)).unwrap();
    for wrong in [
        format!("{FILE}typo = 1\n[defaults]\nstrategy = \"random\"\n"),
        "[defaults]\nstrategy = \"random\"\n".to_owned(),
        "[file\n".to_owned(),
        "[file]\npath = \"services.toml\"\n[consul]\nca_file = \"nowhere.pem\"\naddress = \"https://127.0.0.1:1\"\n\
         [defaults]\nstrategy = \"random\"\n"
            .to_owned(),
    ] {
        let heard = agent.program.logged(refusal).len();
        folder.write("pickd.toml", &wrong);
        agent.program.signal("HUP");
        until(SOON, &wrong, || {
            (agent.program.logged(refusal).len() > heard).then_some(())
        });
        assert_eq!(strategy(&agent), "round_robin", "{wrong}");
        assert_eq!(agent.get("/services").json()["sources"].as_array().unwrap().len(), 1);
    }
    // A file that stays invalid is logged once, not every second.
    folder.write("pickd.toml", &format!("{FILE}[defaults]\nstrategy = \"random\"\n"));
    until(SOON, "the right one acts", || {
        (strategy(&agent) == "random").then_some(())
    });
    assert_eq!(agent.metric("pickd_config_last_reload_successful"), Some(1.0));
    assert!(
        agent.program.logged(refusal).len() <= 10,
        "{:?}",
        agent.program.logged(refusal)
    );
}

#[test]
fn a_configuration_file_that_is_being_written_is_no_change() {
    let Configured { folder, agent, .. } = configured(FILE, &["10.0.0.1:80"]);
    std::fs::write(folder.path("pickd.toml"), "").unwrap();
    std::fs::remove_file(folder.path("pickd.toml")).unwrap();
    folder.write("pickd.toml", &format!("{FILE}[defaults]\nstrategy = \"random\"\n"));
    until(SOON, "the strategy acts", || {
        (strategy(&agent) == "random").then_some(())
    });
    assert_eq!(agent.metric("pickd_config_last_reload_successful"), Some(1.0));
}

#[test]
fn another_registry_file_takes_over_without_an_empty_moment() {
    let (before, after) = (addresses(3), vec!["10.0.1.1:80".to_owned(), "10.0.0.3:80".to_owned()]);
    let Configured { folder, agent, .. } = configured(FILE, &as_strs(&before));
    let oracle = Oracle::new(Duration::from_secs(1), before.clone());
    let picker = Picker::start(agent.address, "/pick/web", 400, &oracle);
    let moved = |text: &str, change: &dyn Fn()| {
        let reloads = agent.program.logged("configuration reloaded").len();
        change();
        folder.write("pickd.toml", text);
        agent.program.signal("HUP");
        reloaded(&agent, reloads + 1);
    };
    let known = || {
        let web = agent.get("/services/web").json();
        let instances = web["instances"].as_object().unwrap();
        instances.keys().cloned().collect::<Vec<_>>()
    };
    let more_picks = || {
        let picks = picker.picks();
        until(SOON, "a hundred more picks", || {
            (picker.picks() >= picks + 100).then_some(())
        });
    };
    for round in 0..5 {
        let (text, name, now, gone) = match round % 2 {
            0 => ("[file]\npath = \"other.toml\"\n", "other.toml", &after, &before),
            _ => (FILE, "services.toml", &before, &after),
        };
        moved(text, &|| {
            now.iter().for_each(|address| oracle.add(address));
            folder.registry(name, "web", &as_strs(now));
        });
        let mut expected = now.clone();
        expected.sort();
        until(SOON, "the other file is served", || (known() == expected).then_some(()));
        for address in gone.iter().filter(|address| !now.contains(address)) {
            oracle.remove(address);
        }
        more_picks();
    }
    // A missing registry file empties no pool.
    moved("[file]\npath = \"missing.toml\"\n", &|| {});
    agent
        .program
        .wait_for_log("registry lost, serving the last known instances", |line| {
            line["error"]
                .as_str()
                .is_some_and(|error| error.contains("missing.toml"))
        });
    more_picks();
    picker.check("registry file changed under load", 500);
}

#[test]
fn a_registry_file_that_is_half_written_or_says_nothing_loses_no_pick() {
    let (before, after) = (addresses(2), vec!["10.0.1.1:80".to_owned()]);
    let folder = Folder::new();
    let path = folder.path("services.yaml");
    let registry = |addresses: &[String]| {
        let instances = addresses.iter().map(|address| {
            let (host, port) = address.split_once(':').unwrap();
            format!("  - {{host: {host}, port: {port}}}\n")
        });
        format!("service:\n- name: web\n  instance:\n{}", instances.collect::<String>())
    };
    std::fs::write(&path, registry(&before)).unwrap();
    let agent = Agent::run(["--file", path.to_str().unwrap()]).ready();
    let oracle = Oracle::new(Duration::from_secs(1), before.clone());
    let picker = Picker::start(agent.address, "/pick/web", 400, &oracle);
    let more_picks = || {
        let picks = picker.picks();
        until(SOON, "a hundred more picks", || {
            (picker.picks() >= picks + 100).then_some(())
        });
    };

    // Each part is a valid file that lists less.
    let text = registry(&after);
    let mut open = std::fs::File::create(&path).unwrap();
    for part in ["service: []\n#", "\n---\n"] {
        open.write_all(part.as_bytes()).unwrap();
        more_picks();
    }
    open.set_len(0).unwrap();
    open.rewind().unwrap();
    open.write_all(text.as_bytes()).unwrap();
    more_picks();
    after.iter().for_each(|address| oracle.add(address));
    drop(open);
    until(SOON, "the whole file is served", || {
        agent.get("/pick/web").text().contains("10.0.1.1:80").then_some(())
    });
    before.iter().for_each(|address| oracle.remove(address));

    for (refused, nothing) in ["# rendered: none\n", "---\n", "service:\n", "null\n", "{}\n"]
        .iter()
        .enumerate()
    {
        std::fs::write(&path, nothing).unwrap();
        until(SOON, "the file is refused", || {
            let refusals = agent.metric("pickd_source_errors_total{source=\"file\",reason=\"invalid_file\"}");
            (refusals == Some((refused + 1) as f64)).then_some(())
        });
        more_picks();
    }
    picker.check("registry file half-written, and rendered from nothing", 500);

    std::fs::write(&path, "service: []\n").unwrap();
    until(
        SOON,
        "a registry without services is served when it is written out",
        || (agent.get("/pick/web").status != 200).then_some(()),
    );
}

#[test]
fn listeners_come_and_go_with_the_configuration() {
    let [first, second] = free_ports();
    let listen = |ports: &[u16]| {
        let listed: Vec<_> = ports.iter().map(|port| format!("\"127.0.0.1:{port}\"")).collect();
        format!("[api]\nlisten = [{}]\n{FILE}", listed.join(", "))
    };
    let folder = Folder::new();
    folder.registry("services.toml", "web", &["10.0.0.1:80"]);
    let config = folder.write("pickd.toml", &listen(&[first]));
    let agent = Agent::start(pickd().args(["run", "--config", config.to_str().unwrap()])).ready();
    let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
    assert_eq!(agent.address, at(first));
    let mut kept = Connection::open(at(first)).unwrap();
    assert_eq!(kept.ask("GET", "/pick/web", &[]).unwrap().status, 200);

    folder.write("pickd.toml", &listen(&[first, second]));
    agent.program.signal("HUP");
    until(SOON, "the second address is served", || {
        TcpStream::connect(at(second)).ok()
    });
    assert_eq!(http::get(at(second), "/pick/web").status, 200);
    assert_eq!(
        kept.ask("GET", "/pick/web", &[]).unwrap().status,
        200,
        "the first was left alone"
    );

    folder.write("pickd.toml", &listen(&[second]));
    agent.program.signal("HUP");
    until(SOON, "the first address is closed", || {
        TcpStream::connect(at(first)).is_err().then_some(())
    });
    assert_eq!(http::get(at(second), "/pick/web").status, 200);

    // An address in use refuses the whole reload.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    folder.write("pickd.toml", &listen(&[taken.local_addr().unwrap().port(), second]));
    agent.program.signal("HUP");
    let line = agent
        .program
        .wait_for_log("configuration rejected, keeping the previous one", |_| true);
    assert!(
        line["error"]
            .as_str()
            .is_some_and(|error| error.starts_with("cannot listen on 127.0.0.1:")),
        "{line}"
    );
    assert_eq!(
        http::get(at(second), "/metrics")
            .text()
            .matches("pickd_config_last_reload_successful 0")
            .count(),
        1
    );
}

#[test]
fn names_that_a_loopback_listener_serves_can_be_reloaded() {
    let Configured { folder, agent, .. } = configured(FILE, &["10.0.0.1:80"]);
    let status = || http::ask(agent.address, "GET", "/pick/web", &["Host: pickd.internal"]).status;
    assert_eq!(status(), 421);
    folder.write(
        "pickd.toml",
        &format!("[api]\nallowed_hosts = [\"pickd.internal\"]\n{FILE}"),
    );
    agent.program.signal("HUP");
    until(SOON, "the name is served", || (status() == 200).then_some(()));
}

#[test]
fn what_cannot_be_run_is_said_before_anything_starts() {
    let folder = Folder::new();
    let run = |text: &str| {
        let config = folder.write("pickd.toml", text);
        let output = command(["run", "--listen", "127.0.0.1:0", "--config", config.to_str().unwrap()]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "");
        (
            output.status.code(),
            said.replace(&format!("{}/", config.parent().unwrap().display()), ""),
        )
    };
    for (text, expected) in [
        ("[file]\npath = \"s.toml\"\n[api]\nlistne = []\n", "pickd.toml:4:1: "),
        (
            "[file]\npath = \"s.toml\"\n[defaults]\nstrategy = \"x\"\n",
            "pickd.toml:4:12: ",
        ),
        ("[file\n", "pickd.toml:1:"),
        ("", "nothing to pick from: no registry is configured"),
        ("[api]\n", "nothing to pick from: no registry is configured"),
    ] {
        let (code, said) = run(text);
        assert!(code == Some(2) && said.starts_with(expected), "{code:?} {said}");
    }
    let (code, said) = run("[defaults]\nstrategy = \"x\"\nchoices = 0\n");
    assert!(
        code == Some(2) && said.contains(":2:12: ") && said.contains(":3:11: "),
        "all of them: {said}"
    );

    let missing = command(["run", "--config", "/nowhere/pickd.toml"]);
    assert_eq!(missing.status.code(), Some(2));
    let bare = command(["run"]);
    assert_eq!(bare.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&bare.stderr).contains("pickd run --consul http://127.0.0.1:8500"));
    let filter = command(["run", "--file", "s.toml", "--log", "a=b=c"]);
    assert_eq!(filter.status.code(), Some(2));
}

#[test]
fn an_address_in_use_is_a_failure_that_names_it() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let held = TcpListener::bind(taken).unwrap();
    let output = command(["run", "--file", "services.toml", "--listen", &taken.to_string()]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.starts_with(&format!("pickd: cannot listen on {taken}: ")),
        "{said}"
    );
    drop(held);
}

/// A proxy that records requests, and does not answer.
fn trap() -> (SocketAddr, std::sync::mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (asked, questions) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut buffer = [0; 1024];
            let read = stream.read(&mut buffer).unwrap_or(0);
            // The receiver is gone once the test is over.
            if asked
                .send(String::from_utf8_lossy(&buffer[..read]).into_owned())
                .is_err()
            {
                return;
            }
            drop(stream.write_all(b"HTTP/1.1 502 Trap\r\nContent-Length: 0\r\n\r\n"));
        }
    });
    (address, questions)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_in_the_environment_is_not_asked_and_no_ca_bundle_is_needed() {
    let consul = Consul::start().await;
    consul.register("n1", "web", "web-1", 80, json!({})).await;
    let (proxy, questions) = trap();
    let proxy = format!("http://{proxy}");
    let mut command = pickd();
    for name in [
        "HTTP_PROXY",
        "http_proxy",
        "HTTPS_PROXY",
        "https_proxy",
        "ALL_PROXY",
        "all_proxy",
    ] {
        command.env(name, &proxy);
    }
    command
        .env("SSL_CERT_FILE", "/nowhere/ca.pem")
        .env("SSL_CERT_DIR", "/nowhere")
        .args(["run", "--listen", "127.0.0.1:0", "--consul", &consul.address()]);
    let agent = Agent::start(&mut command).ready();
    assert_eq!(agent.get("/pick/web").json()["id"], "web-1@n1");
    // The commands that ask an agent ignore the proxy as well.
    let pick = pickd()
        .args(["pick", "web", "--agent", &agent.url()])
        .env("HTTP_PROXY", &proxy)
        .env("http_proxy", &proxy)
        .env("SSL_CERT_FILE", "/nowhere/ca.pem")
        .output()
        .unwrap();
    assert_eq!(pick.status.code(), Some(0), "{}", String::from_utf8_lossy(&pick.stderr));
    assert_eq!(questions.try_recv().ok(), None);
}

#[test]
fn memory_does_not_grow_with_picks() {
    let Configured {
        agent, folder: _folder, ..
    } = configured(FILE, &as_strs(&addresses(10)));
    let mut connection = Connection::open(agent.address).unwrap();
    let mut pick = |times: usize| {
        for _ in 0..times {
            assert_eq!(connection.ask("GET", "/pick/web?n=2&tag=", &[]).unwrap().status, 200);
        }
    };
    pick(2_000);
    let before = agent.resident_bytes();
    pick(10_000);
    let grown = agent.resident_bytes().saturating_sub(before);
    eprintln!(
        "after 2,000 picks {} kB, after 10,000 more {} kB more",
        before >> 10,
        grown >> 10
    );
    assert!(grown < 2 << 20, "{grown} bytes");
}

#[test]
fn picks_write_no_log_lines() {
    let Configured {
        agent, folder: _folder, ..
    } = configured(FILE, &["10.0.0.1:80"]);
    agent.program.wait_for_log("synced", |_| true);
    let before = agent.program.stderr.all().len();
    let mut connection = Connection::open(agent.address).unwrap();
    for target in [
        "/pick/web",
        "/pick/absent",
        "/pick/%ff",
        "/nowhere",
        "/metrics",
        "/services",
    ] {
        for _ in 0..50 {
            connection.ask("GET", target, &[]).unwrap();
        }
    }
    assert_eq!(
        agent.program.stderr.all().len(),
        before,
        "{:?}",
        agent.program.stderr.all()
    );
    for line in agent.program.stderr.all() {
        let line: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(
            line["timestamp"].is_string() && line["level"].is_string() && line["message"].is_string(),
            "{line}"
        );
    }
}
