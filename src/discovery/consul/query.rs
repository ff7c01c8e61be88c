//! One question that is sent to Consul again and again: the catalog, or the instances of one
//! service.
//!
//! Knows when to ask, at which index, and whether an answer can be accepted. Does not know what an
//! answer says: of a body, only a fingerprint is kept.
//!
//! ```text
//! read (no index, at once) ──► body, index N ──► long poll at N ──► index > N: accepted
//!          ▲                                          │  │
//!          ├── index < N: the index went back ────────┤  └──► index = N, same body, in time:
//!          └── index = N, and early or other body ────┘       poll again
//! ```
//!
//! If a long poll returns with the index that it was asked with, its body is as old as the
//! request. After an instance was renamed, or a snapshot was restored, that body is wrong. So such
//! a body is never accepted: it only makes the query read again.

use std::num::NonZeroU64;
use std::time::Duration;

use super::bucket::Bucket;
use super::request::{Mode, Request, Target};
use super::wire::Head;
use crate::balancer::Timestamp;
use crate::discovery::watcher::{CONFIRM_AFTER, Trust};

/// The wait of a query's first long poll. The wait doubles each time a poll returns unchanged.
/// Consul still counts the polls of an agent that was restarted, so these polls should be short.
pub(super) const FIRST_WAIT: Duration = Duration::from_secs(5);
/// Two requests at once, then one each interval. A quiet query is never delayed.
const BURST: u32 = 2;
/// The interval while the answers bring news.
const WHILE_CHANGING: Duration = Duration::from_millis(250);
/// The interval after an answer without news: the output of a check changed, or a poll returned at
/// once with nothing new. It doubles with each poll that returns at once with the same body ...
const WITHOUT_NEWS: Duration = Duration::from_secs(1);
/// ... up to this.
const LONGEST_INTERVAL: Duration = Duration::from_secs(15);
/// The same for the catalog while its index grows: then some service did change.
const LONGEST_OF_CATALOG: Duration = Duration::from_secs(2);
/// A poll that was answered sooner than this returned at once.
const AT_ONCE: Duration = Duration::from_secs(1);

/// What is known about one query, apart from the content of its answers.
pub(super) struct Query {
    /// The index of the last accepted answer, if that answer had an index.
    index: Option<NonZeroU64>,
    /// Whether the index is in doubt: no long poll starts before the next read is accepted.
    index_in_doubt: bool,
    /// The number that the next request had when the last answer was accepted.
    accepted_before: u64,
    /// Fingerprint of the last accepted body.
    body: Option<u64>,
    /// The number of the read in flight.
    reading: Option<u64>,
    /// The long poll in flight: its number, and the index that it waits at.
    poll: Option<(u64, NonZeroU64)>,
    /// When to read next; `None` while a read is in flight.
    due: Option<Timestamp>,
    /// When to read after the read in flight, whose answer may be older than the reason to read.
    due_after_read: Option<Timestamp>,
    /// Whether the watch was interrupted, or the index went back, and no answer was accepted
    /// since.
    gap: bool,
    /// The index of the last accepted answer that had one, also after an interruption.
    last_index: Option<NonZeroU64>,
    /// Whether the index went back, and no answer was trusted since.
    lost_memory: bool,
    /// When the first answer after a gap is confirmed by another read.
    confirm_at: Option<Timestamp>,
    requests: Bucket,
    /// The interval of `requests`.
    interval: Duration,
    wait: Duration,
}

/// Whether an answer can be accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The answer shows the present state.
    Accepted {
        /// Whether the body equals the last accepted body.
        unchanged: bool,
    },
    /// The answer has no news, or cannot be trusted. If it cannot be trusted, another read is due.
    Discarded,
}

impl Query {
    /// A query that is due now. After a `gap`, the first answer is confirmed by another read.
    pub(super) fn new(gap: bool, now: Timestamp) -> Self {
        Self {
            index: None,
            index_in_doubt: false,
            accepted_before: 0,
            body: None,
            reading: None,
            poll: None,
            due: Some(now),
            due_after_read: None,
            gap,
            last_index: None,
            lost_memory: false,
            confirm_at: None,
            requests: Bucket::new(WHILE_CHANGING, BURST),
            interval: WHILE_CHANGING,
            wait: FIRST_WAIT,
        }
    }

    /// When the next read is due; `None` while a read is in flight.
    pub(super) fn due(&self) -> Option<Timestamp> {
        self.due
    }

