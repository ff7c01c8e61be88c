//! Connections of checks: only to addresses that were compared with the denied networks.
//!
//! A registered name may lead anywhere by the time it is resolved (Consul: CVE-2022-29153). So
//! names are resolved here, the results are compared with the denied networks, and the connection
//! goes to exactly the compared address: the name is not resolved a second time. The checks above
//! follow neither proxies nor redirects.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpStream, lookup_host};
use tokio::time::{self, Instant};

use crate::balancer::{Address, CheckFailure, DeniedNetworks};
use crate::local_error;

/// Why a check has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConnectError {
    /// A failure of the instance.
    Instance(CheckFailure),
    /// A failure of pickd's own host: it lacks files, ports or memory (the number of the system's
    /// error). Such a failure says nothing about the instance, and must not take a whole pool out.
    Local(i32),
}

impl From<CheckFailure> for ConnectError {
    fn from(failure: CheckFailure) -> Self {
        Self::Instance(failure)
    }
}

/// Why there is no connection.
impl From<io::Error> for ConnectError {
    fn from(error: io::Error) -> Self {
        match (local_error::lack(&error), error.kind()) {
            (Some(number), _) => Self::Local(number),
            (_, io::ErrorKind::ConnectionRefused) => Self::Instance(CheckFailure::ConnectionRefused),
            (_, io::ErrorKind::TimedOut) => Self::Instance(CheckFailure::Timeout),
            _ => Self::Instance(CheckFailure::ConnectionFailed),
        }
    }
}

/// How names are resolved.
#[derive(Clone, Debug, Default)]
pub(super) enum Resolver {
    /// By the system.
    #[default]
    System,
    /// To a fixed list.
    #[cfg(test)]
    Fixed(std::sync::Arc<Vec<SocketAddr>>),
}

impl Resolver {
    async fn resolve(&self, address: &Address) -> io::Result<Vec<SocketAddr>> {
        match self {
            Self::System => Ok(lookup_host((address.host(), address.port())).await?.collect()),
            #[cfg(test)]
            Self::Fixed(addresses) => Ok(addresses.to_vec()),
        }
    }
}

/// Connects to an instance, if that is allowed. Denied addresses of a name are skipped, and the
/// first address that accepts the connection is used. The remaining time is divided among the
/// addresses, so that an address that drops all packets does not hide the next.
pub(super) async fn connect(
    address: &Address,
    denied: &DeniedNetworks,
    resolver: &Resolver,
    deadline: Instant,
) -> Result<TcpStream, ConnectError> {
    let found = match address.ip() {
        Some(ip) => vec![SocketAddr::new(ip, address.port())],
        None => match resolver.resolve(address).await.map_err(ConnectError::from) {
            Ok(found) => found,
            Err(ConnectError::Local(number)) => return Err(ConnectError::Local(number)),
            Err(ConnectError::Instance(_)) => Vec::new(),
        },
    };
    if found.is_empty() {
        return Err(CheckFailure::NameNotResolved.into());
    }
    let mut failure = ConnectError::Instance(CheckFailure::AddressRefused);
    let allowed: Vec<SocketAddr> = found.into_iter().filter(|found| !denied.contains(found.ip())).collect();
    for (index, address) in allowed.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        let share = left / (allowed.len() - index) as u32;
        match time::timeout(share, TcpStream::connect(address)).await {
            // Without a listener, the system may choose the same port for the client's side: a
            // connection to itself.
            Ok(Ok(stream)) if stream.local_addr().ok() == stream.peer_addr().ok() => {
                failure = CheckFailure::ConnectionRefused.into();
            }
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => failure = error.into(),
            Err(_) => failure = CheckFailure::Timeout.into(),
        }
    }
    Err(failure)
}

