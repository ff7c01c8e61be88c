//! The core through its public API: shares, smoothness, affinity, and what survives a change.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pickd::balancer::{
    Bodies, Choices, Clock, Described, EndedBecause, Environment, LeaseId, Manual, Mode, Order, Override,
    RegistryStatus, Render, Score, ServiceConfigs, Source, SourceStatus, Sources, UnavailableReason,
};
use pickd::{
    Context, Directory, InstanceId, LoadBalancer, LoadBalancerConfig, LoadBalancingStrategy, Outcome, PickError,
    ServiceInstance, Weight,
};
use proptest::prelude::*;

use LoadBalancingStrategy::{
    ConsistentHash, LeastConnections, LeastResponseTime, Random, RoundRobin, WeightedRoundRobin,
};

fn instance(id: &str, weight: i64) -> ServiceInstance {
    // Each id has its own address.
    let number = id
        .bytes()
        .fold(0_u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(u32::from(byte)));
    let host = format!("10.{}.{}.{}", number >> 16 & 255, number >> 8 & 255, number & 255);
    ServiceInstance::new(id, &host, 8080)
        .unwrap()
        .with_weight(Weight::new(weight).unwrap())
}

fn balancer(config: LoadBalancerConfig, instances: impl IntoIterator<Item = ServiceInstance>) -> LoadBalancer {
    let balancer = LoadBalancer::new("user-service".parse().unwrap(), config);
    balancer.apply(instances.into_iter().map(Arc::new));
    balancer
}

fn weighted(strategy: LoadBalancingStrategy, weights: &[(&str, i64)]) -> LoadBalancer {
    balancer(
        LoadBalancerConfig::new(strategy),
        weights.iter().map(|(id, weight)| instance(id, *weight)),
    )
}

fn pick(balancer: &LoadBalancer) -> String {
    balancer.select_instance(&Context::new()).unwrap().id().to_string()
}

fn shares(balancer: &LoadBalancer, picks: usize) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for _ in 0..picks {
        *counts.entry(pick(balancer)).or_default() += 1;
    }
    counts
}

fn keyed(balancer: &LoadBalancer, key: &str) -> String {
    balancer
        .select_instance(&Context::new().with_key(key))
        .unwrap()
        .id()
        .to_string()
}

fn score(balancer: &LoadBalancer, id: &str) -> Option<Score> {
    balancer.explain_instance(&id.parse().unwrap()).unwrap().score
}

/// A balancer on a clock that the test moves.
fn timed(
    config: LoadBalancerConfig,
    instances: impl IntoIterator<Item = ServiceInstance>,
) -> (LoadBalancer, Arc<Manual>) {
    let clock = Arc::new(Manual::default());
    clock.advance(Duration::from_secs(1_000));
    let tools = Environment {
        clock: clock.clone(),
        ..Environment::default()
    };
    let balancer = LoadBalancer::with_environment("user-service".parse().unwrap(), config, tools, 0);
    balancer.apply(instances.into_iter().map(Arc::new));
    (balancer, clock)
}

#[test]
fn four_hundred_picks_at_one_two_one_are_exact_and_smooth_from_any_start() {
    for _ in 0..50 {
        let balancer = weighted(WeightedRoundRobin, &[("a", 1), ("b", 2), ("c", 1)]);
        let picks: Vec<String> = (0..400).map(|_| pick(&balancer)).collect();
        let count = |id: &str, picks: &[String]| picks.iter().filter(|picked| *picked == id).count();
        assert_eq!(["a", "b", "c"].map(|id| count(id, &picks)), [100, 200, 100]);
        for window in picks.windows(4) {
            assert!(["a", "b", "c"].iter().all(|id| count(id, window) <= 2), "{window:?}");
        }
    }
}

#[test]
fn agents_do_not_all_start_on_the_same_instance() {
    let first = |_| pick(&weighted(RoundRobin, &[("a", 1), ("b", 1), ("c", 1)]));
    assert_eq!((0..100).map(first).collect::<BTreeSet<_>>().len(), 3);
}

#[test]
fn strategies_that_are_not_weighted_share_evenly() {
    fastrand::seed(11);
    let weights = [("a", 1), ("b", 9), ("c", 100)];
    assert!(
        shares(&weighted(RoundRobin, &weights), 300)
            .values()
            .all(|&count| count == 100)
    );
    assert!(
        shares(&weighted(Random, &weights), 30_000)
            .values()
            .all(|&count| (9_500..10_500).contains(&count))
    );
}

#[test]
fn weighted_strategies_share_by_weight() {
    fastrand::seed(12);
    let weights = [("a", 1), ("b", 3), ("c", 2)];
    for strategy in [WeightedRoundRobin, LeastConnections, LeastResponseTime] {
        let counts = shares(&weighted(strategy, &weights), 600);
        assert_eq!((counts["a"], counts["b"], counts["c"]), (100, 300, 200), "{strategy}");
    }
    // Without a key `consistent_hash` draws at random by weight; with a key the ring decides.
    let hashed = weighted(ConsistentHash, &weights);
    let counts = shares(&hashed, 60_000);
    assert!(
        (9_000..11_000).contains(&counts["a"]) && (28_500..31_500).contains(&counts["b"]),
        "{counts:?}"
    );
    let mut keys: HashMap<String, usize> = HashMap::new();
    (0..60_000).for_each(|key| *keys.entry(keyed(&hashed, &format!("key-{key}"))).or_default() += 1);
    assert!(
        (7_000..13_500).contains(&keys["a"]) && (25_000..35_000).contains(&keys["b"]),
        "{keys:?}"
    );
}

#[test]
fn weight_zero_and_critical_are_never_picked_by_any_strategy() {
    for strategy in LoadBalancingStrategy::ALL {
        let drained = instance("drained", 0);
        let critical = instance("critical", 5).with_status(RegistryStatus::Critical);
        let maintained = instance("maintained", 5).with_status(RegistryStatus::Maintenance);
        let balancer = balancer(
            LoadBalancerConfig::new(strategy),
            [drained, critical, maintained, instance("good", 1)],
        );
        for key in 0..200 {
            assert_eq!(keyed(&balancer, &key.to_string()), "good", "{strategy}");
            assert_eq!(pick(&balancer), "good", "{strategy}");
        }
        let changes = balancer.remove_instance(&"good".parse().unwrap());
        assert_eq!(changes.removed.len(), 1);
        let refusal = balancer.select_instance(&Context::new()).unwrap_err();
        assert!(
            matches!(refusal, PickError::NoneAvailable { total: 3, .. }),
            "{strategy}: {refusal}"
        );
    }
}

#[test]
fn without_instances_there_is_another_answer() {
    let balancer = weighted(RoundRobin, &[]);
    assert!(matches!(
        balancer.select_instance(&Context::new()),
        Err(PickError::Empty { .. })
    ));
}

#[test]
fn a_degraded_instance_is_picked_a_quarter_as_often() {
    fastrand::seed(13);
    for strategy in LoadBalancingStrategy::ALL {
        let warned = instance("warned", 1).with_status(RegistryStatus::Warning);
        let balancer = balancer(LoadBalancerConfig::new(strategy), [instance("good", 1), warned]);
        let counts = match strategy {
            ConsistentHash => {
                let mut counts: BTreeMap<String, usize> = BTreeMap::new();
                (0..10_000).for_each(|key| *counts.entry(keyed(&balancer, &format!("key-{key}"))).or_default() += 1);
                // The degraded instance keeps a quarter of its half of the keys.
                assert!((900..1_700).contains(&counts["warned"]), "{counts:?}");
                continue;
            }
            _ => shares(&balancer, 10_000),
        };
        assert!((1_850..2_150).contains(&counts["warned"]), "{strategy}: {counts:?}");
    }
}

