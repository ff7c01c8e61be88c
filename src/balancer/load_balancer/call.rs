//! Calls: a pick, the request of the caller, the outcome, and other instances if it fails.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use super::LoadBalancer;
use super::pick::Acquired;
use crate::balancer::context::Context;
use crate::balancer::error::PickError;
use crate::balancer::instance::{InstanceId, ServiceInstance};
use crate::balancer::outcome::Outcome;
use crate::balancer::retry::RetryStatistics;

/// What a call wants.
///
/// ```
/// use pickd::Context;
/// use pickd::balancer::Call;
///
/// let order = Call::new().with_context(Context::new().with_key("user-42")).not_idempotent();
/// assert!(!order.is_idempotent());
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    context: Context<'a>,
    is_idempotent: bool,
}

impl Default for Call<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'a> Call<'a> {
    /// A call that may be repeated, to any instance.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            context: Context::new(),
            is_idempotent: true,
        }
    }

    /// Sets key, tags and exclusions of the picks.
    #[must_use]
    pub const fn with_context(mut self, context: Context<'a>) -> Self {
        self.context = context;
        self
    }

    /// The call must not take effect twice: it is tried again only if it was not sent.
    #[must_use]
    pub const fn not_idempotent(mut self) -> Self {
        self.is_idempotent = false;
        self
    }

    /// Whether the call may be repeated.
    #[must_use]
    pub const fn is_idempotent(&self) -> bool {
        self.is_idempotent
    }
}

/// How one attempt of a call failed. `?` turns an error into [`Failed`](Self::Failed).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Failure<E> {
    /// The request did not reach the instance: no connection. Tried again even if the call is not
    /// idempotent. Counts as [`Outcome::ConnectError`].
    NotSent(E),
    /// The instance failed, or may have: an error of the instance, a connection that broke.
    /// Counts as [`Outcome::Failure`].
    Failed(E),
    /// No answer arrived in time. Counts as [`Outcome::Timeout`].
    TimedOut(E),
    /// The instance refused the request because of its load (429, 503). Counts as
    /// [`Outcome::Rejected`].
    Rejected {
        /// The error of the attempt.
        error: E,
        /// How long the instance asks not to be called (`Retry-After`). It is kept out for that
        /// long, at most for the longest open time of a breaker.
        retry_after: Option<Duration>,
    },
    /// The request itself is at fault (most 4xx). Not tried again, and no failure of the instance.
    Client(E),
    /// The host of the caller failed before the request was sent: it lacks files, ports or memory.
    /// Not tried again, and no outcome of the instance: counts as [`Outcome::Cancelled`].
    Local(E),
}

impl<E> From<E> for Failure<E> {
    fn from(error: E) -> Self {
        Self::Failed(error)
    }
}

impl<E> Failure<E> {
    /// The error of the attempt.
    #[must_use]
    pub fn error(&self) -> &E {
        match self {
            Self::NotSent(error)
            | Self::Failed(error)
            | Self::TimedOut(error)
            | Self::Client(error)
            | Self::Local(error)
            | Self::Rejected { error, .. } => error,
        }
    }

    /// The error of the attempt.
    #[must_use]
    pub fn into_error(self) -> E {
        match self {
            Self::NotSent(error)
            | Self::Failed(error)
            | Self::TimedOut(error)
            | Self::Client(error)
            | Self::Local(error)
            | Self::Rejected { error, .. } => error,
        }
    }

    /// What the balancer learns. An answer that blames the request is a good answer of the instance.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::NotSent(_) => Outcome::ConnectError,
            Self::Failed(_) => Outcome::Failure,
            Self::TimedOut(_) => Outcome::Timeout,
            Self::Rejected { retry_after: None, .. } => Outcome::Rejected,
            Self::Rejected {
                retry_after: Some(time),
                ..
            } => Outcome::RejectedFor(*time),
            Self::Client(_) => Outcome::Success,
            Self::Local(_) => Outcome::Cancelled,
        }
    }

    fn may_be_repeated(&self, is_idempotent: bool) -> bool {
        match self {
            Self::NotSent(_) => true,
            Self::Failed(_) | Self::TimedOut(_) | Self::Rejected { .. } => is_idempotent,
            Self::Client(_) | Self::Local(_) => false,
        }
    }
}

