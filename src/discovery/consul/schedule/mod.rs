//! What to ask Consul next, given what is known and what is in flight.
//!
//! Pure: no sockets, no clock, no tasks. The watcher calls [`Schedule::request`] until there is
//! nothing to ask, waits for an answer or until [`Schedule::wake`], and hands answers to
//! [`Schedule::take`].
//!
//! ```text
//!            ┌─ reads: at once, 4 at a time ── first read, confirmation after a gap,
//! Schedule ──┤                                 every 90 s ± 50 %, every 10 s without a long poll,
//!            │                                 and at once after a doubtful answer
//!            └─ long polls: up to 64 ───────── the catalog, and the most picked services
//! ```
//!
//! A long poll in flight is never cancelled, because Consul would still count it. If Consul as a
//! whole cannot be asked, only the catalog is tried until it answers. Then everything is read
//! again.
//!
//! What Consul and the way to Consul do not bear is learned, and heeded until it bears more: the
//! requests a second (`pace`), the connections (`room`), and how long a poll may wait
//! (`longest_wait`).

mod in_flight;
mod long_polls;
mod longest_wait;
mod pace;
mod recheck;
mod room;
mod suspicion;

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

pub use self::long_polls::Interest;

use self::in_flight::InFlight;
use self::long_polls::LongPolls;
use self::longest_wait::LongestWait;
use self::pace::Pace;
use self::recheck::Recheck;
use self::room::Room;
use self::suspicion::Suspicion;
use super::answers::{Answers, Outcome, SHORTEST_CUT};
use super::client::{Answer, AskError};
use super::request::{Consistency, Mode, Request, Target};
use super::settings::{ConsulSettings, MAX_WATCHES};
use crate::balancer::{ServiceName, Source, SourceLimits, SourceStatus, Timestamp};
use crate::discovery::watcher::{Reason, Update, WatchError};

/// Services without a long poll are read this often.
const SWEEP_EVERY: Duration = Duration::from_secs(10);
/// The catalog is read this often while no leader is known.
const LEADERLESS_EVERY: Duration = Duration::from_secs(2);

/// Joins the parts: what is known, what is in flight, which services have long polls, and when all
/// services are read again.
pub(super) struct Schedule {
    source: Source,
    answers: Answers,
    in_flight: InFlight,
    long_polls: LongPolls,
    recheck: Recheck,
    pace: Pace,
    room: Room,
    longest_wait: LongestWait,
    suspicion: Option<Suspicion>,
    refresh: Duration,
    rng: fastrand::Rng,
}

impl Schedule {
    /// `testable`: whether connections to Consul can be opened only to see if there is room.
    pub(super) fn new(
        settings: &ConsulSettings,
        status: Arc<SourceStatus>,
        interest: Interest,
        testable: bool,
        seed: u64,
        now: Timestamp,
    ) -> Self {
        let room = Room::new(settings.max_watches.clamp(1, MAX_WATCHES), testable);
        let watches = room.polls();
        let mut rng = fastrand::Rng::with_seed(seed);
        let schedule = Self {
            source: status.source(),
            answers: Answers::new(settings, status, rng.fork(), now),
            in_flight: InFlight::new(watches),
            long_polls: LongPolls::new(watches - 1, interest, now),
            recheck: Recheck::new(),
            pace: Pace::new(),
            room,
            longest_wait: LongestWait::new(settings.wait),
            suspicion: None,
            refresh: settings.refresh,
            rng,
        };
        schedule.publish_limits();
        schedule
    }

    /// How many services are known.
    pub(super) fn services(&self) -> usize {
        self.answers.services.len()
    }

    /// The next update to send, if there is one.
    pub(super) fn next_update(&mut self) -> Option<Update> {
        self.answers.updates.pop_front()
    }

    /// Whether [`Self::take_error`] returns one.
    pub(super) fn has_error(&self) -> bool {
        self.answers.error.is_some()
    }

    /// The failure of Consul as a whole, if there was one since the last call.
    pub(super) fn take_error(&mut self) -> Option<WatchError> {
        self.answers.error.take()
    }

    /// How many connections to open now and to close again, to see whether Consul has room for
    /// more long polls. The result goes to [`Self::take_room`].
    pub(super) fn room_to_test(&mut self, now: Timestamp) -> Option<usize> {
        if self.answers.catalog_only || self.suspicion.is_some() {
            return None;
        }
        let before = self.room.polls();
        let connections = self.room.test(self.wanted_polls(), now);
        if self.room.polls() != before {
            self.apply_room(now);
        }
        connections
    }

