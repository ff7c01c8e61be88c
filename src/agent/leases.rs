//! The lease key of this process, and the task that ends leases when they expire.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time;
use tokio_util::sync::CancellationToken;

use crate::balancer::{Clock, Directory, LeaseKey, Monotonic};

use super::AgentError;

/// The longest sleep while a lease is open.
const CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// A random key that only this process knows. The next process makes another key, so leases end
/// with the agent that gave them out.
pub(super) fn new_key() -> Result<LeaseKey, AgentError> {
    let mut bits = [0; 16];
    match rustls::crypto::ring::default_provider().secure_random.fill(&mut bits) {
        Ok(()) => Ok(LeaseKey::new(bits)),
        Err(_) => Err(AgentError::NoEntropy),
    }
}

/// Ends leases when they expire. Sleeps while no lease is open; `begin` is notified when a lease is
/// taken while none is open.
pub(super) async fn expire(
    directory: Arc<Directory>,
    clock: Arc<Monotonic>,
    begin: Arc<Notify>,
    stop: CancellationToken,
) {
    let expire = async {
        loop {
            match directory.expire_leases(clock.now()) {
                // A lease that is taken during the sleep may expire before this time.
                Some(due) => time::sleep(due.since(clock.now()).min(CHECK_INTERVAL)).await,
                None => begin.notified().await,
            }
        }
    };
    stop.run_until_cancelled(expire).await;
}
