//! Consul's endpoints: a request goes out, and a whole answer or an error comes back.
//!
//! Knows addresses, tokens, TLS files, deadlines and size limits. Does not know what was asked
//! before, nor what the JSON means, but for these questions of its own:
//!
//! - Is an empty answer empty, or does the token lack rights (the catalog), or does the filter
//!   leave everything out (a service)?
//! - Before the first catalog: does Consul accept the filter, and does it know partitions?
//!
//! Requests ask for stale answers by default. Any server can give those, also without a leader.
//! The reader checks how old they are.

use std::error::Error;
use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{HOST, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Method, StatusCode};
use serde_json::json;

use super::endpoint::Endpoint;
use super::request::{Consistency, Mode, READS, Request, Target};
use super::rights;
use super::scope::Scope;
use super::settings::{BasicAuth, ConsulSettings, Token};
use super::wire::{self, Head};
use crate::discovery::shared::{one_line, without_credentials};
use crate::discovery::watcher::Reason;
use crate::http_client::{self, HttpError, ReloadingClient, TlsSettings};

/// The characters that need no escaping in a path (RFC 3986).
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long an unused connection stays open. Consul counts it against the limit of connections per
/// client address, which other clients at this address share.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// What Consul says with status 429 when a client address has too many connections, in contrast to
/// too many requests.
const CONNECTION_LIMIT: &str = "concurrent connections";
/// Consul adds up to a sixteenth to a wait, and a server without a leader takes seven seconds to
/// say so.
const GRACE: Duration = Duration::from_secs(10);
const BODY_LIMIT: usize = 64 << 20;
/// How many characters of an error's text go into a log line.
const ERROR_TEXT: usize = 200;
/// How Consul's error about a filter begins.
const BAD_FILTER: &str = "boolean expression evaluator";

/// A good answer, whole.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) head: Head,
    pub(super) body: Bytes,
    /// Whether an empty answer is known to be empty. A catalog: the token may read services. A
    /// service: the filter leaves all its instances out. Without that, the token may lack rights.
    pub(super) truly_empty: bool,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct AskError {
    pub(super) reason: Reason,
    pub(super) cause: Cause,
    /// One line, without secrets.
    pub(super) detail: String,
}

/// What failed, as far as it decides what is asked next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// No connection was made: refused, or the name is not resolved. Or the token is unreadable.
    /// Every other request would fail, too.
    NoConnection,
    /// The connection was closed or reset before an answer began.
    Reset,
    /// No answer in time.
    Timeout,
    /// Too many requests: status 429, or 503 with `Retry-After`.
    Throttled { retry_after: Option<Duration> },
    /// Too many connections from this address.
    TooManyConnections,
    /// Status 408, 502, 503 or 504: a proxy gave up waiting for Consul.
    Gateway,
    /// Any other status, or an answer that is of no use.
    Answer,
}

/// Sends requests to one Consul agent.
pub(super) struct Client {
    shared: Arc<Shared>,
    reloader: Reloader,
}

