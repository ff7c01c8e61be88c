//! Listeners: bind, serve, stop.

pub(super) mod allowed_hosts;
pub(super) mod authorization;
mod connection;
mod unix_socket;
mod wake;

use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::Router;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time;
use tokio_util::sync::CancellationToken;

use self::authorization::{Peer, PeerName, Reach};
use self::unix_socket::SocketFile;
use super::{AllowedHosts, Api};

pub use self::connection::Limits;
pub use self::unix_socket::{SocketAccess, set_access};

/// How long nothing is accepted after the system refused to, which it does when it has run out of something.
const PAUSE: Duration = Duration::from_secs(1);

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
    limits: Limits,
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
            limits: Limits::default(),
        })
    }

    /// Binds a Unix socket at this path. One that nobody answers on any more is replaced.
    ///
    /// # Errors
    ///
    /// When the path is taken by a socket that somebody answers on, or by anything else than a socket, its folder does not
    /// exist, or its mode and group cannot be set.
    pub async fn bind_unix(path: &Path, access: &SocketAccess) -> io::Result<Self> {
        let (listener, file) = unix_socket::bind(path, access).await?;
        Ok(Self {
            address: Listen::Unix(path.to_owned()),
            bound: Bound::Unix(listener, file),
            limits: Limits::default(),
        })
    }

    /// Bounds its clients otherwise.
    #[must_use]
    pub fn with_limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
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

    /// Serves until stopped, then waits for requests that are being answered, or on their way. [`Limits`] bound that wait by and
    /// by; whoever has less time drops the future, which closes all connections.
    ///
    /// # Errors
    ///
    /// None so far: a connection that cannot be accepted leaves the others alone.
    pub async fn serve(self, api: Api, hosts: AllowedHosts, stop: CancellationToken) -> io::Result<()> {
        let reach = self.reach();
        // No web page can have its name resolve to a Unix socket.
        let is_tcp = matches!(self.bound, Bound::Tcp(_));
        let hosts = (is_tcp && reach == Reach::ThisMachine).then_some(hosts);
        let door = Door {
            router: api.router(hosts).with_state(()),
            reach,
            limits: self.limits,
            stop,
        };
        match self.bound {
            Bound::Tcp(listener) => door.serve(listener).await,
            Bound::Unix(listener, file) => {
                door.serve(listener).await;
                drop(file);
            }
        }
        Ok(())
    }
}

/// Listeners whose connections have a name.
trait Named: Send + Sync {
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, PeerName)>> + Send;
}

impl Named for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, PeerName)> {
        let (stream, address) = self.accept().await?;
        // Answers are written whole, and wait for nothing. Fails for a client that has gone, as reading will tell.
        let _gone = stream.set_nodelay(true);
        Ok((stream, PeerName::Address(address)))
    }
}

impl Named for UnixListener {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<(UnixStream, PeerName)> {
        let (stream, _) = self.accept().await?;
        let user = stream.peer_cred().ok().map(|peer| peer.uid());
        Ok((stream, PeerName::Unix(user)))
    }
}

/// Lets clients in, and owns their connections.
struct Door {
    router: Router,
    reach: Reach,
    limits: Limits,
    stop: CancellationToken,
}

impl Door {
    async fn serve<L: Named>(self, listener: L) {
        let mut connections = JoinSet::new();
        let mut refused = false;
        loop {
            tokio::select! {
                () = self.stop.cancelled() => break,
                // One that panicked has been told of by the panic hook.
                Some(_) = connections.join_next() => {}
                accepted = listener.accept(), if connections.len() < self.limits.connections => match accepted {
                    Ok((stream, name)) => {
                        refused = false;
                        self.let_in(stream, name, &mut connections);
                    }
                    Err(error) if is_of_the_client(&error) => {}
                    Err(error) => {
                        if !std::mem::replace(&mut refused, true) {
                            tracing::error!(%error, "no connection can be accepted, trying again every second");
                        }
                        let _stopped = self.stop.run_until_cancelled(time::sleep(PAUSE)).await;
                    }
                },
            }
        }
        drop(listener);
        while connections.join_next().await.is_some() {}
    }

    fn let_in<S>(&self, stream: S, name: PeerName, connections: &mut JoinSet<()>)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let peer = Peer {
            reach: self.reach,
            name,
        };
        // A child, so that connections do not share one lock.
        let stop = self.stop.child_token();
        connections.spawn(connection::serve(stream, self.router.clone(), peer, self.limits, stop));
    }
}

/// Whether only this one connection is lost.
fn is_of_the_client(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
    )
}
