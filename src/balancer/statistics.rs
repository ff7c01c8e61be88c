//! What is counted, and how it is read. Reading changes nothing.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::clock::Timestamp;
use super::instance::{HealthStatus, InstanceId};
use super::strategy::LoadBalancingStrategy;

/// Stripes that belong to one thread at a time; the threads beyond share one more.
const STRIPES: usize = 8;

/// A counter for the hot path: a plain load and store in the stripe that belongs to the calling thread.
///
/// A locked add costs as much as the rest of a pick. The ninth thread and those after it share the last stripe and pay that.
#[derive(Debug, Default)]
pub(crate) struct Striped {
    owned: [AtomicU64; STRIPES],
    shared: AtomicU64,
}

impl Striped {
    /// Adds one. Exact under any concurrency.
    #[inline]
    pub(crate) fn increment(&self) {
        match STRIPE
            .try_with(Stripe::index)
            .ok()
            .and_then(|index| self.owned.get(index))
        {
            // No other thread writes here, so nothing is lost between the load and the store.
            Some(own) => own.store(own.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed),
            None => {
                self.shared.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// The sum over all threads.
    pub(crate) fn total(&self) -> u64 {
        let owned: u64 = self.owned.iter().map(|stripe| stripe.load(Ordering::Relaxed)).sum();
        owned + self.shared.load(Ordering::Relaxed)
    }
}

thread_local! {
    static STRIPE: Stripe = const { Stripe(Cell::new(UNCLAIMED)) };
}

/// A bit for each stripe that a thread holds.
static CLAIMED: Mutex<u8> = Mutex::new(0);

const UNCLAIMED: usize = usize::MAX;

/// The stripe of one thread, given back when the thread ends. The lock orders its last store before the next owner's first load.
struct Stripe(Cell<usize>);

impl Stripe {
    #[inline]
    fn index(&self) -> usize {
        match self.0.get() {
            UNCLAIMED => self.claim(),
            index => index,
        }
    }

    #[cold]
    fn claim(&self) -> usize {
        let mut claimed = CLAIMED.lock().unwrap_or_else(PoisonError::into_inner);
        let free = claimed.trailing_ones() as usize;
        if free < STRIPES {
            *claimed |= 1 << free;
        }
        self.0.set(free);
        free
    }
}

impl Drop for Stripe {
    fn drop(&mut self) {
        let index = self.0.get();
        if index < STRIPES {
            *CLAIMED.lock().unwrap_or_else(PoisonError::into_inner) &= !(1 << index);
        }
    }
}

/// Peak-sensitive moving average of response times, decaying with time.
///
/// Reading it `dt` after its last sample multiplies it by `e^(-dt / tau)`: an instance that is left alone looks better as
/// time passes, so that it is tried again. A sample above what would be read replaces it; a lower one is mixed in with weight
/// `1 - e^(-dt / tau)`. (Peak EWMA: Finagle, tower; tau = 10 s as in Finagle. They compare a sample with the average as it
/// was, before its decay, which takes one that got well three times as long to win back.)
///
/// Average and time share one word, so that a reader never sees half of two: `f32` seconds above, the time in ticks of
/// 2^20 ns (1.05 ms) below. Ticks wrap after 52 days; an average left alone for more than 26 days counts as fresh.
#[derive(Debug, Default)]
pub(crate) struct Ewma(AtomicU64);

/// Time constant of the decay, in seconds.
const TAU: f32 = 10.0;
const TICK_SECONDS: f32 = (1_u64 << 20) as f32 * 1e-9;

impl Ewma {
    fn unpack(word: u64) -> (f32, u32) {
        (f32::from_bits((word >> 32) as u32), word as u32)
    }

    fn ticks(now: Timestamp) -> u32 {
        (now.as_nanos() >> 20) as u32
    }

    fn decay(since: u32, now: u32) -> f32 {
        // Two threads may be a tick apart: a sample from "the future" is a sample of now.
        let ticks = (now.wrapping_sub(since) as i32).max(0);
        (-(ticks as f32) * (TICK_SECONDS / TAU)).exp()
    }

    /// The average in seconds as it counts at `now`; `None` before the first sample.
    pub(crate) fn at(&self, now: Timestamp) -> Option<f32> {
        let (seconds, since) = Self::unpack(self.0.load(Ordering::Relaxed));
        (seconds > 0.0).then(|| seconds * Self::decay(since, Self::ticks(now)))
    }

    /// Takes a sample.
    pub(crate) fn observe(&self, sample: Duration, now: Timestamp) {
        let sample = sample.as_secs_f32().clamp(1e-9, 1e9);
        let now = Self::ticks(now);
        let update = |word| {
            let (seconds, since) = Self::unpack(word);
            let decay = Self::decay(since, now);
            let seen = seconds * decay;
            let average = if sample > seen {
                sample
            } else {
                seen * decay + sample * (1.0 - decay)
            };
            Some(u64::from(average.to_bits()) << 32 | u64::from(now))
        };
        let _always = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, update);
    }
}

/// What one service has done since it was first seen.
#[derive(Clone, Debug, PartialEq)]
pub struct Statistics {
    /// How it is balanced.
    pub strategy: LoadBalancingStrategy,
    /// Picks answered with an instance.
    pub total_requests: u64,
    /// Outcomes reported.
    pub reported_requests: u64,
    /// Outcomes reported as failed.
    pub failed_requests: u64,
    /// `failed_requests / max(1, reported_requests)`, 0.0..=1.0.
    pub failure_rate: f64,
    /// Instances that can be picked.
    pub available_instances: usize,
    /// Instances registered.
    pub total_instances: usize,
    /// Each instance, by id.
    pub instances: BTreeMap<InstanceId, InstanceStatistics>,
}

/// What one instance has done. Instances of one address share these numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct InstanceStatistics {
    /// The derived status.
    pub status: HealthStatus,
    /// Whether it can be picked.
    pub available: bool,
    /// Its share of picks: weight times all factors, in steps of 1/16.
    pub effective_weight: f64,
    /// Picks of it.
    pub total_requests: u64,
    /// Outcomes reported.
    pub reported_requests: u64,
    /// Outcomes reported as failed.
    pub failed_requests: u64,
    /// Failures since the last success; a refused connection counts as two.
    pub consecutive_failures: u32,
    /// Requests in flight, as far as callers say when they end.
    pub active_connections: u32,
    /// Mean of all response times reported; zero before the first.
    pub average_response_time: Duration,
    /// The moving average by which it is judged now; `None` before the first report.
    pub response_time: Option<Duration>,
}

/// Picks that found no instance, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refusals {
    /// A source had not synced.
    pub not_synced: u64,
    /// No instance was registered.
    pub no_instances: u64,
    /// None could be picked.
    pub none_available: u64,
}

