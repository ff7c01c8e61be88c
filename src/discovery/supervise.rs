//! Runs any [`Watcher`] for as long as the agent lives: retries it, logs when it fails and
//! recovers, and stops it.
//!
//! ```text
//!          ┌──────────── reset the backoff ◄──────────┐
//!          ▼                                          │
//!      watcher.next() ──Ok──► count, hand on to the agent
//!          ▲    │
//!          │   Err ──► count, mark as lost
//!          └── sleep 250 ms .. 30 s, with jitter (.. 2 s, if the registry answered before)
//! ```
//!
//! The long delays are for what an operator has to mend: an address that never answered, a token
//! without rights. A registry that answered before and is away comes back by itself, and each second
//! of delay then is a second in which callers get instances that may be gone.
//!
//! Which part writes what into a source's [`SourceStatus`]:
//!
//! - The *watcher* marks `heard` and `lost` on each answer, because only the watcher knows which
//!   answers are good. (A Consul without a leader does answer.) So nothing here marks a source as
//!   heard.
//! - *This module* marks `lost` when `next` fails, and counts errors and updates.
//! - The *agent* calls `mark_synced` after it has applied all updates before [`Update::Synced`].
//!   If that happened earlier, a pick could miss a service that is about to be applied.
//! - This module also logs when a source is lost and when it is back, once each, whichever part
//!   marked it.
//!
//! Knows no protocol, and does not look into an update.

use std::sync::Arc;
use std::time::Duration;

// The crate `backoff` is unmaintained (RUSTSEC-2025-0012, and 2024-0384 for `instant` below it),
// as noted in deny.toml. Only this file imports it, so that replacing it stays a change of one
// file.
use backoff::SystemClock;
use backoff::backoff::Backoff as _;
use backoff::exponential::ExponentialBackoff;
use tokio::sync::mpsc;
use tokio::time::{self, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::watcher::{Reason, Update, WatchError, Watcher};
use crate::balancer::{Clock, SourceStatus, Timestamp};

/// The first delay, before jitter.
const INITIAL_DELAY: Duration = Duration::from_millis(250);
/// The longest delay, after jitter.
const LONGEST_DELAY: Duration = Duration::from_secs(30);
/// The longest delay while a registry is away that has answered before.
const LONGEST_AWAY: Duration = Duration::from_secs(2);
/// Each delay is drawn from +-50 % of the interval, so that a thousand agents do not reconnect at
/// the same time.
const JITTER: f64 = 0.5;
/// How often the source's status is checked while the watcher waits, so that a loss or a recovery
/// is logged soon.
const LOG_EVERY: Duration = Duration::from_secs(1);

/// The delays between attempts: 250 ms, doubling, each with a jitter of +-50 %, never above 30 s,
/// without end.
#[derive(Debug)]
pub struct Backoff<C = SystemClock>(ExponentialBackoff<C>);

impl Backoff {
    /// Starts with the shortest delay.
    #[must_use]
    pub fn new() -> Self {
        Self::with_clock(SystemClock::default())
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new()
    }
}

impl<C: backoff::Clock> Backoff<C> {
    /// The same with another clock.
    #[must_use]
    pub fn with_clock(clock: C) -> Self {
        Self(ExponentialBackoff {
            current_interval: INITIAL_DELAY,
            initial_interval: INITIAL_DELAY,
            randomization_factor: JITTER,
            multiplier: 2.0,
            max_interval: LONGEST_DELAY.div_f64(1.0 + JITTER),
            start_time: clock.now(),
            // The crate's default gives up after 15 minutes, but a registry may be away for a
            // night.
            max_elapsed_time: None,
            clock,
        })
    }

    /// How long to wait before the next attempt.
    pub fn next_delay(&mut self) -> Duration {
        self.0.next_backoff().unwrap_or(LONGEST_DELAY).min(LONGEST_DELAY)
    }

    /// The same, but at most so long, then with a jitter of its own.
    fn next_delay_within(&mut self, longest: Duration) -> Duration {
        let delay = self.next_delay();
        if delay < longest {
            return delay;
        }
        longest.mul_f64(1.0 - JITTER * fastrand::f64())
    }

    /// Starts over, after a success.
    pub fn reset(&mut self) {
        self.0.reset();
    }
}

/// Runs a watcher until `stop` is cancelled or the receiver of `out` is gone. Then drops the
/// watcher.
///
/// A failing watcher is called again, for ever. Stops at once, even during a delay or while the
/// agent is slow to receive.
pub async fn supervise<W: Watcher>(
    mut watcher: W,
    status: Arc<SourceStatus>,
    clock: Arc<dyn Clock>,
    out: mpsc::Sender<(Arc<SourceStatus>, Update)>,
    stop: CancellationToken,
) {
    let source = watcher.source();
    let watch = async {
        let mut backoff = Backoff::new();
        let mut logged = Logged::Nothing;
        loop {
            match next(&mut watcher, &mut logged, &status, &*clock).await {
                Ok(update) => {
                    backoff.reset();
                    status.count_update();
                    logged.update(&status, clock.now());
                    if out.send((Arc::clone(&status), update)).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    status.count_error(error.reason.as_str());
                    status.lost(clock.now(), &error);
                    let changed = logged.update(&status, clock.now());
                    if error.reason == Reason::InvalidFile {
                        // An invalid file is reported once per version, and each version has other
                        // mistakes to log. The watcher then waits for the next version by itself,
                        // so that a corrected file is not delayed.
                        if !changed {
                            tracing::warn!(%source, %error, "file still invalid, serving the last valid version");
                        }
                    } else {
                        let answered_before = status.age(clock.now()).is_some();
                        let delay = match is_away(error.reason) && answered_before {
                            true => backoff.next_delay_within(LONGEST_AWAY),
                            false => backoff.next_delay(),
                        };
                        tracing::debug!(%source, %error, ?delay, "retrying after a delay");
                        time::sleep(delay).await;
                    }
                }
            }
        }
    };
    stop.run_until_cancelled(watch).await;
}

/// Whether the registry itself is missing: it does not answer, or does not work.
fn is_away(reason: Reason) -> bool {
    match reason {
        Reason::Unreachable | Reason::Timeout | Reason::Unavailable | Reason::NoLeader => true,
        Reason::Throttled
        | Reason::Denied
        | Reason::Token
        | Reason::Protocol
        | Reason::InvalidInstance
        | Reason::NoPort
        | Reason::InvalidFile => false,
    }
}

/// The next update. Meanwhile, what the watcher marks by itself (a leader lost, a file corrected)
/// is logged, too.
async fn next<W: Watcher>(
    watcher: &mut W,
    logged: &mut Logged,
    status: &SourceStatus,
    clock: &dyn Clock,
) -> Result<Update, WatchError> {
    let mut next = std::pin::pin!(watcher.next());
    let mut tick = time::interval(LOG_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            outcome = &mut next => return outcome,
            _ = tick.tick() => {
                logged.update(status, clock.now());
            }
        }
    }
}

