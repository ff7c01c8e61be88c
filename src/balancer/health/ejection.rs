//! Which addresses of a pool are taken out: the cap on ejections, and panic mode.
//!
//! Two questions cannot be answered for one address alone, so that [`Ejections`] knows every troubled address of a pool:
//!
//! - **The cap**: of the E eligible instances (not rejected by the registry, not drained, of weight above 0) breakers take out
//!   at most max(1, `max_ejection` x E), the worst first, and never the last usable instance. The others are *held by the
//!   cap*: their breakers are open, and they are picked all the same. Active checks are not capped. (Envoy's
//!   `max_ejection_percent`; nginx never ejects the only server of a group.)
//! - **Panic mode**: when fewer than max(1, `panic_threshold` x E) instances are usable, local judgement is not believed, and
//!   all E are candidates. What the registry rejects or an operator has drained stays out. (Envoy's panic threshold.)
//!
//! ```text
//! tripped, the worst first:  a  b  c │ d  e  f         first: as many as the cap allows, in order
//!                            └──out──┘ held  └ out     besides: milder addresses that still fit, where the
//!                                                      next one has more instances than are left
//! ```
//!
//! A change of one address costs O(log n) and names every address whose admission changes with it. Only when panic mode begins
//! or ends are all troubled addresses named.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::mem;

use super::address::Tripped;
use crate::balancer::clock::Timestamp;
use crate::balancer::config::LoadBalancerConfig;

/// What a pick may do with an address at this moment. In one atomic of its live state, looked at by every pick for which
/// something has changed since its view was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Admission {
    /// Can be picked.
    #[default]
    In,
    /// Cannot.
    Out,
    /// One pick can have it, as the trial of its breaker.
    Trial,
    /// One pick has it.
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

/// What speaks against an address, and how many eligible instances it stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Trouble {
    pub(crate) instances: usize,
    /// Active checks fail.
    pub(crate) down: bool,
    /// The breaker is not closed.
    pub(crate) tripped: Option<Tripped>,
}

impl Trouble {
    fn is_none(&self) -> bool {
        !self.down && self.tripped.is_none()
    }

    /// Whether the cap has to decide about it: checks that fail take an address out without one.
    fn is_capped(&self) -> bool {
        self.instances > 0 && !self.down && self.tripped.is_some()
    }
}

/// What was decided of one address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Decision {
    pub(crate) admission: Admission,
    /// The breaker is open, and the cap keeps the address in.
    pub(crate) held_by_cap: bool,
}

/// How a pool as a whole is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PoolHealth {
    /// Instances that only local judgement can take out.
    pub(crate) eligible: usize,
    /// Those of them that can be picked without panic mode.
    pub(crate) usable: usize,
    /// Panic mode: all eligible instances are candidates.
    pub(crate) panic: bool,
}

/// Decides which addresses of one pool are out. `A` is how the caller knows an address.
#[derive(Debug)]
pub(crate) struct Ejections<A> {
    max_ejection: f64,
    /// `None`: no panic mode.
    panic_threshold: Option<f64>,
    /// Eligible instances.
    eligible: usize,
    /// Those whose checks do not fail.
    up: usize,
    /// Those that breakers take out.
    out: usize,
    panic: bool,
    troubled: HashMap<usize, Troubled<A>>,
    /// The worst addresses, as many in order as the cap allows.
    first: BTreeSet<Rank>,
    /// Milder ones that fit into what `first` leaves of the cap.
    besides: Vec<Rank>,
    /// All others, by their number of instances: held by the cap.
    held: BTreeMap<usize, BTreeSet<Rank>>,
}

#[derive(Debug)]
struct Troubled<A> {
    address: A,
    trouble: Trouble,
    is_out: bool,
    decision: Decision,
}

