//! The rounds of adaptive weights: reads the counters of every address, and publishes new factors
//! with the next view.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::LoadBalancer;
use super::transitions::Transitioned;
use super::writer::{Upkeep, Writer};
use crate::balancer::adaptive::{self, Adjustment, AdjustmentCounts, MeasuredBy, Sample, Samples, SeedTotals};
use crate::balancer::clock::Timestamp;
use crate::balancer::config::AdaptiveFormula;
use crate::balancer::health::ejection::Admission;
use crate::balancer::instance::{InstanceId, Tier};
use crate::balancer::live::{Live, address_key};
use crate::balancer::member::Member;
use crate::balancer::view::View;

/// One address of a pool, with its first instance.
struct Row<'a> {
    member: &'a Member,
    instances: Vec<InstanceId>,
    samples: Samples,
}

impl Row<'_> {
    /// Whether the factor may move: it does not act while an operator's weight is in force.
    fn may_move(&self) -> bool {
        self.member.state.weight.is_none()
    }
}

impl LoadBalancer {
    /// The last 50 changes that adaptive weights made, oldest first.
    #[must_use]
    pub fn adjustments(&self) -> Vec<Adjustment> {
        self.write().upkeep.adaptive.history()
    }

    /// The number of changes that adaptive weights made so far.
    #[must_use]
    pub fn adjustment_counts(&self) -> AdjustmentCounts {
        self.write().upkeep.adaptive.counts
    }

    /// Where the response times of adaptive weights came from in the last round. `None` while
    /// nothing was measured.
    #[must_use]
    pub fn measured_by(&self) -> Option<MeasuredBy> {
        self.write().upkeep.adaptive.measured_by
    }

    /// When the next round begins. `None` while adaptive weights do not apply, or there is nothing to
    /// compare.
    pub(super) fn next_round(view: &View, upkeep: &mut Upkeep, now: Timestamp) -> Option<Timestamp> {
        let interval = view.config.adaptive_interval();
        (view.config.adapts() && view.members.len() > 1).then(|| upkeep.adaptive.next_round(interval, now))
    }

    /// Does a round if one is due.
    pub(super) fn adapt(&self, writer: &mut Writer, now: Timestamp) {
        let view = self.shared.view.load_full();
        let interval = view.config.adaptive_interval();
        if Self::next_round(&view, &mut writer.upkeep, now).is_none()
            || !writer.upkeep.adaptive.begins_round(interval, now)
        {
            return;
        }
        // Tiers do not share picks, so each is compared with itself.
        let mut pools: BTreeMap<Tier, Vec<Row<'_>>> = BTreeMap::new();
        let mut seen: HashMap<usize, (Tier, usize)> = HashMap::new();
        let mut not_picked: HashMap<usize, &Arc<Live>> = HashMap::new();
        for member in &view.members {
            let id = || member.instance.id().clone();
            if let Some((tier, index)) = seen.get(&address_key(&member.live)) {
                let row = pools.get_mut(tier).and_then(|pool| pool.get_mut(*index));
                row.into_iter().for_each(|row| row.instances.push(id()));
                continue;
            }
            if member.units == 0 || member.live.admission() != Admission::In {
                not_picked.insert(address_key(&member.live), &member.live);
                continue;
            }
            let samples = member.live.adaptive().read(member.live.report_counts(), interval, now);
            let pool = pools.entry(member.tier).or_default();
            seen.insert(address_key(&member.live), (member.tier, pool.len()));
            pool.push(Row {
                member,
                instances: vec![id()],
                samples,
            });
        }
        // Another instance at the address may be picked.
        not_picked.retain(|address, _| !seen.contains_key(address));
        for live in not_picked.into_values() {
            live.adaptive_if_any()
                .into_iter()
                .for_each(|mut tracked| tracked.pause());
        }
        let source = match view.config.adaptive_formula() {
            AdaptiveFormula::Relative => Samples::source(pools.values().flatten().map(|row| &row.samples)),
            AdaptiveFormula::Seed => Some(MeasuredBy::Reports),
        };
        writer.upkeep.adaptive.measured_by = source;
        for pool in pools.into_values() {
            match view.config.adaptive_formula() {
                AdaptiveFormula::Relative => Self::adapt_relative(writer, pool, source, now),
                AdaptiveFormula::Seed => Self::adapt_by_seed(writer, pool, now),
            }
        }
    }

    fn adapt_relative(writer: &mut Writer, pool: Vec<Row<'_>>, source: Option<MeasuredBy>, now: Timestamp) {
        let samples: Vec<Option<Sample>> = pool
            .iter()
            .map(|row| source.and_then(|source| row.samples.by(source)))
            .collect();
        let verdicts = adaptive::compare(&samples);
        for ((row, sample), verdict) in pool.into_iter().zip(samples).zip(verdicts) {
            let mut tracked = row.member.live.adaptive();
            tracked.record(sample, verdict);
            let changed = row.may_move().then(|| tracked.follow(verdict)).flatten();
            drop(tracked);
            if let Some(factors) = changed {
                let relative = verdict.map(|verdict| verdict.relative);
                tell(writer, &row.member.live, row.instances, factors, relative, now);
            }
        }
    }

    fn adapt_by_seed(writer: &mut Writer, pool: Vec<Row<'_>>, now: Timestamp) {
        let totals: Vec<SeedTotals> = pool.iter().map(|row| row.member.live.seed_totals()).collect();
        let scores = adaptive::compare_by_seed(&totals);
        for ((row, totals), relative) in pool.into_iter().zip(totals).zip(scores) {
            let mut tracked = row.member.live.adaptive();
            tracked.record_by_seed(&totals, relative);
            let registered = row.member.instance.weight();
            let changed = row
                .may_move()
                .then(|| tracked.follow_seed(relative, registered))
                .flatten();
            drop(tracked);
            if let Some(factors) = changed {
                tell(writer, &row.member.live, row.instances, factors, relative, now);
            }
        }
    }
}

/// Records an adjustment, which acts with the next view.
fn tell(
    writer: &mut Writer,
    live: &Arc<Live>,
    instances: Vec<InstanceId>,
    factors: (f64, f64),
    relative: Option<f64>,
    now: Timestamp,
) {
    let adjustment = writer.upkeep.adaptive.adjusted(instances, factors, relative, now);
    let what = Transitioned::Adjusted {
        before: adjustment.before,
        now: adjustment.now,
        relative_score: adjustment.relative_score,
        measured_by: adjustment.measured_by,
    };
    writer.upkeep.stale = true;
    writer.upkeep.tell(Some(address_key(live)), what);
}
