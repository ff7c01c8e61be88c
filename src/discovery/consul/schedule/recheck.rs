//! When all services are read again because the catalog's long poll returned.
//!
//! The catalog does not say which service changed, so each may have. Buckets limit what that
//! costs: one for the services with a long poll, which mostly see the change themselves, and one
//! for the others.

use std::time::Duration;

use super::super::bucket::Bucket;
use crate::balancer::Timestamp;

/// How long the services' own long polls have to return first.
const DELAY: Duration = Duration::from_millis(100);
/// Services with a long poll are read again for the few changes that a poll misses: twice at once,
/// then each 30 s.
const WATCHED: (Duration, u32) = (Duration::from_secs(30), 2);
/// Services without a long poll are read again each 2 s ...
const UNWATCHED: Duration = Duration::from_secs(2);
/// ... and at most 200 of them a second.
const UNWATCHED_EACH: Duration = Duration::from_millis(5);

pub(super) struct Recheck {
    at: Option<Timestamp>,
    watched: Bucket,
    unwatched: Bucket,
}

/// The services that are read again now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Due {
    /// Those with a long poll in flight.
    pub(super) watched: bool,
    /// Those without.
    pub(super) unwatched: bool,
}

impl Recheck {
    pub(super) fn new() -> Self {
        Self {
            at: None,
            watched: Bucket::new(WATCHED.0, WATCHED.1),
            unwatched: Bucket::new(UNWATCHED, 1),
        }
    }

    /// When the services are read again, if that is planned.
    pub(super) fn at(&self) -> Option<Timestamp> {
        self.at
    }

    /// The catalog changed: plans to read the services again.
    pub(super) fn plan(&mut self, now: Timestamp) {
        let at = now + DELAY;
        self.at = Some(self.at.map_or(at, |planned| planned.min(at)));
    }

    /// Decides which services are read again now. What the buckets do not allow now is planned for
    /// later. `watched` and `unwatched` count the services with and without a long poll in flight.
    /// Those without are not read more often than each `shortest`.
    pub(super) fn take(&mut self, watched: usize, unwatched: usize, shortest: Duration, now: Timestamp) -> Due {
        let services = u32::try_from(watched + unwatched).unwrap_or(u32::MAX);
        self.unwatched
            .set_interval(UNWATCHED.max(UNWATCHED_EACH * services).max(shortest));
        let due = Due {
            watched: watched > 0 && self.watched.take(now),
            unwatched: unwatched > 0 && self.unwatched.take(now),
        };
        let later = [
            (watched > 0 && !due.watched).then(|| self.watched.ready_at()),
            (unwatched > 0 && !due.unwatched).then(|| self.unwatched.ready_at()),
        ];
        self.at = later.into_iter().flatten().min();
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: f64) -> Timestamp {
        Timestamp::default() + Duration::from_secs_f64(seconds)
    }

    fn due(watched: bool, unwatched: bool) -> Due {
        Due { watched, unwatched }
    }

    #[test]
    fn watched_services_are_read_twice_at_once_then_every_half_minute() {
        let mut recheck = Recheck::new();
        recheck.plan(at(1.0));
        recheck.plan(at(1.05));
        assert_eq!(recheck.at(), Some(at(1.1)), "the first change counts");
        assert_eq!(recheck.take(3, 0, Duration::ZERO, at(1.1)), due(true, false));
        assert_eq!(recheck.at(), None);
        assert_eq!(recheck.take(3, 0, Duration::ZERO, at(2.0)), due(true, false));
        assert_eq!(recheck.take(3, 0, Duration::ZERO, at(3.0)), due(false, false));
        assert_eq!(recheck.at(), Some(at(31.1)), "made up for when the bucket allows");
        assert_eq!(recheck.take(3, 0, Duration::ZERO, at(31.1)), due(true, false));
    }

    #[test]
    fn many_services_without_a_long_poll_are_read_more_rarely() {
        let mut recheck = Recheck::new();
        assert_eq!(recheck.take(0, 10, Duration::ZERO, at(1.0)), due(false, true));
        assert_eq!(recheck.take(0, 10, Duration::ZERO, at(2.0)), due(false, false));
        assert_eq!(recheck.at(), Some(at(3.0)));
        assert_eq!(recheck.take(0, 2_000, Duration::ZERO, at(3.0)), due(false, true));
        assert_eq!(recheck.take(0, 2_000, Duration::ZERO, at(12.9)), due(false, false));
        assert_eq!(recheck.at(), Some(at(13.0)), "2,000 services at 200 a second");
    }
}
