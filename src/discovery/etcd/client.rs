//! etcd's calls: a list in pages, and a watch. Each connection is to one endpoint.
//!
//! Knows addresses, credentials, deadlines and size limits. Does not know what was read before.
//!
//! The etcd crate balances over its endpoints without looking at their state: with one of three
//! dead, every third call fails. So each connection here is to one endpoint, and its owner goes to
//! the next endpoint after a failure. Certificates and the password are read, and the auth token
//! is fetched, for each connection: what has expired is renewed that way.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{
    Certificate, ConnectOptions, GetOptions, Identity, KvClient, TlsOptions, WatchClient, WatchOptions,
    WatchRequestSender, WatchResponse, WatchResponseStream,
};
use futures_util::FutureExt;
use tokio::time;

use super::formats::Prefixes;
use super::settings::{EtcdSettings, Password, User};
use super::wire::{Event, EventKind, Listed, Listing, Message, Position};
use crate::discovery::shared::{one_line, without_credentials};
use crate::discovery::watcher::Reason;
use crate::http_client::{self, HttpError, Tls};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The deadline of every call. For a watch it ends with the first headers.
const TIMEOUT: Duration = Duration::from_secs(5);
/// A frozen server or a dead connection is detected by these pings. etcd closes connections that
/// ping more often than every 5 s.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
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
            Self::Denied | Self::Token => Reason::Denied,
            Self::TooLarge | Self::Protocol => Reason::Protocol,
        }
    }

    /// Finds the cause by the text. gRPC's codes do not tell a compacted revision from a message
    /// that is too large (both are `OutOfRange`), and a canceled watch has no code at all.
    pub(super) fn of_text(text: &str) -> Option<Self> {
        const KNOWN: [(&str, Cause); 13] = [
            ("no leader", Cause::NoLeader),
            ("invalid auth token", Cause::Token),
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
fn with_causes(mut text: String, error: &dyn std::error::Error) -> String {
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    one_line(&text, ERROR_TEXT)
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
    endpoints: Vec<String>,
    prefixes: Prefixes,
    user: Option<User>,
    tls: Tls,
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
    pub(super) listing: Listing,
}

/// Why no connection was opened, and the member's own data, if that could be listed.
pub(super) struct NotOpened {
    pub(super) failure: Failure,
    pub(super) local: Option<Listing>,
}

impl Client {
    /// Checks the endpoints and the TLS files. Connects to nothing.
    pub(super) fn new(settings: &EtcdSettings, prefixes: Prefixes) -> Result<Self, HttpError> {
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
            endpoints: settings.endpoints.clone(),
            prefixes,
            user: settings.user.clone(),
            tls: settings.tls.clone(),
        })
    }

    pub(super) fn endpoints(&self) -> usize {
        self.endpoints.len()
    }

    /// Connects to one endpoint, logs in, and lists all keys. If that fails because there is no
    /// leader, and `allow_local` is set, lists the member's own data.
    pub(super) fn open(
        &self,
        endpoint: usize,
        allow_local: bool,
    ) -> impl Future<Output = Result<Opened, NotOpened>> + Send + use<> {
        let endpoint = self.endpoints.get(endpoint).cloned().unwrap_or_default();
        let (prefixes, user, tls) = (Arc::clone(&self.prefixes), self.user.clone(), self.tls.clone());
        async move {
            let connect = |leader| {
                Connection::connect(
                    endpoint.clone(),
                    Arc::clone(&prefixes),
                    user.clone(),
                    tls.clone(),
                    leader,
                )
            };
            let opened = async {
                let connection = connect(true).await?;
                let listing = connection.list().await?;
                Ok(Opened { connection, listing })
            };
            let failure: Failure = match opened.await {
                Ok(opened) => return Ok(opened),
                Err(failure) => failure,
            };
            let mut local = None;
            if allow_local && failure.cause == Cause::NoLeader {
                // Connects without `hasleader`, which a member without a leader refuses.
                local = match connect(false).await {
                    Ok(connection) => connection.list_local().await.ok(),
                    Err(_) => None,
                };
            }
            Err(NotOpened { failure, local })
        }
    }
}

/// A connection to one member.
#[derive(Clone)]
pub(super) struct Connection {
    endpoint: String,
    prefixes: Prefixes,
    /// Kept because it owns the connection.
    client: Box<etcd_client::Client>,
}

