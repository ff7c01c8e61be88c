//! What to ask Consul next, given what is known and what is in flight.
//!
//! Pure: no sockets, no clock, no tasks. The watcher asks [`Schedule::request`] until there is nothing to ask, waits for an
//! answer or for [`Schedule::wake`], and hands answers to [`Schedule::take`] (in `answers.rs`).
//!
//! ```text
//!               ┌─ reads: at once, 4 at a time ── first look, second look after a gap, every 90 s ± 50 %, every 10 s
//! Schedule ─────┤                                 where no poll watches, and whatever is in doubt
//!               └─ long polls: up to 64 ───────── the catalog, and the services that are picked most
//! ```
//!
//! A long poll that has been sent is never given up: Consul would go on counting it. When Consul as a whole cannot be asked,
//! the catalog alone is tried until it answers; then everything is read anew.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use super::query::{Bucket, Query};
use super::settings::{MAX_WATCHES, Names, Settings};
use crate::balancer::{ServiceName, SourceStatus, Timestamp};
use crate::discovery::watcher::{Trust, Update, WatchError};

/// Reads at once.
pub(super) const READS: usize = 4;
/// Until everything has been told once, reads also use what long polls leave free.
const READS_AT_START: usize = 8;
/// Services without a long poll are read this often.
pub(super) const SWEEP_EVERY: Duration = Duration::from_secs(10);
/// The catalog is read this often while no leader is known.
const LEADERLESS_EVERY: Duration = Duration::from_secs(2);
/// How often the services with long polls are chosen anew.
const RANK_EVERY: Duration = Duration::from_secs(10);
/// After the catalog woke for an unknown reason, the long polls get this long to tell theirs first.
const WALK_AFTER: Duration = Duration::from_millis(100);
/// Re-reading what has a long poll anyway, for the few things a poll sleeps through: twice at once, then so often.
const WALK_WATCHED: (Duration, u32) = (Duration::from_secs(30), 2);
/// Re-reading what has no long poll: this often, and at most 200 reads a second.
const WALK_UNWATCHED: (Duration, Duration) = (Duration::from_secs(2), Duration::from_millis(5));

/// How many picks a service has had so far.
pub type Interest = Arc<dyn Fn(&ServiceName) -> u64 + Send + Sync>;

/// One question.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Request {
    /// Counts up.
    pub(super) number: u64,
    pub(super) target: Target,
    pub(super) mode: Mode,
    pub(super) consistency: Consistency,
    pub(super) asked_at: Timestamp,
    /// Which unbroken stretch of talking to Consul it belongs to.
    pub(super) generation: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Catalog,
    Service(ServiceName),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Answered at once.
    Read,
    /// Answered when the index has passed `index`, or `wait` is over.
    Poll { index: NonZeroU64, wait: Duration },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Consistency {
    /// From any server.
    Stale,
    /// From the leader.
    Default,
}

/// One service.
pub(super) struct Service {
    pub(super) query: Query,
    /// Its place in the queue of reads.
    queued: Option<Timestamp>,
    /// Fingerprint of its tags in the catalog.
    pub(super) tags: u64,
    /// Whether the catalog lists it.
    pub(super) listed: bool,
    /// The catalog did not list it the last time, but leaves things out: its own answer decides.
    pub(super) missing: bool,
    pub(super) told: Option<Told>,
    /// It answered with nothing: how that reading would be told, if a catalog asked for later agrees.
    pub(super) doubt: Option<Doubt>,
    /// How often in a row it was listed, yet empty.
    pub(super) hidden: u32,
    /// How often in a row its answer could not be understood.
    pub(super) failures: u32,
    /// Whether Consul said that its answer leaves things out.
    pub(super) filtered: bool,
    /// Entries left out of its last answer.
    pub(super) skipped: usize,
    picks: u64,
    heat: u64,
}

/// What was said last about a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Instances { fingerprint: u64, trust: Trust },
    Gone(Trust),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Doubt {
    /// Catalog requests from this number on can settle it.
    pub(super) from: u64,
    pub(super) trust: Trust,
    pub(super) read_at: Timestamp,
}

/// While no leader is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leader {
    Known,
    /// Away; `asked`: the one question to the leader itself has been sent.
    Away {
        asked: bool,
    },
}

/// All that is known, and what to do next.
pub(super) struct Schedule {
    pub(super) names: Names,
    pub(super) status: Arc<SourceStatus>,
    interest: Interest,
    watches: usize,
    wait: Duration,
    pub(super) refresh: Duration,
    pub(super) max_stale: Duration,
    rng: fastrand::Rng,