/// Which state of a source was logged last.
enum Logged {
    Nothing,
    Available,
    Lost { since: Timestamp },
}

impl Logged {
    /// Logs a change of state, and returns whether there was one.
    fn update(&mut self, status: &SourceStatus, now: Timestamp) -> bool {
        let source = status.source();
        match (&self, status.away(now)) {
            (Self::Nothing, None) => {
                tracing::info!(%source, "registry answers");
                *self = Self::Available;
            }
            (Self::Lost { since }, None) => {
                let away_seconds = now.since(*since).as_secs_f64();
                tracing::info!(%source, away_seconds, "registry answers again");
                *self = Self::Available;
            }
            (Self::Nothing | Self::Available, Some(away)) => {
                // A source that has not been asked yet is not lost.
                let Some(error) = status.last_error() else { return false };
                tracing::warn!(%source, error, "registry lost, serving the last known instances");
                let lost_at = now.since(Timestamp::default()).saturating_sub(away);
                *self = Self::Lost {
                    since: Timestamp::default() + lost_at,
                };
            }
            (Self::Available, None) | (Self::Lost { .. }, Some(_)) => return false,
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::future::pending;
    use std::io;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU64, Ordering};

    use tracing::instrument::WithSubscriber;

    use super::*;
    use crate::balancer::Source;

    const SOURCE: Source = Source::new("scripted");

    /// A clock for `backoff` that the test moves.
    #[derive(Clone)]
    struct ManualClock {
        start: std::time::Instant,
        seconds: Arc<AtomicU64>,
    }

    impl ManualClock {
        #[expect(
            clippy::disallowed_methods,
            reason = "`backoff` wants a real start; only distances from it are looked at"
        )]
        fn new() -> Self {
            Self {
                start: std::time::Instant::now(),
                seconds: Arc::default(),
            }
        }

