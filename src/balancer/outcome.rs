//! How a request ended.

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was answered well.
    Success,
    /// It was answered with an error that is the instance's fault.
    Failure,
    /// It was not answered in time.
    Timeout,
    /// No connection could be made. Counts as two failures in a row.
    ConnectError,
    /// The instance refused it for its load (429, 503): counts as failed and costs latency, is no failure in a row.
    Rejected,
    /// The caller gave up for reasons of its own: only frees the place in flight.
    Cancelled,
}

impl Outcome {
    pub(crate) fn failures_in_a_row(self) -> u32 {
        match self {
            Self::Failure | Self::Timeout => 1,
            Self::ConnectError => 2,
            Self::Success | Self::Rejected | Self::Cancelled => 0,
        }
    }
}
