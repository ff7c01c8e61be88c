//! Adaptive weights: factors that follow what the instances of a pool achieve.
//!
//! ```text
//! reports, else checks ──► window ──► cost  = response time / pool median + 10 x error ratio
//!                                     score = 1 / (1 + cost)
//! score / mean score   in the band   the factor decays to 1, by at most 5 % a round
//!                      outside       the factor moves to 1 / cost, by at most 10 % a round
//! band  = 0.8 ..= 1.2; 0.9 ..= 1.1 for a factor that has moved away from 1
//! ```
//!
//! The score says whether an instance differs, the cost says where the factor stops. With a goal of
//! `1 / cost` the picks of an instance become proportional to its speed. If its response time rises
//! with its load as in a queue, the loop rests where every instance is equally busy. A step is an
//! eighth of the way to the goal, and at least 2 %. Windows hold only recent outcomes, so that the
//! loop does not swing around the goal.
//!
//! The formula `seed` is the rule of the first design, kept as it was: whole weights, totals since
//! the start, seconds instead of a comparison with the pool.
//!
//! Knows nothing of views and live state: counters come in, factors go out.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use super::clock::{Timestamp, nanos};
use super::instance::{InstanceId, Weight};

/// The least and the largest factor.
const LEAST: f64 = 0.25;
const MOST: f64 = 4.0;
/// How far the score of an instance may be from the mean before its factor moves away from 1.
const BAND: f64 = 0.2;
/// The same for a factor that has moved away: at the edge of a single band, noise would turn the loop
/// round again and again.
const RETURN_BAND: f64 = 0.1;
/// The largest step of one round away from or towards a goal, and back to 1.
const STEP: f64 = 0.1;
const DECAY: f64 = 0.05;
/// The part of the way to the goal that one step takes, as the logarithm of the factor; a step is at
/// least `ARRIVED`.
const PART: f64 = 0.125;
/// A factor this close to its goal has arrived, and stays until it is this far from a goal, as
/// logarithms: without the difference, noise would move it in every round. Without a goal it does
/// not stay.
const ARRIVED: f64 = 0.02;
const AWAY: f64 = 0.1;
/// An instance with at most this many outcomes in its window is not measured.
const FEW: u64 = 10;
/// A window closes early with this many outcomes.
const PLENTY: u64 = 100;
/// Rounds after which a window with fewer outcomes closes.
const ROUNDS: u32 = 3;
/// A window without enough outcomes for so long says nothing about the present.
const STALE: Duration = Duration::from_secs(900);
/// Checks are not compared below this response time: it is the network's, not the instance's.
const LEAST_CHECK_SECONDS: f64 = 0.001;
/// Adjustments that the history keeps.
pub(crate) const HISTORY: usize = 50;

/// A number in thousandths, so that it can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Thousandths(u32);

impl Thousandths {
    fn of(value: f64) -> Self {
        Self((value * 1_000.0).round() as u32)
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> f64 {
        f64::from(self.0) / 1_000.0
    }
}

impl fmt::Display for Thousandths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.get())
    }
}

/// Where the response times of a service come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MeasuredBy {
    /// Outcomes that callers report.
    Reports,
    /// Active checks, because no caller reports.
    Checks,
}

impl MeasuredBy {
    /// The word in answers. Words do not change.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reports => "reports",
            Self::Checks => "checks",
        }
    }
}

/// One change of an adaptive factor.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Adjustment {
    /// When the factor changed.
    pub at: Timestamp,
    /// The instances at the address, by id.
    pub instances: Vec<InstanceId>,
    /// The factor before.
    pub before: Thousandths,
    /// The factor now.
    pub now: Thousandths,
    /// The score of the instance as a multiple of the mean score of its pool. `None` if too few
    /// outcomes were known, so that the factor decays to 1.
    pub relative_score: Option<Thousandths>,
    /// Where the response times come from. `None` if nothing was measured.
    pub measured_by: Option<MeasuredBy>,
}

/// The adjustments of one service so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct AdjustmentCounts {
    /// Factors that rose.
    pub up: u64,
    /// Factors that fell.
    pub down: u64,
}

/// What was measured of an instance within its window.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Measured {
    /// Outcomes, or results of checks.
    pub requests: u64,
    /// The mean response time. `None` if no outcome had one.
    pub response_time: Option<Duration>,
    /// The share of failures, 0..=1.
    pub error_ratio: f64,
    /// The score as a multiple of the mean score of the pool; `None` before it was compared.
    pub relative_score: Option<f64>,
}

