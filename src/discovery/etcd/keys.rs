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
//! later change of that key. If a value cannot be read, the key keeps what it registered before.
//!
//! Pure, but for log lines and the counters of the source's status. Knows no connection; `now` is
//! an argument.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::formats::{InvalidRegistration, Prefixes, Registration, SOURCE};
use super::wire::{Event, EventKind, Listing};
use crate::balancer::{ServiceInstance, ServiceName, SourceStatus, Timestamp};
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
    sync: SyncState,
}

/// What is known of one key.
struct KnownKey {
    mod_revision: i64,
    /// The service for which the key registers instances, if any.
    service: Option<ServiceName>,
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

/// Values that could not be read, for one log line.
#[derive(Default)]
struct Skipped {
    count: usize,
    first: Option<String>,
}

impl Keys {
    pub(super) fn new(prefixes: Prefixes, status: Arc<SourceStatus>) -> Self {
        Self {
            prefixes,
            status,
            keys: HashMap::new(),
            services: HashMap::new(),
            floor: 0,
            deleted: None,
            list_number: 0,
            pending: Pending::default(),
            unconfirmed: HashSet::new(),
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
        for listed in listing.keys {
            self.set(listed.key, listed.mod_revision, listed.read, (trust, now), &mut skipped);
        }
        self.remove_unlisted(|_| true, (trust, now));
        self.pending.forget(now);
        skipped.log();
        if trust != Trust::AdditionsOnly && !self.is_listed() {
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
                listed.read,
                (Trust::Steady, now),
                &mut skipped,
            );
        }
        repaired += self.remove_unlisted(|known| known.mod_revision <= revision, (Trust::Steady, now));
        self.floor = self.floor.max(revision);
        self.pending.forget(now);
        skipped.log();
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
                        let read = prefix.read(&event.key, &value).map(|read| read.leased(leased));
                        self.set(event.key, at, read, (Trust::Steady, now), &mut skipped);
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

    /// When the next update is due, if nothing happens before.
    pub(super) fn due(&self) -> Option<Timestamp> {
        self.pending.order.first().map(|(due, _)| *due)
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
                // The same invalid value, listed again, is not counted again.
                if before.as_ref().is_none_or(|before| before.mod_revision != mod_revision) {
                    self.status.count_error(Reason::InvalidInstance.as_str());
                    skipped.add(&key, &error);
                }
                before.and_then(|before| before.service)
            }
        };
        let list_number = self.list_number;
        self.keys.insert(
            key,
            KnownKey {
                mod_revision,
                service,
                list_number,
            },
        );
    }

    /// Stores what a key registers now, and returns the service if the key registers any instance.
    fn register(
        &mut self,
        key: &Key,
        before: Option<&KnownKey>,
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
        // A key always belongs to the same service, so no other service has its instances.
        let keys = self.services.entry(service.clone()).or_default();
        if keys.get(key) != Some(&instances) {
            keys.insert(Arc::clone(key), instances);
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
        if let Some(known) = self.keys.remove(key)
            && let Some(service) = &known.service
        {
            self.unregister(service, key, how);
        }
    }

    fn remove_unlisted(&mut self, also: impl Fn(&KnownKey) -> bool, how: (Trust, Timestamp)) -> usize {
        let unlisted: Vec<Key> = self
            .keys
            .iter()
            .filter(|(_, known)| known.list_number != self.list_number && also(known))
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
    fn add(&mut self, key: &[u8], error: &InvalidRegistration) {
        self.count += 1;
        if self.first.is_none() {
            let key: String = String::from_utf8_lossy(key).chars().take(200).collect();
            self.first = Some(format!("{}: {error}", key.escape_default()));
        }
    }

    fn log(self) {
        if let Some(first) = self.first {
            tracing::warn!(source = %SOURCE, skipped = self.count, first, "values not valid, keeping what their keys registered before");
        }
    }
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
        let read = prefix.read(&key, format!("10.0.0.1:{port}").as_bytes());
        Listed {
            key,
            mod_revision,
            read,
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
        let errors = |bench: &Bench| {
            bench
                .status
                .errors()
                .get("invalid_instance")
                .copied()
                .unwrap_or_default()
        };
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