#[test]
fn shares_follow_the_weights_up_to_the_largest() {
    fastrand::seed(17);
    for strategy in LoadBalancingStrategy::ALL
        .into_iter()
        .filter(|strategy| strategy.is_weighted())
    {
        let balancer = weighted(
            strategy,
            &[("full", 65_535), ("half", 32_768), ("light", 1), ("none", 0)],
        );
        let counts = match strategy {
            ConsistentHash => {
                let mut counts: BTreeMap<String, usize> = BTreeMap::new();
                (0..30_000).for_each(|key| *counts.entry(keyed(&balancer, &format!("key-{key}"))).or_default() += 1);
                counts
            }
            _ => shares(&balancer, 30_000),
        };
        let full = counts["full"] as f64 / counts["half"] as f64;
        assert!((1.7..2.3).contains(&full), "{strategy}: {counts:?}");
        assert!(
            counts.get("light").copied().unwrap_or_default() < 300,
            "{strategy}: {counts:?}"
        );
        assert!(!counts.contains_key("none"), "{strategy}: {counts:?}");
    }
}

#[test]
fn what_is_excluded_is_not_picked_and_tags_must_all_match() {
    for strategy in LoadBalancingStrategy::ALL {
        let tagged = |id: &str, tags: &[&str]| instance(id, 1).with_tags(tags).unwrap();
        let all = [
            tagged("a", &["v1"]),
            tagged("b", &["v1", "eu"]),
            tagged("c", &["v2", "eu"]),
            tagged("d", &["eu", "v1"]),
        ];
        let balancer = balancer(LoadBalancerConfig::new(strategy), all);
        let seen = |context: Context<'_>| {
            let select = |key: u32| {
                balancer
                    .select_instance(&context.with_key(&key.to_le_bytes()))
                    .map(|pick| pick.id().to_string())
            };
            (0..300)
                .filter_map(|key| select(key).ok())
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(seen(Context::new()), "a b c d", "{strategy}");
        assert_eq!(
            seen(Context::new().with_exclude(&["a", "c", "absent"])),
            "b d",
            "{strategy}"
        );
        assert_eq!(seen(Context::new().with_tags(&["eu", "v1"])), "b d", "{strategy}");
        assert_eq!(
            seen(Context::new().with_tags(&["eu"]).with_exclude(&["b"])),
            "c d",
            "{strategy}"
        );
        assert_eq!(seen(Context::new().with_tags(&["v3"])), "", "{strategy}");
        assert_eq!(
            seen(Context::new().with_exclude(&["a", "b", "c", "d"])),
            "",
            "{strategy}"
        );
    }
}

#[test]
fn more_tag_sets_than_the_table_holds_are_served_all_the_same() {
    let instances = (0..200).map(|number| {
        instance(&format!("i{number}"), 1)
            .with_tags([format!("t{number}")])
            .unwrap()
    });
    let balancer = balancer(LoadBalancerConfig::default(), instances);
    for round in 0..2 {
        for number in 0..200 {
            let tag = format!("t{number}");
            let pick = balancer.select_instance(&Context::new().with_tags(&[&tag])).unwrap();
            assert_eq!(pick.id().as_str(), format!("i{number}"), "round {round}");
        }
    }
}

#[test]
fn a_tag_set_is_served_in_turn_like_a_service_of_its_own() {
    let tagged = |id: &str, tag: &str| instance(id, 1).with_tags([tag]).unwrap();
    let balancer = balancer(
        LoadBalancerConfig::default(),
        [tagged("a", "v1"), tagged("b", "v1"), tagged("c", "v2")],
    );
    let picks: Vec<String> = (0..40)
        .map(|_| {
            balancer
                .select_instance(&Context::new().with_tags(&["v1"]))
                .unwrap()
                .id()
                .to_string()
        })
        .collect();
    assert!(picks.windows(2).all(|pair| pair[0] != pair[1]), "{picks:?}");
}

#[test]
fn alternates_are_distinct_follow_the_request_and_count_no_pick() {
    for strategy in LoadBalancingStrategy::ALL {
        let all = ["a", "b", "c", "d", "e"].map(|id| (id, 1));
        let balancer = weighted(strategy, &all);
        let context = Context::new().with_key("k").with_exclude(&["b"]);
        for _ in 0..50 {
            let pick = balancer.select_instance(&context).unwrap();
            let alternates = pick.alternates(15, &context);
            let mut ids: BTreeSet<&str> = alternates
                .iter()
                .map(|alternate| alternate.instance().id().as_str())
                .collect();
            assert_eq!(alternates.len(), 3, "{strategy}");
            assert!(
                ids.insert(pick.id().as_str()) && !ids.contains("b"),
                "{strategy} {ids:?}"
            );
            assert_eq!(pick.alternates(2, &context).len(), 2);
        }
        assert_eq!(balancer.statistics().total_requests, 50);
    }
}

#[test]
fn hashed_alternates_are_the_next_instances_on_the_ring() {
    let balancer = weighted(ConsistentHash, &["a", "b", "c", "d"].map(|id| (id, 1)));
    for key in 0..200 {
        let key = format!("key-{key}");
        let context = Context::new().with_key(&key);
        let pick = balancer.select_instance(&context).unwrap();
        let next: Vec<String> = pick
            .alternates(3, &context)
            .iter()
            .map(|next| next.instance().id().to_string())
            .collect();
        let first = pick.id().to_string();
        let second = balancer
            .select_instance(&context.with_exclude(&[&first]))
            .unwrap()
            .id()
            .to_string();
        let third = balancer
            .select_instance(&context.with_exclude(&[&first, &second]))
            .unwrap()
            .id()
            .to_string();
        assert_eq!(next[..2], [second, third]);
    }
}

