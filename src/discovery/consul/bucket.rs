//! A token bucket: some requests at once, then a fixed rate.

use std::time::Duration;

use crate::balancer::Timestamp;

/// A rate limit: `burst` at once, then one each `interval`.
pub(super) struct Bucket {
    interval: u64,
    burst: u64,
    /// The time in nanoseconds at which the bucket is full again.
    full_at: u64,
}

impl Bucket {
    /// A full bucket.
    pub(super) fn new(interval: Duration, burst: u32) -> Self {
        Self {
            interval: nanoseconds(interval),
            burst: u64::from(burst.max(1)),
            full_at: 0,
        }
    }

    /// When the next token is there.
    pub(super) fn ready_at(&self) -> Timestamp {
        Timestamp::from_nanos(
            self.full_at
                .saturating_sub(self.interval.saturating_mul(self.burst - 1)),
        )
    }

    /// Takes a token, and returns whether there was one.
    pub(super) fn take(&mut self, now: Timestamp) -> bool {
        let allowed = self.ready_at() <= now;
        if allowed {
            self.full_at = self.full_at.max(now.as_nanos()).saturating_add(self.interval);
        }
        allowed
    }

    /// Changes the rate, and keeps the tokens that are there now.
    pub(super) fn stretch(&mut self, interval: Duration, now: Timestamp) {
        let interval = nanoseconds(interval);
        let missing = u128::from(self.full_at.saturating_sub(now.as_nanos()));
        let filled_in = missing * u128::from(interval) / u128::from(self.interval.max(1));
        self.full_at = now
            .as_nanos()
            .saturating_add(u64::try_from(filled_in).unwrap_or(u64::MAX));
        self.interval = interval;
    }

    /// Changes the rate for all tokens that are not taken yet.
    pub(super) fn set_interval(&mut self, interval: Duration) {
        self.interval = nanoseconds(interval);
    }
}

fn nanoseconds(interval: Duration) -> u64 {
    (Timestamp::default() + interval).as_nanos()
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
    fn a_stretched_bucket_keeps_the_tokens_that_it_has() {
        let mut bucket = Bucket::new(Duration::from_secs(1), 2);
        assert!(bucket.take(at(10.0)) && bucket.take(at(10.0)));
        bucket.stretch(Duration::from_secs(10), at(10.5));
        assert_eq!(bucket.ready_at(), at(15.5), "half of the first token is there");
        bucket.stretch(Duration::from_secs(1), at(15.5));
        assert_eq!(bucket.ready_at(), at(15.5));
        assert!(bucket.take(at(15.5)) && !bucket.take(at(15.5)));
        bucket.stretch(Duration::from_secs(5), at(100.0));
        assert!(bucket.take(at(100.0)) && bucket.take(at(100.0)) && !bucket.take(at(104.9)));
    }

    #[test]
    fn a_longer_interval_counts_from_the_next_token_on() {
        let mut bucket = Bucket::new(Duration::from_secs(2), 1);
        assert!(bucket.take(at(10.0)));
        bucket.set_interval(Duration::from_secs(7));
        assert_eq!(bucket.ready_at(), at(12.0));
        assert!(bucket.take(at(12.0)));
        assert_eq!(bucket.ready_at(), at(19.0));
    }
}