/// The order in which breakers take addresses out: the largest share of failures, then the longest tripped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    /// Bits of a share, which order as the shares do.
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
    /// Of a pool without instances.
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
            out: 0,
            panic: false,
            troubled: HashMap::new(),
            first: BTreeSet::new(),
            besides: Vec::new(),
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
        self.up - self.out
    }

    /// What was decided of an address.
    pub(crate) fn of(&self, key: usize) -> Decision {
        self.troubled
            .get(&key)
            .map(|troubled| troubled.decision)
            .unwrap_or_default()
    }

    /// How many instances breakers may take out.
    fn cap(&self) -> usize {
        let share = (self.max_ejection * self.eligible as f64) as usize;
        share.max(1).min(self.up.max(1) - 1)
    }

    fn panics(&self) -> bool {
        self.panic_threshold.is_some_and(|threshold| {
            // The least whole number that is not below the share.
            let needed = (threshold * self.eligible as f64).max(1.0).ceil() as usize;
            self.eligible > 0 && self.usable() < needed
        })
    }

    /// Puts an address among the tripped ones, into `first` if it is worse than the mildest there.
    fn insert(&mut self, rank: Rank, instances: usize) {
        if self.first.last().is_some_and(|mildest| rank < *mildest) {
            self.first.insert(rank);
            self.out += instances;
        } else {
            self.held.entry(instances).or_default().insert(rank);
        }
    }

    fn remove(&mut self, rank: Rank, instances: usize) {
        if self.first.remove(&rank) {
            self.out -= instances;
        } else {
            self.unhold(rank, instances);
        }
    }

    fn unhold(&mut self, rank: Rank, instances: usize) {
        if let Some(ranks) = self.held.get_mut(&instances) {
            ranks.remove(&rank);
            if ranks.is_empty() {
                self.held.remove(&instances);
            }
        }
    }

    /// The worst of those held that stand for at most `room` instances, and for how many.
    fn worst_held(&self, room: usize) -> Option<(Rank, usize)> {
        let worst = |(instances, ranks): (&usize, &BTreeSet<Rank>)| Some((*ranks.first()?, *instances));
        self.held.range(..=room).filter_map(worst).min()
    }

    /// Returns the addresses of `besides` to those held: what fits depends on everything before it.
    fn hold_besides(&mut self, moved: &mut Vec<usize>) {
        for rank in mem::take(&mut self.besides) {
            let instances = self
                .troubled
                .get(&rank.key)
                .map_or(0, |troubled| troubled.trouble.instances);
            self.out -= instances;
            self.held.entry(instances).or_default().insert(rank);
            moved.push(rank.key);
        }
    }

    /// Takes out the worst, as many as the cap allows. Collects the addresses that were moved.
    fn fill(&mut self, moved: &mut Vec<usize>) {
        let cap = self.cap();
        while self.out > cap
            && let Some(mildest) = self.first.pop_last()
        {
            let instances = self
                .troubled
                .get(&mildest.key)
                .map_or(0, |troubled| troubled.trouble.instances);
            self.out -= instances;
            self.held.entry(instances).or_default().insert(mildest);
            moved.push(mildest.key);
        }
        while let Some((worst, instances)) = self.worst_held(usize::MAX)
            && self.out + instances <= cap
        {
            self.unhold(worst, instances);
            self.first.insert(worst);
            self.out += instances;
            moved.push(worst.key);
        }
        while let Some((worst, instances)) = self.worst_held(cap - self.out) {
            self.unhold(worst, instances);
            self.besides.push(worst);
            self.out += instances;
            moved.push(worst.key);
        }
        for key in &*moved {
            if let Some(troubled) = self.troubled.get_mut(key)
                && let Some(tripped) = troubled.trouble.tripped
            {
                let rank = Rank::of(*key, tripped);
                troubled.is_out = self.first.contains(&rank) || self.besides.contains(&rank);
            }
        }
    }
}

