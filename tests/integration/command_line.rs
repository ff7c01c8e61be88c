//! The command line: output, errors and exit codes.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;

use crate::support::agent::{Agent, Program, SOON, command, pickd};
use crate::support::folder::Folder;
use crate::support::http::{self, Response};
use crate::support::{free_ports, services, until};

const CONFIG: &str = "[file]\npath = \"services.toml\"\n[defaults]\nstrategy = \"consistent_hash\"\n[services.empty]\n";

struct World {
    agent: Agent,
    folder: Folder,
}

fn world() -> World {
    let folder = Folder::new();
    folder.write("services.toml", services::SMALL);
    let config = folder.write("pickd.toml", CONFIG);
    let agent = Agent::run(["--config", config.to_str().unwrap()]).ready();
    World { agent, folder }
}

/// Exit code, stdout and stderr.
fn outcome(output: Output) -> (i32, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

impl World {
    /// Runs a command that asks this agent.
    fn run(&self, words: &[&str]) -> (i32, String, String) {
        outcome(
            pickd()
                .args(words)
                .args(["--agent", &self.agent.url()])
                .output()
                .unwrap(),
        )
    }

    /// Runs a command that must succeed without messages.
    fn says(&self, words: &[&str]) -> String {
        let (code, data, talk) = self.run(words);
        assert_eq!((code, talk.as_str()), (0, ""), "{words:?}");
        data
    }
}

#[test]
fn a_pick_is_one_address_on_stdout() {
    let world = world();
    let all = ["10.0.1.10:8080", "10.0.1.11:8080", "[2001:db8::1]:8081"];
    let picked = world.says(&["pick", "user-service"]);
    assert!(all.contains(&picked.strip_suffix('\n').unwrap()), "{picked}");
    let three = world.says(&["pick", "user-service", "--n", "3"]);
    assert_eq!(three.lines().collect::<BTreeSet<_>>(), all.into());
    let keyed = world.says(&["pick", "user-service", "--key", "session 42&n=3"]);
    for _ in 0..5 {
        assert_eq!(world.says(&["pick", "user-service", "--key", "session 42&n=3"]), keyed);
    }
    let rest = world.says(&[
        "pick",
        "user-service",
        "--n",
        "16",
        "--exclude",
        "user,2",
        "--exclude",
        "user 3",
    ]);
    assert_eq!(rest, "10.0.1.10:8080\n");
    let tagged = world.says(&["pick", "user-service", "--n", "16", "--tag", "v1", "--tag", "eu"]);
    assert_eq!(tagged, "10.0.1.11:8080\n");
    let json = world.says(&["pick", "user-service", "--tag", "eu", "--output", "json", "--n", "2"]);
    let pick: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&pick["id"], pick["alternates"].as_array().unwrap().len()),
        (&Value::from("user,2"), 0)
    );
    assert_eq!(json.lines().count(), 1);
    // The environment can also name the agent, and the flag overrides the environment.
    let by_environment = pickd()
        .args(["pick", "user-service", "--tag", "eu"])
        .env("PICKD_AGENT", world.agent.address.to_string())
        .output()
        .unwrap();
    assert_eq!(
        outcome(by_environment),
        (0, "10.0.1.11:8080\n".to_owned(), String::new())
    );
    let [port] = free_ports();
    let beaten = pickd()
        .args(["pick", "user-service", "--tag", "eu", "--agent", &world.agent.url()])
        .env("PICKD_AGENT", format!("127.0.0.1:{port}"))
        .output()
        .unwrap();
    assert_eq!(beaten.status.code(), Some(0));
}

