//! From updates of watchers to views of pools.
//!
//! ```text
//! Update ─► joined, Guard (of its source) ─► Merge ─► Coalesce ─► Directory::apply
//! ```
//!
//! A reconciler has one owner, the agent, which feeds it: updates in, views out. Knows no task,
//! socket or registry; `now` is an argument.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::coalesce::Coalesce;
use super::guard::{Decision, Guard, HoldEnd, HoldRules, Trial};
use super::merge::Merge;
use super::registrations::joined;
use super::watcher::Update;
use crate::balancer::{Address, Directory, ServiceName, Source, SourceStatus, Timestamp};

/// Called with the time from reading an answer to publishing the view that it led to.
pub type Published = Box<dyn Fn(Duration) + Send + Sync>;

/// Keeps the directory in the state that the sources describe.
pub struct Reconciler {
    directory: Arc<Directory>,
    merge: Merge,
    /// By priority.
    sources: Vec<SourceState>,
    coalesce: Coalesce,
    published: Published,
}

/// What is kept for one source.
struct SourceState {
    status: Arc<SourceStatus>,
    guard: Guard,
}

impl Reconciler {
    /// Knows no instances yet. `statuses` are in order of priority.
    #[must_use]
    pub fn new(directory: Arc<Directory>, statuses: &[Arc<SourceStatus>], published: Published) -> Self {
        let sources: Vec<SourceState> = statuses.iter().map(SourceState::new).collect();
        let merge = Merge::new(sources.iter().map(|state| state.status.source()).collect());
        Self {
            directory,
            merge,
            sources,
            coalesce: Coalesce::default(),
            published,
        }
    }

    /// Takes an update of the watcher with this record, and publishes what can be published now.
    /// Updates of a watcher that was replaced or dropped meanwhile are ignored.
    pub fn receive(&mut self, status: &Arc<SourceStatus>, mut update: Update, now: Timestamp) {
        let read_at = match &mut update {
            Update::Service(reading) => {
                reading.instances = joined(std::mem::take(&mut reading.instances));
                reading.read_at
            }
            Update::Gone { read_at, .. } => *read_at,
            Update::Synced => now,
        };
        let Some(state) = self.sources.iter_mut().find(|state| Arc::ptr_eq(&state.status, status)) else {
            return;
        };
        state.guard.notice_absence(!status.is_up(), now);
        let decision = state.guard.observe(update);
        state.update_held();
        // A source that sends an update is not away: its statuses count from this update on, not
        // only from the next call of `notice_absence`.
        for service in self.merge.set_stale(status.source(), !status.is_up()) {
            self.changed(&service, read_at, now);
        }
        if let Some(decision) = decision {
            self.decide(status.source(), decision, read_at, now);
        }
    }

    /// Does what is due at `now`, and returns when to call again.
    pub fn advance(&mut self, now: Timestamp) -> Option<Timestamp> {
        let mut next = None;
        for index in 0..self.sources.len() {
            let Some(state) = self.sources.get_mut(index) else {
                break;
            };
            let source = state.status.source();
            let (decisions, due) = state.guard.advance(now);
            state.update_held();
            next = due.into_iter().chain(next).min();
            for decision in decisions {
                self.decide(source, decision, now, now);
            }
        }
        for (service, read_at) in self.coalesce.due(now) {
            self.publish(&service, read_at, now);
        }
        self.coalesce.next().into_iter().chain(next).min()
    }

    /// Notices which sources are away and which are back. That decides whose statuses count.
    pub fn notice_absence(&mut self, now: Timestamp) {
        let mut changed = Vec::new();
        for state in &mut self.sources {
            state.guard.notice_absence(!state.status.is_up(), now);
            changed.extend(self.merge.set_stale(state.status.source(), !state.status.is_up()));
        }
        for service in changed {
            self.changed(&service, now, now);
        }
    }

    /// The held instances of all sources. The agent tries whether they still accept connections.
    #[must_use]
    pub fn held(&self) -> Vec<(Source, ServiceName, Address)> {
        let of = |state: &SourceState| {
            let source = state.status.source();
            let held = state.guard.held_addresses();
            held.map(|(service, address)| (source, service.clone(), address.clone()))
                .collect::<Vec<_>>()
        };
        self.sources.iter().flat_map(of).collect()
    }

