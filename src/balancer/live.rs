//! Live state: what is learned about one address while it serves, and about a service as a whole. It outlives views.
//!
//! Relaxed atomics: each number is right, together they are a moment's blur. What has to be of one moment (the layers that are
//! judged locally) is behind one lock, made when there is something to judge, that picks never take: they read
//! [`Admission`], which is derived from it.

use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use super::clock::{Clock, Timestamp, nanos};
use super::config::{LoadBalancerConfig, LoadBalancingStrategy};
use super::health::address::{AddressHealth, Step};
use super::health::breaker::Trial;
use super::health::checks::Check;
use super::health::ejection::{Admission, Trouble};
use super::health::slow_start;
use super::outcome::Outcome;
use super::report_credit::Credit;
use super::statistics::{Ewma, LeaseCounts};
use super::sync::{CountU32, CountU64};

/// What is learned about one address while it serves. Relaxed atomics: each number is right, together they are a moment's blur.
#[derive(Debug, Default)]
pub(crate) struct Live {
    /// Those that a view has handed over: see [`View::settle`].
    pub(crate) picks: AtomicU64,
    in_flight: CountU32,
    pub(crate) consecutive_failures: AtomicU32,
    pub(crate) reported: AtomicU64,
    pub(crate) failed: AtomicU64,
    /// Outcomes that told how long the request took.
    pub(crate) timed: AtomicU64,
    pub(crate) latency_nanos: AtomicU64,
    ewma: Ewma,
    /// Nanoseconds of the last pick by `least_response_time`.
    picked_at: AtomicU64,
    /// What reports without a lease may still say.
    pub(crate) credit: Credit,
    /// How many registered instances are at this address. Written by writers only.
    instances: AtomicU32,
    /// How many of them are eligible, as of the present view. Written by writers only.
    eligible: AtomicU32,
    /// An [`Admission`].
    admission: AtomicU8,
    /// Nanoseconds at which a pick was let through as the trial of the present half-open state; 0 = none was.
    trial_since: AtomicU64,
    /// Nanoseconds at which its slow start began; 0 = there is none.
    ramp_from: AtomicU64,
    /// `f32` seconds that its answers took lately; 0 before the first.
    lately: AtomicU32,
    judgement: OnceLock<Box<Mutex<AddressHealth>>>,
}

/// The steps of one address that one event made, and when time makes the next one.
pub(crate) struct Advanced {
    pub(crate) steps: [Option<Step>; 2],
    /// `None` while nothing changes with time.
    pub(crate) next: Option<Timestamp>,
}

impl Live {
    /// What a pick may do with it now.
    #[inline]
    pub(crate) fn admission(&self) -> Admission {
        Admission::from_u8(self.admission.load(Ordering::Relaxed))
    }

    /// Counts one more instance at this address. Returns whether it is the first.
    pub(crate) fn arrived(&self) -> bool {
        self.instances.fetch_add(1, Ordering::Relaxed) == 0
    }

    /// Counts one less. Returns whether it was the last.
    pub(crate) fn left(&self) -> bool {
        self.instances.fetch_sub(1, Ordering::Relaxed) == 1
    }

    pub(crate) fn is_registered(&self) -> bool {
        self.instances.load(Ordering::Relaxed) > 0
    }

    /// Begins to count anew how many of its instances are eligible. Called by writers only, as the next two.
    pub(crate) fn reset_eligible(&self) {
        self.eligible.store(0, Ordering::Relaxed);
    }

    pub(crate) fn count_eligible(&self) {
        let counted = self.eligible.load(Ordering::Relaxed);
        self.eligible.store(counted + 1, Ordering::Relaxed);
    }

    /// What speaks against this address at this moment, for the eligible instances that the present view has of it.
    pub(crate) fn trouble(&self) -> Trouble {
        let health = self.judgement();
        Trouble {
            instances: self.eligible.load(Ordering::Relaxed) as usize,
            down: health.as_deref().is_some_and(AddressHealth::is_down),
            tripped: health.as_deref().and_then(AddressHealth::tripped),
        }
    }

    /// Sets what picks may do with it. Whoever is let through as the trial stays so. Called by writers only.
    pub(crate) fn admit(&self, admission: Admission) {
        // Mostly there is nothing to change, and a look costs less than an exchange.
        if self.admission() == admission {
            return;
        }
        let tried = self.trial_since.load(Ordering::Acquire) != 0;
        let update = |before| match (admission, Admission::from_u8(before)) {
            (Admission::Trial, Admission::OnTrial) => None,
            (Admission::Trial, _) if tried => Some(Admission::OnTrial as u8),
            _ => Some(admission as u8),
        };
        let _unchanged = self
            .admission
            .fetch_update(Ordering::Release, Ordering::Relaxed, update);
    }

