//! Tiers of the core through its public API: the lowest priority is picked alone while any of it can
//! be picked. And services that fail open.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use pickd::balancer::{
    BreakerState, Check, CheckFailure, Clock, Environment, ExplainedInstance, Manual, Order, RegistryStatus, Tier,
    Transitioned,
};
use pickd::{
    Context, LoadBalancer, LoadBalancerConfig, LoadBalancingStrategy, Outcome, PickError, ServiceInstance, Weight,
};
use proptest::prelude::*;

const FAIL: Check = Check::Fail(CheckFailure::ConnectionRefused);

/// A balancer on a clock that the test moves.
struct Pool {
    balancer: LoadBalancer,
    clock: Arc<Manual>,
}

impl Pool {
    fn new(config: LoadBalancerConfig, instances: impl IntoIterator<Item = ServiceInstance>) -> Self {
        let clock = Arc::new(Manual::default());
        clock.advance(Duration::from_secs(10_000));
        let environment = Environment {
            clock: clock.clone(),
            ..Environment::default()
        };
        let balancer = LoadBalancer::with_environment("web".parse().unwrap(), config, environment, 0);
        let pool = Self { balancer, clock };
        pool.apply(instances);
        pool
    }

    fn apply(&self, instances: impl IntoIterator<Item = ServiceInstance>) {
        self.balancer.apply(instances.into_iter().map(Arc::new));
    }

    /// The ids that 200 picks return, and nothing of what they do not.
    fn picked_for(&self, context: &Context<'_>) -> BTreeSet<String> {
        let pick = |_| self.balancer.select_instance(context).ok();
        (0..200).filter_map(pick).map(|pick| pick.id().to_string()).collect()
    }

    fn picked(&self) -> BTreeSet<String> {
        self.picked_for(&Context::new())
    }

    fn check(&self, id: &str, check: Check, times: usize) {
        let address = instance(id, 0).address().clone();
        (0..times).for_each(|_| self.balancer.observe(&address, check));
    }

    /// Views follow.
    fn settle(&self) {
        self.clock.advance(Duration::from_secs(2));
        self.balancer.advance(self.clock.now());
    }

    fn explained(&self, id: &str) -> ExplainedInstance {
        self.balancer.explain_instance(&id.parse().unwrap()).unwrap()
    }

    fn transitions(&self) -> Vec<Transitioned> {
        let told = self.balancer.take_transitions();
        told.into_iter().map(|transition| transition.what).collect()
    }
}

fn instance(id: &str, priority: u16) -> ServiceInstance {
    let last = id
        .bytes()
        .fold(0_u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte));
    let plain = ServiceInstance::new(id, &format!("10.0.0.{last}"), 80).unwrap();
    plain.with_metadata([("priority", priority.to_string())])
}

/// Without slow start, so that shares are exact.
fn config(strategy: LoadBalancingStrategy) -> LoadBalancerConfig {
    LoadBalancerConfig::new(strategy)
        .with_slow_start(Duration::ZERO)
        .unwrap()
}

fn round_robin() -> LoadBalancerConfig {
    config(LoadBalancingStrategy::RoundRobin)
}

fn ids<const N: usize>(ids: [&str; N]) -> BTreeSet<String> {
    ids.map(str::to_owned).into()
}

fn tier(priority: u16) -> Tier {
    instance("x", priority).tier()
}

#[test]
fn in_every_strategy_the_lower_priority_is_picked_alone() {
    for strategy in LoadBalancingStrategy::ALL {
        let pool = Pool::new(
            config(strategy),
            [
                instance("a", 10),
                instance("b", 10),
                instance("c", 20),
                instance("d", 30),
            ],
        );
        assert_eq!(pool.picked(), ids(["a", "b"]), "{strategy}");
        let keys: Vec<String> = (0..200).map(|number| format!("key-{number}")).collect();
        let keyed = keys.iter().map(|key| {
            let pick = pool.balancer.select_instance(&Context::new().with_key(key)).unwrap();
            pick.id().to_string()
        });
        assert_eq!(keyed.collect::<BTreeSet<_>>(), ids(["a", "b"]), "{strategy}");

        // An ejection acts on the very next pick, before a new view is made.
        pool.check("a", FAIL, 3);
        assert_eq!(pool.picked(), ids(["b"]), "{strategy}");
        pool.check("b", FAIL, 3);
        assert_eq!(pool.picked(), ids(["c"]), "{strategy}");
        pool.settle();
        assert_eq!(pool.picked(), ids(["c"]), "{strategy}");
        assert!(!pool.balancer.panics(), "the reserve is usable");
        pool.check("c", FAIL, 3);
        pool.settle();
        assert_eq!(pool.picked(), ids(["d"]), "{strategy}");
        pool.check("b", Check::Pass, 2);
        pool.settle();
        assert_eq!(pool.picked(), ids(["b"]), "{strategy}");
    }
}

