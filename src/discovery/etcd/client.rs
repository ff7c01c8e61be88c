//! etcd's calls: a list in pages, and a watch. Each connection is to one endpoint.
//!
//! Knows addresses, credentials, deadlines and size limits. Does not know what was read before.
//!
//! The etcd crate balances over its endpoints without looking at their state: with one of three
//! dead, every third call fails. So each connection here is to one endpoint, and its owner goes to
//! the next endpoint after a failure. Certificates and the password are read, and the auth token
//! is fetched, for each connection: what has expired is renewed that way.
//!
//! A frozen member accepts connections and answers nothing. So an endpoint that does not answer
//! soon is not waited for: the next one is tried beside it, and the first that answers is used.
//!
//! A token ends by time, and a JWT also by every change of users and roles. Then the call is
//! repeated with a new token, on the same connection.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{
    Certificate, ConnectOptions, GetOptions, GetResponse, Identity, TlsOptions, WatchClient, WatchOptions,
    WatchRequestSender, WatchResponse, WatchResponseStream,
};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::time;

use super::formats::{Prefix, Prefixes};
use super::settings::{EtcdSettings, Password, User};
use super::wire::{Event, EventKind, Listed, Listing, Message, Position, Unreadable};
use crate::balancer::SourceStatus;
use crate::discovery::shared::{one_line, without_credentials};
use crate::discovery::watcher::Reason;
use crate::http_client::{self, HttpError, Tls, TlsSettings};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The deadline of every call. For a watch it ends with the first headers.
const TIMEOUT: Duration = Duration::from_secs(5);
/// A frozen server or a dead connection is detected by these pings, within 9 s. etcd closes
/// connections that ping more often than every 5 s.
const KEEP_ALIVE: Duration = Duration::from_secs(6);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long one endpoint may take to answer before the next endpoint is tried beside it.
const HEAD_START: Duration = Duration::from_secs(1);
/// How often a call is sent in all, each time with a new token, if its token is refused. Users and
/// roles may be changed many times in a row.
const TOKEN_ATTEMPTS: usize = 3;
/// How many keys the first page has.
const PAGE: i64 = 1_000;
/// The most keys in a page. For each page, etcd 3.4 counts all keys that are left, so many small
/// pages cost the square of their number. So a page with few bytes is followed by a larger page.
const LARGEST_PAGE: i64 = 10_000;
/// Below this size of a page, in bytes, the next page is larger.
const SMALL_PAGE: usize = 512 << 10;
/// The largest message. tonic's own limit of 4 MiB is less than what etcd sends after a few large
/// changes.
const DECODE_LIMIT: usize = 64 << 20;
/// How many characters of an error's text go into a log line.
const ERROR_TEXT: usize = 300;
/// How often a list is tried if its revision is compacted meanwhile.
const LIST_ATTEMPTS: usize = 3;

/// Why etcd could not be asked, or why a watch ended.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Failure {
    pub(super) cause: Cause,
    /// One line, without secrets.
    pub(super) detail: String,
}

impl Failure {
    pub(super) fn new(cause: Cause, detail: impl Into<String>) -> Self {
        Self {
            cause,
            detail: detail.into(),
        }
    }
}

/// The kinds of failure, as far as the watcher treats them differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// Connection refused or reset, name not resolved, or the stream ended.
    Unreachable,
    Timeout,
    /// The member is busy, in an election, or a learner.
    Unavailable,
    /// The member knows no leader: it is partitioned, or the quorum is lost.
    NoLeader,
    /// Wrong password, no rights, or a file with credentials that cannot be used.
    Denied,
    /// The token has expired.
    Token,
    /// The requested revision was compacted.
    Compacted,
    /// The history is not the one that was listed.
    Rollback,
    /// The server canceled the watch for some other reason.
    Canceled,
    /// A message above the decoding limit.
    TooLarge,
    /// An answer that cannot be understood.
    Protocol,
}

impl Cause {
    /// As a metric label.
    pub(super) fn reason(self) -> Reason {
        match self {
            Self::Unreachable => Reason::Unreachable,
            Self::Timeout => Reason::Timeout,
            Self::Unavailable | Self::Compacted | Self::Rollback | Self::Canceled => Reason::Unavailable,
            Self::NoLeader => Reason::NoLeader,
            Self::Denied => Reason::Denied,
            Self::Token => Reason::Token,
            Self::TooLarge | Self::Protocol => Reason::Protocol,
        }
    }