#[test]
fn how_a_pick_ends_says_why() {
    let world = world();
    for (words, code, talk) in [
        (&["pick", "absent"][..], 3, "pickd: service absent is unknown\n"),
        (&["pick", "empty"], 4, "pickd: service empty has no instances\n"),
        (
            &["pick", "critical"],
            4,
            "pickd: service critical: none of 1 instances can be picked\n",
        ),
        (
            &["pick", "user-service", "--tag", "none"],
            4,
            "pickd: service user-service: none of 3 instances can be picked\n",
        ),
    ] {
        assert_eq!(world.run(words), (code, String::new(), talk.to_owned()), "{words:?}");
        let (json, ..) = world.run(&[words, &["--output", "json"]].concat());
        assert_eq!(json, code);
    }
    for words in [
        &["pick", "a//b"][..],
        &["pick", "user-service", "--n", "0"],
        &["pick", "user-service", "--n", "17"],
        &["pick", "user-service", "--exclude", ""],
        &["pick", "user-service", "--output", "xml"],
        &["pick", "user-service", "--absent"],
        &["pick"],
    ] {
        let (code, data, talk) = world.run(words);
        assert_eq!((code, data.as_str()), (2, ""), "{words:?}");
        assert!(!talk.is_empty());
    }
    let (code, _, talk) = outcome(command(["pick", "user-service", "--agent", "unix:pickd.sock"]));
    assert!(code == 2 && talk.contains("http://host:port"), "{talk}");

    // No listener, another server, and an agent that has not synced.
    let [port] = free_ports();
    let vacant = format!("127.0.0.1:{port}");
    let (code, data, talk) = outcome(command(["pick", "user-service", "--agent", &vacant]));
    assert_eq!((code, data.as_str()), (69, ""));
    assert!(
        talk.starts_with(&format!("pickd: no agent answers at http://{vacant}: ")),
        "{talk}"
    );
    let waiting = Agent::run(["--consul", &format!("http://{vacant}")]);
    let (code, data, talk) = outcome(command(["pick", "user-service", "--agent", &waiting.url()]));
    assert_eq!((code, data.as_str()), (75, ""));
    assert_eq!(talk, "pickd: service user-service: consul has not synced yet\n");
    let backend = format!("{}/metrics?", waiting.url());
    let (code, _, _) = outcome(command(["pick", "user-service", "--agent", &backend]));
    assert_eq!(code, 2, "a query is no agent");
    let elsewhere = format!("{}/metrics", waiting.url());
    let (code, _, _) = outcome(command(["pick", "user-service", "--agent", &elsewhere]));
    assert_ne!(code, 0);
}

#[test]
fn services_are_shown_as_a_table_or_as_the_agent_says_it() {
    let world = world();
    let table = world.says(&["services"]);
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(
        lines,
        [
            "NAME          STRATEGY         AVAILABLE  TOTAL  REQUESTS  FAILED  SOURCES",
            "critical      consistent_hash          0      1         0       0  file",
            "empty         consistent_hash          0      0         0       0  -",
            "user-service  consistent_hash          3      3         0       0  file",
        ]
    );
    let one = world.says(&["services", "user-service"]);
    let rows: Vec<Vec<&str>> = one.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows.len(), 4, "{one}");
    assert_eq!(rows[0][..5], ["ID", "ADDRESS", "STATUS", "WEIGHT", "EFFECTIVE"]);
    assert!(one.contains("[2001:db8::1]:8081") && one.contains("eu,v1"), "{one}");
    let json: Value = serde_json::from_str(&world.says(&["services", "--output", "json"])).unwrap();
    assert_eq!(json["services"].as_array().unwrap().len(), 3);
    let json: Value = serde_json::from_str(&world.says(&["services", "user-service", "--output", "json"])).unwrap();
    assert_eq!(json["instances"].as_object().unwrap().len(), 3);
    let (code, data, talk) = world.run(&["services", "absent"]);
    assert_eq!(
        (code, data.as_str(), talk.as_str()),
        (3, "", "pickd: service absent is unknown\n")
    );
    // A source that is away is reported on stderr, not in the table.
    std::fs::remove_file(world.folder.path("services.toml")).unwrap();
    let talk = until(SOON, "the file is missed", || {
        let (code, data, talk) = world.run(&["services"]);
        assert_eq!((code, data.as_str()), (0, table.as_str()));
        (!talk.is_empty()).then_some(talk)
    });
    assert!(
        talk.starts_with("pickd: source file: away for ") && talk.contains("services.toml"),
        "{talk}"
    );
    let [port] = free_ports();
    let (code, data, _) = outcome(command(["services", "--agent", &format!("127.0.0.1:{port}")]));
    assert_eq!((code, data.as_str()), (69, ""));
}

#[test]
fn a_reader_that_has_enough_ends_a_table_quietly() {
    let world = world();
    let script = format!(
        "'{}' services --agent {} | head -1",
        env!("CARGO_BIN_EXE_pickd"),
        world.agent.url()
    );
    let (code, data, talk) = outcome(Command::new("sh").args(["-c", &script]).output().unwrap());
    assert_eq!((code, talk.as_str()), (0, ""));
    assert!(data.starts_with("NAME"));
}

