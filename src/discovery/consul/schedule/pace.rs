//! How fast Consul lets pickd ask, learned from its refusals (429).
//!
//! A client agent of Consul with `limits { rpc_rate, rpc_max_burst }` refuses what exceeds the
//! rate, for all programs on the node together. The rate is not known, so it is measured:
//!
//! ```text
//! unlimited ── 429 ──► pause ──► measuring ── 429 ──► requests answered since / time since
//!     ▲                                                           │
//!     └── 1,000 a second reached ◄── + 25 % each 10 s without 429 ◄──┘
//! ```
//!
//! At a refusal Consul's bucket is empty. What Consul answers from there to the next refusal is what
//! has flowed in meanwhile. A refused request is not lost: it is sent again, in turn.

use std::time::Duration;

use super::super::bucket::Bucket;
use super::super::request::{READS, Request};
use super::in_flight::READS_AT_START;
use crate::balancer::Timestamp;

/// The first pause after a refusal; it doubles while nothing is answered, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// The longest pause that a server can ask for.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(60);
/// A rate is measured over so many answers, or over this time.
const ENOUGH_ANSWERS: u32 = 5;
const LONG_ENOUGH: Duration = Duration::from_secs(1);
/// A measured rate is used a little below, so that the next refusal is far.
const MARGIN: f64 = 0.95;
/// So many requests may follow at once after a late timer.
const CATCH_UP: u32 = 4;
/// A refusal never slows the reader by more than this at once: the time since the last refusal may
/// have been quiet, and then says nothing.
const STEEPEST: f64 = 0.5;
const SLOWEST: f64 = 0.5;
/// From this rate on, there is no limit.
const UNLIMITED: f64 = 1_000.0;
/// How often the rate grows while nothing is refused, and by how much.
const GROW_EVERY: Duration = Duration::from_secs(10);
const GROWTH: f64 = 1.25;
/// So many answers allow one more read at once.
const ANSWERS_PER_READ: u32 = 20;
/// The share of the rate that reads without a cause may take. The rest is for long polls, and for
/// the other programs that share the rate.
const SHARE_OF_SWEEPS: f64 = 0.5;

pub(super) struct Pace {
    /// Requests a second, once measured.
    rate: Option<f64>,
    requests: Bucket,
    /// No request is sent before.
    paused_until: Timestamp,
    pause: Duration,
    /// The last refusal that counted.
    refused_at: Option<Timestamp>,
    /// The refusal from which on the rate is measured, and the answers since.
    measured_from: Option<Timestamp>,
    answered: u32,
    grow_at: Timestamp,
    /// The most reads in flight.
    reads: usize,
    /// Answers since `reads` changed.
    smooth: u32,
}

impl Pace {
    /// No limit is known.
    pub(super) fn new() -> Self {
        Self {
            rate: None,
            requests: Bucket::new(Duration::ZERO, CATCH_UP),
            paused_until: Timestamp::default(),
            pause: FIRST_PAUSE,
            refused_at: None,
            measured_from: None,
            answered: 0,
            grow_at: Timestamp::default(),
            reads: READS_AT_START,
            smooth: 0,
        }
    }

    /// Requests a second; `None` without a limit.
    pub(super) fn rate(&self) -> Option<f64> {
        self.rate
    }

    /// Whether Consul refused requests lately: reads go first then.
    pub(super) fn is_limited(&self) -> bool {
        self.refused_at.is_some()
    }

    /// The most reads in flight at once.
    pub(super) fn reads(&self) -> usize {
        self.reads
    }

    /// When the next request may be sent.
    pub(super) fn ready_at(&self) -> Timestamp {
        let paced = self.rate.map_or(Timestamp::default(), |_| self.requests.ready_at());
        paced.max(self.paused_until)
    }

    /// The shortest time in which this many services may be read without a cause.
    pub(super) fn shortest_sweep(&self, services: usize) -> Duration {
        let seconds = self.rate.map_or(0.0, |rate| services as f64 / (rate * SHARE_OF_SWEEPS));
        Duration::from_secs_f64(seconds)
    }

