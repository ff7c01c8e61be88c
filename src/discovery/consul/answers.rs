//! What an answer changes: what is known about the catalog and the services, and what is sent.
//!
//! Pure, but for log lines and the counters of the source's status. Answers come in with the
//! request that they belong to. What there is to send goes to `updates`, and a failure of Consul
//! as a whole to `error`.
//!
//! An empty answer needs care. Consul also gives an empty list with status 200 to a token without
//! rights. So a service with an empty answer is gone only when a catalog that was asked for
//! *after* that answer no longer lists it:
//!
//! ```text
//! health []  ──► read the catalog ──┬─ not listed: Gone
//!                                   └─ listed: nothing is removed, and the service is read again
//!                                      at growing intervals (the token lacks rights, or a race)
//! catalog {} ──┬─ the token may not read services: Denied. Not even `consul` itself is in it
//!              └─ the token may read services, and a second read 5 s later is equal: all Gone
//! ```
//!
//! A failure concerns one service, unless the catalog fails, or no connection can be made. A
//! service that fails keeps its last answer, and is retried alone.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::client::{Answer, AskError, Cause};
use super::leader::Leader;
use super::query::{Query, Verdict};
use super::request::{Consistency, Mode, Request, Target};
use super::services::{EmptyAnswer, Sent, Service, Services};
use super::settings::{ConsulSettings, Names};
use super::sync::InitialSync;
use super::wire::{self, Catalog, Head, Listing, Selection};
use crate::balancer::{ServiceInstance, ServiceName, SkipReason, Skipped, SourceStatus, Timestamp};
use crate::discovery::shared::json_reason;
use crate::discovery::watcher::{CONFIRM_AFTER, Reading, Reason, Trust, Update, WatchError};

/// A service without a usable answer delays `Synced` for so many attempts.
const ATTEMPTS_BEFORE_SYNC: u32 = 3;
/// A service that is refused with 429 so often in a row, while Consul answers other requests, is
/// refused for a reason of its own.
const REFUSALS_OF_ITS_OWN: u32 = 3;
/// After so long with nothing but refusals, Consul counts as away.
const REFUSED_FOR: Duration = Duration::from_secs(10);
/// The longest delay until a service is read again whose last answer was of no use.
const LONGEST_RETRY: Duration = Duration::from_secs(60);
/// When a service fails, the catalog is read if its last answer is older.
const CATALOG_IS_FRESH: Duration = Duration::from_secs(5);
/// A poll that failed sooner was not cut because of its wait.
pub(super) const SHORTEST_CUT: Duration = Duration::from_secs(3);

/// What all answers so far add up to.
pub(super) struct Answers {
    names: Names,
    selection: Selection,
    pub(super) status: Arc<SourceStatus>,
    rng: fastrand::Rng,
    /// How often the watch was interrupted. An answer to an older request is not accepted.
    pub(super) generation: u64,
    /// Whether only the catalog is asked, until it answers.
    pub(super) catalog_only: bool,
    pub(super) leader: Leader,
    pub(super) catalog: Query,
    /// Since when the catalog has been empty, although the token may read services.
    empty_since: Option<Timestamp>,
    /// Whether the last catalog was filtered by ACLs.
    filtered: bool,
    /// Names in the catalog that are not valid names of services here.
    unusable: BTreeSet<String>,
    pub(super) services: Services,
    /// Services that the catalog no longer lists and that are not yet forgotten.
    delisted: BTreeSet<ServiceName>,
    /// Services with an empty answer that no catalog has confirmed yet.
    unconfirmed: BTreeSet<ServiceName>,
    pub(super) sync: InitialSync,
    pub(super) updates: VecDeque<Update>,
    pub(super) error: Option<WatchError>,
    /// The last answer to any request, and to a request for the catalog.
    heard_at: Timestamp,
    catalog_heard_at: Timestamp,
}

/// What the schedule has to do after an answer.
#[derive(Default)]
pub(super) struct Followup {
    /// Services that the catalog lists for the first time.
    pub(super) added: Vec<ServiceName>,
    /// The catalog's long poll returned a change: any service may have changed.
    pub(super) catalog_changed: bool,
    /// The catalog has been read: its next read can be planned.
    pub(super) catalog_read: bool,
    pub(super) outcome: Outcome,
}

