//! Health as the core decides it, on a clock that the test moves: every rule of the layers, the
//! breaker, the cap, panic mode and slow start.
//! `health.rs` tests health with real backends.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use pickd::balancer::{
    ActiveState, Address, BreakerConfig, BreakerState, Check, CheckFailure, Clock, CloseReason, DegradedReason,
    Environment, ExplainedInstance, Manual, Order, PassiveState, RegistryStatus, Transitioned, TripReason,
    UnavailableReason,
};
use pickd::{
    Acquired, Context, HealthStatus, LoadBalancer, LoadBalancerConfig, LoadBalancingStrategy, Outcome, PickError,
    ServiceInstance, Weight,
};

const OK: Outcome = Outcome::Success;
const FAIL: Outcome = Outcome::Failure;
const REFUSED: Check = Check::Fail(CheckFailure::ConnectionRefused);

/// A pool on a clock that the test moves.
struct Pool {
    balancer: LoadBalancer,
    clock: Arc<Manual>,
}

impl Pool {
    fn new(config: LoadBalancerConfig, ids: &[&str]) -> Self {
        Self::of(config, ids.iter().map(|id| instance(id)))
    }

    fn of(config: LoadBalancerConfig, instances: impl IntoIterator<Item = ServiceInstance>) -> Self {
        let clock = Arc::new(Manual::default());
        clock.advance(Duration::from_secs(10_000));
        let tools = Environment {
            clock: clock.clone(),
            ..Environment::default()
        };
        let balancer = LoadBalancer::with_environment("web".parse().unwrap(), config, tools, 0);
        balancer.apply(instances.into_iter().map(Arc::new));
        Self { balancer, clock }
    }

    fn pick(&self) -> String {
        self.balancer.select_instance(&Context::new()).unwrap().id().to_string()
    }

    fn picks(&self, count: usize) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for _ in 0..count {
            *counts.entry(self.pick()).or_default() += 1;
        }
        counts
    }

    fn picked(&self) -> BTreeSet<String> {
        self.picks(200).into_keys().collect()
    }

    /// Acquires a request to this instance.
    fn acquire(&self, id: &str) -> Option<Acquired> {
        let others: Vec<String> = self
            .balancer
            .instances()
            .iter()
            .map(|(it, _)| it.id().to_string())
            .collect();
        let others: Vec<&str> = others.iter().map(String::as_str).filter(|other| *other != id).collect();
        self.balancer.acquire(&Context::new().with_exclude(&others)).ok()
    }

    /// Reports outcomes of requests to this instance that were all in flight at the same time.
    fn report(&self, id: &str, outcome: Outcome, times: usize) {
        self.report_in(id, outcome, times, 10);
    }

    fn report_in(&self, id: &str, outcome: Outcome, times: usize, milliseconds: u64) {
        let requests: Vec<_> = (0..times).map(|_| self.acquire(id).expect(id)).collect();
        for request in requests {
            request.finish(outcome, Duration::from_millis(milliseconds));
        }
    }

    fn check(&self, id: &str, check: Check, times: usize) {
        for _ in 0..times {
            self.balancer.observe(&address(id), check);
        }
    }

    /// Moves the clock, and does the steps that are due.
    fn wait(&self, duration: Duration) {
        self.clock.advance(duration);
        self.balancer.advance(self.clock.now());
    }

    fn seconds(&self, seconds: u64) {
        self.wait(Duration::from_secs(seconds));
    }

    fn explain(&self, id: &str) -> ExplainedInstance {
        self.balancer.explain_instance(&id.parse().unwrap()).unwrap()
    }

    fn why(&self, id: &str) -> Vec<&'static str> {
        self.explain(id)
            .unavailable_reasons
            .into_iter()
            .map(UnavailableReason::as_str)
            .collect()
    }

    fn status(&self, id: &str) -> HealthStatus {
        self.explain(id).status
    }

    fn breaker(&self, id: &str) -> Option<BreakerState> {
        self.explain(id).layers.breaker.map(|said| said.state)
    }

    /// Moves the clock to the end of the open time.
    fn until_half_open(&self, id: &str) {
        let Some(BreakerState::Open { until, .. }) = self.breaker(id) else {
            panic!("{:?}", self.breaker(id));
        };
        self.wait(until.since(self.clock.now()));
        assert!(matches!(self.breaker(id), Some(BreakerState::HalfOpen { .. })));
    }

    fn available(&self) -> usize {
        self.balancer.statistics().available_instances
    }

    fn transitions(&self) -> Vec<Transitioned> {
        let told = self.balancer.take_transitions();
        told.into_iter().map(|transition| transition.what).collect()
    }
}

/// Instances at separate addresses, all passing in the registry.
fn instance(id: &str) -> ServiceInstance {
    let address = address(id);
    ServiceInstance::new(id, address.host(), i64::from(address.port()))
        .unwrap()
        .with_status(RegistryStatus::Passing)
}

fn address(id: &str) -> Address {
    let number = id.bytes().fold(0_u32, |sum, byte| sum * 31 + u32::from(byte)) % 250;
    Address::new(&format!("10.0.0.{number}"), 80).unwrap()
}

fn config() -> LoadBalancerConfig {
    LoadBalancerConfig::default().with_slow_start(Duration::ZERO).unwrap()
}

fn ids(ids: &[&str]) -> BTreeSet<String> {
    ids.iter().map(ToString::to_string).collect()
}

const FOUR: [&str; 4] = ["a", "b", "c", "d"];

