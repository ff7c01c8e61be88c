//! Changes of an address in its registry: is its registration flapping?
//!
//! A change is another registry status, or a registration that leaves or comes back. Changes at the
//! same moment count as one, so that several registrations of an address that change together do
//! not add up.
//!
//! An address that flaps is taken out at once each time, as any other. Only its return is slow: with
//! a slow start each time, even where slow start is off.

use std::collections::VecDeque;
use std::time::Duration;

use crate::balancer::clock::Timestamp;

/// More changes than these within the window are flapping.
pub(crate) const CALM_CHANGES: usize = 5;
/// How long a change counts.
const WINDOW: Duration = Duration::from_secs(60);
/// The least slow start of an address that flaps.
pub(crate) const LEAST_SLOW_START: Duration = Duration::from_secs(30);

/// The most changes that are kept, and so the most that are counted.
const KEPT: usize = 64;

/// The latest changes of an address, oldest first.
#[derive(Debug, Default)]
pub(crate) struct RegistryChanges(VecDeque<Timestamp>);

impl RegistryChanges {
    /// Records a change. Returns whether the address begins to flap with it.
    pub(crate) fn record(&mut self, now: Timestamp) -> bool {
        if self.0.back() == Some(&now) {
            return false;
        }
        let was_flapping = self.is_flapping(now);
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back(now);
        !was_flapping && self.is_flapping(now)
    }

    /// The number of changes within the window, 64 at most.
    pub(crate) fn count(&self, now: Timestamp) -> usize {
        self.0.iter().rev().take_while(|at| now.since(**at) < WINDOW).count()
    }

    fn is_flapping(&self, now: Timestamp) -> bool {
        self.count(now) > CALM_CHANGES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::default() + Duration::from_secs(seconds)
    }

    #[test]
    fn six_changes_within_a_minute_are_flapping_and_five_are_not() {
        let mut changes = RegistryChanges::default();
        let begins: Vec<bool> = [0, 10, 20, 30, 40, 59].map(at).map(|now| changes.record(now)).into();
        assert_eq!(begins, [false, false, false, false, false, true]);
        assert!(changes.is_flapping(at(59)));
        assert!(!changes.is_flapping(at(60)), "the first change no longer counts");
        assert_eq!((changes.count(at(60)), changes.count(at(119))), (5, 0));
        assert!(changes.record(at(61)), "it begins again");
        assert!(!changes.record(at(62)), "it goes on");

        let mut slow = RegistryChanges::default();
        assert!((0..50).all(|change| !slow.record(at(change * 12))), "five a minute");
    }

    #[test]
    fn changes_at_the_same_moment_are_one_and_few_are_kept() {
        let mut changes = RegistryChanges::default();
        assert!((0..20).all(|_| !changes.record(at(1))));
        assert_eq!(changes.count(at(1)), 1);
        for millisecond in 0..10_000 {
            changes.record(at(2) + Duration::from_millis(millisecond));
        }
        assert_eq!((changes.count(at(12)), changes.0.len()), (KEPT, KEPT));
    }
}
