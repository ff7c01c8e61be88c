//! Live state of one address, and of a service as a whole. Live state outlives views.
//!
//! The fields are relaxed atomics: each number is exact, and numbers read together may be of
//! slightly different moments. The local health layers must be of one moment, and are behind a
//! lock, made with the first check or outcome. Picks never take that lock: they read the
//! [`Admission`], which is derived from the layers.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use super::adaptive::{Counts, SeedTotals, Tracked};
use super::clock::{Clock, Timestamp, nanos};
use super::config::{LoadBalancerConfig, LoadBalancingStrategy};
use super::health::address::{AddressHealth, Step};
use super::health::breaker::Trial;
use super::health::checks::Check;
use super::health::ejection::{AddressStatus, Admission};
use super::health::flapping::{CALM_CHANGES, LEAST_SLOW_START, RegistryChanges};
use super::health::slow_start;
use super::outcome::Outcome;
use super::report_credit::Credit;
use super::statistics::{Ewma, LeaseCounts};
use super::sync::{CountU32, CountU64};

/// Live state of one address: counters, averages, local health.
#[derive(Debug, Default)]
pub(crate) struct Live {
    /// Picks that views have added: see `View::flush_picks`.
    pub(crate) picks: AtomicU64,
    in_flight: CountU32,
    pub(crate) consecutive_failures: AtomicU32,
    pub(crate) reported: AtomicU64,
    pub(crate) failed: AtomicU64,
    /// Number of outcomes with a latency.
    pub(crate) timed: AtomicU64,
    pub(crate) latency_nanos: AtomicU64,
    /// The last response time that was reported; see `timed` for whether there is any.
    last_latency_nanos: AtomicU64,
    ewma: Ewma,
    /// Time in nanoseconds of the last pick by `least_response_time`.
    picked_at: AtomicU64,
    /// Credit for reports without a lease.
    pub(crate) credit: Credit,
    /// Number of registered instances at this address. Only writers write this field.
    instances: AtomicU32,
    /// Number of eligible instances at this address in the present view. Only writers write this
    /// field.
    eligible: AtomicU32,
    /// An [`Admission`].
    admission: AtomicU8,
    /// Time in nanoseconds at which the trial of the present half-open state was let through; 0 =
    /// no trial.
    trial_since: AtomicU64,
    /// Time in nanoseconds at which the slow start began; 0 = no slow start.
    ramp_from: AtomicU64,
    /// Whether the address flapped when that slow start began.
    ramp_is_damped: AtomicBool,
    /// Changes in the registry. `None` before the first.
    registry_changes: OnceLock<Box<Mutex<RegistryChanges>>>,
    /// Recent latency, as the bits of `f32` seconds; 0 before the first sample.
    recent_latency: AtomicU32,
    health: OnceLock<Box<Mutex<AddressHealth>>>,
    /// The state of adaptive weights. `None` before their first round or check.
    adaptive: OnceLock<Box<Mutex<Tracked>>>,
}

/// The state changes of one address, and the time of the next one.
pub(crate) struct Advanced {
    pub(crate) steps: [Option<Step>; 2],
    /// `None` if no state changes with time.
    pub(crate) next: Option<Timestamp>,
}

impl Live {
    /// The present admission of the address.
    #[inline]
    pub(crate) fn admission(&self) -> Admission {
        Admission::from_u8(self.admission.load(Ordering::Relaxed))
    }

    /// Counts a newly registered instance at this address. Returns whether the instance is the
    /// first.
    pub(crate) fn add_instance(&self) -> bool {
        self.instances.fetch_add(1, Ordering::Relaxed) == 0
    }

    /// Counts a deregistered instance at this address. Returns whether the instance was the last.
    pub(crate) fn remove_instance(&self) -> bool {
        self.instances.fetch_sub(1, Ordering::Relaxed) == 1
    }

    pub(crate) fn is_registered(&self) -> bool {
        self.instances.load(Ordering::Relaxed) > 0
    }

    /// Resets the number of eligible instances. Only writers call this method and the next two.
    pub(crate) fn reset_eligible(&self) {
        self.eligible.store(0, Ordering::Relaxed);
    }

    pub(crate) fn count_eligible(&self) {
        let counted = self.eligible.load(Ordering::Relaxed);
        self.eligible.store(counted + 1, Ordering::Relaxed);
    }