/// One attempt of a call that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Attempt {
    /// The instance that was called.
    pub instance: InstanceId,
    /// How the attempt ended.
    pub outcome: Outcome,
    /// Time from the pick to the failure.
    pub latency: Duration,
}

/// Why a call has no answer.
#[derive(Debug)]
#[non_exhaustive]
pub enum CallError<E> {
    /// There was no instance to call.
    NoInstance(PickError),
    /// Every attempt failed.
    Failed {
        /// How the last attempt failed.
        failure: Failure<E>,
        /// Every attempt, in order; the last one is that of `failure`.
        tried: Vec<Attempt>,
    },
}

impl<E> CallError<E> {
    /// The attempts, in order.
    #[must_use]
    pub fn tried(&self) -> &[Attempt] {
        match self {
            Self::NoInstance(_) => &[],
            Self::Failed { tried, .. } => tried,
        }
    }
}

/// The last error, then the instances in the order in which they were tried.
impl<E: fmt::Display> fmt::Display for CallError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoInstance(error) => error.fmt(f),
            Self::Failed { failure, tried } => {
                write!(f, "{} (tried", failure.error())?;
                for (index, attempt) in tried.iter().enumerate() {
                    let separator = if index == 0 { "" } else { "," };
                    write!(f, "{separator} {}", attempt.instance)?;
                }
                f.write_str(")")
            }
        }
    }
}

impl<E: std::error::Error + 'static> std::error::Error for CallError<E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::NoInstance(error) => Some(error),
            Self::Failed { failure, .. } => Some(failure.error()),
        }
    }
}

impl LoadBalancer {
    /// Calls an instance, and other instances if it fails: at most `max_retries` more, and within
    /// the [retry budget](Self::may_retry). The outcome and the latency of every attempt are
    /// recorded. An attempt that is dropped ends as cancelled.
    ///
    /// The call counts as one that may be repeated: for others, see
    /// [`call_with`](Self::call_with).
    ///
    /// ```
    /// use pickd::{LoadBalancer, LoadBalancerConfig, ServiceInstance};
    ///
    /// # #[derive(Debug)] struct Refused;
    /// # async fn fetch(address: &str) -> Result<String, Refused> {
    /// #     (address == "10.0.1.11:8080").then(|| "Ada".to_owned()).ok_or(Refused)
    /// # }
    /// # fn block_on<T>(future: impl Future<Output = T>) -> T {
    /// #     let mut future = std::pin::pin!(future);
    /// #     match future.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
    /// #         std::task::Poll::Ready(value) => value,
    /// #         std::task::Poll::Pending => unreachable!(),
    /// #     }
    /// # }
    /// # block_on(async {
    /// let balancer = LoadBalancer::new("user-service".parse()?, LoadBalancerConfig::default());
    /// balancer.add_instance(ServiceInstance::new("user-1", "10.0.1.10", 8080)?);
    /// balancer.add_instance(ServiceInstance::new("user-2", "10.0.1.11", 8080)?);
    ///
    /// // Only user-2 answers.
    /// let name = balancer
    ///     .call(|instance| async move { Ok(fetch(instance.address().as_str()).await?) })
    ///     .await;
    /// assert_eq!(name.ok().as_deref(), Some("Ada"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// [`CallError::NoInstance`] without an instance to call, else the failure of the last attempt
    /// and the list of all.
    pub async fn call<T, E, F, A>(&self, attempt: F) -> Result<T, CallError<E>>
    where
        F: FnMut(Arc<ServiceInstance>) -> A,
        A: Future<Output = Result<T, Failure<E>>>,
    {
        self.call_with(Call::new(), attempt).await
    }

