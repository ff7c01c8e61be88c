//! Round robin, plain and weighted: in turn.
//!
//! The plain one uses 1 for every weight, so that while no factor holds an instance back all have equal shares and the
//! schedule is simply "the next one"; the weighted one follows the smooth weighted sequence. Same machine, other units.

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