        fn advance(&self, by: Duration) {
            self.seconds.fetch_add(by.as_secs(), Ordering::Relaxed);
        }
    }

    impl backoff::Clock for ManualClock {
        fn now(&self) -> std::time::Instant {
            self.start + Duration::from_secs(self.seconds.load(Ordering::Relaxed))
        }
    }

    /// The paused clock of the test runtime.
    struct PausedClock(time::Instant);

    impl Clock for PausedClock {
        fn now(&self) -> Timestamp {
            Timestamp::default() + self.0.elapsed()
        }
    }

    enum Step {
        Send,
        Fail(Reason),
        /// The watcher marks its own state, and waits.
        Mark(bool, Duration),
    }

    /// Follows its script, then waits for ever. Records when it was called.
    struct ScriptedWatcher {
        script: VecDeque<Step>,
        status: Arc<SourceStatus>,
        clock: Arc<PausedClock>,
        asked: Arc<Mutex<Vec<Duration>>>,
        _dropped: mpsc::Sender<()>,
    }

    impl Watcher for ScriptedWatcher {
        fn source(&self) -> Source {
            SOURCE
        }

        async fn next(&mut self) -> Result<Update, WatchError> {
            self.asked.lock().unwrap().push(self.clock.0.elapsed());
            loop {
                match self.script.pop_front() {
                    Some(Step::Send) => {
                        self.status.heard(self.clock.now());
                        return Ok(Update::Synced);
                    }
                    Some(Step::Fail(reason)) => {
                        return Err(WatchError {
                            reason,
                            detail: "no".to_owned(),
                        });
                    }
                    Some(Step::Mark(up, wait)) => {
                        if up {
                            self.status.heard(self.clock.now());
                        } else {
                            self.status.lost(self.clock.now(), &"no leader");
                        }
                        time::sleep(wait).await;
                    }
                    None => pending().await,
                }
            }
        }
    }

    /// A scripted watcher, and all that is around it.
    struct Fixture {
        watcher: Option<ScriptedWatcher>,
        status: Arc<SourceStatus>,
        clock: Arc<PausedClock>,
        asked: Arc<Mutex<Vec<Duration>>>,
        out: mpsc::Sender<(Arc<SourceStatus>, Update)>,
        updates: mpsc::Receiver<(Arc<SourceStatus>, Update)>,
        dropped: mpsc::Receiver<()>,
        stop: CancellationToken,
        log: Arc<Mutex<Vec<u8>>>,
    }

    impl Fixture {
        fn new(script: impl IntoIterator<Item = Step>, room: usize) -> Self {
            let status = Arc::new(SourceStatus::new(SOURCE, true, Box::new(|_| true)));
            let clock = Arc::new(PausedClock(time::Instant::now()));
            let asked = Arc::default();
            let (out, updates) = mpsc::channel(room);
            let (sender, dropped) = mpsc::channel(1);
            let watcher = ScriptedWatcher {
                script: script.into_iter().collect(),
                status: Arc::clone(&status),
                clock: Arc::clone(&clock),
                asked: Arc::clone(&asked),
                _dropped: sender,
            };
            Self {
                watcher: Some(watcher),
                status,
                clock,
                asked,
                out,
                updates,
                dropped,
                stop: CancellationToken::new(),
                log: Arc::default(),
            }
        }

        /// Supervises for this long of paused time.
        async fn run_for(&mut self, time: Duration) {
            let watcher = self.watcher.take().unwrap();
            let (status, clock) = (Arc::clone(&self.status), Arc::clone(&self.clock) as Arc<dyn Clock>);
            let task = supervise(watcher, status, clock, self.out.clone(), self.stop.clone());
            let log = Log(Arc::clone(&self.log));
            let subscriber = tracing_subscriber::fmt()
                .with_ansi(false)
                .without_time()
                .with_target(false)
                .with_writer(move || log.clone())
                .finish();
            let _ = time::timeout(time, task.with_subscriber(subscriber)).await;
        }

        fn log(&self) -> Vec<String> {
            let text = String::from_utf8(self.log.lock().unwrap().clone()).unwrap();
            text.lines().map(|line| line.trim().to_owned()).collect()
        }
    }

    #[derive(Clone)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn delays_double_from_a_quarter_of_a_second_up_to_half_a_minute() {
        for _ in 0..200 {
            let mut backoff = Backoff::new();
            let mut interval = INITIAL_DELAY;
            for _ in 0..12 {
                let delay = backoff.next_delay();
                assert!(delay >= interval.mul_f64(0.5), "{delay:?} for {interval:?}");
                assert!(
                    delay <= interval.mul_f64(1.5) + Duration::from_nanos(1) && delay <= LONGEST_DELAY,
                    "{delay:?}"
                );
                interval = (interval * 2).min(Duration::from_secs(20));
            }
            backoff.reset();
            assert!(backoff.next_delay() <= Duration::from_millis(375));
        }
    }

    #[test]
    fn delays_differ_between_agents() {
        let delays: std::collections::BTreeSet<_> = (0..50).map(|_| Backoff::new().next_delay()).collect();
        assert!(delays.len() > 40, "{delays:?}");
    }

    #[test]
    fn retries_go_on_after_a_day() {
        let clock = ManualClock::new();
        let mut backoff = Backoff::with_clock(clock.clone());
        backoff.next_delay();
        clock.advance(Duration::from_secs(24 * 3600));
        assert_eq!(
            backoff.0.get_elapsed_time(),
            Duration::from_secs(24 * 3600),
            "the clock was not looked at"
        );
        assert!(backoff.0.next_backoff().is_some(), "gave up");
        assert!(backoff.next_delay() <= LONGEST_DELAY);
    }

    #[tokio::test(start_paused = true)]
    async fn a_registry_that_answered_before_is_asked_every_two_seconds() {
        for (reason, longest) in [
            (Reason::Unreachable, LONGEST_AWAY),
            (Reason::Timeout, LONGEST_AWAY),
            (Reason::NoLeader, LONGEST_AWAY),
            (Reason::Denied, LONGEST_DELAY),
        ] {
            let script = std::iter::once(Step::Send).chain((0..1_000).map(|_| Step::Fail(reason)));
            let mut fixture = Fixture::new(script, 2);
            fixture.run_for(Duration::from_secs(600)).await;
            let asked = fixture.asked.lock().unwrap().clone();
            let mut delays: Vec<Duration> = asked.windows(2).map(|pair| pair[1] - pair[0]).collect();
            let most = delays.iter().max().copied().unwrap_or_default();
            assert!(most <= longest + Duration::from_millis(2), "{reason}: {most:?}");
            assert!(most > longest / 2, "{reason}: {most:?}");
            // Agents that lost a registry at the same moment do not ask again at the same moment.
            delays.sort_unstable();
            delays.dedup();
            assert!(delays.len() > 10, "{reason}: {delays:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_registry_that_is_away_for_a_day_is_asked_all_day() {
        let mut fixture = Fixture::new((0..10_000).map(|_| Step::Fail(Reason::Unreachable)), 1);
        fixture.run_for(Duration::from_secs(24 * 3600)).await;
        let asked = fixture.asked.lock().unwrap().clone();
        // One attempt every 10 to 30 s, after the delays have grown.
        assert!((2880..8650).contains(&asked.len()), "{}", asked.len());
        assert!(asked.last().unwrap() > &Duration::from_secs(24 * 3600 - 31));
        assert!(
            asked
                .windows(2)
                .all(|pair| pair[1] - pair[0] <= LONGEST_DELAY + Duration::from_millis(2))
        );
        assert_eq!(fixture.status.errors()["unreachable"], asked.len() as u64);
    }

    #[tokio::test(start_paused = true)]
    async fn a_success_resets_the_delays() {
        let fail = || Step::Fail(Reason::Timeout);
        let script = (0..8).map(|_| fail()).chain([Step::Send, fail()]);
        let mut fixture = Fixture::new(script, 4);
        fixture.run_for(Duration::from_secs(600)).await;
        let asked = fixture.asked.lock().unwrap().clone();
        assert_eq!(asked.len(), 11);
        assert!(asked[8] - asked[7] >= Duration::from_secs(10), "the delays had grown");
        assert_eq!(asked[9], asked[8], "no delay after a success");
        assert!(asked[10] - asked[9] <= Duration::from_millis(380));
        let (status, update) = fixture.updates.recv().await.unwrap();
        assert!(Arc::ptr_eq(&status, &fixture.status) && update == Update::Synced);
        assert_eq!((fixture.status.updates(), fixture.status.errors()["timeout"]), (1, 9));
    }

    #[tokio::test(start_paused = true)]
    async fn loss_and_recovery_are_logged_once_with_the_time_in_between() {
        let fail = || Step::Fail(Reason::Unreachable);
        let mut fixture = Fixture::new([Step::Send, fail(), fail(), fail(), fail(), Step::Send, Step::Send], 9);
        fixture.run_for(Duration::from_secs(60)).await;
        let log = fixture.log();
        assert_eq!(log.len(), 3, "{log:#?}");
        assert!(log[0].starts_with("INFO registry answers"), "{log:#?}");
        assert!(
            log[1].starts_with("WARN registry lost, serving the last known instances"),
            "{log:#?}"
        );
        assert!(
            log[1].contains("unreachable: no") && log[1].contains("source=scripted"),
            "{log:#?}"
        );
        let away: f64 = log[2].split_once("away_seconds=").unwrap().1.parse().unwrap();
        assert!(log[2].starts_with("INFO registry answers again"), "{log:#?}");
        assert!((1.875..5.7).contains(&away), "{away} s for four delays");
        assert!(fixture.status.is_up());
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_leader_is_logged_although_no_call_failed() {
        let seconds = Duration::from_secs;
        let mut fixture = Fixture::new(
            [
                Step::Send,
                Step::Mark(false, seconds(40)),
                Step::Mark(true, seconds(40)),
            ],
            9,
        );
        fixture.run_for(seconds(20)).await;
        assert!(!fixture.status.is_up());
        assert_eq!(fixture.log().len(), 2, "{:#?}", fixture.log());

        let mut fixture = Fixture::new(
            [
                Step::Send,
                Step::Mark(false, seconds(40)),
                Step::Mark(true, seconds(40)),
            ],
            9,
        );
        fixture.run_for(seconds(60)).await;
        assert!(fixture.log()[2].contains("answers again"), "{:#?}", fixture.log());
        assert!(fixture.log()[2].contains("away_seconds=40"), "{:#?}", fixture.log());
    }

    #[tokio::test(start_paused = true)]
    async fn each_invalid_version_of_a_file_is_logged_without_delay() {
        let fail = || Step::Fail(Reason::InvalidFile);
        let mut fixture = Fixture::new([fail(), fail(), fail(), Step::Send], 9);
        fixture.run_for(Duration::from_millis(500)).await;
        assert!(fixture.asked.lock().unwrap().iter().all(Duration::is_zero));
        let warnings = fixture.log().iter().filter(|line| line.starts_with("WARN")).count();
        assert_eq!(warnings, 3, "{:#?}", fixture.log());
    }

    #[tokio::test(start_paused = true)]
    async fn the_agent_marks_the_source_as_synced() {
        let mut fixture = Fixture::new([Step::Send], 1);
        fixture.run_for(Duration::from_secs(1)).await;
        let (status, update) = fixture.updates.recv().await.unwrap();
        assert!(Arc::ptr_eq(&status, &fixture.status) && update == Update::Synced);
        assert!(!fixture.status.is_synced());
    }

    #[tokio::test(start_paused = true)]
    async fn supervision_stops_at_once_in_every_state() {
        let waiting = Vec::new();
        let sleeping = (0..9).map(|_| Step::Fail(Reason::Timeout)).collect();
        let sending = (0..9).map(|_| Step::Send).collect::<Vec<_>>();
        for script in [waiting, sleeping, sending] {
            let mut fixture = Fixture::new(script, 1);
            let stop = fixture.stop.clone();
            let started = time::Instant::now();
            tokio::spawn(async move {
                time::sleep(Duration::from_secs(20)).await;
                stop.cancel();
            });
            fixture.run_for(Duration::from_secs(3600)).await;
            assert_eq!(started.elapsed().as_secs(), 20);
            assert_eq!(fixture.dropped.recv().await, None, "the watcher outlived its stop");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn supervision_ends_when_the_receiver_is_gone() {
        let mut fixture = Fixture::new([Step::Send, Step::Send], 1);
        fixture.updates.close();
        let started = time::Instant::now();
        fixture.run_for(Duration::from_secs(3600)).await;
        assert_eq!(started.elapsed(), Duration::ZERO);
        assert_eq!(fixture.dropped.recv().await, None);
    }
}