    /// The number of the next request.
    pub(super) number: u64,
    pub(super) generation: u64,
    /// In flight.
    pub(super) reads: usize,
    pub(super) polls: usize,
    /// Nothing but the catalog is asked until it has answered.
    pub(super) probing: bool,
    pub(super) leader: Leader,
    /// Until then, everything is asked of the leader: the servers beside us lag.
    pub(super) ask_leader_until: Option<Timestamp>,

    pub(super) catalog: Query,
    /// Whether the catalog leaves out what the token may not see.
    pub(super) filtered: bool,
    /// Names in the catalog that no service can have here.
    pub(super) unusable: BTreeSet<String>,
    pub(super) services: BTreeMap<ServiceName, Service>,
    /// Services by when their next read is due.
    queue: BTreeSet<(Timestamp, ServiceName)>,
    /// Services that are no longer listed and not yet forgotten.
    pub(super) leaving: BTreeSet<ServiceName>,
    /// Services in doubt.
    pub(super) doubted: BTreeSet<ServiceName>,
    /// Services that get a long poll.
    wanted: BTreeSet<ServiceName>,
    rank_at: Timestamp,
    walk_at: Option<Timestamp>,
    walk_watched: Bucket,
    walk_unwatched: Bucket,

    /// Services that have to be read before everything has been told once; `None` before the catalog is known.
    pub(super) unread: Option<BTreeSet<ServiceName>>,
    pub(super) synced: bool,
    pub(super) news: VecDeque<Update>,
    pub(super) trouble: Option<WatchError>,
}

impl Schedule {
    pub(super) fn new(
        settings: &Settings,
        status: Arc<SourceStatus>,
        interest: Interest,
        seed: u64,
        now: Timestamp,
    ) -> Self {
        Self {
            names: settings.services.clone(),
            status,
            interest,
            watches: settings.max_watches.clamp(1, MAX_WATCHES),
            wait: settings.wait,
            refresh: settings.refresh,
            max_stale: settings.max_stale,
            rng: fastrand::Rng::with_seed(seed),
            number: 0,
            generation: 0,
            reads: 0,
            polls: 0,
            probing: true,
            leader: Leader::Known,
            ask_leader_until: None,
            catalog: Query::new(true, now),
            filtered: false,
            unusable: BTreeSet::new(),
            services: BTreeMap::new(),
            queue: BTreeSet::new(),
            leaving: BTreeSet::new(),
            doubted: BTreeSet::new(),
            wanted: BTreeSet::new(),
            rank_at: now,
            walk_at: None,
            walk_watched: Bucket::new(WALK_WATCHED.0, WALK_WATCHED.1),
            walk_unwatched: Bucket::new(WALK_UNWATCHED.0, 1),
            unread: None,
            synced: false,
            news: VecDeque::new(),
            trouble: None,
        }
    }

    /// The next question to send now, if any. What is returned counts as sent.
    pub(super) fn request(&mut self, now: Timestamp) -> Option<Request> {
        if self.walk_at.is_some_and(|at| at <= now) {
            self.walk(now);
        }
        if self.rank_at <= now {
            self.rank(now);
        }
        self.read(now).or_else(|| self.poll(now))
    }

    /// When [`Self::request`] may have something to ask again, if no answer comes before.
    pub(super) fn wake(&self) -> Option<Timestamp> {
        let timers = [
            self.walk_at,
            (self.services.len() >= self.watches).then_some(self.rank_at),
        ];
        let reads = (self.reads < self.max_reads()).then(|| {
            let first = self.queue.first().filter(|_| !self.probing).map(|(at, _)| *at);
            [self.catalog.due(), first]
        });
        let services = self.wanted.iter().filter(|_| self.may_poll_services());
        let polls = services
            .filter_map(|name| {
                self.services
                    .get(name)
                    .filter(|service| service.listed)?
                    .query
                    .poll_ready_at()
            })
            .chain(self.catalog.poll_ready_at().filter(|_| self.may_poll()));
        timers
            .into_iter()
            .chain(reads.into_iter().flatten())
            .flatten()
            .chain(polls)
            .min()
    }

    /// Never more than `watches` + [`READS`] requests in all.
    fn max_reads(&self) -> usize {
        let free = self.watches.saturating_sub(self.polls);
        if self.synced {
            READS
        } else {
            READS_AT_START.min(READS + free)
        }
    }

