//! The state of writers, under their lock.
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::transitions::Transitioned;
use crate::balancer::adaptive::Loop;
use crate::balancer::clock::Timestamp;
use crate::balancer::environment::Wake;
use crate::balancer::health::ejection::{Decision, Ejections, PoolHealth};
use crate::balancer::instance::{Address, InstanceId, Tier};
use crate::balancer::live::{Live, Load, address_key};
use crate::balancer::member::Member;
use crate::balancer::overrides::Overrides;
use crate::balancer::strategy::schedule::Turn;
use crate::balancer::view::View;

/// How long the live state of an address that left is kept.
pub(super) const REMEMBERED_FOR: Duration = Duration::from_secs(3_600);
/// The number of departed addresses that is always kept. A larger pool keeps as many as it has
/// instances.
pub(super) const REMEMBERED: usize = 256;

/// The least time between two views that follow changes of health.
pub(super) const GAP: Duration = Duration::from_millis(50);
/// The longest such time.
pub(super) const WIDEST_GAP: Duration = Duration::from_secs(1);
/// The gap as a multiple of the time that building a view took, so that building costs at most a
/// twentieth of one core.
pub(super) const GAP_FOR_COST: u32 = 20;
/// The most transitions that are kept for a caller that may never ask.
pub(super) const UNTOLD: usize = 1_024;

/// The state of writers.
pub(super) struct Writer {
    pub(super) turn: Arc<Turn>,
    /// The live state of each registered address.
    pub(super) registered: HashMap<Address, Arc<Live>>,
    /// The live state of addresses that left, oldest first.
    pub(super) departed: VecDeque<(Timestamp, Address, Arc<Live>)>,
    /// The ids that left, oldest first. Reports about them still count.
    pub(super) departed_ids: VecDeque<(Timestamp, InstanceId)>,
    pub(super) departed_lives: HashMap<InstanceId, (Timestamp, Arc<Live>)>,
    /// The counts of forgotten addresses, so that totals never decrease.
    pub(super) forgotten: Counted,
    /// Views that a pick may still use.
    pub(super) retired: Vec<Arc<View>>,
    /// When the last instance left. `None` while the service has instances.
    pub(super) empty_since: Option<Timestamp>,
    pub(super) overrides: Overrides,
    pub(super) ejections: Ejections<Arc<Live>>,
    pub(super) upkeep: Upkeep,
    /// Called after each change of the instances or of the configuration.
    pub(super) on_change: Vec<Weak<dyn Wake>>,
}

#[derive(Clone, Copy, Default)]
pub(super) struct Counted {
    pub(super) picks: u64,
    pub(super) reported: u64,
    pub(super) failed: u64,
    pub(super) timed: u64,
    pub(super) latency_nanos: u64,
}

impl Counted {
    pub(super) fn add(&mut self, live: &Live) {
        self.picks += live.picks.load(Ordering::Relaxed);
        self.reported += live.reported.load(Ordering::Relaxed);
        self.failed += live.failed.load(Ordering::Relaxed);
        self.timed += live.timed.load(Ordering::Relaxed);
        self.latency_nanos += live.latency_nanos.load(Ordering::Relaxed);
    }
}

impl Writer {
    /// Tells the callers of `on_change` about a change.
    pub(super) fn tell_change(&self) {
        for wake in self.on_change.iter().filter_map(Weak::upgrade) {
            wake.wake();
        }
    }

    /// Adds an instance to an address. Returns the present live state of the address, the one from
    /// before the address left, or a new one.
    pub(super) fn arrive(&mut self, address: &Address, now: Timestamp) -> Arc<Live> {
        if let Some(live) = self.registered.get(address) {
            return Arc::clone(live);
        }
        let remembered = self.departed.iter().position(|(_, departed, _)| departed == address);
        let live = match remembered.and_then(|index| self.departed.remove(index)) {
            Some((_, _, live)) => {
                self.upkeep.registry_changed(&live, now);
                live
            }
            None => Arc::default(),
        };
        self.registered.insert(address.clone(), Arc::clone(&live));
        live
    }

    /// Removes an instance from an address. An address without instances is kept for a while.
    pub(super) fn leave(&mut self, address: &Address, now: Timestamp) {
        let was_last = self.registered.get(address).is_some_and(|live| live.remove_instance());
        if was_last && let Some((address, live)) = self.registered.remove_entry(address) {
            self.upkeep.calm(&live);
            live.registry_changed(now);
            self.departed.push_back((now, address, live));
        }
    }

    /// Keeps the ids of `old` that are not in `new`. Both are sorted by id.
    pub(super) fn depart_ids(&mut self, old: &[Member], new: &[Member], now: Timestamp) {
        let mut present = new.iter().map(|member| member.instance.id()).peekable();
        for member in old {
            let id = member.instance.id();
            while present.next_if(|present| *present < id).is_some() {}
            if present.peek() != Some(&id) {
                self.departed_ids.push_back((now, id.clone()));
                self.departed_lives.insert(id.clone(), (now, Arc::clone(&member.live)));
            }
        }
    }