/// Counters that only increase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) requests: u64,
    pub(crate) failed: u64,
    pub(crate) timed: u64,
    pub(crate) nanos: u64,
}

impl Counts {
    fn since(self, before: Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(before.requests),
            failed: self.failed.saturating_sub(before.failed),
            timed: self.timed.saturating_sub(before.timed),
            nanos: self.nanos.saturating_sub(before.nanos),
        }
    }

    /// `None` with too few outcomes to judge by.
    fn sample(self) -> Option<Sample> {
        let seconds = Duration::from_nanos(self.nanos).as_secs_f64() / self.timed.max(1) as f64;
        (self.requests > FEW).then(|| Sample {
            requests: self.requests,
            seconds: (self.timed > 0).then_some(seconds),
            error_ratio: (self.failed as f64 / self.requests as f64).min(1.0),
        })
    }
}

/// The outcomes of a window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Sample {
    requests: u64,
    /// The mean response time; `None` if no outcome had one.
    seconds: Option<f64>,
    error_ratio: f64,
}

/// The outcomes since two moments: the window spans the last closed part and the open one.
#[derive(Debug, Default)]
struct Window {
    /// The counters when the closed part began, and when the open part began.
    from: Option<(Counts, Counts)>,
    opened_at: Timestamp,
}

impl Window {
    /// The outcomes of the window, `None` with too few. Closes the open part when it has enough.
    fn read(&mut self, total: Counts, interval: Duration, now: Timestamp) -> Option<Sample> {
        let Some((closed_from, open_from)) = self.from else {
            *self = Self {
                from: Some((total, total)),
                opened_at: now,
            };
            return None;
        };
        let (open, lasted) = (total.since(open_from), now.since(self.opened_at));
        let is_full = open.requests >= PLENTY || lasted >= interval * ROUNDS && open.requests > FEW;
        if lasted >= STALE && !is_full {
            *self = Self {
                from: Some((total, total)),
                opened_at: now,
            };
            return None;
        }
        if is_full {
            *self = Self {
                from: Some((open_from, total)),
                opened_at: now,
            };
        }
        total.since(closed_from).sample()
    }
}

/// What is kept of one address.
#[derive(Debug, Default)]
pub(crate) struct Tracked {
    factor: Option<f64>,
    /// The factor stays at its goal.
    has_arrived: bool,
    /// The weight of the formula `seed`, and the registered weight that it started from.
    seed: Option<(u16, Weight)>,
    reports: Window,
    checks: Window,
    check_counts: Counts,
    last: Option<Measured>,
}

impl Tracked {
    /// The factor on the weight.
    pub(crate) fn factor(&self) -> f64 {
        self.factor.unwrap_or(1.0)
    }

    /// What the last round measured.
    pub(crate) fn measured(&self) -> Option<Measured> {
        self.last
    }

    /// Records the result of an active check. Only a check that passes has a response time: a
    /// refused connection is fast, and a timeout is an error already.
    pub(crate) fn observe_check(&mut self, passed: bool, took: Duration) {
        self.check_counts.requests += 1;
        if passed {
            self.check_counts.timed += 1;
            self.check_counts.nanos = self.check_counts.nanos.saturating_add(nanos(took));
        } else {
            self.check_counts.failed += 1;
        }
    }

    /// The windows of reports and of checks. `reports` are counters since the start.
    pub(crate) fn read(&mut self, reports: Counts, interval: Duration, now: Timestamp) -> Samples {
        let checks = self.check_counts;
        Samples {
            reports: self.reports.read(reports, interval, now),
            checks: self.checks.read(checks, interval, now),
        }
    }

    /// Forgets checks, because they have been turned off.
    pub(crate) fn forget_checks(&mut self) {
        self.checks = Window::default();
    }

    /// Begins new windows: the instance is not picked at present.
    pub(crate) fn pause(&mut self) {
        (self.reports, self.checks, self.last) = (Window::default(), Window::default(), None);
    }

    /// Records what a round measured.
    pub(crate) fn record(&mut self, sample: Option<Sample>, verdict: Option<Verdict>) {
        self.last = sample.map(|sample| Measured {
            requests: sample.requests,
            response_time: sample.seconds.map(Duration::from_secs_f64),
            error_ratio: sample.error_ratio,
            relative_score: verdict.map(|verdict| verdict.relative),
        });
    }

