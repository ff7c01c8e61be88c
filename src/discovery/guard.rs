//! Holds doubtful removals: a registry that has just come back, has lost its memory, has no leader,
//! or drops most of a service at once, does not empty a pool with its first answer.
//!
//! After Consul lost its data, it answers `200 []` with a leader and a good index, and etcd does
//! the same after its disk was wiped. If pickd applied such an answer at once, every pool of every
//! agent would be empty. If pickd never applied such an answer, dead instances would stay for
//! ever. So missing instances are *held*: they stay in the pool, marked as absent, for a bounded
//! time, and as long as they accept connections. Additions and changes of the same reading apply
//! at once.
//!
//! | reading that lacks instances | held | until |
//! |---|---|---|
//! | [`Trust::AfterLoss`] | each of them | accepts no connections, or `hold` is over |
//! | [`Trust::AfterGap`], less than half is left | each of them | accepts no connections, or `hold` is over |
//! | [`Trust::Steady`] or [`Trust::Unconfirmed`], the last of a service ([`HoldRules::vanished`]) | each of them | does not answer once, or 30 s are over |
//! | the same, less than half of three or more is left within 5 s | the ephemeral ones | does not answer once, or 30 s are over |
//! | [`Trust::AdditionsOnly`] | each of them | the registry can be trusted again |
//!
//! Each hold also ends when the instance is listed again, refuses a connection, or an operator
//! [accepts](Guard::accept) the reading. An instance that neither accepts nor refuses connections
//! is not known to live: after a gap it goes 5 s after it was first missing if a second reading
//! confirms that, else after 30 s. With a `hold` of zero, this is so for every instance, and
//! nothing is held during an unbroken watch.
//!
//! A watcher sends one confirmation for each gap, not for each reading after the gap. So the
//! confirmation may come less than five seconds after the reading that it confirms. It counts all
//! the same, once the five seconds are over and no other reading came.
//!
//! A second gap does not prolong a hold. While the registry is away, the time of `hold` stands
//! still.
//!
//! Each source has one guard, between its watcher and [`merge`](super::merge). A second rule, that
//! no service counts as empty before its source has synced, needs no memory: see
//! [`Sources::waiting_for`](crate::balancer::Sources::waiting_for). Knows no registry, clock, task
//! or socket: times come with the readings, and the agent tries the connections.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use super::merge::Instances;
use super::watcher::{CONFIRM_AFTER, Trust, Update};
use crate::balancer::{Address, InstanceId, ServiceInstance, ServiceName, Timestamp};

/// How long a removal is held at most if no second reading confirms it, and how long a drop in an
/// unbroken watch is held at most.
pub const HOLD_AT_MOST: Duration = Duration::from_secs(30);
/// How long absent instances that accept connections are held by default after a loss of memory.
pub const DEFAULT_HOLD: Duration = Duration::from_secs(600);
/// Removals of ephemeral instances within this time count as one drop.
pub const DROP_WITHIN: Duration = Duration::from_secs(5);
/// In an unbroken watch, smaller services are never held because of a drop of ephemeral instances.
const SMALLEST_DROP: usize = 3;
/// An instance that did not answer this many tries in a row is not known to live.
const UNANSWERED_TRIES: u8 = 3;

/// Which removals of a source are held, and for how long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HoldRules {
    /// How long an absent instance stays at most that accepts connections. Zero: only large drops
    /// after a gap are held, until they are confirmed.
    pub hold: Duration,
    /// Whether a service that vanishes as a whole in an unbroken watch is held.
    pub vanished: bool,
}

/// What came of a connection to a held instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trial {
    /// The instance accepted the connection.
    Accepted,
    /// The instance refused the connection.
    Refused,
    /// Neither, in time: the host is away, its name is not known, or it may not be contacted.
    Unanswered,
}

/// Why an instance is no longer held, a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HoldEnd {
    /// The registry lists the instance, its id or its address again.
    Listed,
    /// The instance refused a connection.
    Refused,
    /// The instance did not answer.
    Unanswered,
    /// The registry confirmed the removal, or the time was over.
    Over,
    /// An operator accepted the removals.
    Accepted,
}

impl HoldEnd {
    /// Every reason. Metrics start each at zero.
    pub const ALL: [Self; 5] = [
        Self::Listed,
        Self::Refused,
        Self::Unanswered,
        Self::Over,
        Self::Accepted,
    ];

    /// Lower-case name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Listed => "listed",
            Self::Refused => "refused",
            Self::Unanswered => "unanswered",
            Self::Over => "over",
            Self::Accepted => "accepted",
        }
    }
}

/// What to change for a service.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// The instances of a service are these now: those that the registry lists, and those that are
    /// held.
    Set {
        /// The service.
        service: ServiceName,
        /// The instances, by id.
        instances: Instances,
    },
    /// The registry no longer lists the service, and no instance of it is held.
    Remove {
        /// The service.
        service: ServiceName,
    },
    /// Everything has been sent once, and all decisions about it were returned before this one.
    Synced,
}

/// Stands between one registry and the pools.
#[derive(Debug, Default)]
pub struct Guard {
    rules: HoldRules,
    services: HashMap<ServiceName, Service>,
    /// The services with held instances. Mostly there are none.
    holding: BTreeSet<ServiceName>,
    held: usize,
    /// Since when the registry is away.
    away_since: Option<Timestamp>,
    /// The holds that have ended and were not taken yet.
    ended: Vec<HoldEnd>,
}

#[derive(Debug, Default)]
struct Service {
    /// What the last reading listed, by id; `None` if the registry no longer lists the service.
    listed: Option<Instances>,
    /// Whether an earlier watcher read what is listed: the first reading of the present watcher
    /// replaces it, without doubt.
    is_outdated: bool,
    held: Vec<Held>,
    /// Ephemeral instances that left during the last [`DROP_WITHIN`] of an unbroken watch, and when.
    left: Vec<(Timestamp, Arc<ServiceInstance>)>,
}

#[derive(Clone, Debug)]
struct Held {
    /// The instance as it was listed last, marked as absent.
    instance: Arc<ServiceInstance>,
    reason: HoldReason,
    /// How many tries in a row were not answered.
    unanswered: u8,
}

/// Why a removal is held.
#[derive(Clone, Copy, Debug)]
enum HoldReason {
    /// The instance was missing after a gap or a loss of memory.
    Gap(Gap),
    /// The instance was part of a large drop in an unbroken watch, at `since`.
    Drop { since: Timestamp },
    /// The registry cannot be trusted about removals at present. `before` if the instance was held
    /// for a gap until then.
    AdditionsOnly { before: Option<Gap> },
}

#[derive(Clone, Copy, Debug)]
struct Gap {
    /// When the instance was first missing.
    since: Timestamp,
    /// Whether a second reading in an unbroken watch lacks the instance, too.
    confirmed: bool,
    /// How long the registry has been away since.
    away: Duration,
}

impl Gap {
    fn since(since: Timestamp) -> Self {
        Self {
            since,
            confirmed: false,
            away: Duration::ZERO,
        }
    }

    /// When an instance goes that is not known to live.
    fn doubted_until(self) -> Timestamp {
        let doubt = if self.confirmed { CONFIRM_AFTER } else { HOLD_AT_MOST };
        self.since + doubt
    }
}

impl Held {
    fn new(instance: &Arc<ServiceInstance>, reason: HoldReason, at: Timestamp) -> Self {
        let marked = ServiceInstance::clone(instance).with_absent_since(Some(at));
        Self {
            instance: Arc::new(marked),
            reason,
            unanswered: 0,
        }
    }

