//! Transitions of the health of an instance or a pool.
use std::time::Duration;

use crate::balancer::adaptive::{MeasuredBy, Thousandths};
use crate::balancer::clock::Timestamp;
use crate::balancer::health::address::Step;
use crate::balancer::health::breaker::{BreakerStep, CloseReason, TripReason};
use crate::balancer::health::checks::{ActiveState, CheckFailure};
use crate::balancer::health::grade::PassiveState;
use crate::balancer::instance::{InstanceId, Tier};

/// A transition of the health of an instance or a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Transition {
    /// The instances at the address; empty for a transition of the pool.
    pub instances: Vec<InstanceId>,
    /// The kind of transition.
    pub what: Transitioned,
}

/// The kind of transition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Transitioned {
    /// Active checks pass.
    Up {
        /// Whether this is the first result.
        first: bool,
    },
    /// Active checks fail.
    Down(CheckFailure),
    /// Outcomes changed the grade.
    Graded {
        /// The new grade.
        grade: PassiveState,
        /// Whether this is the first grade.
        first: bool,
    },
    /// The breaker opened.
    Opened {
        /// The reason.
        because: TripReason,
        /// How long the breaker stays open.
        open_for: Duration,
        /// The cap keeps the instance in the pool.
        held_by_cap: bool,
    },
    /// The breaker is half open and lets trials through.
    HalfOpened,
    /// The breaker closed.
    Closed(CloseReason),
    /// Panic mode began: too few instances are usable, so all eligible instances are candidates.
    PanicBegan {
        /// Usable instances.
        usable: usize,
        /// Eligible instances.
        eligible: usize,
    },
    /// Panic mode ended: enough instances are usable.
    PanicEnded,
    /// The registry calls every instance critical, and the critical instances are candidates.
    FailOpenBegan {
        /// Critical instances that are candidates.
        instances: usize,
    },
    /// The registry no longer calls every instance critical.
    FailOpenEnded,
    /// The registration flaps: it changed more than five times within a minute. Each return is a slow
    /// start.
    Flapping {
        /// Changes within the last minute.
        changes: usize,
    },
    /// Adaptive weights changed the factor of the instance.
    Adjusted {
        /// The factor before.
        before: Thousandths,
        /// The factor now.
        now: Thousandths,
        /// The score as a multiple of the mean score of the pool; `None` with too few outcomes.
        relative_score: Option<Thousandths>,
        /// Where the response times come from.
        measured_by: Option<MeasuredBy>,
    },
    /// Another tier is in turn.
    TierChanged {
        /// The tier in turn before.
        before: Tier,
        /// The tier in turn now.
        now: Tier,
    },
}

pub(super) fn transitioned(step: Step, held_by_cap: bool, now: Timestamp) -> Option<Transitioned> {
    Some(match step {
        Step::Active {
            state: ActiveState::Up,
            first,
        } => Transitioned::Up { first },
        Step::Active {
            state: ActiveState::Down(why),
            ..
        } => Transitioned::Down(why),
        Step::Passive { grade, first } => Transitioned::Graded { grade, first },
        Step::Breaker(BreakerStep::Opened { because, until }) => Transitioned::Opened {
            because,
            open_for: until.since(now),
            held_by_cap,
        },
        Step::Breaker(BreakerStep::HalfOpened) => Transitioned::HalfOpened,
        Step::Breaker(BreakerStep::Closed(because)) => Transitioned::Closed(because),
        Step::Breaker(BreakerStep::TrialUnknown) => return None,
    })
}