/// What a result says about Consul, and about the way to Consul.
#[derive(Debug, Default, PartialEq)]
pub(super) enum Outcome {
    /// Nothing: an answer from before an interruption, or a failure that is dealt with.
    #[default]
    Nothing,
    Answered,
    /// Too many requests.
    Refused {
        retry_after: Option<Duration>,
    },
    /// Only requests for this one service are refused: the refusals so far say nothing about the
    /// rate.
    RefusedAlone,
    /// Too many connections.
    Crowded,
    /// The connection was closed without an answer.
    Closed {
        detail: String,
    },
    /// A long poll was cut after this time.
    Cut {
        after: Duration,
    },
}

impl From<Outcome> for Followup {
    fn from(outcome: Outcome) -> Self {
        Self {
            outcome,
            ..Self::default()
        }
    }
}

/// An answer in context.
struct Received<'a> {
    request: &'a Request,
    answer: &'a Answer,
    /// The number of the next request.
    next: u64,
    /// Whether the server that answered lags behind the leader, or knows no leader.
    lagging: bool,
    now: Timestamp,
}

impl Answers {
    pub(super) fn new(
        settings: &ConsulSettings,
        status: Arc<SourceStatus>,
        rng: fastrand::Rng,
        now: Timestamp,
    ) -> Self {
        Self {
            names: settings.services.clone(),
            selection: Selection::of(settings),
            status,
            rng,
            generation: 0,
            catalog_only: true,
            leader: Leader::new(settings),
            catalog: Query::new(true, now),
            empty_since: None,
            filtered: false,
            unusable: BTreeSet::new(),
            services: Services::default(),
            delisted: BTreeSet::new(),
            unconfirmed: BTreeSet::new(),
            sync: InitialSync::default(),
            updates: VecDeque::new(),
            error: None,
            heard_at: now,
            catalog_heard_at: now,
        }
    }

    /// Takes the result of a request. `next` is the number of the next request.
    pub(super) fn take(
        &mut self,
        request: &Request,
        result: Result<Answer, AskError>,
        next: u64,
        now: Timestamp,
    ) -> Followup {
        match &request.target {
            Target::Catalog => self.catalog.completed(request.number),
            Target::Service(name) => {
                self.services
                    .change(name, |service| service.query.completed(request.number));
            }
        }
        // A request from before the last interruption: all is read again anyway, and the error was
        // counted once.
        let followup = if request.generation == self.generation {
            match result {
                Ok(answer) => Followup {
                    outcome: Outcome::Answered,
                    ..self.answered(request, &answer, next, now)
                },
                Err(error) => self.failed(request, error, now),
            }
        } else {
            Followup::default()
        };
        if let Target::Service(name) = &request.target {
            self.forget(name);
        }
        if self.sync.complete() {
            self.updates.push_back(Update::Synced);
        }
        followup
    }

    fn answered(&mut self, request: &Request, answer: &Answer, next: u64, now: Timestamp) -> Followup {
        self.heard_at = now;
        match &request.target {
            Target::Catalog => self.catalog_heard_at = now,
            Target::Service(name) => {
                self.services.change(name, |service| service.refused = None);
            }
        }
        let lagging = self.leader.lags(&answer.head);
        let asks_leader = self.leader.consistency(now) == Consistency::Default;
        if lagging && request.consistency == Consistency::Stale && asks_leader {
            // The leader itself answers at present: what this server knows is not needed.
            match &request.target {
                Target::Catalog => self.catalog.read_by(now),
                Target::Service(name) => self.read_by(name, now),
            }
            return Followup::default();
        }
        if lagging {
            self.leader_lost(&answer.head, now);
        } else if self.leader.is_known() {
            self.status.heard(now);
        } else if request.target == Target::Catalog {
            self.leader_found(request, now);
        }
        let received = Received {
            request,
            answer,
            next,
            lagging,
            now,
        };
        match &request.target {
            Target::Catalog => self.catalog_answered(&received),
            Target::Service(name) => {
                self.service_answered(name, &received);
                Followup::default()
            }
        }
    }

