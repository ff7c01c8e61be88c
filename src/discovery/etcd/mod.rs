//! etcd: everything below some prefixes, listed once and watched from there.
//!
//! ```text
//!            ┌─────────────────────── a connection to one endpoint ──────────────────────┐
//!   Idle ──► │ Opening: log in, list (pinned pages) ──► Subscribing ──► Following        │
//!    ▲       │                  │ replace                            put, delete │  │     │
//!    │       │                  ▼                                                ▼  │     │
//!    │       │                keys.rs ◄──────────── repair ◄── a list now and then ─┘     │
//!    │       └──────────────────┬───────────────────────────────────────────────────┬────┘
//!    │                          └─► Update                                          │
//!    └───────────── compacted, rolled back, canceled, expired, silent, gone ◄───────┘
//! ```
//!
//! etcd's watch is exact while it lasts, and does not always say when it does not: a canceled watch leaves its stream open, one
//! on a cluster that lost its data is silent for ever, one that fell behind the compaction has lost something. Whatever ends
//! a watch, what follows is a new connection and a list, which is compared with what was known: the first after a gap, so that
//! a large drop is doubted and looked at again. And while all is well, everything is read anew every few minutes: what differs
//! then is corrected, and counted as drift.
//!
//! What is in flight (a connection being opened, a list, the stream) are fields of the watcher: a cancelled `next` abandons
//! none. Nothing is spawned here; the connection's own task is tonic's.

mod client;
pub mod formats;
mod keys;
mod settings;
mod watch_messages;
mod wire;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

pub use formats::{Format, InvalidPrefix, Prefix, SOURCE};
pub use settings::{Password, Settings, User};

use self::client::{Cause, Client, Feed, Link, NotOpened, Opened, Trouble};
use self::formats::Prefixes;
use self::keys::Keys;
use self::watch_messages::{Step, WatchMessages};
use self::wire::{Listing, Message, Position};
use super::watcher::{CONFIRM_AFTER, Trust, Update, WatchError, Watcher};
use crate::balancer::{Clock, Source, SourceStatus, Timestamp};
use crate::http_client::HttpError;

/// Timers fire a little early at times; this keeps a due time just ahead from being looked at in a tight loop.
const TICK: Duration = Duration::from_millis(1);
/// A watch that ends sooner counts towards longer and longer pauses.
const SHORT: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Agents that lose the same member do not all list the next one at the same moment.
const SPLAY: Duration = Duration::from_millis(200);
/// How often a quiet watch is asked for a sign of life.
const PROGRESS: Duration = Duration::from_secs(10);
/// The time that a watch has to say what a list says already, before that counts as drift.
const SETTLE: Duration = Duration::from_secs(2);

type Flight<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Why everything was listed again, a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relist {
    /// For the first time.
    Start,
    /// The connection was lost.
    Reconnect,
    /// The history to go on with is not kept any more.
    Compacted,
    /// It is another history.
    Rollback,
    /// The token had expired.
    Token,
    /// The server ended the watch.
    Canceled,
    /// A second look after a doubtful one.
    Confirm,
    /// It was time.
    Periodic,
}

impl Relist {
    fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Reconnect => "reconnect",
            Self::Compacted => "compacted",
            Self::Rollback => "rollback",
            Self::Token => "token",
            Self::Canceled => "canceled",
            Self::Confirm => "confirm",
            Self::Periodic => "periodic",
        }
    }

    fn after(cause: Cause) -> Self {
        match cause {
            Cause::Compacted => Self::Compacted,
            Cause::Rollback => Self::Rollback,
            Cause::Token => Self::Token,
            Cause::Canceled => Self::Canceled,
            _ => Self::Reconnect,
        }
    }
}

