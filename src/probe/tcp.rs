//! TCP checks: an instance that accepts a connection is up.

use tokio::time::Instant;

use super::connect::{ConnectError, Resolver, connect};
use crate::balancer::{Address, DeniedNetworks};

/// Connects, and closes at once.
pub(super) async fn check(
    address: &Address,
    denied: &DeniedNetworks,
    resolver: &Resolver,
    deadline: Instant,
) -> Result<(), ConnectError> {
    connect(address, denied, resolver, deadline).await.map(drop)
}
