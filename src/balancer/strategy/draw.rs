//! All that a strategy may look at for one pick, and how candidates are drawn by weight.

use super::schedule::Schedule;
use crate::balancer::config::Choices;
use crate::balancer::context::Context;
use crate::balancer::health::ejection::Admission;
use crate::balancer::live::Load;
use crate::balancer::member::{Member, Slot};

/// Whether a pick looks at what has changed since its view was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attention {
    /// Nothing has.
    None,
    /// It does, and takes one that is on trial if nobody has it.
    WithTrials,
    /// It does, and leaves those on trial alone.
    WithoutTrials,
}

/// All that a strategy may look at for one pick.
pub(crate) struct Draw<'a> {
    /// The candidates: each could be picked when the view was made.
    pub(crate) slots: &'a [Slot],
    /// The members that slots point to.
    pub(crate) members: &'a [Member],
    /// What the caller asked for.
    pub(crate) context: &'a Context<'a>,
    /// What is known of the service as a whole.
    pub(crate) load: &'a Load,
    attention: Attention,
    /// Every candidate is acceptable.
    admits_all: bool,
}

impl<'a> Draw<'a> {
    #[inline]
    pub(crate) fn new(
        slots: &'a [Slot],
        members: &'a [Member],
        context: &'a Context<'a>,
        load: &'a Load,
        attention: Attention,
    ) -> Self {
        Self {
            slots,
            members,
            context,
            load,
            attention,
            admits_all: attention == Attention::None && context.admits_all(),
        }
    }

    /// Whether the caller accepts this candidate, and it is not out.
    #[inline]
    pub(crate) fn admits(&self, index: usize) -> bool {
        self.admits_all || self.admits_with_filter(index)
    }

    #[cold]
    fn admits_with_filter(&self, index: usize) -> bool {
        let Some(slot) = self.slots.get(index) else {
            return false;
        };
        let is_in = match (self.attention, slot.live.admission()) {
            (Attention::None, _) | (_, Admission::In) | (Attention::WithTrials, Admission::Trial) => true,
            (_, Admission::Out | Admission::OnTrial | Admission::Trial) => false,
        };
        let member = self.members.get(slot.member as usize);
        is_in && member.is_some_and(|member| self.context.admits(member.instance()))
    }

    /// The candidate itself if the caller accepts it, else another one, at random by weight.
    #[inline]
    pub(crate) fn or_redrawn(&self, index: usize, schedule: &Schedule) -> Option<usize> {
        if self.admits(index) {
            Some(index)
        } else {
            self.redraw(schedule, |_| false)
        }
    }

    /// A candidate at random by weight that the caller accepts and that is not `taken`.
    #[cold]
    pub(crate) fn redraw(&self, schedule: &Schedule, taken: impl Fn(usize) -> bool) -> Option<usize> {
        let acceptable = |index: usize| index < self.slots.len() && !taken(index) && self.admits(index);
        // A few looks find one at once where most are acceptable; else count what is there.
        if let Some(found) = (0..8).map(|_| schedule.draw()).find(|&index| acceptable(index)) {
            return Some(found);
        }
        let mut chosen = None;
        let mut total = 0_u64;
        for (index, slot) in self.slots.iter().enumerate().filter(|(index, _)| acceptable(*index)) {
            total += u64::from(slot.units);
            if fastrand::u64(0..total.max(1)) < u64::from(slot.units) {
                chosen = Some(index);
            }
        }
        chosen
    }
}

/// `choices` distinct candidates at random (the two-choices rule: Mitzenmacher 2001), or all of them.
pub(crate) fn contenders(count: usize, choices: Choices, exact_up_to: usize) -> Contenders {
    let number = match choices {
        Choices::All => count,
        Choices::Auto if count <= exact_up_to => count,
        Choices::Auto => 2,
        Choices::Random(number) => usize::from(number),
    };
    if number >= count {
        Contenders::All
    } else {
        Contenders::Some(number)
    }
}

/// Who is compared for one pick.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Contenders {
    /// Every candidate.
    All,
    /// This many at random.
    Some(usize),
}

/// One strategy, prepared for a fixed set of candidates.
pub(crate) trait Strategy {
    /// The index of the chosen candidate, or `None` when the caller accepts none. There is at least one candidate.
    fn choose(&self, draw: &Draw<'_>) -> Option<usize>;

    /// What it would do at present.
    fn mode(&self, _load: &Load) -> Mode {
        Mode::Normal
    }

    /// How candidates are drawn by weight, for alternates.
    fn schedule(&self) -> &Schedule;
}

/// What a strategy actually does at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// What its name says.
    Normal,
    /// Nothing is in flight, because nobody acquires and finishes: `least_connections` follows the weighted schedule.
    NothingInFlight,
    /// No outcome in the last 60 s: `least_response_time` follows the weighted schedule.
    NoReports,
}

impl Mode {
    /// Its name in answers.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::NothingInFlight => "weighted_schedule_nothing_in_flight",
            Self::NoReports => "weighted_schedule_no_reports",
        }
    }
}