    /// Asks for a read at `at` or earlier. A read in flight does not count: its answer may be too
    /// old.
    pub(super) fn read_by(&mut self, at: Timestamp) {
        let next = if self.reading.is_some() {
            &mut self.due_after_read
        } else {
            &mut self.due
        };
        *next = Some(next.map_or(at, |due| due.min(at)));
    }

    /// Puts the next read off until `at`: the last one failed.
    pub(super) fn retry_at(&mut self, at: Timestamp) {
        if self.reading.is_none() {
            self.due = Some(at);
        }
    }

    /// Starts the read that is due. Above the rate limit, delays it instead and returns false.
    pub(super) fn start_read(&mut self, number: u64, now: Timestamp) -> bool {
        if self.requests.take(now) {
            (self.reading, self.due) = (Some(number), None);
            return true;
        }
        self.due = Some(self.requests.ready_at());
        false
    }

    /// When a long poll can start; `None` without an index, or while a poll is in flight.
    pub(super) fn poll_ready_at(&self) -> Option<Timestamp> {
        (self.can_be_watched() && self.poll.is_none()).then(|| self.requests.ready_at())
    }

    /// Starts a long poll, if a poll can start now. Returns the index to wait at, and how long.
    pub(super) fn start_poll(
        &mut self,
        number: u64,
        longest: Duration,
        now: Timestamp,
    ) -> Option<(NonZeroU64, Duration)> {
        let index = self.index.filter(|_| !self.index_in_doubt && self.poll.is_none())?;
        if !self.requests.take(now) {
            return None;
        }
        self.poll = Some((number, index));
        self.wait = self.wait.min(longest);
        Some((index, self.wait))
    }

    /// A request is no longer in flight, whether it was answered or failed.
    pub(super) fn completed(&mut self, number: u64) {
        if self.reading == Some(number) {
            self.reading = None;
            self.due = self.due_after_read.take();
        }
        self.poll = self.poll.filter(|(poll, _)| *poll != number);
    }

    /// Whether a long poll is in flight that will return at the next change. A poll whose index
    /// lies ahead of the present index does not return then.
    pub(super) fn is_watching(&self) -> bool {
        matches!((self.poll, self.index), (Some((_, at)), Some(index)) if at <= index)
    }

    /// Whether a long poll is in flight.
    pub(super) fn has_poll(&self) -> bool {
        self.poll.is_some()
    }

    /// Whether no answer was accepted since the watch was interrupted, or the index went back.
    pub(super) fn has_gap(&self) -> bool {
        self.gap
    }

    /// Whether there is an index to wait at.
    pub(super) fn can_be_watched(&self) -> bool {
        self.index.is_some() && !self.index_in_doubt
    }

    /// Whether no request is in flight.
    pub(super) fn is_idle(&self) -> bool {
        self.reading.is_none() && self.poll.is_none()
    }

    /// The connection failed, or the leader was away. The index means nothing any more, and the
    /// next answer is the first after a gap.
    pub(super) fn interrupted(&mut self, now: Timestamp) {
        // An older read is forgotten here. It still takes a slot until it completes.
        (self.index, self.reading, self.due_after_read) = (None, None, None);
        (self.gap, self.confirm_at, self.body) = (true, None, None);
        self.due = Some(now);
    }

    /// The last answer was of no use: the next request is a read, and its answer counts as new.
    pub(super) fn discard_answer(&mut self) {
        (self.index_in_doubt, self.body) = (true, None);
    }

    /// A long poll got no answer, though Consul is there. What the poll may have missed is read.
    pub(super) fn poll_lost(&mut self, now: Timestamp) {
        self.index_in_doubt = true;
        self.read_by(now);
    }

    /// An accepted answer had another body than the last one. `news`: what pickd uses of it has
    /// changed, too.
    pub(super) fn body_changed(&mut self, news: bool, now: Timestamp) {
        self.set_interval(if news { WHILE_CHANGING } else { WITHOUT_NEWS }, now);
    }

    /// A long poll returned early with the same body.
    fn woken_for_nothing(&mut self, request: &Request, index_grew: bool, now: Timestamp) {
        let longest = match request.target {
            Target::Catalog if index_grew => LONGEST_OF_CATALOG,
            _ => LONGEST_INTERVAL,
        };
        let next = match now.since(request.asked_at) < AT_ONCE {
            true => (self.interval * 2).clamp(WITHOUT_NEWS, longest),
            false => (self.interval / 2).max(WITHOUT_NEWS),
        };
        self.set_interval(next, now);
    }

