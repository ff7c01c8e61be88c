//! Sticky sessions: of the core through its public API, and over HTTP with two agents.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Barrier};
use std::time::Duration;

use pickd::balancer::{Check, CheckFailure, Clock, Environment, Manual, Order, RegistryStatus, SessionKey};
use pickd::{
    Context, LoadBalancer, LoadBalancerConfig, LoadBalancingStrategy, Outcome, Pick, PickError, ServiceInstance, Weight,
};
use proptest::prelude::*;
use serde_json::Value;

use crate::support::agent::{Agent, SOON};
use crate::support::consul::Consul;
use crate::support::folder::Folder;
use crate::support::http::{Response, ask};
use crate::support::until;

const FAIL: Check = Check::Fail(CheckFailure::ConnectionRefused);

/// A balancer with sticky sessions, on a clock that the test moves.
struct Pool {
    balancer: LoadBalancer,
    clock: Arc<Manual>,
}

/// A change of a pool.
type Change = fn(&Pool);

/// Without slow start, so that a new instance takes its share at once.
fn plain(strategy: LoadBalancingStrategy) -> LoadBalancerConfig {
    LoadBalancerConfig::new(strategy)
        .with_slow_start(Duration::ZERO)
        .unwrap()
}

fn sticky(strategy: LoadBalancingStrategy) -> LoadBalancerConfig {
    plain(strategy).with_sticky_sessions(true)
}

fn instance(number: usize) -> ServiceInstance {
    ServiceInstance::new(&format!("i{number}"), &format!("10.0.0.{number}"), 80).unwrap()
}

fn id(answer: &Result<Pick, PickError>) -> String {
    answer.as_ref().unwrap().id().to_string()
}

impl Pool {
    fn with_key(config: LoadBalancerConfig, key: u8) -> Self {
        let clock = Arc::new(Manual::default());
        clock.advance(Duration::from_secs(10_000));
        let environment = Environment {
            clock: clock.clone(),
            session_key: SessionKey::new([key; 16]),
            ..Environment::default()
        };
        let balancer = LoadBalancer::with_environment("web".parse().unwrap(), config, environment, 0);
        Self { balancer, clock }
    }

    /// Instances `i1` to `i<count>`.
    fn new(config: LoadBalancerConfig, count: usize) -> Self {
        let pool = Self::with_key(config, 1);
        pool.scale(1..=count);
        pool
    }

    fn scale(&self, numbers: impl IntoIterator<Item = usize>) {
        self.balancer.apply(numbers.into_iter().map(instance).map(Arc::new));
    }

    fn pick(&self, key: &str) -> String {
        id(&self.balancer.select_instance(&Context::new().with_key(key)))
    }

    /// The instance of each of these sessions.
    fn places(&self, sessions: usize) -> Vec<String> {
        (0..sessions)
            .map(|number| self.pick(&format!("user-{number}")))
            .collect()
    }

    /// The instance and the token that a pick with this context gets.
    fn token(&self, context: &Context<'_>) -> (String, String) {
        let pick = self.balancer.select_instance(context).unwrap();
        (pick.id().to_string(), pick.session(context).unwrap().to_string())
    }

    fn check(&self, number: usize, check: Check, times: usize) {
        let address = instance(number).address().clone();
        (0..times).for_each(|_| self.balancer.observe(&address, check));
    }

    fn drain(&self, id: &str) {
        self.balancer.drain(&id.parse().unwrap(), Order::by("ops")).unwrap();
    }

    /// Views follow.
    fn settle(&self) {
        self.clock.advance(Duration::from_secs(2));
        self.balancer.advance(self.clock.now());
    }

    fn open(&self) -> usize {
        self.balancer.sessions().unwrap().open
    }

    fn moved(&self) -> u64 {
        self.balancer.sessions().unwrap().moved
    }
}

#[test]
fn sessions_survive_scale_out_under_every_strategy() {
    for strategy in LoadBalancingStrategy::ALL {
        let pool = Pool::new(sticky(strategy), 4);
        let before = pool.places(200);
        assert_eq!(
            before.iter().collect::<BTreeSet<_>>().len(),
            4,
            "{strategy} places them all over"
        );
        pool.scale(1..=8);
        pool.settle();
        assert_eq!(pool.places(200), before, "{strategy}");
        assert_eq!((pool.open(), pool.moved()), (200, 0), "{strategy}");
        // New sessions reach the new instances.
        pool.clock.advance(Duration::from_secs(60));
        pool.balancer.advance(pool.clock.now());
        let others: BTreeSet<String> = (0..200).map(|number| pool.pick(&format!("new-{number}"))).collect();
        assert_eq!(others.len(), 8, "{strategy}");
    }
}

