//! What is known of the keys, and which services that makes; what of it has to be told, and when.
//!
//! ```text
//!   list  ──► replace ──┐   keys: revision, service      services: by key, instances
//!   watch ──► put ──────┼─►            └────────────────────────┘
//!             delete ───┤                       │ changed
//!   list  ──► repair ───┘                       ▼
//!                                 waiting: a service at most every 50 ms ──► Update, whole
//! ```
//!
//! Revisions keep it right whatever order things arrive in: an event that a list already holds is ignored, and so is what a list
//! says of a key that the watch has seen change since. A value that cannot be read costs its key what is new in it: what the key
//! registered before stays.
//!
//! Pure, but for log lines and the counters of the source's status. Knows no connection; `now` is an argument.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::formats::{InvalidRegistration, Registration};
use super::wire::{Event, Listing, What};
use super::{Prefixes, SOURCE};
use crate::balancer::{ServiceInstance, ServiceName, SourceStatus, Timestamp};
use crate::discovery::{Reading, Reason, Trust, Update};

/// A service that changes all the time is told this often. A large one is a large message.
const PACE: Duration = Duration::from_millis(50);

/// A key as etcd knows it, shared between the maps.
type Key = Arc<[u8]>;

/// Everything below the prefixes.
pub(super) struct View {
    prefixes: Prefixes,
    status: Arc<SourceStatus>,
    keys: HashMap<Key, Known>,
    services: HashMap<ServiceName, BTreeMap<Key, Vec<ServiceInstance>>>,
    /// Events up to here are part of what was listed.
    floor: i64,
    /// What was deleted since a second list was asked for, while the watch goes on: key and revision.
    deleted: Option<HashMap<Key, i64>>,
    /// Distinguishes what one list has shown from what it has not.
    round: u32,
    waiting: Waiting,
    /// Services that lost something on a doubtful reading: they are to be told once more.
    owed: HashSet<ServiceName>,
    sync: Sync,
}

/// What is known of one key.
struct Known {
    mod_revision: i64,
    /// Where it registers instances, if it does.
    service: Option<ServiceName>,
    round: u32,
}

/// What is to be told, and how soon.
#[derive(Default)]
struct Waiting {
    changed: HashMap<ServiceName, Changed>,
    order: BTreeSet<(Timestamp, ServiceName)>,
    told: HashMap<ServiceName, Timestamp>,
}

#[derive(Clone, Copy)]
struct Changed {
    due: Timestamp,
    read_at: Timestamp,
    trust: Trust,
}

/// Whether everything has been told once.
enum Sync {
    /// Nothing has been listed yet.
    Unlisted,
    /// These services of the first list have not been told yet.
    Listed(HashSet<ServiceName>),
    Told,
}

/// Values that could not be read, for one log line.
#[derive(Default)]
struct Skipped {
    count: usize,
    first: Option<String>,
}

impl View {
    pub(super) fn new(prefixes: Prefixes, status: Arc<SourceStatus>) -> Self {
        Self {
            prefixes,
            status,
            keys: HashMap::new(),
            services: HashMap::new(),
            floor: 0,
            deleted: None,
            round: 0,
            waiting: Waiting::default(),
            owed: HashSet::new(),
            sync: Sync::Unlisted,
        }
    }

    /// Keys known.
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether a list that can be trusted to be complete has been taken.
    pub(super) fn is_listed(&self) -> bool {
        !matches!(self.sync, Sync::Unlisted)
    }

    /// Takes a list as all there is, whatever was known before.
    pub(super) fn replace(&mut self, listing: Listing, trust: Trust, now: Timestamp) {
        self.round += 1;
        self.floor = listing.at.revision;
        self.deleted = None;
        let mut skipped = Skipped::default();
        for listed in listing.keys {
            self.set(listed.key, listed.mod_revision, listed.read, (trust, now), &mut skipped);
        }
        self.remove_unlisted(|_| true, (trust, now));
        self.waiting.forget(now);
        skipped.tell();
        if trust != Trust::AdditionsOnly && !self.is_listed() {
            self.sync = Sync::Listed(self.waiting.changed.keys().cloned().collect());
        }
    }

    /// From now on, deletions are remembered: a list is under way while the watch goes on.
    pub(super) fn expect_list(&mut self) {
        self.deleted = Some(HashMap::new());
    }