#[test]
fn layers_are_kept_apart_with_reason_and_time() {
    let pool = Pool::new(config(), &FOUR);
    let start = pool.clock.now();
    pool.report("a", FAIL, 3);
    pool.seconds(0);
    pool.check("a", REFUSED, 1);
    pool.balancer
        .drain(&"a".parse().unwrap(), Order::by("ops").because("update").unwrap())
        .unwrap();
    let critical = FOUR.map(|id| match id {
        "a" => instance(id).with_status(RegistryStatus::Critical),
        _ => instance(id),
    });
    pool.clock.advance(Duration::from_millis(200));
    pool.balancer.apply(critical.into_iter().map(Arc::new));
    assert_eq!(
        pool.why("a"),
        ["drained", "registry_critical", "check_failed", "breaker_open"]
    );
    let layers = pool.explain("a").layers;
    assert_eq!(layers.breaker.unwrap().since, start);
    assert_eq!(layers.registry.since, start + Duration::from_millis(200));
    assert_eq!(
        layers.active.unwrap().state,
        ActiveState::Down(CheckFailure::ConnectionRefused)
    );
    assert_eq!(layers.admin.unwrap().order().reason(), Some("update"));

    // The layers are lifted from the top, one by one; the layers below keep their states.
    pool.balancer.undrain(&"a".parse().unwrap()).unwrap();
    assert_eq!(pool.why("a"), ["registry_critical", "check_failed", "breaker_open"]);
    pool.balancer.apply(FOUR.map(instance).into_iter().map(Arc::new));
    assert_eq!(pool.why("a"), ["check_failed", "breaker_open"]);
    pool.check("a", Check::Pass, 2);
    assert_eq!(pool.why("a"), ["breaker_open"]);
    assert_eq!(pool.status("a"), HealthStatus::Unhealthy);
}

#[test]
fn a_status_is_unhealthy_degraded_healthy_or_unknown() {
    let unknown = |id| instance(id).with_status(RegistryStatus::Unknown);
    let pool = Pool::of(config(), FOUR.map(unknown));
    assert_eq!(pool.status("a"), HealthStatus::Unknown, "nothing has judged it");
    assert_eq!(pool.available(), 4, "and it can be picked");
    pool.check("a", Check::Pass, 1);
    assert_eq!(pool.status("a"), HealthStatus::Healthy);
    pool.check("a", Check::Fail(CheckFailure::Status(500)), 3);
    assert_eq!(
        (pool.status("a"), pool.why("a")),
        (HealthStatus::Unhealthy, vec!["check_failed"])
    );
    pool.report("b", OK, 10);
    assert_eq!(pool.status("b"), HealthStatus::Healthy, "outcomes have judged it");
    // Three failures of fifteen outcomes are a fifth.
    for outcome in [FAIL, OK, FAIL, OK, FAIL] {
        pool.report("b", outcome, 1);
    }
    assert_eq!(pool.status("b"), HealthStatus::Degraded);
    let passive = pool.explain("b").layers.passive.unwrap().state;
    assert_eq!(passive, PassiveState::Degraded(DegradedReason::Failing));
    pool.seconds(1);
    assert_eq!(pool.explain("b").factors.degraded, 0.25);
    assert_eq!(pool.explain("b").effective_weight, 0.25);
    assert_eq!(pool.available(), 3);
}

#[test]
fn outcomes_take_an_instance_out_after_exactly_max_consecutive_failures() {
    for failures in [1, 3, 7] {
        let pool = Pool::new(config().with_max_consecutive_failures(failures).unwrap(), &FOUR);
        pool.report("a", FAIL, failures as usize - 1);
        assert_eq!(pool.why("a"), [""; 0]);
        pool.report("a", FAIL, 1);
        assert_eq!(pool.why("a"), ["breaker_open"]);
        // The ejection acts on the next pick, before a new view.
        assert_eq!(pool.picked(), ids(&["b", "c", "d"]));
        let because = TripReason::ConsecutiveFailures(failures as u32);
        assert!(matches!(pool.breaker("a"), Some(BreakerState::Open { because: found, .. }) if found == because));
    }
}

#[test]
fn an_ejection_acts_on_the_next_pick_in_every_strategy() {
    for strategy in LoadBalancingStrategy::ALL {
        let pool = Pool::new(config().with_strategy(strategy), &FOUR);
        // The ejection falls between two views.
        pool.report("b", FAIL, 3);
        pool.report("a", FAIL, 3);
        for number in 0..400 {
            let key = format!("key-{number}");
            let pick = pool.balancer.select_instance(&Context::new().with_key(&key)).unwrap();
            assert!(["c", "d"].contains(&pick.id().as_str()), "{strategy}: {}", pick.id());
            let alternates = pick.alternates(3, &Context::new().with_key(&key));
            assert_eq!(alternates.len(), 1, "{strategy}");
        }
    }
}

#[test]
fn a_refused_connection_counts_as_two_failures_and_a_rejection_as_none() {
    let pool = Pool::new(config(), &FOUR);
    pool.report("a", Outcome::ConnectError, 1);
    assert_eq!(pool.why("a"), [""; 0]);
    pool.report("a", Outcome::Timeout, 1);
    assert_eq!(pool.why("a"), ["breaker_open"]);

    pool.report("b", FAIL, 2);
    pool.report("b", Outcome::Rejected, 5);
    assert_eq!(pool.why("b"), [""; 0], "not in a row");
    pool.report("b", OK, 1);
    pool.report("b", Outcome::Cancelled, 50);
    pool.report("b", FAIL, 1);
    assert_eq!(
        pool.why("b"),
        [""; 0],
        "a success starts the row again, and a cancelled request says nothing"
    );
    pool.report("b", Outcome::Rejected, 1);
    assert_eq!(pool.why("b"), ["breaker_open"], "but for the ratio: nine of ten");
    let statistics = pool.balancer.statistics();
    assert_eq!(statistics.instances["b"].reported_requests, 10);
}

