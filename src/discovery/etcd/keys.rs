//! The known keys and the services they register; which service is sent next, and when.
//!
//! ```text
//!   list  ──► replace ──┐   keys: revision, service      services: by key, instances
//!   watch ──► put ──────┼─►            └────────────────────────┘
//!             delete ───┤                       │ changed
//!   list  ──► repair ───┘                       ▼
//!                             pending: a service at most every 50 ms ──► Update, whole
//! ```
//!
//! Revisions keep the state right in whatever order lists and events arrive. An event that a list
//! already includes is ignored. So is the state of a key in a list, if the watch has delivered a
//! later change of that key. If a value cannot be read, the key keeps what it registered before. So
//! do all keys below a prefix that the user may not read any more.
//!
//! Pure, but for log lines and the counters of the source's status. Knows no connection; `now` is
//! an argument.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::formats::{InvalidRegistration, Prefixes, Registration, SOURCE};
use super::skipped::{self, SkippedKeys};
use super::wire::{Event, EventKind, Listed, Listing, Unreadable};
use crate::balancer::{ServiceInstance, ServiceName, SkipReason, SkippedRegistration, SourceStatus, Timestamp};
use crate::discovery::registrations::share_addresses;
use crate::discovery::watcher::{Reading, Reason, Trust, Update};

/// How often a service that changes all the time is sent. A large service is a large message.
const MIN_INTERVAL: Duration = Duration::from_millis(50);

/// A key as etcd knows it, shared between the maps.
type Key = Arc<[u8]>;

/// All keys below the prefixes.
pub(super) struct Keys {
    prefixes: Prefixes,
    status: Arc<SourceStatus>,
    keys: HashMap<Key, KnownKey>,
    services: HashMap<ServiceName, BTreeMap<Key, Vec<ServiceInstance>>>,
    /// Services with several keys for one address when they were sent last. There the order of the
    /// writes counts, so that a key that is written again is a change.
    with_shared_addresses: HashSet<ServiceName>,
    /// Events up to this revision are part of the last list.
    floor: i64,
    /// The keys that were deleted since a list was started during the watch, each with the
    /// revision.
    deleted: Option<HashMap<Key, i64>>,
    /// The number of the last list. A key with another number was not in that list.
    list_number: u32,
    pending: Pending,
    /// Services that lost instances in the first list after a gap. They are sent once more after
    /// its confirmation.
    unconfirmed: HashSet<ServiceName>,
    skipped: SkippedKeys,
    sync: SyncState,
}

/// What is known of one key.
struct KnownKey {
    mod_revision: i64,
    /// The revision of the last write that could be read.
    written: i64,
    /// The service for which the key registers instances, if any.
    service: Option<ServiceName>,
    /// The service of which the key is a skipped registration, if its value is not valid.
    skipped: Option<ServiceName>,
    list_number: u32,
}

/// The services to send, and when.
#[derive(Default)]
struct Pending {
    changed: HashMap<ServiceName, Changed>,
    order: BTreeSet<(Timestamp, ServiceName)>,
    sent: HashMap<ServiceName, Timestamp>,
}

#[derive(Clone, Copy)]
struct Changed {
    due: Timestamp,
    read_at: Timestamp,
    trust: Trust,
}

/// Whether everything was sent once.
enum SyncState {
    /// Nothing has been listed yet.
    Unlisted,
    /// These services of the first list were not sent yet.
    Listed(HashSet<ServiceName>),
    Sent,
}

/// Values, and parts of values, that could not be read, for one log line each.
#[derive(Default)]
struct Skipped {
    count: usize,
    first: Option<String>,
    ignored: usize,
    first_ignored: Option<String>,
}

impl Keys {
    pub(super) fn new(prefixes: Prefixes, status: Arc<SourceStatus>) -> Self {
        Self {
            prefixes,
            status,
            keys: HashMap::new(),
            services: HashMap::new(),
            with_shared_addresses: HashSet::new(),
            floor: 0,
            deleted: None,
            list_number: 0,
            pending: Pending::default(),
            unconfirmed: HashSet::new(),
            skipped: SkippedKeys::default(),
            sync: SyncState::Unlisted,
        }
    }

    /// How many keys are known.
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether a complete list has been read.
    pub(super) fn is_listed(&self) -> bool {
        !matches!(self.sync, SyncState::Unlisted)
    }

    /// Replaces the known keys by those of a list.
    pub(super) fn replace(&mut self, listing: Listing, trust: Trust, now: Timestamp) {
        self.list_number += 1;
        self.floor = listing.at.revision;
        self.deleted = None;
        let mut skipped = Skipped::default();
        for Listed {
            key,
            mod_revision,
            read,
            value_bytes,
        } in listing.keys
        {
            self.set(key, mod_revision, (read, value_bytes), (trust, now), &mut skipped);
        }
        self.remove_unlisted(|_| true, &listing.unreadable, (trust, now));
        self.pending.forget(now);
        skipped.log();
        self.skipped.show(&self.status);
        if trust != Trust::AdditionsOnly && !self.is_listed() && listing.unreadable.is_empty() {
            self.sync = SyncState::Listed(self.pending.changed.keys().cloned().collect());
        }
    }

