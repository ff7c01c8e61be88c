//! Whether Consul has room for more connections from this address.
//!
//! Consul closes a connection above its limit, without an answer. The limit counts all programs at
//! this address together. So spare connections are opened without a request and closed again. But
//! while they are open, a full Consul refuses other programs, too. That is avoided where the
//! kernel's table of connections shows that the usual limit is near.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use tokio::net::{TcpStream, UnixStream};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Consul has this time to close a connection, after each few connections, and so many times after
/// the last.
const PAUSE: Duration = Duration::from_millis(3);
const STEP: usize = 4;
/// Requests that were just sent have their connections after this time.
const CONNECTED_AFTER: Duration = Duration::from_millis(50);
const PAUSES: usize = 15;
/// Consul's `limits.http_max_conns_per_client`, unless configured.
const USUAL_LIMIT: usize = 200;
/// States in the kernel's table: the connection is open, or only the client has closed it. Consul
/// counts both.
const OPEN: &str = "01";
const CLOSED_BY_CLIENT: &str = "08";

/// Where Consul accepts connections without TLS. With TLS, a connection without a handshake is an
/// error in Consul's log.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Endpoint {
    Tcp(String, u16),
    Unix(PathBuf),
}

impl Endpoint {
    pub(super) fn of(address: &str, base: &str) -> Option<Self> {
        if let Some(path) = address.strip_prefix("unix://") {
            return Some(Self::Unix(PathBuf::from(path)));
        }
        let url = reqwest::Url::parse(base).ok().filter(|url| url.scheme() == "http")?;
        let host = url.host_str()?.trim_start_matches('[').trim_end_matches(']');
        Some(Self::Tcp(host.to_owned(), url.port_or_known_default()?))
    }

    /// Opens so many connections, closes them without a request, and returns whether all of them
    /// stayed open. At the first that is closed, the others are closed, too. Meanwhile requests of
    /// pickd may open `to_come` connections more.
    pub(super) async fn has_room(&self, connections: usize, to_come: usize) -> bool {
        tokio::time::sleep(CONNECTED_AFTER).await;
        let most = USUAL_LIMIT.saturating_sub(connections + to_come);
        let mut spare = Vec::with_capacity(connections);
        while spare.len() < connections {
            let Some(connection) = self.connect().await else {
                return false;
            };
            if spare.is_empty()
                && let Some(open) = connection.open_beside().await
                // Where more are open, the limit is another.
                && (most + 1..=USUAL_LIMIT).contains(&open)
            {
                return false;
            }
            spare.push(connection);
            if spare.len().is_multiple_of(STEP) {
                tokio::time::sleep(PAUSE).await;
                if spare.iter().any(Connection::is_closed) {
                    return false;
                }
            }
        }
        for _ in 0..PAUSES {
            tokio::time::sleep(PAUSE).await;
            if spare.iter().any(Connection::is_closed) {
                return false;
            }
        }
        true
    }

    async fn connect(&self) -> Option<Connection> {
        let connected = async {
            match self {
                Self::Tcp(host, port) => TcpStream::connect((host.as_str(), *port)).await.map(Connection::Tcp),
                Self::Unix(path) => UnixStream::connect(path).await.map(Connection::Unix),
            }
        };
        tokio::time::timeout(CONNECT_TIMEOUT, connected).await.ok()?.ok()
    }
}

/// A connection without a request.
enum Connection {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Connection {
    /// How many connections from this address to Consul are open besides this connection, as far as
    /// this machine's kernel knows (Linux).
    async fn open_beside(&self) -> Option<usize> {
        let Self::Tcp(stream) = self else { return None };
        let peer = stream.peer_addr().ok()?;
        let table = match peer.ip() {
            IpAddr::V4(_) => "/proc/net/tcp",
            IpAddr::V6(_) => "/proc/net/tcp6",
        };
        let table = tokio::fs::read_to_string(table).await.ok()?;
        Some(connections_to(peer, &table).saturating_sub(1))
    }

