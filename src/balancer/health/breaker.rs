//! Circuit breaker of one address, as a state machine over outcomes.
//!
//! ```text
//!                 trip                      its time is over            a trial succeeds, or three stay unknown
//! Closed ──────────────────► Open(until) ──────────────────► HalfOpen ────────────────────────────────────► Closed
//!                              ▲                                 │                                      (slow start)
//!                              └────── the trial fails: twice as long ──┘
//! ```
//!
//! It trips on failures in a row, or when too many of the outcomes within the window failed. Open times double from `open_min` to
//! `open_max`, each times 0.5 to 1.5 at random, so that a thousand agents do not come back together. An opening belongs to the
//! row of the one before if the breaker had been closed for less than the window.
//!
//! An agent outside the data path cannot hold a request back until its trial has ended, as a proxy does (linkerd2-proxy waits
//! without limit), and may never hear of it. So half open means: one pick at a time is let through as the trial, for
//! [`TRIAL_TTL`]; the first outcome that arrives afterwards decides; a trial of which nothing is heard is unknown, and three
//! of them in a row close the breaker. Outcomes that arrive while it is open are those of requests from before: ignored.
//!
//! With `circuit_breaker_enabled = false` there is no trial: out for 30 s times the openings in a row, at most 300 s (Envoy's
//! outlier detection).
//!
//! Knows nothing of locks, clocks and pools: `now`, entropy and who was let through come in as arguments. Whether an open
//! breaker really takes its instance out is the [pool's](super::judgement) to decide.

use std::fmt;
use std::time::Duration;

use super::window::Totals;
use crate::balancer::clock::{Since, Timestamp};
use crate::balancer::config::LoadBalancerConfig;

/// How long a pick that was let through as the trial keeps others from being one.
pub(crate) const TRIAL_TTL: Duration = Duration::from_secs(5);
/// So many trials in a row of which nothing was heard close the breaker.
pub(crate) const UNKNOWN_TRIALS: u8 = 3;

/// Without trials: out for so long, times the openings in a row.
const EJECTED_FOR: Duration = Duration::from_secs(30);
const EJECTED_AT_MOST: Duration = Duration::from_secs(300);

/// What a breaker says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// No objection.
    Closed,
    /// Takes the instance out.
    Open {
        /// Until then.
        until: Timestamp,
        /// What made it open.
        because: TripReason,
    },
    /// Lets one pick at a time through.
    HalfOpen {
        /// What had made it open.
        because: TripReason,
    },
}

impl BreakerState {
    /// The word for it in answers. Words do not change.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open { .. } => "open",
            Self::HalfOpen { .. } => "half_open",
        }
    }

    /// What made it open; `None` while closed.
    #[must_use]
    pub fn because(self) -> Option<TripReason> {
        match self {
            Self::Closed => None,
            Self::Open { because, .. } | Self::HalfOpen { because } => Some(because),
        }
    }
}

/// What made a breaker open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TripReason {
    /// So many failures in a row; a refused connection counts as two.
    ConsecutiveFailures(u32),
    /// Too many of the outcomes within the window failed.
    FailureRatio {
        /// How many failed.
        failed: u32,
        /// Of how many.
        total: u32,
    },
    /// The trial failed.
    TrialFailed,
}

/// As in answers and logs: `3 failures in a row`.
impl fmt::Display for TripReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ConsecutiveFailures(failures) => write!(f, "{failures} failures in a row"),
            Self::FailureRatio { failed, total } => write!(f, "{failed} of {total} outcomes failed"),
            Self::TrialFailed => f.write_str("the trial failed"),
        }
    }
}

/// What made a breaker close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The trial succeeded.
    TrialSucceeded,
    /// Nothing was heard of three trials in a row.
    TrialsUnknown,
    /// Its time was over, and breakers are not enabled.
    TimeServed,
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TrialSucceeded => "the trial succeeded",
            Self::TrialsUnknown => "nothing was heard of three trials",
            Self::TimeServed => "its time is over",
        })
    }
}

/// A step of a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BreakerStep {
    Opened {
        because: TripReason,
        until: Timestamp,
    },
    HalfOpened,
    /// A trial was not heard of; another one may be let through.
    TrialUnknown,
    Closed(CloseReason),
}

/// An outcome as the breaker sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Evidence {
    Success,
    /// Counts as so many in a row.
    Failure(u32),
    /// Failed, and is none in a row.
    Rejected,
}

/// Who is let through while a breaker is half open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trial {
    /// Nobody.
    None,
    /// Somebody, since then.
    Since(Timestamp),
    /// Everybody: its pool panics, or cannot do without it.
    Everybody,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Closed,
    Open {
        until: Timestamp,
        because: TripReason,
    },
    HalfOpen {
        because: TripReason,
        unknown: u8,
    },
}

#[derive(Debug, Default)]
pub(crate) struct Breaker {
    state: State,
    since: Timestamp,
    /// Since the last success, or since it closed.
    failures_in_a_row: u32,
    /// Openings in a row.
    openings: u32,
    closed_at: Option<Timestamp>,
    /// How bad it was when it tripped: the share that failed. Failed trials change neither this nor when that was, so that those
    /// who are out and those whom the cap holds do not change places.
    severity: f32,
    tripped_at: Timestamp,
    /// Whether there was any outcome.
    heard: bool,
}

impl Breaker {
    pub(crate) fn state(&self) -> BreakerState {
        match self.state {
            State::Closed => BreakerState::Closed,
            State::Open { until, because } => BreakerState::Open { until, because },
            State::HalfOpen { because, .. } => BreakerState::HalfOpen { because },
        }
    }

