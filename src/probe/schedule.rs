//! Which target is checked next: pure, with `now` and entropy as arguments.
//!
//! - A new target is due at once. Its second check comes after a random part of the interval, so
//!   that a thousand targets that arrived together are spread over the interval. From then on each
//!   check comes 0.9 to 1.0 intervals after the check before. No target waits longer than the
//!   interval.
//! - No target is checked twice at a time. A slow answer does not delay other targets.
//! - A token bucket limits the rate of all checks, with a burst of a tenth of a second. A limit on
//!   checks at a time saves memory and sockets. Above the limits, checks come later, and the
//!   target that waits longest comes first.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use super::settings::{Plan, ProbeSettings};
use crate::balancer::{Address, ServiceName, Timestamp};

/// The name of a target for as long as it exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct TargetId(u64);

/// A check to be made now.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) id: TargetId,
    pub(super) service: ServiceName,
    pub(super) address: Address,
    pub(super) plan: Plan,
}

#[derive(Debug)]
struct Target {
    service: ServiceName,
    address: Address,
    plan: Plan,
    state: State,
    checks: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    DueAt(Timestamp),
    Running { since: Timestamp },
}

/// All targets.
#[derive(Debug)]
pub(super) struct Schedule {
    settings: ProbeSettings,
    targets: HashMap<TargetId, Target>,
    services: HashMap<ServiceName, HashMap<Address, TargetId>>,
    due: BTreeSet<(Timestamp, TargetId)>,
    next_id: u64,
    running: usize,
    /// Targets that were removed since the last call of `take_removed`.
    removed: Vec<TargetId>,
    tokens: f64,
    filled_at: Timestamp,
}

impl Schedule {
    pub(super) fn new(settings: ProbeSettings, now: Timestamp) -> Self {
        let mut schedule = Self {
            settings,
            targets: HashMap::new(),
            services: HashMap::new(),
            due: BTreeSet::new(),
            next_id: 0,
            running: 0,
            removed: Vec::new(),
            tokens: 0.0,
            filled_at: now,
        };
        schedule.tokens = schedule.burst();
        schedule
    }

    pub(super) fn configure(&mut self, settings: ProbeSettings) {
        self.settings = settings;
        self.tokens = self.tokens.min(self.burst());
    }

    /// Sets the targets of a service. A target that stays keeps its place, unless its check
    /// changes.
    pub(super) fn set(
        &mut self,
        service: &ServiceName,
        plan: Option<&Plan>,
        addresses: impl IntoIterator<Item = Address>,
        now: Timestamp,
    ) {
        let mut before = self.services.remove(service).unwrap_or_default();
        let mut after = HashMap::new();
        for address in addresses {
            let Some(plan) = plan else { break };
            if after.contains_key(&address) {
                continue;
            }
            let id = match before.remove(&address) {
                Some(id) if self.keeps_its_check(id, plan, now) => id,
                changed => {
                    changed.into_iter().for_each(|id| self.remove(id));
                    self.add(service, &address, plan, now)
                }
            };
            after.insert(address, id);
        }
        for id in before.into_values() {
            self.remove(id);
        }
        if !after.is_empty() {
            self.services.insert(service.clone(), after);
        }
    }

    fn add(&mut self, service: &ServiceName, address: &Address, plan: &Plan, now: Timestamp) -> TargetId {
        let id = TargetId(self.next_id);
        self.next_id += 1;
        let target = Target {
            service: service.clone(),
            address: address.clone(),
            plan: plan.clone(),
            state: State::DueAt(now),
            checks: 0,
        };
        self.targets.insert(id, target);
        self.due.insert((now, id));
        id
    }

    /// Whether a target keeps the same check under another plan. Then only its times change. With
    /// another check it becomes another target, because earlier results say nothing about that
    /// check.
    fn keeps_its_check(&mut self, id: TargetId, plan: &Plan, now: Timestamp) -> bool {
        let Some(target) = self.targets.get_mut(&id) else {
            return false;
        };
        if target.plan.check != plan.check || target.plan.denied != plan.denied {
            return false;
        }
        target.plan = plan.clone();
        if let State::DueAt(at) = target.state {
            let sooner = at.min(now + plan.interval);
            target.state = State::DueAt(sooner);
            self.due.remove(&(at, id));
            self.due.insert((sooner, id));
        }
        true
    }

    fn remove(&mut self, id: TargetId) {
        if let Some(target) = self.targets.remove(&id) {
            self.removed.push(id);
            match target.state {
                State::DueAt(at) => {
                    self.due.remove(&(at, id));
                }
                // The check goes on, and its result is ignored.
                State::Running { .. } => {}
            }
        }
    }

    /// The next check that is due and allowed now.
    pub(super) fn take(&mut self, now: Timestamp) -> Option<Job> {
        self.fill(now);
        let (due_at, id) = *self.due.first()?;
        if due_at > now || self.tokens < 1.0 || self.running >= self.settings.max_concurrent {
            return None;
        }
        self.due.pop_first();
        let target = self.targets.get_mut(&id)?;
        self.tokens -= 1.0;
        self.running += 1;
        target.state = State::Running { since: now };
        target.checks += 1;
        Some(Job {
            id,
            service: target.service.clone(),
            address: target.address.clone(),
            plan: target.plan.clone(),
        })
    }