#[test]
fn an_instance_without_a_priority_is_of_the_first_tier() {
    let plain = ServiceInstance::new("plain", "10.0.1.1", 80).unwrap();
    let wrong = ServiceInstance::new("wrong", "10.0.1.2", 80).unwrap();
    let wrong = wrong.with_metadata([("priority", "high")]);
    let pool = Pool::new(round_robin(), [plain, wrong, instance("zero", 0), instance("one", 1)]);
    assert_eq!(pool.picked(), ids(["plain", "wrong", "zero"]));
}

#[test]
fn a_rank_counts_before_a_priority() {
    let near = instance("near", 20);
    let far = instance("far", 10).with_rank(1);
    let pool = Pool::new(round_robin(), [near.clone(), far.clone()]);
    assert_eq!(pool.picked(), ids(["near"]));
    pool.apply([near.with_status(RegistryStatus::Critical), far]);
    assert_eq!(pool.picked(), ids(["far"]));
}

#[test]
fn a_tier_of_drained_critical_or_weightless_instances_is_passed_over() {
    let pool = Pool::new(
        round_robin(),
        [
            instance("a", 1),
            instance("b", 1).with_status(RegistryStatus::Critical),
            instance("c", 1).with_weight(Weight::new(0).unwrap()),
            instance("d", 2),
        ],
    );
    assert_eq!(pool.picked(), ids(["a"]));
    let a = "a".parse().unwrap();
    pool.balancer.drain(&a, Order::by("ops")).unwrap();
    assert_eq!(pool.picked(), ids(["d"]));
    pool.balancer.undrain(&a).unwrap();
    assert_eq!(pool.picked(), ids(["a"]));
    let change = |before, now| Transitioned::TierChanged {
        before: tier(before),
        now: tier(now),
    };
    assert_eq!(pool.transitions(), [change(1, 2), change(2, 1)]);
    // A moment in which no tier is in turn hides no change.
    let d = "d".parse().unwrap();
    pool.balancer.drain(&d, Order::by("ops")).unwrap();
    pool.balancer.drain(&a, Order::by("ops")).unwrap();
    pool.balancer.undrain(&d).unwrap();
    assert_eq!(pool.transitions(), [change(1, 2)]);
}

#[test]
fn a_retry_that_excludes_the_first_tier_gets_the_next() {
    for strategy in LoadBalancingStrategy::ALL {
        let pool = Pool::new(
            config(strategy),
            [
                instance("a", 1),
                instance("b", 1),
                instance("c", 2),
                instance("d", 2),
                instance("e", 3),
            ],
        );
        let picked = |exclude: &[&str]| pool.picked_for(&Context::new().with_exclude(exclude));
        assert_eq!(picked(&["a"]), ids(["b"]), "{strategy}");
        assert_eq!(picked(&["a", "b"]), ids(["c", "d"]), "{strategy}");
        assert_eq!(picked(&["a", "b", "c", "d"]), ids(["e"]), "{strategy}");
        let refusal = pool
            .balancer
            .select_instance(&Context::new().with_exclude(&["a", "b", "c", "d", "e"]))
            .unwrap_err();
        assert!(
            matches!(refusal, PickError::NoneAvailable { total: 5, .. }),
            "{refusal}"
        );
    }
}