/// What every request needs.
struct Shared {
    http: Arc<ReloadingClient>,
    /// Scheme, authority and any path prefix, without a slash at the end. The host is the server
    /// name, if there is a server name.
    base: String,
    /// The `Host` header, if the host of `base` is not the host of the address.
    host: Option<HeaderValue>,
    /// The address as the operator wrote it.
    address: String,
    /// The parameters of every request: datacenter, namespace and partition.
    parameters: Vec<(&'static str, String)>,
    scope: Scope,
    filter: Option<String>,
    /// The beginnings of the names of services that are wanted.
    wanted: Vec<String>,
    /// Where connections go; `None` if opening one means more than a connection.
    endpoint: Option<Endpoint>,
    basic_auth: Option<BasicAuth>,
    /// Whether Consul has accepted the filter and the partition.
    accepted: AtomicBool,
}

impl Client {
    /// Checks the address and loads the TLS files. Connects to nothing.
    pub(super) fn new(settings: &ConsulSettings) -> Result<Self, HttpError> {
        let (base, route) = route(settings)?;
        // Each long poll that returns is sent again: with fewer idle connections, each would
        // connect again.
        let idle = settings.max_watches + READS;
        let host = match &route {
            Route::Renamed { authority, .. } => HeaderValue::from_str(authority).ok(),
            _ => None,
        };
        let http = ReloadingClient::new(CONNECT_TIMEOUT, settings.tls.clone(), move |builder| {
            let builder = builder.pool_max_idle_per_host(idle).pool_idle_timeout(IDLE_TIMEOUT);
            match &route {
                Route::Direct => builder,
                Route::Socket(path) => builder.unix_socket(path.as_str()),
                Route::Renamed { host, .. } => builder.dns_resolver(Arc::new(Always(host.clone()))),
            }
        })?;
        if settings.tls.unverified && base.starts_with("https://") {
            tracing::warn!(source = %settings.source(), address = %settings.address,
                "the certificate of the server is not verified");
        }
        let http = Arc::new(http);
        let reloader = Reloader::new(settings.token.clone(), Arc::clone(&http));
        let parameters = [
            ("dc", &settings.datacenter),
            ("ns", &settings.namespace),
            ("partition", &settings.partition),
        ];
        let shared = Shared {
            http,
            endpoint: Endpoint::of(&settings.address, &base),
            base,
            host,
            address: settings.address.clone(),
            parameters: parameters
                .into_iter()
                .filter_map(|(name, value)| Some((name, value.clone()?)))
                .collect(),
            scope: Scope::of(settings),
            filter: settings.filter.clone(),
            wanted: settings.services.beginnings(),
            basic_auth: settings.basic_auth.clone(),
            accepted: AtomicBool::new(settings.filter.is_none() && settings.partition.is_none()),
        };
        Ok(Self {
            shared: Arc::new(shared),
            reloader,
        })
    }

    /// Reads the token and the TLS files again on demand.
    pub(super) fn reloader(&self) -> &Reloader {
        &self.reloader
    }

    /// Whether connections can be opened only to see if there is room.
    pub(super) fn has_testable_room(&self) -> bool {
        self.shared.endpoint.is_some()
    }

    /// Whether Consul has room for so many connections more, and for those that requests may open
    /// meanwhile.
    pub(super) fn has_room(&self, connections: usize, to_come: usize) -> impl Future<Output = bool> + Send + use<> {
        let endpoint = self.shared.endpoint.clone();
        async move {
            match endpoint {
                Some(endpoint) => endpoint.has_room(connections, to_come).await,
                None => true,
            }
        }
    }

    /// Sends a request. The future owns all it needs, and has a deadline.
    pub(super) fn ask(&self, request: &Request) -> impl Future<Output = Result<Answer, AskError>> + Send + use<> {
        let shared = Arc::clone(&self.shared);
        let connection = Connection {
            http: shared.http.client(request.asked_at),
            token: self.reloader.header(),
            stale: request.consistency == Consistency::Stale,
        };
        let (target, mode) = (request.target.clone(), request.mode);
        async move {
            match &target {
                Target::Catalog => shared.catalog(&connection, mode).await,
                Target::Service(name) => shared.service(&connection, name.as_str(), mode).await,
            }
        }
    }
}

/// What the requests for one answer have in common.
struct Connection {
    http: reqwest::Client,
    token: Result<Option<HeaderValue>, String>,
    stale: bool,
}

impl Shared {
    async fn catalog(&self, connection: &Connection, mode: Mode) -> Result<Answer, AskError> {
        if !self.accepted.load(Ordering::Relaxed) {
            self.check_accepted(connection).await?;
            self.accepted.store(true, Ordering::Relaxed);
        }
        let mut answer = self.get(connection, "/v1/catalog/services", mode, None).await?;
        if wire::is_empty(&answer.body) && news(mode, &answer.head) {
            answer.truly_empty = self.may_read_services(connection).await?;
        }
        Ok(answer)
    }

    async fn service(&self, connection: &Connection, name: &str, mode: Mode) -> Result<Answer, AskError> {
        let path = service_path(name);
        let mut answer = self.get(connection, &path, mode, self.filter.as_deref()).await?;
        self.in_scope(&answer)?;
        if self.filter.is_some() && wire::is_empty(&answer.body) && news(mode, &answer.head) {
            let whole = self.get(connection, &path, Mode::Read, None).await?;
            answer.truly_empty = !wire::is_empty(&whole.body);
        }
        Ok(answer)
    }