    /// A check has ended. Returns whether its target still exists. `entropy` is in 0.0..1.0.
    pub(super) fn finished(&mut self, id: TargetId, entropy: f64, now: Timestamp) -> bool {
        self.running = self.running.saturating_sub(1);
        let Some(target) = self.targets.get_mut(&id) else {
            return false;
        };
        let State::Running { since } = target.state else {
            return false;
        };
        let part = match target.checks {
            1 => entropy,
            _ => 0.9 + 0.1 * entropy,
        };
        let next = (since + target.plan.interval.mul_f64(part)).max(now);
        target.state = State::DueAt(next);
        self.due.insert((next, id));
        true
    }

    /// When to call [`take`](Self::take) next; `None`: after a check has ended or a target has
    /// changed.
    pub(super) fn next(&self, now: Timestamp) -> Option<Timestamp> {
        let (due_at, _) = *self.due.first()?;
        if self.running >= self.settings.max_concurrent {
            return None;
        }
        let missing = (1.0 - self.tokens).max(0.0) / f64::from(self.settings.max_rate);
        Some(due_at.max(self.filled_at + Duration::from_secs_f64(missing)).max(now))
    }

    /// The targets that were removed since the last call.
    pub(super) fn take_removed(&mut self) -> Vec<TargetId> {
        std::mem::take(&mut self.removed)
    }

    fn burst(&self) -> f64 {
        (f64::from(self.settings.max_rate) / 10.0).max(1.0)
    }

