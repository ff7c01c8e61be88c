//! Consul: one catalog and many services, each watched with a long poll as far as polls go round.
//!
//! ```text
//!                 ┌────────────────── ConsulWatcher::next ──────────────────┐
//! schedule.rs ────┤ request ─► client.rs ─► Consul ─► answer ─► answers.rs ─┼─► Update
//! (what to ask)   └───────────────── in flight, as futures ─────────────────┘
//! query.rs: at which index, how often, and whether an answer is believed      wire.rs: what its JSON means
//! ```
//!
//! Consul's blocking queries are hints. They can sleep through a change (an instance registered under another service name),
//! return what was true minutes ago (a restored snapshot), wait for an index that will never come (data lost), and an empty
//! list may mean "nothing there" as well as "not for your token". So everything is read again now and then without blocking,
//! an index is only trusted while the connection and the leader last, and emptiness is asked for twice.
//!
//! Requests in flight are futures in a field of the watcher: nothing is spawned, and a cancelled `next` abandons none.

mod answers;
mod client;
mod query;
mod schedule;
mod settings;
mod wire;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

pub use client::TokenReloader;
pub use schedule::Interest;
pub use settings::{BasicAuth, MAX_WATCHES, Names, Settings, Token};
pub use wire::SOURCE;

use self::client::{Answer, AskError, Client};
use self::schedule::{Request, Schedule};
use super::watcher::{Reason, Update, WatchError, Watcher};
use crate::balancer::{Clock, Source, SourceStatus};
use crate::http_client::HttpError;

/// Timers fire a little early at times; this keeps a due time just ahead from being looked at in a tight loop.
const TICK: Duration = Duration::from_millis(1);

type Flight = Pin<Box<dyn Future<Output = (Request, Result<Answer, AskError>)> + Send>>;

/// Watches the services of one Consul agent.
pub struct ConsulWatcher {
    client: Client,
    clock: Arc<dyn Clock>,
    schedule: Schedule,
    flights: FuturesUnordered<Flight>,
}

impl ConsulWatcher {
    /// A watcher that has asked nothing yet. `interest` says how often a service has been picked: where there are more
    /// services than long polls, the most picked get them.
    ///
    /// # Errors
    ///
    /// When the address is none, or a certificate or key file cannot be used. Whether Consul is there shows in `next`.
    pub fn new(
        settings: Settings,
        status: Arc<SourceStatus>,
        clock: Arc<dyn Clock>,
        interest: Interest,
    ) -> Result<Self, HttpError> {
        Ok(Self {
            client: Client::new(&settings)?,
            schedule: Schedule::new(&settings, status, interest, fastrand::u64(..), clock.now()),
            clock,
            flights: FuturesUnordered::new(),
        })
    }

    /// A handle to have the token file read again (on SIGHUP), wherever the watcher runs.
    #[must_use]
    pub fn token_reloader(&self) -> TokenReloader {
        self.client.token().clone()
    }
}

impl Watcher for ConsulWatcher {
    fn source(&self) -> Source {
        SOURCE
    }

    async fn next(&mut self) -> Result<Update, WatchError> {
        loop {
            if let Some(update) = self.schedule.news.pop_front() {
                return Ok(update);
            }
            if let Some(trouble) = self.schedule.trouble.take() {
                if trouble.reason == Reason::Denied {
                    self.client.token().reload();
                }
                return Err(trouble);
            }
            let now = self.clock.now();
            while let Some(request) = self.schedule.request(now) {
                let answer = self.client.ask(&request);
                self.flights.push(Box::pin(async move { (request, answer.await) }));
            }
            let pause = self.schedule.wake().map(|at| at.since(now).max(TICK));
            tokio::select! {
                Some((request, result)) = self.flights.next() => self.schedule.take(&request, result, self.clock.now()),
                () = tokio::time::sleep(pause.unwrap_or(Duration::from_secs(60))) => {}
            }
        }
    }
}

impl std::fmt::Debug for ConsulWatcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConsulWatcher")
            .field("in_flight", &self.flights.len())
            .field("services", &self.schedule.services.len())
            .finish_non_exhaustive()
    }
}