    /// Finds the cause by the text. gRPC's codes do not tell a compacted revision from a message
    /// that is too large (both are `OutOfRange`), and a canceled watch has no code at all.
    pub(super) fn of_text(text: &str) -> Option<Self> {
        const KNOWN: [(&str, Cause); 15] = [
            ("no leader", Cause::NoLeader),
            ("invalid auth token", Cause::Token),
            // A JWT names the version of the users and roles for which it was issued.
            ("revision of auth store is old", Cause::Token),
            // The same in etcd 3.5.
            ("auth: revision in header is old", Cause::Token),
            ("permission denied", Cause::Denied),
            ("PermissionDenied", Cause::Denied),
            ("authentication failed", Cause::Denied),
            ("authentication is not enabled", Cause::Denied),
            ("user name is empty", Cause::Denied),
            ("has been compacted", Cause::Compacted),
            ("is a future revision", Cause::Rollback),
            ("message length too large", Cause::TooLarge),
            ("not supported for learner", Cause::Unavailable),
            ("leader changed", Cause::Unavailable),
            ("request timed out", Cause::Unavailable),
        ];
        KNOWN
            .into_iter()
            .find(|(known, _)| text.contains(known))
            .map(|(_, cause)| cause)
    }
}

impl From<etcd_client::Error> for Failure {
    fn from(error: etcd_client::Error) -> Self {
        match error {
            etcd_client::Error::GRpcStatus(status) => {
                let code = format!("{:?}", status.code());
                let detail = with_causes(format!("{code}: {}", status.message()), &status);
                let cause = Cause::of_text(&detail).unwrap_or_else(|| cause_of_code(&code, status.message()));
                Self::new(cause, detail)
            }
            etcd_client::Error::TransportError(error) => {
                Self::new(Cause::Unreachable, with_causes(error.to_string(), &error))
            }
            error @ (etcd_client::Error::IoError(_) | etcd_client::Error::EndpointError(_)) => {
                Self::new(Cause::Unreachable, one_line(&error.to_string(), ERROR_TEXT))
            }
            error => Self::new(Cause::Protocol, one_line(&error.to_string(), ERROR_TEXT)),
        }
    }
}

/// The error with its causes: tonic's own text stops at "transport error".
fn with_causes(mut text: String, error: &(dyn std::error::Error + 'static)) -> String {
    let advice = http_client::advice(error, TlsSettings::Files);
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    let text = one_line(&text, ERROR_TEXT);
    match advice {
        Some(advice) => format!("{text}; {advice}"),
        None => text,
    }
}

/// Finds the cause by the name of the gRPC code. The code's type belongs to a crate that pickd
/// does not depend on.
fn cause_of_code(code: &str, message: &str) -> Cause {
    match code {
        "Unauthenticated" | "PermissionDenied" => Cause::Denied,
        "DeadlineExceeded" => Cause::Timeout,
        "Cancelled" if message.contains("Timeout") => Cause::Timeout,
        "Unavailable" if message.starts_with("etcdserver") => Cause::Unavailable,
        "ResourceExhausted" => Cause::Unavailable,
        // A killed server shows as Unknown, with a text about broken pipes.
        "Unavailable" | "Unknown" | "Cancelled" | "Internal" | "Aborted" => Cause::Unreachable,
        _ => Cause::Protocol,
    }
}

/// Connects to the members of one cluster.
pub(super) struct Client {
    endpoints: Arc<[String]>,
    shared: Arc<Shared>,
}

/// What all connections have in common.
struct Shared {
    prefixes: Prefixes,
    user: Option<User>,
    tls: Tls,
    /// Counts the tokens that were refused.
    status: Arc<SourceStatus>,
}

/// How a list is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Consistency {
    /// Through the leader: the latest data.
    Linearizable,
    /// From this member alone, however old its data.
    Serializable,
}

/// An open connection, and the first list.
pub(super) struct Opened {
    pub(super) connection: Connection,
    /// Which of the endpoints.
    pub(super) endpoint: usize,
    pub(super) listing: Listing,
    /// Why endpoints that were tried before failed.
    pub(super) failures: Vec<Failure>,
}