    /// Takes one step to where the formula `relative` says. Returns the factors before and after if
    /// they differ.
    pub(crate) fn follow(&mut self, verdict: Option<Verdict>) -> Option<(f64, f64)> {
        let band = if self.factor.is_some() { RETURN_BAND } else { BAND };
        let goal = verdict.filter(|verdict| (verdict.relative - 1.0).abs() > band);
        let goal = goal.map(|verdict| verdict.goal);
        let (aim, most) = match goal {
            Some(goal) => (goal, STEP),
            None => (1.0, DECAY),
        };
        let distance = (aim / self.factor()).ln();
        let is_at_rest = self.has_arrived && goal.is_some();
        self.has_arrived = distance.abs() < if is_at_rest { AWAY } else { ARRIVED };
        if self.has_arrived {
            return if goal.is_none() { self.change(1.0) } else { None };
        }
        let way = (distance * PART).abs().max(ARRIVED).copysign(distance);
        let ratio = way.exp().clamp(1.0 - most, 1.0 + most);
        self.change((self.factor() * ratio).clamp(LEAST, MOST))
    }

    /// Takes one step by the formula `seed`: 10 % of the whole weight, at most 10 and at least 1.
    pub(crate) fn follow_seed(&mut self, relative: Option<f64>, registered: Weight) -> Option<(f64, f64)> {
        let weight = match self.seed {
            Some((weight, from)) if from == registered => weight,
            _ => registered.get(),
        };
        let next = match relative {
            Some(relative) if relative > 1.0 + BAND => (f64::from(weight) * 1.1) as u16,
            Some(relative) if relative < 1.0 - BAND => ((f64::from(weight) * 0.9) as u16).max(1),
            _ => weight,
        };
        let rises = next > weight;
        let next = if rises { next.min(10) } else { next };
        self.seed = Some((next, registered));
        self.change(f64::from(next) / f64::from(registered.get()))
    }

    /// Records what a round of the formula `seed` measured.
    pub(crate) fn record_by_seed(&mut self, totals: &SeedTotals, relative: Option<f64>) {
        self.last = Some(Measured {
            requests: totals.requests,
            response_time: Some(totals.average_response_time),
            error_ratio: totals.error_ratio(),
            relative_score: relative,
        });
    }

    fn change(&mut self, next: f64) -> Option<(f64, f64)> {
        let before = self.factor();
        self.factor = (next != 1.0).then_some(next);
        (Thousandths::of(before) != Thousandths::of(next)).then_some((before, next))
    }
}

/// The windows of one address.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Samples {
    pub(crate) reports: Option<Sample>,
    pub(crate) checks: Option<Sample>,
}

impl Samples {
    /// The source of a service: reports, if any instance has enough of them.
    pub(crate) fn source<'a>(all: impl Iterator<Item = &'a Self> + Clone) -> Option<MeasuredBy> {
        let mut pool = all.clone();
        let mut checked = all;
        if pool.any(|samples| samples.reports.is_some()) {
            Some(MeasuredBy::Reports)
        } else if checked.any(|samples| samples.checks.is_some()) {
            Some(MeasuredBy::Checks)
        } else {
            None
        }
    }

    /// The sample from this source.
    pub(crate) fn by(&self, source: MeasuredBy) -> Option<Sample> {
        match source {
            MeasuredBy::Reports => self.reports,
            MeasuredBy::Checks => self.checks.map(|sample| Sample {
                seconds: sample.seconds.map(|seconds| seconds.max(LEAST_CHECK_SECONDS)),
                ..sample
            }),
        }
    }
}

/// The comparison of one instance with its pool.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Verdict {
    /// The score as a multiple of the mean score.
    pub(crate) relative: f64,
    /// The factor to move to outside the band.
    goal: f64,
}

/// Compares the instances of one pool by the formula `relative`.
pub(crate) fn compare(pool: &[Option<Sample>]) -> Vec<Option<Verdict>> {
    let median = median(pool.iter().flatten().filter_map(|sample| sample.seconds).collect());
    let cost = |sample: &Sample| {
        // Without a response time the errors alone count.
        let speed = match (sample.seconds, median) {
            (Some(seconds), Some(median)) => seconds / median,
            _ => 1.0,
        };
        speed + 10.0 * sample.error_ratio
    };
    let costs: Vec<Option<f64>> = pool.iter().map(|sample| sample.as_ref().map(cost)).collect();
    let score = |cost: f64| 1.0 / (1.0 + cost);
    let mean = mean(costs.iter().flatten().map(|cost| score(*cost)));
    let verdict = |cost: f64| Verdict {
        relative: score(cost) / mean,
        goal: (1.0 / cost.max(1e-9)).clamp(LEAST, MOST),
    };
    costs.into_iter().map(|cost| cost.map(verdict)).collect()
}

