//! What time and judgement change in a pool, between the changes of its registry.
//!
//! ```text
//! outcome, check, time ──► step of one layer ──► follow: admissions at once, transitions to tell
//!                                                   └──► tend, a moment later: one new view for all of them
//! ```
//!
//! A step acts on the very next pick, through the admissions. The tables follow in [`LoadBalancer::tend`]: at once if no view
//! was made in the last [`GAP`], else when it is over; a pool so large that a view takes long waits twenty times that, at most
//! a second. Whoever begins or ends to panic is not kept waiting.
//!
//! Deciding looks at every instance. In a [`LARGE`] pool a step therefore acts for its own instance alone, within the room
//! that the last decision left, and the next view decides exactly: ten thousand that fail together cost ten thousand steps,
//! and not as many decisions.

use std::collections::{HashMap, VecDeque};
use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::publish::{address_key, judged};
use super::{LoadBalancer, Writer};
use crate::balancer::clock::Timestamp;
use crate::balancer::config::LoadBalancerConfig;
use crate::balancer::health::address::Step;
use crate::balancer::health::breaker::{BreakerStep, Recovery, Trip};
use crate::balancer::health::checks::{ActiveState, Check, CheckFailure};
use crate::balancer::health::ejection;
use crate::balancer::health::ejection::{Admission, Candidate, Decision};
use crate::balancer::health::grade::PassiveState;
use crate::balancer::instance::{Address, InstanceId, ServiceInstance, ServiceName};
use crate::balancer::live::Live;
use crate::balancer::member::Member;

/// Between two views that follow a change of health, at least.
const GAP: Duration = Duration::from_millis(50);
/// And at most, whatever a view costs.
const WIDEST_GAP: Duration = Duration::from_secs(1);
/// Times what making a view took: so that it costs a twentieth of a processor at most.
const GAP_FOR_COST: u32 = 20;
/// From so many instances on a step does not wait until the whole pool was looked at.
const LARGE: usize = 512;
/// Transitions that wait to be told. Nobody may ever ask.
const UNTOLD: usize = 1_024;

/// Somebody who drives the time.
pub trait Wake: Send + Sync {
    /// A service has instances that it had not, or [`LoadBalancer::tend`] is due sooner than it said. Called under the service's
    /// lock: only notes it.
    fn wake(&self, service: &ServiceName);
}

/// Something that happened to the health of an instance, or to its pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// The instances at the address that it happened to; none if it is about the pool.
    pub instances: Vec<InstanceId>,
    /// What happened.
    pub what: Transitioned,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transitioned {
    /// Active checks pass.
    Up {
        /// They had not run before.
        first: bool,
    },
    /// Active checks fail.
    Down(CheckFailure),
    /// Outcomes grade it otherwise than before.
    Graded {
        /// As what.
        grade: PassiveState,
        /// They had not graded it before.
        first: bool,
    },
    /// Its breaker opened.
    Opened {
        /// Why.
        because: Trip,
        /// For how long.
        open_for: Duration,
        /// The pool cannot do without it: picked all the same.
        held_by_cap: bool,
    },
    /// Its breaker lets trials through.
    HalfOpened,
    /// Its breaker closed.
    Closed(Recovery),
    /// So few are usable that all are candidates.
    PanicBegan {
        /// How many are.
        usable: usize,
        /// Of how many.
        eligible: usize,
    },
    /// Enough are usable again.
    PanicEnded,
}

/// What the writer keeps for this.
#[derive(Default)]
pub(super) struct Tending {
    /// Live states in which something changes with time.
    stirring: HashMap<usize, Arc<Live>>,
    /// When the next of them comes further on its ramp, as of the present view.
    ramp_step: Option<Timestamp>,
    /// The present view's tables are not what they should be.
    stale: bool,
    /// When the present view was made, and how long that took.
    built_at: Option<Timestamp>,
    build_time: Duration,
    /// What the last decision left, less what single steps have used of it.
    left: Left,
    /// The service has answered a pick.
    served: bool,
    /// By address.
    untold: VecDeque<(Option<usize>, Transitioned)>,
}

/// What steps of single instances may do without a decision about the whole pool.
#[derive(Clone, Copy, Debug, Default)]
struct Left {
    /// How many more breakers may take out.
    room: usize,
    usable: usize,
    /// Below so many the pool panics.
    needed: usize,
}

impl Tending {
    /// Notes what was decided.
    pub(super) fn decided(&mut self, decision: &Decision) {
        self.left = Left {
            room: decision.room,
            usable: decision.usable,
            needed: decision.needed.unwrap_or_default(),
        };
    }

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