/// Why no connection was opened, and the data of one member, if that could be listed.
pub(super) struct NotOpened {
    /// One for each endpoint.
    pub(super) failures: Vec<Failure>,
    pub(super) local: Option<Listing>,
}

impl Client {
    /// Checks the endpoints and the TLS files. Connects to nothing.
    pub(super) fn new(
        settings: &EtcdSettings,
        prefixes: Prefixes,
        status: Arc<SourceStatus>,
    ) -> Result<Self, HttpError> {
        for endpoint in &settings.endpoints {
            let known = endpoint.starts_with("http://") || endpoint.starts_with("https://");
            if !known || endpoint.contains('@') {
                return Err(HttpError::Address {
                    address: without_credentials(endpoint).to_owned(),
                    detail: "expected http://host:port or https://host:port",
                });
            }
        }
        if settings.endpoints.is_empty() {
            return Err(HttpError::Address {
                address: String::new(),
                detail: "expected at least one endpoint",
            });
        }
        http_client::check(&settings.tls)?;
        Ok(Self {
            endpoints: settings.endpoints.as_slice().into(),
            shared: Arc::new(Shared {
                prefixes,
                user: settings.user.clone(),
                tls: settings.tls.clone(),
                status,
            }),
        })
    }

    pub(super) fn endpoints(&self) -> usize {
        self.endpoints.len()
    }

    /// Connects to the first endpoint that answers, logs in, and lists all keys. `first` is tried
    /// first, and each further endpoint as soon as one has failed or does not answer soon. If no
    /// endpoint has a leader, and `allow_local` is set, lists the data of one member.
    pub(super) fn open(
        &self,
        first: usize,
        allow_local: bool,
    ) -> impl Future<Output = Result<Opened, NotOpened>> + Send + use<> {
        let (endpoints, shared) = (Arc::clone(&self.endpoints), Arc::clone(&self.shared));
        async move {
            let reach = |endpoint: usize| {
                let url = endpoints.get(endpoint).cloned().unwrap_or_default();
                let shared = Arc::clone(&shared);
                async move {
                    let reached = Connection::reach(url, shared).await;
                    reached
                        .map(|connection| (endpoint, connection))
                        .map_err(|failure| (endpoint, failure))
                }
            };
            let mut untried = (0..endpoints.len()).map(|offset| (first + offset) % endpoints.len());
            let (mut attempts, mut failures) = (FuturesUnordered::new(), Vec::new());
            loop {
                match untried.next() {
                    Some(endpoint) => attempts.push(reach(endpoint)),
                    None if attempts.is_empty() => break,
                    None => {}
                }
                let outcome = tokio::select! {
                    Some(outcome) = attempts.next() => outcome,
                    () = time::sleep(HEAD_START), if untried.len() > 0 => continue,
                };
                let listed = match outcome {
                    Ok((endpoint, connection)) => match connection.list().await {
                        Ok(listing) => Ok((endpoint, connection, listing)),
                        Err(failure) => Err((endpoint, failure)),
                    },
                    Err(failed) => Err(failed),
                };
                match listed {
                    Ok((endpoint, connection, listing)) => {
                        return Ok(Opened {
                            connection,
                            endpoint,
                            listing,
                            failures: failures.into_iter().map(|(_, failure)| failure).collect(),
                        });
                    }
                    Err(failed) => failures.push(failed),
                }
            }
            let leaderless = failures.iter().find(|(_, failure)| failure.cause == Cause::NoLeader);
            let local = match leaderless {
                Some((endpoint, _)) if allow_local => {
                    let url = endpoints.get(*endpoint).cloned().unwrap_or_default();
                    // Connects without `hasleader`, which a member without a leader refuses.
                    match Connection::connect(url, Arc::clone(&shared), false).await {
                        Ok(connection) => connection.list_local().await.ok(),
                        Err(_) => None,
                    }
                }
                _ => None,
            };
            Err(NotOpened {
                failures: failures.into_iter().map(|(_, failure)| failure).collect(),
                local,
            })
        }
    }
}

/// A connection to one member.
#[derive(Clone)]
pub(super) struct Connection {
    endpoint: String,
    shared: Arc<Shared>,
    /// Kept because it owns the connection.
    client: Box<etcd_client::Client>,
}