#[test]
fn half_of_ten_outcomes_within_a_minute_take_an_instance_out() {
    let pool = Pool::new(config(), &FOUR);
    // One outcome in five seconds, and never two consecutive failures.
    for number in 0..9 {
        pool.report("a", if number % 2 == 0 { FAIL } else { OK }, 1);
        pool.seconds(5);
        assert_eq!(pool.why("a"), [""; 0], "{number}");
    }
    pool.report("a", FAIL, 1);
    assert_eq!(pool.why("a"), ["breaker_open"], "six of ten");
    let because = TripReason::FailureRatio { failed: 6, total: 10 };
    assert!(matches!(pool.breaker("a"), Some(BreakerState::Open { because: found, .. }) if found == because));

    // At a slower rate the first outcomes have left the window before there are ten.
    for number in 0..30 {
        pool.report("b", if number % 2 == 0 { FAIL } else { OK }, 1);
        pool.seconds(8);
        assert_eq!(pool.why("b"), [""; 0], "{number}");
    }
}

#[test]
fn open_times_double_from_open_min_to_open_max_with_jitter_of_half() {
    let pool = Pool::new(config(), &FOUR);
    let mut expected = 1.0_f64;
    let mut jitters = BTreeSet::new();
    pool.report("a", FAIL, 3);
    for _ in 0..12 {
        let Some(BreakerState::Open { until, .. }) = pool.breaker("a") else {
            panic!()
        };
        let open_for = until.since(pool.clock.now()).as_secs_f64();
        assert!(
            (expected * 0.5..=expected * 1.5).contains(&open_for),
            "{expected}: {open_for}"
        );
        jitters.insert((open_for / expected * 100.0) as u32);
        pool.until_half_open("a");
        pool.report("a", FAIL, 1);
        expected = (expected * 2.0).min(60.0);
    }
    assert!(jitters.len() > 6, "{jitters:?}");
    pool.until_half_open("a");
    pool.report("a", OK, 1);
    assert_eq!(pool.breaker("a"), Some(BreakerState::Closed));
    // A soon opening continues the series of openings; an opening long after starts a new series.
    pool.report("a", FAIL, 3);
    let open_for = |pool: &Pool| match pool.breaker("a") {
        Some(BreakerState::Open { until, .. }) => until.since(pool.clock.now()).as_secs_f64(),
        other => panic!("{other:?}"),
    };
    assert!(open_for(&pool) >= 30.0);
    pool.until_half_open("a");
    pool.report("a", OK, 1);
    pool.seconds(61);
    pool.report("a", FAIL, 3);
    assert!(open_for(&pool) <= 1.5);
}

#[test]
fn half_open_any_pick_may_be_the_trial_and_only_one_at_a_time() {
    for strategy in LoadBalancingStrategy::ALL {
        let pool = Pool::new(config().with_strategy(strategy), &FOUR);
        pool.report("a", FAIL, 3);
        pool.until_half_open("a");
        assert_eq!(
            (pool.why("a"), pool.status("a")),
            (vec!["breaker_half_open"], HealthStatus::Unhealthy)
        );
        assert_eq!(pool.available(), 3);
        let trials = |pool: &Pool| {
            let picks = (0..400).map(|number| {
                let key = format!("key-{number}");
                let pick = pool.balancer.select_instance(&Context::new().with_key(&key)).unwrap();
                pick.id().to_string()
            });
            picks.filter(|id| id == "a").count()
        };
        assert_eq!(trials(&pool), 1, "{strategy}");
        // The trial expires, and another pick is let through, after the second tick at the latest.
        pool.seconds(5);
        pool.seconds(5);
        assert_eq!(trials(&pool), 1, "{strategy}");
    }
}

#[test]
fn the_first_outcome_after_the_permit_decides() {
    let pool = Pool::new(config(), &FOUR);
    let early = pool.acquire("a").unwrap();
    let late = pool.acquire("a").unwrap();
    pool.report("a", FAIL, 3);
    pool.until_half_open("a");
    // A request from before the opening has no effect.
    early.finish(OK, Duration::from_millis(10));
    assert_eq!(pool.why("a"), ["breaker_half_open"]);
    let trial = pool.acquire("a").unwrap();
    assert!(pool.acquire("a").is_none(), "one at a time");
    trial.finish(OK, Duration::from_millis(10));
    assert_eq!(pool.why("a"), [""; 0]);
    late.finish(FAIL, Duration::from_millis(10));
    assert_eq!(pool.why("a"), [""; 0], "one failure is one failure");

    pool.report("b", FAIL, 3);
    pool.until_half_open("b");
    pool.report("b", FAIL, 1);
    assert_eq!(pool.why("b"), ["breaker_open"]);
    assert!(matches!(
        pool.breaker("b"),
        Some(BreakerState::Open {
            because: TripReason::TrialFailed,
            ..
        })
    ));
    let told = pool.transitions();
    assert!(
        told.contains(&Transitioned::HalfOpened) && told.contains(&Transitioned::Closed(CloseReason::TrialSucceeded))
    );
}

