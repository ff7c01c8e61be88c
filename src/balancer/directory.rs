//! All services of an agent.
//!
//! A lookup takes no lock: the map is immutable and swapped as a whole. It has 64 shards, so that a
//! change among ten thousand services does not copy ten thousand entries.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
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
use super::text::lower_case;

const SHARDS: usize = 64;

/// The most bytes of the name of a service.
const LONGEST_NAME: usize = 253;

/// How long a service without instances stays known, unless the configuration names it or a source
/// lists it.
pub const KNOWN_FOR: Duration = Duration::from_secs(3_600);

/// Services by the spelling in which they are registered, and by the spelling in lower case.
type Shard = HashMap<Arc<str>, LoadBalancer>;

/// The configuration of every service.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServiceConfigs {
    /// The configuration of services that are not named.
    pub defaults: LoadBalancerConfig,
    /// Configurations by name. These services are known even without instances.
    pub services: BTreeMap<ServiceName, LoadBalancerConfig>,
}

impl ServiceConfigs {
    /// The configuration of one service.
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
    /// Whether a timer calls `advance`.
    is_driven: AtomicBool,
    /// The configuration, and the lock of all writers.
    configs: Mutex<ServiceConfigs>,
    /// The services that a source lists, with or without instances. Locked inside `configs`.
    listed: Mutex<HashSet<ServiceName>>,
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
            is_driven: AtomicBool::new(environment.wake.is_some()),
            environment,
            leases: Leases::new(LeaseKey::new(fastrand::u128(..).to_le_bytes()), most),
            unknown: AtomicU64::new(0),
            unknown_not_synced: AtomicU64::new(0),
            unknown_leases: AtomicU64::new(0),
            reports_of_unknown: AtomicU64::new(0),
            configs: Mutex::default(),
            listed: Mutex::default(),
        };
        directory.configure(configs);
        directory
    }

    /// Signs leases with this key. Without a key from the caller, the lease key comes from a fast
    /// generator that is not secure.
    #[must_use]
    pub fn with_lease_key(mut self, key: LeaseKey) -> Self {
        let most = self.configs.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.leases = Leases::new(key, most.defaults.max_leases() as usize);
        self
    }

    fn shard(&self, service: &str) -> &ArcSwap<Shard> {
        &self.shards[xxh3_64(service.as_bytes()) as usize % SHARDS]
    }

    /// The balancer of a service, if the service is known. Upper and lower case are the same.
    #[must_use]
    #[inline]
    pub fn get(&self, service: &str) -> Option<LoadBalancer> {
        let found = self.get_spelled(service);
        if found.is_some() {
            found
        } else {
            self.get_in_lower_case(service)
        }
    }

    #[inline]
    fn get_spelled(&self, service: &str) -> Option<LoadBalancer> {
        self.shard(service).load().get(service).cloned()
    }

    /// The balancer of a service that is asked for in neither of its two usual spellings.
    #[cold]
    fn get_in_lower_case(&self, service: &str) -> Option<LoadBalancer> {
        let mut buffer = [0; LONGEST_NAME];
        if let Some(buffer) = buffer.get_mut(..service.len())
            && service.is_ascii()
        {
            buffer.copy_from_slice(service.as_bytes());
            buffer.make_ascii_lowercase();
            return self.get_spelled(std::str::from_utf8(buffer).ok()?);
        }
        self.get_spelled(&lower_case(service))
    }

    /// Every known service, sorted by name.
    #[must_use]
    pub fn services(&self) -> Vec<LoadBalancer> {
        let mut all: Vec<_> = self
            .shards
            .iter()
            .flat_map(|shard| {
                let shard = shard.load();
                let services = shard.iter();
                let as_registered = services.filter(|(name, balancer)| ***name == *balancer.service().as_str());
                as_registered.map(|(_, balancer)| balancer.clone()).collect::<Vec<_>>()
            })
            .collect();
        all.sort_unstable_by(|a, b| a.service().cmp(b.service()));
        all
    }

    /// The registries, as last set.
    #[must_use]
    pub fn sources(&self) -> Arc<Sources> {
        self.sources.load_full()
    }

    /// Replaces the list of sources.
    pub fn set_sources(&self, sources: Sources) {
        self.sources.store(Arc::new(sources));
    }

    /// Why a service is not known: no source lists it, or a source has not synced yet.
    #[must_use]
    pub fn why_unknown(&self, service: ServiceName) -> PickError {
        match self.sources.load().waiting_for(service.as_str()) {
            Some(waiting_for) => PickError::NotSynced { service, waiting_for },
            None => PickError::Unknown { service },
        }
    }

    /// The same for a pick, counted. The name is not kept.
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

    /// Chooses an instance of a known service. A refusal is counted. It is [`PickError::NotSynced`]
    /// while a service is empty only because a source has not synced yet.
    ///
    /// # Errors
    ///
    /// When the service has no instances, or none that can be picked.
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

    /// Picks of unknown names so far: (unknown, not synced yet).
    #[must_use]
    pub fn unknown_picks(&self) -> (u64, u64) {
        (
            self.unknown.load(Ordering::Relaxed),
            self.unknown_not_synced.load(Ordering::Relaxed),
        )
    }

    /// Replaces the instances of the service. A service becomes known with its first instance.
    pub fn apply(&self, service: &ServiceName, instances: impl IntoIterator<Item = Arc<ServiceInstance>>) -> Changes {
        let mut instances = instances.into_iter().peekable();
        // Under the writers' lock, so that a service is not forgotten while instances join it.
        let configs = self.write();
        let balancer = match self.get(service.as_str()) {
            Some(balancer) if instances.peek().is_none() => balancer,
            None if instances.peek().is_none() => return Changes::default(),
            _ => self.registered(service, &configs),
        };
        balancer.apply(instances)
    }

    /// Sets whether a source lists the service, with or without instances. A listed service is
    /// known.
    pub fn set_listed(&self, service: &ServiceName, listed: bool) {
        if self.listed().contains(service) == listed {
            return;
        }
        let configs = self.write();
        if listed {
            self.listed().insert(service.clone());
            self.registered(service, &configs);
        } else {
            self.listed().remove(service);
            // The service may be forgotten.
            self.agenda.wake(service);
        }
    }

    fn listed(&self) -> MutexGuard<'_, HashSet<ServiceName>> {
        // Names come and go in one step each.
        self.listed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The balancer of a service that a source lists. A name that the configuration alone has used
    /// so far appears as it is registered. The caller holds the lock of writers.
    fn registered(&self, service: &ServiceName, configs: &ServiceConfigs) -> LoadBalancer {
        if let Some(balancer) = self.get(service.as_str())
            && balancer.service().as_str() != service.as_str()
            && is_unused(&balancer)
        {
            self.remove(balancer.service());
        }
        self.known(service, configs.of(service))
    }

    /// Applies a configuration. The services that it names become known.
    pub fn configure(&self, configs: ServiceConfigs) {
        let mut present = self.write();
        for (service, config) in &configs.services {
            self.known(service, config);
        }
        for balancer in self.services() {
            balancer.configure(configs.of(balancer.service()).clone());
        }
        self.leases.limit(configs.defaults.max_leases() as usize);
        // A service that is no longer named may be forgotten.
        let before = std::mem::replace(&mut *present, configs);
        before.services.keys().for_each(|service| self.agenda.wake(service));
    }

    /// Applies the configuration of one service, which becomes known. The next
    /// [`configure`](Self::configure) replaces it.
    pub fn configure_service(&self, service: &ServiceName, config: LoadBalancerConfig) {
        let mut configs = self.write();
        self.known(service, &config).configure(config.clone());
        configs.services.insert(service.clone(), config);
    }

    /// No timer calls [`advance`](Self::advance) any more, because the program has stopped it: from
    /// now on, requests that are acquired, finished or reported do what is due.
    pub fn timer_stopped(&self) {
        let _configs = self.write();
        self.is_driven.store(false, Ordering::Relaxed);
        self.services().iter().for_each(LoadBalancer::timer_stopped);
    }

    fn write(&self) -> MutexGuard<'_, ServiceConfigs> {
        // Configurations are replaced whole.
        self.configs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Picks as [`select_instance`](Self::select_instance) does, and counts the request as in
    /// flight until its lease is [reported](Self::report) or expires. A lease expires `ttl` (by
    /// default the `lease_ttl` of the service) after the pick or the last [`renew`](Self::renew).
    ///
    /// # Errors
    ///
    /// As for `select_instance`. A pick without a lease is valid: its request is only not counted
    /// as in flight.
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
        if lease.is_ok() {
            self.agenda.call_at(now + ttl);
        }
        Ok((pick, lease))
    }

    /// Parses the lease that a caller sends. Text that is not a lease counts as an unknown lease.
    ///
    /// # Errors
    ///
    /// [`ReportError::UnknownLease`].
    pub fn read_lease(&self, text: &str) -> Result<LeaseId, ReportError> {
        text.parse().map_err(|InvalidLease| self.unknown_lease())
    }

    /// Ends a lease, and learns from the outcome of its request. An expired lease counts as a
    /// report without a lease. Each lease counts once.
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

    /// Restarts the time of a lease, with its original time to live.
    ///
    /// # Errors
    ///
    /// [`ReportError::UnknownLease`]: the lease has ended, expired, or was never given out.
    pub fn renew(&self, lease: LeaseId) -> Result<(), ReportError> {
        match self.leases.renew(lease, self.environment.clock.now()) {
            Some(balancer) => {
                balancer.lease_counts().reported::<()>(&Ok(()));
                Ok(())
            }
            None => Err(self.unknown_lease()),
        }
    }

    /// Learns from the outcome of a request without a lease: at most as often as its instance was
    /// picked in the last minute.
    ///
    /// # Errors
    ///
    /// When the service or the instance is unknown (an instance stays known for an hour after it
    /// left), or when there were fewer picks.
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

    /// The number of open leases.
    #[must_use]
    pub fn open_leases(&self) -> usize {
        self.leases.open()
    }

    /// The most leases that may be open, over all services.
    #[must_use]
    pub fn lease_limit(&self) -> usize {
        self.leases.most()
    }

    /// The leases that memory is allocated for: the highest number of open leases, and expired
    /// leases that are still remembered.
    #[must_use]
    pub fn lease_capacity(&self) -> usize {
        self.leases.capacity()
    }

    /// Reports without a known subject so far: (unknown lease, unknown service).
    #[must_use]
    pub fn unknown_reports(&self) -> (u64, u64) {
        (
            self.unknown_leases.load(Ordering::Relaxed),
            self.reports_of_unknown.load(Ordering::Relaxed),
        )
    }

    /// Does everything that is due: ends leases and overrides, advances every service that is due,
    /// and forgets services that have been empty for an hour, are not configured, are not listed and
    /// have no override. Returns the time of the next call. The [`Wake`](super::Wake) of the
    /// [`Environment`] asks for an earlier call.
    pub fn advance(&self, now: Timestamp) -> Option<Timestamp> {
        let services = self.agenda.begin(now);
        let leases = self
            .leases
            .advance(now)
            .into_iter()
            .chain(self.leases.forgets_at())
            .min();
        for service in services {
            let Some(balancer) = self.get(service.as_str()) else {
                continue;
            };
            // Before the service advances, so that an override that ends now is still reported.
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

    /// When a service without instances may be forgotten. `None` while the service is configured, is
    /// listed, has instances or an override. A writer may be busy with all services: then ask again in a second,
    /// so that health never waits for a configuration.
    fn forgettable_at(&self, balancer: &LoadBalancer, now: Timestamp) -> Option<Timestamp> {
        let empty = balancer.empty_for(now)?;
        let configs = match self.configs.try_lock() {
            Ok(configs) => configs,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Some(now + Duration::from_secs(1)),
        };
        self.is_forgettable(balancer, &configs)
            .then(|| now + KNOWN_FOR.saturating_sub(empty))
    }

    fn is_forgettable(&self, balancer: &LoadBalancer, configs: &ServiceConfigs) -> bool {
        !configs.services.contains_key(balancer.service())
            && !self.listed().contains(balancer.service())
            && balancer.override_counts() == OverrideCounts::default()
    }

    /// Forgets a service, unless a configuration, an override or instances have come in the meantime.
    fn forget(&self, balancer: &LoadBalancer, now: Timestamp) -> bool {
        let configs = self.write();
        let is_empty = balancer.empty_for(now).is_some_and(|empty| empty >= KNOWN_FOR);
        let forgotten = is_empty && self.is_forgettable(balancer, &configs);
        if forgotten {
            self.remove(balancer.service());
            self.agenda.forget(balancer.service());
        }
        forgotten
    }

    /// The services with news since the last call: other instances,
    /// [transitions](LoadBalancer::take_transitions) of health, or [ended
    /// overrides](LoadBalancer::take_ended). [`advance`](Self::advance) collects them.
    #[must_use]
    pub fn take_changed(&self) -> Vec<LoadBalancer> {
        let told = self.agenda.take_told();
        told.iter().filter_map(|service| self.get(service.as_str())).collect()
    }

    /// The balancer of a service, created if it does not exist. The caller holds the lock of
    /// writers.
    fn known(&self, service: &ServiceName, config: &LoadBalancerConfig) -> LoadBalancer {
        if let Some(balancer) = self.get(service.as_str()) {
            return balancer;
        }
        let wake = ServiceWake {
            agenda: Arc::clone(&self.agenda),
            service: service.clone(),
        };
        let is_driven = self.is_driven.load(Ordering::Relaxed);
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
        for spelling in service.spellings() {
            self.shard(spelling).rcu(|shard| {
                let mut shard = Shard::clone(shard);
                shard.insert(Arc::clone(spelling), balancer.clone());
                shard
            });
        }
        self.agenda.wake(service);
        balancer
    }

    fn remove(&self, service: &ServiceName) {
        for spelling in service.spellings() {
            self.shard(spelling).rcu(|shard| {
                let mut shard = Shard::clone(shard);
                shard.remove(spelling);
                shard
            });
        }
    }
}

/// Whether a service has no instances, no override and no picks.
fn is_unused(balancer: &LoadBalancer) -> bool {
    balancer.instances().is_empty() && balancer.picks() == 0 && balancer.override_counts() == OverrideCounts::default()
}

impl fmt::Debug for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Directory")
            .field("services", &self.services().len())
            .finish_non_exhaustive()
    }
}