/// The limits of consistent hashing: a key moves when an instance joins, and a session does not.
#[test]
fn a_key_moves_at_scale_out_and_a_session_does_not() {
    let hash = plain(LoadBalancingStrategy::ConsistentHash);
    let moved = |config: LoadBalancerConfig, from: usize, to: usize| {
        let pool = Pool::new(config, from);
        let before = pool.places(1_000);
        pool.scale(1..=to);
        let after = pool.places(1_000);
        before
            .iter()
            .zip(&after)
            .filter(|(before, after)| before != after)
            .count()
    };
    let keys = moved(hash.clone(), 4, 5);
    assert!((100..300).contains(&keys), "a fifth of the keys: {keys}");
    assert_eq!(moved(hash.clone().with_sticky_sessions(true), 4, 5), 0);
    // Where an instance leaves, its own sessions move, and no other.
    let (keys, sessions) = (moved(hash.clone(), 5, 4), moved(hash.with_sticky_sessions(true), 5, 4));
    assert_eq!(keys, sessions);
    assert!((100..300).contains(&keys), "{keys}");
}

#[test]
fn a_session_moves_once_and_does_not_go_back() {
    for strategy in LoadBalancingStrategy::ALL {
        let pool = Pool::new(sticky(strategy), 4);
        let before = pool.places(100);
        let of_first = before.iter().filter(|id| *id == "i1").count();
        assert!(of_first > 5, "{strategy}");
        pool.scale(2..=4);
        let after = pool.places(100);
        for (before, after) in before.iter().zip(&after) {
            assert!(before == after || before == "i1", "{strategy}: {before} -> {after}");
            assert_ne!(after, "i1");
        }
        pool.scale(1..=4);
        pool.settle();
        assert_eq!(pool.places(100), after, "{strategy}: i1 is back");
        assert_eq!(pool.moved(), of_first as u64, "{strategy}");
    }
}

#[test]
fn a_drained_instance_keeps_its_sessions_and_gets_no_new_ones() {
    let drains: [(&str, Change); 3] = [
        ("an operator's drain", |pool| pool.drain("i1")),
        ("an operator's weight", |pool| {
            let weight = Weight::new(0).unwrap();
            pool.balancer
                .set_weight(&"i1".parse().unwrap(), weight, Order::by("ops"))
                .unwrap();
        }),
        ("a registered weight", |pool| {
            pool.balancer
                .add_instance(instance(1).with_weight(Weight::new(0).unwrap()));
        }),
    ];
    for (what, drain) in drains {
        for strategy in LoadBalancingStrategy::ALL {
            let pool = Pool::new(sticky(strategy), 3);
            let before = pool.places(60);
            assert!(before.contains(&"i1".to_owned()));
            drain(&pool);
            assert_eq!(pool.places(60), before, "{what}, {strategy}");
            let new: BTreeSet<String> = (0..60).map(|number| pool.pick(&format!("new-{number}"))).collect();
            assert!(!new.contains("i1") && new.len() == 2, "{what}, {strategy}: {new:?}");
            let plain: BTreeSet<String> = (0..60)
                .map(|_| id(&pool.balancer.select_instance(&Context::new())))
                .collect();
            assert!(!plain.contains("i1"), "{what}, {strategy}");
            // What takes an instance out takes out a drained one as well.
            pool.check(1, FAIL, 3);
            assert!(!pool.places(60).contains(&"i1".to_owned()), "{what}, {strategy}");
        }
    }
}

#[test]
fn a_session_leaves_an_instance_that_is_out_with_the_next_pick() {
    let outs: [(&str, Change); 4] = [
        ("checks", |pool| pool.check(1, FAIL, 3)),
        ("outcomes", |pool| {
            let context = Context::new().with_exclude(&["i2", "i3"]);
            (0..3).for_each(|_| {
                let acquired = pool.balancer.acquire(&context).unwrap();
                acquired.finish(Outcome::Failure, Duration::from_millis(1));
            });
        }),
        ("critical", |pool| {
            pool.balancer
                .add_instance(instance(1).with_status(RegistryStatus::Critical));
        }),
        ("maintenance", |pool| {
            pool.balancer
                .add_instance(instance(1).with_status(RegistryStatus::Maintenance));
        }),
    ];
    for (what, take_out) in outs {
        let pool = Pool::new(sticky(LoadBalancingStrategy::RoundRobin), 3);
        let before = pool.places(30);
        take_out(&pool);
        let after = pool.places(30);
        assert!(!after.contains(&"i1".to_owned()), "{what}");
        let stayed = before
            .iter()
            .zip(&after)
            .filter(|(before, after)| before == after)
            .count();
        assert_eq!(stayed, 20, "{what}");
        assert_eq!(pool.moved(), 10, "{what}");
        pool.settle();
        assert_eq!(pool.places(30), after, "{what}");
    }
}