    fn gap(&self) -> Option<Gap> {
        match self.reason {
            HoldReason::Gap(gap) => Some(gap),
            HoldReason::AdditionsOnly { before } => before,
            HoldReason::Drop { .. } => None,
        }
    }

    fn is_known_to_live(&self, hold: Duration) -> bool {
        !hold.is_zero() && self.unanswered < UNANSWERED_TRIES
    }

    /// When the hold ends. `None`: not by time.
    fn until(&self, hold: Duration, is_away: bool) -> Option<Timestamp> {
        match self.reason {
            HoldReason::AdditionsOnly { .. } => None,
            HoldReason::Drop { since } => Some(since + HOLD_AT_MOST.min(hold)),
            HoldReason::Gap(gap) if !self.is_known_to_live(hold) => Some(gap.doubted_until()),
            HoldReason::Gap(_) if is_away => None,
            HoldReason::Gap(gap) => Some((gap.since + hold + gap.away).max(gap.doubted_until())),
        }
    }
}

/// What a reading lists, and how far it can be trusted.
struct Read<'a> {
    ids: HashSet<&'a InstanceId>,
    addresses: HashSet<&'a Address>,
    at: Timestamp,
    trust: Trust,
}

impl Read<'_> {
    /// An id at another address has moved, and an address under another id was renamed: neither is
    /// missing.
    fn lacks(&self, instance: &ServiceInstance) -> bool {
        !self.ids.contains(instance.id()) && !self.addresses.contains(instance.address())
    }

    /// Whether this reading has less than half as many addresses as these instances have.
    fn is_large_drop<'b>(&self, had: impl Iterator<Item = &'b Arc<ServiceInstance>>, least: usize) -> bool {
        let had: HashSet<_> = had.map(|instance| instance.address()).collect();
        had.len() >= least && self.addresses.len() * 2 < had.len()
    }
}

impl Guard {
    /// A guard that knows no service.
    #[must_use]
    pub fn new(rules: HoldRules) -> Self {
        Self {
            rules,
            ..Self::default()
        }
    }

    /// Sets other rules. They count for the present holds, too, from the next
    /// [`advance`](Self::advance) on.
    pub fn set_rules(&mut self, rules: HoldRules) {
        self.rules = rules;
    }

    /// Another watcher of the same registry takes over: what is held stays held, and what is listed
    /// stays until the new watcher has sent the service, or has [synced](Self::forget_outdated).
    pub fn expect_new_watcher(&mut self) {
        for service in self.services.values_mut() {
            (service.is_outdated, service.left) = (true, Vec::new());
        }
    }

    /// Removes what an earlier watcher listed and the present watcher has not sent.
    pub fn forget_outdated(&mut self) -> Vec<Decision> {
        let is_outdated = |(_, service): &(&ServiceName, &Service)| service.is_outdated;
        let outdated: Vec<ServiceName> = self
            .services
            .iter()
            .filter(is_outdated)
            .map(|(name, _)| name.clone())
            .collect();
        let mut decisions = Vec::new();
        for name in outdated {
            if let Some(service) = self.services.get_mut(&name) {
                let before = service.instances();
                (service.listed, service.is_outdated) = (None, false);
                decisions.extend(self.decide(name, &before));
            }
        }
        decisions
    }

    /// Takes an update of the watcher, and returns what changes now. `None`: nothing changes.
    pub fn observe(&mut self, update: Update) -> Option<Decision> {
        match update {
            Update::Service(reading) => {
                let mut instances: Vec<_> = reading.instances.into_iter().map(Arc::new).collect();
                sort(&mut instances);
                self.take(reading.service, Some(instances.into()), reading.read_at, reading.trust)
            }
            Update::Gone {
                service,
                read_at,
                trust,
            } => self.take(service, None, read_at, trust),
            Update::Synced => Some(Decision::Synced),
        }
    }

    /// Notices whether the registry is away: meanwhile no hold of an instance that is known to live
    /// ends by time.
    pub fn notice_absence(&mut self, is_away: bool, now: Timestamp) {
        if is_away {
            self.away_since = self.away_since.or(Some(now));
            return;
        }
        let Some(since) = self.away_since.take() else { return };
        for name in &self.holding {
            let held = self
                .services
                .get_mut(name)
                .into_iter()
                .flat_map(|service| &mut service.held);
            for held in held {
                if let HoldReason::Gap(gap) | HoldReason::AdditionsOnly { before: Some(gap) } = &mut held.reason {
                    gap.away += now.since(since.max(gap.since));
                }
            }
        }
    }

    /// Ends the holds whose time is over. Also returns when to call again, if nothing happens
    /// before.
    pub fn advance(&mut self, now: Timestamp) -> (Vec<Decision>, Option<Timestamp>) {
        let mut decisions = Vec::new();
        let mut next: Option<Timestamp> = None;
        let (hold, is_away) = (self.rules.hold, self.away_since.is_some());
        for service in self.holding.clone() {
            decisions.extend(self.retain_held(&service, |held| match held.until(hold, is_away) {
                Some(until) if until <= now => Err(match held.is_known_to_live(hold) {
                    false if !hold.is_zero() => HoldEnd::Unanswered,
                    _ => HoldEnd::Over,
                }),
                until => {
                    next = until.into_iter().chain(next).min();
                    Ok(())
                }
            }));
        }
        (decisions, next)
    }

    /// Takes the outcome of a connection to a held instance. `None`: nothing changes, or no
    /// instance is held at this address.
    pub fn tried(
        &mut self,
        service: &ServiceName,
        address: &Address,
        trial: Trial,
        now: Timestamp,
    ) -> Option<Decision> {
        let (hold, is_away) = (self.rules.hold, self.away_since.is_some());
        self.retain_held(service, |held| {
            if held.instance.address() != address {
                return Ok(());
            }
            match trial {
                Trial::Accepted => held.unanswered = 0,
                Trial::Refused => return Err(HoldEnd::Refused),
                Trial::Unanswered => held.unanswered = held.unanswered.saturating_add(1),
            }
            let is_over = match held.reason {
                // The registry has removed the instance: only a connection contradicts that.
                HoldReason::Drop { .. } => held.unanswered > 0,
                _ => held.unanswered > 0 && held.until(hold, is_away).is_some_and(|until| until <= now),
            };
            if is_over { Err(HoldEnd::Unanswered) } else { Ok(()) }
        })
    }

    /// Lets go of every held instance: the registry is right.
    pub fn accept(&mut self) -> Vec<Decision> {
        let holding = self.holding.clone();
        let accept = |service| self.retain_held(service, |_| Err(HoldEnd::Accepted));
        holding.iter().filter_map(accept).collect()
    }