impl<A: Clone> Ejections<A> {
    /// Decides about a whole pool: its eligible instances are those of healthy addresses, of which there are `eligible`
    /// together with the troubled ones.
    pub(crate) fn decide(
        eligible: usize,
        troubled: impl Iterator<Item = (usize, A, Trouble)>,
        config: &LoadBalancerConfig,
    ) -> Self {
        let mut ejections = Self::new(config);
        (ejections.eligible, ejections.up) = (eligible, eligible);
        let mut moved = Vec::new();
        for (key, address, trouble) in troubled {
            ejections.note(key, address, trouble);
            moved.push(key);
        }
        ejections.fill(&mut moved);
        ejections.panic = ejections.panics();
        for troubled in ejections.troubled.values_mut() {
            troubled.decision = decision(&troubled.trouble, troubled.is_out, ejections.panic);
        }
        ejections
    }

    /// Takes over what speaks against one address now. Returns every address of which something else is decided than before.
    pub(crate) fn change(&mut self, key: usize, address: A, trouble: Trouble) -> Vec<(A, Decision)> {
        let mut moved = vec![key];
        self.hold_besides(&mut moved);
        let before = self.of(key);
        self.forget(key);
        self.note(key, address.clone(), trouble);
        self.fill(&mut moved);
        let panic = self.panics();
        if panic != self.panic {
            self.panic = panic;
            moved = self.troubled.keys().copied().collect();
        }
        let mut changed = Vec::new();
        if let Some(troubled) = self.troubled.get_mut(&key) {
            troubled.decision = before;
        } else if before != Decision::default() {
            changed.push((address, Decision::default()));
        }
        for key in moved {
            if let Some(troubled) = self.troubled.get_mut(&key) {
                let now = decision(&troubled.trouble, troubled.is_out, panic);
                if mem::replace(&mut troubled.decision, now) != now {
                    changed.push((troubled.address.clone(), now));
                }
            }
        }
        changed
    }

    fn forget(&mut self, key: usize) {
        let Some(Troubled { trouble, .. }) = self.troubled.remove(&key) else {
            return;
        };
        if trouble.down {
            self.up += trouble.instances;
        } else if let Some(tripped) = trouble.tripped.filter(|_| trouble.is_capped()) {
            self.remove(Rank::of(key, tripped), trouble.instances);
        }
    }

    fn note(&mut self, key: usize, address: A, trouble: Trouble) {
        if trouble.is_none() {
            return;
        }
        if trouble.down {
            self.up -= trouble.instances;
        } else if let Some(tripped) = trouble.tripped.filter(|_| trouble.is_capped()) {
            self.insert(Rank::of(key, tripped), trouble.instances);
        }
        let troubled = Troubled {
            address,
            trouble,
            is_out: false,
            decision: Decision::default(),
        };
        self.troubled.insert(key, troubled);
    }
}

