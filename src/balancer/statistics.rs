//! Counters of picks, outcomes, leases and reports, and the statistics made from them. Reading
//! changes nothing.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::clock::Timestamp;
use super::config::LoadBalancingStrategy;
use super::error::ReportError;
use super::health::layers::{Layers, UnavailableReason};
use super::instance::{HealthStatus, InstanceId};

/// Number of rows that belong to a single thread at a time. All further threads share one more
/// row.
const STRIPES: usize = 8;

/// The picks of each member of one view, counted by a plain load and store in a row that belongs
/// to the calling thread.
///
/// A locked add costs as much as a strategy. The ninth thread and those after it share the last
/// row and pay that cost. Rows are in separate cache lines, so that no thread waits for a line
/// that another thread writes. The rows of a large view fit into the cache next to the processor;
/// the live state of 10,000 addresses does not.
///
/// ```text
///             member 0  member 1  ...
/// thread 0        17        16
/// thread 1         3         5
/// ...
/// shared           0         0
/// ```
#[derive(Debug)]
pub(crate) struct PickCounts {
    lines: Box<[Line]>,
    lines_a_row: usize,
    /// Picks of each member that were taken so far. Only one writer at a time uses this field.
    taken: Box<[AtomicU64]>,
}

/// A cache line: the unit that processors exchange.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Line([AtomicU64; LINE]);

const LINE: usize = 8;

impl PickCounts {
    pub(crate) fn new(members: usize) -> Self {
        let lines_a_row = members.div_ceil(LINE);
        let rows = STRIPES + 1;
        Self {
            lines: (0..rows * lines_a_row).map(|_| Line::default()).collect(),
            lines_a_row,
            taken: (0..members).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Counts a pick of a member. Exact under any concurrency.
    #[inline]
    pub(crate) fn increment(&self, member: u32) {
        let row = STRIPE.try_with(Stripe::index).unwrap_or(STRIPES);
        let Some(count) = self.count(row, member as usize) else {
            return;
        };
        if row < STRIPES {
            // No other thread writes this counter, so no increment is lost between the load and the
            // store.
            count.store(count.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        } else {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Calls `add` with the picks of each member since the last call. Only one caller at a time.
    pub(crate) fn take(&self, mut add: impl FnMut(usize, u64)) {
        for (member, taken) in self.taken.iter().enumerate() {
            let counts = (0..=STRIPES).filter_map(|row| self.count(row, member));
            let total: u64 = counts.map(|count| count.load(Ordering::Relaxed)).sum();
            let before = taken.swap(total, Ordering::Relaxed);
            if total != before {
                add(member, total.wrapping_sub(before));
            }
        }
    }

    #[inline]
    fn count(&self, row: usize, member: usize) -> Option<&AtomicU64> {
        let line = self.lines.get(row * self.lines_a_row + member / LINE)?;
        line.0.get(member % LINE)
    }
}

thread_local! {
    static STRIPE: Stripe = const { Stripe(Cell::new(UNCLAIMED)) };
}

/// A bit for each row that belongs to a thread.
static CLAIMED: Mutex<u8> = Mutex::new(0);

const UNCLAIMED: usize = usize::MAX;

/// The row of a thread, released when the thread ends. The lock orders the last store of a thread
/// before the first load of the row's next owner.
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
/// Reading the average `dt` after its last sample multiplies it by `e^(-dt / tau)`: an instance
/// without new samples looks better as time passes, and is picked again. A sample above the
/// decayed average replaces it; a lower sample is mixed in with weight `1 - e^(-dt / tau)`. (Peak
/// EWMA: Finagle, tower; tau = 10 s as in Finagle. Finagle and tower compare a sample with the
/// average before its decay, so that an instance that recovered takes three times as long to win
/// back its share.)
///
/// Average and time share one word, so that a reader never sees parts of two samples: `f32`
/// seconds above, the time in ticks of 2^20 ns (1.05 ms) below. Ticks wrap after 52 days; an
/// average without a sample for more than 26 days counts as fresh.
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
        // Two threads may be a tick apart: a sample from the future counts as a sample of now.
        let ticks = (now.wrapping_sub(since) as i32).max(0);
        (-(ticks as f32) * (TICK_SECONDS / TAU)).exp()
    }

    /// The decayed average at `now`, in seconds; `None` before the first sample.
    pub(crate) fn at(&self, now: Timestamp) -> Option<f32> {
        let (seconds, since) = Self::unpack(self.0.load(Ordering::Relaxed));
        (seconds > 0.0).then(|| seconds * Self::decay(since, Self::ticks(now)))
    }

    /// Records a sample.
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

/// Statistics of one service since the service was first seen.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Statistics {
    /// The strategy of the service.
    pub strategy: LoadBalancingStrategy,
    /// Picks that found an instance.
    pub total_requests: u64,
    /// Outcomes reported.
    pub reported_requests: u64,
    /// Outcomes reported as failed.
    pub failed_requests: u64,
    /// Outcomes reported with a response time.
    pub timed_requests: u64,
    /// The sum of all response times reported.
    pub total_response_time: Duration,
    /// `failed_requests / max(1, reported_requests)`, 0.0..=1.0.
    pub failure_rate: f64,
    /// Instances that can be picked.
    pub available_instances: usize,
    /// Instances registered.
    pub total_instances: usize,
    /// Each instance, by id.
    pub instances: BTreeMap<InstanceId, InstanceStatistics>,
}

/// Statistics of one instance. Instances at the same address share these numbers.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct InstanceStatistics {
    /// The derived status.
    pub status: HealthStatus,
    /// Whether the instance can be picked, once its [tier](super::Tier) is in turn.
    pub available: bool,
    /// Whether the tier of the instance is in turn: no lower tier can be picked.
    pub in_turn: bool,
    /// The state of each health layer.
    pub layers: Layers,
    /// Why the instance cannot be picked; empty if the instance can be picked.
    pub unavailable_reasons: Vec<UnavailableReason>,
    /// Whether the registration flaps: more than five changes within a minute.
    pub flapping: bool,
    /// The share of picks: weight times all factors, in steps of 1/16. 0 while the tier of the
    /// instance is not in turn.
    pub effective_weight: f64,
    /// The factor of adaptive weights; `None` while they do not apply.
    pub adaptive_factor: Option<f64>,
    /// Picks of the instance.
    pub total_requests: u64,
    /// Outcomes reported.
    pub reported_requests: u64,
    /// Outcomes reported as failed.
    pub failed_requests: u64,
    /// Failures since the last success; a refused connection counts as two.
    pub consecutive_failures: u32,
    /// Requests in flight: acquired or leased, and not finished.
    pub active_connections: u32,
    /// Outcomes reported with a response time.
    pub timed_requests: u64,
    /// The sum of all response times reported.
    pub total_response_time: Duration,
    /// The response time of the last outcome that had one; `None` before the first.
    pub last_response_time: Option<Duration>,
    /// Mean of all response times reported; zero before the first.
    pub average_response_time: Duration,
    /// The moving average of response times, decayed to now; `None` before the first report.
    pub response_time: Option<Duration>,
}

/// Picks that found no instance, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refusals {
    /// A source had not synced.
    pub not_synced: u64,
    /// No instance was registered.
    pub no_instances: u64,
    /// Instances were registered, and none had the requested port.
    pub unknown_port: u64,
    /// Instances were registered, and none could be picked.
    pub none_available: u64,
}

/// Results of active checks of one service so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CheckStatistics {
    /// Checks that passed.
    pub passed: u64,
    /// Checks that failed.
    pub failed: u64,
}

