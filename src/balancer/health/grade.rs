//! Passive grading: what outcomes say of an address before they take it out.
//!
//! - *failing*: at least a fifth of the outcomes within the window failed (there must be `breaker.min_outcomes` of them);
//! - *slow*: what it needed lately is at least three times what is usual in its pool, and five milliseconds more. "Lately" is an average over outcomes, not
//!   over time, with weight 1/8 for each new one, and none counts for more than eight times the usual: one that took
//!   very long does not make an instance slow, three in a row do.
//!
//! Either makes it degraded: picked less, not taken out. It is ok again below half of the first, or twice the usual:
//! two thresholds, so that it does not flap. `least_response_time` compares response times itself; there slow is not counted
//! a second time.

use std::fmt;

use super::window::Totals;
use crate::balancer::clock::{Since, Timestamp};

/// Degraded from this share of failed outcomes on, and ok below the second.
const FAILING: (f64, f64) = (0.20, 0.10);
/// Degraded from this multiple of what is usual in the pool on, and ok below the second.
const SLOW: (f32, f32) = (3.0, 2.0);
/// And by so many seconds at least: below that it is noise.
const SLOW_BY: f32 = 0.005;
/// The weight of the newest outcome.
const NEWEST: f32 = 1.0 / 8.0;
/// No outcome counts for more than this many times the usual.
const AT_MOST: f32 = 8.0;

/// What outcomes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PassiveState {
    /// No objection.
    Ok,
    /// Picked less.
    Degraded(DegradedReason),
}

impl PassiveState {
    /// The word for it in answers. Words do not change.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Degraded(_) => "degraded",
        }
    }
}

/// Why an instance is picked less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DegradedReason {
    /// Too many of its outcomes failed.
    Failing,
    /// It is much slower than the others.
    Slow,
}

/// The word for it in answers. Words do not change.
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
    said: Option<Since<PassiveState>>,
    /// Seconds; 0 before the first.
    lately: f32,
    timed: u32,
}

impl Passive {
    /// What outcomes say; `None` before there were enough.
    pub(crate) fn since(&self) -> Option<Since<PassiveState>> {
        self.said
    }

    pub(crate) fn is_degraded(&self) -> bool {
        self.said.is_some_and(|said| said.state != PassiveState::Ok)
    }

    /// What it needed lately, in seconds.
    pub(crate) fn lately(&self) -> f32 {
        self.lately
    }

    /// Takes the seconds that an answer took.
    pub(crate) fn took(&mut self, seconds: f32, usual: Option<f32>) {
        let seconds = usual.map_or(seconds, |usual| seconds.min(AT_MOST * usual));
        self.lately = match self.timed {
            0 => seconds,
            _ => self.lately + (seconds - self.lately) * NEWEST,
        };
        self.timed = self.timed.saturating_add(1);
    }

    /// Judges anew. `usual` is what is usual in its pool, in seconds, where there is something to compare with. Returns what
    /// outcomes say from now on, if that is something else than before.
    pub(crate) fn judge(
        &mut self,
        totals: Totals,
        usual: Option<f32>,
        min_outcomes: u32,
        now: Timestamp,
    ) -> Option<PassiveState> {
        let before = self.said.map(|said| said.state);
        let ratio = totals.failure_ratio();
        let enough = totals.total >= min_outcomes;
        let slower_than = |times: f32| usual.is_some_and(|usual| self.lately >= (times * usual).max(usual + SLOW_BY));
        let failing = match before {
            Some(PassiveState::Degraded(DegradedReason::Failing)) => ratio >= FAILING.1,
            _ => enough && ratio >= FAILING.0,
        };
        // Without outcomes it is not known to be slow any more.
        let slow = totals.total > 0
            && match before {
                Some(PassiveState::Degraded(DegradedReason::Slow)) => slower_than(SLOW.1),
                _ => self.timed >= min_outcomes && slower_than(SLOW.0),
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
        self.said = Some(Since {
            state: next,
            since: now,
        });
        Some(next)
    }

    /// Forgets what it learned: after it was out, what was before says nothing.
    pub(crate) fn forget(&mut self) {
        *self = Self::default();
    }
}
