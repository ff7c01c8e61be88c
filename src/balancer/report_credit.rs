//! Credit for reports without a lease: each pick of the last minute allows one report.
//!
//! A report without a lease carries no proof of a pick, so an instance gets at most as many such
//! reports as picks. Picks are a counter that only grows, and the credit adds no work to a pick:
//! every [`STEP`] the balancer records the value of the counter. A report spends the oldest pick
//! that is not spent and not older than the oldest recorded value.
//!
//! ```text
//!               recorded a minute ago  spent so far            now
//! picks  0 ─────────────┴──────────────────┴───────────────────┴──►
//!            too old          paid for        credit is left
//! ```
//!
//! A step without a recorded value has the value of the step before. A late recording gives more
//! credit, never less.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::clock::Timestamp;

/// How often the counters should be recorded.
pub(crate) const STEP: Duration = Duration::from_secs(5);

/// Steps of one window: a minute less the elapsed part of the present step.
const STEPS: u64 = 12;

/// The credit of one address. Takes the space of a lock and a pointer until the address is picked.
#[derive(Debug, Default)]
pub(crate) struct Credit(Mutex<Option<Box<Window>>>);

#[derive(Debug)]
struct Window {
    /// The number of the last pick that a report has spent. Numbers of picks wrap in this module: a
    /// minute has fewer than 2^31 picks.
    spent: u32,
    /// The last step with a recorded value.
    step: u64,
    /// The number of the last pick before each step.
    recorded: [u32; STEPS as usize],
}

impl Credit {
    /// Spends the credit for one report. Returns whether there was any.
    pub(crate) fn take(&self, picks: u64, now: Timestamp) -> bool {
        let mut slot = self.lock();
        let window = slot.get_or_insert_with(|| Box::new(Window::new(now)));
        window.record(picks, now);
        window.spend(picks as u32)
    }

    /// Records the value of the counter. Returns whether there is a window, so that the counter
    /// should be recorded again.
    pub(crate) fn record(&self, picks: u64, now: Timestamp) -> bool {
        let mut slot = self.lock();
        match slot.as_mut() {
            Some(window) => window.record(picks, now),
            None if picks > 0 => *slot = Some(Box::new(Window::new(now))),
            None => {}
        }
        slot.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Box<Window>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Window {
    /// A new window: all picks so far count as made now, because the address was not picked before,
    /// or is new.
    fn new(now: Timestamp) -> Self {
        Self {
            spent: 0,
            step: step(now),
            recorded: [0; STEPS as usize],
        }
    }

    fn record(&mut self, picks: u64, now: Timestamp) {
        let now = step(now);
        let last = self.recorded[(self.step % STEPS) as usize];
        // Every skipped step gets the last recorded value, each step at most once.
        for skipped in (self.step + 1..now).rev().take(STEPS as usize) {
            self.recorded[(skipped % STEPS) as usize] = last;
        }
        if now > self.step {
            self.recorded[(now % STEPS) as usize] = picks as u32;
            self.step = now;
        }
    }

    /// Spends a pick, if a pick is left.
    fn spend(&mut self, picks: u32) -> bool {
        let is_before = |a: u32, b: u32| a.wrapping_sub(b).cast_signed() < 0;
        let too_old = self.recorded[((self.step + 1) % STEPS) as usize];
        if is_before(self.spent, too_old) {
            self.spent = too_old;
        }
        let left = is_before(self.spent, picks);
        if left {
            self.spent = self.spent.wrapping_add(1);
        }
        left
    }
}

fn step(now: Timestamp) -> u64 {
    now.as_nanos() / STEP.as_nanos() as u64
}

/// When the step after the present one begins.
pub(crate) fn next_step(now: Timestamp) -> Timestamp {
    Timestamp::from_nanos((step(now) + 1) * STEP.as_nanos() as u64)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    struct Instance {
        picks: Cell<u64>,
        credit: Credit,
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp::default() + Duration::from_secs(1_000_000 + seconds)
    }

    impl Instance {
        fn new() -> Self {
            Self {
                picks: Cell::new(0),
                credit: Credit::default(),
            }
        }

        fn pick(&self, times: u64) {
            self.picks.set(self.picks.get() + times);
        }

        fn record(&self, seconds: impl IntoIterator<Item = u64>) {
            for second in seconds {
                self.credit.record(self.picks.get(), at(second));
            }
        }

        /// How many of a hundred reports are accepted.
        fn reports(&self, second: u64) -> usize {
            (0..100)
                .filter(|_| self.credit.take(self.picks.get(), at(second)))
                .count()
        }
    }

    #[test]
    fn as_many_reports_count_as_there_were_picks() {
        let instance = Instance::new();
        assert_eq!(instance.reports(0), 0);
        instance.pick(3);
        assert_eq!(instance.reports(0), 3);
        assert_eq!(instance.reports(1), 0);
        instance.pick(2);
        assert_eq!(instance.reports(54), 2);
    }

    #[test]
    fn picks_of_more_than_a_minute_ago_give_no_credit() {
        let instance = Instance::new();
        instance.pick(7);
        instance.record((0..=50).step_by(5));
        assert_eq!(instance.reports(54), 7);
        let instance = Instance::new();
        instance.record((0..=20).step_by(5));
        instance.pick(7);
        instance.record((25..=80).step_by(5));
        instance.pick(4);
        instance.record([85]);
        assert_eq!(instance.reports(86), 4);
    }

    #[test]
    fn a_report_spends_the_oldest_pick() {
        let instance = Instance::new();
        instance.pick(10);
        instance.record((0..60).step_by(5));
        instance.pick(10);
        assert_eq!(instance.reports(61), 10);
        instance.record((65..120).step_by(5));
        instance.pick(3);
        assert_eq!(instance.reports(119), 3);
        instance.record((120..400).step_by(5));
        instance.pick(3);
        assert_eq!(instance.reports(400), 3);
        // Consecutive requests of 50 s each: every report is accepted.
        let instance = Instance::new();
        for round in 0..20 {
            instance.pick(1);
            instance.record((round * 50..=round * 50 + 50).step_by(5));
            assert_eq!(instance.reports(round * 50 + 50), 1, "{round}");
        }
    }

    #[test]
    fn the_counter_may_wrap() {
        let mut window = Window::new(at(0));
        window.spent = u32::MAX - 1;
        window.recorded = [u32::MAX - 3; STEPS as usize];
        assert!((0..3).all(|_| window.spend(2)) && window.spend(2) && !window.spend(2));
    }

    #[test]
    fn a_late_record_gives_more_credit_and_never_less() {
        let instance = Instance::new();
        instance.pick(5);
        instance.record([0, 5]);
        instance.pick(2);
        assert_eq!(instance.reports(500), 2, "two came since the last note");
        instance.pick(1);
        assert_eq!(instance.reports(100_000), 1);
    }

    #[test]
    fn an_instance_that_is_never_picked_needs_no_window() {
        let instance = Instance::new();
        assert!(!instance.credit.record(instance.picks.get(), at(0)));
        assert!(instance.credit.lock().is_none());
        instance.pick(1);
        assert!(instance.credit.record(instance.picks.get(), at(5)));
    }
}
