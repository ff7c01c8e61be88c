//! What happened to the health of an instance, or to its pool.
use std::time::Duration;

use crate::balancer::clock::Timestamp;
use crate::balancer::health::address::Step;
use crate::balancer::health::breaker::{BreakerStep, CloseReason, TripReason};
use crate::balancer::health::checks::{ActiveState, CheckFailure};
use crate::balancer::health::grade::PassiveState;
use crate::balancer::instance::InstanceId;

/// Something that happened to the health of an instance, or to its pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// The instances at the address that it happened to; none if it is about the pool.
    pub instances: Vec<InstanceId>,
    /// What happened.
    pub what: Transitioned,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transitioned {
    /// Active checks pass.
    Up {
        /// They had not run before.
        first: bool,
    },
    /// Active checks fail.
    Down(CheckFailure),
    /// Outcomes grade it otherwise than before.
    Graded {
        /// As what.
        grade: PassiveState,
        /// They had not graded it before.
        first: bool,
    },
    /// Its breaker opened.
    Opened {
        /// Why.
        because: TripReason,
        /// For how long.
        open_for: Duration,
        /// The pool cannot do without it: picked all the same.
        held_by_cap: bool,
    },
    /// Its breaker lets trials through.
    HalfOpened,
    /// Its breaker closed.
    Closed(CloseReason),
    /// So few are usable that all are candidates.
    PanicBegan {
        /// How many are.
        usable: usize,
        /// Of how many.
        eligible: usize,
    },
    /// Enough are usable again.
    PanicEnded,
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
