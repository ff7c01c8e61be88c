//! Names, addresses and registrations as they are found in registries, beside a real Consul, a real
//! etcd and a file: what becomes a service and an instance, and what is skipped and why.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::agent::{Agent, SOON, command};
use crate::support::consul::Consul;
use crate::support::etcd::Etcd;
use crate::support::folder::Folder;
use crate::support::pool::{ids, pool, until_picked};
use crate::support::until;

/// Names that the rules of DNS do not allow, each with its form in a path.
const NAMES: [(&str, &str); 7] = [
    ("team/api", "team%2Fapi"),
    ("a b", "a%20b"),
    ("a+b", "a%2Bb"),
    ("é", "%C3%A9"),
    ("100%", "100%25"),
    ("a?b#c&d", "a%3Fb%23c%26d"),
    ("{curly}\"'", "%7Bcurly%7D%22%27"),
];
/// Spellings of IPv4 addresses that resolvers read, most of them as 169.254.169.254.
const SPELLINGS: [&str; 9] = [
    "0xa9fea9fe",
    "2852039166",
    "169.254.43518",
    "0251.0376.0251.0376",
    "169.254.169.254.",
    "127.9",
    "010.0.0.1",
    "10.0.6.256",
    "0x7f.1",
];

fn beside(consul: &Consul, arguments: &[&str]) -> Agent {
    let address = consul.address();
    let consul = ["--consul", &address];
    Agent::run(consul.iter().chain(arguments).map(OsStr::new))
}

/// An etcd that a test may drop in async code: its client has a runtime of its own.
struct DroppedInPlace(Option<Etcd>);

impl std::ops::Deref for DroppedInPlace {
    type Target = Etcd;

    fn deref(&self) -> &Etcd {
        self.0.as_ref().unwrap()
    }
}

impl Drop for DroppedInPlace {
    fn drop(&mut self) {
        let etcd = self.0.take();
        tokio::task::block_in_place(|| drop(etcd));
    }
}

fn etcd() -> DroppedInPlace {
    DroppedInPlace(Some(Etcd::start()))
}

fn code(agent: &Agent, path: &str) -> (u16, String) {
    let answer = agent.get(&format!("/pick/{path}"));
    let code = answer.json()["code"].as_str().unwrap_or_default().to_owned();
    (answer.status, code)
}

fn until_code(agent: &Agent, path: &str, expected: (u16, &str)) {
    until(SOON, &format!("{path} is {expected:?}"), || {
        (code(agent, path) == (expected.0, expected.1.to_owned())).then_some(())
    });
}

/// The skipped registrations of a service: the number, and each as `source id reason`.
fn skipped(agent: &Agent, service: &str) -> (u64, Vec<String>) {
    let answer = agent.get(&format!("/services/{service}")).json();
    let word = |entry: &Value, field: &str| entry[field].as_str().unwrap_or_default().to_owned();
    let one = |entry: &Value| {
        format!(
            "{} {} {}",
            word(entry, "source"),
            word(entry, "id"),
            word(entry, "reason")
        )
    };
    let listed = answer["skipped"].as_array().unwrap().iter().map(one).collect();
    (answer["skipped_registrations"].as_u64().unwrap(), listed)
}