impl Connection {
    /// Connects, and waits for one answer: connecting alone succeeds with a member that is frozen
    /// or without a leader.
    async fn reach(endpoint: String, shared: Arc<Shared>) -> Result<Self, Failure> {
        let connection = Self::connect(endpoint, shared, true).await?;
        if let Some(prefix) = connection.shared.prefixes.first() {
            match connection.get("connect", first_key(prefix), GetOptions::new()).await {
                // An answer, too. The list shows which prefixes may be read.
                Err(failure) if failure.cause != Cause::Denied => return Err(failure),
                _ => {}
            }
        }
        Ok(connection)
    }

    async fn connect(endpoint: String, shared: Arc<Shared>, require_leader: bool) -> Result<Self, Failure> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_timeout(TIMEOUT)
            .with_keep_alive(KEEP_ALIVE, KEEP_ALIVE_TIMEOUT)
            .with_require_leader(require_leader);
        if endpoint.starts_with("https://") {
            options = options.with_tls(
                tls_options(&shared.tls)
                    .await
                    .map_err(|detail| at(&endpoint, Failure::new(Cause::Denied, detail)))?,
            );
        }
        if let Some(User { name, password }) = &shared.user {
            let password = match password {
                Password::Value(text) => text.clone(),
                Password::File(path) => {
                    let text = read(path)
                        .await
                        .map_err(|detail| at(&endpoint, Failure::new(Cause::Denied, detail)))?;
                    String::from_utf8_lossy(&text).trim_end_matches(['\r', '\n']).to_owned()
                }
            };
            options = options.with_user(name.clone(), password);
        }
        let connect = etcd_client::Client::connect([&endpoint], Some(options));
        let client = Box::new(with_deadline(&endpoint, "connect", connect).await?);
        Ok(Self {
            endpoint,
            shared,
            client,
        })
    }

    pub(super) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    fn watcher(&self) -> WatchClient {
        self.client.watch_client().max_decoding_message_size(DECODE_LIMIT)
    }

    /// Counts that the token was refused, and logs in again.
    async fn renew_token(&self) -> Result<(), Failure> {
        self.shared.status.count_error(Reason::Token.as_str());
        with_deadline(&self.endpoint, "log in", self.client.refresh_token()).await
    }

    /// Reads some keys. If the token is refused, the call is repeated with a new token.
    async fn get(&self, what: &str, from: Vec<u8>, options: GetOptions) -> Result<GetResponse, Failure> {
        let mut kv = self.client.kv_client().max_decoding_message_size(DECODE_LIMIT);
        let mut attempt = 1;
        loop {
            let call = kv.get(from.clone(), Some(options.clone()));
            match with_deadline(&self.endpoint, what, call).await {
                Err(failure) if failure.cause == Cause::Token && attempt < TOKEN_ATTEMPTS => attempt += 1,
                outcome => return outcome,
            }
            self.renew_token().await?;
        }
    }

    /// Lists all keys as they are now.
    pub(super) fn list(&self) -> impl Future<Output = Result<Listing, Failure>> + Send + use<> {
        list(self.clone(), Consistency::Linearizable)
    }

    /// Lists the data of this member alone.
    fn list_local(&self) -> impl Future<Output = Result<Listing, Failure>> + Send + use<> {
        list(self.clone(), Consistency::Serializable)
    }

    /// Whether the user may read any of these prefixes by now.
    pub(super) fn may_read(&self, prefixes: Vec<usize>) -> impl Future<Output = Result<bool, Failure>> + Send + use<> {
        let connection = self.clone();
        async move {
            for prefix in prefixes {
                let Some(prefix) = connection.shared.prefixes.get(prefix) else {
                    continue;
                };
                // All rights to the prefix are needed, and not those to one key.
                let options = GetOptions::new()
                    .with_range(end_of(prefix.as_str().as_bytes()))
                    .with_limit(1);
                match connection.get(&listing_of(prefix), first_key(prefix), options).await {
                    Ok(_) => return Ok(true),
                    Err(failure) if failure.cause == Cause::Denied => {}
                    Err(failure) => return Err(failure),
                }
            }
            Ok(false)
        }
    }

    /// Watches the prefixes over one stream, from this revision on, but not the unreadable ones.
    pub(super) fn watch(
        &self,
        from: i64,
        unreadable: Vec<usize>,
    ) -> impl Future<Output = Result<WatchStream, Failure>> + Send + use<> {
        let connection = self.clone();
        async move { connection.watch_all(from, &unreadable).await }
    }

    /// The same with a new token.
    pub(super) fn watch_with_new_token(
        &self,
        from: i64,
        unreadable: Vec<usize>,
    ) -> impl Future<Output = Result<WatchStream, Failure>> + Send + use<> {
        let connection = self.clone();
        async move {
            connection.renew_token().await?;
            connection.watch_all(from, &unreadable).await
        }
    }

    async fn watch_all(self, from: i64, unreadable: &[usize]) -> Result<WatchStream, Failure> {
        let options = |prefix: &Prefix| {
            WatchOptions::new()
                .with_range(end_of(prefix.as_str().as_bytes()))
                .with_start_revision(from)
                .with_progress_notify()
                .with_fragment()
        };
        let readable = self.shared.prefixes.iter().enumerate();
        let mut readable = readable.filter(|(index, _)| !unreadable.contains(index));
        let Some((_, first)) = readable.next() else {
            return Err(Failure::new(Cause::Protocol, "nothing to watch"));
        };
        let mut watcher = self.watcher();
        let open = watcher.watch(first_key(first), Some(options(first)));
        let (mut requests, responses) = with_deadline(&self.endpoint, "watch", open).await?.split();
        for (_, prefix) in readable {
            let open = requests.watch(first_key(prefix), Some(options(prefix)));
            with_deadline(&self.endpoint, "watch", open).await?;
        }
        Ok(WatchStream {
            endpoint: self.endpoint,
            requests,
            responses,
        })
    }
}