    fn set_interval(&mut self, interval: Duration, now: Timestamp) {
        if interval != self.interval {
            self.interval = interval;
            self.requests.stretch(interval, now);
        }
    }

    /// Forgets the last body: an equal body counts as new.
    pub(super) fn forget_body(&mut self) {
        self.body = None;
    }

    /// Decides whether an answer can be accepted. `next` is the number of the next request.
    pub(super) fn judge(&mut self, request: &Request, head: &Head, body: u64, next: u64, now: Timestamp) -> Verdict {
        if let Mode::Poll { index: asked, wait } = request.mode {
            match head.index {
                Some(found) if found > asked => {}
                Some(found) if found == asked => {
                    // Early and unchanged: Consul restored a snapshot during the poll. Consul adds
                    // up to a sixteenth to a wait, so a poll may look in time all the same. That
                    // is why the catalog is read in any case: if the catalog went back, every
                    // service is read again. Another body at the same index: see the header of
                    // this file.
                    let early = now.since(request.asked_at) < wait;
                    if early || self.body != Some(body) || request.target == Target::Catalog {
                        self.index_in_doubt = true;
                        self.read_by(now);
                    }
                    if early {
                        self.woken_for_nothing(request, false, now);
                    } else {
                        self.wait *= 2;
                        self.set_interval(WHILE_CHANGING, now);
                    }
                    return Verdict::Discarded;
                }
                // A read has shown before that the index went back: this poll only took longer.
                Some(_) if self.index.is_some_and(|index| index < asked) => return Verdict::Discarded,
                went_back => {
                    self.gap |= went_back.is_some();
                    self.index_in_doubt = true;
                    self.read_by(now);
                    return Verdict::Discarded;
                }
            }
        }
        if let (Some(found), Some(index)) = (head.index, self.index)
            && found < index
        {
            if self.accepted_before > request.number {
                // A newer answer was accepted while this answer was on its way. Or the index went
                // back: the next read shows which.
                self.read_by(now);
                return Verdict::Discarded;
            }
            self.gap = true;
        }
        if head.index.is_some() {
            self.lost_memory |= head.index < self.last_index;
            self.last_index = head.index;
        }
        (self.index, self.index_in_doubt) = (head.index, false);
        self.accepted_before = next;
        let unchanged = self.body.replace(body) == Some(body);
        if unchanged && request.mode != Mode::Read {
            self.woken_for_nothing(request, true, now);
        }
        Verdict::Accepted { unchanged }
    }

    /// How far an accepted answer can be trusted, and when it is confirmed. `incomplete`: the
    /// answer is known to leave out instances.
    pub(super) fn trust(&mut self, incomplete: bool, now: Timestamp) -> Trust {
        if incomplete {
            return Trust::AdditionsOnly;
        }
        if self.gap {
            self.gap = false;
            let at = now + CONFIRM_AFTER;
            self.confirm_at = Some(at);
            self.read_by(at);
            return match std::mem::take(&mut self.lost_memory) {
                true => Trust::AfterLoss,
                false => Trust::AfterGap,
            };
        }
        match self.confirm_at {
            Some(at) if now < at => {
                self.read_by(at);
                Trust::Unconfirmed
            }
            _ => {
                self.confirm_at = None;
                Trust::Steady
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::request::Consistency;
    use super::*;

    fn at(seconds: f64) -> Timestamp {
        Timestamp::default() + Duration::from_secs_f64(seconds)
    }

    #[test]
    fn a_hundred_changes_a_second_cost_four_requests() {
        let mut bucket = Bucket::new(WHILE_CHANGING, BURST);
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
                consistency: Consistency::Stale,
                asked_at: Timestamp::default(),
                generation: 0,
            }
        };
        assert_eq!(
            query.judge(&ask(Mode::Read), &head, 1, 2, now),
            Verdict::Accepted { unchanged: false }
        );
        for _ in 0..6 {
            now = now + Duration::from_secs(100);
            let (index, wait) = query.start_poll(9, Duration::from_secs(55), now).unwrap();
            waits.push(wait.as_secs());
            let poll = ask(Mode::Poll { index, wait });
            query.completed(9);
            assert_eq!(query.judge(&poll, &head, 1, 9, now), Verdict::Discarded);
        }
        assert_eq!(waits, [5, 10, 20, 40, 55, 55]);
    }
}
