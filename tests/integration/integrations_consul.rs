//! `integrations/consul`: definitions, policy and script of the folder, with a real Consul.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use serde_json::json;

use crate::support::agent::{Agent, pickd};
use crate::support::backend::Backend;
use crate::support::consul::{Consul, MANAGEMENT};
use crate::support::folder::Folder;
use crate::support::http;
use crate::support::pool::until_picked;
use crate::support::programs::{bash, commands, read_integration, replaced, succeeds};
use crate::support::until;

/// For programs to start, and for a check with an interval of 5 s to have run.
const LATER: Duration = Duration::from_secs(45);

/// The definitions, with the ports of these backends.
fn definitions(backends: &[Backend; 3]) -> [(&'static str, String); 2] {
    let [first, second, third] = backends.each_ref().map(|backend| backend.address.port().to_string());
    [
        (
            "user-service.hcl",
            replaced(
                &read_integration("consul/user-service.hcl"),
                &[("8081", &first), ("8082", &second)],
            ),
        ),
        (
            "orders.json",
            replaced(&read_integration("consul/orders.json"), &[("8083", &third)]),
        ),
    ]
}

/// Waits until Consul passes so many instances of the service.
fn until_passing(consul: &Consul, service: &str, count: usize) {
    let address = SocketAddr::from(([127, 0, 0, 1], consul.port()));
    until(LATER, &format!("{count} of {service} pass"), || {
        let passing = http::get(address, &format!("/v1/health/service/{service}?passing")).json();
        (passing.as_array()?.len() == count).then_some(())
    });
}

/// What the definitions say is what is picked, and a check that fails takes its instance out.
fn picked_as_defined(consul: &Consul, backends: &[Backend; 3]) {
    until_passing(consul, "user-service", 2);
    until_passing(consul, "orders", 1);
    let verify = commands(
        "consul/README.md",
        &["pickd run --consul http://127.0.0.1:8500 --strategy "],
    );
    let [run] = verify.as_slice() else { panic!("{verify:?}") };
    let run = replaced(run, &[("http://127.0.0.1:8500", &consul.address())]);
    // Begun after all of them were healthy: none starts slowly.
    let agent = Agent::run(run.split_whitespace().skip(2)).ready();
    until_picked(&agent, "user-service", &["user-1@server", "user-2@server"], LATER);
    let mut picks = BTreeMap::<String, usize>::new();
    for _ in 0..30 {
        let pick = agent.get("/pick/user-service").json();
        *picks.entry(pick["id"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    assert_eq!(
        picks,
        [("user-1@server".to_owned(), 20), ("user-2@server".to_owned(), 10)].into()
    );
    let instances = agent.get("/services/user-service").json()["instances"].clone();
    let first = &instances["user-1@server"];
    assert_eq!(
        (&first["address"], &first["weight"], &first["tags"], &first["metadata"]),
        (
            &json!(backends[0].address.to_string()),
            &json!(2),
            &json!(["http", "v1"]),
            &json!({ "zone": "us-west" })
        )
    );
    let order = agent.get("/pick/orders").json();
    assert_eq!((&order["weight"], &order["tags"]), (&json!(4), &json!(["v1"])));

    let requests = backends[1].requests();
    backends[1].answers(500);
    until_picked(&agent, "user-service", &["user-1@server"], LATER);
    assert!(backends[1].requests() > requests);
    backends[1].answers(200);
    until_picked(&agent, "user-service", &["user-1@server", "user-2@server"], LATER);

    let verify = commands("consul/README.md", &["curl localhost:7425/pick", "pickd services "]);
    assert_eq!(verify.len(), 2, "{verify:?}");
    let script = replaced(&verify.join("\n"), &[("localhost:7425", &agent.address.to_string())]);
    let folder = Folder::new();
    let printed = succeeds(
        bash(&folder.path(""), &format!("set -e\n{script}"))
            .env("PICKD_AGENT", agent.url())
            .env("NO_PROXY", "*"),
    );
    assert!(
        printed.contains("\"service\":\"user-service\"") && printed.contains("user-2@server"),
        "{printed}"
    );
}

#[tokio::test]
async fn definitions_in_the_folder_of_the_agent_are_picked_by_weight() {
    let backends = [Backend::start(), Backend::start(), Backend::start()];
    let consul = Consul::start().await;
    for (name, text) in definitions(&backends) {
        consul.define(name, &text);
    }
    picked_as_defined(&consul, &backends);
}

#[tokio::test]
async fn definitions_registered_as_in_the_readme_are_picked_by_weight() {
    let backends = [Backend::start(), Backend::start(), Backend::start()];
    let consul = Consul::start().await;
    let folder = Folder::new();
    for (name, text) in definitions(&backends) {
        folder.write(name, &text);
    }
    let register = commands("consul/README.md", &["consul services register "]);
    assert_eq!(register.len(), 2, "{register:?}");
    let script = format!("set -e\n{}", register.join("\n"));
    succeeds(bash(&folder.path(""), &script).env("CONSUL_HTTP_ADDR", consul.address()));
    picked_as_defined(&consul, &backends);
}

/// The lines of the policy that are rules.
fn rules() -> Vec<String> {
    let policy = read_integration("consul/pickd-policy.hcl");
    let rules = policy.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    rules.map(str::to_owned).collect()
}

fn with_token(consul: &Consul, token_file: &std::path::Path) -> Agent {
    Agent::start(
        pickd()
            .args(["run", "--listen", "127.0.0.1:0", "--consul", &consul.address()])
            .env("CONSUL_HTTP_TOKEN_FILE", token_file),
    )
}

#[tokio::test]
async fn the_policy_is_enough_for_pickd_and_no_rule_of_it_can_be_left_out() {
    let consul = Consul::start_with_acl().await;
    consul.register("n1", "web", "w1", 80, json!({})).await;
    let folder = Folder::new();
    let files = ["create-token.sh", "pickd-policy.hcl"];
    for file in files {
        let path = folder.write(file, &read_integration(&format!("consul/{file}")));
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    folder.write("management-token", MANAGEMENT);
    let create = commands("consul/README.md", &["CONSUL_HTTP_TOKEN_FILE=management-token "]);
    let [create] = create.as_slice() else {
        panic!("{create:?}")
    };
    let create = || {
        succeeds(bash(&folder.path(""), create).env("CONSUL_HTTP_ADDR", consul.address()));
        fs::read_to_string(folder.path("pickd-token"))
            .unwrap()
            .trim()
            .to_owned()
    };
    let first = create();
    let token = create();
    assert!(first != token && token.len() == 36, "{first} {token}");
    let mode = fs::metadata(folder.path("pickd-token")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let agent = with_token(&consul, &folder.path("pickd-token")).ready();
    until_picked(&agent, "web", &["w1@n1"], LATER);
    consul.register("n2", "web", "w2", 81, json!({})).await;
    until_picked(&agent, "web", &["w1@n1", "w2@n2"], LATER);
    assert_eq!(denied(&agent), 0.0);
    let verify = commands("consul/README.md", &["curl localhost:7425/readyz"]);
    let verify = replaced(&verify.join("\n"), &[("localhost:7425", &agent.address.to_string())]);
    let printed = succeeds(bash(&folder.path(""), &verify).env("NO_PROXY", "*"));
    assert!(
        printed.contains(r#""ready":true"#) && printed.contains(r#""up":true"#),
        "{printed}"
    );

    // It writes neither services nor nodes nor anything else.
    for (path, body) in [
        ("/v1/agent/service/register", r#"{"Name":"web"}"#),
        ("/v1/catalog/register", r#"{"Node":"n3","Address":"10.0.0.3"}"#),
        ("/v1/kv/key", "value"),
    ] {
        let url = format!("{}{path}", consul.address());
        let write =
            format!("curl -s -o answer -w '%{{http_code}}' -X PUT -H 'X-Consul-Token: {token}' -d '{body}' {url}");
        assert_eq!(
            succeeds(bash(&folder.path(""), &write).env("NO_PROXY", "*")),
            "403",
            "{path}"
        );
    }

    let rules = rules();
    assert_eq!(rules.len(), 2, "{rules:?}");
    for without in 0..rules.len() {
        let mut rest = rules.clone();
        let rule = rest.remove(without);
        let token = consul.token(&format!("without-{without}"), &rest.join("\n")).await;
        let file = folder.write("lesser-token", &token);
        let agent = with_token(&consul, &file);
        until(LATER, &format!("without {rule} it is denied"), || {
            (denied(&agent) >= 1.0).then_some(())
        });
        assert_ne!(agent.get("/pick/web").status, 200, "{rule}");
    }
}

fn denied(agent: &Agent) -> f64 {
    let errors = agent.metric(r#"pickd_source_errors_total{reason="denied",source="consul"}"#);
    errors.unwrap()
}
