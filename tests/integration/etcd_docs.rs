//! Checks `docs/etcd.md` and the README: their commands register the described instances, and their
//! configuration is valid.

use std::process::Command;

use crate::support::agent::{Agent, SOON, command};
use crate::support::etcd::{Etcd, etcdctl};
use crate::support::folder::Folder;
use crate::support::until;

/// The code blocks of this kind on a page, in order.
fn blocks(page: &str, kind: &str) -> Vec<String> {
    let text = std::fs::read_to_string(format!("{}/{page}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let mut found = Vec::new();
    let mut rest = text.as_str();
    while let Some((_, after)) = rest.split_once(&format!("```{kind}\n")) {
        let (block, after) = after.split_once("```").unwrap();
        found.push(block.to_owned());
        rest = after;
    }
    found
}

/// Runs a script in a shell with `etcdctl`, as a reader of the page does.
fn shell(script: &str, url: &str) {
    let status = Command::new("sh")
        .args(["-c", &format!("etcdctl() {{ \"$PROGRAM\" \"$@\"; }}\nset -e\n{script}")])
        .env("PROGRAM", etcdctl().get_program())
        .env("ETCDCTL_API", "3")
        .env("ETCDCTL_ENDPOINTS", url)
        .status()
        .unwrap();
    assert!(status.success(), "{script}");
}

#[test]
fn the_commands_of_the_readme_register_and_are_picked_by_weight() {
    let etcd = Etcd::start();
    let url = etcd.url(0);
    let commands = blocks("README.md", "sh").join("");
    let lines: Vec<&str> = commands.lines().filter(|line| line.starts_with("etcdctl ")).collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    shell(&lines.join("\n"), &url);
    let run = commands
        .lines()
        .find(|line| line.contains("-- run --etcd http://127.0.0.1:2379 "));
    let (_, flags) = run.unwrap().split_once("http://127.0.0.1:2379 ").unwrap();
    let agent = Agent::run(["--etcd", &url].into_iter().chain(flags.split_whitespace())).ready();
    let mut picked = Vec::new();
    for _ in 0..30 {
        let answer = agent.get("/pick/user-service").json();
        picked.push(format!(
            "{}={}",
            answer["id"].as_str().unwrap(),
            answer["address"].as_str().unwrap()
        ));
    }
    let count = |name: &str| picked.iter().filter(|id| *id == name).count();
    assert_eq!(
        (count("user-1=10.0.1.10:8080"), count("user-2=10.0.1.11:8080")),
        (10, 20),
        "{picked:?}"
    );
}

#[test]
fn its_commands_register_in_every_format() {
    let etcd = Etcd::start();
    // The page names the prefix of each format; go-zero alone needs its format, too.
    let prefixes = [
        ("/services", "auto"),
        ("user.rpc", "go-zero"),
        ("grpc", "auto"),
        ("/microservices", "auto"),
        ("/micro/registry", "auto"),
        ("/micro-registry", "auto"),
        ("kitex/registry-etcd", "auto"),
        ("/rpcx", "auto"),
        ("/skydns/local", "auto"),
        ("/apisix/upstreams", "auto"),
        ("/service/default/default/hello", "auto"),
        ("/jupiter", "auto"),
    ];
    let url = etcd.url(0);
    let mut text = format!("[etcd]\nendpoints = [\"{url}\"]\n");
    for (prefix, format) in prefixes {
        text += &format!("[[etcd.prefixes]]\nprefix = \"{prefix}\"\nformat = \"{format}\"\n");
    }
    let folder = Folder::new();
    let config = folder.write("pickd.toml", &text);
    let agent = Agent::run(["--config", config.to_str().unwrap()]).ready();
    let commands = blocks("docs/etcd.md", "sh");
    assert!(commands.len() >= 9, "{commands:?}");
    for block in &commands {
        shell(block, &url);
    }
    for (service, expected) in [
        ("user-service", "user-1=10.0.1.10:8080*1"),
        ("user.rpc", "7587870460981677828=10.0.1.11:8080*1"),
        ("orders", "orders-1=10.0.1.20:8080*2 orders-2=10.0.1.21:8080*1"),
        ("payments", "10.0.1.30:8080=10.0.1.30:8080*10"),
        ("helloworld", "3f1c=10.0.1.40:8000*10"),
        ("greeter", "greeter-7f=10.0.1.50:45123*1"),
        ("greeter-old", "greeter-8a=10.0.1.51:45123*1"),
        ("echo", "10.0.1.60:8888=10.0.1.60:8888*10"),
        ("Arith", "tcp@10.0.1.70:8972=10.0.1.70:8972*7"),
        ("dns-web", "x5=10.0.1.80:8080*100"),
        ("stringsvc", "10.0.1.12:8080=10.0.1.12:8080*1"),
        ("billing", "billing-1=10.0.1.22:8080*3 billing-2=10.0.1.23:8080*1"),
        ("user-app", "10.0.1.90:20000=10.0.1.90:20000*55"),
        (
            "checkout",
            "checkout/10.0.1.100:80=10.0.1.100:80*1 checkout/10.0.1.101:80=10.0.1.101:80*2",
        ),
        // The prefix has the name in it, so the version is the service.
        ("latest", "10.0.1.110:8888=10.0.1.110:8888*1"),
        ("grpc:catalog:v1:dev", "10.0.1.120:9091=10.0.1.120:9091*100"),
    ] {
        until(SOON, &format!("{service}: {expected}"), || {
            let answer = agent.get(&format!("/services/{service}")).json();
            let instances = answer["instances"].as_object()?;
            let found: Vec<String> = instances
                .iter()
                .map(|(id, it)| format!("{id}={}*{}", it["address"].as_str().unwrap(), it["weight"]))
                .collect();
            (found.join(" ") == expected).then_some(())
        });
    }
    let errors = agent.metric(r#"pickd_source_errors_total{reason="invalid_instance",source="etcd"}"#);
    assert_eq!(errors, Some(0.0));
}

#[test]
fn its_configuration_is_accepted() {
    let folder = Folder::new();
    for block in blocks("docs/etcd.md", "toml") {
        let path = folder.write("pickd.toml", &block);
        let output = command(["check", path.to_str().unwrap()]);
        assert!(
            output.status.success(),
            "{block}\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}
