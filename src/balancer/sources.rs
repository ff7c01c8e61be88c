//! Status of each source of instances: whether the source answers, whether the source has synced
//! once, and how old its last answer is.
//!
//! The watcher of a source writes the status. The error path of a pick (`unknown` or `not
//! synced`?), `/readyz` and the metrics read the status. A source that is away changes nothing but
//! its own status.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::clock::Timestamp;
use super::instance::{ServiceName, Source};
use super::skipped::{Skipped, SkippedByService};

/// Returns whether a source could list a service of this name (by its globs, prefixes and
/// exclusions).
pub type Scope = Box<dyn Fn(&str) -> bool + Send + Sync>;

/// The status of one source. All methods take `&self`; counters only grow.
pub struct SourceStatus {
    source: Source,
    required: bool,
    scope: Scope,
    up: AtomicBool,
    synced: AtomicBool,
    /// Time in nanoseconds of the last good answer; `u64::MAX` before the first.
    answered_at: AtomicU64,
    /// Time in nanoseconds since the clock's start at which the source went away; `u64::MAX` while
    /// the source is up.
    away_since: AtomicU64,
    updates: AtomicU64,
    held_removals: AtomicU64,
    removals_held: AtomicU64,
    holds_ended: Mutex<BTreeMap<&'static str, u64>>,
    drift_repaired: AtomicU64,
    relists: Mutex<BTreeMap<&'static str, u64>>,
    errors: Mutex<BTreeMap<&'static str, u64>>,
    last_error: Mutex<Option<String>>,
    skipped: SkippedByService,
    incomplete: Mutex<Option<String>>,
    failing: Mutex<BTreeMap<ServiceName, FailingService>>,
    limits: Mutex<SourceLimits>,
}

/// A service for which its source gives no usable answer, while the source answers otherwise.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct FailingService {
    /// The kind of the last failure: a fixed word, as in the metrics.
    pub reason: &'static str,
    /// The last failure, in one line.
    pub detail: String,
    /// The first failure in a row.
    pub since: Timestamp,
}

/// What a watcher does at most at present, because its source does not bear more.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct SourceLimits {
    /// Long polls at once; `None` for a source without long polls.
    pub long_polls: Option<usize>,
    /// How long a long poll waits, if longer ones are cut on their way.
    pub wait: Option<Duration>,
    /// Requests a second, if the source refused more.
    pub requests_per_second: Option<f64>,
}

impl SourceLimits {
    /// The limits of a source with long polls.
    #[must_use]
    pub fn new(long_polls: usize, wait: Option<Duration>, requests_per_second: Option<f64>) -> Self {
        Self {
            long_polls: Some(long_polls),
            wait,
            requests_per_second,
        }
    }
}

impl SourceStatus {
    /// The status of a source that has not answered yet. The agent is ready when all `required`
    /// sources have synced.
    #[must_use]
    pub fn new(source: Source, required: bool, scope: Scope) -> Self {
        Self {
            source,
            required,
            scope,
            up: AtomicBool::new(false),
            synced: AtomicBool::new(false),
            answered_at: AtomicU64::new(u64::MAX),
            away_since: AtomicU64::new(0),
            updates: AtomicU64::new(0),
            held_removals: AtomicU64::new(0),
            removals_held: AtomicU64::new(0),
            holds_ended: Mutex::default(),
            drift_repaired: AtomicU64::new(0),
            relists: Mutex::default(),
            errors: Mutex::default(),
            last_error: Mutex::default(),
            skipped: SkippedByService::default(),
            incomplete: Mutex::default(),
            failing: Mutex::default(),
            limits: Mutex::default(),
        }
    }

    /// The source.
    #[must_use]
    pub fn source(&self) -> Source {
        self.source
    }

    /// Whether the agent is ready only after this source has synced.
    #[must_use]
    pub fn is_required(&self) -> bool {
        self.required
    }