#[test]
fn three_unknown_trials_in_a_row_close_the_breaker() {
    let pool = Pool::new(config(), &FOUR);
    pool.report("a", FAIL, 3);
    pool.until_half_open("a");
    for _ in 0..3 {
        assert_eq!(pool.why("a"), ["breaker_half_open"]);
        assert_eq!(pool.picks(100)["a"], 1);
        pool.seconds(5);
    }
    assert_eq!(pool.why("a"), [""; 0]);
    assert!(
        pool.transitions()
            .contains(&Transitioned::Closed(CloseReason::TrialsUnknown))
    );
}

#[test]
fn without_a_breaker_an_ejection_lasts_30_s_times_ejections_in_a_row() {
    let pool = Pool::new(config().with_circuit_breaker_enabled(false), &FOUR);
    for times in 1..=12 {
        pool.report("a", FAIL, 3);
        let out_for = (30 * times).min(300);
        pool.seconds(out_for - 1);
        assert_eq!(pool.why("a"), ["breaker_open"], "{times}");
        pool.seconds(1);
        assert_eq!(pool.why("a"), [""; 0], "no trial: {times}");
    }
    assert!(
        pool.transitions()
            .contains(&Transitioned::Closed(CloseReason::TimeServed))
    );
}

#[test]
fn checks_do_not_close_breakers_and_breakers_do_not_overrule_checks() {
    let pool = Pool::new(config(), &FOUR);
    pool.report("a", FAIL, 3);
    pool.check("a", Check::Pass, 10);
    assert_eq!(pool.why("a"), ["breaker_open"]);
    pool.until_half_open("a");
    let trial = pool.acquire("a").unwrap();
    pool.check("a", REFUSED, 3);
    trial.finish(OK, Duration::from_millis(10));
    assert_eq!(pool.breaker("a"), Some(BreakerState::Closed));
    assert_eq!(pool.why("a"), ["check_failed"]);
    assert_eq!(pool.picked(), ids(&["b", "c", "d"]));
}

#[test]
fn breakers_eject_half_of_a_pool_at_most_worst_first_never_the_last() {
    let pool = Pool::new(config(), &["a", "b", "c", "d", "e"]);
    // For b and c nine of ten outcomes fail, for the others all outcomes.
    for id in ["b", "c"] {
        pool.report(id, OK, 1);
    }
    for id in ["b", "c", "a", "d"] {
        pool.report(id, FAIL, 3);
    }
    let held = |pool: &Pool| {
        let held = ["a", "b", "c", "d", "e"]
            .into_iter()
            .filter(|id| pool.explain(id).layers.held_by_cap);
        held.collect::<Vec<_>>()
    };
    assert_eq!(held(&pool), ["b", "c"], "two of five, the worst");
    assert_eq!((pool.why("b"), pool.why("a")), (vec![], vec!["breaker_open"]));
    assert_eq!(pool.picked(), ids(&["b", "c", "e"]));
    assert!(
        matches!(pool.breaker("b"), Some(BreakerState::Open { .. })),
        "it is open all the same"
    );
    assert!(!pool.balancer.panics());

    // The only instance of a pool is never ejected.
    let pool = Pool::new(config(), &["a"]);
    pool.report("a", FAIL, 30);
    assert_eq!(
        (pool.pick(), pool.why("a"), pool.available()),
        ("a".to_owned(), vec![], 1)
    );
    assert!(pool.explain("a").layers.held_by_cap && !pool.balancer.panics());
    // One of two instances may be ejected, even with a cap of 0.
    for share in [0.0, 0.5, 1.0] {
        let pool = Pool::new(config().with_max_ejection(share).unwrap(), &["a", "b"]);
        pool.report("a", FAIL, 3);
        pool.wait(Duration::from_millis(1));
        pool.report("b", FAIL, 3);
        assert_eq!(pool.picked(), ids(&["b"]), "{share}");
    }
}

#[test]
fn a_held_instance_takes_the_place_of_a_recovered_instance() {
    let pool = Pool::new(config(), &FOUR);
    for id in ["a", "b", "c"] {
        pool.report(id, FAIL, 3);
        pool.wait(Duration::from_millis(1));
    }
    assert!(pool.explain("c").layers.held_by_cap);
    pool.until_half_open("a");
    pool.report("a", OK, 1);
    assert_eq!((pool.why("a"), pool.explain("c").layers.held_by_cap), (vec![], false));
    assert!(!pool.why("c").is_empty(), "{:?}", pool.breaker("c"));

    let pool = Pool::new(config(), &["a", "b"]);
    pool.report("a", FAIL, 3);
    pool.wait(Duration::from_millis(1));
    pool.report("b", FAIL, 3);
    pool.until_half_open("b");
    assert!(pool.explain("b").layers.held_by_cap);
    // Except for the trial of "a", if its open time is over as well.
    assert!(pool.picks(50)["b"] >= 49, "every pick of it is a trial");
    pool.report("b", OK, 1);
    assert_eq!(pool.breaker("b"), Some(BreakerState::Closed));
}

