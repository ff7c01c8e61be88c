//! Active checks of one address, as a state machine over their results.
//!
//! ```text
//! Unknown -pass-> Up -fail x fall-> Down -pass x rise-> Up
//! Unknown -fail-> Down
//! ```
//!
//! `fall` is `max_consecutive_failures`. The first check of a new instance decides at once: no
//! request depends on that instance yet. (HAProxy's rise and fall.) This module knows nothing of
//! sockets, clocks and tasks.

use std::fmt;

use crate::balancer::clock::{Since, Timestamp};
use crate::balancer::config::LoadBalancerConfig;

/// The result of one active check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Check {
    /// The instance gave the expected answer.
    Pass,
    /// The instance did not give the expected answer.
    Fail(CheckFailure),
}

/// Why an active check failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CheckFailure {
    /// No answer arrived in time.
    Timeout,
    /// No process listens on the port.
    ConnectionRefused,
    /// Connecting failed for another reason, or the connection broke.
    ConnectionFailed,
    /// The host name does not resolve to an address.
    NameNotResolved,
    /// The host name resolves to an address that must not be contacted. The instance is out even in
    /// panic mode.
    AddressRefused,
    /// The HTTP status of the answer is not an expected status.
    Status(u16),
    /// The instance answered that it is not serving (gRPC).
    NotServing,
    /// The answer does not follow the protocol.
    Protocol,
}

/// The word in answers, such as `timeout` or `status_503`. Words do not change.
impl fmt::Display for CheckFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Timeout => "timeout",
            Self::ConnectionRefused => "connection_refused",
            Self::ConnectionFailed => "connection_failed",
            Self::NameNotResolved => "name_not_resolved",
            Self::AddressRefused => "address_refused",
            Self::Status(status) => return write!(f, "status_{status}"),
            Self::NotServing => "not_serving",
            Self::Protocol => "protocol_error",
        })
    }
}

/// The state of active checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ActiveState {
    /// Active checks pass.
    Up,
    /// Active checks fail: the instance is out.
    Down(CheckFailure),
}

impl ActiveState {
    /// The word in answers. Words do not change.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down(_) => "down",
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Active {
    current: Option<Since<ActiveState>>,
    /// Consecutive results that contradict the state.
    contrary_results: u32,
}

impl Active {
    /// The state of active checks; `None` before the first check.
    pub(crate) fn since(&self) -> Option<Since<ActiveState>> {
        self.current
    }

    /// Records a result. Returns the new state if the state changed.
    pub(crate) fn observe(&mut self, check: Check, config: &LoadBalancerConfig, now: Timestamp) -> Option<ActiveState> {
        let (next, needed) = match (self.current.map(|current| current.state), check) {
            (None, Check::Pass) => (ActiveState::Up, 1),
            (None, Check::Fail(why)) => (ActiveState::Down(why), 1),
            // A refused address takes the instance out at once, without a threshold.
            (Some(ActiveState::Up), Check::Fail(CheckFailure::AddressRefused)) => {
                (ActiveState::Down(CheckFailure::AddressRefused), 1)
            }
            (Some(ActiveState::Up), Check::Fail(why)) => (ActiveState::Down(why), config.max_consecutive_failures()),
            (Some(ActiveState::Down(_)), Check::Pass) => (ActiveState::Up, config.rise()),
            (Some(ActiveState::Up), Check::Pass) => {
                self.contrary_results = 0;
                return None;
            }
            (Some(ActiveState::Down(before)), Check::Fail(why)) => {
                self.contrary_results = 0;
                // The state stays down, with the latest reason. Panic mode must not pick a refused
                // address, so a change to or from that reason is returned.
                let refused = |why| why == CheckFailure::AddressRefused;
                if let Some(current) = &mut self.current {
                    current.state = ActiveState::Down(why);
                }
                return (refused(before) != refused(why)).then_some(ActiveState::Down(why));
            }
        };
        self.contrary_results += 1;
        if self.contrary_results < needed {
            return None;
        }
        self.contrary_results = 0;
        self.current = Some(Since {
            state: next,
            since: now,
        });
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// The state after each result: `P` passes, `F` fails; fall 3, rise 2.
    fn states(results: &str) -> String {
        let config = LoadBalancerConfig::default();
        let mut active = Active::default();
        let mut now = Timestamp::default();
        let state = |result| {
            now = now + Duration::from_secs(1);
            let check = if result == 'P' {
                Check::Pass
            } else {
                Check::Fail(CheckFailure::Timeout)
            };
            let before = active.current;
            let changed = active.observe(check, &config, now);
            assert_eq!(changed.is_some(), active.current != before, "{results}");
            match active.current.unwrap().state {
                ActiveState::Up => 'U',
                ActiveState::Down(_) => 'D',
            }
        };
        results.chars().map(state).collect()
    }

    #[test]
    fn the_first_check_decides_at_once() {
        assert_eq!(states("P"), "U");
        assert_eq!(states("F"), "D");
    }

    #[test]
    fn fall_failures_in_a_row_mark_down_and_rise_passes_mark_up() {
        assert_eq!(states("PFFFFPP"), "UUUDDDU");
    }

    #[test]
    fn a_pass_in_between_restarts_the_count_of_failures() {
        assert_eq!(states("PFFPFFF"), "UUUUUUD");
        assert_eq!(states("FPFPP"), "DDDDU");
    }

    #[test]
    fn a_down_state_has_the_last_reason_and_the_time_of_the_first() {
        let config = LoadBalancerConfig::default();
        let mut active = Active::default();
        let at = |second| Timestamp::default() + Duration::from_secs(second);
        active.observe(Check::Fail(CheckFailure::Timeout), &config, at(1));
        assert_eq!(
            active.observe(Check::Fail(CheckFailure::Status(500)), &config, at(2)),
            None
        );
        let current = active.since().unwrap();
        assert_eq!(
            (current.state, current.since),
            (ActiveState::Down(CheckFailure::Status(500)), at(1))
        );
    }

    #[test]
    fn an_address_that_is_refused_is_out_at_once() {
        let config = LoadBalancerConfig::default();
        let mut active = Active::default();
        active.observe(Check::Pass, &config, Timestamp::default());
        let refused = Check::Fail(CheckFailure::AddressRefused);
        assert!(active.observe(refused, &config, Timestamp::default()).is_some());
        assert_eq!(
            active.current.unwrap().state,
            ActiveState::Down(CheckFailure::AddressRefused)
        );
    }
}