    /// Whether the source could list a service of this name.
    #[must_use]
    pub fn could_list(&self, service: &str) -> bool {
        (self.scope)(service)
    }

    /// Whether the last answer of the source was good.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    /// Whether the source has synced: all of its instances were received at least once.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.synced.load(Ordering::Acquire)
    }

    /// Time since the last answer of the source; `None` before the first.
    #[must_use]
    pub fn age(&self, now: Timestamp) -> Option<Duration> {
        match self.answered_at.load(Ordering::Relaxed) {
            u64::MAX => None,
            nanos => Some(now.since(Timestamp::from_nanos(nanos))),
        }
    }

    /// How long the source has been away; `None` while the source is up.
    #[must_use]
    pub fn away(&self, now: Timestamp) -> Option<Duration> {
        match self.away_since.load(Ordering::Relaxed) {
            u64::MAX => None,
            nanos => Some(now.since(Timestamp::from_nanos(nanos))),
        }
    }

    /// Updates received from the source.
    #[must_use]
    pub fn updates(&self) -> u64 {
        self.updates.load(Ordering::Relaxed)
    }

    /// Removals that are held back at present.
    #[must_use]
    pub fn held_removals(&self) -> u64 {
        self.held_removals.load(Ordering::Relaxed)
    }

    /// Removals that were held back so far, past and present.
    #[must_use]
    pub fn removals_held(&self) -> u64 {
        self.removals_held.load(Ordering::Relaxed)
    }

    /// Held removals that are held no longer, by the reason for which their hold ended.
    #[must_use]
    pub fn holds_ended(&self) -> BTreeMap<&'static str, u64> {
        self.holds_ended.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Registrations that had changed without an update from the source, found by reading
    /// everything again.
    #[must_use]
    pub fn drift_repaired(&self) -> u64 {
        self.drift_repaired.load(Ordering::Relaxed)
    }

    /// Number of full lists, by reason; empty for a source that does not list and watch.
    #[must_use]
    pub fn relists(&self) -> BTreeMap<&'static str, u64> {
        self.relists.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Errors so far, by reason.
    #[must_use]
    pub fn errors(&self) -> BTreeMap<&'static str, u64> {
        self.errors.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The last error. While the source is up: the part of it that cannot be read, if any.
    #[must_use]
    pub fn last_error(&self) -> Option<String> {
        let error = self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone();
        error.or_else(|| self.incomplete.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Records which part of the source cannot be read although the source answers; `None` when the
    /// whole source can be read.
    pub fn set_incomplete(&self, error: Option<String>) {
        *self.incomplete.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }

    /// The services for which the source gives no usable answer at present. They keep their last
    /// instances.
    #[must_use]
    pub fn failing_services(&self) -> BTreeMap<ServiceName, FailingService> {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why the source gives no usable answer for a service, if so.
    #[must_use]
    pub fn failing_service(&self, service: &ServiceName) -> Option<FailingService> {
        let failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        failing.get(service).cloned()
    }

    /// What the watcher does at most at present.
    #[must_use]
    pub fn limits(&self) -> SourceLimits {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that the source gave no usable answer for one service.
    pub fn service_fails(&self, service: &ServiceName, reason: &'static str, detail: &str, now: Timestamp) {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        let since = failing.get(service).map_or(now, |earlier| earlier.since);
        let failure = FailingService {
            reason,
            detail: detail.to_owned(),
            since,
        };
        failing.insert(service.clone(), failure);
    }

    /// Records that the source answers for a service again, or no longer lists the service.
    pub fn service_answers(&self, service: &ServiceName) {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        failing.remove(service);
    }

    /// Forgets all failing services: the source as a whole does not answer.
    pub fn forget_failing_services(&self) {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Sets what the watcher does at most.
    pub fn set_limits(&self, limits: SourceLimits) {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner) = limits;
    }

    /// Records a good answer. Returns true if the source was away until now.
    pub fn heard(&self, now: Timestamp) -> bool {
        self.answered_at.store(now.as_nanos(), Ordering::Relaxed);
        let was_away = !self.up.swap(true, Ordering::Relaxed);
        if was_away {
            self.away_since.store(u64::MAX, Ordering::Relaxed);
            *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        was_away
    }

    /// Records that the source does not answer, or does not know its own state. Returns true if the
    /// source was up until now.
    pub fn lost(&self, now: Timestamp, error: &dyn fmt::Display) -> bool {
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
        let was_up = self.up.swap(false, Ordering::Relaxed);
        if was_up {
            self.away_since.store(now.as_nanos(), Ordering::Relaxed);
        }
        was_up
    }

    /// Records an error. The reason is a metric label: a fixed word, never text from outside.
    pub fn count_error(&self, reason: &'static str) {
        *self
            .errors
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(reason)
            .or_default() += 1;
    }

    /// Records an update.
    pub fn count_update(&self) {
        self.updates.fetch_add(1, Ordering::Relaxed);
    }

    /// Records a full list. The reason is a metric label: a fixed word, never text from outside.
    pub fn count_relist(&self, reason: &'static str) {
        *self
            .relists
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(reason)
            .or_default() += 1;
    }

    /// Records held removals that are held no longer. The reason is a metric label: a fixed word,
    /// never text from outside.
    pub fn count_holds_ended(&self, reason: &'static str, count: u64) {
        *self
            .holds_ended
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(reason)
            .or_default() += count;
    }

    /// Records registrations that had changed without an update from the source.
    pub fn count_drift(&self, repaired: u64) {
        self.drift_repaired.fetch_add(repaired, Ordering::Relaxed);
    }

    /// Records which registrations of a service cannot be instances, in place of those recorded
    /// before.
    pub fn set_skipped(&self, service: &ServiceName, skipped: Skipped) {
        self.skipped.set(service, skipped);
    }

    /// The registrations of a service that cannot be instances; `None` if all can.
    #[must_use]
    pub fn skipped(&self, service: &ServiceName) -> Option<Arc<Skipped>> {
        self.skipped.of(service)
    }

    /// Records that the source has synced.
    pub fn mark_synced(&self) {
        self.synced.store(true, Ordering::Release);
    }

    /// Sets the number of removals that are held back. An increase adds to
    /// [`removals_held`](Self::removals_held).
    pub fn set_held_removals(&self, held: u64) {
        let before = self.held_removals.swap(held, Ordering::Relaxed);
        self.removals_held
            .fetch_add(held.saturating_sub(before), Ordering::Relaxed);
    }
}

impl fmt::Debug for SourceStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SourceStatus")
            .field("source", &self.source)
            .field("up", &self.is_up())
            .field("synced", &self.is_synced())
            .finish_non_exhaustive()
    }
}

/// The sources of an agent, in order of priority.
#[derive(Clone, Debug, Default)]
pub struct Sources(Vec<Arc<SourceStatus>>);

impl Sources {
    /// Sources in order of priority.
    #[must_use]
    pub fn new(sources: Vec<Arc<SourceStatus>>) -> Self {
        Self(sources)
    }

    /// The status of each source, in order of priority.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<SourceStatus>> {
        self.0.iter()
    }

    /// The status of one source.
    #[must_use]
    pub fn get(&self, source: Source) -> Option<&Arc<SourceStatus>> {
        self.0.iter().find(|status| status.source() == source)
    }

    /// A source that could list `service` and has not synced yet.
    #[must_use]
    pub fn waiting_for(&self, service: &str) -> Option<Source> {
        self.0
            .iter()
            .find(|status| !status.is_synced() && status.could_list(service))
            .map(|status| status.source())
    }

    /// Whether every required source has synced.
    #[must_use]
    pub fn required_synced(&self) -> bool {
        self.0.iter().all(|status| status.is_synced() || !status.is_required())
    }

    /// Whether any source has synced.
    #[must_use]
    pub fn any_synced(&self) -> bool {
        self.0.iter().any(|status| status.is_synced())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(name: &'static str, prefix: &'static str) -> Arc<SourceStatus> {
        Arc::new(SourceStatus::new(
            Source::new(name),
            true,
            Box::new(move |service| service.starts_with(prefix)),
        ))
    }

    #[test]
    fn a_source_is_away_from_start_or_loss_until_its_next_answer() {
        let status = status("consul", "");
        let at = |seconds| Timestamp::default() + Duration::from_secs(seconds);
        assert_eq!(
            (status.age(at(4)), status.away(at(4))),
            (None, Some(Duration::from_secs(4)))
        );
        assert!(status.heard(at(5)));
        assert!(!status.heard(at(6)));
        assert_eq!(
            (status.age(at(8)), status.away(at(8))),
            (Some(Duration::from_secs(2)), None)
        );
        assert!(status.lost(at(10), &"connection refused"));
        assert!(
            !status.lost(at(12), &"connection refused"),
            "a source that is away is lost only once"
        );
        assert_eq!(
            (status.age(at(20)), status.away(at(20))),
            (Some(Duration::from_secs(14)), Some(Duration::from_secs(10)))
        );
        assert_eq!(status.last_error().as_deref(), Some("connection refused"));
        assert!(status.heard(at(21)));
        assert_eq!((status.last_error(), status.is_up()), (None, true));
    }

    #[test]
    fn a_source_that_answers_may_be_incomplete() {
        let status = status("etcd", "");
        let now = Timestamp::default();
        status.heard(now);
        status.set_incomplete(Some("list \"/b/\": permission denied".to_owned()));
        status.heard(now);
        assert!(status.is_up());
        assert_eq!(status.last_error().as_deref(), Some("list \"/b/\": permission denied"));
        status.lost(now, &"connection refused");
        assert_eq!(status.last_error().as_deref(), Some("connection refused"));
        status.heard(now);
        status.set_incomplete(None);
        assert_eq!(status.last_error(), None);
    }

    #[test]
    fn a_failing_service_keeps_the_time_of_its_first_failure() {
        let status = status("consul", "");
        let at = |seconds| Timestamp::default() + Duration::from_secs(seconds);
        let (web, api) = ("web".parse().unwrap(), "api".parse().unwrap());
        status.service_fails(&web, "denied", "403", at(1));
        status.service_fails(&web, "unavailable", "500", at(5));
        status.service_fails(&api, "denied", "403", at(5));
        let failing = status.failing_service(&web).unwrap();
        assert_eq!((failing.reason, failing.since), ("unavailable", at(1)));
        status.service_answers(&web);
        assert_eq!(status.failing_service(&web), None);
        assert_eq!(status.failing_services().len(), 1);
        status.forget_failing_services();
        assert!(status.failing_services().is_empty());
    }

    #[test]
    fn released_removals_stay_counted() {
        let status = status("consul", "");
        for held in [0, 3, 3, 1, 2, 0] {
            status.set_held_removals(held);
        }
        assert_eq!((status.held_removals(), status.removals_held()), (0, 4));
    }

    #[test]
    fn only_a_source_that_could_list_a_name_is_waited_for() {
        let (web, all) = (status("consul", "web"), status("file", ""));
        let sources = Sources::new(vec![web.clone(), all.clone()]);
        assert_eq!(sources.waiting_for("web-1"), Some(Source::new("consul")));
        assert_eq!(sources.waiting_for("db"), Some(Source::new("file")));
        assert!(!sources.any_synced());
        all.mark_synced();
        assert_eq!(sources.waiting_for("db"), None);
        assert_eq!(sources.waiting_for("web-1"), Some(Source::new("consul")));
        assert!(sources.any_synced() && !sources.required_synced());
        web.mark_synced();
        assert!(sources.required_synced());
    }
}