/// Reads page by page, each with a deadline, all at the revision of the first page.
async fn list(connection: Connection, consistency: Consistency) -> Result<Listing, Failure> {
    let mut attempt = 1;
    loop {
        match list_once(&connection, consistency).await {
            Err(failure) if failure.cause == Cause::Compacted && attempt < LIST_ATTEMPTS => attempt += 1,
            outcome => return outcome,
        }
    }
}

/// A prefix without rights costs itself alone, unless no prefix can be read.
async fn list_once(connection: &Connection, consistency: Consistency) -> Result<Listing, Failure> {
    let mut listing = Listing::default();
    let mut limit = PAGE;
    for (index, prefix) in connection.shared.prefixes.iter().enumerate() {
        match list_prefix(connection, prefix, consistency, &mut limit, &mut listing).await {
            Ok(()) => {}
            Err(failure) if failure.cause == Cause::Denied => {
                let unreadable = listing.unreadable.len() + 1;
                if unreadable == connection.shared.prefixes.len() {
                    return Err(failure);
                }
                listing.unreadable.push(Unreadable {
                    prefix: index,
                    detail: failure.detail,
                });
            }
            Err(failure) => return Err(failure),
        }
    }
    Ok(listing)
}

async fn list_prefix(
    connection: &Connection,
    prefix: &Prefix,
    consistency: Consistency,
    limit: &mut i64,
    listing: &mut Listing,
) -> Result<(), Failure> {
    let end = end_of(prefix.as_str().as_bytes());
    let mut from = first_key(prefix);
    loop {
        let mut options = GetOptions::new().with_range(end.clone()).with_limit(*limit);
        if listing.at != Position::default() {
            options = options.with_revision(listing.at.revision);
        }
        if consistency == Consistency::Serializable {
            options = options.with_serializable();
        }
        let mut page = match connection.get(&listing_of(prefix), from.clone(), options).await {
            // Large values: fewer keys per page.
            Err(failure) if failure.cause == Cause::TooLarge && *limit > 1 => {
                *limit /= 2;
                continue;
            }
            page => page?,
        };
        // The header of a later page has the present revision, although its keys are those of
        // the first page's revision.
        if listing.at == Position::default() {
            let header = page.header();
            let first = header.map(|header| Position {
                cluster: header.cluster_id(),
                term: header.raft_term(),
                revision: header.revision(),
            });
            listing.at = first.ok_or_else(|| Failure::new(Cause::Protocol, "a list without a header"))?;
        }
        let weight: usize = page
            .kvs()
            .iter()
            .map(|pair| pair.key().len() + pair.value().len())
            .sum();
        if weight < SMALL_PAGE {
            *limit = (*limit * 2).min(LARGEST_PAGE);
        }
        let more = page.more();
        let last = page.kvs().last().map(|last| [last.key(), b"\0"].concat());
        for pair in page.take_kvs() {
            let (mod_revision, leased) = (pair.mod_revision(), pair.lease() != 0);
            let (key, value) = pair.into_key_value();
            if !prefix.covers(&key) {
                continue;
            }
            match prefix.read(&key, &value).map(|read| read.leased(leased)) {
                Err(error) if !error.is_counted() => listing.elsewhere += 1,
                read => listing.keys.push(Listed {
                    key,
                    mod_revision,
                    read,
                    value_bytes: value.len(),
                }),
            }
        }
        match last {
            Some(next) if more => from = next,
            _ => return Ok(()),
        }
    }
}

