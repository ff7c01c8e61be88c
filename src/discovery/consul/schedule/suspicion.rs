//! Whether a connection that was closed without an answer speaks for Consul as a whole.
//!
//! When Consul ends, all its connections end at about the same time. When Consul has too many
//! connections from this address, it closes the new one, and the others live on. So after a
//! closed connection the others decide:
//!
//! ```text
//! closed ──┬── an answer comes, or an earlier poll is still open after 300 ms ──► only that one
//!          └── neither ──► Consul is away
//! ```

use std::time::Duration;

use crate::balancer::Timestamp;

/// How long the other connections have to end, too.
const GRACE: Duration = Duration::from_millis(300);

pub(super) struct Suspicion {
    /// When the suspicion is resolved, if no answer resolves it before.
    pub(super) until: Timestamp,
    /// Requests with a lower number were in flight, or over, when the connection was closed.
    pub(super) next: u64,
    /// Whether a connection was closed at once, as when there are too many.
    pub(super) at_once: bool,
    /// The error, in one line.
    pub(super) detail: String,
}

impl Suspicion {
    pub(super) fn new(detail: String, next: u64, now: Timestamp) -> Self {
        Self {
            until: now + GRACE,
            next,
            at_once: false,
            detail,
        }
    }
}
