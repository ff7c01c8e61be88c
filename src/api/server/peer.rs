//! The client of a connection, as the log and [`authorization`](super::authorization) see it.

use std::fmt;
use std::net::SocketAddr;

use axum::http::{Method, Uri};

/// Which clients can reach a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Processes on this machine only: loopback addresses and Unix sockets.
    ThisMachine,
    /// Other machines as well.
    Network,
}

/// Whether the route of a request asks for its [`Peer`]. The routes say so, since other requests are
/// spared the cost.
pub type NeedsPeer = fn(&Method, &Uri) -> bool;

/// The client that sent a request. Set for the requests that need it.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) reach: Reach,
    pub(crate) address: PeerAddress,
}

/// The client's address, as the log names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PeerAddress {
    /// A client over TCP.
    Tcp(SocketAddr),
    /// A client over a Unix socket, with its user id if the system knows it.
    Unix(Option<u32>),
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(Some(user)) => write!(f, "unix, uid {user}"),
            Self::Unix(None) => f.write_str("unix"),
        }
    }
}