    /// Asks for a service that every Consul has. A filter that is not valid is an error of the
    /// whole source, and not of each service. Consul before 1.11 ignores `partition`, and answers
    /// with instances that are in no partition.
    async fn check_accepted(&self, connection: &Connection) -> Result<(), AskError> {
        let path = service_path("consul");
        if let Some(filter) = self.filter.as_deref() {
            let asked = self.get(connection, &path, Mode::Read, Some(filter)).await;
            asked.map_err(|error| match error.detail.contains(BAD_FILTER) {
                true => AskError {
                    reason: Reason::Protocol,
                    cause: Cause::Answer,
                    detail: format!("consul.filter is not valid: {}", error.detail),
                },
                false => error,
            })?;
        }
        self.in_scope(&self.get(connection, &path, Mode::Read, None).await?)
    }

    fn in_scope(&self, answer: &Answer) -> Result<(), AskError> {
        self.scope.check(&answer.body).map_err(|detail| AskError {
            reason: Reason::Protocol,
            cause: Cause::Answer,
            detail: format!("{}: {detail}", self.address),
        })
    }

    /// Whether the token may read all services that are wanted. Consul answers with an empty
    /// catalog also if the token may read none.
    async fn may_read_services(&self, connection: &Connection) -> Result<bool, AskError> {
        let Self { scope, wanted, .. } = self;
        let questions: Vec<_> = wanted.iter().map(|name| scope.may_read_service(name)).collect();
        let request = self
            .request(connection, Method::POST, "/v1/internal/acl/authorize")
            .body(json!(questions).to_string());
        let (status, body) = self
            .whole(connection, request, "POST /v1/internal/acl/authorize")
            .await?;
        if status == StatusCode::OK {
            return Ok(rights::all_allowed(&body, questions.len()));
        }
        if rights::has_no_acls(status, &body) {
            return Ok(true);
        }
        // A proxy in front of Consul may pass on GET alone.
        let request = self.request(connection, Method::GET, "/v1/acl/token/self");
        let (status, body) = self.whole(connection, request, "GET /v1/acl/token/self").await?;
        Ok(rights::has_no_acls(status, &body))
    }

    /// A request with what all requests have.
    fn request(&self, connection: &Connection, method: Method, path: &str) -> reqwest::RequestBuilder {
        let mut http = connection.http.request(method, format!("{}{path}", self.base));
        if !self.parameters.is_empty() {
            http = http.query(&self.parameters);
        }
        if let Some(host) = &self.host {
            http = http.header(HOST, host.clone());
        }
        if let Some(BasicAuth { user, password }) = &self.basic_auth {
            http = http.basic_auth(user, Some(password));
        }
        http.timeout(GRACE)
    }

    async fn get(
        &self,
        connection: &Connection,
        path: &str,
        mode: Mode,
        filter: Option<&str>,
    ) -> Result<Answer, AskError> {
        let mut http = self.request(connection, Method::GET, path);
        if let Some(filter) = filter {
            http = http.query(&[("filter", filter)]);
        }
        if connection.stale {
            http = http.query(&[("stale", "")]);
        }
        let wait = match mode {
            Mode::Read => Duration::ZERO,
            Mode::Poll { index, wait } => {
                http = http.query(&[
                    ("index", index.to_string()),
                    ("wait", format!("{}ms", wait.as_millis())),
                ]);
                wait
            }
        };
        http = http.timeout(deadline(wait));
        let what = format!("GET {path}");
        let response = self.send(connection, http, &what).await?;
        let status = response.status();
        if status != StatusCode::OK {
            return Err(self.refused(status, response, &what).await);
        }
        let head = Head::read(response.headers());
        let body = http_client::body(response, BODY_LIMIT).await;
        let body = body.map_err(|error| self.broken(error, &what))?;
        Ok(Answer {
            head,
            body,
            truly_empty: false,
        })
    }