    /// How many removals were held so far, in all sources. Only grows while the sources stay.
    #[must_use]
    pub fn removals_held(&self) -> u64 {
        self.sources.iter().map(|state| state.status.removals_held()).sum()
    }

    /// Takes the outcome of a connection to a held instance. An instance that refuses connections
    /// is removed.
    pub fn tried(&mut self, source: Source, service: &ServiceName, address: &Address, trial: Trial, now: Timestamp) {
        let Some(state) = self.state_of(source) else {
            return;
        };
        let decision = state.guard.tried(service, address, trial, now);
        state.update_held();
        if let Some(decision) = decision {
            match trial {
                Trial::Unanswered => {
                    tracing::info!(%source, %service, %address, "held instance does not answer, removed");
                }
                _ => tracing::info!(%source, %service, %address, "held instance refuses connections, removed"),
            }
            self.decide(source, decision, now, now);
        }
    }

    /// Lets go of every instance that is held for this source, because an operator accepts what the
    /// registry lists. Returns how many there were; `None` for an unknown source.
    pub fn accept(&mut self, source: Source, now: Timestamp) -> Option<usize> {
        let state = self.state_of(source)?;
        let held = state.guard.held();
        let decisions = state.guard.accept();
        state.update_held();
        for decision in decisions {
            self.decide(source, decision, now, now);
        }
        // An operator expects it to be in force.
        self.flush(now);
        Some(held)
    }

    /// Sets which removals of a source are held, and for how long. That counts for what is held
    /// already, too.
    pub fn set_hold_rules(&mut self, source: Source, rules: HoldRules) {
        if let Some(state) = self.state_of(source) {
            state.guard.set_rules(rules);
        }
    }

    /// Sets another list of sources, in order of priority. A source with the same record goes on
    /// as before. A source with a new record keeps its instances until its new watcher has sent
    /// everything, and its held instances as long as they are held. A source that is not in the
    /// list loses its instances.
    pub fn set_sources(&mut self, statuses: &[Arc<SourceStatus>], now: Timestamp) {
        let mut before: BTreeMap<Source, SourceState> = self
            .sources
            .drain(..)
            .map(|state| (state.status.source(), state))
            .collect();
        for status in statuses {
            let kept = match before.remove(&status.source()) {
                Some(state) if Arc::ptr_eq(&state.status, status) => state,
                Some(mut state) => {
                    state.guard.expect_new_watcher();
                    state.status = Arc::clone(status);
                    count_every_reason(status);
                    state.update_held();
                    state
                }
                None => SourceState::new(status),
            };
            self.sources.push(kept);
        }
        let dropped: Vec<ServiceName> = before
            .keys()
            .flat_map(|source| self.merge.remove_source(*source))
            .collect();
        let reordered = self
            .merge
            .set_priority(self.sources.iter().map(|state| state.status.source()).collect());
        for service in dropped.iter().chain(&reordered) {
            self.changed(service, now, now);
        }
    }

    fn decide(&mut self, source: Source, decision: Decision, read_at: Timestamp, now: Timestamp) {
        match decision {
            Decision::Set { service, instances } => {
                self.merge.set(source, &service, instances);
                self.changed(&service, read_at, now);
            }
            Decision::Remove { service } => {
                self.merge.remove(source, &service);
                self.changed(&service, read_at, now);
            }
            Decision::Synced => self.synced(source, now),
        }
    }

    fn state_of(&mut self, source: Source) -> Option<&mut SourceState> {
        self.sources.iter_mut().find(|state| state.status.source() == source)
    }

    /// Marks the source as synced once all earlier updates can be picked.
    fn synced(&mut self, source: Source, now: Timestamp) {
        let Some(state) = self.state_of(source) else {
            return;
        };
        let status = Arc::clone(&state.status);
        for decision in state.guard.forget_outdated() {
            self.decide(source, decision, now, now);
        }
        self.flush(now);
        status.mark_synced();
        tracing::info!(%source, services = self.merge.services().count(), "synced");
    }

    /// Publishes every change that waits.
    fn flush(&mut self, now: Timestamp) {
        for (service, read_at) in self.coalesce.flush() {
            self.publish(&service, read_at, now);
        }
    }

