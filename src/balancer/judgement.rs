//! What is judged locally: of one address, and of a pool as a whole.
//!
//! [`Judgement`] keeps what outcomes and checks say of one address, layer beside layer: passive grade, breaker, active checks.
//! None of them overwrites another: a passing check does not close a breaker, a closing breaker does not overrule a check.
//!
//! [`decide`] then looks at all instances of a pool, because two questions cannot be answered for one alone:
//!
//! - **The cap**: of the E eligible ones (not rejected by the registry, not drained, of weight above 0) breakers hold out at most
//!   max(1, `max_ejection` x E), the worst first, and never the last usable one. The others are *held by the cap*: their breakers
//!   are open, and they are picked all the same. Checks are not capped. (Envoy's `max_ejection_percent`; nginx never ejects the
//!   only server of a group.)
//! - **Panic**: when fewer than max(1, `panic_threshold` x E) are usable, local judgement is not believed, and all E are candidates.
//!   What the registry rejects or the operator has drained stays out. (Envoy's panic threshold.)

use std::collections::{HashMap, HashSet};

use super::active::{Active, ActiveState};
use super::breaker::{Breaker, BreakerState, BreakerStep, Evidence, Trial};
use super::clock::Timestamp;
use super::config::LoadBalancerConfig;
use super::health::Check;
use super::passive::{Passive, PassiveState};
use super::pool::Outcome;
use super::statistics::{OutcomeWindow, Totals};

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

/// What outcomes and checks say of one address.
#[derive(Debug, Default)]
pub(crate) struct Judgement {
    window: OutcomeWindow,
    pub(crate) passive: Passive,
    pub(crate) breaker: Breaker,
    pub(crate) active: Active,
    /// Its breaker is open, and the pool cannot do without it.
    pub(crate) held_by_cap: bool,
}

/// A step of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// `first`: it had said nothing before.
    Active {
        state: ActiveState,
        first: bool,
    },
    Passive {
        grade: PassiveState,
        first: bool,
    },
    Breaker(BreakerStep),
}

impl Judgement {
    /// Learns from an outcome that took this many seconds. `usual` is what is usual in the pool; `entropy` in 0.0..1.0.
    #[expect(
        clippy::too_many_arguments,
        reason = "time, entropy and what the pool knows come in from outside"
    )]
    pub(crate) fn record(
        &mut self,
        outcome: Outcome,
        seconds: Option<f32>,
        trial: Trial,
        usual: Option<f32>,
        config: &LoadBalancerConfig,
        entropy: f64,
        now: Timestamp,
    ) -> [Option<Step>; 2] {
        let evidence = match outcome {
            Outcome::Cancelled => return [None, None],
            Outcome::Success => Evidence::Success,
            Outcome::Rejected => Evidence::Rejected,
            Outcome::Failure | Outcome::Timeout | Outcome::ConnectError => {
                Evidence::Failure(outcome.failures_in_a_row())
            }
        };
        let trial = if self.held_by_cap { Trial::HeldByCap } else { trial };
        let totals = self
            .window
            .count(evidence != Evidence::Success, config.breaker().window(), now);
        // A failure that came fast is no fast answer.
        if let Some(seconds) = seconds.filter(|_| evidence == Evidence::Success) {
            self.passive.took(seconds, usual);
        }
        let passive = self.grade(totals, usual, config, now);
        let step = self.breaker.record(evidence, totals, trial, config, entropy, now);
        let forgotten = self.follow(step);
        [passive.filter(|_| !forgotten), step.map(Step::Breaker)]
    }

    /// Does what time has made due.
    pub(crate) fn advance(
        &mut self,
        trial: Trial,
        usual: Option<f32>,
        config: &LoadBalancerConfig,
        now: Timestamp,
    ) -> [Option<Step>; 2] {
        let trial = if self.held_by_cap { Trial::HeldByCap } else { trial };
        let step = self.breaker.advance(trial, config, now);
        self.follow(step);
        let passive = if self.passive.is_degraded() {
            let totals = self.window.totals(config.breaker().window(), now);
            self.grade(totals, usual, config, now)
        } else {
            None
        };
        [passive, step.map(Step::Breaker)]
    }

    /// When [`advance`](Self::advance) should be asked next; `None` while nothing changes with time.
    pub(crate) fn next(&self, trial: Trial, config: &LoadBalancerConfig, now: Timestamp) -> Option<Timestamp> {
        let trial = if self.held_by_cap { Trial::HeldByCap } else { trial };
        let graded = self
            .passive
            .is_degraded()
            .then(|| now + OutcomeWindow::step(config.breaker().window()));
        self.breaker.next(trial, now).into_iter().chain(graded).min()
    }

    /// Takes the result of a check.
    pub(crate) fn observe(&mut self, check: Check, config: &LoadBalancerConfig, now: Timestamp) -> Option<Step> {
        let first = self.active.said().is_none();
        let state = self.active.observe(check, config, now)?;
        Some(Step::Active { state, first })
    }

    fn grade(
        &mut self,
        totals: Totals,
        usual: Option<f32>,
        config: &LoadBalancerConfig,
        now: Timestamp,
    ) -> Option<Step> {
        let first = self.passive.said().is_none();
        let grade = self
            .passive
            .judge(totals, usual, config.breaker().min_outcomes(), now)?;
        Some(Step::Passive { grade, first })
    }

    /// Once a breaker has closed, what was before says nothing of what is now. Returns whether it was forgotten.
    fn follow(&mut self, step: Option<BreakerStep>) -> bool {
        let closed = matches!(step, Some(BreakerStep::Closed(_)));
        if closed {
            self.window.clear();
            self.passive.forget();
        }
        closed
    }

    /// Whether its breaker wants it out.
    pub(crate) fn wish(&self) -> Option<Wish> {
        let (severity, tripped_at) = self.breaker.severity();
        match self.breaker.state() {
            BreakerState::Closed => None,
            BreakerState::Open { .. } => Some(Wish {
                severity,
                tripped_at,
                half_open: false,
            }),
            BreakerState::HalfOpen { .. } => Some(Wish {
                severity,
                tripped_at,
                half_open: true,
            }),
        }
    }
}

/// A breaker's wish to take its instance out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Wish {
    /// The share that failed.
    pub(crate) severity: f32,
    pub(crate) tripped_at: Timestamp,
    pub(crate) half_open: bool,
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
    let needed = (config.panic_threshold() * eligible as f64).max(1.0);
    Decision {
        held,
        panic: config.panic() && eligible > 0 && (usable as f64) < needed,
        eligible,
        usable,
    }
}