    /// The status and the body of an answer, unless Consul or a proxy could not answer at present.
    async fn whole(
        &self,
        connection: &Connection,
        request: reqwest::RequestBuilder,
        what: &str,
    ) -> Result<(StatusCode, Bytes), AskError> {
        let response = self.send(connection, request, what).await?;
        let (status, retry_after) = (response.status(), retry_after(response.headers()));
        let body = http_client::body(response, BODY_LIMIT).await;
        let body = body.map_err(|error| self.broken(error, what))?;
        match self.refusal(status, retry_after, &body, what) {
            error if error.cause != Cause::Answer => Err(error),
            _ => Ok((status, body)),
        }
    }

    async fn send(
        &self,
        connection: &Connection,
        mut request: reqwest::RequestBuilder,
        what: &str,
    ) -> Result<reqwest::Response, AskError> {
        match &connection.token {
            Ok(Some(token)) => request = request.header("x-consul-token", token.clone()),
            Ok(None) => {}
            Err(detail) => return Err(self.failed(Reason::Denied, Cause::NoConnection, what, detail)),
        }
        let sent = request.send().await;
        sent.map_err(|error| self.broken(error.into(), what))
    }

    async fn refused(&self, status: StatusCode, mut response: reqwest::Response, what: &str) -> AskError {
        let retry_after = retry_after(response.headers());
        let text = response.chunk().await.ok().flatten().unwrap_or_default();
        self.refusal(status, retry_after, &text, what)
    }

    fn refusal(&self, status: StatusCode, retry_after: Option<Duration>, text: &[u8], what: &str) -> AskError {
        let text = one_line(&String::from_utf8_lossy(text), ERROR_TEXT);
        let cause = refusal(status, retry_after, &text);
        let reason = match cause {
            Cause::Throttled { .. } | Cause::TooManyConnections => Reason::Throttled,
            _ => reason_of(status),
        };
        self.failed(reason, cause, what, &format!("{status}: {text}"))
    }

    fn broken(&self, error: HttpError, what: &str) -> AskError {
        let (reason, mut cause) = (kind(&error), cause_of(&error));
        let error: Box<dyn Error> = match error {
            HttpError::Request(error) => Box::new(error.without_url()),
            other => Box::new(other),
        };
        let mut detail = http_client::with_causes(&*error, TlsSettings::All);
        if http_client::tls_error(&*error).is_some() {
            cause = Cause::NoConnection;
            // The certificates on either side may have been replaced.
            self.http.reload();
            if let Some(problem) = self.http.problem() {
                detail = format!("{detail}; {problem}");
            }
        }
        self.failed(reason, cause, what, &detail)
    }