    /// The local health of this address at this moment, with its number of eligible instances in
    /// the present view.
    pub(crate) fn status(&self) -> AddressStatus {
        let health = self.health();
        AddressStatus {
            instances: self.eligible.load(Ordering::Relaxed) as usize,
            down: health.as_deref().is_some_and(AddressHealth::is_down),
            tripped: health.as_deref().and_then(AddressHealth::tripped),
        }
    }

    /// Sets the admission of the address. A trial in progress goes on. Only writers call this
    /// method.
    pub(crate) fn admit(&self, admission: Admission) {
        // In most calls the admission does not change, and a read costs less than an exchange.
        if self.admission() == admission {
            return;
        }
        let has_trial = self.trial_since.load(Ordering::Acquire) != 0;
        let update = |before| match (admission, Admission::from_u8(before)) {
            (Admission::Trial, Admission::OnTrial) => None,
            (Admission::Trial, _) if has_trial => Some(Admission::OnTrial as u8),
            _ => Some(admission as u8),
        };
        let _unchanged = self
            .admission
            .fetch_update(Ordering::Release, Ordering::Relaxed, update);
    }

    /// Claims the address for a pick. Of several picks that find the breaker half open, only one
    /// succeeds.
    pub(crate) fn claim(&self, now: impl FnOnce() -> Timestamp) -> bool {
        match self.admission() {
            Admission::In => true,
            Admission::Out | Admission::OnTrial => false,
            Admission::Trial => {
                let claimed = self.exchange(Admission::Trial, Admission::OnTrial);
                if claimed {
                    self.trial_since.store(now().as_nanos().max(1), Ordering::Release);
                }
                claimed
            }
        }
    }

    fn exchange(&self, from: Admission, to: Admission) -> bool {
        self.admission
            .compare_exchange(from as u8, to as u8, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    fn trial(&self) -> Trial {
        match self.trial_since.load(Ordering::Acquire) {
            0 if self.admission() == Admission::In => Trial::EveryPick,
            0 => Trial::None,
            nanos => Trial::Since(Timestamp::from_nanos(nanos)),
        }
    }

    /// A state change of the breaker ends the trial: the next pick may become another trial.
    fn end_trial_after(&self, steps: [Option<Step>; 2]) {
        if steps.iter().flatten().any(|step| matches!(step, Step::Breaker(_))) {
            self.trial_since.store(0, Ordering::Release);
            self.exchange(Admission::OnTrial, Admission::Trial);
        }
    }

    /// The local health; `None` before the first check or outcome.
    pub(crate) fn health(&self) -> Option<MutexGuard<'_, AddressHealth>> {
        self.health.get().map(|health| lock(health))
    }

    fn health_or_default(&self) -> MutexGuard<'_, AddressHealth> {
        lock(self.health.get_or_init(Box::default))
    }

    /// Records an outcome in the local health. `pool_latency` is the typical latency of the pool.
    pub(crate) fn record_health(
        &self,
        outcome: Outcome,
        latency: Option<Duration>,
        pool_latency: Option<f32>,
        config: &LoadBalancerConfig,
        now: Timestamp,
    ) -> [Option<Step>; 2] {
        let trial = self.trial();
        let seconds = latency.map(|latency| latency.as_secs_f32());
        let mut health = self.health_or_default();
        let steps = health.record(outcome, seconds, trial, pool_latency, config, fastrand::f64(), now);
        self.end_trial_after(steps);
        self.recent_latency
            .store(health.passive.recent_latency().to_bits(), Ordering::Relaxed);
        steps
    }

    /// Records the result of an active check.
    pub(crate) fn observe(&self, check: Check, config: &LoadBalancerConfig, now: Timestamp) -> Option<Step> {
        self.health_or_default().observe(check, config, now)
    }

    /// Resets the state of active checks. Returns whether there was any.
    pub(crate) fn forget_checks(&self) -> bool {
        if let Some(mut tracked) = self.adaptive_if_any() {
            tracked.forget_checks();
        }
        self.health().is_some_and(|mut health| {
            let had_state = health.active.since().is_some();
            health.active = Default::default();
            had_state
        })
    }