/// Watches the prefixes of one etcd cluster.
pub struct EtcdWatcher {
    client: Client,
    clock: Arc<dyn Clock>,
    status: Arc<SourceStatus>,
    refresh: Duration,
    keys: Keys,
    phase: Phase,
    /// The one in use, or to be used next.
    endpoint: usize,
    /// Endpoints that could not be listed since the last that could.
    failed: usize,
    /// Watches in a row that ended soon.
    short: u32,
    not_before: Timestamp,
    why: Relist,
    /// Where the last list, or the watch behind it, had come to.
    at: Option<Position>,
    /// When the second look is due that is owed after a doubtful one.
    confirm_at: Option<Timestamp>,
    trouble: Option<Trouble>,
}

enum Phase {
    Idle,
    Opening(Flight<Result<Opened, NotOpened>>),
    Subscribing {
        link: Link,
        listed: (Position, Timestamp),
        flight: Flight<Result<Feed, Trouble>>,
    },
    Following(Box<Session>),
}

/// A watch under way.
struct Session {
    link: Link,
    feed: Feed,
    messages: WatchMessages,
    since: Timestamp,
    second: Second,
    refresh_at: Timestamp,
    progress_at: Timestamp,
}

/// Another list while the watch goes on.
enum Second {
    None,
    Reading(Relist, Flight<Result<Listing, Trouble>>),
    /// Read; the watch has until then to say the same.
    Settling(Timestamp, Listing),
}

/// What `next` was woken by.
enum Happened {
    Opened(Result<Opened, NotOpened>),
    Subscribed(Result<Feed, Trouble>),
    Message(Result<Message, Trouble>),
    Listed(Relist, Result<Listing, Trouble>),
    Time,
}

impl EtcdWatcher {
    /// A watcher that has connected to nothing yet.
    ///
    /// # Errors
    ///
    /// When an endpoint is no address, or a certificate or key file cannot be used. Whether etcd is there shows in `next`.
    pub fn new(settings: Settings, status: Arc<SourceStatus>, clock: Arc<dyn Clock>) -> Result<Self, HttpError> {
        let prefixes: Prefixes = settings.prefixes.as_slice().into();
        let client = Client::new(&settings, Arc::clone(&prefixes))?;
        // Not all agents of a cluster on the same member.
        let endpoint = fastrand::usize(..client.endpoints());
        Ok(Self {
            keys: Keys::new(prefixes, Arc::clone(&status)),
            client,
            status,
            refresh: settings.refresh,
            phase: Phase::Idle,
            endpoint,
            failed: 0,
            short: 0,
            not_before: clock.now(),
            why: Relist::Start,
            at: None,
            confirm_at: None,
            trouble: None,
            clock,
        })
    }

    /// Starts what is due now.
    fn start(&mut self, now: Timestamp) {
        match &mut self.phase {
            Phase::Idle if now >= self.not_before => {
                let remember = !self.keys.is_listed();
                self.phase = Phase::Opening(Box::pin(self.client.open(self.endpoint, remember)));
            }
            Phase::Following(session) => {
                if now >= session.progress_at {
                    session.progress_at = now + PROGRESS;
                    session.feed.ask_progress();
                }
                match &session.second {
                    Second::None => {
                        let why = match self.confirm_at {
                            Some(at) if now >= at => Relist::Confirm,
                            _ if now >= session.refresh_at => Relist::Periodic,
                            _ => return,
                        };
                        self.keys.expect_list();
                        session.second = Second::Reading(why, Box::pin(session.link.list()));
                    }
                    Second::Settling(until, _) if now >= *until => {
                        if let Second::Settling(_, listing) = std::mem::replace(&mut session.second, Second::None) {
                            self.compare(listing, now);
                        }
                    }
                    Second::Reading(..) | Second::Settling(..) => {}
                }
            }
            _ => {}
        }
    }

    /// When to look at the clock again.
    fn wake(&self) -> Option<Timestamp> {
        let phase = match &self.phase {
            Phase::Idle => Some(self.not_before),
            Phase::Opening(_) | Phase::Subscribing { .. } => None,
            Phase::Following(session) => {
                let second = match &session.second {
                    Second::None => self.confirm_at.into_iter().chain([session.refresh_at]).min(),
                    Second::Reading(..) => None,
                    Second::Settling(until, _) => Some(*until),
                };
                second.into_iter().chain([session.progress_at]).min()
            }
        };
        phase.into_iter().chain(self.keys.due()).min()
    }