    fn failed(&self, reason: Reason, cause: Cause, what: &str, detail: &str) -> AskError {
        AskError {
            reason,
            cause,
            detail: format!("{}: {what}: {detail}", self.address),
        }
    }
}

fn service_path(name: &str) -> String {
    format!("/v1/health/service/{}", utf8_percent_encode(name, SEGMENT))
}

/// Whether an answer can have news: a long poll that was waited out has none.
fn news(mode: Mode, head: &Head) -> bool {
    !matches!(mode, Mode::Poll { index, .. } if head.index == Some(index))
}

/// How connections are made.
enum Route {
    /// To the host of the URL.
    Direct,
    /// To a Unix socket.
    Socket(String),
    /// To this host, while the URL has the server name: TLS asks for the name in the URL.
    Renamed { host: String, authority: String },
}

/// A resolver with one answer: the addresses of this host.
struct Always(String);

impl reqwest::dns::Resolve for Always {
    fn resolve(&self, _name: reqwest::dns::Name) -> reqwest::dns::Resolving {
        let host = self.0.clone();
        Box::pin(async move {
            let found = tokio::net::lookup_host((host, 0)).await?;
            Ok(Box::new(found) as reqwest::dns::Addrs)
        })
    }
}

fn route(settings: &ConsulSettings) -> Result<(String, Route), HttpError> {
    match settings.address.strip_prefix("unix://") {
        Some(path) if path.starts_with('/') => {
            return Ok((String::from("http://localhost"), Route::Socket(path.to_owned())));
        }
        Some(_) => return Err(refused(settings, "expected unix:///path/to/socket")),
        None => {}
    }
    let mut url = base(settings)?;
    let mut route = Route::Direct;
    // An IP address is verified, but not sent: TLS has no such extension.
    if let Some(name) = &settings.tls.server_name
        && url.scheme() == "https"
        && name.parse::<std::net::IpAddr>().is_err()
    {
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let authority = url.authority().to_owned();
        url.set_host(Some(name))
            .map_err(|_| refused(settings, "the TLS server name cannot stand in a URL"))?;
        route = Route::Renamed { host, authority };
    }
    Ok((url.as_str().trim_end_matches('/').to_owned(), route))
}

/// How long an answer may take in all, if the server was asked to wait this long for a change.
fn deadline(wait: Duration) -> Duration {
    wait * 17 / 16 + GRACE
}

fn base(settings: &ConsulSettings) -> Result<reqwest::Url, HttpError> {
    let text = match settings.address.contains("://") {
        true => settings.address.clone(),
        false => format!("http://{}", settings.address),
    };
    let expected = "expected http://host:port, https://host:port, host:port or unix:///path";
    let url = reqwest::Url::parse(&text).map_err(|_| refused(settings, expected))?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() || url.query().is_some() {
        return Err(refused(settings, expected));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(refused(
            settings,
            "user and password do not belong here but in basic_auth",
        ));
    }
    Ok(url)
}

fn refused(settings: &ConsulSettings, detail: &'static str) -> HttpError {
    HttpError::Address {
        address: without_credentials(&settings.address).to_owned(),
        detail,
    }
}

fn reason_of(status: StatusCode) -> Reason {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Reason::Denied,
        _ if status.is_server_error() => Reason::Unavailable,
        _ => Reason::Protocol,
    }
}

/// What a status other than 200 means for the requests that follow.
fn refusal(status: StatusCode, retry_after: Option<Duration>, text: &str) -> Cause {
    match status {
        StatusCode::TOO_MANY_REQUESTS if text.contains(CONNECTION_LIMIT) => Cause::TooManyConnections,
        StatusCode::TOO_MANY_REQUESTS => Cause::Throttled { retry_after },
        StatusCode::SERVICE_UNAVAILABLE if retry_after.is_some() => Cause::Throttled { retry_after },
        StatusCode::REQUEST_TIMEOUT
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => Cause::Gateway,
        _ => Cause::Answer,
    }
}

/// The pause that the server asks for, if the header is a number of seconds. Dates are ignored.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

fn cause_of(error: &HttpError) -> Cause {
    match error {
        HttpError::Request(error) if error.is_timeout() && error.is_connect() => Cause::NoConnection,
        HttpError::Request(error) if error.is_timeout() => Cause::Timeout,
        // The answer began, so that the server is there and has taken the request.
        HttpError::Request(error) if error.is_decode() || error.is_body() || error.is_builder() => Cause::Answer,
        HttpError::Request(error) if was_closed(error) => Cause::Reset,
        HttpError::Request(_) => Cause::NoConnection,
        _ => Cause::Answer,
    }
}

/// Whether the other side accepted the connection and then closed it without an answer.
fn was_closed(error: &reqwest::Error) -> bool {
    let mut source = error.source();
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<hyper::Error>()
            && (error.is_incomplete_message() || error.is_closed() || error.is_canceled())
        {
            return true;
        }
        if let Some(error) = error.downcast_ref::<io::Error>()
            && matches!(
                error.kind(),
                io::ErrorKind::ConnectionReset
                    | io::ErrorKind::ConnectionAborted
                    | io::ErrorKind::BrokenPipe
                    | io::ErrorKind::UnexpectedEof
            )
        {
            return true;
        }
        source = error.source();
    }
    false
}

fn kind(error: &HttpError) -> Reason {
    match error {
        HttpError::Request(error) if error.is_timeout() => Reason::Timeout,
        // A body that cannot be decompressed, or a request that cannot be built.
        HttpError::Request(error) if error.is_decode() && !cut_short(error) || error.is_builder() => Reason::Protocol,
        HttpError::Request(_) => Reason::Unreachable,
        _ => Reason::Protocol,
    }
}