#[test]
fn a_strategy_is_recommended_without_an_agent() {
    for (arguments, strategy) in [
        (&["recommend"][..], "round_robin"),
        (&["recommend", "general", "--high-throughput"], "random"),
        (&["recommend", "database"], "least_connections"),
        (
            &["recommend", "api_gateway", "--high-throughput"],
            "least_response_time",
        ),
        (&["recommend", "compute_intensive"], "weighted_round_robin"),
        (&["recommend", "database", "--session-affinity"], "consistent_hash"),
    ] {
        let (code, data, talk) = outcome(command(arguments));
        assert_eq!((code, talk.as_str()), (0, ""), "{arguments:?}");
        // The answer is a line of a configuration.
        let line: toml::Table = data.parse().unwrap();
        assert_eq!(line["strategy"].as_str(), Some(strategy), "{data}");
    }
    let (code, data, talk) = outcome(command(["recommend", "cache"]));
    assert_eq!((code, data.as_str()), (2, ""));
    assert!(
        talk.contains("expected one of database, api_gateway, compute_intensive, general"),
        "{talk}"
    );
}

#[test]
fn a_file_is_checked_without_an_agent() {
    let folder = Folder::new();
    let check = |name: &str, text: &str| {
        let path = folder.write(name, text);
        let (code, data, talk) = outcome(command(["check", path.to_str().unwrap()]));
        let plain = |text: String| text.replace(&format!("{}/", path.parent().unwrap().display()), "");
        (code, plain(data), plain(talk))
    };
    let fine = |said: &str| (0, said.to_owned(), String::new());
    assert_eq!(
        check("services.toml", services::SMALL),
        fine("services.toml: fine, 2 services with 4 instances\n")
    );
    assert_eq!(
        check("pickd.toml", CONFIG),
        fine("pickd.toml: fine, services.toml with 2 services with 4 instances\n")
    );
    assert_eq!(
        check(
            "services.json",
            r#"{"service":[{"name":"a","instance":[{"host":"10.0.0.1","port":80}]}]}"#
        ),
        fine("services.json: fine, 1 service with 1 instance\n")
    );
    assert_eq!(check("empty.toml", "[api]\n").0, 0);
    for (name, text, place) in [
        (
            "pickd.toml",
            "[file]\npath = \"services.toml\"\nrequird = true\n",
            "pickd.toml:3:1: ",
        ),
        (
            "pickd.toml",
            "[consul]\n[defaults]\nstrategy = \"fastest\"\n",
            "pickd.toml:3:12: ",
        ),
        ("pickd.toml", "[consul]\nwait = \"soon\"\n", "pickd.toml:2:8: "),
        ("pickd.toml", "[consul\n", "pickd.toml:1:8: "),
        (
            "services.toml",
            "[[service]]\nname = \"a\"\n[[service.instance]]\nhost = \"10.0.0.1\"\nport = 70000\n",
            "services.toml:5:8: ",
        ),
        ("services.toml", "[[service]]\nname = \"a//b\"\n", "services.toml:2:8: "),
        (
            "services.json",
            "{\"service\":[{\"name\":\"a\",\n \"instance\":[{\"host\":\"x y\",\"port\":80}]}]}",
            "services.json:2:22: ",
        ),
        (
            "services.yaml",
            "service:\n- name: a\n  instance:\n  - host: 10.0.0.1\n    port: 80\n    wait: 1\n",
            "services.yaml:6:5: ",
        ),
    ] {
        let (code, data, talk) = check(name, text);
        assert_eq!((code, data.as_str()), (1, ""), "{text}");
        assert!(talk.starts_with(place), "{text}{talk}");
    }
    // The configuration is valid, although the registry file that it names is not.
    let (code, _, talk) = check("pickd.toml", CONFIG);
    assert!(code == 1 && talk.starts_with("services.toml:2:8: "), "{talk}");
    let (code, _, talk) = outcome(command(["check", "/nowhere/pickd.toml"]));
    assert!(code == 1 && talk.starts_with("/nowhere/pickd.toml: "), "{talk}");
    assert_eq!(command(["check"]).status.code(), Some(2));
}