    fn failed(&mut self, request: &Request, error: AskError, now: Timestamp) -> Followup {
        let after = now.since(request.asked_at);
        let waited = request.mode != Mode::Read && after >= SHORTEST_CUT;
        match (error.cause, &request.target) {
            // The read that went to the leader itself: it is known that the leader is away.
            (_, Target::Catalog)
                if request.mode == Mode::Read
                    && request.consistency == Consistency::Default
                    && !self.leader.is_known()
                    && matches!(error.reason, Reason::Unavailable | Reason::Timeout) =>
            {
                return Followup {
                    catalog_read: true,
                    ..Followup::default()
                };
            }
            (Cause::Throttled { retry_after }, _) => return self.refused(request, &error, retry_after, now),
            (Cause::TooManyConnections, _) => {
                self.status.count_error(error.reason.as_str());
                self.ask_again(request, now);
                return Outcome::Crowded.into();
            }
            (Cause::Reset, _) => {
                match waited {
                    true => self.poll_lost(&request.target, now),
                    false => self.ask_again(request, now),
                }
                return Outcome::Closed { detail: error.detail }.into();
            }
            // If Consul is away, the read of the catalog fails, too.
            (Cause::Gateway, _) if waited => {
                self.poll_lost(&request.target, now);
                self.catalog.read_by(now);
                return Outcome::Cut { after }.into();
            }
            (Cause::Timeout, target) if waited && self.heard_at > request.asked_at => {
                self.poll_lost(target, now);
                self.catalog.read_by(now);
                return Outcome::Cut { after: after / 2 }.into();
            }
            (Cause::Timeout, Target::Service(name)) if self.heard_at > request.asked_at => {
                self.service_failed(name, &error, Duration::ZERO, now);
            }
            (Cause::Answer | Cause::Gateway, Target::Service(name)) => {
                self.service_failed(name, &error, Duration::ZERO, now);
            }
            _ => self.interrupted(error.reason, error.detail, now),
        }
        Followup::default()
    }

    /// Consul refused a request with 429: the request is sent again, in turn. If Consul refuses
    /// only requests for this service, the service fails.
    fn refused(
        &mut self,
        request: &Request,
        error: &AskError,
        retry_after: Option<Duration>,
        now: Timestamp,
    ) -> Followup {
        if let Target::Service(name) = &request.target {
            let counted = self.services.change(name, |service| {
                let (times, since) = service.refused.unwrap_or((0, now));
                *service.refused.insert((times.saturating_add(1), since))
            });
            if let Some((times, since)) = counted
                && times >= REFUSALS_OF_ITS_OWN
                && self.heard_at > since
            {
                let known = self.services.get(name).is_some_and(|service| service.failures > 0);
                self.service_failed(name, error, retry_after.unwrap_or_default(), now);
                return match known {
                    true => Followup::default(),
                    false => Outcome::RefusedAlone.into(),
                };
            }
            if counted.is_some_and(|(times, _)| times > 1) {
                // The catalog shows whether Consul refuses only this service.
                self.catalog.read_by(now);
            }
        }
        self.status.count_error(error.reason.as_str());
        if now.since(self.heard_at) >= REFUSED_FOR {
            self.status
                .lost(now, &format_args!("{}: {}", error.reason, error.detail));
        }
        if request.mode == Mode::Read {
            self.read_again(&request.target, now);
        }
        Outcome::Refused { retry_after }.into()
    }

    /// The request did not reach Consul: it is sent again soon. An index still holds.
    fn ask_again(&mut self, request: &Request, now: Timestamp) {
        let delay = self.retry_delay(1);
        self.read_again(&request.target, now + delay);
    }

    fn read_again(&mut self, target: &Target, at: Timestamp) {
        match target {
            Target::Catalog => self.catalog.read_by(at),
            Target::Service(name) => self.read_by(name, at),
        }
    }

    fn poll_lost(&mut self, target: &Target, now: Timestamp) {
        match target {
            Target::Catalog => self.catalog.poll_lost(now),
            Target::Service(name) => {
                self.services.change(name, |service| service.query.poll_lost(now));
            }
        }
    }

    /// Consul as a whole cannot be asked, so that no index holds any more. The error is counted
    /// where the watcher's caller handles it.
    pub(super) fn interrupted(&mut self, reason: Reason, detail: String, now: Timestamp) {
        self.empty_since = None;
        self.status.forget_failing_services();
        self.services
            .change_all(|service| (service.failures, service.refused) = (0, None));
        self.error = Some(WatchError { reason, detail });
        self.catalog_only = true;
        self.leader.unreachable();
        self.read_all_again(now);
    }

    fn read_all_again(&mut self, now: Timestamp) {
        self.generation += 1;
        self.catalog.interrupted(now);
        self.read_services_again(now);
    }