    fn fill(&mut self, now: Timestamp) {
        let grown = now.since(self.filled_at).as_secs_f64() * f64::from(self.settings.max_rate);
        self.tokens = (self.tokens + grown).min(self.burst());
        self.filled_at = self.filled_at.max(now);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::balancer::DeniedNetworks;
    use crate::probe::HealthCheck;

    fn at(milliseconds: u64) -> Timestamp {
        Timestamp::default() + Duration::from_millis(milliseconds)
    }

    fn plan(interval: u64) -> Plan {
        Plan {
            check: Arc::new(HealthCheck::Tcp),
            interval: Duration::from_millis(interval),
            timeout: Duration::from_millis(500),
            denied: DeniedNetworks::default(),
        }
    }

    fn web() -> ServiceName {
        "web".parse().unwrap()
    }

    fn addresses(count: u16) -> Vec<Address> {
        (1..=count)
            .map(|port| Address::new("10.0.0.1", port).unwrap())
            .collect()
    }

    fn schedule(max_rate: u32, max_concurrent: usize, count: u16, interval: u64) -> Schedule {
        let settings = ProbeSettings {
            max_rate,
            max_concurrent,
        };
        let mut schedule = Schedule::new(settings, at(0));
        schedule.set(&web(), Some(&plan(interval)), addresses(count), at(0));
        schedule
    }

    fn taken(schedule: &mut Schedule, now: Timestamp) -> Vec<Job> {
        std::iter::from_fn(|| schedule.take(now)).collect()
    }

    /// Runs the schedule for some time with checks that end at once. Returns when each target was
    /// checked.
    fn run(schedule: &mut Schedule, until: Timestamp) -> HashMap<Address, Vec<Timestamp>> {
        let mut checked: HashMap<Address, Vec<Timestamp>> = HashMap::new();
        let mut now = at(0);
        while now < until {
            for job in taken(schedule, now) {
                assert!(schedule.finished(job.id, fastrand::f64(), now));
                checked.entry(job.address).or_default().push(now);
            }
            now = schedule.next(now).unwrap();
        }
        checked
    }

    #[test]
    fn a_new_target_is_checked_at_once_and_then_once_an_interval() {
        let mut schedule = schedule(1_000, 100, 50, 1_000);
        let checked = run(&mut schedule, at(10_000));
        assert_eq!(checked.len(), 50);
        for times in checked.values() {
            assert_eq!(times[0], at(0));
            assert!(times[1].since(times[0]) <= Duration::from_secs(1));
            for pair in times[1..].windows(2) {
                let gap = pair[1].since(pair[0]);
                assert!(
                    (Duration::from_millis(900)..=Duration::from_millis(1_002)).contains(&gap),
                    "{gap:?}"
                );
            }
        }
    }

    #[test]
    fn targets_that_arrive_together_are_spread_over_the_interval() {
        fastrand::seed(2);
        let mut schedule = schedule(10_000, 1_000, 1_000, 1_000);
        let checked = run(&mut schedule, at(5_000));
        let mut tenths = [0; 10];
        for time in checked
            .values()
            .flatten()
            .filter(|time| **time >= at(3_000) && **time < at(4_000))
        {
            tenths[((time.as_nanos() / 100_000_000) % 10) as usize] += 1;
        }
        assert!(tenths.iter().all(|count| (50..=180).contains(count)), "{tenths:?}");
    }

    #[test]
    fn the_rate_is_bounded_and_no_target_is_forgotten() {
        let mut schedule = schedule(200, 1_000, 1_000, 1_000);
        let checked = run(&mut schedule, at(20_000));
        let total: usize = checked.values().map(Vec::len).sum();
        assert!(
            (3_950..=4_030).contains(&total),
            "{total}: 200 a second, and a burst of 20"
        );
        let fewest = checked.values().map(Vec::len).min().unwrap();
        assert!(fewest >= 3 && checked.len() == 1_000, "{fewest} of 4");
        let mut times: Vec<_> = checked.into_values().flatten().collect();
        times.sort();
        for window in times.windows(221) {
            assert!(window[220].since(window[0]) >= Duration::from_millis(990));
        }
    }

    #[test]
    fn a_hanging_check_delays_no_other_and_runs_once_at_a_time() {
        let mut schedule = schedule(1_000, 100, 3, 1_000);
        let jobs = taken(&mut schedule, at(0));
        assert_eq!(jobs.len(), 3);
        for job in &jobs[1..] {
            schedule.finished(job.id, 0.5, at(1));
        }
        // The first check hangs for ten seconds.
        for second in 1..10 {
            let jobs = taken(&mut schedule, at(second * 1_000));
            assert_eq!(jobs.len(), 2, "{second}");
            for job in &jobs {
                schedule.finished(job.id, 1.0, at(second * 1_000));
            }
        }
        assert!(schedule.finished(jobs[0].id, 0.5, at(10_000)));
        assert_eq!(taken(&mut schedule, at(10_000)).len(), 3);
    }

    #[test]
    fn checks_at_a_time_are_bounded() {
        let mut schedule = schedule(10_000, 2, 5, 1_000);
        let jobs = taken(&mut schedule, at(0));
        assert_eq!((jobs.len(), schedule.next(at(0))), (2, None));
        schedule.finished(jobs[0].id, 0.5, at(1));
        assert_eq!(schedule.next(at(1)), Some(at(1)));
        assert_eq!(taken(&mut schedule, at(1)).len(), 1);
    }

    #[test]
    fn a_removed_target_has_no_results_and_another_check_is_due_at_once() {
        let mut schedule = schedule(1_000, 100, 2, 60_000);
        let jobs = taken(&mut schedule, at(0));
        schedule.set(&web(), Some(&plan(60_000)), addresses(1), at(1));
        for job in &jobs {
            assert_eq!(schedule.finished(job.id, 0.5, at(2)), job.address.port() == 1);
        }
        assert_eq!(schedule.next(at(2)), Some(at(30_000)));
        schedule.set(&web(), Some(&plan(5_000)), addresses(1), at(3));
        assert_eq!(
            schedule.next(at(3)),
            Some(at(5_003)),
            "the new interval counts from now"
        );
        let jobs = taken(&mut schedule, at(5_003));
        let mut other = plan(5_000);
        other.denied = other.denied.and(["10.0.0.0/8".parse().unwrap()]);
        schedule.set(&web(), Some(&other), addresses(1), at(5_004));
        assert!(
            !schedule.finished(jobs[0].id, 0.5, at(5_005)),
            "an answer to the question before"
        );
        assert_eq!(taken(&mut schedule, at(5_005)).len(), 1);
        schedule.set(&web(), None, addresses(1), at(5_006));
        assert!(schedule.targets.is_empty() && schedule.services.is_empty() && schedule.due.is_empty());
    }

    #[test]
    fn two_instances_at_one_address_are_one_target() {
        let mut schedule = schedule(1_000, 100, 1, 1_000);
        schedule.set(&web(), Some(&plan(1_000)), [addresses(1), addresses(1)].concat(), at(1));
        assert_eq!(taken(&mut schedule, at(1)).len(), 1);
    }

    proptest! {
        #[test]
        fn every_target_is_always_due_or_running(
            steps in prop::collection::vec((0_u8..4, 0_u16..8, 0_u64..3_000), 1..80),
        ) {
            let mut schedule = schedule(50, 3, 0, 1_000);
            let (mut now, mut running) = (at(0), Vec::new());
            for (what, count, wait) in steps {
                now = now + Duration::from_millis(wait);
                match what {
                    0 => schedule.set(&web(), Some(&plan(1_000)), addresses(count), now),
                    1 => schedule.set(&web(), (count > 1).then_some(&plan(2_000)), addresses(count), now),
                    2 => running.extend(taken(&mut schedule, now)),
                    _ => {
                        for job in running.drain(..) {
                            schedule.finished(job.id, 0.3, now);
                        }
                    }
                }
                prop_assert!(schedule.running <= 3 && schedule.running == running.len());
                let due = schedule.targets.values().filter(|target| matches!(target.state, State::DueAt(_))).count();
                prop_assert_eq!(due, schedule.due.len());
                prop_assert_eq!(schedule.targets.len(), schedule.services.values().map(HashMap::len).sum::<usize>());
            }
        }
    }
}
