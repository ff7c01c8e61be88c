//! Least connections: the least `(in flight + 1) / effective weight`.
//!
//! Up to 32 candidates all are compared, above that the best of two random candidates is chosen
//! (the setting `choices` overrides this). Among equal candidates, the first from a rotating start
//! wins. While no request at all is in flight, callers do not report when requests end, and every
//! candidate looks idle: the strategy then follows the weighted schedule, and [`Mode`] says so.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::draw::{Compared, Draw, Mode, Strategy};
use super::schedule::{Modulo, Schedule, Turn, below, other_than};
use crate::balancer::config::Choices;
use crate::balancer::live::Load;
use crate::balancer::member::Slot;

/// Up to this number of candidates, comparing all costs less than the precision that two random
/// candidates lose.
const EXACT_UP_TO: usize = 32;

#[derive(Debug)]
pub(crate) struct LeastConnections {
    schedule: Schedule,
    turn: Arc<Turn>,
    count: Modulo,
    compared: Compared,
}

impl LeastConnections {
    pub(crate) fn new(schedule: Schedule, turn: Arc<Turn>, count: usize, choices: Choices) -> Self {
        Self {
            schedule,
            turn,
            count: Modulo::new(count as u32),
            compared: Compared::of(count, choices, EXACT_UP_TO),
        }
    }

    /// The least loaded acceptable candidate, with a start that rotates from pick to pick.
    fn of_all(&self, draw: &Draw<'_>) -> Option<usize> {
        let start = self.count.of(self.turn.next());
        let (before, after) = draw.slots.split_at_checked(start)?;
        let in_order = (start..).zip(after).chain((0..).zip(before));
        let mut best: Option<(usize, Cost)> = None;
        for (index, slot) in in_order {
            let cost = Cost::of(slot);
            if best.as_ref().is_none_or(|(_, least)| cost.is_less_than(least)) && draw.admits(index) {
                best = Some((index, cost));
            }
        }
        best.map(|(index, _)| index)
    }

    /// The least loaded of `number` random candidates.
    fn of_random(&self, draw: &Draw<'_>, number: usize) -> Option<usize> {
        let count = draw.slots.len();
        let first = below(count);
        let mut best: Option<(usize, Cost)> = None;
        for draw_number in 0..number {
            // The second candidate always differs from the first. Further candidates may repeat,
            // which only costs a comparison.
            let index = match draw_number {
                0 => first,
                _ => other_than(first, count),
            };
            let Some(slot) = draw.slots.get(index) else { continue };
            let cost = Cost::of(slot);
            if best.as_ref().is_none_or(|(_, least)| cost.is_less_than(least)) && draw.admits(index) {
                best = Some((index, cost));
            }
        }
        best.map(|(index, _)| index)
            .or_else(|| draw.redraw(&self.schedule, |_| false))
    }
}

/// `(in flight + 1) / units`, compared without dividing.
struct Cost {
    load: u64,
    units: u64,
}

impl Cost {
    #[inline]
    fn of(slot: &Slot) -> Self {
        Self {
            load: u64::from(slot.live.in_flight()) + 1,
            units: u64::from(slot.units),
        }
    }

    #[inline]
    fn is_less_than(&self, other: &Self) -> bool {
        self.load * other.units < other.load * self.units
    }
}

impl Strategy for LeastConnections {
    #[inline(never)]
    fn choose(&self, draw: &Draw<'_>) -> Option<usize> {
        if draw.load.in_flight.load(Ordering::Relaxed) == 0 {
            return draw.or_redrawn(self.schedule.next(&self.turn), &self.schedule);
        }
        match self.compared {
            Compared::All => self.of_all(draw),
            Compared::Random(number) => self.of_random(draw, number),
        }
    }

    fn mode(&self, load: &Load) -> Mode {
        if load.in_flight.load(Ordering::Relaxed) == 0 {
            Mode::NothingInFlight
        } else {
            Mode::Normal
        }
    }

    fn schedule(&self) -> &Schedule {
        &self.schedule
    }
}
