//! All services of an agent.
//!
//! Lookups take no lock: the map is immutable and swapped whole, in 64 shards so that ten thousand services do not make
//! every change copy ten thousand entries.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use xxhash_rust::xxh3::xxh3_64;

use super::agenda::{Agenda, ServiceWake};
use super::clock::Timestamp;
use super::config::LoadBalancerConfig;
use super::context::Context;
use super::diff::Changes;
use super::environment::Environment;
use super::error::{PickError, ReportError};
use super::instance::{ServiceInstance, ServiceName};
use super::lease::{Completed, InvalidLease, Lease, LeaseDenied, LeaseId, LeaseKey, Leases};
use super::load_balancer::LoadBalancer;
use super::load_balancer::pick::Pick;
use super::outcome::Outcome;
use super::overrides::OverrideCounts;
use super::sources::Sources;

const SHARDS: usize = 64;

/// How long a service without instances is still known, if the configuration does not name it.
pub const KNOWN_FOR: Duration = Duration::from_secs(3_600);

type Shard = HashMap<ServiceName, LoadBalancer>;

/// How each service is balanced.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServiceConfigs {
    /// Services that are not named below.
    pub defaults: LoadBalancerConfig,
    /// Services by name. These are known even without instances.
    pub services: BTreeMap<ServiceName, LoadBalancerConfig>,
}

impl ServiceConfigs {
    /// How this service is balanced.
    #[must_use]
    pub fn of(&self, service: &ServiceName) -> &LoadBalancerConfig {
        self.services.get(service).unwrap_or(&self.defaults)
    }
}

/// The balancers of all services, by name.
pub struct Directory {
    shards: [ArcSwap<Shard>; SHARDS],
    sources: ArcSwap<Sources>,
    environment: Environment,
    agenda: Arc<Agenda>,
    leases: Leases,
    unknown: AtomicU64,
    unknown_not_synced: AtomicU64,
    unknown_leases: AtomicU64,
    reports_of_unknown: AtomicU64,
    /// Also the lock of all writers.
    configs: Mutex<ServiceConfigs>,
}

impl Directory {
    /// A directory of the services that the configuration names, all without instances.
    #[must_use]
    pub fn new(configs: ServiceConfigs, sources: Sources, environment: Environment) -> Self {
        let most = configs.defaults.max_leases() as usize;
        let directory = Self {
            shards: std::array::from_fn(|_| ArcSwap::default()),
            sources: ArcSwap::from_pointee(sources),
            agenda: Arc::new(Agenda::new(environment.wake.clone())),
            environment,
            leases: Leases::new(LeaseKey::new(fastrand::u128(..).to_le_bytes()), most),
            unknown: AtomicU64::new(0),
            unknown_not_synced: AtomicU64::new(0),
            unknown_leases: AtomicU64::new(0),
            reports_of_unknown: AtomicU64::new(0),
            configs: Mutex::default(),
        };
        directory.configure(configs);
        directory
    }

    /// Signs leases with this key. Without it the key is a random one, but not one that nobody could ever find out.
    #[must_use]
    pub fn with_lease_key(mut self, key: LeaseKey) -> Self {
        let most = self.configs.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.leases = Leases::new(key, most.defaults.max_leases() as usize);
        self
    }

    fn shard(&self, service: &str) -> &ArcSwap<Shard> {
        &self.shards[xxh3_64(service.as_bytes()) as usize % SHARDS]
    }

    /// The balancer of a service, if the service is known.
    #[must_use]
    #[inline]
    pub fn get(&self, service: &str) -> Option<LoadBalancer> {
        self.shard(service).load().get(service).cloned()
    }

    /// Every known service, sorted by name.
    #[must_use]
    pub fn services(&self) -> Vec<LoadBalancer> {
        let mut all: Vec<_> = self
            .shards
            .iter()
            .flat_map(|shard| shard.load().values().cloned().collect::<Vec<_>>())
            .collect();
        all.sort_unstable_by(|a, b| a.service().cmp(b.service()));
        all
    }