fn errors(agent: &Agent, source: &str, reason: &str) -> f64 {
    let series = format!(r#"pickd_source_errors_total{{reason="{reason}",source="{source}"}}"#);
    agent.metric(&series).unwrap()
}

fn known(agent: &Agent) -> BTreeSet<String> {
    let answer = agent.get("/services").json();
    let name = |service: &Value| service["service"].as_str().unwrap().to_owned();
    answer["services"].as_array().unwrap().iter().map(name).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_any_text_and_its_path_is_percent_encoded() {
    let (consul, etcd, folder) = (Consul::start().await, etcd(), Folder::new());
    let mut file = String::new();
    for (number, (name, _)) in (1_u16..).zip(NAMES) {
        consul
            .register("n", name, &format!("c{number}"), i64::from(number), json!({}))
            .await;
        // A segment of a key is the service: no slash there.
        if !name.contains('/') {
            etcd.put(&format!("/services/{name}/e{number}"), &format!("10.0.0.2:{number}"));
        }
        file += &format!("[[service]]\nname = {}\n", Value::from(name));
        file += &format!("[[service.instance]]\nid = \"f{number}\"\nhost = \"10.0.0.3\"\nport = {number}\n");
    }
    let file = folder.write("s.toml", &file);
    let (url, etcd_url, file) = (consul.address(), etcd.urls(), file.display().to_string());
    let agent = Agent::run(["--consul", &url, "--etcd", &etcd_url, "--file", &file]).ready();
    for (number, (name, path)) in (1..).zip(NAMES) {
        let mut expected = vec![format!("c{number}@n"), format!("e{number}"), format!("f{number}~file")];
        expected.retain(|id| !name.contains('/') || !id.starts_with('e'));
        until(SOON, &format!("{name} is {expected:?}"), || {
            (ids(&agent, path) == expected).then_some(())
        });
        let answer = agent.get(&format!("/pick/{path}")).json();
        assert_eq!(answer["service"], name);
        assert_eq!(agent.get(&format!("/v1/services/{path}")).json()["service"], name);
        assert_eq!(agent.get(&format!("/explain/{path}")).json()["service"], name);
        let url = agent.url();
        let pick = command(["pick", name, "--agent", &url]);
        assert!(pick.status.success(), "{name}: {pick:?}");
        let change = |words: &[&str]| {
            let output = command(words.iter().copied().chain(["--agent", &url]));
            assert!(output.status.success(), "{name}: {output:?}");
        };
        let id = format!("c{number}@n");
        change(&["drain", name, &id, "--reason", "test"]);
        assert!(!ids(&agent, path).contains(&id), "{name}");
        change(&["undrain", name, &id]);
        change(&["explain", name]);
    }
    let metrics = agent.get("/metrics");
    let escaped = r#"pickd_pool_available_instances{service="{curly}\"'"} 3"#;
    assert!(metrics.text().lines().any(|line| line == escaped), "{escaped}");
    assert_eq!(
        agent.get("/pick/team/api").status,
        404,
        "a slash in a path is a separator"
    );
    assert_eq!(code(&agent, "a%2F%2Fb"), (400, "invalid_request".to_owned()));
    assert_eq!(code(&agent, "absent%2Fname"), (404, "unknown_service".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_consul_cannot_be_asked_for_are_left_out_and_counted() {
    let consul = Consul::start().await;
    for (number, name) in (1..).zip(["a\u{202e}b", "a\nb", "a\u{a0}b", "a//b", "..", "/a", "(unknown)"]) {
        consul
            .register("n", name, &format!("x{number}"), number, json!({}))
            .await;
    }
    consul.register("n", "web", "w", 80, json!({})).await;
    let agent = beside(&consul, &[]).ready();
    until_picked(&agent, "web", &["w@n"], SOON);
    assert_eq!(known(&agent), ["web".to_owned()].into());
    assert_eq!(errors(&agent, "consul", "invalid_instance"), 7.0);
    // Consul goes on to be read, and the names are not counted again.
    consul.register("n", "later", "l", 81, json!({})).await;
    until_picked(&agent, "later", &["l@n"], SOON);
    assert_eq!(errors(&agent, "consul", "invalid_instance"), 7.0);
    assert_eq!(agent.metric(r#"pickd_source_up{source="consul"}"#), Some(1.0));
}

#[test]
fn what_is_not_printable_is_escaped_on_a_terminal() {
    let folder = Folder::new();
    let instance = "[[service.instance]]\nid = \"i\u{202e}d\"\nhost = \"10.0.0.1\"\nport = 1\n";
    let file = folder.write("s.toml", &format!("[[service]]\nname = \"we\u{202e}b é\"\n{instance}"));
    let agent = Agent::run([OsStr::new("--file"), file.as_os_str()]).ready();
    let url = agent.url();
    let says = |words: &[&str]| {
        let output = command(words.iter().copied().chain(["--agent", &url]));
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap()
    };
    for (words, shown) in [
        (&["services"][..], "\nwe\\u{202e}b é "),
        (&["services", "we\u{202e}b é"], "\ni\\u{202e}d "),
        (&["explain", "we\u{202e}b é"], "we\\u{202e}b é: round_robin"),
        (&["drain", "we\u{202e}b é", "i\u{202e}d"], "i\\u{202e}d: "),
    ] {
        let text = says(words);
        assert!(text.contains(shown), "{words:?}: {text}");
        assert!(!text.contains('\u{202e}'), "{words:?}: {text}");
    }
    let unknown = command(["pick", "x\u{202e}y", "--agent", &url]);
    let text = String::from_utf8(unknown.stderr).unwrap();
    assert!(text.contains("x\\u{202e}y is unknown"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_compared_without_case_and_shown_as_registered() {
    let (consul, etcd, folder) = (Consul::start().await, etcd(), Folder::new());
    consul.register("n", "redis", "lower", 1, json!({})).await;
    consul.register("n", "É", "e", 4, json!({})).await;
    etcd.put("/services/REDIS/upper", "10.0.0.2:2");
    let config = format!(
        "[consul]\naddress = \"{}\"\nservices = [\"RED*\", \"é\", \"mixed\"]\nexclude = [\"*-OLD\"]\n\
         [etcd]\nendpoints = [\"{}\"]\n[services.Redis]\nstrategy = \"random\"\n[services.MIXED]\nstrategy = \"random\"\n",
        consul.address(),
        etcd.urls()
    );
    consul.register("n", "redis-old", "old", 9, json!({})).await;
    let file = folder.write("pickd.toml", &config);
    let agent = Agent::run([OsStr::new("--config"), file.as_os_str()]).ready();
    for spelling in ["redis", "REDIS", "rEdIs"] {
        until_picked(&agent, spelling, &["lower@n", "upper"], SOON);
    }
    until_picked(&agent, "%C3%A9", &["e@n"], SOON);
    // Consul was first by priority, and the configuration alone named `MIXED`.
    let shown = known(&agent);
    assert!(
        shown.contains("É") && shown.contains("MIXED") && !shown.contains("redis-old"),
        "{shown:?}"
    );
    assert_eq!(
        shown.iter().filter(|name| name.to_lowercase() == "redis").count(),
        1,
        "{shown:?}"
    );
    let service = agent.get("/services/REDIS").json();
    assert_eq!(
        (&service["strategy"], &service["total_instances"]),
        (&json!("random"), &json!(2))
    );

    // A second spelling in Consul joins the pool, and leaves it.
    consul.register("n", "Redis", "mixed", 3, json!({})).await;
    until_picked(&agent, "redis", &["lower@n", "mixed@n", "upper"], SOON);
    assert_eq!(known(&agent), shown);
    consul.deregister("n", Some("lower")).await;
    until_picked(&agent, "redis", &["mixed@n", "upper"], SOON);
    consul.register("n", "Mixed", "m", 5, json!({})).await;
    until_picked(&agent, "mixed", &["m@n"], SOON);
    let with_mixed = known(&agent);
    assert!(
        with_mixed.contains("Mixed") && !with_mixed.contains("MIXED"),
        "{with_mixed:?}"
    );
    assert_eq!(agent.get("/services/MIXED").json()["strategy"], "random");

    // Overrides and reports by any spelling are about the same instance.
    let url = agent.url();
    let drained = command(["drain", "ReDiS", "upper", "--agent", &url]);
    assert!(drained.status.success(), "{drained:?}");
    assert_eq!(ids(&agent, "redis"), ["mixed@n"]);
    let text = agent.get("/metrics");
    let series = text.text().lines().filter(|line| line.starts_with("pickd_overrides{"));
    let drains: Vec<_> = series.filter(|line| line.ends_with(" 1")).collect();
    assert_eq!(drains.len(), 1, "{drains:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_spellings_in_consul_cost_no_further_requests() {
    let consul = Consul::start().await;
    consul.register("n", "Redis", "a", 1, json!({ "Tags": ["x"] })).await;
    consul.register("n", "redis", "b", 2, json!({ "Tags": ["y"] })).await;
    let proxy = crate::support::proxy::Proxy::to(consul.port()).await;
    let address = proxy.address();
    let agent = Agent::run(["--consul", &address]).ready();
    until_picked(&agent, "redis", &["a@n", "b@n"], SOON);
    assert_eq!(known(&agent), ["Redis".to_owned()].into());
    // Each new service wakes the long poll of the catalog: the two spellings are no change.
    for number in 0..5 {
        consul
            .register(
                "n",
                &format!("s{number}"),
                &format!("s{number}"),
                10 + number,
                json!({}),
            )
            .await;
        until_picked(&agent, &format!("s{number}"), &[&format!("s{number}@n")], SOON);
    }
    let before = proxy.requests();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let requests = proxy.requests() - before;
    assert!(requests < 20, "{requests} requests while nothing changes");
    assert_eq!(ids(&agent, "REDIS"), ["a@n", "b@n"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_other_spelling_of_an_ipv4_address_is_an_instance() {
    let (consul, etcd, folder) = (Consul::start().await, etcd(), Folder::new());
    for (number, host) in (1..).zip(SPELLINGS) {
        consul
            .register("n", "web", &format!("c{number}"), 80, json!({ "Address": host }))
            .await;
        etcd.put(&format!("/services/web/e{number}"), &format!("{host}:80"));
        etcd.put(
            &format!("/services/web/j{number}"),
            &json!({ "host": host, "port": 80 }).to_string(),
        );
        let text = format!("[[service]]\nname = \"web\"\n[[service.instance]]\nhost = \"{host}\"\nport = 80\n");
        let file = folder.write("s.toml", &text);
        let checked = command([OsStr::new("check"), file.as_os_str()]);
        assert!(!checked.status.success(), "{host}: {checked:?}");
    }
    // Addresses of 169.254.169.254 that are valid are denied: listed, and never picked.
    for (id, host) in [
        ("m1", "::ffff:169.254.169.254"),
        ("m2", "::ffff:a9fe:a9fe"),
        ("m3", "169.254.169.254"),
    ] {
        consul.register("n", "web", id, 80, json!({ "Address": host })).await;
    }
    etcd.put("/services/web/m4", "[::ffff:a9fe:a9fe]:80");
    let (url, etcd_url) = (consul.address(), etcd.urls());
    let agent = Agent::run(["--consul", &url, "--etcd", &etcd_url]).ready();
    until_code(&agent, "web", (503, "none_available"));
    let service = agent.get("/services/web").json();
    let instances = service["instances"].as_object().unwrap();
    assert_eq!(instances.len(), 2, "{instances:?}");
    assert!(
        instances.values().all(|one| one["reason"] == "address_refused"),
        "{instances:?}"
    );
    assert_eq!(skipped(&agent, "web").0, 3 * SPELLINGS.len() as u64);
    let log = agent.program.stderr.all().join("\n");
    assert!(
        SPELLINGS.iter().all(|host| !log.contains(&format!("{host}\\\""))),
        "{log}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_without_a_usable_registration_is_known_and_empty() {
    let (consul, etcd, folder) = (Consul::start().await, etcd(), Folder::new());
    consul.register("n", "batch", "b1", 0, json!({})).await;
    consul
        .register("n", "broken", "x", 80, json!({ "Address": "S3cr3t!" }))
        .await;
    etcd.put("/services/vault/token", "S3cr3t");
    etcd.put("/services/job/j", r#"{"host":"10.0.0.1"}"#);
    let file = folder.write("s.toml", "[[service]]\nname = \"planned\"\n");
    let (url, etcd_url, file) = (consul.address(), etcd.urls(), file.display().to_string());
    let agent = Agent::run(["--consul", &url, "--etcd", &etcd_url, "--file", &file]).ready();
    let names = ["batch", "broken", "vault", "job", "planned"];
    for name in names {
        until_code(&agent, name, (503, "no_instances"));
    }
    assert_eq!(code(&agent, "absent"), (404, "unknown_service".to_owned()));
    assert_eq!(known(&agent), names.map(str::to_owned).into());
    assert_eq!(skipped(&agent, "batch"), (1, vec!["consul b1@n no_port".to_owned()]));
    assert_eq!(skipped(&agent, "broken"), (1, vec!["consul x@n invalid".to_owned()]));
    assert_eq!(
        skipped(&agent, "vault"),
        (1, vec!["etcd /services/vault/token invalid".to_owned()])
    );
    assert_eq!(
        skipped(&agent, "job"),
        (1, vec!["etcd /services/job/j no_port".to_owned()])
    );
    assert_eq!(skipped(&agent, "planned"), (0, vec![]));

    // Values stand neither in the log nor in an answer or a metric.
    let answers = [
        "/services",
        "/services/broken",
        "/services/vault",
        "/metrics",
        "/readyz",
    ];
    let texts = answers.map(|path| agent.get(path).text().to_owned());
    let log = agent.program.stderr.all().join("\n");
    assert!(log.contains("x@n: host: expected"), "{log}");
    assert!(texts.iter().chain([&log]).all(|text| !text.contains("S3cr3t")), "{log}");

    // One good registration is enough, and the name leaves with its last registration.
    consul.register("n", "batch", "b2", 81, json!({})).await;
    until_picked(&agent, "batch", &["b2@n"], SOON);
    etcd.put("/services/vault/token", "10.0.0.9:80");
    until_picked(&agent, "vault", &["token"], SOON);
    assert_eq!(skipped(&agent, "vault"), (0, vec![]));
    consul.deregister("n", Some("b1")).await;
    until(SOON, "nothing is skipped", || {
        (skipped(&agent, "batch").0 == 0).then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn registrations_without_a_port_are_counted_apart_and_listed() {
    let (consul, etcd) = (Consul::start().await, etcd());
    for number in 0..130 {
        consul
            .register("n", "web", &format!("p{number:03}"), 0, json!({}))
            .await;
    }
    consul.register("n", "web", "good", 80, json!({})).await;
    consul.register("n", "web", "port70000", 70_000, json!({})).await;
    etcd.put("/services/web/e1", "10.0.0.1");
    etcd.put("/services/web/e2", r#"{"host":"10.0.0.1","port":0}"#);
    let (url, etcd_url) = (consul.address(), etcd.urls());
    let agent = Agent::run(["--consul", &url, "--etcd", &etcd_url]).ready();
    until_picked(&agent, "web", &["good@n"], SOON);
    let (total, listed) = skipped(&agent, "web");
    assert_eq!((total, listed.len()), (133, 100));
    assert_eq!(listed[0], "consul p000@n no_port");
    assert_eq!(
        (
            errors(&agent, "consul", "no_port"),
            errors(&agent, "consul", "invalid_instance")
        ),
        (130.0, 1.0)
    );
    assert_eq!(
        (
            errors(&agent, "etcd", "no_port"),
            errors(&agent, "etcd", "invalid_instance")
        ),
        (2.0, 0.0)
    );
    let warnings = agent.program.logged("registrations skipped or partly ignored");
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert_eq!(
        (&warnings[0]["skipped"], &warnings[0]["reason"]),
        (&json!(1), &json!("port70000@n: port: expected 1 to 65535"))
    );
    // `pickd services` names a few of them.
    let shown = command(["services", "web", "--agent", &agent.url()]);
    let talk = String::from_utf8(shown.stderr).unwrap();
    assert!(
        talk.contains("source consul: skipped 100 (no_port): p000@n, p001@n, p002@n, ..."),
        "{talk}"
    );
    assert!(
        talk.contains("133 registrations are skipped, 100 of them are listed"),
        "{talk}"
    );
    assert_eq!(pool(&agent, "web").len(), 1);
}