#[test]
fn active_checks_are_not_capped_and_local_judgement_never_empties_a_pool() {
    let pool = Pool::new(config(), &FOUR);
    for id in ["a", "b", "c"] {
        pool.check(id, REFUSED, 3);
    }
    assert_eq!(pool.picked(), ids(&["d"]));
    pool.report("d", FAIL, 3);
    assert!(pool.explain("d").layers.held_by_cap, "never the last usable one");
    assert_eq!((pool.picked(), pool.balancer.panics()), (ids(&["d"]), false));
    pool.check("d", REFUSED, 3);
    assert_eq!(pool.picked(), ids(&FOUR), "panic: all of them");
    let pick = pool.balancer.select_instance(&Context::new()).unwrap();
    assert!(pick.panic() && pool.balancer.panics());
    assert_eq!((pool.available(), pool.why("a")), (0, vec!["check_failed"]));
    assert!(pool.balancer.panic_picks() >= 200);
    pool.check("b", Check::Pass, 2);
    assert_eq!((pool.picked(), pool.balancer.panics()), (ids(&["b"]), false));
    let told = pool.transitions();
    let began = Transitioned::PanicBegan { usable: 0, eligible: 4 };
    assert!(
        told.contains(&began) && told.contains(&Transitioned::PanicEnded),
        "{told:?}"
    );
}

#[test]
fn panic_picks_at_base_weight_and_never_picks_ineligible_instances() {
    for strategy in LoadBalancingStrategy::ALL {
        let weight = |id, weight: i64| instance(id).with_weight(Weight::new(weight).unwrap());
        let instances = [
            weight("a", 1),
            weight("b", 3).with_status(RegistryStatus::Warning),
            weight("c", 0),
            instance("d").with_status(RegistryStatus::Critical),
            instance("e").with_status(RegistryStatus::Maintenance),
            instance("f"),
            ServiceInstance::new("g", "169.254.169.254", 80).unwrap(),
        ];
        let pool = Pool::of(config().with_strategy(strategy), instances);
        pool.balancer.drain(&"f".parse().unwrap(), Order::by("ops")).unwrap();
        for id in ["a", "b", "c", "d", "e", "f"] {
            pool.check(id, REFUSED, 3);
        }
        let counts = pool.picks(4_000);
        assert_eq!(
            counts.keys().cloned().collect::<BTreeSet<_>>(),
            ids(&["a", "b"]),
            "{strategy}"
        );
        let share = counts["b"] as f64 / 4_000.0;
        let fair = if strategy.is_weighted() { 0.75 } else { 0.5 };
        assert!((share - fair).abs() < 0.04, "no factor counts: {strategy}: {share}");
        assert_eq!(pool.why("g"), ["address_refused"]);
        assert_eq!(pool.balancer.explain(None).eligible_instances, 2);
    }
}

#[test]
fn panic_begins_below_its_threshold_and_can_be_turned_off() {
    let pool = Pool::new(config().with_panic_threshold(0.5).unwrap(), &FOUR);
    pool.check("a", REFUSED, 3);
    pool.check("b", REFUSED, 3);
    assert!(!pool.balancer.panics(), "two of four is not below a half");
    pool.check("c", REFUSED, 3);
    assert_eq!((pool.picked(), pool.balancer.panics()), (ids(&FOUR), true));

    let pool = Pool::new(config().with_panic(false), &FOUR);
    for id in FOUR {
        pool.check(id, REFUSED, 3);
    }
    let refusal = pool.balancer.select_instance(&Context::new()).unwrap_err();
    assert!(matches!(refusal, PickError::NoneAvailable { total: 4, .. }));
    pool.balancer.configure(config());
    assert_eq!(pool.picked(), ids(&FOUR));
}

#[test]
fn a_recovered_instance_comes_to_its_share_slowly_in_every_strategy() {
    for strategy in LoadBalancingStrategy::ALL {
        fastrand::seed(4);
        let config = LoadBalancerConfig::new(strategy);
        let pool = Pool::new(config, &FOUR);
        pool.report("a", FAIL, 3);
        pool.until_half_open("a");
        pool.report("a", OK, 1);
        let share = |pool: &Pool| {
            let picks = (0..8_000).filter(|number| {
                let key = format!("key-{number}");
                let request = pool.balancer.acquire(&Context::new().with_key(&key)).unwrap();
                let is_a = request.id().as_str() == "a";
                request.finish(OK, Duration::from_millis(10));
                is_a
            });
            // The share relative to one of the three other instances.
            let own = picks.count() as f64;
            own / ((8_000.0 - own) / 3.0)
        };
        pool.wait(Duration::from_millis(100));
        assert_eq!(pool.explain("a").factors.slow_start, 1.0 / 16.0);
        let first = share(&pool);
        assert!(first <= 0.10, "{strategy}: {first}");
        pool.seconds(15);
        assert_eq!(pool.explain("a").factors.slow_start, 0.5);
        let half = share(&pool);
        // `least_response_time` prefers the other instances while all are equally fast.
        let compares = strategy == LoadBalancingStrategy::LeastResponseTime;
        assert!(compares || (0.38..=0.62).contains(&half), "{strategy}: {half}");
        pool.seconds(15);
        let whole = share(&pool);
        // A ring of four is uneven; the share is relative to the own keys of the instance.
        let even = if strategy == LoadBalancingStrategy::ConsistentHash {
            0.6..=1.5
        } else {
            0.93..=1.07
        };
        assert!(even.contains(&whole), "{strategy}: {whole}");
        assert_eq!(pool.explain("a").factors.slow_start, 1.0);
    }
}

