//! Ejection: which addresses of a pool are out, within the ejection cap, and panic mode.
//!
//! Both rules depend on the whole pool. Therefore [`Ejections`] holds every unhealthy address of a
//! pool:
//!
//! - **The cap**: breakers eject at most max(1, `max_ejection` x E) of the E eligible instances
//!   (not rejected by the registry, not drained, weight above 0). The worst instances are ejected
//!   first, and the last usable instance is never ejected. The other tripped instances are *held
//!   by the cap*: their breakers are open, and picks still choose them. Active checks are not
//!   capped. (Envoy's `max_ejection_percent`; nginx never ejects the only server of a group.)
//! - **Panic mode**: when fewer than max(1, `panic_threshold` x E) instances are usable, picks
//!   ignore active checks and breakers, and all E instances are candidates. An instance that the
//!   registry rejects or an operator drains stays out. (Envoy's panic threshold.)
//!
//! ```text
//! tripped, worst first:  a  b  c │ d  e  f
//!                        └─ out ─┘ held  └ out
//!
//! worst_ejected   a b c: the longest run from the worst address on that fits into the cap
//! milder_ejected  f: fits into the rest of the cap; d and e have too many instances for it
//! ```
//!
//! A change returns every address whose decision changes. The cost of a change is O(d m log n): n
//! is the number of unhealthy addresses, d the number of different instance counts among them, and
//! m the largest instance count. In most pools each address has one instance, so the cost is O(log
//! n). A change that begins or ends panic mode reads all unhealthy addresses.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::mem;

use super::address::Tripped;
use crate::balancer::clock::Timestamp;
use crate::balancer::config::LoadBalancerConfig;

/// What a pick may do with an address at this moment. Stored as one atomic in the live state of
/// the address. A pick reads the atomic only if an admission has changed since the pick's view was
/// made, or if the view has an address on trial.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Admission {
    /// Picks may choose the address.
    #[default]
    In,
    /// Picks must not choose the address.
    Out,
    /// One pick may choose the address, as the trial of its breaker.
    Trial,
    /// A trial is in progress: no other pick may choose the address.
    OnTrial,
}

impl Admission {
    pub(crate) const fn from_u8(byte: u8) -> Self {
        match byte {
            0 => Self::In,
            2 => Self::Trial,
            3 => Self::OnTrial,
            _ => Self::Out,
        }
    }
}

/// Local health of an address, and its number of eligible instances.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct AddressStatus {
    pub(crate) instances: usize,
    /// Whether active checks of the address fail.
    pub(crate) down: bool,
    /// The breaker, if it is open or half open.
    pub(crate) tripped: Option<Tripped>,
}

impl AddressStatus {
    fn is_healthy(&self) -> bool {
        !self.down && self.tripped.is_none()
    }

    /// Whether the cap applies to this address. The cap does not apply to an address whose checks
    /// fail.
    fn is_capped(&self) -> bool {
        self.instances > 0 && !self.down && self.tripped.is_some()
    }
}

/// The decision about one address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Decision {
    pub(crate) admission: Admission,
    /// The breaker is not closed, and the cap keeps the address in the pool.
    pub(crate) held_by_cap: bool,
}

/// Health of a pool as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PoolHealth {
    /// Instances that only active checks and breakers can take out.
    pub(crate) eligible: usize,
    /// Eligible instances that picks may choose without panic mode.
    pub(crate) usable: usize,
    /// Panic mode: all eligible instances are candidates.
    pub(crate) panic: bool,
}

/// Decides which addresses of one pool are out. `A` is the caller's handle of an address.
#[derive(Debug)]
pub(crate) struct Ejections<A> {
    max_ejection: f64,
    /// `None` if panic mode is disabled.
    panic_threshold: Option<f64>,
    /// Number of eligible instances.
    eligible: usize,
    /// Number of eligible instances whose checks do not fail.
    up: usize,
    /// Number of eligible instances that breakers take out.
    ejected: usize,
    panic: bool,
    unhealthy: HashMap<usize, UnhealthyAddress<A>>,
    /// The ejected addresses from the worst on, without a gap: the longest run that the cap allows.
    worst_ejected: BTreeSet<Rank>,
    /// Ejected addresses that are milder than the first held address, and fit into the rest of the
    /// cap.
    milder_ejected: BTreeSet<Rank>,
    /// Addresses that the cap holds, by number of instances.
    held: BTreeMap<usize, BTreeSet<Rank>>,
}

