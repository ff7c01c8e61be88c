//! The lease key of this process.

use crate::balancer::LeaseKey;

use super::AgentError;

/// A random key that only this process knows. The next process makes another key, so leases end
/// with the agent that gave them out.
pub(super) fn new_key() -> Result<LeaseKey, AgentError> {
    let mut bits = [0; 16];
    match rustls::crypto::ring::default_provider().secure_random.fill(&mut bits) {
        Ok(()) => Ok(LeaseKey::new(bits)),
        Err(_) => Err(AgentError::NoEntropy),
    }
}