#[test]
fn an_instance_that_joins_a_pool_in_use_starts_slowly() {
    let pool = Pool::new(LoadBalancerConfig::default(), &["a", "b"]);
    let factor = |pool: &Pool, id: &str| pool.explain(id).factors.slow_start;
    pool.balancer.add_instance(instance("c"));
    assert_eq!(factor(&pool, "c"), 1.0, "the pool has answered no pick yet");
    pool.pick();
    pool.balancer.add_instance(instance("d"));
    assert_eq!((factor(&pool, "a"), factor(&pool, "d")), (1.0, 1.0 / 16.0));
    // A registry status of passing is a recovery, too; a lifted drain is not.
    let with_b = |status| {
        ["a", "b", "c", "d"].map(|id| match id {
            "b" => instance(id).with_status(status),
            _ => instance(id),
        })
    };
    pool.balancer
        .apply(with_b(RegistryStatus::Critical).into_iter().map(Arc::new));
    pool.seconds(30);
    pool.balancer
        .apply(with_b(RegistryStatus::Passing).into_iter().map(Arc::new));
    assert_eq!((factor(&pool, "b"), factor(&pool, "d")), (1.0 / 16.0, 1.0));
    pool.balancer.drain(&"c".parse().unwrap(), Order::by("ops")).unwrap();
    pool.balancer.undrain(&"c".parse().unwrap()).unwrap();
    assert_eq!(factor(&pool, "c"), 1.0);
    // The same id at another address has another live state.
    let moved = ServiceInstance::new("a", "10.0.1.1", 80).unwrap();
    pool.balancer.add_instance(moved);
    assert_eq!(factor(&pool, "a"), 1.0 / 16.0);
}

#[test]
fn a_pool_that_is_on_the_ramp_as_a_whole_keeps_its_keys() {
    let config = LoadBalancerConfig::new(LoadBalancingStrategy::ConsistentHash);
    let pool = Pool::new(config, &FOUR);
    let owners = |pool: &Pool| {
        let owner = |number| {
            let key = format!("key-{number}");
            let pick = pool.balancer.select_instance(&Context::new().with_key(&key)).unwrap();
            pick.id().to_string()
        };
        (0..2_000).map(owner).collect::<Vec<_>>()
    };
    let before = owners(&pool);
    let all = |status| FOUR.map(|id| Arc::new(instance(id).with_status(status)));
    pool.balancer.apply(all(RegistryStatus::Critical));
    pool.balancer.apply(all(RegistryStatus::Passing));
    assert_eq!(pool.explain("a").factors.slow_start, 1.0 / 16.0);
    assert_eq!(owners(&pool), before);
}

#[test]
fn a_much_slower_instance_is_degraded_until_it_is_as_fast_as_the_others() {
    let pool = Pool::new(config(), &FOUR);
    let round = |pool: &Pool, milliseconds: u64| {
        for id in FOUR {
            pool.report_in(id, OK, 1, if id == "a" { milliseconds } else { 20 });
        }
        pool.wait(Duration::from_millis(300));
    };
    (0..12).for_each(|_| round(&pool, 20));
    let passive = |pool: &Pool| pool.explain("a").layers.passive.unwrap().state;
    round(&pool, 5_000);
    assert_eq!(
        passive(&pool),
        PassiveState::Ok,
        "one that took very long is no slow instance"
    );
    (0..12).for_each(|_| round(&pool, 20));
    (0..4).for_each(|_| round(&pool, 200));
    assert_eq!(passive(&pool), PassiveState::Degraded(DegradedReason::Slow));
    assert_eq!(pool.status("a"), HealthStatus::Degraded);
    (0..20).for_each(|_| round(&pool, 20));
    assert_eq!(passive(&pool), PassiveState::Ok);

    // `least_response_time` compares response times itself.
    let pool = Pool::new(config().with_strategy(LoadBalancingStrategy::LeastResponseTime), &FOUR);
    (0..30).for_each(|_| round(&pool, 200));
    assert_eq!(passive(&pool), PassiveState::Ok);
}

#[test]
fn a_failing_grade_ends_when_its_failures_have_left_the_window() {
    let pool = Pool::new(config(), &FOUR);
    for number in 0..15 {
        pool.report("a", if number % 4 == 0 { FAIL } else { OK }, 1);
    }
    assert_eq!(pool.status("a"), HealthStatus::Degraded);
    pool.seconds(30);
    assert_eq!(pool.status("a"), HealthStatus::Degraded);
    // In steps of the window, as a program that drives time moves the clock.
    (0..8).for_each(|_| pool.seconds(5));
    assert_eq!(pool.status("a"), HealthStatus::Healthy);
}

#[test]
fn settings_of_the_breaker_are_heeded() {
    let breaker = BreakerConfig::default()
        .with_min_outcomes(4)
        .and_then(|breaker| breaker.with_failure_ratio(0.25))
        .and_then(|breaker| breaker.with_window(Duration::from_secs(10)))
        .and_then(|breaker| breaker.with_open_times(Duration::from_secs(4), Duration::from_secs(8)))
        .unwrap();
    let pool = Pool::new(config().with_breaker(breaker), &FOUR);
    pool.report("a", OK, 3);
    pool.report("a", FAIL, 1);
    let Some(BreakerState::Open { until, .. }) = pool.breaker("a") else {
        panic!()
    };
    assert!((2.0..=6.0).contains(&until.since(pool.clock.now()).as_secs_f64()));
}

#[test]
fn health_of_an_address_survives_views_weights_and_registrations() {
    let pool = Pool::new(config(), &FOUR);
    pool.report("a", FAIL, 3);
    pool.balancer
        .add_instance(instance("a").with_weight(Weight::new(7).unwrap()));
    pool.balancer
        .configure(config().with_strategy(LoadBalancingStrategy::Random));
    pool.balancer.remove_instance(&"a".parse().unwrap());
    pool.balancer.add_instance(instance("a"));
    assert_eq!(pool.why("a"), ["breaker_open"]);
    assert_eq!(pool.picked(), ids(&["b", "c", "d"]));
    // The same id at another address has no outcomes yet.
    pool.balancer
        .add_instance(ServiceInstance::new("a", "10.0.1.1", 80).unwrap());
    assert_eq!(pool.why("a"), [""; 0]);
}

