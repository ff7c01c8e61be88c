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

mod in_flight;
mod long_polls;
mod recheck;

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

pub use self::long_polls::Interest;

use self::in_flight::InFlight;
use self::long_polls::LongPolls;
use self::recheck::Recheck;
use super::answers::Answers;
use super::client::{Answer, AskError};
use super::request::{Consistency, Mode, Request, Target};
use super::settings::{ConsulSettings, MAX_WATCHES};
use crate::balancer::{ServiceName, SourceStatus, Timestamp};
use crate::discovery::watcher::{Update, WatchError};

/// Services without a long poll are read this often.
const SWEEP_EVERY: Duration = Duration::from_secs(10);
/// The catalog is read this often while no leader is known.
const LEADERLESS_EVERY: Duration = Duration::from_secs(2);

/// Joins the parts: what is known, what is in flight, which services have long polls, and when all
/// services are read again.
pub(super) struct Schedule {
    answers: Answers,
    in_flight: InFlight,
    long_polls: LongPolls,
    recheck: Recheck,
    /// The most long polls at once.
    watches: usize,
    wait: Duration,
    refresh: Duration,
    rng: fastrand::Rng,
}

impl Schedule {
    pub(super) fn new(
        settings: &ConsulSettings,
        status: Arc<SourceStatus>,
        interest: Interest,
        seed: u64,
        now: Timestamp,
    ) -> Self {
        let watches = settings.max_watches.clamp(1, MAX_WATCHES);
        let mut rng = fastrand::Rng::with_seed(seed);
        Self {
            answers: Answers::new(settings, status, rng.fork(), now),
            in_flight: InFlight::new(watches),
            long_polls: LongPolls::new(watches - 1, interest, now),
            recheck: Recheck::new(),
            watches,
            wait: settings.wait,
            refresh: settings.refresh,
            rng,
        }
    }

    /// How many services are known.
    pub(super) fn services(&self) -> usize {
        self.answers.services.len()
    }

    /// The next update to send, if there is one.
    pub(super) fn next_update(&mut self) -> Option<Update> {
        self.answers.updates.pop_front()
    }

    /// The failure of Consul as a whole, if there was one since the last call.
    pub(super) fn take_error(&mut self) -> Option<WatchError> {
        self.answers.error.take()
    }

    /// The next request to send now, if any. The request counts as sent.
    pub(super) fn request(&mut self, now: Timestamp) -> Option<Request> {
        if self.recheck.at().is_some_and(|at| at <= now) {
            self.recheck(now);
        }
        if self.long_polls.rank_at() <= now {
            self.rank(now);
        }
        self.read(now).or_else(|| self.poll(now))
    }

    /// When [`Self::request`] may have something to ask again, if no answer comes before.
    pub(super) fn wake(&self) -> Option<Timestamp> {
        let Answers { catalog, services, .. } = &self.answers;
        let timers = [
            self.recheck.at(),
            (services.len() >= self.watches).then_some(self.long_polls.rank_at()),
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
        timers
            .into_iter()
            .chain(reads.into_iter().flatten())
            .flatten()
            .chain(polls)
            .min()
    }

    /// Takes the result of a request.
    pub(super) fn take(&mut self, request: &Request, result: Result<Answer, AskError>, now: Timestamp) {
        self.in_flight.completed(request.mode);
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
    }

    fn may_read(&self) -> bool {
        self.in_flight.may_read(self.answers.sync.is_complete())
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
        if !self.may_poll() {
            return None;
        }
        let (number, longest) = (self.in_flight.next_number(), self.wait);
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
        self.answers.services.change(name, |service| {
            let query = &mut service.query;
            let will_poll = is_polled && query.can_be_watched() && !query.has_poll();
            let pause = if will_poll || query.is_watching() {
                refresh.mul_f64(0.5 + chance)
            } else {
                SWEEP_EVERY.mul_f64(0.8 + 0.2 * chance)
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

    /// Reads all services again, as far as the limits allow.
    fn recheck(&mut self, now: Timestamp) {
        let services = &mut self.answers.services;
        let watched = services
            .iter()
            .filter(|(_, service)| service.query.is_watching())
            .count();
        let due = self.recheck.take(watched, services.len() - watched, now);
        services.change_all(|service| {
            if match service.query.is_watching() {
                true => due.watched,
                false => due.unwatched,
            } {
                service.query.read_by(now);
            }
        });
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
