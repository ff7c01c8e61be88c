//! A listener: a bound address that serves a router until it is stopped.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use axum::Router;
use axum::middleware;
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;

use super::accept::AcceptLoop;
use super::allowed_hosts::{self, AllowedHosts};
use super::connection::{Limits, Routes};
use super::peer::{NeedsPeer, Reach};
use super::unix_socket::{self, SocketAccess, SocketFile};

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Listen {
    /// On an IP address and a port. Port 0 takes a free port.
    Tcp(SocketAddr),
    /// On a Unix socket at this path.
    Unix(PathBuf),
}

impl From<SocketAddr> for Listen {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

/// As written in the configuration: `127.0.0.1:7425`, `unix:/run/pickd/pickd.sock`.
impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A bound listener that does not serve yet. Binding first finds an address in use before anything
/// starts.
#[derive(Debug)]
pub struct Listener {
    bound: Bound,
    address: Listen,
    limits: Limits,
    need_peer: NeedsPeer,
}

#[derive(Debug)]
enum Bound {
    Tcp(TcpListener),
    /// Dropping the [`SocketFile`] removes the file.
    Unix(UnixListener, SocketFile),
}

impl Listener {
    /// Binds a TCP address. Port 0 takes a free port.
    ///
    /// # Errors
    ///
    /// When the address is in use, or is not an address of this machine.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        Ok(Self {
            address: Listen::Tcp(listener.local_addr()?),
            bound: Bound::Tcp(listener),
            limits: Limits::default(),
            need_peer: |_, _| true,
        })
    }

    /// Binds a Unix socket at this path. Replaces a socket file that no process listens on any
    /// more.
    ///
    /// # Errors
    ///
    /// When a process listens on a socket at this path, the path is anything else than a socket,
    /// its folder does not exist, or its mode and group cannot be set.
    pub async fn bind_unix(path: &Path, access: &SocketAccess) -> io::Result<Self> {
        let (listener, file) = unix_socket::bind(path, access).await?;
        Ok(Self {
            address: Listen::Unix(path.to_owned()),
            bound: Bound::Unix(listener, file),
            limits: Limits::default(),
            need_peer: |_, _| true,
        })
    }

    /// Replaces the default limits.
    #[must_use]
    pub fn with_limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// Says which requests need their client: the routes know. Without it, every request has its
    /// client.
    #[must_use]
    pub fn with_peer_for(self, need_peer: NeedsPeer) -> Self {
        Self { need_peer, ..self }
    }

    /// The bound address. For a TCP listener with port 0: with the port that it was given.
    #[must_use]
    pub fn address(&self) -> Listen {
        self.address.clone()
    }

    /// Which clients can reach this listener.
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

    /// Serves the router until stopped, then waits for requests that are being received or
    /// answered. [`Limits`] bound that wait. Dropping the future closes all connections at once. A
    /// connection that cannot be accepted does not end the future.
    ///
    /// On loopback TCP listeners, requests are refused unless `hosts` accepts their Host header.
    pub async fn serve(self, router: Router, hosts: AllowedHosts, stop: CancellationToken) {
        let reach = self.reach();
        // A web page's name cannot resolve to a Unix socket, so those need no check of the Host
        // header.
        let is_tcp = matches!(self.bound, Bound::Tcp(_));
        let router = if is_tcp && reach == Reach::ThisMachine {
            router.layer(middleware::from_fn_with_state(hosts, allowed_hosts::check))
        } else {
            router
        };
        let accept = AcceptLoop {
            routes: Routes {
                // Not needed by the types; lets axum prepare the router once instead of for each
                // request.
                router: router.with_state(()),
                need_peer: self.need_peer,
            },
            reach,
            limits: self.limits,
            stop,
        };
        match self.bound {
            Bound::Tcp(listener) => accept.run(listener).await,
            Bound::Unix(listener, file) => {
                accept.run(listener).await;
                drop(file);
            }
        }
    }
}