    /// The same with wishes: key, tags, exclusions, and whether the call may be repeated.
    ///
    /// No instance is called twice while another can be picked. If none other can, an instance is
    /// called again.
    ///
    /// # Errors
    ///
    /// As for [`call`](Self::call).
    pub async fn call_with<T, E, F, A>(&self, call: Call<'_>, mut attempt: F) -> Result<T, CallError<E>>
    where
        F: FnMut(Arc<ServiceInstance>) -> A,
        A: Future<Output = Result<T, Failure<E>>>,
    {
        let clock = Arc::clone(&self.shared.environment.clock);
        let mut acquired = self.acquire(&call.context).map_err(CallError::NoInstance)?;
        let mut tried: Vec<Attempt> = Vec::new();
        loop {
            let began = clock.now();
            let instance = Arc::clone(acquired.instance());
            let id = instance.id().clone();
            let result = attempt(instance).await;
            let latency = clock.now().since(began);
            let failure = match result {
                Ok(answer) => {
                    acquired.finish(Outcome::Success, latency);
                    return Ok(answer);
                }
                Err(failure) => failure,
            };
            let outcome = failure.outcome();
            acquired.finish(outcome, latency);
            tried.push(Attempt {
                instance: id,
                outcome,
                latency,
            });
            let next = failure
                .may_be_repeated(call.is_idempotent)
                .then(|| self.acquire_another(&call.context, &tried))
                .flatten();
            match next {
                Some(next) => acquired = next,
                None => return Err(CallError::Failed { failure, tried }),
            }
        }
    }

    /// An instance for the next attempt, if one more attempt is allowed.
    fn acquire_another(&self, context: &Context<'_>, tried: &[Attempt]) -> Option<Acquired> {
        if !self.may_retry(tried.len()) {
            return None;
        }
        let tried = tried.iter().map(|attempt| attempt.instance.as_str());
        let excluded: Vec<&str> = context.exclude.iter().copied().chain(tried).collect();
        let others = self.acquire(&context.with_exclude(&excluded));
        others.or_else(|_| self.acquire(context)).ok()
    }

    /// Asks for one retry of a call, and spends it. `attempts` is the number of attempts of the call
    /// so far.
    ///
    /// The answer is no when `retry_enabled` is false, when the call was tried `max_retries` times
    /// again, or when the budget of the service is spent: over the last ten seconds, `retry_budget` retries for each
    /// call, and 3 a second.
    #[must_use]
    pub fn may_retry(&self, attempts: usize) -> bool {
        let view = self.shared.view.load();
        let is_left = view.config.retry_enabled() && attempts <= view.config.max_retries() as usize;
        let share = view.config.retry_budget();
        drop(view);
        if !is_left {
            self.shared.retries.deny();
            return false;
        }
        self.shared
            .retries
            .take(share, || self.picks(), self.shared.environment.clock.now())
    }

    /// Retries so far.
    #[must_use]
    pub fn retries(&self) -> RetryStatistics {
        self.shared.retries.statistics()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::pin::pin;
    use std::task::{Context as TaskContext, Poll, Waker};

    use super::*;
    use crate::balancer::clock::{Clock as _, Manual};
    use crate::balancer::config::LoadBalancerConfig;
    use crate::balancer::environment::Environment;
    use crate::balancer::health::breaker::{BreakerState, TripReason};

    /// A service of `ids`, and its clock.
    fn balancer(ids: &[&str], config: LoadBalancerConfig) -> (LoadBalancer, Arc<Manual>) {
        let clock = Arc::new(Manual::default());
        let environment = Environment {
            clock: clock.clone(),
            ..Environment::default()
        };
        let balancer = LoadBalancer::with_environment("web".parse().unwrap(), config, environment, 0);
        for (index, id) in ids.iter().enumerate() {
            let host = format!("10.0.0.{}", index + 1);
            balancer.add_instance(ServiceInstance::new(id, &host, 80).unwrap());
        }
        (balancer, clock)
    }

    fn now<T>(future: impl Future<Output = T>) -> T {
        match pin!(future).poll(&mut TaskContext::from_waker(Waker::noop())) {
            Poll::Ready(value) => value,
            Poll::Pending => panic!("it waits"),
        }
    }

    /// The instances that a call tries if every attempt fails in this way.
    fn tried(balancer: &LoadBalancer, call: Call<'_>, failure: Failure<&'static str>) -> Vec<String> {
        let error = now(balancer.call_with(call, |_| async move { Err::<(), _>(failure) })).unwrap_err();
        let tried: Vec<_> = error
            .tried()
            .iter()
            .map(|attempt| attempt.instance.to_string())
            .collect();
        if let CallError::Failed { failure: last, .. } = &error {
            assert_eq!(
                (last, error.to_string()),
                (&failure, format!("it failed (tried {})", tried.join(", ")))
            );
        }
        tried
    }

    const FAILED: Failure<&str> = Failure::Failed("it failed");

    #[test]
    fn a_retry_goes_to_another_instance_and_the_answer_counts() {
        let (balancer, clock) = balancer(&["a", "b", "c"], LoadBalancerConfig::default());
        let called = RefCell::new(Vec::new());
        let answer = now(balancer.call(|instance| {
            let attempt = called.borrow().len();
            called.borrow_mut().push(instance.id().to_string());
            clock.advance(Duration::from_millis(10));
            async move { if attempt < 2 { Err(FAILED) } else { Ok("Ada") } }
        }));
        assert_eq!(answer.unwrap(), "Ada");
        let mut called = called.into_inner();
        let last = called[2].clone();
        called.sort();
        assert_eq!(called, ["a", "b", "c"]);
        let statistics = balancer.statistics();
        assert_eq!(
            (
                statistics.total_requests,
                statistics.reported_requests,
                statistics.failed_requests
            ),
            (3, 3, 2)
        );
        assert_eq!(statistics.total_response_time, Duration::from_millis(30));
        let good = &statistics.instances[&last.parse::<InstanceId>().unwrap()];
        assert_eq!(
            (good.failed_requests, good.average_response_time),
            (0, Duration::from_millis(10))
        );
        assert_eq!(balancer.in_flight(), 0);
    }

    #[test]
    fn retries_end_with_the_settings_of_the_service() {
        for (config, attempts) in [
            (LoadBalancerConfig::default(), 3),
            (LoadBalancerConfig::default().with_max_retries(0).unwrap(), 1),
            (LoadBalancerConfig::default().with_max_retries(4).unwrap(), 5),
            (LoadBalancerConfig::default().with_retry_enabled(false), 1),
        ] {
            let (balancer, _) = balancer(&["a", "b", "c", "d", "e", "f"], config);
            let mut tried = tried(&balancer, Call::new(), FAILED);
            assert_eq!(tried.len(), attempts);
            tried.sort();
            tried.dedup();
            assert_eq!(tried.len(), attempts, "no instance twice");
            assert_eq!(balancer.retries().allowed, attempts as u64 - 1);
        }
    }

    #[test]
    fn an_instance_without_another_is_tried_again() {
        let (balancer, _) = balancer(&["a"], LoadBalancerConfig::default());
        assert_eq!(tried(&balancer, Call::new(), FAILED), ["a", "a", "a"]);
        let (balancer, _) = self::balancer(&["a", "b"], LoadBalancerConfig::default());
        let two = Call::new().with_context(Context::new().with_exclude(&["b"]));
        assert_eq!(tried(&balancer, two, FAILED), ["a", "a", "a"], "the caller excluded b");
    }

    #[test]
    fn what_may_have_happened_is_not_repeated_unless_it_may_be() {
        let once = Call::new().not_idempotent();
        let rejected = Failure::Rejected {
            error: "it failed",
            retry_after: None,
        };
        for (failure, call, attempts, outcome) in [
            (FAILED, Call::new(), 3, Outcome::Failure),
            (FAILED, once, 1, Outcome::Failure),
            (Failure::TimedOut("it failed"), Call::new(), 3, Outcome::Timeout),
            (Failure::TimedOut("it failed"), once, 1, Outcome::Timeout),
            (rejected, Call::new(), 3, Outcome::Rejected),
            (rejected, once, 1, Outcome::Rejected),
            (Failure::NotSent("it failed"), Call::new(), 3, Outcome::ConnectError),
            (Failure::NotSent("it failed"), once, 3, Outcome::ConnectError),
            (Failure::Client("it failed"), Call::new(), 1, Outcome::Success),
            (Failure::Client("it failed"), once, 1, Outcome::Success),
            (Failure::Local("it failed"), Call::new(), 1, Outcome::Cancelled),
        ] {
            let (balancer, _) = balancer(&["a", "b", "c"], LoadBalancerConfig::default());
            assert_eq!(tried(&balancer, call, failure).len(), attempts, "{failure:?} {call:?}");
            assert_eq!(failure.outcome(), outcome);
            let failed = balancer.statistics().failed_requests;
            assert_eq!(
                failed,
                if matches!(outcome, Outcome::Success | Outcome::Cancelled) {
                    0
                } else {
                    attempts as u64
                },
                "{failure:?}"
            );
        }
    }

    #[test]
    fn a_service_that_fails_as_a_whole_gets_a_fifth_more_load() {
        let config = LoadBalancerConfig::default().with_panic(true);
        let (balancer, clock) = balancer(&["a", "b", "c"], config);
        let calls = 60 * 100;
        let mut attempts = 0;
        for _ in 0..calls {
            attempts += tried(&balancer, Call::new(), FAILED).len();
            clock.advance(Duration::from_millis(10));
        }
        // 20 % and 3 a second, and what the budget holds at the start.
        let most = calls + calls / 5 + 60 * 3 + 60;
        assert!((calls + calls / 5..most).contains(&attempts), "{attempts}");
    }

    #[test]
    fn a_dropped_call_ends_as_cancelled() {
        let (balancer, _) = balancer(&["a"], LoadBalancerConfig::default());
        {
            let mut call = pin!(balancer.call(|_| std::future::pending::<Result<(), Failure<()>>>()));
            let mut task = TaskContext::from_waker(Waker::noop());
            assert!(call.as_mut().poll(&mut task).is_pending());
            assert_eq!(balancer.in_flight(), 1);
        }
        assert_eq!(balancer.in_flight(), 0);
        assert_eq!(balancer.statistics().reported_requests, 0);
    }

    #[test]
    fn an_instance_stays_out_for_the_time_that_it_asks_for() {
        let rejected = |seconds| Failure::Rejected {
            error: "it failed",
            retry_after: Some(Duration::from_secs(seconds)),
        };
        let once = Call::new().not_idempotent();
        for (asked, stays) in [(20, 20), (3_600, 60)] {
            let (balancer, clock) = balancer(&["a", "b", "c"], LoadBalancerConfig::default());
            let rejecting = tried(&balancer, once, rejected(asked)).remove(0);
            let id: InstanceId = rejecting.parse().unwrap();
            let layers = balancer.statistics().instances[&id].layers.clone();
            let breaker = layers.breaker.unwrap().state;
            assert!(
                matches!(breaker, BreakerState::Open { because: TripReason::RetryAfter(time), .. } if time.as_secs() == asked),
                "{breaker:?}"
            );
            for _ in 0..9 {
                assert_ne!(balancer.select_instance(&Context::new()).unwrap().id(), &id);
            }
            clock.advance(Duration::from_secs(stays) - Duration::from_millis(1));
            balancer.advance(clock.now());
            assert_ne!(balancer.select_instance(&Context::new()).unwrap().id(), &id);
            clock.advance(Duration::from_millis(1));
            balancer.advance(clock.now());
            let is_trial = |_| {
                clock.advance(Duration::from_millis(10));
                balancer.advance(clock.now());
                balancer.select_instance(&Context::new()).unwrap().id() == &id
            };
            assert!((0..300).any(is_trial), "asked for {asked} s");
        }
    }

    #[test]
    fn without_instances_there_is_no_attempt() {
        let (balancer, _) = balancer(&[], LoadBalancerConfig::default());
        let error = now(balancer.call(|_| async { Ok::<_, Failure<&str>>(()) })).unwrap_err();
        assert!(matches!(error, CallError::NoInstance(PickError::Empty { .. })));
        assert!(error.tried().is_empty());
    }
}