    fn changed(&mut self, service: &ServiceName, read_at: Timestamp, now: Timestamp) {
        if self.coalesce.changed(service, read_at, now) {
            self.publish(service, read_at, now);
        }
    }

    fn publish(&self, service: &ServiceName, read_at: Timestamp, now: Timestamp) {
        // A name that a source lists is known, even if none of its registrations is an instance.
        self.directory.set_listed(service, self.merge.is_listed(service));
        let changes = self.directory.apply(service, self.merge.desired(service));
        if changes.is_empty() {
            return;
        }
        (self.published)(now.since(read_at));
        let (added, updated, removed) = (changes.added.len(), changes.updated.len(), changes.removed.len());
        tracing::info!(%service, added, updated, removed, "pool changed");
    }
}

impl std::fmt::Debug for Reconciler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reconciler")
            .field("merge", &self.merge)
            .finish_non_exhaustive()
    }
}

impl SourceState {
    fn new(status: &Arc<SourceStatus>) -> Self {
        count_every_reason(status);
        Self {
            status: Arc::clone(status),
            guard: Guard::default(),
        }
    }

    /// Updates the metrics, and logs when the first hold begins and when the last hold ends.
    fn update_held(&mut self) {
        let (before, held) = (self.status.held_removals(), self.guard.held() as u64);
        let source = self.status.source();
        match (before, held) {
            (0, 1..) => tracing::warn!(%source, held, "removals held: the registry may have lost its data"),
            (1.., 0) => tracing::info!(%source, "no removals held any more"),
            _ => {}
        }
        self.status.set_held_removals(held);
        for end in self.guard.take_ended() {
            self.status.count_holds_ended(end.as_str(), 1);
        }
    }
}