    /// Takes it for a pick: of those who find it half open, one succeeds.
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
            0 if self.admission() == Admission::In => Trial::Everybody,
            0 => Trial::None,
            nanos => Trial::Since(Timestamp::from_nanos(nanos)),
        }
    }

    /// With a step of the breaker the trial has ended, one way or another: the next pick may be another one.
    fn end_trial_after(&self, steps: [Option<Step>; 2]) {
        if steps.iter().flatten().any(|step| matches!(step, Step::Breaker(_))) {
            self.trial_since.store(0, Ordering::Release);
            self.exchange(Admission::OnTrial, Admission::Trial);
        }
    }

    /// What is judged of it, if anything was.
    pub(crate) fn judgement(&self) -> Option<MutexGuard<'_, AddressHealth>> {
        self.judgement.get().map(|judgement| lock(judgement))
    }

    fn judgement_made(&self) -> MutexGuard<'_, AddressHealth> {
        lock(self.judgement.get_or_init(Box::default))
    }

    /// Judges by an outcome. `usual` is what answers take in its pool.
    pub(crate) fn judge(
        &self,
        outcome: Outcome,
        latency: Option<Duration>,
        usual: Option<f32>,
        config: &LoadBalancerConfig,
        now: Timestamp,
    ) -> [Option<Step>; 2] {
        let trial = self.trial();
        let seconds = latency.map(|latency| latency.as_secs_f32());
        let mut judgement = self.judgement_made();
        let steps = judgement.record(outcome, seconds, trial, usual, config, fastrand::f64(), now);
        self.end_trial_after(steps);
        self.lately
            .store(judgement.passive.lately().to_bits(), Ordering::Relaxed);
        steps
    }

    /// Takes the result of a check.
    pub(crate) fn observe(&self, check: Check, config: &LoadBalancerConfig, now: Timestamp) -> Option<Step> {
        self.judgement_made().observe(check, config, now)
    }

    /// Forgets what checks said. Returns whether they had said anything.
    pub(crate) fn forget_checks(&self) -> bool {
        self.judgement().is_some_and(|mut judgement| {
            let said = judgement.active.since().is_some();
            judgement.active = Default::default();
            said
        })
    }

    /// Does what time has made due.
    pub(crate) fn advance(&self, usual: Option<f32>, config: &LoadBalancerConfig, now: Timestamp) -> Advanced {
        let trial = self.trial();
        let mut judged = Advanced {
            steps: [None, None],
            next: self.next_ramp_step(config, now),
        };
        if judged.next.is_none() {
            self.ramp_from.store(0, Ordering::Relaxed);
        }
        if let Some(mut judgement) = self.judgement() {
            judged.steps = judgement.advance(trial, usual, config, now);
            self.end_trial_after(judged.steps);
            let next = judgement.next(self.trial(), config, now);
            judged.next = judged.next.into_iter().chain(next).min();
        }
        judged
    }

    /// When [`advance`](Self::advance) has something to judge next.
    pub(crate) fn next(&self, config: &LoadBalancerConfig, now: Timestamp) -> Option<Timestamp> {
        let trial = self.trial();
        self.judgement()?.next(trial, config, now)
    }

    /// Starts the ramp of its slow start.
    pub(crate) fn start_ramp(&self, now: Timestamp) {
        self.ramp_from.store(now.as_nanos().max(1), Ordering::Relaxed);
    }

    fn ramp_from(&self) -> Option<Timestamp> {
        match self.ramp_from.load(Ordering::Relaxed) {
            0 => None,
            nanos => Some(Timestamp::from_nanos(nanos)),
        }
    }

    /// How far its slow start has come, in sixteenths.
    pub(crate) fn ramp(&self, config: &LoadBalancerConfig, now: Timestamp) -> u32 {
        slow_start::sixteenths(self.ramp_from(), config.slow_start(), now)
    }

    /// When its slow start comes further.
    pub(crate) fn next_ramp_step(&self, config: &LoadBalancerConfig, now: Timestamp) -> Option<Timestamp> {
        slow_start::next_step(self.ramp_from()?, config.slow_start(), now)
    }

    fn lately(&self) -> Option<f32> {
        let seconds = f32::from_bits(self.lately.load(Ordering::Relaxed));
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

    /// Records an outcome. A failure is as bad as twice what is `typical` of the pool, however fast it came. Without a latency a
    /// success counts and leaves the average alone.
    pub(crate) fn record(&self, outcome: Outcome, latency: Option<Duration>, typical: f32, now: Timestamp) {
        match outcome {
            Outcome::Cancelled => return,
            Outcome::Success => {
                self.consecutive_failures.store(0, Ordering::Relaxed);
                if let Some(latency) = latency {
                    self.ewma.observe(latency, now);
                }
            }
            Outcome::Failure | Outcome::Timeout | Outcome::ConnectError | Outcome::Rejected => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                self.consecutive_failures
                    .fetch_add(outcome.failures_in_a_row(), Ordering::Relaxed);
                let penalty = Duration::from_secs_f32((2.0 * typical).clamp(0.0, 1e6));
                // No latency and nothing to compare with is no sample: it would look like an answer in no time.
                if let Some(cost) = latency.max((typical > 0.0).then_some(penalty)) {
                    self.ewma.observe(cost, now);
                }
            }
        }
        self.reported.fetch_add(1, Ordering::Relaxed);
        if let Some(latency) = latency {
            self.timed.fetch_add(1, Ordering::Relaxed);
            self.latency_nanos.fetch_add(nanos(latency), Ordering::Relaxed);
        }
    }

    /// The moving average in seconds; `None` before the first report.
    #[inline]
    pub(crate) fn response_time(&self, now: Timestamp) -> Option<f32> {
        self.ewma.at(now)
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

    /// Claims the one try that an instance left alone for `span` is due. One caller wins.
    #[inline]
    pub(crate) fn claim_retry(&self, span: Duration, now: Timestamp) -> bool {
        let last = self.picked_at.load(Ordering::Relaxed);
        !now.is_within(span, Timestamp::from_nanos(last))
            && self
                .picked_at
                .compare_exchange(last, now.as_nanos(), Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}

fn lock(judgement: &Mutex<AddressHealth>) -> MutexGuard<'_, AddressHealth> {
    // A state machine that panicked has at worst missed a step.
    judgement.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells live states apart, for as long as they are held.
pub(crate) fn address_key(live: &Arc<Live>) -> usize {
    Arc::as_ptr(live).addr()
}

/// What is known of a service as a whole, and the time.
pub(crate) struct Load {
    clock: Arc<dyn Clock>,
    /// Requests in flight, over all instances.
    pub(crate) in_flight: CountU64,
    /// Its leases and reports.
    pub(crate) leases: LeaseCounts,
    /// Picks of pools that panicked.
    pub(crate) panic_picks: AtomicU64,
    /// `f32` seconds: the middle one of the pool's averages.
    median: AtomicU32,
    /// `f32` seconds: the middle one of what answers took lately; 0 while there are too few to compare.
    usual: AtomicU32,
    /// Nanoseconds; `u64::MAX` before the first.
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
    /// How long the median stands before an outcome has it computed again.
    const MEDIAN_FOR: Duration = Duration::from_millis(250);
    /// Of fewer addresses none is slower than the others.
    const COMPARABLE: usize = 3;

    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            in_flight: CountU64::new(0),
            leases: LeaseCounts::default(),
            panic_picks: AtomicU64::new(0),
            median: AtomicU32::new(0),
            usual: AtomicU32::new(0),
            reported_at: AtomicU64::new(u64::MAX),
            median_at: AtomicU64::new(u64::MAX),
        }
    }

    /// Reads the clock, which costs as much as a pick: for strategies that need the time.
    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    pub(crate) fn median(&self) -> f32 {
        f32::from_bits(self.median.load(Ordering::Relaxed))
    }

    /// What answers take in this pool, in seconds, where slowness is for the layers to judge: `least_response_time` compares
    /// response times itself.
    pub(crate) fn usual(&self, config: &LoadBalancerConfig) -> Option<f32> {
        let usual = f32::from_bits(self.usual.load(Ordering::Relaxed));
        (usual > 0.0 && config.strategy() != LoadBalancingStrategy::LeastResponseTime).then_some(usual)
    }

    /// What a request costs one of `slots` candidates as `least_response_time` counts: the median, times one more than what each
    /// has in flight. Whoever fails at once has nothing in flight; compared by latency alone it would look idle.
    pub(crate) fn typical(&self, slots: usize) -> f32 {
        let in_flight = self.in_flight.load(Ordering::Relaxed) as f32;
        self.median() * (1.0 + in_flight / slots.max(1) as f32)
    }

    pub(crate) fn reported_at(&self) -> Option<Timestamp> {
        match self.reported_at.load(Ordering::Relaxed) {
            u64::MAX => None,
            nanos => Some(Timestamp::from_nanos(nanos)),
        }
    }

    /// Notes that an outcome arrived, and keeps the median of the candidates' response times fresh.
    pub(crate) fn reported<'a>(&self, candidates: impl Iterator<Item = &'a Live> + Clone, now: Timestamp) {
        self.reported_at.store(now.as_nanos(), Ordering::Relaxed);
        let last = self.median_at.load(Ordering::Relaxed);
        let fresh = last != u64::MAX && now.since(Timestamp::from_nanos(last)) < Self::MEDIAN_FOR;
        let claim = || {
            self.median_at
                .compare_exchange(last, now.as_nanos(), Ordering::Relaxed, Ordering::Relaxed)
        };
        if fresh || claim().is_err() {
            return;
        }
        if let Some((_, median)) = middle(candidates.clone().filter_map(|live| live.response_time(now))) {
            self.median.store(median.to_bits(), Ordering::Relaxed);
        }
        let usual = middle(candidates.filter_map(Live::lately));
        let usual = usual.map_or(0.0, |(seen, usual)| if seen < Self::COMPARABLE { 0.0 } else { usual });
        self.usual.store(usual.to_bits(), Ordering::Relaxed);
    }
}

/// How many there are, and the middle one.
fn middle(numbers: impl Iterator<Item = f32>) -> Option<(usize, f32)> {
    let mut numbers: Vec<f32> = numbers.collect();
    let (count, middle) = (numbers.len(), numbers.len() / 2);
    (middle < count).then(|| (count, *numbers.select_nth_unstable_by(middle, f32::total_cmp).1))
}
