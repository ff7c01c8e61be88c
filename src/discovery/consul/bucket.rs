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
    fn a_longer_interval_counts_from_the_next_token_on() {
        let mut bucket = Bucket::new(Duration::from_secs(2), 1);
        assert!(bucket.take(at(10.0)));
        bucket.set_interval(Duration::from_secs(7));
        assert_eq!(bucket.ready_at(), at(12.0));
        assert!(bucket.take(at(12.0)));
        assert_eq!(bucket.ready_at(), at(19.0));
    }
}
