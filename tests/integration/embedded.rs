//! An agent inside this process, beside a real Consul and a real etcd: pools without listeners.

use std::future::Future;
use std::time::Duration;

use pickd::agent::EmbeddedAgent;
use pickd::client::ServiceError;
use pickd::config::{Config, ConfigError};
use pickd::probe::HealthCheck;
use pickd::{
    Context, Directory, LoadBalancerConfig, LoadBalancingStrategy, Outcome, PickError, ServiceInstance, ServiceRequest,
    Services,
};
use serde_json::json;
use tokio::runtime::Runtime;

use crate::support::agent::SOON;
use crate::support::backend::Backend;
use crate::support::consul::Consul;
use crate::support::etcd::Etcd;
use crate::support::{eventually, free_ports};

fn config(text: &str) -> Config {
    text.parse().unwrap()
}

/// The ids of the instances that can be picked.
fn ids(directory: &Directory, service: &str) -> Vec<String> {
    let Some(balancer) = directory.get(service) else {
        return Vec::new();
    };
    let available = |(id, available): (String, bool)| available.then_some(id);
    let instances = balancer.statistics().instances;
    let all = instances
        .into_iter()
        .map(|(id, instance)| (id.to_string(), instance.available));
    all.filter_map(available).collect()
}

async fn until_picked(directory: &Directory, service: &str, expected: &[&str]) {
    let picked = || {
        let found = ids(directory, service);
        async move { (found == expected).then_some(()) }
    };
    eventually(SOON, &format!("{service} is {expected:?}"), picked).await;
}

fn get(path: &str) -> ServiceRequest<'static> {
    ServiceRequest::get(path).unwrap()
}

#[tokio::test]
async fn consul_feeds_the_pools_of_a_program_and_the_pools_stay() {
    let consul = Consul::start().await;
    let (first, second) = (Backend::start(), Backend::start());
    let address = json!({ "Address": "127.0.0.1" });
    consul
        .register("n1", "users", "user-1", first.address.port().into(), address.clone())
        .await;
    consul
        .register("n2", "users", "user-2", second.address.port().into(), address.clone())
        .await;
    let text = format!(
        "[consul]\naddress = \"{}\"\n[services.users]\nstrategy = \"least_connections\"\n\
         breaker = {{ open_min = \"100ms\", open_max = \"200ms\" }}\nslow_start = \"0s\"",
        consul.address()
    );
    let agent = EmbeddedAgent::start(config(&text)).unwrap();
    agent.wait_until_synced(SOON).await.unwrap();
    let directory = agent.directory();
    let services = Services::over(agent.directory()).unwrap();
    assert_eq!(
        ids(&directory, "users"),
        ["user-1@n1", "user-2@n2"],
        "synced: nothing is missing"
    );
    for _ in 0..4 {
        services.call_service("users", get("/users/7")).await.unwrap();
    }
    assert!(first.requests() > 0 && second.requests() > 0);
    let overview = services.overview();
    assert_eq!(
        overview.service("users").unwrap().strategy,
        LoadBalancingStrategy::LeastConnections
    );
    assert_eq!((overview.healthy_instances, overview.total_requests), (2, 4));
    let unknown = services.call_service("mails", get("/")).await.unwrap_err();
    assert!(matches!(unknown, ServiceError::UnknownService { .. }), "{unknown:?}");

    // Changes of the registry follow: a critical check, a new service, an instance that leaves.
    consul.check("n2", "user-2", "http", "critical", "down").await;
    until_picked(&directory, "users", &["user-1@n1"]).await;
    consul.check("n2", "user-2", "http", "passing", "up").await;
    until_picked(&directory, "users", &["user-1@n1", "user-2@n2"]).await;
    consul
        .register("n1", "orders", "order-1", first.address.port().into(), address.clone())
        .await;
    until_picked(&directory, "orders", &["order-1@n1"]).await;

    assert!(agent.is_running());
    agent.stop().await.unwrap();
    consul.deregister("n1", Some("user-1")).await;
    consul
        .register("n3", "users", "user-3", second.address.port().into(), address)
        .await;
    services.call_service("orders", get("/")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(
        ids(&directory, "users"),
        ["user-1@n1", "user-2@n2"],
        "discovery has stopped"
    );

    // The pool lives without the agent: an instance that fails goes out, and returns by a trial.
    first.stop();
    for _ in 0..10 {
        services.call_service("users", get("/")).await.unwrap();
    }
    assert_eq!(ids(&directory, "users"), ["user-2@n2"]);
    first.restart();
    let returned = || async {
        services.call_service("users", get("/")).await.unwrap();
        (ids(&directory, "users") == ["user-1@n1", "user-2@n2"]).then_some(())
    };
    eventually(SOON, "a trial brings the instance back", returned).await;
}

#[test]
fn etcd_feeds_the_pools_of_a_program_and_the_pools_stay() {
    let etcd = Etcd::start();
    let (backend, second) = (Backend::start(), Backend::start());
    let runtime = Runtime::new().unwrap();
    etcd.put("/services/users/user-1", &backend.address.to_string());
    let text = format!("[etcd]\nendpoints = [\"{}\"]", etcd.url(0));
    let agent = runtime.block_on(async {
        let agent = EmbeddedAgent::start(config(&text)).unwrap();
        agent.wait_until_synced(SOON).await.unwrap();
        agent
    });
    let directory = agent.directory();
    let services = Services::over(agent.directory()).unwrap();
    let call = || runtime.block_on(services.call_service("users", get("/")));
    runtime.block_on(until_picked(&directory, "users", &["user-1"]));
    assert_eq!(call().unwrap().instance().as_str(), "user-1");
    etcd.put("/services/users/user-2", &second.address.to_string());
    runtime.block_on(until_picked(&directory, "users", &["user-1", "user-2"]));
    etcd.delete("/services/users/user-1");
    runtime.block_on(until_picked(&directory, "users", &["user-2"]));

    runtime.block_on(agent.stop()).unwrap();
    etcd.delete("/services/users/user-2");
    assert_eq!(call().unwrap().instance().as_str(), "user-2");
    assert_eq!(ids(&directory, "users"), ["user-2"]);
}

/// Runs a future that must end soon.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.expect("it ends soon")
}

