//! Random: each candidate is equally likely, except that a degraded factor or a slow start lowers
//! the probability.

use super::draw::{Draw, Strategy};
use super::schedule::Schedule;

#[derive(Debug)]
pub(crate) struct Random {
    schedule: Schedule,
}

impl Random {
    pub(crate) fn new(schedule: Schedule) -> Self {
        Self { schedule }
    }
}

impl Strategy for Random {
    #[inline]
    fn choose(&self, draw: &Draw<'_>) -> Option<usize> {
        draw.or_redrawn(self.schedule.draw(), &self.schedule)
    }

    fn schedule(&self) -> &Schedule {
        &self.schedule
    }
}
