//! Circuit breaker of one address, as a state machine over outcomes.
//!
//! ```text
//!          trip              open time ends          a trial succeeds, or three are unknown
//! Closed ───────► Open(until) ────────────► HalfOpen ───────────────────────────────────► Closed
//!                     ▲                         │                                   (slow start)
//!                     └─ a trial fails: ────────┘
//!                        twice as long
//! ```
//!
//! A breaker trips on consecutive failures, or when too large a share of the outcomes within the
//! window failed. Open times double from `open_min` to `open_max`. Each open time is multiplied by
//! a random factor from 0.5 to 1.5, so that a thousand agents do not send requests again at the
//! same moment. An opening continues the series of openings if the breaker had been closed for
//! less than the window.
//!
//! An agent outside the data path cannot hold requests back until a trial ends, as a proxy does
//! (linkerd2-proxy waits without limit), and may never learn the outcome of a trial. Therefore,
//! while the breaker is half open, one pick at a time is let through as the trial, for
//! [`TRIAL_TTL`]. The first outcome that arrives after the trial began decides. A trial without an
//! outcome is unknown, and three unknown trials in a row close the breaker. Outcomes that arrive
//! while the breaker is open belong to earlier requests and are ignored.
//!
//! An address that rejects a request with the time after which it may be called again opens its
//! breaker for that time, at most for `open_max`.
//!
//! With `circuit_breaker_enabled = false` there are no trials: the address is ejected for 30 s
//! times the number of openings in a row, at most 300 s (Envoy's outlier detection).
//!
//! This module knows nothing of locks, clocks and pools: `now`, entropy and the trial come in as
//! arguments. Whether an open breaker takes its address out is decided by `ejection`.

use std::fmt;
use std::time::Duration;

use super::window::Totals;
use crate::balancer::clock::{Since, Timestamp};
use crate::balancer::config::LoadBalancerConfig;

/// How long a trial in progress keeps other picks from being let through.
pub(crate) const TRIAL_TTL: Duration = Duration::from_secs(5);
/// The number of unknown trials in a row that closes the breaker.
pub(crate) const MAX_UNKNOWN_TRIALS: u8 = 3;

/// The ejection time of the first opening while breakers are disabled, and the longest ejection
/// time.
const BASE_EJECTION_TIME: Duration = Duration::from_secs(30);
const MAX_EJECTION_TIME: Duration = Duration::from_secs(300);

/// The state of a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BreakerState {
    /// The breaker takes nothing out.
    Closed,
    /// The breaker takes the instance out.
    Open {
        /// When the open time ends.
        until: Timestamp,
        /// What made the breaker open.
        because: TripReason,
    },
    /// The breaker lets one pick at a time through, as a trial.
    HalfOpen {
        /// What had made the breaker open.
        because: TripReason,
    },
}

impl BreakerState {
    /// The word in answers. Words do not change.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open { .. } => "open",
            Self::HalfOpen { .. } => "half_open",
        }
    }

    /// What made the breaker open; `None` while closed.
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
#[non_exhaustive]
pub enum TripReason {
    /// Consecutive failures; a refused connection counts as two.
    ConsecutiveFailures(u32),
    /// Too large a share of the outcomes within the window failed.
    FailureRatio {
        /// The number of failed outcomes.
        failed: u32,
        /// The number of all outcomes.
        total: u32,
    },
    /// A trial failed.
    TrialFailed,
    /// The instance asked not to be called for this time.
    RetryAfter(Duration),
}

/// As in answers and logs: `3 failures in a row`.
impl fmt::Display for TripReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ConsecutiveFailures(failures) => write!(f, "{failures} failures in a row"),
            Self::FailureRatio { failed, total } => write!(f, "{failed} of {total} outcomes failed"),
            Self::TrialFailed => f.write_str("the trial failed"),
            Self::RetryAfter(time) => write!(f, "asked not to be called for {} s", time.as_secs_f64()),
        }
    }
}

/// What made a breaker close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CloseReason {
    /// A trial succeeded.
    TrialSucceeded,
    /// Three trials in a row ended without an outcome.
    TrialsUnknown,
    /// The ejection time ended, and breakers are not enabled, so that there are no trials.
    TimeServed,
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TrialSucceeded => "the trial succeeded",
            Self::TrialsUnknown => "three trials ended without an outcome",
            Self::TimeServed => "the ejection time ended",
        })
    }
}

/// A change of state of a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BreakerStep {
    Opened {
        because: TripReason,
        until: Timestamp,
    },
    HalfOpened,
    /// A trial ended without an outcome. Another pick may be let through.
    TrialUnknown,
    Closed(CloseReason),
}

/// An outcome, reduced to what a breaker counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Evidence {
    Success,
    /// Counts as this number of consecutive failures.
    Failure(u32),
    /// A failed outcome that is not a consecutive failure.
    Rejected,
    /// The same from an address that asks not to be called for this time.
    RejectedFor(Duration),
}

/// Which picks are let through while a breaker is half open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trial {
    /// No trial is in progress.
    None,
    /// A trial has been in progress since this time.
    Since(Timestamp),
    /// Every pick: the pool is in panic mode, or the ejection cap holds the address.
    EveryPick,
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
        unknown_trials: u8,
    },
}

#[derive(Debug, Default)]
pub(crate) struct Breaker {
    state: State,
    since: Timestamp,
    /// Consecutive failures since the last success, or since the breaker closed.
    failures_in_a_row: u32,
    /// The number of openings in a row.
    openings: u32,
    closed_at: Option<Timestamp>,
    /// The failure ratio at the time of the trip. Failed trials change neither the ratio nor the
    /// time of the trip. Otherwise ejected addresses and addresses held by the cap would change
    /// places.
    severity: f32,
    tripped_at: Timestamp,
    /// Whether any outcome was recorded.
    has_outcomes: bool,
}