    /// Compares with a list that was read while the watch went on, corrects what differs, and says how many keys that was.
    pub(super) fn repair(&mut self, listing: Listing, now: Timestamp) -> usize {
        self.round += 1;
        let deleted = self.deleted.take().unwrap_or_default();
        let revision = listing.at.revision;
        let (mut repaired, mut skipped) = (0, Skipped::default());
        for listed in listing.keys {
            if deleted.get(&*listed.key).is_some_and(|at| *at > listed.mod_revision) {
                continue;
            }
            if let Some(known) = self.keys.get_mut(&*listed.key)
                && known.mod_revision >= listed.mod_revision
            {
                known.round = self.round;
                continue;
            }
            repaired += 1;
            self.set(
                listed.key,
                listed.mod_revision,
                listed.read,
                (Trust::Steady, now),
                &mut skipped,
            );
        }
        repaired += self.remove_unlisted(|known| known.mod_revision <= revision, (Trust::Steady, now));
        self.floor = self.floor.max(revision);
        self.waiting.forget(now);
        skipped.tell();
        repaired
    }

    /// Takes what a watch says, in its order, as one step: nothing is told before all of it is known.
    pub(super) fn follow(&mut self, events: Vec<Event>, now: Timestamp) {
        let mut skipped = Skipped::default();
        for event in events {
            let at = event.mod_revision;
            let known = self.keys.get(&*event.key).map_or(0, |known| known.mod_revision);
            if at <= self.floor || at <= known {
                continue;
            }
            match event.what {
                What::Put(value) => {
                    let prefixes = Arc::clone(&self.prefixes);
                    if let Some(prefix) = prefixes.iter().find(|prefix| prefix.covers(&event.key)) {
                        let read = prefix.read(&event.key, &value);
                        self.set(event.key, at, read, (Trust::Steady, now), &mut skipped);
                    }
                }
                What::Delete => {
                    if let Some(deleted) = &mut self.deleted {
                        deleted.insert(event.key.as_slice().into(), at);
                    }
                    self.remove(&event.key, (Trust::Steady, now));
                }
                // Of a later etcd: the list that comes every few minutes knows what it meant.
                What::Unknown(kind) => tracing::debug!(source = %SOURCE, kind, "an event of a kind that is not known"),
            }
        }
        skipped.tell();
    }

    /// The services that a second look is owed.
    pub(super) fn is_owed(&self) -> bool {
        !self.owed.is_empty()
    }

    /// The second look has been taken: says again how those services are, changed or not.
    pub(super) fn confirm(&mut self, now: Timestamp) {
        for service in std::mem::take(&mut self.owed) {
            self.waiting.add(&service, Trust::Steady, now);
        }
    }

    /// The next word, if one is due.
    pub(super) fn news(&mut self, now: Timestamp) -> Option<Update> {
        if let Sync::Listed(untold) = &self.sync
            && untold.is_empty()
        {
            self.sync = Sync::Told;
            return Some(Update::Synced);
        }
        let (service, changed) = self.waiting.take(now)?;
        if let Sync::Listed(untold) = &mut self.sync {
            untold.remove(&service);
        }
        let Changed { read_at, trust, .. } = changed;
        Some(match self.services.get(&service) {
            Some(keys) => Update::Service(Reading {
                service,
                instances: keys.values().flatten().cloned().collect(),
                read_at,
                trust,
            }),
            None => Update::Gone {
                service,
                read_at,
                trust,
            },
        })
    }

    /// When there will be something to tell, if nothing happens before.
    pub(super) fn due(&self) -> Option<Timestamp> {
        self.waiting.order.first().map(|(due, _)| *due)
    }

    fn set(
        &mut self,
        key: Vec<u8>,
        mod_revision: i64,
        read: Result<Registration, InvalidRegistration>,
        (trust, now): (Trust, Timestamp),
        skipped: &mut Skipped,
    ) {
        let (key, before) = match self.keys.remove_entry(&*key) {
            Some((key, known)) => (key, Some(known)),
            None => (Key::from(key), None),
        };
        let service = match read {
            Ok(registration) => self.register(&key, before.as_ref(), registration, (trust, now)),
            Err(error) => {
                // The same bad value, listed again, is no news.
                if before.as_ref().is_none_or(|before| before.mod_revision != mod_revision) {
                    self.status.count_error(Reason::InvalidInstance.as_str());
                    skipped.add(&key, &error);
                }
                before.and_then(|before| before.service)
            }
        };
        let round = self.round;
        self.keys.insert(
            key,
            Known {
                mod_revision,
                service,
                round,
            },
        );
    }