#[test]
fn equal_keys_meet_in_the_reserve_too() {
    let pool = Pool::new(
        config(LoadBalancingStrategy::ConsistentHash),
        ["a"]
            .map(|id| instance(id, 1))
            .into_iter()
            .chain(["c", "d", "e"].map(|id| instance(id, 2))),
    );
    let owner = |key: &str| {
        let context = Context::new().with_key(key).with_exclude(&["a"]);
        pool.balancer.select_instance(&context).unwrap().id().to_string()
    };
    let keys: Vec<String> = (0..300).map(|number| format!("key-{number}")).collect();
    let before: Vec<String> = keys.iter().map(|key| owner(key)).collect();
    assert_eq!(before.iter().cloned().collect::<BTreeSet<_>>(), ids(["c", "d", "e"]));
    assert_eq!(keys.iter().map(|key| owner(key)).collect::<Vec<_>>(), before);
    // The same owners when the reserve is in turn: the ring spans all tiers.
    pool.check("a", FAIL, 3);
    assert_eq!(keys.iter().map(|key| owner(key)).collect::<Vec<_>>(), before);
    pool.settle();
    assert_eq!(keys.iter().map(|key| owner(key)).collect::<Vec<_>>(), before);
}

#[test]
fn tags_choose_their_own_tier() {
    let tagged = |id: &str, priority, tag: &str| instance(id, priority).with_tags([tag]).unwrap();
    let pool = Pool::new(
        round_robin(),
        [
            tagged("a", 1, "v1"),
            tagged("b", 2, "v2"),
            tagged("c", 2, "v1"),
            tagged("d", 3, "v2"),
        ],
    );
    let picked = |tag: &str, exclude: &[&str]| pool.picked_for(&Context::new().with_tags(&[tag]).with_exclude(exclude));
    assert_eq!(picked("v1", &[]), ids(["a"]));
    assert_eq!(picked("v1", &["a"]), ids(["c"]));
    assert_eq!(picked("v2", &[]), ids(["b"]));
    assert_eq!(picked("v2", &["b"]), ids(["d"]));
    assert_eq!(picked("v3", &[]), ids([]));
    // Beyond the table of tag sets, tags choose their tier all the same.
    for number in 0..70 {
        let tags: Vec<String> = (0..=number).map(|_| "v1".to_owned()).collect();
        let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
        assert_eq!(pool.picked_for(&Context::new().with_tags(&tags)), ids(["a"]));
    }
    assert_eq!(picked("v2", &[]), ids(["b"]));
}

#[test]
fn a_port_narrows_as_a_tag_does_in_every_strategy() {
    let with = |id: &str, priority: u16, port: &str, tag: &str| {
        let metadata = [("priority", priority.to_string()), (port, "9000".to_owned())];
        instance(id, 0).with_metadata(metadata).with_tags([tag]).unwrap()
    };
    for strategy in LoadBalancingStrategy::ALL {
        let pool = Pool::new(
            config(strategy),
            [
                with("a", 1, "port-grpc", "v1"),
                with("b", 1, "port-grpc", "v2"),
                with("c", 2, "port-grpc", "v1"),
                with("d", 1, "port-admin", "v1"),
                with("e", 2, "port-admin", "v2"),
            ],
        );
        let grpc = Context::new().with_port("grpc");
        let admin = Context::new().with_port("admin");
        let v2 = &["v2"];
        assert_eq!(pool.picked(), ids(["a", "b", "d"]), "{strategy}");
        assert_eq!(pool.picked_for(&grpc), ids(["a", "b"]), "{strategy}");
        assert_eq!(pool.picked_for(&admin), ids(["d"]), "{strategy}");
        assert_eq!(pool.picked_for(&grpc.with_tags(v2)), ids(["b"]), "{strategy}");
        assert_eq!(
            pool.picked_for(&Context::new().with_tags(v2).with_port("admin")),
            ids(["e"])
        );
        assert_eq!(
            pool.picked_for(&grpc.with_exclude(&["a", "b"])),
            ids(["c"]),
            "{strategy}"
        );
        let pick = pool.balancer.select_instance(&grpc).unwrap();
        let alternates = pick.alternates(9, &grpc);
        let alternates: BTreeSet<_> = alternates.iter().map(|it| it.instance().id().to_string()).collect();
        assert_eq!(alternates.len(), 2);
        assert!(alternates.contains("c"), "{alternates:?}");
        drop(pick);
        // Beyond the table of sets, and for a port that no instance has.
        for number in 0..80 {
            let tags: Vec<String> = (0..number).map(|_| "v1".to_owned()).collect();
            let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
            let pick = pool.balancer.select_instance(&admin.with_tags(&tags)).unwrap();
            assert_eq!(pick.id().as_str(), "d");
        }
        let refusal = pool
            .balancer
            .select_instance(&Context::new().with_port("http"))
            .unwrap_err();
        assert!(
            matches!(&refusal, PickError::UnknownPort { port, total: 5, .. } if port == "http"),
            "{refusal}"
        );
        pool.check("a", FAIL, 3);
        assert_eq!(pool.picked_for(&grpc), ids(["b"]), "{strategy}");
    }
}