    /// A request is sent.
    pub(super) fn sent(&mut self, now: Timestamp) {
        if self.rate.is_some() {
            self.requests.take(now);
        }
    }

    /// A request was answered.
    pub(super) fn answered(&mut self, now: Timestamp) {
        self.answered = self.answered.saturating_add(1);
        self.pause = FIRST_PAUSE;
        if self.reads < READS_AT_START {
            self.smooth += 1;
            if self.smooth >= ANSWERS_PER_READ {
                (self.reads, self.smooth) = (self.reads + 1, 0);
            }
        }
        if self.refused_at.is_some() && self.grow_at <= now {
            self.grow_at = now + GROW_EVERY;
            match self.rate {
                Some(rate) if rate * GROWTH < UNLIMITED => self.set_rate(rate * GROWTH),
                _ => (self.rate, self.refused_at, self.measured_from) = (None, None, None),
            }
        }
    }

    /// A request was refused. Returns whether that counts: requests that were sent before the last
    /// refusal tell nothing new.
    pub(super) fn refused(&mut self, request: &Request, retry_after: Option<Duration>, now: Timestamp) -> bool {
        if self.refused_at.is_some_and(|at| request.asked_at < at) {
            return false;
        }
        self.fewer_reads();
        self.measure(now);
        let pause = retry_after.map_or(self.pause, |asked| asked.min(LONGEST_RETRY_AFTER));
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        self.paused_until = self.paused_until.max(now + pause);
        (self.refused_at, self.grow_at) = (Some(now), now + GROW_EVERY);
        true
    }

    /// Takes the rate from the answers between two refusals, once there are enough of them.
    fn measure(&mut self, now: Timestamp) {
        if let Some(from) = self.measured_from {
            let time = now.since(from);
            if self.answered < ENOUGH_ANSWERS && time < LONG_ENOUGH {
                return;
            }
            let measured = f64::from(self.answered) / time.as_secs_f64().max(0.001) * MARGIN;
            let rate = match self.rate {
                Some(rate) => measured.clamp(rate * STEEPEST, rate),
                None => measured,
            };
            self.set_rate(rate.clamp(SLOWEST, UNLIMITED));
        }
        (self.measured_from, self.answered) = (Some(now), 0);
    }

    /// Halves the reads in flight, down to one. They grow again with good answers.
    pub(super) fn fewer_reads(&mut self) {
        (self.reads, self.smooth) = ((self.reads.min(READS) / 2).max(1), 0);
    }