/// The leases of one service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeaseStatistics {
    /// Open now.
    pub open: usize,
    /// Expired so far: nobody said how the request ended.
    pub expired: u64,
    /// Refused so far, because too many were open.
    pub denied: u64,
}

/// Reports of one service so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReportStatistics {
    /// Taken into account; a renewal counts, too.
    pub accepted: u64,
    /// About an instance that the service does not have and had not lately.
    pub unknown_instance: u64,
    /// Without a lease, and more than there were picks.
    pub no_credit: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: f64) -> Timestamp {
        Timestamp::default() + Duration::from_secs_f64(seconds)
    }

    #[test]
    fn no_increment_is_lost_among_more_threads_than_stripes() {
        let counter = Striped::default();
        std::thread::scope(|scope| {
            for _ in 0..2 * STRIPES {
                scope.spawn(|| (0..10_000).for_each(|_| counter.increment()));
            }
        });
        assert_eq!(counter.total(), 2 * STRIPES as u64 * 10_000);
    }

    #[test]
    fn a_stripe_is_given_back_when_its_thread_ends() {
        let counter = Striped::default();
        for _ in 0..100 {
            std::thread::scope(|scope| {
                scope.spawn(|| counter.increment());
            });
        }
        assert_eq!(counter.total(), 100);
    }

    #[test]
    fn the_average_jumps_up_and_sinks_slowly() {
        let ewma = Ewma::default();
        assert_eq!(ewma.at(at(0.0)), None);
        ewma.observe(Duration::from_millis(100), at(0.0));
        ewma.observe(Duration::from_millis(400), at(0.0));
        assert_eq!(ewma.at(at(0.0)), Some(0.4));
        ewma.observe(Duration::from_millis(100), at(10.0));
        let decay = (-1.0_f32).exp();
        let expected = 0.4 * decay * decay + 0.1 * (1.0 - decay);
        assert!((ewma.at(at(10.0)).unwrap() - expected).abs() < 1e-3);
    }

    #[test]
    fn reading_decays_and_changes_nothing() {
        let ewma = Ewma::default();
        ewma.observe(Duration::from_millis(100), at(1.0));
        let early = ewma.at(at(11.0)).unwrap();
        assert!((early - 0.1 * (-1.0_f32).exp()).abs() < 1e-4, "{early}");
        assert_eq!(ewma.at(at(11.0)), Some(early));
        assert_eq!(ewma.at(at(1.0)), Some(0.1));
        assert_eq!(
            ewma.at(at(0.5)),
            Some(0.1),
            "a clock that stands still or lags is no decay"
        );
    }

    #[test]
    fn absurd_samples_stay_finite() {
        let ewma = Ewma::default();
        ewma.observe(Duration::ZERO, at(0.0));
        assert!(ewma.at(at(0.0)).unwrap() > 0.0);
        ewma.observe(Duration::MAX, at(0.0));
        assert!(ewma.at(at(0.0)).unwrap().is_finite());
    }
}