    fn tell(&mut self, address: Option<usize>, what: Transitioned) {
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
    pub(super) fn panics(&mut self, before: bool, decision: &Decision) {
        match (before, decision.panic) {
            (false, true) => {
                let (usable, eligible) = (decision.usable, decision.eligible);
                self.tell(None, Transitioned::PanicBegan { usable, eligible });
            }
            (true, false) => self.tell(None, Transitioned::PanicEnded),
            _ => {}
        }
    }

    /// When the next view may be made.
    fn ready_at(&self) -> Timestamp {
        let gap = (self.build_time * GAP_FOR_COST).clamp(GAP, WIDEST_GAP);
        self.built_at.map_or(Timestamp::default(), |built_at| built_at + gap)
    }
}

/// What one event, or the passing of time, changed of an address.
type Taken = (Arc<Live>, [Option<Step>; 2]);

impl LoadBalancer {
    /// Takes the result of an active check of this address. Acts on the next pick. An address that is not registered is ignored.
    pub fn observe(&self, address: &Address, check: Check) {
        let now = self.tools.clock.now();
        let mut writer = self.write();
        let Some(live) = writer.registered.get(address).map(Arc::clone) else {
            return;
        };
        let counter = match check {
            Check::Pass => &self.checks_passed,
            Check::Fail(_) => &self.checks_failed,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        let step = live.observe(check, &self.view.load().config, now);
        if step.is_some() {
            self.take_steps(&mut writer, &[(live, [step, None])], now);
        }
    }

    /// Forgets what active checks said, because they do not run any more.
    pub fn forget_checks(&self) {
        let now = self.tools.clock.now();
        let mut writer = self.write();
        // Those that left may come back.
        let departed = writer.departed.iter().map(|(_, _, live)| live);
        let lives = writer.registered.values().chain(departed);
        if lives.filter(|live| live.forget_checks()).count() > 0 {
            self.decide_anew(&mut writer);
            self.plan(&mut writer, now);
        }
    }

    /// How often the list of instances has changed.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The addresses of the registered instances, each once, but for those that must not be contacted.
    #[must_use]
    pub fn addresses_to_check(&self) -> Vec<Address> {
        let view = self.view.load();
        let allowed = |member: &&Member| !member.verdict.layers.address_refused;
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

    /// What happened to health since this was last asked; at most the last 1,024 transitions.
    #[must_use]
    pub fn take_transitions(&self) -> Vec<Transition> {
        let mut writer = self.write();
        if writer.tending.untold.is_empty() {
            return Vec::new();
        }
        let untold = mem::take(&mut writer.tending.untold);
        let view = self.view.load();
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
            // Who has left meanwhile is nobody's concern.
            Some(address) => ids.get(&address).map(|instances| Transition {
                instances: instances.clone(),
                what,
            }),
        };
        untold.into_iter().filter_map(told).collect()
    }

    /// Does what time has made due in the health of instances: breakers become half open, trials expire, ramps rise, tables
    /// follow. Returns when it should be called again; [`Wake`] tells if that becomes sooner.
    ///
    /// Without anybody who drives the time ([`Tools::wake`](super::Tools)), requests that are acquired, leased, finished or reported do it.
    pub fn tend(&self, now: Timestamp) -> Option<Timestamp> {
        let mut writer = self.write();
        let view = self.view.load_full();
        let usual = self.load.usual(&view.config);
        let mut taken = Vec::new();
        writer.tending.stirring.retain(|_, live| {
            let advanced = live.advance(usual, &view.config, now);
            if advanced.steps != [None, None] {
                taken.push((Arc::clone(live), advanced.steps));
            }
            advanced.next.is_some()
        });
        drop(view);
        if !taken.is_empty() {
            self.take_steps(&mut writer, &taken, now);
        }
        if writer.tending.ramp_step.is_some_and(|step| step <= now) {
            writer.tending.stale = true;
        }
        if writer.tending.stale && writer.tending.ready_at() <= now {
            self.republish(&mut writer);
        }
        let next = self.next(&mut writer, now);
        self.due.store(nanos_of(next), Ordering::Relaxed);
        next
    }

    /// Does what is due, where nobody else does.
    pub(crate) fn catch_up(&self) {
        let due = self.due.load(Ordering::Relaxed);
        if due != u64::MAX && self.tools.wake.is_none() {
            let now = self.tools.clock.now();
            if due <= now.as_nanos() {
                self.tend(now);
            }
        }
    }

    pub(super) fn wake(&self) {
        if let Some(wake) = &self.tools.wake {
            wake.wake(&self.service);
        }
    }

    /// Whether any pick was ever answered with an instance.
    pub(super) fn has_served(&self, writer: &mut Writer) -> bool {
        if !writer.tending.served {
            self.settle(writer);
            let picked = |live: &Arc<Live>| live.picks.load(Ordering::Relaxed) > 0;
            writer.tending.served = writer.registered.values().any(picked);
        }
        writer.tending.served
    }

    /// Acts on what an outcome changed.
    #[cold]
    pub(super) fn follow(&self, live: &Arc<Live>, steps: [Option<Step>; 2], now: Timestamp) {
        let mut writer = self.write();
        // A request may outlive the registration that it was sent to. What it says is kept, for its return.
        if live.is_registered() {
            self.take_steps(&mut writer, &[(Arc::clone(live), steps)], now);
        }
    }

    /// Acts on steps of addresses that are registered.
    fn take_steps(&self, writer: &mut Writer, taken: &[Taken], now: Timestamp) {
        let is_held = |live: &Live| live.judgement().is_some_and(|judgement| judgement.held_by_cap);
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
                        // One that the cap held was never out.
                        if !is_held(live) {
                            live.start_ramp(now);
                        }
                    }
                    Step::Breaker(BreakerStep::Opened { .. } | BreakerStep::HalfOpened) => in_or_out = true,
                }
                writer.tending.stale = true;
            }
            writer.tending.stir(live);
        }
        if in_or_out && !self.acted_alone(writer, taken) {
            self.decide_anew(writer);
        }
        for (live, steps) in taken {
            for step in steps.iter().flatten() {
                if let Some(what) = transitioned(*step, is_held(live), now) {
                    writer.tending.tell(Some(address_key(live)), what);
                }
            }
        }
        self.plan_for(writer, taken, now);
    }

    /// Has picks heed these steps, if that can be done without looking at the whole pool.
    fn acted_alone(&self, writer: &mut Writer, taken: &[Taken]) -> bool {
        let view = self.view.load();
        if view.members.len() < LARGE {
            return false;
        }
        let steps = taken
            .iter()
            .flat_map(|(live, steps)| steps.iter().flatten().map(move |step| (live, *step)));
        let mut left = writer.tending.left;
        let all = steps.into_iter().all(|(live, step)| left.act(live, step, view.panic));
        writer.tending.left = left;
        self.epoch.fetch_add(1, Ordering::Release);
        all
    }

    /// Decides who is out, and has picks heed it from now on.
    fn decide_anew(&self, writer: &mut Writer) {
        let view = self.view.load_full();
        let candidates: Vec<Candidate> = view
            .members
            .iter()
            .map(|member| candidate(member, &view.config))
            .collect();
        let decision = ejection::decide(candidates.iter().copied(), &view.config);
        for (member, candidate) in view.members.iter().zip(&candidates) {
            if let Some(mut judgement) = member.live.judgement() {
                judgement.held_by_cap = decision.held.contains(&candidate.address);
            }
            member.live.admit(decision.admission(candidate));
        }
        self.epoch.fetch_add(1, Ordering::Release);
        writer.tending.decided(&decision);
        writer.tending.stale = true;
        if decision.panic != view.panic {
            drop(view);
            self.republish(writer);
        }
    }

    /// Wakes whoever drives the time if there is something to tell, or due sooner than was said.
    pub(super) fn plan(&self, writer: &mut Writer, now: Timestamp) {
        let due = nanos_of(self.next(writer, now));
        if due < self.due.swap(due, Ordering::Relaxed) || !writer.tending.untold.is_empty() {
            self.wake();
        }
    }

    /// The same, where only these have changed.
    fn plan_for(&self, writer: &mut Writer, taken: &[Taken], now: Timestamp) {
        let view = self.view.load();
        let tending = &mut writer.tending;
        let ramps = taken
            .iter()
            .filter_map(|(live, _)| live.next_ramp_step(&view.config, now));
        tending.ramp_step = tending.ramp_step.into_iter().chain(ramps).min();
        let judged = taken.iter().filter_map(|(live, _)| live.next(&view.config, now));
        let tables = tending.stale.then(|| tending.ready_at());
        let due = nanos_of(judged.chain(tables).chain(tending.ramp_step).min());
        if due < self.due.fetch_min(due, Ordering::Relaxed) || !tending.untold.is_empty() {
            self.wake();
        }
    }

    /// When something is due next.
    fn next(&self, writer: &mut Writer, now: Timestamp) -> Option<Timestamp> {
        let view = self.view.load();
        let tending = &mut writer.tending;
        let steps = tending
            .stirring
            .values()
            .filter_map(|live| live.next_ramp_step(&view.config, now));
        tending.ramp_step = steps.min();
        let judged = tending
            .stirring
            .values()
            .filter_map(|live| live.next(&view.config, now));
        let tables = tending.stale.then(|| tending.ready_at());
        judged.chain(tables).chain(tending.ramp_step).min()
    }
}

