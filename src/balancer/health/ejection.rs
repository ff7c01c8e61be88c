//! Who of a pool is taken out: the cap on ejections, and panic.
//!
//! [`decide`] looks at all instances of a pool, because two questions cannot be answered for one alone:
//!
//! - **The cap**: of the E eligible ones (not rejected by the registry, not drained, of weight above 0) breakers hold out at most
//!   max(1, `max_ejection` x E), the worst first, and never the last usable one. The others are *held by the cap*: their breakers
//!   are open, and they are picked all the same. Checks are not capped. (Envoy's `max_ejection_percent`; nginx never ejects the
//!   only server of a group.)
//! - **Panic**: when fewer than max(1, `panic_threshold` x E) are usable, local judgement is not believed, and all E are candidates.
//!   What the registry rejects or the operator has drained stays out. (Envoy's panic threshold.)

use std::collections::{HashMap, HashSet};

use super::address::Wish;
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

/// One registered instance, as the pool as a whole is decided about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate {
    /// Tells addresses apart: instances at one address share a judgement.
    pub(crate) address: usize,
    /// Neither rejected by the registry nor drained, of weight above 0, at an address that may be contacted.
    pub(crate) eligible: bool,
    /// Checks fail.
    pub(crate) down: bool,
    pub(crate) wish: Option<Wish>,
}

/// What was decided.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Decision {
    /// Addresses whose breakers are open, and which the pool cannot do without.
    pub(crate) held: HashSet<usize>,
    /// All eligible ones are candidates.
    pub(crate) panic: bool,
    /// How many are eligible.
    pub(crate) eligible: usize,
    /// How many of them can be picked without panic.
    pub(crate) usable: usize,
    /// Below so many the pool panics; `None`: never.
    pub(crate) needed: Option<usize>,
    /// How many more breakers could take out.
    pub(crate) room: usize,
}

impl Decision {
    /// What a pick may do with an instance.
    pub(crate) fn admission(&self, candidate: &Candidate) -> Admission {
        match candidate.wish {
            _ if self.panic => Admission::In,
            _ if candidate.down => Admission::Out,
            Some(_) if self.held.contains(&candidate.address) => Admission::In,
            Some(wish) if wish.half_open => Admission::Trial,
            Some(_) => Admission::Out,
            None => Admission::In,
        }
    }
}

/// Decides who is out, and whether the pool panics.
pub(crate) fn decide(candidates: impl Iterator<Item = Candidate>, config: &LoadBalancerConfig) -> Decision {
    let (mut eligible, mut up) = (0, 0);
    let mut wishes: HashMap<usize, (Wish, usize)> = HashMap::new();
    for candidate in candidates.filter(|candidate| candidate.eligible) {
        eligible += 1;
        if candidate.down {
            continue;
        }
        up += 1;
        if let Some(wish) = candidate.wish {
            wishes.entry(candidate.address).or_insert((wish, 0)).1 += 1;
        }
    }
    let most = ((config.max_ejection() * eligible as f64) as usize)
        .max(1)
        .min(up.max(1) - 1);
    let mut worst_first: Vec<_> = wishes.into_iter().collect();
    worst_first.sort_unstable_by(|(a_address, (a, _)), (b_address, (b, _))| {
        b.severity
            .total_cmp(&a.severity)
            .then(a.tripped_at.cmp(&b.tripped_at))
            .then(a_address.cmp(b_address))
    });
    let mut out = 0;
    let mut held = HashSet::new();
    for (address, (_, instances)) in worst_first {
        if out + instances <= most {
            out += instances;
        } else {
            held.insert(address);
        }
    }
    let usable = up - out;
    // The least whole number that is not below the share.
    let share = (config.panic_threshold() * eligible as f64).max(1.0).ceil() as usize;
    let needed = (config.panic() && eligible > 0).then_some(share);
    Decision {
        held,
        panic: needed.is_some_and(|needed| usable < needed),
        eligible,
        usable,
        needed,
        room: most - out,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::balancer::clock::Timestamp;

    /// Eligible, down, and its breaker's wish: how bad, since when, half open.
    type Drawn = (bool, bool, Option<(u32, u64, bool)>);

    proptest! {
        #[test]
        fn who_is_out_keeps_the_rules_of_cap_and_panic(
            pool in prop::collection::vec((any::<bool>(), any::<bool>(), prop::option::of((0_u32..4, 0_u64..5, any::<bool>()))), 0..24),
            share in 0.0..=1.0_f64,
            threshold in 0.0..=1.0_f64,
        ) {
            let config = LoadBalancerConfig::default()
                .with_max_ejection(share)
                .and_then(|config| config.with_panic_threshold(threshold))
                .unwrap();
            let candidate = |(address, (eligible, down, wish)): (usize, &Drawn)| Candidate {
                address,
                eligible: *eligible,
                down: *down,
                wish: wish.map(|(severity, at, half_open)| Wish {
                    severity: severity as f32,
                    tripped_at: Timestamp::from_nanos(at),
                    half_open,
                }),
            };
            let candidates: Vec<Candidate> = pool.iter().enumerate().map(candidate).collect();
            let decision = decide(candidates.iter().copied(), &config);
            let eligible: Vec<&Candidate> = candidates.iter().filter(|candidate| candidate.eligible).collect();
            let up: Vec<&&Candidate> = eligible.iter().filter(|candidate| !candidate.down).collect();
            let wishing: Vec<&&&Candidate> = up.iter().filter(|candidate| candidate.wish.is_some()).collect();
            let is_held = |candidate: &Candidate| decision.held.contains(&candidate.address);
            let out: Vec<_> = wishing.iter().filter(|candidate| !is_held(candidate)).collect();
            let cap = ((share * eligible.len() as f64) as usize).max(1);
            prop_assert!(out.len() <= cap && (up.is_empty() || out.len() < up.len()));
            prop_assert_eq!(out.len(), wishing.len().min(cap).min(up.len().saturating_sub(1)), "as many as may be");
            for out in &out {
                for held in wishing.iter().filter(|candidate| is_held(candidate)) {
                    prop_assert!(out.wish.unwrap().severity >= held.wish.unwrap().severity, "the worst first");
                }
            }
            let usable = up.len() - out.len();
            prop_assert_eq!((decision.eligible, decision.usable), (eligible.len(), usable));
            let panics = !eligible.is_empty() && (usable as f64) < (threshold * eligible.len() as f64).max(1.0);
            prop_assert_eq!(decision.panic, panics);
            let admitted = eligible.iter().filter(|candidate| decision.admission(candidate) == Admission::In).count();
            prop_assert_eq!(admitted, if panics { eligible.len() } else { usable });
        }
    }
}
