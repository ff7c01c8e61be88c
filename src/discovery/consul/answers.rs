//! What an answer changes: the other half of [`Schedule`].
//!
//! Pure, but for log lines and the counters of the source's status. Answers come in with the question they belong to; what
//! there is to tell goes to `news`, and trouble with Consul as a whole to `trouble`.
//!
//! An empty answer is the one that needs care. Consul gives it with a 200 to a token without rights, too, so a service that
//! answers with nothing is only gone when a catalog read *after* that no longer lists it:
//!
//! ```text
//! health []  ──► read the catalog ──┬─ not listed: Gone
//!                                   └─ listed: nothing is taken away, looked at again ever more rarely (ACL, or a race)
//! catalog {} ──► Denied: not even `consul` itself is in it
//! ```

use std::hash::{Hash, Hasher};

use super::client::{Answer, AskError};
use super::query::Verdict;
use super::schedule::{Consistency, Doubt, Leader, Mode, Request, Schedule, Service, Target, Told};
use super::wire::{self, Catalog, Head, Listing};
use crate::balancer::{ServiceInstance, ServiceName, Timestamp};
use crate::discovery::watcher::{Reading, Reason, Trust, Update, WatchError};

/// A service whose answer cannot be understood holds up `Synced` for so many attempts.
const ATTEMPTS_BEFORE_SYNC: u32 = 3;

impl Schedule {
    /// Takes what came of a question.
    pub(super) fn take(&mut self, request: &Request, result: Result<Answer, AskError>, now: Timestamp) {
        match request.mode {
            Mode::Read => self.reads -= 1,
            Mode::Poll { .. } => self.polls -= 1,
        }
        match &request.target {
            Target::Catalog => self.catalog.landed(request.number),
            Target::Service(name) => {
                if let Some(service) = self.services.get_mut(name) {
                    service.query.landed(request.number);
                }
            }
        }
        // From before the last break: all of it is read anew anyway, and one break is one error.
        if request.generation == self.generation {
            match result {
                Ok(answer) => self.answered(request, &answer, now),
                Err(error) => self.failed(request, error, now),
            }
        }
        if let Target::Service(name) = &request.target {
            self.rest(name, now);
            self.requeue(name);
            self.forget(name);
        }
        if !self.synced && self.unread.as_ref().is_some_and(|unread| unread.is_empty()) {
            self.synced = true;
            self.news.push_back(Update::Synced);
        }
    }

    fn answered(&mut self, request: &Request, answer: &Answer, now: Timestamp) {
        let head = &answer.head;
        let lagging = !head.known_leader || head.last_contact > self.max_stale;
        if lagging && request.consistency == Consistency::Stale && self.asks_leader(now) {
            // The leader itself answers: no need for what this server remembers.
            match &request.target {
                Target::Catalog => self.catalog.by(now),
                Target::Service(name) => {
                    self.services
                        .get_mut(name)
                        .into_iter()
                        .for_each(|service| service.query.by(now));
                }
            }
            return;
        }
        if lagging {
            self.leader_lost(head, now);
        } else if self.leader == Leader::Known {
            self.status.heard(now);
        } else if request.target == Target::Catalog {
            self.leader_found(request, now);
        }
        match &request.target {
            Target::Catalog => self.catalog_answered(request, answer, lagging, now),
            Target::Service(name) => self.service_answered(name, request, answer, lagging, now),
        }
    }

    fn failed(&mut self, request: &Request, error: AskError, now: Timestamp) {
        match &request.target {
            // What Consul thinks of one service is no trouble with Consul.
            Target::Service(name) if error.reason == Reason::Protocol => self.not_understood(name, &error.detail, now),
            // The question to the leader itself: that it is away is known.
            Target::Catalog
                if request.mode == Mode::Read
                    && request.consistency == Consistency::Default
                    && self.leader != Leader::Known
                    && matches!(error.reason, Reason::Unavailable | Reason::Timeout) =>
            {
                self.rest_catalog(now);
            }
            _ => self.broken(error.reason, error.detail, now),
        }
    }

    /// Consul as a whole cannot be asked: nothing that is known about indexes holds any more.
    /// It is counted by whoever is told of it.
    fn broken(&mut self, reason: Reason, detail: String, now: Timestamp) {
        self.trouble = Some(WatchError { reason, detail });
        self.probing = true;
        self.ask_leader_until = None;
        self.read_all_anew(now);
    }

    fn read_all_anew(&mut self, now: Timestamp) {
        self.generation += 1;
        self.catalog.broken(now);
        self.read_services_anew(now);
    }