    /// Remembers deletions from now on, because a list is started during the watch.
    pub(super) fn expect_list(&mut self) {
        self.deleted = Some(HashMap::new());
    }

    /// Compares with a list that was read during the watch, and corrects what differs. Returns how
    /// many keys differed.
    pub(super) fn repair(&mut self, listing: Listing, now: Timestamp) -> usize {
        self.list_number += 1;
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
                known.list_number = self.list_number;
                continue;
            }
            repaired += 1;
            self.set(
                listed.key,
                listed.mod_revision,
                (listed.read, listed.value_bytes),
                (Trust::Steady, now),
                &mut skipped,
            );
        }
        repaired += self.remove_unlisted(
            |known| known.mod_revision <= revision,
            &listing.unreadable,
            (Trust::Steady, now),
        );
        self.floor = self.floor.max(revision);
        self.pending.forget(now);
        skipped.log();
        self.skipped.show(&self.status);
        repaired
    }

    /// Applies the events of a watch in their order, as one step: all of them are applied before a
    /// service is sent.
    pub(super) fn apply(&mut self, events: Vec<Event>, now: Timestamp) {
        let mut skipped = Skipped::default();
        for event in events {
            let at = event.mod_revision;
            let known = self.keys.get(&*event.key).map_or(0, |known| known.mod_revision);
            if at <= self.floor || at <= known {
                continue;
            }
            match event.kind {
                EventKind::Put { value, leased } => {
                    let prefixes = Arc::clone(&self.prefixes);
                    if let Some(prefix) = prefixes.iter().find(|prefix| prefix.covers(&event.key)) {
                        match prefix.read(&event.key, &value).map(|read| read.leased(leased)) {
                            Err(error) if !error.is_counted() => self.remove(&event.key, (Trust::Steady, now)),
                            read => {
                                let read = (read, value.len());
                                self.set(event.key, at, read, (Trust::Steady, now), &mut skipped);
                            }
                        }
                    }
                }
                EventKind::Delete => {
                    if let Some(deleted) = &mut self.deleted {
                        deleted.insert(event.key.as_slice().into(), at);
                    }
                    self.remove(&event.key, (Trust::Steady, now));
                }
                // From a later version of etcd. The next periodic list includes its effect.
                EventKind::Unknown(kind) => tracing::debug!(source = %SOURCE, kind, "unknown type of event ignored"),
            }
        }
        skipped.log();
        self.skipped.show(&self.status);
    }

    /// Whether some services have to be sent again after the confirmation.
    pub(super) fn needs_confirmation(&self) -> bool {
        !self.unconfirmed.is_empty()
    }

    /// The confirmation has been read: sends those services again, changed or not.
    pub(super) fn confirm(&mut self, now: Timestamp) {
        for service in std::mem::take(&mut self.unconfirmed) {
            self.pending.add(&service, Trust::Steady, now);
        }
    }

    /// The next update, if one is due.
    pub(super) fn next_update(&mut self, now: Timestamp) -> Option<Update> {
        if let SyncState::Listed(unsent) = &self.sync
            && unsent.is_empty()
        {
            self.sync = SyncState::Sent;
            return Some(Update::Synced);
        }
        let (service, changed) = self.pending.take(now)?;
        if let SyncState::Listed(unsent) = &mut self.sync {
            unsent.remove(&service);
        }
        let Changed { read_at, trust, .. } = changed;
        self.with_shared_addresses.remove(&service);
        let Some(keys) = self.services.get(&service) else {
            if self.skipped.contains(&service) {
                // The service is known, although none of its keys is an instance.
                return Some(Update::Service(Reading {
                    service,
                    instances: Vec::new(),
                    read_at,
                    trust,
                }));
            }
            return Some(Update::Gone {
                service,
                read_at,
                trust,
            });
        };
        let mut instances: Vec<_> = keys.values().flatten().cloned().collect();
        if share_addresses(&instances) {
            let written = |key: &Key| self.keys.get(key).map_or(0, |known| known.written);
            let mut by_write: Vec<_> = keys.iter().collect();
            by_write.sort_by_key(|(key, _)| written(key));
            instances = by_write
                .into_iter()
                .flat_map(|(_, instances)| instances)
                .cloned()
                .collect();
            self.with_shared_addresses.insert(service.clone());
        }
        Some(Update::Service(Reading {
            service,
            instances,
            read_at,
            trust,
        }))
    }

    /// When the next update is due, if nothing happens before.
    pub(super) fn due(&self) -> Option<Timestamp> {
        self.pending.order.first().map(|(due, _)| *due)
    }

    fn set(
        &mut self,
        key: Vec<u8>,
        mod_revision: i64,
        (read, value_bytes): (Result<Registration, InvalidRegistration>, usize),
        (trust, now): (Trust, Timestamp),
        skipped: &mut Skipped,
    ) {
        let (key, before) = match self.keys.remove_entry(&*key) {
            Some((key, known)) => (key, Some(known)),
            None => (Key::from(key), None),
        };
        // The same value, listed again, is not counted again.
        let is_new = before.as_ref().is_none_or(|before| before.mod_revision != mod_revision);
        let (service, written, skipped) = match read {
            Ok(registration) => {
                for reason in registration.ignored.iter().filter(|_| is_new) {
                    self.status.count_error(Reason::InvalidInstance.as_str());
                    skipped.ignore(&key, reason);
                }
                let service = self.register((&key, mod_revision), before.as_ref(), registration, (trust, now));
                self.no_longer_skipped(&key, before.as_ref(), (trust, now));
                (service, mod_revision, None)
            }
            Err(error) if is_new => {
                let registration = skipped::skipped(&key, &error);
                self.status.count_error(Reason::from(registration.reason).as_str());
                if registration.reason != SkipReason::NoPort {
                    skipped.add(&registration, value_bytes);
                }
                let skipped = self.skip(&key, registration, (trust, now));
                before.map_or((None, 0, skipped.clone()), |before| {
                    (before.service, before.written, skipped)
                })
            }
            Err(_) => before.map_or((None, 0, None), |before| {
                (before.service, before.written, before.skipped)
            }),
        };
        let list_number = self.list_number;
        self.keys.insert(
            key,
            KnownKey {
                mod_revision,
                written,
                service,
                skipped,
                list_number,
            },
        );
    }

    /// Records that the value of a key is not valid, and returns the service of the key.
    fn skip(
        &mut self,
        key: &Key,
        registration: SkippedRegistration,
        (trust, now): (Trust, Timestamp),
    ) -> Option<ServiceName> {
        let prefix = self.prefixes.iter().find(|prefix| prefix.covers(key))?;
        let service = prefix.service_of(key)?;
        let is_first = self.skipped.add(&service, key, registration);
        if is_first && !self.services.contains_key(&service) {
            self.pending.add(&service, trust, now);
        }
        Some(service)
    }

    fn no_longer_skipped(&mut self, key: &[u8], known: Option<&KnownKey>, (trust, now): (Trust, Timestamp)) {
        if let Some(service) = known.and_then(|known| known.skipped.as_ref())
            && self.skipped.remove(service, key)
            && !self.services.contains_key(service)
        {
            self.pending.add(service, trust, now);
        }
    }

    /// Stores what a key registers now, and returns the service if the key registers any instance.
    fn register(
        &mut self,
        (key, mod_revision): (&Key, i64),
        before: Option<&KnownKey>,
        registration: Registration,
        (trust, now): (Trust, Timestamp),
    ) -> Option<ServiceName> {
        let Registration { service, instances, .. } = registration;
        if instances.is_empty() {
            if let Some(before) = before.and_then(|known| known.service.as_ref()) {
                self.unregister(before, key, (trust, now));
            }
            return None;
        }
        // A key always belongs to the same service, so no other service has its instances.
        let keys = self.services.entry(service.clone()).or_default();
        let is_changed = keys.get(key) != Some(&instances);
        let is_rewritten = before.is_none_or(|before| before.written != mod_revision);
        if is_changed {
            keys.insert(Arc::clone(key), instances);
            // A key of several instances may have lost some of them.
            if trust != Trust::Steady && before.is_some() {
                self.unconfirmed.insert(service.clone());
            }
        }
        if is_changed || is_rewritten && self.with_shared_addresses.contains(&service) {
            self.pending.add(&service, trust, now);
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
            self.pending.add(service, trust, now);
            if trust != Trust::Steady {
                self.unconfirmed.insert(service.clone());
            }
        }
    }

    fn remove(&mut self, key: &[u8], how: (Trust, Timestamp)) {
        let known = self.keys.remove(key);
        self.no_longer_skipped(key, known.as_ref(), how);
        if let Some(service) = known.and_then(|known| known.service) {
            self.unregister(&service, key, how);
        }
    }

    /// Removes the keys that were not in the last list, but not those below a prefix that could not
    /// be read.
    fn remove_unlisted(
        &mut self,
        also: impl Fn(&KnownKey) -> bool,
        unreadable: &[Unreadable],
        how: (Trust, Timestamp),
    ) -> usize {
        let hidden = |key: &[u8]| {
            let mut prefixes = unreadable.iter().filter_map(|it| self.prefixes.get(it.prefix));
            prefixes.any(|prefix| prefix.covers(key))
        };
        let unlisted: Vec<Key> = self
            .keys
            .iter()
            .filter(|(key, known)| known.list_number != self.list_number && also(known) && !hidden(key))
            .map(|(key, _)| Arc::clone(key))
            .collect();
        for key in &unlisted {
            self.remove(key, how);
        }
        unlisted.len()
    }
}

