//! Doubts large drops: a registry that has just come back, or knows no leader, does not take a service away on its first word.
//!
//! Consul without its data answers `200 []` with a leader and a good index, and so does etcd after a wiped disk. Believed at
//! once, that empties every pool of every agent; never believed, dead instances stay for ever. So what is missing is *held*:
//! it stays in the pool for a bounded time, while additions and changes of the same reading apply at once.
//!
//! ```text
//!            AfterGap, and less than half is left          Steady, 5 s later or more
//!   listed ─────────────────────────────────────► held ─────────────────────────────► gone
//!     ▲                                            │    30 s passed, or it refuses a connection
//!     └────────────── listed again ────────────────┘
//! ```
//!
//! A watcher owes its second look for the gap, not for each reading after it, so that the look may come less than five seconds
//! after the reading that it confirms. It counts all the same, once those are over and nothing else was heard.
//!
//! Under [`Trust::AdditionsOnly`] whatever is missing is held, however little it is, and without a limit in time: until the
//! registry can be trusted again, or the instance refuses a connection.
//!
//! One guard per source, between its watcher and [`merge`](super::merge). The other half of caution, that nothing counts as
//! empty before its source has synced, needs no memory: it is
//! [`Sources::waiting_for`](crate::balancer::Sources::waiting_for). Knows no registry, clock, task or socket: moments come with
//! the readings, and the agent tries the connections.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::merge::Instances;
use super::watcher::{CONFIRM_AFTER, Trust, Update};
use crate::balancer::{Address, ServiceInstance, ServiceName, Timestamp};

/// How long a removal is held at most when no second look confirms it.
pub const HOLD_AT_MOST: Duration = Duration::from_secs(30);

/// What to do about a service.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// These are its instances now: what the registry lists, and what is held.
    Set {
        /// The service.
        service: ServiceName,
        /// Its instances, by id.
        instances: Instances,
    },
    /// The registry does not list it any more, and nothing of it is held.
    Remove {
        /// The service.
        service: ServiceName,
    },
    /// Everything has been told once, and all decisions about it have been handed out before this one.
    Synced,
}

/// Stands between one registry and the pools.
#[derive(Debug, Default)]
pub struct Guard {
    services: HashMap<ServiceName, Service>,
    /// Those with something held: mostly none.
    doubted: BTreeSet<ServiceName>,
    held: usize,
}

#[derive(Debug)]
struct Service {
    /// What the last reading listed, by id; `None` when the registry does not know the service any more.
    listed: Option<Instances>,
    held: Vec<Held>,
}

#[derive(Clone, Debug)]
struct Held {
    instance: Arc<ServiceInstance>,
    doubt: Doubt,
}

/// Why a removal is not believed yet.
#[derive(Clone, Copy, Debug)]
enum Doubt {
    /// It was part of a large drop after a gap, first read then, and goes in time if nothing else is heard.
    Gap { since: Timestamp, until: Timestamp },
    /// The registry cannot speak for removals at all at present.
    AdditionsOnly,
}

impl Guard {
    /// Knows nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a watcher's word, and says what follows from it now. `None`: nothing changes.
    pub fn observe(&mut self, update: Update) -> Option<Decision> {
        match update {
            Update::Service(reading) => {
                let mut instances: Vec<_> = reading.instances.into_iter().map(Arc::new).collect();
                sort(&mut instances);
                self.take(reading.service, Some(instances.into()), reading.read_at, reading.trust)
            }
            Update::Gone {
                service,
                read_at,
                trust,
            } => self.take(service, None, read_at, trust),
            Update::Synced => Some(Decision::Synced),
        }
    }

    /// Ends the holds whose time is over. Also says when it wants to be called next, if nothing happens before.
    pub fn advance(&mut self, now: Timestamp) -> (Vec<Decision>, Option<Timestamp>) {
        let mut decisions = Vec::new();
        let mut next = None;
        for service in self.doubted.clone() {
            decisions.extend(self.retain_held(&service, |held| match held.doubt {
                Doubt::Gap { until, .. } if until <= now => false,
                Doubt::Gap { until, .. } => {
                    next = Some(next.map_or(until, |earlier: Timestamp| earlier.min(until)));
                    true
                }
                Doubt::AdditionsOnly => true,
            }));
        }
        (decisions, next)
    }