#[test]
fn where_every_instance_is_out_sessions_follow_panic_and_fail_open() {
    let pool = Pool::new(sticky(LoadBalancingStrategy::RoundRobin), 3);
    let before = pool.places(30);
    (1..=3).for_each(|number| pool.check(number, FAIL, 3));
    pool.settle();
    assert!(pool.balancer.panics());
    assert_eq!(pool.places(30), before);

    let all_critical = || (1..=3).map(|number| Arc::new(instance(number).with_status(RegistryStatus::Critical)));
    let pool = Pool::new(sticky(LoadBalancingStrategy::RoundRobin).with_fail_open(true), 3);
    let before = pool.places(30);
    pool.balancer.apply(all_critical());
    assert_eq!(pool.places(30), before);
    let pool = Pool::new(sticky(LoadBalancingStrategy::RoundRobin), 3);
    pool.places(30);
    pool.balancer.apply(all_critical());
    let refusal = pool.balancer.select_instance(&Context::new().with_key("user-1"));
    assert!(matches!(refusal, Err(PickError::NoneAvailable { .. })));
}

#[test]
fn an_exclusion_diverts_one_pick_only() {
    let pool = Pool::new(sticky(LoadBalancingStrategy::Random), 3);
    let context = Context::new().with_key("ada");
    let (home, token) = pool.token(&context);
    for _ in 0..20 {
        let excluded = [home.as_str()];
        let diverted = context.with_exclude(&excluded);
        let (other, same) = pool.token(&diverted);
        assert_ne!(other, home);
        assert_eq!(same, token, "the token names the instance of the session");
        // The token alone is diverted as well.
        let alone = Context::new().with_session(&token).with_exclude(&excluded);
        let (other, same) = pool.token(&alone);
        assert_ne!(other, home);
        assert_eq!(same, token);
        assert_eq!(pool.pick("ada"), home);
    }
    assert_eq!(pool.moved(), 0);
    let everything = ["i1", "i2", "i3"];
    let none = pool.balancer.select_instance(&context.with_exclude(&everything));
    assert!(matches!(none, Err(PickError::NoneAvailable { .. })));
    assert_eq!(pool.pick("ada"), home);
}

#[test]
fn the_instance_of_a_session_fits_the_tags_and_the_port() {
    let pool = Pool::with_key(sticky(LoadBalancingStrategy::Random), 1);
    let tagged = |number: usize, tag: &str| instance(number).with_tags([tag]).unwrap();
    pool.balancer
        .apply((1..=8).map(|number| Arc::new(tagged(number, if number < 5 { "v1" } else { "v2" }))));
    pool.balancer
        .add_instance(instance(9).with_metadata([("port-grpc", "9000")]));
    let (v1, v2) = (["v1"], ["v2"]);
    for user in 0..20 {
        let user = format!("user-{user}");
        let plain = Context::new().with_key(&user).with_tags(&v1);
        let (home, token) = pool.token(&plain);
        assert_eq!(pool.pick(&user), home, "without tags, the session is where it was");
        let (other, same) = pool.token(&Context::new().with_key(&user).with_tags(&v2));
        assert!(["i5", "i6", "i7", "i8"].contains(&other.as_str()), "{other}");
        assert_eq!(same, token);
        for _ in 0..5 {
            assert_eq!(pool.token(&plain).0, home);
            assert_eq!(pool.token(&Context::new().with_session(&token).with_tags(&v2)).0, other);
            assert_eq!(pool.token(&Context::new().with_key(&user).with_port("grpc")).0, "i9");
        }
    }
    assert_eq!(pool.moved(), 0);
}

#[test]
fn any_balancer_with_the_key_honours_a_token() {
    let (one, other) = (
        Pool::new(sticky(LoadBalancingStrategy::Random), 8),
        Pool::new(sticky(LoadBalancingStrategy::Random), 8),
    );
    let stranger = Pool::with_key(sticky(LoadBalancingStrategy::Random), 2);
    stranger.scale(1..=8);
    let mut at_the_stranger = BTreeSet::new();
    for number in 0..30 {
        let key = format!("user-{number}");
        let (home, token) = one.token(&Context::new().with_key(&key));
        // With the key, and without.
        assert_eq!(
            other.token(&Context::new().with_key(&key).with_session(&token)),
            (home.clone(), token.clone())
        );
        assert_eq!(other.pick(&key), home, "the key is enough from then on");
        assert_eq!(
            other.token(&Context::new().with_session(&token)),
            (home.clone(), token.clone())
        );
        at_the_stranger.insert(stranger.token(&Context::new().with_session(&token)).0 == home);
    }
    assert!(
        at_the_stranger.contains(&false),
        "chance decides where the token is not honoured"
    );
    assert_eq!(stranger.balancer.sessions().unwrap().rejected_tokens, 30);
    assert_eq!(other.balancer.sessions().unwrap().rejected_tokens, 0);
}