/// What a list of a prefix is called in errors.
fn listing_of(prefix: &Prefix) -> String {
    format!("list {:?}", prefix.as_str())
}

/// The first key that a prefix may have. etcd takes no empty key.
fn first_key(prefix: &Prefix) -> Vec<u8> {
    match prefix.as_str() {
        "" => vec![0],
        text => text.as_bytes().to_vec(),
    }
}

/// The first key after all keys with this prefix.
fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

/// The stream of a watch.
pub(super) struct WatchStream {
    endpoint: String,
    requests: WatchRequestSender,
    responses: WatchResponseStream,
}

impl WatchStream {
    /// The next message. Cancel safe. Without a deadline: a quiet prefix is silent, and keep-alive
    /// pings end a dead connection.
    pub(super) async fn message(&mut self) -> Result<Message, Failure> {
        match self.responses.message().await {
            Ok(Some(response)) => Ok(message(response)),
            Ok(None) => Err(at(&self.endpoint, Failure::new(Cause::Unreachable, "the watch ended"))),
            Err(error) => Err(at(&self.endpoint, error.into())),
        }
    }

    /// Asks for a progress notification, which is a message without events.
    pub(super) fn ask_progress(&mut self) {
        // There is always room, unless the server has read nothing for minutes. Then waiting would
        // not help.
        let _ = self.requests.request_progress().now_or_never();
    }
}

fn message(response: WatchResponse) -> Message {
    let response = response.0;
    let header = response.header.unwrap_or_default();
    let event = |event: etcd_client::proto::PbEvent| {
        let pair = event.kv?;
        // Not by the crate's own accessor, which panics on a type that it does not know.
        let kind = match event.r#type {
            0 => EventKind::Put {
                leased: pair.lease != 0,
                value: pair.value,
            },
            1 => EventKind::Delete,
            other => EventKind::Unknown(other),
        };
        Some(Event {
            key: pair.key,
            mod_revision: pair.mod_revision,
            kind,
        })
    };
    Message {
        watch_id: response.watch_id,
        created: response.created,
        canceled: response.canceled,
        compact_revision: response.compact_revision,
        cancel_reason: one_line(&response.cancel_reason, ERROR_TEXT),
        fragment: response.fragment,
        at: Position {
            cluster: header.cluster_id,
            term: header.raft_term,
            revision: header.revision,
        },
        events: response.events.into_iter().filter_map(event).collect(),
    }
}

async fn with_deadline<T>(
    endpoint: &str,
    what: &str,
    call: impl Future<Output = Result<T, etcd_client::Error>>,
) -> Result<T, Failure> {
    let outcome = match time::timeout(TIMEOUT, call).await {
        Ok(outcome) => outcome.map_err(Failure::from),
        Err(_) => Err(Failure::new(Cause::Timeout, format!("no answer within {TIMEOUT:?}"))),
    };
    outcome.map_err(|failure| {
        at(
            endpoint,
            Failure::new(failure.cause, format!("{what}: {}", failure.detail)),
        )
    })
}

fn at(endpoint: &str, failure: Failure) -> Failure {
    Failure::new(failure.cause, format!("{endpoint}: {}", failure.detail))
}