    fn read_services_anew(&mut self, now: Timestamp) {
        self.doubted.clear();
        let names: Vec<_> = self.services.keys().cloned().collect();
        for name in names {
            if let Some(service) = self.services.get_mut(&name) {
                service.query.broken(now);
                service.doubt = None;
            }
            self.requeue(&name);
        }
    }

    /// The supervisor logs what the status says, here and when the leader is back.
    fn leader_lost(&mut self, head: &Head, now: Timestamp) {
        let detail = match head.known_leader {
            false => String::from("no_leader: the server that answers knows no leader"),
            true => format!(
                "no_leader: the server that answers heard of its leader {:?} ago",
                head.last_contact
            ),
        };
        self.status.lost(now, &detail);
        if self.leader == Leader::Known {
            self.status.count_error(Reason::NoLeader.as_str());
            self.leader = Leader::Away { asked: false };
            self.catalog.by(now);
        }
    }

    fn leader_found(&mut self, request: &Request, now: Timestamp) {
        self.leader = Leader::Known;
        self.status.heard(now);
        if request.consistency == Consistency::Default {
            self.ask_leader_until = Some(now + self.refresh);
        }
        // This answer is the first of the new stretch; `read_all_anew` has made it a first look.
        self.read_all_anew(now);
    }

    fn catalog_answered(&mut self, request: &Request, answer: &Answer, lagging: bool, now: Timestamp) {
        let (head, body) = (&answer.head, wire::fingerprint(&answer.body));
        let had_gap = self.catalog.has_gap();
        let verdict = self.catalog.judge(request, head, body, self.number, now);
        if !had_gap && self.catalog.has_gap() {
            // Indexes are Consul's own, not the catalog's: a snapshot was restored, and everything is as it was then.
            self.read_services_anew(now);
        }
        let Verdict::Believed { same } = verdict else {
            return;
        };
        let listing = match wire::catalog(&answer.body) {
            _ if same => None,
            Ok(listing) if listing.is_empty() && !lagging => {
                let detail = "the catalog is empty, not even consul is in it: the token may not read services";
                return self.broken(Reason::Denied, String::from(detail), now);
            }
            Ok(listing) => Some(listing),
            Err(error) => return self.broken(Reason::Protocol, format!("/v1/catalog/services: {error}"), now),
        };
        self.probing = false;
        self.note_filtered_catalog(head.filtered);
        let trust = self.catalog.trust(lagging || head.filtered, now);
        if trust == Trust::AdditionsOnly {
            // What it lacks has not been acted upon: an equal answer is news once it can be trusted.
            self.catalog.forget_body();
        }
        if let Some(listing) = listing {
            self.list(&listing, trust, lagging, now);
        }
        if trust != Trust::AdditionsOnly {
            self.say_gone(trust, now);
        }
        if !lagging {
            self.settle_doubts(request.number, now);
        }
        if matches!(request.mode, Mode::Poll { .. }) {
            self.plan_walk(now);
        }
        self.rest_catalog(now);
    }

    fn note_filtered_catalog(&mut self, filtered: bool) {
        if filtered && !self.filtered {
            self.status.count_error(Reason::Denied.as_str());
            tracing::warn!(source = %wire::SOURCE, "the token may not see every service: the rest is left out of the catalog");
        }
        self.filtered = filtered;
    }

