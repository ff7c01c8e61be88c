//! Listeners: bind, serve, stop.

use std::io;
use std::net::{IpAddr, SocketAddr};

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{AllowedHosts, Api};

/// A bound listener that does not serve yet, so that an address in use is found before anything starts.
#[derive(Debug)]
pub struct Listener {
    listener: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Binds. Port 0 takes a free one.
    ///
    /// # Errors
    ///
    /// When the address is in use or not of this machine.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }

    /// The address it is bound to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether only this machine can reach it.
    fn is_loopback(&self) -> bool {
        match self.address.ip() {
            IpAddr::V4(ip) => ip.is_loopback(),
            IpAddr::V6(ip) => ip.is_loopback() || ip.to_ipv4_mapped().is_some_and(|ip| ip.is_loopback()),
        }
    }

    /// Serves until stopped, then waits for requests that are being answered. Whoever awaits this bounds that wait: a client
    /// that never finishes its request would hold it up for ever.
    ///
    /// # Errors
    ///
    /// When the listener fails.
    pub async fn serve(self, api: Api, hosts: AllowedHosts, stop: CancellationToken) -> io::Result<()> {
        let hosts = self.is_loopback().then_some(hosts);
        axum::serve(self.listener, api.router(hosts))
            .with_graceful_shutdown(stop.cancelled_owned())
            .await
    }
}