#[test]
fn alternates_come_tier_by_tier() {
    for strategy in LoadBalancingStrategy::ALL {
        let pool = Pool::new(
            config(strategy),
            [
                instance("a", 1),
                instance("b", 1),
                instance("c", 2),
                instance("d", 2),
                instance("e", 3),
            ],
        );
        let context = Context::new().with_key("k");
        let pick = pool.balancer.select_instance(&context).unwrap();
        let priorities = |count| {
            let alternates = pick.alternates(count, &context);
            let tiers = alternates
                .iter()
                .map(|alternate| alternate.instance().tier().priority());
            tiers.collect::<Vec<_>>()
        };
        assert_eq!(priorities(1), [1], "{strategy}");
        assert_eq!(priorities(2), [1, 2], "{strategy}");
        assert_eq!(priorities(9), [1, 2, 2, 3], "{strategy}");
    }
}

#[test]
fn a_trial_brings_the_first_tier_back() {
    let pool = Pool::new(
        round_robin().with_max_ejection(1.0).unwrap(),
        [instance("a", 1), instance("b", 2)],
    );
    for _ in 0..3 {
        let acquired = pool.balancer.acquire(&Context::new()).unwrap();
        assert_eq!(acquired.id().as_str(), "a");
        acquired.finish(Outcome::Failure, Duration::from_millis(1));
    }
    assert_eq!(pool.picked(), ids(["b"]));
    let is_half_open = || {
        let breaker = pool.explained("a").layers.breaker.unwrap().state;
        matches!(breaker, BreakerState::HalfOpen { .. })
    };
    while !is_half_open() {
        assert_eq!(pool.picked(), ids(["b"]));
        pool.clock.advance(Duration::from_millis(100));
        pool.balancer.advance(pool.clock.now());
    }
    // One pick of many is the trial, and the others stay with the reserve.
    let mut trials = Vec::new();
    for _ in 0..20 {
        let acquired = pool.balancer.acquire(&Context::new()).unwrap();
        if acquired.id().as_str() == "a" {
            trials.push(acquired);
        }
    }
    assert_eq!(trials.len(), 1);
    trials.pop().unwrap().finish(Outcome::Success, Duration::from_millis(1));
    pool.settle();
    assert_eq!(pool.picked(), ids(["a"]));
}

#[test]
fn panic_mode_stays_with_the_first_tier() {
    let pool = Pool::new(round_robin(), [instance("a", 1), instance("b", 1), instance("c", 2)]);
    for id in ["a", "b", "c"] {
        pool.check(id, FAIL, 3);
    }
    pool.settle();
    assert!(pool.balancer.panics());
    assert_eq!(pool.picked(), ids(["a", "b"]));
    pool.check("c", Check::Pass, 2);
    pool.settle();
    assert!(!pool.balancer.panics());
    assert_eq!(pool.picked(), ids(["c"]));
}

#[test]
fn explain_and_statistics_tell_the_tier_in_turn() {
    let critical = |id: &str| instance(id, 10).with_status(RegistryStatus::Critical);
    let pool = Pool::new(
        config(LoadBalancingStrategy::WeightedRoundRobin),
        [critical("a"), instance("b", 20), instance("c", 30)],
    );
    assert_eq!(pool.balancer.tier_in_turn(), Some(1));
    let explanation = pool.balancer.explain(None);
    let tiers = explanation.tiers.iter().map(|it| {
        (
            it.tier.priority(),
            it.in_turn,
            it.available_instances,
            it.total_instances,
        )
    });
    assert_eq!(
        tiers.collect::<Vec<_>>(),
        [(10, false, 0, 1), (20, true, 1, 1), (30, false, 1, 1)]
    );
    let of = |id: &str| {
        let explained = pool.explained(id);
        (explained.in_turn, explained.score.is_some(), explained.effective_weight)
    };
    assert_eq!(of("b"), (true, true, 1.0));
    assert_eq!(of("c"), (false, false, 0.0));
    let statistics = pool.balancer.statistics();
    let c = &statistics.instances["c"];
    assert_eq!((c.available, c.in_turn, c.effective_weight), (true, false, 0.0));
    assert_eq!(statistics.available_instances, 2);

    pool.apply([critical("a")]);
    assert_eq!(pool.balancer.tier_in_turn(), None);
}

