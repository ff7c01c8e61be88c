//! One service: what is registered, and who takes the next request.
//!
//! Readers ([`select_instance`](LoadBalancer::select_instance), [`acquire`](LoadBalancer::acquire)) load one view and touch
//! atomics. Writers take a lock among themselves, prepare the next view beside the present one and swap it in; old views are
//! dropped by a later writer, when no pick looks at them any more, so that no request pays for it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;

use self::writer::{Counted, Upkeep, Writer};
use super::clock::Timestamp;
use super::config::LoadBalancerConfig;
use super::diff::Changes;
use super::environment::Environment;
use super::error::{PickError, ReportError, UnknownInstance};
use super::health::ejection::{Ejections, PoolHealth};
use super::instance::{HealthStatus, InstanceId, ServiceInstance, ServiceName, Weight};
use super::live::{Live, Load};
use super::member::{Member, unavailable_reasons};
use super::outcome::Outcome;
use super::overrides::{Ended, InstanceOverrides, Order, OverrideCounts, Overrides, StandingOrder, WeightOrder};
use super::statistics::{
    CheckStatistics, InstanceStatistics, LeaseCounts, LeaseStatistics, Refusals, ReportStatistics, Statistics,
};
use super::strategy::draw::Mode;
use super::strategy::schedule::Turn;
use super::view::{View, ViewParts};

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
/// A handle: its clones are the same balancer.
#[derive(Clone)]
pub struct LoadBalancer {
    pub(crate) shared: Arc<Shared>,
}

/// What all handles of a balancer share.
pub(crate) struct Shared {
    service: ServiceName,
    pub(crate) view: ArcSwap<View>,
    /// Goes up when an admission changes: picks of views from before look at each instance.
    epoch: AtomicU64,
    /// Nanoseconds at which [`advance`](Self::advance) has something to do; `u64::MAX`: nothing.
    due: AtomicU64,
    /// How often the list of instances has changed.
    generation: AtomicU64,
    pub(crate) load: Arc<Load>,
    pub(crate) environment: Environment,
    /// A timer calls `advance`; else requests do what is due.
    is_driven: bool,
    not_synced: AtomicU64,
    no_instances: AtomicU64,
    none_available: AtomicU64,
    checks_passed: AtomicU64,
    checks_failed: AtomicU64,
    /// Nanoseconds that building the present view took.
    pub(crate) build_time: AtomicU64,
    writer: Mutex<Writer>,
}

impl LoadBalancer {
    /// A balancer without instances, on the machine's clock. It starts its turns at a random place.
    #[must_use]
    pub fn new(service: ServiceName, config: LoadBalancerConfig) -> Self {
        Self::with_environment(service, config, Environment::default(), fastrand::u64(..))
    }

    /// The same with its clock, its renderer and the seed of its first turn handed in.
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

