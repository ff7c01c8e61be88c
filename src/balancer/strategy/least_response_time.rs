//! Least response time: the least `latency x (in flight + 1) / effective weight` of two random
//! candidates.
//!
//! Latency is the peak EWMA of [`statistics`](crate::balancer::statistics). The strategy avoids
//! the known mistakes of this method:
//!
//! - A fast failure is not a fast answer: a failure costs at least twice the pool's median (see
//!   `finish`).
//! - An instance without samples counts as the pool's median, so that it is neither flooded nor
//!   starved.
//! - An instance that loses a comparison and was not picked for three seconds is picked once, so
//!   that one bad sample does not exclude the instance for ever. This does not apply if the winner
//!   was not picked for three seconds either: then the pool has little traffic.
//! - Without outcomes in the last minute there is no latency to compare: the strategy follows the
//!   weighted schedule, and [`Mode`] says so.

use std::sync::Arc;
use std::time::Duration;

use super::draw::{Compared, Draw, Mode, Strategy};
use super::schedule::{Schedule, Turn, below, other_than};
use crate::balancer::clock::Timestamp;
use crate::balancer::config::Choices;
use crate::balancer::live::{Live, Load};

/// The loser of a comparison is picked once if it was not picked for this long.
const RETRY_AFTER: Duration = Duration::from_secs(3);
/// If the last outcome of the pool is older than this, latencies are not compared.
const MAX_REPORT_AGE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct LeastResponseTime {
    schedule: Schedule,
    turn: Arc<Turn>,
    compared: Compared,
}

/// A candidate with its present cost.
#[derive(Clone, Copy)]
struct Candidate<'a> {
    index: usize,
    live: &'a Live,
    /// Latency in seconds x (in flight + 1).
    load: f32,
    units: f32,
}

impl Candidate<'_> {
    /// Whether `load / units` is less than that of `other`; compared without dividing.
    #[inline]
    fn costs_less_than(&self, other: &Self) -> bool {
        self.load * other.units < other.load * self.units
    }
}

impl LeastResponseTime {
    pub(crate) fn new(schedule: Schedule, turn: Arc<Turn>, count: usize, choices: Choices) -> Self {
        Self {
            schedule,
            turn,
            compared: Compared::of(count, choices, 2),
        }
    }

    /// The cheapest acceptable candidate of `indexes`.
    #[inline]
    fn best_of(draw: &Draw<'_>, indexes: impl Iterator<Item = usize>, now: Timestamp) -> Option<usize> {
        let median = draw.load.median();
        let mut best: Option<Candidate<'_>> = None;
        for index in indexes {
            let Some(slot) = draw.slots.get(index).filter(|_| draw.admits(index)) else {
                continue;
            };
            let latency = slot.live.response_time(now).unwrap_or(median);
            let next = Candidate {
                index,
                live: &slot.live,
                load: latency * (slot.live.in_flight() as f32 + 1.0),
                units: slot.units as f32,
            };
            best = Some(best.map_or(next, |best| Self::cheaper(best, next, now)));
        }
        let best = best?;
        best.live.mark_picked(now);
        Some(best.index)
    }

    /// The cheaper of two candidates, unless the other one is due to be picked once.
    #[inline]
    fn cheaper<'a>(a: Candidate<'a>, b: Candidate<'a>, now: Timestamp) -> Candidate<'a> {
        let (winner, loser) = if b.costs_less_than(&a) { (b, a) } else { (a, b) };
        if winner.live.picked_within(RETRY_AFTER, now) && loser.live.claim_retry_pick(RETRY_AFTER, now) {
            return loser;
        }
        winner
    }
}

fn no_reports(load: &Load, now: Timestamp) -> bool {
    load.reported_at().is_none_or(|at| !now.is_within(MAX_REPORT_AGE, at))
}

impl Strategy for LeastResponseTime {
    #[inline(never)]
    fn choose(&self, draw: &Draw<'_>) -> Option<usize> {
        let now = draw.load.now();
        if no_reports(draw.load, now) {
            return draw.or_redrawn(self.schedule.next(&self.turn), &self.schedule);
        }
        let count = draw.slots.len();
        let first = below(count);
        let best = match self.compared {
            Compared::All => Self::best_of(draw, (first..count).chain(0..first), now),
            Compared::Random(number) => {
                let index = |number| if number == 0 { first } else { other_than(first, count) };
                Self::best_of(draw, (0..number).map(index), now)
            }
        };
        best.or_else(|| {
            let index = draw.redraw(&self.schedule, |_| false)?;
            draw.slots.get(index)?.live.mark_picked(now);
            Some(index)
        })
    }

    fn mode(&self, load: &Load) -> Mode {
        if no_reports(load, load.now()) {
            Mode::NoReports
        } else {
            Mode::Normal
        }
    }

    fn schedule(&self) -> &Schedule {
        &self.schedule
    }
}