#[test]
fn a_service_fails_open_only_while_all_of_it_is_critical() {
    let with = |id: &str, status| instance(id, 0).with_status(status);
    let critical = |id: &str| with(id, RegistryStatus::Critical);
    let all = || [critical("a"), critical("b"), critical("c")];
    let pool = Pool::new(round_robin(), all());
    assert!(
        pool.balancer.select_instance(&Context::new()).is_err(),
        "closed by default"
    );

    pool.balancer.configure(round_robin().with_fail_open(true));
    assert_eq!(pool.picked(), ids(["a", "b", "c"]));
    let pick = pool.balancer.select_instance(&Context::new()).unwrap();
    assert!(pick.fails_open() && !pick.panic());
    assert_eq!(pick.status().as_str(), "unhealthy");
    drop(pick);
    assert!(pool.balancer.fails_open());
    assert_eq!(pool.balancer.fail_open_picks(), 201);
    assert_eq!(pool.balancer.panic_picks(), 0);
    assert!(pool.explained("a").score.is_some());
    assert_eq!(pool.balancer.statistics().available_instances, 0);
    assert_eq!(pool.transitions(), [Transitioned::FailOpenBegan { instances: 3 }]);

    // One instance that the registry does not call critical is enough, even in a later tier.
    pool.apply([critical("a"), critical("b"), instance("c", 9)]);
    assert_eq!(pool.picked(), ids(["c"]));
    assert!(!pool.balancer.fails_open());
    assert_eq!(pool.explained("a").score, None);
    let transitions = pool.transitions();
    assert!(transitions.contains(&Transitioned::FailOpenEnded), "{transitions:?}");

    // A warning is not critical.
    pool.apply([critical("a"), with("b", RegistryStatus::Warning)]);
    assert_eq!((pool.picked(), pool.balancer.fails_open()), (ids(["b"]), false));
}

#[test]
fn failing_open_returns_nothing_that_others_took_out() {
    let critical = |id: &str| instance(id, 0).with_status(RegistryStatus::Critical);
    let pool = Pool::new(
        round_robin().with_fail_open(true),
        [
            critical("a"),
            critical("b"),
            critical("c"),
            critical("light").with_weight(Weight::new(0).unwrap()),
            instance("m", 0).with_status(RegistryStatus::Maintenance),
        ],
    );
    assert_eq!(pool.picked(), ids(["a", "b", "c"]));
    pool.balancer.drain(&"a".parse().unwrap(), Order::by("ops")).unwrap();
    assert_eq!(pool.picked(), ids(["b", "c"]));
    // Local judgement still counts: this is not panic mode.
    pool.check("b", FAIL, 3);
    assert_eq!(pool.picked(), ids(["c"]));
    pool.settle();
    assert_eq!((pool.picked(), pool.balancer.panics()), (ids(["c"]), false));
    let explained = pool.explained("b");
    assert_eq!((explained.score, explained.effective_weight), (None, 0.0));
    // Panic mode comes on top when local judgement takes out the rest, and counts apart.
    let before = pool.balancer.fail_open_picks();
    pool.check("c", FAIL, 3);
    pool.settle();
    assert_eq!(pool.picked(), ids(["b", "c"]));
    assert!(pool.balancer.panics() && pool.balancer.fails_open());
    assert_eq!(pool.balancer.fail_open_picks(), before);
    assert_eq!(pool.balancer.panic_picks(), 200);
}

#[test]
fn failing_open_follows_the_tiers() {
    let critical = |id: &str, priority| instance(id, priority).with_status(RegistryStatus::Critical);
    let pool = Pool::new(round_robin().with_fail_open(true), [critical("a", 1), critical("b", 2)]);
    assert_eq!(pool.picked(), ids(["a"]));
    pool.check("a", FAIL, 3);
    assert_eq!(pool.picked(), ids(["b"]));
}

/// One instance of a random pool.
#[derive(Clone, Debug)]
struct Spec {
    rank: u16,
    priority: u16,
    weight: i64,
    status: RegistryStatus,
    tagged: bool,
    down: bool,
    excluded: bool,
}

impl Spec {
    fn is_eligible(&self) -> bool {
        let rejected = matches!(self.status, RegistryStatus::Critical | RegistryStatus::Maintenance);
        self.weight > 0 && !rejected
    }

