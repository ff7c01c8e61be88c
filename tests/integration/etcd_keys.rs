//! Which service and which instance a key of etcd is: prefixes, paths and rights.

use std::io::Write;
use std::process::Stdio;

use crate::support::agent::{Agent, SOON, pickd};
use crate::support::etcd::Etcd;
use crate::support::folder::Folder;
use crate::support::pool::{ids, pool, until_picked};
use crate::support::until;

/// An agent beside this etcd, with this array of prefixes.
fn watching(etcd: &Etcd, prefixes: &str) -> Agent {
    let folder = Folder::new();
    let text = format!("[etcd]\nendpoints = [\"{}\"]\nprefixes = {prefixes}", etcd.url(0));
    let config = folder.write("pickd.toml", &text);
    Agent::run(["--config", config.to_str().unwrap()]).ready()
}

fn invalid(agent: &Agent) -> f64 {
    agent
        .metric(r#"pickd_source_errors_total{reason="invalid_instance",source="etcd"}"#)
        .unwrap()
}

fn code(agent: &Agent, service: &str) -> String {
    let answer = agent.get(&format!("/pick/{service}")).json();
    answer["code"].as_str().unwrap_or("picked").to_owned()
}

#[test]
fn rights_below_one_service_register_no_instance_of_another() {
    let mut etcd = Etcd::start();
    etcd.put("/services/payments/a", "10.0.0.1:80");
    for command in [
        "user add root:rootpw",
        "user grant-role root root",
        "user add team-a:teampw",
        "role add team-a",
        "role grant-permission team-a --prefix=true readwrite /services/team-a/",
        "user grant-role team-a team-a",
        "auth enable",
    ] {
        etcd.ctl(command.split(' '));
    }
    let folder = Folder::new();
    folder.write("password", "rootpw");
    let text = format!(
        "[etcd]\nendpoints = [\"{}\"]\nusername = \"root\"\npassword_file = \"password\"",
        etcd.url(0)
    );
    let config = folder.write("pickd.toml", &text);
    let agent = Agent::run(["--config", config.to_str().unwrap()]).ready();
    etcd.credentials = vec!["--user".to_owned(), "team-a:teampw".to_owned()];
    etcd.put("/services/team-a/payments/evil", "10.6.6.6:80");
    etcd.put("/services/team-a/t", "10.0.0.2:80");
    until_picked(&agent, "team-a", &["t"], SOON);
    assert_eq!(ids(&agent, "payments"), ["a"]);
    assert_eq!(invalid(&agent), 1.0);
    let line = agent
        .program
        .logged("values not valid, keeping what their keys registered before");
    let first = line[0]["first"].as_str().unwrap();
    assert!(
        first.starts_with("/services/team-a/payments/evil: deeper than <service>/<instance>"),
        "{first}"
    );
    // The same after a restart of the agent, from the list.
    let agent = Agent::run(["--config", config.to_str().unwrap()]).ready();
    until_picked(&agent, "team-a", &["t"], SOON);
    assert_eq!((ids(&agent, "payments"), invalid(&agent)), (vec!["a".to_owned()], 1.0));
}

#[test]
fn a_key_directly_below_its_prefix_is_refused_and_counted() {
    let etcd = Etcd::start();
    etcd.put("/services/web", "10.0.0.1:8080");
    etcd.put("/services/ok/a", "10.0.0.2:8080");
    let agent = watching(&etcd, r#"[{ prefix = "/services" }]"#);
    until_picked(&agent, "ok", &["a"], SOON);
    assert_eq!(invalid(&agent), 1.0);
    assert_eq!([code(&agent, "services"), code(&agent, "web")], ["unknown_service"; 2]);
    for (prefix, service, id) in [
        (r#"{ prefix = "/services", service = "fixed" }"#, "fixed", "web"),
        (r#"{ prefix = "/services", path = "{service}" }"#, "web", "web"),
        (r#"{ prefix = "/services", format = "go-zero" }"#, "services", "web"),
    ] {
        let agent = watching(&etcd, &format!("[{prefix}]"));
        until(SOON, prefix, || pool(&agent, service).contains_key(id).then_some(()));
        assert_eq!(invalid(&agent), 0.0, "{prefix}");
    }
}

#[test]
fn a_path_of_the_prefix_names_the_service_and_the_instance() {
    let etcd = Etcd::start();
    // As jupiter and ego write them: the URL of the instance is the last segment.
    let value = |address: &str| format!(r#"{{"name":"app","scheme":"grpc","address":"{address}"}}"#);
    etcd.put("/wsd-reg/app/providers/grpc://10.0.0.1:9092", &value("10.0.0.1:9092"));
    etcd.put("/wsd-reg/app/configurators/grpc:///1", "{}");
    etcd.put("/envs/prod/web/v1/a", "10.0.0.2:80");
    etcd.put("/envs/test/web/v1/a", "10.0.0.3:80");
    etcd.put("/regions/eu/web/web-0", "10.0.0.4:80");
    etcd.put("/regions/us/web/web-0", "10.0.0.5:80");
    let agent = watching(
        &etcd,
        r#"[
            { prefix = "/wsd-reg", path = "/{service}/providers/{instance}" },
            { prefix = "/envs", path = "/{env}/{service}/{version}/{instance}" },
            { prefix = "/regions", path = "*/{service}/{instance}" },
        ]"#,
    );
    until_picked(&agent, "app", &["grpc://10.0.0.1:9092"], SOON);
    // Two folders are two services, unless the path leaves them out.
    until_picked(&agent, "prod:web:v1", &["a"], SOON);
    until_picked(&agent, "test:web:v1", &["a"], SOON);
    until_picked(&agent, "web", &["eu/web-0", "us/web-0"], SOON);
    assert_eq!(invalid(&agent), 0.0, "what does not match is left out on purpose");

    // The id of an instance never depends on its neighbours: a drain stays with its machine.
    let drain = pickd()
        .args(["drain", "web", "eu/web-0", "--agent", &agent.url()])
        .output()
        .unwrap();
    assert!(drain.status.success(), "{}", String::from_utf8_lossy(&drain.stderr));
    until_picked(&agent, "web", &["us/web-0"], SOON);
    etcd.delete("/regions/us/web/web-0");
    etcd.put("/regions/asia/web/web-0", "10.0.0.6:80");
    until_picked(&agent, "web", &["asia/web-0"], SOON);

    etcd.put("/wsd-reg/app/providers/grpc://10.0.0.7:9092", &value("10.0.0.7:9092"));
    etcd.delete("/wsd-reg/app/providers/grpc://10.0.0.1:9092");
    until_picked(&agent, "app", &["grpc://10.0.0.7:9092"], SOON);
}

#[test]
fn one_empty_prefix_has_all_services_of_go_zero() {
    let etcd = Etcd::start();
    etcd.put("user.rpc/7587870460981677828", "10.0.0.1:8080");
    etcd.put("add.rpc/7587870460981677829", "10.0.0.2:8080");
    etcd.put("/registry/pods/default/x", "of another program");
    etcd.put("\u{1}/a", "10.0.0.9:80");
    let agent = watching(
        &etcd,
        r#"[{ prefix = "", path = "{service}/{instance}", format = "go-zero" }]"#,
    );
    until_picked(&agent, "user.rpc", &["7587870460981677828"], SOON);
    until_picked(&agent, "add.rpc", &["7587870460981677829"], SOON);
    etcd.put("new.rpc/1", "10.0.0.3:8080");
    etcd.put("~.rpc/1", "10.0.0.4:8080");
    etcd.delete("add.rpc/7587870460981677829");
    until_picked(&agent, "new.rpc", &["1"], SOON);
    until_picked(&agent, "~.rpc", &["1"], SOON);
    until(SOON, "its last key is gone", || {
        (code(&agent, "add.rpc") != "picked").then_some(())
    });
}

#[test]
fn a_dump_of_etcdctl_is_explained_key_by_key() {
    let etcd = Etcd::start();
    etcd.put("/services/web/a", "10.0.0.1:80");
    etcd.put("/services/eu/web/b", "10.0.0.2:80");
    etcd.put("/services/db/password", "S3cr3t");
    etcd.put("/services/folder", "");
    let dump = etcd.ctl(["get", "--prefix", "/services/", "-w", "json"]);
    let explained = |arguments: &[&str]| {
        let mut child = pickd()
            .args(["check", "--etcd-dump", "-"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(dump.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(!text.contains("S3cr3t") && output.stderr.is_empty(), "{text}");
        (output.status.code(), text)
    };
    let (exit, text) = explained(&[]);
    assert_eq!(exit, Some(1), "{text}");
    let line = |key: &str| {
        let line = text.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(line("/services/web/a"), "/services/web/a web a 10.0.0.1:80 1 unknown -");
    assert_eq!(
        line("/services/eu/web/b"),
        "/services/eu/web/b - - - - - refused: deeper than <service>/<instance> below the prefix: set `path` for such \
         keys (11 bytes); instance b of web until pickd 0.1"
    );
    assert!(line("/services/db/password").ends_with("(6 bytes)"));
    assert!(line("/services/folder").contains("ignored: the key of a folder"));
    assert_eq!(
        text.lines().last(),
        Some("4 keys with 1 instance, 2 refused, 2 moved since pickd 0.1")
    );

    let folder = Folder::new();
    let config = "[etcd]\nprefixes = [{ prefix = \"/services\", path = \"*/{service}/{instance}\" }]";
    let config = folder.write("pickd.toml", config);
    let (exit, text) = explained(&[config.to_str().unwrap()]);
    assert_eq!(exit, Some(0), "{text}");
    assert!(text.contains("web      eu/b"), "{text}");
}
