//! Changes of a pool by time and judgement, between the changes of its registry.
//!
//! ```text
//! outcome, check, time ──► step of one layer ──► ejections: admissions at once
//!                                                   └──► one view for many steps, a moment later
//! ```
//!
//! A step applies to the very next pick, through the admissions. The tables follow with the next
//! view: at once if the last view is older than a gap (50 ms, more in large pools, 1 s at most),
//! else when the gap is over. A view that begins or ends panic mode is made at once.

use std::collections::HashMap;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::LoadBalancer;
use super::transitions::{Transition, transitioned};
use super::writer::{Writer, heed};
use crate::balancer::clock::Timestamp;
use crate::balancer::health::address::Step;
use crate::balancer::health::breaker::BreakerStep;
use crate::balancer::health::checks::{ActiveState, Check};
use crate::balancer::instance::{Address, InstanceId, ServiceInstance};
use crate::balancer::live::{Live, address_key};
use crate::balancer::member::Member;
use crate::balancer::report_credit;

/// The steps of one address, from an event or from time.
type Taken = (Arc<Live>, [Option<Step>; 2]);

impl LoadBalancer {
    /// Takes the result of an active check of this address. The result applies to the next pick. An
    /// address that is not registered is ignored.
    pub fn observe(&self, address: &Address, check: Check) {
        self.observed(address, check, None);
    }

    /// The same with the time that the check took, for [adaptive
    /// weights](crate::LoadBalancerConfig::adaptive_weights).
    pub fn observe_timed(&self, address: &Address, check: Check, took: Duration) {
        self.observed(address, check, Some(took));
    }

    fn observed(&self, address: &Address, check: Check, took: Option<Duration>) {
        let now = self.shared.environment.clock.now();
        let mut writer = self.write();
        let Some(live) = writer.registered.get(address).map(Arc::clone) else {
            return;
        };
        let counter = match check {
            Check::Pass => &self.shared.checks_passed,
            Check::Fail(_) => &self.shared.checks_failed,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        let was_refused = is_refused(&live);
        let config = self.shared.view.load();
        if let Some(took) = took.filter(|_| config.config.adapts()) {
            live.adaptive().observe_check(check == Check::Pass, took);
        }
        let step = live.observe(check, &config.config, now);
        drop(config);
        if step.is_some() {
            let changes_eligible = is_refused(&live) != was_refused;
            self.take_steps(&mut writer, &[(live, [step, None])], now);
            if changes_eligible {
                self.republish(&mut writer);
            }
        }
    }

    /// Forgets the results of active checks, because the checks have been turned off.
    pub fn forget_checks(&self) {
        let mut writer = self.write();
        // Addresses that left may come back.
        let departed = writer.departed.iter().map(|(_, _, live)| live);
        let lives = writer.registered.values().chain(departed);
        if lives.filter(|live| live.forget_checks()).count() > 0 {
            self.republish(&mut writer);
        }
    }

    /// The number of changes of the list of instances.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.shared.generation.load(Ordering::Acquire)
    }

    /// The addresses of the registered instances, each once, without those that must not be
    /// contacted.
    #[must_use]
    pub fn addresses_to_check(&self) -> Vec<Address> {
        let view = self.shared.view.load();
        let allowed = |member: &&Member| !member.state.layers.address_refused;
        let address = |instance: &Arc<ServiceInstance>| instance.address().clone();
        let mut addresses: Vec<_> = view
            .members
            .iter()
            .filter(allowed)
            .map(|member| address(&member.instance))
            .collect();
        addresses.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
        addresses.dedup();
        addresses
    }

    /// Transitions of health since the last call; at most the last 1,024.
    #[must_use]
    pub fn take_transitions(&self) -> Vec<Transition> {
        let mut writer = self.write();
        if writer.upkeep.untold.is_empty() {
            return Vec::new();
        }
        let untold = mem::take(&mut writer.upkeep.untold);
        let view = self.shared.view.load();
        let mut ids: HashMap<usize, Vec<InstanceId>> = HashMap::new();
        for member in &view.members {
            ids.entry(address_key(&member.live))
                .or_default()
                .push(member.instance.id().clone());
        }
        let told = |(address, what)| match address {
            None => Some(Transition {
                instances: Vec::new(),
                what,
            }),
            // The address has left in the meantime.
            Some(address) => ids.get(&address).map(|instances| Transition {
                instances: instances.clone(),
                what,
            }),
        };
        untold.into_iter().filter_map(told).collect()
    }