    /// Lets a held instance go because it refuses connections. `None` when nothing is held at this address.
    pub fn release(&mut self, service: &ServiceName, address: &Address) -> Option<Decision> {
        self.retain_held(service, |held| held.instance.address() != address)
    }

    /// The number of removals that are held at present.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held
    }

    /// What is held, to try whether it still takes connections.
    pub fn held_addresses(&self) -> impl Iterator<Item = (&ServiceName, &Address)> {
        self.doubted
            .iter()
            .filter_map(|name| self.services.get_key_value(name))
            .flat_map(|(name, service)| service.held.iter().map(move |held| (name, held.instance.address())))
    }

    fn take(
        &mut self,
        name: ServiceName,
        listed: Option<Instances>,
        read_at: Timestamp,
        trust: Trust,
    ) -> Option<Decision> {
        let Some(service) = self.services.get_mut(&name) else {
            let instances = listed?;
            let service = Service {
                listed: Some(Arc::clone(&instances)),
                held: Vec::new(),
            };
            self.services.insert(name.clone(), service);
            return Some(Decision::Set {
                service: name,
                instances,
            });
        };
        let before = service.instances();
        let held = service.still_held(listed.as_deref().unwrap_or_default(), read_at, trust);
        self.held = self.held - service.held.len() + held.len();
        *service = Service { listed, held };
        self.decide(name, &before)
    }

    fn retain_held(&mut self, name: &ServiceName, keep: impl FnMut(&Held) -> bool) -> Option<Decision> {
        let service = self.services.get_mut(name)?;
        let (before, held_before) = (service.instances(), service.held.len());
        service.held.retain(keep);
        if service.held.len() == held_before {
            return None;
        }
        self.held -= held_before - service.held.len();
        self.decide(name.clone(), &before)
    }

    /// Files a service that was just changed, and says what changed seen from outside.
    fn decide(&mut self, name: ServiceName, before: &Instances) -> Option<Decision> {
        let service = self.services.get_mut(&name)?;
        if service.held.is_empty() {
            self.doubted.remove(&name);
        } else {
            self.doubted.insert(name.clone());
        }
        if service.listed.is_none() && service.held.is_empty() {
            self.services.remove(&name);
            return Some(Decision::Remove { service: name });
        }
        let instances = service.instances();
        if instances == *before {
            // The copy that others already share is as good.
            if service.held.is_empty() {
                service.listed = Some(Arc::clone(before));
            }
            return None;
        }
        Some(Decision::Set {
            service: name,
            instances,
        })
    }
}

impl Service {
    /// Listed and held, by id.
    fn instances(&self) -> Instances {
        match &self.listed {
            Some(listed) if self.held.is_empty() => Arc::clone(listed),
            listed => {
                let held = self.held.iter().map(|held| &held.instance);
                let mut all: Vec<_> = listed
                    .iter()
                    .flat_map(|listed| listed.iter())
                    .chain(held)
                    .cloned()
                    .collect();
                sort(&mut all);
                all.into()
            }
        }
    }

    /// What of this service is to be held, once `now_listed` has been read.
    fn still_held(&self, now_listed: &[Arc<ServiceInstance>], read_at: Timestamp, trust: Trust) -> Vec<Held> {
        if trust == Trust::Steady && self.held.is_empty() {
            return Vec::new();
        }
        let ids: HashSet<_> = now_listed.iter().map(|instance| instance.id()).collect();
        let addresses: HashSet<_> = now_listed.iter().map(|instance| instance.address()).collect();
        let had = || {
            let listed = self
                .listed
                .iter()
                .flat_map(|listed| listed.iter().map(|instance| (instance, None)));
            listed.chain(self.held.iter().map(|held| (&held.instance, Some(held.doubt))))
        };
        let is_large = || {
            let had: HashSet<_> = had().map(|(instance, _)| instance.address()).collect();
            addresses.len() * 2 < had.len()
        };
        if trust == Trust::AfterGap && !is_large() {
            return Vec::new();
        }
        had()
            // The same id elsewhere has moved, the same address under another id is named anew: neither is missing.
            .filter(|(instance, _)| !ids.contains(instance.id()) && !addresses.contains(instance.address()))
            .filter_map(|(instance, doubt)| {
                let doubt = match (trust, doubt) {
                    (Trust::AdditionsOnly, _) => Doubt::AdditionsOnly,
                    (Trust::AfterGap, doubt) => {
                        let since = match doubt {
                            Some(Doubt::Gap { since, .. }) => since,
                            _ => read_at,
                        };
                        let until = since + HOLD_AT_MOST;
                        Doubt::Gap { since, until }
                    }
                    (Trust::Steady, Some(Doubt::Gap { since, .. })) if read_at.since(since) < CONFIRM_AFTER => {
                        let until = since + CONFIRM_AFTER;
                        Doubt::Gap { since, until }
                    }
                    (Trust::Steady, _) => return None,
                };
                Some(Held {
                    instance: Arc::clone(instance),
                    doubt,
                })
            })
            .collect()
    }
}

