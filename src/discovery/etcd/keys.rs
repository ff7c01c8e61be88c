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

use super::formats::{InvalidRegistration, Prefixes, Registration, SOURCE};
use super::wire::{Event, Listing, What};
use crate::balancer::{ServiceInstance, ServiceName, SourceStatus, Timestamp};
use crate::discovery::watcher::{Reading, Reason, Trust, Update};

/// A service that changes all the time is told this often. A large one is a large message.
const PACE: Duration = Duration::from_millis(50);

/// A key as etcd knows it, shared between the maps.
type Key = Arc<[u8]>;

/// Everything below the prefixes.
pub(super) struct Keys {
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

impl Keys {
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::formats::Prefix;
    use super::super::wire::{Listed, Position};
    use super::*;

    /// A view below `/s/`, and what it has told, as `id=port` by service.
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

    /// `service/id` and a port, which is its value; port 0 is garbage.
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
            what: What::Put(format!("10.0.0.1:{port}").into_bytes()),
        }
    }

    fn delete(key: &str, mod_revision: i64) -> Event {
        Event {
            key: format!("/s/{key}").into_bytes(),
            mod_revision,
            what: What::Delete,
        }
    }

    impl Bench {
        /// All that is due, each update as one word; time passes so that pacing holds nothing back.
        fn told(&mut self) -> Vec<String> {
            self.now = self.now + PACE;
            let mut told = Vec::new();
            while let Some(update) = self.keys.news(self.now) {
                let trust = |trust| match trust {
                    Trust::Steady => "",
                    Trust::AfterGap => "?",
                    Trust::AdditionsOnly => "+",
                };
                told.push(match update {
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
            told.sort();
            told
        }

        fn replace(&mut self, revision: i64, pairs: &[(&str, u16, i64)]) {
            self.keys.replace(listing(revision, pairs), Trust::AfterGap, self.now);
        }

        fn follow(&mut self, events: Vec<Event>) {
            self.keys.follow(events, self.now);
        }
    }

    #[test]
    fn everything_is_told_and_then_that_it_is() {
        let mut bench = bench();
        assert_eq!(bench.told(), [""; 0]);
        bench.replace(9, &[("web/a", 1, 3), ("web/b", 2, 4), ("mail/m", 3, 5)]);
        let now = bench.now;
        let first: Vec<_> = std::iter::from_fn(|| bench.keys.news(now)).collect();
        assert_eq!(first.len(), 3);
        assert_eq!(first[2], Update::Synced, "last");
        bench.replace(10, &[("web/a", 1, 3), ("web/b", 2, 4), ("mail/m", 3, 5)]);
        assert_eq!(bench.told(), [""; 0], "the same again is no news");
        assert!(!bench.keys.is_owed());
    }

    #[test]
    fn none_at_all_is_synced_too() {
        let mut bench = bench();
        bench.replace(9, &[]);
        assert_eq!(bench.told(), ["synced"]);
    }

    #[test]
    fn what_one_member_remembers_is_told_but_is_not_everything() {
        let mut bench = bench();
        let remembered = listing(9, &[("web/a", 1, 3)]);
        bench.keys.replace(remembered, Trust::AdditionsOnly, bench.now);
        assert_eq!(bench.told(), ["web+ a=1"]);
        assert!(!bench.keys.is_listed());
        bench.replace(12, &[("web/b", 2, 11)]);
        assert_eq!(bench.told(), ["synced", "web? b=2"]);
    }

    #[test]
    fn events_are_taken_in_order_and_told_as_one_step() {
        let mut bench = bench();
        bench.replace(9, &[("web/a", 1, 3)]);
        bench.told();
        bench.follow(vec![
            put("web/b", 2, 10),
            delete("web/a", 10),
            put("mail/m", 3, 10),
            put("web/b", 4, 11),
        ]);
        assert_eq!(bench.told(), ["mail m=3", "web b=4"]);
        bench.follow(vec![delete("web/b", 12), delete("web/unknown", 12)]);
        assert_eq!(bench.told(), ["web gone"]);
        bench.follow(vec![put("web/b", 4, 13)]);
        assert_eq!(bench.told(), ["web b=4"]);
    }

    #[test]
    fn what_a_list_or_a_later_event_holds_already_is_ignored() {
        let mut bench = bench();
        bench.replace(20, &[("web/a", 1, 15)]);
        bench.told();
        // Deleted and put again before the list: the end of that is in the list.
        bench.follow(vec![put("web/z", 9, 12), delete("web/a", 14), put("web/a", 9, 15)]);
        assert_eq!(bench.told(), [""; 0]);
        bench.follow(vec![put("web/a", 2, 22)]);
        bench.follow(vec![put("web/a", 3, 21)]);
        assert_eq!(bench.told(), ["web a=2"]);
    }

    #[test]
    fn scenario_36_garbage_keeps_what_was_there_and_is_counted_once() {
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
            (bench.told().join(" "), errors(&bench)),
            ("synced web? a=1".to_owned(), 1)
        );
        bench.replace(9, &[("web/a", 1, 3), ("web/bad", 0, 4)]);
        assert_eq!(errors(&bench), 1, "the same garbage again");
        bench.follow(vec![put("web/a", 0, 10)]);
        assert_eq!((bench.told(), errors(&bench)), (vec![], 2));
        bench.follow(vec![put("web/a", 2, 11), put("web/bad", 3, 11)]);
        assert_eq!(bench.told(), ["web a=2,bad=3"]);
        bench.follow(vec![put("web/a", 0, 12), delete("web/a", 13)]);
        assert_eq!(bench.told(), ["web bad=3"]);
    }

    #[test]
    fn what_is_missing_after_a_gap_is_owed_a_second_look() {
        let mut bench = bench();
        bench.replace(9, &[("web/a", 1, 3), ("web/b", 2, 4), ("mail/m", 3, 5)]);
        bench.told();
        bench.replace(4, &[("web/a", 1, 2), ("new/n", 5, 3)]);
        assert_eq!(bench.told(), ["mail? gone", "new? n=5", "web? a=1"]);
        assert!(bench.keys.is_owed());
        // In the meantime one of them changes: that is told at once, and owed all the same.
        bench.follow(vec![put("web/c", 6, 5)]);
        assert_eq!(bench.told(), ["web a=1,c=6"]);
        bench.keys.confirm(bench.now);
        assert_eq!(bench.told(), ["mail gone", "web a=1,c=6"]);
        assert!(!bench.keys.is_owed());
    }

    #[test]
    fn a_doubtful_look_makes_the_whole_of_what_is_told_doubtful() {
        let mut bench = bench();
        bench.replace(9, &[("web/a", 1, 3), ("web/b", 2, 4)]);
        bench.told();
        bench.replace(20, &[("web/a", 1, 3)]);
        bench.follow(vec![put("web/c", 3, 21)]);
        assert_eq!(bench.told(), ["web? a=1,c=3"]);
    }

    #[test]
    fn a_service_that_changes_all_the_time_is_told_every_50_ms_and_at_once_after_a_pause() {
        let mut bench = bench();
        bench.replace(1, &[]);
        bench.told();
        let start = bench.now;
        let mut times = Vec::new();
        for step in 0..200 {
            let now = start + Duration::from_millis(step);
            bench
                .keys
                .follow(vec![put("web/a", 1 + step as u16, 2 + step as i64)], now);
            while bench.keys.news(now).is_some() {
                times.push(step);
            }
        }
        assert_eq!(times, [0, 50, 100, 150]);
        assert_eq!(bench.keys.due(), Some(start + Duration::from_millis(200)));
        assert!(bench.keys.news(start + Duration::from_millis(200)).is_some());
        let later = start + Duration::from_secs(1);
        bench.keys.follow(vec![put("web/a", 9, 900)], later);
        assert!(bench.keys.news(later).is_some(), "at once");
    }

    #[test]
    fn a_second_list_repairs_what_the_watch_left_out_and_nothing_else() {
        let mut bench = bench();
        bench.replace(
            10,
            &[("web/a", 1, 3), ("web/b", 2, 4), ("web/c", 3, 5), ("web/d", 4, 6)],
        );
        bench.told();
        bench.keys.expect_list();
        // After the list was read at 20: these are newer than it.
        bench.follow(vec![put("web/a", 11, 21), delete("web/b", 22), put("web/new", 5, 23)]);
        let read = listing(
            20,
            &[("web/a", 1, 3), ("web/b", 2, 4), ("web/d", 14, 15), ("web/e", 6, 16)],
        );
        assert_eq!(
            bench.keys.repair(read, bench.now),
            3,
            "c is gone, d has changed, e is new"
        );
        assert_eq!(bench.told(), ["web a=11,d=14,e=6,new=5"]);
        bench.follow(vec![put("web/c", 3, 19)]);
        assert_eq!(bench.told(), [""; 0], "late: the list knew of its end");
    }

    #[test]
    fn events_of_a_kind_that_is_not_known_change_nothing() {
        let mut bench = bench();
        bench.replace(9, &[("web/a", 1, 3)]);
        bench.told();
        bench.follow(vec![Event {
            what: What::Unknown(7),
            ..delete("web/a", 10)
        }]);
        assert_eq!(bench.told(), [""; 0]);
    }

    /// What an etcd goes through: one change a revision.
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

    /// The keys as they are at each revision, from 1: (port, revision of the last put).
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
            // The second list is read at one revision, and compared when the watch has come to another, later one.
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
                // Up to the second list events may get lost; any may be told twice.
                if revision > second || !lost.contains(&index) {
                    bench.follow(vec![event.clone(), event]);
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
