//! etcd's calls: a list in pages, and a watch. One endpoint a connection, or the kind of trouble there was.
//!
//! Knows addresses, credentials, deadlines and size limits. Does not know what was read before.
//!
//! The crate balances over several endpoints blindly: with one of three dead, every third call fails. So each connection is to
//! one endpoint, and who holds it goes to the next when it fails. A connection is also the life of all that goes out of date:
//! certificates and the password are read, and the token is fetched, for each anew.

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
use super::settings::{Password, Settings, User};
use super::wire::{Event, Listed, Listing, Message, Position, What};
use crate::discovery::watcher::Reason;
use crate::http_client::{self, HttpError, Tls};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// For every call; the watch has it until its first headers.
const TIMEOUT: Duration = Duration::from_secs(5);
/// A frozen server, or one behind a dead link, is found out by these. etcd hangs up on those who ask more often than every 5 s.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Keys in the first page.
const PAGE: i64 = 1_000;
/// Keys in a page at most. For each page etcd 3.4 counts all the keys that are left, so that many small ones cost it the square
/// of their number: pages that turn out small are followed by larger ones.
const LARGEST_PAGE: i64 = 10_000;
/// What a page may weigh for the next to be larger.
const SMALL_PAGE: usize = 512 << 10;
/// What one message may be. tonic's own limit of 4 MiB is less than what etcd sends after a few large changes.
const DECODE_LIMIT: usize = 64 << 20;
/// A history that is compacted while it is listed is listed anew, so many times.
const ATTEMPTS: usize = 3;

/// Why etcd could not be asked, or a watch ended.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Trouble {
    pub(super) cause: Cause,
    /// One line, without secrets.
    pub(super) detail: String,
}

impl Trouble {
    pub(super) fn new(cause: Cause, detail: impl Into<String>) -> Self {
        Self {
            cause,
            detail: detail.into(),
        }
    }
}

/// The kinds of trouble, as far as they are answered differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// Refused, reset, name not resolved, the stream ended.
    Unreachable,
    Timeout,
    /// Busy, in an election, or a learner.
    Unavailable,
    /// The member knows no leader: it is on the wrong side, or the quorum is gone.
    NoLeader,
    /// Wrong password, no rights, or a file with credentials that cannot be used.
    Denied,
    /// The token has expired.
    Token,
    /// The history that was asked for is not kept any more.
    Compacted,
    /// It is not the history that was listed.
    Rollback,
    /// The server ended the watch, for whatever reason.
    Canceled,
    /// A message beyond the decoding limit.
    TooLarge,
    /// An answer that makes no sense.
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

    /// By what it says: gRPC's codes do not tell apart a compacted history from a message that is too large (both are
    /// `OutOfRange`), and a canceled watch has no code at all.
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

impl From<etcd_client::Error> for Trouble {
    fn from(error: etcd_client::Error) -> Self {
        match error {
            etcd_client::Error::GRpcStatus(status) => {
                let code = format!("{:?}", status.code());
                let detail = in_full(format!("{code}: {}", status.message()), &status);
                let cause = Cause::of_text(&detail).unwrap_or_else(|| by_code(&code, status.message()));
                Self::new(cause, detail)
            }
            etcd_client::Error::TransportError(error) => {
                Self::new(Cause::Unreachable, in_full(error.to_string(), &error))
            }
            error @ (etcd_client::Error::IoError(_) | etcd_client::Error::EndpointError(_)) => {
                Self::new(Cause::Unreachable, one_line(&error.to_string()))
            }
            error => Self::new(Cause::Protocol, one_line(&error.to_string())),
        }
    }
}

/// With the causes that it does not tell yet: tonic's own text stops at "transport error".
fn in_full(mut text: String, error: &dyn std::error::Error) -> String {
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    one_line(&text)
}