    fn read_services_again(&mut self, now: Timestamp) {
        self.unconfirmed.clear();
        self.services.change_all(|service| {
            service.query.interrupted(now);
            service.empty_answer = None;
        });
    }

    fn read_by(&mut self, name: &ServiceName, at: Timestamp) {
        self.services.change(name, |service| service.query.read_by(at));
    }

    fn leader_lost(&mut self, head: &Head, now: Timestamp) {
        let detail = match head.known_leader {
            false => String::from("no_leader: the server that answered knows no leader"),
            true => format!(
                "no_leader: the server that answered last heard from its leader {:?} ago",
                head.last_contact
            ),
        };
        self.status.lost(now, &detail);
        if self.leader.lost() {
            self.status.count_error(Reason::NoLeader.as_str());
            self.catalog.read_by(now);
        }
    }

    fn leader_found(&mut self, request: &Request, now: Timestamp) {
        self.leader.found(request.consistency, now);
        self.status.heard(now);
        // This answer is the first after the gap: `read_all_again` marks it so.
        self.read_all_again(now);
    }

    fn catalog_answered(&mut self, received: &Received<'_>) -> Followup {
        let &Received {
            request,
            answer,
            next,
            lagging,
            now,
        } = received;
        let (head, body) = (&answer.head, wire::fingerprint(&answer.body));
        let had_gap = self.catalog.has_gap();
        let verdict = self.catalog.judge(request, head, body, next, now);
        if !had_gap && self.catalog.has_gap() {
            // An index counts changes of all of Consul, not of the catalog alone: a snapshot was
            // restored, and every service may be as it was then.
            self.read_services_again(now);
        }
        let Verdict::Accepted { unchanged } = verdict else {
            return Followup::default();
        };
        let listing = match wire::catalog(&answer.body) {
            _ if unchanged => None,
            Ok(listing) if listing.is_empty() && !lagging && !answer.truly_empty => {
                let detail = "the catalog is empty, without even consul itself: the token may not read services";
                self.interrupted(Reason::Denied, String::from(detail), now);
                return Followup::default();
            }
            Ok(listing) if listing.is_empty() && !lagging && !self.is_confirmed_empty(now) => {
                return Followup::default();
            }
            Ok(listing) => {
                if !listing.is_empty() {
                    self.empty_since = None;
                }
                Some(listing)
            }
            Err(error) => {
                self.interrupted(
                    Reason::Protocol,
                    format!("/v1/catalog/services: {}", json_reason(&error)),
                    now,
                );
                return Followup::default();
            }
        };
        self.catalog_only = false;
        if !unchanged {
            self.catalog.body_changed(true, now);
        }
        self.note_filtered_catalog(head.filtered);
        let trust = self.catalog.trust(lagging || head.filtered, now);
        if trust == Trust::AdditionsOnly {
            // Services that this catalog lacks stay. Once the catalog can be trusted, an equal
            // answer is news.
            self.catalog.forget_body();
        }
        let added = match listing {
            Some(listing) => self.compare(&listing, trust, lagging, now),
            None => Vec::new(),
        };
        if trust != Trust::AdditionsOnly {
            for name in self.delisted.clone() {
                self.send_gone(&name, trust, now);
            }
        }
        if !lagging {
            self.settle_empty_answers(request.number, now);
        }
        Followup {
            added,
            catalog_changed: matches!(request.mode, Mode::Poll { .. }),
            catalog_read: true,
            outcome: Outcome::Answered,
        }
    }

    /// Whether an empty catalog has been confirmed by a second read. A Consul that has just started
    /// may answer before its data is there.
    fn is_confirmed_empty(&mut self, now: Timestamp) -> bool {
        let confirmed_at = *self.empty_since.get_or_insert(now) + CONFIRM_AFTER;
        if now < confirmed_at {
            // The equal answer that confirms this one is news.
            self.catalog.forget_body();
            self.catalog.read_by(confirmed_at);
        }
        now >= confirmed_at
    }

    fn note_filtered_catalog(&mut self, filtered: bool) {
        if filtered && !self.filtered {
            self.status.count_error(Reason::Denied.as_str());
            tracing::warn!(source = %self.status.source(), "the ACL token may not read every service: the catalog is filtered");
        }
        self.filtered = filtered;
    }