#[derive(Debug)]
struct UnhealthyAddress<A> {
    address: A,
    status: AddressStatus,
    is_ejected: bool,
    decision: Decision,
}

/// The order of ejection: the largest failure ratio first, then the longest tripped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    /// The bits of a non-negative float, which sort as the float does.
    severity: Reverse<u32>,
    tripped_at: Timestamp,
    key: usize,
}

impl Rank {
    fn of(key: usize, tripped: Tripped) -> Self {
        Self {
            severity: Reverse(tripped.severity.to_bits()),
            tripped_at: tripped.tripped_at,
            key,
        }
    }
}

impl<A> Default for Ejections<A> {
    /// Decisions for a pool without instances.
    fn default() -> Self {
        Self::new(&LoadBalancerConfig::default())
    }
}

impl<A> Ejections<A> {
    fn new(config: &LoadBalancerConfig) -> Self {
        Self {
            max_ejection: config.max_ejection(),
            panic_threshold: config.panic().then(|| config.panic_threshold()),
            eligible: 0,
            up: 0,
            ejected: 0,
            panic: false,
            unhealthy: HashMap::new(),
            worst_ejected: BTreeSet::new(),
            milder_ejected: BTreeSet::new(),
            held: BTreeMap::new(),
        }
    }

    pub(crate) fn pool(&self) -> PoolHealth {
        PoolHealth {
            eligible: self.eligible,
            usable: self.usable(),
            panic: self.panic,
        }
    }

    fn usable(&self) -> usize {
        self.up - self.ejected
    }

    /// The decision about an address.
    pub(crate) fn of(&self, key: usize) -> Decision {
        self.unhealthy
            .get(&key)
            .map(|unhealthy| unhealthy.decision)
            .unwrap_or_default()
    }

    /// How many instances breakers may eject.
    fn cap(&self) -> usize {
        let share = (self.max_ejection * self.eligible as f64) as usize;
        share.max(1).min(self.up.max(1) - 1)
    }

    fn is_below_panic_threshold(&self) -> bool {
        self.panic_threshold.is_some_and(|threshold| {
            // The smallest whole number that is at least the threshold's share.
            let needed = (threshold * self.eligible as f64).max(1.0).ceil() as usize;
            self.eligible > 0 && self.usable() < needed
        })
    }

    /// Adds a tripped address: to `worst_ejected` if the address is worse than the mildest one
    /// there, else to `held`.
    fn insert_tripped(&mut self, rank: Rank, instances: usize) {
        if self.worst_ejected.last().is_some_and(|mildest| rank < *mildest) {
            self.worst_ejected.insert(rank);
            self.ejected += instances;
        } else {
            self.held.entry(instances).or_default().insert(rank);
        }
    }

    fn remove_tripped(&mut self, rank: Rank, instances: usize) {
        if self.worst_ejected.remove(&rank) {
            self.ejected -= instances;
        } else {
            self.remove_held(rank, instances);
        }
    }

    fn remove_held(&mut self, rank: Rank, instances: usize) {
        if let Some(ranks) = self.held.get_mut(&instances) {
            ranks.remove(&rank);
            if ranks.is_empty() {
                self.held.remove(&instances);
            }
        }
    }

    /// The worst held address with at most `room` instances, and its number of instances.
    fn worst_held(&self, room: usize) -> Option<(Rank, usize)> {
        let worst = |(instances, ranks): (&usize, &BTreeSet<Rank>)| Some((*ranks.first()?, *instances));
        self.held.range(..=room).filter_map(worst).min()
    }

    /// Moves all of `milder_ejected` to `held`: which of them fit depends on every worse address.
    fn hold_milder(&mut self, moved: &mut Vec<usize>) {
        for rank in mem::take(&mut self.milder_ejected) {
            let instances = self
                .unhealthy
                .get(&rank.key)
                .map_or(0, |unhealthy| unhealthy.status.instances);
            self.ejected -= instances;
            self.held.entry(instances).or_default().insert(rank);
            moved.push(rank.key);
        }
    }