impl Pending {
    fn add(&mut self, service: &ServiceName, trust: Trust, now: Timestamp) {
        if let Some(changed) = self.changed.get_mut(service) {
            // If one of the changes has less trust, the whole reading has less trust.
            changed.trust = weaker(changed.trust, trust);
            changed.read_at = now;
            return;
        }
        let due = self.sent.get(service).map_or(now, |sent| now.max(*sent + MIN_INTERVAL));
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
        self.sent.insert(service.clone(), now.max(changed.due));
        Some((service, changed))
    }

    /// Forgets when services were sent, as far as they may be sent again now.
    fn forget(&mut self, now: Timestamp) {
        self.sent.retain(|_, sent| *sent + MIN_INTERVAL > now);
    }
}

fn weaker(a: Trust, b: Trust) -> Trust {
    match (a, b) {
        (Trust::AdditionsOnly, _) | (_, Trust::AdditionsOnly) => Trust::AdditionsOnly,
        (Trust::AfterLoss, _) | (_, Trust::AfterLoss) => Trust::AfterLoss,
        (Trust::AfterGap, _) | (_, Trust::AfterGap) => Trust::AfterGap,
        (Trust::Unconfirmed, _) | (_, Trust::Unconfirmed) => Trust::Unconfirmed,
        (Trust::Steady, Trust::Steady) => Trust::Steady,
    }
}

