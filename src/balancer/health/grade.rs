//! Passive grade of an address: outcomes degrade an address before its breaker takes the address
//! out.
//!
//! - *failing*: at least 20 % of the outcomes within the window failed, of at least
//!   `breaker.min_outcomes` outcomes;
//! - *slow*: the recent latency of the address is at least three times the typical latency of its
//!   pool, and at least five milliseconds above that. Recent latency is a moving average over
//!   outcomes, not over time, with weight 1/8 for each new outcome. A single outcome counts as at
//!   most eight times the typical latency: one very slow answer does not make an address slow,
//!   three in a row do.
//!
//! A degraded address is picked less and not taken out. A failing address is ok again below 10 %
//! failures, and a slow address below twice the typical latency: two thresholds, so that the grade
//! does not flap. `least_response_time` compares response times itself; there the grade slow is
//! not used.

use std::fmt;

use super::window::Totals;
use crate::balancer::clock::{Since, Timestamp};

/// An address becomes failing at the first failure ratio, and is ok again below the second.
const FAILING_RATIO: (f64, f64) = (0.20, 0.10);
/// An address becomes slow at the first multiple of the typical latency, and is ok again below the
/// second.
const SLOW_MULTIPLE: (f32, f32) = (3.0, 2.0);
/// Seconds above the typical latency below which an address is never slow: smaller differences are
/// noise.
const SLOW_MARGIN: f32 = 0.005;
/// The weight of a new outcome in the moving average.
const NEW_SAMPLE_WEIGHT: f32 = 1.0 / 8.0;
/// An outcome counts as at most this multiple of the typical latency.
const MAX_SAMPLE_MULTIPLE: f32 = 8.0;

/// The passive grade.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PassiveState {
    /// Outcomes do not degrade the instance.
    Ok,
    /// The instance is picked less.
    Degraded(DegradedReason),
}

impl PassiveState {
    /// The word in answers. Words do not change.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Degraded(_) => "degraded",
        }
    }
}

/// Why outcomes degrade an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DegradedReason {
    /// Too large a share of the outcomes failed.
    Failing,
    /// The instance is much slower than its pool.
    Slow,
}

/// The word in answers. Words do not change.
impl fmt::Display for DegradedReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Failing => "failing",
            Self::Slow => "slow",
        })
    }
}

#[derive(Debug, Default)]
pub(crate) struct Passive {
    current: Option<Since<PassiveState>>,
    /// Moving average of the latency in seconds; 0 before the first sample.
    recent_latency: f32,
    samples: u32,
}

impl Passive {
    /// The grade, and since when; `None` before there were enough outcomes.
    pub(crate) fn since(&self) -> Option<Since<PassiveState>> {
        self.current
    }

    pub(crate) fn is_degraded(&self) -> bool {
        self.current.is_some_and(|current| current.state != PassiveState::Ok)
    }

    /// The recent latency in seconds; 0 before the first sample.
    pub(crate) fn recent_latency(&self) -> f32 {
        self.recent_latency
    }

    /// Records the latency of a success in seconds. `pool_latency` is the typical latency of the
    /// pool.
    pub(crate) fn observe_latency(&mut self, seconds: f32, pool_latency: Option<f32>) {
        let seconds = pool_latency.map_or(seconds, |pool_latency| seconds.min(MAX_SAMPLE_MULTIPLE * pool_latency));
        self.recent_latency = match self.samples {
            0 => seconds,
            _ => self.recent_latency + (seconds - self.recent_latency) * NEW_SAMPLE_WEIGHT,
        };
        self.samples = self.samples.saturating_add(1);
    }

    /// Grades the address again. `pool_latency` is the typical latency of the pool in seconds, if
    /// enough addresses have one. Returns the new grade if the grade changed.
    pub(crate) fn update(
        &mut self,
        totals: Totals,
        pool_latency: Option<f32>,
        min_outcomes: u32,
        now: Timestamp,
    ) -> Option<PassiveState> {
        let before = self.current.map(|current| current.state);
        let ratio = totals.failure_ratio();
        let enough = totals.total >= min_outcomes;
        let slower_than = |times: f32| {
            pool_latency.is_some_and(|pool_latency| {
                self.recent_latency >= (times * pool_latency).max(pool_latency + SLOW_MARGIN)
            })
        };
        let failing = match before {
            Some(PassiveState::Degraded(DegradedReason::Failing)) => ratio >= FAILING_RATIO.1,
            _ => enough && ratio >= FAILING_RATIO.0,
        };
        // Without outcomes within the window the address does not stay slow.
        let slow = totals.total > 0
            && match before {
                Some(PassiveState::Degraded(DegradedReason::Slow)) => slower_than(SLOW_MULTIPLE.1),
                _ => self.samples >= min_outcomes && slower_than(SLOW_MULTIPLE.0),
            };
        let next = match (failing, slow) {
            (true, _) => PassiveState::Degraded(DegradedReason::Failing),
            (false, true) => PassiveState::Degraded(DegradedReason::Slow),
            (false, false) if before.is_none() && !enough => return None,
            (false, false) => PassiveState::Ok,
        };
        if before == Some(next) {
            return None;
        }
        self.current = Some(Since {
            state: next,
            since: now,
        });
        Some(next)
    }

    /// Resets the grade: outcomes from before an ejection do not describe the recovered address.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }
}
