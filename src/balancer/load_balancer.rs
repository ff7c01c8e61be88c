//! One service: what is registered, and who takes the next request.
//!
//! Readers ([`select_instance`](LoadBalancer::select_instance), [`acquire`](LoadBalancer::acquire)) load one view and touch
//! atomics. Writers take a lock among themselves, prepare the next view beside the present one and swap it in; old views are
//! dropped by a later writer, when no pick looks at them any more, so that no request pays for it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};

use super::clock::{Clock, Monotonic, Timestamp};
use super::config::LoadBalancerConfig;
use super::credit;
use super::diff::Changes;
use super::error::{PickError, UnknownInstance};
use super::explain::{ExplainedInstance, ExplainedKey, Explanation, Subject, objections};
use super::instance::{Address, HealthStatus, InstanceId, ServiceInstance, ServiceName, Weight};
use super::judgement::Decision;
use super::lease::{LeaseCounts, ReportError};
use super::live::{Live, Load};
use super::overrides::{Ended, InstanceOverrides, Order, OverrideCounts, Overrides, Standing, WeightOrder};
use super::pool::{Bodies, Context, Made, Member, NoBodies, Outcome, Render, View};
use super::statistics::{CheckStatistics, InstanceStatistics, LeaseStatistics, Refusals, ReportStatistics, Statistics};
use super::strategy::Mode;
use super::strategy::schedule::Turn;

mod publish;
mod tend;

use tend::Tending;
pub use tend::{Transition, Transitioned, Wake};

/// How long the live state of an address that left is kept for its return.
const REMEMBERED_FOR: Duration = Duration::from_secs(3_600);
/// How many of them at least; above that as many as there are instances.
const REMEMBERED: usize = 256;

/// What a balancer is handed besides its configuration.
#[derive(Clone)]
pub struct Tools {
    /// Tells the time.
    pub clock: Arc<dyn Clock>,
    /// Renders answers.
    pub render: Arc<dyn Render>,
    /// Told when something is due; `None` where nobody drives the time.
    pub wake: Option<Arc<dyn Wake>>,
}

impl Default for Tools {
    /// The machine's monotonic clock, and no bodies; nobody drives the time.
    fn default() -> Self {
        Self {
            clock: Arc::new(Monotonic::start()),
            render: Arc::new(NoBodies),
            wake: None,
        }
    }
}

impl fmt::Debug for Tools {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tools").finish_non_exhaustive()
    }
}

/// The balancer of one service.
///
/// ```
/// use pickd::{Context, LoadBalancer, LoadBalancerConfig, LoadBalancingStrategy, ServiceInstance, Weight};
///
/// let config = LoadBalancerConfig::new(LoadBalancingStrategy::WeightedRoundRobin);
/// let balancer = LoadBalancer::new("user-service".parse()?, config);
/// balancer.add_instance(ServiceInstance::new("user-1", "10.0.1.10", 8080)?);
/// balancer.add_instance(ServiceInstance::new("user-2", "10.0.1.11", 8080)?.with_weight(Weight::new(2)?));
///
/// let pick = balancer.select_instance(&Context::new())?;
/// println!("{} at {}", pick.id(), pick.address());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct LoadBalancer {
    service: ServiceName,
    view: ArcSwap<View>,
    /// Goes up when an admission changes: picks of views from before look at each instance.
    epoch: AtomicU64,
    /// Nanoseconds at which [`tend`](Self::tend) has something to do; `u64::MAX`: nothing.
    due: AtomicU64,
    /// How often the list of instances has changed.
    generation: AtomicU64,
    load: Arc<Load>,
    tools: Tools,
    not_synced: AtomicU64,
    no_instances: AtomicU64,
    none_available: AtomicU64,
    checks_passed: AtomicU64,
    checks_failed: AtomicU64,
    /// Nanoseconds that building the present view took.
    build_time: AtomicU64,
    writer: Mutex<Writer>,
}

