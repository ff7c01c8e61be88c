//! One connection: HTTP/1.1 by hyper, and bounds on clients that do not go on.
//!
//! | the client owes | for at most | then |
//! |---|---|---|
//! | the rest of a head, or its first one | [`Limits::head`] | the connection is closed |
//! | the rest of a body that somebody reads | [`Limits::body`] | 408 |
//! | taking some of its answer | [`Limits::answer`] | the connection is closed |
//! | the next request | for ever: a pool of connections is no attack | |
//!
//! A request that arrives whole pays for none of this: no timer is set before there is something to wait for.

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
use axum::http::Method;
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

use super::authorization::Peer;
use super::wake::OwnWakes;
use crate::api::body;

/// What clients may ask of a listener's patience and memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// For the head of a request, from its first byte on; for the first one from the start of the connection on.
    pub head: Duration,
    /// For the body of a request, from its head on.
    pub body: Duration,
    /// For each piece of an answer that the system's buffers do not take.
    pub answer: Duration,
    /// Connections at a time. Those beyond wait for their turn.
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

/// Bytes of a head that is not whole yet, at most: with more of them it is refused with 431. The longest list of exclusions
/// fits, every byte of it percent-encoded. A target that is longer than any URI fits as well, and is refused with 414.
const LARGEST_HEAD: usize = 96 << 10;

/// Serves one connection until it is closed. Once stopped, it is closed as soon as no request is on its way.
///
/// Cancel safe: dropping the future closes the connection.
pub(super) async fn serve<S>(stream: S, router: Router, peer: Peer, limits: Limits, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let progress = Arc::new(Progress::default());
    let service = service_fn(|request| {
        progress.head_arrived();
        let answer = route(&router, &peer, limits.body, request);
        answer.inspect(|_| progress.answer_made())
    });
    let stream = Observed {
        stream,
        progress: Arc::clone(&progress),
    };
    // hyper's own bound on heads would close idle connections, too.
    let mut http = http1::Builder::new()
        .header_read_timeout(None)
        .max_buf_size(LARGEST_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    let mut patience = Patience::new(limits);
    let mut stop = pin!(stop.cancelled());
    let mut stopping = false;
    OwnWakes::new(poll_fn(|context| {
        if !stopping && stop.as_mut().poll(context).is_ready() {
            stopping = true;
            Pin::new(&mut http).graceful_shutdown();
        }
        // A client that went away, or was told by hyper what is wrong with its request: nobody else has to know.
        if Pin::new(&mut http).poll(context).is_ready() {
            return Poll::Ready(());
        }
        patience.poll_exhausted(progress.owed(), context)
    }))
    .await;
}

fn route(
    router: &Router,
    peer: &Peer,
    limit: Duration,
    request: hyper::Request<Incoming>,
) -> impl Future<Output = Result<Response, Infallible>> + use<> {
    let mut request: Request = request.map(|incoming| body::within(incoming, limit));
    // Only overrides ask who it is; picks do not pay for it.
    if matches!(*request.method(), Method::PUT | Method::DELETE) {
        request.extensions_mut().insert(peer.clone());
    }
    router.clone().call(request)
}

/// What the client owes. With a count of what it has done, so that one that goes on is told from one that does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owed {
    /// The rest of a head; so many came whole.
    Head(u64),
    /// Taking some of its answers; it took so many bytes.
    Answer(u64),
}

/// How far the client has come. Written and read by one task alone.
#[derive(Debug)]
struct Progress {
    heads: AtomicU64,
    answering: AtomicBool,
    /// Whether anything was read since the last answer was made.
    heard: AtomicBool,
    taken: AtomicU64,
    /// Whether the system's buffers are full.
    blocked: AtomicBool,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            heads: AtomicU64::new(0),
            answering: AtomicBool::new(false),
            // Who connects has something to say.
            heard: AtomicBool::new(true),
            taken: AtomicU64::new(0),
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
        self.heard.store(false, Ordering::Relaxed);
    }

    fn owed(&self) -> Option<Owed> {
        if self.blocked.load(Ordering::Relaxed) {
            Some(Owed::Answer(self.taken.load(Ordering::Relaxed)))
        } else if self.heard.load(Ordering::Relaxed) && !self.answering.load(Ordering::Relaxed) {
            Some(Owed::Head(self.heads.load(Ordering::Relaxed)))
        } else {
            None
        }
    }
}

/// Waits for what the client owes, and not for ever.
struct Patience {
    limits: Limits,
    waiting: Option<(Owed, Pin<Box<Sleep>>)>,
}

impl Patience {
    fn new(limits: Limits) -> Self {
        Self { limits, waiting: None }
    }

    fn poll_exhausted(&mut self, owed: Option<Owed>, context: &mut Context<'_>) -> Poll<()> {
        let Some(owed) = owed else {
            self.waiting = None;
            return Poll::Pending;
        };
        match &mut self.waiting {
            Some((before, end)) if *before == owed => end.as_mut().poll(context),
            _ => {
                let limit = match owed {
                    Owed::Head(_) => self.limits.head,
                    Owed::Answer(_) => self.limits.answer,
                };
                let (_, end) = self.waiting.insert((owed, Box::pin(time::sleep(limit))));
                end.as_mut().poll(context)
            }
        }
    }
}

/// A stream whose progress is noted.
struct Observed<S> {
    stream: S,
    progress: Arc<Progress>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Observed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        if buffer.filled().len() > before {
            self.progress.heard.store(true, Ordering::Relaxed);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S> Observed<S> {
    fn note(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.progress.blocked.store(written.is_pending(), Ordering::Relaxed);
        if let Poll::Ready(Ok(bytes)) = &written {
            add(&self.progress.taken, *bytes);
        }
        written
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Observed<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.note(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.note(written)
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
    use crate::api::server::authorization::{PeerName, Reach};
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::task::JoinHandle;
    use tokio::time::Instant;

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";

    /// A connection whose buffers hold 64 bytes, to one route.
    fn connected(router: Router) -> (DuplexStream, JoinHandle<()>) {
        let (client, server) = tokio::io::duplex(64);
        let peer = Peer {
            reach: Reach::ThisMachine,
            name: PeerName::Unix(None),
        };
        let serving = serve(server, router, peer, Limits::default(), CancellationToken::new());
        (client, tokio::spawn(serving))
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_a_little_at_a_time_gets_all_of_its_answer() {
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
    async fn who_takes_nothing_is_given_up() {
        let (mut client, serving) = connected(Router::new().route("/", get(|| async { "x".repeat(1_000) })));
        let started = Instant::now();
        client.write_all(REQUEST).await.unwrap();
        serving.await.unwrap();
        assert!(started.elapsed() >= Limits::default().answer);
        assert!(started.elapsed() < Limits::default().answer + Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_takes_us_long_is_not_the_clients_fault() {
        let slow = || async { time::sleep(Duration::from_secs(3_600)).await };
        let (mut client, _serving) = connected(Router::new().route("/", get(slow)));
        client.write_all(REQUEST).await.unwrap();
        let mut answer = [0; 64];
        let length = client.read(&mut answer).await.unwrap();
        assert!(answer[..length].starts_with(b"HTTP/1.1 200 OK"));
    }
}