    /// Compares the catalog with what is known, and returns the services that are new.
    fn compare(&mut self, listing: &Catalog, trust: Trust, lagging: bool, now: Timestamp) -> Vec<ServiceName> {
        let mut added = Vec::new();
        if !lagging {
            self.sync.catalog_read(self.services.names());
        }
        let listing = self.wanted(listing);
        for (name, &tags) in &listing {
            let known = self.services.change(name, |service| {
                if !service.listed || service.missing || service.tags != tags {
                    service.query.read_by(now);
                }
                (service.listed, service.missing, service.tags) = (true, false, tags);
            });
            if known.is_none() {
                self.sync.wait_for(name);
                self.services
                    .insert(name.clone(), Service::new(tags, trust != Trust::Steady, now));
                added.push(name.clone());
            } else if self.delisted.remove(name) {
                self.sync.wait_for(name);
            }
        }
        if !lagging {
            self.drop_unlisted(&listing, trust, now);
        }
        added
    }

    /// The services that are chosen and can be asked for. Consul lists the spellings of one name as
    /// several services, and answers for each with the instances of all.
    fn wanted(&mut self, listing: &Catalog) -> BTreeMap<ServiceName, u64> {
        let mut wanted = BTreeMap::new();
        self.unusable.retain(|name| listing.contains_key(name));
        for (text, &tags) in listing {
            if !self.names.matches(text) {
                continue;
            }
            match wire::name(text) {
                Ok(name) => {
                    let of_all: &mut u64 = wanted.entry(name).or_default();
                    *of_all = of_all.rotate_left(1) ^ tags;
                }
                Err(error) => {
                    if self.unusable.insert(text.clone()) {
                        self.status.count_error(Reason::InvalidInstance.as_str());
                        tracing::warn!(source = %self.status.source(), %error, "service skipped: its name is not valid");
                    }
                }
            }
        }
        wanted
    }

    fn drop_unlisted(&mut self, listing: &BTreeMap<ServiceName, u64>, trust: Trust, now: Timestamp) {
        let unlisted: Vec<_> = self
            .services
            .iter()
            .filter(|(name, service)| service.listed && !listing.contains_key(name))
            .map(|(name, _)| name.clone())
            .collect();
        for name in unlisted {
            if trust == Trust::AdditionsOnly {
                self.services.change(&name, |service| {
                    service.missing = true;
                    service.query.read_by(now);
                });
            } else {
                self.left(&name);
            }
        }
    }

    /// The catalog no longer lists a service.
    fn left(&mut self, name: &ServiceName) {
        self.services.change(name, |service| {
            (service.listed, service.missing, service.empty_answer) = (false, false, None);
            service.query.discard_answer();
        });
        self.status.set_skipped(name, Skipped::default());
        self.unconfirmed.remove(name);
        self.delisted.insert(name.clone());
        self.sync.settled(name);
        self.recovered(name);
    }

    /// A service answers again, or is not asked for any more. Returns whether it had failed.
    fn recovered(&mut self, name: &ServiceName) -> bool {
        let failures = self
            .services
            .change(name, |service| std::mem::take(&mut service.failures));
        let had_failed = failures.is_some_and(|failures| failures > 0);
        if had_failed {
            self.status.service_answers(name);
        }
        had_failed
    }

    /// Sends that a service is gone. Sends it again if it was sent with less trust before.
    fn send_gone(&mut self, name: &ServiceName, trust: Trust, now: Timestamp) {
        let sent = self.services.change(name, |service| {
            let was_sent = service.sent.is_some_and(|sent| sent != Sent::Gone(Trust::Steady));
            let is_news = was_sent && service.is_news(Sent::Gone(trust));
            if is_news {
                service.sent = Some(Sent::Gone(trust));
            }
            is_news
        });
        if sent == Some(true) {
            self.updates.push_back(Update::Gone {
                service: name.clone(),
                read_at: now,
                trust,
            });
        }
        self.forget(name);
    }

    fn forget(&mut self, name: &ServiceName) {
        if self.services.forget(name) {
            self.delisted.remove(name);
        }
    }