impl Connection {
    async fn connect(
        endpoint: String,
        prefixes: Prefixes,
        user: Option<User>,
        tls: Tls,
        require_leader: bool,
    ) -> Result<Self, Failure> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_timeout(TIMEOUT)
            .with_keep_alive(KEEP_ALIVE, KEEP_ALIVE_TIMEOUT)
            .with_require_leader(require_leader)
            .with_auto_token_refresh(true);
        if endpoint.starts_with("https://") {
            options = options.with_tls(
                tls_options(&tls)
                    .await
                    .map_err(|detail| at(&endpoint, Failure::new(Cause::Denied, detail)))?,
            );
        }
        if let Some(User { name, password }) = user {
            let password = match password {
                Password::Value(text) => text,
                Password::File(path) => {
                    let text = read(&path)
                        .await
                        .map_err(|detail| at(&endpoint, Failure::new(Cause::Denied, detail)))?;
                    String::from_utf8_lossy(&text).trim_end_matches(['\r', '\n']).to_owned()
                }
            };
            options = options.with_user(name, password);
        }
        let connect = etcd_client::Client::connect([&endpoint], Some(options));
        let client = Box::new(with_deadline(&endpoint, "connect", connect).await?);
        Ok(Self {
            endpoint,
            prefixes,
            client,
        })
    }

    pub(super) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    fn kv(&self) -> KvClient {
        self.client.kv_client().max_decoding_message_size(DECODE_LIMIT)
    }

    fn watcher(&self) -> WatchClient {
        self.client.watch_client().max_decoding_message_size(DECODE_LIMIT)
    }

    /// Lists all keys as they are now.
    pub(super) fn list(&self) -> impl Future<Output = Result<Listing, Failure>> + Send + use<> {
        list(self.clone(), Consistency::Linearizable)
    }

    /// Lists the data of this member alone.
    fn list_local(&self) -> impl Future<Output = Result<Listing, Failure>> + Send + use<> {
        list(self.clone(), Consistency::Serializable)
    }

    /// Watches all prefixes over one stream, from this revision on.
    pub(super) fn watch(&self, from: i64) -> impl Future<Output = Result<WatchStream, Failure>> + Send + use<> {
        let connection = self.clone();
        async move {
            let options = || {
                WatchOptions::new()
                    .with_prefix()
                    .with_start_revision(from)
                    .with_progress_notify()
                    .with_fragment()
            };
            let Some((first, others)) = connection.prefixes.split_first() else {
                return Err(Failure::new(Cause::Protocol, "nothing to watch"));
            };
            let mut watcher = connection.watcher();
            let open = watcher.watch(first.as_str(), Some(options()));
            let (mut requests, responses) = with_deadline(&connection.endpoint, "watch", open).await?.split();
            for prefix in others {
                let open = requests.watch(prefix.as_str(), Some(options()));
                with_deadline(&connection.endpoint, "watch", open).await?;
            }
            Ok(WatchStream {
                endpoint: connection.endpoint,
                requests,
                responses,
            })
        }
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

async fn list_once(connection: &Connection, consistency: Consistency) -> Result<Listing, Failure> {
    let mut kv = connection.kv();
    let mut at: Option<Position> = None;
    let mut keys = Vec::new();
    let mut limit = PAGE;
    for prefix in connection.prefixes.iter() {
        let end = end_of(prefix.as_str().as_bytes());
        let mut from = prefix.as_str().as_bytes().to_vec();
        loop {
            let mut options = GetOptions::new().with_range(end.clone()).with_limit(limit);
            if let Some(at) = at {
                options = options.with_revision(at.revision);
            }
            if consistency == Consistency::Serializable {
                options = options.with_serializable();
            }
            let mut page = match with_deadline(&connection.endpoint, "list", kv.get(from.clone(), Some(options))).await
            {
                // Large values: fewer keys per page.
                Err(failure) if failure.cause == Cause::TooLarge && limit > 1 => {
                    limit /= 2;
                    continue;
                }
                page => page?,
            };
            // The header of a later page has the present revision, although its keys are those of
            // the first page's revision.
            if at.is_none() {
                let header = page.header();
                let first = header.map(|header| Position {
                    cluster: header.cluster_id(),
                    term: header.raft_term(),
                    revision: header.revision(),
                });
                at = Some(first.ok_or_else(|| Failure::new(Cause::Protocol, "a list without a header"))?);
            }
            let weight: usize = page
                .kvs()
                .iter()
                .map(|pair| pair.key().len() + pair.value().len())
                .sum();
            if weight < SMALL_PAGE {
                limit = (limit * 2).min(LARGEST_PAGE);
            }
            let more = page.more();
            let last = page.kvs().last().map(|last| [last.key(), b"\0"].concat());
            for pair in page.take_kvs() {
                let (mod_revision, leased) = (pair.mod_revision(), pair.lease() != 0);
                let (key, value) = pair.into_key_value();
                if prefix.covers(&key) {
                    let read = prefix.read(&key, &value).map(|read| read.leased(leased));
                    keys.push(Listed {
                        key,
                        mod_revision,
                        read,
                    });
                }
            }
            match last {
                Some(next) if more => from = next,
                _ => break,
            }
        }
    }
    Ok(Listing {
        at: at.unwrap_or_default(),
        keys,
    })
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
    use super::super::formats::Prefix;
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
    }

    #[test]
    fn endpoints_are_urls_without_passwords() {
        let client = |endpoints: &[&str]| {
            let settings = EtcdSettings::new(endpoints.iter().copied(), vec![Prefix::new("/s").unwrap()]);
            Client::new(&settings, settings.prefixes.as_slice().into()).map(|_| ())
        };
        assert!(client(&["http://127.0.0.1:2379", "https://etcd:2379"]).is_ok());
        for refused in [&[][..], &["127.0.0.1:2379"], &["unix:///run/etcd"]] {
            assert!(matches!(client(refused), Err(HttpError::Address { .. })), "{refused:?}");
        }
        let error = client(&["http://alice:hunter2@etcd:2379"]).unwrap_err().to_string();
        assert!(error.contains("etcd:2379") && !error.contains("hunter2"), "{error}");
    }
}
