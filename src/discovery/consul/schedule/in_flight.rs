//! How many requests are in flight, and how many more may start.
//!
//! Reads and long polls have limits of their own, and one limit for both together: `watches` +
//! [`READS`].

use super::super::request::{Mode, READS};

/// During the first sync, reads may also use what the long polls do not use, up to this many.
const READS_AT_START: usize = 8;

pub(super) struct InFlight {
    /// The most long polls at once.
    watches: usize,
    /// The number of the next request.
    next: u64,
    reads: usize,
    polls: usize,
}

impl InFlight {
    pub(super) fn new(watches: usize) -> Self {
        Self {
            watches,
            next: 0,
            reads: 0,
            polls: 0,
        }
    }

    /// The number of the next request.
    pub(super) fn next_number(&self) -> u64 {
        self.next
    }

    /// Counts a request that is sent now, and returns its number.
    pub(super) fn sent(&mut self, mode: Mode) -> u64 {
        *self.count(mode) += 1;
        let number = self.next;
        self.next += 1;
        number
    }

    /// Counts a request that was answered or failed.
    pub(super) fn completed(&mut self, mode: Mode) {
        let count = self.count(mode);
        *count = count.saturating_sub(1);
    }

    /// Whether a read may start.
    pub(super) fn may_read(&self, synced: bool) -> bool {
        let free = self.watches.saturating_sub(self.polls);
        let most = match synced {
            true => READS,
            false => READS_AT_START.min(READS + free),
        };
        self.reads < most
    }

    /// Whether a long poll of the catalog may start.
    pub(super) fn may_poll(&self) -> bool {
        self.polls < self.watches && self.polls + self.reads < self.watches + READS
    }

    /// Whether a long poll of a service may start. One long poll is kept free for the catalog.
    pub(super) fn may_poll_service(&self, catalog_has_poll: bool) -> bool {
        self.may_poll() && (self.polls + 1 < self.watches || catalog_has_poll)
    }

    fn count(&mut self, mode: Mode) -> &mut usize {
        match mode {
            Mode::Read => &mut self.reads,
            Mode::Poll { .. } => &mut self.polls,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;
    use std::time::Duration;

    use super::*;

    const POLL: Mode = Mode::Poll {
        index: NonZeroU64::MIN,
        wait: Duration::ZERO,
    };

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
            assert!(requests.may_read(true));
            requests.sent(Mode::Read);
        }
        assert!(!requests.may_read(true) && !requests.may_read(false));
        requests.completed(POLL);
        assert!(requests.may_poll() && !requests.may_read(true) && requests.may_read(false));
        requests.sent(Mode::Read);
        assert!(!requests.may_read(false));
        requests.sent(Mode::Read);
        assert!(!requests.may_poll(), "the sum counts, too");
    }
}
