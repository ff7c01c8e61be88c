//! etcd: all keys below some prefixes, listed once and watched from there.
//!
//! ```text
//!            ┌─────────────────── a connection to one endpoint ──────────────────┐
//!   Idle ──► │ Opening: log in, list (pinned pages) ──► Subscribing ──► Watching │
//!    ▲       │                  │ replace                    put, delete │  │   │
//!    │       │                  ▼                                        ▼  │   │
//!    │       │                 keys ◄─────────── repair ◄── a periodic list ┘   │
//!    │       └──────────────────┬───────────────────────────────────────────┬───┘
//!    │                          └─► Update                                  │
//!    └───────────── compacted, rolled back, canceled, expired, closed ◄─────┘
//! ```
//!
//! An etcd watch is exact while it lasts, but etcd does not always say when it ends. A canceled
//! watch leaves its stream open, a watch on a cluster that lost its data is silent for ever, and a
//! watch that fell behind the compaction has missed events. After a watch ends, a new connection
//! lists all keys, and the list is compared with the known keys. The first list after a gap is
//! confirmed by a second list if instances are missing. During a watch, all keys are listed every
//! few minutes: a difference is corrected, and counted as drift.
//!
//! Each prefix stands for itself: if the user may read some prefixes only, these are followed, and
//! the others are asked for now and then. The source has synced when every prefix was read once.
//!
//! What is in flight (a connection that opens, a list, the stream) are fields of the watcher, so
//! that a cancelled `next` loses none of them. No task is spawned here; each connection has a task
//! of tonic's.
//!
//! The files import only downwards:
//!
//! ```text
//! mod             the watcher                explain   what a dump of keys would become
//! keys            what the keys register     watch_messages   what ends a watch
//!                                            client           connections, lists, streams
//! wire            lists and events, without etcd's crate      settings
//! formats         keys and values become instances
//! ```

mod client;
mod explain;
pub mod formats;
mod keys;
mod settings;
mod skipped;
mod watch_messages;
mod wire;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

pub use explain::{Explained, KeyOutcome, Pair, explain, parse_dump};
pub use formats::{InvalidPrefix, KeyPath, Prefix, SOURCE, ValueFormat};
pub use settings::{EtcdSettings, Password, User};

use self::client::{Cause, Client, Connection, Failure, NotOpened, Opened, WatchStream};
use self::formats::Prefixes;
use self::keys::Keys;
use self::watch_messages::{Step, WatchMessages};
use self::wire::{Listing, Message, Position, Unreadable};
use super::shared::pause_until;
use super::watcher::{CONFIRM_AFTER, Reason, Trust, Update, WatchError, Watcher};
use crate::balancer::{Clock, Source, SourceStatus, Timestamp};
use crate::http_client::HttpError;

/// The pauses grow after watches that end sooner than this.
const SHORT_WATCH: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Agents that lose the same member do not all list the next member at the same moment.
const JITTER: Duration = Duration::from_millis(200);
/// How often a quiet watch is asked for a progress notification.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);
/// How long after the end of a watch the source counts as away, unless another connection has
/// listed all keys by then.
const AWAY_AFTER: Duration = Duration::from_secs(1);
/// The pauses between questions whether a prefix may be read by now.
const SHORTEST_DENIED: Duration = Duration::from_secs(1);
const LONGEST_DENIED: Duration = Duration::from_secs(30);
/// How often a watch is created again, each time with a new token, before all keys are listed.
const TOKENS_FOR_A_WATCH: u32 = 3;
/// How long the watch has to deliver the changes that a list shows. Changes after that count as
/// drift.
const SETTLE_TIME: Duration = Duration::from_secs(2);

type InFlight<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Why all keys were listed again, a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relist {
    /// The first list.
    Start,
    /// The connection was lost.
    Reconnect,
    /// The watch cannot go on: its next revision was compacted.
    Compacted,
    /// The cluster has another history: restored or wiped data, or another cluster.
    Rollback,
    /// The auth token had expired.
    Token,
    /// The server canceled the watch.
    Canceled,
    /// The confirmation of a list after a gap.
    Confirm,
    /// The refresh interval was over.
    Periodic,
    /// A prefix may be read that could not be read before.
    Granted,
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
            Self::Granted => "granted",
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
    /// The endpoint in use, or to be used next.
    endpoint: usize,
    /// How many watches in a row ended soon.
    short_watches: u32,
    not_before: Timestamp,
    why: Relist,
    /// The position of the last list, or of the watch after it.
    at: Option<Position>,
    /// When the list that confirms the last list is due.
    confirm_at: Option<Timestamp>,
    /// When the source counts as away, and why.
    away_at: Option<(Timestamp, String)>,
    failure: Option<Failure>,
}