#[test]
fn short_ids_share_keys_and_explain_says_how() {
    let numbered = |prefix: &str, numbers: std::ops::RangeInclusive<u32>, digits: usize| {
        numbers
            .map(|number| format!("{prefix}{number:0digits$}"))
            .collect::<Vec<_>>()
    };
    for (ids, expected) in [
        (numbered("db", 1..=3, 1), &[1601, 1635, 1764][..]),
        (
            numbered("i", 0..=9, 2),
            &[465, 527, 504, 532, 515, 492, 486, 507, 469, 503],
        ),
        (numbered("a@", 1..=3, 1), &[1590, 1702, 1708]),
    ] {
        let balancer = balancer(
            LoadBalancerConfig::new(ConsistentHash),
            ids.iter().map(|id| instance(id, 1)),
        );
        let mut picks: HashMap<String, usize> = HashMap::new();
        for key in 0..5_000 {
            *picks.entry(keyed(&balancer, &format!("user-{key}"))).or_default() += 1;
        }
        let picks: Vec<usize> = ids.iter().map(|id| picks[id]).collect();
        assert_eq!(picks, expected, "{ids:?}");
        for (id, picks) in ids.iter().zip(picks) {
            let share = score(&balancer, id).unwrap();
            assert_eq!(share.kind(), "ring_share");
            // Four standard deviations of 5,000 draws.
            let draws = 4.0 * (5_000_f64 * share.value() * (1.0 - share.value())).sqrt();
            assert!(
                (picks as f64 - 5_000.0 * share.value()).abs() < draws,
                "{id}: {picks} {share:?}"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn a_part_of_a_pool_shares_keys_as_a_pool_of_its_own(
        prefix in "[a-z]{0,2}[@-]?",
        colours in prop::collection::vec(prop::sample::select(&["blue", "green"][..]), 1..16),
    ) {
        let id = |index: usize| format!("{prefix}{index}");
        let coloured = |index: usize| instance(&id(index), 1).with_tags([colours[index]]).unwrap();
        let pool = |part: &[usize]| balancer(without_slow_start(ConsistentHash), part.iter().map(|&index| coloured(index)));
        let id_of = |balancer: &LoadBalancer, context: &Context<'_>| {
            balancer.select_instance(context).ok().map(|pick| pick.id().to_string())
        };
        let whole = pool(&(0..colours.len()).collect::<Vec<_>>());
        for colour in ["blue", "green"] {
            let (inside, outside): (Vec<usize>, Vec<usize>) = (0..colours.len()).partition(|&index| colours[index] == colour);
            let others: Vec<String> = outside.into_iter().map(id).collect();
            let others: Vec<&str> = others.iter().map(String::as_str).collect();
            let alone = pool(&inside);
            let mut picks: HashMap<Option<String>, f64> = HashMap::new();
            for key in 0..2_000 {
                let key = format!("user-{key}");
                let context = Context::new().with_key(&key);
                let picked = id_of(&alone, &context);
                prop_assert_eq!(&id_of(&whole, &context.with_tags(&[colour])), &picked);
                prop_assert_eq!(&id_of(&whole, &context.with_exclude(&others)), &picked);
                *picks.entry(picked).or_default() += 1.0;
            }
            // Eight standard deviations, of shares with 100 random points each and of 2,000 draws.
            let count = inside.len().max(1) as f64;
            let bound = 8.0 * ((count - 1.0) / (count * 100.0 + 1.0) + (count - 1.0) / 2_000.0).sqrt();
            for (id, picks) in picks {
                prop_assert_eq!(id.is_none(), inside.is_empty());
                let error = picks / 2_000.0 * count - 1.0;
                prop_assert!(error.abs() <= bound, "{:?} of {}: {} beyond {}", id, count, error, bound);
            }
        }
    }
}

#[test]
fn equal_views_on_two_balancers_answer_equally_for_ten_thousand_keys() {
    let instances = || (0..50).map(|number| instance(&format!("cache-{number}"), 1 + number % 4));
    let here = balancer(LoadBalancerConfig::new(ConsistentHash), instances());
    let there = weighted(ConsistentHash, &[]);
    // The same view after another order of changes.
    for added in instances().collect::<Vec<_>>().into_iter().rev() {
        there.add_instance(added);
    }
    there.add_instance(instance("stray", 7));
    there.remove_instance(&"stray".parse().unwrap());
    for key in 0..10_000 {
        let key = format!("user-{key}");
        assert_eq!(keyed(&here, &key), keyed(&there, &key));
    }
}

#[test]
fn a_flapping_instance_moves_only_its_own_keys_and_gets_them_back() {
    let all = |status| {
        let flapping = instance("cache-3", 2).with_status(status);
        (0..8)
            .map(|number| instance(&format!("cache-{number}"), 2))
            .map(|it| if it.id() == flapping.id() { flapping.clone() } else { it })
            .collect::<Vec<_>>()
    };
    let balancer = balancer(without_slow_start(ConsistentHash), all(RegistryStatus::Passing));
    let owners = || {
        (0..5_000)
            .map(|key| keyed(&balancer, &format!("k{key}")))
            .collect::<Vec<_>>()
    };
    let before = owners();
    balancer.apply(all(RegistryStatus::Critical).into_iter().map(Arc::new));
    let during = owners();
    for (was, is) in before.iter().zip(&during) {
        assert!(was == is || was == "cache-3", "{was} -> {is}");
        assert_ne!(is, "cache-3");
    }
    balancer.apply(all(RegistryStatus::Passing).into_iter().map(Arc::new));
    assert_eq!(owners(), before);
}

#[test]
fn a_bound_on_hash_load_passes_a_hot_key_on() {
    let config = LoadBalancerConfig::new(ConsistentHash)
        .with_hash_balance_factor(1.25)
        .unwrap();
    let (balancer, _) = timed(config, ["a", "b", "c", "d"].map(|id| instance(id, 1)));
    let context = Context::new().with_key("hot");
    let held: Vec<_> = (0..40).map(|_| balancer.acquire(&context).unwrap()).collect();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    held.iter()
        .for_each(|acquired| *counts.entry(acquired.id().to_string()).or_default() += 1);
    assert!(
        counts.len() >= 4 && counts.values().all(|&count| count <= 13),
        "{counts:?}"
    );
}

#[test]
fn least_connections_fills_up_evenly_and_by_weight() {
    let balancer = weighted(LeastConnections, &[("a", 1), ("b", 2), ("c", 1)]);
    assert_eq!(balancer.mode(), Mode::NothingInFlight);
    let held: Vec<_> = (0..40).map(|_| balancer.acquire(&Context::new()).unwrap()).collect();
    assert_eq!(balancer.mode(), Mode::Normal);
    let in_flight = |id: &str| balancer.statistics().instances[&id.parse::<InstanceId>().unwrap()].active_connections;
    assert_eq!(["a", "b", "c"].map(in_flight), [10, 20, 10]);
    for acquired in held {
        if acquired.id().as_str() == "c" {
            drop(acquired);
        } else {
            std::mem::forget(acquired);
        }
    }
    assert_eq!(pick(&balancer), "c");
}

#[test]
fn least_connections_beyond_the_exact_size_takes_the_better_of_two() {
    fastrand::seed(14);
    let balancer = balancer(
        LoadBalancerConfig::new(LeastConnections),
        (0..100).map(|number| instance(&format!("i{number}"), 1)),
    );
    let held: Vec<_> = (0..1_000).map(|_| balancer.acquire(&Context::new()).unwrap()).collect();
    let statistics = balancer.statistics();
    let most = statistics
        .instances
        .values()
        .map(|instance| instance.active_connections)
        .max()
        .unwrap();
    // Random placement would pile up about 20; two choices stay close to the mean of 10.
    assert!(most <= 14, "{most}");
    assert_eq!(held.len(), 1_000);
}

#[test]
fn ties_rotate() {
    let balancer = weighted(LeastConnections, &["a", "b", "c"].map(|id| (id, 1)));
    let _busy = balancer.acquire(&Context::new()).unwrap();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..300 {
        let acquired = balancer.acquire(&Context::new()).unwrap();
        *counts.entry(acquired.id().to_string()).or_default() += 1;
        acquired.finish(Outcome::Success, Duration::from_millis(1));
    }
    let used: Vec<usize> = counts.values().copied().collect();
    assert_eq!(used.len(), 2, "{counts:?}");
    assert!(used.iter().all(|&count| count >= 90), "{counts:?}");
}

/// Runs requests at 100/s for `seconds` against instances of the given latencies, one at a time.
/// Returns the picks of each instance.
fn drive(
    balancer: &LoadBalancer,
    clock: &Manual,
    seconds: u64,
    answer: impl Fn(&str) -> (Outcome, u64),
) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for _ in 0..seconds * 100 {
        let acquired = balancer.acquire(&Context::new()).unwrap();
        let id = acquired.id().to_string();
        let (outcome, milliseconds) = answer(&id);
        acquired.finish(outcome, Duration::from_millis(milliseconds));
        *counts.entry(id).or_default() += 1;
        clock.advance(Duration::from_millis(10));
    }
    counts
}

const FIVE: [&str; 5] = ["a", "b", "c", "d", "e"];

#[test]
fn least_response_time_shares_evenly_among_equals() {
    for seed in 0..10 {
        fastrand::seed(seed);
        let (balancer, clock) = timed(
            LoadBalancerConfig::new(LeastResponseTime),
            FIVE.map(|id| instance(id, 1)),
        );
        let counts = drive(&balancer, &clock, 60, |_| (Outcome::Success, 20 + fastrand::u64(0..5)));
        assert!(
            counts.values().all(|&count| (900..=1_500).contains(&count)),
            "seed {seed}: {counts:?}"
        );
    }
}

#[test]
fn least_response_time_avoids_the_slow_one_and_takes_it_back() {
    for seed in 0..10 {
        fastrand::seed(seed);
        let (balancer, clock) = timed(
            LoadBalancerConfig::new(LeastResponseTime),
            FIVE.map(|id| instance(id, 1)),
        );
        let slow = |id: &str| (Outcome::Success, if id == "c" { 200 } else { 20 });
        drive(&balancer, &clock, 10, slow);
        let counts = drive(&balancer, &clock, 60, slow);
        let share = counts["c"] as f64 / 6_000.0;
        assert!(share > 0.0 && share < 0.05, "seed {seed}: {counts:?}");
        drive(&balancer, &clock, 25, |_| (Outcome::Success, 20));
        let counts = drive(&balancer, &clock, 5, |_| (Outcome::Success, 20));
        assert!(counts["c"] >= 50, "seed {seed}: {counts:?}");
    }
}

#[test]
fn least_response_time_does_not_fall_for_fast_failures() {
    for seed in 0..10 {
        fastrand::seed(seed);
        let (balancer, clock) = timed(
            LoadBalancerConfig::new(LeastResponseTime),
            FIVE.map(|id| instance(id, 1)),
        );
        let counts = drive(&balancer, &clock, 30, |id| {
            if id == "c" {
                (Outcome::Failure, 1)
            } else {
                (Outcome::Success, 20)
            }
        });
        assert!(counts["c"] <= 600, "seed {seed}: {counts:?}");
    }
}

/// A configuration without slow start: a new instance has its full share at once.
fn without_slow_start(strategy: LoadBalancingStrategy) -> LoadBalancerConfig {
    LoadBalancerConfig::new(strategy)
        .with_slow_start(Duration::ZERO)
        .unwrap()
}

#[test]
fn a_newcomer_is_neither_flooded_nor_starved() {
    for seed in 0..10 {
        fastrand::seed(seed);
        let (balancer, clock) = timed(
            without_slow_start(LeastResponseTime),
            ["a", "b", "c", "d"].map(|id| instance(id, 1)),
        );
        drive(&balancer, &clock, 20, |_| (Outcome::Success, 20));
        balancer.add_instance(instance("e", 1));
        let counts = drive(&balancer, &clock, 10, |_| (Outcome::Success, 20));
        assert!((50..=400).contains(&counts["e"]), "seed {seed}: {counts:?}");
    }
}

#[test]
fn without_reports_least_response_time_follows_the_weights_and_says_so() {
    let config = LoadBalancerConfig::new(LeastResponseTime).with_choices(Choices::All);
    let (balancer, clock) = timed(config, [instance("a", 1), instance("b", 3)]);
    assert_eq!(balancer.mode(), Mode::NoReports);
    assert_eq!(
        shares(&balancer, 400),
        BTreeMap::from([("a".into(), 100), ("b".into(), 300)])
    );
    drive(&balancer, &clock, 1, |_| (Outcome::Success, 20));
    assert_eq!(balancer.mode(), Mode::Normal);
    clock.advance(Duration::from_secs(61));
    assert_eq!(balancer.mode(), Mode::NoReports);
}

/// Requests that overlap, as a client over HTTP makes them: each request has a lease, and is
/// reported when it ends.
struct Leased {
    directory: Directory,
    clock: Arc<Manual>,
    name: pickd::ServiceName,
    /// Requests in flight, by the microsecond at which each ends.
    running: BTreeMap<(u64, u64), (LeaseId, Outcome, Duration)>,
    now: u64,
    requests: u64,
}

impl Leased {
    fn new(config: LoadBalancerConfig, ids: &[&str]) -> Self {
        let clock = Arc::new(Manual::default());
        clock.advance(Duration::from_secs(1_000));
        let tools = Environment {
            clock: clock.clone(),
            ..Environment::default()
        };
        let configs = ServiceConfigs {
            defaults: config,
            ..ServiceConfigs::default()
        };
        let simulation = Self {
            directory: Directory::new(configs, Sources::default(), tools),
            clock,
            name: "web".parse().unwrap(),
            running: BTreeMap::new(),
            now: 0,
            requests: 0,
        };
        simulation.register(ids);
        simulation
    }

    fn register(&self, ids: &[&str]) {
        self.directory
            .apply(&self.name, ids.iter().map(|id| Arc::new(instance(id, 1))));
    }

    fn balancer(&self) -> LoadBalancer {
        self.directory.get("web").unwrap()
    }

    fn sleep_until(&mut self, microsecond: u64) {
        self.clock.advance(Duration::from_micros(microsecond - self.now));
        self.now = microsecond;
    }

    fn finish_until(&mut self, microsecond: u64) {
        while let Some(ended) = self.running.first_entry().filter(|ended| ended.key().0 <= microsecond) {
            let ((at, _), (lease, outcome, latency)) = ended.remove_entry();
            self.sleep_until(at);
            self.directory.report(lease, outcome, Some(latency)).unwrap();
            let open = self.running.len() as u64;
            assert_eq!(
                (self.balancer().in_flight(), self.directory.open_leases() as u64),
                (open, open)
            );
        }
        self.sleep_until(microsecond);
    }

    /// Makes requests at random times, 400 per second. Returns the share of each instance.
    fn run(&mut self, seconds: u64, answer: impl Fn(&str) -> (Outcome, u64)) -> BTreeMap<String, f64> {
        let (end, mut counts) = (self.now + seconds * 1_000_000, BTreeMap::<String, f64>::new());
        let balancer = self.balancer();
        loop {
            let next = self.now + (-(1.0 - fastrand::f64()).ln() * 2_500.0) as u64;
            self.finish_until(next.min(end));
            if next >= end {
                break;
            }
            let (pick, lease) = self.directory.lease(&balancer, &Context::new(), None).unwrap();
            let (outcome, milliseconds) = answer(pick.id().as_str());
            // Random times vary around the requested rate.
            let latency = Duration::from_micros(milliseconds * (800 + fastrand::u64(0..400)));
            self.requests += 1;
            let ends_at = self.now + latency.as_micros() as u64;
            self.running
                .insert((ends_at, self.requests), (lease.unwrap().id, outcome, latency));
            *counts.entry(pick.id().to_string()).or_default() += 1.0;
        }
        let total: f64 = counts.values().sum();
        counts.values_mut().for_each(|count| *count /= total);
        counts
    }
}

#[test]
fn overlapping_requests_with_leases_are_shared_as_they_should_be() {
    let good = |_: &str| (Outcome::Success, 20);
    for seed in 0..10 {
        for strategy in [LeastConnections, LeastResponseTime] {
            fastrand::seed(seed);
            let mut simulation = Leased::new(without_slow_start(strategy), &FIVE);
            let shares = simulation.run(20, good);
            assert!(
                shares.values().all(|share| (0.15..=0.25).contains(share)),
                "equal: {strategy}, seed {seed}: {shares:?}"
            );
            simulation.register(&["a", "b", "c", "d", "e", "f"]);
            let shares = simulation.run(10, good);
            assert!(
                (1.0 / 24.0..=1.0 / 3.0).contains(&shares["f"]),
                "newcomer: {strategy}, seed {seed}: {shares:?}"
            );
        }
        let simulation = || {
            fastrand::seed(seed);
            let mut simulation = Leased::new(LoadBalancerConfig::new(LeastResponseTime), &FIVE);
            simulation.run(5, good);
            simulation
        };
        let fails_fast = |id: &str| match id {
            "c" => (Outcome::Failure, 1),
            _ => (Outcome::Success, 20),
        };
        let shares = simulation().run(20, fails_fast);
        assert!(shares["c"] <= 0.2, "fails fast: seed {seed}: {shares:?}");

        let mut simulation = simulation();
        let slow = |id: &str| (Outcome::Success, if id == "c" { 200 } else { 20 });
        simulation.run(10, slow);
        let shares = simulation.run(30, slow);
        assert!(shares["c"] < 0.05, "slow: seed {seed}: {shares:?}");
        simulation.run(25, good);
        let shares = simulation.run(5, good);
        assert!(shares["c"] >= 0.1, "well again: seed {seed}: {shares:?}");
    }
}

#[test]
fn without_leases_and_reports_both_follow_the_weights_and_say_so() {
    for (strategy, mode) in [
        (LeastConnections, Mode::NothingInFlight),
        (LeastResponseTime, Mode::NoReports),
    ] {
        let balancer = weighted(strategy, &[("a", 1), ("b", 3), ("c", 2)]);
        for _round in 0..10 {
            let counts = shares(&balancer, 600);
            assert_eq!((counts["a"], counts["b"], counts["c"]), (100, 300, 200), "{strategy}");
            assert_eq!(balancer.mode(), mode);
        }
    }
}

#[test]
fn an_instance_left_alone_for_three_seconds_is_tried_once() {
    fastrand::seed(15);
    let (balancer, clock) = timed(
        LoadBalancerConfig::new(LeastResponseTime),
        ["a", "b"].map(|id| instance(id, 1)),
    );
    let slow = |id: &str| (Outcome::Success, if id == "b" { 5_000 } else { 1 });
    drive(&balancer, &clock, 5, slow);
    let counts = drive(&balancer, &clock, 30, slow);
    // The loser is retried once in three seconds, not with every pick.
    assert!((8..=12).contains(&counts["b"]), "{counts:?}");
}

#[test]
fn outcomes_are_counted_for_what_they_are() {
    let (balancer, _) = timed(LoadBalancerConfig::default(), [instance("a", 1)]);
    let milliseconds = [30, 10, 20, 0, 40];
    let outcomes = [
        Outcome::Success,
        Outcome::Failure,
        Outcome::Timeout,
        Outcome::ConnectError,
        Outcome::Rejected,
    ];
    for (outcome, milliseconds) in outcomes.into_iter().zip(milliseconds) {
        balancer
            .acquire(&Context::new())
            .unwrap()
            .finish(outcome, Duration::from_millis(milliseconds));
    }
    balancer
        .acquire(&Context::new())
        .unwrap()
        .finish(Outcome::Cancelled, Duration::from_secs(9));
    let statistics = balancer.statistics();
    assert_eq!(
        (
            statistics.total_requests,
            statistics.reported_requests,
            statistics.failed_requests
        ),
        (6, 5, 4)
    );
    assert_eq!(statistics.failure_rate, 0.8);
    assert_eq!(
        (statistics.timed_requests, statistics.total_response_time),
        (5, Duration::from_millis(100))
    );
    let a = &statistics.instances[&"a".parse::<InstanceId>().unwrap()];
    assert_eq!((a.consecutive_failures, a.active_connections), (4, 0));
    assert_eq!(a.average_response_time, Duration::from_millis(20));
    balancer
        .acquire(&Context::new())
        .unwrap()
        .finish(Outcome::Success, Duration::ZERO);
    assert_eq!(
        balancer.statistics().instances[&"a".parse::<InstanceId>().unwrap()].consecutive_failures,
        0
    );
}

#[test]
fn live_state_survives_weight_change_strategy_change_and_re_registration() {
    let (balancer, clock) = timed(LoadBalancerConfig::default(), [instance("a", 1), instance("b", 1)]);
    let held = balancer.acquire(&Context::new().with_exclude(&["b"])).unwrap();
    balancer
        .acquire(&Context::new().with_exclude(&["b"]))
        .unwrap()
        .finish(Outcome::Failure, Duration::from_millis(7));
    let of_a = || balancer.statistics().instances[&"a".parse::<InstanceId>().unwrap()].clone();
    let learned = |a: &pickd::balancer::InstanceStatistics| {
        (
            a.total_requests,
            a.failed_requests,
            a.active_connections,
            a.response_time,
            a.consecutive_failures,
        )
    };
    let before = of_a();
    assert_eq!((before.total_requests, before.active_connections), (2, 1));
    balancer.add_instance(instance("a", 9));
    balancer.configure(LoadBalancerConfig::new(ConsistentHash));
    assert_eq!(learned(&of_a()), learned(&before));
    let total = balancer.statistics().total_requests;
    balancer.remove_instance(&"a".parse().unwrap());
    assert_eq!(balancer.statistics().total_requests, total, "totals do not go back");
    balancer.add_instance(instance("a", 1));
    assert_eq!(learned(&of_a()), learned(&before));
    // The same address under another id is the same instance to the network.
    balancer.remove_instance(&"a".parse().unwrap());
    let address = instance("a", 1).address().clone();
    balancer.add_instance(ServiceInstance::at("renamed".parse().unwrap(), address));
    let renamed = balancer.statistics().instances[&"renamed".parse::<InstanceId>().unwrap()].clone();
    assert_eq!(learned(&renamed), learned(&before));
    // The same id at another address is another instance to the network.
    balancer.add_instance(ServiceInstance::new("renamed", "10.99.0.1", 1).unwrap());
    assert_eq!(
        balancer.statistics().instances[&"renamed".parse::<InstanceId>().unwrap()].total_requests,
        0
    );
    drop(held);
    clock.advance(Duration::from_secs(7_200));
    balancer.advance(clock.now());
    assert_eq!(
        balancer.statistics().total_requests,
        total,
        "not even when the departed are forgotten"
    );
}

#[test]
fn turns_go_on_across_rebuilds() {
    let balancer = weighted(RoundRobin, &[("a", 1), ("b", 1), ("c", 1)]);
    let picks: Vec<String> = (0..60)
        .map(|round| {
            balancer.add_instance(instance("a", 1 + round % 7));
            pick(&balancer)
        })
        .collect();
    assert!(
        picks
            .windows(3)
            .all(|window| window.iter().collect::<BTreeSet<_>>().len() == 3),
        "{picks:?}"
    );
}

/// Counts the calls of `render`.
#[derive(Default)]
struct Counting(AtomicU64);

impl Render for Counting {
    fn render(&self, described: &Described<'_>) -> Bodies {
        self.0.fetch_add(1, Ordering::Relaxed);
        Bodies {
            json: described.instance.id().as_str().as_bytes().into(),
            text: Box::default(),
        }
    }
}

#[test]
fn a_thousand_picks_render_nothing_and_allocate_nothing() {
    for strategy in LoadBalancingStrategy::ALL {
        let render = Arc::new(Counting::default());
        let tools = Environment {
            render: render.clone(),
            ..Environment::default()
        };
        let balancer = LoadBalancer::with_environment(
            "user-service".parse().unwrap(),
            LoadBalancerConfig::new(strategy),
            tools,
            1,
        );
        let instances = (0..100).map(|number| {
            instance(&format!("i{number}"), 1 + number % 3)
                .with_tags(["v1"])
                .unwrap()
        });
        balancer.apply(instances.map(Arc::new));
        assert_eq!(render.0.load(Ordering::Relaxed), 100);
        let _in_flight = balancer.acquire(&Context::new()).unwrap();
        balancer
            .acquire(&Context::new())
            .unwrap()
            .finish(Outcome::Success, Duration::from_millis(1));
        let tagged = Context::new().with_key("key").with_tags(&["v1"]).with_exclude(&["i7"]);
        balancer.select_instance(&tagged).unwrap();
        let allocations = allocation_counter::measure(|| {
            for _ in 0..500 {
                std::hint::black_box(
                    balancer
                        .select_instance(&Context::new().with_key("key"))
                        .unwrap()
                        .bodies(),
                );
                std::hint::black_box(balancer.select_instance(&tagged).unwrap().bodies());
            }
        });
        assert_eq!(allocations.count_total, 0, "{strategy}");
        assert_eq!(render.0.load(Ordering::Relaxed), 100, "{strategy}");
        // A changed instance is rendered again, other instances are not.
        balancer.add_instance(instance("i5", 77));
        assert_eq!(render.0.load(Ordering::Relaxed), 101);
        balancer.configure(LoadBalancerConfig::new(WeightedRoundRobin));
        assert_eq!(render.0.load(Ordering::Relaxed), 101);
    }
}

#[test]
fn the_counting_allocator_counts() {
    assert_eq!(
        allocation_counter::measure(|| drop(std::hint::black_box(Box::new(7)))).count_total,
        1
    );
}

#[test]
fn many_threads_pick_while_views_change() {
    let balancer = weighted(WeightedRoundRobin, &[("a", 1), ("b", 2), ("c", 1)]);
    let picks: u64 = std::thread::scope(|scope| {
        let pickers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    (0..20_000)
                        .filter(|_| balancer.select_instance(&Context::new()).is_ok())
                        .count() as u64
                })
            })
            .collect();
        for round in 0..200 {
            balancer.add_instance(instance("b", 1 + round % 9));
        }
        pickers.into_iter().map(|picker| picker.join().unwrap()).sum()
    });
    assert_eq!(picks, 80_000, "none was refused");
    assert_eq!(balancer.statistics().total_requests, 80_000, "none was lost count of");
}