/// What the formula `seed` looks at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SeedTotals {
    pub(crate) requests: u64,
    pub(crate) average_response_time: Duration,
    pub(crate) consecutive_failures: u32,
}

impl SeedTotals {
    fn error_ratio(&self) -> f64 {
        f64::from(self.consecutive_failures) / self.requests.max(1) as f64
    }
}

/// Compares the instances of one pool by the formula `seed`: the score of each as a multiple of the
/// mean. `None` for an instance with too few requests.
pub(crate) fn compare_by_seed(pool: &[SeedTotals]) -> Vec<Option<f64>> {
    let score = |totals: &SeedTotals| {
        let seconds = totals.average_response_time.as_secs_f64();
        (totals.requests > FEW).then(|| 1.0 / (1.0 + seconds + totals.error_ratio()))
    };
    let scores: Vec<Option<f64>> = pool.iter().map(score).collect();
    let mean = mean(scores.iter().flatten().copied());
    scores
        .into_iter()
        .map(|score| score.map(|score| score / mean))
        .collect()
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0_u32), |(sum, count), value| (sum + value, count + 1));
    sum / f64::from(count.max(1))
}

/// The median of positive numbers; the mean of the two in the middle of an even count.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    let median = match middle.checked_sub(1).and_then(|lower| values.get(lower)) {
        Some(lower) if values.len().is_multiple_of(2) => (lower + upper) / 2.0,
        _ => upper,
    };
    (median > 0.0).then_some(median)
}

/// The loop of one service.
#[derive(Debug, Default)]
pub(crate) struct Loop {
    /// When the next round begins. `None` while the loop is off.
    next: Option<Timestamp>,
    /// Where the response times came from in the last round.
    pub(crate) measured_by: Option<MeasuredBy>,
    pub(crate) counts: AdjustmentCounts,
    history: VecDeque<Adjustment>,
}

impl Loop {
    /// When the next round begins. Starts the loop if it is off.
    pub(crate) fn next_round(&mut self, interval: Duration, now: Timestamp) -> Timestamp {
        // A shorter interval applies at once.
        let latest = now + interval;
        let next = self.next.map_or(latest, |next| next.min(latest));
        *self.next.insert(next)
    }

    /// Whether a round begins now. The next one then begins an interval later.
    pub(crate) fn begins_round(&mut self, interval: Duration, now: Timestamp) -> bool {
        let is_due = self.next_round(interval, now) <= now;
        if is_due {
            self.next = Some(now + interval);
        }
        is_due
    }

    /// Turns the loop off. The history stays.
    pub(crate) fn stop(&mut self) {
        (self.next, self.measured_by) = (None, None);
    }

    /// Records a change of a factor.
    pub(crate) fn adjusted(
        &mut self,
        instances: Vec<InstanceId>,
        (before, after): (f64, f64),
        relative: Option<f64>,
        now: Timestamp,
    ) -> Adjustment {
        if after > before {
            self.counts.up += 1;
        } else {
            self.counts.down += 1;
        }
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        let adjustment = Adjustment {
            at: now,
            instances,
            before: Thousandths::of(before),
            now: Thousandths::of(after),
            relative_score: relative.map(Thousandths::of),
            measured_by: self.measured_by,
        };
        self.history.push_back(adjustment.clone());
        adjustment
    }

