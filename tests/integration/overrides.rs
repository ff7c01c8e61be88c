//! Overrides of a running agent and explained picks: over TCP, over a Unix socket, by command.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::agent::{Agent, Program, SOON, pickd};
use crate::support::folder::Folder;
use crate::support::http::{Connection, Response};
use crate::support::until;

/// An agent over a file registry: `web` has `a`, `b` and `c/3,x`, `cache` is hashed, `plain` has no
/// weights.
struct World {
    agent: Agent,
    folder: Folder,
}

const CONFIG: &str = "\
[file]
path = \"services.toml\"
[defaults]
slow_start = 0
[services.web]
strategy = \"weighted_round_robin\"
[services.cache]
strategy = \"consistent_hash\"
[services.plain]
strategy = \"round_robin\"
";

fn registry(without: &str) -> String {
    let mut text = String::new();
    for (service, host) in [("web", 1), ("cache", 2), ("plain", 3)] {
        text.push_str(&format!("[[service]]\nname = \"{service}\"\n"));
        for (number, id) in ["a", "b", "c/3,x"].iter().enumerate() {
            if *id != without {
                text.push_str(&format!(
                    "[[service.instance]]\nid = \"{id}\"\nhost = \"10.0.{host}.{number}\"\nport = 80\nweight = 2\n"
                ));
            }
        }
    }
    text.push_str(
        "[[service]]\nname = \"mixed\"\n\
         [[service.instance]]\nid = \"passing\"\nhost = \"10.0.4.1\"\nport = 80\nstatus = \"passing\"\n\
         [[service.instance]]\nid = \"warning\"\nhost = \"10.0.4.2\"\nport = 80\nstatus = \"warning\"\n\
         [[service.instance]]\nid = \"critical\"\nhost = \"10.0.4.3\"\nport = 80\nstatus = \"critical\"\n\
         [[service.instance]]\nid = \"maintained\"\nhost = \"10.0.4.4\"\nport = 80\nstatus = \"maintenance\"\n\
         [[service.instance]]\nid = \"unweighted\"\nhost = \"10.0.4.5\"\nport = 80\nweight = 0\n\
         [[service.instance]]\nid = \"unknown\"\nhost = \"10.0.4.6\"\nport = 80\n",
    );
    text
}

fn world() -> World {
    world_with(CONFIG, &[])
}

fn world_with(config: &str, flags: &[&str]) -> World {
    let folder = Folder::new();
    folder.write("services.toml", &registry(""));
    let config = folder.write("pickd.toml", config);
    let agent = Agent::run([&["--config", config.to_str().unwrap()], flags].concat()).ready();
    World { agent, folder }
}

const JSON: &str = "Content-Type: application/json";

fn ask(address: SocketAddr, method: &str, target: &str, headers: &[&str], body: &str) -> Response {
    let mut connection = Connection::open(address).unwrap();
    let mut request = format!("{method} {target} HTTP/1.1\r\nContent-Length: {}\r\n", body.len());
    if !headers.iter().any(|line| line.starts_with("Host:")) {
        request.push_str("Host: localhost\r\n");
    }
    for line in headers {
        request.push_str(&format!("{line}\r\n"));
    }
    connection.send(format!("{request}\r\n{body}").as_bytes()).unwrap();
    connection.response(method).unwrap()
}

impl World {
    fn put(&self, path: &str, body: &str) -> Response {
        ask(self.agent.address, "PUT", &format!("/services/{path}"), &[JSON], body)
    }

    fn delete(&self, path: &str) -> Response {
        ask(self.agent.address, "DELETE", &format!("/services/{path}"), &[], "")
    }

    /// The ids of a number of picks.
    fn shares(&self, service: &str, picks: usize) -> BTreeMap<String, usize> {
        let mut connection = Connection::open(self.agent.address).unwrap();
        let mut shares = BTreeMap::new();
        for _ in 0..picks {
            let answer = connection.ask("GET", &format!("/pick/{service}"), &[]).unwrap();
            assert_eq!(answer.status, 200, "{}", answer.text());
            *shares.entry(id(&answer.json())).or_default() += 1;
        }
        shares
    }

    fn keyed(&self, key: usize) -> String {
        id(&self.agent.get(&format!("/pick/cache?key={key}")).json())
    }

    /// The explanation of an instance.
    fn explained(&self, service: &str, id: &str) -> Value {
        let all = self.agent.get(&format!("/explain/{service}")).json();
        let instances = all["instances"].as_array().unwrap();
        instances
            .iter()
            .find(|instance| instance["id"] == id)
            .cloned()
            .unwrap_or(Value::Null)
    }

    fn why(&self, service: &str, id: &str) -> Value {
        self.explained(service, id)["why"].clone()
    }
}

fn id(instance: &Value) -> String {
    instance["id"].as_str().unwrap().to_owned()
}

