//! The accept loop of one listener: accepts connections up to the limit, and owns their tasks.

use std::future::Future;
use std::io;
use std::mem;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time;
use tokio_util::sync::CancellationToken;

use super::connection::{self, Limits, Routes};
use super::peer::{Peer, PeerAddress, Reach};

/// The pause after the system refused to accept, which it does when files or memory have run out.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// A socket that accepts connections and names their clients.
pub(super) trait Acceptor: Send + Sync {
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, PeerAddress)>> + Send;
}

impl Acceptor for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, PeerAddress)> {
        let (stream, address) = self.accept().await?;
        // Each answer is written in one piece, so waiting for more data gains nothing. The call
        // fails if the client has closed the connection, which the first read reports too.
        let _closed = stream.set_nodelay(true);
        Ok((stream, PeerAddress::Tcp(address)))
    }
}

impl Acceptor for UnixListener {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<(UnixStream, PeerAddress)> {
        let (stream, _) = self.accept().await?;
        let user = stream.peer_cred().ok().map(|peer| peer.uid());
        Ok((stream, PeerAddress::Unix(user)))
    }
}

/// What the connections of one listener have in common.
pub(super) struct AcceptLoop {
    pub(super) routes: Routes,
    pub(super) reach: Reach,
    pub(super) limits: Limits,
    pub(super) stop: CancellationToken,
}

impl AcceptLoop {
    /// Accepts connections until stopped, then closes the listener and waits for its connections.
    pub(super) async fn run<A: Acceptor>(self, listener: A) {
        let mut connections = JoinSet::new();
        let mut failing = false;
        loop {
            tokio::select! {
                () = self.stop.cancelled() => break,
                // The panic hook has logged a task that panicked.
                Some(_) = connections.join_next() => {}
                accepted = listener.accept(), if connections.len() < self.limits.connections => match accepted {
                    Ok((stream, address)) => {
                        failing = false;
                        self.spawn(stream, address, &mut connections);
                    }
                    Err(error) if is_of_one_connection(&error) => {}
                    Err(error) => {
                        if !mem::replace(&mut failing, true) {
                            tracing::error!(%error, "connections cannot be accepted, retrying every second");
                        }
                        let _stopped = self.stop.run_until_cancelled(time::sleep(RETRY_DELAY)).await;
                    }
                },
            }
        }
        drop(listener);
        while connections.join_next().await.is_some() {}
    }

    fn spawn<S>(&self, stream: S, address: PeerAddress, connections: &mut JoinSet<()>)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let peer = Peer {
            reach: self.reach,
            address,
        };
        // A child token, so that connections do not share one lock.
        let stop = self.stop.child_token();
        connections.spawn(connection::serve(stream, self.routes.clone(), peer, self.limits, stop));
    }
}

/// Whether the error concerns a single connection, and the next one may be accepted at once.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
    )
}