    /// How many removals are held at present.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held
    }

    /// Why holds have ended since the last call.
    pub fn take_ended(&mut self) -> Vec<HoldEnd> {
        mem::take(&mut self.ended)
    }

    /// The addresses of all held instances. The agent tries whether they still accept connections.
    pub fn held_addresses(&self) -> impl Iterator<Item = (&ServiceName, &Address)> {
        self.holding
            .iter()
            .filter_map(|name| self.services.get_key_value(name))
            .flat_map(|(name, service)| service.held.iter().map(move |held| (name, held.instance.address())))
    }

    fn take(
        &mut self,
        name: ServiceName,
        listed: Option<Instances>,
        read_at: Timestamp,
        trust: Trust,
    ) -> Option<Decision> {
        let Some(service) = self.services.get_mut(&name) else {
            let instances = listed?;
            let service = Service {
                listed: Some(Arc::clone(&instances)),
                ..Service::default()
            };
            self.services.insert(name.clone(), service);
            return Some(Decision::Set {
                service: name,
                instances,
            });
        };
        let before = service.instances();
        let held_before = service.held.len();
        // A reading that cannot be trusted with removals takes nothing from what an earlier watcher
        // listed.
        if mem::take(&mut service.is_outdated) && trust != Trust::AdditionsOnly {
            service.listed = None;
        }
        let ended = service.take(listed, read_at, trust, self.rules);
        self.held = self.held - held_before + service.held.len();
        self.ended.extend(ended);
        self.decide(name, &before)
    }

    /// Asks for each held instance of a service whether it stays held.
    fn retain_held(
        &mut self,
        name: &ServiceName,
        mut keep: impl FnMut(&mut Held) -> Result<(), HoldEnd>,
    ) -> Option<Decision> {
        let service = self.services.get_mut(name)?;
        let kept: Vec<_> = service.held.iter_mut().map(&mut keep).collect();
        if kept.iter().all(Result::is_ok) {
            return None;
        }
        let before = service.instances();
        let ends: Vec<HoldEnd> = kept.iter().filter_map(|kept| kept.err()).collect();
        let mut kept = kept.iter();
        service.held.retain(|_| kept.next().is_some_and(Result::is_ok));
        self.held -= ends.len();
        self.ended.extend(ends);
        self.decide(name.clone(), &before)
    }

    /// Sorts a service that was just changed into the right set, and returns what changed for the
    /// pools.
    fn decide(&mut self, name: ServiceName, before: &Instances) -> Option<Decision> {
        let service = self.services.get_mut(&name)?;
        if service.held.is_empty() {
            self.holding.remove(&name);
        } else {
            self.holding.insert(name.clone());
        }
        if service.listed.is_none() && service.held.is_empty() {
            self.services.remove(&name);
            return Some(Decision::Remove { service: name });
        }
        let instances = service.instances();
        if instances == *before {
            // Other owners share the earlier copy already: keep that copy.
            if service.held.is_empty() {
                service.listed = Some(Arc::clone(before));
            }
            return None;
        }
        Some(Decision::Set {
            service: name,
            instances,
        })
    }
}

impl Service {
    /// Listed and held instances, by id.
    fn instances(&self) -> Instances {
        match &self.listed {
            Some(listed) if self.held.is_empty() => Arc::clone(listed),
            listed => {
                let held = self.held.iter().map(|held| &held.instance);
                let mut all: Vec<_> = listed
                    .iter()
                    .flat_map(|listed| listed.iter())
                    .chain(held)
                    .cloned()
                    .collect();
                sort(&mut all);
                all.into()
            }
        }
    }

    fn listed(&self) -> impl Iterator<Item = &Arc<ServiceInstance>> {
        self.listed.iter().flat_map(|listed| listed.iter())
    }

    /// Takes a reading: sets which instances are listed and which are held. Returns why holds have
    /// ended.
    fn take(&mut self, listed: Option<Instances>, read_at: Timestamp, trust: Trust, rules: HoldRules) -> Vec<HoldEnd> {
        let now_listed = listed.as_deref().unwrap_or_default();
        let is_steady = matches!(trust, Trust::Steady | Trust::Unconfirmed);
        if is_steady && self.held.is_empty() && self.left.is_empty() && !self.may_be_a_drop(now_listed, rules) {
            self.listed = listed;
            return Vec::new();
        }
        let read = Read {
            ids: now_listed.iter().map(|instance| instance.id()).collect(),
            addresses: now_listed.iter().map(|instance| instance.address()).collect(),
            at: read_at,
            trust,
        };
        self.left
            .retain(|(left_at, instance)| read_at.since(*left_at) < DROP_WITHIN && read.lacks(instance));
        let mut ended = Vec::new();
        let held = match trust {
            Trust::Steady | Trust::Unconfirmed => self.held_in_a_steady_watch(&read, rules, &mut ended),
            Trust::AfterGap | Trust::AfterLoss => self.held_after_a_gap(&read, rules, &mut ended),
            Trust::AdditionsOnly => self.held_without_removals(&read, rules, &mut ended),
        };
        (self.held, self.listed) = (held, listed);
        ended
    }

    /// Whether a removal in this reading of an unbroken watch may have to be held. Cheap, because
    /// nearly every reading is such a reading.
    fn may_be_a_drop(&self, now_listed: &[Arc<ServiceInstance>], rules: HoldRules) -> bool {
        if rules.hold.is_zero() {
            return false;
        }
        if now_listed.is_empty() && rules.vanished {
            return true;
        }
        // Both are sorted by id.
        let mut now = now_listed.iter().map(|instance| instance.id()).peekable();
        self.listed().any(|before| {
            while now.next_if(|id| *id < before.id()).is_some() {}
            now.peek() != Some(&before.id()) && before.is_ephemeral()
        })
    }

    /// The instances that were held before and that the reading lacks, too, each with its reason
    /// from now on. `None`: no longer held.
    fn still_held(
        &self,
        read: &Read<'_>,
        ended: &mut Vec<HoldEnd>,
        reason: impl Fn(&Held) -> Option<HoldReason>,
    ) -> Vec<Held> {
        let mut still = Vec::new();
        for held in &self.held {
            if !read.lacks(&held.instance) {
                ended.push(HoldEnd::Listed);
            } else if let Some(reason) = reason(held) {
                still.push(Held { reason, ..held.clone() });
            } else {
                ended.push(HoldEnd::Over);
            }
        }
        still
    }

    fn held_without_removals(&self, read: &Read<'_>, rules: HoldRules, ended: &mut Vec<HoldEnd>) -> Vec<Held> {
        let mut held = self.still_held(read, ended, |held| {
            let before = held.gap().filter(|_| !rules.hold.is_zero());
            Some(HoldReason::AdditionsOnly { before })
        });
        let missing = self.listed().filter(|instance| read.lacks(instance));
        let reason = HoldReason::AdditionsOnly { before: None };
        held.extend(missing.map(|instance| Held::new(instance, reason, read.at)));
        held
    }

    fn held_after_a_gap(&self, read: &Read<'_>, rules: HoldRules, ended: &mut Vec<HoldEnd>) -> Vec<Held> {
        let had = self.listed().chain(self.held.iter().map(|held| &held.instance));
        let is_loss = read.trust == Trust::AfterLoss && !rules.hold.is_zero();
        let is_large = is_loss || read.is_large_drop(had, 1);
        let mut held = self.still_held(read, ended, |held| {
            let gap = match held.reason {
                HoldReason::Drop { since } if is_large => Gap::since(since),
                HoldReason::Drop { .. } => return Some(held.reason),
                _ => held.gap().unwrap_or(Gap::since(read.at)),
            };
            let has_time = !rules.hold.is_zero() && held.gap().is_some();
            (is_large || has_time).then_some(HoldReason::Gap(Gap {
                confirmed: false,
                ..gap
            }))
        });
        if is_large {
            let missing = self.listed().filter(|instance| read.lacks(instance));
            let reason = HoldReason::Gap(Gap::since(read.at));
            held.extend(missing.map(|instance| Held::new(instance, reason, read.at)));
        }
        held
    }