    /// Ejects the worst addresses that the cap allows. Adds every address that moved to `moved`.
    fn fill(&mut self, moved: &mut Vec<usize>) {
        let cap = self.cap();
        while self.ejected > cap
            && let Some(mildest) = self.worst_ejected.pop_last()
        {
            let instances = self
                .unhealthy
                .get(&mildest.key)
                .map_or(0, |unhealthy| unhealthy.status.instances);
            self.ejected -= instances;
            self.held.entry(instances).or_default().insert(mildest);
            moved.push(mildest.key);
        }
        while let Some((worst, instances)) = self.worst_held(usize::MAX)
            && self.ejected + instances <= cap
        {
            self.remove_held(worst, instances);
            self.worst_ejected.insert(worst);
            self.ejected += instances;
            moved.push(worst.key);
        }
        while let Some((worst, instances)) = self.worst_held(cap - self.ejected) {
            self.remove_held(worst, instances);
            self.milder_ejected.insert(worst);
            self.ejected += instances;
            moved.push(worst.key);
        }
        for key in &*moved {
            if let Some(unhealthy) = self.unhealthy.get_mut(key)
                && let Some(tripped) = unhealthy.status.tripped
            {
                let rank = Rank::of(*key, tripped);
                unhealthy.is_ejected = self.worst_ejected.contains(&rank) || self.milder_ejected.contains(&rank);
            }
        }
    }
}

impl<A: Clone> Ejections<A> {
    /// Decides about a whole pool. `eligible` counts the eligible instances of all addresses,
    /// healthy and unhealthy; `unhealthy` may list healthy addresses, too.
    pub(crate) fn decide(
        eligible: usize,
        unhealthy: impl Iterator<Item = (usize, A, AddressStatus)>,
        config: &LoadBalancerConfig,
    ) -> Self {
        let mut ejections = Self::new(config);
        (ejections.eligible, ejections.up) = (eligible, eligible);
        let mut moved = Vec::new();
        for (key, address, status) in unhealthy {
            ejections.add(key, address, status);
            moved.push(key);
        }
        ejections.fill(&mut moved);
        ejections.panic = ejections.is_below_panic_threshold();
        for unhealthy in ejections.unhealthy.values_mut() {
            unhealthy.decision = decision(&unhealthy.status, unhealthy.is_ejected, ejections.panic);
        }
        ejections
    }

    /// Updates the local health of one address. Returns every address whose decision changed.
    pub(crate) fn change(&mut self, key: usize, address: A, status: AddressStatus) -> Vec<(A, Decision)> {
        let mut moved = vec![key];
        self.hold_milder(&mut moved);
        let before = self.of(key);
        self.remove(key);
        self.add(key, address.clone(), status);
        self.fill(&mut moved);
        let panic = self.is_below_panic_threshold();
        if panic != self.panic {
            self.panic = panic;
            moved = self.unhealthy.keys().copied().collect();
        }
        let mut changed = Vec::new();
        if let Some(unhealthy) = self.unhealthy.get_mut(&key) {
            unhealthy.decision = before;
        } else if before != Decision::default() {
            changed.push((address, Decision::default()));
        }
        for key in moved {
            if let Some(unhealthy) = self.unhealthy.get_mut(&key) {
                let now = decision(&unhealthy.status, unhealthy.is_ejected, panic);
                if mem::replace(&mut unhealthy.decision, now) != now {
                    changed.push((unhealthy.address.clone(), now));
                }
            }
        }
        changed
    }

    fn remove(&mut self, key: usize) {
        let Some(UnhealthyAddress { status, .. }) = self.unhealthy.remove(&key) else {
            return;
        };
        if status.down {
            self.up += status.instances;
        } else if let Some(tripped) = status.tripped.filter(|_| status.is_capped()) {
            self.remove_tripped(Rank::of(key, tripped), status.instances);
        }
    }

    fn add(&mut self, key: usize, address: A, status: AddressStatus) {
        if status.is_healthy() {
            return;
        }
        if status.down {
            self.up -= status.instances;
        } else if let Some(tripped) = status.tripped.filter(|_| status.is_capped()) {
            self.insert_tripped(Rank::of(key, tripped), status.instances);
        }
        let unhealthy = UnhealthyAddress {
            address,
            status,
            is_ejected: false,
            decision: Decision::default(),
        };
        self.unhealthy.insert(key, unhealthy);
    }
}

