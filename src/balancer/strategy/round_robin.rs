//! Round robin, plain and weighted: candidates in turn.
//!
//! The plain strategy uses 1 for every weight, so that while no factor holds an instance back all
//! candidates have equal shares, and the schedule is "the next candidate". The weighted strategy
//! follows the smooth weighted sequence. Both use the same schedule with different units.

use std::sync::Arc;

use super::draw::{Draw, Strategy};
use super::schedule::{Schedule, Turn};

#[derive(Debug)]
pub(crate) struct RoundRobin {
    schedule: Schedule,
    turn: Arc<Turn>,
}

impl RoundRobin {
    pub(crate) fn new(schedule: Schedule, turn: Arc<Turn>) -> Self {
        Self { schedule, turn }
    }
}

impl Strategy for RoundRobin {
    #[inline]
    fn choose(&self, draw: &Draw<'_>) -> Option<usize> {
        draw.or_redrawn(self.schedule.next(&self.turn), &self.schedule)
    }

    fn schedule(&self) -> &Schedule {
        &self.schedule
    }
}
