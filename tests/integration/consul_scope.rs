//! Which services and instances of Consul an agent takes: namespaces, partitions, kinds, filters,
//! tagged addresses, empty catalogs, and the variables of Consul's own tools.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::agent::{Agent, Program, SOON, command, pickd};
use crate::support::consul::Consul;
use crate::support::fake_consul::{Asked, FakeConsul, entry};
use crate::support::folder::Folder;
use crate::support::pool::{ids, pool, until_picked};
use crate::support::until;

/// Bound for events that wait for a timer of the watcher.
const LATER: Duration = Duration::from_secs(45);

/// An agent with these lines in `[consul]`.
fn agent(address: &str, lines: &str) -> Agent {
    let folder = Folder::new();
    let config = folder.write("pickd.toml", &format!("[consul]\naddress = \"{address}\"\n{lines}\n"));
    Agent::run(["--config", config.to_str().unwrap()])
}

fn source(agent: &Agent) -> Value {
    agent.get("/readyz").json()["sources"][0].clone()
}

/// Waits until the last error of the source has this text.
fn until_error(agent: &Agent, text: &str) {
    until(LATER, &format!("the error {text:?}, not {}", source(agent)), || {
        source(agent)["last_error"].as_str()?.contains(text).then_some(())
    });
}

fn code(agent: &Agent, service: &str) -> String {
    let answer = agent.get(&format!("/pick/{service}")).json();
    answer["code"].as_str().unwrap_or_default().to_owned()
}