enum Phase {
    Idle,
    Opening(InFlight<Result<Opened, NotOpened>>),
    Subscribing {
        connection: Connection,
        listed: (Position, Timestamp),
        /// The prefixes that are not watched.
        unreadable: Vec<usize>,
        /// How many tokens were refused for this watch.
        tokens: u32,
        flight: InFlight<Result<WatchStream, Failure>>,
    },
    Watching(Box<Session>),
}

/// A watch in progress.
struct Session {
    connection: Connection,
    stream: WatchStream,
    messages: WatchMessages,
    since: Timestamp,
    tokens: u32,
    relisting: Relisting,
    denied: Option<Denied>,
    refresh_at: Timestamp,
    progress_at: Timestamp,
}

/// The prefixes that the user may not read, during the watch of the others.
struct Denied {
    prefixes: Vec<usize>,
    pause: Duration,
    ask_at: Timestamp,
    asking: Option<InFlight<Result<bool, Failure>>>,
}

/// A list during the watch.
enum Relisting {
    Idle,
    Reading(Relist, InFlight<Result<Listing, Failure>>),
    /// The list was read. The watch has until then to deliver the same changes.
    Settling(Timestamp, Listing),
}

/// Why `next` went on.
enum Wakeup {
    Opened(Result<Opened, NotOpened>),
    Subscribed(Result<WatchStream, Failure>),
    Message(Result<Message, Failure>),
    Listed(Relist, Result<Listing, Failure>),
    /// Whether a prefix may be read that could not be read before.
    Asked(Result<bool, Failure>),
    Time,
}

impl EtcdWatcher {
    /// A watcher without a connection.
    ///
    /// # Errors
    ///
    /// When an endpoint is not valid, or a certificate or key file cannot be used. `next` shows
    /// whether etcd can be reached.
    pub fn new(settings: EtcdSettings, status: Arc<SourceStatus>, clock: Arc<dyn Clock>) -> Result<Self, HttpError> {
        let prefixes: Prefixes = settings.prefixes.as_slice().into();
        let client = Client::new(&settings, Arc::clone(&prefixes), Arc::clone(&status))?;
        // Spreads the agents over the members.
        let endpoint = fastrand::usize(..client.endpoints());
        Ok(Self {
            keys: Keys::new(prefixes, Arc::clone(&status)),
            client,
            status,
            refresh: settings.refresh,
            phase: Phase::Idle,
            endpoint,
            short_watches: 0,
            not_before: clock.now(),
            why: Relist::Start,
            at: None,
            confirm_at: None,
            away_at: None,
            failure: None,
            clock,
        })
    }

    /// Starts what is due now.
    fn start(&mut self, now: Timestamp) {
        if let Some((_, why)) = self.away_at.take_if(|(at, _)| now >= *at) {
            self.status.lost(now, &why);
        }
        match &mut self.phase {
            Phase::Idle if now >= self.not_before => {
                let allow_local = !self.keys.is_listed();
                self.phase = Phase::Opening(Box::pin(self.client.open(self.endpoint, allow_local)));
            }
            Phase::Watching(session) => {
                if now >= session.progress_at {
                    session.progress_at = now + PROGRESS_EVERY;
                    session.stream.ask_progress();
                }
                if let Some(denied) = &mut session.denied
                    && denied.asking.is_none()
                    && now >= denied.ask_at
                {
                    denied.asking = Some(Box::pin(session.connection.may_read(denied.prefixes.clone())));
                }
                match &session.relisting {
                    Relisting::Idle => {
                        let why = match self.confirm_at {
                            Some(at) if now >= at => Relist::Confirm,
                            _ if now >= session.refresh_at => Relist::Periodic,
                            _ => return,
                        };
                        self.keys.expect_list();
                        session.relisting = Relisting::Reading(why, Box::pin(session.connection.list()));
                    }
                    Relisting::Settling(until, _) if now >= *until => {
                        if let Relisting::Settling(_, listing) =
                            std::mem::replace(&mut session.relisting, Relisting::Idle)
                        {
                            self.repair(listing, now);
                        }
                    }
                    Relisting::Reading(..) | Relisting::Settling(..) => {}
                }
            }
            _ => {}
        }
    }