/// A caller that has no key gets a session with its first pick, and the table stays empty.
#[test]
fn a_token_alone_is_a_session_without_memory() {
    let pool = Pool::new(sticky(LoadBalancingStrategy::RoundRobin), 4);
    let tokens: Vec<(String, String)> = (0..100).map(|_| pool.token(&Context::new())).collect();
    assert_eq!(
        tokens.iter().map(|(_, token)| token).collect::<BTreeSet<_>>().len(),
        100
    );
    pool.scale(1..=8);
    for (home, token) in &tokens {
        assert_eq!(
            pool.token(&Context::new().with_session(token)),
            (home.clone(), token.clone())
        );
    }
    assert_eq!(pool.open(), 0);
    // The sessions of an instance that leaves spread over the others, and each moves once, even if
    // its caller keeps the old token.
    pool.scale(2..=8);
    let of_first: Vec<&String> = tokens
        .iter()
        .filter(|(home, _)| home == "i1")
        .map(|(_, token)| token)
        .collect();
    let moved: Vec<(String, String)> = of_first
        .iter()
        .map(|token| pool.token(&Context::new().with_session(token)))
        .collect();
    assert_eq!(moved.iter().map(|(home, _)| home).collect::<BTreeSet<_>>().len(), 7);
    pool.scale(1..=8);
    for (old, (home, new)) in of_first.iter().zip(&moved) {
        assert_eq!(&pool.token(&Context::new().with_session(old)).0, home, "the old token");
        assert_eq!(&pool.token(&Context::new().with_session(new)).0, home, "the new token");
    }
    assert_eq!((pool.open(), pool.moved()), (25, 25));
    // Another agent knows by the new token alone.
    let other = Pool::new(sticky(LoadBalancingStrategy::RoundRobin), 8);
    for (home, new) in &moved {
        assert_eq!(&other.token(&Context::new().with_session(new)).0, home);
    }
}

#[test]
fn of_two_places_the_one_with_more_moves_is_newer() {
    let (one, other) = (
        Pool::new(sticky(LoadBalancingStrategy::RoundRobin), 3),
        Pool::new(sticky(LoadBalancingStrategy::RoundRobin), 3),
    );
    let context = Context::new().with_key("ada");
    let (home, old) = one.token(&context);
    assert_eq!(other.token(&context.with_session(&old)).0, home);
    one.drain(&home);
    one.check(home[1..].parse().unwrap(), FAIL, 3);
    let (moved, new) = one.token(&context.with_session(&old));
    assert_ne!(moved, home);
    assert_eq!(
        other.token(&context.with_session(&new)).0,
        moved,
        "the newer place comes with the token"
    );
    assert_eq!(
        other.token(&context.with_session(&old)).0,
        moved,
        "an old token does not bring the session back"
    );
}

#[test]
fn a_client_cannot_make_a_token() {
    let pool = Pool::new(sticky(LoadBalancingStrategy::RoundRobin), 2);
    let (_, first) = pool.token(&Context::new());
    let (_, second) = pool.token(&Context::new());
    // The session of one and the instance of the other.
    let forged = format!("{}{}", &first[..16], &second[16..]);
    for text in [forged.as_str(), "i1", &"0".repeat(56), &first[1..]] {
        let picked: BTreeSet<String> = (0..4)
            .map(|_| pool.token(&Context::new().with_session(text)).0)
            .collect();
        assert_eq!(picked.len(), 2, "{text} has no effect");
    }
    assert_eq!(pool.balancer.sessions().unwrap().rejected_tokens, 16);
}