/// Leases of one service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeaseStatistics {
    /// Leases that are open now.
    pub open: usize,
    /// Leases that expired so far, without a report.
    pub expired: u64,
    /// Leases refused so far, because too many were open.
    pub denied: u64,
}

/// Sticky sessions of one service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionStatistics {
    /// Sessions that the table holds now.
    pub open: usize,
    /// Sessions that moved so far, because their instance could not be picked any more.
    pub moved: u64,
    /// Sessions that left the table so far, because `max_sessions` others were used since.
    pub evicted: u64,
    /// Session tokens so far that the session key did not sign for the service.
    pub rejected_tokens: u64,
}

/// Reports of one service so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReportStatistics {
    /// Reports accepted, including renewals.
    pub accepted: u64,
    /// Reports about an instance that is not registered and was not registered a short time ago.
    pub unknown_instance: u64,
    /// Reports without a lease beyond the number of picks.
    pub no_credit: u64,
}

/// Counters of leases and reports of one service. Written under the lock of the lease table, or by
/// reports of the service.
#[derive(Debug, Default)]
pub(crate) struct LeaseCounts {
    pub(crate) open: AtomicUsize,
    pub(crate) expired: AtomicU64,
    pub(crate) denied: AtomicU64,
    pub(crate) accepted: AtomicU64,
    pub(crate) unknown_instance: AtomicU64,
    pub(crate) no_credit: AtomicU64,
}

impl LeaseCounts {
    /// Counts a report by its result.
    pub(crate) fn reported<T>(&self, result: &Result<T, ReportError>) {
        let counter = match result {
            Ok(_) => &self.accepted,
            Err(ReportError::NoCredit) => &self.no_credit,
            Err(ReportError::UnknownInstance) => &self.unknown_instance,
            // The report is not known to be about this service.
            Err(ReportError::UnknownLease | ReportError::UnknownService) => return,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn leases(&self) -> LeaseStatistics {
        LeaseStatistics {
            open: self.open.load(Ordering::Relaxed),
            expired: self.expired.load(Ordering::Relaxed),
            denied: self.denied.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn reports(&self) -> ReportStatistics {
        ReportStatistics {
            accepted: self.accepted.load(Ordering::Relaxed),
            unknown_instance: self.unknown_instance.load(Ordering::Relaxed),
            no_credit: self.no_credit.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(counts: &PickCounts) -> Vec<u64> {
        let mut taken = vec![0; counts.taken.len()];
        counts.take(|member, picks| taken[member] = picks);
        taken
    }

    fn at(seconds: f64) -> Timestamp {
        Timestamp::default() + Duration::from_secs_f64(seconds)
    }

    #[test]
    fn no_increment_is_lost_among_more_threads_than_stripes() {
        let counts = PickCounts::new(10);
        std::thread::scope(|scope| {
            for _ in 0..2 * STRIPES {
                scope.spawn(|| (0..10_000).for_each(|pick| counts.increment(pick % 10)));
            }
        });
        assert_eq!(taken(&counts), [2 * STRIPES as u64 * 1_000; 10]);
    }

    #[test]
    fn a_stripe_is_given_back_when_its_thread_ends() {
        let counts = PickCounts::new(1);
        for _ in 0..100 {
            std::thread::scope(|scope| {
                scope.spawn(|| counts.increment(0));
            });
        }
        assert_eq!(taken(&counts), [100]);
    }

    #[test]
    fn picks_are_taken_once() {
        let counts = PickCounts::new(9);
        (0..9).chain(0..5).for_each(|member| counts.increment(member));
        assert_eq!(taken(&counts), [2, 2, 2, 2, 2, 1, 1, 1, 1]);
        counts.increment(8);
        assert_eq!(taken(&counts), [0, 0, 0, 0, 0, 0, 0, 0, 1]);
        PickCounts::new(0).increment(0);
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