async fn tls_options(tls: &Tls) -> Result<TlsOptions, String> {
    let mut options = match &tls.ca_file {
        Some(path) => TlsOptions::new().ca_certificate(Certificate::from_pem(read(path).await?)),
        None => TlsOptions::new().with_enabled_roots(),
    };
    if let Some((certificate, key)) = &tls.identity {
        options = options.identity(Identity::from_pem(read(certificate).await?, read(key).await?));
    }
    Ok(options.timeout(CONNECT_TIMEOUT))
}

async fn read(path: &Path) -> Result<Vec<u8>, String> {
    tokio::fs::read(path)
        .await
        .map_err(|error| format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::super::formats::SOURCE;
    use super::*;

    #[test]
    fn the_cause_is_found_by_the_text_where_codes_are_ambiguous() {
        for (text, cause) in [
            (
                "OutOfRange: etcdserver: mvcc: required revision has been compacted",
                Cause::Compacted,
            ),
            (
                "OutOfRange: Error, decoded message length too large: found 8000244 bytes, the limit is: 4194304 bytes",
                Cause::TooLarge,
            ),
            (
                "OutOfRange: etcdserver: mvcc: required revision is a future revision",
                Cause::Rollback,
            ),
            ("Unavailable: etcdserver: no leader", Cause::NoLeader),
            (
                "Unavailable: etcdserver: rpc not supported for learner",
                Cause::Unavailable,
            ),
            ("Unauthenticated: etcdserver: invalid auth token", Cause::Token),
            (
                "InvalidArgument: etcdserver: revision of auth store is old",
                Cause::Token,
            ),
            ("Unknown: auth: revision in header is old", Cause::Token),
            (
                "InvalidArgument: etcdserver: authentication failed, invalid user ID or password",
                Cause::Denied,
            ),
            ("InvalidArgument: etcdserver: user name is empty", Cause::Denied),
            ("PermissionDenied: etcdserver: permission denied", Cause::Denied),
        ] {
            assert_eq!(Cause::of_text(text), Some(cause), "{text}");
        }
        assert_eq!(Cause::of_text("tcp connect error"), None);
    }

    #[test]
    fn without_a_known_text_the_code_decides() {
        for (code, message, cause) in [
            ("Unavailable", "tcp connect error", Cause::Unreachable),
            ("Unavailable", "etcdserver: too many requests", Cause::Unavailable),
            (
                "Unknown",
                "h2 protocol error: error reading a body from connection",
                Cause::Unreachable,
            ),
            ("Cancelled", "Timeout expired", Cause::Timeout),
            ("DeadlineExceeded", "", Cause::Timeout),
            ("Unimplemented", "unknown service", Cause::Protocol),
            ("PermissionDenied", "", Cause::Denied),
        ] {
            assert_eq!(cause_of_code(code, message), cause, "{code}: {message}");
        }
    }

    #[test]
    fn a_range_ends_after_the_last_key_with_the_prefix() {
        assert_eq!(end_of(b"/services/"), b"/services0");
        assert_eq!(end_of(b"a\xff\xff"), b"b");
        assert_eq!(end_of(b"\xff"), b"\0");
        let everything = Prefix::everything("{service}/{instance}".parse().unwrap());
        assert_eq!(first_key(&everything), b"\0", "etcd takes no empty key");
        assert_eq!(end_of(everything.as_str().as_bytes()), b"\0", "etcd's word for no end");
    }

    #[test]
    fn endpoints_are_urls_without_passwords() {
        let client = |endpoints: &[&str]| {
            let settings = EtcdSettings::new(endpoints.iter().copied(), vec![Prefix::new("/s").unwrap()]);
            let status = Arc::new(SourceStatus::new(SOURCE, true, Box::new(|_| true)));
            Client::new(&settings, settings.prefixes.as_slice().into(), status).map(|_| ())
        };
        assert!(client(&["http://127.0.0.1:2379", "https://etcd:2379"]).is_ok());
        for refused in [&[][..], &["127.0.0.1:2379"], &["unix:///run/etcd"]] {
            assert!(matches!(client(refused), Err(HttpError::Address { .. })), "{refused:?}");
        }
        let error = client(&["http://alice:hunter2@etcd:2379"]).unwrap_err().to_string();
        assert!(error.contains("etcd:2379") && !error.contains("hunter2"), "{error}");
    }
}
