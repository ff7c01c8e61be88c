//! One request to Consul: the target, the mode, the consistency, and a number.
//!
//! ```text
//! read       no index: Consul answers at once
//! long poll  index N: Consul answers when the index has passed N, or when the wait is over
//! ```

use std::num::NonZeroU64;
use std::time::Duration;

use crate::balancer::{ServiceName, Timestamp};

/// The most reads in flight at once, beside the long polls.
pub(super) const READS: usize = 4;

/// One request.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Request {
    /// Each request has a higher number than the request before.
    pub(super) number: u64,
    pub(super) target: Target,
    pub(super) mode: Mode,
    pub(super) consistency: Consistency,
    pub(super) asked_at: Timestamp,
    /// How often the watch had been interrupted when this request was sent.
    pub(super) generation: u64,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Catalog,
    Service(ServiceName),
}

/// When Consul answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// A read: Consul answers at once.
    Read,
    /// A long poll (Consul: blocking query): Consul answers when the index has passed `index`, or
    /// after `wait`.
    Poll { index: NonZeroU64, wait: Duration },
}

/// Which server answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Consistency {
    /// Any server, from what it knows (Consul: `stale`).
    Stale,
    /// The leader (Consul: `default`).
    Default,
}