    /// Waits for the next thing to happen. Cancel safe.
    async fn happening(&mut self, now: Timestamp) -> Happened {
        let pause = self
            .wake()
            .map_or(Duration::from_secs(60), |at| at.since(now).max(TICK));
        let time = tokio::time::sleep(pause);
        match &mut self.phase {
            Phase::Idle => {
                time.await;
                Happened::Time
            }
            Phase::Opening(flight) => tokio::select! {
                opened = flight => Happened::Opened(opened),
                () = time => Happened::Time,
            },
            Phase::Subscribing { flight, .. } => tokio::select! {
                feed = flight => Happened::Subscribed(feed),
                () = time => Happened::Time,
            },
            Phase::Following(session) => {
                let Session { feed, second, .. } = &mut **session;
                let (why, listing) = match second {
                    Second::Reading(why, flight) => (*why, Some(flight)),
                    _ => (Relist::Periodic, None),
                };
                let listing = async {
                    match listing {
                        Some(flight) => flight.await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    message = feed.message() => Happened::Message(message),
                    listing = listing => Happened::Listed(why, listing),
                    () = time => Happened::Time,
                }
            }
        }
    }

    fn take(&mut self, happened: Happened, now: Timestamp) {
        match happened {
            Happened::Opened(Ok(Opened { link, listing })) => self.opened(link, listing, now),
            Happened::Opened(Err(NotOpened { trouble, remembered })) => {
                if let Some(listing) = remembered {
                    tracing::warn!(source = %SOURCE, keys = listing.keys.len(), revision = listing.at.revision,
                        "no leader: starting with what one member remembers");
                    self.keys.replace(listing, Trust::AdditionsOnly, now);
                }
                self.not_opened(trouble);
            }
            Happened::Subscribed(Ok(feed)) => self.subscribed(feed, now),
            Happened::Subscribed(Err(trouble)) | Happened::Message(Err(trouble)) => self.broken(trouble, now),
            Happened::Message(Ok(message)) => self.heard(message, now),
            Happened::Listed(why, Ok(listing)) => self.listed_again(why, listing, now),
            Happened::Listed(_, Err(trouble)) => self.broken(trouble, now),
            Happened::Time => {}
        }
    }

    fn opened(&mut self, link: Link, listing: Listing, now: Timestamp) {
        if let Some(before) = self.at
            && let Some(detail) = listing.at.breaks_with(before)
        {
            tracing::warn!(source = %SOURCE, endpoint = link.endpoint(), detail, "etcd's history went back");
            self.why = Relist::Rollback;
        }
        self.failed = 0;
        self.status.heard(now);
        self.status.count_relist(self.why.as_str());
        tracing::info!(source = %SOURCE, endpoint = link.endpoint(), why = self.why.as_str(), keys = listing.keys.len(),
            revision = listing.at.revision, "listed");
        let at = listing.at;
        self.at = Some(at);
        self.keys.replace(listing, Trust::AfterGap, now);
        self.confirm_at = self.keys.is_owed().then(|| now + CONFIRM_AFTER);
        let flight = Box::pin(link.follow(at.revision + 1));
        self.phase = Phase::Subscribing {
            link,
            listed: (at, now),
            flight,
        };
    }

    /// On to the next endpoint; when none could be listed, that is an error.
    fn not_opened(&mut self, trouble: Trouble) {
        self.phase = Phase::Idle;
        self.failed += 1;
        self.next_endpoint();
        if self.failed >= self.client.endpoints() {
            self.failed = 0;
            self.trouble = Some(trouble);
        } else {
            self.status.count_error(trouble.cause.reason().as_str());
            tracing::info!(source = %SOURCE, error = trouble.detail, "asking the next endpoint");
        }
    }

    fn subscribed(&mut self, feed: Feed, now: Timestamp) {
        let Phase::Subscribing { link, listed, .. } = std::mem::replace(&mut self.phase, Phase::Idle) else {
            return;
        };
        let jitter = 0.5 + fastrand::f64();
        self.phase = Phase::Following(Box::new(Session {
            link,
            feed,
            messages: WatchMessages::from(listed.0),
            since: listed.1,
            second: Second::None,
            refresh_at: now + self.refresh.mul_f64(jitter),
            progress_at: now + PROGRESS,
        }));
    }

    fn heard(&mut self, message: Message, now: Timestamp) {
        let Phase::Following(session) = &mut self.phase else {
            return;
        };
        match session.messages.take(message) {
            Step::Over(trouble) => self.broken(trouble, now),
            step => {
                self.at = Some(session.messages.at());
                self.status.heard(now);
                if let Step::Events(events) = step {
                    self.keys.follow(events, now);
                }
            }
        }
    }

    fn listed_again(&mut self, why: Relist, listing: Listing, now: Timestamp) {
        let Phase::Following(session) = &mut self.phase else {
            return;
        };
        session.second = Second::None;
        if let Some(detail) = listing.at.breaks_with(session.messages.at()) {
            self.broken(Trouble::new(Cause::Rollback, detail), now);
            return;
        }
        self.status.heard(now);
        self.status.count_relist(why.as_str());
        if why == Relist::Confirm {
            self.confirm_at = None;
            // So soon after a list, what the watch has not said yet is no drift.
            self.keys.repair(listing, now);
            self.keys.confirm(now);
        } else {
            session.refresh_at = now + self.refresh.mul_f64(0.5 + fastrand::f64());
            session.second = Second::Settling(now + SETTLE, listing);
        }
    }

    fn compare(&mut self, listing: Listing, now: Timestamp) {
        let repaired = self.keys.repair(listing, now);
        if repaired > 0 {
            self.status.count_drift(repaired as u64);
            tracing::warn!(source = %SOURCE, repaired, "keys had changed without the watch saying so; corrected");
        }
    }

    /// The connection is of no use any more: another one, and a list.
    fn broken(&mut self, trouble: Trouble, now: Timestamp) {
        let since = match &self.phase {
            Phase::Following(session) => session.since,
            Phase::Subscribing { listed, .. } => listed.1,
            Phase::Idle | Phase::Opening(_) => now,
        };
        self.phase = Phase::Idle;
        self.why = Relist::after(trouble.cause);
        self.status.count_error(trouble.cause.reason().as_str());
        let pause = self.pause(now.since(since));
        self.not_before = now + pause;
        if self.why == Relist::Reconnect {
            self.next_endpoint();
        }
        tracing::info!(source = %SOURCE, error = trouble.detail, ?pause, "the watch is over, listing again");
    }

    /// None to speak of after a watch that lasted; longer and longer after one that did not, or a server that ends each
    /// at once would be listed without end.
    fn pause(&mut self, lasted: Duration) -> Duration {
        if lasted >= SHORT {
            self.short = 0;
            return SPLAY.mul_f64(fastrand::f64());
        }
        let pause = Duration::from_millis(250)
            .saturating_mul(1 << self.short.min(7))
            .min(LONGEST_PAUSE);
        self.short += 1;
        pause.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    fn next_endpoint(&mut self) {
        self.endpoint = (self.endpoint + 1) % self.client.endpoints();
    }
}

impl Watcher for EtcdWatcher {
    fn source(&self) -> Source {
        SOURCE
    }

    async fn next(&mut self) -> Result<Update, WatchError> {
        loop {
            let now = self.clock.now();
            if let Some(update) = self.keys.news(now) {
                return Ok(update);
            }
            if let Some(Trouble { cause, detail }) = self.trouble.take() {
                return Err(WatchError {
                    reason: cause.reason(),
                    detail,
                });
            }
            self.start(now);
            let happened = self.happening(now).await;
            self.take(happened, self.clock.now());
        }
    }
}

impl std::fmt::Debug for EtcdWatcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdWatcher")
            .field("keys", &self.keys.len())
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}