    /// Services whose answer was empty before catalog request `number` was sent. If the catalog
    /// does not list a service any more, that was handled before.
    fn settle_empty_answers(&mut self, number: u64, now: Timestamp) {
        for name in self.unconfirmed.clone() {
            let taken = self.services.change(&name, |service| {
                let empty = service.empty_answer.take_if(|empty| empty.confirmed_from <= number)?;
                Some((empty, service.missing))
            });
            let Some(Some((empty, missing))) = taken else {
                continue;
            };
            self.unconfirmed.remove(&name);
            if !missing {
                self.listed_but_empty(&name, empty, now);
            } else if empty.trust != Trust::Steady {
                // The read that confirms this follows.
                self.send(&name, &[], empty.trust, empty.read_at);
                self.sync.settled(&name);
            } else {
                // An incomplete catalog does not list the service, and the complete answer of the
                // service itself has no instances: it is gone.
                self.left(&name);
                self.send_gone(&name, empty.trust, empty.read_at);
            }
        }
    }

    /// The catalog lists a service whose own answer was empty. Nothing is removed, and the service
    /// is read again later.
    fn listed_but_empty(&mut self, name: &ServiceName, empty: EmptyAnswer, now: Timestamp) {
        let count = self.services.change(name, |service| {
            service.listed_but_empty = service.listed_but_empty.saturating_add(1);
            service.listed_but_empty
        });
        let times = count.unwrap_or_default();
        let delay = self.retry_delay(times);
        self.status.count_error(Reason::Denied.as_str());
        if times == 1 {
            tracing::warn!(source = %self.status.source(), service = %name,
                "service listed without instances: the ACL token may lack node:read, or the service was just deregistered");
        }
        self.send(name, &[], Trust::AdditionsOnly, empty.read_at);
        self.sync.settled(name);
        self.read_by(name, now + delay);
    }

    fn service_answered(&mut self, name: &ServiceName, received: &Received<'_>) {
        let &Received {
            request,
            answer,
            next,
            lagging,
            now,
        } = received;
        if !self.services.get(name).is_some_and(|service| service.listed) {
            return;
        }
        let (head, body) = (&answer.head, wire::fingerprint(&answer.body));
        let judged = self.services.change(name, |service| {
            let had_gap = service.query.has_gap();
            let verdict = service.query.judge(request, head, body, next, now);
            (verdict, !had_gap && service.query.has_gap())
        });
        let Some((verdict, new_gap)) = judged else { return };
        if new_gap {
            // The server lags, or a snapshot was restored: the catalog shows which.
            self.catalog.read_by(now);
        }
        let Verdict::Accepted { unchanged } = verdict else {
            return;
        };
        let trusted = self.services.change(name, |service| {
            let trust = service.query.trust(lagging || head.filtered, now);
            (trust, unchanged && service.has_sent(trust))
        });
        let Some((trust, false)) = trusted else { return };
        let listing = match wire::health(&answer.body, name, &self.selection) {
            Ok(listing) => listing,
            Err(error) => {
                let error = AskError {
                    reason: Reason::Protocol,
                    cause: Cause::Answer,
                    detail: json_reason(&error),
                };
                return self.service_failed(name, &error, Duration::ZERO, now);
            }
        };
        self.note_decoded(name, head.filtered);
        if !unchanged {
            self.note_skipped(name, &listing);
        }
        let bare = listing.bare && !answer.truly_empty;
        if bare && trust != Trust::AdditionsOnly {
            return self.wait_for_catalog(name, trust, next, now);
        }
        let sent_before = self.services.change(name, |service| {
            if !bare {
                service.listed_but_empty = 0;
            }
            service.empty_answer = None;
            service.sent.is_some()
        });
        self.unconfirmed.remove(name);
        // A service that has only proxies, or nothing that passes the filter, is no service to
        // callers.
        let left_out = !bare && listing.instances.is_empty() && listing.skipped.is_empty();
        let to_send = !left_out || sent_before == Some(true);
        let news = to_send && self.send(name, &listing.instances, trust, now);
        if !unchanged {
            self.services
                .change(name, |service| service.query.body_changed(news, now));
        }
        if !lagging {
            self.sync.settled(name);
        }
    }

    /// An answer about a service could be decoded. Logs what is new about it.
    fn note_decoded(&mut self, name: &ServiceName, filtered: bool) {
        if self.recovered(name) {
            tracing::info!(source = %self.status.source(), service = %name, "the service is answered again");
        }
        let was_filtered = self
            .services
            .change(name, |service| std::mem::replace(&mut service.filtered, filtered));
        let Some(was_filtered) = was_filtered else { return };
        if filtered && !was_filtered {
            self.status.count_error(Reason::Denied.as_str());
            tracing::warn!(source = %self.status.source(), service = %name, "the ACL token may not read every instance of the service");
        }
    }

