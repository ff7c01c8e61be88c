//! Runs any [`Watcher`] for as long as the agent lives: retries it, tells the operator when it goes and comes back, stops it.
//!
//! ```text
//!          ┌──────────── reset the backoff ◄──────────┐
//!          ▼                                          │
//!      watcher.next() ──Ok──► count, hand on to the agent
//!          ▲    │
//!          │   Err ──► count, mark as lost
//!          └── sleep 250 ms .. 30 s, with jitter
//! ```
//!
//! Who writes what into a source's [`SourceStatus`]:
//!
//! - The *watcher* marks `heard` and `lost` on each answer, for only it knows an answer from a good answer (a Consul without a
//!   leader does answer). So nothing here marks a source as heard.
//! - *This module* marks `lost` when `next` fails, and counts errors and updates.
//! - The *agent* calls `mark_synced`, once it has applied all that came before [`Update::Synced`]:
//!   earlier, a pick could find a service missing that is only on its way.
//! - The two log lines of a source's life, lost and back, are written here, whoever marked it: once each.
//!
//! Knows no protocol, and not what an update means.

use std::sync::Arc;
use std::time::Duration;

// Asked for by name. Unmaintained (RUSTSEC-2025-0012, and 2024-0384 for `instant` below it), noted in deny.toml; this module
// is its only importer, so that replacing it stays a change of one file.
use backoff::SystemClock;
use backoff::backoff::Backoff as _;
use backoff::exponential::ExponentialBackoff;
use tokio::sync::mpsc;
use tokio::time::{self, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::watcher::{Reason, Update, WatchError, Watcher};
use crate::balancer::{Clock, SourceStatus, Timestamp};

/// The first delay, before jitter.
const INITIAL: Duration = Duration::from_millis(250);
/// The longest delay, after jitter.
const CEILING: Duration = Duration::from_secs(30);
/// Each delay is drawn from +-50 % of the interval, so that a thousand agents do not return as one.
const JITTER: f64 = 0.5;
/// How soon a change of state that a watcher marked by itself is told.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Delays between attempts: 250 ms, doubling, each with a jitter of +-50 %, never above 30 s, without end.
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
    /// The same over another clock.
    #[must_use]
    pub fn with_clock(clock: C) -> Self {
        Self(ExponentialBackoff {
            current_interval: INITIAL,
            initial_interval: INITIAL,
            randomization_factor: JITTER,
            multiplier: 2.0,
            max_interval: CEILING.div_f64(1.0 + JITTER),
            start_time: clock.now(),
            // The crate's default gives up after 15 minutes; a registry may be away for a night.
            max_elapsed_time: None,
            clock,
        })
    }

    /// How long to wait before the next attempt.
    pub fn next_delay(&mut self) -> Duration {
        self.0.next_backoff().unwrap_or(CEILING).min(CEILING)
    }

    /// Starts over, after a success.
    pub fn reset(&mut self) {
        self.0.reset();
    }
}

/// Runs a watcher until `stop` is cancelled or the other end of `out` is gone; then drops it.
///
/// A failing watcher is asked again, for ever. Stops at once, also in the midst of a delay or of a send to a slow agent.
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
        let mut report = Report::Silent;
        loop {
            match next(&mut watcher, &mut report, &status, &*clock).await {
                Ok(update) => {
                    backoff.reset();
                    status.count_update();
                    report.tell(&status, clock.now());
                    if out.send((Arc::clone(&status), update)).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    status.count_error(error.reason.as_str());
                    status.lost(clock.now(), &error);
                    let told = report.tell(&status, clock.now());
                    if error.reason == Reason::InvalidFile {
                        // Said once for each version of a file, and an operator who saved another wrong one wants to read
                        // why. The watcher then waits for the next version by itself: a fix must not wait for a delay.
                        if !told {
                            tracing::warn!(%source, %error, "still unusable, serving what it said last");
                        }
                    } else {
                        let delay = backoff.next_delay();
                        tracing::debug!(%source, %error, ?delay, "asking again after a delay");
                        time::sleep(delay).await;
                    }
                }
            }
        }
    };
    stop.run_until_cancelled(watch).await;
}

/// The watcher's next word. While it waits, what it marks by itself (a leader lost, a file mended) is told too.
async fn next<W: Watcher>(
    watcher: &mut W,
    report: &mut Report,
    status: &SourceStatus,
    clock: &dyn Clock,
) -> Result<Update, WatchError> {
    let mut next = std::pin::pin!(watcher.next());
    let mut tick = time::interval(TELL_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            outcome = &mut next => return outcome,
            _ = tick.tick() => {
                report.tell(status, clock.now());
            }
        }
    }
}

/// What the operator was last told of a source.
enum Report {
    Silent,
    Answers,
    Away { since: Timestamp },
}

