//! The lease key of this process.

use crate::balancer::LeaseKey;

use super::AgentError;

/// A random key that only this process knows. The next process makes another key, so leases end
/// with the agent that gave them out.
pub(super) fn new_key() -> Result<LeaseKey, AgentError> {
    Ok(LeaseKey::new(super::random_bits()?))
}
