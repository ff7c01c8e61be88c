//! HTTP checks: a request, and the status of its answer.
//!
//! Only the status decides. A body that never ends does not make an instance unhealthy. The body
//! is read as far as the next use of the connection needs it; otherwise the connection is closed.
//!
//! A connection is kept from one check to the next, and is driven only during a check: an idle
//! connection costs no task. If the server has closed it meanwhile, the next check notices that,
//! and opens another connection within its own time.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use axum::http::{HeaderValue, Method, Request, Version, header};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1::{Connection, SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{self, Instant};

use super::connect::{ConnectError, Resolver, connect};
use super::settings::HttpCheck;
use crate::balancer::{Address, CheckFailure, DeniedNetworks};

/// How many bytes of a body are read.
const LONGEST_BODY: usize = 64 << 10;
/// How long a body is read.
const LONGEST_READ: Duration = Duration::from_secs(1);

/// What is kept of one target between checks.
#[derive(Debug, Default)]
pub(super) struct HttpTarget {
    open: Option<OpenConnection>,
}

#[derive(Debug)]
struct OpenConnection {
    sender: SendRequest<Empty<Bytes>>,
    driver: Pin<Box<Connection<TokioIo<TcpStream>, Empty<Bytes>>>>,
    closed: bool,
}

/// Why there is no status.
enum NoStatus {
    Failed(CheckFailure),
    /// The connection ended before an answer began.
    Disconnected,
}

impl HttpTarget {
    pub(super) async fn check(
        &mut self,
        check: &HttpCheck,
        address: &Address,
        denied: &DeniedNetworks,
        resolver: &Resolver,
        deadline: Instant,
    ) -> Result<(), ConnectError> {
        let request = || request(check, address);
        if let Some(mut open) = self.open.take() {
            match open.ask(request()?, deadline).await {
                Ok(status) => return self.judge(check, open, status),
                Err(NoStatus::Failed(failure)) => return Err(failure.into()),
                // A server may close an idle connection.
                Err(NoStatus::Disconnected) => {}
            }
        }
        let stream = connect(address, denied, resolver, deadline).await?;
        // A small request must not wait for more data.
        let _best_effort = stream.set_nodelay(true);
        let (sender, driver) = handshake(TokioIo::new(stream)).await.map_err(|error| failure(&error))?;
        let mut open = OpenConnection {
            sender,
            driver: Box::pin(driver),
            closed: false,
        };
        match open.ask(request()?, deadline).await {
            Ok(status) => self.judge(check, open, status),
            Err(NoStatus::Failed(failure)) => Err(failure.into()),
            Err(NoStatus::Disconnected) => Err(CheckFailure::ConnectionFailed.into()),
        }
    }

    fn judge(&mut self, check: &HttpCheck, open: OpenConnection, status: u16) -> Result<(), ConnectError> {
        self.open = Some(open).filter(|open| !open.closed);
        if check.expects(status) {
            Ok(())
        } else {
            Err(CheckFailure::Status(status).into())
        }
    }
}

impl OpenConnection {
    /// The status of the answer. Reads the body, or marks the connection as closed.
    async fn ask(&mut self, request: Request<Empty<Bytes>>, deadline: Instant) -> Result<u16, NoStatus> {
        let Self { sender, driver, closed } = self;
        let head = async {
            sender.ready().await.map_err(|_| NoStatus::Disconnected)?;
            sender.send_request(request).await.map_err(|error| {
                if error.is_parse() || error.is_parse_too_large() {
                    NoStatus::Failed(CheckFailure::Protocol)
                } else {
                    NoStatus::Disconnected
                }
            })
        };
        let response = drive(driver, closed, head)
            .await
            .unwrap_or(Err(NoStatus::Disconnected))?;
        let status = response.status().as_u16();
        // A little less than the check's own time: the check has its status, and must not fail
        // because of the body.
        let read_until = (Instant::now() + LONGEST_READ).min(deadline - Duration::from_millis(2));
        let drained = time::timeout_at(read_until, drive(driver, closed, drain(response.into_body()))).await;
        *closed |= !matches!(drained, Ok(Some(true)));
        Ok(status)
    }
}

/// Reads a body to its end. False if there is more than the limit.
async fn drain(mut body: Incoming) -> bool {
    let mut read = 0;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return false };
        read += frame.data_ref().map_or(0, Bytes::len);
        if read > LONGEST_BODY {
            return false;
        }
    }
    true
}

/// Drives the connection as long as `exchange` takes. `None`: the connection ended before the
/// exchange.
async fn drive<T>(
    driver: &mut Pin<Box<Connection<TokioIo<TcpStream>, Empty<Bytes>>>>,
    closed: &mut bool,
    exchange: impl Future<Output = T>,
) -> Option<T> {
    let mut exchange = pin!(exchange);
    poll_fn(|context| {
        if let Poll::Ready(done) = exchange.as_mut().poll(context) {
            return Poll::Ready(Some(done));
        }
        if !*closed && driver.as_mut().poll(context).is_ready() {
            *closed = true;
        }
        match exchange.as_mut().poll(context) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending if *closed => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

fn request(check: &HttpCheck, address: &Address) -> Result<Request<Empty<Bytes>>, CheckFailure> {
    let mut request = Request::builder()
        .version(Version::HTTP_11)
        .method(check.method.clone())
        .uri(check.path.as_str())
        .body(Empty::new())
        // Both were validated when the check was configured.
        .map_err(|_| CheckFailure::Protocol)?;
    let headers = request.headers_mut();
    let host = match &check.host {
        Some(host) => host.clone(),
        None => HeaderValue::from_str(address.as_str()).map_err(|_| CheckFailure::Protocol)?,
    };
    headers.insert(header::HOST, host);
    headers.insert(
        header::USER_AGENT,
        HeaderValue::from_static(concat!("pickd/", env!("CARGO_PKG_VERSION"))),
    );
    if check.method == Method::POST {
        // Of an empty body: some servers require the header (411).
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
    for (name, _) in &check.headers {
        headers.remove(name);
    }
    for (name, value) in &check.headers {
        headers.append(name.clone(), value.clone());
    }
    Ok(request)
}

fn failure(error: &hyper::Error) -> CheckFailure {
    if error.is_parse() {
        CheckFailure::Protocol
    } else {
        CheckFailure::ConnectionFailed
    }
}