#[test]
fn sessions_end_after_their_ttl_and_leave_beyond_the_maximum() {
    let config = sticky(LoadBalancingStrategy::RoundRobin);
    let config = config
        .with_session_ttl(Duration::from_secs(60))
        .unwrap()
        .with_max_sessions(10)
        .unwrap();
    let pool = Pool::new(config.clone(), 4);
    let home = pool.pick("ada");
    // Three other picks a minute would bring round robin back to the same instance.
    for _ in 0..3 {
        pool.clock.advance(Duration::from_secs(59));
        pool.pick("eve");
        assert_eq!(pool.pick("ada"), home);
    }
    pool.clock.advance(Duration::from_secs(60));
    assert_eq!(pool.open(), 0);
    assert_ne!(pool.pick("ada"), home, "a new session, in turn");

    let before = pool.places(9);
    let home = pool.pick("ada");
    assert_eq!(pool.open(), 10);
    pool.pick("eve");
    assert_eq!((pool.open(), pool.balancer.sessions().unwrap().evicted), (10, 1));
    assert_eq!(pool.pick("ada"), home, "the least recently used left, which is user-0");
    assert_eq!(
        &(1..9)
            .map(|number| pool.pick(&format!("user-{number}")))
            .collect::<Vec<_>>(),
        &before[1..]
    );
    pool.places(500);
    assert_eq!(pool.open(), 10);
    // Without sticky sessions every session is forgotten.
    pool.balancer.configure(config.clone().with_sticky_sessions(false));
    assert_eq!(pool.balancer.sessions(), None);
    assert_eq!(
        pool.balancer
            .select_instance(&Context::new())
            .unwrap()
            .session(&Context::new()),
        None
    );
    pool.balancer.configure(config);
    assert_eq!(pool.open(), 0);
}

#[test]
fn a_session_stays_in_a_reserve_and_new_ones_go_to_the_first_tier() {
    let pool = Pool::with_key(sticky(LoadBalancingStrategy::RoundRobin), 1);
    let reserve = instance(2).with_priority(1);
    pool.balancer.apply([instance(1), reserve].map(Arc::new));
    assert_eq!(pool.pick("ada"), "i1");
    pool.check(1, FAIL, 3);
    assert_eq!(pool.pick("ada"), "i2");
    pool.check(1, Check::Pass, 5);
    pool.settle();
    assert_eq!((pool.pick("ada"), pool.pick("eve")), ("i2".to_owned(), "i1".to_owned()));
}

#[test]
fn the_first_picks_of_a_session_at_once_agree() {
    for round in 0..20 {
        let pool = Pool::new(sticky(LoadBalancingStrategy::RoundRobin), 8);
        let (key, start) = (format!("user-{round}"), Barrier::new(8));
        let picked: BTreeSet<String> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        start.wait();
                        pool.pick(&key)
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(picked.len(), 1, "{picked:?}");
    }
}

#[test]
fn explain_shows_the_instance_of_a_session() {
    for strategy in LoadBalancingStrategy::ALL {
        let pool = Pool::new(sticky(strategy), 3);
        let explained = |key: &str| pool.balancer.explain(Some(key.as_bytes())).key.unwrap();
        assert!(!explained("ada").has_session, "{strategy}");
        let home = pool.pick("ada");
        pool.scale(1..=6);
        assert_eq!(explained("ada").instance.unwrap().as_str(), home, "{strategy}");
        assert!(explained("ada").has_session);
        assert_eq!(pool.open(), 1);
    }
    let plain = Pool::new(LoadBalancerConfig::default(), 3);
    assert_eq!(plain.balancer.explain(Some(b"ada")).key, None);
}