    /// How many connections requests may open besides those that are in use.
    pub(super) fn connections_to_come(&self) -> usize {
        self.in_flight.room()
    }

    /// Takes the result of a test: whether all connections stayed open.
    pub(super) fn take_room(&mut self, free: bool, now: Timestamp) {
        let before = self.room.polls();
        self.room.tested(free, now);
        if self.room.polls() != before {
            tracing::debug!(source = %self.source, long_polls = self.room.polls(), free, "number of long polls changed");
            self.apply_room(now);
        }
    }

    /// The next request to send now, if any. The request counts as sent.
    pub(super) fn request(&mut self, now: Timestamp) -> Option<Request> {
        if self.suspicion.as_ref().is_some_and(|suspicion| suspicion.until <= now) {
            self.resolve_suspicion(false, now);
        }
        if self.recheck.at().is_some_and(|at| at <= now) {
            self.recheck(now);
        }
        if self.long_polls.rank_at() <= now {
            self.rank(now);
        }
        if self.pace.ready_at() > now {
            return None;
        }
        let request = self.read(now).or_else(|| self.poll(now))?;
        self.pace.sent(now);
        Some(request)
    }

    /// When [`Self::request`] may have something to ask again, if no answer comes before.
    pub(super) fn wake(&self) -> Option<Timestamp> {
        let Answers { catalog, services, .. } = &self.answers;
        let timers = [
            self.recheck.at(),
            (services.len() >= self.room.polls()).then_some(self.long_polls.rank_at()),
            self.suspicion.as_ref().map(|suspicion| suspicion.until),
            (!self.answers.catalog_only && self.suspicion.is_none())
                .then(|| self.room.test_at(self.wanted_polls()))
                .flatten(),
        ];
        let reads = self.may_read().then(|| {
            let first = services.next_read().filter(|_| !self.answers.catalog_only);
            [catalog.due(), first.map(|(due, _)| due)]
        });
        let polls = self
            .long_polls
            .polled()
            .filter(|_| self.may_poll_service())
            .filter_map(|name| self.service_poll_ready_at(name))
            .chain(catalog.poll_ready_at().filter(|_| self.may_poll()));
        let requests = reads.into_iter().flatten().flatten().chain(polls).min();
        timers
            .into_iter()
            .flatten()
            .chain(requests.map(|at| at.max(self.pace.ready_at())))
            .min()
    }

    /// Takes the result of a request.
    pub(super) fn take(&mut self, request: &Request, result: Result<Answer, AskError>, now: Timestamp) {
        self.in_flight.completed(request);
        let next = self.in_flight.next_number();
        let followup = self.answers.take(request, result, next, now);
        for name in &followup.added {
            self.long_polls.add(name);
        }
        if followup.catalog_changed {
            self.recheck.plan(now);
        }
        if followup.catalog_read {
            self.plan_catalog_read(now);
        }
        if let Target::Service(name) = &request.target {
            self.plan_read(name, now);
        }
        if self.answers.error.is_some() {
            self.longest_wait.forget();
            self.suspicion = None;
        }
        self.learn(request, followup.outcome, now);
    }

    /// Learns from a result what Consul and the way to Consul bear.
    fn learn(&mut self, request: &Request, outcome: Outcome, now: Timestamp) {
        let after = now.since(request.asked_at);
        match outcome {
            Outcome::Nothing => {}
            Outcome::Answered => {
                self.pace.answered(now);
                if self.suspicion.is_some() {
                    self.resolve_suspicion(true, now);
                }
                let longer = self.longest_wait.answered(request.number, after, now);
                let shorter = request.target == Target::Catalog && self.longest_wait.confirm(request.asked_at, now);
                if let (true, Some(limit)) = (longer || shorter, self.longest_wait.limit()) {
                    tracing::info!(source = %self.source, seconds = limit.as_secs_f64(),
                        "long polls are cut on their way, so they wait no longer than this");
                }
            }
            Outcome::Refused { retry_after } => {
                if self.pace.refused(request, retry_after, now) {
                    tracing::debug!(source = %self.source, rate = self.pace.rate(), "requests refused with 429, asking more slowly");
                }
            }
            Outcome::RefusedAlone => self.pace = Pace::new(),
            Outcome::Crowded => self.crowded(now),
            Outcome::Cut { after } => self.longest_wait.cut(request.number, after, now),
            Outcome::Closed { detail } => {
                let next = self.in_flight.next_number();
                let suspicion = self.suspicion.get_or_insert_with(|| Suspicion::new(detail, next, now));
                if request.mode != Mode::Read && after >= SHORTEST_CUT {
                    self.longest_wait.cut(request.number, after, now);
                } else {
                    suspicion.at_once = true;
                }
                self.answers.catalog.read_by(now);
                if self.in_flight.is_empty() {
                    self.resolve_suspicion(false, now);
                }
            }
        }
        self.publish_limits();
    }

