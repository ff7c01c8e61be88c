//! One connection: HTTP/1.1 by hyper, and time limits for slow clients.
//!
//! | the server waits for | for at most | then |
//! |---|---|---|
//! | the first head, or the rest of a head | [`Limits::head`] | the connection is closed |
//! | the rest of a body that a handler reads | [`Limits::body`] | the answer is 408 |
//! | the client to read some of its answer | [`Limits::answer`] | the connection is closed |
//! | the next request | without limit: clients keep connections open to reuse them | |
//!
//! A timer is set only when the server has to wait. A request that arrives in one piece sets no
//! timer.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::response::Response;
use futures_util::FutureExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{self, Sleep};
use tokio_util::sync::CancellationToken;
use tower::Service;

use super::body;
use super::peer::{NeedsPeer, Peer};
use super::wake::CoalescedWakes;

/// Limits on the time and the memory that clients of a listener may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Time for the head of a request, from its first byte. For the first request: from the start
    /// of the connection.
    pub head: Duration,
    /// Time for the body of a request, from the first read of a handler that has to wait for it.
    pub body: Duration,
    /// Time for each piece of an answer, while the system's send buffer is full.
    pub answer: Duration,
    /// Open connections. Further connections wait in the listener's queue.
    pub connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(10),
            body: Duration::from_secs(10),
            answer: Duration::from_secs(10),
            connections: 10_000,
        }
    }
}

/// The most bytes of an incomplete head; a larger head is refused with 431. The longest list of
/// exclusions fits, with every byte percent-encoded. A target longer than any valid URI fits as
/// well, and is refused with 414.
const MAX_HEAD_BYTES: usize = 96 << 10;

/// What a listener serves.
#[derive(Clone)]
pub(super) struct Routes {
    pub(super) router: Router,
    pub(super) need_peer: NeedsPeer,
}

/// Serves one connection until it is closed. Once stopped, the connection closes when no request is
/// being received or answered.
///
/// Cancel safe: dropping the future closes the connection.
pub(super) async fn serve<S>(stream: S, routes: Routes, peer: Peer, limits: Limits, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let progress = Arc::new(Progress::default());
    let service = service_fn(|request| {
        progress.head_arrived();
        let answer = route(&routes, &peer, limits.body, request);
        answer.inspect(|_| progress.answer_made())
    });
    let stream = ObservedStream {
        stream,
        progress: Arc::clone(&progress),
    };
    // hyper's own time limit for heads would also close idle connections.
    let mut http = http1::Builder::new()
        .header_read_timeout(None)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let mut timeout = ClientTimeout::new(limits);
    let mut stop = pin!(stop.cancelled());
    let mut stopping = false;
    CoalescedWakes::new(poll_fn(|context| {
        if !stopping && stop.as_mut().poll(context).is_ready() {
            stopping = true;
            Pin::new(&mut http).graceful_shutdown();
        }
        // An error means that the client has closed the connection, or that hyper has refused its
        // request. Neither is worth a log line.
        if Pin::new(&mut http).poll(context).is_ready() {
            return Poll::Ready(());
        }
        timeout.poll_expired(progress.waiting_for(), context)
    }))
    .await;
}

fn route(
    routes: &Routes,
    peer: &Peer,
    limit: Duration,
    request: hyper::Request<Incoming>,
) -> impl Future<Output = Result<Response, Infallible>> + use<> {
    let mut request: Request = request.map(|incoming| body::with_timeout(incoming, limit));
    if (routes.need_peer)(request.method(), request.uri()) {
        request.extensions_mut().insert(peer.clone());
    }
    routes.router.clone().call(request)
}

/// What the connection waits for. Each variant counts what the client has done so far: a count that
/// changes restarts the timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WaitingFor {
    /// The rest of a head, after this many complete heads.
    Head(u64),
    /// The client to read some of its answers, after this many bytes were written.
    AnswerRead(u64),
}

/// The progress of the client. Written and read by one task alone.
#[derive(Debug)]
struct Progress {
    heads: AtomicU64,
    answering: AtomicBool,
    /// Whether the client has sent anything since the last answer was made.
    received: AtomicBool,
    bytes_written: AtomicU64,
    /// Whether the system's send buffer is full.
    blocked: AtomicBool,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            heads: AtomicU64::new(0),
            answering: AtomicBool::new(false),
            // A client that connects is expected to send a request.
            received: AtomicBool::new(true),
            bytes_written: AtomicU64::new(0),
            blocked: AtomicBool::new(false),
        }
    }
}

fn add(count: &AtomicU64, more: usize) {
    count.store(count.load(Ordering::Relaxed) + more as u64, Ordering::Relaxed);
}

impl Progress {
    fn head_arrived(&self) {
        add(&self.heads, 1);
        self.answering.store(true, Ordering::Relaxed);
    }

    fn answer_made(&self) {
        self.answering.store(false, Ordering::Relaxed);
        self.received.store(false, Ordering::Relaxed);
    }

    fn waiting_for(&self) -> Option<WaitingFor> {
        if self.blocked.load(Ordering::Relaxed) {
            Some(WaitingFor::AnswerRead(self.bytes_written.load(Ordering::Relaxed)))
        } else if self.received.load(Ordering::Relaxed) && !self.answering.load(Ordering::Relaxed) {
            Some(WaitingFor::Head(self.heads.load(Ordering::Relaxed)))
        } else {
            None
        }
    }
}