    /// Whether a long poll can start, for the catalog at least.
    fn may_poll(&self) -> bool {
        !self.probing && self.polls < self.watches && self.polls + self.reads < self.watches + READS
    }

    /// The same for a service: one long poll is kept for the catalog.
    fn may_poll_services(&self) -> bool {
        self.may_poll() && (self.polls + 1 < self.watches || self.catalog.has_poll())
    }

    fn read(&mut self, now: Timestamp) -> Option<Request> {
        if self.reads >= self.max_reads() {
            return None;
        }
        if self.catalog.due().is_some_and(|due| due <= now) && self.catalog.start_read(self.number, now) {
            let mut request = self.send(Target::Catalog, Mode::Read, now);
            if let Leader::Away { asked: asked @ false } = &mut self.leader {
                *asked = true;
                request.consistency = Consistency::Default;
            }
            return Some(request);
        }
        while !self.probing {
            let (due, name) = self.queue.first()?;
            if *due > now {
                return None;
            }
            let name = name.clone();
            let number = self.number;
            let started = self.services.get_mut(&name)?.query.start_read(number, now);
            self.requeue(&name);
            if started {
                return Some(self.send(Target::Service(name), Mode::Read, now));
            }
        }
        None
    }

    fn poll(&mut self, now: Timestamp) -> Option<Request> {
        if !self.may_poll() {
            return None;
        }
        if let Some((index, wait)) = self.catalog.start_poll(self.number, self.wait, now) {
            return Some(self.send_poll(Target::Catalog, index, wait, now));
        }
        if !self.may_poll_services() {
            return None;
        }
        for name in &self.wanted {
            let Some(service) = self.services.get_mut(name).filter(|service| service.listed) else {
                continue;
            };
            if let Some((index, wait)) = service.query.start_poll(self.number, self.wait, now) {
                let name = name.clone();
                return Some(self.send_poll(Target::Service(name), index, wait, now));
            }
        }
        None
    }

