//! Registrations that flap: out at once, back with a slow start each time, and shown.

use std::sync::Arc;
use std::time::Duration;

use pickd::balancer::{Clock, Environment, ExplainedInstance, Manual, RegistryStatus, Transitioned};
use pickd::{Context, LoadBalancer, LoadBalancerConfig, ServiceInstance};
use serde_json::json;

use crate::support::agent::{Agent, SOON};
use crate::support::consul::Consul;
use crate::support::folder::Folder;
use crate::support::until;

struct Pool {
    balancer: LoadBalancer,
    clock: Arc<Manual>,
}

impl Pool {
    /// `a` and `b`, with this slow start, and in use.
    fn new(slow_start: Duration) -> Self {
        let clock = Arc::new(Manual::default());
        clock.advance(Duration::from_secs(10_000));
        let environment = Environment {
            clock: clock.clone(),
            ..Environment::default()
        };
        let config = LoadBalancerConfig::default().with_slow_start(slow_start).unwrap();
        let balancer = LoadBalancer::with_environment("web".parse().unwrap(), config, environment, 0);
        let pool = Self { balancer, clock };
        pool.status_of_a(RegistryStatus::Passing);
        pool.balancer.select_instance(&Context::new()).unwrap();
        pool
    }

    fn status_of_a(&self, status: RegistryStatus) {
        let with = |id: &str, host, status| ServiceInstance::new(id, host, 80).unwrap().with_status(status);
        let all = [
            with("a", "10.0.0.1", status),
            with("b", "10.0.0.2", RegistryStatus::Passing),
        ];
        self.balancer.apply(all.map(Arc::new));
    }

    fn without_a(&self) {
        let b = ServiceInstance::new("b", "10.0.0.2", 80).unwrap();
        self.balancer.apply([Arc::new(b.with_status(RegistryStatus::Passing))]);
    }

    fn seconds(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
        self.balancer.advance(self.clock.now());
    }

    fn picks_of_a(&self, picks: usize) -> usize {
        let pick = |_| self.balancer.select_instance(&Context::new()).unwrap();
        (0..picks).map(pick).filter(|pick| pick.id().as_str() == "a").count()
    }

    fn a(&self) -> ExplainedInstance {
        self.balancer.explain_instance(&"a".parse().unwrap()).unwrap()
    }

    fn flapping_told(&self) -> usize {
        let told = self.balancer.take_transitions();
        told.iter()
            .filter(|transition| matches!(transition.what, Transitioned::Flapping { changes: 6 }))
            .count()
    }
}

#[test]
fn only_the_return_of_a_flapping_instance_is_slow() {
    let pool = Pool::new(Duration::ZERO);
    for _ in 0..2 {
        pool.seconds(8);
        pool.status_of_a(RegistryStatus::Critical);
        assert_eq!(pool.picks_of_a(100), 0);
        pool.seconds(8);
        pool.status_of_a(RegistryStatus::Passing);
        assert_eq!(pool.picks_of_a(100), 50, "slow start is off, and four changes are few");
    }
    assert_eq!((pool.a().registry_changes, pool.a().flapping), (4, false));
    pool.seconds(1);
    pool.status_of_a(RegistryStatus::Critical);
    pool.seconds(1);
    pool.status_of_a(RegistryStatus::Passing);
    let a = pool.a();
    assert_eq!(
        (a.registry_changes, a.flapping, a.factors.slow_start),
        (6, true, 1.0 / 16.0)
    );
    assert!(pool.balancer.statistics().instances["a"].flapping);
    assert!(!pool.balancer.statistics().instances["b"].flapping);
    assert_eq!(pool.flapping_told(), 1);
    // 1/16 beside 1: one of 17.
    assert_eq!(pool.picks_of_a(170), 10);
    pool.seconds(15);
    assert_eq!(pool.a().factors.slow_start, 0.5);
    // Out at once, and slow from the beginning at each return.
    pool.status_of_a(RegistryStatus::Critical);
    assert_eq!(pool.picks_of_a(100), 0);
    pool.status_of_a(RegistryStatus::Warning);
    assert_eq!(pool.a().factors.slow_start, 1.0 / 16.0);
    pool.status_of_a(RegistryStatus::Passing);
    // A slow start that began while it flapped goes on to its end.
    pool.seconds(29);
    assert_eq!((pool.a().registry_changes, pool.a().flapping), (5, false));
    assert_eq!(pool.a().factors.slow_start, 15.0 / 16.0);
    pool.seconds(2);
    assert_eq!((pool.a().factors.slow_start, pool.picks_of_a(100)), (1.0, 50));
    pool.seconds(60);
    assert_eq!((pool.a().registry_changes, pool.a().flapping), (0, false));
    // Calm again: the setting counts again.
    pool.status_of_a(RegistryStatus::Critical);
    pool.seconds(1);
    pool.status_of_a(RegistryStatus::Passing);
    assert_eq!(pool.picks_of_a(100), 50);
    assert_eq!(pool.flapping_told(), 0);
}