    fn tier(&self) -> (u16, u16) {
        (self.rank, self.priority)
    }
}

fn spec() -> impl Strategy<Value = Spec> {
    let statuses = prop::sample::select(vec![
        RegistryStatus::Unknown,
        RegistryStatus::Passing,
        RegistryStatus::Warning,
        RegistryStatus::Critical,
        RegistryStatus::Maintenance,
    ]);
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    (0_u16..2, 0_u16..3, 0_i64..4, statuses, flags).prop_map(|(rank, priority, weight, status, flags)| Spec {
        rank,
        priority,
        weight,
        status,
        tagged: flags.0,
        down: flags.1,
        excluded: flags.2,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// The rule as a model: of the instances that can be picked and that the caller accepts, those
    /// of the lowest tier, and no others.
    #[test]
    fn a_pick_is_of_the_lowest_tier_that_the_caller_accepts(
        specs in prop::collection::vec(spec(), 1..10),
        strategy in prop::sample::select(LoadBalancingStrategy::ALL.to_vec()),
        by_tag in any::<bool>(),
    ) {
        let id = |index: usize| format!("i{index}");
        let made = specs.iter().enumerate().map(|(index, spec)| {
            let plain = instance(&id(index), spec.priority).with_rank(spec.rank).with_status(spec.status);
            let weighted = plain.with_weight(Weight::new(spec.weight).unwrap());
            if spec.tagged { weighted.with_tags(["t"]).unwrap() } else { weighted }
        });
        let pool = Pool::new(config(strategy), made);
        let excluded: Vec<String> = (0..specs.len()).filter(|index| specs[*index].excluded).map(id).collect();
        let excluded: Vec<&str> = excluded.iter().map(String::as_str).collect();
        let tags: &[&str] = if by_tag { &["t"] } else { &[] };
        let context = Context::new().with_key("key").with_exclude(&excluded).with_tags(tags);

        for (index, spec) in specs.iter().enumerate().filter(|(_, spec)| spec.down) {
            pool.check(&id(index), FAIL, 3);
            prop_assert!(spec.down);
        }
        let panics = !specs.iter().any(|spec| spec.is_eligible() && !spec.down);
        let can_be_picked = |spec: &Spec| spec.is_eligible() && (panics || !spec.down);
        let accepted = |spec: &Spec| can_be_picked(spec) && !spec.excluded && (!by_tag || spec.tagged);
        let mut by_tier: BTreeMap<(u16, u16), BTreeSet<String>> = BTreeMap::new();
        for (index, spec) in specs.iter().enumerate().filter(|(_, spec)| accepted(spec)) {
            by_tier.entry(spec.tier()).or_default().insert(id(index));
        }
        // At first with the tables from before the checks, then with new ones.
        for _ in 0..2 {
            match by_tier.first_key_value() {
                None => prop_assert!(pool.balancer.select_instance(&context).is_err()),
                Some((_, lowest)) => {
                    let pick = pool.balancer.select_instance(&context);
                    let pick = pick.map_err(|error| TestCaseError::fail(error.to_string()))?;
                    prop_assert!(lowest.contains(pick.id().as_str()), "{} of {:?}", pick.id(), by_tier);
                    // Every other instance is an alternate, tier by tier.
                    let alternates = pick.alternates(20, &context);
                    let mut rest: Vec<BTreeSet<String>> = by_tier.values().cloned().collect();
                    rest[0].remove(pick.id().as_str());
                    let mut found = alternates.iter().map(|alternate| alternate.instance().id().to_string());
                    for tier in rest {
                        let of_tier: BTreeSet<String> = found.by_ref().take(tier.len()).collect();
                        prop_assert_eq!(of_tier, tier);
                    }
                    prop_assert_eq!(found.next(), None);
                }
            }
            pool.settle();
        }
        // Without exclusions, picks reach every instance of the tier in turn, and no other.
        if strategy != LoadBalancingStrategy::ConsistentHash {
            let mut usable: BTreeMap<(u16, u16), BTreeSet<String>> = BTreeMap::new();
            for (index, spec) in specs.iter().enumerate().filter(|(_, spec)| can_be_picked(spec)) {
                usable.entry(spec.tier()).or_default().insert(id(index));
            }
            let lowest = usable.into_values().next().unwrap_or_default();
            prop_assert_eq!(pool.picked(), lowest);
        }
    }
}