impl Skipped {
    /// The value itself is never logged: it may be a password.
    fn add(&mut self, registration: &SkippedRegistration, value_bytes: usize) {
        self.count += 1;
        let SkippedRegistration { id, detail, .. } = registration;
        self.first
            .get_or_insert_with(|| line(id.as_bytes(), &format_args!("{detail} ({value_bytes} bytes)")));
    }

    fn ignore(&mut self, key: &[u8], reason: &str) {
        self.ignored += 1;
        self.first_ignored.get_or_insert_with(|| line(key, &reason));
    }

    fn log(self) {
        if let Some(first) = self.first {
            tracing::warn!(source = %SOURCE, skipped = self.count, first, "values not valid, keeping what their keys registered before");
        }
        if let Some(first) = self.first_ignored {
            tracing::warn!(source = %SOURCE, ignored = self.ignored, first, "parts of values ignored, the instances count without them");
        }
    }
}

/// A key and a reason. The reason has no part of the value.
fn line(key: &[u8], reason: &dyn fmt::Display) -> String {
    let key: String = String::from_utf8_lossy(key).chars().take(200).collect();
    format!("{}: {reason}", key.escape_default())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::formats::Prefix;
    use super::super::wire::{Listed, Position};
    use super::*;

    /// Keys below `/s/`, and the updates they lead to, as `id=port` by service.
    struct Bench {
        keys: Keys,
        status: Arc<SourceStatus>,
        now: Timestamp,
    }

    fn bench() -> Bench {
        let status = Arc::new(SourceStatus::new(SOURCE, true, Box::new(|_| true)));
        let prefixes: Prefixes = [Prefix::new("/s/").unwrap()].into();
        Bench {
            keys: Keys::new(prefixes, Arc::clone(&status)),
            status,
            now: Timestamp::default(),
        }
    }

    /// A key `service/id` with a port as its value; port 0 is an invalid value.
    fn pair(prefix: &Prefix, key: &str, port: u16, mod_revision: i64) -> Listed {
        let key = format!("/s/{key}").into_bytes();
        let value = format!("10.0.0.1:{port}");
        Listed {
            read: prefix.read(&key, value.as_bytes()),
            key,
            mod_revision,
            value_bytes: value.len(),
        }
    }

    fn listing(revision: i64, pairs: &[(&str, u16, i64)]) -> Listing {
        let prefix = Prefix::new("/s/").unwrap();
        Listing {
            at: Position {
                revision,
                ..Position::default()
            },
            keys: pairs
                .iter()
                .map(|(key, port, revision)| pair(&prefix, key, *port, *revision))
                .collect(),
            ..Listing::default()
        }
    }

    fn put(key: &str, port: u16, mod_revision: i64) -> Event {
        Event {
            key: format!("/s/{key}").into_bytes(),
            mod_revision,
            kind: EventKind::Put {
                value: format!("10.0.0.1:{port}").into_bytes(),
                leased: false,
            },
        }
    }

    fn delete(key: &str, mod_revision: i64) -> Event {
        Event {
            key: format!("/s/{key}").into_bytes(),
            mod_revision,
            kind: EventKind::Delete,
        }
    }

    impl Bench {
        /// All updates that are due, each as one text. Time passes, so that the rate limit delays
        /// none.
        fn sent(&mut self) -> Vec<String> {
            self.now = self.now + MIN_INTERVAL;
            let mut sent = Vec::new();
            while let Some(update) = self.keys.next_update(self.now) {
                let trust = |trust| match trust {
                    Trust::Steady => "",
                    Trust::AfterGap => "?",
                    Trust::AfterLoss => "!",
                    Trust::Unconfirmed => "~",
                    Trust::AdditionsOnly => "+",
                };
                sent.push(match update {
                    Update::Service(reading) => {
                        let one = |it: &ServiceInstance| format!("{}={}", it.id(), it.port());
                        let all: Vec<String> = reading.instances.iter().map(one).collect();
                        format!("{}{} {}", reading.service, trust(reading.trust), all.join(","))
                    }
                    Update::Gone {
                        service, trust: how, ..
                    } => format!("{service}{} gone", trust(how)),
                    Update::Synced => "synced".to_owned(),
                });
            }
            sent.sort();
            sent
        }

        fn replace(&mut self, revision: i64, pairs: &[(&str, u16, i64)]) {
            self.keys.replace(listing(revision, pairs), Trust::AfterGap, self.now);
        }

        fn apply(&mut self, events: Vec<Event>) {
            self.keys.apply(events, self.now);
        }
    }

    #[test]
    fn everything_is_sent_and_then_synced() {
        let mut bench = bench();
        assert_eq!(bench.sent(), [""; 0]);
        bench.replace(9, &[("web/a", 1, 3), ("web/b", 2, 4), ("mail/m", 3, 5)]);
        let now = bench.now;
        let first: Vec<_> = std::iter::from_fn(|| bench.keys.next_update(now)).collect();
        assert_eq!(first.len(), 3);
        assert_eq!(first[2], Update::Synced, "last");
        bench.replace(10, &[("web/a", 1, 3), ("web/b", 2, 4), ("mail/m", 3, 5)]);
        assert_eq!(bench.sent(), [""; 0], "the same again is not sent");
        assert!(!bench.keys.needs_confirmation());
    }

    #[test]
    fn an_empty_list_is_synced_too() {
        let mut bench = bench();
        bench.replace(9, &[]);
        assert_eq!(bench.sent(), ["synced"]);
    }

    #[test]
    fn data_of_one_member_is_sent_but_does_not_complete_the_sync() {
        let mut bench = bench();
        let remembered = listing(9, &[("web/a", 1, 3)]);
        bench.keys.replace(remembered, Trust::AdditionsOnly, bench.now);
        assert_eq!(bench.sent(), ["web+ a=1"]);
        assert!(!bench.keys.is_listed());
        bench.replace(12, &[("web/b", 2, 11)]);
        assert_eq!(bench.sent(), ["synced", "web? b=2"]);
    }

    #[test]
    fn a_prefix_that_cannot_be_read_keeps_its_keys_and_delays_the_sync() {
        let status = Arc::new(SourceStatus::new(SOURCE, true, Box::new(|_| true)));
        let prefixes: Prefixes = [Prefix::new("/s/").unwrap(), Prefix::new("/t/").unwrap()].into();
        let mut bench = Bench {
            keys: Keys::new(prefixes, Arc::clone(&status)),
            status,
            now: Timestamp::default(),
        };
        let denied = || {
            vec![Unreadable {
                prefix: 1,
                detail: "list \"/t/\": permission denied".to_owned(),
            }]
        };
        let list = |revision, pairs: &[(&str, u16, i64)], unreadable| Listing {
            unreadable,
            ..listing(revision, pairs)
        };
        let below_t = |bench: &mut Bench, id: &str, revision| {
            bench.apply(vec![Event {
                key: format!("/t/db/{id}").into_bytes(),
                ..put("", 9, revision)
            }]);
        };
        let first = list(9, &[("web/a", 1, 3)], denied());
        bench.keys.replace(first, Trust::AfterGap, bench.now);
        assert_eq!(bench.sent(), ["web? a=1"], "not synced");
        bench.replace(10, &[("web/a", 1, 3)]);
        assert_eq!(bench.sent(), ["synced"]);

        below_t(&mut bench, "d", 11);
        assert_eq!(bench.sent(), ["db d=9"]);
        // Neither a list after a gap nor a periodic one takes away what it could not read.
        let gap = list(12, &[], denied());
        bench.keys.replace(gap, Trust::AfterGap, bench.now);
        assert_eq!(bench.sent(), ["web? gone"]);
        bench.keys.expect_list();
        assert_eq!(bench.keys.repair(list(13, &[], denied()), bench.now), 0);
        assert_eq!(bench.sent(), [""; 0]);
        assert_eq!(bench.keys.repair(list(14, &[], Vec::new()), bench.now), 1);
        assert_eq!(bench.sent(), ["db gone"]);
    }

    #[test]
    fn events_are_applied_in_order_and_sent_as_one_step() {
        let mut bench = bench();
        bench.replace(9, &[("web/a", 1, 3)]);
        bench.sent();
        bench.apply(vec![
            put("web/b", 2, 10),
            delete("web/a", 10),
            put("mail/m", 3, 10),
            put("web/b", 4, 11),
        ]);
        assert_eq!(bench.sent(), ["mail m=3", "web b=4"]);
        bench.apply(vec![delete("web/b", 12), delete("web/unknown", 12)]);
        assert_eq!(bench.sent(), ["web gone"]);
        bench.apply(vec![put("web/b", 4, 13)]);
        assert_eq!(bench.sent(), ["web b=4"]);
    }

    #[test]
    fn events_older_than_a_list_or_a_later_event_are_ignored() {
        let mut bench = bench();
        bench.replace(20, &[("web/a", 1, 15)]);
        bench.sent();
        // Deleted and put again before the list, which has the result.
        bench.apply(vec![put("web/z", 9, 12), delete("web/a", 14), put("web/a", 9, 15)]);
        assert_eq!(bench.sent(), [""; 0]);
        bench.apply(vec![put("web/a", 2, 22)]);
        bench.apply(vec![put("web/a", 3, 21)]);
        assert_eq!(bench.sent(), ["web a=2"]);
    }

    #[test]
    fn scenario_36_an_invalid_value_keeps_the_last_and_counts_once() {
        let mut bench = bench();
        let errors = |bench: &Bench| bench.status.errors().values().sum::<u64>();
        bench.replace(9, &[("web/a", 1, 3), ("web/bad", 0, 4)]);
        assert_eq!(
            (bench.sent().join(" "), errors(&bench)),
            ("synced web? a=1".to_owned(), 1)
        );
        bench.replace(9, &[("web/a", 1, 3), ("web/bad", 0, 4)]);
        assert_eq!(errors(&bench), 1, "the same invalid value again");
        bench.apply(vec![put("web/a", 0, 10)]);
        assert_eq!((bench.sent(), errors(&bench)), (vec![], 2));
        bench.apply(vec![put("web/a", 2, 11), put("web/bad", 3, 11)]);
        assert_eq!(bench.sent(), ["web a=2,bad=3"]);
        bench.apply(vec![put("web/a", 0, 12), delete("web/a", 13)]);
        assert_eq!(bench.sent(), ["web bad=3"]);
    }

    fn put_value(key: &str, value: &str, mod_revision: i64) -> Event {
        Event {
            key: format!("/s/{key}").into_bytes(),
            mod_revision,
            kind: EventKind::Put {
                value: value.as_bytes().to_vec(),
                leased: false,
            },
        }
    }

    fn invalid(bench: &Bench) -> u64 {
        let errors = bench.status.errors();
        errors.get("invalid_instance").copied().unwrap_or_default()
    }

    #[test]
    fn ignored_parts_of_a_value_are_counted_once_and_the_address_counts() {
        let mut bench = bench();
        bench.replace(9, &[]);
        bench.sent();
        let value = r#"{"host":"10.0.0.1","port":7,"weight":"","status":"decommissioned"}"#;
        bench.apply(vec![put_value("web/a", value, 10)]);
        assert_eq!((bench.sent(), invalid(&bench)), (vec!["web a=7".to_owned()], 2));
        // The same key, listed again.
        let prefix = Prefix::new("/s/").unwrap();
        let key = b"/s/web/a".to_vec();
        let read = prefix.read(&key, value.as_bytes());
        let mut again = listing(12, &[]);
        again.keys.push(Listed {
            key,
            mod_revision: 10,
            read,
            value_bytes: value.len(),
        });
        bench.keys.replace(again, Trust::AfterGap, bench.now);
        assert_eq!((bench.sent(), invalid(&bench)), (vec![], 2));
    }

    #[test]
    fn a_key_that_registers_nothing_any_more_leaves_its_service() {
        let nothing = [
            (r#"{"id":"a","name":"web","endpoints":[]}"#, 0),
            (r#"{"Op":1,"Addr":"10.0.0.1:1","Metadata":null}"#, 0),
            (r#"{"name":"web","nodes":[]}"#, 0),
            // As rpcx writes a folder: the last segment of the key.
            ("a", 0),
        ];
        for (value, counted) in nothing {
            let mut bench = bench();
            bench.replace(9, &[("web/a", 1, 3), ("web/b", 2, 4)]);
            bench.sent();
            bench.apply(vec![put_value("web/a", value, 10)]);
            assert_eq!(
                (bench.sent(), invalid(&bench)),
                (vec!["web b=2".to_owned()], counted),
                "{value}"
            );
            bench.apply(vec![delete("web/a", 11)]);
            assert_eq!(bench.sent(), [""; 0], "{value}");
        }
    }

    #[test]
    fn a_service_of_skipped_keys_alone_is_known_until_they_are_gone() {
        let mut bench = bench();
        let skipped = |bench: &Bench, service: &str| {
            let skipped = bench.status.skipped(&service.parse().unwrap());
            skipped.map_or(Vec::new(), |skipped| {
                let one = |one: &SkippedRegistration| format!("{} {}", one.id, one.reason);
                skipped.listed.iter().map(one).collect::<Vec<_>>()
            })
        };
        bench.replace(9, &[("db/x", 0, 3), ("db/y", 0, 4), ("web/a", 1, 5)]);
        assert_eq!(bench.sent(), ["db? ", "synced", "web? a=1"]);
        assert_eq!(skipped(&bench, "db"), ["/s/db/x no_port", "/s/db/y no_port"]);
        assert_eq!(bench.status.errors().get("no_port"), Some(&2));
        bench.keys.confirm(bench.now);
        assert_eq!(bench.sent(), [""; 0]);
        // One of two goes, and the service stays; the other becomes an instance.
        bench.apply(vec![delete("db/x", 10)]);
        assert_eq!(bench.sent(), [""; 0]);
        assert_eq!(skipped(&bench, "DB"), ["/s/db/y no_port"]);
        bench.apply(vec![put("db/y", 7, 11)]);
        assert_eq!(
            (bench.sent(), skipped(&bench, "db")),
            (vec!["db y=7".to_owned()], vec![])
        );
        // A key that has been an instance keeps it, and the value that is not valid is shown.
        bench.apply(vec![put("db/y", 0, 12)]);
        assert_eq!((bench.sent(), skipped(&bench, "db").len()), (vec![], 1));
        bench.apply(vec![delete("db/y", 13), put("mail/m", 0, 14)]);
        assert_eq!(bench.sent(), ["db gone", "mail "]);
        // A list without the key ends it as well.
        bench.replace(20, &[("web/a", 1, 5)]);
        assert_eq!(bench.sent(), ["mail? gone"]);
        assert!(skipped(&bench, "db").is_empty() && skipped(&bench, "mail").is_empty());
    }

    #[test]
    fn keys_missing_after_a_gap_are_sent_again_when_confirmed() {
        let mut bench = bench();
        bench.replace(9, &[("web/a", 1, 3), ("web/b", 2, 4), ("mail/m", 3, 5)]);
        bench.sent();
        bench.replace(4, &[("web/a", 1, 2), ("new/n", 5, 3)]);
        assert_eq!(bench.sent(), ["mail? gone", "new? n=5", "web? a=1"]);
        assert!(bench.keys.needs_confirmation());
        // Meanwhile one of the services changes: that is sent at once, and again after the
        // confirmation.
        bench.apply(vec![put("web/c", 6, 5)]);
        assert_eq!(bench.sent(), ["web a=1,c=6"]);
        bench.keys.confirm(bench.now);
        assert_eq!(bench.sent(), ["mail gone", "web a=1,c=6"]);
        assert!(!bench.keys.needs_confirmation());
    }

    #[test]
    fn instances_of_keys_with_a_lease_are_ephemeral() {
        let mut bench = bench();
        let prefix = Prefix::new("/s/").unwrap();
        let mut listed = listing(9, &[("web/a", 1, 3), ("web/b", 2, 4)]);
        let read = prefix.read(b"/s/web/b", b"10.0.0.1:2");
        listed.keys[1].read = read.map(|read| read.leased(true));
        bench.keys.replace(listed, Trust::AfterLoss, bench.now);
        let mut with_lease = put("web/c", 3, 10);
        if let EventKind::Put { leased, .. } = &mut with_lease.kind {
            *leased = true;
        }
        bench.apply(vec![with_lease]);
        let ephemeral = |bench: &mut Bench| {
            bench.now = bench.now + MIN_INTERVAL;
            let mut found = Vec::new();
            while let Some(update) = bench.keys.next_update(bench.now) {
                if let Update::Service(reading) = update {
                    assert_eq!(reading.service.as_str(), "web");
                    found = reading.instances.iter().map(ServiceInstance::is_ephemeral).collect();
                }
            }
            found
        };
        assert_eq!(ephemeral(&mut bench), [false, true, true]);
        bench.apply(vec![put("web/c", 3, 11)]);
        assert_eq!(ephemeral(&mut bench), [false, true, false], "put again without a lease");
    }

    #[test]
    fn the_weakest_trust_of_all_changes_is_sent() {
        let mut bench = bench();
        bench.replace(9, &[("web/a", 1, 3), ("web/b", 2, 4)]);
        bench.sent();
        bench.replace(20, &[("web/a", 1, 3)]);
        bench.apply(vec![put("web/c", 3, 21)]);
        assert_eq!(bench.sent(), ["web? a=1,c=3"]);
        bench
            .keys
            .replace(listing(5, &[("web/a", 1, 3)]), Trust::AfterLoss, bench.now);
        bench.apply(vec![put("web/d", 4, 22)]);
        assert_eq!(bench.sent(), ["web! a=1,d=4"]);
    }

    #[test]
    fn frequent_changes_are_sent_every_50_ms_and_after_a_pause_at_once() {
        let mut bench = bench();
        bench.replace(1, &[]);
        bench.sent();
        let start = bench.now;
        let mut times = Vec::new();
        for step in 0..200 {
            let now = start + Duration::from_millis(step);
            bench
                .keys
                .apply(vec![put("web/a", 1 + step as u16, 2 + step as i64)], now);
            while bench.keys.next_update(now).is_some() {
                times.push(step);
            }
        }
        assert_eq!(times, [0, 50, 100, 150]);
        assert_eq!(bench.keys.due(), Some(start + Duration::from_millis(200)));
        assert!(bench.keys.next_update(start + Duration::from_millis(200)).is_some());
        let later = start + Duration::from_secs(1);
        bench.keys.apply(vec![put("web/a", 9, 900)], later);
        assert!(bench.keys.next_update(later).is_some(), "at once");
    }

    #[test]
    fn a_second_list_repairs_what_the_watch_missed_and_no_more() {
        let mut bench = bench();
        bench.replace(
            10,
            &[("web/a", 1, 3), ("web/b", 2, 4), ("web/c", 3, 5), ("web/d", 4, 6)],
        );
        bench.sent();
        bench.keys.expect_list();
        // The list was read at revision 20: these events are later.
        bench.apply(vec![put("web/a", 11, 21), delete("web/b", 22), put("web/new", 5, 23)]);
        let read = listing(
            20,
            &[("web/a", 1, 3), ("web/b", 2, 4), ("web/d", 14, 15), ("web/e", 6, 16)],
        );
        assert_eq!(
            bench.keys.repair(read, bench.now),
            3,
            "c is gone, d has changed, e is new"
        );
        assert_eq!(bench.sent(), ["web a=11,d=14,e=6,new=5"]);
        bench.apply(vec![put("web/c", 3, 19)]);
        assert_eq!(bench.sent(), [""; 0], "late: the list was read after the deletion");
    }

    #[test]
    fn keys_of_one_address_are_sent_in_the_order_of_their_writes() {
        let mut bench = bench();
        bench.replace(9, &[("web/a", 1, 5), ("web/b", 1, 3)]);
        assert_eq!(bench.sent(), ["synced", "web? b=1,a=1"]);
        bench.apply(vec![put("web/b", 1, 10)]);
        assert_eq!(bench.sent(), ["web a=1,b=1"], "written again");
        bench.apply(vec![put("web/a", 0, 11)]);
        assert_eq!(bench.sent(), [""; 0], "a value that cannot be read is no write");
        bench.apply(vec![put("web/c", 2, 12)]);
        assert_eq!(bench.sent(), ["web a=1,b=1,c=2"]);
        let again = listing(15, &[("web/a", 1, 14), ("web/b", 1, 10), ("web/c", 2, 12)]);
        bench.keys.expect_list();
        bench.keys.repair(again, bench.now);
        assert_eq!(bench.sent(), ["web b=1,c=2,a=1"]);
        bench.apply(vec![delete("web/b", 16)]);
        assert_eq!(bench.sent(), ["web a=1,c=2"], "in no order");
        bench.apply(vec![put("web/c", 2, 17)]);
        assert_eq!(bench.sent(), [""; 0], "no address is shared any more");
    }

    #[test]
    fn events_of_an_unknown_type_change_nothing() {
        let mut bench = bench();
        bench.replace(9, &[("web/a", 1, 3)]);
        bench.sent();
        bench.apply(vec![Event {
            kind: EventKind::Unknown(7),
            ..delete("web/a", 10)
        }]);
        assert_eq!(bench.sent(), [""; 0]);
    }

    /// The changes in an etcd, one per revision.
    #[derive(Clone, Debug)]
    enum Change {
        Put(u8, u16),
        Delete(u8),
    }

    fn change() -> impl Strategy<Value = Change> {
        prop_oneof![
            3 => (0..6u8, 0..4u16).prop_map(|(key, port)| Change::Put(key, port)),
            2 => (0..6u8).prop_map(Change::Delete),
        ]
    }

    fn name(key: u8) -> String {
        format!("s{}/{key}", key % 3)
    }

    /// The keys at each revision, from 1: (port, revision of the last put).
    fn history(changes: &[Change]) -> Vec<BTreeMap<u8, (u16, i64)>> {
        let mut states = vec![BTreeMap::new(), BTreeMap::new()];
        for (index, change) in changes.iter().enumerate() {
            let mut state = states.last().unwrap().clone();
            let revision = index as i64 + 2;
            match change {
                Change::Put(key, port) => drop(state.insert(*key, (1 + port, revision))),
                Change::Delete(key) => drop(state.remove(key)),
            }
            states.push(state);
        }
        states
    }

    fn read_at(states: &[BTreeMap<u8, (u16, i64)>], revision: usize) -> Listing {
        let names: Vec<(String, u16, i64)> = states[revision]
            .iter()
            .map(|(key, (port, at))| (name(*key), *port, *at))
            .collect();
        let pairs: Vec<_> = names
            .iter()
            .map(|(name, port, at)| (name.as_str(), *port, *at))
            .collect();
        listing(revision as i64, &pairs)
    }

    proptest! {
        #[test]
        fn lists_and_events_in_any_interleaving_end_in_the_same_state(
            changes in prop::collection::vec(change(), 1..40),
            first in 0..40usize,
            second in 0..40usize,
            compared in 0..40usize,
            lost in prop::collection::vec(0..40usize, 0..3),
        ) {
            let states = history(&changes);
            let last = states.len() - 1;
            let (first, second) = (first.min(last).max(1), second.min(last).max(1));
            let (first, second) = (first.min(second), first.max(second));
            // The second list is read at one revision, and compared when the watch has come to the
            // same or a later revision.
            let compared = compared.min(last).max(second);
            let mut bench = bench();
            bench.keys.replace(read_at(&states, first), Trust::AfterGap, bench.now);
            for (index, change) in changes.iter().enumerate() {
                let revision = index + 2;
                if revision == second {
                    bench.keys.expect_list();
                }
                let (id, at) = (name(match change { Change::Put(key, _) | Change::Delete(key) => *key }), revision as i64);
                let event = match change {
                    Change::Put(_, port) => put(&id, 1 + port, at),
                    Change::Delete(_) => delete(&id, at),
                };
                // Events before the second list may get lost, and each may be delivered twice.
                if revision > second || !lost.contains(&index) {
                    bench.apply(vec![event.clone(), event]);
                }
                if revision == compared {
                    bench.keys.repair(read_at(&states, second), bench.now);
                }
            }
            if compared < 2 {
                bench.keys.repair(read_at(&states, second), bench.now);
            }
            let mut known = BTreeMap::new();
            for keys in bench.keys.services.values() {
                for instance in keys.values().flatten() {
                    known.insert(instance.id().to_string(), instance.port());
                }
            }
            let expected: BTreeMap<String, u16> =
                states[last].iter().map(|(key, (port, _))| (key.to_string(), *port)).collect();
            prop_assert_eq!(known, expected);
        }
    }
}
