//! Least response time: the least `latency x (in flight + 1) / effective weight` of two random candidates.
//!
//! Latency is the peak EWMA of [`statistics`](crate::balancer::statistics). What others got wrong, and this does not:
//!
//! - a fast failure is not a fast answer: failures cost at least twice the pool's median (see `finish`);
//! - an instance without samples counts as the pool's median: neither flooded nor starved;
//! - the loser of a comparison that was not picked for 3 s is tried once, so one bad sample is no life sentence. Not while the
//!   winner was left alone as long: then the pool is merely quiet;
//! - without outcomes in the last 60 s there is nothing to compare: the weighted schedule, and [`Mode`] says so.

use std::sync::Arc;
use std::time::Duration;

use super::schedule::{Schedule, Turn, below};
use super::{Contenders, Draw, Mode, Strategy, contenders};
use crate::balancer::clock::{Clock, Timestamp};
use crate::balancer::config::Choices;
use crate::balancer::pool::{Load, Slot};

/// Who was not picked for so long is tried once.
const RETRY_AFTER: Duration = Duration::from_secs(3);
/// Without an outcome for so long, averages say nothing.
const REPORTS_WITHIN: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct LeastResponseTime {
    schedule: Schedule,
    turn: Arc<Turn>,
    choices: Choices,
}

/// A candidate as it looks now.
struct Contender<'a> {
    index: usize,
    slot: &'a Slot,
    cost: f32,
}

impl LeastResponseTime {
    pub(crate) fn new(schedule: Schedule, turn: Arc<Turn>, choices: Choices) -> Self {
        Self {
            schedule,
            turn,
            choices,
        }
    }

    fn look<'a>(draw: &Draw<'a>, index: usize, median: f32, now: Timestamp) -> Option<Contender<'a>> {
        let slot = draw.slots.get(index).filter(|_| draw.admits(index))?;
        let latency = slot.live.response_time(now).unwrap_or(median);
        let cost = latency * (slot.live.in_flight() as f32 + 1.0) / slot.units as f32;
        Some(Contender { index, slot, cost })
    }

    /// The better of two, unless the worse one is due to be tried.
    fn better<'a>(a: Contender<'a>, b: Contender<'a>, now: Timestamp) -> Contender<'a> {
        let (winner, loser) = if b.cost < a.cost { (b, a) } else { (a, b) };
        if winner.slot.live.picked_within(RETRY_AFTER, now) && loser.slot.live.claim_retry(RETRY_AFTER, now) {
            return loser;
        }
        winner
    }
}

fn no_reports(load: &Load, now: Timestamp) -> bool {
    load.reported_at().is_none_or(|at| now.since(at) > REPORTS_WITHIN)
}

impl Strategy for LeastResponseTime {
    fn choose(&self, draw: &Draw<'_>) -> Option<usize> {
        let now = draw.clock.now();
        if no_reports(draw.load, now) {
            return draw.or_redrawn(self.schedule.next(&self.turn), &self.schedule);
        }
        let count = draw.slots.len();
        let median = draw.load.median();
        let look = |index| Self::look(draw, index, median, now);
        let chosen = match contenders(count, self.choices, 2) {
            Contenders::All => {
                let start = below(count);
                (start..count)
                    .chain(0..start)
                    .filter_map(look)
                    .reduce(|a, b| Self::better(a, b, now))
            }
            Contenders::Some(number) => {
                let first = below(count);
                let others = (1..number).map(|_| (first + 1 + below(count - 1)) % count);
                std::iter::once(first)
                    .chain(others)
                    .filter_map(look)
                    .reduce(|a, b| Self::better(a, b, now))
            }
        };
        let index = match chosen {
            Some(contender) => contender.index,
            None => draw.redraw(&self.schedule, |_| false)?,
        };
        if let Some(slot) = draw.slots.get(index) {
            slot.live.mark_picked(now);
        }
        Some(index)
    }

    fn mode(&self, load: &Load, clock: &dyn Clock) -> Mode {
        if no_reports(load, clock.now()) {
            Mode::NoReports
        } else {
            Mode::Normal
        }
    }

    fn schedule(&self) -> &Schedule {
        &self.schedule
    }
}
