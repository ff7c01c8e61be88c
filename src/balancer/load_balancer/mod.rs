//! The balancer of one service: its instances, and the choice among them.
//!
//! Readers ([`select_instance`](LoadBalancer::select_instance), [`acquire`](LoadBalancer::acquire))
//! load one view and touch atomics. Writers take one lock, prepare the next view beside the present
//! one and swap it in. A later writer drops old views when no pick uses them any more, so that no
//! request pays for the drop.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;

use self::writer::{Counted, Upkeep, Writer};
use super::clock::Timestamp;
use super::config::{CookieName, LoadBalancerConfig};
use super::diff::Changes;
use super::environment::{Environment, Wake};
use super::error::{PickError, ReportError, UnknownInstance};
use super::health::ejection::{Ejections, PoolHealth};
use super::instance::{HealthStatus, InstanceId, ServiceInstance, ServiceName, Weight};
use super::live::{Live, Load};
use super::member::{Member, unavailable_reasons};
use super::outcome::Outcome;
use super::overrides::{Ended, InstanceOverrides, Order, OverrideCounts, Overrides, StandingOrder, WeightOrder};
use super::retry::RetryBudget;
use super::sessions::{Limits, Sessions};
use super::statistics::{
    CheckStatistics, InstanceStatistics, LeaseCounts, LeaseStatistics, Refusals, ReportStatistics, SessionStatistics,
    Statistics,
};
use super::strategy::draw::Mode;
use super::strategy::schedule::Turn;
use super::view::{View, ViewParts};

mod adapt;
pub(crate) mod call;
pub(crate) mod pick;
mod publish;
pub(crate) mod transitions;
mod upkeep;
mod writer;

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
///
/// The balancer is a handle: clones share everything.
#[derive(Clone)]
pub struct LoadBalancer {
    pub(crate) shared: Arc<Shared>,
}

/// The state that all handles of a balancer share.
pub(crate) struct Shared {
    service: ServiceName,
    pub(crate) view: ArcSwap<View>,
    /// Goes up when an admission changes: a pick of an older view checks each instance that it
    /// considers.
    epoch: AtomicU64,
    /// Nanoseconds at which [`advance`](Self::advance) is due; `u64::MAX`: not at all.
    due: AtomicU64,
    /// The number of changes of the list of instances.
    generation: AtomicU64,
    pub(crate) load: Arc<Load>,
    pub(crate) environment: Environment,
    /// Whether a timer calls `advance`. If not, requests do what is due.
    is_driven: AtomicBool,
    not_synced: AtomicU64,
    no_instances: AtomicU64,
    unknown_port: AtomicU64,
    none_available: AtomicU64,
    checks_passed: AtomicU64,
    checks_failed: AtomicU64,
    /// Nanoseconds that building the present view took.
    pub(crate) build_time: AtomicU64,
    pub(crate) retries: RetryBudget,
    sessions: Arc<Sessions>,
    writer: Mutex<Writer>,
}

impl LoadBalancer {
    /// A balancer without instances, on the monotonic clock of the machine. Its first turn is
    /// random.
    #[must_use]
    pub fn new(service: ServiceName, config: LoadBalancerConfig) -> Self {
        Self::with_environment(service, config, Environment::default(), fastrand::u64(..))
    }

    /// The same with a clock, a renderer, a wake and the seed of the first turn.
    #[must_use]
    pub fn with_environment(
        service: ServiceName,
        config: LoadBalancerConfig,
        environment: Environment,
        seed: u64,
    ) -> Self {
        let is_driven = environment.wake.is_some();
        Self::driven(service, config, environment, seed, is_driven)
    }

