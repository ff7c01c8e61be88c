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
use super::diff::{Changes, diff};
use super::error::PickError;
use super::instance::{Address, HealthStatus, InstanceId, ServiceInstance, ServiceName};
use super::lease::{LeaseCounts, ReportError};
use super::pool::{
    AlternateDraw, Bodies, Context, Described, Live, Load, Member, NoBodies, Outcome, Render, View, units,
};
use super::statistics::{InstanceStatistics, LeaseStatistics, Refusals, ReportStatistics, Statistics};
use super::strategy::Mode;
use super::strategy::schedule::Turn;

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
}

impl Default for Tools {
    /// The machine's monotonic clock, and no bodies.
    fn default() -> Self {
        Self {
            clock: Arc::new(Monotonic::start()),
            render: Arc::new(NoBodies),
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
    load: Arc<Load>,
    tools: Tools,
    not_synced: AtomicU64,
    no_instances: AtomicU64,
    none_available: AtomicU64,
    writer: Mutex<Writer>,
}

/// What only writers look at.
struct Writer {
    turn: Arc<Turn>,
    /// The live state of each registered address.
    lives: HashMap<Address, Arc<Live>>,
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
}

#[derive(Clone, Copy, Default)]
struct Counted {
    picks: u64,
    reported: u64,
    failed: u64,
}

impl Counted {
    fn add(&mut self, live: &Live) {
        self.picks += live.picks.total();
        self.reported += live.reported.load(Ordering::Relaxed);
        self.failed += live.failed.load(Ordering::Relaxed);
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
        let view = View::new(config, Box::default(), Arc::clone(&turn), None);
        let writer = Writer {
            turn,
            lives: HashMap::new(),
            departed: VecDeque::new(),
            departed_ids: VecDeque::new(),
            departed_lives: HashMap::new(),
            forgotten: Counted::default(),
            retired: Vec::new(),
            empty_since: Some(tools.clock.now()),
        };
        Self {
            service,
            view: ArcSwap::from_pointee(view),
            load: Arc::default(),
            tools,
            not_synced: AtomicU64::new(0),
            no_instances: AtomicU64::new(0),
            none_available: AtomicU64::new(0),
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
        self.view.load().mode(&self.load, &*self.tools.clock)
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
        let chosen = view.choose(context, &self.load, &*self.tools.clock).map(|slot| {
            slot.live.picks.increment();
            slot.member
        });
        match chosen {
            Some(member) => Ok(Pick { view, member }),
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
        self.select_instance(context).map(|pick| self.begin(&pick))
    }

    /// Counts what was picked as in flight.
    pub(crate) fn begin(&self, pick: &Pick) -> Acquired {
        let member = &pick.view.members[pick.member as usize];
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
    pub(crate) fn learn(&self, live: &Live, outcome: Outcome, latency: Option<Duration>) {
        let now = self.tools.clock.now();
        let view = self.view.load();
        live.record(outcome, latency, self.load.typical(view.slots().len()), now);
        if outcome != Outcome::Cancelled {
            self.load.reported(view.slots(), now);
        }
    }

    /// Learns from an outcome that comes without a lease, as often as there were picks in the last minute.
    pub(crate) fn learn_on_credit(
        &self,
        live: &Live,
        outcome: Outcome,
        latency: Option<Duration>,
    ) -> Result<(), ReportError> {
        if !live.credit.take(&live.picks, self.tools.clock.now()) {
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
        self.replace(&mut writer, &view, all)
    }

    /// Removes an instance. Changes nothing if there is none of this id.
    pub fn remove_instance(&self, id: &InstanceId) -> Changes {
        let mut writer = self.write();
        let view = self.view.load_full();
        let others = view.members.iter().filter(|member| member.instance.id() != id);
        let rest = others.map(|member| Arc::clone(&member.instance)).collect();
        self.replace(&mut writer, &view, rest)
    }

    /// Makes `all` the registered instances, in one step, however many changes that is. Of two with one id the last counts.
    pub fn apply(&self, all: impl IntoIterator<Item = Arc<ServiceInstance>>) -> Changes {
        let mut writer = self.write();
        let view = self.view.load_full();
        self.replace(&mut writer, &view, all.into_iter().collect())
    }

    /// Balances as configured from now on. All that was learned stays.
    pub fn configure(&self, config: LoadBalancerConfig) {
        let mut writer = self.write();
        let view = self.view.load_full();
        if view.config != config {
            let instances = view.members.iter().map(|member| Arc::clone(&member.instance)).collect();
            self.publish(&mut writer, &view, config, instances);
        }
    }

    /// Does what time has made due: forgets addresses that left long ago, drops views that nobody looks at, notes what was picked
    /// when (for the credit of reports without a lease). Returns when it should be called again, if anything is left to do.
    pub fn advance(&self, now: Timestamp) -> Option<Timestamp> {
        let mut writer = self.write();
        let instances = self.view.load().members.len();
        writer.forget(now, instances);
        writer.drop_retired();
        let forgotten_at = writer.departed.front().map(|(left_at, _, _)| *left_at + REMEMBERED_FOR);
        let retry_drop = (!writer.retired.is_empty()).then_some(now + Duration::from_secs(1));
        let departed = writer.departed.iter().map(|(_, _, live)| live);
        let noting = writer
            .lives
            .values()
            .chain(departed)
            .filter(|live| live.credit.note(&live.picks, now))
            .count();
        let note_at = (noting > 0).then_some(now + credit::STEP);
        forgotten_at.into_iter().chain(retry_drop).chain(note_at).min()
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
        let view = self.view.load_full();
        let counted = self.counted(&writer);
        let instance = |member: &Member| {
            let live = &member.live;
            let statistics = InstanceStatistics {
                status: member.status,
                available: member.units > 0,
                effective_weight: f64::from(member.units) / 16.0,
                total_requests: live.picks.total(),
                reported_requests: live.reported.load(Ordering::Relaxed),
                failed_requests: live.failed.load(Ordering::Relaxed),
                consecutive_failures: live.consecutive_failures.load(Ordering::Relaxed),
                active_connections: live.in_flight(),
                average_response_time: live.average_response_time(),
                response_time: live.response_time(now).map(Duration::from_secs_f32),
            };
            (member.instance.id().clone(), statistics)
        };
        Statistics {
            strategy: view.config.strategy(),
            total_requests: counted.picks,
            reported_requests: counted.reported,
            failed_requests: counted.failed,
            failure_rate: counted.failed as f64 / counted.reported.max(1) as f64,
            available_instances: view.available(),
            total_instances: view.members.len(),
            instances: view.members.iter().map(instance).collect::<BTreeMap<_, _>>(),
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
        // A writer that panicked has not swapped its view in: what is here is whole.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn counted(&self, writer: &Writer) -> Counted {
        let mut counted = writer.forgotten;
        writer.lives.values().for_each(|live| counted.add(live));
        writer.departed.iter().for_each(|(_, _, live)| counted.add(live));
        counted
    }

    /// Publishes a view of `all`, unless it would equal the present one.
    fn replace(&self, writer: &mut Writer, view: &Arc<View>, mut all: Vec<Arc<ServiceInstance>>) -> Changes {
        // Stable, so that among equal ids the last given is the last; `dedup_by` keeps the first, hence the swap.
        all.sort_by(|a, b| a.id().cmp(b.id()));
        all.dedup_by(|next, kept| {
            let same = next.id() == kept.id();
            if same {
                std::mem::swap(next, kept);
            }
            same
        });
        let changes = diff(view.members.iter().map(Member::instance), all.iter().map(Deref::deref));
        if !changes.is_empty() {
            self.publish(writer, view, view.config.clone(), all);
        }
        changes
    }

    /// Prepares the next view and swaps it in. `instances` are sorted by id, each id once.
    fn publish(
        &self,
        writer: &mut Writer,
        old: &Arc<View>,
        config: LoadBalancerConfig,
        instances: Vec<Arc<ServiceInstance>>,
    ) {
        let now = self.tools.clock.now();
        let mut lives = HashMap::with_capacity(instances.len());
        let mut previous = old.members.iter().peekable();
        let members: Box<[Member]> = instances
            .into_iter()
            .map(|instance| {
                while previous
                    .next_if(|member| member.instance.id() < instance.id())
                    .is_some()
                {}
                let before = previous.next_if(|member| member.instance.id() == instance.id());
                let live = writer.live(instance.address());
                lives
                    .entry(instance.address().clone())
                    .or_insert_with(|| Arc::clone(&live));
                self.member(instance, live, before, &config)
            })
            .collect();
        writer.depart(lives, now);
        writer.depart_ids(&old.members, &members, now);
        writer.empty_since = match (members.is_empty(), writer.empty_since) {
            (true, since) => since.or(Some(now)),
            (false, _) => None,
        };
        writer.forget(now, members.len());
        let view = View::new(config, members, Arc::clone(&writer.turn), Some(old));
        writer.retired.push(self.view.swap(Arc::new(view)));
        writer.drop_retired();
    }

    /// A member of the next view; its bodies are rendered only if it differs from what it was before.
    fn member(
        &self,
        instance: Arc<ServiceInstance>,
        live: Arc<Live>,
        before: Option<&Member>,
        config: &LoadBalancerConfig,
    ) -> Member {
        let status = HealthStatus::from(instance.registry_status());
        let units = units(&instance, status, config);
        let bodies = match before {
            Some(before) if before.status == status && before.instance == instance => Arc::clone(&before.bodies),
            _ => Arc::new(self.tools.render.render(&Described {
                service: &self.service,
                instance: &instance,
                status,
            })),
        };
        Member {
            instance,
            status,
            units,
            bodies,
            live,
        }
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

impl Writer {
    /// The live state of an address: the present one, that of an address that comes back, or a fresh one.
    fn live(&mut self, address: &Address) -> Arc<Live> {
        if let Some(live) = self.lives.get(address) {
            return Arc::clone(live);
        }
        match self.departed.iter().position(|(_, departed, _)| departed == address) {
            Some(index) => self.departed.remove(index).map(|(_, _, live)| live).unwrap_or_default(),
            None => Arc::default(),
        }
    }

    /// Takes `lives` as the registered ones, and remembers those that are not among them.
    fn depart(&mut self, lives: HashMap<Address, Arc<Live>>, now: Timestamp) {
        let before = std::mem::replace(&mut self.lives, lives);
        for (address, live) in before {
            if !self.lives.contains_key(&address) {
                self.departed.push_back((now, address, live));
            }
        }
    }

    /// Remembers the ids of `old` that are not in `new`. Both are sorted by id.
    fn depart_ids(&mut self, old: &[Member], new: &[Member], now: Timestamp) {
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

    fn forget(&mut self, now: Timestamp, instances: usize) {
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

    fn drop_retired(&mut self) {
        // The swap has turned the picks that look at a view into counted references.
        self.retired.retain(|view| Arc::strong_count(view) > 1);
    }
}

/// The answer to one pick: an instance, as it was in the view that was asked.
pub struct Pick {
    view: Guard<Arc<View>>,
    member: u32,
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
        &self.view.members[self.member as usize].instance
    }

    /// Its derived status.
    #[must_use]
    pub fn status(&self) -> HealthStatus {
        self.view.members[self.member as usize].status
    }

    /// Its rendered bodies.
    #[must_use]
    #[inline]
    pub fn bodies(&self) -> &Bodies {
        &self.view.members[self.member as usize].bodies
    }

    /// Up to `count` other instances to try in turn if this one fails: in ring order for a hashed key, else drawn by weight.
    /// Each differs from the others and fits `context`, which is the one of the pick. Counts no pick, advances no turn.
    #[must_use]
    pub fn alternates(&self, balancer: &LoadBalancer, count: usize, context: &Context<'_>) -> Vec<Alternate<'_>> {
        let draw = AlternateDraw {
            load: &balancer.load,
            clock: &*balancer.tools.clock,
        };
        let members = self.view.alternates(self.member, count, context, &draw);
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