/// The timer of a connection: limits the time that the connection waits for its client.
struct ClientTimeout {
    limits: Limits,
    waiting: Option<(WaitingFor, Pin<Box<Sleep>>)>,
}

impl ClientTimeout {
    fn new(limits: Limits) -> Self {
        Self { limits, waiting: None }
    }

    /// Ready when the connection has waited for the same thing for too long.
    fn poll_expired(&mut self, waiting_for: Option<WaitingFor>, context: &mut Context<'_>) -> Poll<()> {
        let Some(waiting_for) = waiting_for else {
            self.waiting = None;
            return Poll::Pending;
        };
        match &mut self.waiting {
            Some((before, end)) if *before == waiting_for => end.as_mut().poll(context),
            _ => {
                let limit = match waiting_for {
                    WaitingFor::Head(_) => self.limits.head,
                    WaitingFor::AnswerRead(_) => self.limits.answer,
                };
                let (_, end) = self.waiting.insert((waiting_for, Box::pin(time::sleep(limit))));
                end.as_mut().poll(context)
            }
        }
    }
}

/// A stream that records the progress of its client.
struct ObservedStream<S> {
    stream: S,
    progress: Arc<Progress>,
}

impl<S: AsyncRead + Unpin> AsyncRead for ObservedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        if buffer.filled().len() > before {
            self.progress.received.store(true, Ordering::Relaxed);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S> ObservedStream<S> {
    fn record(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.progress.blocked.store(written.is_pending(), Ordering::Relaxed);
        if let Poll::Ready(Ok(bytes)) = &written {
            add(&self.progress.bytes_written, *bytes);
        }
        written
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ObservedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.record(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.record(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::server::peer::{PeerAddress, Reach};
    use axum::Extension;
    use axum::http::Method;
    use axum::routing::{any, get};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::task::JoinHandle;
    use tokio::time::Instant;

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";

    /// A connection to a router, with buffers that hold 64 bytes.
    fn connected(router: Router) -> (DuplexStream, JoinHandle<()>) {
        connected_to(Routes {
            router,
            need_peer: |_, _| false,
        })
    }

    fn connected_to(routes: Routes) -> (DuplexStream, JoinHandle<()>) {
        let (client, server) = tokio::io::duplex(64);
        let peer = Peer {
            reach: Reach::ThisMachine,
            address: PeerAddress::Unix(None),
        };
        let serving = serve(server, routes, peer, Limits::default(), CancellationToken::new());
        (client, tokio::spawn(serving))
    }

    #[tokio::test]
    async fn the_routes_say_which_requests_have_their_client() {
        let told = |peer: Option<Extension<Peer>>| async move { format!("client: {}", peer.is_some()) };
        let (mut client, _serving) = connected_to(Routes {
            router: Router::new().route("/", any(told)),
            need_peer: |method, uri| method == Method::POST && uri.query() == Some("needed"),
        });
        for (line, expected) in [
            ("GET /?needed", "client: false"),
            ("POST /", "client: false"),
            ("POST /?needed", "client: true"),
        ] {
            let request = format!("{line} HTTP/1.1\r\nHost: localhost\r\n\r\n");
            client.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            while !answer.contains("client: ") || !answer.ends_with('e') {
                let mut piece = [0; 64];
                let length = client.read(&mut piece).await.unwrap();
                assert!(length > 0, "closed: {answer}");
                answer.push_str(std::str::from_utf8(&piece[..length]).unwrap());
            }
            assert!(answer.ends_with(expected), "{line}: {answer}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_slowly_gets_its_whole_answer() {
        let answer = "x".repeat(1_000);
        let expected = answer.clone();
        let (mut client, _serving) = connected(Router::new().route("/", get(|| async { answer })));
        client.write_all(REQUEST).await.unwrap();
        let mut taken = String::new();
        let started = Instant::now();
        while !taken.ends_with(&expected) {
            time::sleep(Limits::default().answer - Duration::from_secs(1)).await;
            let mut piece = [0; 64];
            let length = client.read(&mut piece).await.unwrap();
            assert!(length > 0, "closed after {:?}: {taken}", started.elapsed());
            taken.push_str(std::str::from_utf8(&piece[..length]).unwrap());
        }
        assert!(started.elapsed() > 10 * Limits::default().answer);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_nothing_is_disconnected() {
        let (mut client, serving) = connected(Router::new().route("/", get(|| async { "x".repeat(1_000) })));
        let started = Instant::now();
        client.write_all(REQUEST).await.unwrap();
        serving.await.unwrap();
        assert!(started.elapsed() >= Limits::default().answer);
        assert!(started.elapsed() < Limits::default().answer + Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_handler_does_not_count_against_the_client() {
        let slow = || async { time::sleep(Duration::from_secs(3_600)).await };
        let (mut client, _serving) = connected(Router::new().route("/", get(slow)));
        client.write_all(REQUEST).await.unwrap();
        let mut answer = [0; 64];
        let length = client.read(&mut answer).await.unwrap();
        assert!(answer[..length].starts_with(b"HTTP/1.1 200 OK"));
    }
}