#[derive(Clone, Debug)]
enum Step {
    Pick(usize),
    Diverted(usize),
    Scale(BTreeSet<usize>),
    Drain(usize),
    Undrain(usize),
    Fail(usize),
    Recover(usize),
    Settle,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..6_usize).prop_map(Step::Pick),
        2 => (0..6_usize).prop_map(Step::Diverted),
        1 => proptest::collection::btree_set(1..7_usize, 2..6).prop_map(Step::Scale),
        1 => (1..7_usize).prop_map(Step::Drain),
        1 => (1..7_usize).prop_map(Step::Undrain),
        1 => (1..7_usize).prop_map(Step::Fail),
        1 => (1..7_usize).prop_map(Step::Recover),
        1 => Just(Step::Settle),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    /// A session is where it was while its instance is registered and passes its checks, whatever
    /// else happens; otherwise it moves to an instance that takes new sessions.
    #[test]
    fn a_session_moves_only_when_its_instance_cannot_keep_it(
        strategy in proptest::sample::select(&LoadBalancingStrategy::ALL[..]),
        steps in proptest::collection::vec(step(), 1..80),
    ) {
        // Without panic mode, failing checks always take an instance out.
        let pool = Pool::new(sticky(strategy).with_panic(false), 4);
        let (mut registered, mut drained): (BTreeSet<usize>, BTreeSet<usize>) = ((1..=4).collect(), BTreeSet::new());
        // Each address keeps what its checks said, also while it is away.
        let mut down: BTreeSet<usize> = BTreeSet::new();
        let mut homes: BTreeMap<usize, usize> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Pick(session) | Step::Diverted(session) => {
                    let key = format!("user-{session}");
                    let keeps = |home: &usize| registered.contains(home) && !down.contains(home);
                    let home = homes.get(&session).copied().filter(keeps);
                    let takes_new = |number: &usize| keeps(number) && !drained.contains(number);
                    let diverted = matches!(step, Step::Diverted(_)).then_some(home).flatten();
                    let excluded = diverted.map(|number| format!("i{number}"));
                    let exclude: Vec<&str> = excluded.as_deref().into_iter().collect();
                    let answer = pool.balancer.select_instance(&Context::new().with_key(&key).with_exclude(&exclude));
                    let picked = answer.ok().map(|pick| pick.id().as_str()[1..].parse::<usize>().unwrap());
                    match (home, diverted) {
                        (Some(home), None) => prop_assert_eq!(picked, Some(home)),
                        (Some(home), Some(_)) => match picked {
                            Some(other) => prop_assert!(other != home && takes_new(&other)),
                            None => prop_assert!(!registered.iter().any(|other| *other != home && takes_new(other))),
                        },
                        (None, _) => match picked {
                            Some(new) => {
                                prop_assert!(takes_new(&new));
                                homes.insert(session, new);
                            }
                            None => prop_assert!(!registered.iter().any(takes_new)),
                        },
                    }
                }
                Step::Scale(to) => {
                    pool.scale(to.iter().copied());
                    registered = to;
                }
                Step::Drain(number) if registered.contains(&number) => {
                    pool.drain(&format!("i{number}"));
                    drained.insert(number);
                }
                Step::Undrain(number) if registered.contains(&number) => {
                    pool.balancer.undrain(&format!("i{number}").parse().unwrap()).unwrap();
                    drained.remove(&number);
                }
                Step::Fail(number) if registered.contains(&number) => {
                    pool.check(number, FAIL, 3);
                    down.insert(number);
                }
                Step::Recover(number) if registered.contains(&number) => {
                    pool.check(number, Check::Pass, 5);
                    down.remove(&number);
                }
                Step::Settle => pool.settle(),
                Step::Drain(_) | Step::Undrain(_) | Step::Fail(_) | Step::Recover(_) => {}
            }
        }
    }
}

/// An agent with sticky sessions for the service `web`, over a file registry.
struct World {
    folder: Folder,
    agent: Agent,
}

const KEY: &str = "00112233445566778899aabbccddeeff";

fn addresses(count: usize) -> Vec<String> {
    (1..=count).map(|number| format!("10.0.4.{number}:80")).collect()
}

impl World {
    fn new(key: Option<&Path>) -> Self {
        let folder = Folder::new();
        let world = |folder: &Folder| {
            let key = key.map(|key| format!("session_key_file = {:?}\n", key.to_str().unwrap()));
            let text = format!(
                "[api]\n{}[file]\npath = \"services.toml\"\n[services.web]\nsticky_sessions = true\n\
                 session_cookie_name = \"WEB_SESSION\"\nstrategy = \"random\"\n",
                key.unwrap_or_default()
            );
            folder.write("pickd.toml", &text)
        };
        let config = world(&folder);
        register(&folder, 8);
        let agent = Agent::run(["--config", config.to_str().unwrap()]).ready();
        Self { folder, agent }
    }

    fn scale(&self, count: usize) {
        register(&self.folder, count);
        until(SOON, "the instances are known", || {
            let services = self.agent.get("/services/web").json();
            (services["total_instances"] == count).then_some(())
        });
    }

    fn pick(&self, query: &str, headers: &[&str]) -> Value {
        self.answer(query, headers).json()
    }

    fn answer(&self, query: &str, headers: &[&str]) -> Response {
        let answer = ask(self.agent.address, "GET", &format!("/pick/web{query}"), headers);
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer
    }
}

fn register(folder: &Folder, count: usize) {
    let addresses = addresses(count);
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    folder.registry("services.toml", "web", &addresses);
}