/// What only writers look at.
struct Writer {
    turn: Arc<Turn>,
    /// The live state of each registered address.
    registered: HashMap<Address, Arc<Live>>,
    /// That of addresses that left, oldest first.
    departed: VecDeque<(Timestamp, Address, Arc<Live>)>,
    /// The ids that left, oldest first, and what they stood for: reports about them are still heard.
    departed_ids: VecDeque<(Timestamp, InstanceId)>,
    departed_lives: HashMap<InstanceId, (Timestamp, Arc<Live>)>,
    /// What those have counted that are forgotten by now: totals never go back.
    forgotten: Counted,
    /// Views that a pick may still look at.
    retired: Vec<Arc<View>>,
    /// When the last instance left; `None` while there are any.
    empty_since: Option<Timestamp>,
    overrides: Overrides,
    tending: Tending,
}

#[derive(Clone, Copy, Default)]
struct Counted {
    picks: u64,
    reported: u64,
    failed: u64,
    timed: u64,
    latency_nanos: u64,
}

impl Counted {
    fn add(&mut self, live: &Live) {
        self.picks += live.picks.load(Ordering::Relaxed);
        self.reported += live.reported.load(Ordering::Relaxed);
        self.failed += live.failed.load(Ordering::Relaxed);
        self.timed += live.timed.load(Ordering::Relaxed);
        self.latency_nanos += live.latency_nanos.load(Ordering::Relaxed);
    }
}

impl LoadBalancer {
    /// A balancer without instances, on the machine's clock. It starts its turns at a random place.
    #[must_use]
    pub fn new(service: ServiceName, config: LoadBalancerConfig) -> Self {
        Self::with_tools(service, config, Tools::default(), fastrand::u64(..))
    }

    /// The same with its clock, its renderer and the seed of its first turn handed in.
    #[must_use]
    pub fn with_tools(service: ServiceName, config: LoadBalancerConfig, tools: Tools, seed: u64) -> Self {
        let turn = Arc::new(Turn::starting_at(seed));
        let made = Made {
            epoch: 0,
            decision: &Decision::default(),
            turn: Arc::clone(&turn),
            previous: None,
        };
        let view = View::new(config, Box::default(), made);
        let writer = Writer {
            turn,
            registered: HashMap::new(),
            departed: VecDeque::new(),
            departed_ids: VecDeque::new(),
            departed_lives: HashMap::new(),
            forgotten: Counted::default(),
            retired: Vec::new(),
            empty_since: Some(tools.clock.now()),
            overrides: Overrides::default(),
            tending: Tending::default(),
        };
        Self {
            service,
            view: ArcSwap::from_pointee(view),
            epoch: AtomicU64::new(0),
            due: AtomicU64::new(u64::MAX),
            generation: AtomicU64::new(0),
            load: Arc::new(Load::new(Arc::clone(&tools.clock))),
            tools,
            not_synced: AtomicU64::new(0),
            no_instances: AtomicU64::new(0),
            none_available: AtomicU64::new(0),
            checks_passed: AtomicU64::new(0),
            checks_failed: AtomicU64::new(0),
            build_time: AtomicU64::new(0),
            writer: Mutex::new(writer),
        }
    }

    /// The service's name.
    #[must_use]
    pub fn service(&self) -> &ServiceName {
        &self.service
    }

    /// The configuration in force.
    #[must_use]
    pub fn config(&self) -> LoadBalancerConfig {
        self.view.load().config.clone()
    }