    /// The last adjustments, oldest first.
    pub(crate) fn history(&self) -> Vec<Adjustment> {
        self.history.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(milliseconds: f64, error_ratio: f64) -> Option<Sample> {
        Some(Sample {
            requests: 100,
            seconds: Some(milliseconds / 1e3),
            error_ratio,
        })
    }

    fn counts(requests: u64, milliseconds: u64) -> Counts {
        Counts {
            requests,
            failed: 0,
            timed: requests,
            nanos: requests * milliseconds * 1_000_000,
        }
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp::default() + Duration::from_secs(seconds)
    }

    const INTERVAL: Duration = Duration::from_secs(5);

    #[test]
    fn the_score_and_the_goal_are_those_of_the_formula() {
        let verdicts = compare(&[sample(10.0, 0.0), None, sample(10.0, 0.0), sample(40.0, 0.0)]);
        // Costs 1, 1, 4; scores 0.5, 0.5, 0.2; mean 0.4.
        assert_eq!(verdicts[1], None);
        let [fast, slow] = [verdicts[0].unwrap(), verdicts[3].unwrap()];
        assert!((fast.relative - 1.25).abs() < 1e-9 && (slow.relative - 0.5).abs() < 1e-9);
        assert_eq!((fast.goal, slow.goal), (1.0, LEAST));
        // Ten percent of errors cost as much as a response time of one median.
        let failing = compare(&[sample(10.0, 0.0), sample(10.0, 0.0), sample(10.0, 0.1)])[2].unwrap();
        assert_eq!(failing.goal, 0.5);
        let fast = compare(&[sample(10.0, 0.0), sample(10.0, 0.0), sample(0.001, 0.0)])[2].unwrap();
        assert_eq!(fast.goal, MOST);
    }

    #[test]
    fn without_response_times_the_errors_alone_count() {
        let errors = |error_ratio| {
            Some(Sample {
                requests: 20,
                seconds: None,
                error_ratio,
            })
        };
        let verdicts = compare(&[errors(0.0), errors(1.0)]);
        assert_eq!(verdicts[0].unwrap().goal, 1.0);
        assert_eq!(verdicts[1].unwrap().goal, LEAST);
        assert_eq!(compare(&[]), []);
        // A pool of one is its own mean.
        assert_eq!(compare(&[sample(10.0, 0.5)])[0].unwrap().relative, 1.0);
    }

    #[test]
    fn a_step_is_at_most_ten_percent_and_five_on_the_way_back() {
        let mut tracked = Tracked::default();
        let verdict = |relative, goal| Some(Verdict { relative, goal });
        let (before, now) = tracked.follow(verdict(0.5, 0.25)).unwrap();
        assert_eq!((before, now), (1.0, 0.9));
        for _ in 0..40 {
            tracked.follow(verdict(0.5, 0.25));
        }
        assert!((0.25..0.256).contains(&tracked.factor()), "{}", tracked.factor());
        assert_eq!(tracked.follow(verdict(0.5, 0.26)), None, "close enough");
        // Outside the band of a factor that has moved, the factor follows its goal.
        assert!(tracked.follow(verdict(0.88, 0.5)).is_some());
        let before = tracked.factor();
        let (_, now) = tracked.follow(verdict(0.92, 0.9)).unwrap();
        assert!((now / before - 1.05).abs() < 1e-9, "{now}");
        for _ in 0..60 {
            tracked.follow(None);
        }
        assert_eq!(tracked.factor(), 1.0);
        assert_eq!(tracked.follow(verdict(1.19, 1.5)), None, "inside the band");
        // A factor that rests at a goal close to 1 returns in steps as well.
        let mut resting = Tracked::default();
        for _ in 0..40 {
            resting.follow(verdict(0.7, 0.92));
        }
        let (before, now) = resting.follow(None).unwrap();
        assert!(before < 0.95 && now / before <= 1.0 + DECAY, "{before} {now}");
        assert!(tracked.follow(verdict(1.21, 1.5)).is_some());
    }

    #[test]
    fn a_window_needs_more_than_ten_outcomes_and_forgets_old_ones() {
        let mut window = Window::default();
        assert_eq!(
            window.read(counts(1_000, 500), INTERVAL, at(0)),
            None,
            "what was before does not count"
        );
        assert_eq!(window.read(counts(1_010, 500), INTERVAL, at(5)), None);
        let read = window.read(counts(1_011, 500), INTERVAL, at(10)).unwrap();
        assert_eq!((read.requests, read.seconds), (11, Some(0.5)));
        // Two parts later, the outcomes of 500 ms are forgotten.
        let mut total = counts(1_011, 500);
        for part in 1..=3 {
            total.requests += 100;
            total.timed += 100;
            total.nanos += 100 * 10_000_000;
            let read = window.read(total, INTERVAL, at(10 + 5 * part)).unwrap();
            assert_eq!(read.seconds == Some(0.01), part == 3, "{part}: {read:?}");
        }
        // Without outcomes the window keeps what it has, for a quarter of an hour.
        assert!(window.read(total, INTERVAL, at(900)).is_some());
        assert_eq!(window.read(total, INTERVAL, at(926)), None);
    }

    #[test]
    fn the_median_of_two_is_their_mean() {
        assert_eq!(median(vec![0.3, 0.1]), Some(0.2));
        assert_eq!(median(vec![0.3, 0.1, 0.1]), Some(0.1));
        assert_eq!((median(vec![]), median(vec![0.0])), (None, None));
    }
}
