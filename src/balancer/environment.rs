//! What a balancer is handed besides its configuration: time, rendering, a wake for the timer that
//! drives it, and the key of session tokens.

use std::fmt;
use std::sync::Arc;

use super::clock::{Clock, Monotonic};
use super::render::{NoBodies, Render};
use super::session_token::SessionKey;

/// What a balancer is handed besides its configuration.
#[derive(Clone)]
pub struct Environment {
    /// Tells the time.
    pub clock: Arc<dyn Clock>,
    /// Renders answers.
    pub render: Arc<dyn Render>,
    /// The timer that calls `advance`. `None`: there is no timer, and requests that are acquired,
    /// leased, finished or reported do what is due.
    pub wake: Option<Arc<dyn Wake>>,
    /// Signs session tokens. Balancers with the same key honour each other's tokens.
    pub session_key: SessionKey,
}

/// Asks for the next `advance` ([`Directory::advance`](crate::Directory::advance), or
/// [`LoadBalancer::advance`](crate::LoadBalancer::advance) of a balancer alone) before the time
/// that the last one returned.
pub trait Wake: Send + Sync {
    /// `advance` should be called now: something is due earlier than it returned, or there is
    /// something to tell. Called under locks of the balancer: an implementation only takes a note.
    fn wake(&self);
}

impl Default for Environment {
    /// The machine's monotonic clock, no bodies, no timer, and a session key of a fast generator that
    /// is not secure.
    fn default() -> Self {
        Self {
            clock: Arc::new(Monotonic::start()),
            render: Arc::new(NoBodies),
            wake: None,
            session_key: SessionKey::default(),
        }
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Environment").finish_non_exhaustive()
    }
}