impl Left {
    /// Has picks heed a step of one instance. False: the whole pool has to be looked at.
    fn act(&mut self, live: &Live, step: Step, panic: bool) -> bool {
        let Some(mut judgement) = live.judgement().filter(|_| live.is_one_eligible()) else {
            return false;
        };
        let is_down = judgement
            .active
            .said()
            .is_some_and(|said| said.state != ActiveState::Up);
        match step {
            Step::Passive { .. } | Step::Breaker(BreakerStep::TrialUnknown) => true,
            // Who is eligible changes.
            Step::Active {
                state: ActiveState::Down(CheckFailure::AddressRefused),
                ..
            } => false,
            // Everybody is in, until enough are usable again.
            _ if panic => match step {
                Step::Active {
                    state: ActiveState::Up, ..
                }
                | Step::Breaker(BreakerStep::Closed(_)) => {
                    self.usable += 1;
                    self.usable < self.needed
                }
                _ => true,
            },
            Step::Active {
                state: ActiveState::Up,
                first,
            } => {
                live.admit(match judgement.wish() {
                    Some(wish) if !judgement.held_by_cap && wish.half_open => Admission::Trial,
                    Some(_) if !judgement.held_by_cap => Admission::Out,
                    _ => Admission::In,
                });
                // Before its first check it was in already.
                self.usable += usize::from(!first && live.admission() == Admission::In);
                true
            }
            Step::Active { .. } if live.admission() != Admission::In => {
                live.admit(Admission::Out);
                true
            }
            Step::Active { .. } => self.take(live),
            Step::Breaker(_) if is_down => true,
            Step::Breaker(BreakerStep::Opened { .. }) => {
                if live.admission() != Admission::In {
                    live.admit(Admission::Out);
                } else if self.room == 0 || self.usable <= 1 || !self.take(live) {
                    judgement.held_by_cap = true;
                } else {
                    self.room -= 1;
                }
                true
            }
            Step::Breaker(BreakerStep::HalfOpened) => {
                if !judgement.held_by_cap {
                    live.admit(Admission::Trial);
                }
                true
            }
            Step::Breaker(BreakerStep::Closed(_)) => {
                if live.admission() != Admission::In {
                    live.admit(Admission::In);
                    self.usable += 1;
                    self.room += 1;
                }
                judgement.held_by_cap = false;
                true
            }
        }
    }