    fn set_rate(&mut self, rate: f64) {
        self.requests.set_interval(Duration::from_secs_f64(1.0 / rate));
        self.rate = Some(rate);
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::request::{Consistency, Mode, Target};
    use super::*;

    fn at(seconds: f64) -> Timestamp {
        Timestamp::default() + Duration::from_secs_f64(seconds)
    }

    fn asked(asked_at: Timestamp) -> Request {
        Request {
            number: 0,
            target: Target::Catalog,
            mode: Mode::Read,
            consistency: Consistency::Stale,
            asked_at,
            generation: 0,
        }
    }

    /// Consul's own limiter.
    struct Limiter {
        rate: f64,
        burst: f64,
        tokens: f64,
        filled_at: Timestamp,
    }

    impl Limiter {
        fn new(rate: f64) -> Self {
            Self {
                rate,
                burst: rate,
                tokens: rate,
                filled_at: at(0.0),
            }
        }

        fn allows(&mut self, now: Timestamp) -> bool {
            let filled = now.since(self.filled_at).as_secs_f64() * self.rate;
            (self.tokens, self.filled_at) = ((self.tokens + filled).min(self.burst), now);
            let allowed = self.tokens >= 1.0;
            if allowed {
                self.tokens -= 1.0;
            }
            allowed
        }
    }

    /// Asks as fast as the pace allows, one request each half millisecond at most, until so many
    /// are answered. Returns the time that took, and the number of refusals.
    fn run(pace: &mut Pace, limiter: &mut Limiter, mut now: Timestamp, requests: usize) -> (Duration, usize) {
        let (started, mut answered, mut refused) = (now, 0, 0);
        while answered < requests {
            now = now.max(pace.ready_at()) + Duration::from_micros(500);
            pace.sent(now);
            if limiter.allows(now) {
                pace.answered(now);
                answered += 1;
            } else {
                pace.refused(&asked(now), None, now);
                refused += 1;
            }
        }
        (now.since(started), refused)
    }

    #[test]
    fn a_rate_is_learned_from_few_refusals_and_used_almost_in_full() {
        for rate in [5.0, 20.0, 100.0, 400.0] {
            let (mut pace, mut limiter) = (Pace::new(), Limiter::new(rate));
            let requests = (rate * 8.0) as usize;
            let (took, refused) = run(&mut pace, &mut limiter, at(100.0), requests);
            let least = 7.0;
            assert!(
                took.as_secs_f64() < least * 1.25 && refused <= 12,
                "{rate}: {took:?} of {least} s, {refused} refused"
            );
            let learned = pace.rate().unwrap();
            assert!((rate * 0.7..=rate * 1.3).contains(&learned), "{rate}: {learned}");
        }
    }

    #[test]
    fn without_a_refusal_there_is_no_pace() {
        let mut pace = Pace::new();
        for i in 0..1_000 {
            assert!(pace.ready_at() <= at(1.0));
            pace.sent(at(1.0));
            pace.answered(at(1.0 + f64::from(i)));
        }
        assert_eq!((pace.rate(), pace.reads()), (None, READS_AT_START));
        assert_eq!(pace.shortest_sweep(10_000), Duration::ZERO);
    }

    #[test]
    fn a_burst_of_refusals_counts_once_and_retry_after_is_heeded() {
        let mut pace = Pace::new();
        assert!(pace.refused(&asked(at(1.0)), Some(Duration::from_secs(7)), at(1.1)));
        assert!(!pace.refused(&asked(at(1.0)), Some(Duration::from_secs(7)), at(1.2)));
        assert_eq!((pace.ready_at(), pace.reads()), (at(8.1), 2));
        assert!(pace.refused(&asked(at(8.1)), None, at(8.2)));
        assert_eq!(pace.reads(), 1);
        assert!(pace.refused(&asked(at(20.0)), Some(Duration::from_secs(9_999)), at(20.0)));
        assert_eq!(pace.ready_at(), at(80.0), "no longer than a minute");
    }

    #[test]
    fn pauses_grow_while_nothing_is_answered() {
        let mut pace = Pace::new();
        let (mut now, mut pauses) = (at(1.0), Vec::new());
        for _ in 0..9 {
            pace.refused(&asked(now), None, now);
            pauses.push(pace.ready_at().since(now).as_millis());
            now = pace.ready_at();
        }
        assert_eq!(pauses, [100, 200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000]);
    }

    #[test]
    fn a_limit_that_is_gone_is_forgotten_after_a_while() {
        let (mut pace, mut limiter) = (Pace::new(), Limiter::new(50.0));
        run(&mut pace, &mut limiter, at(100.0), 200);
        assert!(pace.is_limited() && pace.shortest_sweep(1_000) > Duration::from_secs(30));
        for i in 0..300 {
            pace.answered(at(200.0 + f64::from(i)));
        }
        assert!(pace.rate().is_none() && !pace.is_limited());
        assert_eq!(pace.reads(), READS_AT_START);
    }

    #[test]
    fn a_quiet_time_before_a_refusal_does_not_stop_the_reader() {
        let mut pace = Pace::new();
        pace.refused(&asked(at(1.0)), None, at(1.0));
        for _ in 0..20 {
            pace.answered(at(1.1));
        }
        pace.refused(&asked(at(1.2)), None, at(1.2));
        let before = pace.rate().unwrap();
        pace.answered(at(5.0));
        pace.refused(&asked(at(9.0)), None, at(9.0));
        assert!((pace.rate().unwrap() - before * 0.5).abs() < 0.1);
    }
}
