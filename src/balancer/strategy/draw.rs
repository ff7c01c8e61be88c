//! The input of a strategy for one pick, and random draws by weight.

use super::schedule::Schedule;
use crate::balancer::config::Choices;
use crate::balancer::context::Context;
use crate::balancer::health::ejection::Admission;
use crate::balancer::live::Load;
use crate::balancer::member::{Member, Slot};

/// Whether a pick reads the present admission of each candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AdmissionCheck {
    /// No admission has changed since the view was made: the pick reads none.
    Skip,
    /// The pick reads admissions, and may choose a candidate as a trial.
    AllowTrials,
    /// The pick reads admissions, and never chooses a candidate as a trial.
    NoTrials,
}

/// The input of a strategy for one pick.
pub(crate) struct Draw<'a> {
    /// The candidates: instances that could be picked when the view was made.
    pub(crate) slots: &'a [Slot],
    /// The members that slots point to.
    pub(crate) members: &'a [Member],
    /// The caller's key, tags and exclusions.
    pub(crate) context: &'a Context<'a>,
    /// Load of the service as a whole, and the clock.
    pub(crate) load: &'a Load,
    check: AdmissionCheck,
    /// Whether every candidate is acceptable.
    admits_all: bool,
}

impl<'a> Draw<'a> {
    #[inline]
    pub(crate) fn new(
        slots: &'a [Slot],
        members: &'a [Member],
        context: &'a Context<'a>,
        load: &'a Load,
        check: AdmissionCheck,
    ) -> Self {
        Self {
            slots,
            members,
            context,
            load,
            check,
            admits_all: check == AdmissionCheck::Skip && context.admits_all(),
        }
    }

    /// Whether the caller accepts this candidate, and its admission lets it be picked.
    #[inline]
    pub(crate) fn admits(&self, index: usize) -> bool {
        self.admits_all || self.admits_with_filter(index)
    }

    #[cold]
    fn admits_with_filter(&self, index: usize) -> bool {
        let Some(slot) = self.slots.get(index) else {
            return false;
        };
        let is_in = match (self.check, slot.live.admission()) {
            (AdmissionCheck::Skip, _) | (_, Admission::In) | (AdmissionCheck::AllowTrials, Admission::Trial) => true,
            (_, Admission::Out | Admission::OnTrial | Admission::Trial) => false,
        };
        let member = self.members.get(slot.member as usize);
        is_in && member.is_some_and(|member| self.context.admits(member.instance()))
    }

    /// The candidate itself if it is acceptable, else another candidate, at random by weight.
    #[inline]
    pub(crate) fn or_redrawn(&self, index: usize, schedule: &Schedule) -> Option<usize> {
        if self.admits(index) {
            Some(index)
        } else {
            self.redraw(schedule, |_| false)
        }
    }

    /// An acceptable candidate that is not `taken`, at random by weight.
    #[cold]
    pub(crate) fn redraw(&self, schedule: &Schedule, taken: impl Fn(usize) -> bool) -> Option<usize> {
        let acceptable = |index: usize| index < self.slots.len() && !taken(index) && self.admits(index);
        // If most candidates are acceptable, a few random draws find one. Otherwise all candidates
        // are counted.
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

/// Which candidates are compared for one pick.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Compared {
    /// Every candidate.
    All,
    /// This many at random.
    Random(usize),
}

impl Compared {
    /// By the setting `choices`: this many of `count` candidates at random (the two-choices rule:
    /// Mitzenmacher 2001), or all of them.
    pub(crate) fn of(count: usize, choices: Choices, exact_up_to: usize) -> Self {
        let number = match choices {
            Choices::All => count,
            Choices::Auto if count <= exact_up_to => count,
            Choices::Auto => 2,
            Choices::Random(number) => usize::from(number),
        };
        if number >= count {
            Self::All
        } else {
            Self::Random(number)
        }
    }
}

/// One strategy, prepared for a fixed set of candidates.
pub(crate) trait Strategy {
    /// The index of the chosen candidate, or `None` if no candidate is acceptable. Requires at
    /// least one candidate.
    fn choose(&self, draw: &Draw<'_>) -> Option<usize>;

    /// The present mode of the strategy.
    fn mode(&self, _load: &Load) -> Mode {
        Mode::Normal
    }

    /// The weighted schedule of the candidates, from which alternates are drawn.
    fn schedule(&self) -> &Schedule;
}

/// The present mode of a strategy: its own rule, or a fallback while its input is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mode {
    /// The strategy follows its own rule.
    Normal,
    /// No request is in flight, so that all candidates look equally loaded: `least_connections`
    /// follows the weighted schedule.
    NothingInFlight,
    /// No outcome arrived in the last 60 s: `least_response_time` follows the weighted schedule.
    NoReports,
}

impl Mode {
    /// The name of the mode in answers.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::NothingInFlight => "weighted_schedule_nothing_in_flight",
            Self::NoReports => "weighted_schedule_no_reports",
        }
    }
}