#[tokio::test]
async fn a_registry_that_is_away_is_named_and_its_services_are_not_unknown() {
    let [closed] = free_ports();
    let text = format!("[consul]\naddress = \"http://127.0.0.1:{closed}\"\n[services.users]");
    let agent = EmbeddedAgent::start(config(&text)).unwrap();
    let services = Services::over(agent.directory()).unwrap();
    let not_synced = soon(agent.wait_until_synced(Duration::from_millis(300)))
        .await
        .unwrap_err();
    assert_eq!(not_synced.waiting_for, ["consul"]);
    assert!(
        not_synced
            .to_string()
            .starts_with("consul has not synced within 300ms: "),
        "{not_synced}"
    );
    assert!(!not_synced.errors.is_empty());
    for service in ["users", "orders"] {
        let error = services.call_service(service, get("/")).await.unwrap_err();
        assert!(
            matches!(error, ServiceError::NoInstance(PickError::NotSynced { .. })),
            "{error:?}"
        );
    }
    soon(agent.stop()).await.unwrap();
}

#[tokio::test]
async fn a_program_registers_services_beside_those_of_the_registry() {
    let consul = Consul::start().await;
    let backend = Backend::start();
    let other = Backend::start();
    let [port, second] = [&backend, &other].map(|backend| i64::from(backend.address.port()));
    consul
        .register("n1", "users", "user-1", port, json!({ "Address": "127.0.0.1" }))
        .await;
    let text = format!("[consul]\naddress = \"{}\"", consul.address());
    let agent = EmbeddedAgent::start(config(&text)).unwrap();
    agent.wait_until_synced(SOON).await.unwrap();
    let services = Services::over(agent.directory()).unwrap();
    let own = ServiceInstance::new("own-1", "127.0.0.1", port).unwrap();
    services.register(&"own".parse().unwrap(), LoadBalancerConfig::default(), [own]);
    consul
        .register("n1", "users", "user-2", second, json!({ "Address": "127.0.0.1" }))
        .await;
    until_picked(services.directory(), "users", &["user-1@n1", "user-2@n1"]).await;
    for service in ["own", "users"] {
        services.call_service(service, get("/")).await.unwrap();
    }
    // The agent drives the pools: outcomes of the program's own requests count as well.
    let balancer = services.balancer("own").unwrap();
    let acquired = balancer.acquire(&Context::new()).unwrap();
    acquired.finish(Outcome::Success, Duration::from_millis(1));
    assert_eq!(services.overview().service("own").unwrap().reported_requests, 2);
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn a_program_does_not_check_the_services_of_its_agent() {
    let consul = Consul::start().await;
    let (first, second, own) = (Backend::start(), Backend::start(), Backend::start());
    // The checks of the agent fail there. A TCP connection would pass.
    second.answers(500);
    for (id, backend) in [("user-1", &first), ("user-2", &second)] {
        let port = i64::from(backend.address.port());
        let address = json!({ "Address": "127.0.0.1" });
        consul.register("n1", "users", id, port, address).await;
    }
    let text = format!(
        "[consul]\naddress = \"{}\"\n[services.users]\nslow_start = \"0s\"\nrise = 1\n\
         health_check = {{ type = \"http\", path = \"/\" }}\nhealth_check_interval = \"100ms\"",
        consul.address()
    );
    let agent = EmbeddedAgent::start(config(&text)).unwrap();
    agent.wait_until_synced(SOON).await.unwrap();
    let services = Services::over(agent.directory()).unwrap();
    until_picked(services.directory(), "users", &["user-1@n1"]).await;

    let users = "users".parse().unwrap();
    let often = LoadBalancerConfig::default();
    let often = often.with_health_check_interval(Duration::from_millis(100)).unwrap();
    let instance = ServiceInstance::new("own-1", "127.0.0.1", own.address.port()).unwrap();
    services.register(&"own".parse().unwrap(), often, [instance]);
    services.set_health_check(&users, HealthCheck::Tcp);
    services.start_health_checks();
    services.set_health_check(&users, HealthCheck::Tcp);
    let checked = || {
        assert_eq!(ids(services.directory(), "users"), ["user-1@n1"]);
        let passed = services.balancer("own").unwrap().checks().passed;
        async move { (passed > 5).then_some(()) }
    };
    eventually(SOON, "the program checks its own service", checked).await;

    services.stop_health_checks().await;
    assert_eq!(
        ids(services.directory(), "users"),
        ["user-1@n1"],
        "the results of the agent stay"
    );
    agent.stop().await.unwrap();
}

#[test]
fn a_configuration_is_text_and_its_refusals_have_places() {
    assert!(matches!("".parse::<Config>(), Err(ConfigError::NoSource)));
    let refused = "[consul]\nadress = 1".parse::<Config>().unwrap_err().to_string();
    assert!(
        refused.starts_with("configuration:2:1: unknown field `adress`"),
        "{refused}"
    );
}