    /// Files what a key registers now, and returns the service if it registers anything.
    fn register(
        &mut self,
        key: &Key,
        before: Option<&Known>,
        registration: Registration,
        (trust, now): (Trust, Timestamp),
    ) -> Option<ServiceName> {
        let Registration { service, instances } = registration;
        if instances.is_empty() {
            if let Some(before) = before.and_then(|known| known.service.as_ref()) {
                self.unregister(before, key, (trust, now));
            }
            return None;
        }
        // A key is always of the same service, so nothing is left elsewhere.
        let keys = self.services.entry(service.clone()).or_default();
        if keys.get(key) != Some(&instances) {
            keys.insert(Arc::clone(key), instances);
            self.waiting.add(&service, trust, now);
        }
        Some(service)
    }

    fn unregister(&mut self, service: &ServiceName, key: &[u8], (trust, now): (Trust, Timestamp)) {
        if let Some(keys) = self.services.get_mut(service)
            && keys.remove(key).is_some()
        {
            if keys.is_empty() {
                self.services.remove(service);
            }
            self.waiting.add(service, trust, now);
            if trust != Trust::Steady {
                self.owed.insert(service.clone());
            }
        }
    }

    fn remove(&mut self, key: &[u8], how: (Trust, Timestamp)) {
        if let Some(known) = self.keys.remove(key)
            && let Some(service) = &known.service
        {
            self.unregister(service, key, how);
        }
    }

    fn remove_unlisted(&mut self, also: impl Fn(&Known) -> bool, how: (Trust, Timestamp)) -> usize {
        let unlisted: Vec<Key> = self
            .keys
            .iter()
            .filter(|(_, known)| known.round != self.round && also(known))
            .map(|(key, _)| Arc::clone(key))
            .collect();
        for key in &unlisted {
            self.remove(key, how);
        }
        unlisted.len()
    }
}

impl Waiting {
    fn add(&mut self, service: &ServiceName, trust: Trust, now: Timestamp) {
        if let Some(changed) = self.changed.get_mut(service) {
            // One doubtful look makes the whole reading doubtful.
            changed.trust = weaker(changed.trust, trust);
            changed.read_at = now;
            return;
        }
        let due = self.told.get(service).map_or(now, |told| now.max(*told + PACE));
        self.order.insert((due, service.clone()));
        let changed = Changed {
            due,
            read_at: now,
            trust,
        };
        self.changed.insert(service.clone(), changed);
    }

    fn take(&mut self, now: Timestamp) -> Option<(ServiceName, Changed)> {
        if self.order.first()?.0 > now {
            return None;
        }
        let (_, service) = self.order.pop_first()?;
        let changed = self.changed.remove(&service)?;
        self.told.insert(service.clone(), now.max(changed.due));
        Some((service, changed))
    }
}

impl Waiting {
    /// Drops what is remembered of services that may be told again anyway.
    fn forget(&mut self, now: Timestamp) {
        self.told.retain(|_, told| *told + PACE > now);
    }
}

fn weaker(a: Trust, b: Trust) -> Trust {
    match (a, b) {
        (Trust::AdditionsOnly, _) | (_, Trust::AdditionsOnly) => Trust::AdditionsOnly,
        (Trust::AfterGap, _) | (_, Trust::AfterGap) => Trust::AfterGap,
        (Trust::Steady, Trust::Steady) => Trust::Steady,
    }
}

impl Skipped {
    fn add(&mut self, key: &[u8], error: &InvalidRegistration) {
        self.count += 1;
        if self.first.is_none() {
            let key: String = String::from_utf8_lossy(key).chars().take(200).collect();
            self.first = Some(format!("{}: {error}", key.escape_default()));
        }
    }

    fn tell(self) {
        if let Some(first) = self.first {
            tracing::warn!(source = %SOURCE, skipped = self.count, first, "values that cannot be used; what their keys said before stays");
        }
    }
}
