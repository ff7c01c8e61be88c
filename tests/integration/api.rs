//! The HTTP API over the wire: every route and every error.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::agent::{Agent, SOON, pickd};
use crate::support::folder::Folder;
use crate::support::http::{Connection, Response, ask, get};
use crate::support::metrics::{Series, samples};
use crate::support::prometheus::promtool;
use crate::support::{free_ports, services, until};

const CONFIG: &str = r#"
[api]
allowed_hosts = ["Pickd.Internal"]
[file]
path = "services.toml"
[services.empty]
[services.hashed]
strategy = "consistent_hash"
"#;

/// An agent over a file registry of its own.
struct World {
    agent: Agent,
    folder: Folder,
}

impl Deref for World {
    type Target = Agent;

    fn deref(&self) -> &Agent {
        &self.agent
    }
}

fn world() -> World {
    let folder = Folder::new();
    let mut services = services::VARIED.to_owned();
    for number in 1..=10 {
        services.push_str(&format!(
            "[[service.instance]]\nhost = \"10.0.4.{number}\"\nport = 80\n"
        ));
    }
    folder.write("services.toml", &services);
    let config = folder.write("pickd.toml", CONFIG);
    let agent = Agent::run(["--config", config.to_str().unwrap()]).ready();
    World { agent, folder }
}

/// An agent whose Consul does not run.
fn unsynced() -> Agent {
    let [port] = free_ports();
    Agent::run(["--consul", &format!("http://127.0.0.1:{port}")])
}