    /// What the strategy does at present.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.view.load().mode(&self.load)
    }

    /// Chooses the instance that should take the next request, and counts the pick.
    ///
    /// One atomic load of the view, no lock, no allocation. Do not hold the [`Pick`] over an await: it pins its view.
    ///
    /// # Errors
    ///
    /// [`PickError::Empty`] without instances, [`PickError::NoneAvailable`] when none of them may be picked.
    #[inline]
    pub fn select_instance(&self, context: &Context<'_>) -> Result<Pick, PickError> {
        let view = self.view.load();
        match view.choose(context, &self.load, self.epoch.load(Ordering::Acquire)) {
            Some(member) => {
                view.picks.increment(member);
                Ok(Pick {
                    view,
                    member: member as usize,
                })
            }
            None => Err(self.refusal(&view)),
        }
    }

    #[cold]
    fn refusal(&self, view: &View) -> PickError {
        let (service, total) = (self.service.clone(), view.members.len());
        match total {
            0 => PickError::Empty { service },
            _ => PickError::NoneAvailable { service, total },
        }
    }

    /// Counts a refusal. The directory does, which knows whether an empty service may only be one not heard of yet.
    pub(crate) fn count(&self, refusal: &PickError) {
        let counter = match refusal {
            PickError::NotSynced { .. } => &self.not_synced,
            PickError::Empty { .. } | PickError::Unknown { .. } => &self.no_instances,
            PickError::NoneAvailable { .. } => &self.none_available,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Chooses as [`select_instance`](Self::select_instance) does, and counts the request as in flight until it is handed to
    /// [`finish`](Self::finish) or dropped.
    ///
    /// # Errors
    ///
    /// As for `select_instance`.
    pub fn acquire(&self, context: &Context<'_>) -> Result<Acquired, PickError> {
        self.catch_up();
        self.select_instance(context).map(|pick| self.begin(&pick))
    }

    /// Counts what was picked as in flight.
    pub(crate) fn begin(&self, pick: &Pick) -> Acquired {
        let member = &pick.view.members[pick.member];
        let (instance, live) = (Arc::clone(&member.instance), Arc::clone(&member.live));
        live.begin();
        self.load.in_flight.fetch_add(1, Ordering::Relaxed);
        Acquired {
            instance,
            live,
            load: Arc::clone(&self.load),
        }
    }

    /// Ends a request: frees its place and learns from how it went. `latency` runs from the pick to the answer.
    pub fn finish(&self, acquired: Acquired, outcome: Outcome, latency: Duration) {
        self.learn(&acquired.live, outcome, Some(latency));
    }

    /// Learns from how a request went. A success without its latency counts, and leaves the average alone.
    pub(crate) fn learn(&self, live: &Arc<Live>, outcome: Outcome, latency: Option<Duration>) {
        let now = self.tools.clock.now();
        let view = self.view.load();
        live.record(outcome, latency, self.load.typical(view.slots().len()), now);
        if outcome == Outcome::Cancelled {
            return;
        }
        self.load.reported(view.slots(), now);
        let usual = self.load.usual(&view.config);
        let steps = live.judge(outcome, latency, usual, &view.config, now);
        drop(view);
        if steps != [None, None] {
            self.follow(live, steps, now);
        }
        self.catch_up();
    }

    /// Learns from an outcome that comes without a lease, as often as there were picks in the last minute.
    pub(crate) fn learn_on_credit(
        &self,
        live: &Arc<Live>,
        outcome: Outcome,
        latency: Option<Duration>,
    ) -> Result<(), ReportError> {
        let now = self.tools.clock.now();
        let take = || live.credit.take(live.picks.load(Ordering::Relaxed), now);
        // The latest picks may not have been handed over yet: only who seems to have no credit is worth asking for them.
        let credited = take() || {
            self.settle(&self.write());
            take()
        };
        if !credited {
            return Err(ReportError::NoCredit);
        }
        self.learn(live, outcome, latency);
        Ok(())
    }

    /// The live state of a registered instance, or of one that left lately.
    pub(crate) fn live(&self, id: &str) -> Option<Arc<Live>> {
        let view = self.view.load();
        match view
            .members
            .binary_search_by(|member| member.instance.id().as_str().cmp(id))
        {
            Ok(index) => view.members.get(index).map(|member| Arc::clone(&member.live)),
            Err(_) => self.write().departed_lives.get(id).map(|(_, live)| Arc::clone(live)),
        }
    }

    pub(crate) fn lease_counts(&self) -> &LeaseCounts {
        &self.load.leases
    }

    /// Requests in flight: leases that are open, and what was acquired and is not finished.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.load.in_flight.load(Ordering::Relaxed)
    }

    /// Its leases.
    #[must_use]
    pub fn leases(&self) -> LeaseStatistics {
        self.load.leases.leases()
    }

    /// Its reports.
    #[must_use]
    pub fn reports(&self) -> ReportStatistics {
        self.load.leases.reports()
    }

    /// Adds an instance, or replaces the one with its id.
    pub fn add_instance(&self, instance: ServiceInstance) -> Changes {
        let mut writer = self.write();
        let view = self.view.load_full();
        let others = view
            .members
            .iter()
            .filter(|member| member.instance.id() != instance.id());
        let mut all: Vec<Arc<ServiceInstance>> = others.map(|member| Arc::clone(&member.instance)).collect();
        all.push(Arc::new(instance));
        self.replace(&mut writer, view, all)
    }

    /// Removes an instance. Changes nothing if there is none of this id.
    pub fn remove_instance(&self, id: &InstanceId) -> Changes {
        let mut writer = self.write();
        let view = self.view.load_full();
        let others = view.members.iter().filter(|member| member.instance.id() != id);
        let rest = others.map(|member| Arc::clone(&member.instance)).collect();
        self.replace(&mut writer, view, rest)
    }

    /// Makes `all` the registered instances, in one step, however many changes that is. Of two with one id the last counts.
    pub fn apply(&self, all: impl IntoIterator<Item = Arc<ServiceInstance>>) -> Changes {
        let mut writer = self.write();
        let view = self.view.load_full();
        self.replace(&mut writer, view, all.into_iter().collect())
    }

    /// Balances as configured from now on. All that was learned stays.
    pub fn configure(&self, config: LoadBalancerConfig) {
        let mut writer = self.write();
        let view = self.view.load_full();
        if view.config != config {
            let instances = view.members.iter().map(|member| Arc::clone(&member.instance)).collect();
            self.publish(&mut writer, view, config, instances, &Changes::default());
        }
    }

    /// Drains an instance: it is not picked any more, from the next pick on. In place of an earlier order to drain it.
    ///
    /// The order ends when it is lifted, or in the first [`advance`](Self::advance) (or change of the service) after its time
    /// is over.
    ///
    /// # Errors
    ///
    /// When the id is not registered, and was not within the last hour.
    pub fn drain(&self, id: &InstanceId, order: Order) -> Result<(), UnknownInstance> {
        self.order(id, |overrides, now| overrides.drain(id, order, now))
    }

    /// Lifts the order that drains an instance, and returns it.
    ///
    /// # Errors
    ///
    /// As for [`drain`](Self::drain).
    pub fn undrain(&self, id: &InstanceId) -> Result<Option<Arc<Standing>>, UnknownInstance> {
        self.order(id, |overrides, _| overrides.undrain(id))
    }

    /// Gives an instance this weight in place of the registered one, from the next pick on; 0 drains it. Ends as
    /// [`drain`](Self::drain) does. The hash ring keeps the registered weight: there a lower weight gives up a share of the
    /// instance's keys, and a higher one changes nothing.
    ///
    /// # Errors
    ///
    /// As for [`drain`](Self::drain).
    pub fn set_weight(&self, id: &InstanceId, weight: Weight, order: Order) -> Result<(), UnknownInstance> {
        self.order(id, |overrides, now| overrides.set_weight(id, weight, order, now))
    }

    /// Gives an instance its registered weight back, and returns the order that is lifted.
    ///
    /// # Errors
    ///
    /// As for [`drain`](Self::drain).
    pub fn clear_weight(&self, id: &InstanceId) -> Result<Option<WeightOrder>, UnknownInstance> {
        self.order(id, |overrides, _| overrides.clear_weight(id))
    }

    /// Changes an order and publishes the view that follows from it.
    fn order<T>(
        &self,
        id: &InstanceId,
        change: impl FnOnce(&mut Overrides, Timestamp) -> T,
    ) -> Result<T, UnknownInstance> {
        let mut writer = self.write();
        let view = self.view.load_full();
        let now = self.tools.clock.now();
        let is_registered = view
            .members
            .binary_search_by(|member| member.instance.id().cmp(id))
            .is_ok();
        if !is_registered && !writer.overrides.remembers(id, now) {
            return Err(UnknownInstance {
                service: self.service.clone(),
                id: id.clone(),
            });
        }
        let changed = change(&mut writer.overrides, now);
        if is_registered {
            self.republish(&mut writer);
        }
        Ok(changed)
    }

    /// What is ordered of an id.
    #[must_use]
    pub fn overrides_of(&self, id: &InstanceId) -> InstanceOverrides {
        self.write().overrides.of(id)
    }

    /// Orders in force.
    #[must_use]
    pub fn override_counts(&self) -> OverrideCounts {
        self.write().overrides.counts()
    }

    /// Orders that ended by themselves since this was last asked; at most the last 1,024.
    #[must_use]
    pub fn take_ended(&self) -> Vec<Ended> {
        self.write().overrides.take_ended()
    }

    /// Why picks go where they go, and where one with this key would go. Changes nothing.
    #[must_use]
    pub fn explain(&self, key: Option<&[u8]>) -> Explanation {
        let view = self.view.load_full();
        let subject = self.subject(&view);
        let key = key.filter(|_| view.ring().is_some()).map(|key| {
            let member = view.peek(&Context::new().with_key(key), &self.load);
            ExplainedKey {
                instance: member.map(|member| member.instance.id().clone()),
                ring_order: subject.ring_order(key),
            }
        });
        Explanation {
            strategy: view.config.strategy(),
            mode: subject.mode,
            panic: view.panic,
            eligible_instances: view.eligible,
            usable_instances: view.usable,
            build_time: Duration::from_nanos(self.build_time.load(Ordering::Relaxed)),
            instances: subject.instances(None),
            key,
        }
    }

    /// The same for one instance; `None` if it is not registered.
    #[must_use]
    pub fn explain_instance(&self, id: &InstanceId) -> Option<ExplainedInstance> {
        let view = self.view.load_full();
        self.subject(&view).instances(Some(id)).pop()
    }

    fn subject<'a>(&'a self, view: &'a View) -> Subject<'a> {
        Subject {
            view,
            load: &self.load,
            mode: view.mode(&self.load),
            now: self.tools.clock.now(),
        }
    }

    /// Ends the overrides that are due, which [`advance`](Self::advance) does as well, and returns when the next one ends.
    pub fn end_overrides(&self, now: Timestamp) -> Option<Timestamp> {
        let mut writer = self.write();
        if writer.overrides.expire(now) {
            self.republish(&mut writer);
        }
        writer.overrides.next_end()
    }

    /// Does what time has made due: tends health ([`tend`](Self::tend)), ends overrides, forgets addresses that left long ago, drops views that nobody looks at, notes
    /// what was picked when (for the credit of reports without a lease). Returns when it should be called again, if anything is
    /// left to do.
    pub fn advance(&self, now: Timestamp) -> Option<Timestamp> {
        let tend_at = self.tend(now);
        let mut writer = self.write();
        if writer.overrides.expire(now) {
            self.republish(&mut writer);
        }
        let instances = self.view.load().members.len();
        writer.drop_retired(&self.load);
        writer.forget(now, instances);
        let forgotten_at = writer.departed.front().map(|(left_at, _, _)| *left_at + REMEMBERED_FOR);
        let retry_drop = (!writer.retired.is_empty()).then_some(now + Duration::from_secs(1));
        let override_ends = writer.overrides.next_end();
        self.settle(&writer);
        let present = writer.registered.values();
        let departed = writer.departed.iter().map(|(_, _, live)| live);
        let noted = |live: &&Arc<Live>| live.credit.note(live.picks.load(Ordering::Relaxed), now);
        let noting = present.chain(departed).filter(noted).count();
        let note_at = (noting > 0).then_some(now + credit::STEP);
        let due = forgotten_at
            .into_iter()
            .chain(retry_drop)
            .chain(override_ends)
            .chain(tend_at)
            .chain(note_at);
        due.min()
    }

    /// How long the service has been without instances; `None` while it has any.
    #[must_use]
    pub fn empty_for(&self, now: Timestamp) -> Option<Duration> {
        self.write().empty_since.map(|since| now.since(since))
    }

    /// Picks so far that found an instance. Never goes back.
    #[must_use]
    pub fn picks(&self) -> u64 {
        self.counted(&self.write()).picks
    }

    /// Whether too few instances are usable, so that all are candidates that only local judgement has taken out.
    #[must_use]
    pub fn panics(&self) -> bool {
        self.view.load().panic
    }

    /// Results of active checks so far.
    #[must_use]
    pub fn checks(&self) -> CheckStatistics {
        CheckStatistics {
            passed: self.checks_passed.load(Ordering::Relaxed),
            failed: self.checks_failed.load(Ordering::Relaxed),
        }
    }

    /// Picks so far of a pool that panicked: they are among [`picks`](Self::picks).
    #[must_use]
    pub fn panic_picks(&self) -> u64 {
        self.settle(&self.write());
        self.load.panic_picks.load(Ordering::Relaxed)
    }

    /// Picks through a [`Directory`](super::Directory) so far that found none, by reason.
    #[must_use]
    pub fn refusals(&self) -> Refusals {
        Refusals {
            not_synced: self.not_synced.load(Ordering::Relaxed),
            no_instances: self.no_instances.load(Ordering::Relaxed),
            none_available: self.none_available.load(Ordering::Relaxed),
        }
    }

    /// What the service has done so far.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        let now = self.tools.clock.now();
        // The lock keeps writers out, so that members and totals are of one moment.
        let writer = self.write();
        let counted = self.counted(&writer);
        let view = self.view.load_full();
        let instance = |member: &Member| {
            let live = &member.live;
            let layers = member.layers_now();
            let objections = objections(member, &layers, &view.config);
            let statistics = InstanceStatistics {
                status: layers.status(),
                available: objections.is_empty(),
                effective_weight: if objections.is_empty() || view.panic {
                    f64::from(member.units) / 16.0
                } else {
                    0.0
                },
                layers,
                objections,
                total_requests: live.picks.load(Ordering::Relaxed),
                reported_requests: live.reported.load(Ordering::Relaxed),
                failed_requests: live.failed.load(Ordering::Relaxed),
                consecutive_failures: live.consecutive_failures.load(Ordering::Relaxed),
                active_connections: live.in_flight(),
                average_response_time: live.average_response_time(),
                response_time: live.response_time(now).map(Duration::from_secs_f32),
            };
            (member.instance.id().clone(), statistics)
        };
        let instances: BTreeMap<_, _> = view.members.iter().map(instance).collect();
        Statistics {
            strategy: view.config.strategy(),
            total_requests: counted.picks,
            reported_requests: counted.reported,
            failed_requests: counted.failed,
            timed_requests: counted.timed,
            total_response_time: Duration::from_nanos(counted.latency_nanos),
            failure_rate: counted.failed as f64 / counted.reported.max(1) as f64,
            available_instances: instances.values().filter(|instance| instance.available).count(),
            total_instances: view.members.len(),
            instances,
        }
    }

    /// The registered instances with their derived status, sorted by id.
    #[must_use]
    pub fn instances(&self) -> Vec<(Arc<ServiceInstance>, HealthStatus)> {
        let view = self.view.load();
        view.members
            .iter()
            .map(|member| (Arc::clone(&member.instance), member.status))
            .collect()
    }

    fn write(&self) -> MutexGuard<'_, Writer> {
        // A writer that panicked has not swapped its view in: what is here is whole. At worst an address counts as
        // registered that is not yet.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the live states know every pick so far.
    fn settle(&self, writer: &Writer) {
        writer.retired.iter().for_each(|view| view.settle(&self.load));
        self.view.load().settle(&self.load);
    }

    /// Everything counted so far, and settled.
    fn counted(&self, writer: &Writer) -> Counted {
        self.settle(writer);
        let mut counted = writer.forgotten;
        writer.registered.values().for_each(|live| counted.add(live));
        writer.departed.iter().for_each(|(_, _, live)| counted.add(live));
        counted
    }
}