#[test]
fn checks_that_run_no_more_say_nothing_any_more() {
    let pool = Pool::new(config(), &FOUR);
    pool.check("a", REFUSED, 3);
    pool.balancer.forget_checks();
    assert_eq!((pool.why("a"), pool.picked()), (vec![], ids(&FOUR)));
    assert_eq!(pool.explain("a").layers.active, None);
}

#[test]
fn an_address_that_a_check_was_refused_for_is_never_picked() {
    let pool = Pool::new(config(), &["a", "b"]);
    pool.check("a", Check::Fail(CheckFailure::AddressRefused), 1);
    pool.check("b", REFUSED, 3);
    assert_eq!(pool.why("a"), ["address_refused"]);
    assert_eq!(
        (pool.picked(), pool.balancer.panics()),
        (ids(&["b"]), true),
        "panic included"
    );
}

#[test]
fn instances_at_one_address_are_judged_together_and_drained_apart() {
    let twin = |id: &str| ServiceInstance::new(id, "10.9.9.9", 80).unwrap();
    let pool = Pool::of(
        config(),
        [twin("t1"), twin("t2"), instance("a"), instance("b"), instance("c")],
    );
    pool.balancer.drain(&"t2".parse().unwrap(), Order::by("ops")).unwrap();
    pool.report("t1", FAIL, 3);
    assert_eq!(
        (pool.why("t1"), pool.why("t2")),
        (vec!["breaker_open"], vec!["drained", "breaker_open"])
    );
    assert_eq!(pool.picked(), ids(&["a", "b", "c"]));
    let opened = pool.balancer.take_transitions();
    assert_eq!(opened[0].instances.len(), 2);
}

#[test]
fn tables_follow_a_moment_later_or_with_the_next_request() {
    let pool = Pool::new(config(), &FOUR);
    pool.report("a", FAIL, 3);
    pool.clock.advance(Duration::from_millis(60));
    pool.acquire("b").unwrap().finish(OK, Duration::from_millis(1));
    // Turns continue without the ejected instance.
    let picks: Vec<String> = (0..6).map(|_| pool.pick()).collect();
    assert_eq!(picks[..3], picks[3..]);
    assert_eq!(picks.iter().cloned().collect::<BTreeSet<_>>(), ids(&["b", "c", "d"]));
}

#[test]
fn ten_thousand_picks_during_a_trial_and_a_panic_render_and_lose_nothing() {
    let pool = Pool::new(config(), &FOUR);
    pool.report("a", FAIL, 3);
    pool.until_half_open("a");
    assert_eq!(pool.picks(10_000).values().sum::<usize>(), 10_000);
    for id in FOUR {
        pool.check(id, REFUSED, 3);
    }
    assert_eq!(pool.picks(10_000).values().sum::<usize>(), 10_000);
    assert_eq!(pool.balancer.panic_picks(), 10_000);
}

/// A large pool, in which steps act one by one until the next view decides exactly.
fn large(config: LoadBalancerConfig) -> (Pool, Vec<String>) {
    let ids: Vec<String> = (0..1_000).map(|number| format!("i{number:03}")).collect();
    let instance = |(number, id): (usize, &String)| {
        let host = format!("10.1.{}.{}", number / 250, number % 250);
        ServiceInstance::new(id, &host, 80)
            .unwrap()
            .with_status(RegistryStatus::Passing)
    };
    let pool = Pool::of(config, ids.iter().enumerate().map(instance));
    (pool, ids)
}

fn all_are_picked_from(pool: &Pool, usable: usize) {
    let mut seen = BTreeSet::new();
    for _ in 0..6_000 {
        let pick = pool.balancer.select_instance(&Context::new()).unwrap();
        seen.insert(pick.address().to_string());
    }
    assert!(
        seen.len() <= usable && seen.len() * 10 >= usable * 9,
        "{} of {usable}",
        seen.len()
    );
}

#[test]
fn a_thousand_failing_instances_are_ejected_at_once_up_to_the_cap() {
    let (pool, _) = large(config());
    let requests: Vec<_> = (0..3_000)
        .map(|_| pool.balancer.acquire(&Context::new()).unwrap())
        .collect();
    // By turns, each instance gets three requests; seven hundred instances fail.
    for request in requests {
        let fails = &request.id().as_str()[1..] < "700";
        let outcome = if fails { FAIL } else { OK };
        request.finish(outcome, Duration::from_millis(5));
    }
    all_are_picked_from(&pool, 500);
    let count = |pool: &Pool| {
        let explained = pool.balancer.explain(None).instances;
        let out = explained.iter().filter(|it| !it.unavailable_reasons.is_empty()).count();
        let held = explained.iter().filter(|it| it.layers.held_by_cap).count();
        (out, held)
    };
    assert_eq!(count(&pool), (500, 200));
    pool.wait(Duration::from_millis(100));
    assert_eq!((count(&pool), pool.available()), ((500, 200), 500));
    all_are_picked_from(&pool, 500);
    // The open times are over, and some of the trials succeed.
    pool.seconds(2);
    let mut trials = Vec::new();
    for _ in 0..20_000 {
        let request = pool.balancer.acquire(&Context::new()).unwrap();
        if pool.explain(request.id().as_str()).status == HealthStatus::Unhealthy {
            trials.push(request);
        }
        if trials.len() == 100 {
            break;
        }
    }
    assert_eq!(trials.len(), 100);
    for trial in trials {
        trial.finish(OK, Duration::from_millis(5));
    }
    pool.wait(Duration::from_secs(1));
    // A hundred instances are back, and a hundred held instances take their places.
    assert_eq!(count(&pool), (500, 100));
}

