//! The core as programs drive it: what an instance tells of itself, changes, and time without a
//! timer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pickd::balancer::{
    BreakerConfig, BreakerState, Check, CheckFailure, Clock, Environment, Manual, ServiceConfigs, Sources, Wake,
};
use pickd::{
    Context, Directory, HealthStatus, LoadBalancer, LoadBalancerConfig, LoadBalancingStrategy, Outcome,
    ServiceInstance, ServiceName,
};

/// Counts how often it is called.
#[derive(Default)]
struct Calls(AtomicUsize);

impl Wake for Calls {
    fn wake(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Calls {
    fn take(&self) -> usize {
        self.0.swap(0, Ordering::Relaxed)
    }
}

fn instance(id: &str) -> ServiceInstance {
    let number: u16 = id.rsplit('-').next().unwrap().parse().unwrap();
    ServiceInstance::new(id, "10.0.0.1", 8_000 + number).unwrap()
}

fn name(service: &str) -> ServiceName {
    service.parse().unwrap()
}

/// A balancer of three instances on a clock of its own, without a timer.
fn balancer() -> (LoadBalancer, Arc<Manual>) {
    let clock = Arc::new(Manual::default());
    let environment = Environment {
        clock: clock.clone(),
        ..Environment::default()
    };
    let balancer = LoadBalancer::with_environment(name("web"), LoadBalancerConfig::default(), environment, 0);
    for id in ["web-1", "web-2", "web-3"] {
        balancer.add_instance(instance(id));
    }
    (balancer, clock)
}

fn only<'a>(id: &str) -> Context<'a> {
    let others: &[&str] = match id {
        "web-1" => &["web-2", "web-3"],
        "web-2" => &["web-1", "web-3"],
        _ => &["web-1", "web-2"],
    };
    Context::new().with_exclude(others)
}

#[test]
fn an_instance_tells_all_numbers_of_its_requests() {
    let (balancer, _) = balancer();
    let ms = Duration::from_millis;
    let id = "web-1".parse().unwrap();
    let before = balancer.instance_statistics(&id).unwrap();
    assert_eq!(
        (before.last_response_time, before.total_response_time),
        (None, Duration::ZERO)
    );
    assert_eq!(
        (before.average_response_time, before.response_time),
        (Duration::ZERO, None)
    );
    for (outcome, latency, consecutive_failures) in [
        (Outcome::Success, 30, 0),
        (Outcome::Failure, 60, 1),
        (Outcome::Failure, 9, 2),
        (Outcome::Success, 21, 0),
        (Outcome::Cancelled, 500, 0),
        (Outcome::Rejected, 10, 0),
    ] {
        let acquired = balancer.acquire(&only("web-1")).unwrap();
        assert_eq!(balancer.instance_statistics(&id).unwrap().active_connections, 1);
        acquired.finish(outcome, ms(latency));
        let now = balancer.instance_statistics(&id).unwrap();
        assert_eq!(now.consecutive_failures, consecutive_failures, "{outcome:?}");
        if outcome != Outcome::Cancelled {
            assert_eq!(now.last_response_time, Some(ms(latency)), "{outcome:?}");
        }
    }
    let after = balancer.instance_statistics(&id).unwrap();
    assert_eq!(
        (after.total_requests, after.reported_requests, after.failed_requests),
        (6, 5, 3)
    );
    assert_eq!((after.active_connections, after.timed_requests), (0, 5));
    assert_eq!(
        (after.total_response_time, after.average_response_time),
        (ms(130), ms(26))
    );
    assert_eq!((after.status, after.available), (HealthStatus::Unknown, true));
    let all = balancer.statistics();
    assert_eq!(all.instances[&id], after);
    assert_eq!((all.total_response_time, all.failed_requests), (ms(130), 3));
    assert_eq!(balancer.instance_statistics(&"web-9".parse().unwrap()), None);
}

#[test]
fn settings_are_set_and_read_by_the_names_of_the_file() {
    let seconds = Duration::from_secs;
    let config = LoadBalancerConfig::new(LoadBalancingStrategy::LeastResponseTime)
        .with_health_check_enabled(false)
        .with_health_check_interval(seconds(10))
        .and_then(|config| config.with_health_check_timeout(seconds(2)))
        .and_then(|config| config.with_max_consecutive_failures(2))
        .and_then(|config| config.with_max_retries(3))
        .unwrap()
        .with_retry_enabled(false)
        .with_circuit_breaker_enabled(false);
    assert_eq!(config.strategy(), LoadBalancingStrategy::LeastResponseTime);
    assert_eq!(config.health_check_interval(), seconds(10));
    assert_eq!(config.health_check_timeout(), seconds(2));
    assert_eq!((config.max_consecutive_failures(), config.max_retries()), (2, 3));
    assert!(!config.health_check_enabled() && !config.retry_enabled() && !config.circuit_breaker_enabled());

    let default = LoadBalancerConfig::default();
    assert_eq!(default.strategy(), LoadBalancingStrategy::RoundRobin);
    assert_eq!(default.health_check_interval(), seconds(30));
    assert_eq!(default.health_check_timeout(), seconds(5));
    assert_eq!((default.max_consecutive_failures(), default.max_retries()), (3, 2));
    assert!(default.health_check_enabled() && default.retry_enabled() && default.circuit_breaker_enabled());
}

#[test]
fn a_change_of_instances_or_settings_is_told_and_nothing_else() {
    let (balancer, _) = balancer();
    let calls = Arc::new(Calls::default());
    let told: Arc<dyn Wake> = calls.clone();
    balancer.on_change(Arc::downgrade(&told));
    balancer.add_instance(instance("web-4"));
    assert_eq!(calls.take(), 1);
    balancer.add_instance(instance("web-4"));
    balancer.remove_instance(&"web-9".parse().unwrap());
    assert_eq!(calls.take(), 0, "nothing has changed");
    balancer.remove_instance(&"web-4".parse().unwrap());
    balancer.apply([Arc::new(instance("web-1"))]);
    assert_eq!(calls.take(), 2);
    let config = balancer.config();
    balancer.configure(config.clone());
    assert_eq!(calls.take(), 0);
    balancer.configure(config.with_max_retries(5).unwrap());
    assert_eq!(calls.take(), 1);
    balancer.observe(instance("web-1").address(), Check::Pass);
    balancer
        .acquire(&Context::new())
        .unwrap()
        .finish(Outcome::Failure, Duration::ZERO);
    assert_eq!(calls.take(), 0, "health is no change");
    drop(told);
    let gone = Arc::downgrade(&calls);
    drop(calls);
    assert!(gone.upgrade().is_none(), "the balancer does not keep it");
    balancer.add_instance(instance("web-5"));
}

#[test]
fn a_program_that_only_selects_keeps_up_with_time() {
    let (balancer, clock) = balancer();
    assert_eq!(balancer.keep_up(), None, "nothing is due");
    let id = "web-1".parse().unwrap();
    let address = instance("web-1").address().clone();
    for _ in 0..4 {
        balancer.observe(&address, Check::Pass);
    }
    for _ in 0..3 {
        balancer.observe(&address, Check::Fail(CheckFailure::Timeout));
    }
    assert!(!balancer.instance_statistics(&id).unwrap().available);
    // The tables follow a moment later, once the program asks for it.
    let due = balancer.keep_up().unwrap();
    assert!(due <= Duration::from_secs(1), "{due:?}");
    clock.advance(due);
    balancer.keep_up();
    for _ in 0..2 {
        balancer.observe(&address, Check::Pass);
    }
    let mut rose = 0;
    while let Some(due) = balancer.keep_up() {
        clock.advance(due);
        rose += 1;
        assert!(rose < 100, "the slow start ends");
    }
    let share = balancer.instance_statistics(&id).unwrap().effective_weight;
    assert!((share - 1.0).abs() < f64::EPSILON, "{share}");
    assert!(rose > 8, "the share rose in {rose} steps");
}

/// A directory whose timer calls `advance`, as an agent has it.
fn driven() -> (Directory, Arc<Manual>) {
    let clock = Arc::new(Manual::default());
    let environment = Environment {
        clock: clock.clone(),
        wake: Some(Arc::new(Calls::default())),
        ..Environment::default()
    };
    (
        Directory::new(ServiceConfigs::default(), Sources::default(), environment),
        clock,
    )
}

#[test]
fn requests_do_what_is_due_once_the_timer_has_stopped() {
    let (directory, clock) = driven();
    let second = Duration::from_secs(1);
    let breaker = BreakerConfig::default().with_open_times(second, second).unwrap();
    let config = LoadBalancerConfig::default().with_breaker(breaker);
    for service in ["web", "late"] {
        if service == "late" {
            directory.timer_stopped();
        }
        directory.configure_service(&name(service), config.clone());
        let instances = ["web-1", "web-2", "web-3"].map(|id| Arc::new(instance(id)));
        directory.apply(&name(service), instances);
        let balancer = directory.get(service).unwrap();
        for _ in 0..3 {
            let acquired = balancer.acquire(&only("web-1")).unwrap();
            acquired.finish(Outcome::Failure, Duration::from_millis(1));
        }
        clock.advance(3 * second);
    }
    let state = |service: &str| {
        let balancer = directory.get(service).unwrap();
        drop(balancer.acquire(&only("web-2")).unwrap());
        let statistics = balancer.instance_statistics(&"web-1".parse().unwrap()).unwrap();
        statistics.layers.breaker.unwrap().state
    };
    for service in ["web", "late"] {
        assert!(
            matches!(state(service), BreakerState::HalfOpen { .. }),
            "{service}: {:?}",
            state(service)
        );
    }

    // With a timer, requests leave it to the timer.
    let (directory, clock) = driven();
    directory.configure_service(&name("web"), config);
    directory.apply(
        &name("web"),
        ["web-1", "web-2", "web-3"].map(|id| Arc::new(instance(id))),
    );
    let balancer = directory.get("web").unwrap();
    for _ in 0..3 {
        let acquired = balancer.acquire(&only("web-1")).unwrap();
        acquired.finish(Outcome::Failure, Duration::from_millis(1));
    }
    clock.advance(3 * second);
    drop(balancer.acquire(&only("web-2")).unwrap());
    let breaker = |balancer: &LoadBalancer| {
        let statistics = balancer.instance_statistics(&"web-1".parse().unwrap()).unwrap();
        statistics.layers.breaker.unwrap().state
    };
    assert!(matches!(breaker(&balancer), BreakerState::Open { .. }));
    assert_eq!(balancer.keep_up(), None, "the timer does it");
    directory.advance(clock.now());
    assert!(matches!(breaker(&balancer), BreakerState::HalfOpen { .. }));
}

#[test]
fn a_service_is_configured_alone_until_all_are() {
    let (directory, _) = driven();
    let config = LoadBalancerConfig::new(LoadBalancingStrategy::Random);
    directory.configure_service(&name("web"), config.clone());
    let balancer = directory.get("web").expect("a configured service is known");
    assert_eq!(balancer.config(), config);
    let least = LoadBalancerConfig::new(LoadBalancingStrategy::LeastConnections);
    directory.configure_service(&name("web"), least.clone());
    assert_eq!(balancer.config(), least, "the same balancer");
    directory.apply(&name("mail"), [Arc::new(instance("mail-1"))]);
    assert_eq!(directory.get("mail").unwrap().config(), LoadBalancerConfig::default());
    directory.configure(ServiceConfigs::default());
    assert_eq!(balancer.config(), LoadBalancerConfig::default());
}