impl fmt::Debug for LoadBalancer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadBalancer")
            .field("service", &self.service)
            .field("view", &self.view)
            .finish_non_exhaustive()
    }
}

/// The answer to one pick: an instance, as it was in the view that was asked.
pub struct Pick {
    view: Guard<Arc<View>>,
    member: usize,
}

impl Pick {
    /// The configuration by which it was picked.
    pub(crate) fn config(&self) -> &LoadBalancerConfig {
        &self.view.config
    }

    /// The instance. (So does dereferencing.)
    #[must_use]
    #[inline]
    pub fn instance(&self) -> &ServiceInstance {
        &self.view.members[self.member].instance
    }

    /// Its derived status.
    #[must_use]
    pub fn status(&self) -> HealthStatus {
        self.view.members[self.member].status
    }

    /// Its rendered bodies.
    #[must_use]
    #[inline]
    pub fn bodies(&self) -> &Bodies {
        &self.view.members[self.member].bodies
    }

    /// Whether it comes from a pool that panics: too few instances were usable, so that all of them are candidates.
    #[must_use]
    #[inline]
    pub fn panic(&self) -> bool {
        self.view.panic
    }

    /// Up to `count` other instances to try in turn if this one fails: in ring order for a hashed key, else drawn by weight.
    /// Each differs from the others and fits `context`, which is the one of the pick. Counts no pick, advances no turn.
    #[must_use]
    pub fn alternates(&self, balancer: &LoadBalancer, count: usize, context: &Context<'_>) -> Vec<Alternate<'_>> {
        let members = self.view.alternates(self.member as u32, count, context, &balancer.load);
        let alternate = |member: u32| {
            self.view
                .members
                .get(member as usize)
                .map(|member| Alternate { member })
        };
        members.into_iter().filter_map(alternate).collect()
    }
}

impl Deref for Pick {
    type Target = ServiceInstance;

    fn deref(&self) -> &ServiceInstance {
        self.instance()
    }
}

impl fmt::Debug for Pick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pick").field(self.instance()).finish()
    }
}

/// Another instance to try.
#[derive(Clone, Copy, Debug)]
pub struct Alternate<'a> {
    member: &'a Member,
}

impl<'a> Alternate<'a> {
    /// The instance.
    #[must_use]
    pub fn instance(&self) -> &'a ServiceInstance {
        &self.member.instance
    }

    /// Its rendered bodies.
    #[must_use]
    pub fn bodies(&self) -> &'a Bodies {
        &self.member.bodies
    }
}

/// A request in flight. Dropping it frees its place as if the request had been cancelled.
#[derive(Debug)]
pub struct Acquired {
    instance: Arc<ServiceInstance>,
    live: Arc<Live>,
    load: Arc<Load>,
}

impl Acquired {
    pub(crate) fn live(&self) -> &Arc<Live> {
        &self.live
    }
}

impl Deref for Acquired {
    type Target = ServiceInstance;

    fn deref(&self) -> &ServiceInstance {
        &self.instance
    }
}

impl Drop for Acquired {
    fn drop(&mut self) {
        self.live.end();
        self.load.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