#[test]
fn a_directory_tells_unknown_empty_and_not_synced_apart() {
    let clock = Arc::new(Manual::default());
    let status = |name, prefix: &'static str| {
        Arc::new(SourceStatus::new(
            Source::new(name),
            true,
            Box::new(move |service: &str| service.starts_with(prefix)),
        ))
    };
    let (consul, file) = (status("consul", "web"), status("file", "db"));
    let sources = Sources::new(vec![consul.clone(), file.clone()]);
    let mut configs = ServiceConfigs::default();
    configs
        .services
        .insert("web-configured".parse().unwrap(), LoadBalancerConfig::new(Random));
    let directory = Directory::new(
        configs,
        sources,
        Environment {
            clock: clock.clone(),
            ..Environment::default()
        },
    );
    let refusal = |name: &str| match directory.get(name) {
        Some(balancer) => directory.select_instance(&balancer, &Context::new()).unwrap_err(),
        None => directory.refuse_unknown(name.parse().unwrap()),
    };
    assert!(matches!(refusal("web-1"), PickError::NotSynced { waiting_for, .. } if waiting_for.as_str() == "consul"));
    assert!(matches!(refusal("web-configured"), PickError::NotSynced { .. }));
    assert!(
        matches!(refusal("mail"), PickError::Unknown { .. }),
        "no source could list it"
    );
    consul.mark_synced();
    assert!(matches!(refusal("web-1"), PickError::Unknown { .. }));
    assert!(matches!(refusal("web-configured"), PickError::Empty { .. }));
    assert!(matches!(refusal("db-1"), PickError::NotSynced { .. }));
    file.mark_synced();

    let name = "db-1".parse().unwrap();
    directory.apply(&name, [Arc::new(instance("a", 1))]);
    let balancer = directory.get("db-1").unwrap();
    assert!(directory.select_instance(&balancer, &Context::new()).is_ok());
    directory.apply(&name, []);
    assert!(matches!(refusal("db-1"), PickError::Empty { .. }), "known, and empty");
    clock.advance(Duration::from_secs(3_599));
    directory.advance(clock.now());
    assert!(matches!(refusal("db-1"), PickError::Empty { .. }));
    clock.advance(Duration::from_secs(1));
    directory.advance(clock.now());
    assert!(
        matches!(refusal("db-1"), PickError::Unknown { .. }),
        "forgotten after an hour"
    );
    assert!(
        matches!(refusal("web-configured"), PickError::Empty { .. }),
        "named in the configuration"
    );
    assert_eq!(directory.unknown_picks(), (3, 2));
    let refusals = directory.get("web-configured").unwrap().refusals();
    assert_eq!((refusals.not_synced, refusals.no_instances), (1, 2));
}

