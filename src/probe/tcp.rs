//! TCP checks: an instance that takes a connection is up.

use super::connect::{Resolver, connect};
use crate::balancer::{Address, CheckFailure, DeniedNetworks};

/// Connects, and closes at once.
pub(super) async fn check(address: &Address, denied: &DeniedNetworks, resolver: &Resolver) -> Result<(), CheckFailure> {
    connect(address, denied, resolver).await.map(drop)
}