    /// What it says, and since when; `None` before the first outcome.
    pub(crate) fn since(&self) -> Option<Since<BreakerState>> {
        self.heard.then(|| Since {
            state: self.state(),
            since: self.since,
        })
    }

    /// How bad it was when it tripped, and when that was: whom the pool can do without first.
    pub(crate) fn severity(&self) -> (f32, Timestamp) {
        (self.severity, self.tripped_at)
    }

    /// Takes an outcome; `totals` are those of the window, this one included. `entropy` is in 0.0..1.0.
    pub(crate) fn record(
        &mut self,
        evidence: Evidence,
        totals: Totals,
        trial: Trial,
        config: &LoadBalancerConfig,
        entropy: f64,
        now: Timestamp,
    ) -> Option<BreakerStep> {
        if !std::mem::replace(&mut self.heard, true) {
            self.since = now;
        }
        match (self.state, evidence) {
            (State::Closed, Evidence::Success) => {
                self.failures_in_a_row = 0;
                None
            }
            (State::Closed, Evidence::Failure(_) | Evidence::Rejected) => {
                if let Evidence::Failure(count) = evidence {
                    self.failures_in_a_row = self.failures_in_a_row.saturating_add(count);
                }
                let because = self.trip(totals, config)?;
                Some(self.open(because, totals, config, entropy, now))
            }
            (State::Open { .. }, _) => None,
            // A request from before it opened.
            (State::HalfOpen { unknown: 0, .. }, _) if trial == Trial::None => None,
            (State::HalfOpen { .. }, Evidence::Success) => Some(self.close(CloseReason::TrialSucceeded, now)),
            (State::HalfOpen { .. }, Evidence::Failure(_) | Evidence::Rejected) => {
                Some(self.open(TripReason::TrialFailed, totals, config, entropy, now))
            }
        }
    }

    /// Does what time has made due.
    pub(crate) fn advance(&mut self, trial: Trial, config: &LoadBalancerConfig, now: Timestamp) -> Option<BreakerStep> {
        match (self.state, trial) {
            (State::Open { until, because }, _) if until <= now => {
                if !config.circuit_breaker_enabled() {
                    return Some(self.close(CloseReason::TimeServed, now));
                }
                self.state = State::HalfOpen { because, unknown: 0 };
                self.since = now;
                Some(BreakerStep::HalfOpened)
            }
            (State::HalfOpen { because, unknown }, Trial::Since(then)) if then + TRIAL_TTL <= now => {
                let unknown = unknown + 1;
                if unknown >= UNKNOWN_TRIALS {
                    return Some(self.close(CloseReason::TrialsUnknown, now));
                }
                self.state = State::HalfOpen { because, unknown };
                Some(BreakerStep::TrialUnknown)
            }
            _ => None,
        }
    }

    /// When [`advance`](Self::advance) should be asked next.
    pub(crate) fn next(&self, trial: Trial, now: Timestamp) -> Option<Timestamp> {
        match (self.state, trial) {
            (State::Closed, _) => None,
            (State::Open { until, .. }, _) => Some(until),
            (State::HalfOpen { .. }, Trial::Since(then)) => Some(then + TRIAL_TTL),
            // Picks do not wake anybody: one may be let through at any time.
            (State::HalfOpen { .. }, _) => Some(now + TRIAL_TTL),
        }
    }

    fn trip(&self, totals: Totals, config: &LoadBalancerConfig) -> Option<TripReason> {
        let breaker = config.breaker();
        if self.failures_in_a_row >= config.max_consecutive_failures() {
            return Some(TripReason::ConsecutiveFailures(self.failures_in_a_row));
        }
        (totals.total >= breaker.min_outcomes() && totals.failure_ratio() >= breaker.failure_ratio()).then_some(
            TripReason::FailureRatio {
                failed: totals.failed,
                total: totals.total,
            },
        )
    }

    fn open(
        &mut self,
        because: TripReason,
        totals: Totals,
        config: &LoadBalancerConfig,
        entropy: f64,
        now: Timestamp,
    ) -> BreakerStep {
        let in_a_row = match self.closed_at {
            _ if because == TripReason::TrialFailed => true,
            Some(closed_at) => now.since(closed_at) < config.breaker().window(),
            None => false,
        };
        self.openings = if in_a_row { self.openings.saturating_add(1) } else { 1 };
        let until = now + open_for(self.openings, config, entropy);
        self.state = State::Open { until, because };
        self.since = now;
        if because != TripReason::TrialFailed {
            (self.severity, self.tripped_at) = (totals.failure_ratio() as f32, now);
        }
        BreakerStep::Opened { because, until }
    }

    fn close(&mut self, because: CloseReason, now: Timestamp) -> BreakerStep {
        self.state = State::Closed;
        self.since = now;
        self.closed_at = Some(now);
        self.failures_in_a_row = 0;
        BreakerStep::Closed(because)
    }
}

/// How long the n-th opening in a row lasts.
fn open_for(openings: u32, config: &LoadBalancerConfig, entropy: f64) -> Duration {
    if !config.circuit_breaker_enabled() {
        return (EJECTED_FOR * openings.clamp(1, 10)).min(EJECTED_AT_MOST);
    }
    let breaker = config.breaker();
    let doubled = breaker.open_min().saturating_mul(1 << (openings.clamp(1, 31) - 1));
    doubled.min(breaker.open_max()).mul_f64(0.5 + entropy.clamp(0.0, 1.0))
}