/// By the name of gRPC's code: its type belongs to a crate that is not a dependency of this one.
fn by_code(code: &str, message: &str) -> Cause {
    match code {
        "Unauthenticated" | "PermissionDenied" => Cause::Denied,
        "DeadlineExceeded" => Cause::Timeout,
        "Cancelled" if message.contains("Timeout") => Cause::Timeout,
        "Unavailable" if message.starts_with("etcdserver") => Cause::Unavailable,
        "ResourceExhausted" => Cause::Unavailable,
        // A server that is killed shows as Unknown, with a text about broken pipes.
        "Unavailable" | "Unknown" | "Cancelled" | "Internal" | "Aborted" => Cause::Unreachable,
        _ => Cause::Protocol,
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .chars()
        .filter(|c| !c.is_control())
        .take(300)
        .collect()
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
    /// Through the leader: the latest there is.
    Linearizable,
    /// What this member remembers, however old.
    Serializable,
}

/// What came of opening a connection.
pub(super) struct Opened {
    pub(super) link: Link,
    pub(super) listing: Listing,
}

/// Why none could be opened, and what the member remembered nevertheless.
pub(super) struct NotOpened {
    pub(super) trouble: Trouble,
    pub(super) remembered: Option<Listing>,
}

impl Client {
    /// Checks the endpoints and the TLS files; connects to nothing.
    pub(super) fn new(settings: &Settings, prefixes: Prefixes) -> Result<Self, HttpError> {
        for endpoint in &settings.endpoints {
            let known = endpoint.starts_with("http://") || endpoint.starts_with("https://");
            if !known || endpoint.contains('@') {
                // What stands before an @ may be a password.
                let address = endpoint.rsplit_once('@').map_or(&**endpoint, |(_, host)| host);
                return Err(HttpError::Address {
                    address: address.to_owned(),
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

    /// Connects to one endpoint, logs in, and lists everything. Where that fails for want of a leader, and `remember` is set,
    /// lists what the member remembers.
    pub(super) fn open(
        &self,
        endpoint: usize,
        remember: bool,
    ) -> impl Future<Output = Result<Opened, NotOpened>> + Send + use<> {
        let endpoint = self.endpoints.get(endpoint).cloned().unwrap_or_default();
        let (prefixes, user, tls) = (Arc::clone(&self.prefixes), self.user.clone(), self.tls.clone());
        async move {
            let connect = |leader| {
                Link::connect(
                    endpoint.clone(),
                    Arc::clone(&prefixes),
                    user.clone(),
                    tls.clone(),
                    leader,
                )
            };
            let opened = async {
                let link = connect(true).await?;
                let listing = link.list().await?;
                Ok(Opened { link, listing })
            };
            let trouble: Trouble = match opened.await {
                Ok(opened) => return Ok(opened),
                Err(trouble) => trouble,
            };
            let mut remembered = None;
            if remember && trouble.cause == Cause::NoLeader {
                // Asked without `hasleader`, which a member without a leader refuses.
                remembered = match connect(false).await {
                    Ok(link) => link.list_remembered().await.ok(),
                    Err(_) => None,
                };
            }
            Err(NotOpened { trouble, remembered })
        }
    }
}

/// A connection to one member.
#[derive(Clone)]
pub(super) struct Link {
    endpoint: String,
    prefixes: Prefixes,
    /// Kept because it owns the connection.
    client: Box<etcd_client::Client>,
}

impl Link {
    async fn connect(
        endpoint: String,
        prefixes: Prefixes,
        user: Option<User>,
        tls: Tls,
        require_leader: bool,
    ) -> Result<Self, Trouble> {
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
                    .map_err(|detail| at(&endpoint, Trouble::new(Cause::Denied, detail)))?,
            );
        }
        if let Some(User { name, password }) = user {
            let password = match password {
                Password::Value(text) => text,
                Password::File(path) => {
                    let text = read(&path)
                        .await
                        .map_err(|detail| at(&endpoint, Trouble::new(Cause::Denied, detail)))?;
                    String::from_utf8_lossy(&text).trim_end_matches(['\r', '\n']).to_owned()
                }
            };
            options = options.with_user(name, password);
        }
        let connect = etcd_client::Client::connect([&endpoint], Some(options));
        let client = Box::new(in_time(&endpoint, "connect", connect).await?);
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

    /// Lists everything as it is now.
    pub(super) fn list(&self) -> impl Future<Output = Result<Listing, Trouble>> + Send + use<> {
        list(self.clone(), Consistency::Linearizable)
    }

    /// Lists what this member remembers.
    fn list_remembered(&self) -> impl Future<Output = Result<Listing, Trouble>> + Send + use<> {
        list(self.clone(), Consistency::Serializable)
    }

    /// Watches everything from this revision on, all prefixes over one stream.
    pub(super) fn follow(&self, from: i64) -> impl Future<Output = Result<Feed, Trouble>> + Send + use<> {
        let link = self.clone();
        async move {
            let options = || {
                WatchOptions::new()
                    .with_prefix()
                    .with_start_revision(from)
                    .with_progress_notify()
                    .with_fragment()
            };
            let Some((first, others)) = link.prefixes.split_first() else {
                return Err(Trouble::new(Cause::Protocol, "nothing to watch"));
            };
            let mut watcher = link.watcher();
            let open = watcher.watch(first.as_str(), Some(options()));
            let (mut requests, responses) = in_time(&link.endpoint, "watch", open).await?.split();
            for prefix in others {
                let open = requests.watch(prefix.as_str(), Some(options()));
                in_time(&link.endpoint, "watch", open).await?;
            }
            Ok(Feed {
                endpoint: link.endpoint,
                requests,
                responses,
            })
        }
    }
}

/// Reads page by page, each in time, all at the revision of the first.
async fn list(link: Link, consistency: Consistency) -> Result<Listing, Trouble> {
    let mut attempt = 1;
    loop {
        match list_once(&link, consistency).await {
            Err(trouble) if trouble.cause == Cause::Compacted && attempt < ATTEMPTS => attempt += 1,
            outcome => return outcome,
        }
    }
}

async fn list_once(link: &Link, consistency: Consistency) -> Result<Listing, Trouble> {
    let mut kv = link.kv();
    let mut at: Option<Position> = None;
    let mut keys = Vec::new();
    let mut limit = PAGE;
    for prefix in link.prefixes.iter() {
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
            let mut page = match in_time(&link.endpoint, "list", kv.get(from.clone(), Some(options))).await {
                // Large values: fewer of them at a time.
                Err(trouble) if trouble.cause == Cause::TooLarge && limit > 1 => {
                    limit /= 2;
                    continue;
                }
                page => page?,
            };
            // The headers of later pages tell the present revision, although what they hold is that of the first.
            if at.is_none() {
                let header = page.header();
                let first = header.map(|header| Position {
                    cluster: header.cluster_id(),
                    term: header.raft_term(),
                    revision: header.revision(),
                });
                at = Some(first.ok_or_else(|| Trouble::new(Cause::Protocol, "a list without a header"))?);
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
                let mod_revision = pair.mod_revision();
                let (key, value) = pair.into_key_value();
                if prefix.covers(&key) {
                    let read = prefix.read(&key, &value);
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

/// The first key behind all that start so.
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

/// A watch under way.
pub(super) struct Feed {
    endpoint: String,
    requests: WatchRequestSender,
    responses: WatchResponseStream,
}

impl Feed {
    /// The next message. Cancel safe. There is no deadline: a quiet prefix is silent, and a dead connection ends by itself.
    pub(super) async fn message(&mut self) -> Result<Message, Trouble> {
        match self.responses.message().await {
            Ok(Some(response)) => Ok(message(response)),
            Ok(None) => Err(at(&self.endpoint, Trouble::new(Cause::Unreachable, "the watch ended"))),
            Err(error) => Err(at(&self.endpoint, error.into())),
        }
    }

    /// Asks for a sign of life, which is a message without events.
    pub(super) fn ask_progress(&mut self) {
        // There is always room, unless the server has not read for minutes; then there is no point in waiting.
        let _ = self.requests.request_progress().now_or_never();
    }
}

fn message(response: WatchResponse) -> Message {
    let response = response.0;
    let header = response.header.unwrap_or_default();
    let event = |event: etcd_client::proto::PbEvent| {
        let pair = event.kv?;
        // Not by the crate's own accessor, which panics at what it does not know.
        let what = match event.r#type {
            0 => What::Put(pair.value),
            1 => What::Delete,
            other => What::Unknown(other),
        };
        Some(Event {
            key: pair.key,
            mod_revision: pair.mod_revision,
            what,
        })
    };
    Message {
        watch_id: response.watch_id,
        created: response.created,
        canceled: response.canceled,
        compact_revision: response.compact_revision,
        cancel_reason: one_line(&response.cancel_reason),
        fragment: response.fragment,
        at: Position {
            cluster: header.cluster_id,
            term: header.raft_term,
            revision: header.revision,
        },
        events: response.events.into_iter().filter_map(event).collect(),
    }
}

async fn in_time<T>(
    endpoint: &str,
    what: &str,
    call: impl Future<Output = Result<T, etcd_client::Error>>,
) -> Result<T, Trouble> {
    let outcome = match time::timeout(TIMEOUT, call).await {
        Ok(outcome) => outcome.map_err(Trouble::from),
        Err(_) => Err(Trouble::new(Cause::Timeout, format!("no answer within {TIMEOUT:?}"))),
    };
    outcome.map_err(|trouble| {
        at(
            endpoint,
            Trouble::new(trouble.cause, format!("{what}: {}", trouble.detail)),
        )
    })
}

fn at(endpoint: &str, trouble: Trouble) -> Trouble {
    Trouble::new(trouble.cause, format!("{endpoint}: {}", trouble.detail))
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
    fn trouble_is_told_apart_by_what_it_says_where_codes_do_not() {
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
    fn without_words_that_are_known_the_code_decides() {
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
            assert_eq!(by_code(code, message), cause, "{code}: {message}");
        }
    }

    #[test]
    fn a_range_ends_behind_the_last_key_that_starts_so() {
        assert_eq!(end_of(b"/services/"), b"/services0");
        assert_eq!(end_of(b"a\xff\xff"), b"b");
        assert_eq!(end_of(b"\xff"), b"\0");
    }

    #[test]
    fn endpoints_are_urls_without_passwords() {
        let client = |endpoints: &[&str]| {
            let settings = Settings::new(endpoints.iter().copied(), vec![Prefix::new("/s").unwrap()]);
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
