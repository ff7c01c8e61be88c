//! Consul's endpoints: a request goes out, and a whole answer or an error comes back.
//!
//! Knows addresses, tokens, deadlines and size limits. Does not know what was asked before, nor
//! what the JSON means.
//!
//! Requests ask for stale answers by default. Any server can give those, also without a leader.
//! The reader checks how old they are.

use std::error::Error;
use std::fmt::Write as _;
use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Method, StatusCode};

use super::endpoint::Endpoint;
use super::request::{Consistency, Mode, READS, Request, Target};
use super::settings::{BasicAuth, ConsulSettings, Token};
use super::wire::Head;
use crate::discovery::shared::{one_line, without_credentials};
use crate::discovery::watcher::Reason;
use crate::http_client::{self, HttpError};

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

/// A good answer, whole.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) head: Head,
    pub(super) body: Bytes,
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
    http: reqwest::Client,
    /// Scheme, authority and any path prefix, without a slash at the end.
    base: String,
    /// The address as the operator wrote it.
    address: String,
    /// Where connections go; `None` if opening one means more than a connection.
    endpoint: Option<Endpoint>,
    datacenter: Option<String>,
    basic_auth: Option<BasicAuth>,
    token: TokenReloader,
}

impl Client {
    /// Checks the address and loads the TLS files. Connects to nothing.
    pub(super) fn new(settings: &ConsulSettings) -> Result<Self, HttpError> {
        let builder = http_client::builder(CONNECT_TIMEOUT, &settings.tls)?
            // Each long poll that returns is sent again: with fewer idle connections, each would
            // connect again.
            .pool_max_idle_per_host(settings.max_watches + READS)
            .pool_idle_timeout(IDLE_TIMEOUT);
        let (base, builder) = match settings.address.strip_prefix("unix://") {
            Some(path) if path.starts_with('/') => (String::from("http://localhost"), builder.unix_socket(path)),
            Some(_) => return Err(refused(settings, "expected unix:///path/to/socket")),
            None => (base(settings)?, builder),
        };
        Ok(Self {
            http: builder.build()?,
            endpoint: Endpoint::of(&settings.address, &base),
            base,
            address: settings.address.clone(),
            datacenter: settings.datacenter.clone(),
            basic_auth: settings.basic_auth.clone(),
            token: TokenReloader::new(settings.token.clone()),
        })
    }

    /// Reads the token again on demand.
    pub(super) fn token(&self) -> &TokenReloader {
        &self.token
    }

    /// Whether connections can be opened only to see if there is room.
    pub(super) fn has_testable_room(&self) -> bool {
        self.endpoint.is_some()
    }

    /// Whether Consul has room for so many connections more.
    pub(super) fn has_room(&self, connections: usize) -> impl Future<Output = bool> + Send + use<> {
        let endpoint = self.endpoint.clone();
        async move {
            match endpoint {
                Some(endpoint) => endpoint.has_room(connections).await,
                None => true,
            }
        }
    }

    /// Sends a request. The future owns all it needs, and has a deadline.
    pub(super) fn ask(&self, request: &Request) -> impl Future<Output = Result<Answer, AskError>> + Send + use<> {
        let path = match &request.target {
            Target::Catalog => String::from("/v1/catalog/services"),
            Target::Service(name) => format!("/v1/health/service/{}", utf8_percent_encode(name.as_str(), SEGMENT)),
        };
        let mut http = self.http.request(Method::GET, format!("{}{path}", self.base));
        if let Some(datacenter) = &self.datacenter {
            http = http.query(&[("dc", datacenter)]);
        }
        if request.consistency == Consistency::Stale {
            http = http.query(&[("stale", "")]);
        }
        let wait = match request.mode {
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
        if let Some(BasicAuth { user, password }) = &self.basic_auth {
            http = http.basic_auth(user, Some(password));
        }
        let token = self.token.header();
        let what = format!("{}: GET {path}", self.address);
        async move {
            let failed = |reason, cause, detail: &str| AskError {
                reason,
                cause,
                detail: format!("{what}: {detail}"),
            };
            match token {
                Ok(Some(token)) => http = http.header("x-consul-token", token),
                Ok(None) => {}
                Err(detail) => return Err(failed(Reason::Denied, Cause::NoConnection, &detail)),
            }
            let broken = |error: HttpError| failed(kind(&error), cause_of(&error), &in_full(error));
            let mut response = http.send().await.map_err(|error| broken(error.into()))?;
            let status = response.status();
            if status != StatusCode::OK {
                let retry_after = retry_after(response.headers());
                let text = response.chunk().await.ok().flatten().unwrap_or_default();
                let text = one_line(&String::from_utf8_lossy(&text), ERROR_TEXT);
                let cause = refusal(status, retry_after, &text);
                let reason = match cause {
                    Cause::Throttled { .. } | Cause::TooManyConnections => Reason::Throttled,
                    _ => reason_of(status),
                };
                return Err(failed(reason, cause, &format!("{status}: {text}")));
            }
            let head = Head::read(response.headers());
            let body = http_client::body(response, BODY_LIMIT).await.map_err(broken)?;
            Ok(Answer { head, body })
        }
    }
}

/// How long an answer may take in all, if the server was asked to wait this long for a change.
fn deadline(wait: Duration) -> Duration {
    wait * 17 / 16 + GRACE
}

fn base(settings: &ConsulSettings) -> Result<String, HttpError> {
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
    Ok(url.as_str().trim_end_matches('/').to_owned())
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

/// The error with its causes: reqwest's own text stops at "error sending request".
fn in_full(error: HttpError) -> String {
    let error: Box<dyn Error> = match error {
        HttpError::Request(error) => Box::new(error.without_url()),
        other => Box::new(other),
    };
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let _ = write!(text, ": {error}");
        source = error.source();
    }
    text
}

/// The token in use, and how to read it again. Clones share it.
#[derive(Clone)]
pub struct TokenReloader {
    token: Option<Token>,
    loaded: Arc<Mutex<Option<HeaderValue>>>,
}

impl TokenReloader {
    fn new(token: Option<Token>) -> Self {
        Self {
            token,
            loaded: Arc::default(),
        }
    }

    /// Forgets what was read from the file: the next request reads it again. Requests in flight
    /// keep the old token.
    pub fn reload(&self) {
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

impl std::fmt::Debug for TokenReloader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenReloader")
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
            assert_eq!(client(address).unwrap().base, base, "{address}");
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
        let reloader = TokenReloader::new(Some(Token::File(file.path().to_owned())));
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
        let text = format!(
            "{reloader:?} {:?}",
            TokenReloader::new(Some(Token::Value(String::from("s3cret"))))
        );
        assert!(!text.contains("s3cret"), "{text}");
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
