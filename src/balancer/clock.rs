//! Time, as an argument.
//!
//! The core never reads the system clock. Time counts from a clock's own start, so that a step of
//! the wall clock changes nothing, and tests move a [`Manual`] clock instead of sleeping.

use std::ops::Add;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A moment: nanoseconds since its clock's start. Moments of different clocks do not compare.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    /// A moment from nanoseconds since the clock's start.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the clock's start (good for 584 years).
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Time passed since `earlier`; zero if `earlier` is later than this moment.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// Whether at most `span` has passed since `earlier`. Like [`since`](Self::since) and a
    /// comparison, without a division.
    #[inline]
    pub(crate) fn is_within(self, span: Duration, earlier: Self) -> bool {
        self.0.saturating_sub(earlier.0) <= nanos(span)
    }
}

impl Add<Duration> for Timestamp {
    type Output = Self;

    fn add(self, later: Duration) -> Self {
        Self(self.0.saturating_add(nanos(later)))
    }
}

/// A duration in nanoseconds, at most 584 years.
#[inline]
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A source of time. A clock never goes backwards.
pub trait Clock: Send + Sync {
    /// The present moment.
    fn now(&self) -> Timestamp;
}

/// The machine's monotonic clock.
#[derive(Clone, Copy, Debug)]
pub struct Monotonic {
    start: Instant,
}

impl Monotonic {
    /// A clock that starts at zero, now.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the one clock that others are handed")]
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }
}

impl Clock for Monotonic {
    fn now(&self) -> Timestamp {
        Timestamp(nanos(self.start.elapsed()))
    }
}

/// A clock that moves only when told to.
#[derive(Debug, Default)]
pub struct Manual {
    now: AtomicU64,
}

impl Manual {
    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) {
        self.now.fetch_add(nanos(by), Ordering::Relaxed);
    }
}

impl Clock for Manual {
    fn now(&self) -> Timestamp {
        Timestamp(self.now.load(Ordering::Relaxed))
    }
}

/// The state of a health layer, and since when the state holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Since<T> {
    /// The state.
    pub state: T,
    /// When the state began.
    pub since: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_since_a_later_moment_is_zero() {
        let (early, late) = (Timestamp::from_nanos(5), Timestamp::from_nanos(12));
        assert_eq!(late.since(early), Duration::from_nanos(7));
        assert_eq!(early.since(late), Duration::ZERO);
        assert!(late.is_within(Duration::from_nanos(7), early) && !late.is_within(Duration::from_nanos(6), early));
        assert!(early.is_within(Duration::ZERO, late));
        assert_eq!(early + Duration::MAX, Timestamp::from_nanos(u64::MAX));
    }

    #[test]
    fn a_manual_clock_moves_when_told() {
        let clock = Manual::default();
        assert_eq!(clock.now(), Timestamp::default());
        clock.advance(Duration::from_secs(3));
        assert_eq!(clock.now().since(Timestamp::default()), Duration::from_secs(3));
    }
}
