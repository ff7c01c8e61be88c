//! How many requests are in flight, and how many more may start.
//!
//! Reads and long polls have limits of their own, and one limit for both together: `watches` +
//! [`READS`].

use std::collections::BTreeSet;

use super::super::request::{Mode, READS, Request};

/// During the first sync, reads may also use what the long polls do not use, up to this many.
pub(super) const READS_AT_START: usize = 8;

pub(super) struct InFlight {
    /// The most long polls at once.
    watches: usize,
    /// The number of the next request.
    next: u64,
    reads: usize,
    /// The numbers of the long polls.
    polls: BTreeSet<u64>,
}

impl InFlight {
    pub(super) fn new(watches: usize) -> Self {
        Self {
            watches,
            next: 0,
            reads: 0,
            polls: BTreeSet::new(),
        }
    }

    /// Changes the most long polls at once. Long polls above that go on until they are answered.
    pub(super) fn set_watches(&mut self, watches: usize) {
        self.watches = watches;
    }

    /// The long polls in flight.
    pub(super) fn polls(&self) -> usize {
        self.polls.len()
    }

    /// How many requests may start besides those in flight.
    pub(super) fn room(&self) -> usize {
        (self.watches + READS).saturating_sub(self.polls.len() + self.reads)
    }

    /// Whether no request is in flight.
    pub(super) fn is_empty(&self) -> bool {
        self.reads == 0 && self.polls.is_empty()
    }

    /// Whether a long poll with a lower number is in flight.
    pub(super) fn has_poll_before(&self, number: u64) -> bool {
        self.polls.first().is_some_and(|first| *first < number)
    }

    /// The number of the next request.
    pub(super) fn next_number(&self) -> u64 {
        self.next
    }

    /// Counts a request that is sent now, and returns its number.
    pub(super) fn sent(&mut self, mode: Mode) -> u64 {
        let number = self.next;
        self.next += 1;
        match mode {
            Mode::Read => self.reads += 1,
            Mode::Poll { .. } => {
                self.polls.insert(number);
            }
        }
        number
    }

    /// Counts a request that was answered or failed.
    pub(super) fn completed(&mut self, request: &Request) {
        match request.mode {
            Mode::Read => self.reads = self.reads.saturating_sub(1),
            Mode::Poll { .. } => {
                self.polls.remove(&request.number);
            }
        }
    }

    /// Whether a read may start, if there may be at most so many reads.
    pub(super) fn may_read(&self, synced: bool, limit: usize) -> bool {
        let free = self.watches.saturating_sub(self.polls.len());
        let most = match synced {
            true => READS,
            false => READS_AT_START.min(READS + free),
        };
        self.reads < most.min(limit)
    }

    /// Whether a long poll of the catalog may start.
    pub(super) fn may_poll(&self) -> bool {
        let polls = self.polls.len();
        polls < self.watches && polls + self.reads < self.watches + READS
    }

    /// Whether a long poll of a service may start. One long poll is kept free for the catalog.
    pub(super) fn may_poll_service(&self, catalog_has_poll: bool) -> bool {
        self.may_poll() && (self.polls.len() + 1 < self.watches || catalog_has_poll)
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;
    use std::time::Duration;

    use super::super::super::request::{Consistency, Target};
    use super::*;
    use crate::balancer::Timestamp;

    const POLL: Mode = Mode::Poll {
        index: NonZeroU64::MIN,
        wait: Duration::ZERO,
    };

    fn request(number: u64, mode: Mode) -> Request {
        Request {
            number,
            target: Target::Catalog,
            mode,
            consistency: Consistency::Stale,
            asked_at: Timestamp::default(),
            generation: 0,
        }
    }

    #[test]
    fn reads_and_polls_stay_within_their_limits_and_the_sum() {
        let mut requests = InFlight::new(3);
        assert_eq!((requests.sent(POLL), requests.sent(Mode::Read)), (0, 1));
        assert_eq!(requests.next_number(), 2);
        assert!(requests.may_poll_service(false));
        requests.sent(POLL);
        assert!(!requests.may_poll_service(false) && requests.may_poll_service(true));
        requests.sent(POLL);
        assert!(!requests.may_poll());
        for _ in 0..3 {
            assert!(requests.may_read(true, 8));
            requests.sent(Mode::Read);
        }
        assert!(!requests.may_read(true, 8) && !requests.may_read(false, 8));
        assert_eq!(requests.room(), 0);
        requests.completed(&request(0, POLL));
        assert_eq!(requests.room(), 1);
        assert!(requests.may_poll() && !requests.may_read(true, 8) && requests.may_read(false, 8));
        requests.sent(Mode::Read);
        assert!(!requests.may_read(false, 8));
        requests.sent(Mode::Read);
        assert!(!requests.may_poll(), "the sum counts, too");
        assert!(requests.may_read(false, 8) == requests.may_read(false, 6) && !requests.may_read(false, 5));
    }

    #[test]
    fn polls_above_a_lower_limit_go_on_and_are_not_followed() {
        let mut requests = InFlight::new(4);
        for _ in 0..4 {
            requests.sent(POLL);
        }
        requests.set_watches(2);
        assert!(
            requests.may_read(false, 8),
            "at least the reads that are always allowed"
        );
        for number in 0..2 {
            requests.completed(&request(number, POLL));
            assert!(!requests.may_poll());
        }
        assert!(requests.has_poll_before(4) && !requests.has_poll_before(2));
        requests.completed(&request(2, POLL));
        assert!(requests.may_poll() && requests.polls() == 1 && !requests.is_empty());
    }
}