    /// Whether the other side has closed the connection.
    fn is_closed(&self) -> bool {
        let mut byte = [0];
        let read = match self {
            Self::Tcp(stream) => stream.try_read(&mut byte),
            Self::Unix(stream) => stream.try_read(&mut byte),
        };
        match read {
            Ok(read) => read == 0,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        }
    }
}

/// Counts the connections to this address in the kernel's table. If Consul is on this machine, its
/// side of each connection is there, too, and remembers connections that clients have given up.
fn connections_to(peer: SocketAddr, table: &str) -> usize {
    let (address, whole) = (
        hexadecimal(peer.ip()),
        format!("{}:{:04X}", hexadecimal(peer.ip()), peer.port()),
    );
    let (mut of_clients, mut of_server) = (0, 0);
    for line in table.lines() {
        let mut columns = line.split_whitespace().skip(1);
        let (Some(local), Some(remote), Some(state)) = (columns.next(), columns.next(), columns.next()) else {
            continue;
        };
        of_clients += usize::from(remote == whole && state == OPEN);
        let same_machine = remote.split(':').next() == Some(address.as_str());
        of_server += usize::from(local == whole && same_machine && (state == OPEN || state == CLOSED_BY_CLIENT));
    }
    of_clients.max(of_server)
}

/// An address as in the kernel's table: words of four bytes, each in the machine's order.
fn hexadecimal(address: IpAddr) -> String {
    let bytes = match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let word = |word: &[u8]| format!("{:08X}", u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
    bytes.chunks_exact(4).map(word).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_tested_where_a_connection_costs_no_handshake() {
        for (address, base, endpoint) in [
            (
                "127.0.0.1:8500",
                "http://127.0.0.1:8500",
                Some(Endpoint::Tcp(String::from("127.0.0.1"), 8500)),
            ),
            (
                "http://[::1]/prefix",
                "http://[::1]/prefix",
                Some(Endpoint::Tcp(String::from("::1"), 80)),
            ),
            ("https://consul.example:8501", "https://consul.example:8501", None),
            (
                "unix:///run/consul.sock",
                "http://localhost",
                Some(Endpoint::Unix(PathBuf::from("/run/consul.sock"))),
            ),
        ] {
            assert_eq!(Endpoint::of(address, base), endpoint, "{address}");
        }
    }

    #[tokio::test]
    async fn the_kernel_knows_the_connections_to_an_address() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = tokio::net::TcpListener::bind(address).await else {
                continue;
            };
            let port = listener.local_addr().unwrap().port();
            let host = listener.local_addr().unwrap().ip().to_string();
            let endpoint = Endpoint::Tcp(host, port);
            let server = tokio::spawn(async move {
                while let Ok((mut connection, _)) = listener.accept().await {
                    tokio::spawn(async move { tokio::io::copy(&mut connection, &mut tokio::io::sink()).await });
                }
            });
            let mut open = Vec::new();
            for _ in 0..7 {
                open.push(endpoint.connect().await.unwrap());
            }
            assert_eq!(open[0].open_beside().await, Some(6), "{address}");
            assert!(endpoint.has_room(190, 3).await, "{address}");
            assert!(
                !endpoint.has_room(190, 4).await,
                "{address}: 7, 190 and 4 are more than 200"
            );
            assert!(
                !endpoint.has_room(194, 0).await,
                "{address}: 7 and 194 are more than 200"
            );
            server.abort();
        }
    }

    #[test]
    fn a_connection_that_its_client_gave_up_still_counts() {
        let table = "  sl  local_address rem_address   st tx_queue\n\
            0: 0100007F:2134 00000000:0000 0A 0\n\
            1: 0100007F:2134 0100007F:9C40 01 0\n\
            2: 0100007F:2134 0100007F:9C41 08 0\n\
            3: 0100007F:2134 0200000A:9C42 01 0\n\
            4: 0100007F:9C40 0100007F:2134 01 0\n\
            5: 0100007F:9C44 0100007F:2135 01 0\n";
        if cfg!(target_endian = "little") {
            assert_eq!(connections_to("127.0.0.1:8500".parse().unwrap(), table), 2);
        }
        assert_eq!(connections_to("127.0.0.1:8500".parse().unwrap(), "none\n"), 0);
    }
}