    /// The same for a balancer of a directory: its wake records what is due even if no timer drives
    /// the directory.
    pub(crate) fn driven(
        service: ServiceName,
        config: LoadBalancerConfig,
        environment: Environment,
        seed: u64,
        is_driven: bool,
    ) -> Self {
        let now = environment.clock.now();
        let turn = Arc::new(Turn::starting_at(seed));
        let load = Arc::new(Load::new(Arc::clone(&environment.clock)));
        let sessions = Sessions::new(service.clone(), environment.session_key.clone());
        sessions.switch(config.sticky_sessions());
        let made = ViewParts {
            epoch: 0,
            health: PoolHealth::default(),
            fail_open: false,
            load: Arc::clone(&load),
            turn: Arc::clone(&turn),
            previous: None,
            sessions: &sessions,
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
            empty_since: Some(now),
            overrides: Overrides::default(),
            ejections: Ejections::default(),
            upkeep: Upkeep::default(),
            on_change: Vec::new(),
        };
        let shared = Shared {
            service,
            view: ArcSwap::from_pointee(view),
            epoch: AtomicU64::new(0),
            due: AtomicU64::new(u64::MAX),
            generation: AtomicU64::new(0),
            load,
            environment,
            is_driven: AtomicBool::new(is_driven),
            not_synced: AtomicU64::new(0),
            no_instances: AtomicU64::new(0),
            unknown_port: AtomicU64::new(0),
            none_available: AtomicU64::new(0),
            checks_passed: AtomicU64::new(0),
            checks_failed: AtomicU64::new(0),
            build_time: AtomicU64::new(0),
            retries: RetryBudget::new(now),
            sessions,
            writer: Mutex::new(writer),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// The name of the service.
    #[must_use]
    pub fn service(&self) -> &ServiceName {
        &self.shared.service
    }

    /// The present configuration.
    #[must_use]
    pub fn config(&self) -> LoadBalancerConfig {
        self.shared.view.load().config.clone()
    }

    /// What the strategy does at present.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.shared.view.load().mode(&self.shared.load)
    }

    /// Counts a refused pick. The directory calls this, since only the directory knows whether a
    /// source has not synced yet.
    pub(crate) fn count(&self, refusal: &PickError) {
        let counter = match refusal {
            PickError::NotSynced { .. } => &self.shared.not_synced,
            PickError::Empty { .. } | PickError::Unknown { .. } => &self.shared.no_instances,
            PickError::UnknownPort { .. } => &self.shared.unknown_port,
            PickError::NoneAvailable { .. } => &self.shared.none_available,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Learns from the outcome of a request. A success without a latency counts, and leaves the
    /// average alone.
    pub(crate) fn learn(&self, live: &Arc<Live>, outcome: Outcome, latency: Option<Duration>) {
        let now = self.shared.environment.clock.now();
        let view = self.shared.view.load();
        live.record(outcome, latency, self.shared.load.typical_cost(view.slots().len()), now);
        if outcome == Outcome::Cancelled {
            return;
        }
        self.shared
            .load
            .reported(view.slots().iter().map(|slot| &*slot.live), now);
        let pool_latency = self.shared.load.pool_latency(&view.config);
        let steps = live.record_health(outcome, latency, pool_latency, &view.config, now);
        drop(view);
        if steps != [None, None] {
            self.follow(live, steps, now);
        }
        self.catch_up();
    }

    /// Learns from an outcome without a lease, at most as often as there were picks in the last
    /// minute.
    pub(crate) fn learn_on_credit(
        &self,
        live: &Arc<Live>,
        outcome: Outcome,
        latency: Option<Duration>,
    ) -> Result<(), ReportError> {
        let now = self.shared.environment.clock.now();
        let take = || live.credit.take(live.picks.load(Ordering::Relaxed), now);
        // The view may still hold the latest picks. They are settled only if the credit seems to be
        // used up.
        let credited = take() || {
            self.settle(&self.write());
            take()
        };
        if !credited {
            return Err(ReportError::NoCredit);
        }
        // Only the caller that was let through to the instance says for how long it stays out.
        let outcome = match outcome {
            Outcome::RejectedFor(_) => Outcome::Rejected,
            outcome => outcome,
        };
        self.learn(live, outcome, latency);
        Ok(())
    }

    /// The live state of a registered instance, or of an instance that left in the last hour.
    pub(crate) fn live(&self, id: &str) -> Option<Arc<Live>> {
        let view = self.shared.view.load();
        match view.member(id) {
            Some(member) => Some(Arc::clone(&member.live)),
            None => self.write().departed_lives.get(id).map(|(_, live)| Arc::clone(live)),
        }
    }

    pub(crate) fn lease_counts(&self) -> &LeaseCounts {
        &self.shared.load.leases
    }

    /// Requests in flight: open leases, and acquired requests that are not finished.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.shared.load.in_flight.load(Ordering::Relaxed)
    }

    /// Statistics of the leases of the service.
    #[must_use]
    pub fn leases(&self) -> LeaseStatistics {
        self.shared.load.leases.leases()
    }

    /// Statistics of the reports about the service.
    #[must_use]
    pub fn reports(&self) -> ReportStatistics {
        self.shared.load.leases.reports()
    }

    /// Statistics of the sticky sessions of the service. `None` without
    /// [`sticky_sessions`](LoadBalancerConfig::sticky_sessions).
    #[must_use]
    pub fn sessions(&self) -> Option<SessionStatistics> {
        let view = self.shared.view.load();
        let now = self.shared.environment.clock.now();
        view.is_sticky()
            .then(|| self.shared.sessions.statistics(Limits::of(&view.config), now))
    }

    /// The cookie with the key of the session. `None` without sticky sessions, at the cost of one
    /// atomic read.
    #[must_use]
    pub fn session_cookie(&self) -> Option<CookieName> {
        let is_on = self.shared.sessions.is_on();
        is_on.then(|| self.shared.view.load().config.session_cookie_name().clone())
    }

    /// Adds an instance, or replaces the instance with the same id.
    ///
    /// ```
    /// use pickd::{LoadBalancer, LoadBalancerConfig, ServiceInstance, Weight};
    ///
    /// let balancer = LoadBalancer::new("user-service".parse()?, LoadBalancerConfig::default());
    /// let user_1 = ServiceInstance::new("user-1", "10.0.1.10", 8080)?;
    /// assert_eq!(balancer.add_instance(user_1.clone()).added.len(), 1);
    /// assert_eq!(balancer.add_instance(user_1.clone().with_weight(Weight::new(2)?)).updated.len(), 1);
    /// assert_eq!(balancer.remove_instance(user_1.id()).removed.len(), 1);
    /// assert!(balancer.instances().is_empty());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn add_instance(&self, instance: ServiceInstance) -> Changes {
        let mut writer = self.write();
        let view = self.shared.view.load_full();
        let others = view
            .members
            .iter()
            .filter(|member| member.instance.id() != instance.id());
        let mut all: Vec<Arc<ServiceInstance>> = others.map(|member| Arc::clone(&member.instance)).collect();
        all.push(Arc::new(instance));
        self.replace(&mut writer, view, all)
    }

    /// Removes an instance. Changes nothing if no instance has this id.
    pub fn remove_instance(&self, id: &InstanceId) -> Changes {
        let mut writer = self.write();
        let view = self.shared.view.load_full();
        let others = view.members.iter().filter(|member| member.instance.id() != id);
        let rest = others.map(|member| Arc::clone(&member.instance)).collect();
        self.replace(&mut writer, view, rest)
    }

    /// Replaces all registered instances in one step. If two have the same id, the last one counts.
    pub fn apply(&self, all: impl IntoIterator<Item = Arc<ServiceInstance>>) -> Changes {
        let mut writer = self.write();
        let view = self.shared.view.load_full();
        self.replace(&mut writer, view, all.into_iter().collect())
    }

    /// Applies another configuration. Everything that was learned stays.
    pub fn configure(&self, config: LoadBalancerConfig) {
        let mut writer = self.write();
        let view = self.shared.view.load_full();
        if view.config != config {
            let instances = view.members.iter().map(|member| Arc::clone(&member.instance)).collect();
            self.publish(&mut writer, view, config, instances, &Changes::default());
            writer.tell_change();
        }
    }

    /// Calls this wake after each change of the instances or of the configuration, for as long as it
    /// exists. Called under locks of the balancer: an implementation only takes a note.
    pub fn on_change(&self, wake: Weak<dyn Wake>) {
        let mut writer = self.write();
        writer.on_change.retain(|wake| wake.strong_count() > 0);
        writer.on_change.push(wake);
    }

    /// Drains an instance: no pick chooses it from now on. Replaces an earlier drain of the
    /// instance.
    ///
    /// The id may also be a registered id that the pool does not use, if it means one instance: see
    /// [`ServiceInstance::registrations`].
    ///
    /// The drain ends when it is lifted, or with the first [`advance`](Self::advance) (or change of
    /// the service) after its time to live.
    ///
    /// # Errors
    ///
    /// When the id is not registered, and was not registered within the last hour; or when it is
    /// registered at several addresses, of which none has this id in the pool.
    pub fn drain(&self, id: &InstanceId, order: Order) -> Result<(), UnknownInstance> {
        self.order(id, |overrides, id, now| overrides.drain(id, order, now))
    }

    /// Lifts the drain of an instance, and returns it.
    ///
    /// # Errors
    ///
    /// As for [`drain`](Self::drain).
    pub fn undrain(&self, id: &InstanceId) -> Result<Option<Arc<StandingOrder>>, UnknownInstance> {
        self.order(id, |overrides, id, _| overrides.undrain(id))
    }

    /// Replaces the registered weight of an instance from the next pick on; 0 drains the instance.
    /// The override ends as a [`drain`](Self::drain) does. The hash ring keeps the registered
    /// weight: there a lower weight gives up a share of the keys of the instance, and a higher
    /// weight changes nothing.
    ///
    /// # Errors
    ///
    /// As for [`drain`](Self::drain).
    pub fn set_weight(&self, id: &InstanceId, weight: Weight, order: Order) -> Result<(), UnknownInstance> {
        self.order(id, |overrides, id, now| overrides.set_weight(id, weight, order, now))
    }

    /// Restores the registered weight of an instance, and returns the lifted override.
    ///
    /// # Errors
    ///
    /// As for [`drain`](Self::drain).
    pub fn clear_weight(&self, id: &InstanceId) -> Result<Option<WeightOrder>, UnknownInstance> {
        self.order(id, |overrides, id, _| overrides.clear_weight(id))
    }

    /// Changes an override, and publishes the view that follows from it.
    fn order<T>(
        &self,
        id: &InstanceId,
        change: impl FnOnce(&mut Overrides, &InstanceId, Timestamp) -> T,
    ) -> Result<T, UnknownInstance> {
        let mut writer = self.write();
        let view = self.shared.view.load_full();
        let now = self.shared.environment.clock.now();
        let (registered_as, is_registered) = match &*view.ids_of(id) {
            [] if writer.overrides.remembers(id, now) => (id.clone(), false),
            [registered_as] => (InstanceId::clone(registered_as), true),
            several => {
                return Err(UnknownInstance {
                    service: self.shared.service.clone(),
                    id: id.clone(),
                    registered_as: several.iter().copied().cloned().collect(),
                });
            }
        };
        let changed = change(&mut writer.overrides, &registered_as, now);
        if is_registered {
            self.republish(&mut writer);
        } else {
            // The override may end earlier than anything else, or have been the last one.
            self.plan(&mut writer, now);
            self.wake();
        }
        Ok(changed)
    }

    /// The overrides of an id. A registered id that the pool does not use finds its instance, as
    /// in [`drain`](Self::drain).
    #[must_use]
    pub fn overrides_of(&self, id: &InstanceId) -> InstanceOverrides {
        let writer = self.write();
        let view = self.shared.view.load_full();
        match &*view.ids_of(id) {
            [registered_as] => writer.overrides.of(registered_as),
            _ => writer.overrides.of(id),
        }
    }

    /// The number of active overrides.
    #[must_use]
    pub fn override_counts(&self) -> OverrideCounts {
        self.write().overrides.counts()
    }

    /// Overrides that ended by themselves since the last call; at most the last 1,024.
    #[must_use]
    pub fn take_ended(&self) -> Vec<Ended> {
        self.write().overrides.take_ended()
    }

    /// How long the service has had no instances. `None` while it has any.
    #[must_use]
    pub fn empty_for(&self, now: Timestamp) -> Option<Duration> {
        self.write().empty_since.map(|since| now.since(since))
    }

    /// Picks so far that returned an instance. Never decreases.
    #[must_use]
    pub fn picks(&self) -> u64 {
        self.counted(&self.write()).picks
    }

    /// Whether the pool is in panic mode: too few instances are usable, so all eligible instances
    /// are candidates.
    #[must_use]
    pub fn panics(&self) -> bool {
        self.shared.view.load().panic
    }

    /// Whether the service fails open: the registry calls every instance critical, and the critical
    /// instances are candidates, because [`fail_open`](LoadBalancerConfig::fail_open) is set.
    #[must_use]
    pub fn fails_open(&self) -> bool {
        self.shared.view.load().fail_open
    }

    /// The place of the tier in turn among the [tiers](super::Tier) of the service; 0 is the first.
    /// `None` while no instance can be picked.
    #[must_use]
    pub fn tier_in_turn(&self) -> Option<usize> {
        self.shared.view.load().place_in_turn()
    }

    /// Results of active checks so far.
    #[must_use]
    pub fn checks(&self) -> CheckStatistics {
        CheckStatistics {
            passed: self.shared.checks_passed.load(Ordering::Relaxed),
            failed: self.shared.checks_failed.load(Ordering::Relaxed),
        }
    }

    /// Picks in panic mode so far. [`picks`](Self::picks) counts them as well.
    #[must_use]
    pub fn panic_picks(&self) -> u64 {
        self.settle(&self.write());
        self.shared.load.panic_picks.load(Ordering::Relaxed)
    }

    /// Picks so far while the service failed open, outside panic mode. [`picks`](Self::picks) counts
    /// them as well.
    #[must_use]
    pub fn fail_open_picks(&self) -> u64 {
        self.settle(&self.write());
        self.shared.load.fail_open_picks.load(Ordering::Relaxed)
    }

    /// Picks through a [`Directory`](super::Directory) so far that returned no instance, by reason.
    #[must_use]
    pub fn refusals(&self) -> Refusals {
        Refusals {
            not_synced: self.shared.not_synced.load(Ordering::Relaxed),
            no_instances: self.shared.no_instances.load(Ordering::Relaxed),
            unknown_port: self.shared.unknown_port.load(Ordering::Relaxed),
            none_available: self.shared.none_available.load(Ordering::Relaxed),
        }
    }

    /// Statistics of the service so far.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use pickd::{Context, LoadBalancer, LoadBalancerConfig, Outcome, ServiceInstance};
    ///
    /// let balancer = LoadBalancer::new("user-service".parse()?, LoadBalancerConfig::default());
    /// balancer.add_instance(ServiceInstance::new("user-1", "10.0.1.10", 8080)?);
    /// for outcome in [Outcome::Success, Outcome::Success, Outcome::Success, Outcome::Failure] {
    ///     balancer.acquire(&Context::new())?.finish(outcome, Duration::from_millis(20));
    /// }
    /// let statistics = balancer.statistics();
    /// assert_eq!((statistics.total_requests, statistics.failed_requests), (4, 1));
    /// assert_eq!(statistics.failure_rate, 0.25);
    /// assert_eq!((statistics.available_instances, statistics.total_instances), (1, 1));
    /// assert_eq!(statistics.instances["user-1"].consecutive_failures, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        let now = self.shared.environment.clock.now();
        // The lock keeps writers out, so that members and totals belong to one moment.
        let writer = self.write();
        let counted = self.counted(&writer);
        let view = self.shared.view.load_full();
        let instance = |member: &Member| (member.instance.id().clone(), instance_statistics(member, &view, now));
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

    /// Statistics of one instance; `None` if no instance has this id.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use pickd::{Context, LoadBalancer, LoadBalancerConfig, Outcome, ServiceInstance};
    ///
    /// let balancer = LoadBalancer::new("user-service".parse()?, LoadBalancerConfig::default());
    /// balancer.add_instance(ServiceInstance::new("user-1", "10.0.1.10", 8080)?);
    /// for milliseconds in [30, 10] {
    ///     balancer.acquire(&Context::new())?.finish(Outcome::Success, Duration::from_millis(milliseconds));
    /// }
    ///
    /// let user_1 = balancer.instance_statistics(&"user-1".parse()?).ok_or("unknown")?;
    /// assert_eq!((user_1.total_requests, user_1.active_connections, user_1.consecutive_failures), (2, 0, 0));
    /// assert_eq!(user_1.total_response_time, Duration::from_millis(40));
    /// assert_eq!(user_1.last_response_time, Some(Duration::from_millis(10)));
    /// assert_eq!(user_1.average_response_time, Duration::from_millis(20));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn instance_statistics(&self, id: &InstanceId) -> Option<InstanceStatistics> {
        let now = self.shared.environment.clock.now();
        self.settle(&self.write());
        let view = self.shared.view.load_full();
        let member = view.member(id.as_str())?;
        Some(instance_statistics(member, &view, now))
    }