    pub(super) fn forget(&mut self, now: Timestamp, instances: usize) {
        let most = REMEMBERED.max(instances);
        while let Some((left_at, id)) = self.departed_ids.front() {
            if self.departed_ids.len() <= most && now.since(*left_at) < REMEMBERED_FOR {
                break;
            }
            // An id that left more than once is forgotten with the last time.
            if self.departed_lives.get(id).is_some_and(|(last, _)| last == left_at) {
                self.departed_lives.remove(id);
            }
            self.departed_ids.pop_front();
        }
        while let Some((left_at, _, _)) = self.departed.front() {
            if self.departed.len() <= most && now.since(*left_at) < REMEMBERED_FOR {
                break;
            }
            if let Some((_, _, live)) = self.departed.pop_front() {
                self.forgotten.add(&live);
            }
        }
    }

    /// Forgets what adaptive weights have learned, because they do not apply any more.
    pub(super) fn forget_adaptive(&mut self) {
        self.upkeep.adaptive.stop();
        let departed = self.departed.iter().map(|(_, _, live)| live);
        for live in self.registered.values().chain(departed) {
            if let Some(mut tracked) = live.adaptive_if_any() {
                *tracked = Default::default();
            }
        }
    }

    /// Settles all retired views, and drops those that no pick uses.
    pub(super) fn drop_retired(&mut self, load: &Load) {
        self.retired.retain_mut(|view| {
            // The swap has turned the picks of a view into counted references. This check comes
            // before settling, and orders the last pick before it (`strong_count` would not).
            let in_use = Arc::get_mut(view).is_none();
            view.flush_picks(load);
            in_use
        });
    }
}

/// Applies a decision about an address to its live state. Every decision is applied here.
/// `was_held`: the cap held the address before.
pub(super) fn heed(live: &Live, decision: Decision, was_held: bool) {
    live.admit(decision.admission);
    if decision.held_by_cap != was_held
        && let Some(mut health) = live.health()
    {
        health.held_by_cap = decision.held_by_cap;
    }
}

/// The state of upkeep.
#[derive(Default)]
pub(super) struct Upkeep {
    /// Live states that change with time.
    pub(super) stirring: HashMap<usize, Arc<Live>>,
    /// When the next slow start takes a step, as of the present view.
    pub(super) ramp_step: Option<Timestamp>,
    /// The tables of the present view are out of date.
    pub(super) stale: bool,
    /// When the present view was built, and how long that took.
    pub(super) built_at: Option<Timestamp>,
    pub(super) build_time: Duration,
    /// When the next step of housekeeping begins.
    pub(super) kept_house_until: Timestamp,
    /// The service has answered a pick.
    pub(super) served: bool,
    /// The loop of adaptive weights.
    pub(super) adaptive: Loop,
    /// The tier that was in turn last.
    pub(super) tier: Option<Tier>,
    /// Transitions, by address.
    pub(super) untold: VecDeque<(Option<usize>, Transitioned)>,
}

impl Upkeep {
    pub(super) fn start_ramp(&mut self, live: &Arc<Live>, now: Timestamp) {
        live.start_ramp(now);
        self.stir(live);
    }

    /// Records a change of an address in its registry.
    pub(super) fn registry_changed(&mut self, live: &Arc<Live>, now: Timestamp) {
        if live.registry_changed(now) {
            let changes = live.registry_changes(now);
            self.tell(Some(address_key(live)), Transitioned::Flapping { changes });
        }
    }

    /// Advances this live state until it no longer changes with time.
    pub(super) fn stir(&mut self, live: &Arc<Live>) {
        self.stirring
            .entry(address_key(live))
            .or_insert_with(|| Arc::clone(live));
    }

    /// Stops advancing a live state: only registered addresses are advanced.
    pub(super) fn calm(&mut self, live: &Arc<Live>) {
        self.stirring.remove(&address_key(live));
    }

    pub(super) fn tell(&mut self, address: Option<usize>, what: Transitioned) {
        if self.untold.len() == UNTOLD {
            self.untold.pop_front();
        }
        self.untold.push_back((address, what));
    }

    /// Records that a view was built.
    pub(super) fn built(&mut self, now: Timestamp, took: Duration) {
        (self.stale, self.built_at, self.build_time) = (false, Some(now), took);
    }

    /// Records a transition if a new view begins or ends panic mode.
    pub(super) fn panics(&mut self, before: bool, pool: PoolHealth) {
        let PoolHealth {
            eligible,
            usable,
            panic,
        } = pool;
        match (before, panic) {
            (false, true) => self.tell(None, Transitioned::PanicBegan { usable, eligible }),
            (true, false) => self.tell(None, Transitioned::PanicEnded),
            _ => {}
        }
    }

    /// Records a transition if another tier is in turn than the last time that one was.
    pub(super) fn tier_in_turn(&mut self, now: Option<Tier>) {
        let Some(now) = now else { return };
        if let Some(before) = self.tier.replace(now)
            && before != now
        {
            self.tell(None, Transitioned::TierChanged { before, now });
        }
    }

    /// Records a transition if a new view begins or ends to fail open.
    pub(super) fn fails_open(&mut self, before: bool, now: bool, pool: PoolHealth) {
        match (before, now) {
            (false, true) => {
                let instances = pool.eligible;
                self.tell(None, Transitioned::FailOpenBegan { instances });
            }
            (true, false) => self.tell(None, Transitioned::FailOpenEnded),
            _ => {}
        }
    }

    /// When the next view may be built.
    pub(super) fn ready_at(&self) -> Timestamp {
        let gap = (self.build_time * GAP_FOR_COST).clamp(GAP, WIDEST_GAP);
        self.built_at.map_or(Timestamp::default(), |built_at| built_at + gap)
    }
}
