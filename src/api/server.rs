//! Listeners: bind, serve, stop.

use std::convert::Infallible;
use std::fmt;
use std::future::{Ready, ready};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::task::{Context, Poll};

use axum::Router;
use axum::extract::Request;
use axum::http::Method;
use axum::response::Response;
use axum::serve::IncomingStream;
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;
use tower::Service;

use super::rights::{Peer, PeerName, Reach};
use super::socket::{self, SocketFile};
use super::{AllowedHosts, Api};

pub use super::socket::{SocketAccess, set_access};

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Listen {
    /// On an IP address and a port; port 0 takes a free one.
    Tcp(SocketAddr),
    /// On a Unix socket at this path.
    Unix(PathBuf),
}

impl From<SocketAddr> for Listen {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

/// As it is written: `127.0.0.1:7425`, `unix:/run/pickd/pickd.sock`.
impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A bound listener that does not serve yet, so that an address in use is found before anything starts.
#[derive(Debug)]
pub struct Listener {
    bound: Bound,
    address: Listen,
}

#[derive(Debug)]
enum Bound {
    Tcp(TcpListener),
    /// The file is removed when this is dropped.
    Unix(UnixListener, SocketFile),
}

impl Listener {
    /// Binds. Port 0 takes a free one.
    ///
    /// # Errors
    ///
    /// When the address is in use or not of this machine.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        Ok(Self {
            address: Listen::Tcp(listener.local_addr()?),
            bound: Bound::Tcp(listener),
        })
    }

    /// Binds a Unix socket at this path. One that nobody answers on any more is replaced.
    ///
    /// # Errors
    ///
    /// When the path is taken by a socket that somebody answers on, or by anything else than a socket, its folder does not
    /// exist, or its mode and group cannot be set.
    pub async fn bind_unix(path: &Path, access: &SocketAccess) -> io::Result<Self> {
        let (listener, file) = socket::bind(path, access).await?;
        Ok(Self {
            address: Listen::Unix(path.to_owned()),
            bound: Bound::Unix(listener, file),
        })
    }

    /// What it is bound to.
    #[must_use]
    pub fn address(&self) -> Listen {
        self.address.clone()
    }

    /// Whether only this machine can reach it.
    fn reach(&self) -> Reach {
        let is_loopback = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => ip.is_loopback(),
            IpAddr::V6(ip) => ip.is_loopback() || ip.to_ipv4_mapped().is_some_and(|ip| ip.is_loopback()),
        };
        match &self.address {
            Listen::Tcp(address) if !is_loopback(address.ip()) => Reach::Network,
            Listen::Tcp(_) | Listen::Unix(_) => Reach::ThisMachine,
        }
    }

    /// Serves until stopped, then waits for requests that are being answered. Whoever awaits this bounds that wait: a client
    /// that never finishes its request would hold it up for ever.
    ///
    /// # Errors
    ///
    /// When the listener fails.
    pub async fn serve(self, api: Api, hosts: AllowedHosts, stop: CancellationToken) -> io::Result<()> {
        let reach = self.reach();
        // No web page can have its name resolve to a Unix socket.
        let is_tcp = matches!(self.bound, Bound::Tcp(_));
        let hosts = (is_tcp && reach == Reach::ThisMachine).then_some(hosts);
        let connections = Connections {
            router: api.router(hosts).with_state(()),
            reach,
        };
        match self.bound {
            Bound::Tcp(listener) => {
                axum::serve(listener, connections)
                    .with_graceful_shutdown(stop.cancelled_owned())
                    .await
            }
            Bound::Unix(listener, file) => {
                let served = axum::serve(listener, connections)
                    .with_graceful_shutdown(stop.cancelled_owned())
                    .await;
                drop(file);
                served
            }
        }
    }
}

/// Makes a service for each connection that knows who is at its other end.
#[derive(Clone)]
struct Connections {
    router: Router,
    reach: Reach,
}

/// Listeners whose connections have a name.
trait Named: axum::serve::Listener + Sized {
    fn peer(stream: &IncomingStream<'_, Self>) -> PeerName;
}

impl Named for TcpListener {
    fn peer(stream: &IncomingStream<'_, Self>) -> PeerName {
        PeerName::Address(*stream.remote_addr())
    }
}

impl Named for UnixListener {
    fn peer(stream: &IncomingStream<'_, Self>) -> PeerName {
        PeerName::Unix(stream.io().peer_cred().ok().map(|peer| peer.uid()))
    }
}

impl<L: Named> Service<IncomingStream<'_, L>> for Connections {
    type Response = Connection;
    type Error = Infallible;
    type Future = Ready<Result<Connection, Infallible>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, stream: IncomingStream<'_, L>) -> Self::Future {
        ready(Ok(Connection {
            router: self.router.clone(),
            peer: Peer {
                reach: self.reach,
                name: L::peer(&stream),
            },
        }))
    }
}

/// The routes for one connection.
#[derive(Clone)]
struct Connection {
    router: Router,
    peer: Peer,
}

impl Service<Request> for Connection {
    type Response = Response;
    type Error = Infallible;
    type Future = <Router as Service<Request>>::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Service::<Request>::poll_ready(&mut self.router, context)
    }

    fn call(&mut self, mut request: Request) -> Self::Future {
        // Only overrides ask who it is; picks do not pay for it.
        if matches!(*request.method(), Method::PUT | Method::DELETE) {
            request.extensions_mut().insert(self.peer.clone());
        }
        self.router.call(request)
    }
}