#[test]
fn a_health_check_is_an_exit_code() {
    let world = world();
    assert_eq!(world.says(&["healthcheck"]), "ready\n");
    assert_eq!(world.says(&["healthcheck", "--live"]), "alive\n");
    let [port] = free_ports();
    let vacant = format!("127.0.0.1:{port}");
    let waiting = Agent::run(["--consul", &format!("http://{vacant}")]);
    let health = |words: &[&str], agent: &str| outcome(pickd().args(words).args(["--agent", agent]).output().unwrap());
    assert_eq!(
        health(&["healthcheck"], &waiting.url()),
        (1, String::new(), "pickd: not ready: waiting for consul\n".to_owned())
    );
    assert_eq!(health(&["healthcheck", "--live"], &waiting.url()).0, 0);
    assert_eq!(health(&["healthcheck"], &vacant).0, 69);
}

#[test]
fn help_opens_with_examples() {
    for words in [
        &[][..],
        &["run"],
        &["demo"],
        &["pick"],
        &["services"],
        &["check"],
        &["healthcheck"],
        &["completions"],
        &["man"],
    ] {
        let (code, help, talk) = outcome(pickd().args(words).arg("--help").output().unwrap());
        assert_eq!((code, talk.as_str()), (0, ""));
        let first = help.lines().next().unwrap();
        assert!(first.starts_with("Example"), "{help}");
        assert!(help.lines().nth(1).unwrap().starts_with("  pickd "), "{help}");
    }
    let (code, version, _) = outcome(command(["--version"]));
    assert_eq!((code, version), (0, format!("pickd {}\n", env!("CARGO_PKG_VERSION"))));
    assert_eq!(command(["dance"]).status.code(), Some(2));
    assert_eq!(command::<&str>([]).status.code(), Some(2));
}

/// What bash offers for the last of these words, with the script that `pickd completions bash`
/// prints.
fn completed(words: &[&str]) -> Vec<String> {
    let script = r#"
        source <("$PROGRAM" completions bash)
        complete -p pickd >&2
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
        _pickd pickd "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let output = Command::new("bash")
        .args(["-c", script, "bash"])
        .args(words)
        .env("PROGRAM", env!("CARGO_BIN_EXE_pickd"))
        .output()
        .unwrap();
    let (code, data, talk) = outcome(output);
    assert_eq!(code, 0, "{talk}");
    assert!(talk.starts_with("complete ") && talk.contains("-F _pickd"), "{talk}");
    data.lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_flags_and_values() {
    assert_eq!(completed(&["pickd", "hea"]), ["healthcheck"]);
    assert_eq!(completed(&["pickd", "run", "--etcd-p"]), ["--etcd-prefix"]);
    assert_eq!(
        completed(&["pickd", "run", "--strategy", "least_"]),
        ["least_connections", "least_response_time"]
    );
    assert_eq!(completed(&["pickd", "completions", "f"]), ["fish"]);
}

#[test]
fn a_completion_script_is_for_a_shell_that_is_known() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (code, script, talk) = outcome(command(["completions", shell]));
        assert_eq!((code, talk.as_str()), (0, ""), "{shell}");
        assert!(script.contains("healthcheck"), "{shell}");
    }
    for words in [&["completions", "tcsh"][..], &["completions"]] {
        assert_eq!(command(words).status.code(), Some(2), "{words:?}");
    }
}

#[test]
fn a_manual_page_is_printed_and_all_of_them_are_written() {
    let (code, page, talk) = outcome(command(["man"]));
    assert_eq!((code, talk.as_str()), (0, ""));
    assert!(page.contains(".TH pickd 1 "), "{page}");
    let folder = Folder::new();
    let pages = folder.path("man1");
    let (code, data, talk) = outcome(command(["man", "--directory", pages.to_str().unwrap()]));
    assert_eq!((code, data.as_str(), talk.as_str()), (0, "", ""));
    assert_eq!(std::fs::read_to_string(pages.join("pickd.1")).unwrap(), page);
    let (_, page, _) = outcome(command(["man", "run"]));
    assert_eq!(std::fs::read_to_string(pages.join("pickd-run.1")).unwrap(), page);
    let (code, _, talk) = outcome(command(["man", "dance"]));
    assert_eq!((code, talk.as_str()), (2, "pickd: there is no command \"dance\"\n"));
    let (code, _, talk) = outcome(command(["man", "--directory", "/dev/null"]));
    assert!(code == 1 && talk.starts_with("pickd: /dev/null: "), "{talk}");
}

/// A demo that has printed the commands to try.
struct Demo {
    program: Program,
    address: SocketAddr,
    /// The printed commands.
    commands: Vec<String>,
    registry: PathBuf,
}

