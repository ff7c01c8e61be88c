//! Slow start: the ramp of an instance that recovered, or joined a pool that already serves.
//!
//! ```text
//! factor    1 ┤                  ┌───
//!             │            ┌─────┘          t / slow_start, rounded down to sixteenths
//!        1/16 ┼──┬─────────┘                so that shares stay small numbers; never below 1/16
//!             └──┴──────────────────► t
//! ```
//!
//! The ramp is linear, as in HAProxy, and applies in every strategy: caches fill and connections
//! open while the instance gets few requests. (Envoy's floor of 0.1 would be two sixteenths; with
//! 1/16 a recovered instance gets at most a tenth in its first second.) If all instances of a pool
//! are on the ramp together, their shares do not change, because shares are relative.

use std::time::Duration;

use crate::balancer::clock::{Timestamp, nanos};

/// Number of steps of the ramp.
pub(crate) const STEPS: u32 = 16;

/// The factor at `now` of a ramp that began at `from`, in sixteenths, 1..=16.
pub(crate) fn sixteenths(from: Option<Timestamp>, ramp: Duration, now: Timestamp) -> u32 {
    let Some(from) = from.filter(|_| !ramp.is_zero()) else {
        return STEPS;
    };
    let steps = u128::from(nanos(now.since(from))) * u128::from(STEPS) / u128::from(nanos(ramp));
    (steps.min(u128::from(STEPS)) as u32).max(1)
}

/// When the factor changes next; `None` once the factor is 1.
pub(crate) fn next_step(from: Timestamp, ramp: Duration, now: Timestamp) -> Option<Timestamp> {
    let reached = sixteenths(Some(from), ramp, now);
    (reached < STEPS)
        .then(|| from + Duration::from_nanos((nanos(ramp) / u64::from(STEPS) + 1) * u64::from(reached + 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAMP: Duration = Duration::from_secs(30);

    fn at(milliseconds: u64) -> Timestamp {
        Timestamp::default() + Duration::from_millis(milliseconds)
    }

    #[test]
    fn the_ramp_is_linear_in_sixteenths_and_never_nothing() {
        let factor = |milliseconds: u64| sixteenths(Some(at(1_000)), RAMP, at(1_000 + milliseconds));
        assert_eq!(
            [0, 1_000, 3_749, 3_750, 15_000, 29_999, 30_000, 90_000].map(factor),
            [1, 1, 1, 2, 8, 15, 16, 16]
        );
        assert_eq!(sixteenths(None, RAMP, at(5)), 16);
        assert_eq!(sixteenths(Some(at(5)), Duration::ZERO, at(5)), 16);
    }

    #[test]
    fn each_step_is_announced() {
        let (mut now, mut steps) = (at(0), Vec::new());
        while let Some(next) = next_step(at(0), RAMP, now) {
            assert!(next > now);
            now = next;
            steps.push(sixteenths(Some(at(0)), RAMP, now));
        }
        assert_eq!(steps, (2..=16).collect::<Vec<_>>());
    }
}