    /// The registered instances with their derived status, sorted by id.
    #[must_use]
    pub fn instances(&self) -> Vec<(Arc<ServiceInstance>, HealthStatus)> {
        let view = self.shared.view.load();
        view.members
            .iter()
            .map(|member| (Arc::clone(&member.instance), member.status))
            .collect()
    }

    fn write(&self) -> MutexGuard<'_, Writer> {
        // A writer that panicked has not swapped its view in, so the state is whole. At worst an
        // address counts as registered that is not registered yet.
        self.shared.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the picks that views have counted to the live states.
    fn settle(&self, writer: &Writer) {
        writer
            .retired
            .iter()
            .for_each(|view| view.flush_picks(&self.shared.load));
        self.shared.view.load().flush_picks(&self.shared.load);
    }

    /// Everything counted so far, settled.
    fn counted(&self, writer: &Writer) -> Counted {
        self.settle(writer);
        let mut counted = writer.forgotten;
        writer.registered.values().for_each(|live| counted.add(live));
        writer.departed.iter().for_each(|(_, _, live)| counted.add(live));
        counted
    }
}

/// The statistics of a member, whose picks are settled.
fn instance_statistics(member: &Member, view: &View, now: Timestamp) -> InstanceStatistics {
    let live = &member.live;
    let layers = member.layers_now();
    let unavailable_reasons = unavailable_reasons(member, &layers, &view.config);
    InstanceStatistics {
        status: layers.status(),
        adaptive_factor: view.config.adapts().then(|| match member.state.weight {
            Some(_) => 1.0,
            None => live.adaptive_factor(&view.config),
        }),
        available: unavailable_reasons.is_empty(),
        in_turn: view.is_in_turn(member.tier),
        flapping: live.is_flapping(now),
        effective_weight: if view.lets_through(member, &unavailable_reasons) {
            f64::from(member.units) / 16.0
        } else {
            0.0
        },
        layers,
        unavailable_reasons,
        total_requests: live.picks.load(Ordering::Relaxed),
        reported_requests: live.reported.load(Ordering::Relaxed),
        failed_requests: live.failed.load(Ordering::Relaxed),
        consecutive_failures: live.consecutive_failures.load(Ordering::Relaxed),
        active_connections: live.in_flight(),
        timed_requests: live.timed.load(Ordering::Relaxed),
        total_response_time: live.total_response_time(),
        last_response_time: live.last_response_time(),
        average_response_time: live.average_response_time(),
        response_time: live.response_time(now).map(Duration::from_secs_f32),
    }
}

impl fmt::Debug for LoadBalancer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadBalancer")
            .field("service", &self.shared.service)
            .field("view", &self.shared.view)
            .finish_non_exhaustive()
    }
}
