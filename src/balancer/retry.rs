//! The retry budget of one service: retries never become most of the load.
//!
//! When every call to a service fails, and every caller tries three times, the service gets three
//! times its load at the worst moment. So retries are bounded by a share of the calls
//! (`retry_budget`, 20 %), and 3 a second beside, for services with few calls. (As Finagle's retry
//! budget.)
//!
//! Calls and retries are counted with a weight that falls by half every seven seconds, so that the
//! budget speaks of the last ten seconds or so, and takes the space of a few numbers. Knows neither
//! picks nor clocks: both come in as arguments.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::clock::Timestamp;

/// The retries that each second allows.
const RETRIES_A_SECOND: f64 = 3.0;
/// The time in which the weight of a call falls to 1 / e.
const MEMORY: Duration = Duration::from_secs(10);
/// How old the number of calls may be: to count them costs more than to ask for a retry.
const CALLS_MAX_AGE: Duration = Duration::from_millis(100);

/// Retries of one service so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RetryStatistics {
    /// Retries that were allowed.
    pub allowed: u64,
    /// Retries that were refused, because the budget was spent or the call had no retry left.
    pub denied: u64,
}

/// The retry budget of one service.
#[derive(Debug)]
pub(crate) struct RetryBudget(Mutex<Memory>);

#[derive(Debug)]
struct Memory {
    /// The time of the two weights.
    at: Timestamp,
    /// When the calls were counted last, and their number.
    counted_at: Timestamp,
    counted: u64,
    /// Calls, each by its weight.
    calls: f64,
    /// Retries, each by its weight.
    retries: f64,
    statistics: RetryStatistics,
}

impl RetryBudget {
    /// A budget of a service that has had no call yet.
    pub(crate) fn new(now: Timestamp) -> Self {
        Self(Mutex::new(Memory {
            at: now,
            counted_at: now,
            counted: 0,
            calls: 0.0,
            retries: 0.0,
            statistics: RetryStatistics::default(),
        }))
    }

    /// Spends one retry. Returns whether there was any. Each call allows `share` retries.
    /// `attempts` is the number of all calls and retries so far.
    pub(crate) fn take(&self, share: f64, attempts: impl FnOnce() -> u64, now: Timestamp) -> bool {
        let mut memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        memory.fade(now);
        if now.since(memory.counted_at) >= CALLS_MAX_AGE {
            memory.count(attempts(), now);
        }
        let most = share * memory.calls + RETRIES_A_SECOND * MEMORY.as_secs_f64();
        let allowed = memory.retries + 1.0 <= most;
        if allowed {
            memory.retries += 1.0;
            memory.statistics.allowed += 1;
        } else {
            memory.statistics.denied += 1;
        }
        allowed
    }

    /// Counts a retry that was refused for another reason.
    pub(crate) fn deny(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).statistics.denied += 1;
    }

    pub(crate) fn statistics(&self) -> RetryStatistics {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).statistics
    }
}

impl Memory {
    fn fade(&mut self, now: Timestamp) {
        let faded = (-now.since(self.at).as_secs_f64() / MEMORY.as_secs_f64()).exp();
        self.calls *= faded;
        self.retries *= faded;
        self.at = now;
    }

    /// Adds the calls since the last count, as if they were spread evenly over that time.
    fn count(&mut self, attempts: u64, now: Timestamp) {
        let calls = attempts.saturating_sub(self.statistics.allowed);
        let since = calls.saturating_sub(self.counted) as f64;
        let ages = now.since(self.counted_at).as_secs_f64() / MEMORY.as_secs_f64();
        self.calls += since * (1.0 - (-ages).exp()) / ages;
        self.counted = self.counted.max(calls);
        self.counted_at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARE: f64 = 0.2;

    /// Retries that pass in the second half of `seconds`, for a service with this many calls a
    /// second that all fail and are all retried twice.
    fn retries_a_second(calls_a_second: u64, seconds: u64) -> f64 {
        let start = Timestamp::default();
        let budget = RetryBudget::new(start);
        let (mut attempts, mut passed) = (0, 0);
        for call in 0..calls_a_second * seconds {
            let now = start + Duration::from_secs_f64(call as f64 / calls_a_second as f64);
            attempts += 1;
            for _ in 0..2 {
                if budget.take(SHARE, || attempts, now) {
                    attempts += 1;
                    passed += u64::from(call >= calls_a_second * seconds / 2);
                }
            }
        }
        passed as f64 / (seconds as f64 / 2.0)
    }

    #[test]
    fn retries_are_a_fifth_of_the_calls_and_three_a_second() {
        for (calls, expected) in [(1, 2.0), (10, 5.0), (100, 23.0), (5_000, 1_003.0)] {
            let passed = retries_a_second(calls, 120);
            assert!(
                (passed / expected - 1.0).abs() < 0.05,
                "{calls} calls a second: {passed}"
            );
        }
    }

    #[test]
    fn calls_of_long_ago_allow_nothing() {
        let start = Timestamp::default();
        let budget = RetryBudget::new(start);
        let now = start + Duration::from_secs(3_600);
        let passed = (0..10_000).filter(|_| budget.take(SHARE, || 1_000_000, now)).count();
        // A million calls in an hour are 278 a second, so about 2,780 in ten seconds.
        assert!((580..=590).contains(&passed), "{passed}");
        let statistics = budget.statistics();
        assert_eq!(
            (statistics.allowed, statistics.denied),
            (passed as u64, 10_000 - passed as u64)
        );
    }

    #[test]
    fn a_spent_budget_is_back_in_half_a_minute() {
        let start = Timestamp::default();
        let budget = RetryBudget::new(start);
        let burst = |now| (0..100).filter(|_| budget.take(SHARE, || 0, now)).count();
        assert_eq!(burst(start), 30);
        assert_eq!(burst(start), 0);
        let later = burst(start + Duration::from_secs(30));
        assert!((28..=29).contains(&later), "{later}");
    }
}
