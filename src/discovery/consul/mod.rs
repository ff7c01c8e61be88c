//! Consul: one catalog and many services, each watched with a long poll if there are enough.
//!
//! ```text
//!              ┌───────────────────── ConsulWatcher::next ─────────────────────┐
//! schedule ────┤ Request ─► client ─► Consul ─► Answer ─► answers ──► Update   │
//!              └────────────────── in flight, as futures ──────────────────────┘
//! ```
//!
//! Consul's blocking queries are hints. A query may not return at a change (an instance was
//! registered under another service name), may return old data (a snapshot was restored), or may
//! wait for an index that never comes (the data was lost). An empty list may mean that there are
//! no instances, or that the token has no rights. So everything is read again now and then without
//! blocking, an index counts only while the connection and the leader last, and an empty answer is
//! confirmed by a second request.
//!
//! Requests in flight are futures in a field of the watcher. No task is spawned, and a cancelled
//! `next` loses no request.
//!
//! The files import only downwards:
//!
//! ```text
//! mod        the watcher
//! schedule   what to ask next       in_flight  long_polls  recheck  suspicion
//!            (below schedule/mod)   pace  room  longest_wait
//! answers    what an answer changes
//! services   what is known of each service          leader  sync
//! query      when to ask, and whether to accept     client
//! bucket  endpoint  request  rights  scope  wire
//! datacenter  settings
//! ```

mod answers;
mod bucket;
mod client;
mod datacenter;
mod endpoint;
mod leader;
mod query;
mod request;
mod rights;
mod schedule;
mod scope;
mod services;
mod settings;
mod sync;
mod wire;

use std::pin::Pin;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

pub use client::Reloader;
pub use datacenter::{Datacenter, of_several};
pub use schedule::Interest;
pub use settings::{BasicAuth, ConsulSettings, KINDS, MAX_WATCHES, Names, Token};
pub use wire::SOURCE;

use self::client::{Answer, AskError, Client};
use self::request::Request;
use self::schedule::Schedule;
use super::shared::pause_until;
use super::watcher::{Reason, Update, WatchError, Watcher};
use crate::balancer::{Clock, Source, SourceStatus};
use crate::http_client::HttpError;

type InFlight = Pin<Box<dyn Future<Output = (Request, Result<Answer, AskError>)> + Send>>;
type RoomTest = Pin<Box<dyn Future<Output = bool> + Send>>;

/// Watches the services of one Consul agent.
pub struct ConsulWatcher {
    client: Client,
    clock: Arc<dyn Clock>,
    schedule: Schedule,
    /// `None` for a single datacenter.
    place: Option<Datacenter>,
    in_flight: FuturesUnordered<InFlight>,
    /// Connections that are being opened to see whether Consul has room for more long polls.
    room: Option<RoomTest>,
}

impl ConsulWatcher {
    /// A watcher that has sent no request yet. `interest` says how often a service was picked:
    /// where there are more services than long polls, the most picked services get them.
    ///
    /// # Errors
    ///
    /// When the address is not valid, or a certificate or key file cannot be used. `next` shows
    /// whether Consul can be reached.
    pub fn new(
        settings: ConsulSettings,
        status: Arc<SourceStatus>,
        clock: Arc<dyn Clock>,
        interest: Interest,
    ) -> Result<Self, HttpError> {
        let client = Client::new(&settings)?;
        let testable = client.has_testable_room();
        Ok(Self {
            client,
            schedule: Schedule::new(&settings, status, interest, testable, fastrand::u64(..), clock.now()),
            place: settings.place,
            clock,
            in_flight: FuturesUnordered::new(),
            room: None,
        })
    }

    /// A handle that makes the watcher read its token file and its TLS files again (on SIGHUP).
    #[must_use]
    pub fn reloader(&self) -> Reloader {
        self.client.reloader().clone()
    }
}

impl Watcher for ConsulWatcher {
    fn source(&self) -> Source {
        self.place.as_ref().map_or(SOURCE, Datacenter::source)
    }

    async fn next(&mut self) -> Result<Update, WatchError> {
        loop {
            if let Some(update) = self.schedule.next_update() {
                return Ok(match &self.place {
                    Some(place) => place.label(update),
                    None => update,
                });
            }
            if let Some(error) = self.schedule.take_error() {
                if error.reason == Reason::Denied {
                    self.client.reloader().reload_token();
                }
                return Err(error);
            }
            let now = self.clock.now();
            while let Some(request) = self.schedule.request(now) {
                let answer = self.client.ask(&request);
                self.in_flight.push(Box::pin(async move { (request, answer.await) }));
            }
            if self.schedule.has_error() {
                continue;
            }
            if let Some(connections) = self.schedule.room_to_test(now) {
                let to_come = self.schedule.connections_to_come();
                self.room = Some(Box::pin(self.client.has_room(connections, to_come)));
            }
            let pause = pause_until(self.schedule.wake(), now);
            let room = async {
                match &mut self.room {
                    Some(test) => test.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                free = room => {
                    self.room = None;
                    self.schedule.take_room(free, self.clock.now());
                }
                Some((request, result)) = self.in_flight.next() => self.schedule.take(&request, result, self.clock.now()),
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
}

impl std::fmt::Debug for ConsulWatcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConsulWatcher")
            .field("in_flight", &self.in_flight.len())
            .field("services", &self.schedule.services())
            .finish_non_exhaustive()
    }
}
