//! What a watcher of a registry is, and what it says: the words that every registry shares.

use std::future::Future;
use std::time::Duration;

use crate::balancer::{ServiceInstance, ServiceName, Source, Timestamp};

/// How long after a doubtful reading a watcher reads the same service again.
pub const CONFIRM_AFTER: Duration = Duration::from_secs(5);

/// Watches one registry.
pub trait Watcher: Send {
    /// The registry's name, as in answers and metric labels.
    fn source(&self) -> Source;

    /// Waits until something may have changed, and says how it is now.
    ///
    /// Cancel safe: requests in flight are fields of the watcher, so dropping the future abandons none of them, and the next
    /// call goes on waiting for them.
    ///
    /// # Errors
    ///
    /// When the registry as a whole cannot be asked. What it said last stays in force; the caller decides when to call again.
    /// Trouble with a single service is no error here: it is counted in the source's status and retried within.
    fn next(&mut self) -> impl Future<Output = Result<Update, WatchError>> + Send;
}

/// News from a registry.
#[derive(Clone, Debug, PartialEq)]
pub enum Update {
    /// The whole of one service, as it was read.
    Service(Reading),
    /// The registry no longer lists this service.
    Gone {
        /// Its name.
        service: ServiceName,
        /// When the answer that lacks it was read.
        read_at: Timestamp,
        /// How far that answer can be trusted.
        trust: Trust,
    },
    /// Everything has been told once. Said once in a watcher's life, and never before it is true.
    Synced,
}

/// All instances of one service at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// The service.
    pub service: ServiceName,
    /// Its instances, in any order. Invalid ones are already left out (and counted).
    pub instances: Vec<ServiceInstance>,
    /// When the registry's answer was read.
    pub read_at: Timestamp,
    /// How far it can be trusted.
    pub trust: Trust,
}

/// How far a reading can be trusted with taking instances away. Additions and changes are always believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Read in the course of an unbroken watch, or as the second look after a gap: believed.
    Steady,
    /// The first look after a reconnect, or after an index or revision went back. A large drop waits for a second look,
    /// which the watcher owes [`CONFIRM_AFTER`] later, changed or not, as [`Trust::Steady`].
    AfterGap,
    /// The registry knows no leader, contradicts itself, or says that it left things out: nothing is taken away for as long
    /// as that lasts.
    AdditionsOnly,
}

/// Why a registry could not be asked.
#[derive(Debug, thiserror::Error)]
#[error("{reason}: {detail}")]
pub struct WatchError {
    /// The kind of trouble, a metric label.
    pub reason: Reason,
    /// What happened, in one line, with the address asked.
    pub detail: String,
}

/// The kinds of trouble with a registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Refused, reset, name not resolved.
    Unreachable,
    /// No answer in time.
    Timeout,
    /// An answer of 5xx, or 429.
    Unavailable,
    /// No leader, or an answer older than allowed.
    NoLeader,
    /// 401, 403, or an empty answer that only missing rights explain.
    Denied,
    /// An answer that cannot be understood, or is too large.
    Protocol,
    /// A registration that cannot be used (that one is skipped).
    InvalidInstance,
    /// A file that cannot be read or understood (the last good one stays).
    InvalidFile,
}

impl Reason {
    /// Every reason, for metrics to start at zero.
    pub const ALL: [Self; 8] = [
        Self::Unreachable,
        Self::Timeout,
        Self::Unavailable,
        Self::NoLeader,
        Self::Denied,
        Self::Protocol,
        Self::InvalidInstance,
        Self::InvalidFile,
    ];

    /// Lower-case name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::Unavailable => "unavailable",
            Self::NoLeader => "no_leader",
            Self::Denied => "denied",
            Self::Protocol => "protocol",
            Self::InvalidInstance => "invalid_instance",
            Self::InvalidFile => "invalid_file",
        }
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