    /// A service's answer was empty: the next catalog decides.
    fn wait_for_catalog(&mut self, name: &ServiceName, trust: Trust, next: u64, now: Timestamp) {
        self.services.change(name, |service| {
            // Nothing is sent for this body yet, so an equal body has to count as new.
            service.query.forget_body();
            service.query.body_changed(false, now);
            service.empty_answer = Some(EmptyAnswer {
                confirmed_from: next,
                trust,
                read_at: now,
            });
        });
        self.unconfirmed.insert(name.clone());
        self.catalog.read_by(now);
    }

    fn note_skipped(&mut self, name: &ServiceName, listing: &Listing) {
        self.status.set_skipped(name, listing.skipped.iter().collect());
        for skipped in &listing.skipped {
            self.status.count_error(Reason::from(skipped.reason).as_str());
        }
        for _ in &listing.ignored {
            self.status.count_error(Reason::InvalidInstance.as_str());
        }
        // A registration without a port is usual.
        let mut invalid = listing
            .skipped
            .iter()
            .filter(|skipped| skipped.reason != SkipReason::NoPort);
        let first = invalid.next();
        let skipped = first.iter().count() + invalid.count();
        let noted = skipped + listing.ignored.len();
        let before = self
            .services
            .change(name, |service| std::mem::replace(&mut service.skipped, noted));
        let first = first.map(|skipped| format!("{}: {}", skipped.id, skipped.detail));
        if before.is_some_and(|before| before != noted)
            && let Some(reason) = first.as_ref().or(listing.ignored.first())
        {
            tracing::warn!(source = %self.status.source(), service = %name, skipped,
                ignored = listing.ignored.len(), %reason, "registrations skipped or partly ignored");
        }
    }

    /// Consul gives no usable answer for one service: the last answer stays in force, and the
    /// service is read again alone, at growing intervals of at least `pause`.
    fn service_failed(&mut self, name: &ServiceName, error: &AskError, pause: Duration, now: Timestamp) {
        let changed = self.services.change(name, |service| {
            service.query.discard_answer();
            service.failures = service.failures.saturating_add(1);
            (service.failures, service.sent.is_some(), service.listed)
        });
        let Some((failures, was_sent, true)) = changed else {
            return;
        };
        let delay = self.retry_delay(failures).max(pause.min(LONGEST_RETRY));
        self.services
            .change(name, |service| service.query.retry_at(now + delay));
        let reason = error.reason.as_str();
        self.status.count_error(reason);
        self.status.service_fails(name, reason, &error.detail, now);
        if failures == 1 {
            tracing::warn!(source = %self.status.source(), service = %name, reason, error = error.detail,
                "no usable answer for the service, keeping the last one");
        }
        // A refusal for lack of rights is not expected to pass.
        if failures >= ATTEMPTS_BEFORE_SYNC || error.reason == Reason::Denied {
            self.sync.settled(name);
            if !was_sent {
                // The name is known: its picks are refused because there are no instances.
                self.send(name, &[], Trust::AdditionsOnly, now);
            }
        }
        if error.reason != Reason::Protocol && now.since(self.catalog_heard_at) >= CATALOG_IS_FRESH {
            self.catalog.read_by(now);
        }
    }

    /// Sends the instances, if that changes anything. Returns whether it does.
    fn send(&mut self, name: &ServiceName, instances: &[ServiceInstance], trust: Trust, read_at: Timestamp) -> bool {
        let sent = Sent::instances(instances, trust);
        let is_news = self.services.change(name, |service| {
            let is_news = service.is_news(sent);
            if is_news {
                service.sent = Some(sent);
            }
            is_news
        });
        if is_news == Some(true) {
            self.updates.push_back(Update::Service(Reading {
                service: name.clone(),
                instances: instances.to_vec(),
                read_at,
                trust,
            }));
        }
        is_news == Some(true)
    }

    /// A delay that doubles with each failure in a row, up to a minute; half of it is random.
    fn retry_delay(&mut self, failures: u32) -> Duration {
        let full = Duration::from_secs(1 << failures.saturating_sub(1).min(6)).min(LONGEST_RETRY);
        full.mul_f64(0.5 + 0.5 * self.rng.f64())
    }
}
