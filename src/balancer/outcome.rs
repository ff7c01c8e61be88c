//! How a request ended.

use std::time::Duration;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The answer was good.
    Success,
    /// The answer was an error that is the instance's fault.
    Failure,
    /// No answer arrived in time.
    Timeout,
    /// No connection could be made. Counts as two consecutive failures.
    ConnectError,
    /// The instance refused the request because of its load (429, 503). Counts as failed and costs
    /// latency, and is not a consecutive failure.
    Rejected,
    /// Rejected, and the instance asks not to be called for this time (`Retry-After`). Its breaker
    /// opens for that time, at most for the longest open time.
    RejectedFor(Duration),
    /// The caller gave up for its own reasons. The request is no longer in flight, and nothing else
    /// is recorded.
    Cancelled,
}

impl Outcome {
    pub(crate) fn failures_in_a_row(self) -> u32 {
        match self {
            Self::Failure | Self::Timeout => 1,
            Self::ConnectError => 2,
            Self::Success | Self::Rejected | Self::RejectedFor(_) | Self::Cancelled => 0,
        }
    }
}