    /// Does everything that is due: breakers become half open, trials expire, slow starts go on,
    /// views follow, overrides end, departed addresses are forgotten, and picks are recorded for
    /// the credit of reports without a lease. Returns the time of the next call. The
    /// [`Wake`](crate::balancer::Wake) asks for an earlier call.
    ///
    /// Without a `Wake`, requests that are acquired, leased, finished or reported do most of this.
    pub fn advance(&self, now: Timestamp) -> Option<Timestamp> {
        let mut writer = self.write();
        let next = self.tend(&mut writer, now);
        let house = self.keep_house(&mut writer, now);
        next.into_iter().chain(house).min()
    }

    /// The part of [`advance`](Self::advance) that picks depend on.
    fn tend(&self, writer: &mut Writer, now: Timestamp) -> Option<Timestamp> {
        let view = self.shared.view.load_full();
        let pool_latency = self.shared.load.pool_latency(&view.config);
        let mut taken = Vec::new();
        writer.upkeep.stirring.retain(|_, live| {
            let advanced = live.advance(pool_latency, &view.config, now);
            if advanced.steps != [None, None] {
                taken.push((Arc::clone(live), advanced.steps));
            }
            advanced.next.is_some()
        });
        drop(view);
        if !taken.is_empty() {
            self.take_steps(writer, &taken, now);
        }
        if writer.upkeep.ramp_step.is_some_and(|step| step <= now) {
            writer.upkeep.stale = true;
        }
        self.adapt(writer, now);
        let ended = writer.overrides.expire(now);
        if ended || writer.upkeep.stale && writer.upkeep.ready_at() <= now {
            self.republish(writer);
        }
        let next = self.next(writer, now);
        self.shared.due.store(nanos_of(next), Ordering::Relaxed);
        next
    }

    /// The part of [`advance`](Self::advance) that no pick depends on: at most once in each
    /// [step](report_credit::STEP) of the credit of reports. Returns when the next step begins,
    /// while there is anything to keep.
    fn keep_house(&self, writer: &mut Writer, now: Timestamp) -> Option<Timestamp> {
        let next = report_credit::next_step(now);
        if writer.upkeep.kept_house_until < next {
            writer.upkeep.kept_house_until = next;
            let instances = self.shared.view.load().members.len();
            writer.drop_retired(&self.shared.load);
            writer.forget(now, instances);
            writer.overrides.forget_departed(now);
            self.settle(writer);
            let departed = writer.departed.iter().map(|(_, _, live)| live);
            for live in writer.registered.values().chain(departed) {
                live.credit.record(live.picks.load(Ordering::Relaxed), now);
            }
        }
        let is_empty = writer.registered.is_empty() && writer.departed.is_empty() && writer.retired.is_empty();
        (!is_empty).then_some(next)
    }

    /// Whether there is news: transitions of health, or overrides that ended.
    pub(crate) fn has_news(&self) -> bool {
        let writer = self.write();
        !writer.upkeep.untold.is_empty() || writer.overrides.has_ended()
    }

    /// Does what is due if no timer does.
    pub(crate) fn catch_up(&self) {
        let due = self.shared.due.load(Ordering::Relaxed);
        if due != u64::MAX && !self.is_driven() {
            let now = self.shared.environment.clock.now();
            if due <= now.as_nanos() {
                self.tend(&mut self.write(), now);
            }
        }
    }

    fn is_driven(&self) -> bool {
        self.shared.is_driven.load(Ordering::Relaxed)
    }

    /// No timer calls [`advance`](Self::advance) any more.
    pub(crate) fn timer_stopped(&self) {
        self.shared.is_driven.store(false, Ordering::Relaxed);
    }

    /// Does what is due, as [`acquire`](Self::acquire) does before it picks, unless a timer drives the
    /// balancer. Returns the time until the next step is due; `None` if no step is due, or a timer
    /// does it. For programs that only select instances.
    pub fn keep_up(&self) -> Option<Duration> {
        self.catch_up();
        match self.shared.due.load(Ordering::Relaxed) {
            u64::MAX => None,
            _ if self.is_driven() => None,
            due => Some(Timestamp::from_nanos(due).since(self.shared.environment.clock.now())),
        }
    }

    pub(super) fn wake(&self) {
        if let Some(wake) = &self.shared.environment.wake {
            wake.wake();
        }
    }

    /// Whether the service has ever answered a pick with an instance.
    pub(super) fn has_served(&self, writer: &mut Writer) -> bool {
        if !writer.upkeep.served {
            self.settle(writer);
            let picked = |live: &Arc<Live>| live.picks.load(Ordering::Relaxed) > 0;
            writer.upkeep.served = writer.registered.values().any(picked);
        }
        writer.upkeep.served
    }