fn demo(temporary: &Folder) -> Demo {
    let mut command = pickd();
    command.env("TMPDIR", temporary.path("")).arg("demo");
    let program = Program::start(&mut command);
    until(SOON, "the introduction", || {
        program
            .stdout
            .all()
            .iter()
            .any(|line| line == "Ctrl-C ends it.")
            .then_some(())
    });
    let lines = program.stdout.all();
    let commands: Vec<String> = lines
        .iter()
        .filter_map(|line| line.strip_prefix("  curl "))
        .map(|line| line.split(" #").next().unwrap().trim().to_owned())
        .collect();
    let listening = program.logged("listening");
    let address = listening[0]["address"].as_str().unwrap().parse().unwrap();
    let registry = lines[0].split("registered in ").nth(1).unwrap().into();
    Demo {
        program,
        address,
        commands,
        registry,
    }
}

/// Sends the request that curl would send with these arguments, so that the test needs no curl.
fn curl(words: &str) -> Response {
    let words: Vec<&str> = words.split(' ').map(|word| word.trim_matches('\'')).collect();
    let (method, url) = match words[..] {
        [url] => ("GET", url),
        ["-X", method, url] => (method, url),
        _ => panic!("curl {words:?}"),
    };
    let (address, target) = url.split_at(url.find('/').unwrap());
    let host = format!("Host: {address}");
    http::ask(address.parse().unwrap(), method, target, &[&host, "Accept: */*"])
}