/// Whether the connection ended before the body was complete. reqwest calls that a decoding error
/// too.
fn cut_short(error: &reqwest::Error) -> bool {
    let mut source = error.source();
    while let Some(error) = source {
        if error.downcast_ref::<hyper::Error>().is_some() {
            return true;
        }
        source = error.source();
    }
    false
}

/// The token in use and the TLS files, and how to read them again. Clones share them.
#[derive(Clone)]
pub struct Reloader {
    token: Option<Token>,
    loaded: Arc<Mutex<Option<HeaderValue>>>,
    http: Arc<ReloadingClient>,
}

impl Reloader {
    fn new(token: Option<Token>, http: Arc<ReloadingClient>) -> Self {
        Self {
            token,
            loaded: Arc::default(),
            http,
        }
    }

    /// The next request reads the token file and the TLS files again. Requests in flight keep the
    /// old token and the old certificates.
    pub fn reload(&self) {
        self.reload_token();
        self.http.reload();
    }

    /// The next request reads the token file again.
    pub(super) fn reload_token(&self) {
        *self.loaded.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The header's value. If a token is set but cannot be read, that is an error. Without it,
    /// services would seem to be gone much later.
    fn header(&self) -> Result<Option<HeaderValue>, String> {
        let Some(token) = &self.token else { return Ok(None) };
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if loaded.is_none() {
            let text = match token {
                Token::Value(text) => text.clone(),
                Token::File(path) => {
                    std::fs::read_to_string(path).map_err(|error| format!("token file {}: {error}", path.display()))?
                }
            };
            let mut value = HeaderValue::from_str(text.trim())
                .map_err(|_| String::from("the token has characters that cannot be sent"))?;
            if value.is_empty() {
                return Err(String::from("the token is empty"));
            }
            value.set_sensitive(true);
            *loaded = Some(value);
        }
        Ok(loaded.clone())
    }
}

impl std::fmt::Debug for Reloader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reloader")
            .field("token", &self.token)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(address: &str) -> Result<Client, HttpError> {
        Client::new(&ConsulSettings::new(address))
    }