    fn send_poll(&mut self, target: Target, index: NonZeroU64, wait: Duration, now: Timestamp) -> Request {
        // Ten thousand agents that were started together should not ask together for ever.
        let wait = wait.mul_f64(0.9 + 0.1 * self.rng.f64());
        // To the millisecond, as it is sent: an answer before that is early.
        let wait = Duration::from_millis(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
        self.send(target, Mode::Poll { index, wait }, now)
    }

    fn send(&mut self, target: Target, mode: Mode, now: Timestamp) -> Request {
        match mode {
            Mode::Read => self.reads += 1,
            Mode::Poll { .. } => self.polls += 1,
        }
        let number = self.number;
        self.number += 1;
        let consistency = if self.asks_leader(now) {
            Consistency::Default
        } else {
            Consistency::Stale
        };
        Request {
            number,
            target,
            mode,
            consistency,
            asked_at: now,
            generation: self.generation,
        }
    }

    /// Whether everything is asked of the leader at present.
    pub(super) fn asks_leader(&self, now: Timestamp) -> bool {
        self.ask_leader_until.is_some_and(|until| now < until)
    }

    /// Puts a service where its due time belongs. To be called after anything that may have changed it.
    pub(super) fn requeue(&mut self, name: &ServiceName) {
        let Some(service) = self.services.get_mut(name) else {
            return;
        };
        let due = service.query.due().filter(|_| service.listed);
        if service.queued == due {
            return;
        }
        if let Some(at) = service.queued {
            self.queue.remove(&(at, name.clone()));
        }
        if let Some(at) = due {
            self.queue.insert((at, name.clone()));
        }
        service.queued = due;
    }

    /// Takes a service up.
    pub(super) fn add(&mut self, name: ServiceName, tags: u64, gap: bool, now: Timestamp) {
        let service = Service {
            query: Query::new(gap, now),
            queued: None,
            tags,
            listed: true,
            missing: false,
            told: None,
            doubt: None,
            hidden: 0,
            failures: 0,
            filtered: false,
            skipped: 0,
            picks: (self.interest)(&name),
            heat: 0,
        };
        if self.wanted.len() + 1 < self.watches {
            self.wanted.insert(name.clone());
        }
        self.services.insert(name.clone(), service);
        self.requeue(&name);
    }

    /// Forgets a service that has left, once nothing is in flight for it and nothing is left to be said.
    pub(super) fn forget(&mut self, name: &ServiceName) {
        let over = |service: &Service| {
            let told = matches!(service.told, None | Some(Told::Gone(Trust::Steady)));
            !service.listed && told && service.query.is_idle()
        };
        if self.services.get(name).is_some_and(over) {
            self.services.remove(name);
            self.leaving.remove(name);
        }
    }

    /// Sets when a service is read next if nothing happens before: soon enough where no long poll watches it.
    pub(super) fn rest(&mut self, name: &ServiceName, now: Timestamp) {
        let Some(service) = self.services.get_mut(name) else {
            return;
        };
        let will_poll = self.wanted.contains(name) && service.query.can_be_watched() && !service.query.has_poll();
        let pause = if will_poll || service.query.is_watching() {
            self.refresh.mul_f64(0.5 + self.rng.f64())
        } else {
            SWEEP_EVERY.mul_f64(0.8 + 0.2 * self.rng.f64())
        };
        service.query.by(now + pause);
    }

    /// The same for the catalog.
    pub(super) fn rest_catalog(&mut self, now: Timestamp) {
        let pause = match self.leader {
            Leader::Away { .. } => LEADERLESS_EVERY,
            Leader::Known if self.catalog.can_be_watched() => self.refresh,
            Leader::Known => SWEEP_EVERY,
        };
        self.catalog.by(now + pause.mul_f64(0.5 + self.rng.f64()));
    }

    /// A delay that grows with each failure in a row, up to a minute; half of it is chance.
    pub(super) fn retry_delay(&mut self, failures: u32) -> Duration {
        let full = Duration::from_secs(1 << failures.saturating_sub(1).min(6)).min(Duration::from_secs(60));
        full.mul_f64(0.5 + 0.5 * self.rng.f64())
    }

    /// The catalog woke, and what happened is not to be seen in it: every service is worth a look, within limits.
    pub(super) fn plan_walk(&mut self, now: Timestamp) {
        let at = now + WALK_AFTER;
        self.walk_at = Some(self.walk_at.map_or(at, |planned| planned.min(at)));
    }

    fn walk(&mut self, now: Timestamp) {
        let (gap, per_service) = WALK_UNWATCHED;
        let services = u32::try_from(self.services.len()).unwrap_or(u32::MAX);
        self.walk_unwatched.set_interval(gap.max(per_service * services));
        let (mut watched, mut unwatched) = (false, false);
        for service in self.services.values() {
            match service.query.is_watching() {
                true => watched = true,
                false => unwatched = true,
            }
        }
        let (read_watched, read_unwatched) = (
            watched && self.walk_watched.take(now),
            unwatched && self.walk_unwatched.take(now),
        );
        let names: Vec<_> = self.services.keys().cloned().collect();
        for name in names {
            let Some(service) = self.services.get_mut(&name) else {
                continue;
            };
            if if service.query.is_watching() {
                read_watched
            } else {
                read_unwatched
            } {
                service.query.by(now);
                self.requeue(&name);
            }
        }
        // What was not allowed now is made up for when it is.
        let later = [
            (watched && !read_watched).then(|| self.walk_watched.ready_at()),
            (unwatched && !read_unwatched).then(|| self.walk_unwatched.ready_at()),
        ];
        self.walk_at = later.into_iter().flatten().min();
    }

    /// Chooses who gets a long poll: the most picked of late, then the most picked ever.
    fn rank(&mut self, now: Timestamp) {
        self.rank_at = now + RANK_EVERY;
        let slots = self.watches - 1;
        let mut ranked = Vec::with_capacity(self.services.len());
        for (name, service) in &mut self.services {
            let picks = (self.interest)(name);
            service.heat = service.heat / 2 + picks.saturating_sub(service.picks);
            service.picks = picks;
            if service.listed {
                ranked.push((service.heat, picks, name.clone()));
            }
        }
        if ranked.len() > slots {
            // Ties by name, so that the choice stays what it is while nobody picks.
            ranked.sort_unstable_by(|a, b| (b.0, b.1).cmp(&(a.0, a.1)).then_with(|| a.2.cmp(&b.2)));
            ranked.truncate(slots);
        }
        let wanted: BTreeSet<_> = ranked.into_iter().map(|(_, _, name)| name).collect();
        let dropped: Vec<_> = self.wanted.difference(&wanted).cloned().collect();
        self.wanted = wanted;
        for name in dropped {
            self.rest(&name, now);
            self.requeue(&name);
        }
    }
}

#[cfg(test)]
mod tests;