#[test]
fn the_key_of_a_session_comes_from_the_first_place_that_has_one() {
    let world = World::new(None);
    let home = |key: &str| world.pick(&format!("?key={key}"), &[])["id"].clone();
    // Each name is at an instance of its own, so that the answer tells which name was used.
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    for number in 0.. {
        let name = format!("n{number}");
        let at = home(&name).to_string();
        if !names.values().any(|known| *known == at) {
            names.insert(name, at);
        }
        if names.len() == 5 {
            break;
        }
    }
    let names: Vec<(String, String)> = names.into_iter().collect();
    let [key, header, cookie, session, user] = &names[..] else {
        panic!()
    };
    let (header_line, cookie_line) = (
        format!("X-Pickd-Key: {}", header.0),
        format!("Cookie: other=1; WEB_SESSION=\"{}\"; WEB_SESSION=zzz", cookie.0),
    );
    let ids = format!("session_id={}&user_id={}", session.0, user.0);
    let lines = [header_line.as_str(), cookie_line.as_str()];
    for (query, lines, expected) in [
        (format!("?{ids}&key={}", key.0), &lines[..], key),
        (format!("?{ids}&key="), &lines[..], header),
        (format!("?{ids}"), &lines[1..], cookie),
        (format!("?{ids}"), &[], session),
        (
            format!("?session_id=&user_id={}", user.0),
            &["Cookie: WEB_SESSION=; XWEB_SESSION=a"],
            user,
        ),
    ] {
        for _ in 0..3 {
            assert_eq!(
                world.pick(&query, lines)["id"].to_string(),
                expected.1,
                "{query} {lines:?}"
            );
        }
    }
    assert_eq!(
        world
            .agent
            .metric("pickd_session_tokens_rejected_total{service=\"web\"}"),
        Some(0.0)
    );
    let explained = world.agent.get(&format!("/explain/web?key={}", key.0)).json();
    assert_eq!(
        (explained["key"]["instance"].to_string(), &explained["key"]["session"]),
        (key.1.clone(), &Value::Bool(true))
    );
}

#[test]
fn agents_with_one_key_file_honour_each_others_tokens() {
    let keys = Folder::new();
    let file = keys.write("session-key", &format!("{KEY}\n"));
    let (one, other, stranger) = (World::new(Some(&file)), World::new(Some(&file)), World::new(None));
    let mut honoured_by_stranger = 0;
    let mut tokens = Vec::new();
    for number in 0..24 {
        let first = one.pick(&format!("?user_id=u{number}"), &[]);
        let token = first["session"].as_str().unwrap().to_owned();
        assert_eq!(other.pick(&format!("?session={token}"), &[])["id"], first["id"]);
        let header = format!("X-Pickd-Session: {token}");
        let text = other.answer("?format=text", &[&header]);
        assert_eq!(text.header("x-pickd-session"), Some(token.as_str()));
        assert_eq!(text.text().trim(), first["address"]);
        honoured_by_stranger += usize::from(stranger.pick(&format!("?session={token}"), &[])["id"] == first["id"]);
        tokens.push((token, first["id"].clone()));
    }
    assert!(honoured_by_stranger < 24);
    assert_eq!(
        stranger
            .agent
            .metric("pickd_session_tokens_rejected_total{service=\"web\"}"),
        Some(24.0)
    );
    // After a restart with the key, tokens are honoured: the table is gone, and more instances came.
    let restarted = World::new(Some(&file));
    restarted.scale(12);
    for (token, id) in &tokens {
        assert_eq!(&restarted.pick(&format!("?session={token}"), &[])["id"], id);
    }
    // Another key in the file counts after a reload.
    keys.write("session-key", &KEY.chars().rev().collect::<String>());
    restarted.agent.program.signal("HUP");
    restarted.agent.program.wait_for_log("configuration reloaded", |_| true);
    let honoured = tokens
        .iter()
        .filter(|(token, id)| &restarted.pick(&format!("?session={token}"), &[])["id"] == id);
    assert!(honoured.count() < 24);
}