    #[test]
    fn an_address_has_four_forms() {
        for (address, base) in [
            ("http://127.0.0.1:8500", "http://127.0.0.1:8500"),
            ("http://127.0.0.1:8500/", "http://127.0.0.1:8500"),
            (
                "https://consul.example:8501/prefix/",
                "https://consul.example:8501/prefix",
            ),
            ("127.0.0.1:8500", "http://127.0.0.1:8500"),
            ("localhost:8500", "http://localhost:8500"),
            ("[::1]:8500", "http://[::1]:8500"),
            ("unix:///run/consul.sock", "http://localhost"),
        ] {
            assert_eq!(client(address).unwrap().shared.base, base, "{address}");
        }
        for bad in [
            "",
            "unix://run/consul.sock",
            "ftp://a",
            "http://",
            "http://a:99999",
            "http://a?dc=b",
            "http://a b",
        ] {
            assert!(
                matches!(client(bad).map(|_| ()), Err(HttpError::Address { .. })),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_password_in_the_address_is_refused_and_not_printed() {
        let error = client("http://alice:hunter2@127.0.0.1:8500")
            .map(|_| ())
            .unwrap_err()
            .to_string();
        assert!(error.contains("basic_auth") && !error.contains("hunter2"), "{error}");
    }

    #[test]
    fn an_answer_gets_the_time_that_consul_may_take() {
        assert_eq!(deadline(Duration::ZERO), Duration::from_secs(10));
        assert_eq!(deadline(Duration::from_secs(48)), Duration::from_secs(61));
    }

    #[test]
    fn a_token_file_is_read_again_only_after_a_reload() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let reloader = |token| {
            let mut settings = ConsulSettings::new("http://127.0.0.1:8500");
            settings.token = Some(token);
            Client::new(&settings).unwrap().reloader().clone()
        };
        let debugged = reloader(Token::Value(String::from("s3cret")));
        let reloader = reloader(Token::File(file.path().to_owned()));
        assert!(reloader.header().is_err(), "empty");
        std::fs::write(file.path(), "one\n").unwrap();
        assert_eq!(reloader.header().unwrap().unwrap(), "one");
        std::fs::write(file.path(), "two\n").unwrap();
        assert_eq!(reloader.header().unwrap().unwrap(), "one");
        reloader.clone().reload();
        assert_eq!(reloader.header().unwrap().unwrap(), "two");
        std::fs::remove_file(file.path()).unwrap();
        reloader.reload();
        assert!(reloader.header().unwrap_err().contains("token file"));
        let text = format!("{reloader:?} {debugged:?}");
        assert!(!text.contains("s3cret"), "{text}");
    }

    #[tokio::test]
    async fn a_tls_error_and_a_reload_have_the_files_read_again() {
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap();
        let plain = tokio::spawn(async move {
            while let Ok((stream, _)) = server.accept().await {
                stream.writable().await.unwrap();
                stream.try_write(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
            }
        });
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        let client = |scheme: &str| {
            std::fs::write(&file, http_client::CERTIFICATE).unwrap();
            let mut settings = ConsulSettings::new(format!("{scheme}://{address}"));
            settings.tls.ca_file = Some(file.clone());
            Client::new(&settings).unwrap()
        };
        // All at one time, so that changes of the files are looked for once.
        let ask = async |client: &Client| {
            let request = Request {
                number: 1,
                target: Target::Catalog,
                mode: Mode::Read,
                consistency: Consistency::Stale,
                asked_at: crate::balancer::Timestamp::default(),
                generation: 0,
            };
            client.ask(&request).await.unwrap_err().detail
        };
        let over_tls = client("https");
        let error = ask(&over_tls).await;
        assert!(
            error.contains("does not speak TLS") && !error.contains("ca.pem"),
            "{error}"
        );
        std::fs::remove_file(&file).unwrap();
        let error = ask(&over_tls).await;
        assert!(error.contains("ca.pem"), "{error}");

        let without_tls = client("http");
        ask(&without_tls).await;
        std::fs::remove_file(&file).unwrap();
        ask(&without_tls).await;
        assert_eq!(without_tls.shared.http.problem(), None);
        without_tls.reloader().reload();
        ask(&without_tls).await;
        assert!(
            without_tls
                .shared
                .http
                .problem()
                .is_some_and(|problem| problem.contains("ca.pem"))
        );
        plain.abort();
    }

    #[test]
    fn a_refusal_for_the_rate_and_for_connections_and_by_a_proxy_differ() {
        let second = Some(Duration::from_secs(1));
        let connections = "Your IP is issuing too many concurrent connections, please rate limit your calls";
        for (status, retry_after, text, cause) in [
            (
                429,
                None,
                "rpc rate limit exceeded",
                Cause::Throttled { retry_after: None },
            ),
            (429, second, "", Cause::Throttled { retry_after: second }),
            (429, None, connections, Cause::TooManyConnections),
            (503, second, "", Cause::Throttled { retry_after: second }),
            (503, None, "", Cause::Gateway),
            (504, None, "", Cause::Gateway),
            (500, None, "rpc error", Cause::Answer),
            (403, None, "Permission denied", Cause::Answer),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(refusal(status, retry_after, text), cause, "{status} {text}");
        }
    }

    #[test]
    fn a_pause_is_read_in_seconds_and_a_date_is_ignored() {
        let read = |text| retry_after(&HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static(text))]));
        assert_eq!(read("7"), Some(Duration::from_secs(7)));
        for text in ["", "-1", "soon", "Wed, 21 Oct 2026 07:28:00 GMT"] {
            assert_eq!(read(text), None, "{text}");
        }
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }

    #[test]
    fn errors_are_one_short_line() {
        assert_eq!(
            one_line(
                &String::from_utf8_lossy(b"rpc error\n making\tcall:\x1b[0m EOF \xff"),
                ERROR_TEXT
            ),
            "rpc error making call:[0m EOF \u{fffd}"
        );
        assert_eq!(one_line(&"x".repeat(5000), ERROR_TEXT).len(), ERROR_TEXT);
    }
}
