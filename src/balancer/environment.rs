//! What a balancer is handed besides its configuration: time, rendering, and somebody who drives the time.

use std::fmt;
use std::sync::Arc;

use super::clock::{Clock, Monotonic};
use super::instance::ServiceName;
use super::render::{NoBodies, Render};

/// What a balancer is handed besides its configuration.
#[derive(Clone)]
pub struct Environment {
    /// Tells the time.
    pub clock: Arc<dyn Clock>,
    /// Renders answers.
    pub render: Arc<dyn Render>,
    /// Told when something is due; `None` where nobody drives the time.
    pub wake: Option<Arc<dyn Wake>>,
}

/// Somebody who drives the time.
pub trait Wake: Send + Sync {
    /// A service has instances that it had not, or [`LoadBalancer::tend`](crate::LoadBalancer::tend) is due sooner than it said. Called under the service's
    /// lock: only notes it.
    fn wake(&self, service: &ServiceName);
}

impl Default for Environment {
    /// The machine's monotonic clock, and no bodies; nobody drives the time.
    fn default() -> Self {
        Self {
            clock: Arc::new(Monotonic::start()),
            render: Arc::new(NoBodies),
            wake: None,
        }
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Environment").finish_non_exhaustive()
    }
}