    /// Decides what a closed connection means. `answered`: Consul has answered since.
    fn resolve_suspicion(&mut self, answered: bool, now: Timestamp) {
        let Some(suspicion) = self.suspicion.take() else { return };
        if !answered && !self.in_flight.has_poll_before(suspicion.next) {
            self.longest_wait.forget();
            self.answers.interrupted(Reason::Unreachable, suspicion.detail, now);
        } else if suspicion.at_once {
            self.answers.status.count_error(Reason::Throttled.as_str());
            self.crowded(now);
        }
    }

    /// Consul has too many connections from this address.
    fn crowded(&mut self, now: Timestamp) {
        self.pace.fewer_reads();
        // While earlier polls run out, Consul still has as many connections as before.
        if self.in_flight.polls() <= self.room.polls() {
            self.room.halve(now);
            tracing::warn!(source = %self.source, long_polls = self.room.polls(),
                "connections refused, maybe too many from this address: fewer long polls");
            self.apply_room(now);
        }
    }

    fn apply_room(&mut self, now: Timestamp) {
        let polls = self.room.polls();
        self.in_flight.set_watches(polls);
        self.long_polls.set_slots(polls - 1, now);
        self.publish_limits();
    }

    fn publish_limits(&self) {
        let limits = SourceLimits::new(self.room.polls(), self.longest_wait.limit(), self.pace.rate());
        self.answers.status.set_limits(limits);
    }

    /// The polls that would be in use without a limit: one for each service, and the catalog's.
    fn wanted_polls(&self) -> usize {
        self.answers.services.len() + 1
    }

    /// Whether long polls wait until all due reads are sent: while requests are refused, what is
    /// not read yet comes first.
    fn reads_go_first(&self, now: Timestamp) -> bool {
        let services = &self.answers.services;
        self.pace.is_limited()
            && !self.answers.sync.is_complete()
            && services.next_read().is_some_and(|(due, _)| due <= now)
    }

    fn may_read(&self) -> bool {
        self.in_flight
            .may_read(self.answers.sync.is_complete(), self.pace.reads())
    }

    fn may_poll(&self) -> bool {
        !self.answers.catalog_only && self.in_flight.may_poll()
    }

    fn may_poll_service(&self) -> bool {
        let catalog_has_poll = self.answers.catalog.has_poll();
        !self.answers.catalog_only && self.in_flight.may_poll_service(catalog_has_poll)
    }

    fn service_poll_ready_at(&self, name: &ServiceName) -> Option<Timestamp> {
        let service = self.answers.services.get(name).filter(|service| service.listed)?;
        service.query.poll_ready_at()
    }

    fn read(&mut self, now: Timestamp) -> Option<Request> {
        if !self.may_read() {
            return None;
        }
        let number = self.in_flight.next_number();
        let catalog = &mut self.answers.catalog;
        if catalog.due().is_some_and(|due| due <= now) && catalog.start_read(number, now) {
            let mut request = self.send(Target::Catalog, Mode::Read, now);
            if self.answers.leader.take_direct_read() {
                request.consistency = Consistency::Default;
            }
            return Some(request);
        }
        while !self.answers.catalog_only {
            let services = &mut self.answers.services;
            let (due, name) = services.next_read()?;
            if due > now {
                return None;
            }
            let name = name.clone();
            if services.change(&name, |service| service.query.start_read(number, now))? {
                return Some(self.send(Target::Service(name), Mode::Read, now));
            }
        }
        None
    }