fn errors(agent: &Agent, reason: &str) -> f64 {
    let series = format!(r#"pickd_source_errors_total{{reason="{reason}",source="consul"}}"#);
    agent.metric(&series).unwrap()
}

/// An instance of a namespace and a partition, as Consul Enterprise answers.
fn scoped(id: &str, port: u16, namespace: &str, partition: &str) -> Value {
    let mut entry = entry("web", id, port);
    entry["Node"]["Partition"] = json!(partition);
    entry["Service"]["Namespace"] = json!(namespace);
    entry["Service"]["Partition"] = json!(partition);
    entry
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_and_a_partition_are_sent_with_every_request() {
    let fake = FakeConsul::start(&[]).await;
    fake.change(|state| {
        let instances = vec![scoped("w1", 80, "team-a", "blue")];
        state.services.insert("web".to_owned(), instances);
    });
    let agent = agent(&fake.address(), "namespace = \"team-a\"\npartition = \"blue\"").ready();
    until_picked(&agent, "web", &["w1@n1"], SOON);
    until(SOON, "polls of the catalog and of the service", || {
        let polls = fake.asked().into_iter().filter(|asked| asked.query.contains("index="));
        (polls.map(|asked| asked.path).collect::<BTreeSet<_>>().len() >= 2).then_some(())
    });

    // Instances of another partition or namespace are not taken, and the last answer stays.
    for (namespace, partition) in [("team-a", "red"), ("team-b", "blue")] {
        let before = errors(&agent, "protocol");
        fake.change(|state| {
            state.index += 1;
            let instances = vec![scoped("w2", 81, namespace, partition)];
            state.services.insert("web".to_owned(), instances);
        });
        until(LATER, "the answer is refused", || {
            (errors(&agent, "protocol") > before).then_some(())
        });
        assert_eq!(ids(&agent, "web"), ["w1@n1"], "{namespace} {partition}");
    }

    // The question about rights is about the same namespace and partition.
    fake.change(|state| {
        state.index += 1;
        state.services.clear();
        state.listed.clear();
    });
    let authorize = |asked: &Asked| asked.path == "/v1/internal/acl/authorize";
    let question = until(LATER, "the question about rights", || {
        fake.asked().into_iter().find(authorize)
    });
    let body: Value = serde_json::from_str(&question.body).unwrap();
    assert_eq!(
        body,
        json!([{ "Resource": "service", "Access": "read", "Namespace": "team-a", "Partition": "blue" }])
    );
    for asked in fake.asked() {
        assert!(asked.query.contains("ns=team-a&partition=blue"), "{asked:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consul_without_namespaces_and_partitions_says_so() {
    let consul = Consul::start().await;
    consul.register("n1", "web", "w1", 80, json!({})).await;
    for (line, error) in [
        (
            "namespace = \"team-a\"",
            "Invalid query parameter: \"ns\" - Namespaces are a Consul Enterprise feature",
        ),
        (
            "partition = \"blue\"",
            "consul.partition is \"blue\", but this Consul has no partitions (a feature of Consul Enterprise)",
        ),
    ] {
        let agent = agent(&consul.address(), line);
        until_error(&agent, error);
        assert_eq!(code(&agent, "web"), "not_synced", "{line}");
    }
    // The default partition has the same instances on every Consul.
    let agent = agent(&consul.address(), "partition = \"default\"").ready();
    until_picked(&agent, "web", &["w1@n1"], SOON);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_under_the_name_of_its_service_is_not_picked() {
    let consul = Consul::start().await;
    let register = |body: Value| consul.put("/v1/agent/service/register", body);
    register(json!({ "ID": "w1", "Name": "web", "Port": 80, "Address": "10.0.0.1" })).await;
    for (id, name) in [("w1-proxy", "web"), ("w2-proxy", "web-sidecar-proxy")] {
        register(json!({
            "ID": id, "Kind": "connect-proxy", "Name": name, "Port": 21000, "Address": "10.0.0.1",
            "Proxy": { "DestinationServiceName": "web" },
        }))
        .await;
    }
    let services = agent(&consul.address(), "").ready();
    until_picked(&services, "web", &["w1@server"], SOON);
    assert_eq!(code(&services, "web-sidecar-proxy"), "unknown_service");
    assert_eq!(errors(&services, "invalid_instance") + errors(&services, "denied"), 0.0);

    let proxies = agent(&consul.address(), "kinds = [\"connect-proxy\"]").ready();
    until_picked(&proxies, "web", &["w1-proxy@server"], SOON);
    until_picked(&proxies, "web-sidecar-proxy", &["w2-proxy@server"], SOON);
    let both = agent(&consul.address(), "kinds = [\"\", \"connect-proxy\"]").ready();
    until_picked(&both, "web", &["w1-proxy@server", "w1@server"], SOON);

    // A service that is registered again as a proxy leaves, and stays known.
    register(json!({
        "ID": "w1", "Kind": "connect-proxy", "Name": "web", "Port": 80, "Address": "10.0.0.1",
        "Proxy": { "DestinationServiceName": "other" },
    }))
    .await;
    until(LATER, "no ordinary instance is left", || {
        (code(&services, "web") == "no_instances").then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_is_evaluated_by_consul() {
    let consul = Consul::start().await;
    let fields = |tag: &str, zone: &str| json!({ "Tags": [tag], "Meta": { "zone": zone } });
    consul.register("n1", "web", "w1", 80, fields("v1", "west")).await;
    consul.register("n1", "web", "w2", 81, fields("v2", "west")).await;
    consul.register("n1", "web", "w3", 82, fields("v2", "east")).await;
    consul.register("n1", "other", "o1", 83, fields("v1", "west")).await;
    let filter = r#"filter = '"v2" in Service.Tags and Service.Meta.zone == "west"'"#;
    // Otherwise a service that vanishes as a whole is held while its instances accept connections.
    let agent = agent(&consul.address(), &format!("{filter}\nhold = 0")).ready();
    until_picked(&agent, "web", &["w2@n1"], SOON);
    assert_eq!(code(&agent, "other"), "unknown_service");
    // An empty answer is the filter's, and says nothing about rights.
    assert_eq!(errors(&agent, "denied"), 0.0);

    consul.register("n1", "web", "w3", 82, fields("v2", "west")).await;
    until_picked(&agent, "web", &["w2@n1", "w3@n1"], SOON);
    consul.register("n1", "other", "o1", 83, fields("v2", "west")).await;
    until_picked(&agent, "other", &["o1@n1"], SOON);
    consul.register("n1", "other", "o1", 83, fields("v1", "west")).await;
    until(SOON, "the last instance leaves", || {
        (code(&agent, "other") == "no_instances").then_some(())
    });
    consul.deregister("n1", Some("o1")).await;
    consul.deregister("n1", Some("w3")).await;
    until_picked(&agent, "web", &["w2@n1"], SOON);
    assert_eq!(errors(&agent, "denied"), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_that_is_not_valid_is_told_in_the_words_of_consul() {
    let consul = Consul::start().await;
    consul.register("n1", "web", "w1", 80, json!({})).await;
    for (filter, words) in [
        ("Foo == 1", "Selector \\\"Foo\\\" is not valid"),
        (
            "Service.Port == abc",
            "Failed to coerce value \\\"abc\\\" for selector \\\"Service.Port\\\"",
        ),
        ("Service.Tags and", "no match found, expected:"),
    ] {
        let agent = agent(&consul.address(), &format!("filter = \"{filter}\""));
        until_error(&agent, "consul.filter is not valid: ");
        let error = source(&agent).to_string();
        assert!(error.contains(words), "{error}");
        assert_eq!(code(&agent, "web"), "not_synced");
    }
}

/// Rights and filter: an instance that the token may not read is not one that the filter leaves
/// out.
#[tokio::test(flavor = "multi_thread")]
async fn a_filter_does_not_hide_that_rights_are_missing() {
    let consul = Consul::start_with_acl().await;
    consul.register("n1", "web", "w1", 80, json!({ "Tags": ["v2"] })).await;
    let good = r#"service_prefix "" { policy = "read" } node_prefix "" { policy = "read" }"#;
    let good = consul.token("good", good).await;
    let blind = consul.token("blind", r#"service_prefix "" { policy = "read" }"#).await;
    let folder = Folder::new();
    folder.write("token", &good);
    let text = format!(
        "[consul]\naddress = \"{}\"\ntoken_file = \"token\"\nrefresh = 4\nfilter = '\"v2\" in Service.Tags'\n",
        consul.address()
    );
    let config = folder.write("pickd.toml", &text);
    let agent = Agent::run(["--config", config.to_str().unwrap()]).ready();
    until_picked(&agent, "web", &["w1@n1"], SOON);
    folder.write("token", &blind);
    agent.program.signal("HUP");
    until(LATER, "it is denied", || {
        (errors(&agent, "denied") >= 1.0).then_some(())
    });
    assert_eq!(ids(&agent, "web"), ["w1@n1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tagged_address_is_taken_where_there_is_one() {
    let consul = Consul::start().await;
    // Through the agent, which adds tagged addresses of its own.
    let wan = json!({ "wan": { "Address": "203.0.113.1", "Port": 8080 } });
    let with_wan = json!({ "ID": "w1", "Name": "web", "Port": 80, "Address": "10.0.0.1", "TaggedAddresses": wan });
    consul.put("/v1/agent/service/register", with_wan).await;
    let without = json!({ "ID": "w2", "Name": "web", "Port": 81, "Address": "10.0.0.2" });
    consul.put("/v1/agent/service/register", without).await;
    // Through the catalog, on a node with a tagged address.
    for (id, port, address) in [("w3", 82, ""), ("w4", 83, "10.0.0.4")] {
        let service = json!({ "ID": id, "Service": "web", "Port": port, "Address": address });
        let node = json!({
            "Node": "n1", "Address": "10.0.0.3", "TaggedAddresses": { "wan": "203.0.113.3" }, "Service": service,
        });
        consul.put("/v1/catalog/register", node).await;
    }
    let addresses = |agent: &Agent| -> Vec<String> {
        let pool = pool(agent, "web");
        pool.iter().map(|(id, address)| format!("{id} {address}")).collect()
    };
    for (line, expected) in [
        (
            "",
            [
                "w1@server 10.0.0.1:80",
                "w2@server 10.0.0.2:81",
                "w3@n1 10.0.0.3:82",
                "w4@n1 10.0.0.4:83",
            ],
        ),
        (
            "tagged_address = \"wan\"",
            [
                "w1@server 203.0.113.1:8080",
                "w2@server 10.0.0.2:81",
                "w3@n1 203.0.113.3:82",
                "w4@n1 10.0.0.4:83",
            ],
        ),
        // An agent of Consul adds this name to every service with an IP address.
        (
            "tagged_address = \"lan_ipv4\"",
            [
                "w1@server 10.0.0.1:80",
                "w2@server 10.0.0.2:81",
                "w3@n1 10.0.0.3:82",
                "w4@n1 10.0.0.4:83",
            ],
        ),
    ] {
        let agent = agent(&consul.address(), line).ready();
        until(SOON, &format!("{line}: {expected:?}"), || {
            let mut expected = expected.to_vec();
            expected.sort_unstable();
            (addresses(&agent) == expected).then_some(())
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_catalog_is_synced_if_the_token_may_read() {
    const DENIED: [(u16, &str); 2] = [(200, r#"[{"Allow":false}]"#), (403, "ACL not found")];
    for (rights, readable) in [
        ([(200, r#"[{"Allow":true}]"#), DENIED[1]], true),
        ([(401, "ACL support disabled"), DENIED[1]], true),
        // A proxy that passes on GET alone.
        ([(405, "not allowed"), (401, "ACL support disabled")], true),
        ([(405, "not allowed"), (200, "{}")], false),
        (DENIED, false),
    ] {
        let fake = FakeConsul::start(&[]).await;
        fake.change(|state| {
            state.listed.clear();
            state.rights = rights;
        });
        let started = Instant::now();
        let agent = agent(&fake.address(), "");
        if !readable {
            until(LATER, "it is denied", || {
                (errors(&agent, "denied") >= 2.0).then_some(())
            });
            assert_eq!(code(&agent, "web"), "not_synced", "{rights:?}");
            continue;
        }
        until(LATER, &format!("{rights:?}: ready"), || {
            (agent.get("/readyz").status == 200).then_some(())
        });
        // A second read confirms the first.
        assert!(started.elapsed() >= Duration::from_secs(5), "{:?}", started.elapsed());
        assert_eq!(code(&agent, "web"), "unknown_service");
        assert_eq!(errors(&agent, "denied"), 0.0);
        fake.change(|state| {
            state.index += 1;
            state.services.insert("web".to_owned(), vec![entry("web", "w1", 80)]);
        });
        until_picked(&agent, "web", &["w1@n1"], SOON);
        // The last service leaves the catalog.
        fake.change(|state| {
            state.index += 1;
            state.services.clear();
        });
        until(LATER, "the last service leaves", || {
            ids(&agent, "web").is_empty().then_some(())
        });
        assert_eq!(errors(&agent, "denied"), 0.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_catalog_is_judged_by_the_rights_of_the_token() {
    let consul = Consul::start_with_acl().await;
    consul.register("n1", "orders", "o1", 80, json!({})).await;
    let rules = r#"service_prefix "web-" { policy = "read" } node_prefix "" { policy = "read" }"#;
    let token = consul.token("web", rules).await;
    let folder = Folder::new();
    folder.write("token", &token);
    let with = |services: &str| {
        let token_file = folder.path("token");
        let lines = format!("token_file = {token_file:?}\nservices = {services}");
        agent(&consul.address(), &lines)
    };
    // The token may read the services that are asked for, and there are none.
    let web = with(r#"["web-*", "web-2"]"#);
    until(LATER, "ready", || (web.get("/readyz").status == 200).then_some(()));
    assert_eq!(code(&web, "web-1"), "unknown_service");
    // The token may not read all services that are asked for.
    for services in [r#"["*"]"#, r#"["web-*", "orders"]"#] {
        let other = with(services);
        until(LATER, "it is denied", || {
            (errors(&other, "denied") >= 2.0).then_some(())
        });
        assert_eq!(code(&other, "orders"), "not_synced", "{services}");
    }
    consul.register("n1", "web-1", "w1", 80, json!({})).await;
    until_picked(&web, "web-1", &["w1@n1"], SOON);
    consul.deregister("n1", Some("w1")).await;
    until(LATER, "the last service leaves", || {
        ids(&web, "web-1").is_empty().then_some(())
    });
    assert_eq!(errors(&web, "denied"), 0.0);
}

/// A question about rights that was not answered says nothing about the token.
#[tokio::test(flavor = "multi_thread")]
async fn a_question_about_rights_that_is_refused_for_the_rate_is_asked_again() {
    for (status, reason) in [(429, "throttled"), (504, "unavailable")] {
        let fake = FakeConsul::start(&[]).await;
        fake.change(|state| {
            state.listed.clear();
            state.rights = [(status, "not now"), (403, "ACL not found")];
        });
        let agent = agent(&fake.address(), "");
        until(LATER, reason, || (errors(&agent, reason) >= 2.0).then_some(()));
        fake.change(|state| state.rights[0] = (200, r#"[{"Allow":true}]"#));
        until(LATER, &format!("{reason}: ready"), || {
            (agent.get("/readyz").status == 200).then_some(())
        });
        assert_eq!(errors(&agent, "denied"), 0.0, "{reason}");
    }
}

/// The names of Consul's variables in a text.
fn variables(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'));
    let named = words.filter(|word| word.starts_with("CONSUL_") && word.len() > "CONSUL_".len());
    named.map(str::to_owned).collect()
}

/// Every variable of Consul that a document names reaches Consul, or is refused.
#[tokio::test(flavor = "multi_thread")]
async fn every_variable_of_consul_that_a_document_names_is_heeded() {
    let fake = FakeConsul::start(&[]).await;
    fake.change(|state| {
        let instances = vec![scoped("w1", 80, "team-a", "blue")];
        state.services.insert("web".to_owned(), instances);
    });
    let folder = Folder::new();
    let token = folder.write("token", "from-a-file");
    let missing = folder.path("missing.pem");
    let missing = missing.to_str().unwrap();
    let config = folder.write("pickd.toml", "[consul]\n");
    let run = |variables: &[(&str, &str)]| {
        let mut command = pickd();
        command.args(["run", "--listen", "127.0.0.1:0", "--config", config.to_str().unwrap()]);
        command.envs(variables.iter().copied());
        command
    };
    let mut tested = BTreeSet::new();

    // Variables that change what is sent.
    let address = fake.address();
    let sent = [
        ("CONSUL_HTTP_ADDR", address.as_str(), ""),
        ("CONSUL_HTTP_TOKEN", "s3cret", "x-consul-token: s3cret"),
        (
            "CONSUL_HTTP_TOKEN_FILE",
            token.to_str().unwrap(),
            "x-consul-token: from-a-file",
        ),
        (
            "CONSUL_HTTP_AUTH",
            "user:password",
            "authorization: Basic dXNlcjpwYXNzd29yZA==",
        ),
        ("CONSUL_NAMESPACE", "team-a", "ns=team-a"),
        ("CONSUL_PARTITION", "blue", "partition=blue"),
    ];
    for (name, value, expected) in sent {
        let from = fake.asked().len();
        let agent = Agent::start(&mut run(&[("CONSUL_HTTP_ADDR", &address), (name, value)])).ready();
        until_picked(&agent, "web", &["w1@n1"], SOON);
        for asked in &fake.asked()[from..] {
            assert!(asked.head.contains(expected), "{name}: {asked:?}");
        }
        tested.insert(name.to_owned());
    }

    // Variables about TLS, by the error that a wrong value brings.
    let https = [("CONSUL_HTTP_ADDR", "https://127.0.0.1:9")];
    for (name, value, code, expected) in [
        ("CONSUL_HTTP_SSL", "maybe", 2, "expected true or false"),
        ("CONSUL_HTTP_SSL_VERIFY", "maybe", 2, "expected true or false"),
        (
            "CONSUL_TLS_SERVER_NAME",
            "a b",
            2,
            "expected a host name or an IP address",
        ),
        ("CONSUL_CLIENT_CERT", missing, 2, "a certificate without its key"),
        ("CONSUL_CLIENT_KEY", missing, 2, "a key without its certificate"),
        ("CONSUL_CACERT", missing, 1, missing),
        ("CONSUL_CAPATH", missing, 1, missing),
    ] {
        let mut program = Program::start(run(&https).env(name, value));
        assert_eq!(program.exit_code(SOON), Some(code), "{name}");
        until(SOON, &format!("{name}: {expected}"), || {
            program.stderr.all().join("\n").contains(expected).then_some(())
        });
        tested.insert(name.to_owned());
    }

    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut named = BTreeSet::new();
    for folder in ["", "docs", "charts/pickd", "integrations/consul"] {
        for file in fs::read_dir(root.join(folder)).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "md") {
                named.extend(variables(&fs::read_to_string(path).unwrap()));
            }
        }
    }
    let help = command(["run", "--help"]);
    named.extend(variables(&String::from_utf8(help.stdout).unwrap()));
    // A port of the example with Docker.
    named.remove("CONSUL_PORT");
    assert_eq!(named, tested);
}