    /// Applies the steps of an outcome.
    #[cold]
    pub(super) fn follow(&self, live: &Arc<Live>, steps: [Option<Step>; 2], now: Timestamp) {
        let mut writer = self.write();
        // A request may end after its registration. The live state keeps the outcome for a return
        // of the address.
        if live.is_registered() {
            self.take_steps(&mut writer, &[(Arc::clone(live), steps)], now);
        }
    }

    /// Applies steps of registered addresses.
    fn take_steps(&self, writer: &mut Writer, taken: &[Taken], now: Timestamp) {
        let mut in_or_out = false;
        for (live, steps) in taken {
            for step in steps.iter().flatten() {
                match step {
                    Step::Active { state, first } => {
                        in_or_out = true;
                        if *state == ActiveState::Up && !first {
                            live.start_ramp(now);
                        }
                    }
                    Step::Passive { .. } => {}
                    Step::Breaker(BreakerStep::TrialUnknown) => continue,
                    Step::Breaker(BreakerStep::Closed(_)) => {
                        in_or_out = true;
                        // An address that the cap held was never out.
                        if !is_held(live) {
                            live.start_ramp(now);
                        }
                    }
                    Step::Breaker(BreakerStep::Opened { .. } | BreakerStep::HalfOpened) => in_or_out = true,
                }
                writer.upkeep.stale = true;
            }
            writer.upkeep.stir(live);
        }
        if in_or_out {
            for (live, _) in taken {
                self.decide(writer, live);
            }
            self.shared.epoch.fetch_add(1, Ordering::Release);
        }
        if writer.ejections.pool().panic != self.shared.view.load().panic {
            self.republish(writer);
        }
        for (live, steps) in taken {
            for step in steps.iter().flatten() {
                if let Some(what) = transitioned(*step, is_held(live), now) {
                    writer.upkeep.tell(Some(address_key(live)), what);
                }
            }
        }
        self.plan_for(writer, taken, now);
    }

    /// Decides about one address again, and applies every decision that changes with it.
    fn decide(&self, writer: &mut Writer, live: &Arc<Live>) {
        let changed = writer
            .ejections
            .change(address_key(live), Arc::clone(live), live.status());
        for (live, decision) in changed {
            heed(&live, decision, is_held(&live));
        }
    }

    /// Wakes the timer if there is news, or if something is due earlier than `advance` returned.
    pub(super) fn plan(&self, writer: &mut Writer, now: Timestamp) {
        let due = nanos_of(self.next(writer, now));
        if due < self.shared.due.swap(due, Ordering::Relaxed)
            || !writer.upkeep.untold.is_empty()
            || writer.overrides.has_ended()
        {
            self.wake();
        }
    }

    /// The same, if only these addresses have changed.
    fn plan_for(&self, writer: &mut Writer, taken: &[Taken], now: Timestamp) {
        let view = self.shared.view.load();
        let upkeep = &mut writer.upkeep;
        let ramps = taken
            .iter()
            .filter_map(|(live, _)| live.next_ramp_step(&view.config, now));
        upkeep.ramp_step = upkeep.ramp_step.into_iter().chain(ramps).min();
        let judged = taken.iter().filter_map(|(live, _)| live.next(&view.config, now));
        let tables = upkeep.stale.then(|| upkeep.ready_at());
        let due = nanos_of(judged.chain(tables).chain(upkeep.ramp_step).min());
        if due < self.shared.due.fetch_min(due, Ordering::Relaxed) || !upkeep.untold.is_empty() {
            self.wake();
        }
    }

    /// The time of the next step.
    fn next(&self, writer: &mut Writer, now: Timestamp) -> Option<Timestamp> {
        let view = self.shared.view.load();
        let upkeep = &mut writer.upkeep;
        let steps = upkeep
            .stirring
            .values()
            .filter_map(|live| live.next_ramp_step(&view.config, now));
        upkeep.ramp_step = steps.min();
        let judged = upkeep.stirring.values().filter_map(|live| live.next(&view.config, now));
        let tables = upkeep.stale.then(|| upkeep.ready_at());
        let due = judged.chain(tables).chain(upkeep.ramp_step).min();
        let round = Self::next_round(&view, upkeep, now);
        due.into_iter().chain(writer.overrides.next_end()).chain(round).min()
    }
}

/// Nanoseconds; `u64::MAX` for never.
fn nanos_of(due: Option<Timestamp>) -> u64 {
    due.map_or(u64::MAX, Timestamp::as_nanos)
}

fn is_held(live: &Live) -> bool {
    live.health().is_some_and(|health| health.held_by_cap)
}

fn is_refused(live: &Live) -> bool {
    live.health().is_some_and(|health| health.is_refused())
}