    /// The state of adaptive weights.
    pub(crate) fn adaptive(&self) -> MutexGuard<'_, Tracked> {
        lock(self.adaptive.get_or_init(Box::default))
    }

    /// The state of adaptive weights; `None` before the first round or check.
    pub(crate) fn adaptive_if_any(&self) -> Option<MutexGuard<'_, Tracked>> {
        self.adaptive.get().map(|tracked| lock(tracked))
    }

    /// The factor of adaptive weights; 1 while they do not apply.
    pub(crate) fn adaptive_factor(&self, config: &LoadBalancerConfig) -> f64 {
        let tracked = config.adapts().then(|| self.adaptive_if_any()).flatten();
        tracked.map_or(1.0, |tracked| tracked.factor())
    }

    /// The counters that adaptive weights read.
    pub(crate) fn report_counts(&self) -> Counts {
        Counts {
            requests: self.reported.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            timed: self.timed.load(Ordering::Relaxed),
            nanos: self.latency_nanos.load(Ordering::Relaxed),
        }
    }

    /// The totals that the formula `seed` of adaptive weights reads.
    pub(crate) fn seed_totals(&self) -> SeedTotals {
        SeedTotals {
            requests: self.reported.load(Ordering::Relaxed),
            average_response_time: self.average_response_time(),
            consecutive_failures: self.consecutive_failures.load(Ordering::Relaxed),
        }
    }

    /// Makes the state changes that are due at `now`.
    pub(crate) fn advance(&self, pool_latency: Option<f32>, config: &LoadBalancerConfig, now: Timestamp) -> Advanced {
        let trial = self.trial();
        let mut advanced = Advanced {
            steps: [None, None],
            next: self.next_ramp_step(config, now),
        };
        if advanced.next.is_none() {
            self.ramp_from.store(0, Ordering::Relaxed);
        }
        if let Some(mut health) = self.health() {
            advanced.steps = health.advance(trial, pool_latency, config, now);
            self.end_trial_after(advanced.steps);
            let next = health.next(self.trial(), config, now);
            advanced.next = advanced.next.into_iter().chain(next).min();
        }
        advanced
    }

    /// When [`advance`](Self::advance) changes the local health next.
    pub(crate) fn next(&self, config: &LoadBalancerConfig, now: Timestamp) -> Option<Timestamp> {
        let trial = self.trial();
        self.health()?.next(trial, config, now)
    }

    /// Records a change of the address in its registry. Returns whether the address begins to flap
    /// with it. Only writers call this method.
    pub(crate) fn registry_changed(&self, now: Timestamp) -> bool {
        lock(self.registry_changes.get_or_init(Box::default)).record(now)
    }

    /// The number of changes in the registry within the last minute.
    pub(crate) fn registry_changes(&self, now: Timestamp) -> usize {
        let changes = self.registry_changes.get();
        changes.map_or(0, |changes| lock(changes).count(now))
    }

    /// Whether the registration of the address flaps.
    pub(crate) fn is_flapping(&self, now: Timestamp) -> bool {
        self.registry_changes(now) > CALM_CHANGES
    }

    /// Starts the ramp of the slow start.
    pub(crate) fn start_ramp(&self, now: Timestamp) {
        self.ramp_is_damped.store(self.is_flapping(now), Ordering::Relaxed);
        self.ramp_from.store(now.as_nanos().max(1), Ordering::Relaxed);
    }

    fn ramp_from(&self) -> Option<Timestamp> {
        match self.ramp_from.load(Ordering::Relaxed) {
            0 => None,
            nanos => Some(Timestamp::from_nanos(nanos)),
        }
    }

    /// The progress of the slow start, in sixteenths.
    pub(crate) fn ramp(&self, config: &LoadBalancerConfig, now: Timestamp) -> u32 {
        slow_start::sixteenths(self.ramp_from(), self.ramp_time(config), now)
    }

    /// When the slow start reaches its next step.
    pub(crate) fn next_ramp_step(&self, config: &LoadBalancerConfig, now: Timestamp) -> Option<Timestamp> {
        slow_start::next_step(self.ramp_from()?, self.ramp_time(config), now)
    }

    fn ramp_time(&self, config: &LoadBalancerConfig) -> Duration {
        match self.ramp_is_damped.load(Ordering::Relaxed) {
            true => config.slow_start().max(LEAST_SLOW_START),
            false => config.slow_start(),
        }
    }

    fn recent_latency(&self) -> Option<f32> {
        let seconds = f32::from_bits(self.recent_latency.load(Ordering::Relaxed));
        (seconds > 0.0).then_some(seconds)
    }

    #[inline]
    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    pub(crate) fn begin(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn end(&self) {
        let one_less = |count: u32| count.checked_sub(1);
        let _at_zero = self
            .in_flight
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less);
    }

    /// Records an outcome in counters and averages. A failure costs at least twice `typical_cost`,
    /// however fast the failure came. A success without a latency is counted, and does not change
    /// the average.
    pub(crate) fn record(&self, outcome: Outcome, latency: Option<Duration>, typical_cost: f32, now: Timestamp) {
        match outcome {
            Outcome::Cancelled => return,
            Outcome::Success => {
                self.consecutive_failures.store(0, Ordering::Relaxed);
                if let Some(latency) = latency {
                    self.ewma.observe(latency, now);
                }
            }
            Outcome::Failure
            | Outcome::Timeout
            | Outcome::ConnectError
            | Outcome::Rejected
            | Outcome::RejectedFor(_) => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                self.consecutive_failures
                    .fetch_add(outcome.failures_in_a_row(), Ordering::Relaxed);
                let penalty = Duration::from_secs_f32((2.0 * typical_cost).clamp(0.0, 1e6));
                // Without a latency and without a typical cost there is no sample: a sample of 0
                // would look like an instant answer.
                if let Some(cost) = latency.max((typical_cost > 0.0).then_some(penalty)) {
                    self.ewma.observe(cost, now);
                }
            }
        }
        self.reported.fetch_add(1, Ordering::Relaxed);
        if let Some(latency) = latency {
            self.timed.fetch_add(1, Ordering::Relaxed);
            self.latency_nanos.fetch_add(nanos(latency), Ordering::Relaxed);
            self.last_latency_nanos.store(nanos(latency), Ordering::Relaxed);
        }
    }

    /// The moving average in seconds; `None` before the first report.
    #[inline]
    pub(crate) fn response_time(&self, now: Timestamp) -> Option<f32> {
        self.ewma.at(now)
    }

    pub(crate) fn total_response_time(&self) -> Duration {
        Duration::from_nanos(self.latency_nanos.load(Ordering::Relaxed))
    }

    pub(crate) fn last_response_time(&self) -> Option<Duration> {
        let is_timed = self.timed.load(Ordering::Relaxed) > 0;
        is_timed.then(|| Duration::from_nanos(self.last_latency_nanos.load(Ordering::Relaxed)))
    }

    pub(crate) fn average_response_time(&self) -> Duration {
        let timed = self.timed.load(Ordering::Relaxed).max(1);
        Duration::from_nanos(self.latency_nanos.load(Ordering::Relaxed) / timed)
    }

    #[inline]
    pub(crate) fn mark_picked(&self, now: Timestamp) {
        self.picked_at.store(now.as_nanos(), Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn picked_within(&self, span: Duration, now: Timestamp) -> bool {
        now.is_within(span, Timestamp::from_nanos(self.picked_at.load(Ordering::Relaxed)))
    }

    /// Claims the single pick that is due for an instance that was not picked for `span`. Of
    /// several callers, only one succeeds.
    #[inline]
    pub(crate) fn claim_retry_pick(&self, span: Duration, now: Timestamp) -> bool {
        let last = self.picked_at.load(Ordering::Relaxed);
        !now.is_within(span, Timestamp::from_nanos(last))
            && self
                .picked_at
                .compare_exchange(last, now.as_nanos(), Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}

fn lock<T>(state: &Mutex<T>) -> MutexGuard<'_, T> {
    // If another thread panicked while holding the lock, the state machine has at worst missed a
    // step.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A key that is unique among live states, for as long as they are held.
pub(crate) fn address_key(live: &Arc<Live>) -> usize {
    Arc::as_ptr(live).addr()
}

/// Load of a service as a whole, and the clock.
pub(crate) struct Load {
    clock: Arc<dyn Clock>,
    /// Requests in flight, over all instances.
    pub(crate) in_flight: CountU64,
    /// Counters of leases and reports.
    pub(crate) leases: LeaseCounts,
    /// Picks made in panic mode.
    pub(crate) panic_picks: AtomicU64,
    /// Picks made while the service fails open, outside panic mode.
    pub(crate) fail_open_picks: AtomicU64,
    /// Median of the response times of the candidates, as the bits of `f32` seconds.
    median: AtomicU32,
    /// Median of the recent latencies of the candidates, as the bits of `f32` seconds; 0 while too
    /// few candidates have one.
    pool_latency: AtomicU32,
    /// Time in nanoseconds of the last outcome; `u64::MAX` before the first.
    reported_at: AtomicU64,
    median_at: AtomicU64,
}

impl fmt::Debug for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Load")
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}

impl Load {
    /// How long the medians are used before an outcome recomputes them.
    const MEDIAN_MAX_AGE: Duration = Duration::from_millis(250);
    /// The least number of addresses with a recent latency for which a typical latency is computed.
    const MIN_COMPARABLE: usize = 3;

    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            in_flight: CountU64::new(0),
            leases: LeaseCounts::default(),
            panic_picks: AtomicU64::new(0),
            fail_open_picks: AtomicU64::new(0),
            median: AtomicU32::new(0),
            pool_latency: AtomicU32::new(0),
            reported_at: AtomicU64::new(u64::MAX),
            median_at: AtomicU64::new(u64::MAX),
        }
    }

    /// Reads the clock, which costs as much as a pick. Only strategies that need the time call this
    /// method.
    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    pub(crate) fn median(&self) -> f32 {
        f32::from_bits(self.median.load(Ordering::Relaxed))
    }

    /// The typical latency of the pool, in seconds. `None` under `least_response_time` and with
    /// adaptive weights, which compare response times themselves.
    pub(crate) fn pool_latency(&self, config: &LoadBalancerConfig) -> Option<f32> {
        let pool_latency = f32::from_bits(self.pool_latency.load(Ordering::Relaxed));
        let is_compared = config.strategy() == LoadBalancingStrategy::LeastResponseTime || config.adapts();
        (pool_latency > 0.0 && !is_compared).then_some(pool_latency)
    }

    /// The typical cost of a request to one of `slots` candidates, as `least_response_time` counts:
    /// the median, times one more than the mean number of requests in flight at a candidate. An
    /// instance that fails at once has no request in flight. Compared by latency alone it would
    /// look idle.
    pub(crate) fn typical_cost(&self, slots: usize) -> f32 {
        let in_flight = self.in_flight.load(Ordering::Relaxed) as f32;
        self.median() * (1.0 + in_flight / slots.max(1) as f32)
    }

    pub(crate) fn reported_at(&self) -> Option<Timestamp> {
        match self.reported_at.load(Ordering::Relaxed) {
            u64::MAX => None,
            nanos => Some(Timestamp::from_nanos(nanos)),
        }
    }

    /// Records that an outcome arrived, and keeps the medians of the candidates' response times
    /// fresh.
    pub(crate) fn reported<'a>(&self, candidates: impl Iterator<Item = &'a Live> + Clone, now: Timestamp) {
        self.reported_at.store(now.as_nanos(), Ordering::Relaxed);
        let last = self.median_at.load(Ordering::Relaxed);
        let fresh = last != u64::MAX && now.since(Timestamp::from_nanos(last)) < Self::MEDIAN_MAX_AGE;
        let claim = || {
            self.median_at
                .compare_exchange(last, now.as_nanos(), Ordering::Relaxed, Ordering::Relaxed)
        };
        if fresh || claim().is_err() {
            return;
        }
        if let Some((_, median)) = count_and_median(candidates.clone().filter_map(|live| live.response_time(now))) {
            self.median.store(median.to_bits(), Ordering::Relaxed);
        }
        let pool_latency = count_and_median(candidates.filter_map(Live::recent_latency));
        let pool_latency = pool_latency.map_or(
            0.0,
            |(seen, pool_latency)| if seen < Self::MIN_COMPARABLE { 0.0 } else { pool_latency },
        );
        self.pool_latency.store(pool_latency.to_bits(), Ordering::Relaxed);
    }
}

/// The number of values, and their median.
fn count_and_median(numbers: impl Iterator<Item = f32>) -> Option<(usize, f32)> {
    let mut numbers: Vec<f32> = numbers.collect();
    let (count, middle) = (numbers.len(), numbers.len() / 2);
    (middle < count).then(|| (count, *numbers.select_nth_unstable_by(middle, f32::total_cmp).1))
}