#[test]
fn sessions_survive_scale_out_and_a_drain_and_leave_with_their_instance() {
    let world = World::new(None);
    let places = || -> Vec<Value> {
        (0..40)
            .map(|number| world.pick(&format!("?session_id=s{number}"), &[])["id"].clone())
            .collect()
    };
    let before = places();
    assert_eq!(world.agent.metric("pickd_sessions{service=\"web\"}"), Some(40.0));
    world.scale(16);
    assert_eq!(places(), before);
    let home = before[0].as_str().unwrap();
    let target = format!("/services/web/instances/{home}/drain");
    let body = ["Content-Type: application/json", "Content-Length: 2"];
    let mut connection = crate::support::http::Connection::open(world.agent.address).unwrap();
    let head = format!(
        "PUT {target} HTTP/1.1\r\nHost: localhost\r\n{}\r\n\r\n{{}}",
        body.join("\r\n")
    );
    connection.send(head.as_bytes()).unwrap();
    until(SOON, "the drain is in force", || {
        let explained = world.agent.get("/explain/web").json().to_string();
        explained.contains("\"drained\"").then_some(())
    });
    assert_eq!(places(), before, "a drained instance keeps its sessions");
    for _ in 0..60 {
        assert_ne!(world.pick("", &[])["id"], home);
    }
    // A retry is diverted, and the answer still names the session.
    let first = world.pick("?session_id=s0", &[]);
    let retry = world.pick(&format!("?session_id=s0&exclude={home}"), &[]);
    assert_ne!(retry["id"], first["id"]);
    assert_eq!(retry["session"], first["session"]);
    assert_eq!(places(), before);
    // A lease is given for the instance of the session.
    let leased = ask(
        world.agent.address,
        "POST",
        "/pick/web?session_id=s0",
        &["Content-Length: 0"],
    )
    .json();
    assert_eq!((&leased["id"], &leased["session"]), (&first["id"], &first["session"]));
    assert_eq!(
        world.agent.metric("pickd_sessions_moved_total{service=\"web\"}"),
        Some(0.0)
    );
    // Session loss: the sessions of an instance that leaves move, each once. At most one of the two
    // that stay is drained.
    world.scale(2);
    let after = places();
    let stayed = before
        .iter()
        .zip(&after)
        .filter(|(before, after)| before == after)
        .count();
    assert_eq!(
        world.agent.metric("pickd_sessions_moved_total{service=\"web\"}"),
        Some((40 - stayed) as f64)
    );
    world.scale(16);
    assert_eq!(places(), after);
}

#[test]
fn an_unreadable_session_key_is_logged_and_a_random_one_signs() {
    let keys = Folder::new();
    let file = keys.write("session-key", "canary-too-short");
    let world = World::new(Some(&file));
    let message = "the session key cannot be read, keeping the previous key";
    let line = world.agent.program.wait_for_log(message, |_| true);
    assert!(!line.to_string().contains("canary"), "{line}");
    let pick = world.pick("", &[]);
    let token = pick["session"].as_str().unwrap();
    assert_eq!(world.pick(&format!("?session={token}"), &[])["id"], pick["id"]);
}

#[test]
fn without_sticky_sessions_answers_and_series_are_as_before() {
    let folder = Folder::new();
    register(&folder, 3);
    let config = folder.write("pickd.toml", "[file]\npath = \"services.toml\"\n");
    let agent = Agent::run(["--config", config.to_str().unwrap()]).ready();
    let picked: BTreeSet<String> = (0..3)
        .map(|_| {
            let pick = agent.get("/pick/web?session_id=a&user_id=b&session=c").json();
            assert!(pick.get("session").is_none(), "{pick}");
            pick["id"].to_string()
        })
        .collect();
    assert_eq!(picked.len(), 3);
    assert_eq!(agent.metric("pickd_sessions{service=\"web\"}"), None);
}

/// A session in real Consul: maintenance moves it, and a new instance does not.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_of_a_service_in_consul_moves_with_maintenance_only() {
    let consul = Consul::start().await;
    for (number, id) in ["web-1", "web-2"].into_iter().enumerate() {
        consul
            .register("n1", "web", id, 8_000 + number as i64, serde_json::json!({}))
            .await;
    }
    let folder = Folder::new();
    let text = format!(
        "[consul]\naddress = {:?}\n[services.web]\nsticky_sessions = true\n",
        consul.address()
    );
    let config = folder.write("pickd.toml", &text);
    let agent = Agent::run(["--config", config.to_str().unwrap()]).ready();
    until(SOON, "both instances", || {
        (agent.get("/services/web").json()["total_instances"] == 2).then_some(())
    });
    let pick = || {
        agent.get("/pick/web?user_id=ada").json()["id"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let home = pick();
    let service_id = home.split('@').next().unwrap();
    for number in 3..6 {
        consul
            .register(
                "n1",
                "web",
                &format!("web-{number}"),
                8_000 + number,
                serde_json::json!({}),
            )
            .await;
    }
    until(SOON, "five instances", || {
        (agent.get("/services/web").json()["total_instances"] == 5).then_some(())
    });
    assert_eq!([pick(), pick(), pick()], [home.clone(), home.clone(), home.clone()]);
    consul
        .check("n1", service_id, "_service_maintenance:test", "critical", "")
        .await;
    let other = until(SOON, "the session moves", || {
        let now = pick();
        (now != home).then_some(now)
    });
    let lifted = serde_json::json!({ "Node": "n1", "CheckID": "_service_maintenance:test" });
    consul.put("/v1/catalog/deregister", lifted).await;
    until(SOON, "the instance is back", || {
        let instances = agent.get("/services/web").json();
        (instances["available_instances"] == 5).then_some(())
    });
    assert_eq!([pick(), pick(), pick()], [other.clone(), other.clone(), other]);
}
