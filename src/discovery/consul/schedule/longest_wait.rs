//! How long a long poll may wait, where a proxy in front of Consul cuts what takes longer.
//!
//! ```text
//! no limit ── polls are cut after 20 s, and Consul answers otherwise ──► 16 s at most
//!     ▲                                                                    │
//!     └── a poll of twice the time passed ◄── from time to time, one tries ┘
//! ```

use std::time::Duration;

use crate::balancer::Timestamp;

/// Consul adds up to a sixteenth to a wait.
const SHARE: f64 = 0.8;
const SHORTEST: Duration = Duration::from_secs(2);
/// The time until a longer wait is tried, and its longest. It doubles each time the try fails.
const TRY_AFTER: Duration = Duration::from_secs(300);
const LONGEST_TRY_AFTER: Duration = Duration::from_secs(3_600);

pub(super) struct LongestWait {
    /// What the configuration says.
    configured: Duration,
    /// What passes, if that is less.
    limit: Option<Duration>,
    /// A poll was cut after this time, at this time. An answer to a later request shows that Consul
    /// is there.
    suspected: Option<(Duration, Timestamp)>,
    /// The poll that tries a longer wait, and its wait.
    trial: Option<(u64, Duration)>,
    try_at: Timestamp,
    try_after: Duration,
}

impl LongestWait {
    pub(super) fn new(configured: Duration) -> Self {
        Self {
            configured,
            limit: None,
            suspected: None,
            trial: None,
            try_at: Timestamp::default(),
            try_after: TRY_AFTER,
        }
    }

    /// What passes; `None` while nothing shorter than the configured wait was cut.
    pub(super) fn limit(&self) -> Option<Duration> {
        self.limit
    }

    /// The longest wait of a poll that is sent now.
    pub(super) fn next(&self, now: Timestamp) -> Duration {
        match self.limit {
            Some(limit) if self.trial.is_none() && self.try_at <= now => (limit * 2).min(self.configured),
            Some(limit) => limit,
            None => self.configured,
        }
    }

    /// A poll is sent.
    pub(super) fn sent(&mut self, number: u64, wait: Duration) {
        if self.limit.is_some_and(|limit| wait > limit) {
            self.trial = Some((number, wait));
        }
    }

    /// A poll got no answer after this time, though it should have.
    pub(super) fn cut(&mut self, number: u64, after: Duration, now: Timestamp) {
        if self.trial.take_if(|(trial, _)| *trial == number).is_some() {
            self.try_after = (self.try_after * 2).min(LONGEST_TRY_AFTER);
            self.try_at = now + self.try_after;
        }
        let after = self.suspected.map_or(after, |(other, _)| other.min(after));
        self.suspected = Some((after, now));
    }

    /// Consul answered a request that was sent at `asked_at`. Returns whether the limit changed.
    pub(super) fn confirm(&mut self, asked_at: Timestamp, now: Timestamp) -> bool {
        let Some((cut, _)) = self.suspected.take_if(|(_, at)| *at <= asked_at) else {
            return false;
        };
        let passes = cut.mul_f64(SHARE).max(SHORTEST);
        // Polls that are cut together are not cut after exactly the same time.
        let shorter = passes < self.limit.map_or(self.configured, |limit| limit.mul_f64(0.9));
        if shorter {
            self.limit = Some(passes);
            self.try_at = self.try_at.max(now + self.try_after);
        }
        shorter
    }

    /// Consul as a whole does not answer: nothing was cut because of its wait.
    pub(super) fn forget(&mut self) {
        (self.suspected, self.trial) = (None, None);
    }

    /// A poll was answered. Returns whether the limit changed.
    pub(super) fn answered(&mut self, number: u64, after: Duration, now: Timestamp) -> bool {
        let Some((_, wait)) = self.trial.take_if(|(trial, _)| *trial == number) else {
            return false;
        };
        // An answer that came early shows nothing: the next poll tries again.
        let passed = after >= wait;
        if passed {
            self.limit = Some(wait).filter(|wait| *wait < self.configured.mul_f64(SHARE));
            (self.try_at, self.try_after) = (now, TRY_AFTER);
        }
        passed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::default() + seconds_of(seconds)
    }

    fn seconds_of(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn cut_at_20() -> LongestWait {
        let mut wait = LongestWait::new(seconds_of(55));
        wait.cut(1, seconds_of(20), at(20));
        assert_eq!(wait.next(at(20)), seconds_of(55), "not before Consul has answered");
        assert!(!wait.confirm(at(19), at(20)), "asked before");
        assert!(wait.confirm(at(20), at(20)) && !wait.confirm(at(20), at(20)));
        assert_eq!(wait.limit(), Some(seconds_of(16)));
        wait
    }

    #[test]
    fn what_is_cut_waits_for_less_and_tries_longer_from_time_to_time() {
        let mut wait = cut_at_20();
        assert_eq!(wait.next(at(21)), seconds_of(16));
        assert_eq!(wait.next(at(320)), seconds_of(32));
        wait.sent(7, seconds_of(31));
        assert_eq!(wait.next(at(320)), seconds_of(16), "one at a time");
        wait.cut(7, seconds_of(20), at(340));
        assert!(!wait.confirm(at(340), at(340)), "as before");
        assert_eq!(wait.next(at(939)), seconds_of(16));
        assert_eq!(wait.next(at(940)), seconds_of(32), "the second try comes later");
    }

    #[test]
    fn a_longer_wait_that_passes_is_used_until_there_is_no_limit() {
        let mut wait = cut_at_20();
        wait.sent(7, seconds_of(32));
        assert!(!wait.answered(7, seconds_of(5), at(325)), "early: it shows nothing");
        assert_eq!(wait.next(at(325)), seconds_of(32));
        wait.sent(8, seconds_of(32));
        assert!(wait.answered(8, seconds_of(33), at(360)));
        assert_eq!(wait.limit(), Some(seconds_of(32)));
        assert_eq!(wait.next(at(360)), seconds_of(55));
        wait.sent(9, seconds_of(53));
        assert!(wait.answered(9, seconds_of(54), at(420)));
        assert_eq!((wait.limit(), wait.next(at(420))), (None, seconds_of(55)));
    }

    #[test]
    fn a_consul_that_is_away_shortens_nothing() {
        let mut wait = LongestWait::new(seconds_of(55));
        wait.cut(1, seconds_of(20), at(20));
        wait.forget();
        assert!(!wait.confirm(at(30), at(30)));
        assert_eq!((wait.limit(), wait.next(at(30))), (None, seconds_of(55)));
    }
}