#[test]
fn a_thousand_failing_checks_panic_with_the_last_recover_with_the_first() {
    let (pool, ids) = large(config());
    let check = |id: &String, check| pool.balancer.observe(pool.explain(id).instance.address(), check);
    for (number, id) in ids.iter().enumerate() {
        assert!(!pool.balancer.panics(), "{number}");
        check(id, REFUSED);
    }
    assert!(pool.balancer.panics());
    all_are_picked_from(&pool, 1_000);
    check(&ids[7], Check::Pass);
    check(&ids[7], Check::Pass);
    assert!(!pool.balancer.panics());
    assert_eq!(pool.picked(), BTreeSet::from([ids[7].clone()]));
    for id in &ids[..100] {
        check(id, Check::Pass);
        check(id, Check::Pass);
    }
    // Recovered instances are candidates with the next view.
    pool.wait(Duration::from_secs(1));
    all_are_picked_from(&pool, 100);
    assert_eq!(pool.available(), 100);
}

#[test]
fn in_panic_mode_every_pick_is_a_trial_so_that_breakers_close() {
    let pool = Pool::new(config().with_panic_threshold(0.5).unwrap(), &FOUR);
    pool.report("a", FAIL, 3);
    pool.report("b", FAIL, 3);
    pool.check("c", REFUSED, 1);
    assert!(pool.balancer.panics());
    pool.seconds(2);
    for id in ["a", "b"] {
        pool.report(id, OK, 1);
        assert_eq!(pool.breaker(id), Some(BreakerState::Closed), "{id}");
    }
    assert!(!pool.balancer.panics());
    assert_eq!(pool.picked(), ids(&["a", "b", "d"]));
}

#[test]
fn one_of_two_at_an_address_that_has_no_share_does_not_take_the_other_out() {
    let at = |id: &str| ServiceInstance::new(id, "10.9.9.9", 80).unwrap();
    let no_share = at("t2")
        .with_status(RegistryStatus::Warning)
        .with_warning_weight(Weight::new(0).unwrap());
    let pool = Pool::of(config(), [at("t1"), no_share, instance("a"), instance("b")]);
    // An instance is on trial, so that every pick looks at health.
    pool.report("a", FAIL, 3);
    pool.until_half_open("a");
    assert!(pool.picked().contains("t1"));
    assert_eq!((pool.why("t1"), pool.why("t2")), (vec![], vec!["degraded_weight_zero"]));
}

#[test]
fn an_instance_that_fails_after_leaving_is_out_when_it_returns() {
    let pool = Pool::new(config(), &FOUR);
    let requests: Vec<_> = (0..3).map(|_| pool.acquire("a").unwrap()).collect();
    pool.balancer.remove_instance(&"a".parse().unwrap());
    for request in requests {
        request.finish(FAIL, Duration::from_millis(5));
    }
    pool.clock.advance(Duration::from_secs(1));
    let housekeeping = pickd::balancer::Timestamp::default() + Duration::from_secs(10_005);
    assert_eq!(
        pool.balancer.advance(pool.clock.now()),
        Some(housekeeping),
        "no step of a breaker is due before"
    );
    pool.balancer.add_instance(instance("a"));
    assert_eq!(pool.why("a"), ["breaker_open"]);
    pool.seconds(1);
    assert_eq!(pool.why("a"), ["breaker_half_open"]);
}

#[test]
fn a_further_id_at_an_address_that_serves_does_not_slow_it_down() {
    let at = |id: &str| ServiceInstance::new(id, "10.9.9.9", 80).unwrap();
    let pool = Pool::of(LoadBalancerConfig::default(), [at("t1"), instance("a")]);
    pool.picks(10);
    pool.balancer.add_instance(at("t2"));
    let factor = |id: &str| pool.explain(id).factors.slow_start;
    assert_eq!((factor("t1"), factor("t2")), (1.0, 1.0));
    // The instance is registered again under another id, at the same address.
    pool.balancer.apply([at("t3"), instance("a")].map(Arc::new));
    assert_eq!(factor("t3"), 1.0);
}

#[test]
fn outcomes_degrade_no_instance_to_weight_zero() {
    let pool = Pool::new(config().with_degraded_factor(0.0).unwrap(), &FOUR);
    for id in ["a", "b", "c"] {
        for number in 0..12 {
            pool.report(id, if number % 4 == 0 { FAIL } else { OK }, 1);
        }
        assert_eq!(pool.status(id), HealthStatus::Degraded);
    }
    pool.wait(Duration::from_millis(100));
    assert_eq!((pool.available(), pool.explain("a").effective_weight), (4, 1.0 / 16.0));
    // A registry status of passing starts a slow start.
    let warned = FOUR.map(|id| match id {
        "d" => instance(id).with_status(RegistryStatus::Warning),
        _ => instance(id),
    });
    pool.balancer.apply(warned.map(Arc::new));
    assert_eq!(pool.why("d"), ["degraded_weight_zero"]);
}