#[test]
fn a_listed_service_is_known_until_an_hour_after_it_is_no_longer_listed() {
    let clock = Arc::new(Manual::default());
    let tools = Environment {
        clock: clock.clone(),
        ..Environment::default()
    };
    let directory = Directory::new(ServiceConfigs::default(), Sources::default(), tools);
    let name = "batch".parse().unwrap();
    let advance = |hours: u64| {
        clock.advance(Duration::from_secs(hours * 3_600));
        directory.advance(clock.now());
    };
    directory.apply(&name, []);
    assert!(directory.get("batch").is_none(), "nothing lists it");
    directory.set_listed(&name, true);
    advance(5);
    let balancer = directory.get("batch").unwrap();
    let refused = directory.select_instance(&balancer, &Context::new());
    assert!(matches!(refused, Err(PickError::Empty { .. })));
    directory.apply(&name, [Arc::new(instance("a", 1))]);
    directory.apply(&name, []);
    directory.set_listed(&name, false);
    directory.advance(clock.now());
    assert!(directory.get("batch").is_some(), "it had an instance a moment ago");
    advance(1);
    assert!(directory.get("batch").is_none());
}

#[test]
fn a_service_is_found_in_every_spelling_and_shown_as_registered() {
    let clock = Arc::new(Manual::default());
    let tools = Environment {
        clock: clock.clone(),
        ..Environment::default()
    };
    let mut configs = ServiceConfigs::default();
    let random = LoadBalancerConfig::new(Random);
    configs.services.insert("REDIS".parse().unwrap(), random.clone());
    let directory = Directory::new(configs, Sources::default(), tools);
    let shown = |directory: &Directory| {
        let services = directory.services();
        let names = services.iter().map(|balancer| balancer.service().to_string());
        names.collect::<Vec<_>>()
    };
    assert_eq!(shown(&directory), ["REDIS"]);
    directory.apply(&"Redis".parse().unwrap(), [Arc::new(instance("a", 1))]);
    directory.apply(&"\u{c9}t\u{c9}".parse().unwrap(), [Arc::new(instance("e", 1))]);
    assert_eq!(shown(&directory), ["Redis", "\u{c9}t\u{c9}"]);
    // A later spelling is the same service, and does not rename a service in use.
    directory.apply(&"rEDIS".parse().unwrap(), [Arc::new(instance("b", 1))]);
    for spelling in ["Redis", "redis", "REDIS", "rEdIs"] {
        let balancer = directory.get(spelling).unwrap();
        assert_eq!(
            (balancer.service().as_str(), pick(&balancer)),
            ("Redis", "b".to_owned())
        );
        assert_eq!(balancer.config().strategy(), Random);
    }
    for spelling in ["\u{e9}t\u{e9}", "\u{c9}T\u{e9}"] {
        assert!(directory.get(spelling).is_some());
    }
    let absent = ["redi", "redis2", &"r".repeat(254), &"\u{c9}".repeat(254), ""];
    assert!(absent.iter().all(|name| directory.get(name).is_none()));
    // Without a configuration and instances it is forgotten, in every spelling.
    directory.configure(ServiceConfigs::default());
    directory.apply(&"redis".parse().unwrap(), []);
    clock.advance(Duration::from_secs(3_600));
    directory.advance(clock.now());
    assert!(
        ["Redis", "redis", "REDIS"]
            .iter()
            .all(|name| directory.get(name).is_none())
    );
    assert_eq!(shown(&directory).len(), 1);
}