    fn held_in_a_steady_watch(&mut self, read: &Read<'_>, rules: HoldRules, ended: &mut Vec<HoldEnd>) -> Vec<Held> {
        let has_vanished = rules.vanished && !rules.hold.is_zero() && read.addresses.is_empty();
        let drop = HoldReason::Drop { since: read.at };
        let mut held = self.still_held(read, ended, |held| {
            let gap = match held.reason {
                HoldReason::Drop { .. } => return Some(held.reason),
                HoldReason::AdditionsOnly { before: None } if has_vanished => return Some(drop),
                _ => held.gap()?,
            };
            let confirmed = gap.confirmed || read.trust == Trust::Steady;
            let gap = Gap { confirmed, ..gap };
            let is_over = rules.hold.is_zero() && gap.doubted_until() <= read.at;
            (!is_over).then_some(HoldReason::Gap(gap))
        });
        if rules.hold.is_zero() {
            return held;
        }
        let missing: Vec<_> = self.listed().filter(|instance| read.lacks(instance)).cloned().collect();
        if missing.is_empty() {
            return held;
        }
        if has_vanished {
            held.extend(missing.iter().map(|instance| Held::new(instance, drop, read.at)));
            return held;
        }
        let left = self.left.iter().map(|(_, instance)| instance);
        let had = self.listed().chain(held.iter().map(|held| &held.instance)).chain(left);
        let is_large = read.is_large_drop(had, SMALLEST_DROP);
        let ephemeral = missing.into_iter().filter(|instance| instance.is_ephemeral());
        if is_large {
            let left = mem::take(&mut self.left).into_iter().map(|(_, instance)| instance);
            held.extend(
                left.chain(ephemeral)
                    .map(|instance| Held::new(&instance, drop, read.at)),
            );
        } else {
            self.left.extend(ephemeral.map(|instance| (read.at, instance)));
        }
        held
    }
}