    /// Takes one out, unless too few would be left.
    fn take(&mut self, live: &Live) -> bool {
        let enough = self.usable > self.needed;
        if enough {
            live.admit(Admission::Out);
            self.usable -= 1;
        }
        enough
    }
}

/// `u64::MAX`: never.
fn nanos_of(due: Option<Timestamp>) -> u64 {
    due.map_or(u64::MAX, Timestamp::as_nanos)
}

/// A member as it is decided about between views.
fn candidate(member: &Member, config: &LoadBalancerConfig) -> Candidate {
    let order = member.verdict.weight.as_ref().map(|order| order.weight);
    let said = member.verdict.layers.clone();
    judged(&member.instance, said, order, &member.live, config).1
}

fn transitioned(step: Step, held_by_cap: bool, now: Timestamp) -> Option<Transitioned> {
    Some(match step {
        Step::Active {
            state: ActiveState::Up,
            first,
        } => Transitioned::Up { first },
        Step::Active {
            state: ActiveState::Down(why),
            ..
        } => Transitioned::Down(why),
        Step::Passive { grade, first } => Transitioned::Graded { grade, first },
        Step::Breaker(BreakerStep::Opened { because, until }) => Transitioned::Opened {
            because,
            open_for: until.since(now),
            held_by_cap,
        },
        Step::Breaker(BreakerStep::HalfOpened) => Transitioned::HalfOpened,
        Step::Breaker(BreakerStep::Closed(because)) => Transitioned::Closed(because),
        Step::Breaker(BreakerStep::TrialUnknown) => return None,
    })
}