/// Starts the count of each reason at zero.
fn count_every_reason(status: &SourceStatus) {
    for end in HoldEnd::ALL {
        status.count_holds_ended(end.as_str(), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balancer::{Environment, Manual, Order, RegistryStatus, ServiceConfigs, ServiceInstance, Sources};
    use crate::discovery::watcher::{Reading, Trust};

    const CONSUL: Source = Source::new("consul");
    const FILE: Source = Source::new("file");

    struct Setting {
        directory: Arc<Directory>,
        statuses: Vec<Arc<SourceStatus>>,
        reconciler: Reconciler,
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp::default() + Duration::from_secs(seconds)
    }

    fn status(source: Source) -> Arc<SourceStatus> {
        Arc::new(SourceStatus::new(source, true, Box::new(|_| true)))
    }

    fn setting() -> Setting {
        let statuses = vec![status(CONSUL), status(FILE)];
        let tools = Environment {
            clock: Arc::new(Manual::default()),
            ..Environment::default()
        };
        let directory = Arc::new(Directory::new(
            ServiceConfigs::default(),
            Sources::new(statuses.clone()),
            tools,
        ));
        let reconciler = Reconciler::new(Arc::clone(&directory), &statuses, Box::new(|_| {}));
        Setting {
            directory,
            statuses,
            reconciler,
        }
    }

    fn reading(service: &str, addresses: &[&str], read_at: Timestamp, trust: Trust) -> Update {
        let instance = |address: &&str| ServiceInstance::at(address.parse().unwrap(), address.parse().unwrap());
        let instances = addresses.iter().map(instance).collect();
        Update::Service(Reading {
            service: service.parse().unwrap(),
            instances,
            read_at,
            trust,
        })
    }

    impl Setting {
        fn receive(&mut self, watcher: usize, update: Update, now: Timestamp) {
            self.reconciler.receive(&self.statuses[watcher].clone(), update, now);
        }

        fn web(&self) -> String {
            let Some(balancer) = self.directory.get("web") else {
                return "unknown".to_owned();
            };
            balancer
                .instances()
                .iter()
                .map(|(it, _)| it.id().to_string())
                .collect::<Vec<_>>()
                .join(" ")
        }
    }

    #[test]
    fn a_source_is_synced_after_all_it_sent_can_be_picked() {
        let mut setting = setting();
        setting.receive(0, reading("web", &["a:1", "b:1"], at(0), Trust::Steady), at(0));
        assert_eq!(setting.web(), "a:1 b:1");
        // This change waits, because it is within the window of the first change ...
        setting.receive(0, reading("web", &["a:1"], at(0), Trust::Steady), at(0));
        assert_eq!(setting.web(), "a:1 b:1");
        // ... but it is published before the source counts as synced.
        setting.receive(0, Update::Synced, at(0));
        assert_eq!(setting.web(), "a:1");
        assert!(setting.statuses[0].is_synced() && !setting.statuses[1].is_synced());
    }

    #[test]
    fn a_large_drop_is_held_shown_and_released_by_a_refused_connection() {
        let mut setting = setting();
        setting.receive(0, reading("web", &["a:1", "b:1"], at(0), Trust::Steady), at(0));
        setting.receive(0, reading("web", &[], at(10), Trust::AfterGap), at(10));
        setting.reconciler.advance(at(11));
        assert_eq!(
            (setting.web(), setting.statuses[0].held_removals()),
            ("a:1 b:1".to_owned(), 2)
        );
        let (source, service, address) = setting.reconciler.held().remove(0);
        setting
            .reconciler
            .tried(source, &service, &address, Trial::Refused, at(12));
        setting.reconciler.advance(at(13));
        assert_eq!(
            (setting.web(), setting.statuses[0].held_removals()),
            ("b:1".to_owned(), 1)
        );
        setting.reconciler.advance(at(41));
        setting.reconciler.advance(at(42));
        assert_eq!(
            (setting.web(), setting.statuses[0].held_removals()),
            (String::new(), 0),
            "30 s at most"
        );
    }

    #[test]
    fn the_status_of_a_source_counts_from_its_first_update_on() {
        let mut setting = setting();
        let update = |status| {
            let instance = ServiceInstance::new("a", "a", 1).unwrap().with_status(status);
            let (service, trust) = ("web".parse().unwrap(), Trust::Steady);
            let instances = vec![instance];
            Update::Service(Reading {
                service,
                instances,
                read_at: at(0),
                trust,
            })
        };
        setting.statuses[1].heard(at(0));
        setting.reconciler.notice_absence(at(0));
        setting.receive(1, update(RegistryStatus::Passing), at(0));
        setting.statuses[0].heard(at(1));
        setting.receive(0, update(RegistryStatus::Critical), at(1));
        let known = setting.directory.get("web").unwrap().instances();
        assert_eq!(
            known[0].0.registry_status(),
            RegistryStatus::Critical,
            "consul is first by priority"
        );
    }

    #[test]
    fn a_replaced_watcher_keeps_known_instances_until_it_has_synced() {
        let mut setting = setting();
        setting.receive(0, reading("web", &["a:1"], at(0), Trust::Steady), at(0));
        setting.receive(0, reading("mail", &["m:1"], at(0), Trust::Steady), at(0));
        let statuses = [status(CONSUL), setting.statuses[1].clone()];
        setting.reconciler.set_sources(&statuses, at(10));
        let replaced = std::mem::replace(&mut setting.statuses, statuses.to_vec());
        let late = reading("late", &["l:1"], at(10), Trust::Steady);
        setting.reconciler.receive(&replaced[0], late, at(10));
        setting.reconciler.receive(&replaced[0], Update::Synced, at(10));
        assert!(setting.directory.get("late").is_none(), "an update of the old watcher");
        assert_eq!(setting.web(), "a:1");
        setting.receive(0, reading("mail", &["m:2"], at(20), Trust::Steady), at(20));
        assert_eq!(setting.web(), "a:1");
        setting.receive(0, Update::Synced, at(21));
        assert_eq!(setting.web(), "");
        assert_eq!(setting.directory.get("mail").unwrap().instances().len(), 1);
        assert!(statuses[0].is_synced() && !replaced[0].is_synced());
    }

    #[test]
    fn an_override_follows_an_id_that_changes_with_the_configuration() {
        const ETCD: Source = Source::new("etcd");
        let mut setting = setting();
        let instance = |host: &str, source| {
            let instance = ServiceInstance::new("a", host, 1).unwrap().with_source(source);
            Update::Service(Reading {
                service: "web".parse().unwrap(),
                instances: vec![instance],
                read_at: at(0),
                trust: Trust::Steady,
            })
        };
        setting.receive(1, instance("h", FILE), at(0));
        let web = setting.directory.get("web").unwrap();
        web.drain(&"a".parse().unwrap(), Order::by("ops")).unwrap();
        // etcd is configured before the file, and lists the same id.
        setting.statuses[0] = status(ETCD);
        setting.reconciler.set_sources(&setting.statuses, at(10));
        setting.receive(0, instance("i", ETCD), at(20));
        assert_eq!(setting.web(), "a a~file");
        let drained = |id: &str| web.overrides_of(&id.parse().unwrap()).drain.is_some();
        assert!(drained("a~file") && !drained("a"));
        setting.reconciler.set_sources(&setting.statuses[1..], at(30));
        assert_eq!(setting.web(), "a");
        assert!(drained("a"));
    }

    #[test]
    fn an_operator_accepts_what_one_source_lists() {
        let mut setting = setting();
        let rules = HoldRules {
            hold: Duration::from_secs(600),
            vanished: true,
        };
        setting.reconciler.set_hold_rules(CONSUL, rules);
        setting.receive(0, reading("web", &["a:1", "b:1"], at(0), Trust::Steady), at(0));
        setting.receive(0, reading("web", &[], at(10), Trust::AfterLoss), at(10));
        setting.receive(0, reading("web", &[], at(15), Trust::Steady), at(15));
        setting.reconciler.advance(at(100));
        assert_eq!(
            (setting.web(), setting.statuses[0].held_removals()),
            ("a:1 b:1".to_owned(), 2)
        );
        assert_eq!(setting.reconciler.accept(FILE, at(100)), Some(0));
        assert_eq!(setting.reconciler.accept(Source::new("etcd"), at(100)), None);
        assert_eq!(setting.web(), "a:1 b:1");
        assert_eq!(setting.reconciler.accept(CONSUL, at(100)), Some(2));
        assert_eq!(
            (setting.web(), setting.statuses[0].held_removals()),
            (String::new(), 0),
            "at once"
        );
        assert_eq!(setting.statuses[0].holds_ended()["accepted"], 2);
        assert_eq!(setting.statuses[0].holds_ended()["refused"], 0);
    }

    #[test]
    fn a_hold_outlives_a_replaced_watcher_and_stands_still_without_its_source() {
        let mut setting = setting();
        let rules = HoldRules {
            hold: Duration::from_secs(600),
            vanished: true,
        };
        setting.reconciler.set_hold_rules(CONSUL, rules);
        setting.statuses[0].heard(at(0));
        setting.receive(0, reading("web", &["a:1", "b:1"], at(0), Trust::Steady), at(0));
        setting.receive(0, reading("web", &["a:1"], at(10), Trust::AfterLoss), at(10));
        let statuses = [status(CONSUL), setting.statuses[1].clone()];
        setting.reconciler.set_sources(&statuses, at(20));
        setting.statuses = statuses.to_vec();
        assert_eq!(setting.statuses[0].held_removals(), 1);
        setting.statuses[0].heard(at(20));
        setting.receive(0, Update::Synced, at(20));
        setting.reconciler.advance(at(30));
        assert_eq!(setting.web(), "b:1", "the new watcher lists nothing");
        setting.statuses[0].lost(at(30), &"refused");
        setting.reconciler.notice_absence(at(30));
        setting.reconciler.advance(at(5_000));
        assert_eq!(setting.web(), "b:1", "the time without the source does not count");
        setting.statuses[0].heard(at(5_030));
        setting.reconciler.notice_absence(at(5_030));
        setting.reconciler.advance(at(5_609));
        assert_eq!(setting.web(), "b:1");
        setting.reconciler.advance(at(5_610));
        setting.reconciler.advance(at(5_611));
        assert_eq!(setting.web(), "");
    }

    #[test]
    fn a_source_that_is_dropped_loses_its_instances() {
        let mut setting = setting();
        setting.receive(0, reading("web", &["a:1"], at(0), Trust::Steady), at(0));
        setting.receive(1, reading("web", &["a:1", "b:1"], at(10), Trust::Steady), at(10));
        setting.reconciler.set_sources(&[setting.statuses[0].clone()], at(20));
        assert_eq!(setting.web(), "a:1");
        setting.receive(1, reading("web", &["c:1"], at(30), Trust::Steady), at(30));
        assert_eq!(setting.web(), "a:1", "updates of a dropped source are ignored");
    }
}
