//! One thing that Consul is asked for again and again: the catalog, or one service.
//!
//! Knows when it may be asked, at which index, and whether an answer can be believed. Does not know what the answer says:
//! of a body it keeps a fingerprint.
//!
//! ```text
//! read (no index, at once) ──► body, index N ──► long poll at N ──► index > N: believed
//!          ▲                                          │
//!          └── index < N: went back ──────────────────┤
//!          └── index = N, and early or other body ────┘   index = N, same body, in time: poll again
//! ```
//!
//! A long poll that comes back with the index it was asked at carries a body as old as the question: after the rename of an
//! instance, or a restored snapshot, that body is wrong. It is never believed, it only makes us read again.

use std::num::NonZeroU64;
use std::time::Duration;

use super::schedule::{Mode, Request, Target};
use super::wire::Head;
use crate::balancer::Timestamp;
use crate::discovery::watcher::{CONFIRM_AFTER, Trust};

/// The wait of a query's first long poll; it doubles each time one is waited out. An agent that is restarted again and
/// again leaves polls behind that Consul goes on counting, and these should be short.
pub(super) const FIRST_WAIT: Duration = Duration::from_secs(5);
/// Two questions at once, then one every quarter of a second: nothing is delayed while it is quiet, and checks that change
/// their output a hundred times a second cost a handful of answers.
const QUESTIONS: (Duration, u32) = (Duration::from_millis(250), 2);

/// What is known of one query, apart from its content.
pub(super) struct Query {
    /// The index of the last believed answer, if it had one.
    index: Option<NonZeroU64>,
    /// Whether that index is in doubt: nothing waits there until a read has told.
    doubted: bool,
    /// The number of the request that was to come next when the last answer was believed.
    answered: u64,
    /// Fingerprint of the last believed body.
    body: Option<u64>,
    /// The read in flight, by number.
    reading: Option<u64>,
    /// The long poll in flight: its number, and the index it waits at.
    poll: Option<(u64, NonZeroU64)>,
    /// When to read next; `None` while a read is in flight.
    due: Option<Timestamp>,
    /// When to read after the read in flight, which may have been answered before the news.
    again: Option<Timestamp>,
    /// The watch broke, or an index went back, and nothing has been believed since.
    gap: bool,
    /// When the second look after a gap is due.
    confirm_at: Option<Timestamp>,
    questions: Bucket,
    wait: Duration,
}

/// Whether an answer can be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It tells how things are.
    Believed {
        /// The body is the one that was believed last.
        same: bool,
    },
    /// It tells nothing new, or cannot be trusted; if need be, another read is due.
    Doubted,
}

impl Query {
    /// Nothing is known yet; due now. With a `gap`, the first reading is owed a second look.
    pub(super) fn new(gap: bool, now: Timestamp) -> Self {
        Self {
            index: None,
            doubted: false,
            answered: 0,
            body: None,
            reading: None,
            poll: None,
            due: Some(now),
            again: None,
            gap,
            confirm_at: None,
            questions: Bucket::new(QUESTIONS.0, QUESTIONS.1),
            wait: FIRST_WAIT,
        }
    }

    /// When the next read is due; `None` while one is in flight.
    pub(super) fn due(&self) -> Option<Timestamp> {
        self.due
    }

    /// Asks for a read at `at` at the latest. One in flight does not count: it may be too old.
    pub(super) fn by(&mut self, at: Timestamp) {
        let next = if self.reading.is_some() {
            &mut self.again
        } else {
            &mut self.due
        };
        *next = Some(next.map_or(at, |due| due.min(at)));
    }

    /// Starts the read that is due, if the bucket allows one; else puts it off until it does.
    pub(super) fn start_read(&mut self, number: u64, now: Timestamp) -> bool {
        if self.questions.take(now) {
            (self.reading, self.due) = (Some(number), None);
            return true;
        }
        self.due = Some(self.questions.ready_at());
        false
    }

    /// When a long poll can start: an index is known, and none is in flight.
    pub(super) fn poll_ready_at(&self) -> Option<Timestamp> {
        (self.can_be_watched() && self.poll.is_none()).then(|| self.questions.ready_at())
    }

