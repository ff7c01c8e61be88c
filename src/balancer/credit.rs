//! Credit of reports without a lease: as many as there were picks in the last minute.
//!
//! A report without a lease proves nothing, so it is believed only as often as its instance was handed out. The picks are a
//! counter that only grows, and nothing is added to a pick for this: every [`STEP`] somebody notes where the counter stands
//! less what was already reported. The credit is what came on top of the oldest note of the window.
//!
//! ```text
//! picks - reports   12   12   15   21   21   24 ..  30      30 - 12 = 18 reports may come
//! noted at           0    5   10   15   20   25 ..  59 s
//! ```
//!
//! A step that nobody noted has the value of the one before: late notes give more credit, never less.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::clock::Timestamp;
use super::statistics::Striped;

/// How often the counters should be noted.
pub(crate) const STEP: Duration = Duration::from_secs(5);

/// Steps of one window: a minute less what has passed of the present step.
const STEPS: u64 = 12;

/// The credit of one address. A word and a pointer until it is picked.
#[derive(Debug, Default)]
pub(crate) struct Credit(Mutex<Option<Box<Window>>>);

#[derive(Debug)]
struct Window {
    /// Reports that counted. Wraps, as all numbers here do: differences over a minute are small.
    used: u32,
    /// The step noted last.
    step: u64,
    noted: [u32; STEPS as usize],
}

impl Credit {
    /// Takes one report's worth, if there is as much.
    pub(crate) fn take(&self, picks: &Striped, now: Timestamp) -> bool {
        let mut slot = self.lock();
        let window = slot.get_or_insert_with(|| Box::new(Window::new(now)));
        window.note(picks, now);
        let credit = window.balance(picks).wrapping_sub(window.oldest()).cast_signed();
        if credit <= 0 {
            return false;
        }
        window.used = window.used.wrapping_add(1);
        true
    }

    /// Notes where the counters stand. Returns whether there is anything to note again.
    pub(crate) fn note(&self, picks: &Striped, now: Timestamp) -> bool {
        let mut slot = self.lock();
        match slot.as_mut() {
            Some(window) => window.note(picks, now),
            None if picks.total() > 0 => *slot = Some(Box::new(Window::new(now))),
            None => {}
        }
        slot.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Box<Window>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Window {
    /// Everything counted so far was counted just now: an instance is new, or was never picked, until its first note.
    fn new(now: Timestamp) -> Self {
        Self {
            used: 0,
            step: step(now),
            noted: [0; STEPS as usize],
        }
    }

    fn balance(&self, picks: &Striped) -> u32 {
        (picks.total() as u32).wrapping_sub(self.used)
    }

    fn note(&mut self, picks: &Striped, now: Timestamp) {
        let now = step(now);
        let last = self.noted[(self.step % STEPS) as usize];
        // Skipped steps, each once at most.
        for skipped in (self.step + 1..now).rev().take(STEPS as usize) {
            self.noted[(skipped % STEPS) as usize] = last;
        }
        if now > self.step {
            self.noted[(now % STEPS) as usize] = self.balance(picks);
            self.step = now;
        }
    }

    fn oldest(&self) -> u32 {
        self.noted[((self.step + 1) % STEPS) as usize]
    }
}

fn step(now: Timestamp) -> u64 {
    now.as_nanos() / STEP.as_nanos() as u64
}