fn decision(trouble: &Trouble, is_out: bool, panic: bool) -> Decision {
    let held_by_cap = trouble.is_capped() && !is_out;
    let admission = match trouble.tripped {
        _ if panic => Admission::In,
        _ if trouble.down => Admission::Out,
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

    /// A pool as a list of addresses, the key of each being its place.
    #[derive(Clone, Debug)]
    struct Pool(Vec<Trouble>);

    /// The rules once more, over the whole list and without a state: what [`Ejections`] has to say after every step.
    fn model(pool: &Pool, config: &LoadBalancerConfig) -> (Vec<Decision>, PoolHealth) {
        let sum = |filter: fn(&Trouble) -> bool| -> usize {
            pool.0
                .iter()
                .filter(|trouble| filter(trouble))
                .map(|trouble| trouble.instances)
                .sum()
        };
        let (eligible, up) = (sum(|_| true), sum(|trouble| !trouble.down));
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
        let decided = pool.0.iter().enumerate().map(|(key, trouble)| {
            let held_by_cap = trouble.is_capped() && !ejected.contains(&key);
            let admission = match (panic || held_by_cap, trouble.down, trouble.tripped) {
                (true, ..) | (false, false, None) => Admission::In,
                (false, false, Some(tripped)) if tripped.half_open => Admission::Trial,
                (false, ..) => Admission::Out,
            };
            // One that the cap holds and whose checks fail does not exist: it is not capped.
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
        let eligible = pool.0.iter().map(|trouble| trouble.instances).sum();
        let troubled = pool.0.iter().enumerate().filter(|(_, trouble)| !trouble.is_none());
        Ejections::decide(eligible, troubled.map(|(key, trouble)| (key, key, *trouble)), config)
    }

    fn decisions(ejections: &Ejections<usize>, pool: &Pool) -> Vec<Decision> {
        (0..pool.0.len()).map(|key| ejections.of(key)).collect()
    }

    /// Down, and what the breaker says: how bad, since when, half open.
    type Drawn = (bool, Option<(u32, u64, bool)>);

    fn trouble(instances: usize, (down, tripped): Drawn) -> Trouble {
        Trouble {
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
        /// Checks and breaker of one address say something else.
        Step(prop::sample::Index, Drawn),
        /// A view is made: addresses have other numbers of eligible instances, one is new, one is gone.
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
            let mut pool = Pool(start.into_iter().map(|(instances, drawn)| trouble(instances, drawn)).collect());
            let mut ejections = decide(&pool, &config);
            prop_assert_eq!((decisions(&ejections, &pool), ejections.pool()), model(&pool, &config));
            for event in events {
                match event {
                    Event::Step(index, drawn) => {
                        let key = index.index(pool.0.len());
                        let before = decisions(&ejections, &pool);
                        pool.0[key] = trouble(pool.0[key].instances, drawn);
                        let told = ejections.change(key, key, pool.0[key]);
                        // Those told of are exactly those that changed, and to what they changed.
                        let mut heeded = before.clone();
                        for (key, decision) in &told {
                            prop_assert_ne!(heeded[*key], *decision, "told of {} once, and only of a change", key);
                            heeded[*key] = *decision;
                        }
                        prop_assert_eq!(&heeded, &decisions(&ejections, &pool));
                    }
                    Event::View(instances, drawn, gone) => {
                        pool.0.push(trouble(0, drawn));
                        pool.0.remove(gone.index(pool.0.len()));
                        for (trouble, instances) in pool.0.iter_mut().zip(instances) {
                            trouble.instances = instances;
                        }
                        ejections = decide(&pool, &config);
                    }
                }
                let (decided, health) = model(&pool, &config);
                prop_assert_eq!((decisions(&ejections, &pool), ejections.pool()), (decided.clone(), health));
                // What the rules promise, whatever the model says.
                let capped: Vec<usize> = (0..pool.0.len()).filter(|&key| pool.0[key].is_capped()).collect();
                let out: usize = capped.iter().filter(|&&key| !decided[key].held_by_cap).map(|&key| pool.0[key].instances).sum();
                prop_assert!(out <= ((share * health.eligible as f64) as usize).max(1));
                let up: usize = pool.0.iter().filter(|trouble| !trouble.down).map(|trouble| trouble.instances).sum();
                prop_assert!(up == 0 || out < up, "never the last");
            }
        }
    }

    #[test]
    fn a_milder_address_is_ejected_in_place_of_one_that_recovers() {
        let config = LoadBalancerConfig::default();
        let tripped = |severity, at| trouble(1, (false, Some((severity, at, false))));
        let mut pool = Pool(vec![
            Trouble {
                instances: 1,
                ..Trouble::default()
            };
            4
        ]);
        let mut ejections = decide(&pool, &config);
        let mut change = |key: usize, trouble: Trouble| {
            pool.0[key] = trouble;
            let mut changed = ejections.change(key, key, trouble);
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
                Trouble {
                    instances: 1,
                    ..Trouble::default()
                }
            ),
            [(0, out), (1, Decision::default())]
        );
    }
}