    /// Starts a long poll, if one can start now: the index to wait at, and for how long.
    pub(super) fn start_poll(
        &mut self,
        number: u64,
        longest: Duration,
        now: Timestamp,
    ) -> Option<(NonZeroU64, Duration)> {
        let index = self.index.filter(|_| !self.doubted && self.poll.is_none())?;
        if !self.questions.take(now) {
            return None;
        }
        self.poll = Some((number, index));
        self.wait = self.wait.min(longest);
        Some((index, self.wait))
    }

    /// A request is over, whatever came of it.
    pub(super) fn landed(&mut self, number: u64) {
        if self.reading == Some(number) {
            self.reading = None;
            self.due = self.again.take();
        }
        self.poll = self.poll.filter(|(poll, _)| *poll != number);
    }

    /// Whether a long poll is in flight that will see the next change. One at an index that lies ahead sleeps through it.
    pub(super) fn is_watching(&self) -> bool {
        matches!((self.poll, self.index), (Some((_, at)), Some(index)) if at <= index)
    }

    /// Whether a long poll is in flight.
    pub(super) fn has_poll(&self) -> bool {
        self.poll.is_some()
    }

    /// Whether nothing has been believed since the watch broke, or the index went back.
    pub(super) fn has_gap(&self) -> bool {
        self.gap
    }

    /// Whether there is an index to wait at.
    pub(super) fn can_be_watched(&self) -> bool {
        self.index.is_some() && !self.doubted
    }

    /// Whether nothing is in flight.
    pub(super) fn is_idle(&self) -> bool {
        self.reading.is_none() && self.poll.is_none()
    }

    /// The connection broke, or the leader was away: indexes mean nothing any more, and the next reading is a first look.
    pub(super) fn broken(&mut self, now: Timestamp) {
        // A read from before the break is forgotten; its slot is free when it lands.
        (self.index, self.reading, self.again) = (None, None, None);
        (self.gap, self.confirm_at, self.body) = (true, None, None);
        self.due = Some(now);
    }

    /// The last answer was of no use: the next question is a read, and its answer is taken as new.
    pub(super) fn forget(&mut self) {
        (self.doubted, self.body) = (true, None);
    }

    /// Forgets the body alone.
    pub(super) fn forget_body(&mut self) {
        self.body = None;
    }

    /// Decides whether an answer can be believed. `next` is the number of the request that comes next.
    pub(super) fn judge(&mut self, request: &Request, head: &Head, body: u64, next: u64, now: Timestamp) -> Verdict {
        if let Mode::Poll { index: asked, wait } = request.mode {
            match head.index {
                Some(found) if found > asked => {}
                Some(found) if found == asked => {
                    // Early without a change: Consul restored a snapshot under us. It adds up to a sixteenth to a wait, so
                    // that one cannot always tell; the catalog is read in any case, and if it went back, so is all else.
                    // Another body: see the module's header.
                    let early = now.since(request.asked_at) < wait;
                    if early || self.body != Some(body) || request.target == Target::Catalog {
                        self.doubted = true;
                        self.by(now);
                    }
                    if !early {
                        self.wait *= 2;
                    }
                    return Verdict::Doubted;
                }
                // Reads have noticed already that the index went back: this poll only took its time.
                Some(_) if self.index.is_some_and(|index| index < asked) => return Verdict::Doubted,
                went_back => {
                    self.gap |= went_back.is_some();
                    self.doubted = true;
                    self.by(now);
                    return Verdict::Doubted;
                }
            }
        }
        if let (Some(found), Some(index)) = (head.index, self.index)
            && found < index
        {
            if self.answered > request.number {
                // Something newer was believed while this was on its way. Or the index went back: the next read tells.
                self.by(now);
                return Verdict::Doubted;
            }
            self.gap = true;
        }
        (self.index, self.doubted) = (head.index, false);
        self.answered = next;
        let same = self.body.replace(body) == Some(body);
        Verdict::Believed { same }
    }