    /// The same for a balancer of a directory, whose wake notes what is due even where no timer drives the directory.
    pub(crate) fn driven(
        service: ServiceName,
        config: LoadBalancerConfig,
        environment: Environment,
        seed: u64,
        is_driven: bool,
    ) -> Self {
        let turn = Arc::new(Turn::starting_at(seed));
        let load = Arc::new(Load::new(Arc::clone(&environment.clock)));
        let made = ViewParts {
            epoch: 0,
            health: PoolHealth::default(),
            load: Arc::clone(&load),
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
            empty_since: Some(environment.clock.now()),
            overrides: Overrides::default(),
            ejections: Ejections::default(),
            upkeep: Upkeep::default(),
        };
        let shared = Shared {
            service,
            view: ArcSwap::from_pointee(view),
            epoch: AtomicU64::new(0),
            due: AtomicU64::new(u64::MAX),
            generation: AtomicU64::new(0),
            load,
            environment,
            is_driven,
            not_synced: AtomicU64::new(0),
            no_instances: AtomicU64::new(0),
            none_available: AtomicU64::new(0),
            checks_passed: AtomicU64::new(0),
            checks_failed: AtomicU64::new(0),
            build_time: AtomicU64::new(0),
            writer: Mutex::new(writer),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// The service's name.
    #[must_use]
    pub fn service(&self) -> &ServiceName {
        &self.shared.service
    }

    /// The configuration in force.
    #[must_use]
    pub fn config(&self) -> LoadBalancerConfig {
        self.shared.view.load().config.clone()
    }

    /// What the strategy does at present.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.shared.view.load().mode(&self.shared.load)
    }

    /// Counts a refusal. The directory does, which knows whether an empty service may only be one not heard of yet.
    pub(crate) fn count(&self, refusal: &PickError) {
        let counter = match refusal {
            PickError::NotSynced { .. } => &self.shared.not_synced,
            PickError::Empty { .. } | PickError::Unknown { .. } => &self.shared.no_instances,
            PickError::NoneAvailable { .. } => &self.shared.none_available,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Learns from how a request went. A success without its latency counts, and leaves the average alone.
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

    /// Learns from an outcome that comes without a lease, as often as there were picks in the last minute.
    pub(crate) fn learn_on_credit(
        &self,
        live: &Arc<Live>,
        outcome: Outcome,
        latency: Option<Duration>,
    ) -> Result<(), ReportError> {
        let now = self.shared.environment.clock.now();
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
        let view = self.shared.view.load();
        match view
            .members
            .binary_search_by(|member| member.instance.id().as_str().cmp(id))
        {
            Ok(index) => view.members.get(index).map(|member| Arc::clone(&member.live)),
            Err(_) => self.write().departed_lives.get(id).map(|(_, live)| Arc::clone(live)),
        }
    }

    pub(crate) fn lease_counts(&self) -> &LeaseCounts {
        &self.shared.load.leases
    }

    /// Requests in flight: leases that are open, and what was acquired and is not finished.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.shared.load.in_flight.load(Ordering::Relaxed)
    }

    /// Its leases.
    #[must_use]
    pub fn leases(&self) -> LeaseStatistics {
        self.shared.load.leases.leases()
    }

    /// Its reports.
    #[must_use]
    pub fn reports(&self) -> ReportStatistics {
        self.shared.load.leases.reports()
    }

    /// Adds an instance, or replaces the one with its id.
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

    /// Removes an instance. Changes nothing if there is none of this id.
    pub fn remove_instance(&self, id: &InstanceId) -> Changes {
        let mut writer = self.write();
        let view = self.shared.view.load_full();
        let others = view.members.iter().filter(|member| member.instance.id() != id);
        let rest = others.map(|member| Arc::clone(&member.instance)).collect();
        self.replace(&mut writer, view, rest)
    }

    /// Makes `all` the registered instances, in one step, however many changes that is. Of two with one id the last counts.
    pub fn apply(&self, all: impl IntoIterator<Item = Arc<ServiceInstance>>) -> Changes {
        let mut writer = self.write();
        let view = self.shared.view.load_full();
        self.replace(&mut writer, view, all.into_iter().collect())
    }

    /// Balances as configured from now on. All that was learned stays.
    pub fn configure(&self, config: LoadBalancerConfig) {
        let mut writer = self.write();
        let view = self.shared.view.load_full();
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
    pub fn undrain(&self, id: &InstanceId) -> Result<Option<Arc<StandingOrder>>, UnknownInstance> {
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
        let view = self.shared.view.load_full();
        let now = self.shared.environment.clock.now();
        let is_registered = view
            .members
            .binary_search_by(|member| member.instance.id().cmp(id))
            .is_ok();
        if !is_registered && !writer.overrides.remembers(id, now) {
            return Err(UnknownInstance {
                service: self.shared.service.clone(),
                id: id.clone(),
            });
        }
        let changed = change(&mut writer.overrides, now);
        if is_registered {
            self.republish(&mut writer);
        } else {
            self.plan(&mut writer, now);
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
        self.shared.view.load().panic
    }

    /// Results of active checks so far.
    #[must_use]
    pub fn checks(&self) -> CheckStatistics {
        CheckStatistics {
            passed: self.shared.checks_passed.load(Ordering::Relaxed),
            failed: self.shared.checks_failed.load(Ordering::Relaxed),
        }
    }

    /// Picks so far of a pool that panicked: they are among [`picks`](Self::picks).
    #[must_use]
    pub fn panic_picks(&self) -> u64 {
        self.settle(&self.write());
        self.shared.load.panic_picks.load(Ordering::Relaxed)
    }

    /// Picks through a [`Directory`](super::Directory) so far that found none, by reason.
    #[must_use]
    pub fn refusals(&self) -> Refusals {
        Refusals {
            not_synced: self.shared.not_synced.load(Ordering::Relaxed),
            no_instances: self.shared.no_instances.load(Ordering::Relaxed),
            none_available: self.shared.none_available.load(Ordering::Relaxed),
        }
    }

    /// What the service has done so far.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        let now = self.shared.environment.clock.now();
        // The lock keeps writers out, so that members and totals are of one moment.
        let writer = self.write();
        let counted = self.counted(&writer);
        let view = self.shared.view.load_full();
        let instance = |member: &Member| {
            let live = &member.live;
            let layers = member.layers_now();
            let unavailable_reasons = unavailable_reasons(member, &layers, &view.config);
            let statistics = InstanceStatistics {
                status: layers.status(),
                available: unavailable_reasons.is_empty(),
                effective_weight: if unavailable_reasons.is_empty() || view.panic {
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
        let view = self.shared.view.load();
        view.members
            .iter()
            .map(|member| (Arc::clone(&member.instance), member.status))
            .collect()
    }

    fn write(&self) -> MutexGuard<'_, Writer> {
        // A writer that panicked has not swapped its view in: what is here is whole. At worst an address counts as
        // registered that is not yet.
        self.shared.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the live states know every pick so far.
    fn settle(&self, writer: &Writer) {
        writer
            .retired
            .iter()
            .for_each(|view| view.flush_picks(&self.shared.load));
        self.shared.view.load().flush_picks(&self.shared.load);
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
            .field("service", &self.shared.service)
            .field("view", &self.shared.view)
            .finish_non_exhaustive()
    }
}
