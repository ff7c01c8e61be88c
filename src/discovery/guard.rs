//! Holds large drops: a registry that has just come back, or has no leader, does not remove a
//! service with its first answer.
//!
//! After Consul lost its data, it answers `200 []` with a leader and a good index, and etcd does
//! the same after its disk was wiped. If pickd applied such an answer at once, every pool of every
//! agent would be empty. If pickd never applied such an answer, dead instances would stay for
//! ever. So missing instances are *held*: they stay in the pool for a bounded time. Additions and
//! changes of the same reading apply at once.
//!
//! ```text
//!            AfterGap, and less than half is left          Steady, 5 s later or more
//!   listed ─────────────────────────────────────► held ─────────────────────────────► gone
//!     ▲                                            │    30 s passed, or a connection is refused
//!     └────────────── listed again ────────────────┘
//! ```
//!
//! A watcher sends one confirmation for each gap, not for each reading after the gap. So the
//! confirmation may come less than five seconds after the reading that it confirms. It counts all
//! the same, once the five seconds are over and no other reading came.
//!
//! Under [`Trust::AdditionsOnly`], every missing instance is held, even a single one, and without
//! a limit in time: until the registry can be trusted again, or the instance refuses a connection.
//!
//! Each source has one guard, between its watcher and [`merge`](super::merge). A second rule, that
//! no service counts as empty before its source has synced, needs no memory: see
//! [`Sources::waiting_for`](crate::balancer::Sources::waiting_for). Knows no registry, clock, task
//! or socket: times come with the readings, and the agent tries the connections.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::merge::Instances;
use super::watcher::{CONFIRM_AFTER, Trust, Update};
use crate::balancer::{Address, ServiceInstance, ServiceName, Timestamp};

/// How long a removal is held at most if no second reading confirms it.
pub const HOLD_AT_MOST: Duration = Duration::from_secs(30);

/// What to change for a service.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// The instances of a service are these now: those that the registry lists, and those that are
    /// held.
    Set {
        /// The service.
        service: ServiceName,
        /// The instances, by id.
        instances: Instances,
    },
    /// The registry no longer lists the service, and no instance of it is held.
    Remove {
        /// The service.
        service: ServiceName,
    },
    /// Everything has been sent once, and all decisions about it were returned before this one.
    Synced,
}

/// Stands between one registry and the pools.
#[derive(Debug, Default)]
pub struct Guard {
    services: HashMap<ServiceName, Service>,
    /// The services with held instances. Mostly there are none.
    holding: BTreeSet<ServiceName>,
    held: usize,
}

#[derive(Debug)]
struct Service {
    /// What the last reading listed, by id; `None` if the registry no longer lists the service.
    listed: Option<Instances>,
    held: Vec<Held>,
}

#[derive(Clone, Debug)]
struct Held {
    instance: Arc<ServiceInstance>,
    reason: HoldReason,
}

/// Why a removal is held.
#[derive(Clone, Copy, Debug)]
enum HoldReason {
    /// The instance was part of a large drop after a gap. It was first missing at `since`, and is
    /// removed at `until` if no other reading comes before.
    Gap { since: Timestamp, until: Timestamp },
    /// The registry cannot be trusted about removals at present.
    AdditionsOnly,
}

impl Guard {
    /// A guard that knows no service.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes an update of the watcher, and returns what changes now. `None`: nothing changes.
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

    /// Ends the holds whose time is over. Also returns when to call again, if nothing happens
    /// before.
    pub fn advance(&mut self, now: Timestamp) -> (Vec<Decision>, Option<Timestamp>) {
        let mut decisions = Vec::new();
        let mut next = None;
        for service in self.holding.clone() {
            decisions.extend(self.retain_held(&service, |held| match held.reason {
                HoldReason::Gap { until, .. } if until <= now => false,
                HoldReason::Gap { until, .. } => {
                    next = Some(next.map_or(until, |earlier: Timestamp| earlier.min(until)));
                    true
                }
                HoldReason::AdditionsOnly => true,
            }));
        }
        (decisions, next)
    }