    /// Compares the catalog with what is known.
    fn list(&mut self, listing: &Catalog, trust: Trust, lagging: bool, now: Timestamp) {
        let mut unusable = std::mem::take(&mut self.unusable);
        unusable.retain(|name| listing.contains_key(name));
        if !lagging && self.unread.is_none() {
            // What was read while no leader was known is read again, and counts only then.
            self.unread = Some(self.services.keys().cloned().collect());
        }
        for (text, &tags) in listing {
            if !self.names.matches(text) {
                continue;
            }
            let name = match text.parse::<ServiceName>() {
                Ok(name) => name,
                Err(error) => {
                    if unusable.insert(text.clone()) {
                        self.status.count_error(Reason::InvalidInstance.as_str());
                        tracing::warn!(source = %wire::SOURCE, %error, "a service is left out");
                    }
                    continue;
                }
            };
            if let Some(service) = self.services.get_mut(&name) {
                if !service.listed || service.missing || service.tags != tags {
                    service.query.by(now);
                }
                (service.listed, service.missing, service.tags) = (true, false, tags);
                if self.leaving.remove(&name) {
                    self.has_to_be_read(&name);
                }
                self.requeue(&name);
            } else {
                self.has_to_be_read(&name);
                self.add(name, tags, trust != Trust::Steady, now);
            }
        }
        self.unusable = unusable;
        if lagging {
            return;
        }
        let gone: Vec<_> = self
            .services
            .iter()
            .filter(|(name, service)| service.listed && !listing.contains_key(name.as_str()))
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            let Some(service) = self.services.get_mut(&name) else {
                continue;
            };
            if trust == Trust::AdditionsOnly {
                service.missing = true;
                service.query.by(now);
            } else {
                self.left(&name);
            }
            self.requeue(&name);
        }
    }

    /// The catalog no longer lists a service.
    fn left(&mut self, name: &ServiceName) {
        if let Some(service) = self.services.get_mut(name) {
            (service.listed, service.missing, service.doubt) = (false, false, None);
            service.query.forget();
        }
        self.doubted.remove(name);
        self.leaving.insert(name.clone());
        self.settled(name);
        self.requeue(name);
    }

    /// Tells of those who left, again if it was told with less trust before.
    fn say_gone(&mut self, trust: Trust, now: Timestamp) {
        for name in self.leaving.clone() {
            self.say_one_gone(&name, trust, now);
        }
    }

    fn say_one_gone(&mut self, name: &ServiceName, trust: Trust, now: Timestamp) {
        if let Some(service) = self.services.get_mut(name)
            && service
                .told
                .is_some_and(|told| told != Told::Gone(trust) && told != Told::Gone(Trust::Steady))
        {
            service.told = Some(Told::Gone(trust));
            self.news.push_back(Update::Gone {
                service: name.clone(),
                read_at: now,
                trust,
            });
        }
        self.forget(name);
    }

    /// Services that answered with nothing before catalog request `number` was sent, and are listed all the same.
    fn settle_doubts(&mut self, number: u64, now: Timestamp) {
        for name in self.doubted.clone() {
            let Some(service) = self.services.get_mut(&name) else {
                continue;
            };
            let Some(doubt) = service.doubt.filter(|doubt| doubt.from <= number) else {
                continue;
            };
            service.doubt = None;
            self.doubted.remove(&name);
            if service.missing && doubt.trust == Trust::AfterGap {
                // The second look follows.
                self.tell(&name, &[], doubt.trust, doubt.read_at);
                self.settled(&name);
                continue;
            }
            if service.missing {
                // A catalog that leaves things out does not list it, and its own answer, which does not, says it is empty.
                self.left(&name);
                self.say_one_gone(&name, doubt.trust, doubt.read_at);
                continue;
            }
            service.hidden = service.hidden.saturating_add(1);
            let times = service.hidden;
            let delay = self.retry_delay(times);
            self.status.count_error(Reason::Denied.as_str());
            if times == 1 {
                tracing::warn!(source = %wire::SOURCE, service = %name,
                    "listed, yet without instances: the token may lack rights (node:read?), or it just left");
            }
            self.tell(&name, &[], Trust::AdditionsOnly, doubt.read_at);
            self.settled(&name);
            if let Some(service) = self.services.get_mut(&name) {
                service.query.by(now + delay);
                self.requeue(&name);
            }
        }
    }

    fn service_answered(
        &mut self,
        name: &ServiceName,
        request: &Request,
        answer: &Answer,
        lagging: bool,
        now: Timestamp,
    ) {
        let (head, body) = (&answer.head, wire::fingerprint(&answer.body));
        let next = self.number;
        let Some(service) = self.services.get_mut(name).filter(|service| service.listed) else {
            return;
        };
        let had_gap = service.query.has_gap();
        let verdict = service.query.judge(request, head, body, next, now);
        if !had_gap && service.query.has_gap() {
            // A server that lags, or a snapshot: the catalog tells.
            self.catalog.by(now);
        }
        let Verdict::Believed { same } = verdict else { return };
        let trust = service.query.trust(lagging || head.filtered, now);
        if same && service.has_told(trust) {
            return;
        }
        let listing = match wire::health(&answer.body, name) {
            Ok(listing) => listing,
            Err(error) => return self.not_understood(name, &error, now),
        };
        if service.failures > 0 {
            service.failures = 0;
            tracing::info!(source = %wire::SOURCE, service = %name, "its answers can be understood again");
        }
        if head.filtered && !service.filtered {
            self.status.count_error(Reason::Denied.as_str());
            tracing::warn!(source = %wire::SOURCE, service = %name, "the token may not see all of its instances");
        }
        service.filtered = head.filtered;
        if !same {
            self.note_skipped(name, &listing);
        }
        if listing.bare && trust != Trust::AdditionsOnly {
            return self.doubt(name, trust, now);
        }
        let Some(service) = self.services.get_mut(name) else {
            return;
        };
        if !listing.bare {
            service.hidden = 0;
        }
        service.doubt = None;
        self.doubted.remove(name);
        self.tell(name, &listing.instances, trust, now);
        if !lagging {
            self.settled(name);
        }
    }

    /// A service answered with nothing: the catalog decides.
    fn doubt(&mut self, name: &ServiceName, trust: Trust, now: Timestamp) {
        let Some(service) = self.services.get_mut(name) else {
            return;
        };
        // The body is not acted upon yet: an equal one has to be looked at again.
        service.query.forget_body();
        service.doubt = Some(Doubt {
            from: self.number,
            trust,
            read_at: now,
        });
        self.doubted.insert(name.clone());
        self.catalog.by(now);
    }

    fn note_skipped(&mut self, name: &ServiceName, listing: &Listing) {
        for _ in listing.skipped.iter().chain(&listing.ignored) {
            self.status.count_error(Reason::InvalidInstance.as_str());
        }
        let Some(service) = self.services.get_mut(name) else {
            return;
        };
        let skipped = listing.skipped.len() + listing.ignored.len();
        if skipped != service.skipped
            && let Some(reason) = listing.skipped.first().or(listing.ignored.first())
        {
            tracing::warn!(source = %wire::SOURCE, service = %name, skipped = listing.skipped.len(),
                ignored = listing.ignored.len(), %reason, "registrations cannot be used as they are");
        }
        service.skipped = skipped;
    }

    /// One service's answer makes no sense: its last good one stays, and it is asked again, ever more rarely.
    fn not_understood(&mut self, name: &ServiceName, detail: &dyn std::fmt::Display, now: Timestamp) {
        let Some(service) = self.services.get_mut(name) else {
            return;
        };
        service.query.forget();
        service.failures = service.failures.saturating_add(1);
        let failures = service.failures;
        let delay = self.retry_delay(failures);
        self.status.count_error(Reason::Protocol.as_str());
        if failures == 1 {
            tracing::warn!(source = %wire::SOURCE, service = %name, error = %detail,
                "its answer cannot be understood, the last good one stays");
        }
        if failures >= ATTEMPTS_BEFORE_SYNC {
            self.settled(name);
        }
        if let Some(service) = self.services.get_mut(name) {
            service.query.by(now + delay);
        }
    }

    fn tell(&mut self, name: &ServiceName, instances: &[ServiceInstance], trust: Trust, read_at: Timestamp) {
        let Some(service) = self.services.get_mut(name) else {
            return;
        };
        let told = Told::Instances {
            fingerprint: fingerprint(instances),
            trust,
        };
        if !service.is_news(told) {
            return;
        }
        service.told = Some(told);
        let instances = instances.to_vec();
        self.news.push_back(Update::Service(Reading {
            service: name.clone(),
            instances,
            read_at,
            trust,
        }));
    }

    /// `Synced` waits for a service.
    fn has_to_be_read(&mut self, name: &ServiceName) {
        if let Some(unread) = self.unread.as_mut().filter(|_| !self.synced) {
            unread.insert(name.clone());
        }
    }

    /// `Synced` no longer waits for a service.
    fn settled(&mut self, name: &ServiceName) {
        if let Some(unread) = &mut self.unread {
            unread.remove(name);
        }
    }
}

impl Service {
    /// Whether telling this changes anything. Less trust in the same instances is no news.
    fn is_news(&self, next: Told) -> bool {
        match (self.told, next) {
            (Some(told), next) if told == next => false,
            (
                Some(Told::Instances { fingerprint: old, .. }),
                Told::Instances {
                    fingerprint: new,
                    trust,
                },
            ) => old != new || trust != Trust::AdditionsOnly,
            _ => true,
        }
    }

    /// Whether an answer with the same body as the last could add nothing to what was told.
    fn has_told(&self, next: Trust) -> bool {
        matches!(self.told, Some(Told::Instances { trust, .. }) if trust == next || next == Trust::AdditionsOnly)
    }
}

fn fingerprint(instances: &[ServiceInstance]) -> u64 {
    let mut hasher = xxhash_rust::xxh3::Xxh3::new();
    instances.hash(&mut hasher);
    hasher.finish()
}