/// What came of a connection that asks for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrialConnection {
    /// The instance accepted the connection.
    Accepted,
    /// The instance refused the connection.
    Refused,
    /// Neither, in time: the host is away, its name is not known, or it must not be contacted.
    Unanswered,
    /// Nothing is known: pickd's own host lacks files, ports or memory.
    Unknown,
}

/// Tries whether an instance accepts a connection within this time, if it may be contacted.
pub async fn attempt(address: &Address, denied: &DeniedNetworks, within: Duration) -> TrialConnection {
    match connect(address, denied, &Resolver::System, Instant::now() + within).await {
        Ok(_) => TrialConnection::Accepted,
        Err(ConnectError::Local(_)) => TrialConnection::Unknown,
        Err(ConnectError::Instance(CheckFailure::ConnectionRefused)) => TrialConnection::Refused,
        Err(ConnectError::Instance(_)) => TrialConnection::Unanswered,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::net::TcpListener;

    use super::*;

    async fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    fn loopback_denied() -> DeniedNetworks {
        DeniedNetworks::default().and(["127.0.0.0/8".parse().unwrap()])
    }

    async fn outcome(host: &str, port: u16, denied: &DeniedNetworks, resolved: &[&str]) -> Result<(), ConnectError> {
        let resolved = resolved.iter().map(|ip| SocketAddr::new(ip.parse().unwrap(), port));
        let resolver = Resolver::Fixed(Arc::new(resolved.collect()));
        let address = Address::new(host, i64::from(port)).unwrap();
        connect(&address, denied, &resolver, Instant::now() + Duration::from_secs(5))
            .await
            .map(drop)
    }

    #[tokio::test]
    async fn a_denied_address_gets_no_connection_in_any_notation() {
        let (listener, address) = listener().await;
        let port = address.port();
        for host in ["127.0.0.1", "::ffff:127.0.0.1", "::ffff:7f00:1"] {
            let refused = outcome(host, port, &loopback_denied(), &[]).await;
            assert_eq!(refused, Err(CheckFailure::AddressRefused.into()), "{host}");
        }
        for resolved in [["127.0.0.1"], ["::ffff:127.0.0.1"]] {
            let refused = outcome("backend.test", port, &loopback_denied(), &resolved).await;
            assert_eq!(refused, Err(CheckFailure::AddressRefused.into()), "{resolved:?}");
        }
        // A connection to a denied address would arrive before this allowed connection.
        outcome("127.0.0.1", port, &DeniedNetworks::default(), &[])
            .await
            .unwrap();
        listener.accept().await.unwrap();
        let more = time::timeout(Duration::from_millis(50), listener.accept()).await;
        assert!(more.is_err(), "no other connection");
    }

    #[tokio::test]
    async fn the_first_allowed_address_of_a_name_that_answers_is_used() {
        let (listener, address) = listener().await;
        let port = address.port();
        // 127.0.0.2 is loopback, too, without a listener.
        let denied = DeniedNetworks::default().and(["127.0.0.3".parse().unwrap()]);
        outcome("backend.test", port, &denied, &["127.0.0.3", "127.0.0.2", "127.0.0.1"])
            .await
            .unwrap();
        listener.accept().await.unwrap();
        let refused = outcome("backend.test", port, &denied, &["127.0.0.2", "127.0.0.3"]).await;
        assert_eq!(refused, Err(CheckFailure::ConnectionRefused.into()));
        let nowhere = outcome("backend.test", port, &denied, &[]).await;
        assert_eq!(nowhere, Err(CheckFailure::NameNotResolved.into()));
    }

    #[test]
    fn a_lack_of_local_resources_is_not_the_instances_failure() {
        let error = |number| ConnectError::from(io::Error::from_raw_os_error(number));
        for number in [12, 23, 24] {
            assert_eq!(error(number), ConnectError::Local(number));
        }
        let reset = io::Error::from(io::ErrorKind::ConnectionReset);
        assert_eq!(
            ConnectError::from(reset),
            ConnectError::Instance(CheckFailure::ConnectionFailed)
        );
    }
}