    /// When the next timer is due.
    fn wake(&self) -> Option<Timestamp> {
        let phase = match &self.phase {
            Phase::Idle => Some(self.not_before),
            Phase::Opening(_) | Phase::Subscribing { .. } => None,
            Phase::Watching(session) => {
                let relisting = match &session.relisting {
                    Relisting::Idle => self.confirm_at.into_iter().chain([session.refresh_at]).min(),
                    Relisting::Reading(..) => None,
                    Relisting::Settling(until, _) => Some(*until),
                };
                let denied = session.denied.as_ref().filter(|denied| denied.asking.is_none());
                let ask_at = denied.map(|denied| denied.ask_at);
                relisting.into_iter().chain(ask_at).chain([session.progress_at]).min()
            }
        };
        let away_at = self.away_at.as_ref().map(|(at, _)| *at);
        phase.into_iter().chain(self.keys.due()).chain(away_at).min()
    }

    /// Waits for the next event. Cancel safe.
    async fn wait(&mut self, now: Timestamp) -> Wakeup {
        let pause = pause_until(self.wake(), now);
        let time = tokio::time::sleep(pause);
        match &mut self.phase {
            Phase::Idle => {
                time.await;
                Wakeup::Time
            }
            Phase::Opening(flight) => tokio::select! {
                opened = flight => Wakeup::Opened(opened),
                () = time => Wakeup::Time,
            },
            Phase::Subscribing { flight, .. } => tokio::select! {
                stream = flight => Wakeup::Subscribed(stream),
                () = time => Wakeup::Time,
            },
            Phase::Watching(session) => {
                let Session {
                    stream,
                    relisting,
                    denied,
                    ..
                } = &mut **session;
                let (why, listing) = match relisting {
                    Relisting::Reading(why, flight) => (*why, Some(flight)),
                    _ => (Relist::Periodic, None),
                };
                let listing = async {
                    match listing {
                        Some(flight) => flight.await,
                        None => std::future::pending().await,
                    }
                };
                let asked = async {
                    match denied.as_mut().and_then(|denied| denied.asking.as_mut()) {
                        Some(flight) => flight.await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    message = stream.message() => Wakeup::Message(message),
                    listing = listing => Wakeup::Listed(why, listing),
                    asked = asked => Wakeup::Asked(asked),
                    () = time => Wakeup::Time,
                }
            }
        }
    }

    fn handle(&mut self, wakeup: Wakeup, now: Timestamp) {
        match wakeup {
            Wakeup::Opened(Ok(opened)) => self.opened(opened, now),
            Wakeup::Opened(Err(NotOpened { failures, local })) => {
                if let Some(listing) = local {
                    tracing::warn!(source = %SOURCE, keys = listing.keys.len(), revision = listing.at.revision,
                        "no leader: starting with the data of one member");
                    self.keys.replace(listing, Trust::AdditionsOnly, now);
                }
                self.not_opened(failures);
            }
            Wakeup::Subscribed(Ok(stream)) => self.subscribed(stream, now),
            Wakeup::Subscribed(Err(failure)) | Wakeup::Message(Err(failure)) => self.watch_failed(failure, now),
            Wakeup::Message(Ok(message)) => self.message_received(message, now),
            Wakeup::Listed(why, Ok(listing)) => self.listed_again(why, listing, now),
            Wakeup::Listed(_, Err(failure)) | Wakeup::Asked(Err(failure)) => self.watch_failed(failure, now),
            Wakeup::Asked(Ok(true)) => self.granted(now),
            Wakeup::Asked(Ok(false)) => self.still_denied(now),
            Wakeup::Time => {}
        }
    }

    fn opened(&mut self, opened: Opened, now: Timestamp) {
        let Opened {
            connection,
            endpoint,
            listing,
            failures,
        } = opened;
        self.count_failures(failures);
        if let Some(before) = self.at
            && let Some(detail) = listing.at.breaks_with(before)
        {
            tracing::warn!(source = %SOURCE, endpoint = connection.endpoint(), detail, "etcd history changed: restored or wiped data, or another cluster");
            self.why = Relist::Rollback;
        }
        self.endpoint = endpoint;
        self.away_at = None;
        self.status.heard(now);
        self.status.count_relist(self.why.as_str());
        tracing::info!(source = %SOURCE, endpoint = connection.endpoint(), why = self.why.as_str(), keys = listing.keys.len(),
            ignored = listing.elsewhere, revision = listing.at.revision, "listed");
        let at = listing.at;
        self.at = Some(at);
        let unreadable = self.note_unreadable(&listing.unreadable);
        let trust = match self.why {
            Relist::Rollback => Trust::AfterLoss,
            _ => Trust::AfterGap,
        };
        self.keys.replace(listing, trust, now);
        self.confirm_at = self.keys.needs_confirmation().then(|| now + CONFIRM_AFTER);
        let flight = Box::pin(connection.watch(at.revision + 1, unreadable.clone()));
        self.phase = Phase::Subscribing {
            connection,
            listed: (at, now),
            unreadable,
            tokens: 0,
            flight,
        };
    }

    /// Counts prefixes that the user may not read, and says so where the source's error is shown.
    fn note_unreadable(&mut self, unreadable: &[Unreadable]) -> Vec<usize> {
        for prefix in unreadable {
            self.status.count_error(Reason::Denied.as_str());
            tracing::warn!(source = %SOURCE, error = prefix.detail, "prefix cannot be read, following the others");
        }
        let details: Vec<&str> = unreadable.iter().map(|prefix| &*prefix.detail).collect();
        self.status
            .set_incomplete((!details.is_empty()).then(|| details.join("; ")));
        unreadable.iter().map(|prefix| prefix.prefix).collect()
    }

    /// The failures of endpoints beside the one that the source's error shows.
    fn count_failures(&self, failures: Vec<Failure>) {
        for Failure { cause, detail } in failures {
            self.status.count_error(cause.reason().as_str());
            tracing::info!(source = %SOURCE, error = detail, "trying the next endpoint");
        }
    }

    /// No endpoint could be listed. The error is the one that says most.
    fn not_opened(&mut self, mut failures: Vec<Failure>) {
        self.phase = Phase::Idle;
        self.next_endpoint();
        let telling = |failure: &Failure| match failure.cause {
            Cause::Denied | Cause::Token => 2,
            Cause::Unreachable | Cause::Timeout => 0,
            _ => 1,
        };
        let most = (0..failures.len()).max_by_key(|index| failures.get(*index).map(telling));
        self.failure = most.map(|index| failures.swap_remove(index));
        self.count_failures(failures);
    }

    fn subscribed(&mut self, stream: WatchStream, now: Timestamp) {
        let Phase::Subscribing {
            connection,
            listed,
            unreadable,
            tokens,
            ..
        } = std::mem::replace(&mut self.phase, Phase::Idle)
        else {
            return;
        };
        let jitter = 0.5 + fastrand::f64();
        self.phase = Phase::Watching(Box::new(Session {
            connection,
            stream,
            messages: WatchMessages::from(listed.0),
            since: listed.1,
            tokens,
            relisting: Relisting::Idle,
            denied: Denied::new(unreadable, now),
            refresh_at: now + self.refresh.mul_f64(jitter),
            progress_at: now + PROGRESS_EVERY,
        }));
    }

    /// The watch was refused for its token. As nothing has come since the list, the watch is created
    /// again from there.
    fn watch_with_new_token(&mut self, from: Position) {
        let Phase::Watching(session) = std::mem::replace(&mut self.phase, Phase::Idle) else {
            return;
        };
        let Session {
            connection,
            since,
            tokens,
            denied,
            ..
        } = *session;
        let unreadable = denied.map_or_else(Vec::new, |denied| denied.prefixes);
        tracing::info!(source = %SOURCE, endpoint = connection.endpoint(), "watching again with a new token");
        let flight = Box::pin(connection.watch_with_new_token(from.revision + 1, unreadable.clone()));
        self.phase = Phase::Subscribing {
            connection,
            listed: (from, since),
            unreadable,
            tokens: tokens + 1,
            flight,
        };
    }

    /// A prefix may be read by now: all keys are listed, and all prefixes watched.
    fn granted(&mut self, now: Timestamp) {
        tracing::info!(source = %SOURCE, "a prefix can be read again, listing again");
        self.phase = Phase::Idle;
        self.why = Relist::Granted;
        self.not_before = now;
    }

    fn still_denied(&mut self, now: Timestamp) {
        let Phase::Watching(session) = &mut self.phase else {
            return;
        };
        if let Some(denied) = &mut session.denied {
            self.status.count_error(Reason::Denied.as_str());
            denied.asking = None;
            denied.pause = (denied.pause * 2).min(LONGEST_DENIED);
            denied.ask_at = now + denied.pause.mul_f64(0.5 + fastrand::f64() / 2.0);
        }
    }

    fn message_received(&mut self, message: Message, now: Timestamp) {
        let Phase::Watching(session) = &mut self.phase else {
            return;
        };
        let quiet_since = session.messages.quiet_since();
        match session.messages.take(message) {
            Step::Over(failure) => match quiet_since {
                Some(from) if failure.cause == Cause::Token && session.tokens < TOKENS_FOR_A_WATCH => {
                    self.watch_with_new_token(from);
                }
                _ => self.watch_failed(failure, now),
            },
            step => {
                self.at = Some(session.messages.at());
                self.status.heard(now);
                if let Step::Events(events) = step {
                    self.keys.apply(events, now);
                }
            }
        }
    }

    fn listed_again(&mut self, why: Relist, listing: Listing, now: Timestamp) {
        let Phase::Watching(session) = &mut self.phase else {
            return;
        };
        session.relisting = Relisting::Idle;
        if let Some(detail) = listing.at.breaks_with(session.messages.at()) {
            self.watch_failed(Failure::new(Cause::Rollback, detail), now);
            return;
        }
        self.status.heard(now);
        self.status.count_relist(why.as_str());
        let before = session.denied.as_ref().map_or(&[][..], |denied| &denied.prefixes);
        let readable = |prefix: &&usize| listing.unreadable.iter().all(|other| other.prefix != **prefix);
        if before.iter().any(|prefix| readable(&prefix)) {
            self.granted(now);
            return;
        }
        if before.len() < listing.unreadable.len() {
            let prefixes = self.note_unreadable(&listing.unreadable);
            if let Phase::Watching(session) = &mut self.phase {
                session.denied = Denied::new(prefixes, now);
            }
        }
        let Phase::Watching(session) = &mut self.phase else {
            return;
        };
        if why == Relist::Confirm {
            self.confirm_at = None;
            // So soon after a list, a change that the watch has not delivered yet is not drift.
            self.keys.repair(listing, now);
            self.keys.confirm(now);
        } else {
            session.refresh_at = now + self.refresh.mul_f64(0.5 + fastrand::f64());
            session.relisting = Relisting::Settling(now + SETTLE_TIME, listing);
        }
    }

    fn repair(&mut self, listing: Listing, now: Timestamp) {
        let repaired = self.keys.repair(listing, now);
        if repaired > 0 {
            self.status.count_drift(repaired as u64);
            tracing::warn!(source = %SOURCE, repaired, "the watch missed changes, corrected");
        }
    }

    /// The connection cannot be used any more: another connection lists again.
    fn watch_failed(&mut self, failure: Failure, now: Timestamp) {
        let since = match &self.phase {
            Phase::Watching(session) => session.since,
            Phase::Subscribing { listed, .. } => listed.1,
            Phase::Idle | Phase::Opening(_) => now,
        };
        self.phase = Phase::Idle;
        self.why = Relist::after(failure.cause);
        self.status.count_error(failure.cause.reason().as_str());
        let pause = self.pause(now.since(since));
        self.not_before = now + pause;
        self.away_at = Some((now + AWAY_AFTER, failure.detail.clone()));
        if self.why == Relist::Reconnect {
            self.next_endpoint();
        }
        tracing::info!(source = %SOURCE, error = failure.detail, ?pause, "watch ended, listing again");
    }

    /// Almost no pause after a watch that lasted; growing pauses after watches that ended soon.
    /// Otherwise a server that ends each watch at once would be listed without end.
    fn pause(&mut self, lasted: Duration) -> Duration {
        if lasted >= SHORT_WATCH {
            self.short_watches = 0;
            return JITTER.mul_f64(fastrand::f64());
        }
        let pause = Duration::from_millis(250)
            .saturating_mul(1 << self.short_watches.min(7))
            .min(LONGEST_PAUSE);
        self.short_watches += 1;
        pause.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    fn next_endpoint(&mut self) {
        self.endpoint = (self.endpoint + 1) % self.client.endpoints();
    }
}

impl Denied {
    fn new(prefixes: Vec<usize>, now: Timestamp) -> Option<Self> {
        (!prefixes.is_empty()).then(|| Self {
            prefixes,
            pause: SHORTEST_DENIED,
            ask_at: now + SHORTEST_DENIED,
            asking: None,
        })
    }
}

impl Watcher for EtcdWatcher {
    fn source(&self) -> Source {
        SOURCE
    }

    async fn next(&mut self) -> Result<Update, WatchError> {
        loop {
            let now = self.clock.now();
            if let Some(update) = self.keys.next_update(now) {
                return Ok(update);
            }
            if let Some(Failure { cause, detail }) = self.failure.take() {
                return Err(WatchError {
                    reason: cause.reason(),
                    detail,
                });
            }
            self.start(now);
            let wakeup = self.wait(now).await;
            self.handle(wakeup, self.clock.now());
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
