//! Outcomes within a sliding window.

use std::time::Duration;

use crate::balancer::clock::{Timestamp, nanos};

/// Outcomes within a sliding window, in twelve steps.
///
/// Outcomes are counted, not sampled. At a low request rate, `min_outcomes` is reached later.
#[derive(Debug, Default)]
pub(crate) struct OutcomeWindow {
    /// Length of one step in nanoseconds.
    step: u64,
    /// Index of the newest step.
    newest: u64,
    steps: [Totals; WINDOW_STEPS],
}

const WINDOW_STEPS: usize = 12;

/// A number of outcomes, and the number of failed outcomes among them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) total: u32,
    pub(crate) failed: u32,
}

impl Totals {
    /// The share of failed outcomes; 0 without outcomes.
    pub(crate) fn failure_ratio(self) -> f64 {
        f64::from(self.failed) / f64::from(self.total.max(1))
    }
}

impl OutcomeWindow {
    /// Counts an outcome, and returns the totals of the window.
    pub(crate) fn count(&mut self, failed: bool, window: Duration, now: Timestamp) -> Totals {
        self.slide(window, now);
        if let Some(step) = self.steps.get_mut((self.newest % WINDOW_STEPS as u64) as usize) {
            step.total = step.total.saturating_add(1);
            step.failed = step.failed.saturating_add(u32::from(failed));
        }
        self.sum()
    }

    /// The totals of the window that ends at `now`.
    pub(crate) fn totals(&mut self, window: Duration, now: Timestamp) -> Totals {
        self.slide(window, now);
        self.sum()
    }

    /// The time between two moments at which outcomes leave the window.
    pub(crate) fn step(window: Duration) -> Duration {
        window / WINDOW_STEPS as u32
    }

    /// Drops all outcomes.
    pub(crate) fn clear(&mut self) {
        self.steps = [Totals::default(); WINDOW_STEPS];
    }

    fn slide(&mut self, window: Duration, now: Timestamp) {
        let step = nanos(Self::step(window)).max(1);
        if step != self.step {
            // The length of the window has changed: the old steps do not fit the new window.
            self.clear();
            self.step = step;
            self.newest = now.as_nanos() / step;
        }
        let newest = now.as_nanos() / step;
        let passed = newest.saturating_sub(self.newest).min(WINDOW_STEPS as u64);
        for number in 1..=passed {
            if let Some(step) = self
                .steps
                .get_mut(((self.newest + number) % WINDOW_STEPS as u64) as usize)
            {
                *step = Totals::default();
            }
        }
        if passed == WINDOW_STEPS as u64 {
            self.clear();
        }
        self.newest = self.newest.max(newest);
    }

    fn sum(&self) -> Totals {
        self.steps.iter().fold(Totals::default(), |sum, step| Totals {
            total: sum.total.saturating_add(step.total),
            failed: sum.failed.saturating_add(step.failed),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_leave_the_window_in_steps() {
        let at = |seconds| Timestamp::default() + Duration::from_secs(seconds);
        let minute = Duration::from_secs(60);
        let mut window = OutcomeWindow::default();
        for second in (0..60).step_by(5) {
            window.count(second >= 30, minute, at(second));
        }
        let totals = |window: &mut OutcomeWindow, second| {
            let totals = window.totals(minute, at(second));
            (totals.failed, totals.total)
        };
        assert_eq!(totals(&mut window, 59), (6, 12));
        assert_eq!(totals(&mut window, 60), (6, 11));
        assert_eq!(totals(&mut window, 89), (6, 6));
        assert_eq!(totals(&mut window, 114), (1, 1));
        assert_eq!(totals(&mut window, 115), (0, 0));
        assert_eq!(totals(&mut window, 100_000), (0, 0));
        window.count(true, minute, at(100_000));
        assert_eq!(totals(&mut window, 3), (1, 1), "time that goes back takes nothing away");
    }
}
