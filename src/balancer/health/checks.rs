//! Active checks of one address, as a state machine over their results.
//!
//! ```text
//! Unknown -pass-> Up -fail x fall-> Down -pass x rise-> Up
//! Unknown -fail-> Down
//! ```
//!
//! `fall` is `max_consecutive_failures`. A new instance is believed at its first check: nobody has relied on it yet. (HAProxy's
//! rise and fall.) Knows nothing of sockets, clocks and tasks.

use std::fmt;

use crate::balancer::clock::{Since, Timestamp};
use crate::balancer::config::LoadBalancerConfig;

/// What one active check found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// The instance answered as it should.
    Pass,
    /// It did not.
    Fail(CheckFailure),
}

/// Why an active check failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckFailure {
    /// No answer in time.
    Timeout,
    /// Nobody listens on its port.
    ConnectionRefused,
    /// No connection for another reason, or one that broke off.
    ConnectionFailed,
    /// Its host name leads to no address.
    NameNotResolved,
    /// Its host name leads to an address that must not be contacted. Takes it out even while the pool panics.
    AddressRefused,
    /// An HTTP status that is not expected.
    Status(u16),
    /// It answered that it does not serve (gRPC).
    NotServing,
    /// An answer that is not one of its protocol.
    Protocol,
}

/// The word for it in answers, such as `timeout` or `status_503`. Words do not change.
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

/// What active checks say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActiveState {
    /// Checks pass.
    Up,
    /// Checks fail: takes the instance out.
    Down(CheckFailure),
}

impl ActiveState {
    /// The word for it in answers. Words do not change.
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
    said: Option<Since<ActiveState>>,
    /// Results in a row that speak against the state.
    against: u32,
}

impl Active {
    /// What checks say; `None` before the first.
    pub(crate) fn since(&self) -> Option<Since<ActiveState>> {
        self.said
    }

    /// Takes a result. Returns what checks say from now on, if that is something else than before.
    pub(crate) fn observe(&mut self, check: Check, config: &LoadBalancerConfig, now: Timestamp) -> Option<ActiveState> {
        let (next, needed) = match (self.said.map(|said| said.state), check) {
            (None, Check::Pass) => (ActiveState::Up, 1),
            (None, Check::Fail(why)) => (ActiveState::Down(why), 1),
            // Not a matter of how often.
            (Some(ActiveState::Up), Check::Fail(CheckFailure::AddressRefused)) => {
                (ActiveState::Down(CheckFailure::AddressRefused), 1)
            }
            (Some(ActiveState::Up), Check::Fail(why)) => (ActiveState::Down(why), config.max_consecutive_failures()),
            (Some(ActiveState::Down(_)), Check::Pass) => (ActiveState::Up, config.rise()),
            (Some(ActiveState::Up), Check::Pass) => {
                self.against = 0;
                return None;
            }
            (Some(ActiveState::Down(before)), Check::Fail(why)) => {
                self.against = 0;
                // Down as before, and why is kept true. Whether the address is refused decides what a panic may pick.
                let refused = |why| why == CheckFailure::AddressRefused;
                if let Some(said) = &mut self.said {
                    said.state = ActiveState::Down(why);
                }
                return (refused(before) != refused(why)).then_some(ActiveState::Down(why));
            }
        };
        self.against += 1;
        if self.against < needed {
            return None;
        }
        self.against = 0;
        self.said = Some(Since {
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
            let before = active.said;
            let changed = active.observe(check, &config, now);
            assert_eq!(changed.is_some(), active.said != before, "{results}");
            match active.said.unwrap().state {
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
        let said = active.since().unwrap();
        assert_eq!(
            (said.state, said.since),
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
            active.said.unwrap().state,
            ActiveState::Down(CheckFailure::AddressRefused)
        );
    }
}