#[test]
fn the_demo_shows_what_it_says() {
    let temporary = Folder::new();
    let mut demo = demo(&temporary);
    assert_eq!(demo.commands.len(), 5, "{:?}", demo.program.stdout.all());
    assert!(demo.registry.starts_with(temporary.path("")) && demo.registry.exists());
    assert!((7425..=7525).contains(&demo.address.port()), "{}", demo.address);
    let [who, fallbacks, stop, why, start] = &demo.commands[..] else {
        unreachable!()
    };

    // Picks follow the weights, and each picked backend answers.
    let mut ids = Vec::new();
    for _ in 0..40 {
        let answer = curl(who);
        assert_eq!(answer.status, 200);
        let pick = answer.json();
        let backend = curl(&format!("{}/", pick["address"].as_str().unwrap()));
        let id = pick["id"].as_str().unwrap().to_owned();
        assert_eq!(backend_text(&backend), format!("hello from {id} of user-service\n"));
        ids.push(id);
    }
    let count = |wanted: &str| ids.iter().filter(|id| *id == wanted).count();
    assert_eq!((count("user-1"), count("user-2"), count("user-3")), (10, 20, 10));
    let answer = curl(fallbacks);
    let lines: BTreeSet<&str> = answer.text().lines().collect();
    assert_eq!(lines.len(), 3, "{}", answer.text());

    // A backend is stopped, and stays registered. The command returns after a check has failed.
    let said = curl(stop);
    let told = "user-2 has stopped; a check found out after ";
    assert!(backend_text(&said).starts_with(told), "{}", said.text());
    let next = said
        .text()
        .lines()
        .find_map(|line| line.strip_prefix("The next picks of user-service: "));
    assert_eq!(
        next.unwrap().split(", ").collect::<BTreeSet<_>>(),
        ["user-1", "user-3"].into()
    );
    let after: BTreeSet<String> = (0..20)
        .map(|_| curl(who).json()["id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(after, ["user-1".to_owned(), "user-3".to_owned()].into());
    assert!(std::fs::read_to_string(&demo.registry).unwrap().contains("user-2"));
    let user_2 = |answer: &Response| {
        let explained = answer.json();
        let instances = explained["instances"].as_array().unwrap().clone();
        instances
            .into_iter()
            .find(|instance| instance["id"] == "user-2")
            .unwrap()
    };
    let explained = user_2(&curl(why));
    assert_eq!(explained["why"], serde_json::json!(["check_failed"]));
    assert_eq!(explained["layers"]["active"]["reason"], "connection_refused");

    // The backend is started again, and rises slowly to half of the picks.
    let said = curl(start);
    assert!(
        backend_text(&said).starts_with("user-2 is back; a check found out after "),
        "{}",
        said.text()
    );
    let shares: Vec<u64> = said
        .text()
        .lines()
        .filter_map(|line| line.strip_prefix("Of 100 picks it gets "))
        .map(|rest| rest.split_whitespace().next().unwrap().parse().unwrap())
        .collect();
    assert_eq!(shares.len(), 5, "{}", said.text());
    assert!(shares[0] <= 10 && shares.is_sorted() && shares[4] == 50, "{shares:?}");
    until(SOON, "the demo's own window says so", || {
        demo.program
            .stdout
            .all()
            .iter()
            .any(|line| line.starts_with(told))
            .then_some(())
    });
    assert_eq!(
        http::get(demo.address, "/pick/order-service").status,
        200,
        "the other service is left alone"
    );

    demo.program.signal("INT");
    assert_eq!(demo.program.exit_code(Duration::from_secs(5)), Some(0));
    let left: Vec<_> = std::fs::read_dir(temporary.path(""))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert!(left.is_empty(), "the temporary folder is removed: {left:?}");
}

fn backend_text(answer: &Response) -> &str {
    assert_eq!(answer.status, 200);
    answer.text()
}

#[test]
fn a_second_demo_takes_the_next_port_and_says_so() {
    // The default port is in use: by this test, by another demo, or by another program.
    let _taken = TcpListener::bind("127.0.0.1:7425");
    let temporary = Folder::new();
    let (first, second) = (demo(&temporary), demo(&temporary));
    let taken = "pickd: 127.0.0.1:7425 is taken, trying the next port";
    for demo in [&first, &second] {
        assert!(
            demo.program.stderr.all().iter().any(|line| line == taken),
            "{:?}",
            demo.program.stderr.all()
        );
        assert!((7426..=7525).contains(&demo.address.port()), "{}", demo.address);
        assert!(
            demo.commands[0].starts_with(&format!("{}/pick/", demo.address)),
            "{:?}",
            demo.commands
        );
        assert_eq!(curl(&demo.commands[0]).status, 200);
    }
    assert_ne!(first.address, second.address);
    assert_ne!(first.registry, second.registry);
    // If the command line names an address in use, the demo fails.
    let listen = first.address.to_string();
    let (code, data, talk) = outcome(
        pickd()
            .env("TMPDIR", temporary.path(""))
            .args(["demo", "--listen", &listen])
            .output()
            .unwrap(),
    );
    assert_eq!((code, data.as_str()), (1, ""));
    assert!(
        talk.starts_with(&format!("pickd: cannot listen on {listen}: ")),
        "{talk}"
    );
    for mut demo in [first, second] {
        demo.program.signal("TERM");
        assert_eq!(demo.program.exit_code(Duration::from_secs(5)), Some(0));
    }
    assert_eq!(std::fs::read_dir(temporary.path("")).unwrap().count(), 0);
}

/// Every variable of etcdctl that the documentation names reaches the configuration of `pickd run`.
#[test]
fn the_variables_of_etcdctl_are_read() {
    let folder = Folder::new();
    let run = |config: &str| {
        let config = folder.write("pickd.toml", config);
        let mut command = pickd();
        command.args(["run", "--listen", "127.0.0.1:0", "--config", config.to_str().unwrap()]);
        command
    };
    let missing = folder.path("missing.pem");
    let missing = missing.to_str().unwrap();
    for (name, value, expected) in [
        ("ETCDCTL_ENDPOINTS", "ftp://10.0.0.1", "ETCDCTL_ENDPOINTS"),
        ("ETCDCTL_USER", "me", "a user without a password"),
        ("ETCDCTL_CERT", missing, "a certificate without its key"),
        ("ETCDCTL_KEY", missing, "a key without its certificate"),
    ] {
        let mut program = Program::start(run("[etcd]\n").env(name, value));
        assert_eq!(program.exit_code(SOON), Some(2), "{name}");
        until(SOON, &format!("{name}: {expected}"), || {
            program.stderr.all().join("\n").contains(expected).then_some(())
        });
    }
    // A CA file is read when the client is made.
    let mut program =
        Program::start(run("[etcd]\nendpoints = [\"https://127.0.0.1:9\"]\n").env("ETCDCTL_CACERT", missing));
    assert_eq!(program.exit_code(SOON), Some(1));
    until(SOON, "the missing file is named", || {
        program.stderr.all().join("\n").contains(missing).then_some(())
    });
    // A password completes the user of the file.
    let user = "[etcd]\nusername = \"me\"\n";
    assert_eq!(Program::start(&mut run(user)).exit_code(SOON), Some(2));
    let agent = Agent::start(run(user).env("ETCDCTL_PASSWORD", "secret"));
    assert_eq!(agent.get("/healthz").status, 200);
}