    /// The sources, as last set.
    #[must_use]
    pub fn sources(&self) -> Arc<Sources> {
        self.sources.load_full()
    }

    /// Replaces the list of sources.
    pub fn set_sources(&self, sources: Sources) {
        self.sources.store(Arc::new(sources));
    }

    /// Why a service is not known: it may only be that a source has not told of it yet.
    #[must_use]
    pub fn why_unknown(&self, service: ServiceName) -> PickError {
        match self.sources.load().waiting_for(service.as_str()) {
            Some(waiting_for) => PickError::NotSynced { service, waiting_for },
            None => PickError::Unknown { service },
        }
    }

    /// Why there is no pick for a service that is not known, counted. The name is not kept.
    #[must_use]
    pub fn refuse_unknown(&self, service: ServiceName) -> PickError {
        let error = self.why_unknown(service);
        let counter = match error {
            PickError::NotSynced { .. } => &self.unknown_not_synced,
            _ => &self.unknown,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        error
    }

    /// Chooses an instance of a known service. A refusal is counted, and is [`PickError::NotSynced`] while a service is empty
    /// only because a source has not told of it yet.
    ///
    /// # Errors
    ///
    /// When the service has no instances, or none that may be picked.
    #[inline]
    pub fn select_instance(&self, balancer: &LoadBalancer, context: &Context<'_>) -> Result<Pick, PickError> {
        balancer
            .select_instance(context)
            .map_err(|error| self.refuse(balancer, error))
    }

    #[cold]
    fn refuse(&self, balancer: &LoadBalancer, error: PickError) -> PickError {
        let waiting_for = self.sources.load().waiting_for(balancer.service().as_str());
        let error = match (error, waiting_for) {
            (PickError::Empty { service }, Some(waiting_for)) => PickError::NotSynced { service, waiting_for },
            (error, _) => error,
        };
        balancer.count(&error);
        error
    }

    /// Picks of names that are not known so far: (unknown, not synced yet).
    #[must_use]
    pub fn unknown_picks(&self) -> (u64, u64) {
        (
            self.unknown.load(Ordering::Relaxed),
            self.unknown_not_synced.load(Ordering::Relaxed),
        )
    }

    /// Makes `instances` those of the service, which becomes known with its first one.
    pub fn apply(&self, service: &ServiceName, instances: impl IntoIterator<Item = Arc<ServiceInstance>>) -> Changes {
        let mut instances = instances.into_iter().peekable();
        // Under the writers' lock, so that a service is not forgotten while instances join it.
        let configs = self.write();
        let balancer = match self.get(service.as_str()) {
            Some(balancer) => balancer,
            None if instances.peek().is_none() => return Changes::default(),
            None => self.known(service, configs.of(service)),
        };
        balancer.apply(instances)
    }

    /// Balances as configured from now on, and makes the services that are named known.
    pub fn configure(&self, configs: ServiceConfigs) {
        let mut present = self.write();
        for (service, config) in &configs.services {
            self.known(service, config);
        }
        for balancer in self.services() {
            balancer.configure(configs.of(balancer.service()).clone());
        }
        self.leases.limit(configs.defaults.max_leases() as usize);
        // A service that is not named any more may be forgotten.
        let before = std::mem::replace(&mut *present, configs);
        before.services.keys().for_each(|service| self.agenda.wake(service));
    }

    fn write(&self) -> MutexGuard<'_, ServiceConfigs> {
        // Configurations are replaced whole.
        self.configs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Picks as [`select_instance`](Self::select_instance) does, and counts the pick as in flight until it is
    /// [`report`](Self::report)ed, or for `ttl` (the service's `lease_ttl` if none is given) from now or the last
    /// [`renew`](Self::renew).
    ///
    /// # Errors
    ///
    /// As for `select_instance`. A pick whose lease is denied stands: it is an answer like any other, only not in flight.
    pub fn lease(
        &self,
        balancer: &LoadBalancer,
        context: &Context<'_>,
        ttl: Option<Duration>,
    ) -> Result<(Pick, Result<Lease, LeaseDenied>), PickError> {
        balancer.catch_up();
        let pick = self.select_instance(balancer, context)?;
        let ttl = ttl.unwrap_or(pick.config().lease_ttl());
        let most = pick.config().max_leases() as usize;
        let now = self.environment.clock.now();
        let lease = self.leases.take(balancer, most, ttl, now, || balancer.begin(&pick));
        self.agenda.call_at(now + ttl);
        Ok((pick, lease))
    }

    /// Reads a lease that a caller hands back. Text that is none counts as an unknown one.
    ///
    /// # Errors
    ///
    /// [`ReportError::UnknownLease`].
    pub fn read_lease(&self, text: &str) -> Result<LeaseId, ReportError> {
        text.parse().map_err(|InvalidLease| self.unknown_lease())
    }

    /// Ends a lease, and learns from how its request went. A lease that has expired counts as a report without one; each
    /// counts once.
    ///
    /// # Errors
    ///
    /// [`ReportError::UnknownLease`], or [`ReportError::NoCredit`] for an expired one.
    pub fn report(&self, lease: LeaseId, outcome: Outcome, latency: Option<Duration>) -> Result<(), ReportError> {
        let completed = self.leases.complete(lease, self.environment.clock.now());
        let (subject, result) = match completed {
            None => return Err(self.unknown_lease()),
            Some(Completed::InTime(subject)) => {
                subject.balancer.learn(&subject.live, outcome, latency);
                (subject, Ok(()))
            }
            Some(Completed::Late(subject)) => {
                let result = subject.balancer.learn_on_credit(&subject.live, outcome, latency);
                (subject, result)
            }
        };
        subject.balancer.lease_counts().reported(&result);
        result
    }

    /// Starts a lease's time again, with the time to live that it was taken with.
    ///
    /// # Errors
    ///
    /// [`ReportError::UnknownLease`]: ended, expired, or never handed out.
    pub fn renew(&self, lease: LeaseId) -> Result<(), ReportError> {
        match self.leases.renew(lease, self.environment.clock.now()) {
            Some(balancer) => {
                balancer.lease_counts().reported::<()>(&Ok(()));
                Ok(())
            }
            None => Err(self.unknown_lease()),
        }
    }

    /// Learns from how a request went that nobody holds a lease of: as often as its instance was picked in the last minute.
    ///
    /// # Errors
    ///
    /// When the service or the instance is not known (instances that left are for a while), or there were fewer picks.
    pub fn report_without_lease(
        &self,
        service: &str,
        instance: &str,
        outcome: Outcome,
        latency: Option<Duration>,
    ) -> Result<(), ReportError> {
        let Some(balancer) = self.get(service) else {
            self.reports_of_unknown.fetch_add(1, Ordering::Relaxed);
            return Err(ReportError::UnknownService);
        };
        let result = match balancer.live(instance) {
            Some(live) => balancer.learn_on_credit(&live, outcome, latency),
            None => Err(ReportError::UnknownInstance),
        };
        balancer.lease_counts().reported(&result);
        result
    }

    fn unknown_lease(&self) -> ReportError {
        self.unknown_leases.fetch_add(1, Ordering::Relaxed);
        ReportError::UnknownLease
    }

    /// Leases open now.
    #[must_use]
    pub fn open_leases(&self) -> usize {
        self.leases.open()
    }

    /// Leases that may be open at a time, over all services.
    #[must_use]
    pub fn lease_limit(&self) -> usize {
        self.leases.most()
    }

    /// Places for leases that memory is held for: as many as were open at a time, and those expired that are still known.
    #[must_use]
    pub fn lease_capacity(&self) -> usize {
        self.leases.capacity()
    }

    /// Reports that name nothing known so far: (unknown lease, unknown service).
    #[must_use]
    pub fn unknown_reports(&self) -> (u64, u64) {
        (
            self.unknown_leases.load(Ordering::Relaxed),
            self.reports_of_unknown.load(Ordering::Relaxed),
        )
    }

    /// Does all that time has made due: ends leases and overrides, advances every service that is due, and forgets services
    /// that have been empty for an hour, are not configured and have no override. Returns when the next call is due; the
    /// [`Wake`](super::Wake) of the [`Environment`] asks for an earlier one.
    pub fn advance(&self, now: Timestamp) -> Option<Timestamp> {
        let services = self.agenda.begin(now);
        let leases = self.leases.advance(now);
        for service in services {
            let Some(balancer) = self.get(service.as_str()) else {
                continue;
            };
            // Before it advances, so that the override that ends now is still told.
            if self.forgettable_at(&balancer, now).is_some_and(|at| at <= now) && self.forget(&balancer, now) {
                continue;
            }
            let next = balancer.advance(now);
            let next = next.into_iter().chain(self.forgettable_at(&balancer, now)).min();
            self.agenda.set(&service, next, balancer.has_news());
        }
        self.agenda.end(leases)
    }

    /// Has the next [`advance`](Self::advance) look at every service.
    pub fn wake_all(&self) {
        self.services()
            .iter()
            .for_each(|balancer| self.agenda.wake(balancer.service()));
    }

    /// When a service without instances may be forgotten; `None` while it is configured, has instances or an override.
    fn forgettable_at(&self, balancer: &LoadBalancer, now: Timestamp) -> Option<Timestamp> {
        let empty = balancer.empty_for(now)?;
        let is_wanted = self.write().services.contains_key(balancer.service())
            || balancer.override_counts() != OverrideCounts::default();
        (!is_wanted).then(|| now + KNOWN_FOR.saturating_sub(empty))
    }

    /// Forgets a service, unless instances have joined it meanwhile.
    fn forget(&self, balancer: &LoadBalancer, now: Timestamp) -> bool {
        let _writers = self.write();
        let is_empty = balancer.empty_for(now).is_some();
        if is_empty {
            self.shard(balancer.service().as_str()).rcu(|shard| {
                let mut shard = Shard::clone(shard);
                shard.remove(balancer.service());
                shard
            });
        }
        is_empty
    }

    /// The services that have something to tell since the last call: their instances, [transitions](LoadBalancer::take_transitions)
    /// of health, or [overrides that ended](LoadBalancer::take_ended). Filled by [`advance`](Self::advance).
    #[must_use]
    pub fn take_changed(&self) -> Vec<LoadBalancer> {
        let told = self.agenda.take_told();
        told.iter().filter_map(|service| self.get(service.as_str())).collect()
    }

    /// The balancer of a service, made if need be. Called under the writers' lock.
    fn known(&self, service: &ServiceName, config: &LoadBalancerConfig) -> LoadBalancer {
        if let Some(balancer) = self.get(service.as_str()) {
            return balancer;
        }
        let wake = ServiceWake {
            agenda: Arc::clone(&self.agenda),
            service: service.clone(),
        };
        let is_driven = self.environment.wake.is_some();
        let environment = Environment {
            wake: Some(Arc::new(wake)),
            ..self.environment.clone()
        };
        let balancer = LoadBalancer::driven(
            service.clone(),
            config.clone(),
            environment,
            fastrand::u64(..),
            is_driven,
        );
        self.shard(service.as_str()).rcu(|shard| {
            let mut shard = Shard::clone(shard);
            shard.insert(service.clone(), balancer.clone());
            shard
        });
        self.agenda.wake(service);
        balancer
    }
}

impl fmt::Debug for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Directory")
            .field("services", &self.services().len())
            .finish_non_exhaustive()
    }
}