#[test]
fn a_reconfigured_directory_balances_known_services_anew() {
    let directory = Directory::new(ServiceConfigs::default(), Sources::default(), Environment::default());
    let name = "web".parse().unwrap();
    directory.apply(&name, [Arc::new(instance("a", 1)), Arc::new(instance("b", 3))]);
    let mut configs = ServiceConfigs::default();
    configs
        .services
        .insert(name, LoadBalancerConfig::new(WeightedRoundRobin));
    directory.configure(configs);
    let counts = shares(&directory.get("web").unwrap(), 400);
    assert_eq!((counts["a"], counts["b"]), (100, 300));
}

#[derive(Clone, Debug)]
enum Step {
    Add(u8, i64, u8),
    Remove(u8),
    Apply(Vec<(u8, i64, u8)>),
    Configure(usize),
    Pick(Option<u16>, Option<u8>, bool),
    Acquire,
    Finish(usize),
    Wait(u16),
}

fn step() -> impl Strategy<Value = Step> {
    let weight = || prop_oneof![Just(0_i64), 1_i64..5, Just(65_535)];
    let instance = move || (0_u8..12, weight(), 0_u8..5);
    prop_oneof![
        (0_u8..12, weight(), 0_u8..5).prop_map(|(id, weight, status)| Step::Add(id, weight, status)),
        (0_u8..12).prop_map(Step::Remove),
        prop::collection::vec(instance(), 0..20).prop_map(Step::Apply),
        (0_usize..6).prop_map(Step::Configure),
        (
            prop::option::of(any::<u16>()),
            prop::option::of(0_u8..12),
            any::<bool>()
        )
            .prop_map(|(key, exclude, tag)| Step::Pick(key, exclude, tag)),
        Just(Step::Acquire),
        (0_usize..6).prop_map(Step::Finish),
        any::<u16>().prop_map(Step::Wait),
    ]
}