    /// Removes a held instance, because it refuses connections. `None` if no instance is held at
    /// this address.
    pub fn release(&mut self, service: &ServiceName, address: &Address) -> Option<Decision> {
        self.retain_held(service, |held| held.instance.address() != address)
    }

    /// How many removals are held at present.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held
    }

    /// The addresses of all held instances. The agent tries whether they still accept connections.
    pub fn held_addresses(&self) -> impl Iterator<Item = (&ServiceName, &Address)> {
        self.holding
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

    /// Sorts a service that was just changed into the right set, and returns what changed for the
    /// pools.
    fn decide(&mut self, name: ServiceName, before: &Instances) -> Option<Decision> {
        let service = self.services.get_mut(&name)?;
        if service.held.is_empty() {
            self.holding.remove(&name);
        } else {
            self.holding.insert(name.clone());
        }
        if service.listed.is_none() && service.held.is_empty() {
            self.services.remove(&name);
            return Some(Decision::Remove { service: name });
        }
        let instances = service.instances();
        if instances == *before {
            // Other owners share the earlier copy already: keep that copy.
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
    /// Listed and held instances, by id.
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

    /// Which instances are held once `now_listed` has been read.
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
            listed.chain(self.held.iter().map(|held| (&held.instance, Some(held.reason))))
        };
        let is_large = || {
            let had: HashSet<_> = had().map(|(instance, _)| instance.address()).collect();
            addresses.len() * 2 < had.len()
        };
        if trust == Trust::AfterGap && !is_large() {
            return Vec::new();
        }
        had()
            // An id at another address has moved, and an address under another id was renamed:
            // neither is missing.
            .filter(|(instance, _)| !ids.contains(instance.id()) && !addresses.contains(instance.address()))
            .filter_map(|(instance, reason)| {
                let reason = match (trust, reason) {
                    (Trust::AdditionsOnly, _) => HoldReason::AdditionsOnly,
                    (Trust::AfterGap, reason) => {
                        let since = match reason {
                            Some(HoldReason::Gap { since, .. }) => since,
                            _ => read_at,
                        };
                        let until = since + HOLD_AT_MOST;
                        HoldReason::Gap { since, until }
                    }
                    (Trust::Steady, Some(HoldReason::Gap { since, .. })) if read_at.since(since) < CONFIRM_AFTER => {
                        let until = since + CONFIRM_AFTER;
                        HoldReason::Gap { since, until }
                    }
                    (Trust::Steady, _) => return None,
                };
                Some(Held {
                    instance: Arc::clone(instance),
                    reason,
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

    /// A guard, and what the pools see of it. Letters are instances; `a>b` is instance `a` at the
    /// address of `b`.
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
    fn removals_of_an_unbroken_watch_are_applied() {
        let mut bench = Bench::default();
        assert_eq!(bench.read(0, Steady, "a b c d"), "a b c d");
        assert_eq!(bench.read(1, Steady, "a"), "a");
        assert_eq!(bench.read(2, Steady, ""), "");
        assert_eq!(bench.gone(3, Steady), "(unknown)");
        assert_eq!(bench.guard.held(), 0);
    }

    #[test]
    fn the_first_reading_of_a_service_is_applied() {
        assert_eq!(Bench::default().read(0, AfterGap, "a"), "a");
        assert_eq!(Bench::default().read(0, AdditionsOnly, ""), "");
        assert_eq!(Bench::default().gone(0, AfterGap), "(unknown)");
    }

    #[test]
    fn a_large_drop_after_a_gap_is_held_until_it_is_confirmed_5_s_later() {
        let mut bench = Bench::default();
        bench.read(0, Steady, "a b c d");
        assert_eq!(bench.read(10, AfterGap, "a"), "a b c d");
        assert_eq!(bench.guard.held(), 3);
        assert_eq!(bench.read(14, Steady, "a"), "a b c d", "too soon to confirm");
        assert_eq!(
            bench.read(15, AfterGap, "a"),
            "a b c d",
            "another first reading confirms nothing"
        );
        assert_eq!(bench.read(15, Steady, "a"), "a");
        assert_eq!(bench.guard.held(), 0);
    }

    #[test]
    fn a_confirmation_that_comes_too_soon_counts_after_5_s() {
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
        assert_eq!(bench.advance(26), "a b c d", "held again");
        assert_eq!(bench.read(27, Steady, "a b c d"), "a b c d");
        assert_eq!(bench.guard.held(), 0, "and not gone after all");
    }

    #[test]
    fn a_small_drop_after_a_gap_is_applied() {
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
    fn a_hold_ends_after_30_s_and_announces_when() {
        let mut bench = Bench::default();
        bench.read(0, Steady, "a b c d");
        bench.read(10, AfterGap, "a");
        let (decisions, next) = bench.guard.advance(at(39));
        assert_eq!((decisions, next), (vec![], Some(at(40))));
        assert_eq!(bench.advance(40), "a");
        assert_eq!(bench.guard.advance(at(41)), (vec![], None));
    }

    #[test]
    fn all_instances_of_a_gone_service_are_held_then_forgotten() {
        let mut bench = Bench::default();
        bench.read(0, Steady, "a b");
        assert_eq!(bench.gone(1, AfterGap), "a b");
        assert_eq!(bench.gone(6, Steady), "(unknown)");
        assert!(bench.guard.services.is_empty() && bench.guard.holding.is_empty());

        bench.read(10, Steady, "a b");
        assert_eq!(bench.gone(11, AfterGap), "a b");
        assert_eq!(bench.advance(41), "(unknown)");

        bench.read(50, Steady, "a b");
        bench.gone(51, AfterGap);
        assert_eq!(bench.release("a"), "b");
        assert_eq!(bench.release("b"), "(unknown)");
    }

    #[test]
    fn an_instance_that_is_listed_again_is_no_longer_held() {
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
    fn an_instance_that_moved_or_was_renamed_is_not_missing() {
        let mut bench = Bench::default();
        bench.read(0, Steady, "a b c d e");
        assert_eq!(bench.read(1, AfterGap, "a>z new>b"), "a>z c d e new>b");
        assert_eq!(bench.guard.held(), 3);
    }

    #[test]
    fn nothing_is_removed_while_the_registry_has_no_leader() {
        let mut bench = Bench::default();
        bench.read(0, Steady, "a b c");
        assert_eq!(bench.read(1, AdditionsOnly, "a b x"), "a b c x");
        assert_eq!(bench.guard.held(), 1);
        assert_eq!(bench.advance(100_000), "a b c x");
        assert_eq!(bench.gone(100_001, AdditionsOnly), "a b c x");
        assert_eq!(bench.guard.advance(at(200_000)), (vec![], None));
        assert_eq!(
            bench.read(200_001, Steady, "a"),
            "a",
            "the registry can be trusted again"
        );
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
    fn a_held_instance_that_refuses_connections_is_removed() {
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
        assert_eq!(bench.release("a"), "a b d", "the registry lists it, so it stays");
        assert_eq!(bench.guard.held(), 2);
        assert_eq!(bench.read(2, AfterGap, "a"), "a b d");
    }

    #[test]
    fn a_reading_without_changes_leads_to_no_decision() {
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
        assert_eq!(guard.observe(reading(["b", "a"], 1)), None, "the order does not count");
        assert!(guard.observe(reading(["a", "b"], 2)).is_some());
        assert_eq!(guard.observe(Update::Synced), Some(Decision::Synced));
    }

    /// The same rules again, with sets of numbers and without regard to cost.
    #[derive(Default)]
    struct Model {
        listed: BTreeSet<u8>,
        /// Since when each instance is held, and for how long.
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

    /// The sum of the decisions: the number of each instance, and its weight.
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
        fn the_guard_does_what_a_naive_model_does(
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
                // The agent's timer calls only at the announced times, and no hold is ever
                // overdue.
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
                            .map(|one| instance(&one.to_string(), &format!("h{one}")).with_weight(Weight::new(weight).unwrap()))
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