/// Checks all promised parts of an error, and returns its detail.
pub(crate) fn refused(answer: &Response, status: u16, code: &str) -> String {
    assert_eq!(answer.status, status, "{}", answer.text());
    assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert_eq!(answer.header("retry-after"), (status == 503).then_some("1"));
    assert_eq!(answer.header("allow").is_some(), status == 405);
    let problem = answer.json();
    assert_eq!(problem["code"], code, "{problem}");
    assert_eq!(
        (&problem["status"], &problem["type"]),
        (&json!(status), &json!("about:blank"))
    );
    assert!(
        problem["title"].as_str().is_some_and(|title| !title.is_empty()),
        "{problem}"
    );
    let detail = problem["detail"].as_str().unwrap();
    assert!(!detail.is_empty());
    detail.to_owned()
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

fn id(pick: &Value) -> &str {
    pick["id"].as_str().unwrap()
}

#[test]
fn a_pick_is_one_instance_as_its_registry_describes_it() {
    let agent = world();
    let answer = agent.get("/pick/user-service?exclude=user%2C2,user+3");
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert_eq!(
        answer.text(),
        r#"{"service":"user-service","id":"user-1","host":"10.0.1.10","port":8080,"address":"10.0.1.10:8080","weight":1,"#
            .to_owned()
            + r#""status":"healthy","tags":["eu","v1"],"metadata":{"zone":"us-\"west\""},"source":"file","retry_allowed":true}"#
    );
    let statuses: BTreeMap<String, String> = (0..50)
        .map(|_| agent.get("/pick/user-service").json())
        .map(|pick| (id(&pick).to_owned(), pick["status"].as_str().unwrap().to_owned()))
        .collect();
    let expected = [("user-1", "healthy"), ("user,2", "unknown"), ("user 3", "degraded")];
    assert_eq!(
        statuses,
        expected.map(|(id, status)| (id.to_owned(), status.to_owned())).into()
    );
    // An encoded name is the same name.
    assert_eq!(agent.get("/pick/user%2Dservice").status, 200);
    assert_eq!(
        agent.get("http://localhost/pick/user-service").status,
        200,
        "absolute form"
    );
}

#[test]
fn an_ipv6_address_is_bracketed() {
    let agent = world();
    let pick = agent.get("/pick/six").json();
    assert_eq!(
        (&pick["host"], &pick["port"], &pick["address"]),
        (&json!("2001:db8::1"), &json!(443), &json!("[2001:db8::1]:443"))
    );
    assert_eq!(agent.get("/pick/six?format=text").text(), "[2001:db8::1]:443\n");
}

#[test]
fn text_is_given_by_format_or_by_accept() {
    let agent = world();
    for (target, accept, text) in [
        ("/pick/six?format=text", "Accept: application/json", true),
        ("/pick/six", "Accept: text/plain", true),
        ("/pick/six", "Accept: text/plain;q=0.9, */*;q=0.1", true),
        ("/pick/six?format=json", "Accept: text/plain", false),
        ("/pick/six", "Accept: */*", false),
        ("/pick/six", "Accept: application/json, text/plain", false),
    ] {
        let answer = ask(agent.address, "GET", target, &[accept]);
        let (content_type, start) = match text {
            true => ("text/plain; charset=utf-8", "[2001:db8::1]:443\n"),
            false => ("application/json", "{"),
        };
        assert_eq!(answer.header("content-type"), Some(content_type), "{target} {accept}");
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        assert!(answer.text().starts_with(start), "{target} {accept}");
    }
    let addresses = agent.get("/pick/user-service?n=3&format=text");
    let lines: BTreeSet<&str> = addresses.text().lines().collect();
    assert_eq!(lines, ["10.0.1.10:8080", "10.0.1.11:8080", "10.0.1.12:8081"].into());
    assert!(addresses.text().ends_with('\n'));
}

#[test]
fn alternates_are_distinct_and_never_the_primary() {
    let agent = world();
    for (n, expected) in [(2, 1), (3, 2), (4, 2), (16, 2)] {
        let pick = agent.get(&format!("/pick/user-service?n={n}")).json();
        let alternates = pick["alternates"].as_array().unwrap();
        assert_eq!(alternates.len(), expected, "{pick}");
        let ids: BTreeSet<&str> = alternates.iter().chain([&pick]).map(id).collect();
        assert_eq!(ids.len(), expected + 1, "{pick}");
        assert_eq!(keys(&alternates[0]), keys(&agent.get("/pick/user-service").json()));
    }
    assert!(agent.get("/pick/user-service?n=1").json().get("alternates").is_none());
    assert_eq!(agent.get("/pick/six?n=5").json()["alternates"], json!([]));
    // Alternates do not count as picks: the nine picks above are the picked instances only.
    assert_eq!(
        agent.metric(r#"pickd_picks_total{service="user-service",result="ok"}"#),
        Some(9.0)
    );
}

#[test]
fn exclusions_and_tags_are_honoured_and_decoded_after_they_are_split() {
    let agent = world();
    let picked = |query: &str| -> BTreeSet<String> {
        (0..40)
            .map(|_| agent.get(&format!("/pick/user-service?{query}")).json())
            .map(|pick| id(&pick).to_owned())
            .collect()
    };
    let ids = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect();
    assert_eq!(picked("exclude=user%2C2"), ids(&["user-1", "user 3"]));
    assert_eq!(
        picked("exclude=user,2"),
        ids(&["user-1", "user,2", "user 3"]),
        "two unknown ids"
    );
    assert_eq!(picked("exclude=user-1,user%203"), ids(&["user,2"]));
    assert_eq!(picked("exclude=user-1&exclude=user+3"), ids(&["user,2"]));
    assert_eq!(picked("exclude="), ids(&["user-1", "user,2", "user 3"]));
    assert_eq!(picked("tag=v1"), ids(&["user-1", "user,2"]));
    assert_eq!(picked("tag=v1&tag=eu"), ids(&["user-1"]), "all must match");
    assert_eq!(picked("tag=a%2Cb"), ids(&["user 3"]));
    assert_eq!(picked("tag=v1&exclude=user-1"), ids(&["user,2"]));
    let alternates = agent.get("/pick/user-service?n=3&tag=v1&exclude=user-1").json();
    assert_eq!((id(&alternates), &alternates["alternates"]), ("user,2", &json!([])));
}

#[test]
fn a_retry_is_allowed_within_the_settings_and_the_budget() {
    let folder = Folder::new();
    folder.registry(
        "services.toml",
        "web",
        &["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80", "10.0.0.4:80"],
    );
    let text = "[file]\npath = \"services.toml\"\n[services.once]\nretry_enabled = false\n";
    let config = folder.write("pickd.toml", text);
    let agent = Agent::run(["--config", config.to_str().unwrap()]).ready();
    let allowed = |query: &str| agent.get(&format!("/pick/web{query}")).json()["retry_allowed"].clone();
    assert_eq!(allowed(""), Value::Null, "no retry");
    assert_eq!(allowed("?exclude=10.0.0.1:80"), true);
    assert_eq!(allowed("?exclude=10.0.0.1:80,10.0.0.2:80"), true);
    assert_eq!(
        allowed("?exclude=10.0.0.1:80,10.0.0.2:80,10.0.0.3:80"),
        false,
        "max_retries is 2"
    );
    let header = |query: &str| {
        let answer = agent.get(&format!("/pick/web?format=text{query}"));
        answer.header("x-pickd-retry-allowed").map(str::to_owned)
    };
    assert_eq!(header("").as_deref(), None);
    assert_eq!(header("&exclude=10.0.0.1:80").as_deref(), Some("true"));
    let leased = ask(agent.address, "POST", "/pick/web?exclude=10.0.0.1:80", &[]).json();
    assert_eq!(leased["retry_allowed"], true);
    assert!(leased["lease"].is_string());

    // 4 of 30 are spent, and a second brings 3. The bound is that of a slow machine.
    let refused = (0..400).position(|_| allowed("?exclude=10.0.0.1:80") == false);
    assert!(refused.is_some_and(|refused| refused >= 20), "{refused:?}");
    assert_eq!(header("&exclude=10.0.0.1:80").as_deref(), Some("false"));
    let series = |result: &str| agent.metric(&format!("pickd_retries_total{{service=\"web\",result=\"{result}\"}}"));
    assert!(series("allowed") >= Some(24.0) && series("denied") >= Some(3.0));
}

#[test]
fn a_leased_instance_stays_out_for_the_time_of_retry_after() {
    let folder = Folder::new();
    let path = folder.registry("services.toml", "web", &["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]);
    let agent = Agent::run(["--file", path.to_str().unwrap()]).ready();
    let report = |body: Value| {
        let mut connection = Connection::open(agent.address).unwrap();
        connection.post("/report", &body.to_string()).unwrap().json()
    };
    let id = |pick: &Value| pick["id"].as_str().unwrap().to_owned();
    let without = id(&agent.get("/pick/web").json());
    let body = json!({"service": "web", "instance": without, "outcome": "rejected", "retry_after": 30});
    assert_eq!(report(body)["accepted"], 1);
    let picks = || (0..9).map(|_| id(&agent.get("/pick/web").json())).collect::<Vec<_>>();
    assert!(picks().contains(&without), "without a lease, the time has no effect");

    let pick = ask(agent.address, "POST", "/pick/web", &[]).json();
    let body = json!({"lease": pick["lease"], "outcome": "rejected", "retry_after": 30});
    assert_eq!(report(body)["accepted"], 1);
    assert!(!picks().contains(&id(&pick)));
    let explained = agent.get("/explain/web").json();
    assert!(
        explained.to_string().contains("asked not to be called for 30 s"),
        "{explained}"
    );
}

#[test]
fn equal_keys_are_given_the_same_instance() {
    let agent = world();
    let by_query = |key: &str| id(&agent.get(&format!("/pick/hashed?key={key}")).json()).to_owned();
    let by_header = |key: &str| {
        let header = format!("X-Pickd-Key: {key}");
        id(&ask(agent.address, "GET", "/pick/hashed", &[&header]).json()).to_owned()
    };
    let mut distinct = BTreeSet::new();
    for number in 0..50 {
        let key = format!("session-{number}");
        let first = by_query(&key);
        assert_eq!(by_query(&key), first);
        assert_eq!(by_header(&key), first);
        distinct.insert(first);
    }
    assert!(distinct.len() >= 5, "{distinct:?}");
    // The query overrides the header, and a key may be any bytes.
    let both = ask(
        agent.address,
        "GET",
        "/pick/hashed?key=session-1",
        &["X-Pickd-Key: session-2"],
    );
    assert_eq!(id(&both.json()), by_query("session-1"));
    assert_eq!(by_query("%ff%00"), by_query("%FF%00"));
    // If the instance of the key is excluded, the first alternate is picked.
    let pick = agent.get("/pick/hashed?key=session-1&n=2").json();
    let next = agent
        .get(&format!("/pick/hashed?key=session-1&exclude={}", id(&pick)))
        .json();
    assert_eq!(id(&next), id(&pick["alternates"][0]));
}

#[test]
fn before_the_first_sync_nothing_is_unknown() {
    let agent = unsynced();
    for target in ["/pick/user-service", "/v1/pick/user-service", "/services/user-service"] {
        let detail = refused(&agent.get(target), 503, "not_synced");
        assert!(detail.contains("consul"), "{detail}");
    }
    assert_eq!(agent.get("/pick/user-service").json()["service"], "user-service");
    let detail = refused(&agent.get("/readyz"), 503, "not_ready");
    assert_eq!(detail, "waiting for consul");
    let source = &agent.get("/readyz").json()["sources"][0];
    assert_eq!(
        (
            &source["source"],
            &source["up"],
            &source["synced"],
            &source["age_seconds"]
        ),
        (&json!("consul"), &json!(false), &json!(false), &Value::Null)
    );
    assert_eq!(agent.get("/healthz").status, 200);
    assert_eq!(agent.get("/services").json()["services"], json!([]));
    // Invalid requests are refused even before the sources have synced.
    refused(&agent.get("/pick/%ff"), 400, "invalid_request");
    refused(&agent.get("/pick/user-service?nn=1"), 400, "unknown_parameter");
    // A missing registry file does not count as an empty registry.
    let folder = Folder::new();
    let missing = folder.path("services.toml");
    let agent = Agent::run(["--file", missing.to_str().unwrap()]);
    refused(&agent.get("/pick/user-service"), 503, "not_synced");
    folder.registry("services.toml", "user-service", &["10.0.0.1:80"]);
    let agent = agent.ready();
    assert_eq!(agent.get("/pick/user-service").status, 200);
    refused(&agent.get("/pick/other"), 404, "unknown_service");
}

#[test]
fn a_source_that_could_not_list_a_name_is_not_waited_for() {
    let folder = Folder::new();
    let registry = folder.registry("services.toml", "user-service", &["10.0.0.1:80"]);
    let [port] = free_ports();
    let agent = Agent::run([
        "--consul",
        &format!("http://127.0.0.1:{port}"),
        "--consul-service",
        "web-*",
        "--file",
        registry.to_str().unwrap(),
    ]);
    let synced = || agent.metric(r#"pickd_source_synced{source="file"}"#);
    until(SOON, "the file is read", || (synced() == Some(1.0)).then_some(()));
    refused(&agent.get("/pick/other"), 404, "unknown_service");
    refused(&agent.get("/pick/web-1"), 503, "not_synced");
}

#[test]
fn each_reason_for_no_pick_has_its_answer() {
    let agent = world();
    for (target, status, code) in [
        ("/pick/absent", 404, "unknown_service"),
        ("/services/absent", 404, "unknown_service"),
        ("/pick/empty", 503, "no_instances"),
        ("/pick/critical", 503, "none_available"),
        ("/pick/drained", 503, "none_available"),
        (
            "/pick/user-service?exclude=user-1,user%2C2,user%203",
            503,
            "none_available",
        ),
        ("/pick/user-service?tag=v1&tag=v2", 503, "none_available"),
        ("/pick/user-service?tag=unknown-tag", 503, "none_available"),
    ] {
        let answer = agent.get(target);
        refused(&answer, status, code);
        let service = target.split(['/', '?']).nth(2).unwrap();
        assert_eq!(answer.json()["service"], service);
    }
}

#[test]
fn names_and_paths_that_are_none_are_refused_as_they_were_sent() {
    let agent = world();
    let (longest, too_long) = ("a".repeat(253), "a".repeat(254));
    for (name, code) in [
        ("%ff", "invalid_request"),
        ("%00", "invalid_request"),
        ("%2F", "invalid_request"),
        ("a%2F%2Fb", "invalid_request"),
        ("..", "invalid_request"),
        (".", "invalid_request"),
        ("%2e%2e", "invalid_request"),
        ("a%0Ab", "invalid_request"),
        ("%28unknown%29", "invalid_request"),
        (too_long.as_str(), "invalid_request"),
    ] {
        for route in ["pick", "services", "v1/pick", "v1/services"] {
            refused(&agent.get(&format!("/{route}/{name}")), 400, code);
        }
    }
    for name in [&longest, "a%2Fb", "%C3%A4", "a%20b", "%25", "%", "%253F", "a+b"] {
        for route in ["pick", "services"] {
            refused(&agent.get(&format!("/{route}/{name}")), 404, "unknown_service");
        }
    }
    for target in [
        "/",
        "/pick",
        "/pick/",
        "/pick/a/b",
        "/pick/user-service/",
        "//pick/user-service",
        "/pick/../pick/user-service",
        "/services/",
        "/v1",
        "/v1/",
        "/v1/pick/",
        "/v1/v1/pick/user-service",
        "/v2/pick/user-service",
        "/Pick/user-service",
        "/metrics/",
        "/%ff",
        "/favicon.ico",
    ] {
        refused(&agent.get(target), 404, "not_found");
    }
}

#[test]
fn parameters_that_are_not_understood_are_refused() {
    let agent = world();
    let many = (0..65).map(|number| number.to_string()).collect::<Vec<_>>().join(",");
    for (query, code) in [
        ("n=0", "invalid_request"),
        ("n=17", "invalid_request"),
        ("n=-1", "invalid_request"),
        ("n=99999999999999999999", "invalid_request"),
        ("n=two", "invalid_request"),
        ("n=", "invalid_request"),
        ("n=1&n=1", "invalid_request"),
        ("key=a&key=b", "invalid_request"),
        ("format=text&format=json", "invalid_request"),
        ("format=xml", "invalid_request"),
        ("exclude=%ff", "invalid_request"),
        ("tag=%ff", "invalid_request"),
        (&format!("exclude={many}"), "invalid_request"),
        ("keys=a", "unknown_parameter"),
        ("N=1", "unknown_parameter"),
        ("n=1&debug", "unknown_parameter"),
        ("%6E=1", "unknown_parameter"),
    ] {
        refused(&agent.get(&format!("/pick/user-service?{query}")), 400, code);
    }
    for route in ["/services", "/services/user-service", "/healthz", "/readyz", "/metrics"] {
        refused(&agent.get(&format!("{route}?pretty=1")), 400, "unknown_parameter");
    }
    // An empty parameter is ignored.
    assert_eq!(agent.get("/pick/user-service?").status, 200);
    assert_eq!(agent.get("/pick/user-service?&key=&").status, 200);
}

#[test]
fn methods_are_those_of_the_table() {
    let agent = world();
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"] {
        for prefix in ["", "/v1"] {
            if method != "POST" {
                for (target, allow) in [("pick/user-service", "GET, POST"), ("report", "POST")] {
                    let target = format!("{prefix}/{target}");
                    let answer = ask(agent.address, method, &target, &["Content-Length: 0"]);
                    refused(&answer, 405, "method_not_allowed");
                    assert_eq!(answer.header("allow"), Some(allow));
                }
            }
            for route in ["/services", "/services/user-service", "/healthz", "/readyz", "/metrics"] {
                let answer = ask(
                    agent.address,
                    method,
                    &format!("{prefix}{route}"),
                    &["Content-Length: 0"],
                );
                refused(&answer, 405, "method_not_allowed");
                let allowed: BTreeSet<&str> = answer.header("allow").unwrap().split(',').map(str::trim).collect();
                assert_eq!(allowed, ["GET", "HEAD"].into(), "{route}");
            }
            refused(
                &ask(
                    agent.address,
                    method,
                    &format!("{prefix}/nowhere"),
                    &["Content-Length: 0"],
                ),
                404,
                "not_found",
            );
        }
    }
    // A pick refuses HEAD; on other routes HEAD is GET without a body.
    let head = ask(agent.address, "HEAD", "/pick/user-service", &[]);
    assert_eq!((head.status, head.header("allow")), (405, Some("GET, POST")));
    assert_eq!(head.header("content-type"), Some("application/problem+json"));
    for route in ["/services", "/services/user-service", "/healthz", "/readyz", "/metrics"] {
        let (head, get) = (ask(agent.address, "HEAD", route, &[]), agent.get(route));
        assert_eq!(
            (head.status, head.header("content-type")),
            (200, get.header("content-type")),
            "{route}"
        );
    }
    assert_eq!(
        agent.metric(r#"pickd_picks_total{result="ok",service="user-service"}"#),
        Some(0.0)
    );
}

#[test]
fn every_route_exists_under_v1_as_well() {
    let agent = world();
    for route in [
        "/pick/six",
        "/pick/six?format=text",
        "/services",
        "/services/six",
        "/healthz",
        "/readyz",
        "/metrics",
    ] {
        let (plain, twin) = (agent.get(route), agent.get(&format!("/v1{route}")));
        assert_eq!((plain.status, twin.status), (200, 200), "{route}");
        assert_eq!(plain.header("content-type"), twin.header("content-type"), "{route}");
        assert_eq!(shape(&plain), shape(&twin), "{route}");
    }
}

/// The parts of an answer that do not change between answers.
fn shape(answer: &Response) -> Vec<String> {
    match answer.header("content-type") {
        Some("application/json") => keys(&answer.json()).iter().map(|key| (*key).to_owned()).collect(),
        _ => {
            let name = |line: &str| line.rsplit_once(' ').map_or(line, |(name, _)| name).to_owned();
            answer.text().lines().map(name).collect()
        }
    }
}

#[test]
fn services_are_listed_with_what_is_known_of_them() {
    let agent = world();
    for _ in 0..3 {
        agent.get("/pick/user-service?tag=v1&exclude=user-1");
    }
    let list = agent.get("/services").json();
    assert_eq!(keys(&list), ["services", "sources"]);
    let services = list["services"].as_array().unwrap();
    let names: Vec<_> = services
        .iter()
        .map(|service| service["service"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        ["critical", "drained", "empty", "hashed", "six", "user-service"],
        "by name"
    );
    assert_eq!(
        services[5],
        json!({
            "service": "user-service", "strategy": "round_robin", "total_requests": 3, "reported_requests": 0,
            "failed_requests": 0, "failure_rate": 0.0, "available_instances": 3, "total_instances": 3, "panic": false,
            "fail_open": false, "tier_in_turn": 0,
            "sources": ["file"],
        })
    );
    assert_eq!(
        (&services[0]["available_instances"], &services[0]["total_instances"]),
        (&json!(0), &json!(2))
    );
    assert_eq!(
        (&services[2]["total_instances"], &services[2]["sources"]),
        (&json!(0), &json!([]))
    );
    assert_eq!(services[3]["strategy"], "consistent_hash");
    let source = &list["sources"][0];
    assert_eq!(
        (
            &source["source"],
            &source["required"],
            &source["up"],
            &source["synced"],
            &source["away_seconds"]
        ),
        (&json!("file"), &json!(true), &json!(true), &json!(true), &Value::Null)
    );
    assert!(
        source["age_seconds"]
            .as_f64()
            .is_some_and(|age| (0.0..60.0).contains(&age)),
        "{source}"
    );
    assert_eq!(source["held_removals"], 0);

    let service = agent.get("/services/user-service").json();
    assert_eq!(
        (&service["total_requests"], &service["mode"]),
        (&json!(3), &json!("normal"))
    );
    assert_eq!(keys(&service["instances"]), ["user 3", "user,2", "user-1"]);
    let mut two = service["instances"]["user,2"].clone();
    let since = two["layers"]["registry"]
        .as_object_mut()
        .unwrap()
        .remove("since_seconds");
    assert!(
        since.and_then(|since| since.as_f64()).is_some_and(|since| since < 60.0),
        "{two}"
    );
    assert_eq!(
        two,
        json!({
            "status": "unknown", "available": true,
            "layers": {"admin": {"state": "in_service"}, "registry": {"state": "unknown"}, "active": null, "passive": null,
                       "breaker": null},
            "host": "10.0.1.11", "port": 8080,
            "address": "10.0.1.11:8080", "weight": 2, "priority": 0, "in_turn": true, "flapping": false, "effective_weight": 1.0, "total_requests": 3, "reported_requests": 0,
            "failed_requests": 0, "consecutive_failures": 0, "active_connections": 0, "average_response_time": 0.0,
            "tags": ["v1"], "metadata": {}, "source": "file", "sources": ["file"],
        })
    );
    assert_eq!(service["instances"]["user 3"]["effective_weight"], 0.25, "degraded");
    assert_eq!(service["source_states"][0]["source"], "file");
    let critical = agent.get("/services/critical").json();
    for (id, reason) in [
        ("10.0.2.1:80", "registry_critical"),
        ("10.0.2.2:80", "registry_maintenance"),
    ] {
        let instance = &critical["instances"][id];
        assert_eq!(
            (&instance["available"], &instance["reason"], &instance["status"]),
            (&json!(false), &json!(reason), &json!("unhealthy"))
        );
    }
    assert_eq!(
        agent.get("/services/drained").json()["instances"]["10.0.3.1:80"]["reason"],
        "weight_zero"
    );
    assert_eq!(agent.get("/services/empty").json()["instances"], json!({}));
}

#[test]
fn picks_say_how_long_their_source_has_been_away() {
    let World { agent, folder } = world();
    assert!(agent.get("/pick/six").json().get("stale_seconds").is_none());
    let good = std::fs::read_to_string(folder.path("services.toml")).unwrap();
    std::fs::remove_file(folder.path("services.toml")).unwrap();
    until(SOON, "a second away", || {
        agent.get("/pick/six").json()["stale_seconds"]
            .as_u64()
            .filter(|seconds| *seconds >= 1)
    });
    let ready = agent.get("/readyz");
    assert_eq!(ready.status, 200, "what was learned is still served");
    let source = ready.json()["sources"][0].clone();
    assert_eq!((&source["up"], &source["synced"]), (&json!(false), &json!(true)));
    assert!(
        source["away_seconds"]
            .as_f64()
            .is_some_and(|away| (1.0..30.0).contains(&away)),
        "{source}"
    );
    assert!(
        source["last_error"]
            .as_str()
            .is_some_and(|error| error.contains("services.toml")),
        "{source}"
    );
    assert_eq!(agent.metric(r#"pickd_source_up{source="file"}"#), Some(0.0));
    assert_eq!(agent.metric(r#"pickd_source_synced{source="file"}"#), Some(1.0));
    let errors = r#"pickd_source_errors_total{reason="invalid_file",source="file"}"#;
    assert_eq!(agent.metric(errors), Some(1.0));
    // An invalid file is an error as a missing file is; a valid file ends the error.
    folder.write("services.toml", "[[service]]\nname = 7\n");
    until(SOON, "the wrong file is counted", || {
        (agent.metric(errors) == Some(2.0)).then_some(())
    });
    assert!(agent.get("/pick/six?n=2").json()["stale_seconds"].is_u64());
    folder.write("services.toml", &good);
    until(SOON, "it is back", || {
        agent
            .get("/pick/six")
            .json()
            .get("stale_seconds")
            .is_none()
            .then_some(())
    });
    assert_eq!(agent.metric(r#"pickd_source_up{source="file"}"#), Some(1.0));
}

#[test]
fn a_loopback_listener_serves_its_own_names_only() {
    let agent = world();
    let with = |hosts: &[&str]| ask(agent.address, "GET", "/pick/six", hosts);
    for host in [
        "Host: localhost",
        "Host: LOCALHOST:7425",
        "Host: 127.0.0.1:7425",
        "Host: [::1]:1",
        "Host: pickd.internal",
        "Host: PICKD.internal:80",
    ] {
        assert_eq!(with(&[host]).status, 200, "{host}");
    }
    for hosts in [
        &["Host: evil.test"][..],
        &["Host: evil.test:7425"],
        &["Host: localhost.evil.test"],
        &["Host: localhost", "Host: evil.test"],
        &["Host: evil.test", "Host: localhost"],
        &["Host:"],
        &["Host: a b"],
        &["Host: \u{e4}"],
    ] {
        let detail = refused(&with(hosts), 421, "misdirected_request");
        assert!(detail.contains("api.allowed_hosts"), "{detail}");
        assert_eq!(
            ask(agent.address, "GET", "/nowhere", hosts).status,
            421,
            "before anything else"
        );
    }
    // HTTP/1.0 needs no Host.
    let mut old = Connection::open(agent.address).unwrap();
    old.send(b"GET /pick/six HTTP/1.0\r\n\r\n").unwrap();
    assert_eq!(old.response("GET").unwrap().status, 200);
}

#[test]
fn a_listener_for_everyone_does_not_look_at_the_host() {
    let folder = Folder::new();
    let registry = folder.registry("services.toml", "user-service", &["10.0.0.1:80"]);
    let run = ["run", "--listen", "0.0.0.0:0", "--file", registry.to_str().unwrap()];
    let agent = Agent::start(pickd().args(run));
    let address = ([127, 0, 0, 1], agent.address.port()).into();
    let answer = until(SOON, "a pick", || {
        let answer = ask(address, "GET", "/pick/user-service", &["Host: pickd.node.consul"]);
        (answer.status != 503).then_some(answer)
    });
    assert_eq!(answer.status, 200);
}

#[test]
fn what_is_no_http_is_refused_and_harms_no_other_client() {
    let agent = world();
    let mut waiting = Connection::open(agent.address).unwrap();
    waiting.send(b"GET /pick/six HT").unwrap();
    let status = |bytes: &[u8]| {
        let mut connection = Connection::open(agent.address).unwrap();
        connection.send(bytes).unwrap();
        connection.response("GET").map(|answer| answer.status)
    };
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 \r\n\r\n"[..],
        b"GET /pick/a b HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /pick/\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /pick/\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /pick/six HTTP/1.1\r\nbroken header\r\n\r\n",
    ] {
        let answered = status(bytes);
        assert!(
            matches!(answered, Ok(400)) || answered.is_err(),
            "{}: {answered:?}",
            String::from_utf8_lossy(bytes)
        );
    }
    let long = format!("GET /pick/{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "a".repeat(70_000));
    // A long target makes a head too long, as long headers do.
    assert!(matches!(status(long.as_bytes()), Ok(414 | 431) | Err(_)));
    let large = format!(
        "GET /pick/six HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n",
        "a".repeat(1 << 20)
    );
    assert!(matches!(status(large.as_bytes()), Ok(431) | Err(_)));
    // pickd serves no targets of asterisk or authority form.
    for request in [
        &b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n"[..],
        b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ] {
        let mut connection = Connection::open(agent.address).unwrap();
        connection.send(request).unwrap();
        refused(&connection.response("OPTIONS").unwrap(), 404, "not_found");
    }
    // Two requests in one packet are answered in order.
    let mut pipelined = Connection::open(agent.address).unwrap();
    pipelined
        .send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    assert_eq!(pipelined.response("GET").unwrap().status, 200);
    assert_eq!(pipelined.response("GET").unwrap().status, 404);
    waiting.send(b"TP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    assert_eq!(waiting.response("GET").unwrap().status, 200);
}

#[test]
fn metrics_start_at_zero_and_know_no_unknown_names() {
    let agent = world();
    let answer = agent.get("/metrics");
    assert_eq!(
        answer.header("content-type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    let names = |text: &str| -> Vec<Series> { samples(text).into_iter().map(|(series, _)| series).collect() };
    let before = names(answer.text());
    let distinct: BTreeSet<_> = before.iter().collect();
    assert_eq!(distinct.len(), before.len(), "each label set once");
    for service in ["user-service", "critical", "drained", "empty", "hashed", "six"] {
        for result in ["ok", "not_synced", "no_instances", "none_available"] {
            let series = format!(r#"pickd_picks_total{{result="{result}",service="{service}"}}"#);
            assert_eq!(agent.metric(&series), Some(0.0), "{series}");
        }
        for status in ["healthy", "degraded", "unknown", "unhealthy"] {
            let series = format!(r#"pickd_pool_instances{{service="{service}",status="{status}"}}"#);
            assert!(agent.metric(&series).is_some(), "{series}");
        }
    }
    for reason in pickd::discovery::Reason::ALL {
        let series = format!(r#"pickd_source_errors_total{{reason="{reason}",source="file"}}"#);
        assert_eq!(agent.metric(&series), Some(0.0), "{series}");
    }
    for series in [
        r#"pickd_instance_picks_total{endpoint="user-1",service="user-service"}"#,
        r#"pickd_instance_failures_total{endpoint="user-1",service="user-service"}"#,
        r#"pickd_instance_in_flight{endpoint="user-1",service="user-service"}"#,
        r#"pickd_instance_weight{endpoint="10.0.3.1:80",service="drained"}"#,
        r#"pickd_picks_total{result="unknown_service",service="(unknown)"}"#,
        r#"pickd_picks_total{result="not_synced",service="(unknown)"}"#,
        r#"pickd_source_held_removals{source="file"}"#,
        "pickd_series_dropped",
        "pickd_leases_active",
        "pickd_leases_capacity",
        r#"pickd_leases_expired_total{service="user-service"}"#,
        r#"pickd_leases_denied_total{service="user-service"}"#,
        r#"pickd_reports_total{result="accepted",service="user-service"}"#,
        r#"pickd_reports_total{result="unknown_instance",service="user-service"}"#,
        r#"pickd_reports_total{result="no_credit",service="user-service"}"#,
        r#"pickd_reports_total{result="unknown_lease",service="(unknown)"}"#,
        r#"pickd_reports_total{result="unknown_service",service="(unknown)"}"#,
        r#"pickd_reports_total{result="invalid",service="(unknown)"}"#,
    ] {
        assert_eq!(agent.metric(series), Some(0.0), "{series}");
    }
    for (series, value) in [
        (r#"pickd_source_up{source="file"}"#, 1.0),
        (r#"pickd_source_synced{source="file"}"#, 1.0),
        (
            r#"pickd_instance_weight{endpoint="user,2",service="user-service"}"#,
            1.0,
        ),
        (r#"pickd_pool_instances{service="critical",status="unhealthy"}"#, 2.0),
        ("pickd_config_last_reload_successful", 1.0),
    ] {
        assert_eq!(agent.metric(series), Some(value), "{series}");
    }
    for name in [
        "pickd_build_info",
        "pickd_convergence_seconds_bucket",
        "process_resident_memory_bytes",
    ] {
        assert!(before.iter().any(|series| series.name == name), "{name}");
    }

    let mut connection = Connection::open(agent.address).unwrap();
    for number in 0..1_000 {
        let target = format!("/pick/stranger-{number}");
        refused(&connection.ask("GET", &target, &[]).unwrap(), 404, "unknown_service");
        refused(
            &connection.ask("GET", &format!("/nowhere-{number}"), &[]).unwrap(),
            404,
            "not_found",
        );
    }
    for target in ["/pick/critical", "/pick/empty", "/pick/six", "/pick/six?n=3"] {
        agent.get(target);
    }
    refused(&agent.get("/pick/%ff"), 400, "invalid_request");
    refused(&agent.get("/pick/six?n=99"), 400, "invalid_request");
    let answer = agent.get("/metrics");
    assert_eq!(names(answer.text()), before, "no series came");
    assert!(!answer.text().contains("stranger"));
    for (series, value) in [
        (
            r#"pickd_picks_total{result="unknown_service",service="(unknown)"}"#,
            1_000.0,
        ),
        (r#"pickd_picks_total{result="none_available",service="critical"}"#, 1.0),
        (r#"pickd_picks_total{result="no_instances",service="empty"}"#, 1.0),
        (r#"pickd_picks_total{result="ok",service="six"}"#, 2.0),
        (
            r#"pickd_instance_picks_total{endpoint="[2001:db8::1]:443",service="six"}"#,
            2.0,
        ),
    ] {
        assert_eq!(agent.metric(series), Some(value), "{series}");
    }
}

#[test]
fn promtool_has_nothing_to_say_about_the_metrics() {
    let agent = world();
    let text = agent.get("/metrics");
    let printed = promtool(&["check", "metrics"], &text.body).unwrap();
    assert!(printed.is_empty(), "{printed}\n{}", text.text());
}

#[test]
fn a_series_vanishes_with_its_instance() {
    let folder = Folder::new();
    let registry = folder.registry("services.toml", "web", &["10.0.0.1:80", "10.0.0.2:80"]);
    let agent = Agent::run(["--file", registry.to_str().unwrap()]).ready();
    let text = agent.get("/metrics");
    assert!(text.text().contains(r#"endpoint="10.0.0.2:80""#));
    folder.registry("services.toml", "web", &["10.0.0.1:80"]);
    until(SOON, "the series is gone", || {
        let text = agent.get("/metrics");
        (!text.text().contains(r#"endpoint="10.0.0.2:80""#)).then_some(())
    });
    assert!(agent.get("/metrics").text().contains(r#"endpoint="10.0.0.1:80""#));
}

#[test]
fn a_stopping_agent_says_that_it_is_not_ready() {
    let agent = world();
    assert_eq!(agent.get("/readyz").json()["ready"], true);
    // The request is in progress when the signal arrives, so the agent still answers it.
    let mut late = Connection::open(agent.address).unwrap();
    late.send(b"GET /readyz HTTP/1.1\r\n").unwrap();
    // The connection was accepted before the signal: a later connection has already been answered.
    assert_eq!(get(agent.address, "/healthz").status, 200);
    agent.program.signal("TERM");
    agent.program.wait_for_log("shutting down", |_| true);
    let started = Instant::now();
    late.send(b"Host: localhost\r\n\r\n").unwrap();
    let answer = late.response("GET").unwrap();
    assert_eq!(refused(&answer, 503, "not_ready"), "shutting down");
    assert!(started.elapsed() < Duration::from_secs(4));
}