fn sort(instances: &mut [Arc<ServiceInstance>]) {
    instances.sort_unstable_by(|a, b| (a.id(), a.address()).cmp(&(b.id(), b.address())));
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::watcher::Reading;
    use super::*;
    use crate::balancer::Weight;

    fn web() -> ServiceName {
        "web".parse().unwrap()
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp::default() + Duration::from_secs(seconds)
    }

    fn instance(id: &str, host: &str) -> ServiceInstance {
        ServiceInstance::new(id, host, 80).unwrap()
    }

    /// A guard, and what the pools would see of it. Letters are instances; `a>b` is instance `a` at the address of `b`.
    #[derive(Default)]
    struct Bench {
        guard: Guard,
        pool: Option<String>,
    }

    impl Bench {
        fn apply(&mut self, decision: Option<Decision>) {
            match decision {
                Some(Decision::Set { instances, .. }) => {
                    let name = |instance: &Arc<ServiceInstance>| match (instance.id().as_str(), instance.host()) {
                        (id, host) if id == host => id.to_owned(),
                        (id, host) => format!("{id}>{host}"),
                    };
                    self.pool = Some(instances.iter().map(name).collect::<Vec<_>>().join(" "));
                }
                Some(Decision::Remove { .. }) => self.pool = None,
                Some(Decision::Synced) | None => {}
            }
        }

        fn read(&mut self, seconds: u64, trust: Trust, letters: &str) -> &str {
            let instances = letters
                .split_whitespace()
                .map(|letter| {
                    letter
                        .split_once('>')
                        .map_or_else(|| instance(letter, letter), |(id, host)| instance(id, host))
                })
                .collect();
            let reading = Reading {
                service: web(),
                instances,
                read_at: at(seconds),
                trust,
            };
            let decision = self.guard.observe(Update::Service(reading));
            self.apply(decision);
            self.pool()
        }

        fn gone(&mut self, seconds: u64, trust: Trust) -> &str {
            let decision = self.guard.observe(Update::Gone {
                service: web(),
                read_at: at(seconds),
                trust,
            });
            self.apply(decision);
            self.pool()
        }

        fn advance(&mut self, seconds: u64) -> &str {
            let (decisions, _) = self.guard.advance(at(seconds));
            for decision in decisions {
                self.apply(Some(decision));
            }
            self.pool()
        }

        fn release(&mut self, letter: &str) -> &str {
            let decision = self.guard.release(&web(), &Address::new(letter, 80).unwrap());
            self.apply(decision);
            self.pool()
        }

        fn pool(&self) -> &str {
            self.pool.as_deref().unwrap_or("(unknown)")
        }
    }

    use Trust::{AdditionsOnly, AfterGap, Steady};

    #[test]
    fn an_unbroken_watch_is_believed() {
        let mut bench = Bench::default();
        assert_eq!(bench.read(0, Steady, "a b c d"), "a b c d");
        assert_eq!(bench.read(1, Steady, "a"), "a");
        assert_eq!(bench.read(2, Steady, ""), "");
        assert_eq!(bench.gone(3, Steady), "(unknown)");
        assert_eq!(bench.guard.held(), 0);
    }

    #[test]
    fn the_first_word_about_a_service_is_believed() {
        assert_eq!(Bench::default().read(0, AfterGap, "a"), "a");
        assert_eq!(Bench::default().read(0, AdditionsOnly, ""), "");
        assert_eq!(Bench::default().gone(0, AfterGap), "(unknown)");
    }

    #[test]
    fn a_large_drop_after_a_gap_is_held_until_a_second_look_five_seconds_later() {
        let mut bench = Bench::default();
        bench.read(0, Steady, "a b c d");
        assert_eq!(bench.read(10, AfterGap, "a"), "a b c d");
        assert_eq!(bench.guard.held(), 3);
        assert_eq!(bench.read(14, Steady, "a"), "a b c d", "too soon to confirm");
        assert_eq!(
            bench.read(15, AfterGap, "a"),
            "a b c d",
            "another first look confirms nothing"
        );
        assert_eq!(bench.read(15, Steady, "a"), "a");
        assert_eq!(bench.guard.held(), 0);
    }

    #[test]
    fn a_second_look_that_comes_too_soon_counts_once_it_is_time() {
        let mut bench = Bench::default();
        bench.read(0, Steady, "a b c d");
        assert_eq!(bench.read(10, AfterGap, ""), "a b c d");
        assert_eq!(bench.gone(11, Steady), "a b c d");
        assert_eq!(bench.advance(14), "a b c d");
        assert_eq!(bench.advance(15), "(unknown)");
        bench.read(20, Steady, "a b c d");
        bench.read(21, AfterGap, "a");
        bench.read(22, Steady, "a");
        assert_eq!(bench.read(23, AfterGap, "a"), "a b c d");
        assert_eq!(bench.advance(26), "a b c d", "in doubt again");
        assert_eq!(bench.read(27, Steady, "a b c d"), "a b c d");
        assert_eq!(bench.guard.held(), 0, "and not gone after all");
    }

    #[test]
    fn a_small_drop_after_a_gap_is_believed() {
        let mut bench = Bench::default();
        bench.read(0, Steady, "a b c d");
        assert_eq!(bench.read(1, AfterGap, "a b"), "a b");
        assert_eq!(
            bench.read(2, AfterGap, "x"),
            "x",
            "half of it is new, so nothing is lost"
        );
    }

    #[test]
    fn the_last_instance_counts_as_a_large_drop() {
        let mut bench = Bench::default();
        bench.read(0, Steady, "a");
        assert_eq!(bench.read(1, AfterGap, ""), "a");
        assert_eq!(bench.advance(30), "a");
        assert_eq!(bench.advance(31), "");
    }

    #[test]
    fn a_deploy_that_replaces_all_is_no_drop() {
        let mut bench = Bench::default();
        bench.read(0, Steady, "a b c d");
        assert_eq!(bench.read(1, AfterGap, "e f"), "e f");
    }

    #[test]
    fn half_a_minute_ends_a_hold_and_is_announced() {
        let mut bench = Bench::default();
        bench.read(0, Steady, "a b c d");
        bench.read(10, AfterGap, "a");
        let (decisions, next) = bench.guard.advance(at(39));
        assert_eq!((decisions, next), (vec![], Some(at(40))));
        assert_eq!(bench.advance(40), "a");
        assert_eq!(bench.guard.advance(at(41)), (vec![], None));
    }

    #[test]
    fn a_service_that_is_gone_is_held_whole_and_then_forgotten() {
        let mut bench = Bench::default();
        bench.read(0, Steady, "a b");
        assert_eq!(bench.gone(1, AfterGap), "a b");
        assert_eq!(bench.gone(6, Steady), "(unknown)");
        assert!(bench.guard.services.is_empty() && bench.guard.doubted.is_empty());

        bench.read(10, Steady, "a b");
        assert_eq!(bench.gone(11, AfterGap), "a b");
        assert_eq!(bench.advance(41), "(unknown)");

        bench.read(50, Steady, "a b");
        bench.gone(51, AfterGap);
        assert_eq!(bench.release("a"), "b");
        assert_eq!(bench.release("b"), "(unknown)");
    }

    #[test]
    fn an_instance_that_comes_back_is_held_no_more() {
        let mut bench = Bench::default();
        bench.read(0, Steady, "a b c d");
        bench.read(1, AfterGap, "a");
        assert_eq!(bench.read(2, Steady, "a c"), "a b c d");
        assert_eq!(bench.guard.held(), 2);
        assert_eq!(
            bench.read(3, Steady, "a"),
            "a b d",
            "c was listed again, and is now removed by an unbroken watch"
        );
        assert_eq!(bench.read(6, Steady, "a"), "a");
    }

    #[test]
    fn additions_and_changes_are_not_held_up() {
        let mut bench = Bench::default();
        bench.read(0, Steady, "a b c d e f");
        assert_eq!(bench.read(1, AfterGap, "a>z x"), "a>z b c d e f x");
    }

    #[test]
    fn an_instance_that_moved_or_changed_its_name_is_not_missing() {
        let mut bench = Bench::default();
        bench.read(0, Steady, "a b c d e");
        assert_eq!(bench.read(1, AfterGap, "a>z new>b"), "a>z c d e new>b");
        assert_eq!(bench.guard.held(), 3);
    }

    #[test]
    fn while_the_registry_has_no_leader_nothing_goes() {
        let mut bench = Bench::default();
        bench.read(0, Steady, "a b c");
        assert_eq!(bench.read(1, AdditionsOnly, "a b x"), "a b c x");
        assert_eq!(bench.guard.held(), 1);
        assert_eq!(bench.advance(100_000), "a b c x");
        assert_eq!(bench.gone(100_001, AdditionsOnly), "a b c x");
        assert_eq!(bench.guard.advance(at(200_000)), (vec![], None));
        assert_eq!(bench.read(200_001, Steady, "a"), "a", "it can be trusted again");
    }

    #[test]
    fn a_large_drop_after_a_time_without_a_leader_is_a_drop_after_a_gap() {
        let mut bench = Bench::default();
        bench.read(0, Steady, "a b c d");
        bench.read(1, AdditionsOnly, "");
        assert_eq!(bench.read(1000, AfterGap, "a"), "a b c d");
        assert_eq!(bench.advance(1029), "a b c d");
        assert_eq!(bench.advance(1030), "a");
    }

    #[test]
    fn what_refuses_connections_goes_at_once() {
        let mut bench = Bench::default();
        bench.read(0, Steady, "a b c d");
        bench.read(1, AfterGap, "a");
        let held: Vec<_> = bench
            .guard
            .held_addresses()
            .map(|(service, address)| format!("{service} {address}"))
            .collect();
        assert_eq!(held, ["web b:80", "web c:80", "web d:80"]);
        assert_eq!(bench.release("c"), "a b d");
        assert_eq!(bench.release("a"), "a b d", "the registry lists it: not ours to judge");
        assert_eq!(bench.guard.held(), 2);
        assert_eq!(bench.read(2, AfterGap, "a"), "a b d");
    }

    #[test]
    fn a_reading_that_changes_nothing_decides_nothing() {
        let mut guard = Guard::new();
        let reading = |ids: [&str; 2], weight: i64| {
            let weight = Weight::new(weight).unwrap();
            Update::Service(Reading {
                service: web(),
                instances: ids.map(|id| instance(id, id).with_weight(weight)).into(),
                read_at: at(0),
                trust: Steady,
            })
        };
        assert!(guard.observe(reading(["a", "b"], 1)).is_some());
        assert_eq!(guard.observe(reading(["b", "a"], 1)), None, "order says nothing");
        assert!(guard.observe(reading(["a", "b"], 2)).is_some());
        assert_eq!(guard.observe(Update::Synced), Some(Decision::Synced));
    }

    /// The rules once more, in sets of numbers and without a thought for cost.
    #[derive(Default)]
    struct Model {
        listed: BTreeSet<u8>,
        /// Since when it is held, and for how long.
        gap: BTreeMap<u8, (u64, u64)>,
        kept: BTreeSet<u8>,
    }

    impl Model {
        fn all(&self) -> BTreeSet<u8> {
            self.listed
                .iter()
                .chain(self.gap.keys())
                .chain(&self.kept)
                .copied()
                .collect()
        }

        fn read(&mut self, now: u64, listed: BTreeSet<u8>, trust: Trust) {
            let all = self.all();
            let missing = &all - &listed;
            let since = |one: &u8| self.gap.get(one).map_or(now, |(since, _)| *since);
            let (gap, kept) = match trust {
                Steady => {
                    let fresh = |(one, (since, _)): (&u8, &(u64, u64))| {
                        (missing.contains(one) && now - since < 5).then_some((*one, (*since, 5)))
                    };
                    (self.gap.iter().filter_map(fresh).collect(), BTreeSet::new())
                }
                AfterGap if listed.len() * 2 < all.len() => {
                    let held = missing.iter().map(|one| (*one, (since(one), 30)));
                    (held.collect(), BTreeSet::new())
                }
                AfterGap => (BTreeMap::new(), BTreeSet::new()),
                AdditionsOnly => (BTreeMap::new(), missing),
            };
            *self = Self { listed, gap, kept };
        }

        fn pass(&mut self, now: u64) {
            self.gap.retain(|_, (since, long)| now - *since < *long);
        }
    }

    /// What the decisions add up to: the number of each instance, and its weight.
    fn apply(pool: &mut Option<BTreeMap<u8, u16>>, decision: Option<Decision>) {
        match decision {
            Some(Decision::Set { instances, .. }) => {
                let entry = |one: &Arc<ServiceInstance>| (one.id().as_str().parse().unwrap(), one.weight().get());
                *pool = Some(instances.iter().map(entry).collect());
            }
            Some(Decision::Remove { .. }) => *pool = None,
            Some(Decision::Synced) | None => {}
        }
    }

    proptest! {
        #[test]
        fn it_does_what_a_naive_model_does(
            events in prop::collection::vec(
                (0u64..14, prop::option::weighted(0.9, prop::collection::btree_set(0u8..8, 0..8)), prop::sample::select(vec![Steady, AfterGap, AdditionsOnly])),
                1..40,
            ),
            gapless in any::<bool>(),
        ) {
            let (mut guard, mut model, mut pool) = (Guard::new(), Model::default(), None);
            let mut now = 0;
            let mut deadline = None;
            for (index, (passed, listed, trust)) in events.into_iter().enumerate() {
                let trust = if gapless { Steady } else { trust };
                let arrives = now + passed;
                // The agent's timer: called at the announced moments only, and nothing is ever overdue.
                while let Some(due) = deadline.filter(|due| *due <= at(arrives)) {
                    let (decisions, next) = guard.advance(due);
                    prop_assert!(next.is_none_or(|next| next > due));
                    decisions.into_iter().for_each(|decision| apply(&mut pool, Some(decision)));
                    deadline = next;
                }
                now = arrives;
                model.pass(now);
                let expected = model.all();
                let seen: BTreeSet<u8> = pool.iter().flat_map(|pool| pool.keys().copied()).collect();
                prop_assert_eq!(&seen, &expected, "before event {}", index);

                let weight = index as u16 + 1;
                let update = match &listed {
                    Some(listed) => Update::Service(Reading {
                        service: web(),
                        instances: listed
                            .iter()
                            .map(|one| instance(&one.to_string(), &one.to_string()).with_weight(Weight::new(weight).unwrap()))
                            .collect(),
                        read_at: at(now),
                        trust,
                    }),
                    None => Update::Gone { service: web(), read_at: at(now), trust },
                };
                let is_gone = listed.is_none();
                let listed = listed.unwrap_or_default();
                apply(&mut pool, guard.observe(update));
                model.read(now, listed.clone(), trust);

                let seen = pool.clone().unwrap_or_default();
                prop_assert_eq!(seen.keys().copied().collect::<BTreeSet<_>>(), model.all(), "after event {}", index);
                prop_assert!(listed.iter().all(|one| seen[one] == weight), "a change was held up");
                prop_assert_eq!(guard.held(), model.gap.len() + model.kept.len());
                prop_assert_eq!(guard.held(), guard.held_addresses().count());
                if trust == Steady && gapless {
                    prop_assert_eq!(pool.is_none(), is_gone);
                }
                deadline = guard.advance(at(now)).1;
            }
        }
    }
}