fn any_instance((id, weight, status): (u8, i64, u8)) -> ServiceInstance {
    use RegistryStatus::{Critical, Maintenance, Passing, Unknown, Warning};
    let status = [Unknown, Passing, Warning, Critical, Maintenance][usize::from(status)];
    // Some ids share an address, and odd numbers have a tag.
    let made = ServiceInstance::new(&format!("i{id}"), &format!("10.0.0.{}", id % 9), 80).unwrap();
    let made = made.with_weight(Weight::new(weight).unwrap()).with_status(status);
    if id % 2 == 1 {
        made.with_tags(["odd"])
            .unwrap()
            .with_warning_weight(Weight::new(weight / 2).unwrap())
    } else {
        made
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_sequence_of_changes_and_picks_panics_or_picks_what_must_not_be(steps in prop::collection::vec(step(), 1..60)) {
        let (balancer, clock) = timed(LoadBalancerConfig::default(), []);
        let mut registered: BTreeMap<String, ServiceInstance> = BTreeMap::new();
        let mut held = Vec::new();
        for step in steps {
            match step {
                Step::Add(id, weight, status) => {
                    let added = any_instance((id, weight, status));
                    registered.insert(added.id().to_string(), added.clone());
                    balancer.add_instance(added);
                }
                Step::Remove(id) => {
                    registered.remove(&format!("i{id}"));
                    balancer.remove_instance(&format!("i{id}").parse().unwrap());
                }
                Step::Apply(all) => {
                    let all: Vec<_> = all.into_iter().map(any_instance).collect();
                    registered = all.iter().map(|it| (it.id().to_string(), it.clone())).collect();
                    balancer.apply(all.into_iter().map(Arc::new));
                }
                Step::Configure(strategy) => balancer.configure(LoadBalancerConfig::new(LoadBalancingStrategy::ALL[strategy])),
                Step::Pick(key, exclude, tag) => {
                    let excluded = exclude.map(|id| format!("i{id}")).unwrap_or_default();
                    let key = key.unwrap_or_default().to_le_bytes();
                    let exclude = [excluded.as_str()];
                    let mut context = Context::new().with_key(&key).with_exclude(&exclude);
                    if tag {
                        context = context.with_tags(&["odd"]);
                    }
                    let may = |it: &ServiceInstance| {
                        let weight = match it.registry_status() {
                            RegistryStatus::Critical | RegistryStatus::Maintenance => 0,
                            RegistryStatus::Warning => it.warning_weight().unwrap_or(it.weight()).get().min(it.weight().get()),
                            _ => it.weight().get(),
                        };
                        weight > 0 && it.id().as_str() != excluded && (!tag || it.has_tag("odd"))
                    };
                    let judged = balancer.statistics().instances;
                    match balancer.select_instance(&context) {
                        Ok(pick) => {
                            prop_assert_eq!(Some(pick.instance()), registered.get(pick.id().as_str()));
                            let objections = &judged[pick.id()].unavailable_reasons;
                            let is_trial = objections.as_slice() == [UnavailableReason::BreakerHalfOpen];
                            prop_assert!(objections.is_empty() || is_trial || pick.panic(), "{:?}", objections);
                            prop_assert!(may(&pick), "{:?}", pick);
                            for alternate in pick.alternates(3, &context) {
                                prop_assert!(may(alternate.instance()));
                            }
                        }
                        Err(PickError::Empty { .. }) => prop_assert!(registered.is_empty()),
                        Err(_) => {
                            let could = |it: &&ServiceInstance| may(it) && judged[it.id()].available;
                            prop_assert!(!registered.values().any(|it| could(&it)), "{:?} {:?}", registered, judged);
                        }
                    }
                }
                Step::Acquire => held.extend(balancer.acquire(&Context::new()).ok()),
                Step::Finish(outcome) => if let Some(acquired) = held.pop() {
                    use Outcome::{Cancelled, ConnectError, Failure, Rejected, Success, Timeout};
                    let outcome = [Success, Failure, Timeout, ConnectError, Rejected, Cancelled][outcome];
                    acquired.finish(outcome, Duration::from_micros(300));
                },
                Step::Wait(seconds) => {
                    clock.advance(Duration::from_secs(seconds.into()));
                    balancer.advance(clock.now());
                }
            }
        }
        let statistics = balancer.statistics();
        prop_assert_eq!(statistics.total_instances, registered.len());
        prop_assert_eq!(statistics.instances.len(), registered.len());
    }

    #[test]
    fn any_weights_are_shared_out_exactly_over_one_period(weights in prop::collection::vec(1_i64..20, 1..12)) {
        let balancer = balancer(
            LoadBalancerConfig::new(WeightedRoundRobin),
            weights.iter().enumerate().map(|(number, weight)| instance(&format!("i{number:02}"), *weight)),
        );
        let period: i64 = weights.iter().sum();
        let counts = shares(&balancer, period as usize);
        for (number, weight) in weights.iter().enumerate() {
            prop_assert_eq!(counts[&format!("i{number:02}")] as i64, *weight);
        }
    }
}

fn ten_minutes() -> Order {
    Order::by("ops")
        .because("update")
        .and_then(|order| order.for_the_next(Duration::from_secs(600)))
        .unwrap()
}

#[test]
fn an_order_acts_at_once_in_every_strategy_and_ends_with_its_time() {
    fastrand::seed(41);
    for strategy in LoadBalancingStrategy::ALL {
        let (balancer, clock) = timed(
            LoadBalancerConfig::new(strategy),
            ["a", "b", "c"].map(|id| instance(id, 2)),
        );
        let a: InstanceId = "a".parse().unwrap();
        let _in_flight = balancer.acquire(&Context::new()).unwrap();
        assert_eq!(balancer.undrain(&a), Ok(None), "{strategy}");
        balancer.drain(&a, ten_minutes()).unwrap();
        for key in 0..60 {
            let (key, any) = (format!("key-{key}"), Context::new());
            let context = any.with_key(&key);
            let pick = balancer.select_instance(&context).unwrap();
            let alternates = pick.alternates(16, &context);
            assert!(pick.id().as_str() != "a" && alternates.len() == 1, "{strategy}");
            assert!(
                alternates
                    .iter()
                    .all(|alternate| alternate.instance().id().as_str() != "a")
            );
        }
        let statistics = balancer.statistics();
        assert_eq!(
            (statistics.available_instances, statistics.total_instances),
            (2, 3),
            "{strategy}"
        );
        assert_eq!(
            statistics.instances[&a].unavailable_reasons,
            [UnavailableReason::Drained]
        );

        let end = clock.now() + Duration::from_secs(600);
        clock.advance(Duration::from_millis(599_999));
        assert_eq!(balancer.advance(clock.now()), Some(end));
        assert_eq!(balancer.statistics().available_instances, 2, "{strategy}");
        clock.advance(Duration::from_millis(1));
        balancer.advance(clock.now());
        assert_eq!(balancer.statistics().available_instances, 3, "{strategy}");
        let ended = balancer.take_ended();
        assert_eq!(
            (
                ended.len(),
                ended[0].what,
                ended[0].because,
                ended[0].standing.order().reason()
            ),
            (1, Override::Drain, EndedBecause::Expired, Some("update"))
        );
        assert!(balancer.take_ended().is_empty());
    }
}

#[test]
fn orders_are_for_ids_that_are_there_or_were_lately() {
    let (balancer, clock) = timed(LoadBalancerConfig::default(), ["a", "b"].map(|id| instance(id, 1)));
    let (a, absent) = ("a".parse().unwrap(), "absent".parse().unwrap());
    assert!(balancer.drain(&absent, ten_minutes()).is_err() && balancer.undrain(&absent).is_err());
    balancer.remove_instance(&a);
    clock.advance(Duration::from_secs(3_600));
    balancer.advance(clock.now());
    balancer.drain(&a, Order::by("ops")).unwrap();
    balancer.set_weight(&a, Weight::MAX, Order::by("ops")).unwrap();
    clock.advance(Duration::from_secs(20 * 3_600));
    balancer.advance(clock.now());
    balancer.add_instance(instance("a", 1));
    assert_eq!(shares(&balancer, 10).len(), 1, "the order has waited for it");
    assert!(balancer.undrain(&a).unwrap().is_some());
    assert_eq!(shares(&balancer, 10).len(), 2);
    balancer.remove_instance(&"b".parse().unwrap());
    clock.advance(Duration::from_secs(3_601));
    balancer.advance(clock.now());
    assert!(balancer.drain(&"b".parse().unwrap(), ten_minutes()).is_err());
}

#[test]
fn a_service_of_which_something_is_ordered_is_not_forgotten() {
    let clock = Arc::new(Manual::default());
    let tools = Environment {
        clock: clock.clone(),
        ..Environment::default()
    };
    let directory = Directory::new(ServiceConfigs::default(), Sources::default(), tools);
    for service in ["web", "other"] {
        directory.apply(&service.parse().unwrap(), [Arc::new(instance("a", 1))]);
    }
    directory
        .get("web")
        .unwrap()
        .drain(&"a".parse().unwrap(), Order::by("ops"))
        .unwrap();
    for service in ["web", "other"] {
        directory.apply(&service.parse().unwrap(), []);
    }
    clock.advance(Duration::from_secs(2 * 3_600));
    directory.advance(clock.now());
    assert!(directory.get("web").is_some() && directory.get("other").is_none());
    clock.advance(Duration::from_secs(22 * 3_600));
    directory.advance(clock.now());
    let changed = directory.take_changed();
    let ended: Vec<_> = changed.iter().flat_map(LoadBalancer::take_ended).collect();
    assert_eq!((ended.len(), ended[0].because), (1, EndedBecause::InstanceGone));
    directory.advance(clock.now());
    assert!(directory.get("web").is_none());
}

#[test]
fn an_override_weight_renders_nothing_and_a_drain_renders_what_it_drains() {
    let render = Arc::new(Counting::default());
    let tools = Environment {
        render: render.clone(),
        ..Environment::default()
    };
    let balancer = LoadBalancer::with_environment("web".parse().unwrap(), LoadBalancerConfig::default(), tools, 0);
    balancer.apply((0..100).map(|number| Arc::new(instance(&format!("i-{number}"), 1))));
    let rendered = || render.0.swap(0, Ordering::Relaxed);
    assert_eq!(rendered(), 100);
    let id = "i-7".parse().unwrap();
    balancer
        .set_weight(&id, Weight::new(3).unwrap(), Order::by("ops"))
        .unwrap();
    assert_eq!(rendered(), 0);
    balancer.drain(&id, Order::by("ops")).unwrap();
    assert_eq!(rendered(), 1, "its status is another one");
}

#[test]
fn explain_tells_what_is_compared() {
    let close = |found: Option<Score>, kind: &str, value: f64| {
        let found = found.unwrap();
        assert_eq!(found.kind(), kind);
        assert!((found.value() - value).abs() < 1e-3, "{found:?}, not {value}");
    };
    let instances = || [instance("a", 1), instance("b", 4)];

    let (balancer, _) = timed(LoadBalancerConfig::new(LeastConnections), instances());
    close(score(&balancer, "b"), "share", 0.8);
    assert_eq!(balancer.explain(None).mode, Mode::NothingInFlight);
    let held: Vec<_> = (0..5).map(|_| balancer.acquire(&Context::new()).unwrap()).collect();
    let on_b = held.iter().filter(|held| held.id().as_str() == "b").count() as f64;
    assert_eq!(balancer.explain(None).mode, Mode::Normal);
    close(score(&balancer, "b"), "in_flight_by_weight", (on_b + 1.0) / 4.0);
    close(score(&balancer, "a"), "in_flight_by_weight", 6.0 - on_b);

    let (balancer, clock) = timed(LoadBalancerConfig::new(LeastResponseTime), instances());
    close(score(&balancer, "a"), "share", 0.2);
    let context = Context::new().with_exclude(&["a"]);
    let request = balancer.acquire(&context).unwrap();
    request.finish(Outcome::Success, Duration::from_millis(200));
    close(score(&balancer, "b"), "response_seconds_by_weight", 0.2 / 4.0);
    // An instance without samples counts with the median of the others.
    close(score(&balancer, "a"), "response_seconds_by_weight", 0.2);
    clock.advance(Duration::from_secs(61));
    close(score(&balancer, "a"), "share", 0.2);

    let (balancer, _) = timed(LoadBalancerConfig::new(ConsistentHash), instances());
    let (a, b) = (
        score(&balancer, "a").unwrap().value(),
        score(&balancer, "b").unwrap().value(),
    );
    assert!((a + b - 1.0).abs() < 1e-9 && b > 3.0 * a, "{a} {b}");
    balancer.drain(&"b".parse().unwrap(), Order::by("ops")).unwrap();
    assert_eq!(score(&balancer, "b"), None);
    close(score(&balancer, "a"), "ring_share", a);
    let key = balancer.explain(Some(b"k")).key.unwrap();
    assert_eq!((key.instance, key.ring_order.len()), (Some("a".parse().unwrap()), 2));
    assert_eq!(weighted(RoundRobin, &[("a", 1)]).explain(Some(b"k")).key, None);
}