fn decision(status: &AddressStatus, is_ejected: bool, panic: bool) -> Decision {
    let held_by_cap = status.is_capped() && !is_ejected;
    let admission = match status.tripped {
        _ if panic => Admission::In,
        _ if status.down => Admission::Out,
        Some(_) if held_by_cap => Admission::In,
        Some(tripped) if tripped.half_open => Admission::Trial,
        Some(_) => Admission::Out,
        None => Admission::In,
    };
    Decision { admission, held_by_cap }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    /// A pool as a list of addresses. The key of an address is its index.
    #[derive(Clone, Debug)]
    struct Pool(Vec<AddressStatus>);

    /// A naive model of the rules: recomputes the whole list without state. After every step
    /// [`Ejections`] must agree with the model.
    fn model(pool: &Pool, config: &LoadBalancerConfig) -> (Vec<Decision>, PoolHealth) {
        let sum = |filter: fn(&AddressStatus) -> bool| -> usize {
            pool.0
                .iter()
                .filter(|status| filter(status))
                .map(|status| status.instances)
                .sum()
        };
        let (eligible, up) = (sum(|_| true), sum(|status| !status.down));
        let cap = ((config.max_ejection() * eligible as f64) as usize)
            .max(1)
            .min(up.max(1) - 1);
        let mut worst_first: Vec<usize> = (0..pool.0.len()).filter(|&key| pool.0[key].is_capped()).collect();
        worst_first.sort_by(|&a, &b| {
            let (x, y) = (pool.0[a].tripped.unwrap(), pool.0[b].tripped.unwrap());
            let milder = y.severity.total_cmp(&x.severity);
            milder.then(x.tripped_at.cmp(&y.tripped_at)).then(a.cmp(&b))
        });
        let mut out = 0;
        let mut ejected = HashSet::new();
        for key in worst_first {
            if out + pool.0[key].instances <= cap {
                out += pool.0[key].instances;
                ejected.insert(key);
            }
        }
        let usable = up - out;
        let needed = (config.panic_threshold() * eligible as f64).max(1.0);
        let panic = config.panic() && eligible > 0 && (usable as f64) < needed;
        let decided = pool.0.iter().enumerate().map(|(key, status)| {
            let held_by_cap = status.is_capped() && !ejected.contains(&key);
            let admission = match (panic || held_by_cap, status.down, status.tripped) {
                (true, ..) | (false, false, None) => Admission::In,
                (false, false, Some(tripped)) if tripped.half_open => Admission::Trial,
                (false, ..) => Admission::Out,
            };
            // The cap never holds an address whose checks fail, so `held_by_cap` needs no test of
            // `down`.
            Decision { admission, held_by_cap }
        });
        (
            decided.collect(),
            PoolHealth {
                eligible,
                usable,
                panic,
            },
        )
    }

    fn decide(pool: &Pool, config: &LoadBalancerConfig) -> Ejections<usize> {
        let eligible = pool.0.iter().map(|status| status.instances).sum();
        let unhealthy = pool.0.iter().enumerate().filter(|(_, status)| !status.is_healthy());
        Ejections::decide(eligible, unhealthy.map(|(key, status)| (key, key, *status)), config)
    }

    /// Whether `worst_ejected` is the longest run from the worst address on that fits into the cap.
    fn worst_ejected_is_longest(ejections: &Ejections<usize>) -> bool {
        let instances = |rank: &Rank| ejections.unhealthy[&rank.key].status.instances;
        let run: usize = ejections.worst_ejected.iter().map(instances).sum();
        let milder = ejections.milder_ejected.iter().chain(ejections.held.values().flatten());
        let next = milder.min();
        let in_order = ejections.worst_ejected.last() < next || next.is_none();
        in_order && run <= ejections.cap() && next.is_none_or(|next| run + instances(next) > ejections.cap())
    }

    fn decisions(ejections: &Ejections<usize>, pool: &Pool) -> Vec<Decision> {
        (0..pool.0.len()).map(|key| ejections.of(key)).collect()
    }

    /// Whether checks fail, and the breaker: severity, time of the trip, half open.
    type Drawn = (bool, Option<(u32, u64, bool)>);

    fn status(instances: usize, (down, tripped): Drawn) -> AddressStatus {
        AddressStatus {
            instances,
            down,
            tripped: tripped.map(|(severity, at, half_open)| Tripped {
                severity: severity as f32 / 4.0,
                tripped_at: Timestamp::from_nanos(at),
                half_open,
            }),
        }
    }

    fn drawn() -> impl Strategy<Value = Drawn> {
        let tripped = prop::option::weighted(0.6, (0_u32..5, 0_u64..6, any::<bool>()));
        (prop::bool::weighted(0.25), tripped)
    }

    #[derive(Clone, Debug)]
    enum Event {
        /// Checks or breaker of one address change.
        Step(prop::sample::Index, Drawn),
        /// A new view is made: instance counts change, one address joins, and another leaves.
        View(Vec<usize>, Drawn, prop::sample::Index),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            8 => (any::<prop::sample::Index>(), drawn()).prop_map(|(index, drawn)| Event::Step(index, drawn)),
            1 => (prop::collection::vec(0_usize..5, 16), drawn(), any::<prop::sample::Index>())
                .prop_map(|(instances, drawn, gone)| Event::View(instances, drawn, gone)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn every_decision_equals_that_of_the_naive_model_after_every_step(
            start in prop::collection::vec((0_usize..5, drawn()), 1..14),
            events in prop::collection::vec(event(), 0..40),
            share in 0.0..=1.0_f64,
            threshold in prop_oneof![Just(0.0), 0.0..=1.0_f64],
            panics: bool,
        ) {
            let config = LoadBalancerConfig::default()
                .with_max_ejection(share)
                .and_then(|config| config.with_panic_threshold(threshold))
                .unwrap()
                .with_panic(panics);
            let mut pool = Pool(start.into_iter().map(|(instances, drawn)| status(instances, drawn)).collect());
            let mut ejections = decide(&pool, &config);
            prop_assert_eq!((decisions(&ejections, &pool), ejections.pool()), model(&pool, &config));
            prop_assert!(worst_ejected_is_longest(&ejections));
            for event in events {
                match event {
                    Event::Step(index, drawn) => {
                        let key = index.index(pool.0.len());
                        let before = decisions(&ejections, &pool);
                        pool.0[key] = status(pool.0[key].instances, drawn);
                        let returned = ejections.change(key, key, pool.0[key]);
                        // The returned decisions are exactly those that changed.
                        let mut expected = before.clone();
                        for (key, decision) in &returned {
                            prop_assert_ne!(expected[*key], *decision, "{} is returned once, and only if changed", key);
                            expected[*key] = *decision;
                        }
                        prop_assert_eq!(&expected, &decisions(&ejections, &pool));
                    }
                    Event::View(instances, drawn, gone) => {
                        pool.0.push(status(0, drawn));
                        pool.0.remove(gone.index(pool.0.len()));
                        for (status, instances) in pool.0.iter_mut().zip(instances) {
                            status.instances = instances;
                        }
                        ejections = decide(&pool, &config);
                    }
                }
                prop_assert!(worst_ejected_is_longest(&ejections));
                let (decided, health) = model(&pool, &config);
                prop_assert_eq!((decisions(&ejections, &pool), ejections.pool()), (decided.clone(), health));
                // The guarantees of the rules, independent of the model.
                let capped: Vec<usize> = (0..pool.0.len()).filter(|&key| pool.0[key].is_capped()).collect();
                let out: usize = capped.iter().filter(|&&key| !decided[key].held_by_cap).map(|&key| pool.0[key].instances).sum();
                prop_assert!(out <= ((share * health.eligible as f64) as usize).max(1));
                let up: usize = pool.0.iter().filter(|status| !status.down).map(|status| status.instances).sum();
                prop_assert!(up == 0 || out < up, "never the last");
            }
        }
    }

    #[test]
    fn a_milder_address_is_ejected_in_place_of_one_that_recovers() {
        let config = LoadBalancerConfig::default();
        let tripped = |severity, at| status(1, (false, Some((severity, at, false))));
        let mut pool = Pool(vec![
            AddressStatus {
                instances: 1,
                ..AddressStatus::default()
            };
            4
        ]);
        let mut ejections = decide(&pool, &config);
        let mut change = |key: usize, status: AddressStatus| {
            pool.0[key] = status;
            let mut changed = ejections.change(key, key, status);
            changed.sort_by_key(|(key, _)| *key);
            changed
        };
        let out = Decision {
            admission: Admission::Out,
            held_by_cap: false,
        };
        let held = Decision {
            admission: Admission::In,
            held_by_cap: true,
        };
        assert_eq!(change(0, tripped(2, 1)), [(0, out)]);
        assert_eq!(change(1, tripped(3, 2)), [(1, out)]);
        assert_eq!(change(2, tripped(1, 3)), [(2, held)]);
        assert_eq!(
            change(2, tripped(4, 3)),
            [(0, held), (2, out)],
            "the cap is two of four"
        );
        assert_eq!(
            change(
                1,
                AddressStatus {
                    instances: 1,
                    ..AddressStatus::default()
                }
            ),
            [(0, out), (1, Decision::default())]
        );
    }
}