impl Breaker {
    pub(crate) fn state(&self) -> BreakerState {
        match self.state {
            State::Closed => BreakerState::Closed,
            State::Open { until, because } => BreakerState::Open { until, because },
            State::HalfOpen { because, .. } => BreakerState::HalfOpen { because },
        }
    }

    /// The state, and since when; `None` before the first outcome.
    pub(crate) fn since(&self) -> Option<Since<BreakerState>> {
        self.has_outcomes.then(|| Since {
            state: self.state(),
            since: self.since,
        })
    }

    /// The failure ratio at the time of the trip, and that time. The ejection cap ejects the
    /// largest ratio first.
    pub(crate) fn severity(&self) -> (f32, Timestamp) {
        (self.severity, self.tripped_at)
    }

    /// Records an outcome. `totals` are the outcomes within the window, this one included.
    /// `entropy` is in 0.0..1.0.
    pub(crate) fn record(
        &mut self,
        evidence: Evidence,
        totals: Totals,
        trial: Trial,
        config: &LoadBalancerConfig,
        entropy: f64,
        now: Timestamp,
    ) -> Option<BreakerStep> {
        if !std::mem::replace(&mut self.has_outcomes, true) {
            self.since = now;
        }
        match (self.state, evidence) {
            (State::Closed, Evidence::Success) => {
                self.failures_in_a_row = 0;
                None
            }
            (State::Open { until, because }, Evidence::RejectedFor(time)) => {
                // Of requests that were rejected together, the longest time counts.
                if let TripReason::RetryAfter(_) = because {
                    let until = until.max(now + time.min(config.breaker().open_max()));
                    self.state = State::Open { until, because };
                }
                None
            }
            (State::Open { .. }, _) => None,
            // The request began before the breaker opened.
            (State::HalfOpen { unknown_trials: 0, .. }, _) if trial == Trial::None => None,
            (State::Closed | State::HalfOpen { .. }, Evidence::RejectedFor(time)) if !time.is_zero() => {
                Some(self.open(TripReason::RetryAfter(time), totals, config, entropy, now))
            }
            (State::Closed, Evidence::Failure(_) | Evidence::Rejected | Evidence::RejectedFor(_)) => {
                if let Evidence::Failure(count) = evidence {
                    self.failures_in_a_row = self.failures_in_a_row.saturating_add(count);
                }
                let because = self.trip_reason(totals, config)?;
                Some(self.open(because, totals, config, entropy, now))
            }
            (State::HalfOpen { .. }, Evidence::Success) => Some(self.close(CloseReason::TrialSucceeded, now)),
            (State::HalfOpen { .. }, Evidence::Failure(_) | Evidence::Rejected | Evidence::RejectedFor(_)) => {
                Some(self.open(TripReason::TrialFailed, totals, config, entropy, now))
            }
        }
    }

    /// Makes the state change that is due at `now`.
    pub(crate) fn advance(&mut self, trial: Trial, config: &LoadBalancerConfig, now: Timestamp) -> Option<BreakerStep> {
        match (self.state, trial) {
            (State::Open { until, because }, _) if until <= now => {
                if !config.circuit_breaker_enabled() {
                    return Some(self.close(CloseReason::TimeServed, now));
                }
                self.state = State::HalfOpen {
                    because,
                    unknown_trials: 0,
                };
                self.since = now;
                Some(BreakerStep::HalfOpened)
            }
            (
                State::HalfOpen {
                    because,
                    unknown_trials,
                },
                Trial::Since(then),
            ) if then + TRIAL_TTL <= now => {
                let unknown_trials = unknown_trials + 1;
                if unknown_trials >= MAX_UNKNOWN_TRIALS {
                    return Some(self.close(CloseReason::TrialsUnknown, now));
                }
                self.state = State::HalfOpen {
                    because,
                    unknown_trials,
                };
                Some(BreakerStep::TrialUnknown)
            }
            _ => None,
        }
    }

    /// When [`advance`](Self::advance) should be called next.
    pub(crate) fn next(&self, trial: Trial, now: Timestamp) -> Option<Timestamp> {
        match (self.state, trial) {
            (State::Closed, _) => None,
            (State::Open { until, .. }, _) => Some(until),
            (State::HalfOpen { .. }, Trial::Since(then)) => Some(then + TRIAL_TTL),
            // A pick wakes no timer, and may become the trial at any time.
            (State::HalfOpen { .. }, _) => Some(now + TRIAL_TTL),
        }
    }

    fn trip_reason(&self, totals: Totals, config: &LoadBalancerConfig) -> Option<TripReason> {
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
        let was_closed = self.state == State::Closed;
        let is_recent = |closed_at| now.since(closed_at) < config.breaker().window();
        if was_closed && !self.closed_at.is_some_and(is_recent) {
            self.openings = 0;
        }
        let until = if let TripReason::RetryAfter(time) = because {
            // The time is the instance's own, so neither the series of openings nor chance counts.
            now + time.min(config.breaker().open_max())
        } else {
            self.openings = self.openings.saturating_add(1);
            now + open_time(self.openings, config, entropy)
        };
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

/// The open time of the n-th opening in a row.
fn open_time(openings: u32, config: &LoadBalancerConfig, entropy: f64) -> Duration {
    if !config.circuit_breaker_enabled() {
        return (BASE_EJECTION_TIME * openings.clamp(1, 10)).min(MAX_EJECTION_TIME);
    }
    let breaker = config.breaker();
    let doubled = breaker.open_min().saturating_mul(1 << (openings.clamp(1, 31) - 1));
    doubled.min(breaker.open_max()).mul_f64(0.5 + entropy.clamp(0.0, 1.0))
}