    fn poll(&mut self, now: Timestamp) -> Option<Request> {
        if !self.may_poll() || self.reads_go_first(now) {
            return None;
        }
        let (number, longest) = (self.in_flight.next_number(), self.longest_wait.next(now));
        if let Some((index, wait)) = self.answers.catalog.start_poll(number, longest, now) {
            return Some(self.send_poll(Target::Catalog, index, wait, now));
        }
        if !self.may_poll_service() {
            return None;
        }
        let is_ready = |name: &&ServiceName| self.service_poll_ready_at(name).is_some_and(|at| at <= now);
        let name = self.long_polls.polled().find(is_ready)?.clone();
        let services = &mut self.answers.services;
        let (index, wait) = services.change(&name, |service| service.query.start_poll(number, longest, now))??;
        Some(self.send_poll(Target::Service(name), index, wait, now))
    }

    fn send_poll(&mut self, target: Target, index: NonZeroU64, wait: Duration, now: Timestamp) -> Request {
        // The polls of ten thousand agents that were started together drift apart.
        let wait = wait.mul_f64(0.9 + 0.1 * self.rng.f64());
        // In whole milliseconds, as in the request: an answer that comes sooner is early.
        let wait = Duration::from_millis(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
        self.longest_wait.sent(self.in_flight.next_number(), wait);
        self.send(target, Mode::Poll { index, wait }, now)
    }

    fn send(&mut self, target: Target, mode: Mode, now: Timestamp) -> Request {
        Request {
            number: self.in_flight.sent(mode),
            target,
            mode,
            consistency: self.answers.leader.consistency(now),
            asked_at: now,
            generation: self.answers.generation,
        }
    }

    /// Plans the next read of a service, for the case that nothing happens before. Without a long
    /// poll, that read comes soon.
    fn plan_read(&mut self, name: &ServiceName, now: Timestamp) {
        let is_polled = self.long_polls.is_polled(name);
        let (refresh, chance) = (self.refresh, self.rng.f64());
        let sweep = SWEEP_EVERY.max(self.pace.shortest_sweep(self.answers.services.len()));
        self.answers.services.change(name, |service| {
            if service.failures > 0 {
                // Its next read is planned by its failures.
                return;
            }
            let query = &mut service.query;
            let will_poll = is_polled && query.can_be_watched() && !query.has_poll();
            let pause = if will_poll || query.is_watching() {
                refresh.mul_f64(0.5 + chance)
            } else {
                sweep.mul_f64(0.8 + 0.2 * chance)
            };
            query.read_by(now + pause);
        });
    }

    fn plan_catalog_read(&mut self, now: Timestamp) {
        let catalog = &mut self.answers.catalog;
        let pause = if !self.answers.leader.is_known() {
            LEADERLESS_EVERY
        } else if catalog.can_be_watched() {
            self.refresh
        } else {
            SWEEP_EVERY
        };
        catalog.read_by(now + pause.mul_f64(0.5 + self.rng.f64()));
    }

    /// Reads all services again, as far as the limits allow. Those that fail are read when their
    /// next try is due.
    fn recheck(&mut self, now: Timestamp) {
        let services = self.answers.services.iter();
        let (watched, unwatched): (Vec<_>, Vec<_>) = services
            .filter(|(_, service)| service.failures == 0)
            .map(|(name, service)| (name.clone(), service.query.is_watching() || self.has_next_poll(name)))
            .partition(|(_, watched)| *watched);
        let shortest = self.pace.shortest_sweep(unwatched.len());
        let due = self.recheck.take(watched.len(), unwatched.len(), shortest, now);
        let watched = watched.iter().filter(|_| due.watched);
        let unwatched = unwatched.iter().filter(|_| due.unwatched);
        for (name, _) in watched.chain(unwatched) {
            self.answers.services.change(name, |service| service.query.read_by(now));
        }
    }

    /// Whether a service has a long poll as soon as its rate allows. That poll shows all that
    /// changes until then.
    fn has_next_poll(&self, name: &ServiceName) -> bool {
        self.long_polls.is_polled(name) && self.service_poll_ready_at(name).is_some()
    }

    /// Chooses the services with long polls again.
    fn rank(&mut self, now: Timestamp) {
        let services = self.answers.services.iter();
        let listed = services.map(|(name, service)| (name, service.listed));
        for name in self.long_polls.rank(listed, now) {
            self.plan_read(&name, now);
        }
    }
}

#[cfg(test)]
mod tests;