fn sort(instances: &mut [Arc<ServiceInstance>]) {
    instances.sort_unstable_by(|a, b| (a.id(), a.address()).cmp(&(b.id(), b.address())));
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::watcher::Reading;
    use super::*;
    use crate::balancer::Weight;

    fn web() -> ServiceName {
        "web".parse().unwrap()
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp::default() + Duration::from_secs(seconds)
    }

    fn instance(id: &str, host: &str) -> ServiceInstance {
        ServiceInstance::new(id, host, 80).unwrap()
    }

    /// A guard, and what the pools see of it. Letters are instances; `a>b` is instance `a` at the
    /// address of `b`; `a*` is ephemeral. Without rules, `hold` is zero.
    #[derive(Default)]
    struct Bench {
        guard: Guard,
        pool: Option<String>,
    }

    impl Bench {
        /// A guard of Consul, with a hold of this many seconds.
        fn consul(hold: u64) -> Self {
            Self::with(hold, true)
        }

        /// A guard of etcd, with a hold of this many seconds.
        fn etcd(hold: u64) -> Self {
            Self::with(hold, false)
        }

        fn with(hold: u64, vanished: bool) -> Self {
            let hold = Duration::from_secs(hold);
            Self {
                guard: Guard::new(HoldRules { hold, vanished }),
                pool: None,
            }
        }

        /// Why holds have ended since the last call.
        fn ended(&mut self) -> String {
            let ended = self.guard.take_ended();
            ended.iter().map(|end| end.as_str()).collect::<Vec<_>>().join(" ")
        }

        fn accept(&mut self) -> &str {
            for decision in self.guard.accept() {
                self.apply(Some(decision));
            }
            self.pool()
        }

        fn apply(&mut self, decision: Option<Decision>) {
            match decision {
                Some(Decision::Set { instances, .. }) => {
                    let name = |instance: &Arc<ServiceInstance>| match (instance.id().as_str(), instance.host()) {
                        (id, host) if id == host => id.to_owned(),
                        (id, host) => format!("{id}>{host}"),
                    };
                    self.pool = Some(instances.iter().map(name).collect::<Vec<_>>().join(" "));
                }
                Some(Decision::Remove { .. }) => self.pool = None,
                Some(Decision::Synced) | None => {}
            }
        }

        fn read(&mut self, seconds: u64, trust: Trust, letters: &str) -> &str {
            let instances = letters
                .split_whitespace()
                .map(|letter| {
                    let name = letter.trim_end_matches('*');
                    let (id, host) = name.split_once('>').unwrap_or((name, name));
                    instance(id, host).with_ephemeral(letter.ends_with('*'))
                })
                .collect();
            let reading = Reading {
                service: web(),
                instances,
                read_at: at(seconds),
                trust,
            };
            let decision = self.guard.observe(Update::Service(reading));
            self.apply(decision);
            self.pool()
        }

        fn gone(&mut self, seconds: u64, trust: Trust) -> &str {
            let decision = self.guard.observe(Update::Gone {
                service: web(),
                read_at: at(seconds),
                trust,
            });
            self.apply(decision);
            self.pool()
        }

        fn advance(&mut self, seconds: u64) -> &str {
            let (decisions, _) = self.guard.advance(at(seconds));
            for decision in decisions {
                self.apply(Some(decision));
            }
            self.pool()
        }

        fn release(&mut self, letter: &str) -> &str {
            self.tried(0, letter, Trial::Refused)
        }

        fn tried(&mut self, seconds: u64, letter: &str, trial: Trial) -> &str {
            let address = Address::new(letter, 80).unwrap();
            let decision = self.guard.tried(&web(), &address, trial, at(seconds));
            self.apply(decision);
            self.pool()
        }

        fn pool(&self) -> &str {
            self.pool.as_deref().unwrap_or("(unknown)")
        }
    }

    use Trust::{AdditionsOnly, AfterGap, AfterLoss, Steady, Unconfirmed};

    #[test]
    fn removals_of_an_unbroken_watch_are_applied() {
        let mut bench = Bench::default();
        assert_eq!(bench.read(0, Steady, "a b c d"), "a b c d");
        assert_eq!(bench.read(1, Steady, "a"), "a");
        assert_eq!(bench.read(2, Steady, ""), "");
        assert_eq!(bench.gone(3, Steady), "(unknown)");
        assert_eq!(bench.guard.held(), 0);
    }

    #[test]
    fn the_first_reading_of_a_service_is_applied() {
        assert_eq!(Bench::default().read(0, AfterGap, "a"), "a");
        assert_eq!(Bench::default().read(0, AdditionsOnly, ""), "");
        assert_eq!(Bench::default().gone(0, AfterGap), "(unknown)");
    }

    #[test]
    fn a_large_drop_after_a_gap_is_held_until_it_is_confirmed_5_s_later() {
        let mut bench = Bench::default();
        bench.read(0, Steady, "a b c d");
        assert_eq!(bench.read(10, AfterGap, "a"), "a b c d");
        assert_eq!(bench.guard.held(), 3);
        assert_eq!(bench.read(14, Steady, "a"), "a b c d", "too soon to confirm");
        assert_eq!(
            bench.read(15, AfterGap, "a"),
            "a b c d",
            "another first reading confirms nothing"
        );
        assert_eq!(bench.read(15, Steady, "a"), "a");
        assert_eq!(bench.guard.held(), 0);
    }

    #[test]
    fn a_confirmation_that_comes_too_soon_counts_after_5_s() {
        let mut bench = Bench::default();
        bench.read(0, Steady, "a b c d");
        assert_eq!(bench.read(10, AfterGap, ""), "a b c d");
        assert_eq!(bench.gone(11, Steady), "a b c d");
        assert_eq!(bench.advance(14), "a b c d");
        assert_eq!(bench.advance(15), "(unknown)");
        bench.read(20, Steady, "a b c d");
        bench.read(21, AfterGap, "a");
        bench.read(22, Steady, "a");
        assert_eq!(bench.read(23, AfterGap, "a"), "a b c d");
        assert_eq!(bench.advance(26), "a b c d", "held again");
        assert_eq!(bench.read(27, Steady, "a b c d"), "a b c d");
        assert_eq!(bench.guard.held(), 0, "and not gone after all");
    }

    #[test]
    fn a_small_drop_after_a_gap_is_applied() {
        let mut bench = Bench::default();
        bench.read(0, Steady, "a b c d");
        assert_eq!(bench.read(1, AfterGap, "a b"), "a b");
        assert_eq!(
            bench.read(2, AfterGap, "x"),
            "x",
            "half of it is new, so nothing is lost"
        );
    }

    #[test]
    fn the_last_instance_counts_as_a_large_drop() {
        let mut bench = Bench::default();
        bench.read(0, Steady, "a");
        assert_eq!(bench.read(1, AfterGap, ""), "a");
        assert_eq!(bench.advance(30), "a");
        assert_eq!(bench.advance(31), "");
    }

    #[test]
    fn a_deploy_that_replaces_all_is_no_drop() {
        let mut bench = Bench::default();
        bench.read(0, Steady, "a b c d");
        assert_eq!(bench.read(1, AfterGap, "e f"), "e f");
    }

    #[test]
    fn a_hold_ends_after_30_s_and_announces_when() {
        let mut bench = Bench::default();
        bench.read(0, Steady, "a b c d");
        bench.read(10, AfterGap, "a");
        let (decisions, next) = bench.guard.advance(at(39));
        assert_eq!((decisions, next), (vec![], Some(at(40))));
        assert_eq!(bench.advance(40), "a");
        assert_eq!(bench.guard.advance(at(41)), (vec![], None));
    }

    #[test]
    fn all_instances_of_a_gone_service_are_held_then_forgotten() {
        let mut bench = Bench::default();
        bench.read(0, Steady, "a b");
        assert_eq!(bench.gone(1, AfterGap), "a b");
        assert_eq!(bench.gone(6, Steady), "(unknown)");
        assert!(bench.guard.services.is_empty() && bench.guard.holding.is_empty());

        bench.read(10, Steady, "a b");
        assert_eq!(bench.gone(11, AfterGap), "a b");
        assert_eq!(bench.advance(41), "(unknown)");

        bench.read(50, Steady, "a b");
        bench.gone(51, AfterGap);
        assert_eq!(bench.release("a"), "b");
        assert_eq!(bench.release("b"), "(unknown)");
    }

    #[test]
    fn an_instance_that_is_listed_again_is_no_longer_held() {
        let mut bench = Bench::default();
        bench.read(0, Steady, "a b c d");
        bench.read(1, AfterGap, "a");
        assert_eq!(bench.read(2, Steady, "a c"), "a b c d");
        assert_eq!(bench.guard.held(), 2);
        assert_eq!(
            bench.read(3, Steady, "a"),
            "a b d",
            "c was listed again, and is now removed by an unbroken watch"
        );
        assert_eq!(bench.read(6, Steady, "a"), "a");
    }

    #[test]
    fn additions_and_changes_are_not_held_up() {
        let mut bench = Bench::default();
        bench.read(0, Steady, "a b c d e f");
        assert_eq!(bench.read(1, AfterGap, "a>z x"), "a>z b c d e f x");
    }

    #[test]
    fn an_instance_that_moved_or_was_renamed_is_not_missing() {
        let mut bench = Bench::default();
        bench.read(0, Steady, "a b c d e");
        assert_eq!(bench.read(1, AfterGap, "a>z new>b"), "a>z c d e new>b");
        assert_eq!(bench.guard.held(), 3);
    }

    #[test]
    fn nothing_is_removed_while_the_registry_has_no_leader() {
        let mut bench = Bench::default();
        bench.read(0, Steady, "a b c");
        assert_eq!(bench.read(1, AdditionsOnly, "a b x"), "a b c x");
        assert_eq!(bench.guard.held(), 1);
        assert_eq!(bench.advance(100_000), "a b c x");
        assert_eq!(bench.gone(100_001, AdditionsOnly), "a b c x");
        assert_eq!(bench.guard.advance(at(200_000)), (vec![], None));
        assert_eq!(
            bench.read(200_001, Steady, "a"),
            "a",
            "the registry can be trusted again"
        );
    }

    #[test]
    fn a_large_drop_after_a_time_without_a_leader_is_a_drop_after_a_gap() {
        let mut bench = Bench::default();
        bench.read(0, Steady, "a b c d");
        bench.read(1, AdditionsOnly, "");
        assert_eq!(bench.read(1000, AfterGap, "a"), "a b c d");
        assert_eq!(bench.advance(1029), "a b c d");
        assert_eq!(bench.advance(1030), "a");
    }

    #[test]
    fn a_held_instance_that_refuses_connections_is_removed() {
        let mut bench = Bench::default();
        bench.read(0, Steady, "a b c d");
        bench.read(1, AfterGap, "a");
        let held: Vec<_> = bench
            .guard
            .held_addresses()
            .map(|(service, address)| format!("{service} {address}"))
            .collect();
        assert_eq!(held, ["web b:80", "web c:80", "web d:80"]);
        assert_eq!(bench.release("c"), "a b d");
        assert_eq!(bench.release("a"), "a b d", "the registry lists it, so it stays");
        assert_eq!(bench.guard.held(), 2);
        assert_eq!(bench.read(2, AfterGap, "a"), "a b d");
    }

    #[test]
    fn after_a_loss_of_memory_what_accepts_connections_stays_for_the_hold() {
        let mut bench = Bench::consul(600);
        bench.read(0, Steady, "a b c d");
        assert_eq!(bench.gone(10, AfterLoss), "a b c d");
        assert_eq!(bench.gone(15, Steady), "a b c d", "confirmed, and yet they live");
        for second in [20, 300, 609] {
            assert_eq!(bench.tried(second, "a", Trial::Accepted), "a b c d");
            assert_eq!(bench.advance(second), "a b c d");
        }
        assert_eq!(bench.tried(609, "b", Trial::Refused), "a c d");
        assert_eq!(bench.guard.advance(at(609)).1, Some(at(610)), "announced");
        assert_eq!(bench.advance(610), "(unknown)", "and never for ever");
        assert_eq!(bench.ended(), "refused over over over");
    }

    #[test]
    fn after_a_loss_of_memory_even_a_single_absence_means_nothing() {
        let mut bench = Bench::consul(600);
        bench.read(0, Steady, "a b c d");
        assert_eq!(bench.read(10, AfterLoss, "a b c"), "a b c d");
        assert_eq!(bench.read(15, Steady, "a b c"), "a b c d");
        let mut bench = Bench::consul(600);
        bench.read(0, Steady, "a b c d");
        assert_eq!(bench.read(10, AfterGap, "a b c"), "a b c", "away, and most is there");
    }

    #[test]
    fn what_comes_back_one_by_one_costs_the_others_nothing() {
        let mut bench = Bench::consul(600);
        bench.read(0, Steady, "a b c d");
        bench.gone(10, AfterGap);
        for (second, trust, listed) in [
            (11, AfterGap, "a"),
            (12, AfterGap, "a b"),
            (13, AfterGap, "a b c"),
            (16, Steady, "a b c"),
            (60, AfterGap, "a b c"),
            (66, Steady, "a b c"),
        ] {
            assert_eq!(bench.read(second, trust, listed), "a b c d", "second {second}");
        }
        assert_eq!(bench.guard.held(), 1);
        assert_eq!(bench.read(67, Steady, "a b c d"), "a b c d");
        assert_eq!(
            (bench.guard.held(), bench.ended().as_str()),
            (0, "listed listed listed listed")
        );
        assert_eq!(
            bench.read(68, Steady, "a b c"),
            "a b c",
            "and then it leaves in an unbroken watch"
        );
    }

    #[test]
    fn what_a_reading_after_a_gap_lists_is_no_part_of_the_gap() {
        let mut bench = Bench::consul(600);
        bench.read(0, Steady, "a b c d");
        assert_eq!(bench.read(10, AfterLoss, "a b"), "a b c d");
        assert_eq!(bench.read(11, Unconfirmed, "a"), "a c d", "b was removed since");
        assert_eq!(bench.guard.advance(at(12)).1, Some(at(610)));
        for second in [12, 13, 14] {
            bench.tried(second, "c", Trial::Unanswered);
        }
        assert_eq!(bench.guard.advance(at(15)).1, Some(at(40)), "not confirmed");
        assert_eq!(bench.read(16, Steady, "a"), "a c d");
        assert_eq!(bench.advance(16), "a d");
        let mut bench = Bench::default();
        bench.read(0, AfterGap, "a b c d");
        assert_eq!(bench.read(1, Unconfirmed, "a"), "a");
    }

    #[test]
    fn absent_instances_are_marked_until_they_are_listed_again() {
        let mut guard = Guard::new(HoldRules {
            hold: Duration::from_secs(600),
            vanished: true,
        });
        let reading = |read_at, trust, ids: &[&str]| {
            Update::Service(Reading {
                service: web(),
                instances: ids.iter().map(|id| instance(id, id)).collect(),
                read_at,
                trust,
            })
        };
        let absent = |decision: Option<Decision>| match decision {
            Some(Decision::Set { instances, .. }) => {
                let since = instances.iter().map(|instance| instance.absent_since());
                since.collect::<Vec<_>>()
            }
            other => panic!("{other:?}"),
        };
        guard.observe(reading(at(0), Steady, &["a", "b", "c"]));
        let held = guard.observe(reading(at(10), AfterLoss, &["a"]));
        assert_eq!(absent(held), [None, Some(at(10)), Some(at(10))]);
        assert_eq!(guard.observe(reading(at(15), Steady, &["a"])), None, "nothing changes");
        let listed = guard.observe(reading(at(20), Steady, &["a", "c"]));
        assert_eq!(absent(listed), [None, Some(at(10)), None]);
    }

    #[test]
    fn what_neither_accepts_nor_refuses_goes_when_the_removal_is_confirmed() {
        let mut bench = Bench::consul(600);
        bench.read(0, Steady, "a b");
        bench.gone(10, AfterLoss);
        for second in [11, 12, 13] {
            assert_eq!(bench.tried(second, "a", Trial::Unanswered), "a b");
        }
        assert_eq!(bench.guard.advance(at(14)).1, Some(at(40)), "without confirmation 30 s");
        assert_eq!(bench.gone(14, Steady), "a b");
        assert_eq!(bench.advance(15), "b");
        // An instance that has accepted connections may miss a few.
        for second in [100, 101] {
            assert_eq!(bench.tried(second, "b", Trial::Unanswered), "b");
        }
        assert_eq!(bench.tried(102, "b", Trial::Accepted), "b");
        for second in [200, 201] {
            assert_eq!(bench.tried(second, "b", Trial::Unanswered), "b");
        }
        assert_eq!(bench.tried(202, "b", Trial::Unanswered), "(unknown)");
        assert_eq!(bench.ended(), "unanswered unanswered");
    }

    #[test]
    fn an_operator_accepts_what_the_registry_lists() {
        let mut bench = Bench::consul(600);
        bench.read(0, Steady, "a b c d");
        bench.read(10, AfterLoss, "a");
        assert_eq!(bench.accept(), "a");
        assert_eq!(
            (bench.guard.held(), bench.ended().as_str()),
            (0, "accepted accepted accepted")
        );
        assert_eq!(bench.read(11, AfterLoss, "a"), "a", "it stays accepted");
        assert_eq!(bench.accept(), "a");
        bench.read(20, AdditionsOnly, "");
        assert_eq!(bench.accept(), "", "also without a leader");
    }

    #[test]
    fn a_second_gap_does_not_prolong_a_hold() {
        let mut bench = Bench::consul(600);
        bench.read(0, Steady, "a b c d");
        bench.read(10, AfterLoss, "a");
        bench.read(15, Steady, "a");
        for (second, trust) in [(100, AfterGap), (200, AfterLoss), (300, AdditionsOnly), (400, AfterGap)] {
            assert_eq!(bench.read(second, trust, "a"), "a b c d", "{trust:?}");
        }
        bench.read(405, Steady, "a");
        assert_eq!(bench.advance(609), "a b c d");
        assert_eq!(bench.advance(610), "a");
    }

    #[test]
    fn while_the_registry_is_away_the_hold_stands_still() {
        let mut bench = Bench::consul(600);
        bench.read(0, Steady, "a b");
        bench.gone(10, AfterLoss);
        bench.gone(15, Steady);
        bench.guard.notice_absence(true, at(100));
        bench.guard.notice_absence(true, at(101));
        assert_eq!(bench.guard.advance(at(5_000)), (vec![], None));
        bench.guard.notice_absence(false, at(5_100));
        bench.guard.notice_absence(false, at(5_101));
        assert_eq!(bench.gone(5_100, AfterGap), "a b");
        assert_eq!(bench.advance(5_609), "a b");
        assert_eq!(bench.advance(5_610), "(unknown)");
    }

    #[test]
    fn other_rules_count_for_what_is_held_already() {
        let mut bench = Bench::consul(600);
        bench.read(0, Steady, "a b");
        bench.gone(10, AfterLoss);
        bench.gone(15, Steady);
        bench.guard.set_rules(HoldRules {
            hold: Duration::from_secs(60),
            vanished: true,
        });
        assert_eq!(bench.guard.advance(at(20)).1, Some(at(70)));
        bench.guard.set_rules(HoldRules::default());
        assert_eq!(bench.advance(20), "(unknown)", "as if there had never been a hold");
    }

    #[test]
    fn a_service_that_vanishes_in_an_unbroken_watch_is_held_while_it_answers() {
        let mut bench = Bench::consul(600);
        bench.read(0, Steady, "a b c");
        assert_eq!(bench.gone(10, Steady), "a b c");
        assert_eq!(bench.read(12, Steady, "a b c"), "a b c", "a catalog that flaps");
        assert_eq!(bench.guard.held(), 0);
        assert_eq!(bench.read(20, Steady, ""), "a b c");
        assert_eq!(bench.tried(21, "a", Trial::Accepted), "a b c");
        assert_eq!(bench.tried(21, "b", Trial::Refused), "a c");
        assert_eq!(
            bench.tried(21, "c", Trial::Unanswered),
            "a",
            "the registry removed it, and it does not answer"
        );
        assert_eq!(bench.gone(49, Steady), "a");
        assert_eq!(bench.advance(49), "a");
        assert_eq!(bench.advance(50), "(unknown)", "bounded");
        bench.read(60, Steady, "a");
        bench.gone(61, Steady);
        assert_eq!(bench.accept(), "(unknown)");
        // Consul lists a service without instances for a moment before the service is gone.
        bench.read(70, Steady, "a");
        assert_eq!(bench.read(71, AdditionsOnly, ""), "a");
        assert_eq!(bench.gone(72, Steady), "a");
        assert_eq!(bench.advance(101), "a");
        assert_eq!(bench.advance(102), "(unknown)");
    }

    #[test]
    fn graceful_removals_in_an_unbroken_watch_apply_at_once() {
        let mut bench = Bench::consul(600);
        bench.read(0, Steady, "a b c d");
        assert_eq!(bench.read(1, Steady, "a"), "a");
        let mut bench = Bench::etcd(600);
        bench.read(0, Steady, "a b c d");
        assert_eq!(bench.read(1, Steady, "a"), "a", "keys without a lease");
        assert_eq!(bench.gone(2, Steady), "(unknown)");
        bench.read(10, Steady, "a* b*");
        assert_eq!(bench.gone(11, Steady), "(unknown)", "too small to be a drop");
        bench.read(20, Steady, "a* b* c*");
        assert_eq!(bench.read(21, Steady, "a* b*"), "a b");
    }

    #[test]
    fn a_drop_of_ephemeral_instances_is_held_while_they_answer() {
        let mut bench = Bench::etcd(600);
        bench.read(0, Steady, "a* b* c* d* e*");
        assert_eq!(bench.gone(10, Steady), "a b c d e", "five on one lease");
        assert_eq!(bench.tried(10, "a", Trial::Refused), "b c d e");
        assert_eq!(bench.read(12, Steady, "b*"), "b c d e");
        assert_eq!(bench.advance(39), "b c d e");
        assert_eq!(
            bench.advance(40),
            "b",
            "30 s, whatever the hold after a loss of memory is"
        );
    }

    #[test]
    fn ephemeral_instances_that_leave_one_by_one_within_5_s_are_one_drop() {
        let mut bench = Bench::etcd(600);
        bench.read(0, Steady, "a* b* c* d* e p");
        bench.read(9, Steady, "a* b* c* d* e");
        assert_eq!(bench.read(10, Steady, "b* c* d* e"), "b c d e");
        assert_eq!(bench.read(11, Steady, "c* d* e"), "c d e");
        assert_eq!(
            bench.read(12, Steady, "d*"),
            "a b c d",
            "less than half is left; e has no lease"
        );
        assert_eq!(bench.guard.held(), 3);

        let mut bench = Bench::etcd(600);
        bench.read(0, Steady, "a* b* c* d* e*");
        for (second, listed, pool) in [
            (10, "b* c* d* e*", "b c d e"),
            (14, "c* d* e*", "c d e"),
            (18, "d* e*", "d e"),
            (23, "e*", "e"),
        ] {
            assert_eq!(bench.read(second, Steady, listed), pool, "slowly is gracefully");
        }
    }

    #[test]
    fn an_ephemeral_instance_that_came_back_within_5_s_has_not_left() {
        let mut bench = Bench::etcd(600);
        bench.read(0, Steady, "a* b* c* d*");
        assert_eq!(bench.read(10, Steady, "b* c* d*"), "b c d");
        assert_eq!(bench.read(11, Steady, "a* b* c* d*"), "a b c d");
        assert_eq!(bench.read(12, Steady, "b*"), "a b c d");
        assert_eq!(bench.guard.held(), 3, "each once");

        // It came back at another address: the former one has left, and the id is taken.
        let mut bench = Bench::etcd(600);
        bench.read(0, Steady, "a* b* c* d*");
        bench.read(10, Steady, "b* c* d*");
        bench.read(11, Steady, "a>z* b* c* d*");
        assert_eq!(bench.read(12, Steady, "b*"), "a>z b c d");
        assert_eq!(bench.guard.held(), 3);
    }

    #[test]
    fn a_new_watcher_without_a_leader_removes_nothing() {
        let mut bench = Bench::etcd(600);
        bench.read(0, Steady, "a b c");
        bench.guard.expect_new_watcher();
        assert_eq!(bench.read(10, AdditionsOnly, "a d"), "a b c d");
        assert_eq!(bench.read(20, AfterGap, "a d"), "a d", "half is left");
    }

    #[test]
    fn a_rolling_restart_of_ephemeral_instances_is_no_drop() {
        let mut bench = Bench::etcd(600);
        bench.read(0, Steady, "a* b* c* d*");
        for (second, listed, pool) in [
            (1, "b* c* d*", "b c d"),
            (2, "a* b* c* d*", "a b c d"),
            (3, "a* c* d*", "a c d"),
            (4, "a* b* c* d*", "a b c d"),
            (5, "a* b* d*", "a b d"),
            (6, "a* b* c* d*", "a b c d"),
        ] {
            assert_eq!(bench.read(second, Steady, listed), pool);
        }
        assert_eq!(
            bench.read(7, Steady, "w* x* y* z*"),
            "w x y z",
            "a deploy that replaces all"
        );
        assert_eq!(bench.guard.held(), 0);
    }

    #[test]
    fn a_drop_that_a_loss_of_memory_follows_is_held_for_that() {
        let mut bench = Bench::consul(600);
        bench.read(0, Steady, "a b");
        bench.gone(10, Steady);
        assert_eq!(bench.gone(12, AfterLoss), "a b");
        assert_eq!(bench.gone(17, Steady), "a b");
        assert_eq!(bench.advance(609), "a b");
        assert_eq!(bench.advance(610), "(unknown)");
    }

    #[test]
    fn a_new_watcher_replaces_what_is_listed_and_keeps_what_is_held() {
        let mut bench = Bench::consul(600);
        bench.read(0, Steady, "a b c d");
        bench.read(10, AfterLoss, "a b");
        bench.guard.expect_new_watcher();
        assert_eq!(
            bench.tried(11, "d", Trial::Refused),
            "a b c",
            "what was listed stays meanwhile"
        );
        assert_eq!(bench.read(12, AfterGap, "b"), "b c", "and then goes without a hold");
        bench.guard.expect_new_watcher();
        for decision in bench.guard.forget_outdated() {
            bench.apply(Some(decision));
        }
        assert_eq!(bench.pool(), "c", "the new watcher knows no such service");
        assert_eq!(bench.tried(20, "c", Trial::Refused), "(unknown)");
        assert!(bench.guard.services.is_empty() && bench.guard.holding.is_empty());
    }

    #[test]
    fn a_reading_without_changes_leads_to_no_decision() {
        let mut guard = Guard::default();
        let reading = |ids: [&str; 2], weight: i64| {
            let weight = Weight::new(weight).unwrap();
            Update::Service(Reading {
                service: web(),
                instances: ids.map(|id| instance(id, id).with_weight(weight)).into(),
                read_at: at(0),
                trust: Steady,
            })
        };
        assert!(guard.observe(reading(["a", "b"], 1)).is_some());
        assert_eq!(guard.observe(reading(["b", "a"], 1)), None, "the order does not count");
        assert!(guard.observe(reading(["a", "b"], 2)).is_some());
        assert_eq!(guard.observe(Update::Synced), Some(Decision::Synced));
    }

    /// The same rules without a `hold`, with sets of numbers and without regard to cost.
    #[derive(Default)]
    struct Model {
        listed: BTreeSet<u8>,
        /// Since when each instance is held, and for how long.
        gap: BTreeMap<u8, (u64, u64)>,
        kept: BTreeSet<u8>,
    }

    impl Model {
        fn all(&self) -> BTreeSet<u8> {
            self.listed
                .iter()
                .chain(self.gap.keys())
                .chain(&self.kept)
                .copied()
                .collect()
        }

        fn read(&mut self, now: u64, listed: BTreeSet<u8>, trust: Trust) {
            let all = self.all();
            let missing = &all - &listed;
            let since = |one: &u8| self.gap.get(one).map_or(now, |(since, _)| *since);
            let (gap, kept) = match trust {
                Unconfirmed => {
                    let still = |(one, held): (&u8, &(u64, u64))| missing.contains(one).then_some((*one, *held));
                    (self.gap.iter().filter_map(still).collect(), BTreeSet::new())
                }
                Steady => {
                    let fresh = |(one, (since, _)): (&u8, &(u64, u64))| {
                        (missing.contains(one) && now - since < 5).then_some((*one, (*since, 5)))
                    };
                    (self.gap.iter().filter_map(fresh).collect(), BTreeSet::new())
                }
                AfterGap | AfterLoss if listed.len() * 2 < all.len() => {
                    let held = missing.iter().map(|one| (*one, (since(one), 30)));
                    (held.collect(), BTreeSet::new())
                }
                AfterGap | AfterLoss => (BTreeMap::new(), BTreeSet::new()),
                AdditionsOnly => (BTreeMap::new(), missing),
            };
            *self = Self { listed, gap, kept };
        }

        fn pass(&mut self, now: u64) {
            self.gap.retain(|_, (since, long)| now - *since < *long);
        }
    }

    /// The sum of the decisions: the number of each instance, and its weight.
    fn apply(pool: &mut Option<BTreeMap<u8, u16>>, decision: Option<Decision>) {
        match decision {
            Some(Decision::Set { instances, .. }) => {
                let entry = |one: &Arc<ServiceInstance>| (one.id().as_str().parse().unwrap(), one.weight().get());
                *pool = Some(instances.iter().map(entry).collect());
            }
            Some(Decision::Remove { .. }) => *pool = None,
            Some(Decision::Synced) | None => {}
        }
    }

    proptest! {
        #[test]
        fn the_guard_does_what_a_naive_model_does(
            events in prop::collection::vec(
                (0u64..14, prop::option::weighted(0.9, prop::collection::btree_set(0u8..8, 0..8)), prop::sample::select(vec![Steady, Unconfirmed, AfterGap, AfterLoss, AdditionsOnly])),
                1..40,
            ),
            gapless in any::<bool>(),
        ) {
            let (mut guard, mut model, mut pool) = (Guard::default(), Model::default(), None);
            let mut now = 0;
            let mut deadline = None;
            for (index, (passed, listed, trust)) in events.into_iter().enumerate() {
                let trust = if gapless { Steady } else { trust };
                let arrives = now + passed;
                // The agent's timer calls only at the announced times, and no hold is ever
                // overdue.
                while let Some(due) = deadline.filter(|due| *due <= at(arrives)) {
                    let (decisions, next) = guard.advance(due);
                    prop_assert!(next.is_none_or(|next| next > due));
                    decisions.into_iter().for_each(|decision| apply(&mut pool, Some(decision)));
                    deadline = next;
                }
                now = arrives;
                model.pass(now);
                let expected = model.all();
                let seen: BTreeSet<u8> = pool.iter().flat_map(|pool| pool.keys().copied()).collect();
                prop_assert_eq!(&seen, &expected, "before event {}", index);

                let weight = index as u16 + 1;
                let update = match &listed {
                    Some(listed) => Update::Service(Reading {
                        service: web(),
                        instances: listed
                            .iter()
                            .map(|one| instance(&one.to_string(), &format!("h{one}")).with_weight(Weight::new(weight).unwrap()))
                            .collect(),
                        read_at: at(now),
                        trust,
                    }),
                    None => Update::Gone { service: web(), read_at: at(now), trust },
                };
                let is_gone = listed.is_none();
                let listed = listed.unwrap_or_default();
                apply(&mut pool, guard.observe(update));
                model.read(now, listed.clone(), trust);

                let seen = pool.clone().unwrap_or_default();
                prop_assert_eq!(seen.keys().copied().collect::<BTreeSet<_>>(), model.all(), "after event {}", index);
                prop_assert!(listed.iter().all(|one| seen[one] == weight), "a change was held up");
                prop_assert_eq!(guard.held(), model.gap.len() + model.kept.len());
                prop_assert_eq!(guard.held(), guard.held_addresses().count());
                if trust == Steady && gapless {
                    prop_assert_eq!(pool.is_none(), is_gone);
                }
                deadline = guard.advance(at(now)).1;
            }
        }

        /// Whatever happens: an instance that is absent and accepts connections stays for the whole
        /// hold after a loss of memory, and no absent instance stays longer than its bound.
        #[test]
        fn a_hold_is_never_too_short_and_never_for_ever(
            events in prop::collection::vec(
                (0u64..40, prop::option::weighted(0.9, prop::collection::btree_set(0u8..6, 0..6)),
                 prop::sample::select(vec![Steady, Unconfirmed, AfterGap, AfterLoss]), prop::option::weighted(0.3, 0u8..6)),
                1..40,
            ),
            vanished in any::<bool>(),
        ) {
            const HOLD: u64 = 100;
            let mut guard = Guard::new(HoldRules { hold: Duration::from_secs(HOLD), vanished });
            let (mut pool, mut now) = (None, 0);
            // Since when each instance is missing, and whether the registry had lost its memory then.
            let mut missing: BTreeMap<u8, (u64, bool)> = BTreeMap::new();
            let mut known = BTreeSet::new();
            for (passed, listed, trust, refuses) in events {
                now += passed;
                for decision in guard.advance(at(now)).0 {
                    apply(&mut pool, Some(decision));
                }
                let update = match &listed {
                    Some(listed) => Update::Service(Reading {
                        service: web(),
                        instances: listed.iter().map(|one| instance(&one.to_string(), &format!("h{one}"))).collect(),
                        read_at: at(now),
                        trust,
                    }),
                    None => Update::Gone { service: web(), read_at: at(now), trust },
                };
                let listed = listed.unwrap_or_default();
                apply(&mut pool, guard.observe(update));
                missing.retain(|one, _| !listed.contains(one));
                for one in known.difference(&listed) {
                    missing.entry(*one).or_insert((now, trust == AfterLoss));
                }
                known = listed;
                if let Some(one) = refuses {
                    let address = Address::new(&format!("h{one}"), 80).unwrap();
                    apply(&mut pool, guard.tried(&web(), &address, Trial::Refused, at(now)));
                    missing.remove(&one);
                }
                let seen: BTreeSet<u8> = pool.iter().flat_map(|pool| pool.keys().copied()).collect();
                prop_assert!(seen.is_superset(&known));
                for (one, (since, lost)) in &missing {
                    if *lost && now - since < HOLD {
                        prop_assert!(seen.contains(one), "{} went {} s after the loss", one, now - since);
                    }
                    prop_assert!(now - since < HOLD || !seen.contains(one), "{} stays for ever", one);
                }
                prop_assert_eq!(guard.held(), seen.len() - known.len());
            }
        }
    }
}