fn ids(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn problem(response: &Response) -> (u16, String) {
    (
        response.status,
        response.json()["code"].as_str().unwrap_or_default().to_owned(),
    )
}

#[test]
fn a_drained_instance_is_in_no_answer_from_the_very_next_pick_on() {
    let world = world();
    for service in ["web", "plain"] {
        for _ in 0..20 {
            assert_eq!(world.put(&format!("{service}/instances/a/drain"), "").status, 200);
            let mut connection = Connection::open(world.agent.address).unwrap();
            for _ in 0..6 {
                let answer = connection
                    .ask("GET", &format!("/pick/{service}?n=16"), &[])
                    .unwrap()
                    .json();
                let alternates = answer["alternates"].as_array().unwrap();
                let all: BTreeSet<String> = std::iter::once(&answer).chain(alternates).map(id).collect();
                assert_eq!(all, ids(&["b", "c/3,x"]));
            }
            assert_eq!(world.delete(&format!("{service}/instances/a/drain")).status, 200);
            assert_eq!(world.shares(service, 3).len(), 3, "and back at once");
        }
    }
    let status = |result: &str| {
        world
            .agent
            .metric(&format!("pickd_pool_instances{{service=\"web\",status=\"{result}\"}}"))
    };
    assert_eq!(status("unhealthy"), Some(0.0));
    world.put("web/instances/a/drain", r#"{"reason":"kernel update","ttl":600}"#);
    assert_eq!(status("unhealthy"), Some(1.0));
    assert_eq!(
        world.agent.metric("pickd_overrides{service=\"web\",kind=\"drain\"}"),
        Some(1.0)
    );
    assert_eq!(
        world.agent.metric("pickd_overrides{service=\"cache\",kind=\"drain\"}"),
        Some(0.0)
    );
    let detail = world.agent.get("/services/web").json()["instances"]["a"].clone();
    assert_eq!(
        (&detail["status"], &detail["available"], &detail["reason"]),
        (&json!("unhealthy"), &json!(false), &json!("drained"))
    );
    let admin = &detail["layers"]["admin"];
    assert_eq!(
        (&admin["state"], &admin["reason"]),
        (&json!("drained"), &json!("kernel update"))
    );
    assert!(
        admin["until_seconds"]
            .as_f64()
            .is_some_and(|left| (590.0..=600.0).contains(&left)),
        "{admin}"
    );
    assert!(admin["by"].as_str().unwrap().starts_with("127.0.0.1:"), "{admin}");
}

#[test]
fn all_drained_is_none_available() {
    let world = world();
    for id in ["a", "b", "c%2F3%2Cx"] {
        assert_eq!(world.put(&format!("plain/instances/{id}/drain"), "").status, 200);
    }
    assert_eq!(
        problem(&world.agent.get("/pick/plain")),
        (503, "none_available".to_owned())
    );
}

#[test]
fn a_drain_moves_only_its_own_keys_and_all_of_them_come_back() {
    let world = world();
    let before: Vec<String> = (0..300).map(|key| world.keyed(key)).collect();
    world.put("cache/instances/b/drain", "");
    let during: Vec<String> = (0..300).map(|key| world.keyed(key)).collect();
    for (was, is) in before.iter().zip(&during) {
        assert!(is != "b" && (was == "b" || was == is), "{was} -> {is}");
    }
    world.delete("cache/instances/b/drain");
    assert_eq!((0..300).map(|key| world.keyed(key)).collect::<Vec<_>>(), before);

    // Half of the registered weight gives up half of the keys; a higher weight has no effect on
    // keys.
    world.put("cache/instances/b/weight", r#"{"weight":1}"#);
    let halved: Vec<String> = (0..300).map(|key| world.keyed(key)).collect();
    let (own, kept) = before
        .iter()
        .zip(&halved)
        .filter(|(was, _)| *was == "b")
        .fold((0, 0), |(own, kept), (_, is)| (own + 1, kept + usize::from(is == "b")));
    assert!(kept * 4 > own && kept * 4 < own * 3, "{kept} of {own}");
    assert!(before.iter().zip(&halved).all(|(was, is)| was == "b" || was == is));
    world.put("cache/instances/b/weight", r#"{"weight":200}"#);
    assert_eq!((0..300).map(|key| world.keyed(key)).collect::<Vec<_>>(), before);
}

#[test]
fn a_drain_ends_with_its_time_and_is_told_once() {
    let world = world();
    let ordered = Instant::now();
    world.put("web/instances/a/drain", r#"{"reason":"short","ttl":"500ms"}"#);
    // An order without an end, and an order with a later end, change nothing.
    world.put("plain/instances/a/drain", "");
    world.put("web/instances/b/weight", r#"{"weight":9,"ttl":3600}"#);
    while world.agent.get("/services/web").json()["instances"]["a"]["available"] == json!(false) {
        assert!(ordered.elapsed() < Duration::from_secs(5));
        std::thread::sleep(Duration::from_millis(5));
    }
    let took = ordered.elapsed();
    println!("a drain of 500 ms ended after {took:?}");
    assert!(
        (Duration::from_millis(499)..Duration::from_millis(1_000)).contains(&took),
        "{took:?}"
    );
    let ended = world.agent.program.wait_for_log("override expired", |_| true);
    assert_eq!(
        (
            &ended["service"],
            &ended["instance"],
            &ended["override"],
            &ended["reason"]
        ),
        (&json!("web"), &json!("a"), &json!("drain"), &json!("short")),
        "{ended}"
    );
    assert_eq!(world.why("plain", "a"), json!(["drained"]));
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(world.agent.program.logged("override expired").len(), 1);
}

#[test]
fn each_change_is_logged_once_with_origin_and_reason() {
    let world = world();
    world.put(
        "web/instances/c%2F3%2Cx/drain",
        r#"{"reason":"disk \"full\"","ttl":"10m"}"#,
    );
    world.put("web/instances/a/weight", r#"{"weight":7,"reason":"warm"}"#);
    world.delete("web/instances/a/weight");
    world.delete("web/instances/c%2F3%2Cx/drain");
    // These requests change nothing.
    world.delete("web/instances/a/weight");
    world.delete("web/instances/a/drain");
    world.put("web/instances/absent/drain", "");
    world.put("web/instances/a/weight", r#"{"weight":-7}"#);
    let drained = world.agent.program.wait_for_log("instance drained", |_| true);
    assert_eq!(
        (
            &drained["service"],
            &drained["instance"],
            &drained["reason"],
            &drained["ttl"]
        ),
        (&json!("web"), &json!("c/3,x"), &json!("disk \"full\""), &json!("10m")),
        "{drained}"
    );
    assert!(drained["by"].as_str().unwrap().starts_with("127.0.0.1:"), "{drained}");
    let weight = world.agent.program.wait_for_log("weight overridden", |_| true);
    assert_eq!(
        (&weight["weight"], &weight["reason"]),
        (&json!(7), &json!("warm")),
        "{weight}"
    );
    world
        .agent
        .program
        .wait_for_log("instance undrained", |line| line["instance"] == "c/3,x");
    for message in [
        "instance drained",
        "weight overridden",
        "instance undrained",
        "weight of the registry restored",
    ] {
        assert_eq!(world.agent.program.logged(message).len(), 1, "{message}");
    }
}

#[test]
fn orders_outlive_re_registration_and_reloads() {
    let world = world();
    world.put("web/instances/a/drain", r#"{"reason":"mine"}"#);
    world.put("web/instances/b/weight", r#"{"weight":6}"#);
    let gone = |id: &str| {
        until(SOON, "the registry is read", || {
            world.explained("web", id).is_null().then_some(())
        })
    };
    let back = |id: &str| {
        until(SOON, "the registry is read", || {
            (!world.explained("web", id).is_null()).then_some(())
        })
    };
    let all_is_as_ordered = || {
        assert_eq!(
            world.shares("web", 80),
            BTreeMap::from([("b".to_owned(), 60), ("c/3,x".to_owned(), 20)])
        );
        assert_eq!(world.explained("web", "a")["layers"]["admin"]["reason"], "mine");
    };
    all_is_as_ordered();

    world.folder.write("services.toml", &registry("a"));
    gone("a");
    world.folder.write("services.toml", &registry(""));
    back("a");
    all_is_as_ordered();

    // An override for an instance that has left acts when the instance returns.
    world.folder.write("services.toml", &registry("c/3,x"));
    gone("c/3,x");
    let waiting = world.put("web/instances/c%2F3%2Cx/drain", "");
    assert_eq!((waiting.status, &waiting.json()["instance"]), (200, &Value::Null));
    assert!(waiting.json()["drain"].is_object());
    world.folder.write("services.toml", &registry(""));
    back("c/3,x");
    assert_eq!(world.why("web", "c/3,x"), json!(["drained"]));
    world.delete("web/instances/c%2F3%2Cx/drain");

    // A reload, and another strategy.
    world.folder.write(
        "pickd.toml",
        &CONFIG.replace("weighted_round_robin", "least_connections"),
    );
    world.agent.program.signal("HUP");
    until(SOON, "the reload", || {
        (world.agent.get("/explain/web").json()["strategy"] == "least_connections").then_some(())
    });
    all_is_as_ordered();

    // The registry becomes unreadable.
    std::fs::remove_file(world.folder.path("services.toml")).unwrap();
    until(SOON, "the loss", || {
        world.agent.get("/pick/web").json().get("stale_seconds").cloned()
    });
    all_is_as_ordered();
}

#[test]
fn a_weight_takes_the_place_of_the_registered_one() {
    let world = world();
    let answer = world
        .put("web/instances/a/weight", r#"{"weight":4,"reason":"bigger","ttl":"1h"}"#)
        .json();
    let order = &answer["weight_override"];
    assert_eq!(
        (&order["weight"], &order["reason"]),
        (&json!(4), &json!("bigger")),
        "{answer}"
    );
    assert_eq!(answer["instance"]["effective_weight"], json!(4.0));
    assert_eq!(answer["instance"]["factors"]["weight"], json!(2));
    let shares = |a: usize, b: usize, c: usize| {
        let all = [("a", a), ("b", b), ("c/3,x", c)]
            .into_iter()
            .filter(|(_, count)| *count > 0);
        all.map(|(id, count)| (id.to_owned(), count))
            .collect::<BTreeMap<_, _>>()
    };
    assert_eq!(world.shares("web", 80), shares(40, 20, 20));
    world.put("web/instances/a/weight", r#"{"weight":0}"#);
    assert_eq!(world.shares("web", 80), shares(0, 40, 40));
    assert_eq!(world.why("web", "a"), json!(["override_weight_zero"]));
    let answer = world.delete("web/instances/a/weight").json();
    assert_eq!(
        (&answer["weight_override"], &answer["instance"]["available"]),
        (&Value::Null, &json!(true))
    );
    assert_eq!(world.shares("web", 81), shares(27, 27, 27));
    // `round_robin` ignores weights other than 0.
    world.put("plain/instances/a/weight", r#"{"weight":9}"#);
    assert_eq!(world.shares("plain", 30), shares(10, 10, 10));
    // An instance of registered weight 0 can be given a weight.
    world.put("mixed/instances/unweighted/weight", r#"{"weight":1}"#);
    assert_eq!(world.explained("mixed", "unweighted")["available"], json!(true));
}

#[test]
fn what_cannot_be_ordered_is_refused() {
    let world = world();
    let long = format!(r#"{{"reason":"{}"}}"#, "x".repeat(257));
    let huge = format!(r#"{{"reason":"{}"}}"#, "x".repeat(20_000));
    for (path, body, status, code) in [
        ("absent/instances/a/drain", "", 404, "unknown_service"),
        ("web/instances/absent/drain", "", 404, "unknown_instance"),
        (
            "web/instances/absent/weight",
            r#"{"weight":1}"#,
            404,
            "unknown_instance",
        ),
        ("a%0Ab/instances/a/drain", "", 400, "invalid_request"),
        ("web/instances/%0A/drain", "", 400, "invalid_request"),
        ("web/instances/%ff/drain", "", 400, "invalid_request"),
        ("web/instances/a/drain?force=1", "", 400, "unknown_parameter"),
        ("web/instances/a/drain", "{", 400, "invalid_request"),
        ("web/instances/a/drain", "[]", 400, "invalid_request"),
        ("web/instances/a/drain", "null", 400, "invalid_request"),
        ("web/instances/a/drain", r#"{"because":"x"}"#, 400, "invalid_request"),
        ("web/instances/a/drain", r#"{"reason":1}"#, 400, "invalid_request"),
        ("web/instances/a/drain", r#"{"reason":"a\nb"}"#, 400, "invalid_request"),
        ("web/instances/a/drain", &long, 400, "invalid_request"),
        ("web/instances/a/drain", r#"{"ttl":0}"#, 400, "invalid_request"),
        ("web/instances/a/drain", r#"{"ttl":-1}"#, 400, "invalid_request"),
        ("web/instances/a/drain", r#"{"ttl":"soon"}"#, 400, "invalid_request"),
        ("web/instances/a/drain", r#"{"ttl":[1]}"#, 400, "invalid_request"),
        ("web/instances/a/drain", r#"{"ttl":1e99}"#, 400, "invalid_request"),
        (
            "web/instances/a/drain",
            r#"{"reason":"a","reason":"b"}"#,
            400,
            "invalid_request",
        ),
        ("web/instances/a/weight", "", 400, "invalid_request"),
        ("web/instances/a/weight", "{}", 400, "invalid_request"),
        ("web/instances/a/weight", r#"{"weight":65536}"#, 400, "invalid_request"),
        ("web/instances/a/weight", r#"{"weight":1.5}"#, 400, "invalid_request"),
        ("web/instances/a/weight", r#"{"weight":"1"}"#, 400, "invalid_request"),
        (
            "web/instances/a/weight",
            r#"{"weight":1,"factor":2}"#,
            400,
            "invalid_request",
        ),
        ("web/instances/a/drain", &huge, 413, "too_large"),
        ("web/instances/a/weight", &huge, 413, "too_large"),
        ("web/instances/a/pause", "", 404, "not_found"),
        ("web/instances/a", "", 404, "not_found"),
    ] {
        let response = world.put(path, body);
        assert_eq!(
            problem(&response),
            (status, code.to_owned()),
            "{path} {body}: {}",
            response.text()
        );
        assert_eq!(response.header("content-type"), Some("application/problem+json"));
    }
    let address = world.agent.address;
    for kind in [
        &[][..],
        &["Content-Type: text/plain"],
        &["Content-Type: application/x-www-form-urlencoded"],
    ] {
        let target = "/services/web/instances/a/drain";
        let response = ask(address, "PUT", target, kind, "{}");
        assert_eq!(
            problem(&response),
            (415, "unsupported_media_type".to_owned()),
            "{kind:?}"
        );
    }
    for path in ["drain", "weight"] {
        for method in ["GET", "POST", "PATCH", "OPTIONS"] {
            let response = ask(address, method, &format!("/services/web/instances/a/{path}"), &[], "");
            assert_eq!(
                problem(&response),
                (405, "method_not_allowed".to_owned()),
                "{method} {path}"
            );
            assert_eq!(response.header("allow"), Some("PUT, DELETE"));
        }
    }
    assert_eq!(world.agent.get("/explain/absent").status, 404);
    assert_eq!(
        problem(&world.agent.get("/explain/web?n=1")),
        (400, "unknown_parameter".to_owned())
    );
    let found = world.agent.get("/explain/web").json();
    assert_eq!(found["available_instances"], 3, "nothing of it changed anything");
    for path in ["/v1/services/web/instances/a/drain", "/services/web/instances/a/drain"] {
        assert_eq!(
            ask(
                address,
                "PUT",
                path,
                &["Content-Type: application/json; charset=utf-8"],
                "{}"
            )
            .status,
            200
        );
        assert_eq!(ask(address, "DELETE", path, &[], "").status, 200);
    }
    assert_eq!(world.agent.get("/v1/explain/web").status, 200);
}

/// The address of a listener on 0.0.0.0, as this machine reaches the listener.
fn open_address(agent: &Agent) -> SocketAddr {
    let lines = agent.program.logged("listening");
    let open = lines
        .iter()
        .find_map(|line| line["address"].as_str()?.strip_prefix("0.0.0.0:").map(str::to_owned));
    format!("127.0.0.1:{}", open.unwrap()).parse().unwrap()
}

#[test]
fn over_the_network_the_token_decides_and_is_never_shown() {
    let folder = Folder::new();
    folder.write("services.toml", &registry(""));
    let config = folder.write("pickd.toml", &format!("[api]\nadmin_token_file = \"admin\"\n{CONFIG}"));
    folder.write("admin", "canary-one\n");
    let config = config.to_str().unwrap();
    let agent = Agent::run(["--config", config, "--listen", "0.0.0.0:0", "--log", "trace"]).ready();
    let open = open_address(&agent);
    let path = "/services/web/instances/a/drain";
    let with = |token: &str| {
        let header = format!("Authorization: Bearer {token}");
        let response = ask(open, "PUT", path, &[&header], "");
        (response.status, response.text().to_owned())
    };
    let forbidden =
        |(status, text): (u16, String)| status == 403 && text.contains("\"forbidden\"") && !text.contains("canary");
    for method in ["PUT", "DELETE"] {
        assert_eq!(
            problem(&ask(open, method, path, &[], "")),
            (403, "forbidden".to_owned())
        );
    }
    assert!(forbidden(with("canary-on")) && forbidden(with("canary-onee")) && forbidden(with("")));
    assert_eq!(with("canary-one").0, 200);
    // Other routes need no token.
    assert_eq!(ask(open, "GET", "/explain/web", &["Host: wherever"], "").status, 200);
    // Loopback needs no token.
    assert_eq!(ask(agent.address, "DELETE", path, &[], "").status, 200);

    // A new token counts at once; while the file is empty or missing, the previous token counts.
    folder.write("admin", "canary-two");
    assert!(forbidden(with("canary-one")));
    assert_eq!(with("canary-two").0, 200);
    folder.write("admin", "");
    assert_eq!(with("canary-two").0, 200);
    std::fs::remove_file(folder.path("admin")).unwrap();
    assert_eq!(with("canary-two").0, 200);
    assert!(forbidden(with("")));
    let told = agent.program.wait_for_log("the admin token cannot be read", |_| true);
    assert_eq!(told["kept"], true);
    assert_eq!(agent.program.logged("the admin token cannot be read").len(), 1);

    // The commands send the token.
    folder.write("admin", "canary-three");
    let token_file = folder.path("admin");
    let drain = |extra: &[&str]| {
        let url = format!("http://{open}");
        let words = [&["drain", "web", "a", "--agent", &url], extra].concat();
        pickd().args(words).output().unwrap()
    };
    let refused = drain(&[]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let done = drain(&["--admin-token-file", token_file.to_str().unwrap()]);
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    assert_eq!(
        String::from_utf8_lossy(&done.stdout),
        "a: unhealthy (drained), effective weight 0.0\n"
    );

    let told = [
        agent.program.stderr.all().join("\n"),
        agent.program.stdout.all().join("\n"),
        agent.get("/metrics").text().to_owned(),
        agent.get("/services/web").text().to_owned(),
        agent.get("/explain/web").text().to_owned(),
        format!("{refused:?}{done:?}"),
    ];
    assert!(told.iter().all(|text| !text.contains("canary")), "the token is told");
    assert!(told[0].len() > 1_000, "and this is what was logged");
}

#[test]
fn over_the_network_without_a_token_overrides_are_refused() {
    let world = world_with(CONFIG, &["--listen", "0.0.0.0:0"]);
    let open = open_address(&world.agent);
    for headers in [&[][..], &["Authorization: Bearer "], &["Authorization: Bearer x"]] {
        let response = ask(open, "PUT", "/services/web/instances/a/drain", headers, "");
        assert_eq!(problem(&response), (403, "forbidden".to_owned()), "{headers:?}");
    }
    // A reload sets a token file, and another reload removes the token file.
    let target = "/services/web/instances/a/drain";
    let status = || ask(open, "PUT", target, &["Authorization: Bearer canary"], "").status;
    world.folder.write("admin", "canary");
    world
        .folder
        .write("pickd.toml", &format!("[api]\nadmin_token_file = \"admin\"\n{CONFIG}"));
    world.agent.program.signal("HUP");
    until(SOON, "the token counts", || (status() == 200).then_some(()));
    world.folder.write("pickd.toml", CONFIG);
    world.agent.program.signal("HUP");
    until(SOON, "overrides are refused again", || (status() == 403).then_some(()));
}

#[test]
fn accepting_a_source_needs_the_rights_of_an_override() {
    let world = world_with(CONFIG, &["--listen", "0.0.0.0:0"]);
    let (own, open) = (world.agent.address, open_address(&world.agent));
    let accept = "/sources/file/accept";
    let done = ask(own, "POST", accept, &[], "");
    assert_eq!(
        (done.status, done.json()),
        (200, json!({ "source": "file", "released_instances": 0 }))
    );
    assert_eq!(ask(own, "POST", "/v1/sources/file/accept", &[], "").status, 200);
    for (address, method, target, headers, body, expected) in [
        (open, "POST", accept, "", "", (403, "forbidden")),
        (open, "POST", accept, "Authorization: Bearer x", "", (403, "forbidden")),
        (own, "POST", accept, "Origin: http://evil.test", "", (403, "forbidden")),
        (own, "POST", "/sources/consul/accept", "", "", (404, "unknown_source")),
        (own, "POST", "/sources/a%20b/accept", "", "", (404, "unknown_source")),
        (own, "POST", "/sources/%ff/accept", "", "", (400, "invalid_request")),
        (own, "POST", accept, "", "{\"reason\":\"x\"}", (400, "invalid_request")),
        (
            own,
            "POST",
            "/sources/file/accept?all=1",
            "",
            "",
            (400, "unknown_parameter"),
        ),
        (own, "GET", accept, "", "", (405, "method_not_allowed")),
        (own, "DELETE", accept, "", "", (405, "method_not_allowed")),
    ] {
        let headers: Vec<&str> = [headers].into_iter().filter(|header| !header.is_empty()).collect();
        let refused = ask(address, method, target, &headers, body);
        let (status, code) = expected;
        assert_eq!(
            problem(&refused),
            (status, code.to_owned()),
            "{method} {target} {headers:?}"
        );
    }
    let allow = ask(own, "PUT", accept, &[], "");
    assert_eq!((allow.status, allow.header("allow")), (405, Some("POST")));

    // The same by the command line.
    let accept = |source: &str| {
        let url = format!("http://{own}");
        let output = pickd().args(["accept", source, "--agent", &url]).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    assert_eq!(accept("file"), (Some(0), "file: no instance was held\n".to_owned()));
    assert_eq!(accept("etcd"), (Some(3), String::new()));
    assert_eq!(accept("zookeeper"), (Some(2), String::new()));
}

#[test]
fn web_pages_of_another_origin_may_not_override() {
    let world = world();
    let address = world.agent.address;
    let own = format!("Origin: http://{address}");
    let host = format!("Host: {address}");
    for (headers, status) in [
        (&["Origin: http://evil.test"][..], 403),
        (&["Origin: null"], 403),
        (&["Sec-Fetch-Site: cross-site"], 403),
        (&["Sec-Fetch-Site: same-site"], 403),
        (&["Host: evil.test", "Origin: http://evil.test"], 421),
        (&[&host, &own, "Sec-Fetch-Site: same-origin"], 200),
    ] {
        for method in ["PUT", "DELETE"] {
            let response = ask(address, method, "/services/web/instances/a/drain", headers, "");
            assert_eq!(response.status, status, "{method} {headers:?}: {}", response.text());
        }
    }
}

#[test]
fn explain_gives_the_true_reason_in_each_state() {
    let world = world();
    for (id, why, available) in [
        ("passing", json!(["registry_passing"]), true),
        ("warning", json!(["registry_warning"]), true),
        ("unknown", json!(["nobody_objects"]), true),
        ("critical", json!(["registry_critical"]), false),
        ("maintained", json!(["registry_maintenance"]), false),
        ("unweighted", json!(["weight_zero"]), false),
    ] {
        let explained = world.explained("mixed", id);
        assert_eq!(
            (&explained["why"], &explained["available"]),
            (&why, &json!(available)),
            "{explained}"
        );
        assert_eq!(explained["score"].is_null(), !available, "{explained}");
    }
    let warned = world.explained("mixed", "warning");
    assert_eq!(
        (&warned["factors"]["degraded"], &warned["effective_weight"]),
        (&json!(0.25), &json!(0.25))
    );
    // Effective weights of 1, 1/4 and 1 share the picks.
    assert_eq!(warned["score"], json!({"kind": "share", "value": 0.25 / 2.25}));

    world.put("mixed/instances/critical/drain", "");
    assert_eq!(world.why("mixed", "critical"), json!(["drained", "registry_critical"]));
    assert_eq!(
        world.explained("mixed", "critical")["layers"]["registry"]["state"],
        "critical"
    );
    world.delete("mixed/instances/critical/drain");
    assert_eq!(world.why("mixed", "critical"), json!(["registry_critical"]));

    // A key is picked as explained, and an explanation counts no pick.
    let picks = world.agent.metric("pickd_picks_total{service=\"cache\",result=\"ok\"}");
    for key in 0..20 {
        let explained = world.agent.get(&format!("/explain/cache?key={key}")).json();
        let order: Vec<_> = explained["key"]["ring_order"].as_array().unwrap().clone();
        assert_eq!((order.len(), &order[0]), (3, &explained["key"]["instance"]));
    }
    assert_eq!(
        world.agent.metric("pickd_picks_total{service=\"cache\",result=\"ok\"}"),
        picks
    );
    for key in 0..20 {
        let explained = world.agent.get(&format!("/explain/cache?key={key}")).json();
        assert_eq!(explained["key"]["instance"], world.keyed(key));
    }
    world.put("cache/instances/a/drain", "");
    for key in 0..20 {
        let explained = world.agent.get(&format!("/explain/cache?key={key}")).json();
        let order: Vec<_> = explained["key"]["ring_order"].as_array().unwrap().clone();
        assert_eq!(order.len(), 3, "the ring is as it was");
        let first = order.iter().find(|id| **id != "a");
        assert_eq!(
            (Some(&explained["key"]["instance"]), world.keyed(key)),
            (first, id(&json!({"id": first})))
        );
    }
    let ring: f64 = ["a", "b", "c/3,x"]
        .iter()
        .filter_map(|id| world.explained("cache", id)["score"]["value"].as_f64())
        .sum();
    assert!(
        ring > 0.5 && ring < 0.8,
        "two of three, drained ones have no score: {ring}"
    );
    let plain = world.agent.get("/explain/plain?key=x").json();
    assert_eq!(plain["key"], Value::Null);
    assert!(plain.as_object().unwrap().contains_key("key"));
    assert!(
        !world
            .agent
            .get("/explain/plain")
            .json()
            .as_object()
            .unwrap()
            .contains_key("key")
    );
    assert!(
        plain["view_build_seconds"]
            .as_f64()
            .is_some_and(|seconds| seconds > 0.0 && seconds < 1.0)
    );
}

/// Sends a request over a Unix socket.
fn over_socket(path: &Path, request: &str) -> std::io::Result<String> {
    use std::io::{Read, Write};
    let mut stream = std::os::unix::net::UnixStream::connect(path)?;
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(
        format!("{request} HTTP/1.1\r\nHost: evil.test\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").as_bytes(),
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::MetadataExt;
    std::fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

/// The exit code and the output of an agent that does not start.
fn refused(folder: &Folder, listen: &str) -> (Option<i32>, String) {
    let services = folder.path("services.toml");
    let mut program = Program::start(pickd().args(["run", "--listen", listen, "--file"]).arg(services));
    let code = program.exit_code(SOON);
    // The process has ended, and its last lines may still be unread.
    let said = until(SOON, "what it said", || {
        let said = program.stderr.all().join("\n");
        (!said.is_empty()).then_some(said)
    });
    (code, said)
}

fn socket_world() -> (World, PathBuf) {
    let folder = Folder::new();
    let socket = folder.path("p.sock");
    folder.write("services.toml", &registry(""));
    let text = format!(
        "[api]\nlisten = [\"127.0.0.1:0\", \"unix:{}\"]\n{CONFIG}",
        socket.display()
    );
    let config = folder.write("pickd.toml", &text);
    let agent = Agent::start(pickd().args(["run", "--config", config.to_str().unwrap()])).ready();
    (World { agent, folder }, socket)
}

#[test]
fn a_unix_socket_has_its_mode_serves_everything_and_goes_with_the_agent() {
    let (mut world, socket) = socket_world();
    assert_eq!(mode(&socket), 0o660);
    for line in world.agent.program.logged("listening") {
        let address = line["address"].as_str().unwrap();
        assert!(address.starts_with("127.0.0.1:") || address == format!("unix:{}", socket.display()));
    }
    // Any `Host` is accepted, since no web page can reach a Unix socket.
    assert!(
        over_socket(&socket, "GET /pick/web")
            .unwrap()
            .starts_with("HTTP/1.1 200 ")
    );
    assert!(
        over_socket(&socket, "PUT /services/web/instances/a/drain")
            .unwrap()
            .starts_with("HTTP/1.1 200 ")
    );
    let drained = world.agent.program.wait_for_log("instance drained", |_| true);
    assert!(drained["by"].as_str().unwrap().starts_with("unix, uid "), "{drained}");

    world.agent.program.signal("TERM");
    assert_eq!(world.agent.program.exit_code(SOON), Some(0));
    assert!(!socket.exists(), "removed");
    assert_eq!(
        std::fs::read_dir(world.folder.path("")).unwrap().count(),
        2,
        "and nothing else is left"
    );
}

#[test]
fn a_socket_in_use_is_refused_and_an_abandoned_socket_is_replaced() {
    let (mut world, socket) = socket_world();
    let listen = format!("unix:{}", socket.display());
    let (code, said) = refused(&world.folder, &listen);
    assert_eq!(code, Some(1));
    assert!(
        said.contains(&format!("cannot listen on {listen}: a process listens on this socket")),
        "{said}"
    );
    assert!(
        over_socket(&socket, "GET /healthz")
            .unwrap()
            .starts_with("HTTP/1.1 200 "),
        "the first one serves on"
    );

    world.agent.program.signal("KILL");
    world.agent.program.exit_code(SOON);
    assert!(socket.exists(), "left behind");
    let services = world.folder.path("services.toml");
    let words = ["run", "--listen", "127.0.0.1:0", "--listen", &listen, "--file"];
    let next = Agent::start(pickd().args(words).arg(services)).ready();
    assert!(
        over_socket(&socket, "GET /healthz")
            .unwrap()
            .starts_with("HTTP/1.1 200 ")
    );
    drop(next);
    assert!(!socket.exists());
}

#[test]
fn what_is_no_socket_is_refused_and_left_alone() {
    let folder = Folder::new();
    folder.write("services.toml", &registry(""));
    let (file, link) = (folder.path("file"), folder.path("link"));
    std::fs::write(&file, "precious").unwrap();
    std::os::unix::fs::symlink(&file, &link).unwrap();
    for (path, expected) in [
        (&file, "the path exists and is not a socket"),
        (&link, "the path is a symbolic link"),
        (
            &folder.path("missing/p.sock"),
            "the folder of the socket does not exist",
        ),
    ] {
        let (code, said) = refused(&folder, &format!("unix:{}", path.display()));
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(expected), "{said}");
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
    assert!(std::fs::symlink_metadata(&link).unwrap().file_type().is_symlink());
}

#[test]
fn a_reload_adds_and_removes_sockets_and_changes_their_mode() {
    let (world, socket) = socket_world();
    let tcp = world.agent.address;
    let reload = |listen: &[&Path], rest: &str| {
        let listen: Vec<_> = listen
            .iter()
            .map(|path| format!("\"unix:{}\"", path.display()))
            .collect();
        let listen = format!(
            "[api]\nlisten = [\"127.0.0.1:0\", {}]\n{rest}\n{CONFIG}",
            listen.join(", ")
        );
        world.folder.write("pickd.toml", &listen);
        world.agent.program.signal("HUP");
    };
    let two = world.folder.path("two.sock");
    let serves =
        |path: &Path| over_socket(path, "GET /healthz").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200 "));
    reload(&[&socket, &two], "");
    until(SOON, "the second socket", || serves(&two).then_some(()));
    assert!(serves(&socket));
    reload(&[&socket, &two], "socket_mode = \"0600\"");
    until(SOON, "the mode", || {
        (mode(&socket) == 0o600 && mode(&two) == 0o600).then_some(())
    });
    // A group that does not exist refuses the whole reload.
    reload(&[&two], "socket_mode = \"0640\"\nsocket_group = \"no-such-group\"");
    world
        .agent
        .program
        .wait_for_log("configuration rejected, keeping the previous one", |line| {
            line["error"]
                .as_str()
                .is_some_and(|error| error.contains("no-such-group"))
        });
    assert!(serves(&socket) && serves(&two) && mode(&two) == 0o600);
    reload(&[&two], "socket_mode = \"0600\"\nsocket_group = \"0\"");
    until(SOON, "the first socket goes", || (!socket.exists()).then_some(()));
    assert!(serves(&two));
    assert_eq!(world.agent.address, tcp);
    assert_eq!(world.agent.get("/healthz").status, 200);
}

#[test]
fn every_client_command_speaks_over_a_unix_socket() {
    let (world, socket) = socket_world();
    let agent = format!("unix:{}", socket.display());
    let run = |line: &str| {
        let output = pickd()
            .args(line.split(' '))
            .args(["--agent", &agent])
            .output()
            .unwrap();
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (output.status.code().unwrap(), said)
    };
    for (line, code, says) in [
        ("pick web", 0, "10.0.1."),
        ("pick absent", 3, "unknown"),
        ("services", 0, "weighted_round_robin"),
        ("services web", 0, "10.0.1.0:80"),
        ("healthcheck", 0, "ready"),
        (
            "drain web a --reason update --ttl 10m",
            0,
            "a: unhealthy (drained), effective weight 0.0",
        ),
        ("explain web", 0, "drained (update)"),
        ("undrain web a", 0, "a: unknown (nobody_objects), effective weight 2.0"),
        (
            "weight web c/3,x 5",
            0,
            "c/3,x: unknown (nobody_objects), effective weight 5.0",
        ),
        ("weight web c/3,x --clear", 0, "effective weight 2.0"),
        ("explain cache --key 7", 0, "the key leads to "),
        ("explain plain --key 7", 0, "ignores keys"),
        ("explain absent", 3, "unknown"),
        ("drain web absent", 3, "no instance"),
        ("drain absent a", 3, "unknown"),
        ("weight web a 65536", 2, "65536"),
        ("drain web a --ttl 0s", 2, "ttl"),
        ("drain web a --output json", 0, "\"why\":[\"drained\"]"),
    ] {
        let (found, said) = run(line);
        assert_eq!(found, code, "{line}: {said}");
        assert!(said.contains(says), "{line}: {said}");
    }
    drop(world);
    let (code, said) = run("drain web a");
    assert_eq!(code, 69, "{said}");
    assert!(said.contains("no agent answers at unix:"), "{said}");
}

#[test]
fn the_documented_commands_do_what_the_page_says() {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/overrides.md")).unwrap();
    let folder = Folder::new();
    let socket = folder.path("p.sock");
    folder.write(
        "services.toml",
        "[[service]]\nname = \"user-service\"\n\
         [[service.instance]]\nid = \"user-1@node-a\"\nhost = \"10.0.0.1\"\nport = 80\n\
         [[service.instance]]\nid = \"user-2@node-a\"\nhost = \"10.0.0.2\"\nport = 80\n",
    );
    folder.write("admin-token", "canary");
    // The configuration of the page, in the folder of the test and on a free port.
    let (_, rest) = page.split_once("```toml\n").unwrap();
    let text = rest.split_once("```").unwrap().0;
    let text = text
        .replace("127.0.0.1:7425", "127.0.0.1:0\", \"0.0.0.0:0")
        .replace("/run/pickd/pickd.sock", socket.to_str().unwrap())
        .replace("[api]\n", "[api]\nadmin_token_file = \"admin-token\"\n");
    let config = folder.write("pickd.toml", &text);
    let agent = Agent::start(pickd().args(["run", "--config", config.to_str().unwrap()])).ready();
    let mut run = 0;
    let mut lines = page
        .split("```sh\n")
        .skip(1)
        .flat_map(|rest| rest.split("```").next().unwrap().lines());
    for line in lines.by_ref().filter(|line| line.starts_with("pickd ")) {
        // The agent of this test has a file in place of Consul.
        let line = line
            .replace("accept consul", "accept file")
            .replace("http://10.0.0.7:7425", &format!("http://{}", open_address(&agent)))
            .replace("/etc/pickd/admin-token", folder.path("admin-token").to_str().unwrap())
            .replace("/run/pickd/pickd.sock", socket.to_str().unwrap());
        let binary = env!("CARGO_BIN_EXE_pickd");
        let line = line.replacen("pickd", binary, 1);
        // The lines of the page are quoted for a shell.
        let output = Command::new("sh")
            .args(["-c", &line])
            .env("PICKD_AGENT", agent.url())
            .output()
            .unwrap();
        assert!(output.status.success(), "{line}: {output:?}");
        run += 1;
    }
    assert_eq!(run, 9);
    assert_eq!(agent.program.logged("instance drained").len(), 2);

    // The lines for curl, sent without curl.
    let curls: Vec<&str> = page.lines().filter(|line| line.starts_with("curl ")).collect();
    assert_eq!(curls.len(), 8);
    for line in curls {
        let words: Vec<&str> = line.split_whitespace().collect();
        let target = words.iter().find_map(|word| word.strip_prefix("localhost:7425"));
        let Some(target) = target else {
            assert_eq!(
                line,
                "curl --unix-socket /run/pickd/pickd.sock http://localhost/pick/user-service"
            );
            assert!(
                over_socket(&socket, "GET /pick/user-service")
                    .unwrap()
                    .starts_with("HTTP/1.1 200 ")
            );
            continue;
        };
        let method = match words.iter().position(|word| *word == "-X") {
            Some(at) => words[at + 1],
            None => "GET",
        };
        let body = line
            .split_once("-d '")
            .map_or("", |(_, rest)| rest.split_once('\'').unwrap().0);
        let headers = if line.contains("-H 'Content-Type: application/json'") {
            &[JSON][..]
        } else {
            &[]
        };
        let target = target.replace("sources/consul", "sources/file");
        let response = ask(agent.address, method, &target, headers, body);
        assert_eq!(response.status, 200, "{line}: {}", response.text());
    }
}
