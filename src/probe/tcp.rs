//! TCP checks: an instance that takes a connection is up.

use tokio::time::Instant;

use super::connect::{Resolver, connect};
use crate::balancer::{Address, CheckFailure, DeniedNetworks};

/// Connects, and closes at once.
pub(super) async fn check(
    address: &Address,
    denied: &DeniedNetworks,
    resolver: &Resolver,
    deadline: Instant,
) -> Result<(), CheckFailure> {
    connect(address, denied, resolver, deadline).await.map(drop)
}
