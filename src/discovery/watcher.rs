//! What a watcher is, and what it sends: the types that all registries share.

use std::future::Future;
use std::time::Duration;

use crate::balancer::{ServiceInstance, ServiceName, SkipReason, Source, Timestamp};

/// How long after a reading with [`Trust::AfterGap`] a watcher reads the same service again.
pub const CONFIRM_AFTER: Duration = Duration::from_secs(5);

/// Watches one registry.
pub trait Watcher: Send {
    /// The name of the registry, as in answers and metric labels.
    fn source(&self) -> Source;

    /// Waits until something may have changed, and returns the present state of it.
    ///
    /// Cancel safe: requests in flight are fields of the watcher. If the future is dropped, no
    /// request is lost, and the next call waits for the same requests.
    ///
    /// # Errors
    ///
    /// When the registry as a whole cannot be asked. The last known instances stay in force, and
    /// the caller decides when to call again. A problem with a single service is not an error
    /// here: the watcher counts it in the source's status, and retries.
    fn next(&mut self) -> impl Future<Output = Result<Update, WatchError>> + Send;
}

/// News from a registry.
#[derive(Clone, Debug, PartialEq)]
pub enum Update {
    /// All instances of one service.
    Service(Reading),
    /// The registry no longer lists a service.
    Gone {
        /// The service.
        service: ServiceName,
        /// When the answer without the service was read.
        read_at: Timestamp,
        /// How far that answer can be trusted.
        trust: Trust,
    },
    /// Everything has been sent once. A watcher sends this once in its life, after all that it
    /// covers.
    Synced,
}

/// All instances of one service at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// The service.
    pub service: ServiceName,
    /// The registrations. Several may have one address: those are in the order in which they were
    /// written, the last write last. Invalid registrations are left out, and counted.
    pub instances: Vec<ServiceInstance>,
    /// When the registry's answer was read.
    pub read_at: Timestamp,
    /// How far that answer can be trusted.
    pub trust: Trust,
}

/// How far a reading can be trusted when it lacks instances. Additions and changes are always
/// applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Read in an unbroken watch, or as the confirmation after a gap: removals are applied.
    Steady,
    /// The first reading after a reconnect. A large drop is held. The watcher sends a second
    /// reading [`CONFIRM_AFTER`] later, changed or not, as [`Trust::Steady`].
    AfterGap,
    /// As [`Trust::AfterGap`], after an index or a revision went back: the registry has lost its
    /// memory, so no absence in the reading means anything. Every missing instance is held.
    AfterLoss,
    /// A later reading after a gap, before the second reading that the gap asks for. What was missing
    /// after the gap stays held. Other removals are applied.
    Unconfirmed,
    /// The registry has no leader, contradicts itself, or says that its answer is incomplete. As
    /// long as that lasts, nothing is removed.
    AdditionsOnly,
}

/// Why a registry could not be asked.
#[derive(Debug, thiserror::Error)]
#[error("{reason}: {detail}")]
pub struct WatchError {
    /// The kind of failure, a metric label.
    pub reason: Reason,
    /// What happened, in one line, with the address that was asked.
    pub detail: String,
}

/// The kinds of failure of a registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Connection refused or reset, or name not resolved.
    Unreachable,
    /// No answer in time.
    Timeout,
    /// An answer with status 5xx.
    Unavailable,
    /// Too many requests or connections: an answer with status 429, or 503 with `Retry-After`.
    Throttled,
    /// No leader, or an answer older than allowed.
    NoLeader,
    /// Status 401 or 403, or an empty answer that only missing rights explain.
    Denied,
    /// The auth token was not valid any more. The call is repeated with a new token.
    Token,
    /// An answer that cannot be decoded, or is too large.
    Protocol,
    /// A registration that cannot be used. Only that registration is skipped.
    InvalidInstance,
    /// A registration without a port. Only that registration is skipped.
    NoPort,
    /// A file that cannot be read or parsed. The last valid version stays in force.
    InvalidFile,
}

impl Reason {
    /// Every reason. Metrics start each at zero.
    pub const ALL: [Self; 11] = [
        Self::Unreachable,
        Self::Timeout,
        Self::Unavailable,
        Self::Throttled,
        Self::NoLeader,
        Self::Denied,
        Self::Token,
        Self::Protocol,
        Self::InvalidInstance,
        Self::NoPort,
        Self::InvalidFile,
    ];

    /// Lower-case name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::Unavailable => "unavailable",
            Self::Throttled => "throttled",
            Self::NoLeader => "no_leader",
            Self::Denied => "denied",
            Self::Token => "token",
            Self::Protocol => "protocol",
            Self::InvalidInstance => "invalid_instance",
            Self::NoPort => "no_port",
            Self::InvalidFile => "invalid_file",
        }
    }
}

impl From<SkipReason> for Reason {
    fn from(reason: SkipReason) -> Self {
        match reason {
            SkipReason::NoPort => Self::NoPort,
            SkipReason::Invalid => Self::InvalidInstance,
        }
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
