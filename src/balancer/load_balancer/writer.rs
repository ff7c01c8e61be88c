//! What only writers look at, under their lock.
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::transitions::Transitioned;
use crate::balancer::clock::Timestamp;
use crate::balancer::health::ejection::{Decision, Ejections, PoolHealth};
use crate::balancer::instance::{Address, InstanceId};
use crate::balancer::live::{Live, Load, address_key};
use crate::balancer::member::Member;
use crate::balancer::overrides::Overrides;
use crate::balancer::strategy::schedule::Turn;
use crate::balancer::view::View;

/// How long the live state of an address that left is kept for its return.
pub(super) const REMEMBERED_FOR: Duration = Duration::from_secs(3_600);
/// How many of them at least; above that as many as there are instances.
pub(super) const REMEMBERED: usize = 256;

/// Between two views that follow a change of health, at least.
pub(super) const GAP: Duration = Duration::from_millis(50);
/// And at most, whatever a view costs.
pub(super) const WIDEST_GAP: Duration = Duration::from_secs(1);
/// Times what making a view took: so that it costs a twentieth of a processor at most.
pub(super) const GAP_FOR_COST: u32 = 20;
/// Transitions that wait to be told. Nobody may ever ask.
pub(super) const UNTOLD: usize = 1_024;

/// What only writers look at.
pub(super) struct Writer {
    pub(super) turn: Arc<Turn>,
    /// The live state of each registered address.
    pub(super) registered: HashMap<Address, Arc<Live>>,
    /// That of addresses that left, oldest first.
    pub(super) departed: VecDeque<(Timestamp, Address, Arc<Live>)>,
    /// The ids that left, oldest first, and what they stood for: reports about them are still heard.
    pub(super) departed_ids: VecDeque<(Timestamp, InstanceId)>,
    pub(super) departed_lives: HashMap<InstanceId, (Timestamp, Arc<Live>)>,
    /// What those have counted that are forgotten by now: totals never go back.
    pub(super) forgotten: Counted,
    /// Views that a pick may still look at.
    pub(super) retired: Vec<Arc<View>>,
    /// When the last instance left; `None` while there are any.
    pub(super) empty_since: Option<Timestamp>,
    pub(super) overrides: Overrides,
    pub(super) ejections: Ejections<Arc<Live>>,
    pub(super) upkeep: Upkeep,
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
    /// One more instance at this address. Its live state is the present one, that from before it left, or a fresh one.
    pub(super) fn arrive(&mut self, address: &Address) -> Arc<Live> {
        if let Some(live) = self.registered.get(address) {
            return Arc::clone(live);
        }
        let remembered = self.departed.iter().position(|(_, departed, _)| departed == address);
        let live = remembered.and_then(|index| self.departed.remove(index));
        let live = live.map(|(_, _, live)| live).unwrap_or_default();
        self.registered.insert(address.clone(), Arc::clone(&live));
        live
    }

    /// One instance less at this address, which is remembered for a while if that was the last one.
    pub(super) fn leave(&mut self, address: &Address, now: Timestamp) {
        let was_last = self.registered.get(address).is_some_and(|live| live.remove_instance());
        if was_last && let Some((address, live)) = self.registered.remove_entry(address) {
            self.upkeep.calm(&live);
            self.departed.push_back((now, address, live));
        }
    }

    /// Remembers the ids of `old` that are not in `new`. Both are sorted by id.
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
            // Who left more than once is forgotten with the last time.
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

    /// Settles all retired views, and drops those that nobody looks at.
    pub(super) fn drop_retired(&mut self, load: &Load) {
        self.retired.retain_mut(|view| {
            // The swap has turned the picks that look at a view into counted references. Asked before settling, in a way
            // that orders the last pick before it (`strong_count` would not).
            let in_use = Arc::get_mut(view).is_none();
            view.flush_picks(load);
            in_use
        });
    }
}

/// Has picks heed what was decided of an address: every decision comes through here. `was_held` is whether the cap held it
/// before.
pub(super) fn heed(live: &Live, decision: Decision, was_held: bool) {
    live.admit(decision.admission);
    if decision.held_by_cap != was_held
        && let Some(mut health) = live.health()
    {
        health.held_by_cap = decision.held_by_cap;
    }
}

/// What the writer keeps for this.
#[derive(Default)]
pub(super) struct Upkeep {
    /// Live states in which something changes with time.
    pub(super) stirring: HashMap<usize, Arc<Live>>,
    /// When the next of them comes further on its ramp, as of the present view.
    pub(super) ramp_step: Option<Timestamp>,
    /// The present view's tables are not what they should be.
    pub(super) stale: bool,
    /// When the present view was made, and how long that took.
    pub(super) built_at: Option<Timestamp>,
    pub(super) build_time: Duration,
    /// When the next step of housekeeping begins.
    pub(super) kept_house_until: Timestamp,
    /// The service has answered a pick.
    pub(super) served: bool,
    /// By address.
    pub(super) untold: VecDeque<(Option<usize>, Transitioned)>,
}

impl Upkeep {
    pub(super) fn start_ramp(&mut self, live: &Arc<Live>, now: Timestamp) {
        live.start_ramp(now);
        self.stir(live);
    }

    /// Looks after it until nothing changes with time any more.
    pub(super) fn stir(&mut self, live: &Arc<Live>) {
        self.stirring
            .entry(address_key(live))
            .or_insert_with(|| Arc::clone(live));
    }

    /// Whoever is not registered is not looked after.
    pub(super) fn calm(&mut self, live: &Arc<Live>) {
        self.stirring.remove(&address_key(live));
    }

    pub(super) fn tell(&mut self, address: Option<usize>, what: Transitioned) {
        if self.untold.len() == UNTOLD {
            self.untold.pop_front();
        }
        self.untold.push_back((address, what));
    }

    /// Notes that a view was made.
    pub(super) fn built(&mut self, now: Timestamp, took: Duration) {
        (self.stale, self.built_at, self.build_time) = (false, Some(now), took);
    }

    /// Tells if a new view begins or ends to panic.
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

    /// When the next view may be made.
    pub(super) fn ready_at(&self) -> Timestamp {
        let gap = (self.build_time * GAP_FOR_COST).clamp(GAP, WIDEST_GAP);
        self.built_at.map_or(Timestamp::default(), |built_at| built_at + gap)
    }
}