    /// How far a believed answer can be trusted, and what follows from it. `limited`: it is known to leave things out.
    pub(super) fn trust(&mut self, limited: bool, now: Timestamp) -> Trust {
        if limited {
            return Trust::AdditionsOnly;
        }
        if self.gap {
            self.gap = false;
            self.confirm_at = Some(now + CONFIRM_AFTER);
        }
        match self.confirm_at {
            Some(at) if now < at => {
                self.by(at);
                Trust::AfterGap
            }
            _ => {
                self.confirm_at = None;
                Trust::Steady
            }
        }
    }
}

/// A rate limit: `burst` at once, then one every `interval`.
pub(super) struct Bucket {
    interval: u64,
    burst: u64,
    /// Nanoseconds at which the bucket is full again.
    full_at: u64,
}

impl Bucket {
    pub(super) fn new(interval: Duration, burst: u32) -> Self {
        let interval = (Timestamp::default() + interval).as_nanos();
        Self {
            interval,
            burst: u64::from(burst.max(1)),
            full_at: 0,
        }
    }

    /// When the next one is allowed.
    pub(super) fn ready_at(&self) -> Timestamp {
        Timestamp::from_nanos(
            self.full_at
                .saturating_sub(self.interval.saturating_mul(self.burst - 1)),
        )
    }

    /// Takes one, if it is allowed now.
    pub(super) fn take(&mut self, now: Timestamp) -> bool {
        let allowed = self.ready_at() <= now;
        if allowed {
            self.full_at = self.full_at.max(now.as_nanos()).saturating_add(self.interval);
        }
        allowed
    }

    /// Changes the rate from here on.
    pub(super) fn set_interval(&mut self, interval: Duration) {
        self.interval = (Timestamp::default() + interval).as_nanos();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: f64) -> Timestamp {
        Timestamp::default() + Duration::from_secs_f64(seconds)
    }

    #[test]
    fn a_bucket_delays_nothing_while_it_is_quiet() {
        let mut bucket = Bucket::new(Duration::from_millis(250), 2);
        assert!(bucket.take(at(10.0)) && bucket.take(at(10.0)) && !bucket.take(at(10.0)));
        assert_eq!(bucket.ready_at(), at(10.25));
        assert!(bucket.take(at(10.25)) && !bucket.take(at(10.25)));
        assert!(
            bucket.take(at(20.0)) && bucket.take(at(20.0)) && !bucket.take(at(20.1)),
            "no more than the burst is saved"
        );
    }

    #[test]
    fn a_hundred_wakes_a_second_are_four_questions() {
        let mut bucket = Bucket::new(QUESTIONS.0, QUESTIONS.1);
        let taken = (0..1000)
            .filter(|tick| bucket.take(at(f64::from(*tick) / 100.0)))
            .count();
        assert!((40..=42).contains(&taken), "{taken} in ten seconds");
    }

    #[test]
    fn a_wait_doubles_each_time_it_is_waited_out() {
        let (mut query, mut now) = (Query::new(false, at(0.0)), at(0.0));
        let head = Head {
            index: NonZeroU64::new(7),
            known_leader: true,
            last_contact: Duration::ZERO,
            filtered: false,
        };
        let mut waits = Vec::new();
        let mut number = 0;
        let mut ask = |mode| {
            number += 1;
            Request {
                number,
                target: Target::Service("web".parse().unwrap()),
                mode,
                consistency: super::super::schedule::Consistency::Stale,
                asked_at: Timestamp::default(),
                generation: 0,
            }
        };
        assert_eq!(
            query.judge(&ask(Mode::Read), &head, 1, 2, now),
            Verdict::Believed { same: false }
        );
        for _ in 0..6 {
            now = now + Duration::from_secs(100);
            let (index, wait) = query.start_poll(9, Duration::from_secs(55), now).unwrap();
            waits.push(wait.as_secs());
            let poll = ask(Mode::Poll { index, wait });
            query.landed(9);
            assert_eq!(query.judge(&poll, &head, 1, 9, now), Verdict::Doubted);
        }
        assert_eq!(waits, [5, 10, 20, 40, 55, 55]);
    }
}
