//! The state that the routes share.

use std::fmt;
use std::sync::Arc;

use super::accept::AcceptRequests;
use super::error::ApiError;
use super::readiness::Readiness;
use super::server::authorization::AdminToken;
use crate::balancer::{Clock, Directory, LoadBalancer};
use crate::metrics::Metrics;

/// The state that the routes share.
#[derive(Clone)]
pub struct Api {
    /// The services.
    pub directory: Arc<Directory>,
    /// The clock by which ages are measured.
    pub clock: Arc<dyn Clock>,
    /// Whether `/readyz` answers 200.
    pub readiness: Arc<Readiness>,
    /// The series that `/metrics` shows.
    pub metrics: Arc<Metrics>,
    /// What overrides need besides the core.
    pub admin: Admin,
}

impl Api {
    /// The balancer of a service.
    ///
    /// # Errors
    ///
    /// When the name is invalid, or the service is unknown.
    pub(super) fn balancer(&self, service: &str) -> Result<LoadBalancer, ApiError> {
        match self.directory.get(service) {
            Some(balancer) => Ok(balancer),
            None => Err(self.directory.why_unknown(service.parse()?).into()),
        }
    }
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api")
            .field("directory", &self.directory)
            .finish_non_exhaustive()
    }
}

/// What overrides need besides the core.
#[derive(Clone, Debug, Default)]
pub struct Admin {
    /// The token that clients of network listeners must send.
    pub token: AdminToken,
    /// The agent that lets go of held instances. `None` where no agent runs.
    pub accepts: Option<AcceptRequests>,
}