impl Report {
    /// Writes a line if there is news, and returns whether there was.
    fn tell(&mut self, status: &SourceStatus, now: Timestamp) -> bool {
        let source = status.source();
        match (&self, status.away(now)) {
            (Self::Silent, None) => {
                tracing::info!(%source, "registry answers");
                *self = Self::Answers;
            }
            (Self::Away { since }, None) => {
                let away_seconds = now.since(*since).as_secs_f64();
                tracing::info!(%source, away_seconds, "registry answers again");
                *self = Self::Answers;
            }
            (Self::Silent | Self::Answers, Some(away)) => {
                // A source that has not been asked yet is no news.
                let Some(error) = status.last_error() else { return false };
                tracing::warn!(%source, error, "registry lost, serving what it said last");
                let lost_at = now.since(Timestamp::default()).saturating_sub(away);
                *self = Self::Away {
                    since: Timestamp::default() + lost_at,
                };
            }
            (Self::Answers, None) | (Self::Away { .. }, Some(_)) => return false,
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

    /// A clock for `backoff`, moved by hand.
    #[derive(Clone)]
    struct Dial {
        start: std::time::Instant,
        seconds: Arc<AtomicU64>,
    }

    impl Dial {
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

    impl backoff::Clock for Dial {
        fn now(&self) -> std::time::Instant {
            self.start + Duration::from_secs(self.seconds.load(Ordering::Relaxed))
        }
    }

    /// The paused clock of a test runtime.
    struct Paused(time::Instant);

    impl Clock for Paused {
        fn now(&self) -> Timestamp {
            Timestamp::default() + self.0.elapsed()
        }
    }

    enum Step {
        Say,
        Fail(Reason),
        /// The watcher marks its own state and goes on waiting.
        Mark(bool, Duration),
    }

    /// Does what the script says, then waits for ever. Notes when it was asked.
    struct Scripted {
        script: VecDeque<Step>,
        status: Arc<SourceStatus>,
        clock: Arc<Paused>,
        asked: Arc<Mutex<Vec<Duration>>>,
        _dropped: mpsc::Sender<()>,
    }

    impl Watcher for Scripted {
        fn source(&self) -> Source {
            SOURCE
        }

        async fn next(&mut self) -> Result<Update, WatchError> {
            self.asked.lock().unwrap().push(self.clock.0.elapsed());
            loop {
                match self.script.pop_front() {
                    Some(Step::Say) => {
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

    /// All the parts around a scripted watcher.
    struct Stage {
        watcher: Option<Scripted>,
        status: Arc<SourceStatus>,
        clock: Arc<Paused>,
        asked: Arc<Mutex<Vec<Duration>>>,
        out: mpsc::Sender<(Arc<SourceStatus>, Update)>,
        updates: mpsc::Receiver<(Arc<SourceStatus>, Update)>,
        dropped: mpsc::Receiver<()>,
        stop: CancellationToken,
        log: Arc<Mutex<Vec<u8>>>,
    }

    impl Stage {
        fn new(script: impl IntoIterator<Item = Step>, room: usize) -> Self {
            let status = Arc::new(SourceStatus::new(SOURCE, true, Box::new(|_| true)));
            let clock = Arc::new(Paused(time::Instant::now()));
            let asked = Arc::default();
            let (out, updates) = mpsc::channel(room);
            let (sender, dropped) = mpsc::channel(1);
            let watcher = Scripted {
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
        async fn play(&mut self, time: Duration) {
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
            let mut interval = INITIAL;
            for _ in 0..12 {
                let delay = backoff.next_delay();
                assert!(delay >= interval.mul_f64(0.5), "{delay:?} for {interval:?}");
                assert!(
                    delay <= interval.mul_f64(1.5) + Duration::from_nanos(1) && delay <= CEILING,
                    "{delay:?}"
                );
                interval = (interval * 2).min(Duration::from_secs(20));
            }
            backoff.reset();
            assert!(backoff.next_delay() <= Duration::from_millis(375));
        }
    }

    #[test]
    fn no_two_agents_wait_alike() {
        let delays: std::collections::BTreeSet<_> = (0..50).map(|_| Backoff::new().next_delay()).collect();
        assert!(delays.len() > 40, "{delays:?}");
    }

    #[test]
    fn it_still_retries_after_a_day() {
        let clock = Dial::new();
        let mut backoff = Backoff::with_clock(clock.clone());
        backoff.next_delay();
        clock.advance(Duration::from_secs(24 * 3600));
        assert_eq!(
            backoff.0.get_elapsed_time(),
            Duration::from_secs(24 * 3600),
            "the clock was not looked at"
        );
        assert!(backoff.0.next_backoff().is_some(), "gave up");
        assert!(backoff.next_delay() <= CEILING);
    }

    #[tokio::test(start_paused = true)]
    async fn a_registry_that_is_away_for_a_day_is_asked_all_day() {
        let mut stage = Stage::new((0..10_000).map(|_| Step::Fail(Reason::Unreachable)), 1);
        stage.play(Duration::from_secs(24 * 3600)).await;
        let asked = stage.asked.lock().unwrap().clone();
        // One attempt every 10 to 30 s once the delays have grown.
        assert!((2880..8650).contains(&asked.len()), "{}", asked.len());
        assert!(asked.last().unwrap() > &Duration::from_secs(24 * 3600 - 31));
        assert!(
            asked
                .windows(2)
                .all(|pair| pair[1] - pair[0] <= CEILING + Duration::from_millis(2))
        );
        assert_eq!(stage.status.errors()["unreachable"], asked.len() as u64);
    }

    #[tokio::test(start_paused = true)]
    async fn a_success_starts_the_delays_over() {
        let fail = || Step::Fail(Reason::Timeout);
        let script = (0..8).map(|_| fail()).chain([Step::Say, fail()]);
        let mut stage = Stage::new(script, 4);
        stage.play(Duration::from_secs(600)).await;
        let asked = stage.asked.lock().unwrap().clone();
        assert_eq!(asked.len(), 11);
        assert!(asked[8] - asked[7] >= Duration::from_secs(10), "the delays had grown");
        assert_eq!(asked[9], asked[8], "no delay after a success");
        assert!(asked[10] - asked[9] <= Duration::from_millis(380));
        let (status, update) = stage.updates.recv().await.unwrap();
        assert!(Arc::ptr_eq(&status, &stage.status) && update == Update::Synced);
        assert_eq!((stage.status.updates(), stage.status.errors()["timeout"]), (1, 9));
    }

    #[tokio::test(start_paused = true)]
    async fn lost_and_back_are_told_once_each_with_how_long_it_was_away() {
        let fail = || Step::Fail(Reason::Unreachable);
        let mut stage = Stage::new([Step::Say, fail(), fail(), fail(), fail(), Step::Say, Step::Say], 9);
        stage.play(Duration::from_secs(60)).await;
        let log = stage.log();
        assert_eq!(log.len(), 3, "{log:#?}");
        assert!(log[0].starts_with("INFO registry answers"), "{log:#?}");
        assert!(
            log[1].starts_with("WARN registry lost, serving what it said last"),
            "{log:#?}"
        );
        assert!(
            log[1].contains("unreachable: no") && log[1].contains("source=scripted"),
            "{log:#?}"
        );
        let away: f64 = log[2].split_once("away_seconds=").unwrap().1.parse().unwrap();
        assert!(log[2].starts_with("INFO registry answers again"), "{log:#?}");
        assert!((1.875..5.7).contains(&away), "{away} s for four delays");
        assert!(stage.status.is_up());
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_lost_is_told_although_nothing_failed_and_is_not_overruled() {
        let seconds = Duration::from_secs;
        let mut stage = Stage::new(
            [Step::Say, Step::Mark(false, seconds(40)), Step::Mark(true, seconds(40))],
            9,
        );
        stage.play(seconds(20)).await;
        assert!(!stage.status.is_up());
        assert_eq!(stage.log().len(), 2, "{:#?}", stage.log());

        let mut stage = Stage::new(
            [Step::Say, Step::Mark(false, seconds(40)), Step::Mark(true, seconds(40))],
            9,
        );
        stage.play(seconds(60)).await;
        assert!(stage.log()[2].contains("answers again"), "{:#?}", stage.log());
        assert!(stage.log()[2].contains("away_seconds=40"), "{:#?}", stage.log());
    }

    #[tokio::test(start_paused = true)]
    async fn each_bad_version_of_a_file_is_told_and_none_delays_the_next() {
        let fail = || Step::Fail(Reason::InvalidFile);
        let mut stage = Stage::new([fail(), fail(), fail(), Step::Say], 9);
        stage.play(Duration::from_millis(500)).await;
        assert!(stage.asked.lock().unwrap().iter().all(Duration::is_zero));
        let warnings = stage.log().iter().filter(|line| line.starts_with("WARN")).count();
        assert_eq!(warnings, 3, "{:#?}", stage.log());
    }

    #[tokio::test(start_paused = true)]
    async fn synced_is_left_to_the_agent() {
        let mut stage = Stage::new([Step::Say], 1);
        stage.play(Duration::from_secs(1)).await;
        let (status, update) = stage.updates.recv().await.unwrap();
        assert!(Arc::ptr_eq(&status, &stage.status) && update == Update::Synced);
        assert!(!stage.status.is_synced());
    }

    #[tokio::test(start_paused = true)]
    async fn it_stops_at_once_wherever_it_is() {
        let waiting = Vec::new();
        let sleeping = (0..9).map(|_| Step::Fail(Reason::Timeout)).collect();
        let sending = (0..9).map(|_| Step::Say).collect::<Vec<_>>();
        for script in [waiting, sleeping, sending] {
            let mut stage = Stage::new(script, 1);
            let stop = stage.stop.clone();
            let started = time::Instant::now();
            tokio::spawn(async move {
                time::sleep(Duration::from_secs(20)).await;
                stop.cancel();
            });
            stage.play(Duration::from_secs(3600)).await;
            assert_eq!(started.elapsed().as_secs(), 20);
            assert_eq!(stage.dropped.recv().await, None, "the watcher outlived its stop");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_ends_with_the_agent_that_listens() {
        let mut stage = Stage::new([Step::Say, Step::Say], 1);
        stage.updates.close();
        let started = time::Instant::now();
        stage.play(Duration::from_secs(3600)).await;
        assert_eq!(started.elapsed(), Duration::ZERO);
        assert_eq!(stage.dropped.recv().await, None);
    }
}