#[test]
fn a_registration_that_leaves_and_comes_back_flaps_too() {
    let pool = Pool::new(Duration::ZERO);
    for change in 1..=6 {
        pool.seconds(2);
        match change % 2 {
            1 => pool.without_a(),
            _ => pool.status_of_a(RegistryStatus::Passing),
        }
    }
    let a = pool.a();
    assert_eq!((a.flapping, a.factors.slow_start), (true, 1.0 / 16.0));
    assert_eq!(pool.flapping_told(), 1);
    pool.without_a();
    assert!(pool.balancer.explain_instance(&"a".parse().unwrap()).is_none());
}

#[test]
fn a_longer_slow_start_stays_in_force_while_an_instance_flaps() {
    let pool = Pool::new(Duration::from_secs(160));
    for _ in 0..4 {
        pool.seconds(2);
        pool.status_of_a(RegistryStatus::Critical);
        pool.seconds(2);
        pool.status_of_a(RegistryStatus::Passing);
    }
    pool.seconds(80);
    assert_eq!(pool.a().factors.slow_start, 0.5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_in_consul_that_flaps_is_told_everywhere() {
    let consul = Consul::start().await;
    for (id, port) in [("a", 8001), ("b", 8002)] {
        consul
            .register("n1", "web", id, port, json!({ "Address": "127.0.0.1" }))
            .await;
    }
    let folder = Folder::new();
    let text = format!(
        "[consul]\naddress = \"{}\"\n[defaults]\nslow_start = \"0s\"\n",
        consul.address()
    );
    let config = folder.write("pickd.toml", &text);
    let agent = blocking(|| Agent::run(["--config", config.to_str().unwrap()]).ready());
    let a = |agent: &Agent| agent.get("/services/web").json()["instances"]["a@n1"].clone();
    for _ in 0..3 {
        for status in ["critical", "passing"] {
            consul.check("n1", "a", "health", status, "").await;
            blocking(|| {
                until(SOON, &format!("a is {status}"), || {
                    (a(&agent)["layers"]["registry"]["state"] == status).then_some(())
                });
            });
        }
    }
    assert_eq!(a(&agent)["flapping"], true);
    let explained = agent.get("/explain/web").json();
    let instance = &explained["instances"][0];
    assert_eq!(instance["why"], json!(["registry_passing", "slow_start", "flapping"]));
    assert_eq!(instance["registry_changes"], 6);
    assert!(instance["factors"]["slow_start"].as_f64() < Some(0.5), "{instance}");
    assert_eq!(explained["instances"][1]["why"], json!(["registry_passing"]));
    assert_eq!(
        agent.metric(r#"pickd_pool_flapping_instances{service="web"}"#),
        Some(1.0)
    );
    blocking(|| {
        let message = "registration flaps, each return is a slow start";
        agent.program.wait_for_log(message, |line| line["changes"] == 6);
        drop(agent);
    });
}

/// Runs blocking code in a test with a runtime.
fn blocking<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(work)
}
